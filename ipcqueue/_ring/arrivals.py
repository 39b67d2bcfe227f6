"""What comes beside a frame: descriptors and regions, checked and grouped."""

import fcntl
from collections.abc import Iterable
from typing import NamedTuple, TypeAlias

import fdpass
from ipcqueue._records.messages import OUT_AGAIN, OUT_OF_LINE, Framed

Spent: TypeAlias = fdpass.Fd | fdpass.MemoryRegion


class Built(NamedTuple):
    """A message that is copied but not handed on yet; owns what is attached to it."""

    end: int  # where its frame ends
    number: int  # of the message, from the first of the connection on
    raw: Framed
    fds: list[fdpass.Fd]
    regions: list[fdpass.MemoryRegion]


def carries_more(built: Built) -> bool:
    return bool(built.fds or built.regions or built.raw.flags & OUT_OF_LINE)


def is_there(built: Built) -> bool:
    """Say whether the message was in a region of which no descriptor came with it."""
    return bool(built.raw.flags & OUT_AGAIN)


def grouped(descriptors: list[fdpass.Fd]) -> list[list[fdpass.Fd]]:
    """Tell the descriptors of several regions apart: each a file, then perhaps a token."""
    groups: list[list[fdpass.Fd]] = []
    for fd in descriptors:
        if not groups or _is_memory(fd):
            groups.append([])
        groups[-1].append(fd)
    return groups


def _is_memory(fd: fdpass.Fd) -> bool:
    try:
        # Not fstat(), which a file system of the peer's own could answer when it likes.
        fcntl.fcntl(fd.fileno(), fcntl.F_GET_SEALS)
    except OSError:
        return False
    return True


def attachments_of(messages: Iterable[Built]) -> list[Spent]:
    spent: list[Spent] = []
    for built in messages:
        spent += built.fds
        spent += built.regions
    return spent


def close_received(spent: Iterable[Spent]) -> None:
    """Close what a stranger gave; that can be repeated."""
    fds = []
    for each in spent:
        if isinstance(each, fdpass.Fd):
            fds.append(each)
        else:
            each.close()
    fdpass.close_untrusted(fds)


def close_regions(owned: Iterable[list[fdpass.MemoryRegion]]) -> None:
    for regions in owned:
        close_received(regions)
