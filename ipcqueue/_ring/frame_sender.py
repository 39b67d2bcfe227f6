"""The sending end of a ring of frames: messages of any length, with what is attached to them."""

from __future__ import annotations

import operator
import os
import stat
from typing import TYPE_CHECKING, Any, Self

import fdpass
from fdpass.lowlevel import Owner
from ipcqueue import _direct
from ipcqueue._core import ffi, lib
from ipcqueue._errors import BadRecord, Unaccepted
from ipcqueue._records.messages import OUT_AGAIN, OUT_OF_LINE, OUTSIDE, Framed, tuple_of

from .bounds import LARGE, MAX_BYTES
from .codes import CLOSED, DONE, ERROR, FULL, STUCK, RingError
from .end import Traffic
from .frame import HEADER, MAX_EXTENT, MAX_FDS, extent
from .memory import U64, Mapping, address_of, copy_memory
from .outside import PLACE_SIZE, Outgoing, Outside
from .sender import BatchSending, SenderEnd

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Protocol

    from ipcqueue._records.messages import Limits, MessageCodec

    from .end import Place

    class Admission(Protocol):
        """Who says whether descriptors may be sent now: those on their way are counted."""

        def admit(self, count: int) -> bool:
            """Say whether `count` of them may be sent; if so, settle() follows."""

        def settle(self, *, sent: bool) -> None:
            """Note what became of what was admitted."""


_send, _commit = lib.ipcq_frame_send, lib.ipcq_frame_commit


class FrameParcel(Owner):
    """One message ready to go: its frame, its bytes, and the descriptors beside it.

    Borrows the descriptors; has, until close(), a memory region to itself if the message travels
    outside the ring.
    """

    def __init__(
        self,
        framed: Framed,
        fds: Sequence[int],
        regions: Sequence[int],
        outside: Outside | None,
        kept: object,
    ) -> None:
        data, tag, flags = framed
        self.outside = outside
        self.use: Any = None  # of the region, once the message is in it
        self._kept = kept
        self._attached = [*fds, *regions]
        if outside is not None:
            data, flags = bytes(PLACE_SIZE), flags | OUT_OF_LINE
        self.data = data
        self.frame = ffi.new("struct ipcq_frame *")
        self.frame.size, self.frame.tag, self.frame.flags = len(data), tag, flags
        self.frame.fds, self.frame.regions = len(fds), len(regions) + (outside is not None)
        self.numbers = ffi.new("int[]", self._attached)

    def settle(self, *, again: bool) -> None:
        """Say in the frame whether the peer has the region of the message already."""
        frame = self.frame
        attached = len(self._attached) - frame.fds
        flags = int(frame.flags) & ~OUTSIDE | (OUT_AGAIN if again else OUT_OF_LINE)
        frame.flags, frame.regions = flags, attached + (not again)

    def fill(self, outside: Outside) -> None:
        """Copy the message into its region; raise OSError if there is no memory for that."""
        self.data, region = outside.fill()
        if not region.sent:
            self.numbers = ffi.new("int[]", [*self._attached, region.memfd.fileno()])
        self.use = region.use

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self.outside is not None:
            self.outside.close()


class FrameBatch:
    """Encoded messages, none of them sent yet."""

    def __init__(self, data: Sequence[Any], framed: Sequence[Framed] | None = None) -> None:
        self.data = data
        self.count = len(data)
        self.records = data if framed is None else framed  # plain: they have no tags and no flags

    def framed(self, number: int) -> Framed:
        """Return one message."""
        record = self.records[number]
        return Framed(record, 0, 0) if self.records is self.data else record


class FrameSender(_direct.FrameSender, SenderEnd):  # type: ignore[misc]
    """The sending end of a ring of frames.

    offer() is one call of C for bytes, see core/python.
    """

    def __init__(
        self,
        own: Mapping,
        peer: Mapping,
        place: Place,
        codec: MessageCodec,
        limits: Limits,
        inline: int,
    ) -> None:
        super().__init__(own, peer, place)
        self._plain = codec.spec is bytes  # a record is the bytes of its message
        self._encode = codec.encode
        self._limits = limits
        self._inline = min(inline, MAX_EXTENT)
        self._regions = Outgoing()
        self.flight: Admission | None = None
        """What to ask before descriptors are sent, if they are counted."""
        inside = min(self._inline, self.capacity) // HEADER * HEADER - HEADER
        most = min(inside, limits.message, LARGE)
        self.attach_fast(address_of(self._ring), most, None if self._plain else self._encode)

    @property
    def enough(self) -> int:
        """The bytes of space that are enough for any message; what is longer travels outside."""
        return max(self._inline, HEADER + PLACE_SIZE)

    def _travels_outside(self, size: int) -> bool:
        return size > 0 and extent(size) > self._inline

    def parcel(
        self,
        record: Any,
        fds: Iterable[int | fdpass.Fd] | None = None,
        regions: Iterable[fdpass.MemoryRegion] | None = None,
    ) -> FrameParcel:
        """Encode a message; raise BadRecord, TooLarge or Unaccepted for what cannot be sent."""
        return self.parcel_of(self._encode(record), fds, regions)

    def parcel_of(
        self,
        framed: Framed,
        fds: Iterable[int | fdpass.Fd] | None = None,
        regions: Iterable[fdpass.MemoryRegion] | None = None,
    ) -> FrameParcel:
        """Return the same of a message that is encoded already."""
        size = len(framed.data)
        self._limits.check_size(size)
        fds, regions = tuple_of("fds", fds), tuple_of("regions", regions)
        self._limits.check_attached(len(fds), len(regions))
        numbers = [self._checked_fd(fd) for fd in fds]
        of_regions = [d.fileno() for region in regions for d in self._given(region)]
        outside = self._travels_outside(size)
        count = len(numbers) + len(of_regions) + outside
        if count > MAX_FDS:
            raise BadRecord(
                f"{len(numbers)} descriptors and {len(regions)} regions"
                + (f" and {size} bytes that travel as a region" if outside else "")
                + f" are {count} descriptors, and one message carries at most {MAX_FDS}"
            )
        elsewhere = Outside(framed.data) if outside else None
        return FrameParcel(framed, numbers, of_regions, elsewhere, (fds, regions))

    def _checked_fd(self, fd: int | fdpass.Fd) -> int:
        try:
            number = fd.fileno() if hasattr(fd, "fileno") else operator.index(fd)
            mode = os.fstat(number).st_mode
        except (OSError, OverflowError, AttributeError, TypeError, ValueError) as error:
            raise BadRecord(f"expected an open descriptor, got {fd!r}") from error
        if stat.S_ISSOCK(mode) and not self._limits.sockets:
            raise Unaccepted(f"descriptor {number} is a socket, and the receiver accepts none")
        return number

    def _given(self, region: fdpass.MemoryRegion) -> tuple[fdpass.Fd, ...]:
        if not isinstance(region, fdpass.MemoryRegion):
            raise BadRecord(f"expected a MemoryRegion, got {type(region).__name__}")
        if region.mode == "shared" and not self._limits.shared:
            raise Unaccepted("the region is shared, and the receiver accepts none that are")
        try:
            return region.descriptors()
        except fdpass.FdPassError as error:
            raise BadRecord(f"the region cannot be given: {error}") from error

    def offer_encoded(self, encoded: Framed) -> Framed | None:
        """Publish a message that is encoded; return it if there is no space."""
        size = len(encoded.data)
        if self._travels_outside(size):
            with self.parcel_of(encoded) as parcel:
                sent = bool(self.try_send(parcel))
        else:
            self._limits.check_size(size)
            push = self._push_large if size > LARGE else self._pushed
            sent = self._sent(push(*encoded))
        return None if sent else encoded

    def _push_large(self, data: Any, tag: int, flags: int) -> int:
        """Copy a large message into the ring while other threads run; publish it; return a code.

        The ring is parked meanwhile, so that no other call writes there: those of other threads
        wait for the lock, also the fast path, which takes none.  A signal handler of this thread
        may use this end (the lock is re-entrant, and nothing of the ring is lent): then all begins
        again.
        """
        size = len(data)
        frame = ffi.new("struct ipcq_frame *", [size, tag, flags, 0, 0, 0])
        at, run = ffi.new("char **"), ffi.new("uint64_t *")
        units, done = extent(size), 0
        # Released, not left to the garbage collector: kept in a traceback that is part of a cycle,
        # a buffer of cffi over a memoryview crashes it (cffi 2.1, CPython 3.11).
        with ffi.from_buffer(data) as buffer, self._lock:
            while True:
                ring = self._ring if self._ring is not None else self._usable()
                if ring is None:
                    return CLOSED
                self._parked, self._ring = ring, None
                try:
                    code = int(lib.ipcq_reserve(ring, units, at, run))
                    if code:
                        return code
                    to, from_, done = at[0] + HEADER, buffer, 0
                    while done < size:
                        count = min(size - done, MAX_BYTES)
                        # One step, see end.py: the look and the copy.
                        if self._parked is not ring or self._borrower is not None:
                            break
                        copy_memory(to + done, from_ + done, count)
                        done += count
                    else:
                        # One step: the look and the commit.
                        if self._parked is ring and self._borrower is None:
                            return int(_commit(ring, frame, 1))
                finally:
                    if self._borrower is None:
                        self._unpark(ring)

    def try_send(self, parcel: Any) -> bool | None:
        """Publish one message with what is attached to it.

        False if there is no space; None if the socket has no room for descriptors just now.
        """
        outside = parcel.outside
        if outside is not None and parcel.use is None and not self._put_outside(parcel, outside):
            return False
        frame, numbers, use = parcel.frame, parcel.numbers, parcel.use
        with ffi.from_buffer(parcel.data) as buffer, self._lock:
            ring = self._ring if self._ring is not None else self._usable()
            count = frame.fds + frame.regions
            flight = self.flight if count else None
            if ring is None:
                code = CLOSED
            elif flight is not None and not flight.admit(count):
                code = STUCK
            else:
                code = _send(ring, frame, buffer, numbers, ffi.NULL if use is None else use)
                if flight is not None:
                    flight.settle(sent=code == DONE)
        return None if code == STUCK else self._sent(code)

    def _put_outside(self, parcel: FrameParcel, outside: Outside) -> bool:
        """Copy a message into a region; False if there is none, or no space for its frame.

        Both are looked at first: copying it in vain would take the longest.
        """
        head, tail = ffi.new("uint64_t *"), ffi.new("uint64_t *")
        at, run = ffi.new("char **"), ffi.new("uint64_t *")
        taken = False
        with self._lock:
            ring = self._ring if self._ring is not None else self._usable()
            # This fails in a forked child, which must not write where its parent does.
            code = CLOSED if ring is None else lib.ipcq_sender_indices(ring, head, tail)
            if not code:
                taken = outside.take(self._regions, int(tail[0]))
                parcel.settle(again=not taken or outside.again)
                code = lib.ipcq_reserve(ring, self.units(parcel), at, run)
        if code:
            outside.put_back()
            return self._sent(code)
        if taken:
            try:
                parcel.fill(outside)
            except fdpass.ClosedFd:
                raise RingError(CLOSED) from None
        return taken

    def _place(self, memory: Any, offset: int, units: int, run: int) -> tuple[Any, int]:  # noqa: ARG002 (as SlotSender)
        return memory, offset + HEADER

    def traffic(self) -> Traffic:
        """Return the messages published, and those that the peer has not taken."""
        with self._lock:
            head, tail = self.indices()
            published, left = ffi.new("struct ipcq_tally *"), ffi.new("struct ipcq_tally *")
            ring = self._readable_ring()
            if ring is not None:
                lib.ipcq_frame_sender_tally(ring, published, left)
        return Traffic(
            int(published.messages),
            int(left.messages),
            head + int(published.outside),
            head - tail + int(left.outside),
        )

    def close(self) -> None:
        """Let go of the socket and of the regions.  A push in progress ends first."""
        super().close()
        self._regions.close()

    def _sent(self, code: int) -> bool:
        if not code:
            return True
        if code == FULL:
            return False
        if code == ERROR:
            number = ffi.errno
            raise OSError(number, f"sending descriptors: {os.strerror(number)}")
        raise RingError(code)

    def push_many(self, records: Iterable[Any]) -> int | BatchSending:
        """Encode messages and publish what fits; see SenderEnd."""
        if type(records) is not list:
            records = list(records)  # what C takes in one go
        done = self.push_all(records)
        if type(done) is int:
            return done
        if done is None:
            return BatchSending(self, self.batch(records))
        done, pieces = done
        return BatchSending(self, FrameBatch(pieces), done)

    def batch(self, records: Iterable[Any]) -> FrameBatch:
        """Encode messages to push; raise BadRecord or TooLarge if one of them is none."""
        pieces = self.pieces(records)
        if pieces is not None:
            return FrameBatch(pieces)
        framed: list[Framed] = []
        try:
            for record in records:
                one = self._encode(record)
                self._limits.check_size(len(one.data))
                if type(one.data) is not bytes and not self._travels_outside(len(one.data)):
                    one = Framed(bytes(one.data), one.tag, one.flags)
                framed.append(one)
        except BadRecord as error:
            raise type(error)(f"record {len(framed)}: {error}") from None
        return FrameBatch([one.data for one in framed], framed)

    def parcel_in(self, batch: Any, start: int) -> FrameParcel | None:
        """Return message number `start` of a batch as a parcel if it travels outside the ring."""
        if not self._travels_outside(len(batch.data[start])):
            return None
        return self.parcel_of(batch.framed(start))

    def try_push_many(self, batch: Any, start: int) -> int:
        """Publish messages from number `start` on; return how many, which may be some of them."""
        done = self.push_run(batch.records, start)
        if not done and start < batch.count:  # which finds out why
            done = self.offer_encoded(batch.framed(start)) is None
        return int(done)

    def units(self, parcel: Any) -> int:
        """Return the bytes of space to wait for when there was none for this parcel."""
        with self._lock:
            ring = self._ring if self._ring is not None else self._usable()
            if ring is None:
                return 0
            units = int(lib.ipcq_frame_units(ring, parcel.frame))
            until = None if parcel.outside is None else parcel.outside.until
            if until is None:
                return units
            head, tail = ffi.new("uint64_t *"), ffi.new("uint64_t *")
            lib.ipcq_sender_indices(ring, head, tail)
            # There is so much space once the frame that ends there was taken.
            space: int = self.capacity - ((int(head[0]) - until) & U64)
            return max(units, space)

    def units_of(self, batch: Any, start: int) -> int:
        """Return the bytes to wait for when there was no space for message `start` of a batch."""
        return extent(len(batch.data[start]))
