"""Calls that wait: an exception, another reader, or closing, at every place of them."""

import contextlib
import itertools
import socket
import sys
import threading
from types import SimpleNamespace
from typing import ClassVar

import pytest

import fdpass
from ipcqueue import (
    Closed,
    CorruptPeer,
    EndOfStream,
    Full,
    PeerDied,
    QueueError,
    Receiver,
    ReceiverGone,
)
from ipcqueue import _direct as direct
from ipcqueue._link import wire as _wire
from ipcqueue._link.control import HELLO
from ipcqueue._records.spec import codec_for
from ipcqueue._ring import segment as _segment
from ipcqueue.lowlevel import Event, Role, Terms, open_pair
from tests.kit.hostile import ENDED, HEAD, TAIL, Peer
from tests.kit.places import at_every_place, interrupt
from tests.kit.waiting import Side, descriptors, settled, turns, until, wake_ups_only  # noqa: F401 (the fixture)

SPEC = "<Q"
BOTH = Role(sends=True, receives=True)


@pytest.fixture
def peer(in_thread):
    peer = Peer()
    yield peer
    peer.close()


class TestInterruptsAnywhere:
    """An exception (Ctrl-C) at any place of a wait, and the connection is as good as before."""

    CALLS: ClassVar = {
        "pop": lambda side: side.pop(0.001),
        "pop_many": lambda side: side.pop_many(None, 0.001),
        "push": lambda side: side.push((9,), 0.001),
        "push_many": lambda side: side.push_many([(9,)], 0.001),
        "take_message": lambda side: side.take_message(0.001),
        "send_message": lambda side: side.send_message(b"\xff\xff", 0.001),
    }

    @pytest.mark.parametrize("verb", CALLS)
    @pytest.mark.parametrize("doorbell", [False, True])
    def test_of_a_wait_for_nothing(self, verb, doorbell):
        before = descriptors()
        peers = []

        def prepare():
            peers.append(Peer())
            side = Side(peers[-1].endpoint)
            if verb.startswith("push"):
                side.fill()
            if verb == "send_message":
                side.fill_socket()
            if doorbell:
                peers[-1].say(b"\x01\x00\x80\x01")

        def call():
            with contextlib.suppress(Full):
                return self.CALLS[verb](Side(peers[-1].endpoint))

        def check(result):
            peer = peers.pop()
            endpoint = peer.endpoint
            peer.say(b"\x80\x02")
            turns(endpoint)
            taken = list(iter(endpoint.try_take_message, None))
            if verb == "take_message" and result:
                taken.insert(0, result)
            assert taken == [b"\x80\x01"] * doorbell + [b"\x80\x02"]
            peer.publish(5)
            peer.sock.close()
            turns(endpoint)
            assert endpoint.try_pop() == (5,)
            with pytest.raises(PeerDied):
                endpoint.try_pop()
            peer.close()
            assert settled(before)

        assert at_every_place(prepare, call, interrupt, check) > 10

    @pytest.mark.parametrize("verb", ["pop", "pop_many"])
    @pytest.mark.parametrize("ended", [False, True])
    def test_of_a_wait_that_ends_well(self, peer, verb, ended, monkeypatch):
        # What is waited for is there once the first look has found nothing.
        endpoint = peer.endpoint
        side, total = Side(endpoint), itertools.count(1)
        taken = []

        def prepare():
            prepare.last = next(total)
            looked = []

            def announce(event, units=1):
                if not looked:
                    looked.append(event)
                    peer.poke(4096 + 8 * ((prepare.last - 1) % 4), prepare.last)
                    peer.poke(HEAD, prepare.last)
                return real(event, units)

            monkeypatch.setattr(endpoint, "announce", announce)
            if ended and prepare.last == 1:
                peer.say(b"\x80\x01")

        def call():
            got = self.CALLS[verb](side)
            return [got] if verb == "pop" else got

        def check(result):
            taken.extend(result or [])
            if (record := endpoint.try_pop()) is not None:
                taken.append(record)
            if endpoint.receiver.indices()[0] < prepare.last:  # it struck before the first look
                peer.poke(4096 + 8 * ((prepare.last - 1) % 4), prepare.last)
                peer.poke(HEAD, prepare.last)
                taken.append(endpoint.try_pop())
            assert taken == [(n,) for n in range(1, prepare.last + 1)]

        real = endpoint.announce
        assert at_every_place(prepare, call, interrupt, check) > 10

    def test_of_a_batch_that_is_there_when_the_end_is_known(self):
        # Every look at the batch happens after the core has given it away.
        peers = []

        def prepare():
            peers.append(Peer())
            peers[-1].publish(1, 2, 3)
            peers[-1].poke(ENDED, 1)
            peers[-1].sock.close()
            turns(peers[-1].endpoint)

        def check(result):
            peer = peers.pop()
            got = list(result or [])
            with contextlib.suppress(EndOfStream):
                got += peer.endpoint.try_pop_many(9)
            assert got == [(1,), (2,), (3,)]
            peer.close()

        def call():
            return Side(peers[-1].endpoint).pop_many(None, None)

        assert at_every_place(prepare, call, interrupt, check) > 10

    @pytest.fixture
    def _swallowed(self, monkeypatch):
        # What strikes while something is destroyed, Python can only print.
        monkeypatch.setattr("sys.unraisablehook", lambda it: None)

    @pytest.mark.usefixtures("_swallowed")
    def test_of_close(self):
        before = descriptors()
        ends = []

        def prepare():
            ends[:] = open_pair(Terms(SPEC, BOTH), Terms(SPEC, BOTH))

        def check(_):
            if not ends[0].closed:  # else it has finished what was begun
                ends[0].close()
            turns(ends[1])
            with pytest.raises(QueueError) as caught:
                ends[1].try_pop()
            assert type(caught.value) is EndOfStream
            ends[1].close()
            assert settled(before)

        def close():
            ends[0].close()

        assert at_every_place(prepare, close, interrupt, check) > 20

    @pytest.mark.filterwarnings("ignore::ResourceWarning")  # freed by the collector is freed too
    @pytest.mark.usefixtures("_swallowed")
    def test_of_a_handshake(self):
        segment = _segment.create(codec_for(SPEC), 4, "")
        before = descriptors()
        socks = []

        def prepare():
            socks[:] = socket.socketpair()
            fdpass.send_fds(socks[1], [segment.memfd], HELLO)

        def call():
            Receiver(socks[0], SPEC).close()

        def check(_):
            for sock in socks:
                sock.close()
            assert settled(before)

        assert at_every_place(prepare, call, interrupt, check) > 50
        segment.close()


def holds_a_lock_of(endpoint):
    """Whether this thread is where no other can go on."""
    rings = endpoint.sender._lock, endpoint.receiver._lock
    locks = endpoint.waiters.mutex, endpoint.wire._lock, *rings
    return any(lock.release.__self__._is_owned() for lock in locks)


class TestHandOverAnywhere:
    """Who reads the socket for two more threads leaves; they need no clock to go on."""

    CALLS: ClassVar = {
        "after a sleep": lambda side: side.pop(0.001),
        "without a sleep": lambda side: side.endpoint.read_if_free(),
    }

    def leave(self, in_thread, monkeypatch, how, read, action, then):
        """Let somebody read this while two others follow, with `action` at each place in turn."""
        at_hand = []

        def prepare():
            at_hand.clear()
            peer = Peer()
            peer.say(read)
            at_hand[:] = [peer, Side(peer.endpoint)]

        def read_it(*arguments):
            tracer = sys.gettrace()
            sys.settrace(None)
            if threading.current_thread() is threading.main_thread() and len(at_hand) == 2:
                peer, side = at_hand
                at_hand.extend(in_thread(side.take_message, None) for _ in range(2))
                until(lambda: len(peer.endpoint.waiters.followers) == 2)
            sys.settrace(tracer)
            return real(*arguments)

        def call():
            return self.CALLS[how](at_hand[1])

        def act():
            action(*at_hand)

        def check(_):
            if len(at_hand) > 2:
                then(*at_hand)
            at_hand[0].close()

        real = direct.receive
        monkeypatch.setattr(_wire, "_direct", SimpleNamespace(receive=read_it))
        assert at_every_place(prepare, call, act, check) > 10

    @pytest.mark.deadline(20)
    @pytest.mark.parametrize("how", CALLS)
    def test_when_an_exception_strikes(self, in_thread, monkeypatch, how):
        def then(peer, side, *followers):
            peer.say(b"\x80\x01" * 2)
            assert [follower.result() for follower in followers] == [b"\x80\x01"] * 2

        self.leave(in_thread, monkeypatch, how, b"\x01\x00", interrupt, then)

    @pytest.mark.deadline(20)
    @pytest.mark.parametrize("how", CALLS)
    def test_when_a_newcomer_begins_to_read(self, in_thread, monkeypatch, how):
        newcomers = []

        def begin(peer, side, *followers):
            if followers:
                poppers = side.endpoint.waiters.counts[Event.RECORDS]
                newcomers.append(in_thread(side.pop, None))
                if not holds_a_lock_of(side.endpoint):  # else it waits for us
                    until(lambda: side.endpoint.waiters.counts[Event.RECORDS] > poppers)

        def then(peer, side, *followers):
            # What was read belongs to them.
            assert [follower.result() for follower in followers] == [b"\x80\x01"] * 2
            peer.publish(1)
            peer.say(b"\x01\x01")
            while newcomers:
                assert newcomers.pop().result() == (1,)

        self.leave(in_thread, monkeypatch, how, b"\x80\x01" * 2, begin, then)


class TestClosedAnywhere:
    """Another thread closes at any place of a call, which then says Closed or has succeeded."""

    CALLS: ClassVar = {
        "pop": lambda side: side.pop(0.001),
        "pop_many": lambda side: side.pop_many(None, 0.001),
        "push": lambda side: side.push((9,), 0.001),
        "push_many": lambda side: side.push_many([(9,)], 0.001),
        "take_message": lambda side: side.take_message(0.001),
        "send_message": lambda side: side.send_message(b"\xff\xff", 0.001),
        "turn": lambda side: side.endpoint.read_if_free(),
        "arm": lambda side: side.endpoint.arm(records=True, space=True),
        "indices": lambda side: side.endpoint.indices(),
        "statistics": lambda side: side.endpoint.statistics(),
        "fileno": lambda side: side.endpoint.fileno(),
        "finish": lambda side: side.endpoint.finish(),
        "close": lambda side: side.endpoint.close(),
        "repr": lambda side: repr(side.endpoint),
    }

    OUTCOMES: ClassVar = {
        "idle": (Closed, Full),
        "busy": (Closed, Full),
        "ended": (Closed, EndOfStream, ReceiverGone),
        "corrupt": (Closed, CorruptPeer, Full),
    }

    @pytest.mark.parametrize("verb", CALLS)
    def test_of(self, in_thread, verb):
        for state in self.OUTCOMES:
            self.close_during(in_thread, verb, state)

    def close_during(self, in_thread, verb, state):
        before = descriptors()
        at_hand = []

        def prepare():
            peer = Peer()
            side = Side(peer.endpoint)
            at_hand[:] = [peer, side]
            if state == "busy":  # and full
                peer.say(b"\x80\x01\x01\x00")
                peer.publish(1, 2)
                side.fill()
                if verb == "send_message":
                    side.fill_socket()
            if state == "ended":
                peer.poke(ENDED, 3)
                peer.sock.close()
            if state == "corrupt":
                peer.poke(HEAD, 99)
                peer.poke(TAIL, 99)
                peer.say(b"\x00\x00")

        def close():
            endpoint = at_hand[0].endpoint
            closer = in_thread(endpoint.close)
            at_hand.append(closer)
            if not holds_a_lock_of(endpoint):  # else it waits for us
                closer.join()

        def call():
            try:
                return self.CALLS[verb](at_hand[1])
            except QueueError as error:
                return error

        def check(result):
            peer, side, *closers = at_hand
            for closer in closers:
                closer.result()
                assert peer.endpoint.closed
            if isinstance(result, QueueError):
                assert isinstance(result, self.OUTCOMES[state])
            peer.close()
            assert len(peer.endpoint.statistics()) == 14
            with pytest.raises(Closed):
                side.pop(0)
            at_hand.clear()
            assert settled(before)

        places = at_every_place(prepare, call, close, check)
        assert places >= (verb != "repr")  # which calls nothing while it is open
