"""Listener: many clients on one address, for plain threads."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Generic, overload

from ipcqueue import Closed, ConcurrentUse, HandshakeTimeout
from ipcqueue.lowlevel import (
    Closable,
    RLock,
    T,
    deadline_of,
    drive,
    seconds_of,
    shown_seconds,
    wait_for,
)

from ._interface import Interface
from ._listening import AnyListener
from ._pending import CAUSED_BY_ONE, PendingClients

if TYPE_CHECKING:
    from collections.abc import Iterator
    from struct import Struct
    from typing import SupportsIndex, Unpack

    from ipcqueue import Encoded
    from ipcqueue.lowlevel import NumpyDtype, Seconds, Wait

    from ._options import ListenAt, ListenOptions


class Listener(AnyListener, Closable, Generic[T]):
    """A server's address: gives an Interface for each client.

    Clients introduce themselves side by side, so a slow or hostile one delays nobody.  Any
    number of threads may accept.  Made by listen().
    """

    _shown_as = "Listener"

    def __init__(self, pending: PendingClients) -> None:
        super().__init__(pending)
        self._lock = RLock()
        # Whether the thread that holds the lock is in the middle of a turn. A signal handler in
        # that thread gets the lock, too, and must then change nothing.
        self._busy = False

    def accept(self, timeout: Seconds = None) -> Interface[T]:
        """Return the next client; raise TimeoutError if none came in time.

        Raises Refused, CorruptPeer or HandshakeTimeout for a client that did not get in, and
        OSError if a resource is short; the listener stays usable.  Raises Closed once it is closed.
        Raises ConcurrentUse in a signal handler that has interrupted the work of accept() on this
        very listener; if accept() was only waiting, the handler can accept.
        """
        deadline = deadline_of(timeout)
        patience = -1 if timeout is None else min(seconds_of(timeout), threading.TIMEOUT_MAX)
        if not self._lock.acquire(timeout=patience):
            raise TimeoutError(f"no client within {shown_seconds(timeout)}")
        if self._busy:
            self._lock.release()
            raise ConcurrentUse(
                "this signal handler has interrupted accept() of the same listener: return from "
                "it, and accept afterwards"
            )
        try:
            self._busy = True
            endpoint = drive(self._pending.next_client(deadline), self._wait)
        finally:
            self._busy = False
            try:
                if self._pending.closed:  # perhaps by a signal handler, which left this to us
                    self._pending.close()
            finally:
                self._lock.release()
        if endpoint is None:
            raise TimeoutError(f"no client within {shown_seconds(timeout)}")
        try:
            interface: Interface[T] = Interface.of(endpoint)
            interface.role = self._pending.role
        except BaseException:  # no memory, or Ctrl-C
            endpoint.close()
            raise
        return interface

    def _has_client(self) -> bool | None:
        # If another thread is accepting, it is the one that works.
        if not self._lock.acquire(blocking=False):
            return None
        if self._busy:
            self._lock.release()
            return None
        try:
            self._busy = True
            return self._pending.closed or self._pending.work()
        finally:
            # As in accept(): no call comes first, at whose beginning a signal handler could raise.
            self._busy = False
            try:
                if self._pending.closed:  # perhaps by a signal handler, which left this to us
                    self._pending.close()
            finally:
                self._lock.release()

    def _take_client(self) -> Interface[T] | None:
        try:
            return self.accept(timeout=0)
        except HandshakeTimeout:
            raise  # of one client
        except TimeoutError:
            return None

    def _wait(self, awaited: Wait) -> bool:
        try:
            self._busy = False
            return wait_for(awaited)
        finally:
            self._busy = True

    def __iter__(self) -> Iterator[Interface[T]]:
        """Yield clients until the listener is closed.

        No client ends the loop: one that is refused, or not served because a resource is short, is
        logged and skipped.  Within 10 s the first 20 of them are logged; the others are counted.
        """
        while True:
            try:
                interface = self.accept()
            except Closed:
                return
            except ConcurrentUse:  # this loop runs in a signal handler: it would never end
                raise
            except CAUSED_BY_ONE as error:
                self._pending.log.add(error)
            else:
                yield interface

    def close(self) -> None:
        """Stop listening and remove the socket file; accepted connections stay open.

        A second call does nothing.  Threads that wait in accept() get Closed.  In a forked child
        it only closes the child's copy of the descriptor.
        """
        pending = self._pending
        pending.end()
        if not pending.bound.ours:
            pending.close()
            return
        pending.bound.remove_file()  # while it listens: other servers replace a dead one's file
        pending.bound.interrupt()
        with self._lock:
            # In a signal handler that interrupted accept(), leave this to accept().
            if not self._busy:
                pending.close()


@overload
def listen(
    address: ListenAt, record: SupportsIndex, **options: Unpack[ListenOptions]
) -> Listener[bytes]: ...
@overload
def listen(
    address: ListenAt, record: str | Struct, **options: Unpack[ListenOptions]
) -> Listener[tuple[Any, ...]]: ...
@overload
def listen(
    address: ListenAt, record: type[T] | Encoded[T], **options: Unpack[ListenOptions]
) -> Listener[T]: ...
@overload
def listen(
    address: ListenAt, record: NumpyDtype, **options: Unpack[ListenOptions]
) -> Listener[Any]: ...
def listen(address: ListenAt, record: Any, **options: Unpack[ListenOptions]) -> Listener[Any]:
    """Listen at an address: a bare name, a path, or @name (abstract).

    Instead of an address it takes a socket that listens already (AF_UNIX, SOCK_STREAM; ValueError
    for any other): from systemd, or from a parent for several servers that it forks.  It takes the
    socket, also when this fails, and makes it non-blocking for all that share it.  close() closes
    this process's descriptor, and neither removes the file nor ends the others; `mode` and `group`
    are up to the program that binds it.  Each process has a quota of its own.

    The options of Interface apply to each client.  The socket file of a dead server is replaced.
    That of a live server is not: OSError (EADDRINUSE).  An abstract address admits this user and
    root only, unless `allow_uids` says otherwise.

    `mode` of the socket file says who may connect: connecting needs write permission.  The default
    is 0o600 (this user and root), or 0o660 if a `group` is given (a name or a gid; this process
    must be in it, or be root).  Both are set before the first client can connect.  An abstract
    address has no file: ValueError.

    A bare name is for this user alone (by effective uid).  The file is in /run/user/UID/memenpsf if
    that runtime directory exists and belongs to this user, otherwise in /tmp/memenpsf-UID;
    $MEMENPSF_RUNTIME_DIR/memenpsf replaces both.  A directory made by somebody else is not used;
    if there is no other one, PermissionError.  Servers of one user start one at a time:
    TimeoutError if another one needs more than a second.

    `quota`, a Quota, limits what the clients of one user (by uid; this user and root, too) may have
    at once.  `connections`, handshakes included: by default a sixth of the descriptors that this
    process may open, so 170 of 1024.  `bytes`, the memory of all their segments and of this side's
    segments for them, without messages outside the rings: by default 64 times `max_segment`, so
    8 GiB, or twice this side's segment, whichever is larger.  `pending`, handshakes under way: 32.
    A client over a limit gets LimitRefused before memory is made or mapped for it, and counts as
    refused.  Over `pending` it waits instead, for at most `timeout`.

    `descriptors` of the Quota, by default seven eighths of those that this process may open,
    counts: 5 for each connection, those of messages that were not received yet, and those that were
    sent and that the client has not read from its socket.  A connection over this limit waits, as
    for lack of space: messages of the client stay in its socket, messages to it wait in xmit.  One
    message at a time always goes through.  Descriptors that recv_message() has returned belong to
    the program, and do not count; neither does the one that fileno() and arm() add.

    `places` of the Quota limits the handshakes under way for all users: 64.  If all places are
    taken, the user with the most handshakes loses its oldest one to a user with fewer.  Up to 128
    further clients wait, and users take turns.  A user whose clients fail repeatedly waits longer.
    Clients of one user cannot be told apart: hostile ones delay honest ones of the same uid.
    """
    return Listener(PendingClients(address, record, **options))


Listener.__module__ = listen.__module__ = "memenpsf"  # as of all public names; see __init__
