"""The directories of bare names: private, and determined by the effective uid alone.

They are `/run/user/UID/memenpsf`, if that runtime directory exists and belongs to this user, and
`/tmp/memenpsf-UID`.  A server makes those it can make, and binds its name in the first one; a
client searches all, in this order.  So a service without a login session and a client with one
find each other.  $XDG_RUNTIME_DIR does not matter: `sudo -E` keeps the environment but changes the
uid, and would otherwise put root's directory in the place of the user's.  $MEMENPSF_RUNTIME_DIR,
for tests and sandboxes, replaces both with `$MEMENPSF_RUNTIME_DIR/memenpsf`.

The directories belong to this user, and nobody else can enter them.  So each serves as a lock, too:
flock() needs an open descriptor, which nobody else can get.  Servers of one user start one at a
time: each holds all of these locks while it starts, wherever its socket file is.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ipcqueue.lowlevel import Wait, is_ambiguous_uid, monotonic, shown_seconds

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

T = TypeVar("T")

RUNTIME = Path("/run/user")
TEMPORARY = Path("/tmp")  # noqa: S108 (whatever is used in it is checked)

OVERRIDE = "MEMENPSF_RUNTIME_DIR"

_LOCK_PATIENCE = 1.0  # seconds for other servers to start; each needs about a millisecond


def delays() -> Iterator[float]:
    """Yield the seconds to wait before each further attempt."""
    delay = 0.001  # a guess: a live server accepts, or has started, within this time
    while True:
        yield delay
        delay = min(delay * 2, 0.1)


def places() -> list[Path]:
    """Return the directories of this user's bare names, in the order of preference."""
    override = os.environ.get(OVERRIDE)
    if override:
        return [Path(override).absolute() / "memenpsf"]
    uid = os.geteuid()
    usual = TEMPORARY / f"memenpsf-{uid}"
    return [RUNTIME / str(uid) / "memenpsf", usual, *_substitutes(usual)]


def _substitutes(usual: Path) -> list[Path]:
    """Return this user's other directories in /tmp, if somebody else has made the usual one.

    Anybody can do that, because the name is known.  The names of the substitutes are random, so
    that nobody can make them all.
    """
    try:
        if _fault(usual.lstat()) is None:
            return []
        found = sorted(TEMPORARY.glob(f"{usual.name}.*"))
    except OSError:  # the usual one is not there
        return []
    return [each for each in found if (status := _status(each)) and _fault(status) is None]


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except OSError:
        return None


def _fault(status: os.stat_result) -> str | None:
    """Return why something is not a private directory of this user; None if it is one."""
    uid = os.geteuid()
    if not stat.S_ISDIR(status.st_mode):
        return "it is not a directory of ours, but something else"
    if is_ambiguous_uid(uid):
        return _AMBIGUOUS
    if status.st_uid != uid or stat.S_IMODE(status.st_mode) & 0o077:
        return (
            f"it must belong to uid {uid} with mode 0700, and belongs to uid {status.st_uid} "
            f"with mode {stat.S_IMODE(status.st_mode):04o}"
        )
    return None


_AMBIGUOUS = (
    "the uid of this process stands for every user that this user namespace does not map, so it "
    "does not prove whose a file is"
)


def open_place(directory: Path, *, make: bool) -> int:
    """Open one of the directories and return the descriptor; with `make`, make it first.

    Raises FileNotFoundError if it does not exist, PermissionError if it is not this user's (EPERM),
    would have to be made in a directory of another user (EPERM), or may not be opened (EACCES).
    """
    if make:
        with contextlib.suppress(FileExistsError):
            _make(directory)
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP, errno.EACCES):
            raise
        status = _status(directory)
        fault = status and _fault(status)
        if fault is None and error.errno == errno.EACCES:
            raise  # it is ours as far as we know: nobody else is to blame
        why = fault or "it is not a directory of ours"
        raise PermissionError(errno.EPERM, why, str(directory)) from None
    try:
        if (fault := _fault(os.fstat(fd))) is not None:
            raise PermissionError(errno.EPERM, fault, str(directory))
    except BaseException:
        os.close(fd)
        raise
    return fd


def _make(directory: Path) -> None:
    """Make one of the directories, but never in the runtime directory of another user."""
    uid = os.geteuid()
    if is_ambiguous_uid(uid):
        raise PermissionError(errno.EPERM, _AMBIGUOUS, str(directory))
    if directory.parent != TEMPORARY:
        owner = directory.parent.stat().st_uid
        if owner != uid:
            why = f"its parent belongs to uid {owner}, and this process runs under uid {uid}"
            raise PermissionError(errno.EPERM, why, str(directory))
    directory.mkdir(mode=0o700)


def lock_places(
    held: contextlib.ExitStack,
) -> Generator[Wait, bool, tuple[list[Path], list[OSError]]]:
    """Lock all of this user's places: a plan.

    Returns the places, locked until `held` is closed, and the errors of the unusable ones.  Raises
    TimeoutError if another process holds a lock for more than a second.
    """
    locked: list[Path] = []
    faults: list[OSError] = []
    candidates = places()
    for directory in candidates:
        try:
            yield from _lock(directory, held)
        except TimeoutError:
            raise
        except OSError as error:
            faults.append(error)
        else:
            locked.append(directory)
    if not locked and candidates[-1].parent == TEMPORARY:
        # Somebody else has made our directory in /tmp first.
        substitute = TEMPORARY / f"memenpsf-{os.geteuid()}.{secrets.token_hex(4)}"
        try:
            yield from _lock(substitute, held)
        except OSError as error:
            faults.append(error)
        else:
            locked.append(substitute)
    return locked, faults


def _lock(directory: Path, held: contextlib.ExitStack) -> Generator[Wait, bool, None]:
    deadline = monotonic() + _LOCK_PATIENCE
    pauses = delays()
    while True:
        with contextlib.ExitStack() as ours:
            fd = open_place(directory, make=True)
            ours.callback(os.close, fd)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if monotonic() >= deadline:
                    raise TimeoutError(
                        errno.ETIMEDOUT,
                        f"{_holder(fd)} of this user holds the lock under which its servers "
                        f"start, and has not released it within {shown_seconds(_LOCK_PATIENCE)}",
                        str(directory),
                    ) from None
            else:
                # Closing is not enough: a child forked meanwhile holds the lock, too.
                ours.callback(fcntl.flock, fd, fcntl.LOCK_UN)
                status = _status(directory)
                if status is not None and os.path.samestat(status, os.fstat(fd)):
                    held.enter_context(ours.pop_all())
                    return
                # The directory was removed, and perhaps made again, between open() and flock().
        yield Wait(min(next(pauses), 0.01))


def _holder(fd: int) -> str:
    """Name the process that holds the lock of a directory, if the kernel tells."""
    status = os.fstat(fd)
    file = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    with contextlib.suppress(OSError):
        for line in Path("/proc/locks").read_text().splitlines():
            words = line.split()
            if words[1:2] == ["FLOCK"] and file in words:
                return f"process {words[4]}"
    return "another process"
