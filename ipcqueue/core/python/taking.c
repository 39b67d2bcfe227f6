/* One record: of those prefetched, or decoded out of the ring. */
#include "direct.h"

/* Whether what stands at index `next` is still what is to be taken: not, if a signal handler or
 * another thread came in between. */
static int still(const Receiver *self, unsigned long long next)
{
    return next == self->next && !has_prefetched(self) && in_order(self);
}

/* Whether what a decoder has raised is to be raised as it is: no Exception; or one that does not come
 * again when it is called once more, or not of the same type, so perhaps that of a signal handler and
 * not the record's fault.  Then `data` is suspect: the slow path decodes it next time, and knows when
 * to give it up.  Else the exception is forgotten: the slow path meets it again. */
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

/* What a decoder has made of the record at index `next`, which nobody has taken yet: where memory is
 * short, or something came in between, the slow path meets the record again.  NULL as below.  What
 * decodes here is of this package, so any other exception is that of a signal handler. */
static PyObject *decoded(Receiver *self, PyObject *record, unsigned long long next)
{
    if (record == NULL && PyErr_Occurred() && PyErr_ExceptionMatches(PyExc_MemoryError))
        PyErr_Clear();
    if (record != NULL && !still(self, next))
        Py_CLEAR(record);
    return record;
}

/* A record as a message to which nothing is attached; takes the reference.  NULL with an exception. */
static PyObject *wrapped(PyObject *wrap, PyObject *record)
{
    PyObject *fds = PyList_New(0), *regions = PyList_New(0), *message = NULL;
    if (fds != NULL && regions != NULL)
        message = PyObject_CallFunctionObjArgs(wrap, record, fds, regions, NULL);
    Py_XDECREF(fds);
    Py_XDECREF(regions);
    Py_DECREF(record);
    return message;
}

/* One record, decoded; NULL, without an exception if that is not as simple. */
static PyObject *take_slot(Receiver *self, PyObject *wrap)
{
    const char *at;
    uint64_t run;
    unsigned long long next = self->next;
    if (ipcq_look(self->at, self->next, &at, &run) != IPCQ_DONE)
        return NULL;
    PyObject *data = PyBytes_FromStringAndSize(at, self->size);
    if (data == NULL)
        return NULL;
    if (!self->plain) {
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
    if (wrap != NULL && (data = decoded(self, wrapped(wrap, data), next)) == NULL)
        return NULL;
    self->next++;
    self->turn++;
    ipcq_take(self->at, self->next);
    return data;
}

static PyObject *take_frame(Receiver *self, PyObject *wrap)
{
    struct ipcq_frame frame;
    const char *payload;
    unsigned long long next = self->next;
    if ((!self->plain && !ready(self->decode)) || !look_at_frame(self, &frame, &payload))
        return NULL;
    PyObject *data = PyBytes_FromStringAndSize(payload, (Py_ssize_t)frame.size);
    if (data == NULL)
        return NULL;
    if (!self->plain) {
        PyObject *record = PyObject_CallFunction(self->decode, "OII", data, (unsigned int)frame.tag,
                                                 (unsigned int)(frame.flags & UINT8_MAX));
        Py_DECREF(data);
        data = decoded(self, record, next);
        if (data == NULL)
            return NULL;
    }
    if (wrap != NULL && (data = decoded(self, wrapped(wrap, data), next)) == NULL)
        return NULL;
    self->next += ipcq_frame_extent(frame.size);
    self->handed++;
    self->turn++;
    ipcq_take(self->at, self->next);
    return data;
}

/* One record, of those prefetched or of the ring; NULL as above. */
PyObject *take(Receiver *self, PyObject *wrap)
{
    if (!in_order(self))
        return NULL;
    if (!has_prefetched(self))
        return self->frames ? take_frame(self, wrap) : take_slot(self, wrap);
    if (wrap == NULL)
        return first_prefetched(self);
    unsigned long long turn = self->turn;
    PyObject *record = wrapped(wrap, Py_NewRef(PyList_GET_ITEM(self->prefetched, self->place)));
    if (record == NULL && PyErr_ExceptionMatches(PyExc_MemoryError))
        PyErr_Clear(); /* the slow path meets it again */
    if (record != NULL && (self->turn != turn || !in_order(self)))
        Py_CLEAR(record);
    if (record != NULL)
        Py_DECREF(first_prefetched(self));
    return record;
}

/* What waits, in place, for who lends it, so also while the ring is parked. */
PyObject *slots_peek(Receiver *self, PyObject *ring)
{
    const char *at;
    uint64_t run;
    if (!usable(ring, self->known))
        return PyLong_FromLong(IPCQ_AGAIN);
    int code = ipcq_look(self->at, self->next, &at, &run);
    return code != IPCQ_DONE ? PyLong_FromLong(code)
                             : Py_BuildValue("KK", (unsigned long long)(uintptr_t)at,
                                             (unsigned long long)run);
}

/* The frame at any index.  The peer may change its payload at any time, so where nothing else belongs to
 * the message it is copied at once, unless it is to be read in place. */
PyObject *frames_peek(Receiver *self, PyObject *const *args, Py_ssize_t n)
{
    if (n != 3)
        return PyErr_Format(PyExc_TypeError, "peek() takes a ring, an index, and whether to copy");
    unsigned long long at = PyLong_AsUnsignedLongLong(args[1]);
    if (at == (unsigned long long)-1 && PyErr_Occurred())
        return NULL;
    if (!usable(args[0], self->known))
        return PyLong_FromLong(IPCQ_AGAIN);
    struct ipcq_frame frame;
    const char *payload;
    int code = ipcq_frame_look(self->at, at, (uint64_t)self->size, &frame, &payload);
    if (code != IPCQ_DONE)
        return PyLong_FromLong(code);
    int simple = args[2] == Py_True && frame.fds + frame.regions == 0 &&
                 !(frame.flags & IPCQ_OUTSIDE) && frame.size <= IPCQ_LARGE;
    uint64_t end = at + ipcq_frame_extent(frame.size);
    PyObject *data = !simple ? Py_NewRef(Py_None)
                             : PyBytes_FromStringAndSize(payload, (Py_ssize_t)frame.size);
    if (data == NULL)
        return NULL;
    return Py_BuildValue("IIHHHKKKN", (unsigned int)frame.size, (unsigned int)frame.tag, frame.flags,
                         frame.fds, frame.regions, (unsigned long long)(uintptr_t)payload,
                         (unsigned long long)end,
                         (unsigned long long)ipcq_seen(self->at, end), data);
}
