"""What the core answers, and the exception for an answer that is trouble."""

from __future__ import annotations

from ipcqueue._core import lib

DONE: int = lib.IPCQ_DONE
FULL: int = lib.IPCQ_FULL
EMPTY: int = lib.IPCQ_EMPTY
GONE: int = lib.IPCQ_GONE
FORKED: int = lib.IPCQ_FORKED
CORRUPT: int = lib.IPCQ_CORRUPT
AGAIN: int = lib.IPCQ_AGAIN
STUCK: int = lib.IPCQ_STUCK
ERROR: int = lib.IPCQ_ERROR
CLOSED = 100  # ours: the end was closed on this side


class RingError(Exception):
    """Raised by the ends of a ring for a result that is neither done nor a matter of waiting.

    `code` is GONE, FORKED, CORRUPT or CLOSED; `message` says more about CORRUPT.  An end does not
    know what that means to its connection: Endpoint.raise_meaning() does, and no application ever
    sees this exception.
    """

    def __init__(self, code: int, message: str = "the peer's index cannot be true") -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message


def corrupt(message: str) -> RingError:
    return RingError(CORRUPT, message)
