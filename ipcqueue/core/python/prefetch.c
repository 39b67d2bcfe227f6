/* Several records at once: prefetched for a loop, for who asks for many, or for a call that decodes. */
#include "direct.h"

/* Append plain records to a list; return how many.  No more than was there in the beginning: to
 * follow a sender record by record costs both more than to let it run on. */
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
            PyErr_Clear(); /* the slow path meets it again, if it is the first */
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

/* Records into `prefetched`, at most so many and about so many bytes, which are then what is left of them:
 * how many, -1 with an exception. */
Py_ssize_t prefetch(Receiver *self, Py_ssize_t most, Py_ssize_t *bytes)
{
    uint64_t count = 0;
    if (most <= 0 || !in_order(self) || ipcq_is_quiet(self->at, self->next))
        return 0;
    /* First of all, as the garbage collector may run anything here. */
    PyObject *list = PyList_New(0);
    if (list == NULL)
        return -1;
    if (has_prefetched(self) || !in_order(self)) {
        Py_DECREF(list);
        return 0;
    }
    if (self->plain) {
        Py_ssize_t n = gather(self, most, bytes, list);
        if (n > 0) {
            self->turn++;
            self->place = 0;
            Py_CLEAR(self->prefetched_raw); /* they are their bytes */
            Py_XSETREF(self->prefetched, Py_NewRef(list));
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
    self->turn++;
    Py_XSETREF(self->raw, Py_NewRef(data));
    PyObject *decode_many = Py_NewRef(self->decode_many); /* see call() */
    PyObject *number = PyLong_FromUnsignedLongLong((unsigned long long)count);
    PyObject *args[] = {data, number};
    PyObject *records = number == NULL ? NULL : PyObject_Vectorcall(decode_many, args, 2, NULL);
    Py_ssize_t n = 0;
    if (records == NULL && number == NULL) {
        PyErr_Clear(); /* GCOV_EXCL_LINE: numbers up to 64 need no memory; the slow path takes them */
    } else if (records == NULL) {
        if (is_raised(self, data, decode_many, args, 2))
            n = -1;
    } else if (PyList_CheckExact(records) && self->raw == data && empty_list(self->decoding) &&
               usable(self->ring, self->known) && /* else `raw` may be lent */
               !has_prefetched(self) && (uint64_t)PyList_GET_SIZE(records) == count) {
        Py_XSETREF(self->raw, PyBytes_FromStringAndSize(NULL, 0)); /* which needs no memory */
        self->turn++;
        self->place = 0;
        Py_XSETREF(self->prefetched_raw, Py_NewRef(data));
        Py_XSETREF(self->prefetched, Py_NewRef(records));
        n = PyList_GET_SIZE(records);
    }
    Py_DECREF(decode_many);
    Py_XDECREF(number);
    Py_XDECREF(records);
    Py_DECREF(data);
    return n;
}

/* -- for who asks for many: a loop of at most one step ---------------------------------------------- */

typedef struct {
    PyObject_HEAD
    Receiver *receiver; /* NULL: the loop is over */
    Py_ssize_t limit, bytes, enough;
} Batch;

static void batch_dealloc(Batch *self)
{
    PyTypeObject *type = Py_TYPE(self);
    Py_CLEAR(self->receiver);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *take_batch(Receiver *self, Batch *of)
{
    if (!self->plain || has_prefetched(self) || !in_order(self))
        return NULL;
    ipcq_see(self->at);
    Py_ssize_t bytes = of->bytes, n = prefetch(self, of->limit, &bytes);
    /* Where it stopped at what is not simple, Python goes on from there: in the next call, if these
     * are enough for one. */
    if (n <= 0 || !(n == of->limit || n >= of->enough || bytes <= 0 ||
                    ipcq_seen(self->at, self->next) == 0))
        return NULL;
    PyObject *records = self->prefetched;
    self->prefetched = NULL;
    return records;
}

static PyObject *batch_next(Batch *self)
{
    Receiver *receiver = self->receiver;
    if (receiver == NULL)
        return NULL;
    self->receiver = NULL;
    PyObject *records = take_batch(receiver, self);
    Py_DECREF(receiver);
    return records;
}

PyType_Spec Batch_spec = {
    .name = "ipcqueue._direct.Batch",
    .basicsize = sizeof(Batch),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = (PyType_Slot[]){{Py_tp_dealloc, batch_dealloc},
                             {Py_tp_iter, PyObject_SelfIter},
                             {Py_tp_iternext, batch_next},
                             {0, NULL}},
};

PyObject *many(Receiver *self, PyObject *const *args, Py_ssize_t n)
{
    Py_ssize_t numbers[3] = {0, PY_SSIZE_T_MAX, PY_SSIZE_T_MAX};
    if (n < 1 || n > 3)
        return PyErr_Format(PyExc_TypeError, "many() takes a limit, bytes, and what is enough");
    for (Py_ssize_t i = 0; i < n; i++) {
        numbers[i] = PyLong_AsSsize_t(args[i]);
        if (numbers[i] == -1 && PyErr_Occurred())
            return NULL;
    }
    PyTypeObject *type = state_of(self)->batch;
    Batch *batch = (Batch *)type->tp_alloc(type, 0);
    if (batch == NULL)
        return NULL;
    batch->receiver = (Receiver *)Py_NewRef(self);
    batch->limit = numbers[0];
    batch->bytes = numbers[1];
    batch->enough = numbers[2];
    return (PyObject *)batch;
}

/* -- for a call that decodes ------------------------------------------------------------------------ */

/* Copy records that were seen out of the ring; in pieces, so that the sender can go on. */
static Py_ssize_t copy_out(Receiver *self, char *into, Py_ssize_t count)
{
    Py_ssize_t got = 0, most = self->size < PIECE ? PIECE / self->size : 1;
    while (got < count) {
        uint64_t more, wanted = (uint64_t)(count - got < most ? count - got : most);
        if (ipcq_pop(self->at, into + got * self->size, wanted, self->next, &more) != IPCQ_DONE)
            break; /* cannot be, as they were there: GCOV_EXCL_LINE */
        self->next += more;
        got += (Py_ssize_t)more;
    }
    self->turn++;
    return got;
}

/* How many records there are, up to a limit: none if the core says something else, in *code. */
static Py_ssize_t count_of(Receiver *self, Py_ssize_t limit, int *code)
{
    const char *at;
    uint64_t run;
    if (ipcq_seen(self->at, self->next) != 0)
        ipcq_see(self->at); /* else to look is what ipcq_look does */
    *code = ipcq_look(self->at, self->next, &at, &run);
    if (*code != IPCQ_DONE)
        return 0;
    uint64_t there = ipcq_seen(self->at, self->next);
    return there < (uint64_t)limit ? (Py_ssize_t)there : limit;
}

/* The slow path: records to the end of `raw`, which may have some. */
PyObject *pull(Receiver *self, PyObject *limit)
{
    Py_ssize_t most = PyLong_AsSsize_t(limit);
    if (most == -1 && PyErr_Occurred())
        return NULL;
    int code = IPCQ_AGAIN;
    PyObject *old = ready(self->raw) ? self->raw : NULL;
    if (most <= 0 || !usable(self->ring, self->known) || has_prefetched(self) ||
        (old != NULL && !PyBytes_CheckExact(old)) || !ready(self->decoding) ||
        !PyList_CheckExact(self->decoding))
        return PyLong_FromLong(code);
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(self->decoding); i++)
        if (is_over(PyList_GET_ITEM(self->decoding, i)))
            return PyLong_FromLong(code); /* that is older, and nobody's any more */
    Py_ssize_t count = count_of(self, most, &code), before = old == NULL ? 0 : PyBytes_GET_SIZE(old);
    if (count == 0)
        return PyLong_FromLong(code);
    /* Bytes: no garbage collector, which may run anything, comes with these. */
    PyObject *raw = PyBytes_FromStringAndSize(NULL, before + count * self->size);
    if (raw == NULL)
        return NULL;
    if (before > 0)
        memcpy(PyBytes_AS_STRING(raw), PyBytes_AS_STRING(old), (size_t)before);
    copy_out(self, PyBytes_AS_STRING(raw) + before, count);
    Py_XSETREF(self->raw, raw);
    return PyLong_FromLong(IPCQ_DONE);
}

/* The fast path: records from the ring to a call, where nothing else is on the shelf.  No more than was
 * there in the beginning. */
PyObject *slots_fetch(Receiver *self, PyObject *const *args, Py_ssize_t n)
{
    int code;
    if (n != 2)
        return PyErr_Format(PyExc_TypeError, "fetch() takes a call and a limit");
    Py_ssize_t limit = PyLong_AsSsize_t(args[1]);
    if (limit == -1 && PyErr_Occurred())
        return NULL;
    if (limit <= 0 || ready(self->suspect) || has_prefetched(self) || !in_order(self))
        Py_RETURN_NONE;
    Py_ssize_t count = count_of(self, limit, &code);
    if (count == 0)
        Py_RETURN_NONE;
    /* All that needs memory; the garbage collector, which may run anything, only before the test. */
    PyObject *into = PyByteArray_FromStringAndSize(NULL, count * self->size);
    PyObject *entry = into == NULL ? NULL : PyTuple_Pack(2, args[0], into);
    PyObject *decoding = entry == NULL ? NULL : PyList_New(1);
    if (decoding == NULL) {
        Py_XDECREF(into);
        Py_XDECREF(entry);
        return NULL;
    }
    PyList_SET_ITEM(decoding, 0, entry);
    if (has_prefetched(self) || !in_order(self) ||
        ipcq_seen(self->at, self->next) < (uint64_t)count) {
        Py_DECREF(into);
        Py_DECREF(decoding);
        Py_RETURN_NONE;
    }
    copy_out(self, PyByteArray_AS_STRING(into), count);
    Py_XSETREF(self->decoding, decoding); /* instead of an empty one, so nothing runs */
    return into;
}
