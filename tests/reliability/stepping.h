#pragma once
/*
 * A child that its parent walks through its code instruction by instruction, and kills.
 *
 * The child calls be_walked() just before what is to be walked through, and stand() just behind it.
 * The first child is walked step by step, and its way noted.  As each step costs two switches of
 * process and, on some virtual machines, 20 us, later ones run to a breakpoint near where they shall
 * stop, and make the last steps only: the breakpoint is at an instruction that the way comes to for
 * the first time there.
 */
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
    CANNOT_WALK = 77, /* exit status where the system forbids this, or cannot do it */
    AT_END = -1,      /* it has come to stand() */
    LOST = -2         /* it has taken another way, or has ended */
};

struct way {
    uint64_t *at; /* addresses of instructions, in the order of their execution */
    long *known;  /* number of the last one up to here that was executed for the first time */
    long length, room;
};

/* -- in the child -------------------------------------------------------------------------- */

/* First of all; parent: the process that must still be the parent. */
static inline void die_with(pid_t parent)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(1);
}

static inline void be_walked(void)
{
    if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) < 0)
        _exit(CANNOT_WALK);
    raise(SIGSTOP);
}

static inline void stand(void)
{
    for (;;)
        raise(SIGSTOP);
}

/* -- in the parent: all by one thread -------------------------------------------------------- */

/* Wait until the child has stopped; the signal that stopped it, or 0 if it has ended. */
static inline int stopped_by(pid_t child)
{
    int status;
    while (waitpid(child, &status, 0) < 0)
        if (errno != EINTR)
            return 0;
    return WIFSTOPPED(status) ? WSTOPSIG(status) : 0;
}

/* Let the child come to where its walk begins; 0 if it cannot be walked. */
static inline int begins_to_walk(pid_t child)
{
    return stopped_by(child) == SIGSTOP &&
           ptrace(PTRACE_SETOPTIONS, child, NULL, (void *)PTRACE_O_EXITKILL) == 0;
}

static inline void murder(pid_t child)
{
    kill(child, SIGKILL);
    while (waitpid(child, NULL, 0) < 0 && errno == EINTR)
        ;
}

/* Go on until it stops: 0 by SIGTRAP, AT_END by SIGSTOP, else LOST. */
static inline int go_on(pid_t child, int how)
{
    int by = ptrace(how, child, NULL, NULL) < 0 ? 0 : stopped_by(child);
    return by == SIGTRAP ? 0 : by == SIGSTOP ? AT_END : LOST;
}

#ifdef __x86_64__

static inline uint64_t whereabouts(pid_t child)
{
    struct user_regs_struct r;
    return ptrace(PTRACE_GETREGS, child, NULL, &r) < 0 ? 0 : r.rip;
}

/* Run to an instruction; as go_on(). */
static inline int run_to(pid_t child, uint64_t at)
{
    errno = 0;
    long word = ptrace(PTRACE_PEEKTEXT, child, (void *)at, NULL);
    if (errno != 0 || ptrace(PTRACE_POKETEXT, child, (void *)at, (void *)((word & ~0xffL) | 0xcc)) < 0)
        return LOST;
    int result = go_on(child, PTRACE_CONT);
    if (result != 0)
        return result;
    struct user_regs_struct r;
    if (ptrace(PTRACE_GETREGS, child, NULL, &r) < 0 || r.rip != at + 1)
        return LOST;
    r.rip = at;
    return ptrace(PTRACE_SETREGS, child, NULL, &r) < 0 ||
                   ptrace(PTRACE_POKETEXT, child, (void *)at, (void *)word) < 0
               ? LOST
               : 0;
}

#else /* without breakpoints: each step is new to nobody, and walked */

static inline uint64_t whereabouts(pid_t child)
{
    (void)child;
    return 0;
}

static inline int run_to(pid_t child, uint64_t at)
{
    (void)child, (void)at;
    return LOST;
}

#endif

static inline int compare_steps(const void *a, const void *b, void *at)
{
    long x = *(const long *)a, y = *(const long *)b;
    uint64_t p = ((uint64_t *)at)[x], q = ((uint64_t *)at)[y];
    return p != q ? (p < q ? -1 : 1) : x < y ? -1 : x > y;
}

/* Find out which of the instructions are new. */
static inline int mark_new(struct way *way)
{
    size_t n = (size_t)way->length;
    long *sorted = malloc((n + 1) * sizeof *sorted);
    way->known = calloc(n + 1, sizeof *way->known);
    if (sorted == NULL || way->known == NULL)
        return LOST;
    for (long i = 0; i < way->length; i++)
        sorted[i] = i;
    qsort_r(sorted, n, sizeof *sorted, compare_steps, way->at);
    for (size_t i = 0; i < n; i++)
        way->known[sorted[i]] = i == 0 || way->at[sorted[i]] != way->at[sorted[i - 1]];
    free(sorted);
    long last = 0;
    for (long i = 0; i < way->length; i++)
        way->known[i] = last = way->known[i] ? i : last;
    return 0;
}

/* Walk a child to its end, and note the way; AT_END, or LOST. */
static inline int explore(pid_t child, struct way *way)
{
    way->length = 0;
    int result;
    do {
        if (way->length == way->room) {
            way->room = way->room ? 2 * way->room : 1024;
            uint64_t *more = realloc(way->at, (size_t)way->room * sizeof *more);
            if (more == NULL)
                return LOST;
            way->at = more;
        }
        way->at[way->length++] = whereabouts(child);
    } while ((result = go_on(child, PTRACE_SINGLESTEP)) == 0);
    free(way->known);
    return result == AT_END && mark_new(way) == 0 ? AT_END : LOST;
}

/* Have a child make `steps` steps of the way: 0; AT_END if that is its length; or LOST. */
static inline int walk(pid_t child, const struct way *way, long steps)
{
    if (steps >= way->length)
        return go_on(child, PTRACE_CONT);
    long done = way->known[steps];
    int result = done > 0 ? run_to(child, way->at[done]) : 0;
    for (; done < steps && result == 0; done++)
        result = go_on(child, PTRACE_SINGLESTEP);
    return result;
}

static inline void forget(struct way *way)
{
    free(way->at);
    free(way->known);
    *way = (struct way){0};
}
