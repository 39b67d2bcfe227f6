"""The producer: reads the counters of this machine, 500 times a second, for every client.

    python sampler.py                 # in one terminal
    python dashboard.py               # in another; either may start first

What it shows of the library: serve() with a thread for each client, a NamedTuple as the record, and
xmit_many().  A client that reads too slowly holds up its own thread alone, and then gets the newest
counters: none are read while it is behind.
"""

from __future__ import annotations

import argparse
import itertools
import signal
import sys
import time
from functools import partial
from typing import TYPE_CHECKING

from readings import ADDRESS, Reading, Unit, read_round

import memenpsf

if TYPE_CHECKING:
    from memenpsf import Interface, Listener

NAME = "sampler"


def sample(interval: float, interface: Interface[Reading]) -> None:
    """Send rounds to a client until it leaves: one in `interval` seconds."""
    due = time.monotonic()
    for rounds in itertools.count():
        readings = read_round()
        at = readings[0].time
        readings += [
            Reading(at, rounds, Unit.COUNT, b"sampler/rounds"),
            Reading(at, time.process_time_ns(), Unit.NANOSECONDS, b"sampler/processor time"),
        ]
        interface.xmit_many(readings)
        # No haste after a hold-up: the rounds that were not read are not made up for.
        now = time.monotonic()
        due = max(due + interval, now)
        time.sleep(due - now)


def rate(text: str) -> float:
    """Return a number of rounds a second from the command line."""
    if not 0 < (value := float(text)) <= 1e6:  # noqa: PLR2004 (more than any machine reads)
        raise ValueError(text)
    return value


def started(listener: Listener[Reading]) -> None:
    """Say where clients can connect."""
    print(f"sampling at {listener.address}", flush=True)


def main() -> int:
    """Serve until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(prog=NAME, description="Send counters to dashboard.py.")
    add = parser.add_argument
    add("--rate", type=rate, default=500, help="rounds a second, of 20 readings (default: 500)")
    add("--address", default=ADDRESS, help=f"a bare name, a path, or @name (default: {ADDRESS})")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        handler = partial(sample, 1 / options.rate)
        memenpsf.serve(handler, options.address, Reading, name=NAME, started=started)
    except KeyboardInterrupt:
        return 0
    except OSError as error:
        print(f"{NAME}: {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
