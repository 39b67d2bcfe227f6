"""How many processors a cgroup allows this process.

The scheduler does not tell: a container with --cpus=1 sees all processors of the machine, but once
it has used up its share of a period (100 ms), all of its threads stop until the next one begins.
Affinity is another matter: it can change at any time, and the C core looks at it itself.
"""

from __future__ import annotations

import functools
import math
import os

CGROUPS = "/sys/fs/cgroup"
OF_THIS_PROCESS = "/proc/self/cgroup"


@functools.cache
def processors_allowed() -> float:
    """Return the limit, as it was at the first call; infinity if there is none."""
    return least_limit(CGROUPS, OF_THIS_PROCESS)


def least_limit(cgroups: str, of_this_process: str) -> float:
    """Return the least limit of a process's cgroup (version 2) and those around it.

    In a container the path may be one of the host's; the limit is then that of the root it sees.
    """
    least = math.inf
    try:
        with open(of_this_process) as file:  # noqa: PTH123 (pathlib is slow to import)
            lines = file.read().splitlines()
    except (OSError, ValueError):
        return least
    for line in lines:
        if line.startswith("0::/"):
            group = os.path.normpath(line[3:]).strip("/")  # "/.." is "/"
            while group:
                least = min(least, _limit_in(f"{cgroups}/{group}/cpu.max"))
                group = group.rpartition("/")[0]
            least = min(least, _limit_in(f"{cgroups}/cpu.max"))
    return least


def _limit_in(path: str) -> float:
    """Read "QUOTA PERIOD", both in microseconds of processor time; QUOTA may be "max"."""
    try:
        with open(path) as file:  # noqa: PTH123
            quota, period = file.read().split()
        return int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf
