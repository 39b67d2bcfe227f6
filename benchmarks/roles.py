"""What a process does in a turn: one side sends, the other takes and checks.

Each role gets its side of the connection, the number of the first message and how many there are,
and the options of the case; it returns what the controller makes a value of.  Times are those of
time.perf_counter_ns, which is one clock for all processes of a machine.
"""

from __future__ import annotations

import contextlib
import functools
import statistics
import threading
import time
from typing import TYPE_CHECKING, Any

from .messages import HEAD, WHOLE, Messages, WrongMessage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .peers.base import Peer

    Role = Callable[..., dict[str, Any]]

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
    records = peer.records()
    if peer.size > WHOLE:
        take_large(peer, messages.heads(first, count), records)
    elif records is None:
        recv = peer.recv
        for expected in messages.run(first, count):
            if (message := recv()) != expected:
                raise WrongMessage(expected, message)
    else:
        for expected, message in zip(messages.run(first, count), records, strict=False):
            if message != expected:
                raise WrongMessage(expected, message)


def take_large(peer: Peer, heads: Iterator[bytes], records: Iterator[bytes] | None) -> None:
    """Take messages, and look how they begin and how long they are."""
    size = peer.size
    if records is None:
        recv = peer.recv
        for head in heads:
            message = recv()
            if message[:HEAD] != head or len(message) != size:
                raise WrongMessage(head, message)
    else:
        for head, message in zip(heads, records, strict=False):
            if message[:HEAD] != head or len(message) != size:
                raise WrongMessage(head, message)


# There and back


def ask(
    peer: Peer, first: int, count: int, *, busy: bool = False, disturbed: bool = False
) -> dict[str, Any]:
    """Send a message, wait for it to come back, and so on."""
    messages = messages_of(peer.size).run(first, count)
    peer.prepare(streaming=False)
    recv = receiving(peer, busy=busy)
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
    return {"median": statistics.median(taken), "sum": sum(taken)}


def answer(
    peer: Peer, first: int, count: int, *, busy: bool = False, disturbed: bool = False
) -> dict[str, Any]:
    """Send back what comes."""
    peer.prepare(streaming=False)
    recv = receiving(peer, busy=busy)
    with company(disturbed=disturbed):
        send = peer.send
        for expected in messages_of(peer.size).run(first, count):
            if (message := recv()) != expected:
                raise WrongMessage(expected, message)
            send(message)
    return {}


def receiving(peer: Peer, *, busy: bool) -> Callable[[], bytes]:
    """Return the call that waits as it should."""
    if not busy:
        return peer.recv
    if type(peer).__dict__.get("prepare"):
        peer.prepare(streaming=True)
    return peer.recv_busy


ROLES: dict[str, Role] = {role.__name__: role for role in (send_stream, take_stream, ask, answer)}
