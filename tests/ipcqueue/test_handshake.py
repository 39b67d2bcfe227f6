"""What two ends must agree on: the pure decisions, and how they are met over real sockets."""

import contextlib
import errno
import os
import select
import socket
import time
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from ipcqueue._core import ffi

import fdpass
from fdpass import Fd, Memfd, Seal
from ipcqueue import (
    CorruptPeer,
    CredentialsRefused,
    HandshakeTimeout,
    PeerDied,
    QueueError,
    Receiver,
    RecordRefused,
    Refused,
    RoleRefused,
    SealsRefused,
    Sender,
    SizeRefused,
    VersionRefused,
)
from ipcqueue._link.control import HELLO, Reason, refusal
from ipcqueue._link.handshake import Greeting, check, checked_name
from ipcqueue._records.spec import codec_for
from ipcqueue._ring import segment as _segment
from ipcqueue._ring.identity import Identity
from ipcqueue.lowlevel import Opening, Role, Terms, advance, open_pair

SENDS = Role(sends=True, receives=False)
RECEIVES = Role(sends=False, receives=True)
BOTH = Role(sends=True, receives=True)

FINGERPRINT, OTHER = b"\x11" * 16, b"\x22" * 16


def identity(**changes):
    """A segment of 1024 slots of 8 bytes, as it should be."""
    whole = Identity(
        slot_size=8,
        capacity=1024,
        segment_size=4096 + 8192,
        fingerprint=FINGERPRINT,
        creator_pid=1,
        name="peer",
        record="8 bytes: 0:u64",
    )
    return whole._replace(**changes)


MINE = identity(name="mine")
SILENT = identity(capacity=0, segment_size=4096)  # of an end that sends nothing


class TestCheck:
    @pytest.mark.parametrize(
        ("role", "peer"),
        [(RECEIVES, identity()), (SENDS, SILENT), (BOTH, identity())],
        ids=["receiver", "sender", "both"],
    )
    def test_ends_that_fit_are_accepted(self, role, peer):
        check(MINE, role, peer, peer.segment_size)

    @pytest.mark.parametrize("capacity", [1, 2, 512])
    def test_the_peer_chooses_its_capacity_and_may_have_bytes_to_spare(self, capacity):
        check(MINE, RECEIVES, identity(capacity=capacity), 4096 + 8192)

    @pytest.mark.parametrize(("capacity", "size"), [(2048, 8192), (4096, 8292), (4096, 8191)])
    def test_a_ring_of_frames_is_whole_pages_as_it_is_mapped_twice(self, capacity, size):
        def frames(**changes):
            return identity(slot_size=1, shape=1, max_message=1000, **changes)

        fits = frames(capacity=4096, segment_size=8192)
        check(frames(), RECEIVES, fits, fits.segment_size)
        with pytest.raises(CorruptPeer, match="file of"):
            check(frames(), RECEIVES, frames(capacity=capacity, segment_size=size), size)

    def test_what_does_not_matter_may_differ(self):
        peer = identity(name="someone else", record="other words", creator_pid=77)
        check(MINE, RECEIVES, peer, peer.segment_size)

    @pytest.mark.parametrize("magic", [b"MEMENPSG", b"\0" * 8])
    def test_another_magic_is_a_corrupt_peer(self, magic):
        with pytest.raises(CorruptPeer) as caught:
            check(MINE, RECEIVES, identity(magic=magic), 12288)
        assert repr(magic) in str(caught.value)
        assert "MEMENPSF" in str(caught.value)

    def test_a_header_of_zeros_is_a_corrupt_peer(self):
        zeros = Identity(0, 0, 0, bytes(16), 0, "", "", bytes(8), 0, 0, 0)
        for role in (SENDS, RECEIVES, BOTH):
            with pytest.raises(CorruptPeer):
                check(MINE, role, zeros, 4096)

    @pytest.mark.parametrize(
        ("field", "ours", "theirs"),
        [
            ("layout_version", 3, 2),
            ("byte_order", 0x01020304, 0x04030201),
            ("header_size", 4096, 8192),
        ],
    )
    def test_another_version_is_refused_with_both_views(self, field, ours, theirs):
        with pytest.raises(VersionRefused) as caught:
            check(MINE, RECEIVES, identity(**{field: theirs}), 12288)
        for part in (field, hex(ours), hex(theirs)):
            assert part in str(caught.value)

    @pytest.mark.parametrize(
        "changes",
        [
            {"fingerprint": OTHER, "record": "8 bytes: 0:f64"},
            {"slot_size": 4, "record": "4 bytes: 0:u32"},
            {"slot_size": 4, "fingerprint": OTHER, "record": "4 bytes: 0:u32"},
        ],
    )
    def test_another_record_is_refused_with_both_views(self, changes):
        with pytest.raises(RecordRefused) as caught:
            check(MINE, RECEIVES, identity(**changes), 12288)
        assert f"[{MINE.record}]" in str(caught.value)
        assert f"[{changes['record']}]" in str(caught.value)

    def test_records_that_differ_only_where_words_were_cut_are_refused_understandably(self):
        with pytest.raises(RecordRefused, match="same words, other fingerprint"):
            check(MINE, RECEIVES, identity(fingerprint=OTHER), 12288)

    @pytest.mark.parametrize(
        ("role", "peer", "words"),
        [
            (SENDS, identity(), "this end sends, and its peer sends"),
            (RECEIVES, SILENT, "this end receives, and its peer only receives"),
            (BOTH, SILENT, "this end sends and receives, and its peer only receives"),
        ],
        ids=["two senders", "two receivers", "both and a receiver"],
    )
    def test_ends_that_do_not_belong_together_are_refused_with_both_views(self, role, peer, words):
        with pytest.raises(RoleRefused, match=words):
            check(MINE, role, peer, peer.segment_size)

    @pytest.mark.parametrize("capacity", [3, 1023, 1025, (1 << 64) - 1])
    def test_a_capacity_that_is_no_power_of_two_is_a_corrupt_peer(self, capacity):
        peer = identity(capacity=capacity, segment_size=1 << 60)
        with pytest.raises(CorruptPeer, match=str(capacity)):
            check(MINE, RECEIVES, peer, peer.segment_size)

    @pytest.mark.parametrize(
        ("changes", "file_size"),
        [
            ({}, 4096 + 8191),
            ({}, 4096 + 8193),
            ({"segment_size": 4096 + 8191}, 4096 + 8191),
            ({"segment_size": 4096 + 8191}, 4096 + 8192),
            ({"capacity": 2048}, 4096 + 8192),
            ({"capacity": 1 << 63}, 4096 + 8192),
            ({"capacity": 1 << 61, "segment_size": 4096}, 4096),
            ({"segment_size": 0}, 4096 + 8192),
        ],
    )
    def test_sizes_that_contradict_each_other_are_a_corrupt_peer_with_all_numbers(
        self, changes, file_size
    ):
        peer = identity(**changes)
        with pytest.raises(CorruptPeer) as caught:
            check(MINE, RECEIVES, peer, file_size)
        needed = 4096 + peer.capacity * peer.slot_size
        for number in (needed, peer.segment_size, file_size):
            assert str(number) in str(caught.value)

    def test_the_first_difference_is_the_one_that_explains_the_others(self):
        everything_else = {"capacity": 3, "segment_size": 1, "slot_size": 5, "fingerprint": OTHER}
        with pytest.raises(VersionRefused):
            check(MINE, RECEIVES, identity(layout_version=1, **everything_else), 12288)
        with pytest.raises(RecordRefused):
            check(MINE, RECEIVES, identity(**everything_else), 12288)


class TestNames:
    @pytest.mark.parametrize("name", ["", "a name", "x" * 64, "ä" * 32])
    def test_up_to_64_bytes_of_utf_8_are_a_name(self, name):
        assert checked_name(name) == name

    @pytest.mark.parametrize("name", ["x" * 65, "ä" * 33, "a\0b", "\0", "\ud800"])
    def test_what_a_segment_cannot_hold_is_a_value_error(self, name):
        with pytest.raises(ValueError):
            checked_name(name)

    @pytest.mark.parametrize("name", [b"name", None, 5])
    def test_a_name_is_text(self, name):
        with pytest.raises(TypeError, match="a name is a str"):
            checked_name(name)

    def test_roles_read_as_words(self):
        assert [str(role) for role in (SENDS, RECEIVES, BOTH)] == [
            "sends",
            "receives",
            "sends and receives",
        ]


class TestGreeting:
    def test_hello_with_its_descriptor_is_all(self):
        greeting = Greeting()
        assert greeting.missing == 2
        assert greeting.feed(HELLO, 1) is True
        assert greeting.missing == 0

    @pytest.mark.parametrize("descriptors", [(1, 0), (0, 1)])
    def test_it_may_come_one_byte_at_a_time(self, descriptors):
        greeting = Greeting()
        assert greeting.feed(HELLO[:1], descriptors[0]) is False
        assert greeting.missing == 1
        assert greeting.feed(HELLO[1:], descriptors[1]) is True

    def test_garbage_is_recognised_by_its_first_byte(self):
        for first in set(range(256)) - {16, 100}:
            with pytest.raises(CorruptPeer, match=rf"\b{first}\b.*HELLO"):
                Greeting().feed(bytes((first,)), 0)

    @pytest.mark.parametrize("cut", [1, 2])
    def test_err_instead_of_hello_is_what_it_stands_for(self, cut):
        for argument in range(10):
            greeting, message = Greeting(), bytes((100, argument))
            if cut == 1:
                assert greeting.feed(message[:1], 0) is False
            with pytest.raises(Refused) as caught:
                greeting.feed(message[2 - cut :], 0)
            assert type(caught.value) is type(refusal(argument))
            assert str(caught.value) == str(refusal(argument))

    @pytest.mark.parametrize("version", [0, 2, 255])
    def test_another_protocol_version_is_refused_with_both_views(self, version):
        with pytest.raises(VersionRefused, match=rf"here is 1, the peer's is {version}"):
            Greeting().feed(bytes((16, version)), 1)

    @pytest.mark.parametrize("descriptors", [0, 2, 253])
    def test_any_number_of_descriptors_but_one_is_a_corrupt_peer(self, descriptors):
        with pytest.raises(CorruptPeer, match=f"{descriptors} descriptors"):
            Greeting().feed(HELLO, descriptors)

    def test_a_descriptor_beside_each_byte_is_one_too_many(self):
        greeting = Greeting()
        greeting.feed(HELLO[:1], 1)
        with pytest.raises(CorruptPeer, match="2 descriptors"):
            greeting.feed(HELLO[1:], 1)


# -- over real sockets: a peer made by hand on the other end ---------------------------------

SPEC = "<Q"
NEEDED = Seal.SHRINK | Seal.GROW | Seal.FUTURE_WRITE | Seal.SEAL
MAX = 1 << 20


@dataclass
class Peer:
    """The end of a connection that the test plays itself."""

    ours: socket.socket  # for the side under test, which takes it
    sock: socket.socket

    def hello(self, *descriptors):
        fdpass.send_fds(self.sock, descriptors, HELLO)

    def heard(self):
        """What our side said, and whether it then hung up; its HELLO must come first."""
        data, fds = fdpass.recv_fds(self.sock, 1, 2)
        for fd in fds:
            fd.close()
        assert (data, len(fds)) == (HELLO, 1)
        return self.heard_bytes()

    def heard_bytes(self):
        self.sock.setblocking(False)
        data = b""
        while True:
            try:
                part = self.sock.recv(100)
            except ConnectionResetError:  # it did not read all that we sent
                part = b""
            if not part:
                return data
            data += part


@pytest.fixture
def peer():
    ours, sock = socket.socketpair()
    with ours, sock:
        yield Peer(ours, sock)


def receiver_of(peer, **options):
    """Our side; a raw peer has spoken before, so that nothing here waits."""
    return Receiver(peer.ours, SPEC, **({"max_segment": MAX} | options))


def refused(peer, kind, reason, **options):
    """Our side refuses the peer with `kind`, tells it `reason`, and lets go of everything."""
    with pytest.raises(QueueError) as caught:
        receiver_of(peer, **options).close()
    assert type(caught.value) is kind
    assert peer.ours.fileno() == -1
    assert peer.heard() == bytes((100, reason))
    return str(caught.value)


@contextlib.contextmanager
def segment_of(slots=4, **changes):
    """A segment like any other, except for the changes in its identity; only ours to write."""
    segment = _segment.create(codec_for(SPEC), slots, "peer")
    raw = ffi.cast("struct ipcq_identity *", segment.mapping.at)
    for field, value in changes.items():
        setattr(raw, field, value)
    try:
        yield segment
    finally:
        raw = None
        segment.close()


def memfd_with(seals, size=8192, flags=0, *, fill=True, whole_header=True):
    """A memory file as a stranger would make it; sealed at last."""
    number = os.memfd_create("stranger", os.MFD_CLOEXEC | flags)
    os.ftruncate(number, size)
    if fill and size:
        os.posix_fallocate(number, 0, size)
    if whole_header:
        with segment_of(512) as template:
            header = ffi.buffer(template.mapping.at, 4096)[:]
        os.pwrite(number, header, 0)
    if seals:
        fd = Memfd(number)
        fd.seal(seals)
        return fd
    return Fd(number)


def write_only_memfd():
    with memfd_with(0, flags=os.MFD_ALLOW_SEALING) as fd:
        again = Memfd(os.open(f"/proc/self/fd/{fd.fileno()}", os.O_WRONLY | os.O_CLOEXEC))
        again.seal(NEEDED)
        return again


def huge_memfd():
    try:
        number = os.memfd_create("huge", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | os.MFD_HUGETLB)
    except OSError as error:
        pytest.skip(f"no memory files of huge pages here: {error}")
    huge = Memfd(number)
    os.ftruncate(number, 2 << 20)
    huge.seal(NEEDED)
    return huge


def one_of(pair):
    pair[1].close()
    return Fd(pair[0].detach() if hasattr(pair[0], "detach") else pair[0])


def pipe(end):
    both = os.pipe()
    os.close(both[1 - end])
    return Fd(both[end])


def epoll():
    with select.epoll() as it:
        return Fd(os.dup(it.fileno()))


def o_path():
    with memfd_with(NEEDED, flags=os.MFD_ALLOW_SEALING) as fd:
        return Fd(os.open(f"/proc/self/fd/{fd.fileno()}", os.O_PATH | os.O_CLOEXEC))


def opened(path, flags=os.O_RDONLY):
    return Fd(os.open(path, flags | os.O_CLOEXEC))


SEALABLE = os.MFD_ALLOW_SEALING
NO_SEGMENT = {
    "reading end of a pipe": lambda: pipe(0),
    "writing end of a pipe": lambda: pipe(1),
    "/dev/null": lambda: opened("/dev/null"),
    "/dev/zero": lambda: opened("/dev/zero", os.O_RDWR),
    "unix socket": lambda: one_of(socket.socketpair()),
    "inet socket": lambda: Fd(socket.socket(socket.AF_INET, socket.SOCK_DGRAM).detach()),
    "epoll": epoll,
    "eventfd": lambda: Fd(os.eventfd(0)),
    "pidfd": lambda: Fd(os.pidfd_open(os.getpid())),
    "directory": lambda: opened("/"),
    "regular file": lambda: opened(__file__),
    "file in /proc": lambda: opened("/proc/self/maps"),
    "O_PATH of a good segment": o_path,
    "memory file without seals": lambda: memfd_with(0, flags=SEALABLE),
    "memory file that cannot be sealed": lambda: memfd_with(0),
    "memory file opened only for writing": write_only_memfd,
    "memory file of huge pages": huge_memfd,
    "memory file that nobody can write": lambda: memfd_with(NEEDED | Seal.WRITE, flags=SEALABLE),
    **{
        f"memory file without {seal.name}": lambda seal=seal: memfd_with(
            NEEDED & ~seal, flags=SEALABLE
        )
        for seal in NEEDED
    },
}
WRONG_SIZE = {
    "empty": lambda: memfd_with(NEEDED, 0, SEALABLE, whole_header=False),
    "one byte": lambda: memfd_with(NEEDED, 1, SEALABLE, whole_header=False),
    "less than a header": lambda: memfd_with(NEEDED, 4095, SEALABLE, whole_header=False),
    "one byte too large": lambda: memfd_with(NEEDED, MAX + 1, SEALABLE),
    "sparse": lambda: memfd_with(NEEDED, 8192, SEALABLE, fill=False),
    "all hole": lambda: memfd_with(NEEDED, 8192, SEALABLE, fill=False, whole_header=False),
}


class TestDescriptors:
    def test_the_good_one_made_by_hand_is_accepted(self, peer):
        with memfd_with(NEEDED, flags=SEALABLE) as fd:
            peer.hello(fd)
            with receiver_of(peer) as receiver:
                assert receiver.capacity == 512

    @pytest.mark.parametrize("what", NO_SEGMENT)
    def test_what_is_no_sealed_memory_file_is_refused(self, peer, what):
        with NO_SEGMENT[what]() as fd:
            peer.hello(fd)
            refused(peer, SealsRefused, Reason.SEALS, max_segment=4 << 20)

    @pytest.mark.parametrize("what", WRONG_SIZE)
    def test_a_size_that_is_none_is_refused(self, peer, what):
        with WRONG_SIZE[what]() as fd:
            peer.hello(fd)
            refused(peer, SizeRefused, Reason.SIZE)

    def test_the_largest_segment_admitted_is_admitted(self, peer):
        with segment_of(4) as segment:
            peer.hello(segment.memfd)
            with receiver_of(peer, max_segment=8192) as receiver:
                assert receiver.capacity == 4

    def test_a_segment_larger_than_admitted_is_refused_with_both_sizes(self, peer):
        with segment_of(1024) as segment:
            peer.hello(segment.memfd)
            message = refused(peer, SizeRefused, Reason.SIZE, max_segment=8192)
        assert "1 to 8192" in message
        assert "12288" in message

    def test_a_segment_of_zeros_is_a_corrupt_peer(self, peer):
        with memfd_with(NEEDED, flags=SEALABLE, whole_header=False) as fd:
            peer.hello(fd)
            refused(peer, CorruptPeer, Reason.PROTOCOL)

    def test_our_own_segment_sent_back_is_a_corrupt_peer(self, peer):
        opening = Opening(peer.ours, Terms(SPEC, BOTH))
        assert advance(opening) is None
        data, fds = fdpass.recv_fds(peer.sock, 1, 2)
        assert data == HELLO
        with fds[0] as own:
            peer.hello(own)
        with pytest.raises(CorruptPeer, match="our own segment"):
            advance(opening)
        assert peer.heard_bytes() == bytes((100, Reason.PROTOCOL))

    def test_two_descriptors_are_a_corrupt_peer(self, peer):
        with segment_of() as first, segment_of() as second:
            peer.hello(first.memfd, second.memfd)
            refused(peer, CorruptPeer, Reason.PROTOCOL)

    def test_a_second_descriptor_with_the_second_byte_is_a_corrupt_peer(self, peer):
        with segment_of() as segment:
            fdpass.send_fds(peer.sock, [segment.memfd], HELLO[:1])
            fdpass.send_fds(peer.sock, [segment.memfd], HELLO[1:])
            refused(peer, CorruptPeer, Reason.PROTOCOL)

    def test_no_descriptor_is_a_corrupt_peer(self, peer):
        peer.sock.send(HELLO)
        refused(peer, CorruptPeer, Reason.PROTOCOL)


class TestIdentities:
    """The peer's segment says what does not fit; our message shows it, the peer gets the reason."""

    @pytest.mark.parametrize(
        ("changes", "kind", "reason", "views"),
        [
            ({"magic": b"NOTMINE!"}, CorruptPeer, Reason.PROTOCOL, ["NOTMINE!", "MEMENPSF"]),
            ({"layout_version": 9}, VersionRefused, Reason.VERSION, ["0x3", "0x9"]),
            ({"byte_order": 0x04030201}, VersionRefused, Reason.VERSION, ["0x1020304"]),
            ({"header_size": 64}, VersionRefused, Reason.VERSION, ["0x1000", "0x40"]),
            ({"slot_size": 9}, RecordRefused, Reason.RECORD, ["[8 bytes: 0:u64]"]),
            ({"fingerprint": b"?" * 16}, RecordRefused, Reason.RECORD, ["[8 bytes: 0:u64]"]),
            ({"capacity": 3}, CorruptPeer, Reason.PROTOCOL, ["3"]),
            ({"capacity": 1024}, CorruptPeer, Reason.PROTOCOL, ["12288", "8192"]),
            ({"segment_size": 4096}, CorruptPeer, Reason.PROTOCOL, ["4128", "4096", "8192"]),
            ({"segment_size": 1 << 40}, CorruptPeer, Reason.PROTOCOL, [str(1 << 40), "8192"]),
            ({"capacity": 0}, RoleRefused, Reason.ROLE, ["receives", "only receives"]),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
    )
    def test_each_misfit_is_refused_with_both_views(self, peer, changes, kind, reason, views):
        with segment_of(4, **changes) as segment:
            peer.hello(segment.memfd)
            message = refused(peer, kind, reason)
        for view in views:
            assert view in message

    def test_control_characters_of_the_peer_reach_nobody(self, peer):
        with segment_of(4) as segment:
            raw = ffi.cast("struct ipcq_identity *", segment.mapping.at)
            evil = b"\x1b]0;owned\x07\r\n\xff\xc2\x9b\xe2\x80\xae!"
            ffi.memmove(raw.name, evil, len(evil))
            ffi.memmove(raw.record, evil, len(evil))
            peer.hello(segment.memfd)
            with receiver_of(peer) as receiver:
                name, text = receiver.peer_name, repr(receiver)
        assert name.isprintable()
        assert text.isprintable()
        assert name.endswith("!")

    def test_control_characters_of_the_peer_reach_no_error_message(self, peer):
        with segment_of(4, fingerprint=b"?" * 16) as segment:
            raw = ffi.cast("struct ipcq_identity *", segment.mapping.at)
            ffi.memmove(raw.record, b"\x1b[2Jwiped\x00", 10)
            peer.hello(segment.memfd)
            message = refused(peer, RecordRefused, Reason.RECORD)
        assert message.isprintable()
        assert "[2Jwiped" in message

    def test_texts_without_an_end_stop_at_their_field(self, peer):
        with segment_of(4) as segment:
            raw = ffi.cast("struct ipcq_identity *", segment.mapping.at)
            ffi.memmove(raw.name, b"n" * 64, 64)
            ffi.memmove(raw.record, b"r" * 512, 512)
            peer.hello(segment.memfd)
            with receiver_of(peer) as receiver:
                assert receiver.peer_name == "n" * 64

    def test_what_the_peer_writes_after_the_handshake_is_not_read_again(self, peer):
        with segment_of(4) as segment:
            peer.hello(segment.memfd)
            with receiver_of(peer) as receiver:
                raw = ffi.cast("struct ipcq_identity *", segment.mapping.at)
                raw.capacity, raw.slot_size, raw.magic = 1 << 40, 1 << 20, bytes(8)
                ffi.memmove(raw.name, b"x" * 64, 64)
                assert (receiver.capacity, receiver.peer_name) == (4, "peer")
                words = ffi.cast("uint64_t *", segment.mapping.at)
                words[512], words[128] = 77, 1  # a record, and head
                assert receiver.pop(timeout=0) == (77,)


class TestGreetings:
    @pytest.mark.parametrize("garbage", [b"GET / HTTP/1.0\r\n\r\n", b"\x00", b"\x01\x01", b"\xff"])
    def test_garbage_is_a_corrupt_peer(self, peer, garbage):
        peer.sock.send(garbage)
        refused(peer, CorruptPeer, Reason.PROTOCOL)

    @pytest.mark.parametrize("reason", [0, *map(int, Reason), 8, 255])
    def test_err_is_the_peers_refusal(self, peer, reason):
        peer.sock.send(bytes((100, reason)))
        with pytest.raises(Refused) as caught:
            receiver_of(peer)
        assert type(caught.value) is type(refusal(reason))
        assert peer.ours.fileno() == -1

    def test_a_refusal_is_heard_even_if_the_peer_has_already_left(self, peer):
        peer.sock.send(bytes((100, Reason.CREDENTIALS)))
        peer.sock.close()
        with pytest.raises(CredentialsRefused):
            receiver_of(peer)

    def test_another_protocol_version_is_refused(self, peer):
        with segment_of() as segment:
            fdpass.send_fds(peer.sock, [segment.memfd], b"\x10\x02")
            refused(peer, VersionRefused, Reason.VERSION)

    def test_hello_may_come_one_byte_at_a_time_and_late(self, peer):
        opening = Opening(peer.ours, Terms(SPEC, RECEIVES))
        assert opening.fileno() == peer.ours.fileno()
        assert opening.events == select.POLLIN | select.POLLOUT
        assert advance(opening) is None
        assert opening.events == select.POLLIN
        with segment_of() as segment:
            fdpass.send_fds(peer.sock, [segment.memfd], HELLO[:1])
            assert advance(opening) is None
            peer.sock.send(HELLO[1:])
            endpoint = advance(opening)
        assert endpoint.capacity == 4
        endpoint.close()

    def test_what_follows_hello_is_left_for_later(self, peer):
        with segment_of() as segment:
            peer.hello(segment.memfd)
            peer.sock.send(b"\x80\x05")
            with receiver_of(peer) as receiver:
                assert receiver.recv_ctrl_msg() == b"\x80\x05"

    @pytest.mark.parametrize("said", [b"", HELLO[:1]])
    def test_a_peer_that_leaves_before_its_hello_is_whole_has_died(self, peer, said):
        peer.sock.send(said) if said else None
        peer.sock.close()
        with pytest.raises(PeerDied):
            receiver_of(peer)
        assert peer.ours.fileno() == -1

    def test_half_a_hello_with_a_descriptor_leaks_nothing(self, peer):
        with segment_of() as segment:
            fdpass.send_fds(peer.sock, [segment.memfd], HELLO[:1])
        peer.sock.close()
        with pytest.raises(PeerDied):
            receiver_of(peer)

    def test_a_peer_that_leaves_without_reading_our_hello_has_died(self, peer):
        opening = Opening(peer.ours, Terms(SPEC, RECEIVES))
        assert advance(opening) is None
        peer.sock.close()  # with our HELLO unread: ECONNRESET for us
        with pytest.raises(PeerDied):
            advance(opening)
        assert peer.ours.fileno() == -1

    @pytest.mark.parametrize("said", [b"", HELLO[:1]])
    def test_a_silent_peer_is_given_up_in_time(self, peer, said):
        peer.sock.send(said) if said else None
        with pytest.raises(HandshakeTimeout, match=r"within 0 s") as caught:
            receiver_of(peer, timeout=0)
        assert isinstance(caught.value, TimeoutError)
        assert peer.ours.fileno() == -1
        assert peer.heard() == bytes((100, Reason.PROTOCOL))

    def test_a_peer_that_has_spoken_needs_no_time(self, peer):
        with segment_of() as segment:
            peer.hello(segment.memfd)
            receiver_of(peer, timeout=0).close()

    def test_the_deadline_is_kept_while_waiting(self, peer):
        with pytest.raises(HandshakeTimeout):
            receiver_of(peer, timeout=0.001)

    def test_the_deadline_can_be_moved_by_who_runs_the_steps(self, peer):
        opening = Opening(peer.ours, Terms(SPEC, RECEIVES, timeout=None))
        assert advance(opening) is None
        opening.deadline = time.monotonic()
        with pytest.raises(HandshakeTimeout):
            advance(opening)

    def test_giving_up_twice_does_no_harm(self, peer):
        opening = Opening(peer.ours, Terms(SPEC, RECEIVES))
        advance(opening)
        opening.abandon()
        opening.abandon()
        assert peer.heard() == b""  # there was no error to tell


class TestCredentials:
    def test_who_is_not_admitted_is_refused_before_we_say_hello(self, peer):
        nobody_here = os.getuid() + 1
        with pytest.raises(CredentialsRefused) as caught:
            receiver_of(peer, allow_uids=[nobody_here])
        assert f"uid {os.getuid()}" in str(caught.value)
        assert str(nobody_here) in str(caught.value)
        assert peer.ours.fileno() == -1
        assert peer.heard_bytes() == bytes((100, Reason.CREDENTIALS))

    def test_nobody_is_admitted_by_an_empty_list(self, peer):
        with pytest.raises(CredentialsRefused):
            receiver_of(peer, allow_uids=())

    def test_who_is_admitted_is_let_in(self, peer):
        with segment_of() as segment:
            peer.hello(segment.memfd)
            with receiver_of(peer, allow_uids={os.getuid()}) as receiver:
                assert receiver.peer == (os.getpid(), os.getuid(), os.getgid())


class TestRoles:
    """Two real ends over one socket pair, step by step in one thread."""

    def openings(self, first, second):
        socks = socket.socketpair()
        both = zip(socks, (first, second), strict=True)
        return [Opening(sock, Terms(SPEC, role)) for sock, role in both]

    @pytest.mark.parametrize("role", [SENDS, RECEIVES], ids=str)
    def test_two_of_a_kind_refuse_each_other(self, role):
        first, second = self.openings(role, role)
        assert advance(first) is None
        with pytest.raises(RoleRefused, match=f"this end {role}, and its peer"):
            advance(second)
        with pytest.raises(RoleRefused):
            advance(first)

    @pytest.mark.parametrize(("picky", "content"), [(SENDS, BOTH), (BOTH, RECEIVES)], ids=str)
    @pytest.mark.parametrize("picky_begins", [True, False])
    def test_an_end_of_both_ways_and_one_of_one_way_part(self, picky, content, picky_begins):
        picky, content = self.openings(picky, content)
        # What suits one of them does not suit the other, which says so.
        if picky_begins:
            assert advance(picky) is None
            endpoint = advance(content)
        else:
            assert advance(content) is None
        with pytest.raises(RoleRefused):
            advance(picky)
        if not picky_begins:
            endpoint = advance(content)
        endpoint.read_if_free()
        with pytest.raises(RoleRefused):
            endpoint.try_pop()
        endpoint.close()

    def test_ends_that_fit_come_together(self):
        first, second = self.openings(SENDS, RECEIVES)
        assert advance(first) is None
        receiver = advance(second)
        sender = advance(first)
        assert sender.try_push((5,))
        assert receiver.try_pop() == (5,)
        sender.close()
        receiver.close()

    def test_records_that_differ_are_refused_on_both_sides_with_both_views(self):
        socks = socket.socketpair()
        first = Opening(socks[0], Terms("<Q", SENDS))
        second = Opening(socks[1], Terms("<d", RECEIVES))
        assert advance(first) is None
        for opening, mine, theirs in ((second, "f64", "u64"), (first, "u64", "f64")):
            with pytest.raises(RecordRefused, match=rf"0:{mine}\].*0:{theirs}\]"):
                advance(opening)


class TestSockets:
    """A constructor takes its socket, also when it fails."""

    @pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
    def test_another_kind_of_unix_socket_is_a_value_error(self, kind):
        ours, other = socket.socketpair(socket.AF_UNIX, kind)
        with other, pytest.raises(ValueError, match="AF_UNIX SOCK_STREAM"):
            Sender(ours, SPEC)
        assert ours.fileno() == -1

    def test_another_family_is_a_value_error(self):
        with socket.create_server(("127.0.0.1", 0)) as server:
            ours = socket.create_connection(server.getsockname())
            with pytest.raises(ValueError, match="AF_UNIX SOCK_STREAM"):
                Receiver(ours, SPEC)
        assert ours.fileno() == -1

    def test_a_socket_without_a_peer_is_an_oserror(self):
        ours = socket.socket(socket.AF_UNIX)
        with pytest.raises(OSError) as caught:
            Sender(ours, SPEC)
        assert caught.value.errno == errno.ENOTCONN
        assert ours.fileno() == -1

    def test_a_closed_socket_is_an_oserror(self, peer):
        peer.ours.close()
        with pytest.raises(OSError) as caught:
            Sender(peer.ours, SPEC)
        assert caught.value.errno == errno.EBADF

    @pytest.mark.parametrize("thing", [5, None, "path", SimpleNamespace(fileno=lambda: 0)])
    def test_a_one_way_end_is_made_of_a_socket_only(self, thing):
        with pytest.raises(TypeError, match="expected a connected AF_UNIX socket"):
            Sender(thing, SPEC)

    @pytest.mark.parametrize(
        ("end", "record", "options", "error"),
        [
            (Sender, bytearray, {}, TypeError),
            (Receiver, "<P", {}, ValueError),
            (Receiver, "P", {}, TypeError),
            (Sender, SPEC, {"capacity": 0}, ValueError),
            (Sender, SPEC, {"capacity": 1.0}, TypeError),
            (Sender, SPEC, {"name": "x" * 65}, ValueError),
            (Receiver, SPEC, {"name": b"x"}, TypeError),
            (Receiver, SPEC, {"timeout": -1}, ValueError),
            (Sender, SPEC, {"timeout": float("nan")}, ValueError),
            (Receiver, SPEC, {"colour": "red"}, TypeError),
        ],
        ids=str,
    )
    def test_bad_options_close_the_socket(self, peer, end, record, options, error):
        with pytest.raises(error):
            end(peer.ours, record, **options)
        assert peer.ours.fileno() == -1
        assert peer.heard_bytes() == b""

    def test_a_pair_that_does_not_fit_leaves_nothing(self):
        with pytest.raises(RecordRefused):
            open_pair(Terms("<Q", SENDS), Terms("<d", RECEIVES))
        with pytest.raises(RoleRefused):
            open_pair(Terms("<Q", SENDS), Terms("<Q", SENDS))


def test_identity_has_the_fields_of_the_header():
    in_c = {name for name, _ in ffi.typeof("struct ipcq_identity").fields}
    assert set(Identity._fields) == in_c | {"names", "reserved"}  # which stand apart
