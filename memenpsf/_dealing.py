"""deal: tasks for many workers, each at the other end of an interface, and their answers.

A worker gets its next tasks before it has answered the last ones, so that it never waits for them;
but never more than it is expected to do within AHEAD, since what waits at one worker cannot be
given to another.  How many that are is measured: a hand grows and shrinks with what its worker
does.  Nothing here blocks while a worker has tasks: a worker that cannot send its answers, because
nobody receives them, does not receive tasks either.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from time import sleep
from typing import TYPE_CHECKING, Any

from ipcqueue import PeerDied, ReceiverGone
from ipcqueue.lowlevel import T, checked_number, monotonic

from ._interface import Interface
from ._receiver_set import ReceiverSet

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# Seconds of work that a worker may have.  Within that time the dealer must come to deal more: on a
# busy machine it may have to wait some 10 ms for a processor.
AHEAD = 0.02
# Tasks that a worker may have, however short they were until now.  With 64, tasks of nothing take
# 1.5 times the processor time; with 1024 nearly the same.
MOST = 256
MAX_MOST = 1 << 62
# While all workers have tasks for a while, answers are let gather: each wake-up of the dealer costs
# some 100 µs of a processor, also if there is one answer alone.  Seconds, at most and at least.
LONGEST_NAP = 0.0025
SHORTEST_NAP = 0.0005


class Deck:
    """The tasks that no worker has."""

    def __init__(self, tasks: Iterable[Any]) -> None:
        self._tasks = iter(tasks)
        self._again: deque[Any] = deque()

    def take(self, count: int) -> list[Any]:
        """Return up to `count` of them, those that were put back first."""
        taken = [self._again.popleft() for _ in range(min(count, len(self._again)))]
        taken += islice(self._tasks, count - len(taken))
        return taken

    def put_back(self, tasks: Iterable[Any]) -> None:
        """Take tasks back."""
        self._again.extend(tasks)


class Hand:
    """What one worker has been dealt and has not answered yet."""

    def __init__(self, worker: Interface[Any], limit: int) -> None:
        self.worker = worker
        self.tasks: deque[Any] = deque()  # in the order in which they are answered
        self.most = 1  # how many it may have now
        self._limit = limit
        self._count = self._left = 0  # how many tasks are timed, and how many of these are left
        self._since = 0.0
        self._pace = 0.0  # seconds for each task

    def fill(self, deck: Deck) -> None:
        """Deal as many as it may have, if it has no more than half of them."""
        if 2 * len(self.tasks) > self.most:
            return
        if not (batch := deck.take(self.most - len(self.tasks))):
            return
        try:
            sent = self.worker.xmit_many(batch, timeout=0)
            if not sent and not self.tasks:
                sent = self.worker.xmit_many(batch[:1])
        except (PeerDied, ReceiverGone):
            sent = len(batch)  # perhaps; it tells of its end where it is received from
        self.tasks += batch[:sent]
        deck.put_back(batch[sent:])
        if not self._left:
            self._count = self._left = len(self.tasks)
            self._since = monotonic()

    def answered(self, count: int) -> None:
        """Forget the first tasks, which are answered; adapt to how long they took."""
        if count > len(self.tasks):
            raise RuntimeError(
                f"a worker answers each task once, and {self.worker!r} has sent {count} answers to "
                f"{len(self.tasks)} tasks"
            )
        for _ in range(count):
            self.tasks.popleft()
        if 0 < self._left <= count:
            self._pace = max(monotonic() - self._since, 1e-9) / self._count
            self.most = max(1, min(self._limit, 2 * self.most, int(AHEAD / self._pace)))
        self._left = max(0, self._left - count)

    def lasts(self) -> float:
        """Return for how many seconds it has tasks besides the one that it is at."""
        return self._pace * (len(self.tasks) - 1)


def deal(tasks: Iterable[T], workers: Iterable[Interface[T]], *, most: int = MOST) -> Iterator[T]:
    """Deal tasks to workers, and yield the answers as they come.

    Each task is a record.  Each worker, at the other end of an interface, sends one record for each
    that it receives, in the same order.  For several workers the order of the answers is any.

        for answer in memenpsf.deal(tasks, workers):
            ...

    A worker has at most `most` tasks that are not answered, and no more than it does in 20 ms, by
    what its last ones took.  All but one of them may wait behind one that takes unexpectedly long;
    with 1 none does.  A worker with tasks of more than 10 ms has one at a time anyway.  While all
    have tasks for some milliseconds, answers may come up to 2.5 ms late, many at once.  The next
    task is taken from `tasks` in between, so it should be there at once.

    If a worker dies (PeerDied), those tasks that it has not answered are dealt to the others: each
    task is answered once, but may have been begun more than once.  If no worker is left, PeerDied
    is raised.  A worker that ends in another way (Aborted if it has raised, EndOfStream), and what
    else xmit_many() and recv() raise, ends the loop by that exception; interface_of() tells whose.

    The interfaces stay the caller's.  They are of no use for another deal() after one that was left
    early, since answers are still to come.  Raises TypeError, ValueError if there is no worker.
    """
    limit = checked_number("most", most, MAX_MOST)
    if limit == 0:
        raise ValueError("most is at least 1 task, not 0")
    hands = {worker: Hand(worker, limit) for worker in workers}
    for worker in hands:
        if not isinstance(worker, Interface):
            raise TypeError(f"a worker is an Interface of memenpsf, not {worker!r}")
    if not hands:
        raise ValueError("there is no worker to deal tasks to")
    return _dealing(Deck(tasks), hands)


def _dealing(deck: Deck, hands: dict[Interface[Any], Hand]) -> Iterator[Any]:
    with ReceiverSet(hands) as received:
        for hand in hands.values():
            hand.fill(deck)
        while any(hand.tasks for hand in hands.values()):
            for worker, answers in received.recv_vectored():
                if isinstance(answers[0], Exception):
                    _bury(worker, answers[0], deck, hands)
                    continue
                hand = hands[worker]
                hand.answered(len(answers))
                hand.fill(deck)  # first: it goes on while the caller has the answers
                yield from answers
            nap = min(hand.lasts() for hand in hands.values()) / 4
            if nap >= SHORTEST_NAP:
                sleep(min(nap, LONGEST_NAP))


def _bury(
    worker: Interface[Any], error: Exception, deck: Deck, hands: dict[Interface[Any], Hand]
) -> None:
    """Deal the tasks of a dead worker to others; raise what is no death, or the last one's."""
    if type(error) is not PeerDied or len(hands) == 1:
        raise error
    deck.put_back(hands.pop(worker).tasks)
    for hand in hands.values():
        hand.fill(deck)


deal.__module__ = "memenpsf"  # as of all public names; see __init__
