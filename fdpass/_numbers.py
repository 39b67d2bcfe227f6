"""Numbers and times from the caller: one function each decides what is accepted.

Anything with __index__ is a number, so numpy's integers are; bools are not. A time is a number of
seconds of any type with __float__ (fractions, decimals, numpy's floats too), a datetime.timedelta
or a numpy timedelta64.
"""

import math
import operator
import sys
from typing import TYPE_CHECKING, Any, SupportsFloat, TypeAlias

from ._sendable import is_masked

if TYPE_CHECKING:
    from datetime import timedelta

Seconds: TypeAlias = "SupportsFloat | timedelta | None"
"""A time, as seconds_of() takes it; None means for ever, unless the function says otherwise."""


def index_of(number: Any) -> int:
    """Return a number as an int; raise TypeError for anything else, such as True or 5.0."""
    if type(number) is int:
        return number
    if isinstance(number, bool) or is_masked(number):
        raise TypeError(f"expected a number (int), received {number!r}")
    return operator.index(number)


def seconds_of(given: Seconds, what: str = "timeout") -> float:
    """Return a time in seconds, at least 0; for None, math.inf.

    Raises TypeError for anything that is not a time, ValueError for less than 0 and for nan.
    """
    if given is None:
        return math.inf
    seconds = given if type(given) is float else _converted(given, what)
    if not seconds >= 0:
        raise ValueError(f"{what} is None or at least 0 seconds, not {given!r}")
    return seconds


def _converted(given: Any, what: str) -> float:
    try:
        if type(given) is int:
            return float(given)
        datetime = sys.modules.get("datetime")  # a caller with a timedelta has imported it
        if datetime is not None and isinstance(given, datetime.timedelta):
            return given.total_seconds()  # type: ignore[no-any-return]
        if type(given).__name__ == "timedelta64":
            return float(given / type(given)(1, "s"))  # float(given) would be in its own unit
        # numpy's strings and bools have __float__, too, but are not times.
        of_numpy = getattr(getattr(given, "dtype", None), "kind", "f")
        refused = isinstance(given, str | bytes | bool) or of_numpy not in "iuf"
        if refused or not hasattr(given, "__float__") or is_masked(given):
            raise TypeError
        return float(given)
    except OverflowError:
        return math.inf if given > 0 else -math.inf
    except (TypeError, ValueError):
        raise TypeError(
            f"{what} is None, a number of seconds or a datetime.timedelta, not {given!r}"
        ) from None


def shown_seconds(given: Seconds) -> str:
    """Format a time for messages: "1 s", "0.25 s"."""
    seconds = seconds_of(given)
    return f"{seconds:.6g} s" if seconds < _EXACT else f"{seconds:.0f} s"


_EXACT = 1e5  # from here on, six digits would not show all digits before the point
