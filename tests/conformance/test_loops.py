"""The run loops: one set of promises, kept by the loop for threads and by the one for Trio."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import math
import os
import queue
import random
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import outcome
import pytest
import trio

import memenpsf
import memenpsf.asyncio
import memenpsf.trio
from memenpsf import Ended, Interface

CAPACITY = 4


@pytest.fixture
def pool():
    with ThreadPoolExecutor(8) as executor:
        yield executor


def until(condition):
    while not condition():
        time.sleep(0.001)


def numbers(*bounds):
    return [(n,) for n in range(*bounds)]


class ThreadLoop:
    """memenpsf.run in a thread."""

    def __init__(
        self, pool, stream, items=(), *,
        source=None, sink=None, typ=0, record="<Q", capacity=CAPACITY, **options,
    ):  # fmt: skip
        self._source, self._sink = source or queue.Queue(), sink or queue.Queue()
        for item in items:
            self._source.put(item)
        self.result = pool.submit(
            memenpsf.run,
            "loop", capacity, typ, stream, self._source, self._sink, record, **options,
        ).result  # fmt: skip

    def feed(self, item):
        self._source.put(item)

    @property
    def delivered(self):
        return list(self._sink.queue)

    @property
    def left(self):
        return list(self._source.queue)


class TrioLoop:
    """memenpsf.trio.run in a thread with a Trio of its own."""

    def __init__(
        self, pool, stream, items=(), *,
        source=None, sink=None, typ=0, record="<Q", capacity=CAPACITY, **options,
    ):  # fmt: skip
        self.delivered, self.left = [], []
        self._started = threading.Event()

        async def main():
            self._token = trio.lowlevel.current_trio_token()
            self._feeding, fed = trio.open_memory_channel(math.inf)
            sending, receiving = trio.open_memory_channel(math.inf)
            for item in items:
                self._feeding.send_nowait(item)
            self._started.set()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(collect, receiving)
                async with sending:
                    result = await outcome.acapture(
                        memenpsf.trio.run,
                        "loop", capacity, typ, stream, source or fed, sink or sending, record,
                        **options,
                    )  # fmt: skip
                with contextlib.suppress(trio.WouldBlock):
                    while True:
                        self.left.append(fed.receive_nowait())
            return result.unwrap()  # outside the nursery, which would put it into a group

        async def collect(receiving):
            async for item in receiving:
                self.delivered.append(item)

        self._future = pool.submit(trio.run, main)
        self._started.wait()

    def feed(self, item):
        try:
            self._token.run_sync_soon(self._feeding.send_nowait, item)
        except trio.RunFinishedError:  # as the other side has ended it
            self.left.append(item)

    def result(self):
        return self._future.result()


class InThread:
    """A source or sink for threads, whose calls are awaited; put() may wait."""

    def __init__(self, it):
        self._it = it

    async def get(self):
        await asyncio.sleep(0)
        return self._it.get()

    async def put(self, item):
        await asyncio.to_thread(self._it.put, item)


class AsyncioLoop:
    """memenpsf.asyncio.run in a thread with a loop of its own."""

    def __init__(
        self, pool, stream, items=(), *,
        source=None, sink=None, typ=0, record="<Q", capacity=CAPACITY, **options,
    ):  # fmt: skip
        started = threading.Event()

        async def main():
            self._loop = asyncio.get_running_loop()
            self._source, self._arrived = asyncio.Queue(), asyncio.Queue()
            for item in items:
                self._source.put_nowait(item)
            started.set()
            return await memenpsf.asyncio.run(
                "loop", capacity, typ, stream,
                InThread(source) if source else self._source,
                InThread(sink) if sink else self._arrived, record,
                **options,
            )  # fmt: skip

        self._future = pool.submit(asyncio.run, main())
        started.wait()

    def feed(self, item):
        try:
            self._loop.call_soon_threadsafe(self._source.put_nowait, item)
        except RuntimeError:  # it is closed, as the other side has ended it
            self._source.put_nowait(item)

    def result(self):
        return self._future.result()

    @property
    def delivered(self):
        return list(self._arrived._queue)

    @property
    def left(self):
        return list(self._source._queue)


DOORS = {"threads": ThreadLoop, "trio": TrioLoop, "asyncio": AsyncioLoop}
doors = pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)


@contextlib.contextmanager
def loop_and_peer(pool, door, items=(), **options):
    here, there = socket.socketpair()
    loop = door(pool, here, items, **options)
    with Interface(there, "<Q", capacity=CAPACITY, role="server") as peer:
        yield loop, peer


def taken_by(peer):
    """All that the peer is given until the end of the stream."""
    return list(peer)


def taken_until_aborted(peer):
    """All that the peer is given before the other side gives up."""
    got = []
    with pytest.raises(memenpsf.Aborted):
        while True:
            got.append(peer.recv())
    return got


# -- what goes in comes out -----------------------------------------------------------------------


@doors
def test_all_that_goes_in_comes_out_on_the_other_side_in_order(pool, door):
    count = 3000
    with loop_and_peer(pool, door, numbers(count)) as (loop, peer):
        sending = pool.submit(peer.xmit_many, numbers(count))
        assert [peer.recv() for _ in range(count)] == numbers(count)
        assert sending.result() == count
        until(lambda: len(loop.delivered) == count)
        loop.feed(None)
        ended = loop.result()
        assert loop.delivered == numbers(count)
        assert isinstance(ended, Ended)
        assert isinstance(ended.cause, memenpsf.Closed)
        assert ended.unsent == loop.left == []
        assert taken_by(peer) == []


@pytest.mark.parametrize("one", DOORS.values(), ids=DOORS)
@pytest.mark.parametrize("other", DOORS.values(), ids=DOORS)
def test_two_loops_meet_and_the_end_of_one_is_the_end_of_the_other(pool, one, other):
    count = 1000
    here, there = socket.socketpair()
    a = one(pool, here, numbers(count), typ=0)
    b = other(pool, there, numbers(count), typ=1)
    until(lambda: len(a.delivered) == len(b.delivered) == count)
    a.feed((count,))
    a.feed(None)
    assert isinstance(a.result().cause, memenpsf.Closed)
    assert isinstance(b.result().cause, memenpsf.EndOfStream)
    assert a.delivered == numbers(count)
    assert b.delivered == numbers(count + 1)
    assert a.left == b.left == a.result().unsent == b.result().unsent == []


@pytest.mark.parametrize("one", DOORS.values(), ids=DOORS)
@pytest.mark.parametrize("other", DOORS.values(), ids=DOORS)
def test_when_one_ends_in_the_middle_every_number_of_the_other_is_accounted_for(pool, one, other):
    count = 20_000
    here, there = socket.socketpair()
    a = one(pool, here, numbers(500))
    b = other(pool, there, numbers(count))
    a.feed(None)
    a_ended, b_ended = a.result(), b.result()
    assert isinstance(a_ended.cause, memenpsf.Closed)
    assert isinstance(b_ended.cause, memenpsf.EndOfStream)
    assert b.delivered == numbers(500)  # all that was put in before None
    assert a_ended.unsent == a.left == []
    taken = len(a.delivered)
    assert a.delivered == numbers(taken)
    kept = b_ended.unsent + b.left
    assert len(b_ended.unsent) <= 1
    published = count - len(kept)
    assert kept == numbers(published, count)
    assert taken <= published <= taken + CAPACITY


@doors
def test_messages_of_all_sizes_move_both_ways(pool, door):
    count, chance = 200, random.Random(3)
    sent = [
        [chance.randbytes(chance.choice([0, 10, 1000, 100_000])) for _ in range(count)]
        for _ in range(2)
    ]
    loops = [
        door(pool, stream, items, typ=typ, record=bytes, capacity=4096)
        for typ, (stream, items) in enumerate(zip(socket.socketpair(), sent, strict=True))
    ]
    until(lambda: all(len(loop.delivered) == count for loop in loops))
    for loop in loops:
        loop.feed(None)
    assert [loop.result().unsent for loop in loops] == [[], []]
    assert [loop.delivered for loop in loops] == sent[::-1]


@doors
@pytest.mark.parametrize("inline", [4096, 1024, 0])
def test_a_loop_with_messages_waits_while_the_ring_is_full(pool, door, inline):
    sent = [b"%d " % n * 400 for n in range(60)]
    here, there = socket.socketpair()
    loop = door(pool, here, [*sent, None], record=bytes, capacity=4096, inline=inline)
    with Interface(there, bytes, role="server") as peer:
        assert taken_by(peer) == sent
        assert loop.result().unsent == []


# -- how it ends ----------------------------------------------------------------------------------


@doors
def test_the_end_of_the_peer_ends_the_loop_after_everything_is_delivered(pool, door):
    with loop_and_peer(pool, door) as (loop, peer):
        peer.xmit_many(numbers(100))
        peer.close()
        ended = loop.result()
    assert isinstance(ended.cause, memenpsf.EndOfStream)
    assert ended.unsent == []
    assert loop.delivered == numbers(100)


@doors
def test_none_ends_in_good_order_on_the_other_side(pool, door):
    items = [*numbers(10), None, (10,)]
    with loop_and_peer(pool, door, items) as (loop, peer):
        assert taken_by(peer) == numbers(10)
        ended = loop.result()
        assert isinstance(ended.cause, memenpsf.Closed)
        assert ended.unsent == []
        assert loop.left == [(10,)]
        with pytest.raises(memenpsf.ReceiverGone):
            peer.xmit((1,))


@doors
def test_what_has_arrived_before_none_is_delivered(pool, door):
    with loop_and_peer(pool, door) as (loop, peer):
        peer.xmit_many(numbers(20))
        loop.feed(None)
        loop.result()
        assert loop.delivered == numbers(20)


@doors
def test_a_peer_that_never_stops_sending_cannot_keep_a_loop_from_ending(pool, door):
    too_many = 100_000
    got = []

    class Sink:
        def put(self, item):
            got.append(item)
            if len(got) == 50:
                loop.feed(None)
            if len(got) > too_many:
                raise AssertionError("it went on and on")
            with contextlib.suppress(memenpsf.QueueError):
                peer.xmit((len(got),), timeout=0)

        async def send(self, item):
            await trio.lowlevel.checkpoint()
            self.put(item)

    with loop_and_peer(pool, door, sink=Sink()) as (loop, peer):
        peer.xmit((0,))
        ended = loop.result()
        assert isinstance(ended.cause, memenpsf.Closed)
        assert got == numbers(len(got))


PEER = """
import memenpsf, socket, sys
sock = socket.socket(fileno=int(sys.argv[1]))
with memenpsf.Interface(sock, "<Q", capacity=512) as interface:
    interface.xmit_many([(n,) for n in range(int(sys.argv[2]))])
    print("sent", flush=True)
    sys.stdin.read()
"""


@doors
@pytest.mark.parametrize("count", [0, 300])
def test_a_killed_peer_ends_the_loop_after_everything_is_delivered(pool, door, program, count):
    here, there = socket.socketpair()
    with there:
        peer = program(PEER, there.fileno(), count, pass_fds=[there.fileno()])
    loop = door(pool, here, numbers(100))  # more than has room: the loop is blocked in sending
    assert peer.stdout.readline() == "sent\n"
    until(lambda: len(loop.delivered) == count)
    peer.send_signal(signal.SIGKILL)
    ended = loop.result()
    assert type(ended.cause).__name__ == "PeerDied"
    assert isinstance(ended.cause, memenpsf.PeerDied)
    assert loop.delivered == numbers(count)
    kept = ended.unsent + loop.left
    assert len(ended.unsent) <= 1
    assert kept == numbers(100 - len(kept), 100)
    assert len(kept) >= 100 - CAPACITY


@doors
def test_what_was_taken_from_the_source_and_not_published_is_reported(pool, door):
    with loop_and_peer(pool, door, numbers(100)) as (loop, peer):
        assert peer.recv() == (0,)
        until(lambda: peer._endpoint.receiver.indices() == (1 + CAPACITY, 1))
        has_taken_what_it_will(loop, 1 + CAPACITY)
        peer.close()
        ended = loop.result()
    assert isinstance(ended.cause, memenpsf.EndOfStream)
    assert len(ended.unsent) <= 1
    assert ended.unsent + loop.left == numbers(1 + CAPACITY, 100)


def has_taken_what_it_will(loop, published):
    """Wait until the loop has taken what there is room for, and no more."""
    if not isinstance(loop, TrioLoop):
        until(lambda: loop.left == numbers(published, 100))
    else:
        until(lambda: loop._feeding.statistics().current_buffer_used <= 100 - published)


@doors
def test_a_full_ring_is_waited_for_and_drops_nothing(pool, door):
    with loop_and_peer(pool, door, [*numbers(100), None]) as (loop, peer):
        until(lambda: peer._endpoint.receiver.indices() == (CAPACITY, 0))
        assert taken_by(peer) == numbers(100)
        assert loop.result().unsent == loop.left == []


@doors
def test_what_was_taken_just_as_the_peer_ended_is_reported(pool, door):
    class Source:
        def get(self, block=True, timeout=None):
            until(lambda: peers)
            peers[0].close()
            return (1,)

        async def receive(self):
            await trio.lowlevel.checkpoint()
            return self.get()

        def __aiter__(self):
            return self

        __anext__ = receive

    peers = []
    with loop_and_peer(pool, door, source=Source()) as (loop, peer):
        peers.append(peer)
        ended = loop.result()
    assert isinstance(ended.cause, memenpsf.EndOfStream)
    assert ended.unsent == [(1,)]


@doors
def test_what_has_arrived_is_delivered_after_none_however_slow_the_sink(pool, door):
    got, slow = [], threading.Event()

    class Sink:
        def put(self, item):
            slow.wait()
            got.append(item)

        async def send(self, item):
            await trio.to_thread.run_sync(slow.wait)
            got.append(item)

    with loop_and_peer(pool, door, sink=Sink()) as (loop, peer):
        peer.xmit((0,))
        until(lambda: peer.indices() == (1, 1))  # it is on its way into the sink
        peer.xmit_many(numbers(1, 1 + CAPACITY))
        loop.feed(None)
        assert taken_by(peer) == []
        slow.set()
        assert isinstance(loop.result().cause, memenpsf.Closed)
    assert got == numbers(1 + CAPACITY)


# -- what the peer does is not this side's failure, and loses nothing --------------------------------


@contextlib.contextmanager
def messages_and_peer(pool, door, items=(), record=bytes, **limits):
    here, there = socket.socketpair()
    loop = door(pool, here, items, record=record)
    with Interface(there, bytes, **limits) as peer:
        yield loop, peer


@doors
def test_a_message_that_the_peer_does_not_take_ends_the_loop_and_is_handed_back(pool, door):
    many = [b"short"] * 1000  # more than the ring holds
    items = [*many, bytes(20), b"later"]
    with messages_and_peer(pool, door, items, accept=memenpsf.Accept(message=10)) as (loop, peer):
        peer.xmit(b"arrived")
        assert taken_by(peer) == many
        ended = loop.result()
    assert isinstance(ended.cause, memenpsf.TooLarge)
    assert ended.cause.interface is not None
    assert ended.unsent == [bytes(20)]
    assert loop.left == [b"later"]
    assert loop.delivered == [b"arrived"]


@doors
@pytest.mark.parametrize("before", [0, 3])
def test_a_message_that_cannot_be_decoded_ends_the_loop_after_those_before_it(pool, door, before):
    spec = memenpsf.Encoded(lambda value: json.dumps(value).encode(), json.loads)
    with messages_and_peer(pool, door, ["x" * 1000] * 100, spec) as (loop, peer):
        peer.xmit_many([b'"fine"'] * before + [b"{no json"])
        ended = loop.result()
        assert isinstance(ended.cause, memenpsf.DecodeFailed)
        assert loop.delivered == ["fine"] * before
        sent = taken_by(peer)
    assert len(sent) + len(ended.unsent) + len(loop.left) == 100


@dataclasses.dataclass
class Picky:
    number: memenpsf.u8

    def __post_init__(self):
        if self.number > 3:
            raise ValueError("above three")


@doors
def test_so_does_a_record_that_its_class_refuses(pool, door):
    here, there = socket.socketpair()
    loop = door(pool, here, [Picky(1)] * 10, record=Picky)
    with Interface(there, "<B") as peer:
        peer.xmit_many([(1,), (2,), (9,)])
        ended = loop.result()
        assert "above three" in str(ended.cause)
        assert loop.delivered == [Picky(1), Picky(2)]
        assert len(taken_by(peer)) + len(ended.unsent) + len(loop.left) == 10


@doors
@pytest.mark.parametrize("verb", ["recv_vectored", "await_space"])
@pytest.mark.parametrize("error", [OSError(24, "short"), MemoryError()])
def test_a_shortage_ends_the_loop_and_hands_back_what_it_took(pool, door, monkeypatch, verb, error):
    def fails(*_, **__):
        raise error

    name = {"recv_vectored": "try_pop_many", "await_space": "has_space"}[verb]
    with loop_and_peer(pool, door, numbers(100)) as (loop, peer):
        assert peer.recv() == (0,)
        until(lambda: peer._endpoint.receiver.indices() == (1 + CAPACITY, 1))
        monkeypatch.setattr(type(peer._endpoint), name, fails)
        monkeypatch.setattr(
            "ipcqueue._ring.slot_receiver.SlotReceiver.pop_ready", lambda *_, **__: None
        )
        peer.xmit((7,))  # wakes it
        sent = [(0,), *peer]
        ended = loop.result()
    assert ended.cause is error
    assert sent + ended.unsent + loop.left == numbers(100)


@doors
def test_a_peer_that_breaks_the_protocol_is_raised_with_what_was_not_sent(pool, door):
    with loop_and_peer(pool, door, numbers(100)) as (loop, peer):
        assert peer.recv() == (0,)
        until(lambda: peer._endpoint.receiver.indices() == (1 + CAPACITY, 1))
        os.write(peer._endpoint.fileno(), b"\x4d\x00")
        with pytest.raises(memenpsf.CorruptPeer) as caught:
            loop.result()
    assert caught.value.unsent + loop.left == numbers(1 + CAPACITY, 100)


@doors
def test_what_does_not_fit_is_handed_back_by_what_is_raised(pool, door):
    with loop_and_peer(pool, door, [(1,), "bad", (3,)]) as (loop, peer):
        with pytest.raises(memenpsf.BadRecord) as caught:
            loop.result()
        assert taken_until_aborted(peer) == [(1,)]
    assert caught.value.unsent + loop.left == ["bad", (3,)]


@doors
def test_the_end_of_another_connection_is_no_end_of_this_one(pool, door, monkeypatch):
    """A source that takes from a connection of its own may meet the end of that one."""
    upstream, source = memenpsf.pair("<Q")
    source.close()

    class Source(queue.Queue):
        def get(self, block=True, timeout=None):
            return upstream.recv()

        async def receive(self):
            return upstream.recv()

        def __aiter__(self):
            return self

        __anext__ = receive

    here, there = socket.socketpair()
    with upstream:
        if door is ThreadLoop:
            loop = pool.submit(memenpsf.run, "", 4, 0, here, Source(), queue.Queue(), "<Q")
        else:
            _, sink = trio.open_memory_channel(0)[::-1]
            loop = pool.submit(trio.run, memenpsf.trio.run, "", 4, 0, here, Source(), sink, "<Q")
        with Interface(there, "<Q"), pytest.raises(memenpsf.EndOfStream) as caught:
            loop.result()
        assert memenpsf.interface_of(caught.value) is upstream


# -- the end of a source that is not the end of the connection ----------------------------------------


@doors
@pytest.mark.parametrize("other_end", ["finish", "eof"])
def test_a_loop_whose_source_ends_by_eof_delivers_all_that_the_peer_sends(pool, door, other_end):
    here, there = socket.socketpair()
    one = door(pool, here, [*numbers(3), None], on_source_end="eof")
    other = door(pool, there, on_source_end=other_end, typ=1)
    until(lambda: other.delivered == numbers(3))
    for n in range(200):  # after the end of the first source
        other.feed((n,))
    other.feed(None)
    for loop in (one, other):
        ended = loop.result()
        assert isinstance(ended.cause, (memenpsf.EndOfStream, memenpsf.Closed))
        assert ended.unsent == []
    assert one.delivered == numbers(200)


@doors
def test_a_loop_goes_on_sending_to_a_peer_that_sends_no_more(pool, door):
    with loop_and_peer(pool, door) as (loop, peer):
        peer.xmit((0,))
        peer.send_eof()
        for n in range(100):
            loop.feed((n,))
            assert peer.recv() == (n,)
        loop.feed(None)
        with pytest.raises(memenpsf.EndOfStream):
            peer.recv()
        ended = loop.result()
        assert isinstance(ended.cause, memenpsf.EndOfStream)
        assert loop.delivered == [(0,)]


@doors
def test_a_loop_whose_peer_sends_no_more_and_leaves_ends(pool, door):
    with loop_and_peer(pool, door) as (loop, peer):
        peer.send_eof()
        loop.feed((1,))
        assert peer.recv() == (1,)
        peer.close()
        assert isinstance(loop.result().cause, memenpsf.EndOfStream)


@doors
@pytest.mark.parametrize("wrong", ["close", None, 1])
def test_another_end_of_a_source_there_is_not(pool, door, wrong):
    here, there = socket.socketpair()
    with there, pytest.raises(ValueError, match="on_source_end is 'finish' or 'eof', not"):
        door(pool, here, on_source_end=wrong).result()
    assert here.fileno() == -1


# -- what it raises -------------------------------------------------------------------------------


@doors
def test_a_record_that_does_not_fit_is_raised_after_what_came_before_it_is_sent(pool, door):
    with loop_and_peer(pool, door, [(1,), (2,), "bad", (3,)]) as (loop, peer):
        assert taken_until_aborted(peer) == [(1,), (2,)]
        with pytest.raises(memenpsf.BadRecord, match="bad"):
            loop.result()
        assert loop.left == [(3,)]


@doors
def test_a_peer_that_breaks_the_protocol_is_raised(pool, door):
    with loop_and_peer(pool, door, numbers(100)) as (loop, peer):
        os.write(peer._endpoint.fileno(), b"\x4d\x00")
        with pytest.raises(memenpsf.CorruptPeer, match="opcode 77"):
            loop.result()


@doors
def test_a_peer_that_does_not_fit_is_raised(pool, door):
    here, there = socket.socketpair()
    loop = door(pool, here)
    with pytest.raises(memenpsf.RecordRefused):
        Interface(there, "<d")
    with pytest.raises(memenpsf.RecordRefused, match=r"0:u64.*0:f64"):
        loop.result()


@doors
def test_a_peer_that_says_nothing_is_raised(pool, door):
    here, there = socket.socketpair()
    with there, pytest.raises(memenpsf.HandshakeTimeout):
        door(pool, here, timeout=0).result()
    assert here.fileno() == -1


@doors
@pytest.mark.parametrize(
    ("options", "error"),
    [({"record": object()}, TypeError), ({"timeout": -1}, ValueError), ({"c": 1}, TypeError)],
)
def test_what_makes_no_interface_is_raised_and_the_stream_is_taken(pool, door, options, error):
    here, there = socket.socketpair()
    with there, pytest.raises(error):
        door(pool, here, **options).result()
    assert here.fileno() == -1


@doors
@pytest.mark.parametrize(("typ", "role"), [(0, "client"), (1, "server"), (7, "server")])
def test_type_zero_is_a_client_and_any_other_a_server(pool, door, monkeypatch, typ, role):
    seen = []

    class SeenEnough(Exception):
        pass

    def interface(stream, record, **options):
        seen.append((record, options))
        raise SeenEnough

    monkeypatch.setattr("memenpsf._loop.Interface", interface)
    for door_of_tasks in ("trio", "asyncio"):
        monkeypatch.setattr(f"memenpsf.{door_of_tasks}._loop.Interface", interface)
    here, there = socket.socketpair()
    with here, there, pytest.raises(SeenEnough):
        door(pool, here, typ=typ, allow_uids={1}).result()
    options = {"name": "loop", "capacity": CAPACITY, "role": role, "allow_uids": {1}}
    assert seen == [("<Q", options)]


# -- of the loop for threads ----------------------------------------------------------------------


class Broken(Exception):
    pass


def test_what_the_source_raises_is_raised_after_what_has_arrived_is_delivered(pool):
    class Source:
        def get(self, block=True, timeout=None):
            until(ready.is_set)
            raise Broken

    ready = threading.Event()
    here, there = socket.socketpair()
    sink = queue.Queue()
    loop = pool.submit(memenpsf.run, "", 64, 0, here, Source(), sink, "<Q")
    with Interface(there, "<Q", capacity=64) as peer:
        peer.xmit_many(numbers(50))
        ready.set()
        assert isinstance(loop.exception(), Broken)
        assert list(sink.queue) == numbers(50)
        assert taken_until_aborted(peer) == []


def test_what_the_sink_raises_is_raised_and_both_threads_end(pool):
    class Sink:
        def put(self, item):
            raise Broken

    with loop_and_peer(pool, ThreadLoop, numbers(100), sink=Sink()) as (loop, peer):
        peer.xmit((1,))
        with pytest.raises(Broken):
            loop.result()
        with pytest.raises(memenpsf.Aborted):
            peer.xmit_many(numbers(100))
    assert not any("memenpsf run" in thread.name for thread in threading.enumerate())


def test_a_sink_that_is_full_is_waited_for(pool):
    sink = queue.Queue(1)
    with loop_and_peer(pool, ThreadLoop, sink=sink) as (loop, peer):
        sending = pool.submit(peer.xmit_many, numbers(50))
        assert [sink.get() for _ in range(50)] == numbers(50)
        sending.result()
        peer.close()
        assert isinstance(loop.result().cause, memenpsf.EndOfStream)


@pytest.mark.skipif(not hasattr(queue, "ShutDown"), reason="came with Python 3.13")
def test_the_shutdown_of_the_source_ends_in_good_order(pool):
    with loop_and_peer(pool, ThreadLoop, numbers(10)) as (loop, peer):
        loop._source.shutdown()
        assert taken_by(peer) == numbers(10)
        assert isinstance(loop.result().cause, memenpsf.Closed)
