/*
 * Mapping segments, and the parts of them that are not the ring: identity, the last word
 * of the owner, and the counters.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <sys/mman.h>

#include "layout.h"

/* Linux 5.14; older headers lack the names, older kernels answer EINVAL. */
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

void *ipcq_map(int fd, size_t size, int writable)
{
    void *at = mmap(NULL, size, writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED)
        return NULL;
    /* Shortage of memory is an error here, or a SIGBUS at some later record. */
    if (madvise(at, size, writable ? MADV_POPULATE_WRITE : MADV_POPULATE_READ) < 0 &&
        errno != EINVAL) {
        int error = errno;
        munmap(at, size);
        errno = error;
        return NULL;
    }
    return at;
}

void ipcq_unmap(void *segment, size_t size)
{
    munmap(segment, size);
}

void ipcq_read_identity(const void *segment, struct ipcq_identity *into)
{
    /* volatile: the compiler must not read a byte a second time after it was checked. */
    const volatile unsigned char *from = segment;
    unsigned char *to = (unsigned char *)into;
    for (size_t i = 0; i < sizeof *into; i++)
        to[i] = from[i];
}

void ipcq_write_identity(void *segment, const struct ipcq_identity *from)
{
    ((struct ipcq_segment *)segment)->identity = *from;
}

void ipcq_set_closed(void *segment)
{
    /* Release: whoever sees it also sees every record published before. */
    atomic_store_explicit(&((struct ipcq_segment *)segment)->closed, 1, memory_order_release);
}

int ipcq_is_closed(const void *segment)
{
    return atomic_load_explicit(&((const struct ipcq_segment *)segment)->closed,
                                memory_order_acquire) != 0;
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
