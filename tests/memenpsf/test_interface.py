"""Interface: two queues, one each way, between threads of one process."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import ipcqueue
import memenpsf
from memenpsf import Interface


class Tick(NamedTuple):
    number: memenpsf.u64
    price: memenpsf.f64
    lots: memenpsf.u32


@dataclass
class TickClass:
    number: memenpsf.u64
    price: memenpsf.f64
    lots: memenpsf.u32


class TickStructure(ctypes.LittleEndianStructure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("n", ctypes.c_uint64), ("p", ctypes.c_double), ("l", ctypes.c_uint32))


TICK_DTYPE = np.dtype([("a", "<u8"), ("b", "<f8"), ("c", "<u4")])

TICKS = {
    "format": ("<QdI", (7, 2.5, 3)),
    "struct": (struct.Struct("<QdI"), (7, 2.5, 3)),
    "namedtuple": (Tick, Tick(7, 2.5, 3)),
    "dataclass": (TickClass, TickClass(7, 2.5, 3)),
    "ctypes": (TickStructure, TickStructure(7, 2.5, 3)),
    "numpy": (TICK_DTYPE, np.array((7, 2.5, 3), TICK_DTYPE)[()]),
}


@pytest.fixture
def pool():
    with ThreadPoolExecutor(16) as executor:
        yield executor


def outcomes(pool, one, other, **kwargs):
    """What two sides of a handshake end with: an Interface or an error each."""
    sockets = socket.socketpair()
    futures = [
        pool.submit(Interface, sock, record, **(options | kwargs))
        for sock, (record, options) in zip(sockets, (one, other), strict=True)
    ]
    results = [f.exception() or f.result() for f in futures]
    for sock, result in zip(sockets, results, strict=True):
        assert isinstance(result, Interface) or sock.fileno() == -1  # taken, also when it failed
    return results


@contextlib.contextmanager
def opened(pool, one, other=None, options_of_one=None, options_of_other=None):
    other = one if other is None else other
    one, other = outcomes(
        pool, (one, options_of_one or {}), (other, options_of_other or options_of_one or {})
    )
    with one, other:
        yield one, other


def until(condition):
    """Wait for what another thread is about to bring about; the deadline of the test holds."""
    while not condition():
        time.sleep(0.001)


def plain(record):
    """The values of a tick, whatever stands for it."""
    if isinstance(record, TickClass):
        return (record.number, record.price, record.lots)
    if isinstance(record, TickStructure):
        return (record.n, record.p, record.l)
    return tuple(np.asarray(record)[()].item()) if hasattr(record, "dtype") else tuple(record)


# -- the handshake ----------------------------------------------------------------------------


def test_two_sides_introduce_themselves_over_a_socket_pair(pool):
    with opened(pool, "<Q", options_of_one={"name": "one"}, options_of_other={"name": "other"}) as (
        one,
        other,
    ):
        assert (one.name, one.peer_name) == ("one", "other")
        assert (other.name, other.peer_name) == ("other", "one")
        assert one.peer == other.peer == (os.getpid(), os.geteuid(), os.getegid())
        assert one.record == "<Q"
        assert not one.closed
        assert "one" in repr(one)
        assert "other" in repr(one)
        assert "open" in repr(one)
        assert repr(one).startswith("<Interface")
    assert one.closed
    assert "closed" in repr(one)


def test_capacity_is_rounded_up_to_a_power_of_two_and_each_side_chooses_its_own(pool):
    with opened(pool, 8, options_of_one={"capacity": 100}, options_of_other={"capacity": 1}) as (
        one,
        other,
    ):
        assert (one.capacity, other.capacity) == (128, 1)
        assert one.xmit_many([b"12345678"] * 200, timeout=0) == 128
        assert other.xmit_many([b"12345678"] * 200, timeout=0) == 1


@pytest.mark.parametrize("one", TICKS)
def test_equal_layouts_meet_whatever_states_them(pool, one):
    spec_one, record_one = TICKS[one]
    for spec_other, record_other in TICKS.values():
        with opened(pool, spec_one, spec_other) as (a, b):
            a.xmit(record_one)
            b.xmit_many([record_other] * 2)
            got = b.recv()
            assert type(got) is type(record_other)
            assert plain(got) == (7, 2.5, 3)
            assert [plain(r) for r in a.recv_vectored()] == [(7, 2.5, 3)] * 2


@pytest.mark.parametrize(
    ("one", "other", "says_one", "says_other", "first"),
    [
        ("<QdI", "<QdH", "20 bytes: 0:u64 8:f64 16:u32", "18 bytes: 0:u64 8:f64 16:u16",
         ("byte 16", "u32", "u16")),
        (8, 16, "8 bytes: 0:char[8]", "16 bytes: 0:char[16]", ("byte 8", "nothing", "char")),
        ("<Q", "<q", "8 bytes: 0:u64", "8 bytes: 0:i64", ("byte 0", "u64", "i64")),
        (Tick, np.dtype("<f8"), "20 bytes: 0:u64 8:f64 16:u32", "8 bytes: 0:f64",
         ("byte 0", "u64 'number'", "f64")),
    ],
)  # fmt: skip
def test_different_layouts_are_refused_on_both_sides_and_both_are_shown(
    pool, one, other, says_one, says_other, first
):
    a, b = outcomes(pool, (one, {}), (other, {}))
    at, has_one, has_other = first
    for error, mine, theirs, here in (
        (a, says_one, says_other, has_one),
        (b, says_other, says_one, has_other),
    ):
        assert type(error) is memenpsf.RecordRefused
        shown = f"a record here is [{mine}], the peer's is [{theirs}]; they differ first at {at}: "
        assert str(error).startswith(f"{shown}{here} here, ")


def test_a_user_id_that_is_not_admitted_is_refused_on_both_sides(pool):
    stranger = os.geteuid() + 1
    a, b = outcomes(pool, (8, {"allow_uids": {stranger}}), (8, {"allow_uids": {os.geteuid()}}))
    assert type(a) is type(b) is memenpsf.CredentialsRefused
    assert str(os.geteuid()) in str(a)
    assert str(stranger) in str(a)


def test_a_segment_larger_than_allowed_is_refused_and_its_owner_is_told(pool):
    refusing, owner = outcomes(pool, (8, {"max_segment": 8192}), (8, {"capacity": 4096}))
    assert type(refusing) is memenpsf.SizeRefused
    with owner, pytest.raises(memenpsf.SizeRefused, match="peer refused"):
        owner.recv()  # it had agreed, as far as it was concerned


def test_a_one_way_end_is_refused(pool):
    here, there = socket.socketpair()
    receiver = pool.submit(ipcqueue.Receiver, there, 8)
    with pytest.raises(memenpsf.RoleRefused, match="only receives"):
        Interface(here, 8)
    with receiver.result() as receiver, pytest.raises(memenpsf.RoleRefused, match="peer refused"):
        receiver.pop()


def test_a_peer_that_says_nothing_is_a_handshake_timeout():
    here, there = socket.socketpair()
    with there, pytest.raises(memenpsf.HandshakeTimeout, match="within 0 s"):
        Interface(here, 8, timeout=0)
    assert here.fileno() == -1


def test_a_peer_that_leaves_instead_is_dead():
    here, there = socket.socketpair()
    there.close()
    with pytest.raises(memenpsf.PeerDied, match="before it had introduced itself"):
        Interface(here, 8, timeout=None)
    assert here.fileno() == -1


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n", b"\x10\x01", b"\0\0", b"\xff"])
def test_garbage_in_place_of_an_introduction_is_a_corrupt_peer(garbage):
    here, there = socket.socketpair()
    with there:
        there.sendall(garbage)
        with pytest.raises(memenpsf.CorruptPeer):
            Interface(here, 8)


def test_another_version_of_the_protocol_is_refused_with_both_shown():
    here, there = socket.socketpair()
    with there:
        there.sendall(b"\x10\x63")
        with pytest.raises(memenpsf.VersionRefused, match="here is 1, the peer's is 99"):
            Interface(here, 8)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"role": "master"}, ValueError),
        ({"role": 0}, TypeError),
        ({"capacity": 0}, ValueError),
        ({"capacity": -1}, ValueError),
        ({"capacity": 2.5}, TypeError),
        ({"capacity": True}, TypeError),
        ({"timeout": -1}, ValueError),
        ({"timeout": float("nan")}, ValueError),
        ({"name": "n" * 65}, ValueError),
        ({"name": b"n"}, TypeError),
        ({"record": object()}, TypeError),
        ({"record": "P"}, TypeError),
        ({"record": 0}, ValueError),
        ({"colour": "red"}, TypeError),
    ],
)
def test_what_makes_no_interface_is_said_at_once_and_the_socket_is_closed(options, error):
    here, there = socket.socketpair()
    with there, pytest.raises(error):
        Interface(here, **({"record": 8} | options))
    assert here.fileno() == -1


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_a_socket_that_is_no_stream_is_a_value_error(kind):
    here, there = socket.socketpair(socket.AF_UNIX, kind)
    with there, pytest.raises(ValueError, match="SOCK_STREAM"):
        Interface(here, 8)
    assert here.fileno() == -1


def test_a_socket_of_the_network_is_a_value_error():
    here = socket.socket(socket.AF_INET)
    with pytest.raises(ValueError, match="AF_UNIX"):
        Interface(here, 8)
    assert here.fileno() == -1


@pytest.mark.parametrize("role", ["client", "server"])
def test_the_role_is_a_label_and_both_can_do_the_same(pool, role):
    with opened(pool, 1, options_of_one={"role": role}, options_of_other={"role": "server"}) as (
        one,
        other,
    ):
        assert (one.role, other.role) == (role, "server")
        one.xmit(b"a")
        other.xmit(b"b")
        assert (one.recv(), other.recv()) == (b"b", b"a")


def test_each_connection_costs_four_descriptors_and_two_mappings_on_each_side(pool):
    def cost():
        maps = Path("/proc/self/maps").read_text().count("/memfd:memenpsf")
        return len(list(Path("/proc/self/fd").iterdir())), maps

    sockets = cost()[0] + 2
    with opened(pool, 8):
        descriptors, mappings = cost()
        # Two segments on each side, and a pidfd of the other, beside the sockets.
        assert descriptors - sockets == 6
        assert mappings == 4
    assert cost() == (sockets - 2, 0)


# -- records ----------------------------------------------------------------------------------


def test_a_record_can_have_16_mib(pool):
    with opened(pool, 16 << 20, options_of_one={"capacity": 1}) as (one, other):
        one.xmit(b"x" * (16 << 20))
        assert other.recv() == b"x" * (16 << 20)
    with pytest.raises(ValueError, match="16777216"):
        memenpsf.pair((16 << 20) + 1, capacity=1)


def test_what_was_received_stays_when_its_slot_is_written_again():
    one, other = memenpsf.pair(TickStructure, capacity=1)
    with one, other:
        one.xmit(TickStructure(1, 1.0, 1))
        first = other.recv()
        one.xmit(TickStructure(2, 2.0, 2))
        second = other.recv()
        assert (first.n, second.n) == (1, 2)


# -- statistics, indices, messages, foreign loops ----------------------------------------------


@pytest.mark.parametrize("end", ["close", "finish", "drop"])
def test_after_the_end_it_can_still_be_told_what_arrived(end):
    one, other = memenpsf.pair("<Q", capacity=4)
    with other:
        other.xmit_many([(1,), (2,), (3,)])
        one.xmit((9,))
        one.recv_vectored(2)
        if end == "close":
            one.close()
        elif end == "drop":
            with pytest.warns(ResourceWarning, match="unclosed"):
                one = None
        else:
            other.finish()
        assert other.recv() == (9,)
        with pytest.raises((memenpsf.EndOfStream, memenpsf.PeerDied, memenpsf.Closed)):
            other.recv()
        assert other.indices() == (3, 2)
        last = other.statistics()
        assert (last.sent, last.taken, last.received, last.waiting) == (3, 2, 1, 0)
        if one is not None:
            one.close()
    assert other.statistics() == last


def test_no_doorbell_is_rung_while_nobody_sleeps():
    one, other = memenpsf.pair("<Q", capacity=4)
    with one, other:
        for n in range(1000):
            one.xmit((n,))
            other.recv()
        assert one.statistics().doorbells == other.statistics().doorbells == 0
        assert not select.select([other], [], [], 0)[0]


def test_a_foreign_loop_is_woken_after_arm_and_only_then():
    one, other = memenpsf.pair("<Q", capacity=1)

    def readable(side):
        return bool(select.select([side.fileno()], [], [], 0)[0])

    with one, other:
        assert other.arm()
        assert not readable(other)
        one.xmit((1,))
        assert readable(other)
        assert not other.arm()
        assert readable(other)  # until it is armed: another task may have armed it before
        assert other.recv() == (1,)
        assert other.arm()
        assert not readable(other)
        assert one.recv(timeout=0) is None
        one.xmit((2,))
        assert readable(other)
        assert one.statistics().doorbells == 2
        assert one.arm(records=False, space=True)
        assert not readable(one)
        assert other.recv() == (2,)
        assert readable(one)
        assert not one.arm(records=False, space=True)
        assert other.arm()
        one.close()
        assert readable(other)
        while other.arm():
            assert readable(other)  # the end is not read yet, so this is no sleep
        with pytest.raises(memenpsf.EndOfStream):
            other.recv()


# -- the end ----------------------------------------------------------------------------------


def test_finish_drains_and_then_says_closed(pool):
    one, other = memenpsf.pair("<Q", capacity=4)
    with one, other:
        waiting = pool.submit(one.recv_ctrl_msg, None)
        until(lambda: one._endpoint.waiters.reading)
        other.xmit_many([(1,), (2,)])
        one.finish()
        assert isinstance(waiting.exception(), memenpsf.Closed)
        assert one.recv() == (1,)
        assert one.recv_vectored() == [(2,)]
        with pytest.raises(memenpsf.Closed):
            one.recv()
        with pytest.raises(memenpsf.Closed):
            one.xmit((1,))


def test_the_peer_of_one_that_finishes_drains_and_sees_the_end():
    one, other = memenpsf.pair("<Q", capacity=4)
    with one, other:
        one.xmit((1,))
        other.xmit((2,))
        one.finish()
        assert other.recv() == (1,)
        with pytest.raises(memenpsf.EndOfStream):
            other.recv()
        for send in (lambda: other.xmit((3,)), lambda: other.send_ctrl_msg(b"\x80!")):
            with pytest.raises(memenpsf.ReceiverGone):
                send()
        assert one.recv() == (2,)


def test_an_interface_that_is_forgotten_warns_and_its_peer_learns_of_a_death():
    one, other = memenpsf.pair("<Q")
    with other:
        one.xmit((1,))
        with pytest.warns(ResourceWarning, match="unclosed <Interface fd .*: open, "):
            del one
        assert other.recv() == (1,)
        with pytest.raises(memenpsf.PeerDied):
            other.recv()


def test_a_forked_child_may_only_close_and_its_parent_notices_nothing(forked):
    one, other = memenpsf.pair("<Q", capacity=4)
    with one, other:

        def child():
            for call in (
                one.recv,
                lambda: one.xmit((1,)),
                lambda: one.recv_ctrl_msg(0),
                lambda: one.send_ctrl_msg(b"\x80!"),
            ):
                with pytest.raises(memenpsf.ForkedUse):
                    call()
            one.close()

        assert forked(child) == 0
        one.xmit((1,))
        assert other.recv() == (1,)
        assert other.recv(timeout=0) is None


def test_a_thread_in_a_wait_leaves_the_interpreter_to_others(pool):
    one, other = memenpsf.pair("<Q")
    with one, other:
        started = threading.Event()
        waiting = pool.submit(lambda: (started.set(), other.recv()))
        started.wait()
        until(lambda: other.statistics().waits > 0)
        assert sum(range(1000)) == 499500  # this thread runs
        one.xmit((1,))
        assert waiting.result()[1] == (1,)
