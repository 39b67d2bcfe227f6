"""The ring of records from Python: a pop that was cut short, and a handler at every place."""

import contextlib
import random
import signal
from functools import partial
from itertools import count

import pytest

from ipcqueue import BadRecord
from tests.kit.places import Interrupt, at_every_place, interrupt, mishap
from tests.kit.slots import Bad, codec_that, drained, numbers, once, packed, push_packed


class TestInterruptedPop:
    """An exception may strike between the core's copy and the delivery of what it copied."""

    def test_nothing_is_lost_after_one(self, ring):
        ring.push_numbers(1, 2, 3)
        assert ring.interrupted_pop() == 0
        assert not ring.receiver.arm()
        assert numbers(drained(ring.receiver)) == [1, 2, 3]
        assert ring.receiver.indices() == (3, 3)

    def test_nothing_is_lost_after_several_in_a_row(self, ring):
        ring.push_numbers(1, 2, 3)
        for _ in range(3):
            ring.interrupted_pop()
        assert numbers(ring.receiver.try_pop_many(4)) == [1, 2, 3]

    @pytest.mark.parametrize("taken", [1, 2, 4])
    @pytest.mark.parametrize("then", ["one by one", "in batches of 3", "all at once"])
    def test_nothing_is_lost_after_a_batch(self, ring, taken, then):
        ring.push_numbers(0)
        ring.receiver.try_pop_many(4)  # has room for batches from now on
        ring.push_numbers(1, 2, 3, 4)
        assert ring.interrupted_pop(taken) == 0
        for n in range(5, 5 + taken):
            ring.push_numbers(n)
        assert not ring.sender.try_push((99,))
        got = []
        if then == "one by one":
            got = drained(ring.receiver)
        else:
            limit = 3 if then == "in batches of 3" else 100
            while batch := ring.receiver.try_pop_many(limit):
                assert len(batch) <= 4
                got += batch
        assert numbers(got) == list(range(1, 5 + taken))

    def test_interrupts_and_calls_may_follow_each_other_in_any_order(self, make_ring):
        chance = random.Random(1)
        for _ in range(50):
            ring, serial, got = make_ring(), count(), []
            for _ in range(60):
                match chance.randrange(4):
                    case 0 | 1:
                        number = next(serial)
                        if not ring.sender.try_push((number,)):
                            got += drained(ring.receiver)
                            ring.push_numbers(number)
                    case 2:
                        ring.interrupted_pop(chance.randint(1, 4))
                    case 3 if chance.random() < 0.5:
                        record = ring.receiver.try_pop()
                        got += [] if record is None else [record]
                    case 3:
                        got += ring.receiver.try_pop_many(chance.randint(1, 4)) or []
            got += drained(ring.receiver)
            assert numbers(got) == list(range(next(serial)))

    def test_space_is_free_although_nothing_was_delivered(self, ring):
        ring.push_numbers(1, 2, 3, 4)
        ring.interrupted_pop()
        assert ring.sender.try_push((5,))
        assert numbers(drained(ring.receiver)) == [1, 2, 3, 4, 5]

    def test_room_for_a_batch_is_made_without_losing_what_is_held(self, make_ring):
        ring = make_ring(capacity=64)
        ring.push_numbers(*range(20))
        ring.interrupted_pop()
        assert numbers(ring.receiver.try_pop_many(64)) == list(range(20))

    def test_decoding_may_be_interrupted(self, ring):
        ring.open(codec_that(ring.codec, decode=once(interrupt)))
        ring.push_numbers(1, 2)
        with pytest.raises(Interrupt):
            ring.receiver.try_pop()
        assert numbers(drained(ring.receiver)) == [1, 2]

    def test_decoding_of_what_is_held_may_be_interrupted(self, ring):
        ring.open(codec_that(ring.codec, decode=once(interrupt)))
        ring.push_numbers(1, 2)
        ring.interrupted_pop()
        with pytest.raises(Interrupt):
            ring.receiver.try_pop()
        assert numbers(drained(ring.receiver)) == [1, 2]

    def test_decoding_of_a_batch_may_be_interrupted(self, ring):
        ring.open(codec_that(ring.codec, decode_many=once(interrupt)))
        ring.push_numbers(1, 2, 3)
        with pytest.raises(Interrupt):
            ring.receiver.try_pop_many(2)
        assert not ring.receiver.arm()
        ring.push_numbers(4)
        assert numbers(ring.receiver.try_pop_many(3)) == [1, 2, 3]
        assert ring.receiver.try_pop() == (4,)


class TestSignals:
    """A handler may raise, or use the same ends, wherever CPython lets it run."""

    def taking(self, receiver, how):
        """Return a function that takes once, as a list."""
        if how == "pop_many":
            return lambda: receiver.try_pop_many(3)
        return lambda: [record for record in [receiver.try_pop()] if record is not None]

    @pytest.fixture(params=["fresh", "something held", "batch held"])
    def prepared(self, ring, request):
        """Four records in the ring, of which some may have been taken and not delivered."""
        serial = count()

        def prepare():
            drained(ring.receiver)
            if request.param == "batch held":
                ring.receiver.try_pop_many(4)
            prepare.first = next(serial) * 4
            ring.push_numbers(*range(prepare.first, prepare.first + 4))
            if request.param != "fresh":
                ring.interrupted_pop(3 if request.param == "batch held" else 1)

        prepare.ring = ring
        return prepare

    @pytest.mark.parametrize("how", ["pop", "pop_many"])
    @pytest.mark.parametrize("exception", [interrupt, mishap])
    def test_an_exception_anywhere_in_a_pop_loses_nothing(self, prepared, how, exception):
        receiver = prepared.ring.receiver

        def check(result):
            got = numbers((result or []) + drained(receiver))
            assert got == list(range(prepared.first, prepared.first + 4))

        taking = self.taking(receiver, how)
        assert at_every_place(prepared, taking, exception, check) > 3

    @pytest.mark.parametrize("how", ["pop", "pop_many"])
    def test_an_exception_anywhere_loses_nothing_that_cannot_be_encoded_again(self, ring, how):
        # Such as a dataclass whose __post_init__ makes something of the fields.
        def cannot_encode(*arguments):
            raise BadRecord

        ring.open(ring.codec, to_receive=codec_that(ring.codec, encode=cannot_encode))

        def prepare():
            drained(ring.receiver)
            ring.push_numbers(0, 1, 2, 3)

        def check(result):
            assert numbers((result or []) + drained(ring.receiver)) == [0, 1, 2, 3]

        assert at_every_place(prepare, self.taking(ring.receiver, how), interrupt, check) > 3

    @pytest.mark.parametrize("how", ["pop", "pop_many"])
    @pytest.mark.parametrize("handlers", ["pop", "pop_many", "pop twice"])
    def test_a_handler_that_pops_anywhere_in_a_pop_takes_other_records(
        self, prepared, how, handlers
    ):
        receiver = prepared.ring.receiver
        by_handler = []

        def handler():
            for verb in ["pop", "pop"] if handlers == "pop twice" else [handlers]:
                by_handler.extend(self.taking(receiver, verb)())

        def check(result):
            both, by_handler[:] = [numbers(result), numbers(by_handler)], []
            for each in both:
                assert each == sorted(each)
            got = sorted(both[0] + both[1]) + numbers(drained(receiver))
            assert got == list(range(prepared.first, prepared.first + 4))

        assert at_every_place(prepared, self.taking(receiver, how), handler, check) > 3

    @pytest.mark.parametrize("how", ["push", "push_many"])
    @pytest.mark.parametrize("handlers", ["push", "push_many"])
    def test_a_handler_that_pushes_anywhere_in_a_push_disturbs_nothing(
        self, make_ring, how, handlers
    ):
        ring = make_ring(capacity=8)

        def pushing(how, first):
            if how == "push":
                return int(ring.sender.offer_slowly((first,)) is None)
            return push_packed(ring.sender, packed(first, first + 1, first + 2), 3)

        done = []

        def check(result):
            handlers_done, done[:] = list(done), []
            got = numbers(drained(ring.receiver))
            ours = [n for n in got if n < 100]
            assert ours == list(range(result))
            assert result == (1 if how == "push" else 3)
            assert [n for n in got if n >= 100] == list(range(100, 100 + sum(handlers_done)))

        assert (
            at_every_place(
                lambda: None,
                lambda: pushing(how, 0),
                lambda: done.append(pushing(handlers, 100)),
                check,
            )
            > (3 if how == "push" else 1)  # a batch is one call of C
        )

    def test_an_exception_anywhere_in_a_push_means_done_or_not_done(self, ring):
        def prepare():
            drained(ring.receiver)

        def check(result):
            head, tail = ring.sender.indices()
            got = numbers(drained(ring.receiver))
            assert got == [7] * (head - tail)
            assert len(got) == 1 if result else len(got) <= 1

        assert (
            at_every_place(
                prepare, lambda: ring.sender.offer_slowly((7,)) is None, interrupt, check
            )
            > 3
        )

    @pytest.fixture
    def on_signal(self):
        """Install a handler of a real signal."""
        previous = signal.getsignal(signal.SIGUSR1)
        yield lambda handler: signal.signal(signal.SIGUSR1, lambda *_: handler())
        signal.signal(signal.SIGUSR1, previous)

    def raise_signal(self, *arguments):
        signal.raise_signal(signal.SIGUSR1)

    def pop_several(self, receiver, times, into):
        into.extend(receiver.try_pop() for _ in range(times))

    @pytest.mark.parametrize("held", [False, True])
    def test_a_real_handler_may_pop_while_a_record_is_decoded(self, make_ring, on_signal, held):
        for times in (1, 2, 3):
            ring, by_handler = make_ring(), []
            ring.open(codec_that(ring.codec, decode=once(self.raise_signal)))
            on_signal(partial(self.pop_several, ring.receiver, times, by_handler))
            ring.push_numbers(0, 1, 2, 3)
            if held:
                ring.interrupted_pop()
            both = numbers(drained(ring.receiver)), numbers(by_handler)
            for each in both:
                assert each == sorted(each)
            assert len(by_handler) == times
            assert sorted(both[0] + both[1]) == [0, 1, 2, 3]

    def test_a_real_handler_may_pop_before_a_record_fails_to_decode(self, ring, on_signal):
        def bad(data):
            raise Bad

        def signal_then_fail(data):
            self.raise_signal()
            bad(data)

        by_handler = []
        ring.open(codec_that(ring.codec, decode=once(signal_then_fail)))
        on_signal(partial(self.pop_several, ring.receiver, 3, by_handler))
        ring.push_numbers(0, 1, 2, 3)
        with contextlib.suppress(Bad):
            assert ring.receiver.try_pop() == (3,)
            ring.push_numbers(4)
        got = drained(ring.receiver)
        assert sorted(numbers(by_handler + got)) in ([0, 1, 2, 3], [0, 1, 2, 4])

    def test_a_real_handler_may_push_while_a_record_is_encoded_and_decoded(self, ring, on_signal):
        mine = count(100)
        on_signal(lambda: ring.push_numbers(next(mine)))
        noisy = codec_that(
            ring.codec, encode=once(self.raise_signal), decode=once(self.raise_signal)
        )
        ring.open(noisy)
        ring.push_numbers(0, 1)
        assert numbers(drained(ring.receiver)) == [100, 0, 1, 101]
