"""The same four verbs for sockets and socket streams of Trio; each call is a checkpoint.

Errors are those of fdpass unless Trio has its own: ClosedResourceError for a socket closed on this
side, BrokenResourceError for EPIPE and ECONNRESET. The end of the stream is a Disconnected, which
is both fdpass.Disconnected and trio.EndOfChannel. Cancelling loses no descriptor. But a call
cancelled in the middle of a message leaves the stream there: close the connection then.
"""

import errno
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import trio

from . import _errors
from ._fd import Fd, HasFileno
from ._rights import (
    ANCILLARY_SPACE,
    MAX_FDS,
    RECEIVE_FLAGS,
    Data,
    Incoming,
    Outgoing,
    expect_one,
    expect_some,
    joined,
)
from ._socket import Inbox
from ._untrusted import keep_in_line

__all__ = ["Disconnected", "recv_fd", "recv_fds", "send_fd", "send_fds"]

Socket: TypeAlias = trio.socket.SocketType | trio.SocketStream


class Disconnected(_errors.Disconnected, trio.EndOfChannel):
    """The peer closed its end before the whole message arrived."""


async def send_fd(sock: Socket, fd: int | HasFileno, tag: Data = b"\0") -> None:
    """Send one descriptor, borrowed from the caller, as fdpass.send_fd() does."""
    await send_fds(sock, [fd], tag)


# With this protection KeyboardInterrupt comes only at checkpoints. After recvmsg() has succeeded,
# Trio has no checkpoint that could raise, so received descriptors always reach the inbox.
@trio.lowlevel.enable_ki_protection
async def recv_fd(sock: Socket, tag: Data = b"\0") -> Fd:
    """Receive one descriptor, now the caller's, as fdpass.recv_fd() does."""
    plain = _plain(sock)
    with Inbox() as inbox:
        await _receive(plain, expect_one(tag, stream=plain.type == socket.SOCK_STREAM), inbox)
        return inbox.claim()[0]


async def send_fds(sock: Socket, fds: Iterable[int | HasFileno], data: Data = b"\0") -> None:
    """Send 1 to 253 descriptors, borrowed from the caller, as fdpass.send_fds() does.

    Two tasks must not call it at once on one stream: their messages could mix.
    """
    plain = _plain(sock)
    outgoing = Outgoing(fds, data)
    with _words_of_trio(plain):
        while not outgoing.finished:
            try:
                outgoing.sent(await plain.sendmsg(*outgoing.message()))
            except OSError as error:
                if plain.fileno() < 0:
                    raise
                await trio.sleep(outgoing.failed(error))


@trio.lowlevel.enable_ki_protection
async def recv_fds(
    sock: Socket, max_fds: int = MAX_FDS, max_data: int = 4096
) -> tuple[bytes, list[Fd]]:
    """Receive bytes and descriptors, now the caller's, as fdpass.recv_fds() does."""
    with Inbox() as inbox:
        await _receive(_plain(sock), expect_some(max_fds, max_data), inbox)
        return joined(inbox.messages), inbox.claim()


async def _receive(sock: trio.socket.SocketType, incoming: Incoming, inbox: Inbox) -> None:
    keep_in_line(sock)
    with _words_of_trio(sock):
        while size := incoming.missing(inbox.messages):
            inbox.messages.append(await sock.recvmsg(size, ANCILLARY_SPACE, RECEIVE_FLAGS))


def _plain(sock: Socket) -> trio.socket.SocketType:
    return sock.socket if isinstance(sock, trio.SocketStream) else sock


@contextmanager
def _words_of_trio(sock: trio.socket.SocketType) -> Iterator[None]:
    try:
        yield
    except _errors.Disconnected as error:
        raise Disconnected(*error.args) from None
    except OSError as error:
        if sock.fileno() < 0:
            raise trio.ClosedResourceError("this socket was already closed") from None
        if error.errno in (errno.EPIPE, errno.ECONNRESET):
            raise trio.BrokenResourceError(f"socket connection broken: {error}") from error
        raise
