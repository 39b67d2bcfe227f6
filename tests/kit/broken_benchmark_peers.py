"""Peers for test_benchmarks.py that must not get through: each breaks what it carries."""

import os

from benchmarks.peers.sockets import Stream


class Sound(Stream):
    """Does nothing wrong."""


class Loses(Stream):
    """Every tenth message never arrives."""

    def use(self, sock):
        super().use(sock)
        self.count = 0
        self.send = self.send_some

    def send_some(self, message):
        self.count += 1
        if self.count % 10:
            self.sock.sendall(message)


class Swaps(Loses):
    """Every tenth message arrives after its successor."""

    held = None

    def send_some(self, message):
        self.count += 1
        if self.held is not None:
            self.sock.sendall(message)
            message, self.held = self.held, None
        elif self.count % 10 == 0:
            self.held = message
            return
        self.sock.sendall(message)


class Repeats(Loses):
    """Every tenth message arrives twice."""

    def send_some(self, message):
        self.count += 1
        self.sock.sendall(message)
        if self.count % 10 == 0:
            self.sock.sendall(message)


class Garbles(Stream):
    """The last byte is another one."""

    def recv_whole(self):
        return super().recv_whole()[:-1] + b"\xff\xfe"[:1]


class Stops(Loses):
    """Nothing arrives any more after a while."""

    def send_some(self, message):
        self.count += 1
        if self.count < 5:
            self.sock.sendall(message)


class Dies(Stream):
    """The server's process ends in the middle."""

    def recv_whole(self):
        os._exit(3)
