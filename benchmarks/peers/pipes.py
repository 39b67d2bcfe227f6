"""os.pipe: the calls of the os module, and buffered file objects around the same.

The pipes have names (os.mkfifo), so that unrelated processes can open them; the kernel's code for
reading and writing is the same.  Above 4 KiB a pipe gets 1 MiB of buffer, as one would do.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
from typing import TYPE_CHECKING

from .base import Peer

if TYPE_CHECKING:
    from collections.abc import Iterator

LARGE = 4 << 10  # bytes of a message
ROOMY = 1 << 20  # bytes of a pipe
BUFFER = 64 << 10  # bytes of a buffered file: what a pipe holds


class Plain(Peer):
    """os.write and os.read of the whole message, and more of them if it was not whole."""

    reader: int
    writer: int

    def listen(self) -> None:
        """Make one pipe each way."""
        os.mkfifo(self.address + ".up")
        os.mkfifo(self.address + ".down")

    def accept(self) -> None:
        """Open them in the order in which the client does: opening waits for the other."""
        self.reader = os.open(self.address + ".up", os.O_RDONLY)
        self.writer = os.open(self.address + ".down", os.O_WRONLY)
        self.use()

    def connect(self) -> None:
        """Open the same."""
        self.writer = os.open(self.address + ".up", os.O_WRONLY)
        self.reader = os.open(self.address + ".down", os.O_RDONLY)
        self.use()

    def use(self) -> None:
        """Make room, and know the two calls."""
        if self.size > LARGE:
            with contextlib.suppress(PermissionError):  # the user's pipes hold too much already
                fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, ROOMY)
        self.send, self.recv = self.send_whole, self.recv_whole

    def send_whole(self, data: bytes) -> None:
        """Write one message."""
        written = os.write(self.writer, data)
        while written < len(data):
            written += os.write(self.writer, memoryview(data)[written:])

    def recv_whole(self) -> bytes:
        """Read one message."""
        size = self.size
        data = os.read(self.reader, size)
        return data if len(data) == size else self.recv_rest(data)

    def recv_rest(self, data: bytes) -> bytes:
        """Read what is missing, straight to its place."""
        whole = bytearray(self.size)
        whole[: len(data)] = data
        view, got = memoryview(whole), len(data)
        while got < self.size:
            with contextlib.suppress(BlockingIOError):
                if not (more := os.readv(self.reader, [view[got:]])):
                    raise EOFError
                got += more
        return bytes(whole)

    def recv_busy(self) -> bytes:
        """Ask until there is something."""
        os.set_blocking(self.reader, False)
        self.recv_busy = self.poll  # type: ignore[method-assign]
        return self.poll()

    def poll(self) -> bytes:
        """Ask a reader that does not block."""
        while True:
            try:
                data = os.read(self.reader, self.size)
            except BlockingIOError:
                continue
            return data if len(data) == self.size else self.recv_rest(data)

    def close(self) -> None:
        """Close both."""
        os.close(self.reader)
        os.close(self.writer)


class Buffered(Plain):
    """File objects with buffers of 64 KiB; flushed at the end of a turn, and read in a loop."""

    can_answer = can_poll = False

    def use(self) -> None:
        """Wrap both."""
        super().use()
        self.output = open(self.writer, "wb", buffering=BUFFER, closefd=False)  # noqa: SIM115
        self.input = open(self.reader, "rb", buffering=BUFFER, closefd=False)  # noqa: SIM115
        self.send, self.flush = self.output.write, self.output.flush
        self.recv = functools.partial(self.input.read, self.size)
        self.iterator = iter(self.recv, b"")

    def records(self) -> Iterator[bytes]:
        """Return an iterator that is all C."""
        return self.iterator

    def close(self) -> None:
        """Close all."""
        self.output.close()
        self.input.close()
        super().close()
