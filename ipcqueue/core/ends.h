#pragma once
/*
 * The two ends of a ring, the base of slots.c and frames.c: one sender, one receiver, and the
 * rule for waking each other.  Indices count units: records in a ring of slots, bytes in a ring
 * of frames.
 *
 * Everything here rests on these rules:
 *
 *  - A side writes only its own segment.  Its own index lives in its private struct and is only
 *    ever *stored* to the segment, so the peer cannot change it.
 *  - A shared value of the peer is loaded once per operation into a local variable and checked;
 *    afterwards only the local is used.  `head - tail <= capacity` is the whole check: an index
 *    that moves back inside that window harms only the peer that moved it.  What the peer has
 *    granted before stays valid (reserved space, borrowed records), so the window never becomes
 *    larger than the ring: see look_for_space and ipcq_take.
 *  - A record is written before the store of `head` that publishes it; a slot is read before the
 *    store of `tail` that gives it back.
 *
 * Memory order, with partners:
 *
 *    publish: store head (release)  <->  look_for_records: load head (acquire)
 *                        the receiver sees whole records
 *    give_back: store tail (release)  <->  look_for_space: load tail (acquire)
 *                        the sender reuses memory only after it was read
 *    ring_bell: fence (seq_cst)  <->  announce: fence (seq_cst)
 *                        see ring_bell
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#include "layout.h"


/* How long a sender may go without checking that its peer lives.  A guess: well under the 100 ms
 * in which the death of a peer should be noticed; one poll() in 50 ms costs nothing. */
#define LIVENESS_INTERVAL_NS 50000000u

/*
 * How long an end spins before it sleeps.
 *
 * Waking a sleeper takes 70 to 95 us on a virtual machine.  So spinning pays if records come soon;
 * otherwise it only burns a processor.  Experience decides: after a spin in vain the next `penalty`
 * waits sleep at once, and each spin in vain doubles `penalty`; a successful spin resets it to 0.
 * If our doorbell has just woken the peer, the time that waking takes is added.  Otherwise two
 * sides that answer each other, once asleep, would never find out that they need not sleep.
 */
enum { WAKING_NS = 120000, MAX_PENALTY = 512 };

/*
 * Spinning needs a processor of its own.  A peer that shares ours cannot publish while we spin, so
 * each record would take a whole time slice of the scheduler (2 to 10 ms).  If a thread may run on
 * one processor only, it does not spin at all if it is adaptive; otherwise it calls sched_yield()
 * after each look.  The caller asks for that (`yields`) if it knows more: the peer is a thread of
 * this process, or a cgroup allows less than two processors.  The affinity can change, so it is
 * read again every AFFINITY_NS.
 */
enum { AFFINITY_NS = 100000000 }; /* a guess: the call takes 0.2 us, so this costs nothing */

struct patience {
    uint64_t most; /* nanoseconds */
    int adaptive;
    int yields;
    _Atomic uint32_t alone;           /* on one processor, when last read */
    _Atomic uint64_t alone_seen; /* nanoseconds: when that was; 0: never */
    _Atomic uint32_t penalty, skip; /* atomic, as several threads may wait; each is a guess */
    _Atomic uint64_t rung;          /* doorbells sent when this was last asked */
};

/*
 * Whether a receiver that has caught up with a stream lets the sender get ahead a little.
 *
 * A receiver that reads each record as it comes takes the cache lines of `head` and of the ring
 * from the sender every time, and halves its rate.  In a stream, waiting four microseconds yields
 * dozens of records for one such transfer.  The number that came meanwhile shows whether it is one.
 */
enum { RUN_AHEAD_NS = 4000, FEW_SLOTS = 64, FEW_BYTES = 4096, WORTH = 10, MAX_SKIPPED = 1024 };

struct stream {
    uint32_t few; /* units: if more are there, do not wait */
    uint32_t skip, penalty;
};

/* The side of this process in one wait protocol, and the bell for the peer's. */
struct bell {
    int socket;
    uint32_t rung;  /* the peer's epoch for which the bell was last rung */
    uint32_t epoch; /* ours, as stored in our segment; odd while we wait */
};

struct ipcq_sender {
    struct ipcq_segment *own;
    struct ipcq_words *own_words;
    const struct ipcq_segment *peer;
    const struct ipcq_words *peer_words;
    uint64_t capacity;
    uint32_t slot_size;
    uint32_t generation;
    const _Atomic uint32_t *forks; /* of this process; see forked() */
    int corrupt, gone;
    struct bell bell;
    int process;           /* a pidfd of the peer, or -1 */
    _Atomic uint64_t head; /* the true value; atomic only because spin and arm read it */
    uint64_t tail;         /* the peer's index when last loaded */
    uint64_t peer_seen_ns;
    struct patience patience;
    uint64_t attached[IPCQ_MAX_ATTACHED]; /* where the last frames with descriptors end */
    uint64_t attached_count;
    struct ipcq_tally published; /* of frames */
};

struct ipcq_receiver {
    struct ipcq_segment *own;
    struct ipcq_words *own_words;
    const struct ipcq_segment *peer;
    const struct ipcq_words *peer_words;
    uint64_t capacity;
    uint32_t slot_size;
    uint32_t generation;
    const _Atomic uint32_t *forks; /* of this process; see forked() */
    int corrupt;
    struct bell bell;
    _Atomic uint64_t tail; /* the true value, as above */
    uint64_t head;         /* the peer's index when last loaded */
    struct patience patience;
    struct stream stream;
};

static inline uint64_t now_ns(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static inline void count(_Atomic uint64_t *counter)
{
    /* Only the owner writes its counters, so no read-modify-write is needed. */
    atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + 1,
                          memory_order_relaxed);
}

/* A forked child shares mappings and socket, and must not use them.  Every child increments the
 * counter.  An end holds its address, because this file is compiled into several modules. */
static inline int forked(const _Atomic uint32_t *forks, uint32_t generation)
{
    return generation != atomic_load_explicit(forks, memory_order_relaxed);
}

/* Send a doorbell; return 0 if the kernel was short of memory for it all the time. */
static inline int knock(int socket, unsigned char opcode, uint64_t index)
{
    unsigned char message[2] = {opcode, (unsigned char)index};
    for (int tries = 0; tries < 1000; tries++) {
        if (send(socket, message, sizeof message, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0 ||
            (errno != EINTR && errno != ENOBUFS && errno != ENOMEM))
            return 1;
        sched_yield();
    }
    return 0;
}

/*
 * Wake the peer if it sleeps; called after each publish.
 *
 * This fence is between our publish and our load of the peer's epoch.  Its partner in announce()
 * is between the store of the peer's epoch and the peer's second look at our index.  So at least
 * one side sees the other: either we see the odd epoch and ring, or the peer sees the record and
 * does not sleep.  Without the fences both stores may still be in store buffers while both loads
 * return the old values: the peer would sleep beside a full ring.
 *
 * One doorbell per epoch is enough.  It may be dropped if the socket is full, because the bytes in
 * it make the peer's poll() return anyway; and if the peer is gone, which the reader of the socket
 * finds out.  It may not be dropped for any other reason: if the kernel is short of memory
 * (ENOBUFS, ENOMEM), we try again, and once more at the next publish.
 */
static inline void ring_bell(struct bell *bell, const _Atomic uint32_t *peer_epoch,
                             unsigned char opcode, uint64_t index, struct ipcq_counters *counters)
{
    atomic_thread_fence(memory_order_seq_cst);
    uint32_t epoch = atomic_load_explicit(peer_epoch, memory_order_relaxed);
    if (!(epoch & 1u) || epoch == bell->rung)
        return;
    bell->rung = epoch;
    if (bell->socket < 0)
        return;
    count(&counters->doorbells);
    if (!knock(bell->socket, opcode, index))
        bell->rung = epoch - 1; /* even, so it never equals an epoch that asks for a doorbell */
}

/* Refresh our copy of the peer's tail; CORRUPT if it is impossible.  In the middle of a batch
 * `head` is ahead of the published index, and the peer cannot have taken what is not published. */
static inline int look_for_space(struct ipcq_sender *s, uint64_t head)
{
    uint64_t tail = atomic_load_explicit(&s->peer->tail, memory_order_acquire);
    uint64_t published = atomic_load_explicit(&s->head, memory_order_relaxed);
    if (head - tail > s->capacity || published - tail > s->capacity) {
        s->corrupt = 1;
        return IPCQ_CORRUPT;
    }
    if (head - tail < head - s->tail) /* never shrink the space: some may be reserved already */
        s->tail = tail;
    return IPCQ_DONE;
}

/* Whether the owner of these words will take no more, or will publish no more.  So does one whose
 * word has other bits than there are: Endpoint finds out.  Relaxed: who goes by it looks again. */
static inline int takes_none(const struct ipcq_words *peer)
{
    return (atomic_load_explicit(&peer->closed, memory_order_relaxed) & ~(uint32_t)IPCQ_NO_MORE) != 0;
}

static inline int sends_none(const struct ipcq_words *peer)
{
    return (atomic_load_explicit(&peer->closed, memory_order_relaxed) & ~(uint32_t)IPCQ_TAKES_NONE) !=
           0;
}

/* Nothing tells a sender that only writes that its receiver has died: so ask at intervals.
 * Relaxed: `closed` orders nothing here, since the sender reads none of the peer's records. */
static inline int peer_is_gone(struct ipcq_sender *s)
{
    if (s->gone || takes_none(s->peer_words))
        return s->gone = 1; /* for ever, whatever the peer's segment says later */
    uint64_t now = now_ns(CLOCK_MONOTONIC_COARSE);
    if (now - s->peer_seen_ns < LIVENESS_INTERVAL_NS || s->bell.socket < 0)
        return 0;
    struct pollfd p[] = {{.fd = s->bell.socket, .events = POLLRDHUP},
                         {.fd = s->process, .events = POLLIN}};
    if (poll(p, 2, 0) > 0)
        return 1; /* peer_seen_ns stays unchanged, so the next push returns GONE, too */
    s->peer_seen_ns = now;
    atomic_store_explicit(&s->own->sending.last_active_ns, now, memory_order_relaxed);
    return 0;
}

static inline int look_for_records(struct ipcq_receiver *r, uint64_t tail)
{
    uint64_t head = atomic_load_explicit(&r->peer->head, memory_order_acquire);
    if (head - tail > r->capacity) {
        r->corrupt = 1;
        return IPCQ_CORRUPT;
    }
    r->head = head;
    return IPCQ_DONE;
}

static inline void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("isb");
#endif
}

/* Load the peer's index, because everything before `from` was seen; see struct stream. */
static inline int look_beyond(struct ipcq_receiver *r, uint64_t tail, uint64_t from)
{
    if (look_for_records(r, tail) != IPCQ_DONE)
        return IPCQ_CORRUPT;
    uint64_t n = r->head - from;
    struct stream *stream = &r->stream;
    if (n == 0 || n >= stream->few)
        return IPCQ_DONE;
    if (stream->skip > 0) {
        stream->skip--;
        return IPCQ_DONE;
    }
    uint64_t end = now_ns(CLOCK_MONOTONIC) + RUN_AHEAD_NS;
    while (now_ns(CLOCK_MONOTONIC) < end)
        relax();
    if (look_for_records(r, tail) != IPCQ_DONE)
        return IPCQ_CORRUPT;
    if (r->head - from - n >= stream->few / WORTH)
        stream->penalty = 0;
    else
        stream->penalty = stream->penalty == 0              ? 1
                          : stream->penalty < MAX_SKIPPED ? 2 * stream->penalty
                                                           : stream->penalty;
    stream->skip = stream->penalty;
    return IPCQ_DONE;
}

/* Make everything up to index `head` visible to the peer, and wake it. */
static inline void publish(struct ipcq_sender *s, uint64_t head, int wake)
{
    atomic_store_explicit(&s->head, head, memory_order_relaxed);
    atomic_store_explicit(&s->own->head, head, memory_order_release);
    if (wake)
        ring_bell(&s->bell, &s->peer_words->wait_records, IPCQ_OPCODE_WRITE, head, &s->own->sending);
}

/* Let the peer overwrite everything before index `tail`, and wake it. */
static inline void give_back(struct ipcq_receiver *r, uint64_t tail)
{
    atomic_store_explicit(&r->tail, tail, memory_order_relaxed);
    atomic_store_explicit(&r->own->tail, tail, memory_order_release);
    ring_bell(&r->bell, &r->peer_words->wait_space, IPCQ_OPCODE_READ, tail, &r->own->receiving);
}

static inline int sender_state(struct ipcq_sender *s)
{
    if (forked(s->forks, s->generation))
        return IPCQ_FORKED;
    if (s->corrupt)
        return IPCQ_CORRUPT;
    return peer_is_gone(s) ? IPCQ_GONE : IPCQ_DONE;
}

/* Whether `units` fit behind index `head`: DONE, FULL, CORRUPT. */
static inline int make_space(struct ipcq_sender *s, uint64_t head, uint64_t units)
{
    if (s->capacity - (head - s->tail) >= units)
        return IPCQ_DONE;
    if (look_for_space(s, head) != IPCQ_DONE)
        return IPCQ_CORRUPT;
    return s->capacity - (head - s->tail) >= units ? IPCQ_DONE : IPCQ_FULL;
}

/* Whether anything waits at index `from`: DONE, EMPTY, AGAIN, FORKED, CORRUPT. */
static inline int look_from(struct ipcq_receiver *r, uint64_t from)
{
    if (forked(r->forks, r->generation))
        return IPCQ_FORKED;
    if (r->corrupt)
        return IPCQ_CORRUPT;
    uint64_t tail = atomic_load_explicit(&r->tail, memory_order_relaxed);
    if ((int64_t)(from - tail) < 0)
        return IPCQ_AGAIN;
    if (r->head == from && look_beyond(r, tail, from) != IPCQ_DONE)
        return IPCQ_CORRUPT;
    if (r->head - tail < from - tail) { /* the peer has moved its head back behind `from` */
        r->corrupt = 1;
        return IPCQ_CORRUPT;
    }
    return r->head == from ? IPCQ_EMPTY : IPCQ_DONE;
}
