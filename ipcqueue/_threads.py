"""The door for plain threads: the verbs of an Endpoint, with waiting.

Any number of threads may wait on one connection: one of them reads its socket, and the others
follow, each asleep on a lock of its own.  How a verb waits stands in _link/plans.py, and why no
wake-up is lost in _link/waiters.py.
"""

from __future__ import annotations

import math
import select
import time
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from fdpass.lowlevel import Owner

from ._direct import persist, resume
from ._errors import Closed
from ._link import plans
from ._link.endpoint import advance
from ._link.loans import Borrowing, Loan
from ._link.plans import Rounds
from ._link.terms import deadline_of
from ._link.waiters import MESSAGE, NOW, RECORDS

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

    from fdpass import Seconds

    from ._link.endpoint import Endpoint
    from ._link.opening import Opening
    from ._link.waiters import Event, Wait
    from ._records.messages import Received

T = TypeVar("T")

# Sleepers look again this often, in seconds, even if nothing woke them.  It should never find
# anything; statistics().rescues counts when it does.
SLICE = 1.0
MOST = 3600.0  # seconds that poll() can wait at once, about


def drive(plan: Generator[Wait, bool, T], wait: Callable[[Wait], bool] | None = None) -> T:
    """Do what a plan says, and return its result; `wait` waits, if not wait_for().

    Whatever is raised meanwhile comes after the plan is closed, also if a signal handler raises
    again while it closes.
    """
    wait = wait or wait_for
    result: list[Any] = [None]
    try:
        awaited = resume(plan, None, result)
        while awaited is not None:
            awaited = resume(plan, wait(awaited), result)
    except BaseException:
        persist(plan.close)
        raise
    ended: T = result[0]
    return ended


def wait_for(wait: Wait) -> bool:
    """Sleep for what a plan waits for; return whether that came.

    For a connection no longer than SLICE, also as a poll() that a signal comes just before sleeps
    on.
    """
    seconds, wire, events, _, _ = wait
    if wire is None:
        return wait is NOW or _wait_without_wire(wait)
    seconds = min(seconds, SLICE)
    try:
        if events == select.POLLIN:
            return wire.use(wire.doze, seconds)
        return wire.use(partial(wire.poll, events=events), seconds)
    except Closed:
        return True


def _wait_without_wire(wait: Wait) -> bool:
    if wait.follower is not None:
        return bool(wait.follower.acquire(timeout=max(0.0, min(wait.seconds, SLICE))))
    seconds = max(0.0, min(wait.seconds, MOST))
    if not wait.interests:
        time.sleep(seconds)
        return False
    poll = select.poll()
    for fd, events in wait.interests:
        poll.register(fd, events)
    return bool(poll.poll(math.ceil(seconds * 1000)))


def open_endpoint(opening: Opening) -> Endpoint:
    """Wait until both sides have agreed.  Raises what Opening.step does."""
    try:
        while (endpoint := advance(opening)) is None:
            wait_for(plans.next_step(opening))
    except BaseException:
        persist(opening.abandon)  # Ctrl-C; harmless after a step that failed
        raise
    return endpoint


class Threads(Owner):
    """The waiting verbs.  Each first tries, then spins a little, then sleeps."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    def push(
        self,
        record: Any,
        timeout: Seconds,
        fds: Iterable[Any] | None = None,
        regions: Iterable[Any] | None = None,
    ) -> None:
        """Publish a record with what goes along; raise Full if there was no space in time."""
        parcel = self._endpoint.sending().parcel(record, fds, regions)
        drive(plans.push(self._endpoint, parcel, timeout))

    def push_left(self, encoded: Any, timeout: Seconds) -> None:
        """Publish what offer() has left; raise Full if there was no space in time."""
        drive(plans.push(self._endpoint, self._endpoint.sending().parcel_of(encoded), timeout))

    def push_many(self, records: Any, timeout: Seconds) -> int:
        """Publish records in order; return how many there was space for in time."""
        sender = self._endpoint.sending()
        if timeout is not None:
            deadline_of(timeout)  # before anything is sent
        sending = sender.push_many(records)
        if isinstance(sending, int):
            return sending
        return drive(plans.push_rest(self._endpoint, sending, timeout))

    def await_space(self) -> None:
        """Wait until a record can be pushed at once, if nobody else pushes."""
        endpoint = self._endpoint
        if endpoint.has_space() is None:
            drive(plans.await_space(endpoint))

    def loan(self, size: int, timeout: Seconds, tag: int, flags: int) -> Loan:
        """Return a loan that waits for its space on entry."""
        deadline_of(timeout)
        return Loan(self._endpoint, size, tag, flags, lambda loan: self.open_loan(loan, timeout))

    def borrow(self, limit: int | None, timeout: Seconds) -> Borrowing:
        """Return a borrowing that waits for something to borrow on entry."""
        deadline_of(timeout)
        return Borrowing(self._endpoint, limit, lambda it: self.open_borrowing(it, timeout))

    def open_loan(self, loan: Loan, timeout: Seconds) -> None:
        """Wait for the space of a loan that was not there; raise Full if it comes too late."""
        drive(plans.open_loan(self._endpoint, loan, timeout, tried=True))

    def open_borrowing(self, borrowing: Borrowing, timeout: Seconds) -> None:
        """Wait for something to borrow, as nothing was there; leave it empty if nothing comes."""
        drive(plans.open_borrowing(self._endpoint, borrowing, timeout, tried=True))

    def receive(self, timeout: Seconds) -> Received | None:
        """Take a message with what is attached to it; None if none came in time."""
        return self._take(self._endpoint.try_receive, RECORDS, timeout)

    def pop(self, timeout: Seconds) -> Any:
        """Take a record; None if none came in time.

        What the fast path can do, spinning too, was tried already.
        """
        endpoint = self._endpoint
        receiver = endpoint.receiving()
        spun = timeout is None or bool(timeout)
        tried = spun and not endpoint.ended and receiver.is_empty()
        return self._take(endpoint.try_pop, RECORDS, timeout, tried=tried, spun=spun)

    def pop_many(self, limit: int | None, timeout: Seconds) -> Any:
        """Wait for a record, then take all that is there; empty if none came in time."""
        endpoint = self._endpoint
        most, bounded = endpoint.most(limit), limit is None
        if most == 0:
            return endpoint.codec.decode_many(b"", 0)

        if timeout is not None:
            deadline_of(timeout)
        records = endpoint.receiving().pop_ready(most, bounded=bounded)
        if records is not None:
            return records
        records = self._take(lambda: endpoint.try_pop_many(most, bounded=bounded), RECORDS, timeout)
        return endpoint.codec.decode_many(b"", 0) if records is None else records

    def take_message(self, timeout: Seconds) -> bytes | None:
        """Take a message of the peer's application; None if none came in time."""
        return self._take(self._endpoint.try_take_message, MESSAGE, timeout)

    def send_message(self, message: bytes, timeout: Seconds) -> None:
        """Send a message to the peer's application; raise Full if there was no room in time."""
        endpoint = self._endpoint
        deadline_of(timeout)
        if not endpoint.try_send_message(message):
            drive(plans.send_message(endpoint, message, timeout))

    def _take(
        self,
        attempt: Callable[[], T | None],
        event: Event,
        timeout: Seconds,
        *,
        tried: bool = False,
        spun: bool = False,
    ) -> T | None:
        """Call `attempt` until it gives something, waiting for `event` in between.

        `tried`: it would give nothing just now; `spun`: nor does it pay to look.
        """
        until = math.inf if timeout is None else plans.deadline(self._endpoint, timeout)
        if not tried and (result := attempt()) is not None:
            return result
        if timeout is not None and not timeout:
            return plans.last_try(self._endpoint, attempt, event)
        rounds = Rounds(self._endpoint, event, until, spun)
        while drive(rounds.next()):
            if (result := attempt()) is not None:
                return result
        return None
