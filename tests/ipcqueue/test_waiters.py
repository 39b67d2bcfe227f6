"""Who waits on a connection and who reads its socket: without a socket."""

from __future__ import annotations

import pytest

from ipcqueue._link.waiters import Event, Waiter, Waiters


@pytest.fixture
def waiters():
    return Waiters()


def never(event):
    raise AssertionError(f"withdrew {event!r}")


def entered(waiters, event=Event.RECORDS):
    waiter = Waiter()
    with waiters.mutex:
        waiters.enter(waiter, event)
    return waiter


def test_the_first_reads_and_the_next_follows(waiters):
    first = entered(waiters)
    assert not first.late
    waiters.read(first)
    second = entered(waiters, Event.SPACE)
    assert second.late
    lock = waiters.follow(second)
    assert not lock.acquire(blocking=False)
    assert waiters.counts == [1, 1, 0]
    withdrawn = []
    waiters.leave(first, Event.RECORDS, withdrawn.append)
    assert withdrawn == [Event.RECORDS]
    assert lock.acquire(blocking=False)
    waiters.leave(second, Event.SPACE, withdrawn.append)
    assert withdrawn == [Event.RECORDS, Event.SPACE]
    assert waiters.counts == [0, 0, 0]
    assert not waiters.reading
    assert not waiters.followers


def test_who_enters_while_another_reads_is_late_though_that_one_ends_meanwhile(waiters):
    first = entered(waiters)
    waiters.read(first)
    second = Waiter()
    with waiters.mutex:
        waiters.enter(second, Event.RECORDS)
        first.reads = waiters.reading = False  # which needs no mutex
        assert second.late
        lock = waiters.follow(second)
    waiters.leave(first, Event.RECORDS, never)
    assert lock.acquire(blocking=False)


def test_an_announcement_is_withdrawn_by_the_last_who_waits_for_that(waiters):
    both, withdrawn = [entered(waiters), entered(waiters)], []
    waiters.leave(both[0], Event.RECORDS, never)
    waiters.leave(both[1], Event.RECORDS, withdrawn.append)
    assert withdrawn == [Event.RECORDS]


@pytest.mark.parametrize("role", ["entered", "reads", "follows"])
def test_leaving_can_be_repeated(waiters, role):
    other = entered(waiters)
    if role == "follows":
        waiters.read(other)
    waiter = entered(waiters)
    if role == "reads":
        waiters.read(waiter)
    elif role == "follows":
        waiters.follow(waiter)
    for _ in range(3):
        waiters.leave(waiter, Event.RECORDS, never)
    assert waiters.counts == [1, 0, 0]
    assert waiters.reading is (role == "follows")
    assert not waiters.followers


def test_leaving_without_having_entered_withdraws_only_what_nobody_waits_for(waiters):
    waiters.leave(Waiter(), Event.MESSAGE, lambda event: None)
    assert waiters.counts == [0, 0, 0]


def test_reading_once_is_for_one_at_a_time_and_wakes_the_followers(waiters):
    lock = []

    def read():
        assert waiters.reading
        assert waiters.read_if_free(never) is None
        waiter = entered(waiters)
        assert waiter.late
        lock.append(waiters.follow(waiter))
        return 7

    assert waiters.read_if_free(read) == 7
    assert lock[0].acquire(blocking=False)
    assert not waiters.reading


def test_a_read_that_fails_ends_the_reading(waiters):
    def fail():
        raise OSError("short of memory")

    with pytest.raises(OSError, match="short of memory"):
        waiters.read_if_free(fail)
    assert waiters.read_if_free(lambda: 3) == 3
