"""ReceiverSet: many connections and listeners, received from by one loop; for tasks of asyncio."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._members import QUANTUM
from .._tasks.receiver_set import TaskReceiverSet
from ._listener import Listener
from ._waiting import TURN, Waiting

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ipcqueue.lowlevel import Seconds


class ReceiverSet(TaskReceiverSet):
    """Many interfaces and listeners, and one loop that receives from all of them.

        async with memenpsf.asyncio.ReceiverSet([one, other]) as readers:
            async for source, record in readers:
                ...

    As memenpsf.ReceiverSet: an exception that source.recv() would raise comes in place of a record,
    as an object; after an end, the source is not in the set any more.  Members have had their
    handshake.  Any number of tasks may receive.
    """

    listener = Listener
    _shown_as = "memenpsf.asyncio.ReceiverSet"

    _waiting: Waiting

    def __init__(self, members: Iterable[Any] = ()) -> None:
        super().__init__(members)
        self._waiting.turn = TURN // QUANTUM  # of calls that take more than what is ready

    async def recv(self, timeout: Seconds = None) -> tuple[Any, Any] | None:
        turn = self._gathering.turn
        try:
            for got in turn.taken:  # as attempt() does, for speed
                return got
        except Exception as error:
            self._gathering.note(turn.member, error)
        return await super().recv(timeout)

    recv.__doc__ = TaskReceiverSet.recv.__doc__
