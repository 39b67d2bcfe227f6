"""Messages of any length, loans, regions and descriptors under Trio, and what cancelling does."""

import contextlib
import dataclasses
import json
import random
import socket

import pytest
import trio
import trio.testing

import ipcqueue
import memenpsf
import memenpsf.trio as mt
from tests.ipcqueue.test_message import BOTH, CHILD, JSON
from tests.kit.attached import number_of, numbered, numbers, open_descriptors, region_of
from tests.kit.connected import quick_collector  # noqa: F401 (the fixture)


@contextlib.asynccontextmanager
async def connected(spec=bytes, *, other=None, **options):
    """Two sides in one loop; `other` are options of the second, which are as the first's."""
    both = [options, options | (other or {})]
    sides = [
        mt.Interface(sock, each.pop("record", spec), **each)
        for sock, each in zip(socket.socketpair(), both, strict=True)
    ]
    try:
        async with trio.open_nursery() as nursery:
            for side in sides:
                nursery.start_soon(side.do_handshake)
        yield sides
    finally:
        for side in sides:
            side.close()


async def still_works(one, other, record=b"still works"):
    await one.xmit(record, timeout=0)
    assert await other.recv(timeout=0) == record
    assert await other.recv(timeout=0) is None


async def received(side):
    """Everything that waits: (bytes, numbers of the descriptors, contents of the regions)."""
    got = []
    while (message := await side.recv_message(timeout=0)) is not None:
        with contextlib.closing(message):
            fds = [number_of(fd) for fd in message.fds]
            got.append((message.record, fds, [bytes(r.buffer) for r in message.regions]))
    return got


# -- messages ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{"capacity": 4096}, {"capacity": 1 << 16, "inline": 1 << 16}], ids=str
)
async def test_a_task_and_a_thread_of_another_process_exchange_messages_both_ways(program, options):
    count = 150
    here = {}
    exec(BOTH, here)  # the very same as in the other process
    ours, theirs = socket.socketpair()
    with theirs:
        arguments = json.dumps([theirs.fileno(), 1, 2, count, options])
        child = program(CHILD, arguments, pass_fds=[theirs.fileno()])
        side = mt.Interface(ours, bytes, timeout=30, **options)
        await side.do_handshake()
    async with side, trio.open_nursery() as nursery:
        nursery.start_soon(send_random, side, here["size"], 2, count)
        assert await receive_hashed(side, count) == here["expected"](1, count)
        assert await trio.to_thread.run_sync(child.stdout.readline) == "done\n"
        assert side.statistics().rescues == 0
        print(file=child.stdin, flush=True)
        with pytest.raises(mt.EndOfStream):
            await side.recv()


async def send_random(side, size, seed, count):
    """As send() in BOTH."""
    chance = random.Random(seed)
    left = count
    while left:
        batch = [chance.randbytes(size(chance)) for _ in range(min(left, chance.choice([1, 1, 9])))]
        if len(batch) > 1:
            assert await side.xmit_many(batch) == len(batch)
        elif chance.random() < 0.3 and len(batch[0]) < side.capacity - 16:
            async with side.loan(len(batch[0])) as loan:
                loan.data[:] = batch[0]
        else:
            await side.xmit(batch[0])
        left -= len(batch)


async def receive_hashed(side, count):
    """As receive() in BOTH."""
    import hashlib

    digest = hashlib.sha256()
    while count:
        async with side.borrow(5) as messages:
            got = [bytes(message.data) for message in messages]
        if count > len(got):
            got.append(await side.recv())
        for data in got:
            digest.update(b"%d:" % len(data) + data)
        count -= len(got)
    return digest.hexdigest()


# -- attachments -------------------------------------------------------------------------------------


# -- the socket is full ------------------------------------------------------------------------------


async def fill_socket(side):
    for count in range(100_000):
        try:
            await side.send_ctrl_msg(b"\xff\0", timeout=0)
        except mt.Full:
            return count
    raise AssertionError("the socket takes everything")


async def drain(side):
    count = 0
    while await side.recv_ctrl_msg(timeout=0) is not None:
        count += 1
    return count


@pytest.fixture
def tries(monkeypatch):
    """How often something with descriptors was tried to be sent."""
    calls = []
    real = ipcqueue._ring.frame_sender.FrameSender.try_send
    monkeypatch.setattr(
        ipcqueue._ring.frame_sender.FrameSender,
        "try_send",
        lambda self, parcel: calls.append(1) or real(self, parcel),
    )
    return calls


@pytest.mark.parametrize("how", ["descriptors", "large", "many"])
async def test_who_waits_for_room_in_the_socket_tries_again_when_there_is_some(
    how, tries, autojump_clock
):
    # By a clock that jumps: only sleeping tasks let it.  A tenth of a minute of waiting is over
    # at once, and whoever tried all the time would never let it pass.
    async with (
        connected(accept=memenpsf.Accept(fds=1)) as (one, other),
        trio.open_nursery() as nursery,
    ):
        filled = await fill_socket(one)
        with numbers(1) as files:
            send = {
                "descriptors": lambda: one.xmit(b"first", fds=files),
                "large": lambda: one.xmit(b"first" * 100_000),
                "many": lambda: one.xmit_many([b"first" * 100_000, b"second"]),
            }[how]
            nursery.start_soon(send)
            await trio.testing.wait_all_tasks_blocked()
            await trio.sleep(6)
            assert len(tries) < 6 / 0.05 + 10
            assert (await other.recv()).startswith(b"first")
            await trio.testing.wait_all_tasks_blocked()
        assert await drain(other) == filled


# -- loans and borrowings ----------------------------------------------------------------------------


async def test_a_cancelled_block_publishes_nothing_and_takes_nothing():
    async with connected(capacity=4096, accept=memenpsf.Accept(fds=1)) as (one, other):
        with trio.CancelScope() as scope:
            async with one.loan(5) as loan:
                loan.data[:] = b"lent!"
                scope.cancel()
                await trio.lowlevel.checkpoint()
        assert await other.recv(timeout=0) is None
        with numbers(5) as files:
            await one.xmit(b"first", fds=files)
        await one.xmit(b"large" * 1000)
        with trio.CancelScope() as scope:
            async with other.borrow() as messages:
                assert [len(message.data) for message in messages] == [5, 5000]
                scope.cancel()
                await trio.lowlevel.checkpoint()
        assert await received(other) == [(b"first", [5], []), (b"large" * 1000, [], [])]
        assert other.statistics().dropped == 0
        await still_works(one, other)


async def test_a_block_of_trio_needs_async_with():
    async with connected() as (one, other):
        await one.xmit(b"x")
        async with one.loan(2) as loan:
            loan.publish()
        async with other.borrow() as messages:
            pass
        for block in (loan, messages):
            with pytest.raises(TypeError, match="needs async with"), block:
                pass


async def test_a_peer_that_breaks_the_protocol_is_a_broken_resource():
    async with connected(accept=memenpsf.Accept(message=10)) as (one, other):
        one._endpoint._limits = ipcqueue._records.messages.Limits()
        one._endpoint.sender._limits = ipcqueue._records.messages.Limits()
        await one.xmit(b"far too large for it")
        with pytest.raises(mt.CorruptPeer, match="header of a frame") as caught:
            await other.recv()
        assert isinstance(caught.value, trio.BrokenResourceError)
        with pytest.raises(mt.CorruptPeer):
            async with other.borrow():
                pass
        with pytest.raises(mt.CorruptPeer):
            async with other.loan(1):
                pass


async def test_a_loan_and_a_borrowing_shake_hands_as_any_other_call():
    one, other = (mt.Interface(sock, bytes) for sock in socket.socketpair())
    async with one, other, trio.open_nursery() as nursery:
        nursery.start_soon(other.do_handshake)
        async with one.loan(5) as loan:
            loan.data[:] = b"first"
        async with other.borrow() as messages:
            assert [bytes(message.data) for message in messages] == [b"first"]


async def test_an_interface_that_is_closed_lends_nothing():
    here, there = socket.socketpair()
    with there:
        side = mt.Interface(here, bytes)
        side.close()
        for lend in (lambda: side.loan(1), side.borrow):
            with pytest.raises(mt.Closed):
                async with lend():
                    pass


@pytest.mark.parametrize("how", ["publish", "leave"])
async def test_a_loan_that_nobody_takes_any_more_says_so_in_words_of_trio(how):
    async with connected() as (one, other):
        with pytest.raises(trio.BrokenResourceError):
            async with one.loan(5) as loan:
                other.close()
                if how == "publish":
                    loan.publish()


async def test_descriptors_that_cannot_be_opened_are_a_broken_resource():
    assert issubclass(mt.DescriptorsLost, trio.BrokenResourceError)
    error = mt._errors.translated(ipcqueue.DescriptorsLost("why"))
    assert type(error) is mt.DescriptorsLost
    assert error.args == ("why",)


# -- servers and loops -------------------------------------------------------------------------------


async def test_a_client_whose_messages_mean_nothing_does_not_end_the_server(tmp_path, caplog):
    async def echo(interface):
        async for record in interface:
            await interface.xmit(record)

    path = tmp_path / "s"
    async with trio.open_nursery() as nursery:
        await nursery.start(mt.serve, echo, path, JSON)
        async with await mt.connect(path, JSON) as good, await mt.connect(path, bytes) as bad:
            await bad.xmit(b"{no json")
            with pytest.raises(mt.Aborted):
                await bad.recv()
            await good.xmit({"n": 1})
            assert await good.recv() == {"n": 1}
        nursery.cancel_scope.cancel()


# -- cancelling --------------------------------------------------------------------------------------


class CancelAt(trio.abc.Instrument):
    """Cancels a scope just before the n-th step of a task in it."""

    def __init__(self, nth):
        self.left, self.scope, self.task = nth, trio.CancelScope(), None

    def before_task_step(self, task):
        if task is self.task:
            if self.left == 0:
                self.scope.cancel()
            self.left -= 1

    async def run(self, call):
        """Return what `call` returned, or None."""
        result = None
        trio.lowlevel.add_instrument(self)
        try:
            with self.scope:
                self.task = trio.lowlevel.current_task()
                if self.left == 0:
                    self.scope.cancel()
                self.left -= 1
                result = await call()
        finally:
            self.task = None
            trio.lowlevel.remove_instrument(self)
        return result


async def at_every_step(situation):
    """Enter situation() for each step of what it yields; return how many steps there are."""
    for nth in range(1000):
        before = open_descriptors()
        async with situation() as (call, check):
            cancelling = CancelAt(nth)
            result = await cancelling.run(call)
            await check(result, cancelled=cancelling.scope.cancelled_caught)
        assert open_descriptors() == before
        if cancelling.left >= 0:
            return nth
    raise AssertionError("the call does not end")


async def steps(count):
    for _ in range(count):
        await trio.lowlevel.checkpoint()


SENT = [(b"first", [1, 2], [b"r"]), (b"l" * 5000, [3], []), (b"plain", [], [])]


async def send_all(side):
    for data, fds, contents in SENT:
        await steps(2)
        with contextlib.ExitStack() as undo:
            files = [undo.enter_context(numbered(number)) for number in fds]
            regions = [undo.enter_context(region_of(each)) for each in contents]
            await side.xmit(data, fds=files, regions=regions)


async def borrow_all(side):
    async with side.borrow() as messages:
        seen = [bytes(message.data) for message in messages]
        await steps(2)
    return seen


RECEIVING = {
    "recv": lambda side: side.recv(),
    "recv_vectored": lambda side: side.recv_vectored(),
    "recv_message": lambda side: side.recv_message(),
    "borrow": borrow_all,
    "receive": lambda side: side.receive(),
    "recv with a timeout": lambda side: side.recv(timeout=1000),
    "recv_message at once": lambda side: side.recv_message(timeout=0),
}


@pytest.mark.parametrize("verb", RECEIVING)
@pytest.mark.parametrize("already", [True, False])
async def test_cancelling_a_receive_at_any_step_loses_nothing(verb, already):
    @contextlib.asynccontextmanager
    async def situation():
        async with connected(capacity=4096, accept=memenpsf.Accept(fds=2)) as (one, other):
            async with trio.open_nursery() as nursery:
                if already:
                    await send_all(one)
                else:
                    nursery.start_soon(send_all, one)

                async def check(result, *, cancelled):
                    got = shown(result)
                    assert not (cancelled and got)
                    while len(got) < len(SENT):
                        with contextlib.closing(await other.recv_message()) as message:
                            fds = [number_of(fd) for fd in message.fds]
                            contents = [bytes(region.buffer) for region in message.regions]
                            got.append((message.record, fds, contents))
                    for (record, fds, contents), sent in zip(got, SENT, strict=True):
                        assert record == sent[0]
                        assert fds in (None, sent[1])
                        assert contents in (None, sent[2])
                    assert await other.recv(timeout=0) is None

                yield (lambda: RECEIVING[verb](other)), check

    assert await at_every_step(situation) >= 2


def shown(result):
    if result is None:
        return []
    if isinstance(result, memenpsf.Received):
        with contextlib.closing(result):
            fds = [number_of(fd) for fd in result.fds]
            return [(result.record, fds, [bytes(region.buffer) for region in result.regions])]
    records = [result] if isinstance(result, bytes) else result
    return [(record, None, None) for record in records]


async def lend(side):
    async with side.loan(9) as loan:
        loan.data[:] = b"a message"
        await steps(2)


def sending(files, region):
    return {
        "xmit": lambda side: side.xmit(b"a message"),
        "send": lambda side: side.send(b"a message"),
        "xmit of a large one": lambda side: side.xmit(b"a message" * 1000),
        "xmit with descriptors": lambda side: side.xmit(b"a message", fds=files),
        "xmit with a region": lambda side: side.xmit(b"a message", regions=[region]),
        "loan": lend,
        "xmit with a timeout": lambda side: side.xmit(b"a message", timeout=1000),
    }


@pytest.mark.parametrize("obstacle", [None, "ring", "socket"])
@pytest.mark.parametrize("verb", sending(None, None))
async def test_cancelling_a_send_at_any_step_means_that_it_was_not_sent(verb, obstacle):
    @contextlib.asynccontextmanager
    async def situation():
        with numbers(1) as files, region_of(b"r") as region:
            async with (
                connected(
                    capacity=4096,
                    inline=4096 if "large" not in verb else 0,
                    accept=memenpsf.Accept(fds=1),
                ) as (
                    one,
                    other,
                ),
                trio.open_nursery() as nursery,
            ):
                filled = 0
                if obstacle == "ring":
                    filled = await one.xmit_many([b""] * 256)
                elif obstacle == "socket":
                    await fill_socket(one)

                async def make_way():
                    nonlocal filled
                    await steps(5)
                    filled -= len(await other.recv_vectored(filled)) if filled else 0
                    await drain(other)

                nursery.start_soon(make_way)

                async def send():
                    await sending(files, region)[verb](one)
                    return True

                async def check(result, *, cancelled):
                    assert result is not cancelled
                    await one.xmit(b"next")
                    got = []
                    while not got or got[-1][0] != b"next":
                        got += await received(other)
                        await trio.lowlevel.checkpoint()
                    got = [each for each in got if each[0]]
                    message = (
                        b"a message" * (1000 if "large" in verb else 1),
                        [1] * ("descriptors" in verb),
                        [b"r"] * ("region" in verb),
                    )
                    assert got == [message] * (result is True) + [(b"next", [], [])]

                yield send, check

    assert await at_every_step(situation) >= 2


async def test_cancelling_a_batch_at_any_step_sends_the_first_of_it():
    batch = [b"1" * 1000, b"2" * 5000, b"3" * 1000, b"4" * 1000, b"5" * 5000, b"6" * 1000] * 4

    @contextlib.asynccontextmanager
    async def situation():
        async with connected(capacity=4096) as (one, other), trio.open_nursery() as nursery:
            got = []

            async def receive():
                while not got or got[-1] != b"next":
                    got.extend(await other.recv_vectored(2))
                    await steps(2)

            nursery.start_soon(receive)

            async def check(result, *, cancelled):
                await one.xmit(b"next")
                while not got or got[-1] != b"next":
                    await trio.lowlevel.checkpoint()
                got.pop()
                assert got == batch[: len(got)]
                if cancelled:
                    assert result is None
                else:
                    assert result == len(got) == len(batch)
                got.append(b"next")

            yield (lambda: one.xmit_many(batch)), check

    assert await at_every_step(situation) > 10


async def test_a_cancelled_task_that_was_reading_hands_on_to_the_others():
    got = []
    async with (
        connected(accept=memenpsf.Accept(fds=1)) as (one, other),
        trio.open_nursery() as nursery,
    ):
        scope = trio.CancelScope()

        async def control():
            with scope:
                await other.recv_ctrl_msg(timeout=None)

        async def receive():
            got.append(await other.recv())

        nursery.start_soon(control)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        with numbers(1) as files:
            await one.xmit(b"x", fds=files)
    assert got == [b"x"]


async def test_a_record_that_its_class_refuses_is_taken_and_the_next_one_comes():
    @dataclasses.dataclass
    class Refusing:
        number: memenpsf.u64

        def __post_init__(self):
            if self.number == 13:
                raise ValueError

    async with connected("<Q", other={"record": Refusing}) as (one, other):
        for receive in (other.recv, other.recv_vectored, other.__anext__, other.recv_message):
            await one.xmit_many([(13,), (1,)])
            with pytest.raises(memenpsf.DecodeFailed) as caught:
                await receive()
            assert isinstance(caught.value.__cause__, ValueError)
            assert await other.recv() == Refusing(1)
