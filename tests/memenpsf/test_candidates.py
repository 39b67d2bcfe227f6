"""Whose turn it is to begin a handshake, by hand-made times."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from memenpsf import _candidates
from memenpsf._candidates import Candidate, Candidates, Conduct, Places


def candidate(uid, *, spoken=False, deadline=math.inf):
    made = Candidate(None, SimpleNamespace(uid=uid), deadline)
    made.spoken = spoken
    return made


def anybody(_):
    return True


def test_users_take_turns_and_each_keeps_its_order():
    candidates = Candidates(100)
    came = [candidate(uid) for uid in (1, 1, 1, 2, 2, 3)]
    for each in came:
        assert candidates.add(each) is None
    order = [candidates.take(anybody) for _ in came]
    assert order == [came[n] for n in (0, 3, 5, 1, 4, 2)]
    assert candidates.take(anybody) is None
    assert len(candidates) == 0


def test_who_has_said_something_comes_first_of_its_user():
    candidates = Candidates(100)
    silent, spoken, other = candidate(1), candidate(1, spoken=True), candidate(2)
    for each in (silent, spoken, other):
        candidates.add(each)
    assert candidates.next_of_each() == [spoken, other]
    assert [candidates.take(anybody) for _ in range(3)] == [spoken, other, silent]


def test_who_may_not_begin_delays_only_its_own_user():
    candidates = Candidates(100)
    for uid in (1, 1, 2):
        candidates.add(candidate(uid))
    assert candidates.take(lambda each: each.share.uid == 2).share.uid == 2
    assert candidates.take(lambda each: each.share.uid == 2) is None
    assert [each.share.uid for each in candidates] == [1, 1]


def test_where_there_is_no_room_the_user_with_most_loses_its_oldest_silent_one():
    candidates = Candidates(4)
    first, second, third = candidate(1, spoken=True), candidate(1), candidate(1)
    for each in (first, second, third, candidate(2)):
        assert candidates.add(each) is None
    assert candidates.add(candidate(2)) is second
    late = candidate(1)
    assert candidates.add(late) is late  # its user has as many as any
    assert candidates.add(candidate(3)) in (first, third, *candidates.of(2))
    assert len(candidates) == 4


def test_many_users_with_one_client_each_refuse_one_more_and_not_one_another():
    candidates = Candidates(3)
    for uid in (1, 2, 3):
        candidates.add(candidate(uid))
    newcomer = candidate(4)
    assert candidates.add(newcomer).share.uid == 1
    assert newcomer in list(candidates)


def test_whose_time_is_over():
    candidates = Candidates(10)
    early, late = candidate(1, deadline=5.0), candidate(2, deadline=7.0)
    candidates.add(early)
    candidates.add(late)
    assert candidates.late(4.9) == []
    assert candidates.late(5.0) == [early]
    assert candidates.clear() == [early, late]
    assert candidates.late(math.inf) == []


def test_a_user_rests_after_its_second_offence_and_longer_after_each_up_to_a_limit():
    conduct = Conduct(0.02)
    assert conduct.rests_until(7) == 0
    conduct.offended(7, 10.0)
    assert conduct.rests_until(7) == 0
    for length in (0.02, 0.04, 0.08, 0.16, 0.16):
        conduct.offended(7, 10.0)
        assert conduct.rests_until(7) == pytest.approx(10.0 + length)
    assert conduct.rests_until(8) == 0
    conduct.offended(7, 10.9)
    assert conduct.rests_until(7) == pytest.approx(10.9 + 0.16)
    conduct.offended(7, 12.0)  # after more than a second it begins anew
    assert conduct.rests_until(7) == 0


def test_only_some_users_are_remembered_and_those_are_the_last(monkeypatch):
    monkeypatch.setattr(_candidates, "MAX_REMEMBERED", 2)
    conduct = Conduct(1.0)
    for uid in (1, 1, 2, 2, 1, 3, 3):
        conduct.offended(uid, 10.0)
    assert [bool(conduct.rests_until(uid)) for uid in (1, 2, 3)] == [True, False, True]
    assert len(conduct._known) == 2


def test_a_place_is_free_at_once_for_a_user_without_any_that_hang():
    places = Places(4, 2, [(7, 9.99)])
    assert places.next_for(candidate(7), 10.0, 0.02, 0.2) == 0
    assert places.next_for(candidate(8), 10.0, 0.02, 0.2) == 0
    assert Places(4, 2, []).next_for(candidate(8), 10.0, 0.02, 0.2) == 0


def test_a_user_whose_handshake_hangs_begins_one_in_a_respite():
    places = Places(9, 3, [(7, 9.0), (7, 9.995)])
    assert places.next_for(candidate(7), 10.0, 0.02, 0.2) == pytest.approx(10.015)
    assert places.next_for(candidate(8), 10.0, 0.02, 0.2) == 0


def test_a_user_with_all_its_places_waits_for_one():
    places = Places(9, 2, [(7, 9.0), (7, 9.5)])
    assert places.next_for(candidate(7, spoken=True), 10.0, 0.02, 0.2) == math.inf


def test_where_all_places_are_taken_the_holder_of_most_gives_one_up_to_who_has_spoken():
    places = Places(4, 3, [(5, 8.0), (6, 9.0), (6, 9.0), (6, 9.5)])
    assert places.all_taken
    assert places.next_for(candidate(8), 10.0, 0.02, 0.2) == math.inf
    assert places.next_for(candidate(8, spoken=True), 10.0, 0.02, 0.2) == pytest.approx(9.2)
    assert places.victim(8) == 6
    assert places.next_for(candidate(5, spoken=True), 10.0, 0.0, 3.0) == pytest.approx(12.0)


def test_users_with_as_many_places_each_take_none_from_one_another():
    places = Places(2, 2, [(5, 8.0), (6, 9.0)])
    assert places.victim(5) is None
    assert places.next_for(candidate(5, spoken=True), 10.0, 0.02, 0.2) == math.inf
    assert places.victim(7) == 5
