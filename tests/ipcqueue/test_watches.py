"""Who waits for a connection from outside: the bell of event loops, without a connection."""

from __future__ import annotations

import select

import pytest

from ipcqueue import Closed
from ipcqueue._link.waiters import MESSAGE, RECORDS, SPACE, Waiter, Waiters
from ipcqueue._link.watches import MAX_TASKS, Bell, Watch


@pytest.fixture
def bell():
    bell = Bell(lambda use: use(None))
    for _ in range(2):
        bell.eventfd.open()
    yield bell
    for _ in range(2):
        bell.eventfd.close()


def rings(bell):
    return bool(select.select([bell.eventfd], [], [], 0)[0])


def test_it_rings_until_nothing_of_what_was_asked_for_has_come(bell):
    assert not rings(bell)
    assert bell.settle({RECORDS}, set())
    bell.release()
    bell.release()
    assert rings(bell)
    assert bell.settle({RECORDS}, set())
    assert not rings(bell)


def test_a_task_that_has_something_to_do_is_told_and_adds_nothing(bell):
    assert not bell.settle({RECORDS, SPACE}, {SPACE})
    assert bell.events == set()
    assert not rings(bell)


def test_what_tasks_wait_for_adds_up(bell):
    assert bell.settle({RECORDS}, set())
    assert bell.settle({SPACE, MESSAGE}, set())
    assert bell.events == {RECORDS, SPACE, MESSAGE}


def test_a_task_that_goes_on_has_the_bell_rung_for_the_others(bell):
    assert bell.settle({RECORDS}, set())
    assert not bell.settle({RECORDS, SPACE}, {RECORDS})
    assert rings(bell)
    assert bell.events == {RECORDS}


def test_tasks_that_arm_before_the_loop_polls_do_not_silence_it_for_another(bell):
    assert bell.settle({SPACE}, set())
    bell.release()  # somebody has read the doorbell for space
    for _ in range(MAX_TASKS):
        assert bell.settle({RECORDS}, {SPACE})
        assert rings(bell)


def test_a_task_that_does_not_wait_any_more_keeps_the_loop_awake_a_few_times_only(bell):
    assert bell.settle({SPACE}, set())
    turns = 0
    while bell.settle({RECORDS}, {SPACE} & bell.events) and rings(bell):
        turns += 1
        assert turns <= MAX_TASKS
    assert turns == MAX_TASKS
    assert bell.events == {RECORDS}
    assert bell.settle({SPACE}, set())  # and the next is counted anew
    assert bell.settle({RECORDS}, {SPACE})
    assert rings(bell)


def test_a_ring_that_an_exception_broke_off_is_silenced(bell):
    bell.rung = True
    assert bell.settle({RECORDS}, set())
    assert not bell.rung


def test_a_closed_one_wakes_nobody():
    def closed(use):
        raise Closed("this side has closed the connection")

    bell = Bell(closed)
    bell.release()
    assert not bell.rung


def test_all_watches_are_woken_once_before_anything_is_read():
    waiters, woken = Waiters(), []
    watches = [Watch(lambda n=n: woken.append(n)) for n in range(2)]
    with waiters.mutex:
        for watch in watches:
            waiters.stand(watch)
    assert not waiters.followers
    waiters.alert()
    assert sorted(woken) == [0, 1]
    waiters.alert()
    assert len(woken) == 2


def test_a_watch_that_begins_while_another_reads_is_woken_afterwards():
    waiters, woken = Waiters(), []
    watch = Watch(lambda: woken.append(1))

    def read():
        with waiters.mutex:
            waiters.stand(watch)
        assert woken == []
        return 1

    assert waiters.read_if_free(read) == 1
    assert woken == [1]
    assert watch in waiters.watches  # and what is read later wakes it, too


def test_a_watch_that_has_ended_is_not_woken():
    waiters = Waiters()
    watch = Watch(pytest.fail)

    def read():
        with waiters.mutex:
            waiters.stand(watch)
        waiters.stand_down(watch)
        return 1

    assert waiters.read_if_free(read) == 1
    waiters.alert()


def test_what_a_watch_waits_for_is_not_withdrawn_by_a_waiter_that_leaves():
    waiters, withdrawn = Waiters(), []
    watch = Watch(lambda: None)
    watch.events = {RECORDS}
    for event in (RECORDS, SPACE):
        waiter = Waiter()
        with waiters.mutex:
            waiters.stand(watch)
            waiters.enter(waiter, event)
        waiters.leave(waiter, event, withdrawn.append)
    assert withdrawn == [SPACE]
