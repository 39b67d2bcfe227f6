#pragma once
/*
 * Included in front of every file of the core (-include): before each atomic load, the peer of the
 * fuzz target may change its memory.  So what one operation loads twice can differ, as it can when
 * the peer runs on another processor, and yet the same input always does the same.
 */
#include <stdatomic.h>
#include <stdint.h>

void fuzz_peer_moves(void);

static inline uint64_t fuzz_load_64(const volatile _Atomic uint64_t *from)
{
    fuzz_peer_moves();
    return atomic_load(from);
}

static inline uint32_t fuzz_load_32(const volatile _Atomic uint32_t *from)
{
    fuzz_peer_moves();
    return atomic_load(from);
}

#undef atomic_load_explicit
#define atomic_load_explicit(from, order)                                                          \
    _Generic((from),                                                                               \
        _Atomic uint64_t *: fuzz_load_64, const _Atomic uint64_t *: fuzz_load_64,                  \
        _Atomic uint32_t *: fuzz_load_32, const _Atomic uint32_t *: fuzz_load_32)(from)
