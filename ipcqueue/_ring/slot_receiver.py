"""The receiving end of a ring of slots: records of one size."""

from __future__ import annotations

import reprlib
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any

from ipcqueue import _direct
from ipcqueue._core import ffi, lib
from ipcqueue._records.codec import in_place
from ipcqueue._records.decoding import decode_failed
from ipcqueue._records.messages import Received

from .bounds import MOST_AHEAD, MOST_AT_ONCE, MOST_BYTES, MOST_VALUES, Pace
from .call import OVER, Call, Hands
from .codes import AGAIN, CLOSED, DONE, EMPTY, FORKED, Trouble, TroubleError
from .memory import U64, Mapping, address_of, fork_generation, offset_in
from .receiver import ReceiverEnd
from .views import Lent

if TYPE_CHECKING:
    from collections.abc import Callable

    from ipcqueue._records.codec import Codec

    from .bounds import Budget
    from .end import Place

# What one call of pop_many copies out of the ring at once.  A guess: inside the second-level
# cache, and far above what the call itself costs.
_BATCH_BYTES = 256 * 1024

_pop = lib.ipcq_pop


class SlotReceiver(_direct.SlotReceiver, ReceiverEnd):  # type: ignore[misc]
    """The receiving end of a ring: records out, without waiting.

    A record that the core has copied out is gone from the ring, so from there on no exception
    between two bytecodes (Ctrl-C) may lose it, and no signal handler that uses this end in
    between may disturb it.  Hence three places before the caller, all of them of this end, and all
    with raw records:

    - `_buffer`: what the core copied out.  `_delivered` counts what has left it; where that stays
      behind the core's own count, the next call finds out (AGAIN) and moves the rest to
    - `_stash`: records that were taken and not handed on; and
    - `_hands`: those that calls are just decoding; see Call.

    A record is decoded where it stands, and leaves its place in the step that returns it.  Moves are
    made of bytecodes between which CPython looks for no signal (it does after calls, at the start
    of functions and when jumping back), right after a test that nobody else has moved anything
    meanwhile.

    A record that an exception has left there wakes nobody: a thread that sleeps already finds it
    when the next doorbell rings, or after its slice of time.
    """

    def __init__(
        self,
        own: Mapping,
        peer: Mapping,
        place: Place,
        codec: Codec,
        trouble: Trouble,
    ) -> None:
        super().__init__(own, peer, place, trouble)
        self._codec = codec
        self._size = codec.size
        self._plain = isinstance(codec.spec, int)  # a record is its bytes
        self._decode = codec.decode
        self._adopt_many: Callable[[bytearray, int], Any] = codec.adopt_many or codec.decode_many
        self._pace: Pace | None = None
        if codec.calls_application:
            self._adopt_many = self._pace = Pace(self._adopt_many)
        lists = codec.view is in_place and not self._plain  # of objects, else arrays or bytes
        most = MOST_VALUES // (1 + _values_of(codec)) if lists else MOST_AT_ONCE
        self._most_at_once = max(1, min(most, MOST_BYTES // self._size))
        self._count = ffi.new("uint64_t *")
        self._delivered = place.start
        self._stash: Any = b""
        self._raw: bytes | None = None  # see core/python
        self._lent_to: int | None = None  # None: the first bytes of the stash are lent
        self._lent_data = b""
        self._new_buffer(1)
        # Records that become arrays are decoded many at a time by Python.
        decode = self._decode, codec.decode_many if codec.view is in_place else None
        ahead = min(self.capacity // 4, MOST_AHEAD)
        self.shorten(address_of(self._ring), self._size, ahead, self._keeps, self._plain, *decode)

    def pop_ready(self, limit: int, *, bounded: bool = False) -> Any:  # noqa: ARG002 (as frames)
        """Take up to `limit` records the short way; None if that is not to be had."""
        if not self._plain:
            return self._pop_many(limit, short=True)
        if not self.take_many(limit):
            return None
        return self.fetch_ahead(limit) or None  # None: a handler or another thread was first

    def holds(self) -> bool:
        """Whether records wait in this process already."""
        ring = self._ring
        return bool(self.ahead or self._stash or self._left_over()[1]) or (
            ring is not None and bool(lib.ipcq_undelivered(ring, self._delivered))
        )

    def most_at_once(self) -> int:
        """Return how many records to take at most where the caller has no limit."""
        pace = self._pace
        return self._most_at_once if pace is None else min(self._most_at_once, pace.records)

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
                except TroubleError as trouble:
                    code = trouble.code
                finally:
                    if lent is None:
                        self._unpark(ring)
        if code and code != EMPTY:
            self._trouble(code)
        return lent

    def _lend_from(self, ring: Any, memory: Any, limit: int) -> tuple[int, list[Lent] | None]:
        if fork_generation() != self._generation:
            return FORKED, None
        # What was taken before, by a call that was interrupted, is handed out first.
        self._recover_all(ring)
        if self._stash:
            data = self._stash[: limit * self._size]
            self._lent_to, self._lent_data = None, data
            return DONE, [Lent(ffi.from_buffer(data), 0, len(data), 0, 0)]
        at, run = ffi.new("char const **"), ffi.new("uint64_t *")
        code = lib.ipcq_look(ring, self._delivered, at, run)
        if code:
            return code, None
        count = min(limit, int(run[0]))
        self._lent_to, self._lent_data = (self._delivered + count) & U64, b""
        return DONE, [Lent(memory, offset_in(memory, at[0]), count * self._size, 0, 0)]

    def end_borrowing(self, *, take: bool) -> None:
        """Take the memory back, and free what was lent if it is to be taken."""
        code = DONE
        with self._lock:
            ring, to, held = self._parked, self._lent_to, len(self._lent_data)
            try:
                if take:
                    self._views.check("nothing was taken, and the same records come again")
                    if ring is None:
                        code = CLOSED
                    elif to is None:
                        self._stash = self._stash[held:]
                    else:
                        # No bytecode between these can be interrupted.
                        self._delivered = to
                        code = lib.ipcq_take(ring, to)
            finally:
                self._forget()
            self._usable()
        if code:
            self._trouble(code)

    def _new_buffer(self, records: int) -> None:
        buffer = ffi.new("char[]", records * self._size)
        view = memoryview(ffi.buffer(buffer)).cast("B")
        one = view[: self._size]
        self._buffer, self._view, self._one, self._room = buffer, view, one, records

    def try_pop(self) -> Any:
        """Take one record; None if there is none."""
        return self._take_one(None)

    def try_receive(self) -> Received | None:
        """Take one record as a message to which nothing is attached; None if there is none."""
        return self._take_one(Received)  # type: ignore[no-any-return]

    def _take_one(  # noqa: C901 (its ways out)
        self, wrapped: Callable[[Any, list[Any], list[Any]], Any] | None
    ) -> Any:
        """Take one record, perhaps wrapped: it is taken exactly if this returns."""
        try:
            while True:
                with self._lock:
                    if not self._fill():
                        return None
                    stash = self._stash
                if not stash:
                    continue
                first, rest = stash[: self._size], stash[self._size :]
                failure: BaseException | None = None
                try:
                    record = self._decode(first)
                except BaseException as error:
                    if not self._gives_up(first, error, partial(self._decode, first)):
                        raise
                    failure = self._failure(first, error)
                else:
                    if wrapped is not None:
                        record = wrapped(record, [], [])
                if self._is_first(stash):
                    # No bytecode between these can be interrupted.
                    self._stash = rest
                    self._suspect = None
                    if failure is not None:
                        raise failure
                    return record
        except TroubleError as trouble:
            code = trouble.code
        finally:
            failure = None  # a cycle with this frame
        self._trouble(code)

    def _is_first(self, stash: bytes) -> bool:
        """Whether the stash is the same, nobody has lent it, and nothing older is anybody's."""
        for call, _ in self._hands:
            if call.over:
                return False
        return self._stash is stash and self._parked is None

    def _failure(self, data: bytes, error: BaseException) -> BaseException:
        """Return what is raised for a record that is given up."""
        if isinstance(error, KeyboardInterrupt):
            return error  # a Ctrl-C never becomes anything else
        return decode_failed(f"a record ({reprlib.repr(data)})", error)

    def _fill(self) -> bool:
        """Have a record stand in the stash, under the lock; False if there is none."""
        if self._ring is None and self._usable() is None:
            raise TroubleError(CLOSED)
        while True:
            self._reclaim()
            if self._stash:
                return True
            ring, before = self._ring, self._delivered
            if ring is None:
                if self._usable() is None:
                    raise TroubleError(CLOSED)
                continue
            if self.ahead or self._stash:
                # Taken by another thread or a handler meanwhile: older than what is taken here.
                continue
            code = _pop(ring, self._buffer, 1, before, self._count)
            if code == EMPTY:
                return False
            if code:
                self._recover(code, before)
                continue
            data, after = bytes(self._one), (before + 1) & U64
            if self._delivered == before and not self._stash:
                # No bytecode between these can be interrupted, and none needs memory.
                self._stash = data
                self._delivered = after
                return True

    def _reclaim(self) -> None:
        """Have the stash begin with what nobody holds any more, and end with what stands ahead."""
        while self._hands or self.ahead:
            hands, free, rest = self._left_over()
            ahead = self.ahead
            if not free and not ahead:
                break
            place, raw, stash = self.place, self._raw, self._stash
            more = (
                b"" if not ahead else raw[place * self._size :] if raw else b"".join(ahead[place:])
            )
            all_of_it = b"".join([*free, stash, more])
            if (
                self._hands is hands
                and self.ahead is ahead
                and self.place == place
                and self._stash is stash
            ):  # else a signal handler has used this end meanwhile
                # No bytecode between these can be interrupted.
                self._stash = all_of_it
                self._hands = rest
                self.ahead = None
                self.place = 0
        if self._stash and fork_generation() != self._generation:
            raise TroubleError(FORKED)  # the parent has the same, and hands it on

    def _is_suspect(self, data: Any) -> bool:
        suspect = self._suspect  # a batch, perhaps
        return suspect is not None and bytes(data) in suspect

    def _recover(self, code: int, before: int) -> None:
        """Stash what the core has copied out and nobody was given; any other code is trouble."""
        if code != AGAIN:
            raise TroubleError(code)
        count = int(self._count[0])
        stash, after = self._stash, (before + count) & U64
        data = stash + self._view[: count * self._size]
        if self._delivered == before and self._stash is stash:
            # No bytecode between these can be interrupted, and none needs memory.
            self._stash = data
            self._delivered = after

    def _recover_all(self, ring: Any) -> None:
        before = self._delivered
        code = _pop(ring, self._buffer, 0, before, self._count)
        if code == AGAIN:
            self._recover(code, before)
        self._reclaim()

    def try_pop_many(self, limit: int, budget: Budget | None = None) -> Any:  # noqa: ARG002 (as frames)
        """Take up to `limit` records and no more than a ringful; None if there are none."""
        return self._pop_many(min(limit, self.capacity), short=False)

    def _pop_many(self, limit: int, *, short: bool) -> Any:  # noqa: C901, PLR0912 (its ways out)
        """Do so; `short`: None also if it takes more than one call of C."""
        hands: Hands = []
        size, call = self._size, Call()
        call.over = False
        pieces: tuple[tuple[Call, Any], ...] = ()
        failure: BaseException | None = None
        records: Any = None
        try:
            data = self.fetch(hands, call, limit)
            if data is None:
                if short:
                    return None
                data = bytearray()
                with self._lock:
                    self._gather(call, data, limit)
            if data:
                try:
                    records = self._adopt_many(data, len(data) // size)
                    if self._hands is hands:
                        # As at most times.  No bytecode between these can be interrupted.
                        self._hands = []
                        return records
                except BaseException as error:
                    if not isinstance(error, Exception) and self._suspect is None:
                        self._suspect = bytes(data)
                        raise
                    good, failure = self._good(data, error)
                    if failure is None:
                        pieces = ((OVER, bytes(data[good:])),)
                        records = self._adopt_many(data[:good], good // size)
                    else:
                        pieces = ((OVER, bytes(data[size:])),)
            while True:
                hands, rest = self._without(call, *pieces)
                if self._hands is hands:
                    # No bytecode between these can be interrupted.
                    self._hands = rest
                    if not pieces or failure is not None:
                        self._suspect = None
                    if failure is not None:
                        raise failure
                    return records
        except TroubleError as trouble:
            call.over = True
            code = trouble.code
        except BaseException:
            call.over = True  # first of all; see Call
            failure = None  # a cycle with this frame
            raise
        self._trouble(code)

    def _good(self, data: bytearray, error: BaseException) -> tuple[int, BaseException | None]:
        """Find the first record of a batch that cannot be decoded, because of `error`.

        Return how many bytes stand before it; and, where it is the very first, what is raised.  Raise
        `error` if it is no record's fault, or not yet.
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

    def _gather(self, call: Call, data: bytearray, limit: int) -> None:
        """Move up to `limit` records to `data`, which stands in the hands of a call."""
        if self._ring is None and self._usable() is None:
            raise TroubleError(CLOSED)
        self._reclaim()
        self._hands = [*self._hands, (call, data)]  # before anything is in it
        self._collect(data, limit)

    def _collect(self, data: bytearray, limit: int) -> None:  # noqa: C901 (one loop, and its ways out)
        """Append the bytes of up to `limit` records to `data`, which owns them from then on."""
        if self._ring is None and self._usable() is None:
            raise TroubleError(CLOSED)
        self._make_room(limit)
        size = self._size
        while len(data) < limit * size:
            missing = limit * size - len(data)
            before = self._delivered  # ahead of the looks at older ones, which it covers
            if self.ahead or self._left_over()[1]:  # as in _fill()
                if data:
                    return
                self._reclaim()
                continue
            if self._stash:
                stash = self._stash
                taken, rest = stash[:missing], stash[missing:]
                # No bytecode between these can be interrupted.
                data += taken
                self._stash = rest
                continue
            ring, wanted = self._ring, min(missing // size, self._room)
            if ring is None:
                return
            code = _pop(ring, self._buffer, wanted, before, self._count)
            if code == EMPTY or (code and code != AGAIN and data):
                return  # trouble will still be there when these are gone
            if code:
                self._recover(code, before)
                continue
            count = int(self._count[0])
            got, after = self._view[: count * size], (before + count) & U64
            if self._delivered != before:
                continue
            # No bytecode between these can be interrupted, and the second needs no memory.
            data += got
            self._delivered = after
            if count < wanted:
                return

    def _make_room(self, limit: int) -> None:
        """Enlarge the buffer for batches, once; idle ends do not pay for it."""
        wanted = min(limit, self.capacity, max(1, _BATCH_BYTES // self._size))
        if wanted <= self._room or self._ring is None:
            return
        self._recover_all(self._ring)
        self._new_buffer(wanted)


def _values_of(codec: Codec) -> int:
    """Return of how many values about a record is made: a run of characters is one."""
    return sum(1 if run.kind == "char" else run.items for run in codec.layout.runs)
