"""Waiting: what a timeout means, who wakes whom, and what an exception in between may not break.

Nothing here spins before it sleeps, unless it says so, and the clock wakes nobody for an hour:
what sleeps must be woken.
"""

import contextlib
import gc
import itertools
import math
import os
import random
import signal
import socket
import sys
import threading
from types import SimpleNamespace
from typing import ClassVar

import pytest

import fdpass
from ipcqueue import (
    BadRecord,
    Closed,
    ConcurrentUse,
    CorruptPeer,
    EndOfStream,
    Full,
    PeerDied,
    QueueError,
    Receiver,
    ReceiverGone,
    Sender,
    _threads,
)
from ipcqueue import _direct as direct
from ipcqueue._link import alarms
from ipcqueue._link import options as _options
from ipcqueue._link import wire as _wire
from ipcqueue._link.control import HELLO
from ipcqueue._link.plans import Rounds
from ipcqueue._records.spec import codec_for
from ipcqueue._ring import patience as _patience
from ipcqueue._ring import segment as _segment
from ipcqueue._threads import Threads
from ipcqueue.lowlevel import Event, Opening, Role, Terms, open_pair
from tests.ipcqueue.test_endpoint import Peer, descriptors, turns
from tests.ipcqueue.test_ring import push_packed
from tests.kit.places import at_every_place, interrupt

SPEC = "<Q"
BOTH = Role(sends=True, receives=True)
HEAD, TAIL, ENDED = 1024, 1152, 1288


@pytest.fixture(autouse=True)
def _wake_ups_only(monkeypatch):
    monkeypatch.setitem(_options._STRATEGIES, "spin", _patience.Patience(0, adaptive=False))
    monkeypatch.setattr(_threads, "SLICE", 3600.0)


class Side:
    """A two-way endpoint with its waiting verbs."""

    def __init__(self, endpoint):
        self.endpoint, self.threads = endpoint, Threads(endpoint)
        for verb in ("pop", "pop_many", "push", "push_many", "take_message", "send_message"):
            setattr(self, verb, getattr(self.threads, verb))
        self.close = endpoint.close

    def waiting(self, *counts):
        """Wait until so many threads wait for records, space, and messages."""
        until(lambda: tuple(self.endpoint.waiters.counts) == counts)

    def fill(self):
        while self.endpoint.try_push((0,)):
            pass

    def fill_socket(self):
        sent = 0
        while self.endpoint.try_send_message(message(sent)):
            sent += 1
        return sent


def message(n):
    return bytes((128 + n % 128, n // 128 % 256))


def until(condition):
    """Wait for what another thread does; the deadline of the test bounds it."""
    while not condition():
        os.sched_yield()


class Running(threading.Thread):
    """A call in a thread, and what became of it."""

    def __init__(self, call, *arguments):
        super().__init__(daemon=True)
        self.call, self.arguments, self.error, self.value = call, arguments, None, None
        self.start()

    def run(self):
        try:
            self.value = self.call(*self.arguments)
        except BaseException as error:  # noqa: BLE001 (raised by result)
            self.error = error

    def result(self):
        self.join()
        if self.error is not None:
            raise self.error
        return self.value


@pytest.fixture
def in_thread():
    """Run something in a thread, which is joined at the end, when all else is closed."""
    running = []

    def start(call, *arguments):
        running.append(Running(call, *arguments))
        return running[-1]

    yield start
    for thread in running:
        thread.join(10)
    running.clear()  # the errors, with what their frames hold


@pytest.fixture
def make_sides(in_thread):
    with contextlib.ExitStack() as stack:

        def make(capacity=4, spec=SPEC):
            both = open_pair(*[Terms(spec, BOTH, capacity=capacity)] * 2)
            for endpoint in both:
                stack.callback(endpoint.close)
            return [Side(endpoint) for endpoint in both]

        yield make


@pytest.fixture
def sides(make_sides):
    return make_sides()


@pytest.fixture
def peer(in_thread):
    peer = Peer()
    yield peer
    peer.close()


def settled(before):
    """Whether the descriptors are those of before, once the errors that held some are gone."""
    if descriptors() != before:
        gc.collect()
    return descriptors() == before


def fails(kind, running):
    with pytest.raises(QueueError) as caught:
        running.result()
    assert type(caught.value) is kind


class TestTimeouts:
    @pytest.mark.parametrize("timeout", [0, 0.0, 0.001])
    def test_what_does_not_come_in_time_is_none(self, sides, timeout):
        first = sides[0]
        assert first.pop(timeout) is None
        assert first.pop_many(None, timeout) == []
        assert first.take_message(timeout) is None

    @pytest.mark.parametrize("timeout", [0, 0.0, 0.001])
    def test_what_cannot_be_sent_in_time_is_full(self, sides, timeout):
        first, second = sides
        first.fill()
        first.fill_socket()
        with pytest.raises(Full, match=f"within {timeout:g} s"):
            first.push((9,), timeout)
        with pytest.raises(Full, match=f"within {timeout:g} s"):
            first.send_message(b"\xff\xff", timeout)
        assert first.push_many([(9,), (9,)], timeout) == 0
        assert second.pop_many(None, 0) == [(0,)] * 4

    @pytest.mark.parametrize("timeout", [0, 1e-9])
    def test_no_time_is_enough_for_what_is_there(self, sides, timeout):
        first, second = sides
        first.push((1,), timeout)
        first.push_many([(2,)], timeout)
        first.send_message(b"\x80\x01", timeout)
        assert second.pop(timeout) == (1,)
        assert second.pop_many(None, timeout) == [(2,)]
        assert second.take_message(timeout) == b"\x80\x01"

    @pytest.mark.parametrize("timeout", [0, 1e-9])
    def test_no_time_is_enough_to_see_the_end(self, sides, timeout):
        first, second = sides
        first.close()
        for _ in range(2):
            with contextlib.suppress(EndOfStream):
                assert second.pop(timeout) is None  # its last words come first
        with pytest.raises(EndOfStream):
            second.pop(timeout)
        with pytest.raises(EndOfStream):
            second.take_message(timeout)

    @pytest.mark.parametrize("timeout", [-1, -0.001, float("nan")])
    def test_less_than_no_time_is_a_value_error(self, sides, timeout):
        first = sides[0]
        first.fill()
        for call in (
            lambda: first.pop(timeout),
            lambda: first.pop_many(None, timeout),
            lambda: first.take_message(timeout),
            lambda: first.push((1,), timeout),
            lambda: first.push_many([(1,)], timeout),
            lambda: first.send_message(b"\x80\x00", timeout),
        ):
            with pytest.raises(ValueError, match="timeout is None or at least 0"):
                call()

    @pytest.mark.parametrize("timeout", [None, 50, float("inf")])
    def test_enough_time_is_waited_until_it_comes(self, sides, in_thread, timeout):
        first, second = sides
        popper = in_thread(first.pop, timeout)
        first.waiting(1, 0, 0)
        second.push((5,), None)
        assert popper.result() == (5,)

        popper = in_thread(first.pop_many, None, timeout)
        first.waiting(1, 0, 0)
        second.push((6,), None)
        assert popper.result() == [(6,)]

        taker = in_thread(first.take_message, timeout)
        first.waiting(0, 0, 1)
        second.send_message(b"\x80\x07", None)
        assert taker.result() == b"\x80\x07"

        first.fill()
        pusher = in_thread(first.push, (9,), timeout)
        first.waiting(0, 1, 0)
        assert second.pop(None) == (0,)
        assert pusher.result() is None

        pusher = in_thread(first.push_many, [(10,), (11,)], timeout)
        first.waiting(0, 1, 0)
        assert [second.pop(None) for _ in range(6)] == [(0,)] * 3 + [(9,), (10,), (11,)]
        assert pusher.result() == 2

    def test_sleeping_is_announced_only_as_long_as_it_lasts(self, sides):
        first, second = sides
        assert first.pop(0.001) is None
        second.push((1,), None)
        assert second.endpoint.statistics().doorbells == 0
        first.fill()
        with pytest.raises(Full):
            first.push((9,), 0.001)
        second.pop(None)
        assert second.endpoint.statistics().doorbells == 0
        assert first.endpoint.statistics().waits > 0

    def test_what_comes_while_looking_is_not_slept_for(self, make_sides, monkeypatch):
        monkeypatch.setitem(_options._STRATEGIES, "spin", _patience.BUSY)
        first, second = make_sides(4)
        first.push((1,), None)
        assert second.pop(None) == (1,)
        assert second.endpoint.statistics().waits == 0


class TestBatches:
    def test_push_many_tells_how_many_there_was_time_for(self, sides):
        first, second = sides
        first.push((0,), None)
        assert first.push_many([(n,) for n in range(1, 10)], 0) == 3
        assert first.push_many([(n,) for n in range(4, 10)], 0.001) == 0
        assert second.pop_many(3, 0) == [(0,), (1,), (2,)]
        assert first.push_many([(n,) for n in range(4, 10)], 0) == 3
        assert second.pop_many(None, 0) == [(3,), (4,), (5,), (6,)]

    @pytest.mark.parametrize("capacity", [1, 2, 4])
    def test_a_batch_larger_than_the_ring_goes_through_it(self, make_sides, in_thread, capacity):
        first, second = make_sides(capacity)
        pusher = in_thread(first.push_many, ((n,) for n in range(500)), None)
        got = []
        while len(got) < 500:
            batch = second.pop_many(None, None)
            assert 1 <= len(batch) <= capacity
            got += batch
        assert got == [(n,) for n in range(500)]
        assert pusher.result() == 500

    def test_a_batch_that_was_cut_goes_on_where_it_stopped(self, sides, in_thread):
        first, second = sides
        pusher = in_thread(first.push_many, [(n,) for n in range(6)], None)
        first.waiting(0, 1, 0)
        assert second.pop(0) == (0,)
        assert second.pop(0) == (1,)
        assert pusher.result() == 6
        assert second.pop_many(None, 0) == [(2,), (3,), (4,), (5,)]

    def test_one_bad_record_and_nothing_is_sent(self, sides):
        first, second = sides
        with pytest.raises(BadRecord, match="record 2"):
            first.push_many([(1,), (2,), ("three",), (4,)], None)
        with pytest.raises(BadRecord):
            first.push((-1,), None)
        assert first.endpoint.indices() == (0, 0)
        assert second.pop(0) is None

    def test_nothing_is_sent_at_once_even_if_it_is_full(self, sides):
        sides[0].fill()
        assert sides[0].push_many([], None) == 0
        assert sides[0].push_many(iter(()), 0) == 0

    def test_an_end_in_the_middle_of_a_batch_is_raised(self, sides, in_thread):
        first, second = sides
        pusher = in_thread(first.push_many, [(n,) for n in range(100)], None)
        first.waiting(0, 1, 0)
        second.close()
        fails(ReceiverGone, pusher)

    @pytest.mark.parametrize(("limit", "expected"), [(1, 1), (3, 3), (4, 4), (5, 4), (None, 4)])
    def test_a_batch_has_as_many_as_there_are_and_as_are_wanted(self, sides, limit, expected):
        sides[0].fill()
        assert len(sides[1].pop_many(limit, None)) == expected

    def test_none_wanted_is_none_given_without_waiting(self, sides):
        assert sides[0].pop_many(0, None) == []
        sides[1].fill()
        assert sides[0].pop_many(0, None) == []
        assert len(sides[0].pop_many(None, 0)) == 4

    @pytest.mark.parametrize(
        ("limit", "error"),
        [(-1, ValueError), (1.0, TypeError), ("1", TypeError), (True, TypeError)],
    )
    def test_a_limit_is_a_number(self, sides, limit, error):
        with pytest.raises(error, match="limit"):
            sides[0].pop_many(limit, 0)

    def test_the_ring_of_the_peer_bounds_what_is_taken(self, in_thread):
        small, large = open_pair(Terms(SPEC, BOTH, capacity=1), Terms(SPEC, BOTH, capacity=64))
        assert push_packed(large.sending(), bytes(400), 50) == 50
        assert len(Threads(small).pop_many(None, 0)) == 50
        small.close()
        large.close()

    def test_batches_of_a_numpy_spec_are_arrays(self, make_sides):
        np = pytest.importorskip("numpy")
        first, second = make_sides(spec=np.dtype("<i4"))
        for empty in (second.pop_many(None, 0), second.pop_many(0, None)):
            assert (empty.shape, empty.dtype) == ((0,), np.dtype("<i4"))
        assert first.push_many(np.arange(9, dtype="<i4"), 0) == 4
        batch = second.pop_many(3, 0)
        assert (batch.shape, batch.tolist()) == ((3,), [0, 1, 2])
        assert second.pop(0) == 3


class TestMessages:
    def test_both_sides_may_send_more_than_fits_before_either_reads(self, sides, in_thread):
        total = 4 * max(side.fill_socket() for side in sides)  # both are full already
        for side in sides:
            turns(side.endpoint)
            while side.endpoint.try_take_message():
                pass

        def talk_then_listen(side):
            for n in range(total):
                side.send_message(message(n), None)
            return [side.take_message(None) for _ in range(total)]

        for both in [in_thread(talk_then_listen, side) for side in sides]:
            assert both.result() == [message(n) for n in range(total)]

    def test_a_sender_that_waits_for_room_is_woken_by_the_reader(self, sides, in_thread):
        first, second = sides
        sent = first.fill_socket()
        talker = in_thread(first.send_message, b"\xff\xff", None)
        for n in range(sent):
            assert second.take_message(None) == message(n)
        talker.result()
        assert second.take_message(None) == b"\xff\xff"

    def test_a_message_meant_for_one_thread_is_not_swallowed_by_another(self, sides, in_thread):
        first, second = sides
        popper = in_thread(first.pop, None)
        first.waiting(1, 0, 0)
        taker = in_thread(first.take_message, None)
        first.waiting(1, 0, 1)
        second.send_message(b"\x80\x01", None)
        assert taker.result() == b"\x80\x01"
        first.waiting(1, 0, 0)
        second.push((7,), None)
        assert popper.result() == (7,)

    def test_a_sender_of_messages_sees_the_end(self, sides, in_thread):
        first, second = sides
        first.fill_socket()
        talker = in_thread(first.send_message, b"\xff\xff", None)
        second.close()
        fails(ReceiverGone, talker)


class TestOneSocketForAll:
    """Any number of threads wait on one connection; one of them reads the socket for all."""

    @pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
    def test_each_kind_of_waiter_gets_what_it_waits_for(self, sides, in_thread, order):
        first, second = sides
        first.fill()
        waits = [
            lambda: in_thread(first.pop, None),
            lambda: in_thread(first.push, (9,), None),
            lambda: in_thread(first.take_message, None),
        ]
        gives = [
            lambda: second.push((5,), None),
            lambda: second.pop(None),
            lambda: second.send_message(b"\x80\x05", None),
        ]
        results = [(5,), None, b"\x80\x05"]
        for given in itertools.permutations(range(3)):
            running, expected = {}, [0, 0, 0]
            for kind in order:
                running[kind] = waits[kind]()
                expected[kind] = 1
                first.waiting(*expected)
            for kind in given:
                gives[kind]()
                assert running[kind].result() == results[kind]
                expected[kind] = 0
                first.waiting(*expected)
        assert first.endpoint.statistics().rescues == 0

    def test_many_of_one_kind_get_one_record_each(self, sides, in_thread):
        first, second = sides
        poppers = [in_thread(first.pop, None) for _ in range(5)]
        first.waiting(5, 0, 0)
        for n in range(5):
            second.push((n,), None)
        assert sorted(popper.result() for popper in poppers) == [(n,) for n in range(5)]

    def test_a_reader_that_leaves_hands_over(self, sides, in_thread):
        first, second = sides
        leaves = in_thread(first.pop, 1.0)  # long enough to be seen waiting
        until(lambda: first.endpoint.waiters.reading)
        stays = in_thread(first.take_message, None)
        first.waiting(1, 0, 1)
        assert leaves.result() is None
        second.send_message(b"\x80\x01", None)
        assert stays.result() == b"\x80\x01"

    def test_a_call_that_does_not_wait_leaves_the_reading_to_who_waits(self, sides, in_thread):
        first, second = sides
        popper = in_thread(first.pop, None)
        first.waiting(1, 0, 0)
        for _ in range(100):
            assert first.take_message(0) is None
            first.push((1,), 0)
            second.pop(None)
        second.push((5,), None)
        assert popper.result() == (5,)

    def test_arming_while_a_thread_waits_is_concurrent_use(self, sides, in_thread):
        first, second = sides
        popper = in_thread(first.pop, None)
        first.waiting(1, 0, 0)
        for records, space in itertools.product((True, False), repeat=2):
            with pytest.raises(ConcurrentUse):
                first.endpoint.arm(records=records, space=space)
        second.push((5,), None)
        assert popper.result() == (5,)
        assert first.endpoint.arm(records=True, space=False)

    @pytest.mark.parametrize("capacity", [1, 2, 16])
    @pytest.mark.parametrize("spin", [0, 20_000])
    def test_several_threads_push_and_pop_and_nothing_is_lost(
        self, make_sides, in_thread, monkeypatch, capacity, spin
    ):
        monkeypatch.setitem(_options._STRATEGIES, "spin", _patience.Patience(spin, adaptive=False))
        first, second = make_sides(capacity, "<HI")
        threads, each = 3, 300

        def push(who):
            chance = random.Random(who)
            n = 0
            while n < each:
                batch = [(who, k) for k in range(n, min(each, n + chance.randint(1, 5)))]
                if len(batch) == 1:
                    first.push(batch[0], None)
                else:
                    assert first.push_many(batch, None) == len(batch)
                n += len(batch)

        def pop(who):
            chance = random.Random(-who)
            got = []
            with contextlib.suppress(EndOfStream):
                while True:
                    if chance.random() < 0.5:
                        got.append(second.pop(None))
                    else:
                        got += second.pop_many(chance.randint(1, 5), None)
            return got

        poppers = [in_thread(pop, who) for who in range(threads)]
        for pusher in [in_thread(push, who) for who in range(threads)]:
            pusher.result()
        first.close()
        per_thread = [popper.result() for popper in poppers]
        assert sorted(itertools.chain(*per_thread)) == [
            (who, n) for who in range(threads) for n in range(each)
        ]
        for got in per_thread:
            for who in range(threads):
                numbers = [n for pusher, n in got if pusher == who]
                assert numbers == sorted(numbers)
        assert second.endpoint.statistics().rescues == 0

    @pytest.mark.parametrize("capacity", [1, 2])
    def test_records_go_round_with_every_thread_asleep_now_and_then(
        self, make_sides, in_thread, capacity
    ):
        first, second = make_sides(capacity)
        total = 1500

        def echo():
            for _ in range(total):
                second.push(second.pop(None), None)

        echoing = in_thread(echo)
        pushing = in_thread(lambda: [first.push((n,), None) for n in range(total)])
        assert [first.pop(None) for _ in range(total)] == [(n,) for n in range(total)]
        echoing.result()
        pushing.result()
        assert first.endpoint.statistics().rescues == second.endpoint.statistics().rescues == 0

    @pytest.mark.deadline(20)
    def test_who_falls_asleep_while_another_reads_his_doorbell_is_woken(self, sides, in_thread):
        """Between his announcement and his decision to read, the doorbell for it is read."""
        peer, side = sides
        both = [in_thread(side.pop, None)]
        until(lambda: side.endpoint.wire._users)
        announce = side.endpoint.announce

        def announce_and_tarry(event, units=1):
            announced = announce(event, units)
            side.endpoint.announce = announce
            peer.push((1,), None)
            until(lambda: not side.endpoint.waiters.reading)
            return announced

        side.endpoint.announce = announce_and_tarry
        both.append(in_thread(side.pop, None))
        until(lambda: not all(thread.is_alive() for thread in both))
        peer.push((2,), None)
        assert sorted(thread.result() for thread in both) == [(1,), (2,)]


class TestEnds:
    def waiters(self, side, in_thread):
        """A thread in each waiting verb, all asleep."""
        side.fill()
        running = [
            in_thread(side.pop, None),
            in_thread(side.pop_many, None, None),
            in_thread(side.push, (9,), None),
            in_thread(side.push_many, [(9,), (9,)], None),
            in_thread(side.take_message, None),
        ]
        side.waiting(2, 2, 1)
        return running

    def test_close_wakes_all_who_wait_here(self, sides, in_thread):
        running = self.waiters(sides[0], in_thread)
        before = len(descriptors())
        sides[0].close()
        for waiter in running:
            fails(Closed, waiter)
        assert len(descriptors()) == before - 4

    @pytest.mark.parametrize("verb", ["pop", "pop_many", "push", "push_many", "take_message"])
    def test_close_wakes_one_who_waits_alone(self, sides, in_thread, verb):
        side = sides[0]
        side.fill()
        arguments = {"push": [(9,)], "push_many": [[(9,)]], "pop_many": [None]}.get(verb, [])
        waiter = in_thread(getattr(side, verb), *arguments, None)
        until(lambda: any(side.endpoint.waiters.counts))
        side.close()
        fails(Closed, waiter)

    def test_close_wakes_who_waits_for_room_for_a_message(self, sides, in_thread):
        side = sides[0]
        side.fill_socket()
        talker = in_thread(side.send_message, b"\xff\xff", None)
        until(lambda: side.endpoint.wire._users)
        side.close()
        fails(Closed, talker)

    @pytest.mark.parametrize("verb", ["pop", "pop_many", "push", "push_many", "take_message"])
    def test_after_close_nobody_waits(self, sides, verb):
        side = sides[0]
        arguments = {"push": [(9,)], "push_many": [[(9,)]], "pop_many": [None]}.get(verb, [])
        side.close()
        with pytest.raises(Closed):
            getattr(side, verb)(*arguments, 0.001)

    def test_the_peers_close_wakes_all_after_what_it_published(self, sides, in_thread):
        first, second = sides
        running = self.waiters(first, in_thread)
        second.close()
        pop, pop_many, push, push_many, message = running
        for waiter in (pop, pop_many, message):
            fails(EndOfStream, waiter)
        for waiter in (push, push_many):
            fails(ReceiverGone, waiter)

    def test_a_death_wakes_all(self, peer, in_thread):
        running = self.waiters(Side(peer.endpoint), in_thread)
        peer.sock.close()
        for waiter in running:
            fails(PeerDied, waiter)

    def test_a_corrupt_peer_wakes_all(self, peer, in_thread):
        running = self.waiters(Side(peer.endpoint), in_thread)
        peer.say(b"\x00\x00")
        for waiter in running:
            fails(CorruptPeer, waiter)

    def test_a_corrupt_index_found_by_one_wakes_all(self, peer, in_thread):
        running = self.waiters(Side(peer.endpoint), in_thread)
        peer.poke(HEAD, 99)
        peer.say(b"\x01\x00")
        for waiter in running:
            fails(CorruptPeer, waiter)

    def test_finish_wakes_who_waits(self, sides, in_thread):
        running = self.waiters(sides[0], in_thread)
        sides[0].endpoint.finish()
        for waiter in running:
            fails(Closed, waiter)

    def test_what_was_published_before_the_end_is_received_before_it(self, sides, in_thread):
        first, second = sides
        popper = in_thread(lambda: [second.pop(None) for _ in range(4)])
        second.waiting(1, 0, 0)
        assert first.push_many([(n,) for n in range(4)], None) == 4
        first.send_message(b"\x80\x01", None)
        first.close()
        assert popper.result() == [(n,) for n in range(4)]
        assert second.take_message(None) == b"\x80\x01"
        for wait in (second.pop, second.take_message):
            with pytest.raises(EndOfStream):
                wait(None)


class TestFalseAlarms:
    """Who rings and rings with nothing new is left waiting; who brings something is not."""

    MOST = alarms.MAX_FALSE_ALARMS

    @pytest.fixture
    def naps(self):
        return []

    def doze(self, endpoint, seconds, naps, event=Event.RECORDS):
        """Go through one round of sleep; note naps instead of taking them."""
        woken = []

        def wait(awaited):
            if not awaited.events:
                naps.append(awaited.seconds)
                return False
            woken.append(_threads.wait_for(awaited._replace(seconds=seconds)))
            return woken[-1]

        assert _threads.drive(Rounds(endpoint, event, math.inf, spun=True).next(), wait)
        return woken == [True]

    def ring(self, peer, times, naps, message=b"\x01\x00"):
        for _ in range(times):
            peer.say(message)
            assert self.doze(peer.endpoint, 1, naps)

    def test_so_many_in_a_row_are_answered_at_once_and_each_further_one_after_a_nap(
        self, peer, naps
    ):
        self.ring(peer, self.MOST, naps)
        assert not naps
        self.ring(peer, 10, naps)
        assert len(naps) == peer.endpoint.statistics().false_alarms == 10

    def test_a_wait_that_nothing_ended_is_no_alarm(self, peer, naps):
        for _ in range(2 * self.MOST):
            assert not self.doze(peer.endpoint, 0, naps)
        assert not naps

    @pytest.mark.parametrize("news", ["a record", "space", "a message"])
    def test_anything_new_makes_up_for_it(self, peer, naps, news):
        assert peer.endpoint.try_push((1,))
        self.ring(peer, self.MOST + 1, naps)
        assert len(naps) == 1
        if news == "a record":
            peer.publish(7)
            assert peer.endpoint.try_pop() == (7,)
        elif news == "space":
            peer.poke(TAIL, 1)
        else:
            peer.say(b"\x80\x01")
            peer.endpoint.turn()
        self.ring(peer, self.MOST, naps)
        assert len(naps) == 1
        self.ring(peer, 1, naps)
        assert len(naps) == 2

    def test_space_that_was_there_before_is_nothing_new(self, peer, naps):
        for number in range(4):
            assert peer.endpoint.try_push((number,))
        peer.poke(TAIL, 4)
        self.ring(peer, 2 * self.MOST, naps)
        assert not naps
        for tail in (1, 4, 0, 3, 4):
            peer.poke(TAIL, tail)
            self.ring(peer, self.MOST, naps)
        assert len(naps) == 5 * self.MOST

    def test_messages_that_nobody_takes_are_nothing_new_in_the_end(self, peer, naps):
        peer.say(b"\x80\x01" * _wire.MAX_UNTAKEN)
        peer.endpoint.turn()
        self.ring(peer, 3 * self.MOST, naps, b"\x80\x01")
        assert len(naps) >= self.MOST

    def test_a_record_a_time_is_never_kept_waiting(self, naps):
        terms = Terms(SPEC, BOTH, capacity=1)
        here, there = open_pair(terms, terms)
        with contextlib.closing(here), contextlib.closing(there):
            for number in range(10 * self.MOST):
                assert there.announce(Event.RECORDS)
                assert here.try_push((number,))
                assert self.doze(there, 1, naps, Event.MESSAGE)
                assert there.try_pop() == (number,)
        assert not naps

    @pytest.mark.parametrize("end", ["closes", "is closed"])
    def test_the_end_ends_a_nap(self, peer, in_thread, monkeypatch, end):
        monkeypatch.setattr(_threads, "SLICE", 3000.0)
        monkeypatch.setattr(alarms.FalseAlarms, "BACK_OFF", 3000.0)
        self.ring(peer, self.MOST, [])
        popper = in_thread(Side(peer.endpoint).pop, None)
        until(lambda: peer.endpoint.statistics().false_alarms == 1)
        if end == "closes":
            peer.sock.close()
        else:
            peer.endpoint.close()
        fails(PeerDied if end == "closes" else Closed, popper)

    def test_a_nap_does_not_outlast_the_timeout(self, peer, monkeypatch):
        monkeypatch.setattr(alarms.FalseAlarms, "BACK_OFF", 3000.0)
        self.ring(peer, self.MOST, [])
        assert Side(peer.endpoint).pop(0.001) is None


class TestRescues:
    """A sleeper looks by the clock, too; that this finds something would be a lost wake-up."""

    @pytest.fixture
    def _short_slices(self, monkeypatch):
        monkeypatch.setattr(_threads, "SLICE", 0.005)

    @pytest.mark.usefixtures("_short_slices")
    def test_a_lost_wake_up_is_survived_and_counted(self, peer, in_thread):
        popper = in_thread(Side(peer.endpoint).pop, None)
        until(lambda: peer.endpoint.waiters.reading)
        peer.publish(7)  # and rings no bell
        assert popper.result() == (7,)
        assert peer.endpoint.rescues == peer.endpoint.statistics().rescues == 1

    @pytest.mark.usefixtures("_short_slices")
    def test_who_is_woken_by_a_doorbell_was_not_rescued(self, peer, in_thread):
        popper = in_thread(Side(peer.endpoint).pop, None)
        until(lambda: peer.endpoint.waiters.reading)
        peer.say(b"\x01\x00" * 3)
        peer.say(b"\x80\x01")
        until(lambda: peer.endpoint.statistics().waits > 1)
        assert peer.endpoint.rescues == 0
        peer.sock.close()
        fails(PeerDied, popper)

    @pytest.mark.parametrize("where", ["threads", "processes"])
    def test_twenty_thousand_sleeps_need_no_rescue(self, in_thread, make_sides, program, where):
        total = 20_000
        if where == "threads":
            first, second = make_sides(1)
            echoing = in_thread(echo, second, total)
        else:
            ours, theirs = socket.socketpair()
            with theirs:
                child = program(ECHO, theirs.fileno(), total, pass_fds=[theirs.fileno()])
            opening = Opening(ours, Terms(SPEC, BOTH, capacity=1))
            first = Side(_threads.open_endpoint(opening))
        for n in range(total):
            first.push((n,), None)
            assert first.pop(None) == (n,)
        mine = first.endpoint.statistics()
        if where == "threads":
            echoing.result()
            theirs_rescues = second.endpoint.statistics().rescues
        else:
            theirs_rescues = int(child.stdout.readline())
            first.close()
        assert (mine.sent, mine.received, mine.rescues, theirs_rescues) == (total, total, 0, 0)
        assert mine.waits > 0


def echo(side, total):
    for _ in range(total):
        side.push(side.pop(None), None)


ECHO = """
import socket, sys
from ipcqueue.lowlevel import Opening, Role, Terms
from ipcqueue._link import options as _options
from ipcqueue._ring import patience as _patience
from ipcqueue import _threads
_options._STRATEGIES["spin"] = _patience.Patience(0, False)
terms = Terms("<Q", Role(sends=True, receives=True), capacity=1)
endpoint = _threads.open_endpoint(Opening(socket.socket(fileno=int(sys.argv[1])), terms))
side = _threads.Threads(endpoint)
for _ in range(int(sys.argv[2])):
    side.push(side.pop(None), None)
print(endpoint.statistics().rescues, flush=True)
try:
    side.pop(None)
finally:
    endpoint.close()
"""


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
    return any(lock._is_owned() for lock in locks)


class TestHandOverAnywhere:
    """Who reads the socket for two more threads leaves; they need no clock to go on."""

    CALLS: ClassVar = {
        "after a sleep": lambda side: side.pop(0.001),
        "without a sleep": lambda side: side.endpoint.turn(),
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
        "turn": lambda side: side.endpoint.turn(),
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
                peer.poke(ENDED, 1)
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
            assert len(peer.endpoint.statistics()) == 10
            with pytest.raises(Closed):
                side.pop(0)
            at_hand.clear()
            assert settled(before)

        assert at_every_place(prepare, call, close, check) >= 1


STORM = """
import os, signal, socket, sys, threading
import ipcqueue
from ipcqueue import EndOfStream
from ipcqueue.lowlevel import Opening, Role, Terms
from ipcqueue._link import options as _options
from ipcqueue._ring import patience as _patience
from ipcqueue import _threads

descriptor, how, storms, spin = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
_options._STRATEGIES["spin"] = _patience.Patience(spin, False)
sock = socket.socket(fileno=descriptor)
signal.signal(signal.SIGINT, signal.default_int_handler)
over, interrupts, acknowledge = False, 0, True
if how.startswith("push"):
    end = ipcqueue.Sender(sock, "<Q", capacity=4)
elif how.startswith("pop"):
    end = ipcqueue.Receiver(sock, "<Q")
else:
    terms = Terms("<Q", Role(sends=True, receives=True), capacity=4)
    endpoint = _threads.open_endpoint(Opening(sock, terms))
    end = _threads.Threads(endpoint)

def push_in_thread():
    for n in range(1 << 60):
        try:
            end.push((n,), None)
        except ipcqueue.QueueError:
            return

if how == "both":
    thread = threading.Thread(target=push_in_thread)
    thread.start()

got, n = [], 0
# An interrupt comes only after the one before was acknowledged, and what must not be interrupted
# between two statements has no call and no jump backwards in it.
while not over:
    try:
        if acknowledge:
            acknowledge = False
            os.write(1, b"!")
        if how.startswith("push"):
            n = end.indices()[0]
        while interrupts < storms or not how.startswith("push"):
            if how == "pop":
                record = end.pop()
                got += [record]
            elif how == "pop_many":
                records = end.pop_many()
                got += records
            elif how == "pop_messages":
                message = end.recv_ctrl_msg(timeout=None)
                got += [message]
            elif how == "both":
                record = end.pop(None)
                got += [record]
            elif how == "push":
                end.push((n,))
                n += 1
            else:
                end.push_many([(k,) for k in range(n, n + 7)])
                n += 7
        over = True
    except KeyboardInterrupt:
        interrupts += 1
        acknowledge = True
    except EndOfStream:
        over = True

signal.signal(signal.SIGINT, signal.SIG_IGN)
if how == "both":
    endpoint.close()
    thread.join()
elif how == "pop_messages":
    end.close()
    assert got == [bytes((128 + n % 128, n // 128 % 256)) for n in range(len(got))]
else:
    n = end.indices()[0]
    end.close()
if how in ("pop", "pop_many", "both"):
    assert got == [(k,) for k in range(len(got))], "lost, doubled or out of order"
    n = len(got)
elif how == "pop_messages":
    n = len(got)
print(interrupts, n, flush=True)
"""


class TestStorms:
    """SIGINT, many times, at any moment of a stream between two processes; and all arrives."""

    STORMS = 200

    def storm(self, child):
        """Interrupt the child again whenever it has got over the last time."""
        assert child.stdout.read(1) == "!"
        for _ in range(self.STORMS):
            child.send_signal(signal.SIGINT)
            assert child.stdout.read(1) == "!"

    def outcome(self, child):
        interrupts, records = map(int, child.stdout.readline().split())
        assert interrupts == self.STORMS
        assert child.wait() == 0
        return records

    @pytest.fixture
    def start(self, program):
        def start(how, spin):
            ours, theirs = socket.socketpair()
            with theirs:
                number = theirs.fileno()
                child = program(STORM, number, how, self.STORMS, spin, pass_fds=[number])
            return child, ours

        return start

    @pytest.mark.parametrize("how", ["pop", "pop_many"])
    @pytest.mark.parametrize("spin", [0, 20_000])
    def test_in_who_receives(self, start, in_thread, how, spin):
        child, sock = start(how, spin)
        with Sender(sock, SPEC, capacity=4) as sender:
            storm = in_thread(self.storm, child)
            sent = 0
            while storm.is_alive():
                sender.push((sent,))
                sent += 1
            storm.result()
        assert self.outcome(child) == sent

    @pytest.mark.parametrize("how", ["push", "push_many"])
    @pytest.mark.parametrize("spin", [0, 20_000])
    def test_in_who_sends(self, start, in_thread, how, spin):
        child, sock = start(how, spin)
        with Receiver(sock, SPEC) as receiver:
            storm = in_thread(self.storm, child)
            got = [number for (number,) in receiver]
            storm.result()
        assert got == list(range(self.outcome(child)))

    def test_in_who_takes_messages(self, start, in_thread):
        child, sock = start("pop_messages", 0)
        with Sender(sock, SPEC, capacity=4) as sender:
            storm = in_thread(self.storm, child)
            sent = 0
            while storm.is_alive():
                sender.send_ctrl_msg(message(sent))
                sent += 1
            storm.result()
        assert self.outcome(child) == sent

    def test_in_who_receives_beside_a_thread_that_sends(self, start, in_thread):
        child, sock = start("both", 0)
        endpoint = _threads.open_endpoint(Opening(sock, Terms(SPEC, BOTH, capacity=4)))
        side = Side(endpoint)
        storm = in_thread(self.storm, child)

        def push():
            n = 0
            while storm.is_alive():
                side.push((n,), None)
                n += 1
            return n

        pushing = in_thread(push)
        n = 0
        while storm.is_alive():
            if (record := side.pop(0.01)) is not None:
                assert record == (n,)
                n += 1
        storm.result()
        sent = pushing.result()
        endpoint.close()
        assert self.outcome(child) == sent
