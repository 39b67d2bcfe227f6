"""Shows the counters that sampler.py sends in a web page, ten times a second.

    python sampler.py                 # in one terminal
    python dashboard.py               # in another; either may start first

Then open http://127.0.0.1:8000/ in any number of browsers.  The page goes on by itself when the
sampler, or this program, is stopped and started again.

What it shows of the library: memenpsf.asyncio in the lifespan of an ASGI application, connect()
with retry=, recv_vectored(), and the ways a connection can end; on asyncio and on uvloop.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.responses import HTMLResponse, StreamingResponse
    from starlette.routing import Route
except ImportError as error:
    raise SystemExit(f"{error}: install what this needs, 'starlette' and 'uvicorn'") from None

from board import TICK, Board
from readings import ADDRESS, Reading

import memenpsf.asyncio
from memenpsf import Aborted, EndOfStream, PeerDied, QueueError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request
    from starlette.responses import Response

NAME = "dashboard"
PAGE = Path(__file__).parent / "page.html"
REST = 0.02  # seconds between two looks: what comes meanwhile waits in the ring, and wakes nobody
ALL = 1 << 20  # records at one look: more than the ring has
PAUSE = 0.5  # seconds after the end of a producer, until the next one is looked for


async def follow(address: str, board: Board) -> None:
    """Take all that a producer sends, then all that the next one sends, for ever."""
    while True:
        try:
            interface = await memenpsf.asyncio.connect(address, Reading, name=NAME, retry=None)
            async with interface:
                board.begin(f"{interface.peer_name}, process {interface.peer.pid}")
                try:
                    while True:
                        board.take(await interface.recv_vectored(ALL))
                        await asyncio.sleep(REST)
                finally:
                    interface.close()  # a good end, also when this task is cancelled
        except EndOfStream:
            board.end("the producer has ended")
        except Aborted:
            board.end("the producer was stopped")
        except PeerDied:
            board.end("the producer died")
        except (QueueError, OSError) as error:
            board.end(f"there is a producer that cannot be used: {error}")
        await asyncio.sleep(PAUSE)


class Events:
    """What is sent to every browser: the newest state of the board, as a server-sent event."""

    def __init__(self, board: Board) -> None:
        self.over = False
        self._board = board
        self._text = ""

    async def refresh(self) -> None:
        """Look at the board every TICK seconds, for all browsers alike."""
        while True:
            state = self._board.tick(time.monotonic())
            self._text = f"retry: 1000\ndata: {json.dumps(state)}\n\n"
            await asyncio.sleep(TICK)

    async def stream(self) -> AsyncIterator[str]:
        """Yield the newest state, again and again, at the pace of one browser."""
        self._board.browsers += 1
        try:
            while not self.over:
                yield self._text
                await asyncio.sleep(TICK)
        finally:
            self._board.browsers -= 1


def application(address: str, board: Board, events: Events) -> Starlette:
    """Return the application: a page, and what changes in it."""
    page = PAGE.read_text(encoding="utf-8")

    async def show_page(_: Request) -> Response:
        return HTMLResponse(page)

    async def show_events(_: Request) -> Response:
        headers = {"Cache-Control": "no-store"}
        return StreamingResponse(events.stream(), media_type="text/event-stream", headers=headers)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(follow(address, board)),
                group.create_task(events.refresh()),
            ]
            yield
            for task in tasks:
                task.cancel()

    routes = [Route("/", show_page), Route("/events", show_events)]
    return Starlette(routes=routes, lifespan=lifespan)


class Server(uvicorn.Server):
    """Ends the streams before it waits for their end, which would never come."""

    def __init__(self, config: uvicorn.Config, events: Events) -> None:
        super().__init__(config)
        self._events = events

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Shut down as ever, but first end the streams."""
        self._events.over = True
        await super().shutdown(sockets)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog=NAME, description="Show the counters that sampler.py sends in a web page."
    )
    add = parser.add_argument
    add("--address", default=ADDRESS, help=f"a bare name, a path, or @name (default: {ADDRESS})")
    add("--port", type=int, default=8000, help="of 127.0.0.1; 0 is any that is free")
    add(
        "--loop",
        choices=("auto", "asyncio", "uvloop"),
        default="auto",
        help="the event loop (default: uvloop if it is installed)",
    )
    return parser.parse_args()


def main() -> int:
    """Serve the page until Ctrl-C or SIGTERM."""
    options = arguments()
    board = Board(options.address)
    events = Events(board)
    config = uvicorn.Config(
        application(options.address, board, events),
        loop=options.loop,
        log_level="warning",
        timeout_graceful_shutdown=2,  # for a browser that takes nothing any more
    )
    try:
        with socket.create_server(("127.0.0.1", options.port)) as sock:
            print(f"http://127.0.0.1:{sock.getsockname()[1]}/", flush=True)
            Server(config, events).run(sockets=[sock])
    except KeyboardInterrupt:
        return 0
    except OSError as error:
        print(f"{NAME}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
