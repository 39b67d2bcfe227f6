"""The verbs of memenpsf for Trio: the same names, awaitable.

Every call is a checkpoint.  Cancelling one loses nothing: a record is taken from the ring after
the last point at which the call can be cancelled.  Exceptions are those of memenpsf and, where
Trio has the word, Trio's as well: EndOfStream is a trio.EndOfChannel; ReceiverGone, PeerDied,
CorruptPeer and DescriptorsLost are a trio.BrokenResourceError; Closed is a
trio.ClosedResourceError, ConcurrentUse a trio.BusyResourceError, Full a trio.WouldBlock.

Each file mirrors the one of memenpsf, or of ipcqueue, that serves threads, and leaves to it all
that does not wait.
"""

from __future__ import annotations

from .._loop import Ended
from ._blocks import AsyncBorrowing, AsyncLoan
from ._errors import (
    Closed,
    ConcurrentUse,
    CorruptPeer,
    DescriptorsLost,
    EndOfStream,
    Full,
    PeerDied,
    ReceiverGone,
)
from ._interface import Interface, connect
from ._listener import Listener, listen
from ._loop import run
from ._serve import serve

__all__ = [  # noqa: RUF022 (classes and functions first)
    "Interface", "connect", "listen", "Listener", "serve", "run", "Ended",
    "AsyncLoan", "AsyncBorrowing",
    "DescriptorsLost", "Full", "Closed", "EndOfStream", "ReceiverGone", "PeerDied", "CorruptPeer",
    "ConcurrentUse",
]  # fmt: skip

# They are of memenpsf.trio, whichever file of it they stand in: so tracebacks name them.
for _offered in (
    Interface, connect, listen, Listener, serve, run, AsyncLoan, AsyncBorrowing,
    DescriptorsLost, Full, Closed, EndOfStream, ReceiverGone, PeerDied, CorruptPeer, ConcurrentUse,
):  # fmt: skip
    _offered.__module__ = __name__
