"""ReceiverSet: many connections and listeners, received from by one loop; for plain threads."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from ipcqueue import Closed
from ipcqueue.lowlevel import Closable, drive, persist

from ._gathering import Gathering
from ._membership import AnyReceiverSet, checked_limit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ipcqueue.lowlevel import Seconds

G = TypeVar("G")


class ReceiverSet(AnyReceiverSet, Closable):
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

    _shown_as = "ReceiverSet"

    def _gather(self) -> Gathering:
        return Gathering()

    def recv(self, timeout: Seconds = None) -> tuple[Any, Any] | None:
        """Return the next (source, record); None if none came within `timeout` seconds.

        For what may take the place of a record see the class.  Without members it waits for one to
        be added.  Raises Closed once the set is closed, perhaps by another thread; ForkedUse.
        """
        turn = self._gathering.turn
        try:
            for taken in turn.taken:  # as attempt() does, for speed
                return taken
        except Exception as error:  # noqa: BLE001 (returned)
            self._gathering.note(turn.member, error)
        return self._take(self._gathering.attempt, timeout)

    def recv_vectored(
        self, limit: int | None = None, timeout: Seconds = None
    ) -> list[tuple[Any, Any]]:
        """Wait for a record, then return (source, records) of members that have any.

        `records` is what source.recv_vectored() returns: at most `limit` (1024) of each member, and
        some 8192 in all; the members that are left come with the next call.  An exception in place
        of records, or a client of a listener, is a list of one.  Empty if none came in time.
        Raises as recv does.
        """
        return (
            self._take(partial(self._gathering.attempt_many, checked_limit(limit)), timeout) or []
        )

    def _take(self, attempt: Callable[[], G], timeout: Seconds) -> G | None:
        if got := attempt():
            return got
        until = self._gathering.deadline(timeout)
        while drive(self._gathering.round(until)):
            if got := attempt():
                return got
        return None

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        """Yield (source, record) until the set is closed."""
        while True:
            try:
                got = self.recv()
            except Closed:
                return
            if got is not None:
                yield got

    def __exit__(self, *exc_info: object) -> None:
        """Close; clients that have joined by themselves end as the with block of an interface."""
        error = exc_info[1]
        persist(self._gathering.close, error if isinstance(error, BaseException) else None)


ReceiverSet.__module__ = "memenpsf"  # as of all public names; see __init__
