"""Messages of any length: what can be said as one, what it becomes, and how large it may be."""

import array
import contextlib
import copy
import ctypes
import errno
import hashlib
import itertools
import json
import mmap
import os
import pickle
import random
import re
import socket
import threading

import numpy as np
import pytest
from ipcqueue._core import ffi, lib

import fdpass
import ipcqueue
import memenpsf
from ipcqueue._link.control import Opcode
from ipcqueue._records.messages import MAX_FLAGS, MESSAGES, OUT_AGAIN, OUT_OF_LINE, OUTSIDE
from ipcqueue._ring.identity import HEADER_SIZE
from ipcqueue._ring.outside import PLACE_SIZE, SIZES
from memenpsf import (
    BadRecord,
    DecodeFailed,
    Encoded,
    EndOfStream,
    Full,
    Message,
    PeerDied,
    ReceiverGone,
    TooLarge,
)
from tests.kit.attached import open_descriptors
from tests.kit.connected import connection, quick_collector  # noqa: F401 (the fixture)

JSON = Encoded(lambda it: json.dumps(it).encode(), json.loads)


def test_the_core_and_this_side_of_it_mean_the_same_bits():
    assert lib.IPCQ_KNOWN_FLAGS == MAX_FLAGS | OUT_OF_LINE | OUT_AGAIN
    assert (lib.IPCQ_OUT_OF_LINE, lib.IPCQ_OUT_AGAIN) == (OUT_OF_LINE, OUT_AGAIN)
    assert lib.IPCQ_OUTSIDE == OUTSIDE
    assert ffi.sizeof("struct ipcq_outside") == PLACE_SIZE
    assert len(SIZES) == lib.IPCQ_MAX_ATTACHED
    assert lib.IPCQ_OPCODE_FDS == Opcode.FDS
    assert lib.IPCQ_MAX_FRAME_FDS == fdpass.MAX_FDS
    assert lib.IPCQ_HEADER_SIZE == HEADER_SIZE
    assert ffi.sizeof("struct ipcq_frame") == lib.IPCQ_FRAME_ALIGN


def test_the_fingerprint_of_messages_is_that_of_their_description():
    text = MESSAGES.description.encode("ascii")
    assert MESSAGES.fingerprint == hashlib.blake2b(text, digest_size=16).digest()


def still_works(one, other, record=b"still works"):
    one.xmit(record, timeout=0)
    assert other.recv(timeout=0) == record
    assert other.recv(timeout=0) is None


# -- what is a message ---------------------------------------------------------------------------


class Point(ctypes.Structure):
    _fields_ = (("x", ctypes.c_int16), ("y", ctypes.c_int16))


def anonymous_memory(data):
    memory = mmap.mmap(-1, len(data))
    memory[:] = data
    return memory


BUFFERS = {
    "bytes": (b"abc", b"abc"),
    "empty": (b"", b""),
    "bytearray": (bytearray(b"abc"), b"abc"),
    "empty bytearray": (bytearray(), b""),
    "memoryview": (memoryview(b"abc"), b"abc"),
    "slice": (memoryview(b"abcdef")[1:4], b"bcd"),
    "empty slice": (memoryview(b"abcdef")[3:3], b""),
    "signed": (memoryview(b"abcd").cast("b"), b"abcd"),
    "wide": (memoryview(b"abcdefgh").cast("I"), b"abcdefgh"),
    "two dimensions": (memoryview(b"abcdef").cast("B", (2, 3)), b"abcdef"),
    "array": (array.array("d", [1.0, -1.0]), array.array("d", [1.0, -1.0]).tobytes()),
    "mmap": (anonymous_memory(b"abc"), b"abc"),
    "ctypes array": ((ctypes.c_uint16 * 2)(1, 2), b"\1\0\2\0"),
    "ctypes structure": (Point(1, 2), b"\1\0\2\0"),
    "numpy": (np.array([1, 2], "<u2"), b"\1\0\2\0"),
    "numpy of two dimensions": (np.array([[1, 2], [3, 4]], "u1"), b"\1\2\3\4"),
    "numpy of no items": (np.zeros((0, 3)), b""),
    "numpy of no dimensions": (np.array(258, "<u2"), b"\2\1"),
    "numpy scalar": (np.uint16(258), b"\2\1"),
    "numpy records": (np.array([(1, 2)], [("a", "<u2"), ("b", "<u2")]), b"\1\0\2\0"),
    "numpy big-endian": (np.array([1, 2], ">u2"), b"\0\1\0\2"),
    "pickle buffer": (pickle.PickleBuffer(b"abc"), b"abc"),
}


@pytest.mark.parametrize("inline", [4096, 0])
@pytest.mark.parametrize("kind", BUFFERS)
def test_whatever_holds_bytes_without_gaps_is_a_message(kind, inline):
    data, expected = BUFFERS[kind]
    with connection(capacity=4096, inline=inline) as (one, other):
        one.xmit(data)
        assert one.xmit_many([data, data]) == 2
        got = [other.recv(), *other.recv_vectored()]
        assert got == [expected] * 3
        assert [type(each) for each in got] == [bytes] * 3


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("text", "expected bytes, got str"),
        (None, "expected bytes, got NoneType"),
        (7, "expected bytes, got int"),
        ([1, 2], "expected bytes, got list"),
        (Message(b"x"), "expected bytes, got Message"),
        (memoryview(b"abcdef")[::2], "got a view with gaps"),
        (np.zeros((3, 3), "u1").T[1:], "got a view with gaps"),
        (np.array([object()]), "got pointers into this process"),
    ],
    ids=lambda each: None if isinstance(each, str) and "expected" in each else repr(each)[:20],
)
def test_what_is_no_message_is_refused_and_the_interface_goes_on(wrong, says):
    with connection() as (one, other):
        with pytest.raises(BadRecord, match=says):
            one.xmit(wrong)
        with pytest.raises(BadRecord, match=f"record 2: .*{says}"):
            one.xmit_many([b"0", b"1", wrong, b"3"])
        still_works(one, other)


def test_a_view_that_was_released_is_refused():
    view = memoryview(b"abc")
    view.release()
    with connection() as (one, other):
        with pytest.raises(BadRecord, match="expected bytes, got memoryview"):
            one.xmit(view)
        still_works(one, other)


def test_what_was_sent_is_a_copy():
    data = bytearray(b"before")
    with connection() as (one, other):
        one.xmit(data)
        data[:] = b"after!"
        assert other.recv() == b"before"
        data += b" that"  # and nothing keeps it from growing
        one.xmit(np.frombuffer(data, "u1"))


@pytest.mark.parametrize(
    "message",
    [
        Message(b""),
        Message(b"data", 7),
        Message(b"data", 0, 255),
        Message(b"data", 0xFFFFFFFF, 1),
        Message(b"d" * 5000, 1 << 31, 128),
    ],
    ids=str,
)
def test_a_message_keeps_its_tag_and_flags(message):
    with connection(Message, capacity=4096) as (one, other):
        one.xmit(message)
        assert one.xmit_many([message, Message(bytearray(message.data))]) == 2
        got = other.recv()
        assert got == message
        assert type(got) is Message
        assert other.recv_vectored() == [message, Message(message.data)]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (b"bytes", "expected a Message, got bytes"),
        ((b"x", 0, 0), "expected a Message, got tuple"),
        (Message(b"x", -1), "tag is a number from 0 to 4294967295, not -1"),
        (Message(b"x", 1 << 32), "tag is a number from 0 to 4294967295, not 4294967296"),
        (Message(b"x", 1.5), "tag is a number from 0 to 4294967295, not 1.5"),
        (Message(b"x", None), "tag is a number from 0 to 4294967295, not None"),
        (Message(b"x", 0, 256), "flags is a number from 0 to 255, not 256"),
        (Message(b"x", 0, -1), "flags is a number from 0 to 255, not -1"),
        (Message("x"), "expected bytes, got str"),
        (Message(memoryview(b"abcdef")[::2]), "got a view with gaps"),
    ],
    ids=lambda each: None if isinstance(each, str) else str(each),
)
def test_a_message_that_is_none_is_refused_and_the_interface_goes_on(wrong, says):
    with connection(Message) as (one, other):
        with pytest.raises(BadRecord, match=says):
            one.xmit(wrong)
        with pytest.raises(BadRecord, match=f"record 1: .*{says}"):
            one.xmit_many([Message(b""), wrong])
        still_works(one, other, Message(b"still", 1, 2))


SPECS = {"bytes": bytes, "Message": Message, "JSON": JSON}


@pytest.mark.parametrize("first", SPECS)
@pytest.mark.parametrize("second", SPECS)
def test_all_ways_of_stating_messages_meet(first, second):
    said = {"bytes": b'"text"', "Message": Message(b'"text"', 5, 6), "JSON": "text"}
    without = said | {"Message": Message(b'"text"')}
    with connection(SPECS[first], other={"record": SPECS[second]}) as (one, other):
        one.xmit(said[first])
        expected = said if first == "Message" else without
        assert other.recv() == expected[second]
        other.xmit(said[second])
        expected = said if second == "Message" else without
        assert one.recv() == expected[first]
        assert (one.record, other.record) == (SPECS[first], SPECS[second])


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("fixed", [1, 24, "<Q", np.dtype("S1")], ids=str)
def test_messages_and_records_of_one_size_do_not_meet(spec, fixed):
    with pytest.raises(memenpsf.RecordRefused, match="messages of any length"):
        with connection(SPECS[spec], other={"record": fixed}):
            pass


# -- what encodes and decodes --------------------------------------------------------------------


def test_objects_travel_as_what_they_are_encoded_to():
    objects = [0, False, "", 1, "text", [1, {"a": [2.5]}], {"large": "x" * 10_000}]
    with connection(JSON, capacity=4096) as (one, other):
        for each in objects:
            one.xmit(each)
            assert other.recv() == each
        assert one.xmit_many(objects) == len(objects)
        assert other.recv_vectored() == objects


@pytest.mark.parametrize("verb", ["recv", "recv_message", "recv_vectored"])
def test_a_decoder_that_gives_none_has_failed_as_none_means_that_nothing_came(verb):
    with connection(bytes, other={"record": JSON}) as (one, other):
        one.xmit_many([b"null", b'"next"'])
        with pytest.raises(DecodeFailed, match=r"message 0 .* decode gave None"):
            getattr(other, verb)()
        assert other.recv() == "next"


def test_an_encoder_that_fails_sends_nothing_and_its_exception_comes_out():
    with connection(JSON) as (one, other):
        with pytest.raises(TypeError, match="not JSON serializable"):
            one.xmit(object())
        with pytest.raises(TypeError, match="not JSON serializable"):
            one.xmit_many(["first", object()])
        still_works(one, other, "still works")


def test_an_encoder_that_gives_no_bytes_is_told_so():
    with connection(Encoded(str, str)) as (one, other):
        with pytest.raises(
            BadRecord, match=r"what encode gave .* expected bytes, got str: text.encode\(\)"
        ):
            one.xmit(7)
        assert other.recv(timeout=0) is None


@pytest.mark.parametrize("wrong", [(None, bytes), (bytes, None), ("utf-8", bytes)])
def test_what_cannot_be_called_does_not_encode(wrong):
    with pytest.raises(TypeError, match="is a function, not"):
        Encoded(*wrong)


def test_equal_functions_make_equal_specs_that_cannot_be_changed():
    spec = Encoded(bytes, decode=str)
    assert spec == Encoded(encode=bytes, decode=str)
    assert hash(spec) == hash(Encoded(bytes, str))
    assert spec != Encoded(bytes, bytes)
    assert repr(spec) == "Encoded(encode=<class 'bytes'>, decode=<class 'str'>)"
    with pytest.raises(AttributeError):
        spec.encode = str
    with pytest.raises(AttributeError):
        spec.other = str


def bad_on(*bad):
    def decode(data):
        if data in bad:
            raise ValueError(f"cannot stand {data!r}")
        return data

    return Encoded(bytes, decode)


def test_the_number_of_a_message_counts_all_that_were_received_before():
    with connection(bad_on(b"bad")) as (one, other):
        one.xmit_many([b"x"] * 7 + [b"bad"])
        other.recv()
        other.recv_message()
        other.recv_vectored(2)
        with other.borrow(2):
            pass
        with pytest.raises(KeyError), other.borrow():
            raise KeyError
        assert other.recv_vectored() == [b"x"]
        with pytest.raises(DecodeFailed, match=r"message 7 \(3 bytes"):
            other.recv()


def test_the_tag_of_a_message_that_cannot_be_decoded_is_told():
    with connection(Message, other={"record": bad_on(b"bad")}) as (one, other):
        one.xmit(Message(b"bad", 77))
        with pytest.raises(DecodeFailed, match="3 bytes, tag 77"):
            other.recv()


def test_what_is_attached_to_a_message_that_cannot_be_decoded_is_closed_and_counted(files):
    with connection(bad_on(b"bad"), accept=memenpsf.Accept(fds=2)) as (one, other):
        before = open_descriptors()
        with fdpass.MemoryRegion.create(10) as region:
            one.xmit(b"bad", fds=files[:2], regions=[region])
        one.xmit(b"good", fds=files[:1])
        with pytest.raises(DecodeFailed):
            other.recv_message()
        assert other.statistics().dropped == 3
        message = other.recv_message()
        assert (message.record, len(message.fds)) == (b"good", 1)
        message.close()
        assert open_descriptors() == before


def test_messages_before_one_that_fails_and_lacks_its_descriptors_are_not_lost(files):
    # Its descriptors are read only when the others are about to be handed on.
    with connection(bad_on(b"bad"), accept=memenpsf.Accept(fds=1)) as (one, other):
        one.xmit(b"good")
        one.xmit(b"bad", fds=files[:1])
        assert other.recv_vectored() == [b"good"]
        with pytest.raises(DecodeFailed):
            other.recv_vectored()


def test_iteration_can_go_on_after_a_message_that_cannot_be_decoded():
    with connection(bad_on(b"bad")) as (one, other):
        one.xmit_many([b"1", b"bad", b"2"])
        one.close()
        got = []
        with pytest.raises(DecodeFailed):
            got.extend(other)  # extend keeps nothing of an iterator that raises
        assert list(other) == [b"2"]


@pytest.fixture(scope="module")
def files():
    numbers = [os.open("/dev/null", os.O_RDONLY) for _ in range(2)]
    yield numbers
    for number in numbers:
        os.close(number)


@pytest.fixture(autouse=True)
def _files_come_first(files):
    """Open before conftest counts."""


# -- how large -------------------------------------------------------------------------------------


def test_each_side_says_what_it_takes_and_the_other_keeps_to_it():
    with connection(
        accept=memenpsf.Accept(message=1000), other={"accept": memenpsf.Accept(message=2000)}
    ) as (one, other):
        for side, peer, most in ((one, other, 2000), (other, one, 1000)):
            side.xmit(bytes(most))
            assert peer.recv() == bytes(most)
            says = f"a message has {most + 1} bytes, and the receiver takes at most {most}"
            with pytest.raises(TooLarge, match=says):
                side.xmit(bytes(most + 1))
            with pytest.raises(TooLarge, match=f"record 2: {says}"):
                side.xmit_many([b"", b"", bytes(most + 1), b""])
            with pytest.raises(TooLarge, match=says):
                side.loan(most + 1)
            with side.loan(most):
                pass
            assert peer.recv() == bytes(most)
            still_works(side, peer)


@pytest.mark.parametrize("most", [0, 1, 5000])
def test_the_largest_message_is_the_same_in_the_ring_and_outside(most):
    for inline in (0, 4096):
        with connection(accept=memenpsf.Accept(message=most), capacity=4096, inline=inline) as (
            one,
            other,
        ):
            one.xmit(bytes(most))
            assert other.recv() == bytes(most)
            with pytest.raises(TooLarge, match=f"{most + 1} bytes.* at most {most}"):
                one.xmit(bytes(most + 1))


def test_too_large_is_a_bad_record_and_says_so_before_any_memory_is_made(monkeypatch):
    monkeypatch.setattr(fdpass.MemoryRegion, "create", None)
    with connection() as (one, other):
        with pytest.raises(BadRecord, match=r"67108865 bytes, .* at most 67108864") as caught:
            one.xmit(bytes((64 << 20) + 1))
        assert type(caught.value) is TooLarge
        still_works(one, other)


def test_a_message_of_the_largest_size_arrives():
    data = bytes(64 << 20)
    with connection() as (one, other):
        one.xmit(data)
        with other.borrow() as (message,):
            assert message.data == data


def test_memory_that_is_short_is_an_oserror_and_the_interface_goes_on(monkeypatch):
    def short(*_, **__):
        raise OSError(errno.ENOMEM, "no memory")

    with connection(capacity=4096) as (one, other):
        with monkeypatch.context() as patch:
            patch.setattr(fdpass.Memfd, "create", short)
            with pytest.raises(OSError, match="no memory"):
                one.xmit(bytes(5000))
            with pytest.raises(OSError, match="no memory"):
                one.xmit_many([b"sent", bytes(5000), b"not sent"])
        assert other.recv_vectored() == [b"sent"]
        still_works(one, other)


# -- options -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"capacity": 0}, ValueError, "capacity is at least 1"),
        ({"capacity": 4096.0}, TypeError, "capacity is a number"),
        ({"capacity": True}, TypeError, "capacity is a number"),
        ({"inline": -1}, ValueError, "inline is from 0 to 1048576, not -1"),
        ({"inline": (1 << 20) + 1}, ValueError, "inline is from 0 to 1048576, not 1048577"),
        ({"inline": 2.5}, TypeError, r"inline is a number \(int\), not 2.5"),
        ({"inline": True}, TypeError, "inline is a number"),
        ({"accept": {"fds": 1}}, TypeError, r"accept is an Accept, such as Accept\(fds=1\), not"),
        ({"accept": (1, 2, 3, 4, False, False)}, TypeError, "accept is an Accept"),
        ({"accept": None}, TypeError, "accept is an Accept"),
    ],
    ids=str,
)
def test_options_that_mean_nothing_are_refused_at_once(options, error, says):
    here, there = socket.socketpair()
    with there, pytest.raises(error, match=says):
        memenpsf.Interface(here, bytes, **options)
    assert here.fileno() == -1


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"message": -1}, ValueError, "message of Accept is from 0"),
        ({"message": None}, TypeError, "message of Accept is a number"),
        ({"message": 1 << 64}, ValueError, "message of Accept is from 0"),
        ({"message": np.array([1, 2])}, TypeError, "message of Accept is a number"),
        ({"fds": -1}, ValueError, "fds of Accept is from 0 to 253, not -1"),
        ({"fds": 254}, ValueError, "fds of Accept is from 0 to 253, not 254"),
        ({"fds": "many"}, TypeError, "fds of Accept is a number"),
        ({"fds": True}, TypeError, "fds of Accept is a number"),
        ({"regions": -1}, ValueError, "regions of Accept is from 0 to 253"),
        ({"regions": 1.5}, TypeError, "regions of Accept is a number"),
        ({"region": -1}, ValueError, "region of Accept is from 1"),
        ({"region": "1 GiB"}, TypeError, "region of Accept is a number"),
        ({"shared": 1}, TypeError, "shared of Accept is True or False, not 1"),
        ({"sockets": None}, TypeError, "sockets of Accept is True or False, not None"),
    ],
    ids=str,
)
def test_what_accept_cannot_mean_is_refused_where_it_is_made(options, error, says):
    with pytest.raises(error, match=says):
        memenpsf.Accept(**options)
    with pytest.raises(error, match=says):
        memenpsf.Accept()._replace(**options)


def test_accept_is_a_value():
    accept = memenpsf.Accept(fds=3, shared=True)
    assert accept == memenpsf.Accept(shared=True, fds=3)
    assert accept != memenpsf.Accept()
    assert repr(accept) == (
        "Accept(message=67108864, fds=3, regions=8, region=268435456, shared=True, sockets=False)"
    )
    with pytest.raises(AttributeError):
        accept.fds = 4
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(accept, protocol)) == accept
    assert copy.deepcopy(accept) == accept


@pytest.mark.parametrize(
    ("option", "now"),
    [
        ("max_message", "accept=Accept(message=...)"),
        ("accept_fds", "accept=Accept(fds=...)"),
        ("accept_sockets", "accept=Accept(sockets=...)"),
        ("spin", "wait=Spin(...)"),
    ],
)
def test_an_option_of_before_says_how_it_is_written_now(option, now):
    with pytest.raises(TypeError, match=re.escape(f"{option!r}: write {now} instead")):
        memenpsf.pair(bytes, **{option: 1})


@pytest.mark.parametrize(
    ("asked", "given"), [(None, 1 << 20), (1, 4096), (4096, 4096), (4097, 8192), (1 << 20, 1 << 20)]
)
def test_capacity_is_in_bytes_and_whole_pages(asked, given):
    with connection(capacity=asked) as (one, other):
        assert one.capacity == other.capacity == given
        sent = one.xmit_many([bytes(1008)] * 2000, timeout=0)
        assert sent == given // 1024


def test_a_one_way_queue_takes_the_same_options():
    # A Receiver has no ring of its own that `inline` could be a part of.
    sender, receiver = ipcqueue.pair(
        bytes, 4096, inline=100, accept=memenpsf.Accept(fds=1, message=10_000)
    )
    with sender, receiver:
        assert (sender.capacity, receiver.capacity) == (4096, 4096)
        sender.push(b"a" * 9000)
        assert sender.push_many([b"", b"b"]) == 2
        assert receiver.pop() == b"a" * 9000
        assert receiver.pop_many() == [b"", b"b"]
        with pytest.raises(TooLarge):
            sender.push(bytes(10_001))
        with sender.loan(3) as loan:
            loan.data[:] = b"abc"
        with receiver.borrow() as (message,):
            assert message.data == b"abc"
        r, w = os.pipe()
        sender.push(b"read end", fds=[r])
        os.close(r)
        with contextlib.closing(receiver.recv_message()) as message:
            os.write(w, b"through the pipe")
            os.close(w)
            assert os.read(message.fds[0].fileno(), 100) == b"through the pipe"
        sender.close()
        assert list(receiver) == []


# -- space, time and the end -------------------------------------------------------------------------


def test_a_message_waits_for_as_much_space_as_it_needs():
    with connection(capacity=4096, inline=4096) as (one, other):
        one.xmit_many([bytes(1000)] * 4, timeout=0)
        sending = threading.Thread(target=one.xmit, args=(bytes(3000),))
        sending.start()
        for _ in range(3):
            assert other.recv() == bytes(1000)
        assert other.recv() == bytes(1000)
        assert other.recv() == bytes(3000)
        sending.join()
        assert one.statistics().rescues == other.statistics().rescues == 0


@pytest.mark.parametrize("large", [False, True])
def test_no_space_in_time_is_full_and_nothing_was_sent(large):
    with connection(capacity=4096, inline=4096 * (not large)) as (one, other):
        one.xmit_many([b""] * 256, timeout=0)
        for timeout in (0, 1e-9, 0.01):
            with pytest.raises(Full):
                one.xmit(b"x", timeout=timeout)
            assert one.xmit_many([b"x"] * 3, timeout=timeout) == 0
            with pytest.raises(Full):
                one.loan(0, timeout=timeout).__enter__()
        assert other.recv_vectored() == [b""] * 256
        still_works(one, other)


def test_everything_published_comes_before_the_end():
    with connection(capacity=4096) as (one, other):
        sent = [b"in", b"out" * 2000, b"", b"last"]
        one.xmit_many(sent)
        one.close()
        assert list(other) == sent
        with pytest.raises(EndOfStream):
            other.recv_message()
        with pytest.raises(EndOfStream):
            other.borrow().__enter__()
        with pytest.raises(ReceiverGone):
            other.xmit(b"")


def test_the_end_may_come_while_a_large_message_waits_for_space():
    with connection(capacity=4096) as (one, other):
        one.xmit_many([bytes(5000)] * 16, timeout=0)
        before = open_descriptors()
        errors = []

        def send():
            try:
                one.xmit(bytes(5000))
            except ReceiverGone as error:
                errors.append(error)

        sending = threading.Thread(target=send)
        sending.start()
        other.close()
        sending.join()
        assert len(errors) == 1
        assert open_descriptors() <= before


# -- between processes -------------------------------------------------------------------------------


# What both sides do: send random messages in a thread, and hash what comes, by every verb in turn.
BOTH = """
import hashlib, itertools, random, threading

def size(chance):
    kind = chance.random()
    if kind < 0.3:
        return chance.randint(0, 40)
    if kind < 0.95:
        return chance.randint(0, 20_000)
    return chance.randint(0, 3_000_000)

def send(side, seed, count):
    chance = random.Random(seed)
    left = count
    while left:
        batch = [chance.randbytes(size(chance)) for _ in range(min(left, chance.choice([1, 1, 9])))]
        if len(batch) > 1:
            assert side.xmit_many(batch) == len(batch)
        elif chance.random() < 0.3 and len(batch[0]) < side.capacity - 16:
            with side.loan(len(batch[0])) as loan:
                loan.data[:] = batch[0]
        else:
            side.xmit(batch[0])
        left -= len(batch)

def expected(seed, count):
    chance, digest, left = random.Random(seed), hashlib.sha256(), count
    while left:
        batch = [chance.randbytes(size(chance)) for _ in range(min(left, chance.choice([1, 1, 9])))]
        if len(batch) == 1:
            chance.random()
        for data in batch:
            digest.update(b"%d:" % len(data) + data)
        left -= len(batch)
    return digest.hexdigest()

def receive(side, count):
    digest, left = hashlib.sha256(), count
    verbs = itertools.cycle(["recv", "recv_vectored", "recv_message", "borrow"])
    while left:
        verb = next(verbs)
        if verb == "recv":
            got = [side.recv()]
        elif verb == "recv_vectored":
            got = side.recv_vectored(7)
        elif verb == "recv_message":
            got = [side.recv_message().record]
        else:
            with side.borrow(5) as messages:
                got = [bytes(message.data) for message in messages]
        for data in got:
            digest.update(b"%d:" % len(data) + data)
        left -= len(got)
    return digest.hexdigest()

def both(side, own_seed, other_seed, count):
    sending = threading.Thread(target=send, args=(side, own_seed, count))
    sending.start()
    digest = receive(side, count)
    sending.join()
    assert digest == expected(other_seed, count)
"""

CHILD = (
    BOTH
    + """
import json, socket, sys
import memenpsf

descriptor, own_seed, other_seed, count, options = json.loads(sys.argv[1])
with memenpsf.Interface(socket.socket(fileno=descriptor), bytes, **options) as side:
    both(side, own_seed, other_seed, count)
    print("done", flush=True)
    sys.stdin.readline()
"""
)
HERE = {}
exec(BOTH, HERE)  # the very same in this process


@pytest.mark.parametrize(
    "options",
    [{"capacity": 4096}, {"capacity": 1 << 16, "inline": 1 << 16}, {"inline": 3000}],
    ids=str,
)
def test_two_processes_exchange_messages_of_all_sizes_both_ways_at_once(program, options):
    count = 400
    ours, theirs = socket.socketpair()
    arguments = json.dumps([theirs.fileno(), 1, 2, count, options])
    with theirs:
        child = program(CHILD, arguments, pass_fds=[theirs.fileno()])
        with memenpsf.Interface(ours, bytes, timeout=30, **options) as side:
            theirs.close()
            HERE["both"](side, 2, 1, count)
            assert child.stdout.readline() == "done\n"
            assert side.statistics().rescues == 0
            print(file=child.stdin, flush=True)
            assert child.wait() == 0
            with pytest.raises(EndOfStream):
                side.recv()


def test_what_a_killed_process_has_published_is_received(program):
    source = """
import os, signal, socket, sys
import memenpsf
side = memenpsf.Interface(socket.socket(fileno=int(sys.argv[1])), bytes, capacity=4096)
side.xmit_many([b"in", b"out" * 5000, b"last"])
os.kill(os.getpid(), signal.SIGKILL)
"""
    ours, theirs = socket.socketpair()
    with theirs:
        child = program(source, theirs.fileno(), pass_fds=[theirs.fileno()])
        side = memenpsf.Interface(ours, bytes, timeout=30)
    with side:
        child.wait()
        assert [side.recv() for _ in range(3)] == [b"in", b"out" * 5000, b"last"]
        with pytest.raises(PeerDied):
            side.recv()
        with pytest.raises(PeerDied):
            side.xmit(b"x")


def test_what_has_arrived_can_be_received_after_finish_with_its_descriptors(files):
    # They are still in the socket when this side stops waiting for it.
    with connection(capacity=4096, accept=memenpsf.Accept(fds=1)) as (one, other):
        for n in range(10):
            one.xmit(b"%d" % n, fds=files[:1])
        other.finish()
        for n in range(10):
            with contextlib.closing(other.recv_message()) as message:
                assert (message.record, len(message.fds)) == (b"%d" % n, 1)
        with pytest.raises(memenpsf.Closed):
            other.recv()


def test_any_number_of_threads_may_send_and_receive_messages_of_all_sizes():
    threads, each = 4, 100
    chance = random.Random(5)
    sent = [
        [
            bytes([who]) + n.to_bytes(2) + chance.randbytes(chance.choice([0, 100, 3000, 9000]))
            for n in range(each)
        ]
        for who in range(threads)
    ]
    with connection(capacity=8192) as (one, other):
        got = [[] for _ in range(threads)]
        left = itertools.count(1)

        def receive(into):
            while next(left) <= threads * each:
                into.append(other.recv())

        running = [
            *(threading.Thread(target=lambda m=m: [one.xmit(d) for d in m]) for m in sent),
            *(threading.Thread(target=receive, args=(into,)) for into in got),
        ]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        assert sorted(itertools.chain(*got)) == sorted(itertools.chain(*sent))
        for into in got:
            for who in range(threads):
                order = [message[1:3] for message in into if message[0] == who]
                assert order == sorted(order)


@pytest.mark.parametrize("make", [bytes, bytearray])
def test_what_a_long_message_shows_is_short(make):
    long, short = make(b"x" * 5_000_000), make(b"short")
    for record in (long, ipcqueue.Message(long, 1, 2)):
        received = ipcqueue.Received(record, [], [])
        for it in (received, record) if isinstance(record, tuple) else (received,):
            assert len(repr(it)) < 200
            assert "5000000 bytes: b'xxx" in repr(it)
    assert repr(ipcqueue.Message(short, 1, 2)) == f"Message(data={short!r}, tag=1, flags=2)"
    assert (
        repr(ipcqueue.Received(short, [], [])) == f"Received(record={short!r}, fds=[], regions=[])"
    )
