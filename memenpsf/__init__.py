"""Typed records between unrelated Linux processes, through sealed anonymous memory.

    with memenpsf.connect("prices", "<QdI") as interface:      # one process
        interface.xmit((1, 2.5, 3))

    with memenpsf.listen("prices", "<QdI") as listener:        # another
        for record in listener.accept():
            print(record)

For Trio and asyncio, import memenpsf.trio or memenpsf.asyncio: the same verbs, awaitable.  Built on
ipcqueue (the one-way queue) and fdpass (descriptors); imports neither Trio, asyncio nor numpy.
"""

import typing

# First of all: it refuses where nothing here would work.
from ._foundation import VERSION as _VERSION

# isort: split
from ipcqueue import (
    Aborted,
    Accept,
    BadRecord,
    Borrowing,
    Closed,
    ConcurrentUse,
    CorruptPeer,
    CredentialsRefused,
    DecodeFailed,
    DescriptorsLost,
    Encoded,
    EndOfStream,
    ForkedUse,
    Full,
    HandshakeTimeout,
    LimitRefused,
    Loan,
    LoanError,
    Message,
    Options,
    PeerDied,
    QueueError,
    Received,
    ReceiverGone,
    RecordRefused,
    Refused,
    RoleRefused,
    SealsRefused,
    SizeRefused,
    Spin,
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
    interface_of,
    u8,
    u16,
    u32,
    u64,
)
from ipcqueue.lowlevel import Credentials

from ._interface import Interface, connect, pair
from ._quota import Quota

if typing.TYPE_CHECKING:
    from ._dealing import deal
    from ._listener import Listener, listen
    from ._loop import Ended, run
    from ._pipe import PipeEnd, pipe, pipe_end
    from ._receiver_set import ReceiverSet
    from ._serve import serve
    from ._wait import wait
else:

    def __getattr__(name: str) -> object:
        """Import a name on first use: it is slow to import, and few programs need it."""
        if name in {"Listener", "listen"}:
            from . import _listener as _module  # noqa: PLC0415
        elif name in {"Ended", "run"}:
            from . import _loop as _module  # noqa: PLC0415
        elif name in {"PipeEnd", "pipe", "pipe_end"}:
            from . import _pipe as _module  # noqa: PLC0415
        elif name == "deal":
            from . import _dealing as _module  # noqa: PLC0415
        elif name == "serve":
            from . import _serve as _module  # noqa: PLC0415
        elif name == "ReceiverSet":
            from . import _receiver_set as _module  # noqa: PLC0415
        elif name == "wait":
            from . import _wait as _module  # noqa: PLC0415
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(_module, name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


__version__ = _VERSION

__all__ = [  # noqa: RUF022 (classes and functions first)
    "Interface", "connect", "listen", "Listener", "pair", "run", "Ended", "serve",
    "pipe", "pipe_end", "PipeEnd", "deal", "wait", "ReceiverSet",
    "Accept", "Spin", "Quota", "Options", "Statistics", "interface_of",
    "Message", "Encoded", "Received", "Loan", "Borrowing", "Credentials",
    "QueueError", "BadRecord", "TooLarge", "Unaccepted", "DecodeFailed", "LoanError",
    "DescriptorsLost", "Full", "Closed", "EndOfStream", "ReceiverGone", "PeerDied",
    "Aborted", "CorruptPeer", "ConcurrentUse", "ForkedUse", "HandshakeTimeout", "Refused", "RecordRefused",
    "VersionRefused", "SealsRefused", "SizeRefused", "CredentialsRefused", "RoleRefused",
    "LimitRefused",
    "u8", "u16", "u32", "u64", "i8", "i16", "i32", "i64", "f32", "f64", "char",
]  # fmt: skip

# Users import them from here, whichever file they stand in: so errors and tracebacks name them.
# What is imported on first use does the same at the end of its own file.
for _name in __all__:
    _it = globals().get(_name)
    if hasattr(_it, "__qualname__") and _it.__module__.startswith(f"{__name__}._"):
        _it.__module__ = __name__
