"""How much one call does at most, so that it stops neither an event loop nor other threads.

The peer chooses how large its ring is and what it puts there.  So a call for which the caller gave
no limit ends after some milliseconds' work, and the next call goes on from there.  At least one
record is always received.  Bytes are bounded to MAX_BYTES; of messages outside the ring also where
the caller gave a limit.  The numbers are guesses, from costs measured on a virtual machine of 2024:
17 us for a message that Python code puts together, 0.2 us for one that C makes, 0.1 us for a value
of a record, 2 to 5 ms for a copy of 8 MiB.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from fdpass.lowlevel import monotonic
from ipcqueue._core import lib

if TYPE_CHECKING:
    from collections.abc import Callable

# Records that a loop takes at once, ahead of its body.  A guess: many share the cost of one call,
# and few are lost if the receiver dies.
MAX_AHEAD = 64

LARGE: int = lib.IPCQ_LARGE
MAX_BYTES: int = lib.IPCQ_MAX_BYTES

# Records, or messages without tags and attachments, of a call without a limit.
MAX_AT_ONCE = 65536
# Values of records that become lists of tuples; each record counts as one more.
MAX_VALUES = 65536
# Messages that Python code puts together, because they have tags or attachments.
MAX_BUILT = 256
# Seconds, for records of unknown cost: a function of the application makes them, or they come with
# descriptors, or in memory that must be mapped first.
MAX_SECONDS = 0.005

_LOOKS_AT_THE_CLOCK = 16  # messages without descriptors between two looks
_FIRST_PACE = 64  # records


class Budget:
    """How many messages and bytes, and how much time, one receiving call has left."""

    __slots__ = ("_bounded", "_bytes", "_count", "_until", "most", "spent")

    def __init__(self, *, bounded: bool) -> None:
        self._bounded = bounded  # the caller gave no limit
        self._bytes = MAX_BYTES
        self._count = 0
        self._until = monotonic() + MAX_SECONDS if bounded else math.inf
        self.most = MAX_BUILT if bounded else MAX_AT_ONCE << 32  # messages
        self.spent = False

    def allows_more(self, size: int, *, outside: bool, slow: bool) -> bool:
        """Note a message of `size` bytes; return whether there may be another."""
        if outside or self._bounded:
            self._bytes -= size
        self._count += 1
        looks = slow or self._count % _LOOKS_AT_THE_CLOCK == 0
        self.spent = self._bytes <= 0 or (looks and not self.has_time())
        return not self.spent

    def has_time(self) -> bool:
        """Whether there is time for another message."""
        return not self._bounded or monotonic() < self._until


def looks_after(count: int) -> bool:
    """Whether to look at the clock after `count` messages of unknown cost.

    That is after 1, 2, 4, 8 and then every 16: a look takes longer than the cheapest decoder, and
    with an expensive one the call takes at most twice its time.
    """
    return count % _LOOKS_AT_THE_CLOCK == 0 or count & (count - 1) == 0


class Pace:
    """How many records the application's class has made in MAX_SECONDS so far."""

    def __init__(self, decode_many: Callable[[Any, int], Any]) -> None:
        self._decode_many = decode_many
        self.records = _FIRST_PACE

    def __call__(self, data: Any, count: int) -> Any:
        """Make `count` records of data, and learn from how long that takes."""
        start = monotonic()
        records = self._decode_many(data, count)
        took = monotonic() - start
        if took > MAX_SECONDS:
            self.records = max(1, int(min(count, self.records) * MAX_SECONDS / took))
        elif count >= self.records and took < MAX_SECONDS / 2:
            self.records = min(2 * self.records, MAX_VALUES)
        return records
