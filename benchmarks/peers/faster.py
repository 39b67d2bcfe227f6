"""faster-fifo: a ring under a lock, inherited; single objects, and many at once."""

from __future__ import annotations

import functools
import queue
from typing import TYPE_CHECKING, Any

import faster_fifo
import faster_fifo_reduction  # noqa: F401 (teaches multiprocessing to hand the queue on)

from .base import Peer

if TYPE_CHECKING:
    from collections.abc import Iterator

DEFAULT = 1_000_000  # bytes of a queue
PATIENCE = 3600.0  # seconds; the library has no other way to wait
MANY = 1024


class Single(Peer):
    """put and get; the default size, but room for eight messages."""

    kin = True
    modules = ("faster-fifo",)

    @classmethod
    def share(cls, size: int) -> Any:
        """Make one each way."""
        room = max(DEFAULT, 8 * size)
        return faster_fifo.Queue(room), faster_fifo.Queue(room)

    def accept(self) -> None:
        """Take from the first, put into the second."""
        self.use(*self.shared)

    def connect(self) -> None:
        """Put into the first, take from the second."""
        self.use(*self.shared[::-1])

    def use(self, source: Any, sink: Any) -> None:
        """Wait as long as others do."""
        self.source, self.sink = source, sink
        self.send = functools.partial(sink.put, timeout=PATIENCE)
        self.recv = functools.partial(source.get, timeout=PATIENCE)

    def recv_busy(self) -> bytes:
        """Ask until there is something."""
        while True:
            try:
                return self.source.get_nowait()
            except queue.Empty:
                pass


class Many(Single):
    """put one by one, but get_many at the receiver: whatever is there."""

    can_answer = can_poll = False

    def records(self) -> Iterator[bytes]:
        """Take all that is there, and give it one by one."""
        get_many = functools.partial(
            self.source.get_many, timeout=PATIENCE, max_messages_to_get=MANY
        )
        while True:
            yield from get_many()
