"""Memory to fill and hand over without copying it.

The mode says who may write, and the seals enforce it for everybody, the giver included:

    mode      the giver writes       receivers   seals                            descriptors
    frozen    until it is given      only read   SHRINK GROW WRITE SEAL           memory
    lent      at any time            only read   SHRINK GROW FUTURE_WRITE SEAL    memory, token
    shared    at any time            write too   SHRINK GROW SEAL                 memory

Frozen memory can never be written again. Memory to be reused is lent, by a MemoryRegistry; the
token tells the registry when every holder has closed the region (_registry.py).

Views outlive the region they came from: a NumPy array made from `.buffer` stays valid after
close(). So the memory is unmapped, and the token closed, only when the last view is gone. A region
can revoke the view that `.buffer` returned. Views derived from that one it can only detect.

The file is long because the three modes are one class: they differ only in their seals.
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
"""The object that all views of a region keep alive; after close() nothing else does."""

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
    """Anonymous memory: create() makes it, descriptors() lends what to send, adopt() receives it.

    `frozen`: nobody writes once it is given. `shared`: giver and receivers write. `lent` comes
    from MemoryRegistry.alloc(): receivers only read; the giver may write at any time, and will
    reuse the memory once everybody has closed it. So a receiver that must not see bytes change
    between checking and using them has to copy them first, unless the mode is `frozen`.

    close() or the end of a with block closes it; a forgotten one is closed when it is collected,
    with a ResourceWarning. A forked child is one more holder. A region costs one descriptor
    (`lent`: two) until it is closed, and before Python 3.13 one more until the last view is gone.
    Any thread may use it.
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
        """Take the descriptors; called by create(), adopt() and the registry."""
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
        """Return the lock; in a forked child a new one: the old one may be held for ever."""
        if self._forks != forks():
            self._lock, self._forks = threading.Lock(), forks()
        return self._lock

    @classmethod
    def create(
        cls, size: int, *, mode: Literal["frozen", "shared"] = "frozen", name: str = "region"
    ) -> Self:
        """Make `size` reserved bytes of zeros, to fill through `.buffer`; the caller closes it.

        `name` (at most 249 bytes) is only for people reading /proc.

        Raises ValueError (size below 1, mode), OSError if memory is short; see Memfd.create().
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
        """Take the descriptors of one region, in the order of descriptors(); close them if refused.

        The seals tell its mode. Nothing is mapped until `.buffer` is used. For a `lent` region,
        `mappings` supplies the mapping if this process had the region before, and gets it back
        when the region is closed.

        Raises SharedRefused for mode `shared` unless accepted, and what Memfd.adopt() raises
        (WrongType, WrongSeals, WrongSize, NotReserved), all MemfdRefused; WrongDescriptors unless
        there is one (mode `lent`: two); ClosedFd.
        """
        owned = [_own(fd) for fd in fds]
        try:
            if not owned:
                raise WrongDescriptors(1, 0)
            # map() makes it keep its pages. Doing so here would repeat the work each time a region
            # arrives whose mapping was kept.
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
                mappings = None  # only lent regions arrive again
            return cls(memfd, mode, writable=mode == "shared", token=token, mappings=mappings)
        except BaseException:
            close_untrusted(owned)
            raise

    @property
    def buffer(self) -> memoryview:
        """Its bytes, mapped on first use; `writable` says whether they can be written.

        It is the same view each time. freeze() and close() revoke it: using it then is a
        ValueError. Anything derived from it (a slice, a NumPy array) stays valid and keeps the
        memory mapped; so a `lent` region does not return to its registry, and freeze() fails.

        Raises ClosedRegion, OSError if memory is short; NotReserved if it was adopted and its
        giver has removed pages since.
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
        """The number of bytes; a registry may give more than was asked for."""
        return self._memfd.size

    @property
    def mode(self) -> Mode:
        """Who may write it: `frozen`, `lent` or `shared`; its seals enforce it."""
        return self._mode

    @property
    def writable(self) -> bool:
        """Whether this process can write `.buffer` now."""
        return self._writable

    @property
    def loan(self) -> int | None:
        """The number of this lending, if a registry of this process lends it; see Returned."""
        return self._loan

    @property
    def closed(self) -> bool:
        """Whether it was closed, or the registry it came from."""
        return self._closed or self._memfd.closed

    def freeze(self) -> None:
        """Forbid all writing for ever, if the mode is `frozen`; descriptors() does so by itself.

        Afterwards it can be read here, and given any number of times. Does nothing in other modes,
        and for a region already frozen.

        Raises ClosedRegion. Raises RegionInUse if something here can still write it; the region
        then stays writable, but only through a new `.buffer`: the old one is revoked.
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
        """Return the descriptors to send, in order; adopt() takes them at the other end.

        There is one, or two if the mode is `lent`. The region still owns them, and must stay open
        until they are sent; then it may be closed or given again. A receiver may pass it on, too.
        Calls freeze().

        Raises RegionInUse, ClosedRegion.
        """
        with self._fresh_lock():
            self._freeze()
            return (self._memfd,) if self._token is None else (self._memfd, self._token)

    def close(self) -> None:
        """Close it; a second call does nothing. Views other than `.buffer` stay valid."""
        with self._fresh_lock():
            self._close()

    def _close(self) -> None:
        # __del__ calls this, too, and must not wait: so there is no lock here.
        self._closed = True
        exporter, self._exporter = self._exporter, None
        view, self._view = self._view, None
        token, self._token = self._token, None
        # BufferError: there are other views. The last of them will free the mapping, and the token
        # with it.
        with contextlib.suppress(BufferError):
            if view is not None:
                view.release()
            if isinstance(exporter, Mapped):
                self._unmap(exporter)
        if exporter is None and token is not None:
            token.close()  # otherwise the exporter owns it, and this is its last reference
        self._close_memory()

    def _unmap(self, exporter: Mapped) -> None:
        if self._mappings is None:
            exporter.close()
            exporter.token = None
        else:
            exporter.check_unused()
            exporter.token = None  # first: once kept, another region may take the mapping
            self._mappings.keep(self._memfd, exporter)

    # The region of a registry overrides these, because it does not own its memory.

    def _export(self) -> Exporter:
        kept = None if self._mappings is None else self._mappings.take(self._memfd)
        exporter = self._memfd.map(writable=self._writable) if kept is None else kept
        exporter.token = self._token  # so it is closed when the last view is gone, not earlier
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
        what = f"{self._mode} {self.size} bytes" if hasattr(self, "_mode") else "half made"
        return f"<MemoryRegion {what}{state}>"


class Token(Fd):
    """Says, as long as any copy of it is open, that somebody still holds a lent region.

    It is meant to be forgotten, without a warning: the last view of the region closes it.
    """

    # At interpreter shutdown the globals of this module may be None already, hence the default.
    def __del__(self, _close: Callable[[int], None] = os.close) -> None:  # type: ignore[override]
        number, self._number = self._number, -1
        if number >= 0:
            _close(number)


def _own(fd: int | Fd) -> Fd:
    if isinstance(fd, Fd):
        return fd
    # Fd(-1) would raise here, and the other descriptors would be lost. So make a closed one, which
    # is refused later.
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
    """Raise WrongType unless it is the write end of a pipe: closing one never waits."""
    wanted = "the write end of a pipe as the token"
    try:
        # Not fstat(): a file system of the peer's could delay its answer for ever.
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
