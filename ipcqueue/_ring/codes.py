"""What the core answers, and how an answer that is trouble leaves a ring."""

from __future__ import annotations

from typing import NoReturn, Protocol

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


class Trouble(Protocol):
    """What an end calls for every result that is neither done nor a matter of waiting."""

    def __call__(self, code: int, message: str = "") -> NoReturn:
        """Raise; `message` says more about CORRUPT."""


class TroubleError(Exception):
    """Carries a result of the core out of a lock: what is made of it takes other locks."""

    def __init__(self, code: int, *message: str) -> None:
        super().__init__(code, *message)
        self.code = code


def corrupt(message: str) -> TroubleError:
    return TroubleError(CORRUPT, message)
