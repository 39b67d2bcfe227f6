#pragma once
/*
 * Two ends over the bare C core, as two processes or as two threads, and how they wait for each
 * other: stream.c and wake.c are made of it.
 *
 * As processes each maps its own segment writable and the other's read-only, as in earnest.  As
 * threads both use one mapping of each: ThreadSanitizer knows memory by its address, and would not
 * see that two mappings of one file are the same.
 *
 * They sleep as the doors above the core do: announce it, look again, poll, read the socket, take
 * the announcement back.  Where poll() runs out although there is what it waited for, a wake-up was
 * lost, and the program fails.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "layout.h"

enum { NET_MS = 5000 }; /* a doorbell that has not come by then will not come */

static char **command; /* what repeats this run */

static _Noreturn void fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fprintf(stderr, "\nagain with:");
    for (char **word = command; *word; word++)
        fprintf(stderr, " %s", *word);
    fprintf(stderr, "\n");
    _exit(1);
}

static void must(int good, const char *what)
{
    if (!good)
        fail("%s: %s", what, strerror(errno));
}

static void die_with(pid_t parent)
{
    must(prctl(PR_SET_PDEATHSIG, SIGKILL) == 0, "prctl");
    if (getppid() != parent)
        _exit(1);
}

/* What main() begins with. */
static void begin(char **argv)
{
    command = argv;
    die_with(getppid());
}

/* -- random numbers ------------------------------------------------------------------------ */

/* splitmix64: good enough bits from any state, also from consecutive ones. */
static uint64_t mixed(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

static uint64_t below(uint64_t *state, uint64_t n)
{
    return mixed((*state)++) % n;
}

/* -- two ends -------------------------------------------------------------------------------- */

struct ring {
    int frames;
    uint64_t capacity;
    uint32_t unit; /* bytes of a slot; 1 for frames */
    uint64_t start; /* the index to begin with */
};

/* What each side knows of the other that the segments do not say. */
struct known {
    _Atomic uint64_t asleep[2]; /* threads of each side that have announced their sleep and poll */
    _Atomic uint64_t crowded;   /* wake.c: 1 + the record whose answer gets no doorbell */
    _Atomic uint64_t blind;     /* wake.c: the side that asks waits for that, without its socket */
};

struct end {
    ipcq_sender *sender;
    ipcq_receiver *receiver;
    int socket;
    int sleeps_alone; /* another thread does nothing but announce, sleep, and look */
    char *memory[2];  /* the segments: its own and the peer's */
    uint64_t random;
    uint64_t hurry; /* so many times more it announces that it sleeps, and then does not */
    uint64_t files; /* descriptors that came, and belong to no message yet */
    uint64_t sleeps, bells;
    uint64_t fillers; /* sent beside the doorbells, to fill the socket of the other side */
    struct known *known;
    int which;
};

struct connection {
    struct ring ring;
    int files[2];
    int sockets[2];
    uint64_t random;
    struct end ends[2];
    struct known *known;
};

static size_t segment_size(const struct ring *ring)
{
    size_t size = IPCQ_HEADER_SIZE + ring->capacity * ring->unit;
    return (size + 4095) & ~(size_t)4095;
}

static size_t mirrored(const struct ring *ring)
{
    return ring->frames ? ring->capacity : 0;
}

static char *map_ring(const struct ring *ring, int file, int writable)
{
    size_t size = segment_size(ring), twice = mirrored(ring);
    char *at = mmap(NULL, size + twice, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    must(at != MAP_FAILED, "mmap");
    must(ipcq_map(at, file, size, twice, writable) == 0, "ipcq_map");
    return at;
}

static void open_connection(struct connection *c, const struct ring *ring, uint64_t seed)
{
    *c = (struct connection){.ring = *ring, .random = mixed(seed)};
    c->known = mmap(NULL, sizeof *c->known, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
                    0);
    must(c->known != MAP_FAILED, "mmap");
    must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, c->sockets) == 0, "socketpair");
    for (int i = 0; i < 2; i++) {
        int least = 0; /* the kernel makes of it what it must be: room for a few doorbells */
        must(setsockopt(c->sockets[i], SOL_SOCKET, SO_SNDBUF, &least, sizeof least) == 0,
             "SO_SNDBUF");
        c->files[i] = memfd_create("stress", MFD_CLOEXEC | MFD_ALLOW_SEALING);
        must(c->files[i] >= 0, "memfd_create");
        must(ftruncate(c->files[i], (off_t)segment_size(ring)) == 0, "ftruncate");
        /* Where the indices begin is nothing the core says by itself: it is 0 in earnest. */
        struct ipcq_segment *segment = (void *)map_ring(ring, c->files[i], 1);
        atomic_init(&segment->head, ring->start);
        atomic_init(&segment->tail, ring->start);
        c->ends[i].memory[0] = (char *)segment;
    }
}

static void open_end(struct connection *c, int which, char *own, char *peer)
{
    const struct ring *ring = &c->ring;
    struct end *end = &c->ends[which];
    *end = (struct end){.sender = malloc(ipcq_sender_size()),
                        .receiver = malloc(ipcq_receiver_size()),
                        .socket = c->sockets[which],
                        .memory = {own, peer},
                        .known = c->known,
                        .which = which,
                        .random = mixed(c->random + (uint64_t)which)};
    must(end->sender && end->receiver, "malloc");
    ipcq_sender_init(end->sender, own, IPCQ_FIRST_WAKE_LINE, peer, IPCQ_FIRST_WAKE_LINE,
                     ring->capacity, ring->unit, end->socket, ring->start);
    ipcq_receiver_init(end->receiver, own, IPCQ_FIRST_WAKE_LINE, peer, IPCQ_FIRST_WAKE_LINE,
                       ring->capacity, ring->unit, end->socket, ring->start);
    ipcq_sender_patience(end->sender, 2000, 1, 0);
    ipcq_receiver_patience(end->receiver, 2000, 1, 0);
}

static void close_end(struct connection *c, int which)
{
    struct ipcq_counts sending, receiving;
    ipcq_sending_counts(c->ends[which].memory[0], &sending);
    ipcq_receiving_counts(c->ends[which].memory[0], &receiving);
    printf("%s: slept %lu times, sent %lu doorbells, read %lu\n", which ? "second" : "first",
           c->ends[which].sleeps,
           sending.doorbells + receiving.doorbells + c->ends[which].fillers,
           c->ends[which].bells);
    free(c->ends[which].sender);
    free(c->ends[which].receiver);
    must(close(c->sockets[which]) == 0, "close");
}

static void unmap(struct connection *c, char *at)
{
    must(munmap(at, segment_size(&c->ring) + mirrored(&c->ring)) == 0, "munmap");
}

/* -- waiting --------------------------------------------------------------------------------- */

/* For records where `units` is 0, else for so much space.  DONE: it is there. */
static int spin(struct end *end, uint64_t units, uint64_t nanoseconds)
{
    return units ? ipcq_spin_space(end->sender, units, nanoseconds)
                 : ipcq_spin_records(end->receiver, nanoseconds);
}

static int await(struct end *end, uint64_t units)
{
    return units ? ipcq_await_space(end->sender, units) : ipcq_await_records(end->receiver);
}

static int arm(struct end *end, uint64_t units)
{
    return units ? ipcq_arm_space(end->sender, units) : ipcq_arm_records(end->receiver);
}

static void disarm(struct end *end, uint64_t units)
{
    if (units)
        ipcq_disarm_space(end->sender);
    else
        ipcq_disarm_records(end->receiver);
}

/* Do nothing for a while, mostly a very short one: what matters is what happens between two
 * instructions of the other side. */
static void dawdle(struct end *end)
{
    uint64_t chance = below(&end->random, 4096);
    if (chance == 0) {
        struct timespec pause = {.tv_nsec = (long)below(&end->random, 50000)};
        nanosleep(&pause, NULL);
    } else if (chance < 40) {
        sched_yield();
    } else if (chance < 1024) {
        for (uint64_t until = below(&end->random, 400); until; until--)
            __asm__ __volatile__("");
    }
}

/* Read once from the socket; whether anything was there. */
static int drain(struct end *end)
{
    char bytes[256];
    alignas(struct cmsghdr) char control[CMSG_SPACE(IPCQ_MAX_FRAME_FDS * sizeof(int))];
    struct iovec piece = {bytes, sizeof bytes};
    struct msghdr m = {.msg_iov = &piece,
                       .msg_iovlen = 1,
                       .msg_control = control,
                       .msg_controllen = sizeof control};
    ssize_t n = recvmsg(end->socket, &m, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (n == 0)
        fail("the other side has ended early");
    if (n < 0)
        return 0;
    end->bells += (uint64_t)n / 2;
    const struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    if (c == NULL)
        return 1;
    for (size_t at = 0; at < c->cmsg_len - CMSG_LEN(0); at += sizeof(int)) {
        int file;
        memcpy(&file, CMSG_DATA(c) + at, sizeof file);
        must(close(file) == 0, "close");
        end->files++;
    }
    return 1;
}

static void sleep_until(struct end *end, uint64_t units, int milliseconds)
{
    if (arm(end, units) == (units ? IPCQ_FULL : IPCQ_EMPTY)) {
        struct pollfd p = {.fd = end->socket, .events = POLLIN};
        dawdle(end);
        end->sleeps++;
        atomic_fetch_add(&end->known->asleep[end->which], 1);
        int woken = poll(&p, 1, milliseconds);
        atomic_fetch_sub(&end->known->asleep[end->which], 1);
        if (woken == 0 && milliseconds == NET_MS && spin(end, units, 0) == IPCQ_DONE)
            fail("a wake-up was lost: there is %s, and nothing came through the socket",
                 units ? "space" : "a record");
        if (below(&end->random, 2)) { /* as one door does, and as another */
            disarm(end, units);
            drain(end);
            return;
        }
        drain(end);
    }
    disarm(end, units);
}

/* Return once the other side sleeps: what is published then needs a doorbell, on any number of
 * processors, and whatever else they do. */
static void await_asleep(const struct end *end)
{
    while (atomic_load(&end->known->asleep[!end->which]) == 0)
        sched_yield();
}

/* Announce that it sleeps, and do not: then the doorbell may come later.  Some of them fill the
 * socket, so that further ones are dropped. */
static void doze(struct end *end, uint64_t units)
{
    end->hurry--;
    arm(end, units);
    sched_yield();
    spin(end, units, below(&end->random, 2000));
    disarm(end, units);
}

/* Wait somehow; whether it is there then is for the caller to find out. */
static void wait_for(struct end *end, uint64_t units)
{
    dawdle(end);
    switch (below(&end->random, 4)) {
    case 0:
        if (spin(end, units, below(&end->random, 2000)) == IPCQ_DONE)
            return;
        break;
    case 1:
        if (await(end, units) == IPCQ_DONE)
            return;
        break;
    default:
        break;
    }
    if (end->hurry == 0 && below(&end->random, 512) == 0)
        end->hurry = below(&end->random, 32);
    if (end->sleeps_alone)
        sched_yield();
    else if (end->hurry > 0)
        doze(end, units);
    else
        sleep_until(end, units, NET_MS);
}

/* -- running both ---------------------------------------------------------------------------- */

typedef void side(struct end *end);

static void as_processes(struct connection *c, side *const sides[2])
{
    pid_t parent = getpid(), child = fork();
    must(child >= 0, "fork");
    int which = child == 0;
    if (child == 0)
        die_with(parent);
    must(close(c->sockets[!which]) == 0, "close");
    char *own = c->ends[which].memory[0], *peer = map_ring(&c->ring, c->files[!which], 0);
    unmap(c, c->ends[!which].memory[0]);
    for (int i = 0; i < 2; i++)
        must(close(c->files[i]) == 0, "close");
    open_end(c, which, own, peer);
    sides[which](&c->ends[which]);
    close_end(c, which);
    unmap(c, own);
    unmap(c, peer);
    if (child == 0)
        exit(0);
    int status;
    must(waitpid(child, &status, 0) == child, "waitpid");
    if (status != 0)
        fail("the receiving process ended with status %#x", (unsigned)status);
}

struct task {
    side *run;
    struct end *end;
};

static void *run_task(void *task)
{
    ((struct task *)task)->run(((struct task *)task)->end);
    return NULL;
}

static _Atomic int over;

/* What may run beside push and pop: a thread that spins, announces its sleep, sleeps, and looks. */
static void sleep_beside(struct end *end)
{
    while (!atomic_load(&over)) {
        uint64_t units = below(&end->random, 3);
        if (spin(end, units, below(&end->random, 1000)) != IPCQ_DONE && await(end, units))
            sleep_until(end, units, 1);
        dawdle(end);
    }
}

static void as_threads(struct connection *c, side *const sides[2], int sleepers)
{
    char *memory[2] = {c->ends[0].memory[0], c->ends[1].memory[0]};
    pthread_t threads[4];
    struct task tasks[4];
    struct end beside[2]; /* with random numbers and counts of their own */
    int n = sleepers ? 4 : 2;
    for (int i = 0; i < 2; i++) {
        must(close(c->files[i]) == 0, "close");
        open_end(c, i, memory[i], memory[!i]);
        c->ends[i].sleeps_alone = sleepers;
        beside[i] = c->ends[i];
        beside[i].random = ~c->ends[i].random;
    }
    for (int i = 0; i < n; i++) {
        tasks[i] = i < 2 ? (struct task){sides[i], &c->ends[i]}
                         : (struct task){sleep_beside, &beside[i - 2]};
        must(pthread_create(&threads[i], NULL, run_task, &tasks[i]) == 0, "pthread_create");
    }
    for (int i = 0; i < n; i++) {
        if (i == 2)
            atomic_store(&over, 1);
        must(pthread_join(threads[i], NULL) == 0, "pthread_join");
    }
    for (int i = 0; i < 2; i++) {
        c->ends[i].sleeps += beside[i].sleeps;
        c->ends[i].bells += beside[i].bells;
        close_end(c, i);
        unmap(c, memory[i]);
    }
}

/* `how`: processes, threads, or beside (threads, and others that sleep beside them). */
static void run_both(struct connection *c, const char *how, side *first, side *second)
{
    side *const sides[2] = {first, second};
    if (strcmp(how, "processes") == 0)
        as_processes(c, sides);
    else if (strcmp(how, "threads") == 0 || strcmp(how, "beside") == 0)
        as_threads(c, sides, how[0] == 'b');
    else
        fail("how: processes, threads or beside, not %s", how);
    must(munmap(c->known, sizeof *c->known) == 0, "munmap");
}

static uint64_t number(const char *text)
{
    char *end;
    uint64_t value = strtoull(text, &end, 0);
    if (*text == 0 || *end != 0)
        fail("not a number: %s", text);
    return value;
}
