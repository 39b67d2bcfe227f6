"""Records, one at a time and in batches, through every door."""

from __future__ import annotations

import contextlib
import itertools
import struct

import numpy as np
import pytest

import memenpsf
from tests.kit.doors import one_way_scenario, scenario
from tests.kit.sleeping import long_sleeps  # noqa: F401 (the fixture)

pytestmark = pytest.mark.usefixtures("long_sleeps")

TICK = np.dtype([("a", "<u8"), ("b", "<f8"), ("c", "<u4")])


def numbers(*bounds):
    return [(n,) for n in range(*bounds)]


@scenario
async def test_a_pair_moves_records_both_ways(door):
    async with door.pair("<QI", capacity=4) as (one, other):
        await one.xmit((1, 2))
        assert await other.xmit_many([(3, 4), (5, 6)]) == 2
        assert await other.recv() == (1, 2)
        assert await one.recv(timeout=0) == (3, 4)
        assert await one.recv_vectored() == [(5, 6)]
        assert await one.recv(timeout=0) is None
        assert await one.recv_vectored(timeout=0) == []
        assert (one.capacity, one.record) == (4, "<QI")


@pytest.mark.parametrize("receiving", [1, 2, 64])
@scenario
async def test_a_ringful_is_that_of_the_side_that_sends(door, receiving):
    async with door.pair(one={"capacity": receiving}, other={"capacity": 64}) as (one, other):
        assert await other.xmit_many(iter(numbers(64))) == 64
        assert await one.recv_vectored(10) == numbers(10)
        assert await one.recv_vectored() == numbers(10, 64)


@pytest.mark.parametrize("record", [1, bytes])
@one_way_scenario
async def test_how_much_is_taken_at_once_is_not_for_the_peer_to_choose(door, record):
    async with door.pair(record, capacity=1 << 22) as (one, other):
        assert await one.xmit_many([b"r"] * 65_540) == 65_540
        most = 65_536
        assert len(await other.recv_vectored()) == most
        assert len(await other.recv_vectored(65_540)) == 65_540 - most
        assert await one.xmit_many([b"r"] * 65_540) == 65_540
        assert len(await other.recv_vectored(65_540)) == 65_540


@pytest.mark.parametrize("size", [1, 17, 1 << 20])
@pytest.mark.parametrize("capacity", [1, 2, 4])
@scenario
async def test_records_of_any_size_survive_any_capacity(door, size, capacity):
    count = 8 if size > 17 else 300
    records = [bytes([n & 255]) * size for n in range(count)]
    async with door.pair(size, capacity=capacity) as (one, other), door.tasks() as tasks:
        assert one.capacity == capacity

        async def send_each():
            for record in records:
                await one.xmit(record)

        tasks.start(send_each)
        back = tasks.start(other.xmit_many, records)
        assert [await other.recv() for _ in records] == records
        received = []
        while len(received) < count:
            received += await one.recv_vectored()
        assert received == records
        while not back.done:
            await door.others()
        assert back.result == count
        assert await one.recv(timeout=0) is None


@one_way_scenario
async def test_a_record_that_does_not_fit_is_not_sent(door):
    async with door.pair("<B", capacity=8) as (one, other):
        for bad in ((256,), (1, 2), ("x",), 5, None, b"x", "bad"):
            with pytest.raises(memenpsf.BadRecord):
                await one.xmit(bad)
            with pytest.raises(memenpsf.BadRecord, match="record 1: "):
                await one.xmit_many([(1,), bad, (2,)])
        assert await other.recv(timeout=0) is None
        assert one.indices() == (0, 0)
        await one.xmit((1,))
        assert await other.recv() == (1,)


@pytest.mark.parametrize("patience", [0, 0.01])
@one_way_scenario
async def test_a_full_ring_is_said_and_drops_nothing(door, patience):
    async with door.pair(capacity=2) as (one, other):
        assert await one.xmit_many(iter(numbers(5)), patience) == 2
        for timeout in (0, 1e-9, 0.01):
            with door.raises("Full", match="no space"):
                await one.xmit((9,), timeout)
            assert await one.xmit_many([(9,)], timeout) == 0
        assert await other.recv_vectored() == numbers(2)
        await one.xmit((2,), timeout=0)
        assert await other.recv() == (2,)
        assert one.statistics().full > 0


@pytest.mark.parametrize(("limit", "gives"), [(0, 0), (1, 1), (3, 3), (5, 4), (None, 4)])
@one_way_scenario
async def test_a_batch_is_what_is_there_up_to_the_limit(door, limit, gives):
    async with door.pair(capacity=8) as (one, other):
        await one.xmit_many(iter(numbers(4)))
        assert await other.recv_vectored(limit) == numbers(gives)
        assert await other.recv_vectored(8, 0) == numbers(gives, 4)


@pytest.mark.parametrize(
    ("limit", "error"), [(-1, ValueError), (1.0, TypeError), ("1", TypeError), (True, TypeError)]
)
@one_way_scenario
async def test_a_limit_that_is_none_is_refused(door, limit, error):
    async with door.pair() as (_, other):
        with pytest.raises(error, match="limit"):
            await other.recv_vectored(limit)


@scenario
async def test_arrays_go_in_and_come_out_of_numpy_interfaces(door):
    array = np.zeros(50, TICK)
    array["a"] = np.arange(50)
    array["b"] = np.arange(50) / 2
    options = {"one": {"record": struct.Struct("<QdI")}, "other": {"record": TICK}}
    async with door.pair(capacity=64, **options) as (plain, arrays):
        await plain.xmit_many(iter(array.tolist()))
        got = await arrays.recv_vectored(20)
        assert type(got) is np.ndarray
        assert (got.dtype, got.shape) == (TICK, (20,))
        rest = await arrays.recv_vectored()
        assert np.array_equal(np.concatenate([got, rest]), array)
        got["a"] = 1  # ours to write, and nobody else's
        nothing = await arrays.recv_vectored(timeout=0)
        assert (nothing.dtype, nothing.shape) == (TICK, (0,))
        await plain.xmit((5, 1.0, 2))
        assert (await arrays.recv())["a"] == 5
        assert await arrays.xmit_many(array) == 50
        assert await plain.recv() == (0, 0.0, 0)
        assert await plain.recv_vectored() == array.tolist()[1:]


@scenario
async def test_many_senders_and_receivers_on_each_side_lose_nothing(door):
    senders, each = 2, 2000
    expected = [(who, n) for who in range(senders) for n in range(each)]
    async with door.pair("<BI", capacity=16) as sides:

        async def send(side, who):
            for n in range(0, each, 4):
                await side.xmit((who, n))
                assert await side.xmit_many([(who, n + k) for k in (1, 2, 3)]) == 3

        async def receive(side, vectored):
            got = []
            # EndOfStream: the other side may close a moment earlier than this one.
            with contextlib.suppress(memenpsf.Closed, memenpsf.EndOfStream):
                while True:
                    got += await side.recv_vectored() if vectored else [await side.recv()]
            return got

        async with door.tasks() as tasks:
            receiving = [
                [tasks.start(receive, side, vectored) for vectored in (False, True, False, True)]
                for side in sides
            ]
            for side in sides:
                for who in range(senders):
                    tasks.start(send, side, who)
            for side in sides:
                while side.statistics().received != senders * each:
                    await door.others()
                assert side.statistics().rescues == 0
            for side in sides:
                await side.aclose()
        for calls in receiving:
            streams = [call.result for call in calls]
            assert sorted(itertools.chain(*streams)) == expected
            for stream in streams:  # each receiver sees each sender's records in order
                for who in range(senders):
                    theirs = [n for w, n in stream if w == who]
                    assert theirs == sorted(theirs)


@scenario
async def test_who_waits_for_space_does_not_keep_others_from_its_records(door):
    async with door.pair(capacity=1) as (one, other), door.tasks() as tasks:
        await one.xmit((1,))
        sending = tasks.start(one.xmit, (2,))
        await tasks.blocked()
        receiving = tasks.start(one.recv)
        await tasks.blocked()
        await other.xmit((10,))
        while not receiving.done:
            await door.others()
        assert receiving.result == (10,)
        assert not sending.done
        assert await other.recv() == (1,)
        assert await other.recv() == (2,)


@scenario
async def test_who_stops_waiting_takes_nothing_back_from_those_that_wait_on(door):
    async with door.pair(capacity=1) as (one, other):
        async with door.tasks() as tasks:
            await one.xmit((0,))
            receiving = tasks.start(one.recv)
            sending = tasks.start(one.xmit, (1,))
            await tasks.blocked()
            assert await one.recv(timeout=0.01) is None
            with door.raises("Full"):
                await one.xmit((2,), timeout=0.01)
            await other.xmit((7,))
            assert await other.recv() == (0,)
        assert receiving.result == (7,)
        assert sending.result is None
        assert await other.recv() == (1,)
        assert one.statistics().rescues == 0  # or the clock has hidden a lost wake-up


@scenario
async def test_statistics_count_what_was_done(door):
    async with door.pair(capacity=4) as (one, other):
        assert one.statistics() == (0,) * 14
        await one.xmit_many(numbers(3))
        await other.recv()
        await other.xmit((9,))
        sent = one.statistics()
        assert (sent.sent, sent.taken, sent.received, sent.waiting) == (3, 1, 0, 1)
        received = other.statistics()
        assert (received.sent, received.taken, received.received, received.waiting) == (1, 0, 1, 2)
        assert sent.doorbells == received.doorbells == 0  # nobody slept
        await one.recv()
        async with door.tasks() as tasks:
            waiting = tasks.start(one.recv)
            await tasks.blocked()
            assert one.statistics().waits == 1
            await other.xmit((10,))
        assert waiting.result == (10,)
        assert other.statistics().doorbells == 1
        last = one.statistics()
    assert one.statistics() == last  # as it was when it was closed
    assert last.rescues == last.full == 0


@one_way_scenario
async def test_indices_count_the_outgoing_queue(door):
    async with door.pair(capacity=4) as (one, other):
        assert one.indices() == (0, 0)
        await one.xmit_many(numbers(3))
        await other.recv_vectored(2)
        assert one.indices() == (3, 2)
