"""Recordings of a stream of counters: a header, then the records as they came.

The header is MAGIC, the length of the rest (two bytes, little-endian), and the layout of a record
as text, such as "time:Q kind:B ...".  So a recording with another layout is refused, not misread.
Records are packed, little-endian.  Each batch is written as soon as it has arrived, so an
interrupted recording is only shorter.  If its last record is cut off (a full disk), the others are
still used.
"""

from __future__ import annotations

import contextlib
import itertools
import struct
import typing
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Self

from counters import Sample

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_codes = {
    field: hint.__metadata__[0]
    for field, hint in typing.get_type_hints(Sample, include_extras=True).items()
}
RECORD = struct.Struct("<" + "".join(_codes.values()))
MAGIC = b"MEMENREC"
LAYOUT = " ".join(f"{field}:{code}" for field, code in _codes.items())
HEADER = MAGIC + struct.pack("<H", len(LAYOUT)) + LAYOUT.encode()


class RecordingError(Exception):
    """A recording cannot be written or read; the message says which and why."""


class Recorder:
    """A recording in the making; it replaces a file of that name."""

    def __init__(self, path: str) -> None:
        self._path = path
        with _told("write", path):
            self._file = Path(path).open("wb", buffering=0)  # noqa: SIM115 (__exit__ closes it)
        with contextlib.ExitStack() as undo:
            undo.callback(self._file.close)
            self._write(HEADER)
            undo.pop_all()

    def write(self, samples: Iterable[Sample]) -> None:
        """Append records; written ones survive this process."""
        self._write(b"".join(itertools.starmap(RECORD.pack, samples)))

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        with _told("write", self._path):
            while rest:
                rest = rest[self._file.write(rest) :]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._file.close()


def load(path: str) -> tuple[list[Sample], int]:
    """Return the records of a recording, and how many bytes of a cut off record follow them."""
    with _told("read", path):
        data = Path(path).read_bytes()
    if not data.startswith(MAGIC):
        raise RecordingError(f"{path} is not a recording: it does not begin with {MAGIC.decode()}")
    start = len(MAGIC) + 2
    end = start + int.from_bytes(data[start - 2 : start], "little")
    if len(data) < max(start, end):
        raise RecordingError(f"{path} is a broken recording: it ends within its header")
    if data[:end] != HEADER:
        layout = ascii(data[start:end].decode(errors="replace"))
        raise RecordingError(f"{path} has records of another layout: {layout}, not {LAYOUT!r}")
    rest = (len(data) - end) % RECORD.size
    records = RECORD.iter_unpack(data[end : len(data) - rest])
    return list(map(Sample._make, records)), rest


def schedule(samples: Iterable[Sample], speed: float) -> list[tuple[float, list[Sample]]]:
    """Return the rounds of a recording, and when each is due: in seconds from the first.

    `speed` 2 plays twice as fast as it was; 0 plays without waiting.
    """
    rounds = [(at, list(group)) for at, group in itertools.groupby(samples, attrgetter("time"))]
    return [(_due(at - rounds[0][0], speed), group) for at, group in rounds]


def _due(nanoseconds: int, speed: float) -> float:
    return nanoseconds / 1e9 / speed if speed else 0.0


@contextlib.contextmanager
def _told(verb: str, path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RecordingError(f"cannot {verb} {path}: {error.strerror}") from error
