"""A socket whose closing would wait: it has data to send, and nobody at the other end takes it."""

import contextlib
import socket
import struct

import fdpass

SECONDS = 1000


@contextlib.contextmanager
def lingering():
    """Give such a socket; whoever closes the last descriptor of it waits, unless it is told not to."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        given = socket.create_connection(server.getsockname())
        other, _ = server.accept()
    with given, other:
        given.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                given.send(bytes(1 << 16))
        given.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, SECONDS))
        try:
            yield given
        finally:
            with contextlib.suppress(OSError):  # the test may have closed it
                given.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes(8))


@contextlib.contextmanager
def queued():
    """Give a Unix socket with such a one in its queue: no option of its own helps."""
    ours, theirs = socket.socketpair()
    with theirs, lingering() as inner:
        with ours:
            fdpass.send_fd(ours, inner)
        inner.close()
        yield theirs
