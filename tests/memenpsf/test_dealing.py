"""deal: tasks for many workers, and their answers; also when workers die, raise or leave."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from typing import NamedTuple

import numpy as np
import pytest

import memenpsf
from memenpsf import _dealing
from tests.kit import children

methods = pytest.mark.parametrize("method", children.METHODS)


class Pair(NamedTuple):
    number: int
    word: int


dies_with_parent = children.dies_with_parent
helpers_of_multiprocessing_end = children.helpers_of_multiprocessing_end


def works(end, work, *arguments):
    dies_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(memenpsf.PeerDied, memenpsf.ReceiverGone), end.open() as interface:
        for (task,) in interface:
            interface.xmit((work(task, *arguments),))


def doubled(task):
    return 2 * task


def dies_once(task, last, mark):
    """Double it; but the first worker that gets the `last` task is killed in the midst of it."""
    if task == last:
        with contextlib.suppress(FileExistsError):
            os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
            os.kill(os.getpid(), signal.SIGKILL)
    return 2 * task


def dies(task):
    os.kill(os.getpid(), signal.SIGKILL)


def raises(task, wrong):
    if task == wrong:
        sys.stderr = None  # no traceback in the midst of pytest's output
        raise ZeroDivisionError
    return 2 * task


def exits(task, last):
    if task == last:
        sys.exit(0)
    return 2 * task


@pytest.fixture
def hire():
    """Start workers; return their interfaces.  All must have ended at the end of the test."""
    children, opened = [], contextlib.ExitStack()

    def hire(count, work, *arguments, method="fork", record="<Q", target=works, **options):
        context = multiprocessing.get_context(method)
        pipes = [memenpsf.pipe(record, timeout=60, **options) for _ in range(count)]
        for _, theirs in pipes:
            with theirs:
                children.append(context.Process(target=target, args=(theirs, work, *arguments)))
                children[-1].start()
        return [opened.enter_context(ours.open()) for ours, _ in pipes]

    hire.children = children
    hire.opened = opened
    yield hire
    opened.close()
    for child in children:
        child.join()
        child.close()


@pytest.fixture
def pairs():
    """Connections whose workers are threads of the test, or nobody."""
    opened = []

    def connect(count, record="<Q", **options):
        pairs = [memenpsf.pair(record, **options) for _ in range(count)]
        opened.extend(side for pair in pairs for side in pair)
        return pairs

    yield connect
    for side in opened:
        side.close()


def numbers(count):
    return [(n,) for n in range(count)]


def endless():
    return zip(itertools.count())


def doubles(count):
    return [(2 * n,) for n in range(count)]


# -- processes ---------------------------------------------------------------------------------------


@methods
def test_each_task_is_answered_once(hire, method):
    workers = hire(3, doubled, method=method)
    assert sorted(memenpsf.deal(iter(numbers(5000)), workers)) == doubles(5000)
    assert sorted(memenpsf.deal(numbers(3), workers)) == doubles(3)
    assert list(memenpsf.deal([], workers)) == []


@methods
def test_what_a_worker_had_when_it_was_killed_the_others_do(hire, method, tmp_path):
    workers = hire(3, dies_once, 1500, tmp_path / "mark", method=method)
    assert sorted(memenpsf.deal(numbers(3000), workers)) == doubles(3000)
    assert (tmp_path / "mark").exists()
    hire.opened.close()
    for child in hire.children:
        child.join()
    assert sorted(child.exitcode for child in hire.children) == [-signal.SIGKILL, 0, 0]


def test_even_where_it_is_the_last_task(hire, tmp_path):
    workers = hire(2, dies_once, 99, tmp_path / "mark")
    assert sorted(memenpsf.deal(numbers(100), workers)) == doubles(100)


def test_one_that_died_before_is_noticed(hire):
    workers = hire(2, doubled)
    hire.children[0].kill()
    hire.children[0].join()
    assert sorted(memenpsf.deal(numbers(100), workers)) == doubles(100)


def test_a_task_that_kills_each_worker_ends_it(hire):
    workers = hire(3, dies)
    with pytest.raises(memenpsf.PeerDied) as caught:
        list(memenpsf.deal(numbers(100), workers))
    assert type(caught.value) is memenpsf.PeerDied
    assert memenpsf.interface_of(caught.value) in workers


def test_a_worker_that_raises_ends_it_at_once(hire):
    workers = hire(3, raises, 77)
    with pytest.raises(memenpsf.Aborted) as caught:
        list(memenpsf.deal(endless(), workers))
    assert memenpsf.interface_of(caught.value) in workers


def test_so_does_one_that_leaves(hire):
    workers = hire(2, exits, 77)
    with pytest.raises(memenpsf.EndOfStream):
        list(memenpsf.deal(endless(), workers))


def test_a_loop_that_is_left_early_leaves_workers_that_end(hire):
    workers = hire(2, doubled)
    for answer in memenpsf.deal(endless(), workers):
        if answer[0] > 100:
            break
    hire.opened.close()
    for child in hire.children:
        child.join()
    assert [child.exitcode for child in hire.children] == [0, 0]


def test_ctrl_c_ends_it_and_the_workers(hire):
    workers = hire(2, doubled)

    def forever():
        yield from numbers(1000)
        signal.raise_signal(signal.SIGINT)
        yield from endless()

    with pytest.raises(KeyboardInterrupt):
        for _ in memenpsf.deal(forever(), workers):
            pass


def test_workers_end_if_their_dealer_is_killed(program):
    dealer = program(
        "import itertools, multiprocessing, os, sys, time\n"
        "import memenpsf\n"
        "def work(end):\n"
        "    with end.open() as interface:\n"
        "        for record in interface:\n"
        "            interface.xmit(record)\n"
        "multiprocessing.set_start_method('fork')\n"
        "pipes = [memenpsf.pipe('<Q', timeout=60) for _ in range(3)]\n"
        "children = [multiprocessing.Process(target=work, args=(end,)) for _, end in pipes]\n"
        "for child, (_, theirs) in zip(children, pipes):\n"
        "    with theirs: child.start()\n"
        "ends = [ours.open() for ours, _ in pipes]\n"
        "for (n,) in memenpsf.deal(((n,) for n in itertools.count()), ends):\n"
        "    if n == 1000: print(*(child.pid for child in children), flush=True)\n",
        stderr=subprocess.DEVNULL,
    )
    workers = [os.pidfd_open(int(pid)) for pid in dealer.stdout.readline().split()]
    dealer.kill()
    dealer.wait()
    assert len(workers) == 3
    for pidfd in workers:
        memenpsf.wait([pidfd])
        os.close(pidfd)


# -- how many are dealt ------------------------------------------------------------------------------


def sleeper(interface, seconds, stuck):
    """Answer after a while; a task of 0 waits for `stuck`."""
    with contextlib.suppress(memenpsf.EndOfStream):
        while tasks := interface.recv_vectored(1):
            if tasks[0] == (0,):
                stuck.wait()
            elif seconds:
                time.sleep(seconds)
            interface.xmit(tasks[0])


def dealt_around_a_stuck_one(pairs, count, seconds, place, left, **options):
    """Deal, and release the worker of the task 0 once all are answered but `left`."""
    stuck = threading.Event()
    connections = pairs(3)
    threads = [
        threading.Thread(target=sleeper, args=(there, seconds, stuck)) for _, there in connections
    ]
    for thread in threads:
        thread.start()
    tasks = [(n + 1,) for n in range(count)]
    tasks[place] = (0,)
    try:
        answered = []
        for answer in memenpsf.deal(tasks, [here for here, _ in connections], **options):
            answered.append(answer)
            if len(answered) == count - left:
                stuck.set()
        assert sorted(answered) == sorted(tasks)
        assert answered.index((0,)) >= count - left
    finally:
        stuck.set()
        for here, _ in connections:
            here.close()
        for thread in threads:
            thread.join()


def test_at_most_255_wait_behind_a_task_that_takes_long(pairs):
    dealt_around_a_stuck_one(pairs, 6000, 0, 3000, left=256)


@pytest.mark.parametrize("limit", [1, 5])
def test_or_as_many_as_the_caller_says(pairs, limit):
    dealt_around_a_stuck_one(pairs, 3000, 0, 1500, limit, most=limit)


def test_none_waits_behind_it_where_tasks_take_long_anyway(pairs):
    dealt_around_a_stuck_one(pairs, 60, 0.011, 30, left=1)


def test_none_waits_behind_the_first(pairs):
    dealt_around_a_stuck_one(pairs, 1000, 0, 0, left=1)


@pytest.fixture
def clock(monkeypatch):
    """The time that hands see."""
    clock = [1.0]
    monkeypatch.setattr(_dealing, "monotonic", lambda: clock[0])
    return clock


def test_a_hand_grows_with_short_tasks_and_shrinks_with_long_ones(pairs, clock):
    ((here, there),) = pairs(1)
    hand, deck = _dealing.Hand(here, 64), _dealing.Deck(endless())
    sizes = []

    def settle(seconds):
        """Answer all that it has, each in so many seconds."""
        hand.fill(deck)
        got = there.recv_vectored(timeout=0)
        sizes.append(len(got))
        clock[0] += seconds * len(got)
        hand.answered(len(got))

    for _ in range(9):
        settle(0)
    assert sizes == [1, 2, 4, 8, 16, 32, 64, 64, 64]
    sizes.clear()
    for seconds in [2**-10, 2**-10, 2**-8, 2**-8, 1.0, 1.0, 2**-11, 2**-11, 2**-11]:
        settle(seconds)
    assert sizes == [64, 20, 20, 5, 5, 1, 1, 2, 4]


def test_a_hand_is_filled_once_half_of_it_is_answered(pairs, clock):
    ((here, there),) = pairs(1)
    hand, deck = _dealing.Hand(here, 64), _dealing.Deck(numbers(1000))
    hand.most = 64
    taken = []
    for answered in (0, 31, 1, 20, 12):
        hand.answered(answered)
        hand.fill(deck)
        taken.append(len(there.recv_vectored(timeout=0)))
    assert taken == [64, 0, 32, 0, 32]
    assert [task for (task,) in hand.tasks] == list(range(64, 128))


@pytest.mark.parametrize(
    ("seconds", "naps"),
    [(0.001, []), (0.004, [0.001, 0.0015]), (0.009, [0.00225, 0.0025]), (0.011, [])],
)
def test_answers_gather_while_all_workers_have_tasks(pairs, monkeypatch, seconds, naps):
    """The clock goes on by so many seconds whenever somebody looks at it."""
    clock, taken = itertools.count(), []
    monkeypatch.setattr(_dealing, "monotonic", lambda: seconds * next(clock))
    monkeypatch.setattr(_dealing, "sleep", taken.append)
    ((here, there),) = pairs(1)
    answers = memenpsf.deal(endless(), [here])
    there.xmit((0,))
    assert next(answers) == (0,)
    for _ in range(2):
        got = there.recv_vectored(timeout=0)
        got = got[1:] if (0,) in got else got
        there.xmit_many(got)
        assert [next(answers) for _ in got] == got
    answers.close()
    assert taken == pytest.approx(naps)


# -- tasks that do not fit, and wrong use ---------------------------------------------------------------


def test_a_full_ring_blocks_nobody(hire):
    """Neither side has room for what the other one sends; so nobody may wait for room."""
    workers = hire(2, None, record=bytes, target=echoes, capacity=16384)
    tasks = [bytes([n % 251]) * 4000 for n in range(2000)]
    assert sorted(memenpsf.deal(tasks, workers)) == sorted(tasks)


def echoes(end, _):
    dies_with_parent()
    with end.open() as interface:
        for task in interface:
            interface.xmit(task)


def test_large_tasks_beside_small_ones(hire):
    workers = hire(2, None, record=bytes, target=echoes)
    tasks = [b"%d" % n for n in range(500)]
    tasks += [bytes(3_000_000) + b"%d" % n for n in range(60)]
    assert sorted(memenpsf.deal(tasks, workers)) == sorted(tasks)


def test_a_worker_without_tasks_gets_one_however_full_it_looks(pairs, monkeypatch):
    ((here, there),) = pairs(1)
    xmit_many = here.xmit_many
    monkeypatch.setattr(
        here, "xmit_many", lambda tasks, timeout=None: 0 if timeout == 0 else xmit_many(tasks)
    )
    hand, deck = _dealing.Hand(here, 64), _dealing.Deck(numbers(3))
    hand.most = 3
    hand.fill(deck)
    assert there.recv_vectored(timeout=0) == [(0,)]
    assert deck.take(5) == [(1,), (2,)]


def test_any_kind_of_record(hire):
    workers = hire(2, None, record=Pair, target=echoes)
    tasks = [Pair(n, n + 1) for n in range(100)]
    assert sorted(memenpsf.deal(tasks, workers)) == tasks
    workers = hire(2, None, record=np.dtype("<u4"), target=echoes)
    assert sorted(memenpsf.deal(np.arange(100, dtype="<u4"), workers)) == list(range(100))


def test_wrong_answers_are_refused(pairs):
    ((here, there),) = pairs(1)
    there.xmit_many(numbers(5))
    with pytest.raises(RuntimeError, match="has sent 5 answers to 1 tasks"):
        list(memenpsf.deal(numbers(1), [here]))


def test_a_wrong_task_is_refused(pairs):
    ((here, _),) = pairs(1)
    with pytest.raises(memenpsf.BadRecord):
        list(memenpsf.deal([("x",)], [here]))


def test_wrong_workers_are_refused_at_once(pairs):
    with pytest.raises(ValueError, match="there is no worker"):
        memenpsf.deal([], [])
    with pytest.raises(TypeError, match="a worker is an Interface of memenpsf, not 7"):
        memenpsf.deal([], [7])
    ((here, _),) = pairs(1)
    for wrong, why in [(0, "at least 1 task"), (-1, "most"), (1.5, "most")]:
        with pytest.raises((ValueError, TypeError), match=why):
            memenpsf.deal([], [here], most=wrong)


def test_a_closed_one_ends_it(pairs):
    ((here, _),) = pairs(1)
    here.close()
    with pytest.raises(memenpsf.Closed):
        list(memenpsf.deal(numbers(1), [here]))


def test_an_answer_that_cannot_be_decoded_ends_it(pairs):
    here, there = memenpsf.pair(memenpsf.Encoded(bytes, int))
    with here, there:
        there.xmit(b"no number")
        with pytest.raises(memenpsf.DecodeFailed):
            list(memenpsf.deal([b"1"], [here]))


def test_workers_of_one_dealer_are_refilled_while_the_caller_has_answers(pairs):
    ((here, there),) = pairs(1)
    answers = memenpsf.deal(numbers(100), [here])
    there.xmit((0,))
    assert next(answers) == (0,)
    assert there.recv_vectored() == [(0,), (1,), (2,)]
    answers.close()
