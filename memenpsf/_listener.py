"""Listener: many clients on one address, for plain threads."""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import select
import socket
import threading
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, Self

from ipcqueue import (
    Closed,
    ConcurrentUse,
    LimitRefused,
    Opening,
    Owner,
    PeerDied,
    QueueError,
    Terms,
    check_options,
    checked_number,
    deadline_of,
    drop_socket,
    monotonic,
    peer_credentials,
    refuse,
    seconds_of,
    shown_seconds,
)

from ._address import BACKLOG, checked_permissions, resolve, starting
from ._guests import Conduct, Guest, Guests, Places
from ._interface import BOTH_WAYS, Interface, checked_role
from ._places import drive
from ._quota import Quota

if TYPE_CHECKING:
    import os
    from collections.abc import Generator, Iterable, Iterator

    from ipcqueue import Endpoint, Seconds

    from ._address import Bound

logger = logging.getLogger("memenpsf")

# How many clients may be introducing themselves at once, and how many of them of one user; further
# ones wait in their user's queue.  A guess, against clients that connect and say nothing: each
# costs this side a segment meanwhile.
MAX_PENDING = 64
MAX_PENDING_PER_UID = 32

# How many clients wait in the queues, of all users.  Each holds one descriptor.  A guess: an eighth
# of the usual 1024.
GUESTS = 128

# How long a handshake has, in seconds, before it may have to give its place to a client of a user
# with fewer of them.  A guess: an honest client needs milliseconds.
GRACE = 0.2

# How long to leave further clients in the backlog, in seconds, when a descriptor or memory was
# short for one: trying again at once would only burn time.
BACK_OFF = 0.05


# So many lines say, within so many seconds, why clients were not served; of more, only how many.
LOG_LINES = 20
LOG_SECONDS = 10.0
_MOST_CHARACTERS = 500  # of what an exception says, which may quote what a client sent

# How long a user rests, in seconds, whose client began a handshake that came to nothing (and longer
# from the second on: see Conduct).  Such handshakes cost half a millisecond each.  Fifty of them a
# second, at most, are too few to be seen in the 99th percentile of a client that does more than ten
# thousand round trips.
RESPITE = 0.02

# How many clients a turn takes from the backlog, and how long the listener pauses, in seconds, for
# each that was turned away before a handshake: some 25 µs of work each.  Many at once and then a
# long pause delay one round trip of a thousand by a millisecond; a few at a time would delay most of
# them.  At full speed, a backlog of 128 is gone within 0.1 s.
ACCEPTS_PER_TURN = 32
PAUSE = 0.0006

# How many clients may be refused in one turn.
REFUSALS_PER_TURN = 16

# How often a server looks whether its socket file is still there, in seconds.
LOOK_AFTER_FILE = 60.0

_MOST = 1 << 62  # of anything

_SLICE = 3600.0  # seconds; poll() cannot wait much longer at once

# What one client can cause on its way in; it is refused, or not served, and the others are.
CAUSED_BY_ONE = (QueueError, OSError, MemoryError)

_OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)  # of this process, of the system


def _limit(what: str, given: int) -> int:
    given = checked_number(what, given, _MOST)
    if given == 0:
        raise ValueError(f"{what} is at least 1, not 0")
    return given


def _spare() -> socket.socket | None:
    """Open a descriptor to close when none is left; None if none is left already.

    A file of its own, not a duplicate: those of the whole system are limited as well.
    """
    try:
        return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError:
        return None


def one_line(error: BaseException) -> str:
    """Return what an exception says, or its name, on one line that is not too long."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 (whatever the class of a user does)
        text = ""
    text = text or type(error).__name__
    if len(text) > _MOST_CHARACTERS:
        text = text[:_MOST_CHARACTERS] + "…"
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class LimitedLog(Owner):
    """Lines of one kind that clients can cause: a storm of them does not fill the log."""

    def __init__(self, address: object, level: int, others: str) -> None:
        """`others` says what those are that were only counted, as in "3 more clients ended"."""
        self._address = address
        self._level = level
        self._others = others
        self._lock = threading.RLock()  # close() may be called by a signal handler in tell()
        self._since = -math.inf
        self._lines = 0
        self._untold = 0

    def tell(self, text: str, error: BaseException | None = None) -> None:
        """Log a line, with the traceback of an error if one is given; or only count it."""
        now = monotonic()
        untold = 0
        with self._lock:
            if now - self._since >= LOG_SECONDS:
                untold, self._untold = self._untold, 0
                self._since, self._lines = now, 0
            told = self._lines < LOG_LINES
            if told:
                self._lines += 1
            else:
                self._untold += 1
        self._tell_number(untold)
        if told:
            logger.log(self._level, "%s: %s", self._address, text, exc_info=error)

    def close(self) -> None:
        """Log how many were only counted."""
        with self._lock:
            untold, self._untold = self._untold, 0
        self._tell_number(untold)

    def _tell_number(self, untold: int) -> None:
        if untold:
            logger.log(self._level, "%s: %d more %s", self._address, untold, self._others)


class RefusalLog(LimitedLog):
    """Says why clients were not served."""

    def __init__(self, address: object) -> None:
        super().__init__(address, logging.WARNING, "clients refused or not served")

    def add(self, error: Exception) -> None:
        """Log it, or only count it."""
        what = "refused" if isinstance(error, QueueError) else "not served"
        with contextlib.suppress(MemoryError):  # which is what it may be about
            self.tell(f"client {what}: {one_line(error)}")


class Reception(Owner):
    """A bound address and its clients until they have introduced themselves; it never waits.

    But to bind may wait, for other servers that start.
    """

    _instead = "let the other process listen at an address of its own"

    OPTIONS: ClassVar[frozenset[str]]
    """The names of the options of _set_up() that are not of Terms as well."""

    bound: Bound
    log: RefusalLog
    _reserve: socket.socket | None
    _look_after_file: float

    def __init__(self, address: str | os.PathLike[str], record: Any, **options: Any) -> None:
        self._set_up(address, record, **options)
        drive(self.binding())

    @classmethod
    def unbound(cls, address: str | os.PathLike[str], record: Any, **options: Any) -> Reception:
        """Check the arguments, and no more: binding() is the next call."""
        self = cls.__new__(cls)
        self._set_up(address, record, **options)
        return self

    def binding(self) -> Generator[float, None, None]:
        """Bind the address: a plan, which yields for how many seconds to wait."""
        self.bound = yield from starting(self._where, self._permissions)
        try:
            self.log = RefusalLog(self.bound.address)
            self._look_after_file = monotonic() + LOOK_AFTER_FILE
            self._reserve = _spare()
        except BaseException:  # no memory, or Ctrl-C
            self.bound.close()
            raise

    def _set_up(
        self,
        address: str | os.PathLike[str],
        record: Any,
        *,
        mode: int | None = None,
        group: int | str | None = None,
        role: str = "server",
        max_pending: int | None = None,
        max_pending_per_uid: int | None = None,
        max_connections_per_uid: int | None = None,
        max_bytes_per_uid: int | None = None,
        max_descriptors_per_uid: int | None = None,
        **options: Any,
    ) -> None:
        check_options("listen", options, self.OPTIONS)
        self._where = where = resolve(address)
        self._permissions = checked_permissions(where, mode, group)
        if "allow_uids" not in options and (uids := where.default_uids) is not None:
            options["allow_uids"] = uids
        self.role = checked_role(role)
        self.terms = Terms(record, BOTH_WAYS, **options)
        if max_pending is None:
            max_pending = MAX_PENDING
        if max_pending_per_uid is None:
            max_pending_per_uid = MAX_PENDING_PER_UID
        if max_bytes_per_uid is None:
            max_bytes_per_uid = max(64 * self.terms.max_segment, 2 * self.terms.segment_size)
        if max_connections_per_uid is not None:
            max_connections_per_uid = _limit("max_connections_per_uid", max_connections_per_uid)
        self._max_pending = _limit("max_pending", max_pending)
        self._max_pending_per_uid = _limit("max_pending_per_uid", max_pending_per_uid)
        if max_descriptors_per_uid is not None:
            max_descriptors_per_uid = _limit("max_descriptors_per_uid", max_descriptors_per_uid)
        self.quota = Quota(
            max_connections_per_uid,
            _limit("max_bytes_per_uid", max_bytes_per_uid),
            max_descriptors_per_uid,
            self.terms.descriptors_per_message,
        )
        self.pending: list[Opening] = []
        self._guests = Guests(GUESTS)
        self._conduct = Conduct(RESPITE)
        self._outcomes: deque[Endpoint | Exception] = deque()
        self._resume: float | None = None  # the monotonic() until which further clients wait
        self.accepts_per_turn = ACCEPTS_PER_TURN
        self.per_turn = BACKLOG  # how many handshakes a turn begins, and takes a step on, at most
        self.refused = 0
        self._refused_or_gone = 0
        self._turned_away = 0  # since the last pause: clients that got no handshake
        self.closed = False

    def turn(self) -> Endpoint | None:
        """Do what can be done now; return the next client, or None if none is ready.

        Raises for a client that was refused or broke the protocol.  One that left before it said
        anything counts as nobody: so does a server that looks whether this one lives.
        """
        if self.closed:
            raise Closed("this side has closed the listener")
        self._warn_if_lost()
        if self._reserve is None:
            self._reserve = _spare()
        if self._resume is not None and monotonic() >= self._resume:
            self._resume = None
        self._let_in()
        self._hear_guests()
        self._seat_guests()
        for opening in self._due():
            self._attempt(opening)
        if not self._outcomes:
            return None
        outcome = self._outcomes.popleft()
        if isinstance(outcome, Exception):
            self.refused += 1
            raise outcome
        return outcome

    def _warn_if_lost(self) -> None:
        """Say, once, that no client can find this server any more.

        Somebody has removed its file; another server may have bound the path since.
        """
        now = monotonic()
        if now < self._look_after_file:
            return
        self._look_after_file = now + LOOK_AFTER_FILE
        if self.bound.lost:
            self._look_after_file = math.inf
            logger.warning(
                "%s: the socket file was removed, or replaced by another server's: no new client "
                "finds this server, which has to be started again",
                self.bound.address,
            )

    # -- from the backlog to a handshake ---------------------------------------------------------
    #
    # What is in the backlog is taken out at once, whoever has sent it: to accept a client and to
    # look at its user id costs microseconds.  A client of another user may be the next one there.

    def _let_in(self) -> None:
        """Take clients from the backlog, up to some a turn."""
        if self._outcomes:
            return
        for _ in range(self.accepts_per_turn):
            if not self._accept() or len(self._outcomes) >= REFUSALS_PER_TURN:
                break

    def _accept(self) -> bool:
        """Let the next client in; False if there is none."""
        try:
            sock, _ = self.bound.sock.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return False
        except OSError as error:
            if self._resume is None:
                self._do_without(error)
            return False
        self._resume = None
        try:
            share = self.quota.open(peer_credentials(sock).uid)
        except CAUSED_BY_ONE as error:
            refuse(sock, error)
            self._turned_away += 1
            self._came_to_nothing(error)
            return True
        guest = Guest(sock, share, deadline_of(self.terms.timeout))
        if self._is_there(guest) and (excess := self._guests.add(guest)) is not None:
            self._turn_away(excess, "too many clients wait for a handshake here")
        return True

    def _is_there(self, guest: Guest) -> bool:
        """Note whether a client has said something; if it has left, close its socket.

        Then it costs no segment, however many such there are.
        """
        try:
            guest.spoken = bool(guest.sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except BlockingIOError:
            return True
        except OSError:
            pass  # it has left, too
        if not guest.spoken:
            drop_socket(guest.sock)
            guest.share.close()
            self._turned_away += 1
            self._came_to_nothing()
        return guest.spoken

    def _hear_guests(self) -> None:
        """See which of the silent guests have said something, and which have left."""
        silent = {guest.sock.fileno(): guest for guest in tuple(self._guests) if not guest.spoken}
        if not silent:
            return
        poll = select.poll()
        for fd in silent:
            poll.register(fd, select.POLLIN)
        for fd, _ in poll.poll(0):
            if not self._is_there(silent[fd]):
                self._guests.remove(silent[fd])

    def _seat_guests(self) -> None:
        """Begin handshakes of those for whom there is a place, and refuse who waited too long."""
        now = monotonic()
        for uid in self.quota.take_unserved():
            self._conduct.offended(uid, now)
        if not self._guests:
            return
        for _ in range(self.per_turn):
            places = self._places()
            guest = self._guests.take(lambda each: self._next_place(each, places, now) <= now)  # noqa: B023
            if guest is None:
                break
            if places.all_taken:
                self._displace(places.victim(guest.share.uid))
            self._begin(guest)
        for guest in self._guests.late(now):
            self._guests.remove(guest)
            uid = guest.share.uid
            self._turn_away(
                guest,
                f"of uid {uid} {self._count(uid)} handshakes are under way here, of all users "
                f"{len(self.pending)}, and no place became free in time",
            )

    def _turn_away(self, guest: Guest, why: str) -> None:
        guest.share.close()
        error = LimitRefused(why)
        refuse(guest.sock, error)
        self._turned_away += 1
        self._came_to_nothing(error)

    def _displace(self, uid: int | None) -> None:
        """End the oldest handshake of a user, for one of another user."""
        opening = next((each for each in tuple(self.pending) if each.peer.uid == uid), None)
        if opening is None:
            return  # it has ended meanwhile, in a signal handler that accepts
        error = LimitRefused(
            f"uid {uid} has {self._count(opening.peer.uid)} of {len(self.pending)} handshakes "
            "under way here, and gives a place to another user"
        )
        self.pending.remove(opening)
        opening.abandon(error)
        self._came_to_nothing(error, opening.peer.uid)

    def _begin(self, guest: Guest) -> None:
        try:
            opening = Opening(guest.sock, self.terms, guest.share)
        except CAUSED_BY_ONE as error:
            self._came_to_nothing(error, guest.share.uid)
        else:
            opening.deadline = guest.deadline
            self.pending.append(opening)

    def _count(self, uid: int) -> int:
        return sum(opening.peer.uid == uid for opening in tuple(self.pending))

    def _places(self) -> Places:
        begun = ((opening.peer.uid, opening.begun) for opening in tuple(self.pending))
        return Places(self._max_pending, self._max_pending_per_uid, begun)

    def _next_place(self, guest: Guest, places: Places, now: float) -> float:
        """Return the monotonic() from which the handshake of a client may begin."""
        rest = self._conduct.rests_until(guest.share.uid)
        return max(rest, places.next_for(guest, now, RESPITE, GRACE))

    def _due(self) -> list[Opening]:
        """Return the handshakes that can go on, or whose time is over: at most so many a turn."""
        poll = select.poll()
        for opening in tuple(self.pending):
            poll.register(opening, opening.events)
        ready = {fd for fd, _ in poll.poll(0)}
        now = monotonic()
        due = (
            each for each in tuple(self.pending) if each.fileno() in ready or now >= each.deadline
        )
        return list(islice(due, self.per_turn))

    def _attempt(self, opening: Opening) -> None:
        over = True  # also if a signal handler raises: it may be closed, or have become an endpoint
        try:
            endpoint = opening.step()
            if endpoint is None:
                over = False
            else:
                self._outcomes.append(endpoint)
        except PeerDied:
            self._came_to_nothing(None, opening.peer.uid)
        except CAUSED_BY_ONE as error:
            self._came_to_nothing(error, opening.peer.uid)
        finally:
            # Nothing that can be interrupted comes first: one that is over must not stay.
            if over:
                self.pending.remove(opening)

    def _came_to_nothing(self, error: Exception | None = None, uid: int | None = None) -> None:
        """Count a client that did not get in; `uid` had a handshake for it, and rests now."""
        self._refused_or_gone += 1
        if uid is not None:
            self._conduct.offended(uid, monotonic())
        if error is not None:
            self._outcomes.append(error)

    @property
    def barren(self) -> int:
        """How many clients did not get in, or for nothing: no record went either way."""
        return self._refused_or_gone + self.quota.unserved

    def respite(self) -> float:
        """Return for how many seconds to leave the listener alone; once for each client.

        Clients that get no handshake cost next to nothing to make, and there may be as many as
        somebody likes.  So they do not have all the time of the interpreter.
        """
        if self._outcomes or not self._turned_away:
            return 0.0
        turned_away, self._turned_away = self._turned_away, 0
        return PAUSE * turned_away

    # -- when descriptors are short --------------------------------------------------------------
    #
    # accept() fails, and leaves the client in the backlog: the listening socket stays readable,
    # and who polls it would turn in circles.  So one descriptor is kept in reserve.  It is given up
    # for a moment, to let that client in, tell it why, and close it; the next ones wait a while.
    # Meanwhile the socket is not polled, and a turn for another reason tries accept() once.

    def _do_without(self, error: OSError) -> None:
        """Refuse the client that could not be accepted, and let the others wait."""
        if self.closed:
            return  # by another thread, which has shut the socket down
        if error.errno in _OUT_OF_DESCRIPTORS and self._reserve is not None:
            self._reserve.close()
            try:
                sock, _ = self.bound.sock.accept()
                refuse(sock, error)
            except BlockingIOError:
                return  # accept() looks for a descriptor before it looks for a client
            except OSError:
                pass  # another thread was faster
            finally:
                self._reserve = _spare()
        self._resume = monotonic() + BACK_OFF
        self._outcomes.append(error)

    # -- for who waits ---------------------------------------------------------------------------

    def interests(self) -> Iterator[tuple[int, int]]:
        """Yield descriptors to poll and for what, before the next turn."""
        events = select.POLLIN if self._resume is None else 0  # 0: only that it is closed
        yield self.bound.sock.fileno(), events
        for opening in tuple(self.pending):
            yield opening.fileno(), opening.events
        for guest in tuple(self._guests):
            if not guest.spoken:
                yield guest.sock.fileno(), select.POLLIN

    def next_deadline(self) -> float:
        """Return the monotonic() at which a turn is due even if nothing happens."""
        deadlines = [self._look_after_file, math.inf if self._resume is None else self._resume]
        deadlines += [opening.deadline for opening in tuple(self.pending)]
        if self._guests:
            now, places = monotonic(), self._places()
            first = self._guests.next_of_each()
            deadlines += [self._next_place(guest, places, now) for guest in first]
            deadlines += [guest.deadline for guest in tuple(self._guests)]
        return min(deadlines)

    def close(self) -> None:
        """Stop listening, and drop the clients that nobody has accepted."""
        self.closed = True
        if self.bound.ours:
            self.log.close()
        self.bound.close()
        if self._reserve is not None:
            self._reserve.close()
        for guest in self._guests.clear():
            if self.bound.ours:
                drop_socket(guest.sock)
            else:
                guest.sock.close()
            guest.share.close()
        for opening in tuple(self.pending):
            opening.abandon()
        for outcome in tuple(self._outcomes):
            if not isinstance(outcome, Exception):
                outcome.close()
        self.pending.clear()
        self._outcomes.clear()


Reception.OPTIONS = frozenset(Reception._set_up.__kwdefaults__ or ())  # noqa: SLF001 (one module)


class Listener(Owner):
    """A server's address: gives an Interface for each client.

    Clients introduce themselves side by side, so a slow or hostile one delays nobody.  Any
    number of threads may accept.  Made by listen().
    """

    _instead = Reception._instead  # noqa: SLF001 (one module)

    def __init__(self, reception: Reception) -> None:
        self._reception = reception
        self._lock = threading.RLock()
        # Whether who has the lock is in the middle of something: then a signal handler, which has
        # it as well, leaves all as it is.
        self._busy = False

    @property
    def address(self) -> str:
        """Where it listens: a path, or @name."""
        return str(self._reception.bound.address)

    @property
    def refused(self) -> int:
        """How many clients were refused or failed to introduce themselves."""
        return self._reception.refused

    def accept(self, timeout: Seconds = None) -> Interface:
        """Return the next client; raise TimeoutError if none came in time.

        Raises Refused, CorruptPeer or HandshakeTimeout for a client that did not get in, OSError
        when a resource is short: the listener stays usable.  Closed, once it is closed.
        ConcurrentUse in a signal handler that has interrupted accept() of this very listener; if it
        only waited, the handler can accept.
        """
        deadline = deadline_of(timeout)
        patience = -1 if timeout is None else min(seconds_of(timeout), threading.TIMEOUT_MAX)
        if not self._lock.acquire(timeout=patience):
            raise TimeoutError(f"no client within {shown_seconds(timeout)}")
        if self._busy:
            self._lock.release()
            raise ConcurrentUse(
                "this signal handler has interrupted accept() of the same listener: return from "
                "it, and accept afterwards"
            )
        try:
            self._busy = True
            self._rest(deadline)
            while (endpoint := self._reception.turn()) is None:
                if monotonic() >= deadline:
                    raise TimeoutError(f"no client within {shown_seconds(timeout)}")
                self._rest(deadline)
                self._wait(deadline)
        finally:
            self._busy = False
            try:
                if self._reception.closed:  # by a signal handler, perhaps, which could not go on
                    self._reception.close()
            finally:
                self._lock.release()
        try:
            interface = Interface.of(endpoint)
            interface.role = self._reception.role
        except BaseException:  # no memory, or Ctrl-C
            endpoint.close()
            raise
        return interface

    def _rest(self, deadline: float) -> None:
        seconds = self._reception.respite()
        if seconds and not self._reception.closed:
            self._poll(
                [(self._reception.bound.sock.fileno(), 0)],
                min(deadline, monotonic() + seconds),
            )

    def _wait(self, deadline: float) -> None:
        due = min(deadline, self._reception.next_deadline())
        self._poll(self._reception.interests(), due)

    def _poll(self, interests: Iterable[tuple[int, int]], deadline: float) -> None:
        poll = select.poll()
        for fd, events in interests:
            poll.register(fd, events)
        left = max(0, math.ceil(min(deadline - monotonic(), _SLICE) * 1000))
        try:
            self._busy = False
            poll.poll(left)
        finally:
            self._busy = True

    def __iter__(self) -> Iterator[Interface]:
        """Yield clients until the listener is closed.

        Those refused, or not served because a resource is short, are logged and passed over, so
        that no client ends the loop; of a storm of them, the first 20 within 10 s, and the number
        of the others.
        """
        while True:
            try:
                interface = self.accept()
            except Closed:
                return
            except ConcurrentUse:  # by this loop, in a signal handler: it would go on for ever
                raise
            except CAUSED_BY_ONE as error:
                self._reception.log.add(error)
            else:
                yield interface

    def close(self) -> None:
        """Stop listening and remove the socket file; the connections accepted live on.

        Idempotent; threads that wait in accept() get Closed.  In a forked child it only closes
        the child's copy of the descriptor.
        """
        reception = self._reception
        reception.closed = True
        if not reception.bound.ours:
            reception.close()
            return
        reception.bound.remove_file()  # while it listens: a dead server's is anybody's
        with contextlib.suppress(OSError):
            reception.bound.sock.shutdown(socket.SHUT_RDWR)  # wakes who accepts
        with self._lock:
            # This may be a signal handler in the middle of accept(), which then does it in the end.
            if not self._busy:
                reception.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._reception.closed else "open"
        return f"<Listener {self.address}: {state}>"


def listen(address: str | os.PathLike[str], record: Any, **options: Any) -> Listener:
    """Listen at an address: a bare name, a path, or @name (abstract).

    Options are those of Interface, for each client.  The socket file of a dead server is
    replaced; a live server's is not: OSError EADDRINUSE.  An abstract address admits this user
    and root only, unless `allow_uids` says otherwise.

    `mode` of the socket file says who may connect: write permission is asked for.  It is 0o600,
    this user and root, or 0o660 if a `group` is given (a name or a gid; this process must be in it,
    or be root); both stand before the first client can come.  They are for addresses with a file:
    ValueError for an abstract one.

    A bare name is for this user alone (by effective uid): the file is in /run/user/UID/memenpsf
    where that runtime directory exists and belongs to this user, else in /tmp/memenpsf-UID;
    $MEMENPSF_RUNTIME_DIR/memenpsf replaces both.  One that somebody else has made is not used:
    PermissionError if there is no other.  Servers of one user start one at a time: TimeoutError
    if another one has not started within a second.

    What the clients of one user (by uid, this one and root too) may have at once:
    `max_connections_per_uid` (a sixth of the descriptors that this process may open, so 170 if
    those are 1024), handshakes under way among them included; `max_bytes_per_uid`, the memory of
    all their segments and of this side's for them, without messages outside the rings (64 times
    `max_segment`, so 8 GiB, or twice this side's segment, whichever is larger);
    `max_pending_per_uid`, handshakes under way (32).  A client over a limit is told so
    (LimitRefused) before memory is made or mapped for it, and counted as refused; only for its
    place in a handshake it waits, as long as `timeout` allows.

    `max_descriptors_per_uid` (seven eighths of those that this process may open): 5 for each
    connection, those that came with messages and wait to be received, and those that were sent and
    that the client has not read from its socket.  A connection that would exceed it waits, as it
    does for lack of space: what the client sends stays in its socket, what is sent to it waits in
    xmit.  One message at a time always goes through.  Descriptors that recv_message() has handed on
    are the program's, and do not count.

    `max_pending` handshakes can be under way for all users (64).  Where all are, the user with most
    gives up its oldest for a user with fewer; further clients (128) wait, and users take turns.  A
    user whose clients came to nothing, again and again, waits longer.  The clients of one user
    cannot be told apart: who runs hostile and honest ones under one user id has both wait.
    """
    return Listener(Reception(address, record, **options))
