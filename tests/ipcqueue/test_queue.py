"""Sender and Receiver: the product, in one process and between two."""

import os
import select
import signal
import socket
import subprocess
from typing import Annotated, NamedTuple

import pytest

import fdpass
import ipcqueue
import ipcqueue.lowlevel
from ipcqueue import (
    BadRecord,
    Closed,
    CorruptPeer,
    EndOfStream,
    ForkedUse,
    Full,
    PeerDied,
    QueueError,
    Receiver,
    ReceiverGone,
    RecordRefused,
    Refused,
    RoleRefused,
    Sender,
    pair,
)
from ipcqueue.lowlevel import Role, Terms, advance, open_pair
from tests.kit.places import at_every_place, interrupt


class Quote(NamedTuple):
    seq: ipcqueue.u64
    price: ipcqueue.f64
    symbol: Annotated[bytes, "8s"]


# In front of each program: its end of the connection, and what it was told.
CHILD = """
import os, socket, sys
import ipcqueue
from ipcqueue import *
sock = socket.socket(fileno=int(sys.argv[1]))
told = sys.argv[2:]
def say(*words):
    print(*words, flush=True)
def heard():
    return sys.stdin.readline().strip()
"""


@pytest.fixture
def peer(program):
    """Start a program on the other end of a connection; return it and our socket."""

    def start(source, *arguments, **options):
        ours, theirs = socket.socketpair()
        with theirs:
            number = theirs.fileno()
            child = program(CHILD + source, number, *arguments, pass_fds=[number], **options)
        return child, ours

    return start


def says(child):
    return child.stdout.readline().strip()


def tell(child, word=""):
    child.stdin.write(word + "\n")
    child.stdin.flush()


def push_for_ever(push, what):
    while True:
        push(what)


def ends(kind, *calls):
    for call in calls * 2:
        with pytest.raises(QueueError) as caught:
            call()
        assert type(caught.value) is kind


class TestPair:
    def test_what_goes_in_comes_out_in_order(self):
        sender, receiver = pair("<Q")
        with sender, receiver:
            for n in range(3000):
                sender.push((n,))
                sender.push((n,))
                assert receiver.pop() == receiver.pop() == (n,)
            assert sender.push_many([(n,) for n in range(100)]) == 100
            assert receiver.pop_many() == [(n,) for n in range(100)]

    def test_its_capacity_is_rounded_up(self):
        for end in (ends := pair(8, capacity=5)):
            assert end.capacity == 8
        for end in ends:
            end.close()

    @pytest.mark.parametrize(
        ("record", "capacity"),
        [
            (bytes, 1 << 20),
            (1, 1 << 20),
            (8, 1 << 17),
            (12, 1 << 16),
            (64, 1 << 14),
            (1024, 1024),
            (16 << 10, 1024),
            ((16 << 10) + 1, 512),
            (4 << 20, 4),
            (16 << 20, 4),
        ],
    )
    def test_what_it_holds_unless_told(self, record, capacity):
        terms = Terms(record, Role(sends=True, receives=False))
        assert terms.capacity == capacity
        if capacity <= 1024 or record is bytes:
            for end in pair(record):
                with end:
                    assert end.capacity == capacity

    def test_bad_specs_leave_nothing(self):
        for record, options in ((bytearray, {}), (8, {"capacity": 0}), ("P", {}), (0, {})):
            with pytest.raises((TypeError, ValueError)):
                pair(record, **options)

    def test_each_end_has_the_verbs_of_its_own(self):
        sender, receiver = pair(8)
        with sender, receiver:
            assert not {"pop", "pop_many", "__iter__"} & set(dir(sender))
            assert not {"push", "push_many"} & set(dir(receiver))

    @pytest.mark.parametrize("size", [1, 17, 1 << 20])
    def test_a_record_of_any_size_goes_through_a_single_slot(self, size):
        sender, receiver = pair(size, capacity=1)
        with sender, receiver:
            for letter in (b"a", b"b", b"c"):
                sender.push(letter * size)
                with pytest.raises(Full):
                    sender.push(b"x" * size, timeout=0)
                assert receiver.pop() == letter * size
                assert receiver.pop(timeout=0) is None

    def test_an_array_of_a_numpy_spec_is_sent_as_it_is(self):
        np = pytest.importorskip("numpy")
        spec = np.dtype([("seq", "<u8"), ("price", "<f8")])
        sender, receiver = pair(spec, capacity=16)
        with sender, receiver:
            sent = np.array([(n, n / 2) for n in range(20)], spec)
            assert sender.push_many(sent, timeout=0) == 16
            got = receiver.pop_many(limit=10)
            assert got.dtype == spec
            assert (got == sent[:10]).all()
            assert receiver.pop() == sent[10]
            empty = receiver.pop_many(limit=0)
            assert (empty.shape, empty.dtype) == ((0,), spec)

    @pytest.mark.parametrize(
        "record", [bytearray(b"bytes..."), memoryview(b"bytes..."), b"bytes..."]
    )
    def test_any_bytes_of_the_right_size_are_a_record_of_an_int_spec(self, record):
        sender, receiver = pair(8)
        with sender, receiver:
            sender.push(record)
            assert sender.push_many([record, record]) == 2
            assert receiver.pop_many() == [b"bytes..."] * 3
            with pytest.raises(BadRecord, match="exactly 8 bytes, got 9"):
                sender.push(bytes(record) + b"!")


class TestConnection:
    def test_it_tells_what_was_agreed(self):
        ours, theirs = socket.socketpair()
        terms = Terms(Quote, Role(sends=False, receives=True), name="théirs")
        opening = ipcqueue.lowlevel.Opening(theirs, terms)
        assert advance(opening) is None
        with Sender(ours, Quote, capacity=100, name="ours") as sender:
            receiver = Receiver.of(advance(opening))
            assert (sender.name, sender.peer_name) == ("ours", "théirs")
            assert (receiver.name, receiver.peer_name) == ("théirs", "ours")
            assert sender.capacity == receiver.capacity == 128
            assert sender.record is receiver.record is Quote
            assert sender.peer == receiver.peer == (os.getpid(), os.getuid(), os.getgid())
            assert sender._endpoint.fileno() == ours.fileno()
            assert not sender.closed
            assert repr(sender).startswith("<Sender 'ours' fd ")
            assert " with 'théirs' (pid " in repr(sender)
            assert repr(sender).endswith("): open, Quote, out 0/128>")
            assert repr(receiver).startswith("<Receiver 'théirs' fd ")
            receiver.close()
            assert receiver.closed
            assert "closed" in repr(receiver)
        assert sender.closed

    def test_after_close_every_verb_says_so(self):
        sender, receiver = pair("<Q")
        sender.push((1,))
        sender.send_ctrl_msg(b"\x80\x01")
        for end in (sender, receiver):
            end.close()
            end.close()
            ends(
                Closed,
                end.fileno,
                end.indices,
                lambda end=end: end.send_ctrl_msg(b"\x80\x00"),
                end.recv_ctrl_msg,
            )
        ends(Closed, lambda: sender.push((1,)), lambda: sender.push_many([(1,)]))
        ends(Closed, receiver.pop, receiver.pop_many)
        assert sender.statistics().sent == 1
        assert receiver.statistics().waiting == 1

    def test_iteration_ends_with_the_stream(self):
        sender, receiver = pair("<Q")
        with receiver:
            with sender:
                sender.push_many([(1,), (2,), (3,)])
            assert list(receiver) == [(1,), (2,), (3,)]
            assert list(receiver) == []
            ends(EndOfStream, receiver.pop)

    def test_iteration_raises_that_the_peer_died(self):
        sender, receiver = pair("<Q")
        sender.push((1,))
        with pytest.warns(ResourceWarning):
            del sender
        records = iter(receiver)
        assert next(records) == (1,)
        with receiver, pytest.raises(PeerDied):
            next(records)

    def test_iteration_of_a_closed_end_raises(self):
        sender, receiver = pair("<Q")
        sender.close()
        receiver.close()
        with pytest.raises(Closed):
            next(iter(receiver))

    def test_statistics_tell_both_sides_of_the_story(self):
        sender, receiver = pair("<Q", capacity=4)
        with sender, receiver:
            assert sender.push_many([(n,) for n in range(6)], timeout=0) == 4
            receiver.pop()
            mine, theirs = sender.statistics(), receiver.statistics()
            assert (mine.sent, mine.taken, mine.rescues) == (4, 1, 0)
            assert mine.full > 0
            assert (theirs.received, theirs.waiting, theirs.rescues) == (1, 3, 0)
            assert sender.indices() == receiver.indices() == (4, 1)

    def test_messages_go_both_ways_beside_the_records(self):
        sender, receiver = pair("<Q")
        with sender, receiver:
            sender.push((1,))
            sender.send_ctrl_msg(b"\x80\x01")
            receiver.send_ctrl_msg(bytearray(b"\xff\x02"))
            assert receiver.recv_ctrl_msg() == b"\x80\x01"
            assert sender.recv_ctrl_msg(timeout=None) == b"\xff\x02"
            assert sender.recv_ctrl_msg() is receiver.recv_ctrl_msg() is None
            assert receiver.pop() == (1,)
            for wrong in (b"\x7f\x00", b"\x80", b"\x80\x00\x00"):
                with pytest.raises(ValueError):
                    sender.send_ctrl_msg(wrong)
            with pytest.raises(TypeError):
                sender.send_ctrl_msg("\x80\x00")

    def test_a_forked_child_may_only_close(self, forked):
        sender, receiver = pair("<Q")
        sender.push((1,))

        def child():
            ends(
                ForkedUse,
                lambda: sender.push((2,)),
                lambda: sender.push_many([(2,)]),
                lambda: sender.push((2,), timeout=0),
                lambda: sender.send_ctrl_msg(b"\x80\x00"),
                receiver.pop,
                receiver.pop_many,
                lambda: receiver.pop(timeout=0),
                lambda: next(iter(receiver)),
                receiver.recv_ctrl_msg,
                sender.arm,
                receiver.arm,
                sender.indices,
                receiver.indices,
                sender.statistics,
            )
            with sender, receiver:
                pass

        assert forked(child) == 0
        with sender, receiver:
            sender.push((2,))
            assert receiver.pop_many() == [(1,), (2,)]
            assert receiver.pop(timeout=0) is None

    def test_finish_ends_it_for_the_peer_but_what_has_arrived_is_still_received(self):
        sender, receiver = pair("<Q")
        with sender, receiver:
            sender.push((1,))
            receiver.finish()
            assert receiver.pop() == (1,)
            ends(Closed, receiver.pop)
            ends(ReceiverGone, lambda: sender.push((2,)))

    def test_a_wrapper_and_its_endpoint_are_one(self):
        first, second = open_pair(
            Terms("<Q", Role(sends=True, receives=False)),
            Terms("<Q", Role(sends=False, receives=True)),
        )
        with Sender.of(first) as sender, Receiver.of(second) as receiver:
            sender.push((1,))
            assert receiver.pop() == (1,)
        assert first.closed
        assert second.closed


RECEIVES = """
receiver = Receiver(sock, "<Q", name="a child")
say(receiver.capacity, receiver.peer_name)
got = []
try:
    while True:
        got += receiver.pop_many() if told else [receiver.pop()]
except QueueError as end:
    say(type(end).__name__, len(got), got == [(n,) for n in range(len(got))])
receiver.close()
"""

SENDS = """
sender = Sender(sock, "<Q", capacity=64, name="a child")
total = int(told[0])
if len(told) > 1:
    assert sender.push_many([(n,) for n in range(total)]) == total
else:
    for n in range(total):
        sender.push((n,))
say("sent")
heard()
sender.close()
"""


class TestTwoProcesses:
    @pytest.mark.parametrize("batches", [False, True])
    def test_every_record_arrives_in_order_and_then_the_end(self, peer, batches):
        child, sock = peer(RECEIVES, *["batches"] * batches)
        with Sender(sock, "<Q", capacity=32, name="the test") as sender:
            assert says(child) == "32 the test"
            assert sender.peer_name == "a child"
            if batches:
                assert sender.push_many([(n,) for n in range(20_000)]) == 20_000
            else:
                for n in range(20_000):
                    sender.push((n,))
        assert says(child) == "EndOfStream 20000 True"
        assert child.wait() == 0

    @pytest.mark.parametrize("batches", [False, True])
    def test_every_record_comes_in_order_and_then_the_end(self, peer, batches):
        child, sock = peer(SENDS, 20_000, *["batches"] * batches)
        with Receiver(sock, "<Q") as receiver:
            assert (receiver.capacity, receiver.peer_name) == (64, "a child")
            got = [receiver.pop() for _ in range(20_000)]
            assert says(child) == "sent"
            tell(child)
            assert list(receiver) == []
        assert got == [(n,) for n in range(20_000)]
        assert child.wait() == 0

    def test_what_was_published_outlives_its_sender(self, peer):
        child, sock = peer(SENDS, 50)
        with Receiver(sock, "<Q") as receiver:
            assert says(child) == "sent"
            tell(child)
            assert child.wait() == 0
            assert receiver.pop_many(limit=20) == [(n,) for n in range(20)]
            assert list(receiver) == [(n,) for n in range(20, 50)]

    @pytest.mark.parametrize("unread", [False, True], ids=["", "with input unread"])
    def test_what_was_published_outlives_the_violent_death_of_its_sender(self, peer, unread):
        child, sock = peer(SENDS, 50)
        with Receiver(sock, "<Q") as receiver:
            assert says(child) == "sent"
            if unread:
                receiver.send_ctrl_msg(b"\x80\x00")
            child.kill()
            child.wait()
            assert receiver.pop_many(limit=20) == [(n,) for n in range(20)]
            for n in range(20, 50):
                assert receiver.pop() == (n,)
            ends(PeerDied, receiver.pop, receiver.pop_many, lambda: receiver.pop(timeout=0))
            ends(PeerDied, receiver.recv_ctrl_msg, lambda: receiver.send_ctrl_msg(b"\x80\x00"))

    @pytest.mark.parametrize("how", ["push", "push_many", "full", "asleep"])
    @pytest.mark.parametrize("unread", [False, True], ids=["", "with input unread"])
    def test_a_sender_notices_the_violent_death_of_its_receiver(self, peer, how, unread):
        child, sock = peer("receiver = Receiver(sock, '<Q')\nsay('ready')\nheard()\n")
        with Sender(sock, "<Q", capacity=4) as sender:
            assert says(child) == "ready"
            if unread:
                sender.send_ctrl_msg(b"\x80\x00")
            if how in ("full", "asleep"):
                sender.push_many([(n,) for n in range(4)])
            if how == "asleep":
                pid = os.fork()
                if pid == 0:  # kills it while we wait
                    os.sched_yield()
                    os.kill(child.pid, signal.SIGKILL)
                    os._exit(0)
            else:
                pid = None
                child.kill()
                child.wait()
            many = how == "push_many"
            with pytest.raises(PeerDied):
                push_for_ever(
                    sender.push_many if many else sender.push, [(9,)] * 3 if many else (9,)
                )
            if pid is not None:
                os.waitpid(pid, 0)
            ends(PeerDied, lambda: sender.push((9,)), lambda: sender.push((9,), timeout=0))
            ends(PeerDied, lambda: sender.push_many([(9,)]), sender.recv_ctrl_msg)
            assert not sender.arm()

    def test_messages_of_the_dead_are_taken_before_the_end_is_told(self, peer):
        child, sock = peer(
            "sender = Sender(sock, '<Q')\n"
            "for n in range(100): sender.send_ctrl_msg(bytes((200, n)))\n"
            "say('sent')\nheard()\n"
        )
        with Receiver(sock, "<Q") as receiver:
            assert says(child) == "sent"
            child.kill()
            child.wait()
            for n in range(100):
                assert receiver.recv_ctrl_msg() == bytes((200, n))
            ends(PeerDied, lambda: receiver.recv_ctrl_msg(timeout=None))

    def test_a_sleeping_receiver_is_woken_by_the_descriptor(self, peer):
        child, sock = peer(
            "sender = Sender(sock, '<Q')\n"
            "for n in range(100):\n    heard()\n    sender.push((n,))\n"
            "say(sender.statistics().doorbells)\nheard()\nsender.close()\n"
        )
        with Receiver(sock, "<Q") as receiver:
            poll = select.poll()
            poll.register(receiver.fileno(), select.POLLIN)
            for n in range(100):
                while not receiver.arm():
                    assert receiver.pop(timeout=0) is None
                assert poll.poll(0) == []
                tell(child)
                assert poll.poll()
                assert receiver.pop(timeout=0) == (n,)
            assert says(child) == "100"
            tell(child)
            ends(EndOfStream, receiver.pop)

    def test_a_refusal_is_told_on_both_sides(self, peer):
        for spec, mine, theirs in (("<d", RecordRefused, "Refused"), ("<Q", RoleRefused, "Role")):
            child, sock = peer(
                "try:\n    Sender(sock, '<Q')\n"
                "except Refused as error:\n    say(type(error).__name__)\n"
            )
            with pytest.raises(mine):
                Sender(sock, spec) if theirs == "Role" else Receiver(sock, spec)
            assert theirs in says(child)
            assert child.wait() == 0

    def test_a_peer_that_breaks_the_protocol_is_told(self, peer):
        child, sock = peer(
            "receiver = Receiver(sock, '<Q')\nsay('ready')\n"
            "os.write(receiver._endpoint.fileno(), b'\\x03\\x00')\nsay('said')\n"
            "try:\n    receiver.pop()\n"
            "except QueueError as error:\n    say(type(error).__name__, error)\n"
            "receiver.close()\n"
        )
        with Sender(sock, "<Q") as sender:
            assert says(child) == "ready"
            assert says(child) == "said"
            with pytest.raises(CorruptPeer, match="opcode 3"):
                sender.recv_ctrl_msg(timeout=None)
            assert says(child).startswith("Refused")
            ends(CorruptPeer, lambda: sender.push((1,)))
        assert issubclass(CorruptPeer, QueueError)
        assert not issubclass(CorruptPeer, Refused)

    def test_a_child_forked_by_the_peer_does_not_keep_the_end_secret(self, peer):
        # It inherits the socket, so that the kernel does not tell; the peer itself does.
        child, sock = peer(
            "sender = Sender(sock, '<Q')\nsender.push((1,))\n"
            "if os.fork() == 0:\n    import signal\n    signal.pause()\n"
            "sender.close()\nsay('closed')\nheard()\nos.kill(0, 9)\n",
            start_new_session=True,
        )
        try:
            with Receiver(sock, "<Q") as receiver:
                assert receiver.pop() == (1,)
                ends(EndOfStream, receiver.pop)
                assert says(child) == "closed"
        finally:
            os.killpg(child.pid, signal.SIGKILL)


class TestErrorsThatAreKept:
    """A program may keep an error, and with it the frames it came through."""

    @pytest.mark.parametrize(
        "call",
        [
            "sender.push((9,))",
            "sender.push_many([(9,)])",
            "buffers.push(bytearray(8))",
            "buffers.push(memoryview(bytearray(8)))",
            "buffers.push_many([bytearray(8)])",
            "receiver.pop()",
            "receiver.pop_many()",
        ],
    )
    def test_collecting_one_does_not_crash(self, program, call):
        # CPython before 3.13 crashes over a memoryview in a cycle while a buffer of it is held.
        child = program(
            "import gc, ipcqueue\n"
            "(sender, other), (another, receiver) = ipcqueue.pair('<Q'), ipcqueue.pair('<Q')\n"
            "buffers, third = ipcqueue.pair(8)\n"
            "for end in (other, another, third): end.close()\n"
            "def keep():\n"
            f"    try: {call}\n"
            "    except ipcqueue.QueueError as error: kept = error\n"
            "keep()\n"
            "gc.collect()\n"
            "for end in (sender, receiver, buffers): end.close()\n"
            "print('alive')\n",
            stderr=subprocess.PIPE,
        )
        assert child.communicate() == ("alive\n", "")


def test_every_public_name_is_there_and_documented():
    for name in ipcqueue.__all__:
        thing = getattr(ipcqueue, name)
        assert getattr(thing, "__doc__", None), name


def test_errors_are_of_one_family():
    for name in ipcqueue.__all__:
        thing = getattr(ipcqueue, name)
        if isinstance(thing, type) and issubclass(thing, Exception):
            assert issubclass(thing, QueueError)
            assert not issubclass(thing, fdpass.FdPassError)


def test_an_exception_anywhere_in_receiving_a_record_as_a_message_loses_none():
    sender, receiver = ipcqueue.pair("<Q", 4)
    with sender, receiver:

        def prepare():
            for n in range(3):
                sender.push((n,))

        def check(result):
            got = [] if result is None else [result.record]
            got += iter(lambda: receiver.pop(timeout=0), None)
            assert got == [(0,), (1,), (2,)]

        def receive():
            return receiver.recv_message(timeout=0)

        assert at_every_place(prepare, receive, interrupt, check) > 10
