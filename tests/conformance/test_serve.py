"""serve: one client never ends a server; one set of promises, kept by every door."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import inspect
import json
import logging
import queue
import re
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import trio

import memenpsf
import memenpsf.asyncio
import memenpsf.trio
from memenpsf import _log, _pending, _policy, _reserve, _serve
from tests.kit.waiting import until


class Stopped(BaseException):
    """Not an Exception."""


async def call(function, *arguments, **options):
    """Call a verb of any door."""
    result = function(*arguments, **options)
    return await result if inspect.isawaitable(result) else result


async def block(manager, use):
    """Use a loan or a borrowing of any door."""
    if hasattr(manager, "__aenter__"):
        async with manager as inside:
            return use(inside)
    with manager as inside:
        return use(inside)


class ThreadServer:
    """memenpsf.serve in a thread."""

    Interface = memenpsf.Interface

    def __init__(self, pool, handler, path, record=bytes, **options):
        def driven(interface):
            try:
                handler(interface).send(None)
            except StopIteration:
                return
            raise AssertionError("it waits by itself")

        ready = queue.SimpleQueue()
        self._result = pool.submit(
            memenpsf.serve, driven, path, record, started=ready.put, **options
        )
        self._result.add_done_callback(lambda _: ready.put(None))
        self.listener = ready.get() or self.result()

    def close(self):
        """Stop listening."""
        self.listener.close()

    def stop(self):
        """Stop listening; return what serve does once the handlers are done."""
        self.close()
        return self.result()

    def result(self):
        return self._result.result()


class TrioServer(ThreadServer):
    """memenpsf.trio.serve in a thread with a Trio of its own."""

    Interface = memenpsf.trio.Interface

    def __init__(self, pool, handler, path, record=bytes, **options):
        ready = queue.SimpleQueue()

        async def main():
            self._token = trio.lowlevel.current_trio_token()
            async with trio.open_nursery() as nursery:
                serve = memenpsf.trio.serve

                async def serving(task_status):
                    await serve(handler, path, record, task_status=task_status, **options)

                ready.put(await nursery.start(serving))

        self._result = pool.submit(trio.run, main)
        self._result.add_done_callback(lambda _: ready.put(None))
        self.listener = ready.get() or self.result()

    def close(self):
        trio.from_thread.run(self.listener.aclose, trio_token=self._token)

    def result(self):
        try:
            return self._result.result()
        except BaseExceptionGroup as group:
            leaf = group
            while isinstance(leaf, BaseExceptionGroup):
                (leaf,) = leaf.exceptions
            raise leaf from None


class AsyncioServer(TrioServer):
    """memenpsf.asyncio.serve in a thread with a loop of its own."""

    Interface = memenpsf.asyncio.Interface

    def __init__(self, pool, handler, path, record=bytes, **options):
        ready = queue.SimpleQueue()

        async def main():
            self._loop = asyncio.get_running_loop()
            await memenpsf.asyncio.serve(handler, path, record, started=ready.put, **options)

        self._result = pool.submit(lambda: asyncio.run(main()))
        self._result.add_done_callback(lambda _: ready.put(None))
        self.listener = ready.get() or self.result()

    def close(self):
        with contextlib.suppress(RuntimeError):  # the loop is closed
            asyncio.run_coroutine_threadsafe(self.listener.aclose(), self._loop).result()


DOORS = {"threads": ThreadServer, "trio": TrioServer, "asyncio": AsyncioServer}
doors = pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)


def at(door, name, *args, **options):
    """Call a function of memenpsf, or of the same name at another door."""
    if door is ThreadServer:
        return getattr(memenpsf, name)(*args, **options)
    if door is TrioServer:
        return trio.run(lambda: getattr(memenpsf.trio, name)(*args, **options))
    return asyncio.run(getattr(memenpsf.asyncio, name)(*args, **options))


@pytest.fixture
def pool():
    with ThreadPoolExecutor(8) as executor:
        yield executor


@pytest.fixture
def log(caplog):
    """How clients ended; that they connected is in test_logging.py."""
    caplog.set_level(logging.INFO, "memenpsf")
    begun = re.compile(r": (listening, .*|client .* connected|\d+ more clients connected)$")

    def ends(record):
        return not begun.search(record.getMessage())

    caplog.handler.addFilter(ends)
    yield caplog
    caplog.handler.removeFilter(ends)


def lines(log, name):
    """What was logged of a client: its end, or what its handler raised."""
    return [each for each in log.records if f"client {name!r}" in each.getMessage()]


def is_served(interface, record=b"still"):
    interface.xmit(record, timeout=20)
    return interface.recv(20) == record


async def echo(interface):
    while (record := await call(interface.recv)) != b"go":
        await call(interface.xmit, record)


def evil_only(evil):
    """Make a handler that echoes, but for clients of the name evil."""

    async def handler(interface):
        if interface.peer_name == "evil":
            await evil(interface)
        else:
            await echo(interface)

    return handler


# -- what a client can make a verb raise, and what its handler may be doing -----------------------


async def xmit_back(interface):
    await call(interface.xmit, await call(interface.recv))


async def xmit_many_back(interface):
    await call(interface.xmit_many, await call(interface.recv_vectored))


async def loan_back(interface):
    record = await call(interface.recv)
    await block(interface.loan(len(record)), lambda loan: None)


async def region_back(interface):
    record = await call(interface.recv)
    with memenpsf_region(len(record)) as region:
        await call(interface.xmit, record, regions=[region])


def memenpsf_region(size):
    import fdpass

    return fdpass.MemoryRegion.create(size)


async def descriptor_back(interface):
    await call(interface.xmit, await call(interface.recv), fds=[0])


LIMITS = {
    "a long message": (xmit_back, "TooLarge", {"accept": memenpsf.Accept(message=10)}),
    "a batch of them": (xmit_many_back, "TooLarge", {"accept": memenpsf.Accept(message=10)}),
    "a long loan": (loan_back, "TooLarge", {"accept": memenpsf.Accept(message=10)}),
    "a region": (region_back, "Unaccepted", {"accept": memenpsf.Accept(regions=0)}),
    "a descriptor": (descriptor_back, "Unaccepted", {}),
}


@doors
@pytest.mark.parametrize(("evil", "kind", "limits"), LIMITS.values(), ids=LIMITS)
def test_the_limits_of_a_client_end_it_alone(pool, tmp_path, log, door, evil, kind, limits):
    server = door(pool, evil_only(evil), tmp_path / "s")
    with memenpsf.connect(tmp_path / "s", bytes) as steady:
        with memenpsf.connect(tmp_path / "s", bytes, name="evil", **limits) as client:
            client.xmit(bytes(20))
            with pytest.raises(memenpsf.Aborted):
                client.recv(20)
        assert is_served(steady)
    server.stop()
    (line,) = lines(log, "evil")
    assert line.levelno == logging.INFO
    assert line.exc_info is None
    assert ("takes at most" if kind == "TooLarge" else "accepts at most") in line.getMessage()


async def flood(interface):
    while True:
        await call(interface.xmit, bytes(100), timeout=0)


async def flood_of_control_messages(interface):
    while True:
        await call(interface.send_ctrl_msg, b"\x80\x00", timeout=0)


async def flood_of_loans(interface):
    while True:
        await block(interface.loan(100, timeout=0), lambda loan: None)


@doors
@pytest.mark.parametrize("evil", [flood, flood_of_control_messages, flood_of_loans])
def test_a_client_that_reads_nothing_ends_alone(pool, tmp_path, log, door, evil):
    server = door(pool, evil_only(evil), tmp_path / "s")
    with memenpsf.connect(tmp_path / "s", bytes) as steady:
        with memenpsf.connect(tmp_path / "s", bytes, name="evil") as client:
            while not lines(log, "evil"):
                assert is_served(steady)
            with pytest.raises(memenpsf.Aborted):
                while client.recv(20) is not None:
                    pass
        assert is_served(steady)
    server.stop()
    (line,) = lines(log, "evil")
    assert line.levelno == logging.INFO
    assert "no " in line.getMessage()


RECEIVING = {
    "recv": lambda i: call(i.recv),
    "recv_vectored": lambda i: call(i.recv_vectored),
    "recv_message": lambda i: call(i.recv_message),
    "borrow": lambda i: block(i.borrow(), len),
}


async def iterate(interface):
    if hasattr(interface, "__aiter__"):
        async for _ in interface:
            pass
    else:
        for _ in interface:
            pass


RECEIVING["iteration"] = iterate


@doors
@pytest.mark.parametrize("verb", RECEIVING.values(), ids=RECEIVING)
@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "short"), MemoryError(), ValueError("x")])
def test_a_shortage_in_receiving_ends_one_client(
    pool, tmp_path, log, door, verb, error, monkeypatch
):
    async def evil(interface):
        assert await call(interface.recv) == b"first"

        def fails(*_, **__):
            raise error

        monkeypatch.setattr("ipcqueue._threads.SLICE", 0.01)  # recv looks only after one
        for name in ("try_pop", "try_pop_many", "try_receive", "or_end"):
            monkeypatch.setattr(interface._endpoint, name, fails)
        while True:
            await verb(interface)

    server = door(pool, evil_only(evil), tmp_path / "s")
    with memenpsf.connect(tmp_path / "s", bytes) as steady:
        with memenpsf.connect(tmp_path / "s", bytes, name="evil") as client:
            client.xmit(b"first")
            with pytest.raises(memenpsf.Aborted):
                client.recv(20)
        assert is_served(steady)
    server.stop()
    (line,) = lines(log, "evil")
    # A shortage is one line; what may be a mistake is worth the place where it was made.
    assert (line.exc_info is None) == (not isinstance(error, ValueError))


def reads_json(data):
    return json.loads(data)


TEXT = memenpsf.Encoded(lambda value: json.dumps(value).encode(), reads_json)


@dataclasses.dataclass
class Picky:
    number: memenpsf.u8

    def __post_init__(self):
        if self.number > 3:
            raise ValueError("above three")


POISON = {
    "Encoded": (TEXT, "fine", bytes, b"{no json"),
    "dataclass": (Picky, Picky(1), "<B", (9,)),
}


@doors
@pytest.mark.parametrize(("spec", "good", "theirs", "bad"), POISON.values(), ids=POISON)
@pytest.mark.parametrize("verb", ["recv", "recv_vectored", "recv_message", "iteration"])
def test_what_cannot_be_decoded_ends_one_client(
    pool, tmp_path, log, door, spec, good, theirs, bad, verb
):
    server = door(pool, evil_only(RECEIVING[verb]), tmp_path / "s", spec)
    with memenpsf.connect(tmp_path / "s", spec) as steady:
        with memenpsf.connect(tmp_path / "s", theirs, name="evil") as client:
            client.xmit(bad)
            with pytest.raises(memenpsf.Aborted):
                client.recv(20)
        assert is_served(steady, good)
    server.stop()
    assert len(lines(log, "evil")) == 1
    log.clear()  # a traceback has the memory of the ring


@doors
def test_a_client_that_goes_while_its_handler_does_something_else_is_met_at_the_next_call(
    pool, tmp_path, log, door
):
    gone = threading.Event()

    async def evil(interface):
        if door is TrioServer:
            await trio.to_thread.run_sync(gone.wait)
        elif door is AsyncioServer:
            await asyncio.to_thread(gone.wait)
        else:
            gone.wait()
        while True:
            await call(interface.xmit, b"x")

    server = door(pool, evil_only(evil), tmp_path / "s")
    with memenpsf.connect(tmp_path / "s", bytes) as steady:
        with memenpsf.connect(tmp_path / "s", bytes, name="evil"):
            assert is_served(steady)
        gone.set()
        while not lines(log, "evil"):
            assert is_served(steady)
    server.stop()
    assert "the peer has ended" in lines(log, "evil")[0].getMessage()


@doors
def test_a_batch_for_a_client_that_goes_in_the_middle_of_it(pool, tmp_path, log, door):
    async def evil(interface):
        await call(interface.xmit_many, [bytes(1000)] * 10_000)

    server = door(pool, evil_only(evil), tmp_path / "s")
    with memenpsf.connect(tmp_path / "s", bytes) as steady:
        with memenpsf.connect(tmp_path / "s", bytes, name="evil") as client:
            client.recv(20)
        assert is_served(steady)
    server.stop()
    assert len(lines(log, "evil")) == 1


# -- what is the handler's own --------------------------------------------------------------------


class OwnError(Exception):
    pass


async def fails(interface):
    raise OwnError("of its own")


async def fails_because_of_the_client(interface):
    try:
        await call(interface.recv)
    except memenpsf.EndOfStream as end:
        raise OwnError("of its own") from end


async def raises_the_end_because_of_its_own(interface):
    try:
        await call(interface.recv)
    except memenpsf.EndOfStream as end:
        raise end from OwnError("of its own")


@doors
@pytest.mark.parametrize("evil", [fails, fails_because_of_the_client])
def test_what_a_handler_raises_of_its_own_is_logged_with_its_traceback(
    pool, tmp_path, log, door, evil
):
    server = door(pool, evil_only(evil), tmp_path / "s")
    with memenpsf.connect(tmp_path / "s", bytes) as steady:
        memenpsf.connect(tmp_path / "s", bytes, name="evil").close()
        while not lines(log, "evil"):
            assert is_served(steady)
    server.stop()
    (line,) = lines(log, "evil")
    assert line.levelno == logging.ERROR
    assert line.exc_info[0] is OwnError
    assert evil.__name__ in log.text


@doors
@pytest.mark.parametrize("evil", [fails, fails_because_of_the_client])
def test_with_raise_it_propagates_and_ends_all(pool, tmp_path, log, door, evil):
    server = door(pool, evil_only(evil), tmp_path / "s", on_error="raise")
    with memenpsf.connect(tmp_path / "s", bytes) as steady:
        assert is_served(steady)
        memenpsf.connect(tmp_path / "s", bytes, name="evil").close()
        with pytest.raises(OwnError):
            server.result()
        with pytest.raises(memenpsf.Aborted):
            steady.recv(20)
    assert not (tmp_path / "s").exists()


@doors
@pytest.mark.parametrize("evil", [xmit_back, raises_the_end_because_of_its_own])
def test_even_with_raise_no_client_ends_the_server(pool, tmp_path, log, door, evil):
    server = door(pool, evil_only(evil), tmp_path / "s", on_error="raise")
    with memenpsf.connect(tmp_path / "s", bytes) as steady:
        memenpsf.connect(tmp_path / "s", bytes, name="evil").close()
        with memenpsf.connect(
            tmp_path / "s", bytes, name="evil", accept=memenpsf.Accept(message=10)
        ) as client:
            if evil is xmit_back:
                client.xmit(bytes(20))
        assert is_served(steady)
        until(lambda: len(lines(log, "evil")) == 2)  # or stop() would end a connection first
    server.stop()


@doors
def test_a_function_decides(pool, tmp_path, log, door):
    told = queue.SimpleQueue()

    def on_error(interface, error):
        told.put((type(interface), interface.peer_name, error))

    server = door(pool, evil_only(fails), tmp_path / "s", on_error=on_error)
    with memenpsf.connect(tmp_path / "s", bytes) as steady:
        with memenpsf.connect(tmp_path / "s", bytes, name="evil"):
            kind, name, error = told.get(timeout=20)
        assert is_served(steady)
    server.stop()
    assert (kind, name, type(error)) == (door.Interface, "evil", OwnError)
    assert lines(log, "evil") == []


@doors
def test_closing_the_listener_ends_serving_after_the_handlers(pool, tmp_path, door):
    server = door(pool, echo, tmp_path / "s")
    with memenpsf.connect(tmp_path / "s", bytes) as client:
        assert is_served(client)
        server.close()
        with pytest.raises(FileNotFoundError):
            memenpsf.connect(tmp_path / "s", bytes)
        assert is_served(client)
    server.result()
    assert not any(thread.name == "memenpsf serve" for thread in threading.enumerate())


@doors
def test_what_the_function_raises_propagates(pool, tmp_path, door):
    def on_error(interface, error):
        raise LookupError("enough") from error

    server = door(pool, evil_only(fails), tmp_path / "s", on_error=on_error)
    with memenpsf.connect(tmp_path / "s", bytes, name="evil"):
        with pytest.raises(LookupError, match="enough"):
            server.result()


@doors
@pytest.mark.parametrize("kind", [Stopped, SystemExit, KeyboardInterrupt])
def test_what_is_no_exception_always_propagates(pool, tmp_path, door, kind):
    async def evil(interface):
        raise kind

    server = door(pool, evil_only(evil), tmp_path / "s")
    with memenpsf.connect(tmp_path / "s", bytes) as steady:
        assert is_served(steady)
        memenpsf.connect(tmp_path / "s", bytes, name="evil").close()
        with pytest.raises(kind):
            server.result()
        with pytest.raises(memenpsf.Aborted):
            steady.recv(20)


async def async_function(interface, error):
    raise AssertionError


@doors
@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        ({"on_error": "ignore"}, ValueError),
        ({"on_error": None}, TypeError),
        ({"on_error": 5}, TypeError),
        ({"on_error": async_function}, TypeError),
        ({"on_error": "raise", "capacity": -1}, ValueError),
    ],
)
def test_on_error_is_checked_before_anything_is_opened(tmp_path, door, wrong, kind):
    with pytest.raises(kind):
        at(door, "serve", print if door is ThreadServer else echo, tmp_path / "s", bytes, **wrong)
    assert list(tmp_path.iterdir()) == []


@doors
def test_the_handler_is_checked_before_anything_is_opened(tmp_path, door):
    with pytest.raises(TypeError, match="handler"):
        at(door, "serve", "echo", tmp_path / "s", bytes)
    assert list(tmp_path.iterdir()) == []


def test_an_async_handler_is_for_the_other_door(tmp_path):
    with pytest.raises(TypeError, match=r"plain function; .*echo.* memenpsf\.trio\.serve"):
        memenpsf.serve(echo, tmp_path / "s", bytes)
    assert list(tmp_path.iterdir()) == []


# -- of which of two connections ------------------------------------------------------------------


@doors
def test_the_end_of_a_proxys_upstream_is_no_good_end_of_a_client(pool, tmp_path, log, door):
    async def proxy(interface):
        upstream = upstreams.get()
        while True:
            await call(interface.xmit, upstream.recv())

    upstreams = queue.SimpleQueue()
    server = door(pool, proxy, tmp_path / "s")
    upstream, source = memenpsf.pair(bytes)
    with upstream, memenpsf.connect(tmp_path / "s", bytes, name="evil") as client:
        source.xmit(b"x")
        source.close()
        upstreams.put(upstream)
        assert client.recv(20) == b"x"
        with pytest.raises(memenpsf.Aborted):
            client.recv(20)
    server.stop()
    (line,) = lines(log, "evil")
    assert line.levelno == logging.ERROR
    assert line.exc_info[0] is memenpsf.EndOfStream
    assert memenpsf.interface_of(line.exc_info[1]) is upstream


@doors
def test_nor_where_its_records_pass_through_the_clients_batch(pool, tmp_path, log, door):
    async def proxy(interface):
        await call(interface.xmit_many, (upstream.recv() for _ in range(2)))

    upstream, source = memenpsf.pair(bytes)
    server = door(pool, proxy, tmp_path / "s")
    with upstream, source, memenpsf.connect(tmp_path / "s", bytes, name="evil") as client:
        source.xmit(b"x")
        source.close()
        with pytest.raises(memenpsf.Aborted):
            client.recv(20)
    server.stop()
    (line,) = lines(log, "evil")
    assert line.levelno == logging.ERROR


@doors
def test_with_raise_the_end_of_another_client_is_a_failure(pool, tmp_path, door):
    async def to_the_other(interface):
        others.append(interface)
        if interface.peer_name == "evil":
            while True:
                await call(interface.recv)
        record = await call(interface.recv)
        while True:
            await call(others[0].xmit, record)

    others = []
    server = door(pool, to_the_other, tmp_path / "s", on_error="raise")
    evil = memenpsf.connect(tmp_path / "s", bytes, name="evil")
    evil.xmit(b"x")
    while evil.statistics().taken == 0:
        pass
    with memenpsf.connect(tmp_path / "s", bytes) as client:
        client.xmit(b"x")
        assert evil.recv(20) == b"x"
        evil.close()
        with pytest.raises(memenpsf.QueueError):
            server.result()


# -- the log --------------------------------------------------------------------------------------


@doors
@pytest.mark.parametrize(
    ("evil", "level", "others"),
    [
        (echo, logging.INFO, "clients ended"),
        (fails, logging.ERROR, "handlers failed"),
    ],
)
def test_a_storm_of_ends_does_not_fill_the_log(pool, tmp_path, log, door, evil, level, others):
    path = tmp_path / "s"
    server = door(pool, evil_only(evil), path)
    for _ in range(_log.LOG_LINES + 5):
        memenpsf.connect(path, bytes, name="evil").close()
    # All of them have been accepted, as the last comes behind them.
    with memenpsf.connect(path, bytes, name="last") as last:
        assert is_served(last)
        last.xmit(b"go")
    server.stop()
    assert len(lines(log, "evil")) == _log.LOG_LINES
    told = [each for each in log.records if "more" in each.getMessage()]
    assert [each.getMessage() for each in told] == [f"{path}: 5 more {others}"]
    assert {each.levelno for each in [*lines(log, "evil"), *told]} == {level}


def test_what_a_client_makes_an_exception_say_stays_on_one_short_line(tmp_path, pool, log):
    def decode(data):
        raise ValueError(data.decode())

    server = ThreadServer(pool, echo, tmp_path / "s", memenpsf.Encoded(bytes, decode))
    with memenpsf.connect(tmp_path / "s", bytes, name="evil\nINFO all is well") as client:
        client.xmit(b"\nINFO all is well\x1b[2J" + b"x" * 5000)
        with pytest.raises(memenpsf.Aborted):
            client.recv(20)
    server.stop()
    (line,) = [each.getMessage() for each in log.records if "all is well" in each.getMessage()]
    assert "\n" not in line
    assert "\x1b" not in line
    assert len(line) < 1000


def test_an_exception_that_cannot_be_printed_has_its_name_on_the_line():
    class Mute(memenpsf.PeerDied):
        def __str__(self):
            raise RuntimeError

    assert _log.one_line(Mute()) == "Mute"
    assert _log.one_line(MemoryError()) == "MemoryError"
    assert _log.one_line(OSError(24, "x" * 999)).endswith("x…")


# -- what stands in groups ------------------------------------------------------------------------


class Anybody:
    peer_name = "evil"


def of(interface, error):
    from ipcqueue.lowlevel import tag_error

    tag_error(error, interface)
    return error


def test_a_group_is_taken_apart():
    here, there = Anybody(), Anybody()
    theirs, more = of(here, memenpsf.PeerDied("1")), of(here, OSError(1, "2"))
    own, other, cancelled = OwnError("3"), of(there, memenpsf.PeerDied("4")), Stopped("5")
    inner = BaseExceptionGroup("inner", [theirs, own, cancelled])
    group = BaseExceptionGroup("outer", [inner, ExceptionGroup("x", [more]), other])
    clients, handlers, passing = _policy.sort_out(group, here)
    assert list(_policy._leaves(clients)) == [theirs, more]
    assert list(_policy._leaves(handlers)) == [own, other]
    assert isinstance(handlers, ExceptionGroup)
    assert list(_policy._leaves(passing)) == [cancelled]
    assert _policy.sort_out(ExceptionGroup("x", [theirs]), here)[1:] == (None, None)
    whole = of(here, ExceptionGroup("of a decoder", [own]))
    assert _policy.sort_out(whole, here) == (whole, None, None)
    assert _policy.sort_out(cancelled, here) == (None, None, cancelled)


@pytest.mark.parametrize("on_error", ["log", "raise", "function"])
def test_what_passes_is_never_swallowed_and_the_clients_part_never_passes(log, on_error):
    def decide(interface, error):
        raise LookupError

    here = Anybody()
    policy = _policy.Policy(decide if on_error == "function" else on_error, "address")
    theirs, own, cancelled = of(here, memenpsf.PeerDied("1")), OwnError("2"), Stopped("3")
    rest = policy.settle(here, BaseExceptionGroup("x", [theirs, own, cancelled]))
    left = [type(each) for each in _policy._leaves(rest)]
    expected = {
        "log": [Stopped],
        "raise": [OwnError, Stopped],
        "function": [LookupError, Stopped],
    }
    assert sorted(left, key=str) == sorted(expected[on_error], key=str)
    assert len(lines(log, "evil")) == (2 if on_error == "log" else 1)
    group = BaseExceptionGroup("x", [own, cancelled])
    if on_error == "raise":
        assert policy.settle(here, group) is group


def test_a_nursery_of_a_handler_mixes_its_own_with_the_clients_end(pool, tmp_path, log):
    async def evil(interface):
        async with trio.open_nursery() as outer:
            outer.start_soon(receive, interface)
            async with trio.open_nursery() as inner:
                inner.start_soon(receive, interface)
                await trio.testing.wait_all_tasks_blocked()
                await interface.xmit(b"both wait")
                await trio.sleep_forever()

    async def receive(interface):
        try:
            await interface.recv()
        finally:
            if interface.peer_name == "evil" and first:
                first.pop()
                raise OwnError("beside it")

    first = [1]
    server = TrioServer(pool, evil_only(evil), tmp_path / "s")
    with memenpsf.connect(tmp_path / "s", bytes) as steady:
        for _ in range(2):
            with memenpsf.connect(tmp_path / "s", bytes, name="evil") as client:
                assert client.recv() == b"both wait"
        while len(lines(log, "evil")) < 3:
            assert is_served(steady)
    server.stop()
    both = lines(log, "evil")
    assert sorted(line.levelno for line in both) == [logging.INFO, logging.INFO, logging.ERROR]


@pytest.mark.parametrize("on_error", ["log", "raise"])
def test_serving_that_is_cancelled_stays_cancelled(tmp_path, on_error):
    async def busy(interface):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(interface.recv)
            nursery.start_soon(interface.recv)

    async def main():
        with trio.move_on_after(1e9) as scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(
                    lambda **kw: memenpsf.trio.serve(
                        busy, tmp_path / "s", bytes, on_error=on_error, **kw
                    )
                )
                client = await memenpsf.trio.connect(tmp_path / "s", bytes)
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        assert scope.cancelled_caught
        with pytest.raises(memenpsf.trio.Aborted):
            await client.recv()
        await client.aclose()

    trio.run(main)


def test_what_a_handler_raises_as_it_is_cancelled_is_logged(tmp_path, log):
    async def fails(interface):
        try:
            await interface.recv()
        finally:
            raise RuntimeError("on the way out")

    async def main():
        async with trio.open_nursery() as nursery:
            await nursery.start(
                lambda **kw: memenpsf.trio.serve(fails, tmp_path / "s", bytes, **kw)
            )
            async with await memenpsf.trio.connect(tmp_path / "s", bytes, name="evil"):
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()

    trio.run(main)
    (line,) = lines(log, "evil")
    assert "on the way out" in str(line.exc_info[1])


# -- on the way in --------------------------------------------------------------------------------


@doors
@pytest.mark.parametrize("where", ["Opening", "step", "open"])
@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.ENOMEM, "short")])
def test_a_shortage_on_the_way_in_ends_one_client(
    pool, tmp_path, log, door, where, error, monkeypatch
):
    short = []

    def fail_if_short():
        if short:
            short.pop()
            raise error

    class Opening(_pending.Opening):
        def __init__(self, sock, terms, lease):
            super().__init__(sock, terms, lease)
            if where == "Opening":
                try:
                    fail_if_short()
                except BaseException as failure:
                    self.abandon(failure)
                    raise

        def step(self):
            if where == "step":
                try:
                    fail_if_short()
                except BaseException as failure:
                    self.abandon(failure)
                    raise
            return super().step()

    class Shares(_pending.Shares):
        def open(self, uid):
            if where == "open":
                fail_if_short()
            return super().open(uid)

    monkeypatch.setattr(_pending, "Opening", Opening)
    monkeypatch.setattr(_pending, "Shares", Shares)
    server = door(pool, echo, tmp_path / "s")
    with memenpsf.connect(tmp_path / "s", bytes) as steady:
        assert is_served(steady)
        short.append(True)
        with pytest.raises(memenpsf.QueueError):
            memenpsf.connect(tmp_path / "s", bytes, name="evil").recv(20)
        assert not short
        assert is_served(steady)
        with memenpsf.connect(tmp_path / "s", bytes) as later:
            assert is_served(later)
    server.stop()
    assert "client not served: " in log.text


@doors
def test_without_memory_for_the_log_the_server_goes_on(pool, tmp_path, log, monkeypatch, door):
    short = []

    def without_memory(*_, **__):
        short.append(True)
        raise MemoryError

    async def fails(interface):
        record = await call(interface.recv)
        if record == b"own":
            raise RuntimeError
        await call(interface.xmit, record)
        await call(interface.recv)

    server = door(pool, fails, tmp_path / "s")
    for logger in (_log.logger, _log.of_clients):
        monkeypatch.setattr(logger, "log", without_memory)
    with memenpsf.connect(tmp_path / "s", bytes) as evil:
        evil.xmit(b"own")
        with pytest.raises(memenpsf.Aborted):
            evil.recv(20)
    memenpsf.connect(tmp_path / "s", bytes).close()
    with pytest.raises(memenpsf.RecordRefused):
        memenpsf.connect(tmp_path / "s", "<Q")
    with memenpsf.connect(tmp_path / "s", bytes) as steady:
        assert is_served(steady)
    server.stop()
    assert len(short) >= 3


@doors
def test_without_memory_for_the_rest_nothing_stays_bound(tmp_path, monkeypatch, door):
    def spare():
        raise MemoryError

    monkeypatch.setattr(_reserve, "spare", spare)
    with pytest.raises(MemoryError):
        at(door, "listen", tmp_path / "s", bytes)
    assert list(tmp_path.iterdir()) == []


# -- of the door for threads ----------------------------------------------------------------------


def test_a_client_that_cannot_have_a_thread_is_not_served_and_the_others_are(
    pool, tmp_path, log, monkeypatch
):
    server = ThreadServer(pool, echo, tmp_path / "s")
    with memenpsf.connect(tmp_path / "s", bytes) as steady:
        assert is_served(steady)
        start = threading.Thread.start

        def no_thread(self):
            monkeypatch.setattr(threading.Thread, "start", start)
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", no_thread)
        with memenpsf.connect(tmp_path / "s", bytes) as unlucky:
            with pytest.raises(memenpsf.Aborted):
                unlucky.recv(20)
        assert is_served(steady)
        with memenpsf.connect(tmp_path / "s", bytes) as later:
            assert is_served(later)
    server.stop()
    assert "client not served: can't start new thread" in log.text
    assert server.listener.refused == 1


def test_a_thread_that_runs_though_it_did_not_start_ends_quietly(pool, tmp_path, monkeypatch):
    server = ThreadServer(pool, echo, tmp_path / "s")
    start = threading.Thread.start

    def half(self):
        monkeypatch.setattr(threading.Thread, "start", start)
        start(self)
        raise MemoryError

    monkeypatch.setattr(threading.Thread, "start", half)
    with memenpsf.connect(tmp_path / "s", bytes) as unlucky:
        with pytest.raises(memenpsf.Aborted):
            unlucky.recv(20)
    with memenpsf.connect(tmp_path / "s", bytes) as later:
        assert is_served(later)
    server.stop()
    assert not any(thread.name == "memenpsf serve" for thread in threading.enumerate())


def test_a_handler_that_fails_while_serve_waits_for_the_others_ends_them(pool, tmp_path):
    async def handler(interface):
        if await call(interface.recv) == b"fail":
            raise OwnError
        await echo(interface)

    server = ThreadServer(pool, handler, tmp_path / "s", on_error="raise")
    with (
        memenpsf.connect(tmp_path / "s", bytes) as one,
        memenpsf.connect(tmp_path / "s", bytes) as two,
    ):
        two.xmit(b"on")
        assert is_served(two)
        server.listener.close()
        one.xmit(b"fail")
        with pytest.raises(OwnError):
            server.result()
        with pytest.raises(memenpsf.Aborted):
            two.recv(20)


def test_handlers_that_wait_for_each_other_end_together(pool, tmp_path):
    ends = [threading.Event(), threading.Event()]

    async def handler(interface):
        number = await call(interface.recv)
        if number == b"fail":
            raise OwnError
        mine, other = ends if number == b"0" else reversed(ends)
        try:
            await call(interface.xmit, number)
            await echo(interface)
        finally:
            mine.set()
            other.wait()

    server = ThreadServer(pool, handler, tmp_path / "s", on_error="raise")
    with (
        memenpsf.connect(tmp_path / "s", bytes) as one,
        memenpsf.connect(tmp_path / "s", bytes) as two,
        memenpsf.connect(tmp_path / "s", bytes) as bad,
    ):
        assert is_served(one, b"0")
        assert is_served(two, b"1")
        bad.xmit(b"fail")
        with pytest.raises(OwnError):
            server.result()


def test_of_two_that_fail_one_is_raised_and_the_other_logged(pool, tmp_path, log):
    meet = threading.Barrier(2)

    async def handler(interface):
        meet.wait()
        raise OwnError(interface.peer_name)

    server = ThreadServer(pool, handler, tmp_path / "s", on_error="raise")
    with (
        memenpsf.connect(tmp_path / "s", bytes, name="one"),
        memenpsf.connect(tmp_path / "s", bytes, name="two"),
        pytest.raises(OwnError) as caught,
    ):
        server.result()
    told = [each for each in log.records if each.exc_info]
    assert {str(caught.value), *(str(each.exc_info[1]) for each in told)} == {"one", "two"}


def test_what_started_raises_ends_serve(tmp_path):
    def started(listener):
        raise LookupError(listener.address)

    with pytest.raises(LookupError, match=str(tmp_path)):
        memenpsf.serve(print, tmp_path / "s", bytes, started=started)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(TypeError, match="started"):
        memenpsf.serve(print, tmp_path / "s", bytes, started=1)


CTRL_C = """
import memenpsf, os, sys, threading

def handler(interface):
    interface.xmit(b"here")
    try:
        interface.recv()
    except memenpsf.Closed as error:
        # One write: these threads end at the same time.
        os.write(1, b"told %a\\n" % (memenpsf.interface_of(error) is interface))
        raise

try:
    memenpsf.serve(handler, sys.argv[1], bytes, started=lambda _: print("ready", flush=True))
except KeyboardInterrupt:
    print("threads", threading.active_count(), flush=True)
"""


def test_ctrl_c_closes_every_connection_and_waits_for_the_handlers(tmp_path, program):
    server = program(CTRL_C, tmp_path / "s")
    assert server.stdout.readline() == "ready\n"
    clients = [memenpsf.connect(tmp_path / "s", bytes) for _ in range(3)]
    assert [client.recv(20) for client in clients] == [b"here"] * 3
    server.send_signal(signal.SIGINT)
    for client in clients:
        with pytest.raises(memenpsf.Aborted):
            client.recv(20)
        client.close()
    assert server.stdout.read() == "told True\n" * 3 + "threads 1\n"
    assert server.wait() == 0
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_as_a_thread_starts_waits_for_its_handler(pool, tmp_path, monkeypatch):
    start, join = threading.Thread.start, threading.Thread.join
    not_yet = threading.Event()
    done = []

    def interrupted(self):
        monkeypatch.setattr(threading.Thread, "start", start)
        pool.submit(lambda: not_yet.wait(20) and start(self))
        raise KeyboardInterrupt

    def looking(self, *arguments):
        try:
            join(self, *arguments)
        except RuntimeError:
            not_yet.set()
            raise

    async def handler(_):
        time.sleep(0.1)  # noqa: ASYNC251 (whoever does not wait for it is faster)
        done.append(True)

    server = ThreadServer(pool, handler, tmp_path / "s")
    monkeypatch.setattr(_serve, "_STARTING", 20.0)
    monkeypatch.setattr(threading.Thread, "join", looking)
    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with memenpsf.connect(tmp_path / "s", bytes):
        with pytest.raises(KeyboardInterrupt):
            server.result()
    assert done
    assert not any(thread.name == "memenpsf serve" for thread in threading.enumerate())


def test_the_policy_knows_no_event_loop():
    """A door for another loop uses it as it is."""
    assert not {"trio", "asyncio"} & set(vars(_policy))
    assert inspect.iscoroutinefunction(async_function)
