"""What trio.abc promises of a SendChannel, a ReceiveChannel and a Listener, word for word."""

from __future__ import annotations

import os
import socket

import pytest
import trio

from tests.kit.clients import connected as stranger
from tests.kit.doors import trio_scenario

WORDS = (
    trio.BrokenResourceError,
    trio.BusyResourceError,
    trio.ClosedResourceError,
    trio.EndOfChannel,
    trio.WouldBlock,
)


def says(error, word):
    """Whether it is this one of Trio's errors, and none of the others."""
    return [each for each in WORDS if isinstance(error, each)] == [word]


async def closes(side, peer):
    await side.aclose()


async def peer_closes(side, peer):
    await peer.aclose()


async def peer_dies(side, peer):
    with socket.socket(fileno=os.dup(peer._endpoint.fileno())) as sock:
        sock.shutdown(socket.SHUT_RDWR)


async def peer_breaks_the_protocol(side, peer):
    os.write(peer._endpoint.fileno(), b"\x4d\x00")


EVENTS = (closes, peer_closes, peer_dies, peer_breaks_the_protocol)
SENDING = (
    trio.ClosedResourceError,
    trio.BrokenResourceError,
    trio.BrokenResourceError,
    trio.BrokenResourceError,
)
RECEIVING = (
    trio.ClosedResourceError,
    trio.EndOfChannel,
    trio.BrokenResourceError,
    trio.BrokenResourceError,
)


@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize(("event", "word"), list(zip(EVENTS, SENDING, strict=True)))
@trio_scenario
async def test_who_sends_is_told_in_the_words_of_a_send_channel(door, event, word, waits):
    async with door.pair(capacity=1) as (side, peer):
        await side.send((1,))  # and no more
        async with door.tasks() as tasks:
            if not waits:
                await event(side, peer)
            sending = tasks.start(side.send, (2,))
            if waits:
                await tasks.blocked()
                assert not sending.done
                await event(side, peer)
        assert says(sending.error, word)
        for _ in range(2):  # and it stays so
            with pytest.raises(word):
                await side.send((3,))


@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize(("event", "word"), list(zip(EVENTS, RECEIVING, strict=True)))
@trio_scenario
async def test_who_receives_is_told_in_the_words_of_a_receive_channel(door, event, word, waits):
    async with door.pair(capacity=4) as (side, peer):
        async with door.tasks() as tasks:
            if not waits:
                await event(side, peer)
            receiving = tasks.start(side.receive)
            if waits:
                await tasks.blocked()
                assert not receiving.done
                await event(side, peer)
        assert says(receiving.error, word)
        for _ in range(2):
            with pytest.raises(word):
                await side.receive()


@pytest.mark.parametrize("event", [peer_closes, peer_dies])
@trio_scenario
async def test_all_that_was_sent_before_the_end_is_received_before_it(door, event):
    async with door.pair(capacity=4) as (side, peer):
        for n in range(3):
            await peer.send((n,))
        await event(side, peer)
        assert [await side.receive() for _ in range(3)] == [(n,) for n in range(3)]
        word = trio.EndOfChannel if event is peer_closes else trio.BrokenResourceError
        with pytest.raises(word):
            await side.receive()


@trio_scenario
async def test_iteration_ends_with_the_channel_and_raises_where_it_breaks(door):
    async with door.pair() as (side, peer):
        await peer.send((1,))
        await peer.aclose()
        assert [record async for record in side] == [(1,)]
    async with door.pair() as (side, peer):
        await peer_dies(side, peer)
        with pytest.raises(trio.BrokenResourceError):
            async for _ in side:
                pass


@pytest.mark.parametrize("lends", ["loan", "borrow"])
@trio_scenario
async def test_who_uses_an_end_that_is_lent_is_told_that_it_is_busy(door, lends):
    async with door.pair(bytes) as (side, peer):
        await peer.send(b"x")
        block = side.loan(1) if lends == "loan" else side.borrow()
        async with block as lent:
            with pytest.raises(trio.BusyResourceError) as caught:
                await (side.send(b"y") if lends == "loan" else side.receive())
            assert says(caught.value, trio.BusyResourceError)
            lent.cancel()


@trio_scenario
async def test_any_number_of_tasks_may_send_receive_and_accept_at_once(door, tmp_path):
    async with door.pair(capacity=1) as (side, peer), door.tasks() as tasks:
        receiving = [tasks.start(peer.receive) for _ in range(3)]
        for n in range(3):
            tasks.start(side.send, (n,))
        while not all(call.done for call in receiving):
            await door.others()
        assert sorted(call.result for call in receiving) == [(n,) for n in range(3)]


@trio_scenario
async def test_closing_may_be_cancelled_and_repeated_and_is_done_all_the_same(door):
    async with door.pair() as (side, peer):
        with trio.CancelScope() as scope:
            scope.cancel()
            await side.aclose()
        assert scope.cancelled_caught
        await side.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await side.send((1,))
        with pytest.raises(trio.EndOfChannel):
            await peer.receive()


@pytest.mark.parametrize("waits", ["for a client", "for an introduction", "not"])
@trio_scenario
async def test_who_accepts_is_told_in_the_words_of_a_listener(door, tmp_path, waits):
    listener = await door.listen(tmp_path / "s", "<Q")
    with stranger(tmp_path / "s") as silent:
        if waits != "for an introduction":
            silent.close()
        async with door.tasks() as tasks:
            if waits == "not":
                await listener.aclose()
            accepting = [tasks.start(listener.accept) for _ in range(2)]
            await tasks.blocked()
            assert all(call.done == (waits == "not") for call in accepting)
            await listener.aclose()
    for call in accepting:
        assert says(call.error, trio.ClosedResourceError)


@trio_scenario
async def test_a_listener_whose_closing_is_cancelled_is_closed(door, tmp_path):
    listener = await door.listen(tmp_path / "s", "<Q")
    with trio.CancelScope() as scope:
        scope.cancel()
        await listener.aclose()
    assert scope.cancelled_caught
    await listener.aclose()
    assert not (tmp_path / "s").exists()
    with pytest.raises(trio.ClosedResourceError):
        await listener.accept()


@trio_scenario
async def test_both_channels_and_the_listener_are_what_trio_knows(door, tmp_path):
    async with door.pair() as (side, _):
        assert isinstance(side, trio.abc.Channel)
    async with await door.listen(tmp_path / "s", "<Q") as listener:
        assert isinstance(listener, trio.abc.Listener)
