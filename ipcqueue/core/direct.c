/*
 * The short way into the core for CPython: one call in C for what can be done at once.
 *
 * Base types for the ends in _slots.py and _frames.py.  They have a part of their state, so that
 * both ways see the same, and do nothing themselves but the simplest case; whatever else comes up
 * (memory that is lent, records put back, errors, no space) they leave to Python, which finds it
 * again.  No lock is taken: each step keeps the interpreter, and looks at the state as it is then.
 * Python, in several steps under its lock, does the same (see SlotReceiver and FrameReceiver).
 *
 * A record is handed over to a for statement: after a call CPython looks for signals, and an exception
 * of a handler (Ctrl-C) would lose what the call has returned; between a step of a loop and its variable
 * it does not.  Several records stand in `ahead` until the caller fetches them, in two bytecodes
 * between which it does not either.  Older than those is what Python has put back: `_kept` and
 * `_stash`, or `_built`.
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

/* Spinning, the interpreter is kept for so long: to get it back from a thread that computes takes
 * 5 ms. */
enum { KEPT_NS = 30000 };

/* A receiver that asks again and again need not look at its socket each time, but so often. */
enum { LOOK_NS = 50000 };

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* -- sending ------------------------------------------------------------------------------ */

typedef struct {
    PyObject_HEAD
    PyObject *ring;   /* keeps what `at` points to; None while it must not be used */
    PyObject *encode; /* slots: a function from a record to bytes; None: a record is bytes */
    ipcq_sender *at;
    Py_ssize_t size;  /* slots: of a record; frames: of the largest message for the short way */
} Sender;

static int sender_traverse(Sender *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->ring);
    Py_VISIT(self->encode);
    return 0;
}

static int sender_clear(Sender *self)
{
    Py_CLEAR(self->ring);
    Py_CLEAR(self->encode);
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
    if (!PyArg_ParseTuple(args, "KnO:shorten", &at, &self->size, &encode))
        return NULL;
    self->at = (ipcq_sender *)(uintptr_t)at;
    Py_XSETREF(self->encode, Py_NewRef(encode));
    Py_RETURN_NONE;
}

static int ready(const PyObject *object)
{
    return object != NULL && object != Py_None;
}

static PyObject *slowly(Sender *self, PyObject *record)
{
    return PyObject_CallMethod((PyObject *)self, "push_slowly", "(O)", record);
}

static PyObject *slots_try_push(Sender *self, PyObject *record)
{
    PyObject *data = ready(self->encode) ? PyObject_CallOneArg(self->encode, record)
                                         : Py_NewRef(record);
    if (data == NULL)
        return NULL;
    int result = IPCQ_AGAIN;
    Py_buffer view;
    if (PyBytes_CheckExact(data)) {
        if (PyBytes_GET_SIZE(data) == self->size && ready(self->ring))
            result = ipcq_push(self->at, PyBytes_AS_STRING(data));
    } else if (PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) == 0) {
        if (view.len == self->size && ready(self->ring))
            result = ipcq_push(self->at, view.buf);
        PyBuffer_Release(&view);
    } else {
        PyErr_Clear();
    }
    Py_DECREF(data);
    if (result == IPCQ_DONE)
        Py_RETURN_TRUE;
    if (result == IPCQ_FULL)
        Py_RETURN_FALSE;
    return slowly(self, record);
}

static PyObject *frames_try_push(Sender *self, PyObject *record)
{
    int result = IPCQ_AGAIN;
    if (PyBytes_CheckExact(record) && PyBytes_GET_SIZE(record) <= self->size && ready(self->ring)) {
        struct ipcq_frame frame = {.size = (uint32_t)PyBytes_GET_SIZE(record)};
        result = ipcq_frame_push(self->at, &frame, PyBytes_AS_STRING(record), NULL);
    }
    if (result == IPCQ_DONE)
        Py_RETURN_TRUE;
    if (result == IPCQ_FULL)
        Py_RETURN_FALSE;
    return slowly(self, record);
}

static PyMemberDef sender_members[] = {
    {"_ring", T_OBJECT, offsetof(Sender, ring), 0, NULL},
    {NULL},
};

#define SHORTEN                                                                                   \
    {"shorten", (PyCFunction)sender_shorten, METH_VARARGS,                                        \
     "shorten(address, size, encode): use the short way to the sender at an address."}

static PyMethodDef slot_sender_methods[] = {
    SHORTEN,
    {"try_push", (PyCFunction)slots_try_push, METH_O,
     "Publish one record; False if there is no space.  Raises BadRecord."},
    {NULL},
};

static PyMethodDef frame_sender_methods[] = {
    SHORTEN,
    {"try_push", (PyCFunction)frames_try_push, METH_O,
     "Publish one message; False if there is no space.  Raises BadRecord, TooLarge."},
    {NULL},
};

/* -- receiving ---------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    PyObject *ring;   /* as above */
    PyObject *ahead;  /* a list, from `place` on of records that were taken and not fetched; or None */
    Py_ssize_t place;
    PyObject *held;   /* slots: `_stash`, bytes; frames: `_built`, a list: served first */
    PyObject *kept;   /* slots: `_kept`, a list: served first of all */
    PyObject *decode; /* slots: a function from bytes to a record; None: a record is bytes */
    PyObject *decode_many; /* slots: one to a list of records; None: there is none */
    ipcq_receiver *at;
    int frames;       /* the shape of the ring */
    int plain;        /* a record is its bytes */
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
    Py_VISIT(self->kept);
    Py_VISIT(self->decode);
    Py_VISIT(self->decode_many);
    return 0;
}

static int receiver_clear(Receiver *self)
{
    Py_CLEAR(self->ring);
    Py_CLEAR(self->ahead);
    Py_CLEAR(self->held);
    Py_CLEAR(self->kept);
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
    if (!PyArg_ParseTuple(args, "KnnpOO:shorten", &at, &self->size, &self->most, &self->plain,
                          &decode, &decode_many))
        return NULL;
    self->at = (ipcq_receiver *)(uintptr_t)at;
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

/* Whether the ring can be used, and nothing older than what it holds was put back by Python. */
static int in_order(const Receiver *self)
{
    return self->at != NULL && ready(self->ring) &&
           (self->frames ? empty_list(self->held)
                         : empty_list(self->kept) && empty_bytes(self->held));
}

static int has_ahead(const Receiver *self)
{
    return ready(self->ahead) && PyList_CheckExact(self->ahead) && self->place >= 0 &&
           self->place < PyList_GET_SIZE(self->ahead);
}

/* Take the first of what was taken ahead. */
static PyObject *first_ahead(Receiver *self)
{
    PyObject *record = PyList_GET_ITEM(self->ahead, self->place);
    PyList_SET_ITEM(self->ahead, self->place, Py_NewRef(Py_None));
    if (++self->place == PyList_GET_SIZE(self->ahead)) {
        self->place = 0;
        Py_CLEAR(self->ahead); /* of None only, so nothing runs */
    }
    return record;
}

/* Put raw records in front of those that wait already. */
static int stash(Receiver *self, PyObject *data)
{
    PyObject *rest = Py_NewRef(self->held), *all = data;
    Py_INCREF(all);
    PyBytes_ConcatAndDel(&all, rest);
    if (all == NULL)
        return -1;
    Py_XSETREF(self->held, all);
    return 0;
}

/* One record, decoded; NULL, without an exception if that is not as simple. */
static PyObject *take_slot(Receiver *self)
{
    PyObject *data = PyBytes_FromStringAndSize(NULL, self->size);
    if (data == NULL)
        return NULL;
    uint64_t count;
    if (ipcq_pop(self->at, PyBytes_AS_STRING(data), 1, self->next, &count) != IPCQ_DONE) {
        Py_DECREF(data);
        return NULL;
    }
    self->next++;
    if (self->plain)
        return data;
    PyObject *record = PyObject_CallOneArg(self->decode, data);
    if (record == NULL) {
        int application = PyErr_ExceptionMatches(PyExc_Exception);
        PyObject *kind, *error, *traceback;
        PyErr_Fetch(&kind, &error, &traceback);
        if (stash(self, data) == 0 && application) {
            Py_XDECREF(kind); /* the slow way meets it again, and knows what to do */
            Py_XDECREF(error);
            Py_XDECREF(traceback);
        } else {
            PyErr_Restore(kind, error, traceback);
        }
    }
    Py_DECREF(data);
    return record;
}

/* Look at the next frame; whether all that there is to it are its bytes. */
static int look_at_frame(Receiver *self, struct ipcq_frame *frame, const char **payload)
{
    return ipcq_frame_look(self->at, self->next, (uint64_t)self->size, frame, payload) ==
               IPCQ_DONE &&
           frame->fds + frame->regions == 0 && !(frame->flags & IPCQ_OUTSIDE);
}

static PyObject *take_frame(Receiver *self)
{
    struct ipcq_frame frame;
    const char *payload;
    if (!self->plain || !look_at_frame(self, &frame, &payload))
        return NULL;
    PyObject *data = PyBytes_FromStringAndSize(payload, (Py_ssize_t)frame.size);
    if (data == NULL)
        return NULL;
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
    int came = ipcq_spin_records(self->at, most < KEPT_NS ? most : KEPT_NS) == IPCQ_DONE;
    if (!came && most > KEPT_NS) {
        PyObject *ring = Py_NewRef(self->ring); /* keeps `at`, and the memory, if it is closed */
        ipcq_receiver *at = self->at;
        Py_BEGIN_ALLOW_THREADS
        came = ipcq_spin_records(at, most - KEPT_NS) == IPCQ_DONE;
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
static Py_ssize_t gather(Receiver *self, Py_ssize_t most, Py_ssize_t bytes, PyObject *list)
{
    Py_ssize_t n = 0, piece = 0;
    struct ipcq_frame frame = {.size = (uint32_t)self->size};
    const char *at = NULL;
    uint64_t run = 0;
    while (n < most && bytes > 0) {
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
        bytes -= (Py_ssize_t)frame.size;
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
    return n;
}

/* Records into `ahead`, at most so many and about so many bytes: how many, -1 with an exception. */
static Py_ssize_t take_ahead(Receiver *self, Py_ssize_t most, Py_ssize_t bytes)
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
            Py_XSETREF(self->ahead, Py_NewRef(list));
        }
        Py_DECREF(list);
        return n;
    }
    Py_DECREF(list);
    if (self->frames || !ready(self->decode_many))
        return 0;
    if (most > bytes / self->size)
        most = bytes / self->size;
    PyObject *data = PyBytes_FromStringAndSize(NULL, most * self->size);
    if (data == NULL)
        return -1;
    if (ipcq_pop(self->at, PyBytes_AS_STRING(data), (uint64_t)most, self->next, &count) != IPCQ_DONE) {
        Py_DECREF(data);
        return 0;
    }
    self->next += count;
    if (_PyBytes_Resize(&data, (Py_ssize_t)count * self->size) < 0)
        return -1;
    Py_XSETREF(self->held, Py_NewRef(data));
    PyObject *records = PyObject_CallFunction(self->decode_many, "OK", data, (unsigned long long)count);
    Py_ssize_t n = 0;
    if (records == NULL) {
        if (!PyErr_ExceptionMatches(PyExc_Exception))
            n = -1;
        else
            PyErr_Clear(); /* the slow way meets it again, and knows what to do */
    } else if (PyList_CheckExact(records) && self->held == data && empty_list(self->kept) &&
               !has_ahead(self)) {
        PyObject *nothing = PyBytes_FromStringAndSize(NULL, 0);
        if (nothing != NULL) {
            Py_XSETREF(self->held, nothing);
            Py_XSETREF(self->ahead, Py_NewRef(records));
            self->place = 0;
            n = PyList_GET_SIZE(records);
        } else {
            n = -1;
        }
    }
    Py_XDECREF(records);
    Py_DECREF(data);
    return n;
}

static PyObject *take_many(Receiver *self, PyObject *limit)
{
    Py_ssize_t most = PyLong_AsSsize_t(limit);
    if (most == -1 && PyErr_Occurred())
        return NULL;
    if (!self->plain || has_ahead(self) || !in_order(self))
        Py_RETURN_FALSE;
    ipcq_see(self->at);
    Py_ssize_t n = take_ahead(self, most, PY_SSIZE_T_MAX);
    if (n < 0)
        return NULL;
    /* Where it stopped at what is not simple, Python goes on from there. */
    return PyBool_FromLong(n > 0 && (n == most || ipcq_seen(self->at, self->next) == 0));
}

static PyObject *looked(Receiver *self, PyObject *Py_UNUSED(ignored))
{
    self->looked = now_ns();
    Py_RETURN_NONE;
}

static PyObject *is_quiet(Receiver *self, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(!has_ahead(self) && in_order(self) &&
                           ipcq_is_quiet(self->at, self->next) &&
                           now_ns() - self->looked < LOOK_NS);
}

static PyObject *records_ready(Receiver *self, PyObject *patient);
static PyObject *records_all(Receiver *self, PyObject *args);

#define RECEIVER_MEMBERS                                                                          \
    {"_ring", T_OBJECT, offsetof(Receiver, ring), 0, NULL},                                       \
    {"ahead", T_OBJECT, offsetof(Receiver, ahead), 0, "What take_many() has taken; or None."},    \
    {"place", T_PYSSIZET, offsetof(Receiver, place), 0, "Where in `ahead` the next one is."}

static PyMemberDef slot_receiver_members[] = {
    RECEIVER_MEMBERS,
    {"_stash", T_OBJECT, offsetof(Receiver, held), 0, NULL},
    {"_kept", T_OBJECT, offsetof(Receiver, kept), 0, NULL},
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
    {"take_many", (PyCFunction)take_many, METH_O,                                                 \
     "Take up to so many, which then stand in `ahead`; False if that is not as simple."},         \
    {"looked", (PyCFunction)looked, METH_NOARGS, "Note that the socket was just looked at."},     \
    {"is_quiet", (PyCFunction)is_quiet, METH_NOARGS,                                              \
     "Tell whether nothing waits, and nothing is wrong as far as was seen a moment ago."},        \
    {"ready", (PyCFunction)records_ready, METH_O,                                                 \
     "ready(patient): for a loop, records one by one; patient: after looking for each."},         \
    {"all", (PyCFunction)records_all, METH_VARARGS,                                               \
     "all(receive, end): for a loop, records until receive(), called for those that are not as "  \
     "simple, raises `end`.  Takes some ahead."}

#define SHORTEN_TOO(function)                                                                     \
    {"shorten", (PyCFunction)function, METH_VARARGS,                                              \
     "shorten(address, size, ahead, plain, decode, decode_many): use the short way."}

static PyMethodDef slot_receiver_methods[] = {
    SHORTEN_TOO(slots_shorten),
    RECEIVER_METHODS,
    {NULL},
};

static PyMethodDef frame_receiver_methods[] = {
    SHORTEN_TOO(frames_shorten),
    RECEIVER_METHODS,
    {NULL},
};

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

static PyObject *iteration_next(Iteration *self)
{
    Receiver *receiver = self->receiver;
    if (receiver == NULL)
        return NULL;
    PyObject *record;
    if (self->receive == NULL) {
        record = take(receiver);
        if (record == NULL && self->patient && !PyErr_Occurred() && look_for_some(receiver))
            record = take(receiver);
        return record;
    }
    /* Only when all that was taken ahead has been handed out, more is. */
    if (!has_ahead(receiver) && take_ahead(receiver, receiver->most, AHEAD_BYTES) < 0)
        return NULL;
    if (has_ahead(receiver) && in_order(receiver))
        return first_ahead(receiver);
    record = PyObject_CallNoArgs(self->receive);
    if (record == NULL && PyErr_ExceptionMatches(self->end))
        PyErr_Clear();
    return record;
}

/* -- the socket --------------------------------------------------------------------------- */

enum { MOST_BYTES = 4096, MOST_CONTROL = 4096 };

/* (level, type, data) of each piece of ancillary data, as socket.recvmsg() gives them. */
static PyObject *ancillary_of(struct msghdr *m)
{
    PyObject *list = PyList_New(0);
    for (struct cmsghdr *c = CMSG_FIRSTHDR(m); list != NULL && c != NULL; c = CMSG_NXTHDR(m, c)) {
        char *data = (char *)CMSG_DATA(c), *end = (char *)m->msg_control + m->msg_controllen;
        Py_ssize_t size = (char *)c + c->cmsg_len - data;
        if (size > end - data)
            size = end - data; /* the kernel has cut it off */
        PyObject *item = Py_BuildValue("(iiy#)", c->cmsg_level, c->cmsg_type, data,
                                       size > 0 ? size : (Py_ssize_t)0);
        if (item == NULL || PyList_Append(list, item) < 0)
            Py_CLEAR(list);
        Py_XDECREF(item);
    }
    return list;
}

static void close_all(struct msghdr *m)
{
    for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c != NULL; c = CMSG_NXTHDR(m, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        size_t n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < n; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
            ipcq_forbid_linger(fd);
            close(fd);
        }
    }
}

/* As list.append(socket.recvmsg(…)) without waiting, in one step; and the interpreter is kept, as
 * getting it back from a thread that computes takes 5 ms. */
static PyObject *receive(PyObject *Py_UNUSED(module), PyObject *args)
{
    int fd, flags;
    PyObject *into;
    if (!PyArg_ParseTuple(args, "iiO!:receive", &fd, &flags, &PyList_Type, &into))
        return NULL;
    char data[MOST_BYTES];
    alignas(struct cmsghdr) char control[MOST_CONTROL];
    struct iovec bytes = {data, sizeof data};
    struct msghdr m = {.msg_iov = &bytes,
                       .msg_iovlen = 1,
                       .msg_control = control,
                       .msg_controllen = sizeof control};
    ssize_t n;
    do
        n = recvmsg(fd, &m, flags | MSG_DONTWAIT);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    PyObject *ancillary = ancillary_of(&m);
    PyObject *message =
        ancillary == NULL ? NULL : Py_BuildValue("(y#NiO)", data, n, ancillary, m.msg_flags, Py_None);
    if (message == NULL || PyList_Append(into, message) < 0) {
        Py_XDECREF(message);
        close_all(&m);
        return NULL;
    }
    Py_DECREF(message);
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"receive", receive, METH_VARARGS,
     "receive(fd, flags, into): append the result of a recvmsg() that does not wait to a list."},
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
    PyObject *module = PyType_GetModuleByDef(Py_TYPE(receiver), &definition);
    if (module == NULL)
        return NULL;
    PyTypeObject *type = ((struct state *)PyModule_GetState(module))->iteration;
    Iteration *iteration = (Iteration *)type->tp_alloc(type, 0);
    if (iteration != NULL)
        iteration->receiver = (Receiver *)Py_NewRef(receiver);
    return iteration;
}

static PyObject *records_ready(Receiver *self, PyObject *patient)
{
    Iteration *iteration = iteration_over(self);
    if (iteration != NULL)
        iteration->patient = PyObject_IsTrue(patient) == 1;
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
    PyType_Spec *bases[] = {&SlotSender_spec, &FrameSender_spec, &SlotReceiver_spec,
                            &FrameReceiver_spec};
    for (size_t i = 0; i < sizeof bases / sizeof *bases; i++) {
        PyTypeObject *type = add_type(module, bases[i]);
        if (type == NULL)
            return -1;
        Py_DECREF(type);
    }
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
