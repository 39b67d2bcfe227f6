"""The exceptions of this package; an error of the operating system stays an OSError."""


class FdPassError(Exception):
    """Base of every error this package defines."""


class ClosedFd(FdPassError, ValueError):
    """The descriptor was used after it was closed or handed on."""


class Disconnected(FdPassError, EOFError):
    """The peer closed its end before the whole message arrived."""


class TooManyInFlight(FdPassError):
    """Too many descriptors of this user are sent but not yet received: the kernel refuses more.

    The limit is RLIMIT_NOFILE of the sending process (ETOOMANYREFS in unix(7)).
    """


class Unsendable(FdPassError, TypeError):
    """The object holds pointers into this process or masked values, which must not leave it."""


class TruncatedData(FdPassError):
    """A datagram was longer than the buffer for it; the rest is lost."""


class Mismatch(FdPassError):
    """Something else arrived than was expected; see `expected` and `received`."""

    what = "value"

    def __init__(self, expected: object, received: object) -> None:
        super().__init__(expected, received)
        self.expected = expected
        self.received = received

    def __str__(self) -> str:
        return f"{self.what}: expected {_shown(self.expected)}, received {_shown(self.received)}"


def _shown(value: object) -> str:
    if isinstance(value, range):
        return f"{value.start} to {value.stop - 1}"
    return value if isinstance(value, str) else repr(value)


class WrongDescriptors(Mismatch):
    """A message carried an unexpected number of descriptors; all of them were closed.

    When recv_fds() raises it, `expected` is the maximum that the caller allowed.
    """

    what = "number of descriptors"
    expected: int
    received: int


class TruncatedDescriptors(WrongDescriptors):
    """The kernel delivered fewer descriptors than were sent; the delivered ones were closed.

    Either this process has reached its RLIMIT_NOFILE, or a security module refused one of them.
    Do not use the connection any further: nobody can tell which descriptors are missing.
    """

    what = "number of descriptors (the kernel cut the list)"


class WrongTag(Mismatch):
    """The bytes beside a descriptor are not the expected tag; the descriptor was closed."""

    what = "tag"
    expected: bytes
    received: bytes


class MemfdRefused(Mismatch):
    """A received descriptor is not safe to map; it was closed."""

    what = "memory file"


class WrongType(MemfdRefused):
    """It is not a readable file of ordinary pages made by memfd_create."""

    what = "kind of file"


class WrongSeals(MemfdRefused):
    """It lacks seals, so its maker could still change what the seals would fix."""

    what = "seals of the memory file"


class WrongSize(MemfdRefused):
    """It is empty or larger than allowed; `expected` is the range of sizes, in bytes."""

    what = "size of the memory file in bytes"
    expected: range
    received: int


class NotReserved(MemfdRefused):
    """It has holes: reading one would allocate memory charged to the reader. Numbers are bytes."""

    what = "memory reserved for the memory file in bytes"
    expected: int
    received: int


class SharedRefused(MemfdRefused):
    """The giver can still write this region, and the receiver did not accept shared regions."""

    what = "mode of the memory region"
    expected: str
    received: str


class RegionError(FdPassError):
    """Base of the errors that this side makes with a memory region."""


class RegionInUse(RegionError, BufferError):
    """Something here can still write the region, so it cannot be frozen; see the message."""


class ClosedRegion(RegionError, ValueError):
    """The region was used after its owner closed it, or the registry that lent it."""


class ClosedRegistry(RegionError, ValueError):
    """The registry was used after it was closed."""


class ForkedRegistry(RegionError):
    """A forked child used its parent's registry; a child may only close it."""
