"""What the packet server and its clients share: the kinds of message.  Pure.

A message is a frame with a tag and flags.  The flags say of which kind it is, and so what the tag
and the bytes mean:

    SECTION     the format and byte order of all that follows, whose interfaces count from 0;
                a pcap capture is one section, a pcapng capture can have more
    INTERFACE   tag: its number; link type, snapshot length, ticks per second, options
    PACKET      tag: the number of its interface; time, lengths, captured bytes, options
    TIMELESS    the same, for a packet without a time (a Simple Packet Block)
    BLOCK       tag: its type; any other block of pcapng, unchanged
    END         the number of packets and, if the capture is damaged, the damage

A consumer that wants the packets of one interface looks at tag and flags, and never at the rest.
Our own numbers are little-endian; options and blocks are in the byte order of the section.

A time is a number of ticks since 1970, exactly as in the file, whatever the resolution.  A float
would be wrong by hundreds of nanoseconds.
"""

from __future__ import annotations

import enum
import struct
from typing import NamedTuple, TypeAlias

from memenpsf import Message

NAME = "packets"  # the default address


class Kind(enum.IntEnum):
    """The flags of a message."""

    SECTION = 1
    INTERFACE = 2
    PACKET = 3
    TIMELESS = 4
    BLOCK = 5
    END = 6


class Section(NamedTuple):
    """The beginning of a capture; one file may hold several."""

    pcapng: bool
    big_endian: bool


class Interface(NamedTuple):
    """The interface that packets were captured on; in pcap, the whole capture."""

    number: int
    link_type: int
    snap_length: int
    rate: int  # ticks per second
    options: bytes = b""


class Packet(NamedTuple):
    """A packet, or the beginning of one: `length` is its original length."""

    interface: int
    ticks: int | None
    length: int
    data: bytes
    options: bytes = b""


class Block(NamedTuple):
    """What pcapng stores beside the packets: names, statistics, keys."""

    kind: int
    body: bytes


class End(NamedTuple):
    """The end; a stream without it is incomplete."""

    packets: int
    damage: str = ""


Item: TypeAlias = Section | Interface | Packet | Block | End


class BadStream(Exception):
    """The server sent an unknown message, or one that no capture can hold."""


_SECTION = struct.Struct("<??")
_INTERFACE = struct.Struct("<IIQ")
_PACKET = struct.Struct("<QII")
_END = struct.Struct("<Q")


def encode(item: Item) -> Message:
    """Return the message for an item; struct.error if a number does not fit."""
    match item:
        case Packet(number, ticks, length, data, options):
            head = _PACKET.pack(ticks or 0, length, len(data))
            kind = Kind.TIMELESS if ticks is None else Kind.PACKET
            return Message(head + data + options, number, kind)
        case Section():
            return Message(_SECTION.pack(*item), 0, Kind.SECTION)
        case Interface(number, link_type, snap_length, rate, options):
            head = _INTERFACE.pack(link_type, snap_length, rate)
            return Message(head + options, number, Kind.INTERFACE)
        case Block(kind, body):
            return Message(body, kind, Kind.BLOCK)
        case End(packets, damage):
            return Message(_END.pack(packets) + damage.encode(), 0, Kind.END)


def decode(message: Message) -> Item:
    """Return the item in a message; BadStream if the message is unknown."""
    data, tag, flags = message
    try:
        match flags:
            case Kind.PACKET | Kind.TIMELESS:
                ticks, length, captured = _PACKET.unpack_from(data)
                begin, end = _PACKET.size, _PACKET.size + captured
                if end > len(data):
                    raise BadStream(f"a packet of {captured} bytes has only {len(data) - begin}")
                time = ticks if flags == Kind.PACKET else None
                return Packet(tag, time, length, bytes(data[begin:end]), bytes(data[end:]))
            case Kind.SECTION:
                return Section(*_SECTION.unpack(data))
            case Kind.INTERFACE:
                link_type, snap_length, rate = _INTERFACE.unpack_from(data)
                options = bytes(data[_INTERFACE.size :])
                return Interface(tag, link_type, snap_length, rate, options)
            case Kind.BLOCK:
                return Block(tag, bytes(data))
            case Kind.END:
                (packets,) = _END.unpack_from(data)
                return End(packets, bytes(data[_END.size :]).decode(errors="replace"))
    except struct.error as error:
        raise BadStream(f"a message of kind {flags} is too short: {error}") from None
    raise BadStream(f"a message of kind {flags} means nothing here")
