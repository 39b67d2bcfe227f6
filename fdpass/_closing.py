"""Objects that close() closes: also at the end of a with block, and when they are forgotten."""

import sys
import warnings
from collections.abc import Callable
from typing import Self

from ._owner import Owner


class Closable(Owner):
    """Is closed at the end of a with block, however the block ends."""

    def close(self) -> None:
        """Release everything; a second call does nothing."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class Closing(Closable):
    """Is closed when it is forgotten, too, with a ResourceWarning."""

    # On the class: an instance whose __init__() did not finish counts as closed.
    _closed = True

    def _close(self) -> None:
        """Do the same as close() without waiting for anybody, and so without taking a lock."""
        raise NotImplementedError

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
