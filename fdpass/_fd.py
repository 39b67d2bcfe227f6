"""A descriptor with one owner."""

import errno
import operator
import os
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, repeat
from typing import Protocol, Self

from ._closing import Closable
from ._errors import ClosedFd
from ._numbers import index_of


def closing_all(numbers: Iterable[int]) -> Iterator[object]:
    """Return an iterator that closes descriptors on its way, in C, whatever their files say.

    With deque(closing_all(numbers), maxlen=0) it is one call for Python: no exception of a signal
    handler comes in between, and none of an os.close() that fails.
    """
    each = tuple(numbers)
    return map(os.closerange, each, map((1).__add__, each))


class HasFileno(Protocol):
    """Anything with a descriptor: a socket, a file, an Fd."""

    def fileno(self) -> int:
        """Return the number of the descriptor, which stays with its owner."""


class Fd(Closable):
    """Takes an open descriptor and closes it: at close(), or at the end of a with block.

    One that is forgotten is closed when it is collected, with a ResourceWarning.
    """

    _instead = (
        "duplicate the descriptor with Fd(os.dup(fd.fileno())), or send it to another process with "
        "fdpass.send_fd()"
    )

    # On the class, so that an instance without a number of its own is a closed one.
    _number: int = -1

    def __new__(cls, *_: object, **__: object) -> Self:
        """Make a closed one, with room for its number: to take one over must not need memory."""
        self = super().__new__(cls)
        self._number = -1
        return self

    def __init__(self, number: int) -> None:
        if type(number) is not int:
            number = index_of(number)
        if number < 0:
            raise ClosedFd(f"expected the number of an open descriptor, received {number}")
        self._number = number

    @classmethod
    def move(cls, fd: "Fd") -> Self:
        """Take the descriptor over from its owner, which is a closed one from then on."""
        self = cls.__new__(cls)
        # Without a call in between, during which nobody owns it.
        self._number, fd._number = fd._number, -1  # noqa: SLF001 (of its own class)
        return self

    @staticmethod
    def blank(count: int) -> "list[Fd]":
        """Make owners of no descriptor yet, closed ones, for own()."""
        return [Fd.__new__(Fd) for _ in range(count)]

    @staticmethod
    def own(fds: "Iterable[Fd]", numbers: Iterable[int], *then: Callable[[], object]) -> None:
        """Let each of `fds` take a descriptor, then call each of `then`, written in C.

        It is one call of C code for Python, so where `numbers` makes descriptors (by recvmsg,
        dup, …) no exception of a signal handler comes between a number and its owner. If
        `numbers` raises, some may own one already.
        """
        filling = map(setattr, fds, repeat("_number"), numbers)
        deque(chain(filling, map(operator.call, then)), maxlen=0)

    def fileno(self) -> int:
        """Lend the number; it means this descriptor only until close() or detach()."""
        if self._number < 0:
            raise ClosedFd(f"expected an open descriptor, received {self!r}")
        return self._number

    def detach(self) -> int:
        """Hand the number, and the duty to close it, to the caller."""
        number = self.fileno()
        self._number = -1
        return number

    def close(self) -> None:
        """Close the descriptor; doing so again does nothing.

        What the file may have to say about it (an EIO, of data not written) is not told: who
        writes to one calls os.fsync(). OSError, EBADF, if somebody else has closed it.
        """
        # Forgotten first: whatever interrupts or fails here, a number that the kernel may
        # already have given to another file is never closed a second time. Nor by another thread:
        # without a call, CPython changes to none in between.
        number, self._number = self._number, -1
        if number >= 0:
            try:
                os.close(number)
            except OSError as error:
                # Linux closes it whatever the file says (close(2)), and that may be a stranger's,
                # of a file system of his own.
                if error.errno == errno.EBADF:
                    raise

    @property
    def closed(self) -> bool:
        """Whether close() or detach() happened."""
        return self._number < 0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {'closed' if self.closed else self._number}>"

    # At interpreter shutdown the globals of this module may be None already, hence the defaults.
    def __del__(
        self,
        _close: Callable[[int], None] = os.close,
        _warn: Callable[..., None] = warnings.warn,
        _finalizing: Callable[[], bool] = sys.is_finalizing,
        _category: type[Warning] = ResourceWarning,
    ) -> None:
        number = self._number
        if number < 0:
            return
        try:
            if not _finalizing():
                _warn(f"unclosed {self!r}", _category, source=self)
        finally:
            self._number = -1
            _close(number)
