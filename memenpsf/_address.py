"""Where a server listens: names, paths and abstract addresses.

A bare name is a file in a private directory of this user (see _places).  Anything with a slash is a
path.  `@name` is an abstract address, which has no file and no permissions: anybody may bind it
first, so both sides check the uid of their peer.

A server binds the path itself, and then listens.  It does not bind a temporary name and rename it
later: the kernel would know only the first name, and systemd-tmpfiles, which asks the kernel
whether a socket file is in use, would remove the file.  So between bind() and listen() there is a
file that refuses connections, like that of a dead server.  Nobody mistakes it for one:

- Another server of this user does not, because servers start under a lock of their user (_places).
- Servers of other users and clients do not: a file made within the last quarter of a second may
  belong to a starting server, so they look again until it is older.  Once it listens, the server
  checks that the path still leads to its own file.
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

# Seconds that a server may take from bind() to listen(); usually it takes about 0.1 ms.
STARTING = 0.25

_MAX_ID = 0xFFFFFFFE  # of a group; 0xFFFFFFFF means "do not change it" to chown()


class Address(NamedTuple):
    """An address; `path` is None for an abstract one, and for a bare name without a place yet."""

    given: str
    path: Path | None
    is_abstract: bool = False

    def __str__(self) -> str:
        return self.given if self.path is None else str(self.path)

    @property
    def sockaddr(self) -> str:
        """The argument of bind() and connect()."""
        return "\0" + self.given[1:] if self.is_abstract else str(self.path)

    @property
    def is_name(self) -> bool:
        """Whether it is a bare name, whose file may be in any of this user's places."""
        return self.path is None and not self.is_abstract

    @property
    def default_uids(self) -> set[int] | None:
        """The default of allow_uids: this user and root; None if a file's permissions decide.

        Raises PermissionError if this user cannot be told from others.
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
    """Parse an address; raise ValueError or TypeError for anything else."""
    given = os.fspath(address) if hasattr(address, "__fspath__") else address
    if not isinstance(given, str):
        hint = "; of a descriptor, socket.socket(fileno=...)" if hasattr(given, "__index__") else ""
        raise TypeError(f"an address is a str or a path, not {address!r}{hint}")
    if "\0" in given or given in {"", "@", ".", ".."}:
        raise ValueError(f"an address is a name, a path, or @name, not {given!r}")
    scheme, is_url, _ = given.partition("://")
    if is_url and scheme.isalnum() and isinstance(address, str):
        raise ValueError(
            f"an address is a name, a path, or @name, all on this machine, not a URL: {given!r} "
            "(./ before it makes it a path)"
        )
    try:
        os.fsencode(given)
    except UnicodeEncodeError:
        raise ValueError(f"an address is text that a file name can have, not {given!r}") from None
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
    """Who may connect to a socket file: its mode and group (None: the system's default)."""

    mode: int
    group: int | None


def checked_permissions(
    address: Address, mode: int | None, group: int | str | None
) -> Permissions | None:
    """Return the permissions of a server's socket file; None for an abstract address.

    Raises TypeError or ValueError, also for an unknown group.
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
    except ValueError:  # say it in octal, as modes are written
        given = operator.index(mode)
        raise ValueError(
            f"mode is from 0 to 0o777, such as 0o660, not {given:#o} ({given})"
        ) from None
    if isinstance(group, str):
        import grp  # noqa: PLC0415 (few need it)

        try:
            group = grp.getgrnam(group).gr_gid
        except (KeyError, ValueError):  # ValueError: no name can be encoded so
            raise ValueError(f"there is no group called {group!r}") from None
    elif group is not None:
        try:
            group = checked_number("group", group, _MAX_ID)
        except TypeError:
            raise TypeError(f"group is a name, a number or None, not {group!r}") from None
    return Permissions(mode, group)


class Bound(Owner):
    """A listening socket and its file; it owns both."""

    def __init__(
        self, address: Address, sock: socket.socket, inode: tuple[int, int] | None
    ) -> None:
        self.address = address
        self.sock = sock
        self.inode = inode
        self._files = [inode]  # the thread that pops it removes the file
        self.owner = os.getpid()

    @property
    def ours(self) -> bool:
        """Whether this process made it, and not the process that this one was forked from."""
        return self.owner == os.getpid()

    @property
    def lost(self) -> bool:
        """Whether the path no longer leads here: the file was removed or replaced."""
        path = self.address.path
        if path is None:
            return False
        try:
            return _inode(path.lstat()) != self.inode
        except OSError:
            return True

    @property
    def is_shut_down(self) -> bool:
        """Whether another process has ended the socket for all: none has one that is bound here."""
        return False

    def interests(self, events: int) -> list[tuple[int, int]]:
        """Return the descriptors to poll for clients, with the events of each."""
        return [(self.sock.fileno(), events)]

    def interrupt(self) -> None:
        """Wake the threads that wait for a client; for good, as no new client comes either."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def remove_file(self) -> None:
        """Remove the file unless it is another server's by now; a second call does nothing.

        Call it while the socket still listens.  Then no other server replaces the file, so no lock
        is needed between the check and the removal.  The socket still has its inode then, too, so
        no other file can have the same inode number.
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
                self.sock.shutdown(socket.SHUT_RDWR)  # first, so that no new client comes
                while True:
                    drop_socket(self.sock.accept()[0])
        with contextlib.suppress(OSError):
            self.sock.close()


def starting(
    address: Address, permissions: Permissions | None = None
) -> Generator[Wait, bool, Bound]:
    """Listen at an address: a plan.

    Raises OSError: EADDRINUSE if a live server is there, FileExistsError for a file of another
    kind.
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
    with contextlib.suppress(OSError):  # not every kernel can; _permit() checks the mode below
        os.fchmod(sock.fileno(), wanted.mode)  # bind() makes the file with it, less the umask
    try:
        named(address, sock.bind, str(path))
    except FileNotFoundError as error:
        there = path.parent.is_dir()  # as /proc is
        why = "no file can be made in this directory" if there else no_directory(address)
        raise FileNotFoundError(errno.ENOENT, f"{error.strerror}: {why}", str(path)) from None
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
    """Set group and mode of a socket file, before anybody can connect to it.

    It uses the file's descriptor, not the path: in a directory that others can write, the path may
    lead to another file at any time.
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
    os.chmod(itself, wanted.mode)  # noqa: PTH101 (a name of the kernel's, not a path)


def _clear(
    path: Path, held: contextlib.ExitStack, *, under_lock: bool
) -> Generator[Wait, bool, None]:
    """Remove a dead server's file, so that the path is free; raise OSError if that is refused.

    `held` keeps the inode of the old file until the new one exists.  So the new file has another
    inode number, and a program that watches the path sees that it is new.
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
    """Whether a socket file is so new that its server may be about to listen."""
    # Files have the times of the real-time clock, which may be set: so trust it only briefly.
    return abs(time.clock_gettime(time.CLOCK_REALTIME) - status.st_ctime) < STARTING


def _refuse_if_live(path: Path) -> None:
    """Raise EADDRINUSE if a server listens there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return
        except BlockingIOError:
            pass  # its backlog is full, so a server listens
        except OSError as error:  # for instance: no permission, or a socket of another kind
            raise OSError(
                error.errno,
                f"{os.strerror(error.errno or 0)}: whether a server listens there cannot be told, "
                "so its file is not replaced",
                str(path),
            ) from None
    raise OSError(errno.EADDRINUSE, "a live server listens there", str(path))


def named(address: Address, call: Callable[[str], object], sockaddr: str) -> None:
    """Call bind() or connect(); name the address in the OSError that it raises."""
    try:
        call(sockaddr)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(address)) from error


def no_directory(address: Address) -> str:
    """Say that a path leads into a directory that is not there."""
    relative = not Path(address.given).is_absolute()
    return "there is no such directory" + ("; what has a slash is a path" if relative else "")


def _inode(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
