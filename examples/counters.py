"""What the counter server and its clients share: the record, and one command.

The server reads the counters of its machine in rounds; every record of a round has the same time.
All kinds of record share one layout, so one queue carries them in order.  FIELDS says what the
numbers of each kind mean.

Everything here is pure except read_round(), which reads /proc.
"""

import argparse
import enum
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

from memenpsf import u8, u64


class Kind(enum.IntEnum):
    """What a record is about."""

    CPU = 1
    MEMORY = 2
    NETWORK = 3
    INTERVAL = 4  # from the server: the time between two rounds from now on
    SKIPPED = 5  # from the server: how many records are missing here; this client was too slow


FIELDS: dict[int, tuple[str, ...]] = {
    # Clock ticks since boot; these four are not all kinds of time.
    Kind.CPU: ("user", "system", "idle", "stolen"),
    # Bytes.
    Kind.MEMORY: ("total", "free", "available", "cached"),
    # Since the device exists.
    Kind.NETWORK: ("rx_bytes", "rx_packets", "tx_bytes", "tx_packets"),
    Kind.INTERVAL: ("milliseconds",),
    Kind.SKIPPED: ("records",),
}


class Sample(NamedTuple):
    """One record: up to four numbers about one thing at one time."""

    time: u64  # nanoseconds since boot, including time asleep: it never goes back
    kind: u8
    name: Annotated[bytes, "16s"]  # cpu0, eth0, ...; comes back padded with NULs
    a: u64 = 0
    b: u64 = 0
    c: u64 = 0
    d: u64 = 0


def now() -> int:
    """Return the time for a record."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def read_round() -> list[Sample]:
    """Read the counters of this machine."""
    at, proc = now(), Path("/proc")
    return [
        *parse_stat(at, (proc / "stat").read_bytes()),
        parse_meminfo(at, (proc / "meminfo").read_bytes()),
        *parse_net_dev(at, (proc / "net/dev").read_bytes()),
    ]


def parse_stat(at: int, text: bytes) -> Iterator[Sample]:
    """Yield a record for each core in /proc/stat: proc_stat(5)."""
    for name, columns in re.findall(rb"^(cpu\d+) (.*)$", text, re.MULTILINE):
        # What follows, guest time, is contained in user and nice.
        user, nice, system, idle, iowait, irq, softirq, steal = map(int, columns.split()[:8])
        busy = user + nice, system + irq + softirq
        yield Sample(at, Kind.CPU, name, *busy, idle + iowait, steal)


def parse_meminfo(at: int, text: bytes) -> Sample:
    """Return the record for /proc/meminfo: proc_meminfo(5)."""
    sizes = dict(re.findall(rb"^(\w+): +(\d+) kB$", text, re.MULTILINE))
    wanted = b"MemTotal", b"MemFree", b"MemAvailable", b"Cached"
    return Sample(at, Kind.MEMORY, b"", *(int(sizes[key]) * 1024 for key in wanted))


def parse_net_dev(at: int, text: bytes) -> Iterator[Sample]:
    """Yield a record for each device in /proc/net/dev: proc_pid_net(5).

    A name has at most 15 bytes, any but whitespace, slash and colon.
    """
    for line in text.splitlines():
        name, colon, columns = line.rpartition(b":")
        if colon:  # the two heading lines have none
            received, sent = columns.split()[:2], columns.split()[8:10]
            yield Sample(at, Kind.NETWORK, name.strip(b" "), *map(int, received + sent))


# The command: two bytes, as Interface.send_ctrl_msg takes them.  The second is the interval in
# tenths of a second, so from 0.1 to 25.5 seconds.

SET_INTERVAL = 128


def interval_command(seconds: float) -> bytes:
    """Return the command that sets the server's interval; raise ValueError if it has none."""
    tenths = round(seconds * 10) if 0 < seconds < 26 else 0  # noqa: PLR2004 (or round may raise)
    if not (1 <= tenths <= 255 and abs(seconds * 10 - tenths) < 1e-6):  # noqa: PLR2004 (one byte)
        raise ValueError(f"an interval is 0.1 to 25.5 seconds, in steps of 0.1, not {seconds:g}")
    return bytes((SET_INTERVAL, tenths))


def commanded_interval(message: bytes) -> float:
    """Return the seconds that a command asks for; raise ValueError if it is none."""
    command, tenths = message
    if command != SET_INTERVAL or tenths == 0:
        raise ValueError(f"{message.hex(' ')} means nothing here")
    return tenths / 10


def interval_argument(text: str) -> float:
    """Return an interval from the command line."""
    try:
        interval_command(seconds := float(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return seconds
