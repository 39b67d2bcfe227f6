"""The verbs that move records, for every kind of connection: each is written once.

What can be done at once is one call of C; what must wait is a plan that _threads.py drives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn, overload

from ._connection import Connection
from ._errors import EndOfStream
from ._guesses import RECEIVES, SENDS, check_many, guess
from ._origin import tag_error, tag_unless_given, tagged
from ._ring.codes import RingError
from ._types import T

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from fdpass import Fd, MemoryRegion, Seconds

    from ._link.endpoint import Endpoint
    from ._link.loans import Borrowing, Loan
    from ._records.messages import Received
    from ._types import Buffer, D


class Sends(Connection[T]):
    """A connection that publishes records."""

    _offer: Callable[[Any], Any]

    def _join(self, endpoint: Endpoint) -> None:
        super()._join(endpoint)
        # Straight to the ring: what can be done at once costs no further call.
        self._offer = endpoint.sending().offer

    @overload
    def xmit(
        self: Sends[bytes],
        record: Buffer,
        timeout: Seconds = None,
        fds: Iterable[int | Fd] | None = None,
        regions: Iterable[MemoryRegion] | None = None,
    ) -> None: ...
    @overload
    def xmit(
        self,
        record: T,
        timeout: Seconds = None,
        fds: Iterable[int | Fd] | None = None,
        regions: Iterable[MemoryRegion] | None = None,
    ) -> None: ...
    def xmit(
        self,
        record: Any,
        timeout: Seconds = None,
        # Not keywords only: CPython would look up their defaults at each call.
        fds: Iterable[int | Fd] | None = None,
        regions: Iterable[MemoryRegion] | None = None,
    ) -> None:
        """Publish one record: it is then the peer's, even if this process dies.

        Waits for space for `timeout` seconds (None: for ever; 0: not at all).  With messages of
        any length, descriptors and memory regions can go along; they are borrowed, and may be
        closed afterwards.

        Raises BadRecord (TooLarge, Unaccepted), Full (no space in time; not sent),
        ReceiverGone or PeerDied (nobody is left to take it), CorruptPeer, Refused, Closed,
        ForkedUse; ConcurrentUse and LoanError beside a loan; OSError (no memory for what travels
        outside the ring).
        """
        try:
            if fds is not None or regions is not None:
                self._threads.push(record, timeout, fds, regions)
                return
            offer = self._offer  # self._offer(record) would look for a method first, in vain
            if (left := offer(record)) is not None:
                self._threads.push_left(left, timeout)
        except RingError as error:  # of _offer, which is not the endpoint's
            trouble = error.args
        except Exception as error:
            tag_error(error, self)
            raise
        else:
            return
        self._raise_meaning(*trouble, sending=True)

    @tagged
    def _raise_meaning(self, code: int, message: str, *, sending: bool) -> NoReturn:
        self._endpoint.raise_meaning(code, message, sending=sending)

    @overload
    def xmit_many(
        self: Sends[bytes], records: Iterable[Buffer], timeout: Seconds = None
    ) -> int: ...
    @overload
    def xmit_many(self, records: Iterable[T], timeout: Seconds = None) -> int: ...
    def xmit_many(self, records: Iterable[Any], timeout: Seconds = None) -> int:
        """Publish records in order; return how many, which is fewer only if time ran out.

        All are encoded first: BadRecord means that none was sent.  A numpy array of the record's
        dtype is sent as it is.  Otherwise as xmit, except that Full is not raised.  Where another
        error is raised (PeerDied, no memory), the first records may have been sent:
        statistics().sent tells.
        """
        try:
            return self._threads.push_many(records, timeout)
        except Exception as error:
            check_many(records, error)
            tag_unless_given(error, self)
            raise

    @tagged
    def await_space(self) -> None:
        """Wait until the next xmit, by this thread alone, will not wait.

        For who takes records from elsewhere only when they can be sent.  Raises as xmit does.
        """
        self._threads.await_space()

    @tagged
    def send_eof(self) -> None:
        """Send no more records: the peer drains what was published, then gets EndOfStream.

        This side goes on receiving what the peer sends, and the connection lives until both sides
        have ended.  Then xmit raises Closed, also in a thread that waits in it, once it wakes;
        control messages can still be sent.  Idempotent.  Raises Closed.
        """
        self._endpoint.send_eof()

    @tagged
    def loan(self, size: int, *, timeout: Seconds = None, tag: int = 0, flags: int = 0) -> Loan:
        """Return memory of the ring to fill in a with block, which publishes it; see Loan.

        `size` is in bytes for messages, else in records.  Until the block ends, other calls that
        send raise ConcurrentUse, in other threads too.  Raises TooLarge, BadRecord; on entry Full,
        and what xmit raises.
        """
        return self._threads.loan(size, timeout, tag, flags)

    @tagged
    def indices(self) -> tuple[int, int]:
        """Return (head, tail) of the outgoing queue: records published, records taken of them.

        After finish() `tail` goes on growing while the peer takes what is left.  Raises Closed
        after close(): the memory is gone then.

        With messages of any length, bytes of the ring: each takes its own and 16 more, rounded up
        to 16; those of one outside the ring are 32 in all.
        """
        return self._endpoint.indices()


# A zero of these types is no time.  Zeros of other types are converted first: numpy's timedelta64,
# for one, is not to be compared with numbers.
_NUMBERS = frozenset((int, float))


class Receives(Connection[T]):
    """A connection that takes records."""

    _receiver: Any
    _ready: Iterable[Any]

    def _join(self, endpoint: Endpoint) -> None:
        super()._join(endpoint)
        self._receiver = endpoint.receiving()
        self._ready = self._receiver.ready(True)

    @overload
    def recv(self, timeout: None = None) -> T: ...
    @overload
    def recv(self, timeout: Seconds) -> T | None: ...
    @overload
    def recv(self, timeout: Seconds = None, *, default: D) -> T | D: ...
    def recv(self, timeout: Seconds = None, default: Any = None) -> Any:
        """Return the next record; `default` if none came within `timeout` seconds.

        Raises, once everything published is taken, EndOfStream (the peer closed) or PeerDied;
        CorruptPeer, Refused, Closed, ForkedUse; ConcurrentUse and LoanError beside a borrowing.
        DecodeFailed (what came is refused by the record's class, or by `decode`; it is taken, the
        next can be received).  Of messages: DescriptorsLost, OSError (no memory or descriptors for
        what came: it can be tried again).
        """
        try:
            for record in self._ready if timeout is None or timeout else self._endpoint.ready:
                return record
            if not timeout and type(timeout) in _NUMBERS and self._receiver.is_quiet():
                return default
            record = self._threads.pop(timeout)
            return default if record is None else record
        except Exception as error:
            tag_error(error, self)
            raise

    def recv_vectored(self, limit: int | None = None, timeout: Seconds = None) -> Any:
        """Wait for one record, then return all that are there: `limit` or a ringful at most.

        Without a limit one call does some milliseconds' work at most, and the next goes on from
        there, since the peer chooses how much waits: 65,536 records, or fewer if they have more
        than one field; 256 messages if they have tags or attachments; 8 MiB, or one more message;
        5 ms in functions of the application that decode.  With a limit only messages outside the
        ring are bounded so, to 8 MiB, or one more message.  A list; an array of
        shape (n,) for a numpy spec; empty if none came in time.  Raises as recv does.
        """
        try:
            return self._threads.pop_many(limit, timeout)
        except Exception as error:
            tag_error(error, self)
            raise

    @overload
    def recv_message(self, timeout: None = None) -> Received[T]: ...
    @overload
    def recv_message(self, timeout: Seconds) -> Received[T] | None: ...
    def recv_message(self, timeout: Seconds = None) -> Received[T] | None:
        """Return the next message with the descriptors and regions that came with it.

        The caller owns those.  None if none came in time; raises as recv does.
        """
        try:
            return self._threads.receive(timeout)
        except Exception as error:
            tag_error(error, self)
            raise

    @tagged
    def borrow(self, limit: int | None = None, *, timeout: Seconds = None) -> Borrowing:
        """Return what waits, to read in place in a with block, which takes it; see Borrowing.

        At most `limit` records or messages; without a limit bounded as recv_vectored; read-only
        memory.  Descriptors and regions that came with messages are closed when these are taken.
        Until the block ends, other calls that receive raise ConcurrentUse, in other threads too.
        Raises on entry what recv raises; at the end LoanError if views outlive the block.
        """
        return self._threads.borrow(limit, timeout)

    def __iter__(self) -> Iterator[T]:
        """Yield records until the peer ends the stream; PeerDied and the like are raised.

        For speed, a loop takes up to 64 records at once from the ring (and about 16 KiB): where
        this process is killed inside, so many may be taken that the application has not seen.  What
        a loop that is left early has not seen, the next call gets.  recv() takes one at a time.
        """
        return self._receiver.all(self.recv, EndOfStream)  # type: ignore[no-any-return]


guess(Sends, SENDS)
guess(Receives, RECEIVES)

# What CPython raises for a wrong number of arguments names the verb, not a class of this file.
for _name, _verb in {**vars(Sends), **vars(Receives)}.items():
    if hasattr(_verb, "__qualname__") and not _name.startswith("_"):
        _verb.__qualname__ = getattr(_verb, "__wrapped__", _verb).__qualname__ = _name
