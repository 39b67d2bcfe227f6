"""Descriptors beside the data, and when a message is complete: no I/O here, only values.

The two doors (blocking and Trio) wait; this module decides:

- Outgoing gives the arguments of the next sendmsg(), and says what an error of it means;
- Incoming says how many bytes to ask of the next recvmsg(), from the results so far.
"""

import errno
import socket
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

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
"""The largest number of descriptors in one message; SCM_MAX_FD of the kernel."""

_SCM_PIDFD = 4
_SOL_SOCKET, _SCM_RIGHTS = int(socket.SOL_SOCKET), int(socket.SCM_RIGHTS)
_INT = array("i").itemsize

# Room for everything that can arrive. The kernel cuts off what does not fit, and then sets
# MSG_CTRUNC; with enough room, MSG_CTRUNC can only mean that this process may not have the
# descriptor. The additional space is for options that the owner of the socket may have switched
# on: SO_PASSCRED (three ints), SO_PASSPIDFD (one int), SO_PASSSEC (text).
ANCILLARY_SPACE = (
    socket.CMSG_SPACE(MAX_FDS * _INT)
    + socket.CMSG_SPACE(3 * _INT)
    + socket.CMSG_SPACE(_INT)
    + socket.CMSG_SPACE(1024)
)


def ancillary_space(max_fds: int) -> int:
    """Return the room for `max_fds` descriptors and one to a few more, which reveal an excess.

    The kernel closes any others, so a stranger cannot make this process hold them even briefly.
    The room also suffices for all options of the socket except SO_PASSSEC.
    """
    rights = socket.CMSG_SPACE((max_fds + 1) * _INT)
    return rights + socket.CMSG_SPACE(3 * _INT) + socket.CMSG_SPACE(_INT)


SEND_FLAGS = socket.MSG_NOSIGNAL
RECEIVE_FLAGS = socket.MSG_CMSG_CLOEXEC
# Computing with the flags of an enum takes twenty times as long.
_CTRUNC, _TRUNC = int(socket.MSG_CTRUNC), int(socket.MSG_TRUNC)

# Half a second in all, a guess: a live receiver reads sooner, and the caller can wait that long.
RETRY_DELAYS = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256)


def pack(numbers: Iterable[int]) -> Rights:
    """Convert descriptor numbers to the form that sendmsg() takes; their owner keeps them."""
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", numbers))]


def unpack(ancillary: Ancillary) -> tuple[list[int], list[int]]:
    """Return the descriptors in a result of recvmsg(): those the peer sent, and stray ones.

    A stray one is a pidfd, which the kernel adds if SO_PASSPIDFD is on.  It is open whether or not
    the caller wanted it, so the caller must close it.  A negative number means that the kernel
    could not open one; it is left out.
    """
    sent: list[int] = []
    stray: list[int] = []
    for level, kind, payload in ancillary:
        if level == _SOL_SOCKET and kind in (_SCM_RIGHTS, _SCM_PIDFD):
            whole = len(payload) - len(payload) % _INT  # a cut list may end inside a number
            numbers = array("i", payload[:whole]).tolist()
            if min(numbers, default=0) < 0:
                numbers = [n for n in numbers if n >= 0]
            (sent if kind == _SCM_RIGHTS else stray).extend(numbers)
    return sent, stray


def unpack_all(messages: Iterable[Message]) -> tuple[list[int], list[int]]:
    """Return the descriptors in several results of recvmsg(), as unpack() does for one."""
    return unpack([item for message in messages for item in message[1]])


def delays(timeout: float | None) -> Iterator[float]:
    """Yield the seconds to wait before each retry, at most `timeout` in total."""
    spent = 0.0
    for delay in RETRY_DELAYS:
        spent += delay
        if timeout is not None and spent > timeout:
            return
        yield delay


def checked_data(data: Data) -> memoryview:
    """Return a view of the bytes to send.

    Raises ValueError for no bytes, because descriptors travel only beside data; Unsendable for
    pointers into this process and masked values.
    """
    view = exported(data)
    if not view.nbytes:
        raise ValueError("expected at least 1 byte beside the descriptors, received 0")
    return view.cast("B")


def checked_fds(fds: Iterable[int | HasFileno]) -> tuple[int | HasFileno, ...]:
    """Return the descriptors as a tuple; raise ValueError if one message cannot carry them."""
    kept = tuple(fds)
    if not 1 <= len(kept) <= MAX_FDS:
        raise ValueError(f"expected 1 to {MAX_FDS} descriptors to send, received {len(kept)}")
    return kept


def number_of(fd: int | HasFileno) -> int:
    """Return the number of a descriptor, whose owner keeps it; raise ClosedFd if it is closed."""
    number = fd.fileno() if hasattr(fd, "fileno") else index_of(fd)
    if number < 0:
        raise ClosedFd(f"expected an open descriptor to send, received {fd!r}")
    return number


class Outgoing:
    """One message being sent; it borrows its descriptors.

    Until `finished`: pass message() to sendmsg(), and report the result to sent() or failed().
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
        """Return the arguments of the next sendmsg()."""
        # The descriptors go with the first byte; sent again with a later one, they arrive twice.
        rights = [] if self._sent else pack(self._numbers)
        return [self._data[self._sent :]], rights, SEND_FLAGS

    def sent(self, count: int) -> None:
        """Note the result of sendmsg()."""
        self._sent += count

    def failed(self, error: OSError) -> float:
        """Return the seconds to wait before the next try; raise if a retry would not help."""
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


class Incoming:
    """The expected message; it has no state, and judges the results of recvmsg() so far.

    With a tag, the bytes must be the tag and exactly `fds` descriptors must come with it. Without
    a tag, the message is one recvmsg() of up to `size` bytes and up to `fds` descriptors.
    """

    def __init__(
        self, size: int, fds: int, tag: bytes | None = None, *, stream: bool = True
    ) -> None:
        self.size = size
        self.fds = fds
        self.tag = tag
        self.stream = stream

    def missing(self, messages: Sequence[Message]) -> int:
        """Return how many bytes to ask for next, 0 if it is complete; raise if it is wrong."""
        if not messages:
            return self.size
        count = len(unpack_all(messages)[0])
        flags = messages[-1][2]
        # Check this first: there may have been room for only one more than expected, so that
        # MSG_CTRUNC is set as well.
        if count > self.fds:
            raise WrongDescriptors(self.fds, count)
        # Test single bits: the kernel also returns flags such as MSG_CMSG_CLOEXEC.
        if flags & _CTRUNC:
            raise TruncatedDescriptors(self.fds, count)
        if flags & _TRUNC:
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
    """Expect one descriptor beside `tag`; no byte after the tag is read."""
    wanted = bytes(checked_data(tag))
    return Incoming(size=len(wanted), fds=1, tag=wanted, stream=stream)


def expect_some(max_fds: int, max_data: int) -> Incoming:
    """Expect anything that one recvmsg() delivers within these limits."""
    max_fds, max_data = index_of(max_fds), index_of(max_data)
    if not 0 <= max_fds <= MAX_FDS:
        raise ValueError(f"expected max_fds of 0 to {MAX_FDS}, received {max_fds}")
    if max_data < 1:
        raise ValueError(f"expected max_data of at least 1, received {max_data}")
    return Incoming(size=max_data, fds=max_fds)


def joined(messages: Iterable[Message]) -> bytes:
    """Join the data of several results of recvmsg()."""
    return b"".join(message[0] for message in messages)
