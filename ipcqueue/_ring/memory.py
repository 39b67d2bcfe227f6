"""Segments in memory: mapping them, reading and writing what stands in their headers."""

from __future__ import annotations

import errno
import mmap
import os
from typing import TYPE_CHECKING, Any, NamedTuple

from fdpass.lowlevel import Owner
from ipcqueue._core import ffi, lib
from ipcqueue._waiting import lib as waiting

from .identity import MAGIC, Identity

if TYPE_CHECKING:
    from collections.abc import Callable

U64 = (1 << 64) - 1  # indices are u64, also where they wrap

fork_generation: Callable[[], int] = lib.ipcq_fork_generation
is_socket: Callable[[int], int] = lib.ipcq_is_socket


class Counts(NamedTuple):
    """Counters of one role, kept in its owner's segment."""

    doorbells: int
    waits: int
    refused: int
    last_active_ns: int


class Mapping(Owner):
    """A segment in memory, unmapped when the last one that holds `at` lets go."""

    def __init__(self, at: Any = None, size: int = 0) -> None:
        self.at = at  # None: nothing any more
        self.size = size

    def read_identity(self) -> Identity:
        """Copy out what the segment says about itself."""
        raw = ffi.new("struct ipcq_identity *")
        lib.ipcq_read_identity(self.at, raw)
        return Identity(
            slot_size=raw.slot_size,
            capacity=raw.capacity,
            segment_size=raw.segment_size,
            fingerprint=bytes(ffi.buffer(raw.fingerprint)),
            creator_pid=raw.creator_pid,
            name=_text(raw.name),
            record=_text(raw.record),
            shape=raw.shape,
            max_message=raw.max_message,
            accept_fds=raw.accept_fds,
            accept_regions=raw.accept_regions,
            accept_flags=raw.accept_flags,
            magic=bytes(ffi.buffer(raw.magic)),
            layout_version=raw.layout_version,
            byte_order=raw.byte_order,
            header_size=raw.header_size,
        )

    def write_identity(self, identity: Identity) -> None:
        """Write it; only before the first peer sees the segment."""
        raw = ffi.new("struct ipcq_identity *")
        raw.magic = MAGIC
        for field in (
            "layout_version",
            "byte_order",
            "header_size",
            "slot_size",
            "capacity",
            "segment_size",
            "creator_pid",
            "shape",
            "max_message",
            "accept_fds",
            "accept_regions",
            "accept_flags",
        ):
            setattr(raw, field, getattr(identity, field))
        ffi.memmove(raw.fingerprint, identity.fingerprint, 16)
        for into, text in ((raw.name, identity.name), (raw.record, identity.record)):
            data = text.encode()[: ffi.sizeof(into)]
            ffi.memmove(into, data, len(data))
        lib.ipcq_write_identity(self.at, raw)

    def set_closed(self) -> None:
        """Say the owner's last word."""
        if self.at is not None:
            lib.ipcq_set_closed(self.at)

    def is_closed(self) -> bool:
        """Whether the owner has said it; also once this side has let go."""
        return self.at is None or bool(lib.ipcq_is_closed(self.at))

    def counts(self) -> tuple[Counts, Counts] | None:
        """Return the counters of its sending and its receiving role; None without memory."""
        if self.at is None:
            return None
        raw = ffi.new("struct ipcq_counts[2]")
        lib.ipcq_sending_counts(self.at, ffi.addressof(raw, 0))
        lib.ipcq_receiving_counts(self.at, ffi.addressof(raw, 1))
        sending, receiving = (
            Counts(r.doorbells, r.waits, r.refused, r.last_active_ns) for r in raw
        )
        return sending, receiving


def map_segment(fd: int, size: int, *, writable: bool, mirrored: int = 0) -> Mapping:
    """Map a segment with all its pages; raise OSError if memory is short or seals forbid.

    Its last `mirrored` bytes appear a second time behind its end.
    """
    # Python's own mapping reserves the addresses, and gives them back.  It does so when the last
    # reference is gone, and has no finalizer: those run in any order for what the garbage
    # collector finds together, and a generator among them may close an interface in its own.
    try:
        addresses = mmap.mmap(-1, size + mirrored, mmap.MAP_PRIVATE, prot=0)
        mapping = Mapping(ffi.from_buffer(addresses), size)
        if waiting.ipcq_map(mapping.at, fd, size, mirrored, writable) < 0:
            raise OSError(ffi.errno, "")
    except OSError as error:
        # EFAULT is what MADV_POPULATE says where a touch would be SIGBUS.
        code = errno.ENOMEM if error.errno == errno.EFAULT else error.errno or 0
        message = f"mapping a segment of {size} bytes: {os.strerror(code)}"
        raise OSError(code, message) from None
    return mapping


def _text(field: Any) -> str:
    """Read a text field of a stranger: no control characters reach a terminal or a log."""
    text = bytes(ffi.buffer(field)).split(b"\0", 1)[0].decode(errors="replace")
    return "".join(c if c.isprintable() else "?" for c in text)


def allocate(kind: str, size: int, *kept: object) -> Any:
    """Return a zeroed struct of the core that keeps alive what it points to."""
    # Not by ffi.gc(), whose destructors are finalizers: see map_segment.
    memory = _Memory(size)
    memory.kept = kept
    return ffi.from_buffer(kind, memory)


class _Memory(Owner, bytearray):
    kept: object = None


copy_memory: Callable[[Any, Any, int], None] = waiting.ipcq_copy
"""copy_memory(to, from, size): while other Python threads run.

It is C, since a signal handler can come at the beginning of a function of Python: between the look
whether this memory is still the caller's to write, and the copy, nothing may come.
"""


def address_of(pointer: Any) -> int:
    """Return where a pointer of the core points."""
    return int(ffi.cast("uintptr_t", pointer))
