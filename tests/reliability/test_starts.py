"""A server that is killed at any place of its start or end leaves nothing in the next one's way."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import sys

import pytest

import memenpsf
from memenpsf import _address, _listener, _log, _pending, _places, _reserve
from tests.reliability import campaign

TRACED = (_address, _listener, _log, _places, _pending, _reserve)
FILES = {each.__file__ for each in TRACED}


class KilledAt:
    """A trace function: at the n-th bytecode of the modules above, this process is no more."""

    def __init__(self, nth):
        self._left = nth

    def __call__(self, frame, event, arg):
        if frame.f_code.co_filename not in FILES:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            self._left -= 1
            if self._left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return self


def start_and_end(path):
    memenpsf.listen(path, "<Q", capacity=1).close()


def killed_at(nth, call):
    """Run a call in a forked child; return whether it was killed before it was through."""
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)
            if os.getppid() == parent:
                sys.settrace(KilledAt(nth))
                call()
                sys.settrace(None)
                status = 0
        finally:
            os._exit(status)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code != 0


def leave_a_stale_file(path):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


@pytest.mark.deadline(campaign.seconds(300))
@pytest.mark.parametrize("stale", [False, True], ids=["a free place", "a stale file"])
def test_a_server_killed_at_any_place_is_followed_by_one_that_serves(tmp_path, stale):
    path = tmp_path / "s"
    memenpsf.listen(path, "<Q", capacity=1).close()
    left = set()
    nth = 0
    while True:
        if stale:
            leave_a_stale_file(path)
        killed = killed_at(nth, lambda: start_and_end(path))
        found = sorted(each.name for each in tmp_path.iterdir())
        left.update(found)
        # Nobody listens, so a client knows at once.
        with pytest.raises((ConnectionRefusedError, FileNotFoundError)):
            memenpsf.connect(path, "<Q", timeout=0)
        with memenpsf.listen(path, "<Q", capacity=1), socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))
            assert [each.name for each in tmp_path.iterdir()] == ["s"], f"killed at {nth}: {found}"
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        assert list(tmp_path.iterdir()) == [], f"killed at {nth}: {found}"
        if not killed:
            break
        nth += 1
    assert nth > 200
    # It was killed with the file there, and never left another one.
    assert left == {"s"}
