"""connect(…, retry=…): client and server start in any order, at every door."""

from __future__ import annotations

import errno
import math
import socket
from datetime import timedelta

import numpy as np
import pytest

import memenpsf
import memenpsf.trio
from memenpsf import _places, _seeking
from tests.kit.doors import scenario

ABSTRACT = "@memenpsf-test-retry"


@pytest.fixture(autouse=True)
def runtime(tmp_path, monkeypatch):
    directory = tmp_path / "run"
    directory.mkdir()
    monkeypatch.setenv(_places.OVERRIDE, str(directory))
    monkeypatch.chdir(tmp_path)
    return directory


@pytest.fixture
def attempts(monkeypatch):
    """All attempts to find a server, as they are made."""
    made = []
    real = _seeking._Search.connect

    def connect(search, sock):
        made.append(search)
        return real(search, sock)

    monkeypatch.setattr(_seeking._Search, "connect", connect)
    return made


@pytest.mark.parametrize("retry", [None, 1e9, math.inf, timedelta(days=1), np.float32(1e9)])
@pytest.mark.parametrize("address", ["prices", "./s", ABSTRACT])
@scenario
async def test_the_client_may_start_first(door, attempts, address, retry):
    async with door.tasks() as tasks:
        client = tasks.start(lambda: door.connect(address, "<Q", retry=retry))
        while len(attempts) < 3:
            await door.others()
        assert not client.done
        async with await door.listen(address, "<Q") as listener, await listener.accept() as served:
            await served.xmit((7,))
            while not client.done:
                await door.others()
            async with client.result as connected:
                assert await connected.recv() == (7,)


@scenario
async def test_a_server_that_died_may_be_started_again(door, attempts, tmp_path):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "s"))
    async with door.tasks() as tasks:
        client = tasks.start(lambda: door.connect(tmp_path / "s", "<Q", retry=None))
        while len(attempts) < 3:
            await door.others()
        async with await door.listen(tmp_path / "s", "<Q") as listener:
            async with await listener.accept():
                while not client.done:
                    await door.others()
            await client.result.aclose()


@scenario
async def test_the_error_says_where_it_looked_and_for_how_long(door, runtime):
    for retry in (0.03, timedelta(milliseconds=30)):
        with pytest.raises(FileNotFoundError, match=r"tried for 0\.03 s; searched ") as caught:
            await door.connect("prices", "<Q", retry=retry)
        assert str(runtime / "memenpsf" / "prices") in str(caught.value)
        with pytest.raises(ConnectionRefusedError, match=rf"tried for 0\.03 s.*'{ABSTRACT}'"):
            await door.connect(ABSTRACT, "<Q", retry=retry)


@scenario
async def test_what_goes_wrong_with_a_server_is_not_tried_again(door, attempts, tmp_path):
    async with await door.listen(tmp_path / "s", "<q") as listener, door.tasks() as tasks:
        client = tasks.start(lambda: door.connect(tmp_path / "s", "<Q", retry=None))
        with pytest.raises(memenpsf.RecordRefused):
            await listener.accept()
        while not client.done:
            await door.others()
    assert isinstance(client.error, memenpsf.RecordRefused)
    assert len(attempts) == 1
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "silent"))
        silent.listen()
        with pytest.raises(memenpsf.HandshakeTimeout):
            await door.connect(tmp_path / "silent", "<Q", timeout=0, retry=None)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(tmp_path / "other"))
        with pytest.raises(OSError, match="wrong type") as caught:
            await door.connect(tmp_path / "other", "<Q", retry=None)
        assert caught.value.errno == errno.EPROTOTYPE


@pytest.mark.parametrize("wrong", [-1, math.nan, "1", True, b"1", [1], timedelta(-1)], ids=repr)
@scenario
async def test_what_is_no_time_is_told_before_anything_is_opened(door, attempts, wrong):
    with pytest.raises((TypeError, ValueError), match=r"^retry is None") as caught:
        await door.connect("prices", "<Q", retry=wrong)
    assert repr(wrong) in str(caught.value)
    assert attempts == []


def test_other_functions_say_where_it_goes(tmp_path):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for call in (
            lambda: memenpsf.listen(tmp_path / "s", "<Q", retry=1),
            lambda: memenpsf.serve(print, tmp_path / "s", "<Q", retry=1),
            lambda: memenpsf.pair("<Q", retry=1),
            lambda: memenpsf.Interface(ours, "<Q", retry=1),
            lambda: memenpsf.trio.Interface(theirs, "<Q", retry=1),
        ):
            with pytest.raises(TypeError, match=r"option 'retry', which goes to connect\(\)"):
                call()


SERVER = """
import sys, memenpsf
with memenpsf.listen(sys.argv[1], "<Q") as listener, listener.accept() as client:
    client.xmit((7,))
    assert client.recv() == (8,)
"""
CLIENT = """
import sys, memenpsf
from memenpsf import _seeking
real = _seeking._Search.connect
def connect(search, sock):
    connected = real(search, sock)
    print("connected" if connected else "nobody there", flush=True)
    return connected
_seeking._Search.connect = connect
"""
BY_DOOR = {
    "threads": """
with memenpsf.connect(sys.argv[1], "<Q", retry=None) as server:
    assert server.recv() == (7,)
    server.xmit((8,))
""",
    "trio": """
import trio, memenpsf.trio
async def main():
    async with await memenpsf.trio.connect(sys.argv[1], "<Q", retry=None) as server:
        assert await server.recv() == (7,)
        await server.xmit((8,))
trio.run(main)
""",
}


@pytest.mark.parametrize("door", BY_DOOR)
@pytest.mark.parametrize("address", ["prices", "./s"])
def test_so_may_a_client_in_another_process(program, address, door):
    client = program(CLIENT + BY_DOOR[door], address)
    for _ in range(3):
        assert client.stdout.readline() == "nobody there\n"
    server = program(SERVER, address)
    assert client.wait() == server.wait() == 0
    assert client.stdout.read().endswith("connected\n")
