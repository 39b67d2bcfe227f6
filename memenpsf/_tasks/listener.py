"""TaskListener: many clients on one address, for tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Generic

from ipcqueue import Closed, QueueError
from ipcqueue.lowlevel import T

from .._listening import AnyListener
from .._pending import CAUSED_BY_ONE, PendingClients

if TYPE_CHECKING:
    from typing import Self

    from ipcqueue.lowlevel import Endpoint

    from .._options import ListenAt, ListenOptions
    from .interface import TaskInterface

# The number of handshakes to begin or advance before other tasks run: each may take half a
# millisecond.
_PER_TURN = 1


class TaskListener(AnyListener, Generic[T]):
    """What the Listener of every door for tasks is; see there."""

    interface: ClassVar[type[TaskInterface[Any]]]
    """What it makes of a client."""

    def __init__(self, pending: PendingClients) -> None:
        super().__init__(pending)
        pending.per_turn = _PER_TURN
        self._waiting = self.interface.waiting()
        self._accepting = self._waiting.lock()

    async def accept(self) -> Any:
        """Return the next client.

        Raises Refused, CorruptPeer or HandshakeTimeout for a client that did not get in, and
        OSError if a resource is short; the listener stays usable.  Raises Closed once it is closed.
        """
        self._waiting.check_loop()
        await self._waiting.begin()
        async with self._accepting:
            try:
                endpoint = await self._waiting.drive(self._pending.next_client())
            except QueueError as error:
                raise self._waiting.ours(error, None) from error.__cause__
        assert endpoint is not None  # noqa: S101 (there is no deadline)
        return self._accepted(endpoint)

    def _accepted(self, endpoint: Endpoint) -> TaskInterface[Any]:
        try:
            return self.interface.of(endpoint, self._pending.terms, self._pending.role)
        except BaseException:  # no memory
            endpoint.close()
            raise

    def _has_client(self) -> bool | None:
        if self._accepting.locked():
            return None  # that task is the one that works
        return self._pending.closed or self._pending.work()

    def _take_client(self) -> TaskInterface[Any] | None:
        if self._accepting.locked():
            return None
        endpoint = self._pending.turn()
        return None if endpoint is None else self._accepted(endpoint)

    def __aiter__(self) -> Self:
        """Yield clients until the listener is closed.

        No client ends the loop: one that is refused, or not served because a resource is short, is
        logged and skipped.  Within 10 s the first 20 of them are logged; the others are counted.
        """
        return self

    async def __anext__(self) -> Any:
        while True:
            try:
                return await self.accept()
            except Closed:
                raise StopAsyncIteration from None
            except CAUSED_BY_ONE as error:
                self._pending.log.add(error)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stop listening and remove the socket file; accepted connections stay open."""
        if not self._pending.closed:
            self._waiting.end_waits()
            self._pending.close()
        await self._waiting.checkpoint()


async def listen(
    kind: type[TaskListener[Any]],
    address: ListenAt,
    record: Any,
    options: ListenOptions,
) -> Any:
    """Listen at an address; return a listener of this kind.  See memenpsf.listen.

    Other tasks run while it waits for other servers of this user to start.
    """
    waiting = kind.interface.waiting()
    waiting.check_loop()
    await waiting.checkpoint()
    pending = PendingClients.unbound(address, record, **options)
    await waiting.drive(pending.binding())
    return kind(pending)
