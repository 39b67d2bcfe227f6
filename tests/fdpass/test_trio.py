"""The door for Trio: the same verbs, cancellable without losing a descriptor."""

import errno
import os
import socket
from pathlib import Path

import pytest
import trio
import trio.testing

import fdpass
import fdpass.trio
from fdpass import _rights
from tests.kit.attached import open_descriptors


@pytest.fixture
def null():
    with fdpass.Fd(os.open("/dev/null", os.O_RDONLY)) as fd:
        yield fd


@pytest.fixture
async def pair():
    left, right = trio.socket.socketpair()
    with left, right:
        yield left, right


def test_nothing_else_imports_trio():
    here = Path(fdpass.__file__).parent
    users = [path.name for path in here.glob("*.py") if "import trio" in path.read_text()]
    assert users == ["trio.py"]


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM])
async def test_one_descriptor_arrives_as_the_same_open_file(kind, null):
    left, right = trio.socket.socketpair(socket.AF_UNIX, kind)
    with left, right:
        await fdpass.trio.send_fd(left, null, b"tag")
        with await fdpass.trio.recv_fd(right, b"tag") as fd:
            assert os.fstat(fd.fileno()).st_rdev == os.fstat(null.fileno()).st_rdev
            assert not os.get_inheritable(fd.fileno())


async def test_streams_serve_as_well_as_sockets(pair, null):
    left, right = map(trio.SocketStream, pair)
    await fdpass.trio.send_fds(left, [null] * 253, b"many")
    data, fds = await fdpass.trio.recv_fds(right)
    assert (data, len(fds)) == (b"many", 253)
    for fd in fds:
        fd.close()


async def test_a_receiver_waits_for_what_comes_later(pair, null):
    async def receive():
        (await fdpass.trio.recv_fd(pair[1], b"tag")).close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        await fdpass.trio.send_fd(pair[0], null, b"t")
        await trio.testing.wait_all_tasks_blocked()
        await pair[0].send(b"ag")


async def test_a_message_larger_than_the_socket_buffer_arrives_whole(pair, null):
    left, right = pair
    left.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    sent, received, fds = os.urandom(1_000_000), bytearray(), []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fdpass.trio.send_fds, left, [null], sent)
        while len(received) < len(sent):
            data, more = await fdpass.trio.recv_fds(right)
            received += data
            fds += more
    [fd] = fds
    fd.close()
    assert received == sent


async def test_every_call_is_a_checkpoint(pair, null):
    left, right = pair
    with trio.testing.assert_checkpoints():
        await fdpass.trio.send_fd(left, null)
    with trio.testing.assert_checkpoints():
        (await fdpass.trio.recv_fd(right)).close()
    with trio.testing.assert_checkpoints():
        await fdpass.trio.send_fds(left, [null])
    with trio.testing.assert_checkpoints():
        _, [fd] = await fdpass.trio.recv_fds(right)
    fd.close()


@pytest.mark.parametrize("receive", [fdpass.trio.recv_fd, fdpass.trio.recv_fds])
async def test_a_cancelled_call_leaves_the_message_for_the_next(pair, null, receive):
    await fdpass.trio.send_fd(pair[0], null)
    with trio.CancelScope() as scope:
        scope.cancel()
        await receive(pair[1])
    assert scope.cancelled_caught
    (await fdpass.trio.recv_fd(pair[1])).close()


async def test_a_cancelled_send_sends_nothing(pair, null):
    with trio.CancelScope() as scope:
        scope.cancel()
        await fdpass.trio.send_fd(pair[0], null)
    assert scope.cancelled_caught
    pair[0].close()
    assert await fdpass.trio.recv_fds(pair[1]) == (b"", [])


@pytest.mark.parametrize("cancel_first", [True, False])
async def test_cancelling_as_the_message_comes_loses_no_descriptor(pair, null, cancel_first):
    received = []

    async def receive():
        with scope:
            received.append(await fdpass.trio.recv_fd(pair[1]))

    async def send():
        with trio.CancelScope(shield=True):
            await pair[0].sendmsg([b"\0"], _rights.pack([null.fileno()]))

    scope = trio.CancelScope()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        if cancel_first:
            scope.cancel()
        await send()
        scope.cancel()
    assert scope.cancelled_caught == (not received)
    if not received:
        received.append(await fdpass.trio.recv_fd(pair[1]))
    received[0].close()


async def test_cancelling_after_a_part_of_the_message_closes_what_came(pair, null):
    before = open_descriptors()
    await fdpass.trio.send_fd(pair[0], null, b"t")
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fdpass.trio.recv_fd, pair[1], b"tag")
            await trio.testing.wait_all_tasks_blocked()
            assert open_descriptors() == before + 1
            scope.cancel()
    assert open_descriptors() == before


async def test_an_interrupt_comes_only_where_nothing_is_lost(pair, null, monkeypatch):
    real, protected = type(pair[1]).recvmsg, []

    async def recvmsg(sock, *arguments):
        protected.append(trio.lowlevel.currently_ki_protected())
        return await real(sock, *arguments)

    monkeypatch.setattr(type(pair[1]), "recvmsg", recvmsg)
    await fdpass.trio.send_fds(pair[0], [null])
    (await fdpass.trio.recv_fd(pair[1])).close()
    await fdpass.trio.send_fds(pair[0], [null])
    (await fdpass.trio.recv_fds(pair[1]))[1][0].close()
    assert protected == [True, True]
    assert not trio.lowlevel.currently_ki_protected()


async def test_the_end_of_the_stream_has_both_names(pair):
    await trio.SocketStream(pair[0]).aclose()
    assert await fdpass.trio.recv_fds(pair[1]) == (b"", [])
    for name in (fdpass.trio.Disconnected, fdpass.Disconnected, trio.EndOfChannel, EOFError):
        with pytest.raises(name, match="expected 1 bytes, received 0"):
            await fdpass.trio.recv_fd(pair[1])


async def test_a_peer_that_is_gone_is_a_broken_resource(pair, null):
    left, right = pair
    await fdpass.trio.send_fd(left, null)
    right.close()
    for use in (fdpass.trio.recv_fd(left), fdpass.trio.send_fd(left, null)):
        with pytest.raises(trio.BrokenResourceError) as caught:
            await use
        assert caught.value.__cause__.errno in (errno.EPIPE, errno.ECONNRESET)


async def test_a_socket_closed_here_is_a_closed_resource(pair, null):
    for sock in pair:
        sock.close()
    for use in (
        fdpass.trio.recv_fd(pair[0]),
        fdpass.trio.recv_fds(pair[0]),
        fdpass.trio.send_fd(pair[0], null),
    ):
        with pytest.raises(trio.ClosedResourceError):
            await use


async def test_closing_the_socket_wakes_a_receiver(pair):
    async def receive():
        with pytest.raises(trio.ClosedResourceError):
            await fdpass.trio.recv_fd(pair[1])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        pair[1].close()


async def test_a_closed_descriptor_is_ours_not_the_socket(pair, null):
    number = os.dup(null.fileno())
    os.close(number)
    null.close()
    for closed in (number, null):
        with pytest.raises(fdpass.ClosedFd):
            await fdpass.trio.send_fd(pair[0], closed)


@pytest.mark.parametrize("count", [0, 254])
async def test_another_number_to_send_is_a_value_error(pair, null, count):
    with pytest.raises(ValueError, match=f"received {count}"):
        await fdpass.trio.send_fds(pair[0], [null] * count)


async def test_what_is_not_expected_is_refused_and_closed(pair, null):
    left, right = pair
    before = open_descriptors()
    await fdpass.trio.send_fds(left, [null, null])
    with pytest.raises(fdpass.WrongDescriptors):
        await fdpass.trio.recv_fd(right)
    await fdpass.trio.send_fds(left, [null, null])
    with pytest.raises(fdpass.WrongDescriptors):
        await fdpass.trio.recv_fds(right, max_fds=0)
    await fdpass.trio.send_fd(left, null, b"a")
    with pytest.raises(fdpass.WrongTag):
        await fdpass.trio.recv_fd(right, b"b")
    assert open_descriptors() == before


async def test_a_datagram_that_does_not_fit_is_refused_and_its_descriptor_closed(null):
    left, right = trio.socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with left, right:
        before = open_descriptors()
        await fdpass.trio.send_fd(left, null, b"long")
        with pytest.raises(fdpass.TruncatedData):
            await fdpass.trio.recv_fds(right, max_data=1)
        assert open_descriptors() == before


@pytest.mark.parametrize("times", [3, 1000])
async def test_a_task_tries_too_many_descriptors_in_flight_again(
    pair, null, times, monkeypatch, autojump_clock
):
    real, refusals = type(pair[0]).sendmsg, iter(range(times))

    async def sendmsg(sock, *arguments):
        for _ in refusals:
            raise OSError(errno.ETOOMANYREFS, os.strerror(errno.ETOOMANYREFS))
        return await real(sock, *arguments)

    monkeypatch.setattr(type(pair[0]), "sendmsg", sendmsg)
    start = trio.current_time()
    if times > len(_rights.RETRY_DELAYS):
        with pytest.raises(fdpass.TooManyInFlight):
            await fdpass.trio.send_fd(pair[0], null)
        expected = sum(_rights.RETRY_DELAYS)
    else:
        await fdpass.trio.send_fd(pair[0], null)
        (await fdpass.trio.recv_fd(pair[1])).close()
        expected = sum(_rights.RETRY_DELAYS[:times])
    assert trio.current_time() - start == pytest.approx(expected)


async def test_credentials_of_a_trio_socket_can_be_asked(pair):
    assert fdpass.peer_credentials(pair[0]).pid == os.getpid()


async def test_a_byte_out_of_band_comes_in_its_place(pair):
    left, right = pair
    await left.send(b"x", socket.MSG_OOB)
    assert await fdpass.trio.recv_fds(right) == (b"x", [])
