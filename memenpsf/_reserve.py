"""One descriptor in reserve, to refuse a client with when none is left."""

from __future__ import annotations

import socket


def spare() -> socket.socket | None:
    """Open a descriptor to close when none is left; None if none is left already.

    A file of its own, not a duplicate: those of the whole system are limited as well.
    """
    try:
        return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError:
        return None
