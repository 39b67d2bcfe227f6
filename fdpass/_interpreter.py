"""Which interpreter of its process this package runs in."""

import sys


def threads_abort() -> bool:
    """Whether the process aborts if a thread still runs when this interpreter ends.

    Subinterpreters before CPython 3.14 do that: "Py_EndInterpreter: not the last thread".
    """
    if sys.version_info >= (3, 14) or sys.implementation.name != "cpython":
        return False
    # These versions are released, so the private names will not change.
    if sys.version_info >= (3, 13):
        import _interpreters as interpreters  # noqa: PLC0415 (depends on the version)
    else:
        import _xxsubinterpreters as interpreters  # type: ignore[import-not-found] # noqa: PLC0415
    return bool(interpreters.get_current() != interpreters.get_main())
