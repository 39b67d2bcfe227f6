/*
 * The short way into the core for CPython: one call in C for what can be done at once.
 *
 * Base types for the ends in _slots.py and _frames.py.  They have a part of their state, so that
 * both ways see the same, and do nothing themselves but the simplest case; whatever else comes up
 * (memory that is lent, records put back, errors, no space) they leave to Python, which finds it
 * again.  No lock is taken: each step keeps the interpreter, and looks at the state as it is then.
 * Python, in several steps under its lock, does the same (see SlotReceiver and FrameReceiver).
 *
 * What is received stands in `taken` until the caller fetches it, in two bytecodes between which
 * CPython looks for no signal: so Ctrl-C after the call loses nothing.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#include "ring.h"

enum { OUT_OF_LINE = 0x8000 }; /* of a frame's flags; as in _message.py */

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

static int ready(const PyObject *ring)
{
    return ring != NULL && ring != Py_None;
}

static PyObject *slowly(Sender *self, PyObject *record)
{
    return PyObject_CallMethod((PyObject *)self, "push_slowly", "(O)", record);
}

static PyObject *slots_try_push(Sender *self, PyObject *record)
{
    PyObject *data = self->encode == NULL || self->encode == Py_None
                         ? Py_NewRef(record)
                         : PyObject_CallOneArg(self->encode, record);
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
    PyObject *taken;  /* what was taken and not fetched; or None */
    PyObject *held;   /* slots: `_stash`, bytes; frames: `_built`, a list: served first */
    PyObject *kept;   /* slots: `_kept`, a list: served first of all */
    PyObject *decode; /* slots: a function from bytes to a record; None: a record is bytes */
    ipcq_receiver *at;
    Py_ssize_t size;  /* slots: of a record; frames: of the largest message */
    unsigned long long next; /* slots: `_delivered`; frames: `_next`: what is taken next */
    /* Frames: `_handed`, and of the message in `taken` what else its frame said. */
    unsigned long long handed, taken_end;
    unsigned int taken_tag, taken_flags;
} Receiver;

static int receiver_traverse(Receiver *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->ring);
    Py_VISIT(self->taken);
    Py_VISIT(self->held);
    Py_VISIT(self->kept);
    Py_VISIT(self->decode);
    return 0;
}

static int receiver_clear(Receiver *self)
{
    Py_CLEAR(self->ring);
    Py_CLEAR(self->taken);
    Py_CLEAR(self->held);
    Py_CLEAR(self->kept);
    Py_CLEAR(self->decode);
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

static PyObject *receiver_shorten(Receiver *self, PyObject *args)
{
    PyObject *decode;
    unsigned long long at;
    if (!PyArg_ParseTuple(args, "KnO:shorten", &at, &self->size, &decode))
        return NULL;
    self->at = (ipcq_receiver *)(uintptr_t)at;
    Py_XSETREF(self->decode, Py_NewRef(decode));
    Py_RETURN_NONE;
}

static int empty_list(const PyObject *list)
{
    return list != NULL && PyList_CheckExact(list) && PyList_GET_SIZE(list) == 0;
}

static int empty_bytes(const PyObject *bytes)
{
    return bytes != NULL && PyBytes_CheckExact(bytes) && PyBytes_GET_SIZE(bytes) == 0;
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

static PyObject *slots_try_take(Receiver *self, PyObject *Py_UNUSED(ignored))
{
    if (ready(self->taken))
        Py_RETURN_TRUE;
    if (!ready(self->ring) || !empty_list(self->kept) || !empty_bytes(self->held))
        Py_RETURN_FALSE;
    PyObject *data = PyBytes_FromStringAndSize(NULL, self->size);
    if (data == NULL)
        return NULL;
    uint64_t count;
    if (ipcq_pop(self->at, PyBytes_AS_STRING(data), 1, self->next, &count) != IPCQ_DONE) {
        Py_DECREF(data);
        Py_RETURN_FALSE;
    }
    self->next++;
    if (self->decode == NULL || self->decode == Py_None) {
        Py_XSETREF(self->taken, data);
        Py_RETURN_TRUE;
    }
    PyObject *record = PyObject_CallOneArg(self->decode, data);
    if (record == NULL) {
        int application = PyErr_ExceptionMatches(PyExc_Exception);
        PyObject *kind, *error, *traceback;
        PyErr_Fetch(&kind, &error, &traceback);
        int stashed = stash(self, data);
        Py_DECREF(data);
        if (stashed == 0 && application) { /* the slow way meets it again, and knows what to do */
            Py_XDECREF(kind);
            Py_XDECREF(error);
            Py_XDECREF(traceback);
            Py_RETURN_FALSE;
        }
        PyErr_Restore(kind, error, traceback);
        return NULL;
    }
    Py_DECREF(data);
    if (!ready(self->taken)) {
        Py_XSETREF(self->taken, record);
        Py_RETURN_TRUE;
    }
    /* A signal handler, or another thread, has come in between. */
    int kept = PyList_Append(self->kept, record);
    Py_DECREF(record);
    return kept < 0 ? NULL : PyBool_FromLong(1);
}

static PyObject *frames_try_take(Receiver *self, PyObject *Py_UNUSED(ignored))
{
    if (ready(self->taken))
        Py_RETURN_TRUE;
    if (self->at == NULL || !ready(self->ring) || !empty_list(self->held))
        Py_RETURN_FALSE;
    struct ipcq_frame frame;
    const char *payload;
    int result = ipcq_frame_look(self->at, self->next, (uint64_t)self->size, &frame, &payload);
    if (result != IPCQ_DONE || frame.fds + frame.regions || (frame.flags & OUT_OF_LINE))
        Py_RETURN_FALSE;
    PyObject *data = PyBytes_FromStringAndSize(payload, (Py_ssize_t)frame.size);
    if (data == NULL)
        return NULL;
    self->next += ipcq_frame_extent(frame.size);
    self->taken_end = self->next;
    self->taken_tag = frame.tag;
    self->taken_flags = frame.flags;
    self->handed++;
    ipcq_take(self->at, self->next);
    Py_XSETREF(self->taken, data);
    Py_RETURN_TRUE;
}

static PyMemberDef slot_receiver_members[] = {
    {"_ring", T_OBJECT, offsetof(Receiver, ring), 0, NULL},
    {"taken", T_OBJECT, offsetof(Receiver, taken), 0, "What try_take() has taken; or None."},
    {"_stash", T_OBJECT, offsetof(Receiver, held), 0, NULL},
    {"_kept", T_OBJECT, offsetof(Receiver, kept), 0, NULL},
    {"_delivered", T_ULONGLONG, offsetof(Receiver, next), 0, NULL},
    {NULL},
};

static PyMemberDef frame_receiver_members[] = {
    {"_ring", T_OBJECT, offsetof(Receiver, ring), 0, NULL},
    {"taken", T_OBJECT, offsetof(Receiver, taken), 0, "What try_take() has taken; or None."},
    {"_built", T_OBJECT, offsetof(Receiver, held), 0, NULL},
    {"_next", T_ULONGLONG, offsetof(Receiver, next), 0, NULL},
    {"_taken_end", T_ULONGLONG, offsetof(Receiver, taken_end), 0, NULL},
    {"_taken_tag", T_UINT, offsetof(Receiver, taken_tag), 0, NULL},
    {"_taken_flags", T_UINT, offsetof(Receiver, taken_flags), 0, NULL},
    {"_handed", T_ULONGLONG, offsetof(Receiver, handed), 0, NULL},
    {NULL},
};

#define SHORTEN_TOO                                                                               \
    {"shorten", (PyCFunction)receiver_shorten, METH_VARARGS,                                      \
     "shorten(address, size, decode): use the short way to the receiver at an address."}

static PyMethodDef slot_receiver_methods[] = {
    SHORTEN_TOO,
    {"try_take", (PyCFunction)slots_try_take, METH_NOARGS,
     "Take one record, which then stands in `taken`; False if that is not as simple."},
    {NULL},
};

static PyMethodDef frame_receiver_methods[] = {
    SHORTEN_TOO,
    {"try_take", (PyCFunction)frames_try_take, METH_NOARGS,
     "Take one message, which then stands in `taken`; False if that is not as simple."},
    {NULL},
};

/* -- the module --------------------------------------------------------------------------- */

#define TYPE(type_, struct_, which, members_, methods_)                                            \
    static PyType_Slot type_##_slots[] = {                                                         \
        {Py_tp_traverse, which##_traverse},                                                       \
        {Py_tp_clear, which##_clear},                                                             \
        {Py_tp_dealloc, which##_dealloc},                                                         \
        {Py_tp_members, members_},                                                                \
        {Py_tp_methods, methods_},                                                                \
        {0, NULL},                                                                                \
    };                                                                                            \
    static PyType_Spec type_##_spec = {                                                            \
        .name = "ipcqueue._direct." #type_,                                                        \
        .basicsize = sizeof(struct_),                                                             \
        .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,                   \
        .slots = type_##_slots,                                                                    \
    };

TYPE(SlotSender, Sender, sender, sender_members, slot_sender_methods)
TYPE(FrameSender, Sender, sender, sender_members, frame_sender_methods)
TYPE(SlotReceiver, Receiver, receiver, slot_receiver_members, slot_receiver_methods)
TYPE(FrameReceiver, Receiver, receiver, frame_receiver_members, frame_receiver_methods)

static int add_type(PyObject *module, PyType_Spec *spec)
{
    PyObject *type = PyType_FromSpec(spec);
    if (type == NULL)
        return -1;
    int result = PyModule_AddType(module, (PyTypeObject *)type);
    Py_DECREF(type);
    return result;
}

static int execute(PyObject *module)
{
    PyType_Spec *specs[] = {&SlotSender_spec, &FrameSender_spec, &SlotReceiver_spec,
                            &FrameReceiver_spec};
    for (size_t i = 0; i < sizeof specs / sizeof *specs; i++)
        if (add_type(module, specs[i]) < 0)
            return -1;
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
    .m_slots = module_slots,
};

PyMODINIT_FUNC PyInit__direct(void)
{
    return PyModuleDef_Init(&definition);
}
