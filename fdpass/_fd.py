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
    """Return an iterator that closes one descriptor at each step, in C, and ignores errors.

    deque(closing_all(numbers), maxlen=0) closes all in one call as far as Python can see: no
    exception of a signal handler, and none of a failing os.close(), can stop it halfway.
    """
    each = tuple(numbers)
    return map(os.closerange, each, map((1).__add__, each))


class HasFileno(Protocol):
    """Anything with a descriptor: a socket, a file, an Fd."""

    def fileno(self) -> int:
        """Return the number of the descriptor; the owner keeps it."""


class Fd(Closable):
    """Owns an open descriptor; close() or the end of a with block closes it.

    A forgotten one is closed when it is garbage-collected, with a ResourceWarning.
    """

    _instead = (
        "duplicate the descriptor with Fd(os.dup(fd.fileno())), or send it to another process with "
        "fdpass.send_fd()"
    )

    # On the class, so that an instance without a number of its own is a closed one.
    _number: int = -1

    def __new__(cls, *_: object, **__: object) -> Self:
        """Make a closed one with room for a number: taking a descriptor must not need memory."""
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
        """Take the descriptor from `fd`, which counts as closed from then on."""
        self = cls.__new__(cls)
        # One statement without a call: there is no moment in which nobody owns the descriptor.
        self._number, fd._number = fd._number, -1  # noqa: SLF001 (of its own class)
        return self

    @staticmethod
    def blank(count: int) -> "list[Fd]":
        """Make `count` closed objects for own() to fill."""
        return [Fd.__new__(Fd) for _ in range(count)]

    @staticmethod
    def own(fds: "Iterable[Fd]", numbers: Iterable[int], *then: Callable[[], object]) -> None:
        """Give each of `fds` a descriptor from `numbers`, then call each of `then` (C functions).

        All of this is one call of C code. So if iterating `numbers` opens descriptors (recvmsg,
        dup, …), a signal handler cannot raise between opening one and owning it. If `numbers`
        raises, some of `fds` may own a descriptor already.
        """
        filling = map(setattr, fds, repeat("_number"), numbers)
        deque(chain(filling, map(operator.call, then)), maxlen=0)

    def fileno(self) -> int:
        """Return the number; it is valid until close() or detach()."""
        if self._number < 0:
            raise ClosedFd(f"expected an open descriptor, received {self!r}")
        return self._number

    def detach(self) -> int:
        """Return the number; from then on the caller must close it."""
        number = self.fileno()
        self._number = -1
        return number

    def close(self) -> None:
        """Close the descriptor; a second call does nothing.

        Errors of the file, such as EIO for data that was not written, are ignored: call os.fsync()
        first if they matter. Raises OSError (EBADF) if something else has closed the number.
        """
        # Forget the number first: after an interruption or a failure here, the kernel may have
        # given it to another file, which must not be closed. Other threads cannot interfere:
        # CPython does not switch threads within this statement, because it makes no call.
        number, self._number = self._number, -1
        if number >= 0:
            try:
                os.close(number)
            except OSError as error:
                # Linux closes the descriptor even if close(2) reports an error of the file. The
                # file may belong to a stranger, who then chooses the error.
                if error.errno == errno.EBADF:
                    raise

    @property
    def closed(self) -> bool:
        """Whether close() or detach() was called."""
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
