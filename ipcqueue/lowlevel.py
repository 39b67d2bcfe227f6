"""What a door is built of: an Endpoint without waiting, its handshake, checks; it may change.

For doors, such as memenpsf and memenpsf.trio.  What they need of fdpass is here, too: a layer uses
the one below it, and no other.
"""

from fdpass import (
    Credentials,
    Fd,
    MemoryRegion,
    Seconds,
    drop_socket,
    is_ambiguous_uid,
    peer_credentials,
)
from fdpass.lowlevel import Closable, Owner, index_of, monotonic, seconds_of, shown_seconds

from ._connection import Connection
from ._direct import RLock, persist, resume
from ._guesses import GUESSED, check_many, guess, listed
from ._leaving import leave
from ._link import plans
from ._link.endpoint import Endpoint, advance
from ._link.handshake import Role
from ._link.lease import Lease
from ._link.opening import Opening, refuse
from ._link.options import PairOptions, QueueOptions, checked_number
from ._link.shown import printable, shown_peer, shown_record
from ._link.terms import Terms, check_options, checked_socket, deadline_of
from ._link.waiters import NOW, Event, Wait
from ._link.watches import EventFd, Watch
from ._origin import tag_error, tag_unless_given, tagged
from ._queue import open_pair
from ._ring.memory import ABORTED
from ._threads import drive, open_endpoint, wait_for
from ._types import Buffer, D, N, NumpyDtype, T
from ._verbs import Receives, Sends

__all__ = [
    "ABORTED",
    "GUESSED",
    "NOW",
    "Buffer",
    "Closable",
    "Connection",
    "Credentials",
    "D",
    "Endpoint",
    "Event",
    "EventFd",
    "Fd",
    "Lease",
    "MemoryRegion",
    "N",
    "NumpyDtype",
    "Opening",
    "Owner",
    "PairOptions",
    "QueueOptions",
    "RLock",
    "Receives",
    "Role",
    "Seconds",
    "Sends",
    "T",
    "Terms",
    "Wait",
    "Watch",
    "advance",
    "check_many",
    "check_options",
    "checked_number",
    "checked_socket",
    "deadline_of",
    "drive",
    "drop_socket",
    "guess",
    "index_of",
    "is_ambiguous_uid",
    "leave",
    "listed",
    "monotonic",
    "open_endpoint",
    "open_pair",
    "peer_credentials",
    "persist",
    "plans",
    "printable",
    "refuse",
    "resume",
    "seconds_of",
    "shown_peer",
    "shown_record",
    "shown_seconds",
    "tag_error",
    "tag_unless_given",
    "tagged",
    "wait_for",
]
