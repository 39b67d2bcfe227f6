"""A pool of workers: memenpsf.deal() beside queues and pools of the standard library.

    python -m benchmarks.pools                           # 2 and 4 workers, spawn and fork
    python -m benchmarks.pools --methods fork --workers 4 --tasks small,unequal --rounds 9

A task is a tuple of three that is pickled both ways, and work of so many microseconds of a
processor.  A pool is started and warmed up before it is measured: from the first task that is given
until the last answer is there.  In each round all peers take turns, in random order.  Shown are
tasks a second (median), and how many times as many as with a queue: the median of the ratios
within each round, and the smallest and the largest of them.

- deal: a worker answers each task by itself; `deal 16`: it takes and answers up to 16 at once.
- Queue: two multiprocessing.Queues; `Queue 64`: the same with lists of 64 tasks.
- imap, map: multiprocessing.Pool.imap_unordered and ProcessPoolExecutor.map, and in chunks of 32.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import multiprocessing
import os
import pickle
import random
import statistics
import time
from itertools import islice
from typing import TYPE_CHECKING, Any

import memenpsf

from .worker import die_with_parent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Task = tuple[int, int, tuple[int, ...]]
    Peer = Callable[[Any, int, list[Task]], float]

# Microseconds of each task by its number, and about how many are done in a second.
KINDS: dict[str, tuple[Callable[[int], float], int]] = {
    "small": (lambda _: 0, 100_000),
    "20": (lambda _: 20, 40_000),
    "100": (lambda _: 100, 14_000),
    "1000": (lambda _: 1000, 1_800),
    "unequal": (lambda n: 5000 if n % 100 == 50 else 5, 25_000),
}
LIST = 64
CHUNK = 32
AT_ONCE = 16


def loops_of_a_microsecond() -> float:
    """Return how often a loop goes round in a microsecond of this processor."""
    taken = []
    for _ in range(9):
        start = time.perf_counter()
        sum(range(100_000))
        taken.append(time.perf_counter() - start)
    return 0.1 / min(taken)


def work(task: Task) -> tuple[int, int]:
    """Do a task."""
    number, loops, values = task
    sum(range(loops))
    return number, sum(values)


def checked(answers: Any, tasks: list[Task]) -> None:
    """Raise if not each task was answered once, and rightly."""
    if sorted(answers) != [(number, sum(values)) for number, _, values in tasks]:
        raise AssertionError("wrong answers")


# Each peer starts a pool and warms it up; then it returns the seconds that the tasks took.


def answer(parent: int, end: memenpsf.PipeEnd[bytes]) -> None:
    """Work for deal(), one by one."""
    die_with_parent(parent)
    with end.open() as interface:
        for task in interface:
            interface.xmit(pickle.dumps(work(pickle.loads(task))))  # noqa: S301


def answer_many(parent: int, end: memenpsf.PipeEnd[bytes]) -> None:
    """Work for deal(), up to AT_ONCE at once."""
    die_with_parent(parent)
    with end.open() as interface, contextlib.suppress(memenpsf.EndOfStream):
        while tasks := interface.recv_vectored(AT_ONCE):
            answers = [work(pickle.loads(task)) for task in tasks]  # noqa: S301
            interface.xmit_many([pickle.dumps(answer) for answer in answers])  # a list is faster


def by_deal(target: Callable[[int, memenpsf.PipeEnd[bytes]], None]) -> Peer:
    """Return the peer with this worker."""

    def measure(context: Any, count: int, tasks: list[Task]) -> float:
        pipes = [memenpsf.pipe(bytes, timeout=30) for _ in range(count)]
        workers = [context.Process(target=target, args=(os.getpid(), end)) for _, end in pipes]
        for process, (_, end) in zip(workers, pipes, strict=True):
            with end:
                process.start()
        with contextlib.ExitStack() as stack:
            ends = [stack.enter_context(ours.open()) for ours, _ in pipes]

            def answered(tasks: list[Task]) -> list[tuple[int, int]]:
                return list(map(pickle.loads, memenpsf.deal(map(pickle.dumps, tasks), ends)))

            answered(tasks[:count])
            start = time.perf_counter()
            answers = answered(tasks)
            took = time.perf_counter() - start
        for process in workers:
            process.join()
        checked(answers, tasks)
        return took

    return measure


def take(parent: int, ready: Any, tasks: Any, answers: Any) -> None:
    """Work for queues."""
    die_with_parent(parent)
    ready.release()
    for task in iter(tasks.get, None):
        answers.put(work(task))


def take_lists(parent: int, ready: Any, tasks: Any, answers: Any) -> None:
    """Work for queues of lists."""
    die_with_parent(parent)
    ready.release()
    for some in iter(tasks.get, None):
        answers.put([work(task) for task in some])


def lists(tasks: list[Task]) -> Iterator[list[Task]]:
    """Yield them as lists."""
    iterator = iter(tasks)
    while some := list(islice(iterator, LIST)):
        yield some


def by_queue(context: Any, count: int, tasks: list[Task]) -> float:
    """Use a queue of tasks and one of answers."""
    with queues(context, count, take) as (given, answers):
        start = time.perf_counter()
        for task in tasks:
            given.put(task)
        got = [answers.get() for _ in tasks]
        took = time.perf_counter() - start
    checked(got, tasks)
    return took


def by_queue_of_lists(context: Any, count: int, tasks: list[Task]) -> float:
    """Use the same for lists of tasks."""
    with queues(context, count, take_lists) as (given, answers):
        start = time.perf_counter()
        number = 0
        for some in lists(tasks):
            given.put(some)
            number += 1
        got = [each for _ in range(number) for each in answers.get()]
        took = time.perf_counter() - start
    checked(got, tasks)
    return took


@contextlib.contextmanager
def queues(context: Any, count: int, target: Callable[..., None]) -> Iterator[tuple[Any, Any]]:
    """Start workers, and end them."""
    ready, given, answers = context.Semaphore(0), context.Queue(), context.Queue()
    handed = os.getpid(), ready, given, answers
    workers = [context.Process(target=target, args=handed) for _ in range(count)]
    for process in workers:
        process.start()
    for _ in workers:
        ready.acquire()
    yield given, answers
    for _ in workers:
        given.put(None)
    for process in workers:
        process.join()
    for queue in (given, answers):
        queue.close()
        queue.join_thread()


def by_pool(chunk: int) -> Peer:
    """Return the peer with chunks of so many tasks."""

    def measure(context: Any, count: int, tasks: list[Task]) -> float:
        with context.Pool(count, die_with_parent, (os.getpid(),)) as pool:
            pool.map(work, tasks[: 4 * count], 1)
            start = time.perf_counter()
            answers = list(pool.imap_unordered(work, tasks, chunk))
            took = time.perf_counter() - start
            pool.close()
            pool.join()
        checked(answers, tasks)
        return took

    return measure


def by_executor(chunk: int) -> Peer:
    """Return the peer with chunks of so many tasks."""

    def measure(context: Any, count: int, tasks: list[Task]) -> float:
        with concurrent.futures.ProcessPoolExecutor(
            count, context, die_with_parent, (os.getpid(),)
        ) as executor:
            list(executor.map(work, tasks[: 4 * count]))
            start = time.perf_counter()
            answers = list(executor.map(work, tasks, chunksize=chunk))
            took = time.perf_counter() - start
        checked(answers, tasks)
        return took

    return measure


PEERS: dict[str, Peer] = {
    "Queue": by_queue,
    "deal": by_deal(answer),
    f"deal {AT_ONCE}": by_deal(answer_many),
    f"Queue {LIST}": by_queue_of_lists,
    "imap": by_pool(1),
    f"imap {CHUNK}": by_pool(CHUNK),
    "map": by_executor(1),
    f"map {CHUNK}": by_executor(CHUNK),
}


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.pools",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--methods", default="spawn,fork")
    parser.add_argument("--workers", default="2,4")
    parser.add_argument("--tasks", default=",".join(KINDS))
    parser.add_argument("--peers", default=",".join(PEERS), help="the first is compared with")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="about, of a turn")
    return parser.parse_args()


def main() -> None:
    """Measure, and print a table."""
    options = arguments()
    speed = loops_of_a_microsecond()
    names = options.peers.split(",")
    for kind in options.tasks.split(","):
        length, rate = KINDS[kind]
        total = max(LIST, int(rate * options.seconds))
        tasks = [(n, int(length(n) * speed), (n,) * 8) for n in range(total)]
        for count in map(int, options.workers.split(",")):
            for method in options.methods.split(","):
                context = multiprocessing.get_context(method)
                taken: dict[str, list[float]] = {name: [] for name in names}
                for _ in range(options.rounds):
                    for name in random.sample(names, len(names)):
                        taken[name].append(PEERS[name](context, count, tasks))
                print(f"-- {kind}, {count} workers, {method}: {total} tasks", flush=True)
                for name in names:
                    pairs = zip(taken[names[0]], taken[name], strict=True)
                    ratios = sorted(first / its for first, its in pairs)
                    print(
                        f"{name:10} {total / statistics.median(taken[name]):10,.0f} tasks/s "
                        f"{statistics.median(ratios):6.2f} times "
                        f"({ratios[0]:.2f}…{ratios[-1]:.2f})",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
