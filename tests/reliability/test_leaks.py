"""Nothing is left of a connection, whatever way it ended: counted exactly, after 10,000 of them."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import signal
import sys
import threading
import time
import warnings
from collections import Counter
from pathlib import Path

import pytest

import fdpass
import memenpsf
import memenpsf.trio
from memenpsf import _pending
from memenpsf._pending import PendingClients
from tests.kit.clients import Client, connected, room_for_descriptors
from tests.kit.settling import settle
from tests.reliability import campaign

HELLO = b"\x10\x01"
CYCLES = campaign.amount(10_000)  # at each door


# -- two doors to the same listener ---------------------------------------------------------------


class Threads:
    """The door for plain threads, in calls that do not wait."""

    def __init__(self, path, **options):
        self._listener = memenpsf.listen(path, bytes, capacity=4096, **options)
        self.pending = self._listener._pending

    async def accept(self):
        return self._listener.accept(timeout=0)

    async def nobody(self):
        with pytest.raises(TimeoutError):
            self._listener.accept(timeout=0)

    async def recv(self, interface):
        return interface.recv()

    async def receive(self, interface):
        return interface.recv_message()

    async def xmit(self, interface, *record, **attached):
        interface.xmit(*record, **attached)

    async def close(self):
        self._listener.close()


class Tasks:
    """The door for Trio."""

    def __init__(self, path, **options):
        self._listener = memenpsf.trio.Listener(
            PendingClients(path, bytes, capacity=4096, **options)
        )
        self.pending = self._listener._pending

    async def accept(self):
        return await self._listener.accept()

    async def nobody(self):
        assert self.pending.turn() is None

    async def recv(self, interface):
        return await interface.recv()

    async def receive(self, interface):
        return await interface.recv_message()

    async def xmit(self, interface, *record, **attached):
        await interface.xmit(*record, **attached)

    async def close(self):
        await self._listener.aclose()


# -- ways of a connection -------------------------------------------------------------------------


class Ways:
    """Each method is one cycle: a client comes, and all ends in its own way."""

    def __init__(self, kind, path, template, rng):
        self._kind, self._path, self._template, self._rng = kind, path, template, rng
        self.door = kind(path)

    def client(self, **options):
        return Client(self._path, bytes, capacity=4096, **options)

    async def refused(self, *errors):
        with pytest.raises(errors):
            await self.door.accept()

    async def orderly(self):
        with self.client().say_hello() as client:
            accepted = await self.door.accept()
            mine = client.finish()
            await self.door.xmit(accepted, b"a")
            mine.xmit(b"b" * self._rng.randrange(3000))
            assert mine.recv() == b"a"
            first, second = self._rng.sample([mine.close, accepted.close], 2)
            first()
            second()

    async def drained_after_the_end(self):
        with self.client().say_hello() as client:
            accepted = await self.door.accept()
            mine = client.finish()
            mine.xmit(b"last")
            mine.close()
            assert await self.door.recv(accepted) == b"last"
            with pytest.raises(memenpsf.EndOfStream):
                await self.door.recv(accepted)
            accepted.close()

    async def forgotten(self):
        with self.client().say_hello() as client, warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            accepted = await self.door.accept()
            client.finish().xmit(b"unread")
            del accepted

    async def outside_the_ring(self):
        with self.client().say_hello() as client:
            accepted = await self.door.accept()
            mine = client.finish()
            mine.xmit(bytes(100_000))
            if self._rng.random() < 0.5:
                assert len(await self.door.recv(accepted)) == 100_000
            accepted.close()

    async def attachments_that_nobody_took(self):
        with self.client().say_hello() as client:
            accepted = await self.door.accept()
            mine = client.finish()
            with fdpass.MemoryRegion.create(4096) as region:
                region.buffer[:2] = b"hi"
                region.freeze()
                mine.xmit(b"x", regions=[region])
                mine.xmit(b"y", regions=[region])
            for _ in range(self._rng.randrange(3)):
                accepted._endpoint.read_if_free()  # reads what goes with one of them
            if self._rng.random() < 0.5:
                got = await self.door.receive(accepted)
                for each in got.regions:
                    each.close()
            accepted.close()

    async def killed(self):
        stage = self._rng.randrange(KILLED_STAGES)
        self._template.run(stage)
        if stage < FULL_HELLO:
            await self.door.nobody()
            return
        accepted = await self.door.accept()
        if self._rng.random() < 0.5:
            with pytest.raises(memenpsf.PeerDied):
                while True:
                    await self.door.recv(accepted)
        accepted.close()

    async def left_after_half_a_hello(self):
        with connected(self._path) as sock:
            fd = os.memfd_create("half", os.MFD_ALLOW_SEALING)
            fdpass.send_fds(sock, [fd], HELLO[:1])
            os.close(fd)
            await self.door.nobody()
            assert len(self.door.pending.handshakes) == 1
        await self.door.nobody()
        assert self.door.pending.handshakes == []

    async def another_record(self):
        with Client(self._path, "<Q", capacity=1).say_hello():
            await self.refused(memenpsf.RecordRefused)

    async def wrong_descriptors(self):
        with connected(self._path) as sock, contextlib.ExitStack() as stack:
            kinds = [
                lambda: os.memfd_create("x", os.MFD_ALLOW_SEALING),
                lambda: os.open("/dev/null", os.O_RDONLY),
                lambda: os.open("/", os.O_RDONLY),
                lambda: os.eventfd(0),
                lambda: os.pidfd_open(os.getpid()),
                lambda: os.dup(sock.fileno()),
            ]
            fds = [self._rng.choice(kinds)() for _ in range(self._rng.choice([1, 1, 2, 5]))]
            for fd in fds:
                stack.callback(os.close, fd)
            fdpass.send_fds(sock, fds, HELLO)
            await self.refused(memenpsf.SealsRefused, memenpsf.CorruptPeer)

    async def nonsense(self):
        with connected(self._path) as sock:
            sock.sendall(self._rng.randbytes(self._rng.randrange(2, 100)))
            await self.refused(memenpsf.QueueError)

    async def nonsense_once_introduced(self):
        with self.client().say_hello() as client:
            accepted = await self.door.accept()
            mine = client.finish()
            fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(self._rng.randrange(3))]
            try:
                if fds:
                    fdpass.send_fds(client.opening.sock, fds, b"\x01\x00")
                else:
                    client.opening.sock.sendall(b"\x63\x00")
            finally:
                for fd in fds:
                    os.close(fd)
            with pytest.raises(memenpsf.CorruptPeer):
                await self.door.recv(accepted)
            accepted.close()
            mine.close()

    async def over_the_limit(self):
        path = self._path.with_name("limited")
        door = self._kind(path, quota=memenpsf.Quota(connections=1))
        with Client(path, bytes, capacity=4096).say_hello():
            accepted = await door.accept()
            with connected(path) as one_too_many:
                with pytest.raises(memenpsf.LimitRefused):
                    await door.accept()
                assert one_too_many.recv(10) == b"\x64\x08"
            accepted.close()
        await door.close()

    async def over_the_limit_of_descriptors(self):
        self.door.pending._resume = None  # or this one would wait because of the one before
        with self.client().say_hello(), room_for_descriptors(self._rng.randrange(3)):
            with pytest.raises(OSError, match="Too many open files"):
                await self.door.accept()
        await self.door.nobody()

    async def too_late(self):
        path = self._path.with_name("impatient")
        door = self._kind(path, timeout=0)
        with connected(path), pytest.raises(memenpsf.HandshakeTimeout):
            await door.accept()
        await door.close()

    async def the_listener_closed(self):
        path = self._path.with_name("closed")
        door = self._kind(path, quota=memenpsf.Quota(pending=2))
        with contextlib.ExitStack() as stack:
            for _ in range(3):  # the last one waits for a place
                stack.enter_context(connected(path))
            assert door.pending.turn() is None
            with Client(path, bytes, capacity=4096).say_hello():
                await door.close()
        assert not path.exists()


# -- clients that are killed ----------------------------------------------------------------------

# What a client does before it is killed; from FULL_HELLO on it gets in.
KILLED_STAGES, FULL_HELLO = 7, 3
TEMPLATE = """
import os, signal, socket, sys
import fdpass, memenpsf
from tests.kit.clients import Client, connected, room_for_descriptors

path = sys.argv[1]

def live(stage):
    if stage == 0:
        held = connected(path)
    elif stage == 1:
        held = Client(path, bytes, capacity=4096)
    elif stage == 2:
        held = connected(path)
        fdpass.send_fds(held, [os.memfd_create("half", 0)], b"\\x10")
    else:
        held = Client(path, bytes, capacity=4096).say_hello()
        # The server has not answered, so this side is not open yet; but it has got in.
        if stage == 4:
            held.opening.sock.sendall(b"\\x01\\x00\\x02")
        elif stage == 5:
            held.opening.sock.sendall(b"\\x80\\x00" * 50)
        elif stage == 6:
            held.opening.sock.shutdown(socket.SHUT_WR)
    os.kill(os.getpid(), signal.SIGKILL)

for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        try:
            live(int(line))
        finally:
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


class Template:
    """A warm interpreter that forks a client, which is killed at the end of its stage."""

    def __init__(self, process):
        self._process = process

    def run(self, stage):
        self._process.stdin.write(f"{stage}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == f"{-signal.SIGKILL}\n"


# -- counting -------------------------------------------------------------------------------------


def state(folder):
    """What this process has: exact, but for memory, which blocks() tells about."""
    gc.collect()
    settle()
    # One that has closed something is no more, but the kernel may not be done with it; and there is
    # one of faulthandler, which Python does not count.
    tasks, deadline = Path("/proc/self/task"), time.monotonic() + 10
    while len(list(tasks.iterdir())) > threading.active_count() + 1 and time.monotonic() < deadline:
        time.sleep(0.001)
    links = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            links.append(re.sub(r"\d+", "N", str(entry.readlink())))
    maps = Path("/proc/self/maps").read_text().splitlines()
    return {
        "descriptors": Counter(links),
        "shared mappings": sum(line.split()[1].endswith("s") for line in maps),
        "memory files": sum("/memfd:" in line for line in maps),
        "threads": threading.active_count(),
        "threads of the system": len(list(tasks.iterdir())),
        "children": Path(f"/proc/self/task/{os.getpid()}/children").read_text().split(),
        "files": sorted(path.name for path in folder.iterdir()),
    }


def blocks():
    gc.collect()
    return sys.getallocatedblocks()


# Far less than one for each cycle of a half; caches and the like take some.
FEW_BLOCKS = 500


@pytest.mark.deadline(campaign.seconds(300))
@pytest.mark.parametrize("door", [Threads, Tasks])
async def test_nothing_is_left_of_thousands_of_connections(door, tmp_path, program, monkeypatch):
    # No user rests after clients that came to nothing: the next one is accepted at once.
    monkeypatch.setattr(_pending, "COOLDOWN", 0.0)
    monkeypatch.setattr(_pending, "PAUSE", 0.0)
    rng = campaign.numbers(f"leaks {door.__name__}")
    path = tmp_path / "s"
    template = Template(program(TEMPLATE, path))
    ways = Ways(door, path, template, rng)
    kinds = [getattr(ways, name) for name in vars(Ways) if name not in HELPERS]
    try:
        before, middle = await cycles(ways, kinds, rng, tmp_path)
        grown = blocks() - middle
        assert state(tmp_path) == before
        assert not ways.door.pending.quota._shares
        assert CYCLES < 1000 or grown < FEW_BLOCKS, f"MEMENPSF_SEED={campaign.SEED}"
    finally:
        await ways.door.close()
    assert list(tmp_path.iterdir()) == []


HELPERS = {"__init__", "__module__", "__doc__", "__dict__", "__weakref__", "client", "refused"}


async def cycles(ways, kinds, rng, folder):
    """Go through them; return the state before all, and how much memory there was in the middle."""
    for kind in kinds * 3:  # to load what is loaded on first use
        await kind()
    before, middle = state(folder), blocks()
    for cycle in range(CYCLES):
        kind = rng.choice(kinds)
        try:
            await kind()
        except BaseException as error:
            error.add_note(f"MEMENPSF_SEED={campaign.SEED}, cycle {cycle}: {kind.__name__}")
            raise
        if cycle == CYCLES // 2:
            middle = blocks()
    return before, middle
