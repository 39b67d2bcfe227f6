"""wait: which of many connections, listeners and descriptors have something to do."""

from __future__ import annotations

import os
import select
from typing import TYPE_CHECKING, Any, TypeVar

from ipcqueue.lowlevel import EventFd, Wait, deadline_of, drive, index_of, monotonic, persist

from ._sources import ConnectionSource, DescriptorSource, Source, leave_all, source_of

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

    from ipcqueue.lowlevel import Seconds

T = TypeVar("T")

# Seconds after which connections are looked at even if nothing woke this thread.  It should never
# find anything; statistics().rescues of the connection counts when it does.
SLICE = 1.0


def wait(objects: Iterable[T], timeout: Seconds = None) -> list[T]:
    """Wait until any of many objects is ready; return those that are, in the order given.

    Objects are interfaces, receivers and listeners of plain threads, and beside them descriptors
    (int) and anything with fileno(), such as sockets and pipes.  An interface or receiver is ready
    if a record can be received, or if recv() would raise: it has ended, its peer has died, or it is
    closed.  A listener is ready if accept(timeout=0) would return a client or raise.  A descriptor
    is ready if it can be read.  Each object is returned once, however often it is given.

    An empty list means that none was ready within `timeout` seconds (None: for ever; 0 does not
    wait).  Other threads may use the objects meanwhile, so what was ready may be gone.  For a loop
    over many connections, ReceiverSet is faster: wait() looks at each object in every call.

    Raises TypeError for anything else, such as a Sender or an interface of memenpsf.trio;
    ValueError for a closed socket, and for no objects without a timeout; OSError (a number that is
    no descriptor; no descriptor is left: it needs one); ForkedUse.
    """
    until = deadline_of(timeout)
    waking = EventFd()
    sources: list[Source] = []
    try:
        given = {id(each): each for each in objects}  # each once
        sources += [_source(each, waking) for each in given.values()]
        if not sources and timeout is None:
            raise ValueError("wait() without objects and without a timeout would never end")
        waking.open()
        ready = drive(_looking(sources, waking, until))
    finally:
        persist(_end, sources, waking)
    return [source.given for source in ready]


def _end(sources: list[Source], waking: EventFd) -> None:
    leave_all(sources)
    waking.close()


def _source(given: Any, waking: EventFd) -> Source:
    source = source_of(given, waking.ring, "wait()")
    if source is not None:
        return source
    if hasattr(given, "fileno"):
        fd = given.fileno()
    else:
        try:
            fd = index_of(given)
        except TypeError:
            raise TypeError(
                "wait() is for interfaces, receivers, listeners, descriptors and what has fileno(), "
                f"not for {given!r}"
            ) from None
    if fd < 0:
        raise ValueError(f"wait() is for open descriptors, and {given!r} is closed")
    os.fstat(fd)  # raises OSError
    return DescriptorSource(given, fd)


def _looking(
    sources: list[Source], waking: EventFd, until: float
) -> Generator[Wait, bool, list[Source]]:
    """Look at all, and wait until there is something to do or time is up: a plan."""
    slice_ = SLICE if any(isinstance(each, ConnectionSource) for each in sources) else until
    while True:
        ready = [source for source in sources if source.look()]
        now = monotonic()
        if ready or now >= until:
            return ready
        due = min(until, now + slice_, *(source.due for source in sources))
        interests = [(waking.fileno(), select.POLLIN)]
        for source in sources:
            interests += source.interests()
        yield Wait(max(0.0, due - now), interests=interests)
        waking.silence()


wait.__module__ = "memenpsf"  # as of all public names; see __init__
