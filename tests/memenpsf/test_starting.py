"""What others see of a server that starts: the final name, and no time in which it seems dead."""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import shutil
import socket
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest
import trio

import memenpsf
import memenpsf.trio
from ipcqueue.lowlevel import drive
from memenpsf import _address, _listener, _pending, _places, _seeking
from memenpsf._address import resolve, starting
from memenpsf._pending import PendingClients
from memenpsf._seeking import connecting

ONLY_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as two users")
NOBODY = 65534


@pytest.fixture(autouse=True)
def runtime(tmp_path, monkeypatch):
    directory = tmp_path / "run"
    directory.mkdir()
    monkeypatch.setenv(_places.OVERRIDE, str(directory))
    return directory


@pytest.fixture
def always_young(monkeypatch):
    """Every socket file is so new that its server may be just starting."""
    for module in (_address, _seeking):
        monkeypatch.setattr(module, "STARTING", 1e9)


@pytest.fixture
def never_young(monkeypatch):
    for module in (_address, _seeking):
        monkeypatch.setattr(module, "STARTING", 0)


def step(plan):
    """Run a plan until it waits; return None then, and else its result."""
    try:
        next(plan)
    except StopIteration as end:
        return end.value
    return None


def bind(path):
    return drive(starting(resolve(path)))


# -- one name for the kernel and for users ----------------------------------------------------


@pytest.mark.parametrize("address", ["prices", "./prices", "@memenpsf-test-name"])
def test_the_kernel_knows_the_name_that_clients_use(monkeypatch, tmp_path, address):
    monkeypatch.chdir(tmp_path)
    with memenpsf.listen(address, 8) as listener:
        assert listener.address in _seeking._listening()[0]
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(resolve(listener.address).sockaddr)
            assert client.getpeername() in (
                listener.address,
                listener.address.replace("@", "\0").encode(),
            )


@pytest.mark.skipif(shutil.which("systemd-tmpfiles") is None, reason="needs systemd-tmpfiles")
def test_systemd_does_not_remove_the_file_of_a_live_server(tmp_path):
    directory = tmp_path / "d"
    directory.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(directory / "dead"))
    configuration = tmp_path / "aged.conf"
    configuration.write_text(f"d {directory} 0755 - - 0\n")
    with memenpsf.listen(directory / "s", 8):
        command = ["systemd-tmpfiles", "--clean", f"--prefix={directory}", str(configuration)]
        subprocess.run(command, check=True)
        assert [each.name for each in directory.iterdir()] == ["s"]
        with pytest.raises(OSError, match="a live server"):
            memenpsf.listen(directory / "s", 8)


# -- between bind() and listen(): clients -----------------------------------------------------


def test_a_client_waits_for_a_server_that_is_just_starting(tmp_path, always_young):
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        plan = connecting(resolve(path), 5.0)
        assert step(plan) is None
        server.listen()
        sock, address, _ = step(plan)
        with sock:
            assert sock.getpeername() == str(address) == str(path)


def test_a_client_waits_for_a_bare_name_in_any_place(runtime, always_young):
    (runtime / "memenpsf").mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(runtime / "memenpsf" / "prices"))
        plan = connecting(resolve("prices"), None)
        assert step(plan) is None
        server.listen()
        sock, address, _ = step(plan)
        with sock:
            assert sock.getpeername() == str(address)


@pytest.mark.parametrize("door", ["threads", "trio"])
def test_a_client_finds_a_server_of_either_door_that_starts_meanwhile(
    tmp_path, always_young, monkeypatch, door
):
    path = tmp_path / "s"
    server = socket.socket(socket.AF_UNIX)
    real, attempts = _seeking.connect_once, []

    def connect_once(address, sock):
        attempts.append(address)
        if len(attempts) == 2:
            server.listen()
        return real(address, sock)

    monkeypatch.setattr(_seeking, "connect_once", connect_once)
    with server:
        server.bind(str(path))
        with pytest.raises(memenpsf.HandshakeTimeout):  # nobody answers, but it is connected
            if door == "threads":
                memenpsf.connect(path, 8, timeout=0.05)
            else:
                trio.run(lambda: memenpsf.trio.connect(path, 8, timeout=0.05))
        assert len(attempts) == 2


def test_a_dead_servers_file_is_an_error_at_once(tmp_path, never_young):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "s"))
    with pytest.raises(ConnectionRefusedError):
        step(connecting(resolve(tmp_path / "s"), None))


def test_nothing_is_waited_for_where_there_is_no_file_or_no_time(tmp_path, always_young):
    with pytest.raises(FileNotFoundError):
        step(connecting(resolve(tmp_path / "s"), None))
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "s"))
    with pytest.raises(ConnectionRefusedError):
        step(connecting(resolve(tmp_path / "s"), 0))


def test_a_server_that_died_as_it_started_is_waited_for_for_a_moment_only(tmp_path):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "s"))
    with pytest.raises(ConnectionRefusedError):
        memenpsf.connect(tmp_path / "s", 8, timeout=None)


# -- before bind() ----------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["prices", "./prices", "./later/prices", "@memenpsf-test-late"])
@pytest.mark.parametrize("timeout", [0, 5.0, None])
def test_a_client_that_tries_again_finds_a_server_that_starts_later(
    monkeypatch, tmp_path, never_young, address, timeout
):
    monkeypatch.chdir(tmp_path)
    plan = connecting(resolve(address), timeout, retry=None)
    for _ in range(20):
        assert step(plan) is None
    (tmp_path / "later").mkdir()
    began = _seeking.monotonic()
    with memenpsf.listen(address, 8) as listener:
        found = step(plan)
        with found.sock:
            assert str(found.address) == listener.address
        # The time that it looked for a server is not taken from the handshake.
        assert found.deadline >= began + (math.inf if timeout is None else timeout)


def test_it_tries_again_where_a_dead_server_has_left_its_file(tmp_path, never_young):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "s"))
    plan = connecting(resolve(tmp_path / "s"), 5.0, retry=1e9)
    assert step(plan) is None
    with memenpsf.listen(tmp_path / "s", 8), step(plan).sock:
        pass


def test_a_server_that_had_no_room_and_is_gone_is_looked_for_again(tmp_path, never_young):
    path = tmp_path / "s"
    plan = connecting(resolve(path), 1e9, retry=1e9)
    with socket.socket(socket.AF_UNIX) as full, socket.socket(socket.AF_UNIX) as client:
        full.bind(str(path))
        full.listen(0)
        client.connect(str(path))
        assert step(plan) is None
    path.unlink()
    assert step(plan) is None
    began = _seeking.monotonic()
    with memenpsf.listen(path, 8):
        found = step(plan)
        with found.sock:
            assert found.deadline >= began + 1e9


def test_no_room_within_the_timeout_is_an_error_however_long_it_may_retry(tmp_path):
    with socket.socket(socket.AF_UNIX) as full, socket.socket(socket.AF_UNIX) as client:
        full.bind(str(tmp_path / "s"))
        full.listen(0)
        client.connect(str(tmp_path / "s"))
        with pytest.raises(memenpsf.HandshakeTimeout, match="no room within 0 s"):
            step(connecting(resolve(tmp_path / "s"), 0, retry=None))


def test_it_does_not_try_again_where_this_user_may_not_look(runtime):
    (runtime / "memenpsf").write_text("not a directory")
    with pytest.raises(PermissionError):
        step(connecting(resolve("prices"), 5.0, retry=None))


def test_pauses_are_bounded_by_the_time_that_is_left(tmp_path):
    plan = connecting(resolve(tmp_path / "s"), 5.0, retry=1e-9)
    with contextlib.suppress(FileNotFoundError):
        assert next(plan).seconds <= 1e-9
    plan = connecting(resolve(tmp_path / "s"), 5.0, retry=None)
    assert max(next(plan).seconds for _ in range(20)) == 0.1


@pytest.mark.parametrize(
    ("retry", "text"), [(1e-6, "1e-06 s"), (0.03, "0.03 s"), (timedelta(milliseconds=30), "0.03 s")]
)
@pytest.mark.parametrize("address", ["prices", "./prices", "./dead", "@memenpsf-test-late"])
def test_the_error_says_for_how_long_it_tried_and_where(
    monkeypatch, tmp_path, runtime, never_young, address, retry, text
):
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead"))
    with pytest.raises(OSError, match=rf"\(tried for {text}[;)]") as caught:
        memenpsf.connect(address, 8, retry=retry)
    known = {"prices": errno.ENOENT, "./prices": errno.ENOENT}
    assert caught.value.errno == known.get(address, errno.ECONNREFUSED)
    where = resolve(address).path or (address if "@" in address else runtime / "memenpsf/prices")
    assert str(where) in str(caught.value)
    if address == "prices":
        assert f"searched {where}" in str(caught.value)
    with pytest.raises(OSError, match="no server listens there") as caught:
        memenpsf.connect(address, 8)
    assert "tried" not in str(caught.value)


@pytest.mark.parametrize("skew", [-1e6, 1e6])
def test_a_clock_that_was_set_makes_nobody_wait(tmp_path, monkeypatch, skew):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "s"))
    status = (tmp_path / "s").lstat()
    assert _address.just_bound(status) is True
    real = _address.time.clock_gettime
    monkeypatch.setattr(_address.time, "clock_gettime", lambda clock: real(clock) + skew)
    assert _address.just_bound(status) is False


# -- between bind() and listen(): other servers -----------------------------------------------


def test_what_this_user_left_is_replaced_at_once(tmp_path, always_young):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "s"))
    step(starting(resolve(tmp_path / "s"))).close()


@ONLY_ROOT
@pytest.mark.parametrize("why", ["another user's", "no lock"])
def test_a_server_that_may_be_starting_without_our_lock_is_waited_for(
    tmp_path, runtime, always_young, why
):
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        if why == "no lock":
            (runtime / "memenpsf").symlink_to(tmp_path)
        else:
            os.chown(path, NOBODY, NOBODY)
        plan = starting(resolve(path))
        assert step(plan) is None
        other.listen()
        with pytest.raises(OSError, match="a live server listens there"):
            step(plan)
        assert path.is_socket()


@ONLY_ROOT
def test_what_another_user_left_is_replaced_when_it_is_old_enough(tmp_path, never_young):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "s"))
    os.chown(tmp_path / "s", NOBODY, NOBODY)
    step(starting(resolve(tmp_path / "s"))).close()


@ONLY_ROOT
def test_somebody_who_makes_new_files_all_the_time_is_waited_for_for_a_moment_only(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(_address, "just_bound", lambda status: True)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "s"))
        os.chown(tmp_path / "s", NOBODY, NOBODY)
        with pytest.raises(OSError, match="all the time") as caught:
            bind(tmp_path / "s")
    assert caught.value.errno == errno.EADDRINUSE


@pytest.mark.parametrize("under_lock", [True, False])
def test_a_socket_of_another_kind_is_not_replaced(tmp_path, runtime, under_lock):
    if not under_lock:
        (runtime / "memenpsf").symlink_to(tmp_path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(tmp_path / "s"))
        with pytest.raises(OSError, match="cannot be told, so its file is not replaced") as caught:
            bind(tmp_path / "s")
        assert caught.value.errno == errno.EPROTOTYPE
        assert caught.value.filename == str(tmp_path / "s")
        assert (tmp_path / "s").is_socket()


def replace(path, stack):
    """Be another server, without any lock."""
    path.unlink(missing_ok=True)
    other = stack.enter_context(socket.socket(socket.AF_UNIX))
    other.bind(str(path))
    other.listen()


def test_a_server_that_was_replaced_as_it_started_says_so(tmp_path, monkeypatch):
    path = tmp_path / "s"
    with contextlib.ExitStack() as stack:
        monkeypatch.setattr(_address, "_permit", lambda *_: replace(path, stack))
        with pytest.raises(OSError, match="another server took the address") as caught:
            bind(path)
        assert caught.value.errno == errno.EADDRINUSE
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))  # the other one's file stays


def test_a_server_that_binds_between_the_look_and_bind_is_not_replaced(tmp_path, monkeypatch):
    path = tmp_path / "s"
    with contextlib.ExitStack() as stack:

        def clear(*_, **__):
            replace(path, stack)
            yield from ()

        monkeypatch.setattr(_address, "_clear", clear)
        with pytest.raises(OSError, match="in use") as caught:
            bind(path)
        assert caught.value.filename == str(path)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


@pytest.mark.parametrize("left", ["file", "no file"])
def test_a_start_that_fails_leaves_nothing(tmp_path, monkeypatch, left):
    def permit(address, file, wanted):
        if left == "no file":
            address.path.unlink()
        raise OSError(errno.EIO, "broken disk")

    monkeypatch.setattr(_address, "_permit", permit)
    with pytest.raises(OSError, match="broken disk"):
        memenpsf.listen(tmp_path / "s", 8)
    assert [each.name for each in tmp_path.iterdir()] == ["run"]


# -- the end ----------------------------------------------------------------------------------


class Recording:
    """A socket that notes whether its file is there when it stops listening."""

    def __init__(self, sock, path):
        self._sock, self._path, self.seen = sock, path, []

    def shutdown(self, how):
        self.seen.append(self._path.exists())
        self._sock.shutdown(how)

    def __getattr__(self, name):
        return getattr(self._sock, name)


@pytest.mark.parametrize("door", ["threads", "trio", "bound"])
def test_the_file_is_gone_before_the_server_is_deaf(tmp_path, door):
    """Else it looks like a dead server's, and may be replaced before it is removed."""
    path = tmp_path / "s"
    pending = PendingClients(path, 8)
    bound = pending.bound
    bound.sock = recording = Recording(bound.sock, path)
    if door == "threads":
        _listener.Listener(pending).close()
    elif door == "trio":
        trio.run(memenpsf.trio.Listener(pending).aclose)
    else:
        pending.close()
    assert recording.seen[0] is False
    assert not path.exists()


def test_the_file_is_removed_once(tmp_path):
    """The number of its inode may be another file's as soon as the socket is closed."""
    bound = bind(tmp_path / "s")
    bound.remove_file()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "s"))
        bound.inode = _address._inode((tmp_path / "s").lstat())
        bound._files += []
        bound.close()
        assert (tmp_path / "s").exists()


# -- a file that is removed all the same ------------------------------------------------------


@pytest.mark.parametrize("how", ["removed", "replaced", "directory"])
def test_a_server_notices_that_its_file_is_lost_and_says_so_once(
    tmp_path, monkeypatch, caplog, how
):
    directory = tmp_path / "d"
    directory.mkdir()
    path = directory / "s"
    monkeypatch.setattr(_pending, "LOOK_AFTER_FILE", 0)
    with contextlib.closing(PendingClients(path, 8)) as pending, contextlib.ExitStack() as stack:
        with caplog.at_level(logging.WARNING, logger="memenpsf"):
            pending.turn()
            assert caplog.messages == []
            if how == "replaced":
                replace(path, stack)
            else:
                path.unlink()
                if how == "directory":
                    directory.rmdir()
            pending.turn()
            pending.turn()
            assert len(caplog.messages) == 1
            assert caplog.messages[0].startswith(f"{path}: the socket file was removed")
        successor = path.exists()
    assert path.exists() is successor


def test_a_server_looks_after_its_file_though_nobody_comes(tmp_path):
    with contextlib.closing(PendingClients(tmp_path / "s", 8)) as pending:
        assert pending.next_deadline() <= _pending.monotonic() + _pending.LOOK_AFTER_FILE
    with contextlib.closing(PendingClients("@memenpsf-test-look", 8)) as pending:
        assert pending.bound.lost is False


def test_a_path_that_is_a_name_with_an_at_sign_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with memenpsf.listen(Path("@s"), 8) as listener:
        assert listener.address == str(tmp_path / "@s")
