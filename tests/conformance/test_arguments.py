"""Arguments at every door: numbers, times, user ids and options, checked before anything is opened."""

from __future__ import annotations

import asyncio
import ctypes
import functools
import math
import os
import re
import socket
from datetime import timedelta
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.ma
import pytest
import trio

import ipcqueue
import ipcqueue.lowlevel
import memenpsf
import memenpsf.asyncio
import memenpsf.trio
from memenpsf import BadRecord, Message, _options, _pending
from tests.kit.doors import scenario


class Union(ctypes.Union):
    _fields_ = [("pointer", ctypes.c_void_p), ("number", ctypes.c_uint64)]


class Holder(ctypes.Structure):
    _fields_ = [("union", Union)]


BAD_SPECS = {
    "struct": "QP",
    "c_void_p": ctypes.c_void_p,
    "c_void_p array": ctypes.c_void_p * 2,
    "structure": Holder,
    "dtype O": np.dtype("O"),
    "nested O": np.dtype([("a", [("b", "O", 2)])]),
    "O in arrays": np.dtype([("a", np.dtype(("O", 2)))]),
    "functions": ctypes.CFUNCTYPE(None) * 1,
    "py_object": ctypes.py_object * 1,
    "c_char_p": ctypes.c_char_p * 1,
}


def doors(address):
    """What opens a connection or an address: its name, and a function of record and options."""

    def over_socket(make):
        def call(record, **options):
            ours, theirs = socket.socketpair()
            with theirs:
                try:
                    made = make(ours, record, **options)
                except BaseException:
                    assert ours.fileno() == -1, "the socket was taken"
                    raise
                made.close()

        return call

    def in_trio(function):
        def call(*arguments, **options):
            async def main():
                await function(*arguments, **options)

            trio.run(main)

        return call

    def in_asyncio(function):
        return lambda *arguments, **options: asyncio.run(function(*arguments, **options))

    async def handler(_):
        raise AssertionError

    return {
        "Interface": over_socket(memenpsf.Interface),
        "Sender": over_socket(ipcqueue.Sender),
        "Receiver": over_socket(ipcqueue.Receiver),
        "pair": memenpsf.pair,
        "queue pair": ipcqueue.pair,
        "connect": lambda record, **options: memenpsf.connect(address, record, **options),
        "listen": lambda record, **options: memenpsf.listen(address, record, **options),
        "serve": lambda record, **options: memenpsf.serve(print, address, record, **options),
        "trio Interface": over_socket(memenpsf.trio.Interface),
        "trio connect": in_trio(
            lambda record, **options: memenpsf.trio.connect(address, record, **options)
        ),
        "trio listen": in_trio(
            lambda record, **options: memenpsf.trio.listen(address, record, **options)
        ),
        "trio serve": in_trio(
            lambda record, **options: memenpsf.trio.serve(handler, address, record, **options)
        ),
        "asyncio Interface": over_socket(memenpsf.asyncio.Interface),
        "asyncio connect": in_asyncio(
            lambda record, **options: memenpsf.asyncio.connect(address, record, **options)
        ),
        "asyncio listen": in_asyncio(
            lambda record, **options: memenpsf.asyncio.listen(address, record, **options)
        ),
        "asyncio serve": in_asyncio(
            lambda record, **options: memenpsf.asyncio.serve(handler, address, record, **options)
        ),
    }


DOORS = sorted(
    [
        "Interface",
        "Sender",
        "Receiver",
        "pair",
        "queue pair",
        "connect",
        "listen",
        "serve",
        "trio Interface",
        "trio connect",
        "trio listen",
        "trio serve",
        "asyncio Interface",
        "asyncio connect",
        "asyncio listen",
        "asyncio serve",
    ]
)


@pytest.fixture(params=DOORS)
def door(request, tmp_path):
    return request.param, doors(str(tmp_path / "s"))[request.param], tmp_path


def open_descriptors():
    return sorted(path.name for path in Path("/proc/self/fd").iterdir())


def opens_nothing(door, kind, match, record="<Q", **options):
    _, call, folder = door
    before = open_descriptors()
    with pytest.raises(kind, match=match) as caught:
        call(record, **options)
    assert list(folder.iterdir()) == []
    assert open_descriptors() == before
    return caught.value


class TestDoors:
    @pytest.mark.parametrize("what", BAD_SPECS)
    def test_pointers_are_no_spec(self, door, what):
        opens_nothing(door, TypeError, None, record=BAD_SPECS[what])

    @pytest.mark.parametrize(
        ("wrong", "kind"),
        [
            (1000, TypeError),
            (np.int64(1000), TypeError),
            ("1000", TypeError),
            (b"0", TypeError),
            ({"0"}, TypeError),
            ([None], TypeError),
            ([True], TypeError),
            ([0.0], TypeError),
            ([-1], ValueError),
            ([0xFFFFFFFF], ValueError),
            (np.array(0), TypeError),
        ],
        ids=repr,
    )
    def test_who_is_admitted_is_checked_at_once(self, door, wrong, kind):
        opens_nothing(door, kind, "allow_uids", allow_uids=wrong)

    @pytest.mark.parametrize(
        ("options", "hint"),
        [
            ({"capcity": 1}, "'capcity'; did you mean 'capacity'?"),
            ({"allow_uid": {0}}, "'allow_uid'; did you mean 'allow_uids'?"),
            ({"acept": 1}, "'acept'; did you mean 'accept'?"),
            ({"xyzzy": 1}, "'xyzzy'; there are accept, allow_uids, "),
            ({"accept_fds": 1}, "'accept_fds': write accept=Accept(fds=...) instead"),
            ({"fds": 1}, "'fds': write accept=Accept(fds=...) instead"),
        ],
    )
    def test_an_unknown_option_is_named_with_the_nearest(self, door, options, hint):
        name = door[0].split(" ")[-1]
        opens_nothing(
            door, TypeError, re.escape(f"{name}() got an unknown option {hint}"), **options
        )

    @pytest.mark.parametrize(
        ("options", "kind", "match"),
        [
            ({"timeout": "1"}, TypeError, "timeout is None, a number of seconds or a datetime"),
            ({"timeout": True}, TypeError, "timeout is None, a number of seconds or a datetime"),
            ({"timeout": timedelta(-1)}, ValueError, "timeout is None or at least 0 seconds"),
            ({"capacity": np.bool_(True)}, TypeError, "capacity is a number"),
            ({"capacity": np.float64(4)}, TypeError, "capacity is a number"),
            ({"max_segment": "1 GiB"}, TypeError, "max_segment is a number"),
            ({"max_segment": -1}, ValueError, "max_segment is from 4096"),
            ({"accept": 64 << 20}, TypeError, "accept is an Accept"),
            ({"wait": "slep"}, ValueError, "wait is one of"),
            ({"name": b"x"}, TypeError, "a name is a str"),
        ],
    )
    def test_wrong_values_open_nothing(self, door, options, kind, match):
        opens_nothing(door, kind, match, **options)

    def test_numbers_of_numpy_are_numbers(self, tmp_path):
        for name, call in doors(str(tmp_path / "s")).items():
            if name not in {"pair", "queue pair"}:
                continue
            for spec in (bytes, np.int64(8)):
                first, second = call(
                    spec,
                    capacity=np.int32(8192),
                    accept=memenpsf.Accept(
                        message=np.uint64(4096),
                        fds=np.int64(1),
                        regions=np.int64(1),
                        region=np.int64(4096),
                    ),
                    inline=np.int8(100),
                    max_segment=np.int64(1 << 20),
                    timeout=timedelta(seconds=5),
                    wait=memenpsf.Spin(np.float32(0.0001)),
                    allow_uids=np.array([os.getuid()]),
                )
                with first, second:
                    assert first.capacity == 8192
                    assert type(first.capacity) is int


# What a confused or hostile program may give as any option.
HOSTILE = (
    None, True, 0, -1, 1 << 100, -(1 << 100), 1.5, math.nan, math.inf, 3j,
    "", "x", "a\0b", "\ud800", "x" * 200, b"", b"x", bytearray(b"x"),
    [], {}, object(), int, abs, np.array([1, 2]), np.str_("x"), np.float64(1), [1 << 100], [math.nan],
)  # fmt: skip

# Those of them that an option takes, by their repr().
TAKEN = {
    "accept": set(),
    "allow_uids": {"None", "[]", "{}", "array([1, 2])"},
    "capacity": {"None"},
    "group": {"None", "0"},
    "inline": {"None", "0"},
    "max_segment": set(),
    "mode": {"None", "0"},
    "name": {"''", "'x'", repr(np.str_("x"))},
    "quota": set(),
    "role": set(),
    "timeout": {"None", "0", repr(1 << 100), "1.5", "inf", repr(np.float64(1))},
    "wait": set(),
}


def refused_for(option):
    return [value for value in HOSTILE if repr(value) not in TAKEN[option]]


def takes(door, option):
    """Whether it is an option of this door."""
    name = door[0]
    if option == "role":
        return "pair" not in name and name not in {"Sender", "Receiver"}
    return option not in _options.LISTENING or name.split()[-1] in {"listen", "serve"}


def test_all_options_are_tried():
    assert TAKEN.keys() == ipcqueue.lowlevel.Terms.OPTIONS | _options.LISTENING


@pytest.mark.parametrize("option", TAKEN)
def test_what_an_option_cannot_be_is_told_before_anything_is_opened(door, option):
    """The error is plain, names the option and shows the value; no inner layer speaks."""
    if not takes(door, option):
        return
    for wrong in refused_for(option):
        error = opens_nothing(door, (TypeError, ValueError), option, **{option: wrong})
        assert type(error) in (TypeError, ValueError), wrong
        shown = wrong[0] if isinstance(wrong, list) and wrong and option == "allow_uids" else wrong
        assert repr(shown) in str(error), wrong


@pytest.mark.parametrize("field", memenpsf.Accept._fields)
def test_so_is_what_a_field_of_accept_cannot_be(field):
    flags = {"shared", "sockets"}
    taken = {"True"} if field in flags else set() if field == "region" else {"0"}
    for wrong in HOSTILE:
        if repr(wrong) not in taken:
            with pytest.raises((TypeError, ValueError), match=f"{field} of Accept") as caught:
                memenpsf.Accept(**{field: wrong})
            assert repr(wrong) in str(caught.value)


@pytest.mark.parametrize("field", memenpsf.Quota._fields)
def test_so_is_what_a_field_of_a_quota_cannot_be(field):
    taken = {"None"} if field in {"connections", "bytes", "descriptors"} else set()
    for wrong in HOSTILE:
        if repr(wrong) not in taken:
            with pytest.raises((TypeError, ValueError), match=f"{field} of Quota") as caught:
                memenpsf.Quota(**{field: wrong})
            assert repr(wrong) in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [each for each in HOSTILE if type(each) is not str or "\0" in each or each == "\ud800"],
    ids=repr,
)
def test_so_is_what_an_address_cannot_be(wrong):
    for call in (memenpsf.connect, memenpsf.listen, functools.partial(memenpsf.serve, print)):
        if isinstance(wrong, np.str_):
            continue
        with pytest.raises((TypeError, ValueError), match="an address is") as caught:
            call(wrong, "<Q")
        assert type(caught.value) in (TypeError, ValueError)
        assert repr(wrong) in str(caught.value)


@pytest.mark.parametrize(
    ("option", "wrong", "text"),
    [
        ("max_segment", 0, "max_segment is from 4096 to"),
        ("name", "a\0b", r"a name has no null character, and this one has: 'a\\x00b'"),
        ("name", "\ud800", "a name is text that UTF-8 can encode"),
        ("name", "ä" * 33, "a name is at most 64 bytes of UTF-8, not 66"),
        ("capacity", 10**30, "a capacity of 10{30} is more than a file can hold: here it is at"),
        ("inline", 1 << 20, "inline is from 0 to 131072, not 1048576"),
    ],
)
def test_it_says_what_is_wrong_with_it(door, option, wrong, text):
    opens_nothing(door, ValueError, text, **{option: wrong})


def test_the_options_of_a_listener_are_those_that_it_takes():
    assert _pending.PendingClients._set_up.__kwdefaults__.keys() == _options.LISTENING


def test_options_of_a_listener_are_sent_there():
    with pytest.raises(TypeError, match=r"'quota', which goes to listen\(\)"):
        memenpsf.connect("nobody", "<Q", quota=memenpsf.Quota(places=3))
    with pytest.raises(TypeError, match=r"did you mean 'quota' of listen\(\)\?"):
        memenpsf.pair("<Q", quoter=3)
    for option in ("max_pending", "places"):
        now = "quota=Quota(places=...)"
        there = re.escape(f"{option!r}: write listen({now}) instead")
        with pytest.raises(TypeError, match=there):
            memenpsf.pair("<Q", **{option: 3})
        here = re.escape(f"{option!r}: write {now} instead")
        for serve in (memenpsf.listen, functools.partial(memenpsf.serve, print)):
            with pytest.raises(TypeError, match=here):
                serve("@nobody", "<Q", **{option: 3})


def over_a_socket(make):
    def call(record, **options):
        ours, theirs = socket.socketpair()
        with theirs:
            return make(ours, record, **options)

    return call


@pytest.mark.parametrize(
    ("call", "option", "hint"),
    [
        (memenpsf.pair, "role", "which goes to Interface(), connect() or listen()"),
        (memenpsf.pair, "rol", "did you mean 'role' of Interface(), connect() or listen()?"),
        (over_a_socket(memenpsf.Interface), "rol", "did you mean 'role'?"),
        (over_a_socket(memenpsf.trio.Interface), "rol", "did you mean 'role'?"),
        (over_a_socket(memenpsf.Interface), "mode", "which goes to listen()"),
        (functools.partial(memenpsf.connect, "@x"), "rol", "did you mean 'role'?"),
        (functools.partial(memenpsf.connect, "@x"), "on_error", "which goes to serve()"),
        (functools.partial(memenpsf.listen, "@x"), "on_error", "which goes to serve()"),
        (functools.partial(memenpsf.serve, print, "@x"), "on_eror", "did you mean 'on_error'?"),
        (functools.partial(memenpsf.serve, print, "@x"), "start", "did you mean 'started'?"),
        (ipcqueue.pair, "role", "there are accept, allow_uids, "),
        (ipcqueue.pair, "mode", "there are accept, allow_uids, "),
    ],
)
def test_a_hint_fits_the_function_that_was_called(call, option, hint):
    with pytest.raises(TypeError, match=re.escape(f"{option!r}") + "[,;] " + re.escape(hint)):
        call("<Q", **{option: 1})


def test_what_run_takes_as_an_argument_is_not_listed_as_an_option():
    ours, theirs = socket.socketpair()
    with theirs, pytest.raises(TypeError) as caught:
        memenpsf.run("x", 1, 0, ours, None, None, "<Q", xyzzy=1)
    assert "capacity" not in str(caught.value)


@pytest.mark.parametrize("option", ["capacity", "role", "capcity"])
def test_run_has_arguments_for_some(option):
    import queue

    ours, theirs = socket.socketpair()
    with theirs:
        with pytest.raises(TypeError, match=r"run\(\) got an unknown option"):
            memenpsf.run("x", 1, 0, ours, queue.Queue(), queue.Queue(), "<Q", **{option: 1})
        assert ours.fileno() == -1

    async def main():
        ours, theirs = socket.socketpair()
        with theirs:
            with pytest.raises(TypeError, match=r"run\(\) got an unknown option"):
                await memenpsf.trio.run("x", 1, 0, ours, None, None, "<Q", **{option: 1})
            assert ours.fileno() == -1

    trio.run(main)


@pytest.mark.parametrize("make", [iter, set, list, lambda uids: (u for u in uids), np.array])
def test_who_is_admitted_is_kept_as_it_was(make, tmp_path):
    given = make([os.getuid()])
    terms = ipcqueue.lowlevel.Terms(
        "<Q", ipcqueue.lowlevel.Role(sends=True, receives=True), allow_uids=given
    )
    assert terms.allow_uids == {os.getuid()}
    assert {type(uid) for uid in terms.allow_uids} == {int}
    if isinstance(given, set):
        given.clear()
    assert terms.allow_uids == {os.getuid()}


def test_an_empty_set_admits_nobody():
    terms = ipcqueue.lowlevel.Terms(
        "<Q", ipcqueue.lowlevel.Role(sends=True, receives=True), allow_uids=()
    )
    assert terms.allow_uids == frozenset()
    with pytest.raises(memenpsf.CredentialsRefused):
        memenpsf.pair("<Q", allow_uids=set())


class TestVerbs:
    @pytest.fixture
    def both(self):
        first, second = memenpsf.pair(bytes, capacity=4096)
        with first, second:
            yield first, second

    ZEROS = (timedelta(0), Fraction(0), np.float32(0), np.timedelta64(0, "s"), np.int64(0))

    @pytest.mark.parametrize("zero", ZEROS, ids=repr)
    def test_no_time_is_no_time(self, both, zero):
        first, second = both
        assert second.recv(zero) is None
        assert second.recv_vectored(np.int64(3), timeout=zero) == []
        assert second.recv_message(zero) is None
        assert second.recv_ctrl_msg(zero) is None
        with second.borrow(timeout=zero) as borrowed:
            assert len(borrowed) == 0
        first.xmit(bytes(1000), zero)
        first.xmit_many([b"x"], zero)
        assert len(second.recv_vectored(timeout=zero)) == 2
        with first.loan(np.int64(3000), timeout=zero, tag=np.uint32(7), flags=np.uint8(3)) as loan:
            loan.data[:] = bytes(3000)
            loan.shrink(np.int64(5))
        message = second.recv_message(zero)
        assert message.record == bytes(5)

    @pytest.mark.parametrize("wrong", ["1", "", True, b"1", [1]], ids=repr)
    def test_what_is_no_time_is_told(self, both, wrong):
        first, second = both
        for call in (
            lambda: second.recv_vectored(timeout=wrong),
            lambda: second.recv_message(wrong),
            lambda: second.borrow(timeout=wrong),
            lambda: first.xmit_many([b"x"], wrong),
            lambda: first.loan(1, timeout=wrong),
            lambda: first.send_ctrl_msg(b"\x80\0", wrong),
            lambda: second.recv_ctrl_msg(wrong),
        ):
            with pytest.raises(TypeError, match=r"a number of seconds or a datetime\.timedelta"):
                call()
        assert second.recv(0) is None

    @pytest.mark.parametrize(
        ("given", "text"),
        [(timedelta(milliseconds=1), "0.001 s"), (Fraction(1, 1000), "0.001 s"), (0.0, "0 s")],
    )
    def test_errors_say_the_time_that_was_given(self, both, given, text):
        first, _ = both
        while True:
            try:
                first.xmit(bytes(900), 0)
            except memenpsf.Full:
                break
        with pytest.raises(memenpsf.Full, match=rf"within {text}$"):
            first.xmit(bytes(900), given)
        with pytest.raises(memenpsf.Full, match=rf"within {text}$"), first.loan(900, timeout=given):
            pass

    def test_tags_are_numbers(self):
        first, second = memenpsf.pair(Message)
        with first, second:
            first.xmit(Message(b"x", np.uint32(7), np.uint8(3)))
            assert second.recv() == Message(b"x", 7, 3)
            for wrong in (np.bool_(True), np.float64(1), np.ma.array(1, mask=True), -1, "1"):
                with pytest.raises(BadRecord, match="tag is a number from 0"):
                    first.xmit(Message(b"x", wrong))
                with pytest.raises(BadRecord, match="tag is a number from 0"):
                    first.loan(1, tag=wrong)

    @pytest.mark.parametrize("wrong", [True, np.bool_(True), 1.0, "1", np.array([1, 2])], ids=repr)
    def test_no_numbers_of_records(self, both, wrong):
        first, second = both
        with pytest.raises(TypeError, match="limit is a number of records"):
            second.recv_vectored(wrong, 0)
        with pytest.raises(TypeError, match="limit is a number of records"):
            second.borrow(wrong)
        with pytest.raises(TypeError, match="the size of a loan is a number"):
            first.loan(wrong)


def test_connecting_says_the_time_that_was_given(tmp_path):
    """A listener that never answers: the handshake's part of the time is not what is told."""
    address = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        for given, text in ((timedelta(milliseconds=30), "0.03 s"), (0.03, "0.03 s")):
            with pytest.raises(memenpsf.HandshakeTimeout, match=rf"within {text}:"):
                memenpsf.connect(address, "<Q", timeout=given)

    Path(address).unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()

        async def main():
            with pytest.raises(memenpsf.HandshakeTimeout, match=r"within 0.03 s:"):
                await memenpsf.trio.connect(address, "<Q", timeout=timedelta(milliseconds=30))

        trio.run(main)


def test_trio_takes_every_kind_of_time():

    async def main():
        ours, theirs = socket.socketpair()
        one, other = memenpsf.trio.Interface(ours, bytes), memenpsf.trio.Interface(theirs, bytes)
        async with one, other:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(other.do_handshake)
                await one.do_handshake()
            for zero in TestVerbs.ZEROS:
                assert await other.recv(zero) is None
                assert await other.recv_vectored(timeout=zero) == []
                assert await other.recv_message(zero) is None
                assert await other.recv_ctrl_msg(zero) is None
                await one.xmit(b"x", zero)
                await one.xmit_many([b"y"], zero)
                await one.send_ctrl_msg(b"\x80\0", zero)
                async with one.loan(1, timeout=zero) as loan:
                    loan.data[:] = b"z"
                assert await other.recv_vectored(timeout=zero) == [b"x", b"y", b"z"]
                assert await other.recv_ctrl_msg(timedelta(seconds=5)) == b"\x80\0"
            for wrong in ("1", True, math.nan):
                with pytest.raises((TypeError, ValueError), match="timeout is None"):
                    await other.recv(wrong)
                with pytest.raises((TypeError, ValueError), match="timeout is None"):
                    await one.xmit(b"x", wrong)

    trio.run(main)


def test_a_listener_waits_for_a_timedelta(tmp_path):
    with memenpsf.listen(
        str(tmp_path / "s"), "<Q", quota=memenpsf.Quota(places=np.int64(3), connections=np.int64(2))
    ) as listener:
        with pytest.raises(TimeoutError, match=r"no client within 0.001 s$"):
            listener.accept(timedelta(milliseconds=1))
        with pytest.raises(TypeError, match="timeout is None, a number"):
            listener.accept("1")


@pytest.mark.parametrize("stream", [None, 3, "socket"])
@scenario
async def test_what_is_no_socket_is_a_type_error(door, stream):
    with pytest.raises(TypeError):
        await door.interface(stream, 8)
