"""The ring of frames: messages of any length, whatever their sizes or the peer do.

Most of it runs through both ends of a real connection in one thread, without waiting.  What signals
may not break is in signals/test_messages.py.
"""

import contextlib
import ctypes
import gc
import os
import random
import socket
import struct
import threading
import weakref
from pathlib import Path
from unittest import mock

import pytest

import fdpass
import memenpsf
from ipcqueue import Encoded, Message
from ipcqueue._ring import outside as _outside
from memenpsf import CorruptPeer, Full, PeerDied
from tests.kit.attached import open_descriptors
from tests.kit.connected import connection, inode, quick_collector  # noqa: F401 (the fixture)
from tests.kit.hostile import (
    ERR,
    FDS,
    HEADER,
    LENT,
    MAX_ATTACHED,
    MAX_OUTSIDE,
    ONCE,
    OUT_AGAIN,
    OUT_OF_LINE,
    PLACE,
    RING,
    TAIL,
    WRITE,
    Hostile,
    extent,
    outside,
    place,
    poke,
)
from tests.kit.settling import settle

SO_PASSPIDFD = 76  # asm-generic/socket.h


@pytest.fixture(scope="module")
def files():
    """Eight open files that can be told apart."""
    numbers = [os.memfd_create(f"file {n}") for n in range(8)]
    yield numbers
    for number in numbers:
        os.close(number)


@pytest.fixture(autouse=True)
def _files_come_first(files):
    """Open before conftest counts; and for every test, whether it asks or not."""


def received(side):
    """Everything that waits: (bytes, inodes of the descriptors) of each message."""
    got = []
    while (message := side.recv_message(timeout=0)) is not None:
        got.append((message.record, [inode(fd) for fd in message.fds]))
        message.close()
    return got


# -- where frames lie in the ring ----------------------------------------------------------------


def everywhere(one, other, size):
    """Move on through a ring of 4096 bytes such that a message of `size` begins at each place."""
    places = set()
    for _ in range(4096 // HEADER):
        places.add(one.indices()[0] % 4096)
        yield
        assert one.indices()[0] == one.indices()[1], "everything was taken"
        if extent(size) // HEADER % 2 == 0:  # odd steps come to every place
            one.xmit(b"")
            assert other.recv() == b""
    assert len(places) == 4096 // HEADER


SIZES = [0, 1, 15, 16, 17, 31, 2000, 4063, 4064, 4065, 4079, 4080]


@pytest.mark.parametrize("size", SIZES)
def test_a_message_of_any_size_is_whole_wherever_it_lies(size):
    data = bytes(n % 251 for n in range(size))
    with connection(capacity=4096, inline=4096) as (one, other):
        for _ in everywhere(one, other, size):
            one.xmit(data)
            assert one.indices()[0] - one.indices()[1] == extent(size)
            assert other.recv() == data


@pytest.mark.parametrize("size", [0, 1, 16, 17, 4064, 4080])
def test_memory_lent_is_in_one_piece_wherever_it_lies(size):
    data = bytes(n % 251 for n in range(size))
    with connection(capacity=4096) as (one, other):
        for _ in everywhere(one, other, size):
            with one.loan(size) as loan:
                loan.data[:] = data
            with other.borrow() as (message,):
                assert message.data == data


@pytest.mark.parametrize("count", [1, 2, 5, 255, 256])
def test_a_batch_is_whole_wherever_it_lies(count):
    with connection(capacity=8192, inline=8192) as (one, other):
        for at in range(0, 8192, HEADER):
            batch = [bytes([n % 256]) * ((n * 7 + at) % 16) for n in range(count)]
            assert one.xmit_many(batch) == count
            assert other.recv_vectored() == batch
            one.xmit(b"")  # a step on, so that the next batch begins elsewhere
            other.recv()


def test_the_ring_can_be_filled_to_the_last_byte():
    with connection(capacity=4096, inline=4096) as (one, other):
        assert one.xmit_many([b""] * 1000, timeout=0) == 256
        assert one.indices() == (4096, 0)
        with pytest.raises(Full):
            one.xmit(b"", timeout=0)
        assert other.recv() == b""
        with pytest.raises(Full):
            one.xmit(b"x", timeout=0)
        one.xmit(b"", timeout=0)
        assert other.recv_vectored() == [b""] * 256
        one.xmit(bytes(4080), timeout=0)
        with pytest.raises(Full):
            one.xmit(b"", timeout=0)
        assert other.recv() == bytes(4080)


def test_the_end_of_the_number_line_is_nothing_special():
    last = (1 << 64) - HEADER
    with connection(capacity=4096, start=last) as (one, other):
        for n in range(600):
            data = bytes([n % 256]) * (n % 1000)
            one.xmit(data)
            with one.loan(1) as loan:
                loan.data[0] = n % 256
            assert other.recv_vectored() == [data, bytes([n % 256])]
        assert one.indices()[0] < last
        assert one.indices()[0] == one.indices()[1]


@pytest.mark.parametrize("verb", ["recv", "recv_vectored", "recv_message", "borrow"])
def test_the_numbers_may_wrap_while_messages_wait(verb):
    with connection(capacity=4096, start=(1 << 64) - 2 * HEADER) as (one, other):
        sent = [b"one", b"two", b"three", b"four"]
        one.xmit_many(sent)
        got = []
        while len(got) < 4:
            if verb == "recv":
                got.append(other.recv())
            elif verb == "recv_vectored":
                got += other.recv_vectored(2)
            elif verb == "recv_message":
                got.append(other.recv_message().record)
            else:
                with other.borrow(2) as messages:
                    got += [bytes(message.data) for message in messages]
        assert got == sent


# -- messages that travel outside the ring -------------------------------------------------------


@pytest.mark.parametrize("verb", ["recv", "recv_vectored", "recv_message", "borrow"])
@pytest.mark.parametrize("size", [1008, 1009, 4081, 3_000_001])
def test_a_message_that_does_not_fit_well_arrives_by_the_same_call(size, verb):
    data = random.Random(size).randbytes(size)
    with connection(capacity=4096) as (one, other):
        before = open_descriptors()
        one.xmit(data)
        outside = one.indices()[0] == HEADER + PLACE.size
        assert outside == (size > 1008)  # a quarter of the ring, with the header
        if verb == "recv":
            assert other.recv() == data
        elif verb == "recv_vectored":
            assert other.recv_vectored() == [data]
        elif verb == "recv_message":
            assert other.recv_message() == (data, [], [])
        else:
            with other.borrow() as (message,):
                assert message == (data, 0, 0)
        assert open_descriptors() == before
        assert other.statistics().dropped == 0


def test_tag_and_flags_travel_outside_too():
    with connection(Message, capacity=4096) as (one, other):
        sent = [Message(b"in", 0xFFFFFFFF, 0xFF), Message(b"out" * 999, 0xFFFFFFFE, 0xFE)]
        one.xmit_many(sent)
        with pytest.raises(KeyError), other.borrow() as messages:
            assert [(bytes(m.data), m.tag, m.flags) for m in messages] == sent
            raise KeyError
        assert other.recv_vectored() == sent


@pytest.mark.parametrize("inline", [0, 1, 15])
def test_an_empty_message_is_never_worth_a_region(inline):
    with connection(capacity=4096, inline=inline) as (one, other):
        one.xmit(b"")
        one.xmit_many([b"", b"", b"x", b""])
        assert other.recv_vectored() == [b"", b"", b"", b"x", b""]


def test_a_batch_may_have_large_messages_in_the_middle():
    batch = [b"one", b"2" * 10_000, b"three", b"", b"4" * 100_000, b"5" * 4081, b"six"]
    with connection(capacity=4096) as (one, other):
        for _ in range(5):
            assert one.xmit_many(batch) == len(batch)
            assert other.recv_vectored() == batch


@pytest.fixture
def copied(monkeypatch):
    """The sizes of the messages that were copied into memory outside a ring."""
    sizes = []
    fill = _outside.Region.fill
    monkeypatch.setattr(
        _outside.Region, "fill", lambda self, data: sizes.append(len(data)) or fill(self, data)
    )
    return sizes


@pytest.fixture
def made(monkeypatch):
    """The sizes of the regions that were made for messages outside a ring."""
    sizes = []
    create = fdpass.Memfd.create
    monkeypatch.setattr(
        fdpass.Memfd, "create", lambda name, size: sizes.append(size) or create(name, size)
    )
    return sizes


def test_a_batch_of_more_large_messages_than_can_be_under_way_waits_without_trying(copied):
    batch = [bytes([n]) * 5000 for n in range(40)]
    with connection(capacity=4096) as (one, other):
        assert one.xmit_many(batch, timeout=0.05) == MAX_OUTSIDE
        assert len(copied) == MAX_OUTSIDE  # once each, not once for each try
        assert other.recv_vectored() == batch[:MAX_OUTSIDE]
        copied.clear()
        sending = threading.Thread(target=one.xmit_many, args=(batch,))
        sending.start()
        assert [other.recv() for _ in batch] == batch
        sending.join()
        assert len(copied) == len(batch)


def test_a_large_message_is_encoded_once_and_copied_once(copied):
    encoded = []
    spec = Encoded(lambda n: encoded.append(n) or bytes(n), len)
    with connection(spec, capacity=4096) as (one, other):
        one.xmit(100_000)
        assert other.recv() == 100_000
        assert (encoded, copied) == ([100_000], [100_000])


def test_no_more_frames_with_descriptors_are_under_way_than_the_receiver_keeps(files):
    with connection(capacity=1 << 16, accept=memenpsf.Accept(fds=1)) as (one, other):
        for n in range(MAX_ATTACHED):
            one.xmit(b"%d" % n, timeout=0, fds=files[n % 8 :][:1])
        for n in range(MAX_ATTACHED, 100):
            for _ in range(3):
                with pytest.raises(Full):
                    one.xmit(b"%d" % n, timeout=0, fds=files[n % 8 :][:1])
            one.xmit(b"plain", timeout=0)  # what has none may go on
            messages = [other.recv_message()]
            while messages[-1].record == b"plain":
                messages.append(other.recv_message())
            assert messages[-1].record == b"%d" % (n - MAX_ATTACHED)
            messages[-1].close()
            one.xmit(b"%d" % n, timeout=0, fds=files[n % 8 :][:1])
        left = [each for each in received(other) if each[0] != b"plain"]
        assert left == [(b"%d" % n, [inode(files[n % 8])]) for n in range(84, 100)]


def test_what_waits_for_an_attachment_to_be_taken_is_woken_when_it_is(files):
    with connection(capacity=1 << 16, accept=memenpsf.Accept(fds=1)) as (one, other):
        sent = []

        def send():
            for n in range(3 * MAX_ATTACHED):
                one.xmit(b"%d" % n, fds=files[:1])
                sent.append(n)

        sending = threading.Thread(target=send)
        sending.start()
        for n in range(3 * MAX_ATTACHED):
            assert len(sent) <= n + MAX_ATTACHED
            with contextlib.closing(other.recv_message()) as message:
                assert message.record == b"%d" % n
        sending.join()
        assert one.statistics().rescues == 0


# -- a hostile peer ------------------------------------------------------------------------------


@pytest.fixture
def hostile():
    made = []

    def make(**options):
        made.append(Hostile(**options))
        return made[-1]

    yield make
    for each in made:
        each.close()


def take_all(side, verb):
    """Receive until something is wrong; the bytes of the messages go into a list."""
    got = []
    try:
        while True:
            if verb == "recv":
                got.append(side.recv(timeout=0))
            elif verb == "recv_vectored":
                got += side.recv_vectored(timeout=0) or [None]
            elif verb == "recv_message":
                message = side.recv_message(timeout=0)
                got.append(message and message.record)
                if message:
                    message.close()
            else:
                with side.borrow(timeout=0) as messages:
                    got += [bytes(message.data) for message in messages] or [None]
            assert got[-1] is not None, "nothing more came, and nothing was wrong"
    except memenpsf.QueueError as error:
        return got, error


def frame_beyond(it):
    it.frame(bytes(96), size=97 + 15)


def frame_far_beyond(it):
    it.frame(b"", size=0xFFFFFFFF)


def frame_without_room_for_its_header(it):
    it.publish(it.head + 8)


def frame_too_large(it):
    it.frame(bytes(1001))


def frame_reserved(it):
    it.frame(b"x", reserved=1)


def frame_with_unknown_flags(it):
    it.frame(b"x", flags=0x0100)


def frame_announcing_254(it):
    it.frame(b"x", fds=200, regions=54)


def frame_announcing_65535(it):
    it.frame(b"x", fds=0xFFFF, regions=0xFFFF)


def head_beyond_the_ring(it):
    it.publish(it.head + 4096 + 16)


def head_far_behind(it):
    it.publish(-16)


def outside_without_a_region(it):
    outside(it)


def outside_with_only_descriptors(it):
    it.give(it.lent())
    it.frame(place(), flags=OUT_OF_LINE, fds=1)


def outside_and_nowhere(it):
    it.give(it.lent())
    it.frame(flags=OUT_OF_LINE, regions=1)


def outside_and_half_a_place(it):
    it.give(it.lent())
    it.frame(place()[:15], flags=OUT_OF_LINE, regions=1)


def outside_and_inside(it):
    it.give(it.lent())
    it.frame(place() + b"inside", flags=OUT_OF_LINE, regions=1)


def outside_both_anew_and_again(it):
    it.give(it.lent())
    it.frame(place(), flags=OUT_OF_LINE | OUT_AGAIN, regions=1)


def outside_reserved(it):
    outside(it, it.lent(), reserved=1)


def outside_unsealed(it):
    outside(it, it.memory(seals=0))


def outside_that_may_shrink(it):
    outside(it, it.memory(seals=LENT & ~fdpass.Seal.SHRINK))


def outside_still_writable(it):
    outside(it, it.region(mode="shared"))


def outside_too_large(it):
    # The largest message has 1000 bytes, and the smallest region 64 KiB.
    outside(it, it.lent((1 << 16) + 1))


def outside_too_large_for_once(it):
    outside(it, it.lent(1001), number=ONCE)


def outside_with_a_number_too_many(it):
    outside(it, it.lent(), number=16)


def outside_beyond_the_region(it):
    outside(it, it.lent(512), size=513)


def outside_longer_than_accepted(it):
    outside(it, it.lent(1002), size=1001)


def outside_of_an_absurd_size(it):
    outside(it, it.lent(), size=(1 << 64) - 1)


def outside_of_nothing(it):
    outside(it, it.lent(), size=0)


def again_what_was_never_given(it):
    outside(it, again=True, number=3)


def again_what_was_given_under_another_number(it):
    outside(it, it.lent(), number=2)
    outside(it, again=True, number=3)


def again_what_was_for_once(it):
    outside(it, it.lent(), number=ONCE)
    outside(it, again=True, number=ONCE)


def again_beyond_the_region(it):
    outside(it, it.lent(512))
    outside(it, again=True, size=513)


def again_what_was_replaced_by_a_smaller_one(it):
    outside(it, it.lent(512))
    outside(it, it.lent(256), size=256)
    outside(it, again=True, size=257)


def again_longer_than_accepted(it):
    outside(it, it.lent(2000))
    outside(it, again=True, size=1001)


def again_nowhere(it):
    outside(it, it.lent())
    it.frame(flags=OUT_AGAIN)


def outside_in_a_pipe(it):
    outside(it, it.pipe()[0])


def outside_in_a_device(it):
    device = fdpass.Fd(os.open("/dev/zero", os.O_RDONLY))
    it.made.append(device)
    outside(it, device)


def outside_with_holes(it):
    memfd = fdpass.Fd(os.memfd_create("hollow", os.MFD_ALLOW_SEALING))
    it.made.append(memfd)
    os.ftruncate(memfd.fileno(), 512)
    fdpass.Memfd.seal(memfd, LENT)
    outside(it, memfd)


def hollow(it):
    """Make a file whose memory is reserved beyond its end: what is within can be freed later."""
    memfd = fdpass.Fd(os.memfd_create("hollow", os.MFD_ALLOW_SEALING))
    it.made.append(memfd)
    os.ftruncate(memfd.fileno(), 512)
    reserve = ctypes.CDLL(None, use_errno=True).fallocate
    keep_size = 1
    assert not reserve(memfd.fileno(), keep_size, ctypes.c_long(8192), ctypes.c_long(8192))
    assert os.fstat(memfd.fileno()).st_blocks * 512 == 8192
    fdpass.Memfd.seal(memfd, LENT)
    return memfd


def outside_with_memory_beyond_its_end(it):
    outside(it, hollow(it))


def region_with_memory_beyond_its_end(it):
    it.give(hollow(it))
    it.frame(b"x", regions=1)


def region_too_large(it):
    it.give(it.region(8193))
    it.frame(b"x", regions=1)


def region_shared(it):
    it.give(it.region(mode="shared"))
    it.frame(b"x", regions=1)


def region_that_is_a_pipe(it):
    it.give(it.pipe()[0])
    it.frame(b"x", regions=1)


def region_with_a_token_too_many(it):
    it.give(it.region(), it.pipe()[1])
    it.frame(b"x", regions=2)


def regions_too_many(it):
    it.give(*[it.region(1)] * 3)
    it.frame(b"x", regions=3)


def descriptors_too_many(it):
    it.give(*it.pipe(), *it.pipe(), *it.pipe())
    it.frame(b"x", fds=6)


def descriptor_that_is_a_socket(it):
    it.give(it.pipe()[0], it.sock)
    it.frame(b"x", fds=2)


def fewer_descriptors_than_announced(it):
    it.give(it.pipe()[0])
    it.frame(b"x", fds=2)


def more_descriptors_than_announced(it):
    it.give(*it.pipe())
    it.frame(b"x", fds=1)


def no_descriptors_although_announced(it):
    it.frame(b"x", fds=1)


def no_descriptors_although_said(it):
    it.sock.send(bytes((FDS, 1)))
    it.frame(b"x", fds=1)


def descriptors_counted_wrong(it):
    it.say(FDS, 2, it.pipe()[:1])
    it.frame(b"x", fds=2)


def descriptors_beside_a_doorbell(it):
    it.say(WRITE, 1, it.pipe())
    it.frame(b"x", fds=2)


def descriptors_beside_half_a_message(it):
    fdpass.send_fds(it.sock, it.pipe(), bytes((FDS,)))
    it.frame(b"x", fds=2)


CORRUPTIONS = {
    frame_beyond: "header of a frame",
    frame_far_beyond: "header of a frame",
    frame_without_room_for_its_header: "header of a frame",
    frame_too_large: "header of a frame",
    frame_reserved: "header of a frame",
    frame_with_unknown_flags: "header of a frame",
    frame_announcing_254: "header of a frame",
    frame_announcing_65535: "header of a frame",
    head_beyond_the_ring: "index",
    head_far_behind: "index",
    outside_without_a_region: "without its region",
    outside_with_only_descriptors: "without its region",
    outside_and_inside: "header of a frame",
    outside_and_nowhere: "does not say where it is",
    outside_and_half_a_place: "does not say where it is",
    outside_both_anew_and_again: "without its region",
    outside_reserved: "no memory region with number 0",
    outside_unsealed: "seals of the memory file: expected",
    outside_that_may_shrink: "seals of the memory file: expected",
    outside_still_writable: "seals of the memory file: expected",
    outside_too_large: "size of the memory file",
    outside_too_large_for_once: "size of the memory file",
    outside_with_a_number_too_many: "no memory region with number 16",
    outside_beyond_the_region: "513 bytes in a memory region of 512",
    outside_longer_than_accepted: "1001 bytes .* at most 1000",
    outside_of_an_absurd_size: "18446744073709551615 bytes",
    outside_of_nothing: "a message of 0 bytes",
    again_what_was_never_given: "never given memory region 3",
    again_what_was_given_under_another_number: "never given memory region 3",
    again_what_was_for_once: "no memory region with number 4294967295",
    again_beyond_the_region: "513 bytes in a memory region of 512",
    again_what_was_replaced_by_a_smaller_one: "257 bytes in a memory region of 256",
    again_longer_than_accepted: "1001 bytes .* at most 1000",
    again_nowhere: "does not say where it is",
    outside_in_a_pipe: "kind of file",
    outside_in_a_device: "seals|kind of file",
    outside_with_holes: "memory reserved",
    outside_with_memory_beyond_its_end: "memory reserved",
    region_with_memory_beyond_its_end: "memory reserved",
    region_too_large: "size of the memory file",
    region_shared: "frozen or lent",
    region_that_is_a_pipe: "kind of file",
    region_with_a_token_too_many: "expected 1, received 2",
    regions_too_many: "3 memory regions with one message, and the receiver accepts at most 2",
    descriptors_too_many: "6 descriptors with one message, and the receiver accepts at most 4",
    descriptor_that_is_a_socket: "sent a socket",
    fewer_descriptors_than_announced: "announced 2 descriptors, 1 came",
    more_descriptors_than_announced: "announced 1 descriptors, 2 came",
    no_descriptors_although_announced: "without its descriptors",
    no_descriptors_although_said: "without its descriptors",
    descriptors_counted_wrong: "1 descriptors nobody asked for",
    descriptors_beside_a_doorbell: "2 descriptors nobody asked for",
    descriptors_beside_half_a_message: "2 descriptors nobody asked for",
}
# More after these would make them look like something else.
AT_THE_END = {frame_beyond, frame_without_room_for_its_header, head_beyond_the_ring}
# The index is looked at before any message is.
AT_ONCE = {head_beyond_the_ring, head_far_behind}
# The sizes of those outside the ring that come first, and are as they should be.
BEFORE = {
    again_what_was_given_under_another_number: [512],
    again_what_was_for_once: [512],
    again_beyond_the_region: [512],
    again_what_was_replaced_by_a_smaller_one: [512, 256],
    again_longer_than_accepted: [512],
    again_nowhere: [512],
}
# Found out when it is opened, which is not done for a borrowing: that closes it unseen.
OPENED = {
    region_too_large,
    region_with_memory_beyond_its_end,
    region_shared,
    region_that_is_a_pipe,
    region_with_a_token_too_many,
}

SOCKET = {
    descriptors_counted_wrong,
    descriptors_beside_a_doorbell,
    descriptors_beside_half_a_message,
}


@pytest.mark.parametrize("corruption", CORRUPTIONS, ids=lambda each: each.__name__)
def test_a_peer_that_breaks_the_protocol_is_found_out_and_dropped(hostile, corruption):
    for verb in ("recv", "recv_vectored", "recv_message", "borrow"):
        if verb == "borrow" and corruption in OPENED:
            continue
        it = hostile(accept=memenpsf.Accept(message=1000, region=8192, fds=4, regions=2))
        it.frame(b"before")
        it.give(*it.pipe())
        it.frame(b"before, with two", fds=2)
        corruption(it)
        if corruption not in AT_THE_END:
            it.frame(b"after")
        got, error = take_all(it.victim, verb)
        assert type(error) is CorruptPeer
        before = [] if corruption in AT_ONCE else [b"before", b"before, with two"]
        before += map(bytes, BEFORE.get(corruption, ()))
        # What is wrong with the socket itself ends everything when it is read, not in its turn.
        assert got == before or (corruption in SOCKET and got == [])
        for use in (
            lambda side: side.recv(timeout=0),
            lambda side: side.recv_vectored(timeout=0),
            lambda side: side.recv_message(timeout=0),
            lambda side: side.borrow(timeout=0).__enter__(),
            lambda side: side.xmit(b"x", timeout=0),
            lambda side: side.xmit_many([b"x"], timeout=0),
            lambda side: side.loan(1, timeout=0).__enter__(),
        ):
            with pytest.raises(CorruptPeer, match=CORRUPTIONS[corruption]):
                use(it.victim)
        assert it.told() == (ERR, 1)
    with connection() as (one, other):  # this process is as good as before
        one.xmit(b"fine")
        assert other.recv() == b"fine"


@pytest.mark.parametrize("corruption", OPENED)
def test_a_borrowing_closes_regions_unseen(hostile, corruption):
    it = hostile(accept=memenpsf.Accept(region=8192, regions=2))
    before = open_descriptors()
    corruption(it)
    with it.victim.borrow() as (message,):
        assert message.data == b"x"
    assert it.victim.statistics().dropped == 1
    it.frame(b"fine")
    assert it.victim.recv() == b"fine"
    assert open_descriptors() <= before + len(it.made)


def test_a_message_outside_the_ring_never_stays_writable_even_if_regions_may(hostile):
    it = hostile(accept=memenpsf.Accept(shared=True))
    outside_still_writable(it)
    with pytest.raises(CorruptPeer, match="seals of the memory file"):
        it.victim.recv(timeout=0)


@pytest.mark.parametrize("options", [{}, {"accept": memenpsf.Accept(fds=3, regions=0)}], ids=str)
def test_more_descriptors_than_one_message_can_have_are_never_kept(hostile, options):
    it = hostile(**options)
    accept = options.get("accept", memenpsf.Accept())
    most = accept.fds + 2 * accept.regions + 1
    ends = it.pipe()
    before = open_descriptors()
    it.give(*[ends[0]] * most)
    assert it.victim.recv(timeout=0) is None
    assert open_descriptors() == before + most
    it.give(*[ends[0]] * (most + 1))
    with pytest.raises(CorruptPeer, match=f"{most + 1} descriptors nobody asked for"):
        it.victim.recv(timeout=0)
    it.victim.close()
    assert open_descriptors() < before


@pytest.mark.parametrize("verb", ["recv", "recv_vectored", "recv_message", "borrow"])
def test_who_announces_descriptors_and_talks_of_other_things_is_found_out(hostile, verb):
    it = hostile(accept=memenpsf.Accept(fds=1))

    def flood():
        it.sock.setblocking(True)
        with contextlib.suppress(OSError):
            while True:
                it.sock.send(bytes((WRITE, 0)) * 2048)

    it.frame(b"x", fds=1)
    flooding = threading.Thread(target=flood)
    flooding.start()
    try:
        got, error = take_all(it.victim, verb)
        assert (got, str(error)) == ([], "a message came without its descriptors")
    finally:
        it.victim.close()
        flooding.join()


def test_pidfds_that_the_kernel_adds_are_nobodys_descriptors(hostile):
    it = hostile(accept=memenpsf.Accept(fds=1))
    try:
        it.victim._endpoint.wire.sock.setsockopt(socket.SOL_SOCKET, SO_PASSPIDFD, 1)
    except OSError:
        pytest.skip("Linux 6.5")
    before = open_descriptors()
    for n in range(3):
        it.frame(b"%d" % n, fds=n % 2)
        it.give(it.pipe()[0]) if n % 2 else it.sock.send(bytes((WRITE, 0)))
        it.victim.recv_ctrl_msg(timeout=0)
        with contextlib.closing(it.victim.recv_message(timeout=0)) as message:
            assert (message.record, len(message.fds)) == (b"%d" % n, n % 2)
    assert open_descriptors() == before + 2  # both ends of the pipe


@pytest.mark.parametrize("how", ["unasked", "not accepted", "unread"])
def test_a_socket_that_would_linger_keeps_nobody_waiting(hostile, how):
    it = hostile(accept=memenpsf.Accept(fds=1, sockets=how == "unread"))
    mine, given = socket.socketpair()
    lingers = struct.pack("ii", 1, 1000)
    with mine, given:
        given.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, lingers)
        it.say(WRITE if how == "unasked" else FDS, 1, [given])
        if how == "not accepted":
            it.frame(b"x", fds=1)
        if how == "unread":
            assert it.victim.recv(timeout=0) is None
        else:
            with pytest.raises(CorruptPeer):
                it.victim.recv(timeout=0)
        it.victim.close()
        settle()
        # Asked of the same socket, which is closed here only now.
        switch, _ = struct.unpack("ii", given.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8))
        assert switch == 0


def test_descriptors_of_a_message_never_published_are_closed_at_the_end_of_the_stream(hostile):
    it = hostile(accept=memenpsf.Accept(fds=1))
    it.give(it.pipe()[0])
    it.frame(b"published before")
    before = open_descriptors()
    assert it.victim.recv(timeout=0) == b"published before"
    assert it.victim.recv(timeout=0) is None
    assert open_descriptors() == before + 1
    it.sock.shutdown(socket.SHUT_RDWR)
    with pytest.raises(PeerDied):
        it.victim.recv()
    assert open_descriptors() == before


def test_descriptors_without_a_frame_are_kept_to_a_number_and_closed(hostile):
    it = hostile(accept=memenpsf.Accept(fds=1))
    before = open_descriptors()
    ends = it.pipe()
    for _ in range(MAX_ATTACHED):
        it.give(ends[0])
        assert it.victim.recv(timeout=0) is None
    assert open_descriptors() == before + 2 + MAX_ATTACHED
    it.give(ends[0])
    with pytest.raises(CorruptPeer, match="1 descriptors nobody asked for"):
        it.victim.recv(timeout=0)
    it.victim.close()
    it.endpoint.close()
    assert open_descriptors() < before


@pytest.mark.parametrize("record", ["<Q", 16])
def test_descriptors_are_never_asked_for_with_records_of_one_size(hostile, record):
    it = hostile(record=record)
    before = open_descriptors()
    it.give(it.sock)
    with pytest.raises(CorruptPeer, match="1 descriptors nobody asked for"):
        it.victim.recv(timeout=0)
    assert open_descriptors() == before


def test_a_peer_that_keeps_sending_descriptors_cannot_make_this_side_hold_many(hostile):
    # One that does not mind how many are under way: more are taken only when these are gone.
    it = hostile(accept=memenpsf.Accept(fds=1))
    ends = it.pipe()
    before = open_descriptors()
    most = 0

    def descriptors_of(data):
        nonlocal most
        most = max(most, len(list(Path("/proc/self/fd").iterdir())))
        return data

    it.victim._endpoint.receiver._decode = lambda data, tag, flags: descriptors_of(data)
    for _ in range(100):
        it.give(ends[0])
        it.frame(b"", fds=1)
    got = 0
    while got < 100:
        batch = it.victim.recv_vectored(timeout=0)
        assert batch
        got += len(batch)
    assert most <= before + 2 * MAX_ATTACHED + 2
    assert open_descriptors() == before


def test_a_header_is_read_once_and_what_it_says_later_does_not_matter(hostile):
    def change_and_return(data):
        # While the message is decoded, its own frame is rewritten.
        poke(it.endpoint, RING, struct.pack("=IIHHHH", 4000, 9, 0x1234, 200, 100, 9))
        changed.append(data)
        return data

    changed = []
    it = hostile(record=Encoded(bytes, change_and_return))
    it.frame(b"first")
    it.frame(b"second")
    assert it.victim.recv_vectored() == [b"first", b"second"]
    assert changed == [b"first", b"second"]
    assert it.victim.recv(timeout=0) is None


def test_memory_outside_that_changes_later_does_not_change_what_was_received(hostile):
    it = hostile()
    memfd = fdpass.Memfd.create("hostile", 512)
    it.made.append(memfd)
    with contextlib.closing(memfd.map(writable=True)) as memory:
        memfd.seal(LENT)
        memory[:] = b"1" * 512
        outside(it, memfd)
        first = it.victim.recv()
        memory[:] = b"2" * 512
        outside(it, again=True, size=256)
        assert it.victim.recv() == b"2" * 256
        outside(it, again=True)
        with it.victim.borrow() as (message,):
            memory[:3] = b"now"
            assert bytes(message.data[:4]) == b"now2"
        assert first == b"1" * 512


def test_one_region_named_in_many_frames_does_not_fill_this_sides_memory(hostile):
    it = hostile()
    outside(it, it.lent(1 << 16), size=1 << 16)
    for _ in range(100):
        outside(it, again=True, size=1 << 16)
    got = []
    while sum(got) < 101:
        batch = it.victim.recv_vectored(timeout=0)
        assert set(batch) == {bytes(1 << 16)}
        got.append(len(batch))
    assert max(got) <= 1 + MAX_OUTSIDE


def test_a_peer_whose_tail_cannot_be_true_is_found_out_before_memory_is_written(hostile):
    it = hostile()
    it.victim.xmit(bytes(5000))
    poke(it.endpoint, TAIL, struct.pack("=Q", 4096))
    with pytest.raises(CorruptPeer, match="index"):
        it.victim.xmit(bytes(5000))


def test_a_payload_that_changes_later_does_not_change_what_was_received(hostile):
    it = hostile()
    it.frame(b"genuine")
    got = it.victim.recv()
    poke(it.endpoint, RING, bytes(4096))
    assert got == b"genuine"


def test_a_peer_that_takes_back_what_it_published_is_found_out(hostile):
    def take_back(data):
        it.publish(16)
        return data

    it = hostile(record=Encoded(bytes, take_back))
    it.frame(b"first")
    it.frame(b"second")
    it.frame(b"third")
    assert it.victim.recv() == b"first"
    with pytest.raises(CorruptPeer, match="index"):
        it.victim.recv(timeout=0)
        it.victim.recv(timeout=0)
        it.victim.recv(timeout=0)


def test_a_peer_that_has_taken_what_was_never_sent_is_found_out(hostile):
    it = hostile()
    it.victim.xmit(b"x")
    poke(it.endpoint, TAIL, struct.pack("=Q", 1 << 40))
    with pytest.raises(CorruptPeer, match="index"):
        for _ in range(200):
            it.victim.xmit(b"x" * 100, timeout=0)


def test_waiting_for_descriptors_that_never_come_takes_no_time_of_the_processor(hostile):
    it = hostile(accept=memenpsf.Accept(fds=1))
    endpoint = it.victim._endpoint
    attempt = endpoint.receiver.try_pop
    messages = threading.Thread(target=lambda: it.victim.recv_ctrl_msg(timeout=None))
    messages.start()
    while not endpoint.waiters.reading:
        pass
    it.frame(b"x", fds=1)
    pops = mock.Mock(side_effect=attempt)
    with mock.patch.object(type(endpoint.receiver), "try_pop", pops):
        assert it.victim.recv(timeout=0.1) is None
    assert pops.call_count < 20
    it.sock.send(b"\xff\xff")
    messages.join()
    with pytest.raises(CorruptPeer, match="without its descriptors"):
        it.victim.recv()


def test_the_memory_of_a_corrupt_peer_is_free_at_once_and_not_when_garbage_is_collected(hostile):
    def mapped():
        return Path("/proc/self/maps").read_text().count("/memfd:memenpsf")

    it = hostile()
    before = mapped()
    gc.disable()
    try:
        it.frame(b"x", reserved=1)
        with contextlib.suppress(CorruptPeer):
            it.victim.recv(timeout=0)
        it.close()
        assert before == 8
        assert mapped() == 0
    finally:
        gc.enable()


@pytest.mark.parametrize("verb", ["recv", "recv_message", "recv_vectored"])
def test_who_meets_a_message_that_cannot_be_decoded_leaves_no_garbage(verb):
    one, other = memenpsf.pair(memenpsf.Encoded(bytes, lambda data: data[100]))
    one.xmit(b"short")
    gc.collect()
    gc.disable()
    try:
        with contextlib.suppress(memenpsf.DecodeFailed):
            getattr(other, verb)(timeout=0)
        left = weakref.ref(other._endpoint.receiver)
        one.close()
        other.close()
        del other  # not by a with statement, which would keep it
        assert left() is None
    finally:
        gc.enable()


def test_a_peer_that_takes_back_what_is_being_taken_is_corrupt_for_ever(hostile):
    it = hostile()
    receiver = it.victim._endpoint.receiver
    for n in range(3):
        it.frame(b"%d" % n)
    receiver.prepare(3)
    published = it.head
    it.publish(extent(1))  # back, behind what is copied and not taken yet
    assert receiver.try_pop_many(3) == [b"0", b"1", b"2"]
    it.publish(published)  # an honest index, too late
    assert it.victim.statistics().waiting == 0
    with pytest.raises(CorruptPeer):
        it.victim.recv(timeout=0)
