"""Closing descriptors that came from somebody who is not trusted: in a thread.

close(2) can wait for the file, and the sender may control the file.  A file on a FUSE file system
waits for the answer of the sender's daemon; a TCP socket waits until the other end has taken the
data (SO_LINGER); a Unix socket waits for everything in its queue.  So a thread closes it.  The
caller waits PATIENCE seconds for that thread.  If that was in vain, callers do not wait for the
next IMPATIENCE seconds: only an attacker's file takes so long.

There are at most MAX_THREADS such threads, and none when there is nothing to close.  While all of
them are blocked, further descriptors stay open in a queue.  A thread that could not start, or died,
does not count, and the next one closes what it left.  Memory files and pipes never wait, so they
are closed at once, without a thread.
"""

import _thread
import fcntl
import os
import socket
import weakref
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING

from . import _interpreter
from ._clock import monotonic
from ._fd import Fd
from ._owner import Owner

if TYPE_CHECKING:
    from typing import Protocol

    class _HasOptions(Protocol):
        def setsockopt(self, level: int, option: int, value: int, /) -> None: ...


PATIENCE = 0.005
"""Seconds that a caller waits. Closing the 253 files of one message takes a twentieth of it."""

IMPATIENCE = 10.0
"""Seconds during which callers do not wait, after one waited in vain."""

MAX_THREADS = 64

THREADS_ABORT = _interpreter.threads_abort()
"""Whether no thread may be started here; then the caller closes all files, which may block."""

F_GET_SEALS = 1034
"""From linux/fcntl.h; not in every version of Python's fcntl module."""

# Options that add ancillary data to messages; Python's module lacks SO_PASSSEC and SO_PASSPIDFD.
_ADDITIONS = (socket.SO_PASSCRED, 34, 76)

_LOOK = 1 << 16  # bytes
_PEEK = int(socket.MSG_PEEK | socket.MSG_DONTWAIT)
_CTRUNC = int(socket.MSG_CTRUNC)

_waiting: deque[Fd] = deque()  # to be closed by a thread, which takes the number when it does
_threads: "set[weakref.ref[_Place]]" = set()  # may contain threads that have died
_last_late = -IMPATIENCE  # the monotonic()


def keep_in_line(sock: "_HasOptions") -> None:
    """Have out-of-band data (MSG_OOB) of the peer arrive in order, like other data.

    Otherwise the kernel would skip it, and close the descriptors that came with it.
    """
    with suppress(OSError):  # the socket is closed; the next call on it will say so
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)


def close_untrusted(fds: Iterable[Fd]) -> None:
    """Close descriptors that came from somebody not trusted, without waiting for their files.

    It takes a few milliseconds at most; a file that needs longer is closed after the return.  No
    socket lingers (SO_LINGER).  Calling it again for the same descriptors is harmless.
    """
    quick: list[Fd] = []
    doubtful: list[Fd] = []
    for fd in fds:
        (quick if THREADS_ABORT or _never_waits(fd) else doubtful).append(fd)
    try:
        if doubtful:
            _have_closed(doubtful)
    except (MemoryError, RuntimeError):
        quick += doubtful  # no thread could be started
    for fd in quick:
        fd.close()


def drop_socket(sock: socket.socket) -> None:
    """Close a connected Unix stream socket without waiting for descriptors that its peer has sent.

    Closing a socket also closes descriptors in its queue, and that may wait.  Do not use this for a
    socket that a forked child shares: it ends both directions for every process.
    """
    keep_in_line(sock)
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)  # first, so that nothing more comes
    with suppress(MemoryError, RuntimeError):
        if _holds_descriptors(sock):
            fds = Fd.blank(1)
            Fd.own(fds, map(socket.SocketType.detach, (sock,)))
            close_untrusted(fds)
    with suppress(OSError):  # unsent data is lost, but the descriptor is closed
        sock.close()


def _never_waits(fd: Fd) -> bool:
    """Whether it is closed, or a memory file, or a pipe."""
    number = fd._number  # noqa: SLF001 (fileno() would raise if a thread has just closed it)
    if number < 0:
        return True
    # Not fstat(): the stranger's own file system could delay the answer for ever.
    for question in (F_GET_SEALS, fcntl.F_GETPIPE_SZ):
        with suppress(OSError):
            fcntl.fcntl(number, question)
            return True
    return False


def _holds_descriptors(sock: socket.socket) -> bool:
    """Whether descriptors are queued; if not, read all data, so that the peer sees a normal end."""
    for option in _ADDITIONS:
        with suppress(OSError):  # the kernel does not know this option
            sock.setsockopt(socket.SOL_SOCKET, option, 0)
    try:
        while True:
            # Without room for descriptors, the kernel only says that there are some (MSG_CTRUNC).
            data, _, flags, _ = sock.recvmsg(_LOOK, 0, _PEEK)
            if flags & _CTRUNC:
                return True
            if not data:
                return False
            sock.recv(len(data), socket.MSG_DONTWAIT)
    except OSError:
        return False


# -- threads --------------------------------------------------------------------------------
#
# A descriptor stays with its Fd until somebody takes the number out and closes it: a thread; or a
# caller that was interrupted before it reached a thread, and that tries again.


class _Place(Owner):
    """A thread's place among MAX_THREADS.

    Only the arguments of the thread refer to it, so it is gone when the thread is, however the
    thread ended.  A thread without memory for its first call runs none of our code.
    """

    def __init__(self) -> None:
        self.done = _thread.allocate_lock()  # released when all was closed
        self.done.acquire()


def _have_closed(fds: list[Fd]) -> None:
    """Have a thread close descriptors; wait for it as long as patience allows.

    Raises MemoryError or RuntimeError if no thread can be started.
    """
    global _last_late  # noqa: PLW0603 (the process is what it belongs to)
    started = None
    if _all_taken():
        _waiting.extend(fds)
    else:
        started = _start(fds)
    if monotonic() - _last_late < IMPATIENCE:
        _start_more(len(fds))
    elif started is not None:
        done, place = started
        if done.acquire(timeout=PATIENCE):
            return
        if place() is None:
            raise MemoryError("the thread ended before its work was done")
        _last_late = monotonic()
        _start_more(len(_waiting))  # for the descriptors behind the one that takes long


def _all_taken() -> bool:
    """Whether there is no place for another thread, after the places of dead threads are freed."""
    if len(_threads) >= MAX_THREADS:
        for each in tuple(_threads):
            if each() is None:
                _threads.discard(each)
    return len(_threads) >= MAX_THREADS


def _start(fds: list[Fd]) -> "tuple[_thread.LockType, weakref.ref[_Place]]":
    """Queue `fds` and start a thread; return the lock it releases at its end, and its place."""
    place = _Place()
    done, reference = place.done, weakref.ref(place)
    steps = (
        map(_waiting.extend, (fds,)),
        map(_threads.add, (reference,)),
        map(_thread.start_new_thread, (_work,), ((place,),)),
    )
    try:
        deque(chain(*steps), maxlen=0)  # one call of C code, so that no interrupt comes between
    except BaseException:
        _threads.discard(reference)
        raise
    return done, reference


def _start_more(count: int) -> None:
    """Start up to `count` threads, while descriptors wait and there are free places."""
    for _ in range(count):
        if not _waiting or _all_taken():
            return
        _start([])


# The following functions are short for a reason.  If CPython 3.11 has no memory to enter an
# exception handler behind the 256th instruction of a function, it retries for ever, and no other
# thread runs.


def _work(place: _Place) -> None:
    mine = weakref.ref(place)  # the same object as in _threads
    try:
        going = True
        while going:
            _threads.add(mine)
            _close_waiting()
            _threads.discard(mine)
            going = bool(_waiting)  # its caller may have found all places taken, ours included
    finally:
        _threads.discard(mine)
        place.done.release()


def _close_waiting() -> None:
    try:
        while True:
            fd = _waiting.popleft()
            try:
                _close(fd)
            except BaseException:
                _waiting.append(fd)  # for another thread; last, so as not to delay the others
                raise
    except IndexError:  # all are closed, or being closed
        pass


def _close(fd: Fd) -> None:
    # Catch Exception: without memory, CPython 3.11 raises SystemError when a function is called.
    # Take the number first, so that it is surely this file that is told not to linger.
    try:
        mine = Fd.blank(1)
        Fd.own(mine, map(dict.pop, (vars(fd),), ("_number",), (-1,)))
        try:
            _forbid_linger(mine[0].fileno())
        finally:
            mine[0].close()
    except Exception:  # noqa: BLE001, S110
        pass
    try:  # noqa: SIM105 (to make a suppress() takes memory)
        fd.close()  # if there was not even memory to take the number
    except Exception:  # noqa: BLE001, S110
        pass


def _forbid_linger(number: int) -> None:
    # The family and type are for Python only; the kernel ignores them. It may not be a socket.
    sock = socket.SocketType(socket.AF_UNIX, socket.SOCK_STREAM, 0, number)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes(8))
    finally:
        sock.detach()


def _forget_threads() -> None:
    _threads.clear()


os.register_at_fork(after_in_child=_forget_threads)
