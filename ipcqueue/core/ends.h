#pragma once
/*
 * The two ends of a ring, as slots.c and frames.c build on them: one sender, one receiver, and
 * the rule for waking each other.  Indices count units: records in a ring of slots, bytes in a
 * ring of frames.
 *
 * Rules that everything here rests on:
 *
 *  - A side writes only its own segment.  Its own index lives in its private struct and is
 *    only ever *stored* to the segment, so nothing the peer does can change it.
 *  - A shared value of the peer is loaded once per operation into a local, checked, and only
 *    the local is used afterwards.  `head - tail <= capacity` is the whole check: an index
 *    that moves back inside that window harms only the peer that moved it.  What it has
 *    promised before holds all the same (space that is lent, records that are borrowed), so
 *    that the window never becomes larger than the ring: see look_for_space and ipcq_take.
 *  - A record is written first and published by the store of `head` after it; a slot is read
 *    first and given back by the store of `tail` after it.
 *
 * Memory order, with partners:
 *
 *    publish: store head (release)  <->  look_for_records: load head (acquire)
 *                        records are seen whole
 *    give_back: store tail (release)  <->  look_for_space: load tail (acquire)
 *                        memory is reused only after it was read
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


/* How long a sender may believe in a peer that it has not heard of.  A guess: well under the
 * 100 ms in which the death of a peer should be noticed, and one poll() in 50 ms is free. */
#define LIVENESS_INTERVAL_NS 50000000u

/*
 * How long an end looks for what is about to come before it sleeps.
 *
 * Waking a sleeper takes 70 to 95 us on a virtual machine, so looking pays where things come soon;
 * otherwise it only burns a processor.  What paid is known afterwards: after each time in vain the
 * next `penalty` waits go to sleep at once, twice as many as the last time; after one that was not,
 * none.  A peer that was just woken by our doorbell gets the time that waking takes on top: else
 * two sides that answer each other, once asleep, would never find out that they need not sleep.
 */
enum { WAKING_NS = 120000, MOST_PENALTY = 512 };

/*
 * Looking needs a processor of its own: where the peer shares ours, it cannot publish while we look, and
 * each record takes a whole time slice of the scheduler (2 to 10 ms).  So a thread that may run on one
 * processor only does not look at all if it is adaptive, and otherwise yields after each look.  The
 * caller asks for the same (`yields`) where it knows more: the peer is a thread of this process, or a
 * cgroup allows less than two processors.  The affinity can change, so it is read again at times.
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
 * Whether a receiver that has caught up with a stream lets it run ahead a little.
 *
 * Looking at each record as it comes takes the lines of `head` and of the ring from the sender's
 * cache each time, and halves its rate.  Four microseconds' patience get dozens of records for that
 * price, where there is a stream; whether there is shows in what has come meanwhile.
 */
enum { RUN_AHEAD_NS = 4000, FEW_SLOTS = 64, FEW_BYTES = 4096, WORTH = 10, MOST_SKIPPED = 1024 };

struct stream {
    uint32_t few; /* units: with more there is no need to wait */
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
    const struct ipcq_segment *peer;
    uint64_t capacity;
    uint32_t slot_size;
    uint32_t generation;
    const _Atomic uint32_t *forks; /* of this process; see forked() */
    int corrupt, gone;
    struct bell bell;
    int process;           /* a pidfd of the peer, or -1 */
    _Atomic uint64_t head; /* private truth; atomic only because spin and arm look at it */
    uint64_t tail;         /* the peer's index when last loaded */
    uint64_t peer_seen_ns;
    struct patience patience;
    uint64_t attached[IPCQ_MAX_ATTACHED]; /* where the last frames with descriptors end */
    uint64_t attached_count;
};

struct ipcq_receiver {
    struct ipcq_segment *own;
    const struct ipcq_segment *peer;
    uint64_t capacity;
    uint32_t slot_size;
    uint32_t generation;
    const _Atomic uint32_t *forks; /* of this process; see forked() */
    int corrupt;
    struct bell bell;
    _Atomic uint64_t tail; /* private truth, as above */
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

/* A forked child shares mappings and socket, and must not touch them.  The counter is bumped in
 * every child; an end carries its address, as this file may be compiled into several modules. */
static inline int forked(const _Atomic uint32_t *forks, uint32_t generation)
{
    return generation != atomic_load_explicit(forks, memory_order_relaxed);
}

/*
 * Wake the peer if it sleeps; called after each publish.
 *
 * The fence stands between our publish and our look at the peer's epoch; in announce() its
 * partner stands between the peer's epoch and the peer's second look at our index.  So at
 * least one side sees the other: either we see the odd epoch and ring, or the peer sees the
 * record and does not sleep.  Without it both stores may still sit in store buffers while
 * both loads return the old values, and the peer sleeps beside a full ring.
 *
 * One doorbell per epoch is enough.  It may be dropped when the socket is full, because then
 * bytes wait there and the peer's poll returns anyway; and when the peer is gone, which whoever
 * reads the socket finds out.  For no other reason: a kernel short of memory (ENOBUFS, ENOMEM)
 * is asked again, and at the next publish.
 */
static inline void ring_bell(struct bell *bell, const _Atomic uint32_t *peer_epoch, unsigned char opcode,
                      uint64_t index, struct ipcq_counters *counters)
{
    atomic_thread_fence(memory_order_seq_cst);
    uint32_t epoch = atomic_load_explicit(peer_epoch, memory_order_relaxed);
    if (!(epoch & 1u) || epoch == bell->rung)
        return;
    bell->rung = epoch;
    if (bell->socket < 0)
        return;
    unsigned char message[2] = {opcode, (unsigned char)index};
    count(&counters->doorbells);
    for (int tries = 0; tries < 1000; tries++) {
        if (send(bell->socket, message, sizeof message, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0 ||
            (errno != EINTR && errno != ENOBUFS && errno != ENOMEM))
            return;
        sched_yield();
    }
    bell->rung = epoch - 1; /* even, so no epoch one could ring for */
}

/* Refresh the private copy of the peer's tail; CORRUPT if it cannot be true: in the middle of a batch
 * `head` is ahead of what is published, and what is not cannot have been taken. */
static inline int look_for_space(struct ipcq_sender *s, uint64_t head)
{
    uint64_t tail = atomic_load_explicit(&s->peer->tail, memory_order_acquire);
    uint64_t published = atomic_load_explicit(&s->head, memory_order_relaxed);
    if (head - tail > s->capacity || published - tail > s->capacity) {
        s->corrupt = 1;
        return IPCQ_CORRUPT;
    }
    if (head - tail < head - s->tail) /* space once seen stays: some of it may be reserved */
        s->tail = tail;
    return IPCQ_DONE;
}

/* A receiver that only reads never hears a sender that only writes: ask now and then. */
static inline int peer_is_gone(struct ipcq_sender *s)
{
    if (s->gone || atomic_load_explicit(&s->peer->closed, memory_order_relaxed))
        return s->gone = 1; /* for ever, whatever the peer says later */
    uint64_t now = now_ns(CLOCK_MONOTONIC_COARSE);
    if (now - s->peer_seen_ns < LIVENESS_INTERVAL_NS || s->bell.socket < 0)
        return 0;
    struct pollfd p[] = {{.fd = s->bell.socket, .events = POLLRDHUP},
                         {.fd = s->process, .events = POLLIN}};
    if (poll(p, 2, 0) > 0)
        return 1; /* and peer_seen_ns stays, so that the next push says so, too */
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

/* Look at the peer's index, as all before `from` was seen; see struct stream. */
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
                          : stream->penalty < MOST_SKIPPED ? 2 * stream->penalty
                                                           : stream->penalty;
    stream->skip = stream->penalty;
    return IPCQ_DONE;
}

/* Show everything written so far, up to index `head`, to the peer; and wake it. */
static inline void publish(struct ipcq_sender *s, uint64_t head, int wake)
{
    atomic_store_explicit(&s->head, head, memory_order_relaxed);
    atomic_store_explicit(&s->own->head, head, memory_order_release);
    if (wake)
        ring_bell(&s->bell, &s->peer->wait_records, IPCQ_OPCODE_WRITE, head, &s->own->sending);
}

/* Let the peer write again over everything before index `tail`; and wake it. */
static inline void give_back(struct ipcq_receiver *r, uint64_t tail)
{
    atomic_store_explicit(&r->tail, tail, memory_order_relaxed);
    atomic_store_explicit(&r->own->tail, tail, memory_order_release);
    ring_bell(&r->bell, &r->peer->wait_space, IPCQ_OPCODE_READ, tail, &r->own->receiving);
}

static inline int sender_state(struct ipcq_sender *s)
{
    if (forked(s->forks, s->generation))
        return IPCQ_FORKED;
    if (s->corrupt)
        return IPCQ_CORRUPT;
    return peer_is_gone(s) ? IPCQ_GONE : IPCQ_DONE;
}

/* Whether `units` fit behind what is published: DONE, FULL, CORRUPT. */
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
    if (r->head - tail < from - tail) { /* the peer has taken back what it had published */
        r->corrupt = 1;
        return IPCQ_CORRUPT;
    }
    return r->head == from ? IPCQ_EMPTY : IPCQ_DONE;
}
