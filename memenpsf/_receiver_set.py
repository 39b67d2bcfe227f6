"""ReceiverSet: many connections and listeners, received from by one loop; for plain threads."""

from __future__ import annotations

import sys
import warnings
from typing import TYPE_CHECKING, Any

from ipcqueue import Closed
from ipcqueue.lowlevel import Closable, checked_number, deadline_of, drive, persist

from ._gathering import BATCH, Gathering

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ipcqueue.lowlevel import Seconds

_MAX_BATCH = 1 << 62


class ReceiverSet(Closable):
    """Many interfaces, receivers and listeners, and one loop that receives from all of them.

        with memenpsf.ReceiverSet([one, other]) as readers:
            for source, record in readers:
                ...

    Each record comes with its source.  An exception that source.recv() would raise comes in place
    of a record, as an object, so that it does not end the loop.  After an end (EndOfStream,
    PeerDied, CorruptPeer, Closed, …) the source is not in the set any more.  After DecodeFailed, or
    OSError and MemoryError for a shortage, it still is.

    A listener gives its clients: (listener, interface).  With add(listener, clients=True) they are
    in the set already; the set closes them when they have ended, and when it is closed itself.
    Whatever else was added belongs to the caller.  Clients that do not get in are logged.

    It is fair: while others are ready, at most 16 records of one source come in a row, or one batch
    in recv_vectored().  Members that have nothing cost nothing.  Any number of threads may receive,
    add and remove at once; what another thread receives from a member is not in the set's loop.
    A set needs two descriptors, and one more for each listener.  A forked child may only close it.
    """

    _instead = "let the other process connect by itself, and make a set of its own"

    def __init__(self, members: Iterable[Any] = ()) -> None:
        """Make a set of these members; raises as add() does, and OSError."""
        self._gathering = Gathering()
        try:
            for member in members:
                self.add(member)
        except BaseException:
            persist(self._gathering.close)
            raise

    def add(self, source: Any, *, clients: bool = False) -> None:
        """Add an interface, a receiver or a listener; also while another thread receives.

        `clients`: the clients of this listener join by themselves.  Raises TypeError for anything
        else, ValueError for a member, Closed, ForkedUse.
        """
        self._gathering.add(source, adopts=clients)

    def remove(self, source: Any) -> None:
        """Remove a member, which stays open; raise KeyError if it is none.

        A thread that is just receiving may still return one record of it.  A client that has joined
        by itself belongs to the caller from now on.
        """
        self._gathering.remove(source)

    def __len__(self) -> int:
        return len(self._gathering.members)

    def __contains__(self, source: object) -> bool:
        return id(source) in self._gathering.members

    def recv(self, timeout: Seconds = None) -> tuple[Any, Any] | None:
        """Return the next (source, record); None if none came within `timeout` seconds.

        For what may take the place of a record see the class.  Without members it waits for one to
        be added.  Raises Closed once the set is closed, perhaps by another thread; ForkedUse.
        """
        turn = self._gathering.turn
        if turn.left > 0:  # as attempt() does, for speed
            try:
                for record in turn.ready:
                    turn.left -= 1
                    return turn.given, record
            except Exception as error:  # noqa: BLE001 (returned)
                self._gathering.note(turn.member, error)
        if (got := self._gathering.attempt()) is not None:
            return got
        until = deadline_of(timeout)
        while drive(self._gathering.round(until)):
            if (got := self._gathering.attempt()) is not None:
                return got
        return None

    def recv_vectored(
        self, limit: int | None = None, timeout: Seconds = None
    ) -> list[tuple[Any, Any]]:
        """Wait for a record, then return (source, records) of each member that has any.

        `records` is what source.recv_vectored() returns: at most `limit` (1024) of each member.  An
        exception in place of records, or a client of a listener, is a list of one.  Empty if none
        came in time.  Raises as recv does.
        """
        most = BATCH if limit is None else checked_number("limit", limit, _MAX_BATCH)
        if most == 0:
            raise ValueError("limit is at least 1 record, not 0")
        if batches := self._gathering.attempt_many(most):
            return batches
        until = deadline_of(timeout)
        while drive(self._gathering.round(until)):
            if batches := self._gathering.attempt_many(most):
                return batches
        return []

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        """Yield (source, record) until the set is closed."""
        while True:
            try:
                got = self.recv()
            except Closed:
                return
            if got is not None:
                yield got

    @property
    def closed(self) -> bool:
        """Whether it is closed."""
        return self._gathering.closed

    def close(self) -> None:
        """Forget all members, and close those that have joined by themselves; idempotent.

        Threads that wait in recv() get Closed; a loop over the set ends.
        """
        persist(self._gathering.close)

    def __exit__(self, *exc_info: object) -> None:
        """Close; clients that have joined by themselves end as the with block of an interface."""
        error = exc_info[1]
        persist(self._gathering.close, error if isinstance(error, BaseException) else None)

    def __repr__(self) -> str:
        gathering: Any = vars(self).get("_gathering")
        if gathering is None:
            return f"<{type(self).__name__}: half made>"
        state = "closed" if gathering.closed else f"{len(gathering.members)} members"
        return f"<{type(self).__name__}: {state}>"

    def __del__(self, warn: Any = warnings.warn, finalizing: Any = sys.is_finalizing) -> None:
        gathering: Any = vars(self).get("_gathering")
        if gathering is None or gathering.closed or finalizing():
            return
        try:
            warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)
        finally:
            gathering.close()


ReceiverSet.__module__ = "memenpsf"  # as of all public names; see __init__
