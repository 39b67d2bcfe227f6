"""Messages outside the ring, in memory regions that are used again and again.

A message of more bytes than `inline` is copied into a memory region.  Its frame says only which
region, and how many bytes of it.  Making a region takes ten times as long as copying the message.
So the sender keeps and numbers its regions, and the receiver keeps them mapped:

    the first message in a region   flag OUT_OF_LINE   the region's descriptor goes along
    each later one                  flag OUT_AGAIN     only the number of the region goes along

A number that comes with a descriptor stands for the new region from then on.

When may a region be written again?  When the receiver is done with the message.  Then it gives the
space of the frame back: after copying the message, or at the end of a borrowing.  So `tail` tells:
a region is free as soon as `tail` is past the last frame that used it.  A receiver that lies about
`tail` gets messages that change while it reads them.

Only the sender can write a region (F_SEAL_FUTURE_WRITE), and nobody can make it shorter.  So a
lying sender can do no more than change a message while it is copied.  SIZES bounds the memory that
the receiver keeps mapped until the connection is closed.
"""

from __future__ import annotations

import os
import struct
import weakref
from typing import TYPE_CHECKING, Any, Final, TypeVar

import fdpass
from fdpass.lowlevel import Owner
from ipcqueue._core import ffi
from ipcqueue._direct import persist

from .bounds import MAX_BYTES
from .codes import CORRUPT, RingError
from .memory import U64, Mapping, copy_memory, map_segment

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")

_PLACE: Final = struct.Struct("=QII")  # struct ipcq_outside
PLACE_SIZE: Final = _PLACE.size

# The largest region of each number, in bytes: 63 MiB for all of them, in each direction.  There is
# one number for each frame with descriptors that may be under way.  So a message of up to 1 MiB
# waits no longer than it would with a region of its own; larger messages share the last four.
SIZES: Final = (5 << 18,) * 12 + (12 << 20,) * 4
ONCE: Final = 0xFFFFFFFF  # the number of a region that will not be used again

_LEAST = 1 << 16  # bytes of a region; a guess
_SEALS = fdpass.Seal.SHRINK | fdpass.Seal.GROW | fdpass.Seal.FUTURE_WRITE | fdpass.Seal.SEAL


def region_size(size: int) -> int:
    """Return the bytes of the region for a message of `size` bytes: at most a quarter more.

    Sizes are rounded up, so that messages of similar sizes can use the same regions.
    """
    step = max(1 << (size - 1).bit_length() >> 3, 1)
    return max(_LEAST, -(-size // step) * step)


class Region(Owner):
    """Memory that only this process writes, with the descriptor to send once."""

    def __init__(self, size: int) -> None:
        """Make `size` bytes; raise OSError if memory is short."""
        self.size = size
        self.use = ffi.new("struct ipcq_use *")
        self.memfd = fdpass.Memfd.create("message", size)
        try:
            self._mapping = map_segment(self.memfd.fileno(), size, writable=True)
            self.memfd.seal(_SEALS)
        except BaseException:
            persist(self.memfd.close)
            raise

    @property
    def sent(self) -> bool:
        """Whether the peer has it."""
        return bool(self.use.times)

    def fill(self, data: Any) -> None:
        """Copy a message to its beginning; if it is large, while other threads run.

        Nobody else has this region now, see _Slot.take; and nobody can resize `data`.
        """
        with ffi.from_buffer(data) as buffer:
            for done in range(0, len(data), MAX_BYTES):  # signal handlers run in between
                count = min(len(data) - done, MAX_BYTES)
                copy_memory(self._mapping.at + done, buffer + done, count)


class _Slot(Owner):
    """The region of one number, if there is one; used by one message at a time."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.region: Region | None = None
        self.user: weakref.ref[object] | None = None

    @property
    def room(self) -> int:
        """The bytes of the region; 0 if there is none."""
        region = self.region  # once: a signal handler may close it
        return 0 if region is None else region.size

    def under_way(self, tail: int) -> int:
        """Return how far `tail` is from the end of its last message; 0 if that was taken."""
        region = self.region
        if region is None or not region.sent:
            return 0
        left = (int(region.use.end) - tail) & U64
        return left if left < 1 << 63 else 0

    def take(self, user: weakref.ref[object], tail: int) -> bool:
        """Reserve it for `user`, as long as that object exists; return False if it is in use."""
        before = self.user
        if before is not None and before() is not None:
            return False
        # One step, see end.py: the look and the store.
        if self.user is not before:
            return False  # a signal handler has taken it meanwhile
        self.user = user
        if self.under_way(tail):  # asked last: a signal handler may have just sent a message in it
            self.user = None
            return False
        return True


class Load(Owner):
    """The memory that belongs to one message until it is sent or given up."""

    def __init__(self, size: int, number: int, slot: _Slot | None) -> None:
        self.size = size
        """Bytes of the region to make, if the slot has none that is large enough."""
        self.number = number
        self.slot = slot
        """None: the region is used for this message only."""


class Outgoing(Owner):
    """The regions of a sender, at most one for each of SIZES.

    Call take() with the lock of the end held.  A slot that was taken needs no lock.
    """

    def __init__(self) -> None:
        self._slots = [_Slot(number) for number in range(len(SIZES))]

    def take(self, size: int, user: weakref.ref[object], tail: int) -> Load | int:
        """Reserve a region for a message of `size` bytes, as long as `user` exists.

        If all regions that are large enough are under way, return the index that `tail` must reach
        before one is free.
        """
        # The first ones were probably used last, and are still in a cache.
        for slot in self._slots:
            if slot.room >= size and slot.take(user, tail):
                return Load(size, slot.number, slot)
        fitting = [slot for slot in self._slots if SIZES[slot.number] >= size]
        absent = [slot for slot in fitting if not slot.room]  # so none needs to be given up
        for slot in (*absent, *fitting):
            if slot.take(user, tail):
                return Load(min(region_size(size), SIZES[slot.number]), slot.number, slot)
        if ways := [way for slot in fitting if (way := slot.under_way(tail))]:
            return (tail + min(ways)) & U64
        # The message is too large for any of them, or other threads have all of them reserved.
        return Load(size, ONCE, None)

    def close(self) -> None:
        """Drop all regions but those that a thread is sending now: that thread drops them."""
        slots, self._slots = self._slots, []
        for slot in slots:
            if (user := slot.user) is None or user() is None:
                _drop(slot)


def _drop(slot: _Slot) -> None:
    region = slot.region
    if region is not None:
        region.memfd.close()
    slot.region = None


class Outside(Owner):
    """One message that travels outside the ring; close() it in the end, sent or not.

    Each step can be repeated.
    """

    def __init__(self, data: Any) -> None:
        self._data = data
        self._size = len(data)
        self._load: Load | None = None
        self._region: Region | None = None
        self._filled = False
        self.until: int | None = None
        """The index that `tail` must reach before a region is free; None: it has one."""

    def take(self, regions: Outgoing, tail: int) -> bool:
        """Reserve a region; return False if it must wait for one."""
        if self._load is None:
            load = regions.take(self._size, weakref.ref(self), tail)
            if isinstance(load, int):
                self.until = load
                return False
            self._load, self.until = load, None
        return True

    @property
    def again(self) -> bool:
        """Whether the peer already has the region that this message will travel in."""
        region = self._region or self._kept()
        return region is not None and region.sent

    def _kept(self) -> Region | None:
        """Return the region of its slot, if that is large enough."""
        slot = None if self._load is None else self._load.slot
        region = None if slot is None else slot.region
        return region if region is not None and region.size >= self._size else None

    def fill(self) -> tuple[bytes, Region]:
        """Copy it into its region, which is made now if need be.

        Returns the payload of its frame, and the region.  Raises OSError if memory is short.
        """
        if (load := self._load) is None:
            raise ValueError("take() comes before fill()")
        if self._region is None:
            region = self._kept()
            if region is None:
                if load.slot is not None:
                    _drop(load.slot)  # first: the slot must not have memory for two regions
                region = Region(load.size)
                if load.slot is not None:
                    load.slot.region = region
            self._region = region
        if not self._filled:
            self._region.fill(self._data)
            self._filled = True
        return _PLACE.pack(self._size, load.number, 0), self._region

    def put_back(self) -> None:
        """Give the reserved region back, unless the message was copied into it already."""
        if self._region is None and (load := self._load) is not None:
            self._load = None
            if load.slot is not None:
                load.slot.user = None

    def close(self) -> None:
        """Give the region back; drop one that was never sent to the peer."""
        load, region = self._load, self._region
        slot = None if load is None else load.slot
        if region is not None:
            if slot is not None and not region.sent:
                slot.region = None  # first: a region in a slot must have a descriptor to send
            region.memfd.close()
        # Before the slot is given back: another message may take it at once.
        self._load = self._region = None
        if slot is not None:
            slot.user = None


def find(
    payload: Any, given: Sequence[fdpass.Fd], kept: dict[int, Mapping], max_message: int
) -> tuple[Any, int]:
    """Return the memory of a received message, and its size; note in `kept` a region to keep.

    `given` holds the descriptor of its region, or nothing if the peer sent that before.  Raises
    RingError if the peer lies, OSError if memory is short.
    """
    if len(payload) != PLACE_SIZE:
        raise RingError(CORRUPT, "a message outside the ring does not say where it is")
    size, number, reserved = _PLACE.unpack(bytes(payload))  # once: the peer may be changing it
    if reserved or (number >= len(SIZES) and (number != ONCE or not given)):
        raise RingError(CORRUPT, f"the peer keeps no memory region with number {number}")
    if given:
        mapping = _mapped(given, _most(number, max_message))
    elif (there := kept.get(number)) is not None:
        mapping = there
    else:
        raise RingError(CORRUPT, f"the peer has never given memory region {number}")
    if not 0 < size <= min(mapping.size, max_message):
        raise RingError(
            CORRUPT,
            f"a message of {size} bytes in a memory region of {mapping.size}, "
            f"where at most {max_message} are accepted",
        )
    if number != ONCE:
        kept[number] = mapping
    return mapping.at, size


def _most(number: int, max_message: int) -> int:
    if number == ONCE:
        return max_message
    return min(SIZES[number], region_size(max_message))


def _mapped(given: Sequence[fdpass.Fd], most: int) -> Mapping:
    """Map a region that the peer gave; its descriptors stay the caller's."""
    return with_copies(given, lambda copies: _map_one(copies[0], most))


def _map_one(fd: fdpass.Fd, most: int) -> Mapping:
    with fdpass.Memfd.adopt(fd, max_size=most, seals=_SEALS) as memfd:
        return map_segment(memfd.fileno(), memfd.size, writable=False)


def with_copies(descriptors: Sequence[fdpass.Fd], use: Callable[[list[fdpass.Fd]], T]) -> T:
    """Return use(copies of the descriptors), which takes them; raise RingError if it refuses."""
    copies = fdpass.Fd.blank(len(descriptors))
    try:
        fdpass.Fd.own(copies, map(os.dup, [fd.fileno() for fd in descriptors]))
        return use(copies)
    except BaseException as error:
        persist(fdpass.close_untrusted, copies)
        if isinstance(error, fdpass.FdPassError):
            message = f"the peer sent a memory region that is none: {error}"
            raise RingError(CORRUPT, message) from error
        raise
