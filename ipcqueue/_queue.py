"""Sender and Receiver: a one-way queue of typed records between two processes."""

from __future__ import annotations

import contextlib
import socket
from itertools import chain
from typing import TYPE_CHECKING, Any, overload

from ._errors import HandshakeTimeout
from ._guesses import RECEIVES, SENDS, guess
from ._link.endpoint import advance
from ._link.handshake import Role
from ._link.opening import Opening
from ._link.terms import Terms, check_options
from ._origin import tagged
from ._types import T
from ._verbs import Receives, Sends

if TYPE_CHECKING:
    from struct import Struct
    from typing import SupportsIndex, Unpack

    from fdpass import Seconds

    from ._link.endpoint import Endpoint
    from ._link.options import PairOptions, QueueOptions
    from ._records.messages import Encoded
    from ._types import N, NumpyDtype


class Sender(Sends[T]):
    """The end of a one-way queue that publishes records; its peer is a Receiver."""

    _role = Role(sends=True, receives=False)

    if TYPE_CHECKING:

        @overload
        def __init__(
            self: Sender[bytes],
            sock: socket.socket,
            record: SupportsIndex,
            **options: Unpack[QueueOptions],
        ) -> None: ...
        @overload
        def __init__(
            self: Sender[tuple[Any, ...]],
            sock: socket.socket,
            record: str | Struct,
            **options: Unpack[QueueOptions],
        ) -> None: ...
        @overload
        def __init__(
            self,
            sock: socket.socket,
            record: type[T] | Encoded[T],
            **options: Unpack[QueueOptions],
        ) -> None: ...
        @overload
        def __init__(
            self: Sender[Any],
            sock: socket.socket,
            record: NumpyDtype,
            **options: Unpack[QueueOptions],
        ) -> None: ...
        def __init__(self, *args: Any, **options: Any) -> None: ...

    push = Sends.xmit
    push_many = Sends.xmit_many

    @tagged
    def arm(self) -> bool:
        """Ask that fileno() become readable when there is space; False if there is already.

        For foreign event loops: until True comes back, go on working; then wait.  Without arm() no
        doorbell comes.  Other calls may be made meanwhile, by any thread or task: if one of them
        reads the doorbell, fileno() stays readable.  It may be readable for nothing, so look, and
        call arm() again.  Up to eight tasks can arm one end before their loop polls fileno().
        """
        return self._endpoint.arm(records=False, space=True)


class Receiver(Receives[T]):
    """The end of a one-way queue that takes records; its peer is a Sender."""

    _role = Role(sends=False, receives=True)

    if TYPE_CHECKING:

        @overload
        def __init__(
            self: Receiver[bytes],
            sock: socket.socket,
            record: SupportsIndex,
            **options: Unpack[QueueOptions],
        ) -> None: ...
        @overload
        def __init__(
            self: Receiver[tuple[Any, ...]],
            sock: socket.socket,
            record: str | Struct,
            **options: Unpack[QueueOptions],
        ) -> None: ...
        @overload
        def __init__(
            self,
            sock: socket.socket,
            record: type[T] | Encoded[T],
            **options: Unpack[QueueOptions],
        ) -> None: ...
        @overload
        def __init__(
            self: Receiver[Any],
            sock: socket.socket,
            record: NumpyDtype,
            **options: Unpack[QueueOptions],
        ) -> None: ...
        def __init__(self, *args: Any, **options: Any) -> None: ...

    pop = Receives.recv
    if TYPE_CHECKING:
        # Of numpy scalars many are an array; checkers want to hear that of this very class.
        @overload
        def recv_vectored(
            self: Receiver[N], limit: int | None = None, timeout: Seconds = None
        ) -> Any: ...
        @overload
        def recv_vectored(self, limit: int | None = None, timeout: Seconds = None) -> list[T]: ...
        def recv_vectored(self, limit: int | None = None, timeout: Seconds = None) -> Any: ...

    if TYPE_CHECKING:

        @overload
        def pop_many(
            self: Receiver[N], limit: int | None = None, timeout: Seconds = None
        ) -> Any: ...
        @overload
        def pop_many(self, limit: int | None = None, timeout: Seconds = None) -> list[T]: ...
        def pop_many(self, limit: int | None = None, timeout: Seconds = None) -> Any: ...
    else:
        pop_many = Receives.recv_vectored

    @tagged
    def arm(self) -> bool:
        """Ask that fileno() become readable at the next record; False if one is there already.

        For foreign event loops: until True comes back, go on taking; then wait.  Without arm() no
        doorbell comes.  Other calls may be made meanwhile, by any thread or task: if one of them
        reads the doorbell, fileno() stays readable.  It may be readable for nothing, so look, and
        call arm() again.  Up to eight tasks can arm one end before their loop polls fileno().
        """
        return self._endpoint.arm(records=True, space=False)

    @tagged
    def indices(self) -> tuple[int, int]:
        """Return (head, tail): records the sender has published, and those taken here.

        Bytes of the ring with messages of any length; see Sender.indices.  Raises Closed.
        """
        return self._endpoint.indices()


_SENDS = ("xmit", "xmit_many", "push", "push_many", "loan", "await_space", *chain(*SENDS.values()))
_RECEIVES = (
    "recv", "recv_vectored", "recv_message", "pop", "pop_many", "borrow", *chain(*RECEIVES.values()),
)  # fmt: skip
guess(Sender, {"it only sends; its peer, a Receiver, receives": _RECEIVES})
guess(Receiver, {"it only receives; its peer, a Sender, sends": _SENDS})


@overload
def pair(
    record: SupportsIndex, capacity: int | None = None, **options: Unpack[PairOptions]
) -> tuple[Sender[bytes], Receiver[bytes]]: ...
@overload
def pair(
    record: str | Struct, capacity: int | None = None, **options: Unpack[PairOptions]
) -> tuple[Sender[tuple[Any, ...]], Receiver[tuple[Any, ...]]]: ...
@overload
def pair(
    record: type[T] | Encoded[T], capacity: int | None = None, **options: Unpack[PairOptions]
) -> tuple[Sender[T], Receiver[T]]: ...
@overload
def pair(
    record: NumpyDtype, capacity: int | None = None, **options: Unpack[PairOptions]
) -> tuple[Sender[Any], Receiver[Any]]: ...
def pair(
    record: Any, capacity: int | None = None, **options: Unpack[PairOptions]
) -> tuple[Sender[Any], Receiver[Any]]:
    """Return the two ends of a queue, in one process.

    To have one end in another process, connect two sockets instead: a forked child may not use
    its parent's end.
    """
    check_options("pair", options)
    roles = Role(sends=True, receives=False), Role(sends=False, receives=True)
    first, second = open_pair(
        *(Terms(record, role, capacity=capacity, **options) for role in roles)
    )
    return Sender.of(first), Receiver.of(second)


def open_pair(*both: Terms) -> tuple[Endpoint, Endpoint]:
    """Open the two ends of a socket pair in one thread."""
    with contextlib.ExitStack() as undo:
        socks = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        for sock in socks:
            undo.callback(sock.close)
        openings: list[Opening] = []
        for sock, terms in zip(socks, both, strict=True):
            openings.append(Opening(sock, terms))
            undo.callback(openings[-1].abandon)
        opened: dict[Opening, Endpoint] = {}
        # The first says hello and hears nothing yet; the second does both; then the first hears.
        for opening in openings * 2:
            if opening not in opened and (endpoint := advance(opening)) is not None:
                undo.callback(endpoint.close)
                opened[opening] = endpoint
        if len(opened) < len(openings):
            raise HandshakeTimeout("the two ends of a socket pair did not hear from each other")
        undo.pop_all()
    first, second = (opened[opening] for opening in openings)
    return first, second
