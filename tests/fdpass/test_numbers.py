"""What serves as a number, and as a time."""

from __future__ import annotations

import math
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction

import numpy as np
import numpy.ma
import pytest

import fdpass
import fdpass.lowlevel


class Index:
    def __index__(self):
        return 7


@pytest.mark.parametrize("number", [7, np.int64(7), np.uint8(7), np.array(7), Index()], ids=repr)
def test_whatever_has_an_index_is_a_number(number):
    result = fdpass.lowlevel.index_of(number)
    assert result == 7
    assert type(result) is int


@pytest.mark.parametrize(
    "number",
    [True, np.bool_(True), 7.0, np.float64(7), Decimal(7), "7", b"7", None, np.array([7, 8])],
    ids=repr,
)
def test_all_else_is_none(number):
    with pytest.raises(TypeError):
        fdpass.lowlevel.index_of(number)


def test_a_masked_number_is_none():
    with pytest.raises(TypeError):
        fdpass.lowlevel.index_of(numpy.ma.array(7, mask=True))
    with pytest.raises(TypeError, match="not masked"):
        fdpass.lowlevel.seconds_of(numpy.ma.array(7.0, mask=True).reshape(()), "timeout")
    assert fdpass.lowlevel.index_of(numpy.ma.array(7)) == 7


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        (None, math.inf),
        (0, 0),
        (1, 1),
        (0.25, 0.25),
        (math.inf, math.inf),
        (10**400, math.inf),
        (np.float32(0.25), 0.25),
        (np.float64(0.25), 0.25),
        (np.int16(3), 3),
        (np.array(1.5), 1.5),
        (Fraction(1, 4), 0.25),
        (Decimal("0.25"), 0.25),
        (timedelta(milliseconds=250), 0.25),
        (timedelta(0), 0),
        (timedelta.max, timedelta.max.total_seconds()),
        (np.timedelta64(250, "ms"), 0.25),
        (np.timedelta64(2, "m"), 120),
    ],
    ids=repr,
)
def test_a_time_is_seconds_or_says_its_unit(given, seconds):
    assert fdpass.lowlevel.seconds_of(given) == seconds
    assert type(fdpass.lowlevel.seconds_of(given)) is float


@pytest.mark.parametrize(
    "given",
    ["1", b"1", "", np.str_("1"), True, False, np.bool_(True), 1j, [1], object(), np.zeros(2)],
    ids=repr,
)
def test_what_is_no_time_is_told_what_is(given):
    expected = r"patience is None, a number of seconds or a datetime.timedelta, not "
    with pytest.raises(TypeError, match=expected):
        fdpass.lowlevel.seconds_of(given, "patience")


@pytest.mark.parametrize(
    "given",
    [-1, -0.5, math.nan, -(10**400), Decimal("nan"), timedelta(-1), np.timedelta64("NaT", "s")],
    ids=repr,
)
def test_no_time_is_less_than_nothing(given):
    with pytest.raises(ValueError, match="timeout is None or at least 0 seconds, not "):
        fdpass.lowlevel.seconds_of(given)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (1, "1 s"),
        (1.0, "1 s"),
        (0.25, "0.25 s"),
        (0.1 + 0.2, "0.3 s"),
        (0.0001, "0.0001 s"),
        (Fraction(1, 3), "0.333333 s"),
        (timedelta(minutes=2), "120 s"),
        (123456789, "123456789 s"),
    ],
    ids=repr,
)
def test_a_time_is_shown_as_it_was_given(given, text):
    assert fdpass.lowlevel.shown_seconds(given) == text


@pytest.mark.parametrize("index", [np.int64, np.uint32], ids=str)
def test_descriptors_and_sizes_may_be_numbers_of_numpy(index):
    import os
    import socket

    with fdpass.Fd(index(os.dup(0))) as fd:
        assert type(fd.fileno()) is int
        with fdpass.Memfd.create("x", index(4096)) as memfd:
            assert type(memfd.size) is int
            ours, theirs = socket.socketpair()
            with ours, theirs:
                fdpass.send_fd(ours, index(memfd.fileno()))
                _, (came,) = fdpass.recv_fds(theirs, index(1), index(1))
            memfd.seal(fdpass.Seal.SHRINK | fdpass.Seal.GROW | fdpass.Seal.SEAL)
            with fdpass.Memfd.adopt(came, max_size=index(4096)) as adopted:
                assert adopted.size == 4096
    with (
        fdpass.MemoryRegistry(keep=timedelta(seconds=1)) as registry,
        registry.alloc(index(100)) as region,
    ):
        assert region.size == 100
    with (
        fdpass.MemoryRegion.create(index(100)) as region,
        fdpass.MemoryRegion.adopt(
            [index(os.dup(each.fileno())) for each in region.descriptors()], max_size=index(4096)
        ) as adopted,
    ):
        assert adopted.size == 100


@pytest.mark.parametrize("wrong", [True, "0", 0.0, None])
def test_what_is_no_number_opens_nothing(wrong):
    with pytest.raises((TypeError, ValueError)):
        fdpass.Memfd.create("x", wrong)
    with pytest.raises(TypeError):
        fdpass.Fd(wrong)


@pytest.mark.parametrize("size", [0, -1])
@pytest.mark.parametrize("maker", ["memory file", "region", "registry"])
def test_no_size_is_a_value_error(maker, size):
    with fdpass.MemoryRegistry() as registry:
        make = {
            "memory file": lambda size: fdpass.Memfd.create("test", size),
            "region": fdpass.MemoryRegion.create,
            "registry": registry.alloc,
        }[maker]
        with pytest.raises(ValueError, match=f"at least 1 byte, received {size}"):
            make(size)
