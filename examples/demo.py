"""Runs the examples together, and shows their output: `make demo`.

First it runs a counter server with two clients: one uses plain blocking calls; the other uses Trio,
and also commands a shorter interval.  Then it streams a million numbered records between two
processes, one by one, in batches, and with numpy in arrays, and checks each of them.  Then, if
their packages are installed, it streams a capture of network packets and video frames.  The exit
status is 0 if all went well, else 1; it takes less than a minute in any case.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator

PIPE = subprocess.PIPE
HERE = Path(__file__).parent
PATIENCE = 55  # seconds for all
ADDRESS = f"demo-{os.getpid()}"

LIBC = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1  # prctl(2)


class Failure(Exception):
    """An example failed."""


@contextlib.contextmanager
def example(
    script: str, *arguments: str, stdout: IO[str] | int | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Run one of the examples in a process that ends with this block, and dies with this one."""
    parent = os.getpid()

    def die_with_parent() -> None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    with subprocess.Popen(  # noqa: S603 (our own programs)
        [sys.executable, HERE / script, "--address", ADDRESS, *arguments],
        stdout=stdout,
        text=True,
        preexec_fn=die_with_parent,  # noqa: PLW1509 (there are no threads here)
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def first_line(process: subprocess.Popen[str]) -> str:
    """Wait for the first line of a server, which says that it has started."""
    line = process.stdout.readline() if process.stdout else ""
    if not line:
        raise Failure(f"{describe(process)} did not start")
    return line


def the_rest(process: subprocess.Popen[str]) -> str:
    """Wait for the end of a program, and return the rest of its output; Failure if it failed."""
    output = process.stdout.read() if process.stdout else ""
    if status := process.wait():
        raise Failure(f"{describe(process)} ended with status {status}")
    return output


def describe(process: subprocess.Popen[str]) -> str:
    """Return the command of a process."""
    command: Any = process.args
    return " ".join([command[1].name, *command[2:]])


def show(who: str, text: str, most: int) -> None:
    """Print the first lines of a program's output, and all lines about intervals."""
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if number < most or " interval " in line:
            print(f"  {who:12} | {line}")
    if len(lines) > most:
        print(f"  {who:12} | ... {len(lines)} lines in all")


def watch(seconds: float) -> None:
    """Let two clients watch one server."""
    print(f"The counters of this machine: one server, two clients, {seconds:g} s")
    one = "--seconds", str(seconds)
    other = *one, "--trio", "--interval", "0.2"
    with (
        example("ipc_server.py", stdout=PIPE) as server,
        tempfile.TemporaryFile("w+") as one_heard,  # files, because nobody reads along
        tempfile.TemporaryFile("w+") as other_heard,
    ):
        log = first_line(server)
        with (
            example("ipc_client.py", *one, stdout=one_heard) as client,
            example("ipc_client.py", *other, stdout=other_heard) as trio_client,
        ):
            the_rest(client)
            the_rest(trio_client)
        server.send_signal(signal.SIGINT)
        show("server", log + the_rest(server), most=20)
        for who, file in ("client", one_heard), ("client, Trio", other_heard):
            file.seek(0)
            show(who, file.read(), most=5)


def stream(records: int) -> None:
    """Let one process stream numbered records to another, in each of the ways."""
    print(f"\n{records:,} numbered records from one process to another")
    ways = ["one", "batch"]
    if has("numpy"):
        ways.append("array")
    for way in ways:
        how = "--by", way, "--records", str(records)
        with example("stream.py", *how, "receive", stdout=PIPE) as receiver:
            first_line(receiver)
            with example("stream.py", *how, "send") as sender:
                the_rest(sender)
            print(f"  {the_rest(receiver)}", end="")


def packets() -> None:
    """Stream a capture at the pace of its recording, to a client of each kind."""
    capture = HERE.parent / "tests/data/loopback.pcapng"
    print(f"\nA capture of {capture.stat().st_size:,} bytes, in the pace it was captured in")
    with (
        tempfile.TemporaryDirectory() as directory,
        example("packets/server.py", str(capture), "--speed", "1", stdout=PIPE) as server,
    ):
        first_line(server)
        copies = [Path(directory, name) for name in ("copy.pcapng", "again.pcapng")]
        for copy, kind in zip(copies, ([], ["--trio"]), strict=True):
            with example("packets/client.py", str(copy), *kind, stdout=PIPE) as client:
                print(f"  {the_rest(client).removeprefix(directory + '/')}", end="")
        server.send_signal(signal.SIGINT)
        show("server", the_rest(server), most=5)


def frames(count: int) -> None:
    """Hand over video frames, copied and in place."""
    print(f"\n{count} pictures of 1920 x 1080 in each of two ways")
    with example("frames/consumer.py", stdout=PIPE) as consumer:
        first_line(consumer)
        with example("frames/producer.py", "--frames", str(count), stdout=PIPE) as producer:
            show("producer", the_rest(producer), most=2)
        show("consumer", the_rest(consumer), most=5)


def has(*modules: str) -> bool:
    """Whether optional packages are installed."""
    return all(importlib.util.find_spec(module) for module in modules)


def too_late(*_: object) -> NoReturn:
    """Handle SIGALRM."""
    raise Failure(f"not done after {PATIENCE} s")


def main() -> int:
    """Run it all."""
    parser = argparse.ArgumentParser(prog="demo", description="Run the examples together.")
    add = parser.add_argument
    add("--seconds", type=float, default=3.0, metavar="S", help="watch so long (default: 3)")
    add("--records", type=int, default=1_000_000, metavar="N", help="stream so many (default: 1e6)")
    add("--frames", type=int, default=100, metavar="N", help="hand over so many (default: 100)")
    options = parser.parse_args()
    signal.signal(signal.SIGALRM, too_late)
    signal.alarm(PATIENCE)
    try:
        watch(options.seconds)
        stream(options.records)
        if has("scapy"):
            packets()
        if has("numpy", "PIL"):
            frames(options.frames)
    except Failure as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
