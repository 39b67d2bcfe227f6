"""What the sampler and the dashboard share: the record.  And how /proc is read.

A reading says how far one counter of this machine has got at one time.  A round is one reading of
every counter.  The names are bytes: a name as text (str) would be more convenient, but is encoded
and decoded by a function of Python, which is fifteen times slower.
"""

import enum
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

from memenpsf import u8, u64

ADDRESS = "dashboard"  # where the sampler listens, unless told otherwise

_PROC = Path("/proc")
_TICK = 10**9 // os.sysconf("SC_CLK_TCK")  # nanoseconds


class Unit(enum.IntEnum):
    """What a counter counts."""

    COUNT = 0
    BYTES = 1
    NANOSECONDS = 2


class Reading(NamedTuple):
    """The value of one counter at one time."""

    time: u64  # nanoseconds since boot, including time asleep: it never goes back
    value: u64
    unit: u8
    name: Annotated[bytes, "31s"]  # group/counter; comes back padded with NULs


def read_round() -> list[Reading]:
    """Read the counters of this machine."""
    now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    files = (
        (parse_stat, "stat"),
        (parse_vmstat, "vmstat"),
        (parse_net_dev, "net/dev"),
    )
    return [
        Reading(now, value, unit, name)
        for parse, file in files
        for name, unit, value in parse((_PROC / file).read_bytes())
    ]


def parse_stat(text: bytes) -> Iterator[tuple[bytes, Unit, int]]:
    """Yield the counters of /proc/stat, of all processors together: proc_stat(5)."""
    lines = dict(re.findall(rb"^(cpu|ctxt|intr|softirq|processes) +(.*)$", text, re.MULTILINE))
    # What follows, guest time, is contained in user and nice.
    user, nice, system, idle, disk, irq, softirq, stolen = map(int, lines[b"cpu"].split()[:8])
    for name, ticks in (
        (b"programs", user + nice),
        (b"kernel", system),
        (b"interrupts", irq + softirq),
        (b"stolen", stolen),
        (b"waiting for disks", disk),
        (b"idle", idle),
    ):
        yield b"processors/" + name, Unit.NANOSECONDS, ticks * _TICK
    for name, line in (
        (b"context switches", b"ctxt"),
        (b"interrupts", b"intr"),
        (b"software interrupts", b"softirq"),
        (b"processes started", b"processes"),
    ):
        yield b"kernel/" + name, Unit.COUNT, int(lines[line].split(maxsplit=1)[0])


def parse_vmstat(text: bytes) -> Iterator[tuple[bytes, Unit, int]]:
    """Yield some counters of /proc/vmstat: proc_vmstat(5)."""
    lines = dict(re.findall(rb"^(pgpgin|pgpgout|pgfault|pgmajfault) (\d+)$", text, re.MULTILINE))
    yield b"memory/page faults", Unit.COUNT, int(lines[b"pgfault"])
    yield b"memory/major page faults", Unit.COUNT, int(lines[b"pgmajfault"])
    yield b"disks/read", Unit.BYTES, int(lines[b"pgpgin"]) * 1024
    yield b"disks/written", Unit.BYTES, int(lines[b"pgpgout"]) * 1024


def parse_net_dev(text: bytes) -> Iterator[tuple[bytes, Unit, int]]:
    """Yield the counters of /proc/net/dev, of all devices together: proc_pid_net(5)."""
    rows = [line.rpartition(b":")[2].split() for line in text.splitlines()[2:]]
    for name, unit, column in (
        (b"received", Unit.BYTES, 0),
        (b"packets received", Unit.COUNT, 1),
        (b"sent", Unit.BYTES, 8),
        (b"packets sent", Unit.COUNT, 9),
    ):
        yield b"network/" + name, unit, sum(int(row[column]) for row in rows)
