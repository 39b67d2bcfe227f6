"""Control messages, beside the records, through every door."""

from __future__ import annotations

import pytest

from tests.kit.control import fill_messages
from tests.kit.doors import one_way_scenario, scenario


@one_way_scenario
async def test_control_messages_go_beside_the_records_in_order(door):
    async with door.pair(capacity=4) as (one, other):
        messages = [bytes((128 + n % 128, n % 256)) for n in range(200)]
        for n, message in enumerate(messages):
            await one.send_ctrl_msg(message, timeout=0)
            if n % 100 == 0:
                await one.xmit((n,))
        await other.send_ctrl_msg(bytearray(b"\xff\x00"))
        assert [await other.recv_ctrl_msg(None) for _ in messages] == messages
        assert await other.recv_ctrl_msg() is None
        assert await other.recv_vectored() == [(0,), (100,)]
        assert await one.recv_ctrl_msg(timeout=None) == b"\xff\x00"


@pytest.mark.parametrize("message", [b"", b"\x80", b"\x80\0\0", b"\x7f\0", b"\x01\0"])
@one_way_scenario
async def test_only_two_bytes_above_the_protocols_own_make_a_message(door, message):
    async with door.pair() as (one, other):
        with pytest.raises(ValueError, match="two bytes"):
            await one.send_ctrl_msg(message)
        with pytest.raises(TypeError):
            await one.send_ctrl_msg("\x80!")
        assert await other.recv_ctrl_msg() is None


@one_way_scenario
async def test_a_message_that_finds_no_room_is_full_and_those_before_it_arrive(door):
    async with door.pair() as (one, other):
        count = await fill_messages(one)
        assert count > 10
        for timeout in (0, 0.01):
            with door.raises("Full", match="no room"):
                await one.send_ctrl_msg(b"\xfe\0", timeout)
        assert [await other.recv_ctrl_msg(None) for _ in range(count)] == [
            bytes((200, n & 255)) for n in range(count)
        ]
        assert await other.recv_ctrl_msg() is None


@scenario
async def test_both_sides_full_of_messages_come_free_together(door):
    async with door.pair() as (one, other):
        counts = {one: await fill_messages(other), other: await fill_messages(one)}

        async def send_and_receive(side):
            await side.send_ctrl_msg(b"\xfe\0")  # reads meanwhile, or both would wait for ever
            return [await side.recv_ctrl_msg(timeout=None) for _ in range(counts[side] + 1)]

        async with door.tasks() as tasks:
            calls = [tasks.start(send_and_receive, side) for side in counts]
        for call in calls:
            assert set(call.result[:-1]) <= {bytes((200, n)) for n in range(256)}
            assert call.result[-1] == b"\xfe\0"


@scenario
async def test_many_tasks_send_messages_and_each_goes_once(door):
    async with door.pair() as (one, other):
        count = await fill_messages(one)
        async with door.tasks() as tasks:
            for n in range(20):
                tasks.start(one.send_ctrl_msg, bytes((250, n)))
            await tasks.blocked()
            got = [await other.recv_ctrl_msg(None) for _ in range(count + 20)]
        assert sorted(m[1] for m in got if m[0] == 250) == list(range(20))


@one_way_scenario
async def test_a_full_socket_does_not_hold_up_records(door):
    async with door.pair(capacity=1) as (one, other), door.tasks() as tasks:
        await fill_messages(one)

        async def receive():
            return [await other.recv() for _ in range(100)]

        receiving = tasks.start(receive)
        for n in range(100):
            await one.xmit((n,))
        while not receiving.done:
            await door.others()
        assert receiving.result == [(n,) for n in range(100)]
