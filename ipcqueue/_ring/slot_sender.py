"""The sending end of a ring of slots: records of one size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from ipcqueue import _direct
from ipcqueue._core import ffi
from ipcqueue._errors import BadRecord, Unaccepted
from ipcqueue._records.messages import tuple_of

from .codes import DONE, FULL, RingError
from .memory import Mapping, address_of
from .sender import BatchSending, SenderEnd

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ipcqueue._records.codec import Codec

    from .end import Place


class SlotParcel:
    """One record ready to go."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass


class Batch:
    """Encoded records, side by side."""

    def __init__(self, data: memoryview, count: int) -> None:
        self.data = data
        self.count = count

    def record(self, number: int, size: int) -> memoryview:
        """Return the bytes of one."""
        return self.data[number * size : (number + 1) * size]


class Pieces:
    """Records that need no encoding, each where it is."""

    def __init__(self, records: tuple[bytes, ...]) -> None:
        self.records = records
        self.count = len(records)

    def record(self, number: int, size: int) -> bytes:  # noqa: ARG002 (as Batch)
        """Return one."""
        return self.records[number]


class SlotSender(_direct.SlotSender, SenderEnd):  # type: ignore[misc]
    """The sending end of a ring: records in, without waiting.

    offer() is one call of C, see core/python; so is a batch of bytes, or an array.  Records of
    other kinds are encoded before.
    """

    def __init__(
        self,
        own: Mapping,
        peer: Mapping,
        place: Place,
        codec: Codec,
    ) -> None:
        super().__init__(own, peer, place)
        self._encode = codec.encode
        self._encode_many = codec.encode_many
        self._size = codec.size
        plain = isinstance(codec.spec, int)  # a record is its bytes
        self.attach_fast(address_of(self._ring), self._size, self._encode, plain)
        arrays: tuple[Any, Any] = codec.arrays or (None, None)
        self.array, self.dtype = arrays
        self._aside: tuple[Any, Any, int, int] | None = None

    def _place(self, memory: Any, offset: int, units: int, run: int) -> tuple[Any, int]:
        self._aside = None
        if run == units:
            return memory, offset
        # Where the ring wraps around, other memory stands in, and is copied to both places.
        aside = ffi.new("char[]", units * self._size)
        self._aside = aside, memory, offset, run
        return aside, 0

    def _publish_lent(self, ring: Any, *shape: int) -> int:
        if self._aside is not None:  # to copy it twice does no harm
            aside, memory, offset, run = self._aside
            first = min(shape[0], run)
            start = offset - (self.capacity - run) * self._size  # of the ring
            ffi.memmove(memory + offset, aside, first * self._size)
            rest = (shape[0] - first) * self._size
            ffi.memmove(memory + start, aside + first * self._size, rest)
        return self.publish(ring, *shape)

    def _forget(self) -> None:
        self._aside = self._borrower = None

    def offer_encoded(self, encoded: Any) -> Any:
        """Publish a record that is encoded; return it if there is no space."""
        return None if self._sent(self._pushed(encoded)) else encoded

    def _sent(self, code: int) -> bool:
        if code not in (DONE, FULL):
            raise RingError(code)
        return code == DONE

    def parcel(
        self, record: Any, fds: Iterable[Any] | None = None, regions: Iterable[Any] | None = None
    ) -> SlotParcel:
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
        return SlotParcel(self._encode(record))

    def parcel_of(self, encoded: Any) -> SlotParcel:
        """Return a record that is encoded, to push."""
        return SlotParcel(encoded)

    def try_send(self, parcel: Any) -> bool:
        """Publish the record; False if there is no space."""
        return self._sent(self._pushed(parcel.data))

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
        return Batch(memoryview(buffer).cast("B"), count)

    def parcel_in(self, batch: Any, start: int) -> None:
        """Return None: no record has to be sent by itself."""

    def try_push_many(self, batch: Any, start: int) -> int:
        """Publish the records from number `start` on, as many as fit; return how many."""
        if type(batch) is Pieces:
            done = self.push_run(batch.records, start)
        else:
            done = self.push_packed(batch.data, start)
        if not done and start < batch.count:  # which finds out why
            done = self._sent(self._pushed(batch.record(start, self._size)))
        return int(done)

    def units_of(self, batch: Any, start: int) -> int:  # noqa: ARG002 (as FrameSender)
        """Return the slots to wait for when there was none for the rest of a batch."""
        return 1
