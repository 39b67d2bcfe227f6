"""Children of multiprocessing that leave nothing behind."""

from __future__ import annotations

import contextlib
import ctypes
import signal
from multiprocessing import forkserver, resource_tracker

import pytest

METHODS = ["spawn", "forkserver", "fork"]


@pytest.fixture(autouse=True)
def helpers_of_multiprocessing_end():
    """Its fork server and its tracker of resources stay for the next child; not here."""
    yield
    forkserver._forkserver._stop()
    with contextlib.suppress(ChildProcessError):
        resource_tracker._resource_tracker._stop()


def dies_with_parent():
    """Of a forkserver the parent is the server, which ends with its parent."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
