/*
 * Mapping segments, and the parts of them beside the ring: identity, the owner's mark that it has
 * closed, and the counters.  Also the check whether a stranger's descriptor is a socket.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "layout.h"

/* Linux 5.14; older headers lack the names, older kernels answer EINVAL. */
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

/* The bytes of a segment that are loaded for reading: all of an ordinary one, and a few
 * milliseconds' work of a huge one.  The rest is loaded as it is read. */
enum { MAX_READ_AHEAD = 16 << 20 };

/* Load the pages now: otherwise a shortage of memory would be a SIGBUS at some later record. */
static int populate(void *at, size_t size, int writable)
{
    if (!writable && size > MAX_READ_AHEAD)
        size = MAX_READ_AHEAD;
    if (size > 0 && madvise(at, size, writable ? MADV_POPULATE_WRITE : MADV_POPULATE_READ) < 0)
        return errno == EINVAL ? 0 : -1;
    return 0;
}

int ipcq_map(char *at, int fd, size_t size, size_t mirrored, int writable)
{
    int protection = writable ? PROT_READ | PROT_WRITE : PROT_READ;
    if (mmap(at, size, protection, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED)
        return -1;
    if (mirrored && mmap(at + size, mirrored, protection, MAP_SHARED | MAP_FIXED, fd,
                         (off_t)(size - mirrored)) == MAP_FAILED)
        return -1;
    /* The pages exist by then, and reading maps many at a time, writable ones, too. */
    return populate(at, size, writable) < 0 || populate(at + size, mirrored, 0) < 0 ? -1 : 0;
}

void ipcq_copy(char *to, const char *from, size_t size)
{
    memcpy(to, from, size);
}

uint64_t ipcq_reserved(const void *segment, uint32_t line)
{
    const struct ipcq_segment *s = segment;
    uint64_t all = atomic_load_explicit(&s->intent, memory_order_relaxed) |
                   atomic_load_explicit(&s->oldest, memory_order_relaxed);
    if (line <= IPCQ_LAST_WAKE_LINE)
        all |= atomic_load_explicit(&shown_words(segment, line)->wait_whom, memory_order_relaxed);
    return all;
}

typedef uint64_t __attribute__((may_alias)) word;
static_assert(sizeof(struct ipcq_identity) % sizeof(word) == 0, "whole words are copied");
static_assert(sizeof(struct ipcq_names) % sizeof(word) == 0, "whole words are copied");

static void copy_once(word *into, const void *source, size_t size)
{
    /* volatile: the compiler must not read a word again after it was checked. */
    const volatile word *from = source;
    for (size_t i = 0; i < size / sizeof(word); i++)
        into[i] = from[i];
}

void ipcq_read_identity(const void *segment, struct ipcq_identity *into, struct ipcq_names *names)
{
    const struct ipcq_segment *from = segment;
    copy_once((word *)into, &from->identity, sizeof *into);
    copy_once((word *)names, &from->names, sizeof *names);
}

void ipcq_write_identity(void *segment, const struct ipcq_identity *from,
                         const struct ipcq_names *names)
{
    ((struct ipcq_segment *)segment)->identity = *from;
    ((struct ipcq_segment *)segment)->names = *names;
}

int ipcq_is_socket(int fd)
{
    int type;
    socklen_t size = sizeof type;
    return getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) == 0;
}

uint32_t ipcq_closed(const void *segment, uint32_t line)
{
    return atomic_load_explicit(&shown_words(segment, line)->closed, memory_order_acquire);
}

static void read_counts(const struct ipcq_counters *from, struct ipcq_counts *into)
{
    into->doorbells = atomic_load_explicit(&from->doorbells, memory_order_relaxed);
    into->waits = atomic_load_explicit(&from->waits, memory_order_relaxed);
    into->refused = atomic_load_explicit(&from->refused, memory_order_relaxed);
    into->last_active_ns = atomic_load_explicit(&from->last_active_ns, memory_order_relaxed);
}

void ipcq_sending_counts(const void *segment, struct ipcq_counts *into)
{
    read_counts(&((const struct ipcq_segment *)segment)->sending, into);
}

void ipcq_receiving_counts(const void *segment, struct ipcq_counts *into)
{
    read_counts(&((const struct ipcq_segment *)segment)->receiving, into);
}
