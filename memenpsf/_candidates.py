"""Clients between accept() and their handshake: whose turn is it, and who is turned away.

No I/O and no clock of its own: PendingClients (_pending.py) asks, and says what time it is.

Clients wait in a queue for each user.  The queues take turns, so a user with many clients delays
only itself.  Within a queue those come first that have sent something already: an honest client
does so within milliseconds.  A user whose clients came to nothing rests for a while: none of its
clients begins a handshake, and those of other users do.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

from ipcqueue.lowlevel import Owner

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Collection, Iterable, Iterator

    from ._shares import Share

# The first client of a user that comes to nothing is forgiven; after the second the user rests, and
# with each further one twice as long, up to 2**3 times.  A user that had none for so many seconds
# begins anew.  Guesses, both.
MAX_DOUBLINGS = 3
FORGIVEN_AFTER = 1.0

# How many users are remembered.  Whoever has more user ids than that is as good as new each time.
MAX_REMEMBERED = 1024


class Candidate(Owner):
    """A client that has been let in, and for which nothing else has been done yet."""

    def __init__(self, sock: socket.socket, share: Share, deadline: float) -> None:
        """Take the socket and the share; `deadline` is a monotonic()."""
        self.sock = sock
        self.share = share
        self.deadline = deadline
        self.spoken = False
        """Whether something can be read from it."""


class Candidates(Owner):
    """The clients that wait for a handshake, by user."""

    def __init__(self, limit: int) -> None:
        """Hold at most `limit` clients."""
        self._limit = limit
        self._queues: dict[int, deque[Candidate]] = {}  # whose turn it is comes first

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def __iter__(self) -> Iterator[Candidate]:
        for queue in tuple(self._queues.values()):
            yield from tuple(queue)

    def of(self, uid: int) -> Collection[Candidate]:
        """Return those of a user, in the order in which they came."""
        return self._queues.get(uid, ())

    def add(self, candidate: Candidate) -> Candidate | None:
        """Take a client in; return the one to turn away, if there is no room: perhaps this one.

        It is the oldest silent one of the user that has most, and this one if that is its user.
        """
        uid = candidate.share.uid
        excess = None
        if len(self) >= self._limit:
            fullest = max(self._queues, key=lambda each: len(self._queues[each]))
            if len(self.of(uid)) >= len(self._queues[fullest]):
                return candidate
            excess = _first(self._queues[fullest], spoken=False)
            self.remove(excess)
        self._queues.setdefault(uid, deque()).append(candidate)
        return excess

    def remove(self, candidate: Candidate) -> None:
        """Forget a client."""
        queue = self._queues[candidate.share.uid]
        queue.remove(candidate)
        if not queue:
            del self._queues[candidate.share.uid]

    def next_of_each(self) -> list[Candidate]:
        """Return the client of each user that is to begin first; whose turn it is comes first."""
        return [_first(queue, spoken=True) for queue in tuple(self._queues.values())]

    def take(self, may_begin: Callable[[Candidate], bool]) -> Candidate | None:
        """Take out the client that begins next; None if none may.  Its user is the last then."""
        for candidate in self.next_of_each():
            if may_begin(candidate):
                uid = candidate.share.uid
                queue = self._queues[uid]
                self.remove(candidate)
                if queue:
                    del self._queues[uid]
                    self._queues[uid] = queue
                return candidate
        return None

    def late(self, now: float) -> list[Candidate]:
        """Return the clients whose time is over."""
        return [candidate for candidate in self if now >= candidate.deadline]

    def clear(self) -> list[Candidate]:
        """Forget all; return them."""
        candidates = list(self)
        self._queues.clear()
        return candidates


def _first(queue: deque[Candidate], *, spoken: bool) -> Candidate:
    return next((candidate for candidate in queue if candidate.spoken == spoken), queue[0])


class Conduct:
    """Which users had clients that came to nothing, and until when they rest."""

    def __init__(self, rest: float) -> None:
        """Let a user rest for `rest` seconds after the second of them."""
        self._rest = rest
        self._known: dict[int, tuple[float, int]] = {}  # since when, and how often by then

    def offended(self, uid: int, now: float) -> None:
        """Note that a client of a user came to nothing."""
        since, times = self._known.pop(uid, (now, 0))
        times = 1 if now - since > FORGIVEN_AFTER else min(times + 1, MAX_DOUBLINGS + 2)
        self._known[uid] = (now, times)  # the last of all
        if len(self._known) > MAX_REMEMBERED:
            del self._known[next(iter(self._known))]

    def rests_until(self, uid: int) -> float:
        """Return when a user may begin again; a monotonic()."""
        since, times = self._known.get(uid, (0.0, 0))
        return since + self._rest * 2 ** (times - 2) if times > 1 else 0.0


class Places:
    """The handshakes under way, at one moment: who may begin one more, and when."""

    def __init__(self, limit: int, limit_per_uid: int, begun: Iterable[tuple[int, float]]) -> None:
        """Count them: the user of each and when it began, the oldest first."""
        self._limit = limit
        self._limit_per_uid = limit_per_uid
        self._begun: dict[int, list[float]] = {}
        for uid, when in begun:
            self._begun.setdefault(uid, []).append(when)
        self._taken = sum(map(len, self._begun.values()))

    @property
    def all_taken(self) -> bool:
        """Whether one more can only take the place of another one."""
        return self._taken >= self._limit

    def victim(self, newcomer: int) -> int | None:
        """Return the user whose oldest handshake gives way to one of a newcomer's user.

        It is the one with most of them; None if that has no more than the newcomer.
        """
        holder = max(self._begun, key=lambda uid: len(self._begun[uid]))
        return holder if len(self._begun[holder]) > len(self._begun.get(newcomer, ())) else None

    def next_for(self, candidate: Candidate, now: float, cooldown: float, grace: float) -> float:
        """Return the monotonic() from which a client may begin, if all stays as it is.

        A user with a handshake older than `cooldown` seconds begins one in that time.  A handshake
        younger than `grace` seconds does not give way; and none does to a silent client.
        """
        uid = candidate.share.uid
        theirs = self._begun.get(uid, [])
        if len(theirs) >= self._limit_per_uid:
            return math.inf
        # To begin one is the dearest part, and a user that lets one hang may let many hang.
        hangs = theirs and now - theirs[0] > cooldown
        when = theirs[-1] + cooldown if hangs else 0.0
        if self.all_taken:
            victim = self.victim(uid) if candidate.spoken else None
            if victim is None:
                return math.inf
            when = max(when, self._begun[victim][0] + grace)
        return when
