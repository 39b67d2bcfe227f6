/* The ends that receive: what they are, and whether anything waits. */
#include "direct.h"

#include <time.h>

/* A receiver that asks again and again only peeks at its socket, but so often Python looks, too: an
 * exception may have kept it from digesting what it had read. */
enum { LOOK_NS = 1000000 };

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static int receiver_traverse(Receiver *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->ring);
    Py_VISIT(self->decoding);
    Py_VISIT(self->raw);
    Py_VISIT(self->prefetched);
    Py_VISIT(self->prefetched_raw);
    Py_VISIT(self->arrived);
    Py_VISIT(self->regions);
    Py_VISIT(self->large);
    Py_VISIT(self->to_close);
    Py_VISIT(self->suspect);
    Py_VISIT(self->decode);
    Py_VISIT(self->decode_many);
    Py_VISIT(self->borrower);
    return 0;
}

static int receiver_clear(Receiver *self)
{
    Py_CLEAR(self->ring);
    Py_CLEAR(self->decoding);
    Py_CLEAR(self->raw);
    Py_CLEAR(self->prefetched);
    Py_CLEAR(self->prefetched_raw);
    Py_CLEAR(self->arrived);
    Py_CLEAR(self->regions);
    Py_CLEAR(self->large);
    Py_CLEAR(self->to_close);
    Py_CLEAR(self->suspect);
    Py_CLEAR(self->decode);
    Py_CLEAR(self->decode_many);
    Py_CLEAR(self->borrower);
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

static PyObject *attach_fast(Receiver *self, PyObject *args, int frames)
{
    PyObject *decode, *decode_many;
    unsigned long long at;
    if (!PyArg_ParseTuple(args, "KnnppOO:attach_fast", &at, &self->size, &self->most, &self->keeps,
                          &self->plain, &decode, &decode_many))
        return NULL;
    self->at = (ipcq_receiver *)(uintptr_t)at;
    self->known = known_ring(self->ring, at);
    self->frames = frames;
    Py_XSETREF(self->decode, Py_NewRef(decode));
    Py_XSETREF(self->decode_many, Py_NewRef(decode_many));
    Py_RETURN_NONE;
}

static PyObject *slots_attach_fast(Receiver *self, PyObject *args)
{
    return attach_fast(self, args, 0);
}

static PyObject *frames_attach_fast(Receiver *self, PyObject *args)
{
    return attach_fast(self, args, 1);
}

static PyObject *note_read(Receiver *self, PyObject *Py_UNUSED(ignored))
{
    self->looked = now_ns();
    Py_RETURN_NONE;
}

static int nothing_waits(Receiver *self)
{
    return in_order(self) && !has_prefetched(self) && ipcq_is_quiet(self->at, self->next);
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

static PyObject *has_records(Receiver *self, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(!usable(self->ring, self->known) ||
                           ipcq_spin_records(self->at, 0) == IPCQ_DONE);
}

static PyObject *frames_see(Receiver *self, PyObject *ring)
{
    if (usable(ring, self->known))
        ipcq_see(self->at);
    Py_RETURN_NONE;
}

#define RECEIVER_MEMBERS                                                                          \
    {"_ring", T_OBJECT, offsetof(Receiver, ring), 0, NULL},                                       \
    {"_decoding", T_OBJECT_EX, offsetof(Receiver, decoding), 0, NULL},                            \
    {"_raw", T_OBJECT, offsetof(Receiver, raw), 0, NULL},                                         \
    {"_suspect", T_OBJECT, offsetof(Receiver, suspect), 0, NULL},                                 \
    {"_borrower", T_OBJECT, offsetof(Receiver, borrower), 0, NULL},                               \
    {"_next", T_ULONGLONG, offsetof(Receiver, next), 0, NULL},                                    \
    {"prefetched", T_OBJECT, offsetof(Receiver, prefetched), 0,                                   \
     "Records that a loop has taken ahead of itself; or None."},                                  \
    {"place", T_PYSSIZET, offsetof(Receiver, place), 0, "Where in `prefetched` the next one is."}, \
    {"turn", T_ULONGLONG, offsetof(Receiver, turn), READONLY, "Counts the changes of the shelf."}

static PyMemberDef slot_receiver_members[] = {
    RECEIVER_MEMBERS,
    {"_prefetched_raw", T_OBJECT, offsetof(Receiver, prefetched_raw), 0, NULL},
    {NULL},
};

static PyMemberDef frame_receiver_members[] = {
    RECEIVER_MEMBERS,
    {"_arrived", T_OBJECT, offsetof(Receiver, arrived), 0, NULL},
    {"_regions", T_OBJECT, offsetof(Receiver, regions), 0, NULL},
    {"_large", T_OBJECT, offsetof(Receiver, large), 0, NULL},
    {"_to_close", T_OBJECT, offsetof(Receiver, to_close), 0, NULL},
    {"_handed", T_ULONGLONG, offsetof(Receiver, handed), 0, NULL},
    {"_wanted", T_ULONGLONG, offsetof(Receiver, wanted), 0, NULL},
    {"dropped", T_ULONGLONG, offsetof(Receiver, dropped), 0,
     "How many attachments were closed because nobody took them."},
    {NULL},
};

#define RECEIVER_METHODS                                                                          \
    {"begin", (PyCFunction)begin, METH_NOARGS, "Return a Call, for what it takes."},              \
    {"commit", (PyCFunction)(void (*)(void))commit, METH_FASTCALL | METH_KEYWORDS,                \
     "commit(turn, ...): change several places of the shelf, unless it was changed since that turn, " \
     "which is False; see shelf.c."},                                                             \
    {"hand_over", (PyCFunction)(void (*)(void))hand_over, METH_FASTCALL,                          \
     "hand_over(call, result, instead=None, failure=None): for a loop of one step, the end of a call; " \
     "see shelf.c."},                                                                             \
    {"many", (PyCFunction)(void (*)(void))many, METH_FASTCALL,                                    \
     "many(limit, most_bytes=None, enough=None): for a loop of at most one step, a list of up to so " \
     "many records, and about so many bytes; of less than is there only if they are `enough`."},  \
    {"has_records", (PyCFunction)has_records, METH_NOARGS,                                        \
     "Tell whether records wait in the ring; also for what else there is no need to wait for."},  \
    {"note_read", (PyCFunction)note_read, METH_NOARGS, "Note that the socket was just read."},        \
    {"is_empty", (PyCFunction)is_empty, METH_NOARGS,                                              \
     "Tell whether nothing waits, and nothing is wrong as far as the ring says."},                \
    {"is_quiet", (PyCFunction)is_quiet, METH_NOARGS,                                              \
     "Tell whether nothing waits, neither in the ring nor in the socket, and nothing is wrong."},        \
    {"ready", (PyCFunction)records_ready, METH_VARARGS,                                           \
     "ready(patient, wrap=None): for a loop, records one by one, each as wrap(record, [], []) if that " \
     "is stated; patient: after looking for each."},                                              \
    {"all", (PyCFunction)records_all, METH_VARARGS,                                               \
     "all(receive, end): for a loop, records until receive(), called for those that are not as "  \
     "simple, raises `end`.  Takes some ahead."}

#define ATTACH_FAST(function)                                                                     \
    {"attach_fast", (PyCFunction)function, METH_VARARGS,                                          \
     "attach_fast(address, size, most, keeps, plain, decode, decode_many): use the fast path."}

static PyMethodDef slot_receiver_methods[] = {
    ATTACH_FAST(slots_attach_fast),
    {"fetch", (PyCFunction)(void (*)(void))slots_fetch, METH_FASTCALL,
     "fetch(call, limit): have a call decode up to so many records, raw: return them as a bytearray; None "
     "if that is not simple."},
    {"pull", (PyCFunction)pull, METH_O,
     "Move up to so many records to `_raw`; return DONE or why not: AGAIN if that is not in use, or not "
     "the next in order."},
    {"peek", (PyCFunction)slots_peek, METH_O,
     "peek(ring): what waits in place: its address and how many records; or a code of the core."},
    RECEIVER_METHODS,
    {NULL},
};

static PyMethodDef frame_receiver_methods[] = {
    ATTACH_FAST(frames_attach_fast),
    {"peek", (PyCFunction)(void (*)(void))frames_peek, METH_FASTCALL,
     "peek(ring, at, copy): the frame there: (size, tag, flags, fds, regions, address of the payload, where "
     "the next begins, how many bytes are there from that on, a copy of the payload if that is all and is "
     "wanted); a code of the core if there is none."},
    {"see", (PyCFunction)frames_see, METH_O, "see(ring): know of all that is there now."},
    RECEIVER_METHODS,
    {NULL},
};

TYPE(SlotReceiver, Receiver, Py_TPFLAGS_BASETYPE,
     END(receiver, slot_receiver_members, slot_receiver_methods))
TYPE(FrameReceiver, Receiver, Py_TPFLAGS_BASETYPE,
     END(receiver, frame_receiver_members, frame_receiver_methods))
