"""Interface: two queues of typed records, one each way, between two processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

from ipcqueue.lowlevel import (
    Opening,
    Receives,
    Sends,
    T,
    Terms,
    drive,
    drop_socket,
    guess,
    open_endpoint,
    open_pair,
    tagged,
)

from ._options import (
    BOTH_WAYS,
    check_interface_options,
    checked_role,
    checked_stream,
    prepare_to_connect,
)

if TYPE_CHECKING:
    import os
    import socket
    from struct import Struct
    from typing import SupportsIndex, Unpack

    from ipcqueue import Encoded, Options
    from ipcqueue.lowlevel import (
        N,
        NumpyDtype,
        PairOptions,
        QueueOptions,
        Seconds,
    )

    from ._options import ConnectOptions, InterfaceOptions, SeekOptions


class Interface(Sends[T], Receives[T]):
    """One side of a two-way connection that moves typed records through shared memory.

    `capacity` records, or bytes of messages, can be under way from this side to the peer; the peer
    chooses the other direction.  `role` ("client" or "server") is a label: both sides can do the
    same.  Any number of threads may send and receive at once.  For the rest see Connection.
    """

    _instead = (
        "let the other process open an end of its own: give it the address, for connect(), or, as "
        "it is started, an end of memenpsf.pipe(), which is not open yet; or give it received "
        "records, which are values"
    )
    _role = BOTH_WAYS
    role: str = "client"

    @overload
    def __init__(
        self: Interface[bytes],
        stream: socket.socket,
        record: SupportsIndex,
        **options: Unpack[InterfaceOptions],
    ) -> None: ...
    @overload
    def __init__(
        self: Interface[tuple[Any, ...]],
        stream: socket.socket,
        record: str | Struct,
        **options: Unpack[InterfaceOptions],
    ) -> None: ...
    @overload
    def __init__(
        self,
        stream: socket.socket,
        record: type[T] | Encoded[T],
        **options: Unpack[InterfaceOptions],
    ) -> None: ...
    @overload
    def __init__(
        self: Interface[Any],
        stream: socket.socket,
        record: NumpyDtype,
        **options: Unpack[InterfaceOptions],
    ) -> None: ...
    def __init__(
        self,
        stream: socket.socket,
        record: Any,
        *,
        name: str = "",
        capacity: int | None = None,
        role: str = "client",
        timeout: Seconds = 5.0,
        **options: Unpack[Options],
    ) -> None:
        """Introduce both sides over a connected AF_UNIX SOCK_STREAM socket; see Connection.

        Takes the socket, also when this fails.
        """
        checked_stream(stream)
        try:
            self.role = checked_role(role)
            check_interface_options(type(self).__name__, options, ("role",))
        except BaseException:
            drop_socket(stream)
            raise
        super().__init__(stream, record, name=name, capacity=capacity, timeout=timeout, **options)

    if TYPE_CHECKING:
        # Of numpy scalars many are an array; checkers want to hear that of this very class.
        @overload
        def recv_vectored(
            self: Interface[N], limit: int | None = None, timeout: Seconds = None
        ) -> Any: ...
        @overload
        def recv_vectored(self, limit: int | None = None, timeout: Seconds = None) -> list[T]: ...
        def recv_vectored(self, limit: int | None = None, timeout: Seconds = None) -> Any: ...

    @tagged
    def arm(self, *, records: bool = True, space: bool = False) -> bool:
        """Ask that fileno() become readable at the next record (or when there is space).

        For foreign event loops.  Returns False if there is something to do already: go on
        working and call it again.  After True, wait until fileno() is readable; without arm() no
        doorbell comes.  Other calls may be made meanwhile, by any thread or task: if one of them
        reads the doorbell, fileno() stays readable.  It may be readable for nothing, so look, and
        call arm() again.

        Up to eight tasks can arm one interface, for different things, before their loop polls
        fileno(): it wakes all of them.  Raises ForkedUse; OSError as fileno() does.
        """
        return self._endpoint.arm(records=records, space=space)


guess(
    Interface,
    {
        "use xmit()": ("push",),
        "use xmit_many()": ("push_many",),
        "use recv()": ("pop",),
        "use recv_vectored()": ("pop_many",),
        "listen() returns what accepts": ("accept",),
        "use close()": ("aclose",),
    },
)


@overload
def connect(
    address: str | os.PathLike[str], record: SupportsIndex, **options: Unpack[SeekOptions]
) -> Interface[bytes]: ...
@overload
def connect(
    address: str | os.PathLike[str], record: str | Struct, **options: Unpack[SeekOptions]
) -> Interface[tuple[Any, ...]]: ...
@overload
def connect(
    address: str | os.PathLike[str],
    record: type[T] | Encoded[T],
    **options: Unpack[SeekOptions],
) -> Interface[T]: ...
@overload
def connect(
    address: str | os.PathLike[str], record: NumpyDtype, **options: Unpack[SeekOptions]
) -> Interface[Any]: ...
def connect(
    address: str | os.PathLike[str],
    record: Any,
    *,
    timeout: Seconds = 5.0,
    retry: Seconds = 0,
    **options: Unpack[ConnectOptions],
) -> Interface[Any]:
    """Connect to a server; the address is a bare name, a path, or @name (abstract).

    A bare name is looked for in the directories of this user (by effective uid), and in no others:
    /run/user/UID/memenpsf and /tmp/memenpsf-UID, or $MEMENPSF_RUNTIME_DIR/memenpsf alone if that is
    set.  Options are those of Interface.

    Raises OSError at once if there is no server: FileNotFoundError, or ConnectionRefusedError where
    a dead server has left its file; both say where was looked, and which servers are there.  A file
    newer than 0.25 s may be of a server that is just starting, so it is tried for so long.
    HandshakeTimeout, and what Interface raises.

    With `retry`, client and server may start in any order: while there is no server, it tries again
    for `retry` seconds (None: for ever), at least ten times a second, and raises the same errors
    afterwards, which say for how long it tried.  `timeout` is the time for the handshake; it begins
    when a server is found.  What happens after that is not tried again.
    """
    # Slow to import, and not needed by programs that bring their own sockets.
    from ._seeking import connecting  # noqa: PLC0415

    where, terms, role = prepare_to_connect(address, record, timeout, options)
    found = drive(connecting(where, timeout, retry))
    opening = Opening(found.sock, terms)
    opening.deadline = found.deadline
    opening.address = str(found.address)
    opening.who = f"the server at {opening.address}"
    interface: Interface[Any] = Interface.of(open_endpoint(opening))
    interface.role = role
    return interface


@overload
def pair(
    record: SupportsIndex, **options: Unpack[QueueOptions]
) -> tuple[Interface[bytes], Interface[bytes]]: ...
@overload
def pair(
    record: str | Struct, **options: Unpack[QueueOptions]
) -> tuple[Interface[tuple[Any, ...]], Interface[tuple[Any, ...]]]: ...
@overload
def pair(
    record: type[T] | Encoded[T], **options: Unpack[QueueOptions]
) -> tuple[Interface[T], Interface[T]]: ...
@overload
def pair(
    record: NumpyDtype, **options: Unpack[QueueOptions]
) -> tuple[Interface[Any], Interface[Any]]: ...
def pair(
    record: Any, *, capacity: int | None = None, **options: Unpack[PairOptions]
) -> tuple[Interface[Any], Interface[Any]]:
    """Return the two sides of a connection, in one process: for tests, and between threads."""
    check_interface_options("pair", options)
    terms = Terms(record, BOTH_WAYS, capacity=capacity, **options)
    first, second = open_pair(terms, terms)
    return Interface.of(first), Interface.of(second)
