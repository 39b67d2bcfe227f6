"""pyzmq: a PAIR socket over ipc, with the default high-water mark of 1,000 messages."""

from __future__ import annotations

import zmq

from .base import Peer


class Pair(Peer):
    """send and recv of bytes, which are copied."""

    modules = ("pyzmq",)

    def listen(self) -> None:
        """Bind the address."""
        self.use()
        self.socket.bind(f"ipc://{self.address}")

    def accept(self) -> None:
        """Do nothing: the library connects when the client comes."""

    def connect(self) -> None:
        """Connect to the address."""
        self.use()
        self.socket.connect(f"ipc://{self.address}")

    def use(self) -> None:
        """Make the socket; what waits at the end may be lost."""
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.PAIR)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.send, self.recv = self.socket.send, self.socket.recv

    def recv_busy(self) -> bytes:
        """Ask until there is something."""
        recv, again, flags = self.socket.recv, zmq.Again, zmq.NOBLOCK
        while True:
            try:
                return recv(flags)
            except again:
                pass

    def close(self) -> None:
        """End the socket and its thread."""
        self.socket.close()
        self.context.term()
