"""From a connected socket to an Endpoint, in steps that do not wait.

`Terms` is what this side wants, checked once; an `Opening` is one handshake under these terms.
Who waits for it: `_blocking.open_endpoint`, listeners, and `memenpsf.trio`.
"""

from __future__ import annotations

import errno
import math
import mmap
import os
import select
import socket
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import fdpass
from fdpass import Seconds, index_of, monotonic, seconds_of, shown_seconds

from . import _ring, _segment
from ._binding import persist
from ._control import HELLO, err
from ._endpoint import Endpoint, tell
from ._errors import CorruptPeer, CredentialsRefused, HandshakeTimeout, PeerDied, QueueError
from ._handshake import HEADER_SIZE, Greeting, Identity, Role, check, checked_name
from ._message import Limits
from ._process import Process, process_behind
from ._record import AnyCodec, codec_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from ._segment import Segment


def checked_socket(sock: socket.socket) -> socket.socket:
    """Return the socket; raise TypeError for what is none, and so cannot be closed either."""
    if not isinstance(sock, socket.socket):
        raise TypeError(f"expected a connected AF_UNIX socket, got {sock!r}")
    return sock


def deadline_of(timeout: Seconds) -> float:
    """Return the monotonic() at which `timeout` seconds are over; None means never.

    What `timeout` means everywhere: see fdpass.seconds_of(), which says what it raises.
    """
    if timeout is None:
        return math.inf
    return monotonic() + seconds_of(timeout)


# What a ring holds unless told otherwise.  A thousand records hide the time that a receiver sleeps;
# a mebibyte is a thousand messages of ordinary size, inside the last-level cache, and as many small
# records as two processes with other busy threads need, which wait for the interpreter 5 ms at a time.
DEFAULT_RECORDS = 1024
DEFAULT_BYTES = 1 << 20
# But at most so many bytes of large records, if that is still a few.
MOST_DEFAULT_BYTES, FEWEST_RECORDS = 16 << 20, 4

# A message that takes more than this part of the ring travels outside of it, unless told otherwise.
INLINE_PART = 4


# How to wait; and the longest time to look before sleeping, in seconds: the socket, through which
# the end comes, is looked at only then.
STRATEGIES = ("spin", "busy", "sleep")
MOST_SPIN = _ring.MOST_SPIN_NS / 1e9

# More bytes than any file has.
_ANY_SIZE = 1 << 62

_LIMITS = Limits()


def checked_number(what: str, number: int, most: int) -> int:
    """Return the number; raise TypeError or ValueError unless it is one from 0 to `most`."""
    try:
        number = index_of(number)
    except TypeError:
        raise TypeError(f"{what} is a number (int), not {number!r}") from None
    if not 0 <= number <= most:
        raise ValueError(f"{what} is from 0 to {most}, not {number}")
    return number


def checked_flag(what: str, flag: bool) -> bool:
    """Return the flag; raise TypeError unless it is True or False."""
    if not isinstance(flag, bool):
        raise TypeError(f"{what} is True or False, not {flag!r}")
    return flag


def checked_uids(allow_uids: Iterable[int] | None) -> frozenset[int] | None:
    """Return the user ids to admit, as they are now; None admits anybody, an empty set nobody.

    Raises TypeError for what holds no numbers, ValueError for what no user has.
    """
    if allow_uids is None:
        return None
    expected = "allow_uids is None or a collection of user ids, such as {1000}"
    if isinstance(allow_uids, str | bytes | bytearray | memoryview):
        raise TypeError(f"{expected}; not {allow_uids!r}")
    try:
        given = iter(allow_uids)
    except TypeError:
        raise TypeError(f"{expected}; not {allow_uids!r}") from None
    return frozenset(checked_number("a user id in allow_uids", uid, _LAST_UID) for uid in given)


_LAST_UID = 0xFFFFFFFE  # the next, (uid_t) -1, means no user


def check_options(
    caller: str,
    options: Iterable[str],
    own: Iterable[str] = (),
    elsewhere: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Raise TypeError unless each option is one of Terms, or of the caller's `own`.

    `caller` is what the user has called; `elsewhere` says where options go that it does not take.
    """
    known = {*Terms.OPTIONS, *own}
    for option in options:
        if option in known and option not in elsewhere:
            continue
        what = f"{caller}() got an unknown option {option!r}"
        if option in elsewhere:
            raise TypeError(f"{what}, which goes to {elsewhere[option]}")
        from difflib import get_close_matches  # noqa: PLC0415 (slow to import)

        for near in get_close_matches(option, [*known, *elsewhere], 1):
            there = "" if near in known else f" of {elsewhere[near]}"
            raise TypeError(f"{what}; did you mean {near!r}{there}?")
        raise TypeError(f"{what}; there are {', '.join(sorted(known))}")


def default_records(size: int) -> int:
    """Return how many records of so many bytes a ring holds unless told otherwise: a power of two."""
    most = max(FEWEST_RECORDS, MOST_DEFAULT_BYTES // size)
    count = min(most, max(DEFAULT_RECORDS, DEFAULT_BYTES // size))
    return 1 << (count.bit_length() - 1)


def checked_patience(wait: str, spin: Seconds) -> _ring.Patience:
    """Return how long to look before sleeping; raise TypeError or ValueError for what says nothing.

    `spin` is in seconds.
    """
    if wait not in STRATEGIES:
        raise ValueError(f"wait is one of {STRATEGIES}, not {wait!r}")
    if spin is None:
        return {"spin": _ring.ADAPTIVE, "busy": _ring.BUSY, "sleep": _ring.Patience(0, False)}[wait]
    try:
        seconds = seconds_of(spin, "spin")
    except TypeError:
        expected = "a number of seconds or None"
        raise TypeError(f"spin is {expected}, not {spin!r}") from None
    except ValueError:
        seconds = math.inf
    if wait != "spin":
        raise ValueError(f"spin goes with wait='spin', not with wait={wait!r}")
    if seconds > MOST_SPIN:
        raise ValueError(f"spin is from 0 to {MOST_SPIN} seconds, not {spin}")
    return _ring.Patience(int(seconds * 1e9), False)


class Terms:
    """What this side wants of a connection, checked; for any number of connections."""

    OPTIONS: ClassVar[frozenset[str]]
    """The names of the options below."""

    def __init__(
        self,
        record: Any,
        role: Role,
        *,
        capacity: int | None = None,
        name: str = "",
        timeout: Seconds = 5.0,
        allow_uids: Iterable[int] | None = None,
        max_segment: int = _segment.MAX_SEGMENT,
        max_message: int = _LIMITS.max_message,
        inline: int | None = None,
        accept_fds: int = _LIMITS.fds,
        accept_regions: int = _LIMITS.regions,
        accept_shared: bool = False,
        accept_sockets: bool = False,
        max_region: int = _LIMITS.max_region,
        wait: str = "spin",
        spin: Seconds = None,
    ) -> None:
        """Take the options that every constructor and listener passes on; see Connection."""
        self.timeout = None if timeout is None else seconds_of(timeout)
        self.allow_uids = checked_uids(allow_uids)
        self.codec: AnyCodec = codec_for(record)
        self.role = role
        frames = self.codec.shape == _ring.FRAMES
        if capacity is None:
            capacity = DEFAULT_BYTES if frames else default_records(self.codec.size)
        least = mmap.PAGESIZE if frames else 1
        if frames and mmap.PAGESIZE != HEADER_SIZE:
            # The second mapping of the ring must follow the first, and begin with a page.
            raise OSError(
                errno.ENOTSUP,
                f"messages of any length need memory pages of {HEADER_SIZE} bytes, "
                f"and here they have {mmap.PAGESIZE}",
            )
        capacity = _segment.rounded_capacity(capacity, least)
        self.capacity = capacity if role.sends else 0
        if inline is None or not role.sends:
            inline = self.capacity // INLINE_PART
        self.inline = checked_number("inline", inline, self.capacity)
        self.limits = Limits(
            checked_number("max_message", max_message, _ANY_SIZE),
            checked_number("accept_fds", accept_fds, fdpass.MAX_FDS),
            checked_number("accept_regions", accept_regions, fdpass.MAX_FDS),
            checked_number("max_region", max_region, _ANY_SIZE),
            checked_flag("accept_shared", accept_shared),
            checked_flag("accept_sockets", accept_sockets),
        )
        self.name = checked_name(name)
        self.max_segment = checked_number("max_segment", max_segment, _ANY_SIZE)
        self.patience = checked_patience(wait, spin)

    @property
    def segment_size(self) -> int:
        """The bytes of shared memory that this side makes for each connection."""
        return _segment.needed(self.codec.size, self.capacity)

    @property
    def descriptors_per_message(self) -> int:
        """How many descriptors this side accepts with one message; 0 for records."""
        frames = self.codec.shape == _ring.FRAMES
        return min(self.limits.most_fds(), fdpass.MAX_FDS) if frames else 0


Terms.OPTIONS = frozenset(Terms.__init__.__kwdefaults__ or ())


class Lease(fdpass.Owner):
    """What a connection takes of a limit; who counts makes a subclass."""

    counts_descriptors = False
    """Whether fits() says anything: else the connection does not ask."""

    def take(self, size: int) -> None:
        """Count so many more bytes of shared memory; raise LimitRefused if they are too many."""

    def follow(self, held: Callable[[], int]) -> None:
        """Count what `held` returns, from now on: the descriptors that came or go with messages.

        It can be called at any time, in any thread.
        """

    def fits(self, count: int) -> bool:
        """Whether there is room for `count` descriptors, which `held` returns among the others.

        If not, the connection waits: it leaves them in its socket, or does not send them.
        """
        del count
        return True

    def close(self, *, served: bool = True) -> None:
        """Give all back: idempotent, from any thread, and from finalizers, so without a lock.

        `served` is False if no record went over the connection, either way.
        """


class Opening(fdpass.Owner):
    """A connection in the making, in steps that do not wait.

    Takes the socket: it becomes non-blocking, and is closed when the opening fails.  Takes the
    lease, too: it is asked before memory is made or mapped, and closed with the connection.
    """

    def __init__(self, sock: socket.socket, terms: Terms, lease: Lease | None = None) -> None:
        self.sock = checked_socket(sock)
        self.lease = lease or Lease()
        self.terms = terms
        self._segments: list[Segment] = []
        self._greeting = Greeting()
        self._received: list[fdpass.Fd] = []
        self._said_hello = False
        self._generation = _ring.fork_generation()
        self._sender: fdpass.Fd | None = None  # of the peer's HELLO: a pidfd
        self._passed_pidfd = False
        self.process: Process | None = None
        self.begun = monotonic()
        self.deadline = deadline_of(terms.timeout)
        try:
            if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
                raise ValueError(f"expected an AF_UNIX SOCK_STREAM socket, got {sock!r}")
            sock.setblocking(False)
            self.peer = fdpass.peer_credentials(sock)
            admitted = terms.allow_uids
            if admitted is not None and self.peer.uid not in admitted:
                raise CredentialsRefused(
                    f"the peer runs under uid {self.peer.uid}, admitted are {sorted(admitted)}"
                )
            if admitted is not None and fdpass.is_ambiguous_uid(self.peer.uid):
                raise CredentialsRefused(
                    f"the peer's uid {self.peer.uid} stands for every user that this user "
                    "namespace does not map, so it says nothing about who the peer is"
                )
            self._passed_pidfd = fdpass.pass_pidfd(sock)
            self.lease.take(terms.segment_size)
            self._segments.append(
                _segment.create(terms.codec, terms.capacity, terms.name, terms.limits)
            )
        except BaseException as error:
            persist(self.abandon, error)
            raise

    def fileno(self) -> int:
        """Return the socket's descriptor, to poll for `events`."""
        return self.sock.fileno()

    @property
    def events(self) -> int:
        """What the next step waits for: POLLIN, with POLLOUT until HELLO is sent."""
        return select.POLLIN if self._said_hello else select.POLLIN | select.POLLOUT

    def step(self) -> Endpoint | None:
        """Do what can be done now; return the Endpoint once both sides have agreed.

        Raises Refused, CorruptPeer, PeerDied, OSError, and HandshakeTimeout from `deadline` on (a
        monotonic()); then everything is closed, and the peer has been told why as far as it
        listens.
        """
        try:
            if not self._said_hello:
                self._say_hello()
            if not self._hear_hello():
                if monotonic() >= self.deadline:
                    raise HandshakeTimeout(
                        "the peer did not introduce itself within "
                        f"{shown_seconds(self.terms.timeout)}"
                    )
                return None
            fdpass.pass_pidfd(self.sock, on=self._passed_pidfd)
            segment = self._adopt_segment()
            pid = segment.identity.creator_pid
            sender, self._sender = self._sender, None
            self.process = process_behind(self.sock, sender, self.peer, pid)
            return Endpoint(self, self._segments[0], segment)
        except BaseException as error:
            persist(self.abandon, error)
            raise

    def _say_hello(self) -> None:
        try:
            fdpass.send_fds(self.sock, [self._segments[0].memfd], HELLO)
        except BlockingIOError:
            return
        except fdpass.TooManyInFlight as error:
            raise OSError(errno.ETOOMANYREFS, f"sending a descriptor: {error}") from error
        except (BrokenPipeError, ConnectionResetError):
            pass  # the peer may have said why before it left: listen first
        self._said_hello = True

    def _hear_hello(self) -> bool:
        while self._greeting.missing:
            try:
                missing = self._greeting.missing
                data, fds, sender = fdpass.recv_fds_and_pidfd(self.sock, 1, missing)
            except BlockingIOError:
                return False
            except fdpass.TruncatedDescriptors as error:
                # There is always room for one, so the shortage is ours.
                raise OSError(
                    errno.EMFILE, f"receiving a descriptor: {os.strerror(errno.EMFILE)}"
                ) from error
            except fdpass.FdPassError as error:
                raise CorruptPeer(f"the peer's HELLO: {error}") from error
            except ConnectionResetError:
                data, fds, sender = b"", [], None
            self._received += fds
            if sender is not None:
                sender, self._sender = self._sender, sender
                if sender is not None:
                    sender.close()
            if not data:
                raise PeerDied("the peer closed the connection before it had introduced itself")
            self._greeting.feed(data, len(fds))
        return self._said_hello

    def _adopt_segment(self) -> Segment:
        def judge(identity: Identity, size: int) -> None:
            check(self._segments[0].identity, self.terms.role, identity, size)
            self.lease.take(size)

        segment = _segment.adopt(self._received.pop(), self.terms.max_segment, judge)
        self._segments.append(segment)
        if os.path.samestat(*(os.fstat(s.memfd.fileno()) for s in self._segments)):
            raise CorruptPeer("the peer sent our own segment back")
        return segment

    def abandon(self, error: BaseException | None = None) -> None:
        """Give up: tell the peer why if it can be told, and close everything.

        In a forked child it only closes the child's copies of the descriptors.
        """
        if self._generation == _ring.fork_generation():
            refuse(self.sock, error)
        else:
            self.sock.close()
        fdpass.close_untrusted(self._received)
        for held in (self._sender, self.process, *self._segments):
            if held is not None:
                held.close()
        self.lease.close()


def refuse(sock: socket.socket, error: BaseException | None) -> None:
    """Close a connection in the making, and tell the peer why if it can be told."""
    if isinstance(error, QueueError | OSError):
        tell(sock, err(error))
    fdpass.drop_socket(sock)
