"""One server with a thousand clients: ReceiverSet and serve() beside servers over Unix sockets.

    python -m benchmarks.many_clients                     # all kinds, some five minutes
    python -m benchmarks.many_clients --kinds threads --clients 200 --seconds 0.5 --turns 1

Each connection takes five descriptors at either side: more than the usual limit of 1,024 allows for a
thousand clients, so the limit is raised as far as it may be.  With the limit as it is, a server has
170 connections (Quota), and refuses the next client by LimitRefused.

Three processes: the server on one processor; on another a process that has all clients, and one
that has the single client that trickles.  Records are of 64 bytes.  The kinds take turns; shown are
medians.  Every kind makes a Python object of each record.

- flood: so many of the clients send as fast as the server takes it, the others are silent.
  Records a second at the server.
- 100/s each: every client sends a record each 10 ms.  Processor time of the server for each record;
  all must arrive.
- idle: no client sends anything.  Percent of a processor.
- trickle: a client sends a record each 2 ms beside ten that flood.  Median and 99th percentile of
  the time from before it sends until the server has it.  The servers over sockets read at most
  as much from one client at once as those of memenpsf.

The file is long because it is all three programs: a server of each kind, the clients, and who
measures.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

import memenpsf
import memenpsf.asyncio
import memenpsf.trio

from .processes import module_path
from .worker import die_with_parent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

SIZE = 64
BATCH = 1024  # records of one client at once
CHUNK = BATCH * SIZE
BURST = 64  # records that a client sends in a call
QUOTA = memenpsf.Quota(connections=4096, bytes=1 << 40, descriptors=1 << 20)
CAPACITY = 4096
PER_CLIENT = 5  # descriptors of a connection, at either side
SILENT, TIMED = b"s" * SIZE, b"t" * SIZE  # what a client sends first says of which kind it is
FLOODS = (1, 10, 100)


# -- what servers do with records -----------------------------------------------------------------


class Tally:
    """What a server has received."""

    def __init__(self) -> None:
        self.records = 0
        self.latencies: list[int] = []

    def report(self) -> dict[str, Any]:
        """Return all that came since the last report, and the processor time until now."""
        latencies, self.latencies = self.latencies, []
        return {"records": self.records, "cpu": time.process_time(), "latencies": latencies}


class Client:
    """A client as a server sees it."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._timed: bool | None = None
        self._rest = b""

    def take(self, records: Iterable[bytes]) -> None:
        """Count records."""
        records = list(records)
        self._tally.records += len(records)
        if self._timed is None:
            self._timed = records.pop(0) == TIMED
        if self._timed:
            now = time.monotonic_ns()
            sent = (int.from_bytes(record[:8], "little") for record in records)
            self._tally.latencies += [now - each for each in sent]

    def feed(self, data: bytes) -> None:
        """Count the records in a piece of a stream."""
        if self._rest:
            data = self._rest + data
        whole = len(data) - len(data) % SIZE
        self._rest = data[whole:]
        if whole:
            self.take([data[start : start + SIZE] for start in range(0, whole, SIZE)])


# -- servers ---------------------------------------------------------------------------------------


def receiver_set(address: str, tally: Tally, ready: Callable[[], None]) -> None:
    """Serve by memenpsf.ReceiverSet, with plain threads."""
    clients: dict[Any, Client] = defaultdict(lambda: Client(tally))
    with (
        memenpsf.listen(address, SIZE, quota=QUOTA, capacity=1) as listener,
        memenpsf.ReceiverSet() as readers,
    ):
        readers.add(listener, clients=True)
        ready()
        while True:
            for source, records in readers.recv_vectored(BATCH):
                if source is not listener and not isinstance(records[0], Exception):
                    clients[source].take(records)


def epoll(address: str, tally: Tally, ready: Callable[[], None]) -> None:
    """Serve sockets by select.epoll, with plain threads."""
    import select  # noqa: PLC0415 (of one kind alone)

    poll, clients = select.epoll(), {}
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address)
        listening.listen(4096)
        poll.register(listening, select.EPOLLIN)
        ready()
        while True:
            for fd, _ in poll.poll():
                if fd == listening.fileno():
                    sock, _ = listening.accept()
                    clients[sock.fileno()] = sock, Client(tally)
                    poll.register(sock, select.EPOLLIN)
                    continue
                sock, client = clients[fd]
                if data := sock.recv(CHUNK):
                    client.feed(data)
                else:
                    sock.close()


def trio_serve(address: str, tally: Tally, ready: Callable[[], None]) -> None:
    """Serve by memenpsf.trio.serve."""

    async def handle(interface: Any) -> None:
        client = Client(tally)
        while True:
            client.take(await interface.recv_vectored(BATCH))

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            serving = functools.partial(memenpsf.trio.serve, quota=QUOTA, capacity=1)
            await nursery.start(serving, handle, address, SIZE)
            ready()

    trio.run(main)


def trio_sockets(address: str, tally: Tally, ready: Callable[[], None]) -> None:
    """Serve sockets by trio.serve_listeners."""

    async def handle(stream: Any) -> None:
        client = Client(tally)
        while data := await stream.receive_some(CHUNK):
            client.feed(data)

    async def main() -> None:
        with trio.socket.socket(socket.AF_UNIX) as listening:
            await listening.bind(address)
            listening.listen(4096)
            ready()
            await trio.serve_listeners(handle, [trio.SocketListener(listening)])

    trio.run(main)


def asyncio_serve(address: str, tally: Tally, ready: Callable[[], None]) -> None:
    """Serve by memenpsf.asyncio.serve."""

    async def handle(interface: Any) -> None:
        client = Client(tally)
        while True:
            client.take(await interface.recv_vectored(BATCH))

    asyncio.run(
        memenpsf.asyncio.serve(
            handle, address, SIZE, started=lambda _: ready(), quota=QUOTA, capacity=1
        )
    )


def asyncio_set(address: str, tally: Tally, ready: Callable[[], None]) -> None:
    """Serve by memenpsf.asyncio.ReceiverSet."""

    async def main() -> None:
        clients: dict[Any, Client] = defaultdict(lambda: Client(tally))
        async with (
            await memenpsf.asyncio.listen(address, SIZE, quota=QUOTA, capacity=1) as listener,
            memenpsf.asyncio.ReceiverSet() as readers,
        ):
            readers.add(listener, clients=True)
            ready()
            while True:
                for source, records in await readers.recv_vectored(BATCH):
                    if source is not listener and not isinstance(records[0], Exception):
                        clients[source].take(records)

    asyncio.run(main())


def asyncio_streams(address: str, tally: Tally, ready: Callable[[], None]) -> None:
    """Serve sockets by asyncio.start_unix_server."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = Client(tally)
        while data := await reader.read(CHUNK):
            client.feed(data)
        writer.close()

    async def main() -> None:
        server = await asyncio.start_unix_server(handle, address, limit=CHUNK, backlog=4096)
        ready()
        await server.serve_forever()

    asyncio.run(main())


SERVERS: dict[str, dict[str, Callable[[str, Tally, Callable[[], None]], None]]] = {
    "threads": {"ReceiverSet": receiver_set, "epoll, sockets": epoll},
    "trio": {"trio.serve": trio_serve, "trio, sockets": trio_sockets},
    "asyncio": {
        "asyncio.serve": asyncio_serve,
        "asyncio.ReceiverSet": asyncio_set,
        "asyncio streams": asyncio_streams,
    },
}
ALL = {name: serve for kind in SERVERS.values() for name, serve in kind.items()}


def run_server(name: str, address: str) -> None:
    """Serve, and report whenever a line is asked for."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    tally = Tally()

    def reports() -> None:
        for _ in sys.stdin:
            say(tally.report())
        os._exit(0)

    threading.Thread(target=reports, daemon=True).start()
    ALL[name](address, tally, lambda: say("ready"))


# -- clients ---------------------------------------------------------------------------------------


class Ours:
    """A client of memenpsf."""

    def __init__(self, address: str, first: bytes) -> None:
        self.end = memenpsf.connect(address, SIZE, capacity=CAPACITY, timeout=30)
        self.send(first)

    def send(self, record: bytes) -> None:
        """Send one record."""
        self.end.xmit(record)

    def flood(self, records: list[bytes]) -> bool:
        """Send what is taken at once; return whether anything was."""
        return self.end.xmit_many(records, timeout=0) > 0


class Sockets:
    """A client over a socket."""

    def __init__(self, address: str, first: bytes) -> None:
        self.end = socket.socket(socket.AF_UNIX)
        self.end.connect(address)
        self.send(first)

    def send(self, record: bytes) -> None:
        """Send one record."""
        self.end.sendall(record)

    def flood(self, records: list[bytes]) -> bool:
        """Send what is taken at once; return whether anything was."""
        data = b"".join(records)
        try:
            sent = self.end.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        if rest := -sent % SIZE:  # records are whole
            self.end.sendall(data[sent : sent + rest])
        return True


def run_clients(kind: type[Ours | Sockets], address: str, count: int) -> None:
    """Connect, and do what each line says."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    clients = [kind(address, SILENT) for _ in range(count)]
    say("ready")
    records = [bytes(SIZE)] * BURST
    for line in sys.stdin:
        what, number, seconds = json.loads(line)
        sent, end = 0, time.monotonic() + seconds
        if what == "flood":
            while time.monotonic() < end:
                if not sum([each.flood(records) for each in clients[:number]]):
                    time.sleep(0.00005)
        else:
            due = time.monotonic()
            while due < end:
                for each in clients:
                    each.send(records[0])
                sent += count
                due += 1 / number
                time.sleep(max(0.0, due - time.monotonic()))
        say(sent)


def run_trickle(kind: type[Ours | Sockets], address: str) -> None:
    """Connect, and send as long as each line says."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    client = kind(address, TIMED)
    say("ready")
    for line in sys.stdin:
        end = time.monotonic() + json.loads(line)
        while time.monotonic() < end:
            client.send(time.monotonic_ns().to_bytes(8, "little") + bytes(SIZE - 8))
            time.sleep(0.002)
        say("done")


# -- the measurement -------------------------------------------------------------------------------


def say(what: Any) -> None:
    """Tell the process that measures."""
    print(json.dumps(what), flush=True)


class Program:
    """One of the other processes."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", __spec__.name, "--parent", str(os.getpid()), *arguments],
            env={**os.environ, "PYTHONPATH": module_path()},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.answer()

    def tell(self, what: Any) -> None:
        """Send it a line."""
        assert self.process.stdin is not None
        print(json.dumps(what), file=self.process.stdin, flush=True)

    def answer(self) -> Any:
        """Wait for a line of it."""
        assert self.process.stdout is not None
        if not (line := self.process.stdout.readline()):
            raise RuntimeError(f"{self.process.args} has ended")
        return json.loads(line)

    def ask(self, what: Any) -> Any:
        """Send it a line, and wait for one."""
        self.tell(what)
        return self.answer()

    def end(self) -> None:
        """End it."""
        self.process.kill()
        self.process.communicate()


class Setting(contextlib.ExitStack):
    """A server and its clients."""

    def __init__(self, name: str, count: int) -> None:
        super().__init__()
        directory = self.enter_context(tempfile.TemporaryDirectory())
        address = str(Path(directory) / "server")
        kind = "sockets" if "sockets" in name or "streams" in name else "ours"
        self.server = self.started("--serve", name, "--address", address)
        self.clients = self.started("--crowd", kind, "--address", address, "--clients", str(count))
        self.trickle = self.started("--trickle", kind, "--address", address)

    def started(self, *arguments: str) -> Program:
        """Start a program that ends with this."""
        program = Program(*arguments)
        self.callback(program.end)
        return program

    def report(self) -> Any:
        """Return what the server has received."""
        return self.server.ask("report")

    def flood(self, number: int, seconds: float) -> float:
        """Return records a second."""
        before, start = self.report(), time.monotonic()
        self.clients.ask(["flood", number, seconds])
        after, end = self.report(), time.monotonic()
        rate: float = (after["records"] - before["records"]) / (end - start)
        return rate

    def each(self, rate: int, seconds: float) -> float:
        """Return seconds of processor time for each record; raise if one is missing."""
        before = self.drained()
        sent = self.clients.ask(["each", rate, seconds])
        after = self.drained()
        if (came := after["records"] - before["records"]) != sent:
            raise RuntimeError(f"{came} of {sent} records have come")
        cpu: float = (after["cpu"] - before["cpu"]) / sent
        return cpu

    def idle(self, seconds: float) -> float:
        """Return the part of a processor that the server needs."""
        before = self.drained()
        time.sleep(seconds)
        cpu: float = (self.report()["cpu"] - before["cpu"]) / seconds
        return cpu

    def trickled(self, floods: int, seconds: float) -> tuple[float, float]:
        """Return median and 99th percentile of the latency, in seconds."""
        self.drained()
        self.clients.tell(["flood", floods, seconds + 0.4])
        time.sleep(0.2)
        self.trickle.ask(seconds)
        self.clients.answer()
        latencies = sorted(self.drained()["latencies"])
        return latencies[len(latencies) // 2] / 1e9, latencies[len(latencies) * 99 // 100] / 1e9

    def drained(self) -> Any:
        """Return the report after nothing has come for a while."""
        latencies, last = [], None
        while True:
            report = self.report()
            latencies += report["latencies"]
            if report["records"] == last:
                return {**report, "latencies": latencies}
            last = report["records"]
            time.sleep(0.1)


def measure(setting: Setting, clients: int, seconds: float) -> dict[str, float]:
    """Return one value for each column."""
    values = {}
    for number in FLOODS:
        if number <= clients:
            values[f"flood {number}, M/s"] = setting.flood(number, seconds) / 1e6
    values["100/s each, µs/record"] = setting.each(100, seconds) * 1e6
    values["idle, %"] = setting.idle(seconds) * 100
    median, high = setting.trickled(10, 3 * seconds)
    values |= {"trickle, µs": median * 1e6, "p99, µs": high * 1e6}
    return values


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.many_clients", description=__doc__)
    parser.add_argument("--kinds", default=",".join(SERVERS))
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--turns", type=int, default=5)
    for hidden in ("--parent", "--serve", "--crowd", "--trickle", "--address"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    return parser.parse_args()


def raise_limit(needed: int) -> None:
    """Allow this process as many descriptors as may be; raise SystemExit if these are too few."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if most < needed:
        raise SystemExit(
            f"so many clients need {needed} descriptors in a process, and only {most} are allowed "
            "here (ulimit -Hn)"
        )


def main() -> None:
    """Measure, and print a table; or be one of the other processes."""
    options = arguments()
    if options.parent:
        die_with_parent(int(options.parent))
    raise_limit(PER_CLIENT * options.clients + 100)
    if options.serve:
        return run_server(options.serve, options.address)
    kinds = {"ours": Ours, "sockets": Sockets}
    if options.crowd:
        return run_clients(kinds[options.crowd], options.address, options.clients)
    if options.trickle:
        return run_trickle(kinds[options.trickle], options.address)
    for kind in options.kinds.split(","):
        found: dict[str, dict[str, list[float]]] = {
            name: defaultdict(list) for name in SERVERS[kind]
        }
        for _ in range(options.turns):
            for name in SERVERS[kind]:
                with Setting(name, 1) as setting:
                    found[name]["alone, M/s"].append(setting.flood(1, options.seconds) / 1e6)
                with Setting(name, options.clients) as setting:
                    for what, value in measure(setting, options.clients, options.seconds).items():
                        found[name][what].append(value)
        print(f"-- {kind}, {options.clients} clients, medians of {options.turns} turns")
        for name, values in found.items():
            shown = [f"{what} {statistics.median(each):.3f}" for what, each in values.items()]
            print(f"{name:20} " + "   ".join(shown), flush=True)
    return None


if __name__ == "__main__":
    main()
