"""The layout of a record, byte by byte: one canonical form, however the spec spells it.

Pure: bytes and types in, text and hashes out.  A layout is a size and a list of runs, in order of
offset.  A run is a series of equal items without gaps between them:

    8 bytes: 0:u32 4:u8[2]          16 bytes: 0:f64 8:u64be          24 bytes: 0:char[24]

Rules that decide whether two spellings are the same layout:

- Names and nesting do not count.  Nor does padding, except in the total size.
- Neighbours of one kind merge: "4I", "IIII" and an array of four c_uint32 are one run.
- The kinds are u and i (integers), f (floats; a complex is two), bool, and char (opaque bytes);
  and datetime and timedelta (moments and durations), whose unit is stated: `datetime64(25us)`.
- A unit is the largest of which its count is whole: 1000 ms are `s`, 1500 ms are `1500ms`.
- Text is char: "24s", c_char * 24, numpy S24 and V24, and the int spec 24 are the same.
- Numbers of one byte are not text: "24B" is u8[24], and differs from "24s".
- Only items of more than one byte have a byte order; big-endian is marked, little-endian is not.

The fingerprint is BLAKE2b with a 16-byte digest over that text in ASCII, always with "bytes" in
the plural.  So a program in any language can compute it.  A layout lists runs, never single items:
sixteen million characters are one run.
"""

import re
import struct
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

MAX_RECORD = 16 * 1024 * 1024
"""Largest record, in bytes."""

MAX_RUNS = 1 << 18
"""Largest number of runs in a layout: a guess, about a second of work; send more as bytes."""

MAX_DESCRIPTION = 400
"""Largest description, in bytes; the segment header holds it for error messages."""

_NATIVE = "<" if sys.byteorder == "little" else ">"
_STRUCT_ITEM = r"\s*(\d*)([a-zA-Z?])"  # re compiles it at first use
_STRUCT_KINDS = {
    **dict.fromkeys("BHILQN", "u"),
    **dict.fromkeys("bhilqn", "i"),
    **dict.fromkeys("efd", "f"),
    **dict.fromkeys("cs", "char"),
    "?": "bool",
}
_STRUCT_REFUSED = {
    "P": "holds a pointer ('P')",
    "p": "holds a Pascal string ('p'), which no other kind of record has: use 's'",
}
_CTYPES_KINDS = {
    **dict.fromkeys("BHILQ", "u"),
    **dict.fromkeys("bhilq", "i"),
    **dict.fromkeys("fd", "f"),
    "c": "char",
    "?": "bool",
}
_CTYPES_REFUSED = {
    "P": "a pointer",
    "z": "a pointer",
    "Z": "a pointer",
    "O": "a pointer",
    "g": "a long double, which differs between machines",
    "u": "a wide character, which differs between machines",
}
_NUMPY_KINDS = {
    **{kind: kind for kind in "uif"},
    **dict.fromkeys("SV", "char"),
    "c": "f",
    "b": "bool",
    "M": "datetime",
    "m": "timedelta",
}
_NUMPY_REFUSED = {
    "O": "holds Python objects, which are pointers into this process",
    "U": "is text of four bytes a character: encode it, and use S",
    "T": "holds strings of any length, which are pointers into this process",
}
# How many of a unit are one of the next.  A month has no fixed number of weeks.
_TIME_UNITS = {
    **dict.fromkeys(("as", "fs", "ps", "ns", "us", "ms"), 1000),
    "s": 60,
    "m": 60,
    "h": 24,
    "D": 7,
    "W": 0,
    "M": 12,
    "Y": 0,
}
_NUMPY_USERDEF = 256  # NPY_USERDEF in ndarraytypes.h: from here on, types of other packages


class Run(NamedTuple):
    """Equal items that follow each other without a gap."""

    offset: int
    kind: str
    itemsize: int
    order: str
    unit: str  # of times: what one more means, such as "25us"
    items: int

    @property
    def end(self) -> int:
        """Offset of the first byte after the run."""
        return self.offset + self.itemsize * self.items

    def __str__(self) -> str:
        bits = "" if self.kind in {"char", "bool"} else str(self.itemsize * 8)
        unit = f"({self.unit})" if self.unit else ""
        order = "be" if self.order == ">" else ""
        count = "" if self.items == 1 else f"[{self.items}]"
        return f"{self.offset}:{self.kind}{bits}{unit}{order}{count}"


class Layout(NamedTuple):
    """The canonical layout of a record; equal layouts have equal fingerprints.

    The description is ASCII of at most 400 bytes, cut with "..."; the fingerprint has 16 bytes.
    """

    size: int
    runs: tuple[Run, ...]
    fingerprint: bytes
    description: str


# How runs become layouts


def check_size(size: int, what: str) -> None:
    """Raise ValueError unless a slot may have `size` bytes."""
    if not 1 <= size <= MAX_RECORD:
        raise ValueError(f"{what} has {size} bytes; a record has 1 to {MAX_RECORD} (16 MiB)")


def _layout(size: int, runs: Sequence[Run]) -> Layout:
    # Here, because messages do without.  hashlib has the same function, and loads OpenSSL: 3 ms.
    try:
        from _blake2 import blake2b  # noqa: PLC0415
    except ImportError:  # of a Python that is built without
        from hashlib import blake2b  # noqa: PLC0415

    text = f"{size} bytes:" + "".join(f" {run}" for run in runs)
    digest = blake2b(text.encode("ascii"), digest_size=16).digest()
    if len(text) > MAX_DESCRIPTION:
        text = text[: MAX_DESCRIPTION - 3].rsplit(" ", 1)[0] + "..."
    return Layout(size, tuple(runs), digest, text)


def _item(kind: str, itemsize: int, order: str, count: int = 1, unit: str = "") -> list[Run]:
    if itemsize == 1:
        order = ""
    return [Run(0, kind, itemsize, order, unit, count)] if count else []


def _merge(runs: Iterable[Run]) -> list[Run]:
    """Sort runs by offset and join neighbours of one kind; raise TypeError if runs overlap."""
    merged: list[Run] = []
    for run in sorted(runs):
        if merged:
            last = merged[-1]
            if run.offset < last.end:
                raise TypeError(f"fields overlap at byte {run.offset}: {last} and {run}")
            if run.offset == last.end and run[1:5] == last[1:5]:
                merged[-1] = last._replace(items=last.items + run.items)
                continue
        merged.append(run)
    if len(merged) > MAX_RUNS:
        raise _too_many_runs()
    return merged


def _shift(runs: Sequence[Run], by: int) -> list[Run]:
    return [run._replace(offset=run.offset + by) for run in runs] if by else list(runs)


def _repeat(runs: Sequence[Run], count: int, stride: int) -> list[Run]:
    if count == 0 or not runs:
        return []
    if len(runs) == 1 and runs[0].end - runs[0].offset == stride:
        return [runs[0]._replace(items=runs[0].items * count)]
    if len(runs) * count > 2 * MAX_RUNS:  # before making them; _merge() counts exactly
        raise _too_many_runs()
    return _merge(run for i in range(count) for run in _shift(runs, i * stride))


def _too_many_runs() -> ValueError:
    return ValueError(
        f"the record changes its kind of item more than {MAX_RUNS} times;"
        " send it as bytes, by giving its size in bytes as an int"
    )


# Bytes and struct formats


def bytes_layout(size: int) -> Layout:
    """Layout of a record of opaque bytes."""
    check_size(size, "the record")
    return _layout(size, _item("char", size and 1, "", size))


def struct_items(form: str) -> Iterator[tuple[str, int]]:
    """Yield (code, repeat count) for each item of a struct format, which must be valid."""
    for number, code in re.findall(_STRUCT_ITEM, form.lstrip("@=<>!")):
        yield code, int(number) if number else 1


def struct_layout(packer: struct.Struct) -> Layout:
    """Layout of a compiled struct format; TypeError for pointers and Pascal strings."""
    form = packer.format
    check_size(packer.size, f"the struct format {_short(form)}")
    native = form[0] not in "=<>!"
    order = {"<": "<", ">": ">", "!": ">"}.get(form[0], _NATIVE)
    runs = _struct_runs(form, native=native, order=order)
    return _layout(packer.size, _merge(runs))


def _struct_runs(form: str, *, native: bool, order: str) -> Iterator[Run]:
    offset = 0
    for code, count in struct_items(form):
        if code in _STRUCT_REFUSED:
            raise TypeError(f"the struct format {_short(form)} {_STRUCT_REFUSED[code]}")
        size = struct.calcsize(code if native else f"={code}")
        if native:
            # An item begins at a multiple of its alignment, even if it is repeated 0 times ("0Q"
            # tells struct to pad the end).
            align = struct.calcsize(f"c{code}") - size
            offset = -(-offset // align) * align
        if code != "x":
            yield from _shift(_item(_STRUCT_KINDS[code], size, order, count), offset)
        offset += size * count


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")  # noqa: PLR2004


# ctypes


def ctypes_layout(ctypes: Any, cls: Any) -> Layout:
    """Layout of a ctypes structure or array; TypeError, which names the field, if refused."""
    try:
        size = ctypes.sizeof(cls)
    except TypeError:
        raise TypeError(f"{cls.__name__} has no fields") from None
    check_size(size, cls.__name__)
    return _layout(size, _ctypes_runs(ctypes, cls, cls.__name__))


def _ctypes_runs(ctypes: Any, cls: Any, where: str) -> list[Run]:
    if issubclass(cls, ctypes.Structure):
        return _merge(
            run
            for base in reversed(cls.__mro__)
            for entry in vars(base).get("_fields_", ())
            for run in _ctypes_field(ctypes, base, entry, where)
        )
    if issubclass(cls, ctypes.Array):
        stride = ctypes.sizeof(cls._type_)
        return _repeat(_ctypes_runs(ctypes, cls._type_, f"{where}[]"), cls._length_, stride)
    if issubclass(cls, ctypes.Union):
        raise TypeError(f"{where} is a union: which of its members is meant cannot be told")
    # Pointers to data have a type in _type_; pointers to functions have none, or a flag.
    code = cls._type_ if issubclass(cls, ctypes._SimpleCData) else "P"  # noqa: SLF001
    if code not in _CTYPES_KINDS:
        raise TypeError(f"{where} is {_CTYPES_REFUSED.get(code, f'of unsupported type {code!r}')}")
    little = getattr(cls, "__ctype_le__", cls) is cls
    big = getattr(cls, "__ctype_be__", cls) is cls
    order = _NATIVE if little == big else "<" if little else ">"
    return _item(_CTYPES_KINDS[code], ctypes.sizeof(cls), order)


def _ctypes_field(ctypes: Any, owner: Any, entry: Any, where: str) -> list[Run]:
    name, kind, *bits = entry
    where = f"{where}.{name}"
    if bits:
        raise TypeError(f"{where} is a bit field: compilers disagree on where its bits are")
    return _shift(_ctypes_runs(ctypes, kind, where), vars(owner)[name].offset)


# numpy


def numpy_layout(dtype: Any) -> Layout:
    """Layout of a numpy dtype; TypeError, which names the field, if refused."""
    check_size(dtype.itemsize, f"the dtype {_short(str(dtype))}")
    return _layout(dtype.itemsize, _numpy_runs(dtype, "dtype"))


def _numpy_runs(dtype: Any, where: str) -> list[Run]:
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        count = 1
        for length in shape:
            count *= length
        return _repeat(_numpy_runs(base, f"{where}[]"), count, base.itemsize)
    if dtype.names is not None:
        return _merge(
            run
            for name in dtype.names
            for run in _shift(
                _numpy_runs(dtype.fields[name][0], f"{where}.{name}"), dtype.fields[name][1]
            )
        )
    kind, size = dtype.kind, dtype.itemsize
    if kind in _NUMPY_REFUSED:
        raise TypeError(f"{where} {_NUMPY_REFUSED[kind]}")
    wide = size > {"f": 8, "c": 16}.get(kind, size)  # long doubles differ between machines
    if kind not in _NUMPY_KINDS or wide or dtype.num >= _NUMPY_USERDEF:
        raise TypeError(f"{where} is of type {dtype}, which has no portable layout")
    order = _NATIVE if dtype.byteorder in "=|" else dtype.byteorder
    if kind in "SV":
        return _item("char", 1, "", size)
    if kind == "c":
        return _item("f", size // 2, order, 2)
    unit = _time_unit(dtype, where) if kind in "mM" else ""
    return _item(_NUMPY_KINDS[kind], size, order, unit=unit)


def _time_unit(dtype: Any, where: str) -> str:
    """Return what a number of a datetime64 or timedelta64 counts; TypeError if nobody says."""
    unit, count = sys.modules["numpy"].datetime_data(dtype)
    if unit not in _TIME_UNITS:
        name = dtype.type.__name__
        raise TypeError(f"{where} is a {name} without a unit: state one, such as {name}[ns]")
    names = list(_TIME_UNITS)
    while (more := _TIME_UNITS[unit]) and count % more == 0:
        unit, count = names[names.index(unit) + 1], count // more
    return unit if count == 1 else f"{count}{unit}"
