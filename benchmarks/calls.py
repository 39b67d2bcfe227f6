"""What one xmit and one recv cost, and where the time goes.

python benchmarks/calls.py

Both ends in one process, so that nothing waits; the least of many rounds, as everything else on
the machine only adds.  Each line is one layer of the same call, from the C core outwards; what
a layer adds is the difference to the line above it.
"""

from __future__ import annotations

import argparse
import platform
import timeit
from typing import TYPE_CHECKING

from ipcqueue._core import lib

import memenpsf

if TYPE_CHECKING:
    from collections.abc import Callable

CALLS = 10_000
CAPACITY = 1 << 14


def least(call: Callable[[], object], rounds: int, between: Callable[[], object]) -> float:
    """Return nanoseconds per call; `between` makes room, or records, for each round."""
    times = []
    for _ in range(rounds):
        between()
        times.append(timeit.timeit(call, number=CALLS) / CALLS * 1e9)
    return min(times)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, default=64, help="bytes of a record (64)")
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    record = bytes(options.size)
    one, other = memenpsf.pair(options.size, capacity=CAPACITY)
    sender, receiver = one._endpoint.sender, other._endpoint.receiver  # noqa: SLF001 (layer by layer)
    assert sender is not None
    assert receiver is not None

    def drain() -> None:
        while len(other.recv_vectored(timeout=0)):
            pass

    def fill() -> None:
        drain()
        one.xmit_many([record] * CALLS)

    def nothing() -> None:
        pass

    def lock() -> None:
        with receiver._lock:  # noqa: SLF001
            pass

    rows: list[tuple[str, Callable[[], object], Callable[[], object]]] = [
        ("a call that does nothing", nothing, nothing),
        ("a call into C by cffi", lib.ipcq_fork_generation, nothing),
        ("taking and leaving the lock", lock, nothing),
        ("xmit: the record to bytes", lambda: sender._encode(record), nothing),  # noqa: SLF001
        ("xmit: the C core", lambda: lib.ipcq_push(sender._ring, record), drain),  # noqa: SLF001
        ("xmit: the ring", lambda: sender.try_push(record), drain),
        ("xmit", lambda: one.xmit(record), drain),
        ("recv: bytes to the record", lambda: receiver._decode(receiver._one), nothing),  # noqa: SLF001
        ("recv: the ring, the slow path", receiver.try_pop, fill),
        ("recv", other.recv, fill),
    ]
    print(f"{platform.machine()}, Python {platform.python_version()}, {options.size} bytes")
    for what, call, between in rows:
        print(f"{what:32} {least(call, options.rounds, between):8.0f} ns")
    for what, size in (("xmit_many", CALLS), ("recv_vectored", CALLS)):
        times = []
        for _ in range(options.rounds):
            drain()
            batch = [record] * size
            if what == "recv_vectored":
                one.xmit_many(batch)
                times.append(timeit.timeit(other.recv_vectored, number=1) / size * 1e9)
            else:
                times.append(
                    timeit.timeit(lambda batch=batch: one.xmit_many(batch), number=1) / size * 1e9
                )
        print(f"{what + ', per record':32} {min(times):8.0f} ns")
    one.close()
    other.close()


if __name__ == "__main__":
    main()
