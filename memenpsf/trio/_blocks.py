"""Loans and borrowings, for async with blocks."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar

from trio.lowlevel import enable_ki_protection

import ipcqueue
from ipcqueue import QueueError
from ipcqueue.lowlevel import Endpoint, Event, Owner, shown_seconds

from ._errors import OURS, Full, ours

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from ipcqueue.lowlevel import Seconds

T = TypeVar("T")


class Waiting(Protocol):
    """What of an Interface waits for its blocks."""

    _endpoint: Endpoint | None

    async def _opened(self) -> Endpoint: ...

    async def _until(
        self,
        attempt: Callable[[], T | None],
        event: Event,
        timeout: Seconds,
        units: Callable[[], int] = ...,
    ) -> T | None: ...


class AsyncLoan(Owner):
    """An ipcqueue.Loan for an async with block."""

    def __init__(
        self, interface: Waiting, size: int, timeout: Seconds, tag: int, flags: int
    ) -> None:
        self._interface = interface
        self._timeout = timeout
        self._make = partial(ipcqueue.Loan, size=size, tag=tag, flags=flags)
        endpoint = interface._endpoint  # noqa: SLF001 (one package)
        # At once if that is possible, so that a mistake is raised where it is made.
        self._loan: ipcqueue.Loan | None = self._make(endpoint) if endpoint else None

    @enable_ki_protection
    async def __aenter__(self) -> ipcqueue.Loan:
        try:
            interface = self._interface
            endpoint = interface._endpoint or await interface._opened()  # noqa: SLF001
            loan = self._loan = self._loan or self._make(endpoint)
            opened = await interface._until(  # noqa: SLF001
                loan.try_open, Event.SPACE, self._timeout, lambda: loan.units
            )
            if opened is None:
                raise Full(f"no space for a loan within {shown_seconds(self._timeout)}")
            return loan
        except Exception as error:
            raise ours(error, self._interface) from error.__cause__

    @enable_ki_protection
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            _leave(self._interface, self._loan, kind, error, traceback)
        except Exception as failure:
            raise ours(failure, self._interface) from failure.__cause__


class AsyncBorrowing(Owner):
    """An ipcqueue.Borrowing for an async with block."""

    def __init__(self, interface: Waiting, limit: int | None, timeout: Seconds) -> None:
        self._interface = interface
        self._timeout = timeout
        self._make = partial(ipcqueue.Borrowing, limit=limit)
        endpoint = interface._endpoint  # noqa: SLF001 (one package)
        self._borrowing: ipcqueue.Borrowing | None = self._make(endpoint) if endpoint else None

    @enable_ki_protection
    async def __aenter__(self) -> ipcqueue.Borrowing:
        try:
            interface = self._interface
            endpoint = interface._endpoint or await interface._opened()  # noqa: SLF001
            borrowing = self._borrowing = self._borrowing or self._make(endpoint)
            await interface._until(  # noqa: SLF001
                lambda: endpoint.or_end(borrowing.try_open), Event.RECORDS, self._timeout
            )
            return borrowing
        except Exception as error:
            raise ours(error, self._interface) from error.__cause__

    @enable_ki_protection
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            _leave(self._interface, self._borrowing, kind, error, traceback)
        except Exception as failure:
            raise ours(failure, self._interface) from failure.__cause__


def _leave(
    interface: Waiting,
    block: ipcqueue.Loan | ipcqueue.Borrowing | None,
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
