"""Sends file descriptors over Unix sockets; makes, seals and checks memory worth sending.

For sockets of Trio, import fdpass.trio. Who calls recvmsg() himself needs ANCILLARY_SPACE,
RECEIVE_FLAGS and unpack().
"""

import typing

from ._clock import monotonic
from ._errors import (
    ClosedFd,
    ClosedRegion,
    ClosedRegistry,
    Disconnected,
    FdPassError,
    ForkedRegistry,
    MemfdRefused,
    NotReserved,
    RegionError,
    RegionInUse,
    SharedRefused,
    TooManyInFlight,
    TruncatedData,
    TruncatedDescriptors,
    Unsendable,
    WrongDescriptors,
    WrongSeals,
    WrongSize,
    WrongTag,
    WrongType,
)
from ._fd import Fd, closing_all
from ._forks import renewed_after_fork
from ._mappings import Mappings
from ._memfd import Memfd, Seal
from ._numbers import Seconds, index_of, seconds_of, shown_seconds
from ._owner import Owner, cannot_copy
from ._region import MemoryRegion, Mode
from ._rights import ANCILLARY_SPACE, MAX_FDS, RECEIVE_FLAGS, unpack
from ._sendable import check_sendable, exported, is_masked
from ._socket import (
    Credentials,
    is_ambiguous_uid,
    pass_pidfd,
    peer_credentials,
    peer_pidfd,
    recv_fd,
    recv_fds,
    recv_fds_and_pidfd,
    send_fd,
    send_fds,
)
from ._untrusted import close_untrusted, drop_socket

if typing.TYPE_CHECKING:
    from ._registry import MemoryRegistry, RegistryStatistics, Returned
else:

    def __getattr__(name: str) -> object:
        """Import on first use what is slow to import, and used by some programs only."""
        if name in {"MemoryRegistry", "RegistryStatistics", "Returned"}:
            from . import _registry  # noqa: PLC0415

            return getattr(_registry, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


__all__ = [
    "ANCILLARY_SPACE",
    "MAX_FDS",
    "RECEIVE_FLAGS",
    "ClosedFd",
    "ClosedRegion",
    "ClosedRegistry",
    "Credentials",
    "Disconnected",
    "Fd",
    "FdPassError",
    "ForkedRegistry",
    "Mappings",
    "Memfd",
    "MemfdRefused",
    "MemoryRegion",
    "MemoryRegistry",
    "Mode",
    "NotReserved",
    "Owner",
    "RegionError",
    "RegionInUse",
    "RegistryStatistics",
    "Returned",
    "Seal",
    "Seconds",
    "SharedRefused",
    "TooManyInFlight",
    "TruncatedData",
    "TruncatedDescriptors",
    "Unsendable",
    "WrongDescriptors",
    "WrongSeals",
    "WrongSize",
    "WrongTag",
    "WrongType",
    "cannot_copy",
    "check_sendable",
    "close_untrusted",
    "closing_all",
    "drop_socket",
    "exported",
    "index_of",
    "is_ambiguous_uid",
    "is_masked",
    "monotonic",
    "pass_pidfd",
    "peer_credentials",
    "peer_pidfd",
    "recv_fd",
    "recv_fds",
    "recv_fds_and_pidfd",
    "renewed_after_fork",
    "seconds_of",
    "send_fd",
    "send_fds",
    "shown_seconds",
    "unpack",
]
