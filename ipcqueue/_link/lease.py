"""What a connection takes of a quota."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fdpass.lowlevel import Owner

if TYPE_CHECKING:
    from collections.abc import Callable


class Lease(Owner):
    """What a connection takes of a limit; who counts makes a subclass."""

    counts_descriptors = False
    """Whether fits() says anything: else the connection does not ask."""

    def take(self, size: int) -> None:
        """Count so many more bytes of shared memory; raise LimitRefused if they are too many."""

    def follow(self, held: Callable[[], int]) -> None:
        """Count what `held` returns, from now on: the descriptors that came or go with messages.

        It can be called at any time, in any thread.
        """

    def fits(self, count: int) -> bool:
        """Whether there is room for `count` descriptors, which `held` returns among the others.

        If not, the connection waits: it leaves them in its socket, or does not send them.
        """
        del count
        return True

    def close(self, *, served: bool = True) -> None:
        """Give all back: idempotent, from any thread, and from finalizers, so without a lock.

        `served` is False if no record went over the connection, either way.
        """
