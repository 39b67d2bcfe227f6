#pragma once
#include <stdint.h>
#include <stddef.h>

/*
 * The interface of the C core, read by the C compiler and by cffi alike, so that it stands
 * once.  _build.py hands this file to cdef() without the lines that begin with '#', and
 * accepts only the three above; constants are enums for that reason.
 *
 * Nothing here allocates, and nothing blocks but ipcq_spin_* and ipcq_await_*, for as long
 * as they are told.
 * Calls that take a sender (or a receiver) must not run concurrently for the same one,
 * except ipcq_undelivered, ipcq_spin_*, ipcq_await_*, ipcq_arm_* and ipcq_disarm_*, which may run beside push
 * and pop; arm and disarm not beside each other.  Results: 0 done, positive expected, negative
 * the peer is corrupt.
 */
enum {
    IPCQ_DONE = 0,
    IPCQ_FULL = 1,    /* no space for a single record */
    IPCQ_EMPTY = 2,   /* no record waits */
    IPCQ_GONE = 3,    /* the peer has ended or died: nobody will take what is pushed */
    IPCQ_FORKED = 4,  /* this process is a fork of the one that owns the ring */
    IPCQ_AGAIN = 5,   /* records taken earlier were never delivered: see ipcq_pop */
    IPCQ_STUCK = 6,   /* the socket takes no descriptors just now; nothing was sent */
    IPCQ_ERROR = 7,   /* a system call failed: errno; nothing was sent */
    IPCQ_CORRUPT = -1 /* the peer's index is impossible; latched, every later call says so */
};

/* The two shapes of ring; capacity counts slots in the one, bytes in the other. */
enum {
    IPCQ_SLOTS = 0,
    IPCQ_FRAMES = 1
};

enum {
    IPCQ_LAYOUT_VERSION = 2,
    IPCQ_BYTE_ORDER = 0x01020304,
    IPCQ_HEADER_SIZE = 4096,
    IPCQ_MAX_SLOT_SIZE = 16777216,
    IPCQ_FRAME_ALIGN = 16,       /* every frame begins at a multiple, and its header has that size */
    IPCQ_MAX_FRAME_FDS = 253,    /* SCM_MAX_FD */
    IPCQ_MAX_ATTACHED = 16,      /* frames with descriptors under way: each keeps descriptors of
                                    the receiver busy before it has asked for any; a guess */
    IPCQ_OUT_OF_LINE = 0x8000,   /* of a frame's flags: the message is in a region that comes along */
    IPCQ_OUT_AGAIN = 0x4000,     /* or in one that came before */
    IPCQ_OUTSIDE = IPCQ_OUT_OF_LINE | IPCQ_OUT_AGAIN,
    IPCQ_KNOWN_FLAGS = IPCQ_OUTSIDE | 0xff,
    IPCQ_OPCODE_WRITE = 1,       /* control messages: records were published, */
    IPCQ_OPCODE_READ = 2,        /* space was freed, */
    IPCQ_OPCODE_FDS = 17,        /* these descriptors belong to the next frame that has any */
    IPCQ_LARGE = 1048576,        /* bytes: a message above it is copied while other Python threads run;
                                    that takes 0.1 ms, far more than to get the interpreter back */
    IPCQ_MOST_BYTES = 8388608,   /* that one call moves, or one piece of a large message: 2 to 5 ms */
    IPCQ_MOST_SPIN_NS = 1000000, /* then it is time to look at the socket */
    IPCQ_SPIN_NS = 30000         /* how long looking for what is about to come may pay; see ends.h */
};

/* What a segment says about itself.  Plain data: copied out once, by ipcq_read_identity. */
struct ipcq_identity {
    char magic[8]; /* MEMENPSF, without a terminating zero */
    uint32_t layout_version;
    uint32_t byte_order;
    uint32_t header_size;
    uint32_t slot_size;    /* bytes of one record, 1 to IPCQ_MAX_SLOT_SIZE; 1 for frames */
    uint64_t capacity;     /* slots, or bytes of frames; a power of two; 0: sends nothing */
    uint64_t segment_size; /* bytes of the whole file */
    uint8_t fingerprint[16]; /* of the record's layout; not of its field names */
    uint32_t creator_pid;    /* as the creator sees it; for tools, never for decisions */
    uint32_t shape; /* IPCQ_SLOTS or IPCQ_FRAMES */
    uint64_t max_message;    /* frames: bytes of the largest message the owner takes */
    uint32_t accept_fds;     /* frames: descriptors it takes with one message, at most */
    uint32_t accept_regions; /* frames: memory regions, likewise */
    uint32_t accept_flags;   /* 1: regions that the giver can still write; 2: sockets */
    char name[64];    /* UTF-8, zero-padded */
    char record[512]; /* the record's layout in words, for error messages */
};

typedef struct ipcq_sender ipcq_sender;
typedef struct ipcq_receiver ipcq_receiver;

struct ipcq_counts {
    uint64_t doorbells, waits, refused, last_active_ns;
};

/* -- segments ------------------------------------------------------------------------ */

/* Copy the identity out, each byte read once: the peer may be changing it meanwhile. */
void ipcq_read_identity(const void *segment, struct ipcq_identity *into);
void ipcq_write_identity(void *segment, const struct ipcq_identity *from);

/* Whether a descriptor is one of a socket, without asking its file system, which may be a stranger's. */
int ipcq_is_socket(int fd);

/* The owner's last word, and the peer's question for it. */
void ipcq_set_closed(void *segment);
int ipcq_is_closed(const void *segment);

/* -- sending ------------------------------------------------------------------------- */

size_t ipcq_sender_size(void);

/* `own` holds slots and head and is written; `peer` holds tail and is only read.  Doorbells
 * go to socket `bell` (borrowed); -1 rings none.  Counting starts at `head`: 0, except in
 * tests of the far end of the number line. */
void ipcq_sender_init(ipcq_sender *s, void *own, const void *peer, uint64_t capacity,
                      uint32_t slot_size, int bell, uint64_t head);

/* Let pidfd `process` (borrowed; -1: none) say as well that the peer is gone: its socket may have
 * been kept open by somebody else. */
void ipcq_sender_watch(ipcq_sender *s, int process);

/* Never touch socket and pidfd again: they are about to be closed, and their numbers reused. */
void ipcq_sender_silence(ipcq_sender *s);

/* Publish one record of slot_size bytes. DONE, FULL, GONE, FORKED, CORRUPT. */
int ipcq_push(ipcq_sender *s, const char *record);

/* Bytes anywhere in the memory of this process: `size` records, or a message of `size` bytes. */
struct ipcq_piece {
    const char *at;
    uint64_t size;
    uint32_t tag; /* of a message, as flags: see struct ipcq_frame */
    uint32_t flags;
};

/* Publish the first *done records of `count` pieces, as many as there is space for.
 * DONE (*done > 0, or there are none), FULL (*done == 0; does not count as refused: ipcq_push of the next
 * record does), GONE, FORKED, CORRUPT. */
int ipcq_push_pieces(ipcq_sender *s, const struct ipcq_piece *pieces, uint64_t count,
                     uint64_t *done);

/* Announce that this side goes to sleep until there is space of `units`, then look again: FULL
 * means that a doorbell will come when some is freed, DONE that there is no need to sleep.
 * Arming while armed asks for a new doorbell.  disarm takes the announcement back; harmless
 * when there is none. */
int ipcq_arm_space(ipcq_sender *s, uint64_t units);
void ipcq_disarm_space(ipcq_sender *s);

/* Records published, records the peer has taken (as last seen). CORRUPT is possible. */
int ipcq_sender_indices(ipcq_sender *s, uint64_t *head, uint64_t *tail);

/* Where the next `units` go: *at, of which *run are contiguous (frames do not need to ask).  What
 * is written there is seen by nobody before it is committed, and costs nothing to forget.
 * DONE, FULL, GONE, FORKED, CORRUPT. */
int ipcq_reserve(ipcq_sender *s, uint64_t units, char **at, uint64_t *run);

/* Look so long before sleeping, see ipcq_await_*, but IPCQ_MOST_SPIN_NS at most; `adaptive`: less
 * while it does not pay, and not at all on one processor; `yields`: let others run after each look, as
 * is done on one processor in any case. */
void ipcq_sender_patience(ipcq_sender *s, uint64_t nanoseconds, int adaptive, int yields);

/* Publish the first `units` of what was reserved; with wake 0 a sleeping peer goes on sleeping. */
int ipcq_commit(ipcq_sender *s, uint64_t units, int wake);

/* -- receiving ----------------------------------------------------------------------- */

size_t ipcq_receiver_size(void);
void ipcq_receiver_init(ipcq_receiver *r, void *own, const void *peer, uint64_t capacity,
                        uint32_t slot_size, int bell, uint64_t tail);
void ipcq_receiver_silence(ipcq_receiver *r);

/* Copy out up to `max` records, contiguously, and free their slots. DONE (*count > 0),
 * EMPTY, FORKED, CORRUPT.
 *
 * `delivered` is how many records the caller has handed on so far.  When that is less than
 * what earlier calls took (an exception struck between this call and the caller's note of
 * it), nothing is taken: AGAIN, and *count records still stand at the start of the buffer of
 * that earlier call. */
int ipcq_pop(ipcq_receiver *r, char *into, uint64_t max, uint64_t delivered, uint64_t *count);

void ipcq_receiver_patience(ipcq_receiver *r, uint64_t nanoseconds, int adaptive, int yields);

/* Whether it lets others run after each look. */
int ipcq_yields(ipcq_receiver *r);

/* How long it is worth to look for records now; and whether they came in that time. */
uint64_t ipcq_patience(ipcq_receiver *r);
void ipcq_learn(ipcq_receiver *r, int came);

/* Whether nothing waits, and the peer, as far as its segment says, has neither ended nor lied; and
 * whether nothing has come through the socket, not even its end. */
int ipcq_is_quiet(ipcq_receiver *r, uint64_t from);
int ipcq_is_silent(const ipcq_receiver *r);

/* What waits from index `from` on, in place: *run units at *at, contiguous; there may be more
 * behind them.  The peer can change it at any time.  DONE, EMPTY, AGAIN (it was taken already),
 * FORKED, CORRUPT. */
int ipcq_look(ipcq_receiver *r, uint64_t from, const char **at, uint64_t *run);

/* Whether this process is a fork of the one that owns the ring. */
int ipcq_is_forked(const ipcq_receiver *r);

/* See all that is there now; and how much is there from index `from` on as far as was seen.  For who
 * takes many: what comes meanwhile is not for this call, which might else follow the peer for ever. */
void ipcq_see(ipcq_receiver *r);
uint64_t ipcq_seen(const ipcq_receiver *r, uint64_t from);

/* Free everything before index `to`; to repeat it, or to come behind it, is harmless. */
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
    uint16_t fds;     /* descriptors sent beside it: those of the application */
    uint16_t regions; /* and after them those of memory regions */
    uint16_t reserved;
};

/* The payload of a frame whose message is outside the ring, in a memory region: see _ring/outside.py. */
struct ipcq_outside {
    uint64_t size;   /* bytes of the message, at the beginning of the region */
    uint32_t number; /* of the region */
    uint32_t reserved;
};

/* What has become of a memory region of the sender's. */
struct ipcq_use {
    uint64_t times; /* frames published with it */
    uint64_t end;   /* where the last of them ends: it is free once tail is there */
};

/* Bytes of ring that a frame of `size` bytes takes. */
uint64_t ipcq_frame_extent(uint64_t size);

/* Publish a frame: copy the payload in.  With descriptors (frame->fds + frame->regions of them),
 * send those first, in one message: then they are there when the frame is.  DONE, FULL (space,
 * or too many frames with descriptors under way), STUCK, ERROR, GONE, FORKED, CORRUPT. */
int ipcq_frame_push(ipcq_sender *s, const struct ipcq_frame *frame, const char *payload,
                    const int *fds);

/* The same for who sends descriptors with it; and note it in *use, unless that is NULL, if it is published:
 * together, so that nothing comes between. */
int ipcq_frame_send(ipcq_sender *s, const struct ipcq_frame *frame, const char *payload,
                            const int *fds, struct ipcq_use *use);

/* The units of space for which to wait when ipcq_frame_push said FULL. */
uint64_t ipcq_frame_units(ipcq_sender *s, const struct ipcq_frame *frame);

/* Publish the first *done of `count` messages without descriptors; as ipcq_push_pieces. */
int ipcq_frame_push_pieces(ipcq_sender *s, const struct ipcq_piece *pieces, uint64_t count,
                           uint64_t *done);

/* Publish the frame whose payload stands behind a header's room in the space that ipcq_reserve
 * gave.  With wake 0 a sleeping peer goes on sleeping. */
int ipcq_frame_commit(ipcq_sender *s, const struct ipcq_frame *frame, int wake);

/* Show the frame that begins at byte index `from`: its payload, in place, which the peer can
 * change at any time.  DONE, EMPTY, AGAIN, FORKED (as ipcq_look), CORRUPT (a frame that reaches
 * beyond what is published, is larger than `max_size`, or has flags that mean nothing).  Of a message
 * outside the ring, whoever asks checks the size: `max_size` is for those inside. */
int ipcq_frame_look(ipcq_receiver *r, uint64_t from, uint64_t max_size, struct ipcq_frame *frame,
                    const char **at);

/* -- both ---------------------------------------------------------------------------- */

/* Counts how often this process has come out of fork(): differs between parent and child. */
uint32_t ipcq_fork_generation(void);

void ipcq_sending_counts(const void *segment, struct ipcq_counts *into);
void ipcq_receiving_counts(const void *segment, struct ipcq_counts *into);

/* -- waiting --------------------------------------------------------------------------
 *
 * What takes time: Python's other threads run meanwhile (_build.py).  All else returns at once,
 * and keeps the interpreter, as asking for it back takes longer than the call. */

/* Map `size` bytes of `fd`, all pages present (for reading, the first 16 MiB of them), over a
 * mapping of `size` + `mirrored` bytes that stands at `at` already; -1 and errno on failure.  A
 * writable mapping must be made before F_SEAL_FUTURE_WRITE.  Borrows the descriptor: it may be
 * closed afterwards.
 *
 * The last `mirrored` bytes (whole pages; 0 for slots) are mapped a second time behind the end:
 * with a ring that fills them, a frame that wraps around goes on there, in one piece. */
int ipcq_map(char *at, int fd, size_t size, size_t mirrored, int writable);

/* memcpy().  Whoever calls it sees to it that nobody else uses either memory meanwhile. */
void ipcq_copy(char *to, const char *from, size_t size);

/* Look for space of `units` (records, or bytes of frames) for at most `nanoseconds`.
 * DONE, FULL. */
int ipcq_spin_space(ipcq_sender *s, uint64_t units, uint64_t nanoseconds);

/* The same for records. DONE, EMPTY. */
int ipcq_spin_records(ipcq_receiver *r, uint64_t nanoseconds);

/* The same for as long as it is worth it, see ipcq_*_patience; and for space, as long as that is
 * little: woken for each single unit, a sender would never be far ahead of its receiver. */
int ipcq_await_space(ipcq_sender *s, uint64_t units);
int ipcq_await_records(ipcq_receiver *r);
