"""iceoryx2's loans."""

from __future__ import annotations

from .iceoryx import Copies


class Lent(Copies):
    """A loan is filled in place, a sample read in place."""

    def send_filled(self, source: bytearray) -> None:
        """Write to the loan."""
        loan = self.publisher.loan_slice_uninit(self.size)
        loan.payload().as_memory_view().cast("B")[:] = source
        loan.assume_init().send()

    def read(self, scratch: memoryview) -> None:
        """Read the sample; the library wakes nobody, so ask until there is one."""
        receive = self.subscriber.receive
        while (sample := receive()) is None:
            pass
        scratch[:] = sample.payload().as_memory_view().cast("B")
