"""How many threads serve() may have, and how many of them one user; it starts none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ipcqueue import LimitRefused
from ipcqueue.lowlevel import Owner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# A user may have three quarters of the threads, so there is always room for another user.
_PART_OF_ONE = 3, 4


class ThreadQuota(Owner):
    """The threads of one server; counted anew each time, so that the count cannot drift."""

    def __init__(self, limit: int, taken: Callable[[], Iterable[int]]) -> None:
        """Allow `limit` threads; `taken` returns the user of each that there is."""
        self._limit = limit
        self._taken = taken

    def check(self, uid: int, pending: Iterable[int]) -> None:
        """Raise LimitRefused unless one more client of a user may have a thread.

        `pending` are the users of the clients that will have a thread once they are connected.
        """
        taken = [*self._taken(), *pending]
        part, of = _PART_OF_ONE
        limit = max(1, self._limit * part // of)
        count = taken.count(uid)
        if count >= limit:
            raise LimitRefused(
                f"the clients of uid {uid} have {count} threads here, and may have {limit}"
            )
        if len(taken) >= self._limit:
            raise LimitRefused(f"all {self._limit} threads of this server have a client")
