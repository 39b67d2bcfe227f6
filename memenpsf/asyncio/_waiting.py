"""How the tasks of asyncio wait."""

from __future__ import annotations

import asyncio
import contextlib
import math
import select
from functools import partial
from typing import TYPE_CHECKING, Any

from ipcqueue.lowlevel import monotonic, tag_error, tag_unless_given

from .._tasks import waiting
from .._tasks.waiting import poller
from ._hub import Hub

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from ipcqueue.lowlevel import Wait

TURN = 64
"""Records that one interface moves without waiting, until it lets other tasks run."""

# How long to wait, in seconds, where no descriptor is left to wait with.
_WITHOUT_DESCRIPTORS = 0.05


def ours(error: Exception, interface: object, *, given: bool = False) -> Exception:
    """Mark an exception as coming from this interface; see memenpsf.trio, which translates it."""
    (tag_unless_given if given else tag_error)(error, interface)
    return error


class Follower:
    """What a task sleeps on until another one has read the socket."""

    def __init__(self) -> None:
        self.released = asyncio.get_running_loop().create_future()

    def release(self) -> None:
        """Wake it."""
        _wake(self.released, True)


class Group:
    """An asyncio.TaskGroup."""

    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self._tasks = tasks

    def start(
        self, function: Callable[..., Coroutine[Any, Any, object]], *args: Any
    ) -> asyncio.Task[object]:
        """Start function(*args) in a task."""
        return self._tasks.create_task(function(*args))


@contextlib.asynccontextmanager
async def group() -> AsyncIterator[Group]:
    """Open a group of tasks."""
    async with asyncio.TaskGroup() as tasks:
        yield Group(tasks)


class Waiting(waiting.Waiting):
    """Waits for one interface, under asyncio; in the loop in which it waited first."""

    clock = staticmethod(monotonic)
    follower = Follower
    lock = asyncio.Lock
    ours = staticmethod(ours)
    group = staticmethod(group)
    sink_closed = (asyncio.QueueShutDown,) if hasattr(asyncio, "QueueShutDown") else ()

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sleepers: dict[asyncio.Future[bool], Callable[[], object]] = {}
        self._hub: Hub | None = None
        self._calls = 0
        self.turn = TURN

    def check_loop(self) -> None:
        """Raise RuntimeError outside asyncio, and in another loop than before."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise RuntimeError(
                "memenpsf.asyncio works under asyncio.run(), and here no loop of asyncio runs: for "
                "Trio there is memenpsf.trio, for plain threads memenpsf"
            ) from None
        if self._loop is not loop:
            if self._loop is not None:
                state = "is closed" if self._loop.is_closed() else "runs elsewhere"
                raise RuntimeError(
                    f"this belongs to another event loop, which {state}: use it there, or make "
                    "one for each loop"
                )
            self._loop = loop

    async def begin(self) -> None:
        """Let others run after a turn of calls."""
        self._calls += 1
        if self._calls >= self.turn:
            self._calls = 0
            await asyncio.sleep(0)

    def count(self, records: int) -> None:
        """Have a batch count as so many calls."""
        self._calls += max(0, records - 1)

    async def done(self) -> None:
        """Go on: what can be done at once does not suspend."""

    async def checkpoint(self) -> None:
        """Let others run."""
        await asyncio.sleep(0)

    def end_waits(self) -> None:
        """Wake all who sleep: what they wait for is about to be closed."""
        for woken in tuple(self._sleepers):
            self._forget(woken)
            if not woken.get_loop().is_closed():  # else nobody sleeps any more, and it would raise
                _wake(woken, False)
        hub, self._hub = self._hub, None
        if hub is not None:
            hub.leave()

    def _forget(self, woken: asyncio.Future[bool]) -> None:
        """Have the loop wake a sleeper no more: once, as the descriptor may be another's then."""
        forget = self._sleepers.pop(woken, None)
        if forget is not None:
            forget()

    async def sleep(self, wait: Wait) -> bool:
        """Sleep for what a plan waits for; return whether that came.  Raises Closed."""
        self.check_loop()
        loop = asyncio.get_running_loop()
        if wait.wire is not None and wait.events == select.POLLIN:
            return await self._doze(loop, wait.wire, wait.seconds)
        woken = loop.create_future() if wait.follower is None else wait.follower.released
        with contextlib.ExitStack() as undo:
            self._sleepers[woken] = self._watch(loop, wait, partial(_wake, woken, True), undo)
            undo.callback(self._forget, woken)
            if wait.seconds != math.inf:
                undo.callback(loop.call_later(max(0.0, wait.seconds), _wake, woken, False).cancel)
            return bool(await woken)

    async def _doze(self, loop: asyncio.AbstractEventLoop, wire: Any, seconds: float) -> bool:
        """Sleep until there is something to read, and read it: what most sleeps are."""
        woken, fd, timer = loop.create_future(), wire.events_fileno(), None
        wake, hub = partial(_wake, woken, True), self._hub
        self._sleepers[woken] = _nothing
        try:
            try:
                if hub is None:
                    hub = self._hub = Hub.entered(loop)
                hub.wake_once(fd, wake)
            except OSError:  # no descriptor is left
                seconds = min(seconds, _WITHOUT_DESCRIPTORS)
            if seconds != math.inf:
                timer = loop.call_later(max(0.0, seconds), _wake, woken, False)
            came = bool(await woken)
        finally:
            self._sleepers.pop(woken, None)
            if hub is not None:
                hub.forget(fd, wake)
            if timer is not None:
                timer.cancel()
        if came:
            wire.use(wire.read)
        return came

    def __del__(self) -> None:
        hub = getattr(self, "_hub", None)
        if hub is not None:
            hub.leave()

    def _watch(
        self,
        loop: asyncio.AbstractEventLoop,
        wait: Wait,
        wake: Callable[[], object],
        undo: contextlib.ExitStack,
    ) -> Callable[[], object]:
        """Have the loop call `wake` when what is waited for has come; return how to forget that."""
        way = select.POLLIN
        if wait.follower is not None:
            return _nothing
        try:
            if wait.wire is not None:
                fd = undo.enter_context(wait.wire.poller(wait.events)).fileno()
            elif len(wait.interests) == 1 and wait.interests[0][1] in _WAYS:
                ((fd, way),) = wait.interests
            elif any(events for _, events in wait.interests):
                fd = undo.enter_context(poller(wait.interests)).fileno()
            else:  # for the time; or until the end of what end_waits() tells of
                return _nothing
        except OSError:  # no descriptor is left
            return loop.call_later(_WITHOUT_DESCRIPTORS, wake).cancel
        add, remove = _WAYS[way]
        add(loop, fd, wake)
        return lambda: loop.is_closed() or remove(loop, fd)


_WAYS: dict[int, tuple[Callable[..., object], Callable[..., object]]] = {
    select.POLLIN: (lambda loop, *a: loop.add_reader(*a), lambda loop, fd: loop.remove_reader(fd)),
    select.POLLOUT: (lambda loop, *a: loop.add_writer(*a), lambda loop, fd: loop.remove_writer(fd)),
}


def _wake(woken: asyncio.Future[bool], came: bool) -> None:
    # Woken or cancelled already; a Ctrl-C cancels at any place here.
    with contextlib.suppress(asyncio.InvalidStateError):
        woken.set_result(came)


def _nothing() -> None:
    """Forget nothing: a future is woken, or nobody waits for it."""
