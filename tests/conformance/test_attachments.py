"""Descriptors and regions beside messages, also where the socket has no room, at every door."""

from __future__ import annotations

import contextlib

import pytest

import fdpass
import ipcqueue
import memenpsf
from tests.kit.attached import number_of, numbers, open_descriptors, region_of
from tests.kit.control import drain_messages, fill_messages
from tests.kit.doors import one_way_scenario, scenario
from tests.kit.sleeping import long_sleeps  # noqa: F401 (the fixture)

pytestmark = pytest.mark.usefixtures("long_sleeps")


@pytest.fixture
def tries(monkeypatch):
    """How often something with descriptors was tried to be sent."""
    calls = []
    sender = ipcqueue._ring.frame_sender.FrameSender
    real = sender.try_send
    monkeypatch.setattr(
        sender, "try_send", lambda self, parcel: calls.append(1) or real(self, parcel)
    )
    return calls


async def still_works(one, other):
    with numbers(77) as files:
        await one.xmit(b"still works", fds=files, timeout=0)
    with contextlib.closing(await other.recv_message(timeout=0)) as message:
        assert (message.record, [number_of(fd) for fd in message.fds]) == (b"still works", [77])
    assert await other.recv(timeout=0) is None


@one_way_scenario
async def test_each_message_has_its_own_descriptors_and_regions(door):
    async with door.pair(bytes, capacity=4096, accept=memenpsf.Accept(fds=9)) as (one, other):
        for end in (one, other):
            end._endpoint.wire.events_fileno()  # made by the first who waits
        assert await other.recv_message(timeout=0.001) is None  # and so is what a loop polls
        before = open_descriptors()

        async def send():
            for n in range(100):
                wanted = [n * 10 + k for k in range(n % 9)]
                with numbers(*wanted) as files, region_of(b"%d" % n) as region:
                    regions = [region] * (n % 3)
                    await one.xmit(bytes(n % 2 * 5000), fds=files, regions=regions)

        async with door.tasks() as tasks:
            tasks.start(send)
            for n in range(100):
                with contextlib.closing(await other.recv_message()) as message:
                    assert message.record == bytes(n % 2 * 5000)
                    assert [number_of(fd) for fd in message.fds] == [
                        n * 10 + k for k in range(n % 9)
                    ]
                    contents = [bytes(region.buffer) for region in message.regions]
                    assert contents == [b"%d" % n] * (n % 3)
        assert open_descriptors() == before
        assert other.statistics().dropped == 0


@one_way_scenario
async def test_who_does_not_ask_for_what_is_attached_has_it_closed_and_counted(door):
    async with door.pair(bytes, accept=memenpsf.Accept(fds=3)) as (one, other):
        before = open_descriptors()
        with numbers(1, 2, 3) as files, fdpass.MemoryRegistry() as registry:
            for _ in range(4):
                with registry.alloc(10) as region:
                    await one.xmit(b"x" * 300_000, fds=files, regions=[region])
            assert await other.recv() == b"x" * 300_000
            assert await other.recv_vectored(1) == [b"x" * 300_000]
            async for message in other:
                assert message == b"x" * 300_000
                break
            async with other.borrow():
                pass
            assert registry.collect() == 4
        assert other.statistics().dropped == 16
        assert one.statistics().dropped == 0
        assert open_descriptors() == before


@one_way_scenario
async def test_records_of_one_size_come_with_nothing(door):
    async with door.pair() as (one, other):
        with numbers(1) as files, region_of(b"x") as region:
            for beside in ({"fds": files}, {"regions": [region]}):
                with pytest.raises(memenpsf.Unaccepted, match="go with messages"):
                    await one.xmit((1,), **beside)
        await one.xmit((2,))
        assert await other.recv_message() == ((2,), [], [])


@scenario
async def test_who_waits_for_different_things_gets_each_its_own(door):
    async with door.pair(bytes, capacity=4096, accept=memenpsf.Accept(fds=1)) as (one, other):
        got = []

        async def messages():
            for _ in range(20):
                with contextlib.closing(await other.recv_message()) as message:
                    got.append((message.record, [number_of(fd) for fd in message.fds]))

        async def control():
            for n in range(20):
                assert await other.recv_ctrl_msg(timeout=None) == bytes((200, n))

        async with door.tasks() as tasks:
            tasks.start(control)
            tasks.start(messages)
            for n in range(20):
                with numbers(n) as files:
                    await one.xmit(b"%d" % n, fds=files)
                await one.send_ctrl_msg(bytes((200, n)))
        assert got == [(b"%d" % n, [n]) for n in range(20)]


# -- the socket is full ---------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [0, 1e-9, 0.05])
@pytest.mark.parametrize("size", [10, 300_000])
@one_way_scenario
async def test_a_socket_without_room_is_full_in_time_and_nothing_was_sent(
    door, timeout, size, tries
):
    async with door.pair(bytes, accept=memenpsf.Accept(fds=1)) as (one, other):
        before = open_descriptors()
        filled = await fill_messages(one)
        with numbers(1) as files, door.raises("Full"):
            await one.xmit(bytes(size), fds=files, timeout=timeout)
        assert len(tries) < 10  # it slept in between
        await one.xmit(b"plain")  # needs no room
        batch = [b"many", bytes(300_000), b"not sent"]
        assert await one.xmit_many(batch, timeout=timeout) == 1
        assert await other.recv_vectored() == [b"plain", b"many"]
        assert await drain_messages(other) == filled
        assert open_descriptors() == before
        await still_works(one, other)


@pytest.mark.parametrize("how", ["descriptors", "large", "many"])
@one_way_scenario
async def test_who_waits_for_room_in_the_socket_sends_once_there_is_some(door, how, tries):
    async with (
        door.pair(bytes, accept=memenpsf.Accept(fds=1)) as (one, other),
        door.tasks() as tasks,
    ):
        filled = await fill_messages(one)
        with numbers(1) as files:
            sending = tasks.start(
                {
                    "descriptors": lambda: one.xmit(b"first", fds=files),
                    "large": lambda: one.xmit(b"first" * 100_000),
                    "many": lambda: one.xmit_many([b"first" * 100_000, b"second"]),
                }[how]
            )
            await tasks.blocked()
            assert not sending.done
            assert len(tries) < 5  # it does not try again and again
            assert (await other.recv()).startswith(b"first")
            while not sending.done:
                await door.others()
        assert await drain_messages(other) == filled


@scenario
async def test_two_sides_that_wait_for_room_in_the_same_socket_make_it_for_each_other(door):
    async with door.pair(bytes, accept=memenpsf.Accept(fds=1)) as sides:
        filled = [await fill_messages(side) for side in sides]

        async def send(side, files):
            for _ in range(20):
                await side.xmit(b"x", fds=files)

        async def receive(side):
            for _ in range(20):
                with contextlib.closing(await side.recv_message()) as message:
                    assert len(message.fds) == 1

        with numbers(1) as files:
            async with door.tasks() as tasks:
                for side in sides:
                    tasks.start(send, side, files)
                    tasks.start(receive, side)
        assert [await drain_messages(side) for side in sides[::-1]] == filled


@pytest.mark.parametrize("which", ["this side", "the peer"])
@scenario
async def test_the_end_wakes_who_waits_for_room_in_the_socket(door, which, tries):
    async with door.pair(bytes, accept=memenpsf.Accept(fds=1)) as (one, other):
        await fill_messages(one)
        with numbers(1) as files:
            async with door.tasks() as tasks:
                sending = tasks.start(lambda: one.xmit(b"x", fds=files))
                await tasks.blocked()
                assert tries
                assert not sending.done
                await (one if which == "this side" else other).aclose()
        word = "Closed" if which == "this side" else "ReceiverGone"
        assert type(sending.error) is door.word(word)
