"""What fdpass has its threads close is not counted before they have."""

import time

from fdpass import _untrusted

SECONDS = 30  # until it is an error


def settle():
    """Wait until nothing is being closed any more."""
    deadline = time.monotonic() + SECONDS
    while any(place() is not None for place in tuple(_untrusted._threads)) or not all(
        fd.closed for fd in tuple(_untrusted._waiting)
    ):
        if time.monotonic() > deadline:
            raise TimeoutError(f"something is still being closed after {SECONDS} s")
        time.sleep(0.0001)
