"""Closing what came from somebody who is not trusted: in a thread.

close(2) waits for the file, and the file may be the sender's own: on a FUSE file system it waits for
his daemon's answer, of a TCP socket until the other end has taken what was sent (SO_LINGER), of a
Unix socket for all that in its queue.  So a thread closes it.  Who closes gives it a moment to be
done, and no moment while an earlier one takes longer: only an attacker's does.

There are never more than MOST_THREADS of these threads, and none when there is nothing to close.  If
all of them wait, what is to be closed after that waits, open, for one of them.
"""

import _thread
import fcntl
import os
import socket
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from itertools import chain, repeat
from typing import Protocol, TypeAlias

from ._fd import Fd

PATIENCE = 0.005
"""Seconds. The 253 pipes of one message take a twentieth of it."""

MOST_THREADS = 32

F_GET_SEALS = 1034
"""From linux/fcntl.h: too new for Python's module in places."""

# More bytes than are looked at: who sends so much without a descriptor waits for a thread, too.
_LOOK = 1 << 16

_Task: TypeAlias = tuple[list[int], _thread.LockType]  # numbers to close, and what then is released

_waiting: deque[_Task] = deque()
_threads: set[_thread.LockType] = set()  # by what each was started for
_late: list[_thread.LockType] = []


class _HasOptions(Protocol):
    def setsockopt(self, level: int, option: int, value: int, /) -> None: ...


def keep_in_line(sock: _HasOptions) -> None:
    """Have what the peer sends out of band (MSG_OOB) come in its place, like anything else.

    The kernel would pass over it, and close the descriptors that came with it on the way.
    """
    with suppress(OSError):  # closed, which the call that follows says
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)


def close_untrusted(fds: Iterable[Fd]) -> None:
    """Close descriptors that came from somebody not trusted, without waiting for their files.

    It takes a few milliseconds at most.  No socket lingers (SO_LINGER).  Can be repeated.
    """
    fds = list(fds)
    with suppress(MemoryError, RuntimeError):
        doubtful = [fd for fd in fds if not fd.closed and not _is_memory(fd.fileno())]
        numbers = [fd.fileno() for fd in doubtful]
        if numbers:
            forgotten = map(setattr, doubtful, repeat("_number"), repeat(-1))
            _elsewhere(numbers, forgotten)
    for fd in fds:  # what is left: memory, which waits for nobody; or all, if no thread can be had
        fd.close()


def drop_socket(sock: socket.socket) -> None:
    """Close a connected Unix stream socket without waiting for what its peer has sent into it.

    The kernel closes descriptors that were never received where the socket is closed.  Not for a
    socket that a forked child shares: both directions end for all.
    """
    keep_in_line(sock)
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)  # first, so that nothing more comes
    with suppress(MemoryError, RuntimeError):
        if _holds_descriptors(sock):
            # Not the socket's own close(), so that it is a closed one when this returns.
            _elsewhere([sock.fileno()], map(socket.SocketType.detach, (sock,)))
    with suppress(OSError):  # what was to be written somewhere is lost; the descriptor is closed
        sock.close()


def _is_memory(number: int) -> bool:
    # Not fstat(), which a file system of the stranger's own could answer when it likes.
    try:
        fcntl.fcntl(number, F_GET_SEALS)
    except OSError:
        return False
    return True


def _holds_descriptors(sock: socket.socket) -> bool:
    """Say whether it does; if not, take out what it holds, so that the peer sees an orderly end."""
    try:
        # Without room for descriptors, the kernel only says that there are some.
        data, _, flags, _ = sock.recvmsg(_LOOK, 0, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        if flags & socket.MSG_CTRUNC or len(data) == _LOOK:
            return True
        sock.recv(_LOOK, socket.MSG_DONTWAIT)
    except OSError:
        pass
    return False


def _forbid_linger(number: int) -> None:
    # What Python takes it for is nothing that the kernel hears of, and it may be no socket at all.
    sock = socket.SocketType(socket.AF_UNIX, socket.SOCK_STREAM, 0, number)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes(8))
    finally:
        sock.detach()


def _elsewhere(numbers: list[int], forgotten: Iterable[object]) -> None:
    """Have a thread close descriptors, which stepping through `forgotten` takes from their owners.

    Raises MemoryError or RuntimeError when no thread can be had: they are closed, or still owned.
    """
    done = _thread.allocate_lock()
    done.acquire()
    steps: list[Iterable[object]] = [map(_waiting.append, ((numbers, done),)), forgotten]
    if len(_threads) < MOST_THREADS:
        steps += map(_threads.add, (done,)), map(_thread.start_new_thread, (_work,), ((done,),))
    try:
        # One call of C code: no exception of a signal handler comes between two owners.
        deque(chain(*steps), maxlen=0)
    except (MemoryError, RuntimeError):
        _work(done)
        raise
    _late[:] = [each for each in _late if each.locked()]
    if not _late and not done.acquire(timeout=PATIENCE):
        _late.append(done)


def _work(thread: _thread.LockType) -> None:
    going = True
    while going:
        _threads.add(thread)
        try:
            while True:
                numbers, done = _waiting.popleft()
                while numbers:
                    # Calling what is written in Python needs memory, and without it CPython 3.11
                    # raises SystemError.  No number goes before it is closed.
                    try:  # noqa: SIM105
                        _forbid_linger(numbers[-1])
                    except Exception:  # noqa: BLE001, S110
                        pass
                    try:  # noqa: SIM105
                        os.close(numbers[-1])
                    except OSError:  # it is closed, whatever its file says
                        pass
                    numbers.pop()
                done.release()
        except IndexError:
            pass  # all was done, perhaps by another thread
        finally:
            _threads.discard(thread)
        going = bool(_waiting)  # who has handed that over may have counted on this thread


def _forget_threads() -> None:
    _threads.clear()
    _late.clear()


os.register_at_fork(after_in_child=_forget_threads)
