"""Sends file descriptors over Unix sockets; makes, seals and checks memory files worth sending.

For sockets of Trio, import fdpass.trio.
"""

from ._errors import (
    ClosedFd,
    Disconnected,
    FdPassError,
    MemfdRefused,
    NotReserved,
    TooManyInFlight,
    TruncatedData,
    TruncatedDescriptors,
    WrongDescriptors,
    WrongSeals,
    WrongSize,
    WrongTag,
    WrongType,
)
from ._fd import Fd
from ._memfd import Memfd, Seal
from ._rights import MAX_FDS
from ._socket import Credentials, peer_credentials, recv_fd, recv_fds, send_fd, send_fds

__all__ = [
    "MAX_FDS",
    "ClosedFd",
    "Credentials",
    "Disconnected",
    "Fd",
    "FdPassError",
    "Memfd",
    "MemfdRefused",
    "NotReserved",
    "Seal",
    "TooManyInFlight",
    "TruncatedData",
    "TruncatedDescriptors",
    "WrongDescriptors",
    "WrongSeals",
    "WrongSize",
    "WrongTag",
    "WrongType",
    "peer_credentials",
    "recv_fd",
    "recv_fds",
    "send_fd",
    "send_fds",
]
