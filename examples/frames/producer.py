"""Shows a picture in motion to another process, at 1920 x 1080.

    python consumer.py                # in one terminal
    python producer.py                # in another

Every frame is a record of six megabytes.  First a series of frames is copied: filled in memory
of our own, then xmit().  Then a series is made in place: loan() gives memory of the ring, which
is filled and published without being copied.  The consumer receives each series in the same way.

What it shows of the library: loan() and xmit() with numpy records, over plain blocking calls and
over Trio side by side, and a control message that says what comes next.
"""

from __future__ import annotations

import argparse
import sys

import trio
from footage import CAPACITY, FRAME, Clock, Film, Way, announcement, blank

import memenpsf
import memenpsf.trio
from memenpsf import PeerDied, QueueError, ReceiverGone

EXIT_STATUS = """\
exit status: 0 all frames were sent; 1 no consumer, or it left early, or it cannot be used;
2 wrong arguments; 3 the consumer died; 130 Ctrl-C
"""
NAME = "producer"


def produce(address: str, ways: list[Way], total: int) -> None:
    """Send the series, with plain blocking calls."""
    film, own = Film(), blank()
    with memenpsf.connect(address, FRAME, name=NAME, capacity=CAPACITY) as interface:
        for way in ways:
            interface.send_ctrl_msg(announcement(way))
            clock = Clock()
            for number in range(total):
                if way is Way.IN_PLACE:
                    with interface.loan(1) as loan:
                        film.fill(loan.data, number, total)
                else:
                    film.fill(own, number, total)
                    interface.xmit(own[0])
            print(clock.rate(way, total), flush=True)


async def produce_trio(address: str, ways: list[Way], total: int) -> None:
    """Send the series, as a Trio task; otherwise the same."""
    film, own = Film(), blank()
    interface = await memenpsf.trio.connect(address, FRAME, name=NAME, capacity=CAPACITY)
    async with interface:
        for way in ways:
            await interface.send_ctrl_msg(announcement(way))
            clock = Clock()
            for number in range(total):
                if way is Way.IN_PLACE:
                    async with interface.loan(1) as loan:
                        film.fill(loan.data, number, total)
                else:
                    film.fill(own, number, total)
                    await interface.xmit(own[0])
            print(clock.rate(way, total), flush=True)


def count(text: str) -> int:
    """Return a number of frames from the command line."""
    if not 1 <= (value := int(text)) < 1 << 32:
        raise ValueError(text)
    return value


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog=NAME,
        description="Show a picture in motion to consumer.py; tell the frames per second.",
        epilog=EXIT_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--trio", action="store_true", help="run on Trio instead of plain blocking calls")
    add("--address", default="frames", help="a bare name, a path, or @name (default: frames)")
    add("--frames", type=count, default=300, metavar="N", help="in each series (default: 300)")
    add = parser.add_mutually_exclusive_group().add_argument
    add("--copy", dest="ways", action="store_const", const=[Way.COPIED], help="only copy")
    add("--in-place", dest="ways", action="store_const", const=[Way.IN_PLACE], help="never copy")
    parser.set_defaults(ways=list(Way))
    return parser.parse_args()


def main() -> int:
    """Send all frames; say what went wrong."""
    options = arguments()
    try:
        if options.trio:
            trio.run(produce_trio, options.address, options.ways, options.frames)
        else:
            produce(options.address, options.ways, options.frames)
    except KeyboardInterrupt:
        return 130
    except (QueueError, OSError, ValueError) as error:
        status, text = explain(error)
        print(f"{NAME}: {text}", file=sys.stderr)
        return status
    return 0


def explain(error: Exception) -> tuple[int, str]:
    """Return the exit status and the word for what went wrong."""
    match error:
        case ReceiverGone():
            return 1, "the consumer has left early"
        case PeerDied():
            return 3, "the consumer died"
        case FileNotFoundError() | ConnectionRefusedError():
            return 1, f"no consumer at {error.filename}"
        case _:
            return 1, str(error)


if __name__ == "__main__":
    sys.exit(main())
