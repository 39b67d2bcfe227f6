"""A one-way queue of typed records between two processes, in sealed anonymous memory.

    sender, receiver = ipcqueue.pair("<QdI")          # in one process, or …
    sender = ipcqueue.Sender(sock, "<QdI")            # … over a connected AF_UNIX socket
    receiver = ipcqueue.Receiver(sock, "<QdI")

From below: core/ (the bytes and the algorithm, in C), _records/ (what a record is), _ring/
(segments and both ends of a ring), _link/ (control messages, handshake, one side of a connection),
_threads (waiting), _queue (the product).  What only doors are built of is in lowlevel.  Imports
fdpass, and nothing above.
"""

# First of all: these refuse where nothing here would work.
from ._foundation import VERSION as _VERSION

# isort: split
from . import _interpreter  # noqa: F401

# isort: split
from ._errors import (
    Aborted,
    BadRecord,
    Closed,
    ConcurrentUse,
    CorruptPeer,
    CredentialsRefused,
    DecodeFailed,
    DescriptorsLost,
    EndOfStream,
    ForkedUse,
    Full,
    HandshakeTimeout,
    LimitRefused,
    LoanError,
    PeerDied,
    QueueError,
    ReceiverGone,
    RecordRefused,
    Refused,
    RoleRefused,
    SealsRefused,
    SizeRefused,
    TooLarge,
    Unaccepted,
    VersionRefused,
)
from ._link.loans import Borrowing, Loan
from ._link.options import Accept, Options, Spin
from ._link.statistics import Statistics
from ._origin import interface_of
from ._queue import Receiver, Sender, pair
from ._records.fields import char, f32, f64, i8, i16, i32, i64, u8, u16, u32, u64
from ._records.messages import Encoded, Message, Received

__version__ = _VERSION

__all__ = [
    "Aborted",
    "Accept",
    "BadRecord",
    "Borrowing",
    "Closed",
    "ConcurrentUse",
    "CorruptPeer",
    "CredentialsRefused",
    "DecodeFailed",
    "DescriptorsLost",
    "Encoded",
    "EndOfStream",
    "ForkedUse",
    "Full",
    "HandshakeTimeout",
    "LimitRefused",
    "Loan",
    "LoanError",
    "Message",
    "Options",
    "PeerDied",
    "QueueError",
    "Received",
    "Receiver",
    "ReceiverGone",
    "RecordRefused",
    "Refused",
    "RoleRefused",
    "SealsRefused",
    "Sender",
    "SizeRefused",
    "Spin",
    "Statistics",
    "TooLarge",
    "Unaccepted",
    "VersionRefused",
    "char",
    "f32",
    "f64",
    "i8",
    "i16",
    "i32",
    "i64",
    "interface_of",
    "pair",
    "u8",
    "u16",
    "u32",
    "u64",
]

# Users import them from here, whichever file they stand in: so errors and tracebacks name them.
for _name in __all__:
    _it = globals().get(_name)
    if hasattr(_it, "__qualname__") and _it.__module__.startswith(f"{__name__}._"):
        _it.__module__ = __name__
