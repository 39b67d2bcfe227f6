"""The corners of core/python that no program of ours turns into by itself."""

from __future__ import annotations

import array
import contextlib
import ctypes
import dataclasses
import mmap
import os
import socket
import struct
from typing import ClassVar

import pytest
from ipcqueue._core import lib

import memenpsf
from ipcqueue import _direct as direct
from ipcqueue import _packer as packer

np = pytest.importorskip("numpy")


class Pair(tuple):
    __slots__ = ()

    def __iter__(self):
        return iter((1, 2))


# -- arguments of functions that only ipcqueue calls ------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        (),
        (("u", -1, 8),),
        (("u", 0, 0),),
        (("u", 4, 8),),
        (("u", 0, 3),),
        (("i", 0, 5),),
        (("f", 0, 3),),
        (("?", 0, 2),),
        (("c", 0, 2),),
        (("x", 0, 1),),
    ],
)
def test_a_packer_of_fields_that_cannot_be_is_refused(fields):
    with pytest.raises(ValueError, match=r"a record without fields|field 0 is none"):
        packer.Packer(fields, 8, None)


@pytest.mark.parametrize("width", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", ["i", "u", "f"])
def test_a_packer_packs_numbers_of_every_width(kind, width):
    if kind == "f" and width == 1:
        pytest.skip("there are no floats of one byte")
    packed = packer.Packer(((kind, 0, width),), width, None)
    data = packed.pack_one((5,))
    assert len(data) == width
    assert packed.unpack(data) == [(5,)]


@pytest.mark.parametrize(("size", "cls"), [(0, None), (8, 5), (8, int)])
def test_a_packer_of_what_is_no_record_is_refused(size, cls):
    with pytest.raises((TypeError, ValueError)):
        packer.Packer((("u", 0, 8),), size, cls)


@pytest.mark.parametrize("length", [*range(1, 20), 64, 67])
@pytest.mark.parametrize("before", [0, 3])
def test_bools_of_any_length_are_normalised_and_nothing_else_is(length, before):
    size = before + length + 2
    data = bytearray(range(256)) * size
    records = [data[at : at + size] for at in range(0, len(data), size)]
    packer.normalise(data, size, struct.pack("=qq", before, length))
    for at, record in enumerate(records):
        record[before : before + length] = map(bool, record[before : before + length])
        assert data[at * size : (at + 1) * size] == record


@pytest.mark.parametrize("run", [(-1, 1), (0, 0), (0, 9), (4, 5), (8, 1), (2**63 - 1, 1), (0, -1)])
def test_runs_of_bools_that_cannot_be_are_refused(run):
    with pytest.raises(ValueError, match="no records"):
        packer.normalise(bytearray(8), 8, struct.pack("=qq", *run))


@pytest.mark.parametrize(
    "args",
    [
        (bytes(8), 8, bytes(16)),
        (bytearray(9), 8, bytes(16)),
        (bytearray(8), 0, bytes(16)),
        (bytearray(8), 8, bytes(15)),
        (bytearray(8), 8, None),
        (bytearray(8), 8),
    ],
)
def test_what_are_no_records_of_bools_is_refused(args):
    with pytest.raises((TypeError, ValueError)):
        packer.normalise(*args)


def test_what_is_plain_is_told_from_what_is_not():
    assert packer.are_plain([1, 2.0, b"3", True, None]) in (True, False)
    assert packer.are_plain((1, 2.0, b"3"))
    assert not packer.are_plain(5)
    assert not packer.are_plain({1, 2})
    assert not packer.are_plain([object()])
    assert not packer.are_plain(Pair((1, 2)))


@pytest.mark.parametrize("call", [lambda: direct.blank("x"), lambda: direct.blank(-1)])
def test_the_core_makes_no_room_of_no_size(call):
    with pytest.raises((TypeError, SystemError)):
        call()


def test_the_core_fetches_only_a_number_of_records():
    one, other = memenpsf.pair(8)
    with one, other, pytest.raises(TypeError):
        other._receiver.fetch(None, "many")


def test_an_end_of_a_forked_child_is_not_armed():
    one, other = memenpsf.pair(8)
    with one, other:
        ring = other._receiver._ring
        child = os.fork()
        if not child:
            os._exit(10 + lib.ipcq_arm_records(ring))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 10 + lib.IPCQ_FORKED


# -- values -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", "bBhHiIqQ")
def test_integers_at_their_bounds_go_and_beyond_them_do_not(code):
    one, other = memenpsf.pair(f"<{code}")
    bits = 8 * np.dtype(code).itemsize
    least, most = (
        (-(1 << bits - 1), (1 << bits - 1) - 1) if code.islower() else (0, (1 << bits) - 1)
    )
    with one, other:
        for value in (least, most, np.dtype(code).type(most), np.dtype(code).type(least)):
            one.xmit((value,))
            assert one.xmit_many([(value,), (value,)]) == 2
            assert other.recv_vectored() == [(int(value),)] * 3
        for value in (least - 1, most + 1, 1 << 70, -(1 << 70), 1.0, "1", None):
            with pytest.raises(memenpsf.BadRecord):
                one.xmit((value,))
            with pytest.raises(memenpsf.BadRecord):
                one.xmit_many([(value,)])


@pytest.mark.parametrize("code", "efd")
def test_floats_are_made_of_numbers_and_of_nothing_else(code):
    one, other = memenpsf.pair(f"<{code}")
    with one, other:
        for value in (-1.0, -1, 0, 2.5, np.float32(-1.0), np.float64(0.5), np.int8(-1), True):
            one.xmit((value,))
            one.xmit_many([(value,)])
            assert other.recv_vectored() == [(float(value),)] * 2
        for value in ("1", None, 10**400, -(10**400), 1j):
            with pytest.raises(memenpsf.BadRecord):
                one.xmit((value,))
            with pytest.raises(memenpsf.BadRecord):
                one.xmit_many([(value,)])


@pytest.mark.parametrize("spec", [8, bytes])
def test_memory_of_many_kinds_is_sent_as_its_bytes(spec):
    data = b"12345678"
    with mmap.mmap(-1, 8) as mapped:
        mapped[:] = data
        kinds = [
            data,
            bytearray(data),
            memoryview(data),
            memoryview(data).cast("H"),
            memoryview(data)[::1],
            array.array("B", data),
            array.array("d", data),
            np.frombuffer(data, "u1"),
            np.frombuffer(data, "<u8"),
            np.frombuffer(data, "<f2"),
            np.frombuffer(data, [("a", "<u4"), ("b", "<f4")]),
            (ctypes.c_ubyte * 8).from_buffer_copy(data),
            ctypes.c_uint64.from_buffer_copy(data),
            mapped,
        ]
        one, other = memenpsf.pair(spec)
        with one, other:
            for thing in kinds:
                one.xmit(thing)
                one.xmit_many([thing, thing])
                assert other.recv_vectored() == [data] * 3, thing
            for thing in ("12345678", 8, [1] * 8, None):
                with pytest.raises(memenpsf.BadRecord):
                    one.xmit(thing)
                with pytest.raises(memenpsf.BadRecord):
                    one.xmit_many([thing])


def test_there_may_be_no_memory_for_a_packed_record():
    testcapi = pytest.importorskip("_testcapi")
    packed = packer.Packer((("u", 0, 8),), 1 << 16, None)
    pack, record = packed.pack_one, (5,)
    failed = 0
    for nth in range(10):
        testcapi.set_nomemory(nth, nth + 1)
        try:
            pack(record)
        except MemoryError:
            testcapi.remove_mem_hooks()
            failed += 1
        finally:
            testcapi.remove_mem_hooks()
    assert failed > 0
    assert pack(record)[:8] == (5).to_bytes(8, "little")


# -- more than one call of C does -------------------------------------------------------------------


def test_a_batch_that_is_larger_than_one_call_of_c_arrives_whole():
    size = 1 << 20
    one, other = memenpsf.pair(size, capacity=16)
    batch = [bytes([n]) * size for n in range(12)]
    with one, other:
        assert one.xmit_many(batch) == 12
        assert [record[:1] for record in iter(other.recv, batch[11])] == [b[:1] for b in batch[:11]]
        assert one.xmit_many(np.zeros((12, size), "u1").view(f"V{size}").reshape(12)) == 12
        assert len(other.recv_vectored(12)) == 12


def test_an_array_that_is_larger_than_one_call_of_c_arrives_whole():
    one, other = memenpsf.pair(np.dtype("V1048576"), capacity=16)
    with one, other:
        assert one.xmit_many(np.zeros(12, "V1048576")) == 12
        assert len(other.recv_vectored(12)) == 12


# -- decoders ---------------------------------------------------------------------------------------


class PanicError(BaseException):
    """As of an extension in another language."""


@dataclasses.dataclass
class Raising:
    """A record that raises, or does, what it is told to, once each."""

    number: memenpsf.u64
    raised: ClassVar[list] = []

    def __post_init__(self):
        if self.raised:
            first = self.raised.pop(0)
            if isinstance(first, BaseException):
                raise first
            first()


RECEIVE = {
    "recv": lambda other: other.recv().number,
    "loop": lambda other: next(iter(other)).number,
    "message": lambda other: other.recv_message().record.number,
    "vectored": lambda other: other.recv_vectored(1)[0].number,
}


@pytest.mark.parametrize("after", RECEIVE)
@pytest.mark.parametrize("verb", RECEIVE)
@pytest.mark.parametrize(
    ("raised", "right"),
    [
        ([ValueError, PanicError], PanicError),
        ([PanicError], PanicError),
        # Perhaps of a signal handler, as they do not come again, or not as they were.
        ([ValueError], ValueError),
        ([ValueError, KeyError], ValueError),
    ],
)
def test_what_may_be_no_fault_of_a_record_is_raised_and_the_record_stays(
    raised, right, verb, after
):
    one, other = memenpsf.pair(Raising)
    with one, other:
        one.xmit_many([Raising(5), Raising(6)])
        Raising.raised[:] = [error() for error in raised]
        # Of a batch the first is raised, whatever the second is.
        with pytest.raises(raised[0] if verb == "vectored" else right):
            RECEIVE[verb](other)
        Raising.raised.clear()
        assert [RECEIVE[after](other), RECEIVE[after](other), other.recv(timeout=0)] == [5, 6, None]


@pytest.mark.parametrize("verb", RECEIVE)
def test_a_shortage_that_is_over_is_nobodys_fault(verb):
    one, other = memenpsf.pair(Raising)
    with one, other:
        one.xmit(Raising(5))
        Raising.raised[:] = [MemoryError()]
        with contextlib.suppress(MemoryError):
            assert RECEIVE[verb](other) == 5
            one.xmit(Raising(5))
        assert RECEIVE[verb](other) == 5
        assert other.recv(timeout=0) is None


@pytest.mark.parametrize("verb", RECEIVE)
@pytest.mark.parametrize("spec", ["records", "messages"])
def test_a_decoder_may_close_its_end(spec, verb):
    """The record is returned, or it is gone with the end: the caller learns which."""
    encoded = memenpsf.Encoded(lambda record: b"text", lambda data: Raising(5))
    one, other = memenpsf.pair(Raising if spec == "records" else encoded)
    with one, other:
        one.xmit_many([Raising(5), Raising(6)])
        Raising.raised[:] = [other.close]
        with contextlib.suppress(memenpsf.Closed):
            assert RECEIVE[verb](other) == 5
        assert Raising.raised == []
        with pytest.raises(memenpsf.Closed):
            RECEIVE[verb](other)


@pytest.mark.parametrize("patient", [False, True])
@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize(("spec", "record"), [(8, bytes(8)), ("<Q", (1,)), (bytes, b"12345678")])
def test_a_record_whose_message_cannot_be_made_stays(spec, record, ahead, patient):
    def wrap(record, fds, regions):
        raise failing[0]

    one, other = memenpsf.pair(spec)
    with one, other:
        one.xmit_many([record] * (3 if ahead else 2))
        if ahead:
            assert next(iter(other)) == record
        failing = [MemoryError()]
        assert list(other._receiver.ready(patient, wrap)) == []  # the slow path would meet it again
        for error in (PanicError, ValueError):
            failing = [error()]
            with pytest.raises(error):
                next(other._receiver.ready(patient, wrap))
        assert [other.recv(timeout=0) for _ in range(3)] == [record, record, None]


# -- ends that are closed, and ends with something ahead ----------------------------------------------


@pytest.mark.parametrize(("spec", "record"), [(8, bytes(8)), ("<Q", (1,)), (bytes, b"12345678")])
def test_the_short_way_of_a_closed_end_does_nothing(spec, record):
    one, other = memenpsf.pair(spec)
    sender, receiver = one._endpoint.sender, other._receiver
    one.close()
    other.close()
    assert not receiver.is_quiet()
    assert not list(receiver.many(5))
    assert not sender.push_run([record], 0)
    if spec is not bytes:
        assert not sender.push_packed(memoryview(bytes(16)), 0)
        assert not sender.push_packed(memoryview(bytes(16)).cast("B", (2, 8)), 0)
    with pytest.raises(memenpsf.Closed):
        one.xmit_many([record])
    with pytest.raises(memenpsf.Closed):
        other.recv_vectored(timeout=0)


@pytest.mark.parametrize(("spec", "record"), [(8, bytes(8)), ("<Q", (1,)), (bytes, b"12345678")])
def test_what_a_loop_has_taken_ahead_comes_first(spec, record):
    one, other = memenpsf.pair(spec, capacity=4096)
    with one, other:
        one.xmit_many([record] * 20)
        assert next(iter(other)) == record
        assert not other._receiver.is_quiet()
        assert not other._receiver.is_empty()
        assert not list(other._receiver.many(5))
        assert len(other.recv_vectored(timeout=0)) == 19
        assert other.recv(timeout=0) is None
        assert other._receiver.is_quiet()


def test_a_commit_takes_a_turn_and_fields_that_it_knows():
    one, other = memenpsf.pair("<Q", capacity=4)
    with one, other:
        receiver = other._endpoint.receiver
        turn = receiver.turn
        for arguments, fields in (
            ((), {}),
            (("now",), {}),
            ((-1,), {}),
            ((turn,), {"nothing": 1}),
            ((turn,), {"raw": 5}),
            ((turn,), {"decoding": ()}),
            ((turn,), {"next": "soon"}),
            ((turn,), {"free": 1}),
        ):
            with pytest.raises((TypeError, ValueError, OverflowError)):
                receiver.commit(*arguments, **fields)
        assert receiver.commit(turn + 1) is False
        one.xmit((1,))
        assert other.recv() == (1,)


def test_a_peek_is_at_the_ring_of_this_end():
    for spec in ("<Q", bytes):
        one, other = memenpsf.pair(spec)
        with one, other:
            receiver = other._endpoint.receiver
            ring = receiver._ring
            for arguments in (
                (),
                (None, "x", True),
                (None, 0, 0, 0),
                (None, -1, True),
                (ring, (1 << 64) - 1, True),
            ):
                with contextlib.suppress(TypeError, OverflowError):
                    assert isinstance(receiver.peek(*arguments), int)
            arguments = (None,) if spec == "<Q" else (None, 0, True)
            assert isinstance(receiver.peek(*arguments), int)  # not in use: no memory of it


def test_what_is_no_buffer_is_not_pushed():
    one, other = memenpsf.pair("<Q")
    with one, other, pytest.raises(TypeError):
        one._endpoint.sender.push(5)
    one, other = memenpsf.pair(bytes)
    with one, other:
        for wrong in ((), (5, 0, 0), (b"x", "tag", 0)):
            with pytest.raises(TypeError):
                one._endpoint.sender.push(*wrong)


@pytest.mark.parametrize(("spec", "more"), [("<Q", ()), (bytes, (0, 0))])
def test_what_is_encoded_is_pushed_into_the_ring_that_is_in_use(spec, more):
    one, other = memenpsf.pair(spec)
    with one, other:
        sender, receiver = one._endpoint.sender, other._endpoint.receiver
        ring = sender._ring
        sender._ring = None  # as during a loan
        assert sender.push(bytes(8), *more) == lib.IPCQ_AGAIN
        sender._ring = object()
        with pytest.raises(TypeError, match="not the ring"):
            sender.push(bytes(8), *more)
        sender._ring = ring
        with pytest.raises(ValueError, match=r"size|large"):
            sender.push(bytes(2 << 20), *more)
        if spec is bytes:
            receiver.see(object())  # no ring of its own: nothing to know
        assert other.recv(timeout=0) is None
        assert sender.push(bytes(8), *more) == lib.IPCQ_DONE
        assert other.recv(timeout=0) is not None


def test_a_function_that_persists_is_needed():
    with pytest.raises(TypeError, match="function"):
        direct.persist()


def test_only_a_generator_is_resumed_with_a_place_for_its_result():
    def plan():
        answer = yield "asked"
        return answer

    for wrong in (
        (),
        (plan(), None),
        (iter([1]), None, [None]),
        (plan(), None, []),
        (plan(), 0, ()),
    ):
        with pytest.raises(TypeError, match="a generator, an answer, and a list"):
            direct.resume(*wrong)
    one, result = plan(), [None]
    assert direct.resume(one, None, result) == "asked"
    assert direct.resume(one, 5, result) is None
    assert result == [5]
    broken = (1 // 0 for _ in "x")
    with pytest.raises(ZeroDivisionError):
        direct.resume(broken, None, result)


def test_a_method_that_persists_is_made_with_memory_or_not_at_all(short_of_memory):
    def check(made):
        assert made is MemoryError or made.__get__([1, 2])() == 2

    assert short_of_memory(list, lambda: direct.persistent(len), check, 10) > 0


@pytest.mark.parametrize(("spec", "message"), [("<Q", (1,)), (bytes, (8, 0, 0))])
def test_space_is_lent_of_the_ring_that_is_in_use(spec, message):
    one, other = memenpsf.pair(spec)
    with one, other:
        sender = one._endpoint.sender
        for wrong in ((), (sender._ring,), (sender._ring, "x"), (sender._ring, -1)):
            with pytest.raises((TypeError, OverflowError)):
                sender.reserve(*wrong)
        for wrong in ((), (sender._ring, "x", True), (sender._ring, *message)):
            with pytest.raises(TypeError):
                sender.publish(*wrong)
        assert sender.reserve(sender._ring, (1 << 64) - 1)[0] == lib.IPCQ_FULL
        assert sender.reserve(sender._ring, 1)[0] == lib.IPCQ_DONE
        sender._borrower = borrower = object()
        for ring in (None, object()):  # no address, and nothing is published
            assert sender.reserve(ring, 1) == (lib.IPCQ_AGAIN, 0, 0)
            assert sender.publish(ring, *message, True) == lib.IPCQ_AGAIN
        assert sender._borrower is borrower
        assert other.recv(timeout=0) is None
        assert sender.publish(sender._ring, *message, True) == lib.IPCQ_DONE
        assert sender._borrower is None
        assert other.recv(timeout=0) is not None


def test_half_a_doorbell_is_none():
    one, other = socket.socketpair()
    with one, other:
        got, room = [], bytearray(direct.ROOM)
        one.send(b"\x01\x00\x01")
        assert direct.receive(other, 0, True, got, room, -1, False) is None
        assert [data for data, *_ in got] == [b"\x01\x00\x01"]
