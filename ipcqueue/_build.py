"""Builds ipcqueue._core and ipcqueue._waiting from core/ring.h and its C files (cffi, API mode).

ring.h is the only statement of the interface: the compiler includes it and cffi reads it.
cffi has no preprocessor, so the few lines that need one are taken out here, by name; any
other is an error rather than a silent difference between the two readings.

Two modules, because cffi lets other Python threads run during every call, and getting the
interpreter back from a thread that computes takes up to 5 ms.  So _core, all of whose calls return
at once, keeps it; what waits, under the last heading of ring.h, is in _waiting.
"""

from pathlib import Path

from cffi import FFI

CORE = Path("ipcqueue") / "core"
ALLOWED = {"#pragma once", "#include <stdint.h>", "#include <stddef.h>"}
WAITING = "/* -- waiting -"

# In front of the calls that cffi generates, which use these macros of Python.h and nothing else.
KEEP_THE_GIL = """
#undef Py_BEGIN_ALLOW_THREADS
#undef Py_END_ALLOW_THREADS
#define Py_BEGIN_ALLOW_THREADS {
#define Py_END_ALLOW_THREADS }
"""


def declarations(header: str) -> tuple[str, str]:
    """Return what returns at once and what waits, without the lines that cffi cannot read."""
    lines = header.splitlines()
    directives = {line.strip() for line in lines if line.lstrip().startswith("#")}
    if directives - ALLOWED:
        raise ValueError(f"ring.h must have no preprocessor lines but {ALLOWED}: {directives}")
    readable = "\n".join(line for line in lines if line.strip() not in ALLOWED)
    at_once, heading, waiting = readable.partition(WAITING)
    if not heading:
        raise ValueError(f"ring.h must have a heading {WAITING!r}")
    return at_once, heading + waiting


def module(name: str, preamble: str, sources: tuple[str, ...]) -> FFI:
    """Return the builder of one module, without its declarations."""
    builder = FFI()
    builder.set_source(
        f"ipcqueue.{name}",
        preamble + '#include "ring.h"',
        sources=[str(CORE / f"{source}.c") for source in sources],
        include_dirs=[str(CORE)],
        depends=[str(CORE / f"{header}.h") for header in ("ring", "layout", "ends")],
        extra_compile_args=[
            "-std=c11",
            "-O2",
            "-Wall",
            "-Wextra",
            "-Werror=incompatible-pointer-types",
        ],
    )
    return builder


AT_ONCE, WAITS = declarations((Path(__file__).parent / "core" / "ring.h").read_text())
core = module("_core", KEEP_THE_GIL, ("ring", "slots", "frames", "segment"))
core.cdef(AT_ONCE)
waiting = module("_waiting", "", ("ring", "segment"))
waiting.include(core)
waiting.cdef(WAITS)

if __name__ == "__main__":
    core.compile(verbose=True)
    waiting.compile(verbose=True)
