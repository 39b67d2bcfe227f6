/*
 * Round trips through rings that hold one record (or one message that fills them): both sides sleep
 * for space and for records again and again, and no wake-up may be lost.
 *
 *     wake processes|threads slots|frames TRIPS CPU CPU SEED
 *
 * Each side runs on its processor: on the same one waking is cheap, and only on two can the
 * instructions of both sides happen at once.
 */
#include "two_ends.h"

enum { RECORD = 8, MESSAGE = 4080, MAX_UNDER_WAY = 3 };

/* Each side sends one in HOLD of its answers, or batches, only when the other one sleeps: how often
 * it would do so by itself is up to the kernel.  Between two of them that other side has taken
 * records, so each time it sleeps anew. */
enum { HOLD = 32 };

/* In one batch in CROWD the side that asks announces that it sleeps, but waits without its socket,
 * which the other side fills: so the doorbell of the answer finds no room, and is dropped. */
enum { CROWD = 64 };

static struct ring ring;
static uint64_t trips, processors[2];

static void send_one(struct end *end, uint64_t number)
{
    char message[MESSAGE];
    struct ipcq_frame frame = {.size = MESSAGE, .tag = (uint32_t)number};
    memcpy(message, &number, sizeof number);
    for (;;) {
        int result = ring.frames ? ipcq_frame_push(end->sender, &frame, message, NULL)
                                 : ipcq_push(end->sender, message);
        if (result == IPCQ_DONE)
            return;
        if (result != IPCQ_FULL)
            fail("push says %d at record %lu", result, number);
        wait_for(end, ring.frames ? ipcq_frame_units(end->sender, &frame) : 1);
    }
}

static int take_slot(struct end *end, uint64_t number, uint64_t *found)
{
    uint64_t n;
    return ipcq_pop(end->receiver, (char *)found, 1, number, &n);
}

static int take_frame(struct end *end, uint64_t number, uint64_t *found)
{
    uint64_t extent = ipcq_frame_extent(MESSAGE);
    struct ipcq_frame frame;
    const char *at;
    int result = ipcq_frame_look(end->receiver, number * extent, MESSAGE, &frame, &at);
    if (result != IPCQ_DONE)
        return result;
    memcpy(found, at, sizeof *found);
    return ipcq_take(end->receiver, (number + 1) * extent);
}

static void take_one(struct end *end, uint64_t number)
{
    uint64_t found;
    int result;
    while ((result = (ring.frames ? take_frame : take_slot)(end, number, &found)) == IPCQ_EMPTY)
        wait_for(end, 0);
    if (result != IPCQ_DONE || found != number)
        fail("pop says %d, and %lu at record %lu", result, found, number);
}

/* Wait for an answer that comes only when `blind` is set. */
static void wait_blindly(struct end *end)
{
    if (arm(end, 0) != IPCQ_EMPTY)
        fail("the answer came before it was waited for");
    atomic_store(&end->known->blind, 1);
    while (spin(end, 0, 0) != IPCQ_DONE)
        sched_yield();
    atomic_store(&end->known->blind, 0);
    disarm(end, 0);
}

static void fill_socket(struct end *end)
{
    const char message[2] = {IPCQ_OPCODE_WRITE, 0};
    while (atomic_load(&end->known->blind) == 0)
        sched_yield();
    while (send(end->socket, message, sizeof message, MSG_DONTWAIT | MSG_NOSIGNAL) > 0)
        end->fillers++;
    must(errno == EAGAIN, "send");
}

static void stay_on(uint64_t processor)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(processor, &set);
    must(sched_setaffinity(0, sizeof set, &set) == 0, "sched_setaffinity");
}

/* With more records under way than either ring holds, this side waits for space, and so does the
 * other; with one more, both would wait for ever. */
static void ask(struct end *end)
{
    stay_on(processors[0]);
    for (uint64_t done = 0, batch = 0; done < trips; batch++) {
        uint64_t n = 1 + below(&end->random, MAX_UNDER_WAY);
        int crowded = batch % CROWD == 1;
        if (crowded) {
            n = 1;
            atomic_store(&end->known->crowded, done + 1);
        }
        if (n > trips - done)
            n = trips - done;
        if (batch % HOLD == 0)
            await_asleep(end);
        for (uint64_t i = 0; i < n; i++, dawdle(end))
            send_one(end, done + i);
        if (crowded)
            wait_blindly(end);
        for (uint64_t i = 0; i < n; i++, dawdle(end))
            take_one(end, done + i);
        done += n;
    }
}

static void answer(struct end *end)
{
    stay_on(processors[1]);
    for (uint64_t done = 0; done < trips; done++) {
        take_one(end, done);
        dawdle(end);
        if (atomic_load(&end->known->crowded) == done + 1)
            fill_socket(end);
        else if (done % HOLD == 0)
            await_asleep(end);
        send_one(end, done);
    }
    /* Whoever leaves first must not look dead to a peer that is still taking. */
    uint64_t head, tail;
    while (ipcq_sender_indices(end->sender, &head, &tail) == IPCQ_DONE && tail != head)
        wait_for(end, ring.capacity);
}

int main(int argc, char **argv)
{
    begin(argv);
    if (argc != 7)
        fail("wake processes|threads slots|frames TRIPS CPU CPU SEED");
    ring = strcmp(argv[2], "frames") == 0 ? (struct ring){.frames = 1, .capacity = 4096, .unit = 1}
                                          : (struct ring){.capacity = 1, .unit = RECORD};
    trips = number(argv[3]);
    processors[0] = number(argv[4]);
    processors[1] = number(argv[5]);
    struct connection connection;
    open_connection(&connection, &ring, number(argv[6]));
    run_both(&connection, argv[1], ask, answer);
    return 0;
}
