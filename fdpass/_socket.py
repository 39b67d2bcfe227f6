"""The blocking door: it waits in the kernel; _rights decides what to send and what to accept."""

import errno
import os
import socket
import struct
import time
from collections.abc import Iterable
from typing import NamedTuple, Protocol, Self

from ._fd import Fd, HasFileno
from ._owner import Owner
from ._rights import (
    ANCILLARY_SPACE,
    MAX_FDS,
    RECEIVE_FLAGS,
    Data,
    Incoming,
    Message,
    Outgoing,
    ancillary_space,
    expect_one,
    expect_some,
    joined,
    unpack_all,
)
from ._untrusted import close_untrusted, keep_in_line

# How receiving loses no descriptor. A signal handler may raise between any two bytecodes, also
# after recvmsg() has returned and before its result has a name; then the descriptors would be
# lost. So each hand-over is one call of C code, during which Python runs no signal handlers:
#
#   kernel to messages     list.extend(map(recvmsg, ...)) puts the result into a list with a name
#   numbers to Fd objects  Fd.own() fills objects that exist already
#
# Between the two, and if anything raises, the Inbox owns the descriptors.


class Inbox(Owner):
    """Owns the descriptors that recvmsg() delivered until claim(); an exception closes them."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._fds: list[Fd] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self.discard()

    def __del__(self) -> None:
        # Needed only if a signal stopped __exit__; claimed descriptors are no longer in messages.
        if getattr(self, "messages", None):
            self.discard()

    def claim(self) -> list[Fd]:
        """Return the descriptors that the peer sent, now the caller's; close stray ones."""
        fds, stray = self.claim_all()
        close_untrusted(stray)
        return fds

    def claim_all(self) -> tuple[list[Fd], list[Fd]]:
        """Return the descriptors that the peer sent and the stray ones, now the caller's."""
        count = len(unpack_all(self.messages)[0])
        fds = self._adopt()
        return fds[:count], fds[count:]

    def discard(self) -> None:
        """Close all descriptors."""
        close_untrusted(self._adopt())

    def _adopt(self) -> list[Fd]:
        # If one is open, a signal came between own() and clear() below: do not own them twice.
        if all(fd.closed for fd in self._fds):
            sent, stray = unpack_all(self.messages)
            self._fds = Fd.blank(len(sent) + len(stray))
            Fd.own(self._fds, (*sent, *stray))
        self.messages.clear()
        return self._fds


def send_fd(sock: socket.socket, fd: int | HasFileno, tag: Data = b"\0") -> None:
    """Send one descriptor, borrowed from the caller, beside the bytes of `tag`.

    The same as send_fds() with one descriptor.
    """
    send_fds(sock, [fd], tag)


def recv_fd(sock: socket.socket, tag: Data = b"\0") -> Fd:
    r"""Receive one descriptor, now the caller's, that comes beside exactly the bytes of `tag`.

    No byte after the tag is read. Refused descriptors are closed; then close the connection, too,
    because the stream may be in the middle of a message. The socket's timeout bounds each wait,
    and there may be one wait for each byte of the tag.

    Raises WrongTag, WrongDescriptors (TruncatedDescriptors: at the limit of open descriptors),
    TruncatedData (a datagram longer than the tag), Disconnected at the end of the stream, and
    OSError as recvmsg(2) does, for instance ECONNRESET.
    """
    with Inbox() as inbox:
        _receive(sock, expect_one(tag, stream=sock.type == socket.SOCK_STREAM), inbox)
        return inbox.claim()[0]


def send_fds(sock: socket.socket, fds: Iterable[int | HasFileno], data: Data = b"\0") -> None:
    """Send 1 to 253 descriptors, borrowed from the caller, with the first byte of `data`.

    They must stay open until this returns; afterwards the caller may close them. If it raises
    after a part of the data was sent, the descriptors were sent, and the rest of the data was not.

    Raises ValueError (number of descriptors, no data), ClosedFd, TooManyInFlight after up to ten
    tries within the socket's timeout, and OSError as sendmsg(2) does: EPIPE and ECONNRESET mean
    that the peer is gone. A non-blocking socket raises BlockingIOError: then nothing was sent, or
    the first `characters_written` bytes were, and the caller has to send only the rest.
    """
    outgoing = Outgoing(fds, data, sock.gettimeout())
    while not outgoing.finished:
        try:
            outgoing.sent(sock.sendmsg(*outgoing.message()))
        except OSError as error:
            if sock.fileno() < 0:  # EBADF is about the socket, not about a descriptor to send
                raise
            time.sleep(outgoing.failed(error))


def recv_fds(
    sock: socket.socket, max_fds: int = MAX_FDS, max_data: int = 4096
) -> tuple[bytes, list[Fd]]:
    """Receive up to `max_data` bytes and up to `max_fds` descriptors, now the caller's.

    It calls recvmsg() once. On a stream, the data may begin with bytes sent before the message
    with the descriptors, but never contains bytes sent after it; a short read delivers the
    descriptors with the first part. So the descriptors belong to the last message in the data
    (unix(7)). A byte sent out of band becomes ordinary data (this sets SO_OOBINLINE).
    `(b"", [])` is the end of the stream, or an empty datagram. With `max_fds` 0 no descriptor may
    come.

    Raises WrongDescriptors if more came (TruncatedDescriptors: at the limit of open descriptors),
    TruncatedData for a datagram longer than `max_data`, and OSError as recvmsg(2) does, for
    instance ECONNRESET. Whatever it raises, all descriptors are closed.
    """
    with Inbox() as inbox:
        _receive(sock, expect_some(max_fds, max_data), inbox)
        return joined(inbox.messages), inbox.claim()


def recv_fds_and_pidfd(
    sock: socket.socket, max_fds: int = MAX_FDS, max_data: int = 4096
) -> tuple[bytes, list[Fd], Fd | None]:
    """Receive as recv_fds() does; also return a pidfd of the sending process, or None.

    The kernel adds one once pass_pidfd() was called here or by the sender; not for data sent
    before that, nor at the limit of open descriptors.  If more than `max_fds` descriptors are
    sent, only a few of the excess are ever open here.
    """
    incoming = expect_some(max_fds, max_data)
    security = sock.getsockopt(socket.SOL_SOCKET, _SO_PASSSEC)
    space = ANCILLARY_SPACE if security else ancillary_space(incoming.fds)
    with Inbox() as inbox:
        _receive(sock, incoming, inbox, space)
        data = joined(inbox.messages)
        fds, pidfds = inbox.claim_all()
    last = pidfds.pop() if pidfds else None
    close_untrusted(pidfds)
    return data, fds, last


def _receive(
    sock: socket.socket, incoming: Incoming, inbox: Inbox, space: int = ANCILLARY_SPACE
) -> None:
    keep_in_line(sock)
    while size := incoming.missing(inbox.messages):
        # One bytecode; see the top of this file. Never use socket.recv_fds(), which makes
        # inheritable descriptors, nor MSG_PEEK, which duplicates them.
        inbox.messages.extend(map(sock.recvmsg, (size,), (space,), (RECEIVE_FLAGS,)))


_SO_PASSSEC = 34  # not in the socket module
_SO_PASSPIDFD, _SO_PEERPIDFD = 76, 77  # of Linux 6.5; not in the socket module of Python 3.11


def pass_pidfd(sock: socket.socket, *, on: bool = True) -> bool:
    """Have the kernel add a pidfd of the sending process to the data; return the former setting.

    Once one side of a connection switches it on, it applies to what is sent in both directions.
    Does nothing on kernels without it (before Linux 6.5).  Source: SO_PASSPIDFD in unix(7).
    """
    try:
        before = bool(sock.getsockopt(socket.SOL_SOCKET, _SO_PASSPIDFD))
        sock.setsockopt(socket.SOL_SOCKET, _SO_PASSPIDFD, on)
    except OSError:
        return False
    return before


def peer_pidfd(sock: socket.socket) -> Fd | None:
    """Open a pidfd of the process in peer_credentials(); None if that is not possible.

    It becomes readable when that process has exited.  Source: SO_PEERPIDFD in unix(7).
    """
    fds = Fd.blank(1)
    option = (socket.SOL_SOCKET,), (_SO_PEERPIDFD,)
    try:
        Fd.own(fds, map(sock.getsockopt, *option))
    except OSError:  # before Linux 6.5; or the process is gone; or no descriptor is left
        return None
    return fds[0]


class Credentials(NamedTuple):
    """The process at the other end, as the kernel recorded it at connect() or socketpair()."""

    pid: int
    uid: int
    gid: int


class UnixSocket(Protocol):
    """The part of a socket that peer_credentials() needs; sockets of Trio have it, too."""

    @property
    def family(self) -> int:
        """The address family."""

    def getsockopt(self, level: int, option: int, length: int, /) -> bytes:
        """Return the value of an option."""


def peer_credentials(sock: UnixSocket) -> Credentials:
    """Return which process called connect(), or listen(), at the other end of a Unix socket.

    The kernel recorded it at that moment. It is out of date once the peer changes its uid or hands
    the socket on; and a client sees the process that called listen(), not the one that accepted. So
    authorise by uid only. Never authorise by pid: another process may have the same pid later, and
    the pid is 0 if this process cannot see the peer's.

    Raises ValueError for a socket of another family, OSError (ENOTCONN) if there is no peer.
    Source: SO_PEERCRED in unix(7).
    """
    # For other families the kernel answers, too: always pid 0 and uid 4294967295.
    if sock.family != socket.AF_UNIX:
        raise ValueError(f"expected a socket of family AF_UNIX, received {sock.family!r}")
    layout = struct.Struct("iII")
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, layout.size)
    credentials = Credentials(*layout.unpack(raw))
    if credentials.uid == _NOBODY_KNOWN:
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
    return credentials


def is_ambiguous_uid(uid: int) -> bool:
    """Whether a uid that the kernel shows may stand for several users.

    In a user namespace that leaves users unmapped, the kernel shows all of these as the overflow
    uid (usually 65534), in credentials and as owners of files; this process may be one of them. So
    the overflow uid proves nothing there. In the first user namespace, which maps all users, it is
    the user `nobody`, and this returns False. It returns True if /proc does not tell.
    Source: user_namespaces(7).
    """
    from pathlib import Path  # noqa: PLC0415 (slow to import; few need it)

    try:
        overflow = int(Path("/proc/sys/kernel/overflowuid").read_text())
    except (OSError, ValueError):
        overflow = _USUAL_OVERFLOW
    if uid != overflow:
        return False
    try:
        ranges = Path("/proc/self/uid_map").read_text().splitlines()
        return sum(int(each.split()[2]) for each in ranges) < _ALL_UIDS
    except (OSError, ValueError, IndexError):
        return True


_USUAL_OVERFLOW = 65534
_ALL_UIDS = 0xFFFFFFFF

_NOBODY_KNOWN = 0xFFFFFFFF
"""The kernel's -1: no such user can exist."""
