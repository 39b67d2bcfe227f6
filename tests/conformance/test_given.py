"""listen() on a socket that listens already: from a parent that forks, or from systemd."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import trio

import memenpsf
import memenpsf.trio
from memenpsf import _pending
from tests.kit.doors import scenario
from tests.kit.waiting import until

ACTIVATE = "systemd-socket-activate"


def listening(path):
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen()
    return sock


@pytest.fixture
def path(tmp_path):
    return tmp_path / "s"


def connects(path):
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.connect(str(path))
        except ConnectionRefusedError:
            return False
        return True


async def serves(door, listener, address):
    async with door.tasks() as tasks:
        client = tasks.start(lambda: door.connect(address, "<Q"))
        accepted = await listener.accept()
        while not client.done:
            await door.others()
    async with accepted, client.result as connected:
        await connected.xmit((7,))
        return await accepted.recv() == (7,)


@scenario
async def test_clients_are_accepted_and_the_file_stays(door, path):
    sock = listening(path)
    async with await door.listen(sock, "<Q") as listener:
        assert sock.getblocking() is False
        assert listener.address == str(path)
        assert f"{path}: open" in repr(listener)
        for _ in range(3):
            assert await serves(door, listener, path)
    assert sock.fileno() == -1
    assert path.is_socket()
    assert not connects(path)


@scenario
async def test_who_shares_the_socket_goes_on_listening(door, path):
    with listening(path) as sock:
        async with await door.listen(sock.dup(), "<Q") as listener:
            assert await serves(door, listener, path)
        with socket.socket(socket.AF_UNIX) as waiting:
            waiting.connect(str(path))  # and its backlog was not emptied
            async with await door.listen(sock.dup(), "<Q"):
                pass
            sock.setblocking(True)
            sock.accept()[0].close()


@scenario
async def test_an_abstract_socket_admits_this_user_and_root(door):
    name = f"@memenpsf-test-given-{os.getpid()}"
    sock = socket.socket(socket.AF_UNIX)
    sock.bind("\0" + name[1:])
    sock.listen()
    async with await door.listen(sock, "<Q") as listener:
        assert listener.address == name
        assert listener._pending.terms.allow_uids == {os.geteuid(), 0}
        assert await serves(door, listener, name)


@scenario
async def test_the_address_is_as_its_maker_has_bound_it(door, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    async with await door.listen(listening("./s"), "<Q") as listener:
        assert listener.address == "./s"
        assert await serves(door, listener, "./s")


def of_kind(kind, path):
    if kind == "tcp":
        return socket.create_server(("127.0.0.1", 0))
    if kind == "connected":
        one, other = socket.socketpair()
        other.close()
        return one
    sock = socket.socket(
        socket.AF_UNIX,
        {"datagrams": socket.SOCK_DGRAM, "packets": socket.SOCK_SEQPACKET}.get(kind, 1),
    )
    if kind != "nothing":
        sock.bind(str(path))
    if kind == "packets":
        sock.listen()
    return sock


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("tcp", "expected a listening AF_UNIX SOCK_STREAM socket, got <socket"),
        ("datagrams", "expected a listening AF_UNIX SOCK_STREAM socket, got <socket"),
        ("packets", "expected a listening AF_UNIX SOCK_STREAM socket, got <socket"),
        ("connected", r"one that does not listen.* goes to Interface\(\)"),
        ("bound", "one that does not listen"),
        ("nothing", "one that does not listen"),
    ],
)
@scenario
async def test_a_socket_of_another_kind_is_told_and_closed(door, path, kind, text):
    sock = of_kind(kind, path)
    with pytest.raises(ValueError, match=text):
        await door.listen(sock, "<Q")
    assert sock.fileno() == -1


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"mode": 0o600}, ValueError, "SocketMode="),
        ({"group": 0}, ValueError, "SocketGroup="),
        ({"capacity": -1}, ValueError, "capacity"),
        ({"quota": 3}, TypeError, "quota"),
    ],
)
@scenario
async def test_wrong_options_close_it(door, path, options, kind, text):
    sock = listening(path)
    with pytest.raises(kind, match=text):
        await door.listen(sock, "<Q", **options)
    assert sock.fileno() == -1


@pytest.mark.parametrize("where", ["alarm", "reserve"])
@scenario
async def test_a_failure_closes_it(door, path, monkeypatch, where):
    def fails(*_):
        raise MemoryError

    if where == "alarm":
        monkeypatch.setattr(os, "eventfd", fails)
    else:
        monkeypatch.setattr(_pending, "Reserve", fails)
    sock = listening(path)
    with pytest.raises(MemoryError):
        await door.listen(sock, "<Q")
    assert sock.fileno() == -1


def test_a_descriptor_is_told_what_takes_it(path):
    with pytest.raises(TypeError, match=r"not 3; of a descriptor, socket\.socket\(fileno=\.\.\.\)"):
        memenpsf.listen(3, "<Q")


def test_closing_wakes_every_thread_that_waits_for_a_client(path):
    listener = memenpsf.listen(listening(path), "<Q")
    with ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(listener.accept) for _ in range(3)]
        until(lambda: listener._lock.acquire(blocking=False) is False)
        listener.close()
        for call in calls:
            with pytest.raises(memenpsf.Closed):
                call.result()
    listener.close()


def test_closing_wakes_a_loop_that_pauses(path, monkeypatch):
    """After clients that were turned away it polls only for its end."""
    monkeypatch.setattr(_pending, "PAUSE", 1e6)
    listener = memenpsf.listen(listening(path), "<Q")
    with ThreadPoolExecutor(1) as pool:
        socket_of_client = socket.socket(socket.AF_UNIX)
        socket_of_client.connect(str(path))
        socket_of_client.close()
        call = pool.submit(listener.accept)
        until(lambda: listener._pending._refused_or_gone)
        listener.close()
        with pytest.raises(memenpsf.Closed):
            call.result()


@scenario
async def test_a_client_that_another_process_took_is_no_error(door, path):
    """As where all are woken and one is fastest."""
    with listening(path) as sock:
        async with await door.listen(sock.dup(), "<Q") as listener:
            for _ in range(3):
                with socket.socket(socket.AF_UNIX) as client:
                    client.connect(str(path))
                    sock.accept()[0].close()
                    assert listener._pending.turn() is None
            assert listener.refused == 0
            assert await serves(door, listener, path)


@scenario
async def test_a_socket_that_another_process_shuts_down_is_closed(door, path, caplog):
    with listening(path) as sock:
        listener = await door.listen(sock.dup(), "<Q")
        async with door.tasks() as tasks:
            call = tasks.start(listener.accept)
            await tasks.blocked()
            sock.shutdown(socket.SHUT_RDWR)
        assert isinstance(call.error, memenpsf.Closed)
        assert "closed" in repr(listener)
        await listener.aclose()
    assert [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING] == [
        f"{path}: somebody has shut down the listening socket"
    ]


def test_a_forked_child_only_closes_its_copy(path, forked):
    with memenpsf.listen(listening(path), "<Q") as listener, ThreadPoolExecutor(1) as pool:
        assert forked(listener.close) == 0
        client = pool.submit(memenpsf.connect, path, "<Q")
        with listener.accept(), client.result():
            pass


def test_serve_takes_one(path):
    ready = queue.SimpleQueue()

    def echo(interface):
        for record in interface:
            interface.xmit(record)

    server = threading.Thread(
        target=memenpsf.serve, args=(echo, listening(path), "<Q"), kwargs={"started": ready.put}
    )
    server.start()
    listener = ready.get()
    with memenpsf.connect(path, "<Q") as client:
        client.xmit((7,))
        assert client.recv() == (7,)
    listener.close()
    server.join()
    path.unlink()

    async def main():
        async def handler(interface):
            async for record in interface:
                await interface.xmit(record)

        async with trio.open_nursery() as nursery:
            listener = await nursery.start(
                lambda **kw: memenpsf.trio.serve(handler, listening(path), "<Q", **kw)
            )
            async with await memenpsf.trio.connect(path, "<Q") as client:
                await client.xmit((7,))
                assert await client.recv() == (7,)
            await listener.aclose()

    trio.run(main)


# -- pre-forking --------------------------------------------------------------------------------------


def test_forked_servers_share_one_socket(path):
    """Each accepts, each client is served once, and when one is gone the others go on."""
    children = []
    with listening(path) as sock:
        try:
            for _ in range(3):
                pid = os.fork()
                if pid == 0:
                    with contextlib.suppress(BaseException):
                        serve_in_child(sock)
                    os._exit(1)
                children.append(pid)
            served = dict.fromkeys(children, 0)

            def ask(client):
                with memenpsf.connect(path, "<Q") as interface:
                    interface.xmit((client,))
                    pid, echoed = interface.recv()[0], interface.recv()[0]
                    assert echoed == client
                    return pid

            with ThreadPoolExecutor(8) as pool:
                for pid in pool.map(ask, range(60)):
                    served[pid] += 1
            assert sum(served.values()) == 60
            assert served.keys() == set(children)
            gone = children.pop()
            os.kill(gone, signal.SIGKILL)
            os.waitpid(gone, 0)
            assert {ask(n) for n in range(10)} <= set(children)
            assert path.is_socket()
        finally:
            for pid in children:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def serve_in_child(sock):
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)

    def handler(interface):
        (client,) = interface.recv()
        interface.xmit((os.getpid(),))
        interface.xmit((client,))
        interface.send_eof()
        for _ in interface:
            pass

    memenpsf.serve(handler, sock, "<Q")


# -- systemd ----------------------------------------------------------------------------------------

DOCS = Path(__file__).parent.parent.parent / "docs" / "activation.md"


def server_of_the_docs():
    """The program of docs/activation.md, as it stands there."""
    (text,) = re.findall(
        r"^```python\n(# quotes\.py\n.*?)^```$", DOCS.read_text(), re.MULTILINE | re.DOTALL
    )
    return text


# What systemd does: descriptor 3, and two variables; LISTEN_PID is known only after the fork.
PASS = """
import os, socket, sys
sock = socket.socket(socket.AF_UNIX)
sock.bind(sys.argv[1])
sock.listen()
sock.set_inheritable(True)
if sock.fileno() != 3:
    os.dup2(sock.fileno(), 3, inheritable=True)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid() + int(sys.argv[2])))
os.execv(sys.executable, [sys.executable, *sys.argv[3:]])
"""


def quotes(path, count=3):
    with memenpsf.connect(path, "<Qd", retry=None, timeout=60) as client:
        return [client.recv() for _ in range(count)]


def test_the_program_of_the_docs_takes_descriptor_3(path, tmp_path, program):
    (tmp_path / "quotes.py").write_text(server_of_the_docs())
    server = program(PASS, path, 0, tmp_path / "quotes.py")
    for _ in range(2):
        assert [n for n, _ in quotes(path)] == [0, 1, 2]
    server.send_signal(signal.SIGTERM)
    assert server.wait() == 0
    assert path.is_socket()


def test_descriptors_for_another_process_are_not_taken(path, tmp_path, program):
    (tmp_path / "quotes.py").write_text(server_of_the_docs())
    server = program(
        PASS, path, 1, tmp_path / "quotes.py", tmp_path / "own", stderr=subprocess.PIPE
    )
    assert [n for n, _ in quotes(tmp_path / "own")] == [0, 1, 2]
    assert_nobody_accepts(path)
    server.send_signal(signal.SIGTERM)
    assert server.wait() == 0
    assert not (tmp_path / "own").exists()


def assert_nobody_accepts(path):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.settimeout(0)
        with pytest.raises(BlockingIOError):
            client.recv(1)


def has_activate():
    return subprocess.run(["which", ACTIVATE], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not has_activate(), reason=f"needs {ACTIVATE}")
def test_systemd_starts_the_program_of_the_docs_when_a_client_connects(path, tmp_path):
    (tmp_path / "quotes.py").write_text(server_of_the_docs())
    environment = [f"--setenv=PYTHONPATH={os.pathsep.join(filter(None, sys.path))}"]
    activator = subprocess.Popen(
        [ACTIVATE, f"--listen={path}", *environment, sys.executable, str(tmp_path / "quotes.py")],
        stderr=subprocess.DEVNULL,
    )
    try:
        assert [n for n, _ in quotes(path)] == [0, 1, 2]
    finally:
        activator.terminate()
        assert activator.wait() == 0  # it has become the server
    assert path.is_socket()
