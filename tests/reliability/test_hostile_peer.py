"""Whole connections with peers that do whatever they like; hostile_peer.py says what that is.

make sanitize runs this with extensions that notice misuse of memory, if it is told to:
TESTS=tests/reliability/test_hostile_peer.py.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.reliability import campaign

CONNECTIONS = 50  # of each case
PROGRAM = Path(__file__).parent / "hostile_peer.py"
CASES = [
    ("bytes", "threads"),
    ("bytes", "trio"),
    ("messages", "threads"),
    ("messages", "trio"),
    ("numbers", "threads"),
    ("numbers", "trio"),
    ("blobs", "threads"),
    ("bytes of one", "threads"),
]


@pytest.mark.deadline(campaign.seconds(300))
@pytest.mark.parametrize(("shape", "door"), CASES)
def test_a_peer_that_does_whatever_it_likes_harms_only_itself(shape, door):
    count, seed = str(campaign.amount(CONNECTIONS)), str(campaign.SEED)
    command = [sys.executable, PROGRAM, "victim", shape, door, seed, count]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    said = f"{command}\n{done.stdout}{done.stderr}"
    assert done.returncode == 0, said
    assert "Warning" not in done.stderr, said
    # It came to what is behind the checks, and to the checks.
    outcomes = {name: int(number) for name, number in re.findall(r"'(\w+)': (\d+)", done.stdout)}
    assert outcomes["done"] > 5 * int(count), said
    assert outcomes["CorruptPeer"] > int(count) / 10, said
