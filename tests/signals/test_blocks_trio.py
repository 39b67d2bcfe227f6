"""Ctrl-C on the way into and out of an async with block: at every place where Trio may raise it."""

import contextlib
import signal
import socket

import pytest
import trio

import memenpsf.trio
from tests.kit.places import STEP, Places, _check_tracer

NAMES = {}
exec(
    compile(
        """
async def program(block, use):
    async with block as it:
        use(it)
    return True
""",
        "<the program>",
        "exec",
    ),
    NAMES,
)
program = NAMES["program"]


class TrioPlaces(Places):
    """Lets Trio decide at each place whether Ctrl-C strikes there or at the next checkpoint."""

    def handle(self, number, frame):
        if self.second is None:
            self.stop()
        else:
            self.left, self.second = self.second, None
        signal.getsignal(signal.SIGINT)(signal.SIGINT, frame)


class Failed(Exception):
    """What a block raises of its own accord."""


async def opened(spec):
    here, there = socket.socketpair()
    one, other = memenpsf.trio.Interface(here, spec), memenpsf.trio.Interface(there, spec)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.do_handshake)
        nursery.start_soon(other.do_handshake)
    return one, other


SPECS = {
    "records": ("<Q", [(0,), (1,)], b"".join(n.to_bytes(8, "little") for n in range(2))),
    "messages": (bytes, [b"0123456789"], b"0123456789"),
}


class Block:
    def __init__(self, verb, shape, ending):
        self.verb, self.ending = verb, ending
        self.spec, self.records, self.data = SPECS[shape]

    async def new(self):
        self.one, self.other = await opened(self.spec)
        self.seen = []
        if self.verb == "loan":
            size = len(self.data) if self.spec is bytes else len(self.records)
            return self.one.loan(size, timeout=0)
        await self.one.xmit_many(self.records)
        return self.other.borrow(timeout=0)

    def use(self, it):
        if self.verb == "loan":
            it.data[:] = self.data
        else:
            self.seen = self.records
            assert bytes(it[0].data if self.spec is bytes else it.data) == self.data
        if self.ending == "raises":
            raise Failed

    async def check(self, left_well):
        got = []
        while (record := await self.other.recv(timeout=0)) is not None:
            got.append(record)
        everything = self.records if self.verb == "loan" else []
        nothing = [] if self.verb == "loan" else self.records
        if self.ending == "raises":
            assert got == nothing
        elif left_well:
            assert got == everything
        assert got in (everything, nothing)
        assert got + self.seen in (self.records, []) or self.seen + got == self.records * 2
        await self.one.xmit(self.records[0], timeout=0)
        assert await self.other.recv(timeout=0) == self.records[0]
        async with self.one.loan(1, timeout=0) as loan:
            loan.data[:1] = self.data[:1] if self.spec is bytes else loan.data[:1]
        async with self.other.borrow(timeout=0) as lent:
            assert len(lent) > 0
        await self.one.aclose()
        await self.other.aclose()


async def strike(block, places):
    """Run the program with Ctrl-C at a place; return what came of it, and the exception."""
    it = await block.new()
    left_well, struck = None, None
    try:
        places.start()
        try:
            left_well = await program(it, block.use)
        except Failed:
            left_well = False
        finally:
            places.stop()
        while True:  # those that came where Trio does not raise
            await trio.lowlevel.checkpoint()
            break
    except KeyboardInterrupt as error:
        struck = error  # and every frame that it has passed through
    with contextlib.suppress(KeyboardInterrupt):  # a second one
        await trio.lowlevel.checkpoint()
    await block.check(left_well)
    return it, struck


@pytest.mark.parametrize("ending", ["ends", "raises"])
@pytest.mark.parametrize("shape", SPECS)
@pytest.mark.parametrize("verb", ["loan", "borrow"])
@pytest.mark.parametrize("signals", [1, 2])
def test_ctrl_c_anywhere_leaves_nothing_lent(verb, shape, ending, signals):
    _check_tracer()
    block = Block(verb, shape, ending)
    apart = ("site-packages", "/fdpass/")

    async def main():
        step = 1 if STEP == 1 or signals == 1 else 37
        total = 0
        for nth in range(0, 10_000, step):
            for second in range(10_000) if signals == 2 else (None,):
                places = TrioPlaces(nth, None, apart, second)
                previous = signal.signal(signal.SIGUSR1, places.handle)
                try:
                    await strike(block, places)
                finally:
                    signal.signal(signal.SIGUSR1, previous)
                if len(places.arrived) < signals:
                    break
                total += 1
            if not places.arrived:
                return total
        raise AssertionError("the block does not end")

    assert trio.run(main) > 20
