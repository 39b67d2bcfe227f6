"""Lending messages in place: to read what waits without copying it."""

from __future__ import annotations

import contextlib
import weakref
from typing import TYPE_CHECKING, Any

from fdpass.lowlevel import Owner
from ipcqueue._core import ffi
from ipcqueue._records.messages import MAX_FLAGS, OUTSIDE

from .arrivals import Built, attachments_of
from .bounds import Budget
from .codes import CLOSED, DONE, FORKED, RingError
from .frame_builder import FrameBuilder
from .memory import Mapping, fork_generation
from .outside import find
from .views import Lent

if TYPE_CHECKING:
    from .arrivals import Spent


class _Lending(Owner):
    """What is lent in one borrowing, and what happens when it is taken."""

    def __init__(self) -> None:
        self.to = 0  # where the last frame ends
        self.messages = 0
        self.built: list[Built] = []  # they, if they were copied already
        self.outside = 0  # bytes of those outside the ring
        self.arrived = 0  # how many of the others have any descriptors
        self.dropped = 0  # attachments of the application
        self.spent: list[Spent] = []
        self.regions: dict[int, Mapping] = {}  # of the peer, after these


class FrameLender(FrameBuilder):
    """A FrameBuilder that also lends what it would copy."""

    _lending: _Lending | None = None

    def lend_records(
        self, limit: int, borrower: object, *, bounded: bool = False
    ) -> list[Lent] | None:
        """Lend messages in place, those too that travel outside the ring.

        Attachments of the application do not belong to a borrowing: they are closed when the
        messages are taken.
        """
        lent, reference = None, weakref.ref(borrower)
        budget = Budget(bounded=bounded)
        limit = min(limit, budget.most)
        with self._lock:
            ring = self._ring if self._ring is not None else self._usable()
            memory = self._memory
            if ring is None:
                raise RingError(CLOSED)
            self._parked, self._ring, self._borrower = ring, None, reference
            try:
                self._lending = lending = _Lending()
                self._reclaim()
                if self._raw:
                    lent = self._lend_built(limit, lending)
                else:
                    lent = self._lend_in_place(ring, memory, limit, lending, budget)
            except Exception:
                if self._parked is not ring:  # a signal handler has closed it
                    raise RingError(CLOSED) from None
                raise
            finally:
                if lent is None:
                    self._forget()
                    self._unpark(ring)
                    self._close_spent()
        return lent

    def _lend_built(self, limit: int, lending: _Lending) -> list[Lent]:
        """Lend what an earlier call has copied already."""
        if fork_generation() != self._generation:
            raise RingError(FORKED)
        now = self._raw[:limit]
        lending.to, lending.messages, lending.built = now[-1].end, len(now), now
        lending.spent = attachments_of(now)
        lending.dropped = len(lending.spent)
        return [
            Lent(ffi.from_buffer(data), 0, len(data), tag, flags & MAX_FLAGS)
            for data, tag, flags in (built.raw for built in now)
        ]

    def _lend_in_place(
        self, ring: Any, segment: Any, limit: int, lending: _Lending, budget: Budget
    ) -> list[Lent] | None:
        lent: list[Lent] = []
        arrived, base = self._arrived[:], self._base
        lending.to = self._next
        regions = lending.regions = {**self._regions}
        self._wanted = 0
        try:
            while len(lent) < limit:
                frame = self._look(ring, lending.to, copy=False)
                if frame is None:
                    break
                size, tag, flags, fds, others, address, end, _, _ = frame
                memory, offset, carries = segment, address - base, fds + others
                if carries and lending.arrived == len(arrived):
                    self._wanted = lending.arrived + 1
                    break
                if carries or flags & OUTSIDE:
                    descriptors = arrived[lending.arrived] if carries else []
                    given, groups, outside = self._contents(flags, fds, carries, descriptors)
                    if flags & OUTSIDE:
                        payload = ffi.buffer(self._payload(address), size)
                        memory, size = find(payload, outside, regions, self._limits.message)
                        offset = 0
                        lending.outside += size
                    lending.arrived += bool(descriptors)
                    lending.dropped += len(given) + len(groups)
                    lending.spent += descriptors
                lent.append(Lent(memory, offset, size, tag, flags & MAX_FLAGS))
                lending.to = end
                lending.messages += 1
                # Nothing is copied, so bytes count only where they had to be mapped.
                mapped = bool(flags & OUTSIDE)
                cost = size if mapped else 0
                if not budget.allows_more(cost, outside=mapped, slow=bool(carries)):
                    break
        except (RingError, OSError):
            if not lent:
                raise  # else it will still be there when these are gone
        return lent or None

    def _forget(self) -> None:
        self._lending = self._borrower = None

    def end_borrowing(self, borrower: object, *, take: bool) -> None:
        """Take the memory back, and free what was lent if it is to be taken; for persist()."""
        code = DONE
        with self._lock:
            if not self.lends_to(borrower):
                return
            ring, lending = self._parked, self._lending
            try:
                if take:
                    self._views.check("nothing was taken, and the same messages come again")
                if take and ring is None:
                    code = CLOSED
                elif take and lending is not None:
                    code = self._take_lent(ring, lending)
            finally:
                self._forget()
                with contextlib.suppress(MemoryError):
                    self._close_spent()  # or the next call does
            self._usable()
        if code:
            raise RingError(code)

    def _take_lent(self, ring: Any, lending: _Lending) -> int:
        """Take what was lent, and free its frames; return a result of the core.

        Other calls cannot receive meanwhile, but they may have put back what is older: it stands in
        `_raw` now, before what was lent of that.
        """
        if fork_generation() != self._generation:
            return FORKED
        lent = set(map(id, lending.built))
        while True:
            turn = self.turn
            places: dict[str, Any] = {}
            if not lent:
                places = {"next": lending.to, "regions": lending.regions}
            if self.commit(
                turn,
                lent=ring,
                raw=[each for each in self._raw if id(each) not in lent],
                arrived=lending.arrived,
                handed=self._handed + lending.messages,
                dropped=self.dropped + lending.dropped,
                to_close=self._to_close + lending.spent,
                wanted=0,
                large=None,
                free=lending.to,
                **places,
            ):
                self.outside += lending.outside
                return DONE
