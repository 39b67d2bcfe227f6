"""Loans and borrowings end as their blocks do, at every door."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

import memenpsf
from tests.kit.attached import number_of, numbers
from tests.kit.doors import one_way_scenario, scenario


async def received(side):
    """Everything that waits: (bytes, numbers of the descriptors) of each message."""
    got = []
    while (message := await side.recv_message(timeout=0)) is not None:
        with contextlib.closing(message):
            got.append((message.record, [number_of(fd) for fd in message.fds]))
    return got


async def still_works(one, other, record=b"still works"):
    await one.xmit(record, timeout=0)
    assert await other.recv(timeout=0) == record
    assert await other.recv(timeout=0) is None


@pytest.mark.parametrize("how", ["leave", "publish", "shrink", "cancel", "exception"])
@one_way_scenario
async def test_a_loan_ends_as_its_block_does(door, how):
    async with door.pair(memenpsf.Message, capacity=4096) as (one, other):
        with contextlib.suppress(KeyError):
            async with one.loan(5, tag=7, flags=8) as loan:
                loan.data[:] = b"lent!"
                assert await other.recv(timeout=0) is None
                if how == "shrink":
                    loan.shrink(4)
                elif how in ("publish", "cancel"):
                    getattr(loan, how)()
                elif how == "exception":
                    raise KeyError
        said = {"shrink": b"lent"}.get(how, b"lent!")
        expected = None if how in ("cancel", "exception") else (said, 7, 8)
        assert await other.recv(timeout=0) == expected
        await still_works(one, other, memenpsf.Message(b"next"))


@one_way_scenario
async def test_a_loan_given_up_costs_no_space(door):
    async with door.pair(bytes, capacity=4096) as (one, other):
        for _ in range(20):
            async with one.loan(3000, timeout=0) as loan:
                loan.cancel()
            with pytest.raises(KeyError):
                async with one.loan(3000, timeout=0):
                    raise KeyError
        assert await other.recv(timeout=0) is None
        await still_works(one, other)


@pytest.mark.parametrize("how", ["leave", "cancel", "exception"])
@one_way_scenario
async def test_a_borrowing_takes_only_when_its_block_ends_well(door, how):
    async with door.pair(bytes, capacity=4096, accept=memenpsf.Accept(fds=1)) as (one, other):
        with numbers(5) as files:
            await one.xmit(b"first", fds=files)
        await one.xmit(b"large" * 1000)
        with contextlib.suppress(KeyError):
            async with other.borrow() as messages:
                assert [len(message.data) for message in messages] == [5, 5000]
                assert all(message.data.readonly for message in messages)
                kept = messages[0].data
                if how == "cancel":
                    messages.cancel()
                elif how == "exception":
                    raise KeyError
        with pytest.raises(ValueError, match="released"):
            kept[0]
        left = [(b"first", [5]), (b"large" * 1000, [])]
        assert await received(other) == ([] if how == "leave" else left)
        assert other.statistics().dropped == (1 if how == "leave" else 0)
        async with other.borrow(timeout=0) as messages:
            assert len(messages) == 0


@one_way_scenario
async def test_arrays_can_be_lent_and_borrowed_across_the_wrap(door):
    async with door.pair(np.dtype("<u8"), capacity=8) as (one, other):
        taken = []
        for n in range(0, 60, 3):
            async with one.loan(3, timeout=0) as loan:
                loan.data[:] = [n, n + 1, n + 2]
            while len(taken) < n + 3:
                async with other.borrow() as records:
                    taken += records.data.tolist()
        assert taken == list(range(60))
        async with other.borrow(timeout=0) as lent:
            assert lent.data.shape == (0,)


@one_way_scenario
async def test_misuse_gets_the_same_errors_and_the_connection_goes_on(door):
    async with door.pair(bytes, capacity=4096) as (one, other):
        for size in (4081, 4096):
            with pytest.raises(memenpsf.TooLarge, match=f"a loan of {size} bytes.*4096"):
                async with one.loan(size):
                    pass
        async with one.loan(2) as loan:
            with pytest.raises(memenpsf.ConcurrentUse):
                await one.xmit(b"x")
            with pytest.raises(memenpsf.ConcurrentUse):
                async with one.loan(1):
                    pass
            with pytest.raises(memenpsf.LoanError):
                loan.shrink(3)
            loan.publish()
            for again in (loan.publish, loan.cancel, lambda: loan.shrink(1)):
                with pytest.raises(memenpsf.LoanError, match="it is over"):
                    again()
        async with other.borrow() as messages:
            with pytest.raises(memenpsf.ConcurrentUse):
                await other.recv()
            with pytest.raises(memenpsf.ConcurrentUse):
                async with other.borrow():
                    pass
            assert len(messages) == 1
        await still_works(one, other)


@one_way_scenario
async def test_views_that_outlive_their_block_are_a_loan_error(door):
    async with door.pair(bytes, capacity=4096) as (one, other):
        with pytest.raises(memenpsf.LoanError, match="nothing was published of this loan"):
            async with one.loan(5) as loan:
                left = loan.data[1:]
        with pytest.raises(memenpsf.LoanError, match="outlive"):
            await one.xmit(b"x", timeout=0)
        del left
        await one.xmit(b"x" * 9)
        with pytest.raises(memenpsf.LoanError, match="nothing was taken, and the same messages"):
            async with other.borrow() as messages:
                left = np.frombuffer(messages[0].data, "u1")
        with pytest.raises(memenpsf.LoanError, match="outlive"):
            await other.recv(timeout=0)
        del left, messages
        assert await other.recv() == b"x" * 9


@one_way_scenario
async def test_a_loan_waits_for_space_and_a_borrowing_for_messages(door):
    async with door.pair(bytes, capacity=4096, inline=4096) as (one, other):
        await one.xmit_many([bytes(1008)] * 4)
        with door.raises("Full", match="no space for a loan within 0"):
            async with one.loan(2000, timeout=0):
                pass
        order = []

        async def lend():
            async with one.loan(3000) as loan:
                order.append("lent")
                loan.data[:] = bytes(3000)

        async with door.tasks() as tasks:
            tasks.start(lend)
            await tasks.blocked()
            while "lent" not in order:
                async with other.borrow(1) as messages:
                    order.append(len(messages[0].data))
                await tasks.blocked()
        assert order == [1008, 1008, 1008, "lent"]
        async with other.borrow(timeout=0) as messages:
            assert [len(message.data) for message in messages] == [1008, 3000]

        async def wait():
            async with other.borrow() as messages:
                assert messages[0].data == b"late"

        async with door.tasks() as tasks:
            waiting = tasks.start(wait)
            await tasks.blocked()
            assert not waiting.done
            await one.xmit(b"late")


@pytest.mark.parametrize("kind", ["loan", "borrow"])
@pytest.mark.parametrize("which", ["this side", "the peer"])
@scenario
async def test_the_end_may_come_while_memory_is_lent(door, kind, which):
    async with door.pair(bytes, capacity=4096) as (one, other):
        await one.xmit(b"message")
        side, peer = (one, other) if kind == "loan" else (other, one)
        closed = which == "this side"
        end = "Closed" if closed else "ReceiverGone" if kind == "loan" else "EndOfStream"
        with contextlib.ExitStack() as undo:
            if closed or kind == "loan":
                undo.enter_context(door.raises(end))
            async with side.loan(5) if kind == "loan" else side.borrow() as lent:
                await (side if closed else peer).aclose()
                with contextlib.suppress(memenpsf.EndOfStream, memenpsf.Closed):
                    await side.recv_ctrl_msg(timeout=0)
                if kind == "loan":
                    lent.data[:] = b"alive"
                else:
                    assert lent[0].data == b"message"
        if not closed and kind == "borrow":
            with door.raises("EndOfStream"):
                await other.recv()
