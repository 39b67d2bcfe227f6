"""How much one call does at most: without a limit, whatever the peer has put there."""

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
import trio

import fdpass
import memenpsf
import memenpsf.trio
from ipcqueue import Encoded, Message, u64
from ipcqueue._ring import bounds as _bounds
from ipcqueue._ring.bounds import MAX_AT_ONCE, MAX_BUILT, MAX_BYTES, MAX_VALUES

TAGGED = Message(b"x", 1)
RING = 1 << 22


@dataclass
class Counted:
    n: u64


class Clock:
    """Stands still but for what each use of the application's function takes."""

    def __init__(self, monkeypatch, seconds):
        self.now, self.seconds = 0.0, seconds
        monkeypatch.setattr(_bounds, "monotonic", lambda: self.now)
        monkeypatch.setattr(_bounds, "MAX_SECONDS", 1.0)

    def used(self, result):
        self.now += self.seconds
        return result


def receive_all(interface):
    """Receive without a limit until nothing is left; return the batches."""
    batches = []
    while len(batch := interface.recv_vectored(timeout=0)):
        batches.append(batch)
    return batches


def borrow_all(interface):
    batches = []
    while True:
        with interface.borrow(timeout=0) as borrowed:
            if not len(borrowed):
                return batches
            batches.append([bytes(message.data) for message in borrowed])


def sizes(batches):
    return [len(batch) for batch in batches]


def pair_with(records, spec, **options):
    one, other = memenpsf.pair(spec, **options)
    assert one.xmit_many(records) == len(records)
    return one, other


class TestByNumber:
    @pytest.mark.parametrize("take", [receive_all, borrow_all])
    def test_messages_that_python_puts_together(self, take):
        one, other = pair_with([TAGGED] * (MAX_BUILT * 2 + 3), Message, capacity=RING)
        with one, other:
            assert sizes(take(other)) == [MAX_BUILT, MAX_BUILT, 3]

    def test_messages_that_c_makes(self):
        records = [b"%d" % n for n in range(MAX_AT_ONCE + 5)]
        one, other = pair_with(records, bytes, capacity=RING)
        with one, other:
            batches = receive_all(other)
            assert sizes(batches) == [MAX_AT_ONCE, 5]
            assert list(itertools.chain(*batches)) == records

    def test_a_call_does_not_put_together_again_what_c_has_made(self):
        # One message with a tag behind them would make Python objects of all of them.
        one, other = memenpsf.pair(Message, capacity=RING)
        one.close()
        other.close()
        one, other = memenpsf.pair(bytes, capacity=RING)
        with one, other:
            plain = [b"x"] * (MAX_BUILT + 1)
            one.xmit_many(plain)
            one._endpoint.sender.offer_encoded(_framed(b"y", 1))
            assert receive_all(other) == [plain, [b"y"]]

    def test_fewer_are_received_with_what_follows_them(self):
        one, other = memenpsf.pair(bytes, capacity=RING)
        with one, other:
            one.xmit_many([b"x"] * 3)
            one._endpoint.sender.offer_encoded(_framed(b"y", 1))
            assert receive_all(other) == [[b"x", b"x", b"x", b"y"]]

    @pytest.mark.parametrize(
        ("spec", "record", "most"),
        [
            (8, bytes(8), MAX_AT_ONCE),
            ("<Q", (1,), MAX_VALUES // 2),
            ("<7I", (1,) * 7, MAX_VALUES // 8),
            ("<100s", (bytes(100),), MAX_VALUES // 2),
            (np.dtype("<u8"), np.uint64(1), MAX_AT_ONCE),
        ],
        ids=["bytes", "one value", "seven", "characters", "array"],
    )
    def test_records(self, spec, record, most):
        one, other = memenpsf.pair(spec, capacity=1 << 17)
        with one, other:
            one.xmit_many([record] * (most + 3))
            assert sizes(receive_all(other)) == [most, 3]

    @pytest.mark.parametrize("spec", [bytes, Message])
    def test_a_limit_is_obeyed(self, spec):
        count = MAX_BUILT * 3
        record = b"x" if spec is bytes else TAGGED
        one, other = pair_with([record] * count, spec, capacity=RING)
        with one, other:
            assert len(other.recv_vectored(count)) == count
            one.xmit_many([record] * count)
            with other.borrow(count) as borrowed:
                assert len(borrowed) == count


class TestByBytes:
    def test_records(self):
        size = 1 << 20
        one, other = pair_with([bytes(size)] * 12, size, capacity=16)
        with one, other:
            most = MAX_BYTES // size
            assert sizes(receive_all(other)) == [most, 12 - most]

    def test_a_single_record_may_be_larger(self):
        size = MAX_BYTES + 1
        one, other = pair_with([bytes(size)] * 2, size, capacity=2)
        with one, other:
            assert sizes(receive_all(other)) == [1, 1]

    @pytest.mark.parametrize("spec", [bytes, Message])
    def test_messages_in_the_ring(self, spec):
        size = 1 << 19
        record = bytes(size) if spec is bytes else Message(bytes(size), 1)
        count = 3 * MAX_BYTES // size - 4
        one, other = pair_with([record] * count, spec, capacity=1 << 26)
        with one, other:
            most = MAX_BYTES // size
            assert sizes(receive_all(other)) == [most, most, count - 2 * most]

    @pytest.mark.parametrize("limit", [None, 100], ids=["no limit", "a limit"])
    def test_messages_outside_the_ring_also_with_a_limit(self, limit):
        size = MAX_BYTES // 2 + 1
        one, other = pair_with([bytes(size)] * 3, bytes, capacity=1 << 16)
        with one, other:
            assert [len(other.recv_vectored(limit, timeout=0)) for _ in range(2)] == [2, 1]

    def test_what_is_borrowed_outside_the_ring(self):
        size = MAX_BYTES // 2 + 1
        one, other = pair_with([bytes(size)] * 3, bytes, capacity=1 << 16)
        with one, other:
            assert sizes(borrow_all(other)) == [2, 1]


class TestByTime:
    """Where nobody knows what a record costs."""

    def test_messages_that_a_function_decodes(self, monkeypatch):
        clock = Clock(monkeypatch, 0.4)
        spec = Encoded(bytes, clock.used)
        one, other = pair_with([b"%d" % n for n in range(9)], spec)
        with one, other:
            batches = receive_all(other)
            assert sizes(batches) == [4, 4, 1]  # it looks after 1, 2 and 4
            assert list(itertools.chain(*batches)) == [b"%d" % n for n in range(9)]
            one.xmit_many([b"x"] * 7)
            assert len(other.recv_vectored(7)) == 7  # a limit is the caller's word

    def test_at_least_one_is_received(self, monkeypatch):
        clock = Clock(monkeypatch, 1000.0)
        one, other = pair_with([b"x"] * 3, Encoded(bytes, clock.used))
        with one, other:
            assert sizes(receive_all(other)) == [1, 1, 1]

    def test_messages_with_attachments(self, monkeypatch):
        clock = Clock(monkeypatch, 0.4)
        adopt = fdpass.MemoryRegion.adopt
        monkeypatch.setattr(
            fdpass.MemoryRegion, "adopt", lambda *a, **k: clock.used(adopt(*a, **k))
        )
        one, other = memenpsf.pair(bytes)
        with one, other, fdpass.MemoryRegion.create(4096) as region:
            for _ in range(7):
                one.xmit(b"x", regions=[region])
            assert sizes(receive_all(other)) == [3, 3, 1]

    def test_records_of_a_class_of_the_application(self, monkeypatch):
        one, other = pair_with([Counted(n) for n in range(400)], Counted, capacity=512)
        with one, other:
            pace = other._endpoint.receiver._pace
            assert other._endpoint.most(None) == _bounds._FIRST_PACE == 64
            clock = Clock(monkeypatch, 0.0)
            assert len(other.recv_vectored()) == 64
            assert len(other.recv_vectored()) == 128  # as it took no time
            clock.seconds = 2.0  # for the next batch
            monkeypatch.setattr(
                pace, "_decode_many", lambda *a, make=pace._decode_many: clock.used(make(*a))
            )
            assert len(other.recv_vectored(128)) == 128
            assert other._endpoint.most(None) == 64
            clock.seconds = 1000.0
            assert len(other.recv_vectored()) == 64
            assert other._endpoint.most(None) == 1
            assert other._endpoint.most(300) == 300


def _framed(data, tag):
    from ipcqueue._records.messages import Framed

    return Framed(data, tag, 0)


def test_the_same_under_trio():
    async def main():
        one, other = memenpsf.pair(Message, capacity=RING)
        one.xmit_many([TAGGED] * (MAX_BUILT + 3))
        ours = memenpsf.trio.Interface.of(other._endpoint, _terms(other), "client")
        assert len(await ours.recv_vectored()) == MAX_BUILT
        async with ours.borrow() as borrowed:
            assert len(borrowed) == 3
        one.xmit_many([TAGGED] * (MAX_BUILT + 3))
        async with ours.borrow() as borrowed:
            assert len(borrowed) == MAX_BUILT
        assert len(await ours.recv_vectored(1000)) == 3
        await ours.aclose()
        one.close()

    trio.run(main)


def _terms(interface):
    from ipcqueue.lowlevel import Role, Terms

    return Terms(interface.record, Role(sends=True, receives=True))
