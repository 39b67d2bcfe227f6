"""The door for plain threads: the verbs of an Endpoint, with waiting.

Any number of threads may wait on one connection, for different things, but the doorbells of all
come through one socket.  So one of them at a time reads it, and the others follow: each sleeps on
a lock of its own until the reader has read something, and then all of them look again at what
concerns them.  Nobody needs to know for whom a doorbell was meant.

Why no wake-up is lost between them: a thread announces itself, looks again, and becomes reader or
follower in one critical section of `endpoint.mutex`.  The reader takes the same mutex after it
has read, to release the followers.  Whoever entered before that is released; whoever enters after
it announced itself after the read, so the doorbell that answers is still to come.
"""

from __future__ import annotations

import math
import os
import select
import threading
import time
from typing import TYPE_CHECKING, Any, TypeVar

from ._endpoint import Event
from ._errors import Closed, Full
from ._opening import deadline_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._endpoint import Endpoint
    from ._opening import Opening

T = TypeVar("T")

# Looking for what is about to come costs less than sleeping (70 to 95 microseconds to wake up on
# a virtual machine), but on one processor it only keeps the peer from running.
SPIN_NS = 20_000 if len(os.sched_getaffinity(0)) > 1 else 0

# Sleepers look again this often, in seconds, even if nothing woke them.  It should never find
# anything; statistics().rescues counts when it does.
SLICE = 1.0


def open_endpoint(opening: Opening) -> Endpoint:
    """Wait until both sides have agreed.  Raises what Opening.step does."""
    poll = select.poll()
    try:
        while (endpoint := opening.step()) is None:
            poll.register(opening.fileno(), opening.events)
            poll.poll(_milliseconds(max(0.0, opening.deadline - time.monotonic())))
    except BaseException:
        opening.abandon()  # Ctrl-C; harmless after a step that failed
        raise
    return endpoint


def _milliseconds(seconds: float) -> int:
    return math.ceil(min(seconds, SLICE) * 1000)


class Threads:
    """The waiting verbs.  Each first tries, then spins a little, then sleeps."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    def push(self, record: Any, timeout: float | None) -> None:
        """Publish a record; raise Full if there was no space in time."""
        endpoint = self._endpoint
        if not self._until(lambda: endpoint.try_push(record) or None, Event.SPACE, timeout):
            raise Full(f"no space for a record within {timeout} s")

    def push_many(self, records: Any, timeout: float | None) -> int:
        """Publish records in order; return how many there was space for in time."""
        endpoint = self._endpoint
        buffer, count = endpoint.codec.encode_many(records)
        data, size = memoryview(buffer).cast("B"), endpoint.codec.size
        deadline = deadline_of(timeout)
        done = 0

        def attempt() -> int | None:
            return endpoint.try_push_many(data[done * size :], count - done) or None

        while done < count:
            left = None if timeout is None else max(0.0, deadline - time.monotonic())
            pushed = self._until(attempt, Event.SPACE, left)
            if pushed is None:
                break
            done += pushed
        return done

    def await_space(self) -> None:
        """Wait until a record can be pushed at once, if nobody else pushes."""
        self._until(self._endpoint.has_space, Event.SPACE, None)

    def pop(self, timeout: float | None) -> Any:
        """Take a record; None if none came in time."""
        return self._until(self._endpoint.try_pop, Event.RECORDS, timeout)

    def pop_many(self, limit: int | None, timeout: float | None) -> Any:
        """Wait for a record, then take all that is there; empty if none came in time."""
        endpoint = self._endpoint
        most = endpoint.most(limit)
        if most == 0:
            return endpoint.codec.decode_many(b"", 0)

        records = self._until(lambda: endpoint.try_pop_many(most), Event.RECORDS, timeout)
        return endpoint.codec.decode_many(b"", 0) if records is None else records

    def take_message(self, timeout: float | None) -> bytes | None:
        """Take a message of the peer's application; None if none came in time."""
        return self._until(self._endpoint.try_take_message, Event.MESSAGE, timeout)

    def send_message(self, message: bytes, timeout: float | None) -> None:
        """Send a message to the peer's application; raise Full if there was no room in time."""
        endpoint = self._endpoint
        deadline = deadline_of(timeout)
        while not endpoint.try_send_message(message):
            left = deadline - time.monotonic()
            if left <= 0:
                raise Full(f"no room for a control message within {timeout} s")
            with endpoint.socket_in_hand() as sock:
                # Also read: the peer may be waiting for room in the same way.
                poll = select.poll()
                poll.register(sock, select.POLLOUT | (0 if endpoint.reading else select.POLLIN))
                poll.poll(_milliseconds(left))
            endpoint.turn()

    def _until(
        self, attempt: Callable[[], T | None], event: Event, timeout: float | None
    ) -> T | None:
        """Call `attempt` until it gives something, sleeping for `event` in between."""
        deadline = deadline_of(timeout)
        if (result := attempt()) is not None:
            return result
        if timeout == 0:
            self._endpoint.turn()  # or the end of the connection would never be seen
            return attempt()
        if self._spin(event) and (result := attempt()) is not None:
            return result
        while True:
            by_the_clock = self._sleep(event, deadline)
            if (result := attempt()) is not None:
                self._endpoint.rescues += by_the_clock
                return result
            if time.monotonic() >= deadline:
                self._endpoint.turn()  # a short timeout may have left no time to read
                return attempt()

    def _spin(self, event: Event) -> bool:
        ring = {Event.RECORDS: self._endpoint.receiver, Event.SPACE: self._endpoint.sender}
        end = ring.get(event)
        return end is not None and SPIN_NS > 0 and end.spin(SPIN_NS)

    def _sleep(self, event: Event, deadline: float) -> bool:
        """Sleep until `event` may have come; return whether only a slice of time had passed."""
        endpoint = self._endpoint
        leading = counted = False
        follower: threading.Lock | None = None
        try:
            with endpoint.mutex:
                endpoint.waiting[event] += 1
                counted = True
                if not endpoint.announce(event):
                    return False
                left = min(deadline - time.monotonic(), SLICE)
                if left <= 0:
                    return False
                if endpoint.reading:
                    follower = threading.Lock()
                    follower.acquire()
                    endpoint.followers.add(follower)
                else:
                    endpoint.reading = leading = True
            if follower is not None:
                woken = follower.acquire(timeout=left)
            else:
                with endpoint.socket_in_hand() as sock:
                    woken = _readable(sock, left)
                endpoint.service()
            return not woken and left == SLICE
        except Closed:
            return False  # the attempt that follows says so
        finally:
            # First what must be done, by bytecodes that cannot be interrupted.
            if leading:
                endpoint.reading = False
            if counted:
                endpoint.waiting[event] -= 1
            try:
                self._leave(event, follower, leading=leading)
            except BaseException:
                self._leave(event, follower, leading=leading)
                raise

    def _leave(self, event: Event, follower: threading.Lock | None, *, leading: bool) -> None:
        endpoint = self._endpoint
        with endpoint.mutex:
            if not endpoint.waiting[event]:
                endpoint.withdraw(event)
            if follower is not None:
                endpoint.followers.discard(follower)
            if leading:  # what was read may be for them, whoever reads by now
                endpoint.wake_followers()


def _readable(sock: Any, seconds: float) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(_milliseconds(seconds)))
