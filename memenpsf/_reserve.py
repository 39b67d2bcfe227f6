"""One descriptor in reserve: with it a client can be refused when no other is left."""

from __future__ import annotations

import errno
import socket

from ipcqueue.lowlevel import Owner, refuse

_NONE_LEFT = (errno.EMFILE, errno.ENFILE)  # limit of this process, of the system


def spare() -> socket.socket | None:
    """Open the spare descriptor; return None if none is left already.

    It is a file of its own, not a duplicate, because open files of the whole system are limited,
    too.
    """
    try:
        return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError:
        return None


class Reserve(Owner):
    """Keeps one descriptor open, and closes it for a moment when no other is left.

    Without a free descriptor accept() fails and leaves the client in the backlog.  The listening
    socket then stays readable, and a loop that polls it would spin.
    """

    def __init__(self) -> None:
        self._kept = spare()

    def refill(self) -> None:
        """Open the descriptor again, if that failed after its last use."""
        if self._kept is None:
            self._kept = spare()

    def refuse_next(self, listening: socket.socket, error: OSError) -> bool:
        """Accept the next client, tell it why it is refused, and close it; False if none waits.

        Does nothing if `error`, which accept() raised, has another cause, or if the reserve is
        gone.
        """
        if error.errno not in _NONE_LEFT or self._kept is None:
            return True
        self._kept.close()
        try:
            sock, _ = listening.accept()
            refuse(sock, error)
        except BlockingIOError:
            return False  # accept() looks for a descriptor before it looks for a client
        except OSError:
            pass  # another thread was faster
        finally:
            self._kept = spare()
        return True

    def close(self) -> None:
        """Close the descriptor for good."""
        if self._kept is not None:
            self._kept.close()
