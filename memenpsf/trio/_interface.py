"""Interface: the verbs of memenpsf.Interface for Trio."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any, TypeAlias, overload

import trio

from ipcqueue.lowlevel import T

from .._options import checked_stream
from .._tasks.blocks import TaskBorrowing, TaskLoan
from .._tasks.interface import TaskInterface
from .._tasks.interface import connect as _connect
from ._protection import protect
from ._waiting import Waiting

if TYPE_CHECKING:
    import os
    from struct import Struct
    from typing import SupportsIndex, Unpack

    from ipcqueue import Encoded
    from ipcqueue.lowlevel import N, NumpyDtype, Seconds

    from .._options import ConnectOptions, SeekOptions

Stream: TypeAlias = trio.SocketStream | trio.socket.SocketType | socket.socket


class AsyncLoan(TaskLoan):
    """An ipcqueue.Loan for an async with block."""


class AsyncBorrowing(TaskBorrowing):
    """An ipcqueue.Borrowing for an async with block."""


class Interface(TaskInterface[T], trio.abc.Channel[T]):
    """One side of a two-way connection that moves typed records through shared memory.

    The handshake takes place at the first call, or in `do_handshake`.  Any number of tasks may
    send and receive at once.  As a trio.abc.Channel: send, receive, iteration, aclose.
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

    async def send(self, value: T) -> None:
        """Send a record, as xmit does (trio.abc.SendChannel)."""
        await self.xmit(value)

    async def receive(self) -> T:
        """Return the next record, as recv does (trio.abc.ReceiveChannel)."""
        return await self.recv()

    @staticmethod
    def plain_socket(stream: Stream) -> socket.socket:
        """Take the socket out of what Trio wraps around it."""
        if isinstance(stream, trio.SocketStream):
            stream = stream.socket
        if isinstance(stream, trio.socket.SocketType):
            return socket.socket(fileno=stream.detach())
        return checked_stream(stream)


protect(Interface, AsyncLoan, AsyncBorrowing)


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
