"""Descriptors on their way to the peer, counted by what the kernel says was not read."""

from __future__ import annotations

import ast
import os
import socket
from pathlib import Path

import pytest

import fdpass
import fdpass.lowlevel
import ipcqueue
from ipcqueue import _direct as direct
from ipcqueue._link.flight import Flight
from ipcqueue.lowlevel import Lease


class Strict(Lease):
    """Lets no more than some descriptors be on their way."""

    def __init__(self, most):
        self.most = most
        self.flight = None

    def fits(self, count):
        return self.flight.count() <= self.most


@pytest.fixture
def pair():
    here, there = socket.socketpair()
    with here, there:
        yield here, there


def strict(sock, most):
    lease = Strict(most)
    lease.flight = Flight(sock, lease)
    return lease.flight


def sent(flight, sock, count):
    """Send a message with descriptors if it is admitted; say whether."""
    if not flight.admit(count):
        return False
    fdpass.send_fds(sock, [0] * count, bytes((17, count)))
    flight.settle(sent=True)
    return True


def test_what_was_read_is_on_its_way_no_more_whatever_was_in_between(pair):
    here, there = pair
    flight = strict(here, 100)
    assert flight.count() == 0
    for count in (1, 2, 3):
        assert sent(flight, here, count)
    assert flight.count() == 6
    assert there.recv(100)
    assert flight.count() == 5
    here.send(b"\x01\x00")  # nobody knows that it has none: so it counts as one that has
    assert flight.count() == 6
    assert [there.recv(100) for _ in range(2)]
    assert flight.count() == 3
    assert there.recv(100)
    assert flight.count() == 0


def test_what_does_not_fit_is_not_sent_and_counts_no_more(pair):
    here, there = pair
    flight = strict(here, 5)
    assert sent(flight, here, 3)
    assert not sent(flight, here, 3)
    assert not sent(flight, here, 3)
    assert flight.refusals == 2
    assert flight.count() == 3
    assert there.recv(100)
    assert sent(flight, here, 3)
    assert flight.refusals == 0


def test_what_was_admitted_and_not_sent_counts_no_more(pair):
    here, _ = pair
    flight = strict(here, 5)
    assert flight.admit(3)
    assert flight.count() == 3
    flight.settle(sent=False)
    assert flight.count() == 0


def test_only_what_may_be_unread_is_remembered(pair):
    here, there = pair
    flight = strict(here, 1000)
    for _ in range(200):
        assert sent(flight, here, 2)
        assert there.recv(100)
    assert flight.count() == 0
    assert len(flight._sent) <= 70
    for _ in range(100):
        assert sent(flight, here, 2)
    assert flight.count() == 200


def test_a_closed_socket_has_nothing_on_its_way(pair):
    here, there = pair
    flight = strict(here, 1000)
    assert sent(flight, here, 2)
    there.close()
    assert flight.count() == 0
    here.close()
    assert flight.count() == 0


class TestWaryReading:
    """Reading that leaves descriptors in the socket: `receive` of core/python/socket.c."""

    def receive(self, sock, into, *, most, wary=False):
        room = bytearray(direct.ROOM)
        return direct.receive(sock, fdpass.lowlevel.RECEIVE_FLAGS, True, into, room, most, wary)

    def test_descriptors_are_announced_and_left(self, pair):
        here, there = pair
        fdpass.send_fds(here, [0] * 5, b"\x01\x00\x11\x05")
        into = []
        before = list(Path("/proc/self/fd").iterdir())
        for _ in range(3):
            assert self.receive(there, into, most=5, wary=True) == -1 - 5
        assert into == []
        assert list(Path("/proc/self/fd").iterdir()) == before
        assert self.receive(there, into, most=5) is None
        ((data, ancillary, _, _),) = into
        numbers, _ = fdpass.lowlevel.unpack(ancillary)
        for number in numbers:
            os.close(number)
        assert data == b"\x01\x00\x11\x05"
        assert len(numbers) == 5

    def test_what_comes_without_any_is_read_and_no_byte_more(self, pair):
        here, there = pair
        here.send(b"\x80\x01")
        into = []
        assert self.receive(there, into, most=5, wary=True) is None
        assert [message[0] for message in into] == [b"\x80\x01"]
        here.send(b"\x01\x01\x02\x02")
        fdpass.send_fds(here, [0], b"\x11\x01")
        # One read would bring all six bytes, and the descriptor with them.
        assert self.receive(there, into, most=5, wary=True) == -1 - 1
        with pytest.raises(BlockingIOError):
            self.receive(here, into, most=5, wary=True)

    def test_the_end_is_read_as_ever(self, pair):
        here, there = pair
        here.close()
        into = []
        assert self.receive(there, into, most=5, wary=True) is None
        assert into[0][0] == b""

    def test_what_the_look_meets_is_raised_and_nothing_is_read(self, pair):
        """As what comes by then may bring descriptors, which nobody has asked for room."""
        here, there = pair
        there.send(b"unread")
        here.close()
        into = []
        with pytest.raises(ConnectionResetError):
            self.receive(there, into, most=5, wary=True)
        assert into == []


def callers(names):
    """Say which functions of ipcqueue call something of these names: (file, function)."""
    found = set()
    for path in Path(ipcqueue.__file__).parent.rglob("*.py"):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef):
                for node in ast.walk(function):
                    name = getattr(node, "attr", getattr(node, "id", None))
                    if name in names and isinstance(node, ast.Name | ast.Attribute):
                        found.add((path.name, function.name))
    return found


def test_descriptors_come_and_go_with_messages_in_one_place_each_which_asks_the_lease():
    assert callers({"recvmsg"}) == set()  # C reads, and one function has it do so
    assert callers({"RECEIVE_FLAGS"}) == {("wire.py", "_receive")}
    assert callers({"_receive"}) == {("wire.py", "read")}
    # The other ways to publish a message send none: they are given no list of them.
    sending = {name for file, name in callers({"_send"}) if file == "frame_sender.py"}
    assert sending == {"try_send"}
