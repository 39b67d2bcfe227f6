"""Sender and Receiver: a one-way queue of typed records between two processes.

One file, though a long one: it is the whole product, and a third of it says what types it has.
"""

from __future__ import annotations

import contextlib
import socket
import weakref
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, overload

import fdpass
from fdpass.lowlevel import Closable

from ._direct import persist
from ._errors import EndOfStream, HandshakeTimeout
from ._link.endpoint import advance
from ._link.handshake import Role
from ._link.opening import Opening
from ._link.terms import Terms, check_options, checked_socket
from ._origin import tag_error, tag_unless_given, tagged
from ._threads import Threads, open_endpoint
from ._types import T

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from struct import Struct
    from typing import SupportsIndex, Unpack

    from fdpass import Credentials, Fd, MemoryRegion, Seconds

    from ._link.endpoint import Endpoint, Statistics
    from ._link.loans import Borrowing, Loan
    from ._link.options import Options, PairOptions, QueueOptions
    from ._records.messages import Encoded, Received
    from ._types import Buffer, D, N, NumpyDtype


class Connection(Closable, Generic[T]):
    """What both ends of any queue can do beside moving records.

    Any number of threads may use one.  A forked child may only close it (ForkedUse).
    """

    _instead = (
        "let the other process connect by itself: give it the address, or a connected socket from "
        "which it makes its own; or give it received records, which are values"
    )
    _role: ClassVar[Role]

    def __init__(
        self,
        sock: socket.socket,
        record: Any,
        *,
        capacity: int | None = None,
        name: str = "",
        timeout: Seconds = 5.0,
        **options: Unpack[Options],
    ) -> None:
        """Introduce both sides to each other over a connected AF_UNIX SOCK_STREAM socket.

        Takes the socket, also when this fails.  `record` says what a record is; `capacity` is
        the number of records this side can have under way (default: 1024, but at least 1 MiB and
        at most 16 MiB of them, if that is 4 or more), or of bytes for messages of any length
        (default 1 MiB), rounded up to a power of two; `timeout` bounds the handshake: here and
        everywhere in seconds or as a datetime.timedelta, None for ever.  All that has an __index__
        is a number, bools excepted.

        Options: `allow_uids`, the user ids admitted as a peer, as they are now (default: any; an
        empty collection admits nobody); `max_segment`, the largest segment to accept from it, in
        bytes (128 MiB).  For messages of any length: `accept`, an Accept, which says what to accept
        from the peer: how long messages, how many descriptors and regions, which of them; `inline`,
        the bytes of ring that a message may take before it travels outside, in a memory region that
        is used again (a quarter of the capacity).

        How this side waits: `wait` is "spin" (look for what is about to come, then sleep), "busy"
        (never sleep), "sleep" (at once), or Spin(seconds), which says for how long to look, 0 to
        0.001 seconds, instead of what has paid lately (at most 0.00015).  Under Trio only sleeping
        is used.
        Where the peer is a thread of this process, or this thread may run on one processor only (by
        its affinity, or by a cgroup that allows less than two), looking would keep the peer from
        running: "spin" then sleeps at once, and "busy" and Spin let others run after each look.

        Raises TypeError or ValueError for a spec, a capacity or an option that is none; Refused
        (its children and its message say why), CorruptPeer, PeerDied, HandshakeTimeout; OSError.
        """
        checked_socket(sock)
        try:
            check_options(type(self).__name__, options)
            terms = Terms(
                record, self._role, capacity=capacity, name=name, timeout=timeout, **options
            )
        except BaseException:
            persist(fdpass.drop_socket, sock)
            raise
        self._join(open_endpoint(Opening(sock, terms)))

    def _join(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        endpoint.owner = weakref.ref(self)
        self._threads = Threads(endpoint)

    @classmethod
    def of(cls, endpoint: Endpoint) -> Self:
        """Wrap an endpoint that is already open, and take it."""
        self = cls.__new__(cls)
        self._join(endpoint)
        return self

    @property
    def name(self) -> str:
        """The name this side gave."""
        return self._endpoint.name

    @property
    def peer_name(self) -> str:
        """The name the other side gave; a claim, not an identity."""
        return self._endpoint.peer_name

    @property
    def peer(self) -> Credentials:
        """Who the peer was when the sockets were connected: authorise by its uid, not its pid."""
        return self._endpoint.peer

    @property
    def capacity(self) -> int:
        """How many records, or bytes of messages in the ring, can be under way."""
        return self._endpoint.capacity

    @property
    def record(self) -> Any:
        """The record spec as it was given."""
        return self._endpoint.codec.spec

    @property
    def closed(self) -> bool:
        """Whether this side has closed it."""
        return self._endpoint.closed

    @tagged
    def statistics(self) -> Statistics:
        """Return the counters of this side; see Statistics."""
        return self._endpoint.statistics()

    def send_ctrl_msg(self, message: bytes, timeout: Seconds = None) -> None:
        """Send two bytes to the peer's application, the first from 128 to 255.

        Delivered in order, apart from the records and never dropped.  Raises ValueError, Full
        (no room in time), ReceiverGone, PeerDied, CorruptPeer, Refused, Closed; OSError (no
        memory).
        """
        try:
            self._threads.send_message(message, timeout)
        except Exception as error:
            tag_error(error, self)
            raise

    @overload
    def recv_ctrl_msg(self, timeout: None) -> bytes: ...
    @overload
    def recv_ctrl_msg(self, timeout: Seconds = 0) -> bytes | None: ...
    def recv_ctrl_msg(self, timeout: Seconds = 0) -> bytes | None:
        """Return the next two bytes from the peer's application; None if none came in time.

        Raises EndOfStream, PeerDied, CorruptPeer, Refused, once all are taken; Closed.
        """
        try:
            return self._threads.take_message(timeout)
        except Exception as error:
            tag_error(error, self)
            raise

    @tagged
    def fileno(self) -> int:
        """Return the socket's descriptor, to watch; see arm().  Raises Closed."""
        return self._endpoint.fileno()

    @tagged
    def peer_pidfd(self) -> int | None:
        """Return a pidfd of the peer, to watch beside fileno(); None where the kernel has none.

        It becomes readable when the peer's process has exited, which the socket does not tell as
        long as a child of the peer's holds it open.  Borrowed; Linux 6.5.  Raises Closed.
        """
        return self._endpoint.peer_pidfd()

    @tagged
    def finish(self) -> None:
        """End in good order, as close() does; what has arrived can still be received, then Closed.

        The peer drains what was published, then gets EndOfStream.  Call close() afterwards.
        """
        self._endpoint.finish()

    @tagged
    def close(self) -> None:
        """End in good order: the peer drains what was published, then gets EndOfStream.

        Idempotent; threads that wait here get Closed.  Records not yet received are dropped.
        """
        self._endpoint.close()

    def __repr__(self) -> str:
        return repr(self._endpoint).replace(type(self._endpoint).__name__, type(self).__name__, 1)


class Sender(Connection[T]):
    """The end of a one-way queue that publishes records; its peer is a Receiver."""

    _role = Role(sends=True, receives=False)

    if TYPE_CHECKING:

        @overload
        def __init__(
            self: Sender[bytes],
            sock: socket.socket,
            record: SupportsIndex,
            **options: Unpack[QueueOptions],
        ) -> None: ...
        @overload
        def __init__(
            self: Sender[tuple[Any, ...]],
            sock: socket.socket,
            record: str | Struct,
            **options: Unpack[QueueOptions],
        ) -> None: ...
        @overload
        def __init__(
            self,
            sock: socket.socket,
            record: type[T] | Encoded[T],
            **options: Unpack[QueueOptions],
        ) -> None: ...
        @overload
        def __init__(
            self: Sender[Any],
            sock: socket.socket,
            record: NumpyDtype,
            **options: Unpack[QueueOptions],
        ) -> None: ...
        def __init__(self, *args: Any, **options: Any) -> None: ...

    def _join(self, endpoint: Endpoint) -> None:
        super()._join(endpoint)
        self._try_push = endpoint.sending().try_push

    @overload
    def push(
        self: Sender[bytes],
        record: Buffer,
        timeout: Seconds = None,
        fds: Iterable[int | Fd] | None = None,
        regions: Iterable[MemoryRegion] | None = None,
    ) -> None: ...
    @overload
    def push(
        self,
        record: T,
        timeout: Seconds = None,
        fds: Iterable[int | Fd] | None = None,
        regions: Iterable[MemoryRegion] | None = None,
    ) -> None: ...
    def push(
        self,
        record: Any,
        timeout: Seconds = None,
        # Not keywords only: CPython would look up their defaults at each call.
        fds: Iterable[int | Fd] | None = None,
        regions: Iterable[MemoryRegion] | None = None,
    ) -> None:
        """Publish one record: it is then the receiver's, even if this process dies.

        With messages of any length, descriptors and memory regions can go along; they are
        borrowed, and may be closed afterwards.

        Raises BadRecord (TooLarge, Unaccepted), Full (no space in time; not sent),
        ReceiverGone or PeerDied (nobody is left to take it), CorruptPeer, Refused, Closed,
        ForkedUse.
        """
        try:
            if fds is not None or regions is not None:
                self._threads.push(record, timeout, fds, regions)
            elif not self._try_push(record):
                self._threads.push(record, timeout)
        except Exception as error:
            tag_error(error, self)
            raise

    @overload
    def push_many(
        self: Sender[bytes], records: Iterable[Buffer], timeout: Seconds = None
    ) -> int: ...
    @overload
    def push_many(self, records: Iterable[T], timeout: Seconds = None) -> int: ...
    def push_many(self, records: Iterable[Any], timeout: Seconds = None) -> int:
        """Publish records in order; return how many, which is fewer only if time ran out.

        All are encoded first: BadRecord means that none was sent.  Otherwise as push, except
        that Full is not raised.
        """
        try:
            return self._threads.push_many(records, timeout)
        except Exception as error:
            tag_unless_given(error, self)
            raise

    @tagged
    def loan(self, size: int, *, timeout: Seconds = None, tag: int = 0, flags: int = 0) -> Loan:
        """Return memory of the ring to fill in a with block, which publishes it; see Loan.

        `size` is in bytes for messages, else in records.  Until the block ends, other calls that
        send raise ConcurrentUse, in other threads too.  Raises TooLarge, BadRecord; on entry Full,
        and what push raises.
        """
        return self._threads.loan(size, timeout, tag, flags)

    @tagged
    def arm(self) -> bool:
        """Ask that fileno() become readable when there is space; False if there is already.

        For foreign event loops: until True comes back, go on working; then wait, without any
        other call in between, as that might read the doorbell.  Without arm() none comes.  Not
        while a thread waits on the same connection (ConcurrentUse).
        """
        return self._endpoint.arm(records=False, space=True)

    @tagged
    def indices(self) -> tuple[int, int]:
        """Return (head, tail): records published, and those the receiver has taken.

        With messages of any length, bytes of the ring: each takes its own and 16 more, rounded up
        to 16; those of one outside the ring are 32 in all.
        """
        return self._endpoint.indices()


class Receiver(Connection[T]):
    """The end of a one-way queue that takes records; its peer is a Sender."""

    _role = Role(sends=False, receives=True)

    if TYPE_CHECKING:

        @overload
        def __init__(
            self: Receiver[bytes],
            sock: socket.socket,
            record: SupportsIndex,
            **options: Unpack[QueueOptions],
        ) -> None: ...
        @overload
        def __init__(
            self: Receiver[tuple[Any, ...]],
            sock: socket.socket,
            record: str | Struct,
            **options: Unpack[QueueOptions],
        ) -> None: ...
        @overload
        def __init__(
            self,
            sock: socket.socket,
            record: type[T] | Encoded[T],
            **options: Unpack[QueueOptions],
        ) -> None: ...
        @overload
        def __init__(
            self: Receiver[Any],
            sock: socket.socket,
            record: NumpyDtype,
            **options: Unpack[QueueOptions],
        ) -> None: ...
        def __init__(self, *args: Any, **options: Any) -> None: ...

    def _join(self, endpoint: Endpoint) -> None:
        super()._join(endpoint)
        self._receiver = endpoint.receiving()
        self._ready = self._receiver.ready(True)

    @overload
    def pop(self, timeout: None = None) -> T: ...
    @overload
    def pop(self, timeout: Seconds) -> T | None: ...
    @overload
    def pop(self, timeout: Seconds = None, *, default: D) -> T | D: ...
    def pop(self, timeout: Seconds = None, default: Any = None) -> Any:
        """Return the next record; `default` if none came in time.

        Raises, once everything published is taken, EndOfStream (the sender closed) or PeerDied;
        CorruptPeer, Refused, Closed, ForkedUse; ConcurrentUse and LoanError beside a borrowing.
        DecodeFailed (what came is refused by the record's class, or by `decode`; it is taken, the
        next can be received).  Of messages: DescriptorsLost, OSError (no memory or descriptors for
        what came: it can be tried again).
        """
        try:
            for record in self._ready if timeout is None or timeout else self._endpoint.ready:
                return record
            if timeout == 0 and self._receiver.is_quiet():
                return default
            record = self._threads.pop(timeout)
            return default if record is None else record
        except Exception as error:
            tag_error(error, self)
            raise

    @overload
    def pop_many(self: Receiver[N], limit: int | None = None, timeout: Seconds = None) -> Any: ...
    @overload
    def pop_many(self, limit: int | None = None, timeout: Seconds = None) -> list[T]: ...
    def pop_many(self, limit: int | None = None, timeout: Seconds = None) -> Any:
        """Wait for one record, then return all that are there: `limit` or a ringful at most.

        Without a limit one call does some milliseconds' work at most, and the next goes on from
        there, since the peer chooses how much waits: 65,536 records, or fewer if they have more
        than one field; 256 messages if they have tags or attachments; 8 MiB, or one more message;
        5 ms in functions of the application that decode.  With a limit only messages outside the
        ring are bounded so, to 8 MiB, or one more message.  A list; an array of
        shape (n,) for a numpy spec; empty if none came in time.  Raises as pop does.
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

        The caller owns those.  None if none came in time; raises as pop does.
        """
        try:
            return self._threads.receive(timeout)
        except Exception as error:
            tag_error(error, self)
            raise

    @tagged
    def borrow(self, limit: int | None = None, *, timeout: Seconds = None) -> Borrowing:
        """Return what waits, to read in place in a with block, which takes it; see Borrowing.

        At most `limit` records or messages; without a limit bounded as pop_many; read-only memory.
        Descriptors and regions that came with messages are closed when these are taken.  Until the
        block ends, other calls that receive raise ConcurrentUse, in other threads too.  Raises on
        entry what pop raises; at the end LoanError if views outlive the block.
        """
        return self._threads.borrow(limit, timeout)

    def __iter__(self) -> Iterator[T]:
        """Yield records until the sender ends the stream; PeerDied and the like are raised.

        For speed, a loop takes up to 64 records at once from the queue (and about 16 KiB): where
        the receiver is killed inside, so many may be taken that its application has not seen.  What
        a loop that is left early has not seen, the next call gets.  pop() takes one at a time.
        """
        return self._receiver.all(self.pop, EndOfStream)

    @tagged
    def arm(self) -> bool:
        """Ask that fileno() become readable at the next record; False if one is there already.

        For foreign event loops: until True comes back, go on taking; then wait, without any
        other call in between, as that might read the doorbell.  Without arm() none comes.  Not
        while a thread waits on the same connection (ConcurrentUse).
        """
        return self._endpoint.arm(records=True, space=False)

    @tagged
    def indices(self) -> tuple[int, int]:
        """Return (head, tail): records the sender has published, and those taken here.

        Bytes of the ring with messages of any length; see Sender.indices.
        """
        return self._endpoint.indices()


@overload
def pair(
    record: SupportsIndex, capacity: int | None = None, **options: Unpack[PairOptions]
) -> tuple[Sender[bytes], Receiver[bytes]]: ...
@overload
def pair(
    record: str | Struct, capacity: int | None = None, **options: Unpack[PairOptions]
) -> tuple[Sender[tuple[Any, ...]], Receiver[tuple[Any, ...]]]: ...
@overload
def pair(
    record: type[T] | Encoded[T], capacity: int | None = None, **options: Unpack[PairOptions]
) -> tuple[Sender[T], Receiver[T]]: ...
@overload
def pair(
    record: NumpyDtype, capacity: int | None = None, **options: Unpack[PairOptions]
) -> tuple[Sender[Any], Receiver[Any]]: ...
def pair(
    record: Any, capacity: int | None = None, **options: Unpack[PairOptions]
) -> tuple[Sender[Any], Receiver[Any]]:
    """Return the two ends of a queue, in one process.

    To have one end in another process, connect two sockets instead: a forked child may not use
    its parent's end.
    """
    check_options("pair", options)
    roles = Role(sends=True, receives=False), Role(sends=False, receives=True)
    first, second = open_pair(
        *(Terms(record, role, capacity=capacity, **options) for role in roles)
    )
    return Sender.of(first), Receiver.of(second)


def open_pair(*both: Terms) -> tuple[Endpoint, Endpoint]:
    """Open the two ends of a socket pair in one thread."""
    with contextlib.ExitStack() as undo:
        socks = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        for sock in socks:
            undo.callback(sock.close)
        openings: list[Opening] = []
        for sock, terms in zip(socks, both, strict=True):
            openings.append(Opening(sock, terms))
            undo.callback(openings[-1].abandon)
        opened: dict[Opening, Endpoint] = {}
        # The first says hello and hears nothing yet; the second does both; then the first hears.
        for opening in openings * 2:
            if opening not in opened and (endpoint := advance(opening)) is not None:
                undo.callback(endpoint.close)
                opened[opening] = endpoint
        if len(opened) < len(openings):
            raise HandshakeTimeout("the two ends of a socket pair did not hear from each other")
        undo.pop_all()
    first, second = (opened[opening] for opening in openings)
    return first, second
