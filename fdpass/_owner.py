"""Objects that cannot be copied, because each owns something."""

from typing import ClassVar, NoReturn, SupportsIndex


class Owner:
    """Refuses to be copied and pickled, because it owns descriptors, memory, a connection or locks.

    A copy would own the same descriptor number. Closing both would close whatever file has that
    number by then. Every way of copying calls __reduce_ex__(): copy, deepcopy, pickle,
    dataclasses.asdict, spawned processes and process pools. `_instead` of a subclass says what to
    do instead.
    """

    _instead: ClassVar[str] = "make another"

    def __reduce_ex__(self, protocol: SupportsIndex, /) -> NoReturn:
        """Raise TypeError, which says what to do instead."""
        raise cannot_copy(self, self._instead)

    def __reduce__(self) -> NoReturn:
        """Raise TypeError, which says what to do instead."""
        raise cannot_copy(self, self._instead)


def cannot_copy(owner: object, instead: str) -> TypeError:
    """Return the TypeError for an attempt to copy `owner`."""
    name = type(owner).__name__
    return TypeError(
        f"expected a value to copy or pickle, received {name}, which owns descriptors, memory or "
        f"locks that a copy would close or use as well: {instead}"
    )
