"""Death is seen at once, also where a grandchild holds the socket open: the kernel tells of it.

The peer forks a child that keeps all descriptors, and is killed; its socket does not end.
"""

import contextlib
import os
import select
import socket
import threading

import pytest
import trio

import fdpass
import fdpass.lowlevel
import memenpsf
import memenpsf.trio
from memenpsf import EndOfStream, PeerDied

RELEASE = tuple(int(part) for part in os.uname().release.split(".")[:2])
pytestmark = pytest.mark.skipif(RELEASE < (6, 5), reason="SO_PASSPIDFD came with Linux 6.5")

# Connects, runs a script, leaves its socket to a child, and waits.  The child waits for the end
# of the test, which closes its standard input.
PEER = """
import ctypes, os, signal, socket, memenpsf
interface = memenpsf.Interface(socket.socket(fileno=int(sys.argv[1])), eval(sys.argv[2]))
exec(sys.argv[3])
if os.fork() == 0:
    sys.stdin.readline()
    os._exit(0)
print("left it to a child", flush=True)
signal.pause()
"""


class Bereaved:
    """One side of a connection, and the peer that is to die."""

    def __init__(self, program, record, script, make, options):
        ours, theirs = socket.socketpair()
        arguments = theirs.fileno(), "bytes" if record is bytes else repr(record), script
        self.peer = program(PEER, *arguments, pass_fds=[theirs.fileno()])
        theirs.close()
        self.interface = make(ours, record, timeout=50, **options)

    def kill(self):
        assert self.peer.stdout.readline() == "left it to a child\n"
        self.peer.kill()
        self.peer.wait()

    @property
    def socket_says_nothing(self):
        poll = select.poll()
        poll.register(self.interface._endpoint.fileno(), select.POLLRDHUP)
        return not poll.poll(0)

    def kill_once(self, announced):
        """Kill the peer as soon as this side sleeps."""
        while not announced():
            pass
        self.kill()


@pytest.fixture
def bereaved(program):
    with contextlib.ExitStack() as stack:

        def connect(record=8, script="", make=memenpsf.Interface, **options):
            it = Bereaved(program, record, script, make, options)
            if make is memenpsf.Interface:
                stack.callback(it.interface.close)
            return it

        yield connect


def polled(verb):
    def again_and_again(interface):
        while True:
            with contextlib.suppress(memenpsf.Full):
                verb(interface)

    return again_and_again


def selected(interface):
    """What a foreign event loop does."""
    if interface.arm():
        select.select([interface, interface.peer_pidfd()], [], [])
    interface.recv(0)


def filled(interface):
    interface.xmit_many([bytes(8)] * interface.capacity)
    interface.xmit(bytes(8), timeout=50)


def without_room(interface):
    """Fill the socket with control messages that nobody reads, and wait for room."""
    while True:
        interface.send_ctrl_msg(b"\x80\x00", timeout=50)


VERBS = {
    "recv": lambda interface: interface.recv(timeout=50),
    "recv_vectored": lambda interface: interface.recv_vectored(timeout=50),
    "for": list,
    "borrow": lambda interface: interface.borrow(timeout=50).__enter__(),
    "recv_ctrl_msg": lambda interface: interface.recv_ctrl_msg(timeout=50),
    "recv(0)": polled(lambda interface: interface.recv(0)),
    "xmit, no space": filled,
    "xmit(0), space for ever": polled(lambda interface: interface.xmit(bytes(8), timeout=0)),
    "xmit_many": lambda interface: interface.xmit_many([bytes(8)] * 10_000, timeout=50),
    "await_space": lambda interface: [filled(interface), interface.await_space()],
    "send_ctrl_msg, no room": without_room,
    "select and recv(0)": polled(selected),
}


@pytest.mark.parametrize("wait", ["spin", "busy", "sleep"])
@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_says_that_the_peer_died(bereaved, verb, wait):
    it = bereaved(capacity=16, wait=wait)
    it.kill()
    assert it.socket_says_nothing
    # A loop ends as it does with every death: PeerDied is raised.
    with pytest.raises(PeerDied):
        VERBS[verb](it.interface)


@pytest.mark.parametrize(
    "verb", ["recv", "xmit, no space", "recv_ctrl_msg", "send_ctrl_msg, no room"]
)
def test_a_sleeper_is_woken(bereaved, verb):
    it = bereaved(capacity=16)
    before = it.interface.statistics()

    def announced():
        now = it.interface.statistics()
        return verb.endswith("room") or now.waits > before.waits or verb == "recv_ctrl_msg"

    killer = threading.Thread(target=it.kill_once, args=[announced])
    killer.start()
    with pytest.raises(PeerDied):
        VERBS[verb](it.interface)
    killer.join()
    assert it.interface.statistics().rescues == 0


def test_all_that_was_published_comes_first(bereaved):
    it = bereaved(script="for n in range(500): interface.xmit(n.to_bytes(8, 'little'))")
    it.kill()
    for n in range(500):
        assert it.interface.recv(timeout=50) == n.to_bytes(8, "little")
    with pytest.raises(PeerDied):
        it.interface.recv(timeout=50)


def test_descriptors_that_were_sent_come_with_their_messages(bereaved):
    script = "for n in range(10): interface.xmit(bytes([n]), fds=[sys.stdin.fileno()])"
    it = bereaved(bytes, script, accept=memenpsf.Accept(fds=1))
    it.kill()
    assert it.interface.recv_ctrl_msg(timeout=0) is None  # reads of the socket what is there
    for n in range(10):
        message = it.interface.recv_message(timeout=50)
        assert message.record == bytes([n])
        assert len(message.fds) == 1
        message.fds[0].close()
    with pytest.raises(PeerDied):
        it.interface.recv(timeout=50)


def test_control_messages_that_were_sent_come_first(bereaved):
    it = bereaved(script="[interface.send_ctrl_msg(bytes([128, n])) for n in range(100)]")
    it.kill()
    for n in range(100):
        assert it.interface.recv_ctrl_msg(timeout=50) == bytes([128, n])
    with pytest.raises(PeerDied):
        it.interface.recv_ctrl_msg(timeout=50)


def test_who_ended_in_good_order_has_not_died(bereaved):
    it = bereaved(script="interface.xmit(bytes(8)); interface.close()")
    it.kill()
    assert it.interface.recv(timeout=50) == bytes(8)
    with pytest.raises(EndOfStream):
        it.interface.recv(timeout=50)


async def trio_receives(interface):
    await interface.recv()


async def trio_sends(interface):
    while True:
        await interface.xmit(bytes(8))


async def trio_sends_control(interface):
    while True:
        await interface.send_ctrl_msg(b"\x80\x00")


@pytest.mark.parametrize("verb", [trio_receives, trio_sends, trio_sends_control])
@pytest.mark.parametrize("asleep", [False, True])
async def test_tasks_are_told_as_well(bereaved, verb, asleep):
    it = await trio.to_thread.run_sync(lambda: bereaved(capacity=16, make=memenpsf.trio.Interface))
    with trio.fail_after(50):
        async with it.interface, trio.open_nursery() as nursery:
            await it.interface.do_handshake()
            if asleep:
                nursery.start_soon(trio.to_thread.run_sync, it.kill)
            else:
                it.kill()
                assert it.socket_says_nothing
            with pytest.raises(memenpsf.trio.PeerDied):
                await verb(it.interface)


class TestWhoIsMeant:
    """The one who said hello lives or dies; others who had the socket in hand do not count."""

    def pair(self, **options):
        ours, theirs = socket.socketpair()
        ready = []
        thread = threading.Thread(
            target=lambda: ready.append(memenpsf.Interface(theirs, 8, **options))
        )
        thread.start()
        first = memenpsf.Interface(ours, 8, **options)
        thread.join()
        return first, ready[0]

    def test_not_the_process_that_made_the_socket(self, program):
        """A launcher makes a socket pair, gives each end to a program, and exits."""
        launcher = program(
            """
import socket, subprocess
def end(sock, script):
    source = "import socket, sys, memenpsf\\n" \\
        "interface = memenpsf.Interface(socket.socket(fileno=int(sys.argv[1])), 8)\\n" + script
    return subprocess.Popen([sys.executable, "-c", source, str(sock.fileno())],
                            pass_fds=[sock.fileno()])
one, other = socket.socketpair()
end(one, "sys.stdin.readline()\\ninterface.xmit(b'heir say')\\ninterface.recv()")
end(other, "print('open', flush=True)\\nprint(interface.recv().decode(), flush=True)\\n"
           "interface.xmit(bytes(8))\\nprint('sent', flush=True)")
"""
        )
        assert launcher.stdout.readline() == "open\n"
        assert launcher.wait() == 0
        launcher.stdin.write("go on\n")
        launcher.stdin.flush()
        assert launcher.stdout.readline() == "heir say\n"
        assert launcher.stdout.readline() == "sent\n"

    def test_without_a_word_of_the_kernel_the_process_that_connected_if_the_segment_agrees(
        self, monkeypatch
    ):
        monkeypatch.setattr("ipcqueue._link.opening.pass_pidfd", lambda sock, on=True: False)
        first, second = self.pair()
        for end in (first, second):
            assert not end._endpoint.wire.process.has_exited()
            end.close()

    @pytest.mark.parametrize("missing", ["pass_pidfd", "both"])
    def test_otherwise_nobody(self, monkeypatch, missing):
        monkeypatch.setattr("ipcqueue._link.opening.pass_pidfd", lambda sock, on=True: False)
        if missing == "both":
            monkeypatch.setattr(fdpass, "peer_pidfd", lambda sock: None)
        else:
            monkeypatch.setattr(os, "getpid", lambda: 1)  # as in a container
        first, second = self.pair()
        assert first._endpoint.wire.process is None
        assert first.peer_pidfd() is None
        second.close()
        with pytest.raises(EndOfStream):
            first.recv(timeout=50)
        first.close()

    def test_an_application_that_wants_to_know_who_sends_still_does(self):
        ours, theirs = socket.socketpair()
        fdpass.lowlevel.pass_pidfd(ours)
        thread = threading.Thread(target=lambda: memenpsf.Interface(theirs, 8).close())
        thread.start()
        with memenpsf.Interface(ours, 8) as interface:
            thread.join()
            assert fdpass.lowlevel.pass_pidfd(interface._endpoint.wire.sock)
            with pytest.raises(EndOfStream):
                interface.recv(timeout=50)
