"""How a record becomes the bytes of a slot, and back.

`codec_for` turns a record spec into a codec: four functions, made once per spec, that the queue
calls for each record.  They are closures rather than methods because nothing in Python is nearer
to a bare `Struct.pack`.

Three promises hold for every kind of spec:

- encode loses nothing in silence.  What struct and numpy would cut or wrap (bytes too long for
  their field, a fraction or a large number put into an integer) is a BadRecord, raised before
  anything is sent.  Floats are rounded to the width of their field, but never to infinity;
- encode sends no secrets: pointers into this process and what a masked array hides are a BadRecord
  (fdpass/_sendable.py).  A masked array that hides nothing is an array;
- decode copies.  What it gives owes nothing to the slot, which the sender will write again.

Text fields keep the habits of their library: struct pads short bytes with NULs and gives them
all back (so do NamedTuples and dataclasses), numpy's S strips trailing NULs, and the value of a
ctypes c_char array ends at the first NUL.

Padding that struct or a conversion makes is zero; that of a ctypes or numpy record is sent as it
is, with whatever this process left in it.

None of numpy, ctypes and dataclasses is imported here: a spec made with one of them has already
done so.

The file is long because it has one section for each kind of spec, and none of them is used alone.
"""

from __future__ import annotations

import contextlib
import re
import reprlib
import struct
import sys
import typing
from functools import lru_cache
from itertools import starmap
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeAlias

from fdpass import Unsendable, check_sendable, exported, index_of

from ._binding import packer as _packer
from ._errors import BadRecord
from ._layout import (
    Layout,
    bytes_layout,
    ctypes_layout,
    numpy_layout,
    struct_items,
    struct_layout,
)
from ._message import Encoded, Message, MessageCodec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

BytesLike = bytes | bytearray | memoryview

u8 = Annotated[int, "B"]
u16 = Annotated[int, "H"]
u32 = Annotated[int, "I"]
u64 = Annotated[int, "Q"]
i8 = Annotated[int, "b"]
i16 = Annotated[int, "h"]
i32 = Annotated[int, "i"]
i64 = Annotated[int, "q"]
f32 = Annotated[float, "f"]
f64 = Annotated[float, "d"]

# What to state instead of an annotation that says no size.
_ADVICE: tuple[tuple[type, str], ...] = (
    (float, 'f64, or Annotated[float, "d"]'),
    (bool, 'Annotated[bool, "?"]'),
    (bytes, 'char(8), or Annotated[bytes, "8s"], as long as need be'),
    (str, 'char(8), or Annotated[bytes, "8s"], as long as need be, and send text.encode()'),
)

_ACCEPTED = (
    "a record spec is a size in bytes (int), a struct format (str or struct.Struct),"
    " a NamedTuple class or a dataclass with annotated fields, a ctypes.Structure class,"
    " a numpy.dtype, or, for messages of any length, bytes, Message or Encoded(encode, decode)"
)
_FIELD_CODE = re.compile(r"[bBhHiIlLqQefdc?]|[1-9][0-9]*s|s")
_FIELD_TYPES: dict[str, type] = {
    **dict.fromkeys("bBhHiIlLqQ", int),
    **dict.fromkeys("efd", float),
    **dict.fromkeys("cs", bytes),
    "?": bool,
}


def char(n: int) -> Any:
    """Give the annotation of a field of n opaque bytes, `Annotated[bytes, "ns"]`.

    Type checkers refuse calls in annotations; for them, write `Annotated[bytes, "8s"]`.
    """
    try:
        n = index_of(n)
    except TypeError:
        raise TypeError(f"char() takes a number of bytes, not {reprlib.repr(n)}") from None
    if n < 1:
        raise ValueError(f"char({n}): a field has at least one byte")
    return Annotated[bytes, f"{n}s"]


def in_place(memory: memoryview) -> memoryview:
    """Show records as the bytes they are, where they are."""
    return memory


class Codec(NamedTuple):
    """How a record becomes slot bytes and back, for one spec.

    It has no state, so any number of threads may share it.

    encode(record) gives exactly `size` bytes, perhaps a view of the record itself: use it before
    the record may change.  Raises BadRecord.

    encode_many(records) gives one contiguous buffer and the number of records in it.  All are
    encoded before it returns; a BadRecord names the index of the one at fault.

    decode(view) makes a record from a bytes-like object of exactly `size` bytes, by copying.

    view(memory) shows records in place, as a memoryview or, for a numpy spec, an array.

    decode_many(data, count) makes count records from the first count * size bytes of data, by
    copying: an array for a numpy spec, else a list.

    adopt_many(data, count), if there is one, makes them of a bytearray that has nothing else, and
    is the caller's no more.

    arrays, if such are sent as they are: their type, and their dtype.
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

    @property
    def shape(self) -> int:
        """The shape of the ring for it."""
        return 0  # IPCQ_SLOTS

    def __repr__(self) -> str:
        return f"<Codec for {reprlib.repr(self.spec)}: {self.layout.description}>"


AnyCodec: TypeAlias = Codec | MessageCodec
"""For records of one size, or for messages of any length."""


def codec_for(spec: Any) -> AnyCodec:
    """Give the codec for a record spec; a Codec is returned as it is.

    Raises TypeError for what is no spec, or holds what means nothing in another process, such as
    pointers; ValueError for a size that is none, and for a malformed struct format.
    """
    if isinstance(spec, Codec | MessageCodec):
        return spec
    if spec is bytes or spec is Message or isinstance(spec, Encoded):
        return MessageCodec(spec)
    if hasattr(type(spec), "__index__") and not isinstance(spec, int):
        with contextlib.suppress(TypeError):  # an array of more than a number
            spec = index_of(spec)
    try:
        hash(spec)
    except TypeError:
        raise TypeError(f"{_ACCEPTED}; not {reprlib.repr(spec)}") from None
    # Two numpy dtypes are equal even if one makes np.void and the other np.record.
    return _make_codec(spec, None if isinstance(spec, type) else getattr(spec, "type", None))


@lru_cache(maxsize=128, typed=True)  # typed, because True == 1
def _make_codec(spec: Any, _scalar: Any) -> Codec:
    if isinstance(spec, int) and not isinstance(spec, bool):
        return _bytes_codec(spec)
    if isinstance(spec, str | struct.Struct):
        return _struct_codec(spec)
    codec = _class_codec(spec) if isinstance(spec, type) else None
    # Not imported means that the spec cannot come from there.
    if codec is None and (numpy := sys.modules.get("numpy")):
        # Scalar types that are not in this table, such as numpy.floating, are abstract.
        if isinstance(spec, type) and spec in numpy.sctypeDict.values():
            return _numpy_codec(numpy, spec, numpy.dtype(spec))
        if isinstance(spec, numpy.dtype):
            return _numpy_codec(numpy, spec, spec)
    if codec is None:
        raise TypeError(f"{_ACCEPTED}; not {reprlib.repr(spec)}")
    return codec


def _class_codec(cls: type) -> Codec | None:
    if issubclass(cls, tuple) and hasattr(cls, "_fields"):
        return _namedtuple_codec(cls)
    dataclasses = sys.modules.get("dataclasses")
    if dataclasses and dataclasses.is_dataclass(cls):
        return _dataclass_codec(dataclasses, cls)
    ctypes = sys.modules.get("ctypes")
    if ctypes and issubclass(cls, ctypes.Structure | ctypes.Array):
        return _ctypes_codec(ctypes, cls)
    return None


# What the kinds share


def _bad(layout: Layout, why: object, record: object) -> BadRecord:
    return BadRecord(f"{why}; a record is {layout.description}; got {reprlib.repr(record)}")


def _many(
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


def _window(data: BytesLike, nbytes: int) -> BytesLike:
    if len(data) == nbytes and type(data) is not memoryview:
        return data
    view = memoryview(data)[:nbytes]
    if len(view) != nbytes:
        raise ValueError(f"expected {nbytes} bytes of records, got {len(view)}")
    return view


# An int: opaque bytes


def _bytes_codec(size: int) -> Codec:
    layout = bytes_layout(size)
    split = struct.Struct(f"{size}s").iter_unpack

    def encode(record: Any) -> BytesLike:
        if type(record) is bytes and len(record) == size:
            return record
        return encode_buffer(record)

    def encode_buffer(record: Any) -> BytesLike:
        try:
            view = exported(record)
        except Unsendable as error:
            raise BadRecord(f"expected {size} bytes, {error}") from None
        except (TypeError, ValueError, BufferError):
            kind = type(record).__name__
            raise BadRecord(f"expected {size} bytes, got {kind}: {reprlib.repr(record)}") from None
        if view.nbytes != size:
            raise BadRecord(f"expected exactly {size} bytes, got {view.nbytes}")
        if not view.c_contiguous:
            raise BadRecord(f"expected {size} bytes in C-contiguous order")
        return view.cast("B") if view.format in _CASTABLE else view.tobytes()

    def decode_many(data: BytesLike, count: int) -> list[bytes]:
        return [record for (record,) in split(_window(data, size * count))]

    return Codec(size, layout, size, encode, _many(encode), bytes, decode_many)


_CASTABLE = frozenset("bBhHiIlLqQnNfdc?")  # what memoryview.cast takes


# A struct format: tuples


def _compile(spec: str | struct.Struct) -> struct.Struct:
    if isinstance(spec, struct.Struct):
        return spec
    try:
        return struct.Struct(spec)
    except (struct.error, UnicodeError) as error:
        raise ValueError(f"not a struct format: {reprlib.repr(spec)}: {error}") from None


_PACKING_FAILED = (struct.error, TypeError, ValueError, OverflowError)
_MOST_FIELDS = 256  # of a Packer; a guess: with more of them, what each record costs is little


def _packing(
    packer: struct.Struct,
    layout: Layout,
    exact: tuple[type, ...],
    base: type | tuple[type, ...],
    in_c: Any,
) -> Callable[[Any], bytes]:
    """Give the encode of a sequence: its type is one of exact, or derived from base.

    What is in C comes first: it takes the plain values that most records have, and only those.
    """
    pack = packer.pack
    limits = _limits(packer.format)
    wanted = " or ".join(kind.__name__ for kind in exact)

    def encode(record: Any) -> bytes:
        if type(record) not in exact and not isinstance(record, base):
            raise _bad(layout, f"expected a {wanted}, got {type(record).__name__}", record)
        try:
            # What is masked turns into 0 or nan, and has an __index__.
            if _MASKED in _modules and not _are_plain(record):
                _check_values(record)
            data = pack(*record)
        except _PACKING_FAILED as error:
            raise _bad(layout, error, record) from None
        for index, limit in limits:
            # struct would cut it in silence
            if len(record[index]) > limit:
                why = f"item {index} has {len(record[index])} bytes, more than its {limit}"
                raise _bad(layout, why, record)
        return data

    if in_c is None:
        return encode
    pack_one = in_c.pack_one

    def encode_in_c(record: Any) -> bytes:
        data: bytes | None = pack_one(record)
        return encode(record) if data is None else data

    return encode_in_c


# Nothing is masked before it is imported; to look into this is a quarter of looking at the values.
_MASKED = "numpy.ma"
_modules = sys.modules


def _check_values(values: Iterable[Any]) -> None:
    """Raise Unsendable if one of the values is masked, or points into this process."""
    for value in values:
        if type(value) not in _NUMBERS_AND_TEXTS:
            check_sendable(value)


_NUMBERS_AND_TEXTS = frozenset({int, float, bool, bytes, str, complex, type(None)})


def _all_are_plain(values: Iterable[Any]) -> bool:
    """Whether there are only numbers and texts of Python's own."""
    return _NUMBERS_AND_TEXTS.issuperset(map(type, values))


_are_plain: Callable[[Any], bool] = _all_are_plain if _packer is None else _packer.are_plain


def _packer_in_c(packer: struct.Struct, cls: Any = None) -> Any:
    """Give what packs and unpacks many tuples at once; None if there is none for this format."""
    form = packer.format
    orders = "@=<" if sys.byteorder == "little" else "@=>!"
    mode = form[0] if form[0] in "@=<>!" else "@"
    items = list(struct_items(form))
    number = sum(1 if code == "s" else count for code, count in items if code != "x")
    if _packer is None or mode not in orders or not 0 < number <= _MOST_FIELDS:
        return None
    if len(items) > 2 * _MOST_FIELDS:  # most of them padding: what follows is quadratic
        return None
    fields = []
    before = mode
    for code, count in items:
        before += f"{count}{code}"
        end = struct.calcsize(before)  # struct aligns the beginning of an item, so not the end
        if code == "x":
            continue
        if code == "s":
            if count == 0:  # is b"" and has no bytes
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


def _packing_many(
    packer: struct.Struct,
    in_c: Any,
    exact: tuple[type, ...],
    encode: Callable[[Any], BytesLike],
    values_of: Callable[[Any], Any] | None = None,
) -> Callable[[Iterable[Any]], tuple[BytesLike, int]]:
    """Give the encode_many of sequences, or of what values_of makes sequences of.

    A list is packed as a whole, as long as its records are of the exact types and there is
    nothing wrong with any of them; else one by one, which finds out what is wrong and where.
    What else can be iterated may give one list again and again, with other items: one by one.
    """
    pack, size = packer.pack, packer.size
    texts = [(itemgetter(index), limit) for index, limit in _limits(packer.format)]
    types = set(exact)
    one_by_one = _many(encode)

    def encode_many(records: Iterable[Any]) -> tuple[BytesLike, int]:
        if type(records) is list or type(records) is tuple:
            data = pack_tuples(records)
            if data is not None:
                return data, len(data) // size
        return one_by_one(records)

    def pack_all(records: Any) -> bytes | None:
        records = tuple(records)  # another thread may be at the list
        if not types.issuperset(map(type, records)):
            return None
        try:
            if values_of is not None:
                records = tuple(map(values_of, records))
            if in_c is None and _MASKED in _modules and not all(map(_are_plain, records)):
                return None
            data: bytes | None = in_c.pack(records) if in_c is not None else join(records)
        except (AttributeError, *_PACKING_FAILED):
            return None
        return data

    def join(records: tuple[Any, ...]) -> bytes | None:
        data = b"".join(starmap(pack, records))
        # struct would cut them in silence
        cut = any(max(map(len, map(text, records)), default=0) > limit for text, limit in texts)
        return None if cut else data

    # Of tuples, what is in C looks at the types by itself.
    pack_tuples: Any = pack_all if in_c is None or values_of is not None else in_c.pack
    return encode_many


def _limits(form: str) -> tuple[tuple[int, int], ...]:
    """Index and most bytes of each text item of a struct format."""
    limits = []
    index = 0
    for code, count in struct_items(form):
        if code == "s":
            limits.append((index, count))
            index += 1
        elif code != "x":
            index += count
    return tuple(limits)


def _struct_codec(spec: str | struct.Struct) -> Codec:
    packer = _compile(spec)
    layout = struct_layout(packer)
    size = packer.size
    split = packer.iter_unpack
    in_c = _packer_in_c(packer)
    encode = _packing(packer, layout, (tuple, list), (tuple, list), in_c)
    split_all: Any = None if in_c is None else in_c.unpack

    def decode_many(data: BytesLike, count: int) -> list[Any]:
        window = _window(data, size * count)
        return list(split(window)) if split_all is None else split_all(window)

    encode_many = _packing_many(packer, in_c, (tuple, list), encode)
    return Codec(spec, layout, size, encode, encode_many, packer.unpack, decode_many)


# Classes with annotated fields


def _field_codes(cls: type, names: Iterable[str]) -> struct.Struct:
    """Compile the annotations of the named fields: packed, little-endian, standard sizes."""
    try:
        hints = typing.get_type_hints(cls, include_extras=True)
    except (NameError, AttributeError, SyntaxError, TypeError) as error:
        raise TypeError(f"cannot resolve the annotations of {cls.__name__}: {error}") from None
    return _compile("<" + "".join(_field_code(cls, name, hints.get(name)) for name in names))


def _field_code(cls: type, name: str, hint: Any) -> str:
    where = f"field {name!r} of {cls.__name__}"
    texts = [item for item in getattr(hint, "__metadata__", ()) if isinstance(item, str)]
    if not texts:
        otherwise = 'u64, or Annotated[int, "Q"]'
        advice = next((text for kind, text in _ADVICE if hint is kind), otherwise)
        raise TypeError(f"{where} has no code: annotate it as {advice}")
    code = texts[0]
    if not _FIELD_CODE.fullmatch(code):
        raise TypeError(
            f"{where} has the code {reprlib.repr(code)}: a field has one of"
            ' bBhHiIlLqQ, e f d, ?, c, or text such as "8s"'
        )
    given, annotated = _FIELD_TYPES[code[-1]], typing.get_args(hint)[0]
    if isinstance(annotated, type) and not issubclass(given, annotated):
        raise TypeError(
            f"{where} is annotated {annotated.__name__}, but {code!r} gives {given.__name__}"
        )
    return code


def _namedtuple_codec(cls: Any) -> Codec:
    packer = _field_codes(cls, cls._fields)
    layout = struct_layout(packer)
    size = packer.size
    unpack, split = packer.unpack, packer.iter_unpack
    # A plain tuple will do; a NamedTuple of another class is a mistake.
    in_c = _packer_in_c(packer, cls)
    encode = _packing(packer, layout, (cls, tuple), cls, in_c)
    split_all: Any = None if in_c is None else in_c.unpack
    new: Any = tuple.__new__  # what cls._make does

    def decode(view: BytesLike) -> Any:
        return new(cls, unpack(view))

    def decode_many(data: BytesLike, count: int) -> list[Any]:
        window = _window(data, size * count)
        if split_all is None:
            return [new(cls, values) for values in split(window)]
        return split_all(window)  # type: ignore[no-any-return]

    encode_many = _packing_many(packer, in_c, (tuple, cls), encode)
    return Codec(cls, layout, size, encode, encode_many, decode, decode_many)


def _constructor(cls: Any, names: list[str]) -> Callable[..., Any]:
    """Give what makes an instance from the values of all fields in order."""
    import inspect  # noqa: PLC0415 (slow to import; dataclasses has done so)

    takes = inspect.signature(cls).parameters
    for name in names:
        if name not in takes:
            raise TypeError(f"field {name!r} of {cls.__name__} is not set by its constructor")
    for name in takes:
        if name not in names:
            raise TypeError(f"{cls.__name__} is made from {name!r}, which is not a field")
    if list(takes) == names and not any(p.kind is p.KEYWORD_ONLY for p in takes.values()):
        return cls  # type: ignore[no-any-return]

    def make(*values: Any) -> Any:
        return cls(**dict(zip(names, values, strict=True)))

    return make


def _dataclass_codec(dataclasses: Any, cls: Any) -> Codec:
    names = [field.name for field in dataclasses.fields(cls)]
    make = _constructor(cls, names)
    packer = _field_codes(cls, names)
    layout = struct_layout(packer)
    size = packer.size
    unpack, split = packer.unpack, packer.iter_unpack
    in_c = _packer_in_c(packer)
    pack = _packing(packer, layout, (tuple,), tuple, in_c)
    values_of: Any = attrgetter(*names)
    if len(names) == 1:
        value_of = values_of

        def values_of(record: Any) -> tuple[Any]:
            return (value_of(record),)

    def encode(record: Any) -> bytes:
        # A derived class may have more fields, which would be lost.
        if type(record) is not cls:
            raise _bad(layout, f"expected {cls.__name__}, got {type(record).__name__}", record)
        try:
            values = values_of(record)
        except AttributeError as error:
            raise BadRecord(f"{cls.__name__} with a field that is not set: {error}") from None
        return pack(values)

    def decode(view: BytesLike) -> Any:
        return make(*unpack(view))

    def decode_many(data: BytesLike, count: int) -> list[Any]:
        records = list(starmap(make, split(_window(data, size * count))))
        if len(records) != count:  # which ends any loop in C, and so would lose all that follow
            raise StopIteration  # as decode() does; this is no generator
        return records

    encode_many = _packing_many(packer, in_c, (cls,), encode, values_of)
    return Codec(
        cls, layout, size, encode, encode_many, decode, decode_many, calls_application=True
    )


# ctypes


def _ctypes_codec(ctypes: Any, cls: Any) -> Codec:
    layout = ctypes_layout(ctypes, cls)
    size = layout.size
    copy = cls.from_buffer_copy

    def encode(record: Any) -> BytesLike:
        if type(record) is not cls:
            raise _bad(layout, f"expected {cls.__name__}, got {type(record).__name__}", record)
        return bytes(record)

    def decode_many(data: BytesLike, count: int) -> list[Any]:
        view = _window(data, size * count)
        return [copy(view, offset) for offset in range(0, size * count, size)]

    return Codec(cls, layout, size, encode, _many(encode), copy, decode_many)


# numpy

_NUMPY_TAKES = {
    **dict.fromkeys("iub", "iub"),
    **dict.fromkeys("f", "fiub"),
    **dict.fromkeys("c", "cfiub"),
    **{kind: kind for kind in "MmSV"},
}


def _numpy_codec(np: Any, spec: Any, dtype: Any) -> Codec:
    layout = numpy_layout(dtype)
    size = layout.size
    array = np.ndarray
    encode = _numpy_encode(np, dtype, layout)
    # A scalar with fields is a view of its buffer, so it gets one of its own, which also makes
    # it writable.  A number is copied by numpy.
    buffer: Any = bytearray if dtype.kind == "V" else memoryview

    def decode(view: BytesLike) -> Any:
        return array((), dtype, buffer(view))[()]

    def decode_many(data: BytesLike, count: int) -> Any:
        return array((count,), dtype, bytearray(_window(data, size * count)))

    def adopt_many(data: bytearray, count: int) -> Any:
        return array((count,), dtype, data)

    def view(memory: memoryview) -> Any:
        return np.frombuffer(memory, dtype)

    encode_many = _numpy_encode_many(np, dtype, layout, encode)
    arrays = None if dtype.shape else (array, dtype)  # an array of arrays has another dtype
    return Codec(
        spec,
        layout,
        size,
        encode,
        encode_many,
        decode,
        decode_many,
        view,
        adopt_many,
        arrays,
    )


def _numpy_encode(np: Any, dtype: Any, layout: Layout) -> Callable[[Any], bytes]:
    array, scalar, shape = np.ndarray, np.generic, dtype.shape

    def encode(record: Any) -> bytes:
        if isinstance(record, scalar):
            ready = record.dtype == dtype
        elif type(record) is array:  # a derived one may be masked
            ready = record.dtype == dtype.base and record.shape == shape
            ready = ready and record.flags.c_contiguous
        else:
            ready = False
        data: bytes = (record if ready else convert(record)).tobytes()
        return data

    def convert(record: Any) -> Any:
        out = np.zeros((), dtype)  # zeros, so that padding tells nothing
        try:
            _numpy_fill(np, out, record)
        except (TypeError, ValueError, ArithmeticError) as error:
            raise _bad(layout, error, record) from None
        return out

    return encode


def _numpy_encode_many(
    np: Any, dtype: Any, layout: Layout, encode: Callable[[Any], bytes]
) -> Callable[[Iterable[Any]], tuple[BytesLike, int]]:
    one_by_one = _many(encode)

    def encode_many(records: Any) -> tuple[BytesLike, int]:
        if not isinstance(records, np.ndarray):
            return convert_many(list(records))
        records = _plain_array(np, records, layout)
        if records.ndim == 0:
            raise BadRecord("expected many records, got an array of shape ()")
        if records.dtype != dtype.base or records.shape[1:] != dtype.shape:
            return convert_many(records)
        if not records.flags.c_contiguous:
            # Not by numpy's own copies: they skip the padding, and would send what was in it.
            packed = np.zeros(records.shape, records.dtype)
            packed[...] = records
            records = packed
        return memoryview(records.reshape(-1).view(np.uint8)), len(records)

    def convert_many(records: Any) -> tuple[BytesLike, int]:
        # Numbers are converted all at once; when that fails, one by one, to name the index.
        if dtype.kind in "iufcb":
            out = np.zeros(len(records), dtype)
            try:
                _numpy_assign(np, out, records)
            except (TypeError, ValueError, ArithmeticError):
                pass
            else:
                return memoryview(out.reshape(-1).view(np.uint8)), len(records)
        return one_by_one(records)

    return encode_many


def _numpy_fill(np: Any, out: Any, value: Any) -> None:
    """Assign one record, field by field; raise where numpy would cut, wrap or broadcast.

    Raises Unsendable, a TypeError, for what is masked, and for pointers.
    """
    names = out.dtype.names
    if names is None:
        _numpy_assign(np, out, value)
        return
    check_sendable(value)
    if isinstance(value, np.void | np.ndarray) and value.dtype == out.dtype:
        if value.shape != out.shape:
            raise ValueError(f"an array of shape {value.shape} where {out.shape} is expected")
        out[...] = value
        return
    keys: Any = range(len(out)) if out.ndim else names
    if not isinstance(value, (tuple, list) if out.ndim else tuple):
        raise TypeError(f"{type(value).__name__} where a tuple of {len(keys)} items is expected")
    if len(value) != len(keys):
        raise ValueError(f"{len(value)} items where {len(keys)} are expected")
    for key, item in zip(keys, value, strict=True):
        _numpy_fill(np, out[key, ...] if out.ndim else out[key], item)


def _numpy_assign(np: Any, out: Any, value: Any) -> None:
    """Assign to an array without fields; raise where numpy would cut, wrap or broadcast."""
    want = out.dtype.kind
    given = _numpy_given(np, value)
    if not isinstance(value, np.generic | np.ndarray) and (
        want in "SV" or given.dtype.kind not in _NUMPY_TAKES[want]
    ):
        # asarray makes text of [b"x", 1], and floats of [1, 2**64 - 1]: look at the items.
        given = np.asarray(value, dtype=object)
        kinds: Any = bytes if want in "SV" else int | np.integer if want in "iub" else ()
        for item in given.flat:
            if not isinstance(item, kinds):
                raise TypeError(f"{type(item).__name__} where {out.dtype} is expected")
    elif given.dtype.kind not in _NUMPY_TAKES[want]:
        raise TypeError(f"{given.dtype} where {out.dtype} is expected")
    if given.shape != out.shape:
        raise ValueError(f"shape {given.shape} where {out.shape} is expected")
    if want in "SV":
        _check_lengths(given, out.dtype)
    with np.errstate(over="raise"):  # a float too large for its field
        out[...] = given
    if want in "iub":
        kept = out == given
    elif want in "Mm":
        kept = (out.astype(given.dtype) == given) | np.isnat(given)
    else:
        return
    if not kept.all():
        raise ValueError(f"a value does not fit {out.dtype}")


def _numpy_given(np: Any, value: Any) -> Any:
    """Return a value as a plain array; raise Unsendable for what is masked, and for pointers."""
    if type(value) in _NUMBERS_AND_TEXTS:
        return np.asarray(value)
    check_sendable(value)
    if _MASKED in _modules:
        _check_items(np, value)
    # Whatever makes arrays of itself may make a masked one, or one of pointers.
    given = np.asanyarray(value)
    if type(given) is not np.ndarray:
        check_sendable(given)
        given = np.asarray(given)
    if given.dtype.hasobject:
        if given.dtype.kind != "O":
            raise Unsendable(f"{given.dtype} holds pointers into this process")
        _check_values(given.flat)
    return given


def _check_items(np: Any, value: Any) -> None:
    """Raise Unsendable if something is masked in a sequence, or in one in it.

    An array made of it would have 0 or nan there.
    """
    if isinstance(value, list | tuple):
        if _are_plain(value):
            return
    elif (
        isinstance(value, str | bytes | np.generic)
        or not (
            # What makes an array of itself shows its mask.
            hasattr(value, "__getitem__") and hasattr(value, "__len__")
        )
        or hasattr(value, "__array__")
    ):
        return
    for item in value:
        if type(item) not in _NUMBERS_AND_TEXTS:
            check_sendable(item)
            _check_items(np, item)


def _plain_array(np: Any, records: Any, layout: Layout) -> Any:
    """Return what a class derived from ndarray has, as a plain one; raise BadRecord if masked."""
    if type(records) is np.ndarray:
        return records
    try:
        check_sendable(records)
    except Unsendable as error:
        raise BadRecord(f"expected records, {error}; a record is {layout.description}") from None
    return np.asarray(records)


def _check_lengths(given: Any, dtype: Any) -> None:
    lengths = map(len, given.flat) if given.dtype.kind == "O" else (given.dtype.itemsize,)
    for length in lengths:
        if length > dtype.itemsize or (dtype.kind == "V" and length < dtype.itemsize):
            raise ValueError(f"{length} bytes where {dtype.itemsize} are expected")
