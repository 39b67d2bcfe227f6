"""Listener, and serve: many clients on one address, for tasks of Trio."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

import trio

from ipcqueue.lowlevel import T

from .._tasks.listener import TaskListener
from .._tasks.listener import listen as _listen
from .._tasks.serve import serve as _serve
from ._interface import Interface
from ._protection import protect

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from struct import Struct
    from typing import SupportsIndex, Unpack

    from ipcqueue import Encoded
    from ipcqueue.lowlevel import NumpyDtype

    from .._options import ListenAt, ListenOptions
    from .._policy import OnError


class Listener(TaskListener[T], trio.abc.Listener[Interface[T]]):
    """A server's address: gives an Interface for each client.  Made by listen().

    Handshakes of clients run side by side, so a slow or hostile client delays nobody.  A loop over
    the listener skips clients that do not get in.  accept() raises the reason instead, which would
    end trio.serve_listeners: use memenpsf.trio.serve.
    """

    interface = Interface
    _shown_as = "memenpsf.trio.Listener"

    if TYPE_CHECKING:

        async def accept(self) -> Interface[T]: ...
        async def __anext__(self) -> Interface[T]: ...


protect(Listener)


@overload
async def listen(
    address: ListenAt, record: SupportsIndex, **options: Unpack[ListenOptions]
) -> Listener[bytes]: ...
@overload
async def listen(
    address: ListenAt, record: str | Struct, **options: Unpack[ListenOptions]
) -> Listener[tuple[Any, ...]]: ...
@overload
async def listen(
    address: ListenAt, record: type[T] | Encoded[T], **options: Unpack[ListenOptions]
) -> Listener[T]: ...
@overload
async def listen(
    address: ListenAt, record: NumpyDtype, **options: Unpack[ListenOptions]
) -> Listener[Any]: ...
async def listen(address: ListenAt, record: Any, **options: Unpack[ListenOptions]) -> Any:
    """Listen at an address, or on a socket that listens already; as memenpsf.listen.

    Other tasks run while it waits for other servers of this user to start.
    """
    return await _listen(Listener, address, record, options)


@overload
async def serve(
    handler: Callable[[Interface[bytes]], Awaitable[object]],
    address: ListenAt,
    record: SupportsIndex,
    *,
    on_error: OnError = ...,
    task_status: trio.TaskStatus[Listener[bytes]] = ...,
    **options: Unpack[ListenOptions],
) -> None: ...
@overload
async def serve(
    handler: Callable[[Interface[tuple[Any, ...]]], Awaitable[object]],
    address: ListenAt,
    record: str | Struct,
    *,
    on_error: OnError = ...,
    task_status: trio.TaskStatus[Listener[tuple[Any, ...]]] = ...,
    **options: Unpack[ListenOptions],
) -> None: ...
@overload
async def serve(
    handler: Callable[[Interface[T]], Awaitable[object]],
    address: ListenAt,
    record: type[T] | Encoded[T],
    *,
    on_error: OnError = ...,
    task_status: trio.TaskStatus[Listener[T]] = ...,
    **options: Unpack[ListenOptions],
) -> None: ...
@overload
async def serve(
    handler: Callable[[Interface[Any]], Awaitable[object]],
    address: ListenAt,
    record: NumpyDtype,
    *,
    on_error: OnError = ...,
    task_status: trio.TaskStatus[Listener[Any]] = ...,
    **options: Unpack[ListenOptions],
) -> None: ...
async def serve(
    handler: Callable[[Interface[Any]], Awaitable[object]],
    address: ListenAt,
    record: Any,
    *,
    on_error: OnError = "log",
    task_status: trio.TaskStatus[Listener[Any]] = trio.TASK_STATUS_IGNORED,
    **options: Unpack[ListenOptions],
) -> None:
    """Serve many clients: run handler(interface) in a task for each.

    `await nursery.start(serve, …)` returns the Listener; closing that ends serve() once the
    handlers are done.  The interface of a client is closed when its handler is done.

    No client ends the server.  An exception from a client's own interface ends that client alone,
    and is logged in one line; a client that is refused is logged, too.  Within 10 s the first 20
    lines are logged; further ones are only counted.

    `on_error` decides about any other exception of a handler, for example from another interface:
    "log" it with its traceback and go on serving; "raise" it, as trio.serve_listeners does, which
    ends all clients; or call a plain function on_error(interface, error), which may raise.  The
    interface is closed by then.  Of an exception group, only the members that are not from the
    client's interface count.  Cancelled, KeyboardInterrupt and the like always propagate.

    Raises TypeError and ValueError before anything is opened, and all errors of listen().
    """
    await _serve(
        Listener, handler, address, record, on_error, task_status.started, options, "task_status"
    )
