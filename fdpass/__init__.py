"""Sends file descriptors over Unix sockets; makes, seals and checks memory worth sending.

For sockets of Trio, import fdpass.trio. fdpass.lowlevel has the parts to build other doors from.
"""

import typing

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
from ._fd import Fd
from ._memfd import Memfd, Seal
from ._numbers import Seconds
from ._region import MemoryRegion, Mode
from ._rights import MAX_FDS
from ._socket import (
    Credentials,
    is_ambiguous_uid,
    peer_credentials,
    peer_pidfd,
    recv_fd,
    recv_fds,
    send_fd,
    send_fds,
)
from ._untrusted import close_untrusted, drop_socket
from ._version import VERSION as _VERSION

if typing.TYPE_CHECKING:
    from ._registry import MemoryRegistry, RegistryStatistics, Returned
else:

    def __getattr__(name: str) -> object:
        """Import a name on first use: it is slow to import, and few programs need it."""
        if name in {"MemoryRegistry", "RegistryStatistics", "Returned"}:
            from . import _registry  # noqa: PLC0415

            return getattr(_registry, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


__version__ = _VERSION

__all__ = [
    "MAX_FDS",
    "ClosedFd",
    "ClosedRegion",
    "ClosedRegistry",
    "Credentials",
    "Disconnected",
    "Fd",
    "FdPassError",
    "ForkedRegistry",
    "Memfd",
    "MemfdRefused",
    "MemoryRegion",
    "MemoryRegistry",
    "Mode",
    "NotReserved",
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
    "close_untrusted",
    "drop_socket",
    "is_ambiguous_uid",
    "peer_credentials",
    "peer_pidfd",
    "recv_fd",
    "recv_fds",
    "send_fd",
    "send_fds",
]

# Users import them from here, whichever file they stand in: so errors and tracebacks name them.
# What is imported on first use does the same at the end of its own file.
for _name in __all__:
    _it = globals().get(_name)
    if hasattr(_it, "__qualname__") and _it.__module__.startswith(f"{__name__}._"):
        _it.__module__ = __name__
