"""Runs test files side by side, each in a pytest of its own: `make test` and `make check`.

    python tests/kit/lanes.py [--jobs N] FILE… [-- ARGUMENTS FOR PYTEST]

A process for each file, because a long run of pytest grows and becomes slower, and because what one
file leaves behind must not matter to the next.  The files that took longest last time go first
(build/test-times.json; without it the largest).

One line for each file, the output of those that failed, and a summary in the end, also after
Ctrl-C, which ends all of it at once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent.parent
TIMES = REPOSITORY / "build" / "test-times.json"
NO_TESTS = 5  # how pytest ends where all tests were deselected

# Dies with its parent: prctl(PR_SET_PDEATHSIG, SIGKILL).
PYTEST = (
    "import ctypes, sys; ctypes.CDLL(None).prctl(1, 9); "
    "import pytest; sys.exit(pytest.main(sys.argv[1:]))"
)


def _name(file):
    """What a user gives pytest to run it alone."""
    return str(file.relative_to(REPOSITORY))


class Lanes:
    """Takes files from a list, `jobs` at a time."""

    def __init__(self, files, arguments, times):
        self._left = sorted(files, key=lambda f: times.get(_name(f), 1 + f.stat().st_size / 5000))
        self._all = len(self._left)
        self._arguments = arguments
        self._lock = threading.Lock()
        self._running = set()
        self._stopped = False
        self._done = 0
        self.times = {}
        self.counts = Counter()
        self.failed = []

    def run(self, jobs):
        threads = [threading.Thread(target=self._lane, daemon=True) for _ in range(jobs)]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.1)
        except KeyboardInterrupt:
            with self._lock:
                self._stopped = True
                for process in self._running:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
            print("\nstopped by Ctrl-C", flush=True)
        return not self._stopped and not self.failed

    def _lane(self):
        while True:
            with self._lock:
                if self._stopped or not self._left:
                    return
                file = self._left.pop()
                process = subprocess.Popen(
                    [sys.executable, "-c", PYTEST, "-q", "--no-header", *self._arguments, file],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    errors="replace",
                    cwd=REPOSITORY,
                    start_new_session=True,
                )
                self._running.add(process)
            begin = time.monotonic()
            output, _ = process.communicate()
            with self._lock:
                self._running.discard(process)
                if not self._stopped:
                    self._note(file, process.returncode, output, time.monotonic() - begin)

    def _note(self, file, status, output, seconds):
        self._done += 1
        last = output.strip().rpartition("\n")[2]
        for count, word in re.findall(r"(\d+) (passed|failed|skipped|error|deselected)", last):
            self.counts[word] += int(count)
        good, name = status in (0, NO_TESTS), _name(file)
        self.times[name] = round(seconds, 1)
        where = f"[{self._done}/{self._all}]"
        print(f"{where} {'ok    ' if good else 'FAILED'} {seconds:6.1f} s  {name}: {last}")
        if not good:
            self.failed.append(name)
            print(output)
        sys.stdout.flush()


def main():
    parser = argparse.ArgumentParser(description="Run test files side by side.")
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    given = sys.argv[1:]
    cut = given.index("--") if "--" in given else len(given)
    options = parser.parse_args(given[:cut])
    times = {}
    with contextlib.suppress(OSError, ValueError):
        times = json.loads(TIMES.read_text())
    lanes = Lanes([file.resolve() for file in options.files], given[cut + 1 :], times)
    begin = time.monotonic()
    good = lanes.run(options.jobs)
    TIMES.parent.mkdir(exist_ok=True)
    TIMES.write_text(json.dumps(times | lanes.times, indent=1, sort_keys=True))
    if lanes.failed:
        print("failed:", *sorted(lanes.failed))
    counts = lanes.counts
    print(f"in {time.monotonic() - begin:.0f} s, {options.jobs} files at a time:")
    failed = counts["failed"] + counts["error"]
    print(f"{counts['passed']} passed, {failed} failed, {counts['skipped']} skipped")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
