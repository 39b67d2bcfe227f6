"""Large messages: all of each is written by the sender, and read by the receiver, once.

Writing is one memcpy from memory that stays warm, reading is one to it.  Peers that copy write to
memory of their own and send that; those that lend write where the receiver will read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fdpass import MemoryRegion, MemoryRegistry

from . import mp, ours, pipes, sockets

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1 << 20
WAYS = 4  # messages that a ring has room for


class Copied:
    """A peer that carries bytes."""

    size: int
    send: Callable[[Any], object]
    recv: Callable[[], bytes]
    buffer: memoryview | None = None

    def send_filled(self, source: bytearray) -> None:
        """Write to memory of our own, and send it."""
        if self.buffer is None:
            self.buffer = memoryview(bytearray(self.size))
        self.buffer[:] = source
        self.send(self.buffer)

    def read(self, scratch: memoryview) -> None:
        """Read what came."""
        scratch[:] = self.recv()


class Roomy(ours.Messages):
    """A ring with room for four messages, so that they travel in it."""

    def options(self) -> dict[str, Any]:
        """Make room, a power of two."""
        capacity = max(MIB, 1 << (WAYS * self.size - 1).bit_length())
        return {"capacity": capacity, "inline": capacity}


class OursCopied(Copied, Roomy):
    """xmit and recv."""


class OursLent(Roomy):
    """Loan and borrow."""

    def send_filled(self, source: bytearray) -> None:
        """Write to the ring."""
        with self.interface.loan(self.size) as loan:
            loan.data[:] = source

    def read(self, scratch: memoryview) -> None:
        """Read in the ring."""
        with self.interface.borrow(1) as lent:
            scratch[:] = lent[0].data


class OursRegions(ours.Messages):
    """A region from a registry, to which it comes home, attached to a message.

    The message takes a quarter of the smallest ring, so that few regions are under way.
    """

    def options(self) -> dict[str, Any]:
        """Use the smallest ring."""
        return {"capacity": 4096, "inline": 4096}

    def use(self, interface: Any) -> None:
        """Have a registry."""
        super().use(interface)
        self.registry = MemoryRegistry()
        self.beside = bytes(4096 // WAYS - 16)

    def send_filled(self, source: bytearray) -> None:
        """Write to a region that has come home, if there is one."""
        with self.registry.alloc(self.size) as region:
            region.buffer[: self.size] = source
            self.interface.xmit(self.beside, regions=[region])

    def read(self, scratch: memoryview) -> None:
        """Read the region."""
        received = self.interface.recv_message()
        assert received is not None, "there was no timeout"
        with received.regions[0] as region:
            scratch[:] = region.buffer[: len(scratch)]

    def close(self) -> None:
        """Close both."""
        super().close()
        self.registry.close()


class OursNewRegions(OursRegions):
    """A region made anew for each message."""

    def send_filled(self, source: bytearray) -> None:
        """Write to a new one."""
        with MemoryRegion.create(self.size) as region:
            region.buffer[: self.size] = source
            self.interface.xmit(self.beside, regions=[region])


class PipeBytes(Copied, mp.PipeBytes):
    """send_bytes and recv_bytes."""


class Stream(Copied, sockets.Stream):
    """A stream socket."""


class Plain(Copied, pipes.Plain):
    """os.pipe."""
