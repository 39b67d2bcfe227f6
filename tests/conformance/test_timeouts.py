"""`timeout` means one thing at every verb of every door."""

from __future__ import annotations

import math

import pytest

from tests.kit.control import fill_messages
from tests.kit.doors import scenario


def numbers(*bounds):
    return [(n,) for n in range(*bounds)]


@pytest.mark.parametrize("timeout", [None, 0, 1e-9, 0.01, 1e9, math.inf])
@scenario
async def test_every_timeout_gives_what_is_there(door, timeout):
    async with door.pair(capacity=4) as (one, other):
        await one.xmit((1,), timeout)
        assert await one.xmit_many([(2,), (3,)], timeout) == 2
        await one.send_ctrl_msg(b"\x80!", timeout)
        assert await other.recv(timeout) == (1,)
        assert await other.recv_vectored(1, timeout) == [(2,)]
        assert await other.recv_vectored(None, timeout) == [(3,)]
        assert await other.recv_ctrl_msg(timeout) == b"\x80!"
        await one.aclose()
        with door.raises("EndOfStream"):
            await other.recv()  # reads the goodbye
        with door.raises("EndOfStream"):
            await other.recv(timeout)


@pytest.mark.parametrize("timeout", [0, 1e-9, 0.01])
@scenario
async def test_when_time_runs_out_it_says_so_and_nothing_is_lost(door, timeout):
    async with door.pair(capacity=1) as (one, other):
        await one.xmit((1,))
        await fill_messages(one)
        assert await one.recv(timeout) is None
        assert await one.recv_vectored(None, timeout) == []
        assert await one.recv_ctrl_msg(timeout) is None
        assert await one.xmit_many(numbers(3), timeout) == 0
        with door.raises("Full", match="no space"):
            await one.xmit((2,), timeout)
        with door.raises("Full", match="no room"):
            await one.send_ctrl_msg(b"\xfe!", timeout)
        assert one.indices() == (1, 0)
        assert await other.recv_vectored() == [(1,)]


@pytest.mark.parametrize("spec", ["<Q", bytes])
@pytest.mark.parametrize("timeout", [0, 1e-9, 0.01])
@scenario
async def test_what_receiving_gives_when_nothing_came_is_up_to_the_caller(door, timeout, spec):
    nothing = object()
    record = b"" if spec is bytes else (0,)
    async with door.pair(spec) as (one, other):
        assert await other.recv(timeout, default=nothing) is nothing
        assert await other.recv(timeout=timeout, default=None) is None
        await one.xmit(record)
        assert await other.recv(timeout, default=nothing) == record
        await one.xmit(record)
        assert await other.recv(default=nothing) == record
        async with door.tasks() as tasks:
            call = tasks.start(lambda: other.recv(1e9, default=nothing))
            await tasks.blocked()
            await one.xmit(record)
        assert call.result == record
        await one.aclose()
        with door.raises("EndOfStream"):
            await other.recv(1, default=nothing)


@pytest.mark.parametrize("timeout", [None, 1e9, math.inf])
@scenario
async def test_every_long_timeout_waits_for_what_comes(door, timeout):
    async with door.pair(capacity=1) as (one, other):
        await one.xmit((1,))
        for verb, cause, gives in (
            (lambda: one.xmit((2,), timeout), other.recv, None),
            (lambda: one.recv(timeout), lambda: other.xmit((3,)), (3,)),
            (lambda: one.recv_vectored(None, timeout), lambda: other.xmit((4,)), [(4,)]),
            (lambda: one.recv_ctrl_msg(timeout), lambda: other.send_ctrl_msg(b"\x80!"), b"\x80!"),
        ):
            async with door.tasks() as tasks:
                call = tasks.start(verb)
                await tasks.blocked()
                assert not call.done
                await cause()
            assert call.result == gives
        assert await other.recv() == (2,)


@pytest.mark.parametrize("timeout", [-1, -1e-9, math.nan, -math.inf])
@scenario
async def test_a_timeout_that_is_none_is_a_value_error(door, timeout, tmp_path):
    listener = await door.listen(tmp_path / "s", "<Q")
    async with listener, door.pair(capacity=1) as (one, other):
        always = (
            lambda: one.xmit_many([(1,)], timeout),
            lambda: one.send_ctrl_msg(b"\x80!", timeout),
            lambda: other.recv_vectored(None, timeout),
            lambda: other.recv_ctrl_msg(timeout),
            lambda: door.connect(tmp_path / "s", "<Q", timeout=timeout),
        )
        send, receive = (lambda: one.xmit((1,), timeout)), (lambda: other.recv(timeout))
        at_once = (send, receive) if door.CHECKS_EVERY_TIMEOUT else ()
        for sent, verbs in ((0, (*always, receive, *at_once)), (1, (*always, send, *at_once))):
            for verb in verbs:
                with pytest.raises(ValueError, match="timeout is None or at least 0"):
                    await verb()
            assert one.indices() == (sent, 0)
            assert await other.recv_ctrl_msg() is None
            await one.xmit_many([(1,)], 0)


@pytest.mark.parametrize("timeout", [-1, math.nan])
@scenario
async def test_so_it_is_where_memory_is_lent_and_descriptors_go_along(door, timeout):
    async with door.pair(bytes) as (one, other):
        for verb in (
            *[lambda: one.xmit(b"x", timeout=timeout)] * door.CHECKS_EVERY_TIMEOUT,
            lambda: one.xmit_many([b"x"], timeout=timeout),
            lambda: other.recv_message(timeout=timeout),
            lambda: one.loan(1, timeout=timeout).__aenter__(),
            lambda: other.borrow(timeout=timeout).__aenter__(),
        ):
            with pytest.raises(ValueError, match="timeout"):
                await verb()
        await one.xmit(b"still works", timeout=0)
        assert await other.recv(timeout=0) == b"still works"
