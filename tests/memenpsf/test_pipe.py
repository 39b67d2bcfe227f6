"""pipe: ends that are not open yet, of which a child gets one."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import multiprocessing.pool
import os
import pickle
import re
import signal
import socket
import struct
import subprocess
import sys
from multiprocessing import reduction
from pathlib import Path
from typing import NamedTuple

import pytest
import trio

import memenpsf
import memenpsf.trio
from tests.kit import children

methods = pytest.mark.parametrize("method", children.METHODS)


class Tick(NamedTuple):
    time: memenpsf.u64
    price: float


dies_with_parent = children.dies_with_parent
helpers_of_multiprocessing_end = children.helpers_of_multiprocessing_end


def doubles(end):
    dies_with_parent()
    with end.open() as interface:
        for (number,) in interface:
            interface.xmit((2 * number,))


def descriptors():
    return sorted(each.name for each in Path("/proc/self/fd").iterdir())


# -- children of multiprocessing ----------------------------------------------------------------------


@methods
def test_a_child_opens_its_end(method):
    ours, theirs = memenpsf.pipe("<Q")
    with theirs:
        child = multiprocessing.get_context(method).Process(target=doubles, args=(theirs,))
        child.start()
    with ours.open() as interface:
        assert (interface.role, interface.peer.uid) == ("server", os.getuid())
        interface.xmit_many([(n,) for n in range(5000)])
        assert [interface.recv() for _ in range(5000)] == [(2 * n,) for n in range(5000)]
    child.join()
    assert child.exitcode == 0
    child.close()


@methods
def test_several_children_have_an_end_each_and_one_may_have_two(method):
    context = multiprocessing.get_context(method)
    pipes = [memenpsf.pipe("<Q", capacity=4) for _ in range(3)]
    children = []
    for _, theirs in pipes:
        with theirs:
            children.append(context.Process(target=doubles, args=(theirs,)))
            children[-1].start()
    with contextlib.ExitStack() as stack:
        interfaces = [stack.enter_context(ours.open()) for ours, _ in pipes]
        for n, interface in enumerate(interfaces):
            interface.xmit((n,))
        assert [interface.recv() for interface in interfaces] == [(0,), (2,), (4,)]
    for child in children:
        child.join()
        assert child.exitcode == 0
        child.close()


_in_worker = []


def open_in_worker(end):
    dies_with_parent()
    _in_worker.append(end.open())


def send_from_worker(tick):
    _in_worker[0].xmit(tick)
    return os.getpid()


@methods
def test_the_initializer_of_a_pool_opens_it(method):
    ours, theirs = memenpsf.pipe(Tick)
    with theirs:
        pool = multiprocessing.get_context(method).Pool(1, open_in_worker, (theirs,))
    with pool, ours.open() as interface:
        ticks = [Tick(n, n / 2) for n in range(5)]
        assert os.getpid() not in pool.map(send_from_worker, ticks)
        assert [interface.recv() for _ in ticks] == ticks
        pool.terminate()
        pool.join()


def accepts(sock):
    dies_with_parent()
    with memenpsf.listen(sock, "<Q") as listener, listener.accept() as interface:
        interface.xmit(interface.recv())


@methods
def test_a_listening_socket_is_an_argument_too(method, tmp_path):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "s"))
        sock.listen()
        child = multiprocessing.get_context(method).Process(target=accepts, args=(sock,))
        child.start()
    with memenpsf.connect(tmp_path / "s", "<Q", timeout=60) as interface:
        interface.xmit((7,))
        assert interface.recv() == (7,)
    child.join()
    assert child.exitcode == 0
    child.close()
    assert (tmp_path / "s").is_socket()


def leaves(end):
    dies_with_parent()
    os._exit(0)


@methods
def test_a_child_that_dies_before_it_opens_its_end_is_noticed(method):
    ours, theirs = memenpsf.pipe("<Q", timeout=None)
    with theirs:
        child = multiprocessing.get_context(method).Process(target=leaves, args=(theirs,))
        child.start()
    with pytest.raises(memenpsf.PeerDied):
        ours.open()
    child.join()
    child.close()


def holds(end):
    dies_with_parent()
    with end.open() as interface:
        interface.xmit((os.getpid(),))
        signal.pause()


@methods
def test_so_is_one_that_is_killed_later(method):
    ours, theirs = memenpsf.pipe("<Q")
    with theirs:
        child = multiprocessing.get_context(method).Process(target=holds, args=(theirs,))
        child.start()
    with ours.open() as interface:
        os.kill(interface.recv()[0], signal.SIGKILL)
        with pytest.raises(memenpsf.PeerDied):
            interface.recv()
    child.join()
    child.close()


def test_the_program_of_the_docs_prints_what_it_says(tmp_path):
    page = Path(__file__).parent.parent.parent / "docs" / "children.md"
    (source,) = re.findall(
        r"^```python\n(# doubling\.py\n.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL
    )
    (tmp_path / "doubling.py").write_text(source)
    out = subprocess.run(
        [sys.executable, "doubling.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert out.stdout == "(42,)\n"


# -- a subprocess ---------------------------------------------------------------------------------------

CHILD = """
import sys, memenpsf
with memenpsf.pipe_end(sys.argv[1], "<Q").open() as interface:
    for (number,) in interface:
        interface.xmit((2 * number,))
"""
TRIO_CHILD = """
import sys, trio, memenpsf, memenpsf.trio
async def main():
    end = memenpsf.pipe_end(sys.argv[1], "<Q")
    async with memenpsf.trio.Interface(end.detach(), "<Q") as interface:
        async for (number,) in interface:
            await interface.xmit((2 * number,))
trio.run(main)
"""


@pytest.mark.parametrize("source", [CHILD, TRIO_CHILD], ids=["threads", "trio"])
def test_a_subprocess_opens_its_end(program, source):
    ours, theirs = memenpsf.pipe("<Q")
    with theirs:
        child = program(source, theirs.fileno(), pass_fds=[theirs.fileno()])
    with ours.open() as interface:
        interface.xmit((21,))
        assert interface.recv() == (42,)
    assert child.wait() == 0


def test_a_descriptor_that_was_not_passed_is_told(tmp_path):
    free = os.dup(0)
    os.close(free)
    with pytest.raises(OSError, match=r"pass_fds=\[end\.fileno\(\)\]"):
        memenpsf.pipe_end(str(free), "<Q")
    for wrong in ("x", "", None, -1):
        with pytest.raises(ValueError, match="number of a descriptor"):
            memenpsf.pipe_end(wrong, "<Q")
    with (tmp_path / "file").open("w") as file:
        with pytest.raises(OSError, match="is no socket"):
            memenpsf.pipe_end(file.fileno(), "<Q")


def test_the_end_of_a_program_is_not_for_its_children():
    one, other = socket.socketpair()
    one.set_inheritable(True)
    with other, memenpsf.pipe_end(one.detach(), "<Q") as end:
        assert not os.get_inheritable(end.fileno())


# -- in one process -------------------------------------------------------------------------------------


def test_an_end_is_opened_once():
    ours, theirs = memenpsf.pipe("<Q", timeout=0)
    assert re.fullmatch(r"<PipeEnd: descriptor \d+>", repr(ours))
    with theirs, pytest.raises(memenpsf.HandshakeTimeout):
        ours.open()
    for end in (ours, theirs):
        for use in (end.open, end.fileno, end.detach):
            with pytest.raises(memenpsf.Closed, match="opened or closed in this process before"):
                use()
        end.close()
        assert repr(end) == "<PipeEnd: opened or closed here>"


def test_its_socket_is_for_the_other_door():
    ours, theirs = memenpsf.pipe("<Q")

    async def main():
        async with (
            memenpsf.trio.Interface(ours.detach(), "<Q") as one,
            memenpsf.trio.Interface(theirs.detach(), "<Q") as other,
        ):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(other.do_handshake)
                await one.xmit((7,))
            assert await other.recv() == (7,)

    trio.run(main)


@pytest.mark.parametrize(
    ("record", "options", "kind"),
    [
        ("QP", {}, TypeError),
        ("<Q", {"capacity": -1}, ValueError),
        ("<Q", {"role": "client"}, TypeError),
        ("<Q", {"capcity": 1}, TypeError),
    ],
)
def test_arguments_are_checked_before_anything_is_opened(record, options, kind):
    before = descriptors()
    one, other = socket.socketpair()
    with one, other:
        for call in (memenpsf.pipe, lambda *a, **o: memenpsf.pipe_end(one.fileno(), *a, **o)):
            with pytest.raises(kind):
                call(record, **options)
        os.fstat(one.fileno())
    assert descriptors() == before


def test_what_is_not_being_handed_to_a_child_is_not_pickled():
    ours, theirs = memenpsf.pipe("<Q")
    with ours, theirs:
        for dumps in (pickle.dumps, reduction.ForkingPickler.dumps):
            with pytest.raises(TypeError, match=r"multiprocessing\.Process .* pass_fds"):
                dumps(ours)
    program = (
        f"import sys; sys.path[:] = {sys.path!r}; import memenpsf, pickle\n"
        "one, other = memenpsf.pipe(8)\n"
        "before = set(sys.modules)\n"
        "with one, other:\n"
        "    try: pickle.dumps(one)\n"
        "    except TypeError: print('multiprocessing' in set(sys.modules) - before)\n"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert out.stdout == b"False\n"


def test_an_open_end_names_it():
    one, other = memenpsf.pair("<Q")
    with one, other:
        process = multiprocessing.get_context("spawn").Process(target=doubles, args=(one,))
        with pytest.raises(TypeError, match=r"received Interface, .* memenpsf\.pipe\(\)"):
            process.start()


def handed(record, **options):
    """Hand an end to nobody; return it as a child would have it."""
    one, other = memenpsf.pipe(record, **options)
    with one, other:
        popen = type("Popen", (), {"duplicate_for_child": staticmethod(os.dup), "DupFd": Duplicate})
        multiprocessing.context.set_spawning_popen(popen())
        try:
            data = reduction.ForkingPickler.dumps(one)
        finally:
            multiprocessing.context.set_spawning_popen(None)
    return pickle.loads(data)


class Duplicate:
    def __init__(self, *numbers):
        (self._number,) = numbers[-1:]

    def detach(self):
        return self._number


@pytest.mark.parametrize(
    ("record", "equal"),
    [
        ("<Q", "<Q"),
        (struct.Struct("<Q"), "<Q"),
        (8, 8),
        (bytes, bytes),
        (Tick, Tick),
    ],
)
def test_every_kind_of_record_is_handed_on_with_its_options(record, equal):
    with handed(record, allow_uids=iter([os.getuid()]), name="x", capacity=4096) as end:
        assert end._record == equal
        assert end._options == {"allow_uids": {os.getuid()}, "name": "x", "capacity": 4096}
        assert not os.get_inheritable(end.fileno())
    gc.collect()
