"""The only module that calls the C core: segments in memory, and the two ends of a ring.

Threads: the core wants one caller at a time for each end, and cffi releases the GIL, so each
end has a lock.  It is re-entrant, because a signal handler may interrupt its own thread inside
and use the same end.

Exceptions between bytecodes (Ctrl-C): what the core does is complete when it returns, wake-up
included, so an interrupted push has happened or has not.  A pop is more delicate, since the
record lives only in this process from then on; see RingReceiver.
"""

from __future__ import annotations

import errno
import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from ._core import ffi, lib
from ._handshake import MAGIC, Identity

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._record import Codec

DONE: int = lib.IPCQ_DONE
FULL: int = lib.IPCQ_FULL
EMPTY: int = lib.IPCQ_EMPTY
GONE: int = lib.IPCQ_GONE
FORKED: int = lib.IPCQ_FORKED
CORRUPT: int = lib.IPCQ_CORRUPT
_AGAIN: int = lib.IPCQ_AGAIN
CLOSED = 100  # ours: the end was closed on this side

MAX_SLOT_SIZE: int = lib.IPCQ_MAX_SLOT_SIZE
# What one call of pop_many copies out of the ring at once.  A guess: inside the second-level
# cache, and far above what the call itself costs.
_BATCH_BYTES = 256 * 1024

# Looking a function up in `lib` costs as much as calling it.
_push, _push_many, _pop = lib.ipcq_push, lib.ipcq_push_many, lib.ipcq_pop
fork_generation: Callable[[], int] = lib.ipcq_fork_generation


class Counts(NamedTuple):
    """Counters of one role, kept in its owner's segment."""

    doorbells: int
    waits: int
    refused: int
    last_active_ns: int


@dataclass
class Mapping:
    """A segment in memory, unmapped when this and the rings that use it have let go."""

    at: Any
    size: int

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
            magic=bytes(ffi.buffer(raw.magic)),
            layout_version=raw.layout_version,
            byte_order=raw.byte_order,
            header_size=raw.header_size,
        )

    def write_identity(self, identity: Identity) -> None:
        """Write it; only before the first peer sees the segment."""
        raw = ffi.new("struct ipcq_identity *")
        raw.magic = MAGIC
        for field in ("layout_version", "byte_order", "header_size", "slot_size", "capacity"):
            setattr(raw, field, getattr(identity, field))
        raw.segment_size = identity.segment_size
        raw.creator_pid = identity.creator_pid
        ffi.memmove(raw.fingerprint, identity.fingerprint, 16)
        for into, text in ((raw.name, identity.name), (raw.record, identity.record)):
            data = text.encode()[: ffi.sizeof(into)]
            ffi.memmove(into, data, len(data))
        lib.ipcq_write_identity(self.at, raw)

    def release(self) -> None:
        """Let go."""
        self.at = None

    def set_closed(self) -> None:
        """Say the owner's last word."""
        lib.ipcq_set_closed(self.at)

    def is_closed(self) -> bool:
        """Whether the owner has said it."""
        return bool(lib.ipcq_is_closed(self.at))

    def counts(self) -> tuple[Counts, Counts]:
        """Return the counters of its sending and its receiving role."""
        raw = ffi.new("struct ipcq_counts[2]")
        lib.ipcq_sending_counts(self.at, ffi.addressof(raw, 0))
        lib.ipcq_receiving_counts(self.at, ffi.addressof(raw, 1))
        sending, receiving = (
            Counts(r.doorbells, r.waits, r.refused, r.last_active_ns) for r in raw
        )
        return sending, receiving


def map_segment(fd: int, size: int, *, writable: bool) -> Mapping:
    """Map a segment with all its pages; raise OSError if memory is short or seals forbid."""
    at = lib.ipcq_map(fd, size, writable)
    if at == ffi.NULL:
        code = ffi.errno
        if code == errno.EFAULT:  # what MADV_POPULATE says where a touch would be SIGBUS
            code = errno.ENOMEM
        raise OSError(code, f"mapping a segment of {size} bytes: {os.strerror(code)}")
    return Mapping(ffi.gc(at, lambda at: lib.ipcq_unmap(at, size), size), size)


def _text(field: Any) -> str:
    """Read a text field of a stranger: no control characters reach a terminal or a log."""
    text = bytes(ffi.buffer(field)).split(b"\0", 1)[0].decode(errors="replace")
    return "".join(c if c.isprintable() else "?" for c in text)


def _allocate(kind: str, size: int, *kept: object) -> Any:
    """Return a zeroed struct of the core that keeps alive what it points to."""
    memory = ffi.new("char[]", size)

    def keep(_: Any, memory: Any = memory, kept: object = kept) -> None:
        pass

    return ffi.gc(ffi.cast(kind, memory), keep)


class RingSender:
    """The sending end of a ring: records in, without waiting.

    `trouble(code)` is called for every result but done and full, and raises.
    """

    def __init__(
        self,
        own: Mapping,
        peer: Mapping,
        capacity: int,
        codec: Codec,
        bell: int,
        trouble: Callable[[int], NoReturn],
        head: int = 0,
    ) -> None:
        self.capacity = capacity
        self._encode = codec.encode
        self._trouble = trouble
        self._lock = threading.RLock()
        self._last_indices = (head, head)
        self._count = ffi.new("uint64_t *")
        ring = _allocate("ipcq_sender *", lib.ipcq_sender_size(), own.at, peer.at)
        lib.ipcq_sender_init(ring, own.at, peer.at, capacity, codec.size, bell, head)
        self._ring: Any = ring

    def try_push(self, record: Any) -> bool:
        """Publish one record; False if there is no space.  Raises BadRecord."""
        data = self._encode(record)
        if type(data) is bytes:
            with self._lock:
                ring = self._ring
                code = CLOSED if ring is None else _push(ring, data)
        else:
            # Released, not left to the garbage collector: see try_push_many.
            with ffi.from_buffer(data) as buffer, self._lock:
                ring = self._ring
                code = CLOSED if ring is None else _push(ring, buffer)
        if not code:
            return True
        if code == FULL:
            return False
        self._trouble(code)

    def try_push_many(self, records: Any, count: int) -> int:
        """Publish the first of `count` encoded records, as many as fit; return how many."""
        # Released before anything is raised: kept in a traceback that is part of a cycle, a buffer
        # of cffi over a memoryview crashes the garbage collector (cffi 2.1, CPython 3.11).
        with ffi.from_buffer(records) as data, self._lock:
            ring = self._ring
            code = CLOSED if ring is None else _push_many(ring, data, count, self._count)
            done = int(self._count[0])
        if not code:
            return done
        if code == FULL:
            return 0
        self._trouble(code)

    def spin(self, nanoseconds: int) -> bool:
        """Look for space for a while."""
        ring = self._ring
        return ring is None or lib.ipcq_spin_space(ring, nanoseconds) == DONE

    def arm(self) -> bool:
        """Ask for a doorbell when there is space; False if there is no need to sleep."""
        ring = self._ring
        return ring is not None and lib.ipcq_arm_space(ring) == FULL

    def disarm(self) -> None:
        """Take that back."""
        ring = self._ring
        if ring is not None:
            lib.ipcq_disarm_space(ring)

    def indices(self) -> tuple[int, int]:
        """Return the records published, and those of them taken by the peer; also once closed."""
        return _indices(self, lib.ipcq_sender_indices)

    def close(self) -> None:
        """Let go of memory and socket.  A push in progress ends first."""
        with self._lock:
            self._last_indices = _indices(self, lib.ipcq_sender_indices)
            ring, self._ring = self._ring, None
            if ring is not None:
                lib.ipcq_sender_silence(ring)


class RingReceiver:
    """The receiving end of a ring: records out, without waiting.

    A record that the core has copied out is gone from the ring, so from there on no exception
    between two bytecodes may lose it.  `_delivered` counts what was handed on; it is written
    after the record is ready, by a bytecode that cannot be interrupted.  Where it stays behind,
    the core notices at the next call and takes nothing: what it took earlier still stands in
    `_buffer`, and moves to `_stash`, which is served first.

    A record put back that way wakes nobody: a thread that sleeps already finds it when the next
    doorbell rings, or after its slice of time.
    """

    def __init__(
        self,
        own: Mapping,
        peer: Mapping,
        capacity: int,
        codec: Codec,
        bell: int,
        trouble: Callable[[int], NoReturn],
        tail: int = 0,
    ) -> None:
        self.capacity = capacity
        self._codec = codec
        self._size = codec.size
        self._decode = codec.decode
        self._trouble = trouble
        self._lock = threading.RLock()
        self._last_indices = (tail, tail)
        self._count = ffi.new("uint64_t *")
        self._delivered = tail
        self._stash = b""
        self._new_buffer(1)
        ring = _allocate("ipcq_receiver *", lib.ipcq_receiver_size(), own.at, peer.at)
        lib.ipcq_receiver_init(ring, own.at, peer.at, capacity, codec.size, bell, tail)
        self._ring: Any = ring

    def _new_buffer(self, records: int) -> None:
        buffer = ffi.new("char[]", records * self._size)
        view = memoryview(ffi.buffer(buffer)).cast("B")
        one = view[: self._size]
        self._buffer, self._view, self._one, self._room = buffer, view, one, records

    def try_pop(self) -> Any:
        """Take one record; None if there is none."""
        record = None
        try:
            with self._lock:
                record = self._next()
        except BaseException:
            if record is not None:  # it struck while the lock was released
                self._put_back(bytes(self._codec.encode(record)))
            raise
        return record

    def _next(self) -> Any:
        """Take one record under the lock: it is taken exactly if this returns."""
        ring = self._ring
        if ring is None or self._stash:
            return self._next_held()
        before = self._delivered
        code = _pop(ring, self._buffer, 1, before, self._count)
        if code == EMPTY:
            return None
        if code:
            self._recover(code)
            return self._next_held()
        try:
            record = self._decode(self._one)
        except Exception:
            self._delivered = before + 1  # the error is all that this record will ever give
            raise
        if self._delivered == before:
            self._delivered = before + 1
            return record
        return self._next_held()  # a signal handler has used this end meanwhile

    def _next_held(self) -> Any:
        if self._ring is None:
            self._trouble(CLOSED)
        size = self._size
        data, rest = self._stash[:size], self._stash[size:]
        if not data:
            return self._next()
        try:
            record = self._decode(data)
        except Exception:
            self._stash = rest
            raise
        self._stash = rest
        return record

    def _recover(self, code: int) -> None:
        """Stash what the core has copied out and nobody was given; any other code is trouble."""
        if code != _AGAIN:
            self._trouble(code)
        count = int(self._count[0])
        stash = self._stash + bytes(self._view[: count * self._size])
        # No bytecode between these two stores can be interrupted.
        self._stash, self._delivered = stash, self._delivered + count

    def _put_back(self, data: bytes | bytearray) -> None:
        with self._lock:
            self._stash = bytes(data) + self._stash

    def try_pop_many(self, limit: int) -> Any:
        """Take up to `limit` records and no more than a ringful; empty if there are none."""
        data = bytearray()
        try:
            with self._lock:
                self._collect(data, min(limit, self.capacity))
            return self._decode_many(data)
        except Exception:
            raise
        except BaseException:
            self._put_back(data)
            raise

    def _collect(self, data: bytearray, limit: int) -> None:
        """Append the bytes of up to `limit` records to `data`, which owns them from then on."""
        self._make_room(limit)
        size = self._size
        while len(data) < limit * size:
            missing = limit * size - len(data)
            if self._stash:
                taken, rest = self._stash[:missing], self._stash[missing:]
                data += taken
                self._stash = rest
                continue
            ring, wanted = self._ring, min(missing // size, self._room)
            if ring is None:
                self._trouble(CLOSED)
            code = _pop(ring, self._buffer, wanted, self._delivered, self._count)
            if code == EMPTY or (code and code != _AGAIN and data):
                return  # trouble will still be there when these are gone
            if code:
                self._recover(code)
                continue
            count = int(self._count[0])
            got = self._view[: count * size]
            data += got
            self._delivered += count
            if count < wanted:
                return

    def _make_room(self, limit: int) -> None:
        """Enlarge the buffer for batches, once; idle ends do not pay for it."""
        wanted = min(limit, self.capacity, max(1, _BATCH_BYTES // self._size))
        if wanted <= self._room or self._ring is None:
            return
        code = _pop(self._ring, self._buffer, 0, self._delivered, self._count)
        if code == _AGAIN:
            self._recover(code)
        self._new_buffer(wanted)

    def _decode_many(self, data: bytearray) -> Any:
        """Decode a batch; if one record cannot be decoded, only that one is lost."""
        size = self._size
        count = len(data) // size
        try:
            return self._codec.decode_many(data, count)
        except Exception:
            for i in range(count):
                try:
                    self._decode(bytes(data[i * size : (i + 1) * size]))
                except Exception:
                    good = data[: i * size]
                    self._put_back(data[i * size :] if good else data[size:])
                    if good:
                        return self._codec.decode_many(good, i)
                    raise
            raise

    def spin(self, nanoseconds: int) -> bool:
        """Look for records for a while."""
        ring = self._ring
        return ring is None or lib.ipcq_spin_records(ring, nanoseconds) == DONE

    def arm(self) -> bool:
        """Ask for a doorbell when there is a record; False if there is no need to sleep."""
        ring = self._ring
        if ring is None or self._stash or lib.ipcq_undelivered(ring, self._delivered):
            return False
        return bool(lib.ipcq_arm_records(ring) == EMPTY)

    def disarm(self) -> None:
        """Take that back."""
        ring = self._ring
        if ring is not None:
            lib.ipcq_disarm_records(ring)

    def indices(self) -> tuple[int, int]:
        """Return the records published by the peer, and those taken; also once closed."""
        return _indices(self, lib.ipcq_receiver_indices)

    def close(self) -> None:
        """Let go of memory and socket.  A pop in progress ends first."""
        with self._lock:
            self._last_indices = _indices(self, lib.ipcq_receiver_indices)
            ring, self._ring = self._ring, None
            if ring is not None:
                lib.ipcq_receiver_silence(ring)


def _indices(end: RingSender | RingReceiver, call: Any) -> tuple[int, int]:
    """Return (head, tail); once closed, as they were then, so that one can still tell."""
    head, tail = ffi.new("uint64_t *"), ffi.new("uint64_t *")
    with end._lock:  # noqa: SLF001 (one module, two ends)
        ring = end._ring  # noqa: SLF001
        if ring is None:
            return end._last_indices  # noqa: SLF001
        code = call(ring, head, tail)
    if code == FORKED:
        end._trouble(code)  # noqa: SLF001
    # A corrupt peer's index was not taken over; that it is corrupt, the next record tells.
    return int(head[0]), int(tail[0])
