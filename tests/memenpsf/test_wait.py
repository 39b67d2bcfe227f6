"""memenpsf.wait: which of many connections, listeners and descriptors have something to do."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import select
import socket
import time

import numpy as np
import pytest
import trio

import ipcqueue
import memenpsf
import memenpsf.trio
from memenpsf import _pending, _sources, _wait
from tests.kit import waiting
from tests.kit.places import at_every_place, interrupt
from tests.kit.waiting import until

in_thread, wake_ups_only = waiting.in_thread, waiting.wake_ups_only


@pytest.fixture(autouse=True)
def _no_slices(monkeypatch):
    monkeypatch.setattr(_wait, "SLICE", 3600.0)


@pytest.fixture
def pairs():
    made = [memenpsf.pair("<Q", capacity=4) for _ in range(3)]
    yield made
    for one, other in made:
        one.close()
        other.close()


@pytest.fixture
def sockets():
    both = socket.socketpair()
    yield both
    for sock in both:
        sock.close()


@pytest.fixture
def listener(tmp_path):
    with memenpsf.listen(tmp_path / "here", "<Q") as listener:
        yield listener


def nothing_left(side):
    endpoint = side._endpoint
    return not (
        endpoint.waiters.watches or endpoint.waiters.followers or any(endpoint.waiters.counts)
    )


def test_those_that_have_a_record_are_returned_in_the_order_given(pairs):
    here = [one for one, _ in pairs]
    assert memenpsf.wait(here, 0) == []
    for index in (2, 0):
        pairs[index][1].xmit((index,))
    assert memenpsf.wait(here) == [here[0], here[2]]
    assert memenpsf.wait(reversed(here)) == [here[2], here[0]]
    assert here[0].recv() == (0,)
    assert memenpsf.wait(here) == [here[2]]
    assert all(map(nothing_left, here))


def test_a_record_wakes_it(pairs, in_thread):
    here = [one for one, _ in pairs]
    waiting = in_thread(memenpsf.wait, here)
    until(lambda: all(one._endpoint.waiters.watches for one in here))
    pairs[1][1].xmit((1,))
    assert waiting.result() == [here[1]]
    assert all(map(nothing_left, here))
    assert pairs[1][1].statistics().doorbells == 1


def test_what_another_thread_reads_wakes_it_as_well(pairs, in_thread):
    (one, other), *_ = pairs
    reader = in_thread(one.recv_ctrl_msg, None)
    until(lambda: one._endpoint.waiters.reading)
    waiting = in_thread(memenpsf.wait, [one])
    until(lambda: one._endpoint.waiters.watches)
    other.xmit((1,))
    assert waiting.result() == [one]
    other.send_ctrl_msg(b"\x80\x01")
    assert reader.result() == b"\x80\x01"


def test_what_is_read_between_the_look_and_the_sleep_wakes_it(pairs, monkeypatch):
    (one, other), *_ = pairs

    def driven(plan):
        wait = next(plan)
        other.xmit((1,))
        assert one.recv_ctrl_msg() is None  # but it has read the doorbell
        poll = select.poll()
        for interest in wait.interests:
            poll.register(*interest)
        assert poll.poll(0)
        with pytest.raises(StopIteration) as end:
            plan.send(True)
        return end.value.value

    monkeypatch.setattr("memenpsf._wait.drive", driven)
    assert memenpsf.wait([one]) == [one]


@pytest.mark.parametrize("end", ["close", "abort", "send_eof"])
def test_an_end_wakes_it(pairs, in_thread, end):
    (one, other), *_ = pairs
    waiting = in_thread(memenpsf.wait, [one])
    until(lambda: one._endpoint.waiters.watches)
    getattr(other, end)()
    assert waiting.result() == [one]
    assert memenpsf.wait([one], 0) == [one]
    with pytest.raises((memenpsf.EndOfStream, memenpsf.Aborted)):
        one.recv(0)


@pytest.mark.parametrize("close", ["close", "finish"])
def test_its_own_end_wakes_it(pairs, in_thread, close):
    (one, _), *_ = pairs
    waiting = in_thread(memenpsf.wait, [one])
    until(lambda: one._endpoint.waiters.watches)
    getattr(one, close)()
    assert waiting.result() == [one]
    with pytest.raises(memenpsf.Closed):
        one.recv(0)


def test_a_dead_peer_is_ready(sockets):
    here, there = sockets
    child = os.fork()
    if child == 0:
        here.close()
        memenpsf.Interface(there, "<Q").xmit((1,))
        os._exit(0)
    there.close()
    with memenpsf.Interface(here, "<Q") as one:
        os.waitpid(child, 0)
        assert memenpsf.wait([one]) == [one]
        assert one.recv() == (1,)
        assert memenpsf.wait([one]) == [one]
        with pytest.raises(memenpsf.PeerDied):
            one.recv(0)


def test_receivers_and_plain_descriptors_are_waited_for_beside_each_other(pairs, sockets):
    sender, receiver = ipcqueue.pair(bytes)
    here, there = sockets
    with sender, receiver:
        objects = [pairs[0][0], receiver, here, here.fileno(), np.int64(here.fileno())]
        assert memenpsf.wait(objects, 0) == []
        there.send(b"text")
        sender.push(b"text")
        assert memenpsf.wait(objects) == objects[1:]
        assert here.recv(9) == b"text"
        there.close()
        assert memenpsf.wait([here]) == [here]  # its end


def test_a_listener_is_ready_for_a_client_that_has_introduced_itself(listener, in_thread, pairs):
    waiting = in_thread(memenpsf.wait, [listener, pairs[0][0]])
    with memenpsf.connect(listener.address, "<Q") as client:
        assert waiting.result() == [listener]
        assert memenpsf.wait([listener]) == [listener]
        with listener.accept(timeout=0) as server:
            client.xmit((1,))
            assert memenpsf.wait([listener, server]) == [server]


def test_a_listener_is_ready_for_a_client_that_is_refused(listener, in_thread):
    waiting = in_thread(memenpsf.wait, [listener])
    with pytest.raises(memenpsf.RecordRefused):
        memenpsf.connect(listener.address, "<d")
    assert waiting.result() == [listener]
    with pytest.raises(memenpsf.RecordRefused):
        listener.accept(timeout=0)


def test_a_client_that_says_nothing_makes_no_listener_ready(listener):
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(listener.address)
        assert memenpsf.wait([listener], 0.01) == []


def test_a_listener_leaves_clients_alone_for_a_while_after_turning_one_away(
    tmp_path, in_thread, monkeypatch
):
    monkeypatch.setattr(_pending, "PAUSE", 0.5)
    here = tmp_path / "x"
    with memenpsf.listen(here, "<Q", quota=memenpsf.Quota(connections=1)) as listener:
        accepting = in_thread(listener.accept)
        with memenpsf.connect(here, "<Q"), accepting.result(), socket.socket(socket.AF_UNIX) as one:
            one.connect(str(here))
            assert memenpsf.wait([listener]) == [listener]
            with pytest.raises(memenpsf.LimitRefused):
                listener.accept(timeout=0)
            assert memenpsf.wait([listener], 0) == []
            with socket.socket(socket.AF_UNIX) as other:
                other.connect(str(here))
                assert memenpsf.wait([listener], 0) == []
                assert memenpsf.wait([listener]) == [listener]


def test_a_listener_that_another_thread_accepts_from_is_left_to_it(
    listener, in_thread, monkeypatch
):
    monkeypatch.setattr(_sources, "ELSEWHERE", 0.001)
    accepting = in_thread(listener.accept)
    until(lambda: listener._lock.acquire(blocking=False) is False or listener._lock.release())
    assert memenpsf.wait([listener], 0.005) == []
    with memenpsf.connect(listener.address, "<Q"):
        accepting.result().close()


def test_a_signal_handler_in_the_middle_of_accept_finds_no_client(listener):
    with listener._lock:
        listener._busy = True
        assert memenpsf.wait([listener], 0.001) == []
        listener._busy = False


def test_closing_a_listener_wakes_it(listener, in_thread):
    waiting = in_thread(memenpsf.wait, [listener])
    until(lambda: listener._pending.watchers)
    listener.close()
    assert waiting.result() == [listener]
    assert memenpsf.wait([listener]) == [listener]
    assert not listener._pending.watchers
    with pytest.raises(memenpsf.Closed):
        listener.accept()


def test_closing_a_listener_tells_who_watches_it(listener):
    told = []
    listener._pending.watchers.add(lambda: told.append(listener._pending.closed))
    listener.close()
    assert {*told} == {True}


def test_each_is_returned_once(pairs):
    (one, other), *_ = pairs
    other.xmit((1,))
    assert memenpsf.wait([one, one, one]) == [one]


@pytest.mark.parametrize("timeout", [0, 0.001, dt.timedelta(milliseconds=1)])
def test_nothing_in_time_is_an_empty_list(pairs, timeout):
    assert memenpsf.wait([pairs[0][0]], timeout) == []
    assert memenpsf.wait([], timeout) == []


def test_without_objects_it_does_not_wait_for_ever():
    with pytest.raises(ValueError, match="without objects and without a timeout"):
        memenpsf.wait([])


@pytest.mark.parametrize("timeout", [-1, float("nan"), "1", True])
def test_a_timeout_is_checked_first(timeout):
    with pytest.raises((TypeError, ValueError)):
        memenpsf.wait([object()], timeout)


def test_what_cannot_be_waited_for_says_so(pairs, sockets):
    sender, receiver = ipcqueue.pair("<Q")
    with sender, receiver:
        for wrong in (None, "text", 1.5, True, object()):
            with pytest.raises(TypeError, match=r"wait\(\) is for interfaces"):
                memenpsf.wait([pairs[0][0], wrong])
        with pytest.raises(TypeError, match="only sends: see its arm"):
            memenpsf.wait([sender])
    here, there = sockets
    there.close()
    with pytest.raises(ValueError, match="is closed"):
        memenpsf.wait([there])
    with pytest.raises(ValueError, match="is closed"):
        memenpsf.wait([-1])
    with pytest.raises(OSError, match="Bad file descriptor"):
        memenpsf.wait([there.detach() if there.fileno() >= 0 else 10**6])
    of_trio = memenpsf.trio.Interface(here, "<Q")
    with pytest.raises(TypeError, match="belongs to an event loop"):
        memenpsf.wait([of_trio])
    trio.run(of_trio.aclose)
    assert nothing_left(pairs[0][0])


def test_a_forked_child_may_not_wait_and_disturbs_nothing(pairs):
    (one, other), *_ = pairs
    assert one.arm()
    child = os.fork()
    if child == 0:
        status = 1
        with contextlib.suppress(memenpsf.ForkedUse):
            try:
                memenpsf.wait([one])
            except memenpsf.ForkedUse:
                status = 0
        os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    other.xmit((1,))
    assert other.statistics().doorbells == 1
    assert memenpsf.wait([one]) == [one]


def test_an_exception_at_any_place_leaves_nothing_behind(listener, sockets):
    made = []

    def prepare():
        made[:] = memenpsf.pair("<Q", capacity=4)

    def call():
        memenpsf.wait([made[0], listener, sockets[0]], 0.0005)

    def check(_):
        one, other = made
        assert nothing_left(one)
        assert not listener._pending.watchers
        other.xmit((1,))
        assert memenpsf.wait([one]) == [one]
        for side in made:
            side.close()

    assert at_every_place(prepare, call, interrupt, check) > 10


def test_a_peer_that_rings_for_nothing_is_left_alone(pairs, monkeypatch):
    (one, other), *_ = pairs
    monkeypatch.setattr(type(one._endpoint.alarms), "BACK_OFF", 0.001)
    looks = []
    real = _sources.ConnectionSource.look

    def look(source):
        looks.append(source)
        found = real(source)
        os.write(other._endpoint.fileno(), b"\x01\x01")
        return found

    monkeypatch.setattr(_sources.ConnectionSource, "look", look)
    assert memenpsf.wait([one], 0.2) == []
    assert len(looks) < 300  # not as often as it rings
    assert one.statistics().false_alarms > 0


def test_it_sleeps(pairs):
    begin = time.process_time()
    assert memenpsf.wait([one for one, _ in pairs], 0.3) == []
    assert time.process_time() - begin < 0.1


@pytest.mark.deadline(10)
def test_a_record_without_a_doorbell_is_found_after_a_second_at_most(pairs, monkeypatch):
    monkeypatch.setattr(_wait, "SLICE", 0.001)
    (one, other), *_ = pairs
    real = one._endpoint.watch

    def watch(*arguments):
        come = real(*arguments)
        if not come:
            one._endpoint.receiver.disarm()  # as if the kernel had had no memory for a doorbell
            other.xmit((7,))
        return come

    monkeypatch.setattr(one._endpoint, "watch", watch)
    assert memenpsf.wait([one]) == [one]
