/* Tuples out of records. */
#include "packer.h"

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

PyObject *packer_unpack(Packer *self, PyObject *data)
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
