"""The run loop for tasks: one interface between two queues of the event loop."""

from __future__ import annotations

import contextlib
from collections import deque
from typing import TYPE_CHECKING, Any

from ipcqueue import Closed, EndOfStream, Full, PeerDied, ReceiverGone
from ipcqueue.lowlevel import Owner, drop_socket

from .._loop import (
    ENDS,
    Ended,
    OnSourceEnd,
    check_loop_options,
    hand_back,
    is_a_cause,
    sends_no_more,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Awaitable, Callable

    from ipcqueue import Options

    from .interface import TaskInterface
    from .waiting import Started


async def run(
    kind: type[TaskInterface[Any]],
    ends: Callable[[], tuple[AsyncIterable[Any], Callable[[Any], Awaitable[object]]]],
    name: str,
    cap: int,
    typ: int,
    stream: Any,
    record: Any,
    on_source_end: OnSourceEnd,
    options: Options,
) -> Ended:
    """Move records between a connection and two queues: `ends` returns a source and a sink.

    See the run() of a door.
    """
    try:
        check_loop_options(options, on_source_end)
    except (TypeError, ValueError):
        drop_socket(kind.plain_socket(stream))
        raise
    make: Any = kind
    role = "client" if typ == 0 else "server"
    interface: TaskInterface[Any] = make(
        stream, record, name=name, capacity=cap, role=role, **options
    )
    async with interface:
        await interface.do_handshake()
        return await Loop(interface, *ends(), on_source_end).run()


class Loop(Owner):
    """Two tasks: one sends what the source has, and one puts into the sink what arrives."""

    def __init__(
        self,
        interface: TaskInterface[Any],
        source: AsyncIterable[Any],
        sink: Callable[[Any], Awaitable[object]],
        on_source_end: OnSourceEnd,
    ) -> None:
        self._interface = interface
        self._on_source_end = on_source_end
        self._source = source
        self._sink = sink
        self._both: list[Started] = []  # the task that sends, and the one that receives
        self._watches = False
        self._arrived: deque[Any] = deque()
        self._ended = Ended(Closed("the source of records has ended"))
        self._cause: Exception | None = None  # of the end of sending, if receiving does not meet it
        self._error: Exception | None = None

    async def run(self) -> Ended:
        """Move records until both directions have ended; return how."""
        waiting = self._interface.waiting
        try:
            async with waiting.group() as group:
                for body in (self._send, self._receive):
                    self._both.append(group.start(self._task, body))
            if self._error is not None:
                # Records taken from the ring are still delivered, if the sink accepts them.
                with contextlib.suppress(*waiting.sink_closed):
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
            for task in tuple(self._both):
                task.cancel()

    async def _receive(self) -> Exception:
        while True:
            try:
                self._arrived.extend(await self._interface.recv_vectored())
            except Exception as error:
                if not is_a_cause(error, self._interface):
                    raise
                if isinstance(error, EndOfStream) and not sends_no_more(self._interface):
                    self._ended.cause = error
                    await self._watch()
                self._both[0].cancel()
                return error
            await self._deliver()

    async def _watch(self) -> None:
        """Wait until a peer that sends no more takes no more either; _send() cancels it."""
        self._watches = True
        with contextlib.suppress(*ENDS):
            while True:
                await self._interface.recv_ctrl_msg(timeout=None)

    async def _deliver(self) -> None:
        while self._arrived:
            await self._sink(self._arrived[0])
            self._arrived.popleft()

    async def _send(self) -> Exception:
        try:
            # Wait for space first.  Then a record from the source can be sent at once, and none is
            # lost if the loop is cancelled.
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
        if self._cause is None and self._on_source_end == "eof":
            await self._interface.send_eof()
        else:
            self._interface.finish()
        if self._watches:
            self._both[1].cancel()
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
