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

from functools import partial
from typing import TYPE_CHECKING, Any, Self

from fdpass.lowlevel import Owner, index_of
from ipcqueue._direct import persist, persistent
from ipcqueue._errors import BadRecord, LoanError, TooLarge
from ipcqueue._origin import tag_error, tagged
from ipcqueue._records.messages import MAX_FLAGS, MAX_TAG, Message, MessageCodec, checked_tag
from ipcqueue._ring.codes import RingError
from ipcqueue._ring.frame import HEADER, MAX_ATTACHED, MAX_EXTENT, extent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from ipcqueue._ring.end import End

    from .endpoint import Endpoint


class Block(Owner):
    """What a Loan and a Borrowing share: the way into a with block, and out of it.

    The memory is lent to the object itself, and whether it still is only the end of the ring knows.

    An exception of a signal handler (Ctrl-C), or a second one, may strike between any two
    bytecodes.  On the way in, it has undo() give back what there is.  On the way out, the end is
    begun again until it has come to its end, by __exit__, which is C: between the last step of the
    block and the first of a method of Python, CPython would look for signals.
    """

    _instead = "copy its data inside the block, as bytes or as an array"

    def __init__(
        self, endpoint: Endpoint, ring_end: End, wait: Callable[[Any], object] | None
    ) -> None:
        self._endpoint = endpoint
        self._ring_end = ring_end
        self._wait = wait
        self._entered = False
        self.data: Any = None

    def begin(self) -> None:
        """Note that the block begins; raise LoanError if it cannot.  For doors."""
        if self._entered:
            raise LoanError(self._twice)
        self._entered = True

    _twice = "this block is open already"

    def try_open(self) -> Self | None:
        """Get the memory; None if there is none yet.  For doors."""
        raise NotImplementedError

    def undo(self) -> None:
        """After begin(): give back what there is, as the block does not begin.  For doors.

        For persist(), as all that ends a block.
        """
        self._ring_end.give_back(self)
        self._let_go()
        self._entered = False

    def _let_go(self) -> None:
        """Release the views."""
        raise NotImplementedError

    def _end(self, *, well: bool) -> None:
        """End the block: `well`, or as if nothing had happened."""
        raise NotImplementedError

    def __repr__(self) -> str:
        kind = type(self).__name__
        try:
            state = "open" if self._ring_end.lends_to(self) else "not open"
            return f"<{kind} of {self._shown_size()}{self._endpoint!r}: {state}>"
        except Exception:  # noqa: BLE001 (half made; or no memory)
            return f"<{kind}: half made>"

    def _shown_size(self) -> str:
        """Say how much it has, for repr()."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        begun = False
        try:
            if self._wait is None:
                raise TypeError(f"a {type(self).__name__.lower()} under Trio needs async with")
            self.begin()
            begun = True
            if self.try_open() is None:
                self._wait(self)
            return self
        except BaseException as error:
            if begun:
                persist(Block.undo, self)  # a bound method would need memory
            if isinstance(error, Exception):
                tag_error(error, self._endpoint.owner())
            raise

    def _leave(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,  # noqa: ARG002 (as __exit__)
        traceback: TracebackType | None,  # noqa: ARG002
    ) -> None:
        try:
            self._end(well=kind is None)
        except Exception as failure:
            views_are_left = isinstance(failure, LoanError) and not self._ring_end.lends_to(self)
            if kind is not None and views_are_left:
                return  # the exception is what its block has to say
            tag_error(failure, self._endpoint.owner())
            raise

    if TYPE_CHECKING:
        __exit__ = _leave
    else:
        __exit__ = persistent(_leave)


class Loan(Block):
    """Memory of the outgoing ring, to fill in a with block.  Made by Interface.loan().

    Leaving the block publishes it; an exception, or cancel(), gives it back.  `data` is a
    writable memoryview of the bytes, or an array of shape (n,) for a numpy record; what it holds
    at first is left over from records of before.  Nobody sees it before it is published.  What is
    assigned to it is not looked at: of a masked array numpy takes what is behind the mask, too.

    Publishing raises LoanError (views outlive the block; nothing is published), ReceiverGone,
    PeerDied, CorruptPeer, Closed.

    Where a signal handler raises (Ctrl-C) on the way into the block or out of it, nothing is lent
    any more when that exception arrives.  On the way out, all of it was published then, or nothing.
    """

    _twice = "this loan was used before: ask for a new one"

    def __init__(
        self,
        endpoint: Endpoint,
        size: int,
        tag: int = 0,
        flags: int = 0,
        wait: Callable[[Loan], object] | None = None,
    ) -> None:
        self._sender = endpoint.sending()
        super().__init__(endpoint, self._sender, wait)
        self._frames = isinstance(endpoint.codec, MessageCodec)
        self._size = _checked_size(size)  # bytes of a message, or records
        self._tag, self._flags = tag, flags
        self._wake = True
        self._view: memoryview | None = None
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

    def _shown_size(self) -> str:
        return f"{self._size} {'bytes' if self._frames else 'records'} of "

    @property
    def units(self) -> int:
        """How much space of the ring it takes: bytes, or records."""
        return extent(self._size) if self._frames else self._size

    def try_open(self) -> Self | None:
        """Get the memory; None if there is no space for it yet."""
        endpoint, sender = self._endpoint, self._sender
        try:
            lent = sender.lend_space(self.units, self)
            if lent is None:
                return None
            nbytes = self._size * endpoint.codec.size
            self._view = view = sender.view(*lent, nbytes, arrays=endpoint.shows_arrays)
            self.data = endpoint.as_records(view)
            return self
        except RingError as error:
            trouble = error.args
        endpoint.raise_meaning(*trouble, sending=True)

    def _check_open(self) -> None:
        if not self._sender.lends_to(self):
            state = "it is over" if self._entered else "use with"
            raise LoanError(f"the loan is not open: {state}")

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
        persist(partial(self._end, well=False))

    @tagged
    def publish(self, *, wake: bool = True) -> None:
        """Publish it now; with wake=False without waking a peer that sleeps.

        Such a peer sees it at the next message that does ring, or when it looks for itself: once
        a second at the latest, which its statistics() count as a rescue.
        """
        self._check_open()
        self._wake = wake
        persist(partial(self._end, well=True))

    def _end(self, *, well: bool) -> None:
        self._let_go()
        shape: tuple[int, ...] | None = None
        if well and self._frames:
            shape = self._size, self._tag, self._flags, self._wake
        elif well:
            shape = self._size, self._wake
        try:
            self._sender.end_loan(self, shape)
        except RingError as error:
            trouble = error.args
        else:
            return
        self._endpoint.raise_meaning(*trouble, sending=True)

    def _let_go(self) -> None:
        self.data = None
        _release(self._view)


class Borrowing(Block):
    """What waits in the incoming ring, to read in place in a with block.

    Made by Interface.borrow().  `data` is a list of Message with read-only memoryviews, or, of
    records, one memoryview (or array of shape (n,) for a numpy spec) up to where the ring wraps
    around; empty if nothing came in time.  The Borrowing itself is a sequence of the same.
    Leaving the block takes what it got; an exception, or cancel(), takes nothing.

    Where a signal handler raises (Ctrl-C) on the way into the block or out of it, nothing is lent
    any more when that exception arrives.  On the way out, all of it was taken then, or nothing.
    """

    _twice = "this borrowing is open already"

    def __init__(
        self,
        endpoint: Endpoint,
        limit: int | None,
        wait: Callable[[Borrowing], object] | None = None,
    ) -> None:
        self._receiver = endpoint.receiving()
        super().__init__(endpoint, self._receiver, wait)
        self._most, self._bounded = endpoint.most(limit), limit is None
        self._views: list[memoryview] = []
        self.data = endpoint.codec.decode_many(b"", 0)
        if isinstance(self.data, list) and not isinstance(endpoint.codec, MessageCodec):
            self.data = memoryview(b"")

    def try_open(self) -> Self | None:
        """Get what waits; None if nothing does.  Raises how the connection ended."""
        return self._endpoint.or_end(self._lend) if self._most else self

    def _lend(self) -> Self | None:
        receiver = self._receiver
        lend = partial(receiver.lend_records, self._most, self, bounded=self._bounded)
        lent = lend()
        for _ in range(MAX_ATTACHED):
            if lent is None or receiver.lacking is None:
                break
            # Some of what waits was left out, as its descriptors are in the socket still.
            lent = None
            receiver.end_borrowing(self, take=False)
            came = self._endpoint.read_missing() and receiver.lacking is None
            lent = lend()
            if not came:
                break
        if lent is None:
            return None
        view, arrays = receiver.view, self._endpoint.shows_arrays
        self._views = views = [
            view(each.memory, each.offset, each.size, arrays=arrays).toreadonly() for each in lent
        ]
        if isinstance(self._endpoint.codec, MessageCodec):
            pieces = zip(views, lent, strict=True)
            self.data = [Message(view, piece.tag, piece.flags) for view, piece in pieces]
        else:
            self.data = self._endpoint.as_records(views[0])
        return self

    def _shown_size(self) -> str:
        if not self._receiver.lends_to(self):
            return ""
        if isinstance(self._endpoint.codec, MessageCodec):
            return f"{len(self._views)} messages of "
        return f"{sum(v.nbytes for v in self._views[:]) // self._endpoint.codec.size} records of "

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.data)

    def __getitem__(self, index: Any) -> Any:
        return self.data[index]

    @tagged
    def cancel(self) -> None:
        """Take nothing, and leave what waits for the next call that receives."""
        if not self._entered:
            raise LoanError("the borrowing is not open")
        persist(partial(self._end, well=False))

    def _end(self, *, well: bool) -> None:
        try:
            if self._receiver.lends_to(self):
                self._let_go()
                self._receiver.end_borrowing(self, take=well)
            self._entered = False
        except RingError as error:
            trouble = error.args
        else:
            return
        self._endpoint.raise_meaning(*trouble, sending=False)

    def _let_go(self) -> None:
        self.data = ()
        views = self._views
        for view in views:
            _release(view)


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
