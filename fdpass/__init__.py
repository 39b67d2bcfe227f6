"""Sends file descriptors over Unix sockets; makes, seals and checks memory files worth sending.

For sockets of Trio, import fdpass.trio. Who calls recvmsg() himself needs ANCILLARY_SPACE,
RECEIVE_FLAGS and unpack().
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
from ._rights import ANCILLARY_SPACE, MAX_FDS, RECEIVE_FLAGS, unpack
from ._socket import Credentials, peer_credentials, recv_fd, recv_fds, send_fd, send_fds

__all__ = [
    "ANCILLARY_SPACE",
    "MAX_FDS",
    "RECEIVE_FLAGS",
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
    "unpack",
]
