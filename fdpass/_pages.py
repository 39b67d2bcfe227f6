"""Whether a stranger's memory file has all its pages, and how to make it keep them.

Reading a missing page of a memory file allocates it, charged to the reader.  The reader's memory
cgroup may be full (SIGKILL), or the machine (SIGBUS).  So a file with missing pages is refused.
There are four ways to take pages out of a file that seemed complete; each has an answer:

    blocks reserved beyond the end   st_blocks counts them, so they can hide missing pages.  We
                                     call ftruncate() to the same size first: that frees them,
                                     and no seal forbids it.  The seal GROW forbids new ones.
    FALLOC_FL_PUNCH_HOLE             The seals WRITE and FUTURE_WRITE forbid it (EPERM).
    madvise(MADV_REMOVE)             The same seals forbid it.
    pages that nobody ever wrote     The kernel drops them when memory is short, or on request
                                     (MADV_PAGEOUT): "the mm can drop undirtied hole pages behind
                                     our back" (mm/shmem.c).  fallocate() marks all as written.

Written pages can only be swapped out; reading them back is charged to their first owner.

ftruncate() and fallocate() take the lock of the inode, and a thread that waits for this lock
cannot even be killed.  Before Linux 6.16 a stranger could hold the lock for ever, by a write() from
memory mapped from a FUSE file of his own: the kernel read that memory, under the lock, before it
checked the seals.  On such a kernel we call neither.  We ask instead which pages are present
(cachestat(), Linux 6.5), so only the fourth way stays open; before 6.5 the first one, too.
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
# The same values as in Seal; computing with enum flags takes three times as long.
_SHRINK, _GROW, _WRITE, _FUTURE_WRITE = 2, 4, 8, 16
_BLOCK = 512  # the unit of st_blocks, whatever the file system (stat(2))

# Bytes per fallocate(), which takes 0.1 ms for them.  During a longer call a stranger can drop
# pages unnoticed (30 of 256 MiB when all was done at once).  With shorter calls, a stranger who
# holds the lock, for 7 ms at a time with a file of 256 MiB, delays us more often.
_AT_ONCE = 4 << 20

_CACHESTAT = 451  # the same on all architectures but alpha; linux/mman.h has the structures
_RANGE = struct.Struct("=QQ")
_CACHED = struct.Struct("=5Q")


def can_be_proven(seals: int) -> bool:
    """Whether a file with these seals can be proven to have, and keep, all its pages."""
    return bool(seals & _GROW and seals & (_WRITE | _FUTURE_WRITE))


def check_pages(number: int, size: int, seals: int) -> None:
    """Raise NotReserved if a memory file of `size` bytes lacks pages.  The time is constant.

    Raises WrongType if the kernel or a security module forbids the question, and OSError if it
    fails for a reason of this process or machine.
    """
    if can_be_proven(seals):
        if not _lock_is_soon_free():
            _check_cached(number, size)
        else:
            try:
                os.ftruncate(number, size)
            except OSError as error:
                _refuse_if_forbidden(error, "a file that may be truncated to the size it has")
                raise
    _check_blocks(number, size)


def keep_pages(number: int, size: int, seals: int) -> None:
    """Make a file that passed check_pages() keep its pages for ever: 28 ms for 1 GiB.

    Raises NotReserved if it has lost pages meanwhile, otherwise what check_pages() does.  To make
    the caller pay for pages, a stranger has to drop exactly the pages of the next fallocate(),
    within 0.1 ms before it.
    """
    if not can_be_proven(seals):
        return
    if not _lock_is_soon_free():
        _check_cached(number, size)
        return
    for start in range(0, size, _AT_ONCE):
        # Check again each time: fallocate() would allocate pages that were dropped meanwhile.
        _check_blocks(number, size)
        try:
            os.posix_fallocate(number, start, min(_AT_ONCE, size - start))
        except OSError as error:
            _refuse_if_forbidden(error, "a file that may be reserved as a whole")
            # If pages were dropped after the check, they are missing still: a call that fails takes
            # back what it has allocated.  Otherwise the stranger has no part in it: the kernel was
            # short of memory to read swapped pages back, for instance.
            _check_blocks(number, size)
            raise


def _refuse_if_forbidden(error: OSError, wanted: str) -> None:
    """Raise WrongType if the file cannot be used here, whoever asks and however often."""
    if error.errno in (errno.EPERM, errno.EACCES):
        raise WrongType(wanted, f"one that may not ({error.strerror})") from error


def _whole_pages(size: int) -> int:
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE


def _check_blocks(number: int, size: int) -> None:
    wanted = _whole_pages(size)
    reserved = os.fstat(number).st_blocks * _BLOCK
    if reserved < wanted:
        raise NotReserved(wanted, reserved)


def _check_cached(number: int, size: int) -> None:
    """Raise NotReserved for missing pages without taking the lock, if the kernel is >= 6.5."""
    import ctypes  # noqa: PLC0415 (slow to import, and not needed on newer kernels)

    cached = ctypes.create_string_buffer(_CACHED.size)
    syscall = ctypes.CDLL(None).syscall
    if syscall(_CACHESTAT, number, _RANGE.pack(0, size), cached, 0) < 0:
        return  # an older kernel, or a seccomp filter that does not know the call
    present, _, _, swapped, _ = _CACHED.unpack(cached.raw)
    wanted = _whole_pages(size)
    if (present + swapped) * mmap.PAGESIZE < wanted:
        raise NotReserved(wanted, (present + swapped) * mmap.PAGESIZE)


@functools.cache
def _lock_is_soon_free() -> bool:
    """Whether nobody can hold the lock of a write-sealed file for ever (Linux >= 6.16).

    We try a write() from missing memory into a sealed file.  If the kernel checks the seals first,
    it fails with EPERM; an older kernel reads the memory first, and it fails with EFAULT.
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
