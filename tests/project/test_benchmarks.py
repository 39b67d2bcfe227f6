"""The benchmark suite: with tiny amounts, for peers that need no installation; and what it refuses."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

REPOSITORY = Path(__file__).parent.parent.parent

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(REPOSITORY)
    from benchmarks import baselines, drawing, page, peers, records, report, workloads
    from benchmarks.messages import Messages, WrongMessage
    from benchmarks.roles import take, take_batches
    from benchmarks.runner import Effort, Result
TINY = ("--repeats", "2", "--seconds", "0.002", "--timeout", "5")
BUILT_IN = ("memenpsf", "mp.", "Unix", "os.pipe")
COMPILER = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


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
        "--cases", "64 B,64 KiB,blocking,sleeping,busy",
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
    trips = cells(content, "roundtrip")
    assert ("os.pipe buffered", "blocking") not in trips
    assert ("memenpsf fixed", "sleeping") in trips
    assert [case for peer, case in trips if peer == "memenpsf busy"] == ["busy"]
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
    done, content = bench(
        tmp_path, "--workloads", "rate", "--cases", "64 B", "--peers", "tests.no_such:Peer"
    )
    assert done.returncode == 0
    assert "absent: tests.no_such:Peer: No module named" in done.stdout
    assert content["absent"].keys() == {"tests.no_such:Peer"}
    assert {peer.split()[0] for peer, _ in cells(content, "rate")} == {"memenpsf"}


@COMPILER
def test_what_c_alone_takes_is_measured_in_the_workloads_where_that_makes_sense(tmp_path):
    done, content = bench(
        tmp_path, "--workloads", "rate,roundtrip,busy-rate,busy-roundtrip,cpu,connect", "--peers",
        "(", "--repeats", "1", "--cases", "16 B,64 B,16 KiB,1 MiB,blocking,sleeping,busy,waiting",
    )  # fmt: skip
    assert not content["absent"], done.stderr
    found = {
        (workload["name"], cell["peer"], cell["case"]): cell
        for workload in content["workloads"]
        for cell in workload["results"]
        if cell["peer"].startswith("(")
    }
    ring, trips = "(bare ring in C)", "(raw socket in C)"
    assert found.keys() == {
        *(("rate", ring, size) for size in ("16 B", "64 B", "16 KiB", "1 MiB")),
        ("roundtrip", ring, "busy"),
        *(("roundtrip", trips, case) for case in ("blocking", "sleeping")),
    }
    for cell in found.values():
        assert cell.get("failure") is None
        assert cell["median"] > 0
    assert "Behind the bare ring in C: " in done.stdout


@COMPILER
def test_the_ring_in_c_goes_round_and_refuses_other_sizes():
    c = baselines.load("ring")
    memory = os.memfd_create("ring")
    try:
        os.ftruncate(memory, c.room(24, 4))
        source, sink = (c.Ring(memory, 0, 24, 4) for _ in range(2))
        messages = [bytes([number]) * 24 for number in range(10)]
        got = []
        for start in range(0, 10, 4):
            for message in messages[start : start + 4]:
                assert sink.push(message) is None
            got.append(source.pop())
            got += [next(source) for _ in messages[start + 1 : start + 4]]
        assert got == messages
        for wrong in (bytes(23), bytes(25), "a" * 24):
            with pytest.raises(ValueError, match="a message is 24 bytes"):
                sink.push(wrong)
    finally:
        os.close(memory)


@COMPILER
def test_round_trips_in_c_compare_what_comes():
    c = baselines.load("trips")
    good, bad = [b"1" * 64, b"2" * 64], [b"1" * 64, b"3" * 64]
    here, there = socket.socketpair()
    with here, there:
        for message in bad:  # the answers, there already
            there.sendall(message)
        with pytest.raises(ValueError, match="something else came than message 1"):
            c.ask(here.fileno(), good)
        with pytest.raises(ValueError, match="something else came than message 1"):
            c.answer(there.fileno(), bad)
        assert here.recv(65) == bad[0]  # the first was right, and answered
        for message in good:
            there.sendall(message)
        durations = c.ask(here.fileno(), good)
        assert len(durations) == 2
        assert min(durations) > 0
        with pytest.raises(ValueError, match="up to 65536"):
            c.ask(here.fileno(), [bytes(65537)])
        there.close()
        with pytest.raises(OSError):
            c.ask(here.fileno(), good)


def test_without_a_compiler_there_are_no_peers_in_c(tmp_path, monkeypatch):
    monkeypatch.setattr(baselines, "BUILT", tmp_path / "built")
    for compiler, reason in (("no-such-cc", "cannot be compiled"), ("false", "does not compile")):
        monkeypatch.setenv("CC", compiler)
        for name, module in (("(bare ring in C)", "ring"), ("(raw socket in C)", "socket")):
            monkeypatch.delitem(sys.modules, f"benchmarks.peers.bare_{module}", raising=False)
            with pytest.raises(peers.Absent, match=reason):
                peers.load(name)
    assert list((tmp_path / "built").iterdir()) == []


def test_whoever_loses_reorders_repeats_garbles_or_stops_is_found_out(tmp_path):
    names = ("Sound", "Loses", "Swaps", "Repeats", "Garbles", "Stops", "Dies")
    done, content = bench(
        tmp_path, "--workloads", "rate", "--cases", "64 B", "--timeout", "1.5",
        "--peers", ",".join(f"tests.kit.broken_benchmark_peers:{name}" for name in names),
    )  # fmt: skip
    assert done.returncode == 1
    found = cells(content, "rate")
    failures = {
        name: found[f"tests.kit.broken_benchmark_peers:{name}", "64 B"].get("failure")
        for name in names
    }
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


def test_references_have_a_sentence_of_their_own():
    rate = workloads.WORKLOADS["rate"]
    found = [
        *results(memenpsf_fixed=2e6, pyzmq=1e6),
        Result("rate", "64 B", "(bare ring in C)", [5e6]),
        Result("rate", "64 B", "(raw socket in C)", [1e6]),
    ]
    assert report.losses(rate, found) == []
    assert report.ahead(rate, found) == {
        "(bare ring in C)": ["64 B: memenpsf fixed, 2.5 times"],
        "(raw socket in C)": [],
    }
    assert report.sentences(rate, found) == [
        "Where another wins: nowhere.",
        "Behind the bare ring in C: 64 B: memenpsf fixed, 2.5 times.",
        "Behind the raw socket in C: nowhere.",
    ]


def made_up():
    """Return results as JSON has them, of a run that never was."""
    found = {
        "rate": [
            *results(pyzmq=3e6, memenpsf_fixed=2e6),
            Result("rate", "64 B", "(bare ring in C)", [5e6]),
            Result("rate", "64 B", "<other>", [], "timed out"),
        ],
        "cpu": results(memenpsf_fixed=0.0, pyzmq=0.5),
    }
    effort = Effort(3, 0.2, 8)
    about = {
        "processor": "P", "processors": 2, "system": "Linux 6", "python": "CPython 3",
        "load before": 0.1, "versions": {"pyzmq": "1"},
    }  # fmt: skip
    return report.content(about, effort, {"pynng": "no"}, found, workloads.WORKLOADS)


def test_a_page_holds_what_is_in_the_json_and_keeps_its_own_text(tmp_path):
    source, path = tmp_path / "results.json", tmp_path / "page.md"
    report.write_json(source, made_up())
    path.write_text(f"before\n\n{page.BEGIN}\nold\n{page.END}\n\nafter\n")
    written = []
    for _ in range(2):
        done, content = bench(tmp_path, "--from", source, "--page", path)
        assert done.returncode == 1  # as a cell has failed
        assert content == made_up()
        pictures = {p.name: p.read_bytes() for p in (tmp_path / "pictures").iterdir()}
        written.append((path.read_text(), pictures))
    assert written[0] == written[1]
    text, pictures = written[0]
    assert text.startswith(f"before\n\n{page.BEGIN}\n")
    assert text.endswith(f"{page.END}\n\nafter\n")
    assert "old" not in text
    for line in (
        "### One way, one by one: messages/s, more is better",
        "| memenpsf fixed   | 2.00 M (1.00 M…4.00 M) |",
        "Where another wins: 64 B: pyzmq beats memenpsf fixed, 1.5 times.",
        "Behind the bare ring in C: 64 B: memenpsf fixed, 2.5 times.",
        "![One way, one by one](pictures/rate.svg)",
        "Absent: pynng: no.",
        "Versions: pyzmq 1.",
    ):
        assert line in text.splitlines()
    assert pictures.keys() == {"rate.svg", "cpu.svg"}
    assert not list(tmp_path.glob("*.new"))


def test_a_page_without_marks_or_results_that_are_none_are_left_alone(tmp_path):
    source, path = tmp_path / "other.json", tmp_path / "page.md"
    for content, text in (("{}", page.BEGIN + page.END), (json.dumps(made_up()), page.END)):
        source.write_text(content)
        path.write_text(text)
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks", "--from", source, "--page", path],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *sys.path])},
            capture_output=True,
            text=True,
            timeout=55,
            check=False,
        )
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert path.read_text() == text


def test_the_page_of_the_suite_can_be_written():
    before, _ = page.parts(REPOSITORY / "benchmarks" / "README.md")
    for workload in workloads.WORKLOADS:
        assert f"`{workload}`" in before


def test_pictures_are_well_formed_labelled_and_tell_failed_from_nothing():
    what = made_up()
    rate, cpu = (drawing.picture(workload, what) for workload in what["workloads"])
    texts = [node.text for node in ET.fromstring(rate).iter("{http://www.w3.org/2000/svg}text")]
    assert texts[0] == "One way, one by one: messages/s, more is better"
    names = ["memenpsf fixed", "pyzmq", "(bare ring in C)", "<other>"]
    assert [text for text in texts if text in names] == names
    assert {"64 B", "2.00 M", "3.00 M", "5.00 M", "failed", "1 M"} <= set(texts)
    assert "P, 2 CPUs; Linux 6; CPython 3" in texts
    texts = [node.text for node in ET.fromstring(cpu).iter("{http://www.w3.org/2000/svg}text")]
    assert "0.00" in texts
    assert "failed" not in texts
