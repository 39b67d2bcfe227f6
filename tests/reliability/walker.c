/* stepping.h for Python: as a shared library. */
#include "stepping.h"

int walker_be_traced(void)
{
    return ptrace(PTRACE_TRACEME, 0, NULL, NULL) < 0 ? -1 : 0;
}

int walker_begins(pid_t child)
{
    return begins_to_walk(child);
}

int walker_explore(pid_t child, struct way *way)
{
    return explore(child, way);
}

int walker_walk(pid_t child, const struct way *way, long steps)
{
    return walk(child, way, steps);
}

void walker_forget(struct way *way)
{
    forget(way);
}
