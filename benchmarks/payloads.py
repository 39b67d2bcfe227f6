"""What a message costs, by its size and the way it travels; and from where on another way pays.

Two unrelated processes, messages of any length (record=bytes), one direction, as fast as they go:

    in ring   xmit() copies into the ring, recv() out of it            (inline = the capacity)
    outside   the same calls, by way of memory that is used again     (inline = 0)
    loan      loan() is filled in place, borrow() is read in place
    region    a MemoryRegion, made anew, filled, frozen and attached
    reused    the same, from a MemoryRegistry, to which it comes home

For each message the sender writes all of it, and the receiver reads all of it: one memcpy each,
from and to memory that stays warm, in all five alike.  So `in ring` moves a message four times
(into the sender's buffer, into the ring, out of it, into the receiver's buffer), and the others
two or three times.  Every message begins and ends with its number, which the receiver checks; of
the last of each turn it compares every byte.

The time is that of a turn (some messages, until the receiver has answered that it took them all)
divided by the messages.  The ways take turns, so that what disturbs the machine disturbs them
all.  Under way are at most four messages, or 1 MiB of them if that is more: the ring has no room
for others, and that of regions is filled up so that there are as many (at most 16; `outside`
always has 16, or 4 where a message has over 1.25 MiB).

Benchmarks are hard, and this one is no exception: two processes on few processors measure the
scheduler as well, and a program that does not read all of a message in one go has other numbers.

It is long because it is one program, both of its processes and its report: whoever doubts a number
has all that made it on one page, and can run that by itself.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import math
import os
import random
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

from machine import machine  # beside this file, which is run as a program

import memenpsf
from fdpass import MemoryRegion, MemoryRegistry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from memenpsf import Interface

KIB, MIB = 1 << 10, 1 << 20
SIZES = (64, *(4 * KIB << n for n in range(13)))  # to 16 MiB
QUICK = (64, 4 * KIB, 64 * KIB, MIB, 8 * MIB)
LEAST = 64  # bytes: room for the number at both ends
REPEATS = 5

NUMBER = struct.Struct("<Q")
FRAME_HEADER = 16  # bytes that a message takes in the ring beside its own
SMALL_RING = 4 * KIB  # the smallest there is


class WrongMessage(Exception):
    """What arrived is not what was sent."""


# The sending side: each fills one message from `source`, and sends it


class Outbox:
    """What the sender has for messages of one size."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.source = pattern(size)
        self.buffer = memoryview(bytearray(size))
        self.registry = MemoryRegistry()
        self.beside_region = bytes(SMALL_RING // regions_under_way(size) - FRAME_HEADER)
        self.number = 0

    def stamp(self) -> None:
        """Give the next message its number."""
        stamp(self.source, self.number)
        self.number += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.registry.close()


def send_copy(interface: Interface, outbox: Outbox) -> None:
    """Fill memory of our own, and have it copied."""
    outbox.buffer[:] = outbox.source
    interface.xmit(outbox.buffer)


def send_loan(interface: Interface, outbox: Outbox) -> None:
    """Fill the ring."""
    with interface.loan(outbox.size) as loan:
        loan.data[:] = outbox.source


def send_region(interface: Interface, outbox: Outbox) -> None:
    """Fill a new region."""
    with MemoryRegion.create(outbox.size) as region:
        region.buffer[:] = outbox.source
        interface.xmit(outbox.beside_region, regions=[region])


def send_reused(interface: Interface, outbox: Outbox) -> None:
    """Fill a region that has come home, if there is one."""
    with outbox.registry.alloc(outbox.size) as region:
        region.buffer[: outbox.size] = outbox.source
        interface.xmit(outbox.beside_region, regions=[region])


# The receiving side: each takes one message, and reads all of it into `scratch`


def receive_copy(interface: Interface, scratch: memoryview) -> None:
    """Take a copy."""
    scratch[:] = interface.recv()


def receive_loan(interface: Interface, scratch: memoryview) -> None:
    """Read the ring."""
    with interface.borrow(1) as lent:
        scratch[:] = lent[0].data


def receive_region(interface: Interface, scratch: memoryview) -> None:
    """Read a region."""
    received = interface.recv_message()
    assert received is not None, "there was no timeout"
    with received.regions[0] as region:
        scratch[:] = region.buffer[: len(scratch)]


class Way(NamedTuple):
    """A way for a message to travel."""

    send: Callable[[Interface, Outbox], None]
    receive: Callable[[Interface, memoryview], None]
    ring: str = "large"  # or "small", or "unused"


WAYS = {
    "in ring": Way(send_copy, receive_copy),
    "outside": Way(send_copy, receive_copy, "unused"),
    "loan": Way(send_loan, receive_loan),
    "region": Way(send_region, receive_region, "small"),
    "reused": Way(send_reused, receive_region, "small"),
}

# What one asks: from which size on is the second faster than the first?
QUESTIONS = (
    ("in ring", "loan"),
    ("in ring", "outside"),
    ("in ring", "region"),
    ("in ring", "reused"),
    ("loan", "region"),
    ("loan", "reused"),
)


# What the messages hold


def pattern(size: int) -> bytearray:
    """Return what a message of this size holds, but for its number."""
    return bytearray(random.Random(size).randbytes(size))  # noqa: S311 (to be compared)


def stamp(message: bytearray, number: int) -> None:
    """Write the number at both ends."""
    NUMBER.pack_into(message, 0, number)
    NUMBER.pack_into(message, len(message) - NUMBER.size, number)


def check(message: memoryview, number: int) -> None:
    """Raise WrongMessage unless the number stands at both ends."""
    ends = *NUMBER.unpack_from(message), *NUMBER.unpack_from(message, len(message) - NUMBER.size)
    if ends != (number, number):
        raise WrongMessage(f"instead of message {number} came {ends}")


# The receiver, a program of its own.  Commands come as lines: "size N", "take WAY COUNT FIRST"


def receiver(address: str) -> None:
    """Do what the sender says, until it closes."""
    pinned(1)
    interfaces: dict[str, Interface] = {}
    expected, scratch = bytearray(), memoryview(bytearray())
    with (
        contextlib.ExitStack() as connections,
        memenpsf.listen(address, bytes, capacity=4 * KIB) as listener,
    ):
        print("ready", flush=True)
        for line in sys.stdin:
            command, *words = line.rstrip("\n").split("\t")
            if command == "size":
                connections.close()
                for way in WAYS:
                    interfaces[way] = connections.enter_context(listener.accept())
                expected = pattern(int(words[0]))
                scratch = memoryview(bytearray(len(expected)))
            else:
                first, count = int(words[1]), int(words[2])
                take(WAYS[words[0]], interfaces[words[0]], scratch, range(first, first + count))
            print("done", flush=True)
            if command == "take":
                stamp(expected, first + count - 1)
                if scratch != expected:
                    raise WrongMessage(f"message {first + count - 1} is not what was sent")


def take(way: Way, interface: Interface, scratch: memoryview, numbers: range) -> None:
    """Receive and check one turn."""
    receive = way.receive
    for number in numbers:
        receive(interface, scratch)
        check(scratch, number)


class Receiver:
    """The sender's hand on the receiver."""

    def __init__(self, folder: str) -> None:
        self.address = str(Path(folder) / "payloads")
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--receiver", self.address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )

    def __enter__(self) -> Self:
        self.wait()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        with contextlib.suppress(BrokenPipeError), self._process:
            pass  # closes its input, which ends it
        if self._process.returncode and kind is None:
            raise WrongMessage(f"the receiver ended with status {self._process.returncode}")

    def tell(self, *command: object) -> None:
        """Give a command."""
        assert self._process.stdin is not None, "it is a pipe"
        self._process.stdin.write("\t".join(map(str, command)) + "\n")
        self._process.stdin.flush()

    def wait(self) -> None:
        """Wait until the command is done."""
        assert self._process.stdout is not None, "it is a pipe"
        if not self._process.stdout.readline():
            raise WrongMessage("the receiver has failed")


# Measuring


def capacity_for(size: int) -> int:
    """Return the bytes of a ring with room for four messages, a power of two."""
    return max(MIB, 1 << (4 * size - 1).bit_length())


def regions_under_way(size: int) -> int:
    """Return how many regions may be under way: as many messages as in a large ring, or 16."""
    return min(16, capacity_for(size) // size)


def connect(way: Way, address: str, size: int) -> Interface:
    """Connect with a ring that has messages travel this way."""
    capacity = capacity_for(size) if way.ring == "large" else SMALL_RING
    inline = 0 if way.ring == "unused" else capacity
    return memenpsf.connect(address, bytes, capacity=capacity, inline=inline)


class Result(NamedTuple):
    """The cost of a message in each turn, in microseconds."""

    way: str
    size: int
    turns: list[float]

    @property
    def median(self) -> float:
        """Return what stands in the table."""
        return statistics.median(self.turns)

    def __str__(self) -> str:
        return " ".join(
            f"{value:.{0 if value >= 1000 else 1 if value >= 10 else 2}f}"
            for value in (self.median, min(self.turns), max(self.turns))
        )


def measure(there: Receiver, size: int, repeats: int, seconds: float) -> list[Result]:
    """Measure all ways for one size, in turns of about so many seconds."""
    with contextlib.ExitStack() as connections:
        there.tell("size", size)
        outbox = connections.enter_context(Outbox(size))
        turns: dict[str, Callable[[int], float]] = {}
        for name, way in WAYS.items():
            interface = connections.enter_context(connect(way, there.address, size))
            turns[name] = functools.partial(turn, there, name, interface, outbox)
        there.wait()
        counts = {name: calibrated(go, name, size, seconds) for name, go in turns.items()}
        costs: dict[str, list[float]] = {name: [] for name in WAYS}
        for _ in range(repeats):
            for name, go in turns.items():
                costs[name].append(go(counts[name]) / counts[name] * 1e6)
    return [Result(name, size, values) for name, values in costs.items()]


def turn(there: Receiver, name: str, interface: Interface, outbox: Outbox, count: int) -> float:
    """Send some messages; return how many seconds it took until all were received."""
    send = WAYS[name].send
    there.tell("take", name, outbox.number, count)
    started = time.perf_counter()
    for _ in range(count):
        outbox.stamp()
        send(interface, outbox)
    there.wait()
    return time.perf_counter() - started


def calibrated(go: Callable[[int], float], name: str, size: int, seconds: float) -> int:
    """Warm up, which takes the ring once around; return how many messages make a turn."""
    lap = capacity_for(size) // (size + FRAME_HEADER)
    warm = max(32, lap) if WAYS[name].ring == "large" else 32
    taken = go(warm)
    return min(100_000, max(4, round(seconds * warm / taken)))


def crossover(results: list[Result], slow: str, fast: str) -> str:
    """Tell in words from which size on the one way is faster than the other."""
    ratios = {
        size: by_way[fast] / by_way[slow] for size, by_way in by_size(results).items()
    }  # below 1: it is faster
    better = list(itertools.takewhile(lambda size: ratios[size] <= 1, sorted(ratios)[::-1]))
    if not better:
        return f"not up to {shown(max(ratios))}"
    first = better[-1]
    if first == min(ratios):
        return f"at every size from {shown(first)} on"
    before = max(size for size in ratios if size < first)
    # Where a straight line between the two meets 1, in logarithms of size and ratio.
    low, high = math.log(ratios[before]), math.log(ratios[first])
    at = before * (first / before) ** (low / (low - high))
    return f"from about {shown(round(at))} on (between {shown(before)} and {shown(first)})"


def by_size(results: list[Result]) -> dict[int, dict[str, float]]:
    """Return the medians by size and way."""
    table: dict[int, dict[str, float]] = {}
    for result in results:
        table.setdefault(result.size, {})[result.way] = result.median
    return table


def shown(size: int) -> str:
    """Return a size for people."""
    for unit, name in ((MIB, "MiB"), (KIB, "KiB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size} B"


# The program


def pinned(cpu: int) -> None:
    """Stay on one of the processors this process may use."""
    allowed = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {allowed[cpu % len(allowed)]})


def report(results: Iterator[list[Result]]) -> list[Result]:
    """Print a line for each size as soon as it is there; return all."""
    print("microseconds a message: median, minimum, maximum of the turns")
    print(f"{'size':>8}" + "".join(f"{name:>23}" for name in WAYS))
    done = []
    for line in results:
        print(f"{shown(line[0].size):>8}" + "".join(f"{result!s:>23}" for result in line))
        sys.stdout.flush()
        done += line
    return done


def numbers(text: str) -> list[int]:
    """Return sizes from the command line."""
    sizes = sorted({int(word) for word in text.split(",")})
    if not LEAST <= sizes[0] <= sizes[-1] <= 16 * MIB:
        raise ValueError(text)
    return sizes


def repetitions(text: str) -> int:
    """Return a number of turns from the command line."""
    if (value := int(text)) < REPEATS:
        raise ValueError(text)
    return value


def duration(text: str) -> float:
    """Return a number of seconds from the command line."""
    if not 0 < (value := float(text)) <= 60:
        raise ValueError(text)
    return value


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    add = parser.add_argument
    add("--quick", action="store_true", help="five sizes, short turns")
    add("--sizes", type=numbers, metavar="N,N", help="in bytes, 64 to 16777216")
    add("--repeats", type=repetitions, metavar="N", help="turns of each, at least 5 (default: 9)")
    add("--seconds", type=duration, metavar="S", help="length of a turn (default: 0.1)")
    add("--json", type=Path, metavar="FILE", help="write the results to a file as well")
    add("--receiver", metavar="ADDRESS", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.sizes = options.sizes or (QUICK if options.quick else SIZES)
    options.repeats = options.repeats or (REPEATS if options.quick else 9)
    options.seconds = options.seconds or (0.03 if options.quick else 0.1)
    return options


def main() -> int:
    """Start the receiver, and measure."""
    options = arguments()
    if options.receiver is not None:
        receiver(options.receiver)
        return 0
    about = machine()
    print(", ".join(f"{key}: {value}" for key, value in about.items()))
    print(f"{options.repeats} turns of {options.seconds:g} s for each way and size, interleaved")
    with tempfile.TemporaryDirectory() as folder, Receiver(folder) as there:
        pinned(0)
        results = report(
            measure(there, size, options.repeats, options.seconds) for size in options.sizes
        )
    answers = {
        f"{fast} beats {slow}": crossover(results, slow, fast)
        for slow, fast in QUESTIONS
        if fast in WAYS
    }
    for question, answer in answers.items():
        print(f"{question:22} {answer}")
    if options.json is not None:
        found = [{**result._asdict(), "median": result.median} for result in results]
        content = {"machine": about, "unit": "µs", "results": found, "crossovers": answers}
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
