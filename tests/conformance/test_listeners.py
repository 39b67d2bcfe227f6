"""Who connects to whom, and who is in the way: listeners at every door."""

from __future__ import annotations

import contextlib
import os
import socket
import threading

import pytest

import memenpsf
from memenpsf import _address, _pending
from tests.kit.clients import connected as stranger
from tests.kit.doors import scenario

HELLO, REFUSED = b"\x10\x01", b"\x64\x01"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "s"


@pytest.fixture
def abstract():
    return f"@memenpsf-test-{os.getpid()}-{threading.get_native_id()}"


async def serves(door, listener, address, name="", **options):
    """A client that does everything right is served, and it is the next one to be."""
    async with door.tasks() as tasks:
        client = tasks.start(lambda: door.connect(address, "<Q", name=name, **options))
        accepted = await listener.accept()
    async with accepted, client.result as connected:
        await connected.xmit((7,))
        await accepted.xmit((8,))
        assert accepted.peer_name == name
        assert (accepted.role, connected.role) == ("server", "client")
        return (await accepted.recv(), await connected.recv()) == ((7,), (8,))


@scenario
async def test_a_client_that_says_nothing_delays_nobody(door, path):
    async with await door.listen(path, "<Q") as listener:
        with stranger(path):
            for n in range(5):
                assert await serves(door, listener, path, f"client {n}")
            assert len(listener._pending.handshakes) == 1
        assert await serves(door, listener, path)
        assert listener._pending.handshakes == []
        assert listener.refused == 0


@pytest.mark.parametrize("timeout", [0, 0.01])
@scenario
async def test_who_does_not_introduce_itself_in_time_is_refused(door, path, timeout):
    async with await door.listen(path, "<Q", timeout=timeout) as listener:
        with stranger(path) as silent:
            with pytest.raises(memenpsf.HandshakeTimeout, match=f"within {timeout} s"):
                await listener.accept()
            assert listener.refused == 1
            assert silent.recv(2, socket.MSG_WAITALL) == HELLO
            assert silent.recv(2, socket.MSG_WAITALL) == REFUSED  # it is told
            assert silent.recv(1) == b""


@scenario
async def test_no_more_than_a_limit_may_be_introducing_themselves(door, path, monkeypatch):
    async with await door.listen(
        path, "<Q", timeout=None, quota=memenpsf.Quota(places=2)
    ) as listener:
        with contextlib.ExitStack() as silent:
            for _ in range(2):
                silent.enter_context(stranger(path))
            async with door.tasks() as tasks:
                accepting = tasks.start(listener.accept)
                while len(listener._pending.handshakes) < 2:
                    await door.others()
                client = tasks.start(lambda: door.connect(path, "<Q"))
                await tasks.blocked()
                assert not accepting.done
                assert len(listener._pending.handshakes) == 2
                silent.close()
        async with accepting.result, client.result:
            pass


@scenario
async def test_closing_wakes_who_gives_others_a_respite(door, path, monkeypatch):
    monkeypatch.setattr(_pending, "PAUSE", 3000.0)
    listener = await door.listen(path, "<Q")
    stranger(path).close()
    async with door.tasks() as tasks:
        accepting = tasks.start(listener.accept)
        while not listener._pending.fruitless:
            await door.others()
        await tasks.blocked()
        await listener.aclose()
    assert type(accepting.error) is door.word("Closed")


@scenario
@pytest.mark.deadline(20)
async def test_all_who_accept_at_once_get_different_clients(door, path):
    names = {f"client {n}" for n in range(60)}
    async with await door.listen(path, "<Q") as listener:
        seen = []

        async def accept_all():
            with contextlib.suppress(memenpsf.Closed):
                while True:
                    async with await listener.accept() as interface:
                        await interface.xmit((len(seen),))  # or it came for nothing
                        seen.append(interface.peer_name)

        async def come_and_go(name):
            async with await door.connect(path, "<Q", name=name) as connected:
                await connected.recv()

        async with door.tasks() as tasks:
            for _ in range(4):
                tasks.start(accept_all)
            for name in names:
                tasks.start(come_and_go, name)
            while len(seen) < len(names):
                await door.others()
            await listener.aclose()
        assert len(seen) == len(names)
        assert set(seen) == names


@scenario
async def test_a_closed_listener_says_so(door, path):
    listener = await door.listen(path, "<Q")
    for _ in range(2):
        await listener.aclose()
        with door.raises("Closed", match="closed the listener"):
            await listener.accept()
    assert not path.exists()
    assert "closed" in repr(listener)


@scenario
async def test_an_abstract_address_admits_this_user_and_checks_it(door, abstract):
    async with await door.listen(abstract, "<Q") as listener:
        assert listener.address == abstract
        assert await serves(door, listener, abstract)
        with pytest.raises(memenpsf.CredentialsRefused):
            await door.connect(abstract, "<Q", allow_uids={os.geteuid() + 1})
        with pytest.raises(memenpsf.CredentialsRefused, match="peer refused"):
            await listener.accept()


@scenario
async def test_an_abstract_address_checks_user_ids_on_both_sides_unless_told(
    door, abstract, monkeypatch
):
    monkeypatch.setattr(_address.Address, "default_uids", {os.geteuid() + 1})
    ours = {os.geteuid()}
    async with await door.listen(abstract, "<Q", allow_uids=ours) as listener:
        with pytest.raises(memenpsf.CredentialsRefused, match="admitted are"):
            await door.connect(abstract, "<Q")
        with pytest.raises(memenpsf.CredentialsRefused, match="peer refused"):
            await listener.accept()
    async with await door.listen(abstract, "<Q") as listener, door.tasks() as tasks:
        client = tasks.start(lambda: door.connect(abstract, "<Q", allow_uids=ours))
        with pytest.raises(memenpsf.CredentialsRefused, match="admitted are"):
            await listener.accept()
    assert isinstance(client.error, memenpsf.CredentialsRefused)


@scenario
async def test_connecting_to_nobody_names_the_address(door, path):
    with pytest.raises(FileNotFoundError, match=str(path)):
        await door.connect(path, "<Q")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    for address, named in ((path, str(path)), ("@memenpsf-nobody", "'@memenpsf-nobody'")):
        with pytest.raises(ConnectionRefusedError, match=named):
            await door.connect(address, "<Q")
    for bad in ("", "a\0b", "n" * 200):
        with pytest.raises(ValueError, match="address"):
            await door.connect(bad, "<Q")
