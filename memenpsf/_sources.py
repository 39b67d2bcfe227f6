"""What many can be waited for at once: connections, listeners and plain descriptors, one each.

Nothing here waits.  look() says whether there is something to do; if not, interests() and `due` say
when to look again.  A connection is armed by that, so leave() must follow.
"""

from __future__ import annotations

import math
import select
from typing import TYPE_CHECKING, Any

from ipcqueue import Closed, Sender
from ipcqueue.lowlevel import Event, Owner, Receives, RLock, Watch, monotonic

from ._listener import Listener

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ._listening import AnyListener

_RECORDS = (Event.RECORDS,)

# Seconds to leave a listener alone where another thread accepts its clients.
ELSEWHERE = 0.05


class Source(Owner):
    """One of many; `given` is the object that the application has."""

    due = math.inf
    """After look() has returned False: the monotonic() at which to look again at the latest."""

    def __init__(self, given: Any) -> None:
        self.given = given

    def look(self) -> bool:
        """Return whether there is something to do; if not, have interests() tell when there is."""
        raise NotImplementedError

    def interests(self) -> Sequence[tuple[int, int]]:
        """Return what to poll after look() has returned False, and for which events."""
        raise NotImplementedError

    def look_aside(self) -> bool:
        """Return whether there is something to do where look() found nothing, and nothing woke us.

        So it should always be False.
        """
        return False

    def leave(self) -> None:
        """Undo what look() has done; repeatable."""


class ConnectionSource(Source):
    """A connection from which records come; `wake` is called when another thread reads for it."""

    def __init__(self, given: Any, wake: Callable[[], None]) -> None:
        super().__init__(given)
        self.endpoint = given._endpoint  # noqa: SLF001 (of these packages)
        self._watch = Watch(wake)
        self._watch.events = {Event.RECORDS}

    def look(self) -> bool:
        """Return whether a record can be received, or the end; else arm it."""
        endpoint, self.due = self.endpoint, math.inf
        if endpoint.watch(self._watch, _RECORDS):
            endpoint.unwatch(self._watch)  # which spares the peer a doorbell
            return True
        if endpoint.should_back_off():  # its peer wakes us for nothing
            self.due = monotonic() + endpoint.back_off_length()
        return False

    def look_aside(self) -> bool:
        """Return whether a record came without a doorbell; count it as a rescue."""
        found: bool = self.endpoint.has_come(Event.RECORDS, 1)
        self.endpoint.rescues += found
        return found

    def interests(self) -> Sequence[tuple[int, int]]:
        """Return the socket and the peer's pidfd; nothing while it backs off."""
        if self.due < math.inf:
            return ()
        endpoint = self.endpoint
        try:
            sock, pidfd = (endpoint.fileno(), select.POLLIN), endpoint.peer_pidfd()
        except Closed:
            return ()  # it wakes those who watch it
        return (sock,) if pidfd is None else (sock, (pidfd, select.POLLIN))

    def leave(self) -> None:
        """Disarm it."""
        self.endpoint.unwatch(self._watch)


class ListenerSource(Source):
    """A listener, whose clients can be accepted."""

    def __init__(self, given: AnyListener, wake: Callable[[], None]) -> None:
        super().__init__(given)
        self._wake_up = wake
        self._lock = RLock()
        self._left = False
        self._pending = given._pending  # noqa: SLF001 (one package)
        self._interests: Sequence[tuple[int, int]] = ()

    def look(self) -> bool:
        """Do what can be done for the clients; return whether one can be accepted."""
        pending, now = self._pending, monotonic()
        pending.watchers.add(self._wake)
        if pending.closed:
            return True
        if rest := pending.cooldown():
            pending.rests_until = now + rest
        if now < pending.rests_until:
            self.due, self._interests = pending.rests_until, ()
            return False
        can_accept = self.given._has_client()  # noqa: SLF001 (one package)
        if can_accept is None:
            self.due, self._interests = now + ELSEWHERE, ()
        elif not can_accept:
            self.due, self._interests = pending.next_deadline(), list(pending.interests())
        return bool(can_accept) or pending.closed  # by another thread, which closes its sockets

    def _wake(self) -> None:
        with self._lock:  # after leave() it calls nothing
            if not self._left:
                self._wake_up()

    def interests(self) -> Sequence[tuple[int, int]]:
        """Return the sockets of the listener and of those clients that introduce themselves."""
        return [each for each in tuple(self._interests) if each[0] >= 0]

    def leave(self) -> None:
        """Do not hear of its end any more."""
        with self._lock:
            self._left = True
        self._pending.watchers.discard(self._wake)


class DescriptorSource(Source):
    """A descriptor, or an object with fileno(), that becomes readable."""

    def __init__(self, given: Any, fd: int) -> None:
        super().__init__(given)
        self._interests = [(fd, select.POLLIN)]
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)

    def look(self) -> bool:
        """Return whether it is readable, or has ended, or is closed by now."""
        return bool(self._poll.poll(0))

    def interests(self) -> Sequence[tuple[int, int]]:
        """Return the descriptor."""
        return self._interests


def source_of(given: Any, wake: Callable[[], None], who: str) -> Source | None:
    """Return the source that a connection or a listener is; None for other objects.

    Raises TypeError for one that `who`, such as "wait()", cannot wait for.
    """
    if isinstance(given, Receives):
        return ConnectionSource(given, wake)
    if isinstance(given, Listener):
        return ListenerSource(given, wake)
    if isinstance(given, Sender):
        raise TypeError(f"{who} is for what receives, but {given!r} only sends: see its arm()")
    if type(given).__module__.startswith(("memenpsf.trio", "memenpsf.asyncio")):
        raise TypeError(f"{who} blocks its thread, but {given!r} belongs to an event loop")
    return None


def leave_all(sources: Sequence[Source]) -> None:
    """Undo what look() of each has done; repeatable, for persist()."""
    for source in tuple(sources):
        source.leave()


def no_member(given: object, members: str) -> TypeError:
    """Return the error for an object that cannot be a member of a set, which has `members`."""
    return TypeError(f"a ReceiverSet has {members}, not {given!r}: for others use memenpsf.wait()")
