"""The benchmark suite: with tiny amounts, for peers that need no installation; and what it refuses."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(REPOSITORY)
    from benchmarks import records, report, workloads
    from benchmarks.messages import Messages, WrongMessage
    from benchmarks.roles import take, take_batches
    from benchmarks.runner import Result
TINY = ("--repeats", "2", "--seconds", "0.002", "--timeout", "5")
BUILT_IN = ("memenpsf", "mp.", "Unix", "os.pipe")


def bench(tmp_path, *arguments):
    """Run the suite as its user does; return its status, what it printed, and its JSON."""
    results = tmp_path / "results.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *TINY, "--json", str(results), *map(str, arguments)],
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


def test_the_other_workloads_run_without_anything_installed(tmp_path):
    others = "batches,clients,cpu,trio,large,handover,connect,import"
    done, content = bench(
        tmp_path, "--workloads", others, "--peers", "Unix", "--repeats", "1", "--cases",
        "64 records,10 clients,waiting,both in Trio,64 KiB,round trip,first record,import",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for workload in content["workloads"]:
        assert workload["results"], workload["name"]
        assert any(peer.startswith("memenpsf") for peer, _ in cells(content, workload["name"]))
        for result in workload["results"]:
            assert result["values"][0] >= 0
    assert ("memenpsf numpy", "64 records") in cells(content, "batches")
    assert ("memenpsf loan, borrow", "64 KiB") in cells(content, "large")


def test_a_peer_that_cannot_be_imported_is_absent(tmp_path):
    folder = tmp_path / "pictures"
    done, content = bench(
        tmp_path, "--workloads", "rate", "--cases", "64 B", "--peers", "tests.no_such:Peer",
        "--pictures", folder,
    )  # fmt: skip
    assert done.returncode == 0
    if importlib.util.find_spec("matplotlib"):
        text = (folder / "rate.svg").read_text()
        for word in ("memenpsf bytes", "64 B", "One way, one by one: messages/s, more is better"):
            assert f"<!-- {word}" in text
    else:
        assert "no pictures: " in done.stdout
    assert "absent: tests.no_such:Peer: No module named" in done.stdout
    assert content["absent"].keys() == {"tests.no_such:Peer"}
    assert {peer.split()[0] for peer, _ in cells(content, "rate")} == {"memenpsf"}


def test_whoever_loses_reorders_repeats_garbles_or_stops_is_found_out(tmp_path):
    names = ("Sound", "Loses", "Swaps", "Repeats", "Garbles", "Stops", "Dies")
    done, content = bench(
        tmp_path, "--workloads", "rate", "--cases", "64 B", "--timeout", "1.5",
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


class Given:
    """A peer that gives what it is told to."""

    form = "tuples"

    def __init__(self, size, messages):
        self.size, self.iterator = size, iter(messages)
        self.recv = self.iterator.__next__

    def records(self):
        return None

    def recv_batch(self, most):
        return next(self.iterator)

    def prepare(self, *, streaming):
        pass


@pytest.mark.parametrize("size", [16, 1024, 4096, 1 << 20])
def test_a_message_is_compared_with_the_one_that_had_to_come(size):
    good = Messages(size).all
    take(Given(size, [*good, *good[:1]]), 0, len(good) + 1)
    for bad in ([good[1], good[0]], [good[0], good[0]], [good[0], good[1][:-1]]):
        with pytest.raises(WrongMessage):
            take(Given(size, bad), 0, 2)


@pytest.mark.parametrize("form", ["tuples", "bytes", "numpy"])
def test_batches_may_be_cut_anywhere_but_nothing_may_be_missing_or_moved(form):
    everything = records.form(form).all
    peer = Given(64, [everything[-64:-10], everything[-10:], everything[:64]])
    peer.form = form
    take_batches(peer, records.WRAP // 64 - 1, 2, batch=64)
    for bad in (everything[1:65], everything[63::-1]):
        peer = Given(64, [bad])
        peer.form = form
        with pytest.raises(records.WrongRecords):
            take_batches(peer, 0, 1, batch=64)


def results(**medians):
    return [
        Result("rate", "64 B", name.replace("_", " "), [value, value * 2, value / 2])
        for name, value in medians.items()
    ]


def test_the_report_says_where_another_wins():
    rate, trip = workloads.WORKLOADS["rate"], workloads.WORKLOADS["roundtrip"]
    found = results(memenpsf_bytes=1e6, memenpsf_fixed=2e6, pyzmq=3e6, pynng=5e3)
    assert report.losses(rate, found) == ["64 B: pyzmq beats memenpsf fixed, 1.5 times"]
    assert report.losses(trip, found) == ["64 B: pynng beats memenpsf bytes, 200 times"]
    assert report.losses(rate, found[:2]) == report.losses(rate, found[1:2] + found[3:]) == []
    assert report.ratios(rate, found)[2:] == [
        "| pyzmq                                  | 0.667 |",
        "| pynng                                  | 400   |",
    ]
    failed = [*found, Result("rate", "64 B", "mp.Queue", [], "timed out")]
    assert report.losses(rate, failed) == report.losses(rate, found)
    assert "| mp.Queue       | timed out              |" in report.table(rate, failed)
    assert "| pyzmq          | 3.00 M (1.50 M…6.00 M) |" in report.table(rate, failed)


def test_what_costs_nothing_is_compared_without_dividing_by_it():
    cpu = workloads.WORKLOADS["cpu"]
    nothing, something = results(memenpsf=0.0)[0], results(pyzmq=1.0)[0]
    assert report.ratios(cpu, [nothing, something])[2].split()[3] == "inf"
    assert report.losses(cpu, [nothing, something]) == []
    nothing.peer, something.peer = something.peer, nothing.peer
    assert report.losses(cpu, [nothing, something]) == ["64 B: pyzmq beats memenpsf, inf times"]
