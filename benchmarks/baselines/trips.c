/*
 * Round trips over a socket with nothing but send and recv in between: what no round trip of
 * processes that sleep can be faster than, with or without Python.
 *
 * The GIL is kept: no other thread is there to have it, and giving it back costs time that is
 * Python's and not the socket's.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#define LARGEST 65536 /* bytes of a message */

/* Not perf_counter_ns, but the clock that it reads. */
static int64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

static int failed(ssize_t done, size_t size)
{
    if (done == (ssize_t)size)
        return 0;
    if (done < 0)
        PyErr_SetFromErrno(PyExc_OSError);
    else
        PyErr_SetString(PyExc_ConnectionError, "the other side has closed");
    return -1;
}

static int receive(int fd, char *into, size_t size)
{
    size_t got = 0;
    while (got < size) {
        ssize_t more = recv(fd, into + got, size - got, MSG_WAITALL);
        if (more > 0)
            got += (size_t)more;
        else if (more == 0 || errno != EINTR)
            return failed(more, size);
        else if (PyErr_CheckSignals() < 0)
            return -1;
    }
    return 0;
}

/* A message that fits the socket's buffer goes whole, or not at all. */
static int give(int fd, const char *message, size_t size)
{
    for (;;) {
        ssize_t sent = send(fd, message, size, MSG_NOSIGNAL);
        if (sent >= 0 || errno != EINTR)
            return failed(sent, size);
        if (PyErr_CheckSignals() < 0)
            return -1;
    }
}

/* The bytes of a message of a list that nothing else changes meanwhile. */
static const char *message_of(PyObject *messages, Py_ssize_t index, size_t *size)
{
    PyObject *message = PyList_GET_ITEM(messages, index);
    if (!PyBytes_CheckExact(message) || PyBytes_GET_SIZE(message) > LARGEST) {
        PyErr_Format(PyExc_ValueError, "messages are up to %d bytes", LARGEST);
        return NULL;
    }
    *size = (size_t)PyBytes_GET_SIZE(message);
    return PyBytes_AS_STRING(message);
}

static int compare(const char *got, const char *message, size_t size, Py_ssize_t index)
{
    if (memcmp(got, message, size) == 0)
        return 0;
    PyErr_Format(PyExc_ValueError, "something else came than message %zd of the turn", index);
    return -1;
}

static int ask_one(int fd, PyObject *messages, Py_ssize_t index, int64_t *taken)
{
    static char answer[LARGEST];
    size_t size;
    const char *message = message_of(messages, index, &size);
    if (message == NULL)
        return -1;
    int64_t started = now();
    if (give(fd, message, size) < 0 || receive(fd, answer, size) < 0)
        return -1;
    *taken = now() - started;
    return compare(answer, message, size, index);
}

/* ask(descriptor, messages): send each, wait for the same to come back; nanoseconds of each. */
static PyObject *ask(PyObject *module, PyObject *arguments)
{
    int fd;
    PyObject *messages;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "iO!", &fd, &PyList_Type, &messages))
        return NULL;
    Py_ssize_t count = PyList_GET_SIZE(messages);
    PyObject *durations = PyList_New(count);
    for (Py_ssize_t index = 0; durations != NULL && index < count; index++) {
        int64_t taken;
        PyObject *number = NULL;
        if (ask_one(fd, messages, index, &taken) == 0)
            number = PyLong_FromLongLong(taken);
        if (number == NULL)
            Py_CLEAR(durations);
        else
            PyList_SET_ITEM(durations, index, number);
    }
    return durations;
}

/* answer(descriptor, messages): send back each when it came. */
static PyObject *answer(PyObject *module, PyObject *arguments)
{
    static char got[LARGEST];
    int fd;
    PyObject *messages;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "iO!", &fd, &PyList_Type, &messages))
        return NULL;
    for (Py_ssize_t index = 0; index < PyList_GET_SIZE(messages); index++) {
        size_t size;
        const char *message = message_of(messages, index, &size);
        if (message == NULL || receive(fd, got, size) < 0
            || compare(got, message, size, index) < 0 || give(fd, got, size) < 0)
            return NULL;
    }
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"ask", ask, METH_VARARGS, "Send each message and wait for it to come back; return the nanoseconds."},
    {"answer", answer, METH_VARARGS, "Send each message back when it came."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "trips",
    .m_methods = functions,
};

PyMODINIT_FUNC PyInit_trips(void)
{
    return PyModuleDef_Init(&definition);
}
