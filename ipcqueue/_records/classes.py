"""Classes as specs: NamedTuples, dataclasses, ctypes structures."""

from __future__ import annotations

import re
import reprlib
import typing
from itertools import starmap
from operator import attrgetter
from typing import TYPE_CHECKING, Annotated, Any

from fdpass.lowlevel import index_of
from ipcqueue._errors import BadRecord

from .codec import Codec, bad_record, encoder_of_many, normaliser_of, window_of
from .layout import ctypes_layout, struct_layout
from .names import ctypes_names, struct_names
from .structs import compiled, packer_in_c, packing, packing_many

if TYPE_CHECKING:
    import struct
    from collections.abc import Callable, Iterable

    from .codec import BytesLike

# What to write instead of an annotation that does not tell the size.
_ADVICE: tuple[tuple[type, str], ...] = (
    (bytes, 'char(8), or Annotated[bytes, "8s"], as long as need be'),
    (str, 'char(8), or Annotated[bytes, "8s"], as long as need be, and send text.encode()'),
)

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
_PLAIN_CODES = {int: "q", float: "d", bool: "?"}
_FIELD_CODE = r"[bBhHiIlLqQefdc?]|[1-9][0-9]*s|s"  # re compiles it at first use
_FIELD_TYPES: dict[str, type] = {
    **dict.fromkeys("bBhHiIlLqQ", int),
    **dict.fromkeys("efd", float),
    **dict.fromkeys("cs", bytes),
    "?": bool,
}


def char(n: int) -> Any:
    """Return the annotation of a field of n opaque bytes, `Annotated[bytes, "ns"]`.

    Type checkers refuse calls in annotations; for them, write `Annotated[bytes, "8s"]`.
    """
    try:
        n = index_of(n)
    except TypeError:
        raise TypeError(f"char() takes a number of bytes, not {reprlib.repr(n)}") from None
    if n < 1:
        raise ValueError(f"char({n}): a field has at least one byte")
    return Annotated[bytes, f"{n}s"]


# Classes with annotated fields


def _field_codes(cls: type, names: Iterable[str]) -> struct.Struct:
    """Compile the annotations of the named fields: packed, little-endian, standard sizes."""
    try:
        hints = typing.get_type_hints(cls, include_extras=True)
    except (NameError, AttributeError, SyntaxError, TypeError) as error:
        advice = (
            ": what annotations name is found in the module of the class, so import it there, and"
            " not only under TYPE_CHECKING"
            if isinstance(error, NameError)
            else ""
        )
        raise TypeError(
            f"cannot resolve the annotations of {cls.__name__}: {error}{advice}"
        ) from None
    return compiled("<" + "".join(_field_code(cls, name, hints.get(name)) for name in names))


def _field_code(cls: type, name: str, hint: Any) -> str:
    where = f"field {name!r} of {cls.__name__}"
    texts = [item for item in getattr(hint, "__metadata__", ()) if isinstance(item, str)]
    kind = plain_type(hint)
    if not texts and kind in _PLAIN_CODES:
        return _PLAIN_CODES[kind]
    if not texts:
        otherwise = 'u64, or Annotated[int, "Q"]'
        advice = next((text for each, text in _ADVICE if kind is each), otherwise)
        raise TypeError(f"{where} has no code: annotate it as {advice}")
    code = texts[0]
    if not re.fullmatch(_FIELD_CODE, code):
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


def plain_type(hint: Any) -> Any:
    """Return what an annotation is about, without Annotated, Final, NewType and names of types."""
    while True:
        if typing.get_origin(hint) in {Annotated, typing.Final}:
            hint = typing.get_args(hint)[0]
        elif isinstance(hint, typing.NewType):
            hint = hint.__supertype__
        elif type(hint).__name__ == "TypeAliasType":  # of Python 3.12
            hint = hint.__value__
        else:
            return hint


def namedtuple_codec(cls: Any) -> Codec:
    packer = _field_codes(cls, cls._fields)
    layout = struct_layout(packer)
    size = packer.size
    unpack, split = packer.unpack, packer.iter_unpack
    # A plain tuple is accepted; a NamedTuple of another class is a mistake.
    in_c = packer_in_c(packer, cls)
    encode = packing(packer, layout, (cls, tuple), cls, in_c, cls._fields)
    split_all: Any = None if in_c is None else in_c.unpack
    new: Any = tuple.__new__  # what cls._make does

    def decode(view: BytesLike) -> Any:
        return new(cls, unpack(view))

    def decode_many(data: BytesLike, count: int) -> list[Any]:
        window = window_of(data, size * count)
        if split_all is None:
            return [new(cls, values) for values in split(window)]
        return split_all(window)  # type: ignore[no-any-return]

    encode_many = packing_many(packer, in_c, (tuple, cls), encode)
    stated = struct_names(packer.format, cls._fields)
    return Codec(cls, layout, size, encode, encode_many, decode, decode_many, names=stated)


def _constructor(cls: Any, names: list[str]) -> Callable[..., Any]:
    """Return a function that makes an instance from the values of all fields in order."""
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


def dataclass_codec(dataclasses: Any, cls: Any) -> Codec:
    names = [field.name for field in dataclasses.fields(cls)]
    make = _constructor(cls, names)
    packer = _field_codes(cls, names)
    layout = struct_layout(packer)
    size = packer.size
    unpack, split = packer.unpack, packer.iter_unpack
    in_c = packer_in_c(packer)
    pack = packing(packer, layout, (tuple,), tuple, in_c, names)
    values_of: Any = attrgetter(*names)
    if len(names) == 1:
        value_of = values_of

        def values_of(record: Any) -> tuple[Any]:
            return (value_of(record),)

    def encode(record: Any) -> bytes:
        # A subclass may have more fields, which would be lost.
        if type(record) is not cls:
            raise bad_record(
                layout, f"expected {cls.__name__}, got {type(record).__name__}", record
            )
        try:
            values = values_of(record)
        except AttributeError as error:
            raise BadRecord(f"{cls.__name__} with a field that is not set: {error}") from None
        return pack(values)

    def decode(view: BytesLike) -> Any:
        return make(*unpack(view))

    def decode_many(data: BytesLike, count: int) -> list[Any]:
        records = list(starmap(make, split(window_of(data, size * count))))
        # A constructor raised StopIteration: that ended the loop in C, and would lose all records
        # after it.
        if len(records) != count:
            raise StopIteration  # as decode() would; this is no generator
        return records

    encode_many = packing_many(packer, in_c, (cls,), encode, values_of)
    return Codec(
        cls,
        layout,
        size,
        encode,
        encode_many,
        decode,
        decode_many,
        calls_application=True,
        names=struct_names(packer.format, names),
    )


# ctypes


def ctypes_codec(ctypes: Any, cls: Any) -> Codec:
    layout = ctypes_layout(ctypes, cls)
    size = layout.size
    copy = cls.from_buffer_copy
    normalise = normaliser_of(layout)

    def encode(record: Any) -> BytesLike:
        if type(record) is not cls:
            raise bad_record(
                layout, f"expected {cls.__name__}, got {type(record).__name__}", record
            )
        return bytes(record)

    def decode_many(data: BytesLike, count: int) -> list[Any]:
        view = window_of(data, size * count)
        if normalise is not None:
            view = bytearray(view)
            normalise(view)
        return [copy(view, offset) for offset in range(0, size * count, size)]

    def decode_truths(view: BytesLike) -> Any:
        return decode_many(view, 1)[0]

    decode = copy if normalise is None else decode_truths
    encode_many = encoder_of_many(encode)
    stated = ctypes_names(ctypes, cls)
    return Codec(cls, layout, size, encode, encode_many, decode, decode_many, names=stated)
