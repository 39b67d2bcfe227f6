"""Through Trio: the receiver, and in one case the sender as well, is a Trio program."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

import memenpsf.trio

from .base import Peer
from .sockets import Stream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

CHUNK = 64 << 10


class TrioPeer(Peer):
    """Has awaitable calls as well: one that receives a message, or one that receives many."""

    asend: Callable[[bytes], Awaitable[object]]
    arecv: Callable[[], Awaitable[bytes]] | None = None
    arecv_many: Callable[[], Awaitable[list[bytes]]]
    asynchronous = False  # whether this side is a Trio program
    nothing = False  # whether nothing is sent


class Ours(Stream, TrioPeer):
    """Records of the size, default settings; xmit and recv."""

    modules = ("memenpsf", "trio")
    interface: Any

    def listen(self) -> None:
        """Be the side that is always a Trio program."""
        self.asynchronous = True
        super().listen()

    def use(self, sock: Any) -> None:
        """Introduce both sides over the socket."""
        if self.asynchronous:
            self.interface = memenpsf.trio.Interface(sock, self.size)
            trio.run(self.interface.do_handshake)
            self.asend, self.arecv = self.interface.xmit, self.interface.recv
        else:
            self.interface = memenpsf.Interface(sock, self.size)
            self.send = self.interface.xmit

    def close(self) -> None:
        """Close it."""
        self.interface.close()


class OursVectored(Ours):
    """The same, but recv_vectored."""

    def use(self, sock: Any) -> None:
        """Take many."""
        super().use(sock)
        self.arecv, self.arecv_many = None, self.interface.recv_vectored


class Socket(Stream, TrioPeer):
    """A SocketStream: send_all, and receive_some of 64 KiB, cut."""

    modules = ("trio",)

    def listen(self) -> None:
        """Be the side that is always a Trio program."""
        self.asynchronous = True
        super().listen()

    def use(self, sock: Any) -> None:
        """Wrap the socket if this side is a Trio program."""
        super().use(sock)
        if self.asynchronous:
            self.stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
            self.asend, self.arecv_many = self.stream.send_all, self.receive_many
            self.kept = b""

    async def receive_many(self) -> list[bytes]:
        """Return whole messages."""
        data = self.kept + await self.stream.receive_some(CHUNK)
        size = self.size
        whole = len(data) // size * size
        self.kept = data[whole:]
        return [data[start : start + size] for start in range(0, whole, size)]


class Checkpoint(Stream, TrioPeer):
    """Nothing is sent: what one checkpoint costs, which no call can be cheaper than."""

    modules = ("trio",)
    nothing = True
