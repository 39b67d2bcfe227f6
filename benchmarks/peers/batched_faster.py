"""faster-fifo: put_many and get_many."""

from __future__ import annotations

import functools
from typing import Any

from .batched import Batched
from .faster import PATIENCE, Single


class Tuples(Batched, Single):
    """Tuples, each pickled by itself."""

    def use(self, source: Any, sink: Any) -> None:
        """Use the calls for many."""
        super().use(source, sink)
        self.send_batch = functools.partial(sink.put_many, timeout=PATIENCE)
        self.get_many = functools.partial(source.get_many, timeout=PATIENCE)

    def recv_batch(self, most: int) -> Any:
        """Return what is there."""
        return self.get_many(max_messages_to_get=most)


class Bytes(Tuples):
    """The same with bytes."""

    form = "bytes"
