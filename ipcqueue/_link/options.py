"""The options of a connection, as the caller states them: checked where they are made."""

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, Self, TypedDict

import fdpass
from fdpass import Seconds
from fdpass.lowlevel import index_of, seconds_of
from ipcqueue._records.messages import Limits
from ipcqueue._ring.patience import ADAPTIVE, BUSY, MAX_SPIN_NS, Patience

# How to wait; and the longest time to spin before sleeping, in seconds.  Nobody reads the socket
# while an end spins, and the end of the connection comes through it.
_STRATEGIES = {"spin": ADAPTIVE, "busy": BUSY, "sleep": Patience(0, False)}
MAX_SPIN = MAX_SPIN_NS / 1e9

# No file has this many bytes.
ANY_SIZE = 1 << 62

_LIMITS = Limits()


def checked_number(what: str, number: int, most: int, least: int = 0) -> int:
    """Return the number; raise TypeError or ValueError unless it is from `least` to `most`."""
    try:
        number = index_of(number)
    except TypeError:
        raise TypeError(f"{what} is a number (int), not {number!r}") from None
    if not least <= number <= most:
        raise ValueError(f"{what} is from {least} to {most}, not {number}")
    return number


def checked_flag(what: str, flag: bool) -> bool:
    """Return the flag; raise TypeError unless it is True or False."""
    if not isinstance(flag, bool):
        raise TypeError(f"{what} is True or False, not {flag!r}")
    return flag


class _Accept(NamedTuple):
    message: int
    fds: int
    regions: int
    region: int
    shared: bool
    sockets: bool


class Accept(_Accept):
    """What this side accepts with messages of any length; the option `accept`.

    `message`: bytes of the longest message (64 MiB); a longer one is TooLarge at the sender.
    `fds`, `regions`: how many descriptors and memory regions with one message (0 and 8, at most
    253); more are Unaccepted at the sender.  `region`: bytes of the largest region (256 MiB, at
    least 1; for none say regions=0); receiving one reads all its pages, and a larger one makes the
    peer a CorruptPeer.
    `shared`: whether regions may stay writable for both sides (no).  `sockets`: whether there may
    be sockets among the descriptors (no).

    A value, and immutable.  Raises TypeError or ValueError, which name the field.
    """

    __slots__ = ()

    def __new__(
        cls,
        *,
        message: int = _LIMITS.message,
        fds: int = _LIMITS.fds,
        regions: int = _LIMITS.regions,
        region: int = _LIMITS.region,
        shared: bool = _LIMITS.shared,
        sockets: bool = _LIMITS.sockets,
    ) -> Self:
        return super().__new__(
            cls,
            checked_number("message of Accept", message, ANY_SIZE),
            checked_number("fds of Accept", fds, fdpass.MAX_FDS),
            checked_number("regions of Accept", regions, fdpass.MAX_FDS),
            checked_number("region of Accept", region, ANY_SIZE, least=1),
            checked_flag("shared of Accept", shared),
            checked_flag("sockets of Accept", sockets),
        )

    @classmethod
    def _make(cls, iterable: Iterable[Any]) -> Self:  # type: ignore[override]  # of _replace(), too
        return cls(**dict(zip(cls._fields, iterable, strict=True)))

    def __getnewargs_ex__(self) -> tuple[tuple[()], dict[str, Any]]:
        return (), self._asdict()


class _Spin(NamedTuple):
    seconds: float


class Spin(_Spin):
    """A way to wait: spin for `seconds`, then sleep; the option `wait`.

    0 to 0.001 seconds, as a number or a datetime.timedelta.  Raises TypeError or ValueError.
    """

    __slots__ = ()

    def __new__(cls, seconds: Seconds) -> Self:
        expected = f"from 0 to {MAX_SPIN} seconds"
        try:
            given = None if seconds is None else seconds_of(seconds, "seconds of Spin")
        except TypeError:
            given = None
        except ValueError:
            raise ValueError(f"seconds of Spin are {expected}, not {seconds}") from None
        if given is None:
            raise TypeError(f"seconds of Spin are {expected}, not {seconds!r}")
        if given > MAX_SPIN:
            raise ValueError(f"seconds of Spin are {expected}, not {seconds}")
        return super().__new__(cls, given)

    @classmethod
    def _make(cls, iterable: Iterable[Any]) -> Self:  # type: ignore[override]  # of _replace(), too
        return cls(*iterable)


class Options(TypedDict, total=False):
    """The options of every connection beside its name, capacity and timeout, for type checkers."""

    allow_uids: Iterable[int] | None
    max_segment: int
    inline: int | None
    accept: Accept
    wait: Literal["spin", "busy", "sleep"] | Spin


class PairOptions(Options, total=False):
    """The options of pair(), for type checkers."""

    name: str
    timeout: Seconds


class QueueOptions(PairOptions, total=False):
    """All options of a Sender or a Receiver, for type checkers."""

    capacity: int | None


def checked_accept(accept: Accept) -> Limits:
    """Return its limits; raise TypeError for anything but an Accept."""
    if not isinstance(accept, Accept):
        raise TypeError(f"accept is an Accept, such as Accept(fds=1), not {accept!r}")
    return Limits(*accept)


def checked_patience(wait: str | Spin) -> Patience:
    """Return how long to spin before sleeping; raise TypeError or ValueError for other words."""
    if isinstance(wait, Spin):
        return Patience(int(wait.seconds * 1e9), False)
    expected = f"one of {tuple(_STRATEGIES)} or Spin(seconds)"
    if not isinstance(wait, str):
        raise TypeError(f"wait is {expected}, not {wait!r}")
    if wait not in _STRATEGIES:
        raise ValueError(f"wait is {expected}, not {wait!r}")
    return _STRATEGIES[wait]


# What to write for former options, and for the fields of Accept.
INSTEAD = {
    **{field: f"accept=Accept({field}=...)" for field in Accept._fields},
    "max_message": "accept=Accept(message=...)",
    "accept_fds": "accept=Accept(fds=...)",
    "accept_regions": "accept=Accept(regions=...)",
    "max_region": "accept=Accept(region=...)",
    "accept_shared": "accept=Accept(shared=...)",
    "accept_sockets": "accept=Accept(sockets=...)",
    "spin": "wait=Spin(...)",
}
