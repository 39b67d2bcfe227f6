"""The socket of a connection: with bytes alone, without a ring."""

from __future__ import annotations

import contextlib
import os
import select
import socket
from functools import partial
from typing import NamedTuple

import pytest

import fdpass
from ipcqueue import Closed, CorruptPeer, LimitRefused
from ipcqueue._link import wire as _wire
from ipcqueue._link.lease import Lease
from ipcqueue._link.wire import GOODBYE, Wire
from tests.kit.places import at_every_place

FDS, ERR = 17, 100


@pytest.fixture
def both():
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    wire = Wire(ours, None, Lease(), 2)
    with theirs:
        yield wire, theirs
    wire.close()


class Read(NamedTuple):
    size: int
    end: Exception | None
    hung_up: bool


def read(wire):
    return Read(wire.use(wire.read), wire.end, wire.hung_up)


def test_doorbells_bring_nothing_but_their_bytes(both):
    wire, theirs = both
    assert read(wire) == (0, None, False)
    theirs.send(b"\x01\x00\x02\x00")
    assert read(wire) == (4, None, False)
    assert not wire.is_behind()


def test_messages_of_the_application_wait_in_the_inbox(both):
    wire, theirs = both
    for data in (b"\x80\x01\x81", b"\x02"):
        theirs.send(data)
        assert read(wire).size == len(data)
    assert wire.inbox == [b"\x80\x01", b"\x81\x02"]
    assert wire.messages == 2


def test_messages_that_nobody_takes_count_no_more_in_the_end(both):
    wire, theirs = both
    theirs.send(b"\x80\x00" * _wire.MAX_UNTAKEN)
    read(wire)
    theirs.send(b"\x80\x00")
    read(wire)
    assert wire.messages == _wire.MAX_UNTAKEN


def test_descriptors_are_kept_in_order_until_somebody_takes_them(both):
    wire, theirs = both
    with open(os.devnull) as null:  # noqa: PTH123 (a descriptor is what it is for)
        fdpass.send_fds(theirs, [null] * 2, bytes((FDS, 2)))
        fdpass.send_fds(theirs, [null], bytes((FDS, 1)))
    for _ in range(2):
        read(wire)
    assert [len(fds) for fds in wire.attached] == [2, 1]
    assert wire.held() == 0


def test_more_than_it_was_told_to_accept_are_closed_and_the_peer_is_corrupt(both):
    wire, theirs = both
    with open(os.devnull) as null:  # noqa: PTH123
        fdpass.send_fds(theirs, [null] * 3, bytes((FDS, 3)))
    end = read(wire).end
    assert type(end) is CorruptPeer
    assert wire.attached == []
    assert read(wire).end is end  # and says so again
    assert wire.is_behind()


def test_a_refusal_is_returned_again_and_again_and_what_came_before_it_stays(both):
    wire, theirs = both
    theirs.send(b"\x80\x01" + bytes((ERR, 8)))
    for _ in range(2):
        assert type(read(wire).end) is LimitRefused
    assert wire.inbox == [b"\x80\x01"]


def test_the_end_of_the_socket_is_no_error(both):
    wire, theirs = both
    theirs.close()
    for _ in range(2):
        assert read(wire) == (0, None, True)


def test_the_backlog_is_what_has_come_and_is_not_digested(both):
    wire, theirs = both
    theirs.send(b"\x01\x00" * 3)
    assert wire.use(wire.backlog) == 6
    read(wire)
    assert wire.use(wire.backlog) == 0


def test_sending_and_saying_goodbye(both):
    wire, theirs = both
    assert wire.use(lambda sock: wire.send(b"\x80\x01", sock))
    wire.use(wire.say_goodbye)
    assert theirs.recv(64) == b"\x80\x01" + GOODBYE
    assert theirs.recv(64) == b""


def test_a_full_socket_takes_no_more(both):
    wire, _ = both
    while wire.use(lambda sock: wire.send(b"\x80\x01", sock)):
        pass
    assert not wire.use(_wire.has_room)


def test_who_has_it_in_hand_closes_it_last(both):
    wire, _ = both

    def use(sock):
        wire.close()
        assert not wire.released
        assert sock.fileno() >= 0
        return "used"

    assert wire.use(use) == "used"
    assert wire.released
    with pytest.raises(Closed):
        wire.use(use)
    for ask in (wire.fileno, wire.events_fileno, partial(wire.poller, 0)):
        with pytest.raises(Closed):
            ask()


def test_between_counting_who_uses_it_and_looking_whether_it_is_closed_nobody_can_close_it():
    """Nor can another thread: those take turns where signals are looked for, too."""
    made = []

    def prepare():
        ours, theirs = socket.socketpair()
        theirs.close()
        made[:] = [Wire(ours, None, Lease(), 2)]

    def check(_):
        (wire,) = made
        wire.close()
        assert wire.released
        assert wire._users == 0

    def call():
        return made[0].use(lambda sock: sock.fileno())

    def act():
        made[0].close()

    assert at_every_place(prepare, call, act, check) == 1  # the call


def test_while_it_is_closed_nobody_takes_it_in_hand():
    used, made = [], []

    def prepare():
        ours, theirs = socket.socketpair()
        theirs.close()
        made[:] = [Wire(ours, None, Lease(), 2)]

    def act():
        with contextlib.suppress(Closed):
            made[0].use(used.append)

    def check(_):
        (wire,) = made
        assert wire.released
        assert wire._users == 0

    def call():
        made[0].close()

    assert at_every_place(prepare, call, act, check) > 5
    assert used == []


def test_a_doze_says_whether_something_came_and_reads_it(both):
    wire, theirs = both
    assert not wire.use(wire.doze, 0)
    assert not wire.use(partial(wire.poll, events=select.POLLIN), 0)
    theirs.send(b"\x80\x01")
    assert wire.use(partial(wire.poll, events=select.POLLIN), 10)
    assert not wire.use(partial(wire.poll, events=0), 0)
    assert wire.inbox == []
    assert wire.use(wire.doze, 10)
    assert wire.inbox == [b"\x80\x01"]
    theirs.close()
    assert wire.use(partial(wire.poll, events=0), 10)
    assert not wire.over
    assert wire.use(wire.doze, 10)
    assert wire.over


class Counted(Lease):
    counts_descriptors = True
    room = False

    def fits(self, count):
        del count
        return self.room


def test_descriptors_without_room_stay_in_the_socket():
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    lease = Counted()
    wire = Wire(ours, None, lease, 2)
    with theirs, open(os.devnull) as null:  # noqa: PTH123
        fdpass.send_fds(theirs, [null], bytes((FDS, 1)))
        for times in range(1, 4):
            assert read(wire) == (0, None, False)
            assert wire.held_back == times
        lease.room = True
        assert read(wire) == (2, None, False)
        assert wire.held_back == 0
        assert len(wire.attached) == 1
    wire.close()
