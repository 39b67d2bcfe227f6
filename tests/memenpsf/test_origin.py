"""Every exception knows the connection whose verb raised it: in every door, of every kind."""

from __future__ import annotations

import ast
import copy
import dataclasses
import errno
import gc
import os
import pickle
import re
import socket
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import trio

import ipcqueue
import ipcqueue.lowlevel
import memenpsf
import memenpsf.trio
from memenpsf import interface_of

REPOSITORY = Path(__file__).parent.parent.parent


# -- a rule of the source -------------------------------------------------------------------------

VERBS = {
    "ipcqueue/_connection.py": {"Connection"},
    "ipcqueue/_verbs.py": {"Sends", "Receives"},
    "ipcqueue/_queue.py": {"Sender", "Receiver"},
    "ipcqueue/_link/loans.py": {"Block", "Loan", "Borrowing"},
    "memenpsf/_interface.py": {"Interface"},
    "memenpsf/_tasks/interface.py": {"TaskInterface"},
    "memenpsf/_tasks/blocks.py": {"Block"},
}
# __exit__ is _leave, by way of C; _end_by is close and abort.
BLOCKS = {"__enter__", "_leave", "_end_by", "__aenter__", "__aexit__"}
# Not verbs: `of` wraps what has no interface yet; the others are for the doors, which are verbs.
NO_VERBS = {"of", "over", "opened", "plain_socket", "ours", "begin", "try_open", "undo"}


def methods():
    for module, classes in VERBS.items():
        tree = ast.parse((REPOSITORY / module).read_text())
        for cls in tree.body:
            if isinstance(cls, ast.ClassDef) and cls.name in classes:
                for node in cls.body:
                    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                        yield f"{module}:{cls.name}.{node.name}", node


def is_verb(node):
    decorators = {getattr(each, "id", None) for each in node.decorator_list}
    public = not node.name.startswith("_") or node.name in BLOCKS
    return public and node.name not in NO_VERBS and "property" not in decorators


def called(node):
    return getattr(node.func, "id", getattr(node.func, "attr", None))


def body_of(node):
    return node.body[1:] if ast.get_docstring(node) is not None else node.body


def is_guarded(node):
    """Whether all it does stands in a try that tags every Exception, or in that of tagged().

    But trouble of a ring, which another method has to tag.
    """
    if "tagged" in map(ast.unparse, node.decorator_list):
        return True
    body = body_of(node)
    tries = [n for n, each in enumerate(body) if isinstance(each, ast.Try)]
    if len(tries) != 1:
        return False
    before, guarded, after = body[: tries[0]], body[tries[0]], body[tries[0] + 1 :]
    if any(isinstance(each, ast.Call) for one in before for each in ast.walk(one)):
        return False
    *trouble, handler = guarded.handlers
    if [ast.unparse(each.type) for each in trouble] != ["RingError"] * len(after) or any(
        called(each.value) != "_raise_meaning" for each in after
    ):
        return False
    if ast.unparse(handler.type) not in {"Exception", "BaseException"}:
        return False
    calls = [called(each) for each in ast.walk(handler) if isinstance(each, ast.Call)]
    raises = any(isinstance(each, ast.Raise) for each in handler.body)
    return raises and bool({"tag_error", "tag_unless_given", "ours"} & set(calls))


def test_every_verb_tags_what_it_raises():
    found = dict(methods())
    verbs = {name: node for name, node in found.items() if is_verb(node)}
    guarded = {name for name, node in verbs.items() if is_guarded(node)}
    names = {name.rpartition(".")[2] for name in guarded}
    wrong = []
    for name, node in verbs.items():
        if name not in guarded:
            # Or it only calls others that do.
            calls = {
                called(each)
                for statement in body_of(node)
                for each in ast.walk(statement)
                if isinstance(each, ast.Call)
            }
            if not calls <= names | {"checkpoint", "leave"}:  # which closes, or aborts
                wrong.append(name)
    assert wrong == []
    assert len(guarded) > 40
    (meaning,) = (node for name, node in found.items() if name.endswith("._raise_meaning"))
    assert is_guarded(meaning)


def test_no_verb_that_takes_is_wrapped():
    """Between its return and the wrapper's, a signal handler's exception would lose what it took."""
    wrapped = {
        name.rpartition(".")[2]
        for name, node in methods()
        if "tagged" in map(ast.unparse, node.decorator_list)
    }
    assert wrapped >= {"indices", "loan", "borrow", "arm"}
    assert not [name for name in wrapped if re.match("(recv|pop|send_(?!eof)|xmit|push)", name)]


def test_no_loop_leaves_the_verb_that_tags():
    """What an iteration raises comes from recv or pop: __iter__ gives it nothing else to call."""
    loops = [node for name, node in methods() if name.endswith((".__iter__",))]
    sources = sorted(ast.unparse(node.body[-1]) for node in loops)
    assert sources == [
        "return iter(self.data)",
        "return self._receiver.all(self.recv, EndOfStream)",
    ]


# -- threads --------------------------------------------------------------------------------------


def opened(record, **options):
    one, other = memenpsf.pair(record, **options)
    return one, other


@pytest.fixture
def messages():
    one, other = memenpsf.pair(bytes)
    with one, other:
        yield one, other


def enter(block):
    with block:
        pass


THREADS = {
    "xmit": lambda i: i.xmit(b"x"),
    "xmit_many": lambda i: i.xmit_many([b"x"]),
    "await_space": lambda i: i.await_space(),
    "recv": lambda i: i.recv(),
    "recv in time": lambda i: i.recv(1),
    "recv at once": lambda i: i.recv(0),
    "recv_vectored": lambda i: i.recv_vectored(),
    "recv_message": lambda i: i.recv_message(),
    "loan": lambda i: enter(i.loan(1)),
    "borrow": lambda i: enter(i.borrow()),
    "send_ctrl_msg": lambda i: i.send_ctrl_msg(b"\x80\x00"),
    "recv_ctrl_msg": lambda i: i.recv_ctrl_msg(),
    "iteration": list,
    "indices": lambda i: i.indices(),
    "fileno": lambda i: i.fileno(),
    "peer_pidfd": lambda i: i.peer_pidfd(),
}


@pytest.mark.parametrize("verb", THREADS.values(), ids=THREADS)
def test_each_verb_of_a_closed_interface_says_whose_it_is(messages, verb):
    interface, _ = messages
    interface.close()
    with pytest.raises(memenpsf.Closed) as caught:
        verb(interface)
    assert interface_of(caught.value) is interface
    assert caught.value.interface is interface


@pytest.mark.parametrize("verb", ["recv", "recv_vectored", "recv_message", "borrow", "iteration"])
@pytest.mark.parametrize("kind", [OSError, MemoryError, ValueError, RuntimeError])
def test_so_does_any_other_exception_that_comes_out_of_receiving(monkeypatch, verb, kind):
    interface, peer = opened(bytes)
    with interface, peer:

        def fails(*_, **__):
            raise kind("short")

        monkeypatch.setattr("ipcqueue._threads.SLICE", 0.01)  # recv looks only after one
        # Everything that these verbs can do, in the end, comes to one of these.
        for name in ("try_pop", "try_pop_many", "try_receive", "or_end"):
            monkeypatch.setattr(interface._endpoint, name, fails)
        with pytest.raises(kind, match="short") as caught:
            THREADS[verb](interface)
        assert interface_of(caught.value) is interface


def test_so_does_a_decoder_that_fails():
    @dataclasses.dataclass
    class Picky:
        number: memenpsf.u8

        def __post_init__(self):
            if self.number > 3:
                raise ArithmeticError("above three")

    for receive in (
        memenpsf.Interface.recv,
        memenpsf.Interface.recv_vectored,
        memenpsf.Interface.recv_message,
        list,
    ):
        one, other = memenpsf.pair(Picky)
        with one, other:
            bad = Picky(1)
            bad.number = 9
            one.xmit(bad)
            with pytest.raises(Exception, match="above three") as caught:
                receive(other)
            assert interface_of(caught.value) is other


def test_so_does_a_loop_that_looks_for_more_where_memory_is_short(monkeypatch):
    """The loop is one call of C: it leaves what fails to the verb."""
    testcapi = pytest.importorskip("_testcapi")
    interface, peer = opened("<Q")
    with interface, peer:
        seen = 0
        for start in range(40):
            peer.xmit((start,))
            loop = iter(interface)
            testcapi.set_nomemory(start, start + 1)
            try:
                next(loop)
            except MemoryError as error:
                testcapi.remove_mem_hooks()
                seen += 1
                assert interface_of(error) is interface
                next(loop)
            finally:
                testcapi.remove_mem_hooks()
        assert interface.recv(0) is None
    assert seen < 40


def test_the_limits_of_the_peer_and_a_full_ring():
    a, b = socket.socketpair()
    limits = {"accept": memenpsf.Accept(message=10, regions=0), "timeout": None, "capacity": 4096}
    from ipcqueue.lowlevel import Opening, Role, Terms

    role = Role(sends=True, receives=True)
    ends = [Opening(a, Terms(bytes, role)), Opening(b, Terms(bytes, role, **limits))]
    endpoints = {}
    for each in ends * 2:
        if each not in endpoints and (endpoint := ipcqueue.lowlevel.advance(each)) is not None:
            endpoints[each] = endpoint
    interface, peer = (memenpsf.Interface.of(endpoints[each]) for each in ends)
    with interface, peer:
        with pytest.raises(memenpsf.TooLarge) as caught:
            interface.xmit(bytes(11))
        assert interface_of(caught.value) is interface
        with pytest.raises(memenpsf.Unaccepted) as caught:
            interface.xmit(b"", fds=[0])
        assert interface_of(caught.value) is interface
        with pytest.raises(memenpsf.TooLarge) as caught:
            interface.loan(11)
        assert interface_of(caught.value) is interface
        with pytest.raises(memenpsf.Full) as caught:
            while True:
                interface.xmit(b"0123456789", timeout=0)
        assert interface_of(caught.value) is interface
        with pytest.raises(memenpsf.Full) as caught:
            enter(interface.loan(10, timeout=0))
        assert interface_of(caught.value) is interface


def test_the_blocks_of_a_loan_and_a_borrowing(messages):
    interface, peer = messages
    with pytest.raises(memenpsf.LoanError) as caught, interface.loan(3) as loan:
        view = memoryview(loan.data)
    assert interface_of(caught.value) is interface
    view.release()
    peer.close()
    with pytest.raises(memenpsf.ReceiverGone) as caught:
        while True:
            with interface.loan(3) as loan:
                loan.publish()
    assert interface_of(caught.value) is interface
    for wrong in (loan.cancel, loan.publish, lambda: loan.shrink(1)):
        with pytest.raises(memenpsf.LoanError) as caught:
            wrong()
        assert interface_of(caught.value) is interface
    with pytest.raises(memenpsf.LoanError) as caught:
        interface.borrow().cancel()
    assert interface_of(caught.value) is interface


def test_the_two_ends_of_a_queue():
    sender, receiver = ipcqueue.pair("<Q")
    with sender, receiver:
        with pytest.raises(memenpsf.BadRecord) as caught:
            sender.push("nothing of the kind")
        assert ipcqueue.interface_of(caught.value) is sender
        with pytest.raises(memenpsf.BadRecord) as caught:
            sender.push_many(["nothing of the kind"])
        assert ipcqueue.interface_of(caught.value) is sender
        sender.close()
        for verb in (receiver.pop, receiver.pop_many, receiver.recv_message):
            with pytest.raises(memenpsf.EndOfStream) as caught:
                verb()
            assert caught.value.interface is receiver


# -- of which of two ------------------------------------------------------------------------------


def test_the_end_of_a_connection_that_records_come_from_is_its_own():
    upstream, source = memenpsf.pair("<Q")
    client, peer = memenpsf.pair("<Q")
    with upstream, source, client, peer:
        source.close()
        with pytest.raises(memenpsf.EndOfStream) as caught:
            client.xmit_many(upstream.recv() for _ in range(3))
        assert interface_of(caught.value) is upstream


@pytest.mark.parametrize("kind", [OSError, KeyError, memenpsf.QueueError])
def test_what_makes_the_records_to_send_raises_for_itself(kind):
    def records():
        yield (1,)
        raise kind("of its own")

    client, peer = memenpsf.pair("<Q")
    with client, peer:
        with pytest.raises(kind) as caught:
            client.xmit_many(records())
        assert interface_of(caught.value) is None
        with pytest.raises(memenpsf.BadRecord) as caught:
            client.xmit_many(["nothing of the kind"])
        assert interface_of(caught.value) is client


def test_an_exception_of_no_verb_has_no_interface():
    assert interface_of(ValueError()) is None
    assert interface_of(KeyboardInterrupt()) is None
    assert memenpsf.Closed("by hand").interface is None
    with pytest.raises(FileNotFoundError) as caught:
        memenpsf.connect("/nowhere/at/all", "<Q")
    assert interface_of(caught.value) is None


# -- the tag --------------------------------------------------------------------------------------


def ended():
    interface, peer = memenpsf.pair("<Q")
    peer.close()
    with interface:
        try:
            interface.recv()
        except memenpsf.EndOfStream as error:
            return interface, error.with_traceback(None)
    raise AssertionError


def test_the_tag_keeps_no_interface_alive():
    interface, error = ended()
    assert interface_of(error) is interface
    del interface
    gc.collect()
    assert interface_of(error) is None


def test_a_copy_in_this_process_has_the_tag_and_a_pickled_one_has_not():
    interface, error = ended()
    for same in (copy.copy(error), copy.deepcopy(error)):
        assert type(same) is memenpsf.EndOfStream
        assert same.args == error.args
        assert interface_of(same) is interface
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        other = pickle.loads(pickle.dumps(error, protocol))
        assert type(other) is memenpsf.EndOfStream
        assert other.args == error.args
        assert interface_of(other) is None


def fail_with(kind):
    interface, _peer = memenpsf.pair("<Q")
    with interface, _peer:
        if kind is MemoryError:
            interface._endpoint.try_pop = lambda: (_ for _ in ()).throw(MemoryError("short"))
        else:
            _peer.close()
        interface.recv()


def test_it_goes_through_a_pool_of_processes():
    import multiprocessing

    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        error = pool.submit(fail_with, None).exception()
        assert type(error) is memenpsf.EndOfStream
        assert interface_of(error) is None
        assert type(pool.submit(fail_with, MemoryError).exception()) is MemoryError
        # Whose helper would be left behind otherwise.
    from multiprocessing import resource_tracker

    resource_tracker._resource_tracker._stop()


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    code: int


class Stubborn(Exception):
    def __setattr__(self, name, value):
        raise RuntimeError(name)

    def __getattr__(self, name):
        raise RuntimeError(name)


EXCEPTIONS = {"frozen": Frozen(1), "stubborn": Stubborn(), "OSError": OSError(errno.EMFILE, "x")}


@pytest.mark.parametrize("error", EXCEPTIONS.values(), ids=EXCEPTIONS)
def test_exceptions_that_refuse_attributes_are_tagged_too(monkeypatch, error):
    interface, peer = memenpsf.pair("<Q")
    with interface, peer:

        def fails():
            raise error

        monkeypatch.setattr("ipcqueue._threads.SLICE", 0.01)  # recv looks only after one
        monkeypatch.setattr(interface._endpoint, "try_pop", fails)
        with pytest.raises(type(error)) as caught:
            interface.recv()
        assert interface_of(caught.value) is interface


def test_one_exception_raised_again_by_another_connection_is_of_that_one(monkeypatch):
    """A decoder may raise one and the same object, again and again."""
    error = ValueError("always the same")

    def fails():
        raise error

    monkeypatch.setattr("ipcqueue._threads.SLICE", 0.01)  # recv looks only after one
    for _ in range(2):
        interface, peer = memenpsf.pair("<Q")
        with interface, peer:
            monkeypatch.setattr(interface._endpoint, "try_pop", fails)
            with pytest.raises(ValueError, match="the same") as caught:
                interface.recv()
            assert interface_of(caught.value) is interface
        # Its traceback keeps the first connection, so the tag of that one is not gone.


# -- Trio -----------------------------------------------------------------------------------------


async def aenter(block):
    async with block:
        pass


async def alist(interface):
    return [record async for record in interface]


TRIO = {
    "xmit": lambda i: i.xmit(b"x"),
    "xmit in time": lambda i: i.xmit(b"x", timeout=1),
    "xmit_many": lambda i: i.xmit_many([b"x"]),
    "send": lambda i: i.send(b"x"),
    "await_space": lambda i: i.await_space(),
    "recv": lambda i: i.recv(),
    "recv in time": lambda i: i.recv(1),
    "recv at once": lambda i: i.recv(0),
    "receive": lambda i: i.receive(),
    "recv_vectored": lambda i: i.recv_vectored(),
    "recv_message": lambda i: i.recv_message(),
    "loan": lambda i: aenter(i.loan(1)),
    "borrow": lambda i: aenter(i.borrow()),
    "send_ctrl_msg": lambda i: i.send_ctrl_msg(b"\x80\x00"),
    "recv_ctrl_msg": lambda i: i.recv_ctrl_msg(),
    "iteration": alist,
}


async def trio_pair(record=bytes, **options):
    a, b = socket.socketpair()
    one = memenpsf.trio.Interface(a, record)
    other = memenpsf.trio.Interface(b, record, **options)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.do_handshake)
        nursery.start_soon(other.do_handshake)
    return one, other


@pytest.mark.parametrize("verb", TRIO.values(), ids=TRIO)
def test_each_verb_of_trio_says_whose_it_is_in_trios_words(verb):
    async def main():
        interface, peer = await trio_pair()
        await interface.aclose()
        with pytest.raises(memenpsf.trio.Closed) as caught:
            await verb(interface)
        assert interface_of(caught.value) is interface
        await peer.aclose()

    trio.run(main)


def test_so_do_the_verbs_of_trio_that_do_not_wait():
    async def main():
        interface, peer = await trio_pair()
        await peer.aclose()
        with pytest.raises(memenpsf.trio.ReceiverGone) as caught:
            while True:
                interface.xmit_nowait(b"x")
        assert caught.value.interface is interface
        await interface.aclose()
        with pytest.raises(memenpsf.trio.Closed) as caught:
            interface.indices()
        assert caught.value.interface is interface
        a, b = socket.socketpair()
        with b:
            unopened = memenpsf.trio.Interface(a, bytes)
            for verb in (unopened.statistics, unopened.indices, unopened.finish):
                with pytest.raises(memenpsf.trio.Closed) as caught:
                    verb()
                assert caught.value.interface is unopened
            await unopened.aclose()

    trio.run(main)


def test_a_handshake_that_failed_says_it_again_each_time():
    async def main():
        a, b = socket.socketpair()
        b.close()
        interface = memenpsf.trio.Interface(a, bytes)
        for verb in (interface.do_handshake, interface.recv, interface.do_handshake):
            with pytest.raises(memenpsf.trio.PeerDied) as caught:
                await verb()
            assert interface_of(caught.value) is interface
        await interface.aclose()

    trio.run(main)


def test_what_cannot_be_decoded_keeps_its_cause_under_trio():
    def decode(data):
        raise LookupError("for that reason")

    async def main():
        interface, peer = await trio_pair(memenpsf.Encoded(bytes, decode))
        await peer.xmit(b"x")
        with pytest.raises(memenpsf.DecodeFailed) as caught:
            await interface.recv()
        assert isinstance(caught.value.__cause__, LookupError)
        assert interface_of(caught.value) is interface
        await interface.aclose()
        await peer.aclose()

    trio.run(main)


def test_a_loan_published_inside_its_block_says_it_in_trios_words():
    async def main():
        interface, peer = await trio_pair()
        await peer.aclose()
        with pytest.raises(memenpsf.trio.ReceiverGone) as caught:
            while True:
                async with interface.loan(3) as loan:
                    loan.publish()
        assert interface_of(caught.value) is interface
        await interface.aclose()

    trio.run(main)


def test_the_end_of_an_upstream_is_its_own_under_trio_too():
    upstream, source = memenpsf.pair(bytes)

    async def main():
        client, peer = await trio_pair()
        with pytest.raises(memenpsf.trio.EndOfStream) as caught:
            await client.xmit_many(upstream.recv() for _ in range(3))
        assert interface_of(caught.value) is upstream
        with pytest.raises(ZeroDivisionError) as own:
            await client.xmit_many(bytes(1 // n) for n in (1, 0))
        assert interface_of(own.value) is None
        await client.aclose()
        await peer.aclose()

    with upstream, source:
        source.close()
        trio.run(main)


def test_what_another_connection_raises_inside_a_block_stays_as_it_is():
    upstream, source = memenpsf.pair(bytes)

    async def main():
        client, peer = await trio_pair()
        for block in (client.loan(3), client.borrow(0)):
            with pytest.raises(memenpsf.EndOfStream) as caught:
                async with block:
                    upstream.recv()
            assert type(caught.value) is memenpsf.EndOfStream
            assert interface_of(caught.value) is upstream
        await client.aclose()
        await peer.aclose()

    with upstream, source:
        source.close()
        trio.run(main)


def test_a_shortage_under_trio(monkeypatch):
    async def main():
        interface, peer = await trio_pair()

        def fails(*_, **__):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        for name in ("try_pop", "try_pop_many", "try_receive", "or_end"):
            monkeypatch.setattr(interface._endpoint, name, fails)
        for name in ("recv", "recv_vectored", "recv_message", "borrow", "iteration"):
            with pytest.raises(OSError, match="Too many") as caught:
                await TRIO[name](interface)
            assert interface_of(caught.value) is interface
        await interface.aclose()
        await peer.aclose()

    trio.run(main)
