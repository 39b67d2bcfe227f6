"""One picture per workload: bars on a log scale, each with its value, as SVG."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import peers, report

if TYPE_CHECKING:
    from pathlib import Path

OURS_COLOURS = ("#0b6e4f", "#3aa17e", "#7cc6a8", "#b5e0cf", "#1f8a70", "#58b392", "#93d3b8")
COLOURS = (
    "#4c6a92", "#d17a45", "#8d6bb0", "#b8473d", "#5f9bbf", "#c2a23a", "#7f7f7f",
    "#a05d7c", "#6e8b3d", "#3f4f6b", "#e0a484", "#9e9ac8", "#bdbdbd", "#c7b299",
)  # fmt: skip
ROW = 0.17  # inches of height that a bar has


def draw(folder: Path, what: dict[str, Any]) -> str:
    """Draw all workloads; return where they are, or why they are not."""
    try:
        import matplotlib as mpl  # noqa: PLC0415 (optional)
    except ImportError as error:
        return f"no pictures: {error}"
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "memenpsf"  # the same numbers make the same file
    folder.mkdir(parents=True, exist_ok=True)
    for workload in what["workloads"]:
        if any("median" in result for result in workload["results"]):
            draw_one(folder / f"{workload['name']}.svg", workload, what["machine"])
    return f"pictures: {folder}"


def draw_one(path: Path, workload: dict[str, Any], machine: dict[str, Any]) -> None:
    """Draw one panel per case, its peers below each other, the same order in all."""
    from matplotlib import pyplot as plt  # noqa: PLC0415 (optional)

    done = [result for result in workload["results"] if "median" in result]
    names = list(dict.fromkeys(result["peer"] for result in done))
    cases = list(dict.fromkeys(result["case"] for result in done))
    colours = colours_of(names)
    columns = min(4, len(cases))
    rows = -(-len(cases) // columns)
    figure, panels = plt.subplots(
        rows,
        columns,
        figsize=(2.2 + 2.6 * columns, 0.9 + rows * (0.6 + ROW * len(names))),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for panel in panels.flat[len(cases) :]:
        panel.set_visible(False)
    for case, panel in zip(cases, panels.flat, strict=False):
        cells = {result["peer"]: result for result in done if result["case"] == case}
        draw_panel(panel, case, names, cells, colours)
    better = "more is better" if workload["higher is better"] else "less is better"
    figure.suptitle(f"{workload['title']}: {workload['unit']}, {better}", fontsize=11)
    figure.supxlabel(
        f"{machine['processor']}, {machine['processors']} CPUs; {machine['system']}; "
        f"{machine['python']}; median, the thin line from minimum to maximum; log scale",
        fontsize=7,
    )
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def draw_panel(
    panel: Any, case: str, names: list[str], cells: dict[str, Any], colours: dict[str, str]
) -> None:
    """Draw the bars of one case."""
    panel.set_title(case, fontsize=9)
    panel.set_xscale("log")
    for row, name in enumerate(names):
        if (result := cells.get(name)) is None:
            continue
        median = result["median"]
        if median:
            panel.barh(row, median, color=colours[name], height=0.8)
            spread = max(result["min"], median / 1000), result["max"]
            panel.plot(spread, [row, row], color="black", linewidth=0.7)
        right = max(median, result["max"])
        panel.annotate(
            report.number(median), (right, row) if right else (0, row), xytext=(3, 0),
            xycoords="data" if right else panel.get_yaxis_transform(),
            textcoords="offset points", va="center", fontsize=6.5,
        )  # fmt: skip
    # A logarithm has no place for nothing: such bars have only their label.
    medians = [result["median"] for result in cells.values() if result["median"]] or [1.0]
    panel.set_xlim(min(medians) / 3, max(medians) * 8)
    panel.set_yticks(range(len(names)), names, fontsize=7.5)
    panel.set_ylim(len(names) - 0.4, -0.6)
    panel.tick_params(axis="x", labelsize=6.5)
    panel.minorticks_off()
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


def colours_of(names: list[str]) -> dict[str, str]:
    """Give ours shades of one colour, and each other one of its own."""
    ours = [name for name in names if peers.is_ours(name)]
    others = [name for name in names if name not in ours]
    return {name: OURS_COLOURS[i % len(OURS_COLOURS)] for i, name in enumerate(ours)} | {
        name: COLOURS[i % len(COLOURS)] for i, name in enumerate(others)
    }
