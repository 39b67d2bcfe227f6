"""Receives a picture in motion from another process, and counts what is in each frame.

    python consumer.py                # in one terminal
    python producer.py                # in another

The producer announces how it sends each series.  recv() returns copied frames; frames in place are
read where the producer wrote them, in a borrow() block.  After the timing, the first, middle and
last frame of each series are compared with the expected ones, and their histograms are computed
again in another way.

It shows recv() and borrow() with numpy records, with plain blocking calls and with Trio side by
side, and a listener for one client.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import trio
from footage import FRAME, Film, Series, Way, WrongFrame, announced, chart

import memenpsf
import memenpsf.trio
from memenpsf import EndOfStream, PeerDied, QueueError

EXIT_STATUS = """\
exit status: 0 all frames came, and were right; 1 a frame was wrong or missing, or the producer
cannot be used; 2 wrong arguments; 3 the producer died; 130 Ctrl-C
"""
NAME = "consumer"


def consume(address: str) -> list[Series]:
    """Receive every series of the first producer, with plain blocking calls."""
    done: list[Series] = []
    with memenpsf.listen(address, FRAME, name=NAME, capacity=1) as listener:
        print(f"waiting for a producer at {listener.address}", flush=True)
        with next(iter(listener)) as interface:
            while True:
                try:
                    series = Series(announced(interface.recv_ctrl_msg(timeout=None)))
                except EndOfStream:
                    return done
                while not series.complete:
                    if series.way is Way.IN_PLACE:
                        with interface.borrow(1) as lent:
                            series.take(lent[0])
                    else:
                        series.take(interface.recv())
                print(series.rate, flush=True)
                done.append(series)


async def consume_trio(address: str) -> list[Series]:
    """Receive every series of the first producer, as a Trio task; otherwise the same."""
    done: list[Series] = []
    async with await memenpsf.trio.listen(address, FRAME, name=NAME, capacity=1) as listener:
        print(f"waiting for a producer at {listener.address}", flush=True)
        async with await anext(listener) as interface:
            while True:
                try:
                    series = Series(announced(await interface.recv_ctrl_msg(timeout=None)))
                except EndOfStream:
                    return done
                while not series.complete:
                    if series.way is Way.IN_PLACE:
                        async with interface.borrow(1) as lent:
                            series.take(lent[0])
                    else:
                        series.take(await interface.recv())
                print(series.rate, flush=True)
                done.append(series)


def finish(done: list[Series], folder: Path | None) -> None:
    """Check the kept frames of each series, write them, and print their histogram."""
    film = Film()
    for series in done:
        print(series.check(film))
    if folder is not None:
        for path in (path for series in done for path in series.write(folder)):
            print(f"written: {path}")
    if done:
        print(f"0 |{chart(sum(series.counts for series in done))}| 255")


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog=NAME,
        description="Receive frames from producer.py; tell the frames per second, and what values"
        " the pixels have.",
        epilog=EXIT_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--trio", action="store_true", help="run on Trio instead of plain blocking calls")
    add("--address", default="frames", help="a bare name, a path, or @name (default: frames)")
    add("--png", type=Path, metavar="DIR", help="write the frames that are checked to a directory")
    return parser.parse_args()


def main() -> int:
    """Receive all frames; say what went wrong."""
    options = arguments()
    try:
        if options.png is not None:
            options.png.mkdir(parents=True, exist_ok=True)
        address = options.address
        done = trio.run(consume_trio, address) if options.trio else consume(address)
        finish(done, options.png)
    except KeyboardInterrupt:
        return 130
    except BaseExceptionGroup as group:  # of Trio: accept() runs tasks
        if group.split(KeyboardInterrupt)[1] is not None:
            raise
        return 130
    except (QueueError, WrongFrame, OSError, ValueError) as error:
        status, text = explain(error)
        print(f"{NAME}: {text}", file=sys.stderr)
        return status
    return 0


def explain(error: Exception) -> tuple[int, str]:
    """Return the exit status and the word for what went wrong."""
    match error:
        case EndOfStream():
            return 1, "the producer has left before the series was complete"
        case PeerDied():
            return 3, "the producer died"
        case OSError() if error.strerror:
            return 1, f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        case _:
            return 1, str(error)


if __name__ == "__main__":
    sys.exit(main())
