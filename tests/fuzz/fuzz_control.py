"""Fuzz target: control messages, however they are cut, with descriptors where there should be none.

Whatever comes through the socket once the handshake is over:

- ControlParser finds the same messages and the same end in every cut of the same bytes, and they are
  those that a second parser finds (`expected`), which knows no cuts;
- an Endpoint that reads with C (`receive` in core/python/socket.c, which swallows doorbells) and one that
  reads with socket.recvmsg() have the same inbox, descriptors and end;
- descriptors that nobody asked for are closed, and those kept are no more than the rules allow.
"""

import socket

import fdpass
from ipcqueue import Accept, CorruptPeer, QueueError, _direct
from ipcqueue._link import wire as _wire
from ipcqueue._link.control import HELLO, ControlParser, refusal
from ipcqueue._records.spec import codec_for
from ipcqueue._ring import segment as _segment
from ipcqueue._ring.frame import MAX_ATTACHED
from ipcqueue.lowlevel import Opening, Role, Terms, advance
from tests.fuzz.script import MAX_STEPS, ODD_DESCRIPTORS, Script, heard, nothing_stays, send
from tests.kit.hostile import FDS
from tests.kit.reading import InPython

MAX_BYTES = 4096  # in one input
LIKELY = 1, 2, 1, 2, 17, 100, 128, 255, 0, 3


def expected(data):
    """Return the messages in whole, and the error that ends them: a type, or that of a refusal."""
    messages = []
    for opcode, argument in zip(data[::2], data[1::2], strict=False):
        if opcode >= 128:
            messages.append(bytes((opcode, argument)))
        elif opcode == 100:
            return messages, repr(refusal(argument))
        elif opcode not in {1, 2, 17}:
            return messages, CorruptPeer
    return messages, None


def parsed(data, script):
    """Feed a ControlParser with the same, cut anywhere."""
    parser, messages = ControlParser(), []
    while data:
        size = 1 + script.up_to(8) if script else len(data)
        try:
            more, refusal = parser.feed(data[:size])
        except CorruptPeer:
            return messages, CorruptPeer
        messages += more
        if refusal is not None:
            return messages, repr(refusal)
        data = data[size:]
    return messages, None


class Victim:
    """An Endpoint at whose other end anything can be said."""

    def __init__(self, terms, with_c):
        self.direct = _direct if with_c else InPython
        ours, self.sock = socket.socketpair()
        segment = _segment.create(codec_for(terms.codec.spec), 4096, "peer")
        fdpass.send_fds(self.sock, [segment.memfd], HELLO)
        segment.close()
        self.endpoint = advance(Opening(ours, terms))
        assert heard(self.sock) == (HELLO, False)

    def read_if_free(self):
        _wire._direct = self.direct
        try:
            self.endpoint.read_if_free()
        finally:
            _wire._direct = _direct

    def state(self):
        it = self.endpoint.wire
        attached = [len(fds) for fds in it.attached]
        assert len(attached) <= MAX_ATTACHED
        assert all(count <= it._max_fds for count in attached)
        assert not it._unread, "what was read is digested at once"
        end = self.endpoint.ending.receiving
        rest = it._parser.rest if end is None else None
        return it.inbox[:], attached, end and (type(end), end.args), rest

    def close(self):
        self.endpoint.close()
        self.sock.close()


RECORDS = Terms(24, Role(sends=False, receives=True))
MESSAGES = Terms(bytes, Role(sends=False, receives=True), accept=Accept(fds=2, regions=1))


def converse(script, terms):
    """Say the same to both; return all bytes, and whether descriptors came with any."""
    victims = []
    said, any_fds = b"", False
    try:
        victims += [Victim(terms, with_c=True)]
        victims += [Victim(terms, with_c=False)]
        for _ in range(MAX_STEPS):
            if not script:
                break
            kind = script.number()
            data = bytes(script.take(1 + kind % 8)) or b"\1"
            if kind & 128:  # else hardly any byte would be an opcode
                data = bytes(LIKELY[byte % len(LIKELY)] for byte in data)
            if kind & 8 and script.number() > 240:  # also more than one read takes
                data *= 1 + script.up_to(MAX_BYTES // len(data) - 1)
            count = script.number() % 8 if kind & 16 else 0
            if kind & 32 and count:
                data = data[: len(data) & ~1] + bytes((FDS, count))
            if len(said) + len(data) > 2 * MAX_BYTES:
                break
            make = script.of(ODD_DESCRIPTORS) if count else None
            for victim in victims:
                send(victim.sock, data, [make() for _ in range(count)])
            said, any_fds = said + data, any_fds or count > 0
            if kind & 64:
                [victim.read_if_free() for victim in victims]
                compare(victims)
        for victim in victims:
            victim.sock.shutdown(socket.SHUT_WR)
        for _ in range(4 + len(said)):
            if all(victim.endpoint.ended for victim in victims):
                break
            [victim.read_if_free() for victim in victims]
            compare(victims)
        messages, _, end, _ = compare(victims)
        assert end is not None, "all was read"
        return said, any_fds, messages, end
    finally:
        for victim in victims:
            victim.close()


def compare(victims):
    one, other = (victim.state() for victim in victims)
    assert one == other, (one, other)
    return one


def one(data):
    """Run one input; raise for what must not be."""
    script = Script(data)
    terms = MESSAGES if script.number() & 1 else RECORDS
    with nothing_stays():
        said, any_fds, messages, end = converse(script, terms)
        wanted, why = expected(said)
        assert issubclass(end[0], QueueError)
        if not any_fds:  # else these may have been the end
            check(wanted, why, messages, end[0] if why is CorruptPeer else repr(end[0](*end[1])))
        again = Script(data[::-1])
        check(wanted, why, *parsed(said, again))


def check(wanted, why, messages, end):
    if why is None:  # the end of the socket, or none
        assert messages == wanted
        assert end is None or end.startswith("PeerDied")
        return
    assert end == why
    # What came in one piece with what is wrong may be lost with it.
    assert messages == (wanted[: len(messages)] if why is CorruptPeer else wanted)
