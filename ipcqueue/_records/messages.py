"""Messages of any length: the specs `bytes`, `Message` and `Encoded`, and what goes with them.

The counterpart of _record for the ring of frames.  A frame carries bytes, a tag and flags; what
the specs differ in is what of that the user sees.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, Self, SupportsIndex

from fdpass import Unsendable
from fdpass.lowlevel import cannot_copy, exported, index_of
from ipcqueue._errors import BadRecord, TooLarge, Unaccepted
from ipcqueue._types import T

from .layout import Layout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from fdpass import Fd, MemoryRegion

_NOT_WHOLE: Final = (
    "take its .record, which is a value; its regions and descriptors go to another process as "
    "attachments of a message"
)

MAX_TAG = 0xFFFFFFFF
MAX_FLAGS = 0xFF  # the low byte of a frame's flags is the application's
# Ours: the message is outside the ring, in a memory region (_ring/outside.py), which is
OUT_OF_LINE = 0x8000  # the last one beside the frame,
OUT_AGAIN = 0x4000  # or one that came beside an earlier frame
OUTSIDE = OUT_OF_LINE | OUT_AGAIN

# With the fingerprint of its description, worked out beforehand: hashlib is slow to import.
MESSAGES = Layout(
    1, (), bytes.fromhex("1f52da9aef07f8a89c9f8fdf137e4493"), "messages of any length"
)


class Message(NamedTuple):
    """A message with what the frame carries beside its bytes."""

    data: bytes | bytearray | memoryview
    tag: int = 0  # 0 to 2**32 - 1
    flags: int = 0  # 0 to 255


class Received(NamedTuple, Generic[T]):
    """A message with what was attached to it; the receiver owns, and closes, both."""

    record: T
    fds: list[Fd]
    regions: list[MemoryRegion]

    def __reduce_ex__(self, protocol: SupportsIndex, /) -> str | tuple[Any, ...]:
        """Refuse to be copied with what was attached; without, it is a value like any other."""
        if self.fds or self.regions:
            raise cannot_copy(self, _NOT_WHOLE)
        # Not super(), which NamedTuple takes no methods with.
        return tuple.__reduce_ex__(self, protocol)

    def close(self) -> None:
        """Close what was attached."""
        for fd in self.fds:
            fd.close()
        for region in self.regions:
            region.close()


class _Encoded(NamedTuple, Generic[T]):
    encode: Callable[[T], bytes | bytearray | memoryview]
    decode: Callable[[bytes], T]


class Encoded(_Encoded[T]):
    """A record spec: objects that `encode` turns into bytes and `decode` makes of them.

    decode(data: bytes) gets exactly what encode(object) gave, from a peer that may be hostile:
    pickle.loads would run whatever the peer likes, so use it only between programs that trust
    each other entirely.  It must not give None.  Where it raises, receiving raises DecodeFailed;
    it may be called again for the same bytes.  The other side may state `bytes`, or another Encoded.
    """

    __slots__ = ()

    def __new__(
        cls,
        encode: Callable[[T], bytes | bytearray | memoryview],
        decode: Callable[[bytes], T],
    ) -> Self:
        for what, given in (("encode", encode), ("decode", decode)):
            if not callable(given):
                raise TypeError(f"{what} is a function, not {given!r}")
        return super().__new__(cls, encode, decode)  # type: ignore[type-var]  # of mypy: generic


class Limits(NamedTuple):
    """What the receiver of messages accepts; the sender learns it in the handshake."""

    message: int = 64 << 20  # bytes
    fds: int = 0  # descriptors with one message
    regions: int = 8  # memory regions with one message
    region: int = 256 << 20  # bytes; only for who receives; all its pages are read to map it
    shared: bool = False  # regions that the giver can go on writing, and we can write
    sockets: bool = False  # among the descriptors: they can form cycles only the kernel can free

    def most_fds(self) -> int:
        """Return how many descriptors one message can come with."""
        # A region has up to two; and one is that of a message outside the ring.
        return self.fds + 2 * self.regions + 1

    def check_size(self, size: int) -> None:
        """Raise TooLarge for a message that the receiver would not take."""
        if size > self.message:
            raise TooLarge(
                f"a message has {size} bytes, and the receiver takes at most {self.message} "
                "(its accept=Accept(message=...))"
            )

    def check_attached(self, fds: int, regions: int) -> None:
        """Raise Unaccepted for more attachments than the receiver takes."""
        for what, option, count, limit in (
            ("descriptors", "fds", fds, self.fds),
            ("memory regions", "regions", regions, self.regions),
        ):
            if count > limit:
                raise Unaccepted(
                    f"{count} {what} with one message, and the receiver accepts at most {limit} "
                    f"(its accept=Accept({option}=...))"
                )


class Framed(NamedTuple):
    """What the encoding of a message gives: what goes into its frame."""

    data: Any  # contiguous, of format "B"
    tag: int
    flags: int


class MessageCodec:
    """How a message becomes a frame and back, for one of the three specs."""

    size = 1
    layout = MESSAGES
    shape = 1  # IPCQ_FRAMES

    def __init__(self, spec: Any) -> None:
        self.spec = spec
        self.encode: Callable[[Any], Framed]
        self.decode: Callable[[bytes, int, int], Any]
        if spec is bytes:
            self.encode, self.decode = _encode_bytes, _decode_bytes
        elif spec is Message:
            self.encode, self.decode = _encode_message, Message
        else:
            self.encode, self.decode = self._encode_object, self._decode_object

    def _encode_object(self, record: Any) -> Framed:
        data = self.spec.encode(record)
        try:
            return _encode_bytes(data)
        except BadRecord as error:
            raise BadRecord(f"what encode gave cannot be sent: {error}") from None

    def _decode_object(self, data: bytes, tag: int, flags: int) -> Any:  # noqa: ARG002 (one signature)
        record = self.spec.decode(data)
        if record is None:
            raise ValueError("decode gave None, which is what receiving gives when nothing comes")
        return record

    def decode_many(self, data: bytes, count: int) -> list[Any]:  # noqa: ARG002 (as Codec)
        """Return the empty batch, which is all that a record codec is asked for in common."""
        return []


def _encode_bytes(record: Any) -> Framed:
    return Framed(record if type(record) is bytes else _contiguous(record), 0, 0)


def _encode_message(record: Any) -> Framed:
    if type(record) is Message:
        data, tag, flags = record
        plain = type(data) is bytes and type(tag) is type(flags) is int
        if plain and 0 <= tag <= MAX_TAG and 0 <= flags <= MAX_FLAGS:
            return record  # type: ignore[return-value]  # it has what Framed has
    if not isinstance(record, Message):
        raise BadRecord(f"expected a Message, got {type(record).__name__}")
    data, tag, flags = record
    tag, flags = checked_tag("tag", tag, MAX_TAG), checked_tag("flags", flags, MAX_FLAGS)
    return Framed(_contiguous(data), tag, flags)


def checked_tag(what: str, value: Any, largest: int) -> int:
    """Return the number that goes with a message; raise BadRecord unless it is from 0 to `largest`."""
    try:
        number = value if isinstance(value, int) else index_of(value)
    except TypeError:
        number = -1
    if not 0 <= number <= largest:
        raise BadRecord(f"{what} is a number from 0 to {largest}, not {value!r}")
    return number


def _contiguous(data: Any) -> Any:
    try:
        view = exported(data)
    except Unsendable as error:
        raise BadRecord(f"expected bytes, {error}") from None
    except (TypeError, ValueError, BufferError):
        advice = ": text.encode() makes bytes of text" if isinstance(data, str) else ""
        raise BadRecord(f"expected bytes, got {type(data).__name__}{advice}") from None
    if not view.c_contiguous:
        raise BadRecord("expected contiguous bytes, got a view with gaps")
    if view.ndim == 1 and view.format == "B":
        return view
    return view.cast("B") if view.format in CASTABLE and view.nbytes else view.tobytes()


CASTABLE = frozenset("bBhHiIlLqQnNfdc?")  # what memoryview.cast takes; as in _records/structs.py


def _decode_bytes(data: bytes, tag: int, flags: int) -> bytes:  # noqa: ARG001 (one signature)
    return data


def tuple_of(what: str, attached: Iterable[T] | None) -> tuple[T, ...]:
    """Return what goes along with a message; raise BadRecord if it is no sequence."""
    try:
        return () if attached is None else tuple(attached)
    except TypeError as error:
        raise BadRecord(f"{what} is a sequence, not {type(attached).__name__}") from error
