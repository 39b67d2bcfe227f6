"""From a connected socket to an Agreement of both sides, in steps that do not wait.

An `Opening` is one handshake under given Terms.  `advance` of endpoint.py makes an Endpoint of what
it agrees on; `open_endpoint` of _threads.py, listeners and `memenpsf.trio` wait between the steps.
"""

from __future__ import annotations

import errno
import os
import select
import socket
from typing import TYPE_CHECKING

import fdpass
from fdpass.lowlevel import Owner, monotonic, pass_pidfd, recv_fds_and_pidfd, shown_seconds
from ipcqueue._direct import persist
from ipcqueue._errors import CorruptPeer, CredentialsRefused, HandshakeTimeout, PeerDied, QueueError
from ipcqueue._ring.memory import fork_generation
from ipcqueue._ring.segment import adopt, create

from .control import HELLO, err
from .handshake import Greeting, check, check_fields
from .lease import Lease
from .process import Process, process_behind
from .shown import shown_peer, shown_record
from .terms import checked_socket, deadline_of
from .wire import tell

if TYPE_CHECKING:
    from fdpass import Credentials
    from ipcqueue._ring.identity import Identity
    from ipcqueue._ring.segment import Segment

    from .terms import Terms

# As numbers: the properties of a socket make members of an enum, which takes ten times as long.
_family, _type = (vars(socket.SocketType)[what].__get__ for what in ("family", "type"))


class Agreement(Owner):
    """The result of a handshake: all that a connection needs.

    The Opening owns it until an Endpoint is made of it.  The credentials are the peer's, and so is
    the process, if the kernel tells; the address is the server's, as far as it is known.
    """

    def __init__(
        self,
        terms: Terms,
        credentials: Credentials,
        sock: socket.socket,
        process: Process | None,
        own: Segment,
        peer: Segment,
        lease: Lease,
        address: str,
    ) -> None:
        self.terms = terms
        self.credentials = credentials
        self.sock = sock
        self.process = process
        self.own = own
        self.peer = peer
        self.lease = lease
        self.address = address

    def __str__(self) -> str:
        """Show the peer and the record, for the log."""
        peer = shown_peer(self.peer.identity.name, self.credentials.pid, self.address)
        return f"{peer}: {shown_record(self.terms.codec)}"


class Opening(Owner):
    """A connection in the making, in steps that do not wait.

    Takes the socket, makes it non-blocking, and closes it if the handshake fails.  Takes the lease,
    too: asks it before memory is made or mapped, and closes it with the connection.
    """

    def __init__(self, sock: socket.socket, terms: Terms, lease: Lease | None = None) -> None:
        self.sock = checked_socket(sock)
        self.lease = lease or Lease()
        self.terms = terms
        self._segments: list[Segment] = []
        self._greeting = Greeting()
        self._received: list[fdpass.Fd] = []
        self._said_hello = False
        self._generation = fork_generation()
        self._sender: fdpass.Fd | None = None  # of the peer's HELLO: a pidfd
        self._passed_pidfd = False
        self.process: Process | None = None
        self.address = ""
        self.who = "the peer"  # as errors call it
        self.begun = monotonic()
        self.deadline = deadline_of(terms.timeout)
        try:
            if _family(sock) != socket.AF_UNIX or _type(sock) != socket.SOCK_STREAM:
                raise ValueError(f"expected an AF_UNIX SOCK_STREAM socket, got {sock!r}")
            sock.setblocking(False)
            self.peer = _peer_of(sock)
            admitted = terms.allow_uids
            if admitted is not None and self.peer.uid not in admitted:
                raise CredentialsRefused(
                    f"the peer runs under uid {self.peer.uid}, admitted are {sorted(admitted)}"
                )
            if admitted is not None and fdpass.is_ambiguous_uid(self.peer.uid):
                raise CredentialsRefused(
                    f"the peer's uid {self.peer.uid} stands for every user that this user "
                    "namespace does not map, so it says nothing about who the peer is"
                )
            self._passed_pidfd = pass_pidfd(sock)
            self.lease.take(terms.segment_size)
            self._segments.append(create(terms.codec, terms.capacity, terms.name, terms.limits))
        except BaseException as error:
            persist(self.abandon, error)
            raise

    def fileno(self) -> int:
        """Return the socket's descriptor, to poll for `events`."""
        return self.sock.fileno()

    @property
    def ours(self) -> bool:
        """Whether this process made it, and not the process that this one was forked from."""
        return self._generation == fork_generation()

    @property
    def events(self) -> int:
        """The events to poll for before the next step: POLLIN, and POLLOUT until HELLO is sent."""
        return select.POLLIN if self._said_hello else select.POLLIN | select.POLLOUT

    def step(self) -> Agreement | None:
        """Do what can be done now; return the Agreement once both sides have agreed.

        Raises Refused, CorruptPeer, PeerDied, OSError; HandshakeTimeout once monotonic() has
        reached `deadline`.  Then everything is closed, and the peer is told why if it can be.
        """
        try:
            if not self._said_hello:
                self._say_hello()
            if not self._hear_hello():
                if monotonic() >= self.deadline:
                    raise HandshakeTimeout(
                        f"{self.who} did not introduce itself within "
                        f"{shown_seconds(self.terms.timeout)}: it is there, but busy or stopped, "
                        "or it accepts nobody now; both ends in one thread are made by pair()"
                    )
                return None
            pass_pidfd(self.sock, on=self._passed_pidfd)
            segment = self._adopt_segment()
            pid = segment.identity.creator_pid
            sender, self._sender = self._sender, None
            self.process = process_behind(self.sock, sender, self.peer, pid)
            return Agreement(
                self.terms,
                self.peer,
                self.sock,
                self.process,
                self._segments[0],
                segment,
                self.lease,
                self.address,
            )
        except BaseException as error:
            persist(self.abandon, error)
            raise

    def _say_hello(self) -> None:
        try:
            fdpass.send_fds(self.sock, [self._segments[0].memfd], HELLO)
        except BlockingIOError:
            return
        except fdpass.TooManyInFlight as error:
            raise OSError(errno.ETOOMANYREFS, f"sending a descriptor: {error}") from error
        except (BrokenPipeError, ConnectionResetError):
            pass  # the peer may have said why before it left: listen first
        self._said_hello = True

    def _hear_hello(self) -> bool:
        while self._greeting.missing:
            try:
                missing = self._greeting.missing
                data, fds, sender = recv_fds_and_pidfd(self.sock, 1, missing)
            except BlockingIOError:
                return False
            except fdpass.TruncatedDescriptors as error:
                # There is always room for one, so this process is short of descriptors.
                raise OSError(
                    errno.EMFILE, f"receiving a descriptor: {os.strerror(errno.EMFILE)}"
                ) from error
            except fdpass.FdPassError as error:
                raise CorruptPeer(f"the peer's HELLO: {error}") from error
            except ConnectionResetError:
                data, fds, sender = b"", [], None
            self._received += fds
            if sender is not None:
                sender, self._sender = self._sender, sender
                if sender is not None:
                    sender.close()
            if not data:
                raise PeerDied("the peer closed the connection before it had introduced itself")
            self._greeting.feed(data, len(fds))
        return self._said_hello

    def _adopt_segment(self) -> Segment:
        def judge(identity: Identity, size: int) -> None:
            names = self.terms.codec.names
            check(self._segments[0].identity, self.terms.role, identity, size, names)
            check_fields(names, identity)
            self.lease.take(size)

        segment = adopt(self._received.pop(), self.terms.max_segment, judge)
        self._segments.append(segment)
        if os.path.samestat(*(os.fstat(s.memfd.fileno()) for s in self._segments)):
            raise CorruptPeer("the peer sent our own segment back")
        return segment

    def abandon(self, error: BaseException | None = None) -> None:
        """Give up: tell the peer why if it can be told, and close everything.

        In a forked child it only closes the child's copies of the descriptors.
        """
        if self.ours:
            refuse(self.sock, error)
        else:
            self.sock.close()
        fdpass.close_untrusted(self._received)
        for held in (self._sender, self.process, *self._segments):
            if held is not None:
                held.close()
        self.lease.close()


def _peer_of(sock: socket.socket) -> Credentials:
    try:
        return fdpass.peer_credentials(sock)
    except OSError as error:
        if error.errno != errno.ENOTCONN:
            raise
        raise OSError(
            errno.ENOTCONN, f"expected a connected AF_UNIX socket, got one that is not: {sock!r}"
        ) from None


def refuse(sock: socket.socket, error: BaseException | None) -> None:
    """Close a connection in the making, and tell the peer why if it can be told."""
    if isinstance(error, QueueError | OSError):
        tell(sock, err(error))
    fdpass.drop_socket(sock)
