import sys
from pathlib import Path

from setuptools import Extension, setup

CORE = Path("ipcqueue") / "core"

# The short way of core/direct.c is CPython's own; elsewhere cffi serves all calls.
DIRECT = Extension(
    "ipcqueue._direct",
    sources=[str(CORE / f"{name}.c") for name in ("direct", "ring", "slots", "frames", "segment")],
    include_dirs=[str(CORE)],
    depends=[str(CORE / f"{name}.h") for name in ("ring", "layout", "ends")],
    extra_compile_args=["-std=c11", "-O2", "-Wall", "-Wextra", "-Wno-missing-field-initializers"],
)

# As is that of many tuples.
PACKER = Extension(
    "ipcqueue._packer",
    sources=[str(CORE / "records.c")],
    extra_compile_args=DIRECT.extra_compile_args,
)

setup(
    cffi_modules=["ipcqueue/_build.py:core", "ipcqueue/_build.py:waiting"],
    ext_modules=[DIRECT, PACKER] if sys.implementation.name == "cpython" else [],
)
