"""How a block is left: which exceptions end its connection in good order, and which abort it."""

from __future__ import annotations

from typing import Any

from ._errors import Closed, EndOfStream, ReceiverGone
from ._origin import interface_of

_ENDS = (EndOfStream, ReceiverGone, Closed)


def leave(interface: Any, error: BaseException | None) -> None:
    """Close a connection, or abort, if this exception that leaves its block is no good end."""
    if in_order(error, interface):
        interface.close()
    else:
        interface.abort()


def in_order(error: BaseException | None, interface: Any) -> bool:
    """Whether a block of this connection that is left so is over, and not broken off.

    It is over without an exception, when a generator is closed that the block is in, at an exit of
    the program without an error, and at the end of this very connection; a group is if each of its
    members is.
    """
    if isinstance(error, BaseExceptionGroup):
        return all(in_order(each, interface) for each in error.exceptions)
    if isinstance(error, SystemExit):
        # Of any type: what is not an int is printed, and is an error to the system.
        return error.code is None or (isinstance(error.code, int) and error.code == 0)
    if isinstance(error, _ENDS):
        return interface_of(error) is interface
    return error is None or isinstance(error, GeneratorExit)
