"""Listener: many clients on one address, for plain threads."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING, Any, Generic, overload

from ipcqueue import Closed, ConcurrentUse
from ipcqueue.lowlevel import Closable, T, deadline_of, drive, seconds_of, shown_seconds, wait_for

from ._interface import Interface
from ._listening import AnyListener
from ._pending import CAUSED_BY_ONE, PendingClients

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator
    from struct import Struct
    from typing import SupportsIndex, Unpack

    from ipcqueue import Encoded
    from ipcqueue.lowlevel import NumpyDtype, Seconds, Wait

    from ._options import ListenOptions


class Listener(AnyListener, Closable, Generic[T]):
    """A server's address: gives an Interface for each client.

    Clients introduce themselves side by side, so a slow or hostile one delays nobody.  Any
    number of threads may accept.  Made by listen().
    """

    _shown_as = "Listener"

    def __init__(self, pending: PendingClients) -> None:
        super().__init__(pending)
        self._lock = threading.RLock()
        # Whether who has the lock is in the middle of something: then a signal handler, which has
        # it as well, leaves all as it is.
        self._busy = False

    def accept(self, timeout: Seconds = None) -> Interface[T]:
        """Return the next client; raise TimeoutError if none came in time.

        Raises Refused, CorruptPeer or HandshakeTimeout for a client that did not get in, OSError
        when a resource is short: the listener stays usable.  Closed, once it is closed.
        ConcurrentUse in a signal handler that has interrupted accept() of this very listener; if it
        only waited, the handler can accept.
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
                if self._pending.closed:  # by a signal handler, perhaps, which could not go on
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

    def _wait(self, awaited: Wait) -> bool:
        try:
            self._busy = False
            return wait_for(awaited)
        finally:
            self._busy = True

    def __iter__(self) -> Iterator[Interface[T]]:
        """Yield clients until the listener is closed.

        Those refused, or not served because a resource is short, are logged and passed over, so
        that no client ends the loop; of a storm of them, the first 20 within 10 s, and the number
        of the others.
        """
        while True:
            try:
                interface = self.accept()
            except Closed:
                return
            except ConcurrentUse:  # by this loop, in a signal handler: it would go on for ever
                raise
            except CAUSED_BY_ONE as error:
                self._pending.log.add(error)
            else:
                yield interface

    def close(self) -> None:
        """Stop listening and remove the socket file; the connections accepted live on.

        Idempotent; threads that wait in accept() get Closed.  In a forked child it only closes
        the child's copy of the descriptor.
        """
        pending = self._pending
        pending.closed = True
        if not pending.bound.ours:
            pending.close()
            return
        pending.bound.remove_file()  # while it listens: a dead server's is anybody's
        with contextlib.suppress(OSError):
            pending.bound.sock.shutdown(socket.SHUT_RDWR)  # wakes who accepts
        with self._lock:
            # This may be a signal handler in the middle of accept(), which then does it in the end.
            if not self._busy:
                pending.close()


@overload
def listen(
    address: str | os.PathLike[str], record: SupportsIndex, **options: Unpack[ListenOptions]
) -> Listener[bytes]: ...
@overload
def listen(
    address: str | os.PathLike[str], record: str | Struct, **options: Unpack[ListenOptions]
) -> Listener[tuple[Any, ...]]: ...
@overload
def listen(
    address: str | os.PathLike[str], record: type[T] | Encoded[T], **options: Unpack[ListenOptions]
) -> Listener[T]: ...
@overload
def listen(
    address: str | os.PathLike[str], record: NumpyDtype, **options: Unpack[ListenOptions]
) -> Listener[Any]: ...
def listen(
    address: str | os.PathLike[str], record: Any, **options: Unpack[ListenOptions]
) -> Listener[Any]:
    """Listen at an address: a bare name, a path, or @name (abstract).

    Options are those of Interface, for each client.  The socket file of a dead server is
    replaced; a live server's is not: OSError EADDRINUSE.  An abstract address admits this user
    and root only, unless `allow_uids` says otherwise.

    `mode` of the socket file says who may connect: write permission is asked for.  It is 0o600,
    this user and root, or 0o660 if a `group` is given (a name or a gid; this process must be in it,
    or be root); both stand before the first client can come.  They are for addresses with a file:
    ValueError for an abstract one.

    A bare name is for this user alone (by effective uid): the file is in /run/user/UID/memenpsf
    where that runtime directory exists and belongs to this user, else in /tmp/memenpsf-UID;
    $MEMENPSF_RUNTIME_DIR/memenpsf replaces both.  One that somebody else has made is not used:
    PermissionError if there is no other.  Servers of one user start one at a time: TimeoutError
    if another one has not started within a second.

    `quota`, a Quota, says what the clients of one user (by uid, this one and root too) may have at
    once: `connections` (a sixth of the descriptors that this process may open, so 170 if those are
    1024), handshakes under way among them included; `bytes`, the memory of all their segments and
    of this side's for them, without messages outside the rings (64 times `max_segment`, so 8 GiB,
    or twice this side's segment, whichever is larger); `pending`, handshakes under way (32).  A
    client over a limit is told so (LimitRefused) before memory is made or mapped for it, and
    counted as refused; only for its place in a handshake it waits, as long as `timeout` allows.

    `descriptors` of the Quota (seven eighths of those that this process may open): 5 for each
    connection, those that came with messages and wait to be received, and those that were sent and
    that the client has not read from its socket.  A connection that would exceed it waits, as it
    does for lack of space: what the client sends stays in its socket, what is sent to it waits in
    xmit.  One message at a time always goes through.  Descriptors that recv_message() has handed on
    are the program's, and do not count.

    `places` of the Quota: how many handshakes can be under way for all users (64).  Where all are
    taken, the user with most gives up its oldest for a user with fewer; further clients (128) wait,
    and users take turns.  A user whose clients came to nothing, again and again, waits longer.  The
    clients of one user cannot be told apart: who runs hostile and honest ones under one user id has
    both wait.
    """
    return Listener(PendingClients(address, record, **options))


Listener.__module__ = listen.__module__ = __package__  # as of all public names; see __init__
