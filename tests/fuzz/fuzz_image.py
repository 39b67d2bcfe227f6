"""Fuzz target: receiving in Python from a ring whose image is anything, and changes between calls.

The layers above the C core (fuzz_ring.c has that alone): ipcqueue/_ring, core/python,
with attachments, regions and messages outside the ring, records popped, taken many at a time, in a
loop, received with what is attached, and borrowed.  Whatever the peer writes and sends:

- calls end with records that are possible, with nothing, or with one of the documented errors;
- after CorruptPeer there is nothing but CorruptPeer;
- limits hold: sizes, attachments, how many records at once;
- what was taken only grows, and nothing stays open.
"""

import os
import socket
import stat
import struct

from ipcqueue._core import ffi

import fdpass
from fdpass import Seal
from ipcqueue import (
    Accept,
    Closed,
    CorruptPeer,
    DecodeFailed,
    Encoded,
    EndOfStream,
    Message,
    PeerDied,
    Received,
    ReceiverGone,
    Refused,
)
from ipcqueue._link.control import HELLO
from ipcqueue._records.spec import codec_for
from ipcqueue._ring import segment as _segment
from ipcqueue._ring.codes import RingError
from ipcqueue.lowlevel import Opening, Role, Terms, advance
from tests.fuzz.script import (
    MAX_STEPS,
    ODD_DESCRIPTORS,
    Script,
    heard,
    nothing_stays,
    send,
)
from tests.kit.hostile import (
    ENDED,
    FDS,
    HEAD,
    LENT,
    OUT_AGAIN,
    OUT_OF_LINE,
    RING,
    WAIT_SPACE,
    memory_file,
    moved,
)

PAGE = 4096
CAPACITY = {1: 2 * PAGE, 0: 8}  # by shape
MAX_MESSAGE = 3000
FIXED = Seal.SEAL | Seal.SHRINK | Seal.GROW
FLAGS = 0, 0, OUT_OF_LINE, OUT_AGAIN, OUT_OF_LINE | OUT_AGAIN
FINE = CorruptPeer, EndOfStream, PeerDied, ReceiverGone, Refused


def decode(data):
    """As a decoder of an application does: it refuses some."""
    if data[:1] == b"\xff":
        raise ValueError("not for me")
    return data.hex()


SPECS = bytes, Message, Encoded(bytes.fromhex, decode), "<Q", 24


class Victim:
    """An Endpoint that receives from a segment in which anything may be written."""

    def __init__(self, script):
        how = script.number()
        self.spec = script.of(SPECS)
        codec = codec_for(self.spec)
        self.frames = codec.shape == 1
        self.limits = Accept(
            message=MAX_MESSAGE,
            fds=how & 1,
            regions=how >> 1 & 3,
            region=4 * PAGE,
            shared=bool(how & 8),
            sockets=bool(how & 16),
        )
        terms = Terms(self.spec, Role(sends=False, receives=True), accept=self.limits)
        self.capacity = CAPACITY[codec.shape]
        self.size = codec.size
        self.bytes = self.capacity * codec.size
        self.next = 0  # where the peer publishes next, if it keeps the rules
        self.taken = 0
        self.corrupt = False
        ours, self.sock = socket.socketpair()
        self.segment = _segment.create(codec, self.capacity, "peer")
        fdpass.send_fds(self.sock, [self.segment.memfd], HELLO)
        self.endpoint = advance(Opening(ours, terms))
        if how & 32:  # without the fast path
            self.endpoint.ready = self.endpoint.ready_messages = ()
            self.endpoint.receiver.many = lambda *_: ()
            self.endpoint.receiver.fetch = lambda *_: None

    def poke(self, at, data):
        mapping = self.segment.mapping
        ffi.memmove(mapping.at + moved(mapping, at), data, len(data))

    def write(self, index, data):
        """Write into the ring; what reaches beyond its end goes on at its beginning."""
        at = index % self.bytes
        data = data[: self.bytes]
        first = self.bytes - at
        self.poke(RING + at, data[:first])
        self.poke(RING, data[first:])

    def publish(self):
        self.poke(HEAD, struct.pack("<Q", self.next % (1 << 64)))

    def close(self):
        self.endpoint.close()
        self.segment.close()
        self.sock.close()


def region(script):
    """Make the descriptor of what could be a memory region; return its number."""
    kind = script.number()
    if kind > 200:
        return script.of(ODD_DESCRIPTORS)()
    size = PAGE * (1 + kind % 4)
    seals = (FIXED | Seal.WRITE, FIXED, LENT)[kind // 4 % 3]
    return memory_file(size, seals, bytes(range(256)))


def frame(it, script):
    """Write a frame, mostly a possible one, and publish it; perhaps with descriptors."""
    kind = script.number()
    payload = bytes(script.take(script.up_to(40)))
    if kind & 3 == 3:
        payload *= 1 + script.up_to(100)
    flags = script.of(FLAGS) | script.number() if kind & 4 else 0
    fds, regions = (script.up_to(2), script.up_to(3)) if kind & 8 else (0, 0)
    if flags & (OUT_OF_LINE | OUT_AGAIN) and kind & 16:
        payload = struct.pack("<QII", script.near(PAGE, 100, MAX_MESSAGE), script.near(0, 3) % 5, 0)
        regions += bool(flags & OUT_OF_LINE)
    size, reserved = len(payload), 0
    if kind & 32:
        size = script.near(size, it.capacity, MAX_MESSAGE) % (1 << 32)
        reserved = script.number() if kind & 64 else 0
    if kind & 128:
        size = min(size, 255)
    given = fds + regions
    if given and (kind & 3) != 2:
        numbers = [script.of(ODD_DESCRIPTORS)() for _ in range(fds)]
        numbers += [region(script) for _ in range(regions)]
        send(it.sock, bytes((FDS, given)), numbers)
    header = struct.pack("<IIHHHH", size, script.number(), flags, fds, regions, reserved)
    it.write(it.next, header + payload)
    it.next += 16 + (size + 15 & ~15)


def peer(it, script):
    """Do something that the peer may do."""
    match script.number() % 16:
        case 0:
            it.poke(HEAD, struct.pack("<Q", script.near(it.taken, it.next)))
        case 1:
            at = script.up_to(RING + it.bytes - 9)
            it.poke(at, script.take(8))
        case 2:
            it.poke(ENDED, b"\1")
        case 3:
            it.poke(WAIT_SPACE, script.take(4))
        case 4:
            send(it.sock, bytes(script.take(2)))
        case 5:
            send(it.sock, bytes((FDS, 1)), [region(script)])
        case 6 if script.number() > 200:
            it.sock.shutdown(script.of((socket.SHUT_WR, socket.SHUT_RDWR)))
        case 7:
            heard(it.sock)
        case 8:
            it.next = it.taken
        case _ if it.frames:
            for _ in range(1 + script.number() % 3):
                frame(it, script)
            it.publish()
        case _:
            it.write(it.next * it.size, bytes(script.take(script.up_to(40))))
            it.next += script.up_to(it.capacity)
            it.publish()


def check_record(it, record):
    if it.spec is bytes:
        assert type(record) is bytes
        assert len(record) <= MAX_MESSAGE
    elif it.spec is Message:
        assert type(record) is Message
        assert len(record.data) <= MAX_MESSAGE
        assert 0 <= record.flags <= 255
    elif it.spec == "<Q":
        assert type(record) is tuple
        assert len(record) == 1
    elif it.spec == 24:
        assert type(record) is bytes
        assert len(record) == 24
    else:
        assert type(record) is str
        assert len(record) <= 2 * MAX_MESSAGE


def check_received(it, received):
    assert type(received) is Received
    check_record(it, received.record)
    assert len(received.fds) <= it.limits.fds
    assert len(received.regions) <= it.limits.regions
    for fd in received.fds:
        is_socket = stat.S_ISSOCK(os.fstat(fd.fileno()).st_mode)
        assert it.limits.sockets or not is_socket
    for region in received.regions:
        assert region.size <= 4 * PAGE
        assert it.limits.shared or region.mode != "shared"
    received.close()


def victim(it, script):
    """Do something that the application may do."""
    endpoint = it.endpoint
    limit = 1 + script.up_to(20)
    match script.number() % 10:
        case 0 | 1:
            record = endpoint.try_pop()
            if record is not None:
                check_record(it, record)
        case 2 | 3:
            records = endpoint.try_pop_many(endpoint.most(limit))
            for record in records or ():
                check_record(it, record)
            assert records is None or 0 < len(records) <= limit
        case 4 | 5:
            received = endpoint.try_receive()
            if received is not None:
                check_received(it, received)
        case 6:
            for record in endpoint.ready:
                check_record(it, record)
                limit -= 1
                if limit == 0:
                    break
        case 7:
            endpoint.read_if_free()
        case 8:
            statistics = endpoint.statistics()
            assert 0 <= statistics.waiting <= it.capacity
        case 9:
            lend(it, limit, script)
    head, taken = endpoint.indices()
    assert it.taken <= taken <= head <= taken + it.capacity
    it.taken = taken


def lend(it, limit, script):
    """Borrow some, look at each byte; meanwhile the peer goes on; then take them or not."""

    class Holder:
        pass

    endpoint, holder = it.endpoint, Holder()
    receiver = endpoint.receiving()

    def attempt():
        return receiver.lend_records(endpoint.most(limit), holder)

    lent = endpoint.or_end(attempt)
    if lent is None:
        return
    assert 0 < len(lent) <= it.capacity
    for each in lent:
        view = receiver.view(each.memory, each.offset, each.size)
        assert len(bytes(view)) <= max(MAX_MESSAGE, it.bytes)
        view.release()
    if script.number() & 1:
        peer(it, script)
        endpoint.indices()
    take = bool(script.number() & 1)
    try:
        receiver.end_borrowing(holder, take=take)
    except RingError as error:
        trouble = error.args
    else:
        return
    endpoint.raise_meaning(*trouble, sending=False)


def one(data):
    """Run one input; raise for what must not be."""
    script = Script(data)
    with nothing_stays():
        it = Victim(script)
        try:
            for _ in range(MAX_STEPS):
                if not script:
                    break
                if script.number() & 1:
                    peer(it, script)
                    continue
                try:
                    victim(it, script)
                except DecodeFailed:
                    assert isinstance(it.spec, Encoded)
                    assert not it.corrupt
                except FINE as error:
                    assert not it.corrupt or type(error) is CorruptPeer
                    it.corrupt = it.corrupt or type(error) is CorruptPeer
                except Closed:
                    raise AssertionError("nobody has closed this") from None
        finally:
            it.close()
