"""multiprocessing: Pipe, Queue, SimpleQueue, as they are."""

from __future__ import annotations

import multiprocessing
import queue
from multiprocessing.connection import Client, Connection, Listener
from typing import Any

from .base import Peer

SPAWN = multiprocessing.get_context("spawn")


class PipePickled(Peer):
    """What Pipe() gives at either end, between unrelated processes: Listener and Client."""

    connection: Connection

    def listen(self) -> None:
        """Bind a path."""
        self.listener = Listener(self.address, "AF_UNIX")

    def accept(self) -> None:
        """Take the client."""
        with self.listener:
            self.use(self.listener.accept())

    def connect(self) -> None:
        """Connect to the path."""
        self.use(Client(self.address, "AF_UNIX"))

    def use(self, connection: Any) -> None:
        """Send any object."""
        self.connection = connection
        self.send, self.recv = connection.send, connection.recv

    def recv_busy(self) -> bytes:
        """Ask until there is something."""
        poll = self.connection.poll
        while not poll(0):
            pass
        return self.recv()

    def close(self) -> None:
        """Close it."""
        self.connection.close()


class PipeBytes(PipePickled):
    """The same with send_bytes and recv_bytes."""

    def use(self, connection: Any) -> None:
        """Send bytes."""
        super().use(connection)
        self.send, self.recv = connection.send_bytes, connection.recv_bytes


class Queue(Peer):
    """Two queues of any length, inherited: there is no other way to get them."""

    kin = True

    @classmethod
    def share(cls, size: int) -> Any:  # noqa: ARG003
        """Make one each way."""
        return SPAWN.Queue(), SPAWN.Queue()

    def accept(self) -> None:
        """Take from the first, put into the second."""
        self.use(*self.shared)

    def connect(self) -> None:
        """Put into the first, take from the second."""
        self.use(*self.shared[::-1])

    def use(self, source: Any, sink: Any) -> None:
        """Send and receive by their own methods."""
        self.source, self.sink = source, sink
        self.send, self.recv = sink.put, source.get

    def recv_busy(self) -> bytes:
        """Ask until there is something."""
        while True:
            try:
                return self.source.get_nowait()
            except queue.Empty:
                pass

    def close(self) -> None:
        """Wait for nobody."""
        self.sink.cancel_join_thread()


class SimpleQueue(Queue):
    """A pipe with a lock at each end."""

    @classmethod
    def share(cls, size: int) -> Any:  # noqa: ARG003
        """Make one each way."""
        return SPAWN.SimpleQueue(), SPAWN.SimpleQueue()

    def recv_busy(self) -> bytes:
        """Ask until there is something."""
        empty = self.source.empty
        while empty():
            pass
        return self.recv()

    def close(self) -> None:
        """Close both."""
        self.source.close()
        self.sink.close()
