"""Locks in forked children: a thread that exists only in the parent may hold one for ever."""

import os
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Protocol

    class HasLocks(Protocol):
        """What renewed_after_fork() takes."""

        def renew_locks(self) -> None:
            """Replace the locks with new ones; called in a forked child, which has one thread."""


_forks = 0
_known: "weakref.WeakSet[HasLocks]" = weakref.WeakSet()


def renewed_after_fork(thing: "HasLocks") -> None:
    """Have every forked child call thing.renew_locks(), as long as `thing` exists."""
    _known.add(thing)


def forks() -> int:
    """Return how many forks lie between the first process and this one; a child has one more."""
    return _forks


def _renew_all() -> None:
    global _forks  # noqa: PLW0603 (the process is what it belongs to)
    _forks += 1
    for each in list(_known):
        each.renew_locks()


os.register_at_fork(after_in_child=_renew_all)
