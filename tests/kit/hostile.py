"""A peer that has introduced itself properly, and then keeps to no rule.

It writes what it likes into the segment that it owns, and says what it likes on the socket: `Hostile`
with frames, `Peer` with records of one size.  What stands where, and what means what, is stated here
once for all tests of hostile peers, and by hand: what the package says of it is what they test.
"""

import contextlib
import fcntl
import os
import socket
import struct

from ipcqueue._core import ffi

import fdpass
from ipcqueue._link.control import HELLO
from ipcqueue._records.spec import codec_for
from ipcqueue._ring import segment as _segment
from ipcqueue.lowlevel import Opening, Role, Terms, advance, open_pair
from memenpsf import Interface

HEAD, TAIL = 1024, 1152  # in a segment
# In a segment whose words are in the first of their lines; moved() says where they are in another.
WAIT_RECORDS, WAIT_SPACE, ENDED = 1664, 1668, 1672
RING = 4096
WRITE, FDS, ERR = 1, 17, 100  # opcodes
OUT_OF_LINE, OUT_AGAIN = 0x8000, 0x4000  # flags of a frame
ONCE = 0xFFFFFFFF  # the number of a region that is not used again
HEADER = 16  # bytes of a frame before its payload, and what frames are rounded to
FRAME = struct.Struct("=IIHHHH")  # size, tag, flags, descriptors, regions, nothing
PLACE = struct.Struct("=QII")  # size, number of the region, nothing
MAX_ATTACHED = 16  # frames with descriptors under way
MAX_OUTSIDE = 16  # messages outside the ring under way
F_ADD_SEALS = 1033  # linux/fcntl.h
BOTH_WAYS = Role(sends=True, receives=True)
LENT = fdpass.Seal.SHRINK | fdpass.Seal.GROW | fdpass.Seal.FUTURE_WRITE | fdpass.Seal.SEAL


def extent(size):
    """The bytes of ring that a message takes which travels inside."""
    return HEADER + -(-size // HEADER) * HEADER


def moved(mapping, at):
    """Return where a word is that would be here in the first line of words."""
    return at + 128 * (mapping.wake_line - 13) if 1664 <= at < 1680 else at


def poke(endpoint, at, data):
    """Write into the segment of an end, behind its back."""
    mapping = endpoint._own.mapping
    at = moved(mapping, at)
    ffi.buffer(mapping.at, mapping.size)[at : at + len(data)] = data


def place(size=512, number=0, reserved=0):
    """What a frame says of a message outside the ring."""
    return PLACE.pack(size, number, reserved)


def outside(it, *given, again=False, **where):
    """Send a message outside the ring; with its region, if one is given."""
    if given:
        it.give(*given)
    flags = OUT_AGAIN if again else OUT_OF_LINE
    it.frame(place(**where), flags=flags, regions=len(given))


def memory_file(size, seals=LENT, content=b"", *, reserved=None, flags=0):
    """Make any memory file; return its number.  `reserved`: how many bytes are there at first."""
    number = os.memfd_create("hostile", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | flags)
    try:
        os.ftruncate(number, size)
        if reserved := size if reserved is None else reserved:
            os.posix_fallocate(number, 0, reserved)
        if content:
            os.pwrite(number, content[:size], 0)
        if seals:
            fcntl.fcntl(number, F_ADD_SEALS, int(seals))
    except BaseException:
        os.close(number)
        raise
    return number


class Hostile:
    """A peer that has introduced itself, and then writes what it likes."""

    def __init__(self, **options):
        terms = Terms(options.pop("record", bytes), BOTH_WAYS, capacity=4096, **options)
        victim, self.endpoint = open_pair(terms, Terms(terms.codec, BOTH_WAYS, capacity=4096))
        self.victim = Interface.of(victim)
        self.sock = self.endpoint.wire.sock
        self.head = 0
        self.made = []

    def frame(self, payload=b"", *, size=None, tag=0, flags=0, fds=0, regions=0, reserved=0):
        """Write a frame; with another size than it has, perhaps."""
        size = len(payload) if size is None else size
        header = FRAME.pack(size, tag, flags, fds, regions, reserved)
        poke(self.endpoint, RING + self.head, header + payload)
        self.publish(self.head + extent(len(payload)))

    def publish(self, head):
        self.head = head
        poke(self.endpoint, HEAD, struct.pack("=Q", head % (1 << 64)))

    def say(self, opcode, argument, fds=()):
        fdpass.send_fds(self.sock, fds, bytes((opcode, argument)))

    def give(self, *fds):
        self.say(FDS, len(fds), fds)

    def memory(self, size=512, seals=fdpass.Seal.SHRINK | fdpass.Seal.GROW | fdpass.Seal.SEAL):
        memfd = fdpass.Memfd.create("hostile", size)
        memfd.seal(seals)
        self.made.append(memfd)
        return memfd

    def lent(self, size=512):
        """Memory for messages outside the ring, as it should be."""
        return self.memory(size, LENT)

    def region(self, size=512, mode="frozen"):
        region = fdpass.MemoryRegion.create(size, mode=mode)
        self.made.append(region)
        return region.descriptors()[0]

    def pipe(self):
        ends = [fdpass.Fd(number) for number in os.pipe()]
        self.made += ends
        return ends

    def told(self):
        """The last thing that the victim said."""
        said = b""
        with contextlib.suppress(BlockingIOError, ConnectionResetError):
            while data := self.sock.recv(4096):
                said += data
        return tuple(said[-2:])

    def close(self):
        self.victim.close()
        self.endpoint.close()
        for each in self.made:
            each.close()


class Peer:
    """A peer made by hand, which need not keep to any rule."""

    def __init__(self, role=BOTH_WAYS, capacity=4):
        ours, self.sock = socket.socketpair()
        self.segment = _segment.create(codec_for("<Q"), capacity, "peer")
        fdpass.send_fds(self.sock, [self.segment.memfd], HELLO)
        self.endpoint = advance(Opening(ours, Terms("<Q", role, capacity=4)))
        data, (fd,) = fdpass.recv_fds(self.sock, 1, 2)
        assert data == HELLO
        self.theirs = _segment.adopt(fd, 1 << 20)

    def poke(self, offset, value, kind="uint64_t *"):
        mapping = self.segment.mapping
        ffi.cast(kind, ffi.cast("char *", mapping.at) + moved(mapping, offset))[0] = value

    def publish(self, *numbers):
        """Put records into the first slots."""
        for n, number in enumerate(numbers):
            self.poke(RING + 8 * n, number)
        self.poke(HEAD, len(numbers))

    def say(self, data):
        self.sock.sendall(data)

    def heard(self):
        """All that was said to it so far, with a final None if the other side hung up."""
        self.sock.setblocking(False)
        heard = []
        with contextlib.suppress(BlockingIOError):
            while True:
                try:
                    data = self.sock.recv(1 << 16)
                except ConnectionResetError:
                    data = b""
                heard.append(data or None)
                if not data:
                    break
        return heard

    def close(self):
        self.sock.close()
        self.endpoint.close()
        self.segment.close()
        self.theirs.close()
