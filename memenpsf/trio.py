"""The verbs of memenpsf for Trio: the same names, awaitable.

Every call is a checkpoint.  Cancelling one loses nothing: a record is taken from the ring after
the last point at which the call can be cancelled.  Exceptions are those of memenpsf and, where
Trio has the word, Trio's as well: EndOfStream is a trio.EndOfChannel, PeerDied and CorruptPeer are
a trio.BrokenResourceError, Closed is a trio.ClosedResourceError, Full is a trio.WouldBlock.

One task at a time waits for the socket; the others park, and look again when it has read (the
reasons stand in _threads.py; between tasks no mutex is needed).

The file is long because it is the only one that may import Trio: it mirrors _interface, _listener,
_loop and ipcqueue._threads, in that order, and leaves to them all that does not wait.
"""

from __future__ import annotations

import contextlib
import math
import select
import socket
import weakref
from collections import deque
from functools import partial
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
from ipcqueue import (
    BatchSending,
    Endpoint,
    Event,
    Opening,
    Owner,
    QueueError,
    Sending,
    Terms,
    check_options,
    checked_socket,
    deadline_of,
    interface_of,
    monotonic,
    seconds_of,
    shown_seconds,
    tag_error,
    tag_unless_given,
)

from ._interface import BOTH_WAYS, check_interface_options, checked_role, prepare_to_connect
from ._listener import BACK_OFF, CAUSED_BY_ONE, Reception
from ._loop import Ended, check_loop_options, hand_back, is_a_cause
from ._policy import OnError, Policy, checked_handler, checked_on_error
from ._seeking import connecting

if TYPE_CHECKING:
    import os
    from collections.abc import Awaitable, Callable, Generator, Iterable
    from types import TracebackType

    from ipcqueue import Credentials, Fd, MemoryRegion, Received, Seconds, Statistics

__all__ = [  # noqa: RUF022 (classes and functions first)
    "Interface", "connect", "listen", "Listener", "serve", "run", "Ended",
    "AsyncLoan", "AsyncBorrowing",
    "DescriptorsLost", "Full", "Closed", "EndOfStream", "PeerDied", "CorruptPeer",
]  # fmt: skip

T = TypeVar("T")


class EndOfStream(ipcqueue.EndOfStream, trio.EndOfChannel):
    """The peer ended in good order, and all that it published has been received."""


class PeerDied(ipcqueue.PeerDied, trio.BrokenResourceError):
    """The peer is gone without a word; all that it published has been received."""


class CorruptPeer(ipcqueue.CorruptPeer, trio.BrokenResourceError):
    """The peer broke the protocol; the connection is over."""


class Closed(ipcqueue.Closed, trio.ClosedResourceError):
    """This side has closed it."""


class Full(ipcqueue.Full, trio.WouldBlock):
    """There was no space in time; the record was not sent."""


class DescriptorsLost(ipcqueue.DescriptorsLost, trio.BrokenResourceError):
    """This process may not open as many descriptors as the peer sent; the connection is over."""


_OURS: dict[type[Exception], type[QueueError]] = {
    ipcqueue.EndOfStream: EndOfStream,
    ipcqueue.PeerDied: PeerDied,
    ipcqueue.CorruptPeer: CorruptPeer,
    ipcqueue.DescriptorsLost: DescriptorsLost,
    ipcqueue.Closed: Closed,
}


def _in_steps(endpoint: T) -> T:
    """Have an endpoint, if there is one yet, leave time for other tasks while it receives."""
    if isinstance(endpoint, Endpoint):
        endpoint.copy_in_steps()
    return endpoint


def _translated(error: Exception) -> Exception:
    kind = _OURS.get(type(error))
    if kind is None:
        return error
    ours = kind(*error.args)
    tag_error(ours, interface_of(error))
    return ours


def _ours(error: Exception, interface: Interface, *, given: bool = False) -> Exception:
    """Return what a verb raises, in Trio's words, as of this interface: every verb ends with it.

    Unless the code of the caller raised it, if the verb was `given` records that code makes.
    """
    tag = tag_unless_given if given else tag_error
    tag(error, interface)
    return _translated(error)


class Interface(Owner, trio.abc.Channel[Any]):
    """One side of a two-way connection that moves typed records through shared memory.

    The handshake takes place at the first call, or in `do_handshake`.  Any number of tasks may
    send and receive at once.  As a trio.abc.Channel: send, receive, iteration, aclose.
    """

    _instead = ipcqueue.Connection._instead  # noqa: SLF001 (that of the other door)

    def __init__(
        self,
        stream: trio.SocketStream | trio.socket.SocketType | socket.socket,
        record: Any,
        *,
        name: str = "",
        capacity: int | None = None,
        role: str = "client",
        timeout: Seconds = 5.0,
        **options: Any,
    ) -> None:
        """Take a connected AF_UNIX SOCK_STREAM socket, also when this fails.

        Parameters are those of memenpsf.Interface; a Trio program never spins, whatever `wait`
        says.  Raises TypeError or ValueError; what the handshake may raise comes from do_handshake,
        or the first call.
        """
        sock = _plain_socket(stream)
        try:
            check_interface_options(type(self).__name__, options)
            options |= {"name": name, "capacity": capacity, "timeout": timeout}
            self.role = checked_role(role)
            terms = Terms(record, BOTH_WAYS, **options)
        except BaseException:
            ipcqueue.drop_socket(sock)
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
        self._napping = trio.CancelScope()

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
            raise _ours(error, self) from error.__cause__

    def indices(self) -> tuple[int, int]:
        """Return (head, tail) of the outgoing queue; see memenpsf.Interface.indices."""
        try:
            return self._open_endpoint().indices()
        except Exception as error:
            raise _ours(error, self) from error.__cause__

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
            raise _ours(error, self) from error.__cause__

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
                    self._endpoint = _in_steps(opening.step())
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

        Raises BadRecord (TooLarge, Unaccepted), Full (no space in time), EndOfStream or PeerDied
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
            raise _ours(error, self) from error.__cause__

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
                    if endpoint.crowded():
                        await trio.sleep(endpoint.crowded_for())
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
            raise _ours(error, self) from error.__cause__

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
            raise _ours(error, self, given=True) from error.__cause__

    @enable_ki_protection
    async def await_space(self) -> None:
        """Wait until the next xmit, by this task alone, will not wait.

        For who takes records from elsewhere only when they can be sent.  Raises as xmit does.
        """
        try:
            endpoint = self._endpoint or await self._opened()
            await self._until(endpoint.has_space, Event.SPACE, None, endpoint.enough)
        except Exception as error:
            raise _ours(error, self) from error.__cause__

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
            raise _ours(error, self) from error.__cause__

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
            raise _ours(error, self) from error.__cause__

    @enable_ki_protection
    async def recv_message(self, timeout: Seconds = None) -> Received | None:
        """Return the next message with the descriptors and regions that came with it.

        The caller owns those.  None if none came in time; raises as recv does.
        """
        try:
            endpoint = self._endpoint or await self._opened()
            return await self._until(endpoint.try_receive, Event.RECORDS, timeout)
        except Exception as error:
            raise _ours(error, self) from error.__cause__

    def loan(
        self, size: int, *, timeout: Seconds = None, tag: int = 0, flags: int = 0
    ) -> AsyncLoan:
        """Return memory of the ring to fill in an async with block; see memenpsf.Interface.loan."""
        try:
            return AsyncLoan(self, size, timeout, tag, flags)
        except Exception as error:
            raise _ours(error, self) from error.__cause__

    def borrow(self, limit: int | None = None, *, timeout: Seconds = None) -> AsyncBorrowing:
        """Return what waits, to read in place; see memenpsf.Interface.borrow."""
        try:
            return AsyncBorrowing(self, limit, timeout)
        except Exception as error:
            raise _ours(error, self) from error.__cause__

    @enable_ki_protection
    async def send_ctrl_msg(self, message: bytes, timeout: Seconds = None) -> None:
        """Send two bytes to the peer's application, the first from 128 to 255.

        Delivered in order, apart from the records and never dropped.  Raises ValueError, Full
        (no room in time), EndOfStream, PeerDied, CorruptPeer, Refused, Closed.
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
            raise _ours(error, self) from error.__cause__

    @enable_ki_protection
    async def recv_ctrl_msg(self, timeout: Seconds = 0) -> bytes | None:
        """Return the next two bytes from the peer's application; None if none came in time.

        Raises EndOfStream, PeerDied, CorruptPeer, Refused, once all are taken; Closed.
        """
        try:
            endpoint = self._endpoint or await self._opened()
            return await self._until(endpoint.try_take_message, Event.MESSAGE, timeout)
        except Exception as error:
            raise _ours(error, self) from error.__cause__

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
        endpoint.waiting[event] += 1
        try:
            if not endpoint.announce(event, units):
                await checkpoint()
            elif endpoint.reading:
                await self._followers.park()
            else:
                endpoint.reading = True
                try:
                    if endpoint.cries_wolf():
                        await self._nap(endpoint)
                    await wait_readable(endpoint.events_fileno())
                    endpoint.answer()
                finally:
                    endpoint.reading = False
                    self._followers.unpark_all()
        except (trio.ClosedResourceError, ipcqueue.Closed):
            pass  # the attempt that follows says so
        finally:
            endpoint.waiting[event] -= 1
            if not endpoint.waiting[event]:
                endpoint.withdraw(event)

    async def _nap(self, endpoint: Endpoint) -> None:
        """Leave the socket alone for a while, unless the connection ends."""
        with trio.move_on_after(endpoint.nap_length()) as self._napping:
            try:
                end = endpoint.only_the_end()
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
            raise _ours(error, self) from error.__cause__

    @enable_ki_protection
    def close(self) -> None:
        """End in good order, without waiting; tasks that wait here get Closed.  Idempotent."""
        try:
            if self._opening is not None:
                notify_closing(self._opening.sock)
                self._opening.abandon()
                self._opening = None
            elif self._endpoint is not None and not self._endpoint.closed:
                for number in self._endpoint.awaited():
                    notify_closing(number)
                self._napping.cancel()
                self._endpoint.close()
                self._followers.unpark_all()
        except Exception as error:
            raise _ours(error, self) from error.__cause__

    @enable_ki_protection
    async def aclose(self) -> None:
        """End in good order: the peer drains what was published, then gets EndOfStream.

        Idempotent; tasks that wait here get Closed.  Records not yet received are dropped.
        """
        self.close()
        await checkpoint()

    def __repr__(self) -> str:
        return f"<memenpsf.trio.Interface {self.name!r}: {self._endpoint or 'no handshake yet'}>"


class AsyncLoan(Owner):
    """An ipcqueue.Loan for an async with block."""

    def __init__(
        self, interface: Interface, size: int, timeout: Seconds, tag: int, flags: int
    ) -> None:
        self._interface = interface
        self._timeout = timeout
        self._make = partial(ipcqueue.Loan, size=size, tag=tag, flags=flags)
        endpoint = interface._endpoint  # noqa: SLF001 (one module)
        # At once if that is possible, so that a mistake is raised where it is made.
        self._loan: ipcqueue.Loan | None = self._make(endpoint) if endpoint else None

    @enable_ki_protection
    async def __aenter__(self) -> ipcqueue.Loan:
        try:
            interface = self._interface
            endpoint = interface._endpoint or await interface._opened()  # noqa: SLF001
            loan = self._loan = self._loan or self._make(endpoint)
            opened = await interface._until(  # noqa: SLF001
                loan.try_open, Event.SPACE, self._timeout, lambda: loan.units
            )
            if opened is None:
                raise Full(f"no space for a loan within {shown_seconds(self._timeout)}")
            return loan
        except Exception as error:
            raise _ours(error, self._interface) from error.__cause__

    @enable_ki_protection
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            _leave(self._interface, self._loan, kind, error, traceback)
        except Exception as failure:
            raise _ours(failure, self._interface) from failure.__cause__


class AsyncBorrowing(Owner):
    """An ipcqueue.Borrowing for an async with block."""

    def __init__(self, interface: Interface, limit: int | None, timeout: Seconds) -> None:
        self._interface = interface
        self._timeout = timeout
        self._make = partial(ipcqueue.Borrowing, limit=limit)
        endpoint = interface._endpoint  # noqa: SLF001 (one module)
        self._borrowing: ipcqueue.Borrowing | None = self._make(endpoint) if endpoint else None

    @enable_ki_protection
    async def __aenter__(self) -> ipcqueue.Borrowing:
        try:
            interface = self._interface
            endpoint = interface._endpoint or await interface._opened()  # noqa: SLF001
            borrowing = self._borrowing = self._borrowing or self._make(endpoint)
            await interface._until(  # noqa: SLF001
                lambda: endpoint.or_end(borrowing.try_open), Event.RECORDS, self._timeout
            )
            return borrowing
        except Exception as error:
            raise _ours(error, self._interface) from error.__cause__

    @enable_ki_protection
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            _leave(self._interface, self._borrowing, kind, error, traceback)
        except Exception as failure:
            raise _ours(failure, self._interface) from failure.__cause__


def _leave(
    interface: Interface,
    block: ipcqueue.Loan | ipcqueue.Borrowing | None,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
) -> None:
    """End a block; raise in Trio's words what publish() or cancel() raised inside it."""
    if block is not None:
        block.__exit__(kind, error, traceback)
    # Not what another connection has raised there, one of plain threads for example.
    if isinstance(error, QueueError) and type(error) in _OURS and error.interface is interface:
        raise error


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


def _plain_socket(
    stream: trio.SocketStream | trio.socket.SocketType | socket.socket,
) -> socket.socket:
    """Take the socket out of what Trio wraps around it."""
    if isinstance(stream, trio.SocketStream):
        stream = stream.socket
    if isinstance(stream, trio.socket.SocketType):
        return socket.socket(fileno=stream.detach())
    return checked_socket(stream)


async def _drive(plan: Generator[float, None, T]) -> T:
    """Run a plan that yields for how many seconds to sleep; return what it returns."""
    with contextlib.closing(plan):
        while True:
            try:
                delay = next(plan)
            except StopIteration as end:
                result: T = end.value
                return result
            await trio.sleep(delay)


async def connect(
    address: str | os.PathLike[str], record: Any, *, timeout: Seconds = 5.0, **options: Any
) -> Interface:
    """Connect to a server; the address is a bare name, a path, or @name (abstract).

    As memenpsf.connect: OSError at once if there is no server, HandshakeTimeout, and what
    Interface raises.
    """
    deadline = deadline_of(timeout)
    where, terms, role = prepare_to_connect(address, record, timeout, options)
    await checkpoint()
    with contextlib.ExitStack() as undo:
        sock = undo.enter_context(await _drive(connecting(where, timeout)))
        interface = Interface._over(sock, terms, role, deadline)  # noqa: SLF001 (one module)
        undo.callback(interface.close)
        await interface.do_handshake()
        undo.pop_all()
    return interface


class Listener(Owner, trio.abc.Listener[Interface]):
    """A server's address: gives an Interface for each client.  Made by listen().

    Clients introduce themselves side by side, so a slow or hostile one delays nobody.  A loop over
    it passes over clients that do not get in; accept() raises why, which ends
    trio.serve_listeners: use memenpsf.trio.serve instead.
    """

    _instead = Reception._instead  # noqa: SLF001 (one package)

    def __init__(self, reception: Reception) -> None:
        self._reception = reception
        reception.per_turn = _PER_TURN
        self._accepting = trio.Lock()
        self._waiting = trio.CancelScope()

    @property
    def address(self) -> str:
        """Where it listens: a path, or @name."""
        return str(self._reception.bound.address)

    @property
    def refused(self) -> int:
        """How many clients were refused or failed to introduce themselves."""
        return self._reception.refused

    @enable_ki_protection
    async def accept(self) -> Interface:
        """Return the next client.

        Raises Refused, CorruptPeer or HandshakeTimeout for a client that did not get in, OSError
        when a resource is short: the listener stays usable.  Closed, once it is closed.
        """
        await checkpoint_if_cancelled()
        async with self._accepting:
            try:
                await self._rest()
                while (endpoint := self._reception.turn()) is None:
                    await self._rest()
                    await self._wait()
            except QueueError as error:
                raise _translated(error) from error.__cause__
        await cancel_shielded_checkpoint()
        try:
            return Interface._of(endpoint, self._reception.terms, self._reception.role)  # noqa: SLF001 (one module)
        except BaseException:  # no memory
            endpoint.close()
            raise

    async def _rest(self) -> None:
        seconds = self._reception.respite()
        if seconds:
            with trio.move_on_after(seconds) as self._waiting:
                await trio.sleep_forever()

    async def _wait(self) -> None:
        if self._reception.closed:  # meanwhile
            return
        # None at all while descriptors are short: then only the time, or the end, is waited for.
        interests = [interest for interest in self._reception.interests() if interest[1]]
        due = self._reception.next_deadline() - monotonic()
        with trio.move_on_after(max(0.0, due)) as scope:
            self._waiting = scope
            if not interests:
                await trio.sleep_forever()
            try:
                # One to wait for all, as a task for each would take longer than what it waits for.
                epoll = select.epoll()
            except OSError:  # no descriptor is left
                await trio.sleep(BACK_OFF)
                return
            with epoll:
                for fd, events in interests:
                    epoll.register(fd, events)
                await wait_readable(epoll)

    def __aiter__(self) -> Listener:
        """Yield clients until the listener is closed.

        Those refused, or not served because a resource is short, are logged and passed over, so
        that no client ends the loop; of a storm of them, the first 20 within 10 s, and the number
        of the others.
        """
        return self

    async def __anext__(self) -> Interface:
        while True:
            try:
                return await self.accept()
            except Closed:
                raise StopAsyncIteration from None
            except CAUSED_BY_ONE as error:
                self._reception.log.add(error)

    async def aclose(self) -> None:
        """Stop listening and remove the socket file; the connections accepted live on."""
        if not self._reception.closed:
            self._waiting.cancel()
            self._reception.close()
        await checkpoint()

    def __repr__(self) -> str:
        state = "closed" if self._reception.closed else "open"
        return f"<memenpsf.trio.Listener {self.address}: {state}>"


# How many handshakes are begun, and helped on, before other tasks have their turn: each may cost
# half a millisecond.
_PER_TURN = 1


async def listen(address: str | os.PathLike[str], record: Any, **options: Any) -> Listener:
    """Listen at an address: a bare name, a path, or @name (abstract); as memenpsf.listen.

    Where other servers of this user are just starting, other tasks run meanwhile.
    """
    await checkpoint()
    reception = Reception.unbound(address, record, **options)
    await _drive(reception.binding())
    return Listener(reception)


async def serve(
    handler: Callable[[Interface], Awaitable[object]],
    address: str | os.PathLike[str],
    record: Any,
    *,
    on_error: OnError = "log",
    task_status: trio.TaskStatus[Listener] = trio.TASK_STATUS_IGNORED,
    **options: Any,
) -> None:
    """Serve many clients: a task that runs handler(interface) for each.

    `await nursery.start(serve, …)` gives the Listener; closing it ends this once the handlers
    are done.  The interface of a client is closed when its handler is done.

    No client ends the server.  Whatever a verb of a client's interface raises ends that client
    alone, and is logged in one line; a client that is refused is logged, too.  Of a storm the
    first 20 lines in 10 s are logged, then their number.

    `on_error` says what to do about an exception of a handler's own, of another interface that it
    uses, for example: "log" it with its traceback (and serve on); "raise" it, as
    trio.serve_listeners does, which ends all clients; or a plain function
    on_error(interface, error), which may raise; the interface is closed by then.  In a group, only
    what is not of the client's interface counts.  Cancelled, KeyboardInterrupt and the like always
    propagate.

    Raises TypeError and ValueError before anything is opened, and what listen raises.
    """
    checked_handler(handler)
    checked_on_error(on_error)
    check_options("serve", options, Reception.OPTIONS)
    async with await listen(address, record, **options) as listener:
        policy = Policy(on_error, listener.address)
        try:
            async with trio.open_nursery() as nursery:
                task_status.started(listener)
                async for interface in listener:
                    try:
                        nursery.start_soon(_handle, handler, interface, policy)
                    except MemoryError as error:
                        interface.close()
                        listener._reception.log.add(error)  # noqa: SLF001 (one module)
        finally:
            policy.close()


async def _handle(
    handler: Callable[[Interface], Awaitable[object]], interface: Interface, policy: Policy
) -> None:
    try:
        # Not aclose(): its checkpoint may raise Cancelled in place of what the handler raises.
        with contextlib.closing(interface):
            await handler(interface)
    except BaseException as error:
        rest = policy.settle(interface, error)
        if rest is error:
            raise
        if rest is not None:
            raise rest from None


async def run(
    name: str,
    cap: int,
    typ: int,
    stream: trio.SocketStream | trio.socket.SocketType | socket.socket,
    recvr: trio.MemoryReceiveChannel[Any],
    sender: trio.MemorySendChannel[Any],
    record: Any,
    **options: Any,
) -> Ended:
    """Move records between a connection and two memory channels until the peer ends.

    As memenpsf.run; the end of `recvr`, or None in it, ends the connection in good order.
    """
    role = "client" if typ == 0 else "server"
    try:
        check_loop_options(options)
    except TypeError:
        ipcqueue.drop_socket(_plain_socket(stream))
        raise
    async with Interface(
        stream, record, name=name, capacity=cap, role=role, **options
    ) as interface:
        await interface.do_handshake()
        return await _Loop(interface, recvr, sender).run()


class _Loop(Owner):
    def __init__(
        self,
        interface: Interface,
        source: trio.MemoryReceiveChannel[Any],
        sink: trio.MemorySendChannel[Any],
    ) -> None:
        self._interface = interface
        self._source = source
        self._sink = sink
        self._scope = trio.CancelScope()
        self._sending = trio.CancelScope()
        self._arrived: deque[Any] = deque()
        self._ended = Ended(Closed("the source of records has ended"))
        self._cause: Exception | None = None  # of the end of sending, if receiving does not meet it
        self._error: Exception | None = None

    async def run(self) -> Ended:
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._task, self._send)
                    nursery.start_soon(self._task, self._receive)
            if self._error is not None:
                # What was taken from the ring is delivered all the same, if the sink takes it.
                with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    await self._deliver()
                raise self._error
        except BaseException as error:
            hand_back(error, self._ended.unsent)
            raise
        self._ended.cause = self._cause or self._ended.cause
        return self._ended

    async def _task(self, body: Callable[[], Awaitable[Exception]]) -> None:
        try:
            self._ended.cause = await body()
        except Exception as error:
            self._error = error
            self._scope.cancel()

    async def _receive(self) -> Exception:
        while True:
            try:
                self._arrived.extend(await self._interface.recv_vectored())
            except Exception as error:
                if not is_a_cause(error, self._interface):
                    raise
                self._sending.cancel()
                return error
            await self._deliver()

    async def _deliver(self) -> None:
        while self._arrived:
            await self._sink.send(self._arrived[0])
            self._arrived.popleft()

    async def _send(self) -> Exception:
        try:
            with self._sending:
                # Space first: what is taken from the source can then be sent at once, so nothing
                # is in hand when the loop is cancelled.
                await self._interface.await_space()
                async for record in self._source:
                    if record is None:
                        break
                    await self._xmit(record)
                    await self._interface.await_space()
        except Exception as error:
            if not is_a_cause(error, self._interface):
                raise
            if isinstance(error, (EndOfStream, PeerDied)):
                return error  # the receiving side meets the same end, after draining
            self._cause = error
        if not self._sending.cancelled_caught:
            self._interface.finish()
        return self._ended.cause

    async def _xmit(self, record: Any) -> None:
        try:
            try:
                self._interface.xmit_nowait(record)
            except Full:
                # There is space, but it travels outside the ring, and too many others do.
                await self._interface.xmit(record)
        except BaseException:  # it was not sent
            self._ended.unsent.append(record)
            raise
