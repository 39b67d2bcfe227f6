/*
 * What the two sides do on the simulated machine of sim.c, with the C core as it ships; a door does
 * it in Python (ipcqueue/_link/plans.py, endpoint.py).
 *
 *     weak                            the scenarios, by name
 *     weak NAME all                   explore all schedules
 *     weak NAME each                  the same, without leaving out what follows from a known state
 *     weak NAME random COUNT SEED     so many, each from a seed of its own: SEED, SEED + 1, …
 *     weak NAME seed SEED             that one, step by step
 *     weak NAME replay CHOICES        that one, as printed at a failure, step by step
 *
 * Exit status 1 for an error, with the schedule that leads to it.
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "ends.h"
#include "machine.h"

struct scenario {
    const char *name;
    struct machine machine;
    enum { SLOTS, FRAMES } shape;
    uint64_t capacity; /* slots, or bytes */
    unsigned records;  /* each sender sends */
    unsigned batch;    /* records in one call, at most; 0: another way, one by one, see send_one */
    bool duplex;       /* both send, and answer each other */
    unsigned leaves;   /* the receiver leaves after so many; 0: never */
    bool unheard;      /* no socket: the receiver looks for `closed` a few times */
    bool half;         /* the sender only sends no more: its socket does not end */
    unsigned attached; /* each frame of this number comes with a descriptor; 0: none */
    uint64_t spins;    /* nanoseconds */
};

enum { LINE = IPCQ_FIRST_WAKE_LINE }; /* where the words of both segments are */
enum { SLOT_SIZE = 16, WORDS = SLOT_SIZE / 8, MAX_BATCH = 8, LOOKS = 3 };
#define FAR .index = UINT64_MAX - 1, .epoch = UINT32_MAX - 1

static const struct scenario scenarios[] = {
    /* Small: for all schedules. */
    {.name = "slots-1-of-1", .capacity = 1, .records = 1, .batch = 1},
    {.name = "slots-1", .capacity = 1, .records = 2, .batch = 1},
    {.name = "slots-1-of-3", .capacity = 1, .records = 3, .batch = 1},
    {.name = "slots-2", .capacity = 2, .records = 3, .batch = 1},
    {.name = "slots-2-roomy",
     .machine = {.room = 1},
     .capacity = 2,
     .records = 3,
     .batch = 1},
    {.name = "slots-2-far", .machine = {FAR}, .capacity = 2, .records = 3, .batch = 1},
    {.name = "slots-2-batch", .capacity = 2, .records = 3, .batch = 3},
    {.name = "slots-2-in-place", .capacity = 2, .records = 3},
    {.name = "slots-1-half", .capacity = 1, .records = 2, .batch = 1, .half = true},
    {.name = "slots-1-spurious",
     .machine = {.spurious = 1},
     .capacity = 1,
     .records = 2,
     .batch = 1},
    {.name = "slots-1-faults", .machine = {.faults = 1}, .capacity = 1, .records = 2, .batch = 1},
    {.name = "slots-1-liveness",
     .machine = {.liveness = true},
     .capacity = 1,
     .records = 2,
     .batch = 1},
    {.name = "slots-1-receiver-leaves",
     .capacity = 1,
     .records = 3,
     .batch = 1,
     .leaves = 1},
    {.name = "slots-1-sender-dies",
     .machine = {.victim = SENDER},
     .capacity = 1,
     .records = 2,
     .batch = 1},
    {.name = "slots-2-sender-dies",
     .machine = {.victim = SENDER},
     .capacity = 2,
     .records = 2,
     .batch = 1},
    {.name = "slots-1-receiver-dies",
     .machine = {.victim = RECEIVER},
     .capacity = 1,
     .records = 2,
     .batch = 1},
    {.name = "slots-2-unheard", .capacity = 2, .records = 2, .unheard = true},
    {.name = "frames", .shape = FRAMES, .capacity = 64, .records = 3, .batch = 1},
    {.name = "frames-far",
     .machine = {.index = UINT64_MAX - 31, .epoch = UINT32_MAX - 1},
     .shape = FRAMES,
     .capacity = 64,
     .records = 3,
     .batch = 1},
    {.name = "frames-batch",
     .shape = FRAMES,
     .capacity = 64,
     .records = 3,
     .batch = 3},
    {.name = "frames-in-place", .shape = FRAMES, .capacity = 64, .records = 2},
    {.name = "frames-attached",
     .machine = {.room = 3},
     .shape = FRAMES,
     .capacity = 64,
     .records = 2,
     .batch = 1,
     .attached = 1},
    {.name = "duplex", .capacity = 1, .records = 1, .batch = 1, .duplex = true},
    /* Larger: for random schedules. */
    {.name = "many-slots", .capacity = 2, .records = 12, .batch = 1},
    {.name = "many-batches",
     .machine = {FAR, .spurious = 2},
     .capacity = 4,
     .records = 24,
     .batch = 3},
    {.name = "many-in-place", .machine = {.faults = 2}, .capacity = 4, .records = 12},
    {.name = "many-frames",
     .machine = {.spurious = 1, .index = UINT64_MAX - 63, .epoch = UINT32_MAX - 3},
     .shape = FRAMES,
     .capacity = 128,
     .records = 12,
     .batch = 2},
    {.name = "many-attached",
     .machine = {.room = 2},
     .shape = FRAMES,
     .capacity = 128,
     .records = 8,
     .batch = 1,
     .attached = 2},
    {.name = "many-duplex",
     .capacity = 1,
     .records = 6,
     .batch = 1,
     .duplex = true},
    {.name = "many-spinning",
     .machine = {.liveness = true},
     .capacity = 2,
     .records = 6,
     .batch = 1,
     .spins = 1000},
    {.name = "many-dying", .machine = {.victim = SENDER}, .capacity = 2, .records = 8, .batch = 2},
};

static const struct scenario *scenario;

/* -- one side ------------------------------------------------------------------------------- */

static struct end {
    int side;
    struct ipcq_sender sender;
    struct ipcq_receiver receiver;
    uint64_t sent, received; /* records */
    uint64_t next;           /* index of the receiver */
    bool ended, orderly, gone, told; /* told: by `closed`, that no more is published */
} ends[SIDES];

static uint64_t word(uint64_t record, size_t n)
{
    return (record + 1) * 1000 + n;
}

/* Of frames, some are empty and one does not fit beside another. */
static uint32_t size_of(uint64_t record)
{
    static const uint32_t sizes[] = {24, 0, 16, 40};
    return scenario->shape == SLOTS ? SLOT_SIZE : sizes[record % 4];
}

static void fill(char *record, uint64_t n)
{
    for (size_t i = 0; i < size_of(n) / 8; i++) {
        uint64_t value = word(n, i);
        memcpy(record + 8 * i, &value, 8);
    }
}

static void check(struct end *end, const char *record, uint32_t size)
{
    uint64_t n = end->received;
    if (size != size_of(n))
        sim_fail("wrong record: %u bytes instead of record %llu", size, (unsigned long long)n);
    for (size_t i = 0; i < size / 8; i++) {
        uint64_t value;
        memcpy(&value, record + 8 * i, 8);
        if (value != word(n, i))
            sim_fail("wrong record: %llu instead of %llu", (unsigned long long)value,
                     (unsigned long long)word(n, i));
    }
    end->received++;
    sim_say("has received record %llu", (unsigned long long)n);
}

static void read_socket(struct end *end)
{
    char bytes[64];
    if (recv(SOCKET + end->side, bytes, sizeof bytes, MSG_DONTWAIT) == 0) {
        end->orderly = ipcq_closed(sim_segment[1 - end->side], LINE) != 0;
        end->ended = true;
    }
}

/* As Threads._sleep: `armed` is what arming said. */
static void sleep_until_woken(struct end *end, bool armed)
{
    if (armed) {
        struct pollfd p = {.fd = SOCKET + end->side, .events = POLLIN};
        poll(&p, 1, -1);
        read_socket(end);
    }
}

/* -- sending -------------------------------------------------------------------------------- */

static int give_descriptor(struct end *end, const struct ipcq_frame *frame, const char *bytes)
{
    static const int fds[1] = {0};
    int result = ipcq_frame_push(&end->sender, frame, bytes, fds);
    if (result == IPCQ_STUCK) { /* as Threads._await_room */
        struct pollfd p = {.fd = SOCKET + end->side, .events = POLLIN | POLLOUT};
        poll(&p, 1, -1);
        read_socket(end);
    }
    return result;
}

static struct ipcq_frame frame_of(uint64_t record)
{
    struct ipcq_frame frame = {.size = size_of(record), .tag = (uint32_t)record};
    if (scenario->attached && record % scenario->attached == 0)
        frame.fds = 1;
    return frame;
}

/* In place, each record by its own commit. */
static int commit_one(struct end *end)
{
    char *at, bytes[64];
    uint64_t run;
    struct ipcq_frame frame = frame_of(end->sent);
    fill(bytes, end->sent);
    if (scenario->shape == SLOTS) {
        int result = ipcq_reserve(&end->sender, 1, &at, &run);
        if (result != IPCQ_DONE)
            return result;
        memcpy(at, bytes, SLOT_SIZE);
        return ipcq_commit(&end->sender, 1, !scenario->unheard);
    }
    int result = ipcq_reserve(&end->sender, ipcq_frame_extent(frame.size), &at, &run);
    if (result != IPCQ_DONE)
        return result;
    memcpy(at + sizeof frame, bytes, frame.size);
    return ipcq_frame_commit(&end->sender, &frame, 1);
}

/* Send up to a batch; how many in *done. */
static int send_some(struct end *end, uint64_t *done)
{
    uint64_t left = scenario->records - end->sent;
    uint64_t n = left < scenario->batch ? left : scenario->batch;
    char bytes[MAX_BATCH * 64], *at = bytes;
    struct ipcq_frame frames[MAX_BATCH];
    if (n <= 1) {
        *done = 1;
        if (n == 0)
            return commit_one(end);
        fill(bytes, end->sent);
        frames[0] = frame_of(end->sent);
        return scenario->shape == SLOTS ? ipcq_push(&end->sender, bytes)
               : frames[0].fds          ? give_descriptor(end, frames, bytes)
                                        : ipcq_frame_push(&end->sender, frames, bytes, NULL);
    }
    for (uint64_t i = 0; i < n; i++) {
        fill(at, end->sent + i);
        frames[i] = frame_of(end->sent + i);
        at += frames[i].size;
    }
    if (scenario->shape == SLOTS) {
        struct ipcq_piece all = {.at = bytes, .size = n};
        return ipcq_push_pieces(&end->sender, &all, 1, done);
    }
    struct ipcq_piece pieces[MAX_BATCH];
    struct ipcq_label labels[MAX_BATCH];
    at = bytes;
    for (uint64_t i = 0; i < n; i++) {
        pieces[i] = (struct ipcq_piece){.at = at, .size = frames[i].size};
        labels[i] = (struct ipcq_label){.tag = frames[i].tag, .flags = frames[i].flags};
        at += frames[i].size;
    }
    return ipcq_frame_push_pieces(&end->sender, pieces, labels, n, done);
}

static void await_space(struct end *end)
{
    struct ipcq_frame frame = frame_of(end->sent);
    uint64_t units = scenario->shape == SLOTS ? 1 : ipcq_frame_units(&end->sender, &frame);
    if (scenario->spins && ipcq_await_space(&end->sender, units) == IPCQ_DONE)
        return;
    sleep_until_woken(end, !end->ended && ipcq_arm_space(&end->sender, units) == IPCQ_FULL);
    ipcq_disarm_space(&end->sender);
}

/* Send one batch; false if it is over. */
static bool send_next(struct end *end)
{
    for (;;) {
        sim_settled(end, sizeof *end);
        bool over = end->ended;
        uint64_t done = 0;
        int result = send_some(end, &done);
        if (result == IPCQ_DONE) {
            end->sent += done;
            sim_say("has sent %llu", (unsigned long long)end->sent);
            return true;
        }
        if (result == IPCQ_GONE)
            end->gone = true;
        if (result == IPCQ_GONE || over)
            return false;
        if (result == IPCQ_FULL)
            await_space(end);
        else if (result != IPCQ_STUCK)
            sim_fail("the sender says %d", result);
    }
}

/* -- receiving ------------------------------------------------------------------------------ */

static int take_frame(struct end *end)
{
    struct ipcq_frame frame;
    const char *at;
    char bytes[64];
    int result = ipcq_frame_look(&end->receiver, end->next, sizeof bytes, &frame, &at);
    if (result != IPCQ_DONE)
        return result;
    if (frame.tag != end->received)
        sim_fail("wrong record: frame %u instead of %llu", frame.tag,
                 (unsigned long long)end->received);
    if (frame.fds && !sim_descriptors(end->side))
        sim_fail("a frame came without its descriptors");
    memcpy(bytes, at, frame.size);
    check(end, bytes, frame.size);
    end->next += ipcq_frame_extent(frame.size);
    return ipcq_take(&end->receiver, end->next);
}

static int take_in_place(struct end *end)
{
    const char *at;
    char bytes[SLOT_SIZE];
    uint64_t run;
    int result = ipcq_look(&end->receiver, end->next, &at, &run);
    if (result != IPCQ_DONE)
        return result;
    memcpy(bytes, at, SLOT_SIZE);
    check(end, bytes, SLOT_SIZE);
    return ipcq_take(&end->receiver, ++end->next);
}

static int pop(struct end *end)
{
    char bytes[MAX_BATCH * SLOT_SIZE];
    uint64_t n, most = scenario->batch;
    int result = ipcq_pop(&end->receiver, bytes, most, end->next, &n);
    for (uint64_t i = 0; i < n; i++)
        check(end, bytes + i * SLOT_SIZE, SLOT_SIZE);
    end->next += n;
    return result;
}

static int receive_some(struct end *end)
{
    return scenario->shape == FRAMES ? take_frame(end)
           : scenario->batch == 0    ? take_in_place(end)
                                     : pop(end);
}

static void await_records(struct end *end)
{
    if (scenario->spins && ipcq_await_records(&end->receiver) == IPCQ_DONE)
        return;
    sleep_until_woken(end, !end->ended && ipcq_arm_records(&end->receiver) == IPCQ_EMPTY);
    ipcq_disarm_records(&end->receiver);
}

/* Receive one or more; false if nothing more will come. */
static bool receive_next(struct end *end)
{
    for (;;) {
        sim_settled(end, sizeof *end);
        bool over = end->ended || end->told; /* noted before the ring is found empty */
        int result = receive_some(end);
        if (result == IPCQ_DONE)
            return true;
        if (result != IPCQ_EMPTY)
            sim_fail("the receiver says %d", result);
        if (over)
            return false;
        if (ipcq_closed(sim_segment[1 - end->side], LINE) & ~(uint32_t)IPCQ_TAKES_NONE)
            end->told = end->orderly = true;
        else
            await_records(end);
    }
}

/* -- the two sides -------------------------------------------------------------------------- */

static void say_goodbye(struct end *end)
{
    static const char goodbye[4] = {IPCQ_OPCODE_WRITE, 0, IPCQ_OPCODE_READ, 0};
    bool half = scenario->half && end->side == 0;
    /* Where the socket ends, its end wakes; a doorbell before it would be many schedules more. */
    ipcq_set_closed(sim_segment[end->side], LINE,
                    half ? IPCQ_NO_MORE : IPCQ_NO_MORE | IPCQ_TAKES_NONE,
                    sim_segment[1 - end->side], LINE, half ? SOCKET + end->side : -1);
    if (scenario->unheard || half)
        return;
    send(SOCKET + end->side, goodbye, sizeof goodbye, MSG_DONTWAIT | MSG_NOSIGNAL);
    sim_shutdown(end->side);
}

static void send_all(struct end *end)
{
    while (end->sent < scenario->records && send_next(end))
        continue;
    if (end->sent < scenario->records && !scenario->leaves && !sim_killed(1 - end->side))
        sim_fail("the sender takes its peer for gone");
    say_goodbye(end);
}

static void receive_all(struct end *end)
{
    while (receive_next(end))
        if (scenario->leaves == end->received) {
            say_goodbye(end);
            return;
        }
    if (end->orderly == sim_killed(1 - end->side) && !end->orderly)
        sim_fail("an orderly end is taken for a death");
}

/* Whoever sees `closed` has all that was published before; there is no doorbell, and no fence. */
static void look_for_the_end(struct end *end)
{
    for (int looks = 0; looks < LOOKS; looks++) {
        bool closed = ipcq_closed(sim_segment[1 - end->side], LINE) != 0;
        while (receive_some(end) == IPCQ_DONE)
            continue;
        if (closed && end->received < scenario->records)
            sim_fail("records lost: the end is seen after %llu", (unsigned long long)end->received);
        if (closed)
            break;
    }
}

static void answer_each_other(struct end *end)
{
    for (unsigned i = 0; i < scenario->records; i++)
        if (end->side == 0 ? !send_next(end) || !receive_next(end)
                           : !receive_next(end) || !send_next(end))
            sim_fail("the peer is taken for gone");
    if (end->side == 0)
        say_goodbye(end);
    else if (receive_next(end))
        sim_fail("more records than were sent");
}

static void run_side(int side)
{
    struct end *end = &ends[side];
    struct ipcq_segment *own = sim_segment[side], *peer = sim_segment[1 - side];
    uint64_t index = scenario->machine.index;
    uint32_t unit = scenario->shape == SLOTS ? SLOT_SIZE : 1;
    int bell = scenario->unheard ? -1 : SOCKET + side;
    *end = (struct end){.side = side, .next = index};
    ipcq_sender_init(&end->sender, own, LINE, peer, LINE, scenario->capacity, unit, bell, index);
    ipcq_receiver_init(&end->receiver, own, LINE, peer, LINE, scenario->capacity, unit, bell, index);
    ipcq_sender_patience(&end->sender, scenario->spins, 1, 0);
    ipcq_receiver_patience(&end->receiver, scenario->spins, 1, 0);
    end->sender.bell.epoch = end->receiver.bell.epoch = scenario->machine.epoch;
    if (scenario->duplex)
        answer_each_other(end);
    else if (side == 0)
        send_all(end);
    else if (scenario->unheard)
        look_for_the_end(end);
    else
        receive_all(end);
}

/* All that was published was received, unless the receiver died or left. */
static void finish(void)
{
    for (int side = 0; side < SIDES; side++) {
        const struct end *receiver = &ends[1 - side];
        if (sim_killed(1 - side) || scenario->leaves || scenario->unheard)
            continue;
        if (!sim_killed(side) && receiver->received != ends[side].sent)
            sim_fail("records lost: %llu of %llu came", (unsigned long long)receiver->received,
                     (unsigned long long)ends[side].sent);
        if (receiver->next != sim_published(side))
            sim_fail("records lost: received up to %llu, published up to %llu",
                     (unsigned long long)receiver->next,
                     (unsigned long long)sim_published(side));
    }
}

/* -- the program ---------------------------------------------------------------------------- */

static double seconds(void)
{
    return (double)clock() / CLOCKS_PER_SEC;
}

static int report(enum outcome outcome, uint64_t seed)
{
    if (outcome != FAILED)
        return 0;
    static char choices[1 << 16];
    snprintf(choices, sizeof choices, "%s", sim_choices());
    printf("%s: %s\n", scenario->name, sim_why);
    sim_replay(choices);
    sim_trace(true);
    sim_run(&scenario->machine, run_side, finish);
    if (seed)
        printf("again: weak %s seed %llu\n", scenario->name, (unsigned long long)seed);
    printf("again: weak %s replay %s\n", scenario->name, choices[0] ? choices : "0");
    return 1;
}

static int explore(void)
{
    double begin = seconds();
    uint64_t runs = 0;
    sim_exhaustive();
    do {
        runs++;
        if (sim_run(&scenario->machine, run_side, finish) == FAILED)
            return report(FAILED, 0);
    } while (sim_next());
    printf("%s: all schedules: %.6g, in %llu runs, %llu states, %.2f s\n", scenario->name,
           sim_schedules, (unsigned long long)runs, (unsigned long long)sim_states,
           seconds() - begin);
    return 0;
}

static int try_many(uint64_t count, uint64_t seed)
{
    double begin = seconds();
    for (uint64_t i = 0; i < count; i++) {
        sim_random(seed + i);
        enum outcome outcome = sim_run(&scenario->machine, run_side, finish);
        if (outcome == FAILED)
            return report(outcome, seed + i);
    }
    printf("%s: random schedules: %llu, of %.1f points each, from seed %llu, %.2f s\n",
           scenario->name, (unsigned long long)count, (double)sim_points / (double)count,
           (unsigned long long)seed, seconds() - begin);
    return 0;
}

int main(int argc, char **argv)
{
    enum { ALL = sizeof scenarios / sizeof *scenarios };
    for (size_t i = 0; i < ALL; i++) {
        if (argc < 2)
            puts(scenarios[i].name);
        else if (strcmp(argv[1], scenarios[i].name) == 0)
            scenario = &scenarios[i];
    }
    if (argc < 2)
        return 0;
    if (scenario == NULL || argc < 3)
        return 2;
    static struct scenario chosen;
    chosen = *scenario;
    chosen.machine.capacity =
        scenario->capacity * (scenario->shape == SLOTS ? (uint64_t)SLOT_SIZE : 1);
    scenario = &chosen;
    sim_each = strcmp(argv[2], "each") == 0;
    if (sim_each || strcmp(argv[2], "all") == 0)
        return explore();
    if (strcmp(argv[2], "random") == 0 && argc == 5)
        return try_many(strtoull(argv[3], NULL, 10), strtoull(argv[4], NULL, 10));
    if (argc != 4)
        return 2;
    if (strcmp(argv[2], "seed") == 0) {
        sim_random(strtoull(argv[3], NULL, 10));
        sim_trace(true);
    } else {
        sim_replay(argv[3]);
        sim_trace(true);
    }
    return sim_run(&scenario->machine, run_side, finish) == FAILED ? (puts(sim_why), 1) : 0;
}
