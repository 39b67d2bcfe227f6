#pragma once
/*
 * Included in front of every file of the core (-include): before each atomic load, the peer of the
 * fuzz target may change its memory.  So what one operation loads twice can differ, as it can when
 * the peer runs on another processor, and yet the same input always does the same.
 */
#include <stdatomic.h>
#include <stdint.h>

void fuzz_peer_moves(void);

static inline uint64_t unhooked_64(const volatile _Atomic uint64_t *from)
{
    return atomic_load_explicit(from, memory_order_seq_cst);
}

static inline uint32_t unhooked_32(const volatile _Atomic uint32_t *from)
{
    return atomic_load_explicit(from, memory_order_seq_cst);
}

static inline uint64_t hooked_64(const volatile _Atomic uint64_t *from)
{
    fuzz_peer_moves();
    return unhooked_64(from);
}

static inline uint32_t hooked_32(const volatile _Atomic uint32_t *from)
{
    fuzz_peer_moves();
    return unhooked_32(from);
}

#define FUZZ_LOAD(how, from)                                                                       \
    _Generic((from),                                                                               \
        _Atomic uint64_t *: how##_64, const _Atomic uint64_t *: how##_64,                          \
        _Atomic uint32_t *: how##_32, const _Atomic uint32_t *: how##_32)(from)

/* For the target itself; atomic_load() goes by way of atomic_load_explicit() in some compilers. */
#define UNHOOKED(from) FUZZ_LOAD(unhooked, from)

#undef atomic_load_explicit
#define atomic_load_explicit(from, order) FUZZ_LOAD(hooked, from)
