"""SIGKILL at random moments, to forks and to fresh interpreters: see test_kills.py.

A process of its own is the survivor of all its victims.
"""

import contextlib
import ctypes
import gc
import json
import mmap
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import trio

import memenpsf
import memenpsf.trio
from tests.reliability import campaign
from tests.reliability.victims import (
    LONG,
    Note,
    Work,
    attachments,
    check_message,
    live,
    receive,
    send,
)

MAX_LIFE = 0.008  # seconds from when a victim is ready
LATE = 0.3  # of the survivors receive only when their victim is dead


# -- victims ---------------------------------------------------------------------------------------


def forked(work, note, numbers, *, sends):
    """Return (socket, a function that kills) of a victim that is a fork."""
    ours, its = socket.socketpair()
    parent, pid = os.getpid(), os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)
            if os.getppid() == parent:
                ours.close()
                live(its, work, note, numbers, sends=sends)
        os._exit(1)
    its.close()
    return ours, pid


FRESH = """\
import ctypes, mmap, os, random, socket, sys
ctypes.CDLL(None).prctl(1, 9)
parent, fd, memory, gift, seed, frames, sends = map(int, sys.argv[1:])
if os.getppid() != parent: os._exit(1)
from tests.reliability import victims
note = victims.Note(mmap.mmap(memory, 4096))
work = victims.Work(seed, frames=bool(frames), gift=gift)
victims.live(socket.socket(fileno=fd), work, note, random.Random(seed), sends=bool(sends))
"""


def fresh(work, memory, *, sends):
    """Return (socket, process) of a victim that is an interpreter of its own."""
    ours, its = socket.socketpair()
    numbers = (os.getpid(), its.fileno(), memory, work.gift, work.seed, work.frames, sends)
    process = subprocess.Popen(
        [sys.executable, "-c", FRESH, *(str(int(number)) for number in numbers)],
        pass_fds=(its.fileno(), memory, work.gift),
    )
    its.close()
    return ours, process


# -- the survivor ------------------------------------------------------------------------------------


class Moment:
    """Kills at a random moment, whatever the survivor does then: by a signal to itself."""

    def __init__(self, pid, seconds):
        self.pid = pid
        self.at = 0.0
        signal.signal(signal.SIGALRM, self._kill)
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-6))

    def _kill(self, *_):
        self.at = time.monotonic()
        os.kill(self.pid, signal.SIGKILL)


def wait_for(moment, interface):
    """Let the victim die, and see the end, before anything is received."""
    while not moment.at:
        time.sleep(MAX_LIFE)
    with contextlib.suppress(memenpsf.PeerDied):
        interface.recv_ctrl_msg(LONG)


async def receive_by_trio(interface, work, note, numbers):
    while True:
        if numbers.random() < 0.5 or (work.frames and work.attached(note.done)):
            message = await interface.recv_message(LONG)
            assert message is not None, "the survivor waited for ever"
            check_message(message, work, note.done)
            note.did(note.done + 1)
        else:
            records = await interface.recv_vectored(numbers.randrange(1, 20), LONG)
            assert records, "the survivor waited for ever"
            for n, record in enumerate(records, note.done):
                work.check(record, n)
            note.did(note.done + len(records))


async def send_by_trio(interface, work, note, numbers):
    while True:
        note.begins(note.done + 1)
        with attachments(work, note.done) as (fds, regions):
            await interface.xmit(work.make(note.done), LONG, fds=fds, regions=regions)
        note.did(note.done + 1)


def survive(sock, work, numbers, pid, *, sends, by_trio):
    """Receive what the victim sends, or send; return (own note, seconds to see its death)."""
    own = Note(bytearray(24))
    moment, late = None, False

    async def with_trio():
        nonlocal moment
        interface = memenpsf.trio.Interface(
            trio.socket.from_stdlib_socket(sock), work.record, **work.options
        )
        async with interface:
            await interface.do_handshake()
            moment = Moment(pid, numbers.random() ** 2 * MAX_LIFE)
            await (receive_by_trio if sends else send_by_trio)(interface, work, own, numbers)

    try:
        if by_trio:
            trio.run(with_trio)
        with memenpsf.Interface(sock, work.record, **work.options) as interface:
            moment = Moment(pid, numbers.random() ** 2 * MAX_LIFE)
            late = sends and numbers.random() < LATE
            if late:
                wait_for(moment, interface)
            (receive if sends else send)(interface, work, own, numbers)
    except memenpsf.PeerDied:
        seen = time.monotonic()
    assert moment.at, "the victim was taken for dead before it was killed"
    return own, None if late else seen - moment.at


def check(work, own, victim, *, sends):
    """Compare what both sides have noted."""
    assert victim.words[2] == 0, "the victim found something wrong"
    if sends:  # what was published arrived, and of what was in flight any part from its beginning
        assert victim.done <= own.done <= victim.begun, (victim.done, own.done, victim.begun)
    else:  # and nothing arrived that was not sent
        assert victim.done <= own.begun, (victim.done, own.begun)


def state():
    """Return what must be the same behind each death: descriptors, children, mappings."""
    gc.collect()
    here = Path("/proc/self")
    children = (here / f"task/{os.getpid()}/children").read_text()
    descriptors = len(list((here / "fd").iterdir()))
    return descriptors, children, (here / "maps").read_text().count("memfd:")


def main(kind, count, which):
    """Survive so many; print the latencies."""
    numbers = campaign.numbers(f"kill {kind} {which}")
    memory = os.memfd_create("note")
    os.truncate(memory, 4096)
    gift = os.memfd_create("gift")
    note = Note(mmap.mmap(memory, 4096))
    before, latencies, records = None, [], 0
    for n in range(count):
        note.clear()
        frames, sends, by_trio = n % 2 == 1, n % 4 < 2, n % 10 == 9
        seed = numbers.getrandbits(32)
        work = Work(seed, frames=frames, gift=gift)
        process = None
        try:
            if kind == "forked":
                sock, pid = forked(work, note, random.Random(seed), sends=sends)
            else:
                sock, process = fresh(work, memory, sends=sends)
                pid = process.pid
            own, latency = survive(sock, work, numbers, pid, sends=sends, by_trio=by_trio)
            if process is None:
                os.waitpid(pid, 0)
            else:
                process.wait()
            check(work, own, note, sends=sends)
        except BaseException:
            how = f"{frames=} {sends=} {by_trio=}"
            print(f"victim {n} of {kind}, {which}: {how}, seed {seed}", file=sys.stderr)
            raise
        if latency is not None:
            latencies.append(latency)
        records += own.done
        if n == 19:
            before = state()
        if n > 19 and (n % 500 == 0 or n == count - 1):
            assert state() == before, (state(), before)
    latencies.sort()
    print(json.dumps({"victims": count, "records": records, "latencies": latencies}))
