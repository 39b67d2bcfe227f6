"""The corners of core/python that no program of ours turns into by itself."""

from __future__ import annotations

import array
import contextlib
import ctypes
import dataclasses
import mmap
import os

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


@pytest.mark.parametrize("verb", ["recv", "loop"])
def test_a_panic_on_the_second_look_is_raised(verb):
    raised = []

    @dataclasses.dataclass
    class Bad:
        number: memenpsf.u64

        def __post_init__(self):
            if raised:
                raise raised.pop()

    one, other = memenpsf.pair(Bad)
    record = Bad(5)
    with one, other:
        one.xmit_many([record, record])
        raised[:] = [PanicError(), ValueError()]
        with pytest.raises(PanicError):
            next(iter(other)) if verb == "loop" else other.recv()
        assert [other.recv().number, other.recv().number] == [5, 5]


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
            for arguments in ((), (None, "x"), (None, 0, 0), (None, -1)):
                with contextlib.suppress(TypeError, OverflowError):
                    assert isinstance(receiver.peek(*arguments), int)
            arguments = (None,) if spec == "<Q" else (None, 0)
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
