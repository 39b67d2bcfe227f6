"""The clock of every timeout: CLOCK_MONOTONIC, read from the kernel.

Not time.monotonic(): test libraries such as freezegun replace it in every module. A timeout would
then wait for a stopped clock, and never end.
"""

import time


def monotonic() -> float:
    """Return seconds since an arbitrary moment; nothing can set or freeze this clock."""
    return time.clock_gettime(time.CLOCK_MONOTONIC)
