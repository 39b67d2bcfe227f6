"""One side of a connection, without waiting: messages, ends of every kind, forks, and leaks."""

import contextlib
import errno
import gc
import itertools
import os
import select
import signal
import socket
import struct
import subprocess
import threading
import warnings
from functools import partial
from pathlib import Path

import pytest

import fdpass
from ipcqueue import (
    Closed,
    CorruptPeer,
    EndOfStream,
    ForkedUse,
    PeerDied,
    QueueError,
    Receiver,
    ReceiverGone,
    RecordRefused,
    Refused,
    pair,
)
from ipcqueue._link import endpoint as _endpoint
from ipcqueue._link import opening as _opening
from ipcqueue._link import terms as _terms
from ipcqueue._link import wire as _wire
from ipcqueue._link.control import HELLO, Reason
from ipcqueue._records.spec import codec_for
from ipcqueue._ring import segment as _segment
from ipcqueue._ring.codes import GONE
from ipcqueue._ring.memory import fork_generation
from ipcqueue._ring.sender import BatchSending
from ipcqueue._ring.slot_sender import Batch
from ipcqueue.lowlevel import Event, Role, Terms, deadline_of, drive, open_pair, plans
from tests.kit.hostile import ENDED, HEAD, TAIL, Peer
from tests.kit.places import Interrupt, at_every_place, interrupt
from tests.kit.reading import InPython
from tests.kit.settling import settle
from tests.kit.slots import fails_with, push_packed
from tests.kit.waiting import descriptors, turns

SPEC = "<Q"
BOTH = Role(sends=True, receives=True)
ERR_PROTOCOL = bytes((100, Reason.PROTOCOL))


def null():
    """Any file that is no memory file."""
    return Path("/dev/null").open("rb")


def push_encoded(endpoint, data, count):
    """Push records that are encoded already, as many as fit; as the doors push a batch."""
    batch = BatchSending(endpoint.sending(), Batch(memoryview(data).cast("B"), count))
    return drive(plans.push_rest(endpoint, batch, 0))


def mapped():
    return Path("/proc/self/maps").read_text().count("/memfd:memenpsf")


@pytest.fixture
def two_way():
    """Two endpoints that both send and receive, four records each way."""
    both = open_pair(Terms(SPEC, BOTH, capacity=4), Terms(SPEC, BOTH, capacity=4))
    yield both
    for endpoint in both:
        endpoint.close()


@pytest.fixture
def ends():
    both = pair(SPEC, capacity=4)
    yield both
    for end in both:
        end.close()


def raises_for_good(kind, *calls):
    """Each call raises, the second time too."""
    for call in calls * 2:
        with pytest.raises(QueueError) as caught:
            call()
        assert type(caught.value) is kind


@pytest.fixture
def make_peer():
    with contextlib.ExitStack() as stack:

        def make(*arguments, **options):
            peer = Peer(*arguments, **options)
            stack.callback(peer.close)
            return peer

        yield make


@pytest.fixture
def peer(make_peer):
    return make_peer()


class TestTimeouts:
    def test_none_is_never(self):
        assert deadline_of(None) == float("inf")

    def test_seconds_are_counted_from_now(self, monkeypatch):
        monkeypatch.setattr(_terms, "monotonic", lambda: 100.0)
        assert [deadline_of(seconds) for seconds in (0, 0.5, 7)] == [100.0, 100.5, 107.0]

    @pytest.mark.parametrize("timeout", [-1, -0.001, float("nan"), float("-inf")])
    def test_less_than_nothing_is_a_value_error(self, timeout):
        with pytest.raises(ValueError, match="timeout is None or at least 0"):
            deadline_of(timeout)

    @pytest.mark.parametrize("timeout", ["1", [1]])
    def test_what_is_no_number_is_a_type_error(self, timeout):
        with pytest.raises(TypeError):
            deadline_of(timeout)


class TestRecords:
    def test_both_ways_at_once(self, two_way):
        for n in range(10):
            for sends, receives in itertools.permutations(two_way):
                assert sends.try_push((n,))
                assert push_encoded(sends, struct.pack("<2Q", n + 1, n + 2), 2) == 2
                assert receives.try_pop() == (n,)
                assert receives.try_pop_many(9) == [(n + 1,), (n + 2,)]
                assert receives.try_pop() is None

    def test_each_side_has_the_capacity_it_chose(self):
        first, second = open_pair(Terms(SPEC, BOTH, capacity=2), Terms(SPEC, BOTH, capacity=5))
        assert (first.capacity, second.capacity) == (2, 8)
        assert push_encoded(first, bytes(80), 10) == 2
        assert push_encoded(second, bytes(80), 10) == 8
        first.close()
        second.close()

    def test_an_end_of_one_way_has_the_verbs_of_that_way(self, ends):
        sender, receiver = (end._endpoint for end in ends)
        for call in (sender.try_pop, lambda: sender.try_pop_many(1)):
            with pytest.raises(TypeError, match="only sends"):
                call()
        for call in (
            lambda: receiver.try_push((1,)),
            lambda: push_encoded(receiver, b"", 0),
        ):
            with pytest.raises(TypeError, match="only receives"):
                call()

    def test_indices_are_those_of_the_queue_one_sends_on(self, two_way):
        first, second = two_way
        first.try_push((1,))
        second.try_push((2,))
        second.try_push((3,))
        second.try_pop()
        assert first.indices() == (1, 1)
        assert second.indices() == (2, 0)


class TestMessages:
    def test_they_arrive_in_order_both_ways_apart_from_the_records(self, two_way):
        sent = [bytes((128 + n % 128, n % 256)) for n in range(100)]
        for message in sent:
            for endpoint in two_way:
                assert endpoint.try_send_message(message)
                endpoint.try_push((7,))
        for endpoint in two_way:
            turns(endpoint)
            assert list(iter(endpoint.try_take_message, None)) == sent
            assert endpoint.try_pop() == (7,)

    def test_none_is_there_before_the_socket_was_read(self, two_way):
        first, second = two_way
        first.try_send_message(b"\x80\x01")
        assert second.try_take_message() is None
        second.read_if_free()
        assert second.try_take_message() == b"\x80\x01"

    @pytest.mark.parametrize("message", [b"\x7f\x00", b"\x01\x00", b"\x80", b"\x80\x00\x00"])
    def test_others_than_the_applications_are_not_sent(self, two_way, message):
        with pytest.raises(ValueError):
            two_way[0].try_send_message(message)
        turns(two_way[1])
        assert not two_way[1].ended

    def test_a_full_socket_says_so_and_loses_nothing(self, two_way):
        first, second = two_way
        sent = []
        for n in itertools.count():
            message = bytes((128 + n % 128, n // 128 % 256))
            if not first.try_send_message(message):
                break
            sent.append(message)
        assert not first.try_send_message(b"\xff\xff")
        turns(second)
        assert list(iter(second.try_take_message, None)) == sent

    def test_they_are_all_taken_before_the_end_is_told(self, two_way):
        first, second = two_way
        first.try_send_message(b"\x80\x01")
        first.try_send_message(b"\x80\x02")
        first.close()
        turns(second)
        assert second.ended
        assert second.try_take_message() == b"\x80\x01"
        assert second.try_take_message() == b"\x80\x02"
        raises_for_good(EndOfStream, second.try_take_message)

    def test_one_cut_in_two_is_one(self, peer):
        peer.say(b"\x80")
        peer.endpoint.read_if_free()
        assert peer.endpoint.try_take_message() is None
        peer.say(b"\x07\x81")
        peer.endpoint.read_if_free()
        assert peer.endpoint.try_take_message() == b"\x80\x07"
        peer.say(b"\x08")
        peer.endpoint.read_if_free()
        assert peer.endpoint.try_take_message() == b"\x81\x08"

    def test_an_exception_anywhere_in_reading_loses_none(self, peer):
        endpoint = peer.endpoint

        def prepare():
            assert endpoint.try_take_message() is None
            peer.say(b"\x80\x01\x80\x02\x80")

        def check(_):
            turns(endpoint)
            peer.say(b"\x03")
            turns(endpoint)
            taken = list(iter(endpoint.try_take_message, None))
            assert taken == [b"\x80\x01", b"\x80\x02", b"\x80\x03"]

        assert at_every_place(prepare, endpoint.read_if_free, interrupt, check) > 10

    def test_an_exception_anywhere_in_taking_one_loses_none(self, peer):
        endpoint = peer.endpoint

        def prepare():
            peer.say(b"\x80\x01\x80\x02")
            turns(endpoint)

        def check(result):
            taken = [result] if result else []
            assert taken + list(iter(endpoint.try_take_message, None)) == [b"\x80\x01", b"\x80\x02"]

        assert at_every_place(prepare, endpoint.try_take_message, interrupt, check) > 2

    def test_as_many_may_wait_as_is_said_and_no_more(self, peer, monkeypatch):
        monkeypatch.setattr(_wire, "MAX_INBOX", 100)
        peer.say(b"\x80\x01" * 100)
        turns(peer.endpoint)
        assert not peer.endpoint.ended
        peer.say(b"\x80\x02")
        turns(peer.endpoint)
        assert peer.heard() == [ERR_PROTOCOL, None]
        take = peer.endpoint.try_take_message
        with pytest.raises(CorruptPeer, match="100 messages"):
            list(iter(take, None))
        assert len(peer.endpoint.wire.inbox) == 0

    def test_each_read_adds_to_what_waits_and_does_not_copy_it(self, peer):
        inbox = peer.endpoint.wire.inbox
        for count in range(1, 5):
            peer.say(b"\x80\x01")
            turns(peer.endpoint)
            assert peer.endpoint.wire.inbox is inbox
            assert len(inbox) == count

    def test_taking_them_makes_room_for_more(self, peer, monkeypatch):
        monkeypatch.setattr(_wire, "MAX_INBOX", 10)
        for _ in range(5):
            peer.say(b"\x80\x01" * 10)
            turns(peer.endpoint)
            assert len(list(iter(peer.endpoint.try_take_message, None))) == 10

    def test_a_flood_stops_at_the_real_limit(self, peer):
        flooder = threading.Thread(target=self.flood, args=(peer.sock,))
        flooder.start()
        while not peer.endpoint.ended:
            peer.endpoint.read_if_free()
        flooder.join()
        assert len(peer.endpoint.wire.inbox) <= _wire.MAX_INBOX + 2048
        assert type(peer.endpoint.ending.receiving) is CorruptPeer

    def flood(self, sock):
        with contextlib.suppress(OSError):
            while True:
                sock.sendall(b"\xff\xff" * 1000)


class TestCorruptPeer:
    """Whatever breaks the protocol ends both directions at once, and the peer is told."""

    def over(self, peer):
        endpoint = peer.endpoint
        raises_for_good(
            CorruptPeer,
            endpoint.try_pop,
            lambda: endpoint.try_pop_many(2),
            lambda: endpoint.try_push((1,)),
            lambda: push_encoded(endpoint, bytes(8), 1),
            lambda: endpoint.try_send_message(b"\x80\x00"),
            endpoint.try_take_message,
        )
        *said, end = peer.heard()
        assert said[-1].endswith(ERR_PROTOCOL)
        assert end is None
        assert endpoint.ended
        assert not endpoint.closed
        assert not endpoint.announce(Event.RECORDS)
        endpoint.close()
        raises_for_good(Closed, endpoint.try_pop, lambda: endpoint.try_push((1,)))

    @pytest.mark.parametrize("head", [5, (1 << 64) - 1])
    @pytest.mark.parametrize("batch", [False, True])
    def test_a_head_that_cannot_be_true(self, peer, head, batch):
        peer.poke(HEAD, head)
        with pytest.raises(CorruptPeer, match="index"):
            peer.endpoint.try_pop_many(9) if batch else peer.endpoint.try_pop()
        self.over(peer)

    def test_a_head_that_goes_back(self, peer):
        peer.publish(1, 2, 3)
        assert len(peer.endpoint.try_pop_many(9)) == 3
        peer.poke(HEAD, 1)
        with pytest.raises(CorruptPeer):
            peer.endpoint.try_pop()
        self.over(peer)

    @pytest.mark.parametrize("tail", [5, (1 << 64) - 1])
    @pytest.mark.parametrize("batch", [False, True])
    def test_a_tail_beyond_what_was_sent(self, peer, tail, batch):
        assert push_encoded(peer.endpoint, bytes(32), 4) == 4
        peer.poke(TAIL, tail)
        push = partial(push_encoded, peer.endpoint) if batch else peer.endpoint.try_push
        with pytest.raises(CorruptPeer, match="index"):
            push(*((bytes(8), 1) if batch else ((1,),)))
        self.over(peer)

    def test_what_was_published_before_is_not_believed_either(self, peer):
        peer.publish(1, 2)
        peer.say(b"\x00\x00")
        peer.endpoint.read_if_free()
        self.over(peer)

    @pytest.mark.parametrize("opcode", [0, 3, 16, 99, 127])
    def test_a_message_without_meaning(self, peer, opcode):
        peer.say(b"\x01\x00" + bytes((opcode, 1)))
        peer.endpoint.read_if_free()
        self.over(peer)

    @pytest.mark.parametrize("count", [1, 3])
    @pytest.mark.parametrize("data", [b"\x01\x00", HELLO, b"\x80\x00"])
    def test_descriptors_nobody_asked_for_which_are_closed(self, peer, count, data):
        before = descriptors()
        with null() as file:
            fdpass.send_fds(peer.sock, [file] * count, data)
        turns(peer.endpoint)
        assert descriptors() == before
        self.over(peer)

    def test_descriptors_nobody_asked_for_are_closed_once_whatever_interrupts_it(self, make_peer):
        peers = []

        def prepare():
            peers.append(make_peer())
            with null() as file:
                fdpass.send_fds(peers[-1].sock, [file, file], b"\x01\x00")
            prepare.before = descriptors()

        def check(_):
            # Whoever opens something now gets the numbers that were closed.
            others = [os.open("/dev/null", os.O_RDONLY) for _ in range(3)]
            turns(peers[-1].endpoint)
            for number in others:
                os.close(number)  # OSError if somebody else has closed it
            assert descriptors() == prepare.before
            peers.pop().close()

        def turn():
            peers[-1].endpoint.read_if_free()

        assert at_every_place(prepare, turn, interrupt, check) > 10

    def test_descriptors_behind_good_messages(self, peer):
        peer.say(b"\x80\x01")
        with null() as file:
            fdpass.send_fds(peer.sock, [file], b"\x80\x02")
        turns(peer.endpoint)
        assert type(peer.endpoint.ending.receiving) is CorruptPeer

    def test_statistics_neither_believe_nor_tell_it(self, peer):
        peer.publish(1, 2)
        assert peer.endpoint.statistics().waiting == 2
        peer.poke(HEAD, 99)
        assert peer.endpoint.statistics().waiting == 2
        with pytest.raises(CorruptPeer):
            peer.endpoint.try_pop()
        self.over(peer)
        assert peer.endpoint.statistics().waiting == 2

    def test_an_exception_anywhere_makes_nobody_forget_it(self, make_peer):
        peers = []

        def prepare():
            peers.append(make_peer())
            peers[-1].say(b"\x80\x01\x03\x00")

        def turn():
            peers[-1].endpoint.read_if_free()

        def check(_):
            turns(peers[-1].endpoint)
            self.over(peers.pop())

        assert at_every_place(prepare, turn, interrupt, check) > 10

    def test_closing_ends_it_whatever_stands_in_the_indices(self, peer):
        peer.poke(HEAD, 99)
        peer.poke(TAIL, 99)
        peer.endpoint.close()
        assert peer.endpoint.closed
        assert peer.endpoint.statistics() == (0,) * 14

    def test_looking_for_the_end_takes_a_whole_flood_of_doorbells_but_not_for_ever(self, peer):
        peer.say(b"\x01\x00" * 5000)
        peer.poke(ENDED, 3)
        with pytest.raises(ReceiverGone):
            peer.endpoint.try_push((1,))


class TestPeersEnd:
    def test_a_refusal_that_comes_late_is_told_after_the_records(self, peer):
        peer.publish(1, 2)
        peer.say(bytes((100, Reason.RECORD)))
        turns(peer.endpoint)
        raises_for_good(RecordRefused, lambda: peer.endpoint.try_push((1,)))
        assert peer.endpoint.try_pop_many(1) == [(1,)]
        assert peer.endpoint.try_pop() == (2,)
        raises_for_good(RecordRefused, peer.endpoint.try_pop, peer.endpoint.try_take_message)

    def test_what_the_peer_calls_corrupt_is_refused(self, peer):
        peer.say(ERR_PROTOCOL)
        turns(peer.endpoint)
        raises_for_good(Refused, peer.endpoint.try_pop, lambda: peer.endpoint.try_push((1,)))

    def test_the_orderly_end_comes_after_all_records(self, two_way):
        first, second = two_way
        for n in range(4):
            first.try_push((n,))
        first.close()
        turns(second)
        raises_for_good(ReceiverGone, lambda: second.try_push((9,)))
        assert second.try_pop() == (0,)
        assert second.try_pop_many(2) == [(1,), (2,)]
        assert second.try_pop_many(2) == [(3,)]
        raises_for_good(EndOfStream, second.try_pop, lambda: second.try_pop_many(2))
        assert second.ended
        assert not second.closed

    def test_a_push_notices_the_orderly_end_by_itself(self, two_way):
        first, second = two_way
        first.close()
        raises_for_good(ReceiverGone, lambda: second.try_push((9,)))

    def test_a_peer_that_hangs_up_without_a_word_has_died(self, peer):
        peer.publish(1, 2)
        peer.sock.close()
        turns(peer.endpoint)
        raises_for_good(PeerDied, lambda: peer.endpoint.try_push((9,)))
        assert peer.endpoint.try_pop() == (1,)
        assert peer.endpoint.try_pop_many(5) == [(2,)]
        raises_for_good(PeerDied, peer.endpoint.try_pop, peer.endpoint.try_take_message)

    def test_a_push_notices_a_death_by_itself(self, peer):
        peer.sock.close()
        raises_for_good(PeerDied, lambda: peer.endpoint.try_push((9,)))

    def test_a_death_with_input_unread_is_the_same(self, peer):
        # The socket then says ECONNRESET, once, instead of its end.
        peer.publish(1)
        peer.say(b"\x80\x05")
        assert peer.endpoint.try_send_message(b"\x80\x00")
        peer.sock.close()
        turns(peer.endpoint)
        assert peer.endpoint.try_take_message() == b"\x80\x05"
        assert peer.endpoint.try_pop() == (1,)
        raises_for_good(PeerDied, peer.endpoint.try_pop, lambda: peer.endpoint.try_push((9,)))

    def test_an_orderly_end_with_input_unread_is_an_orderly_end(self, two_way):
        first, second = two_way
        assert second.try_send_message(b"\x80\x00")
        first.try_push((1,))
        first.close()
        turns(second)
        assert second.try_pop() == (1,)
        raises_for_good(EndOfStream, second.try_pop)
        raises_for_good(ReceiverGone, lambda: second.try_push((1,)), second.has_space)

    @pytest.mark.parametrize("unread", [False, True])
    def test_a_message_to_who_has_gone_raises_how_it_went(self, peer, unread):
        if unread:
            peer.endpoint.try_send_message(b"\x80\x00")
        peer.sock.close()
        raises_for_good(PeerDied, lambda: peer.endpoint.try_send_message(b"\x80\x00"))

    def test_what_it_sent_before_it_left_is_read_before_the_end(self, peer):
        peer.say(b"\x80\x01" * 3000)
        peer.say(bytes((100, Reason.ROLE)))
        peer.sock.close()
        with pytest.raises(Refused, match="do not belong together"):
            peer.endpoint.try_push((1,))

    def test_each_raise_is_a_new_exception(self, peer):
        peer.sock.close()
        turns(peer.endpoint)
        errors = []
        for _ in range(2):
            with pytest.raises(PeerDied) as caught:
                peer.endpoint.try_pop()
            errors.append(caught.value)
        assert errors[0] is not errors[1]
        assert str(errors[0]) == str(errors[1])

    def test_what_is_held_after_an_interrupt_comes_before_the_end(self, two_way):
        first, second = two_way
        first.try_push((1,))
        first.try_push((2,))
        it = second.receiver
        it.pull(1)
        first.close()
        turns(second)
        assert second.try_pop() == (1,)
        assert second.try_pop() == (2,)
        raises_for_good(EndOfStream, second.try_pop)

    @pytest.mark.parametrize("ended", [0, 1, 3])
    @pytest.mark.parametrize("verb", ["try_pop", "try_pop_many"])
    def test_what_is_published_last_is_not_overtaken_by_the_end(self, peer, verb, ended):
        # Both come just after the ring was found empty, and before its emptiness is reported.
        endpoint = peer.endpoint
        arguments = (4,) if verb == "try_pop_many" else ()

        def is_empty():
            nothing = real()
            endpoint.receiver.is_empty = real
            peer.publish(1)
            peer.poke(ENDED, ended)
            peer.sock.close()
            turns(endpoint)
            return nothing

        real = endpoint.receiver.is_empty
        endpoint.receiver.is_empty = is_empty
        first = getattr(endpoint, verb)(*arguments)
        assert endpoint.ended
        if not ended:  # a crash; an end that is said is looked at once more at once
            assert first is None
            first = getattr(endpoint, verb)(*arguments)
        assert first in ((1,), [(1,)])
        raises_for_good(EndOfStream if ended else PeerDied, endpoint.try_pop)

    def test_a_refusal_comes_before_the_end_that_follows_it(self, peer):
        peer.publish(1)
        peer.say(ERR_PROTOCOL)
        peer.poke(ENDED, 3)
        assert peer.endpoint.try_pop() == (1,)
        raises_for_good(Refused, peer.endpoint.try_pop, lambda: peer.endpoint.try_push((1,)))

    @pytest.mark.parametrize("bits", [8, 9, 1 << 31, 0xFFFFFFFF])
    @pytest.mark.parametrize("verb", ["receives", "sends", "reads the socket"])
    def test_bits_that_are_no_end_are_corrupt(self, peer, bits, verb):
        peer.poke(ENDED, bits, "uint32_t *")
        if verb == "reads the socket":
            peer.sock.close()
            turns(peer.endpoint)
        first = {"sends": lambda: peer.endpoint.try_push((1,))}.get(verb, peer.endpoint.try_pop)
        with pytest.raises(CorruptPeer, match=f"{bits:#x}, which is no end"):
            first()
        raises_for_good(CorruptPeer, peer.endpoint.try_pop, lambda: peer.endpoint.try_push((1,)))

    def test_the_end_is_read_only_once(self, two_way):
        first, second = two_way
        first.close()
        turns(second)
        peers_word = second.ending.receiving
        turns(second)
        assert second.ending.receiving is peers_word


class TestStatistics:
    def test_they_count_what_happened(self, two_way):
        first, second = two_way
        assert first.statistics() == (0,) * 14
        assert second.announce(Event.RECORDS)  # to sleep
        assert push_packed(first.sending(), bytes(48), 6) == 4
        assert not first.try_push((1,))
        second.try_pop()
        assert first.statistics()._asdict() == {
            "sent": 4,
            "taken": 1,
            "received": 0,
            "waiting": 0,
            "doorbells": 1,
            "waits": 0,
            "full": 1,
            "dropped": 0,
            "rescues": 0,
            "false_alarms": 0,
            "sent_bytes": 32,
            "taken_bytes": 8,
            "received_bytes": 0,
            "waiting_bytes": 0,
        }
        assert second.statistics()._asdict() == {
            "sent": 0,
            "taken": 0,
            "received": 1,
            "waiting": 3,
            "doorbells": 0,
            "waits": 1,
            "full": 0,
            "dropped": 0,
            "rescues": 0,
            "false_alarms": 0,
            "sent_bytes": 0,
            "taken_bytes": 0,
            "received_bytes": 8,
            "waiting_bytes": 24,
        }

    def test_after_close_they_are_as_they_were(self, two_way):
        first, second = two_way
        first.try_push((1,))
        second.try_push((2,))
        first.try_pop()
        before = first.statistics()
        first.close()
        assert first.statistics() == before

    @pytest.mark.parametrize("how", ["orderly", "death", "refusal"])
    def test_they_survive_the_peers_end(self, peer, how):
        peer.endpoint.try_push((1,))
        peer.endpoint.try_push((2,))
        peer.poke(TAIL, 1)
        peer.publish(1, 2, 3)
        peer.endpoint.try_pop()
        if how == "orderly":
            peer.poke(ENDED, 1)
        elif how == "refusal":
            peer.say(ERR_PROTOCOL)
        peer.sock.close()
        turns(peer.endpoint)
        assert peer.endpoint.ended
        expected = (2, 1, 1, 2)
        assert peer.endpoint.statistics()[:4] == expected
        peer.endpoint.close()
        assert peer.endpoint.statistics()[:4] == expected

    def test_a_sender_still_knows_what_was_taken_when_the_receiver_ends(self, ends):
        sender, receiver = ends
        sender.push_many([(1,), (2,), (3,)])
        receiver.pop()
        receiver.close()
        with pytest.raises(ReceiverGone):
            sender.push((4,))
        assert sender.statistics()[:2] == (3, 1)


class TestArm:
    """For foreign event loops: arm(), then the descriptor becomes readable."""

    def readable(self, end):
        poll = select.poll()
        poll.register(end.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def test_a_doorbell_comes_at_the_next_record_and_only_then(self, ends):
        sender, receiver = ends
        for n in range(5):
            assert receiver.arm()
            assert not self.readable(receiver)
            sender.push((n,))
            assert self.readable(receiver)
            assert receiver.pop(timeout=0) == (n,)
            sender.push((n,))  # nobody waits: no doorbell
            assert receiver.pop(timeout=0) == (n,)
        assert sender.statistics().doorbells == 5

    def test_a_doorbell_comes_when_there_is_space_and_only_then(self, ends):
        sender, receiver = ends
        for n in range(5):
            while sender.indices()[0] != 4 + n:
                sender.push((n,), timeout=0)
            assert sender.arm()
            assert not self.readable(sender)
            receiver.pop()
            assert self.readable(sender)
        assert receiver.statistics().doorbells == 5

    def test_none_comes_without_it(self, ends):
        sender, receiver = ends
        sender.push_many([(n,) for n in range(4)])
        receiver.pop_many()
        assert not self.readable(receiver)
        assert not self.readable(sender)

    def test_it_is_false_while_something_is_there(self, ends):
        sender, receiver = ends
        assert not sender.arm()  # there is space
        sender.push((1,))
        assert not receiver.arm()
        receiver.pop()
        assert receiver.arm()

    def test_it_takes_the_doorbells_before(self, ends):
        sender, receiver = ends
        assert receiver.arm()
        sender.push((1,))
        assert receiver.pop() == (1,)
        assert self.readable(receiver)
        assert receiver.arm()
        assert not self.readable(receiver)

    def test_it_is_false_while_a_message_waits(self, ends):
        sender, receiver = ends
        sender.send_ctrl_msg(b"\x80\x01")
        assert not receiver.arm()
        assert receiver.recv_ctrl_msg() == b"\x80\x01"
        assert receiver.arm()
        sender.send_ctrl_msg(b"\x80\x02")
        assert self.readable(receiver)

    def test_when_it_is_false_no_doorbell_comes(self, two_way):
        first, second = two_way
        assert not first.arm(records=True, space=True)  # there is space, though no record
        second.try_push((1,))
        assert second.statistics().doorbells == 0

    def test_it_is_false_after_the_peers_end_for_ever(self, ends):
        sender, receiver = ends
        assert receiver.arm()
        sender.close()
        assert self.readable(receiver)
        while receiver.arm():  # its last words come first
            assert self.readable(receiver)
        for _ in range(3):
            assert not receiver.arm()
        raises_for_good(EndOfStream, lambda: receiver.pop(timeout=0))

    def test_a_death_makes_the_descriptor_readable(self, peer):
        assert peer.endpoint.arm(records=True, space=False)
        peer.sock.close()
        assert self.readable(peer.endpoint)
        assert not peer.endpoint.arm(records=True, space=False)

    def test_it_is_false_while_something_interrupted_is_held(self, ends):
        sender, receiver = ends
        sender.push((1,))
        it = receiver._endpoint.receiver
        it.pull(1)
        assert not receiver.arm()
        assert receiver.pop(timeout=0) == (1,)
        assert receiver.arm()

    def test_for_both_at_once_the_first_of_them_rings(self, two_way):
        first, second = two_way
        push_encoded(first, bytes(32), 4)
        assert first.arm(records=True, space=True)
        second.try_pop()
        assert self.readable(first)
        turns(first)
        first.try_push((1,))
        assert first.arm(records=True, space=True)
        second.try_push((1,))
        assert self.readable(first)
        assert not first.arm(records=True, space=True)

    def test_after_close_it_raises(self, ends):
        for end in ends:
            end.close()
            with pytest.raises(Closed):
                end.fileno()


class TestFinish:
    def test_what_has_arrived_can_still_be_received(self, two_way):
        first, second = two_way
        second.try_push((1,))
        second.try_push((2,))
        second.try_send_message(b"\x80\x01")
        first.read_if_free()
        first.finish()
        raises_for_good(Closed, lambda: first.try_push((9,)))
        raises_for_good(Closed, lambda: first.try_send_message(b"\x80\x00"))
        assert first.try_pop() == (1,)
        assert first.try_take_message() == b"\x80\x01"
        assert first.try_pop_many(5) == [(2,)]
        raises_for_good(Closed, first.try_pop, first.try_take_message)
        assert not first.closed

    def test_for_the_peer_it_is_the_orderly_end(self, two_way):
        first, second = two_way
        first.try_push((1,))
        first.try_send_message(b"\x80\x01")
        first.finish()
        first.finish()
        turns(second)
        assert second.try_pop() == (1,)
        assert second.try_take_message() == b"\x80\x01"
        raises_for_good(
            ReceiverGone,
            lambda: second.try_push((1,)),
            lambda: second.try_send_message(b"\x80\x00"),
        )
        raises_for_good(EndOfStream, second.try_pop, second.try_take_message)

    def test_after_the_peers_end_it_changes_nothing(self, two_way):
        first, second = two_way
        first.close()
        turns(second)
        second.finish()
        raises_for_good(EndOfStream, second.try_pop)
        raises_for_good(ReceiverGone, lambda: second.try_push((1,)), second.has_space)

    def test_after_close_it_does_nothing(self, two_way):
        two_way[0].close()
        two_way[0].finish()
        raises_for_good(Closed, two_way[0].try_pop)


class Watched:
    """A lock that tells when another thread wants it."""

    def __init__(self, lock):
        self.lock, self.owner, self.wanted = lock, threading.current_thread(), threading.Event()

    def __enter__(self):
        if threading.current_thread() is not self.owner:
            self.wanted.set()
        return self.lock.__enter__()

    def __exit__(self, *error):
        return self.lock.__exit__(*error)


class TestClose:
    def test_the_last_words_are_doorbells_and_closed(self, peer):
        peer.endpoint.close()
        assert peer.theirs.mapping.closed() == 3
        assert peer.heard() == [b"\x01\x00\x02\x00", None]

    def test_everything_is_closed_at_once_and_for_good(self, two_way):
        first = two_way[0]
        first.try_push((1,))
        number = first.fileno()
        before = mapped()
        for _ in range(3):
            first.close()
        assert mapped() == before - 2
        assert not Path(f"/proc/self/fd/{number}").exists()
        raises_for_good(
            Closed,
            first.fileno,
            first.try_pop,
            lambda: first.try_pop_many(1),
            lambda: first.try_push((1,)),
            lambda: push_encoded(first, bytes(8), 1),
            lambda: first.try_send_message(b"\x80\x00"),
            first.try_take_message,
            first.indices,
        )
        first.read_if_free()
        assert first.ended

    def test_four_descriptors_come_and_go(self):
        before, mappings = descriptors(), mapped()
        ends = pair(SPEC)
        assert len(descriptors()) == len(before) + 2 * 4  # memory files, socket, pidfd
        assert mapped() == mappings + 2 * 2
        for end in ends:
            end.close()
        assert descriptors() == before
        assert mapped() == mappings

    def test_a_number_closed_is_never_closed_or_used_again(self, ends):
        sender = ends[0]
        number = sender._endpoint.fileno()
        sender.close()
        another = os.open("/dev/null", os.O_RDONLY)
        if another != number:
            os.dup2(another, number)
            os.close(another)
        sender.close()
        with contextlib.suppress(Closed):
            sender.push((1,))
        os.close(number)  # OSError if somebody else has closed it

    def test_who_has_the_socket_in_hand_keeps_its_number_from_being_reused(self, two_way):
        first = two_way[0]
        number = first.fileno()

        def use(sock):
            first.close()
            assert Path(f"/proc/self/fd/{number}").exists()
            with pytest.raises(Closed):
                first.with_socket(use)
            return sock.fileno()

        assert first.with_socket(use) == number
        assert not Path(f"/proc/self/fd/{number}").exists()

    def test_the_last_who_has_it_in_hand_closes_it(self, two_way):
        first = two_way[0]
        number = first.fileno()

        def use(sock):
            first.with_socket(lambda sock: first.close())
            assert Path(f"/proc/self/fd/{number}").exists()

        first.with_socket(use)
        assert not Path(f"/proc/self/fd/{number}").exists()

    @pytest.mark.parametrize("answer", [None, (b"", [], 0, None), (b"\x80\x01", [], 0, None)])
    def test_closing_while_another_thread_reads_is_closed_for_both(
        self, two_way, monkeypatch, answer
    ):
        # The reader has the socket in hand when close() comes, and reads what that leaves.
        first = two_way[0]
        real = socket.socket.recvmsg

        def recvmsg(sock, *arguments):
            monkeypatch.setattr(socket.socket, "recvmsg", real)  # only this once
            closer = threading.Thread(target=first.close)
            closer.start()
            closer.join()
            return answer or real(sock, *arguments)

        monkeypatch.setattr(_wire, "_direct", InPython)  # which reads with a call of its own
        monkeypatch.setattr(socket.socket, "recvmsg", recvmsg)
        with contextlib.suppress(Closed):
            first.read_if_free()
        monkeypatch.undo()
        assert first.closed
        raises_for_good(Closed, first.try_pop)

    @pytest.mark.deadline(10)
    def test_closing_while_another_thread_finds_the_peer_corrupt_does_not_deadlock(self, peer):
        # That thread has looked at the ring and wants the mutex, which close() has.
        endpoint, outcome = peer.endpoint, []
        peer.poke(HEAD, 99)
        endpoint.waiters.mutex = Watched(endpoint.waiters.mutex)

        def pop():
            try:
                endpoint.try_pop()
            except QueueError as error:
                outcome.append(type(error))

        popper = threading.Thread(target=pop)
        with endpoint.waiters.mutex:
            popper.start()
            endpoint.waiters.mutex.wanted.wait()
            endpoint.close()
        popper.join()
        assert outcome[0] in (CorruptPeer, Closed)

    def test_its_state_can_be_read(self, two_way, peer):
        first, second = two_way
        me = f"pid {os.getpid()}"
        fd, other = first.fileno(), second.fileno()
        assert repr(first) == f"<Endpoint fd {fd} with {me}: open, '<Q', out 0/4, in 0/4>"
        first.close()
        assert repr(first) == f"<Endpoint with {me}: closed, '<Q'>"
        turns(second)
        assert (
            repr(second) == f"<Endpoint fd {other} with {me}: EndOfStream, '<Q', out 0/4, in 0/4>"
        )
        assert f" with 'peer' ({me}): open, " in repr(peer.endpoint)


class TestForgotten:
    """An end that is dropped without close() is freed at once, and with a warning."""

    @pytest.fixture
    def no_collector(self):
        gc.collect()
        gc.disable()
        yield
        gc.enable()

    def test_it_warns_and_frees_without_the_collector(self, no_collector):
        before, mappings = descriptors(), mapped()
        sender, receiver = pair(SPEC)
        sender.push((1,))
        receiver.pop()
        receiver.pop_many(timeout=0)
        with pytest.warns(ResourceWarning, match="unclosed <Sender fd .*: open, "):
            del sender
        with pytest.warns(ResourceWarning, match="unclosed <Receiver fd .*: "):
            del receiver
        assert descriptors() == before
        assert mapped() == mappings

    def test_one_that_is_closed_frees_everything_without_the_collector(self, no_collector):
        before, mappings = descriptors(), mapped()
        for end in pair(SPEC):
            end.close()
        assert descriptors() == before
        assert mapped() == mappings

    def test_one_that_failed_frees_everything_without_the_collector(self, no_collector):
        before, mappings = descriptors(), mapped()
        ours, theirs = socket.socketpair()
        theirs.shutdown(socket.SHUT_WR)
        with theirs, pytest.raises(PeerDied):
            Receiver(ours, SPEC)
        assert descriptors() == before
        assert mapped() == mappings

    def test_its_peer_sees_a_death(self):
        sender, receiver = pair(SPEC)
        sender.push((1,))
        with pytest.warns(ResourceWarning):
            del sender
        assert receiver.pop() == (1,)
        raises_for_good(PeerDied, receiver.pop)
        receiver.close()

    def test_a_ring_that_outlives_it_goes_on_by_itself(self):
        sender, receiver = pair(SPEC)
        ring = sender._endpoint.sender
        receiver.close()
        with pytest.warns(ResourceWarning):
            del sender
        fails_with(GONE, ring.try_push, (1,))

    def test_at_the_end_of_the_program_it_makes_no_noise(self, program):
        source = """
import ipcqueue
class Cycle: pass
cycle = Cycle()
cycle.itself = cycle
cycle.ends = ipcqueue.pair(8)
ends = ipcqueue.pair("<Q")
ends[0].push((1,))
"""
        child = program(source, stderr=subprocess.PIPE)
        assert child.communicate()[1] == ""
        assert child.returncode == 0


def touch_everything(endpoint):
    """Call each verb of an endpoint that sends and receives; return what each raised."""
    calls = [
        endpoint.try_pop,
        lambda: endpoint.try_pop_many(1),
        lambda: endpoint.try_push((9,)),
        lambda: push_encoded(endpoint, bytes(8), 1),
        endpoint.try_take_message,
        lambda: endpoint.try_send_message(b"\x80\x09"),
        lambda: endpoint.arm(records=True, space=True),
        endpoint.indices,
        endpoint.statistics,
        endpoint.finish,
    ]
    for call in calls:
        with pytest.raises(ForkedUse):
            call()


class TestFork:
    def test_a_child_gets_forked_use_and_disturbs_nobody(self, two_way, forked):
        first, second = two_way
        first.try_push((1,))
        second.try_push((2,))
        second.try_send_message(b"\x80\x01")

        def child():
            for endpoint in two_way:
                touch_everything(endpoint)

        assert forked(child) == 0
        self.goes_on(first, second)

    @pytest.mark.parametrize("how", ["close", "drop", "exit", "close after an error"])
    def test_a_child_may_close_which_its_parent_does_not_notice(self, two_way, forked, how):
        first, second = two_way
        first.try_push((1,))
        second.try_push((2,))
        second.try_send_message(b"\x80\x01")

        def child():
            if how == "close after an error":
                with pytest.raises(ForkedUse):
                    first.try_pop()
            for endpoint in two_way if how.startswith("close") else ():
                before = len(descriptors())
                endpoint.close()
                endpoint.close()
                assert len(descriptors()) == before - 4
                assert endpoint.closed
                with pytest.raises(QueueError):
                    endpoint.try_pop()

        assert forked(child) == 0
        self.goes_on(first, second)

    def test_a_child_that_forgets_an_end_neither_warns_nor_speaks(self, forked):
        ends = list(pair(SPEC))
        ends[0].push((1,))

        def child():
            before = len(descriptors())
            ends.clear()  # a ResourceWarning would be an error, and printed
            gc.collect()
            assert len(descriptors()) == before - 8

        assert forked(child) == 0
        sender, receiver = ends
        assert receiver.pop() == (1,)
        sender.push((2,))
        assert receiver.pop() == (2,)
        sender.close()
        raises_for_good(EndOfStream, receiver.pop)
        receiver.close()

    def test_a_grandchild_is_a_child_too(self, two_way, forked):
        def child():
            def grandchild():
                touch_everything(two_way[0])

            assert forked(grandchild) == 0
            touch_everything(two_way[0])

        assert forked(child) == 0

    def test_a_child_makes_connections_of_its_own(self, two_way, forked):
        def child():
            sender, receiver = pair(SPEC)
            sender.push((1,))
            assert receiver.pop() == (1,)
            sender.close()
            raises_for_good(EndOfStream, receiver.pop)
            receiver.close()

        assert forked(child) == 0

    @pytest.mark.parametrize("lock", ["mutex", "wire", "sender", "receiver"])
    def test_a_child_never_waits_for_a_thread_that_it_does_not_have(self, two_way, forked, lock):
        # Forked while another thread of the parent was in the middle of a call.
        endpoint = two_way[0]
        held = endpoint.waiters.mutex if lock == "mutex" else getattr(endpoint, lock)._lock
        locked, done = threading.Event(), threading.Event()

        def hold():
            with held:
                locked.set()
                done.wait()

        thread = threading.Thread(target=hold)
        thread.start()
        locked.wait()

        def child():
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(10)  # for a child that hangs
            touch_everything(endpoint)
            endpoint.close()

        try:
            assert forked(child) == 0
        finally:
            done.set()
            thread.join()

    def goes_on(self, first, second):
        turns(first)
        turns(second)
        assert second.try_pop() == (1,)
        assert first.try_pop() == (2,)
        assert first.try_take_message() == b"\x80\x01"
        assert second.try_take_message() is None
        assert first.try_push((3,))
        assert second.try_pop() == (3,)
        assert not first.ended
        assert not second.ended
        first.close()
        turns(second)
        raises_for_good(EndOfStream, second.try_pop)


@pytest.mark.parametrize(
    ("module", "step"), [(_opening, "check"), (_endpoint, "Endpoint")], ids=["check", "Endpoint"]
)
def test_a_constructor_that_is_interrupted_closes_what_it_took(monkeypatch, module, step):
    before = descriptors()
    ours, theirs = socket.socketpair()
    segment = _segment.create(codec_for(SPEC), 4, "")
    fdpass.send_fds(theirs, [segment.memfd], HELLO)
    monkeypatch.setattr(module, step, interrupt)
    with theirs, pytest.raises(Interrupt):
        Receiver(ours, SPEC)
    segment.close()
    assert descriptors() == before


def test_the_generation_of_forks_counts_only_in_children(forked):
    before = fork_generation()

    def child():
        assert fork_generation() == before + 1

    assert forked(child) == 0
    assert fork_generation() == before


# -- a kernel that is short of something ---------------------------------------------------------


class Short:
    """A socket (or what stands for its recvmsg) whose next call fails, though its peer lives."""

    def __init__(self, sock):
        self.sock, self.left = sock, 1

    def __getattr__(self, name):
        return getattr(self.sock, name)

    def _fail(self):
        if self.left:
            self.left -= 1
            raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))

    def send(self, *arguments):
        self._fail()
        return self.sock.send(*arguments)

    def recvmsg(self, *arguments):
        self._fail()
        return self.sock.recvmsg(*arguments)


def test_a_peer_is_not_dead_because_the_kernel_is_short_of_memory_to_read(monkeypatch):
    one, other = pair(SPEC)
    with one, other:
        monkeypatch.setattr(_wire, "_direct", InPython)
        monkeypatch.setattr(other._endpoint.wire, "sock", Short(other._endpoint.wire.sock))
        one.send_ctrl_msg(b"\x80\x01")
        with pytest.raises(OSError, match=os.strerror(errno.ENOBUFS)):
            other.recv_ctrl_msg()
        assert other.recv_ctrl_msg() == b"\x80\x01"
        one.push((1,))
        assert other.pop(timeout=0) == (1,)


def test_a_peer_is_not_dead_because_the_kernel_is_short_of_memory_to_send(monkeypatch):
    one, other = pair(SPEC)
    with one, other:
        monkeypatch.setattr(one._endpoint.wire, "sock", Short(one._endpoint.wire.sock))
        with pytest.raises(OSError, match=os.strerror(errno.ENOBUFS)):
            one.send_ctrl_msg(b"\x80\x01")
        one.send_ctrl_msg(b"\x80\x02")
        one.push((1,))
        assert other.recv_ctrl_msg() == b"\x80\x02"
        assert other.pop(timeout=0) == (1,)


def test_of_descriptors_that_nobody_asked_for_all_are_closed_though_one_fails(monkeypatch):
    one, other = pair(SPEC)
    with one, other, null() as file:
        before = descriptors()
        fdpass.send_fds(one._endpoint.wire.sock, [file] * 3, b"\x80\x01")
        really = os.close

        def close(number):
            really(number)
            raise OSError(errno.EIO, "a stranger's file")

        monkeypatch.setattr(os, "close", close)
        with pytest.raises(CorruptPeer):
            other.pop(timeout=0)
        settle()
        monkeypatch.undo()
        assert descriptors() == before


@pytest.mark.parametrize("nth", range(6))
def test_a_pair_that_cannot_be_opened_leaves_nothing(monkeypatch, nth):
    really, left = _segment.map_segment, [nth]

    def failing(*arguments, **named):
        left[0] -= 1
        if left[0] == -1:
            raise OSError(errno.ENOMEM, "no memory")
        return really(*arguments, **named)

    monkeypatch.setattr(_segment, "map_segment", failing)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(OSError, match="no memory"):
            pair(SPEC)
        gc.collect()
