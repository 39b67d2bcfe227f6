"""Memory to fill and to hand over without copying it.

The mode says who may write, and the seals hold everybody to it, the giver included:

    mode      the giver writes       receivers   seals                            descriptors
    frozen    until it is given      only read   SHRINK GROW WRITE SEAL           memory
    lent      at any time            only read   SHRINK GROW FUTURE_WRITE SEAL    memory, token
    shared    at any time            write too   SHRINK GROW SEAL                 memory

Frozen memory can never be written again, so what is to be used again is lent: by a
MemoryRegistry, which learns from the token when everybody has let go (_registry.py).

Views outlive what they came from: a NumPy array made of `.buffer` is valid after close(). So the
memory is unmapped, and a token closed, when the last view is gone and never under it. What a
region can revoke is the view that `.buffer` gave; what was derived from it, it can only count.

The file is long because the three modes are one class: they differ in seals, not in what is done.
"""

import contextlib
import errno
import fcntl
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal, Self, TypeAlias

from ._closing import Closing
from ._errors import ClosedRegion, RegionInUse, SharedRefused, WrongDescriptors, WrongType
from ._fd import Fd
from ._forks import forks
from ._mappings import Mappings
from ._memfd import Mapped, Memfd, Seal
from ._numbers import index_of
from ._untrusted import close_untrusted

if TYPE_CHECKING:
    import ctypes

Mode: TypeAlias = Literal["frozen", "lent", "shared"]
"""Who may write a memory region; see MemoryRegion."""

Exporter: TypeAlias = "Mapped | ctypes.Array[ctypes.c_ubyte]"
"""What all views of a region keep alive, and nothing else does once the region is closed."""

_SIZE_SEALS = Seal.SHRINK | Seal.GROW | Seal.SEAL
_WRITE, _FUTURE_WRITE = int(Seal.WRITE), int(Seal.FUTURE_WRITE)  # much faster than the flags
SEALS: Final[Mapping[Mode, Seal]] = MappingProxyType(
    {
        "frozen": _SIZE_SEALS | Seal.WRITE,
        "lent": _SIZE_SEALS | Seal.FUTURE_WRITE,
        "shared": _SIZE_SEALS,
    }
)


class MemoryRegion(Closing):
    """Anonymous memory: create() makes it, descriptors() gives it, adopt() takes what was given.

    `frozen`: nobody writes once it is given. `shared`: giver and receivers write. `lent` comes
    from MemoryRegistry.alloc(): its giver may write at any time, and will write something else
    once everybody has closed it; receivers read. So a receiver that must not see bytes change
    between checking and using them copies first, unless the mode is `frozen`.

    Closed by close(), or at the end of a with block; one that is forgotten is closed when it is
    collected, with a ResourceWarning. A forked child is one more holder of it. It costs a
    descriptor (`lent` two) until it is closed, and before Python 3.13 one more until the last
    view is gone. Any thread may use it.
    """

    _instead = (
        "give its descriptors() to whoever is to have it, with fdpass.send_fds() or as an attachment "
        "of a message, or copy its bytes with bytes(region.buffer)"
    )
    _loan: int | None = None

    def __init__(
        self,
        memfd: Memfd,
        mode: Mode,
        *,
        writable: bool,
        token: "Token | None" = None,
        mappings: Mappings | None = None,
    ) -> None:
        """Take the descriptors; for create(), adopt() and the registry."""
        self._memfd = memfd
        self._mode = mode
        self._writable = writable
        self._token = token
        self._mappings = mappings
        self._exporter: Exporter | None = None
        self._view: memoryview | None = None
        self._lock, self._forks = threading.Lock(), forks()
        self._closed = False

    def _fresh_lock(self) -> threading.Lock:
        """Return the lock; in a forked child a new one, as nobody there may hold the other."""
        if self._forks != forks():
            self._lock, self._forks = threading.Lock(), forks()
        return self._lock

    @classmethod
    def create(
        cls, size: int, *, mode: Literal["frozen", "shared"] = "frozen", name: str = "region"
    ) -> Self:
        """Make `size` bytes of zeros, all reserved, to fill through `.buffer`; the caller closes it.

        `name` (at most 249 bytes) is only for people reading /proc.

        Raises ValueError (size below 1, mode), OSError when memory is short; see Memfd.create().
        """
        if mode not in ("frozen", "shared"):
            raise ValueError(f"expected the mode 'frozen' or 'shared', received {mode!r}")
        memfd = Memfd.create(name, size)
        try:
            if mode == "shared":
                memfd.seal(SEALS[mode])
            return cls(memfd, mode, writable=True)
        except BaseException:
            memfd.close()
            raise

    @classmethod
    def adopt(
        cls,
        fds: Iterable[int | Fd],
        *,
        max_size: int,
        accept_shared: bool = False,
        mappings: Mappings | None = None,
    ) -> Self:
        """Take the descriptors of one region, as descriptors() gave them; close what is refused.

        Its seals say which mode it has. Nothing is mapped before `.buffer` is used. From
        `mappings` comes the mapping of a `lent` region if it was here before, and goes back there
        when it is closed.

        Raises SharedRefused for mode `shared` unless accepted, and what Memfd.adopt() raises
        (WrongType, WrongSeals, WrongSize, NotReserved), all MemfdRefused; WrongDescriptors (one
        of them; two for mode `lent`); ClosedFd.
        """
        owned = [_own(fd) for fd in fds]
        try:
            if not owned:
                raise WrongDescriptors(1, 0)
            # Its pages are kept when it is mapped: not each time that a region comes again whose
            # mapping is still here.
            memfd = Memfd.adopt(owned[0], max_size=max_size, seals=_SIZE_SEALS, keep_pages=False)
            owned[0] = memfd
            mode = _mode_of(memfd.seals)
            wanted = 2 if mode == "lent" else 1
            if len(owned) != wanted:
                raise WrongDescriptors(wanted, len(owned))
            if mode == "shared":
                _check_shared(memfd, accept_shared=accept_shared)
            token = None
            if mode == "lent":
                _check_token(owned[1])
                owned[1] = token = Token.move(owned[1])
            if token is None:
                mappings = None  # what is not lent does not come again
            return cls(memfd, mode, writable=mode == "shared", token=token, mappings=mappings)
        except BaseException:
            close_untrusted(owned)
            raise

    @property
    def buffer(self) -> memoryview:
        """Its bytes, mapped on first use; writable as the mode says, see `writable`.

        The same view each time. freeze() and close() revoke it: using it then is a ValueError.
        Whatever was derived from it (a slice, a NumPy array) stays valid, keeps the memory
        mapped, keeps a `lent` region from coming home, and makes freeze() fail.

        Raises ClosedRegion, OSError when memory is short; NotReserved if it was adopted, and its
        giver has taken memory back since.
        """
        with self._fresh_lock():
            self._check_open()
            if self._exporter is None:
                self._exporter = self._export()
            if self._view is None or _is_released(self._view):
                self._view = self._view_of(self._exporter)
            return self._view

    @property
    def size(self) -> int:
        """The number of bytes; from a registry, perhaps more than was asked for."""
        return self._memfd.size

    @property
    def mode(self) -> Mode:
        """Who may write it: `frozen`, `lent` or `shared`; known to be so from its seals."""
        return self._mode

    @property
    def writable(self) -> bool:
        """Whether `.buffer` can be written here and now."""
        return self._writable

    @property
    def loan(self) -> int | None:
        """What number the registry here gave to this lending; else None. See Returned."""
        return self._loan

    @property
    def closed(self) -> bool:
        """Whether it was closed, or the registry it came from."""
        return self._closed or self._memfd.closed

    def freeze(self) -> None:
        """Give up writing for ever, if the mode is `frozen`; descriptors() does it by itself.

        Afterwards it can be read here, and given any number of times. Other modes, and a region
        already frozen, stay as they are.

        Raises RegionInUse, and the region can be written still: through a new `.buffer`, as the
        one given before is revoked all the same. ClosedRegion.
        """
        with self._fresh_lock():
            self._freeze()

    def _freeze(self) -> None:
        self._check_open()
        if not self._writable or self._mode != "frozen":
            return
        try:
            if self._view is not None:
                self._view.release()
                self._view = None
            if isinstance(self._exporter, Mapped):
                self._exporter.close()
                self._exporter = None
        except BufferError as error:
            raise RegionInUse(
                "expected no writable view of the region but its .buffer, received others: "
                "delete arrays and release slices made of it before giving it"
            ) from error
        try:
            self._memfd.seal(SEALS["frozen"])
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            raise RegionInUse(
                "expected no writable mapping of the region elsewhere, received one (EBUSY): "
                "fill it after forking, or wait for the forked child or direct I/O to end"
            ) from error
        self._writable = False

    def descriptors(self) -> tuple[Fd, ...]:
        """Lend the descriptors to send, in order: adopt() takes them at the other end.

        One, or two if the mode is `lent`. They belong to the region, which must stay open until
        they are sent; afterwards it may be closed, or given again, also by who received it.
        Calls freeze().

        Raises RegionInUse, ClosedRegion.
        """
        with self._fresh_lock():
            self._freeze()
            return (self._memfd,) if self._token is None else (self._memfd, self._token)

    def close(self) -> None:
        """Let go of it; doing so again does nothing. Views other than `.buffer` stay valid."""
        with self._fresh_lock():
            self._close()

    def _close(self) -> None:
        # Also from __del__, which must not wait: no lock here.
        self._closed = True
        exporter, self._exporter = self._exporter, None
        view, self._view = self._view, None
        token, self._token = self._token, None
        # BufferError: somebody has views, and the last of them will take the mapping along, and
        # the token with it.
        with contextlib.suppress(BufferError):
            if view is not None:
                view.release()
            if isinstance(exporter, Mapped):
                self._unmap(exporter)
        if exporter is None and token is not None:
            token.close()  # else it is tied to the exporter, of which this is the last reference
        self._close_memory()

    def _unmap(self, exporter: Mapped) -> None:
        if self._mappings is None:
            exporter.close()
            exporter.token = None
        else:
            exporter.check_unused()
            exporter.token = None  # first: once kept, it may be another region's at once
            self._mappings.keep(self._memfd, exporter)

    # What a region of a registry does otherwise, as its memory is not its own.

    def _export(self) -> Exporter:
        kept = None if self._mappings is None else self._mappings.take(self._memfd)
        exporter = self._memfd.map(writable=self._writable) if kept is None else kept
        exporter.token = self._token  # closed when the last view is gone, and no earlier
        return exporter

    def _view_of(self, exporter: Exporter) -> memoryview:
        return memoryview(exporter)

    def _close_memory(self) -> None:
        self._memfd.close()

    def _check_open(self) -> None:
        if self.closed:
            raise ClosedRegion(f"expected an open memory region, received {self!r}")

    def __repr__(self) -> str:
        state = " closed" if self.closed else ""
        return f"<MemoryRegion {self._mode} {self.size} bytes{state}>"


class Token(Fd):
    """What says, as long as it is open, that somebody holds a region that was lent.

    Forgetting it closes it, and that is how it is meant: it goes with the last view.
    """

    # At interpreter shutdown the globals of this module may be None already, hence the default.
    def __del__(self, _close: Callable[[int], None] = os.close) -> None:  # type: ignore[override]
        number, self._number = self._number, -1
        if number >= 0:
            _close(number)


def _own(fd: int | Fd) -> Fd:
    if isinstance(fd, Fd):
        return fd
    # Fd(-1) would raise here, and lose the others; this is a closed one, refused when used.
    own = Fd.__new__(Fd)
    if type(fd) is int:
        own._number = fd  # noqa: SLF001 (as Inbox does)
    else:
        with contextlib.suppress(TypeError):
            own._number = index_of(fd)  # noqa: SLF001
    return own


def _mode_of(seals: int) -> Mode:
    if seals & _WRITE:
        return "frozen"
    return "lent" if seals & _FUTURE_WRITE else "shared"


def _check_shared(memfd: Memfd, *, accept_shared: bool) -> None:
    if not accept_shared:
        raise SharedRefused("frozen or lent", "shared")
    if fcntl.fcntl(memfd.fileno(), fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDWR:
        raise WrongType("a descriptor for reading and writing", "a read-only one")


def _check_token(token: Fd) -> None:
    """Refuse what is not the write end of a pipe, of which closing never waits for anybody."""
    wanted = "the write end of a pipe as the token"
    try:
        # Not fstat(), which a file system of the peer's own could answer when it likes.
        fcntl.fcntl(token.fileno(), fcntl.F_GETPIPE_SZ)
    except OSError as error:
        raise WrongType(wanted, "something else") from error
    if fcntl.fcntl(token.fileno(), fcntl.F_GETFL) & os.O_ACCMODE != os.O_WRONLY:
        raise WrongType(wanted, "a pipe not open for only writing")


def _is_released(view: memoryview) -> bool:
    try:
        return view.nbytes < 0
    except ValueError:
        return True
