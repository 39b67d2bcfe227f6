"""What the targets in Python have in common: reading a script, what may be sent, what must not stay.

An input is a script: a target takes from it what to do next until nothing is left, so that every
input means something and small changes of it change little.
"""

import contextlib
import gc
import os
import select
import socket
import sys
import tempfile
from array import array
from pathlib import Path

from fdpass import Seal
from tests.kit.hostile import LENT, memory_file
from tests.kit.settling import settle

MAX_STEPS = 64


class Script:
    """Takes numbers and bytes from an input; zeros when it is used up."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def __bool__(self):
        return self.at < len(self.data)

    def take(self, count):
        taken = self.data[self.at : self.at + count]
        self.at += count
        return taken

    def number(self, size=1):
        return int.from_bytes(self.take(size), "little")

    def up_to(self, most):
        return self.number(1 if most < 256 else 2) % (most + 1)

    def of(self, choices):
        return choices[self.up_to(len(choices) - 1)]

    def near(self, *bases):
        """A u64 that is one of these, or near it, or any."""
        kind = self.number()
        base = bases[kind % len(bases)]
        match kind // len(bases) % 6:
            case 0 | 1:
                number = base
            case 2:
                number = base + self.number()
            case 3:
                number = base - self.number()
            case 4:
                number = 1 << self.up_to(63)
            case _:
                number = self.number(8)
        return number % (1 << 64)


def _regular():
    with tempfile.TemporaryFile() as file:
        file.truncate(8192)
        return os.dup(file.fileno())


def _one_of(pair):
    first, second = pair
    os.close(second)
    return first


def _socket():
    with contextlib.ExitStack() as stack:
        one, other = (stack.enter_context(sock) for sock in socket.socketpair())
        other.send(b"unread")
        return os.dup(one.fileno())


def _epoll():
    with select.epoll() as epoll:
        return os.dup(epoll.fileno())


def _write_only():
    fd = memory_file(8192, 0)
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_CLOEXEC)
    finally:
        os.close(fd)


ODD_DESCRIPTORS = (
    lambda: os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC),
    lambda: os.open("/", os.O_RDONLY | os.O_CLOEXEC),
    lambda: os.open("/dev/zero", os.O_PATH | os.O_CLOEXEC),
    lambda: _one_of(os.pipe()),
    lambda: os.eventfd(0),
    _regular,
    _socket,
    _epoll,
    _write_only,
    lambda: memory_file(0),
    lambda: memory_file(8192, 0),
    lambda: memory_file(8192, reserved=0),
    lambda: memory_file(8192, LENT | Seal.WRITE),
)


class Unclosed(AssertionError):
    """Something stayed behind, or an exception was lost in a finalizer."""


def _descriptors():
    settle()
    return set(os.listdir("/proc/self/fd"))  # noqa: PTH208 (asked a thousand times a second)


class _Mappings:
    """Counts mappings of memory files; that takes long, so only if there is more or less memory."""

    size, count = "", 0

    def __call__(self):
        size = Path("/proc/self/statm").read_text(encoding="ascii").split()[0]
        if size != self.size:
            self.size = size
            self.count = Path("/proc/self/maps").read_bytes().count(b"/memfd:")
        return self.count


_mappings = _Mappings()


@contextlib.contextmanager
def nothing_stays():
    """Raise Unclosed for what the block leaves open, and for warnings and errors of finalizers."""
    lost = []
    hook = sys.unraisablehook
    descriptors, mappings = _descriptors(), _mappings()
    sys.unraisablehook = lambda unraisable: lost.append(repr(unraisable.exc_value))
    try:
        yield
        if lost or _descriptors() != descriptors or _mappings() != mappings:
            gc.collect()
    finally:
        sys.unraisablehook = hook
    left = _descriptors() - descriptors
    if lost or left or _mappings() != mappings:
        raise Unclosed(f"{lost}, descriptors {left}, mappings {mappings} -> {_mappings()}")


def send(sock, data, numbers=()):
    """Send bytes with descriptors, which are closed then; what the socket does not take is lost."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", numbers))] if numbers else []
    try:
        with contextlib.suppress(OSError):
            sock.sendmsg([data], rights, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    finally:
        for number in numbers:
            os.close(number)


def received(sock, size):
    """Receive bytes and descriptors without waiting; return both, None if nothing is there."""
    flags = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
    try:
        data, ancillary, *_ = sock.recvmsg(size, socket.CMSG_SPACE(253 * 4), flags)
    except BlockingIOError:
        return None
    except OSError:
        return b"", []
    return data, [number for *_, payload in ancillary for number in array("i", payload)]


def heard(sock):
    """Read all that waits, and close the descriptors in it; return the bytes, and whether it ended."""
    said = b""
    while (what := received(sock, 4096)) is not None:
        data, numbers = what
        for number in numbers:
            os.close(number)
        if not data:
            return said, True
        said += data
    return said, False
