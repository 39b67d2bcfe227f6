"""The benchmark of asyncio: that it runs, and measures each peer."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit import doors

REPOSITORY = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_each_peer_is_measured(loop):
    if loop == "uvloop" and doors.uvloop is None:
        pytest.skip("not installed: uvloop")
    command = [sys.executable, "-m", "benchmarks.event_loops", "--loops", loop]
    command += ["--sizes", "64", "--seconds", "0.001"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    heads = [line[:28].strip() for line in done.stdout.splitlines()]
    assert heads[1:] == ["recv()", "xmit()", "one way", "one way, many", "round trip"]
    for name, count in {"memenpsf": 3, "streams": 2, "sock_recv": 2, "asyncio.Queue": 1}.items():
        found = re.findall(rf"{re.escape(name)} +(\d+\.\d+)", done.stdout)
        assert len(found) == count
        assert all(float(each) > 0 for each in found)
