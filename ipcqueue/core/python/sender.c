/* The ends that send, and one record: at once, or left to Python. */
#include "direct.h"

static int sender_traverse(Sender *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->ring);
    Py_VISIT(self->encode);
    Py_VISIT(self->dtype);
    Py_VISIT(self->array);
    Py_VISIT(self->borrower);
    return 0;
}

static int sender_clear(Sender *self)
{
    Py_CLEAR(self->ring);
    Py_CLEAR(self->encode);
    Py_CLEAR(self->dtype);
    Py_CLEAR(self->array);
    Py_CLEAR(self->borrower);
    return 0;
}

static void sender_dealloc(Sender *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    sender_clear(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *sender_attach_fast(Sender *self, PyObject *args)
{
    PyObject *encode;
    unsigned long long at;
    int plain = 0;
    if (!PyArg_ParseTuple(args, "KnO|p:attach_fast", &at, &self->size, &encode, &plain))
        return NULL;
    self->plain = plain || encode == Py_None;
    self->at = (ipcq_sender *)(uintptr_t)at;
    self->known = known_ring(self->ring, at);
    Py_XSETREF(self->encode, Py_NewRef(encode));
    Py_RETURN_NONE;
}

/* Call a function that may get another one stored in its place. */
static PyObject *call(PyObject *function, PyObject *argument)
{
    Py_INCREF(function);
    PyObject *result = PyObject_CallOneArg(function, argument);
    Py_DECREF(function);
    return result;
}

static PyObject *slowly(Sender *self, const char *how, PyObject *record)
{
    return PyObject_CallMethod((PyObject *)self, how, "(O)", record);
}

/* Objects whose memory is what it seems; of all others Python finds out whether it may leave this
 * process (fdpass/_sendable.py).  A class derived from numpy's arrays may be a masked one. */
static int keeps_no_secrets(const PyObject *object)
{
    if (object == NULL || PyBytes_CheckExact(object) || PyByteArray_CheckExact(object))
        return 1;
    const char *name = Py_TYPE(object)->tp_name;
    return !strcmp(name, "numpy.ndarray") || !strcmp(name, "array.array") ||
           !strcmp(name, "mmap.mmap");
}

/* Whether the bytes of an object can go as they are: no pointers (their formats are O, P, z, ...). */
static int is_plain(PyObject *record)
{
    if (PyByteArray_CheckExact(record))
        return 1;
    if (!keeps_no_secrets(PyMemoryView_Check(record) ? PyMemoryView_GET_BASE(record) : record))
        return 0;
    Py_buffer view;
    if (PyObject_GetBuffer(record, &view, PyBUF_ND | PyBUF_FORMAT) < 0) {
        PyErr_Clear();
        return 0;
    }
    const char *format = view.format == NULL ? "B" : view.format;
    int plain = format[0] != 0 && format[1] == 0 && strchr("bBhHiIlLqQfdc?", format[0]) != NULL;
    PyBuffer_Release(&view);
    return plain;
}

/* What offer() returns: None once the record is published, else what it was encoded to, which can be
 * offered again; so each record is encoded once, however long it waits for space.  Takes `encoded`
 * over, NULL if that failed.  Where the ring is not in use Python finds out why. */
static PyObject *offered(Sender *self, PyObject *encoded, int result)
{
    if (encoded != NULL && result == IPCQ_DONE) {
        Py_DECREF(encoded);
        Py_RETURN_NONE;
    }
    if (encoded == NULL || result == IPCQ_FULL)
        return encoded;
    PyObject *left = slowly(self, "offer_encoded", encoded);
    Py_DECREF(encoded);
    return left;
}

/* A record that went as it was, or did not: what it is encoded to is of interest only then. */
static PyObject *offered_as_it_is(Sender *self, PyObject *record, int result)
{
    if (result == IPCQ_DONE)
        Py_RETURN_NONE;
    return slowly(self, result == IPCQ_FULL ? "encoded" : "offer_slowly", record);
}

/* Publish memory if it has the size of a record. */
static inline int push_memory_of(const Sender *self, const char *memory, Py_ssize_t size)
{
    return size == self->size && usable(self->ring, self->known) ? ipcq_push(self->at, memory)
                                                                 : IPCQ_AGAIN;
}

/* Publish `data` if it has the size of a record. */
static int push_slot(const Sender *self, PyObject *data)
{
    Py_buffer view;
    int result = IPCQ_AGAIN;
    if (PyBytes_CheckExact(data)) {
        result = push_memory_of(self, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data));
    } else if (PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) == 0) {
        result = push_memory_of(self, view.buf, view.len);
        PyBuffer_Release(&view);
    } else if (PyErr_ExceptionMatches(PyExc_Exception)) {
        PyErr_Clear(); /* the slow path meets it again */
    }
    return result;
}

static PyObject *slots_offer(Sender *self, PyObject *record)
{
    if (self->plain && PyBytes_CheckExact(record)) { /* by itself, as it is the shortest */
        int result = push_memory_of(self, PyBytes_AS_STRING(record), PyBytes_GET_SIZE(record));
        return offered_as_it_is(self, record, result);
    }
    if (self->plain && is_plain(record)) {
        int result = push_slot(self, record);
        return PyErr_Occurred() ? NULL : offered_as_it_is(self, record, result);
    }
    if (!ready(self->encode))
        return slowly(self, "offer_slowly", record);
    PyObject *data = call(self->encode, record);
    int result = data == NULL ? IPCQ_AGAIN : push_slot(self, data);
    if (data != NULL && result == IPCQ_AGAIN && PyErr_Occurred())
        Py_CLEAR(data); /* GCOV_EXCL_LINE: buffers that run Python are of 3.12 */
    return offered(self, data, result);
}

/* The slow path comes back with what it has encoded: a code of the core, AGAIN where the ring is not in
 * use; then it finds out why. */
static PyObject *pushed(const Sender *self, int result)
{
    if (result == IPCQ_AGAIN && ready(self->ring) && self->ring != self->known)
        return PyErr_Format(PyExc_TypeError, "not the ring of this end");
    return PyLong_FromLong(result);
}

static PyObject *slots_push(Sender *self, PyObject *data)
{
    Py_buffer view;
    if (PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) < 0)
        return NULL;
    int fits = view.len == self->size, result = push_memory_of(self, view.buf, view.len);
    PyBuffer_Release(&view);
    return fits ? pushed(self, result) : PyErr_Format(PyExc_ValueError, "not of a record's size");
}

static PyObject *frames_push(Sender *self, PyObject *args)
{
    Py_buffer view;
    unsigned int tag, flags;
    if (!PyArg_ParseTuple(args, "y*II:push", &view, &tag, &flags))
        return NULL;
    /* What travels outside the ring, or lets other threads run, does not come here. */
    int result = IPCQ_AGAIN, fits = view.len <= IPCQ_LARGE;
    if (fits && usable(self->ring, self->known)) {
        struct ipcq_frame frame = {
            .size = (uint32_t)view.len, .tag = tag, .flags = (uint16_t)(flags & UINT8_MAX)};
        result = ipcq_frame_push(self->at, &frame, view.buf, NULL);
    }
    PyBuffer_Release(&view);
    return fits ? pushed(self, result) : PyErr_Format(PyExc_ValueError, "too large for this way");
}

/* The data, tag and flags that Python has encoded a message to; see Framed in
 * _records/messages.py. */
static int push_framed(Sender *self, PyObject *framed)
{
    if (!PyTuple_Check(framed) || PyTuple_GET_SIZE(framed) != 3)
        return IPCQ_AGAIN;
    unsigned long tag = PyLong_AsUnsignedLong(PyTuple_GET_ITEM(framed, 1));
    unsigned long flags = PyLong_AsUnsignedLong(PyTuple_GET_ITEM(framed, 2));
    Py_buffer view;
    if (PyErr_Occurred() || tag > UINT32_MAX || flags > UINT8_MAX ||
        PyObject_GetBuffer(PyTuple_GET_ITEM(framed, 0), &view, PyBUF_SIMPLE) < 0) {
        PyErr_Clear();
        return IPCQ_AGAIN;
    }
    int result = IPCQ_AGAIN;
    if (view.len <= self->size && usable(self->ring, self->known)) {
        struct ipcq_frame frame = {
            .size = (uint32_t)view.len, .tag = (uint32_t)tag, .flags = (uint16_t)flags};
        result = ipcq_frame_push(self->at, &frame, view.buf, NULL);
    }
    PyBuffer_Release(&view);
    return result;
}

static PyObject *frames_offer(Sender *self, PyObject *record)
{
    int result = IPCQ_AGAIN;
    if (ready(self->encode)) {
        PyObject *framed = call(self->encode, record);
        return offered(self, framed, framed == NULL ? result : push_framed(self, framed));
    }
    if (PyBytes_CheckExact(record) && PyBytes_GET_SIZE(record) <= self->size &&
        usable(self->ring, self->known)) {
        struct ipcq_frame frame = {.size = (uint32_t)PyBytes_GET_SIZE(record)};
        result = ipcq_frame_push(self->at, &frame, PyBytes_AS_STRING(record), NULL);
    }
    return offered_as_it_is(self, record, result);
}

static PyMemberDef sender_members[] = {
    {"_ring", T_OBJECT, offsetof(Sender, ring), 0, NULL},
    {"_borrower", T_OBJECT, offsetof(Sender, borrower), 0, NULL},
    {"dtype", T_OBJECT, offsetof(Sender, dtype), 0, "Of the arrays that go as they are; or None."},
    {"array", T_OBJECT, offsetof(Sender, array), 0, "The type of arrays; or None."},
    {NULL},
};

#define BATCHES(shape)                                                                            \
    {"push_all", (PyCFunction)shape##_push_all, METH_O,                                           \
     "Publish a list, if it has nothing but what can go as it is: its length, or if not all fitted " \
     "(how many did, a tuple of all; None for an array).  None if it has something else."},       \
    {"push_run", (PyCFunction)shape##_push_run, METH_VARARGS,                                     \
     "push_run(records, start): publish those from there on that fit and can go as they are, up " \
     "to the first that does not; return how many."},                                             \
    {"pieces", (PyCFunction)shape##_pieces, METH_O,                                               \
     "Return a tuple of the records if all can go as they are; else None."}

#define ATTACH_FAST                                                                               \
    {"attach_fast", (PyCFunction)sender_attach_fast, METH_VARARGS,                                \
     "attach_fast(address, size, encode, plain=False): use the fast path to this sender."}

#define RESERVE                                                                                   \
    {"reserve", (PyCFunction)(void (*)(void))reserve, METH_FASTCALL,                              \
     "reserve(ring, units): a code of the core, the address of the next so many, and how many of " \
     "them are contiguous."}

static PyMethodDef slot_sender_methods[] = {
    ATTACH_FAST,
    RESERVE,
    {"publish", (PyCFunction)slots_publish, METH_VARARGS,
     "publish(ring, units, wake): publish so many of the space that is lent, which is lent no more; "
     "a code of the core."},
    {"offer", (PyCFunction)slots_offer, METH_O,
     "Publish one record: None, or if there is no space what it is encoded to.  Raises BadRecord."},
    {"push", (PyCFunction)slots_push, METH_O,
     "push(data): publish one record that is encoded; a code of the core, AGAIN if `_ring` is not in use."},
    BATCHES(slots),
    {"push_packed", (PyCFunction)slots_push_packed, METH_VARARGS,
     "push_packed(buffer, start): publish the records in it from there on that fit; how many."},
    {NULL},
};

static PyMethodDef frame_sender_methods[] = {
    ATTACH_FAST,
    RESERVE,
    {"publish", (PyCFunction)frames_publish, METH_VARARGS,
     "publish(ring, size, tag, flags, wake): the same for the message that is written there."},
    {"offer", (PyCFunction)frames_offer, METH_O,
     "Publish one message; as of slots.  Raises BadRecord, TooLarge."},
    {"push", (PyCFunction)frames_push, METH_VARARGS,
     "push(data, tag, flags): publish one message that is encoded; a code of the core, as of slots."},
    BATCHES(frames),
    {NULL},
};

TYPE(SlotSender, Sender, Py_TPFLAGS_BASETYPE, END(sender, sender_members, slot_sender_methods))
TYPE(FrameSender, Sender, Py_TPFLAGS_BASETYPE, END(sender, sender_members, frame_sender_methods))
