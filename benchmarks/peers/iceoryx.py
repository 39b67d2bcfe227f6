"""iceoryx2: publish-subscribe of bytes between two nodes, an event to wait by.

Safe overflow is off and the publisher blocks when the subscriber's buffer is full, so that nothing
is lost.  The library delivers without waking anybody: a stream is received by polling, and who
wants to sleep adds an event, which costs the sender a notification a message.
"""

from __future__ import annotations

import ctypes
import time
from typing import Any

import iceoryx2

from .base import Peer

iceoryx2.set_log_level(iceoryx2.LogLevel.Error)

MOST, LEAST = 1024, 16  # messages that a subscriber's buffer holds
MEMORY = 16 << 20  # bytes that it holds, unless LEAST are more
PATIENCE = 10.0  # seconds to find each other
Bytes = iceoryx2.Slice[ctypes.c_uint8]


class Copies(Peer):
    """Samples are loaned and filled with a copy, received and copied to bytes."""

    modules = ("iceoryx2",)

    def listen(self) -> None:
        """Create what both sides will have open."""
        self.use("down", "up")

    def accept(self) -> None:
        """Wait for the client."""
        self.meet()

    def connect(self) -> None:
        """Open the same."""
        self.use("up", "down")
        self.meet()

    def use(self, outgoing: str, incoming: str) -> None:
        """Make ports for both directions."""
        self.node = iceoryx2.NodeBuilder.new().create(iceoryx2.ServiceType.Ipc)
        out, into = self.service(outgoing), self.service(incoming)
        self.subscriber = into.subscriber_builder().create()
        self.publisher = (
            out.publisher_builder()
            .initial_max_slice_len(self.size)
            .backpressure_strategy(iceoryx2.BackpressureStrategy.RetryUntilDelivered)
            .create()
        )
        self.services = out, into
        self.notifier = self.event(outgoing).notifier_builder().create()
        self.listener = self.event(incoming).listener_builder().create()

    def service(self, direction: str) -> Any:
        """Open the service of one direction."""
        name = iceoryx2.ServiceName.new(f"{self.address}/{direction}")
        return (
            self.node.service_builder(name)
            .publish_subscribe(Bytes)
            .enable_safe_overflow(False)
            .subscriber_max_buffer_size(max(LEAST, min(MOST, MEMORY // self.size)))
            .open_or_create()
        )

    def event(self, direction: str) -> Any:
        """Open the event of one direction."""
        name = iceoryx2.ServiceName.new(f"{self.address}/{direction}")
        return self.node.service_builder(name).event().open_or_create()

    def meet(self) -> None:
        """Wait until both sides have all ports."""
        deadline = time.monotonic() + PATIENCE
        for service in self.services:
            while (
                service.dynamic_config.number_of_publishers < 1
                or service.dynamic_config.number_of_subscribers < 1
            ):
                if time.monotonic() > deadline:
                    raise TimeoutError("the other side did not come")
                time.sleep(0.001)
        self.publisher.update_connections()

    def prepare(self, *, streaming: bool) -> None:
        """Use the event only where one sleeps."""
        if streaming:
            self.send, self.recv = self.send_copy, self.recv_busy
        else:
            self.send, self.recv = self.send_and_notify, self.recv_woken

    def send_copy(self, data: bytes) -> None:
        """Fill a loan, and send it."""
        size = len(data)
        loan = self.publisher.loan_slice_uninit(size)
        ctypes.memmove(loan.payload_ptr, data, size)
        loan.assume_init().send()

    def send_and_notify(self, data: bytes) -> None:
        """Wake the receiver as well."""
        self.send_copy(data)
        self.notifier.notify()

    def recv_busy(self) -> bytes:
        """Ask until there is something."""
        receive = self.subscriber.receive
        while (sample := receive()) is None:
            pass
        return ctypes.string_at(sample.payload_ptr, self.size)

    def recv_woken(self) -> bytes:
        """Sleep unless there is something."""
        while (sample := self.subscriber.receive()) is None:
            self.listener.blocking_wait()
        return ctypes.string_at(sample.payload_ptr, self.size)

    def close(self) -> None:
        """Give back all ports, then the node."""
        for port in (self.publisher, self.subscriber, self.notifier, self.listener):
            port.delete()
        del self.services, self.node
