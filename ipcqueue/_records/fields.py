"""The fields of a class: what an annotation says of the bytes, and of the values."""

import re
import reprlib
import struct
import types
import typing
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Annotated, Any, NamedTuple

from fdpass.lowlevel import index_of

from .forms import Form, form_of
from .structs import compiled

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

MAX_VALUES = 1 << 16
"""Largest number of values in an array of a field: a guess; each is a Python object."""


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


class Misfit(TypeError):
    """A value that its field does not take; the text names both."""


class Field(NamedTuple):
    """A field, or a whole record: its items of a struct format, and how they become its value.

    Most fields are one item as it is.  Others are spread to values, and gathered from them.
    """

    code: str
    number: int = 1  # of values
    spread: Callable[[Any], Sequence[Any]] | None = None  # Misfit
    gather: Callable[[tuple[Any, ...]], Any] | None = None
    paths: tuple[str, ...] = ("",)  # of each value, to follow that of the field
    stated: tuple[tuple[int, str], ...] = ((0, ""),)  # offset and path of each name

    @property
    def size(self) -> int:
        """Its bytes: fields are packed, little-endian, of standard sizes."""
        return struct.calcsize(f"<{self.code}")


def record_field(form: Form, inside: tuple[type, ...] = ()) -> Field:
    """Return what the objects of a class are: packed, little-endian, of standard sizes.

    Raises TypeError, which names the field, for an annotation that says no size.  `inside`: the
    records that this one is a field of.
    """
    cls, names = form.cls, form.names
    hints, inside = _hints_of(cls), (*inside, cls)
    where = (f"field {name!r} of {cls.__name__}" for name in names)
    fields = [_field_of(next(where), hints.get(name), inside) for name in names]
    at, stated = 0, []
    for name, field in zip(names, fields, strict=True):
        stated += [(at + offset, f"{name}{path}") for offset, path in field.stated]
        at += field.size
    whole = Field(
        "".join(field.code for field in fields),
        sum(field.number for field in fields),
        paths=tuple(f"{n}{path}" for n, f in zip(names, fields, strict=True) for path in f.paths),
        stated=tuple(stated),
    )
    compiled(f"<{whole.code}")
    if all(field.spread is None for field in fields):
        return whole
    return whole._replace(spread=_spread(form, fields), gather=_gather(form, fields))


def _hints_of(cls: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls, include_extras=True)
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


def _spread(form: Form, fields: Sequence[Field]) -> Callable[[Any], tuple[Any, ...]]:
    names, values_of = form.names, form.values_of
    number = len(names)

    def spread(record: Any) -> tuple[Any, ...]:
        values = values_of(record)
        if len(values) != number:
            raise Misfit(f"{len(values)} items where {number} are expected")
        flat: list[Any] = []
        for name, field, value in zip(names, fields, values, strict=True):
            flat += _spread_one(field, value, f"field {name!r}")
        return tuple(flat)

    return spread


def _gather(form: Form, fields: Sequence[Field]) -> Callable[[tuple[Any, ...]], Any]:
    make = form.make

    def gather(flat: tuple[Any, ...]) -> Any:
        return make(*_gather_all(fields, flat))

    return gather


# From an annotation to a field


def _field_of(where: str, hint: Any, inside: tuple[type, ...]) -> Field:
    kind = plain_type(hint)
    notes = getattr(hint, "__metadata__", ())
    codes = [note for note in notes if isinstance(note, str)]
    form = form_of(kind) if isinstance(kind, type) and not codes else None
    if form is not None:
        return _nested(where, form, inside)
    if is_union(kind):
        return _optional(where, hint, kind, inside)
    if (typing.get_origin(kind) or kind) in {list, tuple}:
        return _array(where, kind, [n for n in notes if isinstance(n, int)], inside)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _enum(where, kind, codes)
    code = codes[0] if codes else _PLAIN_CODES.get(kind) if isinstance(kind, type) else None
    if code is None:
        from .advice import advice_for  # noqa: PLC0415 (most programs do without)

        raise TypeError(f"{where} has no size: {advice_for(kind)}")
    if not re.fullmatch(_FIELD_CODE, code):
        raise TypeError(
            f"{where} has the code {reprlib.repr(code)}: a field has one of"
            ' bBhHiIlLqQ, e f d, ?, c, or text such as "8s"'
        )
    if kind is str and code[-1] == "s":
        return _text(code)
    given = _FIELD_TYPES[code[-1]]
    if isinstance(kind, type) and not issubclass(given, kind):
        raise TypeError(
            f"{where} is annotated {kind.__name__}, but {code!r} gives {given.__name__}"
        )
    return Field(code)


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


def is_union(kind: Any) -> bool:
    """Whether values may be of several types, or None."""
    return typing.get_origin(kind) in {typing.Union, types.UnionType}


def _text(code: str) -> Field:
    """Return a field of text in UTF-8, which zeros fill up."""
    size = struct.calcsize(f"<{code}")

    def spread(value: Any) -> tuple[bytes]:
        if not isinstance(value, str):
            raise Misfit(f"{reprlib.repr(value)} where text (str) is expected")
        data = value.encode()
        if len(data) > size:
            raise Misfit(f"{len(data)} bytes of UTF-8 where {size} are the most")
        if data.endswith(b"\0"):
            raise Misfit(f"{reprlib.repr(value)} ends with a null character, which would be lost")
        return (data,)

    def gather(flat: tuple[Any, ...]) -> str:
        data: bytes = flat[0]
        return data.rstrip(b"\0").decode()

    return Field(code, spread=spread, gather=gather)


def _enum(where: str, cls: type[Enum], codes: Sequence[str]) -> Field:
    """Return a field of the numbers of an Enum's members."""
    numbers = [member.value for member in cls.__members__.values()]
    if not all(isinstance(number, int) for number in numbers):
        raise TypeError(f"{where} is of {cls.__name__}, and not all of its values are ints")
    if not codes:
        fitting = next((code for code in "BHIQbhiq" if _all_fit(code, numbers)), "q")
        raise TypeError(
            f"{where} is of {cls.__name__}, and does not say how many bytes its values have:"
            f' annotate it as Annotated[{cls.__name__}, "{fitting}"]'
        )
    if len(codes[0]) != 1 or codes[0] not in "bBhHiIlLqQ" or not _all_fit(codes[0], numbers):
        raise TypeError(f"{where} has the code {codes[0]!r}, which {cls.__name__} does not fit")

    def spread(value: Any) -> tuple[Any]:
        if not isinstance(value, cls):
            raise Misfit(f"{reprlib.repr(value)} where a {cls.__name__} is expected")
        return (value.value,)

    def gather(flat: tuple[Any, ...]) -> Enum:
        return cls(flat[0])

    return Field(codes[0], spread=spread, gather=gather)


def _all_fit(code: str, numbers: Sequence[int]) -> bool:
    try:
        struct.pack(f"<{len(numbers)}{code}", *numbers)
    except struct.error:
        return False
    return True


def _optional(where: str, hint: Any, kind: Any, inside: tuple[type, ...]) -> Field:
    """Return a field of a number that may be None, if another number is stated that means None."""
    kinds = [each for each in typing.get_args(kind) if each is not type(None)]
    notes = getattr(hint, "__metadata__", ())
    stated = [note[None] for note in notes if isinstance(note, dict) and None in note]
    if len(kinds) != 1 or len(kinds) == len(typing.get_args(kind)):
        raise TypeError(f"{where} is a {kind}: a record has one layout, so state one type")
    if not stated:
        raise TypeError(
            f"{where} may be None, which has no bytes: state a value that means None, as in"
            ' Annotated[int | None, "q", {None: -1}], or send the record by an Encoded'
        )
    field = _field_of(where, Annotated[(kinds[0], *notes)], inside)
    number = struct.Struct(f"<{field.code}")
    if field.spread is not None or field.code[-1] in "cs?":
        raise TypeError(f"{where} may be None, which only numbers may be")
    try:
        (none,) = number.unpack(number.pack(stated[0]))
    except struct.error as error:
        raise TypeError(f"{where} has {stated[0]!r} for None: {error}") from None

    return _or_none(field, number, none)


def _or_none(field: Field, number: struct.Struct, none: Any) -> Field:
    """Return a field that is None where its number would be `none`."""

    def means_none(value: Any) -> bool:
        return bool(value == none or (value != value and none != none))  # noqa: PLR0124 (nan)

    def spread(value: Any) -> tuple[Any]:
        if value is None:
            return (none,)
        try:
            alike = means_none(number.unpack(number.pack(value))[0])
        except (struct.error, OverflowError):
            return (value,)  # which will be refused where all fields are packed
        if alike:
            raise Misfit(f"{reprlib.repr(value)} means None here")
        return (value,)

    def gather(flat: tuple[Any, ...]) -> Any:
        return None if means_none(flat[0]) else flat[0]

    return field._replace(spread=spread, gather=gather)


def _array(where: str, kind: Any, counts: Sequence[int], inside: tuple[type, ...]) -> Field:
    """Return a field of several values, in a list or tuple."""
    make, hints = typing.get_origin(kind) or kind, typing.get_args(kind)
    if make is tuple and hints and Ellipsis not in hints:
        items = [_field_of(f"item {n} of {where}", hint, inside) for n, hint in enumerate(hints)]
        return _items(tuple, items)
    if not hints or not counts or counts[0] < 1:
        example = "list[u16]" if make is list else "tuple[u16, ...]"
        raise TypeError(
            f"{where} is a {make.__name__}, and does not say of what, and how many items:"
            f" annotate it as Annotated[{example}, 8]"
        )
    item = _field_of(f"an item of {where}", hints[0], inside)
    if counts[0] * item.number > MAX_VALUES:
        raise ValueError(f"{where} has more than {MAX_VALUES} values: take a numpy.dtype for them")
    return _items(make, [item] * counts[0])._replace(stated=item.stated)


def _items(make: Callable[[Any], Any], items: Sequence[Field]) -> Field:
    number = len(items)
    plain = all(item.spread is None for item in items)

    def spread(values: Any) -> Sequence[Any]:
        if not isinstance(values, list | tuple):
            kind, advice = type(values).__name__, ": pass its tolist()"
            advice = advice if hasattr(values, "tolist") else ""
            raise Misfit(f"{kind} where a list or tuple of {number} items is expected{advice}")
        if len(values) != number:
            raise Misfit(f"{len(values)} items where {number} are expected")
        if plain:
            return values
        flat: list[Any] = []
        for index, (item, value) in enumerate(zip(items, values, strict=True)):
            flat += _spread_one(item, value, f"item {index}")
        return flat

    def gather(flat: tuple[Any, ...]) -> Any:
        return make(flat if plain else _gather_all(items, flat))

    return Field(
        "".join(item.code for item in items),
        sum(item.number for item in items),
        spread,
        gather,
        tuple(f"[{index}]{path}" for index, item in enumerate(items) for path in item.paths),
    )


def _spread_one(field: Field, value: Any, where: str) -> Sequence[Any]:
    if field.spread is None:
        return (value,)
    try:
        return field.spread(value)
    except (AttributeError, TypeError, ValueError) as error:
        raise Misfit(f"{where}: {error}") from None


def _gather_all(fields: Sequence[Field], flat: tuple[Any, ...]) -> list[Any]:
    values, at = [], 0
    for field in fields:
        end = at + field.number
        values.append(flat[at] if field.gather is None else field.gather(flat[at:end]))
        at = end
    return values


def _nested(where: str, form: Form, inside: tuple[type, ...]) -> Field:
    """Return a field that is a record of its own."""
    cls = form.cls
    if cls in inside:
        raise TypeError(f"{where} holds a {cls.__name__}, which holds it: a record has one size")
    field = record_field(form, inside)
    apart, gather, count = field.spread or form.values_of, field.gather, field.number

    def spread(record: Any) -> Sequence[Any]:
        if not form.takes(record):
            raise Misfit(f"{type(record).__name__} where {cls.__name__} is expected")
        values = apart(record)
        if len(values) != count:
            raise Misfit(f"{len(values)} items where {count} are expected")
        return values

    def made(flat: tuple[Any, ...]) -> Any:
        return form.make(*flat)

    return field._replace(
        spread=spread,
        gather=gather or made,
        paths=tuple(f".{path}" for path in field.paths),
        stated=tuple((offset, f".{path}") for offset, path in field.stated),
    )
