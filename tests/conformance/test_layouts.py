"""What two sides state of a record, at every door: when they meet, and when they are refused."""

from __future__ import annotations

import ctypes
import dataclasses
import socket
from typing import NamedTuple

import numpy as np
import pytest

import memenpsf
from memenpsf import f64
from tests.kit.doors import scenario


async def introduced(door, one, other):
    """Return the calls that introduce two sides to each other, each with a record of its own."""
    async with door.tasks() as group:
        return [
            group.start(door.interface, sock, record)
            for sock, record in zip(socket.socketpair(), (one, other), strict=True)
        ]


async def refusals(door, one, other):
    """Return what two sides are told that do not fit."""
    errors = [call.error for call in await introduced(door, one, other)]
    assert [type(error) for error in errors] == [memenpsf.RecordRefused] * 2
    return [str(error) for error in errors]


@pytest.mark.parametrize(
    ("one", "other", "says_one", "says_other"),
    [
        ("M8[s]", "M8[ns]", "0:datetime64(s)", "0:datetime64(ns)"),
        ("M8[25s]", "M8[s]", "0:datetime64(25s)", "0:datetime64(s)"),
        ("m8[ms]", ">m8[us]", "0:timedelta64(ms)", "0:timedelta64(us)be"),
        ("M8[ns]", "m8[ns]", "0:datetime64(ns)", "0:timedelta64(ns)"),
        ("M8[ns]", "i8", "0:datetime64(ns)", "0:i64"),
    ],
)
@scenario
async def test_times_of_another_unit_are_refused(door, one, other, says_one, says_other):
    for told in await refusals(door, np.dtype(one), np.dtype(other)):
        assert f"[8 bytes: {says_one}]" in told
        assert f"[8 bytes: {says_other}]" in told


@pytest.mark.parametrize(("one", "other"), [("m8[ms]", "m8[1000us]"), ("M8[60s]", "M8[m]")])
@scenario
async def test_times_of_one_unit_meet_however_it_is_spelt(door, one, other):
    async with door.pair(one={"record": np.dtype(one)}, other={"record": np.dtype(other)}) as pair:
        sender, receiver = pair
        for value in (np.array(90, one)[()], np.array("NaT", one)[()]):
            await sender.xmit(value)
            await sender.xmit_many(np.array([value, value]))
            for got in [await receiver.recv(), *await receiver.recv_vectored()]:
                assert got.dtype == np.dtype(other)
                assert got == value or (np.isnat(got) and np.isnat(value))


class Bid(NamedTuple):
    bid: f64
    ask: f64


@dataclasses.dataclass
class Ask:
    ask: f64
    bid: f64


class Asked(ctypes.Structure):
    _fields_ = (("ask", ctypes.c_double), ("bid", ctypes.c_double))


class Other(NamedTuple):
    price: f64
    size: f64


SWAPPED = np.dtype([("ask", "f8"), ("bid", "f8")])
NESTED = np.dtype([("quote", [("bid", "f8"), ("ask", "f8")])])


@pytest.mark.parametrize(
    "other", [Ask, Asked, SWAPPED, NamedTuple("Half", [("ask", f64), ("x", f64)])]
)
@scenario
async def test_fields_that_are_swapped_are_refused_by_their_names(door, other):
    for told in await refusals(door, Bid, other):
        assert "one layout, and other names" in told
    here, there = await refusals(door, Bid, other)
    assert "field 'ask' is at byte 8 here, and at byte 0 of the peer's" in here
    assert "field 'ask' is at byte 0 here, and at byte 8 of the peer's" in there
    assert ("'bid'" in here) == (getattr(other, "__name__", "") != "Half")


@pytest.mark.parametrize(
    "other",
    ["<dd", "<2d", np.dtype("f8,f8"), np.dtype(("f8", 2)), np.dtype("c16"), Other, NESTED, Bid,
     np.dtype([("bid", "f8"), ("ask", "f8")]), np.dtype([("bid", "f8"), ("more", "f8")])],
    ids=str,
)  # fmt: skip
@scenario
async def test_names_that_only_one_side_states_count_for_nothing(door, other):
    async with door.pair(one={"record": Bid}, other={"record": other}) as (one, two):
        await one.xmit(Bid(1.0, 2.0))
        got = await two.recv()
        if isinstance(other, np.dtype):
            assert got.tobytes() == np.array([1.0, 2.0]).tobytes()
        else:
            assert tuple(got) == (1.0, 2.0)


def many(*order):
    return NamedTuple("Many", [(f"field{n}", f64) for n in order])


@scenario
async def test_of_more_than_64_names_all_are_compared_if_they_are_the_same(door):
    there = await refusals(door, many(*range(70)), many(*range(68), 69, 68))
    assert all("the same 70 names are in another order behind the 64th" in each for each in there)
    there = await refusals(door, many(*range(70)), many(1, 0, *range(2, 69), 70))
    assert all("field 'field0' is at byte" in each for each in there)
    renamed = many(*range(68), 70, 71)
    async with door.pair(one={"record": many(*range(70))}, other={"record": renamed}) as (one, two):
        await one.xmit(tuple(range(70)))
        assert tuple(await two.recv()) == tuple(range(70))
