/* Bools: what is taken for one, and what a peer has written instead.  Apart from packing.c, whose loop
 * gets slower by 10 % with this beside it. */
#include "packer.h"

/* Write a truth that is not Python's own: 0 or 1, or numpy's bool, which is `bool_` before numpy 2.  Its
 * truth runs no Python.  Whether it is one. */
int packer_truth(char *to, PyObject *item)
{
    const PyTypeObject *type = Py_TYPE(item);
    const char *name = type->tp_flags & Py_TPFLAGS_HEAPTYPE ? "" : type->tp_name;
    int truth = -1;
    if (!strcmp(name, "numpy.bool") || !strcmp(name, "numpy.bool_")) {
        truth = PyObject_IsTrue(item);
    } else if (PyLong_CheckExact(item)) {
        int overflow;
        long value = PyLong_AsLongAndOverflow(item, &overflow);
        truth = value == 0 || value == 1 ? (int)value : -1;
    }
    *to = (char)truth;
    return truth >= 0;
}

/* Make bytes 0 or 1: eight at a time, in which adding 127 carries into the top bit of all but 0. */
static void make_truths(unsigned char *at, Py_ssize_t count)
{
    const uint64_t low = 0x7f7f7f7f7f7f7f7f, ones = 0x0101010101010101;
    uint64_t eight;
    for (; count >= 8; count -= 8, at += 8) {
        memcpy(&eight, at, 8);
        eight = (((eight & low) + low) | eight) >> 7 & ones;
        memcpy(at, &eight, 8);
    }
    for (; count > 0; count--, at++)
        *at = *at != 0;
}

/* Make bytes 0 or 1 that a peer may have filled with anything: in each record of `size` bytes, `runs`
 * of them.  numpy and ctypes take a byte for a bool as it is, and what they make of 2 is undefined. */
PyObject *normalise(PyObject *Py_UNUSED(module), PyObject *args)
{
    Py_buffer data, runs;
    Py_ssize_t size, run[2]; /* offset and length */
    if (!PyArg_ParseTuple(args, "w*ny*:normalise", &data, &size, &runs))
        return NULL;
    int lawful = size > 0 && data.len % size == 0 && runs.len % (Py_ssize_t)sizeof run == 0;
    for (Py_ssize_t i = 0; lawful && i < runs.len; i += (Py_ssize_t)sizeof run) {
        memcpy(run, (const char *)runs.buf + i, sizeof run);
        lawful = run[0] >= 0 && run[1] > 0 && run[1] <= size && run[0] <= size - run[1];
        for (Py_ssize_t from = run[0]; lawful && from < data.len; from += size)
            make_truths((unsigned char *)data.buf + from, run[1]);
    }
    PyBuffer_Release(&data);
    PyBuffer_Release(&runs);
    if (!lawful)
        return PyErr_Format(PyExc_ValueError, "these are no records with such runs");
    Py_RETURN_NONE;
}
