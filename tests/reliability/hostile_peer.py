"""Peers that introduce themselves, and then do whatever they like; and the victim that serves them.

    python -m tests.reliability.hostile_peer victim SHAPE DOOR SEED CONNECTIONS
    python -m tests.reliability.hostile_peer attack SHAPE PATH SEED CONNECTIONS

The victim starts the attackers.

An attacker writes into its own segment at any time, near every bound and anywhere, and sends bytes,
opcodes and descriptors, right ones too, so that the victim comes to what lies behind the checks.  The
victim uses every verb with short timeouts.  It ends with an error, and the seed, if a verb raises what
it should not, takes longer than its timeout (and PATIENCE), or leaves a descriptor or a mapping
behind; or if an honest client of the same listener notices anything.
"""

import contextlib
import ctypes
import gc
import itertools
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import trio
from ipcqueue._core import ffi

import fdpass
import memenpsf
import memenpsf.trio
from ipcqueue._ring.frame import extent
from ipcqueue.lowlevel import Opening, Terms, advance
from tests.kit.hostile import (
    BOTH_WAYS,
    ENDED,
    FDS,
    FRAME,
    HEAD,
    LENT,
    ONCE,
    OUT_AGAIN,
    OUT_OF_LINE,
    PLACE,
    RING,
    TAIL,
    WAIT_RECORDS,
    moved,
)
from tests.kit.settling import settle

PATIENCE = 20.0  # seconds: for a machine that has other things to do
MUTATIONS = 300  # of one connection

ACCEPT = {"accept": memenpsf.Accept(fds=4, regions=4, shared=True, message=1 << 20)}
SHAPES = {
    "bytes": (bytes, ACCEPT),
    "messages": (memenpsf.Message, {"accept": memenpsf.Accept(fds=2, sockets=True, message=5000)}),
    "numbers": ("<QdI", {}),
    "blobs": (24, {}),
    "bytes of one": (1, {}),
}
ALLOWED = (
    memenpsf.CorruptPeer,
    memenpsf.Refused,
    memenpsf.PeerDied,
    memenpsf.EndOfStream,
    memenpsf.ReceiverGone,
    memenpsf.DescriptorsLost,
)


def die_with_parent(parent):
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


# -- the attacker ---------------------------------------------------------------------------------


class Attacker:
    """One hostile connection."""

    def __init__(self, path, spec, chance):
        self.chance = chance
        self.frames = spec in (bytes, memenpsf.Message)
        capacity = chance.choice([4096, 16384, 1 << 16] if self.frames else [1, 4, 64, 1024])
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(path))
        opening = Opening(sock, Terms(spec, BOTH_WAYS, capacity=capacity, **ACCEPT_ALL))
        deadline = time.monotonic() + PATIENCE
        while (endpoint := advance(opening)) is None:
            if time.monotonic() > deadline:
                raise TimeoutError("the victim does not introduce itself")
            time.sleep(0.0001)
        self.endpoint, self.sock, self.capacity = endpoint, sock, endpoint.capacity
        own = endpoint._own.mapping
        self.size = own.size
        self.mapping, self.own = own, ffi.buffer(own.at, own.size)
        self.peer = ffi.buffer(endpoint._peer.mapping.at, RING)
        self.files = [
            fdpass.Fd(os.open("/dev/null", os.O_RDONLY)),
            fdpass.Fd(os.open("/", os.O_RDONLY)),
            *map(fdpass.Fd, os.pipe()),
            *(self.memory(seals) for seals in (0, 0x1F, 7, 15, LENT)),
            self.memory(LENT, 4096),
            *(fdpass.Fd(each.detach()) for each in socket.socketpair()),
        ]
        self.lent = self.files[9]
        self.head, self.numbers, self.under_way = 0, set(), []
        # How often it breaks the rules: where it always does, the victim sees little of it.
        self.wildness = chance.choice([0, 0.003, 0.02, 0.2])

    def memory(self, seals, size=None):
        size = size or self.chance.choice([1, 4096, 70_000])
        memfd = fdpass.Memfd.create("attacker", size)
        memfd.seal(fdpass.Seal(seals))
        return memfd

    def put(self, offset, form, value):
        offset = moved(self.mapping, offset)
        struct.pack_into(form, self.own, offset, value & ((1 << 8 * struct.calcsize(form)) - 1))

    def of_peer(self, offset):
        return struct.unpack_from("=Q", self.peer, offset)[0]

    def near(self, index):
        c, choice = self.capacity, self.chance
        bounds = (-c, -17, -16, -1, 0, 1, 15, 16, 17, 32, c // 2, c - 16, c - 1, c, c + 1, 2 * c)
        return index + choice.choice([choice.randrange(c + 1), *bounds, choice.getrandbits(64)])

    def header(self, *, wild):
        choice = self.chance
        size, flags, fds, regions, reserved = choice.randrange(200), 0, 0, 0, 0
        if wild:
            size = choice.choice([0, 15, 16, 17, self.capacity - 16, 1 << 31, 0xFFFFFFFF, size])
            flags = choice.choice([0, 0xFF, 0x100, 0x4000, 0x8000, 0xC000, choice.getrandbits(16)])
            fds, regions = (
                choice.choice([0, 1, 2, 253, 65535]),
                choice.choice([0, 1, 2, 254, 65535]),
            )
            reserved = choice.choice([0, 0, 1])
        return size, choice.getrandbits(32), flags, fds, regions, reserved

    def write_frame(self, at, header, payload=b""):
        at &= self.capacity - 16
        FRAME.pack_into(self.own, RING + at, *header)
        at = RING + (at + 16) % self.capacity
        payload = payload[: RING + self.capacity - at]
        self.own[at : at + len(payload)] = payload

    def publish(self, *, wild):
        """Frames that are right, or nearly, with what belongs to them sent before; or records."""
        choice, tail = self.chance, self.of_peer(TAIL)
        if wild or not 0 <= self.head - tail <= self.capacity:
            self.head = tail  # over what is perhaps being read
        if not self.frames:
            self.head = tail + choice.randrange(self.head - tail, self.capacity + 1)
            self.put(HEAD, "=Q", self.head)
            return
        for _ in range(choice.randrange(1, 6)):
            payload, header, given = b"", list(self.header(wild=wild)), []
            kind = choice.randrange(8)
            if kind == 0:  # with descriptors of the application's
                given = choice.choices(self.files[:4], k=choice.choice([1, 2, 2 + 2 * wild]))
                header[3] = len(given)
            elif kind == 1:  # a region
                given = choice.choice([self.files[7:8], [self.lent, self.files[3]]])
                given = self.files[6:7] if wild else given  # shared
                given = [given[0]] * 9 if wild and choice.random() < 0.3 else given
                header[4] = len(given)
            elif kind in (2, 3):  # outside the ring; its memory comes along the first time
                size = choice.choice([1, self.lent.size])
                number = choice.randrange(16)
                if wild:
                    size = choice.choice([0, self.lent.size + 1, 1 << 40, 1 << 63])
                    number = choice.choice([15, 16, ONCE, choice.getrandbits(32)])
                payload = PLACE.pack(size, number, 0)
                again = number in self.numbers and choice.random() < 0.7
                header[0], header[2], header[4] = (
                    PLACE.size,
                    OUT_AGAIN if again else OUT_OF_LINE,
                    not again,
                )
                given = [] if again else [self.lent]
            if extent(header[0]) > self.capacity - (self.head - tail) and not wild:
                break
            self.under_way = [end for end in self.under_way if end > tail]
            if given and len(self.under_way) == 16 and not wild:
                break
            if given:
                self.send(bytes((FDS, len(given))), given)
                self.under_way.append(self.head + extent(header[0]))
            if kind in {2, 3}:
                self.numbers.add(number)
            self.write_frame(self.head, header, payload)
            self.head += extent(header[0])
        self.put(HEAD, "=Q", self.head)

    def send(self, data, fds=()):
        flags = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
        rights = fdpass._rights.pack([fd.fileno() for fd in fds]) if fds else []
        with contextlib.suppress(BlockingIOError):
            self.sock.sendmsg([data], rights, flags)

    def mutate(self):
        choice = self.chance
        wild = choice.random() < self.wildness
        what = choice.randrange(20)
        if what < 8:
            self.publish(wild=wild)
        elif what == 8 and wild:
            self.put(HEAD, "=Q", self.near(self.of_peer(TAIL)))
        elif what == 9 and wild:
            self.put(TAIL, "=Q", self.near(self.of_peer(HEAD)))
        elif what in (10, 11):
            self.put(TAIL, "=Q", self.of_peer(HEAD))
        elif what == 12:
            self.put(WAIT_RECORDS + 4 * choice.randrange(2), "=I", choice.getrandbits(32))
        elif what == 13:
            self.put(ENDED, "=I", wild)
        elif what == 14:
            at = choice.randrange(self.size)
            count = min(choice.choice([1, 8, 64, 4096]), self.size - at)
            if wild or (at >= RING and not self.frames):
                self.own[at : at + count] = choice.choice([bytes, choice.randbytes])(count)
        elif what == 15 and wild and self.frames:
            offset = choice.choice([self.of_peer(TAIL), choice.randrange(self.capacity)])
            self.write_frame(offset, self.header(wild=True))
        elif what == 16:
            self.send(bytes((choice.choice([1, 2, 128, 200, 255]), choice.randrange(256))) * 3)
        elif what == 17 and wild:
            self.send(choice.randbytes(choice.randrange(1, 9)))
        elif what == 18 and wild:
            given = choice.choices(self.files, k=choice.choice([1, 2, 17, 253]))
            self.send(bytes((FDS, choice.choice([len(given), 1]))), given)
        elif what == 19:
            with contextlib.suppress(BlockingIOError):
                self.sock.recv(4096, socket.MSG_DONTWAIT)

    def run(self):
        with contextlib.suppress(ConnectionError):
            for _ in range(MUTATIONS):
                self.mutate()
                if self.chance.random() < 0.05:
                    time.sleep(0.0001)  # else the victim would see only how it ends
        if self.chance.random() < 0.5:
            with contextlib.suppress(OSError):
                self.sock.shutdown(self.chance.randrange(3))

    def close(self):
        if self.chance.random() < 0.5:
            self.endpoint.close()
        else:  # without a word
            self.sock.close()
            self.endpoint.close()
        for fd in self.files:
            fd.close()


ACCEPT_ALL = {"accept": memenpsf.Accept(fds=253, regions=100, sockets=True), "timeout": None}


def attack(shape, path, seed, connections):
    open_ones = []  # some go on existing, and do nothing more
    for n in range(int(connections)):
        attacker = Attacker(path, SHAPES[shape][0], random.Random(f"{seed} {n}"))
        attacker.run()
        open_ones.append(attacker)
        if len(open_ones) > 3:
            open_ones.pop(0).close()
    for attacker in open_ones:
        attacker.close()


# -- the victim -----------------------------------------------------------------------------------


def consume(message):
    """Use what came with a message as an application does; give its bytes."""
    for region in message.regions:
        sum(region.buffer[:: max(1, region.size // 8)])
    data = message.record
    message.close()
    return data


def receive_message(it, timeout):
    message = it.recv_message(timeout)
    return None if message is None else consume(message)


def borrow(it, timeout):
    with it.borrow(timeout=timeout) as borrowed:
        return sum(
            len(bytes(getattr(each, "data", each))) if not isinstance(each, int) else 1
            for each in borrowed
        )


def loan(it, timeout):
    with it.loan(1, timeout=timeout) as loaned:
        loaned.data[:] = bytes(len(loaned.data))


class Interrupt(Exception):
    """Like Ctrl-C; a loop waits as long as the peer lives."""


def interrupt(*_):
    raise Interrupt


def loop(it):
    signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    try:
        return list(itertools.islice(it, 5))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def receiving(it, timeout):
    return [
        lambda: it.recv(timeout),
        lambda: it.recv_vectored(None, timeout),
        lambda: it.recv_vectored(3, timeout),
        lambda: receive_message(it, timeout),
        lambda: borrow(it, timeout),
        lambda: loop(it),
        lambda: it.recv_ctrl_msg(timeout),
    ]


def sending(it, timeout, record, chance):
    many = [record] * chance.randrange(200)
    return [
        lambda: it.xmit(record, timeout),
        lambda: it.xmit_many(many, timeout),
        lambda: loan(it, timeout),
        lambda: it.send_ctrl_msg(b"\x80\x01", timeout),
        lambda: it.arm(space=chance.random() < 0.5),
        lambda: (it.statistics(), it.indices()),
    ]


def example(shape, chance):
    spec = SHAPES[shape][0]
    if shape == "numbers":
        return (1, 2.0, 3)
    if isinstance(spec, int):
        return bytes(spec)
    data = bytes(chance.choice([0, 10, 1000, 30_000]))
    return data if spec is bytes else memenpsf.Message(data[:5000], 5, 6)


class Took:
    """Notes how long something takes beyond its timeout."""

    longest = 0.0

    @contextlib.contextmanager
    def within(self, timeout):
        start = time.monotonic()
        yield
        late = time.monotonic() - start - timeout
        self.longest = max(self.longest, late)
        if late > PATIENCE:
            raise AssertionError(f"it took {late:.1f} s longer than its timeout of {timeout} s")


def serve(it, shape, chance, took, outcomes):
    """Use every verb until the connection is over, and it stays so."""
    for _ in range(200):
        timeout = chance.choice([0, 0, 0.0005, 0.002])
        calls = receiving(it, timeout) * 2 + sending(it, timeout, example(shape, chance), chance)
        try:
            with took.within(timeout):
                chance.choice(calls)()
            outcomes["done"] += 1
        except Interrupt:
            outcomes["Interrupt"] += 1
        except memenpsf.Full:
            outcomes["Full"] += 1
        except memenpsf.BadRecord:
            outcomes["BadRecord"] += 1  # what this attacker says that it does not accept
        except ALLOWED as error:
            outcomes[type(error).__name__] += 1
            if isinstance(error, memenpsf.CorruptPeer):
                return


async def serve_trio(it, shape, chance, took, outcomes):
    """The same with the other door: two tasks at a time."""

    async def borrow_it(timeout):
        async with it.borrow(timeout=timeout) as borrowed:
            return len(borrowed)

    async def message(timeout):
        got = await it.recv_message(timeout)
        return None if got is None else consume(got)

    async def one(call, timeout):
        try:
            with took.within(timeout):
                await call()
            outcomes["done"] += 1
        except memenpsf.Full:
            outcomes["Full"] += 1
        except memenpsf.BadRecord:
            outcomes["BadRecord"] += 1
        except memenpsf.ConcurrentUse:
            outcomes["ConcurrentUse"] += 1  # of the other task, beside a borrowing
        except ALLOWED as error:
            outcomes[type(error).__name__] += 1

    for _ in range(100):
        timeout = chance.choice([0, 0, 0.0005, 0.002])
        record = example(shape, chance)
        calls = [
            lambda t=timeout: it.recv(t),
            lambda t=timeout: it.recv_vectored(None, t),
            lambda t=timeout: message(t),
            lambda t=timeout: borrow_it(t),
            lambda t=timeout: it.recv_ctrl_msg(t),
            lambda t=timeout, r=record: it.xmit(r, t),
            lambda t=timeout, r=record: it.xmit_many([r] * 20, t),
        ]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one, chance.choice(calls), timeout)
            nursery.start_soon(one, chance.choice(calls), timeout)
        if outcomes["CorruptPeer"]:
            return


class Honest:
    """A client that keeps to the rules, connected to the same listener all the time."""

    def __init__(self, listener, path, shape):
        spec, accept = SHAPES[shape]
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(path))
        opening = Opening(sock, Terms(spec, BOTH_WAYS, **accept))
        advance(opening)
        self.here = listener.accept(timeout=PATIENCE)
        self.there = memenpsf.Interface.of(advance(opening))
        self.region = fdpass.MemoryRegion.create(100) if spec is bytes else None
        if self.region is not None:
            self.region.buffer[:] = bytes(range(100))

    def check(self, shape, chance):
        record = example(shape, chance)
        with_it = {} if self.region is None else {"regions": [self.region]}
        for one, other in ((self.here, self.there), (self.there, self.here)):
            one.xmit(record, PATIENCE, **with_it)
            got = other.recv_message(PATIENCE)
            if got.record != record:
                raise AssertionError("the honest client received something else")
            for region in got.regions:
                if bytes(region.buffer) != bytes(range(100)):
                    raise AssertionError("the honest client received another region")
            got.close()

    def close(self):
        self.here.close()
        self.there.close()
        if self.region is not None:
            self.region.close()


def what_is_open():
    gc.collect()
    settle()
    maps = Path("/proc/self/maps").read_text()
    return len(os.listdir("/proc/self/fd")), maps.count("/memfd:")  # noqa: PTH208


class Outcomes(dict):
    def __missing__(self, key):
        return 0


def victim(shape, door, seed, connections):
    spec, accept = SHAPES[shape]
    chance, took, total = random.Random(f"{seed} victim"), Took(), Outcomes()
    count = int(connections)
    with contextlib.ExitStack() as stack:
        path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "s"
        listener = stack.enter_context(memenpsf.listen(path, spec, timeout=PATIENCE, **accept))
        honest = Honest(listener, path, shape)
        stack.callback(honest.close)
        command = [sys.executable, __file__, "attack", shape, str(path), seed, connections]
        attacker = stack.enter_context(subprocess.Popen([*command, str(os.getpid())]))
        stack.callback(attacker.kill)
        gc.collect()
        gc.freeze()
        honest.check(shape, chance)
        before = what_is_open()
        for n in range(count):
            outcomes = Outcomes()
            try:
                if door == "trio":
                    trio.run(accept_and_serve, listener, shape, chance, took, outcomes)
                else:
                    with listener.accept(timeout=PATIENCE) as it:
                        serve(it, shape, chance, took, outcomes)
                    it = None
            except memenpsf.CorruptPeer as error:  # it wrote before its segment was looked at
                if memenpsf.interface_of(error) is not None:
                    raise
                outcomes["not accepted"] += 1
                del error
            honest.check(shape, chance)
            after = what_is_open()
            if after != before:
                raise AssertionError(f"after {n} connections {after} are open instead of {before}")
            for key, value in outcomes.items():
                total[key] += value
        if attacker.wait(timeout=PATIENCE) != 0:
            raise AssertionError("the attacker failed: it proves nothing")
    print(f"{count} connections, longest {took.longest:.3f} s late:", dict(sorted(total.items())))


async def accept_and_serve(listener, shape, chance, took, outcomes):
    # Trio's door on a connection that the other listener has accepted.
    pending = listener._pending
    while (endpoint := pending.turn()) is None:  # noqa: ASYNC110 (nothing tells a second door)
        await trio.sleep(0.0001)
    async with memenpsf.trio.Interface.of(endpoint, pending.terms, "server") as it:
        await serve_trio(it, shape, chance, took, outcomes)


if __name__ == "__main__":
    if sys.argv[1] == "victim":
        victim(*sys.argv[2:6])
    else:
        die_with_parent(int(sys.argv[6]))
        attack(*sys.argv[2:6])
