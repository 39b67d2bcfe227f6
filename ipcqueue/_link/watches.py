"""Who waits for a connection from outside of it: an event loop, or a set of many connections.

A thread or task that waits inside a verb is a Waiter (waiters.py).  A Watch is woken by a call
instead: when the socket may be about to lose what it waits for to another reader.  As long as
nobody else reads the socket, its readability is enough.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from fdpass import Fd
from fdpass.lowlevel import Owner
from ipcqueue._errors import Closed

if TYPE_CHECKING:
    from collections.abc import Callable

    from .events import Event

# How many tasks of one event loop can arm one Bell before the loop polls it, and still all be
# woken; also how often a loop may wake for nothing after one of them has changed its mind.
MAX_TASKS = 8

_EVENTFD_FLAGS = os.EFD_CLOEXEC | os.EFD_NONBLOCK


class Watch(Owner):
    """Waits for `events` of one connection until release() is called, then looks again.

    release() may be called in any thread, and more than once; it waits for nobody.
    """

    def __init__(self, release: Callable[[], None]) -> None:
        self.events: set[Event] = set()
        self.release = release


class EventFd(Owner):
    """A descriptor that is readable once it was rung, until it is silenced.  Not open at first."""

    def __init__(self) -> None:
        (self._fd,) = Fd.blank(1)

    def open(self) -> None:
        """Open the descriptor; repeatable."""
        if self._fd.closed:
            Fd.own((self._fd,), map(os.eventfd, (0,), (_EVENTFD_FLAGS,)))

    def fileno(self) -> int:
        """Return the descriptor, to poll for POLLIN."""
        return self._fd.fileno()

    def ring(self) -> None:
        """Make it readable."""
        os.eventfd_write(self._fd.fileno(), 1)

    def silence(self) -> None:
        """Make it unreadable, also if it is so already."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._fd.fileno())

    def close(self) -> None:
        """Close the descriptor; repeatable."""
        self._fd.close()


class Bell(Watch):
    """A descriptor that is readable after release(): for event loops.

    Any number of tasks share it.  Nothing tells which of them arms it, nor whether their loop has
    polled it since it was rung.  So what they wait for adds up.  The bell is silenced only when
    none of it has come: then a task that was not woken would have found nothing.

    Threads: one at a time, with the mutex of Waiters.  `use` calls a function while the connection
    cannot be closed, or raises Closed: a number closed meanwhile may be another file's.
    """

    def __init__(self, use: Callable[[Callable[[object], None]], None]) -> None:
        super().__init__(self._release)
        self._use = use
        self.eventfd = EventFd()
        self.rung = False
        self._ignored = 0  # how often in a row it was armed beside events that had come

    def _release(self) -> None:
        with contextlib.suppress(Closed):  # then its descriptor is closed, which wakes nobody
            self._use(self._ring)

    def _ring(self, _: object = None) -> None:
        self.rung = True  # first, so that it is silenced if a signal handler raises in here
        self.eventfd.ring()

    def _silence(self) -> None:
        if self.rung:
            self.eventfd.silence()
            self.rung = False

    def settle(self, asked: set[Event], come: set[Event]) -> bool:
        """Note that a task asks for some events; return whether it may wait.

        `come` are those of `events` and `asked` that have come already.
        """
        told = self.events & come
        if asked & come:
            if told:  # to others, or to the same task earlier
                self._ring()
            return False
        self.events |= asked
        if told and self._ignored < MAX_TASKS:
            self._ignored += 1
            self._ring()
            return True
        self.events -= told  # a task that has waited for these does so no more
        self._ignored = 0
        self._silence()
        return True
