"""The C core from Python: segments in memory, and what the ends of any ring have in common.

_slots and _frames, the two shapes of ring, _outside and _loan build on it; nobody else calls the
core.

Threads: a step of Python here is several calls of the core, between which other threads may run,
so each end has a lock; a single call of the core keeps the GIL (_build.py) and needs none.  The
lock is re-entrant, because a signal handler may interrupt its own thread inside and use the same
end.

Exceptions between bytecodes (Ctrl-C): what the core does is complete when it returns, wake-up
included, so an interrupted push has happened or has not.  A pop is more delicate, since the
record lives only in this process from then on; see Call.

The file is long because both ends of both shapes are described here once, with what they share.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
import weakref
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Protocol, TypeAlias

import fdpass

from ._core import ffi, lib
from ._errors import ConcurrentUse, ForkedUse, LoanError
from ._handshake import MAGIC, Identity
from ._processors import processors_allowed
from ._sending import BatchSending
from ._waiting import lib as waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager

    from ._bounds import Budget
    from ._message import Received
    from ._process import Process

DONE: int = lib.IPCQ_DONE
FULL: int = lib.IPCQ_FULL
EMPTY: int = lib.IPCQ_EMPTY
GONE: int = lib.IPCQ_GONE
FORKED: int = lib.IPCQ_FORKED
CORRUPT: int = lib.IPCQ_CORRUPT
AGAIN: int = lib.IPCQ_AGAIN
STUCK: int = lib.IPCQ_STUCK
ERROR: int = lib.IPCQ_ERROR
CLOSED = 100  # ours: the end was closed on this side

U64 = (1 << 64) - 1  # indices are u64, also where they wrap
MAX_SLOT_SIZE: int = lib.IPCQ_MAX_SLOT_SIZE
SLOTS: int = lib.IPCQ_SLOTS
FRAMES: int = lib.IPCQ_FRAMES

fork_generation: Callable[[], int] = lib.ipcq_fork_generation
is_socket: Callable[[int], int] = lib.ipcq_is_socket


class Counts(NamedTuple):
    """Counters of one role, kept in its owner's segment."""

    doorbells: int
    waits: int
    refused: int
    last_active_ns: int


class Mapping(fdpass.Owner):
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


class _Memory(fdpass.Owner, bytearray):
    kept: object = None


class Trouble(Protocol):
    """What an end calls for every result that is neither done nor a matter of waiting."""

    def __call__(self, code: int, message: str = "") -> NoReturn:
        """Raise; `message` says more about CORRUPT."""


class TroubleError(Exception):
    """Carries a result of the core out of a lock: what is made of it takes other locks."""

    def __init__(self, code: int, *message: str) -> None:
        super().__init__(code, *message)
        self.code = code


class Lent(NamedTuple):
    """A piece of the incoming ring, in place."""

    memory: Any  # owned or borrowed by cffi, and kept alive by views of it
    offset: int
    size: int  # bytes
    tag: int
    flags: int


class Patience(NamedTuple):
    """How long an end looks for what is about to come before it sleeps."""

    nanoseconds: int
    adaptive: bool  # less while it does not pay
    yields: bool = False  # lets others run after each look, and keeps no interpreter


# Records that a loop takes at once, ahead of its body.  A guess: enough to spread what taking costs
# over, and few to lose where the receiver dies.
MOST_AHEAD = 64

LARGE: int = lib.IPCQ_LARGE
MOST_BYTES: int = lib.IPCQ_MOST_BYTES
MOST_SPIN_NS: int = lib.IPCQ_MOST_SPIN_NS
FOR_EVER = 1 << 63  # nanoseconds
BUSY = Patience(FOR_EVER, False)
ADAPTIVE = Patience(lib.IPCQ_SPIN_NS, True)  # on a single processor the core does not look

FEWEST_PROCESSORS = 2  # that looking needs: one for each side


def suited(patience: Patience, *, shares: bool) -> Patience:
    """Return how an end looks whose peer `shares` this interpreter, or which may share a processor.

    A peer that is a thread of this process needs the interpreter, and a system that allows this one
    less than two processors stops it for a while when it looks.  So an adaptive end sleeps at once;
    one that was told to look goes on doing so, and lets others run after each look.
    """
    if not shares and processors_allowed() >= FEWEST_PROCESSORS:
        return patience
    return Patience(0, False) if patience.adaptive else patience._replace(yields=True)


class Place(NamedTuple):
    """Where a ring is, and what it counts in."""

    capacity: int  # units
    unit: int  # bytes of one
    bell: int  # the socket to ring the peer's doorbell on
    start: int = 0  # the index to begin with
    patience: Patience | None = None  # None: as is best
    process: Process | None = None  # of the peer


copy_memory: Callable[[Any, Any, int], None] = waiting.ipcq_copy
"""copy_memory(to, from, size): while other Python threads run.

It is C, since a signal handler can come at the beginning of a function of Python: between the look
whether this memory is still the caller's to write, and the copy, nothing may come.
"""


def address_of(pointer: Any) -> int:
    """Return where a pointer of the core points."""
    return int(ffi.cast("uintptr_t", pointer))


def offset_in(memory: Any, at: Any) -> int:
    """Return where a pointer of the core points, from the beginning of memory."""
    return int(at - memory)


class Views(fdpass.Owner):
    """Views of shared memory that were handed out, and must be gone before it is used again.

    A memoryview can be released, but not the slices and arrays made of it.  They all keep alive
    the exporter below them, so a weak reference to that tells whether any is left.
    """

    def __init__(self) -> None:
        self._exporters: list[weakref.ref[Any]] = []
        self.arrays = False
        """Whether numpy arrays were handed out: memory of an array cannot be released by a call."""

    def new(self, memory: Any, offset: int, size: int) -> memoryview:
        """Return a writable view of a part of memory, which it keeps alive."""
        exporter = ffi.buffer(memory, offset + size)
        self._exporters.append(weakref.ref(exporter))
        return memoryview(exporter)[offset:]

    def left(self) -> int:
        """Return how many views of before still have users."""
        if self._exporters:
            self._exporters = [each for each in self._exporters if each() is not None]
        return len(self._exporters)

    def check(self, outcome: str) -> None:
        """Raise LoanError if there are any; `outcome` says what that meant for the records."""
        if count := self.left():
            pieces = "one view" if count == 1 else f"views of {count} messages"
            how = (
                "the array that was handed out, or one made of it (a slice, a field, a reshaped one): "
                "`del` every name and every container that holds one, inside the block"
                if self.arrays
                else "a slice or a cast of the memoryview that was handed out, or a numpy array made "
                "of it: release() the memoryview, `del` the array, inside the block"
            )
            raise LoanError(
                f"{outcome}: {pieces} of lent memory outlived the block, and this end refuses to work "
                f"until that is gone. It is {how}; to keep the values, copy them (bytes(), .copy())"
            )


class End(fdpass.Owner):
    """One end of a ring of either shape: the core's struct, who may use it now, and its views.

    While its memory is lent to the application, the ring is parked, and every other use fails: also
    by a signal handler, while memory is being lent or taken back.  Where the loan or the borrowing
    itself is gone, an exception (Ctrl-C) has kept its block from beginning or from ending, and it
    is given back.
    """

    _look_call: Any

    def __init__(self, place: Place, ring: Any, memory: Mapping, trouble: Trouble) -> None:
        self.capacity = place.capacity
        self._last_indices = (place.start, place.start)
        self._trouble = trouble
        self._lock = threading.RLock()
        self._ring: Any = ring
        self._memory: Any = memory.at  # of the slots or frames that it shows in place
        self._generation = fork_generation()
        self._parked: Any = None
        self._borrower: weakref.ref[Any] | None = None
        self._views = Views()
        fdpass.renewed_after_fork(self)

    def renew_locks(self) -> None:
        """In a forked child: forget who held them."""
        self._lock = threading.RLock()

    def _usable(self) -> Any:
        """Return the ring if it can be used after all, None if it is closed.

        For when `_ring` is None.  Raises ConcurrentUse or LoanError while memory is lent.
        """
        if self._parked is None:
            return self._ring
        if fork_generation() != self._generation:
            raise ForkedUse("this end belongs to the parent process; a child may only close it")
        if self._borrower is not None:
            if self._borrower() is not None:
                raise ConcurrentUse("another loan or borrowing is open at this end")
            self._forget()
        self._views.check("this call has done nothing")
        if self._parked is not None:  # else a signal handler has done it meanwhile
            self._ring, self._parked = self._parked, None
        return self._ring

    def _forget(self) -> None:
        """Take lent memory back as if nothing had been done with it, once its views are gone."""
        self._borrower = None

    def _unpark(self, ring: Any) -> None:
        """Use the ring again, as nothing of it was lent after all."""
        if self._parked is ring:  # else a signal handler has closed it
            self._ring, self._parked, self._borrower = ring, None, None

    def view(self, memory: Any, offset: int, size: int, *, arrays: bool = False) -> memoryview:
        """Return a writable view of a part of lent memory, perhaps to make an array of."""
        self._views.arrays = arrays
        return self._views.new(memory, offset, size)

    def _indices(self) -> tuple[int, int]:
        """Return (head, tail); once closed, as they were then, so that one can still tell."""
        with self._lock:
            code = self._note_indices()
        if code == FORKED:
            self._trouble(code)
        # An impossible index was not taken over; that it came, the next push or pop says.
        return self._last_indices

    def _note_indices(self) -> int:
        """Note the indices as they are, unless this end is closed; return the core's result."""
        ring = self._parked if self._ring is None else self._ring
        if ring is None:
            return DONE
        head, tail = ffi.new("uint64_t *"), ffi.new("uint64_t *")
        code = int(self._look_call(ring, head, tail))
        self._last_indices = int(head[0]), int(tail[0])
        return code

    def _withdraw(self) -> Any:
        """Return the ring for the last time."""
        with self._lock:
            self._note_indices()
            ring = self._parked if self._ring is None else self._ring
            self._ring = self._parked = self._memory = None
        return ring


class Call:
    """One call that receives: what it has taken stands in `_hands` of its end, under its name.

    It stays there while it is decoded, and until the very step in which it is returned: a store
    and a return, with nothing between at which CPython looks for signals.  So an exception of a
    signal handler (Ctrl-C) finds it there wherever it strikes, and there is nothing to recover.  How
    a call ends is a single store, `over`, by which its handler of exceptions begins: no second one
    can strike before it: from then on what still stands under its name is anybody's, and the next
    call that receives gets it.
    """

    __slots__ = ("over",)  # so that no store needs memory

    over: bool  # set to False by its maker, which is faster than a constructor


OVER = Call()
OVER.over = True
"""What stands under its name in `_hands` is anybody's."""

Hands: TypeAlias = list[tuple[Call, Any]]


class SenderEnd(End):
    """What the sending ends of both shapes of ring share."""

    _look_call = lib.ipcq_sender_indices

    def __init__(self, own: Mapping, peer: Mapping, place: Place, trouble: Trouble) -> None:
        ring = allocate("ipcq_sender *", lib.ipcq_sender_size(), own.at, peer.at)
        lib.ipcq_sender_init(
            ring, own.at, peer.at, place.capacity, place.unit, place.bell, place.start
        )
        if place.process is not None:
            lib.ipcq_sender_watch(ring, place.process.fileno())
        patience = place.patience or ADAPTIVE
        lib.ipcq_sender_patience(ring, *patience)
        super().__init__(place, ring, own, trouble)

    def try_push(self, record: Any) -> bool:
        """Publish one record; False if there is no space.  Raises BadRecord."""
        raise NotImplementedError

    def parcel(
        self, record: Any, fds: Iterable[Any] | None = None, regions: Iterable[Any] | None = None
    ) -> AbstractContextManager[Any]:
        """Encode a record, to try more than once; raise BadRecord if it cannot be sent."""
        raise NotImplementedError

    def try_send(self, parcel: Any) -> bool | None:
        """Publish what was encoded; False if there is no space, None if the socket is full."""
        raise NotImplementedError

    def units(self, parcel: Any) -> int:
        """Return the space to wait for when there was none for this parcel."""
        raise NotImplementedError

    def batch(self, records: Iterable[Any]) -> Any:
        """Encode records, `count` of them; raise BadRecord if one of them cannot be sent."""
        raise NotImplementedError

    def push_many(self, records: Iterable[Any]) -> int | BatchSending:
        """Encode records, and publish at once what that can be done with; raise as batch().

        Return how many if that was all of them, else what is still to be done.
        """
        return BatchSending(self, self.batch(records))

    def parcel_in(self, batch: Any, start: int) -> AbstractContextManager[Any] | None:
        """Return record number `start` of a batch as a parcel if it must be sent by itself."""
        raise NotImplementedError

    def try_push_many(self, batch: Any, start: int) -> int:
        """Publish records from number `start` on, as many as fit; return how many.

        The first of them need not be sent by itself.
        """
        raise NotImplementedError

    def units_of(self, batch: Any, start: int) -> int:
        """Return the space to wait for when there was none for the rest of the batch."""
        raise NotImplementedError

    def lend_space(self, units: int, borrower: object) -> tuple[Any, int, int] | None:
        """Lend the memory of the next `units`; None if it is not there.

        Returns the segment, the offset in it, and how many of the units are contiguous.
        Everything else fails until end_loan(), or until `borrower` is gone.
        """
        code, lent, reference = CLOSED, None, weakref.ref(borrower)
        with self._lock:
            ring = self._ring if self._ring is not None else self._usable()
            memory = self._memory
            if ring is not None:
                self._parked, self._ring, self._borrower = ring, None, reference
                try:
                    at, run = ffi.new("char **"), ffi.new("uint64_t *")
                    code = lib.ipcq_reserve(ring, units, at, run)
                    lent = None if code else (memory, offset_in(memory, at[0]), int(run[0]))
                finally:
                    if lent is None:
                        self._unpark(ring)
        if code and code != FULL:
            self._trouble(code)
        return lent

    def end_loan(self, commit: Callable[[Any], int] | None) -> None:
        """Take the memory back, and publish with `commit(ring)` unless that is None.

        Raises LoanError, and publishes nothing, while views of it are left.
        """
        code = DONE
        with self._lock:
            ring = self._parked
            try:
                if commit is not None:
                    self._views.check("nothing was published of this loan")
                    code = CLOSED if ring is None else commit(ring)
            finally:
                self._forget()
            self._usable()
        if code:
            self._trouble(code)

    @property
    def enough(self) -> int:
        """The space that is enough for any record."""
        return 1

    def has_space(self, units: int = 1) -> bool:
        """Whether there is space; also for what else there is no need to wait for."""
        ring = self._ring
        return ring is None or waiting.ipcq_spin_space(ring, units, 0) == DONE

    def look(self, units: int) -> bool:
        """Look for space as long as that is worth it."""
        ring = self._ring
        return ring is None or waiting.ipcq_await_space(ring, units) == DONE

    def arm(self, units: int = 1) -> bool:
        """Ask for a doorbell when there is space; False if there is no need to sleep."""
        ring = self._ring
        return ring is not None and lib.ipcq_arm_space(ring, units) == FULL

    def disarm(self) -> None:
        """Take that back."""
        ring = self._ring
        if ring is not None:
            lib.ipcq_disarm_space(ring)

    def indices(self) -> tuple[int, int]:
        """Return the units published, and those of them taken by the peer; also once closed."""
        return self._indices()

    def close(self) -> None:
        """Let go of memory and socket.  A push in progress ends first."""
        ring = self._withdraw()
        if ring is not None:
            lib.ipcq_sender_silence(ring)


class ReceiverEnd(End):
    """What the receiving ends of both shapes of ring share."""

    _look_call = lib.ipcq_receiver_indices

    def __init__(self, own: Mapping, peer: Mapping, place: Place, trouble: Trouble) -> None:
        ring = allocate("ipcq_receiver *", lib.ipcq_receiver_size(), own.at, peer.at)
        lib.ipcq_receiver_init(
            ring, own.at, peer.at, place.capacity, place.unit, place.bell, place.start
        )
        patience = place.patience or ADAPTIVE
        self._keeps = not patience.yields
        lib.ipcq_receiver_patience(ring, *patience)
        super().__init__(place, ring, peer, trouble)
        self._hands: Hands = []  # replaced as a whole, never changed
        self._suspect: Any = None

    def _without(self, call: Call, *instead: tuple[Call, Any]) -> tuple[Hands, Hands]:
        """Return `_hands`, and what becomes of them when a call lets go of what it has.

        `instead` takes its place.  For the caller to store, if `_hands` are still the same: else a
        signal handler or another thread has changed them meanwhile.
        """
        hands, new = self._hands, []
        for each in hands:
            if each[0] is not call:
                new.append(each)
            else:
                new += instead
        return hands, new

    def _left_over(self) -> tuple[Hands, list[Any], Hands]:
        """Return `_hands`, what of them nobody holds any more, in order, and the rest."""
        hands, free, rest = self._hands, [], []
        for each in hands:
            if each[0].over:
                free.append(each[1])
            else:
                rest.append(each)
        return hands, free, rest

    def _gives_up(self, data: Any, error: BaseException, again: Callable[[], object]) -> bool:
        """Whether a record is given up that could not be decoded, because of `error`.

        `data` is what it is made of, and `again()` decodes it once more.  An error that does not come
        again, or not of the same type, was perhaps that of a signal handler: it is raised as it is,
        and the record stays.  So is what is no Exception, which may be a Ctrl-C or the end of a
        program, and a shortage of memory, which may be over later.  All this is for the first time:
        nothing else can be received until a record that never can be decoded is given up.
        """
        mild = isinstance(error, Exception) and not isinstance(error, MemoryError)
        suspect = self._is_suspect(data)
        if not mild and not suspect:
            self._suspect = data
            return False
        try:
            again()
        except Exception as second:  # noqa: BLE001 (whatever a function of the user)
            if mild and not suspect and type(second) is not type(error):
                self._suspect = data
                return False
            return not (mild and isinstance(second, MemoryError))
        except BaseException as second:
            if type(second) is type(error):
                return True
            raise
        return False

    def _is_suspect(self, data: Any) -> bool:
        """Whether decoding it, or a batch that it was in, has ended in no mere Exception before."""
        return bool(self._suspect == data)

    dropped = 0
    """How many attachments were closed because nobody took them."""

    in_steps = False
    """Whether an attempt copies only a piece of a large message, as an event loop waits for it."""

    @property
    def unfinished(self) -> bool:
        """Whether a large message is copied in part: the next attempts go on, without any waiting."""
        return False

    @property
    def lacking(self) -> int | None:
        """Where the message begins whose descriptors are still in the socket; None if none is."""
        return None

    def most_at_once(self) -> int:
        """Return how many records to take at most where the caller has no limit."""
        raise NotImplementedError

    def prepare(self, limit: int, budget: Budget | None = None) -> None:
        """Do what can be done for the next `limit` records without taking them."""

    def try_pop(self) -> Any:
        """Take one record; None if there is none."""
        raise NotImplementedError

    def try_pop_many(self, limit: int, budget: Budget | None = None) -> Any:
        """Take up to `limit` records and no more than a ringful; None if there are none."""
        raise NotImplementedError

    def try_receive(self) -> Received | None:
        """Take one record as a message, with what is attached to it; None if there is none."""
        raise NotImplementedError

    ahead: list[Any] | None = None
    """The records that take_many() has taken, or a loop ahead of itself; whoever fetches them puts
    None there."""

    place = 0
    """Where in `ahead` the next one stands; those before it were handed out."""

    spins = False
    """Whether a patient loop, see ready(), looks for what is about to come."""

    def ready(self, patient: bool) -> Iterable[Any]:  # noqa: ARG002 (as in core/direct.c)
        """Return, for a loop, the records that can be taken the short way, one by one.

        `patient`: after looking for one as long as that is worth it.  A loop, since between its
        step and its variable CPython looks for no signal, as it does after each call.
        """
        return ()

    def pop_ready(self, limit: int, *, bounded: bool = False) -> Any:  # noqa: ARG002 (as in the direct ones)
        """Take up to `limit` records the short way; None if that is not to be had."""
        return None

    def take_many(self, limit: int, most_bytes: int = 0, many: int = 0) -> bool:  # noqa: ARG002 (as in core/direct.c)
        """Take up to `limit` the short way, into `ahead`; False if that is not to be had.

        About `most_bytes` at most, if stated; `many`, if stated, are enough even if others follow
        that are not to be had so.
        """
        return False

    def is_empty(self) -> bool:
        """Whether nothing waits, and the ring says of nothing wrong; False if that is not known."""
        return False

    def fetch_ahead(self, limit: int) -> list[Any] | None:
        """Return what take_many() has taken, or what a handler or another thread left of it.

        What stands in `ahead` by then may be what a loop has taken since, and more than `limit`:
        the rest stays there.
        """
        # No bytecode between these can be interrupted.
        records, place = self.ahead, self.place
        if records is None:
            return None
        if place or records[limit:]:
            records, rest = records[place : place + limit], records[place + limit :]
            self.ahead = rest or None
            self.place = 0
        else:
            self.ahead = None
        return records

    def is_quiet(self) -> bool:
        """Whether nothing waits, in ring and socket, and nothing is wrong; False if not known."""
        return False

    def looked(self) -> None:
        """Note that the socket was just looked at."""

    def all(self, receive: Callable[[], Any], end: type[BaseException]) -> Iterator[Any]:
        """Yield what `receive` returns until it raises `end`; perhaps taking some ahead."""
        try:
            while True:
                yield receive()
        except end:
            return

    def holds(self) -> bool:
        """Whether records wait in this process already."""
        raise NotImplementedError

    def lend_records(
        self, limit: int, borrower: object, *, bounded: bool = False
    ) -> list[Lent] | None:
        """Lend up to `limit` of what waits; None if nothing does.  `bounded`: see _bounds.py.

        Everything else fails until end_borrowing(), or until `borrower` is gone.
        """
        raise NotImplementedError

    def end_borrowing(self, *, take: bool) -> None:
        """Take the memory back, and free what was lent if it is to be taken."""
        raise NotImplementedError

    def has_records(self) -> bool:
        """Whether records wait in the ring; also for what else there is no need to wait for."""
        ring = self._ring
        return ring is None or waiting.ipcq_spin_records(ring, 0) == DONE

    def look(self) -> bool:
        """Look for records as long as that is worth it."""
        ring = self._ring
        return ring is None or waiting.ipcq_await_records(ring) == DONE

    def arm(self) -> bool:
        """Ask for a doorbell when there is a record; False if there is no need to sleep."""
        ring = self._ring
        if ring is None or self.holds():
            return False
        # What it lacks comes through the socket, too.
        return bool(lib.ipcq_arm_records(ring) == EMPTY) or self.lacking is not None

    def disarm(self) -> None:
        """Take that back."""
        ring = self._ring
        if ring is not None:
            lib.ipcq_disarm_records(ring)

    def indices(self) -> tuple[int, int]:
        """Return the units published by the peer, and those taken; also once closed."""
        return self._indices()

    def close(self) -> None:
        """Let go of memory and socket.  A pop in progress ends first."""
        ring = self._withdraw()
        if ring is not None:
            lib.ipcq_receiver_silence(ring)

    def drop_strays(self) -> None:
        """Close the descriptors of a message that its sender did not live to publish."""

    def discard(self) -> None:
        """Close the descriptors of messages that nobody will take; takes no lock."""
