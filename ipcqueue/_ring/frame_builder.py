"""FrameBuilder: copies messages, with their attachments, out of a ring of frames.

A message that takes too much of the ring travels in a memory region, and its frame says only in
which (outside.py).  The receiver sees no difference.

Descriptors go through the socket: one two-byte message for each frame that has any, sent before
the frame is published.  Both streams are in order.  So the n-th of these messages belongs to the
n-th frame with descriptors, and it is in the socket already when the frame is seen.
"""

from __future__ import annotations

from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import fdpass
from fdpass.lowlevel import Mappings, Owner
from ipcqueue import _direct
from ipcqueue._core import ffi
from ipcqueue._direct import persist
from ipcqueue._errors import Unaccepted
from ipcqueue._origin import leads_outside
from ipcqueue._records.messages import OUT_AGAIN, OUT_OF_LINE, OUTSIDE, Framed, Message

from .arrivals import (
    Built,
    carries_more,
    close_received,
    close_regions,
    grouped,
    is_there,
)
from .bounds import LARGE, MAX_AHEAD, MAX_BYTES, Budget
from .codes import CLOSED, CORRUPT, EMPTY, FORKED, RingError, corrupt
from .frame import MAX_ATTACHED
from .memory import Mapping, address_of, copy_memory, fork_generation, is_socket
from .outside import SIZES, find, with_copies
from .receiver import ReceiverEnd

if TYPE_CHECKING:
    from ipcqueue._records.messages import Limits, MessageCodec

    from .arrivals import Spent
    from .end import Place


class _Large(Owner):
    """A message above LARGE bytes, which is copied in pieces: in one call, or in several.

    Its frame stays in the ring meanwhile, where the peer may change it: `frame` is what it was at
    first.
    """

    def __init__(
        self, at: int, frame: tuple[int, ...], memory: Any, size: int, regions: dict[int, Mapping]
    ) -> None:
        self.at, self.frame = at, frame
        # It is part of a region, which this reference keeps alive; or of the ring, and then each
        # attempt checks first that the ring is in use.
        self.memory, self.size = memory, size
        self.regions = regions  # of the peer, from this message on
        self.data: bytes = _direct.blank(size)  # nobody else sees it before it is complete
        self.to = ffi.from_buffer(self.data)
        self.done = 0  # bytes


class FrameBuilder(_direct.FrameReceiver, ReceiverEnd):  # type: ignore[misc]
    """The shelf of a ring of frames, see frame_receiver.py, and how messages get there."""

    _large: _Large | None

    def __init__(
        self,
        own: Mapping,
        peer: Mapping,
        place: Place,
        codec: MessageCodec,
        limits: Limits,
        arrived: list[list[fdpass.Fd]],
    ) -> None:
        super().__init__(own, peer, place)
        self._plain = codec.spec is bytes  # a record is the bytes of its message
        self._decode = codec.decode
        self._limits = limits
        self._mappings = Mappings()  # of regions that a registry of the peer lends
        self._next = place.start
        self._raw: list[Built] = []
        self._arrived = arrived  # the wire appends to it when it reads the socket
        self._regions: dict[int, Mapping] = {}
        self._to_close: list[Spent] = []
        self.outside = 0
        """How many bytes of messages outside the ring were copied or lent; a signal handler that
        raises may make it forget one, or count it twice."""
        most = min(limits.message, self.capacity)
        # A function of the application may take long, or receive by itself: not the fast path.
        decode = self._decode if self._decode is Message else None
        self.attach_fast(
            address_of(self._ring), most, MAX_AHEAD, self._keeps, self._plain, decode, None
        )

    @property
    def lacking(self) -> int | None:
        """Where the message begins whose descriptors are still in the socket; else None."""
        position: int = self._next  # first: another thread may go on meanwhile
        return position if self._wanted > len(self._arrived) else None

    @property
    def unfinished(self) -> bool:
        """Whether the next message is a large one, copied in part."""
        large = (
            self._large
        )  # the peer may have made it a small one, which was taken by the fast path
        return large is not None and large.at == self._next

    def _reclaim(self) -> None:
        """Put back into `_raw` what nobody has received: abandoned decodings, prefetched messages.

        Their frames are free already, so `end` may stand for the end of each of them.
        """
        while self._decoding or self.prefetched:
            # One step, see end.py: the turn, and a copy of the rest.
            turn, place, ahead = self.turn, self.place, self.prefetched or []
            ahead, raw, handed, end = ahead[place:], self._raw, self._handed, self._next
            free, rest = self._left_over()
            if not free and not ahead:
                break
            older = [*chain(*free)]
            handed -= len(ahead)
            newer = [
                Built(end, handed + i, Framed(data, 0, 0), [], []) for i, data in enumerate(ahead)
            ]
            self.commit(
                turn,
                raw=older + raw + newer,
                decoding=rest,
                prefetched=None,
                handed=handed - len(older),
            )
        if self._raw and fork_generation() != self._generation:
            raise RingError(FORKED)  # the parent has the same messages, and receives them

    def _close_spent(self) -> None:
        while True:
            turn, spent = self.turn, self._to_close
            if not spent:
                break
            close_received(spent)  # which can be repeated
            if self.commit(turn, to_close=[]):
                break

    def _build(self, limit: int, budget: Budget | None) -> None:
        """Copy up to `limit` messages; the ring still holds them."""
        self._reclaim()
        if budget is not None and budget.spent and (self._raw or self.unfinished):
            return
        while not self._build_once(limit, budget):
            self._reclaim()  # a handler or another thread has used this end, or closed it, meanwhile

    def _build_once(self, limit: int, budget: Budget | None) -> bool:  # noqa: C901, PLR0912, PLR0915 (one loop, its ways out)
        ring = self._ring if self._ring is not None else self._usable()
        if ring is None:
            raise RingError(CLOSED)
        turn, before, at, arrived = self.turn, self._raw, self._next, self._arrived[:]
        if before and fork_generation() != self._generation:
            raise RingError(FORKED)
        if self.prefetched:  # since the last _reclaim(), and older than what follows
            return False
        built, used, wanted, regions = list(before), 0, 0, {**self._regions}
        carrying = again = 0
        if built:
            carrying, again = sum(map(carries_more, built)), sum(map(is_there, built))
        spent = self._to_close
        owned: list[list[fdpass.MemoryRegion]] = []  # until they are on the shelf
        failure: Exception | None = None
        self.see(ring)
        try:
            try:
                while len(built) < limit and (frame := self._look(ring, at, copy=True)) is not None:
                    _, _, flags, fds, in_regions, _, end, left, _ = frame
                    carries = fds + in_regions
                    full = carries and carrying >= MAX_ATTACHED
                    if built and (full or (flags & OUT_AGAIN and again >= len(SIZES))):
                        break  # a peer that keeps the rules has no more of them under way
                    descriptors: list[fdpass.Fd] = []
                    if carries:
                        if used == len(arrived):
                            wanted = 1
                            break
                        descriptors = arrived[used]
                    number, more = self._handed + len(built), spent + descriptors[fds:]
                    one = self._build_one(at, frame, number, descriptors, regions, owned)
                    if one is None:
                        if budget is not None:
                            budget.spent = True  # by a piece of a large message
                        break
                    again += is_there(one)
                    # One step, see end.py: what is built, and what was used for it.
                    built += [one]
                    at, spent = end, more
                    if carries:
                        used += 1
                        carrying += 1
                    if not left or (
                        budget is not None
                        and not budget.allows_more(
                            len(one.raw.data), outside=bool(flags & OUTSIDE), slow=bool(carries)
                        )
                    ):
                        break
            except Exception as error:  # noqa: BLE001 (raised below, or by the next call)
                failure = error
                # The last regions may be those of the message that failed; then no message of
                # `built` has them.
                if owned and all(each.regions is not owned[-1] for each in built):
                    persist(close_received, owned[-1])
            large = self._large
            if large is not None and large.at != at:  # it is built
                large = None
            done: bool = self.commit(
                turn,
                ring=ring,
                raw=built,
                next=at,
                arrived=used,
                wanted=wanted,
                large=large,
                regions=regions,
                to_close=spent,
                owned=owned,
            )
            # What is wrong with a message will still be so when those before it are gone.  What a
            # signal handler has raised will not come again: they wait for the next call.
            if failure is not None and (
                (done and not built) or leads_outside(failure.__traceback__)
            ):
                raise failure
        finally:
            failure = None  # it makes a cycle with this frame, which holds the ring's memory
            if owned:
                persist(close_regions, owned)
        return done

    def _look(self, ring: Any, at: int, *, copy: bool) -> tuple[Any, ...] | None:
        """Return the frame at `at`, see core/python/taking.c; None if there is none."""
        frame = self.peek(ring, at, copy)
        if type(frame) is tuple:
            return frame
        if frame == EMPTY:
            return None
        if frame == CORRUPT:
            raise corrupt("the peer's index, or the header of a frame, cannot be true")
        raise RingError(frame)

    def _contents(
        self, flags: int, count: int, announced: int, descriptors: list[fdpass.Fd]
    ) -> tuple[list[fdpass.Fd], list[list[fdpass.Fd]], list[fdpass.Fd]]:
        """Check the descriptors that came with a frame; raise RingError if not acceptable.

        Returns those for the application, those of each region, and that of the region in which
        the message travels, if it came along.
        """
        if len(descriptors) != announced:
            raise corrupt(f"a message announced {announced} descriptors, {len(descriptors)} came")
        fds, rest, outside = descriptors[:count], descriptors[count:], descriptors[:0]
        if flags & OUT_OF_LINE:
            if flags & OUT_AGAIN or not rest:
                raise corrupt("a message outside the ring came without its region")
            rest, outside = rest[:-1], rest[-1:]
        regions = grouped(rest)
        try:
            self._limits.check_attached(len(fds), len(regions))
        except Unaccepted as error:
            raise corrupt(f"the peer sent {error}") from None
        if not self._limits.sockets and any(is_socket(fd.fileno()) for fd in fds):
            raise corrupt("the peer sent a socket, and this side accepts none")
        return fds, regions, outside

    def _payload(self, address: int) -> Any:
        """Return a pointer to the payload of a frame; it keeps the memory of the ring alive."""
        return self._memory + (address - self._base)

    def _build_one(
        self,
        at: int,
        frame: tuple[Any, ...],
        number: int,
        descriptors: list[fdpass.Fd],
        kept: dict[int, Mapping],
        owned: list[list[fdpass.MemoryRegion]],
    ) -> Built | None:
        """Copy a message with its attachments; None if only a piece of it was copied.

        Its regions are in `owned` as soon as they are made.
        """
        size, tag, flags, count, others, address, end, _, data = frame
        if data is not None:
            return Built(end, number, Framed(data, tag, flags), [], [])
        limits, fds, outside = self._limits, descriptors[:0], descriptors[:0]
        groups: list[list[fdpass.Fd]] = []
        regions: list[fdpass.MemoryRegion] = []
        if descriptors or flags & OUT_OF_LINE:
            fds, groups, outside = self._contents(flags, count, count + others, descriptors)
        memory, length = self._payload(address), size
        large, said = self._large, (size, tag, flags, count, others)
        if large is not None and large.at == at and large.frame == said:
            kept |= large.regions
            length = large.size
        elif flags & OUTSIDE:
            memory, length = find(ffi.buffer(memory, size), outside, kept, limits.message)
            self.outside += length
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
            owned.append(regions)
            for group in groups:  # one by one, because the next may fail
                region = self._adopt(group, limits.region, shared=limits.shared)
                # Not +=: until CPython 3.12, if an empty list gets no memory for what is added,
                # that is never freed (list_extend).
                regions.append(region)
        return Built(end, number, Framed(data, tag, flags), fds, regions)

    def _copied(self, large: _Large) -> bytes | None:
        """Copy on: to its end, or one piece if others wait for this call; None if more is left.

        Other threads run during each copy.  The lock is held, and the fast path leaves large
        messages to this one, so nobody else takes it, or closes this end, meanwhile.  A signal
        handler can come between two copies: what it takes is no more to be written.
        """
        self._large = large
        while large.done < large.size:
            to, from_, done, size = large.to, large.memory, large.done, large.size
            count = min(size - done, MAX_BYTES)
            # One step, see end.py: the look and the copy.
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
        """Make a region of copies of its descriptors; raise RingError if they are none."""
        adopt = partial(
            fdpass.MemoryRegion.adopt,
            max_size=max_size,
            accept_shared=shared,
            mappings=self._mappings,
        )
        return with_copies(descriptors, adopt)
