"""Clients between accept() and their handshake: whose turn it is, and which one is turned away.

No I/O and no clock of its own: PendingClients (_pending.py) asks, and passes the time.

Each user has a queue of clients.  The queues take turns, so a user with many clients delays only
itself.  Within a queue, clients that have sent something come first: an honest client does so
within milliseconds.  A user whose clients failed rests: for a while none of its clients begins a
handshake, and those of other users do.
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

# The first failed client of a user is forgiven.  After the second the user rests; each further one
# doubles the time, at most MAX_DOUBLINGS times.  After FORGIVEN_AFTER seconds without a failure the
# user starts afresh.  Both are guesses.
MAX_DOUBLINGS = 3
FORGIVEN_AFTER = 1.0

# The number of users that are remembered.  A user with more user ids than that is new each time.
MAX_REMEMBERED = 1024


class Candidate(Owner):
    """An accepted client whose handshake has not begun."""

    def __init__(self, sock: socket.socket, share: Share, deadline: float) -> None:
        """Take the socket and the share; `deadline` is a monotonic()."""
        self.sock = sock
        self.share = share
        self.deadline = deadline
        self.spoken = False
        """Whether it has sent something."""


class Candidates(Owner):
    """The clients that wait for a handshake, by user."""

    def __init__(self, limit: int) -> None:
        """Hold at most `limit` clients."""
        self._limit = limit
        self._queues: dict[int, deque[Candidate]] = {}  # by uid; the next turn comes first

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def __iter__(self) -> Iterator[Candidate]:
        for queue in tuple(self._queues.values()):
            yield from tuple(queue)

    def of(self, uid: int) -> Collection[Candidate]:
        """Return the clients of a user in the order of their arrival."""
        return self._queues.get(uid, ())

    def add(self, candidate: Candidate) -> Candidate | None:
        """Add a client; if there is no room, return the client to turn away instead.

        That is the oldest silent client of the user with the most clients; the new client itself
        if its user has as many.
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
        """Return the client of each user that begins first, in the order of the users' turns."""
        return [_first(queue, spoken=True) for queue in tuple(self._queues.values())]

    def take(self, may_begin: Callable[[Candidate], bool]) -> Candidate | None:
        """Remove and return the client that begins next, None if none may; its user goes last."""
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
        """Return the clients that are past their deadline."""
        return [candidate for candidate in self if now >= candidate.deadline]

    def clear(self) -> list[Candidate]:
        """Remove and return all clients."""
        candidates = list(self)
        self._queues.clear()
        return candidates


def _first(queue: deque[Candidate], *, spoken: bool) -> Candidate:
    return next((candidate for candidate in queue if candidate.spoken == spoken), queue[0])


class Conduct:
    """Which users had clients that failed, and how long these users rest."""

    def __init__(self, rest: float) -> None:
        """Let a user rest for `rest` seconds after its second failed client."""
        self._rest = rest
        self._known: dict[int, tuple[float, int]] = {}  # by uid: time of the last one, number

    def offended(self, uid: int, now: float) -> None:
        """Note that a client of a user failed."""
        since, times = self._known.pop(uid, (now, 0))
        times = 1 if now - since > FORGIVEN_AFTER else min(times + 1, MAX_DOUBLINGS + 2)
        self._known[uid] = (now, times)  # at the end of the dict
        if len(self._known) > MAX_REMEMBERED:
            del self._known[next(iter(self._known))]

    def rests_until(self, uid: int) -> float:
        """Return the monotonic() at which a user may begin a handshake again."""
        since, times = self._known.get(uid, (0.0, 0))
        return since + self._rest * 2 ** (times - 2) if times > 1 else 0.0


class Places:
    """The handshakes under way at one moment: which user may begin one more, and when."""

    def __init__(self, limit: int, limit_per_uid: int, begun: Iterable[tuple[int, float]]) -> None:
        """Count handshakes, each given as user and time of its beginning, the oldest first."""
        self._limit = limit
        self._limit_per_uid = limit_per_uid
        self._begun: dict[int, list[float]] = {}
        for uid, when in begun:
            self._begun.setdefault(uid, []).append(when)
        self._taken = sum(map(len, self._begun.values()))

    @property
    def all_taken(self) -> bool:
        """Whether one more handshake has to displace another."""
        return self._taken >= self._limit

    def victim(self, newcomer: int) -> int | None:
        """Return the user that loses its oldest handshake to a client of user `newcomer`.

        It is the user with the most handshakes; None if it has no more than `newcomer`.
        """
        holder = max(self._begun, key=lambda uid: len(self._begun[uid]))
        return holder if len(self._begun[holder]) > len(self._begun.get(newcomer, ())) else None

    def next_for(self, candidate: Candidate, now: float, cooldown: float, grace: float) -> float:
        """Return the monotonic() from which a client may begin, if nothing changes until then.

        A user with a handshake older than `cooldown` seconds begins one per `cooldown`.  A
        handshake younger than `grace` seconds is not displaced; none is for a silent client.
        """
        uid = candidate.share.uid
        theirs = self._begun.get(uid, [])
        if len(theirs) >= self._limit_per_uid:
            return math.inf
        # Starting a handshake is the expensive part; a user with one stalled may stall many.
        hangs = theirs and now - theirs[0] > cooldown
        when = theirs[-1] + cooldown if hangs else 0.0
        if self.all_taken:
            victim = self.victim(uid) if candidate.spoken else None
            if victim is None:
                return math.inf
            when = max(when, self._begun[victim][0] + grace)
        return when
