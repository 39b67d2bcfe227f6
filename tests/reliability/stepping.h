#pragma once
/*
 * A child that its parent walks through its code instruction by instruction, and kills.
 *
 * The child calls be_walked() just before what is to be walked through, and stand() just behind it.
 * The first child is walked step by step, and its way noted.  As each step costs two switches of
 * process and, on some virtual machines, 20 us, later ones run to a breakpoint near where they shall
 * stop, and make the last steps only: it is at an instruction that the way has not come to before, or
 * not often.
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
    LOST = -2,        /* it has taken another way, or has ended */
    STEPS_OF_A_RUN = 4 /* what it costs to run to a breakpoint once */
};

struct way {
    uint64_t *at; /* addresses of instructions, in the order of their execution */
    long *times;  /* how often each of them had been executed by then, this time included */
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

/* Run to an instruction that was not executed yet, or not since it was there; as go_on(). */
static inline int run_once(pid_t child, uint64_t at)
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

/* Run to where an instruction will be executed for the so manieth time. */
static inline int run_to(pid_t child, uint64_t at, long times)
{
    int result = whereabouts(child) == at && --times == 0 ? 0 : LOST;
    while (times > 0) {
        result = whereabouts(child) == at ? go_on(child, PTRACE_SINGLESTEP) : 0;
        if (result == 0)
            result = run_once(child, at);
        if (result != 0)
            return result;
        times--;
    }
    return result;
}

#else /* without breakpoints: all seem to be one instruction, executed so often, and are walked */

static inline uint64_t whereabouts(pid_t child)
{
    (void)child;
    return 0;
}

static inline int run_to(pid_t child, uint64_t at, long times)
{
    int result = 0;
    (void)at;
    while (result == 0 && --times > 0)
        result = go_on(child, PTRACE_SINGLESTEP);
    return result;
}

#endif

static inline int compare_steps(const void *a, const void *b, void *at)
{
    long x = *(const long *)a, y = *(const long *)b;
    uint64_t p = ((uint64_t *)at)[x], q = ((uint64_t *)at)[y];
    return p != q ? (p < q ? -1 : 1) : x < y ? -1 : x > y;
}

/* Count how often each instruction was executed. */
static inline int count_times(struct way *way)
{
    size_t n = (size_t)way->length;
    long *sorted = malloc((n + 1) * sizeof *sorted);
    way->times = malloc((n + 1) * sizeof *way->times);
    if (sorted == NULL || way->times == NULL) {
        free(sorted);
        return LOST;
    }
    for (long i = 0; i < way->length; i++)
        sorted[i] = i;
    qsort_r(sorted, n, sizeof *sorted, compare_steps, way->at);
    for (size_t i = 0; i < n; i++) {
        int again = i > 0 && way->at[sorted[i]] == way->at[sorted[i - 1]];
        way->times[sorted[i]] = again ? way->times[sorted[i - 1]] + 1 : 1;
    }
    free(sorted);
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
    free(way->times);
    way->times = NULL;
    return result == AT_END && count_times(way) == 0 ? AT_END : LOST;
}

/* Have a child make `steps` steps of the way: 0; AT_END if that is its length; or LOST. */
static inline int walk(pid_t child, const struct way *way, long steps)
{
    if (steps >= way->length)
        return go_on(child, PTRACE_CONT);
    long done = steps, least = STEPS_OF_A_RUN * way->times[steps];
    for (long i = steps - 1; i >= 0 && steps - i < least; i--) {
        long cost = steps - i + STEPS_OF_A_RUN * way->times[i];
        if (cost < least) {
            least = cost;
            done = i;
        }
    }
    int result = run_to(child, way->at[done], way->times[done]);
    for (; done < steps && result == 0; done++)
        result = go_on(child, PTRACE_SINGLESTEP);
    return result;
}

static inline void forget(struct way *way)
{
    free(way->at);
    free(way->times);
    *way = (struct way){0};
}
