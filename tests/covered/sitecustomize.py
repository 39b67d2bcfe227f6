"""Imported by each interpreter of `make coverage`: forked children tell what C code they have run.

See dump.c.  Of Python code coverage.py does the same.
"""

import ctypes
import os
import sys

EXTENSIONS = tuple(f"ipcqueue.{name}" for name in ("_core", "_waiting", "_direct", "_records"))
real_exit = os._exit


def in_each(function):
    for name in EXTENSIONS:
        if (module := sys.modules.get(name)) is not None:
            getattr(ctypes.PyDLL(module.__file__), function)()


def leave(status):
    in_each("covered_dump")
    real_exit(status)


os.register_at_fork(after_in_child=lambda: in_each("covered_reset"))
os._exit = leave
