"""The C code where memory is short, where callers are odd, and where the peer changes its mind."""

import array
import contextlib
import errno
import gc
import importlib.util
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from functools import partial

import pytest
from ipcqueue._core import ffi, lib

import fdpass
import fdpass.lowlevel
import ipcqueue
import ipcqueue.lowlevel
import memenpsf
from ipcqueue import _direct as direct
from ipcqueue import _packer
from ipcqueue._records.spec import codec_for
from ipcqueue._ring import memory as _memory
from ipcqueue._ring import segment as _segment
from tests.kit.attached import open_descriptors
from tests.kit.connected import quick_collector  # noqa: F401 (a fixture)
from tests.kit.hostile import HEAD
from tests.kit.places import Interrupt
from tests.kit.refusals import refused

SPECS = {
    "bytes of one size": (8, lambda n: n.to_bytes(8, "little")),
    "tuples": ("<QQ", lambda n: (n, n + (1 << 60))),
    "large tuples": ("<Q2000s", lambda n: (n, b"%d" % n * 400 + bytes(1600))),
    "messages": (bytes, lambda n: b"%d" % n * (n % 50)),
    "messages with tags": (memenpsf.Message, lambda n: memenpsf.Message(b"%d" % n, n, n % 256)),
}
SPECS["large tuples"] = ("<Q2000s", lambda n: (n, (b"%d" % n * 400).ljust(2000, b"\0")))


@pytest.fixture(params=SPECS)
def kind(request):
    return SPECS[request.param]


def pair_of(spec):
    return memenpsf.pair(spec, capacity=4096 if spec in (bytes, memenpsf.Message) else 64)


def rest(other):
    return list(iter(lambda: other.recv(timeout=0), None))


def nothing():
    """Made here: CPython 3.12 and 3.13 crash later if there is no memory for a function."""


# The fast paths to receive; what of their result are records.
WAYS = {
    "one": (lambda receiver: next(iter(receiver.ready(False)), None), lambda got: [got]),
    "many": (lambda receiver: next(receiver.many(3), None), lambda got: got),
    "a loop": (lambda receiver: next(receiver.all(nothing, KeyError)), lambda got: [got]),
    "a message": (
        lambda it: next(it.ready(False, ipcqueue.Received), None),
        lambda it: [it.record],
    ),
}


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_what_receives_without_memory_loses_nothing(kind, way, ahead, short_of_memory):
    spec, record = kind
    sent = [record(n) for n in range(11, 16)]
    receive, records = WAYS[way]

    def prepare():
        one, other = pair_of(spec)
        if ahead:
            one.xmit(record(10))
        one.xmit_many(sent)
        if ahead:
            assert next(iter(other)) == record(10)
        receiver = other._endpoint.receiver
        return one, other, receiver, [[] for _ in range(500)]  # so that new lists need memory

    def check(result, one, other, receiver, _):
        got = [] if result is MemoryError or result is None else records(result)
        with one, other:
            assert got + rest(other) == sent

    failures = short_of_memory(prepare, lambda one, other, it, _: receive(it), check)
    # "many" is for bytes, or leaves it to Python; what is there already may need none.
    assert failures > 0 or way == "many" or ahead


def long_shortage(first, count, receive, other):
    """Receive with `count` allocations failing from the `first` on; FAILED if that raised."""
    testcapi = pytest.importorskip("_testcapi")
    tracer = sys.gettrace()
    gc.disable()
    sys.settrace(None)
    try:
        testcapi.set_nomemory(first, first + count)
        result = receive(other)
        testcapi.remove_mem_hooks()
    except (MemoryError, SystemError):
        testcapi.remove_mem_hooks()
        result = FAILED
    sys.settrace(tracer)
    gc.enable()
    return result


FAILED = object()
VERBS = {
    "recv": (lambda other: other.recv(timeout=0), lambda got: [got]),
    "for": (lambda other: next(iter(other)), lambda got: [got]),
    "recv_vectored": (lambda other: other.recv_vectored(2, timeout=0), lambda got: got),
    "recv_message": (lambda other: other.recv_message(timeout=0), lambda got: [got.record]),
}


# Of a generator that there was no memory to close.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("count", [2, 4, 20, 200])
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("name", SPECS)
def test_a_shortage_that_lasts_loses_nothing(name, verb, count):
    """Not for ever: CPython 3.11 loops for want of a number, in the cleanup of a long function."""
    spec, record = SPECS[name]
    receive, records = VERBS[verb]
    sent, failures = [record(n) for n in range(11, 16)], 0
    for first in range(60):
        # A batch of what was copied out may be part of it, and the rest is in the way then.
        for prepared in (False, True)[: 1 + (verb != "recv_vectored")]:
            one, other = memenpsf.pair(
                spec, capacity=4096 if spec in (bytes, memenpsf.Message) else 64
            )
            with one, other:
                one.xmit_many(sent)
                if prepared:
                    copied_out(other._endpoint.receiver)
                used = (
                    [[] for _ in range(100)],
                    [(n,) for n in range(100)],
                )  # what is free needs none
                got = long_shortage(first, count, receive, other)
                failures += got is FAILED
                del used
                assert ([] if got is FAILED else records(got)) + rest(other) == sent
    assert failures > 0


def over(receiver):
    """Return a call that has ended without handing over what it took."""
    call = receiver.begin()
    call.over = True
    return call


def copied_out(receiver):
    """Have some of what waits stand in this process, as after an exception."""
    if isinstance(receiver, direct.FrameReceiver):
        receiver.prepare(3)
    else:
        call = receiver.begin()
        assert receiver._taken(call, 3)
        call.over = True


@pytest.mark.parametrize("spec", [8, "<Q"])
def test_a_batch_for_which_there_is_no_memory_stays(spec, short_of_memory):
    def prepare():
        one, other = memenpsf.pair(spec, capacity=64)
        one.xmit_many([bytes([n] * 8) if spec == 8 else (n,) for n in range(3)])
        return one, other, other._endpoint.receiver, other._endpoint.receiver.begin()

    def check(result, one, other, receiver, call):
        with one, other:
            assert (receiver._decoding == []) == (result is MemoryError)
            receiver._decoding = []
            assert len(rest(other)) == (3 if result is MemoryError else 1)

    def receive(one, other, receiver, call):
        receiver.fetch(call, 2)

    assert short_of_memory(prepare, receive, check, 10) > 0


def no_spare_tuples():
    """Return what has them: CPython keeps 2,000 of each length for the next that is made."""
    return [(n, n, n) for n in range(2001)]


def test_a_lock_is_taken_and_released_without_memory(short_of_memory):
    def use(lock, _):
        with lock:
            pass

    def check(result, lock, _):
        by_another = []
        thread = threading.Thread(target=lambda: by_another.append(lock.acquire(blocking=False)))
        thread.start()
        thread.join()
        assert by_another == [True], "it is held for ever"

    assert short_of_memory(lambda: (direct.RLock(), no_spare_tuples()), use, check, 10) == 0


def test_a_lock_is_that_of_one_thread_and_of_whom_it_calls():
    lock = direct.RLock()
    with pytest.raises(KeyError), lock, lock:
        raise KeyError
    with pytest.raises(RuntimeError, match="un-acquired"):
        lock.release()
    with lock:
        by_another = []
        thread = threading.Thread(target=lambda: by_another.append(lock.acquire(timeout=0)))
        thread.start()
        thread.join()
        assert by_another == [False]
    gc.collect()  # which visits it


def test_a_lock_for_which_there_is_no_memory_is_not_made(short_of_memory):
    def check(result):
        assert result is MemoryError or result.acquire()

    assert 3 < short_of_memory(list, direct.RLock, check) < 40


@pytest.mark.parametrize("spec", [8, bytes])
def test_a_loan_is_published_or_the_block_says_that_it_is_not(spec, short_of_memory):
    def prepare():
        one, other = pair_of(spec)
        loan = one.loan(8 if spec is bytes else 1)
        loan.__enter__().data[:] = b"12345678"
        return one, other, loan.__exit__, no_spare_tuples()

    def leave(one, other, leave_block, _):
        leave_block(None, None, None)

    def check(result, one, other, *_):
        with one, other:
            assert rest(other) == ([] if result is MemoryError else [b"12345678"])

    assert short_of_memory(prepare, leave, check) > 0


# A region that could not be noted is closed when it is collected, and says so.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_region_for_which_there_is_no_memory_stays_open_for_nobody(short_of_memory):
    def prepare():
        before = open_descriptors()
        one, other = memenpsf.pair(bytes, accept=memenpsf.Accept(regions=1))
        with fdpass.MemoryRegion.create(4096) as region:
            one.xmit(b"text", regions=[region])
        return one, other, before

    def receive(one, other, _):
        return other.recv_message(timeout=0)

    def check(result, one, other, before):
        with one, other:
            received = other.recv_message(timeout=0) if result is MemoryError else result
            assert received.record == b"text"
            received.close()
        assert open_descriptors() == before

    assert short_of_memory(prepare, receive, check, 250) > 100


def test_a_batch_sent_without_memory_is_sent_up_to_some_record(short_of_memory):
    for spec, many in ((8, [bytes([n] * 8) for n in range(200)]), (bytes, [b"text"] * 300)):

        def check(result, one, other, sender, many=many):
            with one, other:
                got = rest(other)
                assert got == many[: len(got)]
                assert result is MemoryError or result[0] == len(got)

        def send(one, other, sender, many=many):
            return sender.push_all(many)

        def prepare(spec=spec):
            one, other = pair_of(spec)
            return one, other, one._endpoint.sender

        assert short_of_memory(prepare, send, check, 10) > 0


def test_descriptors_that_come_while_memory_is_short_are_closed_or_noted(short_of_memory):
    ends = socket.socketpair()
    with ends[0], ends[1]:
        ends[1].setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)  # so more comes than rights
        files = [os.memfd_create("file") for _ in range(3)]
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))]

        def prepare():
            ends[0].sendmsg([b"\x11\x03"], rights)
            return open_descriptors(), [], bytearray(direct.ROOM)

        def receive(before, into, room):
            flags = fdpass.lowlevel.RECEIVE_FLAGS
            return direct.receive(ends[1], flags, True, into, room, -1, False)

        def check(result, before, into, room):
            if result is MemoryError:
                assert into == []
                receive(before, into, room)  # from the room, or the socket
            ((data, ancillary, _, _),) = into
            assert data == b"\x11\x03"
            numbers, strays = fdpass.lowlevel.unpack(ancillary)
            assert len(numbers) == 3
            for number in (*numbers, *strays):
                os.close(number)
            assert open_descriptors() == before

        assert short_of_memory(prepare, receive, check, 20) > 3
        for number in files:
            os.close(number)


@pytest.mark.skipif(
    sys.version_info[:3] == (3, 13, 0), reason="crashes CPython 3.13.0 in its own dict of a type"
)
def test_a_module_for_which_there_is_no_memory_is_not_loaded(short_of_memory):
    for module in (direct, _packer):
        spec = importlib.util.spec_from_file_location(module.__name__, module.__file__)

        def check(result, loaded):
            assert result is MemoryError or callable(
                getattr(loaded, "receive", None) or loaded.Packer
            )

        failures = short_of_memory(
            lambda spec=spec: [importlib.util.module_from_spec(spec)],
            spec.loader.exec_module,
            check,
            400,
        )
        assert failures > 10


def test_a_module_that_could_not_be_loaded_can_be_loaded_later():
    """What it makes once for the whole process as well: so in a process for each allocation."""
    pytest.importorskip("_testcapi")
    program = """if True:
        import _testcapi, bisect, importlib.util, os, sys
        spec = importlib.util.spec_from_file_location("ipcqueue._direct", sys.argv[1])

        def loaded():
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            receiver = module.SlotReceiver()
            assert receiver.commit(0, next=5) and receiver._next == 5

        def without(nth):
            module = importlib.util.module_from_spec(spec)
            _testcapi.set_nomemory(nth, nth + 1)
            try:
                spec.loader.exec_module(module)
                _testcapi.remove_mem_hooks()
            except (MemoryError, SystemError):
                _testcapi.remove_mem_hooks()
                loaded()
                return 3
            return 0

        def status(nth):
            pid = os.fork()
            if pid == 0:
                sys.exit(without(nth))
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

        first = bisect.bisect_left(range(10_000), True, key=lambda nth: status(nth) == 0)
        assert first > 100
        # One allocation more or less of this program moves the end.
        assert {status(nth) for nth in range(first - 20, first - 1)} == {3}
    """
    subprocess.run([sys.executable, "-c", program, direct.__file__], check=True)


def test_loops_for_which_there_is_no_memory_do_not_begin(short_of_memory):
    one, other = memenpsf.pair(8)
    with one, other:
        receiver = other._endpoint.receiver
        for begin in (
            lambda: receiver.ready(True),
            lambda: receiver.all(other.recv, ipcqueue.EndOfStream),
        ):
            failures = short_of_memory(
                list, begin, lambda loop: loop is MemoryError or iter(loop), 5
            )
            assert failures > 0


@pytest.mark.parametrize("verb", ["close", "abort", "finish", "send_eof"])
def test_what_ends_a_connection_does_so_without_memory(verb, short_of_memory):
    raised = {"abort": ipcqueue.Aborted}.get(verb, ipcqueue.EndOfStream)

    def prepare():
        one, other = memenpsf.pair(8)
        return one, other, getattr(one, verb)

    def check(result, one, other, _):
        assert one.closed == (verb in ("close", "abort"))
        with pytest.raises(ipcqueue.Closed):
            one.xmit(bytes(8))
        with pytest.raises(raised) as caught:
            other.recv(timeout=0)
        assert type(caught.value) is raised
        one.close()
        other.close()

    failures = short_of_memory(prepare, lambda one, other, end: end(), check, 80)
    assert failures > 0  # CPython 3.14 asks for less


def test_tuples_are_packed_with_memory_or_not_at_all(short_of_memory):
    fields = (("u", 0, 8), ("f", 8, 8), ("c", 16, 1), ("s", 17, 3), ("?", 20, 1), ("i", 24, 8))
    values = [(1 << 63, 0.5, b"c", b"txt", True, -(1 << 62))] * 3

    def make():
        return _packer.Packer(fields, 32, None)

    packer = make()
    packed = packer.pack(values)
    unpack, pack = packer.unpack, packer.pack
    for call, right in ((unpack, values), (pack, packed)):
        argument = packed if call is unpack else values

        def check(result, call, argument, right=right):
            assert result is MemoryError or result == right

        def prepare(call=call, argument=argument):
            return call, argument

        assert short_of_memory(prepare, lambda call, argument: call(argument), check) > 0
    failures = short_of_memory(
        list, make, lambda made: made is MemoryError or made.pack(values) == packed
    )
    assert failures > 0


def test_more_tuples_than_there_is_memory_in_the_world_are_an_error():
    packer = _packer.Packer((("c", 0, 1),), 1 << 62, None)
    with pytest.raises(MemoryError):
        packer.pack([(b"c",)] * 3)
    assert packer.pack(iter([(b"c",)])) is None  # for struct to look at


def test_calls_with_the_wrong_arguments_are_errors():
    one, other = memenpsf.pair(8)
    with one, other:
        sender, receiver = one._endpoint.sender, other._endpoint.receiver
        packer = _packer.Packer((("c", 0, 1),), 1, None)
        for call, arguments in (
            (sender.attach_fast, ("none",)),
            (receiver.attach_fast, ("none",)),
            (sender.push_run, ()),
            (sender.push_packed, (8, 8)),
            (receiver.fetch, (1,)),
            (receiver.fetch, (None, "one")),
            (receiver.pull, ("one",)),
            (receiver.many, ("one",)),
            (receiver.many, ()),
            (receiver.commit, ()),
            (receiver.commit, ("none",)),
            (receiver.hand_over, (None, 1)),
            (receiver.hand_over, (receiver.begin(),)),
            (receiver.all, ()),
            (direct.receive, ()),
            (direct.receive, (object(), 0, True, [], bytearray(direct.ROOM), -1, False)),
            (direct.receive, (0, "none", True, [], bytearray(direct.ROOM), -1, False)),
            (direct.receive, (0, 0, True, (), bytearray(direct.ROOM), -1, False)),
            (direct.receive, (0, 0, True, [], bytes(direct.ROOM), -1, False)),
            (packer.unpack, ("text",)),
        ):
            with pytest.raises(TypeError):
                call(*arguments)
        with pytest.raises(OverflowError):
            receiver.many(1 << 70)

        class Undecided:
            def __bool__(self):
                raise KeyError

        with pytest.raises(KeyError):
            receiver.ready(Undecided())
        one.xmit(bytes(8))  # and nothing has happened
        assert rest(other) == [bytes(8)]


class SlotSender(direct.SlotSender):
    """Notes what the fast path leaves to Python."""

    def offer_slowly(self, record):
        self.slowly = record

    offer_encoded = offer_slowly


class FrameSender(direct.FrameSender):
    """The same."""

    def offer_encoded(self, encoded):
        self.slowly = encoded


def test_what_is_encoded_to_something_odd_goes_the_long_way():
    sender = SlotSender()
    sender.attach_fast(0, 8, lambda record: record)
    released = memoryview(bytes(8))
    released.release()
    for odd in (8, "text", released, bytearray(7), bytearray(8), b"1234567"):
        sender.offer(odd)
        assert sender.slowly is odd
    sender.attach_fast(8, 8, {}.__getitem__)  # what is at that address goes with no ring
    with pytest.raises(KeyError):
        sender.offer(bytes(8))
    sender.attach_fast(8, 8, None)
    sender.offer(record := bytes(8))
    assert sender.slowly is record

    sender = FrameSender()
    sender.attach_fast(0, 8, lambda record: record)
    for odd in (
        8,
        (b"", 0),
        (b"", "tag", 0),
        (b"", 0, "flags"),
        (b"", -1, 0),
        (b"", 1 << 32, 0),
        (b"", 0, 256),
        ("text", 0, 0),
        (b"123456789", 0, 0),
        (b"", 0, 0),  # but there is no ring
    ):
        sender.offer(odd)
        assert sender.slowly is odd


def test_what_the_collector_runs_may_receive():
    if sys.version_info >= (3, 12):
        pytest.skip("the collector runs elsewhere from CPython 3.12 on")
    one, other = memenpsf.pair(8, capacity=64)
    with one, other:
        sent = [bytes([n] * 8) for n in range(8)]
        one.xmit_many(sent)
        by_collector = []

        class Garbage:
            def __init__(self):
                self.itself = self

            def __del__(self):
                by_collector.append(next(iter(other)))

        loop, threshold = iter(other), gc.get_threshold()
        gc.disable()
        kept = [[] for _ in range(500)]  # so that a new list needs new memory
        Garbage()
        gc.set_threshold(1)
        gc.enable()
        got = [next(loop)]
        gc.set_threshold(*threshold)
        del kept
        assert by_collector == sent[:1]
        assert got + rest(other) == sent[1:]


@pytest.mark.parametrize("spec", ["<Q", 8])
def test_an_impossible_index_is_noticed_in_the_middle_of_what_is_known(spec):
    one, other = memenpsf.pair(spec, capacity=64)
    with one, other:
        one.xmit_many([(n,) for n in range(8)] if spec == "<Q" else [bytes(8)] * 8)
        assert other.recv(timeout=0) is not None
        memory = one._endpoint._own.mapping
        ffi.buffer(memory.at, memory.size)[HEAD : HEAD + 8] = struct.pack("=Q", 1 << 40)
        receive = iter(other).__next__ if spec == "<Q" else lambda: other.recv_vectored(timeout=0)
        with pytest.raises(memenpsf.CorruptPeer):
            for _ in range(9):
                receive()


def test_an_index_that_changes_all_the_time_is_believed_or_refused():
    """The second look at the peer's index, microseconds after the first, is no less careful."""
    codec, capacity, parent = codec_for("<Q"), 64, os.getpid()
    with (
        contextlib.closing(_segment.create(codec, capacity, "sender")) as theirs,
        contextlib.closing(_segment.create(codec, 0, "receiver")) as ours,
    ):
        memory = ffi.buffer(theirs.mapping.at, theirs.mapping.size)
        pid = os.fork()
        if pid == 0:
            try:
                few, more, bad = (struct.pack("=Q", n) for n in (1, 20, 1 << 40))
                while os.getppid() == parent:
                    for _ in range(1000):
                        for index in (few, more, few, bad):
                            memory[HEAD : HEAD + 8] = index
            finally:
                os._exit(0)
        try:
            results, tries = set(), 5000
            into, count = ffi.new("char[]", capacity * 8), ffi.new("uint64_t *")
            # Until the child runs, there is nothing; and it may be stopped between two writes.
            while not results >= {1, 20, lib.IPCQ_CORRUPT} or (tries := tries - 1):
                ring = _memory.allocate("ipcq_receiver *", lib.ipcq_receiver_size())
                lib.ipcq_receiver_init(
                    ring, ours.mapping.at, 13, theirs.mapping.at, 13, capacity, 8, -1, 0
                )
                code = lib.ipcq_pop(ring, into, capacity, 0, count)
                results.add(count[0] if code == lib.IPCQ_DONE else code)
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        assert results <= {1, 20, lib.IPCQ_EMPTY, lib.IPCQ_CORRUPT}


def test_a_segment_that_does_not_fit_its_file_is_an_error():
    with fdpass.Memfd.create("short", 4096) as memfd:
        with pytest.raises(OSError, match="Cannot allocate memory"):
            _memory.map_segment(memfd.fileno(), 8192, writable=False)
        with pytest.raises(OSError, match="Invalid argument"):
            _memory.map_segment(memfd.fileno(), 4096, writable=False, mirrored=100)


def test_nothing_can_be_published_into_a_ring_with_space_at_once():
    one, other = ipcqueue.pair("<Q", 4)
    with one, other:
        ring = one._endpoint.sender._ring
        done = ffi.new("uint64_t *", 7)
        assert lib.ipcq_push_pieces(ring, ffi.NULL, 0, done) == lib.IPCQ_DONE
        assert done[0] == 0
        for _ in range(4):
            one.push((1,))
        assert lib.ipcq_push_pieces(ring, ffi.NULL, 0, done) == lib.IPCQ_DONE


def readable(side):
    poll = select.poll()
    poll.register(side.fileno(), select.POLLIN)
    return bool(poll.poll(0))


@pytest.mark.parametrize("error", [errno.ENOBUFS, errno.ENOMEM, errno.EINTR])
def test_a_doorbell_that_the_kernel_has_no_memory_for_is_rung_at_the_next_push(error):
    sender, receiver = ipcqueue.pair("<Q", 4)
    with sender, receiver:
        assert receiver.arm()
        refused("sendto", error, lambda: sender.push((1,)), sender._endpoint.fileno())
        assert not readable(receiver)
        sender.push((2,))
        assert readable(receiver)
        assert [receiver.pop(), receiver.pop()] == [(1,), (2,)]


@pytest.mark.parametrize("error", [errno.EAGAIN, errno.EPIPE])
def test_a_doorbell_that_cannot_be_rung_for_other_reasons_is_not_tried_again(error):
    sender, receiver = ipcqueue.pair("<Q", 4)
    with sender, receiver:
        assert receiver.arm()
        refused("sendto", error, lambda: sender.push((1,)), sender._endpoint.fileno())
        sender.push((2,))
        assert not readable(receiver)


def test_a_kernel_that_cannot_populate_mappings_will_do():
    def move():
        sender, receiver = ipcqueue.pair(bytes, 4096)
        with sender, receiver:
            sender.push(b"text")
            return receiver.pop()

    assert refused("madvise", errno.EINVAL, move) == b"text"  # before Linux 5.14
    with fdpass.Memfd.create("segment", 4096) as memfd:
        map_it = partial(_memory.map_segment, memfd.fileno(), 4096, writable=False)
        with pytest.raises(OSError, match="Cannot allocate memory"):
            refused("madvise", errno.ENOMEM, map_it)


def test_a_socket_that_cannot_be_looked_at_is_not_quiet():
    sender, receiver = ipcqueue.pair("<Q", 4)
    with sender, receiver:
        ring = receiver._endpoint.receiver._ring
        assert lib.ipcq_is_silent(ring)
        look = partial(lib.ipcq_is_silent, ring)
        assert not refused("recvfrom", errno.ENOTCONN, look, receiver._endpoint.fileno())
        assert not refused("recvfrom", errno.ECONNRESET, look, receiver._endpoint.fileno())
        assert lib.ipcq_is_silent(ring)
        sender.send_ctrl_msg(b"\x80\x01")
        assert not lib.ipcq_is_silent(ring)


def test_processors_that_cannot_be_counted_are_more_than_one():
    sender, receiver = ipcqueue.pair("<Q", 4)
    with sender, receiver:
        ring = receiver._endpoint.receiver._ring
        lib.ipcq_receiver_patience(ring, 1000, 1, 0)
        assert not refused("sched_getaffinity", errno.EINVAL, partial(lib.ipcq_yields, ring))


def test_a_codec_may_encode_to_anything_that_has_bytes():
    one, other = memenpsf.pair(8)
    with one, other:
        sender = one._endpoint.sender
        sender.attach_fast(_memory.address_of(sender._ring), 8, bytearray)
        assert sender.try_push(b"12345678")
        assert rest(other) == [b"12345678"]

        class Array:
            """Of a type that says nothing of its items."""

        sender.array, sender.dtype = Array, "a dtype"
        with pytest.raises(AttributeError):
            sender.push_all(Array())


@pytest.mark.parametrize("spec", [8, bytes])
def test_nonsense_in_what_both_ways_share_leaves_it_to_python(spec):
    one, other = memenpsf.pair(spec)
    with one, other:
        receiver = other._endpoint.receiver
        one.xmit(b"12345678")
        for attribute in ("_decoding", "_raw"):
            right = getattr(receiver, attribute)
            for nonsense in (None, (), "text"):
                setattr(receiver, attribute, nonsense)
                assert list(receiver.ready(False)) == []
                assert not list(receiver.many(1))
            delattr(receiver, attribute)
            assert list(receiver.ready(False)) == []
            setattr(receiver, attribute, right)
        for ahead, place in (((), 0), ([], 0), ([b"old"], -1), ([b"old"], 1)):
            receiver.prefetched, receiver.place = ahead, place
            assert not receiver.is_empty()
        receiver.prefetched, receiver.place = None, 0
        assert list(receiver.ready(False)) == [b"12345678"]


def test_a_decoder_that_leaves_nonsense_and_fails_has_taken_nothing():
    one, other = memenpsf.pair("<Q")
    with one, other:
        receiver = other._endpoint.receiver

        def decode(data):
            receiver._raw = None
            raise ZeroDivisionError

        address = _memory.address_of(receiver._ring)
        receiver.attach_fast(address, 8, 64, True, False, decode, None)
        one.xmit((1,))
        assert list(receiver.ready(False)) == []
        receiver._raw = b""
        assert rest(other) == [(1,)]


@pytest.mark.parametrize(
    "what",
    ["a tuple", "stash", "hands", "more", "fewer", "ahead", "parks", "an error", "an interrupt"],
)
def test_whatever_a_decoder_of_many_does_nothing_is_lost(what):
    one, other = memenpsf.pair("<Q")
    with one, other:
        receiver, codec = other._endpoint.receiver, other._endpoint.codec
        before = []

        def decode_many(data, count):
            records = codec.decode_many(data, count)
            match what:
                case "a tuple":
                    return tuple(records)
                case "stash":
                    receiver._raw = bytes(bytearray(receiver._raw))  # equal, and another
                case "hands":
                    receiver._decoding = [(over(receiver), bytearray(8))]
                case "more":
                    if not before:
                        before.append(other.recv(timeout=0))
                        before.append(next(loop))
                case "fewer":
                    return records[1:]
                case "ahead":
                    receiver.prefetched, receiver._prefetched_raw = [(0,)], bytes(8)
                case "parks":  # as a borrowing does
                    receiver._ring = None
                case "an error":
                    raise ValueError
                case "an interrupt":
                    raise Interrupt
            return records

        address = _memory.address_of(receiver._ring)
        receiver.attach_fast(address, 8, 64, True, False, codec.decode, decode_many)
        sent = [(n,) for n in range(1, 6)]
        one.xmit_many(sent)
        loop, got, ring = iter(other), [], receiver._ring
        with contextlib.suppress(Interrupt, ipcqueue.ConcurrentUse, ipcqueue.Closed):
            got.append(next(loop))
        receiver._ring = ring
        receiver.attach_fast(address, 8, 64, True, False, codec.decode, codec.decode_many)
        got = [each for each in before + got + rest(other) if each != (0,)]
        assert sorted(got) == sent


@pytest.mark.parametrize("what", ["receive", "take ahead", "put back", "an error", "an interrupt"])
def test_whatever_a_decoder_of_messages_does_nothing_is_lost(what):
    one, other = memenpsf.pair(memenpsf.Message)
    with one, other:
        receiver = other._endpoint.receiver
        before = []

        def decode(*message):
            if not before:
                before.append(None)
                match what:
                    case "receive":
                        before.append(other.recv(timeout=0))
                    case "take ahead":
                        receiver.prefetched, receiver.place = [b"older"], 0
                    case "put back":
                        receiver.prepare(1)
                    case "an error":
                        raise ValueError
                    case "an interrupt":
                        raise Interrupt
            return memenpsf.Message(*message)

        address = _memory.address_of(receiver._ring)
        receiver.attach_fast(address, 4096, 64, True, False, decode, None)
        sent = [memenpsf.Message(b"%d" % n, n) for n in range(1, 6)]
        one.xmit_many(sent)
        got = []
        with contextlib.suppress(Interrupt, ValueError):
            got += receiver.ready(False)
        if what == "take ahead":
            receiver.prefetched = None
        assert before[1:] + got + rest(other) == sent


@pytest.mark.parametrize("labels", [((0, 0), (7, 0), (0, 7), (0, 0)), ((0, 0), (0, 7), (7, 0))])
def test_messages_with_a_tag_come_to_who_wants_bytes_without(labels):
    terms = [
        ipcqueue.lowlevel.Terms(spec, ipcqueue.lowlevel.Role(sends=True, receives=True))
        for spec in (memenpsf.Message, bytes)
    ]
    one, other = map(memenpsf.Interface.of, ipcqueue.lowlevel.open_pair(*terms))
    with one, other:
        for tag, flags in labels:
            one.xmit(memenpsf.Message(b"text", tag, flags))
        assert other.recv_vectored(timeout=0) == [b"text"] * len(labels)


def test_a_peer_that_takes_back_what_it_has_published_is_corrupt():
    one, other = memenpsf.pair(bytes)
    with one, other:
        for n in range(2):
            one.xmit(b"%d" % n)
        other._endpoint.receiver.prepare(2)
        memory = one._endpoint._own.mapping
        ffi.buffer(memory.at, memory.size)[HEAD : HEAD + 8] = bytes(8)
        other._endpoint.receiver.prepare(3)  # those that were copied come first
        assert [other.recv(), other.recv()] == [b"0", b"1"]
        with pytest.raises(memenpsf.CorruptPeer):
            other.recv()


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (errno.EAGAIN, memenpsf.Full),
        (errno.ETOOMANYREFS, memenpsf.Full),
        (errno.EPIPE, memenpsf.PeerDied),
        (errno.ECONNRESET, memenpsf.PeerDied),
        (errno.EPERM, PermissionError),
    ],
)
def test_a_message_whose_descriptors_cannot_be_sent_is_not_sent(error, raised):
    one, other = memenpsf.pair(bytes, accept=memenpsf.Accept(fds=1))
    with one, other, fdpass.Fd(os.memfd_create("file")) as file:
        send = partial(one.xmit, b"text", timeout=0, fds=[file])
        with pytest.raises(raised):
            refused("sendmsg", error, send, one._endpoint.fileno())
        assert other.recv(timeout=0) is None
        if raised is not memenpsf.PeerDied:
            send()
            assert other.recv() == b"text"
