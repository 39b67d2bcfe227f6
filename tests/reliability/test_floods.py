"""A peer that floods, stalls or stops: every verb ends in its time, and work has its bounds.

The peer is a forked child that does one thing for ever, with the segment and the socket of a
connection that was made properly.
"""

import contextlib
import ctypes
import os
import random
import signal
import socket
import struct
import time

import pytest
from ipcqueue._core import ffi

import fdpass
import memenpsf
from tests.kit.hostile import (
    ENDED,
    FDS,
    HEAD,
    ONCE,
    TAIL,
    WAIT_RECORDS,
    WAIT_SPACE,
    Hostile,
    moved,
    outside,
)
from tests.reliability import campaign

MAX_CPU = 5.0  # seconds of one call; far more than any needs, and a loop without end takes more

pytestmark = pytest.mark.deadline(campaign.seconds(120))


class Flood:
    """A connection, and what its peer does to it for ever."""

    def __init__(self, record):
        self.it = Hostile(record=record, accept=memenpsf.Accept(fds=4))
        self.victim = self.it.victim
        self.own = self.it.endpoint._own.mapping.at
        self.peer = ffi.buffer(self.it.endpoint._peer.mapping.at, 4096)
        self.capacity = self.victim._endpoint.receiver.capacity
        self.pid = 0

    def begin(self, what):
        self.pid = os.fork()
        if self.pid == 0:
            try:
                parent = os.getppid()
                ctypes.CDLL(None).prctl(1, signal.SIGKILL)
                self.it.sock.setblocking(True)
                while os.getppid() == parent:
                    what(self)
            finally:
                os._exit(1)

    def put(self, offset, form, value):
        offset = moved(self.it.endpoint._own.mapping, offset)
        ffi.buffer(self.own + offset, struct.calcsize(form))[:] = struct.pack(form, value)

    def taken(self):
        return struct.unpack_from("=Q", self.peer, TAIL)[0]

    def close(self):
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        self.own = self.peer = None
        self.it.close()


def doorbells(flood):
    flood.it.sock.send(b"\x01\0\x02\0" * 1000)


def records(flood):
    """Always a ringful more; of messages, all empty or all large."""
    for _ in range(1000):
        flood.put(HEAD, "=Q", flood.taken() + flood.capacity)


def one_and_none(flood):
    for _ in range(1000):
        taken = flood.taken()
        flood.put(HEAD, "=Q", taken + 16)
        flood.put(HEAD, "=Q", taken)


def takes_all(flood):
    for _ in range(1000):
        flood.put(TAIL, "=Q", struct.unpack_from("=Q", flood.peer, HEAD)[0])
        flood.put(WAIT_RECORDS, "=I", random.getrandbits(32) | 1)


def asks_for_doorbells(flood):
    for _ in range(1000):
        flood.put(WAIT_RECORDS, "=I", random.getrandbits(32) | 1)
        flood.put(WAIT_SPACE, "=I", random.getrandbits(32) | 1)


def opens_and_closes(flood):
    for _ in range(1000):
        flood.put(ENDED, "=I", 1)
        flood.put(ENDED, "=I", 0)


def messages(flood):
    flood.it.sock.send(b"\x80\1" * 1000)


def descriptors(flood):
    fdpass.send_fds(flood.it.sock, [0] * 4, bytes((FDS, 4)))


def stops(flood):
    os.kill(os.getpid(), signal.SIGSTOP)


def all_at_once(flood):
    for _ in range(100):
        random.choice([records, takes_all, asks_for_doorbells, one_and_none])(flood)
        flood.it.sock.send(b"\x01\0" * random.randrange(1, 100))


FLOODS = [
    doorbells,
    records,
    one_and_none,
    takes_all,
    asks_for_doorbells,
    opens_and_closes,
    messages,
    descriptors,
    stops,
    all_at_once,
]


@pytest.fixture
def flooded():
    made = []

    def make(record, what):
        made.append(Flood(record))
        made[-1].begin(what)
        return made[-1].victim

    yield make
    for flood in made:
        flood.close()


def borrow(victim, timeout):
    with victim.borrow(timeout=timeout) as borrowed:
        return len(borrowed)


def loan(victim, timeout):
    with victim.loan(1, timeout=timeout):
        pass


def receive(victim, timeout):
    message = victim.recv_message(timeout)
    if message is not None:
        message.close()


RECEIVING = {
    "recv": lambda victim, timeout: victim.recv(timeout),
    "recv_vectored": lambda victim, timeout: victim.recv_vectored(None, timeout),
    "recv_message": receive,
    "borrow": borrow,
    "recv_ctrl_msg": lambda victim, timeout: victim.recv_ctrl_msg(timeout),
}
SENDING = {
    "xmit": lambda victim, timeout: victim.xmit(bytes(24), timeout),
    "xmit_many": lambda victim, timeout: victim.xmit_many([bytes(24)] * 1000, timeout),
    "loan": loan,
    "send_ctrl_msg": lambda victim, timeout: victim.send_ctrl_msg(b"\x80\0", timeout),
}


def ends_in_time(call, victim, timeout):
    """Make the call; return the error that ends the connection, if one does."""
    cpu = time.process_time()
    try:
        call(victim, timeout)
    except memenpsf.Full:
        return None
    except (
        memenpsf.CorruptPeer,
        memenpsf.PeerDied,
        memenpsf.EndOfStream,
        memenpsf.ReceiverGone,
    ) as error:
        return type(error)
    finally:
        assert time.process_time() - cpu < MAX_CPU
    return None


@pytest.mark.parametrize("record", [bytes, 24], ids=["messages", "records"])
@pytest.mark.parametrize("what", FLOODS)
def test_every_verb_ends_in_its_time_whatever_the_peer_floods_with(flooded, what, record):
    for verbs in (RECEIVING, SENDING):
        for timeout in (0, 0.02):
            for call in verbs.values():
                victim = flooded(record, what)
                ended = False
                for _ in range(5):
                    ended = ends_in_time(call, victim, timeout) or ended
                if ended is memenpsf.CorruptPeer:
                    assert ends_in_time(SENDING["xmit"], victim, 0) is ended
                cpu = time.process_time()
                victim.close()
                assert time.process_time() - cpu < MAX_CPU


def until_the_end(call, victim):
    for _ in range(200_000):
        if error := ends_in_time(call, victim, 1):
            return error
    return None


@pytest.mark.parametrize("what", [messages, descriptors])
def test_what_nobody_takes_is_kept_up_to_a_bound(flooded, what):
    victim = flooded(bytes, what)
    assert until_the_end(RECEIVING["recv"], victim) is memenpsf.CorruptPeer
    endpoint = victim._endpoint
    assert len(endpoint.wire.attached) <= 16
    assert len(endpoint.wire.inbox) <= 65536 + 2048


def test_who_stops_reading_fills_its_socket_and_its_ring_and_nobody_waits_for_it(flooded):
    victim = flooded(24, stops)
    for call in SENDING.values():
        with contextlib.suppress(memenpsf.Full):
            while call(victim, 0) != 0:
                pass
    assert victim.statistics().full > 0
    for verb in (*SENDING.values(), *RECEIVING.values()):
        assert ends_in_time(verb, victim, 0.02) is None
    victim._endpoint.finish()
    victim.close()


def test_who_stops_in_the_handshake_is_given_up():
    ours, theirs = socket.socketpair()
    with theirs, pytest.raises(memenpsf.HandshakeTimeout):
        memenpsf.Interface(ours, 24, timeout=0.05)
    ours, theirs = socket.socketpair()
    theirs.send(b"\x10")
    with theirs, pytest.raises(memenpsf.HandshakeTimeout):
        memenpsf.Interface(ours, 24, timeout=0.05)


# -- memory that is said to be somewhere ----------------------------------------------------------


@pytest.mark.parametrize("verb", ["recv", "borrow"])
def test_a_number_means_the_memory_of_its_own_client_alone(verb):
    with contextlib.closing(Hostile()) as one, contextlib.closing(Hostile()) as other:
        memory = one.lent(4096)
        outside(one, memory, number=3, size=1)
        assert one.victim.recv(timeout=0) == b"\0"
        outside(other, number=3, size=1, again=True)
        with pytest.raises(memenpsf.CorruptPeer, match="never given memory region 3"):
            RECEIVING[verb](other.victim, 0)
        outside(one, number=3, size=1, again=True)
        assert one.victim.recv(timeout=0) == b"\0"


def test_no_more_memory_is_kept_than_there_are_numbers():
    with contextlib.closing(Hostile()) as it:
        memory = it.lent(4096)
        # Twice each number, in one round of the ring.
        for number in (*range(16), *[ONCE] * 30, *range(16)):
            outside(it, memory, number=number, size=1)
            assert it.victim.recv(timeout=0) == b"\0"
        kept = it.victim._endpoint.receiver._regions
        assert set(kept) == set(range(16))
    for number in (16, 17, 1 << 31, 0xFFFFFFFE):
        with contextlib.closing(Hostile()) as it:
            outside(it, it.lent(4096), number=number, size=1)
            with pytest.raises(
                memenpsf.CorruptPeer, match=f"no memory region with number {number}"
            ):
                it.victim.recv(timeout=0)


@pytest.mark.parametrize("size", [0, 4097, 1 << 32, 1 << 63, (1 << 64) - 1])
@pytest.mark.parametrize("again", [False, True])
def test_a_message_cannot_be_larger_than_its_memory(size, again):
    with contextlib.closing(Hostile()) as it:
        outside(it, it.lent(4096), size=1 if again else size)
        if again:
            assert it.victim.recv(timeout=0) == b"\0"
            outside(it, size=size, again=True)
        with pytest.raises(memenpsf.CorruptPeer, match=f"a message of {size} bytes in a memory"):
            it.victim.recv(timeout=0)
