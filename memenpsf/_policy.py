"""What a server does when the handler of one client raises: one policy for every door.

There are three kinds of exception, also inside exception groups:

- From this client's interface (see interface_of): it ends this client and no other.  A peer can
  cause most of these: it leaves, breaks the protocol, accepts only short messages, sends records
  that cannot be decoded, reads nothing, uses up descriptors.
- From the handler itself, or from any other interface: `on_error` decides.
- Not an Exception (Cancelled, KeyboardInterrupt, SystemExit): it always propagates.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ipcqueue import (
    BadRecord,
    ConcurrentUse,
    ForkedUse,
    LoanError,
    QueueError,
    TooLarge,
    Unaccepted,
    interface_of,
)
from ipcqueue.lowlevel import Owner, shown_peer

from ._log import LimitedLog, logger, one_line
from ._options import check_listener_options

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

OnError = Literal["log", "raise"] | Callable[[Any, Exception], object]

# The end of a connection, or a record that the peer cannot or will not take: one line is enough.
_EXPECTED = (QueueError, OSError, MemoryError)
# Of those, these are more likely mistakes in the handler, so a traceback is worth logging.
_MISTAKES = (BadRecord, ConcurrentUse, ForkedUse, LoanError)
_THE_PEERS = (TooLarge, Unaccepted)  # limits of the peer, although they are BadRecord


def checked_on_error(on_error: OnError) -> OnError:
    """Return `on_error`; raise TypeError or ValueError if it cannot be one."""
    if isinstance(on_error, str):
        if on_error not in ("log", "raise"):
            raise ValueError(f'on_error is "log", "raise" or a function, not {on_error!r}')
    elif not callable(on_error):
        raise TypeError(f'on_error is "log", "raise" or a function, not {on_error!r}')
    elif inspect.iscoroutinefunction(on_error):
        raise TypeError(f"on_error is a plain function, not an async one: {on_error!r}")
    return on_error


def checked_handler(handler: Any) -> Any:
    """Return the handler; raise TypeError if it cannot be called."""
    if not callable(handler):
        raise TypeError(f"expected a handler to call with each interface, got {handler!r}")
    return handler


def check_serving(handler: Any, on_error: OnError, options: Iterable[str], *own: str) -> None:
    """Check the arguments of serve() before anything is opened; raise TypeError or ValueError.

    `own` are those that only one kind of serve() has.
    """
    checked_handler(handler)
    checked_on_error(on_error)
    check_listener_options("serve", options, ("on_error", *own))


class Sorted(NamedTuple):
    """The parts of an exception that a handler raised."""

    clients: BaseException | None
    own: Exception | None
    passing: BaseException | None  # not an Exception, so it must propagate


def sort_out(error: BaseException, interface: object) -> Sorted:
    """Split an exception that the handler of a client raised into its kinds."""
    if interface_of(error) is interface:
        return Sorted(error, None, None)
    if not isinstance(error, BaseExceptionGroup):
        if isinstance(error, Exception):
            return Sorted(None, error, None)
        return Sorted(None, None, error)
    clients, rest = error.split(lambda each: interface_of(each) is interface)
    own, passing = (None, None) if rest is None else rest.split(_is_ordinary)
    return Sorted(clients, own, passing)  # type: ignore[arg-type]  # a group of Exceptions is one


def _is_ordinary(error: BaseException) -> bool:
    # False for groups: split() asks for the group itself first, and would take it as a whole.
    return isinstance(error, Exception) and not isinstance(error, BaseExceptionGroup)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _leaves(each)
    else:
        yield error


def _is_mistake(error: BaseException) -> bool:
    if isinstance(error, _THE_PEERS):
        return False
    return isinstance(error, _MISTAKES) or not isinstance(error, _EXPECTED)


class Policy(Owner):
    """What to do about exceptions of handlers, for one server."""

    def __init__(self, on_error: OnError, address: object) -> None:
        self._on_error = checked_on_error(on_error)
        self._ends = LimitedLog(address, logging.INFO, "clients ended")
        self._mistakes = LimitedLog(
            address, logging.ERROR, "clients ended by such an error", logger
        )
        self._failures = LimitedLog(address, logging.ERROR, "handlers failed", logger)

    def settle(self, interface: Any, error: BaseException) -> BaseException | None:
        """Handle an exception by the policy; return what must propagate, None if nothing."""
        clients, own, passing = sort_out(error, interface)
        if clients is not None:
            # If memory is short, and that is likely then, a line is missing from the log.
            with contextlib.suppress(MemoryError):
                self._tell_end(interface, clients)
        if own is None:
            return passing
        if self._on_error == "raise":
            return _together(own, passing, error if clients is None else None)
        if self._on_error == "log":
            with contextlib.suppress(MemoryError):
                self._failures.tell(f"the handler of {_shown(interface)} failed:", own)
            return passing
        try:
            self._on_error(interface, own)
        except BaseException as failure:  # noqa: BLE001 (the door raises it)
            return _together(failure, passing)
        return passing

    def _tell_end(self, interface: Any, error: BaseException) -> None:
        """Log one line for a client, however many of its calls raised."""
        ends = list(_leaves(error))
        for end in ends:
            if _is_mistake(end):
                self._mistakes.tell(f"{_shown(interface)}: ended by:", end)
                return
        self._ends.tell(f"{_shown(interface)}: {one_line(ends[0])}")

    def tell(self, failure: BaseException) -> None:
        """Log an exception that cannot be raised, because serve() raises another one."""
        self._failures.tell("the handler of another client failed, too:", failure)

    def close(self) -> None:
        """Log the numbers of lines that were only counted."""
        for log in (self._ends, self._mistakes, self._failures):
            log.close()


def _together(
    error: BaseException, passing: BaseException | None, whole: BaseException | None = None
) -> BaseException:
    """Return both as one exception: `whole` if they came as one, otherwise a new group."""
    if passing is None:
        return error
    if whole is not None:
        return whole
    return BaseExceptionGroup("the handler of a client", [error, passing])


def _shown(interface: Any) -> str:
    """Show a client in the log: by its name, or else by its process."""
    name = interface.peer_name
    return f"client {name!r}" if name else f"client {shown_peer('', interface.peer.pid, '')}"
