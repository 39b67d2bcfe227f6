"""Views of shared memory that were handed out."""

from __future__ import annotations

import weakref
from typing import Any

from fdpass.lowlevel import Owner
from ipcqueue._core import ffi
from ipcqueue._errors import LoanError


class Lent(Owner):
    """A piece of the incoming ring, in place.

    `memory` is owned or borrowed by cffi, and kept alive by views of it; `size` is in bytes.
    """

    __slots__ = ("flags", "memory", "offset", "size", "tag")

    def __init__(self, memory: Any, offset: int, size: int, tag: int = 0, flags: int = 0) -> None:
        self.memory = memory
        self.offset = offset
        self.size = size
        self.tag = tag
        self.flags = flags


class Views(Owner):
    """Views of shared memory that were handed out, and must be gone before it is used again.

    A memoryview can be released, but not the slices and arrays made of it.  They all keep alive
    the exporter below them, so a weak reference to that tells whether any is left.
    """

    def __init__(self) -> None:
        self._exporters: list[weakref.ref[Any]] = []
        self.arrays = False
        """Whether numpy arrays were handed out: memory of an array cannot be released by a call."""

    def new(self, memory: Any, offset: int, size: int) -> memoryview:
        """Return a writable view of a part of memory, which it keeps alive."""
        exporter = ffi.buffer(memory, offset + size)
        self._exporters.append(weakref.ref(exporter))
        return memoryview(exporter)[offset:]

    def forget(self) -> None:
        """Do not ask any more after those made up to now."""
        self._exporters.clear()  # which needs no memory

    def left(self) -> int:
        """Return how many views of before still have users."""
        if self._exporters:
            self._exporters = [each for each in self._exporters if each() is not None]
        return len(self._exporters)

    def check(self, outcome: str) -> None:
        """Raise LoanError if there are any; `outcome` says what that meant for the records."""
        if count := self.left():
            pieces = "one view" if count == 1 else f"views of {count} messages"
            how = (
                "the array that was handed out, or one made of it (a slice, a field, a reshaped one): "
                "`del` every name and every container that holds one, inside the block"
                if self.arrays
                else "a slice or a cast of the memoryview that was handed out, or a numpy array made "
                "of it: release() the memoryview, `del` the array, inside the block"
            )
            raise LoanError(
                f"{outcome}: {pieces} of lent memory outlived the block, and this end refuses to work "
                f"until that is gone. It is {how}; to keep the values, copy them (bytes(), .copy())"
            )
