"""Handing over a region, answered by a small message; and the bound: a descriptor over a socket.

The region's 8 MiB are neither written nor read but for a number at its beginning: what is measured
is the handing over.
"""

from __future__ import annotations

import os
from typing import Any

import fdpass
import memenpsf
from benchmarks.messages import NUMBER
from fdpass import MemoryRegistry

from .ours import Messages
from .sockets import Stream

REGION = 8 << 20  # bytes


class Region(Messages):
    """A region from a registry, to which it comes home."""

    def use(self, interface: Any) -> None:
        """Have a registry."""
        super().use(interface)
        self.registry = MemoryRegistry()

    def hand_over(self, number: int) -> bytes:
        """Give a region with a number in it; return the answer."""
        with self.registry.alloc(REGION) as region:
            NUMBER.pack_into(region.buffer, 0, number)
            self.interface.xmit(b"8 bytes.", regions=[region])
        return self.interface.recv()

    def give_back(self) -> int:
        """Take a region, and answer; return its number."""
        received = self.interface.recv_message()
        assert isinstance(received, memenpsf.Received), "there was no timeout"
        with received.regions[0] as region:
            number = NUMBER.unpack_from(region.buffer)[0]
        self.interface.xmit(NUMBER.pack(number))
        return number

    def close(self) -> None:
        """Close both."""
        super().close()
        self.registry.close()


class Descriptor(Stream):
    """Eight bytes and one descriptor by sendmsg, eight bytes back."""

    def use(self, sock: Any) -> None:
        """Have a descriptor to give."""
        super().use(sock)
        self.file = os.open(os.devnull, os.O_RDONLY)

    def hand_over(self, number: int) -> bytes:
        """Give it; return the answer."""
        fdpass.send_fds(self.sock, [self.file], NUMBER.pack(number))
        return self.sock.recv(NUMBER.size)

    def give_back(self) -> int:
        """Take it, and answer; return the number."""
        data, descriptors = fdpass.recv_fds(self.sock, max_data=NUMBER.size)
        for descriptor in descriptors:
            descriptor.close()
        self.sock.sendall(data)
        return NUMBER.unpack(data)[0]

    def close(self) -> None:
        """Close both."""
        super().close()
        os.close(self.file)
