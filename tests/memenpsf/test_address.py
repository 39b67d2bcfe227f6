"""Where servers listen: names, paths, abstract addresses, and what stands there already."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import memenpsf
from ipcqueue.lowlevel import drive
from memenpsf import _address, _seeking
from memenpsf._address import resolve, starting
from memenpsf._places import open_place, places

NOT_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as two users")
NOBODY = 65534


@pytest.fixture(autouse=True)
def runtime(tmp_path, monkeypatch):
    """A runtime directory of the test's own."""
    directory = tmp_path / "run"
    directory.mkdir()
    monkeypatch.setenv("MEMENPSF_RUNTIME_DIR", str(directory))
    return directory


def bind(address):
    return drive(starting(resolve(address)))


def private_directory():
    """The directory in which servers put bare names; made if need be."""
    directory = places()[0]
    os.close(open_place(directory, make=True))
    return directory


def where(address):
    """The path of a bare name's file, if a server has just been started; or of a path."""
    resolved = resolve(address)
    return resolved.path or private_directory() / address


@contextlib.contextmanager
def bound(address):
    bound = bind(address)
    try:
        yield bound
    finally:
        bound.close()


def connects(address):
    """Whether somebody listens there."""
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.connect(resolve(where(address) if resolve(address).is_name else address).sockaddr)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        return True


# -- what an address is ---------------------------------------------------------------------


def test_a_bare_name_lives_in_the_private_directory(runtime):
    assert resolve("prices").is_name
    assert list(runtime.iterdir()) == []  # to say what it means makes nothing
    with memenpsf.listen("prices", 8) as listener:
        assert listener.address == str(runtime / "memenpsf" / "prices")
        assert Path(listener.address).is_socket()


def test_anything_with_a_slash_is_a_path(tmp_path, monkeypatch, runtime):
    monkeypatch.chdir(tmp_path)
    assert resolve("./prices").path == tmp_path / "prices"
    assert resolve("sub/prices").path == tmp_path / "sub" / "prices"
    assert resolve(f"{tmp_path}/prices").path == tmp_path / "prices"
    assert list(runtime.iterdir()) == []  # and nothing was made for it


def test_a_path_object_is_a_path_even_without_a_slash(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve(Path("prices")).path == tmp_path / "prices"

    class Where:
        def __fspath__(self):
            return "prices"

    assert resolve(Where()).path == tmp_path / "prices"


def test_an_at_sign_makes_an_abstract_address(runtime):
    address = resolve("@memenpsf/prices")
    assert address.path is None
    assert address.sockaddr == "\0memenpsf/prices"
    assert str(address) == "@memenpsf/prices"
    assert list(runtime.iterdir()) == []


def test_only_an_abstract_address_admits_nobody_but_us_and_root_unless_told():
    assert resolve("@prices").default_uids == {os.geteuid(), 0}
    assert resolve("prices").default_uids is None
    assert resolve("./prices").default_uids is None


@pytest.mark.parametrize("address", ["", "@", ".", "..", "a\0b", "./a\0b", "@a\0b"])
def test_what_is_no_address_is_a_value_error(address):
    for use in (resolve, lambda a: memenpsf.listen(a, 8), lambda a: memenpsf.connect(a, 8)):
        with pytest.raises(ValueError, match="an address is a name, a path, or @name"):
            use(address)


@pytest.mark.parametrize("address", ["tcp://localhost:5555", "ipc:///tmp/prices", "unix://x"])
def test_an_url_is_told_from_a_path(address, runtime):
    for use in (resolve, lambda a: memenpsf.listen(a, 8), lambda a: memenpsf.connect(a, 8)):
        with pytest.raises(ValueError, match="not a URL"):
            use(address)
    assert resolve(f"./{address}").path is not None
    assert resolve(Path(address)).path is not None


@pytest.mark.parametrize("address", [None, 7, b"prices", ("prices",)])
def test_what_is_no_text_is_a_type_error(address):
    for use in (resolve, lambda a: memenpsf.listen(a, 8), lambda a: memenpsf.connect(a, 8)):
        with pytest.raises(TypeError):
            use(address)


def directory_that_leaves(room, parent):
    """A directory in which a path has `room` bytes left for a name."""
    length = 107 - room - 1
    name = "d" * (length - len(os.fsencode(parent)) - 1)
    assert 0 < len(name) < 256
    directory = parent / name
    directory.mkdir()
    return directory


@pytest.mark.parametrize("room", [1, 20])
def test_the_longest_path_a_socket_can_have_serves(tmp_path, room):
    path = directory_that_leaves(room, tmp_path) / ("n" * room)
    assert len(os.fsencode(path)) == 107
    with bound(path):
        assert connects(path)
    with bound("@" + "n" * 106):
        assert connects("@" + "n" * 106)


def test_one_byte_more_is_refused_in_clear_words(tmp_path):
    for address in ("n" * 200, tmp_path / ("n" * 107), "@" + "n" * 107, "./" + "é" * 60):
        with pytest.raises(ValueError, match="longer than the 107 bytes"):
            resolve(address)
    with pytest.raises(ValueError, match=f"address {tmp_path}/nnn.*107 bytes"):
        memenpsf.listen(tmp_path / ("n" * 107), 8)


# -- the private directory --------------------------------------------------------------------


def test_the_private_directory_is_made_for_us_alone(runtime):
    previous = os.umask(0)
    try:
        directory = private_directory()
    finally:
        os.umask(previous)
    assert directory == runtime / "memenpsf"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert directory.stat().st_uid == os.geteuid()
    assert private_directory() == directory  # and is found again


@pytest.mark.parametrize("mode", [0o750, 0o701, 0o770, 0o777, 0o707])
def test_a_directory_open_to_others_is_refused(runtime, mode):
    (runtime / "memenpsf").mkdir()
    (runtime / "memenpsf").chmod(mode)
    with pytest.raises(PermissionError, match=f"mode 0700.* mode {mode:04o}"):
        memenpsf.listen("prices", 8)


def test_a_directory_of_somebody_else_is_refused(runtime, monkeypatch):
    private_directory()
    stranger = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: stranger)
    with pytest.raises(PermissionError, match=f"belong to uid {stranger} .*belongs to uid"):
        memenpsf.connect("prices", 8)


@NOT_ROOT
def test_a_directory_that_another_user_made_in_our_place_is_refused(runtime):
    os.chown(private_directory(), NOBODY, NOBODY)
    for use in (memenpsf.listen, memenpsf.connect):
        with pytest.raises(PermissionError, match=f"belongs to uid {NOBODY}"):
            use("prices", 8)


def test_a_symbolic_link_is_refused_even_to_a_directory_of_ours(runtime, tmp_path):
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (runtime / "memenpsf").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PermissionError, match="not a directory of ours"):
        memenpsf.listen("prices", 8)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_that_a_directory_of_ours_may_not_be_opened_is_said_as_it_is(runtime, monkeypatch):
    private_directory()
    real = os.open

    def forbidden(path, *arguments, **named):
        if str(path).endswith("/memenpsf"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path, *arguments, **named)

    monkeypatch.setattr(os, "open", forbidden)
    for use in (memenpsf.listen, memenpsf.connect):
        with pytest.raises(PermissionError, match="Permission denied") as caught:
            use("prices", 8)
        assert caught.value.errno == errno.EACCES


def test_a_file_in_the_place_of_the_directory_is_refused(runtime):
    (runtime / "memenpsf").write_text("mine")
    with pytest.raises(PermissionError, match="not a directory of ours"):
        memenpsf.listen("prices", 8)
    assert (runtime / "memenpsf").read_text() == "mine"


# -- what stands there already ----------------------------------------------------------------

SERVER = """
import memenpsf, sys
listener = memenpsf.listen(sys.argv[1], 8)
print("ready", flush=True)
for interface in listener:
    interface.close()
"""


@pytest.mark.parametrize("address", ["prices", "./prices"])
def test_the_socket_of_a_killed_server_is_replaced(program, tmp_path, monkeypatch, address):
    monkeypatch.chdir(tmp_path)
    path = where(address)
    server = program(SERVER, address)
    assert server.stdout.readline() == "ready\n"
    assert connects(address)
    server.send_signal(signal.SIGKILL)
    server.wait()
    assert path.is_socket()
    with pytest.raises(ConnectionRefusedError, match=str(path)):
        memenpsf.connect(address, 8)
    stale = path.stat().st_ino
    with bound(address):
        assert connects(address)
        assert path.stat().st_ino != stale
    assert list(path.parent.glob(".*")) == []


def test_a_socket_that_was_bound_but_never_listened_on_is_replaced(tmp_path):
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        with bound(path):
            assert connects(path)


def test_a_live_server_is_not_replaced_and_takes_the_probe_for_nobody(tmp_path):
    path = tmp_path / "s"
    with ThreadPoolExecutor(1) as pool, memenpsf.listen(path, 8) as listener:
        for _ in range(3):
            with pytest.raises(OSError, match="live server") as caught:
                memenpsf.listen(path, 8)
            assert caught.value.errno == errno.EADDRINUSE
            assert caught.value.filename == str(path)
        # The probes wait in front of this client.
        client = pool.submit(memenpsf.connect, path, 8, name="a real one")
        with listener.accept() as accepted, client.result():
            assert accepted.peer_name == "a real one"
        assert listener.refused == 0
        assert listener._pending.handshakes == []


def test_a_live_server_whose_backlog_is_full_is_not_replaced(tmp_path):
    path = tmp_path / "s"
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.socket(socket.AF_UNIX))
        server.bind(str(path))
        server.listen(0)
        fill_backlog(path, stack)
        with pytest.raises(OSError, match="live server") as caught:
            memenpsf.listen(path, 8)
        assert caught.value.errno == errno.EADDRINUSE


def fill_backlog(path, stack):
    for _ in range(1000):
        sock = stack.enter_context(socket.socket(socket.AF_UNIX))
        sock.setblocking(False)
        try:
            sock.connect(str(path))
        except BlockingIOError:
            return
    raise AssertionError("the backlog has no end")


def test_an_abstract_name_is_taken_once():
    name = f"@memenpsf-test-{os.getpid()}-{threading.get_native_id()}"
    with bound(name):
        with pytest.raises(OSError, match="in use") as caught:
            memenpsf.listen(name, 8)
        assert caught.value.errno == errno.EADDRINUSE
        assert caught.value.filename == name
    with bound(name):
        assert connects(name)


def dead_socket(path):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))


@pytest.mark.parametrize("kind", ["file", "directory", "fifo", "symlink", "symlink to a socket"])
def test_what_is_no_socket_is_not_replaced(tmp_path, kind):
    path, target = tmp_path / "s", tmp_path / "target"
    {
        "file": lambda: path.write_text("precious"),
        "directory": path.mkdir,
        "fifo": lambda: os.mkfifo(path),
        "symlink": lambda: (target.write_text("precious"), path.symlink_to(target)),
        "symlink to a socket": lambda: (dead_socket(target), path.symlink_to(target)),
    }[kind]()
    before = path.lstat()
    with pytest.raises(FileExistsError, match="not a socket") as caught:
        memenpsf.listen(path, 8)
    assert caught.value.filename == str(path)
    after = path.lstat()
    assert (after.st_ino, after.st_mode, after.st_size) == (
        before.st_ino,
        before.st_mode,
        before.st_size,
    )
    assert set(tmp_path.iterdir()) <= {path, target, tmp_path / "run"}


def test_a_directory_that_is_not_there_is_reported_as_that(tmp_path):
    with pytest.raises(FileNotFoundError):
        memenpsf.listen(tmp_path / "missing" / "s", 8)


def test_closing_removes_the_socket_file_and_twice_is_once(tmp_path):
    path = tmp_path / "s"
    listener = memenpsf.listen(path, 8)
    assert path.is_socket()
    listener.close()
    assert not path.exists()
    with bound(path):
        listener.close()
        assert path.exists()


def test_closing_leaves_the_file_of_a_successor(tmp_path):
    path = tmp_path / "s"
    first = bind(path)
    path.unlink()
    with bound(path) as second:
        first.close()
        assert path.is_socket()
        assert connects(path)
        assert (path.stat().st_dev, path.stat().st_ino) == second.inode
    assert not path.exists()


def test_closing_when_the_file_or_its_directory_is_gone_is_no_error(tmp_path):
    directory = tmp_path / "d"
    directory.mkdir()
    listener = memenpsf.listen(directory / "s", 8)
    (directory / "s").unlink()
    listener.close()
    listener = memenpsf.listen(directory / "s", 8)
    (directory / "s").unlink()
    directory.rmdir()
    listener.close()


def test_of_servers_that_start_at_once_exactly_one_wins(tmp_path):
    path = tmp_path / "d" / "s"
    path.parent.mkdir()
    rounds, threads = 25, 8
    barrier = threading.Barrier(threads)

    def start(_):
        barrier.wait()
        try:
            return bind(path)
        except OSError as error:
            return error.errno

    with ThreadPoolExecutor(threads) as pool:
        for turn in range(rounds):
            if turn % 2 == 1:  # what a dead server left
                with socket.socket(socket.AF_UNIX) as dead:
                    dead.bind(str(path))
            results = list(pool.map(start, range(threads)))
            winners = [result for result in results if not isinstance(result, int)]
            try:
                assert len(winners) == 1
                assert results.count(errno.EADDRINUSE) == threads - 1
                assert connects(path)
                assert list(path.parent.iterdir()) == [path]  # no lock, nothing temporary
            finally:
                for winner in winners:
                    winner.close()
            assert list(path.parent.iterdir()) == []


def test_servers_at_different_names_in_one_directory_start_at_once(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        paths = [tmp_path / f"s{i}" for i in range(16)]
        servers = list(pool.map(bind, paths))
        try:
            assert all(connects(path) for path in paths)
        finally:
            for server in servers:
                server.close()
    assert list(tmp_path.glob("s*")) == []
    assert list(tmp_path.glob(".*")) == []


# -- connecting where nobody is ---------------------------------------------------------------


def test_connecting_to_a_name_that_nobody_has_names_its_address():
    with pytest.raises(FileNotFoundError, match="run/memenpsf/prices"):
        memenpsf.connect("prices", 8)


def test_connecting_to_a_socket_of_another_kind_names_the_address(tmp_path):
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(path))
        with pytest.raises(OSError, match=str(path)):
            memenpsf.connect(path, 8)


@NOT_ROOT
def test_a_socket_we_may_not_use_names_the_address(tmp_path, forked):
    path = tmp_path / "s"

    def as_nobody():
        os.setuid(NOBODY)
        with pytest.raises(PermissionError):
            memenpsf.connect(path, 8)

    with bound(path):
        assert forked(as_nobody) == 0


def test_a_full_backlog_is_a_handshake_timeout_and_no_waiting_means_none(tmp_path):
    path = tmp_path / "s"
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.socket(socket.AF_UNIX))
        server.bind(str(path))
        server.listen(0)
        fill_backlog(path, stack)
        for timeout in (0, 0.01):
            with pytest.raises(memenpsf.HandshakeTimeout, match=f"{path}.*no room") as caught:
                memenpsf.connect(path, 8, timeout=timeout)
            assert isinstance(caught.value, TimeoutError)


@pytest.mark.parametrize("timeout", [None, 50.0])
def test_a_client_waits_for_room_in_a_full_backlog(tmp_path, monkeypatch, timeout):
    path = tmp_path / "s"
    monkeypatch.setattr(_address, "BACKLOG", 0)
    no_room = threading.Event()
    real = _seeking.connect_once

    def connect_once(address, sock):
        connected = real(address, sock)
        if not connected:
            no_room.set()
        return connected

    monkeypatch.setattr(_seeking, "connect_once", connect_once)
    with ThreadPoolExecutor(1) as pool, memenpsf.listen(path, 8) as listener:
        with contextlib.ExitStack() as stack:
            fill_backlog(path, stack)
            client = pool.submit(memenpsf.connect, path, 8, timeout=timeout)
            no_room.wait()
        with listener.accept() as accepted, client.result() as connected:
            accepted.xmit(b"12345678")
            assert connected.recv() == b"12345678"
        assert listener.refused == 0


def test_a_negative_timeout_is_a_value_error_before_anything_is_connected(tmp_path):
    with memenpsf.listen(tmp_path / "s", 8) as listener:
        with pytest.raises(ValueError, match="timeout"):
            memenpsf.connect(tmp_path / "s", 8, timeout=-1)
        with pytest.raises(TimeoutError):
            listener.accept(timeout=0)
