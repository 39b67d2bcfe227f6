"""The blocking door: it waits in the kernel; what to send and what to accept, _rights says."""

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

# Receiving without a gap. A signal handler may raise between any two bytecodes, also between
# recvmsg() returning and its result getting a name, and a descriptor without a name is lost.
# So each hand-over is one call of C code, which does not look for signals on its way:
#
#   kernel to messages     list.extend(map(recvmsg, ...)) puts the result into a list with a name
#   numbers to Fd objects  Fd.own() fills objects that exist already
#
# In between, and if anything raises, Inbox owns what came.


class Inbox(Owner):
    """Owns what recvmsg() delivered until claim(); an exception closes all of it."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._fds: list[Fd] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self.discard()

    def __del__(self) -> None:
        # Only if a signal kept __exit__ from it: what was claimed is no longer among messages.
        if getattr(self, "messages", None):
            self.discard()

    def claim(self) -> list[Fd]:
        """Give the caller the descriptors the peer sent; close stray ones."""
        fds, stray = self.claim_all()
        close_untrusted(stray)
        return fds

    def claim_all(self) -> tuple[list[Fd], list[Fd]]:
        """Give the caller the descriptors the peer sent, and the stray ones."""
        count = len(unpack_all(self.messages)[0])
        fds = self._adopt()
        return fds[:count], fds[count:]

    def discard(self) -> None:
        """Close all of it."""
        close_untrusted(self._adopt())

    def _adopt(self) -> list[Fd]:
        # An open one means that a signal came between filling and clear(): not a second time.
        if all(fd.closed for fd in self._fds):
            sent, stray = unpack_all(self.messages)
            self._fds = Fd.blank(len(sent) + len(stray))
            Fd.own(self._fds, (*sent, *stray))
        self.messages.clear()
        return self._fds


def send_fd(sock: socket.socket, fd: int | HasFileno, tag: Data = b"\0") -> None:
    """Send one descriptor, borrowed from the caller, beside the bytes of `tag`.

    As send_fds() with one descriptor.
    """
    send_fds(sock, [fd], tag)


def recv_fd(sock: socket.socket, tag: Data = b"\0") -> Fd:
    r"""Receive one descriptor, now the caller's, that comes beside exactly the bytes of `tag`.

    No byte after the tag is read. Whatever is refused is closed, and the connection should be
    given up: the stream stands in the middle of something not understood. The socket's timeout
    bounds each wait, and there may be one for each byte of the tag.

    Raises WrongTag, WrongDescriptors (TruncatedDescriptors: at the limit of open descriptors),
    TruncatedData (a datagram longer than the tag), Disconnected at the end of the stream, and
    OSError as recvmsg(2) does, for instance ECONNRESET.
    """
    with Inbox() as inbox:
        _receive(sock, expect_one(tag, stream=sock.type == socket.SOCK_STREAM), inbox)
        return inbox.claim()[0]


def send_fds(sock: socket.socket, fds: Iterable[int | HasFileno], data: Data = b"\0") -> None:
    """Send 1 to 253 descriptors, borrowed from the caller, with the first byte of `data`.

    They must stay open until this returns; afterwards the caller may close its own. If it
    raises after a part was sent, the descriptors are on their way, the rest of the data is not.

    Raises ValueError (number of descriptors, no data), ClosedFd, TooManyInFlight after some
    tries within the socket's timeout, and OSError as sendmsg(2) does: EPIPE and ECONNRESET say
    that the peer is gone. A non-blocking socket raises BlockingIOError: nothing was sent, or
    `characters_written` bytes were, and only the rest of the data is to be sent.
    """
    outgoing = Outgoing(fds, data, sock.gettimeout())
    while not outgoing.finished:
        try:
            outgoing.sent(sock.sendmsg(*outgoing.message()))
        except OSError as error:
            if sock.fileno() < 0:  # EBADF of the socket, not of a descriptor to send
                raise
            time.sleep(outgoing.failed(error))


def recv_fds(
    sock: socket.socket, max_fds: int = MAX_FDS, max_data: int = 4096
) -> tuple[bytes, list[Fd]]:
    """Receive up to `max_data` bytes and up to `max_fds` descriptors, now the caller's.

    One recvmsg(): on a stream, bytes sent before the message with the descriptors may stand in
    front of its own, bytes sent after it never follow, and a short read brings the descriptors
    with the first part. So the descriptors belong to the last message in the data (unix(7)).
    A byte sent out of band is one of the data (it sets SO_OOBINLINE).
    `(b"", [])` is the end of the stream (or an empty datagram). `max_fds` of 0 means that none
    may come.

    Raises WrongDescriptors if more came (TruncatedDescriptors: at the limit of open
    descriptors), TruncatedData for a datagram longer than `max_data`, with all descriptors
    closed, and OSError as recvmsg(2) does, for instance ECONNRESET.
    """
    with Inbox() as inbox:
        _receive(sock, expect_some(max_fds, max_data), inbox)
        return joined(inbox.messages), inbox.claim()


def recv_fds_and_pidfd(
    sock: socket.socket, max_fds: int = MAX_FDS, max_data: int = 4096
) -> tuple[bytes, list[Fd], Fd | None]:
    """Receive as recv_fds() does, and a pidfd of the process that sent it, if the kernel gave one.

    It does after pass_pidfd(), but not for what was sent before, by a sender that had not called
    that either; nor at the limit of open descriptors.  Of more descriptors than `max_fds`, only a
    few are ever open here.
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
        # One bytecode; see the top of this file. Never recv_fds() of the standard library,
        # whose descriptors are inheritable, and never MSG_PEEK, which duplicates them.
        inbox.messages.extend(map(sock.recvmsg, (size,), (space,), (RECEIVE_FLAGS,)))


_SO_PASSSEC = 34  # not in the socket module
_SO_PASSPIDFD, _SO_PEERPIDFD = 76, 77  # of Linux 6.5; not in the socket module of Python 3.11


def pass_pidfd(sock: socket.socket, *, on: bool = True) -> bool:
    """Have the kernel say which process sends, by a pidfd beside the data; return how it was before.

    On for one side of a connection, it concerns what is sent from then on either way.  Does nothing
    where the kernel does not know it (before Linux 6.5).  Source: SO_PASSPIDFD in unix(7).
    """
    try:
        before = bool(sock.getsockopt(socket.SOL_SOCKET, _SO_PASSPIDFD))
        sock.setsockopt(socket.SOL_SOCKET, _SO_PASSPIDFD, on)
    except OSError:
        return False
    return before


def peer_pidfd(sock: socket.socket) -> Fd | None:
    """Open a pidfd of the process that peer_credentials() tells of; None where that cannot be.

    It becomes readable when that process has exited.  Source: SO_PEERPIDFD in unix(7).
    """
    fds = Fd.blank(1)
    option = (socket.SOL_SOCKET,), (_SO_PEERPIDFD,)
    try:
        Fd.own(fds, map(sock.getsockopt, *option))
    except OSError:  # not known before Linux 6.5; the process is gone; the limit of descriptors
        return None
    return fds[0]


class Credentials(NamedTuple):
    """Who is at the other end, as the kernel recorded it at connect() or socketpair()."""

    pid: int
    uid: int
    gid: int


class UnixSocket(Protocol):
    """What peer_credentials() needs of a socket; those of socket and trio.socket both fit."""

    @property
    def family(self) -> int:
        """The address family."""

    def getsockopt(self, level: int, option: int, length: int, /) -> bytes:
        """Look up an option."""


def peer_credentials(sock: UnixSocket) -> Credentials:
    """Say who called connect(), or listen(), at the other end of a connected Unix socket.

    Fixed at that moment: stale once the peer changes its uid or hands the socket on, and on the
    client's side it names who called listen(), perhaps not who accepted. So authorise by uid
    only, never by pid, which is soon another process's and is 0 if not visible from here.

    Raises ValueError for a socket of another family, OSError (ENOTCONN) if there is no peer.
    Source: SO_PEERCRED in unix(7).
    """
    # On other families the kernel answers too: pid 0 and uid 4294967295 for everybody.
    if sock.family != socket.AF_UNIX:
        raise ValueError(f"expected a socket of family AF_UNIX, received {sock.family!r}")
    layout = struct.Struct("iII")
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, layout.size)
    credentials = Credentials(*layout.unpack(raw))
    if credentials.uid == _NOBODY_KNOWN:
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
    return credentials


def is_ambiguous_uid(uid: int) -> bool:
    """Say whether a uid that the kernel shows may be that of several users.

    That is the overflow uid (usually 65534) where the user namespace of this process leaves users
    unmapped: the kernel shows all of them under it, in credentials and as owners of files, and
    this process too, if it is unmapped. So it proves nothing. In the first user namespace, which
    maps all users, it is the user `nobody`, and False is returned. True if /proc does not tell.
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
