/*
 * The common part of both shapes of ring, beside ends.h: setting up, waiting, looking.
 */
#include "ends.h"

#include <pthread.h>

/* -- forks -------------------------------------------------------------------------------- */

static _Atomic uint32_t forks;
static pthread_once_t watching_forks = PTHREAD_ONCE_INIT;

static void after_fork_in_child(void)
{
    atomic_fetch_add_explicit(&forks, 1, memory_order_relaxed);
}

static void watch_forks(void)
{
    pthread_atfork(NULL, NULL, after_fork_in_child);
}

uint32_t ipcq_fork_generation(void)
{
    pthread_once(&watching_forks, watch_forks);
    return atomic_load_explicit(&forks, memory_order_relaxed);
}

/* -- announcing sleep ------------------------------------------------------------------------ */

/* Make our epoch odd and new: a peer that has rung for an older one will ring again. */
static void announce(struct bell *bell, _Atomic uint32_t *shared, struct ipcq_counters *counters)
{
    bell->epoch += (bell->epoch & 1u) ? 2 : 1;
    atomic_store_explicit(shared, bell->epoch, memory_order_relaxed);
    count(&counters->waits);
    atomic_thread_fence(memory_order_seq_cst); /* partner: ring_bell in ends.h */
}

static void withdraw(struct bell *bell, _Atomic uint32_t *shared)
{
    if (bell->epoch & 1u)
        atomic_store_explicit(shared, ++bell->epoch, memory_order_relaxed);
}

/* -- the end --------------------------------------------------------------------------------- */

static void wake(const _Atomic uint32_t *epoch, int bell, unsigned char opcode)
{
    if (atomic_load_explicit(epoch, memory_order_relaxed) & 1u)
        knock(bell, opcode, 0);
}

void ipcq_set_closed(void *own, uint32_t own_line, uint32_t ends, const void *peer,
                     uint32_t peer_line, int bell)
{
    /* Release: a peer that sees it also sees every record published before. */
    atomic_store_explicit(&words_of(own, own_line)->closed, ends, memory_order_release);
    atomic_thread_fence(memory_order_seq_cst); /* as in ring_bell() */
    const struct ipcq_words *words = shown_words(peer, peer_line);
    if (bell >= 0) {
        wake(&words->wait_records, bell, IPCQ_OPCODE_WRITE);
        wake(&words->wait_space, bell, IPCQ_OPCODE_READ);
    }
}

/* -- patience -------------------------------------------------------------------------------- */

static void set_patience(struct patience *p, uint64_t nanoseconds, int adaptive, int yields)
{
    p->yields = yields;
    p->most = nanoseconds < IPCQ_MAX_SPIN_NS ? nanoseconds : IPCQ_MAX_SPIN_NS;
    p->adaptive = adaptive;
}

/* Whether this thread may run on one processor only. */
static int is_alone(struct patience *p)
{
    uint64_t now = now_ns(CLOCK_MONOTONIC_COARSE);
    uint64_t seen = atomic_load_explicit(&p->alone_seen, memory_order_relaxed);
    if (seen == 0 || now - seen >= AFFINITY_NS) {
        cpu_set_t set; /* with over 1,024 processors the call fails, and there is more than one */
        int alone = sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) == 1;
        atomic_store_explicit(&p->alone, alone != 0, memory_order_relaxed);
        atomic_store_explicit(&p->alone_seen, now, memory_order_relaxed);
    }
    return atomic_load_explicit(&p->alone, memory_order_relaxed) != 0;
}

static int yields(struct patience *p)
{
    return p->yields || is_alone(p);
}

static uint64_t patience(struct patience *p, struct ipcq_segment *own)
{
    if (!p->adaptive)
        return p->most;
    if (yields(p))
        return 0;
    uint64_t rung = atomic_load_explicit(&own->sending.doorbells, memory_order_relaxed) +
                    atomic_load_explicit(&own->receiving.doorbells, memory_order_relaxed);
    uint64_t before = atomic_exchange_explicit(&p->rung, rung, memory_order_relaxed);
    uint32_t skip = atomic_load_explicit(&p->skip, memory_order_relaxed);
    if (skip > 0) {
        atomic_store_explicit(&p->skip, skip - 1, memory_order_relaxed);
        return 0;
    }
    return p->most + (rung != before ? WAKING_NS : 0);
}

/* The number of looks between two readings of the clock; 1 if we yield after each look. */
enum { LOOKS = 32 };

/* After this time we yield after every LOOKS looks: there may be more spinning threads than
 * processors, and the peer may be one that does not run.  A guess; if no other thread wants to run,
 * sched_yield() takes 0.3 us. */
enum { YIELD_AFTER_NS = 50000 };

/* Pause between looks; return whether to go on, which is until `end`. */
static int spins_on(int looks, uint64_t begin, uint64_t end)
{
    uint64_t now = now_ns(CLOCK_MONOTONIC);
    if (looks < LOOKS || now - begin >= YIELD_AFTER_NS)
        sched_yield();
    return now < end;
}

static void learn(struct patience *p, int came)
{
    if (!p->adaptive)
        return;
    uint32_t penalty = atomic_load_explicit(&p->penalty, memory_order_relaxed);
    penalty = came ? 0 : penalty == 0 ? 1 : penalty < MAX_PENALTY ? 2 * penalty : penalty;
    atomic_store_explicit(&p->penalty, penalty, memory_order_relaxed);
    atomic_store_explicit(&p->skip, penalty, memory_order_relaxed);
}

/* -- sending ------------------------------------------------------------------------------ */

size_t ipcq_sender_size(void)
{
    return sizeof(struct ipcq_sender);
}

void ipcq_sender_init(ipcq_sender *s, void *own, uint32_t own_line, const void *peer,
                      uint32_t peer_line, uint64_t capacity, uint32_t slot_size, int bell,
                      uint64_t head)
{
    memset(s, 0, sizeof *s);
    s->own = own;
    s->own_words = words_of(own, own_line);
    s->peer = peer;
    s->peer_words = shown_words(peer, peer_line);
    s->capacity = capacity;
    s->slot_size = slot_size;
    s->generation = ipcq_fork_generation();
    s->forks = &forks;
    s->bell.socket = bell;
    s->process = -1;
    atomic_init(&s->head, head);
    s->tail = head;
}

void ipcq_sender_watch(ipcq_sender *s, int process)
{
    s->process = process;
}

void ipcq_sender_silence(ipcq_sender *s)
{
    s->bell.socket = -1;
    s->process = -1;
}

/* Anything unusual counts as space: the push that follows will find out. */
static int has_space(ipcq_sender *s, uint64_t units)
{
    uint64_t head = atomic_load_explicit(&s->head, memory_order_relaxed);
    uint64_t used = head - atomic_load_explicit(&s->peer->tail, memory_order_relaxed);
    return used > s->capacity ||
           s->capacity - used >= units || takes_none(s->peer_words);
}

int ipcq_spin_space(ipcq_sender *s, uint64_t units, uint64_t nanoseconds)
{
    int looks = nanoseconds > 0 && yields(&s->patience) ? 1 : LOOKS;
    uint64_t begin = now_ns(CLOCK_MONOTONIC);
    do {
        for (int i = 0; i < looks; i++) {
            if (has_space(s, units))
                return IPCQ_DONE;
            relax();
        }
    } while (spins_on(looks, begin, begin + nanoseconds));
    return IPCQ_FULL;
}

void ipcq_sender_patience(ipcq_sender *s, uint64_t nanoseconds, int adaptive, int yields)
{
    set_patience(&s->patience, nanoseconds, adaptive, yields);
}

int ipcq_await_space(ipcq_sender *s, uint64_t units)
{
    uint64_t most = patience(&s->patience, s->own);
    if (most == 0)
        return IPCQ_FULL;
    uint64_t some = s->capacity / 8;
    int came = ipcq_spin_space(s, units > some ? units : some, most) == IPCQ_DONE ||
               has_space(s, units);
    learn(&s->patience, came);
    return came ? IPCQ_DONE : IPCQ_FULL;
}

int ipcq_arm_space(ipcq_sender *s, uint64_t units)
{
    if (forked(s->forks, s->generation))
        return IPCQ_FORKED;
    announce(&s->bell, &s->own_words->wait_space, &s->own->sending);
    return has_space(s, units) ? IPCQ_DONE : IPCQ_FULL;
}

void ipcq_disarm_space(ipcq_sender *s)
{
    if (!forked(s->forks, s->generation))
        withdraw(&s->bell, &s->own_words->wait_space);
}

int ipcq_reserve(ipcq_sender *s, uint64_t units, char **at, uint64_t *run)
{
    uint64_t head = atomic_load_explicit(&s->head, memory_order_relaxed);
    uint64_t slot = head & (s->capacity - 1);
    int result = sender_state(s);
    if (result == IPCQ_DONE)
        result = make_space(s, head, units);
    if (result == IPCQ_FULL)
        count(&s->own->sending.refused);
    *at = (char *)s->own->slots + slot * s->slot_size;
    *run = s->capacity - slot < units ? s->capacity - slot : units;
    return result;
}

int ipcq_commit(ipcq_sender *s, uint64_t units, int wake)
{
    int result = sender_state(s);
    if (result == IPCQ_DONE)
        publish(s, atomic_load_explicit(&s->head, memory_order_relaxed) + units, wake);
    return result;
}

int ipcq_sender_indices(ipcq_sender *s, uint64_t *head, uint64_t *tail)
{
    *head = atomic_load_explicit(&s->head, memory_order_relaxed);
    int result = forked(s->forks, s->generation) ? IPCQ_FORKED
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

void ipcq_receiver_init(ipcq_receiver *r, void *own, uint32_t own_line, const void *peer,
                        uint32_t peer_line, uint64_t capacity, uint32_t slot_size, int bell,
                        uint64_t tail)
{
    memset(r, 0, sizeof *r);
    r->own = own;
    r->own_words = words_of(own, own_line);
    r->peer = peer;
    r->peer_words = shown_words(peer, peer_line);
    r->capacity = capacity;
    r->slot_size = slot_size;
    r->generation = ipcq_fork_generation();
    r->forks = &forks;
    r->bell.socket = bell;
    atomic_init(&r->tail, tail);
    r->head = tail;
    /* A unit of frames is a byte.  Slots of one byte count as frames, too; then `few` is large. */
    r->stream.few = slot_size == 1 ? FEW_BYTES : FEW_SLOTS;
}

void ipcq_receiver_silence(ipcq_receiver *r)
{
    r->bell.socket = -1;
}

int ipcq_look(ipcq_receiver *r, uint64_t from, const char **at, uint64_t *run)
{
    int result = look_from(r, from);
    uint64_t slot = from & (r->capacity - 1);
    uint64_t n = result == IPCQ_DONE ? r->head - from : 0;
    *at = (const char *)r->peer->slots + slot * r->slot_size;
    *run = n <= r->capacity - slot ? n : r->capacity - slot;
    return result;
}

int ipcq_is_silent(const ipcq_receiver *r)
{
    char byte;
    return r->bell.socket >= 0 &&
           recv(r->bell.socket, &byte, sizeof byte, MSG_PEEK | MSG_DONTWAIT) < 0 &&
           errno == EAGAIN;
}

int ipcq_is_forked(const ipcq_receiver *r)
{
    return forked(r->forks, r->generation);
}

void ipcq_see(ipcq_receiver *r)
{
    if (!forked(r->forks, r->generation))
        look_for_records(r, atomic_load_explicit(&r->tail, memory_order_relaxed));
}

uint64_t ipcq_seen(const ipcq_receiver *r, uint64_t from)
{
    return r->head - from;
}

int ipcq_take(ipcq_receiver *r, uint64_t to)
{
    if (forked(r->forks, r->generation))
        return IPCQ_FORKED;
    if ((int64_t)(to - atomic_load_explicit(&r->tail, memory_order_relaxed)) > 0) {
        if ((int64_t)(to - r->head) > 0) { /* the peer has moved its head back behind `to` */
            r->corrupt = 1;
            r->head = to; /* never behind tail */
        }
        give_back(r, to);
    }
    return IPCQ_DONE;
}

/* The end of the stream counts as records: the attempt that follows will find out. */
static int has_records(ipcq_receiver *r)
{
    return atomic_load_explicit(&r->peer->head, memory_order_relaxed) !=
               atomic_load_explicit(&r->tail, memory_order_relaxed) ||
           sends_none(r->peer_words);
}

int ipcq_spin_records(ipcq_receiver *r, uint64_t nanoseconds)
{
    int looks = nanoseconds > 0 && yields(&r->patience) ? 1 : LOOKS;
    uint64_t begin = now_ns(CLOCK_MONOTONIC);
    do {
        for (int i = 0; i < looks; i++) {
            if (has_records(r))
                return IPCQ_DONE;
            relax();
        }
    } while (spins_on(looks, begin, begin + nanoseconds));
    return IPCQ_EMPTY;
}

int ipcq_is_quiet(ipcq_receiver *r, uint64_t from)
{
    return look_from(r, from) == IPCQ_EMPTY && !sends_none(r->peer_words);
}

void ipcq_receiver_patience(ipcq_receiver *r, uint64_t nanoseconds, int adaptive, int yields)
{
    set_patience(&r->patience, nanoseconds, adaptive, yields);
}

int ipcq_yields(ipcq_receiver *r)
{
    return yields(&r->patience);
}

uint64_t ipcq_patience(ipcq_receiver *r)
{
    return patience(&r->patience, r->own);
}

void ipcq_learn(ipcq_receiver *r, int came)
{
    learn(&r->patience, came);
}

int ipcq_await_records(ipcq_receiver *r)
{
    uint64_t most = ipcq_patience(r);
    if (most == 0)
        return IPCQ_EMPTY;
    int result = ipcq_spin_records(r, most);
    ipcq_learn(r, result == IPCQ_DONE);
    return result;
}

int ipcq_arm_records(ipcq_receiver *r)
{
    if (forked(r->forks, r->generation))
        return IPCQ_FORKED;
    announce(&r->bell, &r->own_words->wait_records, &r->own->receiving);
    return has_records(r) ? IPCQ_DONE : IPCQ_EMPTY;
}

void ipcq_disarm_records(ipcq_receiver *r)
{
    if (!forked(r->forks, r->generation))
        withdraw(&r->bell, &r->own_words->wait_records);
}

int ipcq_receiver_indices(ipcq_receiver *r, uint64_t *head, uint64_t *tail)
{
    *tail = atomic_load_explicit(&r->tail, memory_order_relaxed);
    int result = forked(r->forks, r->generation) ? IPCQ_FORKED
                 : r->corrupt          ? IPCQ_CORRUPT
                                       : look_for_records(r, *tail);
    *head = r->head;
    return result;
}
