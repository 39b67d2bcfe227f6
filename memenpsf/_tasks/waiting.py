"""How tasks wait for what plans yield, as ipcqueue/_threads.py does in a thread."""

from __future__ import annotations

import select
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from ipcqueue import Closed
from ipcqueue.lowlevel import NOW, Owner, persist, plans, resume

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
    from contextlib import AbstractAsyncContextManager
    from typing import Protocol

    from ipcqueue.lowlevel import Endpoint, Event, Seconds, Wait

    class Follower(Protocol):
        """What a task sleeps on until another one has read the socket."""

        def release(self) -> None:
            """Wake who sleeps on it."""

    class Lock(AbstractAsyncContextManager[Any], Protocol):
        """A lock for tasks."""

        def locked(self) -> bool:
            """Whether a task holds it."""

    class Started(Protocol):
        """A task of a group."""

        def cancel(self) -> object:
            """Have it end, without an error of the group."""

    class Group(Protocol):
        """Tasks that end together."""

        def start(
            self, function: Callable[..., Coroutine[Any, Any, object]], *args: Any
        ) -> Started:
            """Start function(*args) in a task."""


T = TypeVar("T")


class Waiting(Owner):
    """What waits for one interface, in its event loop.  Each door has a class of its own."""

    clock: ClassVar[Callable[[], float]]
    """The time by which deadlines are reckoned."""
    follower: ClassVar[Callable[[], Follower]]
    """Makes what a task sleeps on until another one has read the socket."""
    lock: Callable[[], Lock]
    """Makes a lock for tasks."""
    ours: Callable[..., Exception]
    """Notes of which interface an exception is, and puts it into the words of the door."""
    begin: Callable[[], Awaitable[object]]
    """Before anything is done: may let others run, and be cancelled."""
    done: Callable[[], Awaitable[object]]
    """After what did not wait: may let others run, but cannot be cancelled."""
    checkpoint: Callable[[], Awaitable[object]]
    """Both, where nothing is to be done."""
    group: ClassVar[Callable[[], AbstractAsyncContextManager[Group]]]
    """Makes a group of tasks; its block ends when they have, and raises what they raise."""
    sink_closed: ClassVar[tuple[type[Exception], ...]]
    """What the queues of the event loop raise when nobody takes from them any more."""

    def count(self, records: int) -> None:
        """Note how many records the call before has moved, for those who let others run by that."""

    def check_loop(self) -> None:
        """Raise RuntimeError where no event loop of this door runs."""
        raise NotImplementedError

    async def sleep(self, wait: Wait) -> bool:
        """Sleep for what a plan waits for; return whether that came.  Raises Closed."""
        raise NotImplementedError

    def end_waits(self) -> None:
        """Wake all who sleep: what they wait for is about to be closed."""
        raise NotImplementedError

    def serve(self, endpoint: Endpoint) -> None:
        """Have the plans of an endpoint wait here."""
        endpoint.serve_tasks(type(self).clock, type(self).follower)

    async def drive(self, plan: Generator[Wait, bool, T]) -> T:
        """Do what a plan says, and return its result.

        Where it waits this can be cancelled; the plan is closed first.
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
            await self.done()
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
            await self.done()
            return result
        rounds = plans.Rounds(endpoint, event, until)
        while await self.drive(rounds.next()):
            if (result := attempt()) is not None:
                return result
        return None

    async def wait_for(self, wait: Wait) -> bool:
        """Wait for what a plan yields; return whether that came."""
        if wait is NOW:
            await self.checkpoint()
            return True
        try:
            return await self.sleep(wait)
        except Closed:
            return True


def poller(interests: Sequence[tuple[int, int]]) -> select.epoll:
    """Return what is readable where a poll() of these would return; it is the caller's."""
    epoll = select.epoll()
    try:
        for fd, events in interests:
            if events:
                epoll.register(fd, events)
    except BaseException:
        persist(epoll.close)
        raise
    return epoll
