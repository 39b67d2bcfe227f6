"""Takes one rule after another out of the source, and asks the test that is for it: `make mutants`.

A mutant that its test lets through means that nothing guards the rule.  Each is made in a copy of
the tree, built if it is in C, and given to one named test, which passes on the unchanged copy (tried
first).  Arguments are names of mutants; none means all.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).parent.parent.parent
COPIED = ["fdpass", "ipcqueue", "memenpsf", "tests", "examples"]
COPIED_FILES = ["setup.py", "pyproject.toml", "README.md", "LICENSE", "Makefile"]
PASSED, FAILED = 0, 1  # of pytest; all else is no verdict
DEADLINE = 300


class Mutant(NamedTuple):
    """One rule left out: `old` stands once in the file, and becomes `new`."""

    name: str
    file: str
    old: str
    new: str
    test: str  # below tests/, as pytest names it


MUTANTS = [__LIST__]


def copy_tree(into: Path) -> Path:
    """Copy what is built and tested, with its extensions."""
    for name in COPIED:
        shutil.copytree(
            REPOSITORY / name, into / name, ignore=shutil.ignore_patterns("__pycache__", "build")
        )
    for name in COPIED_FILES:
        shutil.copy(REPOSITORY / name, into / name)
    return into


def build(tree: Path) -> None:
    """Compile the extensions of a copy, quickly rather than well."""
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace", "--force"]
    environment = {**os.environ, "CFLAGS": "-O0 -Wno-unused"}
    subprocess.run(
        command, cwd=tree, env=environment, check=True, capture_output=True, timeout=DEADLINE
    )


def verdict(tree: Path, tests: list[str]) -> tuple[int, str]:
    """Run tests on a copy; return pytest's status and output."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        command,
        cwd=tree,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=DEADLINE,
    )
    return done.returncode, done.stdout


def judge(mutant: Mutant, original: Path, scratch: Path) -> str | None:
    """Return what is wrong: None if the test of this mutant kills it."""
    tree = scratch / mutant.name.replace(" ", "-")
    shutil.copytree(original, tree)
    try:
        file = tree / mutant.file
        text = file.read_text()
        if text.count(mutant.old) != 1:
            return f"the line to change stands {text.count(mutant.old)} times in {mutant.file}"
        file.write_text(text.replace(mutant.old, mutant.new))
        if file.suffix in {".c", ".h"}:
            build(tree)
        status, output = verdict(tree, [f"tests/{mutant.test}"])
    except subprocess.TimeoutExpired:
        return f"no verdict in {DEADLINE} s"
    except subprocess.CalledProcessError as error:
        return f"it does not compile: {error.stderr.decode()[-2000:]}"
    finally:
        shutil.rmtree(tree, ignore_errors=True)
    if status == FAILED:
        return None
    return "it lives" if status == PASSED else f"pytest ended with {status}:\n{output[-2000:]}"


def main() -> int:
    """Judge the mutants named on the command line, or all."""
    wanted = [mutant for mutant in MUTANTS if not sys.argv[1:] or mutant.name in sys.argv[1:]]
    if not wanted:
        print("no mutant has this name; there are:", *(mutant.name for mutant in MUTANTS), sep="\n")
        return 2
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch:
        original = copy_tree(Path(scratch) / "original")
        build(original)
        status, output = verdict(original, sorted({f"tests/{mutant.test}" for mutant in wanted}))
        if status != PASSED:
            print(output, "\nthe tests do not pass on what is to be mutated")
            return 1

        def one(mutant: Mutant) -> bool:
            begin = time.monotonic()
            wrong = judge(mutant, original, Path(scratch))
            took = time.monotonic() - begin
            print(f"{wrong or 'killed'}: {mutant.name} ({mutant.test}, {took:.0f} s)", flush=True)
            return wrong is None

        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            killed = sum(pool.map(one, wanted))
    print(f"{killed} of {len(wanted)} mutants killed")
    return 0 if killed == len(wanted) else 1


if __name__ == "__main__":
    sys.exit(main())
