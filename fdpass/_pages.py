"""Whether a stranger's memory file has all its pages, and how to have it keep them.

Reading a page that a memory file lacks makes one, at the reader's charge: its memory cgroup may be
full (SIGKILL), or the machine (SIGBUS).  So a file that lacks pages is refused.  Four ways to take
pages out of a file that seemed full, and what stands against each:

    blocks reserved beyond the end   st_blocks counts them too, and ftruncate() to the same size
                                     frees them, which no seal forbids: so we do that first.  The
                                     seal GROW forbids to reserve others.
    FALLOC_FL_PUNCH_HOLE             EPERM by the seals WRITE and FUTURE_WRITE
    madvise(MADV_REMOVE)             the same
    pages that nobody ever wrote     The kernel drops them when memory is short, or when asked to
                                     (MADV_PAGEOUT): "the mm can drop undirtied hole pages behind
                                     our back" (mm/shmem.c).  fallocate() marks all as written.

What was written can only be swapped out; reading that is charged to the one who paid for it before.

ftruncate() and fallocate() take the lock of the inode, and a thread that waits for it cannot even
be killed.  Before Linux 6.16 a stranger could hold it for ever, by a write() whose source is
memory of a FUSE file of his own: there the kernel fetched the source under the lock before it asked
for the seals.  Neither is called on such a kernel.  It is asked instead which pages are there
(cachestat(), Linux 6.5), so only the last of the four ways is open; before 6.5 the first, too.
"""

import errno
import fcntl
import functools
import mmap
import os
import struct

from ._errors import NotReserved, WrongType
from ._fd import Fd

_F_ADD_SEALS = 1033  # linux/fcntl.h
# As in Seal, whose flags take three times as long.
_SHRINK, _GROW, _WRITE, _FUTURE_WRITE = 2, 4, 8, 16
_BLOCK = 512  # the unit of st_blocks, whatever the file system (stat(2))

# Bytes that are made to stay at once, in 0.1 ms.  In more time a stranger can drop pages unnoticed
# (all at once, it had 30 of 256 MiB back); with less, one who holds the lock meanwhile, for 7 ms
# with a file of 256 MiB, delays us more often.
_AT_ONCE = 4 << 20

_CACHESTAT = 451  # the same on all architectures but alpha; linux/mman.h has the structures
_RANGE = struct.Struct("=QQ")
_CACHED = struct.Struct("=5Q")


def can_be_proven(seals: int) -> bool:
    """Say whether a file with these seals can be held to having all its pages."""
    return bool(seals & _GROW and seals & (_WRITE | _FUTURE_WRITE))


def check_pages(number: int, size: int, seals: int) -> None:
    """Refuse a memory file of `size` bytes that lacks pages.  Takes the same time for any size.

    Raises NotReserved; WrongType if the kernel or a security module does not let it be asked.
    """
    if can_be_proven(seals):
        if not _lock_is_soon_free():
            _check_cached(number, size)
        else:
            try:
                os.ftruncate(number, size)
            except OSError as error:
                wanted = "a file that may be truncated to the size it has"
                raise WrongType(wanted, f"one that may not ({error.strerror})") from error
    _check_blocks(number, size)


def keep_pages(number: int, size: int, seals: int) -> None:
    """Have a file that passed check_pages() keep its pages for ever: 28 ms for 1 GiB.

    Raises NotReserved if it has lost some meanwhile.  Only a stranger who drops the very pages
    that are next, and no others, within a tenth of a millisecond, has the caller pay for them.
    """
    if not can_be_proven(seals):
        return
    if not _lock_is_soon_free():
        _check_cached(number, size)
        return
    for start in range(0, size, _AT_ONCE):
        # Each time: what is missing now was dropped after all, and would be made here.
        _check_blocks(number, size)
        try:
            os.posix_fallocate(number, start, min(_AT_ONCE, size - start))
        except OSError as error:
            # Where no page is missing, none is made, and nothing can be short.
            raise NotReserved(_whole_pages(size), f"less ({error.strerror})") from error


def _whole_pages(size: int) -> int:
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE


def _check_blocks(number: int, size: int) -> None:
    wanted = _whole_pages(size)
    reserved = os.fstat(number).st_blocks * _BLOCK
    if reserved < wanted:
        raise NotReserved(wanted, reserved)


def _check_cached(number: int, size: int) -> None:
    """Refuse a file that lacks pages, without its lock, if the kernel can tell (Linux 6.5)."""
    import ctypes  # noqa: PLC0415 (slow to import, and not needed on newer kernels)

    cached = ctypes.create_string_buffer(_CACHED.size)
    syscall = ctypes.CDLL(None).syscall
    if syscall(_CACHESTAT, number, _RANGE.pack(0, size), cached, 0) < 0:
        return  # an older kernel, or a filter that does not know the call
    present, _, _, swapped, _ = _CACHED.unpack(cached.raw)
    wanted = _whole_pages(size)
    if (present + swapped) * mmap.PAGESIZE < wanted:
        raise NotReserved(wanted, (present + swapped) * mmap.PAGESIZE)


@functools.cache
def _lock_is_soon_free() -> bool:
    """Say whether nobody can hold the lock of a file for ever, if that is sealed against writing.

    A write() from memory that is not there fails by the seals (EPERM), or on an older kernel, which
    fetches the memory first, by the memory (EFAULT).
    """
    sealed, source = Fd.blank(2)
    with sealed, source:
        Fd.own((sealed, source), map(os.memfd_create, ("fdpass", "fdpass"), (3, 3)))
        for fd in (sealed, source):
            os.ftruncate(fd.fileno(), mmap.PAGESIZE)
        fcntl.fcntl(sealed.fileno(), _F_ADD_SEALS, _SHRINK | _GROW | _FUTURE_WRITE)
        with mmap.mmap(source.fileno(), mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ) as gone:
            os.ftruncate(source.fileno(), 0)
            try:
                os.pwrite(sealed.fileno(), gone, 0)
            except OSError as error:
                return error.errno == errno.EPERM
    return False
