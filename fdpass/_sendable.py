"""What may leave this process: every object of the application is checked here before it is sent.

Addresses mean nothing in another process, and reveal where this one keeps its data. Hidden values
of a masked array are not part of its data. Both are among the bytes of an object's memory, so both
would be sent unless somebody checks.

This file imports neither numpy nor ctypes: a program that has such an object has imported them.
"""

import array
import functools
import mmap
import re
import sys
from collections.abc import Callable
from typing import Any

from ._errors import Unsendable

# These types can hold no pointers. Checked first, because most objects that are sent are of them.
_PLAIN: frozenset[type] = frozenset(
    {bytes, bytearray, array.array, mmap.mmap, int, float, bool, tuple, list}
)

_POINTERS = "got pointers into this process, which mean nothing in another: send what they point to"


def exported(data: Any) -> memoryview:
    """Return a view of an object's memory, of any shape, after checking that it may be sent.

    Raises Unsendable for pointers and masked values; TypeError, ValueError or BufferError for an
    object without a buffer.
    """
    view = memoryview(data)
    if type(data) not in _PLAIN:
        check_sendable(view)
    return view


def check_sendable(thing: object) -> None:
    """Raise Unsendable if the object holds pointers into this process, or masked values.

    It looks at the format of a memoryview and at the object behind it, at ctypes objects, and at
    numpy's masked arrays. It cannot tell whether a plain integer is an address.
    """
    if type(thing) is memoryview:
        form = thing.format
        if len(form) > 1 or form in "OPXz&":
            field_name, pointer = _patterns()
            if pointer.search(field_name.sub("", form)):
                raise Unsendable(_POINTERS)
        thing = thing.obj
    kind: Any = type(thing)
    if kind in _PLAIN:
        return
    judge = _judge_of(kind)
    if judge is not None:
        judge(thing)


@functools.cache
def _patterns() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Return the patterns of field names in PEP 3118 formats, and of pointers in what is left.

    Pointers are objects (O), pointers to data and to functions (P, &, X), and the strings of ctypes
    (z, Z; but Zd is a complex number).  Compiled at first use: few programs send such memory.
    """
    return re.compile(":[^:]*:"), re.compile("[OP&Xz]|Z(?![fdg])")


@functools.lru_cache(maxsize=256)
def _judge_of(kind: Any) -> Callable[[object], None] | None:
    """Return the function that checks objects of this type; None if none is needed."""
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
            "got masked values, which hide what must not be sent: send array.filled(value), "
            "array.compressed(), or the mask as a field of its own"
        )


def is_masked(thing: object) -> bool:
    """Whether it is a numpy masked array, or an item of one, with at least one hidden value."""
    kind: Any = type(thing)
    return _judge_of(kind) is _refuse_masked and _hides_something(thing)


def _hides_something(array: Any) -> bool:
    mask = array.mask
    # The mask of records has a bool for each field, which numpy cannot reduce: look at its bytes.
    return 1 in mask.tobytes() if mask.dtype.names else bool(mask.any())


def _holds_pointers(ctypes: Any, cls: Any) -> bool:
    """Whether a ctypes class holds pointers. Its format does not tell: a union has "B"."""
    if issubclass(cls, ctypes.Structure | ctypes.Union):
        fields = [entry for base in cls.__mro__ for entry in vars(base).get("_fields_", ())]
        return any(_holds_pointers(ctypes, entry[1]) for entry in fields)
    if issubclass(cls, ctypes.Array):
        return _holds_pointers(ctypes, cls._type_)
    # Anything else is a pointer: to data, or to a function.
    return not issubclass(cls, ctypes._SimpleCData) or cls._type_ in "OPzZX"  # noqa: SLF001
