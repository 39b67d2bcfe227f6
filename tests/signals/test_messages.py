"""Messages of every kind, with what goes along: a handler at every place of each verb."""

import contextlib
import gc
from functools import partial

import pytest

import fdpass
import memenpsf
from ipcqueue import Encoded
from memenpsf import Interface
from tests.kit import places
from tests.kit.attached import numbers, open_descriptors
from tests.kit.connected import connection, inode, quick_collector  # noqa: F401 (the fixture)
from tests.kit.hostile import HEADER, MAX_OUTSIDE
from tests.kit.places import STEP, Interrupt, Mishap, interrupt


@pytest.fixture(scope="module")
def files():
    """Eight open files that can be told apart."""
    with numbers(*range(8)) as files:
        yield files


@pytest.fixture(autouse=True)
def _files_come_first(files):
    """Open before conftest counts; and for every test, whether it asks or not."""


# Places in fdpass are for its own tests.
at_every_place = partial(places.at_every_place, apart=["/fdpass/"])


def only_bytes(records):
    return [(record, None, None) for record in records or [] if record is not None]


def unpacked(message):
    """(bytes, inodes of descriptors, contents of regions)."""
    with contextlib.closing(message):
        fds = [inode(fd) for fd in message.fds]
        return message.record, fds, [bytes(region.buffer) for region in message.regions]


class Borrowing:
    """Borrows; what its block has seen is taken only if the block ended well."""

    def __init__(self, limit):
        self.limit, self.seen = limit, []

    def __call__(self, endpoint):
        self.seen = []
        with Interface.of(endpoint).borrow(self.limit, timeout=0) as messages:
            seen = self.seen = [bytes(message.data) for message in messages]
        return seen


# How to receive, and how to show what came.
RECEIVING = {
    "recv": (lambda endpoint: endpoint.try_pop(), lambda it: only_bytes([it])),
    "recv_vectored": (lambda endpoint: endpoint.try_pop_many(9), only_bytes),
    "recv_vectored of two": (lambda endpoint: endpoint.try_pop_many(2), only_bytes),
    "recv_message": (
        lambda endpoint: endpoint.try_receive(),
        lambda it: [] if it is None else [unpacked(it)],
    ),
    "borrow": (Borrowing(9), only_bytes),
    "borrow of two": (Borrowing(2), only_bytes),
}


def round_trip(one, other, data):
    one.xmit(data, timeout=0)
    assert other.recv(timeout=0) == data


class Prepared:
    """A connection in which messages of every kind wait, new for each place.

    The first of them is number `first`; `held` are built before.
    """

    def __init__(self, files, first=0, held=0):
        self.files, self.first, self.held = files, first, held
        self.before = open_descriptors()
        self.undo = contextlib.ExitStack()

    def __call__(self):
        sides = connection(capacity=4096, accept=memenpsf.Accept(fds=2))
        self.one, self.other = self.undo.enter_context(sides)
        round_trip(
            self.one, self.other, b"known" * 1000
        )  # so one of the two comes without a region
        messages = [
            (b"plain", [], []),
            (b"two", self.files[:2], []),
            (b"large" * 1000, [], []),
            (b"region", [], [b"r" * 100]),
            (b"large" * 999, self.files[2:4], [b"q"]),
        ]
        self.expected = []
        for data, fds, contents in messages[self.first :] + messages[: self.first]:
            with contextlib.ExitStack() as closing:
                regions = [closing.enter_context(region_of(each)) for each in contents]
                self.one.xmit(data, fds=fds, regions=regions)
            self.expected.append((data, list(map(inode, fds)), contents))
        receiver = self.other._endpoint.receiver
        if self.held:
            receiver.prepare(self.held)
            while receiver.lacking is not None:
                self.other._endpoint.read_more()
                receiver.prepare(self.held)

    def left(self):
        got = []
        while (message := self.other.recv_message(timeout=0)) is not None:
            got.append(unpacked(message))
        return got

    def check_space(self):
        """What was taken is free, and there is space for all of the ring; outside of it, too."""
        round_trip(self.one, self.other, b"")
        large = [bytes([n]) * 5000 for n in range(MAX_OUTSIDE)]
        assert self.one.xmit_many(large, timeout=0) == MAX_OUTSIDE
        assert self.other.recv_vectored(timeout=0) == large
        assert len(set(self.one.indices())) == 1

    def close(self):
        self.undo.close()
        assert open_descriptors() == self.before


def region_of(data):
    region = fdpass.MemoryRegion.create(len(data))
    region.buffer[:] = data
    return region


def matches(got, expected):
    """Whether these are the messages; what was not shown, or was given up, may be missing."""
    return len(got) == len(expected) and all(
        g[0] == e[0] and g[1] in (None, [], e[1]) and g[2] in (None, [], e[2])
        for g, e in zip(got, expected, strict=True)
    )


# What to receive, which of the messages comes first, and how many are built before.
SITUATIONS = [
    *((how, first, 0) for how in ("recv", "recv_message") for first in range(5)),
    *((how, first, 3) for how in ("recv", "recv_message") for first in (1, 4)),
    *(
        (how, 0, held)
        for how in RECEIVING
        if how not in ("recv", "recv_message")
        for held in (0, 3)
    ),
    *((how, 3, held) for how in ("recv_vectored", "borrow") for held in (1, 5)),
]

# What an interrupt keeps from being closed is closed by the collector, which says so.
interrupted = pytest.mark.filterwarnings("ignore::ResourceWarning")


@interrupted
@pytest.mark.parametrize(("how", "first", "held"), SITUATIONS)
def test_an_exception_anywhere_in_receiving_neither_loses_nor_doubles(files, how, first, held):
    prepared = Prepared(files, first, held)
    call, show = RECEIVING[how]
    touched = {"recv": 1, "recv_message": 0}.get(how, 2 if "two" in how else 5)

    def check(result):
        gc.collect()  # the exception is gone, and a block that it kept from ending with it
        left, got = prepared.left(), show(result)
        if result is None and "borrow" in how and len(left) < 5:
            got = only_bytes(call.seen)  # it struck after the block had ended well
        assert matches(got + left, prepared.expected)
        untouched = prepared.expected[max(touched, len(got)) :]
        assert left[len(left) - len(untouched) :] == untouched
        prepared.check_space()
        prepared.close()

    def receive():
        return call(prepared.other._endpoint)

    step = STEP if touched > 1 else 1
    # The fast path is short: recv of what waits is a single step of a loop.
    least = 0 if how in ("recv", "recv_message") and first == 0 else 6
    assert at_every_place(prepared, receive, interrupt, check, first + held, step) >= least


HANDLING = [
    ("recv", "recv"),
    ("recv", "recv_vectored"),
    ("recv_message", "recv_message"),
    ("recv_message", "borrow"),
    ("recv_vectored", "recv"),
    ("recv_vectored", "recv_vectored"),
    ("recv_vectored", "borrow of two"),
    ("borrow", "recv_message"),
    ("borrow", "recv_vectored of two"),
    ("borrow", "borrow"),
]


@interrupted
@pytest.mark.parametrize(("how", "handlers"), HANDLING)
def test_a_handler_that_receives_anywhere_in_receiving_takes_other_messages(files, how, handlers):
    prepared = Prepared(files, first=1)
    (call, show), (handlers_call, handlers_show) = RECEIVING[how], RECEIVING[handlers]
    by_handler = []

    def handler():
        with contextlib.suppress(memenpsf.ConcurrentUse):  # memory is lent: nothing is taken
            by_handler.extend(handlers_show(handlers_call(prepared.other._endpoint)))

    def receive():
        with contextlib.suppress(memenpsf.ConcurrentUse):
            return call(prepared.other._endpoint)

    def check(result):
        shown = [show(result), list(by_handler), prepared.left()]
        by_handler.clear()
        order = [each[0] for each in prepared.expected]
        places = [[order.index(each[0]) for each in got] for got in shown]
        for got in places:
            assert got == sorted(got)
        assert sorted(place for got in places for place in got) == list(range(5))
        prepared.check_space()
        prepared.close()

    first = HANDLING.index((how, handlers))
    step = 1 if how in ("recv", "recv_message") else STEP
    assert at_every_place(prepared, receive, handler, check, first, step) > 1


@interrupted
@pytest.mark.parametrize("how", RECEIVING)
def test_closing_anywhere_in_receiving_loses_no_descriptor(files, how):
    prepared = Prepared(files, first=1)
    call, show = RECEIVING[how]

    def receive():
        with contextlib.suppress(memenpsf.Closed):
            return call(prepared.other._endpoint)

    def check(result):
        got = show(result)
        assert matches(got, prepared.expected[: len(got)])
        gc.collect()
        prepared.close()

    def close():
        prepared.other.close()

    step = 1 if how in ("recv", "recv_message") else STEP
    first = list(RECEIVING).index(how)
    assert at_every_place(prepared, receive, close, check, first, step) > 1


def lend(side, data):
    with side.loan(len(data), timeout=0) as loan:
        loan.data[:] = data
    return True


SENDING = {
    "xmit": (lambda side, it: side.xmit(b"message", timeout=0) or True, [b"message"]),
    "xmit of a bytearray": (
        lambda side, it: side.xmit(bytearray(b"message"), timeout=0) or True,
        [b"message"],
    ),
    "xmit of a large one": (
        lambda side, it: side.xmit(b"large" * 999, timeout=0) or True,
        [b"large" * 999],
    ),
    "xmit of a large one again": (
        lambda side, it: side.xmit(b"again" * 999, timeout=0) or True,
        [b"again" * 999],
    ),
    "xmit with descriptors": (
        lambda side, it: side.xmit(b"two", timeout=0, fds=it.files[:2]) or True,
        [b"two"],
    ),
    "xmit with a region": (
        lambda side, it: side.xmit(b"r", timeout=0, regions=[it.region], fds=it.files[:1]) or True,
        [b"r"],
    ),
    "xmit_many": (
        lambda side, it: side.xmit_many([b"1", b"2" * 5000, b"3", b"4"], timeout=0),
        [b"1", b"2" * 5000, b"3", b"4"],
    ),
    "loan": (lambda side, it: lend(side, b"lent"), [b"lent"]),
}
ATTACHED = {b"two": (2, 0), b"r": (1, 1)}  # how many descriptors and regions go with these


class PreparedToSend(Prepared):
    """A connection in which nothing waits; `known`: where a large message came before."""

    def __init__(self, files, *, known=False):
        super().__init__(files)
        self.known = known

    def __call__(self):
        self.one, self.other = self.undo.enter_context(
            connection(
                capacity=4096, accept=memenpsf.Accept(fds=2), start=4096 - (4 + self.known) * HEADER
            )
        )
        if self.known:
            round_trip(self.one, self.other, b"known" * 999)
        self.region = region_of(b"content")

    def arrived(self):
        got = self.left()
        for data, fds, contents in got:
            count, regions = ATTACHED.get(data, (0, 0))
            assert fds == list(map(inode, self.files[:count]))
            assert contents == [b"content"] * regions
        self.check_space()
        return [each[0] for each in got]

    def close(self):
        self.region.close()
        super().close()


@interrupted
@pytest.mark.parametrize("how", SENDING)
def test_an_exception_anywhere_in_sending_means_sent_or_not_sent(files, how):
    prepared = PreparedToSend(files, known="again" in how)
    call, sent = SENDING[how]

    def check(result):
        gc.collect()
        prepared.one.xmit(b"next", timeout=0)
        *got, last = prepared.arrived()
        assert last == b"next"
        assert got == sent[: len(got)]
        # Only a batch can be sent in part.
        possible = {len(sent)} if result else {0, len(sent)}
        assert len(got) in possible or (how == "xmit_many" and not result)
        prepared.close()

    def send():
        return call(prepared.one, prepared)

    assert at_every_place(prepared, send, interrupt, check) > 0


@interrupted
@pytest.mark.parametrize("how", SENDING)
@pytest.mark.parametrize(
    "handlers",
    ["xmit", "xmit of a large one again", "xmit with descriptors", "xmit_many", "loan"],
)
def test_a_handler_that_sends_anywhere_in_sending_disturbs_nothing(files, how, handlers):
    prepared = PreparedToSend(files, known="again" in handlers + how)
    (call, sent), (handlers_call, sent_by_handler) = SENDING[how], SENDING[handlers]
    done = []

    def handler():
        with contextlib.suppress(memenpsf.ConcurrentUse):  # memory is lent: nothing is sent
            done.append(handlers_call(prepared.one, prepared))

    def send():
        return call(prepared.one, prepared)

    def check(result):
        got, expected = prepared.arrived(), [*sent, *(sent_by_handler if done else [])]
        assert sorted(got) == sorted(expected)
        for part in (sent, sent_by_handler if done else []):
            places = iter(got)  # in their order, whatever stands between them
            assert all(each in places for each in part)
        assert result
        done.clear()
        prepared.close()

    assert at_every_place(prepared, send, handler, check) > 0


@interrupted
@pytest.mark.parametrize("how", SENDING)
def test_closing_anywhere_in_sending_is_sent_or_closed(files, how):
    prepared = PreparedToSend(files, known="again" in how)
    call, sent = SENDING[how]

    def send():
        with contextlib.suppress(memenpsf.Closed):
            return call(prepared.one, prepared)

    def check(result):
        got = []
        with contextlib.suppress(memenpsf.EndOfStream):
            got += prepared.left()
        got = [each[0] for each in got]
        assert got == sent[: len(got)]
        gc.collect()
        prepared.close()

    assert at_every_place(prepared, send, lambda: prepared.one.close(), check) > 0  # noqa: PLW0108 (each time another)


class Once:
    """A decoder that does something before the n-th message that it decodes, once."""

    def __init__(self, number, action):
        self.number, self.action, self.decoded = number, action, []

    def __call__(self, data):
        self.decoded.append(data)
        if len(self.decoded) == self.number:
            self.action()
        return data


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("how", RECEIVING)
def test_an_interrupt_while_a_message_is_decoded_loses_nothing(files, number, how):
    decode = Once(number, interrupt)
    with connection(Encoded(bytes, decode), accept=memenpsf.Accept(fds=1)) as (one, other):
        for n in range(3):
            one.xmit(b"%d" % n, fds=files[n : n + 1])
        call, show = RECEIVING[how]
        got = []
        with contextlib.suppress(Interrupt):
            got += show(call(other._endpoint))
        assert got == [] or "borrow" in how or number > len(got)
        while len(got) < 3:
            with contextlib.suppress(Interrupt):
                got.append(unpacked(other.recv_message(timeout=0)))
        assert matches(got, [(b"%d" % n, [inode(files[n])], []) for n in range(3)])


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_decoder_may_receive_a_batch_by_itself(number):
    # As a signal handler may: what it takes is not given twice.
    inner = []
    decode = Once(number, lambda: inner.extend(other.recv_vectored(timeout=0)))
    with connection(Encoded(bytes, decode)) as (one, other):
        one.xmit_many([b"1", b"2", b"3"])
        outer = other.recv_vectored(timeout=0)
        outer += other.recv_vectored(timeout=0)
        assert sorted(inner + outer) == [b"1", b"2", b"3"]
        assert inner == sorted(inner)
        assert outer == sorted(outer)


@interrupted
def test_an_interrupt_and_then_fewer_messages_do_not_give_space_back_twice(monkeypatch):
    # What the ring was told of three messages stays told when only one of them is taken next.
    with connection(capacity=4096, inline=4096) as (one, other):
        one.xmit_many([b"1" * 1000, b"2" * 1000, b"3" * 1000])
        receiver = other._endpoint.receiver
        with monkeypatch.context() as patch, pytest.raises(Interrupt):
            patch.setattr(receiver, "many", lambda *_: ())  # the slow path
            patch.setattr(receiver, "_decoded", lambda *_: interrupt())
            other.recv_vectored(timeout=0)
        for n in range(2):  # into the space that is free
            one.xmit(b"%d" % n * 1000, timeout=0)
        assert other.recv(timeout=0) == b"1" * 1000
        assert one.xmit_many([b"4"], timeout=0) == 1
        left = [b"2" * 1000, b"3" * 1000, b"0" * 1000, b"1" * 1000, b"4"]
        assert other.recv_vectored() == left
        assert len(set(one.indices())) == 1


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("short", [True, False])
@pytest.mark.parametrize("verb", ["recv_vectored", "recv_message", "borrow"])
def test_what_a_handler_raises_is_raised_and_no_message_is_lost(files, verb, short):
    """Also once some messages of a batch are built: they wait for the next call."""
    undo, made, raised = contextlib.ExitStack(), [], []
    sent = [b"a", b"b" * 100, b"c" * 6000, b"d"]

    def prepare():
        raised.clear()
        made[:] = undo.enter_context(connection(capacity=4096, accept=memenpsf.Accept(fds=1)))
        one, _ = made
        for n, record in enumerate(sent):
            one.xmit(record, timeout=0, fds=[files[n]] if n % 2 == short else None)

    def handler():
        raised.append(True)
        raise Mishap

    def run():
        if verb == "borrow":
            with made[1].borrow(timeout=0) as messages:
                return [bytes(message.data) for message in messages]
        got = getattr(made[1], verb)(timeout=0)
        if verb == "recv_message":
            got = unpacked(got)[0]
        return got if verb == "recv_vectored" else [got]

    def check(result):
        assert result is None or not raised
        got = list(result or [])
        gc.collect()
        while (record := made[1].recv(timeout=0)) is not None:
            got.append(record)
        taken = raised and verb in ("borrow", "recv_message")  # the exception came after its end
        assert got == sent or (taken and got == sent[len(sent) - len(got) :])
        undo.close()

    places = at_every_place(prepare, run, handler, check, short, 1 if STEP == 1 else 3)
    assert places > (3 if short else 20)
