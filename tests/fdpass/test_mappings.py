"""Mappings kept of lent memory: used again for the very same file, few, and for a while."""

import os
import weakref
from pathlib import Path

import numpy as np
import pytest

import fdpass
from fdpass import Fd, MemoryRegion, MemoryRegistry
from fdpass._memfd import Mapped, Memfd
from fdpass.lowlevel import Mappings

MAX = 1 << 20
SIZE = 5000


def mapped():
    """Count the mappings of memory that `registry` of this file made."""
    return Path("/proc/self/maps").read_text().count("/memfd:kept")


@pytest.fixture(autouse=True)
def _nothing_stays_mapped():
    yield
    assert mapped() == 0


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def registry():
    with MemoryRegistry(name="kept") as registry:
        yield registry


@pytest.fixture
def kept(clock):
    mappings = Mappings(clock=clock)
    yield mappings
    mappings.close()


@pytest.fixture
def made(monkeypatch):
    """List the sizes of all mappings made."""
    sizes, real = [], Memfd.map

    def noted(self, **options):
        sizes.append(self.size)
        return real(self, **options)

    monkeypatch.setattr(Memfd, "map", noted)
    return sizes


def received(region, mappings, **options):
    fds = [Fd(os.dup(fd.fileno())) for fd in region.descriptors()]
    return MemoryRegion.adopt(fds, max_size=MAX, mappings=mappings, **options)


def lend_and_read(registry, mappings, size=SIZE, tag=""):
    """Lend a region, read it at the other end, and let go of it."""
    with registry.alloc(size, tag) as region:
        region.buffer[:2] = number = os.urandom(2)
        with received(region, mappings) as other:
            assert other.buffer[:2] == number
            assert other.buffer.readonly
    assert registry.collect() == 1


class TestKeeping:
    def test_memory_lent_again_is_not_mapped_again(self, registry, kept, made):
        for _ in range(3):
            lend_and_read(registry, kept)
        assert made == [SIZE, SIZE]  # by the registry, and here
        assert len(kept) == 1

    def test_other_memory_is_mapped(self, registry, kept, made):
        for tag in "ab" * 2:
            lend_and_read(registry, kept, tag=tag)
        assert made == [SIZE] * 4
        assert len(kept) == 2

    def test_two_holders_at_once_have_a_mapping_each(self, registry, kept, made):
        lend_and_read(registry, kept)
        with registry.alloc(SIZE) as region:
            with received(region, kept) as one, received(region, kept) as two:
                region.buffer[0] = 7
                assert one.buffer[0] == two.buffer[0] == 7
        assert made == [SIZE] * 3
        assert len(kept) == 2

    def test_a_mapping_with_a_view_left_is_the_views(self, registry, kept, made):
        with registry.alloc(SIZE) as region:
            region.buffer[0] = 7
            with received(region, kept) as other:
                slice_of_it = other.buffer[1:]
        assert len(kept) == 0
        assert registry.collect() == 0  # the view holds it
        del slice_of_it
        assert registry.collect() == 1
        assert made == [SIZE] * 2

    def test_so_it_is_with_an_array(self, registry, kept):
        with registry.alloc(SIZE) as region:
            with received(region, kept) as other:
                array = np.frombuffer(other.buffer, "u1")
        assert (len(kept), registry.collect()) == (0, 0)
        del array
        assert registry.collect() == 1

    def test_a_view_of_an_earlier_lending_does_not_hold_a_later_one(self, registry, kept):
        with registry.alloc(SIZE) as region:
            with received(region, kept) as other:
                left = other.buffer[:1]
        lend_and_read(registry, kept)  # other memory, as that is held
        del left
        assert registry.collect() == 1

    def test_one_never_looked_at_is_not_mapped(self, registry, kept, made):
        with registry.alloc(SIZE) as region, received(region, kept):
            pass
        assert made == [SIZE]
        assert len(kept) == 0

    def test_frozen_and_shared_memory_are_not_kept(self, kept):
        for mode in ("frozen", "shared"):
            with MemoryRegion.create(SIZE, mode=mode, name="kept") as region:
                with received(region, kept, accept_shared=True) as other:
                    assert other.buffer[0] == 0
            assert len(kept) == 0
            assert mapped() == 0

    def test_all_checks_are_made_again(self, registry, kept):
        lend_and_read(registry, kept)
        with registry.alloc(SIZE) as region:
            fds = [Fd(os.dup(fd.fileno())) for fd in region.descriptors()]
            with pytest.raises(fdpass.WrongSize):
                MemoryRegion.adopt(fds, max_size=SIZE - 1, mappings=kept)
        assert len(kept) == 1

    def test_nothing_is_kept_where_inode_numbers_are_used_again(self, registry, made, monkeypatch):
        monkeypatch.setattr("fdpass._mappings._INODES_ARE_UNIQUE", False)
        old = Mappings()
        lend_and_read(registry, old)
        lend_and_read(registry, old)
        assert made == [SIZE] * 3
        assert len(old) == 0

    @pytest.mark.parametrize(
        ("release", "unique"),
        [("5.8.18", False), ("5.9.0-rc1", True), ("5.10-generic", True), ("6.1.0", True)],
    )
    def test_those_are_kernels_before_5_9(self, release, unique, monkeypatch):
        names = os.uname()
        changed = os.uname_result((*names[:2], release, *names[3:]))
        monkeypatch.setattr(os, "uname", lambda: changed)
        assert fdpass._mappings._inodes_are_unique() is unique


class TestLimits:
    def test_the_one_not_used_for_longest_goes_first(self, registry, clock, made):
        mappings = Mappings(limit=2, clock=clock)
        for tag in "abac":  # b goes when c comes
            lend_and_read(registry, mappings, tag=tag)
        del made[:]
        lend_and_read(registry, mappings, tag="a")
        assert made == []
        lend_and_read(registry, mappings, tag="b")
        assert made == [SIZE]
        mappings.close()

    def test_together_they_are_no_larger_than_that(self, registry, clock):
        mappings = Mappings(max_bytes=3 * SIZE, clock=clock)
        for tag, count in (("a", 1), ("b", 2), ("c", 2)):
            lend_and_read(registry, mappings, size=SIZE + (tag == "c") * SIZE, tag=tag)
            assert len(mappings) == count
        lend_and_read(registry, mappings, size=4 * SIZE)
        assert len(mappings) == 0

    def test_after_a_while_without_use_they_go(self, registry, kept, clock):
        lend_and_read(registry, kept, tag="a")
        clock.now += 4
        lend_and_read(registry, kept, tag="b")
        assert len(kept) == 2
        clock.now += 2
        lend_and_read(registry, kept, tag="b")
        assert len(kept) == 1

    def test_none_is_left_after_closing_and_none_comes(self, registry, kept):
        with registry.alloc(SIZE) as region:
            with received(region, kept) as other:
                assert len(other.buffer) == SIZE
                lend_and_read(registry, kept)
                assert mapped() == 4
                kept.close()
                assert len(kept) == 0
                assert mapped() == 3
            assert mapped() == 2
        assert len(kept) == 0
        kept.close()

    def test_what_was_not_adopted_is_not_kept(self, kept):
        with Memfd.create("kept", SIZE) as memfd:
            mapping = memfd.map()
            kept.keep(memfd, mapping)
            assert mapping.closed

    def test_a_region_that_is_forgotten_gives_its_mapping_back(self, registry, kept):
        with registry.alloc(SIZE) as region:
            other = received(region, kept)
            assert len(other.buffer) == SIZE
            with pytest.warns(ResourceWarning, match="unclosed"):
                del other
        assert len(kept) == 1
        assert registry.collect() == 1

    def test_a_mapping_that_another_thread_takes_at_once_keeps_its_new_token(self, registry):
        class Raced(Mappings):
            def keep(self, memfd, mapping):
                assert mapping.token is None
                mapping.token = fdpass.Fd.blank(1)[0]  # as a region elsewhere would
                super().keep(memfd, mapping)

        mappings = Raced()
        with registry.alloc(SIZE) as region:
            with received(region, mappings) as other:
                assert len(other.buffer) == SIZE
        (each,) = mappings._kept
        assert each.mapping.token is not None
        mappings.close()

    def test_a_mapping_lost_to_a_race_is_not_closed_twice(self, registry, kept, monkeypatch):
        lend_and_read(registry, kept)
        (each,) = kept._kept
        del kept._kept[:]
        assert not kept._remove(each)
        each.mapping.close()


def test_a_mapping_that_is_not_kept_is_freed_with_its_last_view(registry, kept):
    with registry.alloc(SIZE) as region:
        with received(region, kept) as other:
            left = other.buffer[:1]
            mapping = weakref.ref(left.obj)
            assert isinstance(left.obj, Mapped)
    del left
    assert mapping() is None
