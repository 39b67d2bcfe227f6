"""The run loop for tasks: one interface between two memory channels."""

from __future__ import annotations

import contextlib
from collections import deque
from typing import TYPE_CHECKING, Any, Literal

import trio

from ipcqueue.lowlevel import (
    Owner,
    drop_socket,
)

from .._loop import (
    ENDS,
    Ended,
    OnSourceEnd,
    check_loop_options,
    hand_back,
    is_a_cause,
    sends_no_more,
)
from ._errors import Closed, EndOfStream, Full, PeerDied, ReceiverGone
from ._interface import Interface, plain_socket

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable
    from typing import Unpack

    from ipcqueue import Options


async def run(
    name: str,
    cap: int,
    typ: int,
    stream: trio.SocketStream | trio.socket.SocketType | socket.socket,
    recvr: trio.MemoryReceiveChannel[Any],
    sender: trio.MemorySendChannel[Any],
    record: Any,
    *,
    on_source_end: OnSourceEnd = "finish",
    **options: Unpack[Options],
) -> Ended:
    """Move records between a connection and two memory channels until the peer ends.

    As memenpsf.run; the end of the source is that of `recvr`, or None in it.
    """
    role: Literal["client", "server"] = "client" if typ == 0 else "server"
    try:
        check_loop_options(options, on_source_end)
    except (TypeError, ValueError):
        drop_socket(plain_socket(stream))
        raise
    async with Interface(
        stream, record, name=name, capacity=cap, role=role, **options
    ) as interface:
        await interface.do_handshake()
        return await _Loop(interface, recvr, sender, on_source_end).run()


class _Loop(Owner):
    def __init__(
        self,
        interface: Interface,
        source: trio.MemoryReceiveChannel[Any],
        sink: trio.MemorySendChannel[Any],
        on_source_end: OnSourceEnd,
    ) -> None:
        self._interface = interface
        self._on_source_end = on_source_end
        self._source = source
        self._sink = sink
        self._scope = trio.CancelScope()
        self._sending = trio.CancelScope()
        self._watching = trio.CancelScope()
        self._arrived: deque[Any] = deque()
        self._ended = Ended(Closed("the source of records has ended"))
        self._cause: Exception | None = None  # of the end of sending, if receiving does not meet it
        self._error: Exception | None = None

    async def run(self) -> Ended:
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._task, self._send)
                    nursery.start_soon(self._task, self._receive)
            if self._error is not None:
                # Records taken from the ring are still delivered, if the sink accepts them.
                with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    await self._deliver()
                raise self._error
        except BaseException as error:
            hand_back(error, self._ended.unsent)
            raise
        self._ended.cause = self._cause or self._ended.cause
        return self._ended

    async def _task(self, body: Callable[[], Awaitable[Exception]]) -> None:
        try:
            self._ended.cause = await body()
        except Exception as error:
            self._error = error
            self._scope.cancel()

    async def _receive(self) -> Exception:
        while True:
            try:
                self._arrived.extend(await self._interface.recv_vectored())
            except Exception as error:
                if not is_a_cause(error, self._interface):
                    raise
                if isinstance(error, EndOfStream) and not sends_no_more(self._interface):
                    await self._watch()
                self._sending.cancel()
                return error
            await self._deliver()

    async def _watch(self) -> None:
        """Wait until a peer that sends no more takes no more either, or this side has sent all."""
        with self._watching, contextlib.suppress(*ENDS):
            while True:
                await self._interface.recv_ctrl_msg(timeout=None)

    async def _deliver(self) -> None:
        while self._arrived:
            await self._sink.send(self._arrived[0])
            self._arrived.popleft()

    async def _send(self) -> Exception:
        try:
            with self._sending:
                # Wait for space first.  Then a record from the source can be sent at once, and
                # none is lost if the loop is cancelled.
                await self._interface.await_space()
                async for record in self._source:
                    if record is None:
                        break
                    await self._xmit(record)
                    await self._interface.await_space()
        except Exception as error:
            if not is_a_cause(error, self._interface):
                raise
            if isinstance(error, (EndOfStream, ReceiverGone, PeerDied)):
                # The receiving side raises the same after draining; its account is the better one.
                return self._ended.cause
            self._cause = error
        if self._sending.cancelled_caught:
            return self._ended.cause
        if self._cause is None and self._on_source_end == "eof":
            await self._interface.send_eof()
        else:
            self._interface.finish()
        self._watching.cancel()
        return self._ended.cause

    async def _xmit(self, record: Any) -> None:
        try:
            try:
                self._interface.xmit_nowait(record)
            except Full:
                # The ring has space, but this message travels outside it, and too many others do.
                await self._interface.xmit(record)
        except BaseException:  # it was not sent
            self._ended.unsent.append(record)
            raise
