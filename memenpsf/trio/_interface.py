"""Interface: the verbs of memenpsf.Interface, awaitable.

One task at a time waits for the socket; the others park, and look again when it has read (the
reasons stand in ipcqueue/_threads.py; between tasks no mutex is needed).
"""

from __future__ import annotations

import contextlib
import math
import select
import socket
import weakref
from typing import TYPE_CHECKING, Any, TypeVar

import trio
from trio.lowlevel import (
    cancel_shielded_checkpoint,
    checkpoint,
    checkpoint_if_cancelled,
    enable_ki_protection,
    notify_closing,
    wait_readable,
    wait_writable,
)

import ipcqueue
from ipcqueue import QueueError
from ipcqueue.lowlevel import (
    BatchSending,
    Connection,
    Endpoint,
    Event,
    Opening,
    Owner,
    Sending,
    Terms,
    Waiter,
    advance,
    checked_socket,
    deadline_of,
    drop_socket,
    monotonic,
    persist,
    seconds_of,
    shown_seconds,
)

from .._options import BOTH_WAYS, check_interface_options, checked_role, prepare_to_connect
from .._seeking import connecting
from ._blocks import AsyncBorrowing, AsyncLoan
from ._drive import drive
from ._errors import Closed, Full, ours

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable
    from typing import Unpack

    from ipcqueue import Options, Received, Statistics
    from ipcqueue.lowlevel import Credentials, Fd, MemoryRegion, Seconds

    from .._options import ConnectOptions

T = TypeVar("T")


def _in_steps(endpoint: T) -> T:
    """Have an endpoint, if there is one yet, leave time for other tasks while it receives."""
    if isinstance(endpoint, Endpoint):
        endpoint.copy_in_steps()
    return endpoint


class Interface(Owner, trio.abc.Channel[Any]):
    """One side of a two-way connection that moves typed records through shared memory.

    The handshake takes place at the first call, or in `do_handshake`.  Any number of tasks may
    send and receive at once.  As a trio.abc.Channel: send, receive, iteration, aclose.
    """

    _instead = Connection._instead  # noqa: SLF001 (that of the other door)

    def __init__(
        self,
        stream: trio.SocketStream | trio.socket.SocketType | socket.socket,
        record: Any,
        *,
        name: str = "",
        capacity: int | None = None,
        role: str = "client",
        timeout: Seconds = 5.0,
        **options: Unpack[Options],
    ) -> None:
        """Take a connected AF_UNIX SOCK_STREAM socket, also when this fails.

        Parameters are those of memenpsf.Interface; a Trio program never spins, whatever `wait`
        says.  Raises TypeError or ValueError; what the handshake may raise comes from do_handshake,
        or the first call.
        """
        sock = plain_socket(stream)
        try:
            check_interface_options(type(self).__name__, options)
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
        self._handshake = trio.Lock()
        self._writing = trio.Lock()
        self._followers = trio.lowlevel.ParkingLot()
        self._backing_off = trio.CancelScope()

    @classmethod
    def _over(cls, sock: socket.socket, terms: Terms, role: str, deadline: float) -> Interface:
        """Take a connected socket; the handshake ends at `deadline`, a monotonic()."""
        self = cls.__new__(cls)
        self.role = role
        self._opening = Opening(sock, terms)
        self._opening.deadline = deadline
        self._set_up(terms, self._opening.peer)
        return self

    @classmethod
    def _of(cls, endpoint: Endpoint, terms: Terms, role: str) -> Interface:
        self = cls.__new__(cls)
        self.role = role
        self._opening = None
        self._set_up(terms, endpoint.peer)
        self._endpoint = _in_steps(endpoint)
        endpoint.owner = weakref.ref(self)
        return self

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
        """Return the counters of this side.  Raises Closed before the handshake."""
        try:
            return self._open_endpoint().statistics()
        except Exception as error:
            raise ours(error, self) from error.__cause__

    def indices(self) -> tuple[int, int]:
        """Return (head, tail) of the outgoing queue; see memenpsf.Interface.indices."""
        try:
            return self._open_endpoint().indices()
        except Exception as error:
            raise ours(error, self) from error.__cause__

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
            await checkpoint()
            await self._opened()
        except Exception as error:
            raise ours(error, self) from error.__cause__

    @enable_ki_protection
    async def _opened(self) -> Endpoint:
        async with self._handshake:
            while self._endpoint is None:
                if self._failure is not None:
                    raise self._failure
                opening = self._opening
                if opening is None:
                    raise Closed("this side has closed the connection")
                try:
                    self._endpoint = _in_steps(advance(opening))
                except (QueueError, OSError) as error:
                    self._failure = error
                else:
                    if self._endpoint is None:
                        await _opening_can_go_on(opening)
                    else:
                        self._endpoint.owner = weakref.ref(self)
        self._opening = None
        return self._endpoint

    @enable_ki_protection
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
            endpoint = self._endpoint or await self._opened()
            if timeout is None and fds is None and regions is None:
                await checkpoint_if_cancelled()
                if endpoint.try_push(record):
                    await cancel_shielded_checkpoint()
                    return
            seconds = seconds_of(timeout)
            sender = endpoint.sending()
            until = trio.current_time() + seconds
            with sender.parcel(record, fds, regions) as parcel:
                if not await self._send(endpoint, Sending(sender, parcel), until):
                    raise Full(f"no space for a record within {shown_seconds(timeout)}")
        except Exception as error:
            raise ours(error, self) from error.__cause__

    async def _send(self, endpoint: Endpoint, sending: Sending, until: float) -> bool:
        while True:
            sent = await self._until(sending.attempt, Event.SPACE, _left(until), sending.units)
            if not sending.stuck:
                return bool(sent)
            if trio.current_time() >= until:
                return False
            await self._await_room(endpoint, until)

    async def _await_room(self, endpoint: Endpoint, until: float) -> None:
        """Wait for a while until the socket takes more; and read it meanwhile.

        In slices, as the peer may be waiting in the same way.  Raises Closed.
        """
        try:
            async with self._writing:
                with trio.move_on_at(min(until, trio.current_time() + _SLICE)):
                    if endpoint.in_flight_limit_reached():
                        await trio.sleep(endpoint.retry_after())
                    else:
                        await wait_writable(endpoint.fileno())
                endpoint.turn()
        except trio.ClosedResourceError:
            raise Closed("this side has closed the connection") from None

    @enable_ki_protection
    def xmit_nowait(self, record: Any) -> None:
        """Publish one record if that can be done at once; raise Full if not.  No checkpoint.

        Raises as xmit does, and Closed before the handshake.
        """
        try:
            if not self._open_endpoint().try_push(record):
                raise Full("no space for a record just now")
        except Exception as error:
            raise ours(error, self) from error.__cause__

    @enable_ki_protection
    async def xmit_many(self, records: Iterable[Any], timeout: Seconds = None) -> int:
        """Publish records in order; return how many, which is fewer only if time ran out.

        All are encoded first: BadRecord means that none was sent.  Otherwise as xmit, except
        that Full is not raised.  When it is cancelled, the first records may have been sent:
        indices() tells.
        """
        try:
            seconds = seconds_of(timeout)
            endpoint = self._endpoint or await self._opened()
            sender = endpoint.sending()
            sending = BatchSending(sender, sender.batch(records))
            until = trio.current_time() + seconds
            if not sending.left:
                await checkpoint()
            while sending.left:
                alone = sending.alone()
                sent: int | None
                if alone is None:
                    left = _left(until)
                    sent = await self._until(sending.attempt, Event.SPACE, left, sending.units)
                else:
                    with alone as parcel:
                        sent = await self._send(endpoint, Sending(sender, parcel), until)
                if not sent:
                    break
                sending.done += sent
            return sending.done
        except Exception as error:
            raise ours(error, self, given=True) from error.__cause__

    @enable_ki_protection
    async def await_space(self) -> None:
        """Wait until the next xmit, by this task alone, will not wait.

        For who takes records from elsewhere only when they can be sent.  Raises as xmit does.
        """
        try:
            endpoint = self._endpoint or await self._opened()
            await self._until(endpoint.has_space, Event.SPACE, None, endpoint.enough)
        except Exception as error:
            raise ours(error, self) from error.__cause__

    @enable_ki_protection
    async def recv(self, timeout: Seconds = None) -> Any:
        """Return the next record; None if none came within `timeout` seconds.

        Raises, once everything published is taken, EndOfStream (the peer closed) or PeerDied;
        and what else memenpsf.Interface.recv raises.
        """
        try:
            endpoint = self._endpoint or await self._opened()
            if timeout is None:
                # What is there already takes the shortest way that is a checkpoint still.
                await checkpoint_if_cancelled()
                for record in endpoint.ready:
                    await cancel_shielded_checkpoint()
                    return record
            return await self._until(endpoint.try_pop, Event.RECORDS, timeout)
        except Exception as error:
            raise ours(error, self) from error.__cause__

    @enable_ki_protection
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
            endpoint = self._endpoint or await self._opened()
            seconds_of(timeout)
            most, bounded = endpoint.most(limit), limit is None
            if most == 0:
                await checkpoint()
                return endpoint.codec.decode_many(b"", 0)
            records = await self._until(
                lambda: endpoint.try_pop_many(most, bounded=bounded), Event.RECORDS, timeout
            )
            return endpoint.codec.decode_many(b"", 0) if records is None else records
        except Exception as error:
            raise ours(error, self) from error.__cause__

    @enable_ki_protection
    async def recv_message(self, timeout: Seconds = None) -> Received | None:
        """Return the next message with the descriptors and regions that came with it.

        The caller owns those.  None if none came in time; raises as recv does.
        """
        try:
            endpoint = self._endpoint or await self._opened()
            return await self._until(endpoint.try_receive, Event.RECORDS, timeout)
        except Exception as error:
            raise ours(error, self) from error.__cause__

    def loan(
        self, size: int, *, timeout: Seconds = None, tag: int = 0, flags: int = 0
    ) -> AsyncLoan:
        """Return memory of the ring to fill in an async with block; see memenpsf.Interface.loan."""
        try:
            return AsyncLoan(self, size, timeout, tag, flags)
        except Exception as error:
            raise ours(error, self) from error.__cause__

    def borrow(self, limit: int | None = None, *, timeout: Seconds = None) -> AsyncBorrowing:
        """Return what waits, to read in place; see memenpsf.Interface.borrow."""
        try:
            return AsyncBorrowing(self, limit, timeout)
        except Exception as error:
            raise ours(error, self) from error.__cause__

    @enable_ki_protection
    async def send_ctrl_msg(self, message: bytes, timeout: Seconds = None) -> None:
        """Send two bytes to the peer's application, the first from 128 to 255.

        Delivered in order, apart from the records and never dropped.  Raises ValueError, Full
        (no room in time), ReceiverGone, PeerDied, CorruptPeer, Refused, Closed.
        """
        try:
            endpoint = self._endpoint or await self._opened()
            seconds = seconds_of(timeout)
            await checkpoint_if_cancelled()
            sent = endpoint.try_send_message(message)
            with trio.move_on_after(seconds):
                while not sent:
                    await self._await_room(endpoint, math.inf)
                    sent = endpoint.try_send_message(message)
            if not sent:
                raise Full(f"no room for a control message within {shown_seconds(timeout)}")
            await cancel_shielded_checkpoint()
        except Exception as error:
            raise ours(error, self) from error.__cause__

    @enable_ki_protection
    async def recv_ctrl_msg(self, timeout: Seconds = 0) -> bytes | None:
        """Return the next two bytes from the peer's application; None if none came in time.

        Raises EndOfStream, PeerDied, CorruptPeer, Refused, once all are taken; Closed.
        """
        try:
            endpoint = self._endpoint or await self._opened()
            return await self._until(endpoint.try_take_message, Event.MESSAGE, timeout)
        except Exception as error:
            raise ours(error, self) from error.__cause__

    async def send(self, value: Any) -> None:
        """Send a record, as xmit does (trio.abc.SendChannel)."""
        await self.xmit(value)

    async def receive(self) -> Any:
        """Return the next record, as recv does (trio.abc.ReceiveChannel)."""
        return await self.recv()

    @enable_ki_protection
    async def _until(
        self,
        attempt: Callable[[], T | None],
        event: Event,
        timeout: Seconds,
        units: Callable[[], int] = lambda: 1,
    ) -> T | None:
        """Call `attempt` until it gives something, sleeping for `event` in between.

        For SPACE, `units` says how much of it there must be.  Nothing is taken before a point at
        which this can be cancelled.
        """
        seconds = seconds_of(timeout)
        await checkpoint_if_cancelled()
        endpoint = self._open_endpoint()
        result = attempt()
        while result is None and endpoint.unfinished(event):  # a large message: see copy_in_steps
            await checkpoint()
            result = attempt()
        if result is None and not seconds:
            endpoint.turn()  # or the end of the connection would never be seen
            result = attempt()
        if result is not None or not seconds:
            await cancel_shielded_checkpoint()
            return result
        with trio.move_on_after(seconds):
            while True:
                await self._sleep(endpoint, event, units())
                if (result := attempt()) is not None:
                    return result
        endpoint.turn()  # a short timeout may have left no time to read
        while (result := attempt()) is None and endpoint.unfinished(event):
            await checkpoint()
        return result

    async def _sleep(self, endpoint: Endpoint, event: Event, units: int) -> None:
        """Sleep until `event` may have come; a checkpoint in any case."""
        waiters, waiter = endpoint.waiters, Waiter(event)
        try:
            waiters.enter(waiter)
            if not endpoint.announce(event, units):
                await checkpoint()
            elif waiter.late:
                await self._followers.park()
            else:
                waiters.read(waiter)
                if endpoint.should_back_off():
                    await self._back_off(endpoint)
                await wait_readable(endpoint.wire.events_fileno())
                endpoint.answer()
        except (trio.ClosedResourceError, ipcqueue.Closed):
            pass  # the attempt that follows says so
        finally:
            persist(endpoint.leave, waiter)
            if waiter.led:
                self._followers.unpark_all()

    async def _back_off(self, endpoint: Endpoint) -> None:
        """Leave the socket alone for a while, unless the connection ends."""
        with trio.move_on_after(endpoint.back_off_length()) as self._backing_off:
            try:
                end = endpoint.wire.end_poller()
            except OSError:  # no descriptor is left
                await trio.sleep_forever()
            with end:
                await wait_readable(end)

    @enable_ki_protection
    def finish(self) -> None:
        """End in good order, as close() does; what has arrived can still be received, then Closed.

        The peer drains what was published, then gets EndOfStream.  Call aclose() afterwards.
        """
        try:
            self._open_endpoint().finish()
        except Exception as error:
            raise ours(error, self) from error.__cause__

    @enable_ki_protection
    def close(self) -> None:
        """End in good order, without waiting; tasks that wait here get Closed.  Idempotent."""
        try:
            if self._opening is not None:
                notify_closing(self._opening.sock)
                self._opening.abandon()
                self._opening = None
            elif self._endpoint is not None and not self._endpoint.closed:
                for number in self._endpoint.wire.polled_fds():
                    notify_closing(number)
                self._backing_off.cancel()
                self._endpoint.close()
                self._followers.unpark_all()
        except Exception as error:
            raise ours(error, self) from error.__cause__

    @enable_ki_protection
    async def aclose(self) -> None:
        """End in good order: the peer drains what was published, then gets EndOfStream.

        Idempotent; tasks that wait here get Closed.  Records not yet received are dropped.
        """
        self.close()
        await checkpoint()

    def __repr__(self) -> str:
        return f"<memenpsf.trio.Interface {self.name!r}: {self._endpoint or 'no handshake yet'}>"


def _left(until: float) -> float | None:
    """Return the seconds until then, and None until never."""
    return None if until == math.inf else max(0.0, until - trio.current_time())


# How long a task that waits for room to send looks away from what there is to read; in seconds.
_SLICE = 0.05


async def _opening_can_go_on(opening: Opening) -> None:
    """Wait until the next step of a handshake, or its deadline, is due."""
    with trio.move_on_after(max(0.0, opening.deadline - monotonic())):
        wait = wait_writable if opening.events & select.POLLOUT else wait_readable
        try:
            await wait(opening.sock)
        except trio.ClosedResourceError:
            raise Closed("this side has closed the connection") from None


def plain_socket(
    stream: trio.SocketStream | trio.socket.SocketType | socket.socket,
) -> socket.socket:
    """Take the socket out of what Trio wraps around it."""
    if isinstance(stream, trio.SocketStream):
        stream = stream.socket
    if isinstance(stream, trio.socket.SocketType):
        return socket.socket(fileno=stream.detach())
    return checked_socket(stream)


async def connect(
    address: str | os.PathLike[str],
    record: Any,
    *,
    timeout: Seconds = 5.0,
    **options: Unpack[ConnectOptions],
) -> Interface:
    """Connect to a server; the address is a bare name, a path, or @name (abstract).

    As memenpsf.connect: OSError at once if there is no server, HandshakeTimeout, and what
    Interface raises.
    """
    deadline = deadline_of(timeout)
    where, terms, role = prepare_to_connect(address, record, timeout, options)
    await checkpoint()
    with contextlib.ExitStack() as undo:
        sock = undo.enter_context(await drive(connecting(where, timeout)))
        interface = Interface._over(sock, terms, role, deadline)  # noqa: SLF001 (one module)
        undo.callback(interface.close)
        await interface.do_handshake()
        undo.pop_all()
    return interface
