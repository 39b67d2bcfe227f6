"""The door for tasks: runs plans, as ipcqueue/_threads.py does in a thread."""

from __future__ import annotations

import select
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import trio
from trio.lowlevel import (
    cancel_shielded_checkpoint,
    checkpoint,
    current_trio_token,
    wait_readable,
    wait_writable,
)

import ipcqueue
from ipcqueue.lowlevel import NOW, Event, Owner, persist, plans, resume

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from ipcqueue.lowlevel import Endpoint, Seconds, Wait

T = TypeVar("T")

# How long to wait, in seconds, where no descriptor is left to wait with.
_WITHOUT_DESCRIPTORS = 0.05


def check_under_trio() -> None:
    """Raise RuntimeError in the coroutine of another event loop."""
    try:
        current_trio_token()
    except RuntimeError:
        raise RuntimeError(
            "memenpsf.trio works under trio.run(), and here no Trio runs: under another event loop "
            "use memenpsf in a thread (asyncio.to_thread)"
        ) from None


class Follower:
    """What a task sleeps on until another one has read the socket."""

    def __init__(self) -> None:
        self._event = trio.Event()
        self.release = self._event.set
        self.wait = self._event.wait


class Tasks(Owner):
    """Waits for what plans yield; end_waits() wakes all who wait here, as at the end of it."""

    def __init__(self) -> None:
        self._scopes: set[trio.CancelScope] = set()

    def serve(self, endpoint: Endpoint) -> None:
        """Have the plans of an endpoint wait here."""
        endpoint.serve_tasks(trio.current_time, Follower)

    def end_waits(self) -> None:
        """Wake all who wait: what they wait for is about to be closed."""
        for scope in tuple(self._scopes):
            scope.cancel()

    async def drive(self, plan: Generator[Wait, bool, T]) -> T:
        """Do what a plan says, and return its result; a checkpoint in any case.

        One that can be cancelled, if it waits; then the plan is closed first.
        """
        waited = False
        result: list[Any] = [None]
        try:
            awaited = resume(plan, None, result)
            while awaited is not None:
                waited = True
                awaited = resume(plan, await self.wait_for(awaited), result)
        except BaseException:
            persist(plan.close)
            raise
        if not waited:
            await cancel_shielded_checkpoint()
        ended: T = result[0]
        return ended

    async def take(
        self, endpoint: Endpoint, attempt: Callable[[], T | None], event: Event, timeout: Seconds
    ) -> T | None:
        """Call `attempt` until it gives something, waiting for `event` in between.

        Nothing is taken before a point at which this can be cancelled.
        """
        until = plans.deadline(endpoint, timeout)
        if (result := attempt()) is not None:
            await cancel_shielded_checkpoint()
            return result
        rounds = plans.Rounds(endpoint, event, until)
        while await self.drive(rounds.next()):
            if (result := attempt()) is not None:
                return result
        return None

    async def wait_for(self, wait: Wait) -> bool:
        """Sleep for what a plan waits for; return whether that came.  A checkpoint."""
        if wait is NOW:
            await checkpoint()
            return True
        scope = trio.CancelScope(deadline=trio.current_time() + wait.seconds)
        self._scopes.add(scope)
        try:
            with scope:
                await _sleep(wait)
        except ipcqueue.Closed:
            return True
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
        await _one_of_many(partial(_poller, wait.interests))
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


def _poller(interests: Sequence[tuple[int, int]]) -> select.epoll:
    epoll = select.epoll()
    try:
        for fd, events in interests:
            if events:
                epoll.register(fd, events)
    except BaseException:
        persist(epoll.close)
        raise
    return epoll
