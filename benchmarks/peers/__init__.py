"""The peers: one small class for each, by the name that the tables show.

A module that cannot be imported makes its peers absent, with the reason; nothing stands in for
them.  A peer of your own is named `module:Class` on the command line.
"""

from __future__ import annotations

import importlib
from typing import Any

from .base import Absent, Peer

# Those whose name begins so are ours.
OURS = "memenpsf"

# By name: where the class is.  What one carries decides the group.
MESSAGES = {
    "memenpsf bytes": "ours:Messages",
    "memenpsf fixed": "ours:Fixed",
    "memenpsf busy": "ours:Busy",
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
    "(bare ring in C)": "bare_ring:Ring",
    "(raw socket in C)": "bare_socket:Trips",
}

BATCHES = {
    "memenpsf numpy": "batched:OursNumpy",
    "memenpsf tuples": "batched:OursTuples",
    "memenpsf fixed bytes": "batched:OursFixed",
    "memenpsf any bytes": "batched:OursMessages",
    "mp.Pipe numpy": "batched:PipeNumpy",
    "mp.Pipe tuples": "batched:PipeTuples",
    "mp.Queue tuples": "batched:QueueTuples",
    "Unix stream numpy": "batched:StreamNumpy",
    "os.pipe buffered numpy": "batched:BufferedNumpy",
    "os.pipe buffered tuples": "batched:BufferedTuples",
    "os.pipe buffered bytes": "batched:BufferedBytes",
    "pyzmq numpy": "batched_zeromq:Numpy",
    "faster-fifo tuples": "batched_faster:Tuples",
    "faster-fifo bytes": "batched_faster:Bytes",
    "iceoryx2 numpy": "batched_iceoryx:Numpy",
}

CROWDS = {
    "memenpsf": "crowd:Ours",
    "mp.Pipe": "crowd:Pipe",
    "Unix stream": "crowd:Stream",
    "pyzmq": "crowd_zeromq:Router",
}

TRIO = {
    "memenpsf recv": "trios:Ours",
    "memenpsf recv_vectored": "trios:OursVectored",
    "Unix stream": "trios:Socket",
    "pynng": "trios_nng:Async",
    "(bare checkpoint)": "trios:Checkpoint",
}

LARGE = {
    "memenpsf copied": "large:OursCopied",
    "memenpsf loan, borrow": "large:OursLent",
    "memenpsf region again": "large:OursRegions",
    "memenpsf new region": "large:OursNewRegions",
    "mp.Pipe bytes": "large:PipeBytes",
    "Unix stream": "large:Stream",
    "os.pipe": "large:Plain",
    "pyzmq": "large_zeromq:Large",
    "iceoryx2 loan": "large_iceoryx:Lent",
}

HANDOVER = {
    "memenpsf region": "handover:Region",
    "(a descriptor, raw socket)": "handover:Descriptor",
}

# These are not classes, but programs.
IMPORTS = {
    "(an empty program)": "",
    "memenpsf": "import memenpsf",
    "memenpsf.trio": "import memenpsf.trio",
    "mp.Pipe": "import multiprocessing.connection",
    "pyzmq": "import zmq",
    "pynng": "import pynng",
    "faster-fifo": "import faster_fifo",
    "iceoryx2": "import iceoryx2",
}

GROUPS = {
    "messages": MESSAGES,
    "batches": BATCHES,
    "crowds": CROWDS,
    "trio": TRIO,
    "large": LARGE,
    "handover": HANDOVER,
    "imports": IMPORTS,
}


def load(name: str, group: str = "messages") -> type[Peer]:
    """Return the class of a peer; raise Absent if it cannot be had here."""
    known = GROUPS[group].get(name)
    module, _, attribute = (known or name).partition(":")
    if known:
        module = f"{__name__}.{module}"
    try:
        found: Any = getattr(importlib.import_module(module), attribute)
    except (ImportError, OSError) as error:  # or a library that cannot begin
        raise Absent(f"{error}") from error
    if not (isinstance(found, type) and issubclass(found, Peer)):
        raise TypeError(f"{name} is no Peer")
    return found


def is_ours(name: str) -> bool:
    """Tell whether this is memenpsf itself."""
    return name.startswith(OURS)


def is_reference(name: str) -> bool:
    """Tell whether this is a bound, which nobody would use as it is."""
    return name.startswith("(")


def is_peer(name: str) -> bool:
    """Tell whether this is something else that one could use."""
    return not is_ours(name) and not is_reference(name)


__all__ = ["GROUPS", "IMPORTS", "Absent", "Peer", "is_ours", "is_peer", "is_reference", "load"]
