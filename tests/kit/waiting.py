"""Calls that wait, in threads of their own; and nothing but the other side wakes them."""

import gc
import os
import threading
from pathlib import Path

import pytest

from ipcqueue import _threads
from ipcqueue._link import options as _options
from ipcqueue._ring import patience as _patience
from ipcqueue._threads import Threads
from tests.kit.settling import settle


@pytest.fixture(autouse=True)
def wake_ups_only(monkeypatch):
    monkeypatch.setitem(_options._STRATEGIES, "spin", _patience.Patience(0, adaptive=False))
    monkeypatch.setattr(_threads, "SLICE", 3600.0)


class Side:
    """A two-way endpoint with its waiting verbs."""

    def __init__(self, endpoint):
        self.endpoint, self.threads = endpoint, Threads(endpoint)
        for verb in ("pop", "pop_many", "push", "push_many", "take_message", "send_message"):
            setattr(self, verb, getattr(self.threads, verb))
        self.close = endpoint.close

    def waiting(self, *counts):
        """Wait until so many threads wait for records, space, and messages."""
        until(lambda: tuple(self.endpoint.waiters.counts) == counts)

    def fill(self):
        while self.endpoint.try_push((0,)):
            pass

    def fill_socket(self):
        sent = 0
        while self.endpoint.try_send_message(message(sent)):
            sent += 1
        return sent


def message(n):
    return bytes((128 + n % 128, n // 128 % 256))


def until(condition):
    """Wait for what another thread does; the deadline of the test bounds it."""
    while not condition():
        os.sched_yield()


class Running(threading.Thread):
    """A call in a thread, and what became of it."""

    def __init__(self, call, *arguments):
        super().__init__(daemon=True)
        self.call, self.arguments, self.error, self.value = call, arguments, None, None
        self.start()

    def run(self):
        try:
            self.value = self.call(*self.arguments)
        except BaseException as error:  # noqa: BLE001 (raised by result)
            self.error = error

    def result(self):
        self.join()
        if self.error is not None:
            raise self.error
        return self.value


@pytest.fixture
def in_thread():
    """Run something in a thread, which is joined at the end, when all else is closed."""
    running = []

    def start(call, *arguments):
        running.append(Running(call, *arguments))
        return running[-1]

    yield start
    for thread in running:
        thread.join(10)
    running.clear()  # the errors, with what their frames hold


def descriptors():
    settle()
    return sorted(path.name for path in Path("/proc/self/fd").iterdir())


def turns(endpoint):
    """Have an endpoint read all that waits for it."""
    for _ in range(10):
        endpoint.read_if_free()


def settled(before):
    """Whether the descriptors are those of before, once the errors that held some are gone."""
    if descriptors() != before:
        gc.collect()
    return descriptors() == before
