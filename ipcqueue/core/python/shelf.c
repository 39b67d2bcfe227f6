/* The shelf of a receiver: what it has taken and not handed to the application yet, in the places that
 * struct Receiver (direct.h) names; _ring/frame_receiver.py has a picture of them.
 *
 * The rule of the shelf: every change of it is one call of C.  CPython looks for signals after such a
 * call, not in it, and other threads run only then, too; so whoever comes between two calls finds all of a
 * change, or nothing of it, and no record is ever lost or doubled.  commit() moves what was taken from
 * place to place.  The last move, to the application, is the step of a for statement (hand_over): what a
 * call returned could be lost to a signal; between a step of a loop and its variable CPython looks for
 * none.
 *
 * `turn` counts the changes.  Who prepares one in Python reads it first and says it to commit(), which does
 * nothing if a signal handler or another thread has changed the shelf since. */
#include "direct.h"

/* -- moves between the places --------------------------------------------------------------------- */

enum { RAW, DECODING, PREFETCHED, REGIONS, LARGE, TO_CLOSE, SUSPECT, OBJECTS };
enum { NEXT = OBJECTS, HANDED, WANTED, DROPPED, NUMBERS };
enum { ARRIVED = NUMBERS, FREE, RING, LENT, OWNED, FIELDS };

static const struct {
    const char *name;
    size_t offset;
} fields[FIELDS] = {
    [RAW] = {"raw", offsetof(Receiver, raw)},
    [DECODING] = {"decoding", offsetof(Receiver, decoding)},
    [PREFETCHED] = {"prefetched", offsetof(Receiver, prefetched)}, /* None: there are none left */
    [REGIONS] = {"regions", offsetof(Receiver, regions)},
    [LARGE] = {"large", offsetof(Receiver, large)},
    [TO_CLOSE] = {"to_close", offsetof(Receiver, to_close)},
    [SUSPECT] = {"suspect", offsetof(Receiver, suspect)},
    [NEXT] = {"next", offsetof(Receiver, next)},
    [HANDED] = {"handed", offsetof(Receiver, handed)},
    [WANTED] = {"wanted", offsetof(Receiver, wanted)},
    [DROPPED] = {"dropped", offsetof(Receiver, dropped)},
    [ARRIVED] = {"arrived"}, /* so many of `arrived` belong to what is moved */
    [FREE] = {"free"},       /* the ring up to there is the sender's again */
    [RING] = {"ring"},       /* only if it is still in use; */
    [LENT] = {"lent"},       /* or, for who has it parked: it is lent no more */
    [OWNED] = {"owned"},     /* a list that is then empty: what was in it is on the shelf */
};

static PyObject *names[FIELDS];

int prepare_fields(void)
{
    for (int i = 0; i < FIELDS; i++)
        if (names[i] == NULL && (names[i] = PyUnicode_InternFromString(fields[i].name)) == NULL)
            return -1;
    return 0;
}

static int field_of(PyObject *name)
{
    for (int i = 0; i < FIELDS; i++)
        if (names[i] == name) /* as names of arguments are interned */
            return i;
    PyErr_Format(PyExc_TypeError, "commit() knows no %R", name);
    return -1;
}

static int is_right(const Receiver *self, int field, PyObject *value)
{
    if (field == DECODING || field == TO_CLOSE || field == OWNED)
        return PyList_CheckExact(value);
    if (field == RAW)
        return self->frames ? PyList_CheckExact(value) : PyBytes_CheckExact(value);
    return field != PREFETCHED || value == Py_None;
}

PyObject *commit(Receiver *self, PyObject *const *args, Py_ssize_t n, PyObject *given)
{
    PyObject *values[FIELDS] = {NULL}, *before[OBJECTS + 2];
    unsigned long long numbers[FIELDS], turn;
    Py_ssize_t count = given == NULL ? 0 : PyTuple_GET_SIZE(given), olds = 0;
    if (n != 1)
        return PyErr_Format(PyExc_TypeError, "commit() takes a turn, and fields by their names");
    turn = PyLong_AsUnsignedLongLong(args[0]);
    if (turn == (unsigned long long)-1 && PyErr_Occurred())
        return NULL;
    for (Py_ssize_t i = 0; i < count; i++) {
        int field = field_of(PyTuple_GET_ITEM(given, i));
        if (field < 0)
            return NULL;
        PyObject *value = values[field] = args[1 + i];
        if ((field >= OBJECTS && field < NUMBERS) || field == ARRIVED || field == FREE) {
            numbers[field] = PyLong_AsUnsignedLongLong(value);
            if (numbers[field] == (unsigned long long)-1 && PyErr_Occurred())
                return NULL;
        } else if (!is_right(self, field, value)) {
            return PyErr_Format(PyExc_TypeError, "not for commit(%s=): %R", fields[field].name, value);
        }
    }
    PyObject *ring = values[RING] != NULL ? values[RING] : values[LENT];
    if (turn != self->turn || (values[RING] != NULL && ring != self->ring))
        Py_RETURN_FALSE;
    if (ring != NULL ? !usable(ring, self->known) : values[FREE] != NULL)
        return PyErr_Format(PyExc_ValueError, "commit() frees what stands in its ring");
    /* The only part that may need memory. */
    if (values[ARRIVED] != NULL && numbers[ARRIVED] > 0 && ready(self->arrived) &&
        PyList_SetSlice(self->arrived, 0, (Py_ssize_t)numbers[ARRIVED], NULL) < 0)
        return NULL;
    for (int i = 0; i < OBJECTS; i++) {
        PyObject **at = (PyObject **)(void *)((char *)self + fields[i].offset);
        if (values[i] == NULL)
            continue;
        before[olds++] = *at;
        *at = Py_NewRef(values[i]);
    }
    if (values[PREFETCHED] != NULL) {
        before[olds++] = self->prefetched_raw;
        self->prefetched_raw = NULL;
        self->place = 0;
    }
    if (values[LENT] != NULL) {
        before[olds++] = self->borrower;
        self->borrower = NULL;
    }
    for (int i = OBJECTS; i < NUMBERS; i++)
        if (values[i] != NULL)
            *(unsigned long long *)(void *)((char *)self + fields[i].offset) = numbers[i];
    self->turn++;
    if (values[FREE] != NULL)
        ipcq_take(self->at, numbers[FREE]);
    if (values[OWNED] != NULL && PyList_SetSlice(values[OWNED], 0, PY_SSIZE_T_MAX, NULL) < 0)
        PyErr_Clear(); /* cannot be, to empty a list needs no memory: GCOV_EXCL_LINE */
    while (olds > 0)
        Py_XDECREF(before[--olds]); /* last: anything may run here */
    Py_RETURN_TRUE;
}

/* -- the last move -------------------------------------------------------------------------------- */

/* One call that receives: what it decodes stands in `decoding`, beside it.  It stays there until the
 * step in which its result is the application's; if the call ends otherwise, it notes so in `over`: by a
 * single store, with which its handler of exceptions begins, so that no second exception can come before
 * it.  From then on what stands beside it is anybody's, and the next call that receives gets it. */
struct Call {
    PyObject_HEAD
    Receiver *receiver; /* of the next step; NULL: there is none */
    PyObject *result, *instead, *failure;
    char over;
};

static int call_traverse(Call *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->receiver);
    Py_VISIT(self->result);
    Py_VISIT(self->instead);
    Py_VISIT(self->failure);
    return 0;
}

static int call_clear(Call *self)
{
    Py_CLEAR(self->receiver);
    Py_CLEAR(self->result);
    Py_CLEAR(self->instead);
    Py_CLEAR(self->failure);
    return 0;
}

static void call_dealloc(Call *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    call_clear(self);
    type->tp_free(self);
    Py_DECREF(type);
}

PyObject *begin(Receiver *self, PyObject *Py_UNUSED(ignored))
{
    PyTypeObject *type = state_of(self)->call;
    return type->tp_alloc(type, 0);
}

static int belongs_to(PyObject *entry, const Call *call)
{
    return PyTuple_CheckExact(entry) && PyTuple_GET_SIZE(entry) == 2 &&
           PyTuple_GET_ITEM(entry, 0) == (PyObject *)call;
}

/* The end of a call: for a loop, whose step is `result`, or raises `failure`; what stands beside the call is
 * the application's then, but for `instead`, which is anybody's. */
PyObject *hand_over(Receiver *self, PyObject *const *args, Py_ssize_t n)
{
    if (n < 2 || n > 4 || Py_TYPE(args[0]) != state_of(self)->call)
        return PyErr_Format(PyExc_TypeError, "hand_over() takes a call, and its result");
    Call *call = (Call *)args[0];
    Py_XSETREF(call->result, Py_NewRef(args[1]));
    Py_XSETREF(call->instead, n > 2 && args[2] != Py_None ? Py_NewRef(args[2]) : NULL);
    Py_XSETREF(call->failure, n > 3 && args[3] != Py_None ? Py_NewRef(args[3]) : NULL);
    Py_XSETREF(call->receiver, (Receiver *)Py_NewRef(self));
    return Py_NewRef(call);
}

/* What is left in `decoding` without the call: a new list; NULL, with an exception, without memory. */
static PyObject *without(PyObject *decoding, Call *call, Py_ssize_t *found)
{
    PyObject *left, *entry = NULL;
    if (call->instead != NULL && (entry = PyTuple_Pack(2, call, call->instead)) == NULL)
        return NULL;
    left = PyList_New(0);
    *found = 0;
    for (Py_ssize_t i = 0; left != NULL && i < PyList_GET_SIZE(decoding); i++) {
        PyObject *each = PyList_GET_ITEM(decoding, i);
        int own = belongs_to(each, call);
        *found += own;
        each = own ? entry : each;
        if (each != NULL && PyList_Append(left, each) < 0)
            Py_CLEAR(left);
    }
    Py_XDECREF(entry);
    return left;
}

static PyObject *call_next(Call *self)
{
    Receiver *receiver = self->receiver;
    PyObject *decoding, *left, *suspect = NULL;
    Py_ssize_t found;
    if (receiver == NULL)
        return NULL;
    self->receiver = NULL; /* ours: there is one step, whatever runs below */
    do { /* once more if the garbage collector has changed it, which may run anything */
        if (!ready(receiver->decoding) || !PyList_CheckExact(receiver->decoding)) {
            Py_DECREF(receiver);
            return PyErr_Format(PyExc_TypeError, "hand_over() finds no list of calls");
        }
        decoding = Py_NewRef(receiver->decoding);
        left = without(decoding, self, &found);
        int changed = receiver->decoding != decoding;
        Py_DECREF(decoding); /* which the receiver still has if it is not changed */
        if (left != NULL && changed) {
            Py_CLEAR(left);
        } else if (left == NULL) {
            Py_DECREF(receiver);
            return NULL;
        }
    } while (left == NULL);
    receiver->decoding = left;
    receiver->turn++;
    if (found > 0 && (self->failure != NULL || self->instead == NULL)) {
        suspect = receiver->suspect;
        receiver->suspect = NULL;
    }
    self->over = 1;
    PyObject *result = self->result, *failure = self->failure;
    self->result = self->failure = NULL;
    Py_CLEAR(self->instead);
    Py_DECREF(decoding);
    Py_XDECREF(suspect);
    Py_DECREF(receiver);
    if (failure != NULL) {
        PyErr_SetObject((PyObject *)Py_TYPE(failure), failure);
        Py_DECREF(failure);
        Py_CLEAR(result);
    }
    return result;
}

static PyMemberDef call_members[] = {
    {"over", T_BOOL, offsetof(Call, over), 0, "Whether what stands beside it is anybody's."},
    {NULL},
};

TYPE(Call, Call, Py_TPFLAGS_DISALLOW_INSTANTIATION, COLLECTED(call), {Py_tp_members, call_members},
     {Py_tp_iter, PyObject_SelfIter}, {Py_tp_iternext, call_next})

int is_over(PyObject *entry)
{
    if (!PyTuple_CheckExact(entry) || PyTuple_GET_SIZE(entry) != 2)
        return 0;
    PyObject *call = PyTuple_GET_ITEM(entry, 0);
    return Py_TYPE(call)->tp_iternext == (iternextfunc)call_next && ((Call *)call)->over;
}
