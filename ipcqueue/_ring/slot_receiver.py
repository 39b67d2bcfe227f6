"""The receiving end of a ring of slots: records of one size."""

from __future__ import annotations

import reprlib
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any

from ipcqueue import _direct
from ipcqueue._core import ffi
from ipcqueue._records.codec import in_place
from ipcqueue._records.decoding import decode_failed
from ipcqueue._records.messages import Received

from .bounds import MAX_AHEAD, MAX_AT_ONCE, MAX_BYTES, MAX_VALUES, Pace
from .codes import AGAIN, CLOSED, DONE, EMPTY, FORKED, RingError
from .memory import U64, Mapping, address_of, fork_generation
from .receiver import ReceiverEnd
from .views import Lent

if TYPE_CHECKING:
    from collections.abc import Callable

    from ipcqueue._records.codec import Codec

    from .bounds import Budget
    from .end import Place


class SlotReceiver(_direct.SlotReceiver, ReceiverEnd):  # type: ignore[misc]
    """The receiving end of a ring of slots: records out, without waiting.

    What is there, and needs nothing but its bytes or a decoder, the base type takes in one call of
    C.  This class is the slow path: for what an interrupted call has left, for records that a
    decoder refuses, for lending.  What was taken and is not the application's yet is the shelf of
    core/python/shelf.c; of records it has

        ring ──> _raw ──> _decoding ──> the application's      _raw: bytes of records, side by side
          └────> prefetched ──────────────────┘                 _decoding: beside each call, its
          bytes

    A record that an exception has left there wakes nobody: a thread that sleeps already finds it
    when the next doorbell rings, or after its slice of time.
    """

    def __init__(
        self,
        own: Mapping,
        peer: Mapping,
        place: Place,
        codec: Codec,
    ) -> None:
        super().__init__(own, peer, place)
        self._size = codec.size
        self._plain = isinstance(codec.spec, int)  # a record is its bytes
        self._decode = codec.decode
        self._adopt_many: Callable[[bytearray, int], Any] = codec.adopt_many or codec.decode_many
        self._pace: Pace | None = None
        if codec.calls_application:
            self._adopt_many = self._pace = Pace(self._adopt_many)
        lists = codec.view is in_place  # of objects or bytes, else arrays
        values = MAX_VALUES // (1 + _values_of(codec))
        most = values if lists and not self._plain else MAX_AT_ONCE
        self._most_at_once = max(1, min(most, MAX_BYTES // self._size))
        self._next = place.start
        self._raw = b""
        self._lent_to: int | None = None  # None: the first bytes of `_raw` are lent
        self._lent_data = b""
        # Records that become arrays are not decoded one by one for a loop.
        decode = self._decode, codec.decode_many if lists else None
        ahead = min(self.capacity // 4, MAX_AHEAD)
        self.attach_fast(
            address_of(self._ring), self._size, ahead, self._keeps, self._plain, *decode
        )

    def most_at_once(self) -> int:
        """Return how many records to take at most where the caller has no limit."""
        pace = self._pace
        return self._most_at_once if pace is None else min(self._most_at_once, pace.records)

    # -- in place ----------------------------------------------------------------------------------

    def lend_records(
        self,
        limit: int,
        borrower: object,
        *,
        bounded: bool = False,  # noqa: ARG002 (as FrameReceiver)
    ) -> list[Lent] | None:
        """Lend records in place: one piece, which ends where the ring wraps around."""
        code, lent, reference = CLOSED, None, weakref.ref(borrower)
        with self._lock:
            ring = self._ring if self._ring is not None else self._usable()
            memory = self._memory
            if ring is not None:
                self._parked, self._ring, self._borrower = ring, None, reference
                try:
                    code, lent = self._lend_from(ring, memory, limit)
                finally:
                    if lent is None:
                        self._unpark(ring)
        if code and code != EMPTY:
            raise RingError(code)
        return lent

    def _lend_from(self, ring: Any, memory: Any, limit: int) -> tuple[int, list[Lent] | None]:
        if fork_generation() != self._generation:
            return FORKED, None
        # What was taken before, by a call that was interrupted, is handed out first.
        self._reclaim()
        if self._raw:
            data = self._raw[: limit * self._size]
            self._lent_to, self._lent_data = None, data
            return DONE, [Lent(ffi.from_buffer(data), 0, len(data))]
        start, there = self._next, self.peek(ring)
        if type(there) is int:
            return there, None
        at, run = there
        count = min(limit, run)
        self._lent_to, self._lent_data = (start + count) & U64, b""
        return DONE, [Lent(memory, at - self._base, count * self._size)]

    def end_borrowing(self, borrower: object, *, take: bool) -> None:
        """Take the memory back, and free what was lent if it is to be taken; for persist()."""
        code = DONE
        with self._lock:
            if not self.lends_to(borrower):
                return
            ring, to, held = self._parked, self._lent_to, len(self._lent_data)
            try:
                if take:
                    self._views.check("nothing was taken, and the same records come again")
                    code = CLOSED if ring is None else self._take_lent(ring, to, held)
            finally:
                self._forget()
            self._usable()
        if code:
            raise RingError(code)

    def _take_lent(self, ring: Any, to: int | None, held: int) -> int:
        if fork_generation() != self._generation:
            return FORKED
        while True:
            turn = self.turn
            if to is None:
                done = self.commit(turn, lent=ring, raw=self._raw[held:])
            else:
                done = self.commit(turn, lent=ring, next=to, free=to)
            if done:
                return DONE

    # -- taking ------------------------------------------------------------------------------------

    def pop_ready(self, limit: int, *, bounded: bool = False) -> Any:  # noqa: ARG002 (as frames)
        """Take up to `limit` records by by the fast path; None if that is not to be had."""
        if not self._plain:
            return self._pop_many(limit, short=True)
        for records in self.many(limit):
            return records
        return None

    def try_pop(self) -> Any:
        """Take one record; None if there is none."""
        return self._take_one(None)

    def try_receive(self) -> Received | None:
        """Take one record as a message to which nothing is attached; None if there is none."""
        return self._take_one(Received)  # type: ignore[no-any-return]

    def try_pop_many(self, limit: int, budget: Budget | None = None) -> Any:  # noqa: ARG002 (as frames)
        """Take up to `limit` records and no more than a ringful; None if there are none."""
        return self._pop_many(min(limit, self.capacity), short=False)

    def _take_one(self, wrapped: Callable[[Any, list[Any], list[Any]], Any] | None) -> Any:
        """Take one record, perhaps wrapped: it is taken exactly if this returns."""
        call = self.begin()
        failure: BaseException | None = None
        try:
            data = self._taken(call, 1)
            if not data:
                return None
            one, record = bytes(data), None
            try:
                record = self._decode(one)
            except BaseException as error:
                if not self._gives_up(one, error, partial(self._decode, one)):
                    raise
                failure = self._failure(one, error)
            if wrapped is not None and failure is None:
                record = wrapped(record, [], [])
            for result in self.hand_over(call, record, None, failure):
                return result
        finally:
            call.over = True  # one step, see end.py
            failure = None  # a cycle with this frame

    def _pop_many(self, limit: int, *, short: bool) -> Any:
        """Take records; `short`: None also if that takes more than one call of C."""
        call, size = self.begin(), self._size
        failure: BaseException | None = None
        left: bytes | None = None
        try:
            data = self.fetch(call, limit)
            if data is None:
                data = None if short else self._taken(call, limit)
            if not data:
                return None
            try:
                records = self._adopt_many(data, len(data) // size)
            except BaseException as error:
                if not isinstance(error, Exception) and self._suspect is None:
                    self._suspect = bytes(data)
                    raise
                good, failure = self._good(data, error)
                left = bytes(data[good:] if failure is None else data[size:])
                records = self._adopt_many(data[:good], good // size) if failure is None else None
            for result in self.hand_over(call, records, left or None, failure):
                return result
        except BaseException:
            call.over = True  # one step, see end.py
            failure = None  # a cycle with this frame
            raise

    def _failure(self, data: bytes, error: BaseException) -> BaseException:
        """Return what is raised for a record that is given up."""
        if isinstance(error, KeyboardInterrupt):
            return error  # a Ctrl-C never becomes anything else
        return decode_failed(f"a record ({reprlib.repr(data)})", error)

    def _good(self, data: bytearray, error: BaseException) -> tuple[int, BaseException | None]:
        """Find the first record of a batch that cannot be decoded, because of `error`.

        Return how many bytes stand before it; and, where it is the very first, what is raised.
        Raise `error` if it is no record's fault, or not yet.
        """
        at = 0
        while at < len(data):
            one = bytes(data[at : at + self._size])
            try:
                self._decode(one)
            except BaseException as own:
                if type(own) is not type(error) and self._suspect is None:
                    # Perhaps a signal handler's, and this record is bad as well; see _gives_up().
                    self._suspect = bytes(data)
                    raise error from None
                if at and isinstance(own, Exception):
                    return at, None  # its turn comes when it is the first
                if not self._gives_up(one, own, partial(self._decode, one)):
                    raise
                return at, None if at else self._failure(one, own)
            at += self._size
        raise error

    def _is_suspect(self, data: Any) -> bool:
        suspect = self._suspect  # a batch, perhaps
        return suspect is not None and bytes(data) in suspect

    # -- the shelf ---------------------------------------------------------------------------------

    def _taken(self, call: Any, limit: int) -> bytearray | None:
        """Have a call decode up to `limit` raw records; return them, None if there are none."""
        with self._lock:
            while True:
                ring = self._ring if self._ring is not None else self._usable()
                if ring is None:
                    raise RingError(CLOSED)
                self._reclaim()
                turn, raw, decoding = self.turn, self._raw or b"", self._decoding
                missing = limit - len(raw) // self._size
                if missing > 0:
                    code = self.pull(missing)
                    if code == AGAIN:  # somebody was here meanwhile
                        continue
                    if code and not raw:
                        if code == EMPTY:
                            return None
                        raise RingError(code)
                    turn, raw, decoding = self.turn, self._raw or b"", self._decoding
                size = limit * self._size
                data = bytearray(raw[:size])
                decoding = [*decoding, (call, data)]
                if data and self.commit(turn, ring=ring, raw=raw[size:], decoding=decoding):
                    return data

    def _reclaim(self) -> None:
        """Have `_raw` begin with what nobody holds any more, and end with what was prefetched."""
        while self._decoding or self.prefetched:
            # One step, see end.py: the turn, and a copy of the rest.
            turn, place, ahead = self.turn, self.place, self.prefetched or []
            ahead, raw = ahead[place:], self._prefetched_raw
            free, rest = self._left_over()
            if not free and not ahead:
                break
            more = raw[place * self._size :] if raw else b"".join(ahead)
            self.commit(
                turn, raw=b"".join([*free, self._raw, more]), decoding=rest, prefetched=None
            )
        if self._raw and fork_generation() != self._generation:
            raise RingError(FORKED)  # the parent has the same, and hands it on


def _values_of(codec: Codec) -> int:
    """Return of how many values about a record is made: a run of characters is one."""
    return sum(1 if run.kind == "char" else run.items for run in codec.layout.runs)
