#pragma once
/*
 * The bytes two processes agree on: one segment, seen by both.
 *
 *       0  identity      written once by the owner, before sealing
 *    1024  head          written by the owner as sender:   units published so far
 *    1032  intent, oldest                                  zero: for publishers, which come later
 *    1152  tail          written by the owner as receiver: units taken so far
 *    1408  counters of the sender role                     for tools; nothing depends on them
 *    1536  counters of the receiver role
 *    1664  10 lines, in one of which (identity.wake_line) are, as a struct ipcq_words:
 *          wait_records, wait_space, closed, wait_whom     rarely written, read at each publish
 *    2944  names         of the record's fields, written once as the identity
 *    4096  the ring, of one of two shapes (identity.shape):
 *          slots         `capacity` records of `slot_size` bytes each; a unit is a record
 *          frames        `capacity` bytes, whole pages; a unit is a byte; frames follow each
 *                        other, padded to 16 bytes:
 *
 *                        | size u32 | tag u32 | flags u16 | fds u16 | regions u16 | 0 u16 | bytes |
 *
 *                        Both sides map the ring twice in a row: a frame that begins near the end
 *                        continues in the second mapping, so it is always in one piece.
 *
 * Each segment has one writer, its owner; the peer maps it read-only, and the seals enforce that.
 * So the queue A->B is in two segments: ring and head in A's, tail in B's.
 * Indices only grow (u64) and are masked on use; all `capacity` units are usable.
 *
 * Lines are 128 bytes apart, because processors prefetch cache lines in pairs.  The wait epochs
 * are apart from the indices, because every publish reads the peer's epoch.  Beside `tail`, which
 * the peer writes at each pop, that read would miss the cache every time.  Which line they are in
 * differs from segment to segment: who has many peers looks at the epochs of all, and the same line
 * of many pages competes for one set of the first cache.
 *
 * Both processes run on one machine, so nothing is converted: a 64-bit little-endian machine is
 * assumed, and asserted.
 */
#include <assert.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <stddef.h>

#include "ring.h"

struct ipcq_counters {
    _Atomic uint64_t doorbells;      /* control messages sent to wake the peer */
    _Atomic uint64_t waits;          /* times that this side announced sleep */
    _Atomic uint64_t refused;        /* sender: pushes that found no space */
    _Atomic uint64_t last_active_ns; /* CLOCK_MONOTONIC_COARSE */
};

/* What a peer looks at whenever it has published or taken. */
struct ipcq_words {
    _Atomic uint32_t wait_records; /* odd while the owner waits for records */
    _Atomic uint32_t wait_space;   /* odd while the owner waits for space */
    _Atomic uint32_t closed;       /* IPCQ_NO_MORE, IPCQ_TAKES_NONE, IPCQ_ABORTED: how it has ended */
    _Atomic uint32_t wait_whom;    /* zero: for publishers, which come later */
};

struct ipcq_segment {
    struct ipcq_identity identity;
    alignas(1024) _Atomic uint64_t head;
    _Atomic uint64_t intent, oldest;
    alignas(128) _Atomic uint64_t tail;
    alignas(128) unsigned char unused[128];
    alignas(128) struct ipcq_counters sending;
    alignas(128) struct ipcq_counters receiving;
    alignas(128) unsigned char lines[IPCQ_LAST_WAKE_LINE + 1 - IPCQ_FIRST_WAKE_LINE][IPCQ_LINE];
    alignas(128) struct ipcq_names names;
    alignas(IPCQ_HEADER_SIZE) unsigned char slots[];
};

/* The words of a segment, in its wake_line. */
static inline struct ipcq_words *words_of(void *segment, uint32_t line)
{
    return (struct ipcq_words *)((char *)segment + (size_t)IPCQ_LINE * line);
}

static inline const struct ipcq_words *shown_words(const void *segment, uint32_t line)
{
    return (const struct ipcq_words *)((const char *)segment + (size_t)IPCQ_LINE * line);
}

static_assert(sizeof(void *) == 8, "indices and segment sizes need a 64-bit machine");
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the layout is little-endian");
static_assert(ATOMIC_LLONG_LOCK_FREE == 2 && ATOMIC_INT_LOCK_FREE == 2,
              "a lock hidden in an atomic would not be shared between processes");
static_assert(sizeof(_Atomic uint64_t) == 8 && sizeof(_Atomic uint32_t) == 4, "plain words");
static_assert(sizeof(struct ipcq_identity) <= 1024, "identity must end before head");
static_assert(offsetof(struct ipcq_segment, head) == 1024, "layout");
static_assert(offsetof(struct ipcq_segment, tail) == 1152, "layout");
static_assert(offsetof(struct ipcq_segment, intent) == 1032, "layout");
static_assert(offsetof(struct ipcq_segment, oldest) == 1040, "layout");
static_assert(offsetof(struct ipcq_words, wait_space) == 4, "layout");
static_assert(offsetof(struct ipcq_words, closed) == 8, "layout");
static_assert(offsetof(struct ipcq_words, wait_whom) == 12, "layout");
static_assert(IPCQ_FIRST_WAKE_LINE * IPCQ_LINE ==
                      offsetof(struct ipcq_segment, receiving) + IPCQ_LINE &&
                  (IPCQ_LAST_WAKE_LINE + 1) * IPCQ_LINE == offsetof(struct ipcq_segment, names),
              "the words are between the counters and the names");
static_assert(offsetof(struct ipcq_segment, sending) == 1408, "layout");
static_assert(offsetof(struct ipcq_segment, receiving) == 1536, "layout");
static_assert(offsetof(struct ipcq_segment, names) == 2944, "layout");
static_assert(sizeof(struct ipcq_names) == 1048 &&
                  sizeof((struct ipcq_names *)0)->first == IPCQ_MAX_NAMES * sizeof(struct ipcq_name),
              "layout");
static_assert(offsetof(struct ipcq_segment, slots) == IPCQ_HEADER_SIZE, "layout");
static_assert(offsetof(struct ipcq_frame, tag) == 4 && offsetof(struct ipcq_frame, flags) == 8 &&
                  offsetof(struct ipcq_frame, fds) == 10 &&
                  offsetof(struct ipcq_frame, regions) == 12 &&
                  offsetof(struct ipcq_frame, reserved) == 14 && sizeof(struct ipcq_frame) == 16,
              "layout");
static_assert(offsetof(struct ipcq_outside, number) == 8 && sizeof(struct ipcq_outside) == 16,
              "layout");
