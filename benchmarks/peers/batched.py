"""Batches of records of 64 B: each peer uses its call for many, in the forms that it can carry.

What carries bytes carries an array as its memory, and makes a new one around what comes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from benchmarks import records

from . import mp, ours, pipes, sockets

if TYPE_CHECKING:
    from collections.abc import Callable


class Batched:
    """What a peer of batches has beside the others."""

    form: ClassVar[str] = "tuples"
    send_batch: Callable[[Any], object]

    def recv_batch(self, most: int) -> Any:
        """Return some records: as many as were sent at once, or as there are, but no more."""
        raise NotImplementedError


class OursTuples(Batched, ours.Messages):
    """xmit_many and recv_vectored; a struct's tuples."""

    def record(self) -> Any:
        """Return the format."""
        return records.FORMAT

    def use(self, interface: Any) -> None:
        """Have its own methods called."""
        super().use(interface)
        self.send_batch, self.recv_batch = interface.xmit_many, interface.recv_vectored


class OursNumpy(OursTuples):
    """The same with arrays."""

    form = "numpy"

    def record(self) -> Any:
        """Return the type of numpy."""
        return records.form("numpy").all.dtype


class OursFixed(OursTuples):
    """The same with bytes of a fixed size."""

    form = "bytes"

    def record(self) -> Any:
        """Return the size."""
        return records.SIZE


class OursMessages(OursFixed):
    """The same with messages of any length."""

    def record(self) -> Any:
        """Return what says so."""
        return bytes


class PipeTuples(Batched, mp.PipePickled):
    """The list, pickled."""

    def use(self, connection: Any) -> None:
        """Send a list as any other object."""
        super().use(connection)
        self.send_batch = self.send

    def recv_batch(self, most: int) -> Any:  # noqa: ARG002
        """Return a list."""
        return self.recv()


class QueueTuples(Batched, mp.Queue):
    """The list, pickled by another thread."""

    def use(self, source: Any, sink: Any) -> None:
        """Send a list as any other object."""
        super().use(source, sink)
        self.send_batch = self.send

    def recv_batch(self, most: int) -> Any:  # noqa: ARG002
        """Return a list."""
        return self.recv()


class AsMemory(Batched):
    """Arrays, by a peer that carries bytes."""

    form = "numpy"
    recv: Callable[[], bytes]
    send: Callable[[bytes], object]

    def send_batch(self, batch: Any) -> None:
        """Send the memory of it."""
        self.send(batch.data.cast("B"))

    def recv_batch(self, most: int) -> Any:  # noqa: ARG002
        """Return an array around what came."""
        return self.frombuffer(self.recv(), self.dtype)

    def prepare(self, *, streaming: bool) -> None:  # noqa: ARG002
        """Know what an array is made of."""
        import numpy as np  # noqa: PLC0415 (only who uses it needs it)

        self.frombuffer = np.frombuffer
        self.dtype = records.form("numpy").all.dtype


class PipeNumpy(AsMemory, mp.PipeBytes):
    """send_bytes of the memory."""


class StreamNumpy(AsMemory, sockets.Stream):
    """sendall of the memory."""


class BufferedNumpy(AsMemory, pipes.Buffered):
    """write of the memory, read of as much; flushed at the end of a turn."""


class BufferedTuples(Batched, pipes.Buffered):
    """Each record packed and written, what comes unpacked; flushed at the end of a turn."""

    def send_batch(self, batch: Any) -> None:
        """Write one by one, which the buffer makes cheap."""
        write, pack = self.output.write, records.STRUCT.pack
        for record in batch:
            write(pack(*record))

    def recv_batch(self, most: int) -> Any:  # noqa: ARG002
        """Read a batch at once."""
        return list(records.STRUCT.iter_unpack(self.recv()))


class BufferedBytes(Batched, pipes.Buffered):
    """writelines; read one by one, as there is no call for many."""

    form = "bytes"

    def send_batch(self, batch: Any) -> None:
        """Write all."""
        self.output.writelines(batch)

    def recv_batch(self, most: int) -> Any:
        """Read one by one, which the buffer makes cheap."""
        read, size = self.input.read, records.SIZE
        return [read(size) for _ in range(min(most, self.size // size))]
