"""The example with a pool of workers, as a user runs it; and what docs/pool.md shows of it."""

import difflib
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

import memenpsf

REPOSITORY = Path(__file__).parent.parent.parent
POOL = REPOSITORY / "examples" / "pool"
PAGE = (REPOSITORY / "docs" / "pool.md").read_text()

RUN = "os.execv(sys.executable, [sys.executable, '-X', 'dev', *sys.argv[1:]])\n"
# What a queue's worker waits for never ends: so it dies with its parent, however it was started.
DIE_TOO = """\
import ctypes, os, signal
def die(): ctypes.CDLL(None).prctl(1, signal.SIGKILL)
die()
os.register_at_fork(after_in_child=die)
"""


@pytest.fixture
def example(program, tmp_path, monkeypatch):
    """Run an example as its user does, but for the warnings: they are part of stderr."""
    (tmp_path / "sitecustomize.py").write_text(DIE_TOO)
    monkeypatch.syspath_prepend(tmp_path)

    def start(script, *arguments):
        return program(RUN, POOL / script, *arguments, stderr=subprocess.PIPE)

    return start


def ended(process):
    output, errors = process.communicate()
    return process.returncode, output, errors


@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
@pytest.mark.parametrize("script", ["with_queue.py", "with_deal.py"])
def test_both_find_the_same_primes(example, script, method):
    found = ended(example(script, method, "20000"))
    assert found == (0, "2262 of 19998 numbers are primes\n", "")


@pytest.fixture
def workers(example):
    """Start a long run; return it, and its workers once they are connected, by their pidfds."""
    opened = []

    def start():
        process = example("with_deal.py", "fork", "100000000")
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        maps = Path(f"/proc/{process.pid}/maps")
        while maps.read_text().count("memfd:") < 8:  # its memory and theirs, of four workers
            assert process.poll() is None
        connected = children.read_text().split()
        opened.extend(os.pidfd_open(int(pid)) for pid in connected)
        return process, opened

    yield start
    for pidfd in opened:
        os.close(pidfd)


def all_end(pidfds):
    left = list(pidfds)
    while left:
        for pidfd in memenpsf.wait(left):
            left.remove(pidfd)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_a_parent_that_is_stopped(workers, number):
    process, pidfds = workers()
    process.send_signal(number)
    status, _, _ = ended(process)
    assert status == -number
    all_end(pidfds)


def test_if_all_workers_are_killed_it_is_told(workers):
    process, pidfds = workers()
    for pidfd in pidfds:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    status, output, errors = ended(process)
    assert (status, output) == (1, "")
    assert "PeerDied: " in errors.splitlines()[-1]


def test_the_page_shows_the_program_and_what_changes():
    (shown,) = re.findall(
        r"^```python\n# with_queue\.py\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE
    )
    (changed,) = re.findall(r"^```diff\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    before, after = ((POOL / name).read_text() for name in ("with_queue.py", "with_deal.py"))
    assert shown == before
    lines = difflib.unified_diff(
        before.splitlines(keepends=True),
        after.splitlines(keepends=True),
        "with_queue.py",
        "with_deal.py",
        n=1,
    )
    assert changed == "".join(lines)
