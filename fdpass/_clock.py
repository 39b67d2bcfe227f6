"""The clock of every timeout: CLOCK_MONOTONIC, as the kernel tells it.

Not time.monotonic(): libraries for tests (freezegun and others) replace that in every module, and a
timeout that waits for a clock which stands still never ends.
"""

import time


def monotonic() -> float:
    """Return the seconds since some moment in the past; a clock that nothing sets or freezes."""
    return time.clock_gettime(time.CLOCK_MONOTONIC)
