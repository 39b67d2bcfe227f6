"""Bools at every door: what is taken for one, and what a peer may have written instead."""

from __future__ import annotations

import ctypes
import dataclasses
from typing import Annotated, NamedTuple

import numpy as np
import pytest

from memenpsf import BadRecord, u8
from tests.kit.doors import one_way_scenario, scenario

Truth = Annotated[bool, "?"]


class Flagged(NamedTuple):
    n: u8
    on: Truth
    off: Truth


@dataclasses.dataclass
class Set:
    n: u8
    on: Truth
    off: Truth


class Index:
    def __init__(self, value):
        self.value = value

    def __index__(self):
        return self.value


FLAGS = np.dtype([("n", "u1"), ("on", "?"), ("off", "?")])
MANY = 200  # more than the C code packs
KINDS = {
    "tuple": ("<B??", lambda on, off: (7, on, off), "item 2"),
    "list": ("B2?", lambda on, off: [7, on, off], "item 2"),
    "big-endian": (">2sHB??", lambda on, off: (b"", 1, 7, on, off), "item 4"),
    "many fields": (f"{MANY}B{MANY}?", lambda on, off: (0,) * MANY + (on, off) * 100, "item 201"),
    "NamedTuple": (Flagged, lambda on, off: Flagged(7, on, off), "field 'off'"),
    "plain tuple": (Flagged, lambda on, off: (7, on, off), "field 'off'"),
    "dataclass": (Set, lambda on, off: Set(7, on, off), "field 'off'"),
    "numpy": (FLAGS, lambda on, off: (7, on, off), "field 'off'"),
    "nested": (
        np.dtype([("in", [("n", "u1"), ("off", "?", 2)])]),
        lambda on, off: ((7, [on, off]),),
        "field 'in.off'",
    ),
    "alone": (np.dtype("?"), lambda on, off: off if on else on, ""),
}

TAKEN = [True, False, 0, 1, np.True_, np.False_, np.int8(1), np.uint64(0)]
# Called as numpy's, but of Python, which the C code must not run.
Spoof = type("numpy.bool", (), {"__bool__": lambda _: 1 / 0})
REFUSED = [
    Spoof(),
    2,
    -1,
    2**80,
    "False",
    "",
    b"\0",
    None,
    0.0,
    1.0,
    np.int8(2),
    np.float32(0),
    Index(2),
    1j,
]


def last(record):
    """The last value of a record, as a bool of Python; it is none of anything else."""
    if dataclasses.is_dataclass(record):
        record = dataclasses.astuple(record)
    while isinstance(record, tuple | list | np.void | np.ndarray):
        record = record[-1]
    assert isinstance(record, bool | np.bool_)
    return bool(record)


@pytest.mark.parametrize("kind", KINDS)
@one_way_scenario
async def test_a_truth_is_a_bool_or_0_or_1(door, kind):
    spec, make, _ = KINDS[kind]
    async with door.pair(spec) as (one, other):
        for taken in TAKEN:
            record = make(True, taken)
            await one.xmit(record)
            assert await one.xmit_many([record, record]) == 2
            assert await one.xmit_many(iter([record])) == 1
            got = [await other.recv(), *await other.recv_vectored()]
            assert [last(each) for each in got] == [bool(taken)] * 4


@pytest.mark.parametrize("kind", KINDS)
@one_way_scenario
async def test_nothing_else_is_sent_for_its_truth(door, kind):
    spec, make, where = KINDS[kind]
    good = make(True, False)
    async with door.pair(spec) as (one, other):
        for refused in REFUSED:
            told = rf"{where}.*True or False is expected.*pass bool\(value\)"
            with pytest.raises(BadRecord, match=told):
                await one.xmit(make(True, refused), 0)
            for records in ([good, make(True, refused)], iter([good, make(True, refused)])):
                with pytest.raises(BadRecord, match=f"^record 1: {told}"):
                    await one.xmit_many(records, 0)
        assert await other.recv(0) is None


# -- what came ----------------------------------------------------------------------------------------


class Flags(ctypes.Structure):
    _fields_ = (("n", ctypes.c_uint8), ("on", ctypes.c_bool * 11), ("off", ctypes.c_bool))


Row = NamedTuple("Row", [("n", u8), *((f"b{i}", Truth) for i in range(12))])
Line = dataclasses.make_dataclass("Line", [("n", u8), *((f"b{i}", Truth) for i in range(12))])
RAW = np.dtype([("n", "u1"), ("on", "?", 11), ("off", "?")])
RECEIVED = {
    "tuple": "<B12?",
    "native": "@B12?",
    "NamedTuple": Row,
    "dataclass": Line,
    "ctypes": Flags,
    "numpy": RAW,
    "record": np.dtype((np.record, RAW)),
}


def raw(count=60):
    """Records whose bools are bytes of any value, and what is to come of them."""
    data = np.arange(count * 13, dtype="u4").astype("u1").reshape(count, 13)
    data[::2, 3:9] = 0
    lawful = data.copy()
    lawful[:, 1:] = data[:, 1:] != 0
    return data.reshape(-1).view(RAW), [each.tobytes() for each in lawful]


def memory(record):
    """The bytes of a record that was received."""
    if isinstance(record, ctypes.Structure):
        return bytes(record)
    if isinstance(record, np.void):
        return record.tobytes()
    if dataclasses.is_dataclass(record):
        record = dataclasses.astuple(record)
    assert all(type(item) is bool for item in record[1:])
    return bytes(record)


@pytest.mark.parametrize("kind", RECEIVED)
@scenario
async def test_any_other_byte_of_the_peers_is_true(door, kind):
    sent, want = raw()
    async with door.pair(one={"record": RAW}, other={"record": RECEIVED[kind]}) as (one, other):
        await one.xmit_many(sent)
        got = [await other.recv() for _ in range(3)]
        got += [(await other.recv_message()).record]
        got += list(await other.recv_vectored(5)) + list(await other.recv_vectored())
        assert list(map(memory, got)) == want
        await one.xmit_many(sent)
        got = []
        async for record in other:
            got.append(record)
            if len(got) == len(want):
                break
        assert list(map(memory, got)) == want


@one_way_scenario
async def test_an_array_of_bools_is_normalised_and_belongs_to_the_receiver(door):
    async with door.pair(np.dtype("?"), capacity=1024) as (one, other):
        sent = np.arange(500, dtype="u2").astype("u1").view("?")
        await one.xmit_many(sent)
        got = await other.recv_vectored()
        assert got.view("u1").tolist() == (sent.view("u1") != 0).tolist()
        assert got.flags.writeable
        assert np.count_nonzero(got) == np.count_nonzero(got.view("u1"))
        await one.xmit(sent[2])
        assert (await other.recv()) is np.True_


@one_way_scenario
async def test_bools_are_borrowed_as_a_copy_which_the_peer_cannot_write(door):
    sent, want = raw()
    async with door.pair(RAW, capacity=512) as (one, other):
        await one.xmit_many(sent)
        async with other.borrow() as borrowed:
            data = borrowed.data
            assert list(map(memory, data)) == want
            assert not data.flags.writeable
            assert data.dtype == RAW
        assert list(map(memory, data)) == want  # no memory of the ring, so it may be kept
        async with one.loan(3) as loan:  # memory of the ring
            loan.data["n"] = [1, 2, 3]
            loan.data["on"] = True
            loan.data["off"].view("u1")[:] = [0, 1, 200]
            del loan
        assert (await other.recv_vectored())["off"].view("u1").tolist() == [0, 1, 1]


@one_way_scenario
async def test_records_without_bools_are_borrowed_in_place(door):
    async with door.pair(np.dtype("u1")) as (one, other):
        await one.xmit_many(np.array([1, 2, 3], "u1"))
        async with other.borrow() as borrowed:
            assert borrowed.data.base is not None
            assert not borrowed.data.flags.owndata
            assert isinstance(borrowed.data.base, memoryview)
