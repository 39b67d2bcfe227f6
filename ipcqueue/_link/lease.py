"""Lease: the share of a quota that one connection uses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fdpass.lowlevel import Owner

if TYPE_CHECKING:
    from collections.abc import Callable


class Lease(Owner):
    """The share of one connection; this one counts nothing, a subclass of a listener does."""

    counts_descriptors = False
    """Whether the connection must ask fits() before it takes or sends descriptors."""

    def take(self, size: int) -> None:
        """Count `size` more bytes of shared memory; raise LimitRefused if they are too many."""

    def follow(self, held: Callable[[], int]) -> None:
        """Count from now on the descriptors of messages: `held` returns how many there are.

        `held` can be called at any time, in any thread.
        """

    def fits(self, count: int) -> bool:
        """Whether there is room for `count` descriptors, which `held` counts already.

        If not, the connection waits: it leaves them in its socket, or does not send them.
        """
        del count
        return True

    def close(self, *, served: bool = True) -> None:
        """Give all back.  Idempotent; takes no lock, because finalizers call it, too.

        `served` is False if no record went over the connection, either way.
        """
