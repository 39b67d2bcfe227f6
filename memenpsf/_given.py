"""A listening socket that somebody else has bound: systemd, or a parent that forks its servers.

Other processes may accept on it, too, now or later.  So this side never shuts it down, never
empties its backlog, and leaves its file alone; it only closes its own descriptor.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
from typing import TYPE_CHECKING, Any

from ipcqueue.lowlevel import Fd

from ._address import Address, Bound

if TYPE_CHECKING:
    from collections.abc import Iterator


def checked_listening(sock: socket.socket, mode: object, group: object) -> Address:
    """Return the address of a listening socket; raise ValueError for one of another kind.

    `mode` and `group` are options of listen(), which mean nothing here.
    """
    if (sock.family, sock.type) != (socket.AF_UNIX, socket.SOCK_STREAM):
        raise ValueError(f"expected a listening AF_UNIX SOCK_STREAM socket, got {sock!r}")
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise ValueError(
            f"expected a listening AF_UNIX socket, got one that does not listen: {sock!r}; "
            "a connected one goes to Interface()"
        )
    if mode is not None or group is not None:
        raise ValueError(
            "mode and group of a socket file are up to the program that binds it (of a unit of "
            "systemd: SocketMode= and SocketGroup=), not to one that is given the socket"
        )
    name = sock.getsockname()
    if isinstance(name, bytes):
        return Address("@" + os.fsdecode(name[1:]), None, is_abstract=True)
    return Address(name, None)


@contextlib.contextmanager
def taking(address: Any) -> Iterator[None]:
    """Close a socket that was given as an address if the block fails."""
    try:
        yield
    except BaseException:
        if isinstance(address, socket.socket):
            address.close()
        raise


class Given(Bound):
    """A listening socket that was given; it owns this process's descriptor, and nothing else."""

    def __init__(self, address: Address, sock: socket.socket) -> None:
        super().__init__(address, sock, None)
        # accept() must not wait for a client that another process was faster to take.
        sock.setblocking(False)
        self._alarm = Fd(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))

    @property
    def lost(self) -> bool:
        """Nobody can tell: a socket does not say which file is its own."""
        return False

    @property
    def is_shut_down(self) -> bool:
        """Whether another process has called shutdown(): then poll() would return at once, always.

        accept() does not tell: it fails with EAGAIN, as if there were only no client now.
        """
        poll = select.poll()
        poll.register(self.sock, 0)
        return bool(poll.poll(0))

    def interests(self, events: int) -> list[tuple[int, int]]:
        """Return what to poll for clients, and for interrupt()."""
        return [*super().interests(events), (self._alarm.fileno(), select.POLLIN)]

    def interrupt(self) -> None:
        """Wake the threads that wait for a client in this process."""
        with contextlib.suppress(ValueError):  # it is closed: nobody waits any more
            os.eventfd_write(self._alarm.fileno(), 1)

    def close(self) -> None:
        """Close the descriptor; other processes go on listening."""
        self._alarm.close()
        with contextlib.suppress(OSError):
            self.sock.close()
