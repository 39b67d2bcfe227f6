"""What every side has that waits: its ends of rings, its wire, who waits, and how it has ended.

A Side knows no more of its wire than that it can be read, by one at a time, and rung.  So this is
what a connection, which has one peer, shares with a publication, which has many.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from fdpass.lowlevel import Owner
from ipcqueue._direct import persist
from ipcqueue._errors import Closed, ForkedUse
from ipcqueue._ring.codes import RingError
from ipcqueue._ring.memory import NO_MORE, fork_generation

from .ending import again
from .events import MESSAGE, RECORDS, SPACE

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable

    from ipcqueue._errors import QueueError
    from ipcqueue._ring.receiver import ReceiverEnd
    from ipcqueue._ring.sender import SenderEnd

    from .alarms import FalseAlarms
    from .ending import Ending
    from .waiters import Event, Follower, Waiters
    from .watches import Bell, Watch
    from .wire import Wire

T = TypeVar("T")


class Side(Owner):
    """One side of something; see the module.

    Threads: everything here may be called from any.  A call that reads the socket does so as the
    reader of `waiters`.
    """

    wire: Wire
    waiters: Waiters
    alarms: FalseAlarms
    ending: Ending
    sender: SenderEnd | None
    receiver: ReceiverEnd | None
    closed: bool
    spins: bool
    busy: bool
    clock: Callable[[], float]
    _generation: int

    if TYPE_CHECKING:  # of what derives from it

        def read_once(self) -> int: ...
        def _learn(self) -> None: ...
        def raise_meaning(self, code: int, message: str = "", *, sending: bool) -> NoReturn: ...

    # -- its ends ------------------------------------------------------------------------------

    def offer(self, record: Any) -> Any:
        """Publish a record: None, or what it is encoded to if there is no space.

        Raises how the connection ended.
        """
        try:
            return self.sending().offer(record)
        except RingError as error:
            trouble = error.args
        self.raise_meaning(*trouble, sending=True)

    def try_push(self, record: Any) -> bool:
        """Publish a record; False if there is no space.  Raises how the connection ended."""
        return self.offer(record) is None

    def has_space(self) -> bool | None:
        """Whether the next record can be pushed at once; None if not.

        It is looked for as try_push() does, or a peer that has set `closed` and not yet shut the
        socket down would pass for space.  Raises how the connection ended.
        """
        self._check_usable()
        if self.sends_no_more:
            self.raise_end(sending=True)
        sender = self.sending()
        try:
            return sender.find_space(sender.enough) or None
        except RingError as error:
            trouble = error.args
        self.raise_meaning(*trouble, sending=True)

    def enough(self) -> int:
        """Return how much space is enough for any record: records, or bytes of messages."""
        return self.sending().enough

    def sending(self) -> SenderEnd:
        """Return the sending end; raise TypeError if there is none."""
        if self.sender is None:
            raise TypeError("this end only receives")
        return self.sender

    def receiving(self) -> ReceiverEnd:
        """Return the receiving end; raise TypeError if there is none."""
        if self.receiver is None:
            raise TypeError("this end only sends")
        return self.receiver

    def serve_tasks(self, clock: Callable[[], float], follower: Callable[[], Follower]) -> None:
        """Be of use to the tasks of an event loop, which let each other run.

        So nobody spins, and each attempt to receive copies a piece of a large message only, and
        returns None then; see unfinished().  `clock` is that of their deadlines; `follower` makes
        what a task sleeps on.
        """
        self.clock, self.waiters.follower = clock, follower
        self.spins = self.busy = False
        if self.receiver is not None:
            self.receiver.in_steps = True

    def unfinished(self, event: Event) -> bool:
        """Whether who waits for `event` need not, as the last attempt has copied such a piece.

        Only who receives goes on with that: others would look for what they want for ever.
        """
        return event is RECORDS and self.receiver is not None and self.receiver.unfinished

    def indices(self) -> tuple[int, int]:
        """Return (head, tail) of the queue this side sends on, else of the one it receives on.

        As they are now, until this side is closed: also after finish(), and after the peer's end.
        """
        if self.closed:
            self.raise_end()
        return self._indices(self.sender or self.receiving())

    def _indices(self, ring: SenderEnd | ReceiverEnd | None) -> tuple[int, int]:
        """Return the indices of an end; zeros if there is none."""
        if ring is None:
            return 0, 0
        try:
            return ring.indices()
        except RingError as error:
            trouble = error.args
        self.raise_meaning(*trouble, sending=ring is self.sender)

    # -- reading the socket --------------------------------------------------------------------

    def with_socket(self, use: Callable[[socket.socket], T]) -> T:
        """Call `use(socket)`, and keep its number from being closed, and reused, meanwhile."""
        if fork_generation() != self._generation:
            self._check_usable()
        if self.closed:
            self.raise_end()
        return self.wire.use(use)

    def read_if_free(self) -> None:
        """Read the control messages that wait, unless somebody else is reading."""
        if not self.ended:
            self.waiters.read_if_free(self.read_once)

    def note_wakeup(self, woken: bool) -> None:
        """Note what the reader has read when it was woken, or its time was over."""
        self.alarms.wake_ups += woken
        if self.wire.over:
            self._learn()

    def should_back_off(self) -> bool:
        """Whether to leave the socket alone for back_off_length() before waiting as the reader.

        So it is after too many wake-ups without news (alarms.py), and while descriptors must stay
        in the socket because their user has no room for them.
        """
        return self.wire.held_back > 0 or self.alarms.should_back_off(self._progress)

    def _progress(self) -> tuple[int, int, int]:
        _, received = self._indices(self.receiver)
        _, taken = self._indices(self.sender)
        return received, taken, self.wire.messages

    def back_off_length(self) -> float:
        """Return for how many seconds to leave the socket alone: longer each time in a row."""
        return self.alarms.back_off_length(self.wire.held_back)

    # -- waiting -------------------------------------------------------------------------------

    def announce(self, event: Event, units: int = 1) -> bool:
        """Ask for the socket to become readable at an event; False if there is no need to wait.

        For SPACE, `units` says of how much.
        """
        if self.wire.is_behind() and not self.waiters.reading:
            self.read_if_free()
        if self._has_ended(event):
            return False
        if event is RECORDS and self.receiver is not None:
            return self.receiver.arm()
        if event is SPACE and self.sender is not None:
            return self.sender.arm(units)
        return not self.wire.inbox

    def has_come(self, event: Event, units: int) -> bool:
        """Whether what somebody waits for is there."""
        if self._has_ended(event):
            return False
        if event is RECORDS:
            return self.receiving().has_records()
        if event is SPACE:
            return self.sending().has_space(units)
        return bool(self.wire.inbox)

    def withdraw(self, event: Event) -> None:
        """Take an announcement back, which spares the peer a doorbell."""
        if event is RECORDS and self.receiver is not None:
            self.receiver.disarm()
        elif event is SPACE and self.sender is not None:
            self.sender.disarm()

    def watch(self, watch: Watch, events: Iterable[Event]) -> set[Event]:
        """Have a watch woken at any of `events`; return those that have come already.

        It may be woken for nothing.  unwatch() ends it.  Raises ForkedUse.
        """
        self._check_usable()
        self.waiters.stand_down(watch)  # what is read now is no news: it is looked for below
        if not self.ended:
            size = self.waiters.read_if_free(self.read_once)
            self.alarms.wake_ups += bool(size)
        come = set()
        with self.waiters.mutex:
            self.waiters.stand(watch)
            for event in events:
                if not self.announce(event, self._wanted(event)):
                    come.add(event)
            if watch not in self.waiters.watches:  # announce() has read what was left unread
                come.update(events)
        return come

    def unwatch(self, watch: Watch) -> None:
        """Undo watch(); repeatable."""
        if self._forked():
            return  # the ring is the parent's
        with self.waiters.mutex:
            self.waiters.stand_down(watch)
            for event in (RECORDS, SPACE, MESSAGE):
                if not self.waiters.is_wanted(event):
                    self.withdraw(event)

    def arm(self, *, records: bool, space: bool) -> bool:
        """For foreign event loops: see Interface.arm."""
        self._check_usable()
        asked = {MESSAGE, *[RECORDS] * records, *[SPACE] * space}
        try:
            bell = self.wire.bell()
            return self.wire.use(lambda _: self._arm(bell, asked))
        except Closed:
            return False

    def _arm(self, bell: Bell, asked: set[Event]) -> bool:
        try:
            with self.waiters.mutex:
                come = self.watch(bell, (*(bell.events | asked),))
                may_wait = bell.settle(asked, come)
                if bell.rung:  # all who wait with it look again, and arm it again
                    self.unwatch(bell)
                elif not may_wait:
                    for event in tuple(asked - bell.events):
                        self.withdraw(event)
                return may_wait
        except BaseException:
            persist(bell.release)
            raise

    def _wanted(self, event: Event) -> int:
        return self.enough() if event is SPACE else 1

    # -- the end ---------------------------------------------------------------------------------

    @property
    def end(self) -> QueueError | None:
        """How the connection ended; None as long as it has not."""
        return self.ending.receiving or self.ending.sending

    @property
    def ended(self) -> bool:
        """Whether nothing more will come through the socket."""
        return self.closed or self.ending.over

    @property
    def sends_no_more(self) -> bool:
        """Whether nothing more can be sent, be it because this side has said so."""
        ending = self.ending
        return self.closed or ending.sending is not None or ending.own != 0

    def _has_ended(self, event: Event) -> bool:
        """Whether nobody need wait for this event any more: an attempt says why."""
        if event is RECORDS:
            return self.closed or self.ending.receiving is not None
        return self.sends_no_more if event is SPACE else self.ended

    def raise_end(self, *, sending: bool = False) -> NoReturn:
        """Raise why this connection cannot be used any more; `sending`: to a caller that sends."""
        if sending and self.ending.own == NO_MORE and not self.closed:
            raise Closed("this side sends no more: send_eof() was called")
        end = self.ending.sending if sending else self.ending.receiving
        if self.closed or end is None:
            raise Closed("this side has closed the connection")
        raise again(end)

    def _check_usable(self) -> None:
        if self._forked():
            raise ForkedUse("this end belongs to the parent process; a child may only close it")

    def _forked(self) -> bool:
        return fork_generation() != self._generation
