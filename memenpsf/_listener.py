"""Listener: many clients on one address, for plain threads."""

from __future__ import annotations

import contextlib
import logging
import math
import select
import socket
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Self

from ipcqueue import Closed, Opening, PeerDied, QueueError, Terms, deadline_of

from ._address import bind, resolve
from ._interface import BOTH_WAYS, Interface, checked_role

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from ipcqueue import Endpoint

logger = logging.getLogger("memenpsf")

# How many clients may be introducing themselves at once; further ones wait in the backlog.  A
# guess, against clients that connect and say nothing: each costs this side a segment meanwhile.
MAX_PENDING = 64


# How long to wait, in seconds, when a client could not be served because something is short, such
# as descriptors: trying again at once would only burn time.
BACK_OFF = 0.05

_SLICE = 3600.0  # seconds; poll() cannot wait much longer at once


class Reception:
    """A bound address and its clients until they have introduced themselves; it never waits."""

    def __init__(
        self,
        address: str | os.PathLike[str],
        record: Any,
        *,
        role: str = "server",
        **options: Any,
    ) -> None:
        where = resolve(address)
        if where.default_uids is not None:
            options.setdefault("allow_uids", where.default_uids)
        self.role = checked_role(role)
        self.terms = Terms(record, BOTH_WAYS, **options)
        self.bound = bind(where)
        self.pending: list[Opening] = []
        self._outcomes: deque[Endpoint | Exception] = deque()
        self.refused = 0
        self.closed = False

    def turn(self) -> Endpoint | None:
        """Do what can be done now; return the next client, or None if none is ready.

        Raises for a client that was refused or broke the protocol.  One that left before it said
        anything counts as nobody: so does a server that looks whether this one lives.
        """
        if self.closed:
            raise Closed("this side has closed the listener")
        while not self._outcomes and self._accept():
            pass
        for opening in list(self.pending):
            self._attempt(opening)
        if not self._outcomes:
            return None
        outcome = self._outcomes.popleft()
        if isinstance(outcome, Exception):
            self.refused += 1
            raise outcome
        return outcome

    def _accept(self) -> bool:
        if len(self.pending) >= MAX_PENDING:
            return False
        try:
            sock, _ = self.bound.sock.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return False
        try:
            self.pending.append(Opening(sock, self.terms))
        except (QueueError, OSError) as error:
            self._outcomes.append(error)
        return True

    def _attempt(self, opening: Opening) -> None:
        try:
            endpoint = opening.step()
        except PeerDied:
            pass
        except (QueueError, OSError) as error:
            self._outcomes.append(error)
        else:
            if endpoint is None:
                return
            self._outcomes.append(endpoint)
        self.pending.remove(opening)

    def interests(self) -> Iterator[tuple[int, int]]:
        """Yield descriptors to poll and for what, before the next turn."""
        room = len(self.pending) < MAX_PENDING
        yield self.bound.sock.fileno(), select.POLLIN if room else 0  # 0: only that it is closed
        for opening in self.pending:
            yield opening.fileno(), opening.events

    def next_deadline(self) -> float:
        """Return the time.monotonic() at which a turn is due even if nothing happens."""
        return min((opening.deadline for opening in self.pending), default=math.inf)

    def close(self) -> None:
        """Stop listening, and drop the clients that nobody has accepted."""
        self.closed = True
        self.bound.close()
        for opening in self.pending:
            opening.abandon()
        for outcome in self._outcomes:
            if not isinstance(outcome, Exception):
                outcome.close()
        self.pending.clear()
        self._outcomes.clear()


class Listener:
    """A server's address: gives an Interface for each client.

    Clients introduce themselves side by side, so a slow or hostile one delays nobody.  Any
    number of threads may accept.  Made by listen().
    """

    def __init__(self, reception: Reception) -> None:
        self._reception = reception
        self._lock = threading.RLock()

    @property
    def address(self) -> str:
        """Where it listens: a path, or @name."""
        return str(self._reception.bound.address)

    @property
    def refused(self) -> int:
        """How many clients were refused or failed to introduce themselves."""
        return self._reception.refused

    def accept(self, timeout: float | None = None) -> Interface:
        """Return the next client; raise TimeoutError if none came in time.

        Raises Refused, CorruptPeer or HandshakeTimeout for a client that did not get in, OSError
        when a resource is short: the listener stays usable.  Closed, once it is closed.
        """
        deadline = deadline_of(timeout)
        patience = -1 if timeout is None else min(timeout, threading.TIMEOUT_MAX)
        if not self._lock.acquire(timeout=patience):
            raise TimeoutError(f"no client within {timeout} s")
        try:
            while (endpoint := self._reception.turn()) is None:
                if time.monotonic() >= deadline:
                    raise TimeoutError(f"no client within {timeout} s")
                self._wait(deadline)
        finally:
            self._lock.release()
        interface = Interface.of(endpoint)
        interface.role = self._reception.role
        return interface

    def _wait(self, deadline: float) -> None:
        poll = select.poll()
        for fd, events in self._reception.interests():
            poll.register(fd, events)
        left = min(deadline, self._reception.next_deadline()) - time.monotonic()
        poll.poll(max(0, math.ceil(min(left, _SLICE) * 1000)))

    def __iter__(self) -> Iterator[Interface]:
        """Yield clients until the listener is closed.

        Those refused, or not served because a resource is short, are logged and passed over.
        """
        while True:
            try:
                interface = self.accept()
            except Closed:
                return
            except QueueError as error:
                logger.warning("%s: client refused: %s", self.address, error)
            except OSError as error:
                logger.warning("%s: client not served: %s", self.address, error)
                time.sleep(BACK_OFF)
            else:
                yield interface

    def close(self) -> None:
        """Stop listening and remove the socket file; the connections accepted live on.

        Idempotent; threads that wait in accept() get Closed.  In a forked child it only closes
        the child's copy of the descriptor.
        """
        reception = self._reception
        reception.closed = True
        if not reception.bound.ours:
            reception.close()
            return
        with contextlib.suppress(OSError):
            reception.bound.sock.shutdown(socket.SHUT_RDWR)  # wakes who accepts
        with self._lock:
            reception.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._reception.closed else "open"
        return f"<Listener {self.address}: {state}>"


def listen(address: str | os.PathLike[str], record: Any, **options: Any) -> Listener:
    """Listen at an address: a bare name, a path, or @name (abstract).

    Options are those of Interface, for each client.  The socket file of a dead server is
    replaced; a live server's is not: OSError EADDRINUSE.  An abstract address admits this user
    and root only, unless `allow_uids` says otherwise.
    """
    return Listener(Reception(address, record, **options))
