"""What the receiving ends of both shapes of ring have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from ipcqueue._core import lib
from ipcqueue._waiting import lib as waiting

from .codes import DONE, EMPTY
from .end import End, Traffic
from .memory import address_of, allocate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from ipcqueue._records.messages import Received

    from .bounds import Budget
    from .end import Place
    from .memory import Mapping
    from .views import Lent


Decoding: TypeAlias = list[tuple[Any, Any]]
"""What calls have taken and not handed over: each a Call (core/python/shelf.c), and raw."""


class ReceiverEnd(End):
    """What the receiving ends of both shapes of ring share, beside a base type of core/python.

    That has the shelf of what was taken (core/python/shelf.c; drawn in frame_receiver.py), and
    serves what never waits.  Of it the doors call:

    - ready(patient, wrap), all(receive, end) and many(limit, bytes, enough), for loops;
    - is_empty(), is_quiet() and note_read(), has_records().
    """

    if TYPE_CHECKING:
        _raw: Any
        _suspect: Any
        prefetched: list[Any] | None
        place: int
        turn: int

        def ready(self, patient: bool, wrap: Any = None) -> Iterable[Any]: ...
        def all(self, receive: Callable[[], Any], end: type[BaseException]) -> Iterator[Any]: ...
        def is_empty(self) -> bool: ...
        def is_quiet(self) -> bool: ...
        def note_read(self) -> None: ...
        def has_records(self) -> bool: ...

    _look_call = lib.ipcq_receiver_indices

    def __init__(self, own: Mapping, peer: Mapping, place: Place) -> None:
        ring = allocate("ipcq_receiver *", lib.ipcq_receiver_size(), own.at, peer.at)
        words = own.at, own.wake_line, peer.at, peer.wake_line
        lib.ipcq_receiver_init(ring, *words, place.capacity, place.unit, place.bell, place.start)
        self._keeps = not place.patience.yields
        lib.ipcq_receiver_patience(ring, *place.patience)
        super().__init__(place, ring, peer)
        self._base = address_of(peer.at)
        self._decoding: Decoding = []  # replaced as a whole, never changed

    def _left_over(self) -> tuple[list[Any], Decoding]:
        """Return what stands beside calls that are over, in order, and what beside others."""
        free, rest = [], []
        for each in self._decoding:
            if each[0].over:
                free.append(each[1])
            else:
                rest.append(each)
        return free, rest

    def _gives_up(self, data: Any, error: BaseException, again: Callable[[], object]) -> bool:
        """Whether a record is given up that could not be decoded, because of `error`.

        `data` is what it is made of, and `again()` decodes it once more.  An error that does not
        come again, or not of the same type, was perhaps that of a signal handler: it is raised as
        it is, and the record stays.  So is what is no Exception, which may be a Ctrl-C or the end
        of a program, and a shortage of memory, which may be over later.  All this is for the first
        time: nothing else can be received until a record that never can be decoded is given up.
        """
        mild = isinstance(error, Exception) and not isinstance(error, MemoryError)
        suspect = self._is_suspect(data)
        if not mild and not suspect:
            self._suspect = data
            return False
        try:
            again()
        except Exception as second:  # noqa: BLE001 (whatever a function of the user)
            if mild and not suspect and type(second) is not type(error):
                self._suspect = data
                return False
            return not (mild and isinstance(second, MemoryError))
        except BaseException as second:
            if type(second) is type(error):
                return True
            raise
        return False

    def _is_suspect(self, data: Any) -> bool:
        """Whether decoding it, or a batch that it was in, has ended in no mere Exception before."""
        return bool(self._suspect == data)

    dropped = 0
    """How many attachments were closed because nobody took them."""

    in_steps = False
    """Whether an attempt copies only a piece of a large message, as an event loop waits for it."""

    @property
    def unfinished(self) -> bool:
        """Whether a large message is copied in part: the next attempts go on at once."""
        return False

    @property
    def lacking(self) -> int | None:
        """Where the message begins whose descriptors are still in the socket; None if none is."""
        return None

    def most_at_once(self) -> int:
        """Return how many records to take at most where the caller has no limit."""
        raise NotImplementedError

    def prepare(self, limit: int, budget: Budget | None = None) -> None:
        """Do what can be done for the next `limit` records without taking them."""

    def try_pop(self) -> Any:
        """Take one record; None if there is none."""
        raise NotImplementedError

    def try_pop_many(self, limit: int, budget: Budget | None = None) -> Any:
        """Take up to `limit` records and no more than a ringful; None if there are none."""
        raise NotImplementedError

    def try_receive(self) -> Received | None:
        """Take one record as a message, with what is attached to it; None if there is none."""
        raise NotImplementedError

    def pop_ready(self, limit: int, *, bounded: bool = False) -> Any:
        """Take up to `limit` records by by the fast path; None if that is not to be had."""
        raise NotImplementedError

    def holds(self) -> bool:
        """Whether records wait in this process already."""
        return bool(self.prefetched or self._raw or (self._decoding and self._left_over()[0]))

    def lend_records(
        self, limit: int, borrower: object, *, bounded: bool = False
    ) -> list[Lent] | None:
        """Lend up to `limit` of what waits; None if nothing does.  `bounded`: see bounds.py.

        Everything else fails until end_borrowing(), or until `borrower` is gone.
        """
        raise NotImplementedError

    def end_borrowing(self, borrower: object, *, take: bool) -> None:
        """Take the memory back, and free what was lent if it is to be taken.

        For persist(): nothing is left to do once `borrower` has no memory any more.
        """
        raise NotImplementedError

    def look(self) -> bool:
        """Look for records as long as that is worth it."""
        ring = self._ring
        return ring is None or waiting.ipcq_await_records(ring) == DONE

    def patience(self) -> int:
        """Return for how many nanoseconds it is worth it to look for records before sleeping.

        For who lets others run in between.  Afterwards learn() wants to know.
        """
        ring = self._ring
        return 0 if ring is None or self.holds() else int(lib.ipcq_patience(ring))

    def learn(self, came: bool) -> None:
        """Note whether what was looked for came."""
        ring = self._ring
        if ring is not None:
            lib.ipcq_learn(ring, came)

    def arm(self) -> bool:
        """Ask for a doorbell when there is a record; False if there is no need to sleep."""
        ring = self._ring
        if ring is None or self.holds():
            return False
        # What it lacks comes through the socket, too.
        return bool(lib.ipcq_arm_records(ring) == EMPTY) or self.lacking is not None

    def disarm(self) -> None:
        """Take that back."""
        ring = self._ring
        if ring is not None:
            lib.ipcq_disarm_records(ring)

    def indices(self) -> tuple[int, int]:
        """Return the units published by the peer, and those taken; also once closed."""
        return self._indices()

    def traffic(self) -> Traffic:
        """Return what was taken, and what waits beside it."""
        head, tail = self.indices()
        size = self._unit
        return Traffic(tail, head - tail, tail * size, (head - tail) * size)

    def close(self) -> None:
        """Let go of the socket.  A pop in progress ends first."""
        ring = self._withdraw()
        if ring is not None:
            lib.ipcq_receiver_silence(ring)

    def drop_strays(self) -> None:
        """Close the descriptors of a message that its sender did not live to publish."""

    def discard(self) -> None:
        """Close the descriptors of messages that nobody will take; takes no lock."""
