"""serve: a thread for each client, for programs without an event loop."""

from __future__ import annotations

import contextlib
import inspect
import threading
from typing import TYPE_CHECKING, Any, overload

from ipcqueue.lowlevel import Owner, seconds_of

from ._listener import Listener
from ._pending import PendingClients
from ._policy import OnError, Policy, check_serving
from ._thread_quota import ThreadQuota

if TYPE_CHECKING:
    from collections.abc import Callable
    from struct import Struct
    from typing import SupportsIndex, Unpack

    from ipcqueue import Encoded
    from ipcqueue.lowlevel import NumpyDtype, Seconds, T

    from ._interface import Interface
    from ._options import ListenAt, ListenOptions


@overload
def serve(
    handler: Callable[[Interface[bytes]], object],
    address: ListenAt,
    record: SupportsIndex,
    *,
    on_error: OnError = ...,
    drain: Seconds = ...,
    started: Callable[[Listener[bytes]], object] | None = ...,
    **options: Unpack[ListenOptions],
) -> None: ...
@overload
def serve(
    handler: Callable[[Interface[tuple[Any, ...]]], object],
    address: ListenAt,
    record: str | Struct,
    *,
    on_error: OnError = ...,
    drain: Seconds = ...,
    started: Callable[[Listener[tuple[Any, ...]]], object] | None = ...,
    **options: Unpack[ListenOptions],
) -> None: ...
@overload
def serve(
    handler: Callable[[Interface[T]], object],
    address: ListenAt,
    record: type[T] | Encoded[T],
    *,
    on_error: OnError = ...,
    drain: Seconds = ...,
    started: Callable[[Listener[T]], object] | None = ...,
    **options: Unpack[ListenOptions],
) -> None: ...
@overload
def serve(
    handler: Callable[[Interface[Any]], object],
    address: ListenAt,
    record: NumpyDtype,
    *,
    on_error: OnError = ...,
    drain: Seconds = ...,
    started: Callable[[Listener[Any]], object] | None = ...,
    **options: Unpack[ListenOptions],
) -> None: ...
def serve(
    handler: Callable[[Interface[Any]], object],
    address: ListenAt,
    record: Any,
    *,
    on_error: OnError = "log",
    drain: Seconds = None,
    started: Callable[[Listener[Any]], object] | None = None,
    **options: Unpack[ListenOptions],
) -> None:
    """Serve many clients: run handler(interface) in a thread for each, until it is stopped.

    It listens as memenpsf.listen, with the same options, and calls `started` with the Listener once
    clients can connect.  The interface of a client is closed when its handler is done.

    Listener.close(), from any thread or signal handler, stops it.  The handlers have `drain`
    seconds to finish (None: for ever; 0: none); after that every interface is aborted, so that a
    handler that uses one gets Closed and its client Aborted.  serve() returns when the handlers are
    done.  Ctrl-C aborts every interface at once, and is raised when the handlers are done; a second
    Ctrl-C does not wait for them.

    No client ends the server.  An exception from a client's own interface ends that client alone,
    and is logged in one line: the client has left, accepts only short messages, sends records that
    cannot be decoded, reads nothing in time, and so on.  A client that is refused, or for which no
    thread can be started, is logged and counts as refused, too.  Within 10 s the first 20 lines are
    logged; further ones are only counted.

    `threads` of the Quota limits the threads, 512 by default; the clients of one user (by uid) may
    have three quarters of them.  A client has one from accept() on until its handler is done.  A
    client for which there is none gets LimitRefused at once; it does not wait.

    `on_error` decides about any other exception of a handler, for example from another interface:
    "log" it with its traceback and go on serving; "raise" it from serve(), which ends all clients;
    or call a function on_error(interface, error), which may raise.  The function runs in the
    client's thread, so several may run at once, and the interface is closed by then.  Ctrl-C,
    SystemExit and other exceptions that are no Exception are always raised.

    Raises TypeError and ValueError before anything is opened, and what memenpsf.listen raises.
    """
    check_serving(handler, on_error, options, "drain", "started")
    if inspect.iscoroutinefunction(handler):
        raise TypeError(f"the handler is a plain function; for {handler!r} use memenpsf.trio.serve")
    if started is not None and not callable(started):
        raise TypeError(f"started is a function or None, not {started!r}")
    patience = min(seconds_of(drain, "drain"), threading.TIMEOUT_MAX)
    pending = PendingClients(address, record, **options)
    with Listener(pending) as listener:
        server = _Server(handler, listener, Policy(on_error, listener.address))
        pending.thread_quota = ThreadQuota(pending.max_threads, server.uids)
        server.run(started, patience)


# Seconds that a thread whose start() was interrupted may take to run; usually about 0.1 ms.
_STARTING = 0.5


class _Server(Owner):
    def __init__(
        self, handler: Callable[[Interface[Any]], object], listener: Listener[Any], policy: Policy
    ) -> None:
        self._handler = handler
        self._listener = listener
        self._policy = policy
        self._changed = threading.Condition()  # guards all of the following
        self._clients: dict[Interface[Any], threading.Thread] = {}
        self._done: list[threading.Thread] = []  # their clients are gone; to be joined
        self._failure: BaseException | None = None

    def uids(self) -> list[int]:
        """Return the user of each client that has a thread."""
        return [interface.peer.uid for interface in tuple(self._clients)]

    def run(self, started: Callable[[Listener[Any]], object] | None, patience: float) -> None:
        """Serve until it is stopped; handlers have `patience` seconds to finish."""
        try:
            if started is not None:
                started(self._listener)
            listener = self._listener
            for interface in listener:
                self._attend(interface)
                self._join()
            with self._changed:
                self._changed.wait_for(lambda: self._failure or not self._clients, patience)
        finally:
            self._listener.close()
            clients = self._snapshot()
            for interface in clients:  # close all before joining any: one may wait for another
                # If this fails, for lack of memory for example, the handler closes it.
                with contextlib.suppress(Exception):
                    interface.abort()
            for interface, thread in clients.items():
                self._await(interface, thread)
            self._join()
            self._policy.close()
        if self._failure is not None:
            raise self._failure

    def _snapshot(self) -> dict[Interface[Any], threading.Thread]:
        with self._changed:
            return dict(self._clients)

    def _await(self, interface: Interface[Any], thread: threading.Thread) -> None:
        """Wait until a thread is done, even if Ctrl-C interrupted its start()."""
        for _ in range(2):
            with contextlib.suppress(RuntimeError):  # it has not started yet, or never will
                thread.join()
                return
            with self._changed:
                self._changed.wait_for(lambda: interface not in self._clients, _STARTING)

    def _join(self) -> None:
        while self._done:
            self._done[0].join()  # before removing it, because Ctrl-C may come
            del self._done[0]

    def _attend(self, interface: Interface[Any]) -> None:
        try:
            # A daemon: otherwise the program would wait for it even after a second Ctrl-C.
            thread = threading.Thread(
                target=self._run, args=(interface,), name="memenpsf serve", daemon=True
            )
            with self._changed:
                self._clients[interface] = thread
            thread.start()
        except (RuntimeError, MemoryError) as error:  # no thread can be started
            with self._changed:
                self._clients.pop(interface, None)
            with contextlib.suppress(Exception):
                interface.abort()
            pending = self._listener._pending  # noqa: SLF001 (of one package)
            pending.refused += 1  # by this thread alone, as in turn()
            pending.log.add(error)

    def _run(self, interface: Interface[Any]) -> None:
        try:
            try:
                with interface:
                    self._handler(interface)
            except BaseException as error:  # noqa: BLE001 (raised by serve, if at all)
                failure = self._policy.settle(interface, error)
                if failure is not None:
                    self._fail(failure)
        finally:
            with self._changed:
                # It may be gone: start() can raise for lack of memory though the thread runs.
                thread = self._clients.pop(interface, threading.current_thread())
                self._changed.notify_all()
                self._done.append(thread)

    def _fail(self, failure: BaseException) -> None:
        """Have serve raise an exception: the first of several; the others are logged."""
        with self._changed:
            first = self._failure is None
            if first:
                self._failure = failure
                self._changed.notify_all()
        if first:
            self._listener.close()  # wakes the thread in accept()
        else:
            self._policy.tell(failure)


serve.__module__ = "memenpsf"  # as of all public names; see __init__
