"""The receiving end of a ring of frames: messages of any length, with what is attached to them.

A message that does not fit well into the ring travels in a memory region, and its frame only says
in which (outside.py); for who receives there is no difference.

Descriptors go through the socket, in one two-byte message per frame that has any, sent before
the frame is published.  Both streams are in order, so the n-th of the one belongs to the n-th of
the other, and when a frame is seen its descriptors are there already.

The file is long because a message is received in one order of steps, with all that may come beside
it, and lent, put back or given up in the same; no part of that is used alone.
"""

from __future__ import annotations

import contextlib
import weakref
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import fdpass
from fdpass.lowlevel import Mappings, Owner
from ipcqueue import _direct
from ipcqueue._core import ffi, lib
from ipcqueue._direct import persist
from ipcqueue._errors import Unaccepted
from ipcqueue._records.decoding import decode_failed
from ipcqueue._records.messages import (
    MAX_FLAGS,
    OUT_AGAIN,
    OUT_OF_LINE,
    OUTSIDE,
    Framed,
    Message,
    Received,
)

from .arrivals import (
    Built,
    Contents,
    attachments_of,
    carries_more,
    close_received,
    close_regions,
    grouped,
    is_there,
)
from .bounds import LARGE, MOST_AHEAD, MOST_AT_ONCE, MOST_BUILT, MOST_BYTES, Budget, looks_after
from .call import OVER, Call, Hands
from .codes import CLOSED, CORRUPT, DONE, EMPTY, FORKED, Trouble, TroubleError, corrupt
from .frame import MAX_ATTACHED, extent
from .memory import U64, Mapping, address_of, copy_memory, fork_generation, is_socket, offset_in
from .outside import SIZES, find, with_copies
from .receiver import ReceiverEnd
from .views import Lent

if TYPE_CHECKING:
    from ipcqueue._records.messages import Limits, MessageCodec

    from .arrivals import Spent
    from .end import Place

_look = lib.ipcq_frame_look
_free, _see, _seen = lib.ipcq_take, lib.ipcq_see, lib.ipcq_seen


class _Lending(Owner):
    """What is lent in one borrowing, and what happens when it is taken."""

    def __init__(self) -> None:
        self.to = 0  # where the last frame ends
        self.messages = 0
        self.built: list[Built] = []  # they, if they were copied already
        self.attached = 0  # how many of the others have any descriptors
        self.dropped = 0  # attachments of the application
        self.spent: list[Spent] = []
        self.kept: dict[int, Mapping] = {}  # regions of the peer, after these


class _Large(Owner):
    """A message above LARGE bytes, which is copied in pieces: in one call, or in several.

    Its frame stands in the ring meanwhile.  It says what it was then; the peer may change it.
    """

    def __init__(
        self, at: int, frame: tuple[int, ...], memory: Any, size: int, kept: dict[int, Mapping]
    ) -> None:
        self.at, self.frame = at, frame
        # Of a region, which keeps itself alive; or of the ring, which each attempt looks at first.
        self.memory, self.size = memory, size
        self.kept = kept  # regions of the peer, from this message on
        self.data: bytes = _direct.blank(size)  # nobody else has it before it is whole
        self.to = ffi.from_buffer(self.data)
        self.done = 0  # bytes


class FrameReceiver(_direct.FrameReceiver, ReceiverEnd):  # type: ignore[misc]
    """The receiving end of a ring of frames.

    A message is first built (copied), then the ring is told that it is taken, then it is decoded
    and handed on.  Until a call takes it, it stands in `_built`, and until that call returns it in
    `_hands` (see Call); if the call ends otherwise (Ctrl-C, between any two bytecodes), the next one
    finds it there.  Each step can be repeated.  Descriptors stand in `_attached` until their
    message is built, and what is to be closed in `_spent` until it is.
    """

    def __init__(
        self,
        own: Mapping,
        peer: Mapping,
        place: Place,
        codec: MessageCodec,
        trouble: Trouble,
        limits: Limits,
        attached: list[list[fdpass.Fd]],
    ) -> None:
        super().__init__(own, peer, place, trouble)
        self._plain = codec.spec is bytes  # a record is the bytes of its message
        self._decode = codec.decode
        self._limits = limits
        self._attached = attached  # to messages not built yet, in order
        self._mappings = Mappings()  # of regions that a registry of the peer's lends
        self._kept: dict[int, Mapping] = {}  # of those in which its messages travel, by number
        self._wanted = 0  # how many of these there must be to go on
        self._built: list[Built] = []
        self._next = place.start  # where the first frame that is not built begins
        self._handed = 0
        self._scratch: list[tuple[Any, Any]] = []
        self._large: _Large | None = None  # what is being copied
        self._lending: _Lending | None = None
        self._spent: list[Spent] = []
        most = min(limits.message, self.capacity)
        # A function of the application may take long, or receive by itself: not the short way.
        decode = self._decode if self._decode is Message else None
        self.shorten(
            address_of(self._ring), most, MOST_AHEAD, self._keeps, self._plain, decode, None
        )

    def pop_ready(self, limit: int, *, bounded: bool = False) -> Any:
        """Take up to `limit` messages the short way; None if that is not to be had."""
        bounds = (MOST_BYTES, MOST_BUILT) if bounded else ()
        if not self.take_many(limit, *bounds):
            return None
        return self.fetch_ahead(limit) or None  # None: a handler or another thread was first

    @property
    def lacking(self) -> int | None:
        """Where the message begins whose descriptors are still in the socket; None if none is."""
        position = self._next  # first: another thread may go on meanwhile
        return position if self._wanted > len(self._attached) else None

    def most_at_once(self) -> int:
        """Return how many messages to take at most where the caller has no limit."""
        return MOST_AT_ONCE

    @property
    def unfinished(self) -> bool:
        """Whether the next message is a large one, copied in part."""
        large = self._large  # the peer may have made it a small one, which was taken the short way
        return large is not None and large.at == self._next

    def held(self) -> int:
        """Return how many descriptors are here that nobody has been handed yet; from any thread."""
        # In the order of their way: what another thread moves meanwhile counts twice, but counts.
        count = sum(map(len, self._attached))
        for messages in (self._built, *(taken for _, taken in self._hands)):
            # A region has up to two.
            count += sum(len(each.fds) + 2 * len(each.regions) for each in messages)
        return count + len(self._spent)

    def holds(self) -> bool:
        """Whether messages wait in this process already."""
        return bool(self.ahead or self._built or self._left_over()[1])

    def _reclaim(self) -> None:
        """Have `_built` begin with what nobody holds any more, and end with what stands ahead.

        The frames of those are free already, so that they end here is as good as true.
        """
        while self._hands:
            hands, free, rest = self._left_over()
            if not free:
                break
            before, handed = self._built, self._handed
            built = [*chain(*free), *before]
            number = handed - (len(built) - len(before))
            if (
                self._hands is hands and self._built is before and self._handed == handed
            ):  # else a signal handler has used this end meanwhile
                # No bytecode between these can be interrupted.
                self._built = built
                self._handed = number
                self._hands = rest
        while ahead := self.ahead:
            place, built, handed, end = self.place, self._built, self._handed, self._next
            first = handed - (len(ahead) - place)
            more = [
                Built(end, first + i, Framed(data, 0, 0), [], [])
                for i, data in enumerate(ahead[place:])
            ]
            if (
                self.ahead is ahead
                and self.place == place
                and self._built is built
                and self._handed == handed
            ):  # else a signal handler has used this end meanwhile
                # No bytecode between these can be interrupted.
                self._built = built + more
                self._handed = first
                self.ahead = None
                self.place = 0
        if self._built and fork_generation() != self._generation:
            raise TroubleError(FORKED)  # the parent has the same, and hands it on

    def prepare(self, limit: int, budget: Budget | None = None) -> None:
        """Build up to `limit` messages without taking them."""
        budget = budget or Budget(bounded=False)
        try:
            with self._lock:
                self._build(min(limit, budget.most), budget)
        except TroubleError as error:
            trouble = error.args
        else:
            return
        self._trouble(*trouble)

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
        """Take up to `limit` messages, and close what is attached to them; None if there are none."""
        budget = budget or Budget(bounded=False)
        return self._take(min(limit, budget.most), strip=True, budget=budget) or None

    def _take(  # noqa: C901 (one order of steps)
        self, limit: int, *, strip: bool, budget: Budget | None = None
    ) -> list[Any]:
        call = Call()
        call.over = False
        failure: BaseException | None = None
        try:
            with self._lock:
                self._build(limit, budget)
                taken, hands = self._hand_on(limit, call)
            if not taken and not self._spent:
                return taken
            # Without the lock, as it is the application's code: others can receive meanwhile.
            records, failure = self._decoded(taken, budget)
            done = len(records) or (failure is not None)
            given = taken[:done]
            strips = (strip or failure is not None) and any(b.fds or b.regions for b in given)
            if strips or self._spent:
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
            pieces = ((OVER, taken[done:]),) if done < len(taken) else ()
            rest = hands[:-1]
            if self._hands is hands and not pieces and failure is None and self._suspect is None:
                # As at most times.  No bytecode between these can be interrupted.
                self._hands = rest
                return records
            while True:
                hands, rest = self._without(call, *pieces)
                if self._hands is hands:
                    # No bytecode between these can be interrupted.
                    self._hands = rest
                    if failure is not None or (done and not pieces):
                        self._suspect = None
                    if failure is not None:
                        raise failure
                    return records
        except TroubleError as error:
            trouble = error.args
        finally:
            call.over = True  # first of all; see Call
            failure = None  # a cycle with this frame, which has the memory of the ring
        self._trouble(*trouble)

    def _decoded(
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
                if records and isinstance(error, Exception):
                    return records, None
                again = partial(self._decode, data, tag, flags & MAX_FLAGS)
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

    def _strip(self, call: Call, taken: list[Built], count: int) -> list[Built]:
        """Give up what is attached to the first messages in the hands of a call.

        For who has not asked for it.  Return the messages as they are then.
        """
        gone = attachments_of(taken[:count])
        bare = [each._replace(fds=[], regions=[]) for each in taken[:count]] + taken[count:]
        while True:
            hands, new = self._without(call, (call, bare))
            before, dropped = self._spent, self.dropped
            spent, dropped = before + gone, dropped + len(gone)
            if self._hands is hands and self._spent is before:
                # No bytecode between these can be interrupted.
                self._hands = new
                self._spent = spent
                self.dropped = dropped
                return bare

    def _close_spent(self) -> None:
        spent = self._spent
        if spent:
            close_received(spent)  # which can be repeated
            if self._spent is spent:  # else a signal handler has seen to it
                self._spent = []

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
        try:
            with self._lock:
                ring = self._ring if self._ring is not None else self._usable()
                memory = self._memory
                if ring is None:
                    raise TroubleError(CLOSED)
                self._parked, self._ring, self._borrower = ring, None, reference
                try:
                    self._lending = lending = _Lending()
                    self._reclaim()
                    if self._built:
                        lent = self._lend_built(limit, lending)
                    else:
                        lent = self._lend_in_place(ring, memory, limit, lending, budget)
                except Exception:
                    if self._parked is not ring:  # a signal handler has closed it
                        raise TroubleError(CLOSED) from None
                    raise
                finally:
                    if lent is None:
                        self._forget()
                        self._unpark(ring)
                        self._close_spent()
        except TroubleError as error:
            trouble = error.args
        else:
            return lent
        self._trouble(*trouble)

    def _lend_built(self, limit: int, lending: _Lending) -> list[Lent]:
        """Lend what an earlier call has copied already."""
        if fork_generation() != self._generation:
            raise TroubleError(FORKED)
        now = self._built[:limit]
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
        frame, position = scratch = self._scratch.pop() if self._scratch else _new_scratch()
        attached = self._attached[:]
        lending.to = self._next
        kept = lending.kept = {**self._kept}
        self._wanted = 0
        try:
            while len(lent) < limit and self._look(ring, lending.to, frame, position):
                size, flags, carries = frame.size, frame.flags, frame.fds + frame.regions
                memory, offset, taken = segment, offset_in(segment, position[0]), extent(size)
                if carries and lending.attached == len(attached):
                    self._wanted = lending.attached + 1
                    break
                if carries or flags & OUTSIDE:
                    descriptors = attached[lending.attached] if carries else []
                    contents = self._contents(frame, descriptors)
                    if flags & OUTSIDE:
                        payload = ffi.buffer(position[0], size)
                        memory, size = find(payload, contents.outside, kept, self._limits.message)
                        offset = 0
                    lending.attached += bool(descriptors)
                    lending.dropped += len(contents.fds) + len(contents.regions)
                    lending.spent += descriptors
                lent.append(Lent(memory, offset, size, frame.tag, flags & MAX_FLAGS))
                lending.to = (lending.to + taken) & U64
                lending.messages += 1
                # Nothing is copied, so bytes count only where they had to be mapped.
                outside = bool(flags & OUTSIDE)
                cost = size if outside else 0
                if not budget.allows_more(cost, outside=outside, slow=bool(carries)):
                    break
        except (TroubleError, OSError):
            if not lent:
                raise  # else it will still be there when these are gone
        self._scratch.append(scratch)
        return lent or None

    def _forget(self) -> None:
        self._lending = self._borrower = None

    def end_borrowing(self, *, take: bool) -> None:
        """Take the memory back, and free what was lent if it is to be taken."""
        code = DONE
        with self._lock:
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
            self._trouble(code)

    def _take_lent(self, ring: Any, lending: _Lending) -> int:
        """Take what was lent, and free its frames; return the core's result.

        Other calls cannot receive meanwhile, but they may have put back what is older: it stands in
        `_built` now, before what was lent of that.
        """
        lent = set(map(id, lending.built))
        while True:
            before = self._built
            built = [each for each in before if id(each) not in lent]
            spent = self._spent + lending.spent
            handed = self._handed + lending.messages
            dropped = self.dropped + lending.dropped
            if self._built is before:  # else a signal handler has put something back
                # No bytecode between these can be interrupted, and none needs memory.
                del self._attached[: lending.attached]
                self._built = built
                if not lending.built:
                    self._next = lending.to
                    self._kept = lending.kept
                self._handed = handed
                self.dropped = dropped
                self._spent = spent
                self._wanted = 0
                self._large = None
                return int(_free(ring, lending.to))

    def _build(self, limit: int, budget: Budget | None) -> None:
        """Copy up to `limit` messages; the ring still holds them."""
        self._reclaim()
        if budget is not None and budget.spent and (self._built or self.unfinished):
            return
        while not self._build_once(limit, budget):
            self._reclaim()  # a handler or another thread has used this end, or closed it, meanwhile

    def _build_once(self, limit: int, budget: Budget | None) -> bool:  # noqa: C901, PLR0912, PLR0915 (one loop, its ways out)
        ring = self._ring if self._ring is not None else self._usable()
        if ring is None:
            raise TroubleError(CLOSED)
        if self._built and fork_generation() != self._generation:
            raise TroubleError(FORKED)
        before, start = self._built, self._next
        if self.ahead:  # taken the short way since the last _reclaim(), and older than what follows
            return False
        built, at, used, wanted = list(before), start, 0, 0
        kept = {**self._kept}
        attached = self._attached[:]
        carrying = again = 0
        if built:
            carrying, again = sum(map(carries_more, built)), sum(map(is_there, built))
        spent: list[Spent] = []
        frame, position = scratch = self._scratch.pop() if self._scratch else _new_scratch()
        failure: Exception | None = None
        one: Built | None = None
        _see(ring)
        try:
            while len(built) < limit and self._look(ring, at, frame, position):
                full = frame.fds + frame.regions and carrying >= MAX_ATTACHED
                if built and (full or (frame.flags & OUT_AGAIN and again >= len(SIZES))):
                    break  # a peer that keeps the rules has not more of them under way
                descriptors: list[fdpass.Fd] = []
                if frame.fds + frame.regions:
                    if used == len(attached):
                        wanted = 1
                        break
                    descriptors = attached[used]
                number = self._handed + len(built)
                one = self._build_one(at, frame, position[0], number, descriptors, kept)
                if one is None:
                    if budget is not None:
                        budget.spent = True  # by a piece of it
                    break
                more, there = spent + descriptors[len(one.fds) :], is_there(one)
                built.append(one)
                # From here on nothing needs memory: what is built goes with what was used for it.
                at, spent = one.end, more
                again += there
                if descriptors:
                    used += 1
                    carrying += 1
                if not _seen(ring, at):
                    break
                outside, slow = bool(frame.flags & OUTSIDE), bool(descriptors)
                if budget is not None and not budget.allows_more(
                    len(one.raw.data), outside=outside, slow=slow
                ):
                    break
        except Exception as error:  # noqa: BLE001 (raised unless a signal handler was the cause)
            failure = error
            if one is not None and (not built or built[-1] is not one):
                close_received(one.regions)
        except BaseException:
            persist(close_regions, built[len(before) :])
            raise
        if self._ring is not ring or self._built is not before or self._next != start:
            persist(close_regions, built[len(before) :])
            return False
        try:
            # No bytecode between these can be interrupted, and only the first two need memory.
            spent = self._spent + spent
            large = self._large
            if large is not None and large.at != at:  # it is built
                large = None
            del self._attached[:used]
            self._built = built
            self._large = large
            self._next = at
            self._wanted = wanted
            self._kept = kept
            self._spent = spent
        except MemoryError:
            persist(close_regions, built[len(before) :])
            raise
        if failure is not None and not built:
            try:
                raise failure  # else it will still be there when these are gone
            finally:
                failure = None  # a cycle with this frame, which has the memory of the ring
        self._scratch.append(scratch)
        return True

    def _look(self, ring: Any, at: int, frame: Any, position: Any) -> bool:
        """Look at the frame that begins at `at`; False if there is none yet."""
        most = min(self._limits.message, self.capacity)
        code = _look(ring, at, most, frame, position)
        if code == DONE:
            return True
        if code == EMPTY:
            return False
        if code == CORRUPT:
            raise corrupt("the peer's index, or the header of a frame, cannot be true")
        raise TroubleError(code)

    def _contents(self, frame: Any, descriptors: list[fdpass.Fd]) -> Contents:
        """Check what came beside a frame; raise TroubleError if this side does not accept it."""
        announced, count = int(frame.fds + frame.regions), int(frame.fds)
        if len(descriptors) != announced:
            raise corrupt(f"a message announced {announced} descriptors, {len(descriptors)} came")
        fds, rest, outside = descriptors[:count], descriptors[count:], descriptors[:0]
        if frame.flags & OUT_OF_LINE:
            if frame.flags & OUT_AGAIN or not rest:
                raise corrupt("a message outside the ring came without its region")
            rest, outside = rest[:-1], rest[-1:]
        regions = grouped(rest)
        try:
            self._limits.check_attached(len(fds), len(regions))
        except Unaccepted as error:
            raise corrupt(f"the peer sent {error}") from None
        if not self._limits.sockets and any(is_socket(fd.fileno()) for fd in fds):
            raise corrupt("the peer sent a socket, and this side accepts none")
        return Contents(fds, regions, outside)

    def _build_one(
        self,
        at: int,
        frame: Any,
        position: Any,
        number: int,
        descriptors: list[fdpass.Fd],
        kept: dict[int, Mapping],
    ) -> Built | None:
        """Copy a message, with what is attached to it; None if that takes another call."""
        size, tag, flags = int(frame.size), int(frame.tag), int(frame.flags)
        limits = self._limits
        fds: list[fdpass.Fd] = []
        regions: list[fdpass.MemoryRegion] = []
        try:
            memory, length = position, size
            outside: list[fdpass.Fd] = []
            groups: list[list[fdpass.Fd]] = []
            data: bytes | None
            if descriptors or flags & OUT_OF_LINE:
                contents = self._contents(frame, descriptors)
                fds, outside = contents.fds, contents.outside
                groups = contents.regions
            large, said = self._large, (size, tag, flags, int(frame.fds), int(frame.regions))
            if large is not None and large.at == at and large.frame == said:
                kept |= large.kept
                length = large.size
            elif flags & OUTSIDE:
                payload = ffi.buffer(position, size)
                memory, length = find(payload, outside, kept, limits.message)
                large = None
            else:
                large = None
            if length > LARGE:
                data = self._copied(large or _Large(at, said, memory, length, dict(kept)))
                if data is None:
                    return None
            else:
                data = bytes(ffi.buffer(memory, length))
            if groups:
                for group in contents.regions:  # one by one, as the next may fail
                    region = self._adopt(group, limits.region, shared=limits.shared)
                    regions += [region]
            end = (at + extent(size)) & U64
            return Built(end, number, Framed(data, tag, flags), fds, regions)
        except BaseException:
            persist(close_received, regions)
            raise

    def _copied(self, large: _Large) -> bytes | None:
        """Copy on: to its end, or one piece if others wait for this call; None if more is left.

        Other threads run during each copy.  The lock is held, and the short way leaves large messages
        to this one, so nobody else takes it, or closes this end, meanwhile.  A signal handler can come
        between two copies: what it takes is no more to be written.
        """
        self._large = large
        while large.done < large.size:
            to, from_, done, size = large.to, large.memory, large.done, large.size
            count = min(size - done, MOST_BYTES)
            # No bytecode between the look and the copy can be interrupted.
            if self._large is not large:
                return None
            copy_memory(to + done, from_ + done, count)
            large.done = done + count
            if self.in_steps and large.done < size:
                return None
        return large.data

    def _adopt(
        self, descriptors: list[fdpass.Fd], max_size: int, *, shared: bool = False
    ) -> fdpass.MemoryRegion:
        """Make a region of copies of its descriptors; raise TroubleError if they are none."""
        adopt = partial(
            fdpass.MemoryRegion.adopt,
            max_size=max_size,
            accept_shared=shared,
            mappings=self._mappings,
        )
        return with_copies(descriptors, adopt)

    def _hand_on(self, limit: int, call: Call) -> tuple[list[Built], Hands]:
        """Move what is built to the hands of a call, and free its frames.

        Return it, and `_hands` as they are then, with this at their end.
        """
        while (built := self._built) and (ring := self._ring) is not None:
            now, later, hands = built[:limit], built[limit:], self._hands
            handed, new = self._handed + len(now), [*hands, (call, now)]
            end = now[-1].end
            # else a signal handler came between
            if self._built is built and self._ring is ring and self._hands is hands:
                # No bytecode between these can be interrupted.
                self._hands = new
                self._built = later
                self._handed = handed
                _free(ring, end)
                return now, new
        return [], []

    def drop_strays(self) -> None:
        """Close the descriptors of a message that its sender did not live to publish."""
        with self._lock:
            strays: list[Spent] = list(chain(*self._attached))
            # No bytecode between these can be interrupted.
            self._spent = self._spent + strays
            del self._attached[:]
            self._close_spent()

    def discard(self) -> None:
        """Close what is attached to messages that nobody will take; takes no lock."""
        self._mappings.close()
        self._kept = {}
        self._large = None
        for built in chain(self._built[:], *self._left_over()[1]):
            close_received(built.fds)
            close_received(built.regions)
        close_received(self._spent)


def _new_scratch() -> tuple[Any, Any]:
    return ffi.new("struct ipcq_frame *"), ffi.new("char const **")
