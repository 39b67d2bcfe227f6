"""What may leave this process: the one place that is asked before memory of others is sent.

Addresses mean nothing in another process, and tell it where this one keeps what. What a masked array
hides is not part of its data. Whoever looks at an object as bytes would send both.

None of numpy and ctypes is imported here: an object made with one of them has already done so.
"""

import array
import functools
import mmap
import re
import sys
from collections.abc import Callable
from typing import Any

from ._errors import Unsendable

# Of a struct format as PEP 3118 writes it, once the names of fields are gone: objects, pointers to
# data and to functions (P, &, X), and the texts of ctypes (z, Z; but Zd is a complex number).
_FIELD_NAME = re.compile(":[^:]*:")
_POINTER = re.compile("[OP&Xz]|Z(?![fdg])")

# What has no format that could be wrong: asked first, as most that is sent is one of these.
_PLAIN: frozenset[type] = frozenset(
    {bytes, bytearray, array.array, mmap.mmap, int, float, bool, tuple, list}
)

_POINTERS = "got pointers into this process, which mean nothing in another: send what they point to"


def exported(data: Any) -> memoryview:
    """View the memory of an object whose bytes may leave this process, in whatever shape it has.

    Raises Unsendable for pointers and masked values; TypeError, ValueError or BufferError for what
    is no memory.
    """
    view = memoryview(data)
    if type(data) not in _PLAIN:
        check_sendable(view)
    return view


def check_sendable(thing: object) -> None:
    """Raise Unsendable if the object holds pointers into this process, or masked values.

    Looked for: the formats of memoryviews and what they are views of, ctypes, and numpy's masked
    arrays. A number that was an address before is a number: nothing tells.
    """
    if type(thing) is memoryview:
        form = thing.format
        if len(form) > 1 or form in "OPXz&":
            form = _FIELD_NAME.sub("", form)
            if _POINTER.search(form):
                raise Unsendable(_POINTERS)
        thing = thing.obj
    kind: Any = type(thing)
    if kind in _PLAIN:
        return
    judge = _judge_of(kind)
    if judge is not None:
        judge(thing)


@functools.lru_cache(maxsize=256)
def _judge_of(kind: Any) -> Callable[[object], None] | None:
    """Return what looks at objects of this type; None if there is nothing to look for."""
    ctypes = sys.modules.get("_ctypes")
    if ctypes is not None and issubclass(kind, ctypes._SimpleCData.__base__):  # noqa: SLF001
        return _refuse_pointers if _holds_pointers(ctypes, kind) else None
    masked = getattr(sys.modules.get("numpy.ma"), "MaskedArray", None)
    return _refuse_masked if masked is not None and issubclass(kind, masked) else None


def _refuse_pointers(_: object) -> None:
    raise Unsendable(_POINTERS)


def _refuse_masked(array: object) -> None:
    if _hides_something(array):
        raise Unsendable(
            "got masked values, behind which is no data: send array.filled(value), "
            "array.compressed(), or the mask as a field of its own"
        )


def is_masked(thing: object) -> bool:
    """Whether it is a masked array of numpy's (also a number or record of one) that hides values."""
    kind: Any = type(thing)
    return _judge_of(kind) is _refuse_masked and _hides_something(thing)


def _hides_something(array: Any) -> bool:
    mask = array.mask
    # Of records it has a bool for each field, which numpy cannot reduce: look at the bytes.
    return 1 in mask.tobytes() if mask.dtype.names else bool(mask.any())


def _holds_pointers(ctypes: Any, cls: Any) -> bool:
    """Whether a ctypes class does. Their formats do not tell: that of a union is "B"."""
    if issubclass(cls, ctypes.Structure | ctypes.Union):
        fields = [entry for base in cls.__mro__ for entry in vars(base).get("_fields_", ())]
        return any(_holds_pointers(ctypes, entry[1]) for entry in fields)
    if issubclass(cls, ctypes.Array):
        return _holds_pointers(ctypes, cls._type_)
    # All else is a pointer: to data, or to a function.
    return not issubclass(cls, ctypes._SimpleCData) or cls._type_ in "OPzZX"  # noqa: SLF001
