"""Round trips with each way of waiting, between threads and processes, on one processor and on all.

python benchmarks/waiting.py

The ways take turns, so that a change of the machine's speed affects all of them.  Each line is the
median of its rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import memenpsf

if TYPE_CHECKING:
    from collections.abc import Iterator

WAYS = ("spin", "busy", "sleep")
ECHO = """
import sys
import memenpsf
with memenpsf.connect(sys.argv[1], "<Q", wait=sys.argv[2]) as interface:
    for record in interface:
        interface.xmit(record)
"""


@contextlib.contextmanager
def thread(wait: str) -> Iterator[memenpsf.Interface]:
    """Give a connection to a thread that sends everything back."""
    one, other = memenpsf.pair("<Q", wait=wait)

    def echo() -> None:
        for record in other:
            other.xmit(record)

    echoing = threading.Thread(target=echo)
    echoing.start()
    with one:
        yield one
    echoing.join()
    other.close()


@contextlib.contextmanager
def process(wait: str) -> Iterator[memenpsf.Interface]:
    """Give a connection to a process that sends everything back."""
    with (
        tempfile.TemporaryDirectory() as directory,
        memenpsf.listen(Path(directory) / "echo", "<Q", wait=wait) as listener,
        subprocess.Popen([sys.executable, "-c", ECHO, listener.address, wait]),
        listener.accept(timeout=10) as interface,
    ):
        yield interface


def round_trip(interface: memenpsf.Interface, seconds: float) -> float:
    """Return microseconds for one record there and back."""
    trips, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        interface.xmit((trips,))
        interface.recv()
        trips += 1
    return elapsed / trips * 1e6


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each round (0.5)")
    options = parser.parse_args()
    processors = os.sched_getaffinity(0)
    for allowed in (processors, {min(processors)}):
        os.sched_setaffinity(0, allowed)
        for peer in (thread, process):
            times: dict[str, list[float]] = {wait: [] for wait in WAYS}
            for _ in range(options.rounds):
                for wait in WAYS:
                    with peer(wait) as interface:
                        times[wait].append(round_trip(interface, options.seconds))
            for wait in WAYS:
                median = statistics.median(times[wait])
                print(
                    f"{wait:6} to a {peer.__name__:8} {len(allowed):3} processors {median:10.1f} us"
                )


if __name__ == "__main__":
    main()
