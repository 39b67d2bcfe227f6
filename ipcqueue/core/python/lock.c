/* A re-entrant lock for with statements: neither to enter the block nor to leave it needs memory.
 *
 * With a threading.RLock both do.  CPython packs the three arguments of __exit__ into a tuple; if there is
 * no memory for that, the lock stays held, and every other thread that wants it waits for ever.  And it
 * makes bound methods of __enter__ and __exit__ first; if it fails there, what must be done under the lock
 * (end a loan, close) has failed before its first step.
 *
 * So this is a threading.RLock and its bound methods, made once.  They are members, which CPython takes as
 * they are; and __exit__ gets its arguments as they lie on the stack. */
#include "direct.h"

struct lock {
    PyObject_HEAD
    PyObject *acquire, *release; /* of the same threading.RLock */
    PyObject *leave;             /* calls `release` */
};

static PyObject *leave(PyObject *release, PyObject *const *Py_UNUSED(args), Py_ssize_t Py_UNUSED(n))
{
    return PyObject_CallNoArgs(release);
}

static PyMethodDef leaving = {
    "__exit__", (PyCFunction)(void (*)(void))leave, METH_FASTCALL, "Release the lock."};

static int lock_traverse(struct lock *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->acquire);
    Py_VISIT(self->release);
    Py_VISIT(self->leave);
    return 0;
}

static void lock_dealloc(struct lock *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Py_XDECREF(self->acquire);
    Py_XDECREF(self->release);
    Py_XDECREF(self->leave);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *lock_new(PyTypeObject *type, PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(named))
{
    struct state *state = PyType_GetModuleState(type);
    struct lock *self = (struct lock *)type->tp_alloc(type, 0);
    PyObject *lock = self == NULL ? NULL : PyObject_CallNoArgs(state->rlock);
    if (lock != NULL && (self->acquire = PyObject_GetAttrString(lock, "acquire")) != NULL &&
        (self->release = PyObject_GetAttrString(lock, "release")) != NULL)
        self->leave = PyCFunction_New(&leaving, self->release);
    Py_XDECREF(lock);
    if (self != NULL && self->leave == NULL)
        Py_CLEAR(self);
    return (PyObject *)self;
}

static PyMemberDef members[] = {
    {"acquire", T_OBJECT_EX, offsetof(struct lock, acquire), READONLY, NULL},
    {"release", T_OBJECT_EX, offsetof(struct lock, release), READONLY, NULL},
    {"__enter__", T_OBJECT_EX, offsetof(struct lock, acquire), READONLY, NULL},
    {"__exit__", T_OBJECT_EX, offsetof(struct lock, leave), READONLY, NULL},
    {NULL},
};

TYPE(RLock, struct lock, 0, {Py_tp_new, lock_new}, {Py_tp_traverse, lock_traverse},
     {Py_tp_dealloc, lock_dealloc}, {Py_tp_members, members})

int add_lock(PyObject *module)
{
    struct state *state = PyModule_GetState(module);
    PyObject *threads = PyImport_ImportModule("_thread");
    state->rlock = threads == NULL ? NULL : PyObject_GetAttrString(threads, "RLock");
    Py_XDECREF(threads);
    PyObject *type = state->rlock == NULL ? NULL : PyType_FromModuleAndSpec(module, &RLock_spec, NULL);
    int result = type == NULL ? -1 : PyModule_AddType(module, (PyTypeObject *)type);
    Py_XDECREF(type);
    return result;
}
