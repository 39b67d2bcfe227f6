"""Says how connections begin and end, to the logger `ipcqueue`, at DEBUG: any client can cause it.

A program that has not imported logging cannot read what is logged, so it is not imported here.
Nothing of a record is logged.  Where memory is short a line is missing.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

from .shown import printable

NAME = "ipcqueue"
_DEBUG = 10
_LONGEST = 500  # characters of an exception's text, which may quote what a peer says


@functools.cache
def _logger(logging: Any) -> Any:
    return logging.getLogger(NAME)


def tell(text: str, *shown: object) -> None:
    """Log a line, if anybody may read it; `shown` are formatted only then."""
    logging = sys.modules.get("logging")
    # While another thread imports it, it is not whole.
    if logging is None or not hasattr(logging, "getLogger"):
        return
    try:
        logger = _logger(logging)
        if logger.isEnabledFor(_DEBUG):
            logger.debug(text, *map(_line, shown))
    except MemoryError:
        pass


def _line(each: object) -> str:
    text = printable(str(each))
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"
