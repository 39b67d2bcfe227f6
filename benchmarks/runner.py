"""Measures: opens all peers of a case, finds how many messages fill a turn, has them take turns."""

from __future__ import annotations

import contextlib
import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from . import peers
from .processes import Failed, Pair

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from .workloads import Case, Workload

OPEN = 20.0  # seconds for a connection to be there
FEW = 8  # messages of the first turn, which is not counted
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
        self.pairs: dict[str, Pair] = {}
        self.absent: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stack.close()

    def pair(self, name: str) -> Pair:
        """Return what will be the two processes of a peer."""
        return Pair(name, self.folder, pinned=self.effort.pinned)

    def available(self, names: Iterable[str]) -> list[str]:
        """Return those that can be had, and remember why others cannot."""
        for name in names:
            if name not in self.pairs and name not in self.absent:
                try:
                    self.pairs[name] = self.stack.enter_context(self.pair(name))
                except peers.Absent as absent:
                    self.absent[name] = str(absent)
        return [name for name in names if name in self.pairs]

    def measure(self, workload: Workload, case: Case, names: Iterable[str]) -> list[Result]:
        """Measure all peers of a case, in turns."""
        results = {
            name: Result(workload.name, case.label, name)
            for name in self.available(names)
            if fits(self.pairs[name], case)
        }
        counts: dict[str, int] = {}
        for name, result in results.items():
            with self.guarded(result):
                self.pairs[name].open(case.size, OPEN)
                counts[name] = case.count or self.calibrated(self.pairs[name], case)
        for _ in range(self.effort.repeats):
            for name, result in results.items():
                if result.failure is None:
                    with self.guarded(result):
                        value, _ = self.turn(self.pairs[name], case, counts[name])
                        result.values.append(value)
        for name in results:
            self.pairs[name].close()
        return list(results.values())

    @contextlib.contextmanager
    def guarded(self, result: Result) -> Iterator[None]:
        """Make a failure part of the result, and the next case start with new processes."""
        try:
            yield
        except Failed as failed:
            result.failure = str(failed)
            self.pairs[result.peer].stop()
            self.tell(f"{result.workload}, {result.case}, {result.peer}: {failed}")

    def turn(self, pair: Pair, case: Case, count: int) -> tuple[float, float]:
        """Do one turn; return its value, and the seconds it took."""
        started = time.monotonic()
        client, server = pair.turn(case.roles, count, dict(case.options), self.effort.timeout)
        taken = time.monotonic() - started
        assert case.value is not None, "a case has a value"
        return case.value(count, client, server), taken

    def calibrated(self, pair: Pair, case: Case) -> int:
        """Warm up; return how many messages fill a turn."""
        count = FEW
        while True:
            _, taken = self.turn(pair, case, count)
            wanted = self.effort.seconds * case.stretch / taken
            if wanted <= GROWTH / 3:
                return max(FEW, min(MOST, round(count * wanted)))
            if count >= MOST:
                return MOST
            count = min(MOST, count * GROWTH)


def fits(pair: Pair, case: Case) -> bool:
    """Tell whether a peer can do it at all."""
    kind = pair.kind
    if kind.largest is not None and case.size > kind.largest:
        return False
    return case.fits is None or case.fits(kind)
