#pragma once
#include <stdint.h>
#include <stddef.h>

/*
 * The interface of the C core, read by the C compiler and by cffi alike, so that it stands
 * once.  _build.py hands this file to cdef() without the lines that begin with '#', and
 * accepts only the three above; constants are enums for that reason.
 *
 * Nothing here allocates, and nothing blocks but ipcq_spin_* for as long as it is told.
 * Calls that take a sender (or a receiver) must not run concurrently for the same one,
 * except ipcq_undelivered, ipcq_spin_*, ipcq_arm_* and ipcq_disarm_*, which may run beside push
 * and pop; arm and disarm not beside each other.  Results: 0 done, positive expected, negative the peer is corrupt.
 */
enum {
    IPCQ_DONE = 0,
    IPCQ_FULL = 1,    /* no space for a single record */
    IPCQ_EMPTY = 2,   /* no record waits */
    IPCQ_GONE = 3,    /* the peer has ended or died: nobody will take what is pushed */
    IPCQ_FORKED = 4,  /* this process is a fork of the one that owns the ring */
    IPCQ_AGAIN = 5,   /* records taken earlier were never delivered: see ipcq_pop */
    IPCQ_CORRUPT = -1 /* the peer's index is impossible; latched, every later call says so */
};

enum {
    IPCQ_LAYOUT_VERSION = 1,
    IPCQ_BYTE_ORDER = 0x01020304,
    IPCQ_HEADER_SIZE = 4096,
    IPCQ_MAX_SLOT_SIZE = 16777216
};

/* What a segment says about itself.  Plain data: copied out once, by ipcq_read_identity. */
struct ipcq_identity {
    char magic[8]; /* MEMENPSF, without a terminating zero */
    uint32_t layout_version;
    uint32_t byte_order;
    uint32_t header_size;
    uint32_t slot_size;    /* bytes of one record, 1 to IPCQ_MAX_SLOT_SIZE */
    uint64_t capacity;     /* slots, a power of two; 0: the owner sends nothing */
    uint64_t segment_size; /* bytes of the whole file */
    uint8_t fingerprint[16]; /* of the record's layout; not of its field names */
    uint32_t creator_pid;    /* as the creator sees it; for tools, never for decisions */
    uint32_t reserved;
    char name[64];    /* UTF-8, zero-padded */
    char record[512]; /* the record's layout in words, for error messages */
};

typedef struct ipcq_sender ipcq_sender;
typedef struct ipcq_receiver ipcq_receiver;

struct ipcq_counts {
    uint64_t doorbells, waits, refused, last_active_ns;
};

/* -- segments ------------------------------------------------------------------------ */

/* Map `size` bytes of `fd`, all pages present; NULL and errno on failure.  A writable
 * mapping must be made before F_SEAL_FUTURE_WRITE.  Borrows the descriptor: it may be
 * closed afterwards. */
void *ipcq_map(int fd, size_t size, int writable);
void ipcq_unmap(void *segment, size_t size);

/* Copy the identity out, each byte read once: the peer may be changing it meanwhile. */
void ipcq_read_identity(const void *segment, struct ipcq_identity *into);
void ipcq_write_identity(void *segment, const struct ipcq_identity *from);

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

/* Never touch the socket again: it is about to be closed, and its number to be reused. */
void ipcq_sender_silence(ipcq_sender *s);

/* Publish one record of slot_size bytes. DONE, FULL, GONE, FORKED, CORRUPT. */
int ipcq_push(ipcq_sender *s, const char *record);

/* Publish the first *done of `count` contiguous records, as many as there is space for.
 * DONE (*done > 0, or count is 0), FULL (*done == 0), GONE, FORKED, CORRUPT. */
int ipcq_push_many(ipcq_sender *s, const char *records, uint64_t count, uint64_t *done);

/* Look for space for at most `nanoseconds`.  DONE, FULL. */
int ipcq_spin_space(ipcq_sender *s, uint64_t nanoseconds);

/* Announce that this side goes to sleep until there is space, then look again: FULL means
 * that a doorbell will come, DONE that there is no need to sleep.  Arming while armed asks
 * for a new doorbell.  disarm takes the announcement back; harmless when there is none. */
int ipcq_arm_space(ipcq_sender *s);
void ipcq_disarm_space(ipcq_sender *s);

/* Records published, records the peer has taken (as last seen). CORRUPT is possible. */
int ipcq_sender_indices(ipcq_sender *s, uint64_t *head, uint64_t *tail);

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

/* Whether earlier calls took more than was delivered, so that the next one will say AGAIN. */
int ipcq_undelivered(ipcq_receiver *r, uint64_t delivered);

int ipcq_spin_records(ipcq_receiver *r, uint64_t nanoseconds);
int ipcq_arm_records(ipcq_receiver *r);
void ipcq_disarm_records(ipcq_receiver *r);
int ipcq_receiver_indices(ipcq_receiver *r, uint64_t *head, uint64_t *tail);

/* -- both ---------------------------------------------------------------------------- */

/* Counts how often this process has come out of fork(): differs between parent and child. */
uint32_t ipcq_fork_generation(void);

void ipcq_sending_counts(const void *segment, struct ipcq_counts *into);
void ipcq_receiving_counts(const void *segment, struct ipcq_counts *into);
