/*
 * The ring: one sender, one receiver, and the rule for waking each other.
 *
 * Rules that everything here rests on:
 *
 *  - A side writes only its own segment.  Its own index lives in its private struct and is
 *    only ever *stored* to the segment, so nothing the peer does can change it.
 *  - A shared value of the peer is loaded once per operation into a local, checked, and only
 *    the local is used afterwards.  `head - tail <= capacity` is the whole check: an index
 *    that moves back inside that window harms only the peer that moved it.
 *  - A record is written first and published by the store of `head` after it; a slot is read
 *    first and given back by the store of `tail` after it.
 *
 * Memory order, with partners:
 *
 *    push: store head (release)  <->  pop:  load head (acquire)    records are seen whole
 *    pop:  store tail (release)  <->  push: load tail (acquire)    slots are reused only after
 *                                                                   they were read
 *    ring_bell: fence (seq_cst)  <->  arm:  fence (seq_cst)         see ring_bell
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#include "layout.h"

enum { OPCODE_WRITE = 1, OPCODE_READ = 2 }; /* as in _control.py */

/* How long a sender may believe in a peer that it has not heard of.  A guess: well under the
 * 100 ms in which the death of a peer should be noticed, and one poll() in 50 ms is free. */
#define LIVENESS_INTERVAL_NS 50000000u

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
    int corrupt;
    struct bell bell;
    _Atomic uint64_t head; /* private truth; atomic only because spin and arm look at it */
    uint64_t tail;         /* the peer's index when last loaded */
    uint64_t peer_seen_ns;
};

struct ipcq_receiver {
    struct ipcq_segment *own;
    const struct ipcq_segment *peer;
    uint64_t capacity;
    uint32_t slot_size;
    uint32_t generation;
    int corrupt;
    struct bell bell;
    _Atomic uint64_t tail; /* private truth, as above */
    uint64_t head;         /* the peer's index when last loaded */
};

static uint64_t now_ns(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void count(_Atomic uint64_t *counter)
{
    /* Only the owner writes its counters, so no read-modify-write is needed. */
    atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + 1,
                          memory_order_relaxed);
}

/* -- forks: a child shares the mappings and the socket, and must not touch them ---------- */

static _Atomic uint32_t fork_generation;
static pthread_once_t watching_forks = PTHREAD_ONCE_INIT;

static void after_fork_in_child(void)
{
    atomic_fetch_add_explicit(&fork_generation, 1, memory_order_relaxed);
}

static void watch_forks(void)
{
    pthread_atfork(NULL, NULL, after_fork_in_child);
}

uint32_t ipcq_fork_generation(void)
{
    pthread_once(&watching_forks, watch_forks);
    return atomic_load_explicit(&fork_generation, memory_order_relaxed);
}

static int forked(uint32_t generation)
{
    return generation != atomic_load_explicit(&fork_generation, memory_order_relaxed);
}

/* -- sleeping and waking ----------------------------------------------------------------- */

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
static void ring_bell(struct bell *bell, const _Atomic uint32_t *peer_epoch, unsigned char opcode,
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

/* Make our epoch odd, and new: a peer that has rung for the old one will ring again. */
static void announce(struct bell *bell, _Atomic uint32_t *shared, struct ipcq_counters *counters)
{
    bell->epoch += (bell->epoch & 1u) ? 2 : 1;
    atomic_store_explicit(shared, bell->epoch, memory_order_relaxed);
    count(&counters->waits);
    atomic_thread_fence(memory_order_seq_cst); /* partner: ring_bell */
}

static void withdraw(struct bell *bell, _Atomic uint32_t *shared)
{
    if (bell->epoch & 1u)
        atomic_store_explicit(shared, ++bell->epoch, memory_order_relaxed);
}

static void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("isb");
#endif
}

/* -- copying ------------------------------------------------------------------------------ */

/* Records in a ring wrap at most once. */
static void copy_in(struct ipcq_sender *s, uint64_t head, const char *from, uint64_t n)
{
    size_t size = s->slot_size;
    uint64_t at = head & (s->capacity - 1);
    uint64_t first = n < s->capacity - at ? n : s->capacity - at;
    memcpy(s->own->slots + at * size, from, first * size);
    memcpy(s->own->slots, from + first * size, (n - first) * size);
}

static void copy_out(const struct ipcq_receiver *r, uint64_t tail, char *into, uint64_t n)
{
    size_t size = r->slot_size;
    uint64_t at = tail & (r->capacity - 1);
    uint64_t first = n < r->capacity - at ? n : r->capacity - at;
    memcpy(into, r->peer->slots + at * size, first * size);
    memcpy(into + first * size, r->peer->slots, (n - first) * size);
}

/* -- sending ------------------------------------------------------------------------------ */

size_t ipcq_sender_size(void)
{
    return sizeof(struct ipcq_sender);
}

void ipcq_sender_init(ipcq_sender *s, void *own, const void *peer, uint64_t capacity,
                      uint32_t slot_size, int bell, uint64_t head)
{
    memset(s, 0, sizeof *s);
    s->own = own;
    s->peer = peer;
    s->capacity = capacity;
    s->slot_size = slot_size;
    s->generation = ipcq_fork_generation();
    s->bell.socket = bell;
    atomic_init(&s->head, head);
    s->tail = head;
}

void ipcq_sender_silence(ipcq_sender *s)
{
    s->bell.socket = -1;
}

/* Refresh the private copy of the peer's tail; CORRUPT if it cannot be true. */
static int look_for_space(struct ipcq_sender *s, uint64_t head)
{
    uint64_t tail = atomic_load_explicit(&s->peer->tail, memory_order_acquire);
    if (head - tail > s->capacity) {
        s->corrupt = 1;
        return IPCQ_CORRUPT;
    }
    s->tail = tail;
    return IPCQ_DONE;
}

/* A receiver that only reads never hears a sender that only writes: ask now and then. */
static int peer_is_gone(struct ipcq_sender *s)
{
    if (atomic_load_explicit(&s->peer->closed, memory_order_relaxed))
        return 1;
    uint64_t now = now_ns(CLOCK_MONOTONIC_COARSE);
    if (now - s->peer_seen_ns < LIVENESS_INTERVAL_NS || s->bell.socket < 0)
        return 0;
    struct pollfd p = {.fd = s->bell.socket, .events = POLLRDHUP};
    if (poll(&p, 1, 0) > 0)
        return 1; /* and peer_seen_ns stays, so that the next push says so, too */
    s->peer_seen_ns = now;
    atomic_store_explicit(&s->own->sending.last_active_ns, now, memory_order_relaxed);
    return 0;
}

int ipcq_push_many(ipcq_sender *s, const char *records, uint64_t n, uint64_t *done)
{
    *done = 0;
    if (forked(s->generation))
        return IPCQ_FORKED;
    if (s->corrupt)
        return IPCQ_CORRUPT;
    if (peer_is_gone(s))
        return IPCQ_GONE;
    uint64_t head = atomic_load_explicit(&s->head, memory_order_relaxed);
    if (s->capacity - (head - s->tail) < n && look_for_space(s, head) != IPCQ_DONE)
        return IPCQ_CORRUPT;
    uint64_t space = s->capacity - (head - s->tail);
    if (n > space)
        n = space;
    if (n == 0) {
        if (space != 0)
            return IPCQ_DONE;
        count(&s->own->sending.refused);
        return IPCQ_FULL;
    }
    copy_in(s, head, records, n);
    head += n;
    atomic_store_explicit(&s->head, head, memory_order_relaxed);
    /* Partner: the acquire in ipcq_pop.  Everything copied above is visible before it. */
    atomic_store_explicit(&s->own->head, head, memory_order_release);
    ring_bell(&s->bell, &s->peer->wait_records, OPCODE_WRITE, head, &s->own->sending);
    *done = n;
    return IPCQ_DONE;
}

int ipcq_push(ipcq_sender *s, const char *record)
{
    uint64_t done;
    return ipcq_push_many(s, record, 1, &done);
}

/* Anything unusual counts as space: the push that follows finds out what it is. */
static int has_space(ipcq_sender *s)
{
    uint64_t head = atomic_load_explicit(&s->head, memory_order_relaxed);
    return head - atomic_load_explicit(&s->peer->tail, memory_order_relaxed) != s->capacity ||
           atomic_load_explicit(&s->peer->closed, memory_order_relaxed);
}

int ipcq_spin_space(ipcq_sender *s, uint64_t nanoseconds)
{
    uint64_t end = now_ns(CLOCK_MONOTONIC) + nanoseconds;
    do {
        for (int i = 0; i < 32; i++) {
            if (has_space(s))
                return IPCQ_DONE;
            relax();
        }
    } while (now_ns(CLOCK_MONOTONIC) < end);
    return IPCQ_FULL;
}

int ipcq_arm_space(ipcq_sender *s)
{
    if (forked(s->generation))
        return IPCQ_FORKED;
    announce(&s->bell, &s->own->wait_space, &s->own->sending);
    return has_space(s) ? IPCQ_DONE : IPCQ_FULL;
}

void ipcq_disarm_space(ipcq_sender *s)
{
    if (!forked(s->generation))
        withdraw(&s->bell, &s->own->wait_space);
}

int ipcq_sender_indices(ipcq_sender *s, uint64_t *head, uint64_t *tail)
{
    *head = atomic_load_explicit(&s->head, memory_order_relaxed);
    int result = forked(s->generation) ? IPCQ_FORKED
                 : s->corrupt          ? IPCQ_CORRUPT
                                       : look_for_space(s, *head);
    *tail = s->tail;
    return result;
}

/* -- receiving ---------------------------------------------------------------------------- */

size_t ipcq_receiver_size(void)
{
    return sizeof(struct ipcq_receiver);
}

void ipcq_receiver_init(ipcq_receiver *r, void *own, const void *peer, uint64_t capacity,
                        uint32_t slot_size, int bell, uint64_t tail)
{
    memset(r, 0, sizeof *r);
    r->own = own;
    r->peer = peer;
    r->capacity = capacity;
    r->slot_size = slot_size;
    r->generation = ipcq_fork_generation();
    r->bell.socket = bell;
    atomic_init(&r->tail, tail);
    r->head = tail;
}

void ipcq_receiver_silence(ipcq_receiver *r)
{
    r->bell.socket = -1;
}

static int look_for_records(struct ipcq_receiver *r, uint64_t tail)
{
    uint64_t head = atomic_load_explicit(&r->peer->head, memory_order_acquire);
    if (head - tail > r->capacity) {
        r->corrupt = 1;
        return IPCQ_CORRUPT;
    }
    r->head = head;
    return IPCQ_DONE;
}

int ipcq_pop(ipcq_receiver *r, char *into, uint64_t max, uint64_t delivered, uint64_t *count_out)
{
    *count_out = 0;
    if (forked(r->generation))
        return IPCQ_FORKED;
    uint64_t tail = atomic_load_explicit(&r->tail, memory_order_relaxed);
    if (tail != delivered) {
        *count_out = tail - delivered;
        return IPCQ_AGAIN;
    }
    if (r->corrupt)
        return IPCQ_CORRUPT;
    if (r->head - tail < max && look_for_records(r, tail) != IPCQ_DONE)
        return IPCQ_CORRUPT;
    uint64_t n = r->head - tail;
    if (n > max)
        n = max;
    if (n == 0)
        return IPCQ_EMPTY;
    copy_out(r, tail, into, n);
    tail += n;
    atomic_store_explicit(&r->tail, tail, memory_order_relaxed);
    /* Partner: the acquire in look_for_space.  The copy above is complete before it. */
    atomic_store_explicit(&r->own->tail, tail, memory_order_release);
    ring_bell(&r->bell, &r->peer->wait_space, OPCODE_READ, tail, &r->own->receiving);
    *count_out = n;
    return IPCQ_DONE;
}

int ipcq_undelivered(ipcq_receiver *r, uint64_t delivered)
{
    return atomic_load_explicit(&r->tail, memory_order_relaxed) != delivered;
}

static int has_records(ipcq_receiver *r)
{
    return atomic_load_explicit(&r->peer->head, memory_order_relaxed) !=
           atomic_load_explicit(&r->tail, memory_order_relaxed);
}

int ipcq_spin_records(ipcq_receiver *r, uint64_t nanoseconds)
{
    uint64_t end = now_ns(CLOCK_MONOTONIC) + nanoseconds;
    do {
        for (int i = 0; i < 32; i++) {
            if (has_records(r))
                return IPCQ_DONE;
            relax();
        }
    } while (now_ns(CLOCK_MONOTONIC) < end);
    return IPCQ_EMPTY;
}

int ipcq_arm_records(ipcq_receiver *r)
{
    if (forked(r->generation))
        return IPCQ_FORKED;
    announce(&r->bell, &r->own->wait_records, &r->own->receiving);
    return has_records(r) ? IPCQ_DONE : IPCQ_EMPTY;
}

void ipcq_disarm_records(ipcq_receiver *r)
{
    if (!forked(r->generation))
        withdraw(&r->bell, &r->own->wait_records);
}

int ipcq_receiver_indices(ipcq_receiver *r, uint64_t *head, uint64_t *tail)
{
    *tail = atomic_load_explicit(&r->tail, memory_order_relaxed);
    int result = forked(r->generation) ? IPCQ_FORKED
                 : r->corrupt          ? IPCQ_CORRUPT
                                       : look_for_records(r, *tail);
    *head = r->head;
    return result;
}
