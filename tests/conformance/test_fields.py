"""The fields of a record at every door: what annotations mean, and what goes and comes in them."""

from __future__ import annotations

import ctypes
import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import math
import pathlib
import subprocess
import sys
import uuid
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple, get_type_hints

import attrs
import numpy as np
import numpy.ma
import pytest

import memenpsf
from ipcqueue._records.spec import codec_for
from memenpsf import BadRecord, f64, i64, u16, u32
from tests.kit.doors import one_way_scenario, scenario

try:
    import msgspec
except ImportError:  # of an extra
    msgspec = None

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


# -- records in records -------------------------------------------------------------------------------


class Level(NamedTuple):
    price: f64
    lots: u16


@dataclasses.dataclass
class Side:
    best: Level
    total: int

    def __post_init__(self):
        if self.total < 0:
            raise ValueError("a negative total")


class Book(NamedTuple):
    number: u32
    bid: Side
    ask: Side


@dataclasses.dataclass
class BookToo:
    number: u32
    bid: Side
    ask: Side


BOOK = np.dtype(
    [("number", "u4"), *((side, [("best", [("price", "f8"), ("lots", "u2")]), ("total", "i8")]) for side in ("bid", "ask"))]
)  # fmt: skip


async def both_ways(door, spec, records):
    """Records go and come by every verb; return what came at last."""
    async with door.pair(spec) as (one, other):
        for record in records:
            await one.xmit(record)
            assert await other.recv() == record
        await one.xmit_many(records)
        await one.xmit_many(iter(records))
        assert await other.recv_vectored() == [*records, *records]
        await one.xmit_many(records)
        got = []
        async for record in other:
            got.append(record)
            if len(got) == len(records):
                break
        assert got == records
        await one.xmit(records[0])
        assert (await other.recv_message()).record == records[0]
    return got


async def refused(door, spec, record, told, good):
    """A record is refused by every verb, and nothing of it is sent."""
    async with door.pair(spec) as (one, other):
        with pytest.raises(BadRecord, match=f"^{told}"):
            await one.xmit(record, 0)
        for records in ([good, record], iter([good, record])):
            with pytest.raises(BadRecord, match=f"^record 1: {told}"):
                await one.xmit_many(records, 0)
        assert await other.recv(0) is None


@pytest.mark.parametrize("cls", [Book, BookToo])
@one_way_scenario
async def test_records_in_records_arrive_as_they_were(door, cls):
    records = [cls(n, Side(Level(0.5, n), 1), Side(Level(1.5, 7), -n + 5)) for n in range(5)]
    for got in await both_ways(door, cls, records):
        assert type(got) is cls
        assert type(got.bid) is type(got.ask) is Side
        assert type(got.bid.best) is Level


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"bid": Level(0.5, 1)}, "field 'bid': Level where Side is expected"),
        ({"bid": None}, "field 'bid': NoneType where Side is expected"),
        ({"bid": Side((0.5,), 1)}, "field 'bid': field 'best': 1 items where 2 are expected"),
        ({"ask": Side(Level(0.5, 65536), 1)}, "field 'ask.best.lots': "),
        ({"ask": Side(Level(0.5, 1), 2**63)}, "field 'ask.total': "),
        ({"ask": Side([0.5, 1], 1)}, "field 'ask': field 'best': list where Level is expected"),
    ],
)
@pytest.mark.parametrize("cls", [Book, BookToo])
@one_way_scenario
async def test_a_value_in_a_record_in_a_record_is_checked_and_named(door, cls, changes, told):
    good = {"number": 1, "bid": Side(Level(0.5, 1), 2), "ask": Side(Level(0.5, 1), 2)}
    await refused(door, cls, cls(**(good | changes)), told, cls(**good))


@scenario
async def test_records_in_records_fit_those_of_numpy(door):
    async with door.pair(one={"record": BOOK}, other={"record": Book}) as (one, two):
        book = (1, ((0.5, 2), 3), ((1.5, 4), 5))
        await one.xmit(book)
        assert await two.recv() == Book(1, Side(Level(0.5, 2), 3), Side(Level(1.5, 4), 5))
        await two.xmit((1, Side((0.5, 2), 3), Side(Level(1.5, 4), 5)))
        assert (await one.recv()).item() == book
        await one.xmit((1, ((0.5, 2), 3), ((1.5, 4), -5)))  # which Side refuses
        await one.xmit(book)
        with pytest.raises(memenpsf.DecodeFailed, match="a negative total"):
            await two.recv()
        assert (await two.recv()).number == 1


def test_records_in_records_state_paths():
    assert codec_for(Book).names == codec_for(BookToo).names == codec_for(BOOK).names
    assert codec_for(Book).layout == codec_for(BOOK).layout


@dataclasses.dataclass
class Node:
    value: int
    next: Node


@dataclasses.dataclass
class Wrong:
    text: Lost


@dataclasses.dataclass
class Lost:
    anything: object


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        (Node, "field 'next' of Node holds a Node, which holds it"),
        (Wrong, "field 'anything' of Lost has no size"),
    ],
)
def test_what_cannot_be_in_a_record_is_named(spec, told):
    with pytest.raises(TypeError, match=told):
        codec_for(spec)


# -- enums --------------------------------------------------------------------------------------------


class Colour(enum.IntEnum):
    RED = 1
    GREEN = 200
    VERT = 200


class Kind(enum.Enum):
    NEW = -1
    OLD = 300


class Rights(enum.Flag):
    READ = 1
    WRITE = 2


class Word(enum.Enum):
    ONE = "one"


class Painted(NamedTuple):
    number: u32
    colour: Annotated[Colour, "B"]
    kind: Annotated[Kind, "h"]
    rights: Annotated[Rights, "Q"]


@dataclasses.dataclass
class PaintedToo:
    number: u32
    colour: Annotated[Colour, "B"]
    kind: Annotated[Kind, "h"]
    rights: Annotated[Rights, "Q"]


@pytest.mark.parametrize("cls", [Painted, PaintedToo])
@one_way_scenario
async def test_members_of_enums_arrive_as_such(door, cls):
    rights = Rights(0), Rights.READ, Rights.READ | Rights.WRITE
    records = [cls(1, c, k, r) for c in Colour for k in Kind for r in rights]
    for got in await both_ways(door, cls, records):
        assert type(got.colour) is Colour
        assert type(got.kind) is Kind
        assert type(got.rights) is Rights


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"colour": 1}, "field 'colour': 1 where a Colour is expected"),
        ({"colour": Kind.NEW}, "field 'colour': <Kind.NEW: -1> where a Colour is expected"),
        ({"kind": "NEW"}, "field 'kind': 'NEW' where a Kind is expected"),
        ({"rights": None}, "field 'rights': None where a Rights is expected"),
    ],
)
@pytest.mark.parametrize("cls", [Painted, PaintedToo])
@one_way_scenario
async def test_what_is_no_member_of_the_enum_is_refused(door, cls, changes, told):
    good = {"number": 1, "colour": Colour.RED, "kind": Kind.OLD, "rights": Rights.READ}
    await refused(door, cls, cls(**(good | changes)), told, cls(**good))


@scenario
async def test_a_number_that_no_member_has_is_received_as_an_error(door):
    async with door.pair(one={"record": "<IBhQ"}, other={"record": Painted}) as (one, two):
        await one.xmit_many([(1, 2, 300, 1), (2, 200, 300, 3)])
        with pytest.raises(memenpsf.DecodeFailed, match="2 is not a valid Colour"):
            await two.recv()
        assert await two.recv() == (2, Colour.VERT, Kind.OLD, Rights.READ | Rights.WRITE)


@pytest.mark.parametrize(
    ("hint", "told"),
    [
        (Colour, r'how many bytes its values have: annotate it as Annotated\[Colour, "B"\]'),
        (Kind, r'annotate it as Annotated\[Kind, "h"\]'),
        (Annotated[Kind, "B"], "the code 'B', which Kind does not fit"),
        (Annotated[Colour, "b"], "the code 'b', which Colour does not fit"),
        (Annotated[Colour, "d"], "the code 'd', which Colour does not fit"),
        (Annotated[Colour, "2B"], "the code '2B', which Colour does not fit"),
        (Word, "not all of its values are ints"),
        (Annotated[Word, "B"], "not all of its values are ints"),
    ],
    ids=str,
)
def test_enums_that_do_not_fit_their_code_are_named(hint, told):
    with pytest.raises(TypeError, match=f"^field 'a' of Made .*{told}"):
        codec_for(dataclasses.make_dataclass("Made", [("a", hint)]))


def test_an_enum_has_the_layout_of_its_code():
    assert codec_for(Painted).layout == codec_for(PaintedToo).layout == codec_for("<IBhQ").layout


# -- text ---------------------------------------------------------------------------------------------


class Named(NamedTuple):
    number: u32
    name: Annotated[str, "8s"]
    code: Annotated[str, "s"]


@dataclasses.dataclass
class NamedToo:
    number: u32
    name: Annotated[str, "8s"]
    code: Annotated[str, "s"]


@pytest.mark.parametrize("cls", [Named, NamedToo])
@one_way_scenario
async def test_text_arrives_as_it_was(door, cls):
    texts = ["", "a", "12345678", "ä€", "𝄞𝄞", "a\0b", "\0a", " x\n"]
    records = [cls(n, text, text[:1].strip("ä𝄞\0")) for n, text in enumerate(texts)]
    await both_ways(door, cls, records)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"name": "123456789"}, "field 'name': 9 bytes of UTF-8 where 8 are the most"),
        ({"name": "äöüß€"}, "field 'name': 11 bytes of UTF-8"),
        ({"code": "ä"}, "field 'code': 2 bytes of UTF-8 where 1 are the most"),
        ({"name": b"bytes"}, r"field 'name': b'bytes' where text \(str\) is expected"),
        ({"name": None}, r"field 'name': None where text"),
        ({"name": "a\0"}, r"field 'name': 'a\\x00' ends with a null character"),
        ({"name": "\ud800"}, r"field 'name': .*surrogates not allowed"),
    ],
)
@pytest.mark.parametrize("cls", [Named, NamedToo])
@one_way_scenario
async def test_text_that_would_not_arrive_whole_is_refused(door, cls, changes, told):
    good = {"number": 1, "name": "name", "code": "c"}
    await refused(door, cls, cls(**(good | changes)), told, cls(**good))


@scenario
async def test_bytes_that_are_no_text_are_received_as_an_error(door):
    async with door.pair(one={"record": "<I8ss"}, other={"record": Named}) as (one, two):
        await one.xmit_many([(1, b"\xff", b""), (2, b"\xc3\xa4", b"x")])
        with pytest.raises(memenpsf.DecodeFailed, match="can't decode byte 0xff"):
            await two.recv()
        assert await two.recv() == (2, "ä", "x")


def test_text_has_the_layout_of_bytes():
    assert codec_for(Named).layout == codec_for(NamedToo).layout == codec_for("<I8ss").layout


# -- several values in a field ------------------------------------------------------------------------


class Series(NamedTuple):
    number: u32
    lots: Annotated[list[u16], 3]
    prices: Annotated[tuple[float, ...], 2]
    levels: Annotated[list[Level], 2]
    colours: Annotated[tuple[Annotated[Colour, "B"], ...], 2]
    flags: Annotated[list[bool], 9]
    grid: Annotated[list[Annotated[list[u16], 2]], 2]
    mixed: tuple[u16, float, Annotated[str, "4s"]]


SeriesToo = dataclasses.make_dataclass(
    "SeriesToo", list(get_type_hints(Series, include_extras=True).items())
)
SERIES = {
    "number": 1,
    "lots": [1, 2, 65535],
    "prices": (0.5, -2.5),
    "levels": [Level(0.5, 1), Level(1.5, 2)],
    "colours": (Colour.RED, Colour.GREEN),
    "flags": [True, False, True] * 3,
    "grid": [[1, 2], [3, 4]],
    "mixed": (7, 0.25, "text"),
}


@pytest.mark.parametrize("cls", [Series, SeriesToo])
@one_way_scenario
async def test_lists_and_tuples_arrive_as_they_were(door, cls):
    records = [cls(**(SERIES | {"number": n, "prices": (n + 0.5, 0.0)})) for n in range(4)]
    for got in await both_ways(door, cls, records):
        assert type(got.lots) is type(got.grid) is type(got.grid[0]) is list
        assert type(got.prices) is type(got.colours) is type(got.mixed) is tuple
        assert type(got.levels[1]) is Level
        assert type(got.colours[0]) is Colour
    async with door.pair(cls) as (one, other):  # a list for a tuple is taken
        await one.xmit(cls(**(SERIES | {"prices": [0.5, -2.5], "lots": (1, 2, 65535)})))
        assert await other.recv() == cls(**SERIES)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"lots": [1, 2]}, "field 'lots': 2 items where 3 are expected"),
        ({"lots": 5}, "field 'lots': int where a list or tuple of 3 items is expected"),
        ({"lots": b"abc"}, "field 'lots': bytes where a list or tuple of 3"),
        ({"lots": np.zeros(3)}, "field 'lots': ndarray where a list .*: pass its tolist"),
        ({"lots": [1, 2, 65536]}, r"field 'lots\[2\]': "),
        ({"flags": [True] * 8 + ["False"]}, r"field 'flags\[8\]': 'False' where True or False"),
        ({"levels": [Level(0.5, 1), (0.5,)]}, "field 'levels': item 1: 1 items where 2 are"),
        ({"levels": [Level(0.5, -1)] * 2}, r"field 'levels\[0\].lots': "),
        ({"colours": (Colour.RED, 5)}, "field 'colours': item 1: 5 where a Colour is expected"),
        ({"grid": [[1, 2], [3, 4, 5]]}, "field 'grid': item 1: 3 items where 2 are expected"),
        ({"grid": [[1, 2], [3, "4"]]}, r"field 'grid\[1\]\[1\]': "),
        ({"mixed": (7, 0.25, "texts")}, "field 'mixed': item 2: 5 bytes of UTF-8"),
    ],
)
@pytest.mark.parametrize("cls", [Series, SeriesToo])
@one_way_scenario
async def test_lists_that_do_not_fit_are_refused_and_the_item_is_named(door, cls, changes, told):
    await refused(door, cls, cls(**(SERIES | changes)), told, cls(**SERIES))


@scenario
async def test_lists_fit_arrays_of_numpy(door):
    spec = np.dtype(
        [
            ("number", "u4"),
            ("lots", "u2", 3),
            ("prices", "f8", 2),
            ("levels", [("price", "f8"), ("lots", "u2")], 2),
            ("colours", "u1", 2),
            ("flags", "?", 9),
            ("grid", "u2", (2, 2)),
            ("m", [("a", "u2"), ("b", "f8"), ("c", "S4")]),
        ]
    )
    async with door.pair(one={"record": spec}, other={"record": Series}) as (one, two):
        await two.xmit(Series(**SERIES))
        await one.xmit(await one.recv())
        assert await two.recv() == Series(**SERIES)


class Masked(NamedTuple):
    values: Annotated[list[float], 2]


@one_way_scenario
async def test_a_masked_value_in_a_list_is_refused(door):
    masked = np.ma.array([1.0, 2.0], mask=[0, 1])
    told = r"field 'values': MaskedArray where a list"
    await refused(door, Masked, Masked(masked), told, Masked([1.0, 2.0]))
    await refused(door, Masked, Masked(list(masked)), ".*masked", Masked([1.0, 2.0]))


@pytest.mark.parametrize(
    ("hint", "told"),
    [
        (list, r"a list, and does not say of what, .* as Annotated\[list\[u16\], 8\]"),
        (list[u16], "how many items"),
        (tuple, r"annotate it as Annotated\[tuple\[u16, ...\], 8\]"),
        (tuple[int, ...], "how many items"),
        (Annotated[list[u16], 0], "how many items"),
        (Annotated[list[u16], -1], "how many items"),
        (Annotated[list, 8], "does not say of what"),
        (Annotated[list[object], 8], "an item of field 'a' of Made has no size"),
        (tuple[int, str], "item 1 of field 'a' of Made has no size"),
        (Annotated[list[u16], 1 << 17], "more than 65536 values: take a numpy.dtype"),
        (Annotated[list[Annotated[list[u16], 1 << 10]], 1 << 10], "more than 65536 values"),
    ],
    ids=str,
)
def test_lists_that_have_no_size_are_told_how_to_say_it(hint, told):
    with pytest.raises((TypeError, ValueError), match=told):
        codec_for(dataclasses.make_dataclass("Made", [("a", hint)]))


# -- other classes ------------------------------------------------------------------------------------


@attrs.define
class Attrs:
    number: int
    _price: f64 = 0.5
    side: Side = attrs.field(kw_only=True)
    colour: Annotated[Colour, "B"] = Colour.RED


@attrs.frozen
class PlainAttrs:
    price: float
    on: bool = False


if msgspec is not None:

    class Struct(msgspec.Struct):
        number: int
        price: Annotated[float, msgspec.Meta(ge=0)]
        level: Level
        name: Annotated[str, "8s", msgspec.Meta(max_length=8)] = "name"

    class PlainStruct(msgspec.Struct, frozen=True, kw_only=True):
        price: float
        on: bool = False

    STRUCTS = [
        (Struct, [Struct(n, 0.5, Level(0.5, n), str(n)) for n in range(3)], "<qddH8s"),
        (PlainStruct, [PlainStruct(price=0.5), PlainStruct(price=1.5, on=True)], "<d?"),
    ]
else:
    STRUCTS = []

OTHERS = [
    (Attrs, [Attrs(n, 1.5, side=Side(Level(0.5, n), n)) for n in range(3)], "<qddHqB"),
    (PlainAttrs, [PlainAttrs(0.5), PlainAttrs(1.5, True)], "<d?"),
    *STRUCTS,
]


@pytest.mark.parametrize(
    ("cls", "records", "form"), OTHERS, ids=[each[0].__name__ for each in OTHERS]
)
@one_way_scenario
async def test_classes_of_other_libraries_are_records(door, cls, records, form):
    assert codec_for(cls).layout == codec_for(form).layout
    for got in await both_ways(door, cls, records):
        assert type(got) is cls
    await refused(door, cls, (1, 2), f"expected {cls.__name__}, got tuple", records[0])


@attrs.define
class Hidden:
    number: int
    more: int = attrs.field(init=False, default=5)


def test_attributes_that_the_constructor_does_not_take_are_named():
    with pytest.raises(TypeError, match="field 'more' of Hidden is not set by its constructor"):
        codec_for(Hidden)


def test_no_library_is_imported_for_its_classes():
    program = (
        "import sys; from ipcqueue._records.spec import codec_for\n"
        "try: codec_for(list)\n"
        "except TypeError: print({'attr', 'attrs', 'msgspec'} & {*sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"


# -- numbers that may be None -------------------------------------------------------------------------


class Perhaps(NamedTuple):
    number: Annotated[int | None, "h", {None: -1}]
    price: Annotated[f64 | None, {None: math.nan}]
    ratio: Annotated[float | None, "f", {None: 0.1}]
    many: Annotated[list[Annotated[int | None, {None: 0}]], 2] = [None, None]  # noqa: RUF012


PerhapsToo = dataclasses.make_dataclass(
    "PerhapsToo",
    [(n, h) for n, h in get_type_hints(Perhaps, include_extras=True).items()],
)


@pytest.mark.parametrize("cls", [Perhaps, PerhapsToo])
@one_way_scenario
async def test_a_number_that_means_none_arrives_as_none(door, cls):
    records = [
        cls(number, price, ratio, many)
        for number in (None, 0, -2, 32767)
        for price in (None, 0.0, math.inf)
        for ratio, many in ((None, [None, 5]), (0.25, [1, None]))
    ]
    await both_ways(door, cls, records)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"number": -1}, "field 'number': -1 means None here"),
        ({"price": math.nan}, "field 'price': nan means None here"),
        ({"ratio": 0.1}, "field 'ratio': 0.1 means None here"),
        ({"many": [1, 0]}, "field 'many': item 1: 0 means None here"),
        ({"number": 32768}, "field 'number': "),
        ({"price": 10**400}, "field 'price': "),
        ({"price": "1"}, "field 'price': "),
    ],
)
@pytest.mark.parametrize("cls", [Perhaps, PerhapsToo])
@one_way_scenario
async def test_the_number_that_means_none_is_no_value(door, cls, changes, told):
    good = {"number": 1, "price": 0.5, "ratio": 0.5, "many": [1, 2]}
    await refused(door, cls, cls(**(good | changes)), told, cls(**good))


def test_numbers_that_may_be_none_have_the_layout_of_numbers():
    assert codec_for(Perhaps).layout == codec_for("<hdf2q").layout


class Whatever:
    pass


@pytest.mark.parametrize(
    ("hint", "told"),
    [
        (int | None, r"may be None, which has no bytes: state a value .* \{None: -1\}"),
        (str | None, "may be None, which has no bytes"),
        (int | float, r"is a int \| float: a record has one layout, so state one type"),
        (int | float | None, "a record has one layout"),
        (Annotated[bool | None, {None: 2}], "may be None, which only numbers may be"),
        (Annotated[str | None, "8s", {None: ""}], "may be None, which only numbers may be"),
        (Annotated[bytes | None, "8s", {None: b""}], "may be None, which only numbers may be"),
        (Annotated[int | None, "B", {None: -1}], "has -1 for None: "),
        (Annotated[int | None, "B", {None: "x"}], "has 'x' for None: "),
        (bytes, r"annotate it as char\(8\)"),
        (bytearray, r"annotate it as char\(8\)"),
        (str, r'annotate it as Annotated\[str, "8s"\]'),
        (complex, "its two parts"),
        (dt.datetime, "an i64 of nanoseconds"),
        (dt.timedelta, "an i64 of nanoseconds"),
        (decimal.Decimal, "the smallest unit"),
        (fractions.Fraction, "its two parts"),
        (uuid.UUID, r"char\(16\), and send its .bytes"),
        (pathlib.Path, r"send str\(path\)"),
        (np.uint16, "annotate it as u16; it arrives as Python's own number"),
        (np.float64, "annotate it as f64"),
        (np.bool_, "annotate it as bool"),
        (np.ndarray, r"Annotated\[list\[f64\], 8\], or take a numpy.dtype as the record"),
        (np.floating, "make floating a NamedTuple|may have any size"),
        (ctypes.c_uint32, "take a ctypes.Structure as the record"),
        (ctypes.Structure, "make Structure a|take a ctypes.Structure"),
        (dict, "a value of type dict may have any size; send the record by an Encoded"),
        (dict[str, int], "a value of type dict may have any size"),
        (set, "a value of type set may have any size"),
        (object, "a value of type object may have any size"),
        (Any, "may have any size"),
        (Literal[1, 2], "may have any size"),
        (Callable[[], int], "Callable"),
        (Whatever, "make Whatever a NamedTuple or dataclass with annotated fields"),
    ],
    ids=str,
)
def test_what_cannot_be_a_field_is_told_why_and_what_to_write_instead(hint, told):
    for spec in (
        dataclasses.make_dataclass("Made", [("a", hint)]),
        NamedTuple("Made", [("a", hint)]),
    ):
        with pytest.raises(TypeError, match=f"^field 'a' of Made .*{told}"):
            codec_for(spec)


# -- derived and empty classes ------------------------------------------------------------------------


class Label(NamedTuple):
    text: Annotated[str, "4s"]


class DerivedLabel(Label):
    pass


@dataclasses.dataclass
class Nothing:
    pass


@dataclasses.dataclass
class Labelled:
    label: Label
    nothing: Nothing
    number: int


@one_way_scenario
async def test_an_object_of_a_class_derived_from_a_namedtuple_is_taken_as_its_tuple(door):
    async with door.pair(Label) as (one, two):
        await one.xmit(DerivedLabel("a"))
        await one.xmit_many([DerivedLabel("b"), Label("c")])
        assert [type(each) for each in await two.recv_vectored()] == [Label] * 3
    async with door.pair(Labelled) as (one, two):
        await one.xmit(Labelled(DerivedLabel("a"), Nothing(), 5))
        assert await two.recv() == Labelled(Label("a"), Nothing(), 5)
