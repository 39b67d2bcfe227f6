"""For comparison: the plainest ring in C, which checks nothing and never sleeps."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

from benchmarks import baselines

from .ours import ring_capacity
from .sockets import Stream

if TYPE_CHECKING:
    from collections.abc import Iterator

C: Any = baselines.load("ring")
DEFAULT = 1024  # slots


class Ring(Stream):
    """One ring each way in a memfd, with as many slots as memenpsf's for records of that size.

    Both sides poll with the GIL kept, so another thread would hardly ever run: no disturbed forms.
    """

    workloads = ("rate", "roundtrip")
    can_sleep = False
    memory: int
    source: Any

    def accept(self) -> None:
        """Make the memory, and give it to the client."""
        self.memory = os.memfd_create("bare ring")
        slots = ring_capacity(self.size) or DEFAULT
        room = C.room(self.size, slots)
        room += -room % os.sysconf("SC_PAGE_SIZE")
        os.ftruncate(self.memory, 2 * room)
        super().accept()
        self.map(0, room, slots)
        socket.send_fds(self.sock, [b"!"], [self.memory])
        self.sock.recv(1)  # it is mapped there, too

    def connect(self) -> None:
        """Get it from the server."""
        super().connect()
        self.memory = socket.recv_fds(self.sock, 1, 1)[1][0]
        slots = ring_capacity(self.size) or DEFAULT
        self.map(os.fstat(self.memory).st_size // 2, 0, slots)
        self.sock.sendall(b"!")

    def map(self, source: int, sink: int, slots: int) -> None:
        """Know the calls."""
        self.source = C.Ring(self.memory, source, self.size, slots)
        self.send = C.Ring(self.memory, sink, self.size, slots).push
        self.recv = self.source.pop
        self.recv_busy = self.recv  # type: ignore[method-assign]

    def records(self) -> Iterator[bytes]:
        """Return the ring itself, whose next is pop."""
        return iter(self.source)

    def close(self) -> None:
        """Let go of the memory."""
        del self.source, self.send, self.recv, self.recv_busy
        os.close(self.memory)
        super().close()
