"""One of the two processes that exchange messages: does what the controller orders.

Orders come as (name, arguments) through a connection that was inherited; to each there is one
reply, (True, result) or (False, why not).
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import traceback
from multiprocessing.connection import Connection
from typing import Any

from . import peers
from .roles import ROLES

PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Be killed when the controller ends, however it ends."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


class Worker:
    """One side of the connections of one peer, one after another."""

    def __init__(self, name: str, group: str, shared: Any) -> None:
        self.kind = peers.load(name, group)
        self.shared = shared
        self.peer: peers.Peer | None = None
        self.cpus = self.everywhere = os.sched_getaffinity(0)

    def place(self, cpu: int) -> None:
        """Have the thread that sends or takes stay on one processor during turns.

        Threads that a peer started when it was opened may run anywhere.
        """
        allowed = sorted(self.everywhere)
        self.cpus = {allowed[cpu % len(allowed)]}

    def create(self, address: str, size: int, setup: dict[str, Any]) -> None:
        """Have a new connection, not open yet."""
        self.peer = self.kind(address, size, self.shared)
        for name, value in setup.items():
            setattr(self.peer, name, value)

    def call(self, method: str) -> None:
        """Open or close it."""
        getattr(self.peer, method)()

    def act(self, role: str, options: dict[str, Any]) -> dict[str, Any]:
        """Do a turn."""
        os.sched_setaffinity(0, self.cpus)
        try:
            return ROLES[role](self.peer, **options)
        finally:
            os.sched_setaffinity(0, self.everywhere)


def serve(control: Connection, name: str, group: str, parent: int, shared: Any = None) -> None:
    """Follow orders until the controller closes."""
    die_with_parent(parent)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is the controller's
    try:
        worker = Worker(name, group, shared)
        control.send((True, None))
        while True:
            order, arguments = control.recv()
            try:
                control.send((True, getattr(worker, order)(*arguments)))
            except Exception as error:  # noqa: BLE001 (the controller is told)
                what = traceback.extract_tb(error.__traceback__)[-1]
                place = f"{os.path.basename(what.filename)}:{what.lineno}"  # noqa: PTH119
                control.send((False, f"{type(error).__name__}: {error} ({place})"))
    except (EOFError, ConnectionError):
        pass
    # Threads and sockets of a peer, busy or broken, are no reason to stay.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])), sys.argv[2], sys.argv[3], int(sys.argv[4]))
