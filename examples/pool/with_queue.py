"""Counts the primes below a limit, by four workers and two queues of multiprocessing.

python with_queue.py [spawn|fork|forkserver] [LIMIT]
"""

import multiprocessing
import sys
from math import isqrt
from typing import Any


def check(number: int) -> tuple[int, bool]:
    """Return a task and its answer: whether the number is a prime."""
    return number, all(number % divisor for divisor in range(2, isqrt(number) + 1))


def worker(tasks: Any, answers: Any) -> None:
    """Work until there are no more tasks."""
    for task in iter(tasks.get, None):
        answers.put(check(task))


def main(method: str = "spawn", limit: str = "100000") -> None:
    """Give the tasks to the workers, and add up their answers."""
    multiprocessing.set_start_method(method)
    numbers = range(2, int(limit))
    tasks: Any = multiprocessing.Queue()
    answers: Any = multiprocessing.Queue()
    workers = [multiprocessing.Process(target=worker, args=(tasks, answers)) for _ in range(4)]
    for process in workers:
        process.start()
    for number in numbers:
        tasks.put(number)
    for _ in workers:
        tasks.put(None)
    found = dict(answers.get() for _ in numbers)
    for process in workers:
        process.join()
    print(f"{sum(found.values())} of {len(found)} numbers are primes")


if __name__ == "__main__":
    main(*sys.argv[1:])
