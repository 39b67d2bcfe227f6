"""The fields of a class: what an annotation says of the bytes."""

from __future__ import annotations

import re
import reprlib
import typing
from typing import TYPE_CHECKING, Annotated, Any

from fdpass.lowlevel import index_of

from .structs import compiled

if TYPE_CHECKING:
    import struct
    from collections.abc import Iterable

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


def field_codes(cls: type, names: Iterable[str]) -> struct.Struct:
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
