"""The registry: what is lent comes home when everybody has let go, and not before."""

import contextlib
import ctypes
import errno
import fcntl
import os
import select
import signal
import socket
import threading
from pathlib import Path

import numpy as np
import pytest
import trio

import fdpass
from fdpass import Memfd, MemoryRegion, MemoryRegistry, Seal
from tests.kit.attached import open_descriptors

MAX = 1 << 20
SIZE = 5000


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def registry(clock):
    with MemoryRegistry(clock=clock) as registry:
        yield registry


@pytest.fixture
def pair():
    left, right = socket.socketpair()
    left.settimeout(10)
    right.settimeout(10)
    with left, right:
        yield left, right


def give(region, sock):
    fdpass.send_fds(sock, region.descriptors())


def take(sock):
    _, fds = fdpass.recv_fds(sock)
    return MemoryRegion.adopt(fds, max_size=MAX)


def identity(region):
    return os.fstat(region.descriptors()[0].fileno()).st_ino


def idle_of(registry, *sizes, tag=""):
    """Bring new regions of these sizes home, in this order; return what identifies each."""
    regions = [registry.alloc(size, tag) for size in sizes]
    found = [identity(region) for region in regions]
    for region in regions:
        region.close()
        registry.collect()
    return found


def woken(registry, seconds=30):
    return bool(select.select([registry], [], [], seconds)[0])


def forked_for_long(function):
    """Fork a child that calls a function and lives on, with all it inherited."""
    reads, writes = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # dies with its parent
            function()
            os.write(writes, b"!")
            signal.pause()
        finally:
            os._exit(1)
    os.close(writes)
    assert os.read(reads, 1) == b"!"
    os.close(reads)
    return pid


def end(pid):
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


RECEIVER = """
import fdpass, socket, sys
sock = socket.socket(fileno=int(sys.argv[1]))
sock.settimeout(30)  # non-blocking already, as its copy in the test is
def receive():
    data, fds = fdpass.recv_fds(sock)
    return fdpass.MemoryRegion.adopt(fds, max_size=1 << 20)
"""


class TestLending:
    def test_a_new_region_is_zeros_of_exactly_the_size(self, registry):
        with registry.alloc(SIZE) as region:
            assert (region.size, region.mode, region.writable) == (SIZE, "lent", True)
            assert region.buffer == bytes(SIZE)
            region.buffer[:5] = b"hello"

    def test_nobody_but_this_mapping_writes_it(self, registry):
        with registry.alloc(SIZE) as region:
            memory, token = region.descriptors()
            assert memory.seals == (
                Seal.SHRINK | Seal.GROW | Seal.FUTURE_WRITE | Seal.SEAL | Seal.EXEC
            )
            with pytest.raises(PermissionError):
                memory.map(writable=True)
            for fd in (memory, token):
                assert fcntl.fcntl(fd.fileno(), fcntl.F_GETFD) & fcntl.FD_CLOEXEC

    def test_the_giver_goes_on_writing_after_giving(self, registry, pair):
        with registry.alloc(SIZE) as region:
            give(region, pair[0])
            region.freeze()  # of no effect
            region.buffer[:3] = b"new"
            with take(pair[1]) as received:
                assert (received.mode, received.writable, received.loan) == ("lent", False, None)
                assert received.buffer[:3] == b"new"

    def test_regions_lent_at_the_same_time_are_different_memory(self, registry):
        with registry.alloc(SIZE) as one, registry.alloc(SIZE) as other:
            one.buffer[0] = 1
            assert other.buffer[0] == 0
            assert one.loan != other.loan

    def test_a_tag_is_anything_hashable(self, registry):
        with registry.alloc(SIZE, tag=("peer", 7)):
            pass
        with pytest.raises(TypeError, match="unhashable"):
            registry.alloc(SIZE, tag=[])


class TestComingHome:
    def test_not_while_the_giver_has_it(self, registry):
        with registry.alloc(SIZE):
            assert registry.collect() == 0
        assert registry.collect() == 1

    def test_not_while_a_receiver_has_it(self, registry, pair):
        with registry.alloc(SIZE) as region:
            give(region, pair[0])
        assert registry.collect() == 0
        with take(pair[1]):
            assert registry.collect() == 0
        assert registry.collect() == 1
        assert registry.collect() == 0

    def test_only_when_the_last_of_several_receivers_let_go(self, registry, pair):
        with registry.alloc(SIZE) as region:
            give(region, pair[0])
            first = take(pair[1])
            give(region, pair[0])
        second = take(pair[1])
        first.close()
        assert registry.collect() == 0
        second.close()
        assert registry.collect() == 1

    def test_who_received_it_may_hand_it_on(self, registry, pair):
        with registry.alloc(SIZE) as region:
            give(region, pair[0])
        with take(pair[1]) as received:
            give(received, pair[0])
        assert registry.collect() == 0
        take(pair[1]).close()
        assert registry.collect() == 1

    def test_a_message_nobody_received_holds_it_no_longer_than_its_socket(self, registry):
        left, right = socket.socketpair()
        with registry.alloc(SIZE) as region:
            give(region, left)
        assert registry.collect() == 0
        left.close()
        right.close()
        assert woken(registry)
        assert registry.collect() == 1

    def test_a_message_refused_holds_nothing(self, registry, pair):
        with registry.alloc(MAX + 1) as region:
            give(region, pair[0])
        with pytest.raises(fdpass.WrongSize):
            take(pair[1])
        assert registry.collect() == 1

    def test_a_receiver_that_dies_lets_go_of_everything(self, registry, pair, program):
        receiver = program(
            RECEIVER + "regions = [receive() for _ in range(2)]\n"
            "print(bytes(regions[0].buffer[:5]), flush=True)\n"
            "sys.stdin.read()\n",
            pair[1].fileno(),
            pass_fds=[pair[1].fileno()],
        )
        for _ in range(2):
            with registry.alloc(SIZE) as region:
                region.buffer[:5] = b"hello"
                give(region, pair[0])
        assert receiver.stdout.readline() == "b'hello'\n"
        assert registry.collect() == 0
        receiver.kill()
        assert woken(registry)
        receiver.wait(timeout=30)
        assert registry.collect() == 2

    def test_a_receiver_that_lives_lets_go_too(self, registry, pair, program):
        receiver = program(
            RECEIVER + "with receive() as region:\n"
            "    print(bytes(region.buffer[:5]), flush=True)\n"
            "sys.stdin.read()\n",
            pair[1].fileno(),
            pass_fds=[pair[1].fileno()],
        )
        with registry.alloc(SIZE) as region:
            give(region, pair[0])
        assert receiver.stdout.readline()
        assert woken(registry)
        assert registry.collect() == 1
        assert receiver.poll() is None

    def test_a_forked_child_is_a_holder_until_it_ends(self, registry):
        with registry.alloc(SIZE):
            child = forked_for_long(lambda: None)
        try:
            assert registry.collect() == 0
        finally:
            end(child)
        assert registry.collect() == 1

    def test_a_read_end_left_open_in_a_forked_child_reports_nothing_later(self, registry):
        with registry.alloc(SIZE) as region:
            child = forked_for_long(region.close)
        try:
            assert registry.collect() == 1
            with registry.alloc(SIZE), registry.alloc(SIZE):
                assert registry.collect() == 0
        finally:
            end(child)

    def test_a_view_of_the_giver_keeps_it_away(self, registry):
        with registry.alloc(SIZE) as region:
            array, part = np.frombuffer(region.buffer, "u1"), region.buffer[1:3]
        assert registry.collect() == 0
        array[0] = 1
        del array
        assert registry.collect() == 0
        part.release()
        assert registry.collect() == 1

    def test_the_buffer_itself_is_revoked(self, registry):
        with registry.alloc(SIZE) as region:
            view = region.buffer
        assert registry.collect() == 1
        with pytest.raises(ValueError, match="released"):
            view[0] = 1
        with pytest.raises(fdpass.ClosedRegion):
            region.descriptors()

    def test_a_forgotten_region_warns_and_comes_home(self, registry):
        region = registry.alloc(SIZE)
        region.buffer[0] = 1
        with pytest.warns(ResourceWarning, match="unclosed <MemoryRegion lent") as warned:
            del region
        assert len(warned) == 1
        assert registry.collect() == 1

    def test_bytes_written_into_the_token_wake_nobody(self, registry, pair):
        with registry.alloc(SIZE) as region:
            give(region, pair[0])
        with take(pair[1]) as received:
            os.write(received.descriptors()[1].fileno(), b"wake up")
            assert not woken(registry, 0)
            assert registry.collect() == 0
        assert registry.collect() == 1

    def test_a_token_of_another_lending_holds_nothing(self, registry, pair):
        with registry.alloc(SIZE) as region, registry.alloc(SIZE) as other:
            give(other, pair[0])
            first = region.loan
        with take(pair[1]):
            with registry.alloc(SIZE) as region:
                assert region.loan > first
            assert registry.collect() == 1
            assert registry.statistics().lent == 1

    def test_more_than_the_kernel_reports_at_once(self, registry):
        for region in [registry.alloc(1) for _ in range(50)]:
            region.close()
        assert registry.collect() == 50


class TestReusing:
    def test_it_is_the_same_memory_with_its_bytes(self, registry):
        with registry.alloc(SIZE) as region:
            region.buffer[:5] = b"stale"
            first, loan = identity(region), region.loan
        with registry.alloc(SIZE) as region:
            assert identity(region) == first
            assert region.buffer[:5] == b"stale"
            assert region.loan > loan

    @pytest.mark.parametrize(
        ("asked", "reused"),
        [(499, False), (500, True), (999, True), (1000, True), (1001, False)],
    )
    def test_it_has_at_least_what_is_asked_and_at_most_twice_that(self, registry, asked, reused):
        (there,) = idle_of(registry, 1000)
        with registry.alloc(asked) as region:
            assert (identity(region) == there) == reused
            assert region.size == (1000 if reused else asked)

    def test_the_smallest_that_fits(self, registry):
        sizes = [1500, 1200, 900, 1900]
        there = dict(zip(idle_of(registry, *sizes), sizes, strict=True))
        with contextlib.ExitStack() as kept:  # so that the next one has to be another
            for best in (1200, 1500, 1900):
                region = kept.enter_context(registry.alloc(1000))
                assert there[identity(region)] == region.size == best

    def test_of_the_same_size_the_one_that_came_home_last(self, registry):
        there = idle_of(registry, SIZE, SIZE, SIZE)
        with registry.alloc(SIZE) as region:
            assert identity(region) == there[-1]

    def test_never_under_another_tag(self, registry):
        (there,) = idle_of(registry, SIZE, tag="one")
        with registry.alloc(SIZE, "two") as other, registry.alloc(SIZE) as untagged:
            assert there not in (identity(other), identity(untagged))
            assert other.buffer == untagged.buffer == bytes(SIZE)
        with registry.alloc(SIZE, "one") as same:
            assert identity(same) == there

    def test_a_receiver_sees_each_use_in_turn(self, registry, pair):
        inodes = set()
        for text in (b"one", b"two", b"six"):
            with registry.alloc(SIZE) as region:
                region.buffer[:3] = text
                inodes.add(identity(region))
                give(region, pair[0])
            with take(pair[1]) as received:
                assert received.buffer[:3] == text
        assert len(inodes) == 1

    def test_any_number_of_times_without_a_descriptor_more(self, registry):
        idle_of(registry, SIZE)
        before = open_descriptors()
        for _ in range(1000):
            with registry.alloc(SIZE) as region:
                region.buffer[0] = 1
        registry.collect()
        assert open_descriptors() == before
        assert registry.statistics().created == 1
        assert registry.statistics().reused == 1000


class TestExpiring:
    def test_what_nobody_reused_is_freed_after_five_seconds(self, registry, clock):
        idle_of(registry, SIZE)
        clock.now += 4.9
        assert registry.expire() == 0
        clock.now += 0.1
        assert registry.expire() == 1
        assert registry.statistics().idle == 0
        assert "/memfd:region" not in Path("/proc/self/maps").read_text()

    @pytest.mark.parametrize("look", [MemoryRegistry.collect, lambda r: r.alloc(SIZE, "x").close()])
    def test_looking_for_returns_frees_too(self, registry, clock, look):
        idle_of(registry, SIZE)
        clock.now += 5
        look(registry)
        assert registry.statistics().freed == 1

    def test_the_oldest_first_and_reuse_begins_anew(self, registry, clock):
        idle_of(registry, 1000)
        clock.now += 3
        idle_of(registry, 5000)
        with registry.alloc(1000):
            clock.now += 3
        registry.collect()  # 1000 came home just now, 5000 three seconds ago
        assert registry.until_expiry() == pytest.approx(2)
        clock.now += 2
        assert registry.expire() == 1
        assert registry.statistics().idle_bytes == 1000
        assert registry.until_expiry() == pytest.approx(3)

    def test_some_of_a_tag_leave_the_others_findable(self, registry, clock):
        idle_of(registry, 5000, 1000)
        clock.now += 3
        (there,) = idle_of(registry, 2100)
        clock.now += 2
        assert registry.expire() == 2
        with registry.alloc(2000) as region:
            assert identity(region) == there

    def test_until_expiry_is_none_when_nothing_is_idle_and_never_negative(self, registry, clock):
        with registry.alloc(SIZE):
            assert registry.until_expiry() is None
        registry.collect()
        assert registry.until_expiry() == 5
        clock.now += 60
        assert registry.until_expiry() == 0

    def test_keeping_nothing_and_keeping_for_ever(self, clock):
        with MemoryRegistry(keep=0, clock=clock) as registry:
            registry.alloc(SIZE).close()
            assert registry.collect() == 1
            assert registry.statistics().freed == 1
        with MemoryRegistry(keep=float("inf"), clock=clock) as registry:
            idle_of(registry, SIZE)
            clock.now += 1e9
            assert registry.expire() == 0

    @pytest.mark.parametrize("keep", [-1, float("nan")])
    def test_keeping_for_less_than_no_time_is_a_value_error(self, keep):
        with pytest.raises(ValueError, match="at least 0 seconds"):
            MemoryRegistry(keep=keep)


class TestTelling:
    def test_each_return_is_told_once(self, clock):
        told = []
        with MemoryRegistry(clock=clock, on_return=told.append) as registry:
            with registry.alloc(SIZE, "tag") as region:
                clock.now += 7
            registry.collect()
            registry.collect()
            assert told == [fdpass.Returned(region.loan, "tag", SIZE, 7.0)]

    def test_alloc_tells_too_and_what_is_called_may_use_the_registry(self, clock):
        told = []

        def on_return(returned):
            told.append(returned.loan)
            if returned.loan == first.loan:
                with registry.alloc(SIZE):
                    registry.statistics()

        with MemoryRegistry(clock=clock, on_return=on_return) as registry:
            with registry.alloc(SIZE) as first:
                pass
            with registry.alloc(SIZE) as third:
                pass
            registry.collect()
            assert told == [first.loan, first.loan + 1, third.loan]

    def test_an_error_goes_to_the_caller_and_the_others_are_told_next_time(self, clock):
        told = []

        def on_return(returned):
            told.append(returned.size)
            if len(told) == 1:
                raise ZeroDivisionError

        with MemoryRegistry(clock=clock, on_return=on_return) as registry:
            for region in [registry.alloc(size) for size in (10, 20)]:
                region.close()
            with pytest.raises(ZeroDivisionError):
                registry.alloc(SIZE)
            assert registry.statistics().lent == 0
            assert registry.collect() == 0
            assert sorted(told) == [10, 20]

    def test_the_registry_is_readable_when_something_came_home(self, registry):
        with registry.alloc(SIZE):
            assert not woken(registry, 0)
        assert woken(registry, 0)
        registry.collect()
        assert not woken(registry, 0)

    async def test_trio_can_wait_for_it(self, registry, pair):
        with registry.alloc(SIZE) as region:
            give(region, pair[0])
        received = take(pair[1])
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def collect():
                await trio.lowlevel.wait_readable(registry.fileno())
                assert registry.collect() == 1

            await trio.testing.wait_all_tasks_blocked()
            received.close()

    def test_statistics_add_up(self, registry, clock):
        idle_of(registry, 1000, 2000)
        with registry.alloc(1000), registry.alloc(3000):
            clock.now += 5
            registry.expire()
            statistics = registry.statistics()
        assert statistics == fdpass.RegistryStatistics(
            created=3, reused=1, returned=2, freed=1, lent=2, lent_bytes=4000, idle=0, idle_bytes=0
        )
        assert statistics.created == statistics.lent + statistics.idle + statistics.freed


class TestShortage:
    def short_once(self, monkeypatch, module, name, number):
        real, calls = getattr(module, name), []

        def short(*arguments):
            calls.append(arguments)
            if len(calls) == 1:
                raise OSError(number, os.strerror(number))
            return real(*arguments)

        monkeypatch.setattr(module, name, short)
        return calls

    def test_idle_memory_makes_room(self, registry, monkeypatch):
        idle_of(registry, SIZE, SIZE)
        calls = self.short_once(monkeypatch, os, "posix_fallocate", errno.ENOSPC)
        registry.alloc(3 * SIZE).close()
        assert len(calls) == 2
        assert registry.statistics().freed == 2

    def test_idle_descriptors_make_room(self, registry, monkeypatch):
        idle_of(registry, SIZE)
        self.short_once(monkeypatch, os, "pipe2", errno.EMFILE)
        registry.alloc(SIZE).close()
        assert registry.statistics().freed == 1

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EPERM])
    def test_if_there_is_none_or_it_would_not_help_it_is_the_oserror(
        self, registry, monkeypatch, number
    ):
        if number == errno.EPERM:
            idle_of(registry, SIZE)
        self.short_once(monkeypatch, os, "posix_fallocate", number)
        with pytest.raises(OSError, match=os.strerror(number)):
            registry.alloc(3 * SIZE)
        assert registry.statistics().lent == 0

    def test_a_failure_after_sealing_closes_the_file(self, registry, monkeypatch):
        def fails(self, seals):
            raise OSError(errno.EINVAL, "no such seal")

        monkeypatch.setattr(Memfd, "seal", fails)
        with pytest.raises(OSError, match="no such seal"):
            registry.alloc(SIZE)

    def test_a_failure_to_watch_frees_what_was_taken(self, registry):
        idle_of(registry, SIZE)

        class Full:
            def __init__(self, epoll):
                self.epoll = epoll

            def __getattr__(self, name):
                return getattr(self.epoll, name)

            def register(self, *arguments):
                raise OSError(errno.ENOSPC, "too many watches")

        real, registry._epoll = registry._epoll, Full(registry._epoll)
        with pytest.raises(OSError, match="too many"):
            registry.alloc(SIZE)
        registry._epoll = real
        statistics = registry.statistics()
        assert (statistics.lent, statistics.idle, statistics.freed) == (0, 0, 1)
        registry.alloc(SIZE).close()


class TestClosing:
    def test_it_frees_what_is_idle_and_is_unusable(self):
        registry = MemoryRegistry()
        idle_of(registry, SIZE)
        registry.close()
        registry.close()
        assert registry.closed
        assert registry.statistics().freed == 1
        assert registry.until_expiry() is None
        for use in (registry.collect, registry.expire, registry.fileno, lambda: registry.alloc(1)):
            with pytest.raises(fdpass.ClosedRegistry, match="expected an open registry"):
                use()

    def test_regions_out_are_closed_and_what_is_received_stays(self, pair):
        with MemoryRegistry() as registry:
            region = registry.alloc(SIZE)
            region.buffer[:3] = b"abc"
            array = np.frombuffer(region.buffer, "u1")
            give(region, pair[0])
        assert region.closed
        for use in (lambda: region.buffer, region.descriptors):
            with pytest.raises(fdpass.ClosedRegion):
                use()
        region.close()
        with take(pair[1]) as received:
            assert bytes(array[:3]) == received.buffer[:3] == b"abc"

    def test_one_that_is_forgotten_warns_and_closes(self):
        registry = MemoryRegistry()
        idle_of(registry, SIZE)
        with pytest.warns(ResourceWarning, match="unclosed <MemoryRegistry 0 lent, 1 idle>") as w:
            del registry
        assert len(w) == 1

    @pytest.mark.parametrize("what", ["registry", "region"])
    def test_a_forked_child_may_close_what_a_thread_was_using(self, registry, forked, what):
        with registry.alloc(100) as region:
            # Held by a thread that does not exist in the child.
            held = threading.Thread(
                target=(registry if what == "registry" else region)._lock.acquire
            )
            held.start()
            held.join()
            try:
                assert forked((registry if what == "registry" else region).close) == 0
            finally:
                (registry if what == "registry" else region)._lock.release()

    def test_a_forked_child_may_only_close_it(self, registry, forked, pair):
        idle_of(registry, 1)
        region = registry.alloc(SIZE)

        def child():
            for use in (registry.collect, registry.expire, registry.fileno):
                with pytest.raises(fdpass.ForkedRegistry, match="forked child"):
                    use()
            with pytest.raises(fdpass.ForkedRegistry):
                registry.alloc(1)
            region.close()
            registry.close()

        assert forked(child) == 0
        assert registry.collect() == 0
        region.close()
        assert woken(registry)
        assert registry.collect() == 1
        assert registry.statistics().idle == 2

    def test_closing_during_alloc_leaves_nothing(self, monkeypatch):
        registry = MemoryRegistry()
        real = os.posix_fallocate

        def closes(*arguments):
            registry.close()
            real(*arguments)

        monkeypatch.setattr(os, "posix_fallocate", closes)
        with pytest.raises(fdpass.ClosedRegistry):
            registry.alloc(SIZE)


class TestThreads:
    def test_no_region_is_lent_to_two_at_once(self):
        told, faults = [], []
        with MemoryRegistry(on_return=told.append) as registry:

            def use(mark):
                for turn in range(300):
                    with registry.alloc(1000 + turn % 3 * 1000, tag=turn % 2) as region:
                        region.buffer[0] = mark
                        region.buffer[-1] = mark
                        if turn % 50 == 0:
                            registry.expire()
                        if (region.buffer[0], region.buffer[-1]) != (mark, mark):
                            faults.append(turn)

            threads = [threading.Thread(target=use, args=(mark,)) for mark in range(1, 5)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            registry.collect()
            statistics = registry.statistics()
        assert not faults
        assert statistics.returned == statistics.created + statistics.reused == len(told) == 1200
        assert len({returned.loan for returned in told}) == 1200
        assert statistics.created == statistics.idle
        assert statistics.lent == 0
