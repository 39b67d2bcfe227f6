"""Messages outside the ring: their memory is used again, by one at a time, and is bounded."""

import contextlib
import errno
import gc
import itertools
import os
import random
import signal
import threading
from pathlib import Path

import pytest
from ipcqueue._core import ffi

import fdpass
import memenpsf
from ipcqueue._ring import outside as _outside
from ipcqueue._ring.outside import SIZES, Outside, region_size
from memenpsf import ForkedUse, Full, PeerDied
from tests.kit.hostile import FRAME as HEADER
from tests.kit.hostile import OUT_AGAIN, OUT_OF_LINE, RING

FRAME = 32  # bytes of ring of a message outside of it
KIB, MIB = 1 << 10, 1 << 20
FEW = 5 * MIB // 4  # of larger ones fewer are under way


@pytest.fixture
def made(monkeypatch):
    """The sizes of the regions that were made."""
    sizes = []
    create = fdpass.Memfd.create

    def note(name, size):
        if name == "message":
            sizes.append(size)
        return create(name, size)

    monkeypatch.setattr(fdpass.Memfd, "create", note)
    return sizes


@contextlib.contextmanager
def connection(**options):
    one, other = memenpsf.pair(bytes, **{"capacity": 4096} | options)
    with one, other:
        yield one, other


def text(n, size=5000):
    return n.to_bytes(4, "little") * (size // 4)


def flags_of_the_last(side):
    """The flags of the frame that a side published last, if its message is outside the ring."""
    head, _ = side.indices()
    mapping = side._endpoint._own.mapping
    at = RING + (head - FRAME) % 4096
    frame = HEADER.unpack_from(ffi.buffer(mapping.at, mapping.size), at)
    return frame[2], frame[4]  # with how many descriptors


def kept(side):
    """The sizes of the regions of the peer that a side keeps mapped, by number."""
    return {number: each.size for number, each in side._endpoint.receiver._regions.items()}


def region_in(side, number):
    """The bytes of a region of a sender's."""
    region = side._endpoint.sender._regions._slots[number].region
    return ffi.buffer(region._mapping.at, region.size)


def mapped():
    """How many mappings of regions there are in this process."""
    gc.collect()
    return Path("/proc/self/maps").read_text().count("/memfd:message")


def take_one(side, verb):
    if verb == "recv":
        return side.recv(timeout=0)
    if verb == "recv_vectored":
        (data,) = side.recv_vectored(timeout=0)
        return data
    if verb == "recv_message":
        return side.recv_message(timeout=0).record
    with side.borrow(1, timeout=0) as (message,):
        return bytes(message.data)


VERBS = ["recv", "recv_vectored", "recv_message", "borrow"]

# -- that it is used again -----------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_memory_is_made_and_given_once_and_then_used_again(made, verb):
    with connection() as (one, other):
        before = mapped()
        for n in range(300):
            one.xmit(text(n))
            assert flags_of_the_last(one) == ((OUT_AGAIN, 0) if n else (OUT_OF_LINE, 1))
            assert take_one(other, verb) == text(n)
        assert len(made) == 1
        assert mapped() == before + 2
    assert mapped() == before


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("code", [errno.ENOMEM, errno.EIO])
@pytest.mark.parametrize("call", ["ftruncate", "posix_fallocate"])
def test_what_fails_here_is_not_blamed_on_the_peer_and_its_message_is_kept(
    monkeypatch, verb, code, call
):
    def fail(*_):
        raise OSError(code, os.strerror(code))

    with connection() as (one, other):
        one.xmit(text(1))
        with (
            monkeypatch.context() as broken,
            pytest.raises(OSError, match=os.strerror(code)) as caught,
        ):
            broken.setattr(os, call, fail)
            take_one(other, verb)
        assert caught.value.errno == code
        assert take_one(other, verb) == text(1)
        one.xmit(text(2))
        assert take_one(other, verb) == text(2)


def test_messages_of_similar_sizes_share_their_memory(made):
    chance = random.Random(1)
    with connection() as (one, other):
        for _ in range(200):
            data = chance.randbytes(chance.randint(460_000, 520_000))
            one.xmit(data)
            assert other.recv() == data
        assert made == [524_288]


def test_there_are_as_many_as_there_are_messages_under_way(made):
    with connection() as (one, other):
        for n in range(100):
            for i in range(n % 5):
                one.xmit(text(100 * n + i))
            assert other.recv_vectored(timeout=0) == [text(100 * n + i) for i in range(n % 5)]
        assert len(made) == 4


def test_a_larger_one_takes_the_place_of_a_smaller_one_at_both_sides(made):
    with connection(capacity=1 << 16, inline=0) as (one, other):
        for size in (5000, 100_000, 200_000):
            sent = [text(n, size) for n in range(len(SIZES))]
            assert one.xmit_many(sent, timeout=0) == len(SIZES)
            assert other.recv_vectored() == sent
            assert kept(other) == dict.fromkeys(range(len(SIZES)), region_size(size))
        assert len(made) == 3 * len(SIZES)
        assert mapped() == 2 * len(SIZES)


def test_attachments_go_along_with_new_and_with_used_memory():
    with connection(accept=memenpsf.Accept(fds=1)) as (one, other), Path(os.devnull).open() as file:
        for n in range(3):
            with fdpass.MemoryRegion.create(3) as region:
                region.buffer[:] = b"abc"
                one.xmit(text(n), fds=[file], regions=[region])
            assert flags_of_the_last(one) == ((OUT_AGAIN, 1) if n else (OUT_OF_LINE, 2))
            with contextlib.closing(other.recv_message()) as message:
                assert message.record == text(n)
                assert [fd.fileno() > 0 for fd in message.fds] == [True]
                assert [bytes(region.buffer) for region in message.regions] == [b"abc"]


# -- that it is used by one at a time ------------------------------------------------------------


def test_memory_that_is_being_read_is_not_written(made):
    with connection() as (one, other):
        for n in range(3):  # the region is an old one
            one.xmit(text(n))
            assert other.recv() == text(n)
        one.xmit(text(3))
        with other.borrow() as (message,):
            later = [text(n) for n in range(4, 3 + len(SIZES))]
            assert one.xmit_many([*later, b"x" * 5000], timeout=0) == len(later)
            assert message.data == text(3)
        assert len(made) == len(SIZES)
        one.xmit(text(99), timeout=0)
        assert len(made) == len(SIZES)
        assert other.recv_vectored() == [*later, text(99)]


@pytest.mark.parametrize("how", ["cancel", "raise"])
def test_memory_that_was_read_but_not_taken_is_not_written(how):
    with connection() as (one, other):
        one.xmit_many([text(0), text(1)])
        for _ in range(2):
            with contextlib.suppress(KeyError), other.borrow(2) as messages:
                assert [message.data for message in messages] == [text(0), text(1)]
                if how == "raise":
                    raise KeyError
                messages.cancel()
            one.xmit(text(2))
        assert other.recv_vectored() == [text(0), text(1), text(2), text(2)]


def test_memory_of_a_message_that_is_copied_but_not_taken_is_not_written(made):
    with connection() as (one, other):
        one.xmit(text(0))
        other.recv()
        one.xmit(text(1))
        other._endpoint.receiver.prepare(9)
        one.xmit(text(2))
        assert len(made) == 2
        assert other.recv_vectored() == [text(1), text(2)]


def test_what_waits_for_memory_is_woken_when_it_is_free():
    with connection() as (one, other):
        sent = [text(n) for n in range(5 * len(SIZES))]
        sending = threading.Thread(target=one.xmit_many, args=(sent,))
        sending.start()
        got = []
        for _ in sent:
            assert one.indices()[0] <= FRAME * (len(got) + len(SIZES))
            got.append(other.recv())
        sending.join()
        assert got == sent
        assert one.statistics().rescues == 0


def test_who_does_not_wait_copies_nothing_and_makes_nothing(made, monkeypatch):
    with connection() as (one, other):
        one.xmit_many([text(n) for n in range(len(SIZES))])
        made.clear()
        monkeypatch.setattr(_outside.Region, "fill", lambda *_: pytest.fail("copied in vain"))
        for attempt in (
            one.xmit,
            lambda data, timeout: one.xmit(data, timeout=timeout, regions=[]),
        ):
            with pytest.raises(Full):
                attempt(text(99), timeout=0)
        assert one.xmit_many([text(99)], timeout=0) == 0
        assert made == []
        assert len(other.recv_vectored()) == len(SIZES)


def test_many_threads_send_what_many_bytes_they_like():
    with connection() as (one, other):
        failed = []

        def send(first):
            try:
                for n in range(first, first + 100):
                    one.xmit(text(n, 4000 + 1000 * (n % 7)))
            except BaseException as error:
                failed.append(error)
                raise

        threads = [threading.Thread(target=send, args=(100 * i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        got = [other.recv() for _ in range(400)]
        for thread in threads:
            thread.join()
        numbers = [int.from_bytes(data[:4], "little") for data in got]
        assert [text(n, 4000 + 1000 * (n % 7)) for n in numbers] == got
        for i in range(4):
            mine = [n for n in numbers if n // 100 == i]
            assert mine == list(range(100 * i, 100 * i + 100))
        assert not failed


def test_where_all_memory_is_in_the_hands_of_others_a_message_has_some_of_its_own(made):
    with connection() as (one, other), contextlib.ExitStack() as stack:
        sender = one._endpoint.sender
        others = [Outside(text(n)) for n in range(len(SIZES))]
        for each in others:
            stack.callback(each.close)
            assert each.take(sender._regions, 0)
        one.xmit(text(99), timeout=0)
        assert other.recv() == text(99)
        assert made == [5000]
        assert kept(other) == {}
        del others[3], each  # without close(): an exception kept it from that
        stack.pop_all()
        gc.collect()
        one.xmit(text(100), timeout=0)
        assert other.recv() == text(100)
        assert kept(other) == {3: region_size(5000)}


def test_a_forked_child_does_not_write_what_its_parent_may_send(forked):
    with connection() as (one, other):
        one.xmit(text(1))
        other.recv()

        def child():
            for attempt in (one.xmit, lambda data: one.xmit_many([data])):
                with pytest.raises(ForkedUse):
                    attempt(text(2))

        assert forked(child) == 0
        assert region_in(one, 0)[:5000] == text(1)
        one.xmit(text(3))
        assert other.recv() == text(3)


# -- sizes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("exponent", range(27))
def test_a_region_is_a_quarter_larger_at_most_and_fits_what_it_was_made_for(exponent):
    for size in {(1 << exponent) + d for d in (-1, 0, 1)} | {
        5 << exponent >> 2,
        7 << exponent >> 2,
    }:
        if size > 0:
            assert size <= region_size(size) <= max(64 * KIB, size * 5 // 4 + 1)
            assert region_size(region_size(size)) == region_size(size)
            assert region_size(size + 1) >= region_size(size)


BOUNDARIES = [4081, 64 * KIB, 64 * KIB + 1, MIB, FEW, FEW + 1, 12 * MIB, 12 * MIB + 1, 20 * MIB]


@pytest.mark.parametrize("size", BOUNDARIES)
def test_any_size_arrives_again_and_again(made, size):
    data = random.Random(size).randbytes(size)
    with connection(accept=memenpsf.Accept(message=20 * MIB), inline=4096) as (one, other):
        for verb in VERBS:
            one.xmit(data)
            assert take_one(other, verb) == data
        if size > max(SIZES):
            assert made == [size] * len(VERBS)
            assert kept(other) == {}
        else:
            assert made == [min(region_size(size), max(SIZES))]
            assert list(kept(other).values()) == made
    assert mapped() == 0


def test_fewer_large_ones_are_under_way():
    with connection() as (one, other):
        data = bytes(FEW + 1)
        assert one.xmit_many([data] * 5, timeout=0) == 4
        one.xmit(bytes(5000), timeout=0)  # others may go on
        assert [len(each) for each in other.recv_vectored()] == [FEW + 1] * 4 + [5000]
        one.xmit(data, timeout=0)
        assert other.recv() == data


def test_what_is_too_large_to_be_kept_does_not_wait_for_what_is():
    with connection() as (one, other):
        large, data = bytes(12 * MIB + 1), bytes(FEW + 1)
        assert one.xmit_many([*[data] * 4, *[large] * 3], timeout=0) == 7
        got = [
            each for _ in range(5) for each in other.recv_vectored(timeout=0)
        ]  # 8 MiB and one more
        assert [len(each) for each in got] == [FEW + 1] * 4 + [12 * MIB + 1] * 3
        assert sorted(kept(other)) == [12, 13, 14, 15]


def test_all_that_is_kept_together_is_bounded():
    assert sum(SIZES) == 63 * MIB


# -- the end -------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [0, 1])
def test_what_is_under_way_at_the_end_is_received_and_then_all_memory_is_free(side):
    before = mapped()
    with connection() as sides:
        sides[side].xmit_many([text(n) for n in range(3)])
        sides[side].close()
        assert sides[1 - side].recv_vectored() == [text(n) for n in range(3)]
    assert mapped() == before


def test_a_sender_that_ends_frees_its_memory_at_once():
    with connection() as (one, other):
        one.xmit(text(1))
        assert other.recv() == text(1)
        assert mapped() == 2
        other.close()
        with contextlib.suppress(memenpsf.EndOfStream):
            one.recv()
        assert mapped() == 0


@pytest.mark.parametrize("taken", [0, 1, 40])
def test_a_sender_that_is_killed_leaves_what_it_published_and_no_memory(program, taken):
    with memenpsf.listen(f"@outside-{os.getpid()}", bytes, capacity=4096) as listener:
        sender = program(
            "import itertools, memenpsf, sys\n"
            "with memenpsf.connect(sys.argv[1], bytes, capacity=4096) as side:\n"
            "    print(flush=True)\n"
            "    for n in itertools.count():\n"
            "        side.xmit(n.to_bytes(4, 'little') * 1250)\n",
            listener.address,
        )
        with listener.accept(timeout=20) as side:
            sender.stdout.readline()
            for n in range(taken):
                assert side.recv() == text(n)
            os.kill(sender.pid, signal.SIGKILL)
            sender.wait()
            count = itertools.count(taken)
            with pytest.raises(PeerDied):
                while True:
                    assert side.recv() == text(next(count))
    assert mapped() == 0
