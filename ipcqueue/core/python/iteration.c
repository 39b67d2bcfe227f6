/* Loops over what is received. */
#include "direct.h"

/* Spinning, the interpreter is kept for so long: to get it back from a thread that computes takes
 * 5 ms. */
enum { KEPT_NS = 30000 };

/* Bytes of records to prefetch for a loop: what is in the first-level cache when it is served. */
enum { AHEAD_BYTES = 16384 };

typedef struct {
    PyObject_HEAD
    Receiver *receiver;
    PyObject *receive; /* the slow path, a function that waits for a record; NULL: there is none */
    PyObject *end;     /* the exception that ends the loop */
    PyObject *wrap;    /* what makes messages of records; NULL: nothing does */
    int patient;
} Iteration;

static int iteration_traverse(Iteration *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->receiver);
    Py_VISIT(self->receive);
    Py_VISIT(self->end);
    Py_VISIT(self->wrap);
    return 0;
}

static int iteration_clear(Iteration *self)
{
    Py_CLEAR(self->receiver);
    Py_CLEAR(self->receive);
    Py_CLEAR(self->end);
    Py_CLEAR(self->wrap);
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

/* Look for records as long as it is worth it; whether there are any. */
static int look_for_some(Receiver *self)
{
    if (!in_order(self) || has_prefetched(self))
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

static PyObject *iteration_next(Iteration *self)
{
    Receiver *receiver = self->receiver;
    if (receiver == NULL)
        return NULL; /* the garbage collector was here: GCOV_EXCL_LINE */
    if (self->receive == NULL) {
        PyObject *record = take(receiver, self->wrap);
        if (record == NULL && self->patient && !PyErr_Occurred() && look_for_some(receiver))
            record = take(receiver, self->wrap);
        return not_stopped(record);
    }
    /* Only when all that was prefetched has been handed out, more is. */
    Py_ssize_t bytes = AHEAD_BYTES;
    if (!has_prefetched(receiver) && prefetch(receiver, receiver->most, &bytes) < 0) {
        if (!PyErr_ExceptionMatches(PyExc_MemoryError))
            return not_stopped(NULL); /* of a signal handler, see is_raised() */
        PyErr_Clear(); /* the slow path meets it again, and says of which connection it is */
    }
    if (has_prefetched(receiver) && in_order(receiver))
        return first_prefetched(receiver);
    PyObject *record = PyObject_CallNoArgs(self->receive);
    if (record == NULL && PyErr_ExceptionMatches(self->end))
        PyErr_Clear();
    return not_stopped(record);
}

TYPE(Iteration, Iteration, Py_TPFLAGS_DISALLOW_INSTANTIATION, COLLECTED(iteration),
     {Py_tp_iter, PyObject_SelfIter}, {Py_tp_iternext, iteration_next})

static Iteration *iteration_over(Receiver *receiver)
{
    PyTypeObject *type = state_of(receiver)->iteration;
    Iteration *iteration = (Iteration *)type->tp_alloc(type, 0);
    if (iteration != NULL)
        iteration->receiver = (Receiver *)Py_NewRef(receiver);
    return iteration;
}

PyObject *records_ready(Receiver *self, PyObject *args)
{
    int is_patient;
    PyObject *wrap = Py_None;
    if (!PyArg_ParseTuple(args, "p|O:ready", &is_patient, &wrap))
        return NULL;
    Iteration *iteration = iteration_over(self);
    if (iteration != NULL)
        iteration->patient = is_patient;
    if (iteration != NULL && wrap != Py_None)
        iteration->wrap = Py_NewRef(wrap);
    return (PyObject *)iteration;
}

PyObject *records_all(Receiver *self, PyObject *args)
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
