"""The constants of a frame, which both ends of a ring of frames need."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ipcqueue._core import lib

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_FDS: int = lib.IPCQ_MAX_FRAME_FDS
HEADER: int = lib.IPCQ_FRAME_ALIGN
MAX_EXTENT = 1 << 32  # of one frame: its size is a u32
MAX_ATTACHED: int = lib.IPCQ_MAX_ATTACHED
extent: Callable[[int], int] = lib.ipcq_frame_extent
