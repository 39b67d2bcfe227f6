"""What this side wants of a connection, checked once."""

from __future__ import annotations

import errno
import math
import mmap
import socket
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import fdpass
from fdpass import Seconds
from fdpass.lowlevel import index_of, monotonic, seconds_of
from ipcqueue._records.messages import Limits
from ipcqueue._records.spec import codec_for
from ipcqueue._ring.identity import HEADER_SIZE
from ipcqueue._ring.patience import ADAPTIVE, BUSY, MOST_SPIN_NS, Patience
from ipcqueue._ring.segment import FRAMES, MAX_SEGMENT, needed, rounded_capacity

from .handshake import Role, checked_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ipcqueue._records.codec import AnyCodec


def checked_socket(sock: socket.socket) -> socket.socket:
    """Return the socket; raise TypeError for what is none, and so cannot be closed either."""
    if not isinstance(sock, socket.socket):
        raise TypeError(f"expected a connected AF_UNIX socket, got {sock!r}")
    return sock


def deadline_of(timeout: Seconds) -> float:
    """Return the monotonic() at which `timeout` seconds are over; None means never.

    What `timeout` means everywhere: see fdpass.lowlevel.seconds_of(), which says what it
    raises.
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
MOST_SPIN = MOST_SPIN_NS / 1e9

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


def checked_patience(wait: str, spin: Seconds) -> Patience:
    """Return how long to look before sleeping; raise TypeError or ValueError for what says nothing.

    `spin` is in seconds.
    """
    if wait not in STRATEGIES:
        raise ValueError(f"wait is one of {STRATEGIES}, not {wait!r}")
    if spin is None:
        return {"spin": ADAPTIVE, "busy": BUSY, "sleep": Patience(0, False)}[wait]
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
    return Patience(int(seconds * 1e9), False)


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
        max_segment: int = MAX_SEGMENT,
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
        frames = self.codec.shape == FRAMES
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
        capacity = rounded_capacity(capacity, least)
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
        return needed(self.codec.size, self.capacity)

    @property
    def descriptors_per_message(self) -> int:
        """How many descriptors this side accepts with one message; 0 for records."""
        frames = self.codec.shape == FRAMES
        return min(self.limits.most_fds(), fdpass.MAX_FDS) if frames else 0


Terms.OPTIONS = frozenset(Terms.__init__.__kwdefaults__ or ())
