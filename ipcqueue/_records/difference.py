"""Where two layouts differ first, for the error of two sides that do not fit.

Imported when there is such an error.  The peer's description and its names may say anything.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from .names import places_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .names import Names

_RUN = r"([0-9]{1,18}):([a-z]+([0-9]{0,3})(?:\([0-9A-Za-z]+\))?(?:be)?)(?:\[([0-9]{1,18})\])?"
_CUT = "..."  # at the end of a description that is too long


class _Items(NamedTuple):
    """Equal items side by side: a run of a layout, as its description says it."""

    offset: int
    kind: str  # with unit and byte order
    itemsize: int
    number: int

    def behind(self, number: int) -> tuple[_Items, ...]:
        """Return what is left without the first ones."""
        offset, left = self.offset + number * self.itemsize, self.number - number
        return (self._replace(offset=offset, number=left),) if left else ()


def difference(mine: str, theirs: str, names: Names, their_names: bytes) -> str:
    """Say in words where two descriptions of layouts differ first; an empty text if unknown.

    `their_names` is the table of the peer's names.  They are hashes, so only those that this side
    has, too, can be said.
    """
    our_size, ours = _parsed(mine)
    their_size, others = _parsed(theirs)
    if not our_size or not their_size:
        return ""
    while ours and others and ours[0][:3] == others[0][:3]:
        number = min(ours[0].number, others[0].number)
        ours = (*ours[0].behind(number), *ours[1:])
        others = (*others[0].behind(number), *others[1:])
    cut = (not ours and mine.endswith(_CUT)) or (not others and theirs.endswith(_CUT))
    at = min([some[0].offset for some in (ours, others) if some], default=min(our_size, their_size))
    if cut or (not ours and not others and our_size == their_size):
        return ""
    here = _said(ours, our_size, at, dict(names.fields))
    there = _said(others, their_size, at, _known(names, their_names))
    return f"they differ first at byte {at}: {here} here, {there} there"


def _parsed(description: str) -> tuple[int, tuple[_Items, ...]]:
    """Return size and runs of a layout; 0 and none if the description is of another form."""
    size = re.match(r"([0-9]{1,18}) bytes:", description)
    if size is None:
        return 0, ()
    return int(size[1]), tuple(
        _Items(int(offset), kind, int(bits or 8) // 8, int(number or 1))
        for offset, kind, bits, number in re.findall(_RUN, description)
    )


def _said(runs: tuple[_Items, ...], size: int, at: int, names: Mapping[int, str]) -> str:
    """Say what a record has at an offset, by its name, or by that of the field before it."""
    if runs and runs[0].offset == at:
        what = runs[0].kind
        if at in names:
            return f"{what} {names[at]!r}"
    elif at < size:
        what = "padding"
    else:
        return "nothing"
    before = max((offset for offset in names if offset < at), default=None)
    return what if before is None else f"{what} behind {names[before]!r}"


def _known(names: Names, table: bytes) -> dict[int, str]:
    """Return the names of the peer's that this side has, too, by their offsets there."""
    mine = zip(places_of(names.table), names.fields, strict=False)
    paths = {name: path for name, (_, path) in mine}
    return {at: paths[name] for name, at in places_of(table).items() if name in paths}
