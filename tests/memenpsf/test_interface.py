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
from ipcqueue._binding import direct
from memenpsf import Interface

ANY_TIME = (None, 0, 1e-9, 0.01, 1e9, float("inf"))  # timeouts that mean something


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


@pytest.mark.parametrize("receiving", [1, 2, 64])
def test_a_ringful_is_that_of_the_side_that_sends(pool, receiving):
    with opened(
        pool, "<Q", options_of_one={"capacity": receiving}, options_of_other={"capacity": 64}
    ) as (one, other):
        assert other.xmit_many((n,) for n in range(64)) == 64
        assert one.recv_vectored(10) == [(n,) for n in range(10)]
        assert one.recv_vectored() == [(n,) for n in range(10, 64)]


@pytest.mark.parametrize("record", [1, bytes])
def test_how_much_is_taken_at_once_is_not_for_the_peer_to_choose(pool, record):
    with opened(pool, record, options_of_one={"capacity": 1 << 22}) as (one, other):
        assert other.xmit_many([b"r"] * 65_540) == 65_540
        # Messages that Python puts together cost more.
        most = 256 if record is bytes and direct is None else 65_536
        assert len(one.recv_vectored()) == most
        assert len(one.recv_vectored(65_540)) == 65_540 - most
        assert other.xmit_many([b"r"] * 65_540) == 65_540
        assert len(one.recv_vectored(65_540)) == 65_540


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
    ("one", "other", "says_one", "says_other"),
    [
        ("<QdI", "<QdH", "20 bytes: 0:u64 8:f64 16:u32", "18 bytes: 0:u64 8:f64 16:u16"),
        (8, 16, "8 bytes: 0:char[8]", "16 bytes: 0:char[16]"),
        ("<Q", "<q", "8 bytes: 0:u64", "8 bytes: 0:i64"),
        (Tick, np.dtype("<f8"), "20 bytes: 0:u64 8:f64 16:u32", "8 bytes: 0:f64"),
    ],
)
def test_different_layouts_are_refused_on_both_sides_and_both_are_shown(
    pool, one, other, says_one, says_other
):
    a, b = outcomes(pool, (one, {}), (other, {}))
    for error, mine, theirs in ((a, says_one, says_other), (b, says_other, says_one)):
        assert type(error) is memenpsf.RecordRefused
        assert str(error) == f"a record here is [{mine}], the peer's is [{theirs}]"


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
        ({"role": 0}, ValueError),
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


@pytest.mark.parametrize("stream", [None, 3, "socket"])
def test_what_is_no_socket_is_a_type_error(stream):
    with pytest.raises(TypeError):
        Interface(stream, 8)


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


def test_a_pair_moves_records_both_ways_in_one_thread():
    one, other = memenpsf.pair("<QI", capacity=4)
    with one, other:
        one.xmit((1, 2))
        assert other.xmit_many([(3, 4), (5, 6)]) == 2
        assert other.recv() == (1, 2)
        assert one.recv(timeout=0) == (3, 4)
        assert one.recv_vectored() == [(5, 6)]
        assert one.recv(timeout=0) is None
        assert one.recv_vectored(timeout=0) == []
        assert (one.capacity, one.record, one.peer.pid) == (4, "<QI", os.getpid())


@pytest.mark.parametrize("size", [1, 17, 1 << 20])
@pytest.mark.parametrize("capacity", [1, 2, 4])
def test_records_of_any_size_survive_any_capacity(pool, size, capacity):
    count = 8 if size > 17 else 300
    records = [bytes([n & 255]) * size for n in range(count)]
    with opened(pool, size, options_of_one={"capacity": capacity}) as (one, other):
        assert one.capacity == capacity
        sending = pool.submit(lambda: [one.xmit(r) for r in records])
        back = pool.submit(lambda: other.xmit_many(records))
        assert [other.recv() for _ in records] == records
        received = []
        while len(received) < count:
            received += one.recv_vectored()
        assert received == records
        sending.result()
        assert back.result() == count
        assert one.recv(timeout=0) is None


def test_a_record_can_have_16_mib(pool):
    with opened(pool, 16 << 20, options_of_one={"capacity": 1}) as (one, other):
        one.xmit(b"x" * (16 << 20))
        assert other.recv() == b"x" * (16 << 20)
    with pytest.raises(ValueError, match="16777216"):
        memenpsf.pair((16 << 20) + 1, capacity=1)


def test_a_record_that_does_not_fit_the_spec_is_not_sent():
    one, other = memenpsf.pair("<B", capacity=8)
    with one, other:
        for bad in ((256,), (1, 2), ("x",), 5, None, b"x"):
            with pytest.raises(memenpsf.BadRecord):
                one.xmit(bad)
            with pytest.raises(memenpsf.BadRecord, match="record 1: "):
                one.xmit_many([(1,), bad, (2,)])
        assert one.indices() == (0, 0)
        one.xmit((1,))
        assert other.recv() == (1,)


def test_a_full_ring_is_said_and_drops_nothing():
    one, other = memenpsf.pair("<Q", capacity=2)
    with one, other:
        assert one.xmit_many(((n,) for n in range(5)), timeout=0) == 2
        for timeout in (0, 1e-9, 0.01):
            with pytest.raises(memenpsf.Full, match="no space"):
                one.xmit((9,), timeout)
            assert one.xmit_many([(9,)], timeout) == 0
        assert other.recv_vectored() == [(0,), (1,)]
        one.xmit((2,), timeout=0)
        assert other.recv() == (2,)
        assert one.statistics().full > 0


@pytest.mark.parametrize("timeout", ANY_TIME)
def test_every_timeout_gives_what_is_there(timeout):
    one, other = memenpsf.pair("<Q", capacity=4)
    with one, other:
        one.xmit((1,), timeout)
        assert one.xmit_many([(2,), (3,)], timeout) == 2
        one.send_ctrl_msg(b"\x80!", timeout)
        assert other.recv(timeout) == (1,)
        assert other.recv_vectored(1, timeout) == [(2,)]
        assert other.recv_vectored(None, timeout) == [(3,)]
        assert other.recv_ctrl_msg(timeout if timeout != 0 else 0.5) == b"\x80!"


@pytest.mark.parametrize("timeout", [None, 1e9, float("inf")])
def test_every_long_timeout_waits_for_what_comes(pool, timeout):
    one, other = memenpsf.pair("<Q", capacity=1)
    with one, other:
        waiting = pool.submit(other.recv, timeout)
        until(lambda: other.statistics().waits > 0)
        one.xmit((1,))
        assert waiting.result() == (1,)
        one.xmit((2,))
        waiting = pool.submit(one.xmit, (3,), timeout)
        until(lambda: one.statistics().waits > 0)
        assert other.recv() == (2,)
        waiting.result()
        assert other.recv() == (3,)
        waiting = pool.submit(other.recv_ctrl_msg, timeout)
        until(lambda: other._endpoint.waiters.reading)
        one.send_ctrl_msg(b"\x80!")
        assert waiting.result() == b"\x80!"


@pytest.mark.parametrize("timeout", [-1, -1e-9, float("nan"), float("-inf")])
def test_a_timeout_that_is_none_is_a_value_error(timeout):
    one, other = memenpsf.pair("<Q", capacity=1)
    with one, other:
        for call in (
            lambda: other.recv(timeout),
            lambda: other.recv_vectored(timeout=timeout),
            lambda: other.recv_ctrl_msg(timeout),
            lambda: one.xmit_many([(1,)], timeout),
            lambda: one.send_ctrl_msg(b"\x80!", timeout),
        ):
            with pytest.raises(ValueError, match="timeout is None or at least 0"):
                call()
        assert one.xmit_many([(1,)], 0) == 1  # nothing was sent before
        assert other.recv_ctrl_msg() is None
        with pytest.raises(ValueError, match="timeout is None or at least 0"):
            one.xmit((1,), timeout)


@pytest.mark.parametrize(("limit", "gives"), [(0, 0), (1, 1), (3, 3), (5, 4), (None, 4)])
def test_recv_vectored_takes_what_is_there_up_to_the_limit(limit, gives):
    one, other = memenpsf.pair("<Q", capacity=8)
    with one, other:
        one.xmit_many((n,) for n in range(4))
        assert other.recv_vectored(limit) == [(n,) for n in range(gives)]
        assert other.recv_vectored(8, 0) == [(n,) for n in range(gives, 4)]


@pytest.mark.parametrize(
    ("limit", "error"), [(-1, ValueError), (1.0, TypeError), (True, TypeError)]
)
def test_a_limit_that_is_none_is_refused(limit, error):
    one, other = memenpsf.pair("<Q")
    with one, other, pytest.raises(error):
        other.recv_vectored(limit)


def test_arrays_go_in_and_come_out_of_numpy_interfaces():
    one, other = memenpsf.pair(TICK_DTYPE, capacity=64)
    array = np.zeros(50, TICK_DTYPE)
    array["a"] = np.arange(50)
    array["b"] = np.arange(50) / 2
    with one, other:
        assert one.xmit_many(array) == 50
        got = other.recv_vectored(20)
        assert type(got) is np.ndarray
        assert (got.dtype, got.shape) == (TICK_DTYPE, (20,))
        rest = other.recv_vectored()
        assert np.array_equal(np.concatenate([got, rest]), array)
        got["a"] = 1  # ours to write, and nobody else's
        nothing = other.recv_vectored(timeout=0)
        assert (nothing.dtype, nothing.shape) == (TICK_DTYPE, (0,))
        one.xmit((5, 1.0, 2))
        assert other.recv()["a"] == 5


def test_what_was_received_stays_when_its_slot_is_written_again():
    one, other = memenpsf.pair(TickStructure, capacity=1)
    with one, other:
        one.xmit(TickStructure(1, 1.0, 1))
        first = other.recv()
        one.xmit(TickStructure(2, 2.0, 2))
        second = other.recv()
        assert (first.n, second.n) == (1, 2)


def test_two_senders_and_two_receivers_on_each_side_lose_nothing(pool):
    senders, each = 2, 2000
    with opened(pool, "<BI", options_of_one={"capacity": 16}) as sides:

        def send(side, who):
            for n in range(0, each, 4):
                side.xmit((who, n))
                assert side.xmit_many([(who, n + 1), (who, n + 2), (who, n + 3)]) == 3

        def receive(side, vectored):
            got = []
            # EndOfStream: the other side may finish a moment earlier than this one.
            with contextlib.suppress(memenpsf.Closed, memenpsf.EndOfStream):
                while True:
                    got += side.recv_vectored() if vectored else [side.recv()]
            return got

        sending = [pool.submit(send, side, who) for side in sides for who in range(senders)]
        receiving = [(pool.submit(receive, s, False), pool.submit(receive, s, True)) for s in sides]
        for future in sending:
            future.result()
        for side in sides:
            until(lambda side=side: side.statistics().received == senders * each)
            assert side.statistics().rescues == 0
        for side in sides:
            side.finish()
        for pair in receiving:
            streams = [future.result() for future in pair]
            expected = [(who, n) for who in range(senders) for n in range(each)]
            assert sorted(streams[0] + streams[1]) == expected
            for stream in streams:  # each receiver sees each sender's records in order
                for who in range(senders):
                    numbers = [n for w, n in stream if w == who]
                    assert numbers == sorted(numbers)


def test_a_thread_that_waits_for_space_does_not_keep_one_from_its_records(pool):
    one, other = memenpsf.pair("<Q", capacity=1)
    with one, other:
        one.xmit((1,))
        blocked = pool.submit(one.xmit, (2,))
        until(lambda: one.statistics().waits > 0)
        receiving = pool.submit(one.recv)
        until(lambda: len(one._endpoint.waiters.followers) == 1)
        other.xmit((10,))
        assert receiving.result() == (10,)
        assert not blocked.done()
        assert other.recv() == (1,)
        blocked.result()
        assert other.recv() == (2,)


def test_a_thread_that_stops_waiting_takes_nothing_back_from_those_that_wait_on(pool):
    one, other = memenpsf.pair("<Q", capacity=1)
    with one, other:
        one.xmit((0,))
        receiving = pool.submit(one.recv)
        until(lambda: one._endpoint.waiters.counts[0] == 1)
        sending = pool.submit(one.xmit, (1,))
        until(lambda: one._endpoint.waiters.counts[1] == 1)
        assert one.recv(timeout=0.01) is None
        with pytest.raises(memenpsf.Full):
            one.xmit((2,), timeout=0.01)
        other.xmit((7,))
        assert receiving.result() == (7,)
        assert other.recv() == (0,)
        sending.result()
        assert other.recv() == (1,)
        assert one.statistics().rescues == 0  # or the clock has hidden a lost wake-up


# -- statistics, indices, messages, foreign loops ----------------------------------------------


def test_statistics_count_what_was_done(pool):
    one, other = memenpsf.pair("<Q", capacity=4)
    with one, other:
        assert one.statistics() == (0,) * 10
        one.xmit_many([(1,), (2,), (3,)])
        other.recv()
        other.xmit((9,))
        sent = one.statistics()
        assert (sent.sent, sent.taken, sent.received, sent.waiting) == (3, 1, 0, 1)
        received = other.statistics()
        assert (received.sent, received.taken, received.received, received.waiting) == (1, 0, 1, 2)
        assert sent.doorbells == received.doorbells == 0  # nobody slept
        one.recv()
        waiting = pool.submit(one.recv)
        until(lambda: one.statistics().waits == 1)
        other.xmit((10,))
        assert waiting.result() == (10,)
        assert other.statistics().doorbells == 1
        last = one.statistics()
    assert one.statistics() == last  # as it was when it was closed
    assert last.rescues == last.full == 0


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


def test_indices_count_the_outgoing_queue():
    one, other = memenpsf.pair("<Q", capacity=4)
    with one, other:
        assert one.indices() == other.indices() == (0, 0)
        one.xmit_many([(1,), (2,), (3,)])
        other.recv_vectored(2)
        assert one.indices() == (3, 2)
        assert other.indices() == (0, 0)


def test_control_messages_go_beside_the_records_in_order():
    one, other = memenpsf.pair("<Q", capacity=4)
    with one, other:
        messages = [bytes((128 + n % 128, n % 256)) for n in range(200)]
        for n, message in enumerate(messages):
            one.send_ctrl_msg(message, timeout=0)
            if n % 100 == 0:
                one.xmit((n,))
        other.send_ctrl_msg(bytearray(b"\xff\x00"))
        assert [other.recv_ctrl_msg() for _ in messages] == messages
        assert other.recv_ctrl_msg() is None
        assert other.recv_vectored() == [(0,), (100,)]
        assert one.recv_ctrl_msg(timeout=None) == b"\xff\x00"


@pytest.mark.parametrize("message", [b"", b"\x80", b"\x80\0\0", b"\x7f\0", b"\x01\0"])
def test_only_two_bytes_above_the_protocols_own_make_a_message(message):
    one, other = memenpsf.pair("<Q")
    with one, other:
        with pytest.raises(ValueError, match="two bytes"):
            one.send_ctrl_msg(message)
        with pytest.raises(TypeError):
            one.send_ctrl_msg("\x80!")
        assert other.recv_ctrl_msg() is None


def fill_messages(interface):
    count = 0
    with contextlib.suppress(memenpsf.Full):
        while True:
            interface.send_ctrl_msg(bytes((200, count & 255)), timeout=0)
            count += 1
    return count


def test_a_message_that_finds_no_room_is_full_and_those_before_it_arrive():
    one, other = memenpsf.pair("<Q")
    with one, other:
        count = fill_messages(one)
        assert count > 10
        for timeout in (0, 0.01):
            with pytest.raises(memenpsf.Full, match="no room"):
                one.send_ctrl_msg(b"\xfe\0", timeout)
        assert [other.recv_ctrl_msg() for _ in range(count)] == [
            bytes((200, n & 255)) for n in range(count)
        ]
        assert other.recv_ctrl_msg() is None


def test_both_sides_full_of_messages_come_free_together(pool):
    one, other = memenpsf.pair("<Q")
    with one, other:
        counts = {one: fill_messages(other), other: fill_messages(one)}

        def send_and_receive(side):
            side.send_ctrl_msg(b"\xfe\0")  # reads while it waits, or both would wait for ever
            return [side.recv_ctrl_msg(timeout=None) for _ in range(counts[side] + 1)]

        for got in pool.map(send_and_receive, counts):
            assert set(got[:-1]) <= {bytes((200, n)) for n in range(256)}
            assert got[-1] == b"\xfe\0"


def test_a_full_socket_does_not_hold_up_records(pool):
    one, other = memenpsf.pair("<Q", capacity=1)
    with one, other:
        fill_messages(one)
        waiting = pool.submit(lambda: [other.recv() for _ in range(100)])
        for n in range(100):
            one.xmit((n,))
        assert waiting.result() == [(n,) for n in range(100)]


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
        assert other.recv() == (1,)
        one.xmit((2,))
        assert not readable(other)  # nobody asked
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


def test_iteration_ends_where_the_peer_ends():
    one, other = memenpsf.pair("<Q", capacity=4)
    with other:
        with one:
            one.xmit_many([(1,), (2,)])
        assert list(other) == [(1,), (2,)]
        assert list(other) == []
        for call in (other.recv, other.recv_vectored, other.recv_ctrl_msg):
            with pytest.raises(memenpsf.EndOfStream):
                call()
            with pytest.raises(memenpsf.EndOfStream):
                call(timeout=0)
        with pytest.raises(memenpsf.ReceiverGone):
            other.xmit((1,))
        with pytest.raises(memenpsf.ReceiverGone):
            other.xmit_many([(1,)])
        with pytest.raises(memenpsf.ReceiverGone):
            other.send_ctrl_msg(b"\x80!")


def test_iteration_raises_what_is_no_good_end():
    one, other = memenpsf.pair("<Q", capacity=4)
    with one, other:
        one.xmit((1,))
        os.write(one.fileno(), b"\x4d\x00")
        with pytest.raises(memenpsf.CorruptPeer, match="opcode 77"):
            list(other)


def test_messages_sent_before_the_end_are_received_before_the_end():
    one, other = memenpsf.pair("<Q", capacity=4)
    with other:
        with one:
            one.xmit((1,))
            one.send_ctrl_msg(b"\x80!")
        assert other.recv_ctrl_msg(timeout=None) == b"\x80!"
        with pytest.raises(memenpsf.EndOfStream):
            other.recv_ctrl_msg()
        assert other.recv() == (1,)


def test_closing_wakes_every_thread_that_waits_here(pool):
    one, other = memenpsf.pair("<Q", capacity=1)
    with other:
        with one:
            one.xmit((1,))
            waiting = [
                pool.submit(call)
                for call in (
                    one.recv,
                    one.recv_vectored,
                    lambda: one.recv_ctrl_msg(None),
                    lambda: one.xmit((2,)),
                    lambda: one.xmit_many([(2,)]),
                )
            ]
            until(lambda: len(one._endpoint.waiters.followers) == 4)
        for future in waiting:
            assert isinstance(future.exception(), memenpsf.Closed)
        assert list(other) == [(1,)]


def test_the_end_of_the_peer_wakes_every_thread_that_waits(pool):
    one, other = memenpsf.pair("<Q", capacity=1)
    with other, one:
        one.xmit((1,))
        calls = (
            one.recv,
            one.recv_vectored,
            lambda: one.recv_ctrl_msg(None),
            lambda: one.xmit((2,)),
        )
        waiting = [pool.submit(call) for call in calls]
        until(lambda: len(one._endpoint.waiters.followers) == 3)
        other.close()
        *receiving, sending = (type(future.exception()) for future in waiting)
        assert receiving == [memenpsf.EndOfStream] * 3
        assert sending is memenpsf.ReceiverGone


def test_a_closed_interface_says_so_at_every_verb():
    one, other = memenpsf.pair("<Q")
    with other:
        one.close()
        one.close()
        for call in (
            one.recv,
            one.recv_vectored,
            one.recv_ctrl_msg,
            one.fileno,
            one.indices,
            lambda: next(iter(one)),
            lambda: one.xmit((1,)),
            lambda: one.xmit_many([(1,)]),
            lambda: one.send_ctrl_msg(b"\x80!"),
        ):
            with pytest.raises(memenpsf.Closed):
                call()


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
        with pytest.warns(ResourceWarning, match="unclosed"):
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
