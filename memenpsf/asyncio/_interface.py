"""Interface: the verbs of memenpsf.Interface for asyncio."""

from __future__ import annotations

from itertools import repeat
from typing import TYPE_CHECKING, Any, overload

from ipcqueue.lowlevel import T, plans

from .._tasks.blocks import TaskBorrowing, TaskLoan
from .._tasks.interface import TaskInterface
from .._tasks.interface import connect as _connect
from ._waiting import TURN, Waiting

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable
    from struct import Struct
    from typing import SupportsIndex, Unpack

    from ipcqueue import Encoded
    from ipcqueue.lowlevel import Endpoint, N, NumpyDtype, Seconds

    from .._options import ConnectOptions, SeekOptions


class AsyncLoan(TaskLoan):
    """An ipcqueue.Loan for an async with block."""


class AsyncBorrowing(TaskBorrowing):
    """An ipcqueue.Borrowing for an async with block."""


class Interface(TaskInterface[T]):
    """One side of a two-way connection that moves typed records through shared memory.

    The handshake takes place at the first call, or in `do_handshake`.  Any number of tasks of one
    event loop may send and receive at once.
    """

    waiting = Waiting
    loan_type = AsyncLoan
    borrowing_type = AsyncBorrowing

    if TYPE_CHECKING:
        # Of numpy scalars many are an array; checkers want to hear that of this very class.
        @overload
        async def recv_vectored(
            self: Interface[N], limit: int | None = None, timeout: Seconds = None
        ) -> Any: ...
        @overload
        async def recv_vectored(
            self, limit: int | None = None, timeout: Seconds = None
        ) -> list[T]: ...
        async def recv_vectored(self, limit: int | None = None, timeout: Seconds = None) -> Any: ...

    # A turn: so many calls go straight to the ring.  Then others may run, and the next one begins.
    _takes: Iterable[Iterable[Any]] = ()
    _offers: Iterable[Callable[[Any], Any]] = ()

    def _join(self, endpoint: Endpoint) -> None:
        super()._join(endpoint)
        self._takes, self._offers = repeat(endpoint.ready, TURN), repeat(endpoint.offer, TURN)

    async def _next_turn(self) -> Endpoint:
        endpoint = self._endpoint
        if endpoint is None:
            return await self.opened()
        await self._waiting.checkpoint()  # nothing is taken or sent yet
        return endpoint

    if not TYPE_CHECKING:  # there, those of TaskInterface; what is done at once goes no further

        async def recv(self, timeout=None, default=None):  # noqa: ANN001, ANN202
            try:
                for ready in self._takes:
                    for record in ready:
                        return record
                    break
                else:
                    endpoint = await self._next_turn()
                    self._takes = repeat(endpoint.ready, TURN)
            except Exception as error:
                raise self._waiting.ours(error, self) from error.__cause__
            return await super().recv(timeout, default)

        async def xmit(self, record, timeout=None, fds=None, regions=None):  # noqa: ANN001, ANN202
            try:
                if fds is None and regions is None:
                    for offer in self._offers:
                        if (left := offer(record)) is not None:
                            endpoint = self._endpoint
                            parcel = endpoint.sending().parcel_of(left)
                            await self._waiting.drive(plans.push(endpoint, parcel, timeout))
                        return
                    endpoint = await self._next_turn()
                    self._offers = repeat(endpoint.offer, TURN)
            except Exception as error:
                raise self._waiting.ours(error, self) from error.__cause__
            await super().xmit(record, timeout, fds, regions)

        recv.__doc__, xmit.__doc__ = TaskInterface.recv.__doc__, TaskInterface.xmit.__doc__


@overload
async def connect(
    address: str | os.PathLike[str], record: SupportsIndex, **options: Unpack[SeekOptions]
) -> Interface[bytes]: ...
@overload
async def connect(
    address: str | os.PathLike[str], record: str | Struct, **options: Unpack[SeekOptions]
) -> Interface[tuple[Any, ...]]: ...
@overload
async def connect(
    address: str | os.PathLike[str],
    record: type[T] | Encoded[T],
    **options: Unpack[SeekOptions],
) -> Interface[T]: ...
@overload
async def connect(
    address: str | os.PathLike[str], record: NumpyDtype, **options: Unpack[SeekOptions]
) -> Interface[Any]: ...
async def connect(
    address: str | os.PathLike[str],
    record: Any,
    *,
    timeout: Seconds = 5.0,
    retry: Seconds = 0,
    **options: Unpack[ConnectOptions],
) -> Any:
    """Connect to a server; the address is a bare name, a path, or @name (abstract).

    As memenpsf.connect: OSError at once, or after `retry` seconds, if there is no server;
    HandshakeTimeout, and what Interface raises.
    """
    return await _connect(Interface, address, record, timeout, retry, options)
