import sys
from pathlib import Path

# requires-python cannot say it, and without this PyPy ends with errors of the compiler.
if sys.implementation.name != "cpython":
    raise SystemExit(
        "memenpsf needs CPython 3.11 or later and cannot be installed for "
        f"{sys.implementation.name}: its extension modules rely on CPython's global interpreter lock"
    )

from setuptools import Extension, setup

CORE = Path("ipcqueue") / "core"
PYTHON = CORE / "python"
FLAGS = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Wno-missing-field-initializers"]


def extension(name: str, header: str, own: str, core: str = "") -> Extension:
    """Return an extension of files of its own, with a header of theirs, and files of the core."""
    return Extension(
        f"ipcqueue.{name}",
        sources=[
            *(str(PYTHON / f"{file}.c") for file in own.split()),
            *(str(CORE / f"{file}.c") for file in core.split()),
        ],
        include_dirs=[str(CORE)],
        depends=[
            str(PYTHON / f"{header}.h"),
            *(str(CORE / f"{file}.h") for file in ("ring", "layout", "ends") if core),
        ],
        # Its files call each other as functions of one file do, and nobody else sees them.
        extra_compile_args=[*FLAGS, "-fvisibility=hidden"],
    )


# What never waits: pushing, taking, batches, iteration, reading the socket.
DIRECT = extension(
    "_direct",
    "direct",
    "sender batches lending receiver shelf taking prefetch iteration socket lock module",
    "ring slots frames segment",
)

# Many tuples at a time.
PACKER = extension("_packer", "packer", "packing unpacking truths packer")

setup(
    cffi_modules=["ipcqueue/_build.py:core", "ipcqueue/_build.py:waiting"],
    ext_modules=[DIRECT, PACKER],
)
