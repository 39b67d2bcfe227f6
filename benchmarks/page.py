"""Writes results into a page, between two marks: from JSON alone, so that the two cannot differ."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from . import drawing, report
from .runner import Result
from .workloads import WORKLOADS

if TYPE_CHECKING:
    from pathlib import Path

BEGIN, END = "<!-- begin of results -->", "<!-- end of results -->"
PICTURES = "pictures"  # the folder beside the page


class NoPage(Exception):
    """The page or the results cannot be used; the reason is for people."""


def read(path: Path) -> dict[str, Any]:
    """Return results that were written as JSON."""
    try:
        what: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        results_of(what)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NoPage(f"{path} has no results: {type(error).__name__}: {error}") from error
    return what


def results_of(what: dict[str, Any]) -> dict[str, list[Result]]:
    """Return the cells by the name of a workload, of which all must be known."""
    found = {}
    for workload in what["workloads"]:
        name = WORKLOADS[workload["name"]].name
        found[name] = [
            Result(name, cell["case"], cell["peer"], cell.get("values", []), cell.get("failure"))
            for cell in workload["results"]
        ]
    return found


def parts(path: Path) -> tuple[str, str]:
    """Return what stands before and after the results."""
    try:
        before, begin, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    except OSError as error:
        raise NoPage(f"{path}: {error.strerror}") from error
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise NoPage(f"{path} has no {BEGIN} with an {END} behind it")
    return before, after


def write(path: Path, what: dict[str, Any]) -> None:
    """Put tables into the page, and pictures beside it."""
    before, after = parts(path)
    drawn = drawing.draw(path.parent / PICTURES, what)
    lines = [*about(what)]
    for name, results in results_of(what).items():
        heading, *rest = report.section(WORKLOADS[name], results)
        lines += ["", f"#{heading}", *rest]  # one level down: the page has headings of its own
        if picture := next((p for p in drawn if p.stem == name), None):
            lines += ["", f"![{WORKLOADS[name].title}]({PICTURES}/{picture.name})"]
    # Whole or not at all: it is a page that somebody wrote the rest of.
    new = path.with_name(path.name + ".new")
    text = "\n".join([before + BEGIN, "", *lines, "", END + after])
    new.write_text(text, encoding="utf-8")
    os.replace(new, path)  # noqa: PTH105 (says what it does)


def about(what: dict[str, Any]) -> list[str]:
    """Tell on what was measured, how long, and who was not there."""
    where = what["machine"]
    facts = "; ".join(f"{key}: {value}" for key, value in where.items() if key != "versions")
    lines = [
        f"{facts[0].upper()}{facts[1:]}.",
        f"{what['repeats']} turns of {what['seconds a turn']:g} s each, median (min…max).",
    ]
    if versions := where.get("versions"):
        lines.append("Versions: " + ", ".join(f"{k} {v}" for k, v in versions.items()) + ".")
    lines += [f"Absent: {name}: {reason}." for name, reason in what["absent"].items()]
    return [part for line in lines for part in (line, "")][:-1]
