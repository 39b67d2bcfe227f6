"""Classes as specs: NamedTuples, dataclasses, ctypes structures."""

from __future__ import annotations

from itertools import starmap
from typing import TYPE_CHECKING, Any

from ipcqueue._errors import BadRecord

from .codec import Codec, bad_record, encoder_of_many, normaliser_of, window_of
from .fields import Misfit, record_field
from .forms import form_of
from .layout import ctypes_layout, struct_layout
from .names import ctypes_names, names_of
from .structs import compiled, packer_in_c, packing, packing_many

if TYPE_CHECKING:
    from .codec import BytesLike
    from .fields import Field
    from .forms import Form


def class_codec(cls: type) -> Codec | None:
    """Return the codec for a class with annotated fields; None for any other."""
    form = form_of(cls)
    if form is None:
        return None
    field = record_field(form)
    plain = issubclass(cls, tuple) and field.gather is None
    return _namedtuple_codec(form, field) if plain else _object_codec(form, field)


def _namedtuple_codec(form: Form, field: Field) -> Codec:
    cls = form.cls
    packer = compiled(f"<{field.code}")
    layout = struct_layout(packer)
    size = packer.size
    unpack, split = packer.unpack, packer.iter_unpack
    in_c = packer_in_c(packer, cls)
    encode = packing(packer, layout, form.exact, cls, in_c, field.paths)
    split_all: Any = None if in_c is None else in_c.unpack
    new: Any = tuple.__new__  # what cls._make does

    def decode(view: BytesLike) -> Any:
        return new(cls, unpack(view))

    def decode_many(data: BytesLike, count: int) -> list[Any]:
        window = window_of(data, size * count)
        if split_all is None:
            return [new(cls, values) for values in split(window)]
        return split_all(window)  # type: ignore[no-any-return]

    encode_many = packing_many(packer, in_c, form.exact, encode)
    stated = names_of(field.stated)
    return Codec(cls, layout, size, encode, encode_many, decode, decode_many, names=stated)


def _object_codec(form: Form, field: Field) -> Codec:
    cls, exact = form.cls, form.exact
    packer = compiled(f"<{field.code}")
    layout = struct_layout(packer)
    size = packer.size
    unpack, split = packer.unpack, packer.iter_unpack
    in_c = packer_in_c(packer)
    pack = packing(packer, layout, (tuple,), tuple, in_c, field.paths)
    values_of, make, gather = field.spread or form.values_of, form.make, field.gather
    if gather is not None:

        def make(*flat: Any) -> Any:
            return gather(flat)

    def encode(record: Any) -> bytes:
        if type(record) is not cls and not form.takes(record):
            raise bad_record(
                layout, f"expected {cls.__name__}, got {type(record).__name__}", record
            )
        try:
            values = values_of(record)
        except Misfit as error:
            raise bad_record(layout, error, record) from None
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

    encode_many = packing_many(packer, in_c, exact, encode, values_of)
    return Codec(
        cls,
        layout,
        size,
        encode,
        encode_many,
        decode,
        decode_many,
        calls_application=True,
        names=names_of(field.stated),
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
