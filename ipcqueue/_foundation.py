"""Refuses an fdpass that is not ours: another distribution's, or a file of that name."""

import fdpass

if not hasattr(fdpass, "MemoryRegion"):
    raise ImportError(
        f"ipcqueue needs the fdpass of its own distribution, memenpsf, and found another at "
        f"{fdpass.__file__}: rename that file if it is yours; if another distribution installed "
        "it, `pip uninstall` that one, then `pip install --force-reinstall memenpsf`",
        name="fdpass",
        path=fdpass.__file__,
    )

VERSION = fdpass.__version__
