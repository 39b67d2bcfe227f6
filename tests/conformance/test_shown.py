"""How everything public is shown: short, told apart, and never a fault of its own."""

from __future__ import annotations

import dataclasses
import gc
import os
import re
import socket
import struct
import warnings
from typing import NamedTuple

import numpy as np
import pytest
import trio

import fdpass
import ipcqueue
import memenpsf
import memenpsf.asyncio
import memenpsf.trio
from memenpsf import u64
from tests.kit.doors import one_way_scenario, scenario

ME = f"pid {os.getpid()}"


class Tick(NamedTuple):
    number: u64


class LongNamed(NamedTuple):
    number: u64


LongNamed.__name__ = "L" * 100


@dataclasses.dataclass
class Tock:
    number: u64


WIDE = np.dtype([(f"field_{n}", "<u8") for n in range(64)])

RECORDS = {
    "Tick": Tick,
    "Tock": Tock,
    "L" * 40 + "…": LongNamed,
    "bytes": bytes,
    "Message": memenpsf.Message,
    "Encoded": memenpsf.Encoded(str.encode, bytes.decode),
    "8 bytes": 8,
    "'<Q'": struct.Struct("<Q"),
    "'<QQ'": "<QQ",
    "uint64": np.dtype("u8"),
    str(WIDE)[:40] + "…": WIDE,
}


@pytest.mark.parametrize("shown", RECORDS)
@one_way_scenario
async def test_a_connection_says_what_its_records_are(door, shown):
    async with door.pair(RECORDS[shown]) as (one, other):
        assert f": open, {shown}, out 0/" in repr(one)
        assert f": open, {shown}, " in repr(other)
        assert len(repr(one)) < 200


@scenario
async def test_a_connection_says_what_waits_and_how_it_ended(door):
    async with door.pair("<Q", capacity=4) as (one, other):
        for n in range(3):
            await one.xmit((n,))
        assert re.fullmatch(
            rf"<[\w.]*Interface fd \d+ with {ME}: open, '<Q', out 3/4, in 0/4>", repr(one)
        )
        assert repr(other).endswith(": open, '<Q', out 0/4, in 3/4>")
        assert await other.recv() == (0,)
        assert repr(one).endswith(": open, '<Q', out 2/4, in 0/4>")
        one.finish()
        assert repr(one).endswith(": finished, '<Q', out 2/4, in 0/4>")
        assert len(await other.recv_vectored()) == 2
        with door.raises("EndOfStream"):
            await other.recv()
        assert repr(other).endswith(": EndOfStream, '<Q', out 0/4, in 0/4>")
        assert repr(one) != repr(other)
    assert re.fullmatch(rf"<[\w.]*Interface with {ME}: closed, '<Q'>", repr(one))


@scenario
async def test_messages_are_shown_in_bytes(door):
    async with door.pair(bytes, capacity=4096) as (one, other):
        await one.xmit(b"x" * 100)
        assert repr(one).endswith(": open, bytes, out 128/4096 bytes, in 0/4096 bytes>")
        assert repr(other).endswith(": open, bytes, out 0/4096 bytes, in 128/4096 bytes>")


@scenario
async def test_names_and_the_address_tell_connections_apart(door, tmp_path):
    address = str(tmp_path / "a\nb")
    escaped = address.replace("\n", r"\n")
    async with await door.listen(address, Tick, name="ours") as listener:
        async with door.tasks() as group:
            accepting = group.start(listener.accept)
            client = await door.connect(address, Tick, name="theirs")
        async with client, accepting.result as server:
            assert " 'theirs' fd " in repr(client)
            assert f" with 'ours' ({ME}) at {escaped}: open, Tick, " in repr(client)
            assert " 'ours' fd " in repr(server)
            assert f" with 'theirs' ({ME}) at {escaped}: open, Tick, " in repr(server)
        assert repr(listener).endswith(f"Listener {escaped}: open, Tick>")
        stranger = socket.socket(socket.AF_UNIX)
        with stranger:
            stranger.connect(address)
            stranger.send(b"GET /")
            with door.raises("CorruptPeer"):
                await listener.accept()
        assert repr(listener).endswith(f"Listener {escaped}: open, Tick, 1 refused>")
    assert repr(listener).endswith(f"Listener {escaped}: closed, Tick, 1 refused>")


@scenario
async def test_a_server_that_accepts_nobody_is_told_by_its_address(door, tmp_path):
    address = tmp_path / "s"
    async with await door.listen(address, Tick):
        text = f"the server at {address} did not introduce itself within 0.01 s: it is there, but"
        with pytest.raises(memenpsf.HandshakeTimeout, match=text):
            await door.connect(address, Tick, timeout=0.01)


@scenario
async def test_a_client_that_says_nothing_is_called_a_client(door, tmp_path):
    address = tmp_path / "s"
    async with await door.listen(address, Tick, timeout=0.01) as listener:
        with socket.socket(socket.AF_UNIX) as silent:
            silent.connect(str(address))
            with pytest.raises(memenpsf.HandshakeTimeout, match="the client did not introduce"):
                await listener.accept()


def test_a_peer_of_another_pid_namespace_is_shown_as_unknown():
    one, other = memenpsf.pair("<Q")
    with one, other:
        one._endpoint.peer = one._endpoint.peer._replace(pid=0)
        assert " with a process unknown here: open, " in repr(one)


@scenario
async def test_blocks_say_how_much_they_have(door):
    async with door.pair("<Q") as (one, other):
        async with one.loan(3) as loan:
            assert repr(loan) == f"<Loan of 3 records of {one!r}: open>"
        async with other.borrow() as borrowed:
            assert repr(borrowed) == f"<Borrowing of 3 records of {other!r}: open>"
        assert repr(borrowed) == f"<Borrowing of {other!r}: not open>"


def test_blocks_of_trio_are_shown_before_they_begin():
    async def main():
        here, there = socket.socketpair()
        with there:
            side = memenpsf.trio.Interface(here, "<Q", name="me")
            assert repr(side) == (
                f"<memenpsf.trio.Interface 'me' with {ME}: no handshake yet, '<Q'>"
            )
            for block, name in ((side.loan(1), "AsyncLoan"), (side.borrow(), "AsyncBorrowing")):
                assert repr(block) == f"<memenpsf.trio.{name} of {side!r}: not open>"
            side.close()
            assert repr(side) == f"<memenpsf.trio.Interface 'me' with {ME}: closed, '<Q'>"

    trio.run(main)


def test_a_handshake_of_trio_that_failed_is_shown():
    async def main():
        here, there = socket.socketpair()
        there.close()
        side = memenpsf.trio.Interface(here, "<Q")
        with pytest.raises(memenpsf.PeerDied):
            await side.do_handshake()
        assert repr(side) == f"<memenpsf.trio.Interface with {ME}: PeerDied, '<Q'>"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            del side  # nothing is open
            gc.collect()

    trio.run(main)


@pytest.mark.parametrize("module", [fdpass, ipcqueue, memenpsf, memenpsf.asyncio, memenpsf.trio])
def test_what_is_half_made_is_shown_all_the_same(module):
    shown = set()
    for name in module.__all__:
        kind = getattr(module, name)
        if isinstance(kind, type) and not issubclass(kind, BaseException | dict):
            try:
                half_made = kind.__new__(kind)
            except TypeError:
                continue  # a value: it is made at once, or not at all
            assert 0 < len(repr(half_made)) < 200
            shown.add(name)
    assert shown


def test_how_a_loop_ended_is_short():
    ended = memenpsf.Ended(memenpsf.Closed("over"), [b"x" * 5_000_000] * 1000)
    assert len(repr(ended)) < 400
    assert repr(ended).startswith("Ended(cause=Closed('over'), unsent=[b'xxx")


def test_to_show_is_no_look_that_changes_anything():
    """An index that cannot be is shown; it is the next call that says so."""
    one, other = memenpsf.pair("<Q", capacity=4)
    with one, other:
        assert one.indices() == (0, 0)
        one.xmit((1,))
        assert repr(one).endswith("out 1/4, in 0/4>")
        assert one._endpoint.sender._last_indices == (0, 0)


def test_a_forked_child_can_show_what_its_parent_has():
    one, other = memenpsf.pair("<Q", capacity=4)
    with one, other:
        one.xmit((1,))
        one.indices()
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(write, repr(one).encode())
            os._exit(0)
        os.close(write)
        with os.fdopen(read) as pipe:
            assert re.search(r"Interface fd \d+ with pid \d+: open, '<Q', out ", pipe.read())
        os.waitpid(child, 0)


# -- what is forgotten -------------------------------------------------------------------------------


def forgotten(holder):
    """Forget what is in a list; return the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        holder.clear()
        gc.collect()
    assert {each.category for each in caught} <= {ResourceWarning}
    return [str(each.message) for each in caught]


@scenario
async def test_a_forgotten_listener_is_named_and_leaves_nothing(door, tmp_path):
    address = tmp_path / "s"
    kind = f"{door.module}Listener"
    listener = await door.listen(address, Tick)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(address))
        holder = [getattr(listener, "it", listener)]
        del listener
        assert forgotten(holder) == [f"unclosed <{kind} {address}: open, Tick>"]
        assert client.recv(1) == b""
    assert not address.exists()


def test_an_interface_of_trio_is_named_before_its_handshake():
    async def main():
        here, there = socket.socketpair()
        with there:
            holder = [memenpsf.trio.Interface(here, Tick)]
            said = f"unclosed <memenpsf.trio.Interface with {ME}: no handshake yet, Tick>"
            assert forgotten(holder) == [said]
            assert there.recv(1) == b""

    trio.run(main)


def test_a_child_forgets_a_listener_of_its_parent_in_silence(tmp_path):
    address = tmp_path / "s"
    holder = [memenpsf.listen(address, Tick)]
    child = os.fork()
    if child == 0:
        os._exit(0 if forgotten(holder) == [] and address.exists() else 1)
    assert os.waitpid(child, 0)[1] == 0
    with holder[0]:
        assert address.exists()


def test_a_warning_that_is_an_error_closes_all_the_same(tmp_path, monkeypatch):
    problems = []
    monkeypatch.setattr("sys.unraisablehook", lambda it: problems.append(type(it.exc_value)))
    holder = [memenpsf.listen(tmp_path / "s", Tick)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        holder.clear()
        gc.collect()
    assert problems == [ResourceWarning]
    assert not (tmp_path / "s").exists()
