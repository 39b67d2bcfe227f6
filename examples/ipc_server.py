"""Streams the counters of this machine, live or recorded, to any number of clients.

    python ipc_server.py              # in one terminal; or with --trio, or --asyncio
    python ipc_client.py              # in another, as often as you like

    python ipc_client.py --record FILE --seconds 10
    python ipc_server.py --replay FILE

It shows listen() with plain threads and serve() with Trio side by side, one sender that never waits
for a slow receiver and one that does, control messages as commands, and a clean end.  Both servers
are the same program in two styles, and share all code that does not wait (source.py).  Either
client can use either server.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import itertools
import logging
import math
import queue
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import trio
from counters import Sample, interval_argument
from recording import RecordingError
from source import Feed, Live, Replay, Source

import memenpsf
import memenpsf.asyncio
import memenpsf.trio
from memenpsf import EndOfStream, QueueError, ReceiverGone

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger("ipc_server")

STOP = (signal.SIGINT, signal.SIGTERM)
SERVING = "serving %s at %s"
ALL_SENT = "has been sent all there is"

# Errors that end the connection to one client, which may also use up descriptors and memory.
ENDS = (QueueError, OSError, MemoryError)


def farewell(end: Exception) -> str:
    """Return the log's text for a client whose connection ended with this error."""
    return "left" if isinstance(end, EndOfStream | ReceiverGone) else f"lost: {end}"


class ThreadServer:
    """The server on plain threads.

    The main thread does all work in turn: the tasks in its inbox, and the rounds.  Signal handlers
    and other threads only put tasks there.  One thread accepts clients.  One for each client waits
    for commands (or replays a recording), and notices when the client ends.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._feeds: dict[memenpsf.Interface, Feed] = {}
        self._numbers = itertools.count(1)
        self._threads: list[threading.Thread] = []
        self._ended: str | None = None

    def run(self, address: str, **options: Any) -> None:
        """Serve until SIGINT or SIGTERM."""
        for number in STOP:
            # SimpleQueue.put may be called in a signal handler; little else may.
            signal.signal(number, lambda number, _: self._post(self._end, stopped_by(number)))
        with memenpsf.listen(address, Sample, **options) as listener:
            log.info(SERVING, self._source, listener.address)
            self._start(self._accept, listener)
            try:
                while self._ended is None:
                    self._turn()
            finally:
                listener.close()
                self._close()
        log.info(self._ended)

    def _turn(self) -> None:
        try:
            task = self._inbox.get(timeout=self._source.seconds_left())
        except queue.Empty:
            self._broadcast(self._source.next_round())
        else:
            task()

    def _post(self, task: Callable[..., None], *arguments: Any) -> None:
        self._inbox.put(functools.partial(task, *arguments))

    def _start(self, task: Callable[..., None], *arguments: Any) -> None:
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        thread = threading.Thread(target=task, args=arguments)
        thread.start()
        self._threads.append(thread)

    # In threads of their own

    def _accept(self, listener: memenpsf.Listener) -> None:
        for interface in listener:  # skips clients that do not get in
            self._post(self._join, interface)

    def _attend(self, interface: memenpsf.Interface) -> None:
        started = time.monotonic()
        word = "lost: its thread has failed"
        try:
            for due, samples in self._source.script:
                while (left := started + due - time.monotonic()) > 0:
                    self._hear(interface, left)
                interface.xmit_many(samples)
            while self._source.endless:
                self._hear(interface, None)
            word = ALL_SENT
        except ENDS as end:
            word = farewell(end)
        finally:
            self._post(self._leave, interface, word)

    def _hear(self, interface: memenpsf.Interface, timeout: float | None) -> None:
        if message := interface.recv_ctrl_msg(timeout):
            self._post(self._obey, interface, message)

    # In the main thread

    def _join(self, interface: memenpsf.Interface) -> None:
        if self._ended is not None:
            interface.close()
            return
        self._feeds[interface] = feed = Feed(next(self._numbers), interface.peer.pid)
        self._send(interface, feed, self._source.greeting())
        try:
            self._start(self._attend, interface)
        except (RuntimeError, MemoryError) as error:  # no thread can be had
            self._leave(interface, f"not served: {error}")

    def _obey(self, interface: memenpsf.Interface, message: bytes) -> None:
        self._broadcast(self._feeds[interface].command(self._source, message))

    def _broadcast(self, samples: list[Sample]) -> None:
        for interface, feed in self._feeds.items():
            self._send(interface, feed, samples)

    def _send(self, interface: memenpsf.Interface, feed: Feed, samples: list[Sample]) -> None:
        offered = feed.offer(samples)
        with contextlib.suppress(*ENDS):  # the thread of this client gets the same error
            feed.settle(offered, interface.xmit_many(offered, timeout=0))

    def _leave(self, interface: memenpsf.Interface, word: str) -> None:
        interface.close()
        feed = self._feeds.pop(interface)
        if self._ended is None:
            feed.log(word)

    def _end(self, why: str) -> None:
        self._ended = self._ended or why

    def _close(self) -> None:
        """End every connection in good order, also those of clients that came just now."""
        for interface in self._feeds:
            interface.finish()  # wakes the thread of this client, which then posts _leave
        for thread in self._threads:
            thread.join()
        while not self._inbox.empty():
            self._inbox.get()()


class TaskServer:
    """What the servers on event loops share: a task for each client."""

    def __init__(self, source: Source, lock: Any) -> None:
        self._source = source
        self._feeds: dict[Any, Feed] = {}
        self._numbers = itertools.count(1)
        self._ended = False
        self._sending = lock  # or an offer might be made before the last one is settled

    def plan_anew(self) -> None:
        """Have the rounds begin as the source says now."""
        raise NotImplementedError

    async def _attend(self, interface: Any) -> None:
        feed = Feed(next(self._numbers), interface.peer.pid)
        started = time.monotonic()
        try:
            async with self._sending:  # no round comes before the greeting
                self._feeds[interface] = feed
                await self._send(interface, feed, self._source.greeting())
            for due, samples in self._source.script:
                while (left := started + due - time.monotonic()) > 0:
                    await self._hear(interface, feed, left)
                await interface.xmit_many(samples)
            while self._source.endless:
                await self._hear(interface, feed, None)
            feed.log(ALL_SENT)
        except ENDS as end:
            if not self._ended:
                feed.log(farewell(end))
        finally:
            self._feeds.pop(interface, None)

    async def _hear(self, interface: Any, feed: Feed, timeout: float | None) -> None:
        if message := await interface.recv_ctrl_msg(timeout):
            notice = feed.command(self._source, message)
            self.plan_anew()
            await self._broadcast(notice)

    async def _broadcast(self, samples: list[Sample]) -> None:
        async with self._sending:
            for interface, feed in list(self._feeds.items()):
                await self._send(interface, feed, samples)

    async def _send(self, interface: Any, feed: Feed, samples: list[Sample]) -> None:
        offered = feed.offer(samples)
        with contextlib.suppress(*ENDS):  # the task that attends to it meets the same end
            feed.settle(offered, await interface.xmit_many(offered, timeout=0))

    def _close(self) -> None:
        self._ended = True
        for interface in self._feeds:
            interface.close()  # in good order: what is cancelled aborts


class TrioServer(TaskServer):
    """The server on Trio."""

    def __init__(self, source: Source) -> None:
        super().__init__(source, trio.Lock())
        self._nap = trio.CancelScope()

    def plan_anew(self) -> None:
        """Have the rounds begin as the source says now."""
        self._nap.cancel()

    async def run(self, address: str, **options: Any) -> None:
        """Serve until SIGINT or SIGTERM."""
        serve = functools.partial(memenpsf.trio.serve, **options)
        with trio.open_signal_receiver(*STOP) as signals:
            async with trio.open_nursery() as nursery:
                listener = await nursery.start(serve, self._attend, address, Sample)
                log.info(SERVING, self._source, listener.address)
                nursery.start_soon(self._rounds)
                number = await anext(signals)
                self._close()
                nursery.cancel_scope.cancel()
        log.info(stopped_by(number))

    async def _rounds(self) -> None:
        while True:
            with trio.CancelScope() as self._nap:
                await trio.sleep(self._source.seconds_left())
            if not self._nap.cancelled_caught:
                await self._broadcast(self._source.next_round())


class AsyncioServer(TaskServer):
    """The server on asyncio."""

    def __init__(self, source: Source) -> None:
        super().__init__(source, asyncio.Lock())
        self._changed = asyncio.Event()

    def plan_anew(self) -> None:
        """Have the rounds begin as the source says now."""
        self._changed.set()

    async def run(self, address: str, **options: Any) -> None:
        """Serve until SIGINT or SIGTERM."""
        signals: asyncio.Queue[int] = asyncio.Queue()
        for each in STOP:
            asyncio.get_running_loop().add_signal_handler(each, signals.put_nowait, each)
        async with asyncio.TaskGroup() as group:
            serving = memenpsf.asyncio.serve(
                self._attend, address, Sample, started=self._say, **options
            )
            tasks = [group.create_task(each) for each in (serving, self._rounds())]
            number = await signals.get()
            self._close()
            for task in tasks:
                task.cancel()
        log.info(stopped_by(number))

    def _say(self, listener: memenpsf.asyncio.Listener) -> None:
        log.info(SERVING, self._source, listener.address)

    async def _rounds(self) -> None:
        while True:
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), self._source.seconds_left())
            except TimeoutError:
                await self._broadcast(self._source.next_round())


def stopped_by(number: int) -> str:
    """Return the last line of the log."""
    return f"ended by {signal.Signals(number).name}"


def positive(text: str) -> int:
    """Return a number of records from the command line."""
    if (value := int(text)) < 1:
        raise ValueError(text)
    return value


def speed(text: str) -> float:
    """Return a speed from the command line."""
    if not 0 <= (value := float(text)) < math.inf:
        raise ValueError(text)
    return value


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="ipc_server",
        description="Stream the counters of this machine to every ipc_client that connects.",
        epilog="SIGINT (Ctrl-C) and SIGTERM end it in good order, with exit status 0.",
    )
    add = parser.add_argument
    add("--trio", action="store_true", help="run on Trio instead of threads")
    add("--asyncio", action="store_true", help="run on asyncio instead of threads")
    add("--address", default="counters", help="a bare name, a path, or @name (default: counters)")
    add(
        "--capacity",
        type=positive,
        default=4096,
        metavar="N",
        help="records that may wait for a slow client before it misses some (default: 4096);"
        " a replay waits for it instead",
    )
    add(
        "--speed",
        type=speed,
        metavar="X",
        help="replay X times as fast as it was; 0: without waiting (default: 1)",
    )
    add = parser.add_mutually_exclusive_group().add_argument
    add(
        "--interval",
        type=interval_argument,
        default=1.0,
        metavar="SECONDS",
        help="time between two rounds: 0.1 to 25.5, in steps of 0.1 (default: 1);"
        " a client can command another, for all",
    )
    add(
        "--replay",
        metavar="FILE",
        help="send each client this recording (of ipc_client --record) from its beginning, then"
        " the end of the stream",
    )
    options = parser.parse_args()
    if options.speed is None:
        options.speed = 1.0
    elif options.replay is None:
        parser.error("--speed is for --replay")
    return options


def serve(options: argparse.Namespace) -> None:
    """Serve until SIGINT or SIGTERM."""
    source: Source
    source = Replay(options.replay, options.speed) if options.replay else Live(options.interval)
    where = {"address": options.address, "name": "ipc_server", "capacity": options.capacity}
    if options.trio:
        trio.run(functools.partial(TrioServer(source).run, **where))
    elif options.asyncio:
        asyncio.run(AsyncioServer(source).run(**where))
    else:
        ThreadServer(source).run(**where)


def main() -> int:
    """Serve; say what went wrong."""
    options = arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    try:
        serve(options)
    except* (RecordingError, OSError, ValueError) as group:  # a nursery raises groups
        problem: object = first(group)
    else:
        return 0
    if isinstance(problem, OSError) and problem.filename:
        problem = f"{problem.filename}: {problem.strerror}"
    print(f"ipc_server: {problem}", file=sys.stderr)
    return 1


def first(error: BaseException) -> BaseException:
    """Return the first exception in a group of groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


if __name__ == "__main__":
    sys.exit(main())
