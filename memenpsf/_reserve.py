"""One descriptor in reserve, to refuse a client with when none is left."""

from __future__ import annotations

import errno
import socket

from ipcqueue.lowlevel import Owner, refuse

_NONE_LEFT = (errno.EMFILE, errno.ENFILE)  # of this process, of the system


def spare() -> socket.socket | None:
    """Open a descriptor to close when none is left; None if none is left already.

    A file of its own, not a duplicate: those of the whole system are limited as well.
    """
    try:
        return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError:
        return None


class Reserve(Owner):
    """Keeps one descriptor open, and gives it up for a moment when none is left.

    Without a descriptor accept() fails, and leaves the client in the backlog: the listening socket
    stays readable, and a loop that polls it would turn without end.
    """

    def __init__(self) -> None:
        self._kept = spare()

    def refill(self) -> None:
        """Open the descriptor again, if it was given up and could not be replaced at once."""
        if self._kept is None:
            self._kept = spare()

    def refuse_next(self, listening: socket.socket, error: OSError) -> bool:
        """Accept the next client, tell it why it is refused, and close it; False if there is none.

        Does nothing if `error`, which accept() raised, is of another kind, or without a reserve.
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
        """Give the descriptor up for good."""
        if self._kept is not None:
            self._kept.close()
