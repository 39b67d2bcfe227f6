"""The benchmark of a server with many clients: that it runs, and that every record has come."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.many_clients import SERVERS

REPOSITORY = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("kind", SERVERS)
def test_each_server_is_measured(kind):
    command = [sys.executable, "-m", "benchmarks.many_clients", "--kinds", kind]
    command += ["--clients", "12", "--seconds", "0.05", "--turns", "1"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    title, *rows = done.stdout.splitlines()
    assert title == f"-- {kind}, 12 clients, medians of 1 turns"
    assert [row[:20].strip() for row in rows] == [*SERVERS[kind]]
    for row in rows:
        values = [float(each) for each in re.findall(r" (\d+\.\d+)", row)]
        assert len(values) == 7
        assert min(values[:4]) > 0
