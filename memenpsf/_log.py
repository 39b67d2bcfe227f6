"""Log lines that clients can cause, limited so that no client can fill the log.

What clients do (they connect, end, are refused) goes to `memenpsf.clients`, which is silent unless
the program configures logging.  What the program should see in any case goes to `memenpsf`: its
handlers fail, its socket file is gone.  Python prints that on stderr where nothing is configured.
"""

from __future__ import annotations

import contextlib
import logging
import math
from typing import TYPE_CHECKING

from ipcqueue import QueueError
from ipcqueue.lowlevel import Owner, RLock, monotonic, printable, shown_peer

if TYPE_CHECKING:
    from ipcqueue.lowlevel import Endpoint

logger = logging.getLogger("memenpsf")
of_clients = logging.getLogger("memenpsf.clients")
of_clients.addHandler(logging.NullHandler())

# At most LOG_LINES lines of a kind are logged per LOG_SECONDS; further ones are only counted.
LOG_LINES = 20
LOG_SECONDS = 10.0
_MAX_CHARACTERS = 500  # of an exception's text, which may quote data from a client


def one_line(error: BaseException) -> str:
    """Return an exception's text, or its class if it has none, as one line of limited length."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 (an application's class may raise anything)
        text = ""
    text = text or type(error).__name__
    if len(text) > _MAX_CHARACTERS:
        text = text[:_MAX_CHARACTERS] + "…"
    return printable(text)


class LimitedLog(Owner):
    """Log lines of one kind, of which clients can cause any number; it limits them."""

    def __init__(
        self, address: object, level: int, others: str, to: logging.Logger = of_clients
    ) -> None:
        """`others` names what was only counted: "clients ended" for "3 more clients ended"."""
        self._logger = to
        self._address = address
        self._level = level
        self._others = others
        self._lock = RLock()  # a signal handler that interrupts tell() may call close()
        self._since = -math.inf
        self._lines = 0
        self._untold = 0

    def tell(self, text: str, error: BaseException | None = None) -> None:
        """Log a line, with the traceback of `error` if given; over the limit, only count it."""
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
            self._logger.log(self._level, "%s: %s", self._address, text, exc_info=error)

    def close(self) -> None:
        """Log the number of lines that were only counted."""
        with self._lock:
            untold, self._untold = self._untold, 0
        self._tell_number(untold)

    def _tell_number(self, untold: int) -> None:
        if untold:
            self._logger.log(self._level, "%s: %d more %s", self._address, untold, self._others)


class ConnectionLog(LimitedLog):
    """Logs which clients have connected."""

    def __init__(self, address: object) -> None:
        super().__init__(address, logging.DEBUG, "clients connected")

    def add(self, endpoint: Endpoint) -> None:
        """Log a client, or only count it."""
        if of_clients.isEnabledFor(logging.DEBUG):
            with contextlib.suppress(MemoryError):
                self.tell(
                    f"client {shown_peer(endpoint.peer_name, endpoint.peer.pid, '')} connected"
                )


class RefusalLog(LimitedLog):
    """Logs why clients were not served."""

    def __init__(self, address: object) -> None:
        super().__init__(address, logging.WARNING, "clients refused or not served")

    def add(self, error: Exception) -> None:
        """Log an error, or only count it."""
        what = "refused" if isinstance(error, QueueError) else "not served"
        with contextlib.suppress(MemoryError):  # memory may be what is short
            self.tell(f"client {what}: {one_line(error)}")
