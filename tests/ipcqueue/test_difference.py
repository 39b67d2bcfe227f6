"""What an error says of two layouts: where they differ first, and what each side has there."""

import ctypes
from typing import Annotated, NamedTuple

import numpy as np
import pytest

from ipcqueue._records.difference import difference
from ipcqueue._records.fields import f32, f64, u16, u32, u64
from ipcqueue._records.names import NO_NAMES
from ipcqueue._records.spec import codec_for


class Quote(NamedTuple):
    number: u64
    price: f64
    symbol: Annotated[str, "8s"]
    sizes: Annotated[list[u32], 2]


class Narrow(NamedTuple):
    number: u64
    price: f32


class Swapped(NamedTuple):
    number: u64
    symbol: Annotated[str, "8s"]
    price: f64


class Longer(NamedTuple):
    number: u64
    price: f64
    symbol: Annotated[str, "12s"]


class Fewer(NamedTuple):
    number: u64
    price: f64
    symbol: Annotated[str, "8s"]
    sizes: Annotated[list[u16], 2]


class Aligned(ctypes.Structure):
    _fields_ = (("number", ctypes.c_uint8), ("price", ctypes.c_double))


INSIDE = np.dtype([("level", [("bid", "f4"), ("size", "u4")], 3)])
FIRST = "they differ first at byte "


@pytest.mark.parametrize(
    ("one", "other", "says"),
    [
        (Quote, Narrow, "8: f64 'price' here, f32 'price' there"),
        (Quote, Swapped, "8: f64 'price' here, char 'symbol' there"),
        (Quote, Longer, "24: u32 'sizes' here, char behind 'symbol' there"),
        (Quote, Fewer, "24: u32 'sizes' here, u16 'sizes' there"),
        (Quote, "<Qd8sI", "28: u32 behind 'sizes' here, nothing there"),
        (Quote, "<Qd8sII4x", "32: nothing here, padding there"),
        (Quote, "<Qd8sIIB", "32: nothing here, u8 there"),
        (Quote, 32, "0: u64 'number' here, char there"),
        (Quote, "<Q4xd", "8: f64 'price' here, padding there"),
        (Aligned, "<Bd", "1: padding behind 'number' here, f64 there"),
        (Aligned, np.dtype([("number", "u1"), ("price", "f8")]),
         "1: padding behind 'number' here, f64 'price' there"),
        (INSIDE, np.dtype((INSIDE["level"].base, 2)), "16: f32 behind 'level.size' here, nothing there"),
        ("<4I", ">4I", "0: u32 here, u32be there"),
        ("<q", np.dtype("M8[25s]"), "0: i64 here, datetime64(25s) there"),
        ("<4x", "<8x", "4: nothing here, padding there"),
    ],
)  # fmt: skip
def test_the_first_difference_is_said_with_what_both_sides_have_there(one, other, says):
    mine, theirs = codec_for(one), codec_for(other)
    told = difference(
        mine.layout.description, theirs.layout.description, mine.names, theirs.names.table
    )
    assert told == FIRST + says


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        ("8 bytes: 0:u64", "messages of any length"),
        ("messages of any length", "8 bytes: 0:u64"),
        ("8 bytes: 0:u64", ""),
        ("8 bytes: 0:u64", "8 bytes: 0:u64"),
        ("8 bytes: 0:u32 ...", "8 bytes: 0:u32 4:u16"),
        ("8 bytes: 0:u32 4:u16", "8 bytes: 0:u32 ..."),
        ("8 bytes: 0:u32 ...", "8 bytes: 0:u32 ..."),
        ("8 bytes: 0:u64", "9" * 600 + " bytes: 0:u64"),
    ],
)
def test_nothing_is_said_where_nobody_knows(mine, theirs):
    assert difference(mine, theirs, NO_NAMES, NO_NAMES.table) == ""


@pytest.mark.parametrize(
    "theirs",
    ["8 bytes:", "8 bytes: 0:u64[0]", "0008 bytes: 0:u[]", "8 bytes: 0:u0[999999999999999999]",
     "8 bytes: " + "0:u64 " * 80, "8 bytes: 0:u64[" + "9" * 480],
)  # fmt: skip
def test_whatever_the_peer_states_is_no_error(theirs):
    names = codec_for(Quote).names
    for table in (names.table, NO_NAMES.table, b"\xff" * len(names.table)):
        difference("8 bytes: 0:u64", theirs, names, table)
        difference("8 bytes: 0:u0[7]", theirs, names, table)
