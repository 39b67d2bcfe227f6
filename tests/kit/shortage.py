"""Allocations that fail, one after the other."""

import gc
import sys

import pytest


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
            except (MemoryError, SystemError):  # where CPython 3.11 forgets to set it
                testcapi.remove_mem_hooks()
                result = MemoryError
                failures += 1
            finally:
                testcapi.remove_mem_hooks()
                sys.settrace(tracer)
                gc.enable()
            check(result, *prepared)
        return failures

    return sweep
