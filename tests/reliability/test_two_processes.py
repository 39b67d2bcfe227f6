"""Two processes through the sync door and Trio: all comes once, in order, and wakes who waits."""

import contextlib
import json
import os
import socket

import pytest
import trio

import memenpsf
import memenpsf.trio
from tests.kit.sleeping import long_sleeps  # noqa: F401 (the fixture)
from tests.reliability import campaign, traffic

pytestmark = pytest.mark.usefixtures("long_sleeps")

# (record, options, bytes of the largest message, records in CI): 2 million in all.
STREAMS = [
    (40, {"capacity": 1}, 0, 60_000),
    (40, {"capacity": 8, "wait": "sleep"}, 0, 140_000),
    (64, {"capacity": 1024}, 0, 800_000),
    ("bytes", {"capacity": 4096}, 3000, 150_000),
    ("bytes", {"capacity": 65536, "wait": "sleep"}, 200, 250_000),
    ("bytes", {"capacity": 1 << 20}, 2000, 600_000),
]


PEER = """\
import contextlib, json, os, random, socket, sys
import ipcqueue._threads
import memenpsf
from tests.kit import sleeping
from tests.reliability import traffic
ipcqueue._threads.SLICE = sleeping.SLICE
fd, record, options, cpu, task, arguments, seed = json.loads(sys.argv[1])
if cpu is not None:
    os.sched_setaffinity(0, {cpu})
record = bytes if record == "bytes" else record
with memenpsf.Interface(socket.socket(fileno=fd), record, timeout=60, **options) as side:
    getattr(traffic, task)(side, *arguments, random.Random(seed))
    with contextlib.suppress(memenpsf.ReceiverGone):  # once it has taken all
        while len(set(side.indices())) > 1:
            side.await_space()
    assert len(set(side.indices())) == 1
    print(side.statistics().rescues, flush=True)
"""


@contextlib.contextmanager
def _peer(program, record, options, task, arguments, seed, *, cpu=None):
    """Run a task of traffic.py in another process; give the socket to talk to it.

    At the end it must have ended well, and nobody may have been woken by the clock.
    """
    ours, theirs = socket.socketpair()
    for sock in (ours, theirs):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 0)  # as little as there can be
    with theirs:
        command = json.dumps([theirs.fileno(), record, options, cpu, task, arguments, seed])
        peer = program(PEER, command, pass_fds=[theirs.fileno()])
    yield ours
    assert peer.stdout.readline() == "0\n"
    assert peer.wait() == 0


@contextlib.contextmanager
def _on(cpu):
    """Run this thread on one processor."""
    if cpu is None:
        yield
        return
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, everywhere)


@pytest.mark.deadline(campaign.seconds(240))
@pytest.mark.parametrize(("record", "options", "most", "count"), STREAMS)
def test_every_record_comes_once_and_in_order(program, record, options, most, count):
    name = f"stream {record} {options}"
    count = campaign.amount(count)
    kind = bytes if record == "bytes" else record
    seed = campaign.numbers(f"{name} of the peer").random()
    with _peer(program, record, options, "send_all", [count, most], seed) as sock:
        with memenpsf.Interface(sock, kind, timeout=60, **options) as side:
            assert traffic.receive_all(side, campaign.numbers(name)) == count
            assert side.statistics().rescues == 0


# (record, capacity, how we wait, how the peer waits, on one processor, threads, round trips in CI)
WAKES = [
    (16, 1, "sleep", "sleep", True, "", 100_000),
    ("bytes", 4096, "sleep", "sleep", True, "", 40_000),
    (16, 1, "spin", "spin", False, "", 40_000),
    (16, 1, "sleep", "spin", False, "", 20_000),
    (16, 1, "busy", "sleep", False, "", 20_000),
    (16, 1, "sleep", "sleep", True, "_by_threads", 20_000),
    (16, 1, "spin", "spin", False, "_by_threads", 10_000),
    ("bytes", 4096, "sleep", "sleep", False, "_by_threads", 10_000),
]


def _size(record):
    """Return the bytes of a record that fills the smallest ring."""
    return 4096 - 16 if record == "bytes" else record


@pytest.mark.deadline(campaign.seconds(300))
@pytest.mark.parametrize(("record", "capacity", "ours", "theirs", "one", "threads", "trips"), WAKES)
def test_no_wake_up_is_lost(program, record, capacity, ours, theirs, one, threads, trips):
    name = f"wake {record} {ours} {theirs} {threads}"
    trips = campaign.amount(trips)
    kind = bytes if record == "bytes" else record
    cpu = min(os.sched_getaffinity(0)) if one else None
    seed = campaign.numbers(f"{name} of the peer").random()
    options = {"capacity": capacity, "wait": theirs}
    if record == "bytes":
        options["inline"] = capacity
    task = f"answer{threads}"
    hold = ours != "busy"
    with _peer(program, record, options, task, [trips, hold], seed, cpu=cpu) as sock:
        options["wait"] = ours
        with _on(cpu), memenpsf.Interface(sock, kind, timeout=60, **options) as side:
            getattr(traffic, f"ask{threads}")(side, trips, _size(record), campaign.numbers(name))
            assert side.statistics().rescues == 0
            if hold:  # or there was no wake-up that could have been lost
                assert side.statistics().waits >= (1 if threads else trips // traffic.HOLD)


async def _ask(side, trips, size, chance):
    """As traffic.ask(); Trio has no clock behind its sleep, so a lost wake-up would be for ever."""
    done = 0
    while done < trips:
        n = min(chance.randrange(1, traffic.MAX_UNDER_WAY + 1), trips - done)
        for number in range(done, done + n):
            await side.xmit(traffic.made(number, size, chance))
            traffic.pause(chance)
        for number in range(done, done + n):
            traffic.check(number, await side.recv())
            traffic.pause(chance)
        done += n


async def _ask_by_tasks(side, trips, size, chance):
    numbers, back = iter(range(trips)), []

    async def send():
        for number in numbers:
            await side.xmit(traffic.made(number, size, chance))

    async def receive():
        for _ in range(trips // 2):
            data = await side.recv()
            back.append(int.from_bytes(data[:8], "little"))
            traffic.check(back[-1], data)

    async with trio.open_nursery() as nursery:
        for task in (send, send, receive, receive):
            nursery.start_soon(task)
    assert sorted(back) == list(range(trips))


@pytest.mark.deadline(campaign.seconds(300))
@pytest.mark.parametrize(
    ("record", "capacity", "ask", "task", "trips"),
    [
        (16, 1, _ask, "answer", 20_000),
        ("bytes", 4096, _ask, "answer", 10_000),
        (16, 1, _ask_by_tasks, "answer_by_threads", 10_000),
    ],
)
async def test_no_wake_up_of_a_task_is_lost(program, record, capacity, ask, task, trips):
    name = f"wake {record} {task} trio"
    trips = campaign.amount(trips) // 2 * 2
    kind = bytes if record == "bytes" else record
    cpu = min(os.sched_getaffinity(0))
    seed = campaign.numbers(f"{name} of the peer").random()
    options = {"capacity": capacity, "wait": "sleep"}
    if record == "bytes":
        options["inline"] = capacity
    with _peer(program, record, options, task, [trips, True], seed, cpu=cpu) as sock:
        with _on(cpu):
            async with memenpsf.trio.Interface(sock, kind, **options) as side:
                await side.do_handshake()
                await ask(side, trips, _size(record), campaign.numbers(name))
                least = trips // traffic.HOLD if ask is _ask else 1
                assert side.statistics().waits >= least
