"""The benchmark suite: with tiny amounts, for peers that need no installation; and what it refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
TINY = ("--repeats", "2", "--seconds", "0.002", "--timeout", "5")
BUILT_IN = ("memenpsf", "mp.", "Unix", "os.pipe")


def bench(tmp_path, *arguments):
    """Run the suite as its user does; return its status, what it printed, and its JSON."""
    results = tmp_path / "results.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *TINY, "--json", str(results), *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *sys.path])},
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
    )
    assert results.exists(), done.stderr
    return done, json.loads(results.read_text())


def cells(content, workload):
    (found,) = (w for w in content["workloads"] if w["name"] == workload)
    return {(result["peer"], result["case"]): result for result in found["results"]}


def test_tables_and_json_hold_every_built_in_peer(tmp_path):
    done, content = bench(
        tmp_path, "--workloads", "rate,roundtrip", "--peers", ",".join(BUILT_IN),
        "--cases", "64 B,64 KiB,blocking,busy",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = cells(content, "rate")
    assert {case for _, case in found} == {"64 B", "64 KiB"}
    assert {peer.split()[0] for peer, _ in found} == {
        "memenpsf", "mp.Pipe", "mp.Queue", "mp.SimpleQueue", "Unix", "os.pipe",
    }  # fmt: skip
    for result in [*found.values(), *cells(content, "roundtrip").values()]:
        assert len(result["values"]) == 2
        assert 0 < result["min"] <= result["median"] <= result["max"]
    assert ("os.pipe buffered", "blocking") not in cells(content, "roundtrip")
    assert content["machine"]["versions"]["memenpsf"]
    for line in ("## One way, one by one", "| memenpsf bytes ", "Where another wins:"):
        assert line in done.stdout


def test_a_peer_that_cannot_be_imported_is_absent(tmp_path):
    done, content = bench(
        tmp_path, "--workloads", "rate", "--cases", "64 B", "--peers", "tests.no_such:Peer"
    )
    assert done.returncode == 0
    assert "absent: tests.no_such:Peer: No module named" in done.stdout
    assert content["absent"].keys() == {"tests.no_such:Peer"}
    assert {peer.split()[0] for peer, _ in cells(content, "rate")} == {"memenpsf"}


def test_whoever_loses_reorders_repeats_garbles_or_stops_is_found_out(tmp_path):
    names = ("Sound", "Loses", "Swaps", "Repeats", "Garbles", "Stops", "Dies")
    done, content = bench(
        tmp_path, "--workloads", "rate", "--cases", "64 B", "--timeout", "2",
        "--peers", ",".join(f"peers_gone_wrong:{name}" for name in names),
    )  # fmt: skip
    assert done.returncode == 1
    found = cells(content, "rate")
    failures = {name: found[f"peers_gone_wrong:{name}", "64 B"].get("failure") for name in names}
    assert failures.pop("Sound") is None
    assert failures.pop("Stops") == "timed out"
    assert failures.pop("Dies") == "the process died"
    for name, failure in failures.items():
        assert failure.startswith("WrongMessage: instead of message "), name


def test_a_message_is_compared_with_the_one_that_had_to_come():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(REPOSITORY)
        from benchmarks.messages import Messages, WrongMessage
        from benchmarks.roles import take

    class Peer:
        """Gives what it is told to."""

        def __init__(self, size, messages):
            self.size, self.iterator = size, iter(messages)
            self.recv = self.iterator.__next__

        def records(self):
            return None

    for size in (16, 1024, 4096, 1 << 20):
        good = Messages(size).all
        take(Peer(size, [*good, *good[:1]]), 0, len(good) + 1)
        for bad in ([good[1], good[0]], [good[0], good[0]], [good[0], good[1][:-1]]):
            with pytest.raises(WrongMessage):
                take(Peer(size, bad), 0, 2)
