"""ReceiverSet: many connections and listeners, and one loop that receives from all of them."""

from __future__ import annotations

import collections
import contextlib
import os
import select
import socket
import time

import numpy as np
import pytest
import trio

import ipcqueue
import memenpsf
import memenpsf.trio
from ipcqueue.lowlevel import Event, Watch
from memenpsf import ReceiverSet, _gathering, _sources
from memenpsf._gathering import QUANTUM
from tests.kit import waiting
from tests.kit.places import at_every_place, interrupt
from tests.kit.waiting import until

in_thread, wake_ups_only = waiting.in_thread, waiting.wake_ups_only


@pytest.fixture(autouse=True)
def _no_rescues(monkeypatch):
    monkeypatch.setattr(_gathering, "RESCUE", 3600.0)


@pytest.fixture
def connect():
    made = []

    def connect(spec="<Q", **options):
        made.extend(memenpsf.pair(spec, **{"capacity": 1024, **options}))
        return made[-2:]

    yield connect
    for side in made:
        side.close()


@pytest.fixture
def three(connect):
    return [connect() for _ in range(3)]


@pytest.fixture
def readers(three):
    with ReceiverSet(here for here, _ in three) as readers:
        yield readers


def asleep(readers):
    """Whether a thread waits in it, for all of its members."""
    return bool(readers._gathering._waiting)


def drained(readers):
    while (got := readers.recv(timeout=0)) is not None:
        yield got


def test_each_record_comes_with_its_source(three, readers):
    for n, (_, there) in enumerate(three):
        there.xmit_many([(n,), (n + 10,)])
    got = collections.defaultdict(list)
    for source, record in drained(readers):
        got[source].append(record)
    assert got == {here: [(n,), (n + 10,)] for n, (here, _) in enumerate(three)}
    assert readers.recv(timeout=0.001) is None
    assert list(drained(readers)) == []


def test_a_record_wakes_it_again_and_again(three, readers, in_thread):
    for n in range(30):
        receiving = in_thread(readers.recv)
        until(lambda: asleep(readers))
        here, there = three[n % 3]
        there.xmit((n,))
        assert receiving.result() == (here, (n,))
    for _, there in three:
        assert there.statistics().doorbells == 10


def test_what_another_thread_reads_wakes_it_as_well(three, readers, in_thread):
    here, there = three[0]
    reader = in_thread(here.recv_ctrl_msg, None)
    until(lambda: here._endpoint.waiters.reading)
    receiving = in_thread(readers.recv)
    until(lambda: asleep(readers))
    there.xmit((1,))
    assert receiving.result() == (here, (1,))
    there.send_ctrl_msg(b"\x80\x01")
    assert reader.result() == b"\x80\x01"


def test_control_messages_wake_nobody_for_good(three, readers, in_thread):
    here, there = three[0]
    receiving = in_thread(readers.recv)
    until(lambda: asleep(readers))
    there.send_ctrl_msg(b"\x80\x01")
    there.xmit((1,))
    assert receiving.result() == (here, (1,))
    assert here.recv_ctrl_msg() == b"\x80\x01"


# -- fairness ---------------------------------------------------------------------------------


def test_a_flood_does_not_starve_a_trickle(three, readers):
    (flood, to_flood), (trickle, to_trickle), (other, to_other) = three
    to_flood.xmit_many([(0,)] * 1000)
    to_other.xmit_many([(0,)] * 1000)
    for n in range(20):
        for _ in range(n):  # at any place of a turn
            readers.recv()
        to_trickle.xmit((n,))
        before = collections.Counter()
        while (source := readers.recv()[0]) is not trickle:
            before[source] += 1
        assert before[flood] <= QUANTUM
        assert before[other] <= QUANTUM


def test_a_member_that_joins_is_served_as_soon(three, connect):
    (flood, to_flood), *_ = three
    to_flood.xmit_many([(0,)] * 1000)
    here, there = connect()
    there.xmit((1,))
    with ReceiverSet([flood]) as readers:
        readers.recv()
        readers.add(here)
        sources = [readers.recv()[0] for _ in range(QUANTUM + 1)]
        assert sources.index(here) <= QUANTUM


def test_a_batch_of_each_is_returned(three, readers):
    for _, there in three:
        there.xmit_many([(n,) for n in range(100)])
    whole = [(n,) for n in range(100)]
    batches = readers.recv_vectored(limit=60)
    assert batches == [(here, whole[:60]) for here, _ in three]
    assert readers.recv_vectored() == [(here, whole[60:]) for here, _ in three]
    assert readers.recv_vectored(timeout=0) == []
    assert readers.recv_vectored(timeout=0.001) == []


@pytest.mark.deadline(10)
@pytest.mark.parametrize("verb", ["recv", "recv_vectored"])
def test_what_comes_between_the_look_and_the_sleep_is_found(three, readers, monkeypatch, verb):
    here, there = three[0]
    real = _sources.ConnectionSource.look
    came = []

    def look(source):
        if source.given is here and not came:
            came.append(there.xmit((1,)))
        return real(source)

    monkeypatch.setattr(_sources.ConnectionSource, "look", look)
    got = getattr(readers, verb)()
    assert got == ((here, (1,)) if verb == "recv" else [(here, [(1,)])])


def test_a_batch_is_no_longer_than_a_thousand_records(connect):
    here, there = connect(capacity=4096)
    there.xmit_many([(1,)] * 4096)
    with ReceiverSet([here]) as readers:
        ((_, records),) = readers.recv_vectored()
        assert len(records) == 1024


def test_batches_are_waited_for_and_mix_with_single_records(three, readers, in_thread):
    for n in range(10):
        receiving = in_thread(readers.recv_vectored)
        until(lambda: asleep(readers))
        here, there = three[n % 3]
        there.xmit((n,))
        assert receiving.result() == [(here, [(n,)])]
        there.xmit_many([(1,), (2,), (3,)])
        assert readers.recv() == (here, (1,))
        assert readers.recv_vectored() == [(here, [(2,), (3,)])]


def test_members_that_have_nothing_cost_nothing(connect, monkeypatch):
    flood, to_flood = connect()
    idle = [connect(capacity=4)[0] for _ in range(20)]
    calls = []
    with ReceiverSet([flood, *idle]) as readers:
        assert readers.recv(timeout=0) is None
        for name in ("watch", "try_pop", "read_if_free", "has_come"):
            for each in idle:
                monkeypatch.setattr(each._endpoint, name, lambda *_: calls.append(1))
        for _ in range(20):
            to_flood.xmit_many([(1,)] * 100)
            assert len(list(drained(readers))) == 100
        assert calls == []


# -- what may come instead of a record --------------------------------------------------------


@pytest.mark.parametrize("asleep_first", [False, True])
@pytest.mark.parametrize(
    ("end", "error"),
    [
        ("close", memenpsf.EndOfStream),
        ("send_eof", memenpsf.EndOfStream),
        ("abort", memenpsf.Aborted),
    ],
)
def test_an_end_is_returned_behind_what_came_before_and_ends_nobody_else(
    three, readers, end, error, asleep_first
):
    if asleep_first:
        assert readers.recv(timeout=0) is None
    (here, there), (other, to_other), _ = three
    there.xmit((1,))
    getattr(there, end)()
    got = list(drained(readers))
    assert got[0] == (here, (1,))
    assert got[1][0] is here
    assert isinstance(got[1][1], error)
    assert memenpsf.interface_of(got[1][1]) is here
    assert len(got) == len(readers) == 2
    assert here not in readers
    assert other in readers
    to_other.xmit((2,))
    assert readers.recv() == (other, (2,))
    assert not here.closed


def test_an_end_in_batches_is_a_list_of_one(three, readers):
    (here, there), (other, to_other), _ = three
    there.xmit((1,))
    there.close()
    to_other.xmit((2,))
    got = collections.defaultdict(list)
    for source, records in [*readers.recv_vectored(), *readers.recv_vectored()]:
        got[source] += records
    assert got[other] == [(2,)]
    assert got[here][0] == (1,)
    assert isinstance(got[here][1], memenpsf.EndOfStream)
    assert len(readers) == 2


def test_a_death_is_returned():
    here, there = socket.socketpair()
    child = os.fork()
    if child == 0:
        here.close()
        memenpsf.Interface(there, "<Q").xmit((1,))
        os._exit(0)
    there.close()
    with memenpsf.Interface(here, "<Q") as one, ReceiverSet([one]) as readers:
        os.waitpid(child, 0)
        assert readers.recv() == (one, (1,))
        source, error = readers.recv()
        assert source is one
        assert isinstance(error, memenpsf.PeerDied)


def test_a_corrupt_peer_ends_itself_alone(three, readers):
    (here, there), (other, to_other), _ = three
    os.write(there._endpoint.fileno(), b"\x4d\x00")
    source, error = readers.recv()
    assert source is here
    assert isinstance(error, memenpsf.CorruptPeer)
    to_other.xmit((2,))
    assert readers.recv() == (other, (2,))


def test_a_record_that_cannot_be_decoded_is_returned_as_an_error(connect):
    def decode(data):
        if data == b"bad":
            raise ValueError("bad")
        return bytes(data)

    here, there = connect(memenpsf.Encoded(bytes, decode), capacity=4096)
    with ReceiverSet([here]) as readers:
        for text in (b"one", b"bad", b"two"):
            there.xmit(text)
        got = list(drained(readers))
        assert [record for _, record in got if isinstance(record, bytes)] == [b"one", b"two"]
        assert isinstance(got[1][1], memenpsf.DecodeFailed)
        assert here in readers
        for text in (b"one", b"bad", b"two"):
            there.xmit(text)
        records = []
        for pairs in iter(lambda: readers.recv_vectored(timeout=0), []):
            for source, batch in pairs:
                assert source is here
                records += batch
        assert [r for r in records if isinstance(r, bytes)] == [b"one", b"two"]
        assert [type(r) for r in records].count(memenpsf.DecodeFailed) == 1


@pytest.mark.parametrize("rest", [0.02, 3600.0])
def test_a_member_that_somebody_borrows_from_rests(three, readers, monkeypatch, rest):
    monkeypatch.setattr(_gathering, "REST", rest)
    (here, there), (other, to_other), _ = three
    there.xmit((1,))
    with here.borrow() as borrowed:
        source, error = readers.recv()
        assert source is here
        assert isinstance(error, memenpsf.ConcurrentUse)
        to_other.xmit((2,))
        assert readers.recv() == (other, (2,))
        if rest > 1:
            assert readers.recv(timeout=0.001) is None
        borrowed.cancel()
    if rest < 1:
        assert next(r for s, r in readers if s is here and isinstance(r, tuple)) == (1,)


def test_a_member_that_its_owner_closes_is_returned_as_closed(three, readers, in_thread):
    receiving = in_thread(readers.recv)
    until(lambda: asleep(readers))
    here, _ = three[0]
    here.close()
    source, error = receiving.result()
    assert source is here
    assert isinstance(error, memenpsf.Closed)
    assert len(readers) == 2


def test_closing_an_end_wakes_those_who_watch_it(connect):
    here, _ = connect()
    told = []
    watch = Watch(lambda: told.append(here._endpoint.closed))
    assert here._endpoint.watch(watch, [Event.RECORDS]) == set()
    here.close()
    assert told == [True]


def test_ends_of_many_at_once_are_all_returned(three, readers):
    for here, there in three:
        there.xmit((1,))
        there.close()
        here.statistics()
    got = list(drained(readers))
    assert sorted(type(r).__name__ for _, r in got) == ["EndOfStream"] * 3 + ["tuple"] * 3
    assert len(readers) == 0


# -- who is in it -----------------------------------------------------------------------------


def test_members_come_and_go_while_a_thread_waits(connect, in_thread):
    (one, to_one), (two, to_two) = connect(), connect()
    with ReceiverSet() as readers:
        receiving = in_thread(readers.recv)
        until(lambda: asleep(readers))
        to_one.xmit((1,))
        readers.add(one)
        assert receiving.result() == (one, (1,))
        readers.add(two)
        receiving = in_thread(readers.recv)
        until(lambda: asleep(readers))
        readers.remove(one)
        to_one.xmit((2,))
        to_two.xmit((3,))
        assert receiving.result() == (two, (3,))
        assert one.recv() == (2,)
        assert not one._endpoint.waiters.watches
        assert one not in readers
        readers.add(one)
        to_one.xmit((4,))
        assert readers.recv() == (one, (4,))


def test_a_member_that_is_removed_in_its_turn_gives_no_more(three, readers):
    here, there = three[0]
    there.xmit_many([(n,) for n in range(9)])
    assert readers.recv() == (here, (0,))
    readers.remove(here)
    assert list(drained(readers)) == []
    assert here.recv_vectored() == [(n,) for n in range(1, 9)]
    assert readers.recv_vectored(timeout=0) == []


def test_members_are_counted_and_found(three, readers):
    assert len(readers) == 3
    assert all(here in readers for here, _ in three)
    assert three[0][1] not in readers
    assert repr(readers) == "<ReceiverSet: 3 members>"
    with pytest.raises(ValueError, match="is in this set already"):
        readers.add(three[0][0])
    with pytest.raises(KeyError):
        readers.remove(three[0][1])


def test_receivers_are_members_senders_and_others_are_not(three, readers, connect):
    sender, receiver = ipcqueue.pair(np.dtype("<u8"), 16)
    with sender, receiver:
        readers.add(receiver)
        sender.push_many(np.arange(3, dtype="<u8"))
        ((source, records),) = readers.recv_vectored()
        assert source is receiver
        assert records.tolist() == [0, 1, 2]
        with pytest.raises(TypeError, match="only sends"):
            readers.add(sender)
        readers.remove(receiver)
    here, there = socket.socketpair()
    for wrong in (here, 3, None, "text"):
        with pytest.raises(TypeError, match=r"for others use memenpsf\.wait"):
            readers.add(wrong)
    with pytest.raises(TypeError, match="clients=True is for listeners"):
        readers.add(three[0][1], clients=True)
    of_trio = memenpsf.trio.Interface(here, "<Q")
    with pytest.raises(TypeError, match="belongs to an event loop"):
        readers.add(of_trio)
    trio.run(of_trio.aclose)
    there.close()
    assert len(readers) == 3


def test_a_set_of_what_is_no_member_leaves_nothing_behind():
    with pytest.raises(TypeError):
        ReceiverSet([3])


def test_messages_of_any_length_with_descriptors_come_too(connect):
    here, there = connect(bytes, capacity=4096, accept=memenpsf.Accept(fds=1))
    with ReceiverSet([here]) as readers:
        there.xmit(b"text", fds=[0])
        there.xmit(bytes(100_000))
        assert [record for _, record in drained(readers)] == [b"text", bytes(100_000)]


# -- listeners --------------------------------------------------------------------------------


@pytest.fixture
def listener(tmp_path):
    with memenpsf.listen(tmp_path / "here", "<Q") as listener:
        yield listener


def client(listener, *records):
    with memenpsf.connect(listener.address, "<Q") as interface:
        interface.xmit_many(records)


def test_clients_join_by_themselves_and_are_closed_at_their_end(listener, in_thread):
    with ReceiverSet() as readers:
        readers.add(listener, clients=True)
        clients = [in_thread(client, listener, (n,), (n + 1,)) for n in range(3)]
        joined, got, ended = [], [], []
        while len(ended) < 3:
            source, record = readers.recv()
            if source is listener:
                assert record in readers
                joined.append(record)
            elif isinstance(record, memenpsf.EndOfStream):
                ended.append(source)
                assert source.closed
            else:
                got.append(record)
        assert sorted(got) == [(0,), (1,), (1,), (2,), (2,), (3,)]
        assert {*joined} == {*ended}
        assert len(readers) == 1
        for each in clients:
            each.result()


def test_clients_belong_to_the_caller_otherwise(listener, in_thread):
    with ReceiverSet([listener]) as readers:
        connecting = in_thread(client, listener, (1,))
        source, interface = readers.recv()
        assert source is listener
        assert interface not in readers
        with interface:
            assert interface.recv() == (1,)
        connecting.result()
        connecting = in_thread(client, listener, (1,))
        ((source, (interface,)),) = readers.recv_vectored()
        with interface:
            assert interface.recv() == (1,)
        connecting.result()


def test_a_client_that_does_not_get_in_is_logged_and_ends_nothing(listener, in_thread, caplog):
    with ReceiverSet([listener]) as readers:
        receiving = in_thread(readers.recv)
        until(lambda: asleep(readers))
        with pytest.raises(memenpsf.RecordRefused):
            memenpsf.connect(listener.address, "<d")
        connecting = in_thread(client, listener)
        receiving.result()[1].close()
        connecting.result()
        assert listener.refused == 1
        assert "RecordRefused" in caplog.text or listener._pending.log


def test_a_client_that_says_nothing_in_time_is_logged(tmp_path):
    with memenpsf.listen(tmp_path / "x", "<Q", timeout=0.01) as listener:
        with ReceiverSet([listener]) as readers, socket.socket(socket.AF_UNIX) as silent:
            silent.connect(listener.address)
            assert readers.recv(timeout=0.1) is None
            assert listener.refused == 1


def test_closing_a_listener_is_returned(listener, in_thread):
    with ReceiverSet([listener]) as readers:
        receiving = in_thread(readers.recv)
        until(lambda: asleep(readers))
        listener.close()
        source, error = receiving.result()
        assert source is listener
        assert isinstance(error, memenpsf.Closed)
        assert len(readers) == 0
        assert not listener._pending.watchers


@pytest.mark.parametrize(
    ("error", "seen"), [(None, memenpsf.EndOfStream), (KeyError, memenpsf.Aborted)]
)
def test_the_clients_that_joined_end_with_the_set(listener, in_thread, error, seen):
    def talk():
        with memenpsf.connect(listener.address, "<Q") as interface:
            interface.xmit((1,))
            with pytest.raises(seen):
                interface.recv()

    talking = None
    with contextlib.suppress(KeyError), ReceiverSet() as readers:
        readers.add(listener, clients=True)
        talking = in_thread(talk)
        _, interface = readers.recv()
        assert readers.recv() == (interface, (1,))
        if error is not None:
            raise error
    assert interface.closed
    talking.result()


# -- its end ----------------------------------------------------------------------------------


def test_a_loop_goes_on_until_the_set_is_closed(three, readers):
    (here, there), *_ = three
    there.xmit_many([(n,) for n in range(50)])
    seen = []
    for source, record in readers:
        assert source is here
        seen.append(record)
        if len(seen) == 40:
            readers.close()
    assert seen == [(n,) for n in range(40)]
    assert here.recv() == (40,)
    assert not here.closed


@pytest.mark.parametrize("verb", ["recv", "recv_vectored"])
def test_closing_wakes_those_who_wait(three, readers, in_thread, verb):
    receiving = [in_thread(getattr(readers, verb)) for _ in range(3)]
    until(lambda: len(readers._gathering._waiting) == 3)
    readers.close()
    for each in receiving:
        with pytest.raises(memenpsf.Closed):
            each.result()
    assert readers.closed
    assert len(readers) == 0
    readers.close()
    for call in (readers.recv, readers.recv_vectored, lambda: readers.add(three[0][0])):
        with pytest.raises(memenpsf.Closed, match="closed the set"):
            call()
    assert repr(readers) == "<ReceiverSet: closed>"
    assert not any(here._endpoint.waiters.watches for here, _ in three)


def test_a_forgotten_set_warns_and_is_closed(three):
    readers = ReceiverSet([three[0][0]])
    with pytest.warns(ResourceWarning, match="unclosed <ReceiverSet: 1 members>"):
        del readers


def test_a_forked_child_may_only_close_it(three, readers):
    (here, there), *_ = three
    assert readers.recv(timeout=0) is None
    child = os.fork()
    if child == 0:
        status = 1
        with contextlib.suppress(BaseException):
            for call in (readers.recv, readers.recv_vectored, lambda: readers.add(there)):
                try:
                    call()
                except memenpsf.ForkedUse:
                    continue
                os._exit(2)
            readers.close()
            status = 0
        os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    there.xmit((1,))
    assert readers.recv() == (here, (1,))


@pytest.mark.parametrize("wrong", [-1, "1", True])
def test_arguments_are_checked(readers, wrong):
    with pytest.raises((TypeError, ValueError)):
        readers.recv(wrong)
    with pytest.raises((TypeError, ValueError)):
        readers.recv_vectored(wrong)
    with pytest.raises(ValueError, match="at least 1 record"):
        readers.recv_vectored(0)


# -- threads, signals, and what should not happen ---------------------------------------------


def test_several_threads_receive_and_nothing_is_lost(three, readers, in_thread):
    count = 2000
    got = []

    def receive():
        with contextlib.suppress(memenpsf.Closed):
            while True:
                got.append(readers.recv()[1])

    receiving = [in_thread(receive) for _ in range(3)]
    sending = [in_thread(there.xmit_many, [(n,) for n in range(count)]) for _, there in three]
    for each in sending:
        each.result()
    until(lambda: len(got) == 3 * count)
    readers.close()
    for each in receiving:
        each.result()
    assert sorted(got) == sorted([(n,) for n in range(count)] * 3)


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("verb", ["recv", "recv_vectored", "iteration"])
def test_an_exception_at_any_place_neither_loses_nor_doubles(verb, held):
    made, saw = [], []

    def prepare():
        made[:] = [memenpsf.pair("<Q", capacity=8) for _ in range(2)]
        made.append(ReceiverSet(here for here, _ in made))
        if held:
            assert made[2].recv(timeout=0) is None
        saw.clear()
        for n, (_, there) in enumerate(made[:2]):
            there.xmit_many([(n,), (n + 10,)])
        made[1][1].close()

    def call():
        if verb == "recv":
            return [made[2].recv(timeout=0)]
        if verb == "recv_vectored":
            batches = made[2].recv_vectored(timeout=0)
            return [(source, record) for source, records in batches for record in records]
        for got in made[2]:
            saw.append(got)
            if len(saw) == 3:
                break
        return []

    def check(result):
        pairs, readers = made[:2], made[2]
        got = [*saw, *(result or []), *drained(readers)]
        for n, (here, _) in enumerate(pairs):
            records = [record for source, record in got if source is here]
            assert records[:2] == [(n,), (n + 10,)]
            assert [type(each) for each in records[2:]] == [memenpsf.EndOfStream] * n
        assert len(readers) == 1
        pairs[0][1].xmit((5,))
        assert readers.recv() == (pairs[0][0], (5,))
        readers.close()
        for pair in pairs:
            for side in pair:
                side.close()

    assert at_every_place(prepare, call, interrupt, check) > 5


def test_an_exception_at_any_place_of_a_wait_leaves_nothing_behind():
    made = []

    def prepare():
        made[:] = memenpsf.pair("<Q", capacity=8)
        made.append(ReceiverSet([made[0]]))

    def check(_):
        one, other, readers = made
        assert not asleep(readers)
        other.xmit((1,))
        assert readers.recv() == (one, (1,))
        readers.close()
        assert not one._endpoint.waiters.watches
        for side in (one, other):
            side.close()

    assert at_every_place(prepare, lambda: made[2].recv(0.0005), interrupt, check) > 10


def test_a_peer_that_rings_for_nothing_is_left_alone(three, readers, monkeypatch):
    (here, there), (other, to_other), _ = three
    monkeypatch.setattr(type(here._endpoint.alarms), "BACK_OFF", 0.001)
    looks = []
    real = _sources.ConnectionSource.look

    def look(source):
        found = real(source)
        if source.given is here:
            looks.append(source)
            os.write(there._endpoint.fileno(), b"\x01\x01")
        return found

    monkeypatch.setattr(_sources.ConnectionSource, "look", look)
    assert readers.recv(timeout=0.2) is None
    assert len(looks) < 300
    assert here.statistics().false_alarms > 0
    to_other.xmit((1,))
    assert readers.recv() == (other, (1,))


@pytest.mark.deadline(10)
def test_a_record_without_a_doorbell_is_found_all_the_same(connect, monkeypatch):
    monkeypatch.setattr(_gathering, "RESCUE", 0.001)
    here, there = connect()
    with ReceiverSet([here]) as readers:
        assert readers.recv(timeout=0) is None
        here._endpoint.receiver.disarm()  # as if the kernel had had no memory for a doorbell
        there.xmit((7,))
        assert readers.recv() == (here, (7,))
        assert here.statistics().rescues == 1


def test_a_number_that_is_used_again_confuses_nobody(connect):
    with ReceiverSet() as readers:
        for n in range(5):
            here, there = memenpsf.pair("<Q", capacity=4)
            readers.add(here)
            assert readers.recv(timeout=0) is None
            there.xmit((n,))
            assert readers.recv() == (here, (n,))
            assert readers.recv(timeout=0) is None
            here.close()  # the kernel gives its number to the next
            assert isinstance(readers.recv()[1], memenpsf.Closed)
            there.close()


def test_without_descriptors_there_is_no_set(monkeypatch):
    def none_left(*_):
        raise OSError(24, "Too many open files")

    for module, name in ((select, "epoll"), (os, "eventfd")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, none_left)
            with pytest.raises(OSError, match="Too many open files"):
                ReceiverSet()


def test_it_sleeps(readers):
    begin = time.process_time()
    assert readers.recv(timeout=0.3) is None
    assert time.process_time() - begin < 0.1
