/* Space that is lent to the application, to fill in place: where it is, and its publishing.
 *
 * `borrower` is a weak reference to who has it.  What is published is lent no more: both in one call of
 * C, so that who begins again, after an exception of a signal handler, finds what was done already. */
#include "direct.h"

PyObject *reserve(Sender *self, PyObject *const *args, Py_ssize_t n)
{
    if (n != 2)
        return PyErr_Format(PyExc_TypeError, "reserve() takes a ring and a number of units");
    unsigned long long units = PyLong_AsUnsignedLongLong(args[1]);
    if (units == (unsigned long long)-1 && PyErr_Occurred())
        return NULL;
    char *at = NULL;
    uint64_t run = 0;
    int code = usable(args[0], self->known) ? ipcq_reserve(self->at, units, &at, &run) : IPCQ_AGAIN;
    return Py_BuildValue("iKK", code, (unsigned long long)(uintptr_t)at, (unsigned long long)run);
}

static PyObject *published(Sender *self, int code)
{
    PyObject *borrower = self->borrower;
    self->borrower = NULL;
    Py_XDECREF(borrower);
    return PyLong_FromLong(code);
}

PyObject *slots_publish(Sender *self, PyObject *args)
{
    PyObject *ring;
    unsigned long long units;
    int wake;
    if (!PyArg_ParseTuple(args, "OKp:publish", &ring, &units, &wake))
        return NULL;
    if (!usable(ring, self->known))
        return PyLong_FromLong(IPCQ_AGAIN);
    return published(self, ipcq_commit(self->at, units, wake));
}

PyObject *frames_publish(Sender *self, PyObject *args)
{
    PyObject *ring;
    unsigned int size, tag, flags;
    int wake;
    if (!PyArg_ParseTuple(args, "OIIIp:publish", &ring, &size, &tag, &flags, &wake))
        return NULL;
    if (!usable(ring, self->known))
        return PyLong_FromLong(IPCQ_AGAIN);
    struct ipcq_frame frame = {.size = size, .tag = tag, .flags = (uint16_t)flags};
    return published(self, ipcq_frame_commit(self->at, &frame, wake));
}
