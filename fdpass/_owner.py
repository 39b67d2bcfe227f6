"""What there can be only one of."""

from typing import ClassVar, NoReturn, SupportsIndex


class Owner:
    """Refuses to be copied and pickled, because it owns descriptors, memory, a connection or locks.

    A copy would own the same: it would close the number, and so whatever has that number by then.
    All ways of copying come to __reduce_ex__(): copy, deepcopy, dataclasses.asdict, pickle,
    processes that are spawned, and pools of them. A subclass says in `_instead` what to do.
    """

    _instead: ClassVar[str] = "make another"

    def __reduce_ex__(self, protocol: SupportsIndex, /) -> NoReturn:
        """Raise TypeError, which says what to do instead."""
        raise cannot_copy(self, self._instead)

    def __reduce__(self) -> NoReturn:
        """Raise TypeError, which says what to do instead."""
        raise cannot_copy(self, self._instead)


def cannot_copy(owner: object, instead: str) -> TypeError:
    """Return the error that says so."""
    name = type(owner).__name__
    return TypeError(
        f"expected a value to copy or pickle, received {name}, which owns descriptors, memory or "
        f"locks that a copy would close or use as well: {instead}"
    )
