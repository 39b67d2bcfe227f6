"""Descriptors on their way to the peer: sent, and not read from its socket yet.

The kernel counts them against the user of the sender: beyond RLIMIT_NOFILE an unprivileged sender
gets ETOOMANYREFS.  So a peer that never reads uses up what its sender may send to others, and a
server counts them against the peer.  The index up to which the peer claims to have taken (tail)
proves nothing here.  The kernel knows: SIOCOUTQ is the memory of messages that were not read.
"""

from __future__ import annotations

import fcntl
import functools
import socket
import struct
import termios
from typing import TYPE_CHECKING

from fdpass.lowlevel import Owner

if TYPE_CHECKING:
    from .lease import Lease

# The number of messages to remember at least, each with its number of descriptors.
_REMEMBERED = 64


def _unread_memory(sock: socket.socket) -> int:
    try:
        (left,) = struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))
    except (OSError, ValueError):  # closed meanwhile
        return 0
    return int(left)


@functools.cache
def _memory_of_one() -> int:
    """Return what the kernel counts for a message of two bytes; no message counts less."""
    here, there = socket.socketpair()
    with here, there:
        here.send(bytes(2))
        return max(1, _unread_memory(here))


class Flight(Owner):
    """The descriptors that were sent through one socket, and how many are still on their way.

    Call admit() and settle() with the lock of the sending end held; count() at any time.
    """

    def __init__(self, sock: socket.socket, lease: Lease) -> None:
        self._sock = sock
        self._lease = lease
        self._sent: list[int] = []  # the number of descriptors of each message that had any
        self._about = False  # whether the last of these is not sent yet
        self.refusals = 0
        """How many times in a row admit() has refused."""

    def count(self) -> int:
        """Return how many descriptors are on their way, or about to be: this many at most."""
        if not self._sent:
            return 0
        unread = self._unread() + self._about
        return sum(self._sent[-unread:]) if unread else 0

    def _unread(self) -> int:
        """Return how many messages the peer has not read, at most: any may have descriptors."""
        return _unread_memory(self._sock) // _memory_of_one()

    def admit(self, count: int) -> bool:
        """Say whether `count` descriptors may be sent; if so, settle() follows."""
        if len(self._sent) > _REMEMBERED:
            del self._sent[: max(0, len(self._sent) - self._unread())]
        # Note it first, then ask: so two connections that do this at once see each other's.
        self._sent.append(count)
        self._about = True
        if self._lease.fits(count):
            self.refusals = 0
            return True
        self.settle(sent=False)
        self.refusals += 1
        return False

    def settle(self, *, sent: bool) -> None:
        """Note whether the descriptors that were admitted have been sent."""
        # No bytecode between these can be interrupted.
        if not sent and self._about:
            del self._sent[-1]
        self._about = False
