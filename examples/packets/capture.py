"""Capture files, pcap and pcapng, to and from what wire.py sends.

Files are read and written with Scapy: of the libraries that know both formats it is the one that
is kept up, and it is a plain wheel without dependencies.  (dpkt reads no second interface and
forgets the length of packets that were cut off; python-pcapng knows no pcap; neither has had a
release since 2022.  PyPCAPKit takes every packet apart, and fails at those it does not know.)

Where Scapy makes things easier than they are, this module keeps to the file:

- It hands out packets without the number of their interface, and numbers interfaces through all
  sections of a file.  A handler in its table of block types adds the one, a method the other.
- It writes pcapng in microseconds only.  So blocks are put together here, and framed by it.
- Where a file is damaged it stops, as at the end.  Here that is told.

The methods with an underscore are how one extends it; the tests would notice if they changed.
"""

from __future__ import annotations

import contextlib
import logging
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wire import BadStream, Block, Interface, Item, Packet, Section

try:
    from scapy.error import Scapy_Exception
    from scapy.utils import RawPcapNgReader, RawPcapNgWriter, RawPcapReader, RawPcapWriter
except ImportError as error:
    raise SystemExit(f"{error}: this needs Scapy, `pip install scapy`") from None

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

# Scapy's opinion of a damaged file, which is told here in other words.
logging.getLogger("scapy.runtime").setLevel(logging.CRITICAL)

NANO, MICRO = 10**9, 10**6
WHOLE = 1 << 32  # bytes of a packet that are wanted; Scapy would cut off at 65535
INTERFACE_BLOCK, OLD_PACKET_BLOCK, SIMPLE_BLOCK, PACKET_BLOCK = 1, 2, 3, 6
OTHER_BLOCKS = 4, 5, 10  # name resolution, interface statistics, decryption secrets


class CaptureError(Exception):
    """A file is no capture, or a damaged one; the message says how, but not which."""


def read(path: str) -> Generator[Item]:
    """Yield what a capture file holds: sections, interfaces, packets, blocks.

    Either format, also compressed by gzip.  Raises OSError, CaptureError; the latter also after
    what stands in front of the damage.
    """
    with Path(path).open("rb") as file:
        try:
            reader: PcapReader | PcapNgReader = PcapNgReader(file)  # its `alternative` included
        except Scapy_Exception:
            raise CaptureError("this is neither a pcap nor a pcapng capture") from None
        yield from reader.items()


def _check_end(file: Any, begin: int) -> None:
    """Raise CaptureError unless a file ended cleanly, when nothing was read after `begin`."""
    # A compressed file that is cut off raises EOFError instead of giving nothing.
    with contextlib.suppress(EOFError, OSError, zlib.error):
        if file.tell() == begin and not file.read(1):
            return
    raise CaptureError(f"damaged or cut off at byte {begin}")


class PcapReader(RawPcapReader):
    """The items of a pcap capture."""

    def items(self) -> Generator[Item]:
        """Yield a section, an interface, and the packets."""
        rate = NANO if self.nano else MICRO
        yield Section(pcapng=False, big_endian=self.endian == ">")
        yield Interface(0, self.linktype, self.snaplen, rate)
        while True:
            begin = self.f.tell()
            try:
                data, about = self._read_packet(WHOLE)
            except EOFError:
                _check_end(self.f, begin)
                return
            if len(data) != about.caplen:  # cut off, or more than Scapy is ready to read
                raise CaptureError(
                    f"{len(data)} of {about.caplen} captured bytes at byte {begin} can be read"
                )
            yield Packet(0, about.sec * rate + about.usec, about.wirelen, data)


class PcapNgReader(RawPcapNgReader):
    """The items of a pcapng capture."""

    alternative = PcapReader  # what Scapy tries where this fails

    def __init__(self, *arguments: Any) -> None:
        self._found: list[Item] = []
        super().__init__(*arguments)
        handlers: dict[int, Callable[[bytes, int], None]] = {
            INTERFACE_BLOCK: self._interface,
            OLD_PACKET_BLOCK: self._old_packet,
            SIMPLE_BLOCK: self._simple_packet,
            PACKET_BLOCK: self._packet,
        }
        handlers |= {kind: self._other(kind) for kind in OTHER_BLOCKS}
        self.blocktypes.update(handlers)

    def items(self) -> Generator[Item]:
        """Yield what the blocks hold, in their order."""
        while True:
            yield from self._found
            self._found.clear()
            begin = self.f.tell()
            try:
                self._read_block(WHOLE)
            except EOFError:
                _check_end(self.f, begin)
                return
            except CaptureError as error:
                raise CaptureError(f"{error}, at byte {begin}") from None

    def _read_block_shb(self) -> None:
        super()._read_block_shb()
        self.interfaces.clear()
        self._found.append(Section(pcapng=True, big_endian=self.endian == ">"))

    def _interface(self, block: bytes, size: int) -> None:
        self._read_block_idb(block, size)
        link_type, snap_length, options = self.interfaces[-1]
        if (rate := options["tsresol"]) >= 1 << 64:
            raise CaptureError(f"nobody counts {rate} ticks in a second")
        number = len(self.interfaces) - 1
        self._found.append(Interface(number, link_type, snap_length, rate, block[8:]))

    def _packet(self, block: bytes, size: int) -> None:
        self._take(self._read_block_epb(block, size), "I8xI", block)

    def _old_packet(self, block: bytes, size: int) -> None:
        self._take(self._read_block_pkt(block, size), "H10xI", block)

    def _take(self, read: tuple[bytes, Any] | None, numbers: str, block: bytes) -> None:
        if read is None:
            raise CaptureError("a packet of an interface that is not described")
        data, about = read
        number, captured = struct.unpack_from(self.endian + numbers, block)
        if len(data) != captured:
            raise CaptureError(f"a packet of {captured} bytes in a block of {len(block)}")
        ticks = about.tshigh << 32 | about.tslow
        options = block[20 + captured + -captured % 4 :]
        self._found.append(Packet(number, ticks, about.wirelen, data, options))

    def _simple_packet(self, block: bytes, size: int) -> None:
        read = self._read_block_spb(block, size)
        if read is None:
            raise CaptureError("a packet of an interface that is not described")
        _, about = read
        captured = min(about.wirelen, self.interfaces[0][1] or about.wirelen)  # 0 is no limit
        data = block[4 : 4 + captured]
        if len(data) != captured:
            raise CaptureError(f"a packet of {captured} bytes in a block of {len(block)}")
        self._found.append(Packet(0, None, about.wirelen, data))

    def _other(self, kind: int) -> Callable[[bytes, int], None]:
        return lambda block, _: self._found.append(Block(kind, block))


class Recorder:
    """A capture file in the making.

    It comes to be at the first item; as NAME.part until it is closed as whole, so that a file of
    that name is a whole capture, and may be the one that the server is reading.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        # What is no file (/dev/null, a pipe) is written to as it is.
        aside = self._path.is_file() or not self._path.exists()
        self._part = self._path.with_name(self._path.name + ".part") if aside else self._path
        self._section: Section | None = None
        self._rates: list[int] = []
        self._writer: RawPcapWriter | RawPcapNgWriter | None = None

    def write(self, item: Section | Interface | Packet | Block) -> None:
        """Append an item; BadStream if it cannot stand there."""
        try:
            match item:
                case Section():
                    self._begin(item)
                case Interface():
                    self._describe(item)
                case Packet():
                    self._packet(item)
                case Block(kind, body):
                    self._block(kind, body)
        except struct.error as error:
            raise BadStream(f"{type(item).__name__} does not fit into the file: {error}") from None

    def _begin(self, section: Section) -> None:
        if self._section and not self._section.pcapng == section.pcapng is True:
            raise BadStream("a second capture in one that has only one section")
        self._section = section
        self._rates.clear()
        if section.pcapng:
            if self._writer is None:
                self._writer = RawPcapNgWriter(str(self._part))
                self._writer.header_present = True  # its own has an interface of its own
            self._writer.endian = ">" if section.big_endian else "<"
            self._block(0x0A0D0D0A, self._pack("IHHq", 0x1A2B3C4D, 1, 0, -1))

    def _describe(self, interface: Interface) -> None:
        if self._section is None or interface.number != len(self._rates):
            raise BadStream(f"interface {interface.number} comes out of turn")
        self._rates.append(interface.rate)
        link_type, snap_length = interface.link_type, interface.snap_length
        if self._section.pcapng:
            head = self._pack("HxxI", link_type, snap_length)
            self._block(INTERFACE_BLOCK, head + interface.options)
            return
        if self._writer is not None or interface.rate not in {NANO, MICRO}:
            raise BadStream("a pcap capture has one interface, in micro- or nanoseconds")
        self._writer = RawPcapWriter(
            str(self._part),
            nano=interface.rate == NANO,
            endianness=">" if self._section.big_endian else "<",
            snaplen=snap_length,
        )
        self._writer.linktype = link_type  # which the constructor would ignore if it is 0
        self._writer.write_header(None)

    def _packet(self, packet: Packet) -> None:
        number, ticks, length, data, options = packet
        if number >= len(self._rates):
            raise BadStream(f"a packet of interface {number}, which is not described")
        if isinstance(self._writer, RawPcapWriter):
            if ticks is None:
                raise BadStream("a packet without a time in a pcap capture")
            seconds, rest = divmod(ticks, self._rates[0])
            self._writer.write_packet(data, seconds, rest, len(data), length)
        elif ticks is None:
            self._block(SIMPLE_BLOCK, self._pack("I", length) + data)
        else:
            high, low = divmod(ticks, 1 << 32)
            head = self._pack("5I", number, high, low, len(data), length)
            self._block(PACKET_BLOCK, head + data + bytes(-len(data) % 4) + options)

    def _pack(self, numbers: str, *values: int) -> bytes:
        return struct.pack(self._ng().endian + numbers, *values)

    def _block(self, kind: int, body: bytes) -> None:
        writer = self._ng()
        writer.f.write(writer.build_block(struct.pack(writer.endian + "I", kind), body))

    def _ng(self) -> RawPcapNgWriter:
        if not isinstance(self._writer, RawPcapNgWriter):
            raise BadStream("a block outside of a pcapng capture")
        return self._writer

    def finish(self) -> None:
        """Close the file, which is whole."""
        if self._writer is None:
            raise BadStream("a capture without a beginning")
        writer, self._writer = self._writer, None
        writer.close()
        self._part.replace(self._path)
        self._section = None

    def rest(self) -> Path | None:
        """Return where a capture lies that is not whole, if there is one."""
        return self._part if self._section else None

    def close(self) -> None:
        """Close the file; if it is not whole, it stays as it is.  Idempotent."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
