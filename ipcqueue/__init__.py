"""A one-way queue of typed records between two processes, in sealed anonymous memory.

    sender, receiver = ipcqueue.pair("<QdI")          # in one process, or …
    sender = ipcqueue.Sender(sock, "<QdI")            # … over a connected AF_UNIX socket
    receiver = ipcqueue.Receiver(sock, "<QdI")

From below: core/ (the bytes and the algorithm, in C), _records/ (what a record is), _ring/ (segments
and both ends of a ring), _link/ (control messages, handshake, one side of a connection), _threads
(waiting), _queue (the product).
Imports fdpass, and nothing above.
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
from fdpass.lowlevel import Owner, monotonic, seconds_of, shown_seconds

from . import _interpreter  # noqa: F401 (first of all: it refuses where nothing here would hold)
from ._binding import persist
from ._errors import (
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
from ._link.endpoint import Endpoint, Statistics, advance
from ._link.handshake import Role
from ._link.lease import Lease
from ._link.loans import Borrowing, Loan
from ._link.opening import Opening, refuse
from ._link.options import Accept, Spin, checked_number
from ._link.terms import Terms, check_options, checked_socket, deadline_of
from ._link.waiters import Event, Waiter
from ._origin import interface_of, tag_error, tag_unless_given, tagged
from ._queue import Connection, Receiver, Sender, open_pair, pair
from ._records.classes import char, f32, f64, i8, i16, i32, i64, u8, u16, u32, u64
from ._records.messages import Encoded, Message, Received
from ._ring.sender import BatchSending, Sending
from ._threads import open_endpoint

__all__ = [
    "Accept",
    "BadRecord",
    "BatchSending",
    "Borrowing",
    "Closed",
    "ConcurrentUse",
    "Connection",
    "CorruptPeer",
    "Credentials",
    "CredentialsRefused",
    "DecodeFailed",
    "DescriptorsLost",
    "Encoded",
    "EndOfStream",
    "Endpoint",
    "Event",
    "Fd",
    "ForkedUse",
    "Full",
    "HandshakeTimeout",
    "Lease",
    "LimitRefused",
    "Loan",
    "LoanError",
    "MemoryRegion",
    "Message",
    "Opening",
    "Owner",
    "PeerDied",
    "QueueError",
    "Received",
    "Receiver",
    "ReceiverGone",
    "RecordRefused",
    "Refused",
    "Role",
    "RoleRefused",
    "SealsRefused",
    "Seconds",
    "Sender",
    "Sending",
    "SizeRefused",
    "Spin",
    "Statistics",
    "Terms",
    "TooLarge",
    "Unaccepted",
    "VersionRefused",
    "Waiter",
    "advance",
    "char",
    "check_options",
    "checked_number",
    "checked_socket",
    "deadline_of",
    "drop_socket",
    "f32",
    "f64",
    "i8",
    "i16",
    "i32",
    "i64",
    "interface_of",
    "is_ambiguous_uid",
    "monotonic",
    "open_endpoint",
    "open_pair",
    "pair",
    "peer_credentials",
    "persist",
    "refuse",
    "seconds_of",
    "shown_seconds",
    "tag_error",
    "tag_unless_given",
    "tagged",
    "u8",
    "u16",
    "u32",
    "u64",
]
