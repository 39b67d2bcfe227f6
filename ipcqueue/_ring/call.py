"""A call that receives, and what it has in its hands."""

from __future__ import annotations

from typing import Any, TypeAlias


class Call:
    """One call that receives: what it has taken stands in `_hands` of its end, under its name.

    It stays there while it is decoded, and until the very step in which it is returned: a store
    and a return, with nothing between at which CPython looks for signals.  So an exception of a
    signal handler (Ctrl-C) finds it there wherever it strikes, and there is nothing to recover.  How
    a call ends is a single store, `over`, by which its handler of exceptions begins: no second one
    can strike before it: from then on what still stands under its name is anybody's, and the next
    call that receives gets it.
    """

    __slots__ = ("over",)  # so that no store needs memory

    over: bool  # set to False by its maker, which is faster than a constructor


OVER = Call()
OVER.over = True
"""What stands under its name in `_hands` is anybody's."""

Hands: TypeAlias = list[tuple[Call, Any]]
