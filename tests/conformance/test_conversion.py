"""What is given to xmit in another dtype than the record's: converted, or refused by the field."""

from __future__ import annotations

import numpy as np
import numpy.ma
import pytest

import memenpsf
from ipcqueue._records import arrays
from memenpsf import BadRecord
from tests.kit.connected import connection
from tests.kit.doors import one_way_scenario

POINT = np.dtype([("x", "<f4"), ("y", "<f4")])
QUOTE = np.dtype(
    [("number", "<u4"), ("on", "?"), ("at", "M8[us]"), ("price", "<f8", 2), ("points", POINT, 2)],
    align=True,
)


def put(into, value):
    """Assign by the names of fields, also in records within records, where numpy counts them."""
    for name in into.dtype.names:
        if into[name].dtype.names:
            put(into[name], value[name])
        else:
            into[name] = value[name]


def alike(dtype, count=5):
    """The same records in any of the dtypes below; what is between the fields is zero."""
    plain = np.zeros(count, [(name, QUOTE.fields[name][0]) for name in QUOTE.names])
    plain["number"], plain["on"], plain["at"] = range(count), [0, 1, 0, 1, 0], range(0, 5000, 1000)
    plain["price"] = [[n, -n] for n in range(count)]
    plain["points"]["x"], plain["points"]["y"] = [[1, 2]] * count, [[n, 0.5] for n in range(count)]
    records = np.zeros(count, dtype)
    put(records, plain)
    return records


def other(**changes):
    """A dtype of the same fields, but for the changes; packed."""
    formats = {
        "number": "<u4",
        "on": "?",
        "at": "M8[us]",
        "price": ("<f8", 2),
        "points": (POINT, 2),
    }
    formats.update(changes)
    return np.dtype([(name, form) for name, form in formats.items() if form is not None])


ALIKE = {
    "the same": QUOTE,
    "packed": other(),
    "big-endian": other().newbyteorder(">"),
    "in another order": np.dtype([(name, QUOTE.fields[name][0]) for name in QUOTE.names[::-1]]),
    "with gaps": np.dtype(
        {
            "names": [*QUOTE.names],
            "formats": [QUOTE.fields[name][0] for name in QUOTE.names],
            "offsets": [200, 4, 8, 16, 64],
            "itemsize": 300,
        }
    ),
    "wider": other(number="<i8", price=("<f4", 2)),
    "of ints": other(price=(">i2", 2), on="u1"),
    "of other times": other(at="M8[ms]"),
    "of other points": other(points=([("y", ">f8"), ("more", "V0"), ("x", "f2")][::2], 2)),
    "a record": np.dtype((np.record, other())),
}


@pytest.mark.parametrize("kind", ALIKE)
@one_way_scenario
async def test_records_of_an_alike_dtype_are_converted(door, kind):
    want, given = alike(QUOTE), alike(ALIKE[kind])
    given.view("u1").reshape(5, -1)[:, gaps(given.dtype)] = 255  # must not be sent
    async with door.pair(QUOTE) as (one, two):
        for record in given:
            await one.xmit(record)
            await one.xmit(np.array(record))  # an array without a shape
        await one.xmit_many(given)
        await one.xmit_many(given[::2])
        await one.xmit_many(list(given))
        got = await two.recv_vectored()
        assert got.dtype == QUOTE
        if kind == "the same":
            got.view("u1").reshape(len(got), -1)[:, gaps(QUOTE)] = 0
        # Bytes, as numpy's copies leave old memory in gaps.
        one_by_one = [record.tobytes() for record in want]
        twice = [each for each in one_by_one for _ in range(2)]
        expected = [*twice, *one_by_one, *one_by_one[::2], *one_by_one]
        assert [record.tobytes() for record in got] == expected


def gaps(dtype):
    """Which bytes of a record are in no field."""
    used = np.zeros(dtype.itemsize, bool)
    for name in dtype.names:
        inner, at = dtype.fields[name][:2]
        used[at : at + inner.itemsize] = True
    return ~used


@one_way_scenario
async def test_an_array_is_converted_all_at_once(door, monkeypatch):
    calls = []
    fill = arrays._numpy_fill
    monkeypatch.setattr(arrays, "_numpy_fill", lambda *args: calls.append(args) or fill(*args))
    async with door.pair(QUOTE) as (one, two):
        assert await one.xmit_many(alike(other()).repeat(50)) == 250
        got = await two.recv_vectored()
        assert got["number"].tolist() == alike(QUOTE)["number"].repeat(50).tolist()
    assert len(calls) <= 1 + len(QUOTE.names) + len(POINT.names)


MISFITS = {
    "missing": (other(price=None), "the void has no field 'price'"),
    "more": (other(more="u1"), "the void has another field, 'more'"),
    "negative": (other(number="<i4"), "field 'number': "),
    "large": (other(number="<u8"), "field 'number': a value does not fit uint32"),
    "fractions": (other(number="<f8"), "field 'number': float64 where uint32 is expected"),
    "no truth": (other(on="u1"), "field 'on': 2 where True or False"),
    "finer times": (other(at="M8[ns]"), r"field 'at': a value does not fit datetime64\[us\]"),
    "durations": (other(at="m8[us]"), "field 'at': "),
    "text": (other(price=("S8", 2)), "field 'price': "),
    "shape": (other(price=("<f8", 3)), r"field 'price': shape \(3,\) where \(2,\)"),
    "flat": (other(price="<f8"), r"field 'price': shape \(\) where \(2,\)"),
    "points": (other(points=("<f4", 2)), "field 'points': ndarray where"),
    "a point": (other(points=(POINT, 3)), r"field 'points': shape \(3,\) where \(2,\)"),
    "of a point": (other(points=([("x", "<f4")], 2)), "field 'points': .* has no field 'y'"),
    "in a point": (other(points=([("x", "<f8"), ("y", "S4")], 2)), "field 'points.y': "),
}


def filled(kind):
    """Three records of the kind, of which the second does not fit."""
    dtype = MISFITS[kind][0]
    given = np.zeros(3, dtype)
    if "at" in dtype.names:
        given["at"] = 0
    given["number"][1] = {"negative": -1, "large": 1 << 32}.get(kind, 1)
    if kind == "no truth":
        given["on"][1] = 2
    if kind == "finer times":
        given["at"][1] = np.datetime64(1, "ns")
    return given


@pytest.mark.parametrize("kind", MISFITS)
@one_way_scenario
async def test_what_would_be_lost_is_refused_and_the_field_is_named(door, kind):
    given, told = filled(kind), MISFITS[kind][1]
    async with door.pair(QUOTE) as (one, two):
        with pytest.raises(BadRecord, match=f"^{told}"):
            await one.xmit(given[1], 0)
        told = told.replace("void", "(void|ndarray)")
        for records in (given, list(given), iter(given)):
            with pytest.raises(BadRecord, match=rf"^record [01]: {told}"):
                await one.xmit_many(records, 0)
        assert await two.recv(0) is None


@one_way_scenario
async def test_masked_records_of_another_dtype_are_refused(door):
    masked = np.ma.array(alike(other()))
    masked[1] = np.ma.masked
    async with door.pair(QUOTE) as (one, two):
        with pytest.raises(BadRecord, match="masked"):
            await one.xmit_many(masked)
        with pytest.raises(BadRecord, match="masked"):
            await one.xmit(masked[1])
        assert await two.recv(0) is None
        await one.xmit(masked[2])
        assert (await two.recv())["number"] == 2


@one_way_scenario
async def test_an_array_of_times_is_converted(door):
    async with door.pair(np.dtype("m8[us]")) as (one, two):
        assert await one.xmit_many(np.array([1, 2, "NaT"], "m8[ms]")) == 3
        assert (await two.recv_vectored()).astype("i8").tolist() == [1000, 2000, -(2**63)]


def test_the_layouts_of_two_sides_must_be_equal_all_the_same():
    with pytest.raises(memenpsf.RecordRefused), connection(QUOTE, other={"record": other()}):
        pass
