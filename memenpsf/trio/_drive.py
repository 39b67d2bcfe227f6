"""Runs plans in a task, as memenpsf/_drive.py does in a thread."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, TypeVar

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

T = TypeVar("T")


async def drive(
    plan: Generator[Any, None, T], wait: Callable[[Any], Awaitable[object]] = trio.sleep
) -> T:
    """Run a plan; `wait` is awaited with what it yields, which are seconds by default."""
    with contextlib.closing(plan):
        while True:
            try:
                awaited = next(plan)
            except StopIteration as end:
                result: T = end.value
                return result
            await wait(awaited)
