/*
 * Lets one call of the C library fail, once: to be loaded before it (LD_PRELOAD).
 *
 * Only calls of the thread that is armed count and fail.  Which one fails, and how, is said before:
 * the n-th call of a function, by number in `names`; with an error number, or SHORT.
 *
 * A call that fails does nothing, as the kernel's do; but close(), which closes all the same and then
 * says what went wrong (close(2)).  munmap() is not here: of a whole mapping it cannot fail.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

/* Instead of an error: one byte is sent or received, of all there is; poll() finds nothing. */
enum { SHORT = -1 };

#define FUNCTIONS(F)                                                                              \
    F(accept4) F(bind) F(close) F(connect) F(epoll_create1) F(epoll_ctl) F(epoll_wait) F(eventfd) \
    F(fcntl) F(flock) F(fstat) F(ftruncate) F(getsockopt) F(ioctl) F(listen) F(lstat) F(madvise)           \
    F(memfd_create) F(mkdir) F(mmap) F(open) F(pipe2) F(poll) F(posix_fallocate)                  \
    F(pthread_create) F(readlink) F(recv) F(recvmsg) F(rename) F(send) F(sendmsg) F(setsockopt)   \
    F(shutdown) F(socket) F(socketpair) F(stat) F(unlink)

#define NUMBER(name) NUMBER_##name,
#define TEXT(name) #name,
enum { FUNCTIONS(NUMBER) COUNT };
const char *const names[] = {FUNCTIONS(TEXT) NULL};

static _Thread_local int armed;
static unsigned calls[COUNT];
static int which = -1, error;
static unsigned nth;
static unsigned failed;
static void (*seen)(int function, unsigned call, int detail);

/* `seen`, if not NULL, is called for each call that counts. */
void plan(int function, unsigned call, int how, void (*callback)(int, unsigned, int))
{
    for (int i = 0; i < COUNT; i++)
        calls[i] = 0;
    which = function;
    nth = call;
    error = how;
    failed = 0;
    seen = callback;
}

void arm(int on)
{
    armed = on;
}

/* How many calls were made to fail. */
unsigned times(void)
{
    return failed;
}

/* Whether this call is to fail, and how; `detail` tells calls apart, such as by a command. */
static int due(int function, int detail)
{
    if (!armed)
        return 0;
    unsigned call = calls[function]++;
    if (seen != NULL) {
        armed = 0;
        int before = errno;
        seen(function, call, detail);
        errno = before;
        armed = 1;
    }
    if (function != which || call != nth)
        return 0;
    failed++;
    return error;
}

#define REAL(name)                                                                                \
    static __typeof__(&name) real;                                                                \
    if (real == NULL)                                                                             \
        real = (__typeof__(&name))dlsym(RTLD_NEXT, #name);

/* A function that gives -1 when it fails, and is known to tests by another name where it is a
 * variant of one. */
#define WRAP_AS(result, name, known, detail, parameters, arguments)                               \
    result name parameters                                                                        \
    {                                                                                             \
        REAL(name)                                                                                \
        int how = due(NUMBER_##known, detail);                                                    \
        if (how != 0) {                                                                           \
            errno = how;                                                                          \
            return (result)-1;                                                                    \
        }                                                                                         \
        return real arguments;                                                                    \
    }
#define WRAP(name, detail, parameters, arguments)                                                 \
    WRAP_AS(int, name, name, detail, parameters, arguments)

WRAP(accept4, 0, (int fd, struct sockaddr *at, socklen_t *n, int flags), (fd, at, n, flags))
WRAP(bind, 0, (int fd, const struct sockaddr *at, socklen_t n), (fd, at, n))
WRAP(connect, 0, (int fd, const struct sockaddr *at, socklen_t n), (fd, at, n))
WRAP(epoll_create1, 0, (int flags), (flags))
WRAP(epoll_ctl, op, (int fd, int op, int of, struct epoll_event *event), (fd, op, of, event))
WRAP(epoll_wait, 0, (int fd, struct epoll_event *into, int n, int wait), (fd, into, n, wait))
WRAP(eventfd, 0, (unsigned start, int flags), (start, flags))
WRAP(flock, 0, (int fd, int how_), (fd, how_))
WRAP_AS(int, fstat, fstat, 0, (int fd, struct stat *into), (fd, into))
WRAP_AS(int, fstat64, fstat, 0, (int fd, struct stat64 *into), (fd, into))
WRAP_AS(int, ftruncate, ftruncate, 0, (int fd, off_t size), (fd, size))
WRAP_AS(int, ftruncate64, ftruncate, 0, (int fd, off64_t size), (fd, size))
WRAP(getsockopt, option, (int fd, int level, int option, void *value, socklen_t *n),
     (fd, level, option, value, n))
WRAP(listen, 0, (int fd, int backlog), (fd, backlog))
WRAP_AS(int, lstat, lstat, 0, (const char *path, struct stat *into), (path, into))
WRAP_AS(int, lstat64, lstat, 0, (const char *path, struct stat64 *into), (path, into))
WRAP(madvise, advice, (void *at, size_t size, int advice), (at, size, advice))
WRAP(memfd_create, 0, (const char *name, unsigned flags), (name, flags))
WRAP(mkdir, 0, (const char *path, mode_t mode), (path, mode))
WRAP_AS(void *, mmap, mmap, 0, (void *at, size_t size, int p, int flags, int fd, off_t from),
        (at, size, p, flags, fd, from))
WRAP_AS(void *, mmap64, mmap, 0, (void *at, size_t size, int p, int flags, int fd, off64_t from),
        (at, size, p, flags, fd, from))
WRAP(pipe2, 0, (int into[2], int flags), (into, flags))
WRAP_AS(ssize_t, readlink, readlink, 0, (const char *path, char *into, size_t size),
        (path, into, size))
WRAP(rename, 0, (const char *from, const char *to), (from, to))
WRAP_AS(ssize_t, send, send, 0, (int fd, const void *data, size_t size, int flags),
        (fd, data, size, flags))
WRAP(setsockopt, option, (int fd, int level, int option, const void *value, socklen_t n),
     (fd, level, option, value, n))
WRAP(shutdown, 0, (int fd, int how_), (fd, how_))
WRAP(socket, 0, (int family, int type, int protocol), (family, type, protocol))
WRAP(socketpair, 0, (int family, int type, int protocol, int into[2]),
     (family, type, protocol, into))
WRAP_AS(int, stat, stat, 0, (const char *path, struct stat *into), (path, into))
WRAP_AS(int, stat64, stat, 0, (const char *path, struct stat64 *into), (path, into))
WRAP(unlink, 0, (const char *path), (path))

/* Those with further arguments, of which a pointer holds any. */
#define VARIADIC(name, known, first, second)                                                      \
    int name(first one, second two, ...)                                                          \
    {                                                                                             \
        REAL(name)                                                                                \
        va_list rest;                                                                             \
        va_start(rest, two);                                                                      \
        void *three = va_arg(rest, void *);                                                       \
        va_end(rest);                                                                             \
        int how = due(NUMBER_##known, (int)two);                                                  \
        if (how != 0) {                                                                           \
            errno = how;                                                                          \
            return -1;                                                                            \
        }                                                                                         \
        return real(one, two, three);                                                             \
    }
VARIADIC(fcntl, fcntl, int, int)
VARIADIC(fcntl64, fcntl, int, int)
VARIADIC(ioctl, ioctl, int, unsigned long)
VARIADIC(open, open, const char *, int)
VARIADIC(open64, open, const char *, int)

/* Those that return an error number. */
#define NUMBERED(name, known, parameters, arguments)                                              \
    int name parameters                                                                           \
    {                                                                                             \
        REAL(name)                                                                                \
        int how = due(NUMBER_##known, 0);                                                         \
        return how != 0 ? how : real arguments;                                                   \
    }
NUMBERED(posix_fallocate, posix_fallocate, (int fd, off_t from, off_t size), (fd, from, size))
NUMBERED(posix_fallocate64, posix_fallocate, (int fd, off64_t from, off64_t size),
         (fd, from, size))
NUMBERED(pthread_create, pthread_create,
         (pthread_t *into, const pthread_attr_t *how_, void *(*run)(void *), void *argument),
         (into, how_, run, argument))

int close(int fd)
{
    REAL(close)
    int how = due(NUMBER_close, 0), result = real(fd);
    if (how == 0 || result < 0)
        return result;
    errno = how;
    return -1;
}

int poll(struct pollfd *fds, nfds_t n, int wait)
{
    REAL(poll)
    int how = due(NUMBER_poll, 0);
    if (how == 0)
        return real(fds, n, wait);
    for (nfds_t i = 0; i < n; i++)
        fds[i].revents = 0;
    if (how == SHORT)
        return 0;
    errno = how;
    return -1;
}

/* Whether the kernel could say that nothing comes: what has come is received first (unix(7)). */
static int possible(int fd, int how)
{
    REAL(ioctl)
    int waiting = 0;
    if (how != EAGAIN && how != ECONNRESET)
        return how;
    if (real(fd, FIONREAD, &waiting) < 0 || waiting == 0)
        return how;
    failed = 0;
    return 0;
}

ssize_t recv(int fd, void *into, size_t size, int flags)
{
    REAL(recv)
    int how = possible(fd, due(NUMBER_recv, flags));
    if (how > 0) {
        errno = how;
        return -1;
    }
    return real(fd, into, how == SHORT && size > 1 ? 1 : size, flags);
}

/* sendmsg() or recvmsg() of one byte. */
#define OF_ONE_BYTE(call, m, changed)                                                             \
    struct iovec one = {m->msg_iovlen > 0 ? m->msg_iov->iov_base : NULL, m->msg_iovlen > 0};      \
    struct msghdr changed = *m;                                                                   \
    changed.msg_iov = &one;                                                                       \
    changed.msg_iovlen = 1;                                                                       \
    ssize_t result = call(fd, &changed, flags);

ssize_t sendmsg(int fd, const struct msghdr *m, int flags)
{
    REAL(sendmsg)
    int how = due(NUMBER_sendmsg, 0);
    if (how == SHORT) {
        OF_ONE_BYTE(real, m, changed)
        return result;
    }
    if (how != 0) {
        errno = how;
        return -1;
    }
    return real(fd, m, flags);
}

ssize_t recvmsg(int fd, struct msghdr *m, int flags)
{
    REAL(recvmsg)
    int how = possible(fd, due(NUMBER_recvmsg, 0));
    if (how == SHORT) {
        OF_ONE_BYTE(real, m, changed)
        m->msg_namelen = changed.msg_namelen;
        m->msg_controllen = changed.msg_controllen;
        m->msg_flags = changed.msg_flags;
        return result;
    }
    if (how != 0) {
        errno = how;
        return -1;
    }
    return real(fd, m, flags);
}
