"""Segments: the sealed anonymous files of which every byte has one writer.

`create` makes this side's own, which only this side can ever write; `adopt` takes the peer's,
which this side can only read.  Drawn in core/layout.h.
"""

from __future__ import annotations

import itertools
import mmap
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fdpass import Fd, Memfd, MemfdRefused, NotReserved, Seal, WrongSize
from fdpass.lowlevel import Owner, index_of
from ipcqueue._core import lib
from ipcqueue._direct import persist
from ipcqueue._errors import SealsRefused, SizeRefused
from ipcqueue._records.messages import Limits

from .identity import FIRST_WAKE_LINE, HEADER_SIZE, LAST_WAKE_LINE, Identity
from .memory import Mapping, map_segment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ipcqueue._records.codec import AnyCodec

MAX_SLOT_SIZE: int = lib.IPCQ_MAX_SLOT_SIZE
SLOTS: int = lib.IPCQ_SLOTS
FRAMES: int = lib.IPCQ_FRAMES

# Nobody can change the size, write through a new mapping, or add seals.
SEALS = Seal.SHRINK | Seal.GROW | Seal.FUTURE_WRITE | Seal.SEAL
_WRITE = int(Seal.WRITE)

WAKE_LINES = LAST_WAKE_LINE - FIRST_WAKE_LINE + 1
# The words of two ends should rarely share a line.  A number for this process, which those that it
# forks have as well, and a count: to ask the kernel for each would be a call.
_made = itertools.count(os.urandom(1)[0])

# The largest segment to accept from a peer by default, in bytes.  Making sure that one of this size
# keeps its pages takes 4 ms, and an event loop waits for that long.
MAX_SEGMENT = 128 << 20


class Segment(Owner):
    """A file, its mapping and what it says about itself; owns both."""

    def __init__(self, memfd: Memfd, mapping: Mapping, identity: Identity) -> None:
        self.memfd = memfd
        self.mapping = mapping
        self.identity = identity
        mapping.wake_line = identity.wake_line

    def close(self) -> None:
        """Close the file, and the mapping once no ring uses it."""
        self.memfd.close()
        self.mapping = Mapping()


# No file has this many bytes.
_NO_FILE = 1 << 62


def rounded_capacity(capacity: int, least: int = 1, slot_size: int = 1) -> int:
    """Return the smallest power of two that is at least `capacity` and `least`.

    Raises TypeError or ValueError for a capacity that no segment can have.
    """
    try:
        capacity = index_of(capacity)
    except TypeError:
        expected = "a number of records, or of bytes (int)"
        raise TypeError(f"capacity is {expected}, not {capacity!r}") from None
    if capacity < 1:
        raise ValueError(f"capacity is at least 1, not {capacity}")
    most = 1 << (((_NO_FILE - HEADER_SIZE - mmap.PAGESIZE) // slot_size).bit_length() - 1)
    if capacity > most:
        raise ValueError(
            f"a capacity of {capacity} is more than a file can hold: here it is at most {most}"
        )
    return 1 << (max(capacity, least) - 1).bit_length()


def needed(slot_size: int, capacity: int) -> int:
    """Return the bytes of a segment with `capacity` slots: whole pages."""
    return -(-(HEADER_SIZE + capacity * slot_size) // mmap.PAGESIZE) * mmap.PAGESIZE


def create(
    codec: AnyCodec,
    capacity: int,
    name: str,
    limits: Limits = Limits(),  # noqa: B008 (frozen)
) -> Segment:
    """Make this side's segment with room for `capacity` records, or bytes (0: it sends nothing).

    Raises ValueError for a record that is too long, OSError when memory is short.
    """
    if not 1 <= codec.size <= MAX_SLOT_SIZE:
        raise ValueError(f"a record has 1 to {MAX_SLOT_SIZE} bytes, not {codec.size}")
    size, pid = needed(codec.size, capacity), os.getpid()
    identity = Identity(
        slot_size=codec.size,
        capacity=capacity,
        segment_size=size,
        fingerprint=codec.layout.fingerprint,
        creator_pid=pid,
        name=name,
        record=codec.layout.description,
        shape=codec.shape,
        max_message=limits.message,
        accept_fds=limits.fds,
        accept_regions=limits.regions,
        accept_flags=limits.shared + 2 * limits.sockets,
        wake_line=FIRST_WAKE_LINE + (pid + next(_made)) % WAKE_LINES,
        names=codec.names.table,
    )
    memfd = Memfd.create("memenpsf", size)
    try:
        mirrored = capacity if codec.shape == FRAMES else 0
        mapping = map_segment(memfd.fileno(), size, writable=True, mirrored=mirrored)
        mapping.write_identity(identity)
        memfd.seal(SEALS)
    except BaseException:
        persist(memfd.close)
        raise
    return Segment(memfd, mapping, identity)


def limits_of(identity: Identity) -> Limits:
    """Return what the owner of a segment accepts."""
    return Limits(
        message=identity.max_message,
        fds=identity.accept_fds,
        regions=identity.accept_regions,
        shared=bool(identity.accept_flags & 1),
        sockets=bool(identity.accept_flags & 2),
    )


def adopt(
    fd: Fd, max_segment: int, judge: Callable[[Identity, int], None] = lambda *_: None
) -> Segment:
    """Take the peer's segment, and close it unless it is safe to map and `judge` agrees.

    judge(identity, size of the file) raises if not.  Raises SealsRefused or SizeRefused, too;
    OSError when memory is short.
    """
    with _refusing():
        memfd = Memfd.adopt(fd, max_size=max_segment, seals=SEALS, keep_pages=False)
    try:
        if int(memfd.seals) & _WRITE:
            raise SealsRefused("the peer's segment: sealed so that even its owner cannot write")
        if memfd.size < HEADER_SIZE:
            raise SizeRefused(
                f"the peer's segment has {memfd.size} bytes, less than its header of {HEADER_SIZE}"
            )
        identity = map_segment(memfd.fileno(), HEADER_SIZE, writable=False).read_identity()
        judge(identity, memfd.size)
        with _refusing():
            memfd.keep_pages()  # only now: it takes time in proportion to the size
        mirrored = identity.capacity if identity.shape == FRAMES else 0
        mapping = map_segment(memfd.fileno(), memfd.size, writable=False, mirrored=mirrored)
    except BaseException:
        persist(memfd.close)
        raise
    return Segment(memfd, mapping, identity)


@contextmanager
def _refusing() -> Iterator[None]:
    """Raise what Memfd says of a peer's segment as this package's errors."""
    try:
        yield
    except (WrongSize, NotReserved) as error:
        raise SizeRefused(f"the peer's segment: {error}") from error
    except MemfdRefused as error:
        raise SealsRefused(f"the peer's segment: {error}") from error
