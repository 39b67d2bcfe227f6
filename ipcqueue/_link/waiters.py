"""Who waits on one connection, and which of them reads its socket.

Any number of threads may wait for different things, but the doorbells for all of them come through
one socket.  One waiter at a time reads it; the others follow: each sleeps until the reader has read
something, and then looks again.  Nobody needs to know for whom a doorbell was meant.

Why no wake-up is lost between them: a waiter enters, announces what it waits for, looks again, and
stays as reader or follower, all in one critical section of `mutex`.  The reader takes the same
mutex after it has read, to release the followers.  A follower that entered before that is released.
One that entered later announced itself after the read, so the doorbell that answers is still to
come.  A reader stops being one without the mutex.  So what counts is whether somebody was reading
when the waiter entered: if so, the release is still to come; if not, nobody reads before the
section ends.

A Watch (watches.py) waits for the socket itself to become readable, without being the reader.  So
every reader wakes all of them *before* it reads what has come: an exception after the read could
keep it from doing so.  A Watch that begins while somebody is reading follows, too.
"""

from __future__ import annotations

import contextlib
import math
import threading
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from fdpass.lowlevel import Owner
from ipcqueue._direct import RLock, persist

from .events import MESSAGE, RECORDS, SPACE, Event

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Protocol

    from .watches import Watch
    from .wire import Wire

    class Follower(Protocol):
        """What a follower sleeps on: a lock that is held; or what a door has instead."""

        def release(self) -> None:
            """Wake who sleeps on it."""


__all__ = ["MESSAGE", "NOW", "RECORDS", "SPACE", "Event", "Wait", "Waiter", "Waiters"]

T = TypeVar("T")


class Wait(NamedTuple):
    """What to wait for: the first of these.  With none of them, for the time alone."""

    seconds: float = math.inf
    """How long at most."""
    wire: Wire | None = None
    """A connection, until `events` of poll() come, or (as always) its end or the peer's exit.

    For POLLIN alone it is read then, once, as by the reader; also when the time is over.
    """
    events: int = 0
    follower: Any = None
    """What the door's `follower` of Waiters has made, until it is released."""
    interests: Sequence[tuple[int, int]] = ()
    """Descriptors to poll, and for what; for 0, only for their end."""


# Not to wait; but a door of tasks lets others run.
NOW = Wait(0.0)


def held_lock() -> Follower:
    """Return a lock for a thread to sleep on."""
    lock = threading.Lock()
    lock.acquire()
    return lock


class Waiter:
    """A thread or task that waits for one event; its marks in Waiters, for leave() to undo."""

    # Defaults of the class, as one is made for each sleep: that calls no function of Python.
    counted = False
    late = False
    """Whether somebody else was reading when it entered: then it must follow."""
    reads = led = False
    follows: Follower | None = None
    """What it sleeps on if it follows."""


class Waiters(Owner):
    """The waiters of one connection.  Threads: everything here may be called from any."""

    def __init__(self) -> None:
        self.mutex = RLock()
        self.reading = False
        """Whether somebody reads the socket, or sleeps until it can be read."""
        self.counts = [0] * len(Event)
        """How many wait for each event."""
        self.followers: set[Follower] = set()
        self.watches: set[Watch] = set()
        """Who waits from outside and was not woken yet; never another set: a Wire looks at it."""
        self.follower: Callable[[], Follower] = held_lock

    def renew_locks(self) -> None:
        """In a forked child: forget who held them."""
        self.mutex = RLock()
        self.followers = set()
        self.watches.clear()

    def enter(self, waiter: Waiter, event: Event) -> None:
        """Count a waiter; before it announces what it waits for, and with the mutex held."""
        # No bytecode between these can be interrupted.
        self.counts[event] += 1
        waiter.counted = True
        waiter.late = self.reading

    def read(self, waiter: Waiter) -> None:
        """Make a waiter that is not late the reader; with the mutex held since it entered."""
        self.reading = waiter.reads = waiter.led = True

    def follow(self, waiter: Waiter) -> Follower:
        """Return what to sleep on until the reader has read; with the mutex held."""
        follower = waiter.follows = self.follower()
        self.followers.add(follower)
        return follower

    def leave(self, waiter: Waiter, event: Event, withdraw: Callable[[Event], None]) -> None:
        """Undo what a waiter for `event` has done here, as far as it came; for persist().

        Calls withdraw(event) if nobody waits for that any more, and wakes the followers of a
        reader: what it read may be for them, whoever reads by now.
        """
        # First what others wait for.  No bytecode between these can be interrupted.
        if waiter.reads:
            self.reading = waiter.reads = False
        if waiter.counted:
            self.counts[event] -= 1
            waiter.counted = False
        with self.mutex:
            if not self.counts[event] and not (self.watches and self.is_wanted(event)):
                withdraw(event)
            if waiter.follows is not None:
                self.followers.discard(waiter.follows)
            if waiter.led and self.followers:
                self.wake_followers()

    def is_wanted(self, event: Event) -> bool:
        """Whether anybody waits for this event; with the mutex held."""
        if self.counts[event]:
            return True
        return any(event in watch.events for watch in tuple(self.watches))

    def stand(self, watch: Watch) -> None:
        """Have a watch woken before anything more is read; with the mutex held.

        Before what it waits for is announced.
        """
        self.watches.add(watch)
        if self.reading:  # perhaps what it waits for
            self.followers.add(watch)

    def stand_down(self, watch: Watch) -> None:
        """Do not wake a watch any more."""
        with self.mutex:
            self.watches.discard(watch)
            self.followers.discard(watch)

    def alert(self) -> None:
        """Wake every watch: somebody is about to read what may concern it."""
        with self.mutex:
            for watch in tuple(self.watches):
                watch.release()
                self.watches.discard(watch)

    def read_if_free(self, read: Callable[[], T]) -> T | None:
        """Call read() as the reader; None if somebody else is reading."""
        reading = False
        try:
            with self.mutex:
                if self.reading:
                    return None
                self.reading = reading = True
            return read()
        finally:
            if reading:
                self.reading = False  # first, and not by a call: an exception may strike again
                persist(self.wake_followers)

    def wake_followers(self) -> None:
        """Have every follower look again at what concerns it; after reading, and not during."""
        with self.mutex:
            # A copy, because a signal handler may wake them, or follow itself, at any place in
            # here.
            for follower in tuple(self.followers):
                with contextlib.suppress(RuntimeError):  # it is awake already
                    follower.release()
                self.followers.discard(follower)
