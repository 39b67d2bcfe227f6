"""Counts what the tests have run, prints it per file, and fails below the gates: `make coverage`.

    python gates.py  (in the directory of the covered copy)

C: gcov's own counts, of the core compiled without optimisation.  The core is compiled into up to
three extensions, from the same sources by the same flags, so the counts of all of them end in one
file.  A line is covered if it ran in any; a branch is one way out of a condition (each side of && and
|| has two) and is covered if it was taken in any; of an inline function in a header once for each
source that has it.  Not counted: branches of Py_VISIT and Py_CLEAR, which are in Python's macros,
and lines marked GCOV_EXCL_LINE, which must say why they cannot run.

Python: statements and branches together, by coverage.py.
"""

import collections
import json
import re
import subprocess
import sys
from pathlib import Path

LINES, BRANCHES, PYTHON = 100.0, 95.0, 95.0  # per cent
CORE = "ipcqueue/core/"
NOT_OURS = re.compile(r"\bPy_(VISIT|CLEAR)\(")
EXCLUDED = "GCOV_EXCL_LINE"


def percent(done, of):
    return 100.0 * done / of if of else 100.0


def shortened(numbers):
    """1, 2, 3, 7 as "1-3 7"."""
    runs = []
    for n in sorted(numbers):
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return " ".join(f"{a}-{b}" if a != b else f"{a}" for a, b in runs)


def counts():
    """Return how often each line, and each branch, of the core ran."""
    lines, branches = collections.Counter(), collections.Counter()
    data = sorted(map(str, Path("build").rglob("*.gcda")))
    command = ["gcov", "--json-format", "--stdout", "--branch-probabilities", *data]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    for report in map(json.loads, output.splitlines()):
        for file in report["files"]:
            if not file["file"].startswith(CORE):
                continue
            for line in file["lines"]:
                where = file["file"], line["line_number"]
                lines[where] += line["count"]
                function = line.get("function_name")
                for i, branch in enumerate(line["branches"]):
                    branches[*where, function, i] += branch["count"]
    return lines, branches


def of_the_core():
    lines, branches = counts()
    totals = [0, 0, 0, 0]
    for source in sorted(Path(CORE).rglob("*.[ch]")):
        text = source.read_text().splitlines()
        numbers = {n for file, n in lines if file == str(source)}
        numbers -= {n for n in numbers if EXCLUDED in text[n - 1]}
        missed = {n for n in numbers if not lines[str(source), n]}
        ways = {
            way: count
            for way, count in branches.items()
            if way[0] == str(source) and way[1] in numbers and not NOT_OURS.search(text[way[1] - 1])
        }
        never = [way[1] for way, count in ways.items() if not count]
        if not numbers:
            continue  # nothing in it runs
        row = len(numbers) - len(missed), len(numbers), len(ways) - len(never), len(ways)
        totals = [a + b for a, b in zip(totals, row, strict=True)]
        print(
            f"{source!s:32} {row[0]:5}/{row[1]:<5} lines {row[2]:5}/{row[3]:<5} branches"
            f" {percent(*row[2:]):6.1f} %  lines never run: {shortened(missed) or 'none'};"
            f" branches never taken at: {shortened(set(never)) or 'none'}"
        )
    return percent(*totals[:2]), percent(*totals[2:])


def of_python():
    subprocess.run([sys.executable, "-m", "coverage", "report", "--show-missing"], check=True)
    total = [sys.executable, "-m", "coverage", "report", "--format=total", "--precision=2"]
    return float(subprocess.run(total, check=True, capture_output=True, text=True).stdout)


def main():
    lines, branches = of_the_core()
    python = of_python()
    below = False
    for what, reached, gate in (
        ("lines of the C core", lines, LINES),
        ("branches of the C core", branches, BRANCHES),
        ("statements and branches of Python", python, PYTHON),
    ):
        print(f"{reached:6.2f} % of {what}: the gate is {gate:g} %")
        below |= reached < gate
    return below


if __name__ == "__main__":
    sys.exit(main())
