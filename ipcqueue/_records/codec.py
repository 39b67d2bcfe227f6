"""Codec: how a record becomes the bytes of a slot, and back; and helpers of all kinds of spec."""

import reprlib
import struct
import sys
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeAlias

from fdpass.lowlevel import check_sendable, index_of
from ipcqueue import _packer  # type: ignore[attr-defined]
from ipcqueue._errors import BadRecord

from .layout import Layout
from .messages import MessageCodec
from .names import NO_NAMES, Names

BytesLike = bytes | bytearray | memoryview


def in_place(memory: memoryview) -> memoryview:
    """Return the memory of the records itself, as bytes."""
    return memory


class Codec(NamedTuple):
    """How a record becomes slot bytes and back, for one spec.

    It has no state, so any number of threads may share it.

    encode(record) returns exactly `size` bytes, perhaps a view of the record itself: use it before
    the record may change.  Raises BadRecord.

    encode_many(records) returns one contiguous buffer and the number of records in it.  It encodes
    all before it returns; a BadRecord names the index of the wrong record.

    decode(view) copies a record out of a bytes-like object of exactly `size` bytes.

    view(memory) returns the records in place, as a memoryview or, for a numpy spec, an array.

    decode_many(data, count) copies count records out of the first count * size bytes of data: an
    array for a numpy spec, else a list.

    adopt_many(data, count), if there is one, makes them of a bytearray that holds nothing else,
    without copying; the caller gives the bytearray up.

    arrays is the type and dtype of arrays that are sent without conversion, if there are such.

    names are those of the fields, if the spec has any.
    """

    spec: Any
    layout: Layout
    size: int
    encode: Callable[[Any], BytesLike]
    encode_many: Callable[[Iterable[Any]], tuple[BytesLike, int]]
    decode: Callable[[BytesLike], Any]
    decode_many: Callable[[BytesLike, int], Any]
    view: Callable[[memoryview], Any] = in_place
    adopt_many: Callable[[bytearray, int], Any] | None = None
    arrays: tuple[Any, Any] | None = None
    calls_application: bool = False  # to make a record
    names: Names = NO_NAMES

    @property
    def shape(self) -> int:
        """The shape of the ring that carries these records."""
        return 0  # IPCQ_SLOTS

    def __repr__(self) -> str:
        return f"<Codec for {reprlib.repr(self.spec)}: {self.layout.description}>"


AnyCodec: TypeAlias = Codec | MessageCodec


# Helpers of all kinds of spec


def bad_record(layout: Layout, why: object, record: object) -> BadRecord:
    return BadRecord(f"{why}; a record is {layout.description}; got {reprlib.repr(record)}")


TRUTH = "True or False is expected (or 0 or 1): pass bool(value) if its truth is meant"


def is_truth(value: object) -> bool:
    """Whether a value is True or False, or one that nobody can take for anything else."""
    kind = type(value)
    if kind is bool or (kind.__module__ == "numpy" and kind.__name__ in {"bool", "bool_"}):
        return True
    try:
        return index_of(value) in {0, 1}
    except TypeError:
        return False


def normaliser_of(layout: Layout) -> Callable[[bytearray], None] | None:
    """Return what makes received bools 0 or 1, in records side by side; None if there are none.

    For kinds of records that use the bytes as they are.  A bool of another value is undefined: in
    C, and in numpy, where it is neither equal to True nor to False.
    """
    runs = b"".join(
        struct.pack("=qq", run.offset, run.items) for run in layout.runs if run.kind == "bool"
    )
    if not runs:
        return None
    size, normalise = layout.size, _packer.normalise

    def normalise_all(data: bytearray) -> None:
        normalise(data, size, runs)

    return normalise_all


def encoder_of_many(
    encode: Callable[[Any], BytesLike],
) -> Callable[[Iterable[Any]], tuple[BytesLike, int]]:
    def encode_many(records: Iterable[Any]) -> tuple[BytesLike, int]:
        parts: list[BytesLike] = []
        append = parts.append
        try:
            for record in records:
                append(encode(record))
        except BadRecord as error:
            raise BadRecord(f"record {len(parts)}: {error}") from None
        return b"".join(parts), len(parts)

    return encode_many


def window_of(data: BytesLike, nbytes: int) -> BytesLike:
    if len(data) == nbytes and type(data) is not memoryview:
        return data
    view = memoryview(data)[:nbytes]
    if len(view) != nbytes:
        raise ValueError(f"expected {nbytes} bytes of records, got {len(view)}")
    return view


CASTABLE = frozenset("bBhHiIlLqQnNfdc?")  # formats that memoryview.cast accepts

# Without this module there are no masked values.  Asking for it takes a quarter of the time that
# checking the values takes.
MASKED = "numpy.ma"
loaded = sys.modules


def check_values(values: Iterable[Any]) -> None:
    """Raise Unsendable if one of the values is masked, or points into this process."""
    for value in values:
        if type(value) not in NUMBERS_AND_TEXTS:
            check_sendable(value)


NUMBERS_AND_TEXTS = frozenset({int, float, bool, bytes, str, complex, type(None)})

are_plain: Callable[[Any], bool] = _packer.are_plain
