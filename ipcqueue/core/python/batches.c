/* Batches: the records of a list, of an array, or of a buffer, as many as fit. */
#include "direct.h"

/* Records in one call of the core, and so published at once; the receiver begins meanwhile with
 * those before them.  Nothing here runs Python between its look at a list and the last use of it. */
enum { PIECES = 256 };

static int is_sequence(const PyObject *records)
{
    return PyList_CheckExact(records) || PyTuple_CheckExact(records);
}

/* Whether the bytes of a record can go as they are. */
static inline int is_simple(const Sender *self, int frames, const PyObject *record)
{
    if (!PyBytes_CheckExact(record))
        return 0;
    Py_ssize_t size = PyBytes_GET_SIZE(record);
    return frames ? size <= self->size : size == self->size;
}

/* How many of the first can.  A loop for each shape: `frames` is a constant wherever this is called, as
 * it is for pieces_from(). */
static inline Py_ssize_t simple_ones(const Sender *self, int frames, PyObject *const *items,
                                     Py_ssize_t n)
{
    Py_ssize_t count = 0;
    while (count < n && is_simple(self, frames, items[count]))
        count++;
    return count;
}

/* Whether those of all can. */
static int are_simple(const Sender *self, int frames, PyObject *records)
{
    if (!is_sequence(records) || !self->plain)
        return 0;
    PyObject **items = PySequence_Fast_ITEMS(records);
    Py_ssize_t n = PySequence_Fast_GET_SIZE(records);
    return n == (frames ? simple_ones(self, 1, items, n) : simple_ones(self, 0, items, n));
}

/* A record that can go as it is; return its bytes, 0 or more, or -1 if it cannot. */
static inline Py_ssize_t piece_of(const Sender *self, int frames, PyObject *record,
                                  struct ipcq_piece *piece)
{
    if (!is_simple(self, frames, record))
        return -1;
    piece->at = PyBytes_AS_STRING(record);
    piece->size = frames ? (uint64_t)PyBytes_GET_SIZE(record) : 1;
    return PyBytes_GET_SIZE(record);
}

/* The same for a message that is encoded: data, tag and flags (see Framed in _records/messages.py). */
static Py_ssize_t labelled_piece_of(const Sender *self, PyObject *framed, struct ipcq_piece *piece,
                                    struct ipcq_label *label)
{
    if (!PyTuple_Check(framed) || PyTuple_GET_SIZE(framed) != 3 ||
        !PyLong_Check(PyTuple_GET_ITEM(framed, 1)) || !PyLong_Check(PyTuple_GET_ITEM(framed, 2)))
        return -1;
    unsigned long tag = PyLong_AsUnsignedLong(PyTuple_GET_ITEM(framed, 1));
    unsigned long flags = PyLong_AsUnsignedLong(PyTuple_GET_ITEM(framed, 2));
    if (PyErr_Occurred() || tag > UINT32_MAX || flags > UINT8_MAX) {
        PyErr_Clear(); /* Python meets it again */
        return -1;
    }
    label->tag = (uint32_t)tag;
    label->flags = (uint32_t)flags;
    return piece_of(self, 1, PyTuple_GET_ITEM(framed, 0), piece);
}

/* Fill pieces with the first of `n` items, up to one that cannot go as it is; return how many, and add
 * their bytes to *moved. */
static inline uint64_t pieces_from(const Sender *self, int frames, PyObject *const *items, Py_ssize_t n,
                                   struct ipcq_piece *pieces, Py_ssize_t *moved)
{
    Py_ssize_t bytes = 0, count = 0;
    for (; count < n && count < PIECES && bytes < PIECE; count++) {
        Py_ssize_t size = piece_of(self, frames, items[count], &pieces[count]);
        if (size < 0)
            break;
        bytes += size;
    }
    *moved += bytes;
    return (uint64_t)count;
}

static uint64_t labelled_pieces_from(const Sender *self, PyObject *const *items, Py_ssize_t n,
                                     struct ipcq_piece *pieces, struct ipcq_label *labels,
                                     Py_ssize_t *moved)
{
    Py_ssize_t bytes = 0, count = 0;
    for (; count < n && count < PIECES && bytes < PIECE; count++) {
        Py_ssize_t size = labelled_piece_of(self, items[count], &pieces[count], &labels[count]);
        if (size < 0)
            break;
        bytes += size;
    }
    *moved += bytes;
    return (uint64_t)count;
}

static Py_ssize_t push_items(Sender *self, int frames, PyObject *records, Py_ssize_t start)
{
    struct ipcq_piece pieces[PIECES];
    struct ipcq_label labels[PIECES];
    int labelled = frames && !self->plain;
    PyObject **items = PySequence_Fast_ITEMS(records);
    Py_ssize_t at = start, end = PySequence_Fast_GET_SIZE(records);
    Py_ssize_t moved = 0;
    if (!usable(self->ring, self->known) || !(self->plain || frames))
        return 0;
    while (at < end && moved < IPCQ_MAX_BYTES) {
        uint64_t done, count =
            labelled ? labelled_pieces_from(self, items + at, end - at, pieces, labels, &moved)
            : frames ? pieces_from(self, 1, items + at, end - at, pieces, &moved)
                     : pieces_from(self, 0, items + at, end - at, pieces, &moved);
        int result = frames ? ipcq_frame_push_pieces(self->at, pieces, labelled ? labels : NULL,
                                                     count, &done)
                            : ipcq_push_pieces(self->at, pieces, count, &done);
        at += (Py_ssize_t)done;
        if (result != IPCQ_DONE || count == 0 || done < count)
            break; /* for Python to find out why */
    }
    return at - start;
}

/* Contiguous records, from one on. */
static Py_ssize_t push_memory(Sender *self, const char *memory, Py_ssize_t start, Py_ssize_t end)
{
    Py_ssize_t at = start, most = self->size < PIECE ? PIECE / self->size : 1;
    if (end - start > IPCQ_MAX_BYTES / self->size)
        end = start + (self->size < IPCQ_MAX_BYTES ? IPCQ_MAX_BYTES / self->size : 1);
    while (at < end && usable(self->ring, self->known)) {
        uint64_t done;
        struct ipcq_piece piece = {.at = memory + at * self->size,
                                   .size = (uint64_t)(end - at < most ? end - at : most)};
        int result = ipcq_push_pieces(self->at, &piece, 1, &done);
        at += (Py_ssize_t)done;
        if (result != IPCQ_DONE || done < piece.size)
            break;
    }
    return at - start;
}

static PyObject *push_run(Sender *self, int frames, PyObject *args)
{
    PyObject *records;
    Py_ssize_t start;
    if (!PyArg_ParseTuple(args, "On:push_run", &records, &start))
        return NULL;
    if (!is_sequence(records) || start < 0)
        return PyErr_Format(PyExc_TypeError, "push_run() takes a list or tuple, and a start in it");
    return PyLong_FromSsize_t(push_items(self, frames, records, start));
}

static PyObject *pieces_of(const Sender *self, int frames, PyObject *records)
{
    if (!are_simple(self, frames, records))
        Py_RETURN_NONE;
    return PySequence_Tuple(records);
}

static PyObject *push_all(Sender *self, int frames, PyObject *records)
{
    if (!usable(self->ring, self->known) || !are_simple(self, frames, records))
        Py_RETURN_NONE;
    Py_ssize_t done = push_items(self, frames, records, 0);
    if (done == PySequence_Fast_GET_SIZE(records))
        return PyLong_FromSsize_t(done);
    PyObject *all = PySequence_Tuple(records);
    return all == NULL ? NULL : Py_BuildValue("nN", done, all);
}

/* An array of the very type of a record: its memory; None if it is not. */
static PyObject *push_array(Sender *self, PyObject *array)
{
    PyObject *dtype = PyObject_GetAttrString(array, "dtype");
    if (dtype == NULL)
        return NULL;
    Py_DECREF(dtype); /* the array keeps it */
    Py_buffer view;
    if (dtype != self->dtype)
        Py_RETURN_NONE;
    if (PyObject_GetBuffer(array, &view, PyBUF_ND) < 0) { /* not contiguous, for instance */
        PyErr_Clear();
        Py_RETURN_NONE;
    }
    PyObject *result;
    if (view.ndim != 1 || view.itemsize != self->size || !usable(self->ring, self->known)) {
        result = Py_NewRef(Py_None);
    } else {
        Py_ssize_t done = push_memory(self, view.buf, 0, view.shape[0]);
        result = done == view.shape[0] ? PyLong_FromSsize_t(done)
                                       : Py_BuildValue("nO", done, Py_None);
    }
    PyBuffer_Release(&view);
    return result;
}

PyObject *slots_push_all(Sender *self, PyObject *records)
{
    if (ready(self->dtype) && (PyObject *)Py_TYPE(records) == self->array)
        return push_array(self, records);
    return push_all(self, 0, records);
}

PyObject *frames_push_all(Sender *self, PyObject *records)
{
    return push_all(self, 1, records);
}

PyObject *slots_push_run(Sender *self, PyObject *args)
{
    return push_run(self, 0, args);
}

PyObject *frames_push_run(Sender *self, PyObject *args)
{
    return push_run(self, 1, args);
}

PyObject *slots_pieces(Sender *self, PyObject *records)
{
    return pieces_of(self, 0, records);
}

PyObject *frames_pieces(Sender *self, PyObject *records)
{
    return pieces_of(self, 1, records);
}

PyObject *slots_push_packed(Sender *self, PyObject *args)
{
    Py_buffer view;
    Py_ssize_t start;
    if (!PyArg_ParseTuple(args, "y*n:push_packed", &view, &start))
        return NULL;
    Py_ssize_t done = start < 0 ? 0 : push_memory(self, view.buf, start, view.len / self->size);
    PyBuffer_Release(&view);
    return PyLong_FromSsize_t(done);
}
