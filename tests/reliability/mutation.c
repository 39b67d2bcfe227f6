/*
 * A victim goes on sending and receiving while its peer scribbles over the segment it owns.
 *
 *     mutation MUTATIONS SEED
 *
 * The attacker changes what it may change: its ring, both its indices, epochs, `closed`, counters
 * and identity.  It does so in two ways: by a thread that races with the victim, so that bytes change
 * after they were checked; and between two calls of the victim, a fifth of the mutations at least,
 * which a seed repeats exactly if the first way is left out (a third argument, any).
 *
 * What is checked after each call: that counts and pointers stay inside buffers and rings, that a
 * fault is latched, that own indices move only by what was done, and that no call works longer than
 * a call may.  That nothing outside is touched, the memory itself checks: pages without access stand
 * before and behind each mapping, the peer's is read-only, and buffers are of exactly the size that
 * was promised (AddressSanitizer).
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "layout.h"

enum { LINE = IPCQ_FIRST_WAKE_LINE }; /* where the words of both segments are */
enum { PAGE = 4096, GUARD = 16 * PAGE, MAX_RECORDS = 40 };

/* Of one call, on the clock of its thread.  Far more than any needs under sanitizers; a loop that
 * follows the attacker takes as long as the attacker likes. */
static const uint64_t MAX_NS = 1000000000;

static const char *doing = "nothing";
static unsigned long long seed;

static _Noreturn void fail(const char *what)
{
    fprintf(stderr, "%s: %s; seed %llu\n", doing, what, seed);
    abort(); /* under a sanitizer with a stack trace */
}

static void check(int holds, const char *what)
{
    if (!holds)
        fail(what);
}

static void *room_for(size_t size)
{
    void *room = calloc(1, size);
    if (room == NULL)
        fail("no memory");
    return room;
}

static uint64_t next(uint64_t *state) /* splitmix64 */
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static uint64_t below(uint64_t *state, uint64_t limit)
{
    return next(state) % limit;
}

#define ONE_OF(state, ...)                                                                        \
    ((uint64_t[]){__VA_ARGS__}[below(state, sizeof((uint64_t[]){__VA_ARGS__}) / sizeof(uint64_t))])

/* -- memory ------------------------------------------------------------------------------- */

struct shape {
    int frames;
    uint64_t capacity;
    uint32_t slot_size;
};

/* Where possible the ring ends with a page, so that the guard stands right behind its last slot. */
static const struct shape shapes[] = {
    {0, 1, 4096}, {0, 2, 2048}, {0, 64, 64}, {0, 4096, 1}, {0, 16, 24}, {0, 1024, 100},
    {1, 4096, 1}, {1, 8192, 1}, {1, 1 << 16, 1},
};

static size_t file_size(const struct shape *s)
{
    return (IPCQ_HEADER_SIZE + s->capacity * s->slot_size + PAGE - 1) / PAGE * PAGE;
}

static void *map(int fd, const struct shape *s, int writable)
{
    size_t size = file_size(s), mirrored = s->frames ? s->capacity : 0;
    char *at = mmap(NULL, GUARD + size + mirrored + GUARD, PROT_NONE,
                    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED || ipcq_map(at + GUARD, fd, size, mirrored, writable) < 0) {
        perror("mapping a segment");
        exit(2);
    }
    return at + GUARD;
}

static void unmap(void *segment, const struct shape *s)
{
    munmap((char *)segment - GUARD, GUARD + file_size(s) + (s->frames ? s->capacity : 0) + GUARD);
}

static int memory(const struct shape *s)
{
    int fd = memfd_create("mutation", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, (off_t)file_size(s)) < 0) {
        perror("making a segment");
        exit(2);
    }
    return fd;
}

/* -- the attacker ------------------------------------------------------------------------- */

struct attack {
    const struct shape *shape;
    struct ipcq_segment *segment;        /* its own, as it may write it */
    _Atomic uint64_t head, tail;         /* where the victim is: the peer can read that, too */
    _Atomic uint64_t done;               /* mutations, of both ways */
    _Atomic int over;
    uint64_t numbers;
};

static uint64_t index_near(uint64_t *n, uint64_t at, uint64_t capacity)
{
    if (below(n, 2))
        return at + below(n, capacity + 1);
    return at + ONE_OF(n, 0, 1, 2, 8, 15, 16, 17, 32, capacity / 2, capacity - 16, capacity - 1,
                       capacity, capacity + 1, capacity + 16, 2 * capacity, (uint64_t)-1,
                       (uint64_t)-16, -capacity, (uint64_t)1 << 31, (uint64_t)1 << 32,
                       (uint64_t)1 << 63, next(n));
}

/* A header as it could be, with one field or more as it could not. */
static void forge_header(uint64_t *n, char *at, uint64_t capacity)
{
    struct ipcq_frame frame = {.size = (uint32_t)below(n, 200), .tag = (uint32_t)next(n)};
    uint64_t what = next(n);
    if (what & 1)
        frame.size = (uint32_t)ONE_OF(n, 0, 1, 15, 16, 17, capacity - 33, capacity - 32,
                                      capacity - 31, capacity - 16, capacity - 15, capacity,
                                      capacity + 1, 0x7fffffff, 0x80000000, 0xfffffff0, 0xffffffff,
                                      next(n));
    if (what & 2)
        frame.flags = (uint16_t)ONE_OF(n, 1, 0xff, 0x100, 0x4000, 0x8000, 0xc000, 0xffff, next(n));
    if (what & 4)
        frame.fds = (uint16_t)ONE_OF(n, 0, 1, 16, 253, 254, 0x7fff, 0xffff, next(n));
    if (what & 8)
        frame.regions = (uint16_t)ONE_OF(n, 0, 1, 16, 253, 254, 0x7fff, 0xffff, next(n));
    if ((what & 0x70) == 0)
        frame.reserved = (uint16_t)next(n);
    memcpy(at, &frame, sizeof frame);
    if (what & 0x80) {
        struct ipcq_outside outside = {.size = ONE_OF(n, 0, 1, next(n), (uint64_t)1 << 63),
                                       .number = (uint32_t)next(n)};
        memcpy(at + sizeof frame, &outside, sizeof outside);
    }
}

/* Frames from where the victim reads next, nearly always right, and `head` behind them. */
static void forge_run(uint64_t *n, struct attack *a, uint64_t tail)
{
    uint64_t capacity = a->shape->capacity, to = tail, most = below(n, capacity) & ~15ull;
    char *ring = (char *)a->segment->slots;
    while (to - tail < most) {
        struct ipcq_frame frame = {.size = (uint32_t)below(n, ONE_OF(n, 1, 20, 300, capacity))};
        if (below(n, 8) == 0)
            frame = (struct ipcq_frame){.size = 16, .flags = IPCQ_OUT_AGAIN};
        memcpy(ring + (to & (capacity - 1) & ~15ull), &frame, sizeof frame);
        to += ipcq_frame_extent(frame.size);
        if (below(n, 50) == 0)
            forge_header(n, ring + (to & (capacity - 1) & ~15ull), capacity);
    }
    atomic_store_explicit(&a->segment->head, to, memory_order_release);
}

static void mutate(struct attack *a, uint64_t *n)
{
    struct ipcq_segment *s = a->segment;
    uint64_t capacity = a->shape->capacity, bytes = capacity * a->shape->slot_size;
    uint64_t head = atomic_load_explicit(&a->head, memory_order_relaxed);
    uint64_t tail = atomic_load_explicit(&a->tail, memory_order_relaxed);
    char *whole = (char *)s, *ring = (char *)s->slots;
    switch (below(n, 14)) {
    case 0:
    case 1:
        atomic_store(&s->head, index_near(n, tail, capacity));
        break;
    case 2: /* back again, but not beyond what it may be */
        atomic_store(&s->head, tail + below(n, capacity + 1));
        break;
    case 3:
        atomic_store(&s->tail, index_near(n, head - capacity, capacity));
        break;
    case 4:
    case 5:
        atomic_store(&s->tail, head - below(n, capacity + 1));
        break;
    case 6:
        atomic_store(&words_of(s, LINE)->wait_records, (uint32_t)next(n));
        break;
    case 7:
        atomic_store(&words_of(s, LINE)->wait_space, (uint32_t)next(n));
        break;
    case 8: /* seldom, as nothing is sent to a peer that has ended */
        atomic_store(&words_of(s, LINE)->closed, below(n, 8) ? 0 : (uint32_t)next(n));
        break;
    case 9: { /* anything anywhere, from one byte to all of it */
        uint64_t from = below(n, file_size(a->shape)), most = file_size(a->shape) - from;
        uint64_t count = 1 + below(n, ONE_OF(n, 1, 1, 8, 8, 64, 64, PAGE, most));
        uint64_t byte = ONE_OF(n, 0, 0xff, next(n));
        memset(whole + from, (int)(byte & 0xff), count < most ? count : most);
        break;
    }
    case 10: { /* what a hole would show */
        uint64_t from = below(n, bytes), count = 1 + below(n, ONE_OF(n, 64, PAGE, PAGE, bytes));
        memset(ring + from, 0, count < bytes - from ? count : bytes - from);
        break;
    }
    case 11:
        if (a->shape->frames)
            forge_header(n, ring + (below(n, 2) ? tail & (capacity - 1) & ~15ull
                                                : below(n, capacity / 16) * 16), capacity);
        else
            memset(ring + below(n, capacity) * a->shape->slot_size, (int)next(n) & 0xff,
                   a->shape->slot_size);
        break;
    default:
        if (a->shape->frames)
            forge_run(n, a, tail);
        else
            atomic_store(&s->head, tail + below(n, capacity + 1));
    }
    atomic_fetch_add_explicit(&a->done, 1, memory_order_relaxed);
}

/* One header where the victim reads next, right and wrong by turns: for who reads it twice. */
static void hammer(struct attack *a, uint64_t tail)
{
    uint64_t at = tail & (a->shape->capacity - 1) & ~15ull;
    volatile uint32_t *size = (volatile uint32_t *)(void *)(a->segment->slots + at);
    memset(a->segment->slots + at, 0, sizeof(struct ipcq_frame));
    atomic_store(&a->segment->head, tail + 64);
    for (int i = 0; i < 10000 && atomic_load_explicit(&a->tail, memory_order_relaxed) == tail; i++) {
        *size = 8;
        *size = 0xfffffff0;
        atomic_fetch_add_explicit(&a->done, 1, memory_order_relaxed);
    }
}

static void *race(void *argument)
{
    struct attack *a = argument;
    while (!atomic_load_explicit(&a->over, memory_order_relaxed)) {
        if (a->shape->frames && below(&a->numbers, 4) == 0)
            hammer(a, atomic_load_explicit(&a->tail, memory_order_relaxed));
        mutate(a, &a->numbers);
    }
    return NULL;
}

/* -- the victim --------------------------------------------------------------------------- */

/* How often each came, to know that what is to be survived was there. */
static struct {
    uint64_t done, empty, full, gone, corrupt, frames, outside, bytes;
} seen;

struct victim {
    const struct shape *shape;
    struct ipcq_segment *own;
    const struct ipcq_segment *peer;
    ipcq_sender *sender;
    ipcq_receiver *receiver;
    int bell;
    uint64_t head, tail; /* as they must be: what was sent and taken */
    uint64_t stored;     /* what the peer was told of `head` */
    uint64_t published;  /* times, and times that space was given back: doorbells at most */
    struct attack *attack;
    uint64_t *numbers;
};

static void note(struct victim *v)
{
    atomic_store_explicit(&v->attack->head, v->head, memory_order_relaxed);
    atomic_store_explicit(&v->attack->tail, v->tail, memory_order_relaxed);
}

/* Begin again, as a fault is for ever: at the beginning, or where indices wrap. */
static void begin(struct victim *v)
{
    uint64_t start = ONE_OF(v->numbers, 0, -v->shape->capacity, (uint64_t)-32, next(v->numbers));
    if (v->shape->frames)
        start &= ~15ull;
    v->head = v->tail = start;
    ipcq_sender_init(v->sender, v->own, LINE, v->peer, LINE, v->shape->capacity,
                     v->shape->slot_size, v->bell, start);
    ipcq_receiver_init(v->receiver, v->own, LINE, v->peer, LINE, v->shape->capacity,
                       v->shape->slot_size, v->bell, start);
    ipcq_sender_patience(v->sender, 2000, 1, 0);
    ipcq_receiver_patience(v->receiver, 2000, 1, 0);
    note(v);
}

static int result_of(int result)
{
    check(result >= IPCQ_CORRUPT && result <= IPCQ_AGAIN, "a result that is none");
    seen.done += result == IPCQ_DONE;
    seen.empty += result == IPCQ_EMPTY;
    seen.full += result == IPCQ_FULL;
    seen.gone += result == IPCQ_GONE;
    seen.corrupt += result == IPCQ_CORRUPT;
    return result;
}

static void sent(struct victim *v, int result, uint64_t units)
{
    if (result == IPCQ_DONE) {
        v->head += units;
        v->published += units > 0;
    }
    if (result == IPCQ_DONE && units > 0)
        v->stored = v->head;
    check(atomic_load(&v->own->head) == v->stored, "head is not where it was put");
    note(v);
}

static void send_one(struct victim *v)
{
    uint64_t n = below(v->numbers, MAX_RECORDS), done = 0, capacity = v->shape->capacity;
    size_t size = v->shape->slot_size;
    int frames = v->shape->frames;
    char *at;
    uint64_t run;
    int result;
    switch (below(v->numbers, 4)) {
    case 0: { /* records, or frames, side by side */
        doing = "push_pieces";
        char *records = room_for(n * 40 + n * size + 1);
        memset(records, 0x5a, n * 40 + n * size);
        if (!frames) {
            struct ipcq_piece piece = {.at = records, .size = n};
            result = result_of(ipcq_push_pieces(v->sender, &piece, 1, &done));
            check(done <= n && done <= capacity, "more were sent than there are");
            sent(v, result, done);
        } else {
            struct ipcq_piece *heads = room_for((n + 1) * sizeof *heads);
            struct ipcq_label *labels = room_for((n + 1) * sizeof *labels);
            for (uint64_t i = 0; i < n; i++) {
                heads[i] = (struct ipcq_piece){.at = records + 40 * i,
                                               .size = below(v->numbers, 41)};
                labels[i] = (struct ipcq_label){.tag = (uint32_t)i};
            }
            result = result_of(ipcq_frame_push_pieces(v->sender, heads, labels, n, &done));
            check(done <= n, "more were sent than there are");
            run = 0;
            for (uint64_t i = 0; i < done; i++)
                run += ipcq_frame_extent(heads[i].size);
            check(run <= capacity, "more were sent than fit");
            sent(v, done ? IPCQ_DONE : result, run);
            free(labels);
            free(heads);
        }
        free(records);
        break;
    }
    case 1: { /* from where they are */
        doing = "push_pieces";
        struct ipcq_piece pieces[MAX_RECORDS];
        uint64_t sum = 0;
        char *all = room_for(100 * size);
        memset(all, 0x5a, 100 * size);
        for (uint64_t i = 0; i < n; i++) {
            pieces[i].size = below(v->numbers, frames ? 100 : 3);
            pieces[i].at = all + 100 * size - pieces[i].size * size; /* up to its end */
        }
        if (frames) {
            result = result_of(ipcq_frame_push_pieces(v->sender, pieces, NULL, n, &done));
            check(done <= n, "more were sent than there are");
            for (uint64_t i = 0; i < done; i++)
                sum += ipcq_frame_extent(pieces[i].size);
        } else {
            result = result_of(ipcq_push_pieces(v->sender, pieces, n, &done));
            sum = done;
        }
        check(sum <= capacity, "more were sent than fit");
        sent(v, sum ? IPCQ_DONE : result, sum);
        free(all);
        break;
    }
    case 2: { /* in place */
        doing = "reserve";
        uint64_t extent = frames ? ipcq_frame_extent(n) : 1 + n % capacity;
        result = result_of(ipcq_reserve(v->sender, extent, &at, &run));
        char *ring = (char *)v->own->slots;
        check(at >= ring && at < ring + capacity * size, "a place outside the ring");
        check(run <= extent && (at - ring) + (ptrdiff_t)(run * size) <=
                                   (ptrdiff_t)(capacity * size), "a run beyond the ring");
        if (result != IPCQ_DONE)
            break;
        if (frames) {
            memset(at + sizeof(struct ipcq_frame), 0x5a, n);
            struct ipcq_frame frame = {.size = (uint32_t)n};
            result = result_of(ipcq_frame_commit(v->sender, &frame, (int)(n & 1)));
        } else {
            memset(at, 0x5a, run * size);
            extent = run;
            result = result_of(ipcq_commit(v->sender, run, (int)(n & 1)));
        }
        sent(v, result, extent);
        break;
    }
    default: {
        doing = "push";
        char *record = room_for(frames ? n + 1 : size);
        memset(record, 0x5a, frames ? n + 1 : size);
        struct ipcq_frame frame = {.size = (uint32_t)n, .flags = 1};
        if (frames)
            check(ipcq_frame_units(v->sender, &frame) == ipcq_frame_extent(n), "units of a frame");
        result = result_of(frames ? ipcq_frame_push(v->sender, &frame, record, NULL)
                                  : ipcq_push(v->sender, record));
        sent(v, result, frames ? ipcq_frame_extent(n) : 1);
        free(record);
    }
    }
}

/* Read each byte, as who copies it does. */
static void read_all(const char *at, uint64_t count)
{
    char *copy = room_for(count + 1);
    memcpy(copy, at, count);
    seen.bytes += count + (copy[count / 2] & 1);
    free(copy);
}

/* Move on by at most what may be there, and tell the core. */
static void take(struct victim *v, uint64_t units)
{
    check(units <= v->shape->capacity, "more was received than the ring holds");
    v->tail += units;
    check(ipcq_take(v->receiver, v->tail) == IPCQ_DONE, "what was seen cannot be taken");
    v->published += units > 0;
    note(v);
}

static void look_at_slots(struct victim *v)
{
    const char *at, *ring = (const char *)v->peer->slots;
    uint64_t run, size = v->shape->slot_size, capacity = v->shape->capacity;
    doing = "look";
    int result = result_of(ipcq_look(v->receiver, v->tail, &at, &run));
    check(at >= ring && at < ring + capacity * size, "a place outside the ring");
    check(at + run * size <= ring + capacity * size, "a run beyond the ring");
    check(run == 0 || result == IPCQ_DONE, "a run of nothing");
    read_all(at, run * size);
    if (below(v->numbers, 2))
        take(v, run);
}

static void pop_slots(struct victim *v)
{
    uint64_t max = below(v->numbers, 2) ? 1 : below(v->numbers, MAX_RECORDS), count;
    char *into = room_for(max * v->shape->slot_size + 1);
    doing = "pop";
    int result = result_of(ipcq_pop(v->receiver, into, max, v->tail, &count));
    check(count <= max && (count == 0) == (result != IPCQ_DONE), "a count that cannot be");
    v->tail += count;
    v->published += count > 0;
    note(v);
    free(into);
}

static void look_at_frames(struct victim *v)
{
    const char *at, *ring = (const char *)v->peer->slots;
    uint64_t capacity = v->shape->capacity, from = v->tail, rounds = 0;
    uint64_t most = ONE_OF(v->numbers, 0, 100, capacity, (uint64_t)1 << 40);
    int result;
    struct ipcq_frame frame;
    doing = "frame_look";
    ipcq_see(v->receiver);
    while ((result = ipcq_frame_look(v->receiver, from, most, &frame, &at)) == IPCQ_DONE) {
        uint64_t inside = frame.flags & IPCQ_OUTSIDE ? sizeof(struct ipcq_outside) : most;
        check(frame.size <= inside && !(frame.flags & ~IPCQ_KNOWN_FLAGS) && !frame.reserved &&
                  frame.fds + frame.regions <= IPCQ_MAX_FRAME_FDS,
              "a header that was not checked");
        check(ipcq_frame_extent(frame.size) <= capacity - (from - v->tail),
              "frames beyond what can be published");
        check(at >= ring && at + frame.size <= ring + 2 * capacity, "a payload outside the ring");
        read_all(at, frame.size);
        seen.frames++;
        seen.outside += (frame.flags & IPCQ_OUTSIDE) != 0;
        from += ipcq_frame_extent(frame.size);
        check(++rounds <= capacity / IPCQ_FRAME_ALIGN, "more frames than a ring holds");
        if (ipcq_seen(v->receiver, from) == 0)
            break;
        if (below(v->numbers, 8) == 0) { /* less than was seen before */
            atomic_store(&v->attack->segment->head, v->tail + below(v->numbers, from - v->tail));
            ipcq_see(v->receiver);
        }
    }
    result_of(result);
    if (below(v->numbers, 4))
        take(v, from - v->tail);
}

static void receive_one(struct victim *v)
{
    if (v->shape->frames)
        look_at_frames(v);
    else if (below(v->numbers, 2))
        pop_slots(v);
    else
        look_at_slots(v);
}

/* All that waits, tells or looks; none of it moves anything. */
static void ask(struct victim *v)
{
    uint64_t head, tail;
    struct ipcq_identity identity;
    struct ipcq_names names;
    struct ipcq_counts counts;
    doing = "asking";
    switch (below(v->numbers, 8)) {
    case 0:
        result_of(ipcq_sender_indices(v->sender, &head, &tail));
        check(head == v->head && head - tail <= v->shape->capacity, "indices of the sender");
        break;
    case 1:
        result_of(ipcq_receiver_indices(v->receiver, &head, &tail));
        check(tail == v->tail && head - tail <= v->shape->capacity, "indices of the receiver");
        break;
    case 2:
        result_of(ipcq_arm_space(v->sender, below(v->numbers, v->shape->capacity + 1)));
        if (below(v->numbers, 2))
            ipcq_disarm_space(v->sender);
        break;
    case 3:
        result_of(ipcq_arm_records(v->receiver));
        if (below(v->numbers, 2))
            ipcq_disarm_records(v->receiver);
        break;
    case 4:
        result_of(ipcq_await_space(v->sender, 1));
        break;
    case 5:
        result_of(ipcq_await_records(v->receiver));
        break;
    case 6:
        ipcq_is_quiet(v->receiver, v->tail);
        check(ipcq_is_silent(v->receiver), "something came through the socket");
        break;
    default:
        ipcq_read_identity(v->peer, &identity, &names);
        ipcq_sending_counts(v->peer, &counts);
        ipcq_receiving_counts(v->peer, &counts);
        seen.bytes += identity.capacity & names.count & counts.doorbells & 1;
        ipcq_closed(v->peer, LINE);
    }
}

/* A fault is for ever: whatever the peer's memory says by now. */
static int is_latched(struct victim *v)
{
    uint64_t units;
    char *place;
    const char *at;
    int receiver = ipcq_look(v->receiver, v->tail, &at, &units) == IPCQ_CORRUPT;
    int sender = ipcq_reserve(v->sender, 1, &place, &units) == IPCQ_CORRUPT;
    if (receiver || sender)
        atomic_store(&v->attack->segment->head, v->tail);
    if (receiver)
        check(ipcq_look(v->receiver, v->tail, &at, &units) == IPCQ_CORRUPT, "a fault is forgotten");
    if (sender) {
        atomic_store(&v->attack->segment->tail, v->head);
        check(ipcq_reserve(v->sender, 1, &place, &units) == IPCQ_CORRUPT, "a fault is forgotten");
    }
    return receiver || sender;
}

static uint64_t cpu_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint64_t longest;

static void one_call(struct victim *v)
{
    uint64_t before = cpu_ns();
    uint64_t which = below(v->numbers, 8);
    if (which < 3)
        send_one(v);
    else if (which < 6)
        receive_one(v);
    else
        ask(v);
    uint64_t took = cpu_ns() - before;
    if (took > longest)
        longest = took;
    check(took < MAX_NS, "a call that works for the peer");
}

static void attack_one(const struct shape *shape, uint64_t mutations, uint64_t numbers, int alone)
{
    int evil = memory(shape), good = memory(shape), bells[2];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, bells) < 0) {
        perror("socketpair");
        exit(2);
    }
    struct attack attack = {.shape = shape, .segment = map(evil, shape, 1),
                            .numbers = next(&numbers)};
    struct victim v = {.shape = shape,
                       .own = map(good, shape, 1),
                       .peer = map(evil, shape, 0),
                       .sender = room_for(ipcq_sender_size()),
                       .receiver = room_for(ipcq_receiver_size()),
                       .bell = bells[0],
                       .attack = &attack,
                       .numbers = &numbers};
    begin(&v);
    pthread_t racer;
    if (!alone && pthread_create(&racer, NULL, race, &attack)) {
        perror("pthread_create");
        exit(2);
    }
    for (uint64_t i = 0; i < mutations / 5 || atomic_load(&attack.done) < mutations; i++) {
        mutate(&attack, &numbers);
        one_call(&v);
        if (below(&numbers, 4) == 0 && is_latched(&v))
            begin(&v);
    }
    atomic_store(&attack.over, 1);
    if (!alone)
        pthread_join(racer, NULL);
    struct ipcq_counts sending, receiving;
    ipcq_sending_counts(v.own, &sending);
    ipcq_receiving_counts(v.own, &receiving);
    doing = "ringing";
    check(sending.doorbells + receiving.doorbells <= v.published, "more doorbells than reasons");
    printf("%s of %llu: %llu mutations\n", shape->frames ? "frames" : "slots",
           (unsigned long long)shape->capacity, (unsigned long long)atomic_load(&attack.done));
    fflush(stdout);
    unmap(v.own, shape);
    unmap((void *)v.peer, shape);
    unmap(attack.segment, shape);
    free(v.sender);
    free(v.receiver);
    close(evil);
    close(good);
    close(bells[0]);
    close(bells[1]);
}

int main(int argc, char **argv)
{
    if (argc < 3 || argc > 4) {
        fprintf(stderr, "usage: %s MUTATIONS SEED [alone]\n", *argv);
        return 2;
    }
    uint64_t mutations = strtoull(argv[1], NULL, 0), count = sizeof shapes / sizeof *shapes;
    seed = strtoull(argv[2], NULL, 0);
    for (uint64_t i = 0; i < count; i++)
        attack_one(&shapes[i], mutations / count + 1, seed * 1000 + i, argc == 4);
    printf("done %llu empty %llu full %llu gone %llu corrupt %llu frames %llu outside %llu "
           "bytes %llu; longest call %llu us\n",
           (unsigned long long)seen.done, (unsigned long long)seen.empty,
           (unsigned long long)seen.full, (unsigned long long)seen.gone,
           (unsigned long long)seen.corrupt, (unsigned long long)seen.frames,
           (unsigned long long)seen.outside, (unsigned long long)seen.bytes,
           (unsigned long long)longest / 1000);
    fflush(stdout);
    doing = "the attack";
    uint64_t few = mutations / 1000;
    check(seen.done > few && seen.empty > few && seen.full > few && seen.gone > few &&
              seen.corrupt > few && seen.frames > few && seen.outside > few / 10,
          "it did not come to what is to be survived");
    return 0;
}
