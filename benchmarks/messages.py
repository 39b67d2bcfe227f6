"""Messages with sequence numbers, made before the clock starts, and what to compare them with."""

from __future__ import annotations

import itertools
import random
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

NUMBER = struct.Struct("<Q")
MOST, LEAST = 1024, 16  # messages made for a size
MEMORY = 4 << 20  # bytes that all of a size may have, unless LEAST takes more
WHOLE = 1 << 10  # up to this size all of a message is compared
HEAD = 16  # bytes that are compared of larger ones


class WrongMessage(Exception):
    """What arrived is not what had to come."""

    def __init__(self, expected: bytes, got: bytes) -> None:
        super().__init__(f"instead of message {shown(expected)} came {shown(got)}")


def shown(message: bytes) -> str:
    """Tell number and length."""
    if len(message) < NUMBER.size:
        return repr(message)
    return f"{NUMBER.unpack_from(message)[0]} ({len(message)} B)"


class Messages:
    """The messages of one size, repeated for ever."""

    def __init__(self, size: int) -> None:
        if size < NUMBER.size:
            raise ValueError(f"{size} B are too few for a sequence number")
        self.size = size
        rest = random.Random(size).randbytes(size - NUMBER.size)  # noqa: S311 (to be compared)
        count = min(MOST, max(LEAST, MEMORY // size))
        self.all = [NUMBER.pack(number) + rest for number in range(count)]

    def run(self, first: int, count: int) -> Iterator[bytes]:
        """Return so many messages from one on."""
        return repeated(self.all, first, count)

    def heads(self, first: int, count: int) -> Iterator[bytes]:
        """Return how those begin, for large ones."""
        return repeated([message[:HEAD] for message in self.all], first, count)


def repeated(items: list[bytes], first: int, count: int) -> Iterator[bytes]:
    """Return so many items from a number on, going round."""
    first %= len(items)
    return itertools.islice(itertools.cycle(items[first:] + items[:first]), count)
