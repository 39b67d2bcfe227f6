"""protect: keep a Ctrl-C out of the middle of our verbs.

Trio raises it in the main task: at a checkpoint, or between any two bytecodes of what is not
protected from it.
"""

from __future__ import annotations

from types import FunctionType

from trio.lowlevel import enable_ki_protection


def protect(*kinds: type) -> None:
    """Have Ctrl-C strike the functions of these classes only where they wait.

    Also those that they inherit from other classes of memenpsf.
    """
    ours = {each for kind in kinds for each in kind.__mro__ if each.__module__.startswith(_PACKAGE)}
    for kind in ours:
        for name, it in tuple(vars(kind).items()):
            if isinstance(it, FunctionType):
                setattr(kind, name, enable_ki_protection(it))


_PACKAGE = __name__.partition(".")[0]
