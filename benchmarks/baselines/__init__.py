"""What is between a peer and the machine: the least that each way could cost, in C.

Each file is a module of its own, compiled on first use into build/bench.  Whatever it lacks for
that (a compiler, Python's headers, a place to write) is an ImportError: such a peer is absent.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shlex
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
BUILT = HERE.parent.parent / "build" / "bench"
FLAGS = ("-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC")
PATIENCE = 60.0  # seconds to compile


def load(name: str) -> Any:
    """Return a module, compiled if that has not been done from the same source."""
    source = HERE / f"{name}.c"
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    sort = hashlib.sha256(source.read_bytes() + repr(FLAGS).encode()).hexdigest()[:12]
    built = BUILT / f"{name}-{sort}{suffix}"
    if not built.exists():
        build(source, built)
    spec = importlib.util.spec_from_file_location(name, built)
    assert spec is not None, "the suffix is that of extensions"
    assert spec.loader is not None, "they have a loader"
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build(source: Path, built: Path) -> None:
    """Compile; under another name first, as more than one process may do it."""
    try:
        built.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=built.parent) as folder:
            made = Path(folder) / built.name
            compiler = shlex.split(os.environ.get("CC", "cc"))
            include = f"-I{sysconfig.get_path('include')}"
            subprocess.run(
                [*compiler, *FLAGS, include, "-o", made, source],
                timeout=PATIENCE,
                check=True,
                capture_output=True,
                text=True,
            )
            made.replace(built)
    except subprocess.CalledProcessError as error:
        lines = error.stderr.splitlines() or [f"status {error.returncode}"]
        raise ImportError(f"{source.name} does not compile: {lines[0]}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ImportError(f"{source.name} cannot be compiled: {error}") from error
