"""The names of a record's fields, as a side states them: a table of hashes.

Two sides whose layouts are equal may still mean different fields: bid and ask swapped would arrive
swapped.  So each states where it has which name, and a name that both state at different offsets
is refused.  A name that only one side states counts for nothing, so a program without names, such
as one with a struct format, talks to any other.

The table has 131 numbers of 64 bits: how many names there are; if there are more than 64, a hash of
all and one of all with their offsets, else 0 and 0; then hash and offset of the first 64, in order
of offset, and zeros.  Of more than 64 names, the first 64 are compared one by one.  If both sides
state the same names, these must all be at the same offsets.

A name is a path such as `order.price`, hashed by BLAKE2b with a digest of 8 bytes over its UTF-8.
"""

import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from operator import ge
from typing import Any, NamedTuple

MAX_NAMES = 64
"""How many names a table holds one by one: IPCQ_MAX_NAMES of core/ring.h."""

_TABLE = struct.Struct(f"<{3 + 2 * MAX_NAMES}Q")
_SHOWN = 4  # fields that an error names


class Names(NamedTuple):
    """What a side states of its fields: the table, and for errors (offset, path) of each."""

    table: bytes = bytes(_TABLE.size)
    fields: tuple[tuple[int, str], ...] = ()


NO_NAMES = Names()


def names_of(fields: Iterable[tuple[int, str]]) -> Names:
    """Return the names, of (offset, path) of each field; what occurs twice counts for nothing."""
    ordered = tuple(sorted(fields))
    paths = [path.encode(errors="surrogatepass") for _, path in ordered]
    if len(set(paths)) < len(paths):  # such as "a.b", and "b" in "a"
        times = Counter(path for _, path in ordered)
        return names_of(each for each in ordered if times[each[1]] == 1)
    if not ordered:
        return NO_NAMES
    from hashlib import blake2b  # noqa: PLC0415 (slow to import; messages do without)

    offsets = [offset for offset, _ in ordered]
    texts = paths[:MAX_NAMES]
    if len(paths) > MAX_NAMES:
        # Each ends with a zero byte.
        placed = (b"%d %s" % each for each in zip(offsets, paths, strict=True))
        texts += (b"".join(b"%s\0" % text for text in some) for some in (sorted(paths), placed))
    hashes = [int.from_bytes(blake2b(text, digest_size=8).digest(), "little") for text in texts]
    total = hashes[MAX_NAMES:] or [0, 0]
    entries = [0] * (2 * MAX_NAMES)
    shown = len(paths[:MAX_NAMES])
    entries[: 2 * shown : 2], entries[1 : 2 * shown : 2] = hashes[:shown], offsets[:shown]
    return Names(_TABLE.pack(len(paths), *total, *entries), ordered)


def check_names(mine: Names, theirs: bytes, size: int) -> str:
    """Compare the names of two sides whose records have the same layout, of `size` bytes.

    Return what differs, in words; an empty text if nothing does.  Raises ValueError for a table of
    the peer's that nobody makes.
    """
    if theirs in (mine.table, NO_NAMES.table):
        return ""
    count, *total = _TABLE.unpack(theirs)
    entries, shown = total[2:], 2 * min(count, MAX_NAMES)
    hashes, offsets = entries[:shown:2], entries[1:shown:2]
    if count > size:
        raise ValueError(f"{count} names in a record of {size} bytes")
    if any(entries[shown:]) or (count <= MAX_NAMES and (total[0] or total[1])):
        raise ValueError(f"more than its {count} names")
    if any(map(ge, offsets, [*offsets[1:], size])):
        raise ValueError("names at offsets that do not grow, or reach beyond the record")
    own = _TABLE.unpack(mine.table)
    places = dict(zip(hashes, offsets, strict=True))
    differ = [
        f"field {path!r} is at byte {offset} here, and at byte {there} of the peer's"
        for name, (offset, path) in zip(own[3::2], mine.fields, strict=False)
        if (there := places.get(name, offset)) != offset
    ]
    if differ:
        more = len(differ) - _SHOWN
        return "; ".join(differ[:_SHOWN]) + (f"; {more} more are elsewhere" if more > 0 else "")
    if count > MAX_NAMES and own[1] == total[0] and own[2] != total[1]:
        return f"the same {count} names are in another order behind the {MAX_NAMES}th"
    return ""


def places_of(table: bytes) -> dict[int, int]:
    """Return the offset for each hash that a table states, in its order."""
    count, *words = _TABLE.unpack(table)
    shown = 2 * min(count, MAX_NAMES)
    return dict(zip(words[2 : 2 + shown : 2], words[3 : 3 + shown : 2], strict=True))


# Where kinds of records have their names


def numpy_names(dtype: Any) -> Names:
    """Return the names of a dtype's fields; those that numpy makes up (f0, f1, ...) are none."""
    return names_of(_numpy_fields(dtype))


def _numpy_fields(dtype: Any, path: str = "", at: int = 0) -> Iterator[tuple[int, str]]:
    base = dtype.base  # of an array its items: the first one stands for all
    if base.names is None and path:
        yield at, path
    names = base.names or ()
    if all(name == f"f{number}" for number, name in enumerate(names)):
        return
    for name in names:
        inner, offset = base.fields[name][:2]
        if inner.itemsize:
            yield from _numpy_fields(inner, f"{path}.{name}" if path else name, at + offset)


def ctypes_names(ctypes: Any, cls: Any) -> Names:
    """Return the names of the fields of a ctypes structure."""
    return names_of(_ctypes_fields(ctypes, cls))


def _ctypes_fields(ctypes: Any, cls: Any, path: str = "", at: int = 0) -> Iterator[tuple[int, str]]:
    while issubclass(cls, ctypes.Array):
        cls = cls._type_
    if not issubclass(cls, ctypes.Structure) and path:
        yield at, path
    for base in reversed(cls.__mro__):
        for name, kind in vars(base).get("_fields_", ()):
            inner = f"{path}.{name}" if path else name
            if ctypes.sizeof(kind):
                yield from _ctypes_fields(ctypes, kind, inner, at + vars(base)[name].offset)
