"""The words of what can go wrong; an error of the operating system stays the OSError it is."""


class FdPassError(Exception):
    """Base of every error this package defines."""


class ClosedFd(FdPassError, ValueError):
    """A descriptor was closed, or handed on, before it was used."""


class Disconnected(FdPassError, EOFError):
    """The peer closed its end before the whole message came."""


class TooManyInFlight(FdPassError):
    """The kernel kept refusing: too many descriptors of this user are sent but not received.

    Its limit is RLIMIT_NOFILE of the sending process (ETOOMANYREFS in unix(7)).
    """


class Unsendable(FdPassError, TypeError):
    """The bytes of this object must not leave the process: pointers into it, or masked values."""


class TruncatedData(FdPassError):
    """A datagram was longer than the room given to it; what was cut off is lost."""


class Mismatch(FdPassError):
    """What came is not what was expected: `expected` and `received` say both."""

    what = "value"

    def __init__(self, expected: object, received: object) -> None:
        super().__init__(expected, received)
        self.expected = expected
        self.received = received

    def __str__(self) -> str:
        return f"{self.what}: expected {_shown(self.expected)}, received {_shown(self.received)}"


def _shown(value: object) -> str:
    return value if isinstance(value, str) else repr(value)


class WrongDescriptors(Mismatch):
    """The number of descriptors in a message is not the one expected; all were closed.

    From recv_fds, `expected` is the largest number it would have taken.
    """

    what = "number of descriptors"
    expected: int
    received: int


class TruncatedDescriptors(WrongDescriptors):
    """The kernel delivered fewer descriptors than were sent; those that came were closed.

    Either this process is at its RLIMIT_NOFILE or a security module refused one of them. The
    connection is not to be used further: nobody can tell which descriptors are missing.
    """

    what = "number of descriptors (the kernel cut the list)"


class WrongTag(Mismatch):
    """The bytes beside a descriptor are not the tag expected; the descriptor was closed."""

    what = "tag"
    expected: bytes
    received: bytes


class MemfdRefused(Mismatch):
    """A received descriptor is not safe to map; it was closed."""

    what = "memory file"


class WrongType(MemfdRefused):
    """It is not a readable memory file made by memfd_create of ordinary pages."""

    what = "kind of file"


class WrongSeals(MemfdRefused):
    """It lacks seals, so that its maker could still change what was agreed."""

    what = "seals of the memory file"


class WrongSize(MemfdRefused):
    """It is empty or larger than allowed; `expected` is the range of sizes, in bytes."""

    what = "size of the memory file in bytes"
    expected: range
    received: int


class NotReserved(MemfdRefused):
    """It has holes: reading them would allocate memory at the reader's charge; in bytes."""

    what = "memory reserved for the memory file in bytes"
    expected: int
    received: int


class SharedRefused(MemfdRefused):
    """It is a region that its giver, too, could write, and the receiver did not accept such."""

    what = "mode of the memory region"
    expected: str
    received: str


class RegionError(FdPassError):
    """Base of what goes wrong with a memory region on this side."""


class RegionInUse(RegionError, BufferError):
    """It cannot be frozen while something here can still write it; the message says what to do."""


class ClosedRegion(RegionError, ValueError):
    """It was closed, by its owner or with the registry it came from, before it was used."""


class ClosedRegistry(RegionError, ValueError):
    """The registry was closed before it was used."""


class ForkedRegistry(RegionError):
    """A forked child used the registry of its parent, which may only be closed there."""
