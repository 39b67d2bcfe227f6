"""arm() and fileno(), for event loops that are not ours: whoever armed is woken, whatever is called."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import ipcqueue
import memenpsf
from tests.kit import waiting
from tests.kit.places import at_every_place, interrupt
from tests.kit.settling import settle
from tests.kit.waiting import until

in_thread = waiting.in_thread


def descriptors():
    return list(Path("/proc/self/fd").iterdir())


def readable(side):
    return bool(select.select([side.fileno()], [], [], 0)[0])


@pytest.fixture
def sides():
    one, other = memenpsf.pair("<Q", capacity=4)
    with one, other:
        yield one, other


def fill(side):
    with contextlib.suppress(memenpsf.Full):
        while True:
            side.xmit((1,), timeout=0)


def loan(side):
    with side.loan(1, timeout=0) as lent:
        lent.cancel()


def borrow(side):
    with side.borrow(timeout=0) as borrowed:
        borrowed.cancel()


# What another task may do between arm() and the wait of the loop.
CALLS = {
    "nothing": lambda side: None,
    "a record for which there is space": lambda side: side.xmit((1,), 0),
    "records until there is no space": fill,
    "more records than there is space for": lambda side: side.xmit_many([(1,)] * 9, 0),
    "a look for control messages": lambda side: side.recv_ctrl_msg(),
    "a wait for control messages": lambda side: side.recv_ctrl_msg(0.001),
    "a control message": lambda side: side.send_ctrl_msg(b"\x80x"),
    "arm() for the same": lambda side: side.arm(),
    "arm() for space": lambda side: side.arm(records=False, space=True),
    "arm() for control messages alone": lambda side: side.arm(records=False),
    "a loan": loan,
    "a borrowing that takes nothing": borrow,
    "statistics": lambda side: (side.statistics(), side.indices(), repr(side)),
}


@pytest.mark.parametrize("call", CALLS)
def test_no_call_takes_the_doorbell_of_a_record_away(sides, call):
    one, other = sides
    for n in range(3):
        while not one.arm():
            one.recv(timeout=0)
        assert not readable(one)
        other.xmit((n,))
        CALLS[call](one)
        assert readable(one)
        assert one.recv(timeout=0) == (n,)
        while other.recv(timeout=0):
            pass


@pytest.mark.parametrize("call", CALLS)
def test_no_call_takes_the_doorbell_of_space_away(sides, call):
    one, other = sides
    fill(one)
    assert one.arm(records=False, space=True)
    assert not readable(one)
    assert other.recv() == (1,)
    CALLS[call](one)
    assert readable(one)


@pytest.mark.parametrize("call", CALLS)
def test_no_call_takes_the_news_of_the_end_away(sides, call):
    one, other = sides
    assert one.arm()
    other.close()
    with contextlib.suppress(memenpsf.EndOfStream, memenpsf.ReceiverGone):
        CALLS[call](one)
    assert readable(one)


def test_a_sender_and_a_receiver_have_it_as_well():
    sender, receiver = ipcqueue.pair("<Q", 4)
    with sender, receiver:
        assert receiver.arm()
        sender.push((1,))
        receiver.recv_ctrl_msg()
        assert readable(receiver)
        assert receiver.pop_many() == [(1,)]
        sender.push_many([(1,)] * 4)
        assert sender.arm()
        receiver.pop_many()
        sender.recv_ctrl_msg()
        assert readable(sender)


def test_a_loop_is_not_woken_for_nothing(sides):
    one, other = sides
    for n in range(20):
        assert one.arm()
        assert not readable(one)
        other.xmit((n,))
        assert readable(one)
        assert one.recv() == (n,)
        assert one.recv(timeout=0) is None
    assert one.arm()
    for _ in range(5):  # others look, and find nothing
        assert one.recv_ctrl_msg() is None
        assert one.recv(timeout=0) is None
        assert not readable(one)
    assert other.statistics().doorbells == 20


def test_a_loop_that_changes_its_mind_sleeps_soon(sides):
    one, other = sides
    fill(one)
    assert one.arm(records=False, space=True)
    assert other.recv() == (1,)
    woken = 0
    while one.arm() and readable(one):  # and does not wait for space any more
        woken += 1
        assert woken < 20
    other.xmit((7,))
    assert readable(one)


def test_a_thread_that_waits_beside_a_loop_takes_nothing_from_it(sides, in_thread):
    one, other = sides
    waiting = in_thread(one.recv_ctrl_msg, None)
    until(lambda: one._endpoint.waiters.reading)
    assert one.arm()
    assert not readable(one)
    other.xmit((1,))
    until(lambda: readable(one))
    assert one.recv(timeout=0) == (1,)
    fill(one)
    while not one.arm(space=True):
        pass
    assert other.recv() == (1,)
    until(lambda: readable(one))
    other.send_ctrl_msg(b"\x80\x01")
    assert waiting.result() == b"\x80\x01"


def test_a_thread_that_leaves_withdraws_nothing_that_a_loop_waits_for(sides):
    one, other = sides
    assert one.arm()
    assert one.recv(timeout=0.001) is None
    other.xmit((1,))
    assert readable(one)


def test_a_loop_is_woken_when_its_side_is_closed(sides):
    one, _ = sides
    descriptor = os.dup(one.fileno())  # as if the loop was just asleep on it
    try:
        assert one.arm()
        one.finish()
        assert select.select([descriptor], [], [], 0)[0]
    finally:
        os.close(descriptor)
    one.close()
    assert not one.arm()
    with pytest.raises(memenpsf.Closed):
        one.fileno()


def test_the_death_of_the_peer_wakes_it_though_a_child_of_its_holds_the_socket():
    command = (
        "import memenpsf, os, socket, sys\n"
        "side = memenpsf.Interface(socket.socket(fileno=int(sys.argv[1])), '<Q', capacity=4)\n"
        "hold, held = os.pipe()\n"
        "if os.fork() == 0:\n"
        "    os.close(1)\n"
        "    os.read(0, 1)\n"
        "    os._exit(0)\n"
        "os._exit(0)\n"
    )
    here, there = socket.socketpair()
    with there:
        peer = subprocess.Popen(
            [sys.executable, "-c", command, str(there.fileno())],
            stdin=subprocess.PIPE,
            pass_fds=[there.fileno()],
        )
    with peer, memenpsf.Interface(here, "<Q", capacity=4) as side:
        if side.peer_pidfd() is None:
            pytest.skip("this kernel has no pidfd of the peer")
        side.arm()
        assert select.select([side.fileno()], [], [], 30)[0]
        with pytest.raises(memenpsf.PeerDied):
            side.recv()
        peer.stdin.close()


def test_it_belongs_to_the_parent(sides):
    one, _ = sides
    assert one.arm()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            one.arm()
        except memenpsf.ForkedUse:
            one.close()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert not readable(one)


def test_two_descriptors_come_with_the_first_use_and_go_with_the_end():
    one, other = memenpsf.pair("<Q")
    before = len(descriptors())
    with one, other:
        assert one.arm()
        assert len(descriptors()) == before + 2
        assert one.fileno() == one.fileno()


def test_without_descriptors_it_says_so_and_the_connection_lives(sides, monkeypatch):
    one, other = sides

    def none_left(*_):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "eventfd", none_left)
    for call in (one.arm, one.fileno):
        with pytest.raises(OSError, match="Too many open files"):
            call()
    monkeypatch.undo()
    assert one.arm()
    other.xmit((1,))
    assert readable(one)


def test_an_exception_at_any_place_of_arm_loses_no_wake_up():
    made = []

    def prepare():
        made[:] = memenpsf.pair("<Q", capacity=4)
        assert made[0].arm()

    def call():
        made[0].arm(records=False, space=True)

    def check(_):
        one, other = made
        other.xmit((1,))
        with contextlib.suppress(memenpsf.Full):
            one.xmit_many([(1,)] * 9, 0)
        assert readable(one)
        one.close()
        other.close()

    assert at_every_place(prepare, call, interrupt, check) > 10


def test_an_exception_at_any_place_of_the_first_arm_leaves_nothing_behind():
    made = []

    def prepare():
        made[:] = memenpsf.pair("<Q", capacity=4)

    def check(_):
        one, other = made
        assert one.arm()
        other.xmit((1,))
        assert readable(one)
        one.close()
        other.close()

    def call():
        assert made[0].arm()

    assert at_every_place(prepare, call, interrupt, check) > 10


@pytest.mark.parametrize("name", ["recv_ctrl_msg", "xmit_many"])
def test_an_exception_at_any_place_of_a_call_that_reads_loses_no_wake_up(name):
    made = []
    call = {"recv_ctrl_msg": lambda side: side.recv_ctrl_msg(), "xmit_many": fill}[name]

    def prepare():
        made[:] = memenpsf.pair("<Q", capacity=4)
        assert made[0].arm()
        made[1].xmit((1,))

    def check(_):
        assert readable(made[0])
        for side in made:
            side.close()

    assert at_every_place(prepare, lambda: call(made[0]), interrupt, check) > 10


class OnAsyncio:
    """What a newcomer writes for asyncio: a task waits for an event that the loop sets."""

    def __init__(self, side):
        self.side, self.event = side, asyncio.Event()
        asyncio.get_running_loop().add_reader(side.fileno(), self.event.set)

    async def call(self, verb, **events):
        while (result := verb(self.side)) is None:
            if self.side.arm(**events):
                self.event.clear()
                await self.event.wait()
        return result

    def close(self):
        asyncio.get_running_loop().remove_reader(self.side.fileno())


def test_a_task_of_asyncio_receives_what_came_while_another_tried_to_send(sides):
    one, other = sides

    async def main():
        loop = OnAsyncio(one)
        answer = asyncio.create_task(loop.call(lambda side: side.recv(timeout=0)))
        await asyncio.sleep(0)
        other.xmit((99,))
        fill(one)
        assert await asyncio.wait_for(answer, 30) == (99,)
        loop.close()

    asyncio.run(main())


def test_tasks_that_receive_and_tasks_that_send_share_one_interface(sides):
    one, other = sides
    count = 300

    def sent(n):
        def send(side):
            with contextlib.suppress(memenpsf.Full):
                side.xmit((n,), timeout=0)
                return n
            return None

        return send

    async def send(loop, numbers):
        for n in numbers:
            await loop.call(sent(n), records=False, space=True)

    async def receive(loop, got):
        while len(got) < count:
            got.extend(await loop.call(lambda side: side.recv_vectored(timeout=0) or None))

    async def main():
        loops, got = [OnAsyncio(one), OnAsyncio(other)], [[], []]
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            for loop, its in zip(loops, got, strict=True):
                group.create_task(send(loop, range(0, count, 2)))
                group.create_task(send(loop, range(1, count, 2)))
                group.create_task(receive(loop, its))
        assert [sorted(its) for its in got] == [[(n,) for n in range(count)]] * 2
        for loop in loops:
            loop.close()

    asyncio.run(main())
    settle()
