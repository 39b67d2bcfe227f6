"""Descriptors that are no segment of a peer's: every kind that can be had here, one at a time.

KINDS maps the name of each to what makes it, what is refused with, and what the message says.
"""

import contextlib
import ctypes
import fcntl
import mmap
import os
import select
import socket
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from ipcqueue._core import ffi

import fdpass
from fdpass import Seal
from ipcqueue import CorruptPeer, RecordRefused, SealsRefused, SizeRefused, VersionRefused
from ipcqueue._records.spec import codec_for
from ipcqueue._ring import segment as _segment
from tests.kit.hostile import F_ADD_SEALS, LENT, memory_file
from tests.kit.lingering import lingering

SPEC = "<Q"
SLOTS = 4
SIZE = 8192  # bytes of a segment of so many slots
MAX = 1 << 20  # what a side under test accepts of a segment

_libc = ctypes.CDLL(None, use_errno=True)


class Kind(NamedTuple):
    make: Callable[[contextlib.ExitStack], int]  # gives a number that the stack closes
    error: type[Exception]
    says: str


KINDS: dict[str, Kind] = {}

NO_MEMORY = r"kind of file: expected a memory file, received one without seals"
UNSEALED = r"seals of the memory file: expected .*, received "


def kind(name, error=SealsRefused, says=NO_MEMORY):
    def note(make):
        KINDS[name] = Kind(make, error, says)
        return make

    return note


@contextlib.contextmanager
def made(name: str) -> Iterator[int]:
    """Give a descriptor of this kind; skip the test where there are none."""
    with contextlib.ExitStack() as stack:
        try:
            number = KINDS[name].make(stack)
            one, other = socket.socketpair()
            with one, other:
                fdpass.send_fds(one, [number])  # not all can be sent: no io_uring
        except OSError as error:
            pytest.skip(f"none of this kind here: {error}")
        yield number


def owned(stack, number):
    if number < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    stack.callback(os.close, number)
    return number


def sock(stack, made):
    return stack.enter_context(made).fileno()


def temporary(stack):
    return Path(stack.enter_context(tempfile.TemporaryDirectory()))


def syscall(stack, *arguments):
    return owned(stack, _libc.syscall(*arguments))


# -- what is no memory file at all ---------------------------------------------------------------

for _end in (0, 1):

    @kind(("end of a pipe to read", "end of a pipe to write")[_end])
    def _(stack, end=_end):
        return [owned(stack, number) for number in os.pipe()][end]


@kind("fifo")
def _(stack):
    path = temporary(stack) / "fifo"
    os.mkfifo(path)
    return owned(stack, os.open(path, os.O_RDWR))


for _family, _type in (
    ("AF_UNIX", "SOCK_STREAM"),
    ("AF_UNIX", "SOCK_DGRAM"),
    ("AF_UNIX", "SOCK_SEQPACKET"),
    ("AF_INET", "SOCK_STREAM"),
    ("AF_INET", "SOCK_DGRAM"),
    ("AF_NETLINK", "SOCK_RAW"),
    ("AF_PACKET", "SOCK_RAW"),
    ("AF_VSOCK", "SOCK_STREAM"),
    ("AF_ALG", "SOCK_SEQPACKET"),
):

    @kind(f"socket {_family} {_type}")
    def _(stack, family=_family, type_=_type):
        return sock(stack, socket.socket(getattr(socket, family), getattr(socket, type_)))


@kind("socket that lingers")
def _(stack):
    return sock(stack, lingering())


@kind("connected socket")
def _(stack):
    one, other = socket.socketpair()
    sock(stack, other)
    return sock(stack, one)


@kind("listening socket")
def _(stack):
    listening = stack.enter_context(socket.socket(socket.AF_UNIX))
    listening.bind("")  # an abstract name of the kernel's choice
    listening.listen()
    return listening.fileno()


@kind("epoll")
def _(stack):
    return sock(stack, select.epoll())


@kind("eventfd")
def _(stack):
    return owned(stack, os.eventfd(0))


for _name, _arguments in {
    "timerfd": (283, 1, 0),
    "signalfd": (289, -1, ctypes.byref(ctypes.c_uint64()), 8, 0),
    "inotify": (294, 0),
    "fanotify": (300, 0, 0),
    "userfaultfd": (323, 1),
    "io_uring": (425, 4, ctypes.create_string_buffer(120)),
    "landlock ruleset": (444, ctypes.byref(ctypes.c_uint64(1)), 8, 0),
    "file system being configured": (430, b"tmpfs", 0),
    "detached mount": (428, -100, b"/", 1),
    "message queue": (240, b"memenpsf-test", os.O_RDWR | os.O_CREAT, 0o600, None),
    # BPF_MAP_CREATE: an array of one value of four bytes
    "bpf map": (321, 0, (ctypes.c_uint32 * 32)(2, 4, 4, 1), 128),
    # PERF_TYPE_SOFTWARE, PERF_COUNT_SW_DUMMY
    "performance counter": (298, (ctypes.c_uint32 * 32)(1, 128, 9), 0, -1, -1, 0),
    "secret memory": (447, 0),
}.items():

    @kind(_name)
    def _(stack, name=_name, arguments=_arguments):
        if os.uname().machine != "x86_64":
            raise OSError(0, "numbers of system calls are those of x86-64")
        if name == "message queue":
            stack.callback(_libc.syscall, 241, b"memenpsf-test")
        return syscall(stack, *arguments)


@kind("pidfd")
def _(stack):
    return owned(stack, os.pidfd_open(os.getpid()))


for _path, _flags in {
    "/dev/zero": os.O_RDWR,
    "/dev/null": os.O_RDWR,
    "/dev/full": os.O_RDWR,
    "/dev/urandom": os.O_RDONLY,
    "/dev/kmsg": os.O_RDONLY,
    "/dev/kvm": os.O_RDWR,
    "/dev/fuse": os.O_RDWR,
    "/dev/udmabuf": os.O_RDWR,
    "/dev/dma_heap/system": os.O_RDWR,
    "/dev/net/tun": os.O_RDWR,
    "/dev/tty": os.O_RDWR,
    "/": os.O_RDONLY,
    "/proc": os.O_RDONLY,
    "/proc/self/mem": os.O_RDWR,
    "/proc/self/maps": os.O_RDONLY,
    "/proc/self/fd": os.O_RDONLY,
    "/proc/self/ns/net": os.O_RDONLY,
    "/proc/self/pagemap": os.O_RDONLY,
    "/proc/sys/kernel/hostname": os.O_RDONLY,
    "/sys/kernel": os.O_RDONLY,
    "/sys/fs/cgroup": os.O_RDONLY,
}.items():

    @kind(_path, says=rf"{NO_MEMORY}|{UNSEALED}")  # what is a tmpfs here has the seal SEAL
    def _(stack, path=_path, flags=_flags):
        return owned(stack, os.open(path, flags | os.O_NOCTTY))


for _end in (0, 1):

    @kind(("master of a terminal", "terminal")[_end])
    def _(stack, end=_end):
        return [owned(stack, number) for number in os.openpty()][end]


@kind("regular file", says=rf"{NO_MEMORY}|{UNSEALED}")
def _(stack):
    path = temporary(stack) / "file"
    path.write_bytes(bytes(SIZE))
    return owned(stack, os.open(path, os.O_RDWR))


@kind("unnamed file", says=rf"{NO_MEMORY}|{UNSEALED}")
def _(stack):
    return owned(stack, os.open(tempfile.gettempdir(), os.O_TMPFILE | os.O_RDWR))


@kind("unnamed file in /dev/shm", says=rf"{NO_MEMORY}|{UNSEALED}")
def _(stack):
    number = owned(stack, os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR))
    os.posix_fallocate(number, 0, SIZE)
    return number


@kind("file in /dev/shm", says=rf"{NO_MEMORY}|{UNSEALED}")
def _(stack):
    number, path = tempfile.mkstemp(dir="/dev/shm")
    stack.callback(os.unlink, path)
    os.posix_fallocate(owned(stack, number), 0, SIZE)
    return number


@kind("path of a file")
def _(stack):
    return owned(stack, os.open("/proc/self/exe", os.O_PATH))


@kind("path of a good segment")
def _(stack):
    return owned(stack, os.open(f"/proc/self/fd/{segment(stack)}", os.O_PATH))


# -- memory files that are no segment ------------------------------------------------------------


def segment(stack, *, size=SIZE, seals=LENT, flags=0, reserve=None, names=(), word=None, **changes):
    """Make the segment of a peer that is right in all but what it is told."""
    good = _segment.create(codec_for(SPEC), SLOTS, "peer")
    header = bytearray(ffi.buffer(good.mapping.at, 4096))
    good.close()
    identity = ffi.from_buffer("struct ipcq_identity *", header)
    for field, value in changes.items():
        setattr(identity, field, value)
    struct.pack_into(f"<{len(names)}Q", header, 2944, *names)
    if word is not None:
        header[word + (128 * identity.wake_line if word < 128 else 0)] = 1
    content = b"" if flags & os.MFD_HUGETLB else bytes(header)
    return owned(stack, memory_file(size, seals, content, reserved=reserve, flags=flags))


for _word in (1032, 1039, 1040, 1047, 12, 15):  # of intent, oldest and wait_whom

    @kind(f"segment with reserved byte {_word} in use", CorruptPeer, "not zero and must be")
    def _(stack, word=_word):
        return segment(stack, word=word)


@kind("unsealed memory", says=UNSEALED)
def _(stack):
    return segment(stack, seals=Seal(0))


@kind("memory that cannot be sealed", says=UNSEALED)
def _(stack):
    number = owned(stack, os.memfd_create("wrong"))
    os.posix_fallocate(number, 0, SIZE)
    return number


for _seal in LENT:

    @kind(f"memory without the seal {_seal.name}", says=UNSEALED)
    def _(stack, seal=_seal):
        return segment(stack, seals=LENT & ~seal)


@kind("memory that its owner cannot write", says="even its owner cannot write")
def _(stack):
    return segment(stack, seals=LENT | Seal.WRITE)


@kind("frozen memory", says=UNSEALED)
def _(stack):
    return segment(stack, seals=Seal.SHRINK | Seal.GROW | Seal.WRITE | Seal.SEAL)


@kind("memory to write only", says="readable descriptor, received a write-only one")
def _(stack):
    path = f"/proc/self/fd/{segment(stack, seals=Seal(0))}"
    number = owned(stack, os.open(path, os.O_WRONLY))
    fcntl.fcntl(number, F_ADD_SEALS, int(LENT))
    return number


@kind("memory of huge pages", SizeRefused, "received 2097152")
def _(stack):
    # Reserving a page of them fails where there are none; one that has none is refused the same.
    return segment(stack, size=2 << 20, flags=os.MFD_HUGETLB, reserve=0)


NO_SIZE = r"size of the memory file in bytes: expected 1 to 1048576, received "


@kind("empty memory", SizeRefused, NO_SIZE + "0")
def _(stack):
    return segment(stack, size=0)


for _size in (1, 4095):

    @kind(f"memory of {_size} bytes", SizeRefused, f"has {_size} bytes, less than its header")
    def _(stack, size=_size):
        return segment(stack, size=size)


@kind("memory larger than accepted", SizeRefused, NO_SIZE + str(MAX + 1))
def _(stack):
    return segment(stack, size=MAX + 1)


@kind("64 TiB of nothing", SizeRefused, NO_SIZE + str(64 << 40))
def _(stack):
    return segment(stack, size=64 << 40, reserve=0)


@kind("as much as a file can have", SizeRefused, NO_SIZE + str((1 << 63) - 1))
def _(stack):
    return segment(stack, size=(1 << 63) - 1, reserve=0)


@kind("memory that is not there", SizeRefused, "memory reserved .* expected 1048576, received")
def _(stack):
    return segment(stack, size=MAX, reserve=0)


@kind("memory that is there in part", SizeRefused, "memory reserved .* expected 1048576, received")
def _(stack):
    return segment(stack, size=MAX, reserve=MAX - mmap.PAGESIZE)


for _size in (4096, 4096 + 8 * SLOTS - 1, 8191, 8193, 12288):

    @kind(f"segment of {_size} bytes that says 8192", CorruptPeer, f"its file has {_size}")
    def _(stack, size=_size):
        return segment(stack, size=size)


for _changes, _error, _says in (
    ({"magic": b"MEMENPSX"}, CorruptPeer, "begins with b'MEMENPSX' instead of b'MEMENPSF'"),
    ({"magic": bytes(8)}, CorruptPeer, "instead of b'MEMENPSF'"),
    ({"layout_version": 2}, VersionRefused, "layout_version here is 0x3, the peer's is 0x2"),
    ({"byte_order": 0x04030201}, VersionRefused, "byte_order here is"),
    ({"header_size": 8192}, VersionRefused, "header_size here is"),
    ({"slot_size": 0}, RecordRefused, "a record here is"),
    ({"slot_size": 1 << 31}, RecordRefused, "a record here is"),
    ({"shape": 1}, RecordRefused, "a record here is"),
    ({"fingerprint": bytes(16)}, RecordRefused, "a record here is"),
    ({"capacity": 0}, Exception, "its peer only receives"),
    ({"capacity": 3}, CorruptPeer, "capacity is 3, not a power of two"),
    ({"capacity": 1024}, CorruptPeer, "needs 12288 bytes, says that it has 8192"),
    ({"capacity": 1 << 61}, CorruptPeer, "needs .* bytes, says that it has 8192"),
    ({"capacity": 1 << 63}, CorruptPeer, "needs .* bytes, says that it has 8192"),
    ({"wake_line": 12}, CorruptPeer, "words are in line 12, which is not from 13 to 22"),
    ({"wake_line": 1 << 31}, CorruptPeer, "words are in line 2147483648, which is not"),
    ({"generation": 1}, CorruptPeer, "the peer's generation is 1, and must be 0"),
    ({"base": 1 << 63}, CorruptPeer, "the peer's base is 9223372036854775808, and must be 0"),
    ({"switch_at": 7}, CorruptPeer, "the peer's switch_at is 7, and must be 0"),
    ({"session": b"x" * 16}, CorruptPeer, "belongs to a session, and there are none"),
    ({"segment_size": 4096}, CorruptPeer, "says that it has 4096"),
    ({"segment_size": (1 << 64) - 1}, CorruptPeer, "says that it has 18446744073709551615"),
    ({"names": (9,)}, CorruptPeer, "states 9 names in a record of 8 bytes"),
    ({"names": ((1 << 64) - 1, 1, 1)}, CorruptPeer, "states 18446744073709551615 names"),
    ({"names": (0, 1)}, CorruptPeer, "states more than its 0 names"),
    ({"names": (1, 0, 1, 5, 0)}, CorruptPeer, "states more than its 1 names"),
    ({"names": (1, 0, 0, 5, 0, 6)}, CorruptPeer, "states more than its 1 names"),
    ({"names": (1, 0, 0, 5, 0, *bytes(125), 1)}, CorruptPeer, "states more than its 1 names"),
    ({"names": (1, 0, 0, 5, 8)}, CorruptPeer, "offsets that do not grow, or reach beyond"),
    ({"names": (1, 0, 0, 5, (1 << 64) - 1)}, CorruptPeer, "offsets that do not grow, or reach"),
    ({"names": (2, 0, 0, 5, 4, 6, 0)}, CorruptPeer, "offsets that do not grow, or reach"),
    ({"names": (2, 0, 0, 5, 4, 6, 4)}, CorruptPeer, "offsets that do not grow, or reach"),
):
    _field, _value = next(iter(_changes.items()))
    _value = _value[:5] if _field == "names" else _value

    @kind(f"segment with {_field} {_value}", _error, _says)
    def _(stack, changes=_changes):
        return segment(stack, **changes)
