"""One good client among hostile ones on the same server: how long its round trips take.

    python -m benchmarks.hostile                      # both kinds of server, 30 s each
    python -m benchmarks.hostile --server trio --seconds 10 --attacks doorbells,stopped

A server echoes records, with a thread or with a Trio task for each client. One client does round
trips, one after another, and measures each. Three conditions take turns:

- quiet: the hostile clients are connected, and stopped (SIGSTOP);
- attack: they run;
- burn: they are stopped, and as many processes run that are connected to nothing and only burn
  processor time. What is slower than quiet here is the scheduler's and the machine's doing.

The server and the good client have one processor, all others the rest, so that what they cost is
what they make the server do. As root the hostile ones run under another user id, as strangers do.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Self

from ipcqueue._core import ffi  # an attacker is not bound to any rule

import fdpass
import memenpsf
from ipcqueue.lowlevel import Opening, Role, Terms, advance

from .machine import machine
from .processes import module_path
from .worker import die_with_parent

if TYPE_CHECKING:
    from collections.abc import Callable

NOBODY = 65534
RECORD = "<Q"
UIDS = {os.geteuid(), 0, NOBODY}
CONDITIONS = ("quiet", "attack", "burn")
HELLO = b"\x10\x01"
TURN = 0.25  # seconds


# -- the server -----------------------------------------------------------------------------------


def serve_threads(address: str) -> None:
    """Echo, with a thread for each client."""

    def echo(interface: memenpsf.Interface) -> None:
        with interface, contextlib.suppress(memenpsf.QueueError):
            for record in interface:
                interface.xmit(record)

    with memenpsf.listen(address, RECORD, allow_uids=UIDS, wait="sleep") as listener:
        print("listening", flush=True)
        for interface in listener:
            threading.Thread(target=echo, args=(interface,), daemon=True).start()


def serve_trio(address: str) -> None:
    """Echo, with a task for each client."""
    import trio  # noqa: PLC0415 (only this one needs it)

    import memenpsf.trio  # noqa: PLC0415

    async def echo(interface: memenpsf.trio.Interface) -> None:
        async for record in interface:
            await interface.xmit(record)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(
                lambda **kw: memenpsf.trio.serve(echo, address, RECORD, allow_uids=UIDS, **kw)
            )
            print("listening", flush=True)

    trio.run(main)


SERVERS: dict[str, Callable[[str], None]] = {"threads": serve_threads, "trio": serve_trio}


# -- the good client ------------------------------------------------------------------------------


def good(address: str) -> None:
    """Do round trips for as long as a line says, and note them under its name; tell at the end."""
    trips: dict[str, list[int]] = {}
    with memenpsf.connect(address, RECORD, allow_uids=UIDS, wait="sleep") as interface:
        print("connected", flush=True)
        for line in sys.stdin:
            label, seconds = line.split()
            times = trips.setdefault(label, [])
            until = time.monotonic() + float(seconds)
            while time.monotonic() < until:
                begin = time.perf_counter_ns()
                interface.xmit((begin,))
                if interface.recv() != (begin,):
                    raise SystemExit("a wrong answer")
                times.append(time.perf_counter_ns() - begin)
            print(len(times), flush=True)
    print(json.dumps({label: summary(times) for label, times in trips.items()}), flush=True)


def summary(times: list[int]) -> dict[str, float]:
    """Return what is told of trips, in µs."""
    times = sorted(times)
    at = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999, "max": 1}
    found = {name: times[int(part * (len(times) - 1))] / 1000 for name, part in at.items()}
    return {"trips": len(times), **found}


# -- the hostile clients --------------------------------------------------------------------------


def connected(address: str) -> socket.socket:
    """Return a connected socket that has said nothing."""
    sock = socket.socket(socket.AF_UNIX)
    while True:
        try:
            sock.connect("\0" + address[1:])
        except BlockingIOError:
            time.sleep(0.001)
        else:
            return sock


TERMS = Terms(RECORD, Role(sends=True, receives=True), allow_uids=UIDS)


class Introduced:
    """A connection of which the attacker has everything in hand."""

    def __init__(self, address: str) -> None:
        self.opening = Opening(connected(address), TERMS)
        try:
            poll = select.poll()
            while (endpoint := advance(self.opening)) is None:
                poll.register(self.opening.fileno(), self.opening.events)
                poll.poll(1000)
        except BaseException:
            self.opening.abandon()
            raise
        self.endpoint = endpoint
        self.sock = self.opening.sock
        self.sock.setblocking(True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.endpoint.close()


def doorbells(address: str) -> None:
    """Ring without data, as fast as the socket takes it."""
    with Introduced(address) as one:
        while True:
            one.sock.sendall(b"\x01\x00\x02\x00" * 512)


def messages(address: str) -> None:
    """Send control messages that nobody takes, until kicked out."""
    with Introduced(address) as one:
        while True:
            one.sock.sendall(b"\x80\x00")


def slow_handshake(address: str) -> None:
    """Open many connections and say half of HELLO on each."""
    with contextlib.ExitStack() as stack:
        for _ in range(50):
            sock = stack.enter_context(connected(address))
            fd = os.memfd_create("half")
            with contextlib.closing(fdpass.Fd(fd)):
                fdpass.send_fds(sock, [fd], HELLO[:1])
        time.sleep(2)


def half_a_message(address: str) -> None:
    """Send messages byte by byte."""
    with Introduced(address) as one:
        for byte in itertools.cycle((b"\x01", b"\x00")):
            one.sock.sendall(byte)
            time.sleep(0.001)


def descriptors(address: str) -> None:
    """Send as many descriptors as a message can carry."""
    with Introduced(address) as one, open("/dev/null", "rb") as null:  # noqa: PTH123
        while True:
            fdpass.send_fds(one.sock, [null] * fdpass.MAX_FDS, b"\x01\x00")


def stopped(address: str) -> None:
    """Fill the ring, read nothing, and stop."""
    with Introduced(address) as one:
        while one.endpoint.try_push((1,)):
            pass
        while True:
            os.kill(os.getpid(), signal.SIGSTOP)


def storm(address: str) -> None:
    """Connect and leave at once."""
    while True:
        connected(address).close()


def introductions(address: str) -> None:
    """Connect, go through the handshake, and leave."""
    while True:
        with Introduced(address):
            pass


def corrupt(address: str) -> None:
    """Claim to have published more than there is room for."""
    with Introduced(address) as one:
        at = one.endpoint._own.mapping.at  # noqa: SLF001
        ffi.buffer(at, 4096)[1024:1032] = (1 << 63).to_bytes(8, "little")
        one.sock.sendall(b"\x01\x00")
        one.sock.recv(100)


def publishing(address: str) -> None:
    """Publish as fast as possible, and never read."""
    with Introduced(address) as one:
        interface = memenpsf.Interface.of(one.endpoint)
        while True:
            interface.xmit((1,))


ATTACKS: dict[str, Callable[[str], None]] = {
    attack.__name__: attack
    for attack in (
        doorbells, messages, slow_handshake, half_a_message, descriptors,
        stopped, storm, introductions, corrupt, publishing,
    )
}  # fmt: skip


def attack(address: str, name: str) -> None:
    """Do it again and again, whatever the server says."""
    if os.geteuid() == 0:
        # Only now: what is imported may be out of reach for that user.
        os.setresuid(NOBODY, NOBODY, NOBODY)
    print("ready", flush=True)
    while True:
        with contextlib.suppress(memenpsf.QueueError, fdpass.FdPassError, OSError):
            ATTACKS[name](address)


def burn(_: str) -> None:
    """Burn processor time."""
    print("ready", flush=True)
    while True:
        pass


# -- the controller -------------------------------------------------------------------------------


class Program:
    """One of the processes; killed in the end."""

    def __init__(self, cpus: set[int], role: str, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", __spec__.name, "--as", role, str(os.getpid()), *arguments],
            env={**os.environ, "PYTHONPATH": module_path()},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        os.sched_setaffinity(self.process.pid, cpus)

    def line(self) -> str:
        """Return the next line it says."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a process died: {self.process.args}")
        return line

    def ask(self, text: str) -> str:
        """Tell it something, and return what it says."""
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()
        return self.line()

    def last_words(self) -> str:
        """Say that nothing will come any more, and return what it says."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.line()

    def signal(self, number: int) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def end(self) -> None:
        """Kill it."""
        self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        self.process.wait()


def measure(server: str, attacks: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Return what the good client's trips took under each condition."""
    count, seconds = options.clients, options.seconds
    address = f"@memenpsf-hostile-{os.getpid()}-{server}"
    first, *others = sorted(os.sched_getaffinity(0))
    good_cpus, bad_cpus = {first}, set(others) or {first}
    with contextlib.ExitStack() as stack:

        def start(cpus: set[int], *arguments: str) -> Program:
            program = Program(cpus, *arguments)
            stack.callback(program.end)
            return program

        listening = start(good_cpus, "serve", address, server)
        listening.line()
        client = start(good_cpus, "good", address)
        client.line()
        # By its main thread; those it starts are as nice.
        for program in (listening, client):
            os.setpriority(os.PRIO_PROCESS, program.process.pid, options.nice)
        crowd: dict[str, list[Program]] = {"quiet": [], "attack": [], "burn": []}
        for name in itertools.islice(itertools.cycle(attacks), count):
            for kind, arguments in (("attack", (address, name)), ("burn", (address,))):
                crowd[kind].append(start(bad_cpus, kind, *arguments))
        for program in crowd["attack"] + crowd["burn"]:
            program.line()
            program.signal(signal.SIGSTOP)
        take_turns(client, crowd, seconds)
        if dead := [each.process.args for each in crowd["attack"] if each.process.poll()]:
            raise SystemExit(f"a hostile client died of a mistake of its own: {dead}")
        found = json.loads(client.last_words())
    return {"server": server, "attacks": attacks, "clients": count, **found}


def take_turns(client: Program, crowd: dict[str, list[Program]], seconds: float) -> None:
    """Have the good client do its trips under one condition after another."""
    turns = max(1, round(seconds / TURN / len(CONDITIONS)))
    client.ask(f"warm-up {TURN}")
    for turn in range(turns):
        # Not always in the same order, as one has an effect on the next.
        for condition in CONDITIONS if turn % 2 else reversed(CONDITIONS):
            for program in crowd[condition]:
                program.signal(signal.SIGCONT)
            client.ask(f"{condition} {seconds / turns / len(CONDITIONS)}")
            for program in crowd[condition]:
                program.signal(signal.SIGSTOP)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hostile", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--server", choices=[*SERVERS, "both"], default="both")
    parser.add_argument("--clients", type=int, default=20, help="how many hostile ones")
    parser.add_argument("--seconds", type=float, default=30.0, help="for all turns of a server")
    parser.add_argument("--attacks", default=",".join(ATTACKS), help="between commas")
    parser.add_argument(
        "--nice", type=int, default=0, help="of server and good client; -10 on a machine not idle"
    )
    parser.add_argument("--each", action="store_true", help="each attack by itself")
    parser.add_argument("--json", action="store_true", help="print JSON, a line for each row")
    options = parser.parse_args()
    options.attacks = options.attacks.split(",")
    if unknown := set(options.attacks) - set(ATTACKS):
        parser.error(f"there is no attack {', '.join(sorted(unknown))}")
    return options


def main() -> None:
    """Measure, and print a table."""
    options = arguments()
    if not options.json:
        print(json.dumps(machine()))
        print(
            "server   attacks             condition   trips    p50 µs    p99 µs  p99.9 µs  p99/quiet"
        )
    rows = [[each] for each in options.attacks] if options.each else [options.attacks]
    for server in SERVERS if options.server == "both" else [options.server]:
        for attacks in rows:
            found = measure(server, attacks, options)
            if options.json:
                print(json.dumps(found), flush=True)
                continue
            for condition in CONDITIONS:
                one = found[condition]
                print(
                    f"{server:8} {attacks[0] if len(attacks) == 1 else 'all':19} {condition:9}"
                    f" {one['trips']:7} {one['p50']:9.1f} {one['p99']:9.1f} {one['p99.9']:9.1f}"
                    f" {one['p99'] / found['quiet']['p99']:10.2f}",
                    flush=True,
                )


def play() -> None:
    """Be one of the other processes: --as role parent address …."""
    role, parent, address, *rest = sys.argv[2:]
    die_with_parent(int(parent))
    logging.getLogger("memenpsf").setLevel(logging.ERROR)  # a line for each attack would cost more
    roles: dict[str, Callable[..., None]] = {"good": good, "attack": attack, "burn": burn}
    if role == "serve":
        SERVERS[rest[0]](address)
    else:
        roles[role](address, *rest)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--as"]:
        play()
    else:
        main()
