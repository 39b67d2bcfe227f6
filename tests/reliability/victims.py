"""Who is killed by kills.py: sends or receives in all the ways there are, and says how far it is.

It says so in memory that it shares: before a call, how far that may bring it, and after it, how far
it did.  Every record tells its number, and has a checksum.  The survivor does the same.
"""

import contextlib
import os
import random
import struct
import time
import traceback
import zlib

import fdpass
import memenpsf

LONG = 30  # seconds after which a survivor that waits is taken to wait for ever
SIZE = 32
HEADER = struct.Struct("<QII")  # number, checksum of the rest, what is attached
OUTSIDE, REGION, GIFT = 3000, 1, 2
PAUSE = 0.001
LIMITS = {"accept": memenpsf.Accept(fds=4, regions=4)}


NOISE = random.Random("noise").randbytes(1 << 16)


def body(number, size):
    at = number * 2654435761 % (len(NOISE) - size)
    return NOISE[at : at + size]


class Work:
    """What both sides know of one connection: its records are those of a seed."""

    def __init__(self, seed, *, frames, gift):
        self.seed = seed
        self.frames = frames
        self.gift = gift
        self.record = bytes if frames else SIZE
        self.options = {"capacity": 4096, **LIMITS} if frames else {"capacity": 16}

    def attached(self, number):
        if not self.frames or number % 13:
            return 0
        return 1 + (number // 13) % 3  # of REGION and GIFT

    def make(self, number):
        size = SIZE - HEADER.size
        if self.frames:
            size = OUTSIDE if number % 17 == 5 else number * 31 % 400
        data = body(number ^ self.seed, size)
        return HEADER.pack(number, zlib.crc32(data), self.attached(number)) + data

    def check(self, got, number):
        assert bytes(got) == self.make(number), f"wanted record {number}, got {bytes(got)[:40]!r}"


class Note:
    """How far a victim has come: in memory, one word after the other, each written at once."""

    def __init__(self, memory):
        self.words = memoryview(memory).cast("Q")

    def begins(self, until):
        self.words[1] = until

    def did(self, until):
        self.words[1] = self.words[0] = until

    @property
    def done(self):
        return self.words[0]

    @property
    def begun(self):
        return max(self.words[1], self.words[0])

    def clear(self):
        self.words[0] = self.words[1] = self.words[2] = 0


# -- sending -------------------------------------------------------------------------------------


@contextlib.contextmanager
def attachments(work, number):
    """Give the descriptors and the regions to send with a record."""
    attached = work.attached(number)
    fds = [work.gift] if attached & GIFT else None
    if not attached & REGION:
        yield fds, None
        return
    with fdpass.MemoryRegion.create(100) as region:
        region.buffer[:8] = number.to_bytes(8, "little")
        yield fds, [region]


def send_one(interface, work, number):
    with attachments(work, number) as (fds, regions):
        interface.xmit(work.make(number), LONG, fds, regions)


def lend_one(interface, work, number):
    data = work.make(number)
    with interface.loan(len(data) if work.frames else 1, timeout=LONG) as loan:
        loan.data[:] = data


def send(interface, work, note, numbers):
    """Send until killed, or until nobody takes it."""
    number = 0
    while True:
        how = numbers.random()
        if how > 0.99:
            time.sleep(PAUSE)  # so that the survivor goes to sleep
        special = work.frames and (work.attached(number) or number % 17 == 5)
        if how < 0.6 or special:
            note.begins(number + 1)
            send_one(interface, work, number)
            number += 1
        elif how < 0.8:
            note.begins(number + 1)
            lend_one(interface, work, number)
            number += 1
        else:
            last = number + numbers.randrange(1, 30)
            if work.frames:  # nothing can be attached to those of a batch
                last = next((n for n in range(number + 1, last) if work.attached(n)), last)
            note.begins(last)
            records = [work.make(n) for n in range(number, last)]
            assert interface.xmit_many(records, LONG) == len(records)
            number = last
        note.did(number)


# -- receiving -----------------------------------------------------------------------------------


def check_message(message, work, number):
    with contextlib.closing(message):
        work.check(message.record, number)
        attached = work.attached(number)
        assert len(message.regions) == bool(attached & REGION)
        assert len(message.fds) == bool(attached & GIFT)
        for region in message.regions:
            assert region.buffer[:8] == number.to_bytes(8, "little")
        for fd in message.fds:
            assert os.path.sameopenfile(fd.fileno(), work.gift)


def receive_some(interface, work, number, how):
    """Receive one or more in one of all ways, from this number on; return how many."""
    if how < 0.4 or (work.frames and work.attached(number)):
        message = interface.recv_message(LONG)
        assert message is not None, "the survivor waited for ever"
        check_message(message, work, number)
        return 1
    if how < 0.6:
        record = interface.recv(LONG)
        assert record is not None, "the survivor waited for ever"
        work.check(record, number)
        return 1
    if how < 0.8:
        limit = 1 + int(how * 1000) % 20
        records = interface.recv_vectored(limit, LONG)
        assert records, "the survivor waited for ever"
    else:
        with interface.borrow(3, timeout=LONG) as lent:
            assert len(lent), "the survivor waited for ever"
            if work.frames:
                records = [bytes(each.data) for each in lent]
            else:
                data = bytes(lent.data)
                records = [data[at : at + SIZE] for at in range(0, len(data), SIZE)]
    for n, record in enumerate(records, number):
        work.check(record, n)
    return len(records)


def receive(interface, work, note, numbers):
    """Receive until killed, or until nothing more can come; note each."""
    while True:
        note.begins(note.done + 64)
        how = numbers.random()
        if how > 0.99:
            time.sleep(PAUSE)
        note.did(note.done + receive_some(interface, work, note.done, how))


# -- living ----------------------------------------------------------------------------------------


def live(sock, work, note, numbers, *, sends):
    """Be a victim: what goes wrong is told by the third word of the note."""
    try:
        interface = memenpsf.Interface(sock, work.record, **work.options)
        (send if sends else receive)(interface, work, note, numbers)
    except BaseException:  # noqa: BLE001 (told to the survivor)
        note.words[2] = 1
        traceback.print_exc()
