"""What a peer has to offer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Absent(Exception):
    """This peer cannot be had here; the reason is for people."""


class Peer:
    """One side of one connection, in one process.

    The server's side is opened by listen, then accept; the client's by connect, after the other's
    listen.  Then `send` and `recv` are there: attributes, so that a method of the peer's own can
    be called without another around it.  A turn that only sends ends with flush.
    """

    kin: ClassVar[bool] = False  # the two processes must inherit what connects them
    modules: ClassVar[tuple[str, ...]] = ()  # distributions whose versions tell what was measured
    largest: ClassVar[int | None] = None  # bytes that a message can have
    can_answer: ClassVar[bool] = True  # a message at a time goes both ways
    can_poll: ClassVar[bool] = True  # recv_busy
    can_sleep: ClassVar[bool] = True  # recv, until a message comes
    workloads: ClassVar[tuple[str, ...] | None] = None  # takes part only in these

    spin: int | None = None  # how long to poll before sleeping, for who can be told; None: default
    # All round trips of a turn in one call, which checks them: for who has no Python in between.
    ask_all: Callable[[list[bytes]], list[int]] | None = None  # nanoseconds of each
    answer_all: Callable[[list[bytes]], None] | None = None

    send: Callable[[bytes], object]
    recv: Callable[[], bytes]

    def __init__(self, address: str, size: int, shared: Any = None) -> None:
        self.address = address
        self.size = size
        self.shared = shared

    @classmethod
    def share(cls, size: int) -> Any:
        """Make what both processes inherit; only for kin."""

    def listen(self) -> None:
        """Make the address known, and return."""

    def accept(self) -> None:
        """Wait for the client, and be connected."""
        raise NotImplementedError

    def connect(self) -> None:
        """Be connected with a server that listens."""
        raise NotImplementedError

    def prepare(self, *, streaming: bool) -> None:
        """Be ready for a turn: for a stream of messages, or to sleep until each comes."""

    def flush(self) -> None:
        """Have everything sent that is still here."""

    def recv_busy(self) -> bytes:
        """Return the next message, without ever sleeping."""
        raise NotImplementedError

    def records(self) -> Iterator[bytes] | None:
        """Return the iterator with which this peer is read in a loop; None: by recv."""
        return None

    def close(self) -> None:
        """End it."""
