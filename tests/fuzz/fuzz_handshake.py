"""Fuzz target: a peer that may do anything instead of introducing itself.

Whatever it sends, and whatever its segment says: the opening ends with one of the documented errors
or with an Endpoint whose rings lie within both files; it has told the peer nothing but HELLO and ERR;
nothing stays open.  It ends at the first step after its deadline.
"""

import contextlib
import math
import socket
import struct
from typing import NamedTuple

from ipcqueue import CorruptPeer, HandshakeTimeout, PeerDied, QueueError, Refused
from ipcqueue._link.control import HELLO, Reason
from ipcqueue._records.fields import f64
from ipcqueue._records.spec import codec_for
from ipcqueue._ring.identity import Identity
from ipcqueue.lowlevel import Opening, Role, Terms, advance
from tests.fuzz.script import (
    MAX_STEPS,
    ODD_DESCRIPTORS,
    Script,
    heard,
    nothing_stays,
    received,
    send,
)
from tests.kit.hostile import ENDED, HEAD, LENT, memory_file

PAGE = 4096
MAX_SEGMENT = 16 * PAGE
SPECS = "<Q", 24, bytes, 1, 4096, NamedTuple("Quote", [("bid", f64), ("ask", f64)])
ROLES = Role(True, True), Role(True, False), Role(False, True)
FINE = CorruptPeer, Refused, PeerDied, HandshakeTimeout

# Where the fields of struct ipcq_identity stand, and how long they are.
FIELDS = {
    "magic": (0, 8),
    "layout_version": (8, 4),
    "byte_order": (12, 4),
    "header_size": (16, 4),
    "slot_size": (20, 4),
    "capacity": (24, 8),
    "segment_size": (32, 8),
    "fingerprint": (40, 16),
    "creator_pid": (56, 4),
    "shape": (60, 4),
    "max_message": (64, 8),
    "accept_fds": (72, 4),
    "accept_regions": (76, 4),
    "accept_flags": (80, 4),
    "wake_line": (84, 4),
    "generation": (88, 8),
    "base": (96, 8),
    "switch_at": (104, 8),
    "session": (112, 16),
    "name": (128, 64),
    "record": (192, 512),
    "names": (2944, 1048),
}
NAMES = (*FIELDS, "capacity", "slot_size", "segment_size", "capacity")  # what most depends on


def identity(codec, capacity, size):
    """Return the identity of a segment as its owner writes it."""
    mine = Identity(
        slot_size=codec.size,
        capacity=capacity,
        segment_size=size,
        fingerprint=codec.layout.fingerprint,
        creator_pid=1,
        name="peer",
        record=codec.layout.description,
        shape=codec.shape,
        max_message=1 << 20,
        names=codec.names.table,
    )
    page = bytearray(PAGE)
    for field, (at, length) in FIELDS.items():
        value = getattr(mine, field)
        if isinstance(value, str):
            value = value.encode()
        elif isinstance(value, int):
            value = value.to_bytes(length, "little")
        page[at : at + len(value)] = value
    return page


def segment(script, terms):
    """Make the peer's segment: as it should be, apart from what the script changes; return its number."""
    codec = terms.codec
    frames = codec.shape == 1
    capacity = (PAGE << script.up_to(2) if frames else 1 << script.up_to(4)) * terms.role.receives
    size = -(-(PAGE + capacity * codec.size) // PAGE) * PAGE
    page = identity(codec, capacity, size)
    for _ in range(script.number() % 4):
        at, length = FIELDS[script.of(NAMES)]
        if length > 8:
            text = script.take(script.up_to(length))
            page[at : at + len(text)] = text
        else:
            own = int.from_bytes(page[at : at + length], "little")
            value = script.near(own, own, capacity, size)
            page[at : at + length] = (value % (1 << 8 * length)).to_bytes(length, "little")
    seals, reserved = LENT, None
    match script.number() % 16:
        case 0:
            seals = script.number() % 32
        case 1:
            size = script.near(size, PAGE, MAX_SEGMENT) % (2 * MAX_SEGMENT)
        case 2:
            size += PAGE * script.up_to(3)
        case 3:
            reserved = 0
        case 4:
            size = page[FIELDS["segment_size"][0] + 1] << 8  # as large as it says, in part
        case 5:
            struct.pack_into("<QQ", page, HEAD, script.near(capacity), script.near(capacity))
            page[ENDED] = script.number()
    return memory_file(size, seals, bytes(page), reserved=reserved)


def said_by(script, sock, terms):
    """Send something to the victim."""
    kind = script.number()
    data = HELLO
    numbers = []
    if kind & 1:
        data = bytes(script.take(1 + script.up_to(3))) or b"\0"
    if kind & 2:
        data = data[: 1 + script.up_to(1)]
    count = 1 if kind & 4 else script.up_to(3)
    numbers = [
        segment(script, terms) if kind & 8 or script.number() & 1 else script.of(ODD_DESCRIPTORS)()
        for _ in range(count)
    ]
    send(sock, data, numbers)


def reflected(sock):
    """Send back what the victim has sent."""
    data, numbers = received(sock, 2) or (b"", [])
    if data:
        send(sock, data, numbers)
    return data


def use(endpoint, terms, written):
    """The Endpoint is what was agreed, and bears to be used."""
    its = endpoint._peer.identity
    assert endpoint._peer.memfd.size <= MAX_SEGMENT
    assert PAGE + its.capacity * its.slot_size <= endpoint._peer.memfd.size == its.segment_size
    assert its.capacity & (its.capacity - 1) == 0
    assert bool(its.capacity) == terms.role.receives
    assert its.layout == endpoint._own.identity.layout
    for text, most in ((its.name, 64), (its.record, 512)):
        assert len(text) <= most
        assert text.isprintable()
    if terms.role.receives:
        for _ in range(3):
            try:
                records = endpoint.try_pop_many(endpoint.most(None))
            except QueueError:
                break
            assert records is None or 0 < len(records) <= its.capacity
    if terms.role.sends:
        with contextlib.suppress(QueueError):
            endpoint.try_push(written)
    endpoint.close()


def check_said(said, *, refused):
    """The victim says HELLO, and at most once why it goes."""
    if said[:2] == HELLO:
        said = said[2:]
    # In an Endpoint that was used: doorbells and a goodbye follow.
    if refused:
        assert said == b"" or (said[0] == 100 and len(said) == 2 and Reason(said[1])), said
    assert len(said) % 2 == 0


def attempt(script):
    spec = script.of(SPECS)
    terms = Terms(
        spec,
        script.of(ROLES),
        capacity=1 << script.up_to(3),
        timeout=None,
        max_segment=MAX_SEGMENT,
    )
    ours, sock = socket.socketpair()
    try:
        opening = Opening(ours, terms)
        endpoint, gone = None, False
        said = b""
        try:
            for _ in range(MAX_STEPS):
                if not script or endpoint is not None:
                    break
                match script.number() % 8:
                    case 0:
                        said += heard(sock)[0]
                    case 1:
                        said += reflected(sock)
                    case 2 if script.number() > 200:
                        gone = True
                        leave(script, sock)
                    case 3 | 4:
                        endpoint = advance(opening)
                    case _:
                        said_by(script, sock, terms)
            opening.deadline = -math.inf
            if endpoint is None:
                endpoint = advance(opening)
            assert endpoint is not None, "nothing happens behind the deadline"
        except FINE as error:
            assert type(error) is not QueueError
            assert ours.fileno() == -1, "the socket is closed"
            rest, ended = heard(sock)
            assert ended
            if not gone:
                check_said(said + rest, refused=True)
            return
        except BaseException:
            opening.abandon()
            raise
        use(endpoint, terms, codec_written(terms))
        check_said(said + heard(sock)[0], refused=False)
    finally:
        sock.close()


def leave(script, sock):
    """End the connection in one of the ways there are; with a reset if something was left unread."""
    how = script.of((socket.SHUT_WR, socket.SHUT_RDWR, socket.SHUT_RD, None))
    with contextlib.suppress(OSError):
        if how is None:
            sock.close()
        else:
            sock.shutdown(how)


def codec_written(terms):
    """Return any record under these terms."""
    if terms.codec.shape == 1:
        return b"a message"
    return codec_for(terms.codec.spec).decode(bytes(terms.codec.size))


def one(data):
    """Run one input; raise for what must not be."""
    with nothing_stays():
        attempt(Script(data))
