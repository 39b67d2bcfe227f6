"""What a process does in a turn: one side sends, the other takes and checks.

Each role gets its side of the connection, the number of the first message and how many there are,
and the options of the case; it returns what the controller makes a value of.  Times are those of
time.perf_counter_ns, which is one clock for all processes of a machine.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import statistics
import threading
import time
from typing import TYPE_CHECKING, Any

from . import records
from .large_roles import give_back, hand_over, send_filled, take_read
from .messages import HEAD, WHOLE, Messages, WrongMessage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .peers.base import Peer

    Role = Callable[..., dict[str, Any]]

SETTLE = 0.02  # seconds after which nobody spins any more

now = time.perf_counter_ns
messages_of = functools.lru_cache(1)(Messages)


@contextlib.contextmanager
def company(*, disturbed: bool) -> Iterator[None]:
    """Have another thread of this process run Python all the time, or not."""
    if not disturbed:
        yield
        return
    over = False

    def work() -> None:
        number = 0
        while not over:
            number += 1

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over = True
        thread.join()


# One way


def send_stream(peer: Peer, first: int, count: int, *, disturbed: bool = False) -> dict[str, Any]:
    """Send one by one, as fast as it goes."""
    messages = messages_of(peer.size).run(first, count)
    peer.prepare(streaming=True)
    with company(disturbed=disturbed):
        started = now()
        send = peer.send
        for message in messages:
            send(message)
        peer.flush()
        return {"started": started}


def take_stream(peer: Peer, first: int, count: int, *, disturbed: bool = False) -> dict[str, Any]:
    """Take one by one, and check each."""
    peer.prepare(streaming=True)
    with company(disturbed=disturbed):
        take(peer, first, count)
        return {"ended": now()}


def take(peer: Peer, first: int, count: int) -> None:
    """Take so many messages, in a loop over the peer if it has one."""
    messages = messages_of(peer.size)
    iterator = peer.records()
    if peer.size > WHOLE:
        take_large(peer, messages.heads(first, count), iterator)
    elif iterator is None:
        recv = peer.recv
        for expected in messages.run(first, count):
            if (message := recv()) != expected:
                raise WrongMessage(expected, message)
    else:
        for expected, message in zip(messages.run(first, count), iterator, strict=False):
            if message != expected:
                raise WrongMessage(expected, message)


def take_large(peer: Peer, heads: Iterator[bytes], iterator: Iterator[bytes] | None) -> None:
    """Take messages, and look how they begin and how long they are.

    Each is let go before the next is asked for: else the allocator has to get new memory from the
    kernel, which takes longer than many a peer does, and hides what is measured.
    """
    size = peer.size
    recv = peer.recv if iterator is None else iterator.__next__
    for head in heads:
        message = recv()
        if message[:HEAD] != head or len(message) != size:
            raise WrongMessage(head, message)
        del message


# There and back


def ask(
    peer: Peer, first: int, count: int, *, busy: bool = False, disturbed: bool = False
) -> dict[str, Any]:
    """Send a message, wait for it to come back, and so on."""
    messages = messages_of(peer.size).run(first, count)
    peer.prepare(streaming=busy)
    if peer.ask_all is not None:
        return of_trips(peer.ask_all(list(messages)))
    recv = peer.recv_busy if busy else peer.recv
    taken = []
    with company(disturbed=disturbed):
        send = peer.send
        for message in messages:
            started = now()
            send(message)
            answer = recv()
            taken.append(now() - started)
            if answer != message:
                raise WrongMessage(message, answer)
    return of_trips(taken)


def of_trips(taken: list[int]) -> dict[str, Any]:
    """Return what the controller is told of round trips."""
    return {"median": statistics.median(taken), "sum": sum(taken)}


def answer(
    peer: Peer, first: int, count: int, *, busy: bool = False, disturbed: bool = False
) -> dict[str, Any]:
    """Send back what comes."""
    peer.prepare(streaming=busy)
    if peer.answer_all is not None:
        peer.answer_all(list(messages_of(peer.size).run(first, count)))
        return {}
    recv = peer.recv_busy if busy else peer.recv
    with company(disturbed=disturbed):
        send = peer.send
        for expected in messages_of(peer.size).run(first, count):
            if (message := recv()) != expected:
                raise WrongMessage(expected, message)
            send(message)
    return {}


# Batches


def send_batches(
    peer: Any, first: int, count: int, *, batch: int, disturbed: bool = False
) -> dict[str, Any]:
    """Send so many batches."""
    outgoing = list(records.batches(records.form(peer.form), first, count, batch))
    peer.prepare(streaming=True)
    with company(disturbed=disturbed):
        started = now()
        send = peer.send_batch
        for some in outgoing:
            send(some)
        peer.flush()
        return {"started": started}


def take_batches(
    peer: Any, first: int, count: int, *, batch: int, disturbed: bool = False
) -> dict[str, Any]:
    """Take as many records, in whatever batches they come, and check every number."""
    expected = records.form(peer.form)
    position, left = first * batch % records.WRAP, count * batch
    peer.prepare(streaming=True)
    recv = peer.recv_batch
    with company(disturbed=disturbed):
        while left:
            # Not beyond the wrap, as what is expected is a slice.
            got = recv(min(left, records.WRAP - position))
            if not expected.are(got, position):
                raise records.WrongRecords(f"after {count * batch - left} right ones")
            left -= len(got)
            position = (position + len(got)) % records.WRAP
        return {"ended": now(), "batch": batch}


# At a pace, and not at all


def send_paced(peer: Peer, first: int, count: int, *, seconds: float, **_: Any) -> dict[str, Any]:
    """Send so many, evenly over some seconds; what is late is sent at once."""
    messages = messages_of(peer.size).run(first, count)
    peer.prepare(streaming=False)
    usage, started = time.process_time_ns(), now()
    gap = seconds * 1e9 / count
    for number, message in enumerate(messages):
        early = started + number * gap - now()
        if early > 0:
            time.sleep(early / 1e9)
        peer.send(message)
    return {"cpu": (time.process_time_ns() - usage) / (now() - started)}


def send_after(
    peer: Peer, first: int, count: int, *, seconds: float, partner: int
) -> dict[str, Any]:
    """Be idle for some seconds, then send; tell what both processes took meanwhile."""
    messages = messages_of(peer.size).run(first, count)
    peer.prepare(streaming=False)
    time.sleep(SETTLE)  # until the other sleeps, too
    clocks = [time.CLOCK_PROCESS_CPUTIME_ID, clock_of(partner)]
    before, started = [time.clock_gettime_ns(clock) for clock in clocks], now()
    time.sleep(seconds)
    passed = now() - started
    after = [time.clock_gettime_ns(clock) for clock in clocks]
    for message in messages:
        peer.send(message)
    own, others = ((end - begin) / passed for begin, end in zip(before, after, strict=True))
    return {"cpu": own, "partner": others}


def clock_of(process: int) -> int:
    """Return the clock of a process's time on processors, as clock_getcpuclockid makes it."""
    return (~process << 3) | 2


def take_measured(peer: Peer, first: int, count: int, **_: Any) -> dict[str, Any]:
    """Take as many, sleeping in between; tell the share of a processor that it took."""
    messages = messages_of(peer.size).run(first, count)
    peer.prepare(streaming=False)
    usage, started = time.process_time_ns(), now()
    for expected in messages:
        if (message := peer.recv()) != expected:
            raise WrongMessage(expected, message)
    return {"cpu": (time.process_time_ns() - usage) / (now() - started)}


# Through Trio


def send_trio(peer: Any, first: int, count: int) -> dict[str, Any]:
    """Send one by one, in Trio if this side is a Trio program."""
    if peer.nothing:
        return {"started": now()}
    if not peer.asynchronous:
        return send_stream(peer, first, count)
    messages = messages_of(peer.size).run(first, count)

    async def send_all() -> int:
        started = now()
        send = peer.asend
        for message in messages:
            await send(message)
        return started

    return {"started": trio().run(send_all)}


def take_trio(peer: Any, first: int, count: int) -> dict[str, Any]:
    """Take one by one, or as many as come, in Trio."""
    if peer.nothing:
        take: Callable[..., Any] = checkpoints
    else:
        take = take_many if peer.arecv is None else take_one_by_one
    trio().run(take, peer, messages_of(peer.size).run(first, count), count)
    return {"ended": now()}


async def take_one_by_one(peer: Any, messages: Iterator[bytes], count: int) -> None:  # noqa: ARG001
    """Take and check each."""
    recv = peer.arecv
    for expected in messages:
        if (message := await recv()) != expected:
            raise WrongMessage(expected, message)


async def take_many(peer: Any, messages: Iterator[bytes], count: int) -> None:
    """Take what is there, and check each."""
    while count:
        got = await peer.arecv_many()
        for expected, message in zip(itertools.islice(messages, len(got)), got, strict=True):
            if message != expected:
                raise WrongMessage(expected, message)
        count -= len(got)


async def checkpoints(peer: Any, messages: Iterator[bytes], count: int) -> None:  # noqa: ARG001
    """Take nothing, but let other tasks run as often."""
    checkpoint = trio().lowlevel.checkpoint
    for _ in range(count):
        await checkpoint()


def trio() -> Any:
    """Return the module, which only who uses it needs."""
    import trio  # noqa: PLC0415

    return trio


# The first message of a connection


def connect_and_send(peer: Peer, first: int, count: int) -> dict[str, Any]:
    """Connect, and send at once."""
    messages = list(messages_of(peer.size).run(first, count))
    started = now()
    peer.connect()
    peer.prepare(streaming=True)
    for message in messages:
        peer.send(message)
    peer.flush()
    return {"started": started}


def accept_and_take(peer: Peer, first: int, count: int) -> dict[str, Any]:
    """Accept, and take what comes."""
    messages = messages_of(peer.size).run(first, count)
    peer.accept()
    peer.prepare(streaming=True)
    for expected in messages:
        if (message := peer.recv()) != expected:
            raise WrongMessage(expected, message)
    return {"ended": now()}


ROLES: dict[str, Role] = {
    role.__name__: role
    for role in (
        send_stream, take_stream, ask, answer, send_batches, take_batches, send_paced, send_after,
        take_measured, send_trio, take_trio, send_filled, take_read, hand_over, give_back, connect_and_send,
        accept_and_take,
    )
}  # fmt: skip
