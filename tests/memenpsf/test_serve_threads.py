"""What memenpsf.serve for plain threads has to itself: how many threads, and how long they go on."""

from __future__ import annotations

import contextlib
import logging
import math
import queue
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import trio

import memenpsf
import memenpsf.trio
from memenpsf import Quota
from memenpsf._pending import PendingClients
from memenpsf._thread_quota import ThreadQuota
from tests.kit.clients import Client, inventing
from tests.kit.waiting import until


@pytest.fixture
def path(tmp_path):
    return tmp_path / "s"


@pytest.fixture
def invented(monkeypatch):
    """Clients of any user: connect with invented(path, uid)."""
    with inventing(monkeypatch) as connect:
        yield connect


class Server:
    """memenpsf.serve in a thread; `here` gets the interface of each client that is served."""

    def __init__(self, handler, path, **options):
        ready = queue.SimpleQueue()
        self.here = queue.SimpleQueue()

        def greeting(interface):
            self.here.put(interface)
            handler(interface)

        self._pool = ThreadPoolExecutor(1)
        self.result = self._pool.submit(
            memenpsf.serve, greeting, path, bytes, started=ready.put, **options
        )
        self.listener = ready.get()

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.listener.close()
        self._pool.shutdown()
        self.result.result()


def echo(interface):
    for record in interface:
        interface.xmit(record)


def is_served(interface, record=b"x"):
    interface.xmit(record)
    return interface.recv() == record


def threads():
    return [each for each in threading.enumerate() if each.name == "memenpsf serve"]


# -- how many ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "of_one"), [(1, 1), (2, 1), (3, 2), (4, 3), (512, 384), (1 << 62, 3 << 60)]
)
def test_a_user_may_have_three_quarters_of_the_threads(limit, of_one):
    taken = []
    quota = ThreadQuota(limit, lambda: taken)
    if limit <= 512:
        taken += [7] * (of_one - 1)
        quota.check(7, [])
        with pytest.raises(memenpsf.LimitRefused, match=f"uid 7 have {of_one} .* have {of_one}$"):
            quota.check(7, [7])
        if limit > 1:
            quota.check(8, [7])
            with pytest.raises(memenpsf.LimitRefused, match=f"all {limit} threads"):
                quota.check(8, [7, *range(1000, 1000 + limit - of_one)])
    else:
        quota.check(7, [7, 8])


def test_silent_clients_of_one_user_do_not_take_all_threads(path, invented, caplog):
    caplog.set_level(logging.INFO, "memenpsf")
    with Server(echo, path, quota=Quota(threads=4)) as server, contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(memenpsf.Interface(invented(path, 7), bytes))
            server.here.get()
        with pytest.raises(memenpsf.LimitRefused):
            memenpsf.Interface(invented(path, 7), bytes)
        with memenpsf.Interface(invented(path, 8), bytes) as other:
            assert is_served(other)
            with pytest.raises(memenpsf.LimitRefused):
                memenpsf.Interface(invented(path, 9), bytes)
            assert is_served(other)
        until(lambda: server.listener.refused == 2)
        until(lambda: len(threads()) == 3)
        with memenpsf.Interface(invented(path, 9), bytes) as another:
            assert is_served(another)
    assert [
        each.partition(": client refused: ")[2] for each in caplog.messages if "refused" in each
    ] == [
        "the clients of uid 7 have 3 threads here, and may have 3",
        "all 4 threads of this server have a client",
    ]


def test_who_is_refused_is_refused_before_a_handshake_and_does_not_wait(path, invented):
    with Server(echo, path, quota=Quota(threads=1)) as server:
        with memenpsf.Interface(invented(path, 7), bytes):
            server.here.get()
            silent = invented(path, 7)
            assert silent.recv(2) == b"\x64\x08"  # ERR, LimitRefused; it has said nothing itself
            assert silent.recv(2) == b""


def test_a_handler_has_its_thread_until_it_is_done_though_its_client_is_gone(path, invented):
    go_on = threading.Event()

    def works_on(interface):
        interface.close()
        go_on.wait()

    with Server(works_on, path, quota=Quota(threads=1)) as server:
        with contextlib.closing(memenpsf.Interface(invented(path, 7), bytes)):
            server.here.get()
        until(lambda: not server.listener._pending.quota.shares(7))
        with pytest.raises(memenpsf.LimitRefused):
            memenpsf.Interface(invented(path, 7), bytes)
        go_on.set()
        until(lambda: not threads())
        with memenpsf.Interface(invented(path, 7), bytes):
            server.here.get()


@pytest.mark.parametrize("state", ["candidate", "handshake", "connected"])
def test_a_client_on_its_way_in_has_a_thread_already(path, invented, state):
    pending = PendingClients(path, "<Q", quota=Quota(threads=4, places=1))
    pending.thread_quota = ThreadQuota(pending.max_threads, lambda: [7])
    with contextlib.closing(pending), contextlib.ExitStack() as stack:
        if state == "candidate":
            pending._max_pending = 0
        if state == "connected":
            client = stack.enter_context(Client(path, sock=invented(path, 7)))
            client.say_hello()
            turn, pending.turn = pending.turn, lambda: None
            pending._let_in()
            pending._begin_handshakes()
            for opening in pending._due():
                pending._attempt(opening)
            assert len(pending._outcomes) == 1
            pending.turn = turn
        else:
            invented(path, 7)
            pending.turn()
            assert len(pending.handshakes) == (state == "handshake")
        assert list(pending._pending_uids()) == [7]
        pending.thread_quota.check(7, pending._pending_uids())
        with pytest.raises(memenpsf.LimitRefused):
            pending.thread_quota.check(7, [*pending._pending_uids(), 7])


def test_where_no_threads_are_started_there_is_no_such_limit(path):
    with memenpsf.listen(path, bytes, quota=Quota(threads=1)) as listener:
        with ThreadPoolExecutor(1) as pool, contextlib.ExitStack() as stack:
            for _ in range(3):
                client = pool.submit(memenpsf.connect, path, bytes)
                stack.enter_context(listener.accept())
                stack.enter_context(client.result())

    async def handler(interface):
        async for record in interface:
            await interface.xmit(record)

    async def main():
        async with trio.open_nursery() as nursery:

            async def serving(task_status):
                quota = Quota(threads=1)
                await memenpsf.trio.serve(
                    handler, path, bytes, quota=quota, task_status=task_status
                )

            listener = await nursery.start(serving)
            async with contextlib.AsyncExitStack() as stack:
                for _ in range(3):
                    client = await memenpsf.trio.connect(path, bytes)
                    await stack.enter_async_context(client)
                    await client.xmit(b"x")
                    assert await client.recv() == b"x"
            await listener.aclose()

    trio.run(main)


# -- how long ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("drain", [None, 1e9, math.inf, 1 << 100, timedelta(days=1)])
def test_handlers_that_are_given_time_finish(path, drain):
    with Server(echo, path, drain=drain) as server:
        with memenpsf.connect(path, bytes) as client:
            assert is_served(client)
            server.listener.close()
            with pytest.raises(FileNotFoundError):
                memenpsf.connect(path, bytes)
            assert is_served(client)
            assert not server.result.done()
        server.result.result()
    assert threads() == []


@pytest.mark.parametrize("drain", [0, 0.01, timedelta(0)])
def test_handlers_that_do_not_finish_in_time_get_closed_and_their_clients_aborted(path, drain):
    ends = queue.SimpleQueue()

    def noting(interface):
        try:
            echo(interface)
        except memenpsf.Closed as error:
            ends.put(memenpsf.interface_of(error) is interface)
            raise

    with Server(noting, path, drain=drain) as server:
        with memenpsf.connect(path, bytes) as one, memenpsf.connect(path, bytes) as other:
            assert is_served(one)
            assert is_served(other)
            server.listener.close()
            for client in (one, other):
                with pytest.raises(memenpsf.Aborted):
                    client.recv()
            assert server.result.result() is None
    assert ends.get() is ends.get() is True
    assert threads() == []


def test_a_handler_that_uses_no_interface_is_waited_for(path):
    go_on = threading.Event()

    def works_on(interface):
        go_on.wait()
        finished.append(interface)

    finished = []
    with Server(works_on, path, drain=0) as server:
        with memenpsf.connect(path, bytes) as client:
            served = server.here.get()
            server.listener.close()
            with pytest.raises(memenpsf.Aborted):
                client.recv()
            assert not server.result.done()
            go_on.set()
            server.result.result()
    assert finished == [served]


SERVER = """
import signal, sys, threading
import memenpsf

def echo(interface):
    for record in interface:
        interface.xmit(record)

def started(listener):
    signal.signal(signal.SIGTERM, lambda *_: listener.close())
    print("ready", flush=True)

try:
    memenpsf.serve(echo, sys.argv[1], bytes, started=started)
    print("done", threading.active_count(), flush=True)
except KeyboardInterrupt:
    print("interrupted", threading.active_count(), flush=True)
"""


@pytest.mark.parametrize("end", ["client", "Ctrl-C"])
def test_a_signal_handler_may_let_handlers_finish_and_ctrl_c_does_not(path, program, end):
    server = program(SERVER, path)
    assert server.stdout.readline() == "ready\n"
    with memenpsf.connect(path, bytes) as client:
        assert is_served(client)
        server.send_signal(signal.SIGTERM)
        until(lambda: not path.exists())
        assert is_served(client)
        if end == "Ctrl-C":
            server.send_signal(signal.SIGINT)
            with pytest.raises(memenpsf.Aborted):
                client.recv()
    assert server.stdout.readline() == f"{'done' if end == 'client' else 'interrupted'} 1\n"
    assert server.wait() == 0


@pytest.mark.parametrize("wrong", [-1, math.nan, "1", True, [1], timedelta(-1)], ids=repr)
def test_what_is_no_time_is_told_before_anything_is_opened(path, wrong):
    with pytest.raises((TypeError, ValueError), match=r"^drain is None") as caught:
        memenpsf.serve(print, path, bytes, drain=wrong)
    assert repr(wrong) in str(caught.value)
    assert not path.exists()


def test_other_functions_say_where_it_goes(path):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for call in (
            lambda: memenpsf.listen(path, bytes, drain=1),
            lambda: memenpsf.connect(path, bytes, drain=1),
            lambda: memenpsf.Interface(ours, bytes, drain=1),
            lambda: trio.run(lambda: memenpsf.trio.serve(async_echo, path, bytes, drain=1)),
        ):
            with pytest.raises(TypeError, match=r"'drain', which goes to memenpsf\.serve\(\)"):
                call()


async def async_echo(_):
    raise AssertionError
