"""Messages of any length, at every door."""

from __future__ import annotations

import ast
import functools
import json
import os
import random

import numpy as np
import pytest

import memenpsf
from ipcqueue import BadRecord, Encoded
from tests.kit.attached import numbers, region_of
from tests.kit.doors import one_way_scenario, scenario, trio_scenario

HEADER = 16  # bytes of a frame before its payload, and what frames are rounded to


@one_way_scenario
async def test_messages_of_all_sizes_arrive_by_every_verb(door):
    chance = random.Random(1)
    sent = [
        chance.randbytes(chance.choice([0, 1, 15, 16, 17, 1000, 4080, 5000, 300_000]))
        for _ in range(200)
    ]
    async with door.pair(bytes, capacity=4096) as (one, other), door.tasks() as tasks:

        async def send():
            for n, data in enumerate(sent):
                if n % 7 == 0:
                    assert await one.xmit_many([data]) == 1
                elif n % 5 == 0 and HEADER + len(data) <= 4096:
                    async with one.loan(len(data)) as loan:
                        loan.data[:] = data
                else:
                    await one.xmit(data)

        tasks.start(send)
        got = []
        while len(got) < len(sent):
            got.append(await other.recv())
            got += await other.recv_vectored(3) if len(got) < len(sent) else []
            async with other.borrow(2, timeout=0) as messages:
                got += [bytes(message.data) for message in messages]
            if len(got) < len(sent):
                got.append((await other.recv_message()).record)
        assert got == sent
        assert one.statistics().rescues == other.statistics().rescues == 0


@one_way_scenario
async def test_a_stream_of_messages_can_be_iterated_to_its_end(door):
    spec = Encoded(lambda value: json.dumps(value).encode(), json.loads)
    sent = [{"n": n, "text": "x" * (n * 200)} for n in range(16)]
    async with door.pair(spec, capacity=1 << 16) as (one, other):
        await one.xmit_many(sent)
        await one.aclose()
        assert [message async for message in other] == sent
        with door.raises("EndOfStream"):
            await other.recv_message()
        with door.raises("EndOfStream"):
            async with other.borrow():
                pass


@pytest.mark.parametrize("verb", ["xmit", "xmit_many"])
@pytest.mark.parametrize(
    ("size", "capacity"),
    [(8, 4096), (1000, 4096), (300_000, 4096), (5_000_000, 1 << 25)],
    ids=["small", "a quarter", "outside the ring", "copied in pieces"],
)
@one_way_scenario
async def test_a_message_is_encoded_once_however_long_it_waits(door, size, capacity, verb):
    encoded = []

    def encode(value):
        encoded.append(value)
        return bytes(size)

    async def send(value):
        await (one.xmit(value) if verb == "xmit" else one.xmit_many([value]))

    async with door.pair(Encoded(encode, len), capacity=capacity) as (one, other):
        with door.raises("Full"):
            while True:
                await one.xmit(len(encoded), timeout=0)
        assert encoded == list(range(len(encoded)))
        sent = len(encoded) - 1
        async with door.tasks() as tasks:
            for late in ("late", "later"):
                tasks.start(send, late)
                await tasks.blocked()
            for _ in range(sent + 2):
                assert await other.recv() == size
        assert encoded.count("late") == encoded.count("later") == 1


@one_way_scenario
async def test_a_record_is_encoded_once_however_long_it_waits(door):
    class Number:
        asked = 0

        def __index__(self):
            self.asked += 1
            return 7

    number = Number()
    async with door.pair("<Q", capacity=4) as (one, other), door.tasks() as tasks:
        await one.xmit_many([(n,) for n in range(4)])
        tasks.start(one.xmit, (number,))
        await tasks.blocked()
        assert [(await other.recv())[0] for _ in range(5)] == [0, 1, 2, 3, 7]
    assert number.asked == 1


@pytest.mark.parametrize("verb", ["recv", "recv_message", "recv_vectored"])
@one_way_scenario
async def test_a_message_that_cannot_be_decoded_is_named_and_loses_no_other(door, verb):
    def decode(data):
        if data.startswith(b"b"):
            raise ValueError(f"cannot stand {data}")
        return data

    async def take(side):
        if verb == "recv_vectored":
            return await side.recv_vectored(timeout=0)
        got = await getattr(side, verb)(timeout=0)
        return [got if verb == "recv" else got.record]

    async with door.pair(Encoded(bytes, decode), capacity=4096) as (one, other):
        await one.xmit_many([b"0", b"1", b"bad", b"b" * 5000, b"4", b"bad"])
        got, failed = [], []
        while len(got) + len(failed) < 6:
            try:
                got += await take(other)
            except memenpsf.DecodeFailed as error:
                failed.append(str(error))
                assert isinstance(error.__cause__, ValueError)
        assert got == [b"0", b"1", b"4"]
        assert [each.split(" could not be decoded")[0] for each in failed] == [
            "message 2 (3 bytes, tag 0)",
            "message 3 (5000 bytes, tag 0)",
            "message 5 (3 bytes, tag 0)",
        ]
        assert all("ValueError: cannot stand b'b" in each for each in failed)
        assert await other.recv(timeout=0) is None
        assert len(set(one.indices())) == 1


@scenario
async def test_the_limits_of_the_peer_hold_at_every_verb(door):
    limits = {"accept": memenpsf.Accept(message=1000, fds=1)}
    async with door.pair(bytes, accept=memenpsf.Accept(fds=2), other=limits) as (one, other):
        with pytest.raises(memenpsf.TooLarge, match=r"1001 bytes, .* at most 1000"):
            await one.xmit(bytes(1001))
        with pytest.raises(memenpsf.TooLarge, match="record 1: "):
            await one.xmit_many([b"", bytes(1001)])
        with pytest.raises(memenpsf.TooLarge):
            async with one.loan(1001):
                pass
        with numbers(1, 2) as files, region_of(b"x") as region:
            with pytest.raises(memenpsf.Unaccepted, match=r"2 descriptors .* at most 1"):
                await one.xmit(b"x", fds=files)
            with pytest.raises(memenpsf.Unaccepted, match=r"9 memory regions .* at most 8"):
                await one.xmit(b"x", regions=[region] * 9)
        with pytest.raises(memenpsf.BadRecord, match="expected an open descriptor"):
            await one.xmit(b"x", fds=[-1])
        await one.xmit(bytes(1000), timeout=0)
        assert await other.recv(timeout=0) == bytes(1000)
        assert await other.recv(timeout=0) is None


# -- None is no record ------------------------------------------------------------------------------


ANYTHING = Encoded(lambda value: repr(value).encode(), lambda data: ast.literal_eval(data.decode()))


@one_way_scenario
async def test_none_is_not_sent_as_it_says_that_nothing_came(door):
    async with door.pair(ANYTHING, accept=memenpsf.Accept(fds=1)) as (one, other):
        with open(os.devnull) as file:  # noqa: ASYNC230, PTH123
            for refused in (
                functools.partial(one.xmit, None, 0),
                functools.partial(one.xmit, None),
                functools.partial(one.xmit, None, 0, [file]),
            ):
                with pytest.raises(BadRecord, match=r"^None cannot be sent"):
                    await refused()
        for records in (["first", None], ("first", None), iter(["first", None])):
            with pytest.raises(BadRecord, match=r"^record 1: None cannot be sent"):
                await one.xmit_many(records, 0)
        assert await other.recv(0) is None
        await one.xmit("next")
        assert await other.recv() == "next"


@trio_scenario
async def test_none_is_not_sent_by_the_words_of_trio(door):
    async with door.pair(ANYTHING) as (one, other):
        with pytest.raises(BadRecord, match=r"^None cannot be sent"):
            await one.send(None)
        with pytest.raises(BadRecord, match=r"^None cannot be sent"):
            one.xmit_nowait(None)
        assert await other.recv(0) is None


@pytest.mark.parametrize("timeout", [0, 0.001])
@one_way_scenario
async def test_a_default_tells_that_nothing_came_from_any_value(door, timeout):
    nothing = object()
    values = [0, False, "", b"", (), [], {}, 0.0, "None"]
    async with door.pair(ANYTHING) as (one, other):
        assert await other.recv(timeout, default=nothing) is nothing
        assert await other.recv(timeout, default=0) == 0
        for value in values:
            await one.xmit(value)
            got = await other.recv(timeout, default=nothing)
            assert got is not nothing
            assert got == value
            assert type(got) is type(value)
        assert await other.recv(timeout, default=nothing) is nothing


@pytest.mark.parametrize(
    ("spec", "record"),
    [(1, b"\0"), ("<?", (False,)), (np.dtype("?"), np.False_), (np.dtype("u1"), 0), (bytes, b"")],
    ids=str,
)
@one_way_scenario
async def test_a_default_is_no_record_of_any_kind(door, spec, record):
    nothing = object()
    async with door.pair(spec) as (one, other):
        await one.xmit(record)
        assert await other.recv(0, default=nothing) == record
        assert await other.recv(0, default=nothing) is nothing
