"""The receiving end of a ring of frames: messages of any length, with what is attached to them.

What was taken and is not the application's yet stands on the shelf (core/python/shelf.c), which
changes in single calls of C only:

    the ring ──copy──> _raw ──take──> _decoding ──hand over──> the application's
       │              Built,          beside its Call,              ↑
       │              frame in        frame free                    │
       │              the ring                                      │
       └───────── a loop, ahead of itself: prefetched ──────────────┘

    the socket ──> _arrived ──with its message──> Built.fds, .regions ──> the application's
                   of frames that                  └─ nobody wants them: _to_close, then closed
                   are in the ring                    (counted in `dropped`)

    _next     where the first frame that is not copied begins     _handed   messages beyond _raw
    _regions  memory of the peer's that messages travel in        _large    a message copied in part
    _wanted   how many must be in _arrived for the next message   _suspect  raw of which a decoder
    made
                                                                            what is no Exception

What calls have left in _decoding (an exception struck) and what is prefetched goes back to _raw
before anything is copied: see _reclaim().
"""

from __future__ import annotations

from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from ipcqueue._core import ffi, lib
from ipcqueue._records.decoding import decode_failed
from ipcqueue._records.messages import MAX_FLAGS, Message, Received

from .arrivals import Built, attachments_of, close_received
from .bounds import MAX_AT_ONCE, MAX_BUILT, MAX_BYTES, Budget, looks_after
from .end import Traffic
from .frame_lending import FrameLender

if TYPE_CHECKING:
    from collections.abc import Callable

    from .arrivals import Spent


# Messages that are counted at most where they wait: the peer chooses how many, and each may be in
# another page of its memory.
MAX_TALLIED = 65536


class FrameReceiver(FrameLender):
    """The receiving end of a ring of frames.

    What is there, has no attachments and needs no function of the application, the base type takes
    in one call of C.  This is the slow path.  A message is first copied, then the ring is told that
    it is taken, then it is decoded and handed over.  Each step can be repeated.
    """

    def most_at_once(self) -> int:
        """Return how many messages to take at most where the caller has no limit."""
        return MAX_AT_ONCE

    def held(self) -> int:
        """Return how many descriptors are here that nobody has been handed yet; from any thread."""
        # In the order of their way: what another thread moves meanwhile counts twice, but counts.
        count = sum(map(len, self._arrived))
        for messages in (self._raw, *(taken for _, taken in self._decoding)):
            # A region has up to two.
            count += sum(len(each.fds) + 2 * len(each.regions) for each in messages)
        return count + len(self._to_close)

    def pop_ready(self, limit: int, *, bounded: bool = False) -> Any:
        """Take up to `limit` messages by by the fast path; None if that is not to be had."""
        for records in self.many(limit, MAX_BYTES, MAX_BUILT) if bounded else self.many(limit):
            return records
        return None

    def prepare(self, limit: int, budget: Budget | None = None) -> None:
        """Build up to `limit` messages without taking them."""
        budget = budget or Budget(bounded=False)
        with self._lock:
            self._build(min(limit, budget.most), budget)

    def try_pop(self) -> Any:
        """Take one message and close what is attached to it; None if there is none."""
        taken = self._take(1, strip=True)
        return taken[0] if taken else None

    def try_receive(self) -> Received | None:
        """Take one message with what is attached to it; None if there is none.

        Raises DecodeFailed for a message that is taken all the same.
        """
        taken = self._take(1, strip=False)
        return taken[0] if taken else None

    def try_pop_many(self, limit: int, budget: Budget | None = None) -> list[Any] | None:
        """Take up to `limit` messages, close what is attached to them; None if there are none."""
        budget = budget or Budget(bounded=False)
        return self._take(min(limit, budget.most), strip=True, budget=budget) or None

    def _take(self, limit: int, *, strip: bool, budget: Budget | None = None) -> Any:
        call = self.begin()
        failure: BaseException | None = None
        try:
            with self._lock:
                self._build(limit, budget)
                taken = self._taken(call, limit)
            if not taken and not self._to_close:
                return taken
            # Without the lock, as it is the application's code: others can receive meanwhile.
            records, failure = self._decoded(taken, budget)
            done = len(records) or (failure is not None)
            given = taken[:done]
            strips = (strip or failure is not None) and any(b.fds or b.regions for b in given)
            if strips or self._to_close:
                with self._lock:
                    if strips:
                        taken = self._strip(call, taken, done)
                    try:  # noqa: SIM105 (which needs memory)
                        self._close_spent()
                    except MemoryError:
                        pass  # the next call does
            if not strip:
                records = [
                    Received(record, built.fds, built.regions)
                    for record, built in zip(records, given, strict=failure is None)
                ]
            for result in self.hand_over(call, records, taken[done:] or None, failure):
                return result
        finally:
            call.over = True  # one step, see end.py
            failure = None  # a cycle with this frame, which has the memory of the ring

    def _decoded(  # noqa: C901 (one loop, its ways out)
        self, taken: list[Built], budget: Budget | None
    ) -> tuple[list[Any], BaseException | None]:
        """Return the records of messages, or else why the first of them is given up.

        What comes behind one that cannot be decoded, or for which there is no time, is for the next
        call, with that one first.
        """
        records: list[Any] = []
        timed = budget is not None and not self._plain and self._decode is not Message
        for built in taken:
            raw = built.raw
            data, tag, flags = raw
            try:
                try:
                    record = self._decode(data, tag, flags & MAX_FLAGS)
                except MemoryError:  # perhaps not the message's fault, but a shortage that is over
                    record = self._decode(data, tag, flags & MAX_FLAGS)
            except BaseException as error:
                if self._decode is Message:
                    raise  # a message without a decoder of the application's is never at fault
                again = partial(self._decode, data, tag, flags & MAX_FLAGS)
                if records and isinstance(error, Exception):
                    if not isinstance(error, MemoryError) and _succeeds(again):
                        raise  # a signal handler's, perhaps; all wait for the next call
                    return records, None
                if not self._gives_up(raw, error, again):
                    raise
                if records:
                    return records, None
                if isinstance(error, KeyboardInterrupt):
                    return records, error  # a Ctrl-C never becomes anything else
                what = f"message {built.number} ({len(data)} bytes, tag {tag})"
                return records, decode_failed(what, error)
            records.append(record)
            if timed and budget is not None and looks_after(len(records)) and not budget.has_time():
                break
        return records, None

    def _strip(self, call: Any, taken: list[Built], count: int) -> list[Built]:
        """Give up what is attached to the first messages that a call decodes; return all.

        For a call that does not return attachments.
        """
        gone = attachments_of(taken[:count])
        bare = [each._replace(fds=[], regions=[]) for each in taken[:count]] + taken[count:]
        while True:
            turn = self.turn
            if self.commit(
                turn,
                decoding=[(who, bare if who is call else what) for who, what in self._decoding],
                to_close=self._to_close + gone,
                dropped=self.dropped + len(gone),
            ):
                return bare

    def _taken(self, call: Any, limit: int) -> list[Built]:
        """Have a call decode up to `limit` of what is copied; return that, free its frames."""
        while (ring := self._ring) is not None:
            turn, raw = self.turn, self._raw
            if not raw:
                break
            now = raw[:limit]
            if self.commit(
                turn,
                ring=ring,
                raw=raw[limit:],
                decoding=[*self._decoding, (call, now)],
                handed=self._handed + len(now),
                free=now[-1].end,
            ):
                return now
        return []

    def traffic(self) -> Traffic:
        """Return the messages taken, and those that wait: of these about MAX_TALLIED at most."""
        with self._lock:
            head, tail = self.indices()
            copied, taken, at = len(self._raw), self._handed, self._next
            waiting = ffi.new("struct ipcq_tally *")
            ring = self._readable_ring()
            if ring is not None:
                lib.ipcq_frame_receiver_tally(ring, at, MAX_TALLIED, waiting)
        return Traffic(
            taken,
            copied + int(waiting.messages),
            tail + self.outside,
            head - tail + int(waiting.outside),
        )

    def drop_strays(self) -> None:
        """Close the descriptors of a message that its sender did not live to publish."""
        with self._lock:
            done = False
            while not done:
                turn, arrived = self.turn, self._arrived[:]
                strays: list[Spent] = list(chain(*arrived))
                done = self.commit(turn, to_close=self._to_close + strays, arrived=len(arrived))
            self._close_spent()

    def discard(self) -> None:
        """Close what is attached to messages that nobody will take; takes no lock."""
        self._mappings.close()
        self._regions = {}
        self._large = None
        for built in chain(self._raw[:], *self._left_over()[0]):
            close_received(built.fds)
            close_received(built.regions)
        close_received(self._to_close)


def _succeeds(call: Callable[[], object]) -> bool:
    try:
        call()
    except Exception:  # noqa: BLE001 (whatever a function of the user)
        return False
    return True
