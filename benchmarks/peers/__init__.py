"""The peers: one small class for each, by the name that the tables show.

A module that cannot be imported makes its peers absent, with the reason; nothing stands in for
them.  A peer of your own is named `module:Class` on the command line.
"""

from __future__ import annotations

import importlib
from typing import Any

from .base import Absent, Peer

# By name: where the class is.  Those whose name begins with OURS are ours.
OURS = "memenpsf"

MESSAGES = {
    "memenpsf bytes": "ours:Messages",
    "memenpsf fixed": "ours:Fixed",
    "memenpsf bytes, for": "ours:IteratedMessages",
    "memenpsf fixed, for": "ours:IteratedFixed",
    "mp.Pipe bytes": "mp:PipeBytes",
    "mp.Pipe pickled": "mp:PipePickled",
    "mp.Queue": "mp:Queue",
    "mp.SimpleQueue": "mp:SimpleQueue",
    "Unix stream": "sockets:Stream",
    "Unix seqpacket": "sockets:Seqpacket",
    "os.pipe": "pipes:Plain",
    "os.pipe buffered": "pipes:Buffered",
    "pyzmq": "zeromq:Pair",
    "pynng": "nng:Pair",
    "faster-fifo": "faster:Single",
    "faster-fifo many": "faster:Many",
    "iceoryx2": "iceoryx:Copies",
}

REGISTRY = dict(MESSAGES)


def load(name: str) -> type[Peer]:
    """Return the class of a peer; raise Absent if it cannot be had here."""
    place = REGISTRY.get(name, name)
    module, _, attribute = place.partition(":")
    if name in REGISTRY:
        module = f"{__name__}.{module}"
    try:
        found: Any = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise Absent(f"{error}") from error
    if not (isinstance(found, type) and issubclass(found, Peer)):
        raise TypeError(f"{place} is no Peer")
    return found


def is_ours(name: str) -> bool:
    """Tell whether this is memenpsf itself."""
    return name.startswith(OURS)


__all__ = ["MESSAGES", "REGISTRY", "Absent", "Peer", "is_ours", "load"]
