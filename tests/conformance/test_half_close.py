"""Each direction of a connection ends by itself: in good order, by a break, or by a crash.

The tables of docs/ends.md, for every door.
"""

from __future__ import annotations

import socket

import pytest
import trio

import memenpsf
from ipcqueue._origin import tag_error
from tests.kit.doors import scenario, trio_scenario


def numbers(*bounds):
    return [(n,) for n in range(*bounds)]


def interface(side):
    """The interface behind the adapter of a door."""
    return getattr(side, "it", side)


async def eof(side):
    await side.send_eof()


async def finished(side):
    side.finish()


async def closed(side):
    await side.aclose()


async def aborted(side):
    side.abort()


async def eof_and_aborted(side):
    await side.send_eof()
    side.abort()


async def finished_and_aborted(side):
    side.finish()
    side.abort()


async def killed(side):
    """As the kernel does with the socket of a process that is killed."""
    interface(side)._endpoint.wire.sock.shutdown(socket.SHUT_RDWR)


async def eof_and_killed(side):
    await side.send_eof()
    await killed(side)


async def nothing(side):
    pass


# What the peer has done: what receives then raises here, and what sends.  None: it goes on.
PEERS = {
    nothing: (None, None),
    eof: ("EndOfStream", None),
    finished: ("EndOfStream", "ReceiverGone"),
    closed: ("EndOfStream", "ReceiverGone"),
    finished_and_aborted: ("EndOfStream", "ReceiverGone"),
    aborted: ("Aborted", "Aborted"),
    eof_and_aborted: ("EndOfStream", "Aborted"),
    killed: ("PeerDied", "PeerDied"),
    eof_and_killed: ("EndOfStream", "PeerDied"),
}
# What this side has done before: what that makes of the two.
OWN = {
    nothing: lambda receiving, sending: (receiving, sending),
    eof: lambda receiving, _: (receiving, "Closed"),
    finished: lambda *_: ("Closed", "Closed"),
    closed: lambda *_: ("Closed", "Closed"),
    aborted: lambda *_: ("Closed", "Closed"),
}


async def raises(door, word, verb):
    """Expect that error of a verb; for None, that it does its work."""
    if word is None:
        await verb()
    else:
        with pytest.raises(memenpsf.QueueError) as caught:
            await verb()
        assert type(caught.value) is door.word(word)


@scenario
@pytest.mark.parametrize("own", OWN, ids=lambda own: f"own {own.__name__}")
@pytest.mark.parametrize("peers", PEERS, ids=lambda peers: f"peer {peers.__name__}")
async def test_what_each_call_raises_for_every_pair_of_ends(door, own, peers):
    async with door.pair(capacity=8) as (one, other):
        await other.xmit((1,))
        await own(one)
        await peers(other)
        receiving, sending = OWN[own](*PEERS[peers])
        over = receiving if peers is not eof else OWN[own](None, None)[0]
        for _ in range(2):  # the same for ever
            if own in {nothing, eof, finished}:  # what has arrived can still be received
                if _ == 0:
                    assert await one.recv(timeout=0) == (1,)
                await raises(door, receiving, lambda: one.recv(timeout=0))
                await raises(door, receiving, lambda: one.recv_vectored(timeout=0))
            else:
                await raises(door, "Closed", lambda: one.recv(timeout=0))
            await raises(door, over, lambda: one.recv_ctrl_msg(timeout=0))
            await raises(door, sending, lambda: one.xmit((2,), timeout=0))
            await raises(door, sending, lambda: one.xmit_many([(2,)], timeout=0))
            await raises(door, sending, one.await_space)
            if own is eof:  # control messages are no records
                await raises(door, PEERS[peers][1], lambda: one.send_ctrl_msg(b"\x80!", timeout=0))
            else:
                await raises(door, sending, lambda: one.send_ctrl_msg(b"\x80!", timeout=0))


@scenario
async def test_a_side_that_sends_no_more_goes_on_receiving(door):
    async with door.pair(capacity=4) as (one, other):
        await one.xmit_many(numbers(3))
        await one.send_eof()
        await one.send_eof()
        assert [record async for record in other] == numbers(3)
        for n in range(100):
            await other.xmit((n,))
            assert await one.recv() == (n,)
        await other.send_ctrl_msg(b"\x80a")
        assert await one.recv_ctrl_msg(timeout=None) == b"\x80a"
        await one.send_ctrl_msg(b"\x81b")
        assert await other.recv_ctrl_msg(timeout=None) == b"\x81b"
        await other.send_eof()
        for side in (one, other):
            with door.raises("EndOfStream"):
                await side.recv()
            with door.raises("Closed", match="send_eof"):
                await side.xmit((0,))


@scenario
async def test_what_is_published_before_it_is_received_before_it(door):
    async with door.pair(capacity=8) as (one, other), door.tasks() as tasks:
        got = tasks.start(collected, other)
        for n in range(1000):
            await one.xmit((n,))
        await one.send_eof()
    assert got.result == numbers(1000)


async def collected(side):
    return [record async for record in side]


@scenario
@pytest.mark.parametrize("verb", ["recv", "recv_vectored"])
async def test_who_sleeps_is_woken_by_the_end_of_the_stream(door, verb):
    async with door.pair(wait="sleep") as (one, other):
        async with door.tasks() as tasks:
            calls = [tasks.start(getattr(other, verb)) for _ in range(3)]
            await tasks.blocked()
            await one.send_eof()
        for call in calls:
            assert type(call.error) is door.word("EndOfStream")
        assert other.statistics().rescues == 0


@scenario
async def test_the_second_look_before_sleeping_covers_the_end(door):
    async with door.pair(wait="sleep") as (one, other):
        endpoint = interface(other)._endpoint
        announce = endpoint.announce

        def announce_late(*event):
            interface(one)._endpoint.send_eof()  # who has not announced sleep is not woken
            return announce(*event)

        endpoint.announce = announce_late
        with door.raises("EndOfStream"):
            await other.recv()
        assert other.statistics().rescues == 0


@scenario
async def test_a_call_that_waits_for_space_is_told_when_it_wakes(door):
    async with door.pair(capacity=1) as (one, other):
        await one.xmit((0,))
        async with door.tasks() as tasks:
            call = tasks.start(one.xmit, (1,))
            await tasks.blocked()
            await one.send_eof()
            assert await other.recv() == (0,)
        assert type(call.error) is door.word("Closed")
        with door.raises("EndOfStream"):
            await other.recv()


@scenario
async def test_an_end_only_receives_or_only_sends(door):
    async with door.pair(capacity=4) as (one, other):
        await one.aclose()
        with door.raises("Closed"):
            await one.send_eof()
        await other.send_eof()  # whatever the peer has done
        with door.raises("EndOfStream"):
            await other.recv()


def tagged_of(side, kind):
    error = kind("of this connection")
    tag_error(error, interface(side))
    return error


# How a block is left, and whether that is a good end.
LEFT = {
    "well": (lambda one, other: None, True),
    "generator": (lambda one, other: GeneratorExit(), True),
    "exit": (lambda one, other: SystemExit(), True),
    "exit 0": (lambda one, other: SystemExit(0), True),
    "exit 1": (lambda one, other: SystemExit(1), False),
    "exit words": (lambda one, other: SystemExit("a mistake"), False),
    "exit False": (lambda one, other: SystemExit(False), True),  # an int, and 0
    "exit list": (lambda one, other: SystemExit([]), False),  # 1, as for all that is no int
    "exit 0.0": (lambda one, other: SystemExit(0.0), False),
    "Ctrl-C": (lambda one, other: KeyboardInterrupt(), False),
    "own mistake": (lambda one, other: ValueError("x"), False),
    "own end": (lambda one, other: tagged_of(one, memenpsf.EndOfStream), True),
    "nobody receives": (lambda one, other: tagged_of(one, memenpsf.ReceiverGone), True),
    "closed": (lambda one, other: tagged_of(one, memenpsf.Closed), True),
    "died": (lambda one, other: tagged_of(one, memenpsf.PeerDied), False),
    "the end of another": (lambda one, other: tagged_of(other, memenpsf.EndOfStream), False),
    "an end of nobody": (lambda one, other: memenpsf.EndOfStream("x"), False),
    "good group": (
        lambda one, other: BaseExceptionGroup("", [tagged_of(one, memenpsf.Closed), SystemExit(0)]),
        True,
    ),
    "mixed group": (
        lambda one, other: BaseExceptionGroup(
            "", [tagged_of(one, memenpsf.Closed), ExceptionGroup("", [ValueError()])]
        ),
        False,
    ),
}


@scenario
@pytest.mark.parametrize("how", LEFT)
async def test_how_a_block_is_left_says_how_it_ended(door, how):
    make, well = LEFT[how]
    async with door.pair(capacity=4) as (one, other):
        error = make(one, other)
        await one.xmit((1,))
        await one.__aexit__(type(error), error, None)
        assert interface(one)._endpoint.closed
        assert await other.recv() == (1,)
        with door.raises("EndOfStream" if well else "Aborted"):
            await other.recv()


@scenario
async def test_an_exception_leaves_a_block_as_it_is(door):
    async with door.pair(capacity=4) as (one, other):
        with pytest.raises(ZeroDivisionError):
            async with one:
                await one.xmit((1,))
                raise ZeroDivisionError
        assert await other.recv() == (1,)
        with door.raises("Aborted"):
            await other.recv()
        assert issubclass(door.word("Aborted"), door.word("PeerDied"))


@trio_scenario
async def test_a_task_that_is_cancelled_in_its_block_aborts(door):
    async with door.pair(capacity=4) as (one, other):
        with trio.CancelScope() as scope:
            async with one:
                await one.xmit((1,))
                scope.cancel()
                await trio.lowlevel.checkpoint()
        assert scope.cancelled_caught
        assert await other.recv() == (1,)
        with door.raises("Aborted"):
            await other.recv()


@trio_scenario
@pytest.mark.parametrize("close", [trio.aclose_forcefully, "cancelled"])
async def test_aclose_is_a_good_end_also_when_it_is_cancelled(door, close):
    async with door.pair(capacity=4) as (one, other):
        if close == "cancelled":
            with trio.CancelScope() as scope:
                scope.cancel()
                await one.aclose()
            assert scope.cancelled_caught
        else:
            await close(one)
        with door.raises("EndOfStream"):
            await other.recv()


@pytest.mark.parametrize(
    ("calls", "bits"),
    [
        (["send_eof"], 1),
        (["finish"], 3),
        (["send_eof", "finish"], 3),
        (["finish", "abort"], 3),
        (["send_eof", "abort"], 5),
        (["abort", "close"], 4),
    ],
)
def test_nothing_is_added_to_an_end_that_is_complete(calls, bits):
    one, other = memenpsf.pair("<Q")
    with one, other:
        for call in calls:
            getattr(one, call)()
        assert other._endpoint._peer.mapping.closed() == bits


def test_a_generator_that_is_left_by_break_ends_in_good_order():
    one, other = memenpsf.pair("<Q")

    def records():
        with one:
            yield from one

    with other:
        other.xmit_many(numbers(3))
        generator = records()
        for record in generator:
            assert record == (0,)
            break
        generator.close()
        with pytest.raises(memenpsf.EndOfStream):
            other.recv()


def test_a_forked_child_aborts_nothing(forked):
    one, other = memenpsf.pair("<Q")
    with one, other:

        def child():
            with pytest.raises(memenpsf.ForkedUse):
                one.send_eof()
            one.abort()

        assert forked(child) == 0
        one.xmit((1,))
        assert other.recv(timeout=0) == (1,)
        assert other.recv(timeout=0) is None
