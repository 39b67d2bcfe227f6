"""The garbage collector runs code of the application in the midst of a call."""

import gc
import sys

import pytest


class Garbage:
    """Only the collector finds it, as it refers to itself; then it calls a function."""

    def __init__(self, action):
        self.itself, self.action = self, action

    def __del__(self):
        self.action()


def at_every_collection(prepare, call, action, check, most=40):
    """Run `call` again and again; the n-th time the collector runs `action` at its n-th allocation.

    prepare() -> the arguments of call(*prepared), action(*prepared) and check(result, *prepared); the
    result may be the Exception that was raised.  `action` runs before the call or after it where that
    allocates less.  Return in how many calls it ran.
    """
    if sys.version_info >= (3, 12):
        pytest.skip("the collector runs between two bytecodes from CPython 3.12 on")
    thresholds, within = gc.get_threshold(), 0
    for nth in range(most):
        prepared, ran = prepare(), []
        gc.collect()
        gc.disable()
        Garbage(lambda prepared=prepared, ran=ran: ran.append(action(*prepared)))
        # Those that CPython keeps for later need no allocation.
        kept = [[] for _ in range(100)], [(n, n) for n in range(3000)]
        gc.set_threshold(gc.get_count()[0] + nth)
        gc.enable()
        try:
            before = len(ran)
            result = call(*prepared)
            within += len(ran) - before
        except Exception as error:  # noqa: BLE001 (for the caller to judge)
            result = error
        finally:
            gc.set_threshold(*thresholds)
        del kept
        gc.collect()
        assert ran
        check(result, *prepared)
    return within
