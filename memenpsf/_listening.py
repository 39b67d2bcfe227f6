"""The common part of the listeners of all doors; nothing here waits."""

from __future__ import annotations

from typing import ClassVar

from ipcqueue.lowlevel import Owner

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
