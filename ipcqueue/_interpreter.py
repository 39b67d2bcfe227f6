"""Refuses the interpreters in which the promises of this package would not hold.

Pythons other than CPython, because the extension modules rely on how CPython works.  setup.py does
not install for them; this refuses where the sources are imported from their directory.

Subinterpreters, because the modules that cffi builds share their objects between all interpreters
of a process (PyModuleDef.m_size is -1, which says: no subinterpreters).  CPython itself keeps them
out of those with a lock of their own only; core/python/module.c refuses the others.

A free-threaded build with the lock switched off (PYTHON_GIL=0, -X gil=0), because each call of the
core relies on the lock (see _ring/end.py).  Elsewhere loading _direct switches the lock on, and
CPython warns of that.  It must be this module that does it: cffi says of _core and _waiting that
they need no lock, whatever is in them.
"""

import sys


def lock_is_on() -> bool:
    """Whether one thread at a time runs Python; no build before 3.13 can do otherwise."""
    is_enabled = getattr(sys, "_is_gil_enabled", None)
    return is_enabled is None or bool(is_enabled())


if sys.implementation.name != "cpython":
    raise ImportError(
        f"ipcqueue and memenpsf need CPython 3.11 or later, not {sys.implementation.name}",
        name=__package__,
    )

try:
    from . import _direct  # noqa: F401 (for what it does on its way)
except ImportError as error:
    if "subinterpreters" in str(error):
        raise ImportError(
            "ipcqueue and memenpsf work in the main interpreter of a process only: "
            "use them there, or in a process of its own, not in a subinterpreter",
            name=__package__,
        ) from error
    raise ImportError(
        "ipcqueue and memenpsf need their extension modules, of which _direct cannot be loaded: "
        "install them for this Python (CPython 3.11 or later, with a C compiler), "
        "for instance by `pip install .` in the directory of the sources",
        name=__package__,
    ) from error

if not lock_is_on():
    raise ImportError(
        "ipcqueue and memenpsf need the global interpreter lock, which is switched off: "
        "start Python without PYTHON_GIL=0 and -X gil=0",
        name=__package__,
    )
