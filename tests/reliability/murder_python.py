"""Kill interpreters behind every instruction of a call: see test_murder.py.

A process of its own, as it forks: victims are forks of it, so that they begin warm, and it is the
survivor.  A call may be of many thousand instructions, most of them CPython's: then those in the
modules of this project are taken all, and of the others a sample.
"""

import collections
import contextlib
import ctypes
import functools
import gc
import mmap
import os
import re
import select
import signal
import socket
import sys
import time
import traceback
from functools import partial
from pathlib import Path
from typing import NamedTuple

import memenpsf
from tests.reliability import campaign

CANNOT_WALK, AT_END, LOST = 77, -1, -2  # as in stepping.h
SIZE, CAPACITY, BATCH = 24, 8, 5
REST = 0.06  # seconds; more than LIVENESS_INTERVAL_NS of ends.h
LONG = 20  # seconds after which a survivor that waits is taken to wait for ever
INSIDE, ANYWHERE = 100, 20  # steps at which to kill: in our own code, if it has more, and in all
OURS = re.compile(r"ipcqueue/_(core|waiting|direct|records)\.")


class Way(ctypes.Structure):
    """struct way of stepping.h."""

    _fields_ = [
        ("at", ctypes.POINTER(ctypes.c_uint64)),
        ("times", ctypes.POINTER(ctypes.c_long)),
        ("length", ctypes.c_long),
        ("room", ctypes.c_long),
    ]


def state():
    """Return what must be the same behind each death: descriptors, children, mappings."""
    here = Path("/proc/self")
    children = (here / f"task/{os.getpid()}/children").read_text()
    descriptors = len(list((here / "fd").iterdir()))
    return descriptors, children, (here / "maps").read_text().count("memfd:")


def body(number, size):
    return bytes((number * 37 + i * 11 + (number >> 8)) & 0xFF for i in range(size))


def patiently(result):
    """Return it: None is what a call gives that has waited in vain."""
    assert result is not None, "the survivor waited for ever"
    return result


# -- what a victim does -------------------------------------------------------------------------


class Scene:
    """One call, in one state of the ring."""

    receives = False  # the victim
    asleep = False  # the survivor

    def __init__(self, name, call, record, *, before=0, count=1, turned=0, large=0, **changes):
        self.name = name
        self.call = call  # call(interface, the records to send) -> a function without arguments
        self.record = record
        self.before = before  # records in the ring when it begins
        self.count = count  # and in the call
        self.turned = turned  # and gone through the ring before those
        self.size = large
        self.options = {"capacity": CAPACITY}
        self.gifts = 0
        if record is bytes:
            self.options = {"capacity": 4096, "accept": memenpsf.Accept(fds=4)}
        self.__dict__.update(changes)
        self.begins = 0 if self.receives else before  # the number of the first record of the call

    def data(self, number):
        """Return the record of this number; the first in the ring has 0, those before it -1 …"""
        size = SIZE if self.record == SIZE else self.size or 10 + number * 53 % 300
        return body(number, size)

    def prepared(self, interface):
        return self.call(interface, [self.data(self.begins + n) for n in range(self.count)])


def xmit(interface, data):
    return partial(interface.xmit, data[0])


def xmit_many(interface, data):
    return partial(interface.xmit_many, data)


def xmit_fds(interface, data):
    return partial(interface.xmit, data[0], None, gifts())


def lend(interface, data):
    def fill():
        with interface.loan(len(data[0]) if interface.record is bytes else 1) as loan:
            loan.data[:] = data[0]

    return fill


def close(interface, data):
    return interface.close


def recv(interface, data):
    return interface.recv


def recv_message(interface, data):
    def receive():
        received = interface.recv_message()
        received.close()
        return received.record

    return receive


def recv_vectored(interface, data):
    return interface.recv_vectored


def borrow(interface, data):
    def read():
        with interface.borrow() as lent:
            if interface.record is bytes:
                return b"".join(bytes(each.data) for each in lent)
            return bytes(lent.data)

    return read


@functools.cache
def gifts():
    """Return descriptors to send."""
    return [os.memfd_create("gift") for _ in range(2)]


def files(descriptors):
    return [os.fstat(each).st_ino for each in descriptors]


ASLEEP = {"asleep": True}
WRAPS = {"turned": CAPACITY - 1, "before": 2}
TAKES = {"receives": True, "before": 3}
FULL = {"receives": True, "before": CAPACITY, "turned": 6, "asleep": True}
FRAMES_FULL = {**FULL, "before": 4, "large": 1000}


def scenes():
    for kind, record in (("slots", SIZE), ("frames", bytes)):
        full = FULL if record == SIZE else FRAMES_FULL
        for call in (xmit, lend):
            yield Scene(f"{kind}: {call.__name__}, empty, peer asleep", call, record, **ASLEEP)
            yield Scene(f"{kind}: {call.__name__}, wraps", call, record, **WRAPS)
        yield Scene(f"{kind}: xmit_many, empty, peer asleep", xmit_many, record, count=5, **ASLEEP)
        yield Scene(f"{kind}: xmit_many, wraps", xmit_many, record, count=5, **WRAPS)
        yield Scene(f"{kind}: close, empty, peer asleep", close, record, count=0, **ASLEEP)
        yield Scene(f"{kind}: close, records in the ring", close, record, count=0, **WRAPS)
        yield Scene(f"{kind}: recv", recv, record, **TAKES)
        yield Scene(f"{kind}: recv, full, peer asleep", recv, record, **full)
        for call in (recv_vectored, borrow):
            yield Scene(f"{kind}: {call.__name__}", call, record, count=3, **TAKES)
            count = full["before"]
            if call is borrow and record == SIZE:
                count = CAPACITY - full["turned"]  # up to where the ring wraps around
            yield Scene(f"{kind}: {call.__name__}, full", call, record, count=count, **full)
    yield Scene("frames: xmit, descriptors", xmit_fds, bytes, gifts=2, **ASLEEP)
    yield Scene("frames: xmit, descriptors, wraps", xmit_fds, bytes, gifts=2, **WRAPS)
    yield Scene("frames: xmit, outside", xmit, bytes, large=3000, **ASLEEP)
    yield Scene("frames: recv_message, descriptors", recv_message, bytes, gifts=2, **TAKES)
    yield Scene("frames: recv, outside", recv, bytes, large=3000, **TAKES)


# -- its life ------------------------------------------------------------------------------------


class Note:
    """What the victim says of itself, in memory that it shares."""

    def __init__(self):
        self._memory = mmap.mmap(-1, 1 << 16)

    def clear(self):
        self._memory[0] = 0

    @property
    def returned(self):
        return bool(self._memory[0])

    def write(self, result):
        data = b"".join(result) if isinstance(result, list) else result
        data = data if isinstance(data, bytes) else b""
        self._memory[8 : 8 + len(data)] = data
        self._memory[0] = 1

    def begins_with(self, data):
        return self._memory[8 : 8 + len(data)] == data


class Pair(NamedTuple):
    """A survivor and its victim."""

    survivor: memenpsf.Interface
    pid: int
    note: Note
    since: float

    def end(self):
        bury(self.pid)
        self.survivor.close()


class Walk:
    """Victims of one scene."""

    def __init__(self, scene, walker):
        self.scene = scene
        self.walker = walker
        self.way = Way()
        self.resting = collections.deque()

    def warm_up(self):
        """Make CPython adapt to the call, in the process that victims are forks of."""
        scene = self.scene
        for _ in range(20):
            one, other = memenpsf.pair(scene.record, **scene.options)
            with one, other:
                sender, victim = (other, one) if scene.receives else (one, one)
                for n in range(scene.before):
                    self._send(sender, n)
                Note().write(scene.prepared(victim)())

    def _send(self, interface, n):
        scene = self.scene
        fds = gifts() if scene.receives and scene.gifts and n == 0 else None
        interface.xmit(scene.data(n), LONG, fds)

    def _be_victim(self, sock, note):
        scene = self.scene
        with memenpsf.Interface(sock, scene.record, **scene.options) as interface:
            for n in range(-scene.turned, 0):
                if scene.receives:
                    assert interface.recv(LONG) == scene.data(n)
                else:
                    interface.xmit(scene.data(n), LONG)
            if not scene.receives:
                for n in range(scene.before):
                    self._send(interface, n)
            call = scene.prepared(interface)
            stop = partial(os.kill, os.getpid(), signal.SIGSTOP)
            if self.walker.walker_be_traced() < 0:
                os._exit(CANNOT_WALK)
            stop()
            note.write(call())
            while True:
                stop()

    def start(self):
        """Make a victim that is ready for the call, and a survivor."""
        scene, note = self.scene, Note()
        ours, its = socket.socketpair()
        parent, pid = os.getpid(), os.fork()
        if pid == 0:
            status = 1
            try:
                ctypes.CDLL(None).prctl(1, signal.SIGKILL)
                if os.getppid() == parent:
                    ours.close()
                    self._be_victim(its, note)
            except BaseException:  # noqa: BLE001 (os._exit follows)
                traceback.print_exc()
            finally:
                os._exit(status)
        its.close()
        survivor = memenpsf.Interface(ours, scene.record, **scene.options)
        for n in range(-scene.turned, 0):
            if scene.receives:
                survivor.xmit(scene.data(n), LONG)
            else:
                assert survivor.recv(LONG) == scene.data(n)
        if not self.walker.walker_begins(pid):
            sys.exit(CANNOT_WALK)
        if scene.receives:
            for n in range(scene.before):
                self._send(survivor, n)
        if scene.asleep:
            assert survivor.arm(records=not scene.receives, space=scene.receives)
        return Pair(survivor, pid, note, time.monotonic())

    def rested(self):
        """Return a victim that has not heard of its peer for so long that it asks again.

        All take the same way then; others are made meanwhile.
        """
        while len(self.resting) < 16:
            self.resting.append(self.start())
        pair = self.resting.popleft()
        time.sleep(max(0, pair.since + REST - time.monotonic()))
        return pair

    def explore(self):
        pair = self.rested()
        result = self.walker.walker_explore(pair.pid, ctypes.byref(self.way))
        pair.end()
        if result != AT_END:
            sys.exit(CANNOT_WALK)

    def walked(self, steps):
        """Return a victim behind so many steps; None if all go another way."""
        for _ in range(5):  # what depends on addresses or the time, some do
            pair = self.rested()
            result = self.walker.walker_walk(pair.pid, ctypes.byref(self.way), steps)
            if result == (0 if steps < self.way.length else AT_END):
                return pair
            pair.end()
        return None

    def kill_behind(self, steps):
        """Kill one there; return whether one came so far."""
        scene, pair = self.scene, self.walked(steps)
        if pair is None:
            return False
        with pair.survivor as survivor:
            over = says_goodbye(survivor)
            if pair.note.returned and scene.asleep and scene.count:
                assert readable(survivor), "no doorbell"
            bury(pair.pid)
            if scene.receives:
                self._check_what_was_taken(survivor, pair.note)
            else:
                self._check_what_was_sent(survivor, pair.note, over=over)
        return True

    def end(self):
        for pair in self.resting:
            pair.end()
        self.resting.clear()
        self.walker.walker_forget(ctypes.byref(self.way))

    def _check_what_was_sent(self, survivor, note, *, over):
        scene, got = self.scene, 0
        end = None
        try:
            while True:
                message = patiently(survivor.recv_message(LONG))
                with contextlib.closing(message):
                    assert message.record == scene.data(got), f"record {got} is another one"
                    sent = gifts() if scene.gifts and got >= scene.before else []
                    assert files(fd.fileno() for fd in message.fds) == files(sent)
                got += 1
        except (memenpsf.EndOfStream, memenpsf.PeerDied) as error:
            end = type(error)
        whole = scene.before + scene.count
        assert got == whole or (got == scene.before and not note.returned), got
        if scene.call is not close:
            assert end is memenpsf.PeerDied
        if over or (note.returned and scene.call is close):
            assert end is memenpsf.EndOfStream

    def _check_what_was_taken(self, survivor, note):
        scene = self.scene
        try:
            taken = survivor.statistics().taken
            for _ in range(1000):  # it may believe in its peer for a while; but not wait for it
                survivor.xmit(scene.data(scene.before), LONG)
            raise AssertionError("nobody takes it, and it goes on")
        except memenpsf.PeerDied:
            pass
        extents = [
            1 if scene.record == SIZE else extent(scene, n)
            for n in range(-scene.turned, scene.before)
        ]
        ends = [sum(extents[: scene.turned + n]) for n in range(scene.count + 1)]
        assert taken in ends, (taken, ends)
        if note.returned:
            assert taken == ends[-1]
            assert note.begins_with(b"".join(map(scene.data, range(scene.count))))


def extent(scene, n):
    """Return the bytes of ring of a message, as Interface.indices() says it."""
    size = len(scene.data(n))
    return 32 if size > 1024 else 16 + (size + 15) // 16 * 16


def bury(pid):
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def events(interface):
    poll = select.poll()
    poll.register(interface._endpoint, select.POLLIN | select.POLLRDHUP)
    return dict(poll.poll(0)).get(interface._endpoint.fileno(), 0)


def readable(interface):
    return events(interface) & select.POLLIN


def says_goodbye(interface):
    """Whether the peer, which lives, has shut the connection down."""
    return bool(events(interface) & select.POLLRDHUP)


# -- where they die ------------------------------------------------------------------------------


def our_code():
    """Return the addresses of this project's C code in this process."""
    found = set()
    for line in Path("/proc/self/maps").read_text().splitlines():
        if OURS.search(line) and " r-xp " in line:
            first, last = line.split()[0].split("-")
            found.add(range(int(first, 16), int(last, 16)))
    return found


def chosen(way, numbers):
    """Return at which steps to kill: in our own code, and anywhere."""
    ours, everything = our_code(), range(way.length + 1)
    inside = [n for n in everything[:-1] if any(way.at[n] in part for part in ours)]
    steps = {0, way.length}
    for some, most in ((inside, INSIDE), (everything, ANYWHERE)):
        steps.update(numbers.sample(some, min(len(some), campaign.amount(most))))
    return sorted(steps)


def main(library, which, of):
    walker = ctypes.CDLL(library)
    gc.disable()
    for scene in list(scenes())[which::of]:
        walk = Walk(scene, walker)
        walk.warm_up()
        gc.collect()
        before = state()
        walk.explore()
        length, steps = walk.way.length, chosen(walk.way, campaign.numbers(scene.name))
        died = 0
        for step in steps:
            try:
                died += walk.kill_behind(step)
            except BaseException:
                print(f"{scene.name}, killed behind instruction {step}", file=sys.stderr)
                raise
        walk.end()
        gc.collect()
        assert state() == before, (scene.name, before, state())
        assert died > 0.9 * len(steps), f"{scene.name}: {died} of {len(steps)} found their way"
        print(died, "of", length, scene.name, flush=True)
