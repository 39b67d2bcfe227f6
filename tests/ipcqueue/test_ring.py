"""The ring from Python: records in and out, without waiting, whatever the peer does.

The two ends here stand on real segments, each adopting the other's as it would from a stranger;
what the peer may do to its own segment is written by hand.  What signals may not break is in
signals/test_slots.py.
"""

import contextlib
import socket
import struct
import threading
from collections import deque
from functools import partial
from itertools import count

import pytest
from ipcqueue._core import ffi, lib

from ipcqueue import BadRecord, DecodeFailed
from ipcqueue._ring.codes import CLOSED, CORRUPT, FORKED, GONE, RingError
from ipcqueue._ring.slot_sender import Batch
from tests.kit.hostile import ENDED, HEAD, TAIL, WAIT_RECORDS, WAIT_SPACE, moved
from tests.kit.places import Interrupt
from tests.kit.slots import (
    Bad,
    codec_that,
    drained,
    fails_with,
    number_in,
    numbers,
    once,
    packed,
    push_packed,
)

LAST = (1 << 64) - 1


MIB = 1 << 20


class TestRecords:
    @pytest.mark.parametrize(
        ("capacity", "size"),
        [
            *((capacity, size) for capacity in (1, 2, 1024) for size in (1, 17)),
            *((capacity, size) for capacity in (1, 2) for size in (MIB, 16 * MIB)),
        ],
    )
    def test_every_slot_is_used_and_used_again_in_order(self, make_ring, capacity, size):
        ring = make_ring(size, capacity)
        serial = count()

        def record(n):
            start = struct.pack("<I", n * 2654435761 % (1 << 32))
            return (start * (size // 4 + 1))[:size]

        expected = deque()
        for batch in (capacity, 1, capacity):
            for _ in range(batch):
                expected.append(record(next(serial)))
                assert ring.sender.try_push(expected[-1])
            if batch == capacity:
                assert not ring.sender.try_push(record(99))
            for _ in range(batch):
                assert ring.receiver.try_pop() == expected.popleft()
            assert ring.receiver.try_pop() is None

    @pytest.mark.parametrize("size", [1, 17, 4096])
    def test_neighbours_do_not_touch(self, make_ring, size):
        ring = make_ring(size, 8)
        for n in range(8):
            assert ring.sender.try_push(bytes([0xFF if n % 2 else 0]) * size)
        assert drained(ring.receiver) == [bytes([0xFF if n % 2 else 0]) * size for n in range(8)]
        slots = ffi.buffer(ring.at_sender.mapping.at, ring.at_sender.mapping.size)[4096:]
        assert slots[8 * size :] == bytes(len(slots) - 8 * size)

    def test_a_batch_larger_than_the_space_is_cut(self, ring):
        assert push_packed(ring.sender, packed(*range(10)), 10) == 4
        assert push_packed(ring.sender, packed(*range(10)), 10) == 0
        assert numbers(ring.receiver.try_pop_many(3)) == [0, 1, 2]
        assert push_packed(ring.sender, packed(*range(4, 10)), 6) == 3
        assert numbers(ring.receiver.try_pop_many(100)) == [3, 4, 5, 6]
        assert ring.receiver.try_pop_many(100) is None

    @pytest.mark.parametrize("offset", range(4))
    def test_batches_wrap_anywhere(self, ring, offset):
        ring.push_numbers(*range(offset))
        assert numbers(drained(ring.receiver)) == list(range(offset))
        assert push_packed(ring.sender, packed(5, 6, 7, 8), 4) == 4
        assert numbers(ring.receiver.try_pop_many(4)) == [5, 6, 7, 8]

    def test_a_large_batch_is_taken_in_parts(self, make_ring):
        ring = make_ring(capacity=64)
        for round_ in range(3):
            data = packed(*range(round_, round_ + 64))
            assert push_packed(ring.sender, data, 64) == 64
            got = ring.receiver.try_pop_many(50) + ring.receiver.try_pop_many(50)
            assert numbers(got) == list(range(round_, round_ + 64))

    def test_a_record_that_does_not_fit_takes_no_slot(self, ring):
        with pytest.raises(BadRecord):
            ring.sender.try_push((-1,))
        assert ring.sender.indices() == (0, 0)
        assert ring.receiver.try_pop() is None

    def test_a_record_may_change_once_it_is_pushed(self, make_ring):
        ring = make_ring(3)
        record = bytearray(b"abc")
        assert ring.sender.try_push(record)
        record[:] = b"xyz"
        assert ring.receiver.try_pop() == b"abc"

    def test_a_popped_record_survives_the_next_one(self, make_ring):
        np = pytest.importorskip("numpy")
        ring = make_ring(np.dtype("<i4"), 1)
        got = []
        for n in range(3):
            assert push_packed(ring.sender, np.full(1, n, "<i4"), 1) == 1
            got.append(ring.receiver.try_pop_many(1)[0:1].reshape(()))
            assert ring.sender.try_push(n + 10)
            got.append(ring.receiver.try_pop())
        assert np.ravel(got).tolist() == [0, 10, 1, 11, 2, 12]


class TestIndices:
    def test_both_ends_see_both(self, ring):
        assert ring.sender.indices() == ring.receiver.indices() == (0, 0)
        ring.push_numbers(1, 2, 3)
        assert ring.sender.indices() == ring.receiver.indices() == (3, 0)
        ring.receiver.try_pop()
        assert ring.sender.indices() == ring.receiver.indices() == (3, 1)

    @pytest.mark.parametrize("capacity", [1, 2, 1024])
    def test_they_count_to_the_last_number(self, make_ring, capacity):
        ring = make_ring("<Q", capacity, LAST - capacity)
        for n in range(capacity):
            assert ring.sender.try_push((n,))
        assert not ring.sender.try_push((99,))
        assert ring.sender.indices() == (LAST, LAST - capacity)
        assert numbers(ring.receiver.try_pop_many(capacity)) == list(range(capacity))
        assert ring.receiver.indices() == (LAST, LAST)

    @pytest.mark.parametrize("before", range(4))
    def test_they_begin_again_at_zero_after_the_last_number(self, make_ring, before):
        ring = make_ring("<Q", 4, LAST - before)
        for n in range(10):
            assert push_packed(ring.sender, packed(*range(n, n + 3)), 3) == 3
            assert ring.receiver.try_pop() == (n,)
            assert numbers(ring.receiver.try_pop_many(4)) == [n + 1, n + 2]
        assert ring.sender.indices() == ring.receiver.indices() == (29 - before, 29 - before)


class Borrower:
    """Stands for an open block with lent memory."""


class TestCorruptPeer:
    """The peer's index is the one value of its that the ring believes, after a check."""

    @pytest.mark.parametrize("head", [5, 6, 1 << 32, 1 << 63, LAST])
    def test_a_head_beyond_the_capacity_is_noticed_and_never_forgotten(self, make_ring, head):
        for verb, arguments in (("try_pop", ()), ("try_pop_many", (4,))):
            ring = make_ring()
            ring.push_numbers(7)
            ring.poke(ring.at_sender, HEAD, head)
            fails_with(CORRUPT, getattr(ring.receiver, verb), *arguments)
            ring.poke(ring.at_sender, HEAD, 1)  # an honest one, too late
            fails_with(CORRUPT, ring.receiver.try_pop)
            fails_with(CORRUPT, ring.receiver.try_pop_many, 1)

    def test_what_a_batch_has_not_published_yet_cannot_have_been_taken(self, ring):
        ring.poke(ring.at_receiver, TAIL, 3)
        record, done = ffi.new("char[8]"), ffi.new("uint64_t *")
        pieces = ffi.new("struct ipcq_piece[8]", [(record, 1)] * 8)
        assert lib.ipcq_push_pieces(ring.sender._ring, pieces, 8, done) == CORRUPT
        assert done[0] <= ring.capacity

    def test_a_head_that_goes_back_behind_what_was_taken_is_noticed(self, ring):
        ring.push_numbers(1, 2, 3)
        assert len(ring.receiver.try_pop_many(4)) == 3
        ring.poke(ring.at_sender, HEAD, 2)
        fails_with(CORRUPT, ring.receiver.try_pop)

    def test_a_head_that_goes_back_to_what_was_taken_harms_only_its_owner(self, ring):
        ring.push_numbers(1, 2, 3)
        assert ring.receiver.try_pop() == (1,)
        ring.poke(ring.at_sender, HEAD, 2)
        assert numbers(ring.receiver.try_pop_many(4)) == [2]
        assert ring.receiver.try_pop() is None

    def test_a_head_that_goes_back_while_records_are_borrowed_promises_no_more_than_a_ring(
        self, ring
    ):
        ring.push_numbers(1, 2, 3, 4)
        borrower = Borrower()
        assert len(ring.receiver.lend_records(4, borrower)) == 1
        ring.poke(ring.at_sender, HEAD, 2)
        assert ring.receiver.indices() == (2, 0)
        ring.receiver.end_borrowing(borrower, take=True)
        fails_with(CORRUPT, ring.receiver.try_pop_many, 4)

    def test_a_tail_that_goes_back_while_space_is_lent_promises_no_more_than_a_ring(self, ring):
        ring.push_numbers(1, 2, 3, 4)
        ring.poke(ring.at_receiver, TAIL, 4)
        borrower = Borrower()
        assert ring.sender.lend_space(4, borrower) is not None
        ring.poke(ring.at_receiver, TAIL, 0)
        assert ring.sender.indices() == (4, 4)  # space once seen stays
        ring.sender.end_loan(borrower, (4, True))
        ring.poke(ring.at_receiver, TAIL, 4)
        assert not ring.sender.try_push((9,))
        assert ring.sender.try_push_many(Batch(memoryview(packed(*range(9))), 9), 0) == 0

    @pytest.mark.parametrize("tail", [5, 1 << 32, 1 << 63, LAST])
    def test_a_tail_beyond_the_head_is_noticed_and_never_forgotten(self, make_ring, tail):
        calls = ("try_push", ((9,),)), ("try_push_many", (Batch(memoryview(packed(9)), 1), 0))
        for verb, arguments in calls:
            ring = make_ring()
            ring.push_numbers(1, 2, 3, 4)
            ring.poke(ring.at_receiver, TAIL, tail)
            fails_with(CORRUPT, getattr(ring.sender, verb), *arguments)
            ring.poke(ring.at_receiver, TAIL, 4)
            fails_with(CORRUPT, ring.sender.try_push, (9,))
            fails_with(CORRUPT, push_packed, ring.sender, packed(9), 1)
            assert numbers(ring.receiver.try_pop_many(4)) == [1, 2, 3, 4]

    def test_indices_never_show_what_cannot_be_true(self, ring):
        ring.push_numbers(1, 2, 3, 4)
        ring.receiver.try_pop()
        assert ring.sender.indices() == ring.receiver.indices() == (4, 1)
        ring.poke(ring.at_sender, HEAD, 99)
        ring.poke(ring.at_receiver, TAIL, 77)
        assert ring.sender.indices() == ring.receiver.indices() == (4, 1)
        fails_with(CORRUPT, push_packed, ring.sender, packed(5, 6), 2)
        for end in (ring.sender, ring.receiver):
            end.close()
            assert end.indices() == (4, 1)

    def test_a_tail_that_goes_back_further_than_the_ring_is_long_is_noticed(self, ring):
        ring.push_numbers(1, 2, 3, 4)
        drained(ring.receiver)
        ring.push_numbers(5, 6, 7, 8)
        ring.poke(ring.at_receiver, TAIL, 3)
        fails_with(CORRUPT, ring.sender.try_push, (9,))

    def test_a_tail_that_goes_back_inside_the_ring_only_takes_space_from_its_owner(self, ring):
        ring.push_numbers(1, 2, 3, 4)
        ring.receiver.try_pop_many(2)
        ring.poke(ring.at_receiver, TAIL, 1)
        assert ring.sender.try_push((5,))
        assert not ring.sender.try_push((6,))

    def test_ones_own_index_is_never_read_back(self, ring):
        for n in range(6):
            ring.poke(ring.at_sender, HEAD, 99)
            assert push_packed(ring.sender, packed(n, n), 2) == 2
            ring.poke(ring.at_receiver, TAIL, 77)
            assert ring.receiver.try_pop() == (n,)
            ring.poke(ring.at_receiver, TAIL, 77)
            assert numbers(ring.receiver.try_pop_many(4)) == [n]
        assert ring.sender.indices() == ring.receiver.indices() == (12, 12)

    def test_what_was_taken_before_is_still_delivered(self, ring):
        ring.push_numbers(1, 2)
        ring.interrupted_pop()
        ring.poke(ring.at_sender, HEAD, 99)
        ring.receiver.indices()  # has seen it
        assert ring.receiver.try_pop() == (1,)
        fails_with(CORRUPT, ring.receiver.try_pop)

    @pytest.mark.parametrize("index", [0, 4, 5, LAST])
    def test_looking_and_arming_survive_whatever_stands_there(self, ring, index):
        ring.push_numbers(1, 2, 3, 4)
        ring.poke(ring.at_sender, HEAD, index)
        ring.poke(ring.at_receiver, TAIL, index)
        nothing_to_wait_for = index != 0
        assert ring.receiver.has_records() == ring.sender.has_space() == nothing_to_wait_for
        assert ring.receiver.arm() == ring.sender.arm() == (not nothing_to_wait_for)


class TestEnds:
    def test_a_closed_end_says_so(self, ring):
        ring.push_numbers(1)
        ring.sender.close()
        ring.receiver.close()
        fails_with(CLOSED, ring.sender.try_push, (1,))
        fails_with(CLOSED, push_packed, ring.sender, packed(1), 1)
        fails_with(CLOSED, ring.receiver.try_pop)
        fails_with(CLOSED, ring.receiver.try_pop_many, 1)
        assert ring.sender.has_space()  # no need to go on looking
        assert ring.receiver.has_records()
        for end in (ring.sender, ring.receiver):
            assert not end.arm()
            end.disarm()
            end.close()

    def test_the_indices_of_a_closed_end_go_on_until_its_memory_is_let_go(self, ring):
        ring.push_numbers(1, 2)
        ring.sender.close()
        assert ring.sender.indices() == (2, 0)
        assert numbers(ring.receiver.try_pop_many(1)) == [1]
        assert ring.sender.indices() == (2, 1)
        ring.sender.let_go()
        assert numbers(ring.receiver.try_pop_many(1)) == [2]
        assert ring.sender.indices() == (2, 1)

    def test_an_impossible_index_changes_nothing_at_a_closed_end(self, ring):
        ring.push_numbers(1, 2)
        ring.sender.close()
        ring.poke(ring.at_receiver, TAIL, 3)
        assert ring.sender.indices() == (2, 0)

    def test_the_other_end_goes_on(self, ring):
        ring.push_numbers(1, 2)
        ring.sender.close()
        assert numbers(drained(ring.receiver)) == [1, 2]

    def test_a_receiver_that_has_ended_does_not_come_back(self, ring):
        ring.poke(ring.at_receiver, ENDED, 2)
        fails_with(GONE, ring.sender.try_push, (1,))
        ring.poke(ring.at_receiver, ENDED, 0)
        fails_with(GONE, ring.sender.try_push, (1,))
        assert ring.receiver.try_pop() is None

    def test_pushing_to_a_receiver_that_has_ended_is_noticed(self, ring):
        ring.push_numbers(1)
        ring.at_receiver.mapping.set_closed(3, ring.seen_by_receiver.mapping, -1)
        fails_with(GONE, ring.sender.try_push, (1,))
        fails_with(GONE, push_packed, ring.sender, packed(1), 1)
        assert numbers(drained(ring.receiver)) == [1]

    def test_nobody_waits_for_space_from_a_receiver_that_has_ended(self, ring):
        ring.push_numbers(1, 2, 3, 4)
        assert not ring.sender.has_space()
        assert ring.sender.arm()
        ring.at_receiver.mapping.set_closed(3, ring.seen_by_receiver.mapping, -1)
        assert ring.sender.has_space()
        assert not ring.sender.arm()

    def test_pushing_to_a_receiver_that_hung_up_is_noticed(self, make_ring):
        ours, theirs = socket.socketpair()
        with ours:
            ring = make_ring(bell=(ours, theirs))
            theirs.close()
            fails_with(GONE, ring.sender.try_push, (1,))
            fails_with(GONE, ring.sender.try_push, (1,))
            assert ring.receiver.try_pop() is None

    def test_a_forked_child_can_use_neither_end(self, ring, forked):
        ring.push_numbers(1)

        def child():
            fails_with(FORKED, ring.sender.try_push, (2,))
            fails_with(FORKED, push_packed, ring.sender, packed(2), 1)
            fails_with(FORKED, ring.sender.indices)
            fails_with(FORKED, ring.receiver.try_pop)
            fails_with(FORKED, ring.receiver.try_pop_many, 1)
            fails_with(FORKED, ring.receiver.indices)
            assert not ring.sender.arm()
            assert not ring.receiver.arm()

        assert forked(child) == 0
        ring.push_numbers(2)
        assert numbers(drained(ring.receiver)) == [1, 2]
        assert ring.at_receiver.mapping.counts()[1].waits == 0

    def test_a_forked_child_takes_nothing_and_wakes_nobody(self, ring, forked):
        ring.push_numbers(1)
        it = ring.receiver._ring
        lib.ipcq_arm_records(it)
        lib.ipcq_arm_space(ring.sender._ring, 1)

        def child():
            into, count = ffi.new("char[8]"), ffi.new("uint64_t *")
            assert lib.ipcq_pop(it, into, 1, 0, count) == FORKED
            assert lib.ipcq_take(it, 1) == FORKED
            lib.ipcq_disarm_records(it)
            lib.ipcq_disarm_space(ring.sender._ring)

        assert forked(child) == 0
        for segment, at in ((ring.at_receiver, WAIT_RECORDS), (ring.at_sender, WAIT_SPACE)):
            assert (
                ffi.cast("uint32_t *", segment.mapping.at + moved(segment.mapping, at))[0] & 1
            )  # the parent still sleeps
        assert numbers(drained(ring.receiver)) == [1]

    def test_records_are_taken_in_their_order_by_those_who_know_where_it_is(self, ring):
        ring.push_numbers(1, 2, 3)
        it, into, count = ring.receiver._ring, ffi.new("char[32]"), ffi.new("uint64_t *")
        assert lib.ipcq_pop(it, into, 1, 0, count) == lib.IPCQ_DONE
        # Others have taken one since; or one is lent, or was put back.
        for delivered in (0, 2, LAST):
            assert lib.ipcq_pop(it, into, 4, delivered, count) == lib.IPCQ_AGAIN
            assert count[0] == (1 - delivered) % (1 << 64)
        at, run = ffi.new("char const **"), ffi.new("uint64_t *")
        assert lib.ipcq_look(it, 0, at, run) == lib.IPCQ_AGAIN
        assert lib.ipcq_pop(it, into, 4, 1, count) == lib.IPCQ_DONE
        assert bytes(ffi.buffer(into, 16)) == packed(2, 3)
        assert lib.ipcq_pop(it, into, 4, 3, count) == lib.IPCQ_EMPTY


class TestDoorbells:
    """[1, low byte of head] for records, [2, low byte of tail] for space; one for each sleep."""

    @pytest.fixture
    def bells(self):
        with contextlib.ExitStack() as stack:
            pair = socket.socketpair()
            for sock in pair:
                stack.enter_context(sock)
            yield pair

    @pytest.fixture
    def belled(self, make_ring, bells):
        return make_ring(bell=bells)

    def rung(self, sock):
        with contextlib.suppress(BlockingIOError):
            return sock.recv(1 << 20, socket.MSG_DONTWAIT)
        return b""

    def test_none_while_nobody_waits(self, belled, bells):
        belled.push_numbers(1, 2, 3, 4)
        drained(belled.receiver)
        assert self.rung(bells[0]) == self.rung(bells[1]) == b""

    def test_one_for_a_record_however_many_follow(self, belled, bells):
        assert belled.receiver.arm()
        belled.push_numbers(1, 2)
        assert push_packed(belled.sender, packed(3, 4), 2) == 2
        assert self.rung(bells[1]) == b"\1\1"
        drained(belled.receiver)
        belled.push_numbers(5)
        assert self.rung(bells[1]) == b""
        assert belled.at_sender.mapping.counts()[0].doorbells == 1
        assert belled.at_receiver.mapping.counts()[1].waits == 1

    def test_one_for_space_however_much_follows(self, belled, bells):
        belled.push_numbers(1, 2, 3, 4)
        assert belled.sender.arm()
        belled.receiver.try_pop()
        belled.receiver.try_pop()
        assert len(belled.receiver.try_pop_many(2)) == 2
        assert self.rung(bells[0]) == b"\2\1"
        assert belled.at_receiver.mapping.counts()[1].doorbells == 1
        assert belled.at_sender.mapping.counts()[0].waits == 1

    def test_its_argument_is_the_low_byte_of_the_index(self, make_ring, bells):
        ring = make_ring(capacity=512, bell=bells)
        assert ring.receiver.arm()
        assert push_packed(ring.sender, packed(*range(300)), 300) == 300
        assert self.rung(bells[1]) == bytes((1, 300 % 256))
        assert push_packed(ring.sender, packed(*range(212)), 300 - 88) == 212
        assert ring.sender.arm()
        assert len(ring.receiver.try_pop_many(300)) == 300
        assert self.rung(bells[0]) == bytes((2, 300 % 256))

    def test_a_doorbell_comes_before_the_call_returns_and_after_the_record(self, belled, bells):
        assert belled.receiver.arm()
        belled.push_numbers(1)
        assert self.rung(bells[1]) == b"\1\1"
        assert belled.receiver.try_pop() == (1,)

    def test_arming_again_asks_for_another(self, belled, bells):
        assert belled.receiver.arm()
        belled.push_numbers(1)
        drained(belled.receiver)
        assert belled.receiver.arm()  # still odd, but not the same number
        belled.push_numbers(2)
        assert self.rung(bells[1]) == b"\1\1\1\2"

    def test_arming_twice_before_the_record_still_asks_for_one(self, belled, bells):
        assert belled.receiver.arm()
        assert belled.receiver.arm()
        belled.push_numbers(1, 2)
        assert self.rung(bells[1]) == b"\1\1"

    def test_disarming_takes_it_back(self, belled, bells):
        assert belled.receiver.arm()
        belled.receiver.disarm()
        belled.receiver.disarm()
        belled.push_numbers(1, 2, 3, 4)
        assert belled.sender.arm()
        belled.sender.disarm()
        drained(belled.receiver)
        assert self.rung(bells[0]) == self.rung(bells[1]) == b""
        assert belled.receiver.arm()
        belled.push_numbers(5)
        assert self.rung(bells[1]) == b"\1\5"

    def test_arming_is_declined_when_there_is_something_to_do(self, belled):
        assert not belled.sender.arm()
        belled.push_numbers(1)
        assert not belled.receiver.arm()

    @pytest.mark.parametrize("rounds", [3, 200])
    def test_each_sleep_has_its_own_doorbell(self, belled, bells, rounds):
        for n in range(rounds):
            assert belled.receiver.arm()
            belled.push_numbers(n)
            belled.push_numbers(n)
            belled.receiver.disarm()
            drained(belled.receiver)
        assert self.rung(bells[1])[::2] == b"\1" * rounds

    @pytest.mark.deadline(10)
    def test_a_full_socket_drops_doorbells_and_breaks_nothing(self, belled, bells):
        with contextlib.suppress(BlockingIOError):
            while True:
                bells[0].send(b"\x80\0", socket.MSG_DONTWAIT)
        assert belled.receiver.arm()
        belled.push_numbers(1, 2)
        while got := self.rung(bells[1]):
            assert set(got) == {0x80, 0}
        assert numbers(drained(belled.receiver)) == [1, 2]
        assert belled.receiver.arm()
        belled.push_numbers(3)
        assert self.rung(bells[1]) == b"\1\3"

    def test_a_socket_whose_other_end_is_gone_breaks_nothing(self, belled, bells):
        belled.push_numbers(1)
        assert belled.sender.try_push((2,))
        assert belled.receiver.arm() is False
        bells[1].close()
        with contextlib.suppress(RingError):
            belled.sender.try_push((3,))  # rings, or notices that nobody is there
        assert numbers(drained(belled.receiver))[:2] == [1, 2]

    def test_a_closed_end_never_touches_the_socket_again(self, belled, bells):
        assert belled.receiver.arm()
        belled.sender.close()
        fails_with(CLOSED, belled.sender.try_push, (1,))
        assert self.rung(bells[1]) == b""

    def test_a_lying_epoch_costs_the_liar_a_doorbell_each_time_and_no_more(self, belled, bells):
        for epoch in (3, 5, 1, (1 << 32) - 1):
            belled.poke(belled.at_receiver, WAIT_RECORDS, epoch, "uint32_t *")
            belled.push_numbers(epoch)
            assert len(self.rung(bells[1])) == 2
            drained(belled.receiver)
        for epoch in (2, 4, 0):
            belled.poke(belled.at_receiver, WAIT_RECORDS, epoch, "uint32_t *")
            belled.push_numbers(epoch)
            assert self.rung(bells[1]) == b""
            drained(belled.receiver)


class TestThreads:
    """Each end takes one call at a time, though the C core runs without the interpreter's lock."""

    SIZE = 2 * MIB  # takes long enough to copy for others to come in between

    def in_threads(self, call):
        """Run it in four threads at once."""
        results, ready = [None] * 4, threading.Barrier(4)

        def run(who):
            ready.wait()
            results[who] = call(who)

        threads = [threading.Thread(target=run, args=(who,)) for who in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results

    @pytest.mark.parametrize("many", [False, True])
    def test_pushing_and_popping_loses_and_doubles_nothing(self, make_ring, many):
        ring = make_ring(self.SIZE, 32)

        def push(who):
            for n in range(8 * who, 8 * who + 8):
                record = bytes([n]) * self.SIZE
                if many:
                    assert push_packed(ring.sender, record, 1) == 1
                else:
                    assert ring.sender.try_push(record)

        def pop(who):
            take = partial(ring.receiver.try_pop_many, 3) if many else ring.receiver.try_pop
            batches = iter(take, None)
            return [record for batch in batches for record in (batch if many else [batch])]

        for _ in range(3):
            self.in_threads(push)
            per_thread = self.in_threads(pop)
            everything = sorted(record for got in per_thread for record in got)
            assert everything == [bytes([n]) * self.SIZE for n in range(32)]
            for got in per_thread:
                for who in range(4):
                    pushed = [record[0] for record in got if record[0] // 8 == who]
                    assert pushed == sorted(pushed)
        assert ring.sender.indices() == ring.receiver.indices() == (96, 96)


class TestUndecodable:
    """A record that cannot be decoded is lost, with an error, and no other with it."""

    def reject(self, *bad):
        def decode(data):
            if number_in(data) in bad:
                raise Bad(number_in(data))

        def decode_many(data, count):
            for at in range(0, 8 * count, 8):
                decode(data[at : at + 8])

        return {"decode": decode, "decode_many": decode_many}

    def outcomes(self, take):
        """Every record, or None where there was an error instead, until nothing is left."""
        outcomes = []
        while True:
            try:
                got = take()
            except DecodeFailed as error:
                assert isinstance(error.__cause__, Bad)
                outcomes.append(f"bad {error.__cause__}")
                continue
            if got is None or len(got) == 0:
                return outcomes
            outcomes += numbers(got if isinstance(got, list) else [got])

    @pytest.mark.parametrize("limit", [1, 2, 3, 4, None])
    @pytest.mark.parametrize("held", [False, True])
    def test_in_batches_and_one_by_one(self, make_ring, limit, held):
        for bad in (0,), (2,), (3,), (1, 2), (0, 3), (0, 1, 2, 3):
            ring = make_ring()
            ring.open(codec_that(ring.codec, **self.reject(*bad)))
            ring.push_numbers(0, 1, 2, 3)
            if held:
                ring.interrupted_pop()
            pop, pop_many = ring.receiver.try_pop, ring.receiver.try_pop_many
            got = self.outcomes(partial(pop_many, limit) if limit else pop)
            assert got == [f"bad {n}" if n in bad else n for n in range(4)]
            ring.push_numbers(4)
            assert pop() == (4,)

    def test_an_error_that_is_no_records_fault_loses_nothing(self, ring):
        def exhausted(*arguments):
            raise MemoryError

        ring.open(codec_that(ring.codec, decode_many=once(exhausted)))
        ring.push_numbers(0, 1, 2)
        with pytest.raises(MemoryError):
            ring.receiver.try_pop_many(4)
        assert numbers(ring.receiver.try_pop_many(4)) == [0, 1, 2]

    @pytest.mark.parametrize("bad", [0, 1])
    def test_an_interrupt_while_the_good_are_kept_doubles_nothing(self, ring, bad):
        calls = count()

        def decode_many(data, n):
            if next(calls) == 1:
                raise Interrupt
            self.reject(bad)["decode_many"](data, n)

        ring.open(
            codec_that(ring.codec, decode=self.reject(bad)["decode"], decode_many=decode_many)
        )
        ring.push_numbers(0, 1, 2, 3)
        outcomes = []
        with contextlib.suppress(Interrupt):
            outcomes = self.outcomes(lambda: ring.receiver.try_pop_many(4))
        outcomes += self.outcomes(lambda: ring.receiver.try_pop_many(4))
        good = [outcome for outcome in outcomes if isinstance(outcome, int)]
        assert good == [n for n in range(4) if n != bad]
