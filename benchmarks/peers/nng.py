"""pynng: Pair0 over ipc."""

from __future__ import annotations

import pynng

from .base import Peer


class Pair(Peer):
    """send and recv of bytes, with the buffers that the library makes."""

    modules = ("pynng",)
    largest = 1 << 20  # recv_max_size, which listen and connect set a little higher

    def listen(self) -> None:
        """Bind the address."""
        self.use()
        self.socket.listen(f"ipc://{self.address}")

    def accept(self) -> None:
        """Do nothing: the library connects when the client comes."""

    def connect(self) -> None:
        """Connect to the address."""
        self.use()
        self.socket.dial(f"ipc://{self.address}", block=True)

    def use(self) -> None:
        """Make the socket."""
        self.socket = pynng.Pair0(recv_max_size=2 * self.largest)
        self.send, self.recv = self.socket.send, self.socket.recv

    def recv_busy(self) -> bytes:
        """Ask until there is something."""
        recv, again = self.socket.recv, pynng.TryAgain
        while True:
            try:
                return recv(block=False)
            except again:
                pass

    def close(self) -> None:
        """Close it."""
        self.socket.close()
