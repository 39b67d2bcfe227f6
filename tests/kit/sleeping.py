"""Whether the peer of an endpoint sleeps, as it says in shared memory; and how long one sleeps."""

import os
import time

import pytest
from ipcqueue._core import ffi

from ipcqueue import _threads
from tests.kit.hostile import WAIT_RECORDS, WAIT_SPACE, moved

# Seconds that a sleeper waits at once, instead of 1 (ipcqueue._threads.SLICE).  A peer that the
# kernel stops between a record and its doorbell, just when those are over, looks as one that has
# lost a wake-up: rare, but not on a busy machine after a million of sleeps.
SLICE = 20.0


@pytest.fixture
def long_sleeps(monkeypatch):
    """No sleeper wakes up by the clock and announces its sleep again, however busy this machine is.

    One whose doorbell does not come is still found in statistics().rescues.
    """
    monkeypatch.setattr(_threads, "SLICE", SLICE)


def await_sleep(endpoint):
    """Return once the peer has announced that it sleeps: for records or for space.

    What is sent then needs a wake-up, whatever else runs on this machine.
    """
    mapping = endpoint._peer.mapping
    words = ffi.cast("char *", mapping.at) + moved(mapping, WAIT_RECORDS)
    at = ffi.cast("uint32_t *", words)
    assert WAIT_SPACE == WAIT_RECORDS + 4
    while not (at[0] | at[1]) & 1:  # bounded by the deadline of the test
        time.sleep(0)  # other threads
        os.sched_yield()  # other processes
