"""What sets promise to the tasks of an event loop."""

from __future__ import annotations

import asyncio
import socket

import pytest

import memenpsf
import memenpsf.asyncio
import memenpsf.trio
from memenpsf.asyncio._waiting import TURN
from tests.kit.doors import Asyncio, task_scenario


@pytest.mark.parametrize("verb", ["recv", "recv_vectored", "anext"])
@task_scenario
async def test_cancelling_at_every_place_loses_nothing_and_doubles_nothing(door, verb):
    async def take(readers):
        if verb == "anext":
            return [(await anext(readers))[1]]
        got = await getattr(readers, verb)()
        return [got[1]] if verb == "recv" else [each for _, batch in got for each in batch]

    async with door.pair() as (here, there), door.receiver_set(here) as readers:
        sent, got, cancelled = 0, [], 0
        for before in range(4):
            for after in range(6):
                async with door.tasks() as group:
                    taking = group.start(take, readers)
                    for _ in range(before):
                        await door.others()
                    there.xmit_nowait((sent,))
                    sent += 1
                    for _ in range(after):
                        await door.others()
                    taking.cancel()
                cancelled += not taking.done
                if taking.done:
                    got += taking.result
        while (left := await readers.recv(timeout=0)) is not None:
            got.append(left[1])
        assert got == [(n,) for n in range(sent)]
        assert 0 < cancelled < sent


@task_scenario
async def test_a_large_message_does_not_keep_others_waiting(door):
    size = 64 << 20
    options = {"capacity": 4096, "accept": memenpsf.Accept(message=size)}
    async with (
        door.pair(bytes, **options) as (large, to_large),
        door.pair(bytes, **options) as (small, to_small),
        door.receiver_set(large, small) as readers,
    ):
        await to_large.xmit(bytes(size))
        await to_small.xmit(b"small")
        assert await readers.recv() == (small, b"small")
        await to_small.xmit(b"again")
        assert await readers.recv_vectored() == [(small, [b"again"])]
        source, record = await readers.recv()
        assert source is large
        assert record == bytes(size)


@task_scenario
async def test_others_run_while_a_large_message_is_copied(door):
    size = 64 << 20
    turns = 0

    async def turn():
        nonlocal turns
        while not receiving.done:
            turns += 1
            await door.others()

    options = {"capacity": 4096, "accept": memenpsf.Accept(message=size)}
    async with door.pair(bytes, **options) as (here, there), door.receiver_set(here) as readers:
        await there.xmit(bytes(size))
        async with door.tasks() as group:
            receiving = group.start(readers.recv)
            group.start(turn)
        assert receiving.result == (here, bytes(size))
        assert turns > 4


@task_scenario
async def test_a_listener_is_left_to_the_task_that_accepts(door, tmp_path, monkeypatch):
    async with await door.listen(tmp_path / "here", "<Q") as listener:
        async with door.tasks() as group:
            accepting = group.start(listener.accept)
            await group.blocked()
            calls = []
            for name in ("turn", "work"):
                monkeypatch.setattr(listener._pending, name, lambda: calls.append(1))
            async with door.receiver_set(listener) as readers:
                assert await readers.recv(timeout=0.001) is None
            assert calls == []
            accepting.cancel()


@task_scenario
async def test_members_have_had_their_handshake(door):
    here, there = socket.socketpair()
    async with door.offers.Interface(here, "<Q") as interface, door.receiver_set() as readers:
        with there, door.raises("Closed", match="no handshake"):
            readers.add(interface)


@task_scenario
async def test_members_are_of_this_door(door):
    other = memenpsf.asyncio if door.offers is memenpsf.trio else memenpsf.trio
    one, two = memenpsf.pair("<Q")
    here, there = socket.socketpair()
    stranger = other.Interface(here, "<Q")
    with one, two, there:
        async with door.receiver_set() as readers:
            for wrong in (one, stranger):
                with pytest.raises(TypeError, match=f"listeners of {door.offers.__name__}"):
                    readers.add(wrong)
    stranger.close()


def test_others_run_while_a_set_need_not_wait():
    async def main():
        ticks = 0

        async def tick():
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        door = Asyncio()
        async with door.pair(capacity=4096) as (here, there), door.receiver_set(here) as readers:
            await there.xmit_many([(n,) for n in range(4096)])
            ticking = asyncio.ensure_future(tick())
            for n in range(4096):
                assert await readers.recv() == (here, (n,))
            ticking.cancel()
        assert ticks >= 4096 // TURN // 2

    asyncio.run(main())


def test_a_set_belongs_to_one_loop():
    readers = None

    async def first():
        nonlocal readers
        readers = memenpsf.asyncio.ReceiverSet()
        assert await readers.recv(timeout=0.001) is None

    async def second():
        with pytest.raises(RuntimeError, match="another event loop"):
            await readers.recv(timeout=1)
        await readers.aclose()

    asyncio.run(first())
    asyncio.run(second())
