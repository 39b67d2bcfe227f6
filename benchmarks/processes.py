"""The controller's end: starts the two processes of a peer, gives orders, limits the waiting."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from . import peers, worker

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from .workloads import Case

REPOSITORY = Path(__file__).resolve().parent.parent
SPAWN = multiprocessing.get_context("spawn")
START = 30.0  # seconds for a process to start
CLOSE = 5.0  # seconds for a connection to end


def module_path() -> str:
    """Return where a program finds what this one found."""
    return os.pathsep.join([str(REPOSITORY), *filter(None, sys.path)])


class Failed(Exception):
    """A measurement could not be made; the reason is for people."""


class Process:
    """One worker."""

    def __init__(self, name: str, group: str, shared: Any, *, kin: bool) -> None:
        self.control, theirs = multiprocessing.Pipe()
        with theirs:
            if kin:
                self.process = self.spawn(theirs, name, group, shared)
            else:
                self.process = self.start(theirs, name, group)

    @staticmethod
    def spawn(control: Connection, name: str, group: str, shared: Any) -> Any:
        """Start it so that it inherits what connects it; not by fork."""
        arguments = (control, name, group, os.getpid(), shared)
        process = SPAWN.Process(target=worker.serve, args=arguments, daemon=True)
        process.start()
        return process

    @staticmethod
    def start(control: Connection, name: str, group: str) -> subprocess.Popen[bytes]:
        """Start it as a program of its own."""
        number = control.fileno()
        arguments = [str(number), name, group, str(os.getpid())]
        return subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", *arguments],
            pass_fds=[number],
            env={**os.environ, "PYTHONPATH": module_path()},
            stdin=subprocess.DEVNULL,
        )

    def order(self, name: str, *arguments: Any) -> None:
        """Tell it to do something."""
        try:
            self.control.send((name, arguments))
        except OSError as error:
            raise Failed(f"the process is gone: {error}") from error

    def reply(self, deadline: float) -> Any:
        """Return what it has to say to the last order."""
        left = max(0.0, deadline - time.monotonic())
        try:
            if not self.control.poll(left):
                raise Failed("timed out")
            well, result = self.control.recv()
        except (EOFError, OSError) as error:
            raise Failed("the process died") from error
        if not well:
            raise Failed(result)
        return result

    def end(self) -> None:
        """Kill it."""
        self.control.close()
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        if isinstance(self.process, subprocess.Popen):
            self.process.wait()
        else:
            self.process.join()
            self.process.close()


class Pair:
    """The two processes of a peer: a server and a client, with one connection at a time."""

    addresses = itertools.count()

    def __init__(self, name: str, group: str, folder: str, *, pinned: bool) -> None:
        self.name, self.group = name, group
        self.pinned = pinned
        self.kind = peers.load(name, group)
        self.folder = folder
        self.processes: list[Process] = []
        self.shared: Any = None
        self.connected = self.fresh = False
        self.sent = 0

    def open(self, case: Case, timeout: float) -> None:
        """Connect them anew, or only listen, as the case says; start them if they are not there."""
        self.launch(case.size)
        self.await_start()
        size, self.fresh = case.size, False
        deadline = time.monotonic() + timeout
        server, client = self.processes
        address = str(Path(self.folder) / str(next(self.addresses)))
        for process in self.processes:
            process.order("create", address, size, dict(case.setup))
            process.reply(deadline)
        server.order("call", "listen")
        server.reply(deadline)
        if not case.connects:
            server.order("call", "accept")
            client.order("call", "connect")
            replies([client, server], deadline)
        self.connected, self.sent = True, 0

    def launch(self, size: int) -> None:
        """Start both, unless they are there and can be used for this size; wait for nothing."""
        if self.fresh or (self.processes and not self.kind.kin):
            return
        self.stop()
        try:
            # Kept: what is shared may have a name only as long as its maker has it.
            self.shared = self.kind.share(size)
        except Exception as error:
            raise Failed(f"{type(error).__name__}: {error}") from error
        for _ in range(2):
            self.processes.append(Process(self.name, self.group, self.shared, kin=self.kind.kin))
        self.fresh = True

    def await_start(self) -> None:
        """Wait until both are ready."""
        if not self.fresh:
            return
        deadline = time.monotonic() + START
        for cpu, process in enumerate(self.processes):
            process.reply(deadline)
            if self.pinned:
                process.order("place", cpu)
                process.reply(deadline)

    def turn(
        self, roles: tuple[str, str], count: int, options: dict[str, Any], timeout: float
    ) -> list[dict[str, Any]]:
        """Have client and server do their roles; return what each tells."""
        what = {"first": self.sent, "count": count, **options}
        if "partner" in what:
            what["partner"] = self.processes[0].process.pid
        self.sent += count
        server, client = self.processes
        server.order("act", roles[1], what)
        client.order("act", roles[0], what)
        deadline = time.monotonic() + timeout
        return replies([client, server], deadline)

    def close(self) -> None:
        """End the connection, the client's side first; or the processes if that fails."""
        if not self.connected:
            return
        self.connected = False
        try:
            deadline = time.monotonic() + CLOSE
            for process in reversed(self.processes):
                process.order("call", "close")
                process.reply(deadline)
        except Failed:
            self.stop()

    def stop(self) -> None:
        """End both processes."""
        self.connected = self.fresh = False
        for process in self.processes:
            process.end()
        self.processes, self.shared = [], None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()


def replies(processes: list[Process], deadline: float) -> list[Any]:
    """Wait for all; if one fails, say so at once, as the other may wait for it for ever."""
    results: dict[int, Any] = {}
    while len(results) < len(processes):
        waiting = {i: p for i, p in enumerate(processes) if i not in results}
        left = max(0.0, deadline - time.monotonic())
        ready = multiprocessing.connection.wait([p.control for p in waiting.values()], left)
        if not ready:
            raise Failed("timed out")
        results |= {i: p.reply(deadline) for i, p in waiting.items() if p.control in ready}
    return [results[i] for i in range(len(processes))]
