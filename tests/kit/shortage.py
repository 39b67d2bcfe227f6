"""Allocations that fail, one after the other."""

import ctypes
import gc
import importlib
import sys
import types
from pathlib import Path

import pytest

PACKAGES = ("fdpass", "ipcqueue", "memenpsf")
OURS = (*PACKAGES, "tests")
HOLDERS = (dict, type, tuple, property, staticmethod, classmethod, types.FunctionType)


def keep_code():
    """Give all code of functions more references, where CPython loses them.

    CPython 3.12 and 3.13 drop a reference to the code too often if there is no memory for a function
    (gh-122752, mended in 3.14).  After a few tests the code would be freed, and in use.
    """
    _import_all()  # some modules are imported only when a connection first needs them
    seen = set()
    left = [vars(it) for name, it in tuple(sys.modules.items()) if name.split(".")[0] in OURS]
    while left:
        each = left.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, types.CodeType):
            ctypes.c_uint32.from_address(id(each)).value += 1 << 20  # the count is there
            left += each.co_consts
        elif isinstance(each, HOLDERS):
            left += gc.get_referents(each)


def _import_all():
    """Import every module of the packages, but for those that need Trio or a compiler."""
    for package in PACKAGES:
        root = Path(importlib.import_module(package).__file__).parent
        for file in root.rglob("*.py"):
            *parents, name = file.relative_to(root.parent).with_suffix("").parts
            if "trio" not in (*parents, name) and name not in {"__init__", "_build"}:
                importlib.import_module(".".join((*parents, name)))


@pytest.fixture
def short_of_memory():
    """Call a function again and again, the n-th time without memory for its n-th request.

    short_of_memory(prepare, call, check): call(*prepared) for each prepared = prepare(); then
    check(result, *prepared), where the result may be MemoryError.  Returns how often it was that.
    """
    testcapi = pytest.importorskip("_testcapi")
    tracer = sys.gettrace()  # that of a coverage tool needs memory itself

    def sweep(prepare, call, check, most=40):
        failures = 0
        for nth in range(most):
            prepared = result = None  # first, as memory of these is used again
            prepared = prepare()
            gc.disable()  # what it would run is not what is to fail
            sys.settrace(None)
            try:
                testcapi.set_nomemory(nth, nth + 1)
                result = call(*prepared)
                testcapi.remove_mem_hooks()
            except (MemoryError, SystemError, RuntimeError) as error:
                testcapi.remove_mem_hooks()
                # SystemError: where CPython 3.11 forgets to set it.
                if type(error) is RuntimeError and str(error) != "can't allocate lock":
                    raise
                result = MemoryError
                failures += 1
            finally:
                testcapi.remove_mem_hooks()
                sys.settrace(tracer)
                gc.enable()
            check(result, *prepared)
        return failures

    return sweep
