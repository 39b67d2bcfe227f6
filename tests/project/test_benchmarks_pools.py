"""The benchmark of pools: that it runs, and measures each peer."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent.parent
PEERS = ["Queue", "deal", "deal 16", "Queue 64", "imap", "imap 32", "map", "map 32"]


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_each_peer_is_measured(method):
    command = [sys.executable, "-m", "benchmarks.pools", "--methods", method, "--workers", "2"]
    command += ["--tasks", "unequal", "--rounds", "1", "--seconds", "0.005"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    head, *lines = done.stdout.splitlines()
    assert head == f"-- unequal, 2 workers, {method}: 125 tasks"
    assert [line[:10].strip() for line in lines] == PEERS
    for line in lines:
        assert re.fullmatch(r".{10} +[\d,]+ tasks/s +\d+\.\d\d times \(\d+\.\d\d…\d+\.\d\d\)", line)
    assert " 1.00 times (1.00…1.00)" in lines[0]
