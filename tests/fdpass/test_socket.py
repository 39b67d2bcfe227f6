"""The blocking door, over real sockets; each test ends with the descriptors it began with."""

import array
import contextlib
import dis
import errno
import fcntl
import os
import resource
import socket
import sys
import threading
import time
from pathlib import Path

import pytest

import fdpass
import fdpass.lowlevel
from fdpass import _rights
from tests.kit.attached import open_descriptors

HERE = str(Path(fdpass.__file__).parent)


def connected(kind):
    left, right = socket.socketpair(socket.AF_UNIX, kind)
    left.settimeout(10)
    right.settimeout(10)
    return left, right


@pytest.fixture(params=[socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM])
def any_pair(request):
    left, right = connected(request.param)
    with left, right:
        yield left, right


@pytest.fixture
def pair():
    left, right = connected(socket.SOCK_STREAM)
    with left, right:
        yield left, right


@pytest.fixture
def null():
    with fdpass.Fd(os.open("/dev/null", os.O_RDONLY)) as fd:
        yield fd


def same_file(one, other):
    return os.path.sameopenfile(one.fileno(), other.fileno())


@contextlib.contextmanager
def room_for(count):
    """Let this process open only `count` more descriptors."""
    spare = [os.dup(0) for _ in range(count + 1)]
    for number in spare:
        os.close(number)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (spare[-1], hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_one_descriptor_arrives_as_the_same_open_file_and_stays_with_the_sender(any_pair, null):
    left, right = any_pair
    fdpass.send_fd(left, null)
    with fdpass.recv_fd(right) as received:
        assert received.fileno() != null.fileno()
        assert same_file(received, null)
    assert not null.closed


def test_numbers_and_anything_with_fileno_can_be_sent(pair, null):
    left, right = pair
    with Path("/dev/zero").open("rb") as file:
        fdpass.send_fds(left, [null.fileno(), null, file, left], b"four")
        data, fds = fdpass.recv_fds(right)
        assert data == b"four"
        for sent, received in zip((null, null, file, left), fds, strict=True):
            with received:
                assert same_file(sent, received)


def test_received_descriptors_do_not_leak_to_exec(pair, null):
    left, right = pair
    os.set_inheritable(null.fileno(), True)
    fdpass.send_fds(left, [null, null])
    for fd in fdpass.recv_fds(right)[1]:
        with fd:
            assert fcntl.fcntl(fd.fileno(), fcntl.F_GETFD) & fcntl.FD_CLOEXEC


@pytest.mark.parametrize("count", [1, 2, 253])
def test_up_to_253_descriptors_travel_in_one_message(any_pair, null, count):
    left, right = any_pair
    fdpass.send_fds(left, [null] * count)
    data, fds = fdpass.recv_fds(right)
    assert data == b"\0"
    assert len(fds) == count
    for fd in fds:
        fd.close()


@pytest.mark.parametrize("count", [0, 254])
def test_another_number_to_send_is_a_value_error_saying_both(pair, null, count):
    with pytest.raises(ValueError, match=f"expected 1 to 253 .*received {count}"):
        fdpass.send_fds(pair[0], [null] * count)


def test_sending_without_data_is_a_value_error(pair, null):
    with pytest.raises(ValueError, match="at least 1 byte"):
        fdpass.send_fds(pair[0], [null], b"")
    with pytest.raises(ValueError, match="at least 1 byte"):
        fdpass.send_fd(pair[0], null, b"")
    with pytest.raises(ValueError, match="at least 1 byte"):
        fdpass.recv_fd(pair[1], b"")


def test_a_closed_descriptor_is_not_sent(pair, null):
    number = os.dup(null.fileno())
    os.close(number)
    null.close()
    for closed in (number, null, -1):
        with pytest.raises(fdpass.ClosedFd):
            fdpass.send_fd(pair[0], closed)


def test_a_closed_socket_is_an_oserror_not_a_closed_descriptor(pair, null):
    for sock in pair:
        sock.close()
    with pytest.raises(OSError) as caught:
        fdpass.send_fd(pair[0], null)
    assert caught.value.errno == errno.EBADF
    with pytest.raises(OSError) as caught:
        fdpass.recv_fd(pair[1])
    assert caught.value.errno == errno.EBADF


def test_a_peer_that_is_gone_is_epipe_without_a_signal(pair, null):
    left, right = pair
    right.close()
    with pytest.raises(BrokenPipeError):
        fdpass.send_fd(left, null)


def test_a_peer_that_left_without_reading_is_a_connection_reset(pair, null):
    left, right = pair
    fdpass.send_fd(left, null)
    right.close()
    with pytest.raises(ConnectionResetError):
        fdpass.recv_fds(left)


def test_a_descriptor_too_many_or_too_few_is_refused_and_closed(any_pair, null):
    left, right = any_pair
    before = open_descriptors()
    fdpass.send_fds(left, [null, null])
    with pytest.raises(fdpass.WrongDescriptors) as caught:
        fdpass.recv_fd(right)
    assert (caught.value.expected, caught.value.received) == (1, 2)
    left.send(b"\0")
    with pytest.raises(fdpass.WrongDescriptors) as caught:
        fdpass.recv_fd(right)
    assert (caught.value.expected, caught.value.received) == (1, 0)
    assert open_descriptors() == before


@pytest.mark.parametrize("limit", [0, 2])
def test_more_descriptors_than_allowed_are_all_closed(any_pair, null, limit):
    left, right = any_pair
    before = open_descriptors()
    fdpass.send_fds(left, [null] * 3)
    with pytest.raises(fdpass.WrongDescriptors) as caught:
        fdpass.recv_fds(right, max_fds=limit)
    assert (caught.value.expected, caught.value.received) == (limit, 3)
    assert open_descriptors() == before


def test_where_none_are_allowed_plain_data_passes(pair):
    pair[0].send(b"plain")
    assert fdpass.recv_fds(pair[1], max_fds=0) == (b"plain", [])


@pytest.mark.parametrize("room", [0, 1, 2])
def test_at_the_limit_of_open_descriptors_those_that_came_are_closed(any_pair, null, room):
    left, right = any_pair
    fdpass.send_fds(left, [null] * 3)
    before = open_descriptors()
    with room_for(room), pytest.raises(fdpass.TruncatedDescriptors) as caught:
        fdpass.recv_fds(right, max_fds=3)
    assert (caught.value.expected, caught.value.received) == (3, room)
    assert open_descriptors() == before


def test_at_the_limit_the_one_descriptor_expected_is_truncated_too(pair, null):
    fdpass.send_fd(pair[0], null)
    with room_for(0), pytest.raises(fdpass.TruncatedDescriptors) as caught:
        fdpass.recv_fd(pair[1])
    assert (caught.value.expected, caught.value.received) == (1, 0)


def test_the_end_of_the_stream_is_nothing_or_disconnected(pair):
    left, right = pair
    left.close()
    assert fdpass.recv_fds(right) == (b"", [])
    with pytest.raises(fdpass.Disconnected):
        fdpass.recv_fd(right)


def test_the_end_in_the_middle_of_a_tag_closes_the_descriptor(pair, null):
    left, right = pair
    fdpass.send_fd(left, null, b"ta")
    left.close()
    with pytest.raises(fdpass.Disconnected, match="expected 3 bytes, received 2"):
        fdpass.recv_fd(right, b"tag")


def test_a_wrong_tag_closes_the_descriptor(any_pair, null):
    left, right = any_pair
    fdpass.send_fd(left, null, b"HELO")
    with pytest.raises(fdpass.WrongTag) as caught:
        fdpass.recv_fd(right, b"EHLO")
    assert (caught.value.expected, caught.value.received) == (b"EHLO", b"HELO")


def test_no_byte_after_the_tag_is_read(pair, null):
    left, right = pair
    fdpass.send_fds(left, [null], b"tagand more")
    left.send(b", and more")
    fdpass.recv_fd(right, b"tag").close()
    assert right.recv(100) == b"and more, and more"


def test_a_tag_in_parts_is_put_together_wherever_the_descriptor_is(pair, null):
    left, right = pair
    fdpass.send_fd(left, null, b"t")
    left.send(b"ag")
    fdpass.recv_fd(right, b"tag").close()
    left.send(b"ta")
    fdpass.send_fd(left, null, b"g")
    fdpass.recv_fd(right, b"tag").close()


def test_bytes_before_a_descriptor_merge_with_its_message_and_bytes_after_do_not(pair, null):
    left, right = pair
    left.send(b"before ")
    fdpass.send_fds(left, [null], b"with")
    left.send(b" after")
    data, [fd] = fdpass.recv_fds(right)
    fd.close()
    assert data == b"before with"
    assert fdpass.recv_fds(right) == (b" after", [])


def test_a_short_read_brings_the_descriptors_with_the_first_part(pair, null):
    left, right = pair
    fdpass.send_fds(left, [null], b"long")
    data, [fd] = fdpass.recv_fds(right, max_data=1)
    fd.close()
    assert data == b"l"
    assert fdpass.recv_fds(right) == (b"ong", [])


@pytest.mark.parametrize("kind", [socket.SOCK_SEQPACKET, socket.SOCK_DGRAM])
def test_a_packet_that_does_not_fit_is_refused_and_its_descriptors_closed(kind, null):
    left, right = connected(kind)
    with left, right:
        before = open_descriptors()
        for receive in (
            lambda: fdpass.recv_fd(right, b"ta"),
            lambda: fdpass.recv_fds(right, max_data=2),
        ):
            fdpass.send_fd(left, null, b"tag")
            with pytest.raises(fdpass.TruncatedData):
                receive()
            assert open_descriptors() == before


@pytest.mark.parametrize("kind", [socket.SOCK_SEQPACKET, socket.SOCK_DGRAM])
def test_a_packet_shorter_than_the_tag_is_refused_at_once(kind, null):
    left, right = connected(kind)
    with left, right:
        fdpass.send_fd(left, null, b"t")
        with pytest.raises(fdpass.WrongTag):
            fdpass.recv_fd(right, b"tag")


def test_an_empty_packet_with_a_descriptor_is_not_the_end_of_the_stream(null):
    left, right = connected(socket.SOCK_SEQPACKET)
    with left, right:
        rights = _rights.pack([null.fileno()])
        left.sendmsg([b""], rights)
        data, [fd] = fdpass.recv_fds(right)
        fd.close()
        assert data == b""
        left.sendmsg([b""], rights)
        with pytest.raises(fdpass.WrongTag):
            fdpass.recv_fd(right)


def test_credentials_beside_253_descriptors_do_not_cut_the_list(pair, null):
    left, right = pair
    right.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    fdpass.send_fds(left, [null] * 253)
    _, fds = fdpass.recv_fds(right)
    assert len(fds) == 253
    for fd in fds:
        fd.close()


def test_a_pidfd_from_the_kernel_is_closed_and_not_counted(pair, null):
    left, right = pair
    so_passpidfd = 76
    try:
        right.setsockopt(socket.SOL_SOCKET, so_passpidfd, 1)
    except OSError:
        pytest.skip("needs Linux 6.5")
    before = open_descriptors()
    fdpass.send_fd(left, null)
    fdpass.recv_fd(right).close()
    left.send(b"plain")
    assert fdpass.recv_fds(right, max_fds=0) == (b"plain", [])
    fdpass.send_fd(left, null, b"a")
    with pytest.raises(fdpass.WrongTag):
        fdpass.recv_fd(right, b"b")
    assert open_descriptors() == before


class Reader(threading.Thread):
    """Receives until the end; keeps what came."""

    def __init__(self, sock):
        super().__init__()
        self.sock, self.data, self.fds = sock, bytearray(), []
        self.start()

    def run(self):
        while True:
            data, fds = fdpass.recv_fds(self.sock)
            self.fds += fds
            if not data:
                return
            self.data += data


@pytest.mark.parametrize("timeout", [None, 10])
def test_a_message_larger_than_the_socket_buffer_arrives_whole_with_one_descriptor(
    pair, null, timeout
):
    left, right = pair
    left.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    left.settimeout(timeout)
    data = os.urandom(1_000_000)
    reader = Reader(right)
    fdpass.send_fds(left, [null], data)
    left.shutdown(socket.SHUT_WR)
    reader.join()
    for fd in reader.fds:
        fd.close()
    assert reader.data == data
    assert len(reader.fds) == 1


def test_a_non_blocking_socket_that_is_full_sends_nothing(pair, null):
    left, right = pair
    left.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while left.send(bytes(100_000)):
            pass
    with pytest.raises(BlockingIOError) as caught:
        fdpass.send_fd(left, null)
    assert not getattr(caught.value, "characters_written", 0)
    left.shutdown(socket.SHUT_WR)
    reader = Reader(right)
    reader.join()
    assert reader.fds == []


def test_a_non_blocking_socket_that_takes_a_part_says_how_much(pair, null):
    left, right = pair
    left.setblocking(False)
    data = os.urandom(1_000_000)
    with pytest.raises(BlockingIOError) as caught:
        fdpass.send_fds(left, [null], data)
    sent = caught.value.characters_written
    left.shutdown(socket.SHUT_WR)
    reader = Reader(right)
    reader.join()
    [fd] = reader.fds
    fd.close()
    assert 0 < sent < len(data)
    assert reader.data == data[:sent]


def test_a_non_blocking_socket_with_nothing_to_read_says_so(pair):
    pair[1].setblocking(False)
    with pytest.raises(BlockingIOError):
        fdpass.recv_fd(pair[1])
    with pytest.raises(BlockingIOError):
        fdpass.recv_fds(pair[1])


def test_the_timeout_of_the_socket_is_respected_and_closes_what_came(pair, null):
    left, right = pair
    right.settimeout(0.01)
    with pytest.raises(TimeoutError):
        fdpass.recv_fds(right)
    before = open_descriptors()
    fdpass.send_fd(left, null, b"t")
    with pytest.raises(TimeoutError):
        fdpass.recv_fd(right, b"tag")
    assert open_descriptors() == before
    left.settimeout(0.01)
    with pytest.raises(TimeoutError):
        fdpass.send_fds(left, [null], bytes(10_000_000))


@pytest.fixture
def naps(monkeypatch):
    """What was slept; nobody sleeps."""
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    return slept


def refuse(monkeypatch, times):
    real, refusals = socket.socket.sendmsg, iter(range(times))

    def sendmsg(sock, *arguments):
        for _ in refusals:
            raise OSError(errno.ETOOMANYREFS, os.strerror(errno.ETOOMANYREFS))
        return real(sock, *arguments)

    monkeypatch.setattr(socket.socket, "sendmsg", sendmsg)


def test_too_many_descriptors_in_flight_are_tried_again(pair, null, naps, monkeypatch):
    refuse(monkeypatch, 3)
    fdpass.send_fd(pair[0], null)
    fdpass.recv_fd(pair[1]).close()
    assert naps == list(_rights.RETRY_DELAYS[:3])


def test_too_many_descriptors_in_flight_end_in_an_error(pair, null, naps, monkeypatch):
    refuse(monkeypatch, 1000)
    pair[0].settimeout(None)
    with pytest.raises(fdpass.TooManyInFlight):
        fdpass.send_fd(pair[0], null)
    assert naps == list(_rights.RETRY_DELAYS)


def test_too_many_descriptors_in_flight_do_not_block_a_non_blocking_socket(
    pair, null, naps, monkeypatch
):
    refuse(monkeypatch, 1000)
    pair[0].setblocking(False)
    with pytest.raises(fdpass.TooManyInFlight):
        fdpass.send_fd(pair[0], null)
    assert naps == []


class Interrupter:
    """Raises KeyboardInterrupt in fdpass at the n-th place where a signal handler could run.

    CPython looks for signals when a function starts, after a call and at a jump backwards.
    """

    def __init__(self, nth):
        self.left, self.fired, self.last = nth, False, {}

    def __call__(self, frame, event, arg):
        if not frame.f_code.co_filename.startswith(HERE):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        before = self.last.get(frame, "")
        now = self.last[frame] = dis.opname[frame.f_code.co_code[frame.f_lasti]]
        # PUSH_EXC_INFO: the call raised instead of returning, and no signal is looked for.
        after = before.startswith(("CALL", "JUMP_BACK")) and now != "PUSH_EXC_INFO"
        if event == "call" or (event == "opcode" and after):
            self.left -= 1
            if self.left < 0:
                self.fired = True
                raise KeyboardInterrupt
        return self


def interrupted_everywhere(prepare, receive):
    """Call receive() with an interrupt at each place in turn; count places and leaks."""
    for nth in range(10_000):
        prepare()
        before = open_descriptors()
        interrupter = Interrupter(nth)
        tracer = sys.gettrace()
        with contextlib.suppress(KeyboardInterrupt, fdpass.FdPassError):
            sys.settrace(interrupter)
            try:
                result = receive()
            finally:
                sys.settrace(tracer)
            for fd in result:
                fd.close()
        result = None
        interrupter.last.clear()
        assert open_descriptors() == before, f"a descriptor leaked at place {nth}"
        if not interrupter.fired:
            return nth
    raise AssertionError("the call does not end")


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # closed by the collector is closed too
@pytest.mark.parametrize(
    ("count", "receive"),
    [
        (1, lambda sock: [fdpass.recv_fd(sock, b"tag")]),
        (2, lambda sock: [fdpass.recv_fd(sock, b"tag")]),
        (2, lambda sock: fdpass.recv_fds(sock)[1]),
    ],
    ids=["one", "refused", "some"],
)
def test_an_interrupt_at_any_place_of_receiving_leaks_nothing(count, receive, null, monkeypatch):
    ends, unraisable = [], []
    monkeypatch.setattr(sys, "unraisablehook", lambda it: unraisable.append(it.exc_type))

    def prepare():
        for end in ends:
            end.close()
        ends[:] = connected(socket.SOCK_STREAM)
        fdpass.send_fds(ends[0], [null] * count, b"t")
        ends[0].send(b"ag....")

    try:
        assert interrupted_everywhere(prepare, lambda: receive(ends[1])) > 20
    finally:
        for end in ends:
            end.close()
    # An interrupt in a __del__ is swallowed by Python; a descriptor closed twice would be here.
    assert set(unraisable) <= {KeyboardInterrupt}


def test_credentials_of_a_pair_are_our_own(pair):
    assert fdpass.peer_credentials(pair[0]) == (os.getpid(), os.getuid(), os.getgid())
    assert fdpass.peer_credentials(pair[0]).uid == os.getuid()


def test_credentials_of_another_family_are_refused():
    with (
        socket.socket(socket.AF_INET) as sock,
        pytest.raises(ValueError, match=r"AF_UNIX.*AF_INET"),
    ):
        fdpass.peer_credentials(sock)


def test_credentials_of_nobody_are_not_invented():
    with socket.socket(socket.AF_UNIX) as sock, pytest.raises(OSError) as caught:
        fdpass.peer_credentials(sock)
    assert caught.value.errno == errno.ENOTCONN


def test_the_helper_of_these_tests_finds_a_leak(pair, null):
    def leaky():
        anc = pair[1].recvmsg(1, 100, socket.MSG_CMSG_CLOEXEC)[1]
        leaked.extend(array.array("i", anc[0][2]))
        return []

    leaked = []
    with pytest.raises(AssertionError, match="leaked at place 0"):
        interrupted_everywhere(lambda: fdpass.send_fd(pair[0], null), leaky)
    for number in leaked:
        os.close(number)


def test_a_byte_out_of_band_comes_in_its_place_with_its_descriptor(pair, null):
    left, right = pair
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [null.fileno()]))]
    left.sendmsg([b"x"], rights, socket.MSG_OOB)
    left.send(b"y")
    with fdpass.recv_fd(right, b"x") as fd:
        assert os.path.sameopenfile(fd.fileno(), null.fileno())
    assert right.recv(2) == b"y"


@pytest.mark.parametrize("receive", [fdpass.recv_fds, fdpass.lowlevel.recv_fds_and_pidfd])
@pytest.mark.parametrize("wrong", [-5, -1, 254, 1 << 40])
def test_how_many_descriptors_to_expect_is_checked_first(receive, wrong):
    first, second = socket.socketpair()
    with first, second, pytest.raises(ValueError, match=f"max_fds of 0 to 253, received {wrong}"):
        receive(first, wrong)
