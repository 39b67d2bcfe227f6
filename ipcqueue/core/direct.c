/*
 * The short way into the core for CPython: one call in C for what can be done at once.
 *
 * Base types for the ends in _ring/.  They have a part of their state, so that
 * both ways see the same, and do nothing themselves but the simplest case; whatever else comes up
 * (memory that is lent, records put back, errors, no space) they leave to Python, which finds it
 * again.  No lock is taken: each step keeps the interpreter, and looks at the state as it is then.
 * Python, in several steps under its lock, does the same (see SlotReceiver and FrameReceiver).
 * A batch is looked at as a whole before the first of it is sent: what is wrong with any of it is
 * found out in Python, which promises that nothing was sent then.
 *
 * A record is handed over to a for statement: after a call CPython looks for signals, and an exception
 * of a handler (Ctrl-C) would lose what the call has returned; between a step of a loop and its variable
 * it does not.  Several records stand in `ahead` until the caller fetches them, in two bytecodes
 * between which it does not either.  Older than those is what stands in `_stash` or `_built`, and
 * what calls of Python are just decoding, in `_hands` (see Call in _ring/call.py).
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#include <errno.h>
#include <stdalign.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "ring.h"

#ifndef SCM_PIDFD /* Linux 6.5 */
#define SCM_PIDFD 4
#endif

/* Spinning, the interpreter is kept for so long: to get it back from a thread that computes takes
 * 5 ms. */
enum { KEPT_NS = 30000 };

/* A receiver that asks again and again only peeks at its socket, but so often Python looks, too: an
 * exception may have kept it from digesting what it had read. */
enum { LOOK_NS = 1000000 };

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static int ready(const PyObject *object)
{
    return object != NULL && object != Py_None;
}

/* The ring that `at` goes with, if there is one: Python may set the attribute to anything, and what
 * is not the same object does not keep what `at` points to. */
static PyObject *known_ring(PyObject *ring, unsigned long long at)
{
    return at != 0 && ready(ring) ? ring : NULL;
}

static int usable(const PyObject *ring, const PyObject *known)
{
    return ring != NULL && ring == known;
}

/* -- sending ------------------------------------------------------------------------------ */

typedef struct {
    PyObject_HEAD
    PyObject *ring;   /* keeps what `at` points to; None while it must not be used */
    PyObject *known;  /* borrowed: the ring for which `at` was given; see usable() */
    PyObject *encode; /* a function from a record to its bytes (slots), or to a Framed */
    int plain;        /* a record is its bytes: those of other objects encode looks at first */
    PyObject *dtype;  /* slots: that of the arrays which go as they are; None: none do */
    PyObject *array;  /* slots: the type of arrays */
    ipcq_sender *at;
    Py_ssize_t size;  /* slots: of a record; frames: of the largest message for the short way */
} Sender;

static int sender_traverse(Sender *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->ring);
    Py_VISIT(self->encode);
    Py_VISIT(self->dtype);
    Py_VISIT(self->array);
    return 0;
}

static int sender_clear(Sender *self)
{
    Py_CLEAR(self->ring);
    Py_CLEAR(self->encode);
    Py_CLEAR(self->dtype);
    Py_CLEAR(self->array);
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

static PyObject *sender_shorten(Sender *self, PyObject *args)
{
    PyObject *encode;
    unsigned long long at;
    int plain = 0;
    if (!PyArg_ParseTuple(args, "KnO|p:shorten", &at, &self->size, &encode, &plain))
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

static PyObject *slots_try_push(Sender *self, PyObject *record)
{
    PyObject *data;
    if (self->plain && (PyBytes_CheckExact(record) || is_plain(record)))
        data = Py_NewRef(record);
    else if (ready(self->encode))
        data = call(self->encode, record);
    else
        return slowly(self, "push_slowly", record);
    if (data == NULL)
        return NULL;
    int result = IPCQ_AGAIN;
    Py_buffer view;
    if (PyBytes_CheckExact(data)) {
        if (PyBytes_GET_SIZE(data) == self->size && usable(self->ring, self->known))
            result = ipcq_push(self->at, PyBytes_AS_STRING(data));
    } else if (PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) == 0) {
        if (view.len == self->size && usable(self->ring, self->known))
            result = ipcq_push(self->at, view.buf);
        PyBuffer_Release(&view);
    } else if (PyErr_ExceptionMatches(PyExc_Exception)) {
        PyErr_Clear(); /* the slow way meets it again */
    }
    Py_DECREF(data);
    if (result == IPCQ_DONE)
        Py_RETURN_TRUE;
    if (result == IPCQ_FULL)
        Py_RETURN_FALSE;
    return PyErr_Occurred() ? NULL : slowly(self, "push_slowly", record);
}

/* The data, tag and flags that Python has encoded a message to; see Framed in _records/messages.py. */
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

static PyObject *frames_try_push(Sender *self, PyObject *record)
{
    int result = IPCQ_AGAIN;
    if (ready(self->encode)) {
        PyObject *framed = call(self->encode, record);
        if (framed == NULL)
            return NULL;
        result = push_framed(self, framed);
        PyObject *slow = result == IPCQ_DONE || result == IPCQ_FULL
                             ? NULL
                             : slowly(self, "push_framed", framed);
        Py_DECREF(framed);
        return slow != NULL                                ? slow
               : result == IPCQ_DONE || result == IPCQ_FULL ? PyBool_FromLong(result == IPCQ_DONE)
                                                            : NULL;
    }
    if (PyBytes_CheckExact(record) && PyBytes_GET_SIZE(record) <= self->size &&
        usable(self->ring, self->known)) {
        struct ipcq_frame frame = {.size = (uint32_t)PyBytes_GET_SIZE(record)};
        result = ipcq_frame_push(self->at, &frame, PyBytes_AS_STRING(record), NULL);
    }
    if (result == IPCQ_DONE)
        Py_RETURN_TRUE;
    if (result == IPCQ_FULL)
        Py_RETURN_FALSE;
    return slowly(self, "push_slowly", record);
}

static PyObject *slots_push_all(Sender *self, PyObject *records);
static PyObject *slots_push_run(Sender *self, PyObject *args);
static PyObject *slots_push_packed(Sender *self, PyObject *args);
static PyObject *slots_pieces(Sender *self, PyObject *records);
static PyObject *frames_push_all(Sender *self, PyObject *records);
static PyObject *frames_push_run(Sender *self, PyObject *args);
static PyObject *frames_pieces(Sender *self, PyObject *records);

static PyMemberDef sender_members[] = {
    {"_ring", T_OBJECT, offsetof(Sender, ring), 0, NULL},
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

#define SHORTEN                                                                                   \
    {"shorten", (PyCFunction)sender_shorten, METH_VARARGS,                                        \
     "shorten(address, size, encode, plain=False): use the short way to the sender at an address."}

static PyMethodDef slot_sender_methods[] = {
    SHORTEN,
    {"try_push", (PyCFunction)slots_try_push, METH_O,
     "Publish one record; False if there is no space.  Raises BadRecord."},
    BATCHES(slots),
    {"push_packed", (PyCFunction)slots_push_packed, METH_VARARGS,
     "push_packed(buffer, start): publish the records in it from there on that fit; how many."},
    {NULL},
};

static PyMethodDef frame_sender_methods[] = {
    SHORTEN,
    {"try_push", (PyCFunction)frames_try_push, METH_O,
     "Publish one message; False if there is no space.  Raises BadRecord, TooLarge."},
    BATCHES(frames),
    {NULL},
};

/* -- receiving ---------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    PyObject *ring, *known; /* as above */
    PyObject *ahead;  /* a list, from `place` on of records that were taken and not fetched; or None */
    Py_ssize_t place;
    PyObject *raw;    /* slots: the bytes of all records that `ahead` was made with; or None */
    PyObject *held;   /* slots: `_stash`, bytes; frames: `_built`, a list: served first */
    PyObject *hands;  /* `_hands`, a list of what calls of Python have taken and not returned yet */
    PyObject *suspect; /* slots: records one of which a decoder has left with what is no Exception:
                          Python decides about them; or None */
    PyObject *decode; /* unless `plain`: a function from bytes (of a message, and its tag and flags) */
    PyObject *decode_many; /* slots: one to a list of records; None: there is none */
    ipcq_receiver *at;
    int frames;       /* the shape of the ring */
    int plain;        /* a record is its bytes */
    int keeps;        /* the interpreter, when it begins to spin */
    Py_ssize_t size;  /* slots: of a record; frames: of the largest message */
    Py_ssize_t most;  /* records to take ahead of a loop over them */
    uint64_t looked;  /* when Python has last looked at the socket */
    unsigned long long next; /* slots: `_delivered`; frames: `_next`: what is taken next */
    unsigned long long handed; /* frames: `_handed` */
} Receiver;

/* Bytes of records to take ahead of a loop: what is in the first-level cache when it is served. */
enum { AHEAD_BYTES = 16384 };

static int receiver_traverse(Receiver *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->ring);
    Py_VISIT(self->ahead);
    Py_VISIT(self->held);
    Py_VISIT(self->raw);
    Py_VISIT(self->hands);
    Py_VISIT(self->suspect);
    Py_VISIT(self->decode);
    Py_VISIT(self->decode_many);
    return 0;
}

static int receiver_clear(Receiver *self)
{
    Py_CLEAR(self->ring);
    Py_CLEAR(self->ahead);
    Py_CLEAR(self->held);
    Py_CLEAR(self->raw);
    Py_CLEAR(self->hands);
    Py_CLEAR(self->suspect);
    Py_CLEAR(self->decode);
    Py_CLEAR(self->decode_many);
    return 0;
}

static void receiver_dealloc(Receiver *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    receiver_clear(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *shorten(Receiver *self, PyObject *args, int frames)
{
    PyObject *decode, *decode_many;
    unsigned long long at;
    if (!PyArg_ParseTuple(args, "KnnppOO:shorten", &at, &self->size, &self->most, &self->keeps,
                          &self->plain, &decode, &decode_many))
        return NULL;
    self->at = (ipcq_receiver *)(uintptr_t)at;
    self->known = known_ring(self->ring, at);
    self->frames = frames;
    Py_XSETREF(self->decode, Py_NewRef(decode));
    Py_XSETREF(self->decode_many, Py_NewRef(decode_many));
    Py_RETURN_NONE;
}

static PyObject *slots_shorten(Receiver *self, PyObject *args)
{
    return shorten(self, args, 0);
}

static PyObject *frames_shorten(Receiver *self, PyObject *args)
{
    return shorten(self, args, 1);
}

static int empty_list(const PyObject *list)
{
    return list != NULL && PyList_CheckExact(list) && PyList_GET_SIZE(list) == 0;
}

static int empty_bytes(const PyObject *bytes)
{
    return bytes != NULL && PyBytes_CheckExact(bytes) && PyBytes_GET_SIZE(bytes) == 0;
}

/* Whether the ring can be used, and Python has nothing older than what it holds. */
static int in_order(const Receiver *self)
{
    return usable(self->ring, self->known) && !ipcq_is_forked(self->at) &&
           (self->frames ? empty_list(self->held) : empty_bytes(self->held)) &&
           empty_list(self->hands);
}

static int has_ahead(const Receiver *self)
{
    return ready(self->ahead) && PyList_CheckExact(self->ahead) && self->place >= 0 &&
           self->place < PyList_GET_SIZE(self->ahead);
}

/* Take the first of what was taken ahead; only if in_order(). */
static PyObject *first_ahead(Receiver *self)
{
    PyObject *record = PyList_GET_ITEM(self->ahead, self->place);
    PyList_SET_ITEM(self->ahead, self->place, Py_NewRef(Py_None));
    if (++self->place == PyList_GET_SIZE(self->ahead)) {
        self->place = 0;
        Py_CLEAR(self->ahead); /* of None only, so nothing runs */
        Py_CLEAR(self->raw);
    }
    return record;
}

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
static int is_raised(Receiver *self, PyObject *data, PyObject *function, PyObject *const *args,
                     size_t n)
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

/* Look at the next frame; whether all that there is to it are its bytes. */
static int look_at_frame(Receiver *self, struct ipcq_frame *frame, const char **payload)
{
    return ipcq_frame_look(self->at, self->next, (uint64_t)self->size, frame, payload) ==
               IPCQ_DONE &&
           frame->fds + frame->regions == 0 && !(frame->flags & IPCQ_OUTSIDE) &&
           frame->size <= IPCQ_LARGE; /* else Python lets other threads run meanwhile */
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
static PyObject *take(Receiver *self)
{
    if (!in_order(self))
        return NULL;
    if (has_ahead(self))
        return first_ahead(self);
    return self->frames ? take_frame(self) : take_slot(self);
}

/* Look for records as long as it is worth it; whether there are any. */
static int look_for_some(Receiver *self)
{
    if (!in_order(self) || has_ahead(self))
        return 0;
    uint64_t most = ipcq_patience(self->at);
    if (most == 0)
        return 0;
    /* Who lets others run keeps no interpreter: they may be threads of this process. */
    int keeps = self->keeps && !ipcq_yields(self->at);
    uint64_t kept = !keeps ? 0 : most < KEPT_NS ? most : KEPT_NS;
    int came = ipcq_spin_records(self->at, kept) == IPCQ_DONE;
    if (!came && most > kept) {
        PyObject *ring = Py_NewRef(self->ring); /* keeps `at`, and the memory, if it is closed */
        ipcq_receiver *at = self->at;
        Py_BEGIN_ALLOW_THREADS
        came = ipcq_spin_records(at, most - kept) == IPCQ_DONE;
        Py_END_ALLOW_THREADS
        ipcq_learn(at, came);
        Py_DECREF(ring);
    } else {
        ipcq_learn(self->at, came);
    }
    return came;
}

/* Bytes of records after which the sender gets their space back, so that it can go on meanwhile. */
enum { PIECE = 16384 };

/* Append plain records to a list; return how many.  No more than was there in the beginning: to
 * follow a sender record by record costs both more than to let it go ahead. */
static Py_ssize_t gather(Receiver *self, Py_ssize_t most, Py_ssize_t *bytes, PyObject *list)
{
    Py_ssize_t n = 0, piece = 0, left = *bytes;
    struct ipcq_frame frame = {.size = (uint32_t)self->size};
    const char *at = NULL;
    uint64_t run = 0;
    while (n < most && left > 0) {
        if (self->frames) {
            /* With a tag or flags it is for Python to put it back, if it must. */
            if (!look_at_frame(self, &frame, &at) || frame.tag || frame.flags)
                break;
        } else if (run == 0 && ipcq_look(self->at, self->next, &at, &run) != IPCQ_DONE) {
            break;
        }
        PyObject *data = PyBytes_FromStringAndSize(at, (Py_ssize_t)frame.size);
        int appended = data == NULL ? -1 : PyList_Append(list, data);
        Py_XDECREF(data);
        if (appended < 0) {
            PyErr_Clear(); /* the slow way meets it again, if it is the first */
            break;
        }
        n++;
        left -= (Py_ssize_t)frame.size;
        piece += (Py_ssize_t)frame.size;
        if (self->frames) {
            self->next += ipcq_frame_extent(frame.size);
        } else {
            self->next++;
            at += self->size;
            run--;
        }
        if (piece >= PIECE) {
            ipcq_take(self->at, self->next);
            piece = 0;
        }
        if (ipcq_seen(self->at, self->next) == 0)
            break;
    }
    if (n > 0)
        ipcq_take(self->at, self->next);
    self->handed += (unsigned long long)n;
    *bytes = left;
    return n;
}

/* Records into `ahead`, at most so many and about so many bytes, which are then what is left of them:
 * how many, -1 with an exception. */
static Py_ssize_t take_ahead(Receiver *self, Py_ssize_t most, Py_ssize_t *bytes)
{
    uint64_t count = 0;
    if (most <= 0 || !in_order(self) || ipcq_is_quiet(self->at, self->next))
        return 0;
    /* First of all, as the garbage collector may run anything here. */
    PyObject *list = PyList_New(0);
    if (list == NULL)
        return -1;
    if (has_ahead(self) || !in_order(self)) {
        Py_DECREF(list);
        return 0;
    }
    if (self->plain) {
        Py_ssize_t n = gather(self, most, bytes, list);
        if (n > 0) {
            self->place = 0;
            Py_CLEAR(self->raw); /* they are their bytes */
            Py_XSETREF(self->ahead, Py_NewRef(list));
        }
        Py_DECREF(list);
        return n;
    }
    Py_DECREF(list);
    if (self->frames || !ready(self->decode_many) || ready(self->suspect))
        return 0;
    if (most > *bytes / self->size)
        most = *bytes / self->size;
    /* As much memory as records will come: to resize it behind them could fail, and lose them. */
    ipcq_see(self->at);
    if ((uint64_t)most > ipcq_seen(self->at, self->next))
        most = (Py_ssize_t)ipcq_seen(self->at, self->next);
    if (most == 0)
        return 0;
    PyObject *data = PyBytes_FromStringAndSize(NULL, most * self->size);
    if (data == NULL)
        return -1;
    if (ipcq_pop(self->at, PyBytes_AS_STRING(data), (uint64_t)most, self->next, &count) !=
        IPCQ_DONE) {
        Py_DECREF(data);
        return 0;
    }
    self->next += count; /* all that was asked for */
    Py_XSETREF(self->held, Py_NewRef(data));
    PyObject *decode_many = Py_NewRef(self->decode_many); /* see call() */
    PyObject *number = PyLong_FromUnsignedLongLong((unsigned long long)count);
    PyObject *args[] = {data, number};
    PyObject *records = number == NULL ? NULL : PyObject_Vectorcall(decode_many, args, 2, NULL);
    Py_ssize_t n = 0;
    if (records == NULL && number == NULL) {
        PyErr_Clear(); /* GCOV_EXCL_LINE: numbers up to 64 need no memory; the slow way takes them */
    } else if (records == NULL) {
        if (is_raised(self, data, decode_many, args, 2))
            n = -1;
    } else if (PyList_CheckExact(records) && self->held == data && empty_list(self->hands) &&
               usable(self->ring, self->known) && /* else `held` may be lent */
               !has_ahead(self) && (uint64_t)PyList_GET_SIZE(records) == count) {
        Py_XSETREF(self->held, PyBytes_FromStringAndSize(NULL, 0)); /* which needs no memory */
        self->place = 0;
        Py_XSETREF(self->raw, Py_NewRef(data));
        Py_XSETREF(self->ahead, Py_NewRef(records));
        n = PyList_GET_SIZE(records);
    }
    Py_DECREF(decode_many);
    Py_XDECREF(number);
    Py_XDECREF(records);
    Py_DECREF(data);
    return n;
}

static PyObject *take_many(Receiver *self, PyObject *args)
{
    Py_ssize_t most, bytes = PY_SSIZE_T_MAX, many = PY_SSIZE_T_MAX;
    if (!PyArg_ParseTuple(args, "n|nn:take_many", &most, &bytes, &many))
        return NULL;
    if (!self->plain || has_ahead(self) || !in_order(self))
        Py_RETURN_FALSE;
    ipcq_see(self->at);
    Py_ssize_t n = take_ahead(self, most, &bytes);
    if (n < 0)
        return NULL;
    /* Where it stopped at what is not simple, Python goes on from there: in the next call, if these
     * are enough for one. */
    return PyBool_FromLong(n > 0 && (n == most || n >= many || bytes <= 0 ||
                                     ipcq_seen(self->at, self->next) == 0));
}

static PyObject *looked(Receiver *self, PyObject *Py_UNUSED(ignored))
{
    self->looked = now_ns();
    Py_RETURN_NONE;
}

static int nothing_waits(Receiver *self)
{
    return in_order(self) && !has_ahead(self) && ipcq_is_quiet(self->at, self->next);
}

static PyObject *is_empty(Receiver *self, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(nothing_waits(self));
}

static PyObject *is_quiet(Receiver *self, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(nothing_waits(self) && now_ns() - self->looked < LOOK_NS &&
                           ipcq_is_silent(self->at));
}

static PyObject *records_ready(Receiver *self, PyObject *patient);
static PyObject *records_all(Receiver *self, PyObject *args);

#define RECEIVER_MEMBERS                                                                          \
    {"_ring", T_OBJECT, offsetof(Receiver, ring), 0, NULL},                                       \
    {"_hands", T_OBJECT_EX, offsetof(Receiver, hands), 0, NULL},                                     \
    {"ahead", T_OBJECT, offsetof(Receiver, ahead), 0, "What take_many() has taken; or None."},    \
    {"place", T_PYSSIZET, offsetof(Receiver, place), 0, "Where in `ahead` the next one is."}

static PyMemberDef slot_receiver_members[] = {
    RECEIVER_MEMBERS,
    {"_stash", T_OBJECT, offsetof(Receiver, held), 0, NULL},
    {"_raw", T_OBJECT, offsetof(Receiver, raw), 0, NULL},
    {"_suspect", T_OBJECT, offsetof(Receiver, suspect), 0, NULL},
    {"_delivered", T_ULONGLONG, offsetof(Receiver, next), 0, NULL},
    {NULL},
};

static PyMemberDef frame_receiver_members[] = {
    RECEIVER_MEMBERS,
    {"_built", T_OBJECT, offsetof(Receiver, held), 0, NULL},
    {"_next", T_ULONGLONG, offsetof(Receiver, next), 0, NULL},
    {"_handed", T_ULONGLONG, offsetof(Receiver, handed), 0, NULL},
    {NULL},
};

#define RECEIVER_METHODS                                                                          \
    {"take_many", (PyCFunction)take_many, METH_VARARGS,                                           \
     "take_many(limit, most_bytes, many): take up to so many, and about so many bytes, which then "\
     "stand in `ahead`; False if that is not as simple, unless it is in part, with so `many`."},  \
    {"looked", (PyCFunction)looked, METH_NOARGS, "Note that the socket was just looked at."},     \
    {"is_empty", (PyCFunction)is_empty, METH_NOARGS,                                              \
     "Tell whether nothing waits, and nothing is wrong as far as the ring says."},                \
    {"is_quiet", (PyCFunction)is_quiet, METH_NOARGS,                                              \
     "Tell whether nothing waits, neither in the ring nor in the socket, and nothing is wrong."},        \
    {"ready", (PyCFunction)records_ready, METH_O,                                                 \
     "ready(patient): for a loop, records one by one; patient: after looking for each."},         \
    {"all", (PyCFunction)records_all, METH_VARARGS,                                               \
     "all(receive, end): for a loop, records until receive(), called for those that are not as "  \
     "simple, raises `end`.  Takes some ahead."}

#define SHORTEN_TOO(function)                                                                     \
    {"shorten", (PyCFunction)function, METH_VARARGS,                                              \
     "shorten(address, size, ahead, keeps, plain, decode, decode_many): use the short way."}

static PyObject *slots_fetch(Receiver *self, PyObject *const *args, Py_ssize_t n);

static PyMethodDef slot_receiver_methods[] = {
    SHORTEN_TOO(slots_shorten),
    {"fetch", (PyCFunction)(void (*)(void))slots_fetch, METH_FASTCALL,
     "fetch(hands, call, limit): move up to so many records, raw, to a bytearray, which is returned and "
     "stands under the name of the call in an empty list, now `_hands`; None if that is not simple."},
    RECEIVER_METHODS,
    {NULL},
};

static PyMethodDef frame_receiver_methods[] = {
    SHORTEN_TOO(frames_shorten),
    RECEIVER_METHODS,
    {NULL},
};

/* -- batches ------------------------------------------------------------------------------ */

/* Records in one call of the core, and so published at once; the receiver begins meanwhile with
 * those before them.  Nothing here runs Python between its look at a list and the last use of it. */
enum { PIECES = 256 };

static int is_sequence(const PyObject *records)
{
    return PyList_CheckExact(records) || PyTuple_CheckExact(records);
}

/* Whether the bytes of a record can go as they are. */
static inline int is_simple(const Sender *self, int frames, const PyObject *record)
{
    if (!PyBytes_CheckExact(record))
        return 0;
    Py_ssize_t size = PyBytes_GET_SIZE(record);
    return frames ? size <= self->size : size == self->size;
}

/* Whether those of all can. */
static int are_simple(const Sender *self, int frames, PyObject *records)
{
    if (!is_sequence(records) || !self->plain)
        return 0;
    PyObject **items = PySequence_Fast_ITEMS(records);
    Py_ssize_t count = PySequence_Fast_GET_SIZE(records);
    for (Py_ssize_t i = 0; i < count; i++)
        if (!is_simple(self, frames, items[i]))
            return 0;
    return 1;
}

static Py_ssize_t push_items(Sender *self, int frames, PyObject *records, Py_ssize_t start)
{
    struct ipcq_piece pieces[PIECES];
    PyObject **items = PySequence_Fast_ITEMS(records);
    Py_ssize_t at = start, end = PySequence_Fast_GET_SIZE(records);
    Py_ssize_t moved = 0;
    if (!usable(self->ring, self->known) || !self->plain)
        return 0;
    while (at < end && moved < IPCQ_MOST_BYTES) {
        Py_ssize_t bytes = 0;
        uint64_t count = 0, done;
        for (Py_ssize_t i = at; i < end && count < PIECES && bytes < PIECE; i++, count++) {
            if (!is_simple(self, frames, items[i]))
                break;
            Py_ssize_t size = PyBytes_GET_SIZE(items[i]);
            pieces[count].at = PyBytes_AS_STRING(items[i]);
            pieces[count].size = frames ? (uint64_t)size : 1;
            bytes += size;
        }
        int result = frames ? ipcq_frame_push_pieces(self->at, pieces, count, &done)
                            : ipcq_push_pieces(self->at, pieces, count, &done);
        at += (Py_ssize_t)done;
        moved += bytes;
        if (result != IPCQ_DONE || count == 0 || done < count)
            break; /* for Python to find out why */
    }
    return at - start;
}

/* Contiguous records, from one on. */
static Py_ssize_t push_memory(Sender *self, const char *memory, Py_ssize_t start, Py_ssize_t end)
{
    Py_ssize_t at = start, most = self->size < PIECE ? PIECE / self->size : 1;
    if (end - start > IPCQ_MOST_BYTES / self->size)
        end = start + (self->size < IPCQ_MOST_BYTES ? IPCQ_MOST_BYTES / self->size : 1);
    while (at < end && usable(self->ring, self->known)) {
        uint64_t done;
        struct ipcq_piece piece = {memory + at * self->size,
                                   (uint64_t)(end - at < most ? end - at : most)};
        int result = ipcq_push_pieces(self->at, &piece, 1, &done);
        at += (Py_ssize_t)done;
        if (result != IPCQ_DONE || done < piece.size)
            break;
    }
    return at - start;
}

static PyObject *push_run(Sender *self, int frames, PyObject *args)
{
    PyObject *records;
    Py_ssize_t start;
    if (!PyArg_ParseTuple(args, "On:push_run", &records, &start))
        return NULL;
    if (!is_sequence(records) || start < 0)
        return PyErr_Format(PyExc_TypeError, "push_run() takes a list or tuple, and a start in it");
    return PyLong_FromSsize_t(push_items(self, frames, records, start));
}

static PyObject *pieces_of(const Sender *self, int frames, PyObject *records)
{
    if (!are_simple(self, frames, records))
        Py_RETURN_NONE;
    return PySequence_Tuple(records);
}

static PyObject *push_all(Sender *self, int frames, PyObject *records)
{
    if (!usable(self->ring, self->known) || !are_simple(self, frames, records))
        Py_RETURN_NONE;
    Py_ssize_t done = push_items(self, frames, records, 0);
    if (done == PySequence_Fast_GET_SIZE(records))
        return PyLong_FromSsize_t(done);
    PyObject *all = PySequence_Tuple(records);
    return all == NULL ? NULL : Py_BuildValue("nN", done, all);
}

/* An array of the very type of a record: its memory; None if it is not. */
static PyObject *push_array(Sender *self, PyObject *array)
{
    PyObject *dtype = PyObject_GetAttrString(array, "dtype");
    if (dtype == NULL)
        return NULL;
    Py_DECREF(dtype); /* the array keeps it */
    Py_buffer view;
    if (dtype != self->dtype)
        Py_RETURN_NONE;
    if (PyObject_GetBuffer(array, &view, PyBUF_ND) < 0) { /* not contiguous, for instance */
        PyErr_Clear();
        Py_RETURN_NONE;
    }
    PyObject *result;
    if (view.ndim != 1 || view.itemsize != self->size || !usable(self->ring, self->known)) {
        result = Py_NewRef(Py_None);
    } else {
        Py_ssize_t done = push_memory(self, view.buf, 0, view.shape[0]);
        result = done == view.shape[0] ? PyLong_FromSsize_t(done)
                                       : Py_BuildValue("nO", done, Py_None);
    }
    PyBuffer_Release(&view);
    return result;
}

static PyObject *slots_push_all(Sender *self, PyObject *records)
{
    if (ready(self->dtype) && (PyObject *)Py_TYPE(records) == self->array)
        return push_array(self, records);
    return push_all(self, 0, records);
}

static PyObject *frames_push_all(Sender *self, PyObject *records)
{
    return push_all(self, 1, records);
}

static PyObject *slots_push_run(Sender *self, PyObject *args)
{
    return push_run(self, 0, args);
}

static PyObject *frames_push_run(Sender *self, PyObject *args)
{
    return push_run(self, 1, args);
}

static PyObject *slots_pieces(Sender *self, PyObject *records)
{
    return pieces_of(self, 0, records);
}

static PyObject *frames_pieces(Sender *self, PyObject *records)
{
    return pieces_of(self, 1, records);
}

static PyObject *slots_push_packed(Sender *self, PyObject *args)
{
    Py_buffer view;
    Py_ssize_t start;
    if (!PyArg_ParseTuple(args, "y*n:push_packed", &view, &start))
        return NULL;
    Py_ssize_t done = start < 0 ? 0 : push_memory(self, view.buf, start, view.len / self->size);
    PyBuffer_Release(&view);
    return PyLong_FromSsize_t(done);
}

/* Move records from the ring into a bytearray, and that to the hands of a call: in one step, so that
 * they stand there, however many exceptions strike after it.  No more than was there in the
 * beginning; in pieces, so that the sender can go on. */
static PyObject *slots_fetch(Receiver *self, PyObject *const *args, Py_ssize_t n)
{
    if (n != 3 || !PyList_CheckExact(args[0]))
        return PyErr_Format(PyExc_TypeError, "fetch() takes a list, a call and a limit");
    PyObject *hands = args[0], *call = args[1];
    Py_ssize_t limit = PyLong_AsSsize_t(args[2]);
    if (limit == -1 && PyErr_Occurred())
        return NULL;
    if (limit <= 0 || ready(self->suspect) || has_ahead(self) || !in_order(self))
        Py_RETURN_NONE;
    const char *at;
    uint64_t run;
    if (ipcq_seen(self->at, self->next) != 0)
        ipcq_see(self->at); /* else to look is what ipcq_look does */
    if (ipcq_look(self->at, self->next, &at, &run) != IPCQ_DONE)
        Py_RETURN_NONE;
    uint64_t there = ipcq_seen(self->at, self->next);
    Py_ssize_t count = there < (uint64_t)limit ? (Py_ssize_t)there : limit;
    /* All that needs memory; the garbage collector, which may run anything, only before the test. */
    PyObject *into = PyByteArray_FromStringAndSize(NULL, count * self->size);
    PyObject *held = into == NULL ? NULL : PyTuple_Pack(2, call, into);
    if (held == NULL || PyList_Append(hands, held) < 0) {
        Py_XDECREF(into);
        Py_XDECREF(held);
        return NULL;
    }
    Py_DECREF(held);
    if (has_ahead(self) || !in_order(self) || PyList_GET_SIZE(hands) != 1 ||
        ipcq_seen(self->at, self->next) < (uint64_t)count) {
        Py_DECREF(into);
        Py_RETURN_NONE;
    }
    Py_ssize_t got = 0, most = self->size < PIECE ? PIECE / self->size : 1;
    while (got < count) {
        uint64_t more, wanted = (uint64_t)(count - got < most ? count - got : most);
        char *to = PyByteArray_AS_STRING(into) + got * self->size;
        if (ipcq_pop(self->at, to, wanted, self->next, &more) != IPCQ_DONE)
            break; /* cannot be, as they were there: GCOV_EXCL_LINE */
        self->next += more;
        got += (Py_ssize_t)more;
    }
    if (got < count && PyByteArray_Resize(into, got * self->size) < 0)
        PyErr_Clear(); /* cannot be: GCOV_EXCL_LINE */
    Py_XSETREF(self->hands, Py_NewRef(hands)); /* instead of an empty one, so nothing runs */
    return into;
}

/* -- loops over what is received ---------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    Receiver *receiver;
    PyObject *receive; /* the slow way, a function that waits for a record; NULL: there is none */
    PyObject *end;     /* the exception that ends the loop */
    int patient;
} Iteration;

static int iteration_traverse(Iteration *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->receiver);
    Py_VISIT(self->receive);
    Py_VISIT(self->end);
    return 0;
}

static int iteration_clear(Iteration *self)
{
    Py_CLEAR(self->receiver);
    Py_CLEAR(self->receive);
    Py_CLEAR(self->end);
    return 0;
}

static void iteration_dealloc(Iteration *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    iteration_clear(self);
    type->tp_free(self);
    Py_DECREF(type);
}

/* A StopIteration would end the loop as if the stream had ended: RuntimeError, as of a generator. */
static PyObject *not_stopped(PyObject *record)
{
    if (record != NULL || !PyErr_Occurred() || !PyErr_ExceptionMatches(PyExc_StopIteration))
        return record;
    PyObject *type, *cause, *traceback, *error;
    PyErr_Fetch(&type, &cause, &traceback);
    PyErr_NormalizeException(&type, &cause, &traceback);
    if (traceback != NULL)
        PyException_SetTraceback(cause, traceback);
    PyErr_SetString(PyExc_RuntimeError, "receiving raised StopIteration");
    Py_XDECREF(type);
    Py_XDECREF(traceback);
    PyErr_Fetch(&type, &error, &traceback);
    PyErr_NormalizeException(&type, &error, &traceback);
    PyException_SetContext(error, Py_NewRef(cause));
    PyException_SetCause(error, cause); /* takes it */
    PyErr_Restore(type, error, traceback);
    return NULL;
}

static PyObject *iteration_next(Iteration *self)
{
    Receiver *receiver = self->receiver;
    if (receiver == NULL)
        return NULL; /* the garbage collector was here: GCOV_EXCL_LINE */
    PyObject *record;
    if (self->receive == NULL) {
        record = take(receiver);
        if (record == NULL && self->patient && !PyErr_Occurred() && look_for_some(receiver))
            record = take(receiver);
        return not_stopped(record);
    }
    /* Only when all that was taken ahead has been handed out, more is. */
    Py_ssize_t bytes = AHEAD_BYTES;
    if (!has_ahead(receiver) && take_ahead(receiver, receiver->most, &bytes) < 0) {
        if (!PyErr_ExceptionMatches(PyExc_MemoryError))
            return not_stopped(NULL); /* of a signal handler, see is_raised() */
        PyErr_Clear(); /* the slow way meets it again, and says of which connection it is */
    }
    if (has_ahead(receiver) && in_order(receiver) && (record = first_ahead(receiver)) != NULL)
        return record;
    record = PyObject_CallNoArgs(self->receive);
    if (record == NULL && PyErr_ExceptionMatches(self->end))
        PyErr_Clear();
    return not_stopped(record);
}

/* -- what must be done -------------------------------------------------------------------- */

/* Exceptions of signal handlers that may strike, one after the other, in what must be done; a step
 * that fails so often fails for a reason of its own. */
enum { MOST_STRIKES = 100 };

/* Call a function that can be repeated until it has come to its end; then raise the first exception
 * that struck.  Between its calls CPython looks for no signal, as it would in a loop of Python. */
static PyObject *persist(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t n)
{
    PyObject *result, *type = NULL, *error = NULL, *traceback = NULL;
    if (n < 1)
        return PyErr_Format(PyExc_TypeError, "persist() takes a function and its arguments");
    for (int strikes = 0;;) {
        result = PyObject_Vectorcall(args[0], args + 1, (size_t)(n - 1), NULL);
        if (result != NULL || ++strikes == MOST_STRIKES)
            break;
        if (type == NULL)
            PyErr_Fetch(&type, &error, &traceback);
        else
            PyErr_Clear();
    }
    if (type == NULL)
        return result;
    Py_XDECREF(result);
    PyErr_Restore(type, error, traceback);
    return NULL;
}

/* -- the socket --------------------------------------------------------------------------- */

enum { MOST_BYTES = 4096, MOST_CONTROL = 4096 };

/* What recvmsg() gave, in a bytearray of its caller's: there it waits when memory is too short for
 * Python to have it, descriptors and all. */
struct room {
    ssize_t bytes; /* 0: it is empty */
    size_t control_bytes;
    int flags;
    char data[MOST_BYTES];
    alignas(struct cmsghdr) char control[MOST_CONTROL];
};

static struct room *room_of(PyObject *object)
{
    if (PyByteArray_GET_SIZE(object) == sizeof(struct room))
        return (struct room *)(void *)PyByteArray_AS_STRING(object);
    PyErr_SetString(PyExc_ValueError, "not a bytearray of ROOM bytes");
    return NULL;
}

static struct msghdr ancillary_in(struct room *room)
{
    return (struct msghdr){.msg_control = room->control, .msg_controllen = room->control_bytes};
}

/* (level, type, data) of each piece of ancillary data, as socket.recvmsg() gives them. */
static PyObject *ancillary_of(struct msghdr *m)
{
    PyObject *list = PyList_New(0);
    for (struct cmsghdr *c = CMSG_FIRSTHDR(m); list != NULL && c != NULL; c = CMSG_NXTHDR(m, c)) {
        char *data = (char *)CMSG_DATA(c);
        /* Where the kernel has cut something off, it says so in this length. */
        Py_ssize_t size = (char *)c + c->cmsg_len - data;
        PyObject *item = Py_BuildValue("(iiy#)", c->cmsg_level, c->cmsg_type, data, size);
        if (item == NULL || PyList_Append(list, item) < 0)
            Py_CLEAR(list);
        Py_XDECREF(item);
    }
    return list;
}

/* Only where memory was short, so here and now; but a socket does not linger. */
static void close_all(struct msghdr *m)
{
    struct linger none = {.l_onoff = 0, .l_linger = 0};
    for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c != NULL; c = CMSG_NXTHDR(m, c)) {
        /* And a pidfd, where the application has asked the kernel for that. */
        int has = c->cmsg_level == SOL_SOCKET &&
                  (c->cmsg_type == SCM_RIGHTS || c->cmsg_type == SCM_PIDFD);
        size_t n = has ? (c->cmsg_len - CMSG_LEN(0)) / sizeof(int) : 0;
        for (size_t i = 0; i < n; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
            (void)setsockopt(fd, SOL_SOCKET, SO_LINGER, &none, sizeof none);
            close(fd);
        }
    }
}

/* Whether there is nothing but doorbells: opcodes 1 and 2 of _link/control.py. */
static int only_doorbells(const char *data, ssize_t n)
{
    for (ssize_t i = 0; i < n; i += 2)
        if (data[i] != 1 && data[i] != 2)
            return 0;
    return n > 0 && n % 2 == 0;
}

static ssize_t receive_message(int fd, struct msghdr *m, int flags)
{
    ssize_t n;
    do
        n = recvmsg(fd, m, flags | MSG_DONTWAIT);
    while (n < 0 && errno == EINTR);
    return n;
}

/* What a read would bring, with nothing taken and no descriptor made: where it says MSG_CTRUNC,
 * some come with the last of these bytes. */
static ssize_t peek_into(struct room *room, int fd, int *carries)
{
    struct iovec bytes = {room->data, sizeof room->data};
    struct msghdr m = {.msg_iov = &bytes, .msg_iovlen = 1};
    ssize_t n = receive_message(fd, &m, MSG_PEEK);
    *carries = n > 0 && (m.msg_flags & MSG_CTRUNC) != 0;
    return n;
}

/* Read up to `size` bytes; and `most` descriptors and one more (or few: the kernel rounds), or any
 * number of them if it is negative. */
static int read_into(struct room *room, int fd, int flags, size_t size, int most)
{
    struct iovec bytes = {room->data, size};
    size_t space = most < 0 ? sizeof room->control : CMSG_SPACE(((size_t)most + 1) * sizeof(int));
    struct msghdr m = {.msg_iov = &bytes,
                       .msg_iovlen = 1,
                       .msg_control = room->control,
                       .msg_controllen = space < sizeof room->control ? space
                                                                      : sizeof room->control};
    ssize_t n = receive_message(fd, &m, flags);
    if (n < 0)
        return -1;
    room->bytes = n;
    room->control_bytes = m.msg_controllen;
    room->flags = m.msg_flags;
    return 0;
}

/* As list.append(socket.recvmsg(…)) without waiting, in one step; and the interpreter is kept, as
 * getting it back from a thread that computes takes 5 ms.  Doorbells have done what they are for: if
 * nothing else came, and `whole` says that no half a message came before, return their bytes, and
 * append nothing.  Where memory is short, what came stays in the room, and is what comes next.
 *
 * `most`: how many descriptors a message may bring; more are for the kernel to close, except for one
 * that tells.  `wary`: if descriptors come next, read nothing, and return the last byte that comes
 * with them, which says how many, below zero: -1 for 0. */
static PyObject *receive(PyObject *Py_UNUSED(module), PyObject *args)
{
    int flags, whole, most = -1, wary = 0, carries;
    PyObject *sock, *into, *place;
    if (!PyArg_ParseTuple(args, "OipO!O!|ip:receive", &sock, &flags, &whole, &PyList_Type, &into,
                          &PyByteArray_Type, &place, &most, &wary))
        return NULL;
    int fd = PyObject_AsFileDescriptor(sock);
    struct room *room = room_of(place);
    if (fd < 0 || room == NULL)
        return NULL;
    if (room->bytes == 0) {
        size_t size = sizeof room->data;
        if (wary) {
            ssize_t there = peek_into(room, fd, &carries);
            if (there < 0)
                return PyErr_SetFromErrno(PyExc_OSError); /* what comes by now may bring some */
            if (there > 0 && carries)
                return PyLong_FromLong(-1L - (unsigned char)room->data[there - 1]);
            if (there > 0)
                size = (size_t)there; /* what comes behind, too */
        }
        if (read_into(room, fd, flags, size, most) < 0)
            return PyErr_SetFromErrno(PyExc_OSError);
    }
    ssize_t n = room->bytes;
    struct msghdr m = ancillary_in(room);
    if (whole && m.msg_controllen == 0 && !(room->flags & MSG_CTRUNC) &&
        only_doorbells(room->data, n)) {
        room->bytes = 0;
        return PyLong_FromSsize_t(n);
    }
    PyObject *ancillary = ancillary_of(&m);
    PyObject *message = ancillary == NULL ? NULL
                                          : Py_BuildValue("(y#NiO)", room->data, n, ancillary,
                                                          room->flags, Py_None);
    int result = message == NULL ? -1 : PyList_Append(into, message);
    Py_XDECREF(message);
    if (result < 0)
        return NULL;
    room->bytes = 0;
    Py_RETURN_NONE;
}

static PyObject *waiting(PyObject *Py_UNUSED(module), PyObject *place)
{
    struct room *room = PyByteArray_CheckExact(place) ? room_of(place) : NULL;
    return room == NULL ? PyErr_Format(PyExc_TypeError, "waiting() takes a room")
                        : PyLong_FromSsize_t(room->bytes);
}

static PyObject *drop(PyObject *Py_UNUSED(module), PyObject *place)
{
    struct room *room = PyByteArray_CheckExact(place) ? room_of(place) : NULL;
    if (room == NULL)
        return PyErr_Format(PyExc_TypeError, "drop() takes a room");
    struct msghdr m = ancillary_in(room);
    if (room->bytes != 0)
        close_all(&m);
    room->bytes = 0;
    Py_RETURN_NONE;
}

static PyObject *blank(PyObject *Py_UNUSED(module), PyObject *size)
{
    Py_ssize_t n = PyLong_AsSsize_t(size);
    if (n == -1 && PyErr_Occurred())
        return NULL;
    return PyBytes_FromStringAndSize(NULL, n);
}

static PyMethodDef functions[] = {
    {"blank", blank, METH_O,
     "blank(size): bytes of no known content, for one who fills them before anybody else sees them."},
    {"receive", receive, METH_VARARGS,
     "receive(sock, flags, whole, into, room, most=-1, wary=False): append the result of a recvmsg() "
     "that does not wait to a list; or return the bytes that came, if they are doorbells and nothing "
     "else; or, if wary, a number below 0 if descriptors come next."},
    {"waiting", waiting, METH_O,
     "waiting(room): how many bytes stand there, as memory was too short to append them."},
    {"persist", (PyCFunction)(void (*)(void))persist, METH_FASTCALL,
     "persist(step, *arguments): call it until it has come to its end, whatever strikes meanwhile."},
    {"drop", drop, METH_O, "drop(room): forget them, and close the descriptors that came with them."},
    {NULL},
};

/* -- the module --------------------------------------------------------------------------- */

#define TYPE(type_, struct_, flags_, ...)                                                         \
    static PyType_Slot type_##_slots[] = {__VA_ARGS__, {0, NULL}};                                \
    static PyType_Spec type_##_spec = {                                                           \
        .name = "ipcqueue._direct." #type_,                                                       \
        .basicsize = sizeof(struct_),                                                             \
        .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | (flags_),                              \
        .slots = type_##_slots,                                                                   \
    };

#define COLLECTED(which)                                                                          \
    {Py_tp_traverse, which##_traverse}, {Py_tp_clear, which##_clear},                             \
        {Py_tp_dealloc, which##_dealloc}

#define END(which, members_, methods_)                                                            \
    COLLECTED(which), {Py_tp_members, members_}, {Py_tp_methods, methods_}

TYPE(SlotSender, Sender, Py_TPFLAGS_BASETYPE, END(sender, sender_members, slot_sender_methods))
TYPE(FrameSender, Sender, Py_TPFLAGS_BASETYPE, END(sender, sender_members, frame_sender_methods))
TYPE(SlotReceiver, Receiver, Py_TPFLAGS_BASETYPE,
     END(receiver, slot_receiver_members, slot_receiver_methods))
TYPE(FrameReceiver, Receiver, Py_TPFLAGS_BASETYPE,
     END(receiver, frame_receiver_members, frame_receiver_methods))
TYPE(Iteration, Iteration, Py_TPFLAGS_DISALLOW_INSTANTIATION, COLLECTED(iteration),
     {Py_tp_iter, PyObject_SelfIter}, {Py_tp_iternext, iteration_next})

struct state {
    PyTypeObject *iteration;
};

static PyModuleDef definition;

static Iteration *iteration_over(Receiver *receiver)
{
    /* That of the base, which there is: this is a method of it. */
    PyObject *module = PyType_GetModuleByDef(Py_TYPE(receiver), &definition);
    PyTypeObject *type = ((struct state *)PyModule_GetState(module))->iteration;
    Iteration *iteration = (Iteration *)type->tp_alloc(type, 0);
    if (iteration != NULL)
        iteration->receiver = (Receiver *)Py_NewRef(receiver);
    return iteration;
}

static PyObject *records_ready(Receiver *self, PyObject *patient)
{
    int is_patient = PyObject_IsTrue(patient);
    if (is_patient < 0)
        return NULL;
    Iteration *iteration = iteration_over(self);
    if (iteration != NULL)
        iteration->patient = is_patient;
    return (PyObject *)iteration;
}

static PyObject *records_all(Receiver *self, PyObject *args)
{
    PyObject *receive, *end;
    if (!PyArg_ParseTuple(args, "OO:all", &receive, &end))
        return NULL;
    Iteration *iteration = iteration_over(self);
    if (iteration != NULL) {
        iteration->receive = Py_NewRef(receive);
        iteration->end = Py_NewRef(end);
    }
    return (PyObject *)iteration;
}

static PyTypeObject *add_type(PyObject *module, PyType_Spec *spec)
{
    PyTypeObject *type = (PyTypeObject *)PyType_FromModuleAndSpec(module, spec, NULL);
    if (type != NULL && PyModule_AddType(module, type) < 0)
        Py_CLEAR(type);
    return type;
}

static int execute(PyObject *module)
{
    /* CPython refuses subinterpreters with a lock of their own (module_slots).  Those that share the
     * lock are refused here, in the same words, which _interpreter.py looks for: they would share the
     * objects of _core, which cffi makes once for the whole process. */
    static const char words[] =
        "module ipcqueue._direct does not support loading in subinterpreters";
    if (PyInterpreterState_Get() != PyInterpreterState_Main()) {
        /* What counts lines does not run in subinterpreters; tests/project/test_interpreters.py does. */
        PyErr_SetString(PyExc_ImportError, words); /* not counted: GCOV_EXCL_LINE */
        return -1;                                 /* nor this: GCOV_EXCL_LINE */
    }
    PyType_Spec *bases[] = {&SlotSender_spec, &FrameSender_spec, &SlotReceiver_spec,
                            &FrameReceiver_spec};
    for (size_t i = 0; i < sizeof bases / sizeof *bases; i++) {
        PyTypeObject *type = add_type(module, bases[i]);
        if (type == NULL)
            return -1;
        Py_DECREF(type);
    }
    if (PyModule_AddIntConstant(module, "ROOM", sizeof(struct room)) < 0)
        return -1;
    struct state *state = PyModule_GetState(module);
    state->iteration = add_type(module, &Iteration_spec);
    return state->iteration == NULL ? -1 : 0;
}

static int module_traverse(PyObject *module, visitproc visit, void *arg)
{
    Py_VISIT(((struct state *)PyModule_GetState(module))->iteration);
    return 0;
}

static int module_clear(PyObject *module)
{
    Py_CLEAR(((struct state *)PyModule_GetState(module))->iteration);
    return 0;
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, execute},
#ifdef Py_mod_multiple_interpreters /* CPython 3.12 */
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
#ifdef Py_mod_gil /* CPython 3.13 */
    {Py_mod_gil, Py_MOD_GIL_USED}, /* it is the lock of every end; see _interpreter.py */
#endif
    {0, NULL},
};

static PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "ipcqueue._direct",
    .m_doc = "The short way into the core; see core/direct.c.",
    .m_size = sizeof(struct state),
    .m_methods = functions,
    .m_slots = module_slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
};

PyMODINIT_FUNC PyInit__direct(void)
{
    return PyModuleDef_Init(&definition);
}
