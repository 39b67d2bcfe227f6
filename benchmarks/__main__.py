"""The command line of the benchmark suite."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from . import drawing, page, report
from .machine import machine
from .peers import OURS, is_ours
from .runner import Effort, Result, Runner, imports
from .workloads import WORKLOADS, Workload

REPEATS = 5
HERE = Path(__file__).parent


def words(text: str) -> list[str]:
    """Return what stands between commas."""
    return [word for word in text.split(",") if word]


def workloads(text: str) -> list[str]:
    """Return names of workloads."""
    names = words(text)
    if unknown := set(names) - set(WORKLOADS):
        raise argparse.ArgumentTypeError(
            f"there is no {', '.join(sorted(unknown))}; there are {', '.join(WORKLOADS)}"
        )
    return names


def repetitions(text: str) -> int:
    """Return a number of turns."""
    if (value := int(text)) < 1:
        raise ValueError(text)
    return value


def duration(text: str) -> float:
    """Return a number of seconds."""
    if not 0 < (value := float(text)) <= 600:
        raise ValueError(text)
    return value


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Records between two processes, side by side."
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="fewer cases and short turns: under two minutes")
    add("--list", action="store_true", help="tell the workloads and their peers, and end")
    add("--workloads", type=workloads, default=list(WORKLOADS), metavar="NAME,NAME")
    add("--cases", type=words, metavar="LABEL,LABEL", help="only these columns")
    add(
        "--peers",
        type=words,
        metavar="NAME,NAME",
        help=f"those that begin so, beside {OURS}; or module:Class of your own",
    )
    add("--repeats", type=repetitions, default=REPEATS, metavar="N", help="turns of each")
    add("--seconds", type=duration, metavar="S", help="length of a turn")
    add("--timeout", type=duration, metavar="S", help="longest turn: 20, or quick 8")
    add("--no-pin", action="store_true", help="let the scheduler place both processes")
    add("--json", type=Path, metavar="FILE", help="write the results there as well")
    add("--pictures", type=Path, metavar="FOLDER", help="draw a picture per workload there")
    add("--page", type=Path, metavar="FILE", help="put tables there, and pictures beside it")
    add("--from", type=Path, metavar="FILE", dest="source", help="measure nothing: use this JSON")
    options = parser.parse_args()
    options.timeout = options.timeout or (8.0 if options.quick else 20.0)
    options.seconds = options.seconds or (0.03 if options.quick else 0.2)
    return options


def chosen(names: tuple[str, ...], wanted: list[str] | None) -> list[str]:
    """Return the peers that were asked for, ours among them, and those from elsewhere."""
    if wanted is None:
        return list(names)
    own = [name for name in wanted if ":" in name]
    return [n for n in names if is_ours(n) or n.startswith(tuple(wanted))] + own


def measured(runner: Runner, workload: Workload, options: argparse.Namespace) -> list[Result]:
    """Measure all cases of a workload."""
    names = chosen(workload.peers, options.peers)
    runner.keep_only(workload.group)
    if workload.name == "import":
        return imports(workload, names, runner.effort)
    cases = [
        case
        for case in workload.cases
        if (case.label in options.cases if options.cases else case.quick or not options.quick)
    ]
    results = []
    for case in cases:
        results += runner.measure(workload, case, names)
    return results


def show(workload: Workload, results: list[Result]) -> None:
    """Print a workload's tables."""
    print("\n".join(report.section(workload, results)), flush=True)


def everything(options: argparse.Namespace) -> dict[str, Any]:
    """Measure what was asked for, and print it meanwhile; return it as it is for JSON."""
    effort = Effort(options.repeats, options.seconds, options.timeout, not options.no_pin)
    about = machine()
    print(", ".join(f"{key}: {value}" for key, value in about.items()))
    print(f"{effort.repeats} turns of {effort.seconds:g} s each, interleaved: median (min…max)\n")
    started = time.monotonic()
    results: dict[str, list[Result]] = {}
    with (
        tempfile.TemporaryDirectory(prefix="bench") as folder,
        Runner(folder, effort, lambda line: print(line, file=sys.stderr, flush=True)) as runner,
    ):
        for name in options.workloads:
            begun = time.monotonic()
            if found := measured(runner, WORKLOADS[name], options):
                results[name] = found
                show(WORKLOADS[name], found)
                print(f"\n({name}: {time.monotonic() - begun:.0f} s)\n", flush=True)
        about["versions"] = report.versions(pair.kind for pair in runner.pairs.values())
        absent = runner.absent
    print("versions: " + ", ".join(f"{k} {v}" for k, v in about["versions"].items()))
    for name, reason in absent.items():
        print(f"absent: {name}: {reason}")
    print(f"took {time.monotonic() - started:.0f} s")
    return report.content(about, effort, absent, results, WORKLOADS)


def main() -> int:
    """Measure what was asked for, or read it; return 1 if something failed."""
    options = arguments()
    if options.list:
        for workload in WORKLOADS.values():
            print(f"{workload.name}: {workload.title}")
            print(f"    peers: {', '.join(workload.peers)}")
            print(f"    cases: {', '.join(case.label for case in workload.cases)}")
        return 0
    try:
        if options.page is not None:
            page.parts(options.page)  # before all the measuring
        what = everything(options) if options.source is None else page.read(options.source)
    except page.NoPage as reason:
        print(reason, file=sys.stderr)
        return 2
    results = page.results_of(what)
    if options.source is not None:
        for name, found in results.items():
            show(WORKLOADS[name], found)
            print()
    if options.json is not None:
        report.write_json(options.json, what)
    if options.pictures is not None:
        print(f"{len(drawing.draw(options.pictures, what))} pictures: {options.pictures}")
    if options.page is not None:
        page.write(options.page, what)
    return int(any(result.failure for found in results.values() for result in found))


if __name__ == "__main__":
    sys.exit(main())
