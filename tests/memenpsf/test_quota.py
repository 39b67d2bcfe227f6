"""What one user may have of a listener, and what a listener does when descriptors are short."""

from __future__ import annotations

import contextlib
import errno
import gc
import itertools
import math
import os
import pickle
import resource
import select
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

import fdpass
import memenpsf
import memenpsf.trio
from ipcqueue.lowlevel import Opening, Role, Terms, advance
from memenpsf import Quota, _pending, _quota, _reserve, _shares
from memenpsf._pending import PendingClients
from memenpsf._shares import Shares
from tests.kit.clients import Client, connected, inventing, room_for_descriptors

NOBODY = 65534
HELLO = b"\x10\x01"
LIMIT = b"\x64\x08"
PAGE = 4096


@pytest.fixture
def path(tmp_path):
    return tmp_path / "s"


# -- counting -------------------------------------------------------------------------------------


def test_each_user_has_as_many_connections_as_the_limit():
    quota = Shares(2, 100)
    theirs = [quota.open(1000) for _ in range(2)]
    with pytest.raises(memenpsf.LimitRefused, match=r"uid 1000 has 2 connections here, .* have 2"):
        quota.open(1000)
    assert quota.open(0).uid == 0
    assert quota.open(1001).uid == 1001
    theirs.pop().close()
    theirs.append(quota.open(1000))
    with pytest.raises(memenpsf.LimitRefused):
        quota.open(1000)


def test_each_user_shares_as_many_bytes_as_the_limit():
    quota = Shares(10, 100)
    first, second, other = quota.open(7), quota.open(7), quota.open(8)
    first.take(40)
    first.take(20)
    with pytest.raises(memenpsf.LimitRefused, match=r"uid 7 shares 60 bytes .* share 100: .* 41"):
        second.take(41)
    other.take(100)
    second.take(40)
    with pytest.raises(memenpsf.LimitRefused):
        quota.open(7).take(1)
    first.close()
    second.take(60)


def test_a_share_counts_no_more_once_it_is_closed_or_dropped():
    quota = Shares(1, 100)
    for end in ("closed", "closed twice", "dropped", "dropped in a cycle"):
        share = quota.open(7)
        share.take(100)
        if end.startswith("closed"):
            share.close()
            share.close() if end.endswith("twice") else None
        elif end.endswith("cycle"):
            share.myself = share
        del share
        gc.collect()
        assert quota.shares(7) == []
        assert not quota._shares


def test_shares_may_end_in_any_thread_while_they_are_counted():
    quota = Shares(1000, 1 << 40)
    stop = threading.Event()

    def open_and_end(uid):
        while not stop.is_set():
            shares = [quota.open(uid) for _ in range(50)]
            shares[0].take(1)
            for share in shares[::2]:
                share.close()

    with ThreadPoolExecutor(3) as pool:
        ending = [pool.submit(open_and_end, uid) for uid in range(3)]
        mine = quota.open(9)
        for _ in range(2000):
            mine.take(1)
            assert quota.shares(9) == [mine]
        stop.set()
        for future in ending:
            future.result()
    assert len(quota._shares) == 1
    assert mine.size == 2000


@pytest.mark.parametrize(("soft", "most"), [(1024, 170), (64, 10), (3, 1)])
def test_by_default_a_user_may_have_connections_for_part_of_the_descriptors(
    monkeypatch, soft, most
):
    monkeypatch.setattr(resource, "getrlimit", lambda what: (soft, soft))
    quota = Shares(None, 100)
    shares = [quota.open(7) for _ in range(most)]
    with pytest.raises(memenpsf.LimitRefused, match=f"may have {most}"):
        quota.open(7)
    assert len(shares) == most


def test_without_a_limit_of_descriptors_there_is_none_of_connections(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda what: (resource.RLIM_INFINITY,) * 2)
    assert _shares.connections_by_default() > 1 << 60


# -- a listener with limits -----------------------------------------------------------------------


@pytest.fixture
def invented(monkeypatch):
    """Clients of any user: connect with invented(path, uid)."""
    with inventing(monkeypatch) as connect:
        yield connect


def introduced(sock, record="<Q", **options):
    """Let a connected socket say HELLO; return its side."""
    opening = Opening(sock, terms(record, **options))
    assert advance(opening) is None
    return opening


def terms(record="<Q", **options):
    return Terms(record, Role(sends=True, receives=True), **options)


def turns(pending, count=4):
    """Turn a few times; return the outcomes."""
    found = []
    for _ in range(count):
        try:
            outcome = pending.turn()
        except (memenpsf.QueueError, OSError) as error:
            outcome = error
        if outcome is not None:
            found.append(outcome)
    return found


def test_a_user_with_too_many_connections_is_refused_and_others_are_served(path, invented):
    with contextlib.ExitStack() as stack:
        pending = PendingClients(path, "<Q", quota=memenpsf.Quota(connections=2), capacity=1)
        stack.callback(pending.close)

        def connect(uid):
            opening = introduced(invented(path, uid), capacity=1)
            stack.callback(opening.abandon)
            (outcome,) = turns(pending)
            if isinstance(outcome, Exception):
                return outcome, opening
            stack.callback(outcome.close)
            return outcome

        first, _ = connect(1000), connect(1000)
        error, client = connect(1000)
        assert type(error) is memenpsf.LimitRefused
        assert pending.refused == 1
        with pytest.raises(memenpsf.LimitRefused, match="this user has all it may have"):
            advance(client)
        assert connect(0).peer.uid == 0
        assert connect(1001).peer.uid == 1001
        first.close()
        assert connect(1000).peer.uid == 1000


def test_who_is_over_the_limit_is_refused_before_anything_is_made_for_it(
    path, invented, monkeypatch
):
    pending = PendingClients(path, "<Q", quota=memenpsf.Quota(connections=1))
    with contextlib.closing(pending):
        invented(path, 7)
        assert turns(pending) == []
        monkeypatch.setattr(_pending, "Opening", None)  # and is not even begun with
        refused = invented(path, 7)
        descriptors = sorted(Path("/proc/self/fd").iterdir())
        (error,) = turns(pending)
        assert type(error) is memenpsf.LimitRefused
        assert sorted(Path("/proc/self/fd").iterdir()) == descriptors
        assert refused.recv(10) == LIMIT  # no HELLO, and no descriptor beside it
        assert refused.recv(10) == b""


def test_a_user_for_whom_this_side_shares_too_much_memory_is_refused_before_it_is_made(
    path, invented
):
    ours = terms(capacity=1).segment_size
    pending = PendingClients(path, "<Q", capacity=1, quota=memenpsf.Quota(bytes=2 * ours - 1))
    with contextlib.closing(pending):
        invented(path, 7)
        assert turns(pending) == []
        assert [share.size for share in pending.quota.shares(7)] == [ours]
        maps = memory_files()
        refused = invented(path, 7)
        (error,) = turns(pending)
        assert type(error) is memenpsf.LimitRefused
        assert refused.recv(10) == LIMIT
        assert memory_files() == maps
        invented(path, 8)
        assert turns(pending) == []
        assert [share.size for share in pending.quota.shares(8)] == [ours]


def test_a_user_who_shares_too_much_memory_is_refused_before_it_is_mapped(path, invented):
    ours = terms(capacity=1).segment_size
    theirs = terms(capacity=1024).segment_size
    pending = PendingClients(
        path, "<Q", capacity=1, quota=memenpsf.Quota(bytes=2 * (ours + theirs) - 1)
    )
    with contextlib.ExitStack() as stack:
        stack.callback(pending.close)
        clients = [introduced(invented(path, 7), capacity=1024) for _ in range(2)]
        for client in clients:
            stack.callback(client.abandon)
        maps = memory_files()
        endpoint, error = turns(pending)
        stack.callback(endpoint.close)
        assert type(error) is memenpsf.LimitRefused
        assert f"uid 7 shares {2 * ours + theirs} bytes" in str(error)
        assert [share.size for share in pending.quota.shares(7)] == [ours + theirs]
        # One of each side for the first; nothing for the second.
        assert memory_files() - maps == 2
        assert pending.refused == 1
        # It had heard HELLO before, and is told now.
        with memenpsf.Interface.of(advance(clients[1])) as late:
            with pytest.raises(memenpsf.LimitRefused):
                late.recv()
        other = introduced(invented(path, 8), capacity=1)
        stack.callback(other.abandon)
        (endpoint,) = turns(pending)
        stack.callback(endpoint.close)
        assert endpoint.peer.uid == 8


def memory_files():
    return Path("/proc/self/maps").read_text().count("/memfd:memenpsf")


ENDS = [
    "closed here", "dropped here", "the peer closed", "the peer left", "said nothing in time",
    "left early", "broke the protocol", "another record", "too much memory", "not admitted",
    "waited for a place in vain", "the listener closed",
]  # fmt: skip


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.filterwarnings("ignore:unclosed <(Endpoint|Interface):ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_whatever_way_a_connection_ends_its_user_gets_back_what_it_took(path, invented, end):
    options = {"timeout": 0 if end.endswith(("in time", "in vain")) else 5.0}
    quota = memenpsf.Quota(pending=1)
    if end == "not admitted":
        options["allow_uids"] = {1}
    if end == "too much memory":
        quota = memenpsf.Quota(pending=1, bytes=3 * PAGE)
    pending = PendingClients(path, "<Q", capacity=1, quota=quota, **options)
    with contextlib.ExitStack() as stack:
        stack.callback(pending.close)
        sock = invented(path, 7)
        if end in ("left early", "said nothing in time", "not admitted", "the listener closed"):
            pass
        elif end == "broke the protocol":
            sock.sendall(b"nonsense")
        elif end == "waited for a place in vain":
            pending.handshakes.append(SimpleNamespace(
                peer=SimpleNamespace(uid=7), step=lambda: None, abandon=lambda: None,
                fileno=sock.fileno, events=0, deadline=math.inf, begun=math.inf,
            ))  # fmt: skip
        else:
            record = "<QQ" if end == "another record" else "<Q"
            capacity = 1024 if end == "too much memory" else 1
            client = introduced(sock, record, capacity=capacity)
            stack.callback(client.abandon)
        if end == "left early":
            assert pending.turn() is None
            assert [share.size for share in pending.quota.shares(7)] == [2 * PAGE]
            sock.close()
        outcomes = turns(pending)
        if end in ("closed here", "dropped here", "the peer closed", "the peer left"):
            (endpoint,) = outcomes
            assert [share.size for share in pending.quota.shares(7)] == [4 * PAGE]
            theirs = advance(client)
            if end == "the peer left":
                sock.close()
                theirs._released = True
                theirs._own.close()
                theirs._peer.close()
            else:
                theirs.close()
            if end.startswith("the peer"):
                interface = memenpsf.Interface.of(endpoint)
                with pytest.raises((memenpsf.EndOfStream, memenpsf.PeerDied)):
                    interface.recv()
                # The descriptors are still held, and so is the share.
                assert len(pending.quota.shares(7)) == 1
            if end == "dropped here":
                outcomes.clear()
                del endpoint
                gc.collect()
            else:
                endpoint.close()
        elif end == "the listener closed":
            assert len(pending.quota.shares(7)) == 1
            pending.close()
        else:
            assert len(outcomes) == (end != "left early")
        assert pending.quota.shares(7) == []
        assert not pending.quota._shares
        pending.handshakes.clear()


# -- handshakes under way ---------------------------------------------------------------------


def test_a_user_with_slow_clients_leaves_places_for_others_and_keeps_its_order(
    path, invented, monkeypatch
):
    Clock(monkeypatch)
    pending = PendingClients(path, "<Q", capacity=1, quota=memenpsf.Quota(places=4, pending=3))
    with contextlib.ExitStack() as stack:
        stack.callback(pending.close)
        slow = [invented(path, 7) for _ in range(20)]
        maps = memory_files()
        assert turns(pending) == []
        # Those without a place cost a descriptor each, and no memory.
        assert memory_files() - maps == 3
        for uid in (8, 9, 10):
            opening = introduced(invented(path, uid), capacity=1)
            stack.callback(opening.abandon)
            (endpoint,) = turns(pending)
            stack.callback(endpoint.close)
            assert endpoint.peer.uid == uid
        for n in range(17):
            # One place at a time becomes free, and who came first has it.
            assert len(pending.handshakes) == 3
            assert len(pending._candidates.of(7)) == 17 - n
            theirs = advance(Opening(slow[n], terms(capacity=1, name=f"client {n}")))
            stack.callback(theirs.close)
            (endpoint,) = turns(pending)
            stack.callback(endpoint.close)
            assert endpoint.peer_name == f"client {n}"
        assert pending.refused == 0


def test_a_client_that_waits_for_a_place_is_served_when_its_time_has_come(path, invented):
    pending = PendingClients(path, "<Q", capacity=1, quota=memenpsf.Quota(pending=1))
    with contextlib.ExitStack() as stack:
        stack.callback(pending.close)
        silent = invented(path, 7)
        assert turns(pending) == []
        patient = introduced(invented(path, 7), capacity=1, name="patient")
        stack.callback(patient.abandon)
        assert turns(pending) == []
        silent.close()
        assert pending.turn() is None
        assert pending.next_deadline() == 0.0  # a turn is due: there is a place
        endpoint = pending.turn()
        stack.callback(endpoint.close)
        assert endpoint.peer_name == "patient"
        assert pending.refused == 0


def test_who_got_a_place_late_has_no_more_time_than_others(path, invented):
    pending = PendingClients(path, "<Q", capacity=1, quota=memenpsf.Quota(pending=1))
    with contextlib.closing(pending):
        first, second = invented(path, 7), invented(path, 7)
        assert turns(pending) == []
        (candidate,) = pending._candidates.of(7)
        first.close()
        assert turns(pending) == []
        (opening,) = pending.handshakes
        assert opening.deadline == candidate.deadline
        assert second.recv(2) == HELLO


def test_the_time_for_a_place_is_part_of_the_time_to_be_introduced(path, invented, monkeypatch):
    pending = PendingClients(path, "<Q", capacity=1, quota=memenpsf.Quota(pending=1), timeout=5.0)
    with contextlib.closing(pending):
        invented(path, 7)
        late = invented(path, 7)
        assert turns(pending) == []
        (candidate,) = pending._candidates.of(7)
        monkeypatch.setattr(_pending, "monotonic", lambda: candidate.deadline)
        pending.handshakes[0].deadline += 100
        (error,) = turns(pending)
        assert type(error) is memenpsf.LimitRefused
        assert "uid 7 has 1 of 1 handshakes under way here" in str(error)
        assert late.recv(10) == LIMIT


def test_who_lets_handshakes_hang_begins_no_more_than_one_a_respite(path, invented):
    pending = PendingClients(path, "<Q", capacity=1)
    with contextlib.closing(pending):
        for _ in range(3):
            invented(path, 7)
        assert turns(pending) == []
        assert len(pending.handshakes) == 3  # none of them hangs yet
        pending.handshakes[0].begun -= 2 * _pending.COOLDOWN
        pending.handshakes[-1].begun += 100  # just now, however slow this machine is
        for uid in (7, 8, 7):
            invented(path, uid)
        assert turns(pending) == []
        assert [opening.peer.uid for opening in pending.handshakes] == [7, 7, 7, 8]
        assert pending.next_deadline() == min(
            pending.handshakes[2].begun + _pending.COOLDOWN,
            *(opening.deadline for opening in pending.handshakes),
        )
        pending.handshakes[2].begun -= 100 + 2 * _pending.COOLDOWN
        pending.handshakes[0].begun = pending.handshakes[1].begun  # and time goes by
        assert turns(pending) == []
        assert [opening.peer.uid for opening in pending.handshakes][:5] == [7, 7, 7, 8, 7]


def test_a_pause_follows_clients_that_got_no_handshake(path, invented, monkeypatch):
    Clock(monkeypatch)
    pending = PendingClients(path, "<Q", capacity=1, quota=memenpsf.Quota(connections=2))
    with contextlib.closing(pending):
        assert pending.cooldown() == 0
        first = [invented(path, 7) for _ in range(2)]
        assert turns(pending) == []
        assert pending.cooldown() == 0  # a handshake under way is no reason
        first[0].close()
        assert turns(pending) == []
        assert pending.cooldown() == 0  # for that, its user rests
        invented(path, 7).close()
        invented(path, 8).close()
        assert turns(pending) == []
        assert [pending.cooldown(), pending.cooldown()] == [2 * _pending.PAUSE, 0]
        invented(path, 7)
        invented(path, 7)
        pending._let_in()
        assert pending.cooldown() == 0  # who accepts has something to tell first
        assert [type(error) for error in turns(pending)] == [memenpsf.LimitRefused]
        assert [pending.cooldown(), pending.cooldown()] == [_pending.PAUSE, 0]


@pytest.mark.parametrize("kind", ["says nonsense", "leaves in the handshake", "is not admitted"])
def test_only_the_user_rests_whose_clients_came_to_nothing(path, invented, monkeypatch, kind):
    clock = Clock(monkeypatch)
    options = {"allow_uids": {8}} if kind == "is not admitted" else {}
    pending = PendingClients(path, "<Q", capacity=1, **options)

    def come_to_nothing():
        sock = invented(path, 7)
        if kind == "says nonsense":
            sock.sendall(b"nonsense")
        before = pending.fruitless
        turns(pending)
        if kind == "leaves in the handshake" and not pending._candidates:
            sock.close()
            turns(pending)
        return pending.fruitless - before

    with contextlib.ExitStack() as stack:
        stack.callback(pending.close)
        assert [come_to_nothing(), come_to_nothing(), come_to_nothing()] == [1, 1, 0]
        (candidate,) = pending._candidates
        assert pending.next_deadline() == clock.now + _pending.COOLDOWN
        client = introduced(invented(path, 8), capacity=1)
        stack.callback(client.abandon)
        (endpoint,) = turns(pending)
        stack.callback(endpoint.close)
        assert list(pending._candidates) == [candidate]
        clock.now += _pending.COOLDOWN
        turns(pending)
        assert not pending._candidates


def test_users_that_fill_all_places_give_one_to_another_user(path, invented, monkeypatch):
    clock = Clock(monkeypatch)
    pending = PendingClients(path, "<Q", capacity=1, quota=memenpsf.Quota(places=4, pending=3))
    with contextlib.ExitStack() as stack:
        stack.callback(pending.close)
        silent = [invented(path, uid) for uid in (5, 6, 6, 6)]
        assert turns(pending) == []
        assert len(pending.handshakes) == 4
        client = introduced(invented(path, 8), capacity=1)
        stack.callback(client.abandon)
        also_silent = invented(path, 9)
        assert turns(pending) == []  # those that are there have some time
        assert pending.next_deadline() == clock.now + _pending.GRACE
        clock.now += _pending.GRACE
        error, endpoint = turns(pending)
        stack.callback(endpoint.close)
        assert type(error) is memenpsf.LimitRefused
        assert "uid 6 has 3 of 4 handshakes" in str(error)
        assert endpoint.peer.uid == 8
        assert [silent[1].recv(10), silent[1].recv(10)] == [HELLO, LIMIT]
        # Its place is free again, and goes to the next one.
        assert also_silent.recv(2) == HELLO
        assert [opening.peer.uid for opening in pending.handshakes] == [5, 6, 6, 9]
        invented(path, 10)
        clock.now += 1
        assert turns(pending) == []
        assert [candidate.share.uid for candidate in pending._candidates] == [
            10
        ]  # it said nothing yet


def test_the_queue_is_bounded_and_its_longest_part_gives_way(path, invented, monkeypatch):
    Clock(monkeypatch)
    monkeypatch.setattr(_pending, "MAX_CANDIDATES", 3)
    pending = PendingClients(path, "<Q", capacity=1, quota=memenpsf.Quota(places=1))
    with contextlib.closing(pending):
        first = invented(path, 7)
        assert turns(pending) == []
        candidates = [invented(path, 7) for _ in range(3)]
        assert turns(pending) == []
        assert len(pending._candidates) == 3
        refused = invented(path, 7)
        (error,) = turns(pending)
        assert type(error) is memenpsf.LimitRefused
        assert refused.recv(10) == LIMIT
        candidates[0].sendall(HELLO[:1])
        assert turns(pending) == []
        for uid, gone in ((8, candidates[1]), (9, candidates[2])):
            invented(path, uid)
            (error,) = turns(pending)
            assert type(error) is memenpsf.LimitRefused
            assert gone.recv(10) == LIMIT
        assert [candidate.share.uid for candidate in pending._candidates] == [7, 8, 9]
        assert first.recv(2) == HELLO
        assert [len(pending.quota.shares(uid)) for uid in (7, 8, 9)] == [2, 1, 1]


def test_a_guest_that_speaks_or_leaves_is_noticed(path, invented, monkeypatch):
    Clock(monkeypatch)
    pending = PendingClients(path, "<Q", capacity=1, quota=memenpsf.Quota(places=1))
    with contextlib.closing(pending):
        invented(path, 7)
        speaking, leaving, _ = (invented(path, 8) for _ in range(3))
        assert turns(pending) == []
        assert wanted(pending) == []
        speaking.sendall(HELLO[:1])
        assert len(wanted(pending)) == 1
        assert turns(pending) == []
        assert [candidate.spoken for candidate in pending._candidates] == [True, False, False]
        assert wanted(pending) == []  # or who waits would turn in circles
        leaving.close()
        assert len(wanted(pending)) == 1
        assert turns(pending) == []
        assert len(pending._candidates) == 2
        assert pending.refused == 0
        assert len(pending.quota.shares(8)) == 2


def test_a_turn_begins_no_more_handshakes_than_it_is_told(path, invented, monkeypatch):
    clock = Clock(monkeypatch)
    pending = PendingClients(path, "<Q", capacity=1)
    pending.per_turn, pending.accepts_per_turn = 4, 7
    pending.bound.sock = sock = Counting(pending.bound.sock)
    with contextlib.closing(pending):
        for n in range(10):
            invented(path, 7 + n % 2)
        for begun, waiting in ((4, 3), (8, 2), (10, 0)):
            # So the next turn follows at once.
            assert wanted(pending) or pending.next_deadline() <= clock.now
            sock.accepts = 0
            assert pending.turn() is None
            assert (len(pending.handshakes), len(pending._candidates)) == (begun, waiting)
            assert sock.accepts <= 7


def test_users_take_turns(path, invented, monkeypatch):
    Clock(monkeypatch)
    pending = PendingClients(path, "<Q", capacity=1, quota=memenpsf.Quota(places=6))
    pending.per_turn = 1
    with contextlib.closing(pending):
        for uid in (7, 7, 7, 7, 8, 8, 9):
            invented(path, uid)
        for _ in range(6):
            assert pending.turn() is None
        assert [opening.peer.uid for opening in pending.handshakes] == [7, 8, 9, 7, 8, 7]


def test_a_turn_takes_a_step_on_with_no_more_than_it_is_told_and_only_who_has_spoken(
    path, invented, monkeypatch
):
    pending = PendingClients(path, "<Q", capacity=1)
    with contextlib.closing(pending):
        silent = [invented(path, 7) for _ in range(5)]
        assert turns(pending) == []
        speaking = [invented(path, 8) for _ in range(3)]
        assert turns(pending) == []
        steps = []
        step = Opening.step

        def counted(opening):
            steps.append(opening.peer.uid)
            return step(opening)

        monkeypatch.setattr(Opening, "step", counted)
        for sock in speaking:
            sock.sendall(b"nonsense")
        pending.per_turn = 1
        for n in (1, 2, 3):
            with pytest.raises(memenpsf.CorruptPeer):
                pending.turn()
            assert steps == [8] * n
            assert bool(wanted(pending)) == (n < 3)
        assert pending.turn() is None
        assert len(steps) == len(speaking)
        assert len(pending.handshakes) == len(silent)


def test_a_client_that_left_without_a_word_costs_no_memory(path, invented, monkeypatch):
    pending = PendingClients(path, "<Q")
    with contextlib.closing(pending):
        for _ in range(10):
            invented(path, 7).close()
        monkeypatch.setattr(_pending, "Opening", None)
        assert turns(pending) == []
        assert pending.handshakes == []
        assert pending.refused == 0
        assert pending.quota.shares(7) == []


@pytest.mark.parametrize(
    "limit", ["connections", "bytes", "descriptors", "pending", "places", "threads"]
)
@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (-1, ValueError), ("9", TypeError)])
def test_a_limit_that_is_none_is_refused_where_it_is_stated(limit, value, error):
    with pytest.raises(error, match=f"{limit} of Quota is"):
        Quota(**{limit: value})
    with pytest.raises(error, match=f"{limit} of Quota is"):
        Quota()._replace(**{limit: value})


@pytest.mark.parametrize("wrong", [None, 3, {"connections": 3}, (1, 2, 3, 4, 5)])
async def test_what_is_no_quota_is_refused_by_both_doors(path, wrong):
    with pytest.raises(TypeError, match="quota is a Quota, such as"):
        memenpsf.listen(path, "<Q", quota=wrong)
    with pytest.raises(TypeError, match="quota is a Quota, such as"):
        await memenpsf.trio.listen(path, "<Q", quota=wrong)
    assert not path.exists()


@pytest.mark.parametrize(
    ("option", "now"),
    [
        ("max_connections_per_uid", "connections"),
        ("max_bytes_per_uid", "bytes"),
        ("max_descriptors_per_uid", "descriptors"),
        ("max_pending_per_uid", "pending"),
        ("max_pending", "places"),
    ],
)
def test_a_limit_of_before_says_how_it_is_written_now(path, option, now):
    with pytest.raises(TypeError, match=rf"{option}': write quota=Quota\({now}=\.\.\.\) instead$"):
        memenpsf.listen(path, "<Q", **{option: 3})
    assert not path.exists()


def test_a_quota_is_a_value():
    quota = Quota(connections=3, bytes=1 << 20)
    assert quota == Quota(bytes=1 << 20, connections=3)
    assert repr(quota) == (
        "Quota(connections=3, bytes=1048576, descriptors=None, pending=32, places=64, threads=512)"
    )
    with pytest.raises(AttributeError):
        quota.pending = 4
    assert pickle.loads(pickle.dumps(quota)) == quota


def test_the_limits_by_default(path):
    with contextlib.closing(PendingClients(path, "<Q")) as pending:
        assert (pending._max_pending, pending._max_pending_per_uid) == (64, 32)
        assert pending.quota._max_connections is None
        assert pending.quota._max_bytes == 8 << 30
    assert _quota.PENDING < _quota.PLACES


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as two users")
def test_another_user_over_its_limit_does_not_concern_this_one(forked):
    address = f"@memenpsf-quota-{os.getpid()}"

    def stranger():
        os.setuid(NOBODY)
        held = [memenpsf.connect(address, "<Q", allow_uids={0}) for _ in range(2)]
        for _ in range(3):
            with pytest.raises(memenpsf.LimitRefused):
                memenpsf.connect(address, "<Q", allow_uids={0})
        for interface in held:
            interface.close()

    with contextlib.ExitStack() as stack:
        options = {"allow_uids": {0, NOBODY}, "quota": memenpsf.Quota(connections=2), "capacity": 1}
        listener = stack.enter_context(memenpsf.listen(address, "<Q", **options))
        pool = stack.enter_context(ThreadPoolExecutor(1))
        outcomes = pool.submit(accept_some, listener, 5)
        assert forked(stranger) == 0
        for outcome in outcomes.result():
            if isinstance(outcome, memenpsf.Interface):
                stack.enter_context(outcome)
                assert outcome.peer.uid == NOBODY
            else:
                assert type(outcome) is memenpsf.LimitRefused
                assert f"uid {NOBODY} has 2 connections" in str(outcome)
        assert listener.refused == 3
        # It is gone, but here its connections are still open; and nobody else's.
        for _ in range(2):
            client = pool.submit(memenpsf.connect, address, "<Q")
            accepted = stack.enter_context(listener.accept())
            stack.enter_context(client.result())
            assert accepted.peer.uid == 0
        assert listener.refused == 3


def accept_some(listener, count):
    outcomes = []
    for _ in range(count):
        try:
            outcomes.append(listener.accept())
        except memenpsf.QueueError as error:
            outcomes.append(error)
    return outcomes


# -- descriptors that come and go with messages ------------------------------------------------


def shares_with(quota, *counts):
    """Open a share for each (uid, descriptors with messages)."""
    shares = []
    for uid, count in counts:
        shares.append(quota.open(uid))
        shares[-1].follow(lambda count=count: count)
    return shares


def test_what_comes_and_goes_with_messages_counts_beside_the_connections():
    quota = Shares(10, 100, max_descriptors=20)
    one, two, other = shares_with(quota, (7, 5), (7, 5), (8, 9))
    assert one.fits(5)
    assert two.fits(5)
    one.follow(lambda: 6)
    assert not one.fits(6)
    assert not two.fits(5)  # that one is about to take more counts for all
    assert other.fits(9)
    two.close()
    assert one.fits(6)


def test_a_single_message_always_fits():
    quota = Shares(10, 100, max_descriptors=1)
    (one,) = shares_with(quota, (7, 253))
    assert one.fits(253)
    one.follow(lambda: 254)
    assert not one.fits(253)


def test_all_users_together_leave_some_descriptors(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda what: (160, 160))
    quota = Shares(None, 100)
    shares = shares_with(quota, (7, 60), (8, 60), (9, 15))
    third = shares[2]
    assert third.fits(15)  # a single message
    third.follow(lambda: 16)
    assert not third.fits(8)
    third.follow(lambda: 15)
    assert third.fits(8)


def test_a_connection_leaves_its_user_room_for_a_message():
    quota = Shares(10, 100, max_descriptors=16, reserved=5)
    kept = [quota.open(7), quota.open(7)]
    with pytest.raises(memenpsf.LimitRefused, match="less than 5 of its 16 descriptors"):
        quota.open(7)
    assert quota.open(8).uid == 8
    assert len(kept) == 2
    assert Shares(10, 100, max_descriptors=1, reserved=5).open(7).uid == 7


MESSAGES = {"capacity": PAGE, "accept": memenpsf.Accept(fds=4, regions=0)}


class Counted:
    """A listener for messages, and connections of any user to it."""

    def __init__(self, path, invented, stack, limit):
        options = {**MESSAGES, "quota": memenpsf.Quota(descriptors=limit)}
        self.pending = PendingClients(path, bytes, **options)
        self._path, self._invented, self._stack = path, invented, stack
        stack.callback(self.pending.close)

    def connect(self, uid):
        opening = introduced(self._invented(self._path, uid), bytes, **MESSAGES)
        (endpoint,) = turns(self.pending)
        server = self._stack.enter_context(memenpsf.Interface.of(endpoint))
        client = self._stack.enter_context(memenpsf.Interface.of(advance(opening)))
        return server, client


@pytest.fixture
def counted(path, invented):
    with contextlib.ExitStack() as stack:
        yield lambda limit: Counted(path, invented, stack, limit)


@pytest.fixture
def null():
    with Path("/dev/null").open("rb") as file:
        yield file.fileno()


def held(interface):
    return interface._endpoint.held_descriptors()


def test_what_a_user_has_no_room_for_stays_in_its_socket_and_comes_later(counted, null):
    server, client = counted(limit=10).connect(7)
    for n in range(5):
        client.xmit(bytes([n]), fds=[null] * 4)
    for _ in range(5):
        server._endpoint.read_if_free()
    assert held(server) == 4
    for n in range(5):
        message = server.recv_message(timeout=0)
        assert message.record == bytes([n])
        assert len(message.fds) == 4
        message.close()
        assert held(server) <= 4
    assert held(server) == 0


def test_a_message_whose_descriptors_wait_is_no_broken_promise(counted, null):
    server = counted(limit=15)
    (one, his), (two, hers), (other, theirs) = (server.connect(uid) for uid in (7, 7, 8))
    his.xmit(b"1", fds=[null] * 4)
    one._endpoint.read_if_free()
    hers.xmit(b"2", fds=[null] * 4)
    theirs.xmit(b"3", fds=[null] * 4)
    verbs = (two.recv, two.recv_message, two.recv_vectored)
    assert [bool(verb(timeout=0)) for verb in verbs] == [False] * 3
    with two.borrow(timeout=0) as lent:
        assert len(lent) == 0
    assert held(two) == 0
    assert two._endpoint.should_back_off()
    assert other.recv(timeout=0) == b"3"
    assert one.recv(timeout=0) == b"1"
    assert two.recv(timeout=0) == b"2"
    assert not two._endpoint.should_back_off()
    assert not other._endpoint.should_back_off()


def test_what_is_moved_while_it_is_counted_counts(counted, null):
    """By another thread, from one place to the next; which one, the order of the looks must not miss."""
    server, client = counted(limit=10).connect(7)
    endpoint = server._endpoint

    class Moving(list):
        def __iter__(self):
            endpoint.wire._incoming = 0
            for fds in endpoint.wire.attached:
                fdpass.close_untrusted(fds)
            del endpoint.wire.attached[:]
            return super().__iter__()

    client.xmit(b"1", fds=[null] * 4)
    endpoint.read_if_free()
    endpoint.wire._incoming = 2
    endpoint.receiver._decoding = Moving()
    assert held(server) == 6
    endpoint.receiver._decoding = []


def test_a_borrowing_lends_what_is_there_once_more_and_not_for_ever(counted, null, monkeypatch):
    """While descriptors of the next message have no room: each time takes as long as all of it."""
    server = counted(limit=15)
    (one, his), (two, hers) = server.connect(7), server.connect(7)
    his.xmit(b"1", fds=[null] * 4)
    one._endpoint.read_if_free()
    hers.xmit(b"plain")
    hers.xmit(b"2", fds=[null] * 4)
    receiver, times = two._endpoint.receiver, []
    lend = receiver.lend_records

    def lend_records(*arguments, **named):
        times.append(arguments)
        return lend(*arguments, **named)

    monkeypatch.setattr(receiver, "lend_records", lend_records)
    with two.borrow(timeout=0) as lent:
        assert [bytes(message.data) for message in lent] == [b"plain"]
    assert len(times) == 2
    one.recv(timeout=0)
    with two.borrow(timeout=0) as lent:
        assert [bytes(message.data) for message in lent] == [b"2"]


def test_who_waits_for_room_looks_ever_less_often_and_not_at_the_end(counted, null):
    server, client = counted(limit=5).connect(7)
    endpoint = server._endpoint
    for _ in range(2):
        fdpass.send_fds(client._endpoint.wire.sock, [null] * 4, bytes((17, 4)))
    endpoint.read_if_free()
    lengths = []
    for _ in range(8):
        endpoint.read_if_free()
        assert endpoint.should_back_off()
        lengths.append(endpoint.back_off_length() / endpoint.alarms.BACK_OFF)
    assert lengths == [1, 2, 4, 8, 16, 16, 16, 16]
    client.close()
    with endpoint.wire.poller(0) as end:
        assert end.poll(0) == []  # or who waits would turn in circles
    with pytest.raises(memenpsf.EndOfStream):  # whatever is left in the socket
        server.recv(timeout=0)
    assert held(server) == 0  # and what came is closed


def test_what_its_peer_has_not_read_keeps_a_sender_waiting(counted, null):
    server = counted(limit=11)
    (one, his), (other, _) = server.connect(7), server.connect(8)
    for interface in (one, one, other, other):
        interface.xmit(b"x", timeout=0, fds=[null] * 3)
    assert (held(one), held(other)) == (6, 6)
    with pytest.raises(memenpsf.Full):
        one.xmit(b"y", timeout=0, fds=[null] * 3)
    assert held(one) == 6
    one.xmit(b"z", timeout=0)  # without descriptors
    assert one._endpoint.in_flight_limit_reached()
    waits = [one._endpoint.retry_after() / one._endpoint.RETRY_AFTER]
    for _ in range(8):
        with pytest.raises(memenpsf.Full):
            one.xmit(b"y", timeout=0, fds=[null] * 3)
        waits.append(one._endpoint.retry_after() / one._endpoint.RETRY_AFTER)
    assert waits[0] == 1
    assert waits == sorted(waits)
    assert waits[-1] == 64
    his._endpoint.read_if_free()
    his._endpoint.read_if_free()  # read from the socket, and not taken
    assert held(one) == 0
    one.xmit(b"y", timeout=0, fds=[null] * 3)
    assert one._endpoint.retry_after() == one._endpoint.RETRY_AFTER


def test_messages_outside_the_ring_and_regions_count_as_well(counted):
    server, client = counted(limit=5 + 1).connect(7)
    large = bytes(2 * PAGE)
    server.xmit(large, timeout=0)
    with pytest.raises(memenpsf.Full):
        server.xmit(large + large, timeout=0)
    with pytest.raises(memenpsf.Full):
        server.xmit_many([large + large], timeout=0) or server.xmit(large + large, timeout=0)
    assert client.recv(timeout=0) == large
    server.xmit(large + large, timeout=0)
    assert client.recv(timeout=0) == large + large


def test_a_sender_that_waits_goes_on_when_its_peer_reads(counted, null):
    server, client = counted(limit=6).connect(7)
    with ThreadPoolExecutor(1) as pool:
        sending = [pool.submit(server.xmit, bytes([n]), 30, [null]) for n in range(6)]
        got = [client.recv(30) for _ in range(6)]
        for each in sending:
            each.result()
    assert got == [bytes([n]) for n in range(6)]


async def test_a_task_waits_for_room_and_goes_on(path, null):
    options = {**MESSAGES, "quota": memenpsf.Quota(descriptors=15)}
    async with await memenpsf.trio.listen(path, bytes, **options) as listener:
        async with trio.open_nursery() as nursery:
            pairs = []

            async def connect():
                pairs.append((await memenpsf.trio.connect(path, bytes, **MESSAGES),))

            for _ in range(2):
                nursery.start_soon(connect)
                accepted = await listener.accept()
                while not pairs or len(pairs[-1]) == 2:
                    await trio.lowlevel.checkpoint()
                pairs[-1] += (accepted,)
        (his, one), (hers, two) = pairs
        async with his, one, hers, two:
            await his.xmit(b"1", fds=[null] * 4)
            one._endpoint.read_if_free()
            await hers.xmit(b"2", fds=[null] * 4)
            assert await two.recv(timeout=0) is None
            async with trio.open_nursery() as nursery:
                got = []

                async def receive():
                    got.append(await two.recv())

                nursery.start_soon(receive)
                await wait_all_tasks_blocked(0.001)
                assert got == []
                assert await one.recv() == b"1"
            assert got == [b"2"]


@pytest.mark.parametrize("claimed", [1, 17, 253])
@pytest.mark.parametrize("spec", ["<Q", bytes])
def test_of_too_many_descriptors_only_a_few_are_ever_open(
    path, invented, spec, claimed, null, monkeypatch
):
    arrived = []
    blank = fdpass.Fd.blank

    def noted(count):
        arrived.append(count)
        return blank(count)

    with contextlib.ExitStack() as stack:
        pending = PendingClients(path, spec, capacity=PAGE)
        stack.callback(pending.close)
        sock = invented(path, 7)
        opening = introduced(sock, spec, capacity=PAGE)
        (endpoint,) = turns(pending)
        server = stack.enter_context(memenpsf.Interface.of(endpoint))
        stack.enter_context(memenpsf.Interface.of(advance(opening)))
        fdpass.send_fds(sock, [null] * 253, bytes((17, claimed)))
        monkeypatch.setattr(fdpass.Fd, "blank", noted)
        with pytest.raises(memenpsf.CorruptPeer, match="descriptors nobody asked for"):
            server.recv(timeout=0)
    assert max(arrived) <= min(claimed, 0 if spec == "<Q" else 17) + 2


def test_of_too_many_descriptors_beside_hello_only_a_few_are_ever_open(path, null, monkeypatch):
    arrived = []
    own = fdpass.Fd.own

    def noted(fds, numbers, *then):
        numbers = list(numbers)
        arrived.append(len(numbers))
        own(fds, numbers, *then)

    with contextlib.closing(PendingClients(path, "<Q", capacity=1)) as pending:
        with connected(path) as sock:
            fdpass.send_fds(sock, [null] * 253, HELLO)
            monkeypatch.setattr(fdpass.Fd, "own", noted)
            (error,) = turns(pending)
    assert type(error) is memenpsf.CorruptPeer
    assert 1 < max(arrived) < 20


# -- when descriptors are short ---------------------------------------------------------------


class Clock:
    """The listener's time, which stands still."""

    def __init__(self, monkeypatch):
        self.now = 1e9
        monkeypatch.setattr(_pending, "monotonic", lambda: self.now)
        for file in ("opening", "terms"):
            monkeypatch.setattr(f"ipcqueue._link.{file}.monotonic", lambda: self.now)


class Counting:
    """A listening socket that counts what is asked of it."""

    def __init__(self, sock):
        self._sock = sock
        self.accepts = 0

    def __getattr__(self, name):
        return getattr(self._sock, name)

    def accept(self):
        self.accepts += 1
        return self._sock.accept()


def wanted(pending):
    """What a poll of what the pending waits for would return at once."""
    poll = select.poll()
    for fd, events in pending.interests():
        poll.register(fd, events)
    return poll.poll(0)


def test_at_the_limit_of_descriptors_a_client_is_told_and_nothing_turns_in_circles(
    path, monkeypatch
):
    clock = Clock(monkeypatch)
    pending = PendingClients(path, "<Q", capacity=1)
    pending.bound.sock = sock = Counting(pending.bound.sock)
    with contextlib.ExitStack() as stack:
        stack.callback(pending.close)
        clients = [stack.enter_context(connected(path)) for _ in range(5)]
        with room_for_descriptors(0):
            for n, client in enumerate(clients):
                assert n or wanted(pending)
                assert not n or pending.next_deadline() <= clock.now
                (error,) = turns(pending, 1)
                assert isinstance(error, OSError)
                assert error.errno == errno.EMFILE
                assert sock.accepts == 2
                assert client.recv(10) == LIMIT
                assert client.recv(10) == b""
                assert pending.refused == n + 1
                # The next waits in the backlog, and nobody is woken by it.
                assert pending.next_deadline() == clock.now + _pending.BACK_OFF
                assert wanted(pending) == []
                # Turns for other reasons cost one attempt each.
                assert turns(pending, 100) == []
                assert sock.accepts == 102
                sock.accepts = 0
                clock.now += _pending.BACK_OFF
            # Without a client, accept() fails all the same, and it does not matter.
            assert turns(pending, 10) == []
            assert sock.accepts == 20
            assert pending._resume is None
        late = introduced(stack.enter_context(connected(path)), capacity=1)
        stack.callback(late.abandon)
        (endpoint,) = turns(pending)
        endpoint.close()


def test_descriptors_that_are_free_again_end_the_waiting_at_the_next_turn(path, monkeypatch):
    Clock(monkeypatch)
    pending = PendingClients(path, "<Q", capacity=1)
    with contextlib.ExitStack() as stack:
        stack.callback(pending.close)
        clients = [introduced(connected(path), capacity=1) for _ in range(2)]
        for client in clients:
            stack.callback(client.abandon)
        with room_for_descriptors(0):
            (error,) = turns(pending)
            assert isinstance(error, OSError)
        (endpoint,) = turns(pending)
        endpoint.close()
        assert pending._resume is None


def test_a_reserve_that_others_took_is_made_again(path, monkeypatch):
    clock = Clock(monkeypatch)
    pending = PendingClients(path, "<Q", capacity=1)
    with contextlib.ExitStack() as stack:
        stack.callback(pending.close)
        clients = [stack.enter_context(connected(path)) for _ in range(3)]
        with room_for_descriptors(0):
            spare = _reserve.spare
            thief = []

            def too_late():
                thief.append(os.dup(0))
                return spare()

            monkeypatch.setattr(_reserve, "spare", too_late)
            (error,) = turns(pending, 1)
            assert isinstance(error, OSError)
            assert clients[0].recv(10) == LIMIT
            assert pending._reserve._kept is None
            monkeypatch.setattr(_reserve, "spare", spare)
            clock.now += _pending.BACK_OFF
            # Without it nobody can be told, but there are no circles either.
            (error,) = turns(pending, 50)
            assert isinstance(error, OSError)
            assert wanted(pending) == []
            os.close(thief.pop())
            assert turns(pending) == []
            assert pending._reserve._kept is not None
            clock.now += _pending.BACK_OFF
            (error,) = turns(pending)
            assert clients[1].recv(10) == LIMIT


def test_a_shortage_that_no_reserve_helps_against_makes_others_wait_too(path, monkeypatch):
    clock = Clock(monkeypatch)
    pending = PendingClients(path, "<Q", capacity=1)
    real = pending.bound.sock

    class NoMemory(Counting):
        def accept(self):
            self.accepts += 1
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    pending.bound.sock = sock = NoMemory(real)
    with contextlib.closing(pending), connected(path) as client:
        for n in range(3):
            (error,) = turns(pending, 50)
            assert error.errno == errno.ENOMEM
            assert sock.accepts == 50 * (n + 1)
            assert wanted(pending) == []
            clock.now += _pending.BACK_OFF
        pending.bound.sock = real
        assert turns(pending) == []
        assert client.recv(2) == HELLO


def test_a_shortage_while_a_client_introduces_itself_is_told_to_it(path):
    with memenpsf.listen(path, "<Q", capacity=1) as listener:
        for room in (1, 2):
            with Client(path, capacity=1).say_hello() as client:
                with room_for_descriptors(room):
                    with pytest.raises(OSError, match="Too many open files"):
                        listener.accept(timeout=0)
                    assert listener.refused == room
                with pytest.raises(memenpsf.LimitRefused):
                    client.finish().recv()


def echo_many(listener):
    def echo(interface):
        with interface, contextlib.suppress(memenpsf.EndOfStream):
            for record in interface:
                interface.xmit(record)

    threads = []
    for interface in listener:
        threads.append(threading.Thread(target=echo, args=(interface,)))
        threads[-1].start()
    for thread in threads:
        thread.join()


def goes_on_at_the_limit(path):
    """What clients of a server in this process see before, at and after its limit."""
    with memenpsf.connect(path, "<Q") as early:

        def is_served(interface):
            interface.xmit((1,))
            return interface.recv(20) == (1,)

        assert is_served(early)
        sockets = [socket.socket(socket.AF_UNIX) for _ in range(3)]
        with contextlib.ExitStack() as stack:
            for sock in sockets:
                stack.enter_context(sock)
            with room_for_descriptors(0):
                for sock in sockets:
                    sock.connect(str(path))
                    assert sock.recv(10) == LIMIT
                    assert is_served(early)
            with memenpsf.connect(path, "<Q") as late:
                assert is_served(late)
                assert is_served(early)


def test_iteration_goes_on_at_the_limit_of_descriptors(path, caplog):
    with memenpsf.listen(path, "<Q") as listener, ThreadPoolExecutor(1) as pool:
        serving = pool.submit(echo_many, listener)
        try:
            goes_on_at_the_limit(path)
        finally:
            listener.close()
        serving.result()
        assert listener.refused == 3
    assert caplog.text.count("client not served") == 3


async def echo(interface):
    async for record in interface:
        await interface.xmit(record)


async def test_serving_goes_on_at_the_limit_of_descriptors(path, caplog):
    async with trio.open_nursery() as nursery:
        listener = await nursery.start(lambda **kw: memenpsf.trio.serve(echo, path, "<Q", **kw))
        await trio.to_thread.run_sync(goes_on_at_the_limit, path)
        assert listener.refused == 3
        await listener.aclose()
    assert caplog.text.count("client not served") == 3


async def test_a_storm_of_clients_does_not_keep_other_tasks_waiting(path):
    """Each turn of the scheduler lets in a few, so a task that is ready runs in between."""
    async with await memenpsf.trio.listen(path, "<Q", capacity=1) as listener:
        with contextlib.ExitStack() as stack:
            for _ in range(30):
                stack.enter_context(connected(path))
            seen = []
            async with trio.open_nursery() as nursery:
                nursery.start_soon(listener.accept)
                while not seen or seen[-1] < 30:
                    await trio.lowlevel.checkpoint()
                    seen.append(len(listener._pending.handshakes))
                nursery.cancel_scope.cancel()
        assert max(b - a for a, b in itertools.pairwise([0, *seen])) <= 4


async def test_closing_wakes_who_accepts_while_descriptors_are_short(path, monkeypatch):
    monkeypatch.setattr(_pending, "BACK_OFF", 1e6)
    listener = await memenpsf.trio.listen(path, "<Q")
    with connected(path):
        with room_for_descriptors(0), pytest.raises(OSError, match="Too many open files"):
            await listener.accept()
        caught = []

        async def accept():
            try:
                await listener.accept()
            except memenpsf.trio.Closed as error:
                caught.append(error)

        sock = listener._pending.bound.sock
        listener._pending.bound.sock = SimpleNamespace(
            accept=shortage, fileno=sock.fileno, shutdown=sock.shutdown, close=sock.close
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)
            await wait_all_tasks_blocked(0.001)
            await listener.aclose()
        assert len(caught) == 1


def shortage():
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
