"""In which interpreter of its process this package runs."""

import sys


def threads_abort() -> bool:
    """Whether a thread that still runs when this interpreter ends would abort the process.

    So it is in subinterpreters before CPython 3.14: "Py_EndInterpreter: not the last thread".
    """
    if sys.version_info >= (3, 14) or sys.implementation.name != "cpython":
        return False
    # These versions are what they are, so the private name will not change.
    if sys.version_info >= (3, 13):
        import _interpreters as interpreters  # noqa: PLC0415 (depends on the version)
    else:
        import _xxsubinterpreters as interpreters  # type: ignore[import-not-found] # noqa: PLC0415
    return bool(interpreters.get_current() != interpreters.get_main())
