"""What a segment says about itself, once; drawn in core/layout.h."""

from typing import NamedTuple

from ipcqueue._records.names import NO_NAMES

# Those of core/ring.h, for who reads a segment without the core: tests/project/test_constants.py.
MAGIC = b"MEMENPSF"
LAYOUT_VERSION = 3
BYTE_ORDER = 0x01020304
HEADER_SIZE = 4096
LINE = 128
FIRST_WAKE_LINE, LAST_WAKE_LINE = 13, 22


class Identity(NamedTuple):
    """What a segment says about itself; the fields are those of core/ring.h."""

    slot_size: int
    capacity: int
    segment_size: int
    fingerprint: bytes
    creator_pid: int
    name: str
    record: str
    magic: bytes = MAGIC
    layout_version: int = LAYOUT_VERSION
    byte_order: int = BYTE_ORDER
    header_size: int = HEADER_SIZE
    shape: int = 0
    max_message: int = 0
    accept_fds: int = 0
    accept_regions: int = 0
    accept_flags: int = 0
    wake_line: int = FIRST_WAKE_LINE
    generation: int = 0
    base: int = 0
    switch_at: int = 0
    session: bytes = bytes(16)
    reserved: int = 0  # apart from the rest: words for publishers, together
    names: bytes = NO_NAMES.table  # apart from the rest, see _records/names.py

    @property
    def layout(self) -> tuple[bytes, int, int]:
        """What two sides must have in common to understand each other's ring."""
        return self.fingerprint, self.slot_size, self.shape
