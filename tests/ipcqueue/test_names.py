"""The names of fields that a side states: the table, and what two tables say to each other."""

import ctypes
import dataclasses
import re
import struct
from hashlib import blake2b
from typing import Annotated, NamedTuple

import numpy as np
import pytest

from ipcqueue._records.fields import f64, u8, u32
from ipcqueue._records.names import MAX_NAMES, NO_NAMES, check_names, names_of
from ipcqueue._records.spec import codec_for

SIZE = 8 * (3 + 2 * MAX_NAMES)


def hashed(*texts):
    """The hash of a name, as docs/protocol.md says it; of several, each ends with a zero byte."""
    data = texts[0].encode() if len(texts) == 1 else b"".join(t.encode() + b"\0" for t in texts)
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little")


def table(*words):
    return struct.pack(f"<{len(words)}Q", *words).ljust(SIZE, b"\0")


class Quote(NamedTuple):
    number: u32
    bid: f64
    symbol: Annotated[bytes, "8s"]
    on: bool


@dataclasses.dataclass
class QuoteToo:
    number: u32
    bid: f64
    symbol: Annotated[bytes, "8s"]
    on: bool


class Packed(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (
        ("number", ctypes.c_uint32),
        ("bid", ctypes.c_double),
        ("symbol", ctypes.c_char * 8),
        ("nothing", ctypes.c_int * 0),
        ("on", ctypes.c_bool),
    )


PACKED = np.dtype([("number", "u4"), ("bid", "f8"), ("symbol", "S8"), ("no", "u1", 0), ("on", "?")])


@pytest.mark.parametrize("spec", [Quote, QuoteToo, Packed, PACKED, np.dtype((np.record, PACKED))])
def test_a_field_has_one_name_whatever_states_it(spec):
    names = codec_for(spec).names
    assert names.fields == ((0, "number"), (4, "bid"), (12, "symbol"), (20, "on"))
    entries = [n for offset, name in names.fields for n in (hashed(name), offset)]
    assert names.table == table(4, 0, 0, *entries)


class Point(ctypes.Structure):
    _fields_ = (("x", ctypes.c_float), ("y", ctypes.c_float))


class Path(Point):
    _fields_ = (("points", (Point * 3) * 2), ("n", ctypes.c_uint8 * 4))


def test_fields_of_records_in_records_have_paths_and_an_array_those_of_its_first_item():
    want = ((0, "x"), (4, "y"), (8, "points.x"), (12, "points.y"), (56, "n"))
    point = np.dtype([("x", "f4"), ("y", "f4")])
    path = np.dtype([("x", "f4"), ("y", "f4"), ("points", point, (2, 3)), ("n", "u1", 4)])
    assert codec_for(Path).names == codec_for(path).names
    assert codec_for(path).names.fields == want
    assert codec_for(np.dtype((point, 4))).names.fields == want[:2]
    big = np.dtype({"names": ["b", "a"], "formats": [">u4", "u1"], "offsets": [4, 0]})
    assert codec_for(big).names.fields == ((0, "a"), (4, "b"))


@pytest.mark.parametrize(
    "spec",
    [8, "<QI", bytes, np.dtype("u8"), np.dtype(("u8", 3)), np.dtype("u8,f8"), ctypes.c_int * 3],
    ids=str,
)
def test_a_record_without_names_states_none(spec):
    assert codec_for(spec).names == NO_NAMES
    assert NO_NAMES.table == bytes(SIZE)


def test_names_that_numpy_makes_up_are_none_and_others_like_them_are():
    assert codec_for(np.dtype([("f0", "u1"), ("f1", "u1")])).names == NO_NAMES
    assert codec_for(np.dtype([("f1", "u1"), ("f0", "u1")])).names.fields == ((0, "f1"), (1, "f0"))
    assert codec_for(np.dtype([("in", "u1,u1"), ("f1", "u1")])).names.fields == ((2, "f1"),)


def test_a_name_that_occurs_twice_counts_for_nothing():
    twice = np.dtype([("a.b", "u1"), ("a", [("b", "u1"), ("c", "u1")]), ("d", "u1")])
    assert codec_for(twice).names.fields == ((2, "a.c"), (3, "d"))
    assert codec_for(np.dtype([("a.b", "u1"), ("a", [("b", "u1")])])).names == NO_NAMES


def test_a_name_may_be_any_text():
    odd = np.dtype([("ä", "u1"), ("\ud800", "u1"), ("a b\n", "u1")])
    assert codec_for(odd).names.table[24:32] == hashed("ä").to_bytes(8, "little")


def numbered(count, *, swap=(), rename=()):
    names = [f"n{i:03}" for i in range(count)]
    for one, other in swap:
        names[one], names[other] = names[other], names[one]
    for number in rename:
        names[number] += "_"
    return names_of(enumerate(names))


def test_of_many_names_64_are_stated_one_by_one_and_all_at_once():
    names = numbered(100)
    count, total, placed, *entries = struct.unpack(f"<{SIZE // 8}Q", names.table)
    assert count == 100
    assert total == hashed(*(f"n{i:03}" for i in range(100)))
    assert placed == hashed(*(f"{i} n{i:03}" for i in range(100)))
    assert entries[::2] == [hashed(f"n{i:03}") for i in range(64)]
    assert entries[1::2] == list(range(64))
    assert struct.unpack_from("<3Q", numbered(64).table) == (64, 0, 0)


@pytest.mark.parametrize(
    ("one", "other", "says"),
    [
        ([(0, "a"), (8, "b")], [(0, "a"), (8, "b")], ""),
        ([(0, "a"), (8, "b")], [], ""),
        ([], [(0, "a"), (8, "b")], ""),
        ([(0, "a"), (8, "b")], [(0, "x"), (8, "y")], ""),
        ([(0, "a"), (8, "b")], [(0, "a"), (8, "y")], ""),
        ([(0, "a"), (8, "b")], [(8, "b")], ""),
        ([(0, "a")], [(0, "b"), (8, "a")], "field 'a' is at byte 0 here, and at byte 8 of"),
        (
            [(0, "a"), (8, "b")],
            [(0, "b"), (8, "a")],
            "'a' is at byte 0 .*; field 'b' is at byte 8 ",
        ),
        ([(n, f"n{n}") for n in range(9)], [(8 - n, f"n{n}") for n in range(9)], "; 4 more are "),
    ],
)
def test_a_name_that_both_state_at_different_offsets_is_found(one, other, says):
    one, other = names_of(one), names_of(other)
    for mine, theirs in ((one, other), (other, one)):
        found = check_names(mine, theirs.table, 16)
        assert bool(found) == bool(says)
    assert re.search(says, check_names(one, other.table, 16))


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, ""),
        ({"rename": [3]}, ""),
        ({"rename": [70]}, ""),
        ({"swap": [(2, 3)]}, "field 'n002' is at byte 2"),
        ({"swap": [(2, 70)]}, "the same 100 names are in another order"),
        ({"swap": [(70, 71)]}, "the same 100 names are in another order behind the 64th"),
        ({"swap": [(2, 3)], "rename": [70]}, "field 'n002' is at byte 2"),
        ({"swap": [(70, 71)], "rename": [80]}, ""),  # which of them, the hashes do not tell
    ],
)
def test_of_many_names_the_first_are_compared_and_all_if_they_are_the_same(changes, found):
    one, other = numbered(100), numbered(100, **changes)
    for mine, theirs in ((one, other), (other, one)):
        assert check_names(mine, theirs.table, 100).startswith(found[:9])
    assert check_names(one, other.table, 100).startswith(found)
    assert bool(check_names(one, other.table, 100)) == bool(found)
    for few in (numbered(64), numbered(5)):
        assert check_names(few, one.table, 100) == check_names(one, few.table, 100) == ""


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((3,), "3 names in a record of 2 bytes"),
        (((1 << 64) - 1, 1, 1), "names in a record of 2 bytes"),
        ((0, 1), "more than its 0"),
        ((0, 0, 1), "more than its 0"),
        ((0, 0, 0, 1), "more than its 0"),
        ((1, 0, 0, 5, 0, 0, 1), "more than its 1"),
        ((1, 0, 0, 5, 2), "reach beyond"),
        ((2, 0, 0, 5, 1, 6, 1), "do not grow"),
        ((2, 0, 0, 5, 1, 6, 0), "do not grow"),
        ((2, 0, 0, 5, 0, 6, 1 << 63), "reach beyond"),
    ],
)
def test_a_table_that_nobody_makes_is_no_table(words, says):
    for mine in (NO_NAMES, names_of([(0, "a"), (1, "b")])):
        with pytest.raises(ValueError, match=says):
            check_names(mine, table(*words), 2)


def test_any_other_hash_is_a_name():
    assert check_names(NO_NAMES, table(2, 0, 0, 0, 0, 0, 1), 2) == ""
    assert check_names(names_of([(0, "a")]), table(1, 0, 0, hashed("a"), 1), 2) != ""


def test_offsets_and_names_count_up_to_the_size_of_the_record():
    class Bytes(NamedTuple):
        a: u8
        b: u8

    names = codec_for(Bytes).names
    assert check_names(names_of([(0, "b"), (1, "a")]), names.table, 2) != ""
    with pytest.raises(ValueError, match="reach beyond"):
        check_names(NO_NAMES, names.table[:16] + table(0, 5, 0, 6, 2)[: SIZE - 16], 2)
