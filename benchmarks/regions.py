"""Where reusing memory regions pays: made anew, reused, or copied through the socket.

Two processes, a socket pair. For every message the giver writes all of it, the receiver reads all
of it and answers with one byte; the time is from before getting memory until that answer:

    fresh    MemoryRegion.create(), filled, frozen, given; the receiver maps and closes it
    reused   MemoryRegistry.alloc(), filled, given; the receiver maps and closes it; it comes home
    copied   filled in memory that stays, sent through the socket, received into memory that stays

Filling and reading are one memcpy each, from and to memory that stays warm, in all three alike.
The three take turns, so that what disturbs the machine disturbs them all; shown are medians.
"""

import argparse
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import fdpass
from fdpass import MemoryRegion, MemoryRegistry

KIB, MIB = 1 << 10, 1 << 20
SIZES = (64 * KIB, MIB, 8 * MIB, 64 * MIB)
QUICK = (64 * KIB, MIB)


def receive(sock: socket.socket) -> None:
    """Read messages, given or copied, until the giver closes."""
    while header := sock.recv(9, socket.MSG_WAITALL):
        size = int.from_bytes(header[1:], "little")
        # A view, as a bytearray makes a temporary copy of any view assigned to a slice of it.
        scratch, landing = memoryview(bytearray(size)), bytearray(size)
        sock.sendall(b"!")
        for _ in range(header[0]):
            data, fds = fdpass.recv_fds(sock, max_data=1)
            if fds:
                with MemoryRegion.adopt(fds, max_size=2 * size) as region:
                    scratch[:] = region.buffer[:size]
            else:
                sock.recv_into(landing, size, socket.MSG_WAITALL)
                scratch[:] = landing
            assert scratch[0] == scratch[-1] == data[0], "the message is not the one announced"
            sock.sendall(b"!")


class Giver:
    """Sends messages of one size in each of the three ways."""

    def __init__(self, sock: socket.socket, registry: MemoryRegistry, size: int) -> None:
        self.sock, self.registry, self.size = sock, registry, size
        self.source = bytearray(os.urandom(KIB) * (size // KIB))
        self.staying = memoryview(bytearray(size))
        self.number = 0

    def fresh(self) -> None:
        """Give a region that is frozen and never used again."""
        with MemoryRegion.create(self.size) as region:
            region.buffer[:] = self.source
            fdpass.send_fds(self.sock, region.descriptors(), bytes([self.number]))

    def reused(self) -> None:
        """Give a region that has come home."""
        with self.registry.alloc(self.size) as region:
            region.buffer[: self.size] = self.source
            fdpass.send_fds(self.sock, region.descriptors(), bytes([self.number]))

    def copied(self) -> None:
        """Send the bytes themselves."""
        self.staying[:] = self.source
        self.sock.sendall(bytes([self.number]))
        self.sock.sendall(self.staying)

    def measure(self, way: Callable[[], None], messages: int) -> list[float]:
        """Send some messages; return the seconds each took."""
        self.sock.sendall(bytes([messages]) + self.size.to_bytes(8, "little"))
        self.sock.recv(1)
        seconds = []
        for _ in range(messages):
            self.number = (self.number + 1) % 256
            self.source[0] = self.source[-1] = self.number
            start = time.perf_counter()
            way()
            self.sock.recv(1)
            seconds.append(time.perf_counter() - start)
        return seconds


def compare(sock: socket.socket, size: int, rounds: int, messages: int) -> None:
    """Print one line: the three medians in microseconds, and the ratios to the reused one."""
    with MemoryRegistry() as registry:
        giver = Giver(sock, registry, size)
        ways = {"fresh": giver.fresh, "reused": giver.reused, "copied": giver.copied}
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for way in ways.values():
            giver.measure(way, 2)  # not counted
        for _ in range(rounds):
            for name, way in ways.items():
                seconds[name] += giver.measure(way, messages)
        made = registry.statistics().created
    medians = {name: statistics.median(taken) * 1e6 for name, taken in seconds.items()}
    shown = f"{size // MIB} MiB" if size >= MIB else f"{size // KIB} KiB"
    print(
        f"{shown:>8}"
        + "".join(f"{median:>13,.0f}" for median in medians.values())
        + "".join(f"{medians[name] / medians['reused']:>16.2f}" for name in ("fresh", "copied"))
        + f"{made:>13}"
    )


def pinned(cpu: int) -> None:
    """Stay on one of the processors this process may use."""
    allowed = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {allowed[cpu % len(allowed)]})


def main() -> None:
    """Start the receiver and compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="two sizes, few rounds")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each way, per size")
    parser.add_argument("--receiver", type=int, metavar="FD", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.receiver is not None:
        pinned(1)
        with socket.socket(fileno=options.receiver) as sock:
            receive(sock)
        return

    rounds = 3 if options.quick else options.rounds
    here, there = socket.socketpair()
    command = [sys.executable, str(Path(__file__)), "--receiver", str(there.fileno())]
    with here:
        with there:
            receiver = subprocess.Popen(
                command,
                pass_fds=[there.fileno()],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            )
        pinned(0)
        print(
            f"Linux {platform.release()}, Python {platform.python_version()}, {os.cpu_count()} CPUs"
        )
        print("microseconds a message, medians; ratios above 1 mean that reusing is faster")
        print(
            f"{'size':>8}{'fresh':>13}{'reused':>13}{'copied':>13}"
            f"{'fresh/reused':>16}{'copied/reused':>16}{'regions made':>13}"
        )
        for size in QUICK if options.quick else SIZES:
            compare(here, size, rounds, messages=max(3, min(100, 64 * MIB // size)))
    receiver.wait(timeout=30)


if __name__ == "__main__":
    main()
