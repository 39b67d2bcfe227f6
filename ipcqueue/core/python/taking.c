/* One record: of those taken ahead, or decoded out of the ring. */
#include "direct.h"

/* Whether what stands at index `next` is still what is to be taken: not, if a signal handler or
 * another thread came in between. */
static int still(const Receiver *self, unsigned long long next)
{
    return next == self->next && !has_ahead(self) && in_order(self);
}

/* Whether what a decoder has raised is to be raised as it is: no Exception; or one that does not come
 * again when it is called once more, or not of the same type, so perhaps that of a signal handler and
 * not the record's fault.  Then `data` is suspect: the long way decodes it next time, and knows when
 * to give it up.  Else the exception is forgotten: the long way meets it again. */
int is_raised(Receiver *self, PyObject *data, PyObject *function, PyObject *const *args, size_t n)
{
    int raised = 1;
    if (PyErr_ExceptionMatches(PyExc_Exception)) {
        PyObject *type, *error, *traceback, *result = NULL;
        int short_of_memory = PyErr_ExceptionMatches(PyExc_MemoryError);
        PyErr_Fetch(&type, &error, &traceback);
        if (!short_of_memory)
            result = PyObject_Vectorcall(function, args, n, NULL);
        int again = result == NULL && !short_of_memory;
        if (again && !PyErr_ExceptionMatches(PyExc_Exception)) {
            Py_CLEAR(type); /* this one is raised */
        } else if (short_of_memory || (again && PyErr_Occurred() == type)) {
            PyErr_Clear();
            Py_CLEAR(type);
            raised = 0;
        }
        Py_XDECREF(result);
        if (type != NULL) {
            PyErr_Restore(type, error, traceback);
        } else {
            Py_XDECREF(error);
            Py_XDECREF(traceback);
        }
    }
    if (raised)
        Py_XSETREF(self->suspect, Py_NewRef(data));
    return raised;
}

/* What a decoder has made of the record at index `next`, which nobody has taken yet: where it fails,
 * or something came in between, the long way meets the record again.  NULL as below. */
static PyObject *decoded(Receiver *self, PyObject *record, unsigned long long next)
{
    if (record == NULL && PyErr_Occurred() && PyErr_ExceptionMatches(PyExc_Exception))
        PyErr_Clear();
    if (record != NULL && !still(self, next))
        Py_CLEAR(record);
    return record;
}

/* One record, decoded; NULL, without an exception if that is not as simple. */
static PyObject *take_slot(Receiver *self)
{
    const char *at;
    uint64_t run;
    if (ipcq_look(self->at, self->next, &at, &run) != IPCQ_DONE)
        return NULL;
    PyObject *data = PyBytes_FromStringAndSize(at, self->size);
    if (data == NULL)
        return NULL;
    if (!self->plain) {
        unsigned long long next = self->next;
        PyObject *record = NULL, *decode = Py_NewRef(self->decode);
        if (!ready(self->suspect) && (record = PyObject_CallOneArg(decode, data)) == NULL &&
            is_raised(self, data, decode, &data, 1)) {
            Py_DECREF(decode);
            Py_DECREF(data);
            return NULL;
        }
        Py_DECREF(decode);
        Py_DECREF(data);
        data = decoded(self, record, next);
        if (data == NULL)
            return NULL;
    }
    self->next++;
    ipcq_take(self->at, self->next);
    return data;
}

static PyObject *take_frame(Receiver *self)
{
    struct ipcq_frame frame;
    const char *payload;
    if ((!self->plain && !ready(self->decode)) || !look_at_frame(self, &frame, &payload))
        return NULL;
    PyObject *data = PyBytes_FromStringAndSize(payload, (Py_ssize_t)frame.size);
    if (data == NULL)
        return NULL;
    if (!self->plain) {
        unsigned long long next = self->next;
        PyObject *record = PyObject_CallFunction(self->decode, "OII", data, (unsigned int)frame.tag,
                                                 (unsigned int)(frame.flags & UINT8_MAX));
        Py_DECREF(data);
        data = decoded(self, record, next);
        if (data == NULL)
            return NULL;
    }
    self->next += ipcq_frame_extent(frame.size);
    self->handed++;
    ipcq_take(self->at, self->next);
    return data;
}

/* One record, of those taken ahead or of the ring; NULL as above. */
PyObject *take(Receiver *self)
{
    if (!in_order(self))
        return NULL;
    if (has_ahead(self))
        return first_ahead(self);
    return self->frames ? take_frame(self) : take_slot(self);
}
