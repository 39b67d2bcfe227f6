"""Loans and borrowings: shared memory in the application's hands, for the length of a block.

A loan is memory of the outgoing ring to fill in place; nobody sees it before it is published, so
giving it up costs nothing.  A borrowing is what waits in the incoming ring, to read in place; it
is taken only when the block ends well, so a process that raises or dies inside has taken nothing.

The views given out are dead after the block.  Where slices or arrays made of them still live, the
end of the block raises LoanError, nothing is published or taken, and this end of the ring
refuses to work until they are gone: no view ever shows what it was not given for.

What is read in place can be changed by the peer at any time: check it only on a copy.
"""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from fdpass.lowlevel import Owner, index_of
from ipcqueue._core import ffi, lib
from ipcqueue._errors import BadRecord, LoanError, TooLarge
from ipcqueue._origin import tagged
from ipcqueue._records.messages import MAX_FLAGS, MAX_TAG, Message, checked_tag
from ipcqueue._ring.codes import RingError
from ipcqueue._ring.frame import HEADER, MAX_ATTACHED, MAX_EXTENT, extent
from ipcqueue._ring.frame_receiver import FrameReceiver
from ipcqueue._ring.frame_sender import FrameSender

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from .endpoint import Endpoint


class _Hold:
    """Stands for an open block: when it is gone, and no sooner, its memory may be taken back.

    Apart from the Loan or the Borrowing, whose name outlives the block: Ctrl-C while the block
    ends must not leave the memory lent until somebody thinks of deleting that name.
    """

    __slots__ = ("__weakref__",)


class Loan(Owner):
    """Memory of the outgoing ring, to fill in a with block.  Made by Interface.loan().

    Leaving the block publishes it; an exception, or cancel(), gives it back.  `data` is a
    writable memoryview of the bytes, or an array of shape (n,) for a numpy record; what it holds
    at first is left over from records of before.  Nobody sees it before it is published.  What is
    assigned to it is not looked at: of a masked array numpy takes what is behind the mask, too.

    Publishing raises LoanError (views outlive the block; nothing is published), ReceiverGone,
    PeerDied, CorruptPeer, Closed.
    """

    _instead = "copy its data inside the block, as bytes or as an array"

    def __init__(
        self,
        endpoint: Endpoint,
        size: int,
        tag: int = 0,
        flags: int = 0,
        wait: Callable[[Loan], None] | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._wait = wait
        self._sender = endpoint.sending()
        self._frames = isinstance(self._sender, FrameSender)
        self._size = _checked_size(size)  # bytes of a message, or records
        self._tag, self._flags = tag, flags
        self._wake = True
        self._hold: _Hold | None = None  # while it is open
        self._done = False
        self._at: Any = None
        self._run = 0  # records that are contiguous there
        self._aside: Any = None  # stands in where the ring wraps around
        self._view: memoryview | None = None
        self.data: Any = None
        self._check()

    def _check(self) -> None:
        capacity = self._sender.capacity
        most = min(capacity, MAX_EXTENT)
        if self._frames:
            if self._size < 0:
                raise ValueError(f"a message has at least 0 bytes, not {self._size}")
            if self._size > most - HEADER:
                raise TooLarge(
                    f"a loan of {self._size} bytes does not fit into a ring of {capacity} bytes, "
                    f"which holds at most {most - HEADER} in one message"
                )
            self._endpoint.check_message_size(self._size)
            self._tag = checked_tag("tag", self._tag, MAX_TAG)
            self._flags = checked_tag("flags", self._flags, MAX_FLAGS)
        elif not 1 <= self._size <= capacity:
            raise TooLarge(
                f"a loan has 1 to {capacity} records, as the ring does, not {self._size}"
            )
        elif self._tag or self._flags:
            raise BadRecord("tag and flags go with messages (record=bytes), not with records")

    @property
    def units(self) -> int:
        """How much space of the ring it takes: bytes, or records."""
        return extent(self._size) if self._frames else self._size

    def try_open(self) -> Self | None:
        """Get the memory; None if there is no space for it yet."""
        if self._hold is not None or self._done:
            raise LoanError("this loan was used before: ask for a new one")
        hold = _Hold()
        lent = self._sender.lend_space(self.units, hold)
        if lent is None:
            return None
        memory, offset, self._run = lent
        self._at = memory + offset
        nbytes = self._size * self._endpoint.codec.size
        if self._frames:
            offset += HEADER
        elif self._run < self._size:
            memory, offset = ffi.new("char[]", nbytes), 0
            self._aside = memory
        arrays = self._endpoint.shows_arrays
        view = self._sender.view(memory, offset, nbytes, arrays=arrays)
        self._view = view
        self._hold = hold
        self.data = self._endpoint.as_records(view)
        return self

    def _check_open(self) -> None:
        if self._hold is None:
            raise LoanError("the loan is not open: " + ("it is over" if self._done else "use with"))

    @tagged
    def shrink(self, size: int) -> None:
        """Publish only the first `size` bytes (or records) of it."""
        self._check_open()
        size = _checked_size(size)
        least = 0 if self._frames else 1
        if not least <= size <= self._size:
            raise LoanError(f"a loan of {self._size} can shrink to {least} or more, not to {size}")
        self._size = size

    @tagged
    def cancel(self) -> None:
        """Give it back now, without publishing it."""
        self._check_open()
        self._end(publish=False)

    @tagged
    def publish(self, *, wake: bool = True) -> None:
        """Publish it now; with wake=False without waking a peer that sleeps.

        Such a peer sees it at the next message that does ring, or when it looks for itself: once
        a second at the latest, which its statistics() count as a rescue.
        """
        self._check_open()
        self._wake = wake
        self._end(publish=True)

    def _end(self, *, publish: bool) -> None:
        # Held until this function is done with it, however it ends.
        _held, self._hold, self._done = self._hold, None, True
        view, self._view, self.data = self._view, None, None
        commit = self._commit() if publish else None
        _release(view)
        del view
        try:
            self._sender.end_loan(commit)
        except RingError as error:
            trouble = error.args
        else:
            return
        self._endpoint.raise_meaning(*trouble, sending=True)

    def _commit(self) -> Callable[[Any], int]:
        """Return what publishes the memory as it stands now."""
        size, wake = self._size, self._wake
        if self._frames:
            frame = ffi.new("struct ipcq_frame *", [size, self._tag, self._flags, 0, 0, 0])
            return lambda ring: int(lib.ipcq_frame_commit(ring, frame, wake))
        if self._aside is None:
            return lambda ring: int(lib.ipcq_commit(ring, size, wake))

        def commit(ring: Any) -> int:
            record = self._endpoint.codec.size
            first = min(size, self._run)
            start = self._at - (self._sender.capacity - self._run) * record  # of the ring
            ffi.memmove(self._at, self._aside, first * record)
            ffi.memmove(start, self._aside + first * record, (size - first) * record)
            return int(lib.ipcq_commit(ring, size, wake))

        return commit

    @tagged
    def __enter__(self) -> Self:
        if self._wait is None:
            raise TypeError("a loan under Trio needs async with")
        self._wait(self)
        return self

    @tagged
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._hold is not None and kind is None:
            self._end(publish=True)
        elif self._hold is not None:
            with contextlib.suppress(LoanError):  # the exception is what its block has to say
                self._end(publish=False)


class Borrowing(Owner):
    """What waits in the incoming ring, to read in place in a with block.

    Made by Interface.borrow().  `data` is a list of Message with read-only memoryviews, or, of
    records, one memoryview (or array of shape (n,) for a numpy spec) up to where the ring wraps
    around; empty if nothing came in time.  The Borrowing itself is a sequence of the same.
    Leaving the block takes what it got; an exception, or cancel(), takes nothing.
    """

    _instead = "copy its data inside the block, as bytes or as an array"

    def __init__(
        self,
        endpoint: Endpoint,
        limit: int | None,
        wait: Callable[[Borrowing], object] | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._receiver = endpoint.receiving()
        self._most, self._bounded = endpoint.most(limit), limit is None
        self._wait = wait
        self._hold: _Hold | None = None  # while there is memory in it
        self._inside = False
        self._views: list[memoryview] = []
        self.data: Any = endpoint.codec.decode_many(b"", 0)
        if isinstance(self.data, list) and not isinstance(self._receiver, FrameReceiver):
            self.data = memoryview(b"")

    def try_open(self) -> Self | None:
        """Get what waits; None if nothing does."""
        if self._hold is not None:
            raise LoanError("this borrowing is open already")
        self._inside = True
        if self._most == 0:
            return self
        receiver, hold = self._receiver, _Hold()
        lend = partial(receiver.lend_records, self._most, hold, bounded=self._bounded)
        lent = lend()
        for _ in range(MAX_ATTACHED):
            if lent is None or receiver.lacking is None:
                break
            # Some of what waits was left out, as its descriptors are in the socket still.
            lent = None
            receiver.end_borrowing(take=False)
            came = self._endpoint.read_missing() and receiver.lacking is None
            lent = lend()
            if not came:
                break
        if lent is None:
            return None
        self._hold = hold
        view, arrays = self._receiver.view, self._endpoint.shows_arrays
        views = [view(p.memory, p.offset, p.size, arrays=arrays).toreadonly() for p in lent]
        self._views = views
        if isinstance(self._receiver, FrameReceiver):
            pieces = zip(views, lent, strict=True)
            self.data = [Message(view, piece.tag, piece.flags) for view, piece in pieces]
        else:
            self.data = self._endpoint.as_records(views[0])
        return self

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.data)

    def __getitem__(self, index: Any) -> Any:
        return self.data[index]

    @tagged
    def cancel(self) -> None:
        """Take nothing, and leave what waits for the next call that receives."""
        if not self._inside:
            raise LoanError("the borrowing is not open")
        if self._hold is not None:
            self._end(take=False)
        self._inside = False

    def _end(self, *, take: bool) -> None:
        _held, self._hold, self._inside = self._hold, None, False  # held as in Loan
        views, self._views, self.data = self._views, [], ()
        while views:
            _release(views.pop())
        try:
            self._receiver.end_borrowing(take=take)
        except RingError as error:
            trouble = error.args
        else:
            return
        self._endpoint.raise_meaning(*trouble, sending=False)

    @tagged
    def __enter__(self) -> Self:
        if self._wait is None:
            raise TypeError("a borrowing under Trio needs async with")
        self._wait(self)
        return self

    @tagged
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._hold is not None and kind is None:
            self._end(take=True)
        elif self._hold is not None:
            with contextlib.suppress(LoanError):  # the exception is what its block has to say
                self._end(take=False)
        self._inside = False


def _checked_size(size: int) -> int:
    try:
        return index_of(size)
    except TypeError:
        raise TypeError(f"the size of a loan is a number (int), not {size!r}") from None


def _release(view: memoryview | None) -> None:
    try:  # not suppress(), which takes longer than all of this
        if view is not None:
            view.release()
    except BufferError:
        pass  # an array is left, which Views finds
