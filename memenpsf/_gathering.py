"""Gathering: many connections and listeners, and which of them has something; it never waits.

A Member is either queued in `_line`, because it may have something, or it is armed and registered
in one epoll.  A member that has nothing costs nothing until it is woken: by its descriptors, or by
a thread that reads its socket for another purpose (a Watch).

Members take turns: at most QUANTUM records of one, then the next.  After each turn the epoll is
asked who was woken, and those are queued behind the others.  So a member that has a record is
served after at most QUANTUM records of each other member that is ready.

A door calls attempt() until it gives something, and drives round() in between.  A record that was
taken is returned without any call after that, since a signal handler may raise in each of them.

The file is long because who is queued, armed and waited for is one state, behind one lock.
"""

from __future__ import annotations

import contextlib
import math
import operator
import os
import select
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any

from ipcqueue import Closed, DecodeFailed, ForkedUse
from ipcqueue.lowlevel import (
    NOW,
    EventFd,
    Owner,
    RLock,
    Wait,
    leave,
    monotonic,
    persist,
    seconds_of,
    tag_error,
)

from ._members import Member, Turn
from ._pending import CAUSED_BY_ONE
from ._sources import ConnectionSource, ListenerSource, no_member, source_of

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from ipcqueue.lowlevel import Seconds

    from ._sources import Source

# Records of one member in recv_vectored() without a limit.
BATCH = 1024
# Records in one recv_vectored(); members that are left come with the next one.  More do not fit
# into the cache: with 100 members that have BATCH each, this is three times as fast as no bound.
ENOUGH = 8192
# Seconds after which armed members are looked at even if nothing woke them.  It should never find
# anything; statistics().rescues of the member counts when it does.
RESCUE = 1.0
# How many are looked at then, in turn: a look takes 5 µs, and a thousand may be idle.
RESCUED = 100
# Seconds to leave a member alone after an error that is neither its end nor of one record.
REST = 0.05


class Gathering(Owner):
    """The members of a set.  Everything may be called from any thread; tasks have a subclass."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        """Make an empty set; `clock` is that of deadlines."""
        self._clock = clock
        self.closed = False
        self.members: dict[int, Member] = {}  # by id(given)
        self.turn = Turn(None)
        self._woken: deque[Member] = deque()
        self.waking = EventFd()
        self._line: deque[Member] = deque()
        self._out: deque[tuple[Any, Any]] = deque()  # what is to be returned first
        self._next_out = iter(self._out.popleft, None)
        self._polled: deque[list[tuple[int, int]]] = deque()
        self._by_fd: dict[int, Member] = {}
        self._due: dict[Member, float] = {}
        self._rescue = monotonic() + RESCUE
        self._rescued = 0  # how many of the members were looked at in this round
        self._mutex = RLock()
        self._waiting: set[object] = set()  # who polls the epoll
        self._pid = os.getpid()
        self._epoll = select.epoll()
        try:
            self.waking.open()
            self._epoll.register(self.waking, select.EPOLLIN)
        except BaseException:
            persist(self._release)
            raise

    # -- what differs between the doors -----------------------------------------------------------

    def source_of(self, given: Any, wake: Callable[[], None]) -> Source:
        """Return the source that an object is; raise TypeError if it cannot be a member."""
        source = source_of(given, wake, "a ReceiverSet")
        if source is None:
            raise no_member(given, "interfaces, receivers and listeners")
        return source

    def ours(self, error: Exception, given: object) -> Exception:
        """Mark an exception as coming from a member, in the words of the door."""
        tag_error(error, given)
        return error

    # -- members ---------------------------------------------------------------------------------

    def add(self, given: Any, *, adopts: bool = False, own: bool = False) -> None:
        """Add a connection or a listener."""
        self._check_open()
        join = partial(self.add, own=True) if adopts else None
        member = Member(given, self.source_of, self._wake, join=join, own=own)
        if adopts and not isinstance(member.source, ListenerSource):
            raise TypeError(f"clients=True is for listeners, not for {given!r}")
        with self._mutex:
            self._check_open()
            if id(given) in self.members:
                raise ValueError(f"{given!r} is in this set already")
            persist(self._enter, member)

    def _enter(self, member: Member) -> None:
        """Make it one of the members; repeatable."""
        self.members[id(member.given)] = member
        member.wake()

    def _wake(self, member: Member) -> None:
        """Have a member looked at soon; from any thread."""
        self._woken.append(member)
        self.waking.ring()

    def remove(self, given: Any) -> None:
        """Remove a member; raise KeyError if it is none."""
        with self._mutex:
            member = self.members.get(id(given))
            if member is None:
                raise KeyError(given)
            persist(self._drop, member)

    def _drop(self, member: Member) -> None:
        """Do it; each step can be repeated."""
        member.left = True
        if self.turn.member is member:
            self.turn.end()
        self._due.pop(member, None)
        if not self.is_forked():  # the epoll is the parent's, too
            self._unregister(member)
        self.members.pop(id(member.given), None)  # last, as close() finds them there

    def _unregister(self, member: Member) -> None:
        for fd in tuple(member.fds):
            if self._by_fd.get(fd) is member:
                with contextlib.suppress(OSError, ValueError):  # one of them is closed already
                    self._epoll.unregister(fd)
                del self._by_fd[fd]
        member.leave()

    def _check_open(self) -> None:
        if self.is_forked():
            raise ForkedUse("this set belongs to the parent process; a child may only close it")
        if self.closed:
            raise Closed("this side has closed the set")

    def is_forked(self) -> bool:
        """Whether this is a child of the process that made the set."""
        return os.getpid() != self._pid

    # -- taking ----------------------------------------------------------------------------------

    def attempt(self) -> tuple[Any, Any] | None:
        """Take a record; None if no member has any.

        Instead of a record there may be the exception that took its place.  Raises Closed.
        """
        while True:
            turn = self.turn
            # After a record was taken comes no call that a signal handler could interrupt.
            try:
                for got in turn.taken:
                    return got
                if turn.member is not None and turn.member.promising:
                    for given in turn.quantum:
                        if (record := turn.member.take()) is not None:
                            return given, record
                        break
            except Exception as error:  # noqa: BLE001 (returned)
                self.note(turn.member, error)
            try:
                for event in self._next_out if self._out else ():
                    return event
            except IndexError:
                pass  # another thread was faster
            halfway = turn.member is not None and turn.member.is_halfway()
            if not self._advance(turn) or halfway:
                return None

    def _advance(self, turn: Turn) -> bool:
        """Begin the next turn; False if all sleep."""
        try:
            return self._begin_turn(turn)
        except BaseException:
            persist(self._wake_all)
            raise

    def _wake_all(self) -> None:
        """Wake those who wait: who leaves by an exception may have taken the news of the epoll."""
        with self._mutex:
            if self._waiting:
                self.waking.ring()

    def attempt_many(self, limit: int) -> list[tuple[Any, Any]]:
        """Take up to `limit` records of each member that is ready.

        None of any does not mean that all sleep: round() looks whether they do.
        """
        batches: list[tuple[Any, Any]] = []
        try:
            with self._mutex:
                self._check_open()
                self._collect()
                members = tuple(self._line)
            seen, asleep, count = 0, [], 0
            while seen < len(members) and count < ENOUGH:
                if self._took_nothing(members[seen], limit, batches):
                    asleep.append(members[seen])
                else:
                    count += len(batches[-1][1])
                seen += 1
            self._let_sleep(asleep, seen)
            with contextlib.suppress(IndexError):  # another thread was faster
                while self._out:
                    for given, event in self._next_out:
                        batches += ((given, [event]),)
                        break
        except BaseException:
            persist(self._give_back, batches)
            persist(self._wake_all)
            raise
        return batches

    def _took_nothing(self, member: Member, limit: int, batches: list[tuple[Any, Any]]) -> bool:
        """Take up to `limit` records of a member into `batches`; return whether there were none."""
        try:
            batches += ((member.given, None if member.left else member.take_many(limit)),)
            if batches[-1][1] is None:
                del batches[-1]
                return True
        except Exception as error:  # noqa: BLE001 (returned)
            self.note(member, error)
            return True
        return False

    def _give_back(self, batches: list[tuple[Any, Any]]) -> None:
        """Keep what was taken for the next call."""
        each = []
        for given, records in tuple(batches):
            each += [(given, record) for record in (() if records is None else records)]
        steps: list[Callable[[], object]] = [partial(self._out.extend, each), batches.clear]
        deque(map(operator.call, steps), maxlen=0)  # one call, so that nothing is kept twice

    def note(self, member: Member | None, error: Exception) -> None:
        """Note what is returned instead of a record, and whether the member leaves."""
        if self.is_forked():
            raise error
        if member is None or member.left:
            return
        source = member.source
        if isinstance(source, ConnectionSource):
            endpoint = source.endpoint
            ended = endpoint.closed or endpoint.ending.receiving is not None
        else:
            ended = isinstance(error, Closed)
            if not ended and isinstance(error, CAUSED_BY_ONE):
                source.given._pending.log.add(error)  # noqa: SLF001 (one package)
                return
        event = member.given, self.ours(error, member.given)
        if not ended and not isinstance(error, DecodeFailed):
            self._due[member] = monotonic() + REST
            if self.turn.member is member:
                self.turn.end()
        persist(self._note_event, member, event, ended)

    def _note_event(self, member: Member, event: tuple[Any, Any], ended: bool) -> None:
        with self._mutex:
            if ended:
                if member.end is not None and member.end is not event:  # another thread was faster
                    return
                member.end = event
            if all(each is not event for each in tuple(self._out)):
                self._out.append(event)
            if ended:
                self._drop(member)
        if ended and member.own:
            member.given.close()

    # -- turns -----------------------------------------------------------------------------------

    def _begin_turn(self, turn: Turn) -> bool:
        """End this turn, if nobody else has done so, and begin the next; False if all sleep."""
        with self._mutex:
            self._check_open()
            if self.turn is turn:
                self._collect()  # first: those who were woken come before another turn of this one
                if self._line and (member := self._line[0]) is turn.member:
                    if self._rests(member, found_nothing=turn.left > 0):
                        self._line.popleft()
                    else:
                        self._line.rotate(-1)
                while self._line and self._line[0].left:
                    self._line.popleft()
                self.turn = Turn(self._line[0] if self._line else None)
                self._wake_another()
            return self.turn.member is not None

    def _let_sleep(self, members: list[Member], seen: int) -> None:
        """End the turns of the first `seen` members; in some of them nothing was found."""
        with self._mutex:
            self._line.rotate(-seen)
            for member in tuple(members):
                if member in self._line and self._rests(member, found_nothing=True):
                    self._line.remove(member)
            self.turn = Turn(None)
            self._wake_another()

    def _wake_another(self) -> None:
        """Wake those who wait, if somebody is queued; with the mutex held.

        The epoll has told us alone; while we see to one record, others can be taken.
        """
        if self._line and self._waiting:
            self.waking.ring()

    def _rests(self, member: Member, *, found_nothing: bool) -> bool:
        """Whether a member need not be queued: it has left, or sleeps until it is woken."""
        if member.left or member in self._due:
            member.queued = False
            return True
        if not found_nothing or member.is_halfway():
            return False
        member.queued = False  # first: from now on it may be woken
        try:
            member.promising = member.source.look()
            asleep = not member.promising
            if asleep:
                self._register(member)
        except (OSError, ValueError):  # closed meanwhile; or no memory, or no descriptor is left
            self._due[member] = monotonic() + REST
            return True
        if asleep and member.source.due < math.inf:
            self._due[member] = member.source.due
        member.queued = not asleep
        return asleep

    def _register(self, member: Member) -> None:
        """Have the epoll tell once when something comes for a member."""
        for fd, events in member.interests():
            if fd in member.armed:  # it has not told since
                continue
            self._by_fd[fd] = member
            member.fds.add(fd)
            try:
                self._epoll.modify(fd, events | select.EPOLLONESHOT)
            except FileNotFoundError:
                self._epoll.register(fd, events | select.EPOLLONESHOT)
            member.armed.add(fd)

    def _collect(self) -> None:
        """Queue the members that were woken."""
        # In one call: the kernel tells each of them once.
        self._polled.extend(map(self._epoll.poll, (0,)))
        while self._polled:
            for fd, _ in self._polled[0]:
                if fd == self.waking.fileno():
                    self.waking.silence()
                elif (member := self._by_fd.get(fd)) is not None:
                    member.armed.discard(fd)
                    self._queue(member)
            del self._polled[0]
        while self._woken:
            self._queue(self._woken[0])
            del self._woken[0]
        self._look_at_the_clock()

    def _look_at_the_clock(self) -> None:
        """Queue the members that have rested, and those whose doorbell was lost."""
        now = monotonic()
        for member, due in tuple(self._due.items()):
            if now >= due:
                self._queue(member)
        if now >= self._rescue:
            self._rescue = now + RESCUE
            members = tuple(self.members.values())
            begin, self._rescued = self._rescued, self._rescued + RESCUED
            if self._rescued >= len(members):
                self._rescued = 0
            for member in members[begin : begin + RESCUED]:
                if not member.queued and member.source.look_aside():
                    self._queue(member)

    def _queue(self, member: Member) -> None:
        if not member.queued and not member.left:
            self._line.append(member)
            member.queued = True
        self._due.pop(member, None)

    # -- waiting ---------------------------------------------------------------------------------

    def deadline(self, timeout: Seconds) -> float:
        """Return the time of the clock that is `timeout` seconds from now."""
        return math.inf if timeout is None else self._clock() + seconds_of(timeout)

    def round(self, until: float) -> Generator[Wait, bool, bool]:
        """After an attempt in vain, wait for something until `until`, a deadline(): a plan.

        False if time is up.
        """
        this = object()
        try:
            with self._mutex:
                self._check_open()
                # In an event loop one task can wait for a descriptor.  Where there are two of them
                # it makes an epoll of its own.
                fds = (self._epoll, self.waking) if self._waiting else (self._epoll,)
                self._waiting.add(this)
                # Only now: who queues somebody from here on wakes us.
                if self._line:  # something has come, or another piece of a large message can be had
                    wait = NOW
                elif (left := until - self._clock()) <= 0:
                    return False
                else:
                    interests = [(fd.fileno(), select.POLLIN) for fd in fds]
                    due = min(self._rescue, *self._due.values(), math.inf)
                    wait = Wait(max(0.0, min(left, due - monotonic())), interests=interests)
            yield wait
        finally:
            persist(self._end_wait, this)
        return True

    def _end_wait(self, this: object) -> None:
        with self._mutex:
            self._waiting.discard(this)
            if self.closed and not self._waiting:
                self._release()

    # -- the end ---------------------------------------------------------------------------------

    def close(self, error: BaseException | None = None) -> None:
        """End the membership of all, and wake who waits; repeatable.

        Members that have joined by themselves are closed, or aborted: see leave().
        """
        self.closed = True
        if self.is_forked():
            self._mutex = RLock()  # a thread of the parent may hold the other
        with self._mutex:
            for member in tuple(self.members.values()):
                member.left = True
                if member.own:
                    leave(member.given, error)
                self._drop(member)
            if self.is_forked() or not self._waiting:
                self._release()
            else:
                self.waking.ring()

    def _release(self) -> None:
        self._epoll.close()
        self.waking.close()
