"""What an error says: what was expected, what came, and what to do; by the words, at every door.

What options, numbers and times cannot be is in test_arguments.py.
"""

from __future__ import annotations

import asyncio
import copy
import errno
import inspect
import os
import pickle
import re
import socket
import threading

import pytest

import ipcqueue
import memenpsf
import memenpsf.trio
from memenpsf import _places
from tests.kit.doors import one_way_scenario, scenario

RECORD = "<QdI"
GOOD = (1, 2.5, 100)


@pytest.fixture(autouse=True)
def runtime(tmp_path, monkeypatch):
    directory = tmp_path / "run"
    directory.mkdir()
    monkeypatch.setenv(_places.OVERRIDE, str(directory))
    return directory


# -- arguments of the verbs ------------------------------------------------------------------------

# A call of a verb, and what it says.
SENDING = {
    "fields one by one": (
        lambda side: side.xmit(1, 2.5, 100),
        memenpsf.BadRecord,
        r"fds is a sequence, not int; a record is one argument: xmit\(\(1, 2.5, 100\)\)",
    ),
    "two fields": (
        lambda side: side.xmit(1, timeout=2.5),
        memenpsf.BadRecord,
        r"expected a tuple or list, got int; a record is 20 bytes: 0:u64 8:f64 16:u32; got 1",
    ),
    "no batch": (
        lambda side: side.xmit_many(1),
        TypeError,
        r"xmit_many\(\) takes an iterable of records, such as a list, not 1; xmit\(\) takes one",
    ),
    "one record as a batch": (
        lambda side: side.xmit_many(GOOD),
        memenpsf.BadRecord,
        r"record 0: expected a tuple or list, got int; a record is 20 bytes",
    ),
    "a batch beside its timeout": (
        lambda side: side.xmit_many([GOOD], timeout="1"),
        TypeError,
        r"timeout is None, a number of seconds or a datetime.timedelta, not '1'",
    ),
}
RECEIVING = {
    "timeout": (
        lambda side: side.recv(timeout="1"),
        TypeError,
        r"timeout is None, a number of seconds or a datetime.timedelta, not '1'",
    ),
    "limit": (
        lambda side: side.recv_vectored("5"),
        TypeError,
        r"limit is a number of records \(int\) or None, not '5'",
    ),
}


@pytest.mark.parametrize("case", SENDING)
@one_way_scenario
async def test_a_wrong_call_that_sends_says_what_is_right(door, case):
    call, kind, text = SENDING[case]
    async with door.pair(RECORD) as (one, _):
        with pytest.raises(kind, match=text) as caught:
            await call(one)
        assert type(caught.value) is kind


@pytest.mark.parametrize("case", RECEIVING)
@one_way_scenario
async def test_a_wrong_call_that_receives_says_what_is_right(door, case):
    call, kind, text = RECEIVING[case]
    async with door.pair(RECORD) as (_, other):
        with pytest.raises(kind, match=text):
            await call(other)


@one_way_scenario
async def test_an_error_of_the_records_is_the_callers_own(door):
    """A TypeError that an iterable raises is not taken for a wrong argument."""

    def records():
        yield GOOD
        raise TypeError("of the caller")

    async with door.pair(RECORD) as (one, _):
        with pytest.raises(TypeError, match=r"^of the caller$"):
            await one.xmit_many(records())


@pytest.mark.parametrize(
    "verb", ["xmit", "xmit_many", "loan", "recv", "recv_vectored", "recv_message", "borrow"]
)
def test_a_wrong_number_of_arguments_names_the_verb_alone(verb):
    one, other = memenpsf.pair(RECORD)
    with one, other, pytest.raises(TypeError, match=rf"^{verb}\(\) takes "):
        getattr(one, verb)(1, 2, 3, 4, 5, 6)


# -- names of other libraries ----------------------------------------------------------------------

GUESSES = {
    memenpsf.Interface: {
        "send": "use xmit()",
        "put": "use xmit()",
        "write": "use xmit()",
        "push": "use xmit()",
        "receive": "use recv()",
        "get": "use recv()",
        "read": "use recv()",
        "pop": "use recv()",
        "put_nowait": "use xmit(record, timeout=0), which raises Full",
        "send_many": "use xmit_many()",
        "recv_many": "use recv_vectored()",
        "qsize": "statistics() says how many records wait",
        "settimeout": "use the argument `timeout` of each call",
        "poll": "use `timeout` of each call; or arm(), and poll fileno()",
        "accept": "listen() returns what accepts",
        "aclose": "use close()",
        "flush": "a record is the peer's once xmit() has returned",
        "shutdown": "use close(); one that sends has send_eof(), too",
    },
    memenpsf.trio.Interface: {
        "put": "use xmit()",
        "get": "use recv()",
        "fileno": "xmit() and recv() wait themselves",
        "qsize": "statistics() says how many records wait",
    },
    ipcqueue.Sender: {
        "send": "use xmit()",
        "recv": "it only sends; its peer, a Receiver, receives",
        "get": "it only sends; its peer, a Receiver, receives",
    },
    ipcqueue.Receiver: {
        "get": "use recv()",
        "xmit": "it only receives; its peer, a Sender, sends",
        "shutdown": "use close(); one that sends has send_eof(), too",
        "put": "it only receives; its peer, a Sender, sends",
    },
    memenpsf.Listener: {
        "recv": "accept() returns the Interface that has it",
        "serve_forever": "use serve()",
        "fileno": "use a thread that accepts, or memenpsf.trio",
        "getsockname": "its attribute is `address`",
        "stop": "use close(), or aclose() under Trio",
    },
    memenpsf.trio.Listener: {"get": "use accept(), or a loop over the listener"},
}


@pytest.mark.parametrize("kind", GUESSES, ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_a_name_of_another_library_says_which_it_has_here(kind):
    half_made = kind.__new__(kind)
    for name, advice in GUESSES[kind].items():
        text = re.escape(f"{kind.__name__!r} has no {name!r}: {advice}")
        for holder in (kind, half_made):
            with pytest.raises(AttributeError, match=f"^{text}$"):
                getattr(holder, name)
            assert not hasattr(holder, name)
        assert name not in dir(half_made)
        assert inspect.getdoc(inspect.getattr_static(kind, name)) == f"No such name: {advice}."
    for real in ("close", "xmit", "recv", "accept", "aclose"):
        assert (real in dir(half_made)) == hasattr(half_made, real)


def test_a_subclass_may_have_such_a_name():
    class Mine(memenpsf.Interface):
        def send(self, record):
            return self.xmit(record)

    one, other = socket.socketpair()
    made = []
    thread = threading.Thread(target=lambda: made.append(memenpsf.Interface(other, RECORD)))
    thread.start()
    with Mine(one, RECORD) as mine:
        thread.join()
        with made[0] as peer:
            mine.send(GOOD)
            mine.get = peer.recv  # an attribute of the object, too
            assert mine.get() == GOOD
            assert "send" in dir(mine)
            assert "get" in dir(mine)


def test_no_name_is_guessed_that_there_is():
    for kind in GUESSES:
        for base in kind.__mro__[1:]:
            for name, value in vars(kind).items():
                if type(value).__name__ == "Guess" and kind not in (
                    ipcqueue.Sender,
                    ipcqueue.Receiver,
                ):
                    there = vars(base).get(name)
                    assert there is None or type(there) is type(value), (kind, name)


def test_copies_are_refused_in_words_all_the_same():
    one, other = memenpsf.pair(RECORD)
    with one, other:
        for make in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="expected a value to copy or pickle"):
                make(one)


# -- sockets and addresses -------------------------------------------------------------------------


@pytest.mark.parametrize("door", ["threads", "trio", "queue"])
@pytest.mark.parametrize(
    ("make", "kind", "text"),
    [
        (
            lambda: socket.socket(socket.AF_UNIX),
            OSError,
            "expected a connected AF_UNIX socket, got one that is not: <socket",
        ),
        (socket.socket, ValueError, "expected an AF_UNIX SOCK_STREAM socket, got <socket"),
        (lambda: 5, TypeError, "expected a connected AF_UNIX socket, got 5"),
    ],
)
def test_a_wrong_socket_is_told(door, make, kind, text):
    call = {
        "threads": memenpsf.Interface,
        "trio": memenpsf.trio.Interface,
        "queue": ipcqueue.Sender,
    }
    given = make()
    with pytest.raises(kind, match=text) as caught:
        call[door](given, RECORD)
    assert isinstance(given, int) or given.fileno() == -1
    if kind is OSError:
        assert caught.value.errno == errno.ENOTCONN


@pytest.mark.parametrize("door", [memenpsf.Interface, memenpsf.trio.Interface])
def test_an_address_is_for_connect(door, tmp_path):
    for address in ("prices", tmp_path):
        with pytest.raises(TypeError, match=r"got .*(prices|Path).*: connect\(\) takes an address"):
            door(address, RECORD)


@scenario
async def test_a_directory_that_is_not_there_is_told(door, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hint = "there is no such directory; what has a slash is a path"
    for call in (door.connect, door.listen):
        with pytest.raises(FileNotFoundError, match=hint) as caught:
            await call("a/b", RECORD)
        assert caught.value.filename == str(tmp_path / "a" / "b")
        with pytest.raises(FileNotFoundError, match="there is no such directory") as caught:
            await call(tmp_path / "a" / "b", RECORD)
        assert "slash" not in str(caught.value)


@scenario
async def test_a_directory_without_room_for_files_is_told(door):
    with pytest.raises(FileNotFoundError, match="no file can be made in this directory: '/proc/x'"):
        await door.listen("/proc/x", RECORD)


@scenario
async def test_a_client_of_another_uid_learns_the_option_and_its_uid(door, tmp_path):
    address = tmp_path / "s"
    uid = os.geteuid()
    async with await door.listen(address, RECORD, allow_uids=[4242]) as listener:
        async with door.tasks() as group:
            server = group.start(listener.accept)
            said = (
                f"it does not admit this user: the server's option allow_uids must name uid {uid}"
            )
            with pytest.raises(memenpsf.CredentialsRefused, match=said):
                await door.connect(address, RECORD)
        assert re.search(
            rf"the peer runs under uid {uid}, admitted are \[4242\]", str(server.error)
        )


@pytest.mark.parametrize("what", ["connect", "listen", "recv", "do_handshake"])
def test_the_door_of_trio_under_another_loop_is_told(what, tmp_path):
    here, there = socket.socketpair()
    with there:
        side = memenpsf.trio.Interface(here, RECORD)

        async def call():
            if what in {"connect", "listen"}:
                await getattr(memenpsf.trio, what)(tmp_path / "s", RECORD)
            await getattr(side, what)()

        with pytest.raises(RuntimeError, match=r"memenpsf.trio works under trio.run\(\), and here"):
            asyncio.run(call())
        side.close()
