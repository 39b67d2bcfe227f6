"""Which way leads into the C core: IPCQUEUE_BINDING says "direct" or "cffi".

`direct` is the module of the short way (core/python), one call of C for what can be done at
once, or None: where it was not built (PyPy), or where cffi is to serve all calls.  `packer` is
that of many tuples at a time (core/python/packer.h), or None where the struct module does it all.
"""

import os
from collections.abc import Callable
from types import ModuleType
from typing import Any

_asked = os.environ.get("IPCQUEUE_BINDING", "")
if _asked not in {"", "cffi", "direct"}:
    raise ValueError(f"IPCQUEUE_BINDING is cffi or direct, not {_asked!r}")

_direct_module: ModuleType | None = None
_packer_module: ModuleType | None = None
if _asked != "cffi":
    try:
        from . import _direct, _packer  # type: ignore[attr-defined]

        _direct_module, _packer_module = _direct, _packer
    except ImportError:
        if _asked == "direct":
            raise

direct: Any = _direct_module
packer: Any = _packer_module


def _persist(step: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function that can be repeated until it has come to its end; see core/python.

    In Python only a second try is possible: the third strike may come before it.
    """
    try:
        return step(*arguments)
    except BaseException:
        step(*arguments)
        raise


persist: Callable[..., Any] = _persist if direct is None else direct.persist
