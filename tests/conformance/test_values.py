"""Values that must not leave: masked ones, and pointers into this process, at every door."""

from __future__ import annotations

import ctypes
import dataclasses
import re
import socket
import struct
from collections import deque
from typing import NamedTuple

import numpy as np
import numpy.ma
import pytest
import trio

import ipcqueue
import memenpsf
import memenpsf.trio
from memenpsf import BadRecord, Encoded, Message, f64, i64

STRUCTURED = np.dtype([("a", "i4"), ("b", "f8")])
array = np.ma.array([1, 555, 3], mask=[0, 1, 0])
pairs = np.ma.array([(1, 2.0), (3, 4.0)], STRUCTURED, mask=[(0, 0), (1, 0)])


class Point(NamedTuple):
    x: f64
    n: i64


@dataclasses.dataclass
class Place:
    x: f64
    n: i64


class Array:
    """Makes an array of itself."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


class Union(ctypes.Union):
    _fields_ = [("pointer", ctypes.c_void_p), ("number", ctypes.c_uint64)]


class Holder(ctypes.Structure):
    _fields_ = [("union", Union)]


masked = np.ma.masked
number = np.ma.array(5, mask=True)
ONE = [  # spec, record with something masked
    (np.dtype(("i8", 3)), array),
    (np.dtype(("f8", 3)), array),
    (np.dtype(("f8", 3)), [1.0, masked, 3.0]),
    (np.dtype(("f8", (2, 3))), [[1.0, 2.0, 3.0], (1.0, masked, 3.0)]),
    (np.dtype(("f8", (2, 3))), [array, array]),
    (np.dtype(("f8", 3)), Array(array)),
    (np.dtype(("f8", 3)), deque([1.0, masked, 3.0])),
    (np.dtype(("f8", (1, 3))), [deque([1.0, masked, 3.0])]),
    (np.dtype(("i8", 3)), np.array([1, masked, 3], dtype=object)),
    (np.dtype([("v", "i8", 3)]), (array,)),
    (np.dtype([("v", "f8")]), (masked,)),
    (np.dtype([("v", "i8"), ("w", STRUCTURED)]), (1, pairs[1])),
    (np.dtype([("v", [("x", "f8")])]), ((masked,),)),
    (np.dtype("f8"), masked),
    (np.dtype("i8"), number),
    (STRUCTURED, pairs[1]),
    (STRUCTURED, pairs[1:2].reshape(())),
    ("<d", (masked,)),
    ("<d", [masked]),
    ("<q", (number,)),
    (">qd", (1, masked)),
    ("<d?", (1.0, masked)),
    (Point, (masked, 1)),
    (Point, Point(1.0, number)),
    (Place, Place(masked, 1)),
    (Place, Place(1.0, number)),
    (24, array),
    (8, masked),
    (24, memoryview(array)),
    (bytes, array),
    (bytes, masked),
    (bytes, memoryview(array)),
    (bytes, memoryview(array).cast("B")),
    (Message, Message(array, 1, 2)),
    (Encoded(lambda record: record, bytes), array),
]
MANY = [
    (np.dtype("i8"), array),
    (np.dtype("i8"), array[::-1]),
    (np.dtype("i4"), array),
    (np.dtype("f8"), array),
    (np.dtype(">i8"), array),
    (np.dtype("f8"), [1.0, masked]),
    (np.dtype("f8"), iter([1.0, masked])),
    (np.dtype("f8"), np.array([1.0, masked], dtype=object)),
    (np.dtype(("i8", 3)), np.ma.array([array, array])),
    (STRUCTURED, pairs),
    (STRUCTURED, pairs[::-1]),
    (8, array),
]


def label(value):
    return re.sub(r"\s+", " ", repr(value))[:60]


def refuse_one(spec, record, match=None):
    first, second = memenpsf.pair(spec)
    with first, second:
        with pytest.raises(BadRecord, match=match):
            first.xmit(record, 0)
        with pytest.raises(BadRecord, match=match):
            first.xmit(record, 0, (), ())
        with pytest.raises(BadRecord, match=match):
            first.xmit_many([record], 0)
        with pytest.raises(BadRecord, match=match):
            first.xmit_many(iter((record,)))
        assert second.recv(0) is None
    sender, receiver = ipcqueue.pair(spec)
    with sender, receiver:
        with pytest.raises(BadRecord, match=match):
            sender.push(record, 0)
        with pytest.raises(BadRecord, match=match):
            sender.push_many((record,), 0)
        assert receiver.pop(0) is None


class TestMasked:
    MATCH = r"masked"

    @pytest.mark.parametrize(("spec", "record"), ONE, ids=label)
    def test_one_is_refused(self, spec, record):
        refuse_one(spec, record, self.MATCH)

    @pytest.mark.parametrize(("spec", "records"), MANY, ids=label)
    def test_a_batch_is_refused_as_a_whole(self, spec, records):
        first, second = memenpsf.pair(spec)
        with first, second:
            with pytest.raises(BadRecord, match=r"filled.*compressed"):
                first.xmit_many(records, 0)
            assert len(second.recv_vectored(timeout=0)) == 0

    @pytest.mark.parametrize(("spec", "record"), ONE[:1] + ONE[17:18] + ONE[29:30], ids=label)
    def test_under_trio_too(self, spec, record):

        async def main():
            ours, theirs = socket.socketpair()
            one = memenpsf.trio.Interface(ours, spec)
            other = memenpsf.trio.Interface(theirs, spec)
            async with one, other, trio.open_nursery() as nursery:
                nursery.start_soon(other.do_handshake)
                await one.do_handshake()
                with pytest.raises(BadRecord, match=r"filled.*compressed"):
                    await one.xmit(record)
                with pytest.raises(BadRecord, match=r"filled.*compressed"):
                    one.xmit_nowait(record)
                with pytest.raises(BadRecord, match=r"filled.*compressed"):
                    await one.xmit_many([record])

        trio.run(main)

    @pytest.mark.parametrize("mask", [False, [False, False]], ids=str)
    @pytest.mark.parametrize("spec", ["i8", "i4", "f8"])
    def test_where_nothing_is_masked_all_of_it_goes(self, spec, mask):
        first, second = memenpsf.pair(np.dtype(spec))
        with first, second:
            assert first.xmit_many(np.ma.array([1, 2], mask=mask)) == 2
            assert second.recv_vectored().tolist() == [1, 2]
            first.xmit(np.ma.array([1, 2], mask=mask)[1])
            assert second.recv() == 2

    def test_records_of_a_masked_array_that_are_whole_go(self):
        first, second = memenpsf.pair(STRUCTURED)
        with first, second:
            first.xmit(pairs[0])
            first.xmit_many(pairs[:1])
            assert second.recv_vectored().tolist() == [(1, 2.0)] * 2

    def test_the_remedies_work(self):
        first, second = memenpsf.pair(np.dtype("i8"))
        with first, second:
            first.xmit_many(array.filled(-1))
            first.xmit_many(array.compressed())
            assert second.recv_vectored().tolist() == [1, -1, 3, 1, 3]


def read_only(array):
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    "records",
    [
        np.array([1, 2], ">i8"),
        np.array([1, 0, 2, 0], "i8")[::2],
        np.array([2, 1], "i8")[::-1],
        read_only(np.array([1, 2], "i8")),
        np.array([1, 2], "i8").view(np.recarray),
        np.array([1, 2], "u1"),
        np.array([1, 2], "i8").view(type("Derived", (np.ndarray,), {})),
        deque([1, 2]),
        range(1, 3),
    ],
    ids=label,
)
def test_other_kinds_of_arrays_hide_nothing_and_go(records):
    first, second = memenpsf.pair(np.dtype("i8"))
    with first, second:
        assert first.xmit_many(records) == 2
        assert second.recv_vectored().tolist() == [1, 2]
        for record in records:
            first.xmit(record)
        assert second.recv_vectored().tolist() == [1, 2]


@pytest.mark.parametrize("records", [np.array([], "i8"), np.ma.array([], "i8"), []], ids=label)
def test_nothing_is_nothing(records):
    first, second = memenpsf.pair(np.dtype("i8"))
    with first, second:
        assert first.xmit_many(records) == 0


@pytest.mark.parametrize(
    "record", [np.array(7), np.ma.array(7), np.int8(7), np.array([7])[0], 7], ids=label
)
def test_a_number_without_shape_is_a_record(record):
    first, second = memenpsf.pair(np.dtype("i8"))
    with first, second:
        first.xmit(record)
        assert second.recv() == 7


def test_a_matrix_is_a_record_of_its_shape_and_no_batch():
    matrix = np.array([[1, 2], [3, 4]], "i8").view(np.matrix)
    first, second = memenpsf.pair(np.dtype(("i8", (2, 2))))
    with first, second:
        first.xmit(matrix)
        assert second.recv().tolist() == [[1, 2], [3, 4]]
    first, second = memenpsf.pair(np.dtype("i8"))
    with first, second, pytest.raises(BadRecord, match="record 0"):
        first.xmit_many(matrix)


POINTERS = {
    "objects": np.array([print], dtype=object),
    "record with an object": np.zeros(1, [("o", "O")])[0],
    "nested objects": np.zeros(1, [("a", [("b", "O", 1)])]),
    "union": Union(1),
    "structure": Holder(),
    "c_void_p": ctypes.c_void_p(1),
    "c_char_p": (ctypes.c_char_p * 1)(b"x"),
    "c_wchar_p": (ctypes.c_wchar_p * 1)("x"),
    "POINTER": (ctypes.POINTER(ctypes.c_int) * 1)(),
    "py_object": ctypes.py_object(print),
    "functions": (ctypes.CFUNCTYPE(None) * 1)(),
    "memoryview": memoryview(Union(1)),
}


class TestPointers:
    @pytest.mark.parametrize("what", POINTERS)
    @pytest.mark.parametrize(
        "spec", [8, bytes, Encoded(lambda record: record, bytes)], ids=["8", "bytes", "Encoded"]
    )
    def test_their_bytes_are_refused(self, spec, what):
        refuse_one(spec, POINTERS[what], "pointers into this process")

    @pytest.mark.parametrize("what", POINTERS)
    def test_in_messages_too(self, what):
        refuse_one(Message, Message(POINTERS[what]), "pointers into this process")

    @pytest.mark.parametrize("what", POINTERS)
    @pytest.mark.parametrize(
        ("spec", "wrap"),
        [
            ("u8", lambda value: value),
            ("V8", lambda value: value),
            (("u8", 1), lambda value: value),
            ([("v", "u8")], lambda value: (value,)),
            ([("v", "V8")], lambda value: (value,)),
            ([("v", "u8", 1)], lambda value: ([value],)),
            ([("v", "V8", 1)], lambda value: (value,)),
        ],
    )
    def test_no_array_is_made_of_them(self, spec, wrap, what):
        refuse_one(np.dtype(spec), wrap(POINTERS[what]))

    @pytest.mark.parametrize("spec", ["<Q", "<8s"])
    @pytest.mark.parametrize("what", POINTERS)
    def test_struct_takes_none(self, spec, what):
        refuse_one(spec, (POINTERS[what],))

    @pytest.mark.parametrize("wrong", [POINTERS["union"], np.ma.array([128, 1], mask=[0, 1])])
    def test_nor_control_messages(self, wrong):
        first, second = memenpsf.pair("<Q")
        with first, second, pytest.raises(TypeError):
            first.send_ctrl_msg(memoryview(wrong))

    @pytest.mark.parametrize(
        "record",
        [
            bytearray(8),
            memoryview(bytes(16))[8:],
            np.zeros(8, "u1"),
            np.arange(1.0),
            np.zeros(4, ">u2"),
            np.zeros(1, "i4,f4"),
            np.float64(0),
            memoryview(np.zeros((2, 2), "u2")),
            (ctypes.c_int * 2)(),
            ctypes.c_double(),
            np.ma.array([1]),
        ],
        ids=label,
    )
    def test_memory_without_secrets_goes(self, record):
        want = memoryview(record).tobytes()
        for spec in (8, bytes):
            first, second = memenpsf.pair(spec)
            with first, second:
                first.xmit(record)
                assert first.xmit_many([record, record]) == 2
                assert second.recv_vectored() == [want] * 3

    def test_gaps_are_refused_as_before(self):
        for spec in (8, bytes):
            refuse_one(spec, np.zeros(16, "u1")[::2], "contiguous")


@pytest.mark.parametrize("code", "bBhHiIqQefd")
@pytest.mark.parametrize(
    "value",
    [
        np.int8(-5),
        np.uint64(2**64 - 1),
        np.int64(5),
        np.float16(1.5),
        np.float32(2),
        np.float64(-1),
    ],
    ids=repr,
)
def test_numbers_of_numpy_are_packed_as_struct_does(code, value):
    first, second = memenpsf.pair("<" + code)
    with first, second:
        try:
            want = struct.unpack("<" + code, struct.pack("<" + code, value))
        except (struct.error, OverflowError):
            with pytest.raises(BadRecord):
                first.xmit((value,))
            with pytest.raises(BadRecord, match="record 1"):
                first.xmit_many([(1,), (value,)])
        else:
            first.xmit((value,))
            first.xmit_many([(value,)])
            assert second.recv_vectored() == [want] * 2
