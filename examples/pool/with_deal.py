"""Counts the primes below a limit, by four workers to whom memenpsf.deal() deals tasks.

python with_deal.py [spawn|fork|forkserver] [LIMIT]
"""

import contextlib
import multiprocessing
import pickle
import sys
from math import isqrt

import memenpsf


def check(number: int) -> tuple[int, bool]:
    """Return a task and its answer: whether the number is a prime."""
    return number, all(number % divisor for divisor in range(2, isqrt(number) + 1))


def worker(end: memenpsf.PipeEnd[bytes]) -> None:
    """Work until there are no more tasks."""
    with end.open() as answers:
        for task in answers:
            answers.xmit(pickle.dumps(check(pickle.loads(task))))  # noqa: S301 (from our parent)


def main(method: str = "spawn", limit: str = "100000") -> None:
    """Give the tasks to the workers, and add up their answers."""
    multiprocessing.set_start_method(method)
    numbers = range(2, int(limit))
    workers, pipes = [], []
    for _ in range(4):
        ours, theirs = memenpsf.pipe(bytes, timeout=30)
        with theirs:
            workers.append(multiprocessing.Process(target=worker, args=(theirs,)))
            workers[-1].start()
        pipes.append(ours)
    with contextlib.ExitStack() as stack:
        ends = [stack.enter_context(ours.open()) for ours in pipes]
        answers = memenpsf.deal(map(pickle.dumps, numbers), ends)
        found: dict[int, bool] = dict(map(pickle.loads, answers))
    for process in workers:
        process.join()
    print(f"{sum(found.values())} of {len(found)} numbers are primes")


if __name__ == "__main__":
    main(*sys.argv[1:])
