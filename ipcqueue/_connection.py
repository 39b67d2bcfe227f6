"""What both ends of any queue can do beside moving records: see _verbs.py for that."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, overload

import fdpass
from fdpass.lowlevel import Closable

from . import _guesses
from ._direct import persist
from ._leaving import leave
from ._link.opening import Opening
from ._link.terms import Terms, check_options, checked_socket
from ._origin import tag_error, tagged
from ._threads import Threads, open_endpoint
from ._types import T

if TYPE_CHECKING:
    import socket
    from typing import Unpack

    from fdpass import Credentials, Seconds

    from ._link.endpoint import Endpoint
    from ._link.handshake import Role
    from ._link.options import Options
    from ._link.statistics import Statistics


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
        endpoint.belongs_to(self, type(self).__name__)
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
        """Return the counters of this side as they are now; after close(), as they were then."""
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
        """Return a descriptor for an event loop to watch; see arm().

        It becomes readable with a doorbell or a control message, at the end of the connection, and
        when the peer's process has exited (where peer_pidfd() is not None).  It is no socket, and
        belongs to this object.  The first call opens two descriptors, until this side is closed.

        Raises Closed; OSError (no descriptor is left).
        """
        return self._endpoint.events_fileno()

    @tagged
    def peer_pidfd(self) -> int | None:
        """Return a pidfd of the peer; None where the kernel has none.

        It becomes readable when the peer's process has exited, which the socket does not tell as
        long as a child of the peer's holds it open.  fileno() then becomes readable, too.
        Borrowed; Linux 6.5.  Raises Closed.
        """
        return self._endpoint.peer_pidfd()

    @tagged
    def finish(self) -> None:
        """End in good order, as close() does; what has arrived can still be received, then Closed.

        The peer drains what was published, then gets EndOfStream; indices() shows how much it has
        taken.  Call close() afterwards.
        """
        self._endpoint.finish()

    @tagged
    def close(self) -> None:
        """End in good order: the peer drains what was published, then gets EndOfStream.

        Idempotent; threads that wait here get Closed.  Records not yet received are dropped.
        """
        self._endpoint.close()

    @tagged
    def abort(self) -> None:
        """Close in the middle: the peer drains what was published, then gets Aborted.

        A with block that an exception leaves does the same.  Otherwise as close(); after finish()
        or close() there is nothing left to abort.
        """
        self._endpoint.abort()

    def __exit__(self, *exc_info: object) -> None:
        """Close, or abort, if an exception leaves the block that is no good end.

        Good ends are GeneratorExit, SystemExit without an error, and EndOfStream, ReceiverGone and
        Closed of this connection; so is a group of nothing else.
        """
        error = exc_info[1]
        leave(self, error if isinstance(error, BaseException) else None)

    def __repr__(self) -> str:
        endpoint: Any = vars(self).get("_endpoint")
        return f"<{type(self).__name__}: half made>" if endpoint is None else repr(endpoint)

    def __dir__(self) -> list[str]:
        return _guesses.listed(self, super().__dir__())


_guesses.guess(Connection, _guesses.ANY)
_guesses.guess(Connection, {"use `timeout` of each call; or arm(), and poll fileno()": ("poll",)})
