#pragma once
/*
 * Put in front of each source of the C core (cc -include sim.h): every access to shared memory, and
 * every system call, becomes a call of the simulator in sim.c.  The sources are those that ship.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

uint64_t sim_load(const volatile void *at, size_t size, memory_order order);
void sim_store(volatile void *at, size_t size, uint64_t value, memory_order order);
uint64_t sim_exchange(volatile void *at, size_t size, uint64_t value);
uint64_t sim_add(volatile void *at, size_t size, uint64_t value);
void sim_fence(memory_order order);
void *sim_copy(void *to, const void *from, size_t n);
ssize_t sim_send(int fd, const void *bytes, size_t n, int flags);
ssize_t sim_sendmsg(int fd, const struct msghdr *message, int flags);
ssize_t sim_recv(int fd, void *bytes, size_t n, int flags);
int sim_poll(struct pollfd *p, nfds_t n, int timeout);
int sim_clock(clockid_t clock, struct timespec *t);

#ifndef SIM_ITSELF

#define SIM_VALUE(at) __typeof__(+*(at)) /* without _Atomic and const */

#undef atomic_load_explicit
#undef atomic_store_explicit
#undef atomic_exchange_explicit
#undef atomic_fetch_add_explicit
#undef atomic_thread_fence
#define atomic_load_explicit(at, order) ((SIM_VALUE(at))sim_load(at, sizeof *(at), order))
#define atomic_store_explicit(at, value, order) sim_store(at, sizeof *(at), value, order)
#define atomic_exchange_explicit(at, value, order)                                                 \
    ((SIM_VALUE(at))sim_exchange(at, sizeof *(at), value))
#define atomic_fetch_add_explicit(at, value, order) sim_add(at, sizeof *(at), value)
#define atomic_thread_fence(order) sim_fence(order)

#undef memcpy
#define memcpy(to, from, n) sim_copy(to, from, n)
#define send(fd, bytes, n, flags) sim_send(fd, bytes, n, flags)
#define sendmsg(fd, message, flags) sim_sendmsg(fd, message, flags)
#define recv(fd, bytes, n, flags) sim_recv(fd, bytes, n, flags)
#define poll(p, n, timeout) sim_poll(p, n, timeout)
#define clock_gettime(clock, t) sim_clock(clock, t)
#define sched_yield() ((void)0)

#endif
