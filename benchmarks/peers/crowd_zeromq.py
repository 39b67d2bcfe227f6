"""pyzmq with many clients: DEALER sockets, one ROUTER."""

from __future__ import annotations

import zmq

from .base import Peer

SPARE = 64  # sockets that the library may need itself


class Router(Peer):
    """The server's one socket takes from all, and says from whom."""

    modules = ("pyzmq",)
    can_answer = can_poll = False
    clients = 1

    def listen(self) -> None:
        """Bind the address."""
        self.context = zmq.Context()
        router = self.context.socket(zmq.ROUTER)
        router.setsockopt(zmq.BACKLOG, self.clients)
        router.bind(f"ipc://{self.address}")
        self.sockets = [router]
        self.recv = self.recv_any

    def accept(self) -> None:
        """Do nothing: the library connects when clients come."""

    def connect(self) -> None:
        """Connect all."""
        self.context = zmq.Context()
        self.context.max_sockets = self.clients + SPARE
        self.sockets = [self.context.socket(zmq.DEALER) for _ in range(self.clients)]
        for sock in self.sockets:
            sock.setsockopt(zmq.LINGER, 0)
            sock.connect(f"ipc://{self.address}")
        self.send = self.sockets[self.clients // 2].send

    def recv_any(self) -> bytes:
        """Take a message, and leave aside from whom."""
        return self.sockets[0].recv_multipart()[1]

    def close(self) -> None:
        """End the sockets and their thread."""
        for sock in self.sockets:
            sock.close(linger=0)
        self.context.term()
