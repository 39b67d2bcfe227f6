"""The parts of a door, for the layers above and for other callers of recvmsg(); they may change.

A caller of recvmsg() needs ANCILLARY_SPACE, RECEIVE_FLAGS and unpack().
"""

from ._clock import monotonic
from ._closing import Closable
from ._fd import closing_all
from ._forks import renewed_after_fork
from ._mappings import Mappings
from ._numbers import index_of, seconds_of, shown_seconds
from ._owner import Owner, cannot_copy
from ._rights import ANCILLARY_SPACE, RECEIVE_FLAGS, unpack
from ._sendable import check_sendable, exported, is_masked
from ._socket import pass_pidfd, recv_fds_and_pidfd

__all__ = [
    "ANCILLARY_SPACE",
    "RECEIVE_FLAGS",
    "Closable",
    "Mappings",
    "Owner",
    "cannot_copy",
    "check_sendable",
    "closing_all",
    "exported",
    "index_of",
    "is_masked",
    "monotonic",
    "pass_pidfd",
    "recv_fds_and_pidfd",
    "renewed_after_fork",
    "seconds_of",
    "shown_seconds",
    "unpack",
]
