"""Streams numbered records from one process to another, checks every one, and prints the rate.

    python stream.py receive               # in one terminal
    python stream.py send                  # in another

Three ways to move them (--by): "one" is xmit and recv, "batch" is xmit_many and recv_vectored with
lists of tuples, "array" is the same with numpy arrays.  Both sides must name the same number
of records; the ways may differ, because the layout of the record is the same.

The rate includes the work of Python around it: making each record, and comparing every field with
its expected value.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import memenpsf

try:
    import numpy as np
except ImportError:  # the other ways do not need it
    np = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Callable

    from memenpsf import Interface

RECORD = "<QQQ"  # record n is (n, n + 1, n + 2)
CAPACITY = 4096
BATCH = 1024


class WrongRecord(Exception):
    """A record arrived that is not the one sent."""


def send_one(interface: Interface, total: int) -> None:
    """Send the records one by one."""
    for n in range(total):
        interface.xmit((n, n + 1, n + 2))


def receive_one(interface: Interface, total: int) -> None:
    """Receive and check the records one by one."""
    for n in range(total):
        record = interface.recv()
        if record != (n, n + 1, n + 2):
            raise WrongRecord(f"record {n} arrived as {record}")


def send_batch(interface: Interface, total: int) -> None:
    """Send the records in lists."""
    for start in range(0, total, BATCH):
        stop = min(start + BATCH, total)
        interface.xmit_many([(n, n + 1, n + 2) for n in range(start, stop)])


def receive_batch(interface: Interface, total: int) -> None:
    """Receive and check the records in lists."""
    start = 0
    while start < total:
        records = interface.recv_vectored(total - start)
        stop = start + len(records)
        if records != [(n, n + 1, n + 2) for n in range(start, stop)]:
            raise WrongRecord(f"one of the records {start} to {stop - 1} arrived wrong")
        start = stop


def send_array(interface: Interface, total: int) -> None:
    """Send the records in arrays."""
    for start in range(0, total, BATCH):
        interface.xmit_many(numbered(start, min(start + BATCH, total)))


def receive_array(interface: Interface, total: int) -> None:
    """Receive and check the records in arrays."""
    start = 0
    while start < total:
        records = interface.recv_vectored(total - start)
        stop = start + len(records)
        if not (records == numbered(start, stop)).all():
            raise WrongRecord(f"one of the records {start} to {stop - 1} arrived wrong")
        start = stop


def numbered(start: int, stop: int) -> Any:
    """Return records as an array."""
    return np.arange(start, stop, dtype="<u8")[:, np.newaxis] + np.arange(3, dtype="<u8")


class Way(NamedTuple):
    """A way to move the records."""

    title: str
    record: Any
    send: Callable[[Interface, int], None]
    receive: Callable[[Interface, int], None]


WAYS = {
    "one": Way("one by one", RECORD, send_one, receive_one),
    "batch": Way("in batches", RECORD, send_batch, receive_batch),
}
if np is not None:
    WAYS["array"] = Way("in arrays", np.dtype(("<u8", 3)), send_array, receive_array)


def send(way: Way, address: str, total: int) -> None:
    """Send all records, and the end of the stream."""
    with memenpsf.connect(address, way.record, name="sender", capacity=CAPACITY) as interface:
        way.send(interface, total)


def receive(way: Way, address: str, total: int) -> None:
    """Receive all records from the first client; print the rate."""
    with memenpsf.listen(address, way.record, name="receiver", capacity=1) as listener:
        print(f"listening at {listener.address}", flush=True)
        with next(iter(listener)) as interface:
            started = time.perf_counter()
            way.receive(interface, total)
            seconds = time.perf_counter() - started
            for record in interface:
                raise WrongRecord(f"after the {total} records came {record}")
    print(f"{way.title}: all {total:,} checked, {total / seconds:,.0f} records/s")


def main() -> int:
    """Read the command line; send or receive."""
    parser = argparse.ArgumentParser(
        prog="stream", description="Stream numbered records between two processes; check them all."
    )
    add = parser.add_argument
    add("side", choices=("send", "receive"))
    add("--by", choices=WAYS, default="batch", help="how (default: batch)")
    add("--records", type=int, default=1_000_000, metavar="N", help="how many (default: 1000000)")
    add("--address", default="stream", help="a bare name, a path, or @name (default: stream)")
    options = parser.parse_args()
    run = send if options.side == "send" else receive
    try:
        run(WAYS[options.by], options.address, options.records)
    except (WrongRecord, memenpsf.QueueError, OSError) as error:
        print(f"stream {options.side}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
