"""Records of 64 B in batches: as numpy arrays, as lists of tuples, as lists of bytes.

Records are numbered, up to a wrap, and whoever takes some checks every number.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZE = 64  # bytes
FORMAT = "<QdI44s"
FIELDS = (("number", "<u8"), ("price", "<f8"), ("volume", "<u4"), ("text", "S44"))
WRAP = 16 << 10  # records until numbers begin again: whole batches of any size up to this

STRUCT = struct.Struct(FORMAT)


class WrongRecords(Exception):
    """What arrived is not what had to come."""


class Tuples:
    """Lists of tuples."""

    def __init__(self) -> None:
        # No object is part of two records: pickle would send a reference to the first.
        self.all = [(n, n / 2, n + 1_000_000, b"%044d" % n) for n in range(WRAP)]
        self.numbers = list(range(WRAP))

    def are(self, got: Any, first: int) -> bool:
        """Tell whether these are the right ones."""
        return [record[0] for record in got] == self.numbers[first : first + len(got)]


class Bytes(Tuples):
    """Lists of bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.all = [STRUCT.pack(*record) for record in self.all]  # type: ignore[misc]

    def are(self, got: Any, first: int) -> bool:
        """Tell whether these are the right ones."""
        return got == self.all[first : first + len(got)]


class Arrays:
    """Arrays of numpy."""

    def __init__(self) -> None:
        import numpy as np  # noqa: PLC0415 (only who uses it needs it)

        self.all = np.array(Tuples().all, dtype=list(FIELDS))
        self.numbers = self.all["number"].tobytes()

    def are(self, got: Any, first: int) -> bool:
        """Tell whether these are the right ones."""
        return got["number"].tobytes() == self.numbers[8 * first : 8 * (first + len(got))]


FORMS = {"tuples": Tuples, "bytes": Bytes, "numpy": Arrays}
made: dict[str, Any] = {}


def form(name: str) -> Any:
    """Return the records in one of the forms, made once."""
    if name not in made:
        made[name] = FORMS[name]()
    return made[name]


def batches(records: Any, first: int, count: int, batch: int) -> Iterator[Any]:
    """Return so many batches, from one on, going round."""
    whole = [records.all[start : start + batch] for start in range(0, WRAP, batch)]
    return (whole[number % len(whole)] for number in range(first, first + count))
