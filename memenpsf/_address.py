"""Where a server listens: names, paths and abstract addresses.

A bare name lives in a private directory of this user (see _places); a path (anything with a slash)
is a path; `@name` is an abstract address, which has no file and no permissions: anybody may take it
first, so both sides check whose process they are talking to.

A server binds the path itself, and then listens.  Not a temporary name that is renamed once it
listens: the kernel would know the first name only, and systemd-tmpfiles, which asks the kernel
whether a socket file is in use, removes such files.  So between bind() and listen() there is a
file that refuses connections, like a dead server's.  It is not taken for one:

- by another server of this user, because servers start under a lock of this user's (see _places);
- by servers of other users, and clients: a file made within the last quarter of a second may be of
  a server that is just starting; they look again until it is older.  The server checks, once it
  listens, that the path still leads to its own file.
"""

from __future__ import annotations

import contextlib
import errno
import operator
import os
import socket
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ipcqueue.lowlevel import (
    Owner,
    Wait,
    checked_number,
    drop_socket,
    is_ambiguous_uid,
    monotonic,
)

from ._places import delays, lock_places, places

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

_MAX_PATH = 107  # bytes; sun_path in unix(7) has 108, with the terminating zero
BACKLOG = 128

# How long, in seconds, a server may take from bind() to listen(); it takes about 0.1 ms.
STARTING = 0.25

_MAX_ID = 0xFFFFFFFE  # of a group; the next one means "leave it"


class Address(NamedTuple):
    """An address; `path` is None for an abstract one, and for a bare name not yet looked for."""

    given: str
    path: Path | None
    is_abstract: bool = False

    def __str__(self) -> str:
        return self.given if self.path is None else str(self.path)

    @property
    def sockaddr(self) -> str:
        """What bind() and connect() take."""
        return "\0" + self.given[1:] if self.is_abstract else str(self.path)

    @property
    def is_name(self) -> bool:
        """Whether it is a bare name, which may live in any of this user's places."""
        return self.path is None and not self.is_abstract

    @property
    def default_uids(self) -> set[int] | None:
        """Whom to admit when nothing else is said: permissions of the file, where there is one.

        Raises PermissionError where this user cannot be told from others.
        """
        if not self.is_abstract:
            return None
        uid = os.geteuid()
        if is_ambiguous_uid(uid):
            raise PermissionError(
                errno.EPERM,
                f"an abstract address admits this user only, and uid {uid} stands for every user "
                "that this user namespace does not map: map this one, use a path, or say "
                "allow_uids",
                str(self),
            )
        return {uid, 0}


def resolve(address: str | os.PathLike[str]) -> Address:
    """Say what an address means; raise ValueError or TypeError for what is none."""
    given = os.fspath(address)
    if not isinstance(given, str):
        raise TypeError(f"an address is a str or a path, not {address!r}")
    if "\0" in given or given in {"", "@", ".", ".."}:
        raise ValueError(f"an address is a name, a path, or @name, not {given!r}")
    if given.startswith("@") and isinstance(address, str):
        result = Address(given, None, is_abstract=True)
        longest = result.sockaddr
    elif "/" in given or not isinstance(address, str):
        result = Address(given, Path(given).absolute())
        longest = result.sockaddr
    else:
        result = Address(given, None)
        longest = max((str(each / given) for each in places()), key=len)
    if len(os.fsencode(longest)) > _MAX_PATH:
        raise ValueError(
            f"the address {longest if not result.is_abstract else given} is longer than the "
            f"{_MAX_PATH} bytes that a Unix socket address can have"
        )
    return result


class Permissions(NamedTuple):
    """Who may connect to a socket file: its mode, and its group (None: as the system gives it)."""

    mode: int
    group: int | None


def checked_permissions(
    address: Address, mode: int | None, group: int | str | None
) -> Permissions | None:
    """Return the permissions of a server's socket file; None for an abstract address.

    Raises TypeError or ValueError, also for a group that the system does not know.
    """
    if address.is_abstract:
        if mode is not None or group is not None:
            raise ValueError(
                f"{address} is an abstract address, which has no file: mode and group mean "
                "nothing there; say allow_uids"
            )
        return None
    if mode is None:
        mode = 0o600 if group is None else 0o660
    try:
        mode = checked_number("mode", mode, 0o777)
    except ValueError:  # in the notation in which modes are written
        given = operator.index(mode)
        raise ValueError(
            f"mode is from 0 to 0o777, such as 0o660, not {given:#o} ({given})"
        ) from None
    if isinstance(group, str):
        import grp  # noqa: PLC0415 (few need it)

        try:
            group = grp.getgrnam(group).gr_gid
        except KeyError:
            raise ValueError(f"there is no group called {group!r}") from None
    elif group is not None:
        group = checked_number("group", group, _MAX_ID)
    return Permissions(mode, group)


class Bound(Owner):
    """A listening socket, and the file that stands for it; owns both."""

    def __init__(
        self, address: Address, sock: socket.socket, inode: tuple[int, int] | None
    ) -> None:
        self.address = address
        self.sock = sock
        self.inode = inode
        self._files = [inode]  # taken out by the one thread that removes the file
        self.owner = os.getpid()

    @property
    def ours(self) -> bool:
        """Whether this process made it, rather than the one it was forked from."""
        return self.owner == os.getpid()

    @property
    def lost(self) -> bool:
        """Whether the path does not lead here any more: the file was removed, or replaced."""
        path = self.address.path
        if path is None:
            return False
        try:
            return _inode(path.lstat()) != self.inode
        except OSError:
            return True

    def remove_file(self) -> None:
        """Remove the file, unless it is another server's by now; idempotent.

        To be called while the socket still listens.  No other server replaces the file then, so
        no lock is needed between the look and the removal; and the number of the inode belongs to
        this socket, so another file cannot have the same.
        """
        if not self.ours or self.address.path is None:
            return
        with contextlib.suppress(OSError, IndexError):
            if self._files.pop() == _inode(self.address.path.lstat()):
                self.address.path.unlink()

    def close(self) -> None:
        """Close the socket, and remove the file unless another server has replaced it."""
        self.remove_file()
        if self.ours:
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)  # first, so that nobody comes any more
                while True:
                    drop_socket(self.sock.accept()[0])
        with contextlib.suppress(OSError):
            self.sock.close()


def starting(
    address: Address, permissions: Permissions | None = None
) -> Generator[Wait, bool, Bound]:
    """Listen at an address: a plan.

    Raises OSError: EADDRINUSE if a live server is there, FileExistsError for what is no socket.
    """
    with contextlib.ExitStack() as undo:
        sock = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        sock.setblocking(False)
        if address.is_abstract:
            named(address, sock.bind, address.sockaddr)
            sock.listen(BACKLOG)
            undo.pop_all()
            return Bound(address, sock, None)
        with contextlib.ExitStack() as held:
            locked, faults = yield from lock_places(held)
            if address.is_name:
                if not locked:
                    raise faults[-1]
                for elsewhere in locked[1:]:
                    _refuse_if_live(elsewhere / address.given)
                address = address._replace(path=locked[0] / address.given)
            assert address.path is not None  # noqa: S101 (for the type checker)
            yield from _clear(address.path, held, under_lock=bool(locked))
            inode = _bind_file(address, sock, permissions or Permissions(0o600, None))
        undo.pop_all()
        return Bound(address, sock, inode)


def _bind_file(address: Address, sock: socket.socket, wanted: Permissions) -> tuple[int, int]:
    path = address.path
    assert path is not None  # noqa: S101 (for the type checker)
    with contextlib.suppress(OSError):  # not every kernel; the mode is looked at below
        os.fchmod(sock.fileno(), wanted.mode)  # of the file that bind() makes, less the umask
    named(address, sock.bind, str(path))
    # From here to listen() nobody can connect, whatever the mode.
    inode = None
    try:
        file = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            inode = _inode(os.fstat(file))
            _permit(address, file, wanted)
        finally:
            os.close(file)
        sock.listen(BACKLOG)
        if _inode(path.lstat()) != inode:
            raise OSError(
                errno.EADDRINUSE, "another server took the address as this one started", str(path)
            )
    except BaseException:
        with contextlib.suppress(OSError):
            status = path.lstat()
            if inode in (None, _inode(status)) and _is_our_socket(status):
                path.unlink()
        raise
    return inode


def _is_our_socket(status: os.stat_result) -> bool:
    return stat.S_ISSOCK(status.st_mode) and status.st_nlink == 1 and status.st_uid == os.geteuid()


def _permit(address: Address, file: int, wanted: Permissions) -> None:
    """Give a socket file that nobody can connect to yet its group and mode.

    By its descriptor: in a directory of others, what the path leads to may change at any time.
    """
    status = os.fstat(file)
    group = status.st_gid if wanted.group is None else wanted.group
    if group == status.st_gid and stat.S_IMODE(status.st_mode) == wanted.mode:
        return
    if not _is_our_socket(status):
        raise OSError(
            errno.EADDRINUSE,
            "something else took the place of the socket file as the server started",
            str(address),
        )
    itself = f"/proc/self/fd/{file}"
    if group != status.st_gid:
        try:
            os.chown(itself, -1, group)
        except PermissionError as error:
            raise PermissionError(
                error.errno,
                f"the socket file cannot be given to group {group}: this process is not in "
                "that group",
                str(address),
            ) from None
    os.chmod(itself, wanted.mode)  # noqa: PTH101 (no file of that name)


def _clear(
    path: Path, held: contextlib.ExitStack, *, under_lock: bool
) -> Generator[Wait, bool, None]:
    """Remove a dead server's file, so that the path is free; raise OSError if it cannot be.

    `held` keeps its inode until the next one is made, which so has another number: a program that
    watches the path sees that the file is a new one.
    """
    pauses = delays()
    deadline = monotonic() + 2 * STARTING
    while True:
        try:
            file = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        held.callback(os.close, file)
        status = os.fstat(file)
        if not stat.S_ISSOCK(status.st_mode):
            raise FileExistsError(errno.EEXIST, "not a socket, so not replaced", str(path))
        _refuse_if_live(path)
        uid = os.geteuid()
        ours = under_lock and status.st_uid == uid and not is_ambiguous_uid(uid)
        if ours or not just_bound(status):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            return
        if monotonic() >= deadline:
            raise OSError(
                errno.EADDRINUSE, "somebody makes socket files there all the time", str(path)
            )
        yield Wait(min(next(pauses), 0.05))


def just_bound(status: os.stat_result) -> bool:
    """Whether a socket file was made so recently that its server may be just about to listen."""
    # The clock of the file's times: one that may be set, so it is believed for a moment only.
    return abs(time.clock_gettime(time.CLOCK_REALTIME) - status.st_ctime) < STARTING


def _refuse_if_live(path: Path) -> None:
    """Raise EADDRINUSE if somebody listens there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return
        except BlockingIOError:
            pass  # its backlog is full, so somebody listens
        except OSError as error:  # no permission; a socket of another kind
            raise OSError(
                error.errno,
                f"{os.strerror(error.errno or 0)}: whether a server listens there cannot be told, "
                "so its file is not replaced",
                str(path),
            ) from None
    raise OSError(errno.EADDRINUSE, "a live server listens there", str(path))


def named(address: Address, call: Callable[[str], object], sockaddr: str) -> None:
    """Call bind or connect, and name the address in what it raises."""
    try:
        call(sockaddr)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(address)) from error


def _inode(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
