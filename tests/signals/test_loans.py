"""Memory of the ring that is lent: a handler at every place of a block."""

import contextlib
import gc
from functools import partial

import pytest

from memenpsf import Closed, ConcurrentUse, EndOfStream
from tests.kit import places
from tests.kit.connected import connection, quick_collector  # noqa: F401 (the fixture)
from tests.kit.places import interrupt

# Places in fdpass are for its own tests.
at_every_place = partial(places.at_every_place, apart=["/fdpass/"])

interrupted = pytest.mark.filterwarnings("ignore::ResourceWarning")


class Block:
    """A with block at one side of a ring of records, new for each place."""

    def __init__(self, kind):
        self.kind = kind
        self.undo = contextlib.ExitStack()

    def __call__(self):
        self.one, self.other = self.undo.enter_context(connection("<Q", capacity=8, start=6))
        self.seen = []
        if self.kind.startswith("borrow"):
            self.one.xmit_many([(n,) for n in range(4)])
        if self.kind == "borrow of what is held":
            it = self.other._endpoint.receiver
            it.pull(1)

    def run(self):
        if self.kind == "loan":
            with self.one.loan(4, timeout=0) as loan:
                loan.data[:] = b"".join(n.to_bytes(8, "little") for n in range(4))
        else:
            with self.other.borrow(timeout=0) as lent:
                seen = [
                    int.from_bytes(lent.data[n : n + 8], "little") for n in range(0, len(lent), 8)
                ]
                self.seen = seen
        return True

    def left(self):
        gc.collect()
        got = [n for (n,) in self.other.recv_vectored(timeout=0)]
        self.one.xmit((99,), timeout=0)
        assert self.other.recv(timeout=0) == (99,)
        assert len(set(self.one.indices())) == 1
        return got


@interrupted
@pytest.mark.parametrize("kind", ["loan", "borrow", "borrow of what is held"])
def test_an_exception_anywhere_means_done_or_not_done(kind):
    block = Block(kind)

    def check(result):
        left = block.left()
        if kind == "loan":
            assert left == [0, 1, 2, 3] if result else left in ([], [0, 1, 2, 3])
        elif result:
            assert block.seen + left == [0, 1, 2, 3]
        else:
            assert left == [0, 1, 2, 3] or block.seen + left == [0, 1, 2, 3]
        block.undo.close()

    assert at_every_place(block, block.run, interrupt, check) > 10


@interrupted
@pytest.mark.parametrize("kind", ["loan", "borrow", "borrow of what is held"])
@pytest.mark.parametrize("handlers", ["loan", "xmit", "borrow", "recv", "recv_vectored"])
def test_a_handler_that_uses_the_same_end_anywhere_disturbs_nothing(kind, handlers):
    block = Block(kind)
    by_handler = []

    def handler():
        with contextlib.suppress(ConcurrentUse):
            if handlers == "loan":
                with block.one.loan(2, timeout=0) as loan:
                    loan.data[:] = (100).to_bytes(8, "little") + (101).to_bytes(8, "little")
            elif handlers == "xmit":
                block.one.xmit((100,), timeout=0)
            elif handlers == "borrow":
                with block.other.borrow(1, timeout=0) as lent:
                    seen = [int.from_bytes(lent.data, "little")] if len(lent) else []
                by_handler.extend(seen)
            elif handlers == "recv":
                got = block.other.recv(timeout=0)
                by_handler.extend(got or ())
            else:
                by_handler.extend(n for (n,) in block.other.recv_vectored(2, timeout=0))

    def run():
        with contextlib.suppress(ConcurrentUse):
            return block.run()

    def check(result):
        left = block.left()
        got = [n for n in sorted(block.seen + by_handler + left) if n < 100]
        assert got == ([0, 1, 2, 3] if result or kind != "loan" else [])
        by_handler.clear()
        block.undo.close()

    assert at_every_place(block, run, handler, check) > 10


@interrupted
@pytest.mark.parametrize("kind", ["loan", "borrow", "borrow of what is held"])
def test_closing_anywhere_is_done_or_closed(kind):
    block = Block(kind)

    def run():
        with contextlib.suppress(Closed):
            return block.run()

    def check(result):
        if kind == "loan":
            got = []
            with contextlib.suppress(EndOfStream):
                got = [n for (n,) in block.other.recv_vectored(timeout=0)]
            assert got == [0, 1, 2, 3] if result else got in ([], [0, 1, 2, 3])
        else:
            whole = [0] if "held" in kind else [0, 1]  # up to where the ring wraps
            assert block.seen == whole or not result
        block.undo.close()

    def close():
        (block.one if kind == "loan" else block.other).close()

    assert at_every_place(block, run, close, check) > 10
