"""The process at the other end, whose death the socket may hide.

A socket ends when its last copy is closed, and a child that the peer has forked holds one: then the
peer can be dead for hours, and nothing comes through the socket.  A pidfd says when it has exited.

Of which process?  Not of the one that SO_PEERCRED names: that called connect() or listen(), or made
the socket pair, and may have handed the socket on.  The kernel is asked who sent HELLO, for that is
who owns the segments (SO_PASSPIDFD, Linux 6.5).  If it cannot say, as HELLO came before it was
asked, the process of SO_PEERCRED will do, provided that the segment tells the same: a peer that
lies there is thought dead when it is not, or found dead later.  Otherwise the socket's end must do.
"""

from __future__ import annotations

import select
from typing import TYPE_CHECKING

import fdpass
from fdpass.lowlevel import Owner

if TYPE_CHECKING:
    import socket

    from fdpass import Credentials, Fd


class Process(Owner):
    """A pidfd of the peer; it becomes readable when the peer has exited."""

    def __init__(self, pidfd: Fd) -> None:
        self._pidfd = pidfd
        self._poll = select.poll()  # for one thread at a time
        self._poll.register(pidfd, select.POLLIN)

    def fileno(self) -> int:
        """Return the pidfd, to poll for POLLIN."""
        return self._pidfd.fileno()

    def has_exited(self) -> bool:
        """Whether the peer is gone, reaped or not."""
        return bool(self._poll.poll(0))

    def close(self) -> None:
        """Close the pidfd."""
        self._pidfd.close()


def process_behind(
    sock: socket.socket, sender: Fd | None, peer: Credentials, creator_pid: int
) -> Process | None:
    """Return who owns the peer's segment, None if nobody can tell.

    `sender` is the pidfd that came with HELLO, if one did, and is taken.
    """
    if sender is None and peer.pid == creator_pid:
        sender = fdpass.peer_pidfd(sock)
    return None if sender is None else Process(sender)
