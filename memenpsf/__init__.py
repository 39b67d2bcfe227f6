"""Typed records between unrelated Linux processes, through sealed anonymous memory.

    with memenpsf.connect("prices", "<QdI") as interface:      # one process
        interface.xmit((1, 2.5, 3))

    with memenpsf.listen("prices", "<QdI") as listener:        # another
        for record in listener.accept():
            print(record)

For Trio, import memenpsf.trio: the same verbs, awaitable.  Built on ipcqueue (the one-way queue)
and fdpass (descriptors); imports neither Trio nor numpy.
"""

from ipcqueue import (
    BadRecord,
    Borrowing,
    Closed,
    ConcurrentUse,
    CorruptPeer,
    Credentials,
    CredentialsRefused,
    DecodeFailed,
    DescriptorsLost,
    Encoded,
    EndOfStream,
    ForkedUse,
    Full,
    HandshakeTimeout,
    Loan,
    LoanError,
    Message,
    PeerDied,
    QueueError,
    Received,
    RecordRefused,
    Refused,
    RoleRefused,
    SealsRefused,
    SizeRefused,
    Statistics,
    TooLarge,
    Unaccepted,
    VersionRefused,
    char,
    f32,
    f64,
    i8,
    i16,
    i32,
    i64,
    u8,
    u16,
    u32,
    u64,
)

from ._interface import Interface, connect, pair
from ._listener import Listener, listen
from ._loop import Ended, run

__all__ = [  # noqa: RUF022 (classes and functions first)
    "Interface", "connect", "listen", "Listener", "pair", "run", "Ended", "Statistics",
    "Message", "Encoded", "Received", "Loan", "Borrowing", "Credentials",
    "QueueError", "BadRecord", "TooLarge", "Unaccepted", "DecodeFailed", "LoanError",
    "DescriptorsLost", "Full", "Closed", "EndOfStream", "PeerDied", "CorruptPeer",
    "ConcurrentUse", "ForkedUse", "HandshakeTimeout", "Refused", "RecordRefused",
    "VersionRefused", "SealsRefused", "SizeRefused", "CredentialsRefused", "RoleRefused",
    "u8", "u16", "u32", "u64", "i8", "i16", "i32", "i64", "f32", "f64", "char",
]  # fmt: skip
