"""iceoryx2: a batch as one sample, copied in and out."""

from __future__ import annotations

import ctypes
from typing import Any

from .batched import AsMemory
from .iceoryx import Copies


class Numpy(AsMemory, Copies):
    """The memory of an array, moved to a loan."""

    def prepare(self, *, streaming: bool) -> None:
        """Be both."""
        AsMemory.prepare(self, streaming=streaming)
        Copies.prepare(self, streaming=streaming)

    def send_batch(self, batch: Any) -> None:
        """Fill a loan, and send it."""
        loan = self.publisher.loan_slice_uninit(batch.nbytes)
        ctypes.memmove(loan.payload_ptr, batch.ctypes.data, batch.nbytes)
        loan.assume_init().send()
