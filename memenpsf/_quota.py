"""Quota: what the clients of a listener may have, as the caller states it."""

from collections.abc import Iterable
from typing import Any, NamedTuple, Self

from ipcqueue.lowlevel import checked_number

# The number of handshakes under way at once, of all users and of one user; further clients wait in
# their user's queue.  Both are guesses.  They limit clients that connect and send nothing: each
# costs this side a segment meanwhile.
PLACES = 64
PENDING = 32

# The number of threads of serve().  A guess: more clients than the usual 1024 descriptors allow,
# and far fewer threads than systemd and containers allow a service.
THREADS = 512

_MAX = 1 << 62  # of any field


class _Quota(NamedTuple):
    connections: int | None
    bytes: int | None
    descriptors: int | None
    pending: int
    places: int
    threads: int


class Quota(_Quota):
    """What the clients of a listener may have at once; the option `quota`.

    For all clients of one user (by uid): `connections`, handshakes under way included (None: a
    sixth of the descriptors that this process may open); `bytes` of shared memory, of their
    segments and of this side's segments for them (None: 64 times `max_segment`, or twice this
    side's segment, whichever is larger); `descriptors` (None: seven eighths of those that this
    process may open); `pending`, handshakes under way (32).  For all users together: `places`,
    handshakes under way (64); `threads` of memenpsf.serve (512), of which one user may have three
    quarters.  listen() and serve() say what happens to a client over a limit.

    It is immutable.  Each field is at least 1; otherwise it raises TypeError or ValueError, which
    name the field.
    """

    __slots__ = ()

    def __new__(
        cls,
        *,
        connections: int | None = None,
        bytes: int | None = None,  # noqa: A002 (its name for users)
        descriptors: int | None = None,
        pending: int = PENDING,
        places: int = PLACES,
        threads: int = THREADS,
    ) -> Self:
        return super().__new__(
            cls,
            None if connections is None else _limit("connections", connections),
            None if bytes is None else _limit("bytes", bytes),
            None if descriptors is None else _limit("descriptors", descriptors),
            _limit("pending", pending),
            _limit("places", places),
            _limit("threads", threads),
        )

    @classmethod
    def _make(cls, iterable: Iterable[Any]) -> Self:  # type: ignore[override]  # of _replace(), too
        return cls(**dict(zip(cls._fields, iterable, strict=True)))

    def __getnewargs_ex__(self) -> tuple[tuple[()], dict[str, Any]]:
        return (), self._asdict()


def _limit(what: str, given: int) -> int:
    given = checked_number(f"{what} of Quota", given, _MAX)
    if given == 0:
        raise ValueError(f"{what} of Quota is at least 1, not 0")
    return given


def checked_quota(quota: Quota) -> Quota:
    """Return the quota; raise TypeError for anything else."""
    if not isinstance(quota, Quota):
        raise TypeError(f"quota is a Quota, such as Quota(connections=10), not {quota!r}")
    return quota


# What to write for former options, and for the fields of Quota.
INSTEAD = {
    **{field: f"quota=Quota({field}=...)" for field in Quota._fields},
    "max_connections_per_uid": "quota=Quota(connections=...)",
    "max_bytes_per_uid": "quota=Quota(bytes=...)",
    "max_descriptors_per_uid": "quota=Quota(descriptors=...)",
    "max_pending_per_uid": "quota=Quota(pending=...)",
    "max_pending": "quota=Quota(places=...)",
}
