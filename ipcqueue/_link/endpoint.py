"""One side of a connection, without waiting: what threads and the tasks of event loops build on.

An Endpoint brings together a Wire (the socket), Waiters (who waits, and who of them reads), both
segments and the ends of the rings in them, and it knows how the connection ended.  It begins with
the Agreement of an Opening (opening.py).  How to wait is in plans.py, and the doors do it:
`_threads` for threads, `memenpsf.trio` and `memenpsf.asyncio` for tasks.

What it shares with sides that have other peers is in side.py (sending, waiting) and receiving.py.
The file is long because how a connection ends is one matter: who notices it, what it means to whom,
and how this side says it.

How it ends: see ending.py.  The peer's end is noticed by reading the socket, by a push, which
looks at it now and then, and by who finds the ring empty.  It is noted in `ending`, once for each
direction.
"""

from __future__ import annotations

import contextlib
import select
import sys
import warnings
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

from fdpass.lowlevel import monotonic, renewed_after_fork
from ipcqueue._direct import persist
from ipcqueue._errors import Closed, CorruptPeer, QueueError
from ipcqueue._records.messages import MessageCodec, Received
from ipcqueue._ring.codes import CORRUPT, GONE, RingError
from ipcqueue._ring.end import Traffic
from ipcqueue._ring.memory import ABORTED, IN_ORDER, KNOWN_ENDS, NO_MORE, fork_generation
from ipcqueue._ring.patience import BUSY
from ipcqueue._ring.segment import limits_of

from . import log
from .alarms import FalseAlarms, doubled
from .control import application_message, err
from .ending import Ending, again, died, told_receiver, told_sender
from .ends import accepted_fds, ends_of
from .flight import Flight
from .receiving import Receiving
from .shown import shown
from .statistics import Statistics
from .waiters import Wait, Waiters
from .wire import Wire, hang_up, has_room, tell

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable

    from fdpass import Credentials
    from ipcqueue._ring.frame_receiver import FrameReceiver
    from ipcqueue._ring.frame_sender import FrameSender
    from ipcqueue._ring.receiver import ReceiverEnd
    from ipcqueue._ring.sender import SenderEnd

    from .opening import Agreement, Opening

# From 2 ms to 128: many senders may wait for a peer that reads nothing.
MAX_RETRY_DOUBLINGS = 6

T = TypeVar("T")


class Endpoint(Receiving):
    """One side of an open connection; see the module.  Takes all that an Agreement consists of.

    Threads: everything here may be called from any.  A call that reads the socket does so as the
    reader of `waiters`.
    """

    RETRY_AFTER = 0.002
    """Seconds until the first retry where in_flight_limit_reached(); a guess."""

    _released = True  # so that __del__ is right about an object that was never completed

    def __init__(self, agreement: Agreement) -> None:
        terms, own, peer = agreement.terms, agreement.own, agreement.peer
        self.codec = terms.codec
        self.name = terms.name
        self.peer_name = peer.identity.name
        self.peer: Credentials = agreement.credentials
        self.address = agreement.address
        self.capacity = own.identity.capacity or peer.identity.capacity
        self.closed = False
        self.owner: Callable[[], object] = _nobody  # a weak reference; see belongs_to()
        self._shown_as = type(self).__name__
        self.waiters = Waiters()
        self.rescues = 0
        self.alarms = FalseAlarms()
        accepts_fds = accepted_fds(terms)
        self.wire = Wire(agreement.sock, agreement.process, agreement.lease, accepts_fds)
        self.wire.watches, self.wire.alert = self.waiters.watches, self.waiters.alert
        self.readable = Wait(wire=self.wire, events=select.POLLIN)
        self._own, self._peer = own, peer
        self._lease = agreement.lease
        self._generation = fork_generation()
        self.ending = Ending()
        self._last_statistics: Statistics | None = None
        self._peer_limits = limits_of(peer.identity)
        self.clock: Callable[[], float] = monotonic
        self.spins = True
        self.busy = terms.patience == BUSY
        self.sender, self.receiver = ends_of(agreement, self.wire)
        self._count_descriptors()
        self.ready: Iterable[Any] = ()
        self.ready_messages: Iterable[Received] = ()
        if self.receiver is not None:
            self.ready = self.receiver.ready(False)
            self.ready_messages = self.receiver.ready(False, Received)
        renewed_after_fork(self)
        self._released = False

    def renew_locks(self) -> None:
        """In a forked child: forget who held them."""
        for it in (self.wire, self.waiters, self.sender, self.receiver):
            if it is not None:
                it.renew_locks()

    def belongs_to(self, owner: object, shown_as: str) -> None:
        """Note the object that the user has: errors are tagged with it, and warnings name it."""
        self.owner, self._shown_as = weakref.ref(owner), shown_as

    def _count_descriptors(self) -> None:
        """Have the lease count what comes and goes with messages, if it does that."""
        self._flight: Flight | None = None
        if not self._lease.counts_descriptors:
            return
        if self.sender is not None and isinstance(self.codec, MessageCodec):
            sender = cast("FrameSender", self.sender)
            self._flight = sender.flight = Flight(self.wire.sock, self._lease)
        this = weakref.ref(self)
        self._lease.follow(lambda: 0 if (it := this()) is None else it.held_descriptors())

    def held_descriptors(self) -> int:
        """Return how many descriptors came and were not handed on, or are on their way to the peer.

        Those of the connection itself are not among them.  From any thread.
        """
        receiver, flight = self.receiver, self._flight
        count = self.wire.held()  # first: see FrameReceiver.held
        if receiver is not None and isinstance(self.codec, MessageCodec):
            count += cast("FrameReceiver", receiver).held()
        return count + (0 if flight is None else flight.count())

    def fileno(self) -> int:
        """Return the socket's descriptor; raise Closed."""
        return self.wire.fileno()

    def events_fileno(self) -> int:
        """Return a descriptor for event loops to poll; raise Closed, OSError (none is left)."""
        if self.closed:
            raise Closed("this side has closed the connection")
        return self.wire.bell_fileno()

    def peer_pidfd(self) -> int | None:
        """Return a pidfd of the peer's process, None if the kernel does not tell; raise Closed."""
        if self.closed:
            raise Closed("this side has closed the connection")
        process = self.wire.process
        return None if process is None else process.fileno()

    # -- records ---------------------------------------------------------------------------

    def check_message_size(self, size: int) -> None:
        """Raise TooLarge for a message that the peer does not take."""
        self._peer_limits.check_size(size)

    def statistics(self) -> Statistics:
        """Return the counters as they are now; after close(), as they were then."""
        if self._last_statistics is not None:
            return self._last_statistics
        if self.closed:
            self.raise_end()
        out, arrived = self._traffic(self.sender), self._traffic(self.receiver)
        counts = self._own.mapping.counts()
        if counts is None:  # closed meanwhile
            return self.statistics()
        sending, receiving = counts
        return Statistics(
            sent=out.records,
            taken=out.records - out.waiting,
            received=arrived.records,
            waiting=arrived.waiting,
            doorbells=sending.doorbells + receiving.doorbells,
            waits=sending.waits + receiving.waits,
            full=sending.refused,
            dropped=0 if self.receiver is None else self.receiver.dropped,
            rescues=self.rescues,
            false_alarms=self.alarms.total,
            sent_bytes=out.bytes,
            taken_bytes=out.bytes - out.waiting_bytes,
            received_bytes=arrived.bytes,
            waiting_bytes=arrived.waiting_bytes,
        )

    def _traffic(self, ring: SenderEnd | ReceiverEnd | None) -> Traffic:
        """Return what went through an end; zeros if there is none."""
        if ring is None:
            return Traffic(0, 0, 0, 0)
        try:
            return ring.traffic()
        except RingError as error:
            trouble = error.args
        self.raise_meaning(*trouble, sending=ring is self.sender)

    # -- control messages --------------------------------------------------------------------

    def try_take_message(self) -> bytes | None:
        """Take a message of the peer's application; None if there is none yet."""
        self._check_usable()
        over = self.ending.over
        if self.closed:
            self.raise_end()
        inbox = self.wire.inbox
        if inbox:
            # No bytecode from here on can be interrupted: not pop(), as an exception after the call
            # would lose what it returned, and no mutex, as it would after that is released.
            message = inbox[0]
            del inbox[0]
            return message
        if over:
            self.raise_end()
        return None

    def try_send_message(self, message: bytes) -> bool:
        """Send a message to the peer's application; False if the socket is full."""
        message = application_message(message)
        if not self.closed and self.ending.sending is not None:  # send_eof() ends only records
            raise again(self.ending.sending)
        try:
            return self.with_socket(partial(self.wire.send, message))
        except (BrokenPipeError, ConnectionResetError):
            self.raise_meaning(GONE, sending=True)

    def read_once(self) -> int:
        """Read once from the socket, as the reader: doorbells, messages, descriptors, the end.

        Return how many bytes.
        """
        size = self.with_socket(self.wire.read)
        if self.wire.over:
            self._learn()
        return size

    def _learn(self) -> None:
        """Note the end, which a read has brought."""
        end = self.wire.end
        if end is None:
            self._hear(gone=True)
        elif isinstance(end, CorruptPeer):
            self._abandon(end)
        else:
            self._note_end(end, end, over=True)

    # -- waiting -------------------------------------------------------------------------------

    def in_flight_limit_reached(self) -> bool:
        """Whether the socket has room, though it did not take descriptors.

        Then too many descriptors of this user are in flight in the whole system, or too many of the
        peer's user are here or in flight.  The kernel does not tell when there are fewer.
        """
        return self.with_socket(has_room)

    def retry_after(self) -> float:
        """Return the seconds to wait where in_flight_limit_reached(): longer each time in a row."""
        times = 0 if self._flight is None else self._flight.refusals
        return doubled(self.RETRY_AFTER, times, MAX_RETRY_DOUBLINGS)

    # -- the end ---------------------------------------------------------------------------------

    def _hear(self, *, gone: bool = False) -> None:
        """Note what the peer's segment says of its end; `gone`: its socket has ended."""
        closed = self._peer.mapping.closed()
        if closed & ~KNOWN_ENDS:
            message = f"the peer says that it has ended by {closed:#x}, which is no end"
            self._abandon(CorruptPeer(message))
            return
        receiving, sending = told_receiver(closed, gone=gone), told_sender(closed, gone=gone)
        self._note_end(receiving, sending, over=gone)

    def _note_end(
        self, receiving: QueueError | None, sending: QueueError | None, *, over: bool
    ) -> None:
        with self.waiters.mutex:
            news = self.ending.note(receiving, sending, over=over)
        if self.sender is not None and self.ending.sending is not None:
            self.sender.close()
        if news is not None:
            log.tell("%s: %s", self, news)

    def _abandon(self, error: CorruptPeer) -> None:
        """End a connection whose peer cannot be believed: at once, and for both directions."""
        persist(self._give_up, error)  # Ctrl-C: finish what was begun

    def _give_up(self, error: CorruptPeer) -> None:
        self._note_end(error, error, over=True)
        if self.receiver is not None:
            self.receiver.close()
        with contextlib.suppress(Closed, OSError):
            self.with_socket(partial(tell, message=err(error)))
            self.with_socket(hang_up)

    def raise_meaning(self, code: int, message: str = "", *, sending: bool) -> NoReturn:
        """Raise what trouble of a ring, the arguments of a RingError, means to a caller.

        `sending`: to one that sends.  Each caller of an end that may raise RingError comes here,
        after its handler and not in it: else the application would see RingError as the context.
        """
        self._check_usable()
        if code == CORRUPT:
            self._abandon(CorruptPeer(message))
        elif code == GONE:
            # What it sent before it left comes first; and there is no end to read if the other
            # side has set `closed` and is just about to shut down the socket.
            for _ in range(_TURNS_TO_THE_END):
                if self.ended:
                    break
                self.read_if_free()
            if self.ending.sending is None:
                self._hear()
            if self.ending.sending is None:  # what it has sent is still to be received
                self._note_end(None, died(), over=False)
            if not sending and self.ending.receiving is None:
                raise died()
        self.raise_end(sending=sending)

    def finish(self, ends: int = IN_ORDER) -> None:
        """End in good order for the peer; here, what has arrived can still be received.

        `ends`: how to end, if not in good order.
        """
        self._check_usable()
        # A bound method would need memory, before anything has begun.
        persist(Endpoint._finish, self, ends)  # Ctrl-C: finish what was begun

    def _finish(self, ends: int) -> None:
        """Do it; each step can be repeated."""
        end = Closed("this side has finished with the connection")
        self._note_end(end, end, over=True)
        with contextlib.suppress(Closed):
            self.with_socket(partial(self._say_goodbye, ends))

    def send_eof(self) -> None:
        """Send no more: the peer drains what was published, then sees the end.

        It may go on sending.
        Idempotent.  Raises Closed, and TypeError if there is no sending end.
        """
        self._check_usable()
        self.sending()
        persist(Endpoint._end_sending, self)  # as in finish()

    def _end_sending(self) -> None:
        """Do it; each step can be repeated."""
        self.sending().close()  # first: nothing is published after the mark
        self.with_socket(partial(self._mark, NO_MORE))

    def _say_goodbye(self, ends: int, sock: socket.socket) -> None:
        # In this order: the peer that sees the end of the socket looks for `closed`.
        self._mark(ends, sock)
        self.wire.say_goodbye(sock)

    def _mark(self, ends: int, sock: socket.socket) -> None:
        """Say in this side's segment how it has ended."""
        with self.waiters.mutex:
            own = self.ending.with_own(ends)
            self._own.mapping.set_closed(own, self._peer.mapping, sock.fileno())
            self.ending.own = own

    def abort(self) -> None:
        """Close, and have the peer learn that it was in the middle: it drains, then gets Aborted.

        Idempotent; after finish() or close() it is the same as close().
        """
        self.close(ABORTED)

    def close(self, ends: int = IN_ORDER) -> None:
        """End in good order: the peer drains what was published, then sees the end.

        Idempotent.  Threads that wait get Closed.  In a forked child it only closes the child's
        copies of the descriptors.  `ends`: how to end, if not in good order.
        """
        if self._forked():
            self.closed = True
            self.wire.release(shared=True)
            self._release()
            return
        was_open = not self.closed
        persist(Endpoint._close, self, ends)  # as in finish()
        if was_open:
            log.tell("%s", self)

    def _close(self, ends: int) -> None:
        """Close; each step can be repeated."""
        # Before the mutex is taken: the rings have locks of their own.
        if not self.closed:
            with contextlib.suppress(QueueError):
                self._last_statistics = self.statistics()
        self.closed = True
        for ring in (self.sender, self.receiver):
            if ring is not None:
                ring.close()
        if not self.wire.released:
            self._say_goodbye(ends, self.wire.sock)
        self.waiters.alert()  # a closed socket wakes nobody who polls it
        self.wire.close()  # unless somebody has it in hand
        self._release()

    def _release(self) -> None:
        """Let go of both segments and of the lease; repeatable, takes no lock."""
        self._released = True
        if self.receiver is not None:
            self.receiver.discard()
        for ring in (self.sender, self.receiver):
            if ring is not None:
                ring.let_go()
        self._own.close()
        self._peer.close()
        last = self._last_statistics
        self._lease.close(served=last is None or bool(last.received or last.sent))

    def __del__(self, warn: Any = warnings.warn, finalizing: Any = sys.is_finalizing) -> None:
        # Takes no lock and says no goodbye: to forget an end is to drop it.
        if not self._released:
            if not self._forked() and not finalizing():
                warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)
            self.closed = True  # for what the garbage collector finalizes after this
            try:
                self.wire.release(shared=self._forked())
                self._release()
            except Exception:
                # As the interpreter ends, modules may be None already; the exit gives all back.
                if not finalizing():
                    raise
                self.wire.sock.close()  # a socket would complain

    def __repr__(self) -> str:
        return shown(self, getattr(self, "_shown_as", type(self).__name__))


# Enough reads of 4096 bytes to empty the largest socket buffer a two-byte message can fill.
_TURNS_TO_THE_END = 64


def _nobody() -> None:
    """Stand for the interface of an endpoint that has none yet."""


def advance(opening: Opening) -> Endpoint | None:
    """Take a step of a handshake; return the Endpoint once both sides have agreed.

    Raises what Opening.step() does, and OSError; then everything is closed.
    """
    try:
        agreement = opening.step()
        if agreement is None:
            return None
        log.tell("opening a connection with %s", agreement)
        return Endpoint(agreement)
    except BaseException as error:
        persist(opening.abandon, error)
        if isinstance(error, Exception):
            log.tell("no connection with %s: %s: %s", opening.who, type(error).__name__, error)
        raise
