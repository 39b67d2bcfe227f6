"""Segments: where each byte stands, who can write it, and what is taken from a stranger."""

import ctypes
import errno
import fcntl
import mmap
import os
import resource
import struct
from pathlib import Path

import pytest
from ipcqueue._core import ffi

from fdpass import Fd, Memfd, NotReserved, Seal
from ipcqueue import SealsRefused, SizeRefused
from ipcqueue._records.messages import Limits
from ipcqueue._records.spec import codec_for
from ipcqueue._ring import segment as _segment
from ipcqueue._ring.identity import HEADER_SIZE
from ipcqueue._ring.memory import map_segment
from ipcqueue._ring.segment import (
    MAX_SEGMENT,
    MAX_SLOT_SIZE,
    SLOTS,
    adopt,
    create,
    needed,
    rounded_capacity,
)
from tests.kit.slots import push_packed, receiver_end, sender_end

SPEC = "<QH"
SIZE = 10
HEADER = struct.Struct("<8sIIIIQQ16sIIQIIIIQQQ16s64s512s")
libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def segments():
    """Two ends' own segments: of a sender with 4 slots, and of a receiver; closed at the end."""
    codec = codec_for(SPEC)
    both = create(codec, 4, "sender"), create(codec, 0, "receiver")
    yield both
    for segment in both:
        segment.close()


@pytest.fixture
def own(segments):
    return segments[0]


def descriptors():
    return sorted(path.name for path in Path("/proc/self/fd").iterdir())


def duplicate(segment):
    return Fd(os.dup(segment.memfd.fileno()))


def bytes_of(segment, offset, size):
    """What stands in the file, read as any other process would."""
    return os.pread(segment.memfd.fileno(), size, offset)


def u64(segment, offset):
    return int.from_bytes(bytes_of(segment, offset, 8), "little")


def u32(segment, offset):
    return int.from_bytes(bytes_of(segment, offset, 4), "little")


class TestLayout:
    def test_the_identity_stands_at_the_beginning(self):
        segment = create(codec_for(SPEC), 4, "nämé")
        size = segment.identity.segment_size
        header = HEADER.unpack(bytes_of(segment, 0, HEADER.size))
        assert header[:9] == (
            b"MEMENPSF",
            3,
            0x01020304,
            4096,
            SIZE,
            4,
            size,
            codec_for(SPEC).layout.fingerprint,
            os.getpid(),
        )
        limits = Limits()
        accepted = (limits.message, limits.fds, limits.regions, 0)
        assert header[9:14] == (SLOTS, *accepted)
        assert header[14] == segment.mapping.wake_line
        assert header[15:19] == (0, 0, 0, bytes(16))
        assert header[19] == "nämé".encode().ljust(64, b"\0")
        assert header[20] == b"10 bytes: 0:u64 8:u16".ljust(512, b"\0")
        assert bytes_of(segment, HEADER.size, size) == bytes(size - HEADER.size)
        segment.close()

    def test_its_words_are_in_a_line_of_its_own(self):
        lines = set()
        for _ in range(200):
            segment = create(codec_for(8), 1, "")
            lines.add(segment.identity.wake_line)
            segment.close()
        assert lines <= set(range(13, 23))
        assert len(lines) > 5  # of 10; fewer once in 10**50 runs

    def test_its_size_is_that_of_the_file_in_whole_pages(self):
        for capacity, pages in ((0, 1), (1, 2), (256, 2), (512, 3)):
            segment = create(codec_for(16), capacity, "")
            size = os.fstat(segment.memfd.fileno()).st_size
            assert size == segment.identity.segment_size == pages * mmap.PAGESIZE
            assert size == segment.mapping.size == segment.memfd.size
            segment.close()

    def test_indices_slots_epochs_and_counters_stand_where_the_design_says(self, segments):
        of_sender, of_receiver = segments
        codec = codec_for(SPEC)
        theirs = adopt(duplicate(of_receiver), MAX_SEGMENT)
        ours = adopt(duplicate(of_sender), MAX_SEGMENT)
        sender = sender_end(of_sender.mapping, theirs.mapping, 4, codec, -1)
        receiver = receiver_end(of_receiver.mapping, ours.mapping, 4, codec, -1)

        for n in (7, 8, 9):
            assert sender.try_push((n, n))
        assert u64(of_sender, 1024) == 3
        packed = b"".join(struct.pack("<QH", n, n) for n in (7, 8, 9))
        assert bytes_of(of_sender, 4096, 40) == packed + bytes(10)

        assert receiver.try_pop() == (7, 7)
        assert receiver.try_pop() == (8, 8)
        assert u64(of_receiver, 1152) == 2
        assert u64(of_receiver, 1024) == u64(of_sender, 1152) == 0

        assert not receiver.arm()
        waits = 128 * of_receiver.identity.wake_line
        assert (u32(of_receiver, waits), u32(of_receiver, waits + 4)) == (1, 0)
        receiver.disarm()
        assert u32(of_receiver, waits) == 2
        assert not sender.arm()
        waits = 128 * of_sender.identity.wake_line
        assert (u32(of_sender, waits), u32(of_sender, waits + 4)) == (0, 1)

        assert push_packed(sender, packed * 2, 6) == 3
        assert not sender.try_push((0, 0))
        assert receiver.try_pop() == (9, 9)  # rings the bell, of which there is none
        sending = struct.unpack("<4Q", bytes_of(of_sender, 1408, 32))
        receiving = struct.unpack("<4Q", bytes_of(of_receiver, 1536, 32))
        assert sending[:3] == (0, 1, 1)  # doorbells, waits, refused
        assert receiving[:3] == (0, 1, 0)
        assert of_sender.mapping.counts()[0] == sending
        assert of_receiver.mapping.counts()[1] == receiving

        assert u32(of_sender, waits + 8) == 0
        for ends in (1, 3, 4):
            assert ours.mapping.closed() != ends
            of_sender.mapping.set_closed(ends, theirs.mapping, -1)
            assert u32(of_sender, waits + 8) == ours.mapping.closed() == ends
        assert theirs.mapping.closed() == 0
        for end in (sender, receiver, ours, theirs):
            end.close()

    def test_the_peer_reads_the_identity_that_was_written(self, own):
        peer = adopt(duplicate(own), MAX_SEGMENT)
        assert peer.identity == own.identity == own.mapping.read_identity()
        assert (peer.identity.name, peer.identity.capacity) == ("sender", 4)
        peer.close()

    def test_a_name_may_fill_its_field(self):
        for name in ("x" * 64, "ä" * 32):
            segment = create(codec_for(8), 1, name)
            assert segment.mapping.read_identity().name == name
            segment.close()

    def test_a_description_that_fills_its_field_is_cut_there(self, own):
        wordy = own.identity._replace(record="w" * 600)
        own.mapping.write_identity(wordy)
        assert own.mapping.read_identity().record == "w" * 512
        assert u64(own, 1024) == 0


def kernel_knows_noexec():
    try:
        os.close(os.memfd_create("probe", 8 | os.MFD_CLOEXEC))
    except OSError:
        return False
    return True


class TestSeals:
    def test_both_segments_are_sealed_exactly_as_agreed(self, segments):
        agreed = Seal.SHRINK | Seal.GROW | Seal.FUTURE_WRITE | Seal.SEAL
        if kernel_knows_noexec():
            agreed |= Seal.EXEC
        for segment in segments:
            assert segment.memfd.seals == agreed

    def test_the_descriptor_does_not_survive_exec(self, own):
        assert not os.get_inheritable(own.memfd.fileno())


def write_by_pwrite(fd):
    os.pwrite(fd, b"x", 4096)


def map_writable(fd):
    mmap.mmap(fd, 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE).close()


def shrink(fd):
    os.ftruncate(fd, 4096)


def grow(fd):
    os.ftruncate(fd, 1 << 20)


def reserve_more(fd):
    os.posix_fallocate(fd, 0, 1 << 20)


def punch_a_hole(fd):
    keep_size, punch_hole = 1, 2
    offset, length = ctypes.c_int64(4096), ctypes.c_int64(4096)
    if libc.fallocate(fd, keep_size | punch_hole, offset, length) < 0:
        raise OSError(ctypes.get_errno(), "fallocate")


def reopen_and_map(fd):
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
    try:
        map_writable(again)
    finally:
        os.close(again)


def reopen_and_write(fd):
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
    try:
        os.pwrite(again, b"x", 4096)
    finally:
        os.close(again)


def reopen_and_truncate(fd):
    os.close(os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_TRUNC | os.O_CLOEXEC))


def add_a_seal(fd):
    borrowed = Memfd(os.dup(fd))
    try:
        borrowed.seal(Seal.WRITE)
    finally:
        borrowed.close()


ATTACKS = [
    write_by_pwrite,
    map_writable,
    shrink,
    grow,
    reserve_more,
    punch_a_hole,
    reopen_and_map,
    reopen_and_write,
    reopen_and_truncate,
    add_a_seal,
]


class TestPeerCannotWrite:
    @pytest.fixture
    def adopted(self, own):
        """The peer's view of our segment, in which a record stands."""
        ffi.memmove(ffi.cast("char *", own.mapping.at) + 4096, b"record", 6)
        segment = adopt(duplicate(own), MAX_SEGMENT)
        yield segment
        segment.close()

    def unharmed(self, own, adopted):
        """Nothing has changed, and the owner still writes what the peer sees."""
        assert bytes_of(own, 4096, 6) == b"record"
        assert os.fstat(own.memfd.fileno()).st_size == own.identity.segment_size
        own.mapping.write_identity(own.identity._replace(name="changed"))
        assert adopted.mapping.read_identity().name == "changed"

    @pytest.mark.parametrize("attack", ATTACKS)
    def test_through_its_descriptor(self, own, adopted, attack):
        with pytest.raises(OSError) as caught:
            attack(adopted.memfd.fileno())
        assert caught.value.errno == errno.EPERM
        self.unharmed(own, adopted)

    def test_by_making_its_mapping_writable(self, own, adopted):
        at = int(ffi.cast("uintptr_t", adopted.mapping.at))
        assert libc.mprotect(ctypes.c_void_p(at), ctypes.c_size_t(4096), 3) == -1
        assert ctypes.get_errno() == errno.EACCES
        self.unharmed(own, adopted)

    def test_as_a_debugger_writes_to_read_only_memory(self, own, adopted):
        at = int(ffi.cast("uintptr_t", adopted.mapping.at))
        memory = os.open("/proc/self/mem", os.O_RDWR | os.O_CLOEXEC)
        try:
            with pytest.raises(OSError):
                os.pwrite(memory, b"x", at + 4096)
        finally:
            os.close(memory)
        self.unharmed(own, adopted)

    def test_even_the_owner_gets_no_second_writable_mapping(self, own, adopted):
        with pytest.raises(OSError):
            map_segment(own.memfd.fileno(), own.mapping.size, writable=True)
        self.unharmed(own, adopted)

    def test_the_attacks_would_succeed_on_an_unsealed_file(self):
        for attack in ATTACKS:
            with Memfd.create("unsealed", 8192) as memfd:
                attack(memfd.fileno())


class TestCapacity:
    @pytest.mark.parametrize(
        ("asked", "given"),
        [(1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (1000, 1024), (1024, 1024), (1025, 2048)],
    )
    def test_it_is_rounded_up_to_a_power_of_two(self, asked, given):
        assert rounded_capacity(asked) == given

    def test_it_is_exact_where_floats_are_not(self):
        assert rounded_capacity((1 << 60) + 1) == 1 << 61
        assert rounded_capacity(1 << 60) == 1 << 60

    @pytest.mark.parametrize("capacity", [0, -1, -1024])
    def test_there_is_at_least_one_record(self, capacity):
        with pytest.raises(ValueError, match=f"at least 1, not {capacity}"):
            rounded_capacity(capacity)

    @pytest.mark.parametrize("capacity", [1.0, "8", None, True, b"8", [8]])
    def test_it_is_an_int(self, capacity):
        with pytest.raises(TypeError, match="number of records"):
            rounded_capacity(capacity)

    @pytest.mark.parametrize("capacity", [1 << 59, 1 << 62, 1 << 100])
    def test_more_than_a_file_can_hold_is_a_value_error(self, capacity):
        with pytest.raises(ValueError, match="more than a file can hold"):
            rounded_capacity(capacity, slot_size=8)
        assert rounded_capacity(1 << 58, slot_size=8) == 1 << 58

    @pytest.mark.parametrize("size", [0, MAX_SLOT_SIZE + 1])
    def test_a_record_has_a_size_that_a_slot_can_have(self, size):
        with pytest.raises(ValueError, match=f"not {size}"):
            create(codec_for(8)._replace(size=size), 1, "")

    def test_the_largest_slot_is_the_largest_record(self):
        assert codec_for(MAX_SLOT_SIZE).size == MAX_SLOT_SIZE
        with pytest.raises(ValueError):
            codec_for(MAX_SLOT_SIZE + 1)


class TestAdopt:
    def test_the_limit_is_the_largest_size_admitted(self, own):
        adopt(duplicate(own), own.memfd.size).close()
        with pytest.raises(SizeRefused, match=str(own.memfd.size)):
            adopt(duplicate(own), own.memfd.size - 1)

    def test_what_is_refused_is_closed(self):
        memfd = Memfd.create("unsealed", 8192)
        number = memfd.fileno()
        with pytest.raises(SealsRefused, match="seals"):
            adopt(memfd, MAX_SEGMENT)
        assert not Path(f"/proc/self/fd/{number}").exists()
        assert memfd.closed

    def test_nobody_makes_a_receiver_read_gibibytes_unless_it_says_so(self):
        assert (MAX_SEGMENT, Limits().region) == (128 << 20, 256 << 20)

    def test_blocks_beyond_its_end_hide_no_holes(self):
        size = needed(8, 4096)
        number = os.memfd_create("hollow", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
        os.ftruncate(number, size)
        for offset, length in ((0, 4096), (size, size)):
            keep_size = 1
            reserve = ctypes.c_long(offset), ctypes.c_long(length)
            assert not libc.fallocate(number, keep_size, *reserve)
        fcntl.fcntl(number, fcntl.F_ADD_SEALS, int(_segment.SEALS))
        with pytest.raises(SizeRefused, match=f"expected {size}, received 4096"):
            adopt(Fd(number), MAX_SEGMENT)

    def test_it_keeps_its_pages_from_before_it_is_mapped(self, own, monkeypatch):
        done = []

        def keep(memfd):
            done.append("kept")

        def map_it(fd, size, **options):
            done.append(size)
            return map_segment(fd, size, **options)

        monkeypatch.setattr(Memfd, "keep_pages", keep)
        monkeypatch.setattr(_segment, "map_segment", map_it)
        adopt(duplicate(own), MAX_SEGMENT).close()
        assert done == [HEADER_SIZE, "kept", own.memfd.size]

    def test_one_that_loses_pages_before_it_is_mapped_is_refused(self, own, monkeypatch):
        def lost(memfd):
            raise NotReserved(8192, 4096)

        monkeypatch.setattr(Memfd, "keep_pages", lost)
        with pytest.raises(SizeRefused, match="expected 8192, received 4096"):
            adopt(duplicate(own), MAX_SEGMENT)

    def present(self, segment):
        """Say of each page whether it is mapped."""
        pages = segment.memfd.size // mmap.PAGESIZE
        first = int(ffi.cast("uintptr_t", segment.mapping.at)) // mmap.PAGESIZE
        with Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
            pagemap.seek(8 * first)
            entries = struct.unpack(f"<{pages}Q", pagemap.read(8 * pages))
        return [bool(entry >> 63) for entry in entries]  # see proc(5)

    def test_all_pages_are_there_before_the_first_record(self, own):
        peer = adopt(duplicate(own), MAX_SEGMENT)
        for segment in (own, peer):
            assert all(self.present(segment))
        peer.close()

    def test_what_a_peer_may_have_mapped_at_once_does_not_grow_with_its_segment(self):
        # 4 GiB of it would stop a server for two seconds.
        own = create(codec_for(1 << 20), 64, "")
        peer = adopt(duplicate(own), MAX_SEGMENT)
        assert all(self.present(own))
        there = self.present(peer)
        assert all(there[: (16 << 20) // mmap.PAGESIZE])
        assert sum(there) < len(there) // 2
        own.close()
        peer.close()

    def test_a_mapping_ends_when_the_last_who_uses_it_lets_go(self, segments):
        def mapped():
            return Path("/proc/self/maps").read_text().count("/memfd:memenpsf")

        codec, before = codec_for(SPEC), mapped()
        segment = create(codec, 4, "")
        receiver = receiver_end(segments[1].mapping, segment.mapping, 4, codec, -1)
        segment.close()
        assert mapped() == before + 1
        receiver.close()
        assert mapped() == before + 1  # its indices can still be read
        receiver.let_go()
        assert mapped() == before


class TestShortage:
    """Each in a forked child, whose limits are its own."""

    def test_a_limit_on_files_is_an_oserror_and_leaks_nothing(self, forked):
        def child():
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
            before = descriptors()
            with pytest.raises(OSError) as caught:
                create(codec_for(1024), 64, "")
            assert caught.value.errno == errno.EFBIG
            assert descriptors() == before
            create(codec_for(1024), 32, "").close()

        assert forked(child) == 0

    def test_a_limit_on_memory_is_an_oserror_and_leaks_nothing(self, forked, own):
        size = 64 << 20

        def child():
            used = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
            resource.setrlimit(resource.RLIMIT_AS, (used + size // 2, used + size // 2))
            before = descriptors()
            with pytest.raises(OSError, match="mapping a segment") as caught:
                create(codec_for(size // 16), 16, "")
            assert caught.value.errno == errno.ENOMEM
            assert descriptors() == before
            create(codec_for(1024), 32, "").close()

        assert forked(child) == 0

    @pytest.mark.parametrize("written", [True, False])
    def test_a_failure_half_way_leaks_nothing(self, monkeypatch, written):
        def fails(*arguments, **options):
            raise MemoryError

        monkeypatch.setattr(_segment.Memfd, "seal", fails)
        if not written:
            monkeypatch.setattr(_segment, "map_segment", fails)
        before = descriptors()
        with pytest.raises(MemoryError):
            create(codec_for(8), 8, "")
        assert descriptors() == before

    def test_a_peers_segment_that_cannot_be_mapped_is_closed(self, own, monkeypatch):
        def fails(*arguments, **options):
            raise OSError(errno.ENOMEM, "no memory")

        fd = duplicate(own)
        number = fd.fileno()
        monkeypatch.setattr(_segment, "map_segment", fails)
        with pytest.raises(OSError, match="no memory"):
            adopt(fd, MAX_SEGMENT)
        assert not Path(f"/proc/self/fd/{number}").exists()
