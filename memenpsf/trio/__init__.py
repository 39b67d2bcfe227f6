"""The verbs of memenpsf for Trio: the same names, awaitable.

Every call is a checkpoint.  Cancelling a call loses nothing: it takes a record from the ring only
after its last cancellation point.  Exceptions are those of memenpsf.  If Trio has a corresponding
one, they are that as well: EndOfStream is a trio.EndOfChannel; ReceiverGone, PeerDied, CorruptPeer
and DescriptorsLost are trio.BrokenResourceErrors; Closed is a trio.ClosedResourceError,
ConcurrentUse a trio.BusyResourceError, Full a trio.WouldBlock.

What the doors for tasks have in common stands in memenpsf/_tasks.
"""

from __future__ import annotations

from .._loop import Ended
from ._errors import (
    Aborted,
    Closed,
    ConcurrentUse,
    CorruptPeer,
    DescriptorsLost,
    EndOfStream,
    Full,
    PeerDied,
    ReceiverGone,
)
from ._interface import AsyncBorrowing, AsyncLoan, Interface, connect
from ._listener import Listener, listen, serve
from ._loop import run
from ._receiver_set import ReceiverSet

__all__ = [  # noqa: RUF022 (classes and functions first)
    "Interface", "connect", "listen", "Listener", "serve", "run", "Ended", "ReceiverSet",
    "AsyncLoan", "AsyncBorrowing",
    "DescriptorsLost", "Full", "Closed", "EndOfStream", "ReceiverGone", "PeerDied", "Aborted",
    "CorruptPeer", "ConcurrentUse",
]  # fmt: skip

# Tracebacks show these names as memenpsf.trio.X, whichever file defines them.
for _offered in (
    Interface, connect, listen, Listener, serve, run, ReceiverSet, AsyncLoan, AsyncBorrowing,
    DescriptorsLost, Full, Closed, EndOfStream, ReceiverGone, PeerDied, Aborted, CorruptPeer,
    ConcurrentUse,
):  # fmt: skip
    _offered.__module__ = __name__
