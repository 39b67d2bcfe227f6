/* Records out of tuples. */
#include "packer.h"

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
static __attribute__((noinline)) int pack_other(const Field *field, char *to, PyObject *item)
{
    if (field->kind == '?')
        return packer_truth(to, item);
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
            && !pack_other(&self->fields[i], to + self->fields[i].offset, items[i]))
            return 0;
    return 1;
}

PyObject *packer_pack(Packer *self, PyObject *records)
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
PyObject *packer_pack_one(Packer *self, PyObject *record)
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
