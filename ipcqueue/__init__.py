"""A one-way queue of typed records between two processes, in sealed anonymous memory.

    sender, receiver = ipcqueue.pair("<QdI")          # in one process, or …
    sender = ipcqueue.Sender(sock, "<QdI")            # … over a connected AF_UNIX socket
    receiver = ipcqueue.Receiver(sock, "<QdI")

Read in this order: core/layout.h (the bytes), core/ends.h (the algorithm), _control, _handshake
(pure: messages, agreement), _segment, _ring (the C core from Python), _record and _slots (records
of one size), _message and _frames (messages of any length), _loan (either in place), _opening,
_endpoint and _sending (one side, without waiting), _blocking (waiting), _queue (the product).
Imports fdpass, and nothing above.
"""

from fdpass import (
    Credentials,
    Fd,
    MemoryRegion,
    Owner,
    Seconds,
    drop_socket,
    is_ambiguous_uid,
    monotonic,
    peer_credentials,
    seconds_of,
    shown_seconds,
)

from . import _interpreter  # noqa: F401 (first of all: it refuses where nothing here would hold)
from ._blocking import open_endpoint
from ._endpoint import Endpoint, Event, Statistics
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
    RecordRefused,
    Refused,
    RoleRefused,
    SealsRefused,
    SizeRefused,
    TooLarge,
    Unaccepted,
    VersionRefused,
)
from ._handshake import Role
from ._loan import Borrowing, Loan
from ._message import Encoded, Message, Received
from ._opening import (
    Lease,
    Opening,
    Terms,
    check_options,
    checked_number,
    checked_socket,
    deadline_of,
    refuse,
)
from ._origin import interface_of, tag_error, tag_unless_given, tagged
from ._queue import Connection, Receiver, Sender, open_pair, pair
from ._record import char, f32, f64, i8, i16, i32, i64, u8, u16, u32, u64
from ._sending import BatchSending, Sending

__all__ = [
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
    "RecordRefused",
    "Refused",
    "Role",
    "RoleRefused",
    "SealsRefused",
    "Seconds",
    "Sender",
    "Sending",
    "SizeRefused",
    "Statistics",
    "Terms",
    "TooLarge",
    "Unaccepted",
    "VersionRefused",
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
