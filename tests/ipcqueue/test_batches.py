"""Batches: what goes and comes in one call of C, what does not, and that nobody sees a difference."""

import os
import threading
import time

import pytest

import ipcqueue
import memenpsf
from tests.kit.places import Interrupt

np = pytest.importorskip("numpy")

DTYPE = np.dtype([("number", "<u8")])


class Text(bytes):
    """A subclass, which is not as simple as it looks."""


def as_array(numbers):
    return np.array([(n,) for n in numbers], DTYPE)


# A spec, many records of it, and the numbers of those that came.
SPECS = {
    "bytes of one size": (
        8,
        lambda numbers: [n.to_bytes(8, "little") for n in numbers],
        lambda got: [int.from_bytes(each, "little") for each in got],
    ),
    "tuples": ("<Q", lambda numbers: [(n,) for n in numbers], lambda got: [n for (n,) in got]),
    "arrays": (DTYPE, as_array, lambda got: got["number"].tolist()),
    "messages": (
        bytes,
        lambda numbers: [b"%d" % n for n in numbers],
        lambda got: [int(each) for each in got],
    ),
    "tagged messages": (
        ipcqueue.Message,
        lambda numbers: [ipcqueue.Message(b"%d" % n, n, n % 256) for n in numbers],
        lambda got: [each.tag for each in got],
    ),
}
SIMPLE = [name for name in SPECS if name not in {"tuples", "tagged messages"}]


@pytest.fixture(params=SPECS)
def kind(request):
    return SPECS[request.param]


def opened(spec, **options):
    options.setdefault("capacity", 4096 if spec in (bytes, ipcqueue.Message) else 16)
    return memenpsf.pair(spec, **options)


def drained(side, numbers):
    got = []
    while len(batch := side.recv_vectored(timeout=0)):
        got += numbers(batch)
    return got


@pytest.mark.parametrize("name", SPECS)
def test_what_fits_goes_and_comes_without_what_waits(name, monkeypatch):
    spec, make, numbers = SPECS[name]
    one, other = opened(spec)
    with one, other:
        if name in SIMPLE:
            monkeypatch.setattr(type(one._endpoint.sender), "batch", None)
        if name != "tagged messages":
            monkeypatch.setattr(type(one._endpoint.sender), "try_push_many", None)
            monkeypatch.setattr(type(one._threads), "_take", None)
            monkeypatch.setattr(ipcqueue._threads, "drive", None)
            monkeypatch.setattr(type(other._endpoint.receiver), "try_pop_many", None)
        assert one.xmit_many(make(range(9))) == 9
        assert numbers(other.recv_vectored()) == list(range(9))
        assert one.xmit_many(make(range(9, 16))) == 7
        assert numbers(other.recv_vectored(3)) == [9, 10, 11]
        assert numbers(other.recv_vectored(timeout=1)) == [12, 13, 14, 15]


@pytest.mark.parametrize("form", [list, tuple])
def test_as_many_as_fit_are_sent_and_the_others_in_their_order_later(kind, form):
    spec, make, numbers = kind
    one, other = opened(spec)
    with one, other:
        got, sent = [], 0
        for limit in (1, 5, 1000):
            records = make(range(sent, sent + 1000))
            if isinstance(records, list):
                records = form(records)
            done = one.xmit_many(records, timeout=0)
            assert 0 < done < 1000
            sent += done
            assert one.xmit_many(records[done:], timeout=0) == 0
            got += numbers(other.recv_vectored(limit, timeout=0))
            assert len(got) < sent or limit == 1000
        got += drained(other, numbers)
        assert got == list(range(sent))


def test_a_full_ring_is_counted_as_often_as_was_tried(kind):
    spec, make, _ = kind
    one, other = opened(spec)
    with one, other:
        while one.xmit_many(make(range(1)), timeout=0):
            pass
        before = one.statistics().full
        assert one.xmit_many(make(range(9)), timeout=0) == 0
        assert one.statistics().full == before + 2  # before and after the socket was read


def test_more_than_fits_arrives_as_it_was_even_if_the_list_changes(kind):
    spec, make, numbers = kind
    one, other = opened(spec)
    records = make(range(3000))
    result = []
    with one, other:
        sender = threading.Thread(target=lambda: result.append(one.xmit_many(records)))
        sender.start()
        while not one.statistics().waits:
            time.sleep(0.001)
        if isinstance(records, list):
            records[:] = ["another"] * 3000
        got = []
        while len(got) < 3000:
            got += numbers(other.recv_vectored())
        sender.join()
        assert got == list(range(3000))
        assert result == [3000]


@pytest.mark.parametrize("records", [[], (), iter(())])
def test_an_empty_batch_is_none(kind, records):
    spec, make, _ = kind
    one, other = opened(spec)
    with one, other:
        assert one.xmit_many(records) == 0
        assert one.xmit_many(make([])) == 0
        assert len(other.recv_vectored(timeout=0)) == 0
        assert one.indices() == (0, 0)


def test_a_timeout_that_is_none_is_refused_before_anything_is_sent_or_taken(kind):
    spec, make, numbers = kind
    one, other = opened(spec)
    with one, other:
        with pytest.raises(ValueError, match="timeout"):
            one.xmit_many(make([1]), timeout=-1)
        one.xmit_many(make([2]))
        with pytest.raises(ValueError, match="timeout"):
            other.recv_vectored(timeout=-1)
        assert numbers(other.recv_vectored()) == [2]


MIXTURES = {
    "bytearray": bytearray(b"12345678"),
    "memoryview": memoryview(b"12345678"),
    "part of a memoryview": memoryview(b"0123456789")[1:9],
    "subclass": Text(b"12345678"),
    "array": np.frombuffer(b"12345678", "<u4"),
}


@pytest.mark.parametrize("spec", [8, bytes])
@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize("place", [0, 3, 6])
def test_what_is_not_bytes_goes_in_its_place(spec, name, place):
    one, other = memenpsf.pair(spec)
    records = [b"%08d" % n for n in range(6)]
    records.insert(place, MIXTURES[name])
    with one, other:
        for batch in (records, tuple(records), iter(records)):
            assert one.xmit_many(batch) == 7
            got = other.recv_vectored()
            assert got == list(map(bytes, records))
            assert set(map(type, got)) == {bytes}


def test_what_is_outside_the_ring_goes_in_its_place():
    one, other = memenpsf.pair(bytes, capacity=8192, inline=1024)
    with one, other:
        records = [b"1", b"2" * 5000, b"3", Text(b"4"), b"5" * 1008, b"6" * 1009, b""]
        for batch in (records, tuple(records), iter(records)):
            assert one.xmit_many(batch) == 7
            got = drained(other, list)
            assert got == records


def test_the_largest_messages_of_a_small_ring():
    one, other = memenpsf.pair(bytes, capacity=4096, inline=4096)
    with one, other:
        records = [b"1" * 4080, b"2" * 4081, b"3" * 4080, b"4" * 4064, b""]
        sender = threading.Thread(target=one.xmit_many, args=(records,))
        sender.start()
        assert [other.recv() for _ in range(5)] == records
        sender.join()


BAD = {
    "too short": (8, b"1234567"),
    "too long": (8, b"123456789"),
    "text": (8, "12345678"),
    "a number": (8, 12345678),
    "text as message": (bytes, "12345678"),
    "no tuple": ("<Q", 5),
    "too large": (bytes, bytes(101)),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("place", [0, 1, 5])
@pytest.mark.parametrize("form", [list, tuple, iter])
def test_what_cannot_be_sent_is_named_and_nothing_is_sent(name, place, form):
    spec, bad = BAD[name]
    one, other = (
        memenpsf.pair(spec, accept=memenpsf.Accept(message=100))
        if spec is bytes
        else memenpsf.pair(spec)
    )
    records = [(n,) if spec == "<Q" else b"%08d" % n for n in range(5)]
    records.insert(place, bad)
    with one, other:
        error = ipcqueue.TooLarge if name == "too large" else ipcqueue.BadRecord
        with pytest.raises(error, match=f"^record {place}: "):
            one.xmit_many(form(records))
        assert one.indices() == (0, 0)
        assert len(other.recv_vectored(timeout=0)) == 0


def test_how_a_connection_ended_is_raised_as_by_other_verbs(kind):
    spec, make, numbers = kind
    one, other = opened(spec)
    with one, other:
        one.xmit_many(make(range(3)))
        one.close()
        with pytest.raises(ipcqueue.Closed):
            one.xmit_many(make(range(3)))
        with pytest.raises(ipcqueue.Closed):
            one.recv_vectored()
        with pytest.raises(ipcqueue.ReceiverGone):
            other.xmit_many(make(range(3)))
        assert numbers(other.recv_vectored()) == [0, 1, 2]
        with pytest.raises(ipcqueue.EndOfStream):
            other.recv_vectored()


def test_a_forked_child_can_neither_send_nor_receive(kind):
    spec, make, numbers = kind
    one, other = opened(spec)
    with one, other:
        one.xmit_many(make(range(3)))
        child = os.fork()
        if child == 0:
            refused = 0
            for call in (lambda: one.xmit_many(make(range(3))), other.recv_vectored):
                try:
                    call()
                except ipcqueue.ForkedUse:
                    refused += 1
            os._exit(refused)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
        assert numbers(other.recv_vectored()) == [0, 1, 2]


def test_the_time_that_encoding_takes_is_not_that_of_waiting(monkeypatch):
    one, other = memenpsf.pair("<Q", capacity=4)
    now = [100.0]

    def records():
        for n in range(8):
            now[0] += 10
            yield (n,)

    with one, other:
        monkeypatch.setattr(one._endpoint, "clock", lambda: now[0])
        monkeypatch.setattr(ipcqueue._threads, "wait_for", lambda _: len(other.recv_vectored()) > 0)
        assert one.xmit_many(records(), timeout=5) == 8


def test_beside_a_loan_or_a_borrowing_batches_are_refused(kind):
    spec, make, numbers = kind
    one, other = opened(spec)
    with one, other:
        one.xmit_many(make(range(3)))
        with one.loan(1) as loan, pytest.raises(ipcqueue.ConcurrentUse):
            try:
                one.xmit_many(make(range(3)))
            finally:
                loan.cancel()
        with other.borrow() as lent:
            with pytest.raises(ipcqueue.ConcurrentUse):
                other.recv_vectored()
            lent.cancel()
        assert numbers(other.recv_vectored()) == [0, 1, 2]


class TestArrays:
    """They go as they are only if they are just what the other side expects."""

    @pytest.fixture
    def sides(self):
        one, other = memenpsf.pair(DTYPE)
        with one, other:
            yield one, other

    def test_what_comes_is_writable_and_nobody_elses(self, sides):
        one, other = sides
        one.xmit_many(as_array(range(4)))
        first = other.recv_vectored()
        one.xmit_many(as_array(range(4, 8)))
        second = other.recv_vectored()
        first["number"] += 10
        assert first["number"].tolist() == [10, 11, 12, 13]
        assert second["number"].tolist() == [4, 5, 6, 7]
        assert first.dtype == DTYPE
        assert first.base is None or isinstance(first.base, bytearray)

    def test_a_batch_is_copied_once_and_then_its_own(self, sides):
        one, other = sides
        one.xmit_many(as_array(range(4)))
        receiver = other._endpoint.receiver
        call = receiver.begin()
        into = receiver.fetch(call, 3)
        assert receiver._decoding == [(call, into)]
        assert np.frombuffer(into, DTYPE)["number"].tolist() == [0, 1, 2]
        assert receiver.fetch(call, 3) is None  # there is something older
        receiver._decoding = []
        assert other._endpoint.codec.adopt_many(into, 3).base is into

    def test_an_equal_type_is_learnt(self, sides, monkeypatch):
        one, other = sides
        sender = one._endpoint.sender
        array = np.zeros(3, np.dtype(DTYPE.descr))
        assert array.dtype is not sender.dtype
        assert sender.push_all(array) is None
        one.xmit_many(array)
        assert sender.push_all(array) == 3
        assert len(other.recv_vectored()) == 6
        sender.push_many(np.zeros((3, 1), np.dtype(DTYPE.descr))[:, 0])
        with pytest.raises(ipcqueue.BadRecord):
            one.xmit_many(np.zeros(3, "<u4"))
        assert one.xmit_many(array) == 3

    @pytest.mark.parametrize(
        "array",
        [
            as_array(range(8))[::2],
            as_array(range(8))[::-1],
            as_array(range(8)).view(np.recarray),
            list(as_array(range(8))),
        ],
    )  # fmt: skip
    def test_other_arrays_go_all_the_same(self, sides, array):
        one, other = sides
        assert one.xmit_many(array) == len(array)
        assert other.recv_vectored()["number"].tolist() == [int(each["number"]) for each in array]

    @pytest.mark.parametrize(
        "array", [np.zeros((2, 3), DTYPE), np.zeros((), DTYPE), np.zeros(3, "<f4,<f4")]
    )
    def test_what_is_none_is_refused(self, sides, array):
        one, _ = sides
        with pytest.raises(ipcqueue.BadRecord):
            one.xmit_many(array)
        assert one.indices() == (0, 0)

    @pytest.mark.parametrize("spec", ["<M8[ns]", "<f8", "S3", "(2,3)<i2", "<i4,<f8"])
    def test_types_of_all_kinds(self, spec):
        dtype = np.dtype(spec)
        one, other = memenpsf.pair(dtype)
        array = np.zeros(5, dtype)
        array.view("u1").reshape(-1)[:] = 65
        with one, other:
            for _ in range(2):
                assert one.xmit_many(array) == 5
                got = other.recv_vectored()
                assert got.dtype == array.dtype
                assert got.tobytes() == array.tobytes()
            assert other.recv_vectored(timeout=0).shape[0] == 0

    def test_an_array_larger_than_the_ring_goes_in_parts(self):
        one, other = memenpsf.pair(DTYPE, capacity=64)
        with one, other:
            sender = threading.Thread(target=one.xmit_many, args=(as_array(range(5000)),))
            sender.start()
            got = []
            while len(got) < 5000:
                got += other.recv_vectored()["number"].tolist()
            sender.join()
            assert got == list(range(5000))


def test_what_the_calls_of_c_refuse():
    one, other = memenpsf.pair(8)
    with one, other:
        sender, receiver = one._endpoint.sender, other._endpoint.receiver
        assert sender.push_all(iter([bytes(8)])) is None
        assert sender.push_all([bytes(8), bytearray(8)]) is None
        assert sender.pieces([bytes(8), bytes(7)]) is None
        assert sender.pieces([bytes(8)]) == (bytes(8),)
        assert sender.push_run([bytes(8), bytearray(8), bytes(8)], 0) == 1
        assert sender.push_run([bytes(8)], 1) == sender.push_run([bytes(8)], 9) == 0
        for wrong in ([bytes(8)], -1), (iter([]), 0):
            with pytest.raises(TypeError):
                sender.push_run(*wrong)
        assert sender.push_packed(bytes(24), 1) == 2
        assert sender.push_packed(bytes(24), 3) == sender.push_packed(bytes(24), 9) == 0
        assert sender.push_packed(bytes(24), -1) == 0
        call = receiver.begin()
        assert receiver.fetch(call, 0) is None
        assert receiver.fetch(call, -1) is None
        assert len(other.recv_vectored()) == 3
        assert receiver.fetch(call, 1) is None


def test_what_is_not_encoded_as_it_should_be_is_left_to_python():
    one, other = memenpsf.pair(memenpsf.Message)
    with one, other:
        push = one._endpoint.sender.push_run
        good = (b"text", 7, 9)
        for odd in (
            b"text",
            [b"text", 7, 9],
            (b"text", 7),
            (b"text", "7", 9),
            (b"text", 7, "9"),
            (b"text", 7.0, 9),
            (b"text", -1, 9),
            (b"text", 7, -9),
            (b"text", 1 << 32, 9),
            (b"text", 1 << 64, 9),
            (b"text", 7, 256),
            ("text", 7, 9),
            (bytearray(b"text"), 7, 9),
            (bytes(1 << 21), 7, 9),
        ):
            assert push([good, odd, good], 0) == 1
            assert push([odd, good], 0) == 0
            assert push([odd, good], 1) == 1
            assert other.recv_vectored(timeout=0) == [memenpsf.Message(*good)] * 2
    one, other = memenpsf.pair("<Q")
    with one, other:
        assert one._endpoint.sender.push_run([bytes(8)], 0) == 0  # records that are not their bytes
        assert other.recv(timeout=0) is None


def test_an_array_whose_items_are_no_records_is_left_to_python():
    one, other = memenpsf.pair(np.dtype("<u8"))
    with one, other:
        sender = one._endpoint.sender
        sender.array, sender.dtype = np.ndarray, np.dtype("<u4")
        assert sender.push_all(np.zeros(4, "<u4")) is None
        assert other.recv(timeout=0) is None


def test_records_larger_than_one_call_of_c_may_move_go_one_by_one():
    size = (8 << 20) + 8
    one, other = memenpsf.pair(size, capacity=2)
    data = b"".join(bytes([n]) * size for n in range(3))
    with one, other:
        push = one._endpoint.sender.push_packed
        assert [push(data, n) for n in range(3)] == [1, 1, 0]
        assert [other.recv(timeout=0)[:1] for _ in range(2)] == [b"\0", b"\1"]
        assert push(data, 2) == 1
        assert other.recv(timeout=0) == data[2 * size :]


def test_no_more_comes_at_once_than_was_there():
    one, other = memenpsf.pair("<Q", capacity=1 << 14)
    with one, other:
        one.xmit_many([(n,) for n in range(10_000)])  # 80 kB: in pieces
        receiver = other._endpoint.receiver
        into = receiver.fetch(receiver.begin(), 9_999)
        assert into == b"".join(n.to_bytes(8, "little") for n in range(9_999))
        assert one.indices() == (10_000, 9_999)


def test_an_undecodable_record_is_lost_alone():
    class Odd(Exception):
        pass

    one, other = memenpsf.pair("<Q")
    receiver = other._endpoint.receiver
    decode = receiver._decode

    def picky(data):
        if bytes(data[:1]) == b"\x02":
            raise Odd
        return decode(data)

    def picky_many(data, count):
        return [picky(data[at : at + 8]) for at in range(0, 8 * count, 8)]

    with one, other:
        receiver._decode, receiver._adopt_many = picky, picky_many
        one.xmit_many([(n,) for n in range(5)])
        assert other.recv_vectored() == [(0,), (1,)]
        with pytest.raises(ipcqueue.DecodeFailed) as caught:
            other.recv_vectored()
        assert isinstance(caught.value.__cause__, Odd)
        assert other.recv_vectored() == [(3,), (4,)]


def test_an_interrupt_in_decoding_loses_nothing():
    one, other = memenpsf.pair("<Q")
    receiver = other._endpoint.receiver
    adopt, calls = receiver._adopt_many, []

    def interrupted(data, count):
        calls.append(count)
        if len(calls) == 1:
            raise Interrupt
        return adopt(data, count)

    with one, other:
        receiver._adopt_many = interrupted
        one.xmit_many([(n,) for n in range(5)])
        with pytest.raises(Interrupt):
            other.recv_vectored()
        one.xmit((5,))
        assert other.recv_vectored() == [(n,) for n in range(6)]
