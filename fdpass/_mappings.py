"""Mappings that a receiver keeps, because the same memory will be lent to it again.

Mapping 8 MiB with all its pages and unmapping it takes a quarter of a millisecond, several times
as long as handing it over. A registry lends the same few files again and again. So a receiver can
keep the mapping after it has returned the memory (closed the token).

Keeping needs no trust. A mapping is reused only for a descriptor that has passed all checks and
refers to the very file that is mapped. The device and inode number tell: the kernel gives them to
no other file while the mapping holds this one. The seals and the size of that file are final,
nobody can punch holes into it (FUTURE_WRITE), and all its pages were loaded when it was mapped,
and made to stay (Memfd.keep_pages()).
"""

import os
import sys
from collections.abc import Callable
from typing import Final

from ._clock import monotonic
from ._memfd import Mapped, Memfd
from ._numbers import Seconds, index_of, seconds_of
from ._owner import Owner


class _Kept(Owner):
    def __init__(self, device_and_inode: tuple[int, int], mapping: Mapped, since: float) -> None:
        self.device_and_inode = device_and_inode
        self.mapping = mapping
        self.since = since


class Mappings(Owner):
    """Keeps a few mappings of lent memory for MemoryRegion.adopt(); the caller closes it.

    Kept mappings occupy memory even after the giver has freed it: at most `limit` files, together
    at most `max_bytes`. Each is dropped `seconds` after its last use (checked whenever another one
    is returned), and all are dropped by close(). Before Python 3.13 each keeps a descriptor open.

    Use one for each giver: otherwise one giver could displace the mappings of another. Any thread
    may use it.
    """

    _instead = "make one for each connection"

    # There is no lock: the garbage collector may close a region in the middle of any method. Each
    # operation on the list is atomic; the thread that removes a mapping owns it.

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
        """Return the kept mapping of an adopted file, which is then the caller's; None if none."""
        for each in self._kept[::-1]:
            if each.device_and_inode == memfd.device_and_inode and self._remove(each):
                return each.mapping
        return None

    def keep(self, memfd: Memfd, mapping: Mapped) -> None:
        """Keep a mapping that has no views; close the oldest ones beyond the limits."""
        if memfd.device_and_inode is None:
            mapping.close()
            return
        self._kept.append(_Kept(memfd.device_and_inode, mapping, self._clock()))
        self._trim()

    def close(self) -> None:
        """Close all of them, and every later one at once; a second call does nothing."""
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
    """Whether two memory files that exist at the same time always have different inode numbers.

    Before Linux 5.9 the number was a counter of 32 bits, and a patient giver could let it wrap.
    Source: commit e809d5f0b5c9, "tmpfs: per-superblock i_ino support".
    """
    major, minor = os.uname().release.split(".")[:2]
    number = int("".join(c for c in minor if c.isdigit()) or 0)
    return sys.maxsize > 1 << 32 and (int(major), number) >= (5, 9)


_INODES_ARE_UNIQUE: Final = _inodes_are_unique()
