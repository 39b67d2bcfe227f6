"""Waiting: what a timeout means, and who wakes whom; signals are in signals/test_waiting.py.

Nothing here spins before it sleeps, unless it says so, and the clock wakes nobody for an hour:
what sleeps must be woken.
"""

import contextlib
import itertools
import math
import random
import socket

import pytest

from ipcqueue import (
    BadRecord,
    Closed,
    CorruptPeer,
    EndOfStream,
    Full,
    PeerDied,
    QueueError,
    ReceiverGone,
    _threads,
)
from ipcqueue._link import alarms
from ipcqueue._link import options as _options
from ipcqueue._link import wire as _wire
from ipcqueue._link.plans import Rounds
from ipcqueue._ring import patience as _patience
from ipcqueue._threads import Threads
from ipcqueue.lowlevel import Event, Opening, Role, Terms, open_pair
from tests.kit.hostile import HEAD, TAIL, Peer
from tests.kit.sleeping import await_sleep
from tests.kit.slots import push_packed
from tests.kit.waiting import (  # noqa: F401 (the fixture)
    Side,
    descriptors,
    message,
    turns,
    until,
    wake_ups_only,
)

SPEC = "<Q"
BOTH = Role(sends=True, receives=True)


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
        clock = itertools.count()  # so that there is time to sleep, however busy this machine is
        first.endpoint.clock = lambda: next(clock) / 10_000
        assert first.pop(0.001) is None
        slept = first.endpoint.statistics().waits
        assert slept > 0
        second.push((1,), None)
        assert second.endpoint.statistics().doorbells == 0
        first.fill()
        with pytest.raises(Full):
            first.push((9,), 0.001)
        assert first.endpoint.statistics().waits > slept
        second.pop(None)
        assert second.endpoint.statistics().doorbells == 0

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

    def test_arming_while_a_thread_waits_disturbs_nobody(self, sides, in_thread):
        first, second = sides
        popper = in_thread(first.pop, None)
        first.waiting(1, 0, 0)
        for records, space in itertools.product((True, False), repeat=2):
            assert first.endpoint.arm(records=records, space=space) is not space
            first.waiting(1, 0, 0)
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
            peer.endpoint.read_if_free()
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
        peer.endpoint.read_if_free()
        self.ring(peer, 3 * self.MOST, naps, b"\x80\x01")
        assert len(naps) >= self.MOST

    def test_a_record_a_time_makes_no_nap(self, naps):
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
    def test_the_end_ends_the_nap_of_a_thread(self, peer, in_thread, monkeypatch, end):
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
            echoing = in_thread(echo, second.threads, total)
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
        # One record is under way, so each announcement that the echo has seen is another one.
        assert mine.waits >= total // HOLD


HOLD = 64
"""Every so many records the echo waits until the other side sleeps."""


def echo(side, total):
    for n in range(total):
        record = side.pop(None)
        if n % HOLD == 0:
            await_sleep(side._endpoint)
        side.push(record, None)


ECHO = """
import socket, sys
from ipcqueue.lowlevel import Opening, Role, Terms
from ipcqueue._link import options as _options
from ipcqueue._ring import patience as _patience
from ipcqueue import _threads
from tests.ipcqueue.test_blocking import echo
from tests.kit.sleeping import SLICE
_options._STRATEGIES["spin"] = _patience.Patience(0, False)
_threads.SLICE = SLICE
terms = Terms("<Q", Role(sends=True, receives=True), capacity=1)
endpoint = _threads.open_endpoint(Opening(socket.socket(fileno=int(sys.argv[1])), terms))
side = _threads.Threads(endpoint)
echo(side, int(sys.argv[2]))
print(endpoint.statistics().rescues, flush=True)
try:
    side.pop(None)
finally:
    endpoint.close()
"""
