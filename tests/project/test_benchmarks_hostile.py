"""The benchmark of one good client among hostile ones: that it runs, and measures what it says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent.parent


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.hostile", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *sys.path])},
        capture_output=True,
        text=True,
        timeout=290,
        check=False,
    )


@pytest.mark.deadline(300)
@pytest.mark.parametrize("server", ["threads", "trio"])
def test_every_attack_takes_place_and_the_good_client_is_served(server):
    done = run("--server", server, "--clients", "10", "--seconds", "1.5", "--json")
    assert done.returncode == 0, done.stderr
    (found,) = map(json.loads, done.stdout.splitlines())
    assert found["server"] == server
    assert len(set(found["attacks"])) == found["clients"] == 10
    for condition in ("quiet", "attack", "burn"):
        assert found[condition]["trips"] > 0
        assert 0 < found[condition]["p50"] <= found[condition]["p99"] <= found[condition]["max"]


def test_an_attack_that_is_none_is_refused():
    done = run("--attacks", "doorbells,nothing")
    assert done.returncode == 2
    assert "there is no attack nothing" in done.stderr
