#pragma once
#include <stdint.h>
#include <stddef.h>

/*
 * The interface of the C core.  The C compiler and cffi both read this file, so there is no second
 * copy.  _build.py passes it to cdef() without the lines that begin with '#', and accepts only the
 * three above; that is why constants are enums.
 *
 * Nothing here allocates.  Only ipcq_spin_* and ipcq_await_* block, for the time given.
 * Two calls must not run concurrently for the same sender (or receiver), with exceptions:
 * ipcq_undelivered, ipcq_spin_*, ipcq_await_*, ipcq_arm_* and ipcq_disarm_* may run beside push
 * and pop; but arm and disarm not beside each other.  Results: 0 is success, a positive result is
 * expected in normal operation, a negative one means that the peer is corrupt.
 */
enum {
    IPCQ_DONE = 0,
    IPCQ_FULL = 1,    /* no space for a single record */
    IPCQ_EMPTY = 2,   /* no record waits */
    IPCQ_GONE = 3,    /* the peer has ended or died: it will receive nothing more */
    IPCQ_FORKED = 4,  /* this process is a fork of the one that owns the ring */
    IPCQ_AGAIN = 5,   /* records taken earlier were never delivered: see ipcq_pop */
    IPCQ_STUCK = 6,   /* the socket takes no descriptors now; nothing was sent */
    IPCQ_ERROR = 7,   /* a system call failed, see errno; nothing was sent */
    IPCQ_CORRUPT = -1 /* the peer's index is impossible; every later call returns this, too */
};

/* The two shapes of ring; capacity counts slots in the first, bytes in the second. */
enum {
    IPCQ_SLOTS = 0,
    IPCQ_FRAMES = 1
};

enum {
    IPCQ_LAYOUT_VERSION = 3,
    IPCQ_BYTE_ORDER = 0x01020304,
    IPCQ_HEADER_SIZE = 4096,
    IPCQ_LINE = 128,             /* bytes; processors fetch cache lines in pairs */
    IPCQ_FIRST_WAKE_LINE = 13,   /* lines of the header in which an owner's words may be */
    IPCQ_LAST_WAKE_LINE = 22,
    IPCQ_MAX_SLOT_SIZE = 16777216,
    IPCQ_MAX_NAMES = 64,         /* of fields that are stated one by one */
    IPCQ_FRAME_ALIGN = 16,       /* frames begin at multiples of it; also the size of a header */
    IPCQ_MAX_FRAME_FDS = 253,    /* SCM_MAX_FD */
    IPCQ_MAX_ATTACHED = 16,      /* frames with descriptors under way: each occupies descriptors of
                                    the receiver before it asks for them; a guess */
    IPCQ_OUT_OF_LINE = 0x8000,   /* a frame's flag: the message is in a region sent beside it */
    IPCQ_OUT_AGAIN = 0x4000,     /* or: in a region that was sent before */
    IPCQ_OUTSIDE = IPCQ_OUT_OF_LINE | IPCQ_OUT_AGAIN,
    IPCQ_KNOWN_FLAGS = IPCQ_OUTSIDE | 0xff,
    IPCQ_OPCODE_WRITE = 1,       /* control messages: records were published, */
    IPCQ_OPCODE_READ = 2,        /* space was freed, */
    IPCQ_OPCODE_FDS = 17,        /* these descriptors belong to the next frame that has any */
    IPCQ_LARGE = 1048576,        /* bytes: while a larger message is copied, other Python threads
                                    run; the copy takes 0.1 ms, far more than reacquiring the GIL */
    IPCQ_MAX_BYTES = 8388608,   /* one call, or one piece of a large message, moves: 2 to 5 ms */
    IPCQ_MAX_SPIN_NS = 1000000, /* after this time a spinning end looks at the socket */
    IPCQ_SPIN_NS = 30000         /* how long spinning before sleep may pay; see ends.h */
};

/* How the owner of a segment has ended, in bits; see docs/protocol.md. */
enum {
    IPCQ_NO_MORE = 1,    /* publishes no more */
    IPCQ_TAKES_NONE = 2, /* takes no more */
    IPCQ_ABORTED = 4,    /* neither any more, and not in good order */
    IPCQ_KNOWN_ENDS = IPCQ_NO_MORE | IPCQ_TAKES_NONE | IPCQ_ABORTED
};

/* A segment's description of itself.  Plain data: ipcq_read_identity copies it out, once. */
struct ipcq_identity {
    char magic[8]; /* MEMENPSF, without a terminating zero */
    uint32_t layout_version;
    uint32_t byte_order;
    uint32_t header_size;
    uint32_t slot_size;    /* bytes of one record, 1 to IPCQ_MAX_SLOT_SIZE; 1 for frames */
    uint64_t capacity;     /* slots, or bytes of frames; a power of two; 0: sends nothing */
    uint64_t segment_size; /* bytes of the whole file */
    uint8_t fingerprint[16]; /* of the record's layout; not of its field names */
    uint32_t creator_pid;    /* as the creator sees it; for tools, nothing depends on it */
    uint32_t shape; /* IPCQ_SLOTS or IPCQ_FRAMES */
    uint64_t max_message;    /* frames: bytes of the largest message that the owner accepts */
    uint32_t accept_fds;     /* frames: largest number of descriptors with one message */
    uint32_t accept_regions; /* frames: largest number of memory regions with one message */
    uint32_t accept_flags;   /* 1: regions that the giver can still write; 2: sockets */
    uint32_t wake_line;      /* in which line of the header the words of the owner are */
    uint64_t generation;     /* this and the next three: zero, for rings that are replaced */
    uint64_t base;
    uint64_t switch_at;
    uint8_t session[16];
    char name[64];    /* UTF-8, zero-padded */
    char record[512]; /* the record's layout in words, for error messages */
};

/* What a segment says of the names of its record's fields; see _records/names.py. */
struct ipcq_name {
    uint64_t hash, offset;
};

struct ipcq_names {
    uint64_t count;       /* names; 0: none */
    uint64_t all, placed; /* of more than IPCQ_MAX_NAMES: a hash of all, and with their offsets */
    struct ipcq_name first[64]; /* in order of offset; behind the last, zeros */
};

typedef struct ipcq_sender ipcq_sender;
typedef struct ipcq_receiver ipcq_receiver;

struct ipcq_counts {
    uint64_t doorbells, waits, refused, last_active_ns;
};

/* -- segments ------------------------------------------------------------------------ */

/* Copy the identity out; each byte is read once, because the peer may change it meanwhile. */
void ipcq_read_identity(const void *segment, struct ipcq_identity *into, struct ipcq_names *names);
void ipcq_write_identity(void *segment, const struct ipcq_identity *from,
                         const struct ipcq_names *names);

/* What is reserved in a segment beside its identity, together: zero, as nothing uses it yet.  `line`
 * is where its words are, if it is lawful. */
uint64_t ipcq_reserved(const void *segment, uint32_t line);

/* Whether a descriptor is a socket; does not ask its file system, which may be a stranger's. */
int ipcq_is_socket(int fd);

/* How the owner of a segment has ended; `line` is where its words are. */
uint32_t ipcq_closed(const void *segment, uint32_t line);

/* Say in one's own segment how one has ended, and wake a peer that sleeps: by the socket `bell`,
 * unless it is -1. */
void ipcq_set_closed(void *own, uint32_t own_line, uint32_t ends, const void *peer,
                     uint32_t peer_line, int bell);

/* -- sending ------------------------------------------------------------------------- */

size_t ipcq_sender_size(void);

/* `own` holds slots and head, and is written; `peer` holds tail, and is only read.  The words of both
 * are in these lines.  Doorbells go to socket `bell` (borrowed); -1 sends none.  Counting starts at
 * `head`: 0, except in tests of index overflow. */
void ipcq_sender_init(ipcq_sender *s, void *own, uint32_t own_line, const void *peer,
                      uint32_t peer_line, uint64_t capacity, uint32_t slot_size, int bell,
                      uint64_t head);

/* Also use pidfd `process` (borrowed; -1: none) to notice that the peer has died: another process
 * may keep its socket open. */
void ipcq_sender_watch(ipcq_sender *s, int process);

/* Never use socket and pidfd again: the caller closes them, and their numbers may be reused. */
void ipcq_sender_silence(ipcq_sender *s);

/* Publish one record of slot_size bytes. DONE, FULL, GONE, FORKED, CORRUPT. */
int ipcq_push(ipcq_sender *s, const char *record);

/* Bytes anywhere in the memory of this process: `size` records, or a message of `size` bytes. */
struct ipcq_piece {
    const char *at;
    uint64_t size;
};

/* The tag and the flags of a message; see struct ipcq_frame. */
struct ipcq_label {
    uint32_t tag, flags;
};

/* Publish the first *done records of `count` pieces: as many as fit.
 * DONE (*done > 0, or there are none), FULL (*done == 0; not counted as refused, because ipcq_push
 * of the next record counts it), GONE, FORKED, CORRUPT. */
int ipcq_push_pieces(ipcq_sender *s, const struct ipcq_piece *pieces, uint64_t count,
                     uint64_t *done);

/* Announce sleep until there is space for `units`, then look again.  FULL: a doorbell will come
 * when space is freed.  DONE: there is no need to sleep.  Arming again asks for a new doorbell.
 * disarm withdraws the announcement; it is harmless if there is none. */
int ipcq_arm_space(ipcq_sender *s, uint64_t units);
void ipcq_disarm_space(ipcq_sender *s);

/* The units published, and those that the peer has taken.  May return CORRUPT. */
int ipcq_sender_indices(ipcq_sender *s, uint64_t *head, uint64_t *tail);

/* Return in *at where the next `units` go; *run of them are contiguous (for frames, all).  Nobody
 * sees what is written there before ipcq_commit; abandoning it needs no call.
 * DONE, FULL, GONE, FORKED, CORRUPT. */
int ipcq_reserve(ipcq_sender *s, uint64_t units, char **at, uint64_t *run);

/* Set how long ipcq_await_* spins before sleeping, at most IPCQ_MAX_SPIN_NS.  `adaptive`: shorter
 * while it does not pay, and not at all on one processor.  `yields`: call sched_yield() after each
 * look; on one processor that is always done. */
void ipcq_sender_patience(ipcq_sender *s, uint64_t nanoseconds, int adaptive, int yields);

/* Publish the first `units` of the reserved space; with `wake` 0, do not wake a sleeping peer. */
int ipcq_commit(ipcq_sender *s, uint64_t units, int wake);

/* -- receiving ----------------------------------------------------------------------- */

size_t ipcq_receiver_size(void);
void ipcq_receiver_init(ipcq_receiver *r, void *own, uint32_t own_line, const void *peer,
                        uint32_t peer_line, uint64_t capacity, uint32_t slot_size, int bell,
                        uint64_t tail);
void ipcq_receiver_silence(ipcq_receiver *r);

/* Copy out up to `max` records, contiguously, and free their slots. DONE (*count > 0),
 * EMPTY, FORKED, CORRUPT.
 *
 * `delivered` is the number of records that the caller has delivered so far.  It is less than the
 * number taken if an exception came after an earlier call and before the caller noted its result.
 * Then nothing is taken: AGAIN, and *count records are still at the start of the buffer of that
 * earlier call. */
int ipcq_pop(ipcq_receiver *r, char *into, uint64_t max, uint64_t delivered, uint64_t *count);

void ipcq_receiver_patience(ipcq_receiver *r, uint64_t nanoseconds, int adaptive, int yields);

/* Whether a spinning receiver calls sched_yield() after each look. */
int ipcq_yields(ipcq_receiver *r);

/* How many nanoseconds of spinning are worth it now; and the report whether records came. */
uint64_t ipcq_patience(ipcq_receiver *r);
void ipcq_learn(ipcq_receiver *r, int came);

/* ipcq_is_quiet: whether no record waits, and the peer's segment shows neither its end nor an
 * impossible index.  ipcq_is_silent: whether the socket has nothing to read, not even EOF. */
int ipcq_is_quiet(ipcq_receiver *r, uint64_t from);
int ipcq_is_silent(const ipcq_receiver *r);

/* Show the units from index `from` on, in place: *run contiguous units at *at; more may follow.
 * The peer can change them at any time.  DONE, EMPTY, AGAIN (they were taken already), FORKED,
 * CORRUPT. */
int ipcq_look(ipcq_receiver *r, uint64_t from, const char **at, uint64_t *run);

/* Whether this process is a fork of the one that owns the ring. */
int ipcq_is_forked(const ipcq_receiver *r);

/* ipcq_see: load the peer's head once.  ipcq_seen: the units from index `from` up to that head.  A
 * caller that takes many units uses them, so that it does not follow a fast peer for ever. */
void ipcq_see(ipcq_receiver *r);
uint64_t ipcq_seen(const ipcq_receiver *r, uint64_t from);

/* Free everything before index `to`; an index that is already free is harmless. */
int ipcq_take(ipcq_receiver *r, uint64_t to);

int ipcq_arm_records(ipcq_receiver *r);
void ipcq_disarm_records(ipcq_receiver *r);
int ipcq_receiver_indices(ipcq_receiver *r, uint64_t *head, uint64_t *tail);

/* -- frames: messages of any length -------------------------------------------------------
 *
 * A frame is a header and `size` bytes, padded to IPCQ_FRAME_ALIGN.  Indices count bytes.  */

struct ipcq_frame {
    uint32_t size;    /* bytes of payload */
    uint32_t tag;     /* the application's */
    uint16_t flags;   /* low byte: the application's; high byte: ours, IPCQ_OUTSIDE */
    uint16_t fds;     /* descriptors sent beside it: first those of the application, */
    uint16_t regions; /* then those of memory regions */
    uint16_t reserved;
};

/* The payload of a frame whose message is in a memory region; see _ring/outside.py. */
struct ipcq_outside {
    uint64_t size;   /* bytes of the message, at the beginning of the region */
    uint32_t number; /* of the region */
    uint32_t reserved;
};

/* The use of one of the sender's memory regions. */
struct ipcq_use {
    uint64_t times; /* frames published with it */
    uint64_t end;   /* where the last of them ends: the region is free once tail has reached it */
};

/* Messages, and the bytes of those that travel outside the ring. */
struct ipcq_tally {
    uint64_t messages, outside;
};

/* Bytes of ring that a frame of `size` bytes takes. */
uint64_t ipcq_frame_extent(uint64_t size);

/* Publish a frame, with a copy of the payload.  If it has descriptors (frame->fds + frame->regions
 * of them), send those first, in one message: the peer has them when it sees the frame.  DONE,
 * FULL (no space, or too many frames with descriptors under way), STUCK, ERROR, GONE, FORKED,
 * CORRUPT. */
int ipcq_frame_push(ipcq_sender *s, const struct ipcq_frame *frame, const char *payload,
                    const int *fds);

/* The same for a frame with descriptors; if it is published, also note it in *use, unless that is
 * NULL.  One call, so that no signal handler can come between the two. */
int ipcq_frame_send(ipcq_sender *s, const struct ipcq_frame *frame, const char *payload,
                            const int *fds, struct ipcq_use *use);

/* The units of space to wait for after ipcq_frame_push returned FULL. */
uint64_t ipcq_frame_units(ipcq_sender *s, const struct ipcq_frame *frame);

/* Publish the first *done of `count` messages without descriptors; as ipcq_push_pieces.  `labels`:
 * one for each, or NULL if no message has a tag or flags. */
int ipcq_frame_push_pieces(ipcq_sender *s, const struct ipcq_piece *pieces,
                           const struct ipcq_label *labels, uint64_t count, uint64_t *done);

/* Publish a frame in the space from ipcq_reserve: the caller has left room for a header and written
 * the payload behind it.  With `wake` 0, do not wake a sleeping peer. */
int ipcq_frame_commit(ipcq_sender *s, const struct ipcq_frame *frame, int wake);

/* What was published so far; and what of it the peer has not taken, as ipcq_sender_indices has last
 * seen it.  The latter looks at each frame that is left. */
void ipcq_frame_sender_tally(const ipcq_sender *s, struct ipcq_tally *published,
                             struct ipcq_tally *left);

/* What waits from byte index `from` on, up to the head last seen; at most `most` messages.  What
 * the peer says of a message outside the ring is not checked. */
void ipcq_frame_receiver_tally(const ipcq_receiver *r, uint64_t from, uint64_t most,
                               struct ipcq_tally *waiting);

/* Show the frame that begins at byte index `from`: its payload, in place, which the peer can change
 * at any time.  DONE, EMPTY, AGAIN, FORKED (as ipcq_look), CORRUPT (the frame reaches beyond what
 * is published, is larger than `max_size`, or has unknown flags).  `max_size` is only for messages
 * inside the ring; the caller checks the size of one outside. */
int ipcq_frame_look(ipcq_receiver *r, uint64_t from, uint64_t max_size, struct ipcq_frame *frame,
                    const char **at);

/* -- both ---------------------------------------------------------------------------- */

/* Counts the forks that led to this process: it differs between parent and child. */
uint32_t ipcq_fork_generation(void);

void ipcq_sending_counts(const void *segment, struct ipcq_counts *into);
void ipcq_receiving_counts(const void *segment, struct ipcq_counts *into);

/* -- waiting --------------------------------------------------------------------------
 *
 * These calls take time, so they release Python's GIL (_build.py).  All others return at once and
 * keep it, because reacquiring the GIL would take longer than the call. */

/* Map `size` bytes of `fd` over an existing mapping of `size` + `mirrored` bytes at `at`; -1 and
 * errno on failure.  All pages are loaded (for reading, those of the first 16 MiB).  A writable
 * mapping must be made before F_SEAL_FUTURE_WRITE.  Borrows the descriptor, which may be closed
 * afterwards.
 *
 * The last `mirrored` bytes (whole pages; 0 for slots) are mapped a second time behind the end.
 * The ring fills them, so a frame that wraps around continues there, in one piece. */
int ipcq_map(char *at, int fd, size_t size, size_t mirrored, int writable);

/* memcpy().  The caller makes sure that nobody else uses either memory meanwhile. */
void ipcq_copy(char *to, const char *from, size_t size);

/* Spin for at most `nanoseconds` until there is space for `units` (records, or bytes of frames).
 * DONE, FULL. */
int ipcq_spin_space(ipcq_sender *s, uint64_t units, uint64_t nanoseconds);

/* The same for records. DONE, EMPTY. */
int ipcq_spin_records(ipcq_receiver *r, uint64_t nanoseconds);

/* The same for as long as ipcq_*_patience allows.  For space, wait until an eighth of the ring is
 * free: a sender woken for each single unit would never get far ahead of its receiver. */
int ipcq_await_space(ipcq_sender *s, uint64_t units);
int ipcq_await_records(ipcq_receiver *r);
