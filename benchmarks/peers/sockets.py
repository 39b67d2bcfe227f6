"""Unix sockets as the socket module has them; blocking, buffers as the kernel makes them."""

from __future__ import annotations

import socket

from .base import Peer

WAIT_ALL = socket.MSG_WAITALL


class Stream(Peer):
    """A stream socket; both sides know the size, and the kernel puts messages together."""

    kind = socket.SOCK_STREAM

    def listen(self) -> None:
        """Bind a path."""
        self.listener = socket.socket(socket.AF_UNIX, self.kind)
        self.listener.bind(self.address)
        self.listener.listen(1)

    def accept(self) -> None:
        """Take the client."""
        with self.listener:
            self.use(self.listener.accept()[0])

    def connect(self) -> None:
        """Connect to the path."""
        sock = socket.socket(socket.AF_UNIX, self.kind)
        sock.connect(self.address)
        self.use(sock)

    def use(self, sock: socket.socket) -> None:
        """Send by its own method."""
        self.sock = sock
        self.send = sock.sendall
        self.recv = self.recv_whole

    def recv_whole(self) -> bytes:
        """Take one message; the kernel waits for all of it."""
        size = self.size
        data = self.sock.recv(size, WAIT_ALL)
        return data if len(data) == size else self.recv_rest(data)

    def recv_rest(self, data: bytes) -> bytes:
        """Go on after a signal, or with what came without waiting."""
        parts, missing = [data], self.size - len(data)
        while missing:
            if not (data := self.sock.recv(missing, WAIT_ALL)):
                raise EOFError
            parts.append(data)
            missing -= len(data)
        return b"".join(parts)

    def recv_busy(self) -> bytes:
        """Ask until there is something."""
        while True:
            try:
                data = self.sock.recv(self.size, socket.MSG_DONTWAIT)
            except BlockingIOError:
                continue
            return data if len(data) == self.size else self.recv_rest(data)

    def close(self) -> None:
        """Close it."""
        self.sock.close()


class Seqpacket(Stream):
    """A socket that keeps messages apart; they must fit its buffer."""

    kind = socket.SOCK_SEQPACKET
    largest = 64 << 10

    def use(self, sock: socket.socket) -> None:
        """Send by its own method, too."""
        super().use(sock)
        self.send = sock.send

    def recv_whole(self) -> bytes:
        """Take one packet."""
        return self.sock.recv(self.size)
