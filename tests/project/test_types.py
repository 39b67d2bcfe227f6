"""What type checkers, and so editors, know of the API."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent.parent
TYPED = Path(__file__).parent / "typed"
PROGRAM, MISTAKES = TYPED / "program.py", TYPED / "mistakes.py"


def expected():
    """Return the line of each mistake, with what is said there."""
    lines = enumerate(MISTAKES.read_text().splitlines(), 1)
    return {n: line.rpartition("  # ")[2] for n, line in lines if "  # " in line}


def run(command, folder, **environment):
    # Not in MYPYPATH: the packages must be typed as installed ones are.
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)} | environment
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    return done.stdout


def errors(output, name):
    """Return what is said of each line of a file, further lines of one error included."""
    found = {}
    line = None
    for said in output.splitlines():
        if match := re.match(rf".*{name}:(\d+):.*\berror: (.*)", said):
            line = int(match[1])
            found[line] = found.get(line, "") + match[2] + "\n"
        elif line is not None and said.startswith("    "):
            found[line] += said + "\n"
    return found


@pytest.fixture(scope="module")
def mypy(tmp_path_factory):
    pytest.importorskip("mypy")
    folder = tmp_path_factory.mktemp("mypy")
    options = ["--strict", "--no-error-summary", "--cache-dir", str(folder)]
    return run([sys.executable, "-m", "mypy", *options, PROGRAM, MISTAKES], folder)


@pytest.fixture(scope="module")
def pyright(tmp_path_factory):
    script = Path(pytest.importorskip("pyright").__file__).parent / "dist" / "index.js"
    node = shutil.which("node")
    if node is None or not script.exists():
        pytest.skip("pyright would download node, or itself")
    folder = tmp_path_factory.mktemp("pyright")
    command = [node, script, "--pythonpath", sys.executable, PROGRAM, MISTAKES]
    return run(command, folder)


@pytest.mark.deadline(120)
def test_mypy_agrees_with_a_program(mypy):
    assert errors(mypy, "program.py") == {}


def test_mypy_finds_every_mistake_and_names_it(mypy):
    found = errors(mypy, "mistakes.py")
    assert found.keys() == expected().keys()
    assert [found[n] for n, word in expected().items() if word not in found[n]] == []


@pytest.mark.deadline(120)
def test_pyright_agrees_with_a_program(pyright):
    assert errors(pyright, "program.py") == {}


def test_pyright_finds_every_mistake(pyright):
    # It names the function alone, where none of its overloads has such an option.
    assert errors(pyright, "mistakes.py").keys() == expected().keys()


def test_the_program_runs():
    assert run([sys.executable, "-W", "error", PROGRAM], REPOSITORY) == ""


def test_an_editable_install_has_types_too(tmp_path):
    """It is a path, not an import hook, which no type checker can follow; see pyproject.toml."""
    pytest.importorskip("mypy")
    if not list(Path(sysconfig.get_path("purelib")).glob("__editable__*memenpsf*")):
        pytest.skip("this environment has no editable install")
    (tmp_path / "program.py").write_text(
        "import memenpsf\nreveal_type(memenpsf.pair(8)[0].recv())\n"
    )
    options = ["--strict", "--no-error-summary", "--cache-dir", str(tmp_path)]
    said = run([sys.executable, "-m", "mypy", *options, "program.py"], tmp_path, PYTHONPATH="")
    assert said == 'program.py:2: note: Revealed type is "bytes"\n'
