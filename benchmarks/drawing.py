"""One picture per workload: bars on a log scale, each with its value, as SVG.

Written by hand, so that a picture is a few kilobytes, needs nothing installed, and the same
numbers make the same file.  It brings its own light ground: where it is shown on a dark page, a
picture cannot know that, as only the page is told what the reader likes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

from . import peers, report
from .workloads import WORKLOADS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Pixels
PANEL, GAP, MARGIN = 225, 12, 14
ROW, BAR = 17, 11
TITLE, HEAD, AXIS, FOOT = 44, 22, 22, 36
LETTER = 7  # of a label at most: fonts differ, and ours are bold
LABEL = 58  # room for a value behind the longest bar

PER_ROW = 4  # panels
COLOURS = {"ours": "#0b6e4f", "other": "#8aa0b8", "reference": "#ffffff"}
LEGEND = {"ours": "memenpsf", "other": "others", "reference": "(references)"}
STYLE = (
    "text{font:11px system-ui,sans-serif;fill:#222}"
    ".title{font-size:15px;font-weight:600}.case{font-weight:600}"
    ".small{font-size:10px;fill:#555}.us{font-weight:600}.end{text-anchor:end}"
    ".mid{text-anchor:middle}"
    ".grid{stroke:#ddd}.spread{stroke:#222}"
    + "".join(f".{kind}{{fill:{colour}}}" for kind, colour in COLOURS.items())
    + ".reference{stroke:#555;stroke-dasharray:3 2}"
)


def draw(folder: Path, what: dict[str, Any]) -> list[Path]:
    """Draw all workloads that have values; return where they are."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for workload in what["workloads"]:
        if any(result.get("median") for result in workload["results"]):
            path = folder / f"{workload['name']}.svg"
            path.write_text(picture(workload, what), encoding="utf-8")
            drawn.append(path)
    return drawn


def picture(workload: dict[str, Any], what: dict[str, Any]) -> str:
    """Return one panel per case, its peers below each other, the same order in all."""
    results = workload["results"]
    names = report.rows(WORKLOADS[workload["name"]], (result["peer"] for result in results))
    cases = list(dict.fromkeys(result["case"] for result in results))
    left = MARGIN + round(LETTER * max(map(len, names))) + 8
    across = min(PER_ROW, len(cases))
    down = -(-len(cases) // across)
    tall = HEAD + ROW * len(names) + AXIS
    # Not so narrow that title and foot do not fit.
    width = max(left + across * (PANEL + GAP) - GAP + MARGIN, 620)
    height = TITLE + down * tall + FOOT
    extent = f'width="{width}" height="{height}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {extent} viewBox="0 0 {width} {height}">',
        f"<title>{escape(heading(workload))}</title>",
        f"<style>{STYLE}</style>",
        f'<rect {extent} rx="8" fill="#fff"/>',
        text(MARGIN, 27, heading(workload), "title"),
    ]
    for place, case in enumerate(cases):
        top = TITLE + place // across * tall
        if place % across == 0:
            lines += labels(names, left - 8, top + HEAD)
        cells = {result["peer"]: result for result in results if result["case"] == case}
        lines += panel(case, names, cells, left + place % across * (PANEL + GAP), top)
    lines += foot(what, height - FOOT + 8)
    return "\n".join([*lines, "</svg>", ""])


def heading(workload: dict[str, Any]) -> str:
    """Tell what is measured, and how to read it."""
    better = "more is better" if workload["higher is better"] else "less is better"
    return f"{workload['title']}: {workload['unit']}, {better}"


def labels(names: list[str], right: int, top: int) -> Iterator[str]:
    """Write who is who."""
    for row, name in enumerate(names):
        kind = "end us" if peers.is_ours(name) else "end"
        yield text(right, top + row * ROW + BAR + 1, name, kind)


def panel(
    case: str, names: list[str], cells: dict[str, dict[str, Any]], left: int, top: int
) -> Iterator[str]:
    """Draw the bars of one case."""
    yield text(left, top + 12, case, "case")
    low, high = scale([result for result in cells.values() if result.get("median")])
    bottom = top + HEAD + ROW * len(names)

    def at(value: float) -> float:
        part = (math.log10(max(value, low)) - math.log10(low)) / math.log10(high / low)
        return round(left + part * (PANEL - LABEL), 1)

    decades = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
    labelled = max(1, -(-len(decades) // 4))
    for count, decade in enumerate(decades):
        x = at(10.0**decade)
        yield f'<path class="grid" d="M{x} {top + HEAD - 4}V{bottom}"/>'
        if count % labelled == 0:
            yield text(x, bottom + 12, tick(decade), "small mid")
    for row, name in enumerate(names):
        y = top + HEAD + row * ROW
        result = cells.get(name)
        if result is None or "median" not in result:
            # Nothing was tried, or it went wrong: not a bar of no length.
            yield text(left + 3, y + BAR - 1, "-" if result is None else "failed", "small")
            continue
        end = at(result["median"])
        yield (
            f'<rect class="{kind_of(name)}" x="{left}" y="{y}" '
            f'width="{max(1, round(end - left, 1))}" height="{BAR}"/>'
        )
        least, most = at(result["min"]), at(result["max"])
        if most > least:
            yield f'<path class="spread" d="M{least} {y + BAR / 2}H{most}"/>'
        yield text(max(end, most) + 4, y + BAR - 1, report.number(result["median"]))


def scale(results: list[dict[str, Any]]) -> tuple[float, float]:
    """Return where an axis begins and ends: below the least, as a bar has to have a length."""
    if not results:
        return 0.1, 1
    low = 10 ** math.floor(math.log10(min(result["median"] for result in results) / 1.5))
    return low, max(*(result["max"] for result in results), low * 10)


def tick(decade: int) -> str:
    """Return a power of ten for people."""
    if decade < 0:
        return f"{10.0**decade:g}"
    for power, name in ((9, " G"), (6, " M"), (3, " k")):
        if decade >= power:
            return f"{10 ** (decade - power)}{name}"
    return f"{10**decade}"


def foot(what: dict[str, Any], top: int) -> Iterator[str]:
    """Tell which colour is whose, and on what it was measured."""
    x = MARGIN
    for kind, name in LEGEND.items():
        yield f'<rect class="{kind}" x="{x}" y="{top - 8}" width="14" height="9"/>'
        yield text(x + 19, top, name, "small")
        x += 32 + round(LETTER * len(name))
    yield text(
        x + 6,
        top,
        "median of the turns; line: minimum to maximum; each panel has a log scale of its own",
        "small",
    )
    about = what["machine"]
    where = (
        f"{about['processor']}, {about['processors']} CPUs; {about['system']}; {about['python']}"
    )
    yield text(MARGIN, top + 16, where, "small")


def kind_of(name: str) -> str:
    """Return whose bar this is."""
    if peers.is_ours(name):
        return "ours"
    return "reference" if peers.is_reference(name) else "other"


def text(x: float, y: float, words: str, kind: str = "") -> str:
    """Write something."""
    sort = f' class="{kind}"' if kind else ""
    return f'<text x="{round(x, 1)}" y="{y}"{sort}>{escape(words)}</text>'
