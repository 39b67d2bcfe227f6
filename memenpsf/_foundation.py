"""Refuses an ipcqueue that is not ours: another distribution's, or a file of that name.

There is one of that name on PyPI, for the message queues of POSIX.
"""

import ipcqueue

if not hasattr(ipcqueue, "interface_of"):
    raise ImportError(
        f"memenpsf needs the ipcqueue of its own distribution, and found another at "
        f"{ipcqueue.__file__}: rename that file if it is yours; if another distribution installed "
        "it, `pip uninstall` that one, then `pip install --force-reinstall memenpsf`",
        name="ipcqueue",
        path=ipcqueue.__file__,
    )

VERSION = ipcqueue.__version__
