"""Imported by each interpreter of `make coverage`: forked children tell what C code they have run.

See dump.c.  Of Python code coverage.py does the same.
"""

import ctypes
import os
import sys

EXTENSIONS = tuple(f"ipcqueue.{name}" for name in ("_core", "_waiting", "_direct", "_packer"))
real_exit = os._exit


def leave(status):
    for name in EXTENSIONS:
        if (module := sys.modules.get(name)) is not None:
            ctypes.PyDLL(module.__file__).covered_dump()
    real_exit(status)


os._exit = leave
