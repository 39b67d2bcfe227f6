"""What a stranger sent is closed without waiting for what his files wait for."""

import _thread
import contextlib
import math
import os
import resource
import socket
import subprocess
import sys
import time
import types

import pytest

import fdpass
import fdpass.lowlevel
from fdpass import Fd, _untrusted
from tests.kit.lingering import lingering, queued
from tests.kit.settling import settle

pytestmark = pytest.mark.deadline(15)  # which is waiting in vain


@pytest.fixture(autouse=True)
def _nobody_was_late(monkeypatch):
    monkeypatch.setattr(_untrusted, "_last_late", -_untrusted.IMPATIENCE)


@pytest.fixture
def pair():
    left, right = socket.socketpair()
    with left, right:
        yield left, right


@pytest.fixture
def slow():
    """Make descriptors whose close(2) waits until the test is over, or `slow.pop_all()`."""
    with contextlib.ExitStack() as stack:
        stack.make = lambda: Fd(stack.enter_context(queued()).detach())
        yield stack
    settle()


@pytest.fixture
def thread_module(monkeypatch):
    """Replace functions of `_thread`, for fdpass alone."""

    def replace(**functions):
        real = {name: getattr(_thread, name) for name in ("allocate_lock", "start_new_thread")}
        monkeypatch.setattr(_untrusted, "_thread", types.SimpleNamespace(**(real | functions)))

    return replace


@pytest.fixture(params=[RuntimeError, MemoryError])
def no_thread(request, thread_module):
    def start(*_):
        raise request.param

    thread_module(start_new_thread=start)


def null():
    return Fd(os.open("/dev/null", os.O_RDONLY))


def is_open(number):
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def sent_away(sock, data, *descriptors):
    """Send descriptors, and close them here."""
    fdpass.send_fds(sock, descriptors, data)
    for each in descriptors:
        each.close()


def until(condition):
    """Wait for what a thread does; the test's deadline is that of the waiting."""
    while not condition():
        time.sleep(0.0001)


@pytest.fixture(autouse=True)
def _no_places_of_the_dead():
    """Begin without threads of other tests that ended without a word, whose places are kept."""
    settle()
    _untrusted._threads.clear()


# -- descriptors that were received ---------------------------------------------------------------


def test_who_closes_waits_for_no_file_and_for_no_second_one_a_moment(
    slow, thread_module, monkeypatch
):
    asked = []

    class Lock:
        def __init__(self):
            self.real = _thread.allocate_lock()
            self.release = self.real.release

        def acquire(self, timeout=None):
            asked.append(timeout)
            return self.real.acquire() if timeout is None else self.real.acquire(timeout=timeout)

    thread_module(allocate_lock=Lock)
    fds = [slow.make() for _ in range(3)]
    for fd in fds:
        fdpass.close_untrusted([fd])
    until(lambda: all(fd.closed for fd in fds))
    until(lambda: len(_untrusted._threads) == 3)
    assert [each for each in asked if each is not None] == [_untrusted.PATIENCE]
    slow.close()
    settle()
    monkeypatch.setattr(_untrusted, "IMPATIENCE", 0.0)  # it is long ago
    before = len(asked)
    fdpass.close_untrusted([null()])
    assert _untrusted.PATIENCE in asked[before:]


def test_what_can_be_closed_at_once_is_closed_when_it_returns(monkeypatch):
    monkeypatch.setattr(_untrusted, "PATIENCE", 60)  # this machine may be busy
    fds = [null() for _ in range(253)]
    numbers = [fd.fileno() for fd in fds]
    fds[7].close()
    fdpass.close_untrusted(fds)
    assert all(fd.closed for fd in fds)
    assert not any(map(is_open, numbers))
    fdpass.close_untrusted(fds)  # again does nothing


@pytest.mark.parametrize("patient", [True, False])
def test_one_that_takes_long_keeps_no_other_open(slow, patient, monkeypatch):
    if not patient:
        monkeypatch.setattr(_untrusted, "IMPATIENCE", math.inf)
    others = [null() for _ in range(20)]
    fdpass.close_untrusted([*others[:10], slow.make(), slow.make(), *others[10:]])
    until(lambda: all(fd.closed for fd in others))
    until(lambda: len(_untrusted._threads) == 2)  # and the other threads end


@pytest.mark.parametrize("file", ["memory", "pipe"])
def test_what_never_waits_needs_no_thread(file, thread_module):
    started = []
    thread_module(start_new_thread=lambda *_: started.append(1))
    fds = [*map(Fd, os.pipe())] if file == "pipe" else [fdpass.Memfd.create("m", 4096)]
    numbers = [fd.fileno() for fd in fds]
    fdpass.close_untrusted(fds)
    assert not any(map(is_open, numbers))
    assert not started


def test_where_there_is_no_thread_to_be_had_it_closes_all_the_same(no_thread):
    fds = [null(), null()]
    numbers = [fd.fileno() for fd in fds]
    fdpass.close_untrusted(fds)
    assert not any(map(is_open, numbers))
    assert not _untrusted._threads
    settle()


def test_where_there_is_no_memory_it_closes_all_the_same(thread_module):
    def fail(*_):
        raise MemoryError

    thread_module(allocate_lock=fail)
    number = (fd := null()).fileno()
    fdpass.close_untrusted([fd])
    assert fd.closed
    assert not is_open(number)


def test_what_somebody_else_closes_meanwhile_is_not_closed_twice(thread_module):
    """As a signal handler may, or another thread."""
    fds = [null(), null()]

    def start(*arguments):
        if not others:  # or a second thread that is late finds them open
            for fd in fds:
                fd.close()
            others.extend([null(), null()])  # which get the numbers
        return _thread.start_new_thread(*arguments)

    others = []
    thread_module(start_new_thread=start)
    numbers = [fd.fileno() for fd in fds]
    fdpass.close_untrusted(fds)
    settle()
    assert [fd.fileno() for fd in others] == numbers
    assert all(map(is_open, numbers))
    for fd in others:
        fd.close()


def test_if_all_threads_wait_the_next_one_waits_for_them_open(slow, monkeypatch):
    monkeypatch.setattr(_untrusted, "MAX_THREADS", 2)
    first = [slow.make(), slow.make()]
    fdpass.close_untrusted(first)
    until(lambda: all(fd.closed for fd in first))
    number = (fd := null()).fileno()
    fdpass.close_untrusted([fd])
    assert is_open(number)
    until(lambda: len(_untrusted._threads) == 2)
    slow.close()
    settle()
    assert fd.closed
    assert not is_open(number)


def test_a_forked_child_counts_no_thread_of_its_parent(slow, monkeypatch, forked):
    monkeypatch.setattr(_untrusted, "MAX_THREADS", 1)
    fdpass.close_untrusted([slow.make()])

    def child():
        number = (fd := null()).fileno()
        fdpass.close_untrusted([fd])
        settle()
        assert not is_open(number)

    assert forked(child) == 0


def without_beginning(*_):
    """Start a thread that has no memory for its first call: what it was given is let go of."""
    return 1


def test_threads_that_could_not_begin_keep_no_place(thread_module, monkeypatch):
    monkeypatch.setattr(_untrusted, "IMPATIENCE", math.inf)  # so nobody looks how it went
    thread_module(start_new_thread=without_beginning)
    fds = [null() for _ in range(_untrusted.MAX_THREADS + 10)]
    numbers = [fd.fileno() for fd in fds]
    for fd in fds:
        fdpass.close_untrusted([fd])
    assert all(map(is_open, numbers))
    thread_module()
    fdpass.close_untrusted([null()])
    settle()
    assert not any(map(is_open, numbers))
    assert len(_untrusted._threads) < _untrusted.MAX_THREADS


def test_what_a_thread_that_could_not_begin_leaves_is_closed_by_who_waits_for_it(thread_module):
    thread_module(start_new_thread=without_beginning)
    fds = [null(), null()]
    numbers = [fd.fileno() for fd in fds]
    fdpass.close_untrusted(fds)
    assert not any(map(is_open, numbers))
    assert _untrusted._last_late == -_untrusted.IMPATIENCE  # no file has taken long


def test_a_thread_waits_where_another_could_not_begin(slow, thread_module, monkeypatch):
    monkeypatch.setattr(_untrusted, "MAX_THREADS", 2)
    fdpass.close_untrusted([slow.make()])  # takes long, so nobody is waited for from now on
    thread_module(start_new_thread=without_beginning)
    left = null()
    fdpass.close_untrusted([left])
    assert len(_untrusted._threads) == 2
    thread_module()
    fdpass.close_untrusted([null()])
    until(lambda: left.closed)


@pytest.mark.parametrize("error", [MemoryError, SystemExit])
def test_a_thread_that_dies_leaves_its_place_and_the_rest_to_others(
    error, monkeypatch, thread_module
):
    monkeypatch.setattr(_untrusted, "IMPATIENCE", math.inf)
    close = _untrusted._close

    def work(function, arguments):
        with contextlib.suppress(error):
            function(*arguments)
        return 1

    def dies(fd):
        raise error

    thread_module(start_new_thread=work)
    monkeypatch.setattr(_untrusted, "_close", dies)
    fds = [null(), null()]
    numbers = [fd.fileno() for fd in fds]
    fdpass.close_untrusted(fds)
    assert not _untrusted._threads
    assert all(map(is_open, numbers))
    monkeypatch.setattr(_untrusted, "_close", close)
    fdpass.close_untrusted([null()])
    assert not any(map(is_open, numbers))


@pytest.mark.parametrize("where", ["blank", "own"])
@pytest.mark.parametrize("error", [MemoryError, SystemError])
def test_a_thread_without_memory_to_prepare_closes_all_the_same(where, error, monkeypatch):
    def fail(*_):
        raise error

    number = (fd := null()).fileno()
    monkeypatch.setattr(Fd, where, fail)
    fdpass.close_untrusted([fd])
    settle()
    assert not is_open(number)


def test_an_interrupt_before_a_thread_begins_leaves_the_rest_to_the_next(thread_module):
    def start(*_):
        raise KeyboardInterrupt

    thread_module(start_new_thread=start)
    number = (fd := null()).fileno()
    with pytest.raises(KeyboardInterrupt):
        fdpass.close_untrusted([fd])
    assert not _untrusted._threads
    assert is_open(number)
    thread_module()
    fdpass.close_untrusted([null()])
    settle()
    assert not is_open(number)


def test_a_forked_child_closes_what_still_waited_for_a_thread_of_its_parent(
    slow, monkeypatch, forked
):
    monkeypatch.setattr(_untrusted, "MAX_THREADS", 1)
    fdpass.close_untrusted([slow.make()])
    number = (fd := null()).fileno()
    fdpass.close_untrusted([fd])

    def child():
        assert is_open(number)
        fdpass.close_untrusted([null()])
        settle()
        assert not is_open(number)

    assert forked(child) == 0
    assert is_open(number)


def test_at_the_end_of_the_interpreter_it_closes_and_waits_for_nobody():
    program = (
        "import atexit, os, sys, fdpass\n"
        "from fdpass import _untrusted\n"
        "def last():\n"
        "    fd = fdpass.Fd(os.open('/dev/null', os.O_RDONLY))\n"
        "    fdpass.close_untrusted([fd])\n"
        "    while not fd.closed: pass\n"
        "    os.write(1, b'closed')\n"
        "atexit.register(last)\n"
    )
    command = [sys.executable, "-W", "error", "-c", program]
    run = subprocess.run(command, capture_output=True, check=True, timeout=60)
    assert (run.stdout, run.stderr) == (b"closed", b"")


def test_what_is_refused_is_closed_even_if_no_number_is_left(pair):
    left, right = pair
    with lingering() as given:
        sent_away(left, b"x", given, null())
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        free = os.open("/dev/null", os.O_RDONLY)
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free + 2, hard))
        try:
            with pytest.raises(fdpass.WrongDescriptors):
                fdpass.recv_fds(right, max_fds=1)
            settle()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_socket_of_a_family_with_options_of_its_own_is_refused_like_any_other(pair):
    left, right = pair
    try:
        given = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    except (OSError, AttributeError):
        pytest.skip("sockets of this family are not to be had here")
    with given:
        fdpass.send_fds(left, [given])
    with pytest.raises(fdpass.WrongDescriptors):
        fdpass.recv_fds(right, max_fds=0)


@pytest.mark.parametrize("receive", [fdpass.recv_fd, lambda sock: fdpass.recv_fds(sock, max_fds=0)])
def test_who_receives_what_he_refuses_does_not_wait_for_it(receive, pair, slow):
    sent_away(pair[0], b"no", slow.make())
    with pytest.raises(fdpass.FdPassError):
        receive(pair[1])
    until(lambda: not _untrusted._waiting)
    until(lambda: len(_untrusted._threads) == 1)  # and those that found nothing to do end


@pytest.mark.parametrize("kind", [fdpass.Memfd, fdpass.MemoryRegion])
def test_who_takes_for_memory_what_is_none_does_not_wait_for_it(kind, slow):
    fds = [slow.make(), slow.make()]
    with pytest.raises(fdpass.WrongType):
        kind.adopt(*([fds] if kind is fdpass.MemoryRegion else fds[:1]), max_size=4096)
    assert _untrusted._threads
    fdpass.close_untrusted(fds)
    until(lambda: all(fd.closed for fd in fds))


# -- a socket -------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lingering, queued])
def test_a_socket_is_dropped_without_waiting_for_what_was_sent_into_it(make, pair):
    left, right = pair
    left.send(b"before")
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            sent_away(left, b"x" * 10, stack.enter_context(make()))
        left.send(b"behind")
        fdpass.drop_socket(right)
        until(lambda: len(_untrusted._threads) == 1)
    settle()
    assert right.fileno() == -1
    with pytest.raises(ConnectionResetError):
        left.recv(1)
    fdpass.drop_socket(right)  # again does nothing


@pytest.mark.parametrize("before", [b"", b"before"])
def test_so_it_is_where_they_came_out_of_band(before, pair, slow):
    left, right = pair
    left.send(before)
    with slow.make() as given:
        rights = socket.SOL_SOCKET, socket.SCM_RIGHTS, given.fileno().to_bytes(4, "little")
        left.sendmsg([b"x"], [rights], socket.MSG_OOB)
    fdpass.drop_socket(right)
    assert right.fileno() == -1
    until(lambda: len(_untrusted._threads) == 1)
    until(lambda: not _untrusted._waiting)


def test_a_socket_into_which_no_descriptors_were_sent_needs_no_thread(pair, thread_module):
    started = []
    thread_module(start_new_thread=lambda *_: started.append(1))
    left, right = pair
    fdpass.lowlevel.pass_pidfd(right)
    right.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    left.send(b"something" * 20_000)
    fdpass.drop_socket(right)
    assert right.fileno() == -1
    assert not started
    assert left.recv(1) == b""  # and not a reset


def test_a_socket_is_dropped_where_there_is_no_thread_to_be_had(pair, no_thread):
    left, right = pair
    sent_away(left, b"x", null())
    fdpass.drop_socket(right)
    assert right.fileno() == -1
    settle()


def test_dropping_a_socket_ends_it_for_a_peer_that_goes_on_sending(pair):
    left, right = pair
    left.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            left.send(bytes(4096))
    fdpass.drop_socket(right)
    with pytest.raises(BrokenPipeError):
        left.send(b"x")
