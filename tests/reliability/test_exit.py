"""An interpreter that ends with everything still open says nothing, and leaves nothing."""

import os
import subprocess
import sys

import pytest

ALL_OPEN = """\
import ctypes, sys
ctypes.CDLL(None).prctl(1, 9)  # dies with its parent
import builtins, socket, threading, time
import fdpass, memenpsf

def pair(record, **options):
    one, other = socket.socketpair()
    made = []
    make = lambda sock: made.append(memenpsf.Interface(sock, record, **options))
    thread = threading.Thread(target=make, args=[one])
    thread.start()
    make(other)
    thread.join()
    return made

listener = memenpsf.listen(sys.argv[1], 8)
records, messages = pair(8), pair(bytes, accept=memenpsf.Accept(fds=1, regions=1))
sleepers = pair(8)
region = fdpass.MemoryRegion.create(4096)
messages[0].xmit(bytes(500_000))  # outside the ring
messages[0].xmit(b"attached", fds=[0], regions=[region])
messages[0].xmit(b"not received", fds=[0])
received = [messages[1].recv_message(), messages[1].recv_message()]
records[0].xmit(bytes(8))
borrowing = records[1].borrow()
loan = records[0].loan(1)
views = [borrowing.__enter__(), loan.__enter__()]
iterator = iter(messages[1])
for wait in (sleepers[0].recv, sleepers[0].recv_ctrl_msg, sleepers[1].recv, listener.accept):
    threading.Thread(target=wait, daemon=True).start()
while sleepers[1].statistics().waits == 0:
    time.sleep(0.001)
cycle = [listener, records, messages, sleepers, received, views, iterator, region]
cycle.append(cycle)
if sys.argv[2] == "kept":
    builtins.everything = cycle  # for longer than any module lives
print("the end", flush=True)
"""


@pytest.mark.parametrize("mode", [[], ["-X", "dev"]], ids=["", "development mode"])
@pytest.mark.parametrize("how", ["kept", "in a cycle"])
def test_exit_with_live_objects_is_silent(tmp_path, mode, how):
    address = tmp_path / "socket"
    command = [sys.executable, *mode, "-c", ALL_OPEN, address, how]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=50
    )
    assert (done.stdout, done.stderr, done.returncode) == ("the end\n", "", 0)
    # The next server replaces the socket file, the only thing left.
    assert [path.name for path in tmp_path.iterdir()] == ["socket"]


# Finalized after fdpass has become None to who imported it: the hook keeps these globals for longer.
LATE = """\
import socket, sys, threading
import fdpass, memenpsf

threading.excepthook = lambda arguments: None
records = memenpsf.pair(8)
messages = memenpsf.pair(bytes, accept=memenpsf.Accept(fds=1, regions=1))
messages[0].xmit(bytes(500_000))
with fdpass.MemoryRegion.create(4096) as region:
    messages[0].xmit(b"attached", fds=[0], regions=[region])
messages[0].xmit(b"not received", fds=[0])
received = messages[1].recv(), messages[1].recv_message()
messages[1].recv_ctrl_msg()
print("the end", flush=True)
"""


@pytest.mark.parametrize("mode", [[], ["-X", "dev"]], ids=["", "development mode"])
def test_ends_that_outlive_their_modules_are_silent(mode):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, *mode, "-c", LATE],
        env=environment, capture_output=True, text=True, check=False, timeout=50,
    )  # fmt: skip
    assert (done.stdout, done.stderr, done.returncode) == ("the end\n", "", 0)
