#pragma once
/*
 * The fast path into the core for CPython: one call in C for what can be done at once.
 *
 * Base types for the ends in _ring/.  They have a part of their state, so that
 * both ways see the same, and do nothing themselves but the simplest case; whatever else comes up
 * (memory that is lent, records put back, errors, no space) they leave to Python, which finds it
 * again.  No lock is taken: each step keeps the interpreter, and looks at the state as it is then.
 * Python, in several steps under its lock, does the same (see SlotReceiver and FrameReceiver).
 * A batch is looked at as a whole before the first of it is sent: what is wrong with any of it is
 * found out in Python, which promises that nothing was sent then.
 *
 * What is received is handed over to a for statement: after a call CPython looks for signals, and an
 * exception of a handler (Ctrl-C) would lose what the call has returned; between a step of a loop and
 * its variable it does not.  Where a record may stand before that, shelf.c says.
 *
 * One extension of several files: sender.c, batches.c and lending.c, receiver.c, shelf.c, taking.c, prefetch.c
 * and iteration.c, socket.c, lock.c, module.c.  What only one of them uses stands there and is static;
 * this header has what several do.  None of it is seen outside the extension (-fvisibility=hidden).
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#include "ring.h"

static inline int ready(const PyObject *object)
{
    return object != NULL && object != Py_None;
}

/* The ring that `at` goes with, if there is one: Python may set the attribute to anything, and what
 * is not the same object does not keep what `at` points to. */
static inline PyObject *known_ring(PyObject *ring, unsigned long long at)
{
    return at != 0 && ready(ring) ? ring : NULL;
}

static inline int usable(const PyObject *ring, const PyObject *known)
{
    return ring != NULL && ring == known;
}

/* Bytes of records after which the other side gets to see them, or their space, and so can go on
 * meanwhile. */
enum { PIECE = 16384 };

/* -- sending ------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    PyObject *ring;   /* keeps what `at` points to; None while it must not be used */
    PyObject *known;  /* borrowed: the ring for which `at` was given; see usable() */
    PyObject *encode; /* a function from a record to its bytes (slots), or to a Framed */
    int plain;        /* a record is its bytes: those of other objects encode looks at first */
    PyObject *dtype;  /* slots: that of the arrays which go as they are; None: none do */
    PyObject *array;  /* slots: the type of arrays */
    PyObject *borrower; /* a weak reference to who has space of it on loan; None: nobody has */
    ipcq_sender *at;
    Py_ssize_t size;  /* slots: of a record; frames: of the largest message for the fast path */
} Sender;

/* batches.c */
PyObject *slots_push_all(Sender *self, PyObject *records);
PyObject *slots_push_run(Sender *self, PyObject *args);
PyObject *slots_push_packed(Sender *self, PyObject *args);
PyObject *slots_pieces(Sender *self, PyObject *records);
PyObject *frames_push_all(Sender *self, PyObject *records);
PyObject *frames_push_run(Sender *self, PyObject *args);
PyObject *frames_pieces(Sender *self, PyObject *records);

/* lending.c */
PyObject *reserve(Sender *self, PyObject *const *args, Py_ssize_t n);
PyObject *slots_publish(Sender *self, PyObject *args);
PyObject *frames_publish(Sender *self, PyObject *args);

/* -- receiving ----------------------------------------------------------------------------- */

struct state;

typedef struct {
    PyObject_HEAD
    PyObject *ring, *known; /* as above */
    /* The shelf, see shelf.c.  Oldest first: */
    PyObject *decoding;   /* a list of (Call, raw): what calls of Python have taken and not returned */
    PyObject *raw;        /* slots: bytes of records; frames: a list of Built */
    PyObject *prefetched; /* a list of records, from number `place` on; or None */
    Py_ssize_t place;
    PyObject *prefetched_raw; /* slots: the bytes of all records of that list; or None */
    PyObject *arrived;    /* frames: a list of lists of descriptors, of messages that are in the ring */
    PyObject *regions;    /* frames: memory regions of the peer's that its next messages may be in */
    PyObject *large;      /* frames: the message of which a part is copied; or None */
    PyObject *to_close;   /* frames: a list of descriptors and regions */
    unsigned long long turn; /* counts the changes of the shelf */
    unsigned long long next; /* slots: the number of records copied out of the ring; frames: where the
                                first frame that is not copied begins */
    unsigned long long handed; /* frames: how many messages are beyond `raw` */
    unsigned long long wanted; /* frames: how many there must be in `arrived` to go on */
    unsigned long long dropped; /* frames: how many attachments went to nobody */
    PyObject *suspect; /* slots: records one of which a decoder has left with what is no Exception:
                          Python decides about them; or None */
    PyObject *borrower; /* a weak reference to who has some of it lent; None: nobody has */
    PyObject *decode; /* unless `plain`: a function from bytes (of a message, and its tag and flags) */
    PyObject *decode_many; /* slots: one to a list of records; None: there is none */
    ipcq_receiver *at;
    struct state *state; /* of the module, which the type keeps */
    int frames;       /* the shape of the ring */
    int plain;        /* a record is its bytes */
    int keeps;        /* the interpreter, when it begins to spin */
    Py_ssize_t size;  /* slots: of a record; frames: of the largest message */
    Py_ssize_t most;  /* records to prefetch for a loop */
    uint64_t looked;  /* when Python has last looked at the socket */
} Receiver;

static inline int empty_list(const PyObject *list)
{
    return list != NULL && PyList_CheckExact(list) && PyList_GET_SIZE(list) == 0;
}

static inline int empty_bytes(const PyObject *bytes)
{
    return bytes != NULL && PyBytes_CheckExact(bytes) && PyBytes_GET_SIZE(bytes) == 0;
}

/* Whether the ring can be used, and Python has nothing older than what it holds. */
static inline int in_order(const Receiver *self)
{
    return usable(self->ring, self->known) && !ipcq_is_forked(self->at) &&
           (self->frames ? empty_list(self->raw) : empty_bytes(self->raw)) &&
           empty_list(self->decoding);
}

static inline int has_prefetched(const Receiver *self)
{
    return ready(self->prefetched) && PyList_CheckExact(self->prefetched) && self->place >= 0 &&
           self->place < PyList_GET_SIZE(self->prefetched);
}

/* Take the first of what was prefetched; only if in_order(). */
static inline PyObject *first_prefetched(Receiver *self)
{
    PyObject *record = PyList_GET_ITEM(self->prefetched, self->place);
    PyList_SET_ITEM(self->prefetched, self->place, Py_NewRef(Py_None));
    self->turn++;
    if (++self->place == PyList_GET_SIZE(self->prefetched)) {
        self->place = 0;
        Py_CLEAR(self->prefetched); /* of None only, so nothing runs */
        Py_CLEAR(self->prefetched_raw);
    }
    return record;
}

/* Look at the next frame; whether all that there is to it are its bytes. */
static inline int look_at_frame(Receiver *self, struct ipcq_frame *frame, const char **payload)
{
    return ipcq_frame_look(self->at, self->next, (uint64_t)self->size, frame, payload) ==
               IPCQ_DONE &&
           frame->fds + frame->regions == 0 && !(frame->flags & IPCQ_OUTSIDE) &&
           frame->size <= IPCQ_LARGE; /* else Python lets other threads run meanwhile */
}

/* shelf.c */
typedef struct Call Call;
PyObject *begin(Receiver *self, PyObject *ignored);
PyObject *commit(Receiver *self, PyObject *const *args, Py_ssize_t n, PyObject *names);
PyObject *hand_over(Receiver *self, PyObject *const *args, Py_ssize_t n);
int is_over(PyObject *call);
int prepare_fields(void);

/* taking.c */
PyObject *take(Receiver *self, PyObject *wrap);
PyObject *slots_peek(Receiver *self, PyObject *ring);
PyObject *frames_peek(Receiver *self, PyObject *const *args, Py_ssize_t n);
int is_raised(Receiver *self, PyObject *data, PyObject *function, PyObject *const *args, size_t n);

/* prefetch.c */
Py_ssize_t prefetch(Receiver *self, Py_ssize_t most, Py_ssize_t *bytes);
PyObject *many(Receiver *self, PyObject *const *args, Py_ssize_t n);
PyObject *pull(Receiver *self, PyObject *limit);
PyObject *slots_fetch(Receiver *self, PyObject *const *args, Py_ssize_t n);

/* iteration.c */
PyObject *records_ready(Receiver *self, PyObject *args);
PyObject *records_all(Receiver *self, PyObject *args);

/* -- the module ---------------------------------------------------------------------------- */

#define TYPE(type_, struct_, flags_, ...)                                                         \
    static PyType_Slot type_##_slots[] = {__VA_ARGS__, {0, NULL}};                                \
    PyType_Spec type_##_spec = {                                                                  \
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

extern PyType_Spec SlotSender_spec, FrameSender_spec, SlotReceiver_spec, FrameReceiver_spec,
    Iteration_spec, Batch_spec, Call_spec;

struct state {
    PyTypeObject *iteration, *batch, *call;
    PyObject *rlock; /* threading.RLock, see lock.c */
};

extern PyModuleDef definition;

static inline struct state *state_of(Receiver *self)
{
    if (self->state == NULL) /* that of the base, which there is: who asks is a method of it */
        self->state = PyModule_GetState(PyType_GetModuleByDef(Py_TYPE(self), &definition));
    return self->state;
}

int add_socket(PyObject *module);

/* lock.c */
int add_lock(PyObject *module);
