"""Listener: many clients on one address, some of them slow, broken or hostile."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import random
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import fdpass
import ipcqueue
import memenpsf
from ipcqueue.lowlevel import Opening, Role, Terms, advance
from memenpsf import _log, _pending
from tests.kit.clients import Client, room_for_descriptors

NOBODY = 65534
HELLO = b"\x10\x01"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "s"


@pytest.fixture
def pool():
    with ThreadPoolExecutor(24) as executor:
        yield executor


@pytest.fixture
def sockets():
    """Connected sockets that nobody has introduced; closed at the end."""
    with contextlib.ExitStack() as stack:

        def connect(path):
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.connect(str(path))
            return sock

        yield connect


def until(condition):
    while not condition():
        time.sleep(0.001)


def nothing_comes(listener):
    with pytest.raises(TimeoutError, match="no client within 0 s"):
        listener.accept(timeout=0)


def serves(listener, path, **options):
    """A client that does everything right is served, and it is the next one to be."""
    with Client(path, **options).say_hello() as client:
        with listener.accept(timeout=0) as accepted, client.finish() as connected:
            connected.xmit((7,))
            accepted.xmit((8,))
            return (accepted.recv(), connected.recv()) == ((7,), (8,))


@pytest.fixture
def about_to_wait(monkeypatch):
    """A semaphore that counts how often a thread has begun to wait for clients."""
    semaphore = threading.Semaphore(0)
    wait = memenpsf.Listener._wait

    def noting(self, awaited):
        if any(events for _, events in awaited.interests):  # not only a rest
            semaphore.release()
        wait(self, awaited)

    monkeypatch.setattr(memenpsf.Listener, "_wait", noting)
    return semaphore


# -- clients that do everything right -----------------------------------------------------------


def test_a_hundred_clients_are_served_each_with_its_own_connection(path, pool):
    with contextlib.ExitStack() as stack, memenpsf.listen(path, "<Q", capacity=4) as listener:
        names = {f"client {n}" for n in range(100)}
        futures = {n: pool.submit(memenpsf.connect, path, "<Q", name=n) for n in names}
        accepted = {}
        for _ in names:
            interface = stack.enter_context(listener.accept())
            accepted[interface.peer_name] = interface
        assert set(accepted) == names
        for number, name in enumerate(names):
            connected = stack.enter_context(futures[name].result())
            connected.xmit((number,))
            assert accepted[name].recv() == (number,)
        nothing_comes(listener)
        assert listener.refused == 0
        assert len([p for p in path.parent.iterdir() if p.is_socket()]) == 1


def test_what_a_listener_is_told_holds_for_every_client(path):
    options = {"name": "server", "capacity": 100, "role": "client", "allow_uids": {os.geteuid()}}
    with memenpsf.listen(path, "<Q", **options) as listener:
        for _ in range(2):
            with Client(path).say_hello() as client:
                with listener.accept() as accepted, client.finish() as connected:
                    assert (accepted.name, connected.peer_name) == ("server", "server")
                    assert (accepted.capacity, connected.capacity) == (128, 1 << 17)
                    assert accepted.role == "client"
                    assert accepted.record == "<Q"
                    assert accepted.peer.pid == os.getpid()
    with memenpsf.listen(path, "<Q") as listener, Client(path).say_hello():
        with listener.accept() as accepted:
            assert accepted.role == "server"


def test_a_listener_says_where_it_is(path):
    with memenpsf.listen(path, 8) as listener:
        assert listener.address == str(path)
        assert repr(listener) == f"<Listener {path}: open, 8 bytes>"
    assert listener.address == str(path)
    assert repr(listener) == f"<Listener {path}: closed, 8 bytes>"


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"record": object()}, TypeError),
        ({"role": "master"}, ValueError),
        ({"capacity": 0}, ValueError),
        ({"timeout": -1}, ValueError),
        ({"name": "n" * 65}, ValueError),
        ({"colour": "red"}, TypeError),
    ],
)
def test_what_makes_no_listener_is_said_at_once_and_leaves_no_file(path, options, error):
    with pytest.raises(error):
        memenpsf.listen(path, **({"record": 8} | options))
    assert list(path.parent.iterdir()) == []


def test_connections_outlive_their_listener(path):
    with contextlib.ExitStack() as stack:
        with memenpsf.listen(path, "<Q") as listener:
            client = stack.enter_context(Client(path).say_hello())
            accepted = stack.enter_context(listener.accept())
        client.finish().xmit((1,))
        assert accepted.recv() == (1,)


# -- clients that are slow ------------------------------------------------------------------------


def test_introductions_in_any_order_and_in_pieces_all_succeed(path):
    rng = random.Random(1)
    with memenpsf.listen(path, "<Q", capacity=1) as listener, contextlib.ExitStack() as stack:
        sockets, interfaces = [], []
        for n in range(20):
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.connect(str(path))
            sockets.append(sock)
            segment = segment_of(stack, f"client {n}")
            # The descriptor comes with the first byte, the second byte stays behind.
            fdpass.send_fds(sock, [segment], HELLO[:1])
        nothing_comes(listener)
        assert len(listener._pending.handshakes) == 20
        order = list(range(20))
        rng.shuffle(order)
        for n in order:
            sockets[n].sendall(HELLO[1:])
            interfaces.append(stack.enter_context(listener.accept(timeout=0)))
            assert interfaces[-1].peer_name == f"client {n}"
        assert listener.refused == 0


def segment_of(stack, name):
    """The sealed segment of a client, without the client."""
    here, there = socket.socketpair()
    with here:
        terms = Terms("<Q", Role(sends=True, receives=True), capacity=1, name=name)
        opening = Opening(there, terms)
        try:
            advance(opening)
            data, fds = fdpass.recv_fds(here)
        finally:
            opening.abandon()
    assert (data, len(fds)) == (HELLO, 1)
    return stack.enter_context(fds[0])


def test_one_that_is_late_does_not_take_the_place_of_one_in_time(path, sockets):
    with memenpsf.listen(path, "<Q", timeout=0) as listener:
        sockets(path)
        with Client(path, name="in time").say_hello() as client:
            with listener.accept() as accepted:  # it is the first, as it has said something
                assert accepted.peer_name == "in time"
            with pytest.raises(memenpsf.HandshakeTimeout):
                listener.accept()
            client.finish()


def test_at_the_limit_the_next_client_waits_until_one_leaves(path, sockets, monkeypatch):
    with memenpsf.listen(path, "<Q", timeout=None, quota=memenpsf.Quota(places=3)) as listener:
        silent = [sockets(path) for _ in range(3)]
        nothing_comes(listener)
        with Client(path, name="patient").say_hello() as client:
            for _ in range(3):
                nothing_comes(listener)
                assert len(listener._pending.handshakes) == 3
            silent[1].close()
            with listener.accept() as accepted:
                assert accepted.peer_name == "patient"
            client.finish()
        assert len(listener._pending.handshakes) == 2


def test_by_default_64_may_be_introducing_themselves():
    assert memenpsf.Quota().places == 64


def test_room_for_one_more_wakes_who_accepts(path, sockets, monkeypatch, pool, about_to_wait):
    with memenpsf.listen(path, "<Q", timeout=None, quota=memenpsf.Quota(places=1)) as listener:
        silent = sockets(path)
        accepting = pool.submit(listener.accept)
        about_to_wait.acquire()
        with Client(path).say_hello() as client:
            silent.close()
            with accepting.result():
                client.finish()


# -- clients that are broken or hostile -----------------------------------------------------------


def sends(*what):
    def behave(sock):
        for item in what:
            sock.sendall(item)

    return behave


def passes(path_or_kind, data=HELLO):
    def behave(sock):
        if path_or_kind == "pipe":
            fds = os.pipe()
        elif path_or_kind == "unsealed memfd":
            fds = [os.memfd_create("x", os.MFD_ALLOW_SEALING)]
        else:
            fds = [os.open(path_or_kind, os.O_RDONLY)]
        try:
            fdpass.send_fds(sock, fds[:1], data)
        finally:
            for fd in fds:
                os.close(fd)

    return behave


BEHAVIOURS = {
    "garbage": (sends(b"GET / HTTP/1.1\r\n\r\n"), memenpsf.CorruptPeer),
    "zeros": (sends(bytes(4096)), memenpsf.CorruptPeer),
    "hello without a segment": (sends(HELLO), memenpsf.CorruptPeer),
    "another version": (sends(b"\x10\x07"), memenpsf.VersionRefused),
    "a refusal": (sends(b"\x64\x03"), memenpsf.RecordRefused),
    "an unknown refusal": (sends(b"\x64\xee"), memenpsf.Refused),
    "a device": (passes("/dev/zero"), memenpsf.SealsRefused),
    "a directory": (passes("/"), memenpsf.SealsRefused),
    "a pipe": (passes("pipe"), memenpsf.SealsRefused),
    "an unsealed memfd": (passes("unsealed memfd"), memenpsf.SealsRefused),
    "a descriptor beside garbage": (passes("/dev/null", b"ab"), memenpsf.CorruptPeer),
}


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_a_client_that_breaks_the_protocol_is_refused_and_the_next_is_served(
    path, sockets, behaviour
):
    behave, error = BEHAVIOURS[behaviour]
    with memenpsf.listen(path, "<Q") as listener:
        behave(sockets(path))
        with pytest.raises(error) as caught:
            listener.accept()
        assert type(caught.value) is error
        assert listener.refused == 1
        assert listener._pending.handshakes == []
        assert serves(listener, path)
        nothing_comes(listener)


@pytest.mark.parametrize("words", [(), (b"\x10",)])
def test_a_client_that_leaves_before_it_said_anything_is_nobody(path, sockets, words):
    with memenpsf.listen(path, "<Q") as listener:
        sock = sockets(path)
        for word in words:
            sock.sendall(word)
        sock.close()
        nothing_comes(listener)
        assert listener.refused == 0
        assert listener._pending.handshakes == []
        assert serves(listener, path)


def test_a_client_that_leaves_just_after_it_was_introduced_is_somebody(path):
    with memenpsf.listen(path, "<Q") as listener:
        with Client(path, name="brief").say_hello():
            pass
        with listener.accept() as accepted:
            assert accepted.peer_name == "brief"
            with pytest.raises(memenpsf.PeerDied):
                accepted.recv()


def test_a_client_with_another_layout_is_refused_on_both_sides(path, pool):
    with memenpsf.listen(path, "<Q") as listener:
        client = pool.submit(memenpsf.connect, path, "<QQ")
        with pytest.raises(memenpsf.RecordRefused, match=r"8 bytes: 0:u64\].*16 bytes: 0:u64\[2\]"):
            listener.accept()
        assert isinstance(client.exception(), memenpsf.RecordRefused)
        assert "here is [16 bytes" in str(client.exception())
        assert serves(listener, path)


def test_a_client_of_a_user_that_is_not_admitted_is_refused_on_both_sides(path, pool):
    stranger = os.geteuid() + 1
    with memenpsf.listen(path, "<Q", allow_uids={stranger}) as listener:
        client = pool.submit(memenpsf.connect, path, "<Q")
        with pytest.raises(memenpsf.CredentialsRefused, match=f"uid {os.geteuid()}"):
            listener.accept()
        assert isinstance(client.exception(), memenpsf.CredentialsRefused)
        assert listener.refused == 1


def test_a_server_of_a_user_that_is_not_admitted_is_refused_by_the_client(path, pool):
    with memenpsf.listen(path, "<Q") as listener:
        stranger = os.geteuid() + 1
        with pytest.raises(memenpsf.CredentialsRefused, match=f"admitted are .{stranger}"):
            memenpsf.connect(path, "<Q", allow_uids={stranger})
        with pytest.raises(memenpsf.CredentialsRefused, match="peer refused"):
            listener.accept(timeout=0)
        assert serves(listener, path)


def abstract():
    return f"@memenpsf-test-{os.getpid()}-{threading.get_native_id()}"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as two users")
@pytest.mark.parametrize("squatter", ["client", "server"])
def test_an_abstract_address_is_closed_to_other_users_on_both_sides(forked, squatter):
    name, options = abstract(), {"allow_uids": {0, NOBODY}}

    def child():
        os.setuid(NOBODY)
        if squatter == "server":
            with memenpsf.listen(name, "<Q", **options) as listener:
                os.write(ready[1], b"!")
                with pytest.raises(memenpsf.CredentialsRefused, match="peer refused"):
                    listener.accept()
        else:
            with pytest.raises(memenpsf.CredentialsRefused, match="peer refused"):
                memenpsf.connect(name, "<Q", **options)

    ready = os.pipe()
    try:
        with ThreadPoolExecutor(1) as pool:
            if squatter == "server":
                refused = pool.submit(lambda: (os.read(ready[0], 1), refuse(name)))
                assert forked(child) == 0
                refused.result()
            else:
                with memenpsf.listen(name, "<Q") as listener:
                    refused = pool.submit(listener.accept)
                    assert forked(child) == 0
                    assert isinstance(refused.exception(), memenpsf.CredentialsRefused)
    finally:
        for fd in ready:
            os.close(fd)


def refuse(name):
    # Root is admitted wherever this user is, so another user has to play this part.
    with pytest.raises(memenpsf.CredentialsRefused, match=f"uid {NOBODY}"):
        memenpsf.connect(name, "<Q")


# -- iteration ------------------------------------------------------------------------------------


def test_iteration_logs_who_is_refused_and_goes_on(path, sockets, caplog):
    with memenpsf.listen(path, "<Q") as listener, caplog.at_level(logging.WARNING, "memenpsf"):
        clients = iter(listener)
        sockets(path).sendall(b"nonsense")
        with Client(path, "<d").say_hello(), Client(path, name="good").say_hello() as client:
            with next(clients) as accepted:
                assert accepted.peer_name == "good"
                client.finish()
        assert listener.refused == 2
        listener.close()
        assert list(clients) == []
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert all(message.startswith(f"{path}: client refused: ") for message in messages)
    assert "opcode 110 instead of HELLO" in messages[0]
    assert "0:f64" in messages[1]
    assert {record.levelname for record in caplog.records} == {"WARNING"}


def test_a_storm_of_refusals_does_not_fill_the_log(path, sockets, caplog, monkeypatch):
    def storm(count):
        for _ in range(count):
            sockets(path).sendall(b"nonsense")
        sockets(path)  # gone at once: that is nobody
        with Client(path, name="good").say_hello() as client, next(clients):
            client.finish()

    with memenpsf.listen(path, "<Q") as listener, caplog.at_level(logging.WARNING, "memenpsf"):
        clients = iter(listener)
        storm(_log.LOG_LINES + 5)
        assert len(caplog.records) == _log.LOG_LINES
        monkeypatch.setattr(_log, "LOG_SECONDS", 0.0)  # over
        storm(1)
        monkeypatch.undo()
        storm(_log.LOG_LINES + 2)
        last = len(caplog.records)
        assert last == 2 * _log.LOG_LINES + 1
    messages = [record.getMessage() for record in caplog.records]
    assert messages[_log.LOG_LINES] == f"{path}: 5 more clients refused or not served"
    assert messages[last:] == [f"{path}: 3 more clients refused or not served"]


@pytest.fixture
def short_of_memory(monkeypatch):
    """The first client's segment cannot be mapped here."""
    adopt = ipcqueue._ring.segment.adopt
    first = iter([True])

    def adopt_but_not_the_first(fd, *terms):
        if next(first, False):
            fd.close()
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        return adopt(fd, *terms)

    monkeypatch.setattr(ipcqueue._link.opening, "adopt", adopt_but_not_the_first)


@pytest.mark.usefixtures("short_of_memory")
def test_a_client_for_whom_memory_is_short_is_an_os_error_and_the_next_is_served(path):
    with memenpsf.listen(path, "<Q") as listener, Client(path).say_hello() as client:
        with pytest.raises(OSError, match="Cannot allocate memory"):
            listener.accept()
        assert listener.refused == 1
        with pytest.raises((memenpsf.PeerDied, memenpsf.Refused)):
            client.finish().recv()
        assert serves(listener, path)


@pytest.mark.usefixtures("short_of_memory")
def test_a_client_for_whom_memory_is_short_does_not_end_the_iteration(path, caplog):
    with memenpsf.listen(path, "<Q") as listener, Client(path).say_hello():
        with Client(path, name="small").say_hello():
            for accepted in listener:
                with accepted:
                    assert accepted.peer_name == "small"
                listener.close()
    assert "Cannot allocate memory" in caplog.text


def test_descriptors_in_flight_beyond_the_limit_are_an_os_error_and_leave_no_trace(
    path, monkeypatch
):
    send_fds = fdpass.send_fds
    refusals = iter([True])

    def too_many(sock, fds, data=b"\0"):
        if next(refusals, False):
            raise fdpass.TooManyInFlight("of this user")
        send_fds(sock, fds, data)

    with memenpsf.listen(path, "<Q") as listener:
        with Client(path).say_hello(), monkeypatch.context() as patch:
            patch.setattr(fdpass, "send_fds", too_many)
            with pytest.raises((OSError, memenpsf.QueueError)):
                listener.accept(timeout=0)
            assert next(refusals, None) is None
        assert listener._pending.handshakes == []
        assert serves(listener, path)


@pytest.mark.parametrize("room", [0, 1, 2])
def test_a_shortage_of_descriptors_is_an_os_error_and_passes(path, room):
    with memenpsf.listen(path, "<Q") as listener, Client(path).say_hello():
        with room_for_descriptors(room):
            with pytest.raises(OSError, match="Too many open files") as caught:
                listener.accept(timeout=0)
        assert caught.value.errno == errno.EMFILE
        if listener.refused == 0:  # it still waits
            listener.accept(timeout=0).close()
        assert serves(listener, path)


# -- the end of a listener ------------------------------------------------------------------------


@pytest.mark.parametrize("silent_clients", [0, 1, 3])
def test_closing_wakes_every_thread_that_accepts(
    path, sockets, pool, about_to_wait, monkeypatch, silent_clients
):
    with memenpsf.listen(path, "<Q", timeout=None, quota=memenpsf.Quota(places=3)) as listener:
        for _ in range(silent_clients):
            sockets(path)
        accepting = [pool.submit(listener.accept) for _ in range(2)]
        iterating = pool.submit(list, listener)
        about_to_wait.acquire()
        closing = pool.submit(listener.close)
        try:
            closing.result(timeout=10)
        finally:
            for client in listener._pending.handshakes:  # or a failure here would hang
                with contextlib.suppress(OSError):
                    client.sock.shutdown(socket.SHUT_RDWR)
        for future in accepting:
            assert isinstance(future.exception(), memenpsf.Closed)
        assert iterating.result() == []
    assert not path.exists()


def test_who_closes_a_listener_that_rests_ends_accept_at_once(path, sockets, monkeypatch):
    monkeypatch.setattr(_pending, "PAUSE", 3000.0)
    waits = []

    def closes(self, awaited):  # as a signal handler may while it waits
        waits.append(awaited)
        self._busy = False
        self.close()
        self._busy = True

    monkeypatch.setattr(memenpsf.Listener, "_wait", closes)
    with memenpsf.listen(path, "<Q") as listener:
        sockets(path).close()
        with pytest.raises(memenpsf.Closed):
            listener.accept()
    assert len(waits) == 1


def test_a_respite_takes_no_longer_than_who_accepts_would_wait(path, sockets, monkeypatch):
    monkeypatch.setattr(_pending, "PAUSE", 3000.0)
    with memenpsf.listen(path, "<Q") as listener:
        sockets(path).close()
        with pytest.raises(TimeoutError):
            listener.accept(timeout=0)
        with Client(path, name="good").say_hello() as client:
            with listener.accept(timeout=0) as accepted:
                assert accepted.peer_name == "good"
            client.finish()


def test_a_closed_listener_says_so_whatever_the_timeout(path):
    with memenpsf.listen(path, "<Q") as listener:
        pass
    for _ in range(2):
        listener.close()
        for timeout in (None, 0, 1):
            with pytest.raises(memenpsf.Closed, match="closed the listener"):
                listener.accept(timeout)
        assert list(listener) == []


def test_clients_that_nobody_accepted_are_told_when_the_listener_closes(path):
    with contextlib.ExitStack() as stack:
        with memenpsf.listen(path, "<Q") as listener:
            ready = [stack.enter_context(Client(path).say_hello()) for _ in range(2)]
            listener.accept().close()
        for client in ready:
            with pytest.raises(memenpsf.EndOfStream):
                client.finish().recv()


def test_a_forked_child_that_closes_its_copy_leaves_the_listener_alone(path, forked):
    with memenpsf.listen(path, "<Q") as listener:
        assert forked(listener.close) == 0
        assert path.is_socket()
        assert serves(listener, path)


def test_a_forked_child_that_closes_its_copy_leaves_those_in_the_handshake_alone(path, forked):
    with memenpsf.listen(path, "<Q", quota=memenpsf.Quota(pending=1)) as listener:
        with Client(path) as first, Client(path) as second:
            nothing_comes(listener)  # yet; and the second waits for a place
            assert forked(listener.close) == 0
            for client in (first, second):
                client.say_hello()
                with listener.accept(timeout=0), client.finish():
                    pass


# -- timeouts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [0, 1e-9, 0.01])
def test_when_no_client_comes_in_time_it_is_a_timeout(path, timeout):
    with memenpsf.listen(path, "<Q") as listener:
        with pytest.raises(TimeoutError, match=f"no client within {timeout} s"):
            listener.accept(timeout)
        assert listener.refused == 0


@pytest.mark.parametrize("timeout", [None, 0, 1e-9, 0.01, 1e9, float("inf")])
def test_every_timeout_gives_a_client_that_is_there(path, timeout):
    with memenpsf.listen(path, "<Q") as listener, Client(path, name="here").say_hello():
        with listener.accept(timeout) as accepted:
            assert accepted.peer_name == "here"


@pytest.mark.parametrize("timeout", [None, 1e9, float("inf")])
@pytest.mark.parametrize("patience", [None, 1e9])
def test_every_long_timeout_waits_for_a_client(path, pool, about_to_wait, timeout, patience):
    with memenpsf.listen(path, "<Q", timeout=patience) as listener:
        accepting = pool.submit(listener.accept, timeout)
        about_to_wait.acquire()
        with Client(path) as client:
            # One more wait, with a handshake under way; unless accept has failed meanwhile.
            until(lambda: about_to_wait.acquire(timeout=0.01) or accepting.done())
            client.say_hello()
            with accepting.result():
                client.finish()


@pytest.mark.parametrize("timeout", [-1, float("nan")])
def test_a_timeout_for_accepting_that_is_none_is_a_value_error(path, timeout):
    with memenpsf.listen(path, "<Q") as listener, Client(path).say_hello():
        with pytest.raises(ValueError, match="timeout is None or at least 0"):
            listener.accept(timeout)
        listener.accept().close()


@pytest.mark.parametrize("timeout", [0, 1e-9, 0.01])
def test_a_timeout_holds_while_another_thread_accepts(path, pool, about_to_wait, timeout):
    with memenpsf.listen(path, "<Q") as listener:
        accepting = pool.submit(listener.accept)
        about_to_wait.acquire()
        with pytest.raises(TimeoutError, match="no client within"):
            listener.accept(timeout)
        listener.close()
        assert isinstance(accepting.exception(), memenpsf.Closed)
