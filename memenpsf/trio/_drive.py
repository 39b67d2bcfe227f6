"""Runs plans for tasks, as memenpsf._places.drive does for threads."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, TypeVar

import trio

if TYPE_CHECKING:
    from collections.abc import Generator

T = TypeVar("T")


async def drive(plan: Generator[float, None, T]) -> T:
    """Run a plan that yields for how many seconds to sleep; return what it returns."""
    with contextlib.closing(plan):
        while True:
            try:
                delay = next(plan)
            except StopIteration as end:
                result: T = end.value
                return result
            await trio.sleep(delay)
