"""The doors to a connection, each behind one and the same adapter, for tests of what all promise.

A scenario is a coroutine function with a parameter `door`.  It awaits the verbs of the interfaces
that the door makes, in the words of memenpsf; `@scenario` makes a test of it that runs once for each
door.  At the door for threads nothing is ever suspended: a verb that waits holds up the thread that
drives the coroutine.

A new door is one more class here, with `run`, `interface`, `tasks`, `connect`, `listen`,
`receiver_set` and `others`, and one more line in DOORS.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import threading
import time
from pathlib import Path
from typing import ClassVar

import pytest
import trio

import ipcqueue
import memenpsf
import memenpsf.asyncio
import memenpsf.trio

# How long a thread sleeps without a break before it counts as blocked.  One that waits for the
# interpreter looks at it every 5 ms, which is a break.
STILL = 0.012


def scenario(function):
    """Make a test of a coroutine function, for every door between two interfaces."""
    return _over(DOORS, function)


def one_way_scenario(function):
    """Make a test in which only the first side sends: it holds for a queue as well."""
    return _over(ONE_WAY, function)


def trio_scenario(function):
    """Make a test of what Trio alone promises."""
    return _over({"trio": Trio}, function)


def task_scenario(function):
    """Make a test of what the doors for event loops promise."""
    return _over({name: door for name, door in DOORS.items() if issubclass(door, Tasks)}, function)


def _over(doors, function):
    @pytest.mark.parametrize("door", doors.values(), ids=doors)
    @functools.wraps(function)
    def test(*args, door, **kwargs):
        door = door()
        door.run(function, *args, door=door, **kwargs)

    return test


class Call:
    """A call in a task of its own, which keeps what comes of it."""

    def __init__(self):
        self.done = False
        self._result = self._error = None
        self.looked_at = False

    async def _run(self, function, args):
        try:
            self._result = await function(*args)
        except Exception as error:  # noqa: BLE001 (looked at by the test, or raised by its group)
            self._error = error
        self.done = True

    @property
    def result(self):
        """What it returned; raises what it raised."""
        assert self.done
        if self._error is not None:
            self.looked_at = True
            raise self._error
        return self._result

    @property
    def error(self):
        """What it raised, or None."""
        self.looked_at = True
        return self._error


# -- threads ----------------------------------------------------------------------------------------


def drive(coroutine):
    """Return what a coroutine returns that awaits nothing which is not done at once."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    coroutine.close()
    raise AssertionError("it waits by itself")


def awaited(call):
    async def verb(*args, **kwargs):
        result = call(*args, **kwargs)
        return Awaited(result) if isinstance(result, memenpsf.Interface) else result

    return verb


class Awaited:
    """Something of memenpsf whose verbs are awaited, as those of every other door."""

    VERBS = frozenset(
        {
            "accept", "await_space", "recv", "recv_ctrl_msg", "recv_message", "recv_vectored",
            "send_ctrl_msg", "send_eof", "xmit", "xmit_many",
        }
    )  # fmt: skip

    def __init__(self, it):
        self.it = it

    def __getattr__(self, name):
        value = getattr(self.it, name)
        return awaited(value) if name in self.VERBS else value

    def __repr__(self):
        return repr(self.it)

    async def aclose(self):
        self.it.close()

    async def __aenter__(self):
        self.it.__enter__()
        return self

    async def __aexit__(self, *exc_info):
        return self.it.__exit__(*exc_info)

    async def __aiter__(self):
        for each in self.it:
            yield each

    @contextlib.asynccontextmanager
    async def loan(self, *args, **kwargs):
        with self.it.loan(*args, **kwargs) as loan:
            yield loan

    @contextlib.asynccontextmanager
    async def borrow(self, *args, **kwargs):
        with self.it.borrow(*args, **kwargs) as borrowed:
            yield borrowed


class AwaitedSet(Awaited):
    """A ReceiverSet whose members are awaited, too."""

    def __init__(self, members):
        self._wrapped = {}
        super().__init__(memenpsf.ReceiverSet(self._bare(each) for each in members))

    def _bare(self, member):
        it = getattr(member, "it", member)
        self._wrapped[id(it)] = member
        return it

    def _wrap(self, got):
        source, records = got
        if isinstance(records, list):
            return self._wrapped[id(source)], [self._wrap_record(each) for each in records]
        return self._wrapped[id(source)], self._wrap_record(records)

    def _wrap_record(self, record):
        if not isinstance(record, memenpsf.Interface):
            return record
        return self._wrapped.setdefault(id(record), Awaited(record))

    def add(self, member, **options):
        self.it.add(self._bare(member), **options)

    def remove(self, member):
        self.it.remove(self._bare(member))

    def __len__(self):
        return len(self.it)

    def __contains__(self, member):
        return self._bare(member) in self.it

    async def recv(self, timeout=None):
        got = self.it.recv(timeout)
        return None if got is None else self._wrap(got)

    async def recv_vectored(self, limit=None, timeout=None):
        return [self._wrap(each) for each in self.it.recv_vectored(limit, timeout)]

    async def __aiter__(self):
        for each in self.it:
            yield self._wrap(each)


class ThreadCall(Call):
    def __init__(self, function, args):
        super().__init__()
        self.thread = threading.Thread(target=lambda: drive(self._run(function, args)), daemon=True)
        self.thread.start()

    def _sleep(self):
        """Return which of its sleeps it is in; None if it is in none."""
        task = Path(f"/proc/self/task/{self.thread.native_id}")
        try:
            state = (task / "stat").read_text().rpartition(")")[2].split()[0]
            lines = (task / "status").read_text().splitlines()
        except OSError:  # it is over
            return None
        (switches,) = [line.split()[1] for line in lines if line.startswith("voluntary")]
        return switches if state == "S" else None

    def is_blocked(self):
        before = self._sleep()
        time.sleep(STILL)
        return self.done or (before is not None and self._sleep() == before)


class ThreadGroup:
    """Calls in threads of their own; leaving its block waits for all of them."""

    def __init__(self, calls):
        self._calls = calls
        self._own = []

    def start(self, function, *args):
        self._own.append(call := ThreadCall(function, args))
        self._calls.append(call)
        return call

    async def blocked(self):
        """Return once none of the calls goes on without others."""
        while not all(call.is_blocked() for call in self._own):
            pass

    def join(self):
        for call in self._own:
            call.thread.join()


class Threads:
    """memenpsf itself; a task is a thread."""

    words = memenpsf
    module = ""
    """What stands before the names of its classes."""
    CHECKS_EVERY_TIMEOUT = False  # also where a single record can be sent at once

    def __init__(self):
        self._calls = []

    def run(self, function, *args, **kwargs):
        """Run a scenario; raise what one of its calls raised and it did not look at."""
        try:
            self._run(functools.partial(function, *args, **kwargs))
        finally:
            for call in self._calls:
                if not call.looked_at and call.error is not None:
                    raise call.error

    def _run(self, function):
        try:
            drive(function())
        finally:
            for call in self._calls:  # where it has failed; all is closed by now
                call.thread.join()

    def raises(self, name, **options):
        """Expect the error of this name, in the words of this door."""
        return pytest.raises(self.word(name), **options)

    def word(self, name):
        """Return the error of this name, in the words of this door."""
        if name == "ReceiverGone" and not hasattr(self.words, name):
            name = "EndOfStream"
        return getattr(self.words, name)

    async def interface(self, sock, record, **options):
        """Return an Interface that has been introduced."""
        return Awaited(memenpsf.Interface(sock, record, **options))

    @contextlib.asynccontextmanager
    async def pair(self, record="<Q", *, one=None, other=None, **options):
        """Two sides; `one` and `other` are options of a single one."""
        here, there = socket.socketpair()
        async with self.tasks() as group:
            first = group.start(self._introduced, here, record, options | (one or {}))
            second = group.start(self._introduced, there, record, options | (other or {}))
        async with first.result as first, second.result as second:
            yield first, second

    async def _introduced(self, sock, record, options):
        options = dict(options)
        return await self.interface(sock, options.pop("record", record), **options)

    @contextlib.asynccontextmanager
    async def tasks(self):
        group = ThreadGroup(self._calls)
        yield group
        group.join()

    async def connect(self, *args, **options):
        return Awaited(memenpsf.connect(*args, **options))

    async def listen(self, *args, **options):
        return Awaited(memenpsf.listen(*args, **options))

    def receiver_set(self, *members):
        return AwaitedSet(members)

    async def others(self):
        """Let others run, in a loop that looks whether something has happened."""
        time.sleep(0.001)  # noqa: ASYNC251 (nothing is asynchronous here)


# -- tasks ------------------------------------------------------------------------------------------


class Tasks(Threads):
    """What the doors for event loops have in common; `offers` is the package."""

    async def interface(self, sock, record, **options):
        side = self.offers.Interface(sock, record, **options)
        try:
            await side.do_handshake()
        except BaseException:
            side.close()
            raise
        return side

    async def connect(self, *args, **options):
        return await self.offers.connect(*args, **options)

    async def listen(self, *args, **options):
        return await self.offers.listen(*args, **options)

    def receiver_set(self, *members):
        return self.offers.ReceiverSet(members)


# -- Trio -------------------------------------------------------------------------------------------


class TrioGroup:
    def __init__(self, nursery, calls):
        self._nursery = nursery
        self._calls = calls

    def start(self, function, *args):
        self._calls.append(call := Call())
        scope = trio.CancelScope()
        call.cancel = scope.cancel

        async def task():
            with scope:
                await call._run(function, args)

        self._nursery.start_soon(task)
        return call

    async def blocked(self):
        await trio.testing.wait_all_tasks_blocked(0.001)


class Trio(Tasks):
    """memenpsf.trio; all tasks in one loop."""

    offers = words = memenpsf.trio
    module = "memenpsf.trio."
    CHECKS_EVERY_TIMEOUT = True

    def _run(self, function):
        trio.run(function)

    @contextlib.asynccontextmanager
    async def tasks(self):
        async with trio.open_nursery() as nursery:
            yield TrioGroup(nursery, self._calls)

    async def others(self):
        await trio.lowlevel.checkpoint()


# -- asyncio ----------------------------------------------------------------------------------------


class AsyncioGroup:
    def __init__(self, group, calls):
        self._group = group
        self._calls = calls
        self._tasks = []

    def start(self, function, *args):
        self._calls.append(call := Call())
        self._tasks.append(task := self._group.create_task(call._run(function, args)))
        call.cancel = task.cancel
        return call

    async def blocked(self):
        """Return once none of the calls goes on without others."""
        for _ in range(2):  # between them, whatever has come wakes who waits for it
            while not all(map(is_blocked, self._tasks)):  # noqa: ASYNC110 (there is none)
                await asyncio.sleep(0)
            await asyncio.sleep(0.001)


def is_blocked(task):
    """Whether a task is done, or waits for what is still to come."""
    waits_for = task._fut_waiter
    return task.done() or (waits_for is not None and not waits_for.done())


class Asyncio(Tasks):
    """memenpsf.asyncio; all tasks in one loop."""

    offers = memenpsf.asyncio
    module = "memenpsf.asyncio."

    def _run(self, function):
        asyncio.run(function())

    @contextlib.asynccontextmanager
    async def tasks(self):
        async with asyncio.TaskGroup() as group:
            yield AsyncioGroup(group, self._calls)

    async def others(self):
        await asyncio.sleep(0)


class Uvloop(Asyncio):
    """The same on another event loop."""

    def _run(self, function):
        if uvloop is None:
            pytest.skip("not installed: uvloop")
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(function())


async def _nothing():
    pass


try:
    import uvloop
except ImportError:
    uvloop = None
else:
    # Its first loop opens a pipe for the whole process.
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as _runner:
        _runner.run(_nothing())


# -- a queue ----------------------------------------------------------------------------------------


class AsInterface(Awaited):
    """A Sender or a Receiver by the names that an Interface has for what it does."""

    NAMES: ClassVar = {
        "xmit": "push", "xmit_many": "push_many", "recv": "pop", "recv_vectored": "pop_many",
    }  # fmt: skip

    def __getattr__(self, name):
        value = getattr(self.it, self.NAMES.get(name, name))
        return awaited(value) if name in self.VERBS else value


class Queue(Threads):
    """ipcqueue's Sender and Receiver, for scenarios in which only the first side sends."""

    words = ipcqueue

    @contextlib.asynccontextmanager
    async def pair(self, record="<Q", **options):
        sender, receiver = ipcqueue.pair(record, **options)
        async with AsInterface(sender) as one, AsInterface(receiver) as other:
            yield one, other


DOORS = {"threads": Threads, "trio": Trio, "asyncio": Asyncio, "uvloop": Uvloop}
ONE_WAY = {"queue": Queue, **DOORS}
