"""What each user occupies of a listener's quota, counted anew each time, so that it cannot drift.

There are no running totals.  A Share holds what one connection occupies; a user occupies the sum of
its existing shares.  A share ends when its connection is closed, or with the last reference to it,
however the connection ended.

There is no lock, because the garbage collector may close a connection in the middle of any method.
One thread at a time adds shares, and any thread removes them; each is one operation on a set.
"""

from __future__ import annotations

import resource
import sys
import weakref
from collections import deque
from typing import TYPE_CHECKING

from ipcqueue import LimitRefused
from ipcqueue.lowlevel import Lease, Owner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# One sixth is for a user's connections; the rest is for attachments, other users, other uses.
_PART_FOR_CONNECTIONS = 6

# Descriptors of a connection: the socket, both segments, a pidfd, and an epoll of event loops.  One
# whose program calls fileno() or arm() itself has one more, which is not counted.
PER_CONNECTION = 5

# A user may have seven eighths of the descriptors, all users together fifteen sixteenths.
_PART_OF_ONE = 7, 8
_PART_OF_ALL = 15, 16

# The number of users remembered, until the listener asks, because a client of theirs got in but
# exchanged no record; they rest, too.
_MAX_UNSERVED = 1024


def connections_by_default() -> int:
    """Return a sixth of the number of descriptors that this process may open now."""
    return max(1, _part_of_descriptors(1, _PART_FOR_CONNECTIONS))


def _part_of_descriptors(part: int, of: int) -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft * part // of


class Share(Lease):
    """What one connection occupies of its user's quota."""

    counts_descriptors = True

    def __init__(self, quota: Shares, uid: int) -> None:
        self._quota = quota
        self.uid = uid
        self.size = 0
        self._held: Callable[[], int] | None = None

    def follow(self, held: Callable[[], int]) -> None:
        """Count the descriptors that `held` returns, too."""
        self._held = held

    @property
    def attached(self) -> int:
        """The number of descriptors attached to messages of the connection, now."""
        return 0 if self._held is None else self._held()

    def fits(self, count: int) -> bool:
        """Whether the user's descriptors are within its quota, these `count` already included."""
        return self._quota.fits(self.uid, count)

    def take(self, size: int) -> None:
        """Count `size` more bytes of shared memory; raise LimitRefused if that is too many."""
        self._quota.check_bytes(self.uid, size)
        self.size += size

    def close(self, *, served: bool = True) -> None:
        """End the share; unless `served`, count a client that exchanged no record."""
        if self._quota.forget(self) and not served:
            self._quota.unserved += 1
            self._quota.note_unserved(self.uid)


class Shares(Owner):
    """The shares of a listener, and the limits for each user."""

    def __init__(
        self,
        max_connections: int | None,
        max_bytes: int,
        max_descriptors: int | None = None,
        reserved: int = 0,
    ) -> None:
        """Set the limits for each user.

        `max_connections` None means connections_by_default(); `max_descriptors` None means seven
        eighths of those that this process may open.  A user's connections leave `reserved`
        descriptors free for messages.
        """
        self._max_connections = max_connections
        self._max_bytes = max_bytes
        self._max_descriptors = max_descriptors
        self._reserved = reserved
        self._shares: set[weakref.ref[Share]] = set()
        self.unserved = 0  # connections that ended before any record went over them
        self._unserved_uids: deque[int] = deque(maxlen=_MAX_UNSERVED)

    def open(self, uid: int) -> Share:
        """Count one more connection of a user; raise LimitRefused if that is too many."""
        count = len(self.shares(uid))
        limit = self._max_connections or connections_by_default()
        if count >= limit:
            raise LimitRefused(f"uid {uid} has {count} connections here, and may have {limit}")
        allowed = self._descriptors_of_one()
        if count and (count + 1) * PER_CONNECTION + self._reserved > allowed:
            raise LimitRefused(
                f"uid {uid} has {count} connections here, and one more would leave less than "
                f"{self._reserved} of its {allowed} descriptors for messages"
            )
        share = Share(self, uid)
        self._shares.add(weakref.ref(share, self._shares.discard))
        return share

    def note_unserved(self, uid: int) -> None:
        """Note that a client of this user got in but exchanged no record."""
        self._unserved_uids.append(uid)

    def take_unserved(self) -> Iterator[int]:
        """Yield the users noted by note_unserved() since the last call."""
        while self._unserved_uids:
            yield self._unserved_uids.popleft()

    def forget(self, share: Share) -> bool:
        """Stop counting a share; return whether it was counted."""
        reference = weakref.ref(share)
        known = reference in self._shares
        self._shares.discard(reference)
        return known

    def shares(self, uid: int) -> list[Share]:
        """Return the shares of a user."""
        # Iterate over a copy, which is made in one operation: the set may change at any time.
        found = (ref() for ref in self._shares.copy())
        return [share for share in found if share is not None and share.uid == uid]

    def _descriptors_of_one(self) -> int:
        return self._max_descriptors or _part_of_descriptors(*_PART_OF_ONE)

    def fits(self, uid: int, count: int) -> bool:
        """Whether a user's descriptors are within the limits, with `count` of one message included.

        If not, that message is not sent, or not read.  A user's only message is always allowed:
        otherwise its receiver would wait for ever.
        """
        connections = attached = theirs = others = 0
        for ref in self._shares.copy():
            share = ref()
            if share is None:
                continue
            connections += 1
            if share.uid == uid:
                theirs += 1
                attached += share.attached
            else:
                others += share.attached
        if attached <= count:
            return True
        total = connections * PER_CONNECTION + attached + others
        return (
            theirs * PER_CONNECTION + attached <= self._descriptors_of_one()
            and total <= _part_of_descriptors(*_PART_OF_ALL)
        )

    def check_bytes(self, uid: int, size: int) -> None:
        """Raise LimitRefused if a user may not have `size` more bytes."""
        taken = sum(share.size for share in self.shares(uid))
        if taken + size > self._max_bytes:
            raise LimitRefused(
                f"uid {uid} shares {taken} bytes of memory here, and may share "
                f"{self._max_bytes}: there is no room for {size} more"
            )
