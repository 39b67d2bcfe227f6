"""How long an end looks for what is about to come, before it sleeps."""

from __future__ import annotations

from typing import NamedTuple

from ipcqueue._core import lib

from .processors import processors_allowed


class Patience(NamedTuple):
    """How long an end looks for what is about to come before it sleeps."""

    nanoseconds: int
    adaptive: bool  # less while it does not pay
    yields: bool = False  # lets others run after each look, and keeps no interpreter


MOST_SPIN_NS: int = lib.IPCQ_MOST_SPIN_NS
FOR_EVER = 1 << 63  # nanoseconds
BUSY = Patience(FOR_EVER, False)
ADAPTIVE = Patience(lib.IPCQ_SPIN_NS, True)  # on a single processor the core does not look

FEWEST_PROCESSORS = 2  # that looking needs: one for each side


def suited(patience: Patience, *, shares: bool) -> Patience:
    """Return how an end looks whose peer `shares` this interpreter, or which may share a processor.

    A peer that is a thread of this process needs the interpreter, and a system that allows this one
    less than two processors stops it for a while when it looks.  So an adaptive end sleeps at once;
    one that was told to look goes on doing so, and lets others run after each look.
    """
    if not shares and processors_allowed() >= FEWEST_PROCESSORS:
        return patience
    return Patience(0, False) if patience.adaptive else patience._replace(yields=True)
