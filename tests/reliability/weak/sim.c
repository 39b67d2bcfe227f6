/*
 * A machine with weak memory for the unmodified C core: two processes, each a coroutine, whose every
 * shared access comes here.
 *
 * Memory.  The views of the "promising semantics" (Kang et al., POPL 2017) without promises: what
 * C11 allows, but for loads that take effect after later stores of their own thread.
 *
 *  - Each atomic location keeps all values ever stored, in order.  It has one writer, its owner.
 *  - Each side has a view: for each location, the oldest value that it may still read.  A load may
 *    read that one or any newer one; which, is a choice.
 *  - A release store carries the writer's view, and an acquire load that reads it takes it over; a
 *    relaxed load does so at the next fence; a relaxed store carries what the last fence saw.
 *  - A seq_cst fence exchanges views with all such fences before it.
 *
 * The ring itself is plain memory, so an access that is not ordered, by happens-before, with each
 * conflicting one is an error at once: on some machine that record is torn or stale.  Found with
 * vector clocks, which travel in the views; seq_cst fences alone do not order plain accesses.
 *
 * System calls order nothing, which is less than the kernel promises, but for the end of a socket:
 * who sees it sees all that the other side did before.
 *
 * Schedules.  Who goes next is a choice before each load, fence and system call.  A store needs
 * none: that it was made early is not seen, as others may go on reading older values (but where a
 * side can be killed, each store is a place to die).  Nor does plain memory, as races are found in
 * whatever order they come.
 *
 * All choices are explored depth first, each run from the beginning.  A run ends early where it
 * comes to a state that was explored before.  The state of a side is what it has seen, as nothing
 * else decides what it does: since its beginning, or since it last said what all that it knows comes
 * to (sim_settled).  States are compared by 64 bits of hash.
 */
#define SIM_ITSELF
#include "sim.h"

#include "machine.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <ucontext.h>

enum { HEAD, TAIL, WAIT_RECORDS, WAIT_SPACE, CLOSED, KINDS, PLACES = SIDES * KINDS };
enum { WORDS = IPCQ_FIRST_WAKE_LINE * IPCQ_LINE };
enum { MAX_VALUES = 512, MAX_POINTS = 20000, MAX_CHOICES = 60000, CELL = 8, STACK = 1 << 17 };

static const char *const kinds[KINDS] = {"head", "tail", "wait_records", "wait_space", "closed"};
static const size_t offsets[KINDS] = {
    offsetof(struct ipcq_segment, head),
    offsetof(struct ipcq_segment, tail),
    WORDS + offsetof(struct ipcq_words, wait_records),
    WORDS + offsetof(struct ipcq_words, wait_space),
    WORDS + offsetof(struct ipcq_words, closed),
};

/* The first PLACES numbers: the oldest value one may read; then SIDES clocks. */
struct view {
    uint16_t at[16];
};
static_assert(PLACES + SIDES <= 16, "a view has room for all");
#define CLOCK(side) (PLACES + (side))

struct value {
    uint64_t value, hash;
    struct view carries;
};

struct cell {
    uint16_t written, read[SIDES]; /* clocks; 0: never */
};

struct inbox {
    unsigned doorbells, descriptors;
    unsigned kept; /* descriptors that were read, and wait for their frame */
    bool draining, end;
    struct view carries; /* with the end */
};

struct side {
    enum { READY, ASLEEP, OVER } state;
    bool wants_room; /* asleep, also until the peer's inbox has room */
    struct view now, acquired, released;
    uint64_t seen; /* a hash of all it has seen */
    struct inbox inbox;
    unsigned rung[2]; /* doorbells for records and for space */
    jmp_buf begin, context;
};

static struct machine machine;
static void (*program)(int side);
static struct side sides[SIDES];
static int current;
static bool killed;
static struct value values[PLACES][MAX_VALUES];
static unsigned count[PLACES];
static struct view fences;
static struct cell cells[SIDES][MAX_RING / CELL];
static uint64_t ring_hash;
static unsigned points;
static time_t seconds;
static bool tracing;

struct ipcq_segment *sim_segment[SIDES];
char sim_why[512];
uint64_t sim_states, sim_points;
double sim_schedules;
bool sim_each;

/* -- the outside ---------------------------------------------------------------------------- */

static jmp_buf outside;

static void leave(enum outcome outcome)
{
    _longjmp(outside, outcome);
}

void sim_fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(sim_why, sizeof sim_why, format, arguments);
    va_end(arguments);
    leave(FAILED);
    abort();
}

void sim_say(const char *format, ...)
{
    if (!tracing)
        return;
    va_list arguments;
    va_start(arguments, format);
    printf("  %c: ", 'A' + current);
    vprintf(format, arguments);
    puts("");
    va_end(arguments);
}

void sim_trace(bool on)
{
    tracing = on;
}

/* -- hashing -------------------------------------------------------------------------------- */

static uint64_t mixed(uint64_t x)
{
    x ^= x >> 30;
    x *= 0xbf58476d1ce4e5b9u;
    x ^= x >> 27;
    x *= 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

static uint64_t joined_hash(uint64_t hash, uint64_t x)
{
    return mixed(hash + 0x9e3779b97f4a7c15u + x);
}

static uint64_t hash_of_view(uint64_t hash, const struct view *view)
{
    uint64_t words[4];
    memcpy(words, view, sizeof words);
    for (int i = 0; i < 4; i++)
        hash = joined_hash(hash, words[i]);
    return hash;
}

static uint64_t hash_of_cell(int ring, size_t n)
{
    uint64_t words = 0;
    memcpy(&words, &cells[ring][n], sizeof cells[ring][n]);
    return words == 0 ? 0 : joined_hash((uint64_t)ring << 32 | n, words);
}

static uint64_t hash_of_state(void)
{
    uint64_t hash = joined_hash(ring_hash, machine.spurious << 16 | machine.faults << 1 | killed);
    for (int place = 0; place < PLACES; place++) /* what nobody can read any more does not matter */
        for (unsigned n = sides[1 - place / KINDS].now.at[place]; n < count[place]; n++)
            hash = joined_hash(hash, values[place][n].hash);
    hash = hash_of_view(hash, &fences);
    for (int i = 0; i < SIDES; i++) {
        const struct side *s = &sides[i];
        hash = joined_hash(hash, s->seen);
        hash = hash_of_view(hash, &s->now);
        hash = hash_of_view(hash, &s->acquired);
        hash = hash_of_view(hash, &s->released);
        hash = joined_hash(hash, s->inbox.doorbells << 24 | s->inbox.descriptors << 16 |
                                     s->inbox.kept << 8 |
                                     (unsigned)s->inbox.draining << 1 | s->inbox.end);
        hash = hash_of_view(hash, &s->inbox.carries);
    }
    return hash;
}

/* -- choosing ------------------------------------------------------------------------------- */

static enum { EXHAUSTIVE, RANDOM, REPLAY } mode;

static struct choice {
    unsigned char taken, of;
    uint64_t state; /* 0: none to remember */
    double schedules;
} choices[MAX_CHOICES];
static unsigned depth, known; /* choices of this run; and of those, given from the outside */

static struct {
    uint64_t state;
    double schedules;
} *explored;
static uint64_t slots_explored;

static uint64_t dice, stay;

static uint64_t throw_dice(void)
{
    dice += 0x9e3779b97f4a7c15u;
    return mixed(dice);
}

static uint64_t place_of(uint64_t state)
{
    uint64_t i = state & (slots_explored - 1);
    while (explored[i].state != 0 && explored[i].state != state)
        i = (i + 1) & (slots_explored - 1);
    return i;
}

static void make_explored(uint64_t slots)
{
    uint64_t before = slots_explored;
    __typeof__(explored) old = explored;
    slots_explored = slots;
    explored = calloc(slots, sizeof *explored);
    if (explored == NULL)
        abort();
    for (uint64_t i = 0; i < before; i++)
        if (old[i].state != 0)
            explored[place_of(old[i].state)] = old[i];
    free(old);
}

static void remember(uint64_t state, double schedules)
{
    if (2 * ++sim_states > slots_explored)
        make_explored(2 * slots_explored);
    uint64_t i = place_of(state);
    explored[i].state = state;
    explored[i].schedules = schedules;
}

/* Schedules that go on from here have been counted: for the choice that led here. */
static void add_schedules(double n)
{
    if (depth > 0)
        choices[depth - 1].schedules += n;
    else
        sim_schedules += n;
}

static unsigned choose(unsigned of, bool between_sides)
{
    if (of < 2)
        return 0;
    if (depth == MAX_CHOICES)
        sim_fail("more choices than expected");
    struct choice *choice = &choices[depth];
    if (depth >= known) {
        *choice = (struct choice){.of = (unsigned char)of};
        if (mode == EXHAUSTIVE && between_sides) {
            choice->state = hash_of_state() | 1;
            uint64_t i = place_of(choice->state);
            if (explored[i].state != 0 && !sim_each) {
                add_schedules(explored[i].schedules);
                leave(PRUNED);
            }
        } else if (mode == RANDOM) {
            /* The first choice, to go on or to read the newest, is taken more often. */
            uint64_t number = throw_dice();
            choice->taken = number % stay == 0 ? (unsigned char)((number >> 8) % of) : 0;
        }
    }
    depth++;
    if (choice->taken >= of)
        sim_fail("these choices are of another program");
    return choice->taken;
}

void sim_exhaustive(void)
{
    mode = EXHAUSTIVE;
    known = 0;
    sim_states = 0;
    sim_schedules = 0;
    free(explored);
    explored = NULL;
    slots_explored = 0;
    make_explored(1 << 16);
}

/* From the last choice that can still be made otherwise. */
bool sim_next(void)
{
    while (depth > 0) {
        struct choice *last = &choices[depth - 1];
        if (last->taken + 1u < last->of) {
            last->taken++;
            known = depth;
            return true;
        }
        if (last->state != 0)
            remember(last->state, last->schedules);
        depth--;
        add_schedules(last->schedules);
    }
    return false;
}

void sim_random(uint64_t seed)
{
    mode = RANDOM;
    known = 0;
    dice = mixed(seed);
    stay = (uint64_t)1 << throw_dice() % 5;
}

static const char digits[] = "0123456789abcdefghijklmnopqrstuvwxyz";

void sim_replay(const char *text)
{
    mode = REPLAY;
    for (known = 0; text[known] != '\0' && known < MAX_CHOICES; known++) {
        const char *digit = strchr(digits, text[known]);
        choices[known] =
            (struct choice){.taken = digit == NULL ? 0 : (unsigned char)(digit - digits)};
    }
}

const char *sim_choices(void)
{
    static char text[MAX_CHOICES + 1];
    for (unsigned i = 0; i < depth; i++)
        text[i] = digits[choices[i].taken < 36 ? choices[i].taken : 35];
    text[depth] = '\0';
    return text;
}

/* -- who goes next -------------------------------------------------------------------------- */

static int victim(void)
{
    return machine.victim == SENDER ? 0 : 1;
}

static bool readable(const struct inbox *inbox)
{
    return inbox->doorbells > 0 || inbox->descriptors > 0 || inbox->end;
}

static bool is_full(const struct inbox *inbox)
{
    return inbox->doorbells + inbox->descriptors > machine.room;
}

/* What it polls for has come. */
static bool awake(int side)
{
    const struct side *s = &sides[side];
    const struct inbox *other = &sides[1 - side].inbox;
    return readable(&s->inbox) || (s->wants_room && !is_full(other) && !other->draining);
}

static void end_socket(int side)
{
    for (int i = 0; i < SIDES; i++) {
        sides[i].inbox.end = true;
        sides[i].inbox.carries = sides[side].now;
    }
}

static void pick(void)
{
    enum { KILLER = SIDES };
    for (;;) {
        int can[SIDES + 1], over = 0;
        unsigned n = 0;
        bool stuck = true;
        for (int i = 0; i < SIDES; i++) {
            int side = (current + i) % SIDES;
            const struct side *s = &sides[side];
            bool able = s->state == READY || (s->state == ASLEEP && awake(side));
            over += s->state == OVER;
            stuck = stuck && !able;
            if (able || (s->state == ASLEEP && machine.spurious > 0))
                can[n++] = side;
        }
        if (over == SIDES)
            leave(WHOLE);
        if (stuck)
            sim_fail("lost wake-up: %s",
                     over > 0 ? "one side sleeps for ever" : "both sides sleep for ever");
        if (machine.victim != NOBODY && !killed && sides[victim()].state != OVER)
            can[n++] = KILLER;
        int next = can[choose(n, true)];
        if (next != KILLER) {
            if (next == current)
                return;
            int before = current;
            current = next;
            if (_setjmp(sides[before].context) == 0)
                _longjmp(sides[next].context, 1);
            return;
        }
        killed = true;
        sides[victim()].state = OVER;
        end_socket(victim());
        if (tracing)
            printf("  %c is killed\n", 'A' + victim());
    }
}

/* Before whatever others may notice, or have an influence on. */
static struct side *point(void)
{
    sim_points++;
    if (++points > MAX_POINTS)
        sim_fail("goes on without end");
    pick();
    struct side *me = &sides[current];
    me->seen = joined_hash(me->seen, 1);
    return me;
}

static void saw(struct side *me, uint64_t what)
{
    me->seen = joined_hash(me->seen, what);
}

void sim_settled(const void *state, size_t size)
{
    if (mode != EXHAUSTIVE)
        return;
    uint64_t hash = size;
    for (size_t i = 0; i + 8 <= size; i += 8) {
        uint64_t words;
        memcpy(&words, (const char *)state + i, 8);
        hash = joined_hash(hash, words);
    }
    sides[current].seen = hash;
}

/* -- memory --------------------------------------------------------------------------------- */

static void join(struct view *into, const struct view *from)
{
    for (int i = 0; i < 16; i++)
        if (into->at[i] < from->at[i])
            into->at[i] = from->at[i];
}

/* Which segment it is in, and where; -1: in none. */
static int segment_of(const volatile void *at, size_t *offset)
{
    for (int i = 0; i < SIDES; i++) {
        size_t distance = (size_t)((const char *)at - (const char *)sim_segment[i]);
        if (distance < IPCQ_HEADER_SIZE + 2 * MAX_RING) {
            *offset = distance;
            return i;
        }
    }
    return -1;
}

static int place_at(int segment, size_t offset)
{
    for (int kind = 0; segment >= 0 && kind < KINDS; kind++)
        if (offset == offsets[kind])
            return segment * KINDS + kind;
    return -1; /* private, or a counter, which only its owner reads */
}

/* Whether a side may touch these bytes of a ring, which is there twice in a row; see ipcq_map. */
static void touch_cell(int ring, size_t n, bool writes)
{
    struct cell *cell = &cells[ring][n];
    const struct view *now = &sides[current].now;
    uint16_t order = now->at[CLOCK(1 - current)], clock = now->at[CLOCK(current)];
    ring_hash ^= hash_of_cell(ring, n);
    if (writes) {
        if (cell->read[1 - current] > order)
            sim_fail("torn record: cell %zu is written again, and not after it was read", n);
        cell->written = clock;
    } else {
        if (cell->written == 0)
            sim_fail("stale record: cell %zu is read, and was never written", n);
        if (current != ring && cell->written > order)
            sim_fail("stale record: cell %zu is read, and not after it was written", n);
        cell->read[current] = clock;
    }
    ring_hash ^= hash_of_cell(ring, n);
}

static void touch(int ring, size_t at, size_t n, bool writes)
{
    if (n == 0)
        return;
    if (writes && current != ring)
        sim_fail("a write into the segment of the peer");
    sim_say("%s %zu bytes at %zu of the ring", writes ? "write" : "read", n, at);
    for (size_t cell = at / CELL; cell <= (at + n - 1) / CELL; cell++)
        touch_cell(ring, cell % (machine.capacity / CELL), writes);
}

static unsigned char *ring_byte(int ring, size_t at)
{
    return &sim_segment[ring]->slots[at % machine.capacity];
}

void *sim_copy(void *to, const void *from, size_t n)
{
    size_t put = 0, got = 0;
    int target = segment_of(to, &put), source = segment_of(from, &got);
    put -= IPCQ_HEADER_SIZE;
    got -= IPCQ_HEADER_SIZE;
    if (source >= 0)
        touch(source, got, n, false);
    if (target >= 0)
        touch(target, put, n, true);
    for (size_t i = 0; i < n; i++)
        *(target < 0 ? (unsigned char *)to + i : ring_byte(target, put + i)) =
            source < 0 ? ((const unsigned char *)from)[i] : *ring_byte(source, got + i);
    return to;
}

static uint64_t plain_load(const volatile void *at, size_t size)
{
    return size == 4 ? *(const volatile uint32_t *)at : *(const volatile uint64_t *)at;
}

static void plain_store(volatile void *at, size_t size, uint64_t value)
{
    if (size == 4)
        *(volatile uint32_t *)at = (uint32_t)value;
    else
        *(volatile uint64_t *)at = value;
}

static const char *name_of(memory_order order)
{
    return order == memory_order_acquire   ? "acquire"
           : order == memory_order_release ? "release"
           : order == memory_order_relaxed ? "relaxed"
                                           : "seq_cst";
}

uint64_t sim_load(const volatile void *at, size_t size, memory_order order)
{
    size_t offset = 0;
    int segment = segment_of(at, &offset), place = place_at(segment, offset);
    if (segment >= 0 && offset >= IPCQ_HEADER_SIZE) {
        touch(segment, offset - IPCQ_HEADER_SIZE, size, false);
        return plain_load(ring_byte(segment, offset - IPCQ_HEADER_SIZE), size);
    }
    if (place < 0)
        return plain_load(at, size);
    struct side *me = &sides[current];
    if (segment == current)
        return values[place][count[place] - 1].value;
    me = point();
    unsigned oldest = me->now.at[place], newest = count[place] - 1u;
    unsigned which = newest - choose(newest - oldest + 1, false);
    const struct value *read = &values[place][which];
    me->now.at[place] = (uint16_t)which;
    join(order == memory_order_relaxed ? &me->acquired : &me->now, &read->carries);
    saw(me, read->value);
    sim_say("load %s %s = %llu%s", name_of(order), kinds[place % KINDS],
            (unsigned long long)read->value, which < newest ? ", which is old" : "");
    return read->value;
}

static void add_value(int place, uint64_t value, const struct view *carries)
{
    unsigned n = count[place]++;
    if (n == MAX_VALUES)
        sim_fail("more stores than expected");
    struct value *last = &values[place][n];
    *last = (struct value){.value = value, .carries = *carries};
    last->carries.at[place] = (uint16_t)n;
    last->hash = hash_of_view(joined_hash((uint64_t)place << 32 | n, value), &last->carries);
}

void sim_store(volatile void *at, size_t size, uint64_t value, memory_order order)
{
    size_t offset = 0;
    int segment = segment_of(at, &offset), place = place_at(segment, offset);
    if (place < 0) {
        plain_store(at, size, value);
        return;
    }
    if (segment != current)
        sim_fail("a store into the segment of the peer");
    struct side *me = &sides[current];
    if (machine.victim != NOBODY && victim() == current)
        me = point();
    bool release = order != memory_order_relaxed;
    me->now.at[place] = (uint16_t)count[place];
    add_value(place, value, release ? &me->now : &me->released);
    if (release)
        me->now.at[CLOCK(current)]++;
    sim_say("store %s %s = %llu", name_of(order), kinds[place % KINDS],
            (unsigned long long)value);
}

/* The core uses these on private memory only. */
uint64_t sim_exchange(volatile void *at, size_t size, uint64_t value)
{
    size_t offset;
    if (segment_of(at, &offset) >= 0)
        sim_fail("an exchange in shared memory is not modelled");
    uint64_t before = plain_load(at, size);
    plain_store(at, size, value);
    return before;
}

uint64_t sim_add(volatile void *at, size_t size, uint64_t value)
{
    return sim_exchange(at, size, plain_load(at, size) + value);
}

void sim_fence(memory_order order)
{
    if (order != memory_order_seq_cst)
        sim_fail("this kind of fence is not modelled");
    struct side *me = point();
    join(&me->now, &me->acquired);
    for (int i = 0; i < PLACES; i++) {
        if (me->now.at[i] < fences.at[i])
            me->now.at[i] = fences.at[i];
        fences.at[i] = me->now.at[i];
    }
    me->released = me->now;
    me->now.at[CLOCK(current)]++;
    sim_say("fence");
}

/* -- the socket ----------------------------------------------------------------------------- */

/* At most one doorbell for each time that the peer has announced to sleep, and one that tells of the
 * end of this side. */
static void check_doorbell(int side, unsigned char opcode)
{
    if (opcode != 1 && opcode != 2)
        sim_fail("this is no doorbell: %d", opcode);
    int place = (1 - side) * KINDS + (opcode == 1 ? WAIT_RECORDS : WAIT_SPACE);
    unsigned announced = 0;
    for (unsigned i = 1; i < count[place]; i++)
        announced += values[place][i].value & 1;
    unsigned ended = count[side * KINDS + CLOSED] > 1;
    if (++sides[side].rung[opcode - 1] > announced + ended)
        sim_fail("more doorbells than sleeps: %u for %u", sides[side].rung[opcode - 1], announced);
}

static ssize_t fails(int error)
{
    errno = error;
    sim_say("send fails: %s", strerror(error));
    return -1;
}

static ssize_t deliver(struct side *me, unsigned *into, size_t n, bool may_fail)
{
    struct inbox *inbox = &sides[1 - current].inbox;
    if (may_fail && machine.faults > 0) {
        unsigned which = choose(3, false);
        saw(me, which);
        if (which > 0) {
            machine.faults--;
            return fails(which == 1 ? EINTR : ENOBUFS);
        }
    }
    if (inbox->end)
        return fails(EPIPE);
    /* The kernel takes a buffer off the queue before it gives its space back. */
    bool full = is_full(inbox) || (inbox->draining && choose(2, false));
    saw(me, full);
    if (full)
        return fails(EAGAIN);
    ++*into;
    sim_say("send %zu bytes", n);
    return (ssize_t)n;
}

ssize_t sim_send(int fd, const void *bytes, size_t n, int flags)
{
    if (fd != SOCKET + current || flags != (MSG_DONTWAIT | MSG_NOSIGNAL))
        sim_fail("send() on descriptor %d with flags %x", fd, (unsigned)flags);
    struct side *me = point();
    bool doorbell = n == 2;
    unsigned before = machine.faults;
    ssize_t sent = deliver(me, &sides[1 - current].inbox.doorbells, n, doorbell);
    if (doorbell && machine.faults == before)
        check_doorbell(current, *(const unsigned char *)bytes);
    return sent;
}

ssize_t sim_sendmsg(int fd, const struct msghdr *message, int flags)
{
    if (fd != SOCKET + current || flags != (MSG_DONTWAIT | MSG_NOSIGNAL))
        sim_fail("sendmsg() on descriptor %d with flags %x", fd, (unsigned)flags);
    return deliver(point(), &sides[1 - current].inbox.descriptors, message->msg_iov->iov_len, true);
}

ssize_t sim_recv(int fd, void *bytes, size_t n, int flags)
{
    struct side *me = point();
    struct inbox *inbox = &me->inbox;
    if (fd != SOCKET + current)
        sim_fail("recv() on descriptor %d", fd);
    (void)bytes;
    size_t there = 2 * (inbox->doorbells + inbox->descriptors);
    saw(me, there << 1 | inbox->end);
    if (there > 0) {
        if (!(flags & MSG_PEEK)) {
            inbox->kept += inbox->descriptors;
            inbox->doorbells = inbox->descriptors = 0;
            inbox->draining = true;
            me = point();
            inbox->draining = false;
        }
        sim_say("recv: %zu bytes", there);
        return (ssize_t)(there < n ? there : n);
    }
    if (inbox->end) {
        join(&me->now, &inbox->carries);
        sim_say("recv: the end");
        return 0;
    }
    errno = EAGAIN;
    return -1;
}

int sim_poll(struct pollfd *p, nfds_t n, int timeout)
{
    struct side *me = &sides[current];
    if (p->fd != SOCKET + current || n > 2 || (n == 2 && p[1].fd != -1))
        sim_fail("poll() of %d", p->fd); /* there is no pidfd here */
    if (timeout == 0) {
        me = point();
        saw(me, me->inbox.end);
        return me->inbox.end;
    }
    sim_say("poll");
    me->state = ASLEEP;
    me->wants_room = p->events & POLLOUT;
    me = point();
    me->state = READY;
    bool woken = awake(current);
    if (!woken)
        machine.spurious--;
    saw(me, woken);
    sim_say(woken ? "wakes" : "wakes for no reason");
    return woken;
}

/* Whoever spins looks once; a sender asks for its peer each time, or never. */
int sim_clock(clockid_t clock, struct timespec *t)
{
    if (clock == CLOCK_MONOTONIC_COARSE) {
        *t = (struct timespec){.tv_sec = machine.liveness ? ++seconds : 0};
        return 0;
    }
    *t = (struct timespec){.tv_sec = ++seconds};
    return 0;
}

bool sim_descriptors(int side)
{
    struct side *me = point();
    struct inbox *inbox = &sides[side].inbox;
    inbox->kept += inbox->descriptors;
    inbox->descriptors = 0;
    bool came = inbox->kept > 0;
    inbox->kept -= came;
    saw(me, came);
    return came;
}

void sim_shutdown(int side)
{
    point();
    end_socket(side);
    sim_say("shutdown");
}

bool sim_killed(int side)
{
    return killed && victim() == side;
}

uint64_t sim_published(int side)
{
    int place = side * KINDS + HEAD;
    return values[place][count[place] - 1].value;
}

/* -- a run ---------------------------------------------------------------------------------- */

static ucontext_t starter;

/* Never returns: each run begins again at its first line. */
static void process(int side)
{
    if (_setjmp(sides[side].begin) == 0)
        swapcontext(&(ucontext_t){0}, &starter);
    program(side);
    sides[side].state = OVER;
    sim_say("is done");
    pick();
    abort();
}

static void make_sides(void)
{
    for (int i = 0; i < SIDES; i++) {
        ucontext_t context;
        getcontext(&context);
        context.uc_stack.ss_sp = malloc(STACK);
        context.uc_stack.ss_size = STACK;
        makecontext(&context, (void (*)(void))process, 1, i);
        swapcontext(&starter, &context);
        sim_segment[i] = aligned_alloc(4096, IPCQ_HEADER_SIZE + 4096);
    }
}

static uint64_t first_value(int kind)
{
    return kind == CLOSED ? 0 : kind == HEAD || kind == TAIL ? machine.index : machine.epoch;
}

enum outcome sim_run(const struct machine *chosen, void (*chosen_program)(int), void (*finish)(void))
{
    if (sim_segment[0] == NULL)
        make_sides();
    machine = *chosen;
    program = chosen_program;
    memset(count, 0, sizeof count);
    memset(cells, 0, sizeof cells);
    memset(&fences, 0, sizeof fences);
    killed = false;
    ring_hash = 0;
    points = depth = 0;
    seconds = 0;
    for (int i = 0; i < SIDES; i++) {
        struct side *s = &sides[i];
        memset(s, 0, offsetof(struct side, begin));
        memcpy(s->context, s->begin, sizeof s->context);
        memset(sim_segment[i], 0, IPCQ_HEADER_SIZE);
        s->now.at[CLOCK(i)] = 1;
    }
    for (int place = 0; place < PLACES; place++)
        add_value(place, first_value(place % KINDS), &(struct view){0});
    enum outcome outcome = _setjmp(outside);
    if (outcome == RUNS) {
        current = 0; /* which chooses, at its first scheduling point */
        _longjmp(sides[0].begin, 1);
    }
    if (outcome == WHOLE) {
        outcome = _setjmp(outside);
        if (outcome == RUNS) {
            finish();
            outcome = WHOLE;
        }
    }
    if (outcome == WHOLE && mode == EXHAUSTIVE)
        add_schedules(1);
    return outcome;
}
