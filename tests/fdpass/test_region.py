"""Memory regions: who may write, who may read, and for how long."""

import contextlib
import errno
import fcntl
import mmap
import os
import socket
import threading
from pathlib import Path
from pickle import PickleBuffer

import numpy as np
import pytest

import fdpass
from fdpass import Fd, Memfd, MemoryRegion, Seal
from fdpass._memfd import Mapped
from fdpass._region import SEALS

MAX = 1 << 20
SIZE = 5000


@pytest.fixture
def pair():
    left, right = socket.socketpair()
    left.settimeout(10)
    right.settimeout(10)
    with left, right:
        yield left, right


def copies(*fds):
    """Make what a receiver would get: other numbers for the same files."""
    return [Fd(os.dup(fd if isinstance(fd, int) else fd.fileno())) for fd in fds]


def received(region, **options):
    return MemoryRegion.adopt(copies(*region.descriptors()), max_size=MAX, **options)


@contextlib.contextmanager
def lent(content=b"lent"):
    """Lend a region by hand: yields the giver's mapping, the read end, and the descriptors."""
    watch, token = map(Fd, os.pipe2(os.O_CLOEXEC))
    with Memfd.create("test", SIZE) as memfd, watch, token, memfd.map(writable=True) as mapping:
        memfd.seal(SEALS["lent"])
        mapping[: len(content)] = content
        yield mapping, watch, (memfd, token)


def hung_up(watch):
    """Say whether the last copy of the token is gone."""
    os.set_blocking(watch.fileno(), False)
    try:
        return os.read(watch.fileno(), 1) == b""
    except BlockingIOError:
        return False


def mappings():
    return Path("/proc/self/maps").read_text().count("/memfd:region")


def refused(fds, error, **options):
    fds = [fd if isinstance(fd, Fd) else Fd(fd) for fd in fds]
    numbers = [fd.fileno() for fd in fds]
    with pytest.raises(error) as caught:
        MemoryRegion.adopt(fds, **{"max_size": MAX, **options})
    assert not [number for number in numbers if Path(f"/proc/self/fd/{number}").exists()]
    return caught.value


class TestMaking:
    @pytest.mark.parametrize("mode", ["frozen", "shared"])
    def test_it_is_zeros_to_write(self, mode):
        with MemoryRegion.create(SIZE, mode=mode, name="a name") as region:
            assert (region.size, region.mode, region.loan) == (SIZE, mode, None)
            assert region.writable
            assert region.buffer == bytes(SIZE)
            region.buffer[:5] = b"hello"
            assert bytes(region.buffer[:6]) == b"hello\0"
            assert "/memfd:a name" in Path("/proc/self/maps").read_text()

    @pytest.mark.parametrize("mode", ["frozen", "shared"])
    def test_numpy_writes_it_in_place(self, mode):
        with MemoryRegion.create(SIZE, mode=mode) as region:
            np.frombuffer(region.buffer, "<u4")[:] = 7
            assert region.buffer[4:8] == b"\7\0\0\0"

    def test_nothing_is_mapped_before_use_and_then_once(self):
        with MemoryRegion.create(SIZE) as region:
            assert mappings() == 0
            assert region.buffer is region.buffer
            assert mappings() == 1
        assert mappings() == 0

    def test_threads_that_come_first_together_map_it_once(self):
        with MemoryRegion.create(SIZE) as region:
            barrier, views = threading.Barrier(4), []

            def look():
                barrier.wait()
                views.append(region.buffer)

            threads = [threading.Thread(target=look) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert all(view is region.buffer for view in views)
            assert mappings() == 1

    def test_a_released_buffer_is_given_anew(self):
        with MemoryRegion.create(SIZE) as region:
            with region.buffer as view:
                view[:2] = b"hi"
            assert region.buffer[:2] == b"hi"

    @pytest.mark.parametrize("mode", ["lent", "other"])
    def test_only_two_modes_are_made(self, mode):
        with pytest.raises(ValueError, match=f"'frozen' or 'shared', received '{mode}'"):
            MemoryRegion.create(SIZE, mode=mode)

    def test_a_failure_closes_the_file(self, monkeypatch):
        def fails(self, seals):
            raise OSError(errno.EINVAL, "no such seal")

        monkeypatch.setattr(Memfd, "seal", fails)
        with pytest.raises(OSError, match="no such seal"):
            MemoryRegion.create(SIZE, mode="shared")


class TestFreezing:
    def test_nobody_writes_any_more_not_even_the_giver(self):
        with MemoryRegion.create(SIZE) as region:
            region.buffer[:5] = b"hello"
            region.freeze()
            assert not region.writable
            assert region.buffer.readonly
            assert region.buffer[:5] == b"hello"
            (fd,) = region.descriptors()
            assert fd.seals == SEALS["frozen"] | Seal.EXEC
            number = fd.fileno()
            with pytest.raises(PermissionError):
                os.pwrite(number, b"x", 0)
            with pytest.raises(PermissionError):
                mmap.mmap(number, SIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
            for size in (1, SIZE + 1):
                with pytest.raises(PermissionError):
                    os.ftruncate(number, size)

    def test_it_is_private_when_mapped_to_read_for_kernels_before_6_7(self, monkeypatch):
        flags, real = [], Mapped

        class Recorded(real):
            def __new__(cls, fd, size, flag, *more, **options):
                flags.append(flag)
                return real(fd, size, flag, *more, **options)

        with MemoryRegion.create(SIZE) as region:
            region.freeze()
            with monkeypatch.context() as patched:
                patched.setattr("fdpass._memfd.Mapped", Recorded)
                assert len(region._memfd.map()) == SIZE
        assert flags == [mmap.MAP_PRIVATE]

    def test_the_view_from_before_is_revoked(self):
        with MemoryRegion.create(SIZE) as region:
            view = region.buffer
            region.freeze()
            with pytest.raises(ValueError, match="released"):
                view[0] = 1

    @pytest.mark.parametrize(
        "derive",
        [lambda view: view[1:3], lambda view: np.frombuffer(view, "u1"), memoryview],
        ids=["slice", "numpy", "view"],
    )
    def test_another_view_is_in_the_way_until_it_is_gone(self, derive):
        with MemoryRegion.create(SIZE) as region:
            derived = derive(region.buffer)
            with pytest.raises(fdpass.RegionInUse, match="delete arrays and release slices"):
                region.freeze()
            with pytest.raises(fdpass.RegionInUse):
                region.descriptors()
            derived[0] = 7
            assert region.writable
            region.buffer[4] = 9
            del derived
            region.freeze()
            assert region.buffer[4] == 9
            assert 7 in region.buffer[:2]

    def test_a_view_that_c_code_is_using_is_in_the_way_and_survives(self):
        with MemoryRegion.create(SIZE) as region:
            view = region.buffer
            held = PickleBuffer(view)  # as recv_into() holds it for as long as it waits
            with pytest.raises(fdpass.RegionInUse):
                region.freeze()
            view[0] = 1
            held.release()
            region.freeze()
            assert region.buffer[0] == 1

    def test_a_mapping_elsewhere_is_in_the_way(self):
        with MemoryRegion.create(SIZE) as region:
            region.buffer[:5] = b"hello"
            with region._memfd.map(writable=True):  # as a forked child would have
                with pytest.raises(fdpass.RegionInUse, match="EBUSY"):
                    region.freeze()
                region.buffer[:1] = b"j"
            region.freeze()
            assert region.buffer[:5] == b"jello"

    def test_another_failure_is_the_oserror_it_is(self, monkeypatch):
        def fails(self, seals):
            raise OSError(errno.EINVAL, "no such seal")

        with MemoryRegion.create(SIZE) as region:
            with monkeypatch.context() as patched:
                patched.setattr(Memfd, "seal", fails)
                with pytest.raises(OSError, match="no such seal"):
                    region.freeze()
            region.freeze()

    def test_again_or_in_another_mode_it_changes_nothing(self):
        with MemoryRegion.create(SIZE) as region:
            region.freeze()
            view = region.buffer
            region.freeze()
            assert view is region.buffer
        with MemoryRegion.create(SIZE, mode="shared") as region:
            array = np.frombuffer(region.buffer, "u1")
            region.freeze()
            array[0] = 1
            assert region.writable


class TestGiving:
    def test_frozen_memory_arrives_without_a_copy(self, pair, program):
        left, right = pair
        receiver = program(
            "import fdpass, os, socket, sys\n"
            "sock = socket.socket(fileno=int(sys.argv[1]))\n"
            "sock.settimeout(30)\n"  # non-blocking already, as its copy here is
            "data, fds = fdpass.recv_fds(sock)\n"
            "with fdpass.MemoryRegion.adopt(fds, max_size=1 << 20) as region:\n"
            "    status = os.fstat(region.descriptors()[0].fileno())\n"
            "    print(region.mode, region.buffer.readonly, bytes(region.buffer[:5]), status.st_ino)\n",
            right.fileno(),
            pass_fds=[right.fileno()],
        )
        with MemoryRegion.create(SIZE) as region:
            region.buffer[:5] = b"hello"
            fdpass.send_fds(left, region.descriptors())
            inode = os.fstat(region.descriptors()[0].fileno()).st_ino
        printed, _ = receiver.communicate(timeout=30)
        assert printed.split() == ["frozen", "True", "b'hello'", str(inode)]

    def test_it_is_given_any_number_of_times_also_by_who_received_it(self):
        with MemoryRegion.create(SIZE) as region:
            region.buffer[0] = 5
            with received(region) as first, received(region) as second, received(second) as third:
                assert first.buffer[0] == second.buffer[0] == third.buffer[0] == 5
                assert third.mode == "frozen"

    def test_shared_memory_is_written_by_both(self):
        with MemoryRegion.create(SIZE, mode="shared") as region:
            region.buffer[0] = 1
            with received(region, accept_shared=True) as other:
                assert (other.mode, other.writable) == ("shared", True)
                assert other.buffer[0] == 1
                other.buffer[1] = 2
                assert region.buffer[1] == 2
                assert other.descriptors()[0].seals == SEALS["shared"] | Seal.EXEC

    def test_lent_memory_is_written_by_its_giver_alone(self):
        with lent(b"one") as (mapping, _watch, fds):
            with MemoryRegion.adopt(copies(*fds), max_size=MAX) as region:
                assert (region.mode, region.writable) == ("lent", False)
                assert region.buffer.readonly
                assert region.buffer[:3] == b"one"
                mapping[:3] = b"two"
                assert region.buffer[:3] == b"two"
                memory, _ = region.descriptors()
                with pytest.raises(PermissionError):
                    memory.map(writable=True)

    def test_descriptors_are_lent_not_given(self):
        with MemoryRegion.create(SIZE) as region:
            assert region.descriptors() == region.descriptors()
            assert all(not fd.closed for fd in region.descriptors())


class TestReceiving:
    def test_nothing_is_mapped_before_use_and_then_once(self):
        with MemoryRegion.create(SIZE) as region:
            region.freeze()
            with received(region) as other:
                assert mappings() == 0
                assert other.buffer is other.buffer
                assert mappings() == 1
                assert other.size == SIZE

    def test_shared_is_refused_unless_accepted(self):
        with MemoryRegion.create(SIZE, mode="shared") as region:
            error = refused(copies(*region.descriptors()), fdpass.SharedRefused)
            assert (
                str(error) == "mode of the memory region: expected frozen or lent, received shared"
            )

    def test_shared_that_cannot_be_written_is_refused(self):
        with MemoryRegion.create(SIZE, mode="shared") as region:
            (fd,) = region.descriptors()
            readable = os.open(f"/proc/self/fd/{fd.fileno()}", os.O_RDONLY | os.O_CLOEXEC)
            refused([readable], fdpass.WrongType, accept_shared=True)

    def test_the_seals_decide_the_mode(self):
        with Memfd.create("test", SIZE) as memfd:
            memfd.seal(SEALS["frozen"] | Seal.FUTURE_WRITE)
            with MemoryRegion.adopt(copies(memfd), max_size=MAX) as region:
                assert region.mode == "frozen"

    @pytest.mark.parametrize("missing", [Seal.SHRINK, Seal.GROW, Seal.SEAL])
    def test_a_size_that_can_change_is_refused(self, missing):
        with Memfd.create("test", SIZE) as memfd:
            memfd.seal(SEALS["frozen"] & ~missing)
            refused(copies(memfd), fdpass.WrongSeals)

    def test_what_is_too_large_has_holes_or_is_no_memory_is_refused(self):
        with MemoryRegion.create(SIZE) as region:
            fds = copies(*region.descriptors())
            assert refused(fds, fdpass.WrongSize, max_size=SIZE - 1).received == SIZE
        sparse = os.memfd_create("sparse", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(sparse, SIZE)
        fcntl.fcntl(sparse, fcntl.F_ADD_SEALS, int(SEALS["frozen"]))
        refused([sparse], fdpass.NotReserved)
        refused([os.open("/dev/zero", os.O_RDONLY)], fdpass.WrongType)

    def test_the_number_of_descriptors_is_that_of_the_mode(self):
        refused([], fdpass.WrongDescriptors)
        with MemoryRegion.create(SIZE) as region:
            (fd,) = region.descriptors()
            error = refused(copies(fd, fd), fdpass.WrongDescriptors)
            assert (error.expected, error.received) == (1, 2)
        with lent() as (_, _watch, fds):
            for some in (fds[:1], (*fds, fds[1])):
                error = refused(copies(*some), fdpass.WrongDescriptors)
                assert (error.expected, error.received) == (2, len(some))

    def test_a_token_is_the_write_end_of_a_pipe_and_nothing_else(self, pair, tmp_path):
        (tmp_path / "file").touch()
        with lent() as (_, watch, fds):
            opened = os.open(f"/proc/self/fd/{fds[1].fileno()}", os.O_RDWR | os.O_CLOEXEC)
            path = os.open(f"/proc/self/fd/{fds[1].fileno()}", os.O_PATH | os.O_CLOEXEC)
            file = os.open(tmp_path / "file", os.O_WRONLY | os.O_CLOEXEC)
            for false in (opened, path, file, *copies(watch, fds[0], pair[0])):
                refused([*copies(fds[0]), false], fdpass.WrongType)

    def test_a_closed_descriptor_takes_the_others_along(self):
        with lent() as (_, _watch, fds):
            memory, token = copies(*fds)
            with pytest.raises(fdpass.ClosedFd):
                MemoryRegion.adopt([-1, token], max_size=MAX)
            assert token.closed
            with pytest.raises(fdpass.ClosedFd):
                MemoryRegion.adopt([memory, -1], max_size=MAX)
            assert memory.closed

    def test_numbers_are_taken_as_well(self):
        with MemoryRegion.create(SIZE) as region:
            number = os.dup(region.descriptors()[0].fileno())
            MemoryRegion.adopt([number], max_size=MAX).close()
            assert not Path(f"/proc/self/fd/{number}").exists()


class TestClosing:
    def test_it_is_unusable_and_closing_again_does_nothing(self):
        region = MemoryRegion.create(SIZE)
        view = region.buffer
        region.close()
        region.close()
        assert region.closed
        assert region.size == SIZE
        assert repr(region) == f"<MemoryRegion frozen {SIZE} bytes closed>"
        for use in (lambda: region.buffer, region.freeze, region.descriptors):
            with pytest.raises(fdpass.ClosedRegion, match="expected an open memory region"):
                use()
        with pytest.raises(ValueError, match="released"):
            view[0]

    @pytest.mark.parametrize("mode", ["frozen", "shared"])
    def test_views_stay_valid_and_the_last_takes_the_mapping_along(self, mode):
        with MemoryRegion.create(SIZE, mode=mode) as region:
            region.buffer[:3] = b"abc"
            array, part = np.frombuffer(region.buffer, "u1"), region.buffer[1:3]
        assert bytes(array[:3]) == b"abc"
        del array
        assert bytes(part) == b"bc"
        assert mappings() == 1
        del part
        assert mappings() == 0

    def test_a_region_that_is_forgotten_warns_and_closes(self):
        region = MemoryRegion.create(SIZE)
        region.buffer[0] = 1
        with pytest.warns(ResourceWarning, match="unclosed <MemoryRegion frozen") as warned:
            del region
        assert len(warned) == 1

    def test_the_token_is_kept_until_closing(self):
        with lent() as (_, watch, fds):
            region = MemoryRegion.adopt(copies(*fds), max_size=MAX)
            fds[1].close()
            assert not hung_up(watch)
            region.close()
            assert hung_up(watch)

    def test_the_token_is_kept_until_the_last_view_is_gone(self):
        with lent() as (_, watch, fds):
            with MemoryRegion.adopt(copies(*fds), max_size=MAX) as region:
                fds[1].close()
                array, part = np.frombuffer(region.buffer, "u1"), region.buffer[1:3]
            assert not hung_up(watch)
            del array
            assert not hung_up(watch)
            part.release()
            assert hung_up(watch)

    def test_a_forgotten_region_lets_go_of_its_token(self):
        with lent() as (_, watch, fds):
            region = MemoryRegion.adopt(copies(*fds), max_size=MAX)
            fds[1].close()
            assert region.buffer[0]
            with pytest.warns(ResourceWarning, match="unclosed <MemoryRegion lent") as warned:
                del region
            assert len(warned) == 1
            assert hung_up(watch)

    def test_a_forked_child_may_close_its_copy(self, forked):
        with MemoryRegion.create(SIZE) as region:
            region.buffer[0] = 1
            assert forked(region.close) == 0
            assert region.buffer[0] == 1
