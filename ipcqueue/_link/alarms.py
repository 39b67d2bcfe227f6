"""When a peer that only rings makes this side back off: a decision, without I/O.

Each doorbell wakes a sleeper.  A hostile peer that rings all the time and brings nothing would have
all the time of this process, so after some wake-ups in a row without news a waiter leaves the
socket alone for a while.  News is only what the peer cannot fake: see `should_back_off`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# Consecutive wake-ups without news before we back off.  An honest peer causes some too, because
# what it rings for may have been found already, but not often in a row.  A guess.
MAX_FALSE_ALARMS = 32
# From 30 ms to about half a second.
MAX_DOUBLINGS = 4


def doubled(first: float, times: int, most: int) -> float:
    """Return `first`, doubled with each of `times` in a row after the first; `most` doublings."""
    return first * (1 << min(max(0, times - 1), most))


class FalseAlarms:
    """Counts the wake-ups of one side of a connection, and says when they are too many.

    For one thread at a time: the one that reads the socket.
    """

    BACK_OFF = 0.03
    """Seconds to leave the socket alone the first time; a guess."""

    def __init__(self) -> None:
        self.total = 0
        """Wake-ups without news, except the first MAX_FALSE_ALARMS - 1 in a row; only grows."""
        self.wake_ups = 0
        """Since the last news, up to the number that calls for a look; the reader adds each."""
        self._back_offs = 0  # in a row
        self._progress = (0, 0, 0)  # at the last look

    def should_back_off(self, progress: Callable[[], tuple[int, int, int]]) -> bool:
        """Whether the peer keeps waking this side without news; call it before waiting.

        `progress()` returns what the peer cannot fake: how many records this side has received, how
        many of its own the peer has taken (the core does not let that go back), and how many
        control messages came while few waited.  It is called only after MAX_FALSE_ALARMS wake-ups.
        """
        if self.wake_ups < MAX_FALSE_ALARMS:
            return False
        before, self._progress = self._progress, progress()
        news = self._progress != before
        self.wake_ups = 0 if news else MAX_FALSE_ALARMS - 1
        self.total += not news
        self._back_offs = 0 if news else self._back_offs + 1
        return not news

    def back_off_length(self, times: int = 0) -> float:
        """Return for how many seconds to leave the socket alone: longer each time in a row.

        `times` states how often in a row, where the reason is another one than false alarms.
        """
        return doubled(self.BACK_OFF, times or self._back_offs, MAX_DOUBLINGS)
