"""The only module that calls the C core: segments in memory, and the two ends of a ring.

Threads: the core wants one caller at a time for each end, and cffi releases the GIL, so each
end has a lock.  It is re-entrant, because a signal handler may interrupt its own thread inside
and use the same end.

Exceptions between bytecodes (Ctrl-C): what the core does is complete when it returns, wake-up
included, so an interrupted push has happened or has not.  A pop is more delicate, since the
record lives only in this process from then on; see RingReceiver.

The file is long because nothing else may call the core; half of it is RingReceiver, most of whose
lines are about exceptions and signal handlers between two bytecodes.
"""

from __future__ import annotations

import errno
import os
import threading
import weakref
from collections import deque
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

_U64 = (1 << 64) - 1  # indices are u64, also where they wrap
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


class Mapping:
    """A segment in memory, unmapped when the last one that holds this object lets go."""

    def __init__(self, size: int = 0) -> None:
        self.at: Any = None  # nothing, until map_segment has filled it
        self.size = size

    def __del__(self, unmap: Any = lib.ipcq_unmap) -> None:
        if self.at is not None:
            unmap(self.at, self.size)

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


def map_segment(fd: int, size: int, *, writable: bool) -> Mapping:
    """Map a segment with all its pages; raise OSError if memory is short or seals forbid."""
    mapping = Mapping(size)
    # One call of C code, as an exception in between would lose an address that nobody holds yet.
    deque(
        map(setattr, (mapping,), ("at",), map(lib.ipcq_map, (fd,), (size,), (writable,))), maxlen=0
    )
    if mapping.at == ffi.NULL:
        code, mapping.at = ffi.errno, None
        if code == errno.EFAULT:  # what MADV_POPULATE says where a touch would be SIGBUS
            code = errno.ENOMEM
        raise OSError(code, f"mapping a segment of {size} bytes: {os.strerror(code)}")
    return mapping


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
        ring = _allocate("ipcq_sender *", lib.ipcq_sender_size(), own, peer)
        lib.ipcq_sender_init(ring, own.at, peer.at, capacity, codec.size, bell, head)
        self._ring: Any = ring
        renewed_after_fork(self)

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

    def renew_locks(self) -> None:
        """In a forked child: forget who held them."""
        self._lock = threading.RLock()

    def indices(self) -> tuple[int, int]:
        """Return the records published, and those of them taken by the peer; also once closed."""
        return _indices(self, lib.ipcq_sender_indices)

    def close(self) -> None:
        """Let go of memory and socket.  A push in progress ends first."""
        with self._lock:
            _look(self, lib.ipcq_sender_indices)
            ring, self._ring = self._ring, None
            if ring is not None:
                lib.ipcq_sender_silence(ring)


class _TroubleError(Exception):
    """Carries a result of the core out of a lock: what is made of it takes other locks."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class RingReceiver:
    """The receiving end of a ring: records out, without waiting.

    A record that the core has copied out is gone from the ring, so from there on no exception
    between two bytecodes (Ctrl-C) may lose it, and no signal handler that uses this end in
    between may disturb it.  Hence three places before the caller, served in reverse order:

    - `_buffer`: what the core copied out.  `_delivered` counts what has left it; where that stays
      behind the core's own count, the next call finds out (AGAIN) and moves the rest to
    - `_stash`: raw records, which were taken and not handed on; and
    - `_kept`: decoded records, which were about to be handed on when an exception struck.

    Moves are made of bytecodes between which CPython looks for no signal (it does after calls, at
    the start of functions and when jumping back), right after a test that nobody else has moved
    anything meanwhile.

    A record put back wakes nobody: a thread that sleeps already finds it when the next doorbell
    rings, or after its slice of time.
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
        self._kept: list[Any] = []
        self._new_buffer(1)
        ring = _allocate("ipcq_receiver *", lib.ipcq_receiver_size(), own, peer)
        lib.ipcq_receiver_init(ring, own.at, peer.at, capacity, codec.size, bell, tail)
        self._ring: Any = ring
        renewed_after_fork(self)

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
        except _TroubleError as trouble:
            code = trouble.code
        except BaseException:
            if record is not None:  # it struck while the lock was released
                self._keep([record])
            raise
        else:
            return record
        self._trouble(code)

    def _keep(self, records: list[Any]) -> None:
        with self._lock:
            self._kept = records + self._kept

    def _next(self) -> Any:  # noqa: C901 (three places, one loop)
        """Take one record under the lock: it is taken exactly if this returns."""
        while True:
            if self._kept:
                record = self._kept[0]
                del self._kept[0]
                return record
            if self._stash:
                stash = self._stash
                record = self._decode_stashed(stash)
                if self._stash is stash:
                    self._stash = stash[self._size :]
                    return record
                continue
            ring, before = self._ring, self._delivered
            if ring is None:
                raise _TroubleError(CLOSED)
            code = _pop(ring, self._buffer, 1, before, self._count)
            if code == EMPTY:
                return None
            if code:
                self._recover(code, before)
                continue
            try:
                record = self._decode(self._one)
            except Exception:
                # What fails again will never give anything but its error; else it was not its
                # fault, but that of a signal handler.
                if self._fails(self._one) and self._delivered == before:
                    self._delivered = (before + 1) & _U64
                raise
            if self._delivered == before:
                self._delivered = (before + 1) & _U64
                return record

    def _decode_stashed(self, stash: bytes) -> Any:
        first = stash[: self._size]
        try:
            return self._decode(first)
        except Exception:
            if self._fails(first) and self._stash is stash:
                self._stash = stash[self._size :]
            raise

    def _fails(self, data: bytes | memoryview) -> bool:
        """Whether a record cannot be decoded."""
        try:
            self._decode(data)
        except Exception:  # noqa: BLE001 (whatever a user's class may raise)
            return True
        return False

    def _recover(self, code: int, before: int) -> None:
        """Stash what the core has copied out and nobody was given; any other code is trouble."""
        if code != _AGAIN:
            raise _TroubleError(code)
        count = int(self._count[0])
        data = bytes(self._view[: count * self._size])
        if self._delivered == before:
            self._stash, self._delivered = self._stash + data, (before + count) & _U64

    def try_pop_many(self, limit: int) -> Any:
        """Take up to `limit` records and no more than a ringful; None if there are none."""
        limit = min(limit, self.capacity)
        size = self._size
        kept: list[Any] = []
        data = bytearray()  # what to put back if an exception strikes
        try:
            with self._lock:
                if self._kept:
                    kept, self._kept = self._kept[:limit], self._kept[limit:]
                else:
                    self._collect(data, limit)
            if kept:
                return self._as_batch(kept)
            if not data:
                return None
            try:
                return self._codec.decode_many(data, len(data) // size)
            except Exception:
                good = self._good(data)
                if good == len(data):  # no record's fault
                    raise
                if good == 0:  # only the first is lost: there is nothing else to say of it
                    data = data[size:]
                    raise
                with self._lock:
                    self._stash, data = bytes(data[good:]) + self._stash, data[:good]
                return self._codec.decode_many(data, good // size)
        except _TroubleError as trouble:
            code = trouble.code
        except BaseException:
            self._keep(kept)
            with self._lock:
                self._stash = bytes(data) + self._stash
            raise
        self._trouble(code)

    def _as_batch(self, records: list[Any]) -> Any:
        """Return decoded records in the form of a batch."""
        if isinstance(self._codec.decode_many(b"", 0), list):
            return records
        buffer, count = self._codec.encode_many(records)
        return self._codec.decode_many(buffer, count)

    def _collect(self, data: bytearray, limit: int) -> None:
        """Append the bytes of up to `limit` records to `data`, which owns them from then on."""
        if self._ring is None:
            raise _TroubleError(CLOSED)
        self._make_room(limit)
        size = self._size
        while len(data) < limit * size:
            missing = limit * size - len(data)
            before = self._delivered  # ahead of the look at the stash, which it covers
            if self._stash:
                stash = self._stash
                taken, rest = stash[:missing], stash[missing:]
                data += taken
                self._stash = rest
                continue
            ring, wanted = self._ring, min(missing // size, self._room)
            if ring is None:
                return
            code = _pop(ring, self._buffer, wanted, before, self._count)
            if code == EMPTY or (code and code != _AGAIN and data):
                return  # trouble will still be there when these are gone
            if code:
                self._recover(code, before)
                continue
            count = int(self._count[0])
            got = self._view[: count * size]
            if self._delivered != before:
                continue
            data += got
            self._delivered = (before + count) & _U64
            if count < wanted:
                return

    def _make_room(self, limit: int) -> None:
        """Enlarge the buffer for batches, once; idle ends do not pay for it."""
        wanted = min(limit, self.capacity, max(1, _BATCH_BYTES // self._size))
        if wanted <= self._room or self._ring is None:
            return
        before = self._delivered
        code = _pop(self._ring, self._buffer, 0, before, self._count)
        if code == _AGAIN:
            self._recover(code, before)
        self._new_buffer(wanted)

    def _good(self, data: bytearray) -> int:
        """Return how many bytes of records stand before the first that cannot be decoded."""
        at = 0
        while at < len(data) and not self._fails(bytes(data[at : at + self._size])):
            at += self._size
        return at

    def spin(self, nanoseconds: int) -> bool:
        """Look for records for a while."""
        ring = self._ring
        return ring is None or lib.ipcq_spin_records(ring, nanoseconds) == DONE

    def arm(self) -> bool:
        """Ask for a doorbell when there is a record; False if there is no need to sleep."""
        ring = self._ring
        if ring is None or self._kept or self._stash:
            return False
        if lib.ipcq_undelivered(ring, self._delivered):
            return False
        return bool(lib.ipcq_arm_records(ring) == EMPTY)

    def disarm(self) -> None:
        """Take that back."""
        ring = self._ring
        if ring is not None:
            lib.ipcq_disarm_records(ring)

    def renew_locks(self) -> None:
        """In a forked child: forget who held them."""
        self._lock = threading.RLock()

    def indices(self) -> tuple[int, int]:
        """Return the records published by the peer, and those taken; also once closed."""
        return _indices(self, lib.ipcq_receiver_indices)

    def close(self) -> None:
        """Let go of memory and socket.  A pop in progress ends first."""
        with self._lock:
            _look(self, lib.ipcq_receiver_indices)
            ring, self._ring = self._ring, None
            if ring is not None:
                lib.ipcq_receiver_silence(ring)


def _indices(end: RingSender | RingReceiver, call: Any) -> tuple[int, int]:
    """Return (head, tail); once closed, as they were then, so that one can still tell."""
    with end._lock:  # noqa: SLF001 (one module, two ends)
        code = _look(end, call)
    if code == FORKED:
        end._trouble(code)  # noqa: SLF001
    # An impossible index was not taken over; that it came, the next push or pop says.
    return end._last_indices  # noqa: SLF001


def _look(end: RingSender | RingReceiver, call: Any) -> int:
    """Note the indices as they are, unless the end is closed; return the core's result."""
    ring = end._ring  # noqa: SLF001
    if ring is None:
        return DONE
    head, tail = ffi.new("uint64_t *"), ffi.new("uint64_t *")
    code = int(call(ring, head, tail))
    end._last_indices = int(head[0]), int(tail[0])  # noqa: SLF001
    return code


# Every end, for the child of a fork: a lock may be held there by a thread that does not exist.
_ends: weakref.WeakSet[Any] = weakref.WeakSet()


def renewed_after_fork(thing: Any) -> None:
    """Call thing.renew_locks() in every forked child, as long as it lives."""
    _ends.add(thing)


def _renew_all() -> None:
    for each in list(_ends):
        each.renew_locks()


os.register_at_fork(after_in_child=_renew_all)
