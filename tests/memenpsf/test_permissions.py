"""Who may connect: mode and group of the socket file, and uids that stand for many users."""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import shutil
import socket
import stat
import tempfile
from pathlib import Path

import pytest
import trio

import memenpsf
import memenpsf.trio
from memenpsf import _address, _places

ONLY_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as two users")
NOBODY = 65534
GROUP = 54321  # nobody's


@pytest.fixture(autouse=True)
def runtime(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    monkeypatch.setenv(_places.OVERRIDE, str(tmp_path / "run"))


@pytest.fixture
def public():
    """A directory that all users may enter."""
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(params=[0, 0o022, 0o077, 0o777])
def umask(request):
    previous = os.umask(request.param)
    yield request.param
    os.umask(previous)


@contextlib.contextmanager
def listening(door, address, **options):
    """Listen by one of the doors; give the path."""
    if door == "threads":
        with memenpsf.listen(address, 8, **options) as listener:
            yield Path(listener.address)
    elif door == "trio":
        listener = trio.run(lambda: memenpsf.trio.listen(address, 8, **options))
        yield Path(listener.address)
        trio.run(listener.aclose)
    else:
        seen = []

        async def main():
            async with trio.open_nursery() as nursery:

                async def start(task_status):
                    await memenpsf.trio.serve(
                        trio.sleep, address, 8, task_status=task_status, **options
                    )

                listener = await nursery.start(start)
                seen.append(os.lstat(listener.address))
                await listener.aclose()

        trio.run(main)
        yield seen[0]


def permissions(found):
    status = found.lstat() if isinstance(found, Path) else found
    return stat.S_IMODE(status.st_mode)


DOORS = pytest.mark.parametrize("door", ["threads", "trio", "serve"])


# -- the mode ---------------------------------------------------------------------------------


@DOORS
@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666, 0o777, 0o200, 0o000])
def test_the_socket_file_has_the_mode_whatever_the_umask(tmp_path, door, mode, umask):
    if umask == 0o777 and os.geteuid() != 0:
        pytest.skip("this user cannot use what it makes")
    with listening(door, tmp_path / "s", mode=mode) as found:
        assert permissions(found) == mode


@DOORS
@pytest.mark.parametrize("address", ["prices", "./prices"])
def test_by_default_this_user_alone_may_connect(tmp_path, monkeypatch, door, address, umask):
    monkeypatch.chdir(tmp_path)
    with listening(door, address) as found:
        assert permissions(found) == 0o600


def test_no_more_is_ever_allowed_than_the_mode(tmp_path, monkeypatch, umask):
    seen = []

    class Socket(socket.socket):
        def listen(self, *arguments):
            seen.append(permissions(tmp_path / "s"))
            super().listen(*arguments)

        def bind(self, *arguments):
            super().bind(*arguments)
            seen.append(permissions(tmp_path / "s"))

    monkeypatch.setattr(_address.socket, "socket", Socket)
    with memenpsf.listen(tmp_path / "s", 8, mode=0o640):
        assert seen == [0o640 & ~umask, 0o640]


@ONLY_ROOT
@pytest.mark.parametrize("mode", [0o600, 0o666])
def test_another_user_connects_only_if_the_mode_says_so(public, forked, mode):
    def other():
        os.setuid(NOBODY)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(public / "s"))

    with memenpsf.listen(public / "s", 8, mode=mode):
        assert (forked(other) == 0) is (mode == 0o666)


def test_a_kernel_that_cannot_set_the_mode_beforehand_sets_it_afterwards(tmp_path, monkeypatch):
    def fchmod(fd, mode):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fchmod", fchmod)
    with memenpsf.listen(tmp_path / "s", 8, mode=0o640):
        assert permissions(tmp_path / "s") == 0o640


# -- the group --------------------------------------------------------------------------------


@ONLY_ROOT
@DOORS
@pytest.mark.parametrize("mode", [None, 0o660, 0o620])
def test_a_group_may_connect(public, forked, door, mode):
    options = {"group": GROUP} | ({} if mode is None else {"mode": mode})
    with listening(door, public / "s", **options) as found:
        status = found.lstat() if isinstance(found, Path) else found
        assert status.st_gid == GROUP
        assert permissions(status) == (mode or 0o660)
        if door == "threads":

            def other(groups):
                os.setgroups(groups)
                os.setgid(NOBODY)
                os.setuid(NOBODY)
                with socket.socket(socket.AF_UNIX) as sock:
                    sock.connect(str(public / "s"))

            assert forked(lambda: other([GROUP])) == 0
            assert forked(lambda: other([])) != 0


def test_a_group_has_a_name_or_a_number(tmp_path):
    name = grp.getgrgid(os.getegid()).gr_name
    for group in (name, os.getegid()):
        with memenpsf.listen(tmp_path / "s", 8, group=group):
            assert (tmp_path / "s").lstat().st_gid == os.getegid()


@ONLY_ROOT
def test_a_group_that_this_process_is_not_in_is_refused_in_words(public, forked):
    public.chmod(0o777)

    def unprivileged():
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        with pytest.raises(PermissionError, match=f"group {GROUP}: this process is not in") as e:
            memenpsf.listen(public / "s", 8, group=GROUP)
        assert e.value.filename == str(public / "s")

    assert forked(unprivileged) == 0
    assert list(public.iterdir()) == []


# -- what is checked before anything is bound -------------------------------------------------

WRONG = [
    ({"mode": 0o1777}, ValueError, r"mode is from 0 to 0o777, such as 0o660, not 0o1777 \(1023\)"),
    ({"mode": 660}, ValueError, r"such as 0o660, not 0o1224 \(660\)"),
    ({"mode": -1}, ValueError, "mode is from 0"),
    ({"mode": "rw"}, TypeError, "mode is a number"),
    ({"mode": True}, TypeError, "mode is a number"),
    ({"group": -1}, ValueError, "group is from 0"),
    ({"group": 1 << 32}, ValueError, "group is from 0"),
    ({"group": "no such group"}, ValueError, "no group called 'no such group'"),
    ({"group": 1.5}, TypeError, "group is a name, a number or None"),
]


@pytest.mark.parametrize(("options", "kind", "words"), WRONG)
def test_what_is_no_mode_or_group_is_refused_before_anything_is_bound(
    tmp_path, options, kind, words
):
    with pytest.raises(kind, match=words):
        memenpsf.listen(tmp_path / "s", 8, **options)
    with pytest.raises(kind, match=words):
        trio.run(lambda: memenpsf.trio.listen(tmp_path / "s", 8, **options))
    assert [each.name for each in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("options", [{"mode": 0o600}, {"group": 0}])
def test_an_abstract_address_has_neither(options):
    with pytest.raises(ValueError, match=r"abstract address.*say allow_uids"):
        memenpsf.listen("@memenpsf-test-mode", 8, **options)


# -- in a directory where others can write ----------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "symlink", "linked socket", "another user's socket"])
def test_what_takes_the_place_of_the_file_keeps_its_mode(tmp_path, monkeypatch, kind):
    if kind == "another user's socket" and os.geteuid() != 0:
        pytest.skip("only root can act as two users")
    path, target = tmp_path / "s", tmp_path / "target"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(target)) if "socket" in kind else target.touch()
        target.chmod(0o600)
        if kind == "another user's socket":
            os.chown(target, NOBODY, NOBODY)
        real = os.open

        def swapped(name, *arguments, **options):
            if name == path:
                path.unlink()
                if kind == "symlink":
                    path.symlink_to(target)
                elif kind == "another user's socket":
                    target.rename(path)
                else:
                    os.link(target, path)
            return real(name, *arguments, **options)

        # The place of names is opened first: only then is the file there to be replaced.
        monkeypatch.setattr(
            _address, "_bind_file", swapping(_address._bind_file, monkeypatch, swapped)
        )
        with pytest.raises(OSError, match="something else took the place") as caught:
            memenpsf.listen(path, 8, mode=0o666)
        assert caught.value.errno == errno.EADDRINUSE
        found = target if target.exists() else path
        assert stat.S_IMODE(found.lstat().st_mode) == 0o600


def swapping(function, monkeypatch, opened):
    def swapped(*arguments):
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", opened)
            previous = os.umask(0o077)  # so that the mode has to be set
            try:
                return function(*arguments)
            finally:
                os.umask(previous)

    return swapped


# -- uids that stand for many users -----------------------------------------------------------

IN_A_NAMESPACE = """
import ctypes, os
if ctypes.CDLL(None, use_errno=True).unshare(0x10000000):  # CLONE_NEWUSER
    print("no namespace", flush=True)
    raise SystemExit
"""


@pytest.fixture
def unmapped(program):
    """Run a program as the only process of a user namespace that maps nobody; return its lines."""

    def run(source, *arguments):
        output, _ = program(IN_A_NAMESPACE + source, *arguments).communicate(timeout=30)
        if output == "no namespace\n":
            pytest.skip("no user namespace may be made here")
        return output.splitlines()

    return run


def test_the_overflow_uid_is_nobody_in_particular_in_a_user_namespace(unmapped):
    source = "import fdpass; print(os.geteuid(), *map(fdpass.is_ambiguous_uid, (0, os.geteuid())))"
    assert unmapped(source) == [f"{NOBODY} False True"]


def test_without_a_uid_of_its_own_a_process_has_no_abstract_address(unmapped):
    lines = unmapped(
        """
import memenpsf, memenpsf.trio, trio
async def listen(): return await memenpsf.trio.listen("@memenpsf-test-unmapped", 8)
async def connect(): return await memenpsf.trio.connect("@memenpsf-test-unmapped", 8)
for call in (
    lambda: memenpsf.listen("@memenpsf-test-unmapped", 8),
    lambda: memenpsf.connect("@memenpsf-test-unmapped", 8),
    lambda: trio.run(listen),
    lambda: trio.run(connect),
):
    try:
        call()
    except PermissionError as error:
        print(error)
"""
    )
    assert len(lines) == 4
    assert all("stands for every user that this user namespace does not map" in x for x in lines)


@pytest.mark.parametrize("door", ["threads", "trio"])
def test_no_unmapped_user_is_admitted_as_this_one_whatever_allow_uids_says(program, door, tmp_path):
    name = f"@memenpsf-test-unmapped-{os.getpid()}"
    server = program(
        IN_A_NAMESPACE
        + """
import sys, memenpsf, memenpsf.trio, trio
name, door = sys.argv[1:]
options = {"allow_uids": {os.geteuid()}}
def refused(error): print(error, flush=True)
async def main():
    async with await memenpsf.trio.listen(name, 8, **options) as listener:
        print("ready", flush=True)
        try:
            await listener.accept()
        except memenpsf.CredentialsRefused as error:
            refused(error)
if door == "trio":
    trio.run(main)
else:
    with memenpsf.listen(name, 8, **options) as listener:
        print("ready", flush=True)
        try:
            listener.accept()
        except memenpsf.CredentialsRefused as error:
            refused(error)
""",
        name,
        door,
    )
    line = server.stdout.readline()
    if line == "no namespace\n":
        pytest.skip("no user namespace may be made here")
    assert line == "ready\n"
    with pytest.raises(memenpsf.CredentialsRefused, match="peer refused"):
        memenpsf.connect(name, 8, allow_uids={os.geteuid()})
    assert "says nothing about who the peer is" in server.stdout.readline()


def test_without_a_uid_of_its_own_a_process_has_no_directory_of_names(unmapped):
    lines = unmapped(
        """
import memenpsf
os.environ["MEMENPSF_RUNTIME_DIR"] = ""
for call in (memenpsf.listen, memenpsf.connect):
    try:
        call("prices", 8)
    except OSError as error:
        print(type(error).__name__, error)
"""
    )
    assert lines[0].startswith("PermissionError")
    assert lines[1].startswith(("PermissionError", "FileNotFoundError"))


def test_a_directory_is_nobodys_where_uids_say_nothing(monkeypatch):
    (directory,) = _places.places()
    os.close(_places.open_place(directory, make=True))
    monkeypatch.setattr(_places, "is_ambiguous_uid", lambda uid: True)
    with pytest.raises(PermissionError, match="stands for every user"):
        memenpsf.connect("prices", 8)
    with pytest.raises(PermissionError, match="stands for every user"):
        memenpsf.listen("prices", 8)


def test_without_a_uid_of_its_own_a_server_still_has_a_path(unmapped, public):
    public.chmod(0o777)
    lines = unmapped(
        """
import sys, memenpsf
with memenpsf.listen(sys.argv[1], 8, mode=0o666) as listener:
    try:
        memenpsf.listen(sys.argv[1], 8)
    except OSError as error:
        print(error.strerror)
""",
        public / "s",
    )
    assert lines == ["a live server listens there"]
