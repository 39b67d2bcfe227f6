"""Writes the capture that server.py streams to a file, identical packet for packet.

    python server.py FILE              # in one terminal
    python client.py OUTFILE           # in another; or with --trio

In a terminal it counts along: packets and bytes, and how many come in a second; otherwise it says
at the end how many came.  OUTFILE is in the format of FILE.  It is there only when it is whole;
what came of a stream that broke off stays in OUTFILE.part.

What it shows of the library: connect() over plain threads and over Trio side by side, messages
with tag and flags, recv_vectored(), and the ways a connection can end.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING, Self

import trio
from capture import Recorder
from wire import NAME, BadStream, End, Packet, decode

import memenpsf
import memenpsf.trio
from memenpsf import Aborted, EndOfStream, Message, PeerDied, QueueError

if TYPE_CHECKING:
    from collections.abc import Iterable

EXIT_STATUS = """\
exit status: 0 OUTFILE is whole; 1 no server, or it cannot be used, or OUTFILE cannot be written, or
the capture is damaged; 2 wrong arguments; 3 the server went away before the end; 130 Ctrl-C
"""
REFRESH = 0.2  # seconds between two drawings of the counters


class DamagedCapture(Exception):
    """The server could read only a part of the capture."""


class Counters:
    """Packets and bytes, in all and in a second."""

    def __init__(self) -> None:
        self.packets = self.bytes = 0
        self._started = self._since = time.monotonic()
        self._packets_then = self._bytes_then = 0

    def count(self, packet: Packet) -> None:
        """Take in a packet."""
        self.packets += 1
        self.bytes += len(packet.data)

    def seconds_left(self) -> float:
        """Return how long it is until the counters are to be drawn."""
        return max(0.0, self._since + REFRESH - time.monotonic())

    def latest(self) -> str:
        """Return the counters, with the rates since the last time."""
        now = time.monotonic()
        packets, data = self.packets - self._packets_then, self.bytes - self._bytes_then
        text = self._text(packets, data, now - self._since)
        self._since, self._packets_then, self._bytes_then = now, self.packets, self.bytes
        return text

    def summary(self) -> str:
        """Return the counters, with the rates over all."""
        seconds = time.monotonic() - self._started
        return f"{self._text(self.packets, self.bytes, seconds)} in {seconds:.3f} s"

    def _text(self, packets: int, data: int, seconds: float) -> str:
        seconds = max(seconds, 1e-9)
        return (
            f"{self.packets:,} packets, {size(self.bytes)}; "
            f"{packets / seconds:,.0f} packets/s, {size(data / seconds)}/s"
        )


def size(number: float) -> str:
    """Return a number of bytes, to four digits or so."""
    unit = "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if number < 1024:  # noqa: PLR2004 (what the units mean)
            break
        number, unit = number / 1024, larger
    return f"{number:.1f} {unit}" if unit != "B" else f"{number:.0f} B"


class Session:
    """What becomes of the messages; waits for nothing but the disk."""

    def __init__(self, path: str, *, live: bool) -> None:
        self.counters = Counters()
        self.over = False
        self._recorder = Recorder(path)
        self._live = live
        self.begun = False

    def patience(self) -> float | None:
        """Return how long to wait for messages."""
        return self.counters.seconds_left() if self._live else None

    def take(self, messages: Iterable[Message]) -> None:
        """Write what has come, and count it."""
        for message in messages:
            match decode(message):
                case End() as end:
                    self._end(end)
                case item:
                    self._recorder.write(item)
                    if isinstance(item, Packet):
                        self.counters.count(item)
        if self._live and (self.over or not self.counters.seconds_left()):
            self._draw()

    def _end(self, end: End) -> None:
        if end.damage:
            raise DamagedCapture(end.damage)
        if end.packets != self.counters.packets:
            raise BadStream(f"{self.counters.packets} of {end.packets} packets have come")
        self._recorder.finish()
        self.over = True

    def rest(self) -> str:
        """Return what there is of a capture that is not whole, and where."""
        path = self._recorder.rest()
        return f"what came is in {path}: {self.counters.summary()}" if path else "nothing came"

    def _draw(self) -> None:
        print(f"\r{self.counters.latest()}\x1b[K", end="", flush=True)

    def __enter__(self) -> Self:
        self.begun = True
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._live:
            print("\r\x1b[K", end="", flush=True)
        self._recorder.close()


def receive(address: str, session: Session) -> None:
    """Take the stream, with plain blocking calls."""
    with memenpsf.connect(address, Message, name="packets client") as interface, session:
        while not session.over:
            session.take(interface.recv_vectored(timeout=session.patience()))


async def receive_trio(address: str, session: Session) -> None:
    """Take the stream, as a Trio task; otherwise the same."""
    interface = await memenpsf.trio.connect(address, Message, name="packets client")
    async with interface:
        with session:
            while not session.over:
                messages = await interface.recv_vectored(timeout=session.patience())
                # In a thread, as writing may wait for a disk.
                await trio.to_thread.run_sync(session.take, messages)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="client",
        description="Write the capture that server.py streams, identical packet for packet.",
        epilog=EXIT_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("outfile", metavar="OUTFILE", help="the file to write, replacing an older one")
    add("--trio", action="store_true", help="run on Trio instead of plain blocking calls")
    add("--address", default=NAME, help=f"a bare name, a path, or @name (default: {NAME})")
    return parser.parse_args()


def main() -> int:
    """Receive, and say how it ended."""
    options = arguments()
    session = Session(options.outfile, live=sys.stdout.isatty())
    try:
        if options.trio:
            trio.run(receive_trio, options.address, session)
        else:
            receive(options.address, session)
    except KeyboardInterrupt:
        status, problem = 130, "interrupted"
    except (QueueError, BadStream, DamagedCapture, OSError, ValueError) as error:
        status, problem = explain(error, options.address if not session.begun else None)
    else:
        print(f"{options.outfile}: {session.counters.summary()}")
        return 0
    print(f"client: {problem}", file=sys.stderr)
    if session.begun:
        print(f"client: {session.rest()}", file=sys.stderr)
    return status


def explain(error: Exception, address: str | None) -> tuple[int, str]:
    """Return the exit status and the word for what ended it; an address if that was at connect."""
    match error:
        case FileNotFoundError() | ConnectionRefusedError() if address:
            return 1, f"there is no server at {address}"
        case EndOfStream() if not address:
            return 3, "the server has ended the stream before the end of the capture"
        case PeerDied():
            stopped = isinstance(error, Aborted)
            return (
                3,
                f"the server {'has stopped in the middle of the capture' if stopped else 'died'}",
            )
        case DamagedCapture():
            return 1, f"the capture is damaged: {printable(str(error))}"
        case OSError():
            return 1, f"{error.filename or address}: {error.strerror}"
        case _:
            return 1, printable(str(error))


def printable(text: str) -> str:
    """Return what a server said, as harmless text."""
    return "".join(c if " " <= c <= "~" else f"\\x{ord(c):02x}" for c in text)


if __name__ == "__main__":
    sys.exit(main())
