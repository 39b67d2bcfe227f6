"""The sending end of a ring of slots: records of one size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Self

from ipcqueue import _direct
from ipcqueue._core import ffi, lib
from ipcqueue._errors import BadRecord, Unaccepted
from ipcqueue._records.messages import tuple_of

from .bounds import MOST_BYTES
from .codes import CLOSED, DONE, FULL, Trouble
from .memory import Mapping, address_of
from .sender import BatchSending, SenderEnd

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ipcqueue._records.codec import Codec

    from .end import Place

# Looking a function up in `lib` costs as much as calling it.
_push, _push_many = lib.ipcq_push, lib.ipcq_push_many
_new, _ONE = ffi.new, ffi.typeof("uint64_t *")  # and reading a type costs more than the rest of new


class Parcel(NamedTuple):
    """One record ready to go."""

    data: Any

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if type(self.data) is not bytes:
            ffi.release(self.data)  # see try_push_many


class Batch:
    """Encoded records, side by side."""

    def __init__(self, data: memoryview, count: int, whole: Any = None) -> None:
        self.data = data
        self.count = count
        # The same as bytes, if that is what they were encoded to: cffi passes it on as it is.
        self.whole = whole


class Pieces:
    """Records that need no encoding, each where it is."""

    def __init__(self, records: tuple[bytes, ...]) -> None:
        self.records = records
        self.count = len(records)


class SlotSender(_direct.SlotSender, SenderEnd):  # type: ignore[misc]
    """The sending end of a ring: records in, without waiting.

    try_push() is one call of C, see core/python; so is a batch of bytes, or an array.  Records of
    other kinds are encoded before.  `trouble(code)` is called for every result but done and full,
    and raises.
    """

    def __init__(
        self,
        own: Mapping,
        peer: Mapping,
        place: Place,
        codec: Codec,
        trouble: Trouble,
    ) -> None:
        super().__init__(own, peer, place, trouble)
        self._encode = codec.encode
        self._encode_many = codec.encode_many
        self._size = codec.size
        plain = isinstance(codec.spec, int)  # a record is its bytes
        self.shorten(address_of(self._ring), self._size, self._encode, plain)
        arrays: tuple[Any, Any] = codec.arrays or (None, None)
        self.array, self.dtype = arrays

    def push_slowly(self, record: Any) -> bool:
        """Do what try_push() does, where that is more than one call of C."""
        data = self._encode(record)
        if type(data) is bytes:
            with self._lock:
                ring = self._ring if self._ring is not None else self._usable()
                code = CLOSED if ring is None else _push(ring, data)
        else:
            with ffi.from_buffer(data) as buffer, self._lock:  # released: see try_push_many
                ring = self._ring if self._ring is not None else self._usable()
                code = CLOSED if ring is None else _push(ring, buffer)
        if not code:
            return True
        if code == FULL:
            return False
        self._trouble(code)

    def parcel(
        self, record: Any, fds: Iterable[Any] | None = None, regions: Iterable[Any] | None = None
    ) -> Parcel:
        """Encode a record to push; raise BadRecord if it is none."""
        try:
            attached = tuple_of("fds", fds) or tuple_of("regions", regions)
        except BadRecord as error:  # such as xmit(1, 2.5, 100)
            raise BadRecord(f"{error}; a record is one argument: xmit((1, 2.5, 100))") from None
        if attached:
            raise Unaccepted(
                "descriptors and memory regions go with messages (record=bytes), "
                "not with records of a fixed size"
            )
        data = self._encode(record)
        return Parcel(data if type(data) is bytes else ffi.from_buffer(data))

    def try_send(self, parcel: Any) -> bool:
        """Publish the record; False if there is no space."""
        with self._lock:
            ring = self._ring if self._ring is not None else self._usable()
            code = CLOSED if ring is None else _push(ring, parcel.data)
        if code in (DONE, FULL):
            return code == DONE
        self._trouble(code)

    def units(self, parcel: Any) -> int:  # noqa: ARG002 (as FrameSender)
        """Return the slots to wait for when there was none for this parcel."""
        return 1

    def push_many(self, records: Iterable[Any]) -> int | BatchSending:
        """Encode records and publish what fits; see SenderEnd."""
        done = self.push_all(records)
        if type(done) is int:
            return done
        if done is not None:
            done, pieces = done
            batch = self.batch(records) if pieces is None else Pieces(pieces)
            return BatchSending(self, batch, done)
        buffer, count = self._encode_many(records)
        self._learn(records)
        done = self.push_packed(buffer, 0)
        return done if done == count else BatchSending(self, self._batch_of(buffer, count), done)

    def _learn(self, records: Any) -> None:
        """Know arrays by the object that is their dtype, which may be an equal of ours."""
        if type(records) is self.array and records.dtype is not self.dtype:
            dtype = records.dtype
            if dtype == self.dtype:
                self.dtype = dtype

    def batch(self, records: Iterable[Any]) -> Batch | Pieces:
        """Encode records to push; BadRecord if one of them is none."""
        pieces = self.pieces(records)
        return self._batch_of(*self._encode_many(records)) if pieces is None else Pieces(pieces)

    def _batch_of(self, buffer: Any, count: int) -> Batch:
        whole = buffer if type(buffer) is bytes else None
        return Batch(memoryview(buffer).cast("B"), count, whole)

    def parcel_in(self, batch: Any, start: int) -> None:
        """Return None: no record has to be sent by itself."""

    def try_push_many(self, batch: Any, start: int) -> int:
        """Publish the records from number `start` on, as many as fit; return how many."""
        if type(batch) is Pieces:
            done = self.push_run(batch.records, start)
            if not done and start < batch.count:  # which finds out why
                done = self.push_slowly(batch.records[start])
            return int(done)
        return self.push_packed(batch.data, start) or self._push_packed_slowly(batch, start)

    def _push_packed_slowly(self, batch: Batch, start: int) -> int:
        pushed = _new(_ONE)  # its own: a signal handler may use this end in between
        most = max(1, MOST_BYTES // self._size)  # for one call, which keeps the interpreter
        if start == 0 and batch.whole is not None and batch.count <= most:  # at most times all fits
            with self._lock:
                ring = self._ring if self._ring is not None else self._usable()
                code = (
                    CLOSED if ring is None else _push_many(ring, batch.whole, batch.count, pushed)
                )
            return self._pushed(code, int(pushed[0]))
        # Released before anything is raised: kept in a traceback that is part of a cycle, a buffer
        # of cffi over a memoryview crashes the garbage collector (cffi 2.1, CPython 3.11).
        count = min(batch.count - start, most)
        whole = batch.data[start * self._size : (start + count) * self._size]
        with ffi.from_buffer(whole) as data, self._lock:
            ring = self._ring if self._ring is not None else self._usable()
            code = CLOSED if ring is None else _push_many(ring, data, count, pushed)
            done = int(pushed[0])
        return self._pushed(code, done)

    def _pushed(self, code: int, done: int) -> int:
        if not code:
            return done
        if code == FULL:
            return 0
        self._trouble(code)

    def units_of(self, batch: Any, start: int) -> int:  # noqa: ARG002 (as FrameSender)
        """Return the slots to wait for when there was none for the rest of a batch."""
        return 1
