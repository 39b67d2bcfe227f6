"""How much of everything, and from which seed: read once, from the environment.

MEMENPSF_TIMES multiplies every amount (1 is what CI runs), MEMENPSF_SEED replaces the seed; both
stand in the header of the pytest run, and in the command that a failing C program prints.
"""

import os
import random
import subprocess
from pathlib import Path

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
