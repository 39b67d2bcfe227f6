"""memenpsf, with default settings: messages of any length, and records of a fixed size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import memenpsf

from .base import Peer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from memenpsf import Interface, Listener

LARGEST_RING = 64 << 20  # bytes; 1,024 records of 1 MiB would be 1 GiB each way


def ring_capacity(size: int) -> int | None:
    """Return for how many records of a size a ring is made; None: for the default, 1,024."""
    return None if size * 1024 <= LARGEST_RING else max(4, LARGEST_RING // size)


class Messages(Peer):
    """record=bytes."""

    modules = ("memenpsf",)
    listener: Listener
    interface: Interface

    def record(self) -> Any:
        """Return what both sides state."""
        return bytes

    def options(self) -> dict[str, Any]:
        """Return what differs from the default."""
        return {} if self.spin is None else {"wait": memenpsf.Spin(self.spin)}

    def listen(self) -> None:
        """Bind the socket."""
        self.listener = memenpsf.listen(self.address, self.record(), **self.options())

    def accept(self) -> None:
        """Take the client; no other will come."""
        with self.listener:
            self.use(self.listener.accept())

    def connect(self) -> None:
        """Connect by the path of the socket."""
        self.use(memenpsf.connect(self.address, self.record(), **self.options()))

    def use(self, interface: Interface) -> None:
        """Have its own methods called."""
        self.interface = interface
        self.send, self.recv = interface.xmit, interface.recv

    def recv_busy(self) -> bytes:
        """Ask until there is one."""
        recv = self.interface.recv
        while (record := recv(0)) is None:
            pass
        return record

    def close(self) -> None:
        """Close it."""
        self.interface.close()


class Fixed(Messages):
    """record=<size>; beyond 64 KiB with fewer than the default 1,024 in the ring."""

    def record(self) -> Any:
        """Return the size."""
        return self.size

    def options(self) -> dict[str, Any]:
        """Bound the memory."""
        capacity = ring_capacity(self.size)
        return super().options() | ({} if capacity is None else {"capacity": capacity})


class Busy(Fixed):
    """The same with wait="busy": recv itself polls, for as long as it takes."""

    workloads = ("roundtrip", "busy-roundtrip")
    can_sleep = False

    def options(self) -> dict[str, Any]:
        """Never sleep."""
        return super().options() | {"wait": "busy"}

    def use(self, interface: Interface) -> None:
        """Poll by recv."""
        super().use(interface)
        self.recv_busy = interface.recv  # type: ignore[method-assign]


class IteratedMessages(Messages):
    """Messages, taken by `for record in interface`."""

    can_answer = can_poll = False

    def use(self, interface: Interface) -> None:
        """Iterate over it, once for all turns."""
        super().use(interface)
        self.iterator = iter(interface)

    def records(self) -> Iterator[bytes]:
        """Return what `for` would use."""
        return self.iterator


class IteratedFixed(IteratedMessages, Fixed):
    """Records of a fixed size, taken by `for record in interface`."""
