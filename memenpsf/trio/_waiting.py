"""How the tasks of Trio wait."""

from __future__ import annotations

import contextlib
import select
from functools import partial
from typing import TYPE_CHECKING, Any

import trio
from trio.lowlevel import (
    cancel_shielded_checkpoint,
    checkpoint,
    checkpoint_if_cancelled,
    current_trio_token,
    wait_readable,
    wait_writable,
)

from .._tasks import waiting
from .._tasks.waiting import poller
from ._errors import ours

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from ipcqueue.lowlevel import Wait

# How long to wait, in seconds, where no descriptor is left to wait with.
_WITHOUT_DESCRIPTORS = 0.05


class Follower:
    """What a task sleeps on until another one has read the socket."""

    def __init__(self) -> None:
        self._event = trio.Event()
        self.release = self._event.set
        self.wait = self._event.wait


class Group:
    """A nursery."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery

    def start(self, function: Callable[..., Awaitable[object]], *args: Any) -> trio.CancelScope:
        """Start function(*args) in a task."""
        scope = trio.CancelScope()

        async def task() -> None:
            with scope:
                await function(*args)

        self._nursery.start_soon(task, name=function)
        return scope


@contextlib.asynccontextmanager
async def group() -> AsyncIterator[Group]:
    """Open a nursery."""
    async with trio.open_nursery() as nursery:
        yield Group(nursery)


class Waiting(waiting.Waiting):
    """Waits for one interface, under Trio."""

    clock = staticmethod(trio.current_time)
    follower = Follower
    lock = trio.Lock
    ours = staticmethod(ours)
    begin = staticmethod(checkpoint_if_cancelled)
    done = staticmethod(cancel_shielded_checkpoint)
    checkpoint = staticmethod(checkpoint)
    group = staticmethod(group)
    sink_closed = trio.BrokenResourceError, trio.ClosedResourceError

    def __init__(self) -> None:
        self._scopes: set[trio.CancelScope] = set()

    def check_loop(self) -> None:
        """Raise RuntimeError in the coroutine of another event loop."""
        try:
            current_trio_token()
        except RuntimeError:
            raise RuntimeError(
                "memenpsf.trio works under trio.run(), and here no Trio runs: for asyncio there is "
                "memenpsf.asyncio"
            ) from None

    def end_waits(self) -> None:
        """Wake all who sleep: what they wait for is about to be closed."""
        for scope in tuple(self._scopes):
            scope.cancel()

    async def sleep(self, wait: Wait) -> bool:
        """Sleep for what a plan waits for; return whether that came.  A checkpoint."""
        scope = trio.CancelScope(deadline=trio.current_time() + wait.seconds)
        self._scopes.add(scope)
        try:
            with scope:
                await _sleep(wait)
        finally:
            self._scopes.discard(scope)
        return not scope.cancelled_caught


async def _sleep(wait: Wait) -> None:
    if wait.follower is not None:
        await wait.follower.wait()
    elif wait.wire is not None and wait.events == select.POLLIN:
        await wait_readable(wait.wire.events_fileno())
        wait.wire.use(wait.wire.read)
    elif wait.wire is not None:
        await _one_of_many(partial(wait.wire.poller, wait.events))
    elif len(wait.interests) == 1 and wait.interests[0][1] in _WAYS:
        ((fd, events),) = wait.interests
        await _WAYS[events](fd)
    elif any(events for _, events in wait.interests):
        await _one_of_many(partial(poller, wait.interests))
    else:  # for the time; or until the end of what end_waits() tells of
        await trio.sleep_forever()


_WAYS = {select.POLLIN: wait_readable, select.POLLOUT: wait_writable}


async def _one_of_many(make: Callable[[], select.epoll]) -> None:
    """Wait for all of a poller at once, as a task for each would take longer."""
    try:
        epoll = make()
    except OSError:  # no descriptor is left
        await trio.sleep(_WITHOUT_DESCRIPTORS)
        return
    with epoll:
        await wait_readable(epoll)
