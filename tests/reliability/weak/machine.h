#pragma once
/* The simulated machine, as the scenarios in weak.c see it; sim.c says how it works. */
#include <stdbool.h>
#include <stdint.h>

#include "layout.h"

enum { SIDES = 2, MAX_RING = 512, SOCKET = 100 }; /* descriptors SOCKET + 0 and SOCKET + 1 */

struct machine {
    uint64_t capacity; /* bytes of either ring */
    uint64_t index;    /* at which all begin to count */
    uint32_t epoch;    /* likewise; even */
    unsigned room;     /* messages that a socket holds besides one; more are dropped */
    unsigned spurious; /* polls that may return for no reason */
    unsigned faults;   /* sends that may fail with EINTR or ENOBUFS */
    bool liveness;     /* the coarse clock goes on, so a sender asks for the peer now and then */
    enum { NOBODY, SENDER, RECEIVER } victim; /* may be killed anywhere; as side 0, or 1 */
};

/* What a run came to. */
enum outcome { RUNS, WHOLE, PRUNED, FAILED };

extern struct ipcq_segment *sim_segment[SIDES];
extern char sim_why[512]; /* of a run that FAILED */

/* Run program(0) and program(1) once, as two processes, and then finish(). */
enum outcome sim_run(const struct machine *machine, void (*program)(int side), void (*finish)(void));

void sim_fail(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));
void sim_say(const char *format, ...) __attribute__((format(printf, 1, 2)));
void sim_shutdown(int side);
/* Nothing but this decides what the current side does from here on, and it is where it says so. */
void sim_settled(const void *state, size_t size);
bool sim_killed(int side);
bool sim_descriptors(int side); /* take those that came; false: there are none */
uint64_t sim_published(int side); /* the newest head, seen by this side or not */

/* Who decides. */
void sim_exhaustive(void);
bool sim_next(void); /* another run is left to be explored */
void sim_random(uint64_t seed);
void sim_replay(const char *choices);
const char *sim_choices(void);
void sim_trace(bool on);

extern bool sim_each; /* go through all to the end: to check the search itself */
extern uint64_t sim_states;
extern double sim_schedules; /* from end to end, those that meet in one state counted for each way */
extern uint64_t sim_points;  /* scheduling points in all runs */
