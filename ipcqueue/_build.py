"""Builds ipcqueue._core from core/ring.h and its C files (cffi, API mode).

ring.h is the only statement of the interface: the compiler includes it and cffi reads it.
cffi has no preprocessor, so the few lines that need one are taken out here, by name; any
other is an error rather than a silent difference between the two readings.
"""

from pathlib import Path

from cffi import FFI

CORE = Path("ipcqueue") / "core"
ALLOWED = {"#pragma once", "#include <stdint.h>", "#include <stddef.h>"}


def declarations(header: str) -> str:
    """Return the header without the preprocessor lines that cffi cannot read."""
    lines = header.splitlines()
    directives = {line.strip() for line in lines if line.lstrip().startswith("#")}
    if directives - ALLOWED:
        raise ValueError(f"ring.h must have no preprocessor lines but {ALLOWED}: {directives}")
    return "\n".join(line for line in lines if line.strip() not in ALLOWED)


ffibuilder = FFI()
ffibuilder.cdef(declarations((Path(__file__).parent / "core" / "ring.h").read_text()))
ffibuilder.set_source(
    "ipcqueue._core",
    '#include "ring.h"',
    sources=[str(CORE / f"{name}.c") for name in ("ring", "slots", "frames", "segment")],
    include_dirs=[str(CORE)],
    depends=[str(CORE / f"{name}.h") for name in ("ring", "layout", "ends")],
    extra_compile_args=[
        "-std=c11",
        "-O2",
        "-Wall",
        "-Wextra",
        "-Werror=incompatible-pointer-types",
    ],
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
