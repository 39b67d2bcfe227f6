"""Listener: many clients on one address, for tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, overload

import trio
from trio.lowlevel import (
    cancel_shielded_checkpoint,
    checkpoint,
    checkpoint_if_cancelled,
    enable_ki_protection,
)

from ipcqueue import QueueError
from ipcqueue.lowlevel import T

from .._listening import AnyListener
from .._pending import CAUSED_BY_ONE, PendingClients
from ._errors import Closed, translated
from ._interface import Interface
from ._tasks import Tasks, check_under_trio

if TYPE_CHECKING:
    import os
    from struct import Struct
    from typing import SupportsIndex, Unpack

    from ipcqueue import Encoded
    from ipcqueue.lowlevel import NumpyDtype

    from .._options import ListenOptions


class Listener(AnyListener, trio.abc.Listener[Interface[T]], Generic[T]):
    """A server's address: gives an Interface for each client.  Made by listen().

    Handshakes of clients run side by side, so a slow or hostile client delays nobody.  A loop over
    the listener skips clients that do not get in.  accept() raises the reason instead, which would
    end trio.serve_listeners: use memenpsf.trio.serve.
    """

    _shown_as = "memenpsf.trio.Listener"

    def __init__(self, pending: PendingClients) -> None:
        super().__init__(pending)
        pending.per_turn = _PER_TURN
        self._accepting = trio.Lock()
        self._tasks = Tasks()

    @enable_ki_protection
    async def accept(self) -> Interface[T]:
        """Return the next client.

        Raises Refused, CorruptPeer or HandshakeTimeout for a client that did not get in, and
        OSError if a resource is short; the listener stays usable.  Raises Closed once it is closed.
        """
        await checkpoint_if_cancelled()
        async with self._accepting:
            try:
                endpoint = await self._tasks.drive(self._pending.next_client())
            except QueueError as error:
                raise translated(error) from error.__cause__
        await cancel_shielded_checkpoint()
        assert endpoint is not None  # noqa: S101 (there is no deadline)
        try:
            return Interface._of(endpoint, self._pending.terms, self._pending.role)  # noqa: SLF001 (one package)
        except BaseException:  # no memory
            endpoint.close()
            raise

    def __aiter__(self) -> Listener[T]:
        """Yield clients until the listener is closed.

        No client ends the loop: one that is refused, or not served because a resource is short, is
        logged and skipped.  Within 10 s the first 20 of them are logged; the others are counted.
        """
        return self

    async def __anext__(self) -> Interface[T]:
        while True:
            try:
                return await self.accept()
            except Closed:
                raise StopAsyncIteration from None
            except CAUSED_BY_ONE as error:
                self._pending.log.add(error)

    async def aclose(self) -> None:
        """Stop listening and remove the socket file; accepted connections stay open."""
        if not self._pending.closed:
            self._tasks.end_waits()
            self._pending.close()
        await checkpoint()


# The number of handshakes to begin or advance before other tasks run: each may take half a
# millisecond.
_PER_TURN = 1


@overload
async def listen(
    address: str | os.PathLike[str], record: SupportsIndex, **options: Unpack[ListenOptions]
) -> Listener[bytes]: ...
@overload
async def listen(
    address: str | os.PathLike[str], record: str | Struct, **options: Unpack[ListenOptions]
) -> Listener[tuple[Any, ...]]: ...
@overload
async def listen(
    address: str | os.PathLike[str], record: type[T] | Encoded[T], **options: Unpack[ListenOptions]
) -> Listener[T]: ...
@overload
async def listen(
    address: str | os.PathLike[str], record: NumpyDtype, **options: Unpack[ListenOptions]
) -> Listener[Any]: ...
async def listen(
    address: str | os.PathLike[str], record: Any, **options: Unpack[ListenOptions]
) -> Listener[Any]:
    """Listen at an address: a bare name, a path, or @name (abstract); as memenpsf.listen.

    Other tasks run while it waits for other servers of this user to start.
    """
    check_under_trio()
    await checkpoint()
    pending = PendingClients.unbound(address, record, **options)
    await Tasks().drive(pending.binding())
    return Listener(pending)
