"""One loop over many connections and listeners, at every door."""

from __future__ import annotations

import collections
import contextlib

import pytest

import memenpsf
from memenpsf import _gathering
from memenpsf._members import QUANTUM
from tests.kit.doors import scenario


@pytest.fixture(autouse=True)
def _no_rescues(monkeypatch):
    monkeypatch.setattr(_gathering, "RESCUE", 3600.0)


@contextlib.asynccontextmanager
async def pairs(door, count=3, record="<Q", **options):
    """`count` connections: this side and the other one of each."""
    async with contextlib.AsyncExitStack() as stack:
        options = {"capacity": 1024, **options}
        yield [await stack.enter_async_context(door.pair(record, **options)) for _ in range(count)]


@contextlib.asynccontextmanager
async def readers_of(door, count=3, record="<Q", **options):
    """A set of this side of `count` connections, and the connections."""
    async with (
        pairs(door, count, record, **options) as ends,
        door.receiver_set(*(here for here, _ in ends)) as readers,
    ):
        yield readers, ends


async def drained(readers):
    got = []
    while (each := await readers.recv(timeout=0)) is not None:
        got.append(each)
    return got


async def asleep(group, readers, count=1):
    """Return once so many calls wait in the set."""
    await group.blocked()
    gathering = getattr(readers, "it", readers)._gathering
    assert len(gathering._waiting) == count


def watches(interface):
    return getattr(interface, "it", interface)._endpoint.waiters.watches


# -- records ----------------------------------------------------------------------------------


@scenario
async def test_each_record_comes_with_its_source(door):
    async with readers_of(door) as (readers, ends):
        for n, (_, there) in enumerate(ends):
            await there.xmit_many([(n,), (n + 10,)])
        got = collections.defaultdict(list)
        for source, record in await drained(readers):
            got[source].append(record)
        assert got == {here: [(n,), (n + 10,)] for n, (here, _) in enumerate(ends)}
        assert await readers.recv(timeout=0.001) is None
        assert await drained(readers) == []


@scenario
async def test_a_record_wakes_it_again_and_again(door):
    async with readers_of(door) as (readers, ends):
        for n in range(15):
            here, there = ends[n % 3]
            async with door.tasks() as group:
                receiving = group.start(readers.recv)
                await asleep(group, readers)
                await there.xmit((n,))
            assert receiving.result == (here, (n,))
        assert [there.statistics().doorbells for _, there in ends] == [5] * 3


@scenario
async def test_batches_are_waited_for_and_mix_with_single_records(door):
    async with readers_of(door) as (readers, ends):
        for n in range(9):
            here, there = ends[n % 3]
            async with door.tasks() as group:
                receiving = group.start(readers.recv_vectored)
                await asleep(group, readers)
                await there.xmit((n,))
            assert receiving.result == [(here, [(n,)])]
            await there.xmit_many([(1,), (2,), (3,)])
            assert await readers.recv() == (here, (1,))
            assert await readers.recv_vectored() == [(here, [(2,), (3,)])]


@scenario
async def test_a_batch_of_each_is_returned(door):
    whole = [(n,) for n in range(100)]
    async with readers_of(door) as (readers, ends):
        for _, there in ends:
            await there.xmit_many(whole)
        assert await readers.recv_vectored(limit=60) == [(here, whole[:60]) for here, _ in ends]
        assert await readers.recv_vectored() == [(here, whole[60:]) for here, _ in ends]
        assert await readers.recv_vectored(timeout=0) == []
        assert await readers.recv_vectored(timeout=0.001) == []


@scenario
async def test_what_somebody_else_reads_wakes_it_as_well(door):
    async with readers_of(door) as (readers, ends), door.tasks() as group:
        here, there = ends[0]
        reading = group.start(here.recv_ctrl_msg, None)
        await group.blocked()
        receiving = group.start(readers.recv)
        await asleep(group, readers)
        await there.xmit((1,))
        await there.send_ctrl_msg(b"\x80\x01")
    assert receiving.result == (here, (1,))
    assert reading.result == b"\x80\x01"


@scenario
async def test_any_number_may_receive_and_nothing_is_lost(door):
    count = 500
    got = []

    async def receive(readers):
        with door.raises("Closed"):
            while True:
                got.append((await readers.recv())[1])

    async with readers_of(door) as (readers, ends), door.tasks() as group:
        for _ in range(3):
            group.start(receive, readers)
        await asleep(group, readers, 3)
        async with door.tasks() as senders:
            for _, there in ends:
                senders.start(there.xmit_many, [(n,) for n in range(count)])
        while len(got) < 3 * count:
            await door.others()
        readers.close()
    assert sorted(got) == sorted([(n,) for n in range(count)] * 3)


@scenario
async def test_while_one_sees_to_a_record_another_has_the_next(door):
    """Also if both have come at once, and only one was told."""

    async def receive(readers):
        got = await readers.recv()
        await others.recv()  # it does not come back
        return got

    async with (
        readers_of(door, 1) as (readers, ((here, there),)),
        door.pair() as (others, to_others),
        door.tasks() as group,
    ):
        both = [group.start(receive, readers) for _ in range(2)]
        await asleep(group, readers, 2)
        await there.xmit_many([(1,), (2,)])
        while there.indices() != (2, 2):
            await door.others()
        await to_others.xmit_many([(0,), (0,)])
    assert sorted(each.result for each in both) == [(here, (1,)), (here, (2,))]


@scenario
async def test_messages_of_any_length_with_descriptors_come_too(door):
    accept = memenpsf.Accept(fds=1)
    async with readers_of(door, 1, bytes, capacity=4096, accept=accept) as (readers, ends):
        _, there = ends[0]
        await there.xmit(b"text", fds=[0])
        await there.xmit(bytes(100_000))
        got = []
        while len(got) < 2:
            got.append((await readers.recv())[1])
        assert got == [b"text", bytes(100_000)]


# -- fairness ---------------------------------------------------------------------------------


@scenario
async def test_a_flood_does_not_starve_a_trickle(door):
    async with readers_of(door) as (readers, ends):
        (flood, to_flood), (trickle, to_trickle), (other, to_other) = ends
        await to_flood.xmit_many([(0,)] * 1000)
        await to_other.xmit_many([(0,)] * 1000)
        for n in range(20):
            for _ in range(n):  # at any place of a turn
                await readers.recv()
            await to_trickle.xmit((n,))
            before = collections.Counter()
            while (source := (await readers.recv())[0]) is not trickle:
                before[source] += 1
            assert before[flood] <= QUANTUM
            assert before[other] <= QUANTUM


@scenario
async def test_members_for_which_a_batch_had_no_room_come_with_the_next(door, monkeypatch):
    monkeypatch.setattr(_gathering, "ENOUGH", 20)
    async with readers_of(door, 5) as (readers, ends):
        for _, there in ends:
            await there.xmit_many([(0,)] * 100)
        calls = [await readers.recv_vectored(limit=10) for _ in range(5)]
        sources = [source for batches in calls for source, _ in batches]
        assert sources == [here for here, _ in ends] * 2
        assert [len(batches) for batches in calls] == [2] * 5


@scenario
async def test_a_member_that_joins_is_served_as_soon(door):
    async with pairs(door, 2) as ((flood, to_flood), (here, there)):
        await to_flood.xmit_many([(0,)] * 1000)
        await there.xmit((1,))
        async with door.receiver_set(flood) as readers:
            await readers.recv()
            readers.add(here)
            sources = [(await readers.recv())[0] for _ in range(QUANTUM + 1)]
            assert sources.index(here) <= QUANTUM


# -- what may come instead of a record --------------------------------------------------------


@pytest.mark.parametrize("asleep_first", [False, True])
@pytest.mark.parametrize(
    ("end", "error"), [("aclose", "EndOfStream"), ("send_eof", "EndOfStream"), ("abort", "Aborted")]
)
@scenario
async def test_an_end_is_returned_behind_what_came_before_and_ends_nobody_else(
    door, end, error, asleep_first
):
    async with readers_of(door) as (readers, ends):
        if asleep_first:
            assert await readers.recv(timeout=0) is None
        (here, there), (other, to_other), _ = ends
        await there.xmit((1,))
        if (ended := getattr(there, end)()) is not None:
            await ended
        got = [await readers.recv(), await readers.recv()]
        assert got[0] == (here, (1,))
        assert got[1][0] is here
        assert type(got[1][1]) is door.word(error)
        assert memenpsf.interface_of(got[1][1]) is getattr(here, "it", here)
        assert len(readers) == 2
        assert here not in readers
        assert other in readers
        await to_other.xmit((2,))
        assert await readers.recv() == (other, (2,))


@scenario
async def test_ends_of_many_at_once_are_all_returned(door):
    async with readers_of(door) as (readers, ends):
        for _, there in ends:
            await there.xmit((1,))
            await there.aclose()
        got = [(await readers.recv())[1] for _ in range(6)]
        assert sorted(type(each).__name__ for each in got) == ["EndOfStream"] * 3 + ["tuple"] * 3
        assert len(readers) == 0


@scenario
async def test_a_record_that_cannot_be_decoded_is_returned_as_an_error(door):
    def decode(data):
        if data == b"bad":
            raise ValueError("bad")
        return bytes(data)

    texts = memenpsf.Encoded(bytes, decode)
    async with readers_of(door, 1, texts, capacity=4096) as (readers, ((here, there),)):
        for text in (b"one", b"bad", b"two"):
            await there.xmit(text)
        got = [(await readers.recv())[1] for _ in range(3)]
        assert [got[0], got[2]] == [b"one", b"two"]
        assert isinstance(got[1], memenpsf.DecodeFailed)
        assert isinstance(got[1].__cause__, ValueError)
        assert here in readers


@scenario
async def test_a_member_that_its_owner_closes_is_returned_as_closed(door):
    async with readers_of(door) as (readers, ends):
        here, _ = ends[0]
        async with door.tasks() as group:
            receiving = group.start(readers.recv)
            await asleep(group, readers)
            await here.aclose()
        source, error = receiving.result
        assert source is here
        assert type(error) is door.word("Closed")
        assert len(readers) == 2


# -- listeners --------------------------------------------------------------------------------


async def client(door, address, *records):
    async with await door.connect(address, "<Q") as interface:
        await interface.xmit_many(records)


@scenario
async def test_clients_join_by_themselves_and_are_closed_at_their_end(door, tmp_path):
    async with (
        await door.listen(tmp_path / "here", "<Q") as listener,
        door.receiver_set() as readers,
        door.tasks() as group,
    ):
        readers.add(listener, clients=True)
        for n in range(3):
            group.start(client, door, listener.address, (n,), (n + 1,))
        joined, got, ended = [], [], []
        while len(ended) < 3:
            source, record = await readers.recv()
            if source is listener:
                assert record in readers
                joined.append(record)
            elif isinstance(record, memenpsf.EndOfStream):
                ended.append(source)
                assert getattr(source, "it", source)._endpoint.closed
            else:
                got.append(record)
        assert sorted(got) == [(0,), (1,), (1,), (2,), (2,), (3,)]
        assert {*joined} == {*ended}
        assert len(readers) == 1


@scenario
async def test_clients_belong_to_the_caller_otherwise(door, tmp_path):
    async with (
        await door.listen(tmp_path / "here", "<Q") as listener,
        door.receiver_set(listener) as readers,
        door.tasks() as group,
    ):
        group.start(client, door, listener.address, (1,))
        source, interface = await readers.recv()
        assert source is listener
        assert interface not in readers
        async with interface:
            assert await interface.recv() == (1,)
        group.start(client, door, listener.address, (2,))
        ((source, (interface,)),) = await readers.recv_vectored()
        async with interface:
            assert await interface.recv() == (2,)


@scenario
async def test_a_client_that_does_not_get_in_ends_nothing(door, tmp_path):
    async with (
        await door.listen(tmp_path / "here", "<Q") as listener,
        door.receiver_set(listener) as readers,
        door.tasks() as group,
    ):
        receiving = group.start(readers.recv)
        await asleep(group, readers)
        with pytest.raises(memenpsf.RecordRefused):
            await door.connect(listener.address, "<d")
        async with await door.connect(listener.address, "<Q"):
            while not receiving.done:
                await door.others()
            await receiving.result[1].aclose()
        assert listener.refused == 1


@scenario
async def test_a_listener_whose_clients_somebody_else_accepts_is_left_to_him(door, tmp_path):
    async with (
        await door.listen(tmp_path / "here", "<Q") as listener,
        door.receiver_set(listener) as readers,
        door.tasks() as group,
    ):
        accepting = group.start(listener.accept)
        await group.blocked()
        assert await readers.recv(timeout=0) is None
        async with await door.connect(listener.address, "<Q"):
            while not accepting.done:
                await door.others()
            await accepting.result.aclose()
        assert await readers.recv(timeout=0) is None


@scenario
async def test_closing_a_listener_is_returned(door, tmp_path):
    async with (
        await door.listen(tmp_path / "here", "<Q") as listener,
        door.receiver_set(listener) as readers,
    ):
        async with door.tasks() as group:
            receiving = group.start(readers.recv)
            await asleep(group, readers)
            await listener.aclose()
        source, error = receiving.result
        assert source is listener
        assert type(error) is door.word("Closed")
        assert len(readers) == 0
        assert not listener._pending.watchers


@pytest.mark.parametrize(("error", "seen"), [(None, "EndOfStream"), (KeyError, "Aborted")])
@scenario
async def test_the_clients_that_joined_end_with_the_set(door, tmp_path, error, seen):
    async def talk(address):
        async with await door.connect(address, "<Q") as interface:
            await interface.xmit((1,))
            with door.raises(seen):
                await interface.recv()

    async with await door.listen(tmp_path / "here", "<Q") as listener, door.tasks() as group:
        with contextlib.suppress(KeyError):
            async with door.receiver_set() as readers:
                readers.add(listener, clients=True)
                group.start(talk, listener.address)
                _, interface = await readers.recv()
                assert await readers.recv() == (interface, (1,))
                if error is not None:
                    raise error


# -- who is in it, and its end ----------------------------------------------------------------


@scenario
async def test_members_come_and_go_while_somebody_waits(door):
    async with pairs(door, 2) as ((one, to_one), (two, to_two)), door.receiver_set() as readers:
        async with door.tasks() as group:
            receiving = group.start(readers.recv)
            await asleep(group, readers)
            await to_one.xmit((1,))
            readers.add(one)
        assert receiving.result == (one, (1,))
        readers.add(two)
        async with door.tasks() as group:
            receiving = group.start(readers.recv)
            await asleep(group, readers)
            readers.remove(one)
            await to_one.xmit((2,))
            await to_two.xmit((3,))
        assert receiving.result == (two, (3,))
        assert await one.recv() == (2,)
        assert not watches(one)
        assert one not in readers
        readers.add(one)
        await to_one.xmit((4,))
        assert await readers.recv() == (one, (4,))


@scenario
async def test_a_member_that_is_removed_in_its_turn_gives_no_more(door):
    async with readers_of(door) as (readers, ends):
        here, there = ends[0]
        await there.xmit_many([(n,) for n in range(9)])
        assert await readers.recv() == (here, (0,))
        readers.remove(here)
        assert await drained(readers) == []
        assert await here.recv_vectored() == [(n,) for n in range(1, 9)]
        assert await readers.recv_vectored(timeout=0) == []


@scenario
async def test_members_are_counted_and_found(door):
    async with readers_of(door) as (readers, ends):
        assert len(readers) == 3
        assert all(here in readers for here, _ in ends)
        assert ends[0][1] not in readers
        assert repr(readers) == f"<{door.module}ReceiverSet: 3 members>"
        with pytest.raises(ValueError, match="is in this set already"):
            readers.add(ends[0][0])
        with pytest.raises(KeyError):
            readers.remove(ends[0][1])
        for wrong in (3, None, "text", readers):
            with pytest.raises(TypeError, match=r"for others use memenpsf\.wait"):
                readers.add(wrong)
        with pytest.raises(TypeError, match="clients=True is for listeners"):
            readers.add(ends[0][1], clients=True)
        assert len(readers) == 3


@pytest.mark.parametrize("verb", ["recv", "recv_vectored"])
@scenario
async def test_closing_wakes_those_who_wait(door, verb):
    async with readers_of(door) as (readers, ends):
        async with door.tasks() as group:
            receiving = [group.start(getattr(readers, verb)) for _ in range(3)]
            await asleep(group, readers, 3)
            readers.close()
        assert [type(each.error) for each in receiving] == [door.word("Closed")] * 3
        assert readers.closed
        assert len(readers) == 0
        readers.close()
        for call in (readers.recv, readers.recv_vectored):
            with door.raises("Closed", match="closed the set"):
                await call()
        with door.raises("Closed", match="closed the set"):
            readers.add(ends[0][0])
        assert repr(readers) == f"<{door.module}ReceiverSet: closed>"
        assert not any(watches(here) for here, _ in ends)


@scenario
async def test_a_loop_goes_on_until_the_set_is_closed(door):
    async with readers_of(door) as (readers, ends):
        here, there = ends[0]
        await there.xmit_many([(n,) for n in range(50)])
        seen = []
        async for source, record in readers:
            assert source is here
            seen.append(record)
            if len(seen) == 40:
                readers.close()
        assert seen == [(n,) for n in range(40)]
        assert await here.recv() == (40,)


@pytest.mark.parametrize("wrong", [-1, "1", True])
@scenario
async def test_arguments_are_checked(door, wrong):
    async with readers_of(door, 1) as (readers, _):
        for call in (readers.recv, readers.recv_vectored):
            with pytest.raises((TypeError, ValueError)):
                await call(wrong)
        with pytest.raises(ValueError, match="at least 1 record"):
            await readers.recv_vectored(0)
