"""serve: a task for each client."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

import trio

from ipcqueue.lowlevel import leave

from .._policy import OnError, Policy, check_serving
from ._listener import Listener, listen

if TYPE_CHECKING:
    import os
    from collections.abc import Awaitable, Callable
    from struct import Struct
    from typing import SupportsIndex, Unpack

    from ipcqueue import Encoded
    from ipcqueue.lowlevel import NumpyDtype, T

    from .._options import ListenOptions
    from ._interface import Interface


@overload
async def serve(
    handler: Callable[[Interface[bytes]], Awaitable[object]],
    address: str | os.PathLike[str],
    record: SupportsIndex,
    *,
    on_error: OnError = ...,
    task_status: trio.TaskStatus[Listener[bytes]] = ...,
    **options: Unpack[ListenOptions],
) -> None: ...
@overload
async def serve(
    handler: Callable[[Interface[tuple[Any, ...]]], Awaitable[object]],
    address: str | os.PathLike[str],
    record: str | Struct,
    *,
    on_error: OnError = ...,
    task_status: trio.TaskStatus[Listener[tuple[Any, ...]]] = ...,
    **options: Unpack[ListenOptions],
) -> None: ...
@overload
async def serve(
    handler: Callable[[Interface[T]], Awaitable[object]],
    address: str | os.PathLike[str],
    record: type[T] | Encoded[T],
    *,
    on_error: OnError = ...,
    task_status: trio.TaskStatus[Listener[T]] = ...,
    **options: Unpack[ListenOptions],
) -> None: ...
@overload
async def serve(
    handler: Callable[[Interface[Any]], Awaitable[object]],
    address: str | os.PathLike[str],
    record: NumpyDtype,
    *,
    on_error: OnError = ...,
    task_status: trio.TaskStatus[Listener[Any]] = ...,
    **options: Unpack[ListenOptions],
) -> None: ...
async def serve(
    handler: Callable[[Interface[Any]], Awaitable[object]],
    address: str | os.PathLike[str],
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
    check_serving(handler, on_error, options, "task_status")
    async with await listen(address, record, **options) as listener:
        policy = Policy(on_error, listener.address)
        try:
            async with trio.open_nursery() as nursery:
                task_status.started(listener)
                async for interface in listener:
                    try:
                        nursery.start_soon(_handle, handler, interface, policy)
                    except MemoryError as error:
                        interface.abort()
                        listener._pending.log.add(error)  # noqa: SLF001 (one package)
        finally:
            policy.close()


async def _handle(
    handler: Callable[[Interface[Any]], Awaitable[object]],
    interface: Interface[Any],
    policy: Policy,
) -> None:
    try:
        try:
            await handler(interface)
        except BaseException as error:
            # Not its block, whose checkpoint may raise Cancelled in place of this.
            leave(interface, error)
            raise
        interface.close()
    except BaseException as error:
        rest = policy.settle(interface, error)
        if rest is error:
            raise
        if rest is not None:
            raise rest from None
