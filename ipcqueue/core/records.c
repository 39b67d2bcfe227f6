/*
 * Many tuples into the bytes of records, and back, for CPython: what struct does, without a call, a
 * bytes object and an argument tuple for each record.
 *
 * pack() takes only what needs no thought: tuples and lists of the right length, whose items are
 * ints, floats (numpy's as well), bytes and bools that fit.  For anything else it returns None,
 * having run nothing of the user's, and struct decides in _records/structs.py; so both ways accept the same,
 * and there is one place where errors are made.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#include <stdint.h>
#include <string.h>

typedef struct {
    char kind; /* i, u: integers; f: floats; ?: a bool; c: one byte; s: text */
    Py_ssize_t offset, width;
} Field;

typedef struct {
    PyObject_HEAD
    PyObject *cls; /* records are made of this class, and accepted; None: tuples */
    Field *fields;
    Py_ssize_t count, size;
    int padded; /* there is more than the fields; it is made zero, and tells nothing */
} Packer;

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
    if (self->count == 0 || size < 1) {
        Py_DECREF(self);
        return PyErr_Format(PyExc_ValueError, "a record without fields");
    }
    return (PyObject *)self;
}

/* -- packing ------------------------------------------------------------------------------ */

static inline __attribute__((always_inline)) int pack_integer(const Field *field, char *to,
                                                              PyObject *item)
{
    if (!PyLong_Check(item))
        return 0;
    int overflow;
    long long value = PyLong_AsLongLongAndOverflow(item, &overflow);
    if (field->kind == 'u') {
        if (overflow > 0 && field->width == 8) {
            unsigned long long large = PyLong_AsUnsignedLongLong(item);
            if (large == (unsigned long long)-1 && PyErr_Occurred())
                return 0;
            memcpy(to, &large, 8);
            return 1;
        }
        if (overflow || value < 0 || (field->width < 8 && value >> (8 * field->width)))
            return 0;
    } else {
        if (overflow)
            return 0;
        if (field->width < 8) {
            long long limit = 1LL << (8 * field->width - 1);
            if (value < -limit || value >= limit)
                return 0;
        }
    }
    /* One size at a time, as memcpy of a constant size is a single instruction. */
    switch (field->width) {
    case 1: {
        uint8_t narrow = (uint8_t)value;
        memcpy(to, &narrow, 1);
        return 1;
    }
    case 2: {
        uint16_t narrow = (uint16_t)value;
        memcpy(to, &narrow, 2);
        return 1;
    }
    case 4: {
        uint32_t narrow = (uint32_t)value;
        memcpy(to, &narrow, 4);
        return 1;
    }
    default:
        memcpy(to, &value, 8);
        return 1;
    }
}

static inline __attribute__((always_inline)) int pack_float(const Field *field, char *to,
                                                            PyObject *item)
{
    double value;
    if (PyFloat_Check(item)) {
        value = PyFloat_AS_DOUBLE(item);
    } else if (PyLong_CheckExact(item)) {
        value = PyLong_AsDouble(item);
        if (value == -1.0 && PyErr_Occurred())
            return 0;
    } else {
        return 0;
    }
    switch (field->width) {
    case 2:
        return PyFloat_Pack2(value, to, PY_LITTLE_ENDIAN) == 0;
    case 4:
        return PyFloat_Pack4(value, to, PY_LITTLE_ENDIAN) == 0;
    default:
        memcpy(to, &value, 8);
        return 1;
    }
}

/* Whether the item could be packed; if not, an exception may be set, which means nothing. */
static inline __attribute__((always_inline)) int pack_item(const Field *field, char *record,
                                                           PyObject *item)
{
    char *to = record + field->offset;
    switch (field->kind) {
    case 'i':
    case 'u':
        return pack_integer(field, to, item);
    case 'f':
        return pack_float(field, to, item);
    case '?':
        *to = item == Py_True;
        return item == Py_True || item == Py_False;
    default: {
        if (!PyBytes_CheckExact(item))
            return 0;
        Py_ssize_t length = PyBytes_GET_SIZE(item);
        if (length > field->width || (field->kind == 'c' && length != 1))
            return 0;
        memcpy(to, PyBytes_AS_STRING(item), (size_t)length);
        memset(to + length, 0, (size_t)(field->width - length));
        return 1;
    }
    }
}

/* Whether it is a number of numpy's, whose ways to an int and a float run no Python either. */
static int is_of_numpy(const PyObject *item)
{
    const PyTypeObject *type = Py_TYPE(item);
    if (type->tp_flags & Py_TPFLAGS_HEAPTYPE || strncmp(type->tp_name, "numpy.", 6))
        return 0;
    const char *name = type->tp_name + 6;
    return !strncmp(name, "int", 3) || !strncmp(name, "uint", 4) || !strncmp(name, "float", 5);
}

/* What pack_item() did not take; apart from it, to leave the way of plain values as it is. */
static __attribute__((noinline)) int pack_number_of_numpy(const Field *field, char *to,
                                                          PyObject *item)
{
    if (PyErr_Occurred() || !strchr("iuf", field->kind) || !is_of_numpy(item))
        return 0;
    PyObject *number = field->kind == 'f' ? PyNumber_Float(item) : PyNumber_Index(item);
    int packed = number != NULL && (field->kind == 'f' ? pack_float(field, to, number)
                                                       : pack_integer(field, to, number));
    Py_XDECREF(number);
    return packed;
}

/* The items of a record, or NULL: iterating over it would give the same. */
static inline PyObject **items_of(const Packer *self, PyObject *record)
{
    PyTypeObject *type = Py_TYPE(record);
    if (PyTuple_CheckExact(record)
        || ((self->cls == Py_None ? PyTuple_Check(record) : (PyObject *)type == self->cls)
            && type->tp_iter == PyTuple_Type.tp_iter))
        return Py_SIZE(record) == self->count ? ((PyTupleObject *)record)->ob_item : NULL;
    if (self->cls == Py_None && PyList_CheckExact(record))
        return Py_SIZE(record) == self->count ? ((PyListObject *)record)->ob_item : NULL;
    return NULL;
}

/* Whether a record could be packed; as pack_item. */
static inline __attribute__((always_inline)) int pack_record(const Packer *self, char *to,
                                                             PyObject *record)
{
    PyObject **items = items_of(self, record);
    if (items == NULL)
        return 0;
    for (Py_ssize_t i = 0; i < self->count; i++)
        if (!pack_item(&self->fields[i], to, items[i])
            && !pack_number_of_numpy(&self->fields[i], to + self->fields[i].offset, items[i]))
            return 0;
    return 1;
}

static PyObject *packer_pack(Packer *self, PyObject *records)
{
    if (!PyList_CheckExact(records) && !PyTuple_CheckExact(records))
        Py_RETURN_NONE;
    Py_ssize_t count = PySequence_Fast_GET_SIZE(records);
    if (count > PY_SSIZE_T_MAX / self->size)
        return PyErr_NoMemory();
    PyObject *packed = PyBytes_FromStringAndSize(NULL, count * self->size);
    if (packed == NULL)
        return NULL;
    char *to = PyBytes_AS_STRING(packed);
    if (self->padded)
        memset(to, 0, (size_t)(count * self->size));
    /* Nothing in this loop runs Python, so the list stays as it is. */
    PyObject **all = PySequence_Fast_ITEMS(records);
    for (Py_ssize_t i = 0; i < count; i++, to += self->size)
        if (!pack_record(self, to, all[i]))
            goto unclear;
    return packed;
unclear:
    PyErr_Clear();
    Py_DECREF(packed);
    Py_RETURN_NONE;
}

/* One record: as pack((record,)), without a tuple for it. */
static PyObject *packer_pack_one(Packer *self, PyObject *record)
{
    if (items_of(self, record) == NULL)
        Py_RETURN_NONE;
    PyObject *packed = PyBytes_FromStringAndSize(NULL, self->size);
    if (packed == NULL)
        return NULL;
    char *to = PyBytes_AS_STRING(packed);
    if (self->padded)
        memset(to, 0, (size_t)self->size);
    if (pack_record(self, to, record))
        return packed;
    PyErr_Clear();
    Py_DECREF(packed);
    Py_RETURN_NONE;
}

/* -- unpacking ---------------------------------------------------------------------------- */

#define LOAD(type, make)                                                                           \
    {                                                                                              \
        type loaded;                                                                               \
        memcpy(&loaded, from, sizeof loaded);                                                      \
        return make(loaded);                                                                       \
    }

static inline PyObject *unpack_item(const Field *field, const char *record)
{
    const char *from = record + field->offset;
    double value;
    switch (field->kind) {
    case 'u':
        switch (field->width) {
        case 1:
            LOAD(uint8_t, PyLong_FromLong)
        case 2:
            LOAD(uint16_t, PyLong_FromLong)
        case 4:
            LOAD(uint32_t, PyLong_FromUnsignedLong)
        default:
            LOAD(uint64_t, PyLong_FromUnsignedLongLong)
        }
    case 'i':
        switch (field->width) {
        case 1:
            LOAD(int8_t, PyLong_FromLong)
        case 2:
            LOAD(int16_t, PyLong_FromLong)
        case 4:
            LOAD(int32_t, PyLong_FromLong)
        default:
            LOAD(int64_t, PyLong_FromLongLong)
        }
    case 'f':
        switch (field->width) {
        case 2:
            value = PyFloat_Unpack2(from, PY_LITTLE_ENDIAN);
            break;
        case 4:
            value = PyFloat_Unpack4(from, PY_LITTLE_ENDIAN);
            break;
        default:
            LOAD(double, PyFloat_FromDouble)
        }
        return value == -1.0 && PyErr_Occurred() ? NULL : PyFloat_FromDouble(value);
    case '?':
        return PyBool_FromLong(*from != 0);
    default:
        return PyBytes_FromStringAndSize(from, field->width);
    }
}

static PyObject *unpack_record(const Packer *self, const char *record)
{
    PyTypeObject *type = self->cls == Py_None ? NULL : (PyTypeObject *)self->cls;
    PyObject *made = type == NULL ? PyTuple_New(self->count) : type->tp_alloc(type, self->count);
    if (made == NULL)
        return NULL;
    for (Py_ssize_t j = 0; j < self->count; j++) {
        PyObject *item = unpack_item(&self->fields[j], record);
        if (item == NULL) {
            Py_DECREF(made);
            return NULL;
        }
        PyTuple_SET_ITEM(made, j, item);
    }
    /* No item refers to anything, so the tuple is in no cycle; the collector would find that out
     * when it has looked at all of them.  Not so an instance of a class, which may have a dict. */
    if (type == NULL)
        PyObject_GC_UnTrack(made);
    return made;
}

static PyObject *packer_unpack(Packer *self, PyObject *data)
{
    Py_buffer buffer;
    if (PyObject_GetBuffer(data, &buffer, PyBUF_SIMPLE) < 0)
        return NULL;
    PyObject *list = NULL;
    if (buffer.len % self->size) {
        PyErr_Format(PyExc_ValueError, "%zd bytes are no records of %zd", buffer.len, self->size);
        goto done;
    }
    Py_ssize_t count = buffer.len / self->size;
    list = PyList_New(count);
    for (Py_ssize_t i = 0; list != NULL && i < count; i++) {
        PyObject *record = unpack_record(self, (const char *)buffer.buf + i * self->size);
        if (record == NULL)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, i, record);
    }
done:
    PyBuffer_Release(&buffer);
    return list;
}

/* -- the module --------------------------------------------------------------------------- */

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
    .m_doc = "Tuples into records and back; see core/records.c.",
    .m_methods = functions,
    .m_slots = module_slots,
};

PyMODINIT_FUNC PyInit__packer(void)
{
    return PyModuleDef_Init(&definition);
}
