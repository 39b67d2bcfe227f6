"""Loans and borrowings, for async with blocks.

Trio raises a Ctrl-C in the main task: at a checkpoint, or between any two bytecodes of code that is
not protected from it.  A block is left by one protected function that is no coroutine: between the
call of a coroutine function and its first step a Ctrl-C would leave the block open for good.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from trio.lowlevel import checkpoint_if_cancelled, enable_ki_protection

from ipcqueue import Borrowing, Loan, QueueError
from ipcqueue.lowlevel import Owner, persist, plans

from ._errors import OURS, ours

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from types import TracebackType

    from ipcqueue.lowlevel import Endpoint, Seconds, Wait

    from ._tasks import Tasks

BlockT = TypeVar("BlockT", bound=Loan | Borrowing)


class Waiting(Protocol):
    """What of an Interface waits for its blocks."""

    _endpoint: Endpoint | None
    _tasks: Tasks

    async def _opened(self) -> Endpoint: ...


class Done:
    """An awaitable that has come to its end."""

    def __await__(self) -> Generator[None, None, None]:
        """Yield nothing."""
        yield from ()


_DONE = Done()


class _Block(Owner, Generic[BlockT]):
    """A block of ipcqueue for async with: `make` makes it, `plan` is how it is opened."""

    def __init__(
        self,
        interface: Waiting,
        make: Callable[[Endpoint], BlockT],
        plan: Callable[[Endpoint, BlockT, Seconds], Generator[Wait, bool, None]],
        timeout: Seconds,
    ) -> None:
        self._interface = interface
        self._make = make
        self._plan = plan
        self._timeout = timeout
        endpoint = interface._endpoint  # noqa: SLF001 (one package)
        # At once if that is possible, so that a mistake is raised where it is made.
        self._block: BlockT | None = make(endpoint) if endpoint else None

    def __repr__(self) -> str:
        kind = f"memenpsf.trio.{type(self).__name__}"
        try:
            block = self._block
            return f"<{kind} of {self._interface!r}: not open>" if block is None else repr(block)
        except Exception:
            return f"<{kind}: half made>"

    @enable_ki_protection
    async def __aenter__(self) -> BlockT:
        begun: BlockT | None = None
        try:
            interface = self._interface
            endpoint = interface._endpoint or await interface._opened()  # noqa: SLF001
            block = self._block = self._block or self._make(endpoint)
            await checkpoint_if_cancelled()
            block.begin()
            begun = block
            plan = self._plan(endpoint, block, self._timeout)
            await interface._tasks.drive(plan)  # noqa: SLF001
            return block
        except BaseException as error:
            if begun is not None:
                persist(type(begun).undo, begun)  # a bound method would need memory
            if not isinstance(error, Exception):
                raise
            raise ours(error, self._interface) from error.__cause__

    @enable_ki_protection
    def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> Done:
        try:
            _leave(self._interface, self._block, kind, error, traceback)
            return _DONE
        except Exception as failure:
            raise ours(failure, self._interface) from failure.__cause__


class AsyncLoan(_Block[Loan]):
    """An ipcqueue.Loan for an async with block."""

    def __init__(
        self, interface: Waiting, size: int, timeout: Seconds, tag: int, flags: int
    ) -> None:
        make = partial(Loan, size=size, tag=tag, flags=flags)
        super().__init__(interface, make, plans.open_loan, timeout)


class AsyncBorrowing(_Block[Borrowing]):
    """An ipcqueue.Borrowing for an async with block."""

    def __init__(self, interface: Waiting, limit: int | None, timeout: Seconds) -> None:
        super().__init__(interface, partial(Borrowing, limit=limit), plans.open_borrowing, timeout)


def _leave(
    interface: Waiting,
    block: Loan | Borrowing | None,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
) -> None:
    """End a block; raise in Trio's words what publish() or cancel() raised inside it."""
    if block is not None:
        block.__exit__(kind, error, traceback)
    # Not what another connection has raised there, one of plain threads for example.
    if isinstance(error, QueueError) and type(error) in OURS and error.interface is interface:
        raise error
