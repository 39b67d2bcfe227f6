"""Memory files: made in good order, and refused in bad."""

import ctypes
import errno
import fcntl
import mmap
import os
import resource
import select
import socket
import sys
from pathlib import Path

import pytest

import fdpass
from fdpass import Memfd, Seal
from fdpass._memfd import Mapped
from tests.kit.attached import open_descriptors

AGREED = Seal.SHRINK | Seal.GROW | Seal.SEAL
MAX = 1 << 20


def made(size=5000, seals=AGREED):
    memfd = Memfd.create("test", size)
    memfd.seal(seals)
    return memfd


def raw(size, *, flags=0, fill=True, seals=AGREED):
    """Make the number of a memory file as a stranger would."""
    number = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | flags)
    os.ftruncate(number, size)
    if fill and size:
        os.posix_fallocate(number, 0, size)
    fcntl.fcntl(number, fcntl.F_ADD_SEALS, int(seals))
    return number


def refused(number, error, *, max_size=MAX):
    with pytest.raises(error) as caught:
        Memfd.adopt(number, max_size=max_size)
    assert not Path(f"/proc/self/fd/{number}").exists()
    return caught.value


class TestCreate:
    @pytest.mark.parametrize("size", [1, 4096, 5000, MAX])
    def test_any_size_is_reserved_and_zero(self, size):
        with Memfd.create("test", size) as memfd:
            status = os.fstat(memfd.fileno())
            assert memfd.size == status.st_size == size
            assert status.st_blocks * 512 >= size
            with memfd.map() as mapping:
                assert mapping[:] == bytes(size)

    def test_it_has_its_name_does_not_leak_to_exec_and_is_never_executable(self):
        with Memfd.create("a name", 1) as memfd:
            assert "memfd:a name" in str(Path(f"/proc/self/fd/{memfd.fileno()}").readlink())
            assert fcntl.fcntl(memfd.fileno(), fcntl.F_GETFD) & fcntl.FD_CLOEXEC
            assert memfd.seals == Seal.EXEC

    def test_an_older_kernel_gets_the_flags_it_knows(self, monkeypatch):
        real, asked = os.memfd_create, []

        def old_kernel(name, flags):
            asked.append(flags)
            if flags & 8:
                raise OSError(errno.EINVAL, "Invalid argument")
            return real(name, flags)

        monkeypatch.setattr(os, "memfd_create", old_kernel)
        with Memfd.create("test", 1) as memfd:
            memfd.seal(AGREED)
            assert memfd.seals == AGREED
        known = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
        assert asked == [known | 8, known]

    def test_a_refusal_by_the_system_names_the_call(self, monkeypatch):
        def forbidden(name, flags):
            raise PermissionError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "memfd_create", forbidden)
        with pytest.raises(PermissionError, match="memfd_create"):
            Memfd.create("test", 1)

    def test_a_shortage_is_an_oserror_and_closes_the_file(self):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (MAX, hard))
        try:
            with pytest.raises(OSError) as caught:
                Memfd.create("test", MAX + 1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert caught.value.errno == errno.EFBIG
        assert "bytes of memory: File too large (raise the limit: ulimit -f)" in str(caught.value)

    def test_a_shortage_while_reserving_closes_the_file(self, monkeypatch):
        def short(*arguments):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "posix_fallocate", short)
        with pytest.raises(OSError, match="No space"):
            Memfd.create("test", 1)


class TestSeals:
    def test_they_are_added_and_seen(self):
        with Memfd.create("test", 4096) as memfd:
            memfd.seal(Seal.GROW)
            memfd.seal(Seal.SHRINK | Seal.SEAL)
            assert memfd.seals == AGREED | Seal.EXEC
            with pytest.raises(PermissionError):
                memfd.seal(Seal.WRITE)
            for size in (1, 10_000):
                with pytest.raises(PermissionError):
                    os.ftruncate(memfd.fileno(), size)

    def test_they_have_the_values_of_the_kernel(self):
        for name in ("SEAL", "SHRINK", "GROW", "WRITE"):
            assert Seal[name] == getattr(fcntl, f"F_SEAL_{name}")
        assert (Seal.FUTURE_WRITE, Seal.EXEC) == (16, 32)

    def test_write_cannot_be_sealed_while_mapped_writable(self):
        with Memfd.create("test", 4096) as memfd, memfd.map(writable=True):
            with pytest.raises(OSError) as caught:
                memfd.seal(Seal.WRITE)
            assert caught.value.errno == errno.EBUSY

    def test_future_write_leaves_writing_to_the_mappings_there_are(self):
        with Memfd.create("test", 4096) as memfd, memfd.map(writable=True) as mine:
            memfd.seal(AGREED | Seal.FUTURE_WRITE)
            with Memfd.adopt(os.dup(memfd.fileno()), max_size=4096) as theirs:
                with theirs.map() as view:
                    mine[:5] = b"hello"
                    assert view[:5] == b"hello"
                with pytest.raises(PermissionError):
                    theirs.map(writable=True)
                with pytest.raises(PermissionError):
                    os.pwrite(theirs.fileno(), b"x", 0)
                again = os.open(f"/proc/self/fd/{theirs.fileno()}", os.O_RDWR)
                with Memfd.adopt(again, max_size=4096) as reopened, pytest.raises(PermissionError):
                    reopened.map(writable=True)


class TestMap:
    def test_a_plain_mapping_is_read_only(self):
        with made() as memfd, memfd.map() as mapping:
            assert len(mapping) == 5000
            assert memoryview(mapping).readonly
            with pytest.raises(TypeError):
                mapping[0] = 1

    def test_a_mapping_outlives_the_descriptor_and_shares_the_memory(self):
        memfd = made()
        with memfd.map(writable=True) as one, memfd.map() as other:
            memfd.close()
            one[-1] = 7
            assert other[-1] == 7

    @pytest.mark.skipif(sys.version_info < (3, 13), reason="mmap duplicates the descriptor")
    def test_a_mapping_holds_no_descriptor(self):
        with made() as memfd:
            before = open_descriptors()
            with memfd.map():
                assert open_descriptors() == before

    def test_all_pages_are_there_at_once(self):
        for writable in (True, False):
            with Memfd.create("resident", 64 * mmap.PAGESIZE) as memfd:
                assert resident("resident") == 0
                with memfd.map(writable=writable):
                    assert resident("resident") == 64

    def test_an_older_kernel_without_the_advice_maps_all_the_same(self, monkeypatch):
        monkeypatch.setattr("fdpass._memfd._MADV_POPULATE_READ", 9999)
        with made() as memfd, memfd.map() as mapping:
            assert mapping[:] == bytes(5000)

    def test_a_shortage_of_memory_closes_the_mapping(self, monkeypatch):
        mappings = []

        class Short(Mapped):
            def madvise(self, option):
                mappings.append(self)
                raise OSError(errno.ENOMEM, "Cannot allocate memory")

        monkeypatch.setattr("fdpass._memfd.Mapped", Short)
        with made() as memfd, pytest.raises(OSError, match="allocate"):
            memfd.map(writable=True)
        assert mappings[0].closed

    def test_a_closed_one_is_not_mapped_sealed_or_asked(self):
        memfd = made()
        memfd.close()
        for use in (memfd.map, memfd.fileno, lambda: memfd.seal(Seal.WRITE), lambda: memfd.seals):
            with pytest.raises(fdpass.ClosedFd):
                use()


def resident(name):
    """Count the pages of our mappings of a memory file that are in our page table."""
    kilobytes, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            inside = f"memfd:{name} " in line
        elif inside and line.startswith("Rss:"):
            kilobytes += int(line.split()[1])
    return kilobytes * 1024 // mmap.PAGESIZE


class TestAdopt:
    def test_what_is_in_good_order_is_taken(self):
        number = raw(5000)
        with Memfd.adopt(number, max_size=5000) as memfd:
            assert memfd.fileno() == number
            assert memfd.size == 5000
            assert memfd.seals == AGREED
            with memfd.map() as mapping:
                assert mapping[:] == bytes(5000)

    def test_it_takes_the_descriptor_from_an_fd(self):
        given = fdpass.Fd(raw(1))
        with Memfd.adopt(given, max_size=1):
            assert given.closed
        with pytest.raises(fdpass.ClosedFd):
            Memfd.adopt(given, max_size=1)

    def test_it_closes_the_descriptor_of_an_fd_it_refuses(self):
        given = fdpass.Fd(raw(2))
        number = given.fileno()
        with pytest.raises(fdpass.WrongSize):
            Memfd.adopt(given, max_size=1)
        assert given.closed
        assert not Path(f"/proc/self/fd/{number}").exists()

    def test_it_passes_through_a_socket(self):
        left, right = socket.socketpair()
        with left, right, made() as mine, mine.map(writable=True) as view:
            fdpass.send_fd(left, mine)
            with Memfd.adopt(fdpass.recv_fd(right), max_size=MAX) as theirs, theirs.map() as seen:
                view[:3] = b"new"
                assert seen[:3] == b"new"

    def test_a_read_only_descriptor_is_enough(self):
        with made() as memfd:
            number = os.open(f"/proc/self/fd/{memfd.fileno()}", os.O_RDONLY)
            with Memfd.adopt(number, max_size=MAX) as adopted:
                adopted.map().close()
                with pytest.raises(PermissionError):
                    adopted.map(writable=True)

    @pytest.mark.parametrize("end", [0, 1])
    def test_a_pipe_is_refused(self, end):
        ends = list(os.pipe())
        number = ends.pop(end)
        refused(number, fdpass.WrongType)
        os.close(ends[0])

    def test_a_socket_is_refused(self):
        refused(socket.socket(socket.AF_UNIX).detach(), fdpass.WrongType)

    @pytest.mark.parametrize("path", ["/dev/zero", "/dev/null", "/"])
    def test_a_device_or_directory_is_refused(self, path):
        refused(os.open(path, os.O_RDONLY), fdpass.WrongType)

    def test_an_epoll_is_refused(self):
        poll = select.epoll()
        number = os.dup(poll.fileno())
        poll.close()
        refused(number, fdpass.WrongType)

    def test_a_regular_file_is_refused(self, tmp_path):
        path = tmp_path / "file"
        path.write_bytes(bytes(4096))
        # On tmpfs such a file has the seal SEAL, on a disk it cannot have seals.
        refused(os.open(path, os.O_RDWR), (fdpass.WrongType, fdpass.WrongSeals))

    def test_a_path_only_descriptor_is_refused(self):
        with made() as memfd:
            number = os.open(f"/proc/self/fd/{memfd.fileno()}", os.O_PATH)
            refused(number, fdpass.WrongType)

    def test_a_write_only_descriptor_is_refused(self):
        with made() as memfd:
            number = os.open(f"/proc/self/fd/{memfd.fileno()}", os.O_WRONLY)
            assert "write-only" in str(refused(number, fdpass.WrongType))

    def test_an_unnamed_file_in_dev_shm_is_refused(self):
        try:
            number = os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR)
        except OSError as error:
            pytest.skip(f"no unnamed files in /dev/shm: {error}")
        os.posix_fallocate(number, 0, 4096)
        assert refused(number, fdpass.WrongSeals).received == Seal.SEAL

    def test_a_secret_memory_file_is_refused(self):
        number = ctypes.CDLL(None).syscall(447, 0)
        if number < 0:
            pytest.skip("no memfd_secret here")
        os.set_inheritable(number, False)
        refused(number, fdpass.WrongType)

    def test_a_memory_file_of_huge_pages_is_refused(self):
        try:
            number = raw(2 * MAX, flags=os.MFD_HUGETLB, fill=False)
        except OSError as error:
            pytest.skip(f"no huge pages here: {error}")
        refused(number, fdpass.WrongType, max_size=2 * MAX)

    @pytest.mark.parametrize("seals", [Seal(0), Seal.SHRINK, Seal.SHRINK | Seal.GROW])
    def test_a_memory_file_that_lacks_seals_is_refused(self, seals):
        error = refused(raw(4096, seals=seals), fdpass.WrongSeals)
        assert (error.expected, error.received) == (AGREED, seals)

    def test_a_memory_file_that_cannot_be_sealed_is_refused(self):
        number = os.memfd_create("test", os.MFD_CLOEXEC)
        os.posix_fallocate(number, 0, 4096)
        assert refused(number, fdpass.WrongSeals).received == Seal.SEAL

    def test_the_seals_to_expect_can_be_chosen(self):
        wanted = AGREED | Seal.FUTURE_WRITE
        with pytest.raises(fdpass.WrongSeals) as caught:
            Memfd.adopt(raw(4096), max_size=MAX, seals=wanted)
        assert caught.value.expected == wanted
        Memfd.adopt(raw(4096, seals=wanted), max_size=MAX, seals=wanted).close()
        Memfd.adopt(raw(4096, seals=Seal(0)), max_size=MAX, seals=Seal(0)).close()

    @pytest.mark.parametrize("size", [0, 4097])
    def test_an_empty_or_oversize_memory_file_is_refused(self, size):
        error = refused(raw(size), fdpass.WrongSize, max_size=4096)
        assert size not in error.expected
        assert error.received == size

    def test_a_memory_file_with_a_hole_is_refused_before_it_costs_memory(self):
        error = refused(raw(MAX, fill=False), fdpass.NotReserved)
        assert (error.expected, error.received) == (MAX, 0)

    def test_one_missing_page_is_a_hole(self):
        number = os.memfd_create("test", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
        os.ftruncate(number, 4 * mmap.PAGESIZE + 1)
        os.posix_fallocate(number, 0, 4 * mmap.PAGESIZE)
        fcntl.fcntl(number, fcntl.F_ADD_SEALS, int(AGREED))
        error = refused(number, fdpass.NotReserved)
        assert error.expected - error.received == mmap.PAGESIZE

    @pytest.mark.parametrize("number", [-1, 10_000])
    def test_a_closed_number_is_a_closed_descriptor(self, number):
        with pytest.raises(fdpass.ClosedFd, match=str(number)):
            Memfd.adopt(number, max_size=MAX)

    def test_refusals_say_both_sides(self):
        assert "expected 1 to 4096, received 5000" in str(
            refused(raw(5000), fdpass.WrongSize, max_size=4096)
        )


def test_more_memory_than_the_machine_has_is_refused_at_once():
    with pytest.raises(OSError, match="available") as caught:
        Memfd.create("huge", 1 << 60)
    assert caught.value.errno == errno.ENOMEM
