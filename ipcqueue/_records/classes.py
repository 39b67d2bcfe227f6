"""Classes as specs: NamedTuples, dataclasses, ctypes structures."""

from __future__ import annotations

from itertools import starmap
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from ipcqueue._errors import BadRecord

from .codec import Codec, bad_record, encoder_of_many, normaliser_of, window_of
from .fields import field_codes
from .layout import ctypes_layout, struct_layout
from .names import ctypes_names, struct_names
from .structs import packer_in_c, packing, packing_many

if TYPE_CHECKING:
    from collections.abc import Callable

    from .codec import BytesLike


def namedtuple_codec(cls: Any) -> Codec:
    packer = field_codes(cls, cls._fields)
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
    packer = field_codes(cls, names)
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
