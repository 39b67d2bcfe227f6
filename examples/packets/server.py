"""Streams a capture file, packet by packet, to every client that connects.

    python server.py FILE              # in one terminal; or with --trio
    python client.py OUTFILE           # in another; OUTFILE is identical, packet for packet

FILE is a pcap or pcapng capture (of tcpdump, dumpcap, Wireshark, ...).  Each client gets it from
its beginning, at the pace of the capture, or faster, or as fast as the client takes it (--speed).
wire.py describes the messages.  Needs Scapy: `pip install scapy`.

It shows messages of any length with tag and flags, batches, a sender that waits for its receiver,
a wait that notices when the other side leaves, serve() for many clients, of which none can end the
others, and a clean end.  It is the same program with plain threads and with Trio.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import logging
import math
import signal
import sys
import time
from typing import TYPE_CHECKING

import trio
from capture import CaptureError, read
from wire import NAME, End, Interface, Packet, encode

import memenpsf
import memenpsf.trio
from memenpsf import Aborted, Closed, EndOfStream, Message, QueueError, ReceiverGone

if TYPE_CHECKING:
    from collections.abc import Generator

log = logging.getLogger("server")

STOP = (signal.SIGINT, signal.SIGTERM)

# Errors that end the connection to one client, which may also use up descriptors and memory.
ENDS = (QueueError, OSError, MemoryError)

BATCH = 256  # messages sent at once: some hundred kilobytes, a part of what the ring holds
GRAIN = 0.001  # seconds; packets as close as that are sent together

SERVING = "serving %s at %s"
COMING = "client %d (process %d) has come"
LEAVING = "client %d %s"
ENDED = "ended by %s"


class Stream:
    """The stream for one client: the whole capture, in batches, each with its due time."""

    def __init__(self, path: str, speed: float) -> None:
        self._path = path
        self._speed = speed
        self._rates: dict[int, int] = {}
        self._first: float | None = None
        self._packets = self._sent = 0
        self._started = time.monotonic()
        self._verdict: str | None = None

    def batches(self) -> Generator[tuple[float, list[Message]]]:
        """Yield each batch with the time.monotonic() at which to send it."""
        batch: list[Message] = []
        due = 0.0
        end = End(0)
        try:
            for item in read(self._path):
                if isinstance(item, Packet):
                    at = self._due(item) if self._speed else due
                    if at > due + GRAIN or len(batch) >= BATCH:
                        yield self._started + due, batch
                        self._sent = self._packets
                        due, batch = max(due, at), []
                    self._packets += 1
                elif isinstance(item, Interface):
                    self._rates[item.number] = item.rate
                batch.append(encode(item))
            end = End(self._packets)
        except (CaptureError, OSError) as error:
            end = End(self._packets, explain(self._path, error))
        yield self._started + due, [*batch, encode(end)]
        self._verdict = f"got all {self._packets} packets"
        if end.damage:
            self._verdict = f"got {self._packets} packets; {end.damage}"

    def _due(self, packet: Packet) -> float:
        """Return the seconds after the start at which a packet is due."""
        if packet.ticks is None:
            return 0.0
        seconds = packet.ticks / self._rates[packet.interface]
        if self._first is None:
            self._first = seconds
        return (seconds - self._first) / self._speed

    def ended_by(self, end: Exception) -> None:
        """Note that the client, or this side, has ended it."""
        match end:
            case EndOfStream() | ReceiverGone() | Aborted():
                self._verdict = f"left after {self._sent} packets"
            case Closed():  # by this side: it was cut short
                pass
            case _:
                self._verdict = f"lost after {self._sent} packets: {end}"

    def verdict(self) -> str:
        """Return what the log says of the client in the end."""
        return self._verdict or f"was cut short after {self._sent} packets"


class Stopped(BaseException):
    """SIGINT or SIGTERM came.  Not an Exception, so that no handler mistakes it for a failure."""


def stop(number: int, _: object) -> None:
    """Handle the first signal; a second one changes nothing."""
    for each in STOP:
        signal.signal(each, signal.SIG_IGN)
    raise Stopped(number)


class ThreadServer:
    """The server on plain threads: one for each client."""

    def __init__(self, path: str, speed: float) -> None:
        self._new_stream = functools.partial(Stream, path, speed)
        self._numbers = itertools.count(1)

    def run(self, address: str, path: str) -> None:
        """Serve until SIGINT or SIGTERM."""

        def started(listener: memenpsf.Listener) -> None:
            log.info(SERVING, path, listener.address)

        try:
            for each in STOP:
                signal.signal(each, stop)
            memenpsf.serve(self._serve, address, Message, name="packets server", started=started)
        except Stopped as stopped:  # clients get Aborted: it was in the middle
            log.info(ENDED, signal.Signals(stopped.args[0]).name)

    def _serve(self, interface: memenpsf.Interface) -> None:
        number, stream = next(self._numbers), self._new_stream()
        log.info(COMING, number, interface.peer.pid)
        try:
            with contextlib.closing(stream.batches()) as batches:
                for due, batch in batches:
                    while (left := due - time.monotonic()) > 0:
                        interface.recv(left)  # clients send nothing, but they may leave
                    interface.xmit_many(batch)
        except ENDS as end:
            stream.ended_by(end)
        finally:
            log.info(LEAVING, number, stream.verdict())


class TrioServer:
    """The server on Trio: a task for each client."""

    def __init__(self, path: str, speed: float) -> None:
        self._new_stream = functools.partial(Stream, path, speed)
        self._numbers = itertools.count(1)

    async def run(self, address: str, path: str) -> None:
        """Serve until SIGINT or SIGTERM."""
        serve = functools.partial(memenpsf.trio.serve, name="packets server")
        with trio.open_signal_receiver(*STOP) as signals:
            async with trio.open_nursery() as nursery:
                listener = await nursery.start(serve, self._serve, address, Message)
                log.info(SERVING, path, listener.address)
                number = await anext(signals)
                nursery.cancel_scope.cancel()  # clients get Aborted: it was in the middle
        log.info(ENDED, signal.Signals(number).name)

    async def _serve(self, interface: memenpsf.trio.Interface) -> None:
        number, stream = next(self._numbers), self._new_stream()
        log.info(COMING, number, interface.peer.pid)
        try:
            with contextlib.closing(stream.batches()) as batches:
                # In a thread, because reading may wait for a disk.
                while step := await trio.to_thread.run_sync(next, batches, None):
                    due, batch = step
                    while (left := due - time.monotonic()) > 0:
                        await interface.recv(left)
                    await interface.xmit_many(batch)
        except ENDS as end:
            stream.ended_by(end)
        finally:
            log.info(LEAVING, number, stream.verdict())


def explain(path: str, error: Exception) -> str:
    """Return what is wrong with a file."""
    return f"{path}: {error.strerror if isinstance(error, OSError) else error}"


def check(path: str) -> None:
    """Raise CaptureError or OSError for a file that is no capture, before any client comes."""
    with contextlib.closing(read(path)) as items:
        next(items)


def speed(text: str) -> float:
    """Return a speed from the command line."""
    if not 0 <= (value := float(text)) < math.inf:
        raise ValueError(text)
    return value


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="server",
        description="Stream a capture file, packet by packet, to every client.py that connects.",
        epilog="SIGINT (Ctrl-C) and SIGTERM end it, with exit status 0; 1: there is"
        " no such file, it is no capture, or the address cannot be had; 2: wrong arguments.",
    )
    add = parser.add_argument
    add("file", metavar="FILE", help="a pcap or pcapng capture")
    add("--trio", action="store_true", help="run on Trio instead of threads")
    add("--address", default=NAME, help=f"a bare name, a path, or @name (default: {NAME})")
    add(
        "--speed",
        type=speed,
        default=0.0,
        metavar="X",
        help="X times as fast as the packets were captured; 0: as fast as possible (default)",
    )
    return parser.parse_args()


def main() -> int:
    """Serve; say what went wrong."""
    options = arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    problem: str | None = None
    try:
        check(options.file)
    except (CaptureError, OSError) as error:
        problem = explain(options.file, error)
    else:
        kind = TrioServer if options.trio else ThreadServer
        problem = serve(kind(options.file, options.speed), options.address, options.file)
    if problem is None:
        return 0
    print(f"server: {problem}", file=sys.stderr)
    return 1


def serve(server: ThreadServer | TrioServer, address: str, path: str) -> str | None:
    """Serve; return what went wrong."""
    try:
        if isinstance(server, TrioServer):
            trio.run(server.run, address, path)
        else:
            server.run(address, path)
    except* (OSError, ValueError) as group:  # a nursery raises groups
        error: BaseException = group
    else:
        return None
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, OSError):
        return f"{error.filename or address}: {error.strerror}"
    return str(error)


if __name__ == "__main__":
    sys.exit(main())
