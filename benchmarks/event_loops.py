"""memenpsf.asyncio beside what else asyncio has, and zmq.asyncio: how many records a second, how long a round trip.

    python -m benchmarks.event_loops                   # asyncio and uvloop, all sizes
    python -m benchmarks.event_loops --loops asyncio --sizes 64 --seconds 0.5

The peers take turns in one run: each measurement is repeated, and the table has medians, in
microseconds for each record or round trip.

- calls: one process; the records wait already (recv) or there is space (xmit).
- one way: a task sends records to another task, one by one; `many` by recv_vectored.
- round trip: a second process echoes.  The scheduler places both, as a process that may run on one
  processor alone does not look before it sleeps.

asyncio.Queue hands a reference over inside one process; all others copy the bytes.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import itertools
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Any

import memenpsf
import memenpsf.asyncio

from .processes import module_path
from .worker import die_with_parent

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

SIZES = (16, 64, 1024, 16384)
BATCH = 4096  # records of a measurement of calls
REPEATS = 5
CAPACITY = BATCH  # 64 MiB of the largest


class Ours:
    """An Interface over a socket."""

    name = "memenpsf"

    async def open(self, sock: socket.socket, size: int) -> None:
        """Connect."""
        self.end: Any = memenpsf.asyncio.Interface(sock, size, capacity=CAPACITY)
        await self.end.do_handshake()

    async def send(self, data: bytes) -> None:
        """Send a record."""
        await self.end.xmit(data)

    async def receive(self) -> bytes:
        """Receive a record."""
        data: bytes = await self.end.recv()
        return data

    async def close(self) -> None:
        """End it."""
        self.end.close()


class Streams:
    """A StreamReader and a StreamWriter over a socket."""

    name = "streams"

    async def open(self, sock: socket.socket, size: int) -> None:
        """Connect."""
        self.size = size
        self.reader, self.writer = await asyncio.open_unix_connection(sock=sock)

    async def send(self, data: bytes) -> None:
        """Send a record."""
        self.writer.write(data)
        await self.writer.drain()

    async def receive(self) -> bytes:
        """Receive a record."""
        return await self.reader.readexactly(self.size)

    async def close(self) -> None:
        """End it."""
        self.writer.close()


class Raw:
    """loop.sock_sendall() and loop.sock_recv()."""

    name = "sock_recv"

    async def open(self, sock: socket.socket, size: int) -> None:
        """Connect."""
        sock.setblocking(False)
        self.sock, self.size, self.loop = sock, size, asyncio.get_running_loop()

    async def send(self, data: bytes) -> None:
        """Send a record."""
        await self.loop.sock_sendall(self.sock, data)

    async def receive(self) -> bytes:
        """Receive a record."""
        data = await self.loop.sock_recv(self.sock, self.size)
        while len(data) < self.size:
            data += await self.loop.sock_recv(self.sock, self.size - len(data))
        return data

    async def close(self) -> None:
        """End it."""
        self.sock.close()


class Pipes(Streams):
    """A pipe for each direction, by loop.connect_read_pipe() and connect_write_pipe()."""

    name = "pipes"

    async def open(self, sock: socket.socket, size: int) -> None:
        """Make a pipe, and give its other end away."""
        loop = asyncio.get_running_loop()
        reading, writing = os.pipe()
        socket.send_fds(sock, [b"p"], [writing])
        os.close(writing)
        _, (theirs,), _, _ = await asyncio.to_thread(socket.recv_fds, sock, 1, 1)
        sock.close()
        self.size, self.reader = size, asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(self.reader)
        self._reads, _ = await loop.connect_read_pipe(lambda: protocol, os.fdopen(reading, "rb", 0))
        transport, writes = await loop.connect_write_pipe(
            asyncio.streams.FlowControlMixin, os.fdopen(theirs, "wb", 0)
        )
        self.writer = asyncio.StreamWriter(transport, writes, None, loop)

    async def close(self) -> None:
        """End it."""
        await super().close()
        self._reads.close()


class Zmq:
    """zmq.asyncio: a PUSH and a PULL socket over ipc://."""

    name = "zmq.asyncio"

    async def open(self, sock: socket.socket, _: int) -> None:
        """Bind an address of its own, and connect to that of the other side."""
        import zmq.asyncio  # noqa: PLC0415 (not installed everywhere)

        self._directory = tempfile.TemporaryDirectory()
        address = f"ipc://{self._directory.name}/s"
        self._context = zmq.asyncio.Context()
        self.pull = self._context.socket(zmq.PULL)
        self.pull.bind(address)
        sock.send(address.encode())
        theirs = await asyncio.to_thread(sock.recv, 1000)
        sock.close()
        self.push = self._context.socket(zmq.PUSH)
        self.push.connect(theirs.decode())

    async def send(self, data: bytes) -> None:
        """Send a record."""
        await self.push.send(data)

    async def receive(self) -> bytes:
        """Receive a record."""
        data: bytes = await self.pull.recv()
        return data

    async def close(self) -> None:
        """End it."""
        self._context.destroy(linger=0)
        self._directory.cleanup()


class Queue:
    """Two asyncio.Queues inside one process."""

    name = "asyncio.Queue"

    def __init__(self, there: asyncio.Queue[bytes], here: asyncio.Queue[bytes]) -> None:
        self._there, self._here = there, here

    async def send(self, data: bytes) -> None:
        """Send a reference."""
        await self._there.put(data)

    async def receive(self) -> bytes:
        """Receive one."""
        return await self._here.get()

    async def close(self) -> None:
        """Do nothing."""


KINDS: dict[str, Callable[[], Any]] = {kind.name: kind for kind in (Ours, Streams, Raw, Pipes)}
if importlib.util.find_spec("zmq"):
    KINDS[Zmq.name] = Zmq


async def pair(name: str, size: int) -> tuple[Any, Any]:
    """Return two ends in this process."""
    if name == Queue.name:
        there: asyncio.Queue[bytes] = asyncio.Queue(CAPACITY)
        here: asyncio.Queue[bytes] = asyncio.Queue(CAPACITY)
        return Queue(there, here), Queue(here, there)
    ends = KINDS[name](), KINDS[name]()
    sockets = socket.socketpair()
    await asyncio.gather(*(e.open(s, size) for e, s in zip(ends, sockets, strict=True)))
    return ends


async def one_way(name: str, size: int, seconds: float) -> float:
    """Return seconds for each record, from one task to another."""
    one, other = await pair(name, size)
    data, sent = bytes(size), 0
    end = time.perf_counter() + seconds
    start = time.perf_counter()

    async def send() -> None:
        nonlocal sent
        while time.perf_counter() < end:
            for _ in range(256):
                await one.send(data)
            sent += 256

    async def receive() -> None:
        for _ in itertools.count():
            await other.receive()

    receiving = asyncio.ensure_future(receive())
    await send()
    took = time.perf_counter() - start
    receiving.cancel()
    await asyncio.wait([receiving])
    await asyncio.gather(one.close(), other.close())
    return took / sent


async def many(size: int, seconds: float) -> float:
    """Return seconds for each record by xmit_many() and recv_vectored()."""
    one, other = await pair(Ours.name, size)
    records, taken = [bytes(size)] * 256, 0
    start = time.perf_counter()
    while time.perf_counter() < start + seconds:
        await one.end.xmit_many(records)
        taken += len(await other.end.recv_vectored())
    took = time.perf_counter() - start
    await asyncio.gather(one.close(), other.close())
    return took / taken


async def calls(size: int) -> tuple[float, float]:
    """Return seconds for each recv() with records waiting, and for xmit() with space."""
    one, other = await pair(Ours.name, size)
    data = bytes(size)
    start = time.perf_counter()
    for _ in range(BATCH):
        await one.end.xmit(data)
    middle = time.perf_counter()
    for _ in range(BATCH):
        await other.end.recv()
    end = time.perf_counter()
    await asyncio.gather(one.close(), other.close())
    return (end - middle) / BATCH, (middle - start) / BATCH


def sync_calls(size: int) -> tuple[float, float]:
    """Return the same of a plain Interface."""
    one, other = memenpsf.pair(size, capacity=CAPACITY)
    data = bytes(size)
    with one, other:
        start = time.perf_counter()
        for _ in range(BATCH):
            one.xmit(data)
        middle = time.perf_counter()
        for _ in range(BATCH):
            other.recv()
        end = time.perf_counter()
    return (end - middle) / BATCH, (middle - start) / BATCH


async def echo(name: str, sock: socket.socket, size: int) -> None:
    """Send back what comes, until the other side ends."""
    end = KINDS[name]()
    await end.open(sock, size)
    try:
        while data := await end.receive():
            await end.send(data)
    except (memenpsf.EndOfStream, asyncio.IncompleteReadError, ConnectionError):
        pass
    await end.close()


async def round_trips(name: str, loop: str, size: int, seconds: float) -> float:
    """Return seconds for each round trip to another process."""
    here, there = socket.socketpair()
    command = [sys.executable, "-m", "benchmarks.event_loops", "--echo", name, "--loops", loop]
    command += ["--sizes", str(size), "--fd", str(there.fileno()), "--parent", str(os.getpid())]
    environment = {**os.environ, "PYTHONPATH": module_path()}
    with there:
        process = subprocess.Popen(  # noqa: ASYNC220 (before anything is measured)
            command, pass_fds=[there.fileno()], env=environment
        )
    end = KINDS[name]()
    await end.open(here, size)
    data, count = bytes(size), 0
    for _ in range(100):
        await end.send(data)
        await end.receive()
    start = time.perf_counter()
    while time.perf_counter() < start + seconds:
        await end.send(data)
        await end.receive()
        count += 1
    took = time.perf_counter() - start
    await end.close()
    process.kill()
    process.wait()
    return took / count


def new_loop(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    """Return what makes an event loop of this name."""
    if name == "asyncio":
        return asyncio.new_event_loop
    import uvloop  # noqa: PLC0415 (not installed everywhere)

    return uvloop.new_event_loop


def in_loop(loop: str, coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine in a loop of this name."""
    with asyncio.Runner(loop_factory=new_loop(loop)) as runner:
        return runner.run(coroutine)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.event_loops", description=__doc__)
    parser.add_argument("--loops", default="asyncio,uvloop")
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)))
    parser.add_argument("--seconds", type=float, default=0.3)
    for hidden in ("--echo", "--fd", "--parent"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    return parser.parse_args()


def row(what: str, values: dict[str, list[float]]) -> None:
    """Print one line of the table, in microseconds."""
    shown = (f"{name} {statistics.median(each) * 1e6:8.2f}" for name, each in values.items())
    print(f"{what:28} " + "   ".join(shown), flush=True)


def measured(names: list[str], measure: Callable[[str], float]) -> dict[str, list[float]]:
    """Measure each of several in turn, and again."""
    values: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(REPEATS):
        for name in names:
            values[name].append(measure(name))
    return values


def main() -> None:
    """Measure, and print a table."""
    options = arguments()
    if options.echo:
        die_with_parent(int(options.parent))
        sock = socket.socket(fileno=int(options.fd))
        in_loop(options.loops, echo(options.echo, sock, int(options.sizes)))
        return
    for loop in options.loops.split(","):
        for size in map(int, options.sizes.split(",")):
            print(f"-- {loop}, {size} bytes, microseconds")
            both = [in_loop(loop, calls(size)) for _ in range(REPEATS)]
            plain = [sync_calls(size) for _ in range(REPEATS)]
            for what, place in (("recv()", 0), ("xmit()", 1)):
                found = {"awaited": [b[place] for b in both], "plain": [p[place] for p in plain]}
                row(what, found)
            names = [*KINDS, Queue.name]

            def way(name: str, loop: str = loop, size: int = size) -> float:
                taken: float = in_loop(loop, one_way(name, size, options.seconds))
                return taken

            def trip(name: str, loop: str = loop, size: int = size) -> float:
                taken: float = in_loop(loop, round_trips(name, loop, size, options.seconds))
                return taken

            row("one way", measured(names, way))
            row("one way, many", {"memenpsf": [in_loop(loop, many(size, options.seconds))]})
            row("round trip", measured([*KINDS], trip))


if __name__ == "__main__":
    main()
