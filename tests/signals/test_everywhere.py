"""Each verb with each thing that a signal handler may do, at every place where one may run.

A handler raises, or uses the same end, or closes it.  Whatever it does and wherever: what was there
is received once and in order, and a record is sent or not sent.  What a second exception does, while
the first is being recovered from, is in test_strikes.py; what goes along with messages, in
test_messages.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import itertools
from typing import NamedTuple

import numpy as np
import pytest

import memenpsf
from memenpsf import Closed, ConcurrentUse, Encoded, EndOfStream, Message
from tests.kit.places import STEP, at_every_place, interrupt, mishap

pytestmark = [
    pytest.mark.deadline(120),
    # What an exception keeps from being closed is closed by the collector, which says so.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

DTYPE = np.dtype([("number", "<u8")])
CAPACITY = 8


@dataclasses.dataclass
class Tick:
    """It cannot be encoded again as it was, as its fields are not all that it is."""

    number: memenpsf.u64

    def __post_init__(self):
        self.half = self.number / 2


class Kind(NamedTuple):
    """A spec; a record with this number; the number of a record."""

    spec: object
    make: object
    number: object


def little(n):
    return n.to_bytes(8, "little")


def from_little(data):
    return int.from_bytes(data, "little")


KINDS = {
    "bytes of one size": Kind(8, little, from_little),
    "tuples": Kind("<Q", lambda n: (n,), lambda record: record[0]),
    "dataclass": Kind(Tick, Tick, lambda record: record.number),
    "arrays": Kind(DTYPE, lambda n: np.array([(n,)], DTYPE)[0], lambda record: int(record[0])),
    "messages": Kind(bytes, little, from_little),
    "tagged": Kind(Message, lambda n: Message(little(n), n, n % 256), lambda it: it.tag),
    "Encoded": Kind(Encoded(little, from_little), int, int),
}
OF_ONE_SIZE = ("bytes of one size", "tuples", "dataclass", "arrays")


class Scene:
    """A connection, new for each place, and what its two sides do; `sees` is what a block saw."""

    def __init__(self, name, held=False):
        self.kind, self.name, self.held = KINDS[name], name, held

    def __call__(self):
        # Near the end of the ring, so that a batch goes on at its beginning.
        self.one, self.other = memenpsf.pair(
            self.kind.spec, capacity=CAPACITY if self.name in OF_ONE_SIZE else 4096
        )
        for n in range(CAPACITY - 3):
            self.one.xmit(self.kind.make(n))
            self.other.recv()
        self.saw = []

    def fill(self):
        """Have five records to receive, of which a loop that was left may have taken some."""
        self()
        self.one.xmit_many(self.records(range(4)))
        if self.held:
            assert self.kind.number(next(iter(self.other))) == 0
        self.one.xmit(self.kind.make(4))
        self.expected = list(range(1 if self.held else 0, 5))

    def records(self, numbers):
        records = [self.kind.make(n) for n in numbers]
        return np.array(records, DTYPE) if self.name == "arrays" else records

    def left(self):
        gc.collect()  # the exception is gone, and a block that it kept from ending with it
        got = []
        while (record := self.other.recv(timeout=0)) is not None:
            got.append(self.kind.number(record))
        return got

    def works(self):
        self.one.xmit(self.kind.make(99), timeout=0)
        assert self.left() == [99]
        assert len(set(self.one.indices())) == 1

    def close(self):
        self.one.close()
        self.other.close()

    def close_one(self):
        self.one.close()

    def close_other(self):
        self.other.close()

    # -- what can be done: each returns the numbers of what it received, or how many it sent ------

    def recv(self):
        record = self.other.recv(timeout=0)
        return [] if record is None else [self.kind.number(record)]

    def recv_vectored(self, limit=None):
        return [self.kind.number(record) for record in self.other.recv_vectored(limit, timeout=0)]

    def recv_two(self):
        return self.recv_vectored(2)

    def recv_message(self):
        received = self.other.recv_message(timeout=0)
        return [] if received is None else [self.kind.number(received.record)]

    def loop(self):
        seen = self.saw = []
        for record in self.other:
            seen += (self.kind.number(record),)  # in one step
            if len(seen) == 2:
                break
        return seen

    def borrow(self, limit=None):
        with self.other.borrow(limit, timeout=0) as lent:
            if self.name in OF_ONE_SIZE:
                data = bytes(lent.data)
                seen = [from_little(data[at : at + 8]) for at in range(0, len(data), 8)]
            else:
                seen = [from_little(bytes(message.data)) for message in lent]
            self.saw = seen
        return seen

    def borrow_one(self):
        return self.borrow(1)

    def xmit(self, numbers=range(1)):
        for n in numbers:
            self.one.xmit(self.kind.make(n), timeout=0)
        return len(numbers)

    def xmit_many(self, numbers=range(4)):
        return self.one.xmit_many(self.records(numbers), timeout=0)

    def loan(self, numbers=range(1)):
        (number,) = numbers
        size = 1 if self.name in OF_ONE_SIZE else 8
        options = {"tag": number} if self.name == "tagged" else {}
        with self.one.loan(size, timeout=0, **options) as loan:
            if self.name == "arrays":
                loan.data[:] = number
            else:
                loan.data[:] = little(number)
        return 1


RECEIVING = ["recv", "recv_vectored", "recv_two", "recv_message", "loop", "borrow", "borrow_one"]
SENDING = ["xmit", "xmit_many", "loan"]
kinds = pytest.mark.parametrize("name", KINDS)
receiving = pytest.mark.parametrize("verb", RECEIVING)
sending = pytest.mark.parametrize("verb", SENDING)


def steps(*what):
    """Return where to begin and how far to go on: each case passes over other places."""
    return sum(map(len, what)), min(STEP, 3)


@kinds
@receiving
@pytest.mark.parametrize("held", [False, True], ids=["", "some taken by a loop"])
@pytest.mark.parametrize("strike", [interrupt, mishap])
def test_an_exception_in_receiving_loses_and_doubles_nothing(name, verb, held, strike):
    scene = Scene(name, held)

    def check(result):
        left = scene.left()
        if result is not None or verb == "loop":
            assert (scene.saw if verb == "loop" else result) + left == scene.expected
        else:  # of a block that had ended well, nobody tells
            assert left == scene.expected or (
                verb.startswith("borrow") and scene.saw + left == scene.expected
            )
        scene.works()
        scene.close()

    at_every_place(scene.fill, getattr(scene, verb), strike, check, *steps(name, verb, str(held)))


@kinds
@receiving
@pytest.mark.parametrize("handlers", ["recv", "recv_two", "recv_message", "borrow_one"])
def test_a_handler_that_receives_in_receiving_takes_other_records(name, verb, handlers):
    scene, by_handler, shown = Scene(name), [], []

    def handler():
        saw, got = scene.saw, []
        with contextlib.suppress(ConcurrentUse):  # memory is lent: nothing is taken
            got = getattr(scene, handlers)()
        scene.saw = saw
        by_handler.extend(got)

    def receive():
        with contextlib.suppress(ConcurrentUse):
            shown[:] = getattr(scene, verb)()

    def check(_):
        parts = [list(shown), list(by_handler), scene.left()]
        for part in parts:
            assert part == sorted(part)
        assert sorted(itertools.chain(*parts)) == scene.expected
        shown.clear()
        by_handler.clear()
        scene.works()
        scene.close()

    at_every_place(scene.fill, receive, handler, check, *steps(name, verb, handlers))


@kinds
@receiving
def test_closing_in_receiving_gives_the_first_or_says_so(name, verb):
    scene = Scene(name)

    def receive():
        with contextlib.suppress(Closed):
            return getattr(scene, verb)()
        return None

    def check(result):
        got = scene.saw if verb == "loop" else result or []
        assert got == scene.expected[: len(got)]
        gc.collect()
        scene.close()

    at_every_place(scene.fill, receive, scene.close_other, check, *steps(name, verb))


@kinds
@sending
@pytest.mark.parametrize("strike", [interrupt, mishap])
def test_an_exception_in_sending_means_sent_or_not_sent(name, verb, strike):
    scene = Scene(name)

    def check(result):
        got = scene.left()
        whole = list(range(4 if verb == "xmit_many" else 1))
        assert got == whole[: len(got)]
        assert result is None or len(got) == result == len(whole)
        scene.works()
        scene.close()

    at_every_place(scene, getattr(scene, verb), strike, check, *steps(name, verb))


@kinds
def test_an_exception_in_sending_more_than_fits_means_that_the_first_were_sent(name):
    scene = Scene(name)
    before = CAPACITY - 4 if name in OF_ONE_SIZE else 4096 // 32 - 4
    ours = range(before, before + 7)

    def prepare():
        scene()
        scene.one.xmit_many(scene.records(range(before)))

    def check(result):
        got = scene.left()
        assert got == list(range(len(got)))
        assert result in (None, 4)
        assert before <= len(got) <= before + 4
        assert result is None or len(got) == before + 4
        scene.works()
        scene.close()

    at_every_place(prepare, lambda: scene.xmit_many(ours), interrupt, check, *steps(name))


@kinds
@sending
@pytest.mark.parametrize("handlers", SENDING)
def test_a_handler_that_sends_in_sending_disturbs_nothing(name, verb, handlers):
    scene, done, ours = Scene(name), [], []
    theirs = range(100, 103) if handlers == "xmit_many" else range(100, 101)

    def handler():
        with contextlib.suppress(ConcurrentUse):  # memory is lent: nothing is sent
            done.append(getattr(scene, handlers)(theirs))

    def send():
        with contextlib.suppress(ConcurrentUse):
            ours.append(getattr(scene, verb)())

    def check(_):
        got = scene.left()
        assert [n for n in got if n < 100] == list(range(sum(ours)))
        assert [n for n in got if n >= 100] == list(theirs)[: sum(done)]
        assert verb == "loan" or sum(ours) == (4 if verb == "xmit_many" else 1)
        done.clear()
        ours.clear()
        scene.works()
        scene.close()

    at_every_place(scene, send, handler, check, *steps(name, verb, handlers))


@kinds
@sending
def test_closing_in_sending_is_sent_or_closed(name, verb):
    scene = Scene(name)

    def send():
        with contextlib.suppress(Closed):
            return getattr(scene, verb)()
        return None

    def check(result):
        got = []
        scene.one.close()  # where nothing has
        with contextlib.suppress(EndOfStream):
            while True:
                got += scene.recv()
        whole = list(range(4 if verb == "xmit_many" else 1))
        assert got == whole[: len(got)]
        assert not result or len(got) == result
        gc.collect()
        scene.close()

    at_every_place(scene, send, scene.close_one, check, *steps(name, verb))
