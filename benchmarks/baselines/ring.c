/*
 * A ring of fixed slots between one sender and one receiver, and nothing else: what the plainest
 * one costs that is called from Python.  Not a limit: one that lets messages gather before it
 * takes them moves fewer cache lines between the processors, and can be faster.
 *
 * Both sides only ever poll, with the GIL kept.  Nobody is woken, nobody notices that the other
 * died, nothing is checked: not for use.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#define LINE 64       /* bytes of a cache line: what one side writes shares none with the other */
#define SPINS 1000000 /* polls after which signals are looked at, some milliseconds */

/* As it lies in shared memory; the slots follow. */
struct shared {
    _Alignas(LINE) _Atomic uint64_t pushed; /* written by the sender */
    _Alignas(LINE) _Atomic uint64_t popped; /* written by the receiver */
};

struct ring {
    PyObject_HEAD
    struct shared *shared;
    size_t length;       /* bytes of the mapping */
    size_t size, stride; /* bytes of a message, and from one slot to the next */
    uint64_t slots;
    uint64_t own;   /* how far this side is */
    uint64_t other; /* how far the other was when last seen, so that its line is read seldom */
};

static char *slot(struct ring *ring)
{
    return (char *)(ring->shared + 1) + ring->own % ring->slots * ring->stride;
}

/* Wait until the other side is beyond a number. */
static int poll_beyond(struct ring *ring, _Atomic uint64_t *position, uint64_t number)
{
    for (unsigned spins = 1;; spins++) {
        ring->other = atomic_load_explicit(position, memory_order_acquire);
        if (ring->other > number)
            return 0;
        if (spins % SPINS == 0 && PyErr_CheckSignals() < 0)
            return -1;
#if defined(__x86_64__) || defined(__i386__)
        __builtin_ia32_pause();
#endif
    }
}

static PyObject *push(struct ring *ring, PyObject *message)
{
    if (!PyBytes_CheckExact(message) || (size_t)PyBytes_GET_SIZE(message) != ring->size) {
        PyErr_Format(PyExc_ValueError, "a message is %zu bytes", ring->size);
        return NULL;
    }
    /* There is room if less than all slots are taken: popped + slots > pushed. */
    if (ring->other + ring->slots <= ring->own
        && poll_beyond(ring, &ring->shared->popped, ring->own - ring->slots) < 0)
        return NULL;
    memcpy(slot(ring), PyBytes_AS_STRING(message), ring->size);
    atomic_store_explicit(&ring->shared->pushed, ++ring->own, memory_order_release);
    Py_RETURN_NONE;
}

static PyObject *pop(struct ring *ring)
{
    if (ring->other <= ring->own && poll_beyond(ring, &ring->shared->pushed, ring->own) < 0)
        return NULL;
    PyObject *message = PyBytes_FromStringAndSize(slot(ring), (Py_ssize_t)ring->size);
    if (message != NULL)
        atomic_store_explicit(&ring->shared->popped, ++ring->own, memory_order_release);
    return message;
}

static PyObject *method_pop(PyObject *self, PyObject *unused)
{
    (void)unused;
    return pop((struct ring *)self);
}

static PyObject *method_push(PyObject *self, PyObject *message)
{
    return push((struct ring *)self, message);
}

static PyObject *next(PyObject *self)
{
    return pop((struct ring *)self);
}

/* Ring(descriptor, offset, size, slots): one side of the ring that begins there. */
static PyObject *make(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    int descriptor;
    long long offset;
    Py_ssize_t size;
    unsigned long long slots;
    (void)keywords;
    if (!PyArg_ParseTuple(arguments, "iLnK", &descriptor, &offset, &size, &slots))
        return NULL;
    struct ring *ring = (struct ring *)type->tp_alloc(type, 0);
    if (ring == NULL)
        return NULL;
    ring->size = (size_t)size;
    ring->stride = (ring->size + LINE - 1) / LINE * LINE;
    ring->slots = slots;
    ring->length = sizeof *ring->shared + ring->stride * slots;
    void *mapping = mmap(NULL, ring->length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
                         descriptor, (off_t)offset);
    if (mapping == MAP_FAILED) {
        Py_DECREF(ring);
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    ring->shared = mapping;
    return (PyObject *)ring;
}

static void unmake(PyObject *self)
{
    struct ring *ring = (struct ring *)self;
    PyTypeObject *type = Py_TYPE(self);
    if (ring->shared != NULL)
        munmap(ring->shared, ring->length);
    type->tp_free(self);
    Py_DECREF(type);
}

/* Return how many bytes a ring takes. */
static PyObject *room(PyObject *module, PyObject *arguments)
{
    Py_ssize_t size, slots;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "nn", &size, &slots))
        return NULL;
    return PyLong_FromSsize_t((Py_ssize_t)sizeof(struct shared)
                              + (size + LINE - 1) / LINE * LINE * slots);
}

static PyMethodDef ring_methods[] = {
    {"push", method_push, METH_O, "Send a message."},
    {"pop", method_pop, METH_NOARGS, "Return the next message."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot ring_slots[] = {
    {Py_tp_new, (void *)make},
    {Py_tp_dealloc, (void *)unmake},
    {Py_tp_methods, ring_methods},
    {Py_tp_iter, (void *)PyObject_SelfIter},
    {Py_tp_iternext, (void *)next},
    {0, NULL},
};

static PyType_Spec ring_spec = {
    .name = "ring.Ring",
    .basicsize = sizeof(struct ring),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = ring_slots,
};

static PyMethodDef functions[] = {
    {"room", room, METH_VARARGS, "Return how many bytes a ring of a message's size and so many slots takes."},
    {NULL, NULL, 0, NULL},
};

static int fill(PyObject *module)
{
    PyObject *type = PyType_FromSpec(&ring_spec);
    if (type == NULL)
        return -1;
    int status = PyModule_AddObjectRef(module, "Ring", type);
    Py_DECREF(type);
    return status;
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, (void *)fill},
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "ring",
    .m_methods = functions,
    .m_slots = module_slots,
};

PyMODINIT_FUNC PyInit_ring(void)
{
    return PyModuleDef_Init(&definition);
}
