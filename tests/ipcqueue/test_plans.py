"""Plans by themselves: an endpoint of numbers, a door that only writes down; no socket, no thread.

And the door of threads, with exceptions of signal handlers at every place.
"""

import contextlib
import math
import select
import types

import pytest

import memenpsf.trio
from ipcqueue import Closed, Full, _threads
from ipcqueue import _direct as direct
from ipcqueue._link import plans
from ipcqueue._link.plans import Rounds
from ipcqueue._link.waiters import NOW, Event, Wait, Waiters
from tests.kit.places import Interrupt, at_every_pair, at_every_place, interrupt

WIRE = object()
READABLE = Wait(wire=WIRE, events=select.POLLIN)


class Endpoint:
    """What of an Endpoint plans use; `log` says what they did."""

    def __init__(self):
        self.log, self.now, self.needed, self.found = [], 100.0, True, False
        self.waiters, self.wire, self.readable = Waiters(), WIRE, READABLE
        self.spins, self.busy, self.pieces, self.backs_off = False, False, 0, False
        self.rescues, self.limit_reached, self.there = 0, False, False
        self.receiver = self.sender = self

    def clock(self):
        return self.now

    def note(self, *what):
        self.log.append(what)

    def receiving(self):
        return self

    sending = receiving

    def look(self, *units):
        self.note("look", *units)
        return self.found

    def patience(self):
        return 0

    def unfinished(self, event):
        self.pieces -= 1
        return event is Event.RECORDS and self.pieces >= 0

    def read_if_free(self):
        self.note("read_if_free")

    def note_read(self):
        self.note("note_read")

    def announce(self, event, units):
        self.note("announce", event, units)
        return self.needed

    def withdraw(self, event):
        self.note("withdraw", event)

    def note_wakeup(self, woken):
        self.note("note_wakeup", woken)

    def should_back_off(self):
        return self.backs_off

    def back_off_length(self):
        return 0.5

    def in_flight_limit_reached(self):
        return self.limit_reached

    def retry_after(self):
        return 0.002

    def has_come(self, event, units):
        return self.there

    def at_rest(self):
        return self.waiters.counts == [0, 0, 0] and not self.waiters.reading


@pytest.fixture
def endpoint():
    it = Endpoint()
    yield it
    assert it.at_rest()
    assert not it.waiters.followers


def driven(plan, *answers):
    """Run a plan with these answers; return what it waited for, and its result."""
    waits, answers = [], list(answers)

    def wait(awaited):
        waits.append(awaited)
        return answers.pop(0) if answers else True

    return waits, _threads.drive(plan, wait)


def rounds(endpoint, event=Event.RECORDS, until=math.inf, **options):
    return Rounds(endpoint, event, until, **options)


@pytest.mark.parametrize("door", ["threads", "trio"])
def test_what_is_published_is_said_to_be_also_without_memory(door, short_of_memory):
    """The end of a plan needs no memory, or xmit() would raise for a record that is on its way."""

    def plan(log):
        yield NOW
        log[0] = True
        return log

    def by_threads(log):
        return _threads.drive(plan(log), lambda _: True)

    class Tasks(memenpsf.trio._waiting.Waiting):
        async def wait_for(self, wait):
            return True

    tasks = Tasks()

    @types.coroutine
    def by_tasks(log):
        yield from tasks.drive(plan(log))

    def driven_by_tasks(log):
        return log if direct.resume(by_tasks(log), None, [None]) is None else None

    call = by_threads if door == "threads" else driven_by_tasks

    def check(result, log):
        assert result is (log if log[0] else MemoryError)

    assert short_of_memory(lambda: ([False],), call, check) > 1


class TestRounds:
    def test_the_reader_waits_for_the_socket(self, endpoint):
        assert driven(rounds(endpoint).next()) == ([READABLE], True)
        assert endpoint.log == [
            ("announce", Event.RECORDS, 1),
            ("note_wakeup", True),
            ("withdraw", Event.RECORDS),
        ]

    def test_who_comes_while_another_reads_follows(self, endpoint):
        first, second = rounds(endpoint).next(), rounds(endpoint, Event.MESSAGE).next()
        assert next(first) == READABLE
        wait = next(second)
        assert wait.follower in endpoint.waiters.followers
        assert wait.wire is None
        assert endpoint.waiters.counts == [1, 0, 1]
        with pytest.raises(StopIteration):
            first.send(True)
        assert wait.follower.acquire(timeout=0)  # it was released, as the reader has read
        with pytest.raises(StopIteration):
            second.send(True)
        assert ("note_wakeup", True) in endpoint.log
        assert endpoint.log.count(("note_wakeup", True)) == 1

    def test_where_the_second_look_finds_something_nobody_sleeps(self, endpoint):
        endpoint.needed = False
        assert driven(rounds(endpoint).next()) == ([NOW], True)
        assert endpoint.rescues == 0

    def test_space_is_announced_by_its_units(self, endpoint):
        assert driven(rounds(endpoint, Event.SPACE, units=lambda: 7).next())[1]
        assert endpoint.log[0] == ("announce", Event.SPACE, 7)

    def test_who_looks_does_so_once_and_then_sleeps(self, endpoint):
        endpoint.spins = endpoint.found = True
        it = rounds(endpoint, Event.SPACE, units=lambda: 3)
        assert driven(it.next()) == ([], True)
        assert driven(it.next()) == ([READABLE], True)
        assert endpoint.log[0] == ("look", 3)
        assert endpoint.log[1][0] == "announce"

    def test_who_has_looked_in_vain_sleeps_in_the_same_round(self, endpoint):
        endpoint.spins = True
        assert driven(rounds(endpoint).next()) == ([READABLE], True)
        assert [what for what, *_ in endpoint.log[:2]] == ["look", "announce"]

    @pytest.mark.parametrize("event", [Event.RECORDS, Event.SPACE])
    def test_who_is_busy_never_sleeps(self, endpoint, event):
        endpoint.spins = endpoint.busy = True
        it = rounds(endpoint, event)
        for _ in range(3):
            assert driven(it.next()) == ([], True)
        assert [what for what, *_ in endpoint.log] == ["look", "read_if_free"] * 3

    def test_a_message_is_slept_for_even_if_one_is_busy(self, endpoint):
        endpoint.spins = endpoint.busy = True
        assert driven(rounds(endpoint, Event.MESSAGE).next()) == ([READABLE], True)

    @pytest.mark.parametrize("event", [Event.RECORDS, Event.SPACE])
    def test_without_time_the_socket_is_read_once_and_tried_once_more(self, endpoint, event):
        it = rounds(endpoint, event, endpoint.now)
        assert driven(it.next()) == ([NOW], True)
        assert endpoint.log == [("read_if_free",)] + [("note_read",)] * (event is Event.RECORDS)
        assert driven(it.next()) == ([], False)

    def test_a_wait_is_as_long_as_the_time_that_is_left(self, endpoint):
        it = rounds(endpoint, until=endpoint.now + 3)
        assert driven(it.next()) == ([READABLE._replace(seconds=3.0)], True)
        endpoint.now += 2
        assert driven(it.next()) == ([READABLE._replace(seconds=1.0)], True)
        endpoint.now += 2
        assert driven(it.next()) == ([NOW], True)
        assert driven(it.next()) == ([], False)

    def test_who_was_rung_too_often_leaves_the_socket_alone_at_first(self, endpoint):
        endpoint.backs_off = True
        nap = Wait(0.5, WIRE)
        assert driven(rounds(endpoint).next(), False) == ([nap, READABLE], True)
        short = rounds(endpoint, until=endpoint.now + 0.25).next()
        assert driven(short)[0][0] == Wait(0.25, WIRE)

    def test_a_follower_takes_no_nap(self, endpoint):
        first = rounds(endpoint).next()
        next(first)
        endpoint.backs_off = True
        second = rounds(endpoint).next()
        assert next(second).follower is not None
        second.close()
        first.close()

    @pytest.mark.parametrize(
        ("woken", "there", "rescues"), [(False, True, 1), (False, False, 0), (True, True, 0)]
    )
    def test_what_only_the_clock_has_found_is_counted(self, endpoint, woken, there, rescues):
        endpoint.there = there
        driven(rounds(endpoint).next(), woken)
        assert endpoint.rescues == rescues

    def test_the_end_of_a_timeout_is_no_rescue(self, endpoint):
        endpoint.there = True
        plan = rounds(endpoint, until=endpoint.now + 1).next()
        next(plan)
        endpoint.now += 1
        with pytest.raises(StopIteration):
            plan.send(False)
        assert endpoint.rescues == 0

    def test_a_large_message_goes_on_piece_by_piece_also_when_the_time_is_over(self, endpoint):
        endpoint.pieces = 2
        it = rounds(endpoint, until=endpoint.now)
        assert [driven(it.next()) for _ in range(4)] == [([NOW], True)] * 3 + [([], False)]
        assert endpoint.log.count(("read_if_free",)) == 1

    def test_that_this_side_was_closed_is_for_the_attempt_to_say(self, endpoint):
        def closed(woken):
            raise Closed

        endpoint.note_wakeup = closed
        assert driven(rounds(endpoint).next()) == ([READABLE], True)

    def test_who_is_stuck_waits_for_room_and_reads_meanwhile(self, endpoint):
        both = Wait(math.inf, WIRE, select.POLLIN | select.POLLOUT)
        it = rounds(endpoint, Event.SPACE, stuck=lambda: True)
        assert driven(it.next()) == ([both], True)
        assert endpoint.log == [("read_if_free",)]
        endpoint.limit_reached = True
        assert driven(it.next())[0] == [Wait(0.002, WIRE, select.POLLIN)]
        reader = rounds(endpoint).next()
        next(reader)
        endpoint.limit_reached = False
        assert driven(it.next())[0] == [Wait(plans.ROOM_SLICE, WIRE, select.POLLOUT)]
        reader.close()

    def test_who_is_stuck_and_out_of_time_does_not_try_again(self, endpoint):
        it = rounds(endpoint, Event.SPACE, endpoint.now, stuck=lambda: True)
        assert driven(it.next()) == ([], False)

    @pytest.mark.parametrize("how", ["close", "throw"])
    def test_a_plan_that_is_given_up_leaves(self, endpoint, how):
        reader, follower = rounds(endpoint).next(), rounds(endpoint, Event.SPACE).next()
        next(reader)
        wait = next(follower)
        for plan in (reader, follower):
            if how == "close":
                plan.close()
            else:
                with pytest.raises(Interrupt):
                    plan.throw(Interrupt)
        assert wait.follower.acquire(timeout=0)  # or nobody would read now
        assert endpoint.log[-2:] == [("withdraw", Event.RECORDS), ("withdraw", Event.SPACE)]


class Sender(Endpoint):
    """Takes what `answers` say: True, False (no space) or None (no room in the socket)."""

    def __init__(self, *answers):
        super().__init__()
        self.answers, self.count = list(answers), 0

    @contextlib.contextmanager
    def parcel(self):
        yield "parcel"
        self.note("parcel closed")

    def try_send(self, parcel):
        return self.answers.pop(0)

    def units(self, parcel):
        return 5

    def try_send_message(self, message):
        return self.answers.pop(0)


def test_a_parcel_is_made_once_and_sent_when_there_is_space_and_room():
    sender = Sender(False, None, False, True)
    waits, result = driven(plans.push(sender, sender.parcel(), None))
    assert result is None
    assert [wait.events for wait in waits] == [
        select.POLLIN,
        select.POLLIN | select.POLLOUT,
        select.POLLIN,
    ]
    assert sender.log[-1] == ("parcel closed",)
    assert sender.log.count(("announce", Event.SPACE, 5)) == 2
    assert sender.at_rest()


@pytest.mark.parametrize(("answers", "waits"), [([False] * 2, [NOW]), ([None], [])])
def test_a_parcel_that_finds_no_place_at_once_is_closed_and_full(answers, waits):
    sender, seen = Sender(*answers), []
    with pytest.raises(Full, match="within 0 s"):
        _threads.drive(plans.push(sender, sender.parcel(), 0), seen.append)
    assert seen == waits
    assert sender.answers == []


def test_a_control_message_waits_for_room_alone():
    sender = Sender(False, False, True)
    waits, _ = driven(plans.send_message(sender, b"\x80!", None))
    assert [wait.events for wait in waits] == [select.POLLIN | select.POLLOUT] * 2
    with pytest.raises(Full):
        driven(plans.send_message(Sender(False), b"\x80!", 0))


class Batch:
    """Seven records, of which every third goes alone; two find space at once."""

    def __init__(self, log):
        self.done, self.log, self.full = 0, log, True

    @property
    def left(self):
        return 7 - self.done

    @contextlib.contextmanager
    def _parcel(self):
        yield self.done
        self.log.append(("alone", self.done))

    def alone(self):
        return self._parcel() if self.done % 3 == 2 else None

    def attempt(self):
        self.full = not self.full
        return None if self.full else min(2 - self.done % 3, self.left)

    def units(self):
        return 1


def test_a_batch_is_sent_in_runs_and_parcels_in_order():
    sender = Sender(True, False, True)
    waits, done = driven(plans.push_rest(sender, Batch(sender.log), None))
    assert done == 7
    assert [what for what in sender.log if what[0] == "alone"] == [("alone", 2), ("alone", 5)]
    assert waits == [READABLE] * 3


def test_a_batch_that_runs_out_of_time_says_how_far_it_came():
    sender = Sender(False, False)
    assert driven(plans.push_rest(sender, Batch(sender.log), 0))[1] == 2


# -- the door of threads -------------------------------------------------------------------------


def test_a_door_closes_its_plan_whatever_it_raises(endpoint):
    def wait(_):
        raise Interrupt

    with pytest.raises(Interrupt):
        _threads.drive(rounds(endpoint).next(), wait)
    assert endpoint.log[-1] == ("withdraw", Event.RECORDS)


@pytest.mark.parametrize("reading", [False, True])
@pytest.mark.parametrize("each", [at_every_place, at_every_pair])
def test_signals_at_every_place_leave_nobody_announced(each, reading):
    """One exception, or a second one in what cleans up after the first."""
    made = []

    def prepare():
        made[:] = [Endpoint()]
        made[0].waiters.reading = reading

    def call():
        return _threads.drive(rounds(made[0], until=101.0).next(), lambda _: True)

    def check(_):
        (it,) = made
        assert it.waiters.counts == [0, 0, 0]
        assert it.waiters.reading is reading
        assert not it.waiters.followers
        assert it.log.count(("withdraw", Event.RECORDS)) >= any(
            what == "announce" for what, *_ in it.log
        )
        assert it.waiters.mutex.acquire(blocking=False)
        it.waiters.mutex.release()
        assert not it.waiters.mutex.release.__self__._is_owned()

    assert each(prepare, call, interrupt, check) > 10
