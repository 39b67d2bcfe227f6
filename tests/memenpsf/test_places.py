"""Where bare names live, the lock under which servers start, and what clients are told."""

from __future__ import annotations

import ast
import contextlib
import errno
import fcntl
import os
import shutil
import socket
import stat
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import trio
import trio.testing

import memenpsf
import memenpsf.trio
from ipcqueue.lowlevel import drive
from memenpsf import _address, _places, _seeking
from memenpsf._address import resolve, starting
from memenpsf._places import lock_places, places
from memenpsf._seeking import connecting
from tests.project.test_layers import MODULES, parsed

ONLY_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as two users")
NOBODY = 65534


@pytest.fixture(autouse=True)
def roots(tmp_path, monkeypatch):
    """/run/user and /tmp of the test's own, open to all users as the real ones are."""
    where = Path(tempfile.mkdtemp())
    where.chmod(0o755)
    (where / "run").mkdir(mode=0o755)
    (where / "tmp").mkdir()
    (where / "tmp").chmod(0o1777)
    monkeypatch.delenv(_places.OVERRIDE, raising=False)
    monkeypatch.setattr(_places, "RUNTIME", where / "run")
    monkeypatch.setattr(_places, "TEMPORARY", where / "tmp")
    monkeypatch.setattr(_seeking, "RUNTIME", where / "run")
    monkeypatch.setattr(_seeking, "TEMPORARY", where / "tmp")
    yield where
    shutil.rmtree(where)


def log_in(roots, uid=None):
    """Make the runtime directory of a user, as a login does."""
    uid = os.geteuid() if uid is None else uid
    directory = roots / "run" / str(uid)
    directory.mkdir(mode=0o700)
    if uid != os.geteuid():
        os.chown(directory, uid, uid)
    return directory


def in_tmp(roots):
    return roots / "tmp" / f"memenpsf-{os.geteuid()}"


def finds(name):
    with drive(connecting(resolve(name), 0)).sock:
        return True


def step(plan):
    """Run a plan until it waits; return None then, and else its result."""
    try:
        next(plan)
    except StopIteration as end:
        return end.value
    return None


def squat(directory, uid):
    directory.mkdir(mode=0o700)
    os.chown(directory, uid, uid)


# -- one rule for all processes of a user -----------------------------------------------------


@pytest.mark.parametrize("runtime", [None, "", "/nowhere", "somebody's"])
def test_the_environment_of_a_login_session_does_not_matter(roots, monkeypatch, runtime):
    expected = places()
    if runtime is None:
        monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    else:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(roots / runtime) if runtime else "")
        (roots / "somebody's").mkdir()
    assert places() == expected
    with memenpsf.listen("prices", 8) as listener:
        assert Path(listener.address).parent in expected
    assert list((roots / "run").iterdir()) == []  # nor is it made up


def test_names_live_in_the_runtime_directory_of_the_user_if_there_is_one(roots):
    home = log_in(roots)
    with memenpsf.listen("prices", 8) as listener:
        assert listener.address == str(home / "memenpsf" / "prices")
        assert finds("prices")
    assert stat.S_IMODE((home / "memenpsf").stat().st_mode) == 0o700


def test_without_one_they_live_in_a_directory_of_the_user_in_tmp(roots):
    with memenpsf.listen("prices", 8) as listener:
        assert listener.address == str(in_tmp(roots) / "prices")
        assert finds("prices")
    assert stat.S_IMODE(in_tmp(roots).stat().st_mode) == 0o700


def test_a_service_without_a_session_and_a_client_with_one_find_each_other(roots):
    with memenpsf.listen("prices", 8):
        log_in(roots)
        assert finds("prices")
        with pytest.raises(OSError, match="a live server") as caught:
            memenpsf.listen("prices", 8)
        assert caught.value.errno == errno.EADDRINUSE
    with memenpsf.listen("prices", 8) as listener:
        assert listener.address.startswith(str(roots / "run"))


def test_servers_that_see_different_places_start_one_after_the_other(roots):
    with contextlib.ExitStack() as early:
        locked, _ = step(lock_places(early))
        assert locked == [in_tmp(roots)]
        log_in(roots)
        late = starting(resolve("prices"))
        assert step(late) is None
        early.close()
        step(late).close()


def test_a_dead_server_in_one_place_does_not_hide_a_live_one_in_the_other(roots):
    with memenpsf.listen("prices", 8):
        (log_in(roots) / "memenpsf").mkdir(mode=0o700)
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(places()[0] / "prices"))
        assert finds("prices")


def test_clients_make_no_directory(roots):
    log_in(roots)
    with pytest.raises(FileNotFoundError):
        memenpsf.connect("prices", 8)
    assert [*roots.glob("*/*/*"), *roots.glob("tmp/*")] == []


def test_the_override_replaces_all_places(roots, monkeypatch):
    sandbox = roots / "sandbox"
    sandbox.mkdir()
    with memenpsf.listen("outside", 8):
        monkeypatch.setenv(_places.OVERRIDE, str(sandbox))
        assert places() == [sandbox / "memenpsf"]
        with memenpsf.listen("prices", 8) as listener:
            assert listener.address == str(sandbox / "memenpsf" / "prices")
        with pytest.raises(FileNotFoundError):
            memenpsf.connect("outside", 8)


# -- one user's directories are not another's -------------------------------------------------


@ONLY_ROOT
def test_root_with_the_environment_of_a_user_leaves_nothing_in_their_directories(
    roots, monkeypatch, forked
):
    home = log_in(roots, NOBODY)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(home))  # sudo -E
    with memenpsf.listen("prices", 8):
        assert list(home.iterdir()) == []

        def the_user():
            os.setuid(NOBODY)
            with memenpsf.listen("prices", 8) as listener:
                assert listener.address == str(home / "memenpsf" / "prices")
                assert finds("prices")

        assert forked(the_user) == 0


@ONLY_ROOT
def test_an_override_in_the_directory_of_another_user_is_refused_in_words(roots, monkeypatch):
    monkeypatch.setenv(_places.OVERRIDE, str(log_in(roots, NOBODY)))
    with pytest.raises(PermissionError, match=f"parent belongs to uid {NOBODY}.*runs under uid 0"):
        memenpsf.listen("prices", 8)
    assert [*roots.glob("run/*/*")] == []


@ONLY_ROOT
def test_what_another_user_made_in_a_runtime_directory_locks_nobody_out(roots):
    """An older version did, under sudo -E."""
    squat(log_in(roots) / "memenpsf", NOBODY)
    with memenpsf.listen("prices", 8) as listener:
        assert listener.address == str(in_tmp(roots) / "prices")
        assert finds("prices")


@ONLY_ROOT
def test_a_runtime_directory_of_another_user_is_not_used(roots):
    os.chown(log_in(roots), NOBODY, NOBODY)
    with memenpsf.listen("prices", 8) as listener:
        assert listener.address == str(in_tmp(roots) / "prices")
    assert [*roots.glob("run/*/*")] == []


@ONLY_ROOT
@pytest.mark.parametrize("logged_in", [False, True])
def test_whoever_is_first_to_make_a_known_name_in_tmp_keeps_nobody_out(roots, logged_in):
    squat(in_tmp(roots), NOBODY)
    if logged_in:
        log_in(roots)
    with memenpsf.listen("prices", 8) as listener:
        assert finds("prices")
        with pytest.raises(OSError, match="a live server"):
            memenpsf.listen("prices", 8)
        with memenpsf.listen("quotes", 8) as other:
            assert Path(other.address).parent == Path(listener.address).parent
    assert list(in_tmp(roots).iterdir()) == []


@ONLY_ROOT
def test_a_substitute_of_another_user_is_passed_over(roots):
    squat(in_tmp(roots), NOBODY)
    squat(in_tmp(roots).with_suffix(".00000000"), NOBODY)
    in_tmp(roots).with_suffix(".00000001").symlink_to(roots)
    with memenpsf.listen("prices", 8):
        assert finds("prices")


@ONLY_ROOT
def test_no_place_at_all_is_a_permission_error_for_names_and_no_matter_for_paths(
    roots, monkeypatch, tmp_path
):
    monkeypatch.setenv(_places.OVERRIDE, str(roots))
    squat(roots / "memenpsf", NOBODY)
    for use in (memenpsf.listen, memenpsf.connect):
        with pytest.raises(PermissionError, match=f"belongs to uid {NOBODY}"):
            use("prices", 8)
    with memenpsf.listen(tmp_path / "s", 8):
        assert finds(tmp_path / "s")


# -- the lock under which servers start -------------------------------------------------------


@contextlib.contextmanager
def held(directory):
    fd = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def test_who_locks_the_directory_of_a_path_keeps_nobody_from_starting(tmp_path):
    with held(tmp_path):
        step(starting(resolve(tmp_path / "s"))).close()


@pytest.mark.parametrize("kind", ["file", "directory", "fifo", "symlink"])
def test_no_file_of_a_known_name_keeps_a_server_from_starting(roots, tmp_path, kind):
    obstacle = tmp_path / f".memenpsf-{os.geteuid():x}"
    {
        "file": obstacle.touch,
        "directory": obstacle.mkdir,
        "fifo": lambda: os.mkfifo(obstacle),
        "symlink": lambda: obstacle.symlink_to(tmp_path / "s"),
    }[kind]()
    with memenpsf.listen(tmp_path / "s", 8):
        assert {each.name for each in tmp_path.iterdir()} == {"s", obstacle.name}


@ONLY_ROOT
def test_no_other_user_can_take_the_lock(roots, forked):
    with memenpsf.listen("prices", 8):
        pass

    directory = in_tmp(roots)

    def stranger():
        os.setuid(NOBODY)
        for mode in (os.O_RDONLY, os.O_PATH):
            with pytest.raises(OSError, match=r"Permission denied|Bad file descriptor"):
                fcntl.flock(os.open(directory, mode), fcntl.LOCK_SH)

    assert forked(stranger) == 0


def test_a_lock_that_is_not_released_is_an_error_that_names_the_process(
    roots, tmp_path, monkeypatch
):
    monkeypatch.setattr(_places, "_LOCK_PATIENCE", 0)
    in_tmp(roots).mkdir(mode=0o700)
    with held(in_tmp(roots)):
        for address in ("prices", tmp_path / "s"):
            with pytest.raises(TimeoutError, match=f"process {os.getpid()} of this user") as caught:
                memenpsf.listen(address, 8)
            assert caught.value.filename == str(in_tmp(roots))
    assert not (tmp_path / "s").exists()


def test_closing_needs_no_lock(roots, tmp_path):
    listener = memenpsf.listen(tmp_path / "s", 8)
    with held(in_tmp(roots)):
        listener.close()
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("use", ["listen", "serve"])
def test_trio_runs_other_tasks_while_a_server_waits_for_the_lock(roots, tmp_path, use):
    in_tmp(roots).mkdir(mode=0o700)

    async def main():
        with contextlib.ExitStack() as lock:
            lock.enter_context(held(in_tmp(roots)))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(release, lock)
                if use == "listen":
                    listener = await memenpsf.trio.listen(tmp_path / "s", 8)
                else:
                    arguments = (memenpsf.trio.serve, trio.sleep, tmp_path / "s", 8)
                    listener = await nursery.start(*arguments)
                await listener.aclose()

    async def release(lock):
        await trio.testing.wait_all_tasks_blocked()
        lock.close()

    trio.run(main)


def test_trio_can_cancel_a_server_that_waits_for_the_lock(roots, tmp_path):
    in_tmp(roots).mkdir(mode=0o700)

    async def main():
        with held(in_tmp(roots)), trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(memenpsf.trio.listen, tmp_path / "s", 8)
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        assert scope.cancelled_caught

    trio.run(main)
    assert not (tmp_path / "s").exists()
    memenpsf.listen(tmp_path / "s", 8).close()


@ONLY_ROOT
def test_a_child_forked_under_the_lock_does_not_keep_it(roots, tmp_path, monkeypatch):
    monkeypatch.setattr(_places, "_LOCK_PATIENCE", 0)
    monkeypatch.setattr(_address, "STARTING", 1e9)
    with socket.socket(socket.AF_UNIX) as foreign:
        foreign.bind(str(tmp_path / "s"))
        os.chown(tmp_path / "s", NOBODY, NOBODY)
        plan = starting(resolve(tmp_path / "s"))
        assert step(plan) is None  # waits whether that server listens, under the lock
        end, stays = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(stays)
            os.read(end, 1)
            os._exit(0)
        try:
            with pytest.raises(TimeoutError):
                memenpsf.listen("prices", 8)
            plan.close()
            memenpsf.listen("prices", 8).close()
        finally:
            os.close(stays)
            os.close(end)
            os.waitpid(pid, 0)


def test_a_place_that_is_removed_while_a_server_waits_for_it_is_made_anew(roots, tmp_path):
    in_tmp(roots).mkdir(mode=0o700)
    with held(in_tmp(roots)):
        plan = starting(resolve("prices"))
        assert step(plan) is None
        in_tmp(roots).rename(roots / "aside")
    with contextlib.closing(step(plan)) as bound:
        assert bound.address.path == in_tmp(roots) / "prices"
        assert bound.address.path.is_socket()


def test_a_place_that_is_replaced_between_opening_and_locking_is_opened_anew(roots, monkeypatch):
    real, moved = fcntl.flock, []

    def flock(fd, operation):
        if not moved:
            moved.append(in_tmp(roots).rename(roots / "aside"))
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with contextlib.closing(drive(starting(resolve("prices")))) as bound:
        assert bound.address.path.is_socket()


@ONLY_ROOT
def test_several_users_serve_in_one_directory(roots, forked):
    common = roots / "tmp"
    with memenpsf.listen(common / "root", 8):

        def other():
            os.setuid(NOBODY)
            with memenpsf.listen(common / "other", 8):
                assert finds(common / "other")
            with pytest.raises(PermissionError, match="not replaced") as caught:
                memenpsf.listen(common / "root", 8)
            assert caught.value.filename == str(common / "root")

        assert forked(other) == 0
        assert finds(common / "root")


# -- what a client is told --------------------------------------------------------------------


def refused(address, kind=FileNotFoundError):
    with pytest.raises(kind) as caught:
        memenpsf.connect(address, 8)
    assert caught.value.errno == (errno.ENOENT if kind is FileNotFoundError else errno.ECONNREFUSED)
    return str(caught.value)


def test_the_error_says_where_was_looked_and_which_servers_are_there(roots):
    log_in(roots)
    with contextlib.ExitStack() as stack:
        for name in ("weather", "price", "quotes"):
            stack.enter_context(memenpsf.listen(name, 8))
        words = refused("prices")
        for directory in places():
            assert f"{directory}/prices" in words
        assert "servers in these directories: 'price', " in words
        assert "'quotes'" in words
        assert "'weather'" in words
    assert "no other server listens in th" in refused("prices")


def test_servers_in_both_places_are_named(roots):
    with memenpsf.listen("early", 8):
        log_in(roots)
        with memenpsf.listen("late", 8):
            words = refused("prices")
            assert "'early'" in words
            assert "'late'" in words


def test_a_path_without_a_server_names_its_neighbours(tmp_path):
    with memenpsf.listen(tmp_path / "server", 8):
        assert "servers in this directory: 'server'" in refused(tmp_path / "sever")
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(tmp_path / "dead"))
        words = refused(tmp_path / "dead", ConnectionRefusedError)
        assert "servers in this directory: 'server'" in words
    assert "no such directory" in refused(tmp_path / "missing" / "s")


def test_what_only_looks_like_a_server_is_not_named(tmp_path):
    (tmp_path / "file").touch()
    with socket.socket(socket.AF_UNIX) as bound, socket.socket(socket.AF_UNIX) as gone:
        bound.bind(str(tmp_path / "not listening"))
        gone.bind(str(tmp_path / "gone"))
        gone.listen()
        (tmp_path / "gone").unlink()
        assert "no other server listens in th" in refused(tmp_path / "s")


def test_names_of_strangers_are_escaped_and_few_and_short(roots):
    names = ["\x1b[31mred", "two\u202elines", "x" * 60, *(f"n{n}" for n in range(30))]
    with contextlib.ExitStack() as stack:
        for name in names:
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.bind(str(roots / name))
            sock.listen()
        words = refused(roots / "\x1b[31mre")
        assert "'\\x1b[31mred'" in words
        assert "and 28 more" in words
        other = refused(roots / "two lines")
        assert other.count("'two\\u202elines'") == 1
        long = refused(roots / ("x" * 50))
        assert "x" * 51 not in long
        assert f"'{'x' * 40}…'" in long
        for text in (words, other, long):
            assert text.isprintable()


def test_a_line_feed_in_a_name_makes_up_no_server(roots):
    forged = f"0: 2 0 10000 1 1 1 {roots}/forged"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind("\0memenpsf\n" + forged)
        sock.listen()
        assert f"{roots}/forged" in _seeking._listening()[0]
        assert "no other server listens in th" in refused(roots / "s")


@ONLY_ROOT
def test_a_name_that_another_user_serves_is_said_to_be_that(roots, forked):
    ready, done = socket.socketpair()
    with ready, done, ThreadPoolExecutor(1) as pool:

        def other():
            os.setuid(NOBODY)
            with memenpsf.listen("prices", 8):
                done.send(b"!")
                done.recv(1)

        status = pool.submit(forked, other)
        ready.recv(1)
        words = refused("prices")
        ready.send(b"!")
        assert status.result() == 0
    assert f"uid {NOBODY} has a server of this name" in words


def test_an_abstract_address_without_a_server_names_similar_ones():
    name = f"@memenpsf-test-{os.getpid()}-{threading.get_native_id()}"
    with memenpsf.listen(name + "\x07", 8):
        words = refused(name, ConnectionRefusedError)
        assert f"{name}\\x07'" in words
        assert words.isprintable()
    assert "similar" not in refused(name, ConnectionRefusedError)


def test_among_very_many_sockets_files_are_named_without_a_look_who_listens(
    roots, tmp_path, monkeypatch
):
    monkeypatch.setattr(_seeking, "_MAX_READ", 10)
    monkeypatch.setattr(_seeking, "_MAX_FILES", 2)
    assert "servers in th" not in refused("prices")
    with contextlib.ExitStack() as stack:
        for n in range(3):
            stack.enter_context(memenpsf.listen(tmp_path / f"s{n}", 8))
        words = refused(tmp_path / "s")
        assert "socket files in this directory: 's" in words
        assert "more" not in words


def test_the_words_do_without_proc(tmp_path, monkeypatch):
    def unreadable():
        raise PermissionError

    monkeypatch.setattr(_seeking, "_listening", unreadable)
    assert "no server listens there" in refused(tmp_path / "s")


@pytest.mark.parametrize("address", ["prices", "./prices", "@memenpsf-nobody"])
def test_trio_says_the_same(address):
    kind = ConnectionRefusedError if address.startswith("@") else FileNotFoundError

    async def main():
        with pytest.raises(kind) as caught:
            await memenpsf.trio.connect(address, 8)
        assert str(caught.value) == refused(address, kind)

    trio.run(main)


# -- rules of the source ----------------------------------------------------------------------


def users_of(*names):
    """The modules in which an attribute or a name of these stands."""
    return {
        module
        for module in MODULES
        for node in ast.walk(parsed(module))
        if (isinstance(node, ast.Attribute) and node.attr in names)
        or (isinstance(node, ast.Name) and node.id in names)
    }


def test_only_private_directories_are_locked():
    """Anybody who can open a file can hold its lock."""
    assert users_of("flock", "lockf") == {"memenpsf/_places.py"}


def test_nothing_is_bound_under_another_name_and_no_umask_is_set():
    """The kernel knows a socket by its first name; the umask is that of all threads."""
    assert (
        users_of("umask", "rename", "replace", "renames")
        & {module for module in MODULES if module.startswith("memenpsf/")}
        == set()
    )


def test_where_names_live_depends_on_the_uid_and_one_variable():
    in_memenpsf = {module for module in users_of("environ", "getenv") if "memenpsf/" in module}
    assert in_memenpsf == {"memenpsf/_places.py"}
    assert Path(_places.__file__).read_text().count("os.environ") == 1


def test_who_compares_user_ids_asks_whether_they_say_anything():
    comparing = {
        module
        for module in MODULES
        for node in ast.walk(parsed(module))
        if isinstance(node, ast.Compare)
        for part in ast.walk(node)
        if isinstance(part, ast.Attribute) and part.attr in {"st_uid", "geteuid"}
    }
    assert {"memenpsf/_address.py", "memenpsf/_places.py"} <= comparing
    assert comparing <= users_of("is_ambiguous_uid")
