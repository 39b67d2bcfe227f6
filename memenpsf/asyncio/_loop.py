"""The run loop for tasks: one interface between two queues of asyncio."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._tasks.loop import run as _run
from ._interface import Interface
from ._waiting import Waiting

if TYPE_CHECKING:
    import asyncio
    import socket
    from collections.abc import AsyncIterator
    from typing import Unpack

    from ipcqueue import Options

    from .._loop import Ended, OnSourceEnd


async def run(
    name: str,
    cap: int,
    typ: int,
    stream: socket.socket,
    recvr: asyncio.Queue[Any],
    sender: asyncio.Queue[Any],
    record: Any,
    *,
    on_source_end: OnSourceEnd = "finish",
    **options: Unpack[Options],
) -> Ended:
    """Move records between a connection and two queues until the peer ends.

    As memenpsf.run; the end of the source is None in `recvr`, or its shutdown (Python >= 3.13).
    """
    ends = lambda: (_items(recvr), sender.put)  # noqa: E731
    return await _run(Interface, ends, name, cap, typ, stream, record, on_source_end, options)


async def _items(source: asyncio.Queue[Any]) -> AsyncIterator[Any]:
    """Yield what is put into a queue until that is shut down."""
    while True:
        try:
            item = await source.get()
        except Waiting.sink_closed:
            return
        yield item
