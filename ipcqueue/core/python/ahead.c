/* Several records at once: into `ahead`, for a loop or for who asks for many, or into the hands of
 * a call. */
#include "direct.h"

/* Append plain records to a list; return how many.  No more than was there in the beginning: to
 * follow a sender record by record costs both more than to let it go ahead. */
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
            PyErr_Clear(); /* the slow way meets it again, if it is the first */
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

/* Records into `ahead`, at most so many and about so many bytes, which are then what is left of them:
 * how many, -1 with an exception. */
Py_ssize_t take_ahead(Receiver *self, Py_ssize_t most, Py_ssize_t *bytes)
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
            Py_CLEAR(self->raw); /* they are their bytes */
            Py_XSETREF(self->ahead, Py_NewRef(list));
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
    Py_XSETREF(self->held, Py_NewRef(data));
    PyObject *decode_many = Py_NewRef(self->decode_many); /* see call() */
    PyObject *number = PyLong_FromUnsignedLongLong((unsigned long long)count);
    PyObject *args[] = {data, number};
    PyObject *records = number == NULL ? NULL : PyObject_Vectorcall(decode_many, args, 2, NULL);
    Py_ssize_t n = 0;
    if (records == NULL && number == NULL) {
        PyErr_Clear(); /* GCOV_EXCL_LINE: numbers up to 64 need no memory; the slow way takes them */
    } else if (records == NULL) {
        if (is_raised(self, data, decode_many, args, 2))
            n = -1;
    } else if (PyList_CheckExact(records) && self->held == data && empty_list(self->hands) &&
               usable(self->ring, self->known) && /* else `held` may be lent */
               !has_ahead(self) && (uint64_t)PyList_GET_SIZE(records) == count) {
        Py_XSETREF(self->held, PyBytes_FromStringAndSize(NULL, 0)); /* which needs no memory */
        self->place = 0;
        Py_XSETREF(self->raw, Py_NewRef(data));
        Py_XSETREF(self->ahead, Py_NewRef(records));
        n = PyList_GET_SIZE(records);
    }
    Py_DECREF(decode_many);
    Py_XDECREF(number);
    Py_XDECREF(records);
    Py_DECREF(data);
    return n;
}

PyObject *take_many(Receiver *self, PyObject *args)
{
    Py_ssize_t most, bytes = PY_SSIZE_T_MAX, many = PY_SSIZE_T_MAX;
    if (!PyArg_ParseTuple(args, "n|nn:take_many", &most, &bytes, &many))
        return NULL;
    if (!self->plain || has_ahead(self) || !in_order(self))
        Py_RETURN_FALSE;
    ipcq_see(self->at);
    Py_ssize_t n = take_ahead(self, most, &bytes);
    if (n < 0)
        return NULL;
    /* Where it stopped at what is not simple, Python goes on from there: in the next call, if these
     * are enough for one. */
    return PyBool_FromLong(n > 0 && (n == most || n >= many || bytes <= 0 ||
                                     ipcq_seen(self->at, self->next) == 0));
}

/* Move records from the ring into a bytearray, and that to the hands of a call: in one step, so that
 * they stand there, however many exceptions strike after it.  No more than was there in the
 * beginning; in pieces, so that the sender can go on. */
PyObject *slots_fetch(Receiver *self, PyObject *const *args, Py_ssize_t n)
{
    if (n != 3 || !PyList_CheckExact(args[0]))
        return PyErr_Format(PyExc_TypeError, "fetch() takes a list, a call and a limit");
    PyObject *hands = args[0], *call = args[1];
    Py_ssize_t limit = PyLong_AsSsize_t(args[2]);
    if (limit == -1 && PyErr_Occurred())
        return NULL;
    if (limit <= 0 || ready(self->suspect) || has_ahead(self) || !in_order(self))
        Py_RETURN_NONE;
    const char *at;
    uint64_t run;
    if (ipcq_seen(self->at, self->next) != 0)
        ipcq_see(self->at); /* else to look is what ipcq_look does */
    if (ipcq_look(self->at, self->next, &at, &run) != IPCQ_DONE)
        Py_RETURN_NONE;
    uint64_t there = ipcq_seen(self->at, self->next);
    Py_ssize_t count = there < (uint64_t)limit ? (Py_ssize_t)there : limit;
    /* All that needs memory; the garbage collector, which may run anything, only before the test. */
    PyObject *into = PyByteArray_FromStringAndSize(NULL, count * self->size);
    PyObject *held = into == NULL ? NULL : PyTuple_Pack(2, call, into);
    if (held == NULL || PyList_Append(hands, held) < 0) {
        Py_XDECREF(into);
        Py_XDECREF(held);
        return NULL;
    }
    Py_DECREF(held);
    if (has_ahead(self) || !in_order(self) || PyList_GET_SIZE(hands) != 1 ||
        ipcq_seen(self->at, self->next) < (uint64_t)count) {
        Py_DECREF(into);
        Py_RETURN_NONE;
    }
    Py_ssize_t got = 0, most = self->size < PIECE ? PIECE / self->size : 1;
    while (got < count) {
        uint64_t more, wanted = (uint64_t)(count - got < most ? count - got : most);
        char *to = PyByteArray_AS_STRING(into) + got * self->size;
        if (ipcq_pop(self->at, to, wanted, self->next, &more) != IPCQ_DONE)
            break; /* cannot be, as they were there: GCOV_EXCL_LINE */
        self->next += more;
        got += (Py_ssize_t)more;
    }
    if (got < count && PyByteArray_Resize(into, got * self->size) < 0)
        PyErr_Clear(); /* cannot be: GCOV_EXCL_LINE */
    Py_XSETREF(self->hands, Py_NewRef(hands)); /* instead of an empty one, so nothing runs */
    return into;
}
