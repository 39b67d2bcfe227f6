"""An int as a spec: records of that many opaque bytes."""

from __future__ import annotations

import reprlib
import struct
from typing import TYPE_CHECKING, Any

from fdpass import Unsendable
from fdpass.lowlevel import exported
from ipcqueue._errors import BadRecord

from .codec import CASTABLE, Codec, encoder_of_many, window_of
from .layout import bytes_layout

if TYPE_CHECKING:
    from .codec import BytesLike

# An int: opaque bytes


def bytes_codec(size: int) -> Codec:
    layout = bytes_layout(size)
    split = struct.Struct(f"{size}s").iter_unpack

    def encode(record: Any) -> BytesLike:
        if type(record) is bytes and len(record) == size:
            return record
        return encode_buffer(record)

    def encode_buffer(record: Any) -> BytesLike:
        try:
            view = exported(record)
        except Unsendable as error:
            raise BadRecord(f"expected {size} bytes, {error}") from None
        except (TypeError, ValueError, BufferError):
            kind = type(record).__name__
            raise BadRecord(f"expected {size} bytes, got {kind}: {reprlib.repr(record)}") from None
        if view.nbytes != size:
            raise BadRecord(f"expected exactly {size} bytes, got {view.nbytes}")
        if not view.c_contiguous:
            raise BadRecord(f"expected {size} bytes in C-contiguous order")
        return view.cast("B") if view.format in CASTABLE else view.tobytes()

    def decode_many(data: BytesLike, count: int) -> list[bytes]:
        return [record for (record,) in split(window_of(data, size * count))]

    return Codec(size, layout, size, encode, encoder_of_many(encode), bytes, decode_many)
