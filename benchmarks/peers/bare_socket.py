"""The bound for whoever sleeps: the round trip of a Unix stream socket, all of it in C."""

from __future__ import annotations

import functools
from typing import Any

from benchmarks import baselines

from .sockets import Stream

C: Any = baselines.load("trips")


class Trips(Stream):
    """Blocking send and recv, all trips of a turn in one call; no Python in between to disturb."""

    workloads = ("roundtrip",)
    can_poll = False

    def use(self, sock: Any) -> None:
        """Know the two loops."""
        super().use(sock)
        self.ask_all = functools.partial(C.ask, sock.fileno())
        self.answer_all = functools.partial(C.answer, sock.fileno())
