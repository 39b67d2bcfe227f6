"""A stranger's memory file has all its pages, and keeps them whatever its maker does later."""

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import select
import struct
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

import fdpass
from fdpass import Fd, Memfd, MemoryRegion, NotReserved, Seal, _pages

PAGE = mmap.PAGESIZE
PAGES = 1024
SIZE = PAGES * PAGE
SIZES = Seal.SHRINK | Seal.GROW | Seal.SEAL
FROZEN = SIZES | Seal.WRITE
LENT = SIZES | Seal.FUTURE_WRITE
KEEP_SIZE, PUNCH_HOLE = 1, 2
REMOVE, PAGEOUT, POPULATE_READ = 9, 21, 22  # asm-generic/mman-common.h

libc = ctypes.CDLL(None, use_errno=True)


def fallocate(fd, mode, offset, length):
    if libc.fallocate(fd.fileno(), mode, ctypes.c_long(offset), ctypes.c_long(length)):
        raise OSError(ctypes.get_errno(), "fallocate")


def new(size=SIZE):
    (fd,) = fds = Fd.blank(1)
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    Fd.own(fds, map(os.memfd_create, ("stranger",), (flags,)))
    os.ftruncate(fd.fileno(), size)
    return fd


def seal(fd, seals):
    fcntl.fcntl(fd.fileno(), fcntl.F_ADD_SEALS, int(seals))


def blocks(fd):
    return os.fstat(fd.fileno()).st_blocks * 512


def copy_of(fd):
    return Fd(os.dup(fd.fileno()))


def hollow(fd):
    fallocate(fd, KEEP_SIZE, SIZE, SIZE)


def hollow_inside(fd):
    fallocate(fd, KEEP_SIZE, 0, SIZE + 8 * PAGE)
    fallocate(fd, KEEP_SIZE | PUNCH_HOLE, 16 * PAGE, 8 * PAGE)


def reserved(fd):
    fallocate(fd, 0, 0, SIZE)


def looked_at(fd):
    """Fill it with pages that nobody wrote: they count as reserved, and the kernel may drop them."""
    with mmap.mmap(fd.fileno(), SIZE, mmap.MAP_SHARED, mmap.PROT_READ) as mapping:
        mapping.madvise(POPULATE_READ)


def drop(fd):
    """Have the kernel drop what nobody wrote; pages that another processor is adding stay."""
    with mmap.mmap(fd.fileno(), SIZE, mmap.MAP_SHARED, mmap.PROT_READ) as mapping:
        mapping.madvise(POPULATE_READ) if blocks(fd) == SIZE else None
        mapping.madvise(PAGEOUT)


def made_by(fill, seals=LENT):
    fd = new()
    fill(fd)
    seal(fd, seals)
    return fd


def as_memfd(fd, seals):
    return Memfd.adopt(fd, max_size=SIZE, seals=seals)


def as_region(fd, seals):
    fds = [fd]
    if seals == LENT:
        ends = [Fd(number) for number in os.pipe()]
        ends[0].close()
        fds.append(ends[1])
    return MemoryRegion.adopt(fds, max_size=SIZE)


def map_and_unmap(adopted):
    """Map it, as whoever reads it does; a region stays mapped until it is closed."""
    if isinstance(adopted, MemoryRegion):
        assert len(adopted.buffer) == SIZE
    else:
        adopted.map().close()


def taken(adopt, fd, seals, use=lambda adopted: None):
    """Have a full file adopted and used, also one that was only looked at.

    A kernel in need of memory drops pages that nobody wrote, one now and then; a file that lost one
    is refused with reason, so it is filled again.
    """
    for _ in range(100):
        try:
            adopted = adopt(copy_of(fd), seals)
            with contextlib.ExitStack() as stack:
                stack.push(adopted)
                use(adopted)
                stack.pop_all()
            return adopted
        except NotReserved:
            looked_at(fd)
    pytest.fail("a file that is full was refused each time")


adopting = pytest.mark.parametrize("adopt", [as_memfd, as_region])
sealed = pytest.mark.parametrize("seals", [FROZEN, LENT], ids=["frozen", "lent"])


# -- when it is taken -----------------------------------------------------------------------------


@adopting
@sealed
@pytest.mark.parametrize("fill", [hollow, hollow_inside])
def test_blocks_beyond_the_end_hide_no_holes(adopt, seals, fill):
    with made_by(fill, seals) as fd:
        assert blocks(fd) >= SIZE
        with pytest.raises(NotReserved) as caught:
            adopt(copy_of(fd), seals)
        missing = SIZE if fill is hollow else 8 * PAGE
        assert (caught.value.expected, caught.value.received) == (SIZE, SIZE - missing)
        assert blocks(fd) == SIZE - missing  # it was not filled on the way


@adopting
@sealed
@pytest.mark.parametrize("fill", [reserved, looked_at])
def test_a_file_that_is_full_is_taken_whoever_filled_it(adopt, seals, fill):
    with made_by(fill, seals) as fd, taken(adopt, fd, seals, map_and_unmap):
        assert blocks(fd) == SIZE


def test_what_ends_within_a_page_is_full_with_that_page():
    with new(SIZE - PAGE + 1) as fd:
        fallocate(fd, 0, 0, SIZE - PAGE + 1)
        seal(fd, LENT)
        with as_memfd(copy_of(fd), LENT) as memfd:
            assert memfd.size == SIZE - PAGE + 1
    with new(SIZE - PAGE + 1) as fd:
        fallocate(fd, 0, 0, SIZE - PAGE)
        fallocate(fd, KEEP_SIZE, SIZE, PAGE)
        seal(fd, LENT)
        with pytest.raises(NotReserved):
            as_memfd(copy_of(fd), LENT)


@adopting
@sealed
def test_a_descriptor_for_reading_only_cannot_be_asked_and_is_refused(adopt, seals):
    with made_by(reserved, seals) as fd:
        number = os.open(f"/proc/self/fd/{fd.fileno()}", os.O_RDONLY | os.O_CLOEXEC)
        with pytest.raises(fdpass.WrongType, match="for reading and writing"):
            adopt(Fd(number), seals)


def failing(code):
    _pages._lock_is_soon_free()  # it asks only once, and not of a stranger's file

    def fail(*_):
        raise OSError(code, os.strerror(code))

    return fail


asking = pytest.mark.parametrize("call", ["ftruncate", "posix_fallocate"])


@asking
@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM])
def test_a_security_module_that_forbids_to_ask_is_a_refusal(monkeypatch, call, code):
    memfd = made_by_anybody()
    monkeypatch.setattr(os, call, failing(code))
    with pytest.raises(fdpass.WrongType, match=rf"a file that may be .*{os.strerror(code)}"):
        as_memfd(memfd, LENT)


@asking
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOMEM, errno.ENOSPC, errno.EFBIG, errno.EINTR])
def test_what_fails_here_is_not_the_fault_of_who_made_the_file(monkeypatch, call, code):
    with made_by(reserved) as fd:
        with (
            monkeypatch.context() as broken,
            pytest.raises(OSError, match=os.strerror(code)) as caught,
        ):
            broken.setattr(os, call, failing(code))
            as_memfd(copy_of(fd), LENT)
        assert caught.value.errno == code
        assert not isinstance(caught.value, fdpass.FdPassError)
        as_memfd(fd, LENT).close()  # it is as good as before


def made_by_anybody():
    memfd = Memfd.create("anybody", SIZE)
    memfd.seal(LENT)
    return memfd


# -- later ----------------------------------------------------------------------------------------


def truncate_to_its_size(fd):
    os.ftruncate(fd.fileno(), SIZE)


def reserve_beyond(fd):
    with pytest.raises(PermissionError):
        fallocate(fd, KEEP_SIZE, SIZE, SIZE)


def punch(fd):
    with pytest.raises(PermissionError):
        fallocate(fd, KEEP_SIZE | PUNCH_HOLE, 0, SIZE)


def remove(fd):
    with mmap.mmap(fd.fileno(), SIZE, mmap.MAP_SHARED, mmap.PROT_READ) as mapping:
        with pytest.raises(OSError, match=r"permitted|denied"):
            mapping.madvise(REMOVE)


def forget(fd):
    os.posix_fadvise(fd.fileno(), 0, SIZE, os.POSIX_FADV_DONTNEED)


LATER = [truncate_to_its_size, reserve_beyond, punch, remove, drop, forget]


@sealed
@pytest.mark.parametrize("later", LATER)
@pytest.mark.parametrize("fill", [reserved, looked_at])
def test_what_was_taken_loses_no_page(seals, later, fill):
    with made_by(fill, seals) as fd, taken(as_memfd, fd, seals):
        later(fd)
        assert blocks(fd) == SIZE


def test_the_owners_own_writable_mapping_removes_nothing_either():
    with new() as fd:
        reserved(fd)
        with mmap.mmap(fd.fileno(), SIZE) as mapping:
            seal(fd, LENT)
            with as_memfd(copy_of(fd), LENT):
                with pytest.raises(PermissionError):
                    mapping.madvise(REMOVE)
                mapping.madvise(mmap.MADV_DONTNEED)
                assert blocks(fd) == SIZE


@sealed
def test_a_region_that_has_lost_pages_before_it_is_mapped_is_not_mapped(seals):
    with made_by(looked_at, seals) as fd, taken(as_region, fd, seals) as region:
        drop(fd)
        left = blocks(fd)
        if left == SIZE:
            pytest.skip("this kernel drops no pages when asked to")
        with pytest.raises(NotReserved) as caught:
            region.buffer  # noqa: B018
        assert caught.value.received == blocks(fd) == left


@sealed
def test_a_region_that_was_mapped_loses_no_page(seals):
    with made_by(looked_at, seals) as fd, taken(as_region, fd, seals, map_and_unmap) as region:
        region.close()
        drop(fd)
        assert blocks(fd) == SIZE


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.ENOMEM])
def test_pages_lost_while_they_are_being_kept_are_a_refusal(monkeypatch, code):
    with made_by(reserved) as fd:
        real, lost = os.fstat, []

        def drops_them_first(*_):
            lost.append(PAGE)
            raise OSError(code, os.strerror(code))

        def with_less(number):
            status = real(number)
            return (
                SimpleNamespace(st_blocks=status.st_blocks - sum(lost) // 512) if lost else status
            )

        monkeypatch.setattr(os, "posix_fallocate", drops_them_first)
        monkeypatch.setattr(os, "fstat", with_less)
        with pytest.raises(NotReserved) as caught:
            as_memfd(copy_of(fd), LENT)
        monkeypatch.undo()
        assert (caught.value.expected, caught.value.received) == (SIZE, SIZE - PAGE)


def test_what_was_kept_and_what_was_made_here_is_not_asked_again(monkeypatch):
    with made_by(reserved) as fd, as_memfd(copy_of(fd), LENT) as adopted, made_by_anybody() as own:
        monkeypatch.setattr(os, "posix_fallocate", None)
        adopted.map().close()
        adopted.keep_pages()
        own.map().close()
        own.keep_pages()


def test_a_closed_file_keeps_nothing():
    memfd = made_by_anybody()
    memfd.close()
    with pytest.raises(fdpass.ClosedFd):
        memfd.keep_pages()


# -- the lock of the file -------------------------------------------------------------------------


class NeverThere:
    """Memory whose first page comes when the test is over, as that of a FUSE file may."""

    API, REGISTER, ZEROPAGE = 0xC018AA3F, 0xC020AA00, 0xC020AA04  # linux/userfaultfd.h

    def __init__(self):
        number = libc.syscall(323, os.O_CLOEXEC | os.O_NONBLOCK)  # on x86-64; poll() wants NONBLOCK
        if os.uname().machine != "x86_64" or number < 0:
            pytest.skip("no userfaultfd here that the kernel's own accesses wait for")
        self.fd = Fd(number)
        self.memory = mmap.mmap(-1, PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.at = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        fcntl.ioctl(number, self.API, bytearray(struct.pack("QQQ", 0xAA, 0, 0)))
        fcntl.ioctl(number, self.REGISTER, bytearray(struct.pack("QQQQ", self.at, PAGE, 1, 0)))

    def is_wanted(self, timeout):
        """Wait until somebody waits for it, or `timeout` is over, in seconds."""
        return bool(select.select([self.fd], [], [], timeout)[0])

    def come(self):
        where = bytearray(struct.pack("QQQq", self.at, PAGE, 0, 0))
        fcntl.ioctl(self.fd.fileno(), self.ZEROPAGE, where)


@contextlib.contextmanager
def writing(fd):
    """Have a thread write to a file from memory that does not come."""
    source = NeverThere()
    results = []

    def write():
        count = libc.pwrite(fd.fileno(), ctypes.c_void_p(source.at), PAGE, ctypes.c_long(0))
        results.append(count if count >= 0 else -ctypes.get_errno())

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield source, results, thread
    finally:
        with contextlib.suppress(OSError):
            source.come()
        thread.join()
        source.fd.close()


def test_a_writer_who_holds_the_lock_of_a_file_not_sealed_against_it_keeps_nobody_waiting():
    with made_by(reserved, SIZES) as fd, writing(fd) as (source, results, _):
        assert source.is_wanted(10)  # so the lock is held, or never will be
        with as_memfd(copy_of(fd), SIZES) as memfd:
            memfd.map().close()
        assert not results


def test_here_nobody_can_hold_the_lock_of_a_sealed_file_if_that_is_what_we_think():
    if not _pages._lock_is_soon_free():
        pytest.skip("an older kernel")
    with made_by(reserved, LENT) as fd, writing(fd) as (source, results, thread):
        thread.join()
        assert results == [-errno.EPERM]
        assert not source.is_wanted(0)


@pytest.fixture
def old_kernel(monkeypatch):
    """Let it seem that strangers can hold the lock, and whoever takes it fail."""

    def waits(*_):
        raise AssertionError("this could wait for ever")

    monkeypatch.setattr(_pages, "_lock_is_soon_free", lambda: False)
    monkeypatch.setattr(os, "ftruncate", waits)
    monkeypatch.setattr(os, "posix_fallocate", waits)
    monkeypatch.setattr(os, "lseek", waits)


@sealed
@pytest.mark.parametrize("fill", [reserved, looked_at, hollow, hollow_inside])
def test_an_older_kernel_is_asked_without_the_lock(seals, fill, request):
    if libc.syscall(451, -1, None, None, 0) < 0 and ctypes.get_errno() == errno.ENOSYS:
        pytest.skip("no cachestat")
    with made_by(fill, seals) as fd:
        request.getfixturevalue("old_kernel")
        if fill in (reserved, looked_at):
            taken(as_memfd, fd, seals).close()
            return
        with pytest.raises(NotReserved) as caught:
            as_memfd(copy_of(fd), seals)
        assert caught.value.received == (0 if fill is hollow else SIZE - 8 * PAGE)


@sealed
def test_a_region_that_has_lost_pages_is_noticed_there_too(seals, request):
    with made_by(looked_at, seals) as fd:
        request.getfixturevalue("old_kernel")
        with taken(as_region, fd, seals) as region:
            drop(fd)
            if blocks(fd) == SIZE:
                pytest.skip("this kernel drops no pages when asked to")
            with pytest.raises(NotReserved):
                region.buffer  # noqa: B018


def test_the_oldest_looks_at_the_blocks_alone(request, monkeypatch):
    monkeypatch.setattr(_pages, "_CACHESTAT", 100_000)
    with made_by(reserved) as full, new() as empty:
        seal(empty, LENT)
        request.getfixturevalue("old_kernel")
        as_memfd(copy_of(full), LENT).close()
        with pytest.raises(NotReserved):
            as_memfd(copy_of(empty), LENT)


def test_whether_it_is_old_is_found_out_once_and_leaves_nothing_open():
    _pages._lock_is_soon_free.cache_clear()
    before = len(list(Path("/proc/self/fd").iterdir()))
    answer = _pages._lock_is_soon_free()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert answer is _pages._lock_is_soon_free()
    release = tuple(int(n) for n in os.uname().release.split("-")[0].split(".")[:2])
    assert answer or release < (6, 16)
