"""The attempts of every verb that receives, from whatever fills the ring.

Each attempt is beside the end that it may meet, since that comes through the same socket as
descriptors and refusals, in one order with them.  The end is noted *before* the ring is found empty
for the last time, so a receiver that sees both has drained everything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from fdpass.lowlevel import index_of
from ipcqueue._records.codec import in_place
from ipcqueue._records.messages import MessageCodec, Received
from ipcqueue._ring.bounds import Budget
from ipcqueue._ring.codes import RingError, corrupt
from ipcqueue._ring.frame import MAX_ATTACHED
from ipcqueue._ring.memory import TAKES_NONE

from .side import Side

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ipcqueue._records.codec import AnyCodec
    from ipcqueue._ring.segment import Segment

T = TypeVar("T")


class Receiving(Side):
    """A side that receives."""

    codec: AnyCodec
    ready: Iterable[Any]
    ready_messages: Iterable[Received]
    _peer: Segment

    if TYPE_CHECKING:  # of what derives from it

        def _hear(self) -> None: ...

    def try_pop(self) -> Any:
        """Take a record; None if there is none yet.  Raises how the connection ended."""
        for record in self.ready:
            return record
        return self.or_end(self.receiving().try_pop)

    def try_pop_many(self, limit: int, *, bounded: bool = False) -> Any:
        """Take up to `limit` records, None if there are none yet; see try_pop.

        `bounded`: fewer, if they are more than some milliseconds' work; see _ring/bounds.py.
        """
        receiver = self.receiving()
        records = receiver.pop_ready(limit, bounded=bounded)
        if records is not None:
            return records

        def attempt() -> Any:
            budget = Budget(bounded=bounded)
            receiver.prepare(limit, budget)
            for _ in range(MAX_ATTACHED):
                if receiver.lacking is None or not self.read_missing():
                    break
                if receiver.lacking is not None:
                    break  # they have not come
                receiver.prepare(limit, budget)
            return receiver.try_pop_many(limit, budget)

        return self.or_end(attempt)

    def try_receive(self) -> Received | None:
        """Take a message with what is attached to it; see try_pop."""
        receiver = self.receiving()
        for message in self.ready_messages:  # to which nothing is attached
            return message
        frames = isinstance(self.codec, MessageCodec)
        if frames and not self.wire.attached and receiver.has_records():
            # Who asks so expects descriptors, and an attempt without them costs more.
            self.read_if_free()
        return self.or_end(receiver.try_receive)

    def or_end(self, attempt: Callable[[], T | None]) -> T | None:
        """Call `attempt`; if it finds nothing and never will, raise how the connection ended.

        It also raises what trouble of the receiving end means; see raise_meaning().
        """
        receiver = self.receiving()
        try:
            while True:
                end = self.ending.receiving  # noted before the ring is found empty: see the module
                # After this comes no call that Ctrl-C could interrupt, if there is a result.
                result = None if receiver.is_empty() else attempt()
                while result is None and (position := receiver.lacking) is not None:
                    # The sender sends descriptors before it publishes their message.
                    read = self.read_missing()
                    result = attempt()
                    if result is None and (not read or self.wire.held_back):
                        return None
                    if result is None and receiver.lacking == position:
                        if self.ending.over:  # DescriptorsLost, for instance
                            self.raise_end()
                        raise corrupt("a message came without its descriptors")
                if result is not None or receiver.unfinished:
                    return result
                if end is not None:
                    receiver.drop_strays()
                    self.raise_end()
                if not self._peer.mapping.closed() & ~TAKES_NONE:
                    return None
                self.read_if_free()  # what it sent before comes first: a refusal, for instance
                self._hear()
        except RingError as error:
            trouble = error.args
        self.raise_meaning(*trouble, sending=False)

    def read_missing(self) -> bool:
        """Read descriptors that a message lacks; False if somebody else is reading.

        No more than has come through the socket up to now: they are among that, and a peer that
        goes on sending would keep us here.
        """
        left = self.with_socket(self.wire.backlog)
        while self.receiving().lacking is not None:
            read = self.read_more()
            if read is None:
                return False
            left -= read
            if read == 0 or left <= 0:
                break
        return True

    def read_more(self) -> int | None:
        """Read once from the socket; return how many bytes, None if somebody else is reading.

        As read_if_free(), but also when the connection has ended.
        """
        return self.waiters.read_if_free(self.read_once)

    def most(self, limit: int | None) -> int:
        """Return how many records to take at once at most: `limit`, but no more than a ringful.

        Without a limit, what the peer chose must not be more than some milliseconds' work.
        """
        receiver = self.receiving()
        capacity = receiver.capacity
        if limit is None:
            return min(capacity, receiver.most_at_once())
        if type(limit) is not int:
            try:
                limit = index_of(limit)
            except TypeError:
                expected = "a number of records (int) or None"
                raise TypeError(f"limit is {expected}, not {limit!r}") from None
        if limit < 0:
            raise ValueError(f"limit is at least 0 records, not {limit}")
        return min(limit, capacity)

    def note_read(self) -> None:
        """Have the receiving end know that the socket was read just now, and has not ended."""
        if not self.ended and not self.wire.is_behind():
            self.receiving().note_read()

    @property
    def shows_arrays(self) -> bool:
        """Whether as_records() makes arrays."""
        return not isinstance(self.codec, MessageCodec) and self.codec.view is not in_place

    def as_records(self, view: memoryview) -> Any:
        """Return memory as the application shall see records in it."""
        return view if isinstance(self.codec, MessageCodec) else self.codec.view(view)
