"""Anonymous memory in a file: making it, sealing it, and checking what a stranger made."""

import enum
import errno
import fcntl
import functools
import mmap
import os
import stat
import sys
from contextlib import suppress
from typing import Self

from ._errors import ClosedFd, WrongSeals, WrongSize, WrongType
from ._fd import Fd
from ._numbers import index_of
from ._owner import Owner
from ._pages import can_be_proven, check_pages, keep_pages
from ._untrusted import F_GET_SEALS, close_untrusted

# From linux/memfd.h, linux/fcntl.h, asm-generic/mman-common.h: too new for Python's modules.
_MFD_NOEXEC_SEAL = 0x0008
_F_ADD_SEALS = 1033
_MADV_POPULATE_READ = 22
_MADV_POPULATE_WRITE = 23

# Below this many bytes, looking at /proc/meminfo costs more than it tells. A guess.
_WORTH_ASKING = 64 << 20


class Seal(enum.IntFlag):
    """What can no longer be done to a memory file, by anybody (F_ADD_SEALS in fcntl(2))."""

    SEAL = 0x0001
    SHRINK = 0x0002
    GROW = 0x0004
    WRITE = 0x0008
    FUTURE_WRITE = 0x0010
    EXEC = 0x0020


class Memfd(Fd):
    """Takes the descriptor of a memory file: create() makes one, adopt() checks one."""

    _size: int = 0
    _may_lose_pages = False
    _seals_adopted = 0
    device_and_inode: tuple[int, int] | None = None
    """Which file it is, if it was adopted: the same numbers as long as it exists, nobody else's."""

    @classmethod
    def create(cls, name: str, size: int) -> Self:
        """Make a file of `size` bytes, all reserved and zero; the caller closes it.

        `name` (at most 249 bytes) is only for people reading /proc. The file can be sealed, and
        on Linux >= 6.3 can never be made executable (seal EXEC). Any size goes; a mapping ends
        with the page all the same.

        Raises ValueError (size below 1) and OSError when memory is short (ENOMEM, ENOSPC; EFBIG
        by RLIMIT_FSIZE) or memfd_create is not allowed here. ENOMEM comes at once if the machine
        has less memory available than that. In a memory cgroup the kernel may instead end a
        process of it: keep files small. Source: memfd_create(2).
        """
        size = index_of(size)
        if size < 1:
            raise ValueError(f"expected a size of at least 1 byte, received {size}")
        _refuse_what_cannot_be(size)
        self = cls.__new__(cls)
        try:
            _create_in(self, name)
            os.ftruncate(self._number, size)
            # Without it, running out of memory would be a SIGBUS at some later write.
            os.posix_fallocate(self._number, 0, size)
        except BaseException:
            self.close()
            raise
        self._size = size
        return self

    @classmethod
    def adopt(
        cls,
        fd: int | Fd,
        *,
        max_size: int,
        seals: Seal = Seal.SHRINK | Seal.GROW | Seal.SEAL,
        keep_pages: bool = True,
    ) -> Self:
        """Take a descriptor from elsewhere, and close it unless it is safe to map.

        Safe: a readable memory file of ordinary pages that has at least `seals`, of 1 to
        `max_size` bytes (not necessarily whole pages), with all its memory reserved. Still its
        maker may change the bytes at any time, unless they are sealed too.

        A file sealed WRITE or FUTURE_WRITE, and GROW, keeps its memory for ever, so that reading
        it costs none here. (Linux >= 6.16; before, its maker can take back pages that nobody ever
        wrote; before 6.5, any, so `max_size` is the memory that a hostile one can cost.) This
        takes time in proportion to the size, 0.1 ms for 4 MiB; without `keep_pages` it is left to
        keep_pages() or map(). The descriptor must be one for reading and writing.

        Without these seals all who hold the file can punch holes into it at any time, which zeroes
        the bytes, and who reads them pays for the memory.

        Raises WrongType, WrongSeals, WrongSize, NotReserved, all MemfdRefused; ClosedFd.
        """
        if not isinstance(fd, Fd):
            fd = Fd(fd)
        fd.fileno()
        self = cls.move(fd)
        try:
            self._check(max_size, seals)
            if keep_pages:
                self.keep_pages()
        except BaseException:
            close_untrusted([self])
            raise
        return self

    def _check(self, max_size: int, seals: Seal) -> None:
        max_size = index_of(max_size)
        # In this order: the seals first, as what follows could change without them.
        mode = self._open_mode()
        present = self._seals_of_a_memfd()
        if int(seals) & ~present:
            raise WrongSeals(seals, Seal(present))
        status = os.fstat(self._number)
        if not stat.S_ISREG(status.st_mode):
            raise WrongType("a regular file", stat.filemode(status.st_mode))
        if not 0 < status.st_size <= max_size:
            raise WrongSize(range(1, max_size + 1), status.st_size)
        # All memory files are on one mount of the kernel's, but those of huge pages on another.
        if status.st_dev != _device_of_memfds():
            raise WrongType("ordinary memory", f"a file on device {status.st_dev}")
        if mode & os.O_ACCMODE == os.O_WRONLY:
            raise WrongType("a readable descriptor", "a write-only one")
        if can_be_proven(present) and mode & os.O_ACCMODE != os.O_RDWR:
            raise WrongType("a descriptor for reading and writing", "a read-only one")
        check_pages(self._number, status.st_size, present)
        self._size, self._seals_adopted = status.st_size, present
        self._may_lose_pages = True
        self.device_and_inode = status.st_dev, status.st_ino

    def keep_pages(self) -> None:
        """Have an adopted file keep its memory for ever, if its seals allow; see adopt().

        Done again, or for a file made here, it does nothing.  Raises NotReserved; ClosedFd.
        """
        number = self.fileno()
        if self._may_lose_pages:
            keep_pages(number, self._size, self._seals_adopted)
            self._may_lose_pages = False

    def _open_mode(self) -> int:
        try:
            return fcntl.fcntl(self._number, fcntl.F_GETFL)
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
            raise ClosedFd(f"expected an open descriptor, received {self.detach()}") from error

    def _seals_of_a_memfd(self) -> int:
        try:
            return fcntl.fcntl(self.fileno(), F_GET_SEALS)  # flags of enum take three times as long
        except OSError as error:
            # EINVAL: files that cannot have seals. EBADF: O_PATH, as we know it is open.
            if error.errno not in (errno.EINVAL, errno.EBADF):
                raise
            raise WrongType("a memory file", f"one without seals ({error.strerror})") from error

    @property
    def size(self) -> int:
        """The size in bytes, as it was made or adopted."""
        return self._size

    @property
    def seals(self) -> Seal:
        """The seals it has now."""
        return Seal(fcntl.fcntl(self.fileno(), F_GET_SEALS))

    def seal(self, seals: Seal) -> None:
        """Add seals, which nobody can ever remove.

        Raises OSError: EPERM once SEAL is there, EBUSY for WRITE while it is mapped writable.
        With FUTURE_WRITE (Linux >= 5.1) mappings made before go on writing, new ones cannot.
        """
        fcntl.fcntl(self.fileno(), _F_ADD_SEALS, int(seals))

    def map(self, *, writable: bool = False) -> "Mapped":
        """Map the whole file, shared; the caller closes the mapping, which outlives this object.

        All pages are brought in now: a shortage of memory is an OSError here, not a SIGBUS later
        (on Linux < 5.14 only create() guards against it). OSError too, EPERM, if the seals
        forbid writing. Before Python 3.13 a mapping holds a duplicate of the descriptor.
        NotReserved if it was adopted without keep_pages() and has lost memory since.
        """
        self.keep_pages()
        # Linux < 6.7 refuses to share a file sealed WRITE, even for reading. A private mapping
        # of what cannot change shows the same bytes, in the same pages.
        private = not writable and Seal.WRITE in self.seals
        mapping = _map(self.fileno(), self._size, writable=writable, private=private)
        try:
            mapping.madvise(_MADV_POPULATE_WRITE if writable else _MADV_POPULATE_READ)
        except OSError as error:
            if error.errno != errno.EINVAL:  # EINVAL: a kernel that does not know the advice
                mapping.close()
                raise
        return mapping


class Mapped(Owner, mmap.mmap):
    """A mapping that can keep something alive as long as there are views of it."""

    _instead = "map the file once more, or copy its bytes with mapping[:]"

    token: object = None

    def check_unused(self) -> None:
        """Raise BufferError if there are views of it, as close() does, which closes it."""
        # Nothing else tells. Of a size that cannot be, it is refused before anything is done.
        with suppress(TypeError, ValueError):
            self.resize(-1)


def _map(number: int, size: int, *, writable: bool, private: bool) -> Mapped:
    flags = mmap.MAP_PRIVATE if private else mmap.MAP_SHARED
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    if sys.version_info >= (3, 13):
        return Mapped(number, size, flags, protection, trackfd=False)
    return Mapped(number, size, flags, protection)


def _create_in(owner: Fd, name: str) -> None:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        try:
            _fill(owner, name, flags | _MFD_NOEXEC_SEAL)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            _fill(owner, name, flags)  # Linux < 6.3
    except OSError as error:
        raise OSError(error.errno, f"memfd_create: {error.strerror}") from error


def _fill(owner: Fd, name: str, flags: int) -> None:
    # One call of C code, as in _socket: an exception that a signal handler raises in between
    # would lose a number that nothing owns yet.
    Fd.own((owner,), map(os.memfd_create, (name,), (flags,)))


def _refuse_what_cannot_be(size: int) -> None:
    """Raise ENOMEM for more memory than the machine can give.

    The kernel would try, and end some process, perhaps not this one, on the way (OOM killer).
    """
    if size < _WORTH_ASKING:
        return
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:  # noqa: PTH123 (no path to speak of)
            fields = dict(line.split(":", 1) for line in lines)
        available = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return  # no /proc, no advice
    if size > available:
        raise OSError(
            errno.ENOMEM,
            f"expected to reserve {size} bytes of memory, and only {available} are available",
        )


@functools.cache
def _device_of_memfds() -> int:
    with Fd.__new__(Fd) as fd:
        _create_in(fd, "fdpass")
        return os.fstat(fd.fileno()).st_dev
