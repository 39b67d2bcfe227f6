"""Which way leads into the C core: IPCQUEUE_BINDING says "direct" or "cffi".

`direct` is the module of the short way (core/direct.c), one call of C for what can be done at
once, or None: where it was not built (PyPy), or where cffi is to serve all calls.
"""

import os
from types import ModuleType
from typing import Any

_asked = os.environ.get("IPCQUEUE_BINDING", "")
if _asked not in {"", "cffi", "direct"}:
    raise ValueError(f"IPCQUEUE_BINDING is cffi or direct, not {_asked!r}")

_module: ModuleType | None = None
if _asked != "cffi":
    try:
        from . import _direct  # type: ignore[attr-defined]

        _module = _direct
    except ImportError:
        if _asked == "direct":
            raise

direct: Any = _module
