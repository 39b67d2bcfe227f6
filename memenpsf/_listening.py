"""The common part of the listeners of all doors; nothing here waits."""

from __future__ import annotations

from typing import ClassVar

from ipcqueue.lowlevel import Owner, guess, listed

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

    def __repr__(self) -> str:
        state = "closed" if self._pending.closed else "open"
        return f"<{self._shown_as} {self.address}: {state}>"

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
