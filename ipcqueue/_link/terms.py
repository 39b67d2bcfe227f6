"""The Terms of a connection: all that this side wants of it, checked once."""

from __future__ import annotations

import errno
import math
import mmap
import socket
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import fdpass
from fdpass import Seconds
from fdpass.lowlevel import monotonic, seconds_of
from ipcqueue._records.spec import codec_for
from ipcqueue._ring.identity import HEADER_SIZE
from ipcqueue._ring.segment import FRAMES, MAX_SEGMENT, needed, rounded_capacity

from .handshake import Role, checked_name
from .options import (
    ANY_SIZE,
    INSTEAD,
    Accept,
    Spin,
    checked_accept,
    checked_number,
    checked_patience,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ipcqueue._records.codec import AnyCodec


def checked_socket(sock: socket.socket) -> socket.socket:
    """Return the socket; raise TypeError for anything else, which cannot be closed either."""
    if not isinstance(sock, socket.socket):
        raise TypeError(f"expected a connected AF_UNIX socket, got {sock!r}")
    return sock


def deadline_of(timeout: Seconds) -> float:
    """Return the monotonic() at which `timeout` seconds are over; None means never.

    fdpass.lowlevel.seconds_of() says what `timeout` may be, and what is raised otherwise.
    """
    if timeout is None:
        return math.inf
    return monotonic() + seconds_of(timeout)


# The default capacity.  A thousand records hide the time that a receiver sleeps.  A mebibyte is a
# thousand messages of ordinary size, and fits into the last-level cache.  Of small records it holds
# enough for two processes with other busy threads, which wait 5 ms at a time for the interpreter.
DEFAULT_RECORDS = 1024
DEFAULT_BYTES = 1 << 20
# Large records: no more than these bytes by default, but never fewer than these records.
MAX_DEFAULT_BYTES, FEWEST_RECORDS = 16 << 20, 4

# By default a message that takes more than a quarter of the ring travels outside of it.
INLINE_PART = 4


def checked_uids(allow_uids: Iterable[int] | None) -> frozenset[int] | None:
    """Return the user ids to admit, as they are now; None admits anybody, an empty set nobody.

    Raises TypeError unless these are numbers, ValueError for a number that no user has.
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


_ACCEPT = Accept()
_LAST_UID = 0xFFFFFFFE  # the next, (uid_t) -1, means no user


def check_options(
    caller: str,
    options: Iterable[str],
    own: Iterable[str] = (),
    elsewhere: Mapping[str, str] = MappingProxyType({}),
    instead: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Raise TypeError unless each option is one of Terms, or of the caller's `own`.

    `caller` is the function that the user has called; `elsewhere` says where options go that it
    does not take; `instead` says what to write for former options and for fields of other values,
    beside those of INSTEAD.
    """
    known = {*Terms.OPTIONS, *own}.difference(elsewhere)
    for option in options:
        if option in known:
            continue
        what = f"{caller}() got an unknown option {option!r}"
        if option in elsewhere:
            raise TypeError(f"{what}, which goes to {elsewhere[option]}")
        if option in INSTEAD or option in instead:
            raise TypeError(f"{what}: write {INSTEAD.get(option) or instead[option]} instead")
        from difflib import get_close_matches  # noqa: PLC0415 (slow to import)

        for near in get_close_matches(option, [*known, *elsewhere], 1):
            there = "" if near in known else f" of {elsewhere[near]}"
            raise TypeError(f"{what}; did you mean {near!r}{there}?")
        raise TypeError(f"{what}; there are {', '.join(sorted(known))}")


def default_records(size: int) -> int:
    """Return how many records of this size a ring holds by default: a power of two."""
    most = max(FEWEST_RECORDS, MAX_DEFAULT_BYTES // size)
    count = min(most, max(DEFAULT_RECORDS, DEFAULT_BYTES // size))
    return 1 << (count.bit_length() - 1)


def _load_ends(*, frames: bool) -> tuple[Any, Any]:
    """Return what sends and what receives by one shape of ring.

    Loaded now: few programs need both shapes, and each takes a millisecond.

    Here, before anything is opened: to read a module takes a descriptor, and may fail.
    """
    if frames:
        from ipcqueue._ring.frame_receiver import FrameReceiver  # noqa: PLC0415
        from ipcqueue._ring.frame_sender import FrameSender  # noqa: PLC0415

        return FrameSender, FrameReceiver
    from ipcqueue._ring.slot_receiver import SlotReceiver  # noqa: PLC0415
    from ipcqueue._ring.slot_sender import SlotSender  # noqa: PLC0415

    return SlotSender, SlotReceiver


class Terms:
    """All that this side wants of a connection, checked; for any number of connections."""

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
        inline: int | None = None,
        accept: Accept = _ACCEPT,
        wait: str | Spin = "spin",
    ) -> None:
        """Check the options that every constructor and listener passes on; see Connection."""
        self.timeout = None if timeout is None else seconds_of(timeout)
        self.allow_uids = checked_uids(allow_uids)
        self.codec: AnyCodec = codec_for(record)
        self.role = role
        frames = self.codec.shape == FRAMES
        self.ends = _load_ends(frames=frames)
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
        capacity = rounded_capacity(capacity, least, self.codec.size)
        self.capacity = capacity if role.sends else 0
        inline = capacity // INLINE_PART if inline is None else inline
        self.inline = checked_number("inline", inline, capacity)
        self.limits = checked_accept(accept)
        self.name = checked_name(name)
        self.max_segment = checked_number("max_segment", max_segment, ANY_SIZE, HEADER_SIZE)
        self.patience = checked_patience(wait)

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
