"""Hub: one descriptor by which an event loop polls all connections that its tasks wait for.

add_reader() and remove_reader() for each sleep take longer than the sleep itself.  The hub is an
epoll that stays in the loop; to sleep is to arm one descriptor in it.  A descriptor that is closed
leaves it by itself, so nobody is ever woken for the next file that has its number.
"""

from __future__ import annotations

import os
import select
import threading
import weakref
from typing import TYPE_CHECKING

from ipcqueue.lowlevel import Owner

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

_ONCE = select.EPOLLIN | select.EPOLLONESHOT


class Hub(Owner):
    """The hub of one event loop, as long as somebody uses it.  Not for threads."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._wakes: dict[int, Callable[[], object]] = {}
        self._users = 0
        self._pid, self._thread = os.getpid(), threading.get_ident()
        self._epoll = select.epoll()
        try:
            loop.add_reader(self._epoll.fileno(), self._dispatch)
        except BaseException:
            self._epoll.close()
            raise

    @classmethod
    def entered(cls, loop: asyncio.AbstractEventLoop) -> Hub:
        """Return the hub of a loop, for one more user, who leaves it; raise OSError."""
        known = _hubs.get(loop)
        hub = None if known is None else known()
        if hub is None:
            hub = cls(loop)
            _hubs[loop] = weakref.ref(hub)
        hub._users += 1
        return hub

    def leave(self) -> None:
        """Let go of it; the last user closes it.  From any thread, and in a forked child."""
        self._users -= 1
        if self._users:
            return
        is_loops = os.getpid() == self._pid and not self._loop.is_closed()  # else the parent's
        if is_loops and threading.get_ident() != self._thread:
            self._loop.call_soon_threadsafe(self._close, is_loops)
        else:
            self._close(is_loops)

    def _close(self, is_loops: bool) -> None:
        if self._users:  # somebody has come meanwhile
            return
        _hubs.pop(self._loop, None)
        if is_loops:
            self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def wake_once(self, fd: int, wake: Callable[[], object]) -> None:
        """Call `wake` once `fd` is readable; one caller for each.  Raises OSError."""
        self._wakes[fd] = wake
        try:
            self._epoll.modify(fd, _ONCE)
        except FileNotFoundError:
            self._epoll.register(fd, _ONCE)

    def forget(self, fd: int, wake: Callable[[], object]) -> None:
        """Do not call it any more."""
        if self._wakes.get(fd) is wake:
            del self._wakes[fd]  # it stays armed, and then wakes nobody

    def _dispatch(self) -> None:
        for fd, _ in self._epoll.poll(0):
            wake = self._wakes.pop(fd, None)
            if wake is not None:
                wake()


# Weak: a hub refers to the tasks that sleep, and to their loop, which may have been closed by now.
_hubs: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, weakref.ref[Hub]]
_hubs = weakref.WeakKeyDictionary()
