"""Messages of any length, loans, borrowings, regions and descriptors, as a user meets them."""

import contextlib
import hashlib
import os
import random
import resource
import socket
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import trio

import fdpass
import ipcqueue
import memenpsf
import memenpsf.trio
from fdpass import Memfd, MemoryRegion

np = pytest.importorskip("numpy")

NOBODY = 65534


@contextlib.contextmanager
def pair(record=bytes, **options):
    one, other = memenpsf.pair(record, **options)
    with one, other:
        yield one, other


def descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


# -- messages -----------------------------------------------------------------------------------


@pytest.mark.parametrize("inline", [0, 512, 4096])
def test_messages_of_any_length_arrive_in_order(inline):
    chance = random.Random(inline)
    sizes = [chance.choice([0, 1, 15, 16, 17, 500, 5000, 100_000]) for _ in range(300)]
    with pair(capacity=4096, inline=inline) as (one, other):
        for size in sizes:
            data = chance.randbytes(size)
            one.xmit(data, timeout=0)
            assert other.recv(timeout=0) == data


def test_a_batch_of_any_lengths_goes_through_a_small_ring(program, tmp_path):
    # The other process hashes everything it gets, in order.
    path = tmp_path / "s"
    peer = program(
        "import hashlib, memenpsf, sys\n"
        "total = hashlib.blake2b()\n"
        "with memenpsf.listen(sys.argv[1], bytes) as listener:\n"
        "    print('ready', flush=True)\n"
        "    with listener.accept() as interface:\n"
        "        for data in interface:\n"
        "            total.update(len(data).to_bytes(8, 'little') + data)\n"
        "print(total.hexdigest())\n",
        path,
    )
    assert peer.stdout.readline() == "ready\n"
    chance, total = random.Random(1), hashlib.blake2b()
    with memenpsf.connect(path, bytes, capacity=1 << 16) as interface:
        for _ in range(20):
            batch = [
                chance.randbytes(chance.choice([0, 3, 900, 20_000, 2_000_000])) for _ in range(9)
            ]
            for data in batch:
                total.update(len(data).to_bytes(8, "little") + data)
            assert interface.xmit_many(batch) == len(batch)
    assert peer.communicate()[0] == total.hexdigest() + "\n"


def test_a_batch_larger_than_the_ring_is_not_copied_again_for_each_piece(monkeypatch):
    given = []

    def push_run(sender, records, start):
        given.append(records)
        return super(type(sender), sender).push_run(records, start)

    batch = [bytes(1000)] * 200
    with pair(capacity=4096, inline=4096) as (one, other):
        monkeypatch.setattr(type(one._endpoint.sender), "push_run", push_run, raising=False)
        got = []
        with ThreadPoolExecutor(1) as pool:
            sending = pool.submit(one.xmit_many, batch)
            while len(got) < len(batch):
                got += other.recv_vectored()
            assert sending.result() == len(batch)
        assert got == batch
    assert len(given) > 10
    assert all(records is given[0] for records in given)
    # Each is the application's own: nothing was joined, and nothing copied before the ring.
    assert all(mine is yours for mine, yours in zip(given[0], batch, strict=True))


@pytest.mark.parametrize("inline", [4096, 1024, 0])
def test_space_that_was_waited_for_is_enough_for_a_message(inline):
    with pair(capacity=4096, inline=inline) as (one, other), ThreadPoolExecutor(1) as pool:
        sent = 0
        with contextlib.suppress(memenpsf.Full):
            while sent < 1000:
                one.xmit(bytes(1000), timeout=0)
                sent += 1
        if inline:  # else it waits for messages to be taken, though there is space
            assert one.arm(records=False, space=True)
        waiting = pool.submit(one.await_space)
        got = 0
        while got < sent:
            got += len(other.recv_vectored(limit=1))
        waiting.result()
        one.xmit(bytes(1000), timeout=0)
        assert other.recv(timeout=0) == bytes(1000)


def test_a_large_message_that_finds_no_space_makes_no_memory(monkeypatch):
    with pair(capacity=4096, inline=0) as (one, other):
        with contextlib.suppress(memenpsf.Full):
            while True:
                one.xmit(b"", timeout=0)
        made = []
        create = Memfd.create
        monkeypatch.setattr(Memfd, "create", lambda *args: made.append(args) or create(*args))
        assert one._offer(bytes(1000)) is not None
        assert made == []
        assert len(other.recv_vectored()) == 4096 // 16


@pytest.mark.skipif(os.geteuid() != 0, reason="root has no limit, and only root becomes another")
def test_too_many_descriptors_under_way_are_waited_for_and_then_full(forked):
    def child():
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        with pair(accept=memenpsf.Accept(fds=20)) as (one, other), Path(os.devnull).open() as file:
            sent = 0
            with pytest.raises(memenpsf.Full):
                while True:
                    one.xmit(b"x", timeout=0.02, fds=[file] * 10)
                    sent += 1
            assert 2 < sent < 16
            for _ in range(sent):
                with contextlib.closing(other.recv_message(timeout=0)) as message:
                    assert len(message.fds) == 10
            one.xmit(b"y", timeout=0, fds=[file])
            with contextlib.closing(other.recv_message(timeout=0)) as message:
                assert message.record == b"y"

    assert forked(child) == 0


def test_one_thread_that_overtakes_another_does_not_make_the_peer_corrupt(monkeypatch):
    with pair(accept=memenpsf.Accept(fds=1)) as (one, other), Path(os.devnull).open() as file:
        one.xmit(b"first", fds=[file])
        endpoint = other._endpoint
        turn, read_more = endpoint.read_if_free, endpoint.read_more

        def overtaken():
            # Between another thread's look at the ring and its look at the socket.
            monkeypatch.setattr(endpoint, "read_if_free", turn)
            monkeypatch.setattr(endpoint, "read_more", read_more)
            with contextlib.closing(other.recv_message(timeout=0)) as message:
                assert message.record == b"first"
            read = read_more()
            one.xmit(b"second", fds=[file])
            return read

        monkeypatch.setattr(endpoint, "read_if_free", lambda: None)
        monkeypatch.setattr(endpoint, "read_more", overtaken)
        with contextlib.closing(other.recv_message(timeout=0)) as message:
            assert message.record == b"second"


def test_who_decodes_for_long_keeps_nobody_else_from_receiving():
    decoding, go_on = threading.Event(), threading.Event()

    def decode(data):
        if data == b"slow":
            decoding.set()
            go_on.wait()
        return data

    with pair(memenpsf.Encoded(bytes, decode)) as (one, other), ThreadPoolExecutor(1) as pool:
        one.xmit(b"slow")
        slow = pool.submit(other.recv)
        decoding.wait()
        try:
            one.xmit(b"quick")
            assert other.recv(timeout=0) == b"quick"
            assert other.recv(timeout=0) is None
        finally:
            go_on.set()
        assert slow.result() == b"slow"


def test_an_interrupt_while_a_block_ends_leaves_nothing_lent(monkeypatch):
    release = ipcqueue._link.loans._release

    def interrupted_once(view):
        monkeypatch.setattr(ipcqueue._link.loans, "_release", release)
        raise KeyboardInterrupt

    with pair() as (one, other):
        monkeypatch.setattr(ipcqueue._link.loans, "_release", interrupted_once)
        with pytest.raises(KeyboardInterrupt), one.loan(5) as loan:
            loan.data[:] = b"whole"
        one.xmit(b"given")  # though there is a `loan` still
        with pytest.raises(memenpsf.LoanError, match="over"):
            loan.publish()
        monkeypatch.setattr(ipcqueue._link.loans, "_release", interrupted_once)
        with pytest.raises(KeyboardInterrupt), other.borrow(1) as messages:
            assert bytes(messages[0].data) == b"whole"
        assert other.recv(timeout=0) == b"given"
        assert len(messages) == 0


@pytest.mark.parametrize("what", ["shared", "sockets"])
@pytest.mark.parametrize("value", [2, 1, "no", None])
def test_what_is_accepted_is_said_with_true_or_false(what, value):
    with pytest.raises(TypeError, match=f"{what} of Accept is True or False"):
        memenpsf.Accept(**{what: value})


def test_what_goes_along_is_any_sequence():
    with pair(accept=memenpsf.Accept(fds=2)) as (one, other), Path(os.devnull).open() as file:
        for fds in (np.array([file.fileno()] * 2), iter([file, file.fileno()])):
            one.xmit(b"x", fds=fds)
            with contextlib.closing(other.recv_message()) as message:
                assert len(message.fds) == 2
        for name in ("fds", "regions"):
            with pytest.raises(memenpsf.BadRecord, match=f"{name} is a sequence, not int"):
                one.xmit(b"x", **{name: 5})
        assert other.recv(timeout=0) is None


def test_pointers_inside_of_structures_are_no_bytes():
    record = np.zeros(1, dtype=[("number", "<u4"), ("thing", "O")])
    with pair() as (one, other):
        with pytest.raises(memenpsf.BadRecord, match="pointers"):
            one.xmit(record)
        one.xmit(np.zeros(2, dtype=[("Owner", "<u4"), ("P", "<u2")]))  # no pointers: names
        assert other.recv() == bytes(12)


def test_tags_and_flags_arrive():
    with pair(memenpsf.Message) as (one, other):
        sent = [memenpsf.Message(b"x" * n, tag=2**32 - 1 - n, flags=n) for n in (0, 1, 255)]
        sent.append(memenpsf.Message(bytes(1 << 20), tag=7, flags=3))  # outside the ring
        one.xmit_many(sent)
        assert other.recv_vectored() == sent


@pytest.mark.parametrize(
    "bad", [b"bytes", memenpsf.Message(b"", tag=-1), memenpsf.Message(b"", flags=256)]
)
def test_a_message_that_is_none_is_a_bad_record(bad):
    with pair(memenpsf.Message) as (one, other):
        with pytest.raises(memenpsf.BadRecord):
            one.xmit(bad)
        one.xmit(memenpsf.Message(b"fine"))
        assert other.recv().data == b"fine"


# -- loans and borrowings ------------------------------------------------------------------------


def test_the_exception_that_ends_a_block_is_not_hidden():
    with pair(np.dtype("<u8")) as (one, other):
        views = []

        def fail(data):
            views.append(data[:1])
            raise KeyError

        with pytest.raises(KeyError), one.loan(2) as loan:
            fail(loan.data)
        views.clear()
        one.xmit_many(np.arange(3, dtype="<u8"))
        assert list(other.recv_vectored()) == [0, 1, 2]


# -- regions and descriptors -----------------------------------------------------------------------


def test_descriptors_arrive_with_their_message_and_no_other():
    before = descriptors()
    with pair(accept=memenpsf.Accept(fds=8)) as (one, other):
        for n in range(40):
            pipes = [os.pipe() for _ in range(n % 5)]
            for number, (_, write) in enumerate(pipes):
                os.write(write, struct.pack("<2I", n, number))
            one.xmit(b"%d" % n, fds=[read for read, _ in pipes])
            for ends in pipes:
                for end in ends:
                    os.close(end)
            message = other.recv_message()
            assert message.record == b"%d" % n
            got = [struct.unpack("<2I", os.read(fd.fileno(), 8)) for fd in message.fds]
            assert got == [(n, number) for number in range(n % 5)]
            assert not any(os.get_inheritable(fd.fileno()) for fd in message.fds)
            message.close()
    assert descriptors() == before


def test_a_region_is_frozen_once_given_and_read_only():
    with pair() as (one, other), MemoryRegion.create(1 << 20) as region:
        region.buffer[:4] = b"data"
        one.xmit(b"see", regions=[region, region])
        assert region.buffer.readonly
        message = other.recv_message()
        for got in message.regions:
            assert bytes(got.buffer[:4]) == b"data"
            assert got.buffer.readonly
        message.close()


def test_what_the_receiver_does_not_accept_is_refused_at_the_sender():
    here, there = socket.socketpair()
    with pair(accept=memenpsf.Accept(fds=1, regions=1)) as (one, other), here, there:
        with MemoryRegion.create(1, mode="shared") as shared, MemoryRegion.create(1) as region:
            closed = fdpass.Fd(os.dup(0))
            closed.close()
            gone = MemoryRegion.create(1)
            gone.close()
            for attachments in (
                {"fds": [0, 1]},
                {"fds": [here]},
                {"fds": [closed]},
                {"fds": range(254)},
                {"regions": [region, region]},
                {"regions": [shared]},
                {"regions": [gone]},
                {"regions": [b"none"]},
            ):
                with pytest.raises(memenpsf.BadRecord):
                    one.xmit(b"no", **attachments)
        one.xmit(b"yes", fds=[0])
        message = other.recv_message()
        assert message.record == b"yes"
        message.close()


def test_a_killed_sender_leaves_whole_messages_with_their_descriptors(program):
    here, there = socket.socketpair()
    with there:
        peer = program(
            "import memenpsf, socket, sys\n"
            "sock = socket.socket(fileno=int(sys.argv[1]))\n"
            "with memenpsf.Interface(sock, bytes) as interface:\n"
            "    for n in range(10_000):\n"
            "        interface.xmit(b'%d' % n, fds=[0] * (n % 4))\n"
            "        if n == 5: print('on', flush=True)\n",
            there.fileno(),
            pass_fds=[there.fileno()],
        )
    with memenpsf.Interface(here, bytes, accept=memenpsf.Accept(fds=3)) as interface:
        before, n = descriptors(), 0
        with contextlib.suppress(memenpsf.PeerDied):
            while message := interface.recv_message():
                assert (message.record, len(message.fds)) == (b"%d" % n, n % 4)
                message.close()
                n += 1
                if n == 200:
                    peer.kill()
        assert n >= 200
        assert descriptors() == before


# -- Trio -------------------------------------------------------------------------------------------


async def test_everything_works_from_trio(tmp_path):
    listener = await memenpsf.trio.listen(tmp_path / "s", bytes, accept=memenpsf.Accept(fds=3))
    got = []

    async def serve():
        async with await listener.accept() as interface:
            for _ in range(100):
                message = await interface.recv_message()
                got.append((message.record, len(message.fds)))
                message.close()
            async with interface.borrow() as messages:
                got.append(bytes(messages[0].data))
            with MemoryRegion.create(10) as region:
                await interface.xmit(bytes(3_000_000), regions=[region])

    async with listener, trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        async with await memenpsf.trio.connect(tmp_path / "s", bytes) as interface:
            for n in range(100):
                await interface.xmit(b"%d" % n, fds=[0] * (n % 4))
            async with interface.loan(5) as loan:
                loan.data[:] = b"12345"
            message = await interface.recv_message()
            assert len(message.record) == 3_000_000
            assert message.regions[0].size == 10
            message.close()
            with pytest.raises(trio.EndOfChannel):
                await interface.recv()
    assert got == [*((b"%d" % n, n % 4) for n in range(100)), b"12345"]
