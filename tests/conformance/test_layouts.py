"""What two sides state of a record, at every door: when they meet, and when they are refused."""

from __future__ import annotations

import socket

import numpy as np
import pytest

import memenpsf
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
