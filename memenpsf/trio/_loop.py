"""The run loop for tasks: one interface between two memory channels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._tasks.loop import run as _run
from ._interface import Interface

if TYPE_CHECKING:
    from typing import Unpack

    import trio

    from ipcqueue import Options

    from .._loop import Ended, OnSourceEnd
    from ._interface import Stream


async def run(
    name: str,
    cap: int,
    typ: int,
    stream: Stream,
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
    ends = lambda: (recvr, sender.send)  # noqa: E731
    return await _run(Interface, ends, name, cap, typ, stream, record, on_source_end, options)
