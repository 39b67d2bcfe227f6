"""Each package stands on the one of its own distribution, and all have one version."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import fdpass
import ipcqueue
import memenpsf

REPOSITORY = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("name", ["fdpass", "ipcqueue"])
@pytest.mark.parametrize("form", ["a file", "a package"])
def test_another_package_of_that_name_is_refused_in_words(name, form, tmp_path):
    file = tmp_path / (f"{name}.py" if form == "a file" else f"{name}/__init__.py")
    file.parent.mkdir(exist_ok=True)
    file.write_text("class Queue:\n    pass\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{REPOSITORY}"}
    process = subprocess.run(
        [sys.executable, "-c", "import memenpsf"],
        check=False,
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 1
    last = process.stderr.splitlines()[-1]
    assert last.startswith("ImportError: ")
    assert f"found another at {file}" in last
    assert "pip install --force-reinstall memenpsf" in last


def test_there_is_one_version():
    assert fdpass.__version__ == ipcqueue.__version__ == memenpsf.__version__
    assert memenpsf.__version__ == version("memenpsf")
