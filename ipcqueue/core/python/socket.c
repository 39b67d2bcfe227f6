/* What comes over the socket beside a ring: bytes, and descriptors. */
#include "direct.h"

#include <errno.h>
#include <stdalign.h>
#include <sys/socket.h>
#include <unistd.h>

#ifndef SCM_PIDFD /* Linux 6.5 */
#define SCM_PIDFD 4
#endif

enum { MAX_BYTES = 4096, MAX_CONTROL = 4096 };

/* What recvmsg() gave, in a bytearray of its caller's: there it waits when memory is too short for
 * Python to have it, descriptors and all. */
struct room {
    ssize_t bytes; /* 0: it is empty */
    size_t control_bytes;
    int flags;
    char data[MAX_BYTES];
    alignas(struct cmsghdr) char control[MAX_CONTROL];
};

static struct room *room_of(PyObject *object)
{
    if (PyByteArray_GET_SIZE(object) == sizeof(struct room))
        return (struct room *)(void *)PyByteArray_AS_STRING(object);
    PyErr_SetString(PyExc_ValueError, "not a bytearray of ROOM bytes");
    return NULL;
}

static struct msghdr ancillary_in(struct room *room)
{
    return (struct msghdr){.msg_control = room->control, .msg_controllen = room->control_bytes};
}

/* (level, type, data) of each piece of ancillary data, as socket.recvmsg() gives them. */
static PyObject *ancillary_of(struct msghdr *m)
{
    PyObject *list = PyList_New(0);
    for (struct cmsghdr *c = CMSG_FIRSTHDR(m); list != NULL && c != NULL; c = CMSG_NXTHDR(m, c)) {
        char *data = (char *)CMSG_DATA(c);
        /* Where the kernel has cut something off, it says so in this length. */
        Py_ssize_t size = (char *)c + c->cmsg_len - data;
        PyObject *item = Py_BuildValue("(iiy#)", c->cmsg_level, c->cmsg_type, data, size);
        if (item == NULL || PyList_Append(list, item) < 0)
            Py_CLEAR(list);
        Py_XDECREF(item);
    }
    return list;
}

/* Only where memory was short, so here and now; but a socket does not linger. */
static void close_all(struct msghdr *m)
{
    struct linger none = {.l_onoff = 0, .l_linger = 0};
    for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c != NULL; c = CMSG_NXTHDR(m, c)) {
        /* And a pidfd, where the application has asked the kernel for that. */
        int has = c->cmsg_level == SOL_SOCKET &&
                  (c->cmsg_type == SCM_RIGHTS || c->cmsg_type == SCM_PIDFD);
        size_t n = has ? (c->cmsg_len - CMSG_LEN(0)) / sizeof(int) : 0;
        for (size_t i = 0; i < n; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
            (void)setsockopt(fd, SOL_SOCKET, SO_LINGER, &none, sizeof none);
            close(fd);
        }
    }
}

/* Whether there is nothing but doorbells. */
static int only_doorbells(const char *data, ssize_t n)
{
    for (ssize_t i = 0; i < n; i += 2)
        if (data[i] != IPCQ_OPCODE_WRITE && data[i] != IPCQ_OPCODE_READ)
            return 0;
    return n > 0 && n % 2 == 0;
}

static ssize_t receive_message(int fd, struct msghdr *m, int flags)
{
    ssize_t n;
    do
        n = recvmsg(fd, m, flags | MSG_DONTWAIT);
    while (n < 0 && errno == EINTR);
    return n;
}

/* What a read would bring, with nothing taken and no descriptor made: where it says MSG_CTRUNC,
 * some come with the last of these bytes. */
static ssize_t peek_into(struct room *room, int fd, int *carries)
{
    struct iovec bytes = {room->data, sizeof room->data};
    struct msghdr m = {.msg_iov = &bytes, .msg_iovlen = 1};
    ssize_t n = receive_message(fd, &m, MSG_PEEK);
    *carries = n > 0 && (m.msg_flags & MSG_CTRUNC) != 0;
    return n;
}

/* Read up to `size` bytes; and `most` descriptors and one more (or few: the kernel rounds), or any
 * number of them if it is negative. */
static int read_into(struct room *room, int fd, int flags, size_t size, int most)
{
    struct iovec bytes = {room->data, size};
    size_t space = most < 0 ? sizeof room->control : CMSG_SPACE(((size_t)most + 1) * sizeof(int));
    struct msghdr m = {.msg_iov = &bytes,
                       .msg_iovlen = 1,
                       .msg_control = room->control,
                       .msg_controllen = space < sizeof room->control ? space
                                                                      : sizeof room->control};
    ssize_t n = receive_message(fd, &m, flags);
    if (n < 0)
        return -1;
    room->bytes = n;
    room->control_bytes = m.msg_controllen;
    room->flags = m.msg_flags;
    return 0;
}

/* As list.append(socket.recvmsg(…)) without waiting, in one step; and the interpreter is kept, as
 * getting it back from a thread that computes takes 5 ms.  Doorbells have done what they are for: if
 * nothing else came, and `whole` says that no half a message came before, return their bytes, and
 * append nothing.  Where memory is short, what came stays in the room, and is what comes next.
 *
 * `most`: how many descriptors a message may bring; more are for the kernel to close, except for one
 * that tells.  `wary`: if descriptors come next, read nothing, and return the last byte that comes
 * with them, which says how many, below zero: -1 for 0. */
static PyObject *receive(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    if (count != 7 || !PyLong_Check(args[1]) || !PyList_Check(args[3]) ||
        !PyByteArray_Check(args[4]) || !PyLong_Check(args[5]))
        return PyErr_Format(PyExc_TypeError, "receive() takes what its documentation says");
    PyObject *into = args[3];
    struct room *room = room_of(args[4]);
    int fd = room == NULL ? -1 : PyObject_AsFileDescriptor(args[0]), carries;
    if (fd < 0)
        return NULL;
    int flags = (int)PyLong_AsLong(args[1]), most = (int)PyLong_AsLong(args[5]);
    int whole = args[2] == Py_True, wary = args[6] == Py_True;
    if (room->bytes == 0) {
        size_t size = sizeof room->data;
        if (wary) {
            ssize_t there = peek_into(room, fd, &carries);
            if (there < 0)
                return PyErr_SetFromErrno(PyExc_OSError); /* what comes by now may bring some */
            if (there > 0 && carries)
                return PyLong_FromLong(-1L - (unsigned char)room->data[there - 1]);
            if (there > 0)
                size = (size_t)there; /* what comes behind, too */
        }
        if (read_into(room, fd, flags, size, most) < 0)
            return PyErr_SetFromErrno(PyExc_OSError);
    }
    ssize_t n = room->bytes;
    struct msghdr m = ancillary_in(room);
    if (whole && m.msg_controllen == 0 && !(room->flags & MSG_CTRUNC) &&
        only_doorbells(room->data, n)) {
        room->bytes = 0;
        return PyLong_FromSsize_t(n);
    }
    PyObject *ancillary = ancillary_of(&m);
    PyObject *message = ancillary == NULL ? NULL
                                          : Py_BuildValue("(y#NiO)", room->data, n, ancillary,
                                                          room->flags, Py_None);
    int result = message == NULL ? -1 : PyList_Append(into, message);
    Py_XDECREF(message);
    if (result < 0)
        return NULL;
    room->bytes = 0;
    Py_RETURN_NONE;
}

static PyObject *waiting(PyObject *Py_UNUSED(module), PyObject *place)
{
    struct room *room = PyByteArray_CheckExact(place) ? room_of(place) : NULL;
    return room == NULL ? PyErr_Format(PyExc_TypeError, "waiting() takes a room")
                        : PyLong_FromSsize_t(room->bytes);
}

static PyObject *drop(PyObject *Py_UNUSED(module), PyObject *place)
{
    struct room *room = PyByteArray_CheckExact(place) ? room_of(place) : NULL;
    if (room == NULL)
        return PyErr_Format(PyExc_TypeError, "drop() takes a room");
    struct msghdr m = ancillary_in(room);
    if (room->bytes != 0)
        close_all(&m);
    room->bytes = 0;
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"receive", (PyCFunction)(void (*)(void))receive, METH_FASTCALL,
     "receive(sock, flags, whole, into, room, most, wary): append the result of a recvmsg() "
     "that does not wait to a list; or return the bytes that came, if they are doorbells and nothing "
     "else; or, if wary, a number below 0 if descriptors come next."},
    {"waiting", waiting, METH_O,
     "waiting(room): how many bytes stand there, as memory was too short to append them."},
    {"drop", drop, METH_O, "drop(room): forget them, and close the descriptors that came with them."},
    {NULL},
};

/* What of this the module has: -1 with an exception. */
int add_socket(PyObject *module)
{
    return PyModule_AddFunctions(module, functions) < 0
               ? -1
               : PyModule_AddIntConstant(module, "ROOM", sizeof(struct room));
}
