"""Both ends of a ring of records on real segments, without a connection."""

import os
import struct

import pytest
from ipcqueue._core import ffi

from fdpass import Fd
from ipcqueue._records.spec import codec_for
from ipcqueue._ring import segment as _segment
from ipcqueue._ring.codes import RingError
from ipcqueue._ring.end import Place
from ipcqueue._ring.segment import MAX_SEGMENT
from ipcqueue._ring.slot_receiver import SlotReceiver
from ipcqueue._ring.slot_sender import Batch, SlotSender
from tests.kit.hostile import HEAD, TAIL, moved


def sender_end(own, peer, capacity, codec, bell, start=0):
    return SlotSender(own, peer, Place(capacity, codec.size, bell, start), codec)


def receiver_end(own, peer, capacity, codec, bell, start=0):
    return SlotReceiver(own, peer, Place(capacity, codec.size, bell, start), codec)


def push_packed(sender, data, count):
    """Push records that are encoded already, as many as fit."""
    return sender.try_push_many(Batch(memoryview(data).cast("B"), count), 0)


class Ring:
    """Both ends of a ring, counting from `start`."""

    def __init__(self, spec="<Q", capacity=4, start=0, bell=None):
        self.codec = codec_for(spec)
        self.capacity, self.start, self.bell = capacity, start, bell
        self.at_sender = _segment.create(self.codec, capacity, "sender")
        self.at_receiver = _segment.create(self.codec, 0, "receiver")
        self.seen_by_receiver = self.adopted(self.at_sender)
        self.seen_by_sender = self.adopted(self.at_receiver)
        self.poke(self.at_sender, HEAD, start)
        self.poke(self.at_receiver, TAIL, start)
        self.open(self.codec)

    def open(self, codec, to_receive=None):
        """Make new ends, which begin at the start; with another codec, perhaps."""
        ours, theirs = (-1, -1) if self.bell is None else [sock.fileno() for sock in self.bell]
        own, peer = self.at_sender.mapping, self.seen_by_sender.mapping
        self.sender = sender_end(own, peer, self.capacity, codec, ours, self.start)
        own, peer = self.at_receiver.mapping, self.seen_by_receiver.mapping
        codec = to_receive or codec
        self.receiver = receiver_end(own, peer, self.capacity, codec, theirs, self.start)

    def adopted(self, segment):
        return _segment.adopt(Fd(os.dup(segment.memfd.fileno())), MAX_SEGMENT)

    def poke(self, segment, offset, value, kind="uint64_t *"):
        """Write into a segment behind the back of the end that owns it."""
        at = ffi.cast("char *", segment.mapping.at) + moved(segment.mapping, offset)
        ffi.cast(kind, at)[0] = value

    def push_numbers(self, *numbers):
        for number in numbers:
            assert self.sender.try_push((number,))

    def interrupted_pop(self, records=1):
        """Pop as if an exception struck just after the core has copied the records out."""
        it = self.receiver
        return it.pull(records)

    def close(self):
        for end in (self.sender, self.receiver):
            end.close()
            end.let_go()
        for segment in (self.at_sender, self.at_receiver):
            segment.close()
        for segment in (self.seen_by_receiver, self.seen_by_sender):
            segment.close()


@pytest.fixture
def make_ring():
    rings = []

    def make(*arguments, **options):
        rings.append(Ring(*arguments, **options))
        return rings[-1]

    yield make
    for ring in rings:
        ring.close()


@pytest.fixture
def ring(make_ring):
    """Numbers, four at a time."""
    return make_ring()


def drained(receiver):
    """Everything that is there, one by one."""
    return list(iter(receiver.try_pop, None))


def numbers(records):
    return [] if records is None else [number for (number,) in records]


def packed(*numbers):
    return struct.pack(f"<{len(numbers)}Q", *numbers)


def fails_with(code, call, *arguments):
    with pytest.raises(RingError) as caught:
        call(*arguments)
    assert caught.value.code == code


def codec_that(base, *, decode=None, decode_many=None, encode=None):
    """A codec that calls these before its own functions; what they raise goes out."""

    def before(first, then):
        def call(*arguments):
            first(*arguments)
            return then(*arguments)

        return then if first is None else call

    return base._replace(
        decode=before(decode, base.decode),
        decode_many=before(decode_many, base.decode_many),
        encode=before(encode, base.encode),
    )


def once(action):
    """Do it the first time only."""
    left = [action]

    def call(*arguments):
        if left:
            left.pop()(*arguments)

    return call


def number_in(data):
    return int.from_bytes(bytes(data[:8]), "little")


class Bad(ValueError):
    """What a codec raises for a record that it cannot decode."""
