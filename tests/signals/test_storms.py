"""Signals between two processes, one after the other, wherever they happen to strike."""

import signal
import socket

import pytest

from ipcqueue import Receiver, Sender, _threads
from ipcqueue.lowlevel import Opening, Role, Terms
from tests.kit.waiting import Side, message, wake_ups_only  # noqa: F401 (the fixture)

SPEC = "<Q"
BOTH = Role(sends=True, receives=True)

STORM = """
import os, signal, socket, sys, threading
import ipcqueue
from ipcqueue import EndOfStream
from ipcqueue.lowlevel import Opening, Role, Terms
from ipcqueue._link import options as _options
from ipcqueue._ring import patience as _patience
from ipcqueue import _threads

descriptor, how, storms, spin = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
_options._STRATEGIES["spin"] = _patience.Patience(spin, False)
sock = socket.socket(fileno=descriptor)
signal.signal(signal.SIGINT, signal.default_int_handler)
over, interrupts, acknowledge = False, 0, True
if how.startswith("push"):
    end = ipcqueue.Sender(sock, "<Q", capacity=4)
elif how.startswith("pop"):
    end = ipcqueue.Receiver(sock, "<Q")
else:
    terms = Terms("<Q", Role(sends=True, receives=True), capacity=4)
    endpoint = _threads.open_endpoint(Opening(sock, terms))
    end = _threads.Threads(endpoint)

def push_in_thread():
    for n in range(1 << 60):
        try:
            end.push((n,), None)
        except ipcqueue.QueueError:
            return

if how == "both":
    thread = threading.Thread(target=push_in_thread)
    thread.start()

got, n = [], 0

# An interrupt comes only after the one before was acknowledged, and what must not be interrupted
# between two statements has no call and no jump backwards in it.
def run():
    global acknowledge, got, n, over
    if acknowledge:
        acknowledge = False
        os.write(1, b"!")
    if how.startswith("push"):
        n = end.indices()[0]
    while interrupts < storms or not how.startswith("push"):
        if how == "pop":
            record = end.pop()
            got += [record]
        elif how == "pop_many":
            records = end.pop_many()
            got += records
        elif how == "pop_messages":
            message = end.recv_ctrl_msg(timeout=None)
            got += [message]
        elif how == "both":
            record = end.pop(None)
            got += [record]
        elif how == "push":
            end.push((n,))
            n += 1
        else:
            end.push_many([(k,) for k in range(n, n + 7)])
            n += 7
    over = True

# A function, as CPython 3.13 leaves the end of some loops in a `try` without it (gh-130279).
while not over:
    try:
        run()
    except KeyboardInterrupt:
        interrupts += 1
        acknowledge = True
    except EndOfStream:
        over = True

signal.signal(signal.SIGINT, signal.SIG_IGN)
if how == "both":
    endpoint.close()
    thread.join()
elif how == "pop_messages":
    end.close()
    assert got == [bytes((128 + n % 128, n // 128 % 256)) for n in range(len(got))]
else:
    n = end.indices()[0]
    end.close()
if how in ("pop", "pop_many", "both"):
    assert got == [(k,) for k in range(len(got))], "lost, doubled or out of order"
    n = len(got)
elif how == "pop_messages":
    n = len(got)
print(interrupts, n, flush=True)
"""


class TestStorms:
    """SIGINT, many times, at any moment of a stream between two processes; and all arrives."""

    STORMS = 200

    def storm(self, child):
        """Interrupt the child again whenever it has got over the last time."""
        assert child.stdout.read(1) == "!"
        for _ in range(self.STORMS):
            child.send_signal(signal.SIGINT)
            assert child.stdout.read(1) == "!"

    def outcome(self, child):
        interrupts, records = map(int, child.stdout.readline().split())
        assert interrupts == self.STORMS
        assert child.wait() == 0
        return records

    @pytest.fixture
    def start(self, program):
        def start(how, spin):
            ours, theirs = socket.socketpair()
            with theirs:
                number = theirs.fileno()
                child = program(STORM, number, how, self.STORMS, spin, pass_fds=[number])
            return child, ours

        return start

    @pytest.mark.parametrize("how", ["pop", "pop_many"])
    @pytest.mark.parametrize("spin", [0, 20_000])
    def test_in_who_receives(self, start, in_thread, how, spin):
        child, sock = start(how, spin)
        with Sender(sock, SPEC, capacity=4) as sender:
            storm = in_thread(self.storm, child)
            sent = 0
            while storm.is_alive():
                sender.push((sent,))
                sent += 1
            storm.result()
        assert self.outcome(child) == sent

    @pytest.mark.parametrize("how", ["push", "push_many"])
    @pytest.mark.parametrize("spin", [0, 20_000])
    def test_in_who_sends(self, start, in_thread, how, spin):
        child, sock = start(how, spin)
        with Receiver(sock, SPEC) as receiver:
            storm = in_thread(self.storm, child)
            got = [number for (number,) in receiver]
            storm.result()
        assert got == list(range(self.outcome(child)))

    def test_in_who_takes_messages(self, start, in_thread):
        child, sock = start("pop_messages", 0)
        with Sender(sock, SPEC, capacity=4) as sender:
            storm = in_thread(self.storm, child)
            sent = 0
            while storm.is_alive():
                sender.send_ctrl_msg(message(sent))
                sent += 1
            storm.result()
        assert self.outcome(child) == sent

    def test_in_who_receives_beside_a_thread_that_sends(self, start, in_thread):
        child, sock = start("both", 0)
        endpoint = _threads.open_endpoint(Opening(sock, Terms(SPEC, BOTH, capacity=4)))
        side = Side(endpoint)
        storm = in_thread(self.storm, child)

        def push():
            n = 0
            while storm.is_alive():
                side.push((n,), None)
                n += 1
            return n

        pushing = in_thread(push)
        n = 0
        while storm.is_alive():
            if (record := side.pop(0.01)) is not None:
                assert record == (n,)
                n += 1
        storm.result()
        sent = pushing.result()
        endpoint.close()
        assert self.outcome(child) == sent
