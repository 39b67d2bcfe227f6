/*
 * Kill at every instruction: a victim does one operation of the core, and is killed behind its k-th
 * instruction, for every k from 0 to its last.
 *
 *     murder [which of how many]
 *
 * What the survivor must find each time:
 *
 *  - all that was published before, once, in order, byte for byte; and of what was in flight either
 *    everything that fits or nothing; everything if the operation had returned;
 *  - what the victim has taken, the victim has had: room is given back only for what was copied out;
 *  - descriptors before the frame they belong to, the very ones, and none besides;
 *  - no index that cannot be true;
 *  - the end of the socket; and if the survivor was asleep, a doorbell when the operation returned.
 *
 * Records tell their number, so that one at the wrong place is as wrong as one in pieces.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "ends.h"
#include "stepping.h"

enum { LINE = IPCQ_FIRST_WAKE_LINE }; /* where the words of both segments are */
enum { SLOT = 24, SLOTS = 8, FRAMES = 4096, BATCH = 5, FDS = 2, LARGE = 1000, MOST = 1024 };

/* One victim's world.  The survivor is the parent. */
static unsigned char *sending, *receiving; /* segments */
static int survivors = -1, victims = -1;   /* ends of the socket */
static ipcq_sender sender;
static ipcq_receiver receiver;
static int gifts[FDS]; /* descriptors to send */

/* What the victim says of itself, as it goes. */
static struct note {
    volatile int returned;
    volatile uint64_t done;            /* records */
    unsigned char copy[BATCH][MOST]; /* taken, by number */
} *note;

static const char *now = "";
static long at_step;

#define MUST(condition)                                                                           \
    do {                                                                                          \
        if (!(condition)) {                                                                       \
            fprintf(stderr, "%s, killed behind instruction %ld: not so: %s (line %d)\n", now,     \
                    at_step, #condition, __LINE__);                                               \
            exit(1);                                                                              \
        }                                                                                         \
    } while (0)

/* -- records ------------------------------------------------------------------------------- */

static unsigned char byte_of(uint64_t number, size_t i)
{
    return (unsigned char)((number * 0x9e3779b97f4a7c15u >> (i % 8 * 8)) + i * 31 + number);
}

/* The first ones are large, so that few fill a ring; the others are of many sizes. */
static uint32_t size_of(int frames, uint64_t number)
{
    return !frames ? SLOT : number < 3 ? LARGE : (uint32_t)(number * 37 % 150);
}

static void make(unsigned char *at, uint64_t number, uint32_t size)
{
    for (size_t i = 0; i < size; i++)
        at[i] = byte_of(number, i);
}

static int is_record(const unsigned char *at, uint64_t number, uint32_t size)
{
    for (size_t i = 0; i < size; i++)
        if (at[i] != byte_of(number, i))
            return 0;
    return 1;
}

static struct ipcq_frame frame_of(uint64_t number)
{
    return (struct ipcq_frame){.size = size_of(1, number), .tag = (uint32_t)number * 7,
                               .flags = (uint16_t)(number & 0xff)};
}

/* -- operations ---------------------------------------------------------------------------- */

/* What a victim does: to publish, or to take, `count` records from number `first` on. */
struct operation {
    const char *name;
    int frames, receives;
    uint64_t count; /* of records, at most; all that fit, or none */
    int plain;      /* its frames have no tags and no flags */
    int fds;
    void (*act)(uint64_t first, const struct operation *operation);
};

static unsigned char raw[BATCH][MOST]; /* the records, each in its place */
static unsigned char packed[BATCH * MOST];
static struct ipcq_frame headers[BATCH];
static struct ipcq_piece pieces[BATCH];

static void prepare(uint64_t first, const struct operation *operation)
{
    unsigned char *to = packed;
    for (uint64_t i = 0; i < BATCH; i++) {
        uint32_t size = size_of(operation->frames, first + i);
        make(raw[i], first + i, size);
        memcpy(to, raw[i], size);
        to += size;
        headers[i] = frame_of(first + i);
        pieces[i] = (struct ipcq_piece){.at = (const char *)raw[i], .size = size};
    }
}

static void returned(int result, uint64_t done)
{
    note->done = result == IPCQ_DONE ? done : 0;
    note->returned = 1;
}

static void push(uint64_t first, const struct operation *operation)
{
    (void)first, (void)operation;
    returned(ipcq_push(&sender, (const char *)raw[0]), 1);
}

/* Two pieces of two records each, and one of one. */
static void push_pieces(uint64_t first, const struct operation *operation)
{
    (void)first, (void)operation;
    struct ipcq_piece some[] = {{.at = (const char *)packed, .size = 2},
                                {.at = (const char *)packed + 2 * SLOT, .size = 2},
                                {.at = (const char *)packed + 4 * SLOT, .size = 1}};
    uint64_t done;
    int result = ipcq_push_pieces(&sender, some, 3, &done);
    returned(result, done);
}

static void loan(uint64_t first, const struct operation *operation)
{
    char *at;
    uint64_t run;
    (void)first;
    int result = ipcq_reserve(&sender, operation->count, &at, &run);
    if (result == IPCQ_DONE) {
        memcpy(at, packed, run * SLOT);
        memcpy(sending + IPCQ_HEADER_SIZE, packed + run * SLOT, (operation->count - run) * SLOT);
        result = ipcq_commit(&sender, operation->count, 1);
    }
    returned(result, operation->count);
}

static void frame_push(uint64_t first, const struct operation *operation)
{
    (void)first;
    struct ipcq_frame frame = headers[0];
    frame.fds = (uint16_t)operation->fds;
    returned(ipcq_frame_push(&sender, &frame, (const char *)raw[0], gifts), 1);
}

static void frame_push_pieces(uint64_t first, const struct operation *operation)
{
    uint64_t done;
    (void)first;
    int result = ipcq_frame_push_pieces(&sender, pieces, NULL, operation->count, &done);
    returned(result, done);
}

static void frame_loan(uint64_t first, const struct operation *operation)
{
    char *at;
    uint64_t run;
    (void)first, (void)operation;
    int result = ipcq_reserve(&sender, ipcq_frame_extent(headers[0].size), &at, &run);
    if (result == IPCQ_DONE) {
        memcpy(at + sizeof headers[0], raw[0], headers[0].size);
        result = ipcq_frame_commit(&sender, &headers[0], 1);
    }
    returned(result, 1);
}

/* Sending and receiving, a side closes in the same way: as Endpoint.close() does. */
static void finish(uint64_t first, const struct operation *operation)
{
    (void)first;
    unsigned char *own = operation->receives ? receiving : sending;
    unsigned char *peer = operation->receives ? sending : receiving;
    ipcq_set_closed(own, LINE, IPCQ_NO_MORE | IPCQ_TAKES_NONE, peer, LINE, victims);
    send(victims, "\1\0\2\0", 4, MSG_DONTWAIT | MSG_NOSIGNAL);
    shutdown(victims, SHUT_RDWR);
    returned(IPCQ_DONE, 0);
}

static void arm_space(uint64_t first, const struct operation *operation)
{
    (void)first, (void)operation;
    (void)ipcq_arm_space(&sender, 1);
    ipcq_disarm_space(&sender);
    returned(IPCQ_DONE, 0);
}

static void pop(uint64_t first, const struct operation *operation)
{
    uint64_t count;
    uint64_t delivered = atomic_load(&receiver.tail);
    (void)first;
    int result =
        ipcq_pop(&receiver, (char *)note->copy[0], operation->count, delivered, &count);
    returned(result, count);
}

static void look_and_take(uint64_t first, const struct operation *operation)
{
    const char *at;
    uint64_t run, from = atomic_load(&receiver.tail);
    (void)first, (void)operation;
    int result = ipcq_look(&receiver, from, &at, &run);
    if (result == IPCQ_DONE) {
        memcpy(note->copy[0], at, SLOT);
        ipcq_take(&receiver, from + 1);
    }
    returned(result, 1);
}

static void frame_look_and_take(uint64_t first, const struct operation *operation)
{
    const char *at;
    struct ipcq_frame frame;
    uint64_t from = atomic_load(&receiver.tail);
    (void)first, (void)operation;
    int result = ipcq_frame_look(&receiver, from, FRAMES, &frame, &at);
    if (result == IPCQ_DONE) {
        memcpy(note->copy[0], at, frame.size);
        ipcq_take(&receiver, from + ipcq_frame_extent(frame.size));
    }
    returned(result, 1);
}

static void arm_records(uint64_t first, const struct operation *operation)
{
    (void)first, (void)operation;
    (void)ipcq_arm_records(&receiver);
    ipcq_disarm_records(&receiver);
    returned(IPCQ_DONE, 0);
}

static const struct operation operations[] = {
    {"push", 0, 0, 1, 0, 0, push},
    {"push_pieces", 0, 0, BATCH, 0, 0, push_pieces},
    {"reserve and commit", 0, 0, 3, 0, 0, loan},
    {"close", 0, 0, 0, 0, 0, finish},
    {"arm_space", 0, 0, 0, 0, 0, arm_space},
    {"frame_push", 1, 0, 1, 0, 0, frame_push},
    {"frame_push with descriptors", 1, 0, 1, 0, FDS, frame_push},
    {"frame_push_pieces", 1, 0, BATCH, 1, 0, frame_push_pieces},
    {"reserve and frame_commit", 1, 0, 1, 0, 0, frame_loan},
    {"close, frames", 1, 0, 0, 0, 0, finish},
    {"pop", 0, 1, 1, 0, 0, pop},
    {"pop of many", 0, 1, BATCH, 0, 0, pop},
    {"look and take", 0, 1, 1, 0, 0, look_and_take},
    {"arm_records", 0, 1, 0, 0, 0, arm_records},
    {"close of a receiver", 0, 1, 0, 0, 0, finish},
    {"frame_look and take", 1, 1, 1, 0, 0, frame_look_and_take},
};

/* -- states of the ring ----------------------------------------------------------------------- */

struct state {
    const char *name;
    uint64_t start;  /* units before the end of the ring at which the first record stands */
    int far;         /* and that end is 2^64 */
    uint64_t before; /* records there already; ~0: as many as fit */
    int asleep;      /* the survivor */
};

enum { ALL = 1000 };

static const struct state states[] = {
    {"empty", 0, 0, 0, 0},
    {"empty, about to wrap at 2^64, peer asleep", 2, 1, 0, 1},
    {"three in it, about to wrap", 4, 0, 3, 0},
    {"all but full, wrapped", 3, 0, SLOTS - 2, 0},
    {"full, at the wrap of 2^64, peer asleep", 5, 1, ALL, 1},
};

/* -- the survivor ------------------------------------------------------------------------------ */

static struct scene {
    const struct operation *operation;
    const struct state *state;
    uint64_t start;    /* index */
    uint64_t before;   /* records in the ring when the victim begins */
    uint64_t in_flight; /* and those that the operation publishes or takes, if it does */
    uint64_t end, end_in_flight; /* indices behind the ones and the others */
} scene;

static uint64_t capacity_of(int frames)
{
    return frames ? FRAMES : SLOTS;
}

static uint64_t extent_of(int frames, uint64_t number)
{
    return frames ? ipcq_frame_extent(size_of(1, number)) : 1;
}

static void set_scene(const struct operation *operation, const struct state *state)
{
    int frames = operation->frames;
    uint64_t capacity = capacity_of(frames), used = 0;
    uint64_t unit = frames ? 16 : 1; /* so frames wrap inside the first of them, or beyond */
    scene = (struct scene){.operation = operation, .state = state};
    scene.start = (state->far ? 0 : capacity) - state->start * unit;
    while (scene.before < state->before &&
           used + extent_of(frames, scene.before) <= capacity)
        used += extent_of(frames, scene.before++);
    scene.end = scene.end_in_flight = scene.start + used;
    /* Which number the next one has decides its size: the same for who publishes and who takes. */
    uint64_t first = operation->receives ? 0 : scene.before;
    uint64_t room = capacity - used;
    if (operation->receives)
        scene.end_in_flight = scene.start;
    while (scene.in_flight < operation->count) {
        uint64_t extent = extent_of(frames, first + scene.in_flight);
        if (operation->receives ? scene.in_flight == scene.before : extent > room)
            break;
        room -= operation->receives ? 0 : extent;
        scene.end_in_flight += extent;
        scene.in_flight++;
    }
    if (operation->act == loan && scene.in_flight < operation->count) {
        scene.in_flight = 0; /* which reserves all it asks for, or nothing */
        scene.end_in_flight = scene.end;
    }
}

static int publish_number(uint64_t number)
{
    int frames = scene.operation->frames;
    unsigned char record[MOST];
    make(record, number, size_of(frames, number));
    struct ipcq_frame frame = frame_of(number);
    return frames ? ipcq_frame_push(&sender, &frame, (const char *)record, NULL)
                  : ipcq_push(&sender, (const char *)record);
}

static void set_up_sender(int bell)
{
    const struct operation *operation = scene.operation;
    ipcq_sender_init(&sender, sending, LINE, receiving, LINE, capacity_of(operation->frames),
                     operation->frames ? 1 : SLOT, bell, scene.start);
}

static void set_up_receiver(int bell)
{
    const struct operation *operation = scene.operation;
    ipcq_receiver_init(&receiver, receiving, LINE, sending, LINE, capacity_of(operation->frames),
                       operation->frames ? 1 : SLOT, bell, scene.start);
}

static void set_up_segments(void)
{
    struct ipcq_segment *s = (struct ipcq_segment *)sending, *r = (struct ipcq_segment *)receiving;
    memset(sending, 0, IPCQ_HEADER_SIZE);
    memset(receiving, 0, IPCQ_HEADER_SIZE);
    memset(sending + IPCQ_HEADER_SIZE, 0xee, FRAMES);
    memset(note, 0, sizeof *note);
    atomic_store(&s->head, scene.start);
    atomic_store(&r->tail, scene.start);
}

static pid_t start_victim(void)
{
    const struct operation *operation = scene.operation;
    int both[2];
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, both) == 0);
    survivors = both[0];
    victims = both[1];
    set_up_segments();
    if (operation->receives) {
        set_up_sender(survivors);
        for (uint64_t i = 0; i < scene.before; i++)
            MUST(publish_number(i) == IPCQ_DONE);
        if (scene.state->asleep)
            ipcq_arm_space(&sender, 1);
    } else {
        set_up_receiver(survivors);
        if (scene.state->asleep)
            ipcq_arm_records(&receiver);
    }
    pid_t parent = getpid(), child = fork();
    MUST(child >= 0);
    if (child > 0) {
        close(victims);
        return child;
    }
    die_with(parent);
    close(survivors);
    if (operation->receives) {
        set_up_receiver(victims);
    } else {
        set_up_sender(victims);
        for (uint64_t i = 0; i < scene.before; i++)
            if (publish_number(i) != IPCQ_DONE)
                _exit(1);
    }
    uint64_t first = operation->receives ? 0 : scene.before;
    prepare(first, operation);
    be_walked();
    operation->act(first, operation);
    stand();
    _exit(1);
}

static struct gift {
    int fds[FDS];
    int count;
} received;

/* Read what has come, to the end of the socket if there is one: doorbells, and the descriptors. */
static int read_socket(int *doorbells)
{
    unsigned char bytes[64], control[CMSG_SPACE(FDS * sizeof(int))];
    *doorbells = 0;
    for (;;) {
        struct iovec into = {bytes, sizeof bytes};
        struct msghdr m = {.msg_iov = &into, .msg_iovlen = 1, .msg_control = control,
                           .msg_controllen = sizeof control};
        ssize_t n = recvmsg(survivors, &m, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            return 0;
        if (n <= 0) {
            MUST(n == 0 || errno == ECONNRESET);
            return 1;
        }
        MUST(n % 2 == 0 && !(m.msg_flags & MSG_CTRUNC));
        struct cmsghdr *c = CMSG_FIRSTHDR(&m);
        if (c) {
            MUST(received.count == 0 && c->cmsg_len == CMSG_LEN(FDS * sizeof(int)));
            memcpy(received.fds, CMSG_DATA(c), FDS * sizeof(int));
            received.count = FDS;
        }
        for (ssize_t i = 0; i < n; i += 2) {
            MUST(bytes[i] == IPCQ_OPCODE_WRITE || bytes[i] == IPCQ_OPCODE_READ ||
                 (bytes[i] == IPCQ_OPCODE_FDS && bytes[i + 1] == FDS && c));
            *doorbells += bytes[i] == (scene.operation->receives ? IPCQ_OPCODE_READ : IPCQ_OPCODE_WRITE);
        }
    }
}

static int same_file(int a, int b)
{
    struct stat x, y;
    return fstat(a, &x) == 0 && fstat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

/* Take the record with this number; 0 if there is none. */
static int take_number(uint64_t number)
{
    const struct operation *operation = scene.operation;
    if (!operation->frames) {
        unsigned char record[SLOT];
        uint64_t count;
        int result = ipcq_pop(&receiver, (char *)record, 1, atomic_load(&receiver.tail), &count);
        MUST(result == IPCQ_DONE || result == IPCQ_EMPTY);
        MUST(result == IPCQ_EMPTY || is_record(record, number, SLOT));
        return result == IPCQ_DONE;
    }
    struct ipcq_frame frame, wanted = frame_of(number);
    const char *at;
    uint64_t from = atomic_load(&receiver.tail);
    int result = ipcq_frame_look(&receiver, from, LARGE, &frame, &at);
    MUST(result == IPCQ_DONE || result == IPCQ_EMPTY);
    if (result == IPCQ_EMPTY)
        return 0;
    if (number >= scene.before) {
        wanted.fds = (uint16_t)operation->fds;
        if (operation->plain)
            wanted.tag = wanted.flags = 0;
    }
    MUST(memcmp(&frame, &wanted, sizeof frame) == 0);
    MUST(is_record((const unsigned char *)at, number, frame.size));
    MUST(frame.fds == 0 || frame.fds == received.count);
    for (int i = 0; i < frame.fds; i++)
        MUST(same_file(received.fds[i], gifts[i]));
    ipcq_take(&receiver, from + ipcq_frame_extent(frame.size));
    return 1;
}

static void check_as_receiver(void)
{
    uint64_t got = 0;
    while (take_number(got))
        got++;
    MUST(got == scene.before || got == scene.before + scene.in_flight);
    if (note->returned)
        MUST(note->done == scene.in_flight && got == scene.before + scene.in_flight);
    uint64_t head, tail;
    MUST(ipcq_receiver_indices(&receiver, &head, &tail) == IPCQ_DONE && head == tail);
}

static void check_as_sender(void)
{
    int frames = scene.operation->frames;
    uint64_t head, tail;
    MUST(ipcq_sender_indices(&sender, &head, &tail) == IPCQ_DONE);
    MUST(head == scene.end && (tail == scene.start || tail == scene.end_in_flight));
    if (note->returned)
        MUST(note->done == scene.in_flight && tail == scene.end_in_flight);
    unsigned char *at = note->copy[0];
    for (uint64_t i = 0; tail != scene.start && i < scene.in_flight; i++) {
        MUST(is_record(at, i, size_of(frames, i)));
        at += size_of(frames, i);
    }
    /* It may believe in its peer for a while yet; then not. */
    int result = publish_number(scene.before);
    MUST(result == IPCQ_DONE || result == IPCQ_FULL || result == IPCQ_GONE);
    MUST(result != IPCQ_DONE || extent_of(frames, scene.before) <=
                                    capacity_of(frames) - (scene.end - tail));
    sender.peer_seen_ns = 0;
    MUST(publish_number(scene.before + 1) == IPCQ_GONE);
}

static pid_t start_walk(void)
{
    pid_t child = start_victim();
    if (!begins_to_walk(child)) {
        murder(child);
        exit(CANNOT_WALK);
    }
    return child;
}

static void bury(pid_t child)
{
    murder(child);
    close(survivors);
}

static void find_way(struct way *way)
{
    pid_t child = start_walk();
    int result = explore(child, way);
    bury(child);
    if (result != AT_END)
        exit(CANNOT_WALK);
}

/* What depends on the time, as the conversion of a clock does, can make a way that others do not
 * take: then another one is found. */
static pid_t walked(struct way *way, long steps)
{
    for (int tries = 1; tries <= 200; tries++) {
        pid_t child = start_walk();
        int result = walk(child, way, steps);
        if (result == (steps < way->length ? 0 : AT_END))
            return child;
        bury(child);
        if (tries % 10 == 0)
            find_way(way);
    }
    MUST(!"all have lost the way");
    return 0;
}

static void kill_behind(struct way *way, long step)
{
    at_step = step;
    pid_t child = walked(way, step);
    MUST(step > 0 || !note->returned);
    int before, after;
    received.count = 0;
    if (read_socket(&before)) /* it lives, so it has said goodbye */
        MUST(ipcq_closed(scene.operation->receives ? receiving : sending, LINE));
    if (note->returned && scene.state->asleep && scene.in_flight)
        MUST(before == 1); /* one for one sleep */
    murder(child);
    MUST(read_socket(&after));
    if (scene.operation->receives)
        check_as_sender();
    else
        check_as_receiver();
    for (int i = 0; i < received.count; i++)
        close(received.fds[i]);
    MUST(received.count <= scene.operation->fds);
    close(survivors);
}

static void *shared(const char *name, size_t size, size_t mirrored)
{
    int fd = memfd_create(name, MFD_CLOEXEC);
    MUST(fd >= 0 && ftruncate(fd, (off_t)size) == 0);
    void *at = mmap(NULL, size + mirrored, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(at != MAP_FAILED && ipcq_map(at, fd, size, mirrored, 1) == 0);
    close(fd);
    return at;
}

static int descriptors(void)
{
    int n = 0;
    for (int fd = 0; fd < 256; fd++)
        n += fcntl(fd, F_GETFD) >= 0;
    return n;
}

int main(int argc, char **argv)
{
    size_t all = sizeof operations / sizeof *operations, n = sizeof states / sizeof *states;
    size_t which = argc > 2 ? strtoul(argv[1], NULL, 10) : 0;
    size_t of = argc > 2 ? strtoul(argv[2], NULL, 10) : 1;
    die_with(getppid());
    now = "setting up";
    /* A ring of slots stands in the same memory as one of frames, which has a mirror. */
    sending = shared("sending", IPCQ_HEADER_SIZE + FRAMES, FRAMES);
    receiving = shared("receiving", IPCQ_HEADER_SIZE, 0);
    note = shared("note", (sizeof *note + 4095) / 4096 * 4096, 0);
    for (int i = 0; i < FDS; i++)
        MUST((gifts[i] = memfd_create("gift", MFD_CLOEXEC)) >= 0);
    int open_before = descriptors();
    for (size_t i = which; i < all * n; i += of) {
        char name[200];
        set_scene(&operations[i / n], &states[i % n]);
        snprintf(name, sizeof name, "%s: %s", operations[i / n].name, states[i % n].name);
        now = name;
        struct way way = {0};
        find_way(&way);
        for (long step = 0; step <= way.length; step++)
            kill_behind(&way, step);
        MUST(note->returned && descriptors() == open_before);
        printf("%ld %s\n", way.length + 1, name);
        forget(&way);
        fflush(stdout);
    }
    return 0;
}
