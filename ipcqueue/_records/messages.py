"""Messages of any length: the specs `bytes`, `Message` and `Encoded`, and their codec.

The counterpart of Codec for the ring of frames.  A frame carries bytes, a tag and flags; the specs
differ in how much of that the user sees.
"""

from collections.abc import Callable, Iterable
from typing import Any, Final, Generic, NamedTuple, Self, SupportsIndex

from fdpass import Fd, MemoryRegion, Unsendable
from fdpass.lowlevel import cannot_copy, exported, index_of
from ipcqueue._errors import BadRecord, TooLarge, Unaccepted
from ipcqueue._types import T

from .layout import Layout
from .names import NO_NAMES

_NOT_WHOLE: Final = (
    "take its .record, which is a value; its regions and descriptors go to another process as "
    "attachments of a message"
)

MAX_TAG = 0xFFFFFFFF
MAX_FLAGS = 0xFF  # the low byte of a frame's flags belongs to the application
# Our own flags: the message is outside the ring, in a memory region (_ring/outside.py).
OUT_OF_LINE = 0x8000  # the region is the last one that came with this frame
OUT_AGAIN = 0x4000  # the region came with an earlier frame
OUTSIDE = OUT_OF_LINE | OUT_AGAIN

# The fingerprint of the description is written out, because hashlib is slow to import.
MESSAGES = Layout(
    1, (), bytes.fromhex("1f52da9aef07f8a89c9f8fdf137e4493"), "messages of any length"
)

# Bytes of a message that a repr() shows.
_SHOWN = 48


def shortened(value: object) -> str:
    """Return repr(value); of more than _SHOWN bytes the first of them, and how many there are."""
    if not isinstance(value, bytes | bytearray) or len(value) <= _SHOWN:
        return repr(value)
    return f"<{len(value)} bytes: {bytes(value[:_SHOWN])!r}...>"


class Message(NamedTuple):
    """A message: its bytes, and the tag and flags that its frame carries."""

    data: bytes | bytearray | memoryview
    tag: int = 0  # 0 to 2**32 - 1
    flags: int = 0  # 0 to 255

    def __repr__(self) -> str:
        """Show the first bytes only of a long one."""
        return f"Message(data={shortened(self.data)}, tag={self.tag}, flags={self.flags})"


class Received(NamedTuple, Generic[T]):
    """A message with its attachments; the receiver owns these and closes them."""

    record: T
    fds: list[Fd]
    regions: list[MemoryRegion]

    def __repr__(self) -> str:
        """Show the first bytes only of a long record."""
        return f"Received(record={shortened(self.record)}, fds={self.fds}, regions={self.regions})"

    def __reduce_ex__(self, protocol: SupportsIndex, /) -> str | tuple[Any, ...]:
        """Refuse to be copied with attachments; without any, it is a value like any other."""
        if self.fds or self.regions:
            raise cannot_copy(self, _NOT_WHOLE)
        # Not super(): a NamedTuple class cannot have methods that use it.
        return tuple.__reduce_ex__(self, protocol)

    def close(self) -> None:
        """Close the attachments."""
        for fd in self.fds:
            fd.close()
        for region in self.regions:
            region.close()


class _Encoded(NamedTuple, Generic[T]):
    encode: Callable[[T], bytes | bytearray | memoryview]
    decode: Callable[[bytes], T]


class Encoded(_Encoded[T]):
    """A record spec: objects that `encode` turns into bytes and `decode` makes from them.

    decode(data: bytes) gets the bytes that the peer's encode(object) returned.  The peer may be
    hostile: pickle.loads would run any code of the peer's, so use it only between programs that
    trust each other entirely.  None is no record: xmit refuses it, and decode must not return it.
    If decode raises, receiving raises DecodeFailed; decode may be called again for the same bytes.
    The other side may state `bytes`, or another Encoded.
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
    """The limits of a receiver of messages; the sender learns them in the handshake."""

    message: int = 64 << 20  # bytes
    fds: int = 0  # descriptors with one message
    regions: int = 8  # memory regions with one message
    region: int = 256 << 20  # bytes; only the receiver uses it; mapping one reads all its pages
    shared: bool = False  # accept regions that both the giver and the receiver can write
    sockets: bool = False  # accept sockets, which can form cycles that only the kernel can free

    def most_fds(self) -> int:
        """Return how many descriptors one message can come with."""
        # A region has up to two descriptors; a message outside the ring needs one more.
        return self.fds + 2 * self.regions + 1

    def check_size(self, size: int) -> None:
        """Raise TooLarge for a message that the receiver would not accept."""
        if size > self.message:
            raise TooLarge(
                f"a message has {size} bytes, and the receiver takes at most {self.message} "
                "(its accept=Accept(message=...))"
            )

    def check_attached(self, fds: int, regions: int) -> None:
        """Raise Unaccepted for more attachments than the receiver accepts."""
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
    """An encoded message: the contents of its frame."""

    data: Any  # contiguous, of format "B"
    tag: int
    flags: int


class MessageCodec:
    """How a message becomes a frame and back, for one of the three specs."""

    size = 1
    layout = MESSAGES
    names = NO_NAMES
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
        if record is None:
            raise BadRecord(
                "None cannot be sent, as recv() returns it where nothing came in time:"
                " choose another value for what it means"
            )
        data = self.spec.encode(record)
        try:
            return _encode_bytes(data)
        except BadRecord as error:
            raise BadRecord(f"what encode gave cannot be sent: {error}") from None

    def _decode_object(self, data: bytes, tag: int, flags: int) -> Any:  # noqa: ARG002 (one signature)
        record = self.spec.decode(data)
        if record is None:
            raise ValueError("decode gave None, which means that nothing has come")
        return record

    def decode_many(self, data: bytes, count: int) -> list[Any]:  # noqa: ARG002 (as Codec)
        """Return an empty batch: of both kinds of codec, the callers ask only for that."""
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
    """Return a message's tag or flags; raise BadRecord unless it is from 0 to `largest`."""
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


CASTABLE = frozenset("bBhHiIlLqQnNfdc?")  # formats that memoryview.cast accepts; as in codec.py


def _decode_bytes(data: bytes, tag: int, flags: int) -> bytes:  # noqa: ARG001 (one signature)
    return data


def tuple_of(what: str, attached: Iterable[T] | None) -> tuple[T, ...]:
    """Return attachments of a message as a tuple; raise BadRecord if they are no sequence."""
    try:
        return () if attached is None else tuple(attached)
    except TypeError as error:
        raise BadRecord(f"{what} is a sequence, not {type(attached).__name__}") from error
