"""When a peer that only rings makes this side back off, with numbers alone."""

from __future__ import annotations

import pytest

from ipcqueue._link.alarms import MAX_FALSE_ALARMS, FalseAlarms, doubled


def nothing():
    return (0, 0, 0)


def woken(alarms, times):
    for _ in range(times):
        alarms.wake_ups += 1


def test_who_was_never_woken_does_not_back_off():
    assert not FalseAlarms().should_back_off(nothing)


def test_progress_is_looked_at_only_after_enough_wake_ups():
    alarms, looks = FalseAlarms(), []
    for _ in range(MAX_FALSE_ALARMS):
        assert not alarms.should_back_off(lambda: looks.append(0) or (0, 0, 0))
        alarms.wake_ups += 1
    assert looks == []
    assert alarms.should_back_off(lambda: looks.append(0) or (0, 0, 0))
    assert looks == [0]


def test_from_then_on_each_wake_up_counts():
    alarms = FalseAlarms()
    woken(alarms, MAX_FALSE_ALARMS)
    for total in range(1, 10):
        assert alarms.should_back_off(nothing)
        assert alarms.total == total
        assert not alarms.should_back_off(nothing)  # not woken since
        alarms.wake_ups += 1


@pytest.mark.parametrize("news", [(1, 0, 0), (0, 1, 0), (0, 0, 1)])
def test_anything_new_begins_the_count_anew(news):
    alarms = FalseAlarms()
    woken(alarms, MAX_FALSE_ALARMS)
    assert not alarms.should_back_off(lambda: news)
    woken(alarms, MAX_FALSE_ALARMS - 1)
    assert not alarms.should_back_off(lambda: news)
    alarms.wake_ups += 1
    assert alarms.should_back_off(lambda: news)
    assert alarms.total == 1
    alarms.wake_ups += 1
    assert not alarms.should_back_off(lambda: (2, 2, 2))
    assert alarms.total == 1


def test_a_number_that_goes_back_is_news_too():
    """The core lets none go back; if it did, it would not be the same as before."""
    alarms = FalseAlarms()
    woken(alarms, MAX_FALSE_ALARMS)
    assert not alarms.should_back_off(lambda: (5, 5, 5))
    woken(alarms, MAX_FALSE_ALARMS)
    assert not alarms.should_back_off(lambda: (5, 4, 5))


def test_each_back_off_is_twice_as_long_up_to_a_limit_and_news_makes_it_short_again():
    alarms = FalseAlarms()
    woken(alarms, MAX_FALSE_ALARMS)
    lengths = []
    for _ in range(7):
        assert alarms.should_back_off(nothing)
        lengths.append(alarms.back_off_length() / alarms.BACK_OFF)
        alarms.wake_ups += 1
    assert lengths == [1, 2, 4, 8, 16, 16, 16]
    assert not alarms.should_back_off(lambda: (1, 0, 0))
    woken(alarms, MAX_FALSE_ALARMS)
    assert alarms.should_back_off(lambda: (1, 0, 0))
    assert alarms.back_off_length() == alarms.BACK_OFF


def test_another_reason_has_a_count_of_its_own():
    alarms = FalseAlarms()
    assert [alarms.back_off_length(n) / alarms.BACK_OFF for n in (1, 2, 3)] == [1, 2, 4]


def test_doubling():
    assert [doubled(2.0, times, 3) for times in range(7)] == [2, 2, 4, 8, 16, 16, 16]
