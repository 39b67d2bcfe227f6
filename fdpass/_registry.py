"""Memory regions that are reused once every holder has closed them.

New memory is expensive: the kernel zeroes and maps every page of 4 KiB, 25 ms for 64 MiB where
this was written. Reusing returned memory costs 0.02 ms, whatever its size (benchmarks/regions.py),
and receivers can keep it mapped (_mappings.py). Receivers are not trusted, and may die at any
moment. This is how the registry learns that nobody holds a region any more:

    alloc()    makes a pipe: the registry watches the read end; the write end is the token
    giving     sends the memory and a duplicate of the token to each receiver
    closing    a holder's close() and its last view close its copy of the token; so does the
               kernel if the process dies, or if the message with the token is never received
    HUP        when the last copy is closed, the read end reports it: the region has returned

Each lending has its own pipe, so a lending that has ended cannot be revived. A receiver that closes
the token but keeps the memory can only read it, and sees only what is lent under the same tag.

The file is long because one object lends, takes back and frees, under one lock.
"""

import bisect
import errno
import itertools
import os
import select
import threading
from collections import deque
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import NamedTuple, Self, TypeVar

from ._clock import monotonic
from ._closing import Closing
from ._errors import ClosedRegistry, ForkedRegistry
from ._fd import Fd
from ._forks import renewed_after_fork
from ._memfd import Mapped, Memfd
from ._numbers import Seconds, index_of, seconds_of
from ._owner import Owner
from ._region import SEALS, Exporter, MemoryRegion, Token

_T = TypeVar("_T")

_SHORTAGES = (errno.ENOMEM, errno.ENOSPC, errno.EMFILE, errno.ENFILE)


class Returned(NamedTuple):
    """A region has returned: nobody holds it any more."""

    loan: int
    """The number of this lending: `loan` of the region that alloc() returned."""
    tag: Hashable
    size: int
    """In bytes."""
    seconds: float
    """From alloc() until it was noticed here."""


class RegistryStatistics(NamedTuple):
    """Counters of a registry and what it holds: created == lent + idle + freed."""

    created: int
    """Regions made because no idle one fitted."""
    reused: int
    """Times that alloc() lent an idle region again."""
    returned: int
    """Times that a region returned."""
    freed: int
    """Regions freed: idle for too long, or the registry was closed."""
    lent: int
    """Regions that somebody held at the last collect()."""
    lent_bytes: int
    idle: int
    """Regions that nobody holds, ready to be lent."""
    idle_bytes: int


class MemoryRegistry(Closing):
    """Lends memory regions, and lends them again once giver and receivers have closed them.

    A reused region still holds the bytes of its last use, and receivers of that use may still read
    it if they only pretended to close it. So a tag is a circle of trust: a region never changes its
    tag. Use different tags for receivers that must not read each other's messages. A receiver that
    never closes its region keeps it for ever: `lent_bytes` tells how much is lent.

    There is no thread: alloc() and collect() look for returned regions, and call `on_return`, if
    given, once for each. Event loops wait until fileno() becomes readable, at most until_expiry()
    seconds, and then call collect().

    Any thread may use it, but no signal handler. A lent region costs two descriptors (four until
    the giver closes it; one more before Python 3.13), an idle one costs one (two).

    Raises ValueError (keep), OSError if descriptors are short.
    """

    _instead = "make one in each process, and send the regions that it lends"

    def __init__(
        self,
        *,
        keep: Seconds = 5.0,
        on_return: Callable[[Returned], object] | None = None,
        clock: Callable[[], float] = monotonic,
        name: str = "region",
    ) -> None:
        """Keep idle regions for `keep` seconds of `clock`; `name` is for people reading /proc."""
        self._keep = seconds_of(keep, "keep")
        self._on_return = on_return
        self._clock = clock
        self._name = name
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._loans: dict[int, _Loan] = {}  # by the number of the read end
        self._idle = _Idle()
        self._news: deque[Returned] = deque()
        self._numbers = itertools.count(1)
        self._created = self._reused = self._returned = self._freed = 0
        self._epoll = select.epoll()
        self._closed = False
        renewed_after_fork(self)

    def renew_locks(self) -> None:
        """Make a new lock, in a forked child: a thread of the parent may hold the old one."""
        self._lock = threading.Lock()

    def alloc(self, size: int, tag: Hashable = "") -> MemoryRegion:
        """Lend a region of `size` to 2 * `size` bytes, of mode `lent`; the caller closes it.

        It is the smallest idle one of the same tag that fits, with the bytes of its last use; or a
        new one of exactly `size` zeros. It returns when it is closed here, every view of it is
        gone, and every receiver has done the same or died. Calls collect().

        Raises ValueError (size below 1), OSError if memory or descriptors are short,
        ClosedRegistry, ForkedRegistry, and what `on_return` raises; then nothing is lent.
        """
        size = index_of(size)
        self.collect()
        ends = self._despite_shortage(lambda: os.pipe2(os.O_CLOEXEC))
        watch, token = Fd(ends[0]), Token(ends[1])
        memory: _Memory | None = None
        region: _LentRegion | None = None
        try:  # not with an ExitStack: that would take half as long again
            memory = self._take(size, tag) or self._make(size, tag)
            loan = next(self._numbers)
            region = _LentRegion(memory, token, loan)
            with self._lock:
                self._check_usable()
                self._loans[watch.fileno()] = _Loan(loan, memory, watch, self._clock())
                # Ask for no events: EPOLLHUP is always reported, and a byte that a receiver writes
                # into the pipe must not wake anybody.
                self._epoll.register(watch.fileno(), 0)
        except BaseException:
            if not watch.closed:  # otherwise the registry was closed meanwhile, which did this
                self._loans.pop(watch.fileno(), None)
            if region is not None:
                region.close()
            if memory is not None:
                self._give_up(memory)
            token.close()
            watch.close()
            raise
        return region

    def _take(self, size: int, tag: Hashable) -> "_Memory | None":
        with self._lock:
            memory = self._idle.take(size, tag)  # a closed registry has none
            if memory is not None:
                self._reused += 1
            return memory

    def _make(self, size: int, tag: Hashable) -> "_Memory":
        # Without the lock, because making memory takes long.
        memory = self._despite_shortage(lambda: _Memory.made(self._name, size, tag))
        with self._lock:
            self._created += 1
        return memory

    def _despite_shortage(self, make: Callable[[], _T]) -> _T:
        try:
            return make()
        except OSError as error:
            # Freeing idle regions may give back what is short.
            if error.errno not in _SHORTAGES or not self._free(float("inf")):
                raise
            return make()

    def _give_up(self, memory: "_Memory") -> None:
        with self._lock:
            self._freed += 1
        memory.close()

    def collect(self) -> int:
        """Take back regions that have returned, without waiting; return how many. Calls expire().

        Raises ClosedRegistry, ForkedRegistry, and what `on_return` raises; its remaining calls are
        made by the next collect().
        """
        with self._lock:
            self._check_usable()
            home = self._epoll.poll(0, max(1, len(self._loans)))
            for number, _ in home:
                self._come_home(self._loans.pop(number))
            oldest = self._idle.oldest()
        if oldest is not None and oldest <= self._clock() - self._keep:
            self.expire()
        self._tell()
        return len(home)

    def _tell(self) -> None:
        # Without the lock, because on_return() may use the registry. Other threads may do the same.
        while self._on_return is not None:
            try:
                news = self._news.popleft()
            except IndexError:
                return
            self._on_return(news)

    def _come_home(self, loan: "_Loan") -> None:
        # Unregister first: if a forked child has a copy, closing does not remove it from the epoll.
        self._epoll.unregister(loan.watch.fileno())
        loan.watch.close()
        now = self._clock()
        self._returned += 1
        self._idle.put(loan.memory, now)
        if self._on_return is not None:
            memory = loan.memory
            self._news.append(Returned(loan.number, memory.tag, memory.size, now - loan.since))

    def expire(self) -> int:
        """Free the regions that have been idle for `keep` seconds; return how many.

        Raises ClosedRegistry, ForkedRegistry.
        """
        return self._free(self._clock() - self._keep)

    def _free(self, until: float) -> int:
        with self._lock:
            self._check_usable()
            old = self._idle.remove_since(until)
            self._freed += len(old)
        for memory in old:  # without the lock, because freeing memory takes long
            memory.close()
        return len(old)

    def until_expiry(self) -> float | None:
        """Return the seconds until expire() can free something; None if nothing is idle."""
        with self._lock:
            oldest = self._idle.oldest()
            return None if oldest is None else max(0.0, oldest + self._keep - self._clock())

    def fileno(self) -> int:
        """Return a descriptor, still owned here, that is readable when a region has returned.

        Raises ClosedRegistry, ForkedRegistry.
        """
        self._check_usable()
        return self._epoll.fileno()

    def statistics(self) -> RegistryStatistics:
        """Return the counters."""
        with self._lock:
            return RegistryStatistics(
                created=self._created,
                reused=self._reused,
                returned=self._returned,
                freed=self._freed,
                lent=len(self._loans),
                lent_bytes=sum(loan.memory.size for loan in tuple(self._loans.values())),
                idle=len(self._idle.since),
                idle_bytes=sum(memory.size for memory in tuple(self._idle.since)),
            )

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._closed

    def close(self) -> None:
        """Free all memory; a second call does nothing.

        This also closes lent regions here; receivers keep theirs until they close them.
        """
        with self._lock:
            self._close()

    def _close(self) -> None:
        # __del__ calls this, too, and must not wait: so there is no lock here. Nothing is
        # unregistered: in a forked child, that would change the epoll of the parent.
        if self._closed:
            return
        self._closed = True
        self._freed += len(self._loans) + len(self._idle.since)
        for loan in tuple(self._loans.values()):
            loan.watch.close()
            loan.memory.close()
        for memory in self._idle.remove_since(float("inf")):
            memory.close()
        self._loans.clear()
        self._epoll.close()

    def _check_usable(self) -> None:
        if self._closed:
            raise ClosedRegistry("expected an open registry, received a closed one")
        if os.getpid() != self._owner:
            raise ForkedRegistry(
                f"expected the process that made the registry, {self._owner}, "
                f"received its forked child {os.getpid()}: make one there"
            )

    def __repr__(self) -> str:
        state = (
            "closed" if self._closed else f"{len(self._loans)} lent, {len(self._idle.since)} idle"
        )
        return f"<{type(self).__name__} {state}>"


class _Memory(Owner):
    """Memory that is lent repeatedly: a file, and its only possible writable mapping."""

    def __init__(self, memfd: Memfd, mapping: Mapped, tag: Hashable) -> None:
        self.memfd = memfd
        self.mapping = mapping
        self.tag = tag

    @classmethod
    def made(cls, name: str, size: int, tag: Hashable) -> Self:
        memfd = Memfd.create(name, size)
        try:
            mapping = memfd.map(writable=True)
            memfd.seal(SEALS["lent"])
            return cls(memfd, mapping, tag)
        except BaseException:
            memfd.close()
            raise

    @property
    def size(self) -> int:
        return self.memfd.size

    def close(self) -> None:
        self.memfd.close()
        # A lent region may still have views; the last of them will free the mapping.
        with suppress(BufferError):
            self.mapping.close()


class _Loan(NamedTuple):
    number: int
    memory: _Memory
    watch: Fd
    since: float


class _Idle(Owner):
    """The idle regions: by tag and size, to find a fitting one; by time, to free the oldest."""

    def __init__(self) -> None:
        self.since: dict[_Memory, float] = {}  # in the order in which they returned
        self._by_tag: dict[Hashable, list[_Memory]] = {}  # each list in the order of sizes

    def put(self, memory: _Memory, now: float) -> None:
        self.since[memory] = now
        # Before others of its size: the last one used is most likely still in a CPU cache.
        bisect.insort_left(self._by_tag.setdefault(memory.tag, []), memory, key=_size_of)

    def take(self, size: int, tag: Hashable) -> _Memory | None:
        fitting = self._by_tag.get(tag, [])
        at = bisect.bisect_left(fitting, size, key=_size_of)
        if at == len(fitting) or fitting[at].size > 2 * size:
            return None
        memory = fitting.pop(at)
        del self.since[memory]
        self._keep_only(tag, fitting)
        return memory

    def oldest(self) -> float | None:
        return next(iter(self.since.values()), None)

    def remove_since(self, until: float) -> list[_Memory]:
        """Remove and return those that returned at `until` or before."""
        old: list[_Memory] = []
        for memory, since in tuple(self.since.items()):
            if since > until:
                break
            old.append(memory)
        for memory in old:
            del self.since[memory]
        for tag in {memory.tag for memory in old}:
            self._keep_only(tag, [m for m in self._by_tag[tag] if m in self.since])
        return old

    def _keep_only(self, tag: Hashable, left: list[_Memory]) -> None:
        if left:
            self._by_tag[tag] = left
        else:
            del self._by_tag[tag]


def _size_of(memory: _Memory) -> int:
    return memory.size


class _LentRegion(MemoryRegion):
    """One lending: the registry still owns the memory, and this owns only its token."""

    def __init__(self, memory: _Memory, token: Token, loan: int) -> None:
        self._mapping = memory.mapping
        self._loan = loan
        super().__init__(memory.memfd, "lent", writable=True, token=token)

    def _export(self) -> Exporter:
        import ctypes  # noqa: PLC0415 (only a registry needs it, and it is slow to import)

        # The mapping stays from one lending to the next. So each lending puts an object of its own
        # between the mapping and its views: that object is freed when its views are gone.
        exporter = (ctypes.c_ubyte * self.size).from_buffer(self._mapping)
        exporter.token = self._token  # type: ignore[attr-defined]  # as in MemoryRegion
        return exporter

    def _view_of(self, exporter: Exporter) -> memoryview:
        from pickle import PickleBuffer  # noqa: PLC0415 (as ctypes)

        # A ctypes array has the format "<B", and memoryview refuses to assign bytes to that; raw()
        # gives "B". Both keep the exporter alive.
        return PickleBuffer(exporter).raw()

    def _close_memory(self) -> None:
        """Leave it open for the next lending."""


for _each in (MemoryRegistry, RegistryStatistics, Returned):
    _each.__module__ = "fdpass"  # as of all public names; see __init__
