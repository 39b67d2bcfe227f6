"""TaskInterface: the verbs of memenpsf.Interface, awaitable; for every event loop.

How they wait stands in ipcqueue/_link/plans.py, and what tasks wait with in waiting.py.

The file is long because every verb has its types, and says what it does, once more: they are
awaitable here.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from typing import TYPE_CHECKING, Any, ClassVar, Generic, overload

from ipcqueue import Closed, EndOfStream, Full, QueueError
from ipcqueue.lowlevel import (
    GUESSED,
    Connection,
    Endpoint,
    Event,
    Opening,
    Owner,
    T,
    Terms,
    advance,
    check_many,
    drop_socket,
    guess,
    leave,
    listed,
    plans,
    seconds_of,
    shown_peer,
    shown_record,
)

from .._options import (
    BOTH_WAYS,
    check_interface_options,
    checked_role,
    checked_stream,
    prepare_to_connect,
)
from .._seeking import connecting

if TYPE_CHECKING:
    import os
    import socket
    from collections.abc import Callable, Iterable
    from struct import Struct
    from typing import Self, SupportsIndex, Unpack

    from ipcqueue import Encoded, Options, Received, Statistics
    from ipcqueue.lowlevel import (
        Buffer,
        Credentials,
        D,
        Fd,
        MemoryRegion,
        N,
        NumpyDtype,
        Seconds,
    )

    from .._options import ConnectOptions, InterfaceOptions
    from .._seeking import Found
    from .blocks import TaskBorrowing, TaskLoan
    from .waiting import Waiting


class TaskInterface(Owner, Generic[T]):
    """What the Interface of every door for tasks is; see there."""

    waiting: ClassVar[type[Waiting]]
    """How its tasks wait."""
    loan_type: ClassVar[type[TaskLoan]]
    borrowing_type: ClassVar[type[TaskBorrowing]]

    _instead = Connection._instead  # noqa: SLF001 (that of the other door)

    @overload
    def __init__(
        self: TaskInterface[bytes],
        stream: Any,
        record: SupportsIndex,
        **options: Unpack[InterfaceOptions],
    ) -> None: ...
    @overload
    def __init__(
        self: TaskInterface[tuple[Any, ...]],
        stream: Any,
        record: str | Struct,
        **options: Unpack[InterfaceOptions],
    ) -> None: ...
    @overload
    def __init__(
        self,
        stream: Any,
        record: type[T] | Encoded[T],
        **options: Unpack[InterfaceOptions],
    ) -> None: ...
    @overload
    def __init__(
        self: TaskInterface[Any],
        stream: Any,
        record: NumpyDtype,
        **options: Unpack[InterfaceOptions],
    ) -> None: ...
    def __init__(
        self,
        stream: Any,
        record: Any,
        *,
        name: str = "",
        capacity: int | None = None,
        role: str = "client",
        timeout: Seconds = 5.0,
        **options: Unpack[Options],
    ) -> None:
        """Take a connected AF_UNIX SOCK_STREAM socket, also when this fails.

        Parameters are those of memenpsf.Interface.  Where `wait` says to spin, a task that receives
        looks between the turns of its event loop instead, so that others run; with "busy" for a
        millisecond at most.  Raises TypeError or ValueError; what the handshake may raise comes
        from do_handshake, or the first call.
        """
        sock = self.plain_socket(stream)
        try:
            check_interface_options(type(self).__name__, options, ("role",))
            self.role = checked_role(role)
            terms = Terms(
                record, BOTH_WAYS, name=name, capacity=capacity, timeout=timeout, **options
            )
        except BaseException:
            drop_socket(sock)
            raise
        self._opening: Opening | None = Opening(sock, terms)
        self._set_up(terms, self._opening.peer)

    def _set_up(self, terms: Terms, peer: Credentials) -> None:
        self._terms = terms
        self._peer = peer
        self._endpoint: Endpoint | None = None
        self._failure: Exception | None = None
        self._waiting = waiting = self.waiting()
        self._handshake = waiting.lock()

    @staticmethod
    def plain_socket(stream: Any) -> socket.socket:
        """Take the socket out of what an event loop wraps around it; raise TypeError."""
        return checked_stream(stream)

    @classmethod
    def over(cls, found: Found, terms: Terms, role: str) -> Self:
        """Take a connected socket; the handshake ends at its deadline."""
        self = cls.__new__(cls)
        self.role = role
        self._opening = opening = Opening(found.sock, terms)
        opening.deadline = found.deadline
        opening.address = str(found.address)
        opening.who = f"the server at {opening.address}"
        self._set_up(terms, self._opening.peer)
        return self

    @classmethod
    def of(cls, endpoint: Endpoint, terms: Terms, role: str) -> Self:
        self = cls.__new__(cls)
        self.role = role
        self._opening = None
        self._set_up(terms, endpoint.peer)
        self._join(endpoint)
        return self

    def _join(self, endpoint: Endpoint) -> None:
        endpoint.belongs_to(self, shown_as(type(self)))
        self._waiting.serve(endpoint)
        self._endpoint = endpoint

    @property
    def name(self) -> str:
        """The name this side gave."""
        return self._terms.name

    @property
    def capacity(self) -> int:
        """How many records, or bytes of messages in the ring, can be under way from this side."""
        return self._terms.capacity

    @property
    def record(self) -> Any:
        """The record spec as it was given."""
        return self._terms.codec.spec

    @property
    def peer(self) -> Credentials:
        """Who the peer was when the sockets were connected: authorise by its uid, not its pid."""
        return self._peer

    @property
    def peer_name(self) -> str:
        """The name the other side gave; a claim, not an identity.  Empty before the handshake."""
        return self._endpoint.peer_name if self._endpoint else ""

    def statistics(self) -> Statistics:
        """Return the counters of this side as they are now; after closing, as they were then.

        Raises Closed before the handshake.
        """
        try:
            return self._open_endpoint().statistics()
        except Exception as error:
            raise self._waiting.ours(error, self) from error.__cause__

    def indices(self) -> tuple[int, int]:
        """Return (head, tail) of the outgoing queue; see memenpsf.Interface.indices."""
        try:
            return self._open_endpoint().indices()
        except Exception as error:
            raise self._waiting.ours(error, self) from error.__cause__

    def _open_endpoint(self) -> Endpoint:
        if self._endpoint is None:
            raise Closed("there was no handshake on this connection yet")
        return self._endpoint

    async def do_handshake(self) -> None:
        """Introduce both sides to each other, if that has not happened yet.

        Raises Refused, CorruptPeer, PeerDied, HandshakeTimeout, Closed, OSError; again at each
        call.
        """
        try:
            self._waiting.check_loop()
            await self._waiting.checkpoint()
            await self.opened()
        except Exception as error:
            raise self._waiting.ours(error, self) from error.__cause__

    async def opened(self) -> Endpoint:
        self._waiting.check_loop()
        async with self._handshake:
            while self._endpoint is None:
                if self._failure is not None:
                    raise self._failure
                opening = self._opening
                if opening is None:
                    raise Closed("this side has closed the connection")
                try:
                    endpoint = advance(opening)
                except (QueueError, OSError) as error:
                    self._failure = error
                else:
                    if endpoint is None:
                        await self._waiting.wait_for(plans.next_step(opening))
                    else:
                        self._join(endpoint)
        self._opening = None
        return self._endpoint

    @overload
    async def xmit(
        self: TaskInterface[bytes],
        record: Buffer,
        timeout: Seconds = None,
        fds: Iterable[int | Fd] | None = None,
        regions: Iterable[MemoryRegion] | None = None,
    ) -> None: ...
    @overload
    async def xmit(
        self,
        record: T,
        timeout: Seconds = None,
        fds: Iterable[int | Fd] | None = None,
        regions: Iterable[MemoryRegion] | None = None,
    ) -> None: ...
    async def xmit(
        self,
        record: Any,
        timeout: Seconds = None,
        fds: Iterable[int | Fd] | None = None,
        regions: Iterable[MemoryRegion] | None = None,
    ) -> None:
        """Publish one record: it is then the peer's, even if this process dies.

        If it raises, it was not sent.  With messages of any length, descriptors and memory
        regions can go along; they are borrowed, and may be closed afterwards.

        Raises BadRecord (TooLarge, Unaccepted), Full (no space in time), ReceiverGone or PeerDied
        (nobody is left to take it), CorruptPeer, Refused, Closed, ForkedUse; ConcurrentUse and
        LoanError beside a loan; OSError (no memory for what travels outside the ring).
        """
        try:
            endpoint = self._endpoint or await self.opened()
            if timeout is not None:
                seconds_of(timeout)
            await self._waiting.begin()
            if fds is not None or regions is not None:
                parcel = endpoint.sending().parcel(record, fds, regions)
            elif (left := endpoint.offer(record)) is None:
                await self._waiting.done()
                return
            else:
                parcel = endpoint.sending().parcel_of(left)
            await self._waiting.drive(plans.push(endpoint, parcel, timeout))
        except Exception as error:
            raise self._waiting.ours(error, self) from error.__cause__

    def xmit_nowait(self, record: T) -> None:
        """Publish one record if that can be done at once; raise Full if not.  No checkpoint.

        Raises as xmit does, and Closed before the handshake.
        """
        try:
            if not self._open_endpoint().try_push(record):
                raise Full("no space for a record just now")
        except Exception as error:
            raise self._waiting.ours(error, self) from error.__cause__

    @overload
    async def xmit_many(
        self: TaskInterface[bytes], records: Iterable[Buffer], timeout: Seconds = None
    ) -> int: ...
    @overload
    async def xmit_many(self, records: Iterable[T], timeout: Seconds = None) -> int: ...
    async def xmit_many(self, records: Iterable[Any], timeout: Seconds = None) -> int:
        """Publish records in order; return how many, which is fewer only if time ran out.

        All are encoded first: BadRecord means that none was sent.  Otherwise as xmit, except
        that Full is not raised.  When it is cancelled, or raises another error, the first records
        may have been sent: statistics().sent tells.
        """
        try:
            seconds_of(timeout)
            endpoint = self._endpoint or await self.opened()
            await self._waiting.begin()
            sent = await self._waiting.drive(plans.push_many(endpoint, records, timeout))
            self._waiting.count(sent)
            return sent
        except Exception as error:
            check_many(records, error)
            raise self._waiting.ours(error, self, given=True) from error.__cause__

    async def await_space(self) -> None:
        """Wait until the next xmit, by this task alone, will not wait.

        For who takes records from elsewhere only when they can be sent.  Raises as xmit does.
        """
        try:
            endpoint = self._endpoint or await self.opened()
            await self._waiting.begin()
            await self._waiting.drive(plans.await_space(endpoint))
        except Exception as error:
            raise self._waiting.ours(error, self) from error.__cause__

    @overload
    async def recv(self, timeout: None = None) -> T: ...
    @overload
    async def recv(self, timeout: Seconds) -> T | None: ...
    @overload
    async def recv(self, timeout: Seconds = None, *, default: D) -> T | D: ...
    async def recv(self, timeout: Seconds = None, default: Any = None) -> Any:
        """Return the next record; `default` if none came within `timeout` seconds.

        Raises, once everything published is taken, EndOfStream (the peer closed) or PeerDied;
        and what else memenpsf.Interface.recv raises.
        """
        try:
            endpoint = self._endpoint or await self.opened()
            if timeout is not None:
                seconds_of(timeout)
            # What is there already takes the shortest way that is a checkpoint still.
            await self._waiting.begin()
            for record in endpoint.ready:
                await self._waiting.done()
                return record
            record = await self._waiting.take(endpoint, endpoint.try_pop, Event.RECORDS, timeout)
            return default if record is None else record
        except Exception as error:
            raise self._waiting.ours(error, self) from error.__cause__

    @overload
    async def recv_vectored(
        self: TaskInterface[N], limit: int | None = None, timeout: Seconds = None
    ) -> Any: ...
    @overload
    async def recv_vectored(self, limit: int | None = None, timeout: Seconds = None) -> list[T]: ...
    async def recv_vectored(self, limit: int | None = None, timeout: Seconds = None) -> Any:
        """Wait for one record, then return all that are there: `limit` or a ringful at most.

        Without a limit one call does some milliseconds' work at most, and the next goes on from
        there, since the peer chooses how much waits: 65,536 records, or fewer if they have more
        than one field; 256 messages if they have tags or attachments; 8 MiB, or one more message;
        5 ms in functions of the application that decode.  With a limit only messages outside the
        ring are bounded so, to 8 MiB, or one more message.  A list; an array of
        shape (n,) for a numpy spec; empty if none came in time.  Raises as recv does.
        """
        try:
            endpoint = self._endpoint or await self.opened()
            seconds_of(timeout)
            most, bounded = endpoint.most(limit), limit is None
            if most == 0:
                await self._waiting.checkpoint()
                return endpoint.codec.decode_many(b"", 0)
            await self._waiting.begin()
            attempt = lambda: endpoint.try_pop_many(most, bounded=bounded)  # noqa: E731
            records = await self._waiting.take(endpoint, attempt, Event.RECORDS, timeout)
            if records is None:
                return endpoint.codec.decode_many(b"", 0)
            self._waiting.count(len(records))
            return records
        except Exception as error:
            raise self._waiting.ours(error, self) from error.__cause__

    @overload
    async def recv_message(self, timeout: None = None) -> Received[T]: ...
    @overload
    async def recv_message(self, timeout: Seconds) -> Received[T] | None: ...
    async def recv_message(self, timeout: Seconds = None) -> Received[T] | None:
        """Return the next message with the descriptors and regions that came with it.

        The caller owns those.  None if none came in time; raises as recv does.
        """
        try:
            endpoint = self._endpoint or await self.opened()
            seconds_of(timeout)
            await self._waiting.begin()
            return await self._waiting.take(endpoint, endpoint.try_receive, Event.RECORDS, timeout)
        except Exception as error:
            raise self._waiting.ours(error, self) from error.__cause__

    def loan(self, size: int, *, timeout: Seconds = None, tag: int = 0, flags: int = 0) -> TaskLoan:
        """Return memory of the ring to fill in an async with block; see memenpsf.Interface.loan."""
        try:
            return self.loan_type(self, size, timeout, tag, flags)
        except Exception as error:
            raise self._waiting.ours(error, self) from error.__cause__

    def borrow(self, limit: int | None = None, *, timeout: Seconds = None) -> TaskBorrowing:
        """Return what waits, to read in place; see memenpsf.Interface.borrow."""
        try:
            return self.borrowing_type(self, limit, timeout)
        except Exception as error:
            raise self._waiting.ours(error, self) from error.__cause__

    async def send_ctrl_msg(self, message: bytes, timeout: Seconds = None) -> None:
        """Send two bytes to the peer's application, the first from 128 to 255.

        Delivered in order, apart from the records and never dropped.  Raises ValueError, Full
        (no room in time), ReceiverGone, PeerDied, CorruptPeer, Refused, Closed.
        """
        try:
            endpoint = self._endpoint or await self.opened()
            seconds_of(timeout)
            await self._waiting.begin()
            await self._waiting.drive(plans.send_message(endpoint, message, timeout))
        except Exception as error:
            raise self._waiting.ours(error, self) from error.__cause__

    @overload
    async def recv_ctrl_msg(self, timeout: None) -> bytes: ...
    @overload
    async def recv_ctrl_msg(self, timeout: Seconds = 0) -> bytes | None: ...
    async def recv_ctrl_msg(self, timeout: Seconds = 0) -> bytes | None:
        """Return the next two bytes from the peer's application; None if none came in time.

        Raises EndOfStream, PeerDied, CorruptPeer, Refused, once all are taken; Closed.
        """
        try:
            endpoint = self._endpoint or await self.opened()
            seconds_of(timeout)
            await self._waiting.begin()
            take = endpoint.try_take_message
            return await self._waiting.take(endpoint, take, Event.MESSAGE, timeout)
        except Exception as error:
            raise self._waiting.ours(error, self) from error.__cause__

    def __aiter__(self) -> Self:
        """Yield records until the peer has ended in good order; raise what else recv() raises."""
        return self

    async def __anext__(self) -> T:
        try:
            return await self.recv()
        except EndOfStream:
            raise StopAsyncIteration from None

    async def __aenter__(self) -> Self:
        return self

    def finish(self) -> None:
        """End in good order, as close() does; what has arrived can still be received, then Closed.

        The peer drains what was published, then gets EndOfStream; indices() shows how much it has
        taken.  Call aclose() afterwards.
        """
        try:
            self._open_endpoint().finish()
        except Exception as error:
            raise self._waiting.ours(error, self) from error.__cause__

    async def send_eof(self) -> None:
        """Send no more records: the peer drains what was published, then gets EndOfStream.

        This side goes on receiving what the peer sends, and the connection lives until both sides
        have ended.  Then xmit raises Closed, also in a task that waits in it; control messages can
        still be sent.  Idempotent.  Raises Closed.  A checkpoint.
        """
        try:
            self._open_endpoint().send_eof()
            self._waiting.end_waits()
            await self._waiting.checkpoint()
        except Exception as error:
            raise self._waiting.ours(error, self) from error.__cause__

    def close(self) -> None:
        """End in good order, without waiting; tasks that wait here get Closed.  Idempotent."""
        self._end_by(Endpoint.close)

    def abort(self) -> None:
        """Close in the middle: the peer drains what was published, then gets Aborted.

        A block that an exception leaves does the same.  Otherwise as close(); after finish() or
        close() there is nothing left to abort.
        """
        self._end_by(Endpoint.abort)

    def _end_by(self, how: Callable[[Endpoint], object]) -> None:
        try:
            # First, as no descriptor may be closed while somebody waits for it.
            self._waiting.end_waits()
            if self._opening is not None:
                self._opening.abandon()
                self._opening = None
            elif self._endpoint is not None and not self._endpoint.closed:
                how(self._endpoint)
        except Exception as error:
            raise self._waiting.ours(error, self) from error.__cause__

    async def aclose(self) -> None:
        """End in good order: the peer drains what was published, then gets EndOfStream.

        Idempotent; tasks that wait here get Closed.  Records not yet received are dropped.
        """
        self.close()
        await self._waiting.checkpoint()

    async def __aexit__(
        self,
        kind: object,
        error: BaseException | None,
        traceback: object,
    ) -> None:
        """Close, or abort, if an exception leaves the block that is no good end.

        Good ends are GeneratorExit, SystemExit without an error, and EndOfStream, ReceiverGone and
        Closed of this connection; so is a group of nothing else.
        """
        leave(self, error)
        await self._waiting.checkpoint()

    def __repr__(self) -> str:
        kind = shown_as(type(self))
        try:
            endpoint, opening = self._endpoint, self._opening
            if endpoint is not None:
                return repr(endpoint)
            terms, failure = self._terms, self._failure
            who = f"{kind} {terms.name!r}" if terms.name else kind
            peer = shown_peer("", self._peer.pid, "" if opening is None else opening.address)
            state = "closed" if opening is None else "no handshake yet"
            state = state if failure is None else type(failure).__name__
            return f"<{who} with {peer}: {state}, {shown_record(terms.codec)}>"
        except Exception:
            return f"<{kind}: half made>"

    def __del__(self, warn: Any = warnings.warn, finalizing: Any = sys.is_finalizing) -> None:
        # Before the handshake only: afterwards the endpoint warns.  Half made, it has no _endpoint.
        opening = getattr(self, "_opening", None)
        if opening is None or getattr(self, "_endpoint", self) is not None or finalizing():
            return
        try:
            if opening.ours and self._failure is None:
                warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)
        finally:
            opening.abandon()

    def __dir__(self) -> list[str]:
        return listed(self, super().__dir__())


def shown_as(kind: type) -> str:
    """Return how a class of a door is called in reprs and warnings: memenpsf.trio.Interface."""
    return f"{kind.__module__}.{kind.__name__}"


guess(TaskInterface, GUESSED)
guess(TaskInterface, {"xmit() and recv() wait themselves": ("poll", "fileno", "arm")})


async def connect(
    kind: type[TaskInterface[Any]],
    address: str | os.PathLike[str],
    record: Any,
    timeout: Seconds,
    retry: Seconds,
    options: ConnectOptions,
) -> Any:
    """Connect to a server; return an interface of this kind.  See memenpsf.connect."""
    waiting = kind.waiting()
    waiting.check_loop()
    where, terms, role = prepare_to_connect(address, record, timeout, options)
    await waiting.checkpoint()
    with contextlib.ExitStack() as undo:
        found = await waiting.drive(connecting(where, timeout, retry))
        undo.enter_context(found.sock)
        interface = kind.over(found, terms, role)
        undo.callback(interface.close)
        await interface.do_handshake()
        undo.pop_all()
    return interface
