"""Numbers and times as the caller gives them: one function each that says what serves as one.

Whatever has __index__ is a number, numpy's integers too; bools are none. Times are in seconds: also
fractions, decimals, numpy's floats (all that has __float__), datetime.timedelta and numpy's timedelta64.
"""

import math
import operator
import sys
from typing import TYPE_CHECKING, Any, SupportsFloat, TypeAlias

from ._sendable import is_masked

if TYPE_CHECKING:
    from datetime import timedelta

Seconds: TypeAlias = "SupportsFloat | timedelta | None"
"""A time, as seconds_of() takes it; None is for ever, where it says nothing else."""


def index_of(number: Any) -> int:
    """Return the int that a number is; raise TypeError for what is none, such as True or 5.0."""
    if type(number) is int:
        return number
    if isinstance(number, bool) or is_masked(number):
        raise TypeError(f"expected a number (int), received {number!r}")
    return operator.index(number)


def seconds_of(given: Seconds, what: str = "timeout") -> float:
    """Return how many seconds that is, from 0 on; None is for ever, math.inf.

    Raises TypeError for what is no time, ValueError for less than 0 and for what is no number (nan).
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
        datetime = sys.modules.get("datetime")  # imported by whoever has a timedelta
        if datetime is not None and isinstance(given, datetime.timedelta):
            return given.total_seconds()  # type: ignore[no-any-return]
        if type(given).__name__ == "timedelta64":
            return float(given / type(given)(1, "s"))  # float(given) would be in its own unit
        # Texts and bools of numpy's have __float__ as well, and say nothing of a time.
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
    """Say a time as the caller gave it, for messages: "1 s", "0.25 s"."""
    seconds = seconds_of(given)
    return f"{seconds:.6g} s" if seconds < _EXACT else f"{seconds:.0f} s"


_EXACT = 1e5  # from where on six digits are fewer than those before the point
