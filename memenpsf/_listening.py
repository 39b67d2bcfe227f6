"""The common part of the listeners of all doors; nothing here waits."""

from __future__ import annotations

import sys
import warnings
from typing import Any, ClassVar

from ipcqueue.lowlevel import Owner, guess, listed, printable, shown_record

from ._pending import PendingClients


class AnyListener(Owner):
    """A server's address, and the clients that have not been accepted yet."""

    _instead = PendingClients._instead  # noqa: SLF001 (one package)
    _shown_as: ClassVar[str]

    def __init__(self, pending: PendingClients) -> None:
        self._pending = pending

    @property
    def address(self) -> str:
        """Where it listens: a path, or @name."""
        return str(self._pending.bound.address)

    @property
    def refused(self) -> int:
        """How many clients were refused or failed to introduce themselves."""
        return self._pending.refused

    # For sets of many:

    def _has_client(self) -> bool | None:
        """Whether _take_client() would return a client or raise; None if another call accepts."""
        raise NotImplementedError

    def _take_client(self) -> Any:
        """Return the next client if one is there, else None; raise as accept() does."""
        raise NotImplementedError

    def __repr__(self) -> str:
        try:
            pending = self._pending
            state = "closed" if pending.closed else "open"
            record = shown_record(pending.terms.codec)
            refused = f", {pending.refused} refused" if pending.refused else ""
            return f"<{self._shown_as} {printable(self.address)}: {state}, {record}{refused}>"
        except Exception:  # noqa: BLE001 (half made; or no memory)
            return f"<{self._shown_as}: half made>"

    def __del__(self, warn: Any = warnings.warn, finalizing: Any = sys.is_finalizing) -> None:
        pending = getattr(self, "_pending", None)  # None: half made
        if pending is None or pending.closed or finalizing():
            return
        try:
            if pending.bound.ours:
                warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)
        finally:
            pending.close()

    def __dir__(self) -> list[str]:
        return listed(self, super().__dir__())


guess(
    AnyListener,
    {
        "use accept(), or a loop over the listener": ("get", "next_client", "connections"),
        "accept() returns the Interface that has it": ("xmit", "recv", "send", "receive", "peer"),
        "use serve()": ("serve", "serve_forever", "run"),
        "use a thread that accepts, or memenpsf.trio": ("fileno", "poll", "settimeout"),
        "its attribute is `address`": ("name", "path", "getsockname"),
        "use close(), or aclose() under Trio": ("shutdown", "stop", "disconnect"),
    },
)
