"""Loans and borrowings: the ring's own memory in the application's hands, and back again."""

import contextlib
import gc
import os
import select
import threading
import tracemalloc

import numpy as np
import pytest

import fdpass
import ipcqueue
import memenpsf
from memenpsf import (
    BadRecord,
    Closed,
    ConcurrentUse,
    EndOfStream,
    ForkedUse,
    Full,
    LoanError,
    Message,
    PeerDied,
    ReceiverGone,
    TooLarge,
)
from tests.kit.attached import open_descriptors
from tests.kit.connected import connection, inode, quick_collector  # noqa: F401 (the fixture)
from tests.kit.hostile import HEADER, extent

TICK = np.dtype([("number", "<u8"), ("price", "<f8")])


def still_works(one, other, record=b"still works"):
    one.xmit(record, timeout=0)
    assert other.recv(timeout=0) == record
    assert other.recv(timeout=0) is None


def readable(side):
    poll = select.poll()
    poll.register(side.fileno(), select.POLLIN)
    return bool(poll.poll(0))


@pytest.fixture
def pair():
    with connection(capacity=4096) as sides:
        yield sides


@pytest.fixture(params=["frames", "records", "records around the end of the ring", "array"])
def any_pair(request):
    """Two sides, and what a loan of 3 units is made to say, of every kind."""
    if request.param == "frames":
        with connection(capacity=4096) as sides:
            yield *sides, [b"abc"]
    elif request.param.startswith("records"):
        start = 2 if request.param == "records" else 7
        with connection(1, capacity=8, start=start) as sides:
            yield *sides, [b"a", b"b", b"c"]
    else:
        with connection(np.dtype("S1"), capacity=8, start=7) as sides:
            yield *sides, [b"a", b"b", b"c"]


def fill(loan):
    """Fill a loan of 3 units, whatever they are."""
    if isinstance(loan.data, memoryview):
        loan.data[:] = b"abc"
    else:
        loan.data[:] = [b"a", b"b", b"c"]


def everything(side):
    got = []
    while len(records := side.recv_vectored(timeout=0)):
        got += [bytes(record) for record in records]
    return got


# -- loans ---------------------------------------------------------------------------------------


def test_leaving_the_block_publishes_and_nobody_sees_it_before(any_pair):
    one, other, said = any_pair
    with one.loan(3) as loan:
        fill(loan)
        assert len(other.recv_vectored(timeout=0)) == 0
    assert everything(other) == said
    assert loan.data is None


def test_publish_publishes_at_once_and_leaving_does_nothing_more(any_pair):
    one, other, said = any_pair
    with one.loan(3) as loan:
        fill(loan)
        loan.publish()
        assert everything(other) == said
        one.xmit(said[0], timeout=0)
    assert everything(other) == said[:1]


def test_a_block_shows_whose_it_is_and_whether_it_is_open(pair):
    one, other = pair
    loan, borrowing = one.loan(8), other.borrow(timeout=0)
    assert repr(loan) == f"<Loan of 8 bytes of {one!r}: not open>"
    with loan, borrowing:
        assert repr(loan) == f"<Loan of 8 bytes of {one!r}: open>"
    assert repr(loan) == f"<Loan of 8 bytes of {one!r}: not open>"
    with borrowing:
        assert repr(borrowing) == f"<Borrowing of 1 messages of {other!r}: open>"
    assert repr(borrowing) == f"<Borrowing of {other!r}: not open>"


@pytest.mark.parametrize("size", [1000, 1 << 20])
def test_what_is_borrowed_is_not_copied(size):
    with connection(capacity=1 << 22, inline=1 << 22) as (one, other):
        one.xmit_many([bytes(size)] * 3)
        tracemalloc.start()
        try:
            with other.borrow(3) as messages:
                assert [len(message.data) for message in messages] == [size] * 3
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert most < max(size, 20_000)


def test_cancel_gives_it_back_at_once(any_pair):
    one, other, said = any_pair
    with one.loan(3) as loan:
        fill(loan)
        loan.cancel()
        one.xmit(said[0], timeout=0)
    assert everything(other) == said[:1]


def test_an_exception_gives_it_back(any_pair):
    one, other, said = any_pair
    with pytest.raises(KeyError), one.loan(3) as loan:
        fill(loan)
        raise KeyError
    assert everything(other) == []
    one.xmit(said[0], timeout=0)
    assert everything(other) == said[:1]
    assert one.indices()[0] == one.indices()[1]


@pytest.mark.parametrize("size", [3, 2, 1])
def test_only_what_is_left_after_shrinking_is_published(any_pair, size):
    one, other, said = any_pair
    with one.loan(3) as loan:
        fill(loan)
        loan.shrink(3)
        loan.shrink(size)
    got = everything(other)
    assert b"".join(got) == b"".join(said)[:size]


def test_a_message_can_shrink_to_nothing(pair):
    one, other = pair
    with one.loan(100) as loan:
        loan.shrink(0)
    assert other.recv() == b""


@pytest.mark.parametrize("by", ["xmit", "publish"])
def test_a_loan_carries_tag_and_flags(by):
    with connection(Message) as (one, other):
        with one.loan(2, tag=0xFFFFFFFF, flags=0xFF) as loan:
            loan.data[:] = b"ab"
            if by == "publish":
                loan.publish()
        assert other.recv() == Message(b"ab", 0xFFFFFFFF, 0xFF)


def test_a_loan_goes_into_the_ring_whatever_messages_do():
    with connection(capacity=4096, inline=0) as (one, other):
        with one.loan(4080) as loan:
            loan.data[:] = b"x" * 4080
        assert one.indices()[0] == 4096
        assert other.recv() == b"x" * 4080


def test_without_waking_a_sleeping_peer_sleeps_on_until_somebody_rings(any_pair):
    one, other, said = any_pair
    assert other.arm()
    with one.loan(3) as loan:
        fill(loan)
        loan.publish(wake=False)
    assert not readable(other)
    assert one.statistics().doorbells == 0
    one.xmit(said[0], timeout=0)
    assert readable(other)
    assert everything(other) == [*said, said[0]]


def test_with_waking_a_sleeping_peer_is_woken_once(any_pair):
    one, other, said = any_pair
    assert other.arm()
    for _ in range(2):
        with one.loan(3) as loan:
            fill(loan)
    assert readable(other)
    assert one.statistics().doorbells == 1
    assert everything(other) == said * 2


def test_a_loan_waits_for_its_space_and_no_longer():
    with connection(capacity=4096, inline=4096) as (one, other):
        one.xmit_many([bytes(1008)] * 4)
        with pytest.raises(Full, match="no space for a loan within 0 s"):
            one.loan(2000, timeout=0).__enter__()
        published = threading.Event()

        def lend():
            with one.loan(2000) as loan:
                loan.data[:] = b"x" * 2000
            published.set()

        thread = threading.Thread(target=lend)
        thread.start()
        other.recv()
        assert not published.is_set()
        other.recv()
        assert published.wait()
        thread.join()
        assert other.recv_vectored() == [bytes(1008), bytes(1008), b"x" * 2000]
        assert one.statistics().rescues == 0


# -- loans used wrongly ----------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["publish", "cancel"])
@pytest.mark.parametrize(
    "then", [lambda it: it.publish(), lambda it: it.cancel(), lambda it: it.shrink(1)]
)
def test_what_is_over_stays_over(any_pair, first, then):
    one, other, said = any_pair
    with one.loan(3) as loan:
        fill(loan)
        getattr(loan, first)()
        with pytest.raises(LoanError, match="the loan is not open: it is over"):
            then(loan)
    with pytest.raises(LoanError, match="the loan is not open: it is over"):
        then(loan)
    assert everything(other) == (said if first == "publish" else [])
    still = one.loan(3)
    with still as loan:
        fill(loan)
    assert everything(other) == said


def test_a_loan_needs_its_block(any_pair):
    one, other, said = any_pair
    loan = one.loan(3)
    assert loan.data is None
    for misuse in (loan.publish, loan.cancel, lambda: loan.shrink(1)):
        with pytest.raises(LoanError, match="use with"):
            misuse()
    one.xmit(said[0], timeout=0)  # it has taken nothing
    with loan:
        fill(loan)
    assert everything(other) == [said[0], *said]


def test_a_loan_is_good_for_one_block(any_pair):
    one, other, said = any_pair
    with one.loan(3) as loan:
        fill(loan)
        with pytest.raises(LoanError, match="used before"), loan:
            pass
    with pytest.raises(LoanError, match="used before"), loan:
        pass
    assert everything(other) == said


@pytest.mark.parametrize("size", [4, 100, -1])
def test_shrinking_only_makes_smaller(any_pair, size):
    one, other, said = any_pair
    with one.loan(3) as loan:
        fill(loan)
        with pytest.raises(LoanError, match=f"a loan of 3 can shrink to . or more, not to {size}"):
            loan.shrink(size)
    assert everything(other) == said


@pytest.mark.parametrize("size", [1.0, "1", None, True])
def test_a_size_is_a_number(any_pair, size):
    one, other, said = any_pair
    with pytest.raises(TypeError, match="the size of a loan is a number"):
        one.loan(size)
    with one.loan(3) as loan:
        with pytest.raises(TypeError, match="the size of a loan is a number"):
            loan.shrink(size)
        fill(loan)
    assert everything(other) == said


def test_records_cannot_shrink_to_none():
    with connection(1, capacity=8) as (one, _), one.loan(3) as loan:
        with pytest.raises(LoanError, match="a loan of 3 can shrink to 1 or more, not to 0"):
            loan.shrink(0)
        loan.cancel()


def test_a_loan_larger_than_the_ring_is_too_large_and_says_what_fits(pair):
    one, other = pair
    with one.loan(4080) as loan:
        loan.cancel()
    with pytest.raises(TooLarge, match=r"4081 bytes .* ring of 4096 bytes, .* at most 4080"):
        one.loan(4081)
    with pytest.raises(ValueError, match="at least 0 bytes, not -1"):
        one.loan(-1)
    still_works(one, other)


@pytest.mark.parametrize("count", [0, -1, 9, 1 << 40])
def test_a_loan_of_records_has_as_many_as_the_ring(count):
    with connection(1, capacity=8) as (one, other):
        with pytest.raises(TooLarge, match=f"a loan has 1 to 8 records, .* not {count}"):
            one.loan(count)
        still_works(one, other, b"x")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"tag": -1}, "tag is a number from 0 to 4294967295, not -1"),
        ({"tag": 1 << 32}, "tag is a number"),
        ({"flags": 256}, "flags is a number from 0 to 255, not 256"),
        ({"flags": "x"}, "flags is a number"),
    ],
)
def test_tag_and_flags_of_a_loan_are_checked(pair, options, says):
    one, other = pair
    with pytest.raises(BadRecord, match=says):
        one.loan(3, **options)
    still_works(one, other)


def test_records_have_no_tag():
    with connection(1, capacity=8) as (one, _):
        with pytest.raises(BadRecord, match="go with messages"):
            one.loan(1, tag=1)
        with pytest.raises(BadRecord, match="go with messages"):
            one.loan(1, flags=1)


def test_while_memory_is_lent_other_uses_fail_and_lose_nothing(any_pair):
    one, other, said = any_pair
    other.xmit(said[0])
    with one.loan(3) as loan:
        fill(loan)
        for use in (
            lambda: one.xmit(said[0]),
            lambda: one.xmit_many([said[0]]),
            lambda: one.loan(1).__enter__(),
        ):
            with pytest.raises(ConcurrentUse, match="another loan or borrowing is open"):
                use()
        assert one.recv(timeout=0) == said[0]  # the other direction is another matter
        assert one.indices() == (one.indices()[1],) * 2
        assert one.statistics().sent == one.statistics().taken
    assert everything(other) == said


def test_while_memory_is_borrowed_other_uses_fail_and_lose_nothing(any_pair):
    one, other, said = any_pair
    for each in said:
        one.xmit(each)
    with contextlib.ExitStack() as undo:
        undo.enter_context(other.borrow(1))
        for use in (
            lambda: other.recv(timeout=0),
            lambda: other.recv_vectored(timeout=0),
            lambda: other.recv_message(timeout=0),
            lambda: other.borrow(timeout=0).__enter__(),
        ):
            with pytest.raises(ConcurrentUse, match="another loan or borrowing is open"):
                use()
        other.xmit(said[0])
        assert one.recv() == said[0]
    assert everything(other) == said[1:]


def test_a_thread_that_finds_memory_lent_is_told_so_whether_it_waits_or_not(pair):
    one, other = pair
    errors = []

    def use(call):
        try:
            call()
        except ConcurrentUse as error:
            errors.append(error)

    with one.loan(3) as loan:
        threads = [
            threading.Thread(target=use, args=(call,))
            for call in (
                lambda: one.xmit(b"x"),
                lambda: one.xmit(b"x" * 9999),
                lambda: one.loan(1).__enter__(),
            )
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        loan.cancel()
    assert len(errors) == 3
    still_works(one, other)


# -- views that outlive their block ------------------------------------------------------------------


def test_the_memory_of_a_loan_is_gone_with_it(any_pair):
    one, other, said = any_pair
    with one.loan(3) as loan:
        data = loan.data
        fill(loan)
        if isinstance(data, np.ndarray):
            del data  # an array cannot be revoked: see below
    assert everything(other) == said
    if "data" in locals():
        with pytest.raises(ValueError, match="released memoryview"):
            data[0]


def slice_of(data):
    return data[1:]


def array_of(data):
    return np.asarray(data)


def array_of_a_slice(data):
    return np.frombuffer(data[:2], "u1") if isinstance(data, memoryview) else data[:2]


def iterator_of(data):
    return iter(data)


LEFT = [slice_of, array_of, array_of_a_slice]


@pytest.mark.parametrize("derive", LEFT)
def test_a_view_that_outlives_a_loan_keeps_it_from_being_published(any_pair, derive):
    one, other, said = any_pair
    with pytest.raises(
        LoanError, match=r"nothing was published of this loan: .*outlived the block"
    ):
        with one.loan(3) as loan:
            fill(loan)
            left = derive(loan.data)
    assert everything(other) == []
    for use in (
        lambda: one.xmit(said[0], timeout=0),
        lambda: one.xmit_many([said[0]], timeout=0),
        lambda: one.loan(1, timeout=0).__enter__(),
    ):
        with pytest.raises(LoanError, match="outlived the block"):
            use()
    left[0] = left[0]  # still memory that nobody else uses
    del left
    one.xmit(said[0], timeout=0)
    with one.loan(3) as loan:
        fill(loan)
    assert everything(other) == [said[0], *said]


@pytest.mark.parametrize("derive", LEFT)
def test_a_view_that_outlives_a_borrowing_keeps_it_from_being_taken(any_pair, derive):
    one, other, said = any_pair
    for each in said:
        one.xmit(each)
    frames = isinstance(other.borrow(0).data, list)
    with pytest.raises(LoanError, match="outlived the block"), other.borrow() as lent:
        left = derive(lent[0].data if frames else lent.data)
    for use in (
        lambda: other.recv(timeout=0),
        lambda: other.recv_vectored(timeout=0),
        lambda: other.recv_message(timeout=0),
        lambda: other.borrow(timeout=0).__enter__(),
    ):
        with pytest.raises(LoanError, match="outlived the block"):
            use()
    one.xmit(said[0])  # into memory that is not lent
    assert bytes(left) in b"".join(said)
    del left
    assert everything(other) == [*said, said[0]]


def test_what_a_view_that_is_left_means_and_how_to_be_rid_of_it_is_told(any_pair):
    one, other, said = any_pair
    with pytest.raises(LoanError) as caught, one.loan(3) as loan:
        fill(loan)
        array = isinstance(loan.data, np.ndarray)
        left = loan.data[:2]
    assert str(caught.value).startswith(
        "nothing was published of this loan: one view of lent memory"
    )
    assert ("`del` every name" if array else "release() the memoryview") in str(caught.value)
    with pytest.raises(LoanError, match=r"^this call has done nothing: one view"):
        one.xmit(said[0])
    del left
    one.xmit(said[0])
    with pytest.raises(LoanError) as caught, other.borrow() as lent:
        left = lent[:1] if not isinstance(lent.data, list) else lent[0].data[:1]
    assert "nothing was taken, and the same " in str(caught.value)
    assert ("`del` every name" if array else "release() the memoryview") in str(caught.value)
    with pytest.raises(LoanError, match=r"^this call has done nothing"):
        other.recv(timeout=0)
    del left, lent
    assert everything(other) == said[:1]


def test_views_made_of_messages_outside_the_ring_outlive_their_block_as_well(pair):
    one, other = pair
    one.xmit(b"x" * 5000)
    before = open_descriptors()
    with pytest.raises(LoanError, match="outlive"), other.borrow() as (message,):
        left = message.data[10:20]
    assert left == b"x" * 10
    del left, message
    assert other.recv() == b"x" * 5000
    assert open_descriptors() == before


def test_the_exception_of_a_block_comes_out_although_views_are_left(any_pair):
    one, other, said = any_pair
    for each in said:
        one.xmit(each)
    with pytest.raises(KeyError), other.borrow() as lent:
        left = lent.data[:1] if not isinstance(lent.data, list) else lent[0].data[:1]
        raise KeyError
    with pytest.raises(LoanError, match="outlive"):
        other.recv(timeout=0)
    del left
    gc.collect()  # what the traceback kept
    assert everything(other) == said
    with pytest.raises(KeyError), one.loan(3) as loan:
        left = loan.data[1:]
        raise KeyError
    with pytest.raises(LoanError, match="outlive"):
        one.xmit(said[0], timeout=0)
    del left
    gc.collect()
    one.xmit(said[0], timeout=0)
    assert everything(other) == said[:1]


def test_a_view_in_a_cycle_is_found_by_the_collector_and_harms_nothing(pair):
    one, other = pair
    for size in (10, 10_000):
        one.xmit(b"x" * size)
        with pytest.raises(LoanError), other.borrow() as lent:
            cycle = [lent[0].data[1:3]]
            cycle.append(cycle)
        del cycle, lent
        gc.collect()
        assert other.recv(timeout=0) == b"x" * size


def test_views_that_outlive_the_connection_still_show_memory(any_pair):
    one, other, said = any_pair
    one.xmit(said[0])
    with pytest.raises(LoanError), other.borrow() as lent:
        borrowed = (lent[0].data if isinstance(lent.data, list) else lent.data)[:1]
    with pytest.raises(LoanError), one.loan(3) as loan:
        fill(loan)
        left = loan.data[1:]
    one.close()
    other.close()
    gc.collect()
    assert bytes(borrowed) == said[0][:1]
    left[0] = left[1]
    del left, borrowed


# -- the end comes while memory is lent ----------------------------------------------------------------


@pytest.mark.parametrize("exception", [False, True])
def test_a_loan_may_be_open_when_this_side_closes(any_pair, exception):
    one, other, _ = any_pair
    with pytest.raises(KeyError if exception else Closed), one.loan(3) as loan:
        fill(loan)
        one.close()
        fill(loan)  # the memory is still there
        if exception:
            raise KeyError
    with pytest.raises(EndOfStream):
        other.recv()
    with pytest.raises(Closed):
        one.loan(1).__enter__()


@pytest.mark.parametrize("exception", [False, True])
@pytest.mark.parametrize("how", ["close", "death"])
def test_a_loan_may_be_open_when_the_peer_ends(any_pair, how, exception):
    one, other, said = any_pair
    error = ReceiverGone if how == "close" else PeerDied
    with pytest.raises(KeyError if exception else error), one.loan(3) as loan:
        if how == "close":
            other.close()
        else:
            other._endpoint.wire.sock.shutdown(2)
        one._endpoint.read_if_free()
        fill(loan)
        if exception:
            raise KeyError
    with pytest.raises(error):
        one.xmit(said[0])
    if how == "death":  # which is one for the other side, too
        with pytest.raises(PeerDied):
            other.recv(timeout=0)


@pytest.mark.parametrize("exception", [False, True])
def test_a_borrowing_may_be_open_when_this_side_closes(any_pair, exception):
    one, other, said = any_pair
    one.xmit(said[0])
    with pytest.raises(KeyError if exception else Closed), other.borrow() as lent:
        other.close()
        one.close()
        data = lent[0].data if isinstance(lent.data, list) else lent.data
        assert bytes(data[:1]) == said[0][:1]
        del data
        if exception:
            raise KeyError


def test_a_borrowing_may_be_open_when_the_peer_ends(any_pair):
    one, other, said = any_pair
    for each in said:
        one.xmit(each)
    with other.borrow(2) as lent:
        one.close()
        other._endpoint.read_if_free()
        assert len(lent) >= 1
        seen = 2 if isinstance(lent.data, list) else len(bytes(lent.data))
    left = everything_until_the_end(other)
    assert left == said[min(seen, len(said)) :]


def everything_until_the_end(side):
    got = []
    with pytest.raises(EndOfStream):
        while True:
            got += [bytes(record) for record in side.recv_vectored()]
    return got


def test_a_loan_that_is_forgotten_is_given_back(any_pair):
    one, other, said = any_pair
    loan = one.loan(3)
    loan.__enter__()
    with pytest.raises(ConcurrentUse):
        one.xmit(said[0], timeout=0)
    del loan
    one.xmit(said[0], timeout=0)
    borrowing = other.borrow()
    borrowing.__enter__()
    with pytest.raises(ConcurrentUse):
        other.recv(timeout=0)
    del borrowing
    assert everything(other) == said[:1]


def test_a_forked_child_can_do_nothing_with_what_its_parent_lent(any_pair, forked):
    one, other, said = any_pair
    one.xmit(said[0])

    def child():
        for use in (
            lambda: one.loan(1, timeout=0).__enter__(),
            lambda: other.borrow(timeout=0).__enter__(),
            lambda: one.xmit(said[0], timeout=0),
            lambda: other.recv(timeout=0),
            loan.publish,
            lambda: borrowing.__exit__(None, None, None),
        ):
            with pytest.raises(ForkedUse):
                use()
        one.close()
        other.close()

    with one.loan(3) as loan, other.borrow() as borrowing:
        fill(loan)
        assert forked(child) == 0
    assert everything(other) == said
    assert one.indices()[0] == one.indices()[1]


# -- borrowings ----------------------------------------------------------------------------------------


def test_leaving_the_block_well_takes_what_was_lent(any_pair):
    one, other, said = any_pair
    for each in said:
        one.xmit(each)
    seen = []
    while b"".join(seen) != b"".join(said):
        with other.borrow() as lent:
            seen += parts(lent)
    assert everything(other) == []
    assert one.indices()[0] == one.indices()[1]
    one.xmit(said[0])
    assert everything(other) == said[:1]


def parts(lent):
    """What a borrowing shows, as bytes."""
    if isinstance(lent.data, list):
        return [bytes(message.data) for message in lent]
    return [bytes(lent.data)]


@pytest.mark.parametrize("how", ["cancel", "exception"])
def test_otherwise_nothing_is_taken(any_pair, how):
    one, other, said = any_pair
    for each in said:
        one.xmit(each)
    for _ in range(3):
        with contextlib.suppress(KeyError), other.borrow() as lent:
            assert b"".join(said).startswith(b"".join(parts(lent)))
            if how == "cancel":
                lent.cancel()
                assert other.indices()
            else:
                raise KeyError
    assert everything(other) == said


def test_a_borrowing_is_a_sequence_of_what_it_shows(any_pair):
    one, other, said = any_pair
    one.xmit(said[0])
    with other.borrow() as lent:
        assert len(lent) == len(lent.data) == 1
        assert list(lent)[0] is not None  # noqa: RUF015 (iteration is what is tested)
        if isinstance(lent.data, list):
            assert lent[0] == Message(said[0], 0, 0)
            assert lent[-1] is lent[0]
        else:
            assert bytes(lent[:1]) == said[0]
        with pytest.raises(IndexError):
            lent[1]


def test_a_borrowing_is_empty_when_nothing_came_in_time(any_pair):
    one, other, said = any_pair
    for timeout in (0, 1e-9, 0.01):
        with other.borrow(timeout=timeout) as lent:
            assert len(lent) == 0
            assert list(lent) == []
            one.xmit(said[0])  # comes too late, and is not taken
        assert everything(other) == said[:1]
    borrowing = other.borrow(timeout=0)
    with borrowing:
        borrowing.cancel()  # takes nothing of nothing
        with pytest.raises(LoanError, match="the borrowing is not open"):
            borrowing.cancel()
    with pytest.raises(LoanError, match="the borrowing is not open"):
        other.borrow(timeout=0).cancel()


def test_a_borrowing_of_at_most_nothing_is_empty_at_once(any_pair):
    one, other, said = any_pair
    with other.borrow(0) as lent:
        assert len(lent) == 0
    one.xmit(said[0])
    with other.borrow(0) as lent:
        assert len(lent) == 0
    assert everything(other) == said[:1]


@pytest.mark.parametrize(
    ("limit", "error"), [(-1, ValueError), (1.5, TypeError), ("1", TypeError), (True, TypeError)]
)
def test_a_limit_of_a_borrowing_is_a_number(any_pair, limit, error):
    _, other, _ = any_pair
    with pytest.raises(error, match="limit is"):
        other.borrow(limit)


def test_a_borrowing_waits_for_something(any_pair):
    one, other, said = any_pair
    seen = []

    def borrow():
        with other.borrow() as lent:
            seen.extend(parts(lent))

    thread = threading.Thread(target=borrow)
    thread.start()
    while not other.statistics().waits:
        pass
    one.xmit(said[0])
    thread.join()
    assert seen == said[:1]


def test_no_more_is_lent_than_asked_for(pair):
    one, other = pair
    one.xmit_many([b"1", b"2" * 5000, b"3", b"4"])
    for expected in ([b"1", b"2" * 5000], [b"3", b"4"]):
        with other.borrow(2) as messages:
            assert [message.data for message in messages] == expected


def test_what_is_lent_can_be_read_and_not_written(any_pair):
    one, other, said = any_pair
    one.xmit(said[0])
    with other.borrow() as lent:
        data = lent[0].data if isinstance(lent.data, list) else lent.data
        with pytest.raises((TypeError, ValueError), match="read-only"):
            data[0] = data[0]
        if isinstance(data, memoryview):
            assert data.readonly
            assert not np.frombuffer(data, "u1").flags.writeable
        else:
            with pytest.raises(ValueError, match="WRITEABLE"):
                data.flags.writeable = True
        del data


def test_space_is_free_only_when_the_block_has_ended():
    with connection(capacity=4096, inline=4096) as (one, other):
        one.xmit(bytes(4080), timeout=0)
        with other.borrow():
            with pytest.raises(Full):
                one.xmit(b"", timeout=0)
        one.xmit(b"", timeout=0)


def test_a_sender_that_waits_is_woken_by_the_end_of_a_borrowing():
    with connection(capacity=4096, inline=4096) as (one, other):
        one.xmit(bytes(4080), timeout=0)
        thread = threading.Thread(target=one.xmit, args=(b"next",))
        thread.start()
        while not one.statistics().waits:
            pass
        with other.borrow():
            pass
        thread.join()
        assert other.recv() == b"next"
        assert one.statistics().rescues == 0


def test_a_borrowing_can_be_used_again(any_pair):
    one, other, said = any_pair
    borrowing = other.borrow(1)
    for each in said:
        one.xmit(each)
    seen = []
    for _ in said:
        with borrowing as lent:
            seen += parts(lent)
            with pytest.raises(LoanError, match="open already"):
                borrowing.__enter__()
    assert seen == said


def test_what_is_attached_stays_with_messages_that_are_not_taken(pair):
    with connection(capacity=4096, accept=memenpsf.Accept(fds=2)) as (one, other):
        ends = os.pipe()
        with fdpass.MemoryRegion.create(3) as region:
            region.buffer[:] = b"abc"
            one.xmit(b"first", fds=ends, regions=[region])
        one.xmit(b"large" * 1000, fds=ends[:1])
        expected = [inode(fd) for fd in ends]
        for end in ends:
            os.close(end)
        before = open_descriptors()
        for _ in range(2):
            with pytest.raises(KeyError), other.borrow() as messages:
                assert [len(message.data) for message in messages] == [5, 5000]
                raise KeyError
        first, second = other.recv_message(), other.recv_message()
        assert [inode(fd) for fd in first.fds] == expected
        assert first.regions[0].buffer == b"abc"
        assert [inode(fd) for fd in second.fds] == expected[:1]
        assert other.statistics().dropped == 0
        first.close()
        second.close()
        assert open_descriptors() == before


def test_what_is_attached_is_closed_and_counted_when_messages_are_taken(pair):
    with connection(capacity=4096, accept=memenpsf.Accept(fds=2)) as (one, other):
        ends = os.pipe()
        before = open_descriptors()
        for _ in range(3):
            with fdpass.MemoryRegion.create(3) as region:
                one.xmit(b"x", fds=ends, regions=[region, region])
            one.xmit(b"plain")
            one.xmit(b"large" * 1000)
        with other.borrow(8) as messages:
            assert len(messages) == 8
        assert other.statistics().dropped == 3 * 4
        assert other.recv_message() == (b"large" * 1000, [], [])
        assert open_descriptors() == before
        for end in ends:
            os.close(end)


def test_messages_that_were_read_ahead_are_lent_as_if_they_were_not():
    # An interrupt may leave messages built, and not handed on.
    with connection(capacity=4096, accept=memenpsf.Accept(fds=1)) as (one, other):
        ends = os.pipe()
        sent = [b"1", b"2" * 5000, b"3", b"4", b"5"]
        for data in sent:
            one.xmit(data, fds=ends[:1] if data == b"3" else ())
        for _ in range(2):
            other._endpoint.receiver.prepare(3)
            other._endpoint.read_more()
        with pytest.raises(KeyError), other.borrow(2) as messages:
            assert [message.data for message in messages] == sent[:2]
            raise KeyError
        seen = []
        while len(seen) < 5:
            with other.borrow(2) as messages:
                seen += [bytes(message.data) for message in messages]
        assert seen == sent
        assert other.statistics().dropped == 1
        assert other.recv(timeout=0) is None
        assert len(set(one.indices())) == 1
        for end in ends:
            os.close(end)


# -- records of one size -------------------------------------------------------------------------------


@pytest.mark.parametrize("start", range(8))
@pytest.mark.parametrize("count", range(1, 9))
def test_records_lent_are_side_by_side_wherever_they_lie(start, count):
    with connection(TICK, capacity=8, start=start) as (one, other):
        with one.loan(count) as loan:
            assert loan.data.shape == (count,)
            assert loan.data.dtype == TICK
            loan.data["number"] = np.arange(count)
            loan.data["price"] = 0.5
        seen = []
        for expected in ([min(count, 8 - start)], [count - (8 - start)])[: 1 + (count > 8 - start)]:
            with other.borrow() as ticks:
                assert ticks.data.shape == (expected[0],)  # up to where the ring wraps around
                seen += ticks["number"].tolist()
                assert (ticks["price"] == 0.5).all()
        assert seen == list(range(count))


@pytest.mark.parametrize("size", range(1, 9))
def test_records_may_shrink_around_the_end_of_the_ring(size):
    for start in range(8):
        with connection("<Q", capacity=8, start=start) as (one, other):
            with one.loan(8) as loan:
                assert len(loan.data) == 64
                loan.data[:] = b"".join(n.to_bytes(8, "little") for n in range(8))
                loan.shrink(size)
            assert other.recv_vectored() == [(n,) for n in range(size)]
            assert one.indices() == (start + size, start + size)


def test_a_loan_of_records_is_seen_as_bytes_unless_numpy_is_stated():
    with connection("<HH", capacity=8) as (one, other):
        with one.loan(2) as loan:
            assert (type(loan.data), len(loan.data), loan.data.format) == (memoryview, 8, "B")
            loan.data[:] = bytes([1, 0, 2, 0, 3, 0, 4, 0])
        with pytest.raises(KeyError), other.borrow() as lent:
            assert (type(lent.data), bytes(lent.data)) == (
                memoryview,
                bytes([1, 0, 2, 0, 3, 0, 4, 0]),
            )
            raise KeyError
        assert other.recv_vectored() == [(1, 2), (3, 4)]


def test_numbers_can_be_lent():
    with connection(np.dtype("<f8"), capacity=4) as (one, other):
        with one.loan(3) as loan:
            loan.data[:] = [1.5, 2.5, 3.5]
        with other.borrow() as lent:
            assert lent.data.sum() == 7.5


@pytest.mark.parametrize("how", ["take", "cancel", "raise", "leave a view"])
def test_records_held_after_an_interrupt_are_lent_first_and_lost_by_nothing(how):
    with connection("<Q", capacity=8) as (one, other):
        one.xmit_many([(n,) for n in range(4)])
        it = other._endpoint.receiver
        it.pull(1)
        left = None
        with contextlib.suppress(KeyError, LoanError), other.borrow() as lent:
            assert bytes(lent.data) == bytes(8)
            if how == "cancel":
                lent.cancel()
            elif how == "raise":
                raise KeyError
            elif how == "leave a view":
                left = lent.data[:1]
        del left
        taken = 1 if how == "take" else 0
        assert other.recv_vectored() == [(n,) for n in range(taken, 4)]


def test_lent_memory_is_the_rings_own():
    # No copy: what is written into a loan stands in the segment at once.
    with connection(capacity=4096) as (one, _), one.loan(7) as loan:
        loan.data[:] = b"in place"[:7]
        from ipcqueue._core import ffi

        mapping = one._endpoint._own.mapping
        segment = ffi.buffer(mapping.at, mapping.size)
        assert segment[4096 + HEADER : 4096 + HEADER + 7] == b"in plac"
        assert extent(7) == 32
        loan.cancel()


def test_one_way_ends_lend_only_what_they_have():
    sender, receiver = ipcqueue.pair(bytes)
    with sender, receiver:
        assert not hasattr(sender, "borrow")
        assert not hasattr(receiver, "loan")
        with sender.loan(2) as loan:
            loan.data[:] = b"ab"
        with receiver.borrow() as (message,):
            assert message.data == b"ab"
    assert memenpsf.LoanError is ipcqueue.LoanError
