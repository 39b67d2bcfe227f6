"""What a stranger gets: the sdist, the wheel built from it, and that wheel in a fresh environment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from email.parser import Parser
from importlib.metadata import version
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent.parent
PACKAGES = ("fdpass", "ipcqueue", "memenpsf")
CORE = {"ipcqueue/core/layout.h", "ipcqueue/core/ring.h", "ipcqueue/core/ring.c"}
PATIENCE = 300  # seconds; compiling takes a few, fetching the build's requirements may take more

pytestmark = pytest.mark.deadline(PATIENCE)


def run(*command, cwd, **environment):
    """Run a command that knows nothing of the checkout; show its output if it fails."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PYTEST"))}
    process = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=clean | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert process.returncode == 0, process.stdout
    return process.stdout


def copy_sources(into, leave_out=()):
    """Copy what git knows, or would: no build products, no environment, no caches."""
    listed = run("git", "ls-files", "-coz", "--exclude-standard", cwd=REPOSITORY)
    for name in filter(None, listed.split("\0")):
        source = REPOSITORY / name
        if source.is_file() and name.split("/")[0] not in leave_out:
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, into / name)
    return into


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return copy_sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="module")
def built(sources, tmp_path_factory):
    """The sdist, and the wheel that is built from the sdist and nothing else."""
    out = tmp_path_factory.mktemp("dist")
    # Older environments cannot read this pyproject.toml themselves; then pip fetches what can.
    recent = int(version("setuptools").split(".")[0]) >= 77
    isolation = ["--no-isolation"] if recent else []
    run(sys.executable, "-m", "build", "--outdir", out, *isolation, cwd=sources)
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def names_in_wheel(built):
    with zipfile.ZipFile(built[1]) as wheel:
        return set(wheel.namelist())


@pytest.fixture(scope="module")
def metadata(built, names_in_wheel):
    (name,) = (n for n in names_in_wheel if n.endswith(".dist-info/METADATA"))
    with zipfile.ZipFile(built[1]) as wheel:
        return Parser().parsestr(wheel.read(name).decode())


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """The interpreter of a fresh environment that has the wheel, and our dependencies."""
    home = tmp_path_factory.mktemp("home")
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    # A path in a .pth file is not itself searched for .pth files, so an editable install of ours
    # in the environment that runs this does not come with its libraries.
    paths = {sysconfig.get_path(kind) for kind in ("purelib", "platlib")}
    (site,) = home.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text("\n".join(sorted(paths)) + "\n")
    run(python, "-c", "import cffi, trio, pytest", cwd=home)
    for package in PACKAGES:
        probe = f"import importlib.util; assert importlib.util.find_spec({package!r}) is None"
        run(python, "-c", probe, cwd=home)
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "--no-deps", "--no-index", "--ignore-installed", built[1], cwd=home)
    return python, site


def in_venv(installed, *arguments, cwd, **environment):
    return run(installed[0], *arguments, cwd=cwd, **environment)


def test_the_sdist_has_what_the_wheel_is_built_from(built):
    with tarfile.open(built[0]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    sources = {
        str(path.relative_to(REPOSITORY))
        for package in PACKAGES
        for pattern in ("**/*.py", "**/*.c", "**/*.h", "py.typed")
        for path in (REPOSITORY / package).glob(pattern)
        if path.name not in {"_core.c", "_waiting.c"}  # what cffi writes
    }
    assert sources >= CORE
    assert sources | {"LICENSE", "README.md", "pyproject.toml", "setup.py"} <= names
    assert not any(name.endswith((".so", ".o", ".pyc", "_core.c", "_waiting.c")) for name in names)


def test_the_wheel_has_the_packages_the_extension_and_nothing_else(names_in_wheel):
    modules = {
        str(path.relative_to(REPOSITORY))
        for package in PACKAGES
        for path in (REPOSITORY / package).rglob("*.py")
    }
    assert modules | {f"{package}/py.typed" for package in PACKAGES} <= names_in_wheel
    extensions = [name for name in names_in_wheel if name.endswith(".so")]
    modules = {name.partition(".")[0] for name in extensions}
    expected = ("_core", "_waiting", "_direct", "_packer")
    assert modules == {f"ipcqueue/{name}" for name in expected}
    tops = {name.split("/")[0] for name in names_in_wheel}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)
    assert not any("test" in name or name.endswith((".o", ".pyc")) for name in names_in_wheel)


def test_the_wheel_asks_for_two_libraries_and_nothing_more(metadata):
    required = [r for r in metadata.get_all("Requires-Dist") if "extra ==" not in r]
    assert sorted(r.split(">")[0].strip() for r in required) == ["cffi", "trio"]
    assert all(">=" in r for r in required)
    assert {"numpy", "test"} <= set(metadata.get_all("Provides-Extra"))


def test_the_wheel_says_what_it_is(metadata, names_in_wheel):
    assert metadata["Name"] == "memenpsf"
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert any(name.endswith("/licenses/LICENSE") for name in names_in_wheel)


def test_the_installed_packages_are_those_of_the_wheel(installed, tmp_path):
    _, site = installed
    program = """
import sys, fdpass, ipcqueue, ipcqueue._core, memenpsf
assert "trio" not in sys.modules and "numpy" not in sys.modules
import fdpass.trio, memenpsf.trio
for module in (fdpass, ipcqueue, ipcqueue._core, memenpsf, fdpass.trio, memenpsf.trio):
    print(module.__file__)
"""
    files = in_venv(installed, "-c", program, cwd=tmp_path).split()
    assert len(files) == 6
    assert all(Path(file).is_relative_to(site) for file in files)


def test_the_installed_packages_work(installed, tmp_path):
    program = """
import memenpsf, memenpsf.trio, threading, trio
with memenpsf.listen("@" + ADDRESS, "<QdI") as listener:
    async def client():
        async with await memenpsf.trio.connect("@" + ADDRESS, "<QdI") as interface:
            await interface.xmit((1, 2.5, 3))
    thread = threading.Thread(target=trio.run, args=(client,))
    thread.start()
    with listener.accept() as interface:
        print(list(interface))
    thread.join()
"""
    program = f"ADDRESS = 'memenpsf-packaging-{os.getpid()}'\n" + program
    output = in_venv(installed, "-W", "error", "-c", program, cwd=tmp_path)
    assert output == "[(1, 2.5, 3)]\n"


EXAMPLES = REPOSITORY / "tests" / "examples" / "test_examples.py"


@pytest.mark.skipif(not EXAMPLES.exists(), reason="there are no examples yet")
def test_the_examples_work_with_the_installed_packages(installed, tmp_path):
    # Everything but the packages, so that nothing can find them but the interpreter itself.
    copy = copy_sources(tmp_path / "copy", leave_out=PACKAGES)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "whose.py").write_text(
        "import memenpsf\n"
        "def pytest_report_header():\n"
        "    return f'memenpsf is {memenpsf.__file__}'\n"
    )
    output = in_venv(
        installed,
        "-m", "pytest", "-p", "whose", "-p", "no:cacheprovider", "-c", copy / "pyproject.toml",
        copy / "tests" / "examples" / "test_examples.py",
        cwd=elsewhere, PYTHONPATH=str(elsewhere),
    )  # fmt: skip
    assert f"memenpsf is {installed[1]}" in output
    assert " passed" in output.splitlines()[-1]
    assert "skipped" not in output.splitlines()[-1]
