"""What every side counts: records or messages, and their bytes, whatever way they take."""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

import numpy as np
import pytest

import ipcqueue
import memenpsf
from ipcqueue._ring import frame_receiver
from memenpsf import Accept, Message
from tests.kit.doors import one_way_scenario, scenario
from tests.kit.hostile import OUT_OF_LINE, TAIL, Hostile, poke

OUT = ("sent", "taken", "sent_bytes", "taken_bytes")
IN = ("received", "waiting", "received_bytes", "waiting_bytes")


def out(side):
    now = side.statistics()._asdict()
    return tuple(now[field] for field in OUT)


def into(side):
    now = side.statistics()._asdict()
    return tuple(now[field] for field in IN)


class Tick(NamedTuple):
    number: memenpsf.u64


# A record spec, records, and the bytes of shared memory that each takes.
SHAPES = {
    "bytes of a size": (8, [b"12345678"] * 5, [8] * 5),
    "tuples": ("<QQ", [(1, 2)] * 5, [16] * 5),
    "objects": (Tick, [Tick(1)] * 5, [8] * 5),
    "arrays": (np.dtype("u4"), np.arange(5, dtype="u4"), [4] * 5),
    "messages": (bytes, [b"", b"1", b"x" * 16, b"x" * 17, b""], [16, 32, 32, 48, 16]),
    "tagged": (Message, [Message(b"x", 7, 1)] * 5, [32] * 5),
    "encoded": (memenpsf.Encoded(str.encode, lambda data: str(data, "ascii")), ["x"] * 5, [32] * 5),
    "outside": (bytes, [b"x" * 5000] * 5, [32 + 5000] * 5),
    "both": (bytes, [b"x", b"x" * 5000, b"", b"x" * 6000, b"y"], [32, 5032, 16, 6032, 32]),
}


@pytest.mark.parametrize("shape", SHAPES)
@one_way_scenario
async def test_records_and_bytes_of_every_shape(door, shape):
    spec, records, sizes = SHAPES[shape]
    async with door.pair(spec, capacity=8 if sizes[0] < 16 and spec is not bytes else 8192) as (
        one,
        other,
    ):
        done = 0
        for way in ("xmit", "xmit_many"):
            if way == "xmit":
                for record in records:
                    await one.xmit(record)
            else:
                assert await one.xmit_many(records) == 5
            total = sum(sizes)
            sent, spent = done + 5, total * (1 + (way == "xmit_many"))
            assert out(one) == (sent, done, spent, spent - total)
            assert into(other) == (done, 5, spent - total, total)
            await other.recv()
            assert out(one) == (sent, done + 1, spent, spent - total + sizes[0])
            assert into(other) == (done + 1, 4, spent - total + sizes[0], total - sizes[0])
            await other.recv_vectored(2)
            assert into(other)[:2] == (done + 3, 2)
            await other.recv_message()
            rest = await other.recv_vectored()
            assert len(rest) == 1
            done += 5
            assert out(one) == (done, done, spent, spent)
            assert into(other) == (done, 0, spent, 0)


@one_way_scenario
async def test_loans_and_borrowings_count(door):
    async with door.pair(bytes) as (one, other):
        async with one.loan(100):
            assert out(one) == (0, 0, 0, 0)
        await one.xmit(b"x" * 500_000)  # outside the ring
        assert out(one) == (2, 0, 128 + 500_032, 0)
        async with other.borrow() as borrowed:
            assert len(borrowed) == 2
            assert into(other) == (0, 2, 0, 128 + 500_032)
            borrowed.cancel()
        assert into(other) == (0, 2, 0, 128 + 500_032)
        async with other.borrow():
            pass
        assert into(other) == (2, 0, 128 + 500_032, 0)
        assert out(one) == (2, 2, 128 + 500_032, 128 + 500_032)


@one_way_scenario
async def test_a_message_of_several_pieces_counts_once(door):
    async with door.pair(bytes) as (one, other):
        await one.xmit(b"x" * (20 << 20))
        assert into(other) == (0, 1, 0, (20 << 20) + 32)
        assert len(await other.recv()) == 20 << 20
        assert into(other) == (1, 0, (20 << 20) + 32, 0)


@one_way_scenario
async def test_what_has_descriptors_counts(door):
    async with door.pair(bytes, accept=Accept(fds=1)) as (one, other):
        await one.xmit(b"x", fds=[0])
        await one.xmit(b"y")
        assert out(one) == (2, 0, 64, 0)
        assert into(other) == (0, 2, 0, 64)
        message = await other.recv_message()
        message.close()
        assert into(other) == (1, 1, 32, 32)


@pytest.mark.parametrize("spec", [8, bytes])
@scenario
async def test_what_a_loop_took_ahead_counts_as_taken(door, spec):
    async with door.pair(spec) as (one, other):
        await one.xmit_many([b"12345678"] * 3)
        async for record in other:
            assert record == b"12345678"
            assert into(other)[:2] in {(3, 0), (1, 2)}  # a loop of Trio takes one at a time
            break
        assert len(await other.recv_vectored()) == 2
        assert into(other)[:2] == (3, 0)


@one_way_scenario
async def test_after_the_end_they_stay(door):
    async with door.pair(bytes) as (one, other):
        await one.xmit_many([b"x"] * 4)
        await other.recv()
        one.finish()
        assert out(one) == (4, 1, 128, 32)
        await other.recv()
        assert out(one) == (4, 2, 128, 64)
        assert into(other) == (2, 2, 64, 64)
    assert out(one) == (4, 2, 128, 64)
    assert into(other) == (2, 2, 64, 64)


def test_of_messages_that_wait_so_many_are_counted(monkeypatch):
    monkeypatch.setattr(frame_receiver, "MAX_TALLIED", 3)
    sender, receiver = ipcqueue.pair(bytes)
    with sender, receiver:
        sender.push_many([b"x"] * 5)
        assert into(receiver) == (0, 3, 0, 160)
        assert out(sender) == (5, 0, 160, 0)


def test_a_forked_child_has_no_statistics_of_its_parents():
    one, other = memenpsf.pair(bytes)
    with one, other:
        child = os.fork()
        if child == 0:
            try:
                one.statistics()
            except memenpsf.ForkedUse:
                os._exit(7)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


@pytest.fixture
def it():
    hostile = Hostile()
    yield hostile
    hostile.close()


def test_a_frame_that_cannot_be_ends_the_count(it):
    it.frame(b"x")
    it.frame(size=1 << 20)
    it.frame(b"y")
    assert into(it.victim) == (0, 1, 0, 32 + 16 + 32)
    assert it.victim.recv() == b"x"
    assert into(it.victim) == (1, 0, 32, 16 + 32)


def test_half_a_header_is_no_message(it):
    it.frame(b"x")
    it.publish(it.head + 8)
    assert into(it.victim) == (0, 1, 0, 40)


def test_a_message_outside_without_a_place_has_no_bytes(it):
    it.frame(b"x", flags=OUT_OF_LINE)
    assert into(it.victim) == (0, 1, 0, 32)


def test_what_a_peer_says_of_messages_outside_is_only_shown(it):
    it.frame(struct.pack("=QII", (1 << 64) - 1, 0, 0), flags=OUT_OF_LINE)
    it.frame(struct.pack("=QII", 2, 0, 0), flags=OUT_OF_LINE)
    assert into(it.victim) == (0, 2, 0, 65)  # it wraps


@pytest.mark.parametrize("tail", [1, 8, 17, 31, 33])
def test_a_tail_between_frames_ends_the_count(it, tail):
    it.victim.xmit(b"x")
    it.victim.xmit(b"y")
    poke(it.endpoint, TAIL, struct.pack("=Q", tail))
    sent, taken, sent_bytes, taken_bytes = out(it.victim)
    assert (sent, sent_bytes, taken_bytes) == (2, 64, tail)
    assert 0 <= taken <= 2


def test_a_tail_beyond_what_was_sent_is_not_believed(it):
    it.victim.xmit(b"x")
    poke(it.endpoint, TAIL, struct.pack("=Q", 1 << 40))
    assert out(it.victim) == (1, 0, 32, 0)
