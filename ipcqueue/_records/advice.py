"""Annotations that say no size: what to write instead.  Imported when there is one."""

from __future__ import annotations

import sys
import typing
from typing import Any

_ENCODED = "send the record by an Encoded"
_MOMENT = (
    "send a number, such as an i64 of nanoseconds; a numpy.dtype may have datetime64[ns] and"
    " timedelta64[ns]"
)
_LETTERS = 'annotate it as char(8), or Annotated[bytes, "8s"], as long as need be'
_PATH = 'annotate it as Annotated[str, "255s"], and send str(path)'
# By name, so that nothing is imported for it.
_ADVICE = {
    "builtins.bytes": _LETTERS,
    "builtins.bytearray": _LETTERS,
    "builtins.memoryview": _LETTERS,
    "builtins.str": 'annotate it as Annotated[str, "8s"], for up to 8 bytes of UTF-8',
    "builtins.complex": "annotate it as tuple[f64, f64], and send its two parts",
    "datetime.datetime": _MOMENT,
    "datetime.date": _MOMENT,
    "datetime.time": _MOMENT,
    "datetime.timedelta": _MOMENT,
    "decimal.Decimal": "annotate it as i64, and send how many of the smallest unit it is",
    "fractions.Fraction": "annotate it as tuple[i64, i64], and send its two parts",
    "uuid.UUID": "annotate it as char(16), and send its .bytes",
    "pathlib.Path": _PATH,
    "pathlib._local.Path": _PATH,  # CPython 3.13
    "numpy.ndarray": "annotate it as Annotated[list[f64], 8], or take a numpy.dtype as the record",
}


def advice_for(kind: Any) -> str:
    """Return what to write instead of an annotation that says no size."""
    if kind is None:
        return "annotate it, as u64, f64 or bool"
    cls = typing.get_origin(kind) or kind
    if not isinstance(cls, type):
        return f"a value of {kind} may have any size; {_ENCODED}"
    if (name := _number_of(cls)) is not None:
        return f"annotate it as {name}; it arrives as Python's own number"
    if hasattr(cls, "_fields_") or hasattr(cls, "_type_"):
        return "ctypes goes by itself: take a ctypes.Structure as the record, or u32 and the like"
    advice = _ADVICE.get(f"{cls.__module__}.{cls.__qualname__}")
    if advice is None and cls.__module__ not in {"builtins", "typing", "collections"}:
        advice = (
            f"make {cls.__name__} a NamedTuple or dataclass with annotated fields; or {_ENCODED}"
        )
    return advice or f"a value of type {cls.__name__} may have any size; {_ENCODED}"


def _number_of(cls: type) -> str | None:
    """Return our annotation for a scalar type of numpy's."""
    numpy = sys.modules.get("numpy")
    if numpy is None or not (issubclass(cls, numpy.generic) and cls in numpy.sctypeDict.values()):
        return None
    dtype = numpy.dtype(cls)
    number = dtype.kind in "iuf" and dtype.itemsize <= 8  # noqa: PLR2004
    return f"{dtype.kind}{8 * dtype.itemsize}" if number else "bool" if dtype.kind == "b" else None
