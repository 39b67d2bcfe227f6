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

TYPE(SlotReceiver, Receiver, Py_TPFLAGS_BASETYPE,
     END(receiver, slot_receiver_members, slot_receiver_methods))
TYPE(FrameReceiver, Receiver, Py_TPFLAGS_BASETYPE,
     END(receiver, frame_receiver_members, frame_receiver_methods))
