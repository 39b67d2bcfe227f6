"""What a process does in a turn with large messages and with regions; see roles."""

from __future__ import annotations

import functools
import random
import statistics
import time
from typing import Any

from .messages import NUMBER, WrongMessage

now = time.perf_counter_ns


# Large messages, written and read once


def send_filled(peer: Any, first: int, count: int) -> dict[str, Any]:
    """Write each message where the peer says, and send it."""
    source = pattern(peer.size)
    peer.prepare(streaming=True)
    started = now()
    for number in range(first, first + count):
        NUMBER.pack_into(source, 0, number)
        NUMBER.pack_into(source, len(source) - NUMBER.size, number)
        peer.send_filled(source)
    return {"started": started}


def take_read(peer: Any, first: int, count: int) -> dict[str, Any]:
    """Read all of each message, check the number at both ends, and all of the last."""
    expected = pattern(peer.size)
    scratch = memoryview(bytearray(peer.size))
    end = peer.size - NUMBER.size
    peer.prepare(streaming=True)
    for number in range(first, first + count):
        peer.read(scratch)
        if NUMBER.unpack_from(scratch) != (number,) or NUMBER.unpack_from(scratch, end) != (
            number,
        ):
            raise WrongMessage(NUMBER.pack(number), bytes(scratch))
    ended = now()
    NUMBER.pack_into(expected, 0, first + count - 1)
    NUMBER.pack_into(expected, end, first + count - 1)
    if scratch != expected:
        raise WrongMessage(bytes(expected), bytes(scratch))
    return {"ended": ended}


@functools.lru_cache(1)
def pattern(size: int) -> bytearray:
    """Return what a large message holds, but for its number."""
    return bytearray(random.Random(size).randbytes(size))  # noqa: S311 (to be compared)


# Handing over a region


def hand_over(peer: Any, first: int, count: int) -> dict[str, Any]:
    """Give, and wait for the answer, and so on."""
    taken = []
    for number in range(first, first + count):
        started = now()
        answer = peer.hand_over(number)
        taken.append(now() - started)
        if answer != NUMBER.pack(number):
            raise WrongMessage(NUMBER.pack(number), answer)
    return {"median": statistics.median(taken)}


def give_back(peer: Any, first: int, count: int) -> dict[str, Any]:
    """Take, and answer."""
    for number in range(first, first + count):
        if (got := peer.give_back()) != number:
            raise WrongMessage(NUMBER.pack(number), NUMBER.pack(got))
    return {}
