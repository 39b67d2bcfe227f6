"""How long an end spins, which is to look again and again, before it sleeps."""

from typing import NamedTuple

from ipcqueue._core import lib

from .processors import processors_allowed


class Patience(NamedTuple):
    """How long an end spins before it sleeps."""

    nanoseconds: int
    adaptive: bool  # spins less while spinning does not pay
    yields: bool = False  # lets other threads and processes run after each look


MAX_SPIN_NS: int = lib.IPCQ_MAX_SPIN_NS
FOR_EVER = 1 << 63  # nanoseconds
BUSY = Patience(FOR_EVER, False)
ADAPTIVE = Patience(lib.IPCQ_SPIN_NS, True)  # on a single processor the core does not spin

FEWEST_PROCESSORS = 2  # for spinning: one for each side


def suited(patience: Patience, *, shares: bool) -> Patience:
    """Return how an end spins whose peer `shares` this interpreter, or may share its processor.

    If the peer is a thread of this process, it needs the interpreter.  If this process may use less
    than two processors, the kernel stops it for a while when it spins.  In both cases an adaptive
    end sleeps at once; one that was told to spin lets others run after each look.
    """
    if not shares and processors_allowed() >= FEWEST_PROCESSORS:
        return patience
    return Patience(0, False) if patience.adaptive else patience._replace(yields=True)
