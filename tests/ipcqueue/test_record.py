"""Record specs: layouts, fingerprints, and the way to slot bytes and back."""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import hashlib
import os
import random
import re
import struct
import subprocess
import sys
import time
import typing
from collections import namedtuple
from dataclasses import InitVar, dataclass, field
from fractions import Fraction
from typing import Annotated, Any, ClassVar, Final, NamedTuple, NewType

import numpy as np
import pytest

from ipcqueue._errors import BadRecord, QueueError
from ipcqueue._records import classes as _classes
from ipcqueue._records import spec as _spec
from ipcqueue._records import structs as _structs
from ipcqueue._records.codec import Codec, encoder_of_many
from ipcqueue._records.fields import char, f32, f64, i8, i16, i32, i64, u8, u16, u32, u64
from ipcqueue._records.layout import MAX_RECORD, MAX_RUNS, bytes_layout
from ipcqueue._records.spec import codec_for


def label(value: Any) -> str:
    """Name a parameter the same in every run: without addresses."""
    return re.sub(r" (object )?at 0x[0-9a-f]+", "", repr(value))[:60]


class Quote(NamedTuple):
    seq: u64
    price: f64
    lots: u32
    symbol: Annotated[bytes, "8s"]


class EveryKind(NamedTuple):
    a: u8
    b: i8
    c: u16
    d: i16
    e: u32
    f: i32
    g: u64
    h: i64
    i: f32
    j: f64
    k: char(3)
    l: Annotated[bool, "?"]  # noqa: E741
    m: Annotated[float, "e", "half a float"]
    n: Annotated[bytes, "c"]


@dataclass
class Point:
    x: f64
    y: f64
    unit: ClassVar[str] = "m"


@dataclass(frozen=True, slots=True)
class Frozen:
    seq: u64
    price: f64 = 1.0


@dataclass
class Point3(Point):
    z: f64 = 0.0


@dataclass
class Keyword:
    a: u8
    b: u32 = field(kw_only=True)
    c: u16 = 0


@dataclass
class Single:
    only: u64


class Plain(ctypes.Structure):
    _fields_ = (("seq", ctypes.c_uint64), ("price", ctypes.c_double), ("lots", ctypes.c_uint32))


class Derived(Plain):
    _fields_ = (("tail", ctypes.c_uint32 * 3),)


class Pair(ctypes.Structure):
    _fields_ = (("a", ctypes.c_uint8), ("b", ctypes.c_uint16))


class Nested(ctypes.Structure):
    _fields_ = (("n", ctypes.c_uint64), ("pairs", Pair * 3), ("text", ctypes.c_char * 8))


class Big(ctypes.BigEndianStructure):
    _fields_ = (("seq", ctypes.c_uint64), ("flags", ctypes.c_uint8 * 4), ("n", ctypes.c_int32))


class Packed(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("a", ctypes.c_uint8), ("b", ctypes.c_uint64))


ALIGNED = np.dtype([("seq", "u8"), ("price", "f8"), ("lots", "u4")], align=True)
NESTED = np.dtype(
    [("n", "<u8"), ("pairs", np.dtype([("a", "u1"), ("b", "<u2")], align=True), (3,)), ("t", "S8")]
)
EVERY = (1, -2, 3, -4, 5, -6, 7, -8, 1.5, 2.5, b"abc", True, 0.5, b"x")


def same(spec: Any, *others: Any) -> bool:
    prints = {codec_for(each).layout.fingerprint for each in (spec, *others)}
    return len(prints) == 1


def fields(record: Any) -> Any:
    """What a ctypes record holds, to compare."""
    if isinstance(record, ctypes.Array):
        return [fields(item) for item in record]
    if isinstance(record, ctypes.Structure):
        return [
            (name, fields(getattr(record, name)))
            for base in reversed(type(record).__mro__)
            for name, *_ in vars(base).get("_fields_", ())
        ]
    return record


# Round trips

ROUND_TRIPS = [
    (1, b"x"),
    (24, bytes(range(24))),
    ("<QdI", (2**64 - 1, -0.5, 7)),
    ("@cQ?xxe3H", (b"c", 5, True, 0.5, 1, 2, 3)),
    (">bhiq", (-1, -2, -3, -4)),
    ("nN", (-5, 5)),
    ("3sx2s", (b"abc", b"de")),
    (struct.Struct("!HH"), (1, 2)),
    ("8x", ()),
    ("0s4B", (b"", 1, 2, 3, 4)),
    (Quote, Quote(1, 2.5, 3, b"ABCDEFGH")),
    (EveryKind, EveryKind(*EVERY)),
    (Point, Point(1.5, -2.5)),
    (Point3, Point3(1.0, 2.0, 3.0)),
    (Frozen, Frozen(7, 8.5)),
    (Keyword, Keyword(1, 3, b=2)),
    (Single, Single(9)),
    (Plain, Plain(1, 2.5, 3)),
    (Derived, Derived(1, 2.5, 3, (4, 5, 6))),
    (Nested, Nested(1, ((1, 2), (3, 4), (5, 6)), b"text")),
    (Big, Big(1, (1, 2, 3, 4), -7)),
    (Packed, Packed(1, 2**60)),
    (ctypes.c_uint32 * 4, (ctypes.c_uint32 * 4)(1, 2, 3, 4)),
    (ALIGNED, np.array((1, 2.5, 3), ALIGNED)[()]),
    (NESTED, np.array((1, [(1, 2), (3, 4), (5, 6)], b"text"), NESTED)[()]),
    (np.float64, np.float64(1.5)),
    (np.dtype(">i4"), np.int32(-7)),
    (np.dtype("M8[ns]"), np.datetime64(1, "ns")),
    (np.dtype("c8"), np.complex64(1 + 2j)),
    (np.dtype("b1"), np.True_),
    (np.dtype("f2"), np.float16(0.5)),
    (np.dtype("S4"), np.bytes_(b"ab")),
    (np.dtype("V4"), np.void(b"abcd")),
    (np.dtype(("<u4", (2, 3))), np.arange(6, dtype="<u4").reshape(2, 3)),
]
IDS = [label(spec) for spec, _ in ROUND_TRIPS]


@pytest.mark.parametrize(("spec", "record"), ROUND_TRIPS, ids=IDS)
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, "readonly"])
def test_decode_gives_back_what_encode_took(spec, record, kind):
    codec = codec_for(spec)
    data = codec.encode(record)
    assert memoryview(data).nbytes == len(data) == codec.size == codec.layout.size
    slot = bytearray(data)
    view = memoryview(slot).toreadonly() if kind == "readonly" else kind(slot)
    got = codec.decode(view)
    slot[:] = b"\xee" * len(slot)  # the sender writes the slot again
    if kind is bytearray:
        view[:] = b"\xee" * len(view)
    assert type(got) is type(record)
    if isinstance(got, ctypes.Structure | ctypes.Array):
        assert fields(got) == fields(record)
    elif isinstance(got, np.ndarray):
        assert np.array_equal(got, record)
        assert got.dtype == record.dtype
    else:
        assert got == record


@pytest.mark.parametrize(("spec", "record"), ROUND_TRIPS, ids=IDS)
@pytest.mark.parametrize("count", [0, 1, 5])
@pytest.mark.parametrize("kind", [list, iter])
def test_decode_many_gives_back_what_encode_many_took(spec, record, count, kind):
    codec = codec_for(spec)
    data, number = codec.encode_many(kind([record] * count))
    assert number == count
    assert memoryview(data).contiguous
    assert bytes(data) == bytes(codec.encode(record)) * count
    slots = bytearray(data) + b"more than asked for"
    got = codec.decode_many(slots, count)
    again = codec.decode_many(memoryview(slots).toreadonly(), count)
    slots[:] = b"\xee" * len(slots)
    assert len(got) == len(again) == count
    assert bytes(codec.encode_many(got)[0]) == bytes(data)
    assert bytes(codec.encode_many(again)[0]) == bytes(data)


def test_decode_many_refuses_to_give_fewer():
    with pytest.raises(ValueError, match="expected 16 bytes"):
        codec_for("Q").decode_many(bytearray(8), 2)


def test_random_struct_formats_round_trip_and_match_ctypes():
    rng = random.Random(20240229)
    types = {
        "b": ctypes.c_int8, "B": ctypes.c_uint8, "h": ctypes.c_int16, "H": ctypes.c_uint16,
        "i": ctypes.c_int32, "I": ctypes.c_uint32, "q": ctypes.c_int64, "Q": ctypes.c_uint64,
        "f": ctypes.c_float, "d": ctypes.c_double, "?": ctypes.c_bool, "l": ctypes.c_long,
    }  # fmt: skip
    for _ in range(300):
        items = [(rng.choice("bBhHiIqQfd?ls"), rng.randint(1, 5)) for _ in range(rng.randint(1, 9))]
        form = " ".join(f"{count}{code}" for code, count in items)
        members = [
            (f"f{i}", (ctypes.c_char if code == "s" else types[code]) * count)
            for i, (code, count) in enumerate(items)
        ]
        cls = type("Random", (ctypes.Structure,), {"_fields_": members})
        codec, other = codec_for(form + " 0Q0d"), codec_for(cls)
        if ctypes.alignment(cls) == 8:
            assert codec.layout == other.layout
        else:
            assert codec.layout.runs == other.layout.runs
        assert same(np.dtype(cls), cls)
        spelt = "".join(code * count if code != "s" else "c" * count for code, count in items)
        assert same(spelt, form)
        data = rng.randbytes(codec.size)
        data = bytes(codec.encode(codec.decode(data)))
        assert bytes(codec.encode(codec.decode(data))) == data


def test_random_numpy_dtypes_agree_with_struct_and_ctypes_big_endian():
    rng = random.Random(7)
    types = {"h": ctypes.c_int16, "I": ctypes.c_uint32, "q": ctypes.c_int64, "d": ctypes.c_double}
    for _ in range(100):
        codes = rng.choices(list(types), k=rng.randint(1, 8))
        names = [f"f{i}" for i in range(len(codes))]
        members = [(n, types[c]) for n, c in zip(names, codes, strict=True)]
        space = {"_pack_": 1, "_layout_": "ms", "_fields_": members}
        cls = type("Random", (ctypes.BigEndianStructure,), space)
        dtype = np.dtype(
            [(n, f">{np.dtype(c).str[1:]}") for n, c in zip(names, codes, strict=True)]
        )
        assert same(">" + "".join(codes), cls, dtype)
        assert not same("<" + "".join(codes), cls)


# Layouts


SAME_UNITS = [
    ("1000as", "fs"),
    ("1000ns", "us"),
    ("3600s", "h"),
    ("48h", "2D"),
    ("168h", "W"),
    ("12M", "Y"),
    ("1000000us", "s"),
]


@pytest.mark.parametrize(
    "specs",
    [
        (
            "4I",
            "IIII",
            "I 2I I",
            ctypes.c_uint32 * 4,
            np.dtype(("u4", (4,))),
            np.dtype(("u4", (2, 2))),
        ),
        (24, "24s", "12s 12s", "24c", ctypes.c_char * 24, np.dtype("S24"), np.dtype("V24")),
        ("24B", ctypes.c_uint8 * 24, np.dtype(("u1", (24,))), np.dtype("u1,u1,22u1")),
        ("QdI4x", "=QdIxxxx", "QdI0Q", Plain, ALIGNED),
        ("<QdI8s", "=QdI8s", Quote),
        ("=2d", Point, np.dtype("c16"), np.dtype("f8,f8")),
        ("<QBxHBxHBxH8s", NESTED),
        ("QBHBHBH8s4x", Nested),
        (">Q4Bi", "!Q4Bi", Big),
        ("<BQ", Packed, np.dtype("u1,<u8")),
        (">4B", "<4B", "=4B", "4B"),
        ("q", "n", np.int64, ctypes.c_int64 * 1),
        (np.dtype("M8[s]"), np.dtype("M8[1000ms]"), np.dtype([("t", "M8[s]", 1)])),
        *((np.dtype(f"m8[{many}]"), np.dtype(f"m8[{one}]")) for many, one in SAME_UNITS),
        ("?", np.dtype("b1"), ctypes.c_bool * 1),
        ("e", np.float16),
        (1, "c", "s", "1s", np.dtype("S1")),
        ("BI", np.dtype({"names": ["b", "a"], "formats": ["u4", "u1"], "offsets": [4, 0]})),
    ],
    ids=label,
)
def test_spellings_of_one_layout_have_one_fingerprint(specs):
    assert same(*specs)
    assert len({codec_for(spec).layout for spec in specs}) == 1


OTHER_TIMES = [
    (np.dtype(one), np.dtype(two))
    for one, two in [
        ("M8[s]", "M8[ns]"),
        ("M8[25s]", "M8[s]"),
        ("m8[ms]", "m8[us]"),
        ("M8[ns]", "m8[ns]"),
        ("M8[ns]", "i8"),
        ("M8[ns]", ">M8[ns]"),
        ("M8[M]", "M8[4W]"),
        ("M8[1500ms]", "M8[s]"),
        ([("a", "M8[s]"), ("b", "M8[ms]")], [("a", "M8[ms]"), ("b", "M8[s]")]),
        ([("a", "M8[s]"), ("b", "M8[ms]")], [("a", "M8[s]"), ("b", "M8[s]")]),
    ]
]


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("<I", ">I"),
        ("<I", "<i"),
        ("<I", "<f"),
        ("B", "b"),
        ("B", "?"),
        ("B", "c"),
        (24, "24B"),
        (24, 25),
        (8, "Q"),
        ("2I", "Q"),
        ("=BI", "BI"),
        ("BI", "IB"),
        ("I4x", "4xI"),
        ("I4x", "I"),
        ("8x", "8s"),
        ("4I", "3I4x"),
        ("2sx2s", "4sx"),
        (Plain, Packed),
        (np.dtype("c8"), np.dtype("c16")),
        *(OTHER_TIMES),
    ],
    ids=label,
)
def test_different_layouts_have_different_fingerprints(one, two):
    assert not same(one, two)


def test_the_description_shows_each_run():
    assert codec_for("<QdI4x3I").layout.description == "36 bytes: 0:u64 8:f64 16:u32 24:u32[3]"
    assert codec_for(Big).layout.description == "16 bytes: 0:u64be 8:u8[4] 12:i32be"
    assert codec_for("=3s?eb").layout.description == "7 bytes: 0:char[3] 3:bool 4:f16 6:i8"
    assert codec_for("8x").layout.description == "8 bytes:"
    times = np.dtype([("at", ">M8[ns]"), ("took", "m8[25us]", 2), ("years", "m8[24M]")])
    want = "32 bytes: 0:datetime64(ns)be 8:timedelta64(25us)[2] 24:timedelta64(2Y)"
    assert codec_for(times).layout.description == want
    assert codec_for(1).layout.description == "1 bytes: 0:char"


def test_the_fingerprint_is_the_hash_of_the_text():
    layout = codec_for("<QdI").layout
    text = layout.description.encode("ascii")
    assert layout.fingerprint == hashlib.blake2b(text, digest_size=16).digest()
    assert len(layout.fingerprint) == 16


def test_the_fingerprint_is_the_same_where_python_has_blake2_in_openssl_alone(monkeypatch):
    monkeypatch.setitem(sys.modules, "_blake2", None)
    layout = bytes_layout(24)
    assert layout == codec_for(24).layout
    assert layout.fingerprint == hashlib.blake2b(b"24 bytes: 0:char[24]", digest_size=16).digest()


def test_a_long_description_is_cut_and_the_fingerprint_is_not():
    one, two = codec_for("BI" * 100), codec_for("BI" * 99 + "Bi")
    assert one.layout.description == two.layout.description
    assert len(one.layout.description.encode("ascii")) <= 400
    assert one.layout.description.endswith("...")
    assert one.layout.fingerprint != two.layout.fingerprint


def test_neighbours_of_nested_arrays_merge():
    class Xy(ctypes.Structure):
        _fields_ = (("x", ctypes.c_double), ("y", ctypes.c_double))

    class Path(ctypes.Structure):
        _fields_ = (("points", Xy * 100), ("end", Xy))

    assert codec_for(Path).layout.description == "1616 bytes: 0:f64[202]"


def test_the_largest_records_take_no_time():
    specs = [
        (MAX_RECORD, f"{MAX_RECORD}s", ctypes.c_char * MAX_RECORD, np.dtype(f"V{MAX_RECORD}")),
        (
            f"{MAX_RECORD}B",
            ctypes.c_ubyte * MAX_RECORD,
            np.dtype(("u1", (4096, 4096))),
            (ctypes.c_ubyte * 4096) * 4096,
            np.dtype([("image", [("r", "u1"), ("g", "u1")], (MAX_RECORD // 2,))]),
        ),
    ]
    begin = time.process_time()
    for group in specs:
        assert same(*group)
        assert len(codec_for(group[0]).layout.runs) == 1
    assert time.process_time() - begin < 2.0
    data = bytes(MAX_RECORD)
    assert codec_for(MAX_RECORD).encode(data) is data
    assert codec_for(np.dtype(("u1", (4096, 4096)))).decode(data).shape == (4096, 4096)


def test_many_runs_are_spelt_out_up_to_a_limit():
    points = np.dtype(([("xyz", "f4", (3,)), ("id", "u4")], (1000,)))
    assert same(points, "3fI" * 1000)
    mixed = [("a", "u1"), ("b", "u2")]
    assert len(codec_for(np.dtype((mixed, (1000,)))).layout.runs) == 2000
    with pytest.raises(ValueError, match=f"more than {MAX_RUNS} times"):
        codec_for(np.dtype((mixed, (5_000_000,))))
    with pytest.raises(ValueError, match=f"more than {MAX_RUNS} times"):
        codec_for(np.dtype((mixed, (MAX_RUNS // 2 + 1,))))


# Specs that are refused


@pytest.mark.parametrize("size", [0, -1, MAX_RECORD + 1])
def test_a_size_out_of_range_is_a_value_error(size):
    with pytest.raises(ValueError, match="16 MiB"):
        codec_for(size)


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "0Q",
        f"{MAX_RECORD + 1}s",
        ctypes.c_char * (MAX_RECORD + 1),
        type("Empty", (ctypes.Structure,), {"_fields_": []}),
        np.dtype([]),
        np.dtype("V0"),
        np.dtype(("u1", (MAX_RECORD + 1,))),
        np.void,
        dataclasses.make_dataclass("Nothing", []),
    ],
    ids=label,
)
def test_any_spec_of_no_size_or_too_large_is_a_value_error(spec):
    with pytest.raises(ValueError, match="16 MiB"):
        codec_for(spec)


@pytest.mark.parametrize("form", ["<Y", "Q<", "2", "<n", "99999999999999999999Q", "é", "4 I4"])
def test_a_malformed_struct_format_is_a_value_error(form):
    with pytest.raises(ValueError, match="not a struct format"):
        codec_for(form)


@pytest.mark.parametrize("spec", [bytearray, memoryview, str])
def test_only_bytes_stands_for_messages_of_any_length(spec):
    with pytest.raises(TypeError, match=r"for messages of any length, bytes, .* not <class"):
        codec_for(spec)


def test_a_numpy_type_without_a_size_stands_for_no_messages():
    with pytest.raises(ValueError, match="0 bytes"):
        codec_for(np.bytes_)


@pytest.mark.parametrize(
    "spec",
    [None, True, 1.5, b"<Q", [("a", "u4")], {}, int, float, object, ctypes.c_uint32, ctypes.c_uint32(1),
     Plain(), Point(1, 2), Quote(1, 2, 3, b""), np.floating, np.generic, np.zeros(3), tuple, type("C", (), {})],
    ids=label,
)  # fmt: skip
def test_anything_else_is_told_what_is_accepted(spec):
    with pytest.raises(TypeError, match=r"a size in bytes \(int\), a struct format"):
        codec_for(spec)


@pytest.mark.parametrize(("form", "what"), [("P", "pointer"), ("QP", "pointer"), ("8p", "Pascal")])
def test_struct_formats_without_portable_meaning_are_refused(form, what):
    with pytest.raises(TypeError, match=what):
        codec_for(form)


def structure(kind: Any, *bits: int, base: Any = ctypes.Structure) -> Any:
    inner = type("Inner", (base,), {"_fields_": [("ok", ctypes.c_int), ("bad", kind, *bits)]})
    return type("Outer", (ctypes.Structure,), {"_fields_": [("items", inner * 2)]})


@pytest.mark.parametrize(
    ("spec", "what"),
    [
        (structure(ctypes.c_void_p), "pointer"),
        (structure(ctypes.c_char_p), "pointer"),
        (structure(ctypes.c_wchar_p), "pointer"),
        (structure(ctypes.py_object), "pointer"),
        (structure(ctypes.POINTER(ctypes.c_int)), "pointer"),
        (structure(ctypes.CFUNCTYPE(None)), "pointer"),
        (structure(ctypes.c_void_p * 3), "pointer"),
        (structure(ctypes.c_wchar), "wide character"),
        (structure(ctypes.c_wchar * 8), "wide character"),
        (structure(ctypes.c_longdouble), "long double"),
        (structure(ctypes.c_uint32, 3), "bit field"),
        (structure(type("U", (ctypes.Union,), {"_fields_": [("a", ctypes.c_int)]})), "union"),
    ],
)
def test_ctypes_fields_without_portable_meaning_are_named(spec, what):
    with pytest.raises(TypeError, match=what) as caught:
        codec_for(spec)
    assert "Outer.items[].bad" in str(caught.value)


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        ("O", "Python objects"),
        ("U4", "use S"),
        ("g", "portable"),
        ("G", "portable"),
        (("O", (2,)), "Python objects"),
        ("M8", r"without a unit: state one, such as datetime64\[ns\]"),
        (">m8", r"without a unit: state one, such as timedelta64\[ns\]"),
    ],
    ids=label,
)
def test_numpy_fields_without_portable_meaning_are_named(bad, what):
    with pytest.raises(TypeError, match=what):
        codec_for(np.dtype(bad))
    with pytest.raises(TypeError, match=what) as caught:
        codec_for(np.dtype([("ok", "i4"), ("in", [("bad", bad)])]))
    assert "dtype.in.bad" in str(caught.value)


@pytest.mark.skipif(not hasattr(np, "dtypes"), reason="needs numpy 2")
def test_numpy_strings_of_any_length_are_refused():
    with pytest.raises(TypeError, match="any length"):
        codec_for(np.dtypes.StringDType())


@pytest.mark.parametrize("spec", [ctypes.Structure, ctypes.BigEndianStructure, ctypes.Array])
def test_abstract_ctypes_classes_are_refused(spec):
    with pytest.raises((TypeError, ValueError), match=r"has no fields|16 MiB"):
        codec_for(spec)


def test_overlapping_numpy_fields_are_refused():
    dtype = np.dtype({"names": ["a", "b"], "formats": ["u4", "u2"], "offsets": [0, 2]})
    with pytest.raises(TypeError, match="overlap at byte 2"):
        codec_for(dtype)


def annotated(hint: Any) -> list[Any]:
    name = "Made"
    return [
        dataclasses.make_dataclass(name, [("ok", u8), ("bad", hint)]),
        NamedTuple(name, [("ok", u8), ("bad", hint)]),
    ]


@pytest.mark.parametrize(
    "hint",
    [complex, Annotated[bytes, 8], Annotated[int, "<Q"], Annotated[int, "2Q"], Annotated[int, "n"],
     Annotated[int, "P"], Annotated[bytes, "8p"], Annotated[int, "x"], Annotated[bytes, "0s"],
     Annotated[int, ""], Annotated[bytes, "Q"], Annotated[str, "c"], Annotated[int, "d"], u64 | None],
    ids=label,
)  # fmt: skip
def test_fields_with_unusable_annotations_are_named(hint):
    for spec in annotated(hint):
        with pytest.raises(TypeError, match="field 'bad' of Made"):
            codec_for(spec)


def test_fields_that_the_constructor_does_not_take_are_refused():
    @dataclass
    class Hidden:
        a: u8
        secret: u8 = field(init=False, default=3)

    @dataclass
    class Initial:
        a: u8
        extra: InitVar[int] = 3

    @dataclass(init=False)
    class Bare:
        a: u8

    with pytest.raises(TypeError, match="field 'secret' of Hidden"):
        codec_for(Hidden)
    with pytest.raises(TypeError, match="made from 'extra'"):
        codec_for(Initial)
    with pytest.raises(TypeError, match="field 'a' of Bare"):
        codec_for(Bare)


def test_annotations_that_cannot_be_resolved_are_refused():
    Local = u8  # noqa: N806

    @dataclass
    class Lost:
        a: Local

    with pytest.raises(
        TypeError, match=r"annotations of Lost: .*'Local'.* not only under TYPE_CHECK"
    ):
        codec_for(Lost)
    with pytest.raises(TypeError, match=r"annotations of Made: [^T]*$"):
        codec_for(dataclasses.make_dataclass("Made", [("a", "1 +")]))
    with pytest.raises(TypeError, match="field 'a' of Old has no size"):
        codec_for(namedtuple("Old", "a b"))  # noqa: PYI024


@pytest.mark.parametrize(
    ("hint", "advice"),
    [
        (complex, "tuple"),
        (bytes, r"char\(8\),"),
        (str, r"Annotated\[str, \"8s\"\]"),
    ],
)
def test_an_annotation_without_a_size_is_told_one_that_fits(hint, advice):
    plain = dataclasses.make_dataclass("Plain", [("a", hint)])
    with pytest.raises(
        TypeError, match=f"field 'a' of Plain has no size: annotate it as .*{advice}"
    ):
        codec_for(plain)


class Plainly(NamedTuple):
    n: int
    price: float
    on: bool
    why: Annotated[int, 3] = 0
    which: int = 0


UserId = NewType("UserId", int)


@dataclass
class PlainlyToo:
    n: int
    price: float
    on: bool
    why: Annotated[int, 8] = 0
    which: Final[UserId] = UserId(0)


@pytest.mark.parametrize("cls", [Plainly, PlainlyToo])
def test_plain_int_float_and_bool_have_8_8_and_1_bytes(cls):
    codec = codec_for(cls)
    assert codec.layout.description == "33 bytes: 0:i64 8:f64 16:bool 17:i64[2]"
    record = cls(-1, 0.5, True, 2**63 - 1, UserId(-(2**63)))
    assert codec.decode(codec.encode(record)) == record
    with pytest.raises(BadRecord, match="field 'why': "):
        codec.encode(record._replace(why=2**63) if cls is Plainly else cls(0, 0.0, False, 2**63))


@pytest.mark.skipif(sys.version_info < (3, 12), reason="names of types came with Python 3.12")
def test_a_name_of_a_type_is_that_type():
    spec = dataclasses.make_dataclass("Named", [("n", typing.TypeAliasType("Count", int))])
    assert codec_for(spec).layout.description == "8 bytes: 0:i64"


def test_char_takes_a_positive_number():
    assert char(8) == Annotated[bytes, "8s"]
    for bad in (0, -1):
        with pytest.raises(ValueError, match="at least one byte"):
            char(bad)
    for bad in (True, "8", None):
        with pytest.raises(TypeError, match="number of bytes"):
            char(bad)


# Codecs


def test_a_codec_is_its_own_codec_and_made_once():
    codec = codec_for("<Q")
    assert codec_for(codec) is codec
    assert codec_for("<Q") is codec
    assert isinstance(codec, Codec)
    assert codec.spec == "<Q"
    assert repr(codec) == "<Codec for '<Q': 8 bytes: 0:u64>"
    assert codec_for(1).size == 1
    with pytest.raises(TypeError):
        codec_for(True)


def test_records_of_bytes_come_from_any_buffer():
    codec = codec_for(8)
    wanted = struct.pack("<Q", 258)
    for record in (
        wanted,
        bytearray(wanted),
        memoryview(wanted),
        memoryview(wanted).cast("I"),
        memoryview(wanted).cast("B", (2, 4)),
        np.array([258], "<u8"),
        np.array(258, "<u8"),
        np.array([(258, 0)], "<u4,<u4"),
        np.array([0, 258], "<u8")[1:],
        ctypes.c_uint64(258) if sys.byteorder == "little" else wanted,
        np.uint64(258),
    ):
        data = codec.encode(record)
        assert len(data) == 8
        assert bytes(data) == wanted


@pytest.mark.parametrize(
    ("record", "what"),
    [
        (b"", "exactly 8 bytes, got 0"),
        (b"1234567", "exactly 8 bytes, got 7"),
        (bytearray(9), "exactly 8 bytes, got 9"),
        (np.zeros(8), "exactly 8 bytes, got 64"),
        ("12345678", "got str"),
        (None, "got NoneType"),
        (8, "got int"),
        (memoryview(bytes(16))[::2], "contiguous"),
        (np.zeros((4, 2), "u1").T, "contiguous"),
        (np.array([None]), "pointers"),
        (np.zeros(1, "M8[s]"), "got ndarray"),
    ],
    ids=label,
)
def test_records_of_bytes_that_do_not_fit_are_refused(record, what):
    with pytest.raises(BadRecord, match=what):
        codec_for(8).encode(record)


def test_a_bad_record_is_a_queue_error_and_the_usual_python_errors():
    assert issubclass(BadRecord, QueueError)
    assert issubclass(BadRecord, TypeError)
    assert issubclass(BadRecord, ValueError)


@pytest.mark.parametrize(
    ("spec", "record"),
    [
        ("<QdI", (1, 2.0)),
        ("<QdI", (1, 2.0, 3, 4)),
        ("<QdI", (1, "2", 3)),
        ("<QdI", (1.5, 2.0, 3)),
        ("<QdI", (-1, 2.0, 3)),
        ("<QdI", (1, 2.0, 2**32)),
        ("<QdI", 5),
        ("<QdI", None),
        ("<QdI", b"123"),
        ("<QdI", {1: 1, 2: 2, 3: 3}),
        ("<QdI", np.array([1, 2, 3])),
        ("<f", (1e300,)),
        ("<d", (10**400,)),
        ("<e", (1e6,)),
        ("<d", (Fraction,)),
        ("4s", (b"12345",)),
        ("4sxH4s", (b"1234", 1, b"12345")),
        ("2H4s", (1, 2, b"12345")),
        ("0sB", (b"x", 1)),
        ("4s", (bytearray(5),)),
        ("4s", ("1234",)),
        ("c", (b"12",)),
        (Quote, (1, 2.0, 3)),
        (Quote, [1, 2.0, 3, b""]),
        (Quote, (1, 2.0, 3, b"123456789")),
        (Quote, NamedTuple("Other", [(n, int) for n in "abcd"])(1, 2, 3, b"")),
        (Quote, 5),
        (Point, (1.0, 2.0)),
        (Point, Point3(1.0, 2.0, 3.0)),
        (Point, Point("1", 2.0)),
        (Point, Point),
        (Single, Single(-1)),
        (Plain, Derived()),
        (Plain, Packed()),
        (Plain, (1, 2.0, 3)),
        (Plain, bytes(24)),
        (Plain, Plain),
        (ctypes.c_uint32 * 4, (ctypes.c_uint32 * 5)()),
        (ALIGNED, (1, 2.0)),
        (ALIGNED, (1, 2.0, 3, 4)),
        (ALIGNED, [1, 2.0, 3]),
        (ALIGNED, (1.5, 2.0, 3)),
        (ALIGNED, (-1, 2.0, 3)),
        (ALIGNED, (1, 2.0, 2**32)),
        (ALIGNED, (1, 2.0, np.int64(2**32))),
        (ALIGNED, (1, "2", 3)),
        (ALIGNED, ([1, 2], 2.0, 3)),
        (ALIGNED, None),
        (ALIGNED, 5),
        (ALIGNED, np.zeros((), "u8,f8,u4")[()]),
        (ALIGNED, np.zeros(2, ALIGNED)),
        (NESTED, (1, [(1, 2), (3, 4)], b"")),
        (NESTED, (1, [(1, 2), (3, 4), (5, 65536)], b"")),
        (NESTED, (1, (1, 2), b"")),
        (NESTED, (1, [(1, 2)] * 3, b"123456789")),
        (NESTED, (1, np.zeros(2, NESTED["pairs"].base), b"")),
        (np.int32, 1.0),
        (np.int32, np.float64(1)),
        (np.int32, 2**31),
        (np.int32, np.int64(2**31)),
        (np.int32, 10**30),
        (np.uint64, -1),
        (np.uint64, np.int64(-1)),
        (np.int64, np.uint64(2**64 - 1)),
        (np.int32, "5"),
        (np.float32, 1e300),
        (np.float32, np.float64(1e300)),
        (np.float64, 1j),
        (np.float64, "1.5"),
        (np.float64, None),
        (np.float64, 10**400),
        (np.float64, [1.0]),
        (np.float64, np.zeros(1)),
        (np.bool_, 2),
        (np.dtype("S4"), b"12345"),
        (np.dtype("S4"), np.bytes_(b"12345")),
        (np.dtype("S4"), "1234"),
        (np.dtype("S4"), 5),
        (np.dtype("V4"), b"123"),
        (np.dtype("V4"), b"12345"),
        (np.dtype("M8[s]"), np.datetime64(1, "ms")),
        (np.dtype("M8[ns]"), np.datetime64("3000-01-01", "s")),
        (np.dtype("M8[s]"), 5),
        (np.dtype("m8[ms]"), np.int64(5).view("m8")),  # numpy 2.5 deprecates np.timedelta64(5)
        (np.dtype("m8[ms]"), np.array(5).view("m8")),
        (np.dtype("m8[s]"), np.datetime64(1, "s")),
        (np.dtype(("u1", (3,))), 1),
        (np.dtype(("u1", (3,))), [1, 2]),
        (np.dtype(("u1", (3,))), [1, 2, 300]),
        (np.dtype(("u1", (3,))), [1, 2, 3.5]),
        (np.dtype(("u1", (3,))), np.array([1, 2, 300])),
        (np.dtype(("u1", (2, 2))), [[1, 2], [3]]),
        (np.dtype(("S2", (2,))), [b"1", 2]),
        (np.dtype(("S2", (2,))), [b"1", b"123"]),
    ],
    ids=label,
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_the_layout(spec, record):
    codec = codec_for(spec)
    with pytest.raises(BadRecord) as caught:
        codec.encode(record)
    assert codec.layout.description in str(caught.value)
    good = codec.decode(bytes(codec.size))
    with pytest.raises(BadRecord, match=r"^record 2: ") as caught:
        codec.encode_many([good, good, record, good])
    assert codec.layout.description in str(caught.value)


def test_the_message_tells_what_was_wrong():
    with pytest.raises(BadRecord) as caught:
        codec_for("<H4s").encode((1, b"12345"))
    assert str(caught.value) == (
        "item 1 has 5 bytes, more than its 4; a record is 6 bytes: 0:u16 2:char[4];"
        " got (1, b'12345')"
    )
    with pytest.raises(BadRecord, match=r"^record 1: .*got \(1\.5, 2\)"):
        codec_for("<HH").encode_many(iter([(1, 2), (1.5, 2), (3, 4)]))
    with pytest.raises(BadRecord, match="Point3"):
        codec_for(Point).encode(Point3(1, 2, 3))


def test_errors_of_the_source_of_records_pass_through():
    def source():
        yield (1,)
        raise KeyError("mine")

    for spec in ("Q", np.dtype([("a", "u8")])):
        with pytest.raises(KeyError, match="mine"):
            codec_for(spec).encode_many(source())
        with pytest.raises(TypeError, match="not iterable"):
            codec_for(spec).encode_many(5)


def test_short_text_is_padded_and_comes_back_with_its_padding():
    codec = codec_for("4sB")
    assert codec.decode(codec.encode([b"ab", 1])) == (b"ab\0\0", 1)
    quote = codec_for(Quote)
    assert quote.decode(quote.encode((1, 2.0, 3, b"AB"))) == Quote(1, 2.0, 3, b"AB\0\0\0\0\0\0")


def test_annotated_fields_are_packed_in_order():
    data = codec_for(EveryKind).encode(EveryKind(*EVERY))
    assert data == struct.pack("<BbHhIiQqfd3s?ec", *EVERY)
    assert codec_for(Keyword).encode(Keyword(1, 3, b=2)) == struct.pack("<BIH", 1, 2, 3)


def test_a_field_that_was_never_set_is_a_bad_record():
    with pytest.raises(BadRecord, match="seq"):
        codec_for(Frozen).encode(Frozen.__new__(Frozen))


# numpy


def test_numpy_converts_what_loses_nothing():
    codec = codec_for(ALIGNED)
    wanted = np.array((1, 2.0, 3), ALIGNED).tobytes()
    for record in ((1, 2, 3), (np.int8(1), np.float32(2), True + 2), np.array((1, 2, 3), ALIGNED)):
        assert codec.encode(record) == wanted
    assert codec_for(NESTED).encode((1, [(1, 2), (3, 4), (5, 6)], b"ab")) == (
        np.array((1, [(1, 2), (3, 4), (5, 6)], b"ab"), NESTED).tobytes()
    )
    pairs = np.array([(1, 2), (3, 4), (5, 6)], NESTED["pairs"].base)
    assert codec_for(NESTED).encode((1, pairs, b"ab")) == codec_for(NESTED).encode(
        (1, list(map(tuple, pairs.tolist())), b"ab")
    )
    wide = codec_for(np.dtype(("<u8", (2,))))
    assert wide.encode([1, 2**64 - 1]) == struct.pack("<QQ", 1, 2**64 - 1)
    assert codec_for(np.float32).encode(0.1) == np.float32(0.1).tobytes()
    assert codec_for(np.float32).encode(float("inf")) == np.float32("inf").tobytes()
    assert codec_for(np.dtype("V4")).encode(b"a\0b\0") == b"a\0b\0"
    assert codec_for(np.dtype("M8[ns]")).encode(np.datetime64(1, "s")) == struct.pack("q", 10**9)
    assert codec_for(np.dtype("M8[ns]")).encode(np.datetime64("NaT", "s")) == struct.pack(
        "q", -(2**63)
    )
    assert codec_for(np.dtype("c8")).encode(1.5) == struct.pack("ff", 1.5, 0)


def test_a_time_is_converted_to_another_unit_if_nothing_is_lost():
    moment, span = codec_for(np.dtype("M8[us]")), codec_for(np.dtype("m8[25us]"))
    assert moment.decode(moment.encode(np.datetime64("2024-05-01", "D"))) == np.datetime64(
        "2024-05-01T00:00:00.000000"
    )
    assert span.decode(span.encode(np.timedelta64(1, "ms"))) == np.timedelta64(40, "25us")
    with pytest.raises(BadRecord, match=r"a value does not fit timedelta64\[25us\]"):
        span.encode(np.timedelta64(30, "us"))
    with pytest.raises(BadRecord, match=r"a timedelta64 without a unit where timedelta64\[25us\]"):
        span.encode(np.int64(40).view("m8"))
    # numpy would make it one of mean years, and back without loss
    for given, dtype in (
        (np.timedelta64(1, "Y"), "m8[s]"),
        (np.timedelta64(400, "M"), "m8[h]"),
        (np.timedelta64(365, "D"), "m8[Y]"),
    ):
        codec = codec_for(np.dtype(dtype))
        with pytest.raises(BadRecord, match="a month has no fixed number of days"):
            codec.encode(given)
        with pytest.raises(BadRecord, match="a month has no fixed number of days"):
            codec.encode_many(np.array([given]))
        assert np.isnat(codec.decode(codec.encode(np.array("NaT", given.dtype)[()])))
    years = codec_for(np.dtype("m8[M]"))
    assert years.decode(years.encode(np.timedelta64(2, "Y"))) == np.timedelta64(24, "M")
    days = codec_for(np.dtype("M8[D]"))
    assert days.decode(days.encode(np.datetime64("2024", "Y"))) == np.datetime64("2024-01-01")
    for codec in (moment, span):  # "not a time" has no unit, and needs none
        kind = type(codec.decode(bytes(8)))
        never = np.int64(-(2**63)).view(np.dtype(kind))
        assert np.isnat(codec.decode(codec.encode(never)))


def test_numpy_results_are_owned_and_writable():
    codec = codec_for(ALIGNED)
    slots = bytearray(codec.size * 3)
    array = codec.decode_many(slots, 3)
    array["seq"] = 7
    record = codec.decode(memoryview(slots))
    record["seq"] = 8
    assert slots == bytes(len(slots))
    assert array.shape == (3,)
    assert array.dtype == ALIGNED
    slots.extend(b"nothing holds a view of it")
    matrix = codec_for(np.dtype(("u2", (2, 3))))
    assert matrix.decode(bytes(12)).flags.writeable
    assert matrix.decode_many(bytearray(60), 5).shape == (5, 2, 3)
    assert matrix.decode_many(bytearray(), 0).shape == (0, 2, 3)


def test_no_result_keeps_a_view_of_the_slots():
    for spec, record in ROUND_TRIPS:
        codec = codec_for(spec)
        slots = bytearray(codec.encode(record)) * 2
        kept = codec.decode(memoryview(slots)[: codec.size]), codec.decode_many(slots, 2)
        slots.append(0)  # BufferError if a view were left
        assert kept


def test_arrays_are_encoded_without_a_copy():
    codec = codec_for(ALIGNED)
    array = np.arange(10).astype(ALIGNED)
    data, count = codec.encode_many(array)
    assert count == 10
    assert np.shares_memory(np.frombuffer(data, "u1"), array)
    for part in (array[::3], array[::-1], array[:0], array[2:5]):
        data, count = codec.encode_many(part)
        assert count == len(part)
        assert np.array_equal(np.frombuffer(data, ALIGNED), part)
    for number in range(4):  # the padding of what had to be copied is zero
        assert bytes(codec.encode_many(array[::3])[0])[number * 24 :][20:24] == bytes(4)
    matrices = np.arange(12, dtype="<u2").reshape(2, 2, 3)
    data, count = codec_for(np.dtype(("<u2", (2, 3)))).encode_many(matrices)
    assert (bytes(data), count) == (matrices.tobytes(), 2)
    array.flags.writeable = False
    assert codec.encode_many(array)[1] == 10


def test_arrays_of_another_kind_are_converted_or_refused():
    data, count = codec_for(np.dtype("<u2")).encode_many(np.arange(5))
    assert (bytes(data), count) == (np.arange(5, dtype="<u2").tobytes(), 5)
    with pytest.raises(BadRecord, match=r"^record 2: "):
        codec_for(np.uint16).encode_many(np.array([1, 2, 65536]))
    with pytest.raises(BadRecord, match=r"^record 0: "):
        codec_for(np.uint16).encode_many(np.array([1.0]))
    with pytest.raises(BadRecord, match=r"^record 0: "):
        codec_for(np.uint16).encode_many(np.zeros((2, 2), np.uint16))
    with pytest.raises(BadRecord, match="many records"):
        codec_for(np.uint16).encode_many(np.array(5, np.uint16))
    assert bytes(codec_for(np.float64).encode_many([1, 2.5, np.float32(3)])[0]) == (
        struct.pack("ddd", 1, 2.5, 3)
    )


def test_equal_dtypes_give_their_own_scalars():
    plain = np.dtype([("a", "u4")])
    record = np.dtype((np.record, plain))
    assert plain == record
    for _ in range(2):
        assert type(codec_for(plain).decode(bytes(4))) is np.void
        assert type(codec_for(record).decode(bytes(4))) is np.record


def test_arrays_of_arrays_round_trip():
    dtype = np.dtype((np.dtype(("<u2", (2,))), (3,)))
    codec = codec_for(dtype)
    record = np.arange(6, dtype="<u2").reshape(3, 2)
    assert same(dtype, "<6H")
    assert np.array_equal(codec.decode(codec.encode(record)), record)
    data, count = codec.encode_many(np.stack([record, record]))
    assert np.array_equal(codec.decode_many(data, count), [record, record])


def test_a_dtype_is_the_same_however_its_byte_order_is_spelt():
    little, big = codec_for(np.dtype("<u4")), codec_for(np.dtype(">u4"))
    assert little.encode(258) == b"\2\1\0\0"
    assert big.encode(258) == b"\0\0\1\2"
    assert big.encode(np.array(258, "<u4")[()]) == b"\0\0\1\2"
    assert bytes(big.encode_many(np.array([258], "<u4"))[0]) == b"\0\0\1\2"
    assert big.decode(b"\0\0\1\2") == 258


# Imports


def test_numpy_is_not_imported_by_any_other_spec():
    program = """
import sys
from typing import NamedTuple
from ipcqueue._records.fields import u64
from ipcqueue._records.spec import codec_for
class Tick(NamedTuple):
    seq: u64
for spec in (8, "<Q", Tick):
    codec_for(spec)
import ctypes
class Plain(ctypes.Structure):
    _fields_ = [("seq", ctypes.c_uint64)]
codec_for(Plain)
try:
    codec_for(None)
except TypeError:
    print("numpy" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.stderr == ""
    assert done.stdout == "False\n"


# Many at once: in C, in struct, or one by one


def both_ways(spec: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[Codec, Codec]:
    """Make the codec that packs in C, and the one that leaves all to struct."""
    in_c = _spec._make_codec.__wrapped__(spec, None)
    with monkeypatch.context() as patched:
        for module in (_structs, _classes):
            patched.setattr(module, "packer_in_c", lambda *_: None)
        return in_c, _spec._make_codec.__wrapped__(spec, None)


def outcome(function: Any, *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except Exception as error:  # noqa: BLE001 (which one is what is compared)
        return type(error), str(error)


class Iterated(tuple):
    """A tuple that gives something else when it is iterated over."""

    __slots__ = ()

    def __iter__(self):
        return iter((7,) * len(self))


class Index:
    def __index__(self):
        return 3


ODD_VALUES = (
    -1, 0, 1, 127, 128, -128, -129, 255, 256, 32767, 32768, -32769, 65535, 65536, 2**31 - 1, 2**31,
    -(2**31) - 1, 2**32 - 1, 2**32, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**64 - 1, 2**64,
    10**400, 0.0, -0.0, 1.5, 1e5, 70000.0, 1e300, float("inf"), float("nan"), True, False, None, "x",
    b"", b"x", b"12345678", b"x" * 40, bytearray(b"x"), Fraction(1, 2), Index(), np.int64(5),
    np.float64(2.5), np.float32(0.1), (), [],
)  # fmt: skip


def fitting(draw: random.Random, code: str, count: int) -> Any:
    """Make a value that the field takes."""
    if code == "s":
        return draw.randbytes(draw.randint(0, count))
    if code == "c":
        return draw.randbytes(1)
    if code == "?":
        return draw.random() < 0.5
    if code in "efd":
        return draw.choice([draw.uniform(-1000, 1000), draw.randint(-1000, 1000)])
    bits = 8 * struct.calcsize("=" + code if code not in "nN" else code)
    low = -(1 << (bits - 1)) if code.islower() else 0
    return draw.randrange(low, low + (1 << bits)) >> draw.choice([0, bits // 2, bits - 1])


def random_format(draw: random.Random) -> tuple[str, list[tuple[str, int]]]:
    mode = draw.choice(["", "@", "=", "<", ">", "!"])
    codes = "bBhHiIlLqQefdc?sx" + ("nN" if mode in {"", "@"} else "")
    items = [(draw.choice(codes), draw.choice([1, 1, 1, 2, 5])) for _ in range(draw.randint(1, 8))]
    fields = [
        field
        for code, count in items
        if code != "x"
        for field in ([(code, count)] if code == "s" else [(code, 1)] * count)
    ]
    return mode + "".join(f"{count}{code}" for code, count in items), fields


def test_tuples_are_packed_and_unpacked_in_c_as_struct_does_it(monkeypatch):
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    monkeypatch.setattr(_structs, "encoder_of_many", counted(one_by_one := [], encoder_of_many))
    for _ in range(400):
        form, fields = random_format(draw)
        in_c, plain = both_ways(form, monkeypatch)
        kind = draw.choice([tuple, list])
        good = [kind(fitting(draw, *field) for field in fields) for _ in range(9)]
        data, count = plain.encode_many(good)
        one_by_one.clear()
        assert in_c.encode_many(good) == (data, count) == (b"".join(map(plain.encode, good)), 9)
        assert one_by_one == [], form
        assert repr(in_c.decode_many(data, 9)) == repr(plain.decode_many(data, 9)), form
        noise = draw.randbytes(len(data))
        assert repr(in_c.decode_many(noise, 9)) == repr(plain.decode_many(noise, 9)), form
        for _ in range(10):  # something wrong, or only unusual
            records = [list(record) for record in good]
            record = draw.choice(records)
            if record and draw.random() < 0.9:
                record[draw.randrange(len(record))] = draw.choice(ODD_VALUES)
            else:
                record[:] = record[:-1] if draw.random() < 0.5 else [*record, 1]
            records = [kind(record) for record in records]
            if draw.random() < 0.1:
                records[draw.randrange(9)] = draw.choice(
                    [None, "x" * len(fields), Iterated(good[0]), {}, *ODD_VALUES]
                )
            expected = outcome(encoder_of_many(plain.encode), records)
            assert outcome(in_c.encode_many, records) == expected, (form, records)
            assert outcome(plain.encode_many, records) == expected, (form, records)


def counted(calls: list[Any], make: Any) -> Any:
    """Have what `make` makes noted when it is called."""

    def wrapped(encode: Any) -> Any:
        many = make(encode)

        def noted(records: Any) -> Any:
            calls.append(records)
            return many(records)

        return noted

    return wrapped


@dataclass
class Fill:
    seq: u64
    price: f64
    lots: u32
    symbol: Annotated[bytes, "8s"]


@dataclass
class Single:
    seq: u64


class Subquote(Quote):
    """Has a dict."""


GOOD_LISTS: dict[str, tuple[Any, list[Any]]] = {
    "tuples": ("<QdI8s", [(1, 2.0, 3, b"4"), (5, 6, 7, b"")]),
    "lists": ("<QdI8s", [[1, 2.0, 3, b"4"], (5, 6, 7, b"")]),
    "aligned, with a gap at the end": ("dB", [(1.0, 2), (3.0, 4)]),
    "NamedTuples": (Quote, [Quote(1, 2.0, 3, b"4"), (5, 6, 7, b"")]),
    "dataclasses": (Fill, [Fill(1, 2.0, 3, b"4"), Fill(5, 6, 7, b"")]),
    "a single field": (Single, [Single(1), Single(2)]),
    "none": ("<QdI8s", []),
}


@pytest.mark.parametrize(("spec", "records"), GOOD_LISTS.values(), ids=GOOD_LISTS)
def test_a_list_without_faults_is_never_packed_one_by_one(spec, records, monkeypatch):
    monkeypatch.setattr(_structs, "encoder_of_many", counted(one_by_one := [], encoder_of_many))
    for codec in both_ways(spec, monkeypatch):
        expected = b"".join(map(codec.encode, records))
        assert codec.encode_many(records) == (expected, len(records))
        assert codec.encode_many(tuple(records)) == (expected, len(records))
        assert one_by_one == []
        got = codec.decode_many(expected, len(records))
        assert got == [codec.decode(codec.encode(record)) for record in records]
        assert [type(record) for record in got] == [
            spec if isinstance(spec, type) else tuple for _ in records
        ]


@pytest.mark.parametrize(
    ("spec", "good", "wrong"),
    [
        ("<QdI8s", (1, 2.0, 3, b"4"), (1, 2.0, 3, b"nine char")),  # struct would cut it
        ("<QdI8s", (1, 2.0, 3, b"4"), (1.5, 2.0, 3, b"4")),
        ("<QdI8s", (1, 2.0, 3, b"4"), "QdIs"),
        (Quote, Quote(1, 2.0, 3, b"4"), EveryKind(*[0] * len(EveryKind._fields))),
        (Quote, Quote(1, 2.0, 3, b"4"), [1, 2.0, 3, b"4"]),
        (Quote, Quote(1, 2.0, 3, b"4"), Quote(1, 2.0, -3, b"4")),
        (Fill, Fill(1, 2.0, 3, b"4"), (1, 2.0, 3, b"4")),
        (Fill, Fill(1, 2.0, 3, b"4"), Fill(1, 2.0, 3, b"nine char")),
        (Fill, Fill(1, 2.0, 3, b"4"), Fill.__new__(Fill)),
    ],
)
def test_what_is_wrong_in_a_list_is_found_by_its_index(spec, good, wrong, monkeypatch):
    for codec in both_ways(spec, monkeypatch):
        with pytest.raises(BadRecord) as one:
            codec.encode(wrong)
        with pytest.raises(BadRecord) as many:
            codec.encode_many([good, good, wrong, good, wrong])
        assert str(many.value) == f"record 2: {one.value}"


def test_unusual_records_are_sent_all_the_same(monkeypatch):
    for codec in both_ways("<HHd", monkeypatch):
        records = [(1, Index(), np.float32(0.5)), Iterated((1, 2, 3)), (True, np.int8(4), False)]
        got = codec.decode_many(*codec.encode_many(records))
        assert got == [(1, 3, 0.5), (7, 7, 7.0), (1, 4, 0.0)]
    for codec in both_ways(Quote, monkeypatch):
        assert codec.encode_many([Subquote(1, 2.0, 3, b"4")])[0] == codec.encode((1, 2.0, 3, b"4"))
    for codec in both_ways("<HH", monkeypatch):

        def again_and_again():
            record = [0, 0]
            for record[0] in range(3):
                yield record

        assert codec.decode_many(*codec.encode_many(again_and_again())) == [(0, 0), (1, 0), (2, 0)]


def test_unpacked_records_hold_no_more_than_their_items(monkeypatch):
    in_c, _ = both_ways("<QdI8s", monkeypatch)
    data = in_c.encode_many([(10**9, 2.0, 3, b"4")] * 3)[0]
    records = in_c.decode_many(data, 3)
    # As the collector would leave them: so large batches cause it no work.
    assert not any(map(gc.is_tracked, records))
    with pytest.raises(ValueError, match="no records"):
        pytest.importorskip("ipcqueue._packer").Packer((("u", 0, 8),), 8, None).unpack(bytes(9))


@pytest.mark.parametrize(
    "arguments",
    [
        ((), 8, None),
        ((("u", 0, 8),), 0, None),
        ((("u", 1, 8),), 8, None),
        ((("u", -1, 8),), 8, None),
        ((("u", 0, 3),), 8, None),
        ((("p", 0, 4),), 8, None),
        ((("s", 0, 1 << 62),), 8, None),
        ((("u", 0),), 8, None),
        ((("u", 0, 8),), 8, list),
        ([("u", 0, 8)], 8, None),
    ],
    ids=repr,
)
def test_a_packer_reaches_no_further_than_its_record(arguments):
    records = pytest.importorskip("ipcqueue._packer", reason="CPython has it")
    with pytest.raises((TypeError, ValueError)):
        records.Packer(*arguments)
