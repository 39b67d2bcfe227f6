"""One server with many clients, of which one is active: each peer by the readiness call it fits to.

All clients are one process.  The server waits for all at once, and takes whatever comes.
"""

from __future__ import annotations

import select
import socket
from multiprocessing.connection import Client, Listener
from typing import TYPE_CHECKING, Any

import memenpsf

from .base import Peer

if TYPE_CHECKING:
    from collections.abc import Iterator

CHUNK = 64 << 10


class Crowd(Peer):
    """What all have in common: the server gives messages of any client."""

    can_answer = can_poll = False
    clients = 1
    ends: list[Any]

    def one(self) -> Any:
        """Return the next connection, at either side."""
        raise NotImplementedError

    def messages(self, ready: Iterator[Any]) -> Iterator[bytes]:
        """Yield what those have that are ready."""
        raise NotImplementedError

    def accept(self) -> None:
        """Take all clients."""
        self.ends = [self.one() for _ in range(self.clients)]
        self.listener.close()
        self.epoll = select.epoll()
        by_number = {end.fileno(): end for end in self.ends}
        for number in by_number:
            self.epoll.register(number, select.EPOLLIN)
        self.iterator = self.messages(by_number[number] for number, _ in iter_ready(self.epoll))

    def records(self) -> Iterator[bytes]:
        """Return what waits for all."""
        return self.iterator

    def close(self) -> None:
        """Close all."""
        for end in self.ends:
            end.close()

    listener: Any


def iter_ready(epoll: select.epoll) -> Iterator[tuple[int, int]]:
    """Wait again and again."""
    while True:
        yield from epoll.poll()


class Ours(Crowd):
    """arm() and epoll; records of the size, default settings."""

    modules = ("memenpsf",)

    def listen(self) -> None:
        """Bind the path."""
        self.listener = memenpsf.listen(self.address, self.size)

    def one(self) -> Any:
        """Take one."""
        return self.listener.accept(10)

    def connect(self) -> None:
        """Connect all."""
        self.ends = [memenpsf.connect(self.address, self.size) for _ in range(self.clients)]
        self.send = self.ends[self.clients // 2].xmit

    def messages(self, ready: Iterator[Any]) -> Iterator[bytes]:
        """Take all that one has, until it promises to wake us."""
        for end in self.ends:
            while not end.arm():
                yield from end.recv_vectored(timeout=0)
        for end in ready:
            yield from end.recv_vectored(timeout=0)
            while not end.arm():
                yield from end.recv_vectored(timeout=0)


class Stream(Crowd):
    """epoll, and 64 KiB at a time."""

    def listen(self) -> None:
        """Bind the path."""
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.address)
        self.listener.listen(self.clients)

    def one(self) -> Any:
        """Take one."""
        return self.listener.accept()[0]

    def connect(self) -> None:
        """Connect all."""
        self.ends = [socket.socket(socket.AF_UNIX) for _ in range(self.clients)]
        for end in self.ends:
            end.connect(self.address)
        self.send = self.ends[self.clients // 2].sendall

    def messages(self, ready: Iterator[Any]) -> Iterator[bytes]:
        """Cut what came; messages are whole, or their rest is waited for."""
        size = self.size
        most = max(1, CHUNK // size) * size
        for end in ready:
            data = end.recv(most)
            if rest := len(data) % size:
                data += end.recv(size - rest, socket.MSG_WAITALL)
            for start in range(0, len(data), size):
                yield data[start : start + size]


class Pipe(Crowd):
    """The connections of multiprocessing, epoll, one message when one is ready."""

    def listen(self) -> None:
        """Bind the path."""
        self.listener = Listener(self.address, "AF_UNIX", backlog=self.clients)

    def one(self) -> Any:
        """Take one."""
        return self.listener.accept()

    def connect(self) -> None:
        """Connect all."""
        self.ends = [Client(self.address, "AF_UNIX") for _ in range(self.clients)]
        self.send = self.ends[self.clients // 2].send_bytes

    def messages(self, ready: Iterator[Any]) -> Iterator[bytes]:
        """Take one from each."""
        for end in ready:
            yield end.recv_bytes()
