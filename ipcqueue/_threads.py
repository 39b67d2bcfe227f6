"""The door for plain threads: the verbs of an Endpoint, with waiting.

Any number of threads may wait on one connection: one of them reads its socket, and the others
follow, each asleep on a lock of its own.  Why no wake-up is lost stands in _link/waiters.py.
"""

from __future__ import annotations

import math
import select
from typing import TYPE_CHECKING, Any, TypeVar

from fdpass.lowlevel import Owner, monotonic, shown_seconds

from ._direct import persist
from ._errors import Closed, Full
from ._link.endpoint import advance
from ._link.loans import Borrowing, Loan
from ._link.terms import deadline_of
from ._link.waiters import Event, Waiter
from ._ring.sender import Sending

if TYPE_CHECKING:
    import socket
    import threading
    from collections.abc import Callable, Iterable

    from fdpass import Seconds

    from ._link.endpoint import Endpoint
    from ._link.opening import Opening
    from ._records.messages import Received

T = TypeVar("T")

# Sleepers look again this often, in seconds, even if nothing woke them.  It should never find
# anything; statistics().rescues counts when it does.
SLICE = 1.0


def open_endpoint(opening: Opening) -> Endpoint:
    """Wait until both sides have agreed.  Raises what Opening.step does."""
    poll = select.poll()
    try:
        while (endpoint := advance(opening)) is None:
            poll.register(opening.fileno(), opening.events)
            poll.poll(_milliseconds(max(0.0, opening.deadline - monotonic())))
    except BaseException:
        persist(opening.abandon)  # Ctrl-C; harmless after a step that failed
        raise
    return endpoint


def _left(deadline: float) -> float | None:
    """Return the seconds until then, and None until never."""
    return None if deadline == math.inf else max(0.0, deadline - monotonic())


def _milliseconds(seconds: float) -> int:
    return math.ceil(min(seconds, SLICE) * 1000)


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
        """Publish a record; raise Full if there was no space in time."""
        sender = self._endpoint.sending()
        deadline = deadline_of(timeout)
        with sender.parcel(record, fds, regions) as parcel:
            if not self._send(Sending(sender, parcel), deadline):
                raise Full(f"no space for a record within {shown_seconds(timeout)}")

    def _send(self, sending: Sending, deadline: float) -> bool:
        while True:
            sent = self._until(sending.attempt, Event.SPACE, _left(deadline), sending.units)
            if not sending.stuck:
                return bool(sent)
            if monotonic() >= deadline:
                return False
            self._await_room(deadline)

    def push_many(self, records: Any, timeout: Seconds) -> int:
        """Publish records in order; return how many there was space for in time."""
        sender = self._endpoint.sending()
        if timeout is not None:
            deadline_of(timeout)  # before anything is sent
        sending = sender.push_many(records)
        if isinstance(sending, int):
            return sending
        deadline = deadline_of(timeout)  # to encode them is not waiting
        while sending.left:
            alone = sending.alone()
            if alone is None:
                left = _left(deadline)
                sent = self._until(sending.attempt, Event.SPACE, left, sending.units)
            else:
                with alone as parcel:
                    sent = self._send(Sending(sender, parcel), deadline)
            if not sent:
                break
            sending.done += sent
        return sending.done

    def await_space(self) -> None:
        """Wait until a record can be pushed at once, if nobody else pushes."""
        self._until(self._endpoint.has_space, Event.SPACE, None, self._endpoint.enough)

    def loan(self, size: int, timeout: Seconds, tag: int, flags: int) -> Loan:
        """Return a loan that waits for its space on entry."""
        deadline_of(timeout)
        return Loan(self._endpoint, size, tag, flags, lambda loan: self.open_loan(loan, timeout))

    def borrow(self, limit: int | None, timeout: Seconds) -> Borrowing:
        """Return a borrowing that waits for something to borrow on entry."""
        deadline_of(timeout)
        return Borrowing(self._endpoint, limit, lambda it: self.open_borrowing(it, timeout))

    def open_loan(self, loan: Loan, timeout: Seconds) -> None:
        """Wait for the space of a loan; raise Full if there was none in time."""
        if self._until(loan.try_open, Event.SPACE, timeout, lambda: loan.units) is None:
            raise Full(f"no space for a loan within {shown_seconds(timeout)}")

    def open_borrowing(self, borrowing: Borrowing, timeout: Seconds) -> None:
        """Wait for something to borrow; leave it empty if nothing came in time."""
        endpoint = self._endpoint
        self._until(lambda: endpoint.or_end(borrowing.try_open), Event.RECORDS, timeout)

    def receive(self, timeout: Seconds) -> Received | None:
        """Take a message with what is attached to it; None if none came in time."""
        return self._until(self._endpoint.try_receive, Event.RECORDS, timeout)

    def pop(self, timeout: Seconds) -> Any:
        """Take a record; None if none came in time.

        What the short way can do, spinning too, was tried already.
        """
        endpoint = self._endpoint
        receiver = endpoint.receiving()
        spun = timeout is None or bool(timeout)
        tried = spun and not endpoint.ended and receiver.is_empty()
        return self._until(endpoint.try_pop, Event.RECORDS, timeout, tried=tried, spun=spun)

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
        records = self._until(
            lambda: endpoint.try_pop_many(most, bounded=bounded), Event.RECORDS, timeout
        )
        return endpoint.codec.decode_many(b"", 0) if records is None else records

    def take_message(self, timeout: Seconds) -> bytes | None:
        """Take a message of the peer's application; None if none came in time."""
        return self._until(self._endpoint.try_take_message, Event.MESSAGE, timeout)

    def send_message(self, message: bytes, timeout: Seconds) -> None:
        """Send a message to the peer's application; raise Full if there was no room in time."""
        endpoint = self._endpoint
        deadline = deadline_of(timeout)
        while not endpoint.try_send_message(message):
            left = deadline - monotonic()
            if left <= 0:
                raise Full(f"no room for a control message within {shown_seconds(timeout)}")
            self._await_room(deadline)

    def _await_room(self, deadline: float) -> None:
        """Wait for a while until the socket takes more; and read it meanwhile.

        Both, as the peer may be waiting for room in the same way.
        """
        endpoint = self._endpoint
        left = max(0.0, deadline - monotonic())
        events = 0 if endpoint.waiters.reading else select.POLLIN
        if endpoint.in_flight_limit_reached():
            left = min(left, endpoint.retry_after())
        else:
            events |= select.POLLOUT
        poll = select.poll()

        def wait(_: socket.socket) -> None:
            endpoint.wire.watch(poll, events)
            poll.poll(_milliseconds(left))

        endpoint.with_socket(wait)
        endpoint.turn()

    def _until(
        self,
        attempt: Callable[[], T | None],
        event: Event,
        timeout: Seconds,
        units: Callable[[], int] = lambda: 1,
        *,
        tried: bool = False,
        spun: bool = False,
    ) -> T | None:
        """Call `attempt` until it gives something, sleeping for `event` in between.

        For SPACE, `units` says how much of it there must be.  `tried`: it would give nothing just
        now; `spun`: nor does it pay to look.
        """
        deadline = deadline_of(timeout)
        if not tried and (result := attempt()) is not None:
            return result
        if timeout is not None and not timeout:
            self._endpoint.turn()  # or the end of the connection would never be seen
            if event is Event.RECORDS:
                self._endpoint.looked()
            return attempt()
        if not spun and self._look(event, units()) and (result := attempt()) is not None:
            return result
        while True:
            if self._endpoint.busy and event is not Event.MESSAGE:
                by_the_clock = False
                self._look(event, units())
                self._endpoint.turn()
            else:
                by_the_clock = self._sleep(event, deadline, units())
            if (result := attempt()) is not None:
                self._endpoint.rescues += by_the_clock
                return result
            if monotonic() >= deadline:
                self._endpoint.turn()  # a short timeout may have left no time to read
                return attempt()

    def _look(self, event: Event, units: int) -> bool:
        if event is Event.RECORDS:
            return self._endpoint.receiving().look()
        return event is Event.SPACE and self._endpoint.sending().look(units)

    def _sleep(self, event: Event, deadline: float, units: int) -> bool:
        """Sleep until `event` may have come; return whether only a slice of time had passed."""
        endpoint = self._endpoint
        waiters, waiter = endpoint.waiters, Waiter(event)
        follower: threading.Lock | None = None
        try:
            with waiters.mutex:
                waiters.enter(waiter)  # before the announcement; see Waiters
                if not endpoint.announce(event, units):
                    return False
                left = SLICE
                if deadline != math.inf:
                    left = min(deadline - monotonic(), SLICE)
                    if left <= 0:
                        return False
                if waiter.late:
                    follower = waiters.follow(waiter)
                else:
                    waiters.read(waiter)
            woken = endpoint.doze(left) if follower is None else follower.acquire(timeout=left)
            return not woken and left == SLICE
        except Closed:
            return False  # the attempt that follows says so
        finally:
            persist(endpoint.leave, waiter)
