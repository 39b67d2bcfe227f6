"""PendingClients: the clients of a listener until their handshakes are done, for every door.

It never waits: it does what can be done now, and returns what to wait for.

The file is long because it holds a client's whole way in order: from the backlog to a handshake,
and to a connection or a refusal.  Its parts share one queue of outcomes and one account of clients
turned away, so cutting it would only add a second class with both.  _candidates.py decides whose
turn it is, _quota.py says what a user may have.
"""

from __future__ import annotations

import math
import select
import socket
from collections import deque
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from ipcqueue import Closed, LimitRefused, PeerDied, QueueError
from ipcqueue.lowlevel import (
    Opening,
    Owner,
    Terms,
    Wait,
    advance,
    deadline_of,
    drive,
    drop_socket,
    monotonic,
    peer_credentials,
    refuse,
    shown_record,
)

from ._address import BACKLOG, checked_permissions, resolve, starting
from ._candidates import Candidate, Candidates, Conduct, Places
from ._given import Given, checked_listening, taking
from ._log import ConnectionLog, RefusalLog, logger
from ._options import BOTH_WAYS, check_listener_options, checked_role
from ._quota import Quota, checked_quota
from ._reserve import Reserve
from ._shares import Shares

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from ipcqueue.lowlevel import Endpoint

    from ._address import Bound
    from ._options import ListenAt
    from ._thread_quota import ThreadQuota

# The number of clients in the queues, of all users.  Each holds one descriptor.  A guess: an eighth
# of the usual 1024.
MAX_CANDIDATES = 128

# Seconds that a handshake has for sure; after that it may lose its place to a client of a user with
# fewer handshakes.  A guess: an honest client needs milliseconds.
GRACE = 0.2

# Seconds to leave further clients in the backlog after a descriptor or memory was short: trying
# again at once would only burn time.
BACK_OFF = 0.05

# Seconds that a user rests after a failed handshake; longer from the second one on (see Conduct).
# Each such handshake costs half a millisecond.  At most fifty a second are too few to be seen in
# the 99th percentile of a client that does more than ten thousand round trips.
COOLDOWN = 0.02

# The number of clients that a turn takes from the backlog, and the seconds that the listener pauses
# for each client turned away before a handshake; each costs about 25 µs.  Many at once and then one
# long pause delay one round trip in a thousand by a millisecond; a few at a time would delay most
# round trips.  At full speed, a backlog of 128 is empty within 0.1 s.
ACCEPTS_PER_TURN = 32
PAUSE = 0.0006

# The largest number of refusals in one turn.
REFUSALS_PER_TURN = 16

# Seconds between two checks whether the socket file is still there.
LOOK_AFTER_FILE = 60.0

_QUOTA = Quota()
_PEEK = int(socket.MSG_PEEK | socket.MSG_DONTWAIT)

# Errors that one client can cause on its way in: it is refused or not served, and the others are.
CAUSED_BY_ONE = (QueueError, OSError, MemoryError)


class PendingClients(Owner):
    """A bound address and its clients until their handshakes are done; it never waits.

    Only binding may wait: for other servers of this user that are starting.
    """

    _instead = (
        "let the other process listen by itself: give it a listening socket, which listen() takes, "
        "or an address of its own"
    )

    bound: Bound
    log: RefusalLog
    _connected: ConnectionLog
    _reserve: Reserve
    _look_after_file: float

    def __init__(self, address: ListenAt, record: Any, **options: Any) -> None:
        with taking(address):
            self._set_up(address, record, **options)
        drive(self.binding())

    @classmethod
    def unbound(cls, address: ListenAt, record: Any, **options: Any) -> PendingClients:
        """Check the arguments only; the caller has to run binding() next."""
        self = cls.__new__(cls)
        with taking(address):
            self._set_up(address, record, **options)
        return self

    def binding(self) -> Generator[Wait, bool, None]:
        """Bind the address, unless a listening socket was given: a plan."""
        if self._given is None:
            self.bound = yield from starting(self._where, self._permissions)
        else:
            with taking(self._given):
                self.bound = Given(self._where, self._given)
        try:
            self.log = RefusalLog(self.bound.address)
            self._connected = ConnectionLog(self.bound.address)
            self._look_after_file = monotonic() + LOOK_AFTER_FILE
            self._reserve = Reserve()
            logger.debug("%s: listening, %s", self.bound.address, shown_record(self.terms.codec))
        except BaseException:  # no memory, or Ctrl-C
            self.bound.close()
            raise

    def _set_up(
        self,
        address: ListenAt,
        record: Any,
        *,
        mode: int | None = None,
        group: int | str | None = None,
        role: str = "server",
        quota: Quota = _QUOTA,
        **options: Any,
    ) -> None:
        check_listener_options("listen", options)
        checked_quota(quota)
        self._given = address if isinstance(address, socket.socket) else None
        if isinstance(address, socket.socket):
            where = checked_listening(address, mode, group)
        else:
            where = resolve(address)
            self._permissions = checked_permissions(where, mode, group)
        self._where = where
        if "allow_uids" not in options and (uids := where.default_uids) is not None:
            options["allow_uids"] = uids
        self.role = checked_role(role)
        self.terms = Terms(record, BOTH_WAYS, **options)
        self._max_pending = quota.places
        self._max_pending_per_uid = quota.pending
        self.max_threads = quota.threads
        self.thread_quota: ThreadQuota | None = None  # set by who serves with threads
        largest = max(64 * self.terms.max_segment, 2 * self.terms.segment_size)
        self.quota = Shares(
            quota.connections,
            largest if quota.bytes is None else quota.bytes,
            quota.descriptors,
            self.terms.descriptors_per_message,
        )
        self.handshakes: list[Opening] = []
        self._candidates = Candidates(MAX_CANDIDATES)
        self._conduct = Conduct(COOLDOWN)
        self._outcomes: deque[Endpoint | Exception] = deque()
        self._resume: float | None = None  # further clients wait until this monotonic()
        self.accepts_per_turn = ACCEPTS_PER_TURN
        self.per_turn = BACKLOG  # the largest number of handshakes that a turn begins or advances
        self.refused = 0
        self._refused_or_gone = 0
        self.rests_until = -math.inf  # this monotonic(), for those who do not wait in next_client()
        self._turned_away = 0  # since the last pause: clients that got no handshake
        self.closed = False
        self.watchers: set[Callable[[], None]] = set()
        """What to call once `closed` is set: polling the socket does not tell it for sure."""

    def next_client(self, deadline: float = math.inf) -> Generator[Wait, bool, Endpoint | None]:
        """Return the next client: a plan.  None at the deadline.

        Raises the errors of turn().
        """
        yield from self._rest(deadline)
        while (endpoint := self.turn()) is None:
            if monotonic() >= deadline:
                return None
            yield from self._rest(deadline)
            if not self.closed:  # meanwhile
                yield self._wait_for(list(self.interests()), min(deadline, self.next_deadline()))
        return endpoint

    def _rest(self, deadline: float) -> Generator[Wait, bool, None]:
        seconds = self.cooldown()
        if seconds and not self.closed:
            yield self._wait_for(self.bound.interests(0), min(deadline, monotonic() + seconds))

    @staticmethod
    def _wait_for(interests: list[tuple[int, int]], until: float) -> Wait:
        return Wait(max(0.0, until - monotonic()), interests=interests)

    def turn(self) -> Endpoint | None:
        """Do what can be done now; return the next client, or None if none is ready.

        Raises the error of a client that was refused or broke the protocol.  A client that left
        before it sent anything is ignored: another server may only have checked whether this one
        lives.
        """
        self.work()
        if not self._outcomes:
            return None
        outcome = self._outcomes.popleft()
        if isinstance(outcome, Exception):
            self.refused += 1
            raise outcome
        return outcome

    def work(self) -> bool:
        """Do what can be done now; return whether turn() would return a client or raise an error.

        Raises Closed.
        """
        if self.closed:
            raise Closed("this side has closed the listener")
        self._warn_if_lost()
        self._reserve.refill()
        if self._resume is not None and monotonic() >= self._resume:
            self._resume = None
        self._let_in()
        self._hear_candidates()
        self._begin_handshakes()
        for opening in self._due():
            self._attempt(opening)
        return bool(self._outcomes)

    def _warn_if_lost(self) -> None:
        """Log once that no client can find this server any more.

        That happens if somebody removes its file; another server may have bound the path since.
        """
        now = monotonic()
        if now < self._look_after_file:
            return
        self._look_after_file = now + LOOK_AFTER_FILE
        if self.bound.lost:
            self._look_after_file = math.inf
            logger.warning(
                "%s: the socket file was removed, or replaced by another server's: new clients "
                "cannot find this server; start it again",
                self.bound.address,
            )

    # -- from the backlog to a handshake ---------------------------------------------------------
    #
    # All clients are taken from the backlog at once: accepting one and reading its user id takes
    # microseconds, and the next one may be of another user.

    def _let_in(self) -> None:
        """Take clients from the backlog, at most accepts_per_turn of them."""
        if self._outcomes:
            return
        for _ in range(self.accepts_per_turn):
            if not self._accept() or len(self._outcomes) >= REFUSALS_PER_TURN:
                break

    def _accept(self) -> bool:
        """Accept the next client; False if there is none."""
        try:
            sock, _ = self.bound.sock.accept()
        except (BlockingIOError, ConnectionAbortedError):
            if self.bound.is_shut_down and not self.closed:
                self._end_of_clients()
            return False
        except OSError as error:
            if self._resume is None:
                self._do_without(error)
            return False
        self._resume = None
        try:
            uid = peer_credentials(sock).uid
            if self.thread_quota is not None:
                self.thread_quota.check(uid, self._pending_uids())
            share = self.quota.open(uid)
        except CAUSED_BY_ONE as error:
            refuse(sock, error)
            self._turned_away += 1
            self._came_to_nothing(error)
            return True
        candidate = Candidate(sock, share, deadline_of(self.terms.timeout))
        if self._is_there(candidate) and (excess := self._candidates.add(candidate)) is not None:
            self._turn_away(excess, "too many clients wait for a handshake here")
        return True

    def _end_of_clients(self) -> None:
        """Close, because another process that shares the listening socket has shut it down."""
        logger.warning("%s: somebody has shut down the listening socket", self.bound.address)
        self.close()

    def _pending_uids(self) -> Iterator[int]:
        """Yield the user of each client that accept() may return later."""
        yield from (candidate.share.uid for candidate in tuple(self._candidates))
        yield from (opening.peer.uid for opening in tuple(self.handshakes))
        yield from (
            each.peer.uid for each in tuple(self._outcomes) if not isinstance(each, Exception)
        )

    def _is_there(self, candidate: Candidate) -> bool:
        """Whether a client is still connected; note if it has sent something.

        If it has left, close its socket.  So clients that only come and go cost no segments.
        """
        try:
            candidate.spoken = bool(candidate.sock.recv(1, _PEEK))
        except BlockingIOError:
            return True
        except OSError:
            pass  # it has left
        if not candidate.spoken:
            drop_socket(candidate.sock)
            candidate.share.close()
            self._turned_away += 1
            self._came_to_nothing()
        return candidate.spoken

    def _hear_candidates(self) -> None:
        """Find the silent candidates that have sent something or left since the last turn."""
        silent = {
            candidate.sock.fileno(): candidate
            for candidate in tuple(self._candidates)
            if not candidate.spoken
        }
        if not silent:
            return
        poll = select.poll()
        for fd in silent:
            poll.register(fd, select.POLLIN)
        for fd, _ in poll.poll(0):
            if not self._is_there(silent[fd]):
                self._candidates.remove(silent[fd])

    def _begin_handshakes(self) -> None:
        """Begin handshakes while there are places; refuse clients that have waited too long."""
        now = monotonic()
        for uid in self.quota.take_unserved():
            self._conduct.offended(uid, now)
        if not self._candidates:
            return
        for _ in range(self.per_turn):
            places = self._places()
            may_begin = partial(self._may_begin, places, now)
            candidate = self._candidates.take(may_begin)
            if candidate is None:
                break
            if places.all_taken:
                self._displace(places.victim(candidate.share.uid))
            self._begin(candidate)
        for candidate in self._candidates.late(now):
            self._candidates.remove(candidate)
            uid = candidate.share.uid
            self._turn_away(
                candidate,
                f"uid {uid} has {self._count(uid)} of {len(self.handshakes)} handshakes under way "
                "here, and no place became free in time",
            )

    def _turn_away(self, candidate: Candidate, why: str) -> None:
        candidate.share.close()
        error = LimitRefused(why)
        refuse(candidate.sock, error)
        self._turned_away += 1
        self._came_to_nothing(error)

    def _displace(self, uid: int | None) -> None:
        """End the oldest handshake of a user, for one of another user."""
        opening = next((each for each in tuple(self.handshakes) if each.peer.uid == uid), None)
        if opening is None:
            return  # a signal handler that called accept() has ended it meanwhile
        error = LimitRefused(
            f"uid {uid} has {self._count(opening.peer.uid)} of {len(self.handshakes)} handshakes "
            "under way here, and loses one to another user"
        )
        self.handshakes.remove(opening)
        opening.abandon(error)
        self._came_to_nothing(error, opening.peer.uid)

    def _begin(self, candidate: Candidate) -> None:
        try:
            opening = Opening(candidate.sock, self.terms, candidate.share)
        except CAUSED_BY_ONE as error:
            self._came_to_nothing(error, candidate.share.uid)
        else:
            opening.deadline = candidate.deadline
            opening.address = str(self.bound.address)
            opening.who = "the client"
            self.handshakes.append(opening)

    def _count(self, uid: int) -> int:
        return sum(opening.peer.uid == uid for opening in tuple(self.handshakes))

    def _places(self) -> Places:
        begun = ((opening.peer.uid, opening.begun) for opening in tuple(self.handshakes))
        return Places(self._max_pending, self._max_pending_per_uid, begun)

    def _may_begin(self, places: Places, now: float, candidate: Candidate) -> bool:
        return self._next_place(candidate, places, now) <= now

    def _next_place(self, candidate: Candidate, places: Places, now: float) -> float:
        """Return the monotonic() from which the handshake of a client may begin."""
        rest = self._conduct.rests_until(candidate.share.uid)
        return max(rest, places.next_for(candidate, now, COOLDOWN, GRACE))

    def _due(self) -> list[Opening]:
        """Return the handshakes that can go on or are over time, at most per_turn of them."""
        poll = select.poll()
        for opening in tuple(self.handshakes):
            poll.register(opening, opening.events)
        ready = {fd for fd, _ in poll.poll(0)}
        now = monotonic()
        due = (
            each
            for each in tuple(self.handshakes)
            if each.fileno() in ready or now >= each.deadline
        )
        return list(islice(due, self.per_turn))

    def _attempt(self, opening: Opening) -> None:
        endpoint = None
        over = True  # also if a signal handler raises: it may be closed, or be an endpoint by then
        try:
            endpoint = advance(opening)
            if endpoint is None:
                over = False
            else:
                self._outcomes.append(endpoint)
        except PeerDied:
            self._came_to_nothing(None, opening.peer.uid)
        except CAUSED_BY_ONE as error:
            self._came_to_nothing(error, opening.peer.uid)
        finally:
            # First in this block, before anything that can be interrupted: it must not stay.
            if over:
                self.handshakes.remove(opening)
        if endpoint is not None:
            self._connected.add(endpoint)

    def _came_to_nothing(self, error: Exception | None = None, uid: int | None = None) -> None:
        """Count a client that did not get in; if it had begun a handshake, its `uid` rests now."""
        self._refused_or_gone += 1
        if uid is not None:
            self._conduct.offended(uid, monotonic())
        if error is not None:
            self._outcomes.append(error)

    @property
    def fruitless(self) -> int:
        """How many clients did not get in, or got in but exchanged no record."""
        return self._refused_or_gone + self.quota.unserved

    def cooldown(self) -> float:
        """Return the seconds for which to leave the listener alone; each client counts once.

        A client that gets no handshake costs the process that made it next to nothing, so there can
        be any number of them.  The pause keeps them from taking all the time of the interpreter.
        """
        if self._outcomes or not self._turned_away:
            return 0.0
        turned_away, self._turned_away = self._turned_away, 0
        return PAUSE * turned_away

    # -- when descriptors are short --------------------------------------------------------------
    #
    # One client is refused with the help of the reserve; the next ones wait for BACK_OFF seconds.
    # Meanwhile the listening socket is not polled, but every turn tries accept() once.

    def _do_without(self, error: OSError) -> None:
        """Refuse the client that could not be accepted, and let the others wait."""
        if self.closed:
            return  # another thread has closed the listener and shut the socket down
        if not self._reserve.refuse_next(self.bound.sock, error):
            return
        self._resume = monotonic() + BACK_OFF
        self._outcomes.append(error)

    # -- for the waiting door --------------------------------------------------------------------

    def interests(self) -> Iterator[tuple[int, int]]:
        """Yield the descriptors to poll before the next turn, and the events of each."""
        events = select.POLLIN if self._resume is None else 0  # 0: only that it is closed
        yield from self.bound.interests(events)
        for opening in tuple(self.handshakes):
            yield opening.fileno(), opening.events
        for candidate in tuple(self._candidates):
            if not candidate.spoken:
                yield candidate.sock.fileno(), select.POLLIN

    def next_deadline(self) -> float:
        """Return the monotonic() at which a turn is due even if nothing happens."""
        deadlines = [self._look_after_file, math.inf if self._resume is None else self._resume]
        deadlines += [opening.deadline for opening in tuple(self.handshakes)]
        if self._candidates:
            now, places = monotonic(), self._places()
            first = self._candidates.next_of_each()
            deadlines += [self._next_place(candidate, places, now) for candidate in first]
            deadlines += [candidate.deadline for candidate in tuple(self._candidates)]
        return min(deadlines)

    def end(self) -> None:
        """Have close() to come: wake all who watch."""
        self.closed = True
        if self.bound.ours:
            for wake in tuple(self.watchers):
                wake()

    def close(self) -> None:
        """Stop listening, and drop the clients that accept() has not returned."""
        self.end()
        if self.bound.ours:
            self.log.close()
            self._connected.close()
        self.bound.close()
        self._reserve.close()
        for candidate in self._candidates.clear():
            if self.bound.ours:
                drop_socket(candidate.sock)
            else:
                candidate.sock.close()
            candidate.share.close()
        for opening in tuple(self.handshakes):
            opening.abandon()
        for outcome in tuple(self._outcomes):
            if not isinstance(outcome, Exception):
                outcome.close()
        self.handshakes.clear()
        self._outcomes.clear()
