"""What every test is held to: a deadline, and nothing left behind.

Around each test stand counts of descriptors, child processes, threads and mappings of memory
files; what a test adds, it must take away.  A test that takes longer than its deadline (60 s, or
`@pytest.mark.deadline(seconds)`) fails; if it cannot be interrupted, the whole run ends with a
traceback of every thread.  project/test_harness.py proves that both bite.
"""

from __future__ import annotations

import collections
import ctypes
import faulthandler
import gc
import math
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ipcqueue._ring import bounds as _bounds
from tests.kit.settling import settle
from tests.kit.shortage import keep_code

REPOSITORY = Path(__file__).parent.parent
DEADLINE = float(os.environ.get("MEMENPSF_DEADLINE", "60"))
GRACE = 10.0  # seconds from the deadline until the whole run ends

faulthandler.enable()


class DeadlineExceeded(BaseException):
    """Not an Exception: code under test must not handle it."""


_real_stderr = pytest.StashKey[int]()


def pytest_configure(config):
    config.stash[_real_stderr] = os.dup(2)  # now, while pytest captures nothing
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell has started this in the background, and what it ignores, children do as well.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "deadline(seconds): how long the test may take")


def pytest_collection_finish():
    """Have gc.collect(), around each test, look only at what tests make."""
    gc.collect()
    gc.freeze()


def _descriptors() -> set[str]:
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        if entry.name in {"0", "1", "2"}:
            continue  # pytest puts them back at Ctrl-C, before this looks again
        try:
            found.add(f"fd {entry.name}: {entry.readlink()}")
        except FileNotFoundError:
            continue  # the directory being listed
    return found


def _children() -> set[str]:
    pids = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return {f"child process {pid}" for pid in pids}


def _threads() -> set[str]:
    # Trio keeps idle worker threads for a few seconds, to reuse them.
    return {f"thread {t.name}" for t in threading.enumerate() if "Trio" not in t.name}


def _mappings() -> collections.Counter[str]:
    return collections.Counter(re.findall(r"/memfd:\S+", Path("/proc/self/maps").read_text()))


def _state() -> tuple[set[str], collections.Counter[str]]:
    settle()
    return _descriptors() | _children() | _threads(), _mappings()


@pytest.fixture(autouse=True)
def _no_clock_bounds_a_call(monkeypatch):
    """How much a call takes must not depend on how busy this machine is; see test_bounds.py."""
    monkeypatch.setattr(_bounds, "MAX_SECONDS", math.inf)


@pytest.fixture(scope="session", autouse=True)
def _what_has_no_memory_for_a_function_loses_no_code():
    if (3, 12) <= sys.version_info < (3, 14):
        keep_code()


@pytest.fixture(autouse=True)
def _leaves_nothing_behind_in_time(request):
    marker = request.node.get_closest_marker("deadline")
    seconds = marker.args[0] if marker else DEADLINE

    def expired(signum, frame):
        raise DeadlineExceeded(f"{request.node.nodeid} took longer than its {seconds} s")

    things, mappings = _state()
    previous = signal.signal(signal.SIGALRM, expired)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    stderr = request.config.stash[_real_stderr]
    faulthandler.dump_traceback_later(seconds + GRACE, exit=True, file=stderr)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, previous)
    gc.collect()  # not before: what was garbage already makes this test no worse than it is
    things_after, mappings_after = _state()
    left = sorted(things_after - things) + [f"mapping {m}" for m in mappings_after - mappings]
    if left:
        pytest.fail("left behind: " + "; ".join(left), pytrace=False)


# In front of every program that a test starts: it dies with the test, whatever happens.
_DIE_WITH_PARENT = """\
import ctypes, os, signal, sys
ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]): os._exit(1)
del sys.argv[1]
"""


@pytest.fixture
def program():
    """Start a Python program, given as source text, in a fresh and unrelated interpreter.

    program(source, *arguments, pass_fds=()) -> Popen with text pipes.  The programs are killed
    and reaped at the end of the test.
    """
    started = []

    def start(source, *arguments, **options):
        command = [sys.executable, "-c", _DIE_WITH_PARENT + source, str(os.getpid())]
        process = subprocess.Popen(
            [*command, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            **options,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def forked():
    """Run a function in a forked child; return its exit status: 0 unless it raised."""

    def run(function):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                ctypes.CDLL(None).prctl(1, signal.SIGKILL)
                function()
                status = 0
            except BaseException:  # noqa: BLE001 (os._exit follows)
                import traceback

                traceback.print_exc()
            finally:
                os._exit(status)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    return run
