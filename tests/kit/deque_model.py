"""Both ends of a queue beside a deque: hypothesis chooses the steps, and both must tell the same.

One thread has both ends, so nothing waits and every step has one right result.  How much space there
is, and what has been published and taken, is read from the shared memory itself, as asking an end
would have it look, and hide that it has not.  Each end takes its own door into the core: direct or
cffi.
"""

import contextlib
import itertools
import os
import select
import struct
import weakref
from collections import deque
from functools import partial
from typing import Any, ClassVar, NamedTuple
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from ipcqueue._core import ffi

import fdpass
import ipcqueue
import memenpsf
from ipcqueue import (
    BadRecord,
    Closed,
    ConcurrentUse,
    DecodeFailed,
    Encoded,
    EndOfStream,
    Full,
    LoanError,
    Message,
    PeerDied,
    ReceiverGone,
    TooLarge,
)
from ipcqueue._link import ends as _ends
from ipcqueue._ring.bounds import MAX_AHEAD
from ipcqueue._ring.end import Place
from ipcqueue._ring.frame import MAX_ATTACHED
from ipcqueue.lowlevel import Role, Terms, open_pair
from tests.kit.hostile import HEAD, TAIL

U64 = 1 << 64
LATE = 30  # steps before which nothing ends
# Looks at the socket until all of it was seen: each is at one piece, and those with descriptors end one.
LOOKS = MAX_ATTACHED + 3

# How each of the two layers calls the same; its two roles.
VERBS = {
    "queue": ("push", "push_many", "pop", "pop_many"),
    "interface": ("xmit", "xmit_many", "recv", "recv_vectored"),
}
ROLES = {
    "queue": (Role(sends=True, receives=False), Role(sends=False, receives=True)),
    "interface": (Role(sends=True, receives=True),) * 2,
}
CLASSES = {
    "queue": (ipcqueue.Sender, ipcqueue.Receiver),
    "interface": (memenpsf.Interface, memenpsf.Interface),
}


class Waiting(NamedTuple):
    """What was published and not handed on."""

    value: Any
    units: int = 1  # of the ring
    fds: tuple[int, ...] = ()  # inodes of what goes along
    regions: int = 0
    raw: tuple[bytes, int, int] = (b"", 0, 0)  # of messages: as in the ring


class Mishap(Exception):
    """What the application raises inside a block."""


def abandon(block):
    """Have the memory of a block be nobody's, as when the block is gone without an end."""
    block._let_go()
    block._ring_end._borrower = weakref.ref(Mishap())


def extent(size):
    """Return the bytes of ring that a message takes which travels inside."""
    return 16 + -(-size // 16) * 16


def inode(fd):
    return os.fstat(fd.fileno()).st_ino


def readable(side):
    poll = select.poll()
    poll.register(side.fileno(), select.POLLIN)
    return bool(poll.poll(0))


class Model(RuleBasedStateMachine):
    """What slots and frames have in common."""

    def __init__(self):
        super().__init__()
        self.undo = contextlib.ExitStack()
        self.steps = 0

    def open(self, level, spec, capacity, start, **options):
        """Connect two ends, `one` that sends and `other` that receives."""
        both = [Terms(spec, role, capacity=capacity, **options) for role in ROLES[level]]
        with mock.patch.object(_ends, "Place", partial(Place, start=start)):
            ends = open_pair(*both)
        for end in ends:
            memory = self.memory(end)
            memory[HEAD : HEAD + 8] = memory[TAIL : TAIL + 8] = struct.pack("=Q", start)
        self.one, self.other = (of.of(end) for of, end in zip(CLASSES[level], ends, strict=True))
        self.sides = self.one, self.other
        for side in self.sides:
            self.undo.callback(side.close)
        verbs = VERBS[level]
        self.push, self.push_many = (getattr(self.one, verb) for verb in verbs[:2])
        self.pop, self.pop_many = (getattr(self.other, verb) for verb in verbs[2:])
        self.sender = self.one._endpoint.sender
        self.receiver = self.other._endpoint.receiver
        self.level = level
        self.capacity = self.one.capacity
        self.start = start
        self.waiting = deque()
        self.published = self.handed = 0  # units
        self.count = 0  # records published
        self.in_process = 0  # units taken from the ring and not handed on
        self.serial = 0
        self.messages = {self.one: deque(), self.other: deque()}  # to whom
        self.sender_end = None  # what the receiver gets once all is taken
        self.receiver_end = None  # what the sender gets
        self.one_closed = self.other_closed = False
        self.opened = True

    opened = False

    @staticmethod
    def memory(end):
        mapping = end._own.mapping
        return ffi.buffer(mapping.at, mapping.size)

    def teardown(self):
        self.undo.close()

    # -- what must be ------------------------------------------------------------------------

    def index(self, side, at):
        return struct.unpack_from("=Q", self.memory(side._endpoint), at)[0]

    def fits(self, item):
        return self.space >= item.units

    def may_wait(self, item):
        """Whether an item that there is space for may have to wait for others all the same."""
        return False

    @property
    def space(self):
        used = self.published - self.handed - self.in_process
        return self.capacity - used

    @invariant()
    def the_indices_tell_what_was_published_and_taken(self):
        self.steps += 1
        if not self.opened or self.one_closed or self.other_closed:
            return
        head, tail = self.index(self.one, HEAD), self.index(self.other, TAIL)
        assert head == (self.start + self.published) % U64
        held = (tail - self.start - self.handed) % U64
        assert held <= self.in_process, "taken, and handed to nobody"
        self.in_process = held

    def publish(self, items):
        for item in items:
            self.waiting.append(item)
            self.published += item.units
            self.count += 1

    def take(self, count):
        taken = [self.waiting.popleft() for _ in range(count)]
        units = sum(item.units for item in taken)
        self.handed += units
        self.in_process = max(0, self.in_process - units)  # those are handed on first
        return taken

    def no_more(self):
        """Return what a receiving call raises that finds nothing; None if it just finds nothing."""
        return Closed if self.other_closed else self.sender_end

    def cannot_send(self):
        return Closed if self.one_closed else self.receiver_end

    # -- control messages, doorbells ---------------------------------------------------------

    @property
    def connected(self):
        return self.opened and not (
            self.sender_end or self.receiver_end or self.one_closed or self.other_closed
        )

    @precondition(lambda self: self.connected)
    @rule(back=st.booleans(), n=st.integers(0, 255))
    def send_message(self, back, n):
        by, to = (self.other, self.one) if back else (self.one, self.other)
        message = bytes((128 + n % 128, n))
        by.send_ctrl_msg(message, timeout=0)
        self.messages[to].append(message)

    @precondition(lambda self: self.connected)
    @rule(back=st.booleans())
    def receive_message(self, back):
        to = self.one if back else self.other
        self.gets_message(to)

    def gets_message(self, to):
        looks = (to.recv_ctrl_msg(timeout=0) for _ in range(LOOKS))
        got = next((message for message in looks if message is not None), None)
        assert got == (self.messages[to].popleft() if self.messages[to] else None)

    @precondition(lambda self: self.connected)
    @rule()
    def a_sleeping_receiver_is_woken(self):
        armed = self.other.arm()
        assert armed == (not self.waiting and not self.messages[self.other])
        item = self.simple(self.next_serial())
        if not self.fits(item) or self.may_wait(item):
            return
        self.push(item.value, timeout=0)
        self.publish([item])
        if armed:
            assert readable(self.other), "no doorbell"
            assert not self.other.arm()

    @precondition(lambda self: self.connected and self.waiting)
    @rule()
    def a_sleeping_sender_is_woken(self):
        with contextlib.suppress(Full):  # and so an abandoned loan is taken back
            self.one.loan(1, timeout=0).__enter__().cancel()
        options = {} if self.level == "queue" else {"records": False, "space": True}
        armed = self.one.arm(**options)
        assert armed == (self.space < self.sender.enough and not self.messages[self.one])
        item = self.waiting[0]
        taken = item.units > self.in_process
        with contextlib.suppress(DecodeFailed):
            self.pop(timeout=0)
        self.take(1)
        if armed and taken:
            assert readable(self.one), "no doorbell"
            for side in self.sides:
                side._endpoint.read_if_free()

    @precondition(lambda self: self.connected)
    @rule()
    def statistics(self):
        # Counted by the ring: a sender that was not asked to look shows what it saw last.
        assert self.one.indices()[0] == (self.start + self.published) % U64
        assert self.other._endpoint.receiver.indices()[0] == (self.start + self.published) % U64

    # -- the end -----------------------------------------------------------------------------

    @precondition(lambda self: self.steps > LATE and self.connected)
    @rule(how=st.sampled_from(["close", "finish", "die"]))
    def the_sender_ends(self, how):
        self.sender_end = EndOfStream
        if how == "die":
            self.one._endpoint.wire.sock.shutdown(2)  # as when it dies
            self.sender_end = self.receiver_end = PeerDied
        else:
            getattr(self.one, how)()
            self.one_closed = True

    @precondition(lambda self: self.steps > LATE and self.connected)
    @rule(how=st.sampled_from(["close", "finish", "die"]))
    def the_receiver_ends(self, how):
        if how == "die":
            self.other._endpoint.wire.sock.shutdown(2)
            self.sender_end = self.receiver_end = PeerDied
        else:
            getattr(self.other, how)()
            self.receiver_end = ReceiverGone
            if how == "close":
                self.waiting.clear()
                self.other_closed = True
            else:
                self.sender_end = Closed

    @precondition(lambda self: self.opened and self.cannot_send() is not None)
    @rule()
    def nothing_can_be_sent(self):
        # Of a death a sender need not know at once, but cannot fill the ring more than once.
        item = self.simple(self.next_serial())
        with pytest.raises(self.cannot_send()):
            for _ in range(self.capacity + LOOKS):
                with contextlib.suppress(Full):
                    self.push(item.value, timeout=0)
                    self.publish([item])
        with pytest.raises(self.cannot_send()):
            self.push_many([item.value], timeout=0)
        with pytest.raises(self.cannot_send()):
            self.one.loan(1, timeout=0).__enter__()

    @precondition(lambda self: self.opened and self.no_more() is not None)
    @rule()
    def messages_come_before_the_end(self):
        if self.sender_end is not Closed:
            while self.messages[self.other] and not self.other_closed:
                self.gets_message(self.other)
            self.ends(partial(self.other.recv_ctrl_msg, timeout=0))

    # -- helpers of receiving ----------------------------------------------------------------

    def next_serial(self):
        self.serial += 1
        return self.serial

    def ends(self, call):
        """Check a receiving call that finds nothing."""
        if (end := self.no_more()) is None:
            return call()
        with pytest.raises(end):
            for _ in range(LOOKS):
                nothing = call()
                assert nothing is None or len(nothing) == 0
        return None

    def blocked(self, *calls):
        for call in calls:
            with pytest.raises(ConcurrentUse):
                call()


class OfSlots(Model):
    """Records of one size."""

    DTYPE = np.dtype([("number", "<u8"), ("check", "<u4")])

    # A spec; a record with a number; what is compared of one that came.
    SPECS: ClassVar = {
        "bytes": (12, lambda n: struct.pack("<QI", n, n * 2654435761 % (1 << 32)), bytes),
        "a byte": (1, lambda n: bytes([n * 89 % 251]), bytes),
        "tuples": ("<QI", lambda n: (n, n * 2654435761 % (1 << 32)), tuple),
        "numpy": (
            DTYPE,
            lambda n: np.array([(n, n * 2654435761 % (1 << 32))], OfSlots.DTYPE)[0],
            lambda record: record.item(),
        ),
    }
    FORMS: ClassVar = {
        "list": list,
        "tuple": tuple,
        "iterator": iter,
        "another type": {
            "bytes": lambda records: [bytearray(each) for each in records],
            "a byte": lambda records: [memoryview(each) for each in records],
            "tuples": lambda records: [list(each) for each in records],
            "numpy": lambda records: np.array(records, OfSlots.DTYPE),
        },
        "with gaps": {
            "numpy": lambda records: np.array(
                [each for each in records for _ in range(2)], OfSlots.DTYPE
            )[::2],
        },
    }

    @initialize(
        spec=st.sampled_from(list(SPECS)),
        capacity=st.sampled_from([1, 2, 4, 8, 64]),
        before=st.none() | st.tuples(st.sampled_from([1 << 32, 1 << 63, U64]), st.integers(0, 40)),
        level=st.sampled_from(list(VERBS)),
    )
    def begin(self, spec, capacity, before, level):
        start = 0 if before is None else before[0] - 1 - before[1]
        self.spec = spec
        described, self.make, self.seen = self.SPECS[spec]
        self.open(level, described, capacity, start)

    def simple(self, number):
        return Waiting(self.make(number))

    def values(self, items):
        return [self.seen(item.value) for item in items]

    @precondition(lambda self: self.opened and self.cannot_send() is None)
    @rule(ring=st.booleans())
    def push_one(self, ring):
        item = self.simple(self.next_serial())
        if self.fits(item):
            if ring:
                assert self.sender.try_push(item.value)
            else:
                self.push(item.value, timeout=0)
            self.publish([item])
        elif ring:
            assert not self.sender.try_push(item.value)
        else:
            with pytest.raises(Full):
                self.push(item.value, timeout=0)

    @precondition(lambda self: self.opened and self.cannot_send() is None)
    @rule(
        count=st.integers(0, 9) | st.integers(10, 130),
        form=st.sampled_from(list(FORMS)),
        ring=st.booleans(),
    )
    def push_some(self, count, form, ring):
        items = [self.simple(self.next_serial()) for _ in range(count)]
        made = self.FORMS[form]
        if isinstance(made, dict):
            made = made.get(self.spec, list)
        records = made([item.value for item in items])
        if ring:
            batch, done = self.sender.batch(records), 0
            while done < count and (pushed := self.sender.try_push_many(batch, done)):
                done += pushed
        else:
            done = self.push_many(records, timeout=0)
        assert done == min(count, self.space)
        self.publish(items[:done])

    @precondition(lambda self: self.opened and self.cannot_send() is None)
    @rule(count=st.integers(0, 5))
    def push_what_is_none(self, count):
        bad = b"too long a record" if self.spec != "tuples" else (1, 2, 3)
        with pytest.raises(BadRecord):
            self.push(bad, timeout=0)
        records = [self.make(n) for n in range(count)]
        with pytest.raises(BadRecord):
            self.push_many([*records, bad, *records], timeout=0)

    @precondition(lambda self: self.opened)
    @rule(ring=st.booleans())
    def pop_one(self, ring):
        # The ring itself does not know of the end.
        call = self.receiver.try_pop if ring and self.connected else partial(self.pop, timeout=0)
        if self.waiting:
            assert self.seen(call()) == self.seen(self.take(1)[0].value)
        else:
            assert self.ends(call) is None

    @precondition(lambda self: self.opened)
    @rule(limit=st.none() | st.integers(1, 80), ring=st.booleans())
    def pop_some(self, limit, ring):
        most = min(self.capacity, self.capacity if limit is None else limit)
        call = partial(self.pop_many, limit, timeout=0)
        if ring and self.connected:
            call = partial(self.receiver.try_pop_many, most)
        if not self.waiting:
            got = self.ends(call)
            assert got is None or len(got) == 0
            return
        got = call()
        # Those that were taken before and those in the ring may come apart.
        assert min(len(self.waiting), most) >= len(got) >= 1
        if not self.in_process:
            assert len(got) == min(len(self.waiting), most)
        assert (self.spec == "numpy") == isinstance(got, np.ndarray)
        assert [self.seen(each) for each in got] == self.values(self.take(len(got)))

    @precondition(lambda self: self.opened and not self.other_closed)
    @rule(count=st.integers(0, 70))
    def loop(self, count):
        count = min(count, len(self.waiting))
        if self.no_more() and count == len(self.waiting):
            ending = self.no_more() is EndOfStream
            with contextlib.nullcontext() if ending else pytest.raises(self.no_more()):
                for record in self.other:
                    assert self.seen(record) == self.seen(self.take(1)[0].value)
        else:
            for record, _ in zip(self.other, range(count), strict=False) if count else ():
                assert self.seen(record) == self.seen(self.take(1)[0].value)
                if not (count := count - 1):
                    break
        self.in_process = max(self.in_process, min(MAX_AHEAD, self.capacity))

    @precondition(lambda self: self.opened and not self.other_closed)
    @rule(count=st.integers(1, 9))
    def a_pop_is_abandoned(self, count):
        """As if an exception struck just after the core has copied the records out."""
        if self.receiver.holds():
            return
        count = min(count, self.capacity)
        self.receiver.pull(count)
        self.in_process = max(self.in_process, count)

    @precondition(lambda self: self.opened and self.cannot_send() is None)
    @rule(
        size=st.integers(1, 9) | st.integers(1, 64),
        then=st.sampled_from(
            ["publish", "publish quietly", "shrink", "cancel", "raise", "abandon", "keep a view"]
        ),
    )
    def lend(self, size, then):
        size = min(size, self.capacity)
        loan = self.one.loan(size, timeout=0)
        if size > self.space:
            with pytest.raises(Full):
                loan.__enter__()
            return
        items = [self.simple(self.next_serial()) for _ in range(size)]
        kept = None
        with contextlib.suppress(Mishap, LoanError), loan:
            if self.spec == "numpy":
                loan.data[:] = [item.value for item in items]
            else:
                raw = b"".join(bytes(self.raw(item.value)) for item in items)
                loan.data[:] = raw
            self.blocked(
                lambda: self.push(items[0].value, timeout=0),
                lambda: self.push_many([items[0].value], timeout=0),
                lambda: self.one.loan(1, timeout=0).__enter__(),
            )
            match then:
                case "publish quietly":
                    loan.publish(wake=False)
                case "shrink":
                    size = (size + 1) // 2
                    loan.shrink(size)
                case "cancel":
                    loan.cancel()
                case "raise":
                    raise Mishap
                case "abandon":
                    abandon(loan)
                    return
                case "keep a view":
                    kept = loan.data[:1]
        if kept is not None:
            with pytest.raises(LoanError):
                self.push(items[0].value, timeout=0)
            return  # and it is gone
        if then in {"publish", "publish quietly", "shrink"}:
            self.publish(items[:size])

    def raw(self, value):
        return struct.pack("<QI", *value) if self.spec == "tuples" else value

    @precondition(lambda self: self.opened and not self.other_closed)
    @rule(
        limit=st.none() | st.integers(1, 70),
        then=st.sampled_from(["take", "cancel", "raise", "abandon", "keep a view"]),
    )
    def borrow(self, limit, then):
        borrowing = self.other.borrow(limit, timeout=0)
        if not self.waiting:
            self.ends(lambda: self.other.borrow(limit, timeout=0).__enter__())
            return
        most = min(len(self.waiting), self.capacity if limit is None else limit)
        kept, count = None, 0
        with contextlib.suppress(Mishap, LoanError), borrowing:
            raw = bytes(borrowing.data)
            size = self.other._endpoint.codec.size
            count = len(raw) // size
            assert 1 <= count <= most
            expected = [self.waiting[i].value for i in range(count)]
            assert raw == b"".join(bytes(self.raw(value)) for value in expected)
            self.blocked(
                lambda: self.pop(timeout=0),
                lambda: self.pop_many(timeout=0),
                lambda: self.other.borrow(timeout=0).__enter__(),
            )
            match then:
                case "cancel":
                    borrowing.cancel()
                case "raise":
                    raise Mishap
                case "abandon":
                    abandon(borrowing)
                case "keep a view":
                    kept = borrowing.data[:1]
        if kept is not None:
            with pytest.raises(LoanError):
                self.pop(timeout=0)
        if then == "take":
            self.take(count)


BAD = b"none"


def text_of(data):
    if data.startswith(BAD):
        raise ValueError
    return data.decode("latin-1")


class OfMessages(Model):
    """Messages of any length: inside the ring and outside, with what goes along."""

    CAPACITY = 4096  # the least there is: pages
    MAX_MESSAGE = 200_000

    # A spec; a record made of bytes, a tag and flags; what the receiver gets.
    SPECS: ClassVar = {
        "bytes": (bytes, lambda data, tag, flags: data),
        "messages": (Message, Message),
        "texts": (
            Encoded(lambda text: text.encode("latin-1"), text_of),
            lambda data, tag, flags: data.decode("latin-1"),
        ),
    }
    # Of messages; many end where a frame, the ring or what travels inside does.
    SIZES = st.one_of(
        st.integers(0, 64),
        st.integers(0, 1100),
        st.sampled_from([1007, 1008, 1009, 2031, 2032, 2033, 4063, 4064, 4065, 4079, 4080, 4081]),
        st.integers(0, 5000),
        st.sampled_from([65536, 65537, 131072, 200_000]),
    )

    @initialize(
        spec=st.sampled_from(list(SPECS)),
        before=st.none() | st.tuples(st.sampled_from([CAPACITY, U64]), st.integers(0, 255)),
        inline=st.sampled_from([0, 16, 17, 32, 100, 1024, 2048, 4095, 4096]),
        level=st.sampled_from(list(VERBS)),
    )
    def begin(self, spec, before, inline, level):
        start = 0 if before is None else before[0] - 16 * before[1] - 16
        described, self.make = self.SPECS[spec]
        self.spec, self.inline = spec, inline
        options = {"accept": memenpsf.Accept(message=self.MAX_MESSAGE, fds=4, regions=2)}
        self.open(level, described, self.CAPACITY, start, inline=inline, **options)
        self.files = [fdpass.Fd(os.memfd_create(f"file {n}")) for n in range(2)]
        self.region = fdpass.MemoryRegion.create(4096)
        self.region.buffer[:5] = b"thing"
        for each in (*self.files, self.region):
            self.undo.callback(each.close)

    def item(self, size, fds=0, regions=0):
        number = self.next_serial()
        data = (b"%09d " % number * (size // 10 + 1))[:size]
        tag, flags = (number * 7919, number % 256) if self.spec == "messages" else (0, 0)
        outside = size > 0 and extent(size) > self.inline
        return Waiting(
            self.make(data, tag, flags),
            extent(16) if outside else extent(size),
            tuple(map(inode, (self.files * 2)[:fds])),
            regions,
            (data, tag, flags),
        )

    def simple(self, number):
        return self.item(8)

    def is_outside(self, item):
        return len(item.raw[0]) > 0 and extent(len(item.raw[0])) > self.inline

    def may_wait(self, item):
        alike = sum(map(self.is_outside, self.waiting))
        carries, outside = bool(item.fds or item.regions), self.is_outside(item)
        return (outside and alike >= 12) or (
            (outside or carries) and self.with_descriptors() + alike >= MAX_ATTACHED
        )

    def must_wait(self, item):
        """Whether there are too many messages with descriptors under way."""
        return (
            bool(item.fds or item.regions)
            and not self.in_process
            and self.with_descriptors() >= MAX_ATTACHED
        )

    def with_descriptors(self):
        return sum(bool(each.fds or each.regions) for each in self.waiting)

    @precondition(lambda self: self.opened and self.cannot_send() is None)
    @rule(size=SIZES, ring=st.booleans())
    def push_one(self, size, ring):
        item = self.item(size)
        attempt = partial(self.sender.try_push, item.value)
        if not ring:
            attempt = partial(self.sent, item)
        if not self.fits(item):
            assert not attempt()
        elif not self.may_wait(item):
            assert attempt()
            self.publish([item])
        elif attempt():
            self.publish([item])

    def sent(self, item, **attached):
        try:
            self.push(item.value, timeout=0, **attached)
        except Full:
            return False
        return True

    @precondition(lambda self: self.opened and self.cannot_send() is None)
    @rule(
        size=SIZES,
        fds=st.integers(0, 4),
        regions=st.integers(0, 2),
        times=st.sampled_from([1, 1, 2, MAX_ATTACHED + 2]),
    )
    def push_with(self, size, fds, regions, times):
        for _ in range(times):
            item = self.item(size, fds, regions)
            attached = {"fds": (self.files * 2)[:fds], "regions": [self.region] * regions}
            if not self.fits(item) or self.must_wait(item):
                assert not self.sent(item, **attached)
            elif not self.may_wait(item):
                assert self.sent(item, **attached)
                self.publish([item])
            elif self.sent(item, **attached):
                self.publish([item])

    @precondition(lambda self: self.opened and self.cannot_send() is None)
    @rule(
        sizes=st.lists(SIZES, max_size=8)
        | st.integers(9, 300).map(lambda count: [n % 20 for n in range(count)]),
        form=st.sampled_from([list, tuple, iter]),
    )
    def push_some(self, sizes, form):
        items = [self.item(size) for size in sizes]
        done = self.push_many(form([item.value for item in items]), timeout=0)
        fitting, used = 0, 0
        for item in items:
            used += item.units
            if used > self.space:
                break
            fitting += 1
        if any(map(self.is_outside, items)):
            assert done <= fitting
        else:
            assert done == fitting
        self.publish(items[:done])

    @precondition(lambda self: self.opened and self.cannot_send() is None)
    @rule(size=st.sampled_from([MAX_MESSAGE + 1, 1 << 20]))
    def push_too_much(self, size):
        value = self.make(bytes(size), 0, 0)
        with pytest.raises(TooLarge):
            self.push(value, timeout=0)
        with pytest.raises(TooLarge):
            self.push_many([self.item(8).value, value], timeout=0)
        with pytest.raises(BadRecord):
            self.push(self.item(8).value, timeout=0, fds=[-1])

    def bad(self, item):
        return self.spec == "texts" and item.raw[0].startswith(BAD)

    def received(self, call, many=False):
        """Check a receiving call that finds something."""
        first = self.waiting[0]
        if self.bad(first):
            with pytest.raises(DecodeFailed):
                call()
            self.take(1)
            return
        got = call()
        records = got if many else [got]
        assert len(records) >= 1
        for record in records:
            assert record == self.take(1)[0].value

    @precondition(lambda self: self.opened and self.cannot_send() is None)
    @rule()
    def push_what_cannot_be_decoded(self):
        if self.spec == "texts":
            data = BAD + b"%d" % self.next_serial()
            item = Waiting(data.decode(), extent(len(data)), raw=(data, 0, 0))
            if extent(len(data)) > self.inline:
                item = item._replace(units=extent(16))
            if self.fits(item) and not self.may_wait(item):
                self.push(item.value, timeout=0)
                self.publish([item])

    @precondition(lambda self: self.opened)
    @rule()
    def pop_one(self):
        call = partial(self.pop, timeout=0)
        if self.waiting:
            self.received(call)
        else:
            assert self.ends(call) is None

    @precondition(lambda self: self.opened)
    @rule()
    def pop_with(self):
        call = partial(self.other.recv_message, timeout=0)
        if not self.waiting:
            assert self.ends(call) is None
        elif self.bad(self.waiting[0]):
            self.received(call)
        else:
            stripped = self.stripped  # by calls that built it and did not take it
            item, got = self.take(1)[0], call()
            assert got.record == item.value
            assert tuple(map(inode, got.fds)) == item.fds
            assert [bytes(region.buffer[:5]) for region in got.regions] == [b"thing"] * item.regions
            assert stripped == self.stripped
            got.close()

    @property
    def stripped(self):
        return self.receiver.dropped

    @precondition(lambda self: self.opened)
    @rule(limit=st.none() | st.integers(1, 80))
    def pop_some(self, limit):
        call = partial(self.pop_many, limit, timeout=0)
        if self.waiting:
            before = self.stripped
            items = list(self.waiting)
            self.received(call, many=True)
            taken = items[: len(items) - len(self.waiting)]
            if self.spec == "texts":  # those behind one that cannot be decoded were put back
                self.in_process = self.published - self.handed
            assert self.stripped - before == sum(len(it.fds) + it.regions for it in taken)
            assert limit is None or len(taken) <= limit
        else:
            assert self.ends(call) in (None, [])

    @precondition(lambda self: self.opened and not self.other_closed)
    @rule(count=st.integers(0, 70))
    def loop(self, count):
        good = list(itertools.takewhile(lambda item: not self.bad(item), self.waiting))
        for record in self.other if 0 < count <= len(good) else ():
            self.in_process += self.CAPACITY  # some are taken ahead
            assert record == self.take(1)[0].value
            count -= 1
            if not count:
                break

    @precondition(lambda self: self.opened and self.cannot_send() is None)
    @rule(
        size=st.integers(0, 1000) | st.integers(0, 4080),
        then=st.sampled_from(
            ["publish", "publish quietly", "shrink", "cancel", "raise", "abandon", "keep a view"]
        ),
    )
    def lend(self, size, then):
        item = self.item(size)._replace(units=extent(size))
        _, tag, flags = item.raw
        loan = self.one.loan(size, timeout=0, tag=tag, flags=flags)
        if extent(size) > self.space:
            with pytest.raises(Full):
                loan.__enter__()
            return
        kept, small = None, self.item(0)
        with contextlib.suppress(Mishap, LoanError), loan:
            loan.data[:] = item.raw[0]
            self.blocked(
                lambda: self.push(small.value, timeout=0),
                lambda: self.push_many([small.value], timeout=0),
                lambda: self.one.loan(1, timeout=0).__enter__(),
            )
            match then:
                case "publish quietly":
                    loan.publish(wake=False)
                case "shrink":
                    loan.shrink(size // 2)
                    data = item.raw[0][: size // 2]
                    item = Waiting(
                        self.make(data, tag, flags), extent(size // 2), raw=(data, tag, flags)
                    )
                case "cancel":
                    loan.cancel()
                case "raise":
                    raise Mishap
                case "abandon":
                    abandon(loan)
                    return
                case "keep a view" if size:
                    kept = loan.data[:1]
        if kept is not None:
            with pytest.raises(LoanError):
                self.push(small.value, timeout=0)
            return
        if then in {"publish", "publish quietly", "shrink"} or (then == "keep a view" and not size):
            self.publish([item])

    @precondition(lambda self: self.opened and not self.other_closed)
    @rule(
        limit=st.none() | st.integers(1, 70),
        then=st.sampled_from(["take", "cancel", "raise", "abandon", "keep a view"]),
    )
    def borrow(self, limit, then):
        if not self.waiting:
            self.ends(lambda: self.other.borrow(limit, timeout=0).__enter__())
            return
        most = min(len(self.waiting), self.capacity if limit is None else limit)
        kept, count, dropped = None, 0, self.stripped
        with contextlib.suppress(Mishap, LoanError), self.other.borrow(limit, timeout=0) as lent:
            count = len(lent)
            assert 1 <= count <= most
            for message, item in zip(lent, self.waiting, strict=False):
                assert (bytes(message.data), message.tag, message.flags) == item.raw
            self.blocked(
                lambda: self.pop(timeout=0),
                lambda: self.pop_many(timeout=0),
                lambda: self.other.recv_message(timeout=0),
                lambda: self.other.borrow(timeout=0).__enter__(),
            )
            message = None
            match then:
                case "cancel":
                    lent.cancel()
                case "raise":
                    raise Mishap
                case "abandon":
                    abandon(lent)
                case "keep a view":
                    kept = lent.data[0].data[:1]
        if kept is not None:
            with pytest.raises(LoanError):
                self.pop(timeout=0)
        if then == "take":
            taken = self.take(count)
            assert self.stripped - dropped == sum(len(it.fds) + it.regions for it in taken)


def check(model, examples, number):
    """Compare `examples` runs of 50 steps, from the seed `number`."""
    run_state_machine_as_test(
        seed(number)(model),
        settings=settings(
            max_examples=examples,
            stateful_step_count=50,
            deadline=None,
            database=None,
            print_blob=True,
            report_multiple_bugs=False,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        ),
    )
