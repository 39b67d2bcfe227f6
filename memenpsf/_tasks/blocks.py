"""Loans and borrowings, for async with blocks.

Trio raises a Ctrl-C in the main task: at a checkpoint, or between any two bytecodes of code that is
not protected from it (see trio/_protection.py).  So a block is left by one function that
is no coroutine: between the call of a coroutine function and its first step a Ctrl-C would leave
the block open for good.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from ipcqueue import Borrowing, Loan, QueueError
from ipcqueue.lowlevel import Owner, persist, plans

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from types import TracebackType

    from ipcqueue.lowlevel import Endpoint, Seconds, Wait

    from .waiting import Waiting

BlockT = TypeVar("BlockT", bound=Loan | Borrowing)


class Interface(Protocol):
    """What of an interface its blocks need."""

    _endpoint: Endpoint | None
    _waiting: Waiting

    async def opened(self) -> Endpoint: ...


class Done:
    """An awaitable that has come to its end."""

    def __await__(self) -> Generator[None, None, None]:
        """Yield nothing."""
        yield from ()


_DONE = Done()


class Block(Owner, Generic[BlockT]):
    """A block of ipcqueue for async with: `make` makes it, `plan` is how it is opened."""

    def __init__(
        self,
        interface: Interface,
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
        kind = f"{type(self).__module__}.{type(self).__name__}"
        try:
            block = self._block
            return f"<{kind} of {self._interface!r}: not open>" if block is None else repr(block)
        except Exception:
            return f"<{kind}: half made>"

    def ours(self, error: Exception) -> Exception:
        """Note of which interface an exception is, and put it into the words of the door."""
        return self._interface._waiting.ours(error, self._interface)  # noqa: SLF001

    async def __aenter__(self) -> BlockT:
        begun: BlockT | None = None
        try:
            interface = self._interface
            endpoint = interface._endpoint or await interface.opened()  # noqa: SLF001
            block = self._block = self._block or self._make(endpoint)
            waiting = interface._waiting  # noqa: SLF001
            await waiting.begin()
            block.begin()
            begun = block
            plan = self._plan(endpoint, block, self._timeout)
            await waiting.drive(plan)
            return block
        except BaseException as error:
            if begun is not None:
                persist(type(begun).undo, begun)  # a bound method would need memory
            if not isinstance(error, Exception):
                raise
            raise self.ours(error) from error.__cause__

    def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> Done:
        try:
            block = self._block
            if block is not None:
                block.__exit__(kind, error, traceback)
            # What publish() or cancel() raised inside, in the words of the door.  Not what another
            # connection has raised there, one of plain threads for example.
            if isinstance(error, QueueError) and error.interface is self._interface:
                said = self.ours(error)
                if said is not error:
                    raise said
            return _DONE
        except Exception as failure:
            raise self.ours(failure) from failure.__cause__


class TaskLoan(Block[Loan]):
    """An ipcqueue.Loan for an async with block."""

    def __init__(
        self, interface: Interface, size: int, timeout: Seconds, tag: int, flags: int
    ) -> None:
        make = partial(Loan, size=size, tag=tag, flags=flags)
        super().__init__(interface, make, plans.open_loan, timeout)


class TaskBorrowing(Block[Borrowing]):
    """An ipcqueue.Borrowing for an async with block."""

    def __init__(self, interface: Interface, limit: int | None, timeout: Seconds) -> None:
        super().__init__(interface, partial(Borrowing, limit=limit), plans.open_borrowing, timeout)
