"""The socket of a connection and the peer's process: reading, sending, and how it is closed.

A Wire reads doorbells, control messages of the application, and the descriptors that go with
messages; it keeps them until somebody takes them, and returns what a read has brought and whether
that was the end.  It knows of no ring and of no endpoint; it waits in doze() and poll() alone.

The file is long because one read concerns all of this: bytes, descriptors, who is told of it, and
the end; a second file would only have half of each rule.

A read can be interrupted (Ctrl-C) between any two bytecodes, so one C call reads into `_unread`,
and it is digested from there, entirely or not at all.  How the connection ended is remembered
(`end`, `hung_up`), and each later read returns it again.
"""

from __future__ import annotations

import contextlib
import fcntl
import select
import socket
import struct
import termios
from collections import deque
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar, cast

import fdpass
from fdpass.lowlevel import (
    RECEIVE_FLAGS,
    Owner,
    closing_all,
    unpack,
)
from ipcqueue import _direct
from ipcqueue._direct import RLock, persist
from ipcqueue._errors import Closed, CorruptPeer, DescriptorsLost, QueueError
from ipcqueue._ring.arrivals import close_received
from ipcqueue._ring.frame import MAX_ATTACHED

from .control import ControlParser, Opcode
from .watches import Bell

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from .lease import Lease
    from .process import Process

# How many control messages of the peer may wait for recv_ctrl_msg.  A guess: an application
# that sends two bytes at a time means a handful; a peer that sends more wants our memory.
MAX_INBOX = 65536
# More control messages that nobody takes are no news.  A guess: a program that wakes for each of
# them has no time for anything else.
MAX_UNTAKEN = 64
GOODBYE = bytes((Opcode.WRITE, 0, Opcode.READ, 0))

# Of the C module: what one read brings is kept in a room, where memory may be too short for
# objects.
_ROOM: int = _direct.ROOM
_SEND_FLAGS = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
_CTRUNC = int(socket.MSG_CTRUNC)
_waiting: Callable[[bytearray], int] = _direct.waiting
_drop: Callable[[bytearray], None] = _direct.drop

T = TypeVar("T")
Poller = TypeVar("Poller", select.poll, select.epoll)


class Wire(Owner):
    """The socket and the peer's process; takes both.

    Threads: one at a time reads (Waiters says which); everything else may be called from any.
    `accepts_fds` descriptors may come with a message.  The lease is asked before they are read, if
    it counts them.
    """

    def __init__(
        self, sock: socket.socket, process: Process | None, lease: Lease, accepts_fds: int
    ) -> None:
        self.sock = sock
        self.process = process
        self.closed = False
        self.released = False
        self.end: QueueError | None = None
        """Why nothing more can come, as far as the bytes of the peer tell."""
        self.hung_up = False
        self.inbox: list[bytes] = []
        """Control messages of the application that nobody has taken yet."""
        self.messages = 0
        """How many of them came while at most MAX_UNTAKEN waited; only grows."""
        self.attached: list[list[fdpass.Fd]] = []
        """Descriptors of frames that are not received yet, in order; a receiving end takes them."""
        self.held_back = 0
        """How often in a row descriptors were left in the socket, as their user has no room."""
        self._incoming = 0  # descriptors that are just being read
        self._unwelcome: list[list[fdpass.Fd]] = []  # until they are closed
        self._lock = RLock()
        self._users = 0  # threads that have the socket's number in hand
        self._poll = select.poll()  # for one thread at a time, the reader
        self.watch(self._poll, select.POLLIN)
        self._rung = [(sock.fileno(), select.POLLIN)]  # what it says of a doorbell and no more
        self._events: select.epoll | None = None
        self._bell: Bell | None = None
        self._bell_is_hung = False  # whether it is among the events
        self.watches: Collection[object] = ()
        """Who is to be woken by `alert` before anything is read."""
        self.alert: Callable[[], None] = _nobody_watches
        self._unread: list[Any] = []  # results of recvmsg(), or what they turned out to be
        self._room = bytearray(_ROOM)  # one such result, where memory is too short to have it there
        self._parser = ControlParser()
        self._lease = lease
        self._max_fds = accepts_fds
        # Where they are counted, the kernel gives no more of them than a message may bring, and one
        # that tells: those that nobody asked for would be here until they are closed.
        self._most_at_once = accepts_fds if lease.counts_descriptors else -1
        self._wary = lease.counts_descriptors and accepts_fds > 0

    def renew_locks(self) -> None:
        """In a forked child: forget who held them."""
        self._lock = RLock()

    # -- the socket in hand ----------------------------------------------------------------------

    def fileno(self) -> int:
        """Return the socket's descriptor; raise Closed."""
        self._check_open()
        return self.sock.fileno()

    def _check_open(self) -> None:
        if self.closed:
            raise Closed("this side has closed the connection")

    def use(self, use: Callable[..., T], seconds: float | None = None) -> T:
        """Call `use(socket)`, and keep its number from being closed, and reused, meanwhile.

        Or `use(socket, seconds)`, of what waits.
        """
        entered = False
        try:
            # No bytecode between these can be interrupted.  No lock: it is counted first, and then
            # looked whether it is closed; who closes sets that first, and then looks at the count.
            self._users += 1
            entered = True
            if self.closed:
                self._check_open()
            return use(self.sock) if seconds is None else use(self.sock, seconds)
        finally:
            if entered:
                # No bytecode here can be interrupted, and none needs memory: it is counted for
                # sure.
                self._users -= 1
                if self.closed:
                    persist(self._let_go)

    def close(self) -> None:
        """Let nobody use it any more, and close it unless somebody has it in hand; repeatable.

        Else the last one that has closes it.
        """
        self.closed = True
        self._let_go()

    def _let_go(self) -> None:
        with self._lock:
            if not self._users:
                self.release()

    def release(self, *, shared: bool = False) -> None:
        """Close everything now; repeatable, takes no lock.

        `shared`: another process goes on with the socket, as after a fork.
        """
        self.closed = self.released = True
        close_received(chain(*self.attached, *self._unwelcome))
        # What an exception kept somebody from digesting.  Forgotten first: a number closed twice
        # may be somebody else's by then.
        _drop(self._room)
        unread, self._unread = self._unread, []
        for _, ancillary, _, _ in unread:
            numbers = list(chain(*unpack(ancillary)))
            fds = fdpass.Fd.blank(len(numbers))
            fdpass.Fd.own(fds, numbers)
            fdpass.close_untrusted(fds)
        bell, self._bell, self.watches = self._bell, None, ()
        for held in (self._events, self.process, None if bell is None else bell.eventfd):
            if held is not None:
                held.close()
        if shared:
            self.sock.close()
        else:
            fdpass.drop_socket(self.sock)

    # -- what to poll ----------------------------------------------------------------------------

    def watch(self, poll: select.poll | select.epoll, events: int) -> None:
        """Have the socket polled for `events` (and its end, in any case), and the peer's exit."""
        poll.register(self.sock, events)
        if self.process is not None:
            poll.register(self.process, select.POLLIN)

    def events_fileno(self) -> int:
        """Return a descriptor that is readable when the socket is, or the peer has exited.

        At the limit of descriptors the socket's must do.  Raises Closed.
        """
        number = self.fileno()
        if self.process is None:
            return number
        with self._lock:
            if self._events is None:
                try:
                    events = select.epoll()
                    self.watch(events, select.EPOLLIN)
                except OSError:
                    return number
                self._events = events
            return self._events.fileno()

    def bell(self) -> Bell:
        """Return what wakes event loops, through bell_fileno(); raise as that does."""
        self.bell_fileno()
        bell = self._bell
        if bell is None:
            self._check_open()
        return cast("Bell", bell)

    def bell_fileno(self) -> int:
        """Return a descriptor as events_fileno() does, which is readable also when bell() is rung.

        Raises Closed, OSError (no descriptor is left).
        """
        with self._lock:
            self._check_open()
            if self._events is None:
                events = select.epoll()
                self.watch(events, select.EPOLLIN)
                self._events = events
            if not self._bell_is_hung:
                # Step by step, since Ctrl-C may strike after each of them.
                if self._bell is None:
                    self._bell = Bell(self.use)
                self._bell.eventfd.open()
                with contextlib.suppress(FileExistsError):
                    self._events.register(self._bell.eventfd, select.EPOLLIN)
                self._bell_is_hung = True
            return self._events.fileno()

    def poller(self, events: int) -> select.epoll:
        """Return what is readable where poll(events) would return.

        It is the caller's.  Raises Closed, OSError.
        """
        epoll = select.epoll()
        try:
            self.fileno()  # raises Closed
            return self._poller(epoll, events)
        except BaseException:
            persist(epoll.close)
            raise

    # -- sending ---------------------------------------------------------------------------------

    @staticmethod
    def send(message: bytes, sock: socket.socket) -> bool:
        """Send a control message; False if there is no room; raise OSError (a broken pipe)."""
        try:
            sock.send(message, _SEND_FLAGS)
        except BlockingIOError:
            return False
        return True

    @staticmethod
    def say_goodbye(sock: socket.socket) -> None:
        """Wake the peer, and end the socket; also wakes who reads it here."""
        tell(sock, GOODBYE)
        hang_up(sock)

    # -- reading ---------------------------------------------------------------------------------

    def held(self) -> int:
        """Return how many descriptors are here besides `attached`; from any thread."""
        count = self._incoming  # first: see FrameReceiver.held
        return count + sum(map(len, self._unwelcome))

    @property
    def over(self) -> bool:
        """Whether nothing more can come; `end` says why, or else the peer has hung up."""
        return self.hung_up or self.end is not None

    def is_behind(self) -> bool:
        """Whether something has come that no reader has digested, or told of, because of Ctrl-C."""
        return (
            bool(self._unread) or self.end is not None or self.hung_up or _waiting(self._room) > 0
        )

    def backlog(self, sock: socket.socket) -> int:
        """Return how many bytes have come and are not digested."""
        (left,) = struct.unpack("i", fcntl.ioctl(sock, termios.FIONREAD, bytes(4)))
        return int(left) + sum(len(data) for data, *_ in tuple(self._unread)) + _waiting(self._room)

    def doze(self, sock: socket.socket, seconds: float) -> bool:
        """Sleep until the socket is readable, and read, as the reader; False if time ran out."""
        woken = self._poll.poll(_milliseconds(seconds))
        if woken != self._rung and self.process is not None:
            exited = self.process.fileno()
            for fd, _ in woken:
                if fd == exited:
                    hang_up(sock)
        self.read(sock)
        return bool(woken)

    def poll(self, _: socket.socket, seconds: float, events: int) -> bool:
        """Sleep until `events` of the socket, or its end, or the peer's exit; False if none came.

        For 0, to leave the socket alone meanwhile.
        """
        poll = self._poller(select.poll(), events)
        return bool(poll.poll(_milliseconds(seconds)))

    def _poller(self, poll: Poller, events: int) -> Poller:
        if events or not self.held_back:  # else the end comes behind what waits in the socket
            self.watch(poll, events)
        return poll

    def read(self, sock: socket.socket) -> int:
        """Read once: doorbells, messages, descriptors, the end; return how many bytes.

        As the reader, with use().  `over` says afterwards whether that was the end.
        """
        if not self._unread:
            # One call, so that an exception between bytecodes (Ctrl-C) loses nothing: what was read
            # stands in the list, and is digested now or next time.
            try:
                doorbells = self._receive(sock, self._most_at_once, self._wary)
                if doorbells < 0:  # descriptors are next, and this says how many
                    count = min(-1 - doorbells, self._max_fds)
                    if not self._make_room(count):
                        return 0
                    doorbells = self._receive(sock, count, False)
                if doorbells:
                    return doorbells
            except BlockingIOError:
                if self.process is None or not self.process.has_exited():
                    return 0
                hang_up(sock)
                return self.read(sock)
            except ConnectionResetError:  # once, when it left without reading all we sent
                self._unread.append((b"", [], 0, None))
        data, ancillary, flags, error = self._unread[0]
        try:
            if isinstance(error, CorruptPeer):
                fdpass.close_untrusted(chain(*self._unwelcome))
                raise error
            self._digest(data, ancillary, flags)
        except CorruptPeer as error:
            self.end = error
            self._unread.clear()
        self._incoming = 0
        return len(data)

    def _receive(self, sock: socket.socket, most: int, wary: bool) -> int:
        """Read once into the list of what is unread: see `receive` of core/python/socket.c.

        Those who watch are told of it first (see Waiters), so nothing is read that came since.
        """
        if self.watches:
            if not self.is_behind() and not self._poll.poll(0):
                raise BlockingIOError
            self.alert()
        unread, room, whole = self._unread, self._room, not self._parser.rest
        return _direct.receive(sock, RECEIVE_FLAGS, whole, unread, room, most, wary) or 0

    def _make_room(self, count: int) -> bool:
        """Say whether `count` descriptors may be read now; if not, they wait in the socket."""
        # First noted, then judged: what another connection is about to do is seen by both.
        self._incoming = count
        if self._lease.fits(count):
            self.held_back = 0
            return True
        self._incoming = 0
        self.held_back += 1
        return False

    def _digest(self, data: bytes, ancillary: Any, flags: int) -> None:
        """Act on what was read, entirely or (if an exception strikes) not at all."""
        numbers, strays = unpack(ancillary)
        if strays:  # of the kernel's own, where the application has asked for that
            rights = [item for item in ancillary if item[1] == socket.SCM_RIGHTS]
            closing = closing_all(strays)
            # No bytecode between these can be interrupted.
            self._unread[0] = (data, rights, flags, None)
            deque(closing, maxlen=0)
        if numbers or flags & _CTRUNC:  # there may have been no room even for the first
            self._attach(data, numbers, flags)
        if not data:
            self.hung_up = True
            self._unread.clear()
            return
        parser = ControlParser(self._parser.rest)
        messages, refusal = parser.feed(data)
        if refusal is not None:
            self.end = self.end or refusal
        with self._lock:
            # No bytecode between these can be interrupted; and the first, which does not copy what
            # is there, adds all or (no memory) nothing.
            self.inbox += messages
            self._parser = parser
            del self._unread[0]
        if len(self.inbox) <= MAX_UNTAKEN:
            self.messages += len(messages)
        if len(self.inbox) > MAX_INBOX:
            raise CorruptPeer(f"the peer sent over {MAX_INBOX} messages that nobody took")

    def _attach(self, data: bytes, numbers: list[int], flags: int) -> None:
        """Keep descriptors for the frame they belong to: those of the last message in `data`."""
        # There is room for one more than the peer may send, so such a shortage is its own doing.
        most = self._incoming if self._wary else self._max_fds
        truncated = bool(flags & _CTRUNC) and len(numbers) <= most
        whole = len(self._parser.rest + data) % 2 == 0
        wanted = bytes((Opcode.FDS, len(numbers)))
        welcome = (
            whole
            and data[-2:] == wanted
            and len(self.attached) < MAX_ATTACHED
            and len(numbers) <= self._max_fds
        )
        error: QueueError | None = None
        if truncated:
            lost = "this process may not open as many descriptors as the peer sent"
            error = DescriptorsLost(lost)
        elif not welcome:
            error = CorruptPeer(f"the peer sent {len(numbers)} descriptors nobody asked for")
        keep = self.attached if error is None else self._unwelcome
        fds = fdpass.Fd.blank(len(numbers))
        digested = partial(self._unread.__setitem__, 0, (data, [], flags, error))
        try:
            fdpass.Fd.own(fds, numbers, partial(keep.append, fds), digested)
        except BaseException:
            if self._unread[0][1]:  # no memory: all of it is still to be digested
                keep[:] = [each for each in keep if each is not fds]
                for fd in fds:
                    if not fd.closed:
                        fd.detach()
            raise
        if error is None:
            return
        fdpass.close_untrusted(chain(*self._unwelcome))
        if not truncated:
            raise error
        self.end = self.end or error
        self._unread[0] = (data, [], 0, None)


def _nobody_watches() -> None:
    """Stand for what wakes those who watch."""


def _milliseconds(seconds: float) -> float:
    """Return a time as poll() takes it, which rounds it up; below 0 it would wait for ever."""
    return seconds * 1000 if seconds > 0 else 0


def tell(sock: socket.socket, message: bytes) -> None:
    """Send what does no harm if it gets lost."""
    with contextlib.suppress(OSError):
        sock.send(message, _SEND_FLAGS)


def hang_up(sock: socket.socket) -> None:
    """End the socket for both directions.

    Of a dead peer's at once, after what came before: whoever else holds it may go on writing.
    """
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def has_room(sock: socket.socket) -> bool:
    """Whether the socket takes more."""
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    return bool(poll.poll(0))
