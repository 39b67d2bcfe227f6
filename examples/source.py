"""What a counter server has for its clients; waits for nothing, so threads and Trio share it.

A source of records is Live or a Replay; what one client gets of it is its Feed.
"""

from __future__ import annotations

import logging
import threading
import time

from counters import Kind, Sample, commanded_interval, now, read_round
from recording import load, schedule

log = logging.getLogger("ipc_server")


class Live:
    """A source: the counters of this machine, round after round.

    All clients get the same rounds.  An interval that one of them commands holds for all, and all
    are told.
    """

    script: tuple[()] = ()
    endless = True

    def __init__(self, interval: float) -> None:
        self.interval = interval
        self._due = time.monotonic() + interval

    def __str__(self) -> str:
        return f"the counters of this machine every {self.interval:g} s"

    def greeting(self) -> list[Sample]:
        """Return what a new client gets at once."""
        return [self._notice(), *read_round()]

    def seconds_left(self) -> float:
        """Return how long it is until the next round."""
        return max(0.0, self._due - time.monotonic())

    def next_round(self) -> list[Sample]:
        """Return the round that is due; those that came too late are left out."""
        self._due = max(self._due + self.interval, time.monotonic())
        return read_round()

    def obey(self, message: bytes) -> list[Sample]:
        """Do what a client commands, and return what to tell all; ValueError if it cannot be."""
        self.interval = commanded_interval(message)
        self._due = time.monotonic() + self.interval
        return [self._notice()]

    def _notice(self) -> Sample:
        return Sample(now(), Kind.INTERVAL, b"", round(self.interval * 1000))


class Replay:
    """A source: a recording, for each client from its beginning and at its pace."""

    endless = False

    def __init__(self, path: str, speed: float) -> None:
        samples, rest = load(path)
        self.script = schedule(samples, speed)
        self._text = f"{len(samples)} records from {path}"
        if rest:
            self._text += f" (whose last record is cut off after {rest} bytes)"

    def __str__(self) -> str:
        return self._text

    def greeting(self) -> list[Sample]:
        """Return nothing: all is in the script."""
        return []

    def seconds_left(self) -> float:
        """Return for ever: there are no rounds for all."""
        return threading.TIMEOUT_MAX

    def next_round(self) -> list[Sample]:
        """Return nothing."""
        return []

    def obey(self, message: bytes) -> list[Sample]:
        """Raise ValueError, whatever it is."""
        raise ValueError(f"{message.hex(' ')}, since a recording keeps its own pace")


Source = Live | Replay


class Feed:
    """What one client gets of the rounds, which is what fits into its ring.

    So a client that is slow, stopped or dead delays nobody.  What does not fit is skipped, and
    that is said: in the log, and to the client, before the next record that it gets.
    """

    def __init__(self, number: int, pid: int) -> None:
        self._label = f"client {number}"
        self._untold = 0
        self.log(f"connected (process {pid})")

    def log(self, text: str) -> None:
        """Log something about this client."""
        log.info("%s: %s", self._label, text)

    def offer(self, samples: list[Sample]) -> list[Sample]:
        """Return what to send, if there is room."""
        if not samples or not self._untold:
            return samples
        return [Sample(samples[0].time, Kind.SKIPPED, b"", self._untold), *samples]

    def settle(self, offered: list[Sample], sent: int) -> None:
        """Note how much of an offer there was room for."""
        missed = sum(sample.kind != Kind.SKIPPED for sample in offered[sent:])
        self._untold = missed + (0 if sent else self._untold)
        if missed:
            self.log(f"too slow, {missed} records skipped")

    def command(self, source: Source, message: bytes) -> list[Sample]:
        """Do what this client commands, and return what to tell all."""
        try:
            notice = source.obey(message)
        except ValueError as error:
            self.log(f"command refused: {error}")
            return []
        self.log(f"command obeyed, {source} for all")
        return notice
