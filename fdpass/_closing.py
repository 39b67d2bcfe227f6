"""What is closed by close(), at the end of a with block, or when it is forgotten."""

import sys
import warnings
from collections.abc import Callable
from types import TracebackType
from typing import Self

from ._owner import Owner


class Closing(Owner):
    """Has the three ways to its close(); one that is forgotten says so in a ResourceWarning."""

    # On the class, so that an instance that was never finished is a closed one.
    _closed = True

    def close(self) -> None:
        """Let go of everything; doing so again does nothing."""
        raise NotImplementedError

    def _close(self) -> None:
        """Do the same without waiting for anybody, and so without taking a lock."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # At interpreter shutdown the globals of this module may be None already, hence the defaults.
    def __del__(
        self,
        _warn: Callable[..., None] = warnings.warn,
        _finalizing: Callable[[], bool] = sys.is_finalizing,
        _category: type[Warning] = ResourceWarning,
    ) -> None:
        if self._closed or _finalizing():
            return
        try:
            _warn(f"unclosed {self!r}", _category, source=self)
        finally:
            self._close()
