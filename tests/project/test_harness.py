"""Tests of the harness: what conftest and `make sanitize` promise to catch, they catch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent
CONFTEST = (TESTS / "conftest.py").read_text()
SETTLING = (TESTS / "kit" / "settling.py").read_text()

LEAKS = {
    "descriptor": "import os; os.dup(0)",
    "child": "import subprocess, sys; global p; p = subprocess.Popen(['sleep', '60'])",
    "thread": (
        "import threading; global e; e = threading.Event();"
        " threading.Thread(target=e.wait, daemon=True).start()"
    ),
    "mapping": (
        "import mmap, os; global m; f = os.memfd_create('x'); os.ftruncate(f, 4096);"
        " m = mmap.mmap(f, 4096); os.close(f)"
    ),
}


@pytest.fixture
def inner(pytester):
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(**{"tests/kit/settling": SETTLING})

    def run(body):
        pytester.makepyfile("import pytest\n" + body)
        return pytester.runpytest_subprocess("-p", "no:cacheprovider", "-p", "no:faulthandler")

    return run


@pytest.mark.parametrize("leak", LEAKS)
def test_a_test_that_leaves_something_behind_fails(inner, leak):
    result = inner(f"def test_leak():\n    {LEAKS[leak]}\n")
    result.assert_outcomes(passed=1, errors=1)
    assert "left behind" in result.stdout.str()


def test_a_test_that_takes_too_long_fails(inner):
    result = inner(
        "import threading\n"
        "@pytest.mark.deadline(0.05)\n"
        "def test_hangs():\n    threading.Event().wait()\n"
    )
    result.assert_outcomes(failed=1)
    assert "took longer than its 0.05 s" in result.stdout.str()


def test_a_test_that_cannot_be_ended_ends_the_run(inner, pytester):
    # It fails in time, and then its fixture hangs.
    pytester.makeconftest(CONFTEST.replace("GRACE = 10.0", "GRACE = 0.5"))
    result = inner(
        "import signal, threading\n"
        "@pytest.fixture\n"
        "def hanging():\n"
        "    yield\n"
        "    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])\n"
        "    threading.Event().wait()\n"
        "@pytest.mark.deadline(0.05)\n"
        "def test_fails(hanging):\n    assert False\n"
    )
    assert result.ret == 1
    assert "Timeout (" in result.stderr.str()


def test_a_clean_test_passes(inner):
    inner("def test_clean():\n    pass\n").assert_outcomes(passed=1)


# Through the ring of one record size, a sender that has been told another: it reads behind a record.
OVERREAD = """
import memenpsf
from ipcqueue._ring.memory import address_of
one, other = memenpsf.pair(64)
sender = one._endpoint.sender
sender.attach_fast(address_of(sender._ring), 2, None)
sender.offer(bytes([7]) * 2)
"""


@pytest.mark.skipif(
    "MEMENPSF_SANITIZED" not in os.environ, reason="these extensions notice nothing"
)
def test_misuse_of_memory_ends_a_program_that_a_test_starts():
    process = subprocess.run(
        [sys.executable, "-c", OVERREAD], check=False, capture_output=True, text=True
    )
    assert process.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in process.stderr
    assert "slots_offer" in process.stderr
