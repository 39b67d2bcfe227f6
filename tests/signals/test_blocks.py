"""Ctrl-C on the way into and out of a block, in a program that goes on with the same connection.

The program has a name for the block and keeps the exception, and so every frame that this has passed
through: nothing is given back because somebody forgets it.
"""

from functools import partial

import numpy as np
import pytest

from tests.kit import places
from tests.kit.connected import connection, quick_collector  # noqa: F401 (the fixture)
from tests.kit.places import STEP, Interrupt, interrupt

# Places in fdpass are for its own tests.
at_every_place = partial(places.at_every_place, apart=["/fdpass/"])
at_every_pair = partial(places.at_every_pair, apart=["/fdpass/"])

# In no file of the tests, so that places in it count: the steps of `with` itself, too.
PROGRAM = compile(
    """
def program(block, use):
    with block as it:
        use(it)
    return True
""",
    "<the program>",
    "exec",
)
NAMES = {}
exec(PROGRAM, NAMES)
program = NAMES["program"]

FOUR = b"".join(n.to_bytes(8, "little") for n in range(4))
MESSAGES = (b"first", b"second" * 20, b"")


class Failed(Exception):
    """What a block raises of its own accord."""


class Block:
    """A block at one side of a connection, new for each place."""

    spec, capacity, start = "<Q", 8, 0
    sent = (0, 1, 2, 3)
    record = 99

    def __init__(self, ending):
        self.ending = ending
        self.connection = None

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        if self.connection is not None:
            self.connection.__exit__(None, None, None)
        self.connection = self.block = self.error = None

    def __call__(self):
        self.__exit__()
        self.connection = connection(self.spec, capacity=self.capacity, start=self.start)
        self.one, self.other = self.connection.__enter__()
        self.seen = None
        self.block = self.made()

    def run(self):
        try:
            return program(self.block, self.use)
        except Failed:
            return False
        except Interrupt as error:
            self.error = error  # and all of its frames
            return None

    def use(self, it):
        self.act(it)
        if self.ending == "raises":
            raise Failed
        if self.ending != "ends":
            getattr(it, self.ending)()

    def drained(self):
        got = []
        while (record := self.other.recv(timeout=0)) is not None:
            got.append(record[0] if isinstance(record, tuple) else record)
        return got

    def goes_on(self):
        """The connection is used as if nothing had happened."""
        record = self.record if isinstance(self.record, bytes) else (self.record,)
        self.one.xmit(record, timeout=0)
        assert self.drained() == [self.record]
        with self.one.loan(1, timeout=0) as loan:
            self.fill(loan)
        with self.other.borrow(timeout=0) as lent:
            assert len(lent) > 0
        assert self.other.recv(timeout=0) is None
        assert len(set(self.one.indices())) == 1


class Loaned(Block):
    def made(self):
        return self.one.loan(4, timeout=0)

    def act(self, loan):
        loan.data[:] = FOUR

    def fill(self, loan):
        loan.data[:] = FOUR[:8]

    def check(self, result):
        got = self.drained()
        done = self.ending in ("ends", "publish")
        if result is not None:
            assert got == ([*self.sent] if done else [])
        assert got in (([], [*self.sent]) if done else ([],))
        self.goes_on()


class Wrapped(Loaned):
    """A loan where the ring wraps around, which is put together when it is published."""

    start = 6


class Array(Loaned):
    spec = np.dtype([("n", "<u8")])

    def act(self, loan):
        loan.data["n"] = range(4)

    def fill(self, loan):
        loan.data["n"] = 0

    def drained(self):
        return [int(n) for n in self.other.recv_vectored(timeout=0)["n"]]

    def goes_on(self):
        self.one.xmit(np.array([(99,)], self.spec)[0], timeout=0)
        assert self.drained() == [99]
        with self.one.loan(1, timeout=0) as loan:
            self.fill(loan)
        assert self.drained() == [0]


class LoanedMessage(Loaned):
    spec, capacity, sent, record = bytes, 4096, (b"1234",), b"another"

    def act(self, loan):
        loan.data[:] = b"1234"

    def fill(self, loan):
        loan.data[:] = b"1"


class Borrowed(Block):
    def made(self):
        self.one.xmit_many([(n,) for n in range(4)])
        return self.other.borrow(timeout=0)

    def act(self, lent):
        self.seen = [
            int.from_bytes(lent.data[n : n + 8], "little") for n in range(0, len(lent.data), 8)
        ]

    def fill(self, loan):
        loan.data[:] = FOUR[:8]

    def check(self, result):
        got, seen = self.drained(), self.seen or []
        done = self.ending == "ends"
        if result is not None:
            assert (seen + got if done else got) == [*self.sent]
        assert got == [*self.sent] or (done and seen + got == [*self.sent])
        self.goes_on()


class Held(Borrowed):
    """What an earlier call has taken out of the ring already."""

    def made(self):
        super().made()
        self.other._endpoint.receiver.pull(2)
        return self.other.borrow(1, timeout=0)  # not all of that


class BorrowedMessages(Borrowed):
    spec, capacity, sent, record = bytes, 4096, MESSAGES, b"another"

    def made(self):
        self.one.xmit_many(MESSAGES)
        return self.other.borrow(timeout=0)

    def act(self, lent):
        self.seen = [bytes(message.data) for message in lent]

    def fill(self, loan):
        loan.data[:] = b"1"


class HeldMessages(BorrowedMessages):
    def made(self):
        block = super().made()
        self.other._endpoint.receiver.prepare(2)
        return block


class Nothing(Borrowed):
    """A block for which nothing has come in time."""

    sent = ()

    def made(self):
        return self.other.borrow(timeout=0)


LOANS = [Loaned, Wrapped, Array, LoanedMessage]
BORROWINGS = [Borrowed, Held, BorrowedMessages, HeldMessages, Nothing]
CASES = [
    *((kind, ending) for kind in LOANS for ending in ("ends", "raises", "cancel", "publish")),
    *((kind, ending) for kind in BORROWINGS for ending in ("ends", "raises", "cancel")),
]
of_each = pytest.mark.parametrize(
    ("kind", "ending"), CASES, ids=[f"{kind.__name__} {ending}" for kind, ending in CASES]
)


@of_each
def test_an_exception_anywhere_leaves_nothing_lent(kind, ending):
    with kind(ending) as block:
        assert at_every_place(block, block.run, interrupt, block.check) > 20


@pytest.mark.parametrize("kind", [Loaned, LoanedMessage, Held, BorrowedMessages, HeldMessages])
def test_what_is_published_or_taken_is_so_once_wherever_its_end_is_struck(kind):
    """The end begins again, once the memory is the peer's or the application's."""
    with kind("ends") as block:
        block()
        ring_end, strikes = block.block._ring_end, [True]
        forget = ring_end._forget

        def struck():
            if strikes:
                strikes.pop()
                raise Interrupt
            forget()

        ring_end._forget = struck
        assert block.run() is None
        assert block.error is not None
        assert strikes == []
        done = block.drained()
        assert (block.seen or []) + done == [*block.sent]
        del ring_end._forget
        block.goes_on()


@of_each
def test_two_exceptions_leave_nothing_lent(kind, ending):
    step, first = 1 if STEP == 1 else 13, CASES.index((kind, ending))
    with kind(ending) as block:
        assert at_every_pair(block, block.run, interrupt, block.check, first, step) > 3
