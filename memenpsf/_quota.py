"""What each user has of a listener: counted anew each time, so that it cannot drift.

Nothing is added up and taken away again.  What a connection takes stands in its Share, and what a
user has is the sum over the shares that exist: each ends when its connection is closed, or with
the last reference to it, whatever way the connection took.

There is no lock: the garbage collector may close a connection in the middle of any of this.
Shares are added by one thread at a time, and removed by any; each is one operation of a set.
"""

from __future__ import annotations

import resource
import sys
import weakref
from collections import deque
from typing import TYPE_CHECKING

from ipcqueue import Lease, LimitRefused

if TYPE_CHECKING:
    from collections.abc import Iterator

# Four descriptors for each connection, five under Trio: the rest is for other users and other things.
_PART_FOR_CONNECTIONS = 6

# Users whose clients got in for nothing, remembered until a listener asks: more rest as well.
_MOST_UNSERVED = 1024


def connections_by_default() -> int:
    """Return a sixth of the number of descriptors that this process may open just now."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else max(1, soft // _PART_FOR_CONNECTIONS)


class Share(Lease):
    """What one connection takes of what its user may have."""

    def __init__(self, quota: Quota, uid: int) -> None:
        self._quota = quota
        self.uid = uid
        self.size = 0

    def take(self, size: int) -> None:
        """Count so many more bytes of shared memory; raise LimitRefused if they are too many."""
        self._quota.check_bytes(self.uid, size)
        self.size += size

    def close(self, *, served: bool = True) -> None:
        """Give all back; count a client that got in for nothing."""
        if self._quota.forget(self) and not served:
            self._quota.unserved += 1
            self._quota.note_unserved(self.uid)


class Quota:
    """The shares of a listener."""

    def __init__(self, max_connections: int | None, max_bytes: int) -> None:
        """Limit what each user may have; `max_connections` of None: see connections_by_default."""
        self._max_connections = max_connections
        self._max_bytes = max_bytes
        self._shares: set[weakref.ref[Share]] = set()
        self.unserved = 0  # connections that ended before any record went over them
        self._unserved_uids: deque[int] = deque(maxlen=_MOST_UNSERVED)

    def open(self, uid: int) -> Share:
        """Count one more connection of a user; raise LimitRefused if it is one too many."""
        count = len(self.shares(uid))
        most = self._max_connections or connections_by_default()
        if count >= most:
            raise LimitRefused(f"uid {uid} has {count} connections here, and may have {most}")
        share = Share(self, uid)
        self._shares.add(weakref.ref(share, self._shares.discard))
        return share

    def note_unserved(self, uid: int) -> None:
        """Note that a user's client got in for nothing."""
        self._unserved_uids.append(uid)

    def take_unserved(self) -> Iterator[int]:
        """Give the users whose clients got in for nothing, since the last time."""
        while self._unserved_uids:
            yield self._unserved_uids.popleft()

    def forget(self, share: Share) -> bool:
        """Count a share no more; say whether it was."""
        reference = weakref.ref(share)
        known = reference in self._shares
        self._shares.discard(reference)
        return known

    def shares(self, uid: int) -> list[Share]:
        """Return what is open for a user."""
        # A copy, which is one operation: the set may change at any time.
        found = (ref() for ref in self._shares.copy())
        return [share for share in found if share is not None and share.uid == uid]

    def check_bytes(self, uid: int, size: int) -> None:
        """Raise LimitRefused if a user may not have so many more bytes."""
        taken = sum(share.size for share in self.shares(uid))
        if taken + size > self._max_bytes:
            raise LimitRefused(
                f"uid {uid} shares {taken} bytes of memory here, and may share "
                f"{self._max_bytes}: there is no room for {size} more"
            )
