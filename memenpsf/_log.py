"""Log lines that clients can cause: a storm of them does not fill the log."""

from __future__ import annotations

import contextlib
import logging
import math
import threading

from ipcqueue import QueueError
from ipcqueue.lowlevel import Owner, monotonic

logger = logging.getLogger("memenpsf")

# So many lines say, within so many seconds, why clients were not served; of more, only how many.
LOG_LINES = 20
LOG_SECONDS = 10.0
_MAX_CHARACTERS = 500  # of what an exception says, which may quote what a client sent


def one_line(error: BaseException) -> str:
    """Return what an exception says, or its name, on one line that is not too long."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 (whatever the class of a user does)
        text = ""
    text = text or type(error).__name__
    if len(text) > _MAX_CHARACTERS:
        text = text[:_MAX_CHARACTERS] + "…"
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class LimitedLog(Owner):
    """Lines of one kind that clients can cause: a storm of them does not fill the log."""

    def __init__(self, address: object, level: int, others: str) -> None:
        """`others` says what those are that were only counted, as in "3 more clients ended"."""
        self._address = address
        self._level = level
        self._others = others
        self._lock = threading.RLock()  # close() may be called by a signal handler in tell()
        self._since = -math.inf
        self._lines = 0
        self._untold = 0

    def tell(self, text: str, error: BaseException | None = None) -> None:
        """Log a line, with the traceback of an error if one is given; or only count it."""
        now = monotonic()
        untold = 0
        with self._lock:
            if now - self._since >= LOG_SECONDS:
                untold, self._untold = self._untold, 0
                self._since, self._lines = now, 0
            told = self._lines < LOG_LINES
            if told:
                self._lines += 1
            else:
                self._untold += 1
        self._tell_number(untold)
        if told:
            logger.log(self._level, "%s: %s", self._address, text, exc_info=error)

    def close(self) -> None:
        """Log how many were only counted."""
        with self._lock:
            untold, self._untold = self._untold, 0
        self._tell_number(untold)

    def _tell_number(self, untold: int) -> None:
        if untold:
            logger.log(self._level, "%s: %d more %s", self._address, untold, self._others)


class RefusalLog(LimitedLog):
    """Says why clients were not served."""

    def __init__(self, address: object) -> None:
        super().__init__(address, logging.WARNING, "clients refused or not served")

    def add(self, error: Exception) -> None:
        """Log it, or only count it."""
        what = "refused" if isinstance(error, QueueError) else "not served"
        with contextlib.suppress(MemoryError):  # which is what it may be about
            self.tell(f"client {what}: {one_line(error)}")
