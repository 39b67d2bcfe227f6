"""ReceiverSet: many connections and listeners, and one loop that receives from all of them."""

from __future__ import annotations

import collections
import contextlib
import math
import os
import select
import socket
import time
import warnings

import numpy as np
import pytest
import trio

import ipcqueue
import memenpsf
import memenpsf.trio
from ipcqueue.lowlevel import NOW, Event, Watch
from memenpsf import ReceiverSet, _gathering, _sources
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


def test_control_messages_wake_nobody_for_good(three, readers, in_thread):
    here, there = three[0]
    receiving = in_thread(readers.recv)
    until(lambda: asleep(readers))
    there.send_ctrl_msg(b"\x80\x01")
    there.xmit((1,))
    assert receiving.result() == (here, (1,))
    assert here.recv_ctrl_msg() == b"\x80\x01"


# -- fairness ---------------------------------------------------------------------------------


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


@pytest.mark.deadline(10)
def test_a_death_is_returned_though_others_hold_its_socket_and_its_last_bell_rang():
    """Its exit and the bell are told at once, and reading the bell is no look at the exit."""
    here, there = socket.socketpair()
    go, went = os.pipe()
    child = os.fork()
    if child == 0:
        here.close()
        interface = memenpsf.Interface(there, "<Q")
        os.read(go, 1)
        interface.xmit((1,))
        os._exit(0)
    with memenpsf.Interface(here, "<Q") as one, ReceiverSet([one]) as readers, there:
        assert readers.recv(timeout=0) is None
        os.write(went, b"x")
        os.waitpid(child, 0)
        assert readers.recv() == (one, (1,))
        assert isinstance(readers.recv()[1], memenpsf.PeerDied)
    os.close(go)
    os.close(went)


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


def test_closing_an_end_wakes_those_who_watch_it(connect):
    here, _ = connect()
    told = []
    watch = Watch(lambda: told.append(here._endpoint.closed))
    assert here._endpoint.watch(watch, [Event.RECORDS]) == set()
    here.close()
    assert told == [True]


def test_an_end_that_two_threads_find_at_once_is_returned_once(three, readers):
    (here, there), *_ = three
    gathering = readers._gathering
    member, real, found = gathering.members[id(here)], gathering.ours, []

    def ours(error, given):
        if not found:  # as another thread
            found.append(error)
            gathering.note(member, error)
        return real(error, given)

    gathering.ours = ours
    there.close()
    assert [type(error) for _, error in drained(readers)] == [memenpsf.EndOfStream]


# -- who is in it -----------------------------------------------------------------------------


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


# -- listeners --------------------------------------------------------------------------------


@pytest.fixture
def listener(tmp_path):
    with memenpsf.listen(tmp_path / "here", "<Q") as listener:
        yield listener


def client(listener, *records):
    with memenpsf.connect(listener.address, "<Q") as interface:
        interface.xmit_many(records)


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


# -- its end ----------------------------------------------------------------------------------


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


def test_a_forked_child_may_forget_it(readers):
    child = os.fork()
    if child == 0:
        status = 1
        with contextlib.suppress(BaseException), warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            readers.__del__()
            status = 0 if readers.closed and not told else 2
        os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


def test_who_takes_one_of_many_wakes_another(connect):
    """The epoll has told it alone, and it may not come back for long."""
    here, there = connect()
    with ReceiverSet([here]) as readers:
        gathering = readers._gathering
        assert gathering.attempt() is None
        waiting = gathering.round(math.inf)
        ((fd, _),) = next(waiting).interests
        there.xmit_many([(1,), (2,)])
        assert gathering.attempt() == (here, (1,))
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        assert poll.poll(0)
        waiting.close()


def polled(interests):
    """Whether who waits for these would be woken."""
    poll = select.poll()
    for fd, events in interests:
        poll.register(fd, events)
    return bool(poll.poll(0))


def test_who_takes_a_batch_wakes_another(connect):
    """What is left is for the others, and so is what comes next: it may not come back for long."""
    here, there = connect()
    with ReceiverSet([here]) as readers:
        gathering = readers._gathering
        assert gathering.attempt() is None
        waiting = gathering.round(math.inf)
        interests = next(waiting).interests
        there.xmit_many([(1,), (2,)])
        assert readers.recv_vectored(1) == [(here, [(1,)])]
        assert polled(interests)
        waiting.close()


def test_nobody_sleeps_who_was_about_to_as_another_left_records(connect):
    here, there = connect()
    with ReceiverSet([here]) as readers:
        gathering = readers._gathering
        assert gathering.attempt() is None
        real, got = gathering._clock, []

        def clock():
            if not got:  # as another thread, or a signal handler
                there.xmit_many([(1,), (2,)])
                got.append(gathering.attempt())
            return real()

        gathering._clock = clock
        waiting = gathering.round(math.inf)
        wait = next(waiting)
        assert got == [(here, (1,))]
        assert wait is NOW or polled(wait.interests)
        waiting.close()


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


@pytest.mark.parametrize("verb", ["recv", "recv_vectored"])
def test_who_leaves_by_an_exception_wakes_another(verb):
    made = []

    def prepare():
        made[:] = [memenpsf.pair("<Q", capacity=8) for _ in range(2)]
        made.append(ReceiverSet(here for here, _ in made))
        assert made[2].recv(timeout=0) is None
        made.append(made[2]._gathering.round(math.inf))
        made.append(next(made[3]).interests)
        for _, there in made[:2]:
            there.xmit((1,))

    def check(result):
        *pairs, readers, waiting, interests = made
        assert polled(interests) or (verb == "recv_vectored" and len(result) == 2)
        waiting.close()
        readers.close()
        for pair in pairs:
            for side in pair:
                side.close()

    call = lambda: getattr(made[2], verb)(timeout=0)  # noqa: E731
    assert at_every_place(prepare, call, interrupt, check) > 10


@pytest.mark.parametrize("verb", ["add", "remove", "close"])
def test_an_exception_at_any_place_leaves_it_done_or_undone(verb):
    made = []

    def prepare():
        made[:] = [memenpsf.pair("<Q", capacity=8) for _ in range(2)]
        made.append(ReceiverSet(here for here, _ in made))
        assert made[2].recv(timeout=0) is None
        if verb == "add":
            made[2].remove(made[0][0])
        made[0][1].xmit((1,))

    def call():
        readers, here = made[2], made[0][0]
        readers.close() if verb == "close" else getattr(readers, verb)(here)

    def check(_):
        (here, there), (other, to_other), readers = made
        if not readers.closed:
            if here in readers:
                assert readers.recv(timeout=0) == (here, (1,))
                readers.remove(here)
            assert not here._endpoint.waiters.watches
            to_other.xmit((2,))
            assert readers.recv() == (other, (2,))
            readers.close()
        for side in (here, other):
            assert not side._endpoint.waiters.watches
        for side in (here, there, other, to_other):
            side.close()

    assert at_every_place(prepare, call, interrupt, check) > 10


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
def test_a_record_without_a_doorbell_is_found_all_the_same(three, readers, monkeypatch):
    monkeypatch.setattr(_gathering, "RESCUE", 0.001)
    monkeypatch.setattr(_gathering, "RESCUED", 1)  # each in its turn
    readers._gathering._rescue = 0
    for here, there in three * 2:
        assert readers.recv(timeout=0) is None
        here._endpoint.receiver.disarm()  # as if the kernel had had no memory for a doorbell
        there.xmit((7,))
        assert readers.recv() == (here, (7,))
    assert [here.statistics().rescues for here, _ in three] == [2] * 3


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


def test_without_descriptors_a_listener_rests(listener, in_thread, monkeypatch):
    monkeypatch.setattr(_gathering, "REST", 0.001)
    made = []

    def none_left(*_):
        made.append(1)
        raise OSError(24, "Too many open files")

    with ReceiverSet([listener]) as readers:
        with monkeypatch.context() as patch:
            patch.setattr(select, "epoll", none_left)
            assert readers.recv(timeout=0) is None
            assert readers.recv_vectored(timeout=0) == []
            assert readers.recv(timeout=0.02) is None
            assert len(made) < 25
        receiving = in_thread(readers.recv)
        client(listener, (1,))
        receiving.result()[1].close()


def test_a_death_is_polled_for_also_after_backing_off(three, readers, monkeypatch):
    here, _ = three[0]
    endpoint = here._endpoint
    with monkeypatch.context() as patch:
        patch.setattr(endpoint, "should_back_off", lambda: True)
        patch.setattr(endpoint, "back_off_length", lambda: 0.0)
        assert readers.recv(timeout=0) is None
    assert readers.recv(timeout=0.001) is None
    assert endpoint.peer_pidfd() in readers._gathering._by_fd


def test_it_sleeps(readers):
    begin = time.process_time()
    assert readers.recv(timeout=0.3) is None
    assert time.process_time() - begin < 0.1
