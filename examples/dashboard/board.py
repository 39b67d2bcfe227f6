"""The newest reading of each counter, and how fast it counts.  Pure: it waits for nothing.

However many records come, the board keeps one for each counter, and ten times a second a copy of
those, for a second.  So there is no backlog: what it shows is the newest.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from readings import Reading, Unit

if TYPE_CHECKING:
    from collections.abc import Iterable

TICK = 0.1  # seconds between two states
KEPT = 10  # states before the newest: rates are those of the last second
SILENT = 1.0  # seconds without a record, after which the page says so


class State(NamedTuple):
    """What was known at one time."""

    time: float  # seconds, of any clock
    busy: float  # seconds of processor time that this process has taken
    received: int
    newest: dict[bytes, Reading]


class Board:
    """What the page shows."""

    def __init__(self, waiting_for: str) -> None:
        self.browsers = 0
        self._waiting_for = waiting_for
        self._received = 0
        self._newest: dict[bytes, Reading] = {}
        self._states: deque[State] = deque(maxlen=KEPT + 1)
        self._last_news = 0.0
        self.end("no producer yet")

    def begin(self, producer: str) -> None:
        """Note that there is a producer."""
        self._producer = producer
        self._live = True
        self._newest = {}
        self._states.clear()

    def end(self, why: str) -> None:
        """Note that there is no producer any more, and why; the numbers stay."""
        self._why = why
        self._live = False
        self._states.clear()

    def take(self, readings: Iterable[Reading]) -> None:
        """Keep the newest of each counter."""
        newest = self._newest
        for reading in readings:
            newest[reading.name] = reading
            self._received += 1

    def tick(self, now: float) -> dict[str, Any]:
        """Return what the page shows now, as JSON has it; called every TICK seconds."""
        before = self._states[-1] if self._states else None
        if before is None or before.received != self._received:
            self._last_news = now
        state = State(now, time.process_time(), self._received, self._newest.copy())
        self._states.append(state)
        old = self._states[0]
        seconds = state.time - old.time
        status, text = self._status(now)
        return {
            "status": status,
            "text": text,
            "received": state.received,
            "rate": (state.received - old.received) / seconds if seconds else None,
            "busy": (state.busy - old.busy) / seconds if seconds else None,
            "browsers": self.browsers,
            "counters": [
                self._shown(reading, old.newest.get(name)) for name, reading in state.newest.items()
            ],
        }

    def _status(self, now: float) -> tuple[str, str]:
        if not self._live:
            return "waiting", f"{self._why}; waiting for one at {self._waiting_for}"
        if now - self._last_news >= SILENT:
            return "silent", f"{self._producer} is there, but sends nothing"
        return "live", f"live from {self._producer}"

    def _shown(self, new: Reading, old: Reading | None) -> dict[str, Any]:
        rate = None
        if self._live and old is not None and new.time > old.time:
            # One that has become smaller was never exact (waiting for disks): that counts as 0.
            rate = max(0, new.value - old.value) / (new.time - old.time) * 1e9
        return {
            "name": new.name.rstrip(b"\0").decode("ascii", "replace"),
            "unit": Unit(new.unit).name.lower() if new.unit in set(Unit) else "count",
            "value": new.value,
            "rate": rate,
        }
