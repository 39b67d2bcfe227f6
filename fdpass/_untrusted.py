"""Closing what came from somebody who is not trusted: in a thread.

close(2) waits for the file, and the file may be the sender's own: on a FUSE file system it waits for
his daemon's answer, of a TCP socket until the other end has taken what was sent (SO_LINGER), of a
Unix socket for all that in its queue.  So a thread closes it.  Who closes gives it a moment to be
done, and none for a while after one took longer: only an attacker's does.

There are never more than MAX_THREADS of these threads, and none when there is nothing to close.  If
all of them wait, what is to be closed after that waits, open, for one of them.  A thread that could
not begin, or died, takes no place: the next one closes what it left.  Memory files and pipes, which
wait for nobody, are closed on the spot.
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
from typing import Protocol

from . import _interpreter
from ._clock import monotonic
from ._fd import Fd
from ._owner import Owner

PATIENCE = 0.005
"""Seconds. The 253 files of one message take a twentieth of it."""

IMPATIENCE = 10.0
"""Seconds without patience, after it was in vain."""

MAX_THREADS = 64

THREADS_ABORT = _interpreter.threads_abort()
"""Whether no thread may be started here: then files are closed on the spot, and that may wait."""

F_GET_SEALS = 1034
"""From linux/fcntl.h: too new for Python's module in places."""

# What adds to a message more than was sent; SO_PASSSEC and SO_PASSPIDFD are not in Python's module.
_ADDITIONS = (socket.SO_PASSCRED, 34, 76)

_LOOK = 1 << 16  # bytes

_waiting: deque[Fd] = deque()  # for a thread, which takes the number when it closes it
_threads: "set[weakref.ref[_Place]]" = set()  # perhaps also of some that ended without a word
_last_late = -IMPATIENCE  # the monotonic()


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

    It takes a few milliseconds at most; one that takes longer is closed after that.  No socket
    lingers (SO_LINGER).  Can be repeated.
    """
    quick: list[Fd] = []
    doubtful: list[Fd] = []
    for fd in fds:
        (quick if THREADS_ABORT or _never_waits(fd) else doubtful).append(fd)
    try:
        if doubtful:
            _have_closed(doubtful)
    except (MemoryError, RuntimeError):
        quick += doubtful  # there is no thread to be had
    for fd in quick:
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
            fds = Fd.blank(1)
            Fd.own(fds, map(socket.SocketType.detach, (sock,)))
            close_untrusted(fds)
    with suppress(OSError):  # what was to be written somewhere is lost; the descriptor is closed
        sock.close()


def _never_waits(fd: Fd) -> bool:
    """Whether it is closed, or a memory file, or a pipe."""
    number = fd._number  # noqa: SLF001 (fileno() would raise, if a thread has just closed it)
    if number < 0:
        return True
    # Not fstat(), which a file system of the stranger's own could answer when it likes.
    for question in (F_GET_SEALS, fcntl.F_GETPIPE_SZ):
        with suppress(OSError):
            fcntl.fcntl(number, question)
            return True
    return False


def _holds_descriptors(sock: socket.socket) -> bool:
    """Say whether it does; if not, take out what it holds, so that the peer sees an orderly end."""
    for option in _ADDITIONS:
        with suppress(OSError):  # a kernel that does not know it
            sock.setsockopt(socket.SOL_SOCKET, option, 0)
    try:
        while True:
            # Without room for descriptors, the kernel only says that there are some.
            data, _, flags, _ = sock.recvmsg(_LOOK, 0, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            if flags & socket.MSG_CTRUNC:
                return True
            if not data:
                return False
            sock.recv(len(data), socket.MSG_DONTWAIT)
    except OSError:
        return False


# -- threads ------------------------------------------------------------------------------------------
#
# A descriptor stays with its Fd, and whoever takes the number out of that closes it: a thread, or
# who is interrupted on the way to one and tries again.


class _Place(Owner):
    """A thread's place among MAX_THREADS.

    Only the arguments of the thread hold it, so it is gone when the thread is, however that ended:
    one without memory for its first call runs no code of ours.
    """

    def __init__(self) -> None:
        self.done = _thread.allocate_lock()  # released when all was closed
        self.done.acquire()


def _have_closed(fds: list[Fd]) -> None:
    """Have a thread close descriptors, and wait for it a moment.

    Raises MemoryError or RuntimeError when there is no thread to be had.
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
        _start_more(len(_waiting))  # for what is behind the one that takes longer


def _all_taken() -> bool:
    """Say whether there is no place for another thread, once those of dead ones are given back."""
    if len(_threads) >= MAX_THREADS:
        for each in tuple(_threads):
            if each() is None:
                _threads.discard(each)
    return len(_threads) >= MAX_THREADS


def _start(fds: list[Fd]) -> "tuple[_thread.LockType, weakref.ref[_Place]]":
    """Start a thread, with more to be closed; return what it releases in the end, and its place."""
    place = _Place()
    done, reference = place.done, weakref.ref(place)
    steps = (
        map(_waiting.extend, (fds,)),
        map(_threads.add, (reference,)),
        map(_thread.start_new_thread, (_work,), ((place,),)),
    )
    try:
        deque(chain(*steps), maxlen=0)  # one call of C code, or an interrupt could come between
    except BaseException:
        _threads.discard(reference)
        raise
    return done, reference


def _start_more(count: int) -> None:
    """Start so many threads, as long as there is something for them and they are not too many."""
    for _ in range(count):
        if not _waiting or _all_taken():
            return
        _start([])


# Where CPython 3.11 has no memory to enter an exception handler that stands behind the 256th
# instruction of a function, it tries for ever, and lets no other thread run: hence short ones.


def _work(place: _Place) -> None:
    mine = weakref.ref(place)  # the one that there is already
    try:
        going = True
        while going:
            _threads.add(mine)
            _close_waiting()
            _threads.discard(mine)
            going = bool(_waiting)  # who has put that there may have found a thread too many
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
                _waiting.append(fd)  # for another thread, and behind what others wait for
                raise
    except IndexError:  # all are closed, or being closed
        pass


def _close(fd: Fd) -> None:
    # Exception: without memory, CPython 3.11 raises SystemError where a function is called.  The
    # number is taken first, as it must be this file that is told not to linger.
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
        fd.close()  # where there was no memory even to take the number
    except Exception:  # noqa: BLE001, S110
        pass


def _forbid_linger(number: int) -> None:
    # What Python takes it for is nothing that the kernel hears of, and it may be no socket at all.
    sock = socket.SocketType(socket.AF_UNIX, socket.SOCK_STREAM, 0, number)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes(8))
    finally:
        sock.detach()


def _forget_threads() -> None:
    _threads.clear()


os.register_at_fork(after_in_child=_forget_threads)
