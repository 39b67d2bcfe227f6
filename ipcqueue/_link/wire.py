"""The socket of a connection."""

from __future__ import annotations

import contextlib
import socket


def tell(sock: socket.socket, message: bytes) -> None:
    """Send what does no harm if it gets lost."""
    with contextlib.suppress(OSError):
        sock.send(message, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
