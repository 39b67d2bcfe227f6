"""What is public shows the module that users import it from, whichever file it stands in."""

import inspect
import os
import pickle
import re
import subprocess
import sys
import traceback
import typing
from pathlib import Path

import pytest

import fdpass
import fdpass.trio
import ipcqueue
import memenpsf
import memenpsf.trio

REPOSITORY = Path(__file__).parent.parent.parent
PACKAGES = (fdpass, ipcqueue, memenpsf, memenpsf.trio)


def offered(package):
    """Return the classes and functions that a package offers."""
    things = {name: getattr(package, name) for name in package.__all__}
    return {n: it for n, it in things.items() if inspect.isclass(it) or inspect.isfunction(it)}


@pytest.mark.parametrize("package", [*PACKAGES, fdpass.trio])
def test_every_public_name_is_explained_in_the_docs(package):
    pages = " ".join(page.read_text() for page in (REPOSITORY / "docs").glob("*.md"))
    pages = re.sub(r"```.*?```", "", pages, flags=re.DOTALL)  # examples explain nothing
    words = set(re.findall(r"\w+", " ".join(re.findall(r"`[^`\n]+`", pages))))
    assert set(package.__all__) - words == set()


@pytest.mark.parametrize("package", PACKAGES)
def test_it_is_a_public_module_that_has_it(package):
    for name, thing in offered(package).items():
        assert not any(part.startswith("_") for part in thing.__module__.split(".")), thing
        if thing.__module__.partition(".")[0] in {each.__name__ for each in PACKAGES}:
            assert getattr(sys.modules[thing.__module__], name) is thing


@pytest.mark.parametrize("package", PACKAGES)
def test_it_can_be_pickled_and_looked_into(package):
    for thing in offered(package).values():
        assert pickle.loads(pickle.dumps(thing)) is thing
        is_error = inspect.isclass(thing) and issubclass(thing, Exception)
        if not is_error and not typing.is_typeddict(thing):
            assert inspect.signature(thing) is not None


def test_a_traceback_names_what_can_be_caught():
    one, other = memenpsf.pair(8)
    with one, other:
        one.close()
        with pytest.raises(memenpsf.Closed) as caught:
            one.xmit(bytes(8))
    (last,) = traceback.format_exception_only(caught.value)
    assert last.startswith("ipcqueue.Closed: ")


@pytest.mark.parametrize(
    "statement",
    [
        "import memenpsf.trio; thing = memenpsf.trio.Ended",
        "import memenpsf; thing = memenpsf.Ended",
        "import memenpsf; thing = memenpsf.run",
        "import memenpsf; thing = memenpsf.Listener",
        "import memenpsf; thing = memenpsf.listen",
        "import memenpsf; thing = memenpsf.serve",
        "import memenpsf; thing = memenpsf.deal",
        "import memenpsf; thing = memenpsf.wait",
        "import memenpsf; thing = memenpsf.ReceiverSet",
        "import fdpass; thing = fdpass.MemoryRegistry",
    ],
)
def test_so_does_what_is_imported_on_first_use(statement):
    command = f"{statement}; print(thing.__module__)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(
        [sys.executable, "-c", command], env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == statement.split(".")[-2].split()[-1].replace("trio", "memenpsf")
