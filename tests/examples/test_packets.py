"""examples/packets: what the client writes is what the server reads, packet for packet.

Written captures are judged by two readers that are not the example's: Scapy as it is, and a
parser of both formats that stands below.
"""

import functools
import gzip
import os
import pty
import random
import re
import shutil
import signal
import struct
import subprocess
from pathlib import Path

import pytest

import memenpsf
from memenpsf import Message

utils = pytest.importorskip("scapy.utils", reason="the extra `examples` is not installed")

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "packets"
DATA = Path(__file__).parent.parent / "data"
PCAP, PCAPNG = DATA / "loopback.pcap", DATA / "loopback.pcapng"

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(EXAMPLE)  # as Python does for a script
    import capture
    import server as server_program
    import wire
    from wire import Block, End, Interface, Packet, Section

ETHERNET, COOKED, NULL = 1, 113, 0
LITTLE, BIG = "<", ">"


# Captures made by hand


def pcap(*packets, order=LITTLE, nano=True, link_type=ETHERNET, snap_length=262144):
    """Return a pcap capture; a packet is (seconds, fraction, length, data)."""
    magic = 0xA1B23C4D if nano else 0xA1B2C3D4
    head = struct.pack(f"{order}IHHiIII", magic, 2, 4, 0, 0, snap_length, link_type)
    return head + b"".join(
        struct.pack(f"{order}4I", seconds, fraction, len(data), length) + data
        for seconds, fraction, length, data in packets
    )


def padded(data):
    return data + bytes(-len(data) % 4)


def block(kind, body, order=LITTLE):
    size = 12 + len(padded(body))
    return struct.pack(f"{order}II", kind, size) + padded(body) + struct.pack(f"{order}I", size)


def options(*pairs, order=LITTLE):
    parts = (struct.pack(f"{order}HH", code, len(value)) + padded(value) for code, value in pairs)
    return b"".join(parts) + bytes(4)


def section(order=LITTLE):
    return block(0x0A0D0D0A, struct.pack(f"{order}IHHq", 0x1A2B3C4D, 1, 0, -1), order)


def described(link_type, snap_length, *pairs, order=LITTLE):
    more = options(*pairs, order=order) if pairs else b""
    return block(1, struct.pack(f"{order}HHI", link_type, 0, snap_length) + more, order)


def enhanced(interface, ticks, length, data, *pairs, order=LITTLE):
    more = options(*pairs, order=order) if pairs else b""
    head = struct.pack(f"{order}5I", interface, ticks >> 32, ticks & 0xFFFFFFFF, len(data), length)
    return block(6, head + padded(data) + more, order)


def many_packets(count):
    rnd = random.Random(5)
    for number in range(count):
        data = rnd.randbytes(rnd.choice((0, 1, 60, 61, 600, 1514)) + (number == 7) * 200_000)
        yield number % 2, 1_700_000_000 * 10**9 + 1001 * number, len(data) + number % 3, data


MICRO, NANO, BINARY = (9, b"\x06"), (9, b"\x09"), (9, b"\xa0")
TWO_INTERFACES = described(ETHERNET, 0, (2, b"lo"), NANO) + described(
    COOKED, 96, (2, b"any"), MICRO
)

# All of these come out byte for byte as they went in.
CAPTURES = {
    "nanoseconds": pcap((1_700_000_000, 999_999_999, 3, b"abc"), (1, 0, 1, b"z")),
    "microseconds": pcap((1_700_000_000, 999_999, 3, b"abc"), nano=False),
    "big-endian": pcap((7, 123_456_789, 5, b"abcde"), order=BIG),
    "cut-off packets": pcap((1, 2, 1500, b"abc"), (1, 3, 9, b""), snap_length=3),
    "the last second": pcap((2**32 - 1, 999_999_999, 2**32 - 1, b"x")),
    "link type 0": pcap((1, 2, 4, b"null"), link_type=NULL, snap_length=0),
    "a checksum length in the link type": pcap((1, 2, 4, b"fcs?"), link_type=0x14000001),
    "longer than 65535 bytes": pcap((1, 2, 262_140, b"L" * 262_140)),
    "no packets": pcap(),
    "two interfaces": section()
    + TWO_INTERFACES
    + enhanced(1, 1_700_000_000_999_999, 1500, b"x" * 96)
    + enhanced(0, 1_700_000_000_999_999_999, 5, b"five!"),
    "one interface after packets of the other": section()
    + described(ETHERNET, 9)
    + enhanced(0, 1, 2, b"ab")
    + described(ETHERNET, 9)
    + enhanced(1, 2, 2, b"cd")
    + enhanced(0, 3, 2, b"ef"),
    "any resolution": section()
    + described(ETHERNET, 9, BINARY)
    + described(ETHERNET, 9, (9, b"\x00"))
    + described(ETHERNET, 9, (9, b"\x0c"), (14, bytes(8)))
    + enhanced(0, 2**64 - 1, 1, b"a")
    + enhanced(1, 0, 1, b"b")
    + enhanced(2, 1_700_000_000_123_456_789_012 % 2**64, 1, b"c"),
    "sections of both byte orders": section(BIG)
    + described(ETHERNET, 64, (2, b"eth9"), NANO, order=BIG)
    + enhanced(0, 2**40 + 5, 70, b"big", (1, b"a comment"), order=BIG)
    + section()
    + described(COOKED, 32, MICRO)
    + enhanced(0, 2**40 + 6, 71, b"little", (2, b"\x01\0\0\0")),
    "what packets have beside": section()
    + described(ETHERNET, 64)
    + enhanced(0, 5, 3, b"abc", (1, b"one"), (1, b"two"), (2, b"\x02\0\0\0"), (4, bytes(8))),
    "packets without a time": section()
    + described(ETHERNET, 4)
    + block(3, struct.pack("<I", 3) + b"abc")
    + block(3, struct.pack("<I", 1000) + b"abcd"),
    "packets without a time or a limit": section()
    + described(ETHERNET, 0)
    + block(3, struct.pack("<I", 5) + b"abcde"),
    "names, statistics, and keys": section()
    + described(ETHERNET, 64)
    + block(4, struct.pack("<HH", 1, 8) + b"\x7f\0\0\x01me\0\0" + bytes(4))
    + block(10, struct.pack("<II", 0x544C534B, 4) + b"keys")
    + enhanced(0, 5, 3, b"abc")
    + block(5, struct.pack("<III", 0, 0, 9) + options((4, bytes(8)))),
    "longer than 262144 bytes": section()
    + described(ETHERNET, 0)
    + enhanced(0, 1, 300_000, b"L" * 300_000),
    "an interface without packets": section() + described(ETHERNET, 64),
    "nothing": section(),
}


# Readers that are not the example's


def by_scapy(path):
    """Return what Scapy, as it is, says of the packets of a capture."""
    with utils.RawPcapReader(str(path)) as reader:
        packets = []
        while True:
            try:
                packets.append(reader._read_packet(1 << 20))
            except EOFError:
                return packets


def by_hand(path):
    """Return the packets of a capture, with what is known of their interfaces."""
    data = path.read_bytes()
    if data[:4] != b"\n\r\r\n":
        order = {b"\xd4\xc3": LITTLE, b"\x4d\x3c": LITTLE}.get(data[:2], BIG)
        magic, *_, link_type = struct.unpack_from(f"{order}IHHiIII", data)
        packets, at = [], 24
        while at < len(data):
            seconds, fraction, captured, length = struct.unpack_from(f"{order}4I", data, at)
            at += 16 + captured
            packets.append((magic, link_type, seconds, fraction, length, data[at - captured : at]))
        return packets
    packets, interfaces, at = [], [], 0
    while at < len(data):
        if data[at : at + 4] == b"\n\r\r\n":
            order = LITTLE if data[at + 8] == 0x4D else BIG
            interfaces = []
        kind, size = struct.unpack_from(f"{order}II", data, at)
        body = data[at + 8 : at + size - 4]
        if kind == 1:
            interfaces.append(body)
        elif kind == 6:
            number, high, low, captured, length = struct.unpack_from(f"{order}5I", body)
            rest = body[20 + captured + -captured % 4 :]
            time = high << 32 | low
            packets.append((interfaces[number], time, length, body[20 : 20 + captured], rest))
        at += size
    return packets


def same_packets(written, original, count):
    assert by_hand(written) == by_hand(original)
    assert len(by_hand(written)) == count
    assert by_scapy(written) == by_scapy(original)
    assert len(by_scapy(written)) == count
    return True


# The shared modules


def test_the_captures_in_the_tests_have_what_they_are_for():
    packets = by_hand(PCAP)
    assert len(packets) == len(by_hand(PCAPNG)) / 2 == 39
    assert sum(len(data) < length for *_, length, data in packets) == 7
    assert max(length for *_, length, _ in packets) > 5000
    assert len({interface for interface, *_ in by_hand(PCAPNG)}) == 2
    assert max(len(data) for *_, data, _ in by_hand(PCAPNG)) > 1500
    assert any(fraction % 1000 for _, _, _, fraction, _, _ in packets)
    assert max(PCAP.stat().st_size, PCAPNG.stat().st_size) < 50_000


def copied(path, target):
    """Write the capture anew, by way of messages; return the items."""
    items = list(capture.read(str(path)))
    recorder = capture.Recorder(str(target))
    for item in items:
        recorder.write(wire.decode(wire.encode(item)))
    recorder.finish()
    return items


@pytest.mark.parametrize("name", CAPTURES)
def test_a_capture_comes_out_byte_for_byte(tmp_path, name):
    original, written = tmp_path / "original", tmp_path / "written"
    original.write_bytes(CAPTURES[name])
    copied(original, written)
    assert written.read_bytes() == CAPTURES[name]
    assert sorted(tmp_path.iterdir()) == [original, written]


def test_a_compressed_capture_can_be_read(tmp_path):
    original, written = tmp_path / "original.gz", tmp_path / "written"
    for data in PCAP.read_bytes(), CAPTURES["two interfaces"]:
        original.write_bytes(gzip.compress(data))
        copied(original, written)
        assert written.read_bytes() == data


def test_times_are_exact_to_the_last_digit(tmp_path):
    path = tmp_path / "capture"
    path.write_bytes(CAPTURES["nanoseconds"])
    _, interface, first, last = copied(path, tmp_path / "written")
    assert interface.rate == 10**9
    assert (first.ticks, last.ticks) == (1_700_000_000_999_999_999, 10**9)
    path.write_bytes(CAPTURES["any resolution"])
    _, *interfaces, first, _, _ = copied(path, tmp_path / "written")
    assert [interface.rate for interface in interfaces] == [2**32, 1, 10**12]
    assert first.ticks == 2**64 - 1


def test_each_section_counts_its_interfaces_anew(tmp_path):
    path = tmp_path / "capture"
    path.write_bytes(CAPTURES["sections of both byte orders"])
    items = copied(path, tmp_path / "written")
    assert [item.number for item in items if isinstance(item, Interface)] == [0, 0]
    assert [item.link_type for item in items if isinstance(item, Interface)] == [ETHERNET, COOKED]
    assert [item.big_endian for item in items if isinstance(item, Section)] == [True, False]


def test_an_obsolete_packet_block_becomes_one_of_today(tmp_path):
    path, written = tmp_path / "capture", tmp_path / "written"
    front = section() + described(ETHERNET, 64) + described(COOKED, 64)
    old = struct.pack("<HHIIII", 1, 65535, 1, 2, 3, 9) + padded(b"abc") + options((2, bytes(4)))
    path.write_bytes(front + block(2, old))
    copied(path, written)
    assert written.read_bytes() == front + enhanced(1, 2**32 + 2, 9, b"abc", (2, bytes(4)))


def boundaries(data):
    """Return where a capture may end."""
    if data[:4] != b"\n\r\r\n":
        ends = [24]
        while ends[-1] < len(data):
            ends.append(ends[-1] + 16 + struct.unpack_from("<I", data, ends[-1] + 8)[0])
        return ends
    ends = [struct.unpack_from("<I", data, 4)[0]]
    while ends[-1] < len(data):
        ends.append(ends[-1] + struct.unpack_from("<I", data, ends[-1] + 4)[0])
    return ends


@pytest.mark.parametrize("name", ["cut-off packets", "two interfaces", "packets without a time"])
@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_a_file_cut_off_anywhere_gives_what_is_whole_and_then_an_error(tmp_path, name, compress):
    data, path = CAPTURES[name], tmp_path / "capture"
    path.write_bytes(data)
    everything = list(capture.read(str(path)))
    ends = boundaries(data)
    for size in range(len(data)):
        path.write_bytes(compress(data[:size]))
        got = []
        try:
            got.extend(capture.read(str(path)))
            assert size in ends
        except capture.CaptureError:
            assert size not in ends
        assert got == everything[: len(got)]


def test_a_compressed_file_that_is_cut_off_is_an_error(tmp_path):
    path = tmp_path / "capture"
    for data in CAPTURES["nanoseconds"], CAPTURES["two interfaces"]:
        compressed = gzip.compress(data)
        for size in range(len(compressed)):
            path.write_bytes(compressed[:size])
            with pytest.raises(capture.CaptureError):
                list(capture.read(str(path)))


@pytest.mark.parametrize(
    "damage",
    [
        section() + described(ETHERNET, 64) + enhanced(1, 5, 3, b"abc"),
        section() + block(3, struct.pack("<I", 3) + b"abc"),
        section() + described(ETHERNET, 64) + block(6, struct.pack("<5I", 0, 0, 0, 500, 500)),
        section() + described(ETHERNET, 64) + block(6, b"abc"),
        section() + described(ETHERNET, 64) + block(3, struct.pack("<I", 9) + b"abc"),
        section() + described(ETHERNET, 64) + enhanced(0, 5, 3, b"abc")[:-4] + bytes(4),
        section() + described(ETHERNET, 64) + struct.pack("<II", 6, 8),
        section() + described(ETHERNET, 64, (9, b"\x40")),
        section() + section().replace(b"\x4d\x3c", b"\x00\x00"),
        pcap() + struct.pack("<4I", 1, 2, 2**31, 2**31),
        pcap((1, 2, 262_141, b"L" * 262_141)),
    ],
)
def test_damage_is_an_error_and_not_the_end(tmp_path, damage):
    path = tmp_path / "capture"
    path.write_bytes(damage)
    with pytest.raises(capture.CaptureError, match="byte"):
        list(capture.read(str(path)))


@pytest.mark.parametrize("text", [b"", b"\xa1", b"This is a text.", pcap()[:23], section()[:20]])
def test_what_is_no_capture_is_refused(tmp_path, text):
    path = tmp_path / "capture"
    path.write_bytes(text)
    with pytest.raises(capture.CaptureError, match="neither a pcap nor a pcapng"):
        list(capture.read(str(path)))


ITEMS = [
    Section(pcapng=True, big_endian=False),
    Interface(2**32 - 1, 65535, 2**32 - 1, 2**64 - 1, b"opti"),
    Packet(3, 2**64 - 1, 2**32 - 1, b"data", b"opti"),
    Packet(0, 0, 0, b""),
    Packet(0, None, 1500, b"data"),
    Block(5, b"body"),
    End(7),
    End(7, "in a bad way"),
]


@pytest.mark.parametrize("item", ITEMS, ids=lambda item: type(item).__name__)
def test_an_item_survives_its_message(item):
    assert wire.decode(wire.encode(item)) == item


@pytest.mark.parametrize(
    "message",
    [
        Message(b""),
        Message(b"", 0, 77),
        *(Message(b"", 0, kind) for kind in wire.Kind if kind is not wire.Kind.BLOCK),
        Message(struct.pack("<QII", 1, 2, 3) + b"ab", 0, wire.Kind.PACKET),
    ],
)
def test_a_message_that_means_nothing_is_refused(message):
    with pytest.raises(wire.BadStream):
        wire.decode(message)


CLASSIC, NG = Section(pcapng=False, big_endian=False), Section(pcapng=True, big_endian=False)
WIRED = Interface(0, ETHERNET, 64, 10**6)


@pytest.mark.parametrize(
    "items",
    [
        [WIRED],
        [Packet(0, 1, 1, b"x")],
        [Block(5, b"")],
        [CLASSIC, Block(5, b"")],
        [CLASSIC, Packet(0, 1, 1, b"x")],
        [CLASSIC, WIRED, WIRED],
        [CLASSIC, WIRED, WIRED._replace(number=1)],
        [CLASSIC, WIRED._replace(rate=1000)],
        [CLASSIC, WIRED, Packet(0, None, 1, b"x")],
        [CLASSIC, WIRED, Packet(0, 2**63, 1, b"x")],
        [CLASSIC, WIRED, CLASSIC],
        [CLASSIC, WIRED, NG],
        [NG, WIRED, CLASSIC],
        [NG, WIRED._replace(link_type=65536)],
        [NG, WIRED._replace(number=1)],
        [NG, WIRED, Packet(1, 1, 1, b"x")],
        [NG, WIRED, NG, Packet(0, 1, 1, b"x")],
    ],
)
def test_what_cannot_stand_in_a_capture_is_refused(tmp_path, items):
    recorder = capture.Recorder(str(tmp_path / "written"))
    *before, last = items
    for item in before:
        recorder.write(item)
    with pytest.raises(wire.BadStream):
        recorder.write(last)
    recorder.close()
    assert not (tmp_path / "written").exists()


def test_a_recording_of_nothing_is_refused(tmp_path):
    with pytest.raises(wire.BadStream):
        capture.Recorder(str(tmp_path / "written")).finish()


def test_a_special_file_is_not_replaced():
    recorder = capture.Recorder(os.devnull)
    for item in capture.read(str(PCAPNG)):
        recorder.write(item)
    recorder.finish()
    assert Path(os.devnull).is_char_device()


def test_packets_are_due_when_they_were_captured(tmp_path):
    path = tmp_path / "capture"
    path.write_bytes(
        section()
        + TWO_INTERFACES
        + enhanced(0, 10_000_000_000, 1, b"a")
        + enhanced(1, 10_000_500, 1, b"b")  # half a millisecond later: not worth a wait
        + enhanced(1, 12_000_000, 1, b"c")
        + enhanced(0, 11_000_000_000, 1, b"d")  # out of order
        + enhanced(0, 14_000_000_000, 1, b"e")
    )
    stream = server_program.Stream(str(path), 2.0)
    start, *later = list(stream.batches())
    due = [round(at - start[0], 9) for at, _ in later]
    assert due == [1.0, 2.0]
    names = [
        [item.data for item in map(wire.decode, batch) if isinstance(item, Packet)]
        for _, batch in (start, *later)
    ]
    assert names == [[b"a", b"b"], [b"c", b"d"], [b"e"]]
    assert wire.decode(later[-1][1][-1]) == End(5)


# The programs

KINDS = [(), ("--trio",)]
kinds_of_server = pytest.mark.parametrize("server_kind", KINDS, ids=["threads", "trio"])
kinds_of_client = pytest.mark.parametrize("client_kind", KINDS, ids=["plain", "trio"])

RUN = "os.execv(sys.executable, [sys.executable, '-X', 'dev', *sys.argv[1:]])\n"
ON_TERMINAL = "os.dup2(int(sys.argv.pop(1)), 1)\n" + RUN


@pytest.fixture
def address(tmp_path):
    return tmp_path / "socket"


@pytest.fixture
def client(program, address):
    def start(outfile, *arguments):
        script = EXAMPLE / "client.py"
        return program(
            RUN, script, "--address", address, outfile, *arguments, stderr=subprocess.PIPE
        )

    return start


@pytest.fixture
def on_terminal(program, address):
    """Start a client whose output is a terminal; gives it and the terminal's other end."""
    terminals = []

    def start(outfile, *arguments):
        outer, inner = pty.openpty()
        script = EXAMPLE / "client.py"
        process = program(
            ON_TERMINAL,
            inner,
            script,
            "--address",
            address,
            outfile,
            *arguments,
            stderr=subprocess.PIPE,
            pass_fds=[inner],
        )
        os.close(inner)
        terminals.append(outer)
        return process, outer

    yield start
    for outer in terminals:
        os.close(outer)


@pytest.fixture
def server(program, address):
    """Start a server, and wait until it is there."""

    def start(file, *arguments):
        script = EXAMPLE / "server.py"
        process = program(
            RUN, script, "--address", address, file, *arguments, stderr=subprocess.PIPE
        )
        line = process.stdout.readline()
        assert line == f"serving {file} at {address}\n", process.stderr.read()
        return process

    return start


def ended(process):
    """Wait for the end of a program; return its status, and what it said since it was last read."""
    output, errors = process.stdout.read(), process.stderr.read()
    return process.wait(), output, errors


def stop(process, number=signal.SIGTERM):
    process.send_signal(number)
    return ended(process)


def read_terminal(outer, until):
    """Read what is written to a terminal until there is a pattern, or its other end is closed."""
    text = b""
    while not re.search(until, text):
        try:
            data = os.read(outer, 4096)
        except OSError:  # EIO: nobody has it open
            break
        text += data
    return text.decode()


def summary(packets):
    return rf"{packets:,} packets, [\d.]+ \w+; [\d,]+ packets/s, [\d.]+ \w+/s in [\d.]+ s"


def whole(process, outfile, packets):
    status, output, errors = ended(process)
    assert (status, errors) == (0, "")
    assert re.fullmatch(f"{re.escape(str(outfile))}: {summary(packets)}\n", output), output
    return True


@kinds_of_server
@kinds_of_client
@pytest.mark.parametrize("file", [PCAP, PCAPNG], ids=["pcap", "pcapng"])
def test_the_client_writes_what_the_server_reads(
    server, client, tmp_path, server_kind, client_kind, file
):
    outfile = tmp_path / "written"
    count = len(by_hand(file))
    serving = server(file, *server_kind)
    assert whole(client(outfile, *client_kind), outfile, count)
    assert same_packets(outfile, file, count)
    original, written = file.read_bytes(), outfile.read_bytes()
    if file is PCAPNG:  # the section header names the program that wrote the file
        original, written = original[boundaries(original)[0] :], written[boundaries(written)[0] :]
    assert written == original
    heard = serving.stdout.readline() + serving.stdout.readline()
    pattern = rf"client 1 \(process \d+\) has come\nclient 1 got all {count} packets\n"
    assert re.fullmatch(pattern, heard)
    assert stop(serving) == (0, "ended by SIGTERM\n", "")


@kinds_of_server
def test_a_client_that_takes_only_short_messages_ends_nobody_else(
    server, client, address, tmp_path, server_kind
):
    outfile = tmp_path / "written"
    serving = server(PCAP, *server_kind)
    with (
        memenpsf.connect(address, memenpsf.Message, accept=memenpsf.Accept(message=10)) as short,
        pytest.raises(memenpsf.EndOfStream),
    ):
        short.recv()
    assert whole(client(outfile), outfile, len(by_hand(PCAP)))
    status, heard, errors = stop(serving)
    assert (status, errors) == (0, "")
    assert re.search("client 1 lost after 0 packets: .* takes at most 10 ", heard)
    assert heard.endswith("ended by SIGTERM\n")


@kinds_of_server
def test_clients_of_both_kinds_at_once_get_a_large_capture(server, client, tmp_path, server_kind):
    packets = list(many_packets(20_000))
    file = tmp_path / "large"
    file.write_bytes(section() + TWO_INTERFACES + b"".join(enhanced(*packet) for packet in packets))
    serving = server(file, *server_kind)
    outfiles = tmp_path / "one", tmp_path / "other"
    receiving = [client(outfile, *kind) for outfile, kind in zip(outfiles, KINDS, strict=True)]
    for process, outfile in zip(receiving, outfiles, strict=True):
        assert whole(process, outfile, 20_000)
        assert outfile.read_bytes() == file.read_bytes()
    assert same_packets(outfiles[0], file, 20_000)
    heard = "".join(serving.stdout.readline() for _ in range(4))
    assert heard.count("got all 20000 packets\n") == 2
    assert stop(serving, signal.SIGINT) == (0, "ended by SIGINT\n", "")


@pytest.mark.parametrize("name", ["no packets", "an interface without packets", "nothing"])
def test_a_capture_without_packets(server, client, tmp_path, name):
    file, outfile = tmp_path / "empty", tmp_path / "written"
    file.write_bytes(CAPTURES[name])
    server(file)
    assert whole(client(outfile), outfile, 0)
    assert outfile.read_bytes() == CAPTURES[name]


@pytest.mark.parametrize(
    ("file", "server_kind", "client_kind"),
    [(PCAP, (), ("--trio",)), (PCAPNG, ("--trio",), ())],
    ids=["pcap", "pcapng"],
)
def test_of_a_file_that_is_cut_off_there_is_what_it_has(
    server, client, tmp_path, server_kind, client_kind, file
):
    data = file.read_bytes()
    cut = tmp_path / "cut"
    cut.write_bytes(data[: boundaries(data)[20] + 17])
    serving = server(cut, *server_kind)
    for number in "12":  # the server goes on
        status, output, errors = ended(client(tmp_path / "written", *client_kind))
        assert (status, output) == (1, "")
        damage, what_came = errors.splitlines()
        assert damage.startswith(f"client: the capture is damaged: {cut}: "), damage
        assert f"at byte {boundaries(data)[20]}" in damage
        part = tmp_path / "written.part"
        packets = len(by_hand(part))
        assert packets == len(by_scapy(cut)) - (file is PCAP)  # which takes the half one as well
        assert by_hand(part) == by_hand(file)[:packets]
        assert re.fullmatch(f"client: what came is in {part}: {summary(packets)}", what_came)
        assert not (tmp_path / "written").exists()
        heard = serving.stdout.readline() + serving.stdout.readline()
        assert f"client {number} got {packets} packets; {cut}: " in heard


def test_the_outfile_may_be_the_file(server, client, tmp_path):
    file = tmp_path / "capture"
    shutil.copy(PCAP, file)
    server(file)
    assert whole(client(file), file, 39)
    assert file.read_bytes() == PCAP.read_bytes()


@pytest.fixture
def endless(tmp_path):
    """A capture of which there is a year between the second packet and the third."""
    path = tmp_path / "endless"
    year = 365 * 24 * 3600
    path.write_bytes(
        pcap((0, 1, 9, b"one"), (0, 2, 9, b"two"), (year, 0, 9, b"three"), (year, 1, 9, b"four"))
    )
    return path


@kinds_of_client
def test_counters_in_a_terminal(server, on_terminal, endless, tmp_path, client_kind):
    serving = server(endless, "--speed", "1")
    watching, terminal = on_terminal(tmp_path / "written", *client_kind)
    read_terminal(terminal, rb"\r2 packets, 6 B; [\d,]+ packets/s, [\d.]+ \w+/s\x1b\[K")
    read_terminal(terminal, rb"\r2 packets, 6 B; 0 packets/s, 0 B/s\x1b\[K")  # still drawn
    watching.send_signal(signal.SIGINT)
    status, _, errors = ended(watching)
    assert status == 130
    part = tmp_path / "written.part"
    assert re.fullmatch(
        f"client: interrupted\nclient: what came is in {part}: {summary(2)}\n", errors
    )
    assert len(by_hand(part)) == 2
    left = [serving.stdout.readline() for _ in range(2)][1]
    assert left == "client 1 left after 2 packets\n"
    assert stop(serving)[0] == 0


@kinds_of_client
def test_a_summary_in_a_terminal(server, on_terminal, tmp_path, client_kind):
    server(PCAP)
    watching, terminal = on_terminal(tmp_path / "written", *client_kind)
    text = read_terminal(terminal, rb"\d s\r\n")
    assert re.search(rf"\r\x1b\[K{re.escape(str(tmp_path))}/written: {summary(39)}\r\n$", text)
    assert ended(watching)[0] == 0


ENDS = {
    signal.SIGKILL: "the server died",
    signal.SIGTERM: "the server has stopped in the middle of the capture",
}


@pytest.mark.parametrize(
    ("number", "server_kind", "client_kind"),
    [
        *((signal.SIGTERM, server, client) for server in KINDS for client in KINDS),
        *((signal.SIGKILL, (), client) for client in KINDS),
    ],
)
def test_a_server_that_goes_away(
    server, on_terminal, endless, tmp_path, server_kind, client_kind, number
):
    serving = server(endless, "--speed", "1", *server_kind)
    watching, terminal = on_terminal(tmp_path / "written", *client_kind)
    read_terminal(terminal, rb"\r2 packets")
    status, output, errors = stop(serving, number)
    assert errors == ""
    assert status == (0 if number == signal.SIGTERM else -signal.SIGKILL)
    if status == 0:
        assert output.endswith("client 1 was cut short after 2 packets\nended by SIGTERM\n")
    status, _, errors = ended(watching)
    assert status == 3
    assert errors.splitlines()[0] == f"client: {ENDS[number]}"
    assert len(by_hand(tmp_path / "written.part")) == 2
    assert not (tmp_path / "written").exists()


def test_a_client_that_dies(server, on_terminal, endless, tmp_path):
    serving = server(endless, "--speed", "1")
    watching, terminal = on_terminal(tmp_path / "written")
    read_terminal(terminal, rb"\r2 packets")
    watching.kill()
    serving.stdout.readline()
    assert serving.stdout.readline().startswith("client 1 lost after 2 packets: ")
    assert stop(serving)[0] == 0


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("missing", None, "No such file or directory"),
        ("text", b"This is a text.", "this is neither a pcap nor a pcapng capture"),
        ("empty", b"", "this is neither a pcap nor a pcapng capture"),
        (".", None, "Is a directory"),
    ],
)
def test_a_file_that_cannot_be_served(program, address, tmp_path, name, content, problem):
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)
    arguments = EXAMPLE / "server.py", "--address", address, file
    status, output, errors = ended(program(RUN, *arguments, stderr=subprocess.PIPE))
    assert (status, output, errors) == (1, "", f"server: {file}: {problem}\n")


@kinds_of_server
def test_an_address_that_is_taken(server, program, address, server_kind):
    server(PCAP)
    arguments = EXAMPLE / "server.py", "--address", address, PCAP, *server_kind
    status, output, errors = ended(program(RUN, *arguments, stderr=subprocess.PIPE))
    assert (status, output, errors) == (1, "", f"server: {address}: a live server listens there\n")


@kinds_of_client
def test_no_server(client, address, tmp_path, client_kind):
    before = tmp_path / "written"
    before.write_bytes(b"as it was")
    status, output, errors = ended(client(before, *client_kind))
    assert (status, output, errors) == (1, "", f"client: there is no server at {address}\n")
    assert before.read_bytes() == b"as it was"


@kinds_of_client
def test_an_outfile_that_cannot_be_written(server, client, tmp_path, client_kind):
    server(PCAP)
    status, output, errors = ended(client(tmp_path / "no" / "written", *client_kind))
    assert (status, output) == (1, "")
    assert (
        errors.splitlines()[0] == f"client: {tmp_path}/no/written.part: No such file or directory"
    )


@kinds_of_client
def test_a_full_disk(server, client, tmp_path, client_kind):
    server(PCAPNG)
    status, output, errors = ended(client("/dev/full", *client_kind))
    assert (status, output) == (1, "")
    assert "No space left on device" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([Message(b"\x1b[2J", 0, 99)], "a message of kind 99 means nothing here"),
        ([wire.encode(WIRED)], "interface 0 comes out of turn"),
        ([*map(wire.encode, (CLASSIC, WIRED, End(1)))], "0 of 1 packets have come"),
        (
            [*map(wire.encode, (CLASSIC, WIRED, End(0, "\x1b[2J")))],
            r"the capture is damaged: \x1b[2J",
        ),
    ],
)
def test_a_server_of_another_kind(client, address, tmp_path, messages, problem):
    with memenpsf.listen(address, Message) as listener:
        process = client(tmp_path / "written")
        with listener.accept(30) as interface:
            interface.xmit_many(messages)
            status, output, errors = ended(process)
    assert (status, output) == (1, "")
    assert errors.splitlines()[0] == f"client: {problem}"


def test_a_server_of_other_records(client, address, tmp_path):
    with memenpsf.listen(address, "<Q") as listener:
        process = client(tmp_path / "written")
        with pytest.raises(memenpsf.Refused):
            listener.accept(30)
        status, output, errors = ended(process)
    assert (status, output) == (1, "")
    assert errors.startswith("client: ")
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    "arguments",
    [
        ["server.py"],
        ["server.py", PCAP, "--speed", "-1"],
        ["server.py", PCAP, "--speed", "nan"],
        ["client.py"],
    ],
)
def test_wrong_arguments(program, arguments):
    script, *rest = arguments
    status, output, errors = ended(program(RUN, EXAMPLE / script, *rest, stderr=subprocess.PIPE))
    assert (status, output) == (2, "")
    assert errors.startswith("usage: ")


@pytest.mark.parametrize("speed", ["1", "0.5"])
def test_the_pace_is_kept(server, client, tmp_path, speed):
    server(PCAP, "--speed", speed)
    outfile = tmp_path / "written"
    status, output, _ = ended(client(outfile))
    assert status == 0
    seconds = float(re.search(r"in ([\d.]+) s$", output)[1])
    (*_, first, began, _, _), *_, (*_, last, over, _, _) = by_hand(PCAP)
    assert seconds >= ((last - first) + (over - began) / 1e9) / float(speed) - 0.01
    assert outfile.read_bytes() == PCAP.read_bytes()


def test_the_help_says_what_there_is(program):
    run = functools.partial(program, RUN, stderr=subprocess.PIPE)
    for script, word in ("server.py", "--speed"), ("client.py", "exit status"):
        status, output, errors = ended(run(EXAMPLE / script, "--help"))
        assert (status, errors) == (0, "")
        assert word in output
