"""Whether the peer of an endpoint sleeps, as it says in shared memory."""

import os
import time

from ipcqueue._core import ffi

from tests.kit.hostile import WAIT_RECORDS, WAIT_SPACE


def await_sleep(endpoint):
    """Return once the peer has announced that it sleeps: for records or for space.

    What is sent then needs a wake-up, whatever else runs on this machine.
    """
    at = ffi.cast("uint32_t *", ffi.cast("char *", endpoint._peer.mapping.at) + WAIT_RECORDS)
    assert WAIT_SPACE == WAIT_RECORDS + 4
    while not (at[0] | at[1]) & 1:  # bounded by the deadline of the test
        time.sleep(0)  # other threads
        os.sched_yield()  # other processes
