"""Which connection an exception came from.

Every verb of a connection tags what it raises (QueueError, but also OSError, MemoryError and what a
decoder raises), so that a server can tell the end of one client from its own failure, and from the
end of another connection that the same code uses.

The tag is weak: it keeps no connection alive.  It does not travel: an exception that is pickled
(concurrent.futures, multiprocessing) arrives without it.
"""

from __future__ import annotations

import functools
import weakref
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType, TracebackType
    from typing import Concatenate, ParamSpec, Protocol, TypeVar

    class HasOwner(Protocol):
        """One side of a connection, which knows whose it is."""

        def owner(self) -> Any:
            """Return the connection as the application has it, or None."""

    class HasEndpoint(Protocol):
        """A connection, or what is open on one: a loan, a borrowing."""

        @property
        def _endpoint(self) -> HasOwner: ...

    P = ParamSpec("P")
    T = TypeVar("T")
    S = TypeVar("S", bound=HasEndpoint)

_KEY = "_ipcqueue_interface"

# Modules and packages whose frames stand between a verb and the code that its caller gave it.
_OURS = frozenset(("fdpass", "ipcqueue", "memenpsf", "contextlib", "threading", "weakref"))


class _Tag(weakref.ref[Any]):
    """A weak reference that copies as it is, and pickles as None."""

    __slots__ = ()

    def __copy__(self) -> _Tag:
        return self

    def __deepcopy__(self, memo: object) -> _Tag:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()


def interface_of(error: BaseException) -> Any:
    """Return the connection whose verb raised an exception; None if there is none, or it is gone.

    That is a memenpsf.Interface or memenpsf.trio.Interface, a Sender or a Receiver; of any kind of
    exception, OSError and MemoryError too.  In a group each exception has its own.
    """
    try:
        tag = object.__getattribute__(error, _KEY)
    except AttributeError:
        return None
    return tag() if isinstance(tag, _Tag) else None


def tag_error(error: BaseException, interface: object) -> None:
    """Note of which connection an exception is: of the one whose verb raised it last.

    Last, as a decoder may raise one and the same object for every connection.  It never raises:
    with no memory left there is no tag.
    """
    try:
        if interface is not None:
            # Past a __setattr__ of its class, which may refuse (a frozen dataclass does).
            object.__setattr__(error, _KEY, _Tag(interface))
    except (MemoryError, AttributeError):
        pass


def tag_unless_given(error: BaseException, interface: object) -> None:
    """Do as tag_error, unless the code of the caller raised it: what makes the records to send.

    Where that takes them from another connection, the end of that one passes through here.
    """
    if not leads_outside(error.__traceback__):
        tag_error(error, interface)


def tagged(verb: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """Have a verb tag what it raises; the fastest verbs do the same by themselves.

    So must all verbs that take something: between the return of the verb and that of its wrapper,
    an exception of a signal handler would lose it.

    A verb without arguments is called without making anything: close() must close where there is
    no memory.
    """
    alone: Any = verb
    code: CodeType = alone.__code__
    if code.co_argcount + code.co_kwonlyargcount == 1:

        @functools.wraps(verb)
        def calling(self: Any, /) -> Any:
            try:
                return alone(self)
            except Exception as error:
                tag_error(error, self._endpoint.owner())
                raise

        return cast("Callable[Concatenate[S, P], T]", calling)

    @functools.wraps(verb)
    def tagging(self: S, /, *arguments: P.args, **named: P.kwargs) -> T:
        try:
            return verb(self, *arguments, **named)
        except Exception as error:
            tag_error(error, self._endpoint.owner())
            raise

    return tagging


def leads_outside(traceback: TracebackType | None) -> bool:
    """Whether a traceback, from the verb on, leads out of these packages.

    To the code of the caller that makes records; to a signal handler.
    """
    while traceback is not None:
        name = traceback.tb_frame.f_globals.get("__name__")
        if not isinstance(name, str) or name.partition(".")[0] not in _OURS:
            return True
        traceback = traceback.tb_next
    return False
