"""Anonymous memory in a file: making it, sealing it, and checking one that a stranger made."""

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

# Below this many bytes, reading /proc/meminfo costs more than it is worth. A guess.
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
    """Owns the descriptor of a memory file: create() makes one, adopt() checks a received one."""

    _size: int = 0
    _may_lose_pages = False
    _seals_adopted = 0
    device_and_inode: tuple[int, int] | None = None
    """Identifies an adopted file: no other file has these numbers while it exists."""

    @classmethod
    def create(cls, name: str, size: int) -> Self:
        """Make a file of `size` bytes, all reserved and zero; the caller closes it.

        `name` (at most 249 bytes) is only for people reading /proc. The file can be sealed, and
        on Linux >= 6.3 it can never be made executable (seal EXEC). The size need not be a
        multiple of the page size; a mapping covers whole pages all the same.

        Raises ValueError (size below 1) and OSError if memory is short (ENOMEM, ENOSPC; EFBIG
        by RLIMIT_FSIZE) or memfd_create is not allowed here. ENOMEM is raised before anything is
        reserved if the machine has less than `size` bytes available. In a memory cgroup the
        kernel may instead kill a process of the group: keep files small. Source: memfd_create(2).
        """
        size = index_of(size)
        if size < 1:
            raise ValueError(f"expected a size of at least 1 byte, received {size}")
        _refuse_what_cannot_be(size)
        self = cls.__new__(cls)
        try:
            _create_in(self, name)
            _reserve(self._number, size)
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
        """Take a received descriptor; close it unless its file is safe to map.

        Safe means: a readable memory file of ordinary pages with at least these `seals`, of 1 to
        `max_size` bytes (not necessarily whole pages), with all its memory reserved. Its maker may
        still change the bytes at any time, unless a seal forbids that too.

        A file sealed GROW and WRITE or FUTURE_WRITE keeps its memory for ever, so reading it
        allocates nothing here. (This holds on Linux >= 6.16. Before, the maker can take back pages
        that nobody ever wrote; before 6.5, any page. There a hostile maker can cost this process
        up to `max_size` bytes of memory.) Making the file keep its memory takes 0.1 ms for each
        4 MiB, and needs a descriptor open for reading and writing. With `keep_pages=False`, it is
        done later, by keep_pages() or map().

        Without these seals anyone who holds the file can punch holes into it at any time. That
        zeroes the bytes, and reading them allocates memory at the reader's charge.

        Raises WrongType, WrongSeals, WrongSize, NotReserved, all MemfdRefused; ClosedFd. Raises
        OSError if a system call fails for a reason that is not in the file, such as ENOMEM.
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
        # The seals come first: without them, everything checked below could change again.
        mode = self._open_mode()
        present = self._seals_of_a_memfd()
        if int(seals) & ~present:
            raise WrongSeals(seals, Seal(present))
        status = os.fstat(self._number)
        if not stat.S_ISREG(status.st_mode):
            raise WrongType("a regular file", stat.filemode(status.st_mode))
        if not 0 < status.st_size <= max_size:
            raise WrongSize(range(1, max_size + 1), status.st_size)
        # The kernel keeps all memory files on one internal mount; those of huge pages on another.
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
        """Make an adopted file keep its memory for ever, if its seals allow; see adopt().

        Does nothing the second time, or for a file made here.  Raises NotReserved, or WrongType if
        that is forbidden here; ClosedFd; OSError as adopt() does.
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
            # EINVAL: a file that cannot have seals. EBADF: opened with O_PATH (we know it is open).
            if error.errno not in (errno.EINVAL, errno.EBADF):
                raise
            raise WrongType("a memory file", f"one without seals ({error.strerror})") from error

    @property
    def size(self) -> int:
        """The size in bytes, fixed when it was made or adopted."""
        return self._size

    @property
    def seals(self) -> Seal:
        """The seals it has now."""
        return Seal(fcntl.fcntl(self.fileno(), F_GET_SEALS))

    def seal(self, seals: Seal) -> None:
        """Add seals, which nobody can ever remove.

        Raises OSError: EPERM once SEAL is set, EBUSY for WRITE while a writable mapping exists.
        After FUTURE_WRITE (Linux >= 5.1) existing mappings can still write; new ones cannot.
        """
        fcntl.fcntl(self.fileno(), _F_ADD_SEALS, int(seals))

    def map(self, *, writable: bool = False) -> "Mapped":
        """Map the whole file, shared; the caller closes the mapping, which outlives this object.

        All pages are loaded now: a shortage of memory is an OSError here, not a SIGBUS later (on
        Linux < 5.14 only create() guards against it). Also raises OSError (EPERM) if the seals
        forbid writing, and NotReserved if the file was adopted without keep_pages() and has lost
        memory since. Before Python 3.13 a mapping holds a duplicate of the descriptor.
        """
        self.keep_pages()
        # Linux < 6.7 refuses a shared mapping of a file sealed WRITE, even for reading. A private
        # mapping shows the same bytes in the same pages, because they cannot change.
        private = not writable and Seal.WRITE in self.seals
        mapping = _map(self.fileno(), self._size, writable=writable, private=private)
        try:
            mapping.madvise(_MADV_POPULATE_WRITE if writable else _MADV_POPULATE_READ)
        except OSError as error:
            if error.errno != errno.EINVAL:  # EINVAL: the kernel does not know this advice
                mapping.close()
                raise
        return mapping


class Mapped(Owner, mmap.mmap):
    """A mapping; its `token` stays alive as long as there are views of the mapping."""

    _instead = "map the file once more, or copy its bytes with mapping[:]"

    token: object = None

    def check_unused(self) -> None:
        """Raise BufferError if there are views of it, as close() would, but do not close it."""
        # resize() is the only other call that checks. An impossible size is refused after the
        # check, before anything changes.
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
    # One call of C code, as in _socket: otherwise a signal handler could raise before anything
    # owns the new number, and the descriptor would be lost.
    Fd.own((owner,), map(os.memfd_create, (name,), (flags,)))


def _reserve(number: int, size: int) -> None:
    """Give a new file its size and its memory."""
    try:
        os.ftruncate(number, size)
        # Without this call, a shortage of memory would be a SIGBUS at some later write.
        os.posix_fallocate(number, 0, size)
    except OSError as error:
        why = f"reserving {size} bytes of memory: {error.strerror}"
        limit = " (raise the limit: ulimit -f)" if error.errno == errno.EFBIG else ""
        raise OSError(error.errno, f"{why}{limit}") from error


def _refuse_what_cannot_be(size: int) -> None:
    """Raise ENOMEM if the machine has less memory available than `size`.

    The kernel would try all the same, and its OOM killer might kill any process meanwhile.
    """
    if size < _WORTH_ASKING:
        return
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:  # noqa: PTH123 (a constant)
            fields = dict(line.split(":", 1) for line in lines)
        available = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return  # without /proc we cannot know
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
