"""Two unrelated processes: everything arrives, death is told from a goodbye, idling is free."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import trio

import memenpsf
import memenpsf.trio

CAPACITY = 64


@pytest.fixture
def path(tmp_path):
    return tmp_path / "s"


@pytest.fixture
def pool():
    with ThreadPoolExecutor(4) as executor:
        yield executor


def until(condition):
    while not condition():
        time.sleep(0.001)


def numbers(*bounds):
    return [(n,) for n in range(*bounds)]


# -- everything arrives ---------------------------------------------------------------------------

# Each side sends COUNT records and checks as many; a record tells its number twice, so that one
# put together of two would be seen.
RECORDS = """
import sys, threading
COUNT, MASK = 100_000, (1 << 64) - 1
def record(n): return n, n * 0x9E3779B97F4A7C15 & MASK, n & 0xFF
def batches():
    n = 0
    while n < COUNT:
        size = n % 97 + 1
        yield [record(k) for k in range(n, min(n + size, COUNT))]
        n += size
def check(first, got):
    assert got == [record(n) for n in range(first, first + len(got))], (first, got)
    return len(got)
"""

WITH_THREADS = (
    RECORDS
    + """
import memenpsf
def send():
    for batch in batches():
        if len(batch) == 1:
            interface.xmit(batch[0])
        else:
            assert interface.xmit_many(batch) == len(batch)
with ENTER as interface:
    print("connected", flush=True)
    sending = threading.Thread(target=send)
    sending.start()
    got = 0
    while got < COUNT:
        got += check(got, [interface.recv()] if got % 5 else interface.recv_vectored())
    sending.join()
    rescues = interface.statistics().rescues
    if LAST:
        interface.recv_ctrl_msg(timeout=None)
    else:
        interface.send_ctrl_msg(b"\\x80!")
        assert list(interface) == []
print("received", got, "rescued", rescues, flush=True)
"""
)

WITH_TRIO = (
    RECORDS
    + """
import memenpsf.trio, trio
async def send(interface):
    for batch in batches():
        if len(batch) == 1:
            await interface.xmit(batch[0])
        else:
            assert await interface.xmit_many(batch) == len(batch)
async def main():
    async with ENTER as interface:
        print("connected", flush=True)
        got = 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, interface)
            while got < COUNT:
                got += check(
                    got, [await interface.recv()] if got % 5 else await interface.recv_vectored()
                )
        rescues = interface.statistics().rescues
        if LAST:
            await interface.recv_ctrl_msg(timeout=None)
        else:
            await interface.send_ctrl_msg(b"\\x80!")
            assert [record async for record in interface] == []
    print("received", got, "rescued", rescues, flush=True)
trio.run(main)
"""
)

SPEC = f'"<QQB", capacity={CAPACITY}'
SIDES = {
    "threads": (
        WITH_THREADS.replace(
            "ENTER", f"memenpsf.listen(sys.argv[1], {SPEC}) as listener, listener.accept()"
        ),
        WITH_THREADS.replace("ENTER", f"memenpsf.connect(sys.argv[1], {SPEC})"),
    ),
    "trio": (
        WITH_TRIO.replace(
            "ENTER",
            f"await memenpsf.trio.listen(sys.argv[1], {SPEC}) as listener, await listener.accept()",
        ),
        WITH_TRIO.replace("ENTER", f"await memenpsf.trio.connect(sys.argv[1], {SPEC})"),
    ),
}


@pytest.mark.parametrize(
    ("server", "client"), [("threads", "trio"), ("trio", "threads"), ("trio", "trio")]
)
def test_a_hundred_thousand_records_each_way_at_once_all_arrive(program, path, server, client):
    serving = program("LAST = True\n" + SIDES[server][0], path)
    until(path.is_socket)
    connecting = program("LAST = False\n" + SIDES[client][1], path)
    for process in (serving, connecting):
        output = process.communicate()[0]
        assert output == "connected\nreceived 100000 rescued 0\n"
        assert process.returncode == 0


# -- death and goodbye ----------------------------------------------------------------------------

# Reports each record after it was sent, and nothing else; reads nothing.
TALKER = """
import memenpsf, os, socket, sys
interface = memenpsf.Interface(socket.socket(fileno=int(sys.argv[1])), "<Q", capacity=64)
limit, n = int(sys.argv[2]), 0
while n < limit:
    interface.xmit((n,))
    os.write(1, b"%d\\n" % n)
    n += 1
os.write(1, b"silent\\n")
sys.stdin.readline()
interface.close()
os.write(1, b"closed\\n")
"""


class Survivor:
    """A side of this process, for threads or for Trio, behind the same blocking verbs."""

    def __init__(self, door, sock):
        self._trio = door == "trio"
        if not self._trio:
            self._interface = memenpsf.Interface(sock, "<Q", capacity=CAPACITY)
            return
        self._ready, self._interface = [], None
        self._pool = ThreadPoolExecutor(1)
        self._running = self._pool.submit(trio.run, self._main, sock)
        until(lambda: self._ready or self._running.done())

    async def _main(self, sock):
        async with memenpsf.trio.Interface(sock, "<Q", capacity=CAPACITY) as interface:
            await interface.do_handshake()
            self._interface = interface
            self._over = trio.Event()
            self._ready.append(trio.lowlevel.current_trio_token())
            await self._over.wait()

    def call(self, verb, *args):
        function = getattr(self._interface, verb)
        if not self._trio:
            return function(*args)
        return trio.from_thread.run(function, *args, trio_token=self._ready[0])

    def statistics(self):
        return self._interface.statistics()

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        if self._trio:
            with self._pool:
                self._ready[0].run_sync_soon(self._over.set)
                self._running.result()
        else:
            self._interface.close()


@contextlib.contextmanager
def talker_and_survivor(program, door, limit):
    here, there = socket.socketpair()
    with there:
        talker = program(TALKER, there.fileno(), limit, pass_fds=[there.fileno()])
    with Survivor(door, here) as survivor:
        yield talker, survivor


def receive_to_the_end(survivor):
    got = []
    try:
        while True:
            got.append(survivor.call("recv"))
            got += survivor.call("recv_vectored", 5, 0)
    except memenpsf.QueueError as error:
        return got, error


doors = pytest.mark.parametrize("door", ["threads", "trio"])


@doors
@pytest.mark.parametrize("before", [0, 1, 2000])
def test_a_peer_killed_in_the_middle_leaves_a_prefix_with_all_it_had_reported(
    program, door, before
):
    with talker_and_survivor(program, door, 1 << 60) as (talker, survivor):
        got = [survivor.call("recv") for _ in range(before)]
        talker.send_signal(signal.SIGKILL)
        talker.wait()
        rest, error = receive_to_the_end(survivor)
        got += rest
        reported = [line for line in talker.stdout.read().split("\n") if line]
        assert isinstance(error, memenpsf.PeerDied)
        assert isinstance(error, trio.BrokenResourceError) == (door == "trio")
        assert got == numbers(len(got))
        assert len(reported) <= len(got) <= len(reported) + 1
        assert reported == [str(n) for n in range(len(reported))]
        for verb, *args in (("recv",), ("recv_vectored",), ("xmit", (1,)), ("recv_ctrl_msg", None)):
            with pytest.raises(memenpsf.PeerDied):
                survivor.call(verb, *args)


@doors
@pytest.mark.parametrize("verb", ["recv", "recv_vectored", "recv_ctrl_msg", "xmit", "xmit_many"])
def test_the_death_of_the_peer_ends_every_wait(program, pool, door, verb):
    argument = {"recv_ctrl_msg": [None], "xmit": [(9,)], "xmit_many": [[(9,), (10,)]]}
    with talker_and_survivor(program, door, 3) as (talker, survivor):
        while talker.stdout.readline() != "silent\n":
            pass
        if verb.startswith("xmit"):
            assert survivor.call("xmit_many", numbers(CAPACITY)) == CAPACITY
        elif verb.startswith("recv_vec") or verb == "recv":
            assert survivor.call("recv_vectored") == numbers(3)
        waiting = pool.submit(survivor.call, verb, *argument.get(verb, []))
        if verb == "recv_ctrl_msg":
            until(lambda: any(survivor._interface._endpoint.waiters.counts))
        else:
            until(lambda: survivor.statistics().waits > 0)
        assert not waiting.done()
        talker.send_signal(signal.SIGKILL)
        assert isinstance(waiting.exception(), memenpsf.PeerDied)
        got, error = receive_to_the_end(survivor)
        assert got == ([] if verb.startswith("recv") and verb != "recv_ctrl_msg" else numbers(3))
        assert isinstance(error, memenpsf.PeerDied)


@doors
def test_a_goodbye_is_told_from_a_death(program, door):
    with talker_and_survivor(program, door, 50) as (talker, survivor):
        while talker.stdout.readline() != "silent\n":
            pass
        talker.stdin.write("\n")
        talker.stdin.flush()
        assert talker.stdout.readline() == "closed\n"
        got, error = receive_to_the_end(survivor)
        assert got == numbers(50)
        assert isinstance(error, memenpsf.EndOfStream)
        assert isinstance(error, trio.EndOfChannel) == (door == "trio")
        with pytest.raises(memenpsf.ReceiverGone):
            survivor.call("xmit", (1,))


def test_a_survivor_that_only_sends_notices_the_death_too(program):
    with talker_and_survivor(program, "threads", 0) as (talker, survivor):
        assert talker.stdout.readline() == "silent\n"
        talker.send_signal(signal.SIGKILL)
        talker.wait()
        with pytest.raises(memenpsf.PeerDied):
            survivor.call("xmit_many", numbers(CAPACITY + 1))  # more than there is room for


def test_a_stopped_peer_is_not_a_dead_one(program, pool):
    with talker_and_survivor(program, "threads", 10) as (talker, survivor):
        while talker.stdout.readline() != "silent\n":
            pass
        talker.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, talker.pid, os.WSTOPPED)
        assert survivor.call("recv_vectored") == numbers(10)
        assert survivor.call("recv", 0.01) is None
        assert survivor.call("xmit_many", numbers(100), 0.01) == CAPACITY
        with pytest.raises(memenpsf.Full):
            survivor.call("xmit", (1,), 0)
        talker.send_signal(signal.SIGCONT)
        talker.stdin.write("\n")
        talker.stdin.flush()
        with pytest.raises(memenpsf.EndOfStream):
            survivor.call("recv")


# Cancels itself all the time, in receiving and in sending; says what it believes to have sent.
CANCELLER = """
import memenpsf.trio, random, sys, trio
async def main():
    rng, got, echoed, cancelled = random.Random(3), [], [], 0
    def some_time():
        scope = trio.move_on_after(rng.choice([0, 1e-5, 1e-4, 1e-3]))
        if rng.random() < 0.1:
            scope.cancel()
        return scope
    async with await memenpsf.trio.connect(sys.argv[1], "<Q", capacity=8) as interface:
        while len(got) < int(sys.argv[2]):
            with some_time() as scope:
                got.append(await interface.recv())
            cancelled += scope.cancelled_caught
            if got and not scope.cancelled_caught:
                with some_time():
                    await interface.xmit(got[-1])
                    echoed += got[-1]
    assert cancelled
    assert got == [(n,) for n in range(len(got))]
    print(*echoed)
trio.run(main)
"""


def test_a_process_that_cancels_all_the_time_gets_and_sends_everything_once(program, path, pool):
    count = 6000
    with memenpsf.listen(path, "<Q", capacity=8) as listener:
        client = program(CANCELLER, path, count)
        with listener.accept() as interface:
            echoed = pool.submit(list, interface)
            for n in range(0, count, 10):
                interface.xmit_many(numbers(n, n + 10))
            assert [str(n) for (n,) in echoed.result()] == client.communicate()[0].split()
        assert client.returncode == 0


# -- idling ---------------------------------------------------------------------------------------

IDLERS = {
    "a thread that receives": """
interface = memenpsf.connect(sys.argv[1], "<Q", capacity=1)
print("ready", flush=True)
interface.recv()
""",
    "a thread that sends": """
interface = memenpsf.connect(sys.argv[1], "<Q", capacity=1)
interface.xmit((1,))
print("ready", flush=True)
interface.xmit((2,))
""",
    "a listener": """
listener = memenpsf.listen(sys.argv[1] + "2", "<Q")
memenpsf.connect(sys.argv[1], "<Q", capacity=1).close()
print("ready", flush=True)
listener.accept()
""",
    "a run loop": """
import queue, socket
sock = socket.socket(socket.AF_UNIX)
sock.connect(sys.argv[1])
print("ready", flush=True)
memenpsf.run("idle", 1, 0, sock, queue.Queue(), queue.Queue(), "<Q")
""",
    "tasks of Trio": """
import memenpsf.trio, trio
async def main():
    interface = await memenpsf.trio.connect(sys.argv[1], "<Q", capacity=1)
    await interface.xmit((1,))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(interface.recv)
        nursery.start_soon(interface.recv)
        nursery.start_soon(interface.recv_ctrl_msg, None)
        nursery.start_soon(interface.xmit, (2,))
        print("ready", flush=True)
trio.run(main)
""",
    "a run loop of Trio": """
import memenpsf.trio, socket, trio
async def main():
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(sys.argv[1])
    one, two = trio.open_memory_channel(0)
    print("ready", flush=True)
    await memenpsf.trio.run("idle", 1, 0, sock, two, one, "<Q")
trio.run(main)
""",
    "serving with Trio": """
import memenpsf.trio, trio
async def main():
    async with trio.open_nursery() as nursery:
        await nursery.start(memenpsf.trio.serve, handle, sys.argv[1] + "2", "<Q")
        await (await memenpsf.trio.connect(sys.argv[1], "<Q")).aclose()
        print("ready", flush=True)
async def handle(interface):
    await interface.recv()
trio.run(main)
""",
}


def ticks_of(pid):
    """Processor time of another process, in clock ticks."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


@pytest.mark.parametrize("idler", IDLERS)
def test_what_waits_needs_no_processor(program, path, idler):
    with memenpsf.listen(path, "<Q", capacity=1) as listener:
        process = program("import memenpsf, sys\n" + IDLERS[idler], path)
        with listener.accept():
            assert process.stdout.readline() == "ready\n"
            tick = 1 / os.sysconf("SC_CLK_TCK")
            # A measure of time that a busy machine cannot shorten: what we have worked ourselves.
            # The first stretch is for what the other does before it waits.
            work(0.05)
            before = ticks_of(process.pid)
            work(0.4)
            used = (ticks_of(process.pid) - before) * tick
            assert process.poll() is None
            assert used <= 0.1, f"{used} s of processor time to do nothing for 0.4 s of ours"


def work(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_an_idle_pair_of_processes_rings_no_bells(program, path, monkeypatch):
    monkeypatch.setattr("ipcqueue._threads.SLICE", 3600.0)
    with memenpsf.listen(path, "<Q", capacity=1) as listener:
        process = program("import memenpsf, sys\n" + IDLERS["tasks of Trio"], path)
        with ThreadPoolExecutor(1) as pool, listener.accept() as interface:
            assert process.stdout.readline() == "ready\n"
            assert interface.recv() == (1,)
            assert interface.recv() == (2,)
            waiting = pool.submit(interface.recv)
            until(lambda: interface.statistics().waits > 0)
            before = interface.statistics()
            work(0.2)
            after = interface.statistics()
            assert after.waits - before.waits <= 2  # a late doorbell may have woken it
            assert after.doorbells == before.doorbells
            process.kill()
            assert isinstance(waiting.exception(), memenpsf.PeerDied)


# -- what a connection costs ----------------------------------------------------------------------

COSTS = """
import gc, memenpsf, os, sys
from pathlib import Path
def cost():
    gc.collect()
    maps = Path("/proc/self/maps").read_text().count("/memfd:memenpsf")
    return len(os.listdir("/proc/self/fd")), maps
"""

CYCLER = (
    COSTS
    + """
for _ in range(3):
    memenpsf.connect(sys.argv[1], "<Q").close()
before = cost()
with memenpsf.connect(sys.argv[1], "<Q") as interface:
    during = cost()
    assert interface.recv() == (1,)
print(during[0] - before[0], during[1] - before[1])
for n in range(300):
    with memenpsf.connect(sys.argv[1], "<Q", capacity=4) as interface:
        assert interface.recv() == (1,)
        if n % 3 == 0:
            interface.xmit((2,))
after = cost()
print(after[0] - before[0], after[1] - before[1])
"""
)


def test_a_connection_costs_four_descriptors_and_300_of_them_leave_nothing(program, path):
    def cost():
        maps = Path("/proc/self/maps").read_text().count("/memfd:memenpsf")
        return len(list(Path("/proc/self/fd").iterdir())), maps

    with memenpsf.listen(path, "<Q", capacity=4) as listener:
        client = program(CYCLER, path)
        before = cost()  # and not later, as each accept may take in the next client, too
        for _ in range(3):
            listener.accept().close()
        for n in range(301):
            with listener.accept() as interface:
                if n == 0:
                    assert (cost()[0] - before[0], cost()[1] - before[1]) == (4, 2)
                interface.xmit((1,))
                assert list(interface) in ([], [(2,)])
        assert cost() == before
        assert client.communicate()[0] == "4 2\n0 0\n"
        assert client.returncode == 0
