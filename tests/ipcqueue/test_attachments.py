"""Descriptors and memory regions beside messages: each with its own, and none left behind."""

import contextlib
import ctypes
import fcntl
import mmap
import os
import random
import resource
import signal
import socket
import sys
import threading
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from ipcqueue._core import ffi

import fdpass
import ipcqueue
import memenpsf
from memenpsf import (
    BadRecord,
    CorruptPeer,
    DescriptorsLost,
    EndOfStream,
    ForkedUse,
    Full,
    PeerDied,
    Unaccepted,
)
from tests.kit.attached import number_of, numbered, numbers, open_descriptors, region_of
from tests.kit.connected import connection, inode, quick_collector  # noqa: F401 (the fixture)
from tests.kit.hostile import FDS
from tests.kit.places import TESTS, Places

MANY = 253  # as many as the kernel carries with one message


@pytest.fixture
def pair():
    with connection(capacity=1 << 16, accept=memenpsf.Accept(fds=MANY)) as sides:
        yield sides


def still_works(one, other):
    with numbers(77) as files:
        one.xmit(b"still works", fds=files, timeout=0)
    with contextlib.closing(other.recv_message(timeout=0)) as message:
        assert (message.record, [number_of(fd) for fd in message.fds]) == (b"still works", [77])
    assert other.recv(timeout=0) is None


# -- descriptors -----------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 2, 16, 252, 253])
@pytest.mark.parametrize("size", [0, 10, 100_000])
def test_as_many_descriptors_as_were_sent_arrive_in_order(pair, count, size):
    one, other = pair
    before = open_descriptors()
    with numbers(*range(count)) as files:
        if count == MANY and size == 100_000:  # its bytes would be number 254
            with pytest.raises(BadRecord, match=r"are 254 descriptors, .* at most 253"):
                one.xmit(bytes(size), fds=files)
            size = 0
        one.xmit(bytes(size), fds=files)
    message = other.recv_message()
    assert message.record == bytes(size)
    assert [number_of(fd) for fd in message.fds] == list(range(count))
    assert message.regions == []
    message.close()
    message.close()  # again does nothing
    assert all(fd.closed for fd in message.fds)
    assert open_descriptors() == before
    assert other.statistics().dropped == 0


def test_descriptors_are_of_the_receiver_alone_and_not_for_programs_it_starts(pair):
    one, other = pair
    reading, writing = os.pipe()
    one.xmit(b"", fds=[reading, writing])
    os.close(reading)
    with contextlib.closing(other.recv_message()) as message:
        assert all(type(fd) is fdpass.Fd for fd in message.fds)
        assert not any(os.get_inheritable(fd.fileno()) for fd in message.fds)
        os.write(writing, b"through")
        os.close(writing)
        assert os.read(message.fds[0].fileno(), 10) == b"through"
        message.fds[1].close()
        assert os.read(message.fds[0].fileno(), 10) == b""  # nobody else holds the other end


def test_descriptors_can_be_given_as_whatever_has_a_number(pair, tmp_path):
    one, other = pair
    path = tmp_path / "file"
    with path.open("wb") as file, numbers(3, 4) as (fd, number), region_of(b"x") as region:
        given = [file, fd, number.fileno(), region.descriptors()[0]]
        one.xmit(b"list", fds=given)
        one.xmit(b"tuple", fds=tuple(given))
        one.xmit(b"iterator", fds=iter(given))
        expected = [inode(each) for each in given]
        for record in (b"list", b"tuple", b"iterator"):
            with contextlib.closing(other.recv_message()) as message:
                assert message.record == record
                assert [inode(each) for each in message.fds] == expected
        assert not fd.closed  # it was borrowed


@pytest.mark.parametrize("none", [(), [], iter([])])
def test_no_descriptors_are_as_if_none_were_given(none):
    with connection(other={"accept": memenpsf.Accept(fds=0, regions=0)}) as (one, other):
        one.xmit(b"x", fds=none, regions=none)
        assert other.recv_message() == (b"x", [], [])


@pytest.mark.parametrize("most", [0, 1, 7])
def test_more_than_the_receiver_accepts_are_refused_at_the_sender(most):
    with connection(accept=memenpsf.Accept(fds=3), other={"accept": memenpsf.Accept(fds=most)}) as (
        one,
        other,
    ):
        with numbers(*range(most + 1)) as files:
            says = f"{most + 1} descriptors with one message, and the receiver accepts at most"
            with pytest.raises(Unaccepted, match=f"{says} {most}"):
                one.xmit(b"x", fds=files)
            one.xmit(b"x", fds=files[:most])
            assert other.recv() == b"x"
            with pytest.raises(Unaccepted, match=r"4 descriptors .* accepts at most 3"):
                other.xmit(b"x", fds=files[:1] * 4)
        assert one.recv(timeout=0) is None


def test_254_are_more_than_anybody_accepts(pair):
    one, other = pair
    with numbers(1) as files:
        with pytest.raises(Unaccepted, match=r"254 descriptors .* accepts at most 253"):
            one.xmit(b"x", fds=files * 254)
        with region_of(b"x") as region:
            with pytest.raises(BadRecord, match="253 descriptors and 1 regions are 254"):
                one.xmit(b"x", fds=files * 253, regions=[region])
            one.xmit(b"x", fds=files * 252, regions=[region])
    with contextlib.closing(other.recv_message()) as message:
        assert (len(message.fds), len(message.regions)) == (252, 1)
    still_works(one, other)


def closed_fd():
    fd = numbered(1)
    fd.close()
    return fd


def closed_number():
    number = fcntl.fcntl(0, fcntl.F_DUPFD, 1000)  # one that nobody gets by chance
    os.close(number)
    return number


def closed_socket():
    sock = socket.socket(socket.AF_UNIX)
    sock.close()
    return sock


@pytest.mark.parametrize(
    "make",
    [
        closed_fd,
        closed_number,
        closed_socket,
        lambda: -1,
        lambda: 1 << 40,
        lambda: 1 << 100,
        lambda: "3",
        lambda: 3.0,
        lambda: None,
        object,
    ],
)
def test_what_is_no_open_descriptor_is_refused_and_the_interface_goes_on(pair, make):
    one, other = pair
    wrong = make()
    before = open_descriptors()
    with numbers(1) as files:
        for fds in ([wrong], [*files, wrong], [wrong, *files]):
            for size in (1, 100_000):
                with pytest.raises(BadRecord, match="expected an open descriptor, got "):
                    one.xmit(bytes(size), fds=fds)
    assert open_descriptors() == before
    assert one.indices() == (0, 0)
    still_works(one, other)


def test_a_descriptor_that_is_closed_at_the_last_moment_is_an_oserror_and_nothing_is_sent(pair):
    one, other = pair
    sender = one._endpoint.sender
    with mock.patch.object(sender, "_checked_fd", return_value=closed_number()):
        for size in (1, 100_000):
            with pytest.raises(OSError, match="sending descriptors: Bad file descriptor"):
                one.xmit(bytes(size), fds=[0])
    assert one.indices() == (0, 0)
    still_works(one, other)


def test_sockets_go_only_where_they_are_accepted():
    ends = socket.socketpair()
    with ends[0], ends[1]:
        with connection(
            accept=memenpsf.Accept(fds=2), other={"accept": memenpsf.Accept(fds=2, sockets=True)}
        ) as (one, other):
            one.xmit(b"socket", fds=ends[:1])
            with contextlib.closing(other.recv_message()) as message:
                assert inode(message.fds[0]) == inode(ends[0])
            says = "descriptor .* is a socket, and the receiver accepts none"
            with pytest.raises(Unaccepted, match=says):
                other.xmit(b"socket", fds=[ends[0]])
            with numbers(1) as files, pytest.raises(Unaccepted, match=says):
                other.xmit(b"socket", fds=[*files, ends[0].fileno()])
            assert one.recv(timeout=0) is None


def test_records_of_one_size_have_nothing_beside_them():
    with connection("<Q", capacity=4) as (one, other):
        with numbers(1) as files, region_of(b"x") as region:
            for beside in ({"fds": files}, {"regions": [region]}):
                with pytest.raises(Unaccepted, match=r"go with messages \(record=bytes\)"):
                    one.xmit((7,), **beside)
        with pytest.raises(
            BadRecord, match=r"fds is a sequence, not int; a record is one argument"
        ):
            one.xmit(7, 2.5, 100)
        one.xmit((8,), fds=(), regions=[])
        assert other.recv_message() == ((8,), [], [])
        assert other.recv_message(timeout=0) is None
        other.xmit((9,))
        one.close()
        with pytest.raises(EndOfStream):
            other.recv_message()
    with connection(np.dtype("<u4")) as (one, other):
        one.xmit(5)
        assert other.recv_message() == (5, [], [])


def test_each_message_has_its_own_whatever_lies_between(pair):
    one, other = pair
    chance = random.Random(7)
    expected = []
    for n in range(300):
        wanted = [n * 10 + k for k in range(chance.choice([0, 0, 1, 2, 5]))]
        data = bytes([n % 256]) * chance.choice([0, 10, 1000, 30_000])
        while True:
            try:
                with numbers(*wanted) as files:
                    one.xmit(data, timeout=0, fds=files)
                break
            except Full:
                check_next(other, expected.pop(0))
        expected.append((data, wanted))
        if chance.random() < 0.3:
            check_next(other, expected.pop(0))
    for each in expected:
        check_next(other, each)
    assert other.recv(timeout=0) is None


def check_next(side, expected):
    with contextlib.closing(side.recv_message()) as message:
        assert (message.record, [number_of(fd) for fd in message.fds]) == expected


def test_a_batch_brings_all_messages_whose_descriptors_are_in_the_socket(pair):
    one, other = pair
    with numbers(1) as files:
        for n in range(16):
            one.xmit(b"%d" % n, fds=files)
    assert other.recv_vectored() == [b"%d" % n for n in range(16)]


@pytest.mark.parametrize("when", ["not received", "read ahead", "in a borrowing"])
def test_closing_closes_what_nobody_has_received(when):
    before = open_descriptors()
    with connection(accept=memenpsf.Accept(fds=3)) as (one, other):
        with numbers(1, 2) as files, region_of(b"x") as region:
            one.xmit(b"1", fds=files, regions=[region])
            one.xmit(b"2" * 1_000_000, fds=files)
        if when == "read ahead":
            other._endpoint.receiver.prepare(2)
            while other._endpoint.read_more():
                other._endpoint.receiver.prepare(2)
        if when == "in a borrowing":
            with pytest.raises(memenpsf.Closed), other.borrow():
                other.close()
    assert open_descriptors() == before


def test_a_forked_child_closes_its_own_copies_and_nobody_elses(pair, forked):
    one, other = pair
    with numbers(1) as files:
        one.xmit(b"read", fds=files)
        one.xmit(b"unread", fds=files)
        other._endpoint.read_more()

        def child():
            for use in (
                lambda: other.recv_message(timeout=0),
                lambda: other.recv(timeout=0),
                lambda: one.xmit(b"x", timeout=0, fds=files),
                lambda: one.xmit(b"x" * 100_000, timeout=0),
            ):
                with pytest.raises(ForkedUse):
                    use()
            before = open_descriptors()
            other.close()
            assert open_descriptors() == before - 5

        assert forked(child) == 0
    for record in (b"read", b"unread"):
        check_next(other, (record, [1]))


def test_messages_built_ahead_are_not_for_a_forked_child(pair, forked):
    one, other = pair
    one.xmit_many([b"1", b"2"])
    other._endpoint.receiver.prepare(2)

    def child():
        with pytest.raises(ForkedUse):
            other.recv(timeout=0)

    assert forked(child) == 0
    assert other.recv_vectored() == [b"1", b"2"]


# -- memory regions --------------------------------------------------------------------------------


def test_a_region_arrives_as_it_was_given_and_cannot_change_any_more(pair):
    one, other = pair
    with region_of(b"content") as region:
        one.xmit(b"with a region", regions=[region])
        with contextlib.closing(other.recv_message()) as message:
            (received,) = message.regions
            assert (received.mode, received.size, received.writable) == ("frozen", 7, False)
            assert received.buffer == region.buffer == b"content"
            with pytest.raises(TypeError):
                received.buffer[0] = 0
            with pytest.raises(TypeError):
                region.buffer[0] = 0


def test_regions_and_descriptors_and_a_large_message_arrive_together(pair):
    one, other = pair
    before = open_descriptors()
    contents = [bytes([n]) * (n + 1) for n in range(8)]
    with contextlib.ExitStack() as undo, numbers(1, 2, 3) as files:
        regions = [undo.enter_context(region_of(each)) for each in contents]
        one.xmit(b"x" * 100_000, fds=files, regions=iter(regions))
    message = other.recv_message()
    assert message.record == b"x" * 100_000
    assert [number_of(fd) for fd in message.fds] == [1, 2, 3]
    assert [bytes(region.buffer) for region in message.regions] == contents
    message.close()
    assert open_descriptors() == before


def test_a_region_can_be_handed_on_by_who_received_it(pair):
    one, other = pair
    with region_of(b"content") as region:
        one.xmit(b"there", regions=[region])
    with contextlib.closing(other.recv_message()) as message:
        other.xmit(b"and back", regions=message.regions, fds=())
    with contextlib.closing(one.recv_message()) as message:
        assert message.regions[0].buffer == b"content"


def test_shared_regions_go_only_where_they_are_accepted():
    with connection(other={"accept": memenpsf.Accept(shared=True)}) as (one, other):
        with region_of(b"before", mode="shared") as region:
            one.xmit(b"shared", regions=[region])
            with contextlib.closing(other.recv_message()) as message:
                (received,) = message.regions
                assert received.mode == "shared"
                region.buffer[:] = b"after!"
                assert received.buffer == b"after!"
                received.buffer[0] = ord("A")
                assert region.buffer == b"After!"
            with pytest.raises(Unaccepted, match="the region is shared, and the receiver"):
                other.xmit(b"shared", regions=[region])


def test_a_lent_region_comes_home_when_its_receiver_has_let_go(pair):
    one, other = pair
    with fdpass.MemoryRegistry() as registry:
        for way in ("close", "recv", "borrow"):
            region = registry.alloc(100)
            region.buffer[:3] = way[:3].encode()
            one.xmit(b"x", regions=[region])
            region.close()
            assert registry.collect() == 0
            if way == "recv":
                other.recv()
            elif way == "borrow":
                with other.borrow():
                    pass
            else:
                with contextlib.closing(other.recv_message()) as message:
                    assert message.regions[0].mode == "lent"
                    assert message.regions[0].buffer[:3] == b"clo"
                    assert registry.collect() == 0
            assert registry.collect() == 1
        assert registry.statistics().lent == 0


def test_a_connection_keeps_mappings_of_lent_regions_and_no_longer_than_it_lives(monkeypatch):
    mapped, real = [], fdpass.Memfd.map

    def noted(self, **options):
        mapped.append(options)
        return real(self, **options)

    monkeypatch.setattr(fdpass.Memfd, "map", noted)
    before = open_descriptors()
    with connection() as (one, other), fdpass.MemoryRegistry(name="kept") as registry:
        for number in range(3):
            with registry.alloc(100) as region:
                region.buffer[0] = number
                one.xmit(b"x", regions=[region])
            with contextlib.closing(other.recv_message()) as message:
                assert message.regions[0].buffer[0] == number
        assert mapped == [{"writable": True}, {"writable": False}]
        assert kept_in_maps() == 2
        other.close()
        assert kept_in_maps() == 1
    assert kept_in_maps() == 0
    assert open_descriptors() == before


def kept_in_maps():
    return Path("/proc/self/maps").read_text().count("/memfd:kept")


def test_lent_regions_and_frozen_ones_arrive_in_their_order(pair):
    one, other = pair
    with fdpass.MemoryRegistry() as registry, region_of(b"frozen") as frozen:
        lent = [registry.alloc(4) for _ in range(3)]
        for n, region in enumerate(lent):
            region.buffer[:] = bytes([n]) * 4
        one.xmit(b"x" * 100_000, regions=[lent[0], frozen, lent[1], lent[2], frozen])
        for region in lent:
            region.close()
        with contextlib.closing(other.recv_message()) as message:
            modes = [region.mode for region in message.regions]
            assert modes == ["lent", "frozen", "lent", "lent", "frozen"]
            contents = [bytes(region.buffer) for region in message.regions]
            assert contents == [b"\0" * 4, b"frozen", b"\1" * 4, b"\2" * 4, b"frozen"]
        assert registry.collect() == 3


def test_regions_count_and_not_their_descriptors():
    with (
        connection(accept=memenpsf.Accept(regions=2)) as (one, other),
        fdpass.MemoryRegistry() as registry,
    ):
        regions = [registry.alloc(4) for _ in range(3)]
        with pytest.raises(Unaccepted, match=r"3 memory regions .* accepts at most 2"):
            one.xmit(b"x", regions=regions)
        one.xmit(b"x", regions=regions[:2])
        for region in regions:
            region.close()
        assert other.recv() == b"x"
        assert other.statistics().dropped == 2


def closed_region():
    region = fdpass.MemoryRegion.create(1)
    region.close()
    return region


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (closed_region, "the region cannot be given: expected an open memory region"),
        (lambda: 7, "expected a MemoryRegion, got int"),
        (lambda: b"bytes", "expected a MemoryRegion, got bytes"),
        (lambda: None, "expected a MemoryRegion, got NoneType"),
    ],
)
def test_what_is_no_open_region_is_refused_and_the_interface_goes_on(pair, make, says):
    one, other = pair
    with region_of(b"good") as good:
        for regions in ([make()], [good, make()]):
            for size in (1, 100_000):
                with pytest.raises(BadRecord, match=says):
                    one.xmit(bytes(size), regions=regions)
    assert one.indices() == (0, 0)
    still_works(one, other)


def test_a_region_that_is_still_being_written_is_refused_until_it_is_not(pair):
    one, other = pair
    with region_of(b"content") as region:
        part = region.buffer[2:]
        with pytest.raises(BadRecord, match="delete arrays and release slices"):
            one.xmit(b"x", regions=[region])
        part[0] = ord("X")
        del part
        one.xmit(b"x", regions=[region])
    with contextlib.closing(other.recv_message()) as message:
        assert message.regions[0].buffer == b"coXtent"


def test_a_region_larger_than_the_receiver_takes_breaks_the_protocol():
    # The limit is the receiver's own, and not announced.
    with connection(accept=memenpsf.Accept(region=100)) as (one, other):
        with region_of(bytes(100)) as small, region_of(bytes(101)) as large:
            one.xmit(b"small", regions=[small])
            one.xmit(b"large", regions=[large])
        other.recv_message().close()
        with pytest.raises(CorruptPeer, match="expected 1 to 100, received 101"):
            other.recv_message()


# -- the socket is full ------------------------------------------------------------------------------


def fill_socket(side):
    """Send control messages until the socket takes no more; return how many."""
    for count in range(100_000):
        try:
            side.send_ctrl_msg(b"\xff\0", timeout=0)
        except Full:
            return count
    raise AssertionError("the socket takes everything")


def drain(side):
    count = 0
    while side.recv_ctrl_msg(timeout=0) is not None:
        count += 1
    return count


def counted(side):
    """Count how often a side tries to send something with descriptors."""
    sender = type(side._endpoint.sender)
    calls, real = [], sender.try_send
    return calls, mock.patch.object(
        sender, "try_send", lambda self, parcel: calls.append(1) or real(self, parcel)
    )


def test_a_socket_with_little_room_delays_and_loses_nothing():
    ours, theirs = socket.socketpair()
    for sock in (ours, theirs):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    sides = []
    opening = threading.Thread(
        target=lambda: sides.append(
            memenpsf.Interface(theirs, bytes, accept=memenpsf.Accept(fds=8))
        )
    )
    opening.start()
    with memenpsf.Interface(ours, bytes, accept=memenpsf.Accept(fds=8)) as one:
        opening.join()
        (other,) = sides
        with other:

            def send():
                for n in range(200):
                    with numbers(*range(n % 9)) as files:
                        one.xmit(b"%d" % n, fds=files)

            sending = threading.Thread(target=send)
            sending.start()
            for n in range(200):
                check_next(other, (b"%d" % n, list(range(n % 9))))
            sending.join()
            assert one.statistics().rescues == other.statistics().rescues == 0


# -- threads -------------------------------------------------------------------------------------------


def test_any_number_of_threads_may_send_and_receive_with_descriptors(pair):
    one, other = pair
    before = open_descriptors()
    got, dropped, lock = [], [], threading.Lock()
    messages = 5 * 60

    def send(who):
        for n in range(60):
            with numbers(*(who * 10_000 + n * 10 + k for k in range((who + n) % 9))) as files:
                one.xmit(b"%d %d" % (who, n) + bytes(n % 2 * 20_000), fds=files)

    def taken():
        with lock:
            return len(got) + len(dropped)

    def receive(number):
        while taken() < messages:
            if number == 0:
                record = other.recv(timeout=0.01)
                with lock:
                    dropped.extend([] if record is None else [record])
            elif number == 1:
                records = other.recv_vectored(2, timeout=0.01)
                with lock:
                    dropped.extend(records)
            elif (message := other.recv_message(timeout=0.01)) is not None:
                with contextlib.closing(message), lock:
                    got.append((message.record, [number_of(fd) for fd in message.fds]))

    control = threading.Thread(target=lambda: other.recv_ctrl_msg(timeout=None))
    threads = [
        control,  # which reads the socket for all others, most of the time
        *(threading.Thread(target=send, args=(who,)) for who in range(5)),
        *(threading.Thread(target=receive, args=(number,)) for number in range(4)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads[1:]:
        thread.join()
    one.send_ctrl_msg(b"\xff\0")
    control.join()
    lost = 0
    for record, fds in got:
        who, n = map(int, record.rstrip(b"\0").split())
        assert fds == [who * 10_000 + n * 10 + k for k in range((who + n) % 9)]
    for record in dropped:
        who, n = map(int, record.rstrip(b"\0").split())
        lost += (who + n) % 9
    assert other.statistics().dropped == lost
    assert len({record for record, _ in got} | set(dropped)) == messages
    assert other.statistics().rescues == 0
    assert open_descriptors() == before


# -- a limit on open descriptors -----------------------------------------------------------------------


@contextlib.contextmanager
def room_for(count):
    """Let this process open only so many more descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = [os.open("/dev/null", os.O_RDONLY) for _ in range(count)]
    highest = max(spare, default=0)
    more = []
    try:
        # The lowest numbers are given out first: fill the gaps below the limit.
        while True:
            number = os.dup(0)
            more.append(number)
            if number > highest:
                break
        for number in spare:
            os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, (more[-1], hard))
        os.close(more.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for number in more:
            os.close(number)


def test_the_helper_leaves_room_for_as_many_as_it_says():
    for count in (0, 1, 5):
        opened = []
        with room_for(count), pytest.raises(OSError, match="Too many open files"):
            while True:
                opened.append(os.dup(0))
        assert len(opened) == count
        for number in opened:
            os.close(number)


@pytest.mark.parametrize("room", [0, 1, 19])
@pytest.mark.parametrize("verb", ["recv", "recv_vectored", "recv_message", "borrow"])
def test_descriptors_that_this_process_may_not_open_end_the_connection(pair, room, verb):
    one, other = pair
    before = open_descriptors()
    with numbers(1) as files:
        one.xmit(b"before", fds=())
        one.xmit(b"many", fds=files * 20)
        one.xmit(b"after")

    def take():
        if verb == "borrow":
            with other.borrow(1) as messages:
                return bytes(messages[0].data)
        got = getattr(other, verb)(*[1] * (verb == "recv_vectored"))
        return got[0] if verb in ("recv_vectored", "recv_message") else got

    with room_for(room):
        assert take() == b"before"
        for _ in range(2):
            with pytest.raises(DescriptorsLost, match="may not open as many descriptors"):
                take()
    with pytest.raises(DescriptorsLost):
        other.xmit(b"x")
    assert open_descriptors() == before
    other.close()
    with pytest.raises(EndOfStream):
        one.recv()


@pytest.mark.parametrize("verb", ["recv", "recv_vectored", "recv_message", "borrow"])
@pytest.mark.parametrize("what", ["large", "region"])
@pytest.mark.parametrize("room", [0, 1])
def test_what_needs_a_descriptor_for_a_moment_can_be_received_later(pair, what, verb, room):
    one, other = pair
    before = open_descriptors()
    data = b"x" * 100_000 if what == "large" else b"x"
    one.xmit(b"before")
    with region_of(b"content") as region:
        one.xmit(data, regions=[region] * (what == "region"))
    other._endpoint.read_more()
    got = []
    for _ in range(2):
        with contextlib.suppress(OSError), room_for(room):
            take_as_much_as_goes(other, verb, got)
    while len(got) < 2:
        take_as_much_as_goes(other, verb, got)
    assert got == [b"before", data]
    assert open_descriptors() == before


def take_as_much_as_goes(side, verb, got):
    if verb == "recv":
        got.append(side.recv(timeout=0))
    elif verb == "recv_vectored":
        got += side.recv_vectored(timeout=0)
    elif verb == "recv_message":
        with contextlib.closing(side.recv_message(timeout=0)) as message:
            got.append(message.record)
            for region in message.regions:
                region.close()
    else:
        with side.borrow(timeout=0) as messages:
            seen = [bytes(message.data) for message in messages]
        got += seen


# -- death ---------------------------------------------------------------------------------------------

TRIALS = 400 if os.environ.get("MEMENPSF_THOROUGH") else 40
MESSAGES = 25  # in one trial, at most


def wanted(n):
    """The descriptors, the size and the number of regions of message n of any trial."""
    chance = random.Random(n)
    fds = [n * 10 + k + 1 for k in range(chance.randint(0, 8))]
    return fds, chance.choice([0, 1, 100, 20_000]), chance.choice([0, 0, 1, 2])


def send_until_the_end(side, registry, count=1 << 30):
    for n in range(count):
        fds, size, regions = wanted(n)
        lent = []
        try:
            for _ in range(regions):
                lent.append(registry.alloc(100, tag=n))
                lent[-1].buffer[:4] = n.to_bytes(4, "little")
            with numbers(*fds) as files:
                side.xmit(n.to_bytes(4, "little") + bytes(size), fds=files, regions=lent)
        finally:
            for region in lent:
                region.close()


def receive_until_the_end(side):
    """Check each message; return how many there were before the peer was gone."""
    n = 0
    while True:
        try:
            message = side.recv_message()
        except (PeerDied, EndOfStream):
            return n
        with contextlib.closing(message):
            fds, size, regions = wanted(n)
            assert message.record == n.to_bytes(4, "little") + bytes(size)
            assert [number_of(fd) for fd in message.fds] == fds
            assert len(message.regions) == regions
            for region in message.regions:
                assert region.buffer[:4] == n.to_bytes(4, "little")
        n += 1


class Death(Places):
    """Kills this process at the n-th place, at once."""

    def __call__(self, frame, event, arg):
        if super().__call__(frame, event, arg) is not None and self.arrived:
            os.kill(os.getpid(), signal.SIGKILL)
        return self if not frame.f_code.co_filename.startswith(TESTS) else None

    def run(self, call):
        # In a frame of its own: that of a caller may have the tracer of coverage.py from before the
        # fork, which has stopped, and would stop this one at the caller's next line.
        # CPython 3.12 asks at settrace() whether any frame wants its opcodes traced.
        sys._getframe().f_trace_opcodes = True
        sys.settrace(self)
        call()


@contextlib.contextmanager
def child_that_dies(body, place):
    """Fork a process that runs body(side) and is killed at a place; give this side's interface."""
    options = {"capacity": 4096, "accept": memenpsf.Accept(fds=8), "timeout": 30}
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        try:
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)
            ours.close()
            side = memenpsf.Interface(theirs, bytes, **options)
            if place is None:
                body(side)
            else:
                Death(place, None).run(partial(body, side))
        finally:
            os._exit(1)
    theirs.close()
    try:
        with memenpsf.Interface(ours, bytes, **options) as side:
            yield side, pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.mark.parametrize("killed", ["at a place", "from outside"])
def test_a_receiver_survives_a_sender_killed_anywhere(killed):
    before = open_descriptors()
    chance = random.Random(f"sender {killed}")
    total = 0
    for _ in range(TRIALS):
        place = chance.randrange(MESSAGES * 300) if killed == "at a place" else None

        def body(side):
            with fdpass.MemoryRegistry() as registry:
                send_until_the_end(side, registry)

        with child_that_dies(body, place) as (side, pid):
            if place is None:
                for n in range(chance.randrange(MESSAGES)):
                    with contextlib.closing(side.recv_message()) as message:
                        assert message.record[:4] == n.to_bytes(4, "little")
                        assert [number_of(fd) for fd in message.fds] == wanted(n)[0]
                os.kill(pid, signal.SIGKILL)
                with contextlib.suppress(PeerDied):
                    while True:
                        side.recv_message().close()
            else:
                total += receive_until_the_end(side)
        assert open_descriptors() == before
    assert place is None or total > TRIALS


@pytest.mark.parametrize("killed", ["at a place", "from outside"])
def test_a_sender_survives_a_receiver_killed_anywhere(killed):
    before = open_descriptors()
    chance = random.Random(f"receiver {killed}")
    for _ in range(TRIALS):
        place = chance.randrange(MESSAGES * 300) if killed == "at a place" else None
        with fdpass.MemoryRegistry() as registry:
            with child_that_dies(receive_until_the_end, place) as (side, pid):
                if place is None:
                    with contextlib.suppress(PeerDied):
                        send_until_the_end(side, registry, chance.randrange(MESSAGES))
                        os.kill(pid, signal.SIGKILL)
                with pytest.raises(PeerDied):
                    send_until_the_end(side, registry)
            registry.collect()
            assert registry.statistics().lent == 0  # nobody holds any of them
        assert open_descriptors() == before


def test_descriptors_under_way_are_gone_with_their_receiver(pair):
    one, other = pair
    with fdpass.MemoryRegistry() as registry:
        for _ in range(10):
            region = registry.alloc(10)
            one.xmit(b"x", regions=[region])
            region.close()
        other._endpoint.read_more()
        assert registry.collect() == 0
        other.close()
        collected = 0
        while collected < 10:  # the kernel closes what is in a socket when it comes to it
            collected += registry.collect()
        assert collected == 10
        assert registry.statistics().lent == 0


def test_one_way_ends_carry_attachments_too():
    sender, receiver = ipcqueue.pair(bytes, accept=memenpsf.Accept(fds=1))
    with sender, receiver, numbers(5) as files, region_of(b"r") as region:
        sender.push(b"x", fds=files, regions=[region])
        with contextlib.closing(receiver.recv_message()) as message:
            assert [number_of(fd) for fd in message.fds] == [5]
            assert message.regions[0].buffer == b"r"
        sender.push(b"y", fds=files)
        assert receiver.pop() == b"y"
        assert receiver.statistics().dropped == 1
        # What the receiver never sends, nobody accepts.
        fdpass.send_fds(receiver._endpoint.wire.sock, files, bytes((FDS, 1)))
        with pytest.raises(CorruptPeer, match="nobody asked for"):
            for _ in range(3):
                sender.push(b"z")
                sender._endpoint.read_if_free()


def test_a_bad_frame_closes_no_region_of_a_message_before_it():
    """Not with a message in between that has none, either."""
    one, other = memenpsf.pair(bytes, accept=memenpsf.Accept(regions=1))
    with one, other, fdpass.MemoryRegion.create(4096) as region:
        one.xmit(b"with a region", regions=[region])
        one.xmit(b"without")
        third = one._endpoint.sender.indices()[0]
        one.xmit(b"bad")
        frames = one._endpoint._own.mapping.at + mmap.PAGESIZE  # of which the peer is the owner
        ffi.cast("uint32_t *", frames + third)[0] = 1 << 31
        other._endpoint.read_if_free()
        other._endpoint.receiver.prepare(3)
        received = other.recv_message(timeout=0)
        assert received.record == b"with a region"
        assert not received.regions[0].closed
        received.close()
        assert other.recv(timeout=0) == b"without"
        with pytest.raises(CorruptPeer):
            other.recv(timeout=0)
