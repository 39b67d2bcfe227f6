"""A socket whose closing would wait: it has data to send, and nobody at the other end takes it."""

import contextlib
import socket
import struct

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
