/*
 * Records from one side to the other, in every way that the core has of publishing and of taking
 * them, in random amounts and with random pauses: exactly once, in order, byte by byte.
 *
 *     stream processes|threads|beside slots|frames CAPACITY SIZE COUNT SEED
 *
 * SIZE is that of a slot, or of the largest message.  What a record holds follows from its number
 * and the seed, and ends with a CRC of the rest.
 */
#include "two_ends.h"

enum { BATCH = 64, ROOM = 1 << 18 };

static struct ring ring;
static uint64_t count, seed;
static uint32_t largest;

/* -- records ---------------------------------------------------------------------------------- */

static uint32_t crc_table[8][256];

static void fill_crc_table(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t crc = i;
        for (int bit = 0; bit < 8; bit++)
            crc = (crc >> 1) ^ (crc & 1 ? 0xedb88320u : 0);
        crc_table[0][i] = crc;
    }
    for (int k = 1; k < 8; k++)
        for (int i = 0; i < 256; i++)
            crc_table[k][i] = (crc_table[k - 1][i] >> 8) ^
                              crc_table[0][crc_table[k - 1][i] & 0xff];
}

static uint32_t crc32(const char *at, size_t size)
{
    uint32_t crc = ~0u;
    for (; size >= 8; size -= 8, at += 8) {
        uint64_t word;
        memcpy(&word, at, 8);
        word ^= crc;
        crc = 0;
        for (int k = 0; k < 8; k++)
            crc ^= crc_table[7 - k][(word >> (8 * k)) & 0xff];
    }
    for (; size > 0; size--, at++)
        crc = (crc >> 8) ^ crc_table[0][(crc ^ (unsigned char)*at) & 0xff];
    return ~crc;
}

/* Mostly short; now and then one of any length, or one that fills the ring. */
static uint32_t size_of(uint64_t record)
{
    if (!ring.frames)
        return ring.unit;
    uint64_t chance = mixed(seed ^ (record << 1));
    uint32_t most = (chance & 63) == 0 ? largest : largest < 96 ? largest : 96;
    return (chance & 0xfff) == 0 ? largest : (uint32_t)((chance >> 12) % (most + 1));
}

/* Number, filling, CRC; where there is no room for these, as much of the filling as there is. */
static void write_record(uint64_t record, char *at)
{
    uint32_t size = size_of(record), middle = size >= 12 ? size - 12 : size;
    uint64_t word = mixed(seed + record);
    if (size >= 12) {
        memcpy(at, &record, 8);
        at += 8;
    }
    for (uint32_t i = 0; i < middle; i += 8, word = word * 5 + 1)
        memcpy(at + i, &word, middle - i < 8 ? middle - i : 8);
    if (size >= 12) {
        uint32_t crc = crc32(at - 8, size - 4);
        memcpy(at + middle, &crc, 4);
    }
}

static void check_record(uint64_t record, const char *at, uint32_t size)
{
    char expected[12];
    if (size != size_of(record))
        fail("record %lu has %u bytes, not %u", record, size, size_of(record));
    if (size < 12) {
        write_record(record, expected);
        if (memcmp(at, expected, size) != 0)
            fail("record %lu of %u bytes is another", record, size);
        return;
    }
    uint64_t found;
    uint32_t crc;
    memcpy(&found, at, 8);
    memcpy(&crc, at + size - 4, 4);
    if (found != record)
        fail("record %lu came instead of %lu", found, record);
    if (crc != crc32(at, size - 4))
        fail("record %lu is torn", record);
}

static uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* For results that say how much was done: whether any was. */
static unsigned went(int result, int other)
{
    if (result != IPCQ_DONE && result != other)
        fail("the core says %d", result);
    return result == IPCQ_DONE;
}

/* -- sending ---------------------------------------------------------------------------------- */

static char *room; /* the records that the sender is about to publish */

/* Write records from `first` on, one behind the other; *n of them, or fewer if they are large. */
static void write_records(uint64_t first, uint64_t *n, struct ipcq_frame *frames,
                          struct ipcq_piece *pieces)
{
    char *at = room;
    for (uint64_t i = 0; i < *n; i++) {
        uint32_t size = size_of(first + i);
        if (size > (size_t)(room + ROOM - at)) {
            *n = i;
            return;
        }
        write_record(first + i, at);
        frames[i] = (struct ipcq_frame){.size = size, .tag = (uint32_t)(first + i), .flags = 1};
        pieces[i] = (struct ipcq_piece){.at = at, .size = size};
        at += size;
    }
}

/* Put `n` records that stand one behind the other into fewer pieces. */
static uint64_t merged(struct end *end, struct ipcq_piece *pieces, uint64_t n)
{
    uint64_t used = 0;
    for (uint64_t i = 0; i < n; used++) {
        uint64_t records = 1 + below(&end->random, n - i);
        pieces[used] = (struct ipcq_piece){.at = pieces[i].at, .size = records};
        i += records;
    }
    return used;
}

/* Publish in two steps, of which the first wakes nobody; return how many records. */
static uint64_t send_reserved(struct end *end, uint64_t first, uint64_t n)
{
    char *at;
    uint64_t run, units = ring.frames ? ipcq_frame_extent(size_of(first)) : least(n, ring.capacity);
    if (!went(ipcq_reserve(end->sender, units, &at, &run), IPCQ_FULL))
        return 0;
    if (ring.frames) {
        struct ipcq_frame frame = {.size = size_of(first), .tag = (uint32_t)first, .flags = 1};
        write_record(first, at + sizeof frame);
        went(ipcq_frame_commit(end->sender, &frame, 1), IPCQ_DONE);
        return 1;
    }
    for (uint64_t i = 0; i < run; i++)
        write_record(first + i, at + i * ring.unit);
    uint64_t some = below(&end->random, run);
    if (some > 0)
        went(ipcq_commit(end->sender, some, 0), IPCQ_DONE);
    dawdle(end);
    went(ipcq_commit(end->sender, run - some, 1), IPCQ_DONE);
    return run;
}

/* Publish a message, now and then with descriptors. */
static unsigned send_attached(struct end *end, struct ipcq_frame *frame)
{
    static const int files[] = {STDERR_FILENO, STDERR_FILENO, STDERR_FILENO};
    /* Not where another thread reads the socket: they would be in its hands. */
    if (!end->sleeps_alone && below(&end->random, 64) == 0)
        frame->fds = (uint16_t)below(&end->random, sizeof files / sizeof *files + 1);
    int result = ipcq_frame_push(end->sender, frame, room, files);
    if (result == IPCQ_STUCK) {
        frame->fds = 0;
        result = ipcq_frame_push(end->sender, frame, room, NULL);
    }
    return went(result, IPCQ_FULL);
}

static uint64_t send_some(struct end *end, uint64_t first, uint64_t n)
{
    struct ipcq_frame frames[BATCH];
    struct ipcq_piece pieces[BATCH];
    uint64_t done = 0, way = below(&end->random, 3);
    if (way == 0)
        return send_reserved(end, first, n);
    if (way == 1)
        n = 1;
    write_records(first, &n, frames, pieces);
    if (way == 1)
        return ring.frames ? send_attached(end, frames)
                           : went(ipcq_push(end->sender, room), IPCQ_FULL);
    went(ring.frames ? ipcq_frame_push_pieces(end->sender, pieces, NULL, n, &done)
                     : ipcq_push_pieces(end->sender, pieces, merged(end, pieces, n), &done),
         IPCQ_FULL);
    return done;
}

static void send_all(struct end *end)
{
    uint64_t sent = 0;
    room = malloc(ROOM);
    must(room != NULL, "malloc");
    if (count > 0)
        await_asleep(end); /* for the first record */
    while (sent < count) {
        uint64_t n = least(1 + below(&end->random, BATCH), count - sent);
        uint64_t done = send_some(end, sent, n);
        sent += done;
        if (done == 0)
            wait_for(end, ring.frames ? ipcq_frame_extent(size_of(sent)) : 1);
        else
            dawdle(end);
    }
    uint64_t head, tail;
    while (went(ipcq_sender_indices(end->sender, &head, &tail), IPCQ_DONE) && tail != head)
        wait_for(end, ring.capacity);
    ipcq_set_closed(end->memory[0], IPCQ_FIRST_WAKE_LINE, IPCQ_NO_MORE | IPCQ_TAKES_NONE,
                    end->memory[1], IPCQ_FIRST_WAKE_LINE, end->socket);
    free(room);
}

/* -- receiving -------------------------------------------------------------------------------- */

static uint64_t take_slots(struct end *end, uint64_t taken, char *into)
{
    uint64_t n = 0, from = ring.start + taken, most = 1 + below(&end->random, BATCH);
    const char *at = into;
    if (below(&end->random, 2)) {
        went(ipcq_pop(end->receiver, into, most, from, &n), IPCQ_EMPTY);
        for (uint64_t i = 0; i < n; i++)
            check_record(taken + i, at + i * ring.unit, ring.unit);
        return n;
    }
    ipcq_see(end->receiver);
    most = least(most, ipcq_seen(end->receiver, from));
    uint64_t run;
    while (n < most && went(ipcq_look(end->receiver, from + n, &at, &run), IPCQ_EMPTY)) {
        run = least(run, most - n);
        for (uint64_t i = 0; i < run; i++)
            check_record(taken + n + i, at + i * ring.unit, ring.unit);
        n += run;
    }
    if (n > 0)
        went(ipcq_take(end->receiver, from + n), IPCQ_DONE);
    return n;
}

/* *from: where the next frame begins. */
static uint64_t take_frames(struct end *end, uint64_t taken, uint64_t *from)
{
    uint64_t n = 0, most = 1 + below(&end->random, BATCH);
    struct ipcq_frame frame;
    const char *at;
    while (n < most && went(ipcq_frame_look(end->receiver, *from, largest, &frame, &at),
                            IPCQ_EMPTY)) {
        if (frame.flags ? frame.tag != (uint32_t)(taken + n) : frame.tag != 0)
            fail("record %lu has tag %u", taken + n, frame.tag);
        check_record(taken + n, at, frame.size);
        while (end->files < frame.fds)
            if (!drain(end))
                fail("record %lu is there, and its descriptors are not", taken + n);
        end->files -= frame.fds;
        *from += ipcq_frame_extent(frame.size);
        n++;
    }
    if (n > 0)
        went(ipcq_take(end->receiver, *from), IPCQ_DONE);
    return n;
}

static void receive_all(struct end *end)
{
    char *into = malloc((size_t)BATCH * ring.unit);
    must(into != NULL, "malloc");
    uint64_t taken = 0, from = ring.start;
    if (count > 0) {
        while (spin(end, 0, 0) != IPCQ_DONE)
            wait_for(end, 0);
        await_asleep(end); /* for space, or at the end until all has been taken */
    }
    while (taken < count) {
        uint64_t n = ring.frames ? take_frames(end, taken, &from) : take_slots(end, taken, into);
        taken += n;
        if (n == 0)
            wait_for(end, 0);
        else
            dawdle(end);
    }
    uint64_t head, tail;
    went(ipcq_receiver_indices(end->receiver, &head, &tail), IPCQ_DONE);
    if (head != tail)
        fail("%lu were sent, and more has come", count);
    free(into);
}

int main(int argc, char **argv)
{
    begin(argv);
    if (argc != 7)
        fail("stream processes|threads|beside slots|frames CAPACITY SIZE COUNT SEED");
    ring.frames = strcmp(argv[2], "frames") == 0;
    ring.capacity = number(argv[3]);
    largest = (uint32_t)number(argv[4]);
    ring.unit = ring.frames ? 1 : largest;
    count = number(argv[5]);
    seed = number(argv[6]);
    ring.start = -(count / 2 * (ring.frames ? 16 : 1)); /* the indices pass through 0, too */
    fill_crc_table();
    struct connection connection;
    open_connection(&connection, &ring, seed);
    run_both(&connection, argv[1], send_all, receive_all);
    return 0;
}
