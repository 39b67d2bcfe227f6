"""Two exceptions of signal handlers, the second while the first is being recovered from.

And what else foreign code may do in the middle of a call: decoders that fail in odd ways, and
handlers that use the connection on which other threads wait.
"""

import contextlib
import dataclasses
import gc
import os
import signal
import threading
from pathlib import Path
from typing import ClassVar, NamedTuple

import pytest
from ipcqueue._direct import persist, persistent

import fdpass
import ipcqueue
import ipcqueue.lowlevel
import memenpsf
from memenpsf import Encoded, Interface, Message
from tests.kit.places import STEP, Interrupt, Mishap, at_every_pair, at_every_place, interrupt
from tests.kit.settling import settle

pytestmark = pytest.mark.deadline(120)  # thousands of runs each, beside others


@dataclasses.dataclass
class Tick:
    number: memenpsf.u64

    def __post_init__(self):
        self.half = self.number / 2


class Checked(NamedTuple):
    number: memenpsf.u64


def number_of(record):
    match record:
        case Tick(number) | (number,):
            return number
        case Message():
            return record.tag
    return int.from_bytes(record, "little") if isinstance(record, bytes) else int(record)


number_codec = Encoded(
    lambda n: n.to_bytes(8, "little"), lambda data: int.from_bytes(data, "little")
)
SPECS = {
    "dataclass": (Tick, Tick),
    "tuple": ("<Q", lambda n: (n,)),
    "raw": (8, lambda n: n.to_bytes(8, "little")),
    "numpy": ("numpy", int),
    "bytes": (bytes, lambda n: n.to_bytes(8, "little")),
    "Message": (Message, lambda n: Message(b"text", n)),
    "Encoded": (number_codec, int),
}


def spec_of(name):
    spec, record = SPECS[name]
    return (pytest.importorskip("numpy").dtype("u8") if spec == "numpy" else spec), record


def take_vectored(it):
    return list(it.recv_vectored(timeout=0))


def take_message(it):
    received = it.recv_message(timeout=0)
    return [] if received is None else [received.record]


def take_one(it):
    record = it.recv(timeout=0)
    return [] if record is None else [record]


class Loop:
    """Keeps what a loop has seen, as a program does."""

    def __call__(self, it):
        self.seen = []
        for each in it:
            self.seen += (each,)  # in one step
            if len(self.seen) == 2:
                break
        return self.seen


VERBS = {
    "recv": take_one,
    "recv_vectored": take_vectored,
    "recv_message": take_message,
}


class Prepared:
    """A connection with three records in it, new for each place."""

    def __init__(self, name, before=None):
        self.spec, self.record = spec_of(name)
        self.before = before

    def __call__(self):
        self.one, self.other = memenpsf.pair(self.spec, capacity=4096)
        self.one.xmit_many(list(map(self.record, range(4))))
        if self.before == "a loop was left":
            assert number_of(next(iter(self.other))) == 0
        else:
            self.one.xmit(self.record(4))

    def left(self):
        got = []
        while (record := self.other.recv(timeout=0)) is not None:
            got.append(number_of(record))
        return got

    def close(self):
        self.one.close()
        self.other.close()


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("before", [None, "a loop was left"])
def test_two_exceptions_anywhere_in_receiving_neither_lose_nor_double(name, verb, before):
    prepared = Prepared(name, before)
    start, end = (1, 4) if before else (0, 5)

    def check(result):
        got = [number_of(each) for each in result or []]
        assert got + prepared.left() == list(range(start, end))
        prepared.close()

    def receive():
        return VERBS[verb](prepared.other)

    first = len(name) + len(verb)
    at_every_pair(prepared, receive, interrupt, check, first, min(STEP, 3))


@pytest.mark.parametrize("name", SPECS)
def test_two_exceptions_anywhere_in_a_loop_neither_lose_nor_double(name):
    prepared, loop = Prepared(name), Loop()

    def check(_):
        assert [number_of(each) for each in loop.seen] + prepared.left() == list(range(5))
        prepared.close()

    at_every_pair(prepared, lambda: loop(prepared.other), interrupt, check)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # what the collector closes is closed, too
@pytest.mark.parametrize("verb", ["recv", "recv_vectored", "recv_message", "borrow"])
def test_two_exceptions_lose_and_double_no_descriptor(verb):
    def descriptors():
        return len(list(Path("/proc/self/fd").iterdir()))

    made, before = [], descriptors()

    def prepare():
        made[:] = memenpsf.pair(number_codec, capacity=4096, accept=memenpsf.Accept(fds=2))
        with Path("/dev/null").open() as null, fdpass.MemoryRegion.create(100) as region:
            for n in range(3):
                made[0].xmit(n, fds=[null.fileno()], regions=[region] if n == 1 else [])

    def receive():
        other = made[1]
        if verb == "recv_message":
            received = other.recv_message(timeout=0)
            with contextlib.closing(received):
                return [received.record]
        if verb == "borrow":
            with other.borrow(2, timeout=0) as lent:
                return [number_of(bytes(each.data)) for each in lent]
        return VERBS[verb](other)

    def check(result):
        gc.collect()
        got = []
        while (received := made[1].recv_message(timeout=0)) is not None:
            got.append(received.record)
            received.close()
        whole = list(range(3))
        # What a block that had ended well has seen, or a message that was being closed, is not told.
        assert (result or []) + got == whole or (result is None and got == whole[-len(got) :])
        assert verb in ("recv_message", "borrow") or (result or []) + got == whole
        for side in made:
            side.close()
        gc.collect()
        settle()  # threads of fdpass close what strangers gave
        assert descriptors() == before

    step = 1 if STEP == 1 else 7 if verb in ("recv", "recv_message") else 29
    assert at_every_pair(prepare, receive, interrupt, check, len(verb), step, ["/fdpass/"]) > 10


SENDING = {
    "xmit": (lambda it, fd: it.xmit(b"1", timeout=0), [b"1"]),
    "xmit with a descriptor": (lambda it, fd: it.xmit(b"1", timeout=0, fds=[fd]), [b"1"]),
    "xmit of a large one": (lambda it, fd: it.xmit(b"1" * 5000, timeout=0), [b"1" * 5000]),
    "xmit_many": (
        lambda it, fd: it.xmit_many([b"1", b"2" * 5000, bytearray(b"3")], timeout=0),
        [b"1", b"2" * 5000, b"3"],
    ),
    "loan": (None, [b"1234"]),
}


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("how", SENDING)
def test_two_exceptions_in_sending_mean_done_or_not_done(how):
    call, messages = SENDING[how]
    made = []

    def prepare():
        made[:] = memenpsf.pair(bytes, capacity=4096, accept=memenpsf.Accept(fds=1))

    def send():
        if call is not None:
            with Path("/dev/null").open() as null:
                return call(made[0], null.fileno())
        with made[0].loan(4, timeout=0) as loan:
            loan.data[:] = b"1234"
        return None

    def check(_):
        gc.collect()
        one, other = made
        got = []
        while (message := other.recv(timeout=0)) is not None:
            got.append(message)
        assert got == messages[: len(got)]
        for size in (10, 5000):  # it works as before
            one.xmit(bytes(size), timeout=0)
            assert other.recv(timeout=0) == bytes(size)
        one.close()
        other.close()

    step = 7 if STEP > 1 else 1
    at_every_pair(prepare, send, interrupt, check, len(how), step, ["/fdpass/"])


def test_two_exceptions_in_taking_a_control_message_neither_lose_nor_double():
    made = []

    def prepare():
        made[:] = memenpsf.pair(8)
        for n in range(3):
            made[0].send_ctrl_msg(bytes((128, n)))

    def check(result):
        got = [] if result is None else [result]
        while (message := made[1].recv_ctrl_msg(0)) is not None:
            got.append(message)
        assert got == [bytes((128, n)) for n in range(3)]
        for side in made:
            side.close()

    assert at_every_pair(prepare, lambda: made[1].recv_ctrl_msg(0), interrupt, check, 0, 3) > 10


def test_two_exceptions_in_a_wait_leave_nothing_behind():
    made = []

    def prepare():
        made[:] = memenpsf.pair(8, wait="sleep")

    def check(_):
        one, other = made
        endpoint = other._endpoint
        assert not endpoint.waiters.reading
        assert endpoint.waiters.counts == [0, 0, 0]
        assert not endpoint.waiters.followers
        assert endpoint.wire._users == 0
        one.xmit(bytes(8))
        assert other.recv(timeout=0) == bytes(8)
        for side in made:
            side.close()
        assert endpoint._released
        assert endpoint.wire.released

    step = 29 if STEP > 1 else 1
    at_every_pair(prepare, lambda: made[1].recv(0.0005), interrupt, check, 0, step)


def test_two_exceptions_in_closing_leave_it_closed():
    made = []

    def prepare():
        made[:] = memenpsf.pair(8)

    def check(_):
        one, other = made
        if other.closed:
            assert other._endpoint.wire.released
            assert other._endpoint._released
        other.close()
        with pytest.raises(memenpsf.EndOfStream):
            one.recv(timeout=5)
        one.close()

    step = 97 if STEP > 1 else 1
    at_every_pair(prepare, lambda: made[1].close(), interrupt, check, 0, step)  # noqa: PLW0108 (each time another)


# -- what must be done ---------------------------------------------------------------------------


def test_what_must_be_done_is_done_whatever_strikes():
    strikes = [KeyboardInterrupt("first"), ValueError, Interrupt]
    done = []

    def step(*arguments):
        if strikes:
            raise strikes.pop(0)
        done.append(arguments)

    with pytest.raises(KeyboardInterrupt, match="first"):
        persist(step, 1, 2)
    assert done == [(1, 2)]
    assert persist(len, "abc") == 3
    with pytest.raises(TypeError):
        persist()


def test_a_ctrl_c_is_raised_rather_than_an_error_that_came_first():
    errors = [Mishap("first"), Interrupt("second"), Interrupt("third"), Mishap("fourth")]

    def step():
        if errors:
            raise errors.pop(0)

    with pytest.raises(Interrupt, match="second"):
        persist(step)
    assert errors == []


def test_a_method_that_persists_begins_again_and_takes_what_it_is_given():
    class Thing:
        left = 2
        calls: ClassVar = []

        @persistent
        def method(self, *arguments):
            self.calls.append(arguments)
            if self.left:
                self.left -= 1
                raise Mishap(self.left)
            return "done"

    thing = Thing()
    with pytest.raises(Mishap, match="1"):
        thing.method(1, 2)
    assert thing.calls == [(1, 2)] * 3
    assert thing.method() == "done"
    with pytest.raises(TypeError):
        thing.method(name=1)


def test_what_cannot_be_done_ends_with_the_first_error():
    errors = map(ValueError, range(1000))

    def step():
        raise next(errors)

    with pytest.raises(ValueError, match=r"^0$"):
        persist(step)
    assert next(errors).args[0] <= 100


# -- decoders that fail in odd ways --------------------------------------------------------------


class Unprintable(Exception):
    def __str__(self):
        raise ValueError("no text")

    __repr__ = __str__


class Hideous(Exception):
    def __str__(self):
        raise Panic("not even a text")


class Panic(BaseException):
    """As pyo3_runtime.PanicException."""


class Shy(Panic):
    def __str__(self):
        return 5  # noqa: PLE0307 (which is what is tried)


def circular():
    one, two = ValueError("one"), ValueError("two")
    one.__cause__, two.__cause__ = two, one
    return one


def recursion():
    return recursion()


MILD = {
    "ValueError": lambda: ValueError("odd"),
    "no text": Unprintable,
    "a panic for a text": Hideous,
    "a cycle": circular,
    "StopIteration": StopIteration,
    "StopAsyncIteration": StopAsyncIteration,
    "RecursionError": recursion,
    "end of stream": lambda: memenpsf.EndOfStream("not the peer's"),
    "closed": lambda: memenpsf.Closed("not this one"),
    "a group": lambda: ExceptionGroup("several", [ValueError()]),
    "bad record": lambda: memenpsf.BadRecord("from within"),
}
SEVERE = {
    "panic": Panic,
    "a number for a text": Shy,
    "GeneratorExit": GeneratorExit,
    "SystemExit": SystemExit,
    "KeyboardInterrupt": KeyboardInterrupt,
    "MemoryError": MemoryError,
    "a severe group": lambda: BaseExceptionGroup("several", [Panic()]),
}
ODD = MILD | SEVERE
RECEIVE = {
    "recv": lambda it: it.recv(timeout=0),
    "recv_vectored": lambda it: next(iter(it.recv_vectored(timeout=0))),
    "recv_message": lambda it: it.recv_message(timeout=0).record,
    "for": lambda it: next(iter(it)),
}


def poisoned(kind, how):
    """Two sides; the second cannot decode 13, whose exception is that of `how`."""

    def check(number):
        if number == 13:
            raise ODD[how]()  # noqa: RSE102 (a function)

    @dataclasses.dataclass
    class Refusing:
        number: memenpsf.u64

        def __post_init__(self):
            check(self.number)

    if kind == "dataclass":
        return connected("<Q", Refusing), lambda n: (n,), lambda record: record.number

    def decode(data):
        number = int.from_bytes(data, "little")
        check(number)
        return number

    spec = Encoded(number_codec.encode, decode)
    return memenpsf.pair(spec), int, int


def connected(one, other):
    both = ipcqueue.lowlevel.Role(sends=True, receives=True)
    return tuple(
        Interface.of(each)
        for each in ipcqueue.lowlevel.open_pair(
            ipcqueue.lowlevel.Terms(one, both), ipcqueue.lowlevel.Terms(other, both)
        )
    )


@pytest.mark.parametrize("kind", ["dataclass", "Encoded"])
@pytest.mark.parametrize("how", ODD)
@pytest.mark.parametrize("verb", RECEIVE)
def test_a_record_that_cannot_be_decoded_blocks_nobody(kind, how, verb):
    (one, other), record, number = poisoned(kind, how)
    with one, other:
        one.xmit(record(13))
        one.xmit(record(1))
        seen = []
        while len(seen) < 4 and (not seen or isinstance(seen[-1], BaseException)):
            try:
                seen.append(number(RECEIVE[verb](other)))
            except BaseException as error:  # noqa: BLE001 (all kinds)
                seen.append(error)
        failed = seen[-2]
        if how != "KeyboardInterrupt":  # which stays one, as somebody may be waiting for it
            assert isinstance(failed, memenpsf.DecodeFailed), seen
            assert "could not be decoded" in str(failed)
            assert failed.__cause__ is not None
        assert seen[-1] == 1
        assert len(seen) == (3 if how in SEVERE else 2)
        assert not isinstance(seen[0], memenpsf.DecodeFailed) or how in MILD
        assert other.recv(timeout=0) is None
        if kind == "Encoded":
            assert len(set(one.indices())) == 1


@pytest.mark.parametrize("kind", ["dataclass", "Encoded"])
@pytest.mark.parametrize("how", ["ValueError", "panic", "StopIteration"])
@pytest.mark.parametrize("verb", ["recv", "recv_vectored", "for"])
def test_the_good_records_around_one_that_fails_come_in_order(kind, how, verb):
    (one, other), record, number = poisoned(kind, how)
    sent = [1, 2, 13, 3, 13, 13, 4]
    got, failures = [], []

    def take():
        match verb:
            case "recv":
                got.append(number(other.recv()))
            case "recv_vectored":
                got.extend(map(number, other.recv_vectored()))
            case "for":
                for each in other:
                    got.append(number(each))  # noqa: PERF401 (what came before an exception counts)
                raise memenpsf.EndOfStream

    with other:
        one.xmit_many(list(map(record, sent)))
        one.close()
        with pytest.raises(memenpsf.EndOfStream):
            while True:
                try:
                    take()
                except memenpsf.DecodeFailed:
                    failures.append(list(got))
                except Panic:
                    pass
    assert got == [1, 2, 3, 4]
    assert failures == [[1, 2], [1, 2, 3], [1, 2, 3]]


class Strange(NamedTuple):
    number: memenpsf.u64


def test_a_subclass_of_a_named_tuple_is_made_by_its_own_rules_or_none():
    # Its __new__ is not called, as by its _make(); so it can refuse nothing.
    class Refusing(Strange):
        def __new__(cls, number):
            raise ValueError

    one, other = connected("<Q", Refusing)
    with one, other:
        one.xmit((1,))
        assert other.recv(timeout=0) == (1,)


def test_a_record_whose_class_refuses_it_can_be_borrowed():
    (one, other), record, _ = poisoned("dataclass", "ValueError")
    with one, other:
        one.xmit_many([record(13), record(2)])
        with other.borrow(1, timeout=0) as lent:
            assert bytes(lent.data) == (13).to_bytes(8, "little")
        assert other.recv(timeout=0).number == 2
        one.xmit(record(13))
        with pytest.raises(memenpsf.DecodeFailed):
            other.recv(timeout=0)
        one.xmit_many([record(5), record(13), record(6)])
        for each in other:
            assert each.number == 5
            break
        with other.borrow(timeout=0) as lent:
            assert bytes(lent.data)[:8] == (13).to_bytes(8, "little")
        assert other.recv(timeout=0) is None


@pytest.mark.parametrize("kind", ["dataclass", "Encoded"])
@pytest.mark.parametrize("verb", ["recv", "recv_vectored"])
def test_a_handlers_exception_in_a_decoder_is_not_the_records_fault(kind, verb):
    # Twice for the same record, of any kind: Ctrl-C, or a time that is up.
    for error in (Interrupt, KeyboardInterrupt, TimeoutError):
        strikes = []

        def strike(*_, error=error):
            raise error

        def check(strikes=strikes):
            if strikes:
                strikes.pop()
                signal.raise_signal(signal.SIGUSR1)

        @dataclasses.dataclass
        class Noisy:
            number: memenpsf.u64

            def __post_init__(self, check=check):  # noqa: RUF033 (each time another)
                check()

        def decode(data, check=check):
            check()
            return number_codec.decode(data)

        if kind == "dataclass":
            (one, other), make = connected("<Q", Noisy), lambda n: (n,)
        else:
            (one, other), make = memenpsf.pair(Encoded(number_codec.encode, decode)), int
        previous = signal.signal(signal.SIGUSR1, strike)
        try:
            with one, other:
                one.xmit_many([make(1), make(2)])
                for _ in range(3):
                    strikes.append(None)
                    with pytest.raises(error):
                        VERBS[verb](other)
                got = take_one(other) + take_one(other)
                assert [getattr(each, "number", each) for each in got] == [1, 2]
        finally:
            signal.signal(signal.SIGUSR1, previous)


@pytest.mark.parametrize("kind", ["dataclass", "Encoded"])
def test_a_stop_iteration_of_a_handler_ends_no_loop_in_silence(kind):
    def stop(*_):
        raise StopIteration

    strikes = []

    def check():
        if strikes:
            strikes.pop()
            signal.raise_signal(signal.SIGUSR1)

    @dataclasses.dataclass
    class Noisy:
        number: memenpsf.u64

        def __post_init__(self):
            check()

    def decode(data):
        check()
        return number_codec.decode(data)

    if kind == "dataclass":
        (one, other), make = connected("<Q", Noisy), lambda n: (n,)
    else:
        (one, other), make = memenpsf.pair(Encoded(number_codec.encode, decode)), int
    previous = signal.signal(signal.SIGUSR1, stop)
    try:
        with one, other:
            one.xmit(make(7))
            one.close()
            for _ in range(2):
                strikes.append(None)
                with pytest.raises(RuntimeError, match="raised StopIteration"):
                    list(other)
            assert [getattr(each, "number", each) for each in other] == [7]
    finally:
        signal.signal(signal.SIGUSR1, previous)


@pytest.mark.parametrize("kind", ["dataclass", "Encoded"])
def test_a_decoder_may_receive_by_itself(kind):
    inside, depth = [], []

    def check():
        if not depth:
            depth.append(None)
            inside.extend(take_one(other))
            depth.pop()

    @dataclasses.dataclass
    class Recursive:
        number: memenpsf.u64

        def __post_init__(self):
            check()

    def decode(data):
        check()
        return number_codec.decode(data)

    if kind == "dataclass":
        (one, other), make = connected("<Q", Recursive), lambda n: (n,)
    else:
        (one, other), make = memenpsf.pair(Encoded(number_codec.encode, decode)), int
    with one, other:
        one.xmit_many(list(map(make, range(6))))
        got = []
        while (taken := take_one(other)) or inside:
            got += taken + inside
            inside.clear()
        assert sorted(getattr(each, "number", each) for each in got) == list(range(6))


def test_an_encoder_that_raises_something_odd_sends_nothing():
    def encode(how):
        raise ODD[how]()  # noqa: RSE102 (a function)

    one, other = memenpsf.pair(Encoded(encode, bytes))
    with one, other:
        for how in ODD:
            kind = RecursionError if how == "RecursionError" else type(ODD[how]())
            for send in (one.xmit, lambda it: one.xmit_many([it])):
                with pytest.raises(kind):
                    send(how)
        assert other.recv(timeout=0) is None
        assert one.indices() == (0, 0)


def test_what_a_decoder_says_at_length_is_cut():
    def decode(data):
        raise ValueError("x" * 100_000)

    one, other = memenpsf.pair(Encoded(bytes, decode))
    with one, other:
        one.xmit(b"")
        with pytest.raises(memenpsf.DecodeFailed) as caught:
            other.recv(timeout=0)
        assert len(str(caught.value)) < 1000


# -- handlers that use a connection on which others wait ------------------------------------------


def test_a_handler_may_use_a_connection_on_which_others_wait():
    """At each place of a call that wakes them, deterministically: they wait for what never comes."""
    made, threads = [], []

    def prepare():
        made[:] = memenpsf.pair(8, wait="sleep")
        endpoint = made[1]._endpoint
        endpoint.waiters.reading = True  # so that they follow
        threads[:] = [threading.Thread(target=follow, args=(made[1],)) for _ in range(3)]
        for thread in threads:
            thread.start()
        while len(endpoint.waiters.followers) < 3:
            os.sched_yield()
        endpoint.waiters.reading = False

    def follow(side):
        with contextlib.suppress(memenpsf.Closed, memenpsf.EndOfStream):
            side.recv_ctrl_msg(None)

    def handler():
        one, other = made
        one.xmit(bytes(8))
        assert other.recv(timeout=0) == bytes(8)
        other._endpoint.waiters.wake_followers()

    def check(_):
        for side in made:
            side.close()
        for thread in threads:
            thread.join()

    def read():
        made[1]._endpoint.read_if_free()

    assert at_every_place(prepare, read, handler, check, 0, 2) > 3


# -- borrowings in the middle of another call -------------------------------------------------------


@pytest.mark.parametrize("verb", ["recv", "recv_message", "recv_vectored", "loop"])
@pytest.mark.parametrize("kind", ["dataclass", "Encoded"])
@pytest.mark.parametrize("left", [False, True], ids=["all_in_the_ring", "some_left_by_a_loop"])
def test_what_is_borrowed_in_the_middle_of_a_call_is_taken_once(left, kind, verb):
    """By a decoder, here; another thread can do the same.  The block ends after the call."""
    armed, borrowings = [], []

    def borrow():
        if armed:
            del armed[:]
            borrowings.append(other.borrow(1, timeout=0))
            borrowings[0].__enter__()

    @dataclasses.dataclass
    class Borrowing:
        number: memenpsf.u64

        def __post_init__(self):
            borrow()

    def decode(data):
        borrow()
        return int.from_bytes(data, "little")

    made = Borrowing if kind == "dataclass" else int
    one, other = memenpsf.pair(
        Borrowing if kind == "dataclass" else Encoded(number_codec.encode, decode)
    )
    with one, other:
        one.xmit_many([made(n) for n in range(10)])
        seen = [next(iter(other))] if left else []
        armed.append(True)
        with contextlib.suppress(ipcqueue.ConcurrentUse):
            match verb:
                case "recv":
                    seen.append(other.recv(0))
                case "recv_message":
                    seen.append(other.recv_message(0).record)
                case "recv_vectored":
                    seen += other.recv_vectored(2)
                case "loop":
                    seen.append(next(iter(other)))
        for borrowing in borrowings:  # else all of this was decoded already
            lent = bytes(borrowing.data[:8] if made is Borrowing else borrowing.data[0].data)
            seen.append(made(int.from_bytes(lent, "little")))
            borrowing.__exit__(None, None, None)
        seen += other.recv_vectored()
        numbers = [record.number if made is Borrowing else record for record in seen]
        assert sorted(numbers) == list(range(10)), numbers


def test_what_is_put_back_beside_a_borrowing_is_not_taken_with_it():
    """It stands before what was lent, and is older."""
    strikes = [None, interrupt, lambda: borrow_and(interrupt)]

    def decode(data):
        if strikes and (strike := strikes.pop(0)) is not None:
            strike()
        return int.from_bytes(data, "little")

    def borrow_and(strike):
        borrowing = other.borrow(1, timeout=0)
        borrowings.append(borrowing.__enter__())
        strike()

    borrowings = []
    one, other = memenpsf.pair(Encoded(number_codec.encode, decode))
    with one, other:
        one.xmit_many(range(6))
        with pytest.raises(Interrupt):
            other.recv_vectored(4)  # which puts four back
        with pytest.raises(Interrupt):
            other.recv(0)  # takes the first, borrows the second, and puts the first back
        with pytest.raises(ipcqueue.ConcurrentUse):
            other.recv(0)
        (borrowing,) = borrowings
        assert bytes(borrowing.data[0].data) == number_codec.encode(1)
        borrowing.__exit__(None, None, None)
        assert other.recv_vectored() == [0, 2, 3, 4, 5]


class Alarm(Exception):
    """Of a signal handler."""


@pytest.mark.parametrize("verb", ["recv", "recv_message", "recv_vectored", "loop"])
@pytest.mark.parametrize("kind", ["dataclass", "Encoded"])
def test_a_handler_is_heard_though_the_record_is_bad_as_well(verb, kind):
    strikes = []

    def alarm(*_):
        raise Alarm

    def refuse():
        if strikes:
            strikes.pop()
            signal.raise_signal(signal.SIGUSR1)
        raise ValueError("a bad record")

    @dataclasses.dataclass
    class Bad:
        number: memenpsf.u64

        def __post_init__(self):
            if self.number == 5:
                refuse()

    def decode(data):
        if data == b"5":
            refuse()
        return int(data)

    if kind == "dataclass":
        (one, other), make = connected("<Q", Bad), lambda n: (n,)
    else:
        encoded = Encoded(lambda n: str(n).encode(), decode)
        (one, other), make = memenpsf.pair(encoded), int

    def take():
        return next(iter(other)) if verb == "loop" else getattr(other, verb)()

    previous = signal.signal(signal.SIGUSR1, alarm)
    try:
        with one, other:
            one.xmit_many([make(5), make(7)])
            strikes.append(None)
            with pytest.raises(Alarm):
                take()
            with pytest.raises(memenpsf.DecodeFailed) as failed:
                take()
            assert isinstance(failed.value.__cause__, ValueError)
            record = other.recv()
            assert getattr(record, "number", record) == 7
    finally:
        signal.signal(signal.SIGUSR1, previous)
