"""TaskReceiverSet: the verbs of memenpsf.ReceiverSet, awaitable; for every event loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from ipcqueue import Closed
from ipcqueue.lowlevel import persist

from .._gathering import Gathering
from .._membership import AnyReceiverSet, checked_limit
from .._sources import ConnectionSource, ListenerSource, no_member

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Self, TypeVar

    from ipcqueue.lowlevel import Seconds

    from .._sources import Source
    from .listener import TaskListener
    from .waiting import Waiting

    G = TypeVar("G")


class TaskReceiverSet(AnyReceiverSet):
    """What the ReceiverSet of every door for tasks is; see there."""

    listener: ClassVar[type[TaskListener[Any]]]
    """Which listeners can be members, and by their `interface` which connections."""

    def __init__(self, members: Iterable[Any] = ()) -> None:
        self._waiting = self.listener.interface.waiting()
        super().__init__(members)

    def _gather(self) -> Gathering:
        return TaskGathering(self.listener, self._waiting)

    def add(self, source: Any, *, clients: bool = False) -> None:
        """Add an interface or a listener of this event loop; also while another task receives.

        `clients`: the clients of this listener join by themselves.  Raises TypeError for anything
        else, ValueError for a member, Closed (also before the handshake), RuntimeError (of another
        event loop).  No checkpoint.
        """
        try:
            self._waiting.check_loop()
            super().add(source, clients=clients)
        except Exception as error:
            raise self._waiting.ours(error, self, given=True) from error.__cause__

    async def recv(self, timeout: Seconds = None) -> tuple[Any, Any] | None:
        """Return the next (source, record); None if none came within `timeout` seconds.

        For what may take the place of a record see the class.  Without members it waits for one to
        be added.  Raises Closed once the set is closed, perhaps by another task.
        """
        return await self._take(self._gathering.attempt, timeout)

    async def recv_vectored(
        self, limit: int | None = None, timeout: Seconds = None
    ) -> list[tuple[Any, Any]]:
        """Wait for a record, then return (source, records) of members that have any.

        `records` is what source.recv_vectored() returns: at most `limit` (1024) of each member, and
        some 8192 in all; the members that are left come with the next call.  An exception in place
        of records, or a client of a listener, is a list of one.  Empty if none came in time.
        Raises as recv does.
        """
        most = checked_limit(limit)
        batches = await self._take(lambda: self._gathering.attempt_many(most) or None, timeout)
        for _, records in batches or ():
            self._waiting.count(len(records))
        return batches or []

    async def _take(self, attempt: Callable[[], G | None], timeout: Seconds) -> G | None:
        waiting, gathering = self._waiting, self._gathering
        try:
            until = gathering.deadline(timeout)
            await waiting.begin()
            if (got := attempt()) is not None:
                await waiting.done()
                return got
            while await waiting.drive(gathering.round(until)):
                if (got := attempt()) is not None:
                    return got
        except Exception as error:
            raise waiting.ours(error, self, given=True) from error.__cause__
        return None

    def __aiter__(self) -> Self:
        """Yield (source, record) until the set is closed."""
        return self

    async def __anext__(self) -> tuple[Any, Any]:
        while True:
            try:
                got = await self.recv()
            except Closed:
                raise StopAsyncIteration from None
            if got is not None:
                return got

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Close; clients that have joined by themselves end as the block of an interface does."""
        error = exc_info[1]
        persist(self._gathering.close, error if isinstance(error, BaseException) else None)
        await self._waiting.checkpoint()

    async def aclose(self) -> None:
        """Do what close() does.  A checkpoint."""
        self.close()
        await self._waiting.checkpoint()


class TaskGathering(Gathering):
    """The members of a set of tasks."""

    def __init__(self, listener: type[TaskListener[Any]], waiting: Waiting) -> None:
        self._listener = listener
        self._waiting_with = waiting
        super().__init__(type(waiting).clock)

    def source_of(self, given: Any, wake: Callable[[], None]) -> Source:
        if isinstance(given, self._listener.interface):
            given._waiting.check_loop()  # noqa: SLF001 (one package)
            given._open_endpoint()  # noqa: SLF001
            return ConnectionSource(given, wake)
        if isinstance(given, self._listener):
            given._waiting.check_loop()  # noqa: SLF001
            return ListenerSource(given, wake)
        door = self._listener.__module__
        raise no_member(given, f"interfaces and listeners of {door}")

    def ours(self, error: Exception, given: object) -> Exception:
        told = self._waiting_with.ours(error, given)
        told.__cause__ = error.__cause__
        return told
