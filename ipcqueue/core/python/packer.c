/* The module and its type, Packer, and whether values are plain. */
#include "packer.h"

static int packer_traverse(Packer *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->cls);
    return 0;
}

static int packer_clear(Packer *self)
{
    Py_CLEAR(self->cls);
    return 0;
}

static void packer_dealloc(Packer *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    packer_clear(self);
    PyMem_Free(self->fields);
    type->tp_free(self);
    Py_DECREF(type);
}

static int is_plausible(const Field *field, Py_ssize_t size)
{
    if (field->offset < 0 || field->width < 1 || field->width > size - field->offset)
        return 0;
    switch (field->kind) {
    case 'i':
    case 'u':
        return field->width == 1 || field->width == 2 || field->width == 4 || field->width == 8;
    case 'f':
        return field->width == 2 || field->width == 4 || field->width == 8;
    case '?':
    case 'c':
        return field->width == 1;
    default:
        return field->kind == 's';
    }
}

static PyObject *packer_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    PyObject *fields, *cls;
    Py_ssize_t size;
    static char *names[] = {"fields", "size", "cls", NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!nO:Packer", names, &PyTuple_Type, &fields,
                                     &size, &cls))
        return NULL;
    if (cls != Py_None
        && !(PyType_Check(cls) && PyType_IsSubtype((PyTypeObject *)cls, &PyTuple_Type)))
        return PyErr_Format(PyExc_TypeError, "cls is a class of tuples, or None");
    Packer *self = (Packer *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->cls = Py_NewRef(cls);
    self->size = size;
    self->count = PyTuple_GET_SIZE(fields);
    self->fields = PyMem_Calloc((size_t)self->count + 1, sizeof(Field));
    if (self->fields == NULL) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    for (Py_ssize_t i = 0; i < self->count; i++) {
        Field *field = &self->fields[i];
        int kind;
        if (!PyArg_ParseTuple(PyTuple_GET_ITEM(fields, i), "Cnn", &kind, &field->offset,
                              &field->width)) {
            Py_DECREF(self);
            return NULL;
        }
        field->kind = (char)kind;
        if (!is_plausible(field, size)) {
            Py_DECREF(self);
            return PyErr_Format(PyExc_ValueError, "field %zd is none", i);
        }
    }
    Py_ssize_t used = 0;
    for (Py_ssize_t i = 0; i < self->count; i++)
        used += self->fields[i].width;
    self->padded = used != size;
    if (self->count == 0) { /* with fields, it has a size */
        Py_DECREF(self);
        return PyErr_Format(PyExc_ValueError, "a record without fields");
    }
    return (PyObject *)self;
}

static PyMethodDef packer_methods[] = {
    {"pack", (PyCFunction)packer_pack, METH_O,
     "pack(records) -> bytes, or None if struct has to look at them."},
    {"pack_one", (PyCFunction)packer_pack_one, METH_O,
     "pack_one(record) -> bytes, or None if struct has to look at it."},
    {"unpack", (PyCFunction)packer_unpack, METH_O, "unpack(buffer of whole records) -> list."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot packer_slots[] = {
    {Py_tp_new, packer_new},
    {Py_tp_traverse, packer_traverse},
    {Py_tp_clear, packer_clear},
    {Py_tp_dealloc, packer_dealloc},
    {Py_tp_methods, packer_methods},
    {0, NULL},
};

static PyType_Spec packer_spec = {
    .name = "ipcqueue._packer.Packer",
    .basicsize = sizeof(Packer),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = packer_slots,
};

static int execute(PyObject *module)
{
    PyObject *type = PyType_FromSpec(&packer_spec);
    if (type == NULL)
        return -1;
    int result = PyModule_AddType(module, (PyTypeObject *)type);
    Py_DECREF(type);
    return result;
}

/* Whether a list or tuple has nothing but numbers and texts of Python's own: None of them is masked. */
static PyObject *are_plain(PyObject *Py_UNUSED(module), PyObject *values)
{
    int iterated = PyTuple_Check(values) && Py_TYPE(values)->tp_iter == PyTuple_Type.tp_iter;
    if (!PyList_CheckExact(values) && !iterated)
        Py_RETURN_FALSE;
    PyObject **items = PySequence_Fast_ITEMS(values);
    Py_ssize_t count = PySequence_Fast_GET_SIZE(values);
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *item = items[i];
        if (!PyLong_CheckExact(item) && !PyFloat_CheckExact(item) && !PyBytes_CheckExact(item) &&
            !PyBool_Check(item))
            Py_RETURN_FALSE;
    }
    Py_RETURN_TRUE;
}

static PyMethodDef functions[] = {
    {"are_plain", (PyCFunction)are_plain, METH_O,
     "are_plain(values): whether a list or tuple has only exact ints, floats, bytes and bools."},
    {"normalise", (PyCFunction)normalise, METH_VARARGS,
     "normalise(records, size, runs): make all bools 0 or 1, in place."},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, execute},
#ifdef Py_mod_multiple_interpreters /* CPython 3.12 */
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
#ifdef Py_mod_gil /* CPython 3.13 */
    {Py_mod_gil, Py_MOD_GIL_USED}, /* pack() looks at lists that others may change */
#endif
    {0, NULL},
};

static PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "ipcqueue._packer",
    .m_doc = "Tuples into records and back; see core/python/packer.h.",
    .m_methods = functions,
    .m_slots = module_slots,
};

PyMODINIT_FUNC PyInit__packer(void)
{
    return PyModuleDef_Init(&definition);
}
