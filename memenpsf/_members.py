"""Member: one connection or listener of a set; Turn: when its records are taken."""

from __future__ import annotations

import select
from collections import deque
from itertools import repeat
from operator import length_hint
from typing import TYPE_CHECKING, Any

from ipcqueue.lowlevel import Event, Owner

from ._sources import ConnectionSource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from ._sources import Source

# Records of one member in a row, while others are ready.
QUANTUM = 16


class Member(Owner):
    """One connection or listener of a Gathering."""

    def __init__(
        self,
        given: Any,
        source_of: Callable[[Any, Callable[[], None]], Source],
        wake: Callable[[Member], None],
        *,
        join: Callable[[Any], None] | None,
        own: bool,
    ) -> None:
        self.given = given
        self._wake = wake
        self._join = join  # makes members of a listener's clients
        self.own = own  # to be closed by the set
        self.queued = False
        self.left = False
        self.promising = True  # look() has found something: an attempt pays that takes long in vain
        self.fds: set[int] = set()  # registered, or about to be
        self.armed: set[int] = set()  # of these, who has not told since
        self.end: tuple[Any, Any] | None = None  # the event by which it has ended
        self._nested: select.epoll | None = None  # of a listener, see interests()
        self.source = source = source_of(given, self.wake)
        if isinstance(source, ConnectionSource):
            self.ready: Iterable[Any] = source.endpoint.ready
            self.take = source.endpoint.try_pop
        else:
            self.ready, self.take = (), self._accept

    def is_halfway(self) -> bool:
        """Whether the last attempt has copied a piece of a large message, and others may run."""
        source = self.source
        return isinstance(source, ConnectionSource) and source.endpoint.unfinished(Event.RECORDS)

    def interests(self) -> Sequence[tuple[int, int]]:
        """Return what to poll after the source has found nothing, and for which events.

        The descriptors of a listener change all the time, so they stand in an epoll of its own.
        """
        interests = self.source.interests()
        if isinstance(self.source, ConnectionSource):
            return interests
        self.armed.clear()
        before, self._nested = self._nested, select.epoll()
        for fd, events in interests:
            self._nested.register(fd, events)
        if before is not None:
            before.close()
        return [(self._nested.fileno(), select.EPOLLIN)]

    def leave(self) -> None:
        """Undo what the set has asked of it; repeatable."""
        self.source.leave()
        if self._nested is not None:
            self._nested.close()

    def wake(self) -> None:
        """Have it looked at soon; from any thread."""
        if not self.queued:
            self._wake(self)

    def take_many(self, limit: int) -> Any:
        """Take up to `limit` records; None if there are none."""
        if isinstance(self.source, ConnectionSource):
            endpoint = self.source.endpoint
            if not self.promising:
                return endpoint.receiving().pop_ready(limit, bounded=True)
            return endpoint.try_pop_many(limit, bounded=True)
        client = self._accept() if self.promising else None
        return None if client is None else [client]

    def _accept(self) -> Any:
        client = self.given._take_client()  # noqa: SLF001 (one package)
        if self._join is not None and client is not None:
            try:
                self._join(client)
            except BaseException:
                client.close()
                raise
        return client


class Turn:
    """The turn of a member: QUANTUM records at most."""

    __slots__ = ("member", "quantum", "taken")

    def __init__(self, member: Member | None) -> None:
        self.member = member
        self.quantum: Iterator[Any] = repeat(None if member is None else member.given, QUANTUM)
        # Each step takes what is ready, and nothing in Python stands between that and the caller.
        self.taken = zip(self.quantum, () if member is None else member.ready, strict=False)

    @property
    def left(self) -> int:
        """How many attempts are left."""
        return length_hint(self.quantum)

    def end(self) -> None:
        """Have nothing more taken."""
        deque(self.quantum, maxlen=0)
