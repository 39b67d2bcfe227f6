"""What `make test` runs the files with: one that fails is told, and Ctrl-C ends all of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

LANES = Path(__file__).parent.parent / "kit" / "lanes.py"


@pytest.fixture
def lanes(tmp_path, monkeypatch):
    """Start it with files of these texts, in a directory that is not the repository."""
    started = []

    def start(**texts):
        for name, text in texts.items():
            (tmp_path / f"test_{name}.py").write_text(text)
        files = sorted(tmp_path.glob("test_*.py"))
        program = (
            f"import ctypes, pathlib, sys; ctypes.CDLL(None).prctl(1, 9); "
            f"sys.path.insert(0, {str(LANES.parent)!r}); import lanes; "
            f"lanes.REPOSITORY = pathlib.Path({str(tmp_path)!r}); "
            f"lanes.TIMES = lanes.REPOSITORY / 'build' / 'times.json'; sys.exit(lanes.main())"
        )
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", program, "--jobs", "2", *map(str, files)],
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_all_that_pass_are_counted(lanes):
    process = lanes(one="def test_1(): pass\ndef test_2(): pass", other="def test_3(): pass")
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert output.endswith("3 passed, 0 failed, 0 skipped\n")


def test_one_that_fails_is_told_with_its_output(lanes):
    process = lanes(good="def test_1(): pass", bad="def test_2(): assert 'this' == 'that'")
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "FAILED" in output
    assert "assert 'this' == 'that'" in output
    assert "failed: test_bad.py\n" in output
    assert output.endswith("1 passed, 1 failed, 0 skipped\n")


def test_a_file_that_cannot_be_read_fails(lanes):
    process = lanes(bad="import nothing_of_this_name")
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert output.endswith("0 passed, 1 failed, 0 skipped\n")


def test_ctrl_c_ends_what_runs_and_tells_what_was_done(lanes, tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    wait = f"import os, time\ndef test_1():\n    os.open({str(fifo)!r}, os.O_WRONLY)\n    time.sleep(50)"
    process = lanes(waits=wait)
    with fifo.open() as end:  # once the test has begun
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=30)
        assert end.read() == ""  # and nobody holds the other end any more
    assert process.returncode == 1
    assert "stopped by Ctrl-C" in output
    assert output.endswith("0 passed, 0 failed, 0 skipped\n")
