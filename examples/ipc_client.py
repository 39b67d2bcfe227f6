"""Shows the counters of a machine live, as ipc_server.py streams them.

    python ipc_server.py              # in one terminal
    python ipc_client.py              # in another, as often as you like; or with --trio

In a terminal it draws a table; otherwise it writes one line per record.  It can set the server's
interval (--interval), and record the stream for `ipc_server.py --replay` (--record).

It shows connect() with plain threads and with Trio side by side, typed records, recv_vectored()
with a limit and a timeout, control messages, and how a connection can end.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import math
import os
import shutil
import sys
import time
from typing import TYPE_CHECKING, Any, Self

import trio
from counters import Sample, interval_argument, interval_command
from display import Table, line, screen
from recording import Recorder, RecordingError

import memenpsf
import memenpsf.asyncio
import memenpsf.trio
from memenpsf import EndOfStream, PeerDied, QueueError, ReceiverGone

if TYPE_CHECKING:
    from collections.abc import Callable

EXIT_STATUS = """\
exit status: 0 the end of the stream, enough records (--count, --seconds), or Ctrl-C;
1 no server, or it cannot be used, or --record failed; 2 wrong arguments; 3 the server died
"""
NAME = "ipc_client"


class Session:
    """When a client stops, and what it does with its records; nothing here waits."""

    def __init__(self, options: argparse.Namespace, show: Callable[[list[Sample]], None]) -> None:
        self.command: bytes | None = options.interval and interval_command(options.interval)
        self.limit: int | None = options.count
        self._seconds: float = options.seconds
        self._show = show
        self._path: str | None = options.record
        self._resources = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Begin: there is a server, so now a recording may replace an older one."""
        self._deadline = time.monotonic() + self._seconds
        self._recorder = self._resources.enter_context(Recorder(self._path)) if self._path else None
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._resources.close()

    def seconds_left(self) -> float:
        """Return how long to wait for the next record."""
        return max(0.0, self._deadline - time.monotonic())

    def goes_on(self) -> bool:
        """Return whether more records are wanted."""
        return self.limit != 0 and self.seconds_left() > 0

    def take(self, samples: list[Sample]) -> None:
        """Record and show what has come."""
        if self.limit is not None:
            self.limit -= len(samples)
        if self._recorder:
            self._recorder.write(samples)
        self._show(samples)


def watch(address: str, session: Session) -> None:
    """Show the stream, with plain blocking calls."""
    with memenpsf.connect(address, Sample, name=NAME, capacity=1) as interface, session:
        if session.command:
            # A server that has ended already may have left records to receive.
            with contextlib.suppress(ReceiverGone, PeerDied):
                interface.send_ctrl_msg(session.command)
        try:
            while session.goes_on():
                session.take(interface.recv_vectored(session.limit, session.seconds_left()))
        except KeyboardInterrupt:
            interface.close()  # in good order: an exception that leaves the block aborts
            raise


async def watch_by_task(door: Any, address: str, session: Session) -> None:
    """Show the stream, as a task of Trio or asyncio; otherwise the same."""
    interface = await door.connect(address, Sample, name=NAME, capacity=1)
    async with interface:
        with session:
            if session.command:
                with contextlib.suppress(ReceiverGone, PeerDied):
                    await interface.send_ctrl_msg(session.command)
            try:
                while session.goes_on():
                    session.take(
                        await interface.recv_vectored(session.limit, session.seconds_left())
                    )
            except (KeyboardInterrupt, asyncio.CancelledError):  # asyncio cancels at Ctrl-C
                interface.close()
                raise


def show_lines(samples: list[Sample]) -> None:
    """Write one line per record."""
    sys.stdout.write("".join(f"{line(sample)}\n" for sample in samples))
    sys.stdout.flush()


def show_table(table: Table, samples: list[Sample]) -> None:
    """Draw the table anew, over the one before."""
    table.update(samples)
    sys.stdout.write(screen(table.lines(), *shutil.get_terminal_size()))
    sys.stdout.flush()


def number(text: str) -> float:
    """Return a number of seconds from the command line."""
    if not (value := float(text)) >= 0:
        raise ValueError(text)
    return value


def count(text: str) -> int:
    """Return a number of records from the command line."""
    if (value := int(text)) < 0:
        raise ValueError(text)
    return value


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="ipc_client",
        description="Show the counters that ipc_server streams: a table in a terminal, else lines.",
        epilog=EXIT_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--trio", action="store_true", help="run on Trio instead of plain blocking calls")
    add("--asyncio", action="store_true", help="run on asyncio instead of plain blocking calls")
    add("--address", default="counters", help="a bare name, a path, or @name (default: counters)")
    add(
        "--interval",
        type=interval_argument,
        metavar="SECONDS",
        help="have the server sample so often, for all its clients: 0.1 to 25.5, in steps of 0.1;"
        " a server that replays a recording keeps the pace of that",
    )
    add("--record", metavar="FILE", help="write the stream to a file as well, replacing it")
    add("--count", type=count, metavar="N", help="leave after so many records")
    add("--seconds", type=number, default=math.inf, metavar="S", help="leave after so many seconds")
    return parser.parse_args()


def main() -> int:
    """Watch, and say how it ended."""
    options = arguments()
    show: Callable[[list[Sample]], None] = show_lines
    if sys.stdout.isatty():
        show = functools.partial(show_table, Table())
    session = Session(options, show)
    try:
        if options.trio:
            trio.run(watch_by_task, memenpsf.trio, options.address, session)
        elif options.asyncio:
            asyncio.run(watch_by_task(memenpsf.asyncio, options.address, session))
        else:
            watch(options.address, session)
    except KeyboardInterrupt:
        return 0
    except BrokenPipeError:  # as in `ipc_client.py | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (QueueError, RecordingError, OSError, ValueError) as error:
        status, text = explain(error)
        print(f"ipc_client: {text}", file=sys.stderr)
        return status
    return 0


def explain(error: Exception) -> tuple[int, str]:
    """Return the exit status and the word for what ended the session."""
    match error:
        case EndOfStream():
            return 0, "the server has ended the stream"
        case PeerDied():
            return 3, "the server died"
        case FileNotFoundError() | ConnectionRefusedError():
            return 1, f"no server at {error.filename}"
        case OSError() if error.strerror:
            return 1, f"{error.filename or 'output'}: {error.strerror}"
        case _:
            return 1, str(error)


if __name__ == "__main__":
    sys.exit(main())
