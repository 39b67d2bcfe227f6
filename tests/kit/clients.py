"""Clients of a listener in steps, and a process at its limit of descriptors."""

import contextlib
import os
import resource
import socket

import fdpass
import memenpsf
from ipcqueue.lowlevel import Credentials, Opening, Role, Terms, advance
from memenpsf import _pending
from tests.kit.settling import settle


class Client:
    """A client in steps that do not wait, so that one thread can play both sides."""

    def __init__(self, path, record="<Q", sock=None, **options):
        sock = sock or connected(path)
        terms = Terms(record, Role(sends=True, receives=True), **options)
        self.opening = Opening(sock, terms)
        self.endpoint = None

    def say_hello(self):
        self.endpoint = advance(self.opening)
        return self

    def finish(self):
        self.endpoint = self.endpoint or advance(self.opening)
        return memenpsf.Interface.of(self.endpoint)

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        (self.opening.abandon if self.endpoint is None else self.endpoint.close)()


def connected(path):
    """Return a connected socket that has said nothing."""
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.connect(str(path))
    except BaseException:
        sock.close()
        raise
    return sock


@contextlib.contextmanager
def room_for_descriptors(count):
    settle()  # or a number may become free meanwhile
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    taken = [os.dup(0) for _ in range(64)]  # close the gaps below the limit
    top = max(taken)
    for fd in taken:
        os.close(fd)
    fill = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (top + 1, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                fill.append(os.dup(0))
        for _ in range(count):
            os.close(fill.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in fill:
            os.close(fd)


@contextlib.contextmanager
def inventing(monkeypatch):
    """Clients of any user: connect with invented(path, uid), which is the name they bind to."""

    def credentials(sock):
        name = sock.getpeername()
        if isinstance(name, bytes) and name.startswith(b"\0uid-"):
            return Credentials(1, int(name.split(b"-")[1]), 1)
        return real(sock)

    def connect(path, uid):
        sock = stack.enter_context(socket.socket(socket.AF_UNIX))
        sock.bind(f"\0uid-{uid}-{os.getpid()}-{len(sockets)}")
        sockets.append(sock)
        sock.connect(str(path))
        return sock

    real, sockets = fdpass.peer_credentials, []
    monkeypatch.setattr(fdpass, "peer_credentials", credentials)
    monkeypatch.setattr(_pending, "peer_credentials", credentials)
    with contextlib.ExitStack() as stack:
        yield connect
