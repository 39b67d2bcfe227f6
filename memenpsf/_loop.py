"""The run loop for plain threads: one interface between two queues."""

from __future__ import annotations

import contextlib
import queue
import reprlib
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from ipcqueue import (
    BadRecord,
    Closed,
    CorruptPeer,
    DescriptorsLost,
    EndOfStream,
    PeerDied,
    ReceiverGone,
    Refused,
    TooLarge,
    Unaccepted,
    interface_of,
)
from ipcqueue.lowlevel import ABORTED, Owner, drop_socket

from ._interface import Interface
from ._options import check_interface_options, checked_stream

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable
    from typing import Unpack

    from ipcqueue import Options


OnSourceEnd: TypeAlias = Literal["finish", "eof"]


class Source(Protocol):
    """The part of queue.Queue that the loop takes items from."""

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Return the next item or raise queue.Empty."""


class Sink(Protocol):
    """The part of queue.Queue that the loop puts items into."""

    def put(self, item: Any) -> Any:
        """Take an item, waiting for room."""


@dataclass
class Ended:
    """How a run loop ended, if it did not raise.

    `cause` is EndOfStream or PeerDied; Closed if the source ended; or an error that the peer's
    limits, its records or a shortage caused: TooLarge, Unaccepted, DecodeFailed, OSError,
    MemoryError.  `unsent` holds the items taken from the source but never published; after
    TooLarge, the message that the peer does not accept.
    """

    cause: Exception
    unsent: list[Any] = field(default_factory=list)

    def __repr__(self) -> str:
        unsent = reprlib.repr(getattr(self, "unsent", None))  # None: half made
        return f"Ended(cause={getattr(self, 'cause', None)!r}, unsent={unsent})"


# Seconds after which the sending thread looks whether the peer has ended.  It cannot be woken: a
# wait for a queue.Queue cannot be interrupted.
_LOOK_UP = 0.1

# These end both directions of a connection: the receiving side raises it, too, after draining.
ENDS = (EndOfStream, ReceiverGone, PeerDied, Refused, CorruptPeer, DescriptorsLost, Closed)

# The loop raises these; all other errors of the interface end it without raising.
_RAISED = (Refused, CorruptPeer, DescriptorsLost, BadRecord)
_THE_PEERS_LIMITS = (TooLarge, Unaccepted)  # though they are BadRecord


def is_a_cause(error: Exception, interface: object) -> bool:
    """Whether a run loop ends with this error without raising it: the program did not cause it."""
    if interface_of(error) is not interface:
        return False  # the source or the sink raised it
    return isinstance(error, _THE_PEERS_LIMITS) or not isinstance(error, _RAISED)


def sends_no_more(interface: Any) -> bool:
    """Whether nothing more can be sent over it, as one of the two sides has ended that."""
    return bool(interface._endpoint.sends_no_more)  # noqa: SLF001 (of these packages)


def break_off(interface: Any) -> None:
    """End it as abort() does, but so that what has arrived can still be received."""
    interface._endpoint.finish(ABORTED)  # noqa: SLF001 (of these packages)


def hand_back(error: BaseException, unsent: list[Any]) -> None:
    """Note in an exception which items a run loop took from the source and did not publish."""
    with contextlib.suppress(AttributeError):
        error.unsent = unsent  # type: ignore[attr-defined]


# queue.ShutDown came with Python 3.13.
_SHUT_DOWN: tuple[type[Exception], ...] = (queue.ShutDown,) if hasattr(queue, "ShutDown") else ()


def run(
    name: str,
    cap: int,
    typ: int,
    stream: socket.socket,
    recvr: Source,
    sender: Sink,
    record: Any,
    *,
    on_source_end: OnSourceEnd = "finish",
    **options: Unpack[Options],
) -> Ended:
    """Move records between a connection and two queues until the peer ends.

    It sends what is put into `recvr`, and puts all that arrives into `sender` before it returns.
    None in `recvr` (or its shutdown, Python >= 3.13) is the end of the source: after everything
    before it is sent, `on_source_end` "finish" ends the connection in good order, and delivers what
    has arrived; "eof" ends only what this side sends, and delivers what comes until the peer ends,
    too.  `cap` is the capacity of each direction, `typ` is 0 for a client and anything else for a
    server.  Takes the stream.

    Returns how it ended; see Ended for what the peer's doing is.  Raises CorruptPeer, Refused,
    DescriptorsLost, what Interface raises, BadRecord for what was put into `recvr`, and whatever
    the queues raise.  What was taken from `recvr` and not published is in Ended.unsent, or in the
    attribute `unsent` of the exception; what came from the peer is in `sender`, up to what could
    not be decoded.
    """
    role: Literal["client", "server"] = "client" if typ == 0 else "server"
    checked_stream(stream)
    try:
        check_loop_options(options, on_source_end)
    except (TypeError, ValueError):
        drop_socket(stream)
        raise
    with Interface(stream, record, name=name, capacity=cap, role=role, **options) as interface:
        return _Loop(interface, recvr, sender, on_source_end).run()


def check_loop_options(options: Iterable[str], on_source_end: OnSourceEnd) -> None:
    """Raise TypeError for an option that is none of run(), ValueError for no end of a source."""
    arguments = {"capacity": "the argument `cap`", "role": "the argument `typ`"}
    check_interface_options("run", options, ("on_source_end",), elsewhere=arguments)
    if on_source_end not in ("finish", "eof"):
        raise ValueError(f"on_source_end is 'finish' or 'eof', not {on_source_end!r}")


class _Loop(Owner):
    def __init__(
        self, interface: Interface, source: Source, sink: Sink, on_source_end: OnSourceEnd
    ) -> None:
        self._interface = interface
        self._on_source_end = on_source_end
        self._source = source
        self._sink = sink
        self._over = threading.Event()
        self._unsent: list[Any] = []
        self._cause: Exception | None = None  # of the end of sending, if receiving does not meet it
        self._error: BaseException | None = None

    def run(self) -> Ended:
        thread = threading.Thread(target=self._send, name="memenpsf run: sending", daemon=True)
        thread.start()
        try:
            try:
                cause = self._receive()
                if isinstance(cause, EndOfStream) and not sends_no_more(self._interface):
                    thread.join()  # the peer sends no more, but goes on receiving
            except BaseException as error:
                self._stop(thread, error)
                raise
            self._stop(thread, self._error)
            if self._error is not None:
                raise self._error
        except BaseException as error:
            hand_back(error, self._unsent)
            raise
        return Ended(self._cause or cause, self._unsent)

    def _stop(self, thread: threading.Thread, error: BaseException | None) -> None:
        """End the connection, as a block that is left by this, and so the sending thread."""
        self._over.set()
        self._interface.__exit__(type(error), error, None)
        thread.join()

    def _receive(self) -> Exception:
        while True:
            try:
                records = self._interface.recv_vectored()
            except Exception as error:
                if is_a_cause(error, self._interface):
                    return error
                raise
            for record in records:
                self._sink.put(record)

    def _send(self) -> None:
        """Run as a thread; ends by itself or soon after `_over` is set."""
        try:
            while not self._over.is_set():
                # Wait for space first.  Then a record from the source can be sent at once, and
                # none is lost if the loop is interrupted.
                self._interface.await_space()
                try:
                    record = self._source.get(timeout=_LOOK_UP)
                except queue.Empty:
                    continue
                except _SHUT_DOWN:
                    record = None
                if record is None:
                    break
                try:
                    self._interface.xmit(record)
                except BaseException:  # it was not sent
                    self._unsent.append(record)
                    raise
        except BaseException as error:  # noqa: BLE001 (raised by run)
            if isinstance(error, ENDS) and interface_of(error) is self._interface:
                return  # the receiving side raises the same, after draining
            if isinstance(error, Exception) and is_a_cause(error, self._interface):
                self._cause = error
            else:
                self._error = error
                break_off(self._interface)
            self._interface.finish()
            return
        if self._over.is_set() or self._on_source_end == "finish":
            self._interface.finish()
        else:
            self._interface.send_eof()


Ended.__module__ = run.__module__ = "memenpsf"  # as of all public names; see __init__
