"""pipe: two ends that are not open yet, for this process and a child, as multiprocessing.Pipe().

An open end cannot move to another process, because only the mapping made before the seal can write.
So what moves is a socket, with what is wanted of the connection; the child opens it.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from typing import TYPE_CHECKING, Any, Generic, SupportsIndex, overload

from ipcqueue import Closed
from ipcqueue.lowlevel import Closable, T, Terms

from ._interface import Interface
from ._options import BOTH_WAYS, check_interface_options

if TYPE_CHECKING:
    from struct import Struct
    from typing import Unpack

    from ipcqueue import Encoded
    from ipcqueue.lowlevel import NumpyDtype, QueueOptions


class PipeEnd(Closable, Generic[T]):
    """One end of a connection to a child, not open yet; made by pipe() or pipe_end().

    Only one process may open it.  It can be pickled while multiprocessing starts a child, and at no
    other time.
    """

    _instead = (
        "give it to a child as it is started, as an argument of multiprocessing.Process or of the "
        "initializer of a pool, or by pass_fds and its fileno() on the command line"
    )
    _sock: socket.socket | None = None

    def __init__(self, sock: socket.socket, record: Any, role: str, options: Any) -> None:
        self._record = record
        self._role = role
        self._options = options
        self._sock = sock

    def open(self) -> Interface[T]:
        """Introduce both sides, and return this one; waits for the other, at most `timeout`.

        Takes the socket, also when this fails.  Raises Closed if it was opened or closed here
        before, and what Interface raises: PeerDied if every copy of the other end is closed.
        """
        make: Any = Interface  # which overload it is, only the caller of pipe() knows
        interface: Interface[T] = make(
            self.detach(), self._record, role=self._role, **self._options
        )
        return interface

    def detach(self) -> socket.socket:
        """Return the socket, which the caller has to close; for memenpsf.trio.Interface."""
        sock, self._sock = self._checked(), None
        return sock

    def fileno(self) -> int:
        """Return the socket's descriptor: for pass_fds of a subprocess, and its command line."""
        return self._checked().fileno()

    def _checked(self) -> socket.socket:
        if self._sock is None:
            raise Closed("this end has been opened or closed in this process before")
        return self._sock

    def close(self) -> None:
        """Close this process's copy of the end; a second call does nothing.

        Do so once the child has it.  Otherwise the other end does not learn of a child that dies
        before it has opened it, and waits for `timeout`.
        """
        sock, self._sock = self._sock, None
        if sock is not None:
            sock.close()

    def __reduce_ex__(self, protocol: SupportsIndex, /) -> Any:
        """Hand it to a child that multiprocessing starts in this thread; TypeError otherwise."""
        context = sys.modules.get("multiprocessing.context")
        if context is None or context.get_spawning_popen() is None:
            return super().__reduce_ex__(protocol)
        from multiprocessing.reduction import DupFd  # noqa: PLC0415 (it is loaded)

        handed = DupFd(self.fileno())
        return _received, (handed, self._record, self._role, self._options)

    def __repr__(self) -> str:
        sock = self._sock
        state = "opened or closed here" if sock is None else f"descriptor {sock.fileno()}"
        return f"<PipeEnd: {state}>"


def _received(handed: Any, record: Any, role: str, options: Any) -> PipeEnd[Any]:
    """Make an end again, in the child."""
    return PipeEnd(_socket(handed.detach()), record, role, options)


def _socket(descriptor: int) -> socket.socket:
    sock = socket.socket(fileno=descriptor)
    sock.set_inheritable(False)  # not for the children of the child
    return sock


def _checked(caller: str, record: Any, options: Any) -> tuple[Any, Any]:
    """Check record and options before anything is opened; return them as they can be pickled."""
    check_interface_options(caller, options)
    terms = Terms(record, BOTH_WAYS, **options)
    if "allow_uids" in options:
        options["allow_uids"] = terms.allow_uids
    return (record.format if isinstance(record, struct.Struct) else record), options


@overload
def pipe(
    record: SupportsIndex, **options: Unpack[QueueOptions]
) -> tuple[PipeEnd[bytes], PipeEnd[bytes]]: ...
@overload
def pipe(
    record: str | Struct, **options: Unpack[QueueOptions]
) -> tuple[PipeEnd[tuple[Any, ...]], PipeEnd[tuple[Any, ...]]]: ...
@overload
def pipe(
    record: type[T] | Encoded[T], **options: Unpack[QueueOptions]
) -> tuple[PipeEnd[T], PipeEnd[T]]: ...
@overload
def pipe(
    record: NumpyDtype, **options: Unpack[QueueOptions]
) -> tuple[PipeEnd[Any], PipeEnd[Any]]: ...
def pipe(record: Any, **options: Any) -> tuple[PipeEnd[Any], PipeEnd[Any]]:
    """Return two ends that are not open yet: one for this process, one for a child.

    Give one to a child: as an argument of multiprocessing.Process or of a pool's initializer, by
    spawn, forkserver or fork; or to a subprocess, with pass_fds=[end.fileno()] and the number as a
    word of its command line, for pipe_end().  Close it here then, and open() the other one; the
    child opens its own.  Options are those of Interface, for both ends.

    Raises TypeError and ValueError before anything is opened, and OSError.
    """
    record, options = _checked("pipe", record, options)
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    return PipeEnd(one, record, "server", options), PipeEnd(other, record, "client", options)


@overload
def pipe_end(
    word: str | int, record: SupportsIndex, **options: Unpack[QueueOptions]
) -> PipeEnd[bytes]: ...
@overload
def pipe_end(
    word: str | int, record: str | Struct, **options: Unpack[QueueOptions]
) -> PipeEnd[tuple[Any, ...]]: ...
@overload
def pipe_end(
    word: str | int, record: type[T] | Encoded[T], **options: Unpack[QueueOptions]
) -> PipeEnd[T]: ...
@overload
def pipe_end(
    word: str | int, record: NumpyDtype, **options: Unpack[QueueOptions]
) -> PipeEnd[Any]: ...
def pipe_end(word: str | int, record: Any, **options: Any) -> PipeEnd[Any]:
    """Return an end of pipe() that the parent has passed to this program by pass_fds.

    `word` is the number of its descriptor, as it stands on the command line.  The record must be
    that of pipe(); the options are those of Interface, for this end.  It takes the descriptor.

    Raises ValueError for a word that is no number, OSError if no socket has it, and what pipe()
    raises.
    """
    record, options = _checked("pipe_end", record, options)
    try:
        number = int(word)
    except (TypeError, ValueError):
        raise ValueError(
            f"expected the number of a descriptor, such as sys.argv[1], not {word!r}"
        ) from None
    if number < 0:
        raise ValueError(f"expected the number of a descriptor, not {word!r}")
    try:
        os.fstat(number)
        return PipeEnd(_socket(number), record, "client", options)
    except OSError as error:
        raise OSError(
            error.errno,
            f"{error.strerror}: descriptor {number} is no socket that this program was given; its "
            "parent has to start it with pass_fds=[end.fileno()]",
        ) from None


# As of all public names; see __init__.
PipeEnd.__module__ = pipe.__module__ = pipe_end.__module__ = "memenpsf"
