"""The verbs of memenpsf for asyncio, on its own event loop or uvloop: the same names, awaitable.

As is the custom of asyncio, a call that can be done at once does not suspend; but after 64 records
in a row one interface lets other tasks run.  Cancelling a call loses nothing: it takes a record
from the ring only after its last cancellation point.  Exceptions are those of memenpsf.

What the doors for tasks have in common stands in memenpsf/_tasks.
"""

from __future__ import annotations

from .._loop import Ended
from ._interface import AsyncBorrowing, AsyncLoan, Interface, connect
from ._listener import Listener, listen, serve
from ._loop import run
from ._receiver_set import ReceiverSet

__all__ = [  # noqa: RUF022 (classes and functions first)
    "Interface", "connect", "listen", "Listener", "serve", "run", "Ended", "ReceiverSet",
    "AsyncLoan", "AsyncBorrowing",
]  # fmt: skip

# Tracebacks show these names as memenpsf.asyncio.X, whichever file defines them.
for _offered in (
    Interface, connect, listen, Listener, serve, run, ReceiverSet, AsyncLoan, AsyncBorrowing,
):  # fmt: skip
    _offered.__module__ = __name__
