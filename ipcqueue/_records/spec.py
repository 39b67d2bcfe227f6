"""codec_for: from a record spec to the codec for it.

A codec is a few functions, made once per spec, that the queue calls for each record.  They are
closures, not methods, because a closure costs least beside a bare `Struct.pack`.

Three promises hold for every kind of spec:

- encode loses nothing in silence.  struct and numpy would cut or wrap some values (bytes too long
  for their field, a fraction or a large number in an integer).  These are a BadRecord, raised
  before anything is sent.  Floats are rounded to the width of their field, but never to infinity.
- encode sends no secrets.  Pointers into this process and the hidden values of a masked array are a
  BadRecord (fdpass/_sendable.py).  A masked array that hides nothing is sent.
- decode copies.  Its result does not depend on the slot, which the sender will write again.

Text fields behave as in their library.  struct pads short bytes with NULs and returns them with the
padding (so do NamedTuples and dataclasses).  numpy's S strips trailing NULs.  The value of a ctypes
c_char array ends at the first NUL.

Padding made by struct or by a conversion is zero.  Padding of a ctypes or numpy record is sent as
it is, with the old memory contents of this process in it.

This file imports none of numpy, ctypes and dataclasses: a program with such a spec has imported
them.
"""

from __future__ import annotations

import contextlib
import reprlib
import struct
import sys
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from fdpass.lowlevel import index_of

from .classes import class_codec, ctypes_codec
from .codec import Codec
from .messages import Encoded, Message, MessageCodec
from .opaque import bytes_codec
from .structs import struct_codec

if TYPE_CHECKING:
    from .codec import AnyCodec

_ACCEPTED = (
    "a record spec is a size in bytes (int), a struct format (str or struct.Struct),"
    " a NamedTuple class, dataclass, attrs class or msgspec.Struct with annotated fields,"
    " a ctypes.Structure class,"
    " a numpy.dtype, or, for messages of any length, bytes, Message or Encoded(encode, decode)"
)
"""For records of one size, or for messages of any length."""


def codec_for(spec: Any) -> AnyCodec:
    """Return the codec for a record spec; a codec is returned unchanged.

    Raises TypeError for anything that is no spec, and for a spec with fields that mean nothing in
    another process, such as pointers; ValueError for an impossible size or struct format.
    """
    if isinstance(spec, Codec | MessageCodec):
        return spec
    if spec is bytes or spec is Message or isinstance(spec, Encoded):
        return MessageCodec(spec)
    if hasattr(type(spec), "__index__") and not isinstance(spec, int):
        with contextlib.suppress(TypeError):  # an array of more than one number
            spec = index_of(spec)
    try:
        hash(spec)
    except TypeError:
        raise TypeError(f"{_ACCEPTED}; not {reprlib.repr(spec)}") from None
    # Two numpy dtypes are equal even if one makes np.void and the other np.record.
    return _make_codec(spec, None if isinstance(spec, type) else getattr(spec, "type", None))


@lru_cache(maxsize=128, typed=True)  # typed, because True == 1
def _make_codec(spec: Any, _scalar: Any) -> Codec:
    if isinstance(spec, int) and not isinstance(spec, bool):
        return bytes_codec(spec)
    if isinstance(spec, str | struct.Struct):
        return struct_codec(spec)
    codec = _class_codec(spec) if isinstance(spec, type) else None
    # If numpy is not imported, the spec cannot be one of its types.
    if codec is None and (numpy := sys.modules.get("numpy")):
        from .arrays import numpy_codec  # noqa: PLC0415 (for programs that use numpy alone)

        # Scalar types missing from this table, such as numpy.floating, are abstract.
        if isinstance(spec, type) and spec in numpy.sctypeDict.values():
            return numpy_codec(numpy, spec, numpy.dtype(spec))
        if isinstance(spec, numpy.dtype):
            return numpy_codec(numpy, spec, spec)
    if codec is None:
        raise TypeError(f"{_ACCEPTED}; not {reprlib.repr(spec)}")
    return codec


def _class_codec(cls: type) -> Codec | None:
    ctypes = sys.modules.get("ctypes")
    if ctypes and issubclass(cls, ctypes.Structure | ctypes.Array):
        return ctypes_codec(ctypes, cls)
    return class_codec(cls)
