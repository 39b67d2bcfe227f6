"""serve: a task for each client."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ipcqueue.lowlevel import leave

from .._policy import OnError, Policy, check_serving
from .listener import TaskListener, listen

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .._options import ListenAt, ListenOptions
    from .interface import TaskInterface


async def serve(
    kind: type[TaskListener[Any]],
    handler: Callable[[Any], Awaitable[object]],
    address: ListenAt,
    record: Any,
    on_error: OnError,
    started: Callable[[Any], object],
    options: ListenOptions,
    own: str,
) -> None:
    """Serve many clients, each in a task; `own` is what the door calls `started`.

    See the serve() of a door.
    """
    check_serving(handler, on_error, options, own)
    async with await listen(kind, address, record, options) as listener:
        policy = Policy(on_error, listener.address)
        try:
            async with kind.interface.waiting.group() as group:
                started(listener)
                async for interface in listener:
                    try:
                        group.start(_handle, handler, interface, policy)
                    except MemoryError as error:
                        interface.abort()
                        listener._pending.log.add(error)  # noqa: SLF001 (one package)
        finally:
            policy.close()


async def _handle(
    handler: Callable[[Any], Awaitable[object]], interface: TaskInterface[Any], policy: Policy
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
