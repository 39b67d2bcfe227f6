"""The fields of a record at every door: what annotations mean, and what goes and comes in them."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import pytest

from memenpsf import BadRecord, f64, i64
from tests.kit.doors import one_way_scenario, scenario

INT64 = [-(2**63), -1, 0, 1, 2**63 - 1]


class Plain(NamedTuple):  # annotations are strings here
    n: int
    price: float
    on: bool


@dataclasses.dataclass
class PlainToo:
    n: int
    price: float
    on: bool


@dataclasses.dataclass
class Stated:
    n: i64
    price: f64
    on: bool


@pytest.mark.parametrize("cls", [Plain, PlainToo])
@one_way_scenario
async def test_plain_ints_have_64_bits_and_none_is_lost(door, cls):
    async with door.pair(cls) as (one, other):
        records = [cls(n, 0.1 + n, n > 0) for n in INT64]
        for record in records:
            await one.xmit(record)
        await one.xmit_many(records)
        assert [await other.recv() for _ in records] == records
        assert await other.recv_vectored() == records
        for wrong in (-(2**63) - 1, 2**63, 0.5, "1", None):
            with pytest.raises(BadRecord, match=r"^field 'n': "):
                await one.xmit(cls(wrong, 0.5, True), 0)
            with pytest.raises(BadRecord, match=r"^record 1: field 'n': "):
                await one.xmit_many([records[0], cls(wrong, 0.5, True)], 0)
        for wrong in ("0.5", None, 10**400):
            with pytest.raises(BadRecord, match=r"^field 'price': "):
                await one.xmit(cls(1, wrong, True), 0)
        with pytest.raises(BadRecord, match=r"^field 'on': .*True or False"):
            await one.xmit(cls(1, 0.5, 2), 0)
        assert await other.recv(0) is None


@pytest.mark.parametrize("other", ["<qd?", Stated, PlainToo])
@scenario
async def test_plain_annotations_fit_those_with_a_size(door, other):
    async with door.pair(one={"record": Plain}, other={"record": other}) as (one, two):
        await one.xmit(Plain(-5, 2.5, True))
        got = await two.recv()
        got = got if isinstance(got, tuple) else dataclasses.astuple(got)
        assert got == (-5, 2.5, True)
