"""The fast path into the core (core/python), and that it and the slow path see the same."""

import os
import socket
import sys
from pathlib import Path

import pytest

import fdpass
import fdpass.lowlevel
import ipcqueue
import memenpsf
from ipcqueue import _core, _waiting
from ipcqueue import _direct as direct
from ipcqueue._ring import arrivals as _arrivals
from tests.kit.places import Interrupt, at_every_place, interrupt

SPECS = {
    "bytes of one size": (8, lambda n: n.to_bytes(8, "little")),
    "tuples": ("<QQ", lambda n: (n, n + 1)),
    "messages": (bytes, lambda n: b"%d" % n * (n % 50)),
    "messages with tags": (memenpsf.Message, lambda n: memenpsf.Message(b"%d" % n, n, n % 256)),
}


@pytest.fixture(params=SPECS)
def ends(request):
    spec, record = SPECS[request.param]
    one, other = memenpsf.pair(spec, capacity=1 << 16)
    with one, other:
        yield one, other, record


def test_what_returns_at_once_keeps_the_interpreter_and_what_waits_does_not():
    # The function of CPython that lets other threads run.
    lets_go = b"PyEval_SaveThread"
    assert lets_go not in Path(_core.__file__).read_bytes()
    assert lets_go in Path(_waiting.__file__).read_bytes()


def test_the_short_way_is_taken(ends, monkeypatch):
    one, other, record = ends
    monkeypatch.setattr(type(one._threads), "push", None)
    monkeypatch.setattr(type(one._threads), "pop", None)
    assert isinstance(one._endpoint.sender, direct.SlotSender | direct.FrameSender)
    one.xmit(record(1))
    assert other.recv() == record(1)
    one.xmit(record(2))
    assert other.recv(timeout=0) == record(2)
    assert list(other._endpoint.ready) == []


def test_a_loop_takes_some_ahead_and_every_verb_gets_those_first(ends):
    one, other, record = ends
    verbs = [
        lambda: [other.recv(timeout=0)],
        lambda: [other.recv()],
        lambda: list(other.recv_vectored(timeout=0)),
        lambda: list(other.recv_vectored(1, timeout=0)),
        lambda: [other.recv_message(timeout=0).record],
        lambda: [other._endpoint.try_pop()],
        lambda: [next(iter(other))],
    ]
    for verb in verbs:
        one.xmit_many(map(record, range(1, 9)))
        assert next(iter(other)) == record(1)
        if other.record is not memenpsf.Message:
            assert len(set(one.indices())) == 1  # all are taken
            assert other._endpoint.receiver.holds()
        assert not other.arm()
        got = verb()
        while (record_after := other.recv(timeout=0)) is not None:
            got.append(record_after)
        assert got == list(map(record, range(2, 9)))


def test_how_far_a_loop_goes_ahead():
    for spec, size in ((8, 8), (bytes, 8), (bytes, 1000), ("<Q", None)):
        one, other = memenpsf.pair(spec, capacity=1 << 17)
        with one, other:
            one.xmit_many([(n,) if size is None else bytes(size) for n in range(65)])
            total = one.indices()[0]
            loop = iter(other)
            next(loop)
            taken = one.indices()[1]
            assert taken * 65 // total == (17 if size == 1000 else 64)  # 16 KiB, or 64 records
    one, other = memenpsf.pair(8, capacity=16)
    with one, other:
        one.xmit_many([bytes(8)] * 16)
        next(iter(other))
        assert one.indices() == (16, 4)  # a quarter of the ring


def test_what_a_loop_took_ahead_is_borrowed_first():
    one, other = memenpsf.pair(bytes)
    with one, other:
        one.xmit_many([b"first", b"second"])
        with one.loan(5, tag=7, flags=9) as loan:
            loan.data[:] = b"third"
        assert next(iter(other)) == b"first"
        with other.borrow() as messages:
            assert [bytes(message.data) for message in messages] == [b"second"]
            messages.cancel()
        assert other.recv(timeout=0) == b"second"
        with other.borrow() as messages:
            assert [(bytes(m.data), m.tag, m.flags) for m in messages] == [(b"third", 7, 9)]
        assert other.recv(timeout=0) is None
    for spec, record in ((8, b"%08d"), ("<Q", None)):
        one, other = memenpsf.pair(spec)
        with one, other:
            one.xmit_many([record % n if record else (n,) for n in range(3)])
            next(iter(other))
            with other.borrow() as lent:
                assert len(lent.data) == 16


def test_a_loop_ends_with_the_stream_and_raises_how_else_it_ended(ends):
    one, other, record = ends
    sent = list(map(record, range(200)))
    one.xmit_many(sent)
    one.close()
    loop = iter(other)
    assert list(loop) == sent
    assert list(loop) == []
    other.close()
    with pytest.raises(ipcqueue.Closed):
        next(iter(other))


def test_a_loop_meets_what_is_not_simple_in_its_order():
    one, other = memenpsf.pair(bytes, accept=memenpsf.Accept(fds=1), capacity=8192, inline=2048)
    with one, other, Path(os.devnull).open() as file:
        sent = [b"1", b"", b"3" * 3000, b"4", b"5", b"6"]
        one.xmit_many(sent[:4])
        one.xmit(sent[4], fds=[file])
        one.xmit(sent[5])
        one.finish()
        assert list(other) == sent
        assert other.statistics().dropped == 1


def test_a_batch_with_what_is_not_simple_in_it_is_complete():
    one, other = memenpsf.pair(bytes, capacity=8192, inline=2048)
    with one, other:
        sent = [b"1", b"2", b"3" * 3000, b"4"]
        one.xmit_many(sent)
        assert other.recv_vectored() == sent


VERBS = {
    "loop": lambda other: next(iter(other)),
    "recv": lambda other: other.recv(),
    "recv_vectored": lambda other: other.recv_vectored(),
    "recv_message": lambda other: other.recv_message(),
    "borrow": lambda other: other.borrow().__enter__(),
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_forked_child_gets_nothing_that_a_loop_took_ahead(ends, verb):
    one, other, record = ends
    one.xmit_many(map(record, range(5)))
    next(iter(other))
    child = os.fork()
    if child == 0:
        status = 1
        try:
            VERBS[verb](other)
        except ipcqueue.ForkedUse:
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert other.recv() == record(1)


def test_an_exception_in_a_loop_loses_nothing(ends):
    one, other, record = ends
    one.xmit_many(map(record, range(10)))
    got = []
    with pytest.raises(Interrupt):
        for each in other:
            got.append(each)
            if len(got) == 3:
                raise Interrupt
    got += other.recv_vectored()
    assert got == list(map(record, range(10)))


def test_nothing_is_older_than_what_a_call_has_left(ends):
    # As when a handler's loop takes some ahead while the interrupted call holds an older record.
    one, other, record = ends
    receiver = other._endpoint.receiver
    one.xmit_many(map(record, range(1, 6)))
    loop = iter(other)
    assert next(loop) == record(1)
    first = next(loop)
    call = receiver.begin()
    call.over = True
    if isinstance(receiver, direct.SlotReceiver):
        raw = bytes(other._endpoint.codec.encode(first))
        receiver._decoding = [(call, bytearray(raw))]
    else:
        framed = other._endpoint.codec.encode(first)
        receiver._decoding = [(call, [_arrivals.Built(0, 1, framed, [], [])])]
    assert [next(loop) for _ in range(4)] == list(map(record, range(2, 6)))


def test_a_decoder_of_many_that_fails_or_interferes_loses_nothing():
    one, other = memenpsf.pair("<Q")
    receiver = other._endpoint.receiver
    codec = other._endpoint.codec
    actions = [lambda: other.recv(timeout=0), interrupt, lambda: 1 // 0]
    inside = []

    def decode_many(data, count):
        if actions:
            inside.append(actions.pop(0)())
        return codec.decode_many(data, count)

    address = ipcqueue._ring.memory.address_of(receiver._ring)
    with one, other:
        receiver.attach_fast(address, 8, 64, True, False, codec.decode, decode_many)
        one.xmit_many([(n,) for n in range(9)])
        loop = iter(other)
        got = [next(loop)]
        assert inside == [(0,)]
        assert got == [(1,)]
        with pytest.raises(Interrupt):
            for _ in range(9):
                one.xmit((9,))
                got.append(next(loop))
        got += [each for each in iter(lambda: other.recv(timeout=0), None) if each != (9,)]
        assert [each for each in got if each != (9,)] == [(n,) for n in range(1, 9)]


@pytest.mark.parametrize("name", SPECS)
def test_nothing_strikes_in_the_short_way_of_one_record(name):
    spec, record = SPECS[name]
    made = []

    def prepare():
        made[:] = memenpsf.pair(spec, capacity=4096)
        made[0].xmit(record(1))

    def check(result):
        assert result == record(1) or name == "messages with tags"
        for side in made:
            side.close()

    places = at_every_place(prepare, lambda: made[1].recv(timeout=0), interrupt, check)
    assert (places > 0) == (name == "messages with tags")  # in functions of Python


def test_a_decoder_that_fails_or_receives_itself_loses_nothing(monkeypatch):
    one, other = memenpsf.pair("<Q")
    with one, other:
        receiver = other._endpoint.receiver
        really = ipcqueue._records.spec.codec_for("<Q").decode
        calls = []

        def decode(data):
            calls.append(bytes(data))
            if len(calls) == 1:
                assert other.recv(timeout=0) == (1,)  # from within: nobody has taken it yet
            if bytes(data)[0] == 3:
                raise Interrupt
            return really(data)

        receiver.attach_fast(
            ipcqueue._ring.memory.address_of(receiver._ring), 8, 64, True, False, decode, None
        )
        one.xmit_many([(n,) for n in range(1, 5)])
        assert other.recv(timeout=0) == (2,)
        with pytest.raises(Interrupt):
            other.recv(timeout=0)
        receiver.attach_fast(
            ipcqueue._ring.memory.address_of(receiver._ring), 8, 64, True, False, really, None
        )
        assert other.recv(timeout=0) == (3,)
        assert other.recv(timeout=0) == (4,)


class TestEncoded:
    """Functions of the application, in the midst of it."""

    def test_it_is_encoded_once_wherever_it_travels(self):
        calls = []

        def encode(record):
            calls.append(record)
            return record

        spec = memenpsf.Encoded(encode, bytes)
        one, other = memenpsf.pair(spec, capacity=4096, inline=1024)
        with one, other:
            for size in (0, 100, 1008, 1009, 5000):
                one.xmit(bytes(size))
                assert other.recv() == bytes(size)
        assert [len(record) for record in calls] == [0, 100, 1008, 1009, 5000]

    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
    def test_what_it_is_encoded_to_may_be_any_bytes(self, kind):
        one, other = memenpsf.pair(memenpsf.Encoded(kind, bytes))
        with one, other:
            one.xmit(b"some")
            assert other.recv() == b"some"

    def test_an_error_of_it_is_raised_and_nothing_sent(self):
        one, other = memenpsf.pair(memenpsf.Encoded(lambda n: b"%d" % (1 // n), bytes))
        with one, other:
            with pytest.raises(ZeroDivisionError):
                one.xmit(0)
            one.xmit(1)
            assert other.recv() == b"1"
            assert other.recv(timeout=0) is None

    def test_a_decoder_that_receives_itself_doubles_nothing(self):
        inner = []

        def decode(data):
            if not inner:
                inner.append(None)
                inner.append(other.recv(timeout=0))
            return data

        one, other = memenpsf.pair(memenpsf.Encoded(bytes, decode))
        with one, other:
            one.xmit_many([b"1", b"2", b"3"])
            got = [other.recv(), other.recv()]
            assert other.recv(timeout=0) is None
            assert sorted([inner[1], *got]) == [b"1", b"2", b"3"]

    def test_a_decoder_that_fails_has_its_message_taken(self):
        one, other = memenpsf.pair(memenpsf.Encoded(bytes, int))
        with one, other:
            one.xmit_many([b"1", b"x", b"3"])
            assert other.recv() == 1
            with pytest.raises(memenpsf.DecodeFailed, match="message 1 "):
                other.recv()
            assert other.recv() == 3
            assert len(set(one.indices())) == 1


# What a decoder or a stranger to these classes may do, and what must not crash or lose anything then.


def test_a_forked_child_gets_nothing_that_its_parent_has_taken_already(ends, forked):
    one, other, record = ends
    verbs = {
        "loop": lambda: next(iter(other)),
        "recv": lambda: other.recv(timeout=0),
        "recv_vectored": lambda: other.recv_vectored(timeout=0),
        "recv_message": lambda: other.recv_message(timeout=0),
        "borrow": lambda: other.borrow(timeout=0).__enter__(),
    }
    one.xmit_many(map(record, range(1, 6)))
    loop = iter(other)
    assert next(loop) == record(1)

    def in_child(verb):
        with pytest.raises(ipcqueue.ForkedUse):
            verb()

    for verb in [lambda: next(loop), *verbs.values()]:
        assert forked(lambda verb=verb: in_child(verb)) == 0
    other._endpoint.receiver._reclaim()  # as the slow path does first of all
    for verb in verbs.values():
        assert forked(lambda verb=verb: in_child(verb)) == 0
    assert [next(loop) for _ in range(4)] == list(map(record, range(2, 6)))


@pytest.mark.parametrize("name", SPECS)
def test_a_loop_that_runs_out_of_memory_loses_nothing(name):
    testcapi = pytest.importorskip("_testcapi")
    spec, record = SPECS[name]
    sent = list(map(record, range(1, 6)))
    failures = 0
    tracer = sys.gettrace()  # that of a coverage tool needs memory itself
    for nth in range(30):
        one, other = memenpsf.pair(spec, capacity=4096)
        with one, other:
            one.xmit_many(sent)
            loop, got = iter(other), []
            sys.settrace(None)
            try:
                testcapi.set_nomemory(nth, nth + 1)
                first = next(loop)  # kept by a name, which needs no memory
                testcapi.remove_mem_hooks()
                got.append(first)
            except MemoryError:
                testcapi.remove_mem_hooks()
                failures += 1
            sys.settrace(tracer)
            while (after := other.recv(timeout=0)) is not None:
                got.append(after)
            assert got == sent
    # Mostly the slow path does it again: it is a verb, and says whose its exceptions are.
    assert failures < 30


def test_a_decoder_that_deletes_what_waits_and_fails_does_no_harm():
    one, other = memenpsf.pair("<Q")
    with one, other:
        receiver = other._endpoint.receiver
        decode = other._endpoint.codec.decode

        def interfere(data):
            del receiver._raw
            raise ValueError

        receiver.attach_fast(
            ipcqueue._ring.memory.address_of(receiver._ring), 8, 64, True, False, interfere, None
        )
        one.xmit((1,))
        assert decode(bytes(8)) == (0,)
        assert other.recv(timeout=0) == (1,)  # the slow path


def test_a_loop_is_not_made_of_what_is_neither_true_nor_false():
    class Neither:
        def __bool__(self):
            raise Interrupt

    one, other = memenpsf.pair(8)
    with one, other, pytest.raises(Interrupt):
        other._endpoint.receiver.ready(Neither())


def test_the_short_way_ends_where_another_ring_is_put_in_place(ends):
    one, other, record = ends
    sender, receiver = one._endpoint.sender, other._endpoint.receiver
    one.xmit(record(1))
    sender_ring, sender._ring = sender._ring, 5
    receiver_ring, receiver._ring = receiver._ring, 5
    try:
        with pytest.raises(TypeError):
            sender.try_push(record(2))
        assert list(receiver.ready(False)) == []
        assert not receiver.is_quiet()
        assert not list(receiver.many(1))
    finally:
        sender._ring, receiver._ring = sender_ring, receiver_ring
    one.xmit(record(2))
    assert [other.recv(timeout=0) for _ in range(3)] == [record(1), record(2), None]


def test_an_end_that_was_given_no_ring_has_no_short_way():
    for kind in (direct.SlotSender, direct.FrameSender):
        sender = kind()
        sender._ring = object()
        with pytest.raises(AttributeError, match="offer_slowly"):
            sender.offer(b"")
    for kind in (direct.SlotReceiver, direct.FrameReceiver):
        receiver = kind()
        receiver._ring = object()
        assert list(receiver.ready(True)) == []


@pytest.mark.skipif(sys.version_info < (3, 12), reason="buffers were made in C only")
def test_an_exception_of_a_signal_passes_through_the_buffer_of_an_encoder():
    class Buffer:
        def __buffer__(self, flags):
            raise Interrupt

    one, other = memenpsf.pair(8)
    with one, other:
        sender = one._endpoint.sender
        sender.attach_fast(
            ipcqueue._ring.memory.address_of(sender._ring), 8, lambda record: Buffer()
        )
        with pytest.raises(Interrupt):
            sender.offer(bytes(8))


# What other threads, and handlers of signals, may do between two steps of Python.


def between(receiver, name, action):
    """Do something, once, when a method of a receiver has just returned."""
    really = getattr(receiver, name)
    actions = [action]

    def instead(*arguments):
        result = really(*arguments)
        if actions:
            actions.pop()()
        return result

    setattr(receiver, name, instead)


def test_a_batch_is_without_what_another_took_of_it_meanwhile(ends):
    one, other, record = ends
    one.xmit_many(map(record, range(1, 6)))
    loop, first = iter(other), []
    between(other._endpoint.receiver, "many", lambda: first.append(next(loop)))
    codec_of_bytes = other._endpoint.receiver._plain
    batch = other.recv_vectored(timeout=0)
    if codec_of_bytes:
        assert first == [record(1)]
    assert first + batch + other.recv_vectored(timeout=0) == list(map(record, range(1, 6)))


@pytest.mark.parametrize("name", ["bytes of one size", "messages"])
def test_a_batch_is_no_longer_than_asked_for_whoever_was_faster(name):
    spec, record = SPECS[name]
    one, other = memenpsf.pair(spec)
    with one, other:
        one.xmit_many(map(record, range(1, 21)))
        loop, first = iter(other), []
        between(
            other._endpoint.receiver,
            "many",
            lambda: first.extend(next(loop) for _ in range(4)),
        )
        batch = other.recv_vectored(3, timeout=0)
        assert first == list(map(record, range(1, 5)))
        assert batch == list(map(record, range(5, 8)))
        assert list(other.recv_vectored()) == list(map(record, range(8, 21)))


@pytest.mark.parametrize(
    ("verb", "step"),
    [("try_pop", "_reclaim"), ("try_pop_many", "_reclaim"), ("try_pop_many", "pull")],
)
def test_what_a_loop_of_another_thread_takes_ahead_comes_first(ends, verb, step):
    one, other, record = ends
    receiver = other._endpoint.receiver
    if not hasattr(receiver, step):
        pytest.skip("a step of slots")
    receiver.fetch = lambda *_: None  # the slow path
    one.xmit_many(map(record, range(1, 200)))
    loop, got = iter(other), []
    between(receiver, step, lambda: got.append(next(loop)))
    got += [receiver.try_pop()] if verb == "try_pop" else receiver.try_pop_many(100)
    assert got[:2] == list(map(record, range(1, 3)))
    while (after := other.recv(timeout=0)) is not None:
        got.append(after)
    assert got == list(map(record, range(1, 200)))


@pytest.mark.parametrize("verb", ["try_pop", "try_pop_many"])
@pytest.mark.parametrize("taken", [1, 4])
def test_what_a_loop_took_ahead_may_be_taken_while_it_is_put_back(ends, verb, taken):
    one, other, record = ends
    receiver = other._endpoint.receiver
    one.xmit_many(map(record, range(1, 6)))
    got = [next(iter(other))]
    if not receiver.prefetched:
        pytest.skip("a loop takes these one by one")
    take = iter(receiver.ready(False))
    between(receiver, "_left_over", lambda: got.extend(next(take) for _ in range(taken)))
    if verb == "try_pop":
        got += [each for each in [receiver.try_pop()] if each is not None]
    else:
        got += receiver.try_pop_many(3) or []
    while (after := other.recv(timeout=0)) is not None:
        got.append(after)
    assert got == list(map(record, range(1, 6)))


def test_what_is_lent_before_a_call_has_it_is_not_taken():
    one, other = memenpsf.pair(8)
    with one, other:
        receiver = other._endpoint.receiver
        receiver.fetch = lambda *_: None  # the slow path
        borrowing = other.borrow(2, timeout=0)
        one.xmit_many([bytes([n]) * 8 for n in range(4)])
        between(receiver, "pull", borrowing.__enter__)
        with pytest.raises(ipcqueue.ConcurrentUse):
            receiver.try_pop_many(3)
        assert bytes(borrowing.data) == bytes([0] * 8 + [1] * 8)
        borrowing.__exit__(None, None, None)
        assert other.recv_vectored() == [bytes([n]) * 8 for n in range(2, 4)]


# What came through the socket when there was no memory for Python to have it.


@pytest.fixture
def short_of_memory():
    """Call a function with its n-th allocation failing; return whether that raised MemoryError."""
    testcapi = pytest.importorskip("_testcapi")

    def call(nth, function):
        try:
            testcapi.set_nomemory(nth, nth + 1)
            function()
            testcapi.remove_mem_hooks()
        except MemoryError:
            testcapi.remove_mem_hooks()
            return True
        return False

    return call


def test_a_control_message_that_there_is_no_memory_for_comes_later(short_of_memory):
    failures = 0
    for nth in range(40):
        one, other = memenpsf.pair(8)
        with one, other:
            one.send_ctrl_msg(b"\x80\x01")
            one.send_ctrl_msg(b"\x80\x02")
            failures += short_of_memory(nth, other._endpoint.read_if_free)
            assert [other.recv_ctrl_msg() for _ in range(3)] == [b"\x80\x01", b"\x80\x02", None]
    assert failures > 5


def test_descriptors_that_there_is_no_memory_for_come_later_or_are_closed(short_of_memory):
    left = 0
    for nth in range(60):
        one, other = memenpsf.pair(bytes, accept=memenpsf.Accept(fds=2))
        with one, other, Path(os.devnull).open() as file:
            one.xmit(b"message", fds=[file, file])
            short_of_memory(nth, other._endpoint.read_if_free)
            if nth % 2:
                received = other.recv_message(timeout=0)
                assert received.record == b"message"
                assert len(received.fds) == 2
                received.close()
            else:
                left += direct.waiting(other._endpoint.wire._room) > 0
    assert left > 0  # and are closed with the rest: conftest.py looks


def test_a_pidfd_that_there_is_no_memory_for_is_closed(short_of_memory):
    dropped = 0
    for nth in range(10):
        one, other = socket.socketpair()
        with one, other:
            fdpass.lowlevel.pass_pidfd(other)  # as an application may
            one.send(b"\x80\x00")
            room, got = bytearray(direct.ROOM), []
            arguments = other, fdpass.lowlevel.RECEIVE_FLAGS, True, got, room, -1, False
            short_of_memory(nth, lambda arguments=arguments: direct.receive(*arguments))
            dropped += direct.waiting(room) > 0
            direct.drop(room)
            for _, ancillary, *_ in got:
                for number in fdpass.lowlevel.unpack(ancillary)[1]:
                    os.close(number)
    assert dropped > 0  # conftest.py looks for what is left open


def test_what_is_no_room_is_refused():
    for wrong in (b"", bytearray(8), None):
        with pytest.raises((TypeError, ValueError)):
            direct.waiting(wrong)
        with pytest.raises((TypeError, ValueError)):
            direct.drop(wrong)
        with pytest.raises((TypeError, ValueError)):
            direct.receive(0, 0, True, [], wrong, -1, False)


# A generator that there is no memory to close tells nobody, but Python's own hook.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_descriptors_stay_with_their_message_where_memory_is_short(short_of_memory):
    files = [Path(os.devnull), Path(__file__)]
    numbers = [path.stat().st_ino for path in files]
    failures = 0
    for nth in range(40, 280):
        one, other = memenpsf.pair(bytes, accept=memenpsf.Accept(fds=1))
        with one, other:
            for path in files:
                with path.open() as file:
                    one.xmit(path.name.encode(), fds=[file])
            got = []

            def receive(other=other, got=got):
                got.append(other.recv_message(timeout=0))

            failures += short_of_memory(nth, receive)
            while (received := other.recv_message(timeout=0)) is not None:
                got.append(received)
            found = []
            for received in got:
                found += [os.fstat(fd.fileno()).st_ino for fd in received.fds]
                received.close()
            assert found[-1] == numbers[-1]
            assert found == numbers[-len(found) :]
    assert failures > 10


def test_what_has_no_memory_to_be_decoded_is_no_bad_message():
    failing = [MemoryError()]

    def decode(data):
        if failing:
            raise failing.pop()
        return data

    one, other = memenpsf.pair(memenpsf.Encoded(bytes, decode))
    with one, other:
        one.xmit(b"message")
        assert other.recv(timeout=0) == b"message"
        failing += [MemoryError()] * 2
        one.xmit(b"much")
        with pytest.raises(MemoryError):
            other.recv(timeout=0)
        assert other.recv(timeout=0) == b"much"
        failing += [MemoryError()] * 5
        one.xmit(b"too much")
        one.xmit(b"after it")
        with pytest.raises(MemoryError):
            other.recv(timeout=0)
        with pytest.raises(ipcqueue.DecodeFailed):
            other.recv(timeout=0)
        assert other.recv(timeout=0) == b"after it"
