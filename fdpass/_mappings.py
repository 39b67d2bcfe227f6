"""Mappings that a receiver keeps of memory that it will be lent again.

Mapping 8 MiB with all its pages, and unmapping it, takes a quarter of a millisecond: several
times what handing it over does. A registry lends the same few files again and again, so who
receives from one can keep the mapping, although it lets go of the memory (closes the token).

Keeping needs no trust. A mapping is used again only for a descriptor that has passed all checks
and then turned out to be of the very file that is mapped: by device and inode number as the
kernel tells them, neither of which it gives to another file while the mapping holds this one.
That file's seals and size are final, nobody can punch holes into it (FUTURE_WRITE), and all its
pages were brought in when it was mapped, and made to stay (Memfd.keep_pages()).
"""

import os
import sys
from collections.abc import Callable
from typing import Final, NamedTuple

from ._clock import monotonic
from ._memfd import Mapped, Memfd
from ._numbers import Seconds, index_of, seconds_of
from ._owner import Owner


class _Kept(NamedTuple):
    device_and_inode: tuple[int, int]
    mapping: Mapped
    since: float


class Mappings(Owner):
    """Keeps a few mappings of lent memory, for MemoryRegion.adopt(); the caller closes it.

    What is kept is memory, also if the giver has freed it meanwhile: at most `limit` files of
    `max_bytes` together, none for longer than `seconds` after its last use (looked at when another
    is let go of), and none after close(). Before Python 3.13 each keeps a descriptor open.

    For one giver each, as a giver could otherwise drive out what belongs to the others. Any
    thread may use it.
    """

    _instead = "make one for each connection"

    # There is no lock: a region may be closed by the garbage collector, in the middle of any of
    # this. Each operation on the list is atomic, and who removes a mapping has it for himself.

    def __init__(
        self,
        *,
        limit: int = 8,
        max_bytes: int = 64 << 20,
        seconds: Seconds = 5.0,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._limit = index_of(limit) if _INODES_ARE_UNIQUE else 0
        self._max_bytes = index_of(max_bytes)
        self._seconds = seconds_of(seconds, "seconds")
        self._clock = clock
        self._kept: list[_Kept] = []  # in the order of their last use

    def __len__(self) -> int:
        return len(self._kept)

    def take(self, memfd: Memfd) -> Mapped | None:
        """Give away the mapping of a file that was adopted, if there is one."""
        for each in self._kept[::-1]:
            if each.device_and_inode == memfd.device_and_inode and self._remove(each):
                return each.mapping
        return None

    def keep(self, memfd: Memfd, mapping: Mapped) -> None:
        """Take a mapping, of which there is no view, and close others that are too many."""
        if memfd.device_and_inode is None:
            mapping.close()
            return
        self._kept.append(_Kept(memfd.device_and_inode, mapping, self._clock()))
        self._trim()

    def close(self) -> None:
        """Close them all, and from now on each at once; doing so again does nothing."""
        self._limit = 0
        self._trim()

    def _trim(self) -> None:
        until = self._clock() - self._seconds
        while kept := self._kept[:]:
            if (
                len(kept) <= self._limit
                and kept[0].since >= until
                and sum(len(each.mapping) for each in kept) <= self._max_bytes
            ):
                return
            if self._remove(kept[0]):
                kept[0].mapping.close()

    def _remove(self, each: _Kept) -> bool:
        try:
            self._kept.remove(each)
        except ValueError:
            return False  # another thread was first
        return True


def _inodes_are_unique() -> bool:
    """Say whether memory files never share an inode number while both exist.

    Before Linux 5.9 it was a counter of 32 bits that wraps, which a patient giver could wait for.
    Source: commit e809d5f0b5c9, "tmpfs: per-superblock i_ino support".
    """
    major, minor = os.uname().release.split(".")[:2]
    number = int("".join(c for c in minor if c.isdigit()) or 0)
    return sys.maxsize > 1 << 32 and (int(major), number) >= (5, 9)


_INODES_ARE_UNIQUE: Final = _inodes_are_unique()
