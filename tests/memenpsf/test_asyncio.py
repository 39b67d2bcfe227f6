"""What memenpsf.asyncio alone promises: turns, cancelling at every place, one event loop."""

from __future__ import annotations

import asyncio
import os
import socket
import threading

import pytest
import trio

import memenpsf
import memenpsf.asyncio
from memenpsf.asyncio import _hub
from memenpsf.asyncio._waiting import Waiting
from tests.kit import doors

LOOPS = {"asyncio": asyncio.new_event_loop}
if doors.uvloop is not None:
    LOOPS["uvloop"] = doors.uvloop.new_event_loop


@pytest.fixture(params=LOOPS.values(), ids=LOOPS)
def run(request):
    """Run a coroutine in each kind of loop."""

    def run(coroutine):
        with asyncio.Runner(loop_factory=request.param) as runner:
            return runner.run(coroutine)

    return run


class Pair:
    """Two sides that have been introduced."""

    def __init__(self, record="<Q", **options):
        self._arguments = record, options

    async def __aenter__(self):
        record, options = self._arguments
        self.sides = [memenpsf.asyncio.Interface(s, record, **options) for s in socket.socketpair()]
        await asyncio.gather(*(side.do_handshake() for side in self.sides))
        return self.sides

    async def __aexit__(self, *_):
        for side in self.sides:
            side.close()


TURN = 64


def test_what_can_be_done_at_once_does_not_suspend(run):
    async def main():
        async with Pair() as (one, other):
            for verb in (one.xmit((1,)), other.recv(), one.xmit_many([(1,)] * 3)):
                with pytest.raises(StopIteration):
                    verb.send(None)
            verb = other.recv_vectored()
            with pytest.raises(StopIteration) as done:
                verb.send(None)
            assert done.value.value == [(1,)] * 3

    run(main())


@pytest.mark.parametrize("way", ["xmit", "recv", "both", "for", "xmit_many", "loan"])
def test_others_run_after_so_many_calls_that_need_not_wait(run, way):
    async def main():
        async with Pair(capacity=4096) as (one, other):
            await one.xmit((0,))
            await other.recv()

            async def go(count):
                if way in ("recv", "for"):
                    for n in range(count):
                        one.xmit_nowait((n,))
                if way == "for":
                    taken = 0
                    async for _ in other:
                        taken += 1
                        if taken == count:
                            return
                for n in range(count):
                    if way in ("xmit", "both"):
                        await one.xmit((n,))
                    if way in ("recv", "both"):
                        assert await other.recv() == (n,)
                    if way == "xmit_many":
                        await one.xmit_many([(n,)])
                    if way == "loan":
                        async with one.loan(1):
                            pass

            seen = 0

            async def others():
                nonlocal seen
                while True:
                    seen += 1
                    await asyncio.sleep(0)

            beside = asyncio.ensure_future(others())
            await asyncio.sleep(0)
            for count in (TURN * 4, TURN * 8):
                before = seen
                await go(count)
                assert count // TURN - 1 <= seen - before <= 2 * count // TURN + 2
            beside.cancel()

    run(main())


@pytest.mark.parametrize("way", ["recv_vectored", "xmit_many"])
def test_others_run_after_so_many_records_in_batches(run, way):
    async def main():
        async with Pair(capacity=4 * TURN) as (one, other):
            await one.xmit((0,))
            await other.recv()
            batch, turns = [(n,) for n in range(TURN)], 0

            async def others():
                nonlocal turns
                while True:
                    turns += 1
                    await asyncio.sleep(0)

            beside = asyncio.ensure_future(others())
            for _ in range(20):
                if way == "xmit_many":
                    await one.xmit_many(batch)
                    for _ in batch:
                        assert next(iter(other._endpoint.ready)) is not None
                else:
                    for record in batch:
                        one.xmit_nowait(record)
                    assert await other.recv_vectored() == batch
            assert turns >= 19
            beside.cancel()

    run(main())


@pytest.mark.parametrize("verb", ["recv", "recv_vectored", "recv_message", "borrow", "anext"])
def test_cancelling_at_every_place_loses_nothing_and_doubles_nothing(run, verb):
    """The task is cancelled after each number of turns of the loop, before and after it is woken."""

    async def take(side):
        if verb == "anext":
            return [await anext(side)]
        if verb == "borrow":
            async with side.borrow() as borrowed:
                return [bytes(message.data) for message in borrowed]
        got = await getattr(side, verb)()
        return got if verb == "recv_vectored" else [getattr(got, "record", got)]

    async def main():
        async with Pair(bytes, capacity=4096) as (one, other):
            sent, got, cancelled = 0, [], 0
            for before in range(4):
                for after in range(6):
                    task = asyncio.ensure_future(take(other))
                    for _ in range(before):
                        await asyncio.sleep(0)
                    await one.xmit(b"%d" % sent)
                    sent += 1
                    for _ in range(after):
                        await asyncio.sleep(0)
                    task.cancel()
                    try:
                        got += await task
                    except asyncio.CancelledError:
                        cancelled += 1
                    assert not other._waiting._sleepers
                    events = other._endpoint.wire.events_fileno()
                    assert not asyncio.get_running_loop().remove_reader(events)
                    assert not other._endpoint.waiters.reading
                    assert not any(other._endpoint.waiters.counts)
            while (record := await other.recv(timeout=0)) is not None:
                got.append(record)
            assert got == [b"%d" % n for n in range(sent)]
            assert 0 < cancelled < sent

    run(main())


def test_cancelling_who_waits_for_space_publishes_nothing_or_all(run):
    async def main():
        async with Pair(capacity=1) as (one, other):
            got, sent = [], []
            for n in range(40):
                task = asyncio.ensure_future(one.xmit((n,)))
                for _ in range(n % 5):
                    await asyncio.sleep(0)
                if n % 3:
                    got += await other.recv_vectored(timeout=0)
                for _ in range(n % 4):
                    await asyncio.sleep(0)
                task.cancel()
                try:
                    await task
                    sent.append((n,))
                except asyncio.CancelledError:
                    pass
            got += await other.recv_vectored(timeout=0)
            assert got == sent
            assert 0 < len(sent) < 40

    run(main())


@pytest.mark.parametrize("way", ["timeout", "wait_for"])
def test_the_timeouts_of_asyncio_lose_nothing(run, way):
    async def main():
        async with Pair() as (one, other):
            with pytest.raises(TimeoutError):
                if way == "wait_for":
                    await asyncio.wait_for(other.recv(), 0.001)
                else:
                    async with asyncio.timeout(0.001):
                        await other.recv()
            await one.xmit((7,))
            assert await other.recv() == (7,)

    run(main())


def test_a_sender_without_space_does_not_take_the_doorbell_of_a_reader(run):
    async def main():
        async with Pair(capacity=4) as (one, other):
            answer = asyncio.create_task(one.recv())
            await asyncio.sleep(0)
            sending = [asyncio.create_task(one.xmit((n,))) for n in range(9)]
            await asyncio.sleep(0)
            await other.xmit((99,))
            assert await answer == (99,)
            assert sorted([await other.recv() for _ in sending]) == [(n,) for n in range(9)]
            await asyncio.gather(*sending)

    run(main())


@pytest.mark.deadline(10)
def test_ctrl_c_as_one_sleeper_is_woken_leaves_the_others_of_this_turn_awake(run, monkeypatch):
    """The hub hears of each of them once, and asyncio.Runner cancels in the signal handler."""
    sleeping = []

    class Struck(asyncio.Future):
        def done(self):  # with Ctrl-C behind it
            was = super().done()
            if not was and sleeping:
                self.cancel()
            return was

    async def main():
        loop = asyncio.get_running_loop()
        async with Pair() as (one, to_one), Pair() as (two, to_two):
            monkeypatch.setattr(loop, "create_future", lambda: Struck(loop=loop))
            tasks = [asyncio.create_task(each.recv()) for each in (one, two)]
            await asyncio.sleep(0)
            monkeypatch.undo()
            sleeping[:] = tasks
            to_one.xmit_nowait((1,))
            to_two.xmit_nowait((2,))
            got = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
            assert got == [(1,), (2,)]

    run(main())


def test_closing_wakes_all_who_wait(run):
    async def main():
        async with Pair(capacity=1) as (one, _):
            await one.xmit((0,))
            waiting = [
                asyncio.create_task(verb)
                for verb in (one.recv(), one.recv(), one.xmit((1,)), one.recv_ctrl_msg(None))
            ]
            await asyncio.sleep(0.001)
            one.close()
            ended = await asyncio.gather(*waiting, return_exceptions=True)
            assert {type(error) for error in ended} == {memenpsf.Closed}

    run(main())


@pytest.mark.parametrize("verb", ["recv", "do_handshake"])
def test_who_was_woken_by_close_leaves_the_next_user_of_a_number_alone(run, verb):
    async def wait_and_close(one):
        """Return the number of what a task has waited for, and that task."""
        waiting = asyncio.create_task(getattr(one, verb)())
        await asyncio.sleep(0.001)
        wire = one._endpoint.wire if verb == "recv" else None
        number = wire.events_fileno() if wire else one._opening.fileno()
        one.close()
        return number, waiting

    async def main():
        loop, read = asyncio.get_running_loop(), asyncio.Event()
        here, there = socket.socketpair()
        async with Pair() as (one, _):
            if verb == "do_handshake":
                one = memenpsf.asyncio.Interface(here, "<Q")  # noqa: PLW2901
            number, waiting = await wait_and_close(one)
            reader, writer = os.pipe()
            if reader != number:
                os.dup2(reader, number)
                os.close(reader)
            loop.add_reader(number, read.set)
            with pytest.raises(memenpsf.Closed):
                await waiting
            os.write(writer, b"x")
            await asyncio.wait_for(read.wait(), 5)
            loop.remove_reader(number)
            os.close(number)
            os.close(writer)
        there.close()
        if verb == "recv":
            here.close()

    run(main())


def test_an_interface_belongs_to_the_loop_in_which_it_waited_first(run):
    async def make():
        pair = Pair()
        return pair, await pair.__aenter__()

    async def use(side):
        with pytest.raises(RuntimeError, match="another event loop, which is closed"):
            await side.recv()

    pair, (_, other) = run(make())
    with asyncio.Runner() as runner:
        runner.run(use(other))
    for side in pair.sides:
        side.close()


def test_another_loop_is_told():
    here, there = socket.socketpair()

    async def main():
        side = memenpsf.asyncio.Interface(here, "<Q")
        with pytest.raises(RuntimeError, match=r"works under asyncio.run\(\).* memenpsf.trio"):
            await side.do_handshake()
        side.close()

    with there:
        trio.run(main)


def test_a_forked_child_that_closes_leaves_the_sleepers_of_its_parent_alone(run):
    async def main():
        async with Pair() as (one, other):
            reading = asyncio.ensure_future(other.recv())
            for _ in range(4):
                await asyncio.sleep(0)
            child = os.fork()
            if child == 0:
                other.close()
                os._exit(0)
            os.waitpid(child, 0)  # noqa: ASYNC222
            await one.xmit((1,))
            assert await reading == (1,)
            assert await asyncio.wait_for(other.recv(timeout=0.001), 10) is None

    run(main())


def test_the_loop_polls_nothing_once_the_last_connection_is_closed(run):
    async def main():
        async with Pair() as one, Pair() as other:
            for _, side in (one, other):
                assert await side.recv(timeout=0.001) is None
            assert len(_hub._hubs) == 1
        assert _hub._hubs == {}

    run(main())


@pytest.mark.deadline(10)
def test_what_another_thread_forgets_leaves_the_loop_as_well(run):
    async def main():
        waitings = [Waiting()]
        waitings[0]._hub = _hub.Hub.entered(asyncio.get_running_loop())
        thread = threading.Thread(target=waitings.clear)
        thread.start()
        thread.join()
        assert len(_hub._hubs) == 1
        while _hub._hubs:  # noqa: ASYNC110 (there is none)
            await asyncio.sleep(0)

    run(main())


def test_a_forked_child_may_only_close():
    async def main():
        async with Pair() as (one, other):
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    one.xmit_nowait((1,))
                except memenpsf.ForkedUse:
                    status = 0
                finally:
                    os._exit(status)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0  # noqa: ASYNC222
            await one.xmit((2,))
            assert await other.recv() == (2,)

    asyncio.run(main())


def test_a_loop_that_ends_with_a_task_that_waits_leaves_nothing(program):
    child = program(
        "import asyncio, gc, memenpsf.asyncio, os, socket\n"
        "async def main():\n"
        "    here, there = socket.socketpair()\n"
        "    one, other = (memenpsf.asyncio.Interface(s, '<Q') for s in (here, there))\n"
        "    await asyncio.gather(one.do_handshake(), other.do_handshake())\n"
        "    asyncio.create_task(other.recv())\n"
        "    await asyncio.sleep(0)\n"
        "    one.close()\n"
        "    return other\n"
        "other = asyncio.run(main())\n"
        "other.close()\n"
        "print('closed', other._waiting._sleepers)\n"
    )
    assert (child.communicate()[0], child.returncode) == ("closed {}\n", 0)


BROKEN_OFF = """
import asyncio, gc, memenpsf.asyncio, os, socket, sys, warnings
from memenpsf.asyncio import _hub
async def main():
    one, other = (memenpsf.asyncio.Interface(s, '<Q') for s in socket.socketpair())
    await asyncio.gather(one.do_handshake(), other.do_handshake())
    readers = memenpsf.asyncio.ReceiverSet([one])
    tasks = [asyncio.create_task(each.recv()) for each in (other, readers)]
    await asyncio.sleep(0.001)
    return other, readers, one, tasks
def broken_off():
    loop.set_exception_handler(lambda *_: None)  # for tasks that are never done
    made = loop.run_until_complete(main())
    loop.close()
    return made
def opened():
    gc.collect()
    return sorted(os.listdir('/proc/self/fd'))
"""


@pytest.fixture(params=LOOPS)
def end_of_loop(request, program):
    """Run a program that has broken_off(): tasks wait for what it returns, in a closed loop."""
    make = "asyncio.new_event_loop()"
    if request.param == "uvloop":
        make = "__import__('uvloop').new_event_loop()"
    return lambda text: program(f"{BROKEN_OFF}\nloop = {make}\n{text}")


def test_what_a_task_of_a_closed_loop_waits_for_can_be_closed(end_of_loop):
    child = end_of_loop(
        "*ends, tasks = broken_off()\n"
        "for each in ends: each.close()\n"
        "print([repr(each).rpartition('>')[0].split(': ')[1][:6] for each in ends])\n"
    )
    assert child.communicate()[0] == "['closed', 'closed', 'closed']\n"


def test_a_closed_loop_keeps_nothing_that_its_tasks_waited_for(end_of_loop):
    child = end_of_loop(
        "warnings.simplefilter('ignore')\n"
        "gc.disable()\n"
        "before = opened()\n"
        "broken_off()\n"
        "del loop\n"
        "print(len(opened()) <= len(before), len(_hub._hubs))\n"
    )
    assert child.communicate()[0] == "True 0\n"


def test_importing_the_package_imports_no_loop(program):
    child = program("import memenpsf, sys; print('asyncio' in sys.modules)")
    assert child.communicate()[0] == "False\n"


def test_a_queue_that_is_shut_down_ends_the_run_loop():
    if not hasattr(asyncio, "QueueShutDown"):
        pytest.skip("came with Python 3.13")

    async def main():
        here, there = socket.socketpair()
        source, sink = asyncio.Queue(), asyncio.Queue()
        source.put_nowait((1,))
        source.shutdown()
        async with memenpsf.asyncio.Interface(there, "<Q") as peer:
            loop = asyncio.create_task(memenpsf.asyncio.run("", 4, 0, here, source, sink, "<Q"))
            assert await peer.recv() == (1,)
            with pytest.raises(memenpsf.EndOfStream):
                await peer.recv()
            assert isinstance((await loop).cause, memenpsf.Closed)

    asyncio.run(main())
