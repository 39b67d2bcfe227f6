"""A struct format as a spec: records that are tuples."""

from __future__ import annotations

import reprlib
import struct
import sys
from itertools import repeat, starmap
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from ipcqueue import _packer  # type: ignore[attr-defined]

from .codec import (
    MASKED,
    TRUTH,
    Codec,
    are_plain,
    bad_record,
    check_values,
    encoder_of_many,
    is_truth,
    loaded,
    window_of,
)
from .layout import Layout, struct_items, struct_layout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from .codec import BytesLike

# A struct format: tuples


def compiled(spec: str | struct.Struct) -> struct.Struct:
    if isinstance(spec, struct.Struct):
        return spec
    try:
        return struct.Struct(spec)
    except (struct.error, ValueError) as error:  # UnicodeError before CPython 3.15
        raise ValueError(f"not a struct format: {reprlib.repr(spec)}: {error}") from None


_PACKING_FAILED = (struct.error, TypeError, ValueError, OverflowError)
_MAX_FIELDS = 256  # of a Packer; a guess: beyond it, the cost per record hardly matters


def packing(
    packer: struct.Struct,
    layout: Layout,
    exact: tuple[type, ...],
    base: type | tuple[type, ...],
    in_c: Any,
    names: Sequence[str] = (),
) -> Callable[[Any], bytes]:
    """Return encode() for sequences whose type is in `exact` or derives from `base`.

    The C code comes first: it takes only the plain values that most records have.  `names` are
    those of the fields, for errors; tuples have none.
    """
    pack = packer.pack
    limits, truths = _limits(packer.format), _truths(packer.format)
    wanted = " or ".join(kind.__name__ for kind in exact)

    def encode(record: Any) -> bytes:
        if type(record) not in exact and not isinstance(record, base):
            raise bad_record(layout, f"expected a {wanted}, got {type(record).__name__}", record)
        try:
            # A masked value has an __index__, and would become 0 or nan.
            if MASKED in loaded and not are_plain(record):
                check_values(record)
            data = pack(*checked_truths(record, truths, names)) if truths else pack(*record)
        except _PACKING_FAILED as error:
            raise bad_record(layout, f"{culprit(packer, record, names)}{error}", record) from None
        for index, limit in limits:
            # struct would cut it in silence.
            if len(record[index]) > limit:
                item = named(index, names)
                why = f"{item} has {len(record[index])} bytes, more than its {limit}"
                raise bad_record(layout, why, record)
        return data

    if in_c is None:
        return encode
    pack_one = in_c.pack_one

    def encode_in_c(record: Any) -> bytes:
        data: bytes | None = pack_one(record)
        return encode(record) if data is None else data

    return encode_in_c


def packer_in_c(packer: struct.Struct, cls: Any = None) -> Any:
    """Return the C object that packs and unpacks many tuples at once; None if it cannot."""
    form = packer.format
    orders = "@=<" if sys.byteorder == "little" else "@=>!"
    mode = form[0] if form[0] in "@=<>!" else "@"
    items = list(struct_items(form))
    number = sum(1 if code == "s" else count for code, count in items if code != "x")
    if mode not in orders or not 0 < number <= _MAX_FIELDS:
        return None
    if len(items) > 2 * _MAX_FIELDS:  # mostly padding; the loop below takes quadratic time
        return None
    fields = []
    before = mode
    for code, count in items:
        before += f"{count}{code}"
        end = struct.calcsize(before)  # where the item ends: struct aligns only its beginning
        if code == "x":
            continue
        if code == "s":
            if count == 0:  # its value is b"", without any bytes
                return None
            fields.append(("s", end - count, count))
            continue
        width = struct.calcsize(mode + code)
        kind = _PACKER_KINDS.get(code, code)
        fields += [(kind, end - left * width, width) for left in range(count, 0, -1)]
    return _packer.Packer(tuple(fields), packer.size, cls)


_PACKER_KINDS = {
    **dict.fromkeys("bhilqn", "i"),
    **dict.fromkeys("BHILQN", "u"),
    **dict.fromkeys("efd", "f"),
}


def packing_many(
    packer: struct.Struct,
    in_c: Any,
    exact: tuple[type, ...],
    encode: Callable[[Any], BytesLike],
    values_of: Callable[[Any], Any] | None = None,
) -> Callable[[Iterable[Any]], tuple[BytesLike, int]]:
    """Return encode_many() for sequences, or for objects that values_of() turns into sequences.

    A list is packed as a whole if all its records are of the types in `exact` and valid; otherwise
    one by one, which finds the wrong one and names it.  Any other iterable is packed one by one: it
    may yield the same list repeatedly, with other items.
    """
    pack, size = packer.pack, packer.size
    texts = [(itemgetter(index), limit) for index, limit in _limits(packer.format)]
    truths = [itemgetter(slice(run.start, run.stop)) for run in _truths(packer.format)]
    types = set(exact)
    one_by_one = encoder_of_many(encode)

    def encode_many(records: Iterable[Any]) -> tuple[BytesLike, int]:
        if type(records) is list or type(records) is tuple:
            data = pack_tuples(records)
            if data is not None:
                return data, len(data) // size
        return one_by_one(records)

    def pack_all(records: Any) -> bytes | None:
        records = tuple(records)  # another thread may change the list
        if not types.issuperset(map(type, records)):
            return None
        try:
            if values_of is not None:
                records = tuple(map(values_of, records))
            if in_c is None and MASKED in loaded and not all(map(are_plain, records)):
                return None
            data: bytes | None = in_c.pack(records) if in_c is not None else join(records)
        except (AttributeError, *_PACKING_FAILED):
            return None
        return data

    def join(records: tuple[Any, ...]) -> bytes | None:
        known = _are_truths(records, truths)  # first: struct would ask bool()
        data = b"".join(starmap(pack, records)) if known else None
        return None if data is None or _is_cut(records, texts) else data

    # For tuples, the C code checks the types by itself.
    pack_tuples: Any = pack_all if in_c is None or values_of is not None else in_c.pack
    return encode_many


def _is_cut(records: Any, texts: Sequence[tuple[Callable[[Any], Any], int]]) -> bool:
    """Whether struct has cut a text, which it does in silence."""
    return any(max(map(len, map(text, records)), default=0) > limit for text, limit in texts)


def _are_truths(records: Any, truths: Sequence[Callable[[Any], Any]]) -> bool:
    """Whether all values are truths that `truths` give of each record."""
    return all(all(map(is_truth, row)) for some in truths for row in map(some, records))


def checked_truths(record: Any, truths: list[range], names: Sequence[str]) -> tuple[Any, ...]:
    """Return the values of a record; raise TypeError for one that is no bool and is to be one."""
    values = tuple(record)
    for run in truths:
        for index, value in zip(run, values[run.start : run.stop], strict=False):
            if not is_truth(value):  # struct would ask bool()
                raise TypeError(f"{named(index, names)}: {reprlib.repr(value)} where {TRUTH}")
    return values


def named(index: int, names: Sequence[str]) -> str:
    """Return what an error calls an item of a record."""
    return f"field {names[index]!r}" if names else f"item {index}"


def culprit(packer: struct.Struct, record: Any, names: Sequence[str]) -> str:
    """Return the beginning of an error for a record that could not be packed: which item is wrong.

    Empty if none is by itself, such as if there are too few.  Bools were looked at before.
    """
    form = packer.format
    mode = form[0] if form[0] in "@=<>!" else ""
    codes = (
        code
        for code, count in struct_items(form)
        for code in ([f"{count}s"] if code == "s" else repeat(code, count * (code != "x")))
    )
    try:
        for index, (code, value) in enumerate(zip(codes, record, strict=True)):
            try:
                struct.pack(f"{mode}{code}", value if code != "?" else True)
            except _PACKING_FAILED:
                return f"{named(index, names)}: "
    except _PACKING_FAILED:
        pass
    return ""


def _limits(form: str) -> tuple[tuple[int, int], ...]:
    """Return the index and the number of bytes of each text item of a struct format."""
    limits = []
    index = 0
    for code, count in struct_items(form):
        if code == "s":
            limits.append((index, count))
            index += 1
        elif code != "x":
            index += count
    return tuple(limits)


def _truths(form: str) -> list[range]:
    """Return the indices of the bools of a struct format."""
    truths = []
    index = 0
    for code, count in struct_items(form):
        if code == "?":
            truths.append(range(index, index + count))
        index += 1 if code == "s" else 0 if code == "x" else count
    return truths


def struct_codec(spec: str | struct.Struct) -> Codec:
    packer = compiled(spec)
    layout = struct_layout(packer)
    size = packer.size
    split = packer.iter_unpack
    in_c = packer_in_c(packer)
    encode = packing(packer, layout, (tuple, list), (tuple, list), in_c)
    split_all: Any = None if in_c is None else in_c.unpack

    def decode_many(data: BytesLike, count: int) -> list[Any]:
        window = window_of(data, size * count)
        return list(split(window)) if split_all is None else split_all(window)

    encode_many = packing_many(packer, in_c, (tuple, list), encode)
    return Codec(spec, layout, size, encode, encode_many, packer.unpack, decode_many)
