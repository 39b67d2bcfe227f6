"""Plans: how every verb waits, whatever it is that waits: a thread, or a task.

A plan is a generator.  It yields a Wait, which says what to wait for; a door does that and sends
back whether it came in time.  A door is `drive(plan)` and the sleeping in it, and decides nothing:
ipcqueue/_threads.py, memenpsf/trio/_tasks.py.

What a verb receives is never inside a plan.  There is a plan for each round between two attempts;
it ends with True (try now) or False (time is up), and then the verb takes the record by one call,
of which an exception of a signal handler loses nothing.  What is sent stays with the caller until
it is published, so for that the attempts are in the plan.

A plan that is not driven to its end is closed by its door, explicitly: a waiter takes its
announcement back.  What could be done at once does not come here.
"""

from __future__ import annotations

import math
import select
from typing import TYPE_CHECKING, Any, TypeVar

from fdpass.lowlevel import monotonic, seconds_of, shown_seconds
from ipcqueue._direct import persist
from ipcqueue._errors import Closed, Full
from ipcqueue._ring.codes import RingError
from ipcqueue._ring.sender import Sending

from .waiters import MESSAGE, NOW, RECORDS, SPACE, Event, Wait, Waiter

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable
    from contextlib import AbstractContextManager

    from fdpass import Seconds
    from ipcqueue._ring.sender import BatchSending

    from .endpoint import Endpoint
    from .loans import Borrowing, Loan
    from .opening import Opening

T = TypeVar("T")

# How long who waits for room in the socket leaves it to the reader that there is to read it, in
# seconds: that may stop reading.
ROOM_SLICE = 0.05


def one() -> int:
    """Return the space that a record of a fixed size takes; other events do not ask."""
    return 1


def never() -> bool:
    """Say that no attempt was stuck."""
    return False


def deadline(endpoint: Endpoint, timeout: Seconds) -> float:
    """Return when a timeout that begins now ends, by the clock of the endpoint's door."""
    return math.inf if timeout is None else endpoint.clock() + seconds_of(timeout)


class Rounds:
    """What happens between the attempts of one call of a verb."""

    __slots__ = (
        "_deadline", "_event", "_looks", "_only", "_over", "_spun", "_stuck", "_units", "endpoint",
    )  # fmt: skip

    def __init__(
        self,
        endpoint: Endpoint,
        event: Event,
        until: float,
        spun: bool = False,
        units: Callable[[], int] = one,
        stuck: Callable[[], bool] = never,
    ) -> None:
        """Wait for `event` until `until`, which is what deadline() has returned.

        `spun`: it does not pay to look before sleeping.  For SPACE, `units` says how much of it
        there must be, and `stuck` whether the last attempt found it but no room in the socket.
        """
        self.endpoint = endpoint
        self._event = event
        self._deadline = until
        self._units = units
        self._stuck = stuck
        self._spun = spun or not endpoint.spins
        self._over = False
        # A task cannot look without a break, as others are to run: it looks between their turns.
        self._looks = not endpoint.spins and event is RECORDS
        # Whether there is nothing to see to but to sleep, once it does not pay to look.
        self._only = until == math.inf and stuck is never and not endpoint.busy

    def next(self) -> Generator[Wait, bool, bool]:
        """After an attempt in vain: a plan for until the next.  False if that was the last."""
        endpoint = self.endpoint
        if self._only and self._spun and (endpoint.spins or not endpoint.unfinished(self._event)):
            if not self._looks:
                return self._sleep()  # for speed without another generator around it
            self._looks = False
            patience = endpoint.receiving().patience()
            return self._look_in_turns(patience) if patience else self._sleep()
        return self._step()

    def _step(self) -> Generator[Wait, bool, bool]:
        endpoint = self.endpoint
        if self._over:
            return False
        if endpoint.unfinished(self._event):  # a large message: see serve_tasks
            yield NOW
        elif self._left() <= 0:
            if self._stuck():
                return False
            self._over = True
            _look_once(endpoint, self._event)
            yield NOW
        elif self._stuck():
            yield from _room(endpoint, self._left())
        elif endpoint.busy and self._event is not MESSAGE:
            if not self._look() or self._spun:
                endpoint.read_if_free()
            self._spun = True
        elif self._spun or not self._look():
            self._spun = True
            yield from self._sleep()
        else:
            self._spun = True
        return True

    def _left(self) -> float:
        return self._deadline - self.endpoint.clock() if self._deadline != math.inf else math.inf

    def _look(self) -> bool:
        """Look for what is about to come, as long as that is worth it."""
        if self._event is RECORDS:
            return self.endpoint.receiving().look()
        return self._event is SPACE and self.endpoint.sending().look(self._units())

    def _look_in_turns(self, patience: int) -> Generator[Wait, bool, bool]:
        """Look for so many nanoseconds, and let others run in between; sleep if nothing comes."""
        endpoint = self.endpoint
        until, came = monotonic() + patience * 1e-9, False
        while not came and monotonic() < until:
            yield NOW
            came = endpoint.has_come(self._event, 1)
        endpoint.receiving().learn(came)
        return came or (yield from self._sleep())

    def _sleep(self) -> Generator[Wait, bool, bool]:
        """Sleep until the event may have come: as the reader of the socket, or as a follower."""
        endpoint, event = self.endpoint, self._event
        waiters, waiter, units = endpoint.waiters, Waiter(), self._units()
        try:
            with waiters.mutex:
                waiters.enter(waiter, event)  # before the announcement; see Waiters
                if not (needed := endpoint.announce(event, units)):
                    wait = NOW
                elif waiter.late:
                    wait = Wait(self._left(), follower=waiters.follow(waiter))
                else:
                    waiters.read(waiter)
                    wait = endpoint.readable
                    if self._deadline != math.inf:
                        wait = Wait(self._left(), endpoint.wire, select.POLLIN)
            if waiter.reads and endpoint.should_back_off():
                yield Wait(min(wait.seconds, endpoint.back_off_length()), endpoint.wire)
                wait = wait._replace(seconds=self._left())
            woken = yield wait
            if waiter.reads:
                endpoint.note_wakeup(woken)
            if needed and not woken and self._left() > 0 and endpoint.has_come(event, units):
                endpoint.rescues += 1
        except Closed:
            pass  # the attempt that follows says so
        finally:
            persist(waiters.leave, waiter, event, endpoint.withdraw)
        return True


def _look_once(endpoint: Endpoint, event: Event) -> None:
    """Read the socket, or the end would never be seen where there was no time to do so."""
    endpoint.read_if_free()
    if event is RECORDS:
        endpoint.note_read()


def last_try(endpoint: Endpoint, attempt: Callable[[], T | None], event: Event) -> T | None:
    """Do what is left where there is no time to wait, after an attempt in vain."""
    _look_once(endpoint, event)
    return attempt()


def _room(endpoint: Endpoint, seconds: float) -> Generator[Wait, bool, None]:
    """Wait for a while until the socket takes more; and read it meanwhile.

    Both, as the peer may be waiting for room in the same way.
    """
    if endpoint.waiters.reading:
        events, seconds = 0, min(seconds, ROOM_SLICE)
    else:
        events = select.POLLIN
    if endpoint.in_flight_limit_reached():
        seconds = min(seconds, endpoint.retry_after())
    else:
        events |= select.POLLOUT
    yield Wait(seconds, endpoint.wire, events)
    endpoint.read_if_free()


def _until(
    attempt: Callable[[], T | None], rounds: Rounds, *, tried: bool = False
) -> Generator[Wait, bool, T | None]:
    """Attempt until that gives something; None if it did not in time.  `tried`: once, in vain.

    Where the sending end of a ring is attempted, that raises what its trouble means; the receiving
    end is attempted in Endpoint.or_end(), which does the same.
    """
    result = None
    try:
        while tried or (result := attempt()) is None:
            tried = False
            if not (yield from rounds.next()):
                break
        return result
    except RingError as error:
        trouble = error.args
    rounds.endpoint.raise_meaning(*trouble, sending=True)


# -- the verbs that send -------------------------------------------------------------------------


def push(
    endpoint: Endpoint, parcel: AbstractContextManager[Any], timeout: Seconds
) -> Generator[Wait, bool, None]:
    """Publish a record that is encoded, and close it; raise Full if there was no space in time."""
    until = deadline(endpoint, timeout)
    with parcel:
        if not (yield from _send(endpoint, parcel, until)):
            raise Full(f"no space for a record within {shown_seconds(timeout)}")


def _send(endpoint: Endpoint, parcel: Any, until: float) -> Generator[Wait, bool, bool | None]:
    sending = Sending(endpoint.sending(), parcel)
    rounds = Rounds(endpoint, SPACE, until, units=sending.units, stuck=lambda: sending.stuck)
    return (yield from _until(sending.attempt, rounds))


def push_many(
    endpoint: Endpoint, records: Iterable[Any], timeout: Seconds
) -> Generator[Wait, bool, int]:
    """Publish records in order; return how many there was space for in time."""
    sending = endpoint.sending().push_many(records)
    if isinstance(sending, int):
        return sending
    return (yield from push_rest(endpoint, sending, timeout))


def push_rest(
    endpoint: Endpoint, sending: BatchSending, timeout: Seconds
) -> Generator[Wait, bool, int]:
    """Publish what is left of a batch, in order; return how many of all there was space for."""
    until = deadline(endpoint, timeout)
    while sending.left:
        alone = sending.alone()
        sent: int | None
        if alone is None:
            rounds = Rounds(endpoint, SPACE, until, units=sending.units)
            sent = yield from _until(sending.attempt, rounds)
        else:
            with alone as parcel:
                sent = yield from _send(endpoint, parcel, until)
        if not sent:
            break
        sending.done += sent
    return sending.done


def await_space(endpoint: Endpoint) -> Generator[Wait, bool, None]:
    """Wait until a record can be pushed at once, if nobody else pushes."""
    rounds = Rounds(endpoint, SPACE, math.inf, units=endpoint.enough)
    yield from _until(endpoint.has_space, rounds)


def send_message(
    endpoint: Endpoint, message: bytes, timeout: Seconds
) -> Generator[Wait, bool, None]:
    """Send a message to the peer's application; raise Full if there was no room in time."""
    rounds = Rounds(endpoint, SPACE, deadline(endpoint, timeout), stuck=lambda: True)
    if not (yield from _until(lambda: endpoint.try_send_message(message) or None, rounds)):
        raise Full(f"no room for a control message within {shown_seconds(timeout)}")


# -- blocks --------------------------------------------------------------------------------------


def open_loan(
    endpoint: Endpoint, loan: Loan, timeout: Seconds, *, tried: bool = False
) -> Generator[Wait, bool, None]:
    """Wait for the space of a loan; raise Full if there was none in time."""
    rounds = Rounds(endpoint, SPACE, deadline(endpoint, timeout), units=lambda: loan.units)
    if (yield from _until(loan.try_open, rounds, tried=tried)) is None:
        raise Full(f"no space for a loan within {shown_seconds(timeout)}")


def open_borrowing(
    endpoint: Endpoint, borrowing: Borrowing, timeout: Seconds, *, tried: bool = False
) -> Generator[Wait, bool, None]:
    """Wait for something to borrow; leave it empty if nothing came in time."""
    rounds = Rounds(endpoint, RECORDS, deadline(endpoint, timeout))
    yield from _until(borrowing.try_open, rounds, tried=tried)


# -- connecting ----------------------------------------------------------------------------------


def next_step(opening: Opening) -> Wait:
    """Return what to wait for before the next step of a handshake."""
    left = max(0.0, opening.deadline - monotonic())
    return Wait(left, interests=[(opening.fileno(), opening.events)])
