"""How a client finds a server, and what the error says if there is none.

Every client searches the places of this user for a bare name in the same order.  If it finds no
server, the error says where it searched, and which servers it found there: close matches first.
All of that stands in brackets before the path that OSError appends.  Strangers may have chosen the
names of files and abstract sockets.  So names are printed escaped, as repr() does, and their number
and length are limited.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import stat
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from ipcqueue import HandshakeTimeout
from ipcqueue.lowlevel import Wait, deadline_of, monotonic, seconds_of, shown_seconds

from ._address import STARTING, just_bound, named, no_directory
from ._places import RUNTIME, TEMPORARY, delays, open_place, places

if TYPE_CHECKING:
    from collections.abc import Generator

    from ipcqueue.lowlevel import Seconds

    from ._address import Address

_NO_SERVER = (errno.ENOENT, errno.ECONNREFUSED)

_LISTENS = 0x10000  # __SO_ACCEPTCON, in the flags of /proc/net/unix
_MAX_READ = 128 * 1024  # bytes of /proc/net/unix: about 2,000 sockets, which take about 7 ms
_MAX_FILES = 1000  # of a directory
_MAX_COMPARED = 100
_MAX_NAMED = 5
_LONGEST = 40  # characters of a name


class Found(NamedTuple):
    """A connected socket, where its server listens, and when its `timeout` is over."""

    sock: socket.socket
    address: Address
    deadline: float


def connecting(
    address: Address, timeout: Seconds, retry: Seconds = 0
) -> Generator[Wait, bool, Found]:
    """Connect to a server: a plan.

    While there is no server it tries again, until `retry` seconds have passed; then it raises
    OSError.  `timeout` begins when there is one.  HandshakeTimeout if its backlog stays full.  A
    socket file that refuses connections, but is younger than a quarter of a second, may belong to
    a starting server: it is tried again until it is older, even if `retry` is 0.
    """
    began = monotonic()
    patience = began + seconds_of(retry, "retry")
    patience_with_starting = max(patience, min(began + STARTING, deadline_of(timeout)))
    deadline: float | None = None  # while there is a server: `timeout` after it was found
    pauses = delays()
    with contextlib.ExitStack() as undo:
        sock = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        sock.setblocking(False)
        while True:
            search = _Search(address)
            connected = search.connect(sock)
            if connected or search.found:
                if deadline is None:
                    deadline = deadline_of(timeout)
                until = deadline
            else:
                until = patience_with_starting if search.may_be_starting else patience
                deadline = None
            if connected:
                undo.pop_all()
                return Found(sock, search.address, until)
            now = monotonic()
            if not search.found and (now >= until or search.forbidden):
                search.give_up(retry)
            if now >= until:
                raise HandshakeTimeout(
                    f"{search.address}: the server had no room within {shown_seconds(timeout)}: "
                    "it is there, but it accepts nobody now, or too slowly"
                )
            yield Wait(min(next(pauses), until - now))


def connect_once(address: Address, sock: socket.socket) -> bool:
    """Connect a non-blocking socket; return False if the server's backlog is full now.

    Raises an OSError that names the address, such as FileNotFoundError, ConnectionRefusedError.
    """
    try:
        named(address, sock.connect, address.sockaddr)
    except BlockingIOError:
        return False
    return True


class _Search:
    """One search of all places where a server may listen."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self.address = address  # where the server was found
        self._looked: list[tuple[Address, OSError]] = []
        self.found = False  # whether there is a server, but its backlog is full now
        self.may_be_starting = False

    def connect(self, sock: socket.socket) -> bool:
        for candidate in self._candidates():
            try:
                connected = connect_once(candidate, sock)
            except OSError as error:
                if error.errno not in _NO_SERVER:
                    raise
                self._looked.append((candidate, error))
                if error.errno == errno.ECONNREFUSED and candidate.path is not None:
                    with contextlib.suppress(OSError):
                        self.may_be_starting |= just_bound(candidate.path.stat())
            else:
                self.found = not connected
                self.address = candidate
                return connected
        return False

    def _candidates(self) -> list[Address]:
        if not self._address.is_name:
            return [self._address]
        usable = []
        for directory in places():
            candidate = self._address._replace(path=directory / self._address.given)
            try:
                os.close(open_place(directory, make=False))
            except (FileNotFoundError, PermissionError) as error:
                self._looked.append((candidate, error))
            else:
                usable.append(candidate)
        return usable

    @property
    def forbidden(self) -> bool:
        """Whether no place could be searched, because none may be used by this user."""
        return all(isinstance(error, PermissionError) for _, error in self._looked)

    def give_up(self, retry: Seconds) -> NoReturn:
        """Raise the most likely error, with everything that may help."""
        if self.forbidden:
            raise self._looked[0][1]
        refused = [each for each in self._looked if each[1].errno == errno.ECONNREFUSED]
        where, _ = (refused or self._looked)[0]
        number = errno.ECONNREFUSED if refused else errno.ENOENT
        raise OSError(number, f"{os.strerror(number)}: {self._report(retry)}", str(where)) from None

    def _report(self, retry: Seconds) -> str:
        lines = [f"tried for {shown_seconds(retry)}"] if retry else []
        if self._address.is_name:
            looked = [
                str(where) + (f" ({error.strerror})" if isinstance(error, PermissionError) else "")
                for where, error in self._looked
            ]
            lines.append("searched " + ", ".join(looked))
        with contextlib.suppress(OSError):
            lines += self._neighbours()
        # OSError appends the path: "no server listens there: '/the/path'".
        return "no server listens there" + (f" ({'; '.join(lines)})" if lines else "")

    def _neighbours(self) -> list[str]:
        """Say which servers listen in the same places."""
        if self._address.is_abstract:
            names = [path for path in _listening()[0] if path.startswith("@")]
            close = _closest(self._address.given, names, only_close=True)
            return [f"a server with a similar name: {_told(close)}"] if close else []
        usable = [where for where, error in self._looked if not isinstance(error, PermissionError)]
        wanted = usable[0].path
        assert wanted is not None  # noqa: S101 (for the type checker)
        if not self._address.is_name and not wanted.parent.is_dir():
            return [no_directory(self._address)]
        files = [file for where in usable if where.path for file in _sockets(where.path.parent)]
        # This takes time if there are many sockets, so do it only if it can tell something.
        listening, whole = _listening() if files or self._address.is_name else ([], True)
        known = set(listening)
        live = [file.name for file in files if str(file) in known]
        said = []
        where = "in this directory" if len(usable) == 1 else "in these directories"
        if live:
            said.append(f"servers {where}: {_told(_closest(wanted.name, live), len(live))}")
        elif whole:
            said.append(f"no other server listens {where}")
        elif files:
            names = [file.name for file in files]
            said.append(f"socket files {where}: {_told(_closest(wanted.name, names), len(names))}")
        if self._address.is_name:
            of_others = _owners_of(self._address.given, listening) - {os.geteuid()}
            if of_others:
                uids = ", ".join(map(str, sorted(of_others)[:_MAX_NAMED]))
                said.append(
                    f"uid {uids} has a server of this name, but names are for one user alone: "
                    "servers for others have a path"
                )
        return said


def _sockets(directory: Path) -> list[Path]:
    """Return the socket files among the first thousand entries of a directory."""
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        return [
            directory / entry.name
            for entry in islice(entries, _MAX_FILES)
            if not entry.is_file(follow_symlinks=False)  # this needs no system call
            and stat.S_ISSOCK(entry.stat(follow_symlinks=False).st_mode)
        ]
    return []


def _listening() -> tuple[list[str], bool]:
    """Return the paths and @names at which servers listen, and whether these are all.

    A process that binds a path with a line feed in it can add false ones.
    """
    with Path("/proc/net/unix").open("rb") as file:
        text = file.read(_MAX_READ)
    found = []
    for line in text.splitlines()[1:]:
        words = line.split(None, 7)
        with contextlib.suppress(ValueError):
            if len(words) == 8 and int(words[3], 16) & _LISTENS:  # noqa: PLR2004 (of columns)
                found.append(os.fsdecode(words[7]))
    return found, len(text) < _MAX_READ


def _closest(wanted: str, names: list[str], *, only_close: bool = False) -> list[str]:
    """Return some of the names, the most similar to the wanted one first."""
    import difflib  # noqa: PLC0415 (for errors only)

    def in_common(name: str) -> int:
        pairs = zip(name, wanted, strict=False)
        return -next((n for n, (a, b) in enumerate(pairs) if a != b), len(wanted))

    likely = sorted(sorted(set(names)), key=in_common)[:_MAX_COMPARED]
    close = difflib.get_close_matches(wanted, likely, _MAX_NAMED)
    if only_close:
        return close
    return (close + [each for each in likely if each not in close])[:_MAX_NAMED]


def _told(names: list[str], count: int = 0) -> str:
    shown = [repr(each if len(each) <= _LONGEST else each[:_LONGEST] + "…") for each in names]
    more = count - len(names)
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def _owners_of(name: str, listening: list[str]) -> set[int]:
    """Return the uids in whose places, judging by the path, a server listens under a name."""
    place = re.compile(
        rf"(?:{re.escape(str(RUNTIME))}/(\d{{1,10}})/memenpsf"
        rf"|{re.escape(str(TEMPORARY))}/memenpsf-(\d{{1,10}})(?:\.[0-9a-f]+)?)/{re.escape(name)}"
    )
    found = (place.fullmatch(path) for path in listening)
    return {int(match[1] or match[2]) for match in found if match}
