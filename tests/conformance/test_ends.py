"""How a connection ends, for whoever waits and for whoever calls afterwards, at every door."""

from __future__ import annotations

import os
import socket

import pytest

import memenpsf
from tests.kit.control import fill_messages
from tests.kit.doors import one_way_scenario, scenario


def numbers(*bounds):
    return [(n,) for n in range(*bounds)]


def verbs_that_wait(side):
    """Calls that wait on a side whose ring and socket are full, and which is sent nothing."""
    return {
        "recv": side.recv,
        "recv again": side.recv,
        "recv_vectored": side.recv_vectored,
        "recv_ctrl_msg": lambda: side.recv_ctrl_msg(None),
        **verbs_that_send(side),
    }


def verbs_that_send(side):
    return {
        "xmit": lambda: side.xmit((1,)),
        "xmit_many": lambda: side.xmit_many([(1,)]),
        "await_space": side.await_space,
        "send_ctrl_msg": lambda: side.send_ctrl_msg(b"\xfe!"),
        "send_ctrl_msg again": lambda: side.send_ctrl_msg(b"\xfe!"),
    }


async def iterated(side):
    return [record async for record in side]


@one_way_scenario
async def test_iteration_ends_where_the_peer_ends(door):
    async with door.pair(capacity=4) as (one, other):
        await one.xmit_many(numbers(3))
        await one.aclose()
        assert await iterated(other) == numbers(3)
        assert await iterated(other) == []
        for verb in (other.recv, other.recv_vectored, other.recv_ctrl_msg):
            with door.raises("EndOfStream"):
                await verb()
            with door.raises("EndOfStream"):
                await verb(timeout=0)


@scenario
async def test_sending_to_a_side_that_has_ended_says_so_at_every_verb(door):
    async with door.pair(capacity=4) as (one, other):
        await one.xmit((1,))
        await one.aclose()
        assert await iterated(other) == [(1,)]
        for verb in verbs_that_send(other).values():
            with door.raises("ReceiverGone"):
                await verb()


@scenario
async def test_iteration_raises_what_is_no_good_end(door):
    async with door.pair(capacity=4) as (one, other):
        await one.xmit((1,))
        os.write(one._endpoint.fileno(), b"\x4d\x00")
        with door.raises("CorruptPeer", match="opcode 77"):
            await iterated(other)


@one_way_scenario
async def test_messages_sent_before_the_end_are_received_before_the_end(door):
    async with door.pair(capacity=8) as (one, other):
        await one.xmit_many(numbers(5))
        await one.send_ctrl_msg(b"\x80!")
        await one.aclose()
        assert await other.recv_ctrl_msg(timeout=None) == b"\x80!"
        with door.raises("EndOfStream"):
            await other.recv_ctrl_msg()
        assert await other.recv() == (0,)
        assert await iterated(other) == numbers(1, 5)


@one_way_scenario
async def test_one_that_has_finished_sees_how_much_the_peer_takes(door):
    async with door.pair(capacity=8) as (one, other):
        await one.xmit_many(numbers(3))
        one.finish()
        assert one.indices() == (3, 0)
        for taken in range(1, 4):
            await other.recv()
            assert one.indices() == (3, taken)
            assert one.statistics()[:2] == (3, taken)
        await one.aclose()
        with door.raises("Closed"):
            one.indices()
        assert one.statistics()[:2] == (3, 3)


@scenario
async def test_so_does_one_whose_peer_has_finished(door):
    async with door.pair(capacity=8) as (one, other):
        await one.xmit_many(numbers(3))
        other.finish()
        with door.raises("EndOfStream"):
            await one.recv()
        assert one.indices() == (3, 0)
        assert await other.recv() == (0,)
        assert one.indices() == (3, 1)
        assert one.statistics().taken == 1


@scenario
async def test_closing_wakes_everybody_who_waits_here(door):
    async with door.pair(capacity=1) as (one, other):
        await one.xmit((0,))
        await fill_messages(one)
        async with door.tasks() as tasks:
            calls = {name: tasks.start(verb) for name, verb in verbs_that_wait(one).items()}
            await tasks.blocked()
            assert not any(call.done for call in calls.values())
            await one.aclose()
        for name, call in calls.items():
            assert type(call.error) is door.word("Closed"), name
        assert await iterated(other) == [(0,)]


@scenario
async def test_the_end_of_the_peer_wakes_everybody_who_waits(door):
    async with door.pair(capacity=1) as (one, other):
        await one.xmit((0,))
        await fill_messages(one)
        async with door.tasks() as tasks:
            calls = {name: tasks.start(verb) for name, verb in verbs_that_wait(one).items()}
            await tasks.blocked()
            assert not any(call.done for call in calls.values())
            await other.aclose()
        sending = verbs_that_send(one)
        for name, call in calls.items():
            word = "ReceiverGone" if name in sending else "EndOfStream"
            assert type(call.error) is door.word(word), name
        for name, verb in verbs_that_wait(one).items():
            with door.raises("ReceiverGone" if name in sending else "EndOfStream"):
                assert await verb(), name


@scenario
async def test_a_closed_interface_says_so_at_every_verb(door):
    async with door.pair() as (one, _):
        await one.aclose()
        await one.aclose()
        for verb in (
            *verbs_that_wait(one).values(),
            one.recv_ctrl_msg,
            lambda: one.recv(0),
            lambda: iterated(one),
        ):
            with door.raises("Closed"):
                await verb()
        for call in (one.indices, *([one.fileno] if hasattr(one, "fileno") else [])):
            with pytest.raises(memenpsf.Closed):
                call()


@scenario
async def test_a_peer_that_breaks_the_protocol_ends_every_wait(door):
    async with door.pair(capacity=1) as (one, other):
        await one.xmit((0,))
        async with door.tasks() as tasks:
            calls = [tasks.start(one.recv), tasks.start(one.xmit, (1,))]
            await tasks.blocked()
            os.write(other._endpoint.fileno(), b"\x4d\x00")
        for call in calls:
            assert type(call.error) is door.word("CorruptPeer")
        with door.raises("CorruptPeer"):
            await one.send_ctrl_msg(b"\x80!")


@scenario
async def test_a_dead_peer_is_noticed_after_all_it_published_is_received(door):
    async with door.pair(capacity=8) as (one, other):
        await other.xmit_many(numbers(5))
        with socket.socket(fileno=os.dup(other._endpoint.fileno())) as sock:
            sock.shutdown(socket.SHUT_RDWR)  # what its death would do
        assert await one.recv() == (0,)
        assert await one.recv_vectored() == numbers(1, 5)
        for verb in (
            one.recv,
            one.recv_vectored,
            lambda: one.xmit((1,)),
            lambda: one.recv_ctrl_msg(None),
            lambda: one.send_ctrl_msg(b"\x80!"),
        ):
            with door.raises("PeerDied"):
                await verb()
