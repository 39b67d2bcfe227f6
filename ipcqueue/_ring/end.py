"""What the ends of both shapes of ring have in common.

Threads: a step of Python here is several calls of the core, between which other threads may run,
so each end has a lock; a single call of the core keeps the GIL (_build.py) and needs none.  The
lock is re-entrant, because a signal handler may interrupt its own thread inside and use the same
end.  It is no threading.RLock, whose with block needs memory to be entered and to be left
(core/python/lock.c).

Whole steps.  A signal handler may run, and raise (Ctrl-C), or another thread, between two
bytecodes: CPython looks for them after each call, at the start of a function and when it jumps
back.  So what must not come apart is one call of C: it is complete when it returns, wake-up
included.  An interrupted push has happened or has not; what was taken moves on the shelf
(core/python/shelf.c), to the application by the step of a for statement.  What cannot be one call
of C, and why:

- A look whether memory is still this call's, and the call of C that copies to it or publishes it.
  That call lets other threads run, which a method of the shelf must not: `_copied` in
  frame_builder.py, `_push_large` in frame_sender.py.  All that the call needs stands in variables
  before the look.
- The turn, and a copy of what stands in `prefetched`: calls of C take records out of that very
  list, and leave None there (`_reclaim` of both shapes).
- Variables of a function, which C cannot change: `built += [one]` in frame_builder.py, and what was
  used for that message.
- A handler of exceptions that begins with `call.over = True`: a store, so that no second exception
  comes before it.
- A look at an attribute and a store to it, in objects that are nothing but Python: `take` in
  outside.py.  (_link/ says where it has such.)

Each of these is marked "one step"; none of them may have a call between its parts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fdpass.lowlevel import Owner
from ipcqueue._core import ffi
from ipcqueue._direct import RLock
from ipcqueue._errors import ConcurrentUse, ForkedUse

from .codes import DONE, FORKED, RingError
from .memory import fork_generation
from .patience import ADAPTIVE
from .views import Views

if TYPE_CHECKING:
    import weakref
    from typing import Protocol

    from .memory import Mapping
    from .patience import Patience

    class HasFileno(Protocol):
        """What has a descriptor: the process behind a socket."""

        def fileno(self) -> int:
            """Return it."""


class Place:
    """Where a ring is, and what it counts in: `capacity` units of `unit` bytes.

    `bell` is the socket to ring the peer's doorbell on, `start` the index to begin with, `process`
    that of the peer.
    """

    def __init__(
        self,
        capacity: int,
        unit: int,
        bell: int,
        start: int = 0,
        patience: Patience = ADAPTIVE,
        process: HasFileno | None = None,
    ) -> None:
        self.capacity = capacity
        self.unit = unit
        self.bell = bell
        self.start = start
        self.patience = patience
        self.process = process


class Traffic:
    """What went through a ring in all, and what of it waits there: records, and their bytes.

    Of messages these are the bytes of the ring, and of what travels outside of it.
    """

    __slots__ = ("bytes", "records", "waiting", "waiting_bytes")

    def __init__(self, records: int, waiting: int, size: int, waiting_size: int) -> None:
        self.records = records
        self.waiting = waiting
        self.bytes = size
        self.waiting_bytes = waiting_size


class End(Owner):
    """One end of a ring of either shape: the core's struct, who may use it now, and its views.

    While its memory is lent to the application, the ring is parked, and every other use fails: also
    by a signal handler, while memory is being lent or taken back.  `_borrower` is who has it; what
    publishes or takes it clears that in the same call of C, so an end of a block that begins again
    finds what was done already.  Memory of a borrower that is gone is given back.
    """

    _look_call: Any

    def __init__(self, place: Place, ring: Any, memory: Mapping) -> None:
        self.capacity = place.capacity
        self._unit = place.unit
        self._last_indices = (place.start, place.start)
        self._lock = RLock()
        self._ring: Any = ring
        self._memory: Any = memory.at  # of the slots or frames that it shows in place
        self._generation = fork_generation()
        self._parked: Any = None
        self._withdrawn: Any = None  # closed, but its indices can still be read
        self._borrower: weakref.ref[Any] | None = None
        self._views = Views()

    def renew_locks(self) -> None:
        """In a forked child: forget who held them."""
        self._lock = RLock()

    def _usable(self) -> Any:
        """Return the ring if it can be used after all, None if it is closed.

        For when `_ring` is None.  Raises ConcurrentUse or LoanError while memory is lent.
        """
        if self._parked is None:
            return self._ring
        if fork_generation() != self._generation:
            raise ForkedUse("this end belongs to the parent process; a child may only close it")
        if self._borrower is not None:
            if self._borrower() is not None:
                raise ConcurrentUse("another loan or borrowing is open at this end")
            self._forget()
        self._views.check("this call has done nothing")
        if self._parked is not None:  # else a signal handler has done it meanwhile
            self._ring, self._parked = self._parked, None
        return self._ring

    def lends_to(self, borrower: object) -> bool:
        """Whether this borrower has memory on loan."""
        reference = self._borrower
        return reference is not None and reference() is borrower

    def give_back(self, borrower: object) -> None:
        """Take back what this borrower has, if anything; nobody got to see it.  For persist().

        What a traceback keeps of the views of it does not count.
        """
        with self._lock:
            if self.lends_to(borrower):
                self._views.forget()
                self._forget()
                self._usable()

    def _forget(self) -> None:
        """Take lent memory back as if nothing had been done with it, once its views are gone."""
        self._borrower = None

    def _unpark(self, ring: Any) -> None:
        """Use the ring again, as nothing of it was lent after all."""
        if self._parked is ring:  # else a signal handler has closed it
            self._ring, self._parked, self._borrower = ring, None, None

    def view(self, memory: Any, offset: int, size: int, *, arrays: bool = False) -> memoryview:
        """Return a writable view of a part of lent memory, perhaps to make an array of."""
        self._views.arrays = arrays
        return self._views.new(memory, offset, size)

    def _indices(self) -> tuple[int, int]:
        """Return (head, tail): as they are now, until the memory is let go; then as they were."""
        with self._lock:
            code = self._note_indices()
        if code == FORKED:
            raise RingError(code)
        # An impossible index was not taken over; that it came, the next push or pop says.
        return self._last_indices

    def _note_indices(self) -> int:
        """Note the indices as they are, unless the memory is gone; return the core's result."""
        code, self._last_indices = self._read_indices()
        return code

    def _read_indices(self) -> tuple[int, tuple[int, int]]:
        ring = self._readable_ring()
        if ring is None:
            return DONE, self._last_indices
        head, tail = ffi.new("uint64_t *"), ffi.new("uint64_t *")
        code = int(self._look_call(ring, head, tail))
        return code, (int(head[0]), int(tail[0]))

    def _readable_ring(self) -> Any:
        """Return the ring if its memory is there, whether it can be used or not; else None."""
        ring = self._parked if self._ring is None else self._ring
        return self._withdrawn if ring is None else ring

    def glance(self) -> tuple[int, int]:
        """Return (head, tail) without the lock, whatever is wrong with them: to be shown only."""
        return self._read_indices()[1]

    def _withdraw(self) -> Any:
        """Take the ring out of use, and return it; its indices can be read until let_go()."""
        with self._lock:
            self._note_indices()
            ring = self._parked if self._ring is None else self._ring
            if ring is not None:
                self._withdrawn = ring
            self._ring = self._parked = self._memory = None
        return self._withdrawn

    def let_go(self) -> None:
        """Let go of the memory of an end that is closed; takes no lock."""
        self._withdrawn = None
