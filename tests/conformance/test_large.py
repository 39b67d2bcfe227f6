"""Large messages: copied in pieces, while other threads run, and between steps of an event loop."""

import contextlib
import mmap
import os
import threading

import pytest
import trio
from ipcqueue._core import ffi

import memenpsf
import memenpsf.trio
from ipcqueue import Message
from ipcqueue._ring import frame_builder, frame_sender, memory, outside
from ipcqueue._ring.bounds import LARGE, MAX_BYTES
from ipcqueue.lowlevel import Role, Terms
from tests.kit.places import Interrupt, at_every_place, interrupt

SIZE = 2 * MAX_BYTES + 12345  # three pieces
BOTH = Role(sends=True, receives=True)
INSIDE = {"capacity": 1 << 26, "inline": 1 << 26}


def content(start, size=SIZE):
    return bytes([start]) * 7 + os.urandom(size - 7)


INSIDE_THE_RING = (frame_sender, frame_builder)


def copies(monkeypatch, hook, modules=INSIDE_THE_RING):
    """Have hook(number) called in place of other threads, after each copy."""
    copy, seen = memory.copy_memory, []

    def hooked(to, from_, count):
        seen.append(count)
        copy(to, from_, count)
        hook(len(seen))

    for module in modules:
        monkeypatch.setattr(module, "copy_memory", hooked)
    return seen


def in_another_thread(function):
    """Start a thread that calls it, and return once it waits for a lock, or is done."""
    thread = threading.Thread(target=function)
    thread.start()
    return thread


@pytest.fixture(params=["inside", "outside"])
def pair(request):
    options = INSIDE if request.param == "inside" else {}
    one, other = memenpsf.pair(bytes, **options)
    with one, other:
        yield one, other


def test_what_is_large_arrives_whole(pair):
    one, other = pair
    for size in (LARGE, LARGE + 1, MAX_BYTES, MAX_BYTES + 1, SIZE):
        sent = content(1, size)
        one.xmit(sent)
        assert other.recv() == sent
        one.xmit_many([sent, b"x"])
        assert [other.recv(), other.recv()] == [sent, b"x"]
        assert other.recv(timeout=0) is None


def test_other_threads_run_during_a_copy_and_find_the_end_reserved(pair, monkeypatch):
    one, other = pair
    sent = [content(n) for n in (1, 2)]
    one.xmit(sent[0])
    one.xmit(sent[1])
    got, threads = [], []

    def another(number):
        if number == 2:  # in the middle of the first
            threads.append(in_another_thread(lambda: got.append(other.recv())))

    seen = copies(monkeypatch, another)
    got.append(other.recv())
    for thread in threads:
        thread.join()
    assert sorted(got) == sorted(sent)
    assert len(seen) == 6


def test_who_closes_during_a_copy_waits_for_its_end(pair, monkeypatch):
    one, other = pair
    sent = content(1)
    one.xmit(sent)
    threads = []
    copies(monkeypatch, lambda n: n == 2 and threads.append(in_another_thread(other.close)))
    with contextlib.suppress(memenpsf.Closed):  # it may come before the message is handed on
        assert other.recv() == sent
    threads[0].join()
    assert other.closed


def test_a_message_is_whole_where_others_are_sent_meanwhile(monkeypatch):
    one, other = memenpsf.pair(bytes, **INSIDE)
    with one, other:
        sent, threads = content(1), []
        seen = copies(
            monkeypatch,
            lambda n: n == 2 and threads.append(in_another_thread(lambda: one.xmit(b"x"))),
        )
        one.xmit(sent)
        threads[0].join()
        assert len(seen) == 3
        assert sorted([other.recv(), other.recv()]) == sorted([sent, b"x"])


def test_a_handler_that_receives_in_the_middle_takes_it(pair, monkeypatch):
    one, other = pair
    sent = [content(n) for n in (1, 2)]
    one.xmit(sent[0])
    one.xmit(sent[1])
    got = []
    seen = copies(monkeypatch, lambda n: n == 2 and got.append(other.recv()))
    got.append(other.recv())
    assert got == sent
    assert len(seen) == 7  # the second piece again by the handler; none once it was handed on


def test_a_handler_that_sends_in_the_middle_comes_first(monkeypatch):
    one, other = memenpsf.pair(bytes, **INSIDE)
    with one, other:
        sent = content(1)
        copies(monkeypatch, lambda n: n == 2 and one.xmit(b"x"))
        one.xmit(sent)
        assert [other.recv(), other.recv()] == [b"x", sent]


def test_a_handler_with_a_loan_in_the_middle_is_no_victim(monkeypatch):
    one, other = memenpsf.pair(bytes, **INSIDE)
    with one, other:
        loans, lent = [], content(2)

        def lend(number):
            if number == 2:
                loan = one.loan(SIZE)
                loan.__enter__()
                loan.data[:] = lent
                loans.append(loan)

        copies(monkeypatch, lend)
        with pytest.raises(memenpsf.ConcurrentUse):
            one.xmit(content(1))
        loans[0].__exit__(None, None, None)
        assert other.recv() == lent
        one.xmit(b"x")
        assert other.recv() == b"x"


@pytest.mark.parametrize("verb", ["xmit", "recv"])
def test_an_interrupt_in_the_middle_loses_and_doubles_nothing(pair, monkeypatch, verb):
    one, other = pair
    sent = content(1)
    with monkeypatch.context() as patch:
        copies(patch, lambda n: n == 2 and interrupt(), (*INSIDE_THE_RING, outside))
        if verb == "xmit":
            with pytest.raises(Interrupt):
                one.xmit(sent)
        else:
            patch.undo()
            one.xmit(sent)
            copies(patch, lambda n: n == 2 and interrupt())
            with pytest.raises(Interrupt):
                other.recv()
    if verb == "xmit":
        assert other.recv(timeout=0) is None
        one.xmit(sent)
    assert other.recv() == sent
    assert other.recv(timeout=0) is None


@pytest.mark.deadline(300)
def test_an_interrupt_at_any_place(monkeypatch):
    for module in INSIDE_THE_RING:
        monkeypatch.setattr(module, "LARGE", 1000)
        monkeypatch.setattr(module, "MAX_BYTES", 1500)
    one, other = memenpsf.pair(Message, capacity=1 << 16, inline=1 << 14)
    with one, other:
        sent = [Message(b"%d" % n * 4000, n) for n in range(3)]
        got = []

        def prepare():
            got.clear()
            for message in sent:
                one.xmit(message)

        def check(result):
            got.extend([] if result is None else [result])
            while (message := other.recv(timeout=0)) is not None:
                got.append(message)
            assert sorted(got) == sent  # a handler may get the second before the first is returned

        for action in (interrupt, lambda: got.append(other.recv(timeout=0))):
            at_every_place(prepare, other._endpoint.try_pop, action, check, step=7)


def test_under_trio_others_run_between_the_pieces(monkeypatch):
    async def main():
        one, other = memenpsf.pair(bytes)
        sent = [content(1), b"small", content(2)]
        for message in sent:
            one.xmit(message)
        ours = memenpsf.trio.Interface.of(other._endpoint, Terms(bytes, BOTH), "client")
        ran, pieces = [], copies(monkeypatch, lambda _: None)

        async def clock():
            while True:
                ran.append(len(pieces))
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(clock)
            assert await ours.recv() == sent[0]
            assert {1, 2} & set(ran)  # before the last piece
            assert await ours.recv_vectored() == [b"small"]
            assert await ours.recv(timeout=0) == sent[2]
            one.xmit(sent[0])
            one.close()
            while not other._endpoint.ended:  # before all is received
                other._endpoint.read_if_free()
            with trio.move_on_after(0) as cancelled:
                await ours.recv()
            assert cancelled.cancelled_caught
            assert await ours.recv_message() == (sent[0], [], [])
            with pytest.raises(memenpsf.EndOfStream):
                await ours.recv()
            nursery.cancel_scope.cancel()
        await ours.aclose()

    trio.run(main)


def test_under_trio_who_waits_for_something_else_waits_beside_a_piece(monkeypatch):
    """Beside a message of which a piece was copied, and which nobody receives any more."""

    async def main():
        one, other = memenpsf.pair(bytes)
        sent = content(1)
        one.xmit(sent)
        ours = memenpsf.trio.Interface.of(other._endpoint, Terms(bytes, BOTH), "client")
        async with trio.open_nursery() as nursery:
            copies(monkeypatch, lambda _: nursery.cancel_scope.cancel())
            await ours.recv()
        assert other._endpoint.receiver.unfinished
        assert await ours.recv_ctrl_msg(timeout=0) is None
        assert await ours.recv_ctrl_msg(timeout=0.001) is None
        one.send_ctrl_msg(b"\x80\x01")
        assert await ours.recv_ctrl_msg() == b"\x80\x01"
        with pytest.raises(memenpsf.Full):
            while True:
                await ours.xmit(bytes(1 << 17), timeout=0.001)
        assert await ours.recv() == sent
        one.close()
        await ours.aclose()

    trio.run(main)


def test_an_attempt_copies_one_piece(pair, monkeypatch):
    one, other = pair
    endpoint, sent = other._endpoint, content(1)
    pieces = copies(monkeypatch, lambda _: None)
    one.xmit(sent)
    del pieces[:]  # of the sender, inside
    endpoint.receiver.in_steps = True
    for number in range(1, 3):
        assert endpoint.try_pop_many(5, bounded=True) is None
        assert len(pieces) == number
    assert endpoint.try_pop_many(5, bounded=True) == [sent]


def test_a_message_that_the_peer_makes_small_in_the_middle_is_not_unfinished_for_ever():
    one, other = memenpsf.pair(bytes, **INSIDE)
    with one, other:
        endpoint = other._endpoint
        one.xmit(bytes(SIZE))
        endpoint.receiver.in_steps = True
        assert endpoint.try_pop() is None
        assert endpoint.receiver.unfinished
        frame = one._endpoint._own.mapping.at + mmap.PAGESIZE  # of which the peer is the owner
        ffi.cast("uint32_t *", frame)[0] = 8
        assert other.recv() == bytes(8)
        assert not endpoint.receiver.unfinished


def test_a_batch_is_sent_some_megabytes_at_a_time():
    one, other = memenpsf.pair(1 << 20, capacity=64)
    with one, other:
        sender = one._endpoint.sender
        batch = sender.batch([bytes(1 << 20)] * 20)
        assert sender.try_push_many(batch, 0) == MAX_BYTES >> 20
        assert one.xmit_many([bytes(1 << 20)] * 20) == 20
        assert len(other.recv_vectored(100)) == 20 + (MAX_BYTES >> 20)


@pytest.mark.parametrize("verb", ["xmit", "recv"])
def test_a_child_that_is_forked_in_the_middle_may_only_close(pair, monkeypatch, forked, verb):
    one, other = pair
    sent = content(1)

    def child():
        for call in (lambda: one.xmit(b"x"), other.recv):
            with pytest.raises(memenpsf.ForkedUse):
                call()
        one.close()
        other.close()

    statuses = []
    modules = [outside] if verb == "xmit" and other.capacity < SIZE else INSIDE_THE_RING
    if verb == "recv":
        one.xmit(sent)
    copies(monkeypatch, lambda n: n == 2 and statuses.append(forked(child)), modules)
    if verb == "xmit":
        one.xmit(sent)
    assert other.recv() == sent
    assert statuses[0] == 0
