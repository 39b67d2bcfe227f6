"""Where a server listens: names, paths and abstract addresses.

A bare name lives in a private directory of this user; a path (anything with a slash) is a path;
`@name` is an abstract address, which has no file and no permissions: anybody may take it first,
so both sides check whose process they are talking to.

A server binds a temporary name, listens, and renames it into place: what can be seen can be
connected to.  A file that nobody listens on is therefore stale, and is replaced.  Two servers
that start at once are kept apart by a lock on the directory, held only while they start.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import time
from typing import TYPE_CHECKING, NamedTuple

from ipcqueue import drop_socket, monotonic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_MAX_PATH = 107  # bytes; sun_path in unix(7) has 108, with the terminating zero
_LOCK_PATIENCE = 1.0  # seconds for another server to start; it needs milliseconds
BACKLOG = 128


class Address(NamedTuple):
    """A resolved address; `path` is None for an abstract one."""

    given: str
    path: Path | None

    def __str__(self) -> str:
        return self.given if self.path is None else str(self.path)

    @property
    def sockaddr(self) -> str:
        """What bind() and connect() take."""
        return "\0" + self.given[1:] if self.path is None else str(self.path)

    @property
    def default_uids(self) -> set[int] | None:
        """Whom to admit when nothing else is said: permissions of the file, where there is one."""
        return {os.geteuid(), 0} if self.path is None else None


def resolve(address: str | os.PathLike[str]) -> Address:
    """Say where an address is; raise ValueError or TypeError for what is none."""
    from pathlib import Path  # noqa: PLC0415 (slow to import; a connected socket needs none)

    given = os.fspath(address)
    if not isinstance(given, str):
        raise TypeError(f"an address is a str or a path, not {address!r}")
    if "\0" in given or given in {"", "@", ".", ".."}:
        raise ValueError(f"an address is a name, a path, or @name, not {given!r}")
    if given.startswith("@"):
        result = Address(given, None)
    elif "/" in given or not isinstance(address, str):
        result = Address(given, Path(given).absolute())
    else:
        result = Address(given, private_directory() / given)
    if len(os.fsencode(result.sockaddr)) > _MAX_PATH:
        raise ValueError(
            f"the address {result.path or given} is longer than the {_MAX_PATH} bytes "
            "that a Unix socket address can have"
        )
    return result


def private_directory() -> Path:
    """Return the directory of bare names: made if need be, this user's, closed to all others.

    $XDG_RUNTIME_DIR/memenpsf, or /run/user/UID/memenpsf, or /tmp/memenpsf-UID.  Raises
    PermissionError if somebody else has put something in its place.
    """
    from pathlib import Path  # noqa: PLC0415 (as above)

    uid = os.geteuid()
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{uid}"
    base = Path(runtime)
    directory = base / "memenpsf" if base.is_dir() else Path(f"/tmp/memenpsf-{uid}")  # noqa: S108 (checked below)
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o700)
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise PermissionError(error.errno, f"not a directory of ours: {directory}") from error
    try:
        status = os.fstat(fd)
    finally:
        os.close(fd)
    if status.st_uid != uid or stat.S_IMODE(status.st_mode) & 0o077:
        raise PermissionError(
            errno.EPERM,
            f"{directory} must belong to uid {uid} with mode 0700, and belongs to "
            f"uid {status.st_uid} with mode {stat.S_IMODE(status.st_mode):04o}",
        )
    return directory


class Bound:
    """A listening socket, and the file that stands for it; owns both."""

    def __init__(
        self, address: Address, sock: socket.socket, inode: tuple[int, int] | None
    ) -> None:
        self.address = address
        self.sock = sock
        self.inode = inode
        self.closed = False
        self.owner = os.getpid()

    @property
    def ours(self) -> bool:
        """Whether this process made it, rather than the one it was forked from."""
        return self.owner == os.getpid()

    def close(self) -> None:
        """Close the socket, and remove the file unless another server has replaced it."""
        closed, self.closed = self.closed, True
        path = self.address.path
        if path is not None and not closed and self.ours:
            with contextlib.suppress(OSError), _locked(path.parent):
                if _inode(path) == self.inode:
                    path.unlink()
        if self.ours:
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)  # first, so that nobody comes any more
                while True:
                    drop_socket(self.sock.accept()[0])
        with contextlib.suppress(OSError):
            self.sock.close()


def bind(address: Address) -> Bound:
    """Listen at an address, without waiting; raise OSError, EADDRINUSE if a live server is there."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if address.path is None:
            _named(address, sock.bind, address.sockaddr)
            sock.listen(BACKLOG)
            return Bound(address, sock, None)
        with _locked(address.path.parent) as directory:
            _refuse_to_replace(address)
            return Bound(address, sock, _bind_file(address.path, sock, directory))
    except BaseException:
        sock.close()
        raise


def _bind_file(path: Path, sock: socket.socket, directory: int) -> tuple[int, int]:
    # One name for all servers of a user, so that the next one finds what one that was killed left.
    temporary = path.with_name(f".memenpsf-{os.geteuid():x}")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()  # of a dead process: we hold the lock
    name = str(temporary)
    if len(os.fsencode(name)) > _MAX_PATH:  # though the real one is short enough
        name = f"/proc/self/fd/{directory}/{temporary.name}"
    sock.bind(name)
    try:
        sock.listen(BACKLOG)
        inode = _inode(temporary)
        temporary.rename(path)
    except BaseException:
        temporary.unlink()
        raise
    return inode


def _refuse_to_replace(address: Address) -> None:
    """Raise unless the path is free, or holds a socket on which nobody listens."""
    path = address.path
    assert path is not None  # noqa: S101 (for the type checker)
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise FileExistsError(errno.EEXIST, "not a socket, so not replaced", str(path))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return
        except BlockingIOError:
            pass  # its backlog is full, so somebody listens
    raise OSError(errno.EADDRINUSE, "a live server listens there", str(path))


def connect_once(address: Address, sock: socket.socket) -> bool:
    """Connect a non-blocking socket; False if the server has no room for it just now.

    Raises OSError that names the address, such as FileNotFoundError, ConnectionRefusedError.
    """
    try:
        _named(address, sock.connect, address.sockaddr)
    except BlockingIOError:
        return False
    return True


def connect_delays() -> Iterator[float]:
    """Yield how long to wait, in seconds, before each further attempt to connect."""
    delay = 0.001  # a guess: a server that is alive accepts within this time
    while True:
        yield delay
        delay = min(delay * 2, 0.1)


def _named(address: Address, call: Callable[[str], object], sockaddr: str) -> None:
    """Call bind or connect, and name the address in what it raises."""
    try:
        call(sockaddr)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(address)) from error


def _inode(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_dev, status.st_ino


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[int]:
    """Hold the lock under which servers in this directory start and stop; give a descriptor."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = monotonic() + _LOCK_PATIENCE
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if monotonic() >= deadline:
                    raise TimeoutError(
                        errno.ETIMEDOUT, "another process holds the lock", str(directory)
                    ) from None
                time.sleep(0.001)
        yield fd
    finally:
        os.close(fd)
