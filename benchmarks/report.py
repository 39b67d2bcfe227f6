"""Shows results: tables, where another wins and what is ahead of all, JSON."""

from __future__ import annotations

import importlib.metadata
import json
import math
from typing import TYPE_CHECKING, Any

from . import peers

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from .runner import Effort, Result
    from .workloads import Workload

DIGITS = 3
NONE = "-"
UNITS = ((1e6, " M"), (1e3, " k"))


def versions(kinds: Iterable[type[peers.Peer]]) -> dict[str, str]:
    """Tell the versions of what peers are made of."""
    found = {}
    for kind in kinds:
        for distribution in kind.modules:
            try:
                found[distribution] = importlib.metadata.version(distribution)
            except importlib.metadata.PackageNotFoundError:
                found[distribution] = "not installed as a package"
    return dict(sorted(found.items()))


def number(value: float) -> str:
    """Return a value for people: three digits."""
    for unit, name in UNITS:
        if value >= unit:
            return f"{value / unit:.{max(0, DIGITS - len(str(int(value / unit))))}f}{name}"
    return f"{value:.{max(0, DIGITS - len(str(int(value))))}f}"


def cell(result: Result | None) -> str:
    """Return the median, with minimum and maximum, or why there is none."""
    if result is None:
        return NONE
    if result.failure is not None:
        return "timed out" if result.failure == "timed out" else "failed"
    low, high = min(result.values), max(result.values)
    return f"{number(result.median)} ({number(low)}…{number(high)})"


def by_cell(results: Iterable[Result]) -> dict[tuple[str, str], Result]:
    """Return results by peer and case."""
    return {(result.peer, result.case): result for result in results}


def table(workload: Workload, results: list[Result]) -> list[str]:
    """Return the lines of a table in Markdown."""
    cells = by_cell(results)
    cases = list(dict.fromkeys(result.case for result in results))
    names = rows(workload, (result.peer for result in results))
    lines = [["", *cases]]
    lines += [[name, *(cell(cells.get((name, case))) for case in cases)] for name in names]
    better = "more is better" if workload.higher_is_better else "less is better"
    return [f"## {workload.title}: {workload.unit}, {better}", "", *aligned(lines)]


def rows(workload: Workload, names: Iterable[str]) -> list[str]:
    """Return each peer once, in the order of the workload, whichever case it is in first."""
    known = {name: place for place, name in enumerate(workload.peers)}
    return sorted(dict.fromkeys(names), key=lambda name: known.get(name, len(known)))


def aligned(rows: list[list[str]]) -> list[str]:
    """Return rows as a table, the first as its head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return lines


def advantage(workload: Workload, ours: float, theirs: float) -> float:
    """Return how many times better we are."""
    if not workload.higher_is_better:
        ours, theirs = theirs, ours
    if theirs == 0:
        return 1 if ours == 0 else math.inf
    return ours / theirs


def finished(results: list[Result]) -> list[Result]:
    """Return those that have values."""
    return [result for result in results if result.values and result.failure is None]


def counterpart(workload: Workload, results: list[Result], theirs: Result) -> Result | None:
    """Return the best of ours that does the same as another peer."""
    ours = [
        result
        for result in results
        if result.case == theirs.case
        and peers.is_ours(result.peer)
        and (not workload.by_form or result.peer.split()[-1] == theirs.peer.split()[-1])
    ]
    return best(workload, ours)


def best(workload: Workload, results: list[Result]) -> Result | None:
    """Return the best of some, if there is one."""
    choose = max if workload.higher_is_better else min
    return choose(results, key=lambda result: result.median, default=None)


def ratios(workload: Workload, results: list[Result]) -> list[str]:
    """Return a table of how many times better ours is than each other."""
    done = finished(results)
    cells = by_cell(done)
    cases = list(dict.fromkeys(result.case for result in done))
    names = [n for n in rows(workload, (r.peer for r in done)) if not peers.is_ours(n)]
    if not names or len(names) == len({result.peer for result in done}):
        return []

    def ratio(theirs: Result | None) -> str:
        ours = theirs and counterpart(workload, done, theirs)
        if ours is None or theirs is None:
            return NONE
        return f"{advantage(workload, ours.median, theirs.median):.3g}"

    lines = [["the best of ours is … times as good as", *cases]]
    lines += [[name, *(ratio(cells.get((name, case))) for case in cases)] for name in names]
    return aligned(lines)


def losses(workload: Workload, results: list[Result]) -> list[str]:
    """Say where another wins, and by how much: the best other of each case and form."""
    done = finished(results)
    rivals: dict[tuple[str, str], list[Result]] = {}
    for result in done:
        if peers.is_peer(result.peer):
            form = result.peer.split()[-1] if workload.by_form else ""
            rivals.setdefault((result.case, form), []).append(result)
    found = []
    for (case, _), those in rivals.items():
        theirs = best(workload, those)
        ours = theirs and counterpart(workload, done, theirs)
        if ours and theirs and advantage(workload, ours.median, theirs.median) < 1:
            factor = advantage(workload, theirs.median, ours.median)
            found.append(f"{case}: {theirs.peer} beats {ours.peer}, {factor:.3g} times")
    return found


def ahead(workload: Workload, results: list[Result]) -> dict[str, list[str]]:
    """Say by how much we are behind each reference, where we are."""
    done = finished(results)
    found: dict[str, list[str]] = {}
    for theirs in done:
        if not peers.is_reference(theirs.peer):
            continue
        reference = found.setdefault(theirs.peer, [])
        ours = counterpart(workload, done, theirs)
        if ours and advantage(workload, ours.median, theirs.median) < 1:
            factor = advantage(workload, theirs.median, ours.median)
            reference.append(f"{theirs.case}: {ours.peer}, {factor:.3g} times")
    return found


def sentences(workload: Workload, results: list[Result]) -> list[str]:
    """Say who wins where, and what nobody would use but is faster still."""
    lost = losses(workload, results)
    said = ["Where another wins: " + ("; ".join(lost) if lost else "nowhere") + "."]
    for name, where in ahead(workload, results).items():
        said.append(f"Behind the {name.strip('()')}: {'; '.join(where) or 'nowhere'}.")
    return said


def section(workload: Workload, results: list[Result]) -> list[str]:
    """Return all lines about a workload, in Markdown."""
    lines = table(workload, results)
    if compared := ratios(workload, results):
        lines += ["", *compared]
        for sentence in sentences(workload, results):
            lines += ["", sentence]
    return lines


def content(
    about: dict[str, Any], effort: Effort, absent: dict[str, str], results: dict[str, list[Result]],
    workloads: dict[str, Workload],
) -> dict[str, Any]:  # fmt: skip
    """Return all of it for JSON."""
    return {
        "machine": about,
        "repeats": effort.repeats,
        "seconds a turn": effort.seconds,
        "absent": absent,
        "workloads": [
            {
                "name": name,
                "title": workloads[name].title,
                "unit": workloads[name].unit,
                "higher is better": workloads[name].higher_is_better,
                "where another wins": losses(workloads[name], found),
                "behind references": ahead(workloads[name], found),
                "results": [described(result) for result in found],
            }
            for name, found in results.items()
        ],
    }


def described(result: Result) -> dict[str, Any]:
    """Return a cell for JSON."""
    values: dict[str, Any] = {"peer": result.peer, "case": result.case}
    if result.failure is not None:
        return {**values, "failure": result.failure}
    low, high = min(result.values), max(result.values)
    return {**values, "median": result.median, "min": low, "max": high, "values": result.values}


def write_json(path: Path, what: dict[str, Any]) -> None:
    """Write it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(what, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
