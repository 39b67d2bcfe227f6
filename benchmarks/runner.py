"""Measures: opens all peers of a case, finds how many messages fill a turn, has them take turns."""

from __future__ import annotations

import contextlib
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from . import peers
from .peers import GROUPS
from .processes import Failed, Pair, module_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from .workloads import Case, Workload

OPEN = 20.0  # seconds for a connection to be there
FEW = 8  # messages of the first turn, which is not counted
FEW_LARGE = 2  # the same from 1 MiB on
LARGE = 1 << 20
MOST = 5_000_000  # messages of any turn
GROWTH = 10  # how much longer one turn can be than the one before, while calibrating


@dataclass
class Result:
    """A cell of a table."""

    workload: str
    case: str
    peer: str
    values: list[float] = field(default_factory=list)
    failure: str | None = None

    @property
    def median(self) -> float:
        """Return what stands in the table."""
        return statistics.median(self.values)


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    repeats: int
    seconds: float  # of a turn
    timeout: float  # seconds that a turn may take before it is given up
    pinned: bool = True  # either process on a processor of its own


class Runner:
    """All pairs of processes, started when needed."""

    def __init__(self, folder: str, effort: Effort, tell: Callable[[str], None]) -> None:
        self.folder = folder
        self.effort = effort
        self.tell = tell
        self.stack = contextlib.ExitStack()
        self.pairs: dict[tuple[str, str], Pair] = {}
        self.absent: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stack.close()

    def available(self, names: Iterable[str], group: str) -> dict[str, Pair]:
        """Return those that can be had, and remember why others cannot."""
        found = {}
        for name in names:
            if (group, name) not in self.pairs and name not in self.absent:
                try:
                    pair = Pair(name, group, self.folder, pinned=self.effort.pinned)
                except peers.Absent as absent:
                    self.absent[name] = str(absent)
                    continue
                self.pairs[group, name] = self.stack.enter_context(pair)
            if (group, name) in self.pairs:
                found[name] = self.pairs[group, name]
        return found

    def keep_only(self, group: str) -> None:
        """End the processes of all other groups: they take memory."""
        for (other, _), pair in self.pairs.items():
            if other != group:
                pair.stop()

    def measure(self, workload: Workload, case: Case, names: Iterable[str]) -> list[Result]:
        """Measure all peers of a case, in turns."""
        pairs = self.available(names, workload.group)
        pairs = {name: pair for name, pair in pairs.items() if fits(pair, workload, case)}
        results = {name: Result(workload.name, case.label, name) for name in pairs}
        counts: dict[str, int] = {}

        def launch(name: str) -> None:
            pairs[name].launch(case.size)

        def connect(name: str) -> None:
            pairs[name].open(case, OPEN)

        def prepare(name: str) -> None:
            counts[name] = self.messages(pairs[name], case)

        def measure(name: str) -> None:
            value, _ = self.turn(pairs[name], case, counts[name])
            results[name].values.append(value)

        # Step by step, so that no process starts while another is measured.
        for step in (launch, connect, prepare, *[measure] * self.effort.repeats):
            for name, result in results.items():
                if result.failure is None:
                    with self.guarded(result, pairs[name]):
                        step(name)
        for pair in pairs.values():
            pair.close()
        return list(results.values())

    @contextlib.contextmanager
    def guarded(self, result: Result, pair: Pair) -> Iterator[None]:
        """Make a failure part of the result, and the next case start with new processes."""
        try:
            yield
        except Failed as failed:
            result.failure = str(failed)
            pair.stop()
            self.tell(f"{result.workload}, {result.case}, {result.peer}: {failed}")

    def turn(self, pair: Pair, case: Case, count: int) -> tuple[float, float]:
        """Do one turn; return its value, and the seconds it took."""
        if case.connects and pair.sent:
            pair.close()
            pair.open(case, OPEN)
        options = dict(case.options)
        if case.timed:
            options |= {"seconds": self.effort.seconds * case.stretch, "partner": None}
        started = time.monotonic()
        client, server = pair.turn(case.roles, count, options, self.effort.timeout)
        taken = time.monotonic() - started
        assert case.value is not None, "a case has a value"
        return case.value(count, client, server), taken

    def messages(self, pair: Pair, case: Case) -> int:
        """Return how many messages make a turn."""
        if case.pace is not None:
            return max(1, round(case.pace * self.effort.seconds * case.stretch))
        if case.count is not None:
            self.turn(pair, case, case.count)  # to be warm
            return case.count
        return self.calibrated(pair, case)

    def calibrated(self, pair: Pair, case: Case) -> int:
        """Warm up; return how many messages fill a turn."""
        least = FEW_LARGE if case.size >= LARGE else FEW
        count = least
        self.turn(pair, case, count)  # both make their messages, which tells nothing of the rest
        while True:
            _, taken = self.turn(pair, case, count)
            wanted = self.effort.seconds * case.stretch / taken
            if wanted <= GROWTH / 3:
                return max(least, min(MOST, round(count * wanted)))
            if count >= MOST:
                return MOST
            count = min(MOST, count * GROWTH)


def imports(workload: Workload, names: Iterable[str], effort: Effort) -> list[Result]:
    """Measure how long programs take that only import; the first is an empty one, for the rest."""
    programs = GROUPS[workload.group]
    empty = next(iter(programs))
    wanted = {name: programs[name] for name in (empty, *names) if name in programs}
    with tempfile.TemporaryDirectory() as compiled:
        # The first time compiles, as installing does; modules in a working copy may be new.
        taken: dict[str, list[float]] = {
            name: [] for name in wanted if started(wanted[name], effort, compiled) is not None
        }
        for _ in range(effort.repeats):
            for name, values in taken.items():
                values.append(started(wanted[name], effort, compiled) or math.nan)
    base = statistics.median(taken.pop(empty))
    case = workload.cases[0].label
    return [
        Result(workload.name, case, name, [max(0.0, value - base) for value in values])
        for name, values in taken.items()
    ]


def started(program: str, effort: Effort, compiled: str) -> float | None:
    """Return the milliseconds that a program takes; None if it cannot be run.

    `compiled` is where it finds compiled modules, and puts them.
    """
    settings = {"PYTHONPATH": module_path(), "PYTHONPYCACHEPREFIX": compiled}
    environment = {**os.environ, **settings}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    begun = time.perf_counter()
    try:
        done = subprocess.run(
            [sys.executable, "-c", program],
            timeout=effort.timeout,
            check=False,
            capture_output=True,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        return None
    return None if done.returncode else (time.perf_counter() - begun) * 1e3


def fits(pair: Pair, workload: Workload, case: Case) -> bool:
    """Tell whether a peer can do it at all."""
    kind = pair.kind
    if kind.workloads is not None and workload.name not in kind.workloads:
        return False
    if kind.largest is not None and case.size > kind.largest:
        return False
    return case.fits is None or case.fits(kind)
