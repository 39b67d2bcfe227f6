"""How a record becomes the bytes of a slot, and back.

`codec_for` turns a record spec into a codec: four functions, made once per spec, that the queue
calls for each record.  They are closures rather than methods because nothing in Python is nearer
to a bare `Struct.pack`.

Three promises hold for every kind of spec:

- encode loses nothing in silence.  What struct and numpy would cut or wrap (bytes too long for
  their field, a fraction or a large number put into an integer) is a BadRecord, raised before
  anything is sent.  Floats are rounded to the width of their field, but never to infinity;
- encode sends no secrets: pointers into this process and what a masked array hides are a BadRecord
  (fdpass/_sendable.py).  A masked array that hides nothing is an array;
- decode copies.  What it gives owes nothing to the slot, which the sender will write again.

Text fields keep the habits of their library: struct pads short bytes with NULs and gives them
all back (so do NamedTuples and dataclasses), numpy's S strips trailing NULs, and the value of a
ctypes c_char array ends at the first NUL.

Padding that struct or a conversion makes is zero; that of a ctypes or numpy record is sent as it
is, with whatever this process left in it.

None of numpy, ctypes and dataclasses is imported here: a spec made with one of them has already
done so.
"""

from __future__ import annotations

import contextlib
import reprlib
import struct
import sys
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from fdpass.lowlevel import index_of

from .arrays import numpy_codec
from .classes import ctypes_codec, dataclass_codec, namedtuple_codec
from .codec import Codec
from .messages import Encoded, Message, MessageCodec
from .opaque import bytes_codec
from .structs import struct_codec

if TYPE_CHECKING:
    from .codec import AnyCodec

_ACCEPTED = (
    "a record spec is a size in bytes (int), a struct format (str or struct.Struct),"
    " a NamedTuple class or a dataclass with annotated fields, a ctypes.Structure class,"
    " a numpy.dtype, or, for messages of any length, bytes, Message or Encoded(encode, decode)"
)
"""For records of one size, or for messages of any length."""


def codec_for(spec: Any) -> AnyCodec:
    """Give the codec for a record spec; a Codec is returned as it is.

    Raises TypeError for what is no spec, or holds what means nothing in another process, such as
    pointers; ValueError for a size that is none, and for a malformed struct format.
    """
    if isinstance(spec, Codec | MessageCodec):
        return spec
    if spec is bytes or spec is Message or isinstance(spec, Encoded):
        return MessageCodec(spec)
    if hasattr(type(spec), "__index__") and not isinstance(spec, int):
        with contextlib.suppress(TypeError):  # an array of more than a number
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
    # Not imported means that the spec cannot come from there.
    if codec is None and (numpy := sys.modules.get("numpy")):
        # Scalar types that are not in this table, such as numpy.floating, are abstract.
        if isinstance(spec, type) and spec in numpy.sctypeDict.values():
            return numpy_codec(numpy, spec, numpy.dtype(spec))
        if isinstance(spec, numpy.dtype):
            return numpy_codec(numpy, spec, spec)
    if codec is None:
        raise TypeError(f"{_ACCEPTED}; not {reprlib.repr(spec)}")
    return codec


def _class_codec(cls: type) -> Codec | None:
    if issubclass(cls, tuple) and hasattr(cls, "_fields"):
        return namedtuple_codec(cls)
    dataclasses = sys.modules.get("dataclasses")
    if dataclasses and dataclasses.is_dataclass(cls):
        return dataclass_codec(dataclasses, cls)
    ctypes = sys.modules.get("ctypes")
    if ctypes and issubclass(cls, ctypes.Structure | ctypes.Array):
        return ctypes_codec(ctypes, cls)
    return None
