/*
 * Fuzz target: the C core against a peer that may do anything to its own segment at any time.
 *
 * Whatever the input, a victim that keeps to ring.h
 *  - gets one of the results that are documented for the call,
 *  - is never shown anything outside the ring, nor more than the ring holds,
 *  - writes nothing but its own segment, and there its own index only as it published or took,
 *  - copies exactly what the ring holds, or what it was given,
 *  - and, once told that the peer is corrupt, is told so for good.
 *
 * The input is a program: a shape of ring, which of its ends is the victim, where counting begins,
 * and then steps of the victim and of the peer.  A step of the peer may be put off to one of the
 * next loads within the core (hooked_atomics.h).  Both segments stand between pages that cannot be
 * touched, the peer's is mapped read-only for the victim, and what is left of the last page of
 * slots is poisoned for AddressSanitizer.
 *
 * With -DREPLAY there is a main() that runs the files it is given once each, without libFuzzer.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "ends.h"

#if defined(__SANITIZE_ADDRESS__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SANITIZED 1
#endif
#endif
#ifdef SANITIZED
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(at, size) ((void)(at), (void)(size))
#endif

#define CHECK(what)                                                                                \
    do {                                                                                           \
        if (!(what)) {                                                                             \
            fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #what);                   \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

enum { LINE = IPCQ_FIRST_WAKE_LINE, WORDS = LINE * IPCQ_LINE }; /* of both segments */
enum { PAGE = 4096, MAX_STEPS = 400, MAX_PIECES = 3, UNTOUCHED = 0x5a5a5a5a };

/* -- the input ---------------------------------------------------------------------------- */

static const uint8_t *input, *input_end;

static uint64_t number(size_t bytes)
{
    uint64_t n = 0;
    for (size_t i = 0; i < bytes && input < input_end; i++)
        n |= (uint64_t)*input++ << (8 * i);
    return n;
}

static uint64_t up_to(uint64_t most)
{
    return number(most > 255 ? 2 : 1) % (most + 1);
}

/* -- two segments of each shape ----------------------------------------------------------- */

static struct arena {
    const int frames;
    const uint64_t capacity;
    const uint32_t size;
    size_t bytes;              /* of the file */
    char *own;                 /* of the victim */
    char *shown;               /* the peer's, as the victim sees it */
    char *written;             /* the same, as the peer does */
} arenas[] = {
    {0, 1, 1, 0, 0, 0, 0},   {0, 1, 24, 0, 0, 0, 0},  {0, 2, 8, 0, 0, 0, 0},
    {0, 4, 100, 0, 0, 0, 0}, {0, 64, 8, 0, 0, 0, 0},  {0, 8, 512, 0, 0, 0, 0},
    {1, 4096, 1, 0, 0, 0, 0}, {1, 8192, 1, 0, 0, 0, 0},
};
enum { ARENAS = sizeof arenas / sizeof *arenas };

static char *mapped(const struct arena *a, int fd, int writable)
{
    size_t mirrored = a->frames ? a->capacity : 0;
    char *guards = mmap(NULL, a->bytes + mirrored + 2 * PAGE, PROT_NONE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(guards != MAP_FAILED);
    char *at = guards + PAGE;
    CHECK(ipcq_map(at, fd, a->bytes, mirrored, writable) == 0);
    size_t used = IPCQ_HEADER_SIZE + a->capacity * a->size;
    ASAN_POISON_MEMORY_REGION(at + used, a->bytes - used);
    return at;
}

static void make(struct arena *a)
{
    size_t used = IPCQ_HEADER_SIZE + a->capacity * a->size;
    a->bytes = (used + PAGE - 1) / PAGE * PAGE;
    int own = memfd_create("victim", MFD_CLOEXEC), peer = memfd_create("peer", MFD_CLOEXEC);
    CHECK(ftruncate(own, (off_t)a->bytes) == 0 && ftruncate(peer, (off_t)a->bytes) == 0);
    a->own = mapped(a, own, 1);
    a->shown = mapped(a, peer, 0);
    a->written = mmap(NULL, a->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, peer, 0);
    CHECK(a->written != MAP_FAILED);
    close(own);
    close(peer);
}

static struct arena *arena;
static struct ipcq_segment *own;
static const struct ipcq_segment *shown;
static int bell[2] = {-1, -1}; /* the victim's, the peer's */
static int null_fd;

/* -- the peer ----------------------------------------------------------------------------- */

static struct move {
    size_t offset, size;
    unsigned char bytes[16];
} ambush;
static unsigned loads_until_ambush;
static unsigned ambushes;

static void make_move(const struct move *m)
{
    memcpy(arena->written + m->offset, m->bytes, m->size);
}

void fuzz_peer_moves(void)
{
    if (loads_until_ambush == 0 || --loads_until_ambush > 0)
        return;
    make_move(&ambush);
    ambushes++;
}

/* An index near one of the victim's, or any. */
static uint64_t index_near(uint64_t base)
{
    switch (number(1) % 8) {
    case 0: return base + number(1);
    case 1: return base - number(1);
    case 2: return base + arena->capacity;
    case 3: return base + arena->capacity + 1;
    case 4: return base - arena->capacity;
    case 5: return base + 16 * number(1);
    case 6: return base + number(2);
    default: return number(8);
    }
}

static struct ipcq_frame any_frame(void)
{
    uint64_t size = number(1);
    switch (number(1) % 8) {
    case 0: size = arena->capacity - 16 - size % 2; break;
    case 1: size = arena->capacity - size; break;
    case 2: size |= number(3) << 8; break;
    case 3: size = UINT32_MAX - size; break;
    case 4: size |= number(1) << 8; break;
    }
    struct ipcq_frame frame = {.size = (uint32_t)size, .tag = (uint32_t)number(1)};
    uint64_t rare = number(1);
    frame.flags = (uint16_t)(rare & 1 ? IPCQ_OUT_OF_LINE : rare & 2 ? number(2) : 0);
    frame.fds = (uint16_t)(rare & 4 ? number(2) : 0);
    frame.regions = (uint16_t)(rare & 8 ? number(2) : 0);
    frame.reserved = (uint16_t)(rare & 16 ? number(2) : 0);
    return frame;
}

/* What the peer does next; `index` is the victim's, of which its own should be near; a frame would
 * be looked for at `next`. */
static struct move peers_move(uint64_t index, uint64_t next)
{
    static const size_t words[] = {
        WORDS + offsetof(struct ipcq_words, wait_records),
        WORDS + offsetof(struct ipcq_words, wait_space), WORDS + offsetof(struct ipcq_words, closed)};
    struct move m = {0};
    uint64_t ring = arena->capacity * arena->size, value;
    switch (number(1) % 8) {
    case 0:
    case 1:
        m.offset = offsetof(struct ipcq_segment, head);
        goto an_index;
    case 2:
    case 3:
        m.offset = offsetof(struct ipcq_segment, tail);
    an_index:
        value = index_near(index);
        m.size = 8;
        break;
    case 4:
        m.offset = words[number(1) % 3];
        value = number(1) == 0 ? number(4) : number(1);
        m.size = 4;
        break;
    case 5:
        m.offset = (size_t)(number(2) % (arena->bytes - 8));
        value = number(8);
        m.size = 8;
        break;
    default:
        if (arena->frames) {
            struct ipcq_frame frame = any_frame();
            m.offset = IPCQ_HEADER_SIZE + ((next + 16 * up_to(8)) & (ring - 1) & ~(uint64_t)15);
            m.size = sizeof frame;
            memcpy(m.bytes, &frame, sizeof frame);
            return m;
        }
        m.offset = (size_t)(IPCQ_HEADER_SIZE + up_to(ring - 1));
        value = number(4);
        m.size = ring < 4 ? 1 : 4;
        m.offset = m.offset + m.size > arena->bytes ? arena->bytes - m.size : m.offset;
    }
    memcpy(m.bytes, &value, m.size);
    return m;
}

/* Read what the victim has sent: doorbells, and descriptors that it gives. */
static void drain_bell(void)
{
    for (;;) {
        unsigned char data[64];
        alignas(struct cmsghdr) char control[CMSG_SPACE(8 * sizeof(int))];
        struct iovec bytes = {data, sizeof data};
        struct msghdr m = {.msg_iov = &bytes,
                           .msg_iovlen = 1,
                           .msg_control = control,
                           .msg_controllen = sizeof control};
        ssize_t n = recvmsg(bell[1], &m, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
        if (n <= 0)
            return;
        CHECK(n % 2 == 0);
        for (ssize_t i = 0; i < n; i += 2)
            CHECK(data[i] == IPCQ_OPCODE_WRITE || data[i] == IPCQ_OPCODE_READ ||
                  data[i] == IPCQ_OPCODE_FDS);
        struct cmsghdr *c = CMSG_FIRSTHDR(&m);
        size_t fds = c == NULL ? 0 : (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < fds; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
            close(fd);
        }
    }
}

static void hang_up(void)
{
    for (int i = 0; i < 2; i++) {
        if (bell[i] >= 0)
            close(bell[i]);
        bell[i] = -1;
    }
}

static void connect_bell(void)
{
    if (bell[0] >= 0)
        return;
    int smallest = 1;
    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, bell) == 0);
    setsockopt(bell[0], SOL_SOCKET, SO_SNDBUF, &smallest, sizeof smallest);
}

/* One step of the peer; whether it was one. */
static int peer_steps(unsigned step, uint64_t index, uint64_t next)
{
    struct move m;
    switch (step) {
    case 0:
    case 1:
        m = peers_move(index, next);
        make_move(&m);
        return 1;
    case 2:
        loads_until_ambush = 0; /* while it is made up */
        ambush = peers_move(index, next);
        loads_until_ambush = 1 + (unsigned)number(1) % 12;
        return 1;
    case 3:
        drain_bell();
        return 1;
    case 4:
        if (number(1) == 77)
            shutdown(bell[1], SHUT_RDWR);
        return 1;
    }
    return 0;
}

/* -- a receiver as the victim ------------------------------------------------------------- */

static struct ipcq_receiver *r;
static uint64_t tail, next; /* what was taken, and what was looked at */
static int corrupt;

static uint64_t behind_the_end(const char *at)
{
    return (uint64_t)((const char *)shown->slots + arena->capacity * arena->size *
                          (arena->frames ? 2u : 1u) - at);
}

/* Sanitizers look at each byte that is read. */
static void read_all(const char *at, uint64_t bytes)
{
    CHECK(at >= (const char *)shown->slots && bytes <= behind_the_end(at));
    for (uint64_t i = 0; i < bytes; i++)
        (void)*(const volatile char *)(at + i);
}

static void latch(int result)
{
    if (corrupt)
        CHECK(result == IPCQ_CORRUPT);
    corrupt = corrupt || result == IPCQ_CORRUPT;
}

/* Whoever asks for the indices is told if the peer's cannot be; `between` is how far apart they
 * are, and is `known` if it has not changed meanwhile. */
static void check_indices(int result, uint64_t between, int known)
{
    CHECK(result == IPCQ_DONE || result == IPCQ_CORRUPT);
    CHECK(!known || (result == IPCQ_CORRUPT) == (corrupt || between > arena->capacity));
    CHECK(!corrupt || result == IPCQ_CORRUPT);
}

static void pop(void)
{
    uint64_t most = up_to(2 * arena->capacity + 2), not_delivered = number(1) > 240 ? 1 : 0, count;
    unsigned before = ambushes;
    char *into = malloc(most * arena->size + 1);
    CHECK(into != NULL);
    ASAN_POISON_MEMORY_REGION(into + most * arena->size, 1);
    int result = ipcq_pop(r, into, most, tail - not_delivered, &count);
    if (not_delivered) {
        CHECK(result == IPCQ_AGAIN && count == 1);
        free(into);
        return;
    }
    latch(result);
    CHECK(result == IPCQ_DONE || result == IPCQ_EMPTY || result == IPCQ_CORRUPT);
    CHECK(result == IPCQ_DONE ? count > 0 && count <= most && count <= arena->capacity
                              : count == 0);
    for (uint64_t i = 0; ambushes == before && i < count; i++)
        CHECK(memcmp(into + i * arena->size,
                     shown->slots + ((tail + i) & (arena->capacity - 1)) * arena->size,
                     arena->size) == 0);
    free(into);
    tail += count;
    if ((int64_t)(next - tail) < 0)
        next = tail;
}

static void look(void)
{
    const char *at;
    uint64_t run;
    if (number(1) > 250) {
        CHECK(corrupt || ipcq_look(r, tail - 1, &at, &run) == IPCQ_AGAIN);
        return;
    }
    int result = ipcq_look(r, next, &at, &run);
    latch(result);
    CHECK(result == IPCQ_DONE || result == IPCQ_EMPTY || result == IPCQ_CORRUPT);
    if (result != IPCQ_DONE) {
        CHECK(run == 0);
        return;
    }
    uint64_t slot = next & (arena->capacity - 1);
    CHECK(at == (const char *)shown->slots + slot * arena->size);
    CHECK(run >= 1 && run <= arena->capacity - slot && run <= arena->capacity - (next - tail));
    read_all(at, run * arena->size);
    next += up_to(run);
}

static void look_at_frame(void)
{
    struct ipcq_frame frame;
    const char *at;
    uint64_t most = number(1);
    most = most < 128 ? arena->capacity : most < 192 ? most - 128 : number(5);
    unsigned before = ambushes;
    int result = ipcq_frame_look(r, next, most, &frame, &at);
    latch(result);
    CHECK(result == IPCQ_DONE || result == IPCQ_EMPTY || result == IPCQ_CORRUPT);
    if (result != IPCQ_DONE)
        return;
    CHECK(at == (const char *)shown->slots + (next & (arena->capacity - 1)) + sizeof frame);
    CHECK(ambushes > before || memcmp(at - sizeof frame, &frame, sizeof frame) == 0);
    CHECK(frame.size <= (frame.flags & IPCQ_OUTSIDE ? sizeof(struct ipcq_outside) : most));
    CHECK(!(frame.flags & ~IPCQ_KNOWN_FLAGS) && frame.reserved == 0);
    CHECK(frame.fds + frame.regions <= IPCQ_MAX_FRAME_FDS);
    uint64_t extent = ipcq_frame_extent(frame.size);
    CHECK(extent <= arena->capacity - (next - tail) && extent <= ipcq_seen(r, next));
    read_all(at, frame.size);
    next += extent;
}

static void take(void)
{
    uint64_t to = next;
    if (!arena->frames)
        to = tail + up_to(next - tail);
    CHECK(ipcq_take(r, to) == IPCQ_DONE);
    tail = to;
}

static void receiver_steps(unsigned step)
{
    uint64_t head, taken;
    unsigned before;
    int result;
    struct ipcq_counts counts;
    switch (step) {
    case 0:
    case 1:
        (arena->frames ? look_at_frame : pop)();
        break;
    case 2:
        (arena->frames ? look_at_frame : look)();
        break;
    case 3:
        take();
        break;
    case 4:
        ipcq_see(r);
        CHECK(ipcq_seen(r, tail) <= arena->capacity);
        break;
    case 5:
        before = ambushes;
        result = ipcq_receiver_indices(r, &head, &taken);
        check_indices(result, UNHOOKED(&shown->head) - tail, ambushes == before);
        corrupt = corrupt || result == IPCQ_CORRUPT;
        CHECK(taken == tail && head - taken <= arena->capacity);
        break;
    case 6:
        result = ipcq_arm_records(r);
        CHECK(result == IPCQ_DONE || result == IPCQ_EMPTY);
        break;
    case 7:
        ipcq_disarm_records(r);
        break;
    case 8:
        result = ipcq_spin_records(r, 0);
        CHECK(result == IPCQ_DONE || result == IPCQ_EMPTY);
        CHECK(ipcq_await_records(r) == IPCQ_EMPTY); /* without patience */
        break;
    default:
        CHECK(!ipcq_is_forked(r));
        (void)ipcq_is_quiet(r, next);
        (void)ipcq_is_silent(r);
        (void)ipcq_closed(shown, LINE);
        ipcq_sending_counts(shown, &counts);
    }
    corrupt = corrupt || r->corrupt;
    CHECK(UNHOOKED(&r->tail) == tail && UNHOOKED(&own->tail) == tail);
    CHECK(r->head - tail <= arena->capacity);
}

/* -- a sender as the victim --------------------------------------------------------------- */

static struct ipcq_sender *s;
static uint64_t head, reserved;
static unsigned char stamp;

static char *records(uint64_t bytes)
{
    char *data = malloc(bytes + 1);
    CHECK(data != NULL);
    for (uint64_t i = 0; i < bytes; i++)
        data[i] = (char)++stamp;
    ASAN_POISON_MEMORY_REGION(data + bytes, 1);
    return data;
}

/* Whether the ring holds `bytes` of data from a unit on. */
static int holds(uint64_t at, const char *data, uint64_t bytes)
{
    for (uint64_t i = 0; i < bytes; i++) {
        uint64_t there = (at * arena->size + i) & (arena->capacity - 1);
        if (!arena->frames)
            there = (at * arena->size + i) % (arena->capacity * arena->size);
        if (own->slots[there] != (unsigned char)data[i])
            return 0;
    }
    return 1;
}

static void latch_sent(int result)
{
    if (corrupt)
        CHECK(result == IPCQ_CORRUPT);
    corrupt = corrupt || result == IPCQ_CORRUPT;
    CHECK(result == IPCQ_DONE || result == IPCQ_FULL || result == IPCQ_GONE ||
          result == IPCQ_CORRUPT);
}

static uint64_t place_of(uint64_t index)
{
    return index & (arena->capacity - 1);
}

static void push(void)
{
    uint64_t n = up_to(2 * arena->capacity + 2), done;
    char *data = records(n * arena->size);
    struct ipcq_piece piece = {.at = data, .size = n};
    int result = ipcq_push_pieces(s, &piece, 1, &done);
    latch_sent(result);
    CHECK(done <= n && done <= arena->capacity && (result == IPCQ_DONE || done == 0));
    CHECK(result != IPCQ_DONE || n == 0 || done > 0);
    CHECK(holds(place_of(head), data, done * arena->size));
    head += done;
    free(data);
}

static void push_pieces(void)
{
    struct ipcq_piece pieces[MAX_PIECES];
    uint64_t count = up_to(MAX_PIECES), done, all = 0;
    char *data[MAX_PIECES];
    for (uint64_t i = 0; i < count; i++) {
        uint64_t n = up_to(arena->frames ? 2 * arena->capacity : arena->capacity + 2);
        data[i] = records(n * arena->size);
        pieces[i] = (struct ipcq_piece){.at = data[i], .size = n};
        all += n;
    }
    int result = arena->frames ? ipcq_frame_push_pieces(s, pieces, NULL, count, &done)
                               : ipcq_push_pieces(s, pieces, count, &done);
    latch_sent(result);
    if (arena->frames) {
        CHECK(done <= count);
        for (uint64_t i = 0; i < done; i++) {
            CHECK(ipcq_frame_extent(pieces[i].size) <= arena->capacity);
            head += ipcq_frame_extent(pieces[i].size);
        }
    } else {
        CHECK(done <= all);
        head += done;
    }
    for (uint64_t i = 0; i < count; i++)
        free(data[i]);
}

static void push_frame(void)
{
    uint64_t size = number(1);
    if (size > 200)
        size = up_to(2 * arena->capacity);
    struct ipcq_frame frame = {.size = (uint32_t)size, .tag = stamp};
    frame.fds = (uint16_t)(number(1) > 200 ? 1 : 0);
    int fds[1] = {null_fd};
    struct ipcq_use use = {0, 0};
    char *data = records(size);
    CHECK(ipcq_frame_units(s, &frame) >= ipcq_frame_extent(size));
    int result = ipcq_frame_send(s, &frame, data, fds, &use);
    if (!frame.fds || result != IPCQ_STUCK)
        latch_sent(result);
    CHECK(use.times == (result == IPCQ_DONE));
    if (result == IPCQ_DONE) {
        CHECK(holds(place_of(head), (const char *)&frame, sizeof frame));
        CHECK(holds(place_of(head + sizeof frame), data, size));
        head += ipcq_frame_extent(size);
        CHECK(use.end == head);
    }
    free(data);
}

static void push_frames(void)
{
    struct ipcq_piece frames[MAX_PIECES];
    struct ipcq_label labels[MAX_PIECES];
    uint64_t count = up_to(MAX_PIECES), done, bytes = 0;
    for (uint64_t i = 0; i < count; i++) {
        uint64_t size = number(1) > 128 ? number(1) : up_to(arena->capacity);
        frames[i] = (struct ipcq_piece){.size = size};
        labels[i] = (struct ipcq_label){.tag = (uint32_t)i};
        bytes += size;
    }
    char *data = records(bytes), *at = data;
    for (uint64_t i = 0; i < count; at += frames[i++].size)
        frames[i].at = at;
    latch_sent(ipcq_frame_push_pieces(s, frames, labels, count, &done));
    CHECK(done <= count);
    for (uint64_t i = 0; i < done; i++)
        head += ipcq_frame_extent(frames[i].size);
    free(data);
}

static void reserve(void)
{
    char *at;
    uint64_t run, units = 1 + up_to(arena->capacity);
    if (arena->frames)
        units = ipcq_frame_extent(units);
    int result = ipcq_reserve(s, units, &at, &run);
    latch_sent(result);
    reserved = 0;
    if (result != IPCQ_DONE)
        return;
    CHECK(units <= arena->capacity);
    CHECK(at == (char *)own->slots + place_of(head) * arena->size);
    CHECK(run >= 1 && run <= units && run <= arena->capacity - place_of(head));
    memset(at, stamp, (arena->frames ? units : run) * arena->size);
    reserved = units;
}

static void commit(void)
{
    uint64_t units;
    int result, wake = (int)(number(1) & 1);
    if (reserved == 0)
        return;
    if (arena->frames) {
        struct ipcq_frame frame = {.size = (uint32_t)up_to(reserved - sizeof frame)};
        units = ipcq_frame_extent(frame.size);
        result = ipcq_frame_commit(s, &frame, wake);
    } else {
        units = 1 + up_to(reserved - 1);
        result = ipcq_commit(s, units, wake);
    }
    reserved = 0;
    CHECK(result != IPCQ_FULL);
    latch_sent(result);
    if (result == IPCQ_DONE)
        head += units;
}

static void sender_steps(unsigned step)
{
    uint64_t published, taken;
    unsigned before;
    int result;
    struct ipcq_counts counts;
    if (step < 4)
        reserved = 0; /* it is for what is pushed now */
    switch (step) {
    case 0:
    case 1:
        (arena->frames ? push_frame : push)();
        break;
    case 2:
        push_pieces();
        break;
    case 3:
        (arena->frames ? push_frames : push)();
        break;
    case 4:
        reserve();
        break;
    case 5:
        commit();
        break;
    case 6:
        before = ambushes;
        result = ipcq_sender_indices(s, &published, &taken);
        check_indices(result, head - UNHOOKED(&shown->tail), ambushes == before);
        corrupt = corrupt || result == IPCQ_CORRUPT;
        CHECK(published == head && published - taken <= arena->capacity);
        break;
    case 7:
        result = ipcq_arm_space(s, 1 + up_to(arena->capacity));
        CHECK(result == IPCQ_DONE || result == IPCQ_FULL);
        break;
    case 8:
        ipcq_disarm_space(s);
        break;
    default:
        result = ipcq_spin_space(s, 1 + up_to(arena->capacity), 0);
        CHECK(result == IPCQ_DONE || result == IPCQ_FULL);
        CHECK(ipcq_await_space(s, 1) == IPCQ_FULL); /* without patience */
        ipcq_receiving_counts(shown, &counts);
    }
    corrupt = corrupt || s->corrupt;
    CHECK(UNHOOKED(&s->head) == head && UNHOOKED(&own->head) == head);
    CHECK(head - s->tail <= arena->capacity);
}

/* -- one input ---------------------------------------------------------------------------- */

static void begin(void)
{
    static const uint64_t starts[] = {0, UINT64_MAX - 4095, (UINT64_C(1) << 63) - 4096,
                                      UINT64_C(0xfffffff0)};
    arena = &arenas[number(1) % ARENAS];
    uint64_t start = starts[number(1) % 4];
    if (arena->own == NULL)
        make(arena);
    connect_bell();
    own = (struct ipcq_segment *)(void *)arena->own;
    shown = (const struct ipcq_segment *)(const void *)arena->shown;
    memset(arena->written, 0, arena->bytes);
    memset(own->slots, 0, arena->capacity * arena->size);
    memset(arena->own, 0, IPCQ_HEADER_SIZE);
    own->identity.layout_version = UNTOUCHED;
    uint64_t *indices = (uint64_t *)(void *)(arena->written + offsetof(struct ipcq_segment, head));
    *indices = start;
    memcpy(arena->written + offsetof(struct ipcq_segment, tail), &start, sizeof start);
    atomic_store(&own->head, start);
    atomic_store(&own->tail, start);
    head = tail = next = start;
    corrupt = 0;
    reserved = 0;
    loads_until_ambush = 0;
    struct ipcq_identity identity;
    struct ipcq_names names;
    ipcq_read_identity(shown, &identity, &names);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (r == NULL) {
        r = malloc(ipcq_receiver_size());
        s = malloc(ipcq_sender_size());
        null_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
        CHECK(r != NULL && s != NULL && null_fd >= 0);
    }
    input = data;
    input_end = data + size;
    begin();
    uint64_t start = head;
    int sends = (int)(number(1) & 1);
    if (sends)
        ipcq_sender_init(s, own, LINE, shown, LINE, arena->capacity, arena->size, bell[0], start);
    else
        ipcq_receiver_init(r, own, LINE, shown, LINE, arena->capacity, arena->size, bell[0], start);
    for (int i = 0; i < MAX_STEPS && input < input_end; i++) {
        unsigned step = (unsigned)number(1) % 16;
        if (step >= 10 && peer_steps(step - 10, sends ? head : tail, next))
            continue;
        (sends ? sender_steps : receiver_steps)(step % 10);
    }
    loads_until_ambush = 0;
    CHECK(UNHOOKED(&own->head) == head && UNHOOKED(&own->tail) == tail);
    CHECK(own->identity.layout_version == UNTOUCHED && UNHOOKED(&words_of(own, LINE)->closed) == 0);
    drain_bell();
    char byte;
    if (recv(bell[1], &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0)
        hang_up(); /* it was shut down: a new one for the next input */
    return 0;
}

#ifdef REPLAY
int main(int count, char **names)
{
    for (int i = 1; i < count; i++) {
        static uint8_t data[1 << 16];
        int fd = open(names[i], O_RDONLY);
        ssize_t n = fd < 0 ? -1 : read(fd, data, sizeof data);
        CHECK(n >= 0);
        close(fd);
        fprintf(stderr, "%s\n", names[i]); /* the last one named is the one that failed */
        uint8_t *exactly = malloc((size_t)n + 1);
        CHECK(exactly != NULL);
        memcpy(exactly, data, (size_t)n);
        LLVMFuzzerTestOneInput(exactly, (size_t)n);
        free(exactly);
    }
    return 0;
}
#endif
