"""What the sending ends of both shapes of ring have in common."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from ipcqueue._core import lib
from ipcqueue._waiting import lib as waiting

from .codes import AGAIN, CLOSED, DONE, FULL, RingError
from .end import End, Traffic
from .memory import address_of, allocate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import AbstractContextManager

    from .end import Place
    from .memory import Mapping


class SenderEnd(End):
    """What the sending ends of both shapes of ring share."""

    _look_call = lib.ipcq_sender_indices

    def __init__(self, own: Mapping, peer: Mapping, place: Place) -> None:
        ring = allocate("ipcq_sender *", lib.ipcq_sender_size(), own.at, peer.at)
        words = own.at, own.wake_line, peer.at, peer.wake_line
        lib.ipcq_sender_init(ring, *words, place.capacity, place.unit, place.bell, place.start)
        if place.process is not None:
            lib.ipcq_sender_watch(ring, place.process.fileno())
        lib.ipcq_sender_patience(ring, *place.patience)
        super().__init__(place, ring, own)
        self._base = address_of(own.at)

    if TYPE_CHECKING:  # of the base types in core/python

        def offer(self, record: Any) -> Any: ...
        def push(self, *encoded: Any) -> int: ...
        def reserve(self, ring: Any, units: int) -> tuple[int, int, int]: ...
        def publish(self, ring: Any, *shape: int) -> int: ...

    _encode: Callable[[Any], Any]

    def try_push(self, record: Any) -> bool:
        """Publish one record; False if there is no space.  Raises BadRecord."""
        return self.offer(record) is None

    def offer_slowly(self, record: Any) -> Any:
        """Do what offer() does, where that is more than one call of C."""
        return self.offer_encoded(self._encode(record))

    def offer_encoded(self, encoded: Any) -> Any:
        """Do the same with a record that is encoded already; return that if there is no space."""
        raise NotImplementedError

    def encoded(self, record: Any) -> Any:
        """Return what a record is encoded to; raise BadRecord."""
        return self._encode(record)

    def _pushed(self, *encoded: Any) -> int:
        """Publish one record that is encoded; return a code."""
        with self._lock:
            while (code := self.push(*encoded)) == AGAIN:  # or why `_ring` is not in use
                if self._usable() is None:
                    return CLOSED
        return code

    def parcel(
        self, record: Any, fds: Iterable[Any] | None = None, regions: Iterable[Any] | None = None
    ) -> AbstractContextManager[Any]:
        """Encode a record, to try more than once; raise BadRecord if it cannot be sent."""
        raise NotImplementedError

    def parcel_of(self, encoded: Any) -> AbstractContextManager[Any]:
        """Return the same of a record that is encoded already."""
        raise NotImplementedError

    def try_send(self, parcel: Any) -> bool | None:
        """Publish what was encoded; False if there is no space, None if the socket is full."""
        raise NotImplementedError

    def units(self, parcel: Any) -> int:
        """Return the space to wait for when there was none for this parcel."""
        raise NotImplementedError

    def batch(self, records: Iterable[Any]) -> Any:
        """Encode records, `count` of them; raise BadRecord if one of them cannot be sent."""
        raise NotImplementedError

    def push_many(self, records: Iterable[Any]) -> int | BatchSending:
        """Encode records, and publish at once what that can be done with; raise as batch().

        Return how many if that was all of them, else what is still to be done.
        """
        return BatchSending(self, self.batch(records))

    def parcel_in(self, batch: Any, start: int) -> AbstractContextManager[Any] | None:
        """Return record number `start` of a batch as a parcel if it must be sent by itself."""
        raise NotImplementedError

    def try_push_many(self, batch: Any, start: int) -> int:
        """Publish records from number `start` on, as many as fit; return how many.

        The first of them need not be sent by itself.
        """
        raise NotImplementedError

    def units_of(self, batch: Any, start: int) -> int:
        """Return the space to wait for when there was none for the rest of the batch."""
        raise NotImplementedError

    def lend_space(self, units: int, borrower: object) -> tuple[Any, int] | None:
        """Lend the memory of the next `units`; None if it is not there.

        Return memory, and the offset in it at which what is lent begins.
        Everything else fails until end_loan(), or until `borrower` is gone.
        """
        code, lent, reference = CLOSED, None, weakref.ref(borrower)
        with self._lock:
            ring = self._ring if self._ring is not None else self._usable()
            memory = self._memory
            if ring is not None:
                self._parked, self._ring, self._borrower = ring, None, reference
                try:
                    code, at, run = self.reserve(ring, units)
                    if code == DONE:
                        lent = self._place(memory, at - self._base, units, run)
                finally:
                    if lent is None:
                        self._unpark(ring)
        if code and code != FULL:
            raise RingError(code)
        return lent

    def _place(self, memory: Any, offset: int, units: int, run: int) -> tuple[Any, int]:
        """Return where to write `units`, of which only `run` may be contiguous in the ring."""
        raise NotImplementedError

    def end_loan(self, borrower: object, shape: tuple[int, ...] | None) -> None:
        """Take the memory back, and publish it in a `shape` unless that is None.

        That is (units, wake); of frames (size, tag, flags, wake).  Raises LoanError, and publishes
        nothing, while views of it are left.  For persist(): nothing is left to do once `borrower`
        has no memory any more.
        """
        code = DONE
        with self._lock:
            if not self.lends_to(borrower):
                return
            ring = self._parked
            try:
                if shape is not None:
                    self._views.check("nothing was published of this loan")
                    code = CLOSED if ring is None else self._publish_lent(ring, *shape)
            finally:
                self._forget()
            self._usable()
        if code:
            raise RingError(code)

    def _publish_lent(self, ring: Any, *shape: int) -> int:
        return self.publish(ring, *shape)

    @property
    def enough(self) -> int:
        """The space that is enough for any record."""
        return 1

    def find_space(self, units: int) -> bool:
        """Whether a push of `units` would find space; raise what the push would raise."""
        if not self.has_space(units):
            return False  # because reserve() counts it as a push that found none
        ring = self._ring
        if ring is None:
            with self._lock:
                ring = self._usable()
        code = CLOSED if ring is None else self.reserve(ring, units)[0]
        if code and code != FULL:
            raise RingError(code)
        return not code

    def has_space(self, units: int = 1) -> bool:
        """Whether there is no need to wait for space: a push may also find that nobody receives."""
        ring = self._ring
        return ring is None or waiting.ipcq_spin_space(ring, units, 0) == DONE

    def look(self, units: int) -> bool:
        """Look for space as long as that is worth it."""
        ring = self._ring
        return ring is None or waiting.ipcq_await_space(ring, units) == DONE

    def arm(self, units: int = 1) -> bool:
        """Ask for a doorbell when there is space; False if there is no need to sleep."""
        ring = self._ring
        return ring is not None and lib.ipcq_arm_space(ring, units) == FULL

    def disarm(self) -> None:
        """Take that back."""
        ring = self._ring
        if ring is not None:
            lib.ipcq_disarm_space(ring)

    def indices(self) -> tuple[int, int]:
        """Return the units published, and those of them taken by the peer; also once closed."""
        return self._indices()

    def traffic(self) -> Traffic:
        """Return what was published, and what of it the peer has not taken."""
        head, tail = self.indices()
        size = self._unit
        return Traffic(head, head - tail, head * size, (head - tail) * size)

    def close(self) -> None:
        """Let go of the socket.  A push in progress ends first."""
        ring = self._withdraw()
        if ring is not None:
            lib.ipcq_sender_silence(ring)


class Sending:
    """One record on its way, with what is attached to it."""

    def __init__(self, sender: SenderEnd, parcel: Any) -> None:
        self._sender = sender
        self._parcel = parcel
        self.stuck = False
        """Whether the last attempt found space, but the socket took no descriptors."""

    def attempt(self) -> bool | None:
        """Send it; None if it must wait for space, or is stuck."""
        sent = self._sender.try_send(self._parcel)
        self.stuck = sent is None
        return sent or None

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
