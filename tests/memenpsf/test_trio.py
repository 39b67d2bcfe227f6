"""The door for Trio: checkpoints, cancellation that loses nothing, and Trio's own words."""

from __future__ import annotations

import contextlib
import errno
import inspect
import logging
import math
import os
import random
import select
import signal
import socket
from functools import partial

import pytest
import trio
import trio.testing
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

import fdpass
import ipcqueue
import ipcqueue.lowlevel
import memenpsf
import memenpsf.trio
from ipcqueue._link import alarms
from memenpsf import _pending
from memenpsf.trio import Interface, connect, listen, serve

# How many turns of the scheduler stand between an event and what it causes: fewer than this.
TURNS = 8


def numbers(*bounds):
    return [(n,) for n in range(*bounds)]


@contextlib.asynccontextmanager
async def opened(record="<Q", *, one=None, other=None, **options):
    here, there = socket.socketpair()
    first = Interface(here, record, **(options | (one or {})))
    second = Interface(there, record, **(options | (other or {})))
    async with first, second:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first.do_handshake)
            nursery.start_soon(second.do_handshake)
        yield first, second


@contextlib.asynccontextmanager
async def opened_to_a_thread(**options):
    """A side for Trio, and one for threads."""
    here, there = socket.socketpair()
    async with Interface(here, "<Q", **options) as interface:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(interface.do_handshake)
            peer = await trio.to_thread.run_sync(lambda: memenpsf.Interface(there, "<Q", **options))
        with peer:
            yield interface, peer


class Call:
    """A call in a task of its own, which keeps what comes of it."""

    def __init__(self, nursery, function, *args):
        self.scope = trio.CancelScope()
        self.result = self.error = None
        self.done = False
        nursery.start_soon(self._run, function, args)

    async def _run(self, function, args):
        with self.scope:
            try:
                self.result = await function(*args)
            except Exception as error:  # noqa: BLE001 (looked at by the test)
                self.error = error
        self.done = True

    @property
    def cancelled(self):
        return self.scope.cancelled_caught


async def fill_messages(interface):
    count = 0
    while interface._endpoint.try_send_message(bytes((200, count & 255))):
        count += 1
    return count


async def serves(listener, path, name=""):
    async with trio.open_nursery() as nursery:
        client = Call(nursery, lambda: connect(path, "<Q", name=name))
        accepted = await listener.accept()
    async with accepted, client.result as connected:
        await connected.xmit((7,))
        await accepted.xmit((8,))
        return accepted.peer_name == name and (await accepted.recv(), await connected.recv()) == (
            (7,),
            (8,),
        )


# -- what it is -----------------------------------------------------------------------------------


def test_the_verbs_have_the_same_parameters_as_those_for_threads():
    for name in (
        "__init__", "xmit", "xmit_many", "recv", "recv_vectored", "send_ctrl_msg", "recv_ctrl_msg",
    ):  # fmt: skip
        theirs = inspect.signature(getattr(memenpsf.Interface, name)).parameters.values()
        ours = inspect.signature(getattr(Interface, name)).parameters.values()
        assert [(p.name, p.kind, p.default) for p in ours] == [
            (p.name, p.kind, p.default) for p in theirs
        ]
    for name in ("connect", "listen", "run"):
        theirs = inspect.signature(getattr(memenpsf, name)).parameters
        assert list(inspect.signature(getattr(memenpsf.trio, name)).parameters) == list(theirs)


ERRORS = {
    "EndOfStream": trio.EndOfChannel,
    "ReceiverGone": trio.BrokenResourceError,
    "PeerDied": trio.BrokenResourceError,
    "CorruptPeer": trio.BrokenResourceError,
    "DescriptorsLost": trio.BrokenResourceError,
    "Closed": trio.ClosedResourceError,
    "ConcurrentUse": trio.BusyResourceError,
    "Full": trio.WouldBlock,
}


@pytest.mark.parametrize("name", ERRORS)
def test_where_trio_has_the_word_an_error_is_both(name):
    error = getattr(memenpsf.trio, name)
    assert issubclass(error, ERRORS[name])
    assert issubclass(error, getattr(memenpsf, name))


def its_own(name):
    """Expect the error of this name that is Trio's as well."""
    return pytest.raises(getattr(memenpsf.trio, name))


async def test_properties_say_what_each_side_stated():
    async with opened(
        "<QI", one={"name": "one", "capacity": 100, "role": "server"}, other={"name": "other"}
    ) as (one, other):
        assert (one.name, one.peer_name) == ("one", "other")
        assert (other.name, other.peer_name) == ("other", "one")
        assert (one.role, other.role) == ("server", "client")
        assert (one.capacity, other.capacity) == (128, 1 << 16)
        assert one.record == "<QI"
        assert one.peer == (os.getpid(), os.geteuid(), os.getegid())
        assert "one" in repr(one)
        assert "other" in repr(one)


# -- the handshake --------------------------------------------------------------------------------


def as_plain_socket(sock):
    return sock


def as_trio_socket(sock):
    return trio.socket.from_stdlib_socket(sock)


def as_stream(sock):
    return trio.SocketStream(trio.socket.from_stdlib_socket(sock))


@pytest.mark.parametrize("one", [as_plain_socket, as_trio_socket, as_stream])
@pytest.mark.parametrize("other", [as_plain_socket, as_stream])
async def test_any_kind_of_stream_socket_will_do(one, other):
    here, there = socket.socketpair()
    async with Interface(one(here), "<Q") as a, Interface(other(there), "<Q") as b:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.xmit, (1,))
            assert await b.recv() == (1,)


async def test_the_handshake_takes_place_at_the_first_call():
    for first_call in (
        lambda side: side.xmit((1,)),
        lambda side: side.xmit_many([(1,)]),
        lambda side: side.recv(),
        lambda side: side.recv_vectored(),
        lambda side: side.send_ctrl_msg(b"\x80!"),
        lambda side: side.recv_ctrl_msg(None),
    ):
        here, there = socket.socketpair()
        async with Interface(here, "<Q", name="a") as a, Interface(there, "<Q", name="b") as b:
            assert a.peer_name == b.peer_name == ""
            assert a.peer.pid == os.getpid()
            for call in (a.statistics, a.indices):
                with its_own("Closed"):
                    call()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(first_call, a)
                await b.xmit((2,))
                await b.send_ctrl_msg(b"\x81!")
            assert (a.peer_name, b.peer_name) == ("b", "a")


async def test_many_tasks_may_be_the_first():
    here, there = socket.socketpair()
    async with Interface(here, "<Q") as a, Interface(there, "<Q") as b:
        async with trio.open_nursery() as nursery:
            calls = [Call(nursery, a.do_handshake) for _ in range(3)]
            calls += [Call(nursery, b.recv) for _ in range(3)]
            for n in range(3):
                nursery.start_soon(a.xmit, (n,))
        assert sorted(call.result for call in calls[3:]) == numbers(3)


async def test_a_handshake_that_is_cancelled_can_be_taken_up_again():
    for turns in range(TURNS):
        here, there = socket.socketpair()
        async with Interface(here, "<Q") as a, Interface(there, "<Q") as b:
            async with trio.open_nursery() as nursery:
                first = Call(nursery, a.do_handshake)
                await wait_all_tasks_blocked()
                second = Call(nursery, b.do_handshake)
                for _ in range(turns):
                    await trio.lowlevel.checkpoint()
                first.scope.cancel()
                second.scope.cancel()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(a.do_handshake)
                nursery.start_soon(b.do_handshake)
            await a.xmit((1,))
            assert await b.recv() == (1,)


async def test_what_does_not_fit_is_refused_on_both_sides_at_every_call():
    here, there = socket.socketpair()
    async with Interface(here, "<Q") as a, Interface(there, "<d") as b:
        async with trio.open_nursery() as nursery:
            calls = [Call(nursery, a.do_handshake), Call(nursery, b.do_handshake)]
        for call, mine, theirs in zip(calls, ("u64", "f64"), ("f64", "u64"), strict=True):
            assert isinstance(call.error, memenpsf.RecordRefused)
            assert f"here is [8 bytes: 0:{mine}], the peer's is [8 bytes: 0:{theirs}]" in str(
                call.error
            )
        for verb in (a.recv, a.recv_vectored, a.do_handshake, lambda: a.xmit((1,))):
            with pytest.raises(memenpsf.RecordRefused):
                await verb()


async def test_a_peer_that_is_gone_or_silent_or_mad_fails_the_handshake():
    here, there = socket.socketpair()
    there.close()
    async with Interface(here, "<Q") as a:
        with its_own("PeerDied"):
            await a.do_handshake()
    here, there = socket.socketpair()
    with there:
        async with Interface(here, "<Q", timeout=0) as a:
            with pytest.raises(memenpsf.HandshakeTimeout):
                await a.recv()
    here, there = socket.socketpair()
    with there:
        there.sendall(b"nonsense")
        async with Interface(here, "<Q") as a:
            with its_own("CorruptPeer"):
                await a.recv()


async def test_a_silent_peer_is_given_up_by_the_clock():
    here, there = socket.socketpair()
    with there:
        async with Interface(here, "<Q", timeout=0.01) as a:
            with pytest.raises(memenpsf.HandshakeTimeout, match=r"within 0.01 s"):
                await a.do_handshake()


@pytest.mark.parametrize("wrap", [as_plain_socket, as_trio_socket, as_stream])
@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"record": object()}, TypeError),
        ({"role": "master"}, ValueError),
        ({"capacity": 0}, ValueError),
        ({"timeout": -1}, ValueError),
        ({"colour": "red"}, TypeError),
        ({"allow_uids": {os.geteuid() + 1}}, memenpsf.CredentialsRefused),
    ],
)
async def test_what_makes_no_interface_is_said_at_once_and_the_socket_is_taken(
    wrap, options, error
):
    here, there = socket.socketpair()
    with there:
        with pytest.raises(error):
            Interface(wrap(here), **({"record": 8} | options))
        assert b"" in (there.recv(2), there.recv(2))  # it is closed, whoever owned it


async def test_closing_before_or_during_the_handshake_is_closed():
    here, there = socket.socketpair()
    with there:
        async with Interface(here, "<Q", timeout=None) as a:
            async with trio.open_nursery() as nursery:
                calls = [Call(nursery, v) for v in (a.do_handshake, a.recv, lambda: a.xmit((1,)))]
                await wait_all_tasks_blocked()
                await a.aclose()
            for call in calls:
                assert isinstance(call.error, memenpsf.trio.Closed)
            with its_own("Closed"):
                await a.do_handshake()
        await a.aclose()


# -- every call is a checkpoint -------------------------------------------------------------------


async def test_every_verb_is_a_checkpoint_when_it_succeeds_at_once(tmp_path):
    async with opened(capacity=8) as (one, other):
        for verb in (
            one.do_handshake,
            lambda: one.xmit((1,)),
            lambda: one.xmit((1,), 0),
            lambda: one.xmit_many([(1,), (2,)]),
            lambda: one.xmit_many([(1,)], 0),
            lambda: one.xmit_many([]),
            lambda: one.send((1,)),
            lambda: one.send_ctrl_msg(b"\x80!"),
            lambda: one.send_ctrl_msg(b"\x80!", 5),
            other.recv,
            lambda: other.recv(0),
            other.receive,
            lambda: other.recv_vectored(1),
            lambda: other.recv_vectored(0),
            lambda: other.recv_vectored(None, 5),
            lambda: other.recv_ctrl_msg(None),
            other.recv_ctrl_msg,
            lambda: other.recv(0),  # of nothing
            lambda: other.recv_vectored(None, 0),
            other.recv_ctrl_msg,
            one.aclose,
            one.aclose,
        ):
            with assert_checkpoints():
                await verb()
    path = tmp_path / "s"
    with assert_checkpoints():
        listener = await listen(path, "<Q")
    async with trio.open_nursery() as nursery:

        async def serve_one():
            with assert_checkpoints():
                accepted = await listener.accept()
            await accepted.aclose()

        nursery.start_soon(serve_one)
        with assert_checkpoints():
            connected = await connect(path, "<Q")
        await connected.aclose()
    with assert_checkpoints():
        await listener.aclose()
    with assert_checkpoints():
        await listener.aclose()


async def test_a_cancelled_call_does_nothing(tmp_path):
    async with opened(capacity=8) as (one, other):
        await one.xmit((1,))
        await one.send_ctrl_msg(b"\x80!")
        for verb in (
            one.do_handshake,
            lambda: one.xmit((2,)),
            lambda: one.xmit((2,), 0),
            lambda: one.xmit_many([(2,)]),
            lambda: one.send((2,)),
            lambda: one.send_ctrl_msg(b"\x81!"),
            lambda: one.send_ctrl_msg(b"\x81!", 0),
            other.recv,
            lambda: other.recv(0),
            other.receive,
            other.recv_vectored,
            lambda: other.recv_vectored(None, 0),
            other.recv_ctrl_msg,
            lambda: connect(tmp_path / "s", "<Q"),
            lambda: listen(tmp_path / "s", "<Q"),
        ):
            with trio.CancelScope() as scope:
                scope.cancel()
                await verb()
            assert scope.cancelled_caught
        assert one.indices() == (1, 0)
        assert await other.recv_vectored() == [(1,)]
        assert await other.recv_ctrl_msg(None) == b"\x80!"
        assert await other.recv_ctrl_msg() is None
    assert list(tmp_path.iterdir()) == []


# -- timeouts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [0, 1e-9, 1, 60.0])
async def test_a_timeout_takes_exactly_as_long_as_it_says(timeout, autojump_clock):
    async with opened(capacity=1) as (one, other):
        await one.xmit((1,))
        await fill_messages(one)
        for verb, outcome in (
            (lambda: one.recv(timeout), None),
            (lambda: one.recv_vectored(None, timeout), []),
            (lambda: one.recv_ctrl_msg(timeout), None),
            (lambda: one.xmit_many(numbers(3), timeout), 0),
            (lambda: one.xmit((2,), timeout), memenpsf.trio.Full),
            (lambda: one.send_ctrl_msg(b"\xfe!", timeout), memenpsf.trio.Full),
        ):
            started = trio.current_time()
            if isinstance(outcome, type):
                with pytest.raises(outcome):
                    await verb()
            else:
                assert await verb() == outcome
            assert trio.current_time() - started == pytest.approx(timeout, abs=1e-6)
        assert one.indices() == (1, 0)
        assert await other.recv_vectored() == [(1,)]


# -- cancellation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("turns", range(TURNS))
@pytest.mark.parametrize("vectored", [False, True])
async def test_a_receive_cancelled_while_its_record_comes_has_it_or_leaves_it(turns, vectored):
    async with opened(capacity=4) as (one, other):
        for n in range(5):
            async with trio.open_nursery() as nursery:
                call = Call(nursery, other.recv_vectored if vectored else other.recv)
                await wait_all_tasks_blocked()
                await one.xmit((n,))
                for _ in range(turns):
                    await trio.lowlevel.checkpoint()
                call.scope.cancel()
            got = [] if call.cancelled else call.result if vectored else [call.result]
            rest = await other.recv_vectored(timeout=0)
            assert got + rest == [(n,)]


@pytest.mark.parametrize("turns", range(TURNS))
async def test_a_send_cancelled_while_room_is_made_is_done_or_not_done(turns):
    async with opened(capacity=1) as (one, other):
        await one.xmit((0,))
        for n in range(1, 6):
            async with trio.open_nursery() as nursery:
                call = Call(nursery, one.xmit, (n,))
                await wait_all_tasks_blocked()
                (last,) = await other.recv_vectored()
                for _ in range(turns):
                    await trio.lowlevel.checkpoint()
                call.scope.cancel()
            there = await other.recv_vectored(timeout=0)
            assert there == ([] if call.cancelled else [(n,)])
            await one.xmit((n,))
            assert last is not None


@pytest.mark.parametrize("turns", range(TURNS))
async def test_a_message_cancelled_on_its_way_is_there_or_not_there(turns):
    async with opened() as (one, other):
        async with trio.open_nursery() as nursery:
            call = Call(nursery, other.recv_ctrl_msg, None)
            await wait_all_tasks_blocked()
            await one.send_ctrl_msg(b"\x80!")
            for _ in range(turns):
                await trio.lowlevel.checkpoint()
            call.scope.cancel()
        rest = await other.recv_ctrl_msg()
        assert [call.result, rest].count(b"\x80!") == 1
        count = await fill_messages(one)
        async with trio.open_nursery() as nursery:
            call = Call(nursery, one.send_ctrl_msg, b"\xfe!")
            await wait_all_tasks_blocked()
            for _ in range(count):
                await other.recv_ctrl_msg(None)
            for _ in range(turns):
                await trio.lowlevel.checkpoint()
            call.scope.cancel()
        assert await other.recv_ctrl_msg() == (None if call.cancelled else b"\xfe!")


MOMENTS = {
    "recv": ("", "ready", lambda side: side.recv(), (7,)),
    "recv with a timeout": ("", "ready", lambda side: side.recv(5), (7,)),
    "recv that waits": ("", "try_pop", lambda side: side.recv(), (7,)),
    "recv_vectored": ("", "try_pop_many", lambda side: side.recv_vectored(), [(7,)]),
    "recv_ctrl_msg": ("", "try_take_message", lambda side: side.recv_ctrl_msg(None), b"\x87!"),
    "xmit": ("", "offer", lambda side: side.xmit((1,)), None),
    "xmit with a timeout": ("", "offer", lambda side: side.xmit((1,), 5), None),
    "xmit_many": ("sender", "push_many", lambda side: side.xmit_many([(1,)]), 1),
    "send_ctrl_msg": ("", "try_send_message", lambda side: side.send_ctrl_msg(b"\x81!"), None),
}


@pytest.mark.parametrize("moment", MOMENTS)
async def test_a_call_cancelled_in_the_very_moment_it_is_done_is_done(moment):
    part, attempt, verb, gives = MOMENTS[moment]
    async with opened(capacity=4) as (one, other):
        whole = getattr(one._endpoint, part) if part else one._endpoint
        really = getattr(whole, attempt)

        def attempt_and_be_cancelled(*args, **options):
            result = really(*args, **options)
            if result or isinstance(result, tuple) or attempt == "offer":
                call.scope.cancel()
            return result

        class CancelledOnceReady:
            def __iter__(self):
                for record in really:
                    call.scope.cancel()
                    yield record

        if attempt == "ready":
            whole.ready = CancelledOnceReady()
        else:
            setattr(whole, attempt, attempt_and_be_cancelled)
        if "waits" not in moment:
            await other.xmit((7,))
            await other.send_ctrl_msg(b"\x87!")
        async with trio.open_nursery() as nursery:
            call = Call(nursery, verb, one)
            if "waits" in moment:
                await wait_all_tasks_blocked()
                await other.xmit((7,))
        assert call.scope.cancel_called
        assert not call.cancelled
        assert (call.error, call.result) == (None, gives)


async def test_an_accept_cancelled_in_the_very_moment_its_client_is_ready_has_it(tmp_path):
    async with await listen(tmp_path / "s", "<Q") as listener, trio.open_nursery() as nursery:
        turn = listener._pending.turn

        def turn_and_be_cancelled():
            endpoint = turn()
            if endpoint is not None:
                accepting.scope.cancel()
            return endpoint

        listener._pending.turn = turn_and_be_cancelled
        accepting = Call(nursery, listener.accept)
        client = await connect(tmp_path / "s", "<Q", name="client")
        while not accepting.done:
            await trio.lowlevel.checkpoint()
        assert not accepting.cancelled
        async with client, accepting.result as accepted:
            assert accepted.peer_name == "client"


async def test_indices_tell_what_of_a_cancelled_batch_was_sent():
    async with opened(capacity=4) as (one, other):
        async with trio.open_nursery() as nursery:
            call = Call(nursery, one.xmit_many, numbers(100))
            await wait_all_tasks_blocked()
            first = await other.recv_vectored(3)
            await wait_all_tasks_blocked()
            call.scope.cancel()
        assert call.cancelled
        sent, taken = one.indices()
        assert (sent, taken) == (7, 3)
        assert first + await other.recv_vectored() == numbers(sent)
        assert await other.recv(timeout=0) is None


async def test_receiving_is_cancelled_at_random_while_a_thread_sends_and_all_arrives_once():
    count, rng = 4000, random.Random(7)
    async with opened_to_a_thread(capacity=4) as (interface, peer):
        got, cancelled = [], 0

        def send():
            for n in range(0, count, 5):
                peer.xmit((n,))
                peer.xmit_many(numbers(n + 1, n + 5))
            peer.close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, send)
            with contextlib.suppress(memenpsf.EndOfStream):
                while True:
                    patience = rng.choice([-1, 0, 1e-5, 1e-4, 1e-3])
                    with trio.move_on_after(abs(patience)) as scope:
                        if patience < 0:
                            scope.cancel()
                        if rng.random() < 0.5:
                            got.append(await interface.recv())
                        else:
                            got += await interface.recv_vectored(rng.choice([None, 1, 2]))
                    cancelled += scope.cancelled_caught
        assert got == numbers(count)
        assert cancelled > 0


async def test_sending_is_cancelled_at_random_and_what_was_reported_arrives_once():
    rng = random.Random(8)
    async with opened_to_a_thread(capacity=2) as (interface, peer):
        sent, got = [], []

        def receive():
            got.extend(peer)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, receive)
            for n in range(3000):
                patience = rng.choice([-1, 0, 1e-5, 1e-4, 1])
                with trio.move_on_after(abs(patience)) as scope:
                    if patience < 0:
                        scope.cancel()
                    await interface.xmit((n,))
                    sent.append((n,))
            await interface.aclose()
        assert got == sent
        assert 0 < len(sent) < 3000


async def test_when_the_task_that_reads_is_cancelled_another_takes_over():
    async with opened(capacity=1) as (one, other):
        await one.xmit((0,))
        async with trio.open_nursery() as nursery:
            first = Call(nursery, one.recv)
            await wait_all_tasks_blocked()
            calls = {
                "recv": Call(nursery, one.recv),
                "xmit": Call(nursery, one.xmit, (1,)),
                "message": Call(nursery, one.recv_ctrl_msg, None),
            }
            await wait_all_tasks_blocked()
            first.scope.cancel()
            await wait_all_tasks_blocked()
            assert first.cancelled
            await other.xmit((7,))
            await wait_all_tasks_blocked()
            assert calls["recv"].result == (7,)
            assert not calls["xmit"].done
            assert await other.recv() == (0,)
            await wait_all_tasks_blocked()
            assert calls["xmit"].done
            await other.send_ctrl_msg(b"\x80!")
        assert calls["message"].result == b"\x80!"


async def test_a_task_that_stops_waiting_takes_nothing_back_from_those_that_wait_on():
    async with opened(capacity=1) as (one, other):
        await one.xmit((0,))
        async with trio.open_nursery() as nursery:
            receiving = [Call(nursery, one.recv)]
            sending = [Call(nursery, one.xmit, (1,))]
            await wait_all_tasks_blocked()
            receiving.append(Call(nursery, one.recv))
            sending.append(Call(nursery, one.xmit, (2,)))
            await wait_all_tasks_blocked()
            for calls in (receiving, sending):
                calls[1].scope.cancel()
            await wait_all_tasks_blocked()
            await other.xmit((7,))
            assert await other.recv() == (0,)
        assert receiving[0].result == (7,)
        assert await other.recv() == (1,)


@pytest.mark.parametrize("turns", range(TURNS))
async def test_the_reading_task_is_cancelled_just_as_the_doorbell_of_another_comes(turns):
    async with opened(capacity=1) as (one, other):
        async with trio.open_nursery() as nursery:
            reading = Call(nursery, one.recv_ctrl_msg, None)
            await wait_all_tasks_blocked()
            waiting = Call(nursery, one.recv)
            await wait_all_tasks_blocked()
            await other.xmit((1,))
            for _ in range(turns):
                await trio.lowlevel.checkpoint()
            reading.scope.cancel()
        assert waiting.result == (1,)


async def test_a_reader_whose_time_is_up_hands_over(autojump_clock):
    async with opened(capacity=1) as (one, other):
        async with trio.open_nursery() as nursery:
            first = Call(nursery, one.recv, 10)
            await trio.testing.wait_all_tasks_blocked()
            second = Call(nursery, one.recv, 1000)
            await trio.sleep(20)
            assert first.done
            assert first.result is None
            await other.xmit((1,))
        assert second.result == (1,)


async def test_an_idle_wait_rings_no_bell_and_wakes_nobody():
    async with opened(capacity=1) as (one, other), opened(capacity=1) as (busy, partner):
        async with trio.open_nursery() as nursery:
            calls = [Call(nursery, one.recv), Call(nursery, one.recv_ctrl_msg, None)]
            await wait_all_tasks_blocked()
            before = one.statistics(), other.statistics()
            assert before[0].waits == 1
            for n in range(500):
                await busy.xmit((n,))
                assert await partner.recv() == (n,)
            assert (one.statistics(), other.statistics()) == before
            for call in calls:
                call.scope.cancel()


# -- the end --------------------------------------------------------------------------------------


async def cried_wolf(interface, peer):
    """Have the peer ring so often with nothing new that the next wait begins with a nap."""
    for _ in range(alarms.MAX_FALSE_ALARMS):
        peer._endpoint.wire.sock.send(b"\x01\x00")
        interface._endpoint.read_once()
        interface._endpoint.note_wakeup(True)


async def test_who_rings_and_rings_with_nothing_new_is_left_waiting(autojump_clock):
    async with opened() as (one, other), trio.open_nursery() as nursery:
        await cried_wolf(one, other)
        nursery.start_soon(one.recv)
        for turn in range(1, 5):
            await wait_all_tasks_blocked()
            assert one.statistics().false_alarms == turn
            other._endpoint.wire.sock.send(b"\x01\x00")
            await wait_all_tasks_blocked()
            assert one.statistics().false_alarms == turn  # it does not look
            await trio.sleep(
                one._endpoint.alarms.BACK_OFF * 2 ** (turn - 1)
            )  # each time for longer
        other.xmit_nowait((7,))
        await trio.sleep(one._endpoint.back_off_length())
        other.xmit_nowait((8,))
        await wait_all_tasks_blocked()
        assert await one.recv() == (8,)


async def test_a_record_a_time_is_never_kept_waiting():
    async with opened(capacity=1) as (one, other), trio.open_nursery() as nursery:
        count = 10 * alarms.MAX_FALSE_ALARMS
        nursery.start_soon(one.xmit_many, numbers(count))
        for number in range(count):
            await wait_all_tasks_blocked()
            assert await other.recv() == (number,)
        assert one.statistics().false_alarms == other.statistics().false_alarms == 0


@pytest.mark.parametrize("end", ["closes", "is closed", "is closed, without a descriptor left"])
async def test_the_end_ends_a_nap(monkeypatch, end):
    monkeypatch.setattr(alarms.FalseAlarms, "BACK_OFF", math.inf)

    def short():
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async with opened() as (one, other), trio.open_nursery() as nursery:
        await cried_wolf(one, other)
        if "without" in end:
            monkeypatch.setattr(select, "epoll", short)
        waiter = Call(nursery, one.recv)
        await wait_all_tasks_blocked()
        assert one.statistics().false_alarms == 1
        await (other if end == "closes" else one).aclose()
    expected = memenpsf.trio.EndOfStream if end == "closes" else memenpsf.trio.Closed
    assert type(waiter.error) is expected


async def test_a_nap_can_be_cancelled_and_the_next_who_waits_takes_his_own(autojump_clock):
    async with opened() as (one, other):
        await cried_wolf(one, other)
        for turn in (1, 2):
            assert await one.recv(one._endpoint.alarms.BACK_OFF / 2) is None
            assert one.statistics().false_alarms == 1, turn
        other.xmit_nowait((7,))
        assert await one.recv() == (7,)


async def test_what_was_published_before_aclose_is_received_before_the_end():
    async with opened(capacity=8) as (one, other):
        await one.xmit_many(numbers(5))
        await one.send_ctrl_msg(b"\x80!")
        with trio.CancelScope() as scope:
            scope.cancel()
            await one.aclose()  # closes also when it is cancelled
        assert scope.cancelled_caught
        assert await other.recv_ctrl_msg(None) == b"\x80!"
        assert [record async for record in other] == numbers(5)


# -- connect and listen ---------------------------------------------------------------------------


async def test_trio_meets_threads_on_either_side(tmp_path):
    path = tmp_path / "s"
    async with await listen(path, "<Q") as listener:
        assert listener.address == str(path)
        async with trio.open_nursery() as nursery:
            client = Call(nursery, trio.to_thread.run_sync, memenpsf.connect, path, "<Q")
            accepted = await listener.accept()
        async with accepted:
            with client.result as connected:
                connected.xmit((1,))
                assert await accepted.recv() == (1,)
                assert accepted.role == "server"
    with memenpsf.listen(path, "<Q") as listener:
        async with trio.open_nursery() as nursery:
            server = Call(nursery, trio.to_thread.run_sync, listener.accept)
            connected = await connect(path, "<Q")
        async with connected:
            with server.result as accepted:
                await connected.xmit((2,))
                assert accepted.recv() == (2,)
                assert connected.role == "client"
    assert list(tmp_path.iterdir()) == []


def full_backlog(path, stack):
    server = stack.enter_context(socket.socket(socket.AF_UNIX))
    server.bind(str(path))
    server.listen(0)
    for _ in range(1000):
        sock = stack.enter_context(socket.socket(socket.AF_UNIX))
        sock.setblocking(False)
        try:
            sock.connect(str(path))
        except BlockingIOError:
            return server
    raise AssertionError("the backlog has no end")


async def test_a_full_backlog_is_a_handshake_timeout(tmp_path):
    path = tmp_path / "s"
    with contextlib.ExitStack() as stack:
        full_backlog(path, stack)
        for timeout in (0, 0.01):
            with pytest.raises(memenpsf.HandshakeTimeout, match=f"{path}.*no room"):
                await connect(path, "<Q", timeout=timeout)


async def test_connecting_can_be_cancelled_wherever_it_waits(tmp_path):
    with contextlib.ExitStack() as stack:
        server = full_backlog(tmp_path / "s", stack)
        async with trio.open_nursery() as nursery:  # waits for room
            call = Call(nursery, lambda: connect(tmp_path / "s", "<Q", timeout=None))
            await wait_all_tasks_blocked(0.001)
            call.scope.cancel()
        assert call.cancelled
        server.listen(100)
        async with trio.open_nursery() as nursery:  # waits for an introduction
            call = Call(nursery, lambda: connect(tmp_path / "s", "<Q", timeout=None))
            await wait_all_tasks_blocked(0.2)
            call.scope.cancel()
        assert call.cancelled


def come_and_go(path, count):
    for _ in range(count):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(path)


def come_with_nonsense(path, count):
    for _ in range(count):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(path)
            sock.sendall(b"nonsense")


@pytest.mark.parametrize(
    ("fruitless", "least", "most"),
    [(come_and_go, 0, 1), (come_with_nonsense, 100 * _pending.COOLDOWN, 10)],
)
async def test_after_each_client_that_came_to_nothing_others_have_the_loop(
    tmp_path, autojump_clock, monkeypatch, fruitless, least, most
):
    # One clock for both, or the listener's stands still while that of Trio jumps.
    monkeypatch.setattr(_pending, "monotonic", trio.current_time)
    path = str(tmp_path / "it")
    async with trio.open_nursery() as nursery:
        listener = await nursery.start(partial(serve, Interface.recv), path, "<Q")
        begin = trio.current_time()
        fruitless(path, 20)
        while listener._pending.fruitless < 20:  # noqa: ASYNC110 (nothing tells)
            await trio.sleep(_pending.PAUSE)
        taken = trio.current_time() - begin
        assert least <= taken <= most
        await listener.aclose()


@pytest.mark.parametrize("exchanged", ["nothing", "to the server", "to the client"])
async def test_who_got_in_for_nothing_counts_as_such(tmp_path, exchanged):
    path = str(tmp_path / "it")
    served = trio.Event()

    async def handler(interface):
        served.set()
        if exchanged == "to the client":
            await interface.xmit((1,))
        async for _ in interface:
            pass

    async with trio.open_nursery() as nursery:
        listener = await nursery.start(partial(serve, handler), path, "<Q")
        async with await connect(path, "<Q") as client:
            if exchanged == "to the server":
                await client.xmit((1,))
            elif exchanged == "to the client":
                assert await client.recv() == (1,)
            await served.wait()
        await listener.aclose()
    assert listener._pending.fruitless == (exchanged == "nothing")


async def test_clients_get_in_without_a_descriptor_to_wait_for_all_of_them(tmp_path, monkeypatch):
    def short():
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async with await listen(tmp_path / "it", "<Q") as listener:
        monkeypatch.setattr(select, "epoll", short)
        assert await serves(listener, tmp_path / "it")


async def test_closing_at_the_limit_wakes_who_accepts(tmp_path, monkeypatch):
    path = tmp_path / "s"
    async with await listen(path, "<Q", timeout=None, quota=memenpsf.Quota(places=1)) as listener:
        with socket.socket(socket.AF_UNIX) as silent:
            silent.connect(str(path))
            async with trio.open_nursery() as nursery:
                calls = [Call(nursery, listener.accept) for _ in range(2)]
                await wait_all_tasks_blocked(0.001)
                await listener.aclose()
            for call in calls:
                assert type(call.error) is memenpsf.trio.Closed
        with its_own("Closed"):
            await listener.accept()
    assert not path.exists()
    assert "closed" in repr(listener)


@pytest.mark.parametrize("turns", range(0, 3 * TURNS, 2))
async def test_an_accept_that_is_cancelled_loses_no_client(tmp_path, turns):
    path = tmp_path / "s"
    async with await listen(path, "<Q") as listener:
        async with trio.open_nursery() as nursery:
            first = Call(nursery, listener.accept)
            await wait_all_tasks_blocked()
            client = Call(nursery, lambda: connect(path, "<Q", name="client"))
            for _ in range(turns):
                await trio.lowlevel.checkpoint()
            first.scope.cancel()
            while not first.done:
                await trio.lowlevel.checkpoint()
            accepted = await listener.accept() if first.cancelled else first.result
        async with accepted, client.result:
            assert accepted.peer_name == "client"


async def test_trio_can_serve_our_listener_itself(tmp_path):
    path = tmp_path / "s"

    async def handle(interface):
        async for record in interface:
            await interface.xmit(record)

    async with trio.open_nursery() as nursery:
        listener = await listen(path, "<Q")
        nursery.start_soon(trio.serve_listeners, handle, [listener])
        async with await connect(path, "<Q") as client:
            await client.xmit((5,))
            assert await client.recv() == (5,)
        nursery.cancel_scope.cancel()
    assert not path.exists()


# -- serve ----------------------------------------------------------------------------------------


async def echo(interface):
    async for record in interface:
        await interface.xmit(record)


@contextlib.asynccontextmanager
async def served(handler, path, record="<Q", **options):
    async with trio.open_nursery() as nursery:
        listener = await nursery.start(lambda **kw: serve(handler, path, record, **kw, **options))
        yield listener
        await listener.aclose()


async def test_many_clients_are_served_at_once(tmp_path):
    path = tmp_path / "s"

    async def client(n):
        async with await connect(path, "<Q", name=f"client {n}") as interface:
            for k in range(20):
                await interface.xmit((n + k,))
                assert await interface.recv() == (n + k,)
            together.append(n)
            while len(together) < 20:  # all of them are connected at once
                await trio.lowlevel.checkpoint()

    together = []
    async with served(echo, path, capacity=2) as listener:
        assert isinstance(listener, memenpsf.trio.Listener)
        assert listener.address == str(path)
        async with trio.open_nursery() as nursery:
            for n in range(20):
                nursery.start_soon(client, n)
    assert sorted(together) == list(range(20))
    assert not path.exists()


async def test_an_interface_is_closed_when_its_handler_is_done(tmp_path):
    path, kept = tmp_path / "s", []

    async def handle(interface):
        kept.append(interface)
        await interface.xmit((1,))

    async with served(handle, path):
        async with await connect(path, "<Q") as client:
            assert [record async for record in client] == [(1,)]
    with its_own("Closed"):
        await kept[0].recv()


async def test_what_a_handler_raises_of_its_own_ends_serving(tmp_path):
    class Broken(Exception):
        pass

    async def handle(interface):
        raise Broken

    async with trio.open_nursery() as nursery:
        serving = Call(nursery, partial(serve, on_error="raise"), handle, tmp_path / "s", "<Q")
        await wait_all_tasks_blocked()
        async with await connect(tmp_path / "s", "<Q") as client:
            with its_own("Aborted"):
                await client.recv()
    leaf = serving.error
    while isinstance(leaf, ExceptionGroup):
        (leaf,) = leaf.exceptions
    assert isinstance(leaf, Broken)
    assert not (tmp_path / "s").exists()


async def test_a_client_that_ends_early_is_logged_and_disturbs_nobody(tmp_path, caplog):
    path = tmp_path / "s"

    async def handle(interface):
        while True:
            await interface.xmit(await interface.recv())

    async def handle_in_a_nursery(interface):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(handle, interface)
            nursery.start_soon(handle, interface)

    with caplog.at_level(logging.INFO, "memenpsf"):
        for handler in (handle, handle_in_a_nursery):
            async with served(handler, path):
                async with await connect(path, "<Q", name="steady") as steady:
                    async with await connect(path, "<Q", name="brief"):
                        pass
                    corrupt = await connect(path, "<Q", name="corrupt")
                    os.write(corrupt._endpoint.fileno(), b"\x4d\x00")
                    with pytest.raises(memenpsf.Refused):
                        await corrupt.recv()
                    await corrupt.aclose()
                    await steady.xmit((1,))
                    assert await steady.recv() == (1,)
    messages = [record.getMessage() for record in caplog.records]
    for name in ("brief", "corrupt", "steady"):
        assert sum(f"client '{name}': " in message for message in messages) == 2, name


DOOMED = """
import memenpsf, sys
interface = memenpsf.connect(sys.argv[1], "<Q", name="doomed")
for n in range(10):
    interface.xmit((n,))
print("sent", flush=True)
sys.stdin.read()
"""


async def test_a_client_that_is_killed_disturbs_nobody(tmp_path, program, caplog):
    path, got = tmp_path / "s", []

    async def handle(interface):
        while True:
            record = await interface.recv()
            if interface.peer_name == "doomed":
                got.append(record)
            else:
                await interface.xmit(record)

    with caplog.at_level(logging.INFO, "memenpsf"):
        async with served(handle, path), await connect(path, "<Q") as steady:
            doomed = program(DOOMED, path)
            assert await trio.to_thread.run_sync(doomed.stdout.readline) == "sent\n"
            doomed.send_signal(signal.SIGKILL)
            while "client 'doomed': the peer is gone without a word" not in caplog.text:
                await steady.xmit((1,))
                assert await steady.recv() == (1,)
    assert got == numbers(10)


async def test_clients_that_are_refused_are_logged_and_the_others_served(tmp_path, caplog):
    path = tmp_path / "s"
    with caplog.at_level(logging.WARNING, "memenpsf"):
        async with served(echo, path, timeout=None) as listener:
            with socket.socket(socket.AF_UNIX) as mad:
                mad.connect(str(path))
                mad.sendall(b"nonsense")
                with pytest.raises(memenpsf.RecordRefused):
                    await connect(path, "<d")
                async with await connect(path, "<Q") as client:
                    await client.xmit((1,))
                    assert await client.recv() == (1,)
            assert listener.refused == 2
    messages = sorted(record.getMessage() for record in caplog.records)
    assert len(messages) == 2
    assert all(message.startswith(f"{path}: client refused: ") for message in messages)


@pytest.mark.parametrize("where", ["segment", "in flight", "accept"])
async def test_a_shortage_for_one_client_does_not_end_serving(
    tmp_path, monkeypatch, caplog, where, autojump_clock
):
    """Whatever a server does about it, those it serves already must not notice."""
    path = tmp_path / "s"
    adopt, send_fds = ipcqueue._ring.segment.adopt, fdpass.send_fds
    short, on_the_server = set(), []

    class Opening(ipcqueue.lowlevel.Opening):
        def step(self):
            on_the_server.append(self)
            try:
                return super().step()
            finally:
                on_the_server.pop()

    def adopt_unless_short(fd, *terms):
        if on_the_server and "segment" in short:
            short.clear()
            fd.close()
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        return adopt(fd, *terms)

    def send_unless_short(sock, fds, data=b"\0"):
        if on_the_server and "in flight" in short:
            short.clear()
            raise fdpass.TooManyInFlight("of this user")
        send_fds(sock, fds, data)

    class Short:
        def __init__(self, sock):
            self._sock = sock

        def __getattr__(self, name):
            return getattr(self._sock, name)

        def accept(self):
            if "accept" in short:
                short.clear()
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return self._sock.accept()

    async def is_served(interface):
        await interface.xmit((1,))
        return await interface.recv() == (1,)

    monkeypatch.setattr(_pending, "Opening", Opening)
    monkeypatch.setattr(ipcqueue._link.opening, "adopt", adopt_unless_short)
    monkeypatch.setattr(fdpass, "send_fds", send_unless_short)
    async with served(echo, path) as listener, await connect(path, "<Q") as steady:
        assert await is_served(steady)
        listener._pending.bound.sock = Short(listener._pending.bound.sock)
        short.add(where)
        with contextlib.suppress(OSError, memenpsf.QueueError):
            async with await connect(path, "<Q") as unlucky:
                await is_served(unlucky)
        assert not short
        assert await is_served(steady)
        async with await connect(path, "<Q") as lucky:
            assert await is_served(lucky)


async def test_serving_that_is_cancelled_closes_everything(tmp_path):
    path = tmp_path / "s"
    async with trio.open_nursery() as nursery:
        await nursery.start(serve, echo, path, "<Q")
        client = await connect(path, "<Q")
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    async with client:
        with its_own("Aborted"):
            await client.recv()
    assert not path.exists()


# -- the run loop, as far as it is Trio's own (the rest is in conformance/test_loops.py) -----------------------


@contextlib.asynccontextmanager
async def looped(source, sink, **options):
    """A run loop in a task, and its peer."""
    here, there = socket.socketpair()
    async with trio.open_nursery() as nursery:
        call = Call(
            nursery, lambda: memenpsf.trio.run("loop", 4, 0, here, source, sink, "<Q", **options)
        )
        async with Interface(there, "<Q", capacity=4) as peer:
            await peer.do_handshake()
            yield call, peer


def drained(channel):
    found = []
    with contextlib.suppress(trio.WouldBlock, trio.EndOfChannel):
        while True:
            found.append(channel.receive_nowait())
    return found


async def test_a_loop_moves_records_through_channels_without_room():
    feeding, source = trio.open_memory_channel(0)
    sink, arriving = trio.open_memory_channel(0)
    async with looped(source, sink) as (call, peer):
        async with trio.open_nursery() as nursery:

            async def feed():
                async with feeding:
                    for record in numbers(50):
                        await feeding.send(record)

            nursery.start_soon(feed)
            nursery.start_soon(peer.xmit_many, numbers(50))
            assert [await arriving.receive() for _ in range(50)] == numbers(50)
            assert [record async for record in peer] == numbers(50)  # the end of the source ends it
    assert isinstance(call.result.cause, memenpsf.Closed)
    assert call.result.unsent == []


async def test_what_was_taken_from_the_ring_is_delivered_before_a_bad_record_is_raised():
    feeding, source = trio.open_memory_channel(math.inf)
    sink, arriving = trio.open_memory_channel(0)
    async with looped(source, sink) as (call, peer):
        await peer.xmit_many(numbers(4))
        await wait_all_tasks_blocked()
        feeding.send_nowait("bad")
        await wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:

            async def collect():
                got.extend([record async for record in arriving])

            got = []
            nursery.start_soon(collect)
            while not call.done:
                await trio.lowlevel.checkpoint()
            sink.close()
    assert isinstance(call.error, memenpsf.BadRecord)
    assert got == numbers(4)


async def test_the_end_of_the_peer_waits_for_a_slow_sink():
    feeding, source = trio.open_memory_channel(math.inf)
    sink, arriving = trio.open_memory_channel(0)
    feeding.send_nowait((1,))
    async with looped(source, sink) as (call, peer):
        assert await peer.recv() == (1,)
        await peer.xmit_many(numbers(4))
        await wait_all_tasks_blocked()
        await peer.xmit_many(numbers(4, 8))
        await peer.aclose()
        await wait_all_tasks_blocked()
        assert not call.done
        assert [await arriving.receive() for _ in range(8)] == numbers(8)
    assert isinstance(call.result.cause, memenpsf.EndOfStream)


async def test_a_sink_that_nobody_reads_any_more_is_raised():
    feeding, source = trio.open_memory_channel(math.inf)
    sink, arriving = trio.open_memory_channel(0)
    async with looped(source, sink) as (call, peer):
        arriving.close()
        await peer.xmit((1,))
        with its_own("Aborted"):
            await peer.recv()
    assert type(call.error) is trio.BrokenResourceError
    feeding.close()


@pytest.mark.parametrize("taken", [0, 1, 3])
async def test_a_loop_that_is_cancelled_aborts_and_loses_nothing_it_was_to_send(taken):
    feeding, source = trio.open_memory_channel(math.inf)
    sink, arriving = trio.open_memory_channel(math.inf)
    for record in numbers(20):
        feeding.send_nowait(record)
    async with looped(source, sink) as (call, peer):
        got = [await peer.recv() for _ in range(taken)]
        await peer.xmit_many(numbers(3))
        await wait_all_tasks_blocked()
        call.scope.cancel()
        with its_own("Aborted"):
            while True:
                got.append(await peer.recv())
    assert call.cancelled
    assert got + drained(source) == numbers(20)
    assert drained(arriving) == numbers(3)


@pytest.mark.parametrize("turns", range(4))
async def test_a_loop_cancelled_as_it_takes_from_the_source_sends_it_or_leaves_it(turns):
    for _ in range(10):  # Trio runs the tasks that are ready in any order
        feeding, source = trio.open_memory_channel(math.inf)
        sink, _arriving = trio.open_memory_channel(math.inf)
        async with looped(source, sink) as (call, peer):
            await wait_all_tasks_blocked()
            feeding.send_nowait((1,))
            for _ in range(turns):
                await trio.lowlevel.checkpoint()
            call.scope.cancel()
            got = []
            with its_own("Aborted"):
                while True:
                    got.append(await peer.recv())
        assert got + drained(source) == [(1,)]


async def test_a_loop_that_is_cancelled_in_its_handshake_takes_the_stream():
    feeding, source = trio.open_memory_channel(0)
    here, there = socket.socketpair()
    with there:
        async with trio.open_nursery() as nursery:
            call = Call(nursery, memenpsf.trio.run, "", 4, 0, here, source, feeding, "<Q")
            await wait_all_tasks_blocked()
            call.scope.cancel()
        assert call.cancelled
    assert here.fileno() == -1


async def test_one_that_is_forgotten_warns_by_the_name_that_its_user_knows():
    here, there = socket.socketpair()
    one, other = Interface(here, "<Q"), Interface(there, "<Q")
    async with other:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.do_handshake)
            await other.do_handshake()
        with pytest.warns(ResourceWarning, match="unclosed <memenpsf.trio.Interface fd .*: open, "):
            del one
        with pytest.raises(memenpsf.PeerDied):
            await other.recv()
