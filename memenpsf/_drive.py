"""Runs plans in a thread: generators that yield what to wait for, and return a result.

What a plan does is the same for every door; memenpsf/trio/_drive.py runs it in a task.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

T = TypeVar("T")


def drive(plan: Generator[Any, None, T], wait: Callable[[Any], object] = time.sleep) -> T:
    """Run a plan; `wait` is called with what it yields, which are seconds by default."""
    with contextlib.closing(plan):
        while True:
            try:
                awaited = next(plan)
            except StopIteration as end:
                result: T = end.value
                return result
            wait(awaited)
