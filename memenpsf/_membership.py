"""The common part of the ReceiverSets of all doors; nothing here waits."""

from __future__ import annotations

import sys
import warnings
from typing import TYPE_CHECKING, Any, ClassVar

from ipcqueue.lowlevel import Owner, checked_number, persist

from ._gathering import BATCH, Gathering

if TYPE_CHECKING:
    from collections.abc import Iterable

_MAX_BATCH = 1 << 62


class AnyReceiverSet(Owner):
    """Who is in a set, and the end of it."""

    _instead = "let the other process connect by itself, and make a set of its own"
    _shown_as: ClassVar[str]

    def __init__(self, members: Iterable[Any] = ()) -> None:
        """Make a set of these members; raises as add() does, and OSError."""
        self._gathering = self._gather()
        try:
            for member in members:
                self.add(member)
        except BaseException:
            persist(self._gathering.close)
            raise

    def _gather(self) -> Gathering:
        raise NotImplementedError

    def add(self, source: Any, *, clients: bool = False) -> None:
        """Add an interface, a receiver or a listener; also while somebody receives.

        `clients`: the clients of this listener join by themselves.  Raises TypeError for anything
        else, ValueError for a member, Closed, ForkedUse.
        """
        self._gathering.add(source, adopts=clients)

    def remove(self, source: Any) -> None:
        """Remove a member, which stays open; raise KeyError if it is none.

        Who is just receiving may still return one record of it.  A client that has joined by
        itself belongs to the caller from now on.
        """
        self._gathering.remove(source)

    def __len__(self) -> int:
        return len(self._gathering.members)

    def __contains__(self, source: object) -> bool:
        return id(source) in self._gathering.members

    @property
    def closed(self) -> bool:
        """Whether it is closed."""
        return self._gathering.closed

    def close(self) -> None:
        """Forget all members, and close those that have joined by themselves; idempotent.

        Who waits in recv() gets Closed; a loop over the set ends.
        """
        persist(self._gathering.close)

    def __repr__(self) -> str:
        gathering: Any = vars(self).get("_gathering")
        if gathering is None:
            return f"<{self._shown_as}: half made>"
        state = "closed" if gathering.closed else f"{len(gathering.members)} members"
        return f"<{self._shown_as}: {state}>"

    def __del__(self, warn: Any = warnings.warn, finalizing: Any = sys.is_finalizing) -> None:
        gathering: Any = vars(self).get("_gathering")
        if gathering is None or gathering.closed or finalizing():
            return
        try:
            if not gathering.is_forked():
                warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)
        finally:
            gathering.close()


def checked_limit(limit: int | None) -> int:
    """Return how many records of each member to take; raise TypeError or ValueError."""
    most = BATCH if limit is None else checked_number("limit", limit, _MAX_BATCH)
    if most == 0:
        raise ValueError("limit is at least 1 record, not 0")
    return most
