"""Interface: two queues of typed records, one each way, between two processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

from ipcqueue import EndOfStream
from ipcqueue.lowlevel import (
    Connection,
    Opening,
    T,
    Terms,
    checked_socket,
    deadline_of,
    drive,
    drop_socket,
    open_endpoint,
    open_pair,
    tag_error,
    tag_unless_given,
    tagged,
)

from ._options import BOTH_WAYS, check_interface_options, checked_role, prepare_to_connect

if TYPE_CHECKING:
    import os
    import socket
    from collections.abc import Callable, Iterable, Iterator
    from struct import Struct
    from typing import SupportsIndex, Unpack

    from ipcqueue import Borrowing, Encoded, Loan, Options, Received
    from ipcqueue.lowlevel import (
        Buffer,
        D,
        Endpoint,
        Fd,
        MemoryRegion,
        N,
        NumpyDtype,
        PairOptions,
        QueueOptions,
        Seconds,
    )

    from ._options import ConnectOptions, InterfaceOptions


class Interface(Connection[T]):
    """One side of a two-way connection that moves typed records through shared memory.

    `capacity` records, or bytes of messages, can be under way from this side to the peer; the peer
    chooses the other direction.  `role` ("client" or "server") is a label: both sides can do the
    same.  Any number of threads may send and receive at once.  For the rest see Connection.
    """

    _role = BOTH_WAYS
    role: str = "client"
    _try_push: Callable[[Any], bool]
    _receiver: Any
    _ready: Iterable[Any]

    @overload
    def __init__(
        self: Interface[bytes],
        stream: socket.socket,
        record: SupportsIndex,
        **options: Unpack[InterfaceOptions],
    ) -> None: ...
    @overload
    def __init__(
        self: Interface[tuple[Any, ...]],
        stream: socket.socket,
        record: str | Struct,
        **options: Unpack[InterfaceOptions],
    ) -> None: ...
    @overload
    def __init__(
        self,
        stream: socket.socket,
        record: type[T] | Encoded[T],
        **options: Unpack[InterfaceOptions],
    ) -> None: ...
    @overload
    def __init__(
        self: Interface[Any],
        stream: socket.socket,
        record: NumpyDtype,
        **options: Unpack[InterfaceOptions],
    ) -> None: ...
    def __init__(
        self,
        stream: socket.socket,
        record: Any,
        *,
        name: str = "",
        capacity: int | None = None,
        role: str = "client",
        timeout: Seconds = 5.0,
        **options: Unpack[Options],
    ) -> None:
        """Introduce both sides over a connected AF_UNIX SOCK_STREAM socket; see Connection.

        Takes the socket, also when this fails.
        """
        checked_socket(stream)
        try:
            self.role = checked_role(role)
            check_interface_options(type(self).__name__, options)
        except BaseException:
            drop_socket(stream)
            raise
        super().__init__(stream, record, name=name, capacity=capacity, timeout=timeout, **options)

    def _join(self, endpoint: Endpoint) -> None:
        super()._join(endpoint)
        if endpoint.sender is None or endpoint.receiver is None:
            raise TypeError("an Interface needs an endpoint that sends and receives")
        # Straight to the ring: what can be done at once costs no further call.
        self._try_push = endpoint.sender.try_push
        self._receiver = endpoint.receiver
        self._ready = endpoint.receiver.ready(True)

    @overload
    def xmit(
        self: Interface[bytes],
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
            elif not self._try_push(record):
                self._threads.push(record, timeout)
        except Exception as error:
            tag_error(error, self)
            raise

    @tagged
    def await_space(self) -> None:
        """Wait until the next xmit, by this thread alone, will not wait.

        For who takes records from elsewhere only when they can be sent.  Raises as xmit does.
        """
        self._threads.await_space()

    @overload
    def xmit_many(
        self: Interface[bytes], records: Iterable[Buffer], timeout: Seconds = None
    ) -> int: ...
    @overload
    def xmit_many(self, records: Iterable[T], timeout: Seconds = None) -> int: ...
    def xmit_many(self, records: Iterable[Any], timeout: Seconds = None) -> int:
        """Publish records in order; return how many, which is fewer only if time ran out.

        All are encoded first: BadRecord means that none was sent.  A numpy array of the record's
        dtype is sent as it is.  Otherwise as xmit, except that Full is not raised.
        """
        try:
            return self._threads.push_many(records, timeout)
        except Exception as error:
            tag_unless_given(error, self)
            raise

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
            if timeout == 0 and self._receiver.is_quiet():
                return default
            record = self._threads.pop(timeout)
            return default if record is None else record
        except Exception as error:
            tag_error(error, self)
            raise

    @overload
    def recv_vectored(
        self: Interface[N], limit: int | None = None, timeout: Seconds = None
    ) -> Any: ...
    @overload
    def recv_vectored(self, limit: int | None = None, timeout: Seconds = None) -> list[T]: ...
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
    def loan(self, size: int, *, timeout: Seconds = None, tag: int = 0, flags: int = 0) -> Loan:
        """Return memory of the ring to fill in a with block, which publishes it; see Loan.

        `size` is in bytes for messages, else in records.  Until the block ends, other calls that
        send raise ConcurrentUse, in other threads too.  Raises TooLarge, BadRecord; on entry Full,
        and what xmit raises.
        """
        return self._threads.loan(size, timeout, tag, flags)

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

    @tagged
    def arm(self, *, records: bool = True, space: bool = False) -> bool:
        """Ask that fileno() become readable at the next record (or when there is space).

        For foreign event loops.  Returns False if there is something to do already: go on
        working and call it again.  After True, wait without any other call in between, as that
        might read the doorbell; without arm() none comes.  ConcurrentUse while a thread waits on
        the same connection.
        """
        return self._endpoint.arm(records=records, space=space)

    @tagged
    def indices(self) -> tuple[int, int]:
        """Return (head, tail) of the outgoing queue: records published, records taken of them.

        With messages of any length, bytes of the ring: each takes its own and 16 more, rounded up
        to 16; those of one outside the ring are 32 in all.
        """
        return self._endpoint.indices()


@overload
def connect(
    address: str | os.PathLike[str], record: SupportsIndex, **options: Unpack[InterfaceOptions]
) -> Interface[bytes]: ...
@overload
def connect(
    address: str | os.PathLike[str], record: str | Struct, **options: Unpack[InterfaceOptions]
) -> Interface[tuple[Any, ...]]: ...
@overload
def connect(
    address: str | os.PathLike[str],
    record: type[T] | Encoded[T],
    **options: Unpack[InterfaceOptions],
) -> Interface[T]: ...
@overload
def connect(
    address: str | os.PathLike[str], record: NumpyDtype, **options: Unpack[InterfaceOptions]
) -> Interface[Any]: ...
def connect(
    address: str | os.PathLike[str],
    record: Any,
    *,
    timeout: Seconds = 5.0,
    **options: Unpack[ConnectOptions],
) -> Interface[Any]:
    """Connect to a server; the address is a bare name, a path, or @name (abstract).

    A bare name is looked for in the directories of this user (by effective uid), and in no others:
    /run/user/UID/memenpsf and /tmp/memenpsf-UID, or $MEMENPSF_RUNTIME_DIR/memenpsf alone if that is
    set.  Options are those of Interface.

    Raises OSError at once if there is no server: FileNotFoundError, or ConnectionRefusedError where
    a dead server has left its file; both say where was looked, and which servers are there.  A file
    newer than 0.25 s may be of a server that is just starting, so it is tried for so long.
    HandshakeTimeout, and what Interface raises.
    """
    # Slow to import, and not needed by programs that bring their own sockets.
    from ._seeking import connecting  # noqa: PLC0415

    deadline = deadline_of(timeout)
    where, terms, role = prepare_to_connect(address, record, timeout, options)
    opening = Opening(drive(connecting(where, timeout)), terms)
    opening.deadline = deadline
    interface: Interface[Any] = Interface.of(open_endpoint(opening))
    interface.role = role
    return interface


@overload
def pair(
    record: SupportsIndex, **options: Unpack[QueueOptions]
) -> tuple[Interface[bytes], Interface[bytes]]: ...
@overload
def pair(
    record: str | Struct, **options: Unpack[QueueOptions]
) -> tuple[Interface[tuple[Any, ...]], Interface[tuple[Any, ...]]]: ...
@overload
def pair(
    record: type[T] | Encoded[T], **options: Unpack[QueueOptions]
) -> tuple[Interface[T], Interface[T]]: ...
@overload
def pair(
    record: NumpyDtype, **options: Unpack[QueueOptions]
) -> tuple[Interface[Any], Interface[Any]]: ...
def pair(
    record: Any, *, capacity: int | None = None, **options: Unpack[PairOptions]
) -> tuple[Interface[Any], Interface[Any]]:
    """Return the two sides of a connection, in one process: for tests, and between threads."""
    check_interface_options("pair", options)
    terms = Terms(record, BOTH_WAYS, capacity=capacity, **options)
    first, second = open_pair(terms, terms)
    return Interface.of(first), Interface.of(second)
