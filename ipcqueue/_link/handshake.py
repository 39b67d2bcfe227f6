"""What two ends must agree on before the first record: a decision, without I/O.

Both sides send HELLO with the descriptor of their segment.  Everything else stands in the
segment's identity, which `check` compares with this side's own.
"""

from __future__ import annotations

import mmap
from operator import itemgetter
from typing import TYPE_CHECKING

from ipcqueue._errors import CorruptPeer, RecordRefused, RoleRefused, VersionRefused
from ipcqueue._records.names import NO_NAMES, check_names
from ipcqueue._ring.identity import FIRST_WAKE_LINE, HEADER_SIZE, LAST_WAKE_LINE, MAGIC

from .control import HELLO, Opcode, refusal

if TYPE_CHECKING:
    from ipcqueue._records.names import Names
    from ipcqueue._ring.identity import Identity

MAX_NAME_BYTES = 64
_NO_SESSION = bytes(16)


class Role:
    """Which of the two one-way queues of a connection this side has."""

    def __init__(self, sends: bool, receives: bool) -> None:
        self.sends = sends
        self.receives = receives

    def __str__(self) -> str:
        both = "sends and receives"
        return both if self.sends and self.receives else "sends" if self.sends else "receives"


def checked_name(name: str) -> str:
    """Return the name; raise TypeError or ValueError for one that a segment cannot hold."""
    if not isinstance(name, str):
        raise TypeError(f"a name is a str, not {name!r}")
    if "\0" in name:
        raise ValueError(f"a name has no null character, and this one has: {name!r}")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise ValueError(f"a name is text that UTF-8 can encode, not {name!r}") from None
    if size > MAX_NAME_BYTES:
        raise ValueError(f"a name is at most {MAX_NAME_BYTES} bytes of UTF-8, not {size}: {name!r}")
    return name


def check(
    mine: Identity, role: Role, peer: Identity, file_size: int, names: Names = NO_NAMES
) -> None:
    """Raise unless the peer's segment fits mine; `names` are those of my record's fields.

    VersionRefused, RecordRefused and RoleRefused say what both sides want; CorruptPeer says
    that the segment contradicts itself or its file of `file_size` bytes.
    """
    if peer.magic != MAGIC:
        raise CorruptPeer(f"the peer's segment begins with {peer.magic!r} instead of {MAGIC!r}")
    for what in ("layout_version", "byte_order", "header_size"):
        ours, theirs = getattr(mine, what), getattr(peer, what)
        if ours != theirs:
            raise VersionRefused(f"{what} here is {ours:#x}, the peer's is {theirs:#x}")
    if mine.layout != peer.layout:
        raise _other_record(mine, peer, names)
    if role.receives != (peer.capacity > 0):
        does = "sends" if peer.capacity else "only receives"
        raise RoleRefused(f"this end {role}, and its peer {does}")
    _check_words(peer)
    _check_ring(peer, file_size)


def _other_record(mine: Identity, peer: Identity, names: Names) -> RecordRefused:
    """Return the error for records of two layouts."""
    from ipcqueue._records.difference import difference  # noqa: PLC0415 (most programs do without)

    both = f"a record here is [{mine.record}], the peer's is [{peer.record}]"
    if mine.record == peer.record:
        return RecordRefused(f"{both} (same words, other fingerprint)")
    first = difference(mine.record, peer.record, names, peer.names)
    return RecordRefused(f"{both}; {first}" if first else both)


def _check_words(peer: Identity) -> None:
    """Raise CorruptPeer unless what is for publishers and sessions is as it is without them."""
    if not FIRST_WAKE_LINE <= peer.wake_line <= LAST_WAKE_LINE:
        raise CorruptPeer(
            f"the peer's words are in line {peer.wake_line}, which is not from "
            f"{FIRST_WAKE_LINE} to {LAST_WAKE_LINE}"
        )
    if peer.generation or peer.base or peer.switch_at:
        words = ((what, getattr(peer, what)) for what in ("generation", "base", "switch_at"))
        what, value = next(filter(itemgetter(1), words))
        raise CorruptPeer(f"the peer's {what} is {value}, and must be 0")
    if peer.reserved:
        raise CorruptPeer("the peer's segment has words that are not zero and must be")
    if peer.session != _NO_SESSION:
        raise CorruptPeer("the peer's segment belongs to a session, and there are none")


def _check_ring(peer: Identity, file_size: int) -> None:
    """Raise CorruptPeer unless the peer's ring fits its file."""
    if peer.capacity & (peer.capacity - 1):
        raise CorruptPeer(f"the peer's capacity is {peer.capacity}, not a power of two")
    if peer.shape and (peer.capacity % mmap.PAGESIZE or file_size % mmap.PAGESIZE):
        raise CorruptPeer(
            f"the peer's ring of frames has {peer.capacity} bytes in a file of {file_size}, "
            "which are not both whole pages"
        )
    needed = HEADER_SIZE + peer.capacity * peer.slot_size
    if not needed <= peer.segment_size == file_size:
        raise CorruptPeer(
            f"the peer's segment needs {needed} bytes, says that it has {peer.segment_size}, "
            f"and its file has {file_size}"
        )


def check_fields(names: Names, peer: Identity) -> None:
    """Raise RecordRefused if a name is at another place of the peer's record, which check() took.

    CorruptPeer for a table of names that contradicts itself.
    """
    try:
        differ = check_names(names, peer.names, peer.slot_size)
    except ValueError as error:
        raise CorruptPeer(f"the peer's segment states {error}") from None
    if differ:
        raise RecordRefused(
            f"the records have one layout, and other names: {differ}; values would arrive in other"
            " fields, so state them in the same order, or by other names"
        )


class Greeting:
    """Waits for the two bytes and the one descriptor that open every connection."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._descriptors = 0

    @property
    def missing(self) -> int:
        """How many bytes to read next: never one more, as what follows is not ours."""
        return len(HELLO) - len(self._bytes)

    def feed(self, data: bytes, descriptors: int) -> bool:
        """Take bytes and the number of descriptors beside them; return whether all is there.

        Raises what an ERR stands for, VersionRefused, or CorruptPeer.
        """
        self._bytes += data
        self._descriptors += descriptors
        if self._bytes and self._bytes[0] not in (Opcode.HELLO, Opcode.ERR):
            raise CorruptPeer(f"the peer began with opcode {self._bytes[0]} instead of HELLO")
        if self.missing:
            return False
        opcode, argument = self._bytes
        if opcode == Opcode.ERR:
            raise refusal(argument)
        if argument != HELLO[1]:
            raise VersionRefused(f"the protocol here is {HELLO[1]}, the peer's is {argument}")
        if self._descriptors != 1:
            raise CorruptPeer(f"HELLO came with {self._descriptors} descriptors instead of one")
        return True
