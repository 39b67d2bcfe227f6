"""Numbered records with a CRC, moved through an Interface by every verb of the sync door.

Imported by the tests here, and by the programs that they start.
"""

import contextlib
import itertools
import os
import random
import threading
import time
import zlib

from ipcqueue import EndOfStream
from tests.kit.sleeping import await_sleep

LEAST = 12  # bytes: a number of 8, and a CRC
NOISE = random.Random("noise").randbytes(1 << 17)


def made(number, size, chance):
    """Return record `number`."""
    start = chance.randrange(len(NOISE) - size)
    body = number.to_bytes(8, "little") + NOISE[start : start + size - LEAST]
    return body + zlib.crc32(body).to_bytes(4, "little")


def check(number, data):
    assert int.from_bytes(data[:8], "little") == number, f"{bytes(data[:8]).hex()} for {number}"
    assert zlib.crc32(data[:-4]) == int.from_bytes(data[-4:], "little"), f"{number} is torn"


def pause(chance):
    """Do nothing for a while: mostly a very short one."""
    kind = chance.randrange(1000)
    if kind == 0:
        time.sleep(chance.random() * 1e-4)
    elif kind < 20:
        os.sched_yield()
    elif kind < 300:
        for _ in range(chance.randrange(50)):
            pass


def send_all(side, count, most, chance):
    """Send `count` records of the size that a slot has, or messages of up to `most` bytes."""
    slot = side.record if isinstance(side.record, int) else None

    def size():
        if slot is not None:
            return slot
        return chance.randrange(LEAST, most if chance.random() < 1 / 32 else min(most, 100))

    def record(number):
        return made(number, size(), chance)

    sent = 0
    while sent < count:
        n = min(chance.randrange(1, 100), count - sent)
        verb = chance.randrange(3)
        if verb == 0:
            for number in range(sent, sent + n):
                side.xmit(record(number))
        elif verb == 1:
            assert side.xmit_many([record(number) for number in range(sent, sent + n)]) == n
        elif slot is None:
            for number in range(sent, sent + n):
                data = record(number)
                with side.loan(len(data)) as loan:
                    loan.data[:] = data
        else:
            n = min(n, side.capacity)
            with side.loan(n) as loan:
                loan.data[:] = b"".join(record(number) for number in range(sent, sent + n))
        sent += n
        pause(chance)


def _borrowed(side, limit):
    """Return copies of the records that can be borrowed at once."""
    with side.borrow(limit) as records:
        if not isinstance(side.record, int):
            return [bytes(message.data) for message in records]
        data, size = bytes(records.data), side.record
        return [data[at : at + size] for at in range(0, len(data), size)]


def _some(side, n, chance):
    """Yield up to `n` records, by any verb."""
    verb = chance.randrange(5)
    if verb == 0:
        for _ in range(n):
            yield side.recv()
    elif verb == 1:
        yield from side.recv_vectored(n)
    elif verb == 2:
        yield from itertools.islice(side, n)
    elif verb == 3:
        yield from _borrowed(side, n)
    else:
        while n and (data := side.recv(timeout=0)) is not None:
            yield data
            n -= 1


def receive_all(side, chance):
    """Receive records until the peer ends; return how many."""
    taken = 0
    with contextlib.suppress(EndOfStream):
        while True:
            for data in _some(side, chance.randrange(1, 100), chance):
                check(taken, data)
                taken += 1
            pause(chance)
    return taken


# -- round trips -------------------------------------------------------------------------------

MAX_UNDER_WAY = 3  # where either ring holds one: with more both sides would wait for ever

# Every HOLD-th record is answered only when the asking side has announced that it sleeps.  So it
# announces that once for each of them, on any number of processors, whatever else runs there.  It
# has sent the next such record only after it took an answer to a later record than the last one,
# as at most MAX_UNDER_WAY are under way; before that it withdrew the announcement that was seen.
HOLD = 32
assert HOLD > MAX_UNDER_WAY


def ask(side, trips, size, chance):
    done = 0
    while done < trips:
        n = min(chance.randrange(1, MAX_UNDER_WAY + 1), trips - done)
        for number in range(done, done + n):
            side.xmit(made(number, size, chance))
            pause(chance)
        for number in range(done, done + n):
            check(number, side.recv())
            pause(chance)
        done += n


def answer(side, trips, hold, chance):
    """Send each record back; with `hold`, every HOLD-th one to a side that sleeps."""
    for number in range(trips):
        data = side.recv()
        check(number, data)
        pause(chance)
        if hold and number % HOLD == 0:
            await_sleep(side._endpoint)
        side.xmit(data)


def ask_by_threads(side, trips, size, chance):
    """As ask(), but two threads send, and two receive: each record comes back once."""
    numbers, turns = iter(range(trips)), iter(range(trips))
    back, lock = [], threading.Lock()

    def send(own):
        while (number := _next(numbers, lock)) is not None:
            side.xmit(made(number, size, own))
            pause(own)

    def receive(own):
        while _next(turns, lock) is not None:
            data = side.recv()
            check(int.from_bytes(data[:8], "little"), data)
            back.append(data[:8])
            if len(back) % 64 == 0:  # each rescue takes so long that all would take for ever
                assert side.statistics().rescues == 0, side.statistics()
            pause(own)

    _at_once(side, chance, send, send, receive, receive)
    assert sorted(int.from_bytes(each, "little") for each in back) == list(range(trips))


def answer_by_threads(side, trips, hold, chance):
    """As answer(), by three threads.

    While one of them holds an answer back, a thread of the other side is about to receive it, and
    sleeps when all others have been received.
    """
    turns, lock = iter(range(trips)), threading.Lock()

    def echo(own):
        while (turn := _next(turns, lock)) is not None:
            data = side.recv()
            if hold and turn % HOLD == 0:
                await_sleep(side._endpoint)
            side.xmit(data)
            pause(own)

    _at_once(side, chance, echo, echo, echo)


def _next(numbers, lock):
    with lock:
        return next(numbers, None)


def _at_once(side, chance, *tasks):
    """Run each task in a thread; if one fails, end the others, too, and raise what it raised."""
    failed = []

    def run(task, own):
        try:
            task(own)
        except BaseException as error:  # noqa: BLE001 (raised below)
            failed.append(error)
            side.close()

    threads = [
        threading.Thread(target=run, args=(task, random.Random(chance.random())), daemon=True)
        for task in tasks
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
