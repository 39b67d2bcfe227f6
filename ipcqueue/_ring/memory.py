"""Segments in memory: maps them, reads and writes their headers."""

import errno
import mmap
import os
from collections.abc import Callable
from typing import Any, NamedTuple

from fdpass.lowlevel import Owner
from ipcqueue._core import ffi, lib
from ipcqueue._waiting import lib as waiting

from .identity import MAGIC, Identity

U64 = (1 << 64) - 1  # indices are u64, also where they wrap

NO_MORE: int = lib.IPCQ_NO_MORE
TAKES_NONE: int = lib.IPCQ_TAKES_NONE
ABORTED: int = lib.IPCQ_ABORTED
KNOWN_ENDS: int = lib.IPCQ_KNOWN_ENDS
IN_ORDER = NO_MORE | TAKES_NONE

fork_generation: Callable[[], int] = lib.ipcq_fork_generation
is_socket: Callable[[int], int] = lib.ipcq_is_socket


class Counts(NamedTuple):
    """Counters of one role, kept in its owner's segment."""

    doorbells: int
    waits: int
    refused: int
    last_active_ns: int


class Mapping(Owner):
    """A segment in memory; it is unmapped when the last reference to `at` is gone."""

    wake_line = 0
    """In which line of the header its words are; the identity says it."""

    def __init__(self, at: Any = None, size: int = 0) -> None:
        self.at = at  # None: nothing any more
        self.size = size

    def read_identity(self) -> Identity:
        """Copy out what the segment says about itself."""
        raw = ffi.new("struct ipcq_identity *")
        names = ffi.new("struct ipcq_names *")
        lib.ipcq_read_identity(self.at, raw, names)
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
            wake_line=raw.wake_line,
            reserved=lib.ipcq_reserved(self.at, raw.wake_line),
            generation=raw.generation,
            base=raw.base,
            switch_at=raw.switch_at,
            session=bytes(ffi.buffer(raw.session)),
            names=bytes(ffi.buffer(names)),
            magic=bytes(ffi.buffer(raw.magic)),
            layout_version=raw.layout_version,
            byte_order=raw.byte_order,
            header_size=raw.header_size,
        )

    def write_identity(self, identity: Identity) -> None:
        """Write it; only before the first peer sees the segment."""
        words = {
            "magic": MAGIC,
            "layout_version": identity.layout_version,
            "byte_order": identity.byte_order,
            "header_size": identity.header_size,
            "slot_size": identity.slot_size,
            "capacity": identity.capacity,
            "segment_size": identity.segment_size,
            "creator_pid": identity.creator_pid,
            "shape": identity.shape,
            "max_message": identity.max_message,
            "accept_fds": identity.accept_fds,
            "accept_regions": identity.accept_regions,
            "accept_flags": identity.accept_flags,
            "wake_line": identity.wake_line,
            "generation": identity.generation,
            "base": identity.base,
            "switch_at": identity.switch_at,
        }
        raw = ffi.new("struct ipcq_identity *", words)
        ffi.memmove(raw.fingerprint, identity.fingerprint, 16)
        ffi.memmove(raw.session, identity.session, 16)
        for into, text in ((raw.name, identity.name), (raw.record, identity.record)):
            data = text.encode()[: ffi.sizeof(into)]
            ffi.memmove(into, data, len(data))
        names = ffi.new("struct ipcq_names *")
        ffi.memmove(names, identity.names, len(identity.names))
        lib.ipcq_write_identity(self.at, raw, names)

    def set_closed(self, ends: int, peer: "Mapping", bell: int) -> None:
        """Say in this side's own segment how it has ended, and wake its peer by this socket."""
        if self.at is not None and peer.at is not None:
            lib.ipcq_set_closed(self.at, self.wake_line, ends, peer.at, peer.wake_line, bell)

    def closed(self) -> int:
        """Return how its owner has ended, in bits; as in good order once it is unmapped here."""
        return IN_ORDER if self.at is None else int(lib.ipcq_closed(self.at, self.wake_line))

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
    # A mapping of Python's mmap reserves the addresses, and frees them when its last reference is
    # gone.  A finalizer would not do: the garbage collector runs those in any order, and one of a
    # generator may close an interface when the memory of this one is unmapped already.
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
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def allocate(kind: str, size: int, *kept: object) -> Any:
    """Return a zeroed struct of the core that keeps alive what it points to."""
    # Not by ffi.gc(), whose destructors are finalizers: see map_segment.
    memory = _Memory(size)
    memory.kept = kept
    return ffi.from_buffer(kind, memory)


class _Memory(Owner, bytearray):
    kept: object = None


copy_memory: Callable[[Any, Any, int], None] = waiting.ipcq_copy
"""copy_memory(to, from, size): copy while other Python threads run.

It is a function of C, because CPython runs signal handlers at the start of a function of Python.
Between the check whether the caller may still write this memory, and the copy, none may run.
"""


def address_of(pointer: Any) -> int:
    """Return where a pointer of the core points."""
    return int(ffi.cast("uintptr_t", pointer))
