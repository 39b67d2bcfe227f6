"""What is being sent: the steps between which threads and Trio tasks wait, each in their way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._ring import SenderEnd


class Sending:
    """One record on its way, with what is attached to it."""

    def __init__(self, sender: SenderEnd, parcel: Any) -> None:
        self._sender = sender
        self._parcel = parcel
        self.stuck = False
        """Whether the last attempt found space, but the socket took no descriptors."""

    def attempt(self) -> bool | None:
        """Send it; None if it must wait for space.  True also if it is stuck."""
        sent = self._sender.try_send(self._parcel)
        self.stuck = sent is None
        return None if sent is False else True

    def units(self) -> int:
        """Return how much space to wait for."""
        return self._sender.units(self._parcel)


class BatchSending:
    """Many records on their way, encoded already: in runs, or by themselves if need be."""

    def __init__(self, sender: SenderEnd, batch: Any, done: int = 0) -> None:
        self._sender = sender
        self._batch = batch
        self.done = done
        """How many have been sent."""

    @property
    def left(self) -> int:
        """How many have not."""
        return int(self._batch.count) - self.done

    def alone(self) -> Any:
        """Return the next as a parcel, to be closed, if it must go by itself; else None."""
        return self._sender.parcel_in(self._batch, self.done)

    def attempt(self) -> int | None:
        """Send as many as there is space for; return their number, None if there was none."""
        return self._sender.try_push_many(self._batch, self.done) or None

    def units(self) -> int:
        """Return how much space to wait for."""
        return self._sender.units_of(self._batch, self.done)
