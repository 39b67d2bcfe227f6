"""Locks in forked children: one may be held there for ever, by a thread that does not exist."""

import os
import weakref
from typing import Protocol


class HasLocks(Protocol):
    """What renewed_after_fork() takes."""

    def renew_locks(self) -> None:
        """Replace the locks by new ones; called in a forked child, which has one thread."""


_forks = 0
_known: "weakref.WeakSet[HasLocks]" = weakref.WeakSet()


def renewed_after_fork(thing: HasLocks) -> None:
    """Call thing.renew_locks() in every forked child, as long as it lives."""
    _known.add(thing)


def forks() -> int:
    """Return how often this process has come out of fork(): another number in a child."""
    return _forks


def _renew_all() -> None:
    global _forks  # noqa: PLW0603 (the process is what it belongs to)
    _forks += 1
    for each in list(_known):
        each.renew_locks()


os.register_at_fork(after_in_child=_renew_all)
