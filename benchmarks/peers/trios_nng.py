"""pynng through Trio."""

from __future__ import annotations

from .nng import Pair
from .trios import TrioPeer


class Async(Pair, TrioPeer):
    """asend and arecv."""

    def listen(self) -> None:
        """Be the side that is always a Trio program."""
        self.asynchronous = True
        super().listen()

    def use(self) -> None:
        """Have its own methods called."""
        super().use()
        self.asend, self.arecv = self.socket.asend, self.socket.arecv
