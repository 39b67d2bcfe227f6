"""What travels beside the data, and when a message is whole: no I/O here, only values.

The two doors (blocking and Trio) do the waiting and leave the thinking to this module:

- Outgoing says what to give to sendmsg() next, and what an error of it means;
- Incoming says how much to ask of recvmsg() next, judging by its results so far.
"""

import errno
import socket
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

from ._errors import (
    ClosedFd,
    Disconnected,
    TooManyInFlight,
    TruncatedData,
    TruncatedDescriptors,
    WrongDescriptors,
    WrongTag,
)
from ._fd import HasFileno
from ._numbers import index_of
from ._sendable import exported

Data: TypeAlias = bytes | bytearray | memoryview
Ancillary: TypeAlias = list[tuple[int, int, bytes]]
Rights: TypeAlias = "list[tuple[int, int, array[int]]]"
Message: TypeAlias = tuple[bytes, Ancillary, int, object]
"""A result of recvmsg(): data, ancillary data, flags, address."""

MAX_FDS = 253
"""SCM_MAX_FD of the kernel: the most descriptors one message can carry."""

_SCM_PIDFD = 4
_INT = array("i").itemsize

# Room for all that can come, always: what does not fit is cut off, and MSG_CTRUNC shall mean
# only that this process may not have the descriptor. The rest is for what the owner of the
# socket may have switched on: SO_PASSCRED (three ints), SO_PASSPIDFD (one), SO_PASSSEC (text).
ANCILLARY_SPACE = (
    socket.CMSG_SPACE(MAX_FDS * _INT)
    + socket.CMSG_SPACE(3 * _INT)
    + socket.CMSG_SPACE(_INT)
    + socket.CMSG_SPACE(1024)
)


def ancillary_space(max_fds: int) -> int:
    """Return the room for `max_fds` descriptors and one more, or a few, that tell of too many.

    The kernel closes the rest, so a stranger cannot have this process hold them for a moment.  It
    is enough for all that the owner of the socket may have switched on, but for SO_PASSSEC.
    """
    rights = socket.CMSG_SPACE((max_fds + 1) * _INT)
    return rights + socket.CMSG_SPACE(3 * _INT) + socket.CMSG_SPACE(_INT)


SEND_FLAGS = socket.MSG_NOSIGNAL
RECEIVE_FLAGS = socket.MSG_CMSG_CLOEXEC

# Half a second in all, a guess: long for a receiver that is alive, short for one who waits.
RETRY_DELAYS = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256)


def pack(numbers: Iterable[int]) -> Rights:
    """Put descriptors into the form sendmsg() takes; they stay with their owner."""
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", numbers))]


def unpack(ancillary: Ancillary) -> tuple[list[int], list[int]]:
    """Find the descriptors in what recvmsg() gave: those the peer sent, and stray ones.

    A stray one is the pidfd that the kernel adds when SO_PASSPIDFD is on: whether or not anybody
    asked for it here, it is open and somebody must close it.  Where the kernel could not open one,
    it says so by a negative number.
    """
    sent: list[int] = []
    stray: list[int] = []
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind in (socket.SCM_RIGHTS, _SCM_PIDFD):
            whole = len(payload) - len(payload) % _INT  # a cut list may end inside a number
            numbers = array("i", payload[:whole])
            (sent if kind == socket.SCM_RIGHTS else stray).extend(n for n in numbers if n >= 0)
    return sent, stray


def unpack_all(messages: Iterable[Message]) -> tuple[list[int], list[int]]:
    """Find the descriptors of several results of recvmsg(), as unpack() does."""
    return unpack([item for message in messages for item in message[1]])


def delays(timeout: float | None) -> Iterator[float]:
    """Give the seconds to wait before each new try, together no more than `timeout`."""
    spent = 0.0
    for delay in RETRY_DELAYS:
        spent += delay
        if timeout is not None and spent > timeout:
            return
        yield delay


def checked_data(data: Data) -> memoryview:
    """View the bytes to send; none would leave the descriptors undelivered, and is refused.

    Raises Unsendable for pointers into this process, and masked values.
    """
    view = exported(data)
    if not view.nbytes:
        raise ValueError("expected at least 1 byte beside the descriptors, received 0")
    return view.cast("B")


def checked_fds(fds: Iterable[int | HasFileno]) -> tuple[int | HasFileno, ...]:
    """Keep what was given, in a number that one message can carry."""
    kept = tuple(fds)
    if not 1 <= len(kept) <= MAX_FDS:
        raise ValueError(f"expected 1 to {MAX_FDS} descriptors to send, received {len(kept)}")
    return kept


def number_of(fd: int | HasFileno) -> int:
    """Look up the number of a descriptor, which stays with its owner."""
    number = fd.fileno() if hasattr(fd, "fileno") else index_of(fd)
    if number < 0:
        raise ClosedFd(f"expected an open descriptor to send, received {fd!r}")
    return number


class Outgoing:
    """One message on its way out; borrows its descriptors.

    Ask message(), give it to sendmsg(), report to sent() or failed(), until `finished`.
    """

    def __init__(
        self, fds: Iterable[int | HasFileno], data: Data, timeout: float | None = None
    ) -> None:
        self._fds = checked_fds(fds)
        self._numbers = [number_of(fd) for fd in self._fds]
        self._data = checked_data(data)
        self._sent = 0
        self._delays = delays(timeout)

    @property
    def finished(self) -> bool:
        """Whether every byte was sent."""
        return self._sent == len(self._data)

    def message(self) -> tuple[list[memoryview], Rights, int]:
        """Give the arguments of the next sendmsg()."""
        # The descriptors left with the first byte; with a later one they would arrive twice.
        rights = [] if self._sent else pack(self._numbers)
        return [self._data[self._sent :]], rights, SEND_FLAGS

    def sent(self, count: int) -> None:
        """Take the result of sendmsg()."""
        self._sent += count

    def failed(self, error: OSError) -> float:
        """Give the seconds to wait before trying again; raise if that would not help."""
        if error.errno == errno.ETOOMANYREFS:
            delay = next(self._delays, None)
            if delay is not None:
                return delay
            raise TooManyInFlight(
                f"the kernel refuses {len(self._numbers)} more descriptors in flight: {error}"
            ) from error
        if error.errno == errno.EBADF:
            raise ClosedFd(
                f"expected open descriptors to send, received {self._numbers}: {error}"
            ) from error
        if isinstance(error, BlockingIOError) and self._sent:
            text = f"only {self._sent} of {len(self._data)} bytes were sent"
            raise BlockingIOError(error.errno, text, self._sent) from error
        raise error


class Incoming(NamedTuple):
    """What a message is to be; stateless, it judges the results of recvmsg() so far.

    With a tag, the bytes must be the tag, and exactly `fds` descriptors come with it. Without,
    one recvmsg() of up to `size` bytes and up to `fds` descriptors is the message.
    """

    size: int
    fds: int
    tag: bytes | None = None
    stream: bool = True

    def missing(self, messages: Sequence[Message]) -> int:
        """Say how many bytes to ask for next, 0 when whole; raise when it cannot become so."""
        if not messages:
            return self.size
        count = len(unpack_all(messages)[0])
        flags = messages[-1][2]
        # First, as there may have been room for one more than expected only.
        if count > self.fds:
            raise WrongDescriptors(self.fds, count)
        # Single bits: the kernel also hands back flags such as MSG_CMSG_CLOEXEC.
        if flags & socket.MSG_CTRUNC:
            raise TruncatedDescriptors(self.fds, count)
        if flags & socket.MSG_TRUNC:
            raise TruncatedData(f"expected at most {self.size} bytes, received a longer datagram")
        return 0 if self.tag is None else self._missing_of(self.tag, messages, count)

    def _missing_of(self, tag: bytes, messages: Sequence[Message], count: int) -> int:
        data = joined(messages)
        if not messages[-1][0] and not (count and not self.stream):
            raise Disconnected(f"expected {len(tag)} bytes, received {len(data)} and the end")
        if self.stream and len(data) < len(tag):
            return len(tag) - len(data)
        if data != tag:
            raise WrongTag(tag, data)
        if count != self.fds:
            raise WrongDescriptors(self.fds, count)
        return 0


def expect_one(tag: Data, *, stream: bool) -> Incoming:
    """Expect one descriptor beside `tag`; no byte after it is read."""
    wanted = bytes(checked_data(tag))
    return Incoming(size=len(wanted), fds=1, tag=wanted, stream=stream)


def expect_some(max_fds: int, max_data: int) -> Incoming:
    """Expect whatever one recvmsg() delivers, within these limits."""
    max_fds, max_data = index_of(max_fds), index_of(max_data)
    if not 0 <= max_fds <= MAX_FDS:
        raise ValueError(f"expected max_fds of 0 to {MAX_FDS}, received {max_fds}")
    if max_data < 1:
        raise ValueError(f"expected max_data of at least 1, received {max_data}")
    return Incoming(size=max_data, fds=max_fds)


def joined(messages: Iterable[Message]) -> bytes:
    """Put the data of several results of recvmsg() together."""
    return b"".join(message[0] for message in messages)
