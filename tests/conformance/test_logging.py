"""What is logged: how connections begin and end, and why not; quiet by default, never a record."""

from __future__ import annotations

import logging
import os
import re
import socket
import subprocess
import sys
import threading

import pytest

import memenpsf
import memenpsf.trio
from ipcqueue._link import log as queue_log
from memenpsf import _log
from tests.kit.doors import scenario

ME = f"pid {os.getpid()}"


def lines(caplog, name):
    return [(each.levelname, each.getMessage()) for each in caplog.records if each.name == name]


@scenario
async def test_a_connection_is_told_from_its_beginning_to_its_end(door, tmp_path, caplog):
    address = tmp_path / "s"
    caplog.set_level(logging.DEBUG)
    async with await door.listen(address, "<Q") as listener:
        assert lines(caplog, "memenpsf") == [("DEBUG", f"{address}: listening, '<Q'")]
        async with door.tasks() as group:
            accepting = group.start(listener.accept)
            client = await door.connect(address, "<Q", name="me\n")
        server = accepting.result
        assert lines(caplog, "memenpsf.clients") == [
            ("DEBUG", f"{address}: client 'me?' ({ME}) connected")
        ]
        begun = f"opening a connection with .*{ME}.* at {address}: '<Q'"
        assert [re.fullmatch(begun, line) is not None for _, line in lines(caplog, "ipcqueue")] == [
            True
        ] * 2
        caplog.clear()
        await client.xmit((0xDEADBEEF,))
        assert await server.recv() == (0xDEADBEEF,)
        assert caplog.records == []  # nothing of what goes well between the two
        await client.aclose()
        with door.raises("EndOfStream"):
            await server.recv()
        await server.aclose()
        await server.aclose()
    told = lines(caplog, "ipcqueue")
    assert {level for level, _ in told} == {"DEBUG"}
    closed, ended, over = (line for _, line in told)
    assert re.fullmatch(rf"<\S*Interface 'me.n' with {ME} at {address}: closed, '<Q'>", closed)
    assert re.fullmatch(
        rf"<\S*Interface fd \d+ with 'me\?' \({ME}\) at {address}: EndOfStream, '<Q', out 0/\d+, "
        rf"in 0/\d+>: the peer has ended the stream, and all of it has been received",
        ended,
    )
    assert over.endswith(": closed, '<Q'>")


@scenario
async def test_a_death_and_a_refusal_are_told(door, tmp_path, caplog):
    address = tmp_path / "s"
    caplog.set_level(logging.DEBUG)
    async with await door.listen(address, "<Q") as listener:
        async with door.tasks() as group:
            accepting = group.start(listener.accept)
            with pytest.raises(memenpsf.RecordRefused):
                await door.connect(address, "<d")
        assert isinstance(accepting.error, memenpsf.RecordRefused)
        said = sorted(line for _, line in lines(caplog, "ipcqueue"))
        assert len(said) == 2
        assert said[0].startswith("no connection with the client: RecordRefused: a record here is")
        assert said[1].startswith(f"no connection with the server at {address}: RecordRefused: ")
    ours, theirs = socket.socketpair()
    async with door.tasks() as group:
        side = group.start(door.interface, ours, 8)
        peer = await door.interface(theirs, 8)
    caplog.clear()
    peer = getattr(peer, "it", peer)
    peer._endpoint.wire.sock.shutdown(socket.SHUT_RDWR)
    with door.raises("PeerDied"):
        await side.result.recv()
    assert any(
        re.search(r": PeerDied, 8 bytes, .*>: the peer is gone without a word", line)
        for _, line in lines(caplog, "ipcqueue")
    )
    peer.close()
    await side.result.aclose()


def run(script, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout, done.stderr


REFUSED = """
import socket, sys, threading, memenpsf
{configure}
with memenpsf.listen(sys.argv[1], "<Q") as listener:
    thread = threading.Thread(target=lambda: [each.close() for each in listener])
    thread.start()
    for record in ("<d", "<Q"):
        try:
            memenpsf.connect(sys.argv[1], record).close()
        except memenpsf.RecordRefused:
            pass
    listener.close()
    thread.join()
"""


def test_it_is_quiet_by_default(tmp_path):
    assert run(REFUSED.format(configure=""), str(tmp_path / "s")) == ("", "")


def test_a_program_that_configures_logging_reads_of_refusals(tmp_path):
    configure = "import logging; logging.basicConfig()"
    out, err = run(REFUSED.format(configure=configure), str(tmp_path / "s"))
    assert out == ""
    assert re.fullmatch(
        rf"WARNING:memenpsf.clients:{tmp_path}/s: client refused: a record here is .*\n", err
    )


def test_the_fault_of_a_handler_is_read_by_default(tmp_path):
    script = """
import sys, threading, memenpsf
def handler(interface):
    raise ZeroDivisionError("of the handler")
listeners, ready = [], threading.Event()
def started(listener):
    listeners.append(listener)
    ready.set()
server = threading.Thread(target=memenpsf.serve, args=(handler, sys.argv[1], 8), kwargs={"started": started})
server.start()
ready.wait()
with memenpsf.connect(sys.argv[1], 8) as client:
    try:
        client.recv()
    except memenpsf.Aborted:
        pass
listeners[0].close()
server.join()
"""
    _, err = run(script, str(tmp_path / "s"))
    assert re.search(r"the handler of client pid \d+ failed:", err)
    assert "ZeroDivisionError: of the handler" in err


def test_logging_is_not_imported_for_it():
    script = """
import sys, memenpsf
one, other = memenpsf.pair("<Q")
one.close()
other.close()
print("logging" in sys.modules)
"""
    assert run(script) == ("False\n", "")


def test_a_module_that_is_not_whole_is_left_alone(monkeypatch):
    monkeypatch.setitem(sys.modules, "logging", object())
    queue_log.tell("%s", "x")


def test_a_line_for_which_there_is_no_memory_is_missing(caplog, monkeypatch):
    class Greedy:
        def __str__(self):
            raise MemoryError

    caplog.set_level(logging.DEBUG, "ipcqueue")
    queue_log.tell("%s", Greedy())
    assert caplog.records == []


def test_a_line_is_short_and_one(caplog):
    caplog.set_level(logging.DEBUG, "ipcqueue")
    queue_log.tell("%s", "x\n" * 1000)
    (line,) = caplog.messages
    assert "\n" not in line
    assert len(line) < 600


def test_connections_do_not_fill_the_log(caplog, tmp_path, monkeypatch):
    monkeypatch.setattr(_log, "LOG_LINES", 2)
    caplog.set_level(logging.DEBUG, "memenpsf.clients")
    with memenpsf.listen(tmp_path / "s", 8) as listener:
        for _ in range(5):
            thread = threading.Thread(target=lambda: listener.accept().close())
            thread.start()
            memenpsf.connect(tmp_path / "s", 8).close()
            thread.join()
    assert [line.rpartition(": ")[2] for line in caplog.messages] == [
        f"client {ME} connected",
        f"client {ME} connected",
        "3 more clients connected",
    ]
