"""How much of everything, and from which seed: read once, from the environment.

MEMENPSF_TIMES multiplies every amount (1 is what CI runs), MEMENPSF_SEED replaces the seed; both
stand in the header of the pytest run, and in the command that a failing C program prints.
"""

import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CORE = HERE.parent.parent / "ipcqueue" / "core"
SOURCES = tuple(CORE / f"{name}.c" for name in ("ring", "slots", "frames", "segment"))
"""The C core without CPython: what is compiled into the programs here."""

TIMES = float(os.environ.get("MEMENPSF_TIMES", "1"))
SEED = int(os.environ.get("MEMENPSF_SEED", "1"))


def amount(in_ci: int) -> int:
    """Return how many of what CI does `in_ci` of."""
    return max(1, round(in_ci * TIMES))


def seconds(in_ci: float) -> float:
    """Return the deadline for what takes a test `in_ci` seconds at most; for pytest.mark.deadline."""
    return in_ci * max(1.0, TIMES)


def numbers(name: str) -> random.Random:
    """Return random numbers that depend on the seed and on the name of who asks alone."""
    return random.Random(f"{SEED} {name}")


def compiled(
    program: str,
    into: Path,
    *flags: str,
    compiler: str = "cc",
    core: tuple[Path, ...] | None = None,
) -> Path:
    """Compile tests/reliability/<program>.c together with the C core; return the executable."""
    binary = into / program
    sources = [HERE / f"{program}.c", *(SOURCES if core is None else core)]
    common = ["-std=c11", "-D_GNU_SOURCE=", "-O2", "-g", "-Wall", "-Wextra", "-Werror", f"-I{CORE}"]
    command = [compiler, *common, *flags, "-o", binary, *sources, "-pthread"]
    subprocess.run(command, check=True, timeout=120)
    return binary


def needs(*tools: str) -> None:
    """Skip a test where a tool is missing, unless MEMENPSF_REQUIRE_TOOLS forbids that."""
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        lacks(f"not installed: {', '.join(missing)}")


def lacks(reason: str) -> None:
    """Skip a test for want of a tool, or fail: see needs()."""
    (pytest.fail if os.environ.get("MEMENPSF_REQUIRE_TOOLS") else pytest.skip)(reason)


def output(*command: object, status: int | None = 0) -> str:
    """Run a program, which must end with `status` (None: with any but 0); return all it says."""
    done = subprocess.run(
        [str(word) for word in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    good = done.returncode != 0 if status is None else done.returncode == status
    assert good, f"status {done.returncode}: {' '.join(map(str, command))}\n{done.stdout}"
    return done.stdout


def mutated(into: Path, *changes: tuple[str, str]) -> tuple[Path, ...]:
    """Copy the C core with changes: (text, what to replace it with); return its sources."""
    into.mkdir()
    found = [0] * len(changes)
    for path in CORE.glob("*.[ch]"):
        text = path.read_text()
        for i, (old, new) in enumerate(changes):
            found[i] += text.count(old)
            text = text.replace(old, new)
        (into / path.name).write_text(text)
    assert found == [1] * len(changes), f"each text must stand in the core once: {changes}"
    return tuple(into / source.name for source in SOURCES)
