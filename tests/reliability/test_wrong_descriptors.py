"""Wrong descriptors of every kind, with every opcode, in any number, at any moment.

Each is refused with an error that says what was expected and what came; none stays open, none
makes anybody wait, and the next client is served.
"""

import contextlib
import gc
import os
import re
import socket
from pathlib import Path

import pytest

import fdpass
import memenpsf
from ipcqueue import CorruptPeer, EndOfStream, PeerDied, QueueError, Refused, VersionRefused
from ipcqueue._records.spec import codec_for
from ipcqueue._ring import segment as _segment
from ipcqueue.lowlevel import Opening, Role, Terms, advance
from tests.kit.connected import quick_collector  # noqa: F401 (the fixture)
from tests.kit.hostile import ERR, FDS, OUT_OF_LINE, Hostile, place
from tests.kit.lingering import lingering, queued
from tests.kit.settling import settle
from tests.reliability import campaign, wrong

BOTH = Role(sends=True, receives=True)
HELLO = 16
GOOD = bytes((HELLO, 1))

every_kind = pytest.mark.parametrize("name", wrong.KINDS)


def left_open():
    settle()
    return os.listdir("/proc/self/fd"), Path("/proc/self/maps").read_text().count("/memfd:")  # noqa: PTH208


@contextlib.contextmanager
def nothing_stays():
    """What is open and mapped afterwards is what was before, without the garbage collector."""
    before = left_open()
    gc.disable()
    try:
        yield
        assert left_open() == before
    finally:
        gc.enable()


def refused(say, **options):
    """What a handshake is refused with by a side to which `say(sock)` has spoken."""
    ours, theirs = socket.socketpair()
    with theirs:
        say(theirs)
        opening = Opening(ours, Terms(wrong.SPEC, BOTH, capacity=4, max_segment=wrong.MAX))
        with pytest.raises(QueueError) as caught:
            assert advance(opening) is None
            theirs.shutdown(socket.SHUT_WR)  # where it waits for more, there is none
            advance(opening)
        assert ours.fileno() == -1
        return caught.value


def given(data, *numbers):
    return lambda sock: fdpass.send_fds(sock, numbers, data)


# -- in the handshake -----------------------------------------------------------------------------


def test_there_are_kinds_enough():
    # Those whose name does not depend on a size or a field of a good segment.
    assert len([name for name in wrong.KINDS if "segment" not in name]) >= 28


@every_kind
def test_a_wrong_descriptor_is_no_segment_and_the_message_says_why(name):
    with wrong.made(name) as number, nothing_stays():
        error = refused(given(GOOD, number))
        kind = wrong.KINDS[name]
        assert kind.error in (Exception, type(error))
        assert re.search(kind.says, str(error)), str(error)


@every_kind
@pytest.mark.deadline(campaign.seconds(120))
def test_every_opcode_is_answered_with_its_error_whatever_is_beside_it(name):
    with wrong.made(name) as number:
        for opcode in range(256):
            with nothing_stays():
                for argument in (1, 7):
                    message = bytes((opcode, argument))
                    error = refused(given(message, number))
                    if opcode == HELLO:
                        kind = VersionRefused if argument == 7 else wrong.KINDS[name].error
                        assert isinstance(error, kind)
                    elif opcode == ERR:
                        assert isinstance(error, Refused)
                    else:
                        assert type(error) is CorruptPeer
                        assert f"opcode {opcode} instead of HELLO" in str(error)
        for count in (2, 3, 252, 253):
            with nothing_stays():
                error = refused(given(GOOD, *[number] * count))
            assert type(error) is CorruptPeer
            # Of many, only so many are ever open here as tell that they are too many.
            told = re.search(r"expected 1, received (\d+)", str(error))
            assert told
            assert 1 < int(told[1]) <= count


@every_kind
def test_in_pieces_it_is_as_wrong_as_in_one(name):
    def first(sock):
        given(GOOD[:1], number)(sock)
        sock.send(GOOD[1:])

    def second(sock):
        sock.send(GOOD[:1])
        given(GOOD[1:], number)(sock)

    def each(sock):
        given(GOOD[:1], number)(sock)
        given(GOOD[1:], number)(sock)

    def half(sock):
        given(GOOD[:1], number)(sock)

    def twice(sock):
        given(GOOD, number)(sock)
        given(GOOD, *[number] * 200)(sock)

    with wrong.made(name) as number, nothing_stays():
        kind = wrong.KINDS[name]
        for say in (first, second, twice):
            assert isinstance(refused(say), kind.error)
        assert "2 descriptors instead of one" in str(refused(each))
        assert type(refused(half)) is PeerDied


def test_no_descriptor_is_none():
    with nothing_stays():
        for opcode in range(256):
            error = refused(lambda sock, opcode=opcode: sock.sendall(bytes((opcode, 1))))
            if opcode == HELLO:
                assert "HELLO came with 0 descriptors instead of one" in str(error)
            else:
                assert isinstance(error, Refused if opcode == ERR else CorruptPeer)


def test_our_own_segment_is_not_the_peers():
    with nothing_stays():
        ours, theirs = socket.socketpair()
        with theirs:
            opening = Opening(ours, Terms(wrong.SPEC, BOTH, capacity=4))
            assert advance(opening) is None
            data, (fd,) = fdpass.recv_fds(theirs, 1, 2)
            with fd:
                fdpass.send_fds(theirs, [fd], data)
            with pytest.raises(CorruptPeer, match="our own segment back"):
                advance(opening)


def test_the_segment_used_here_as_a_base_is_right_but_for_what_is_changed():
    ours, theirs = socket.socketpair()
    with theirs, contextlib.ExitStack() as stack:
        fdpass.send_fds(theirs, [wrong.segment(stack)], GOOD)
        endpoint = advance(
            Opening(ours, Terms(wrong.SPEC, BOTH, capacity=4, max_segment=wrong.MAX))
        )
        endpoint.close()


@every_kind
def test_a_listener_refuses_it_and_serves_the_next(name, tmp_path):
    path = tmp_path / "s"
    with wrong.made(name) as number, memenpsf.listen(path, wrong.SPEC, max_segment=wrong.MAX) as it:
        with nothing_stays():
            with socket.socket(socket.AF_UNIX) as bad:
                bad.connect(str(path))
                fdpass.send_fds(bad, [number], GOOD)
                with pytest.raises(QueueError) as caught:
                    it.accept(timeout=10)
                assert isinstance(caught.value, wrong.KINDS[name].error)
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(str(path))
            good = Opening(sock, Terms(wrong.SPEC, BOTH, capacity=4))
            assert advance(good) is None
            with it.accept(timeout=10) as accepted:
                with memenpsf.Interface.of(advance(good)) as client:
                    client.xmit((7,))
                    assert accepted.recv() == (7,)


# -- after it -------------------------------------------------------------------------------------


@every_kind
@pytest.mark.deadline(campaign.seconds(120))
def test_where_nobody_asked_for_descriptors_every_opcode_ends_the_connection(name):
    segments = codec_for(wrong.SPEC)
    terms = Terms(segments.spec, BOTH, capacity=4)
    with wrong.made(name) as number:
        for opcode in range(256):
            with nothing_stays(), contextlib.ExitStack() as stack:
                ours, theirs = socket.socketpair()
                stack.enter_context(theirs)
                segment = _segment.create(segments, 4, "peer")
                fdpass.send_fds(theirs, [segment.memfd], GOOD)
                with memenpsf.Interface.of(advance(Opening(ours, terms))) as victim:
                    fdpass.send_fds(theirs, [number], bytes((opcode, 1)))
                    with pytest.raises(CorruptPeer, match="1 descriptors nobody asked for"):
                        victim.recv(timeout=0)
                    with pytest.raises(CorruptPeer):
                        victim.xmit((1,))
                segment.close()


def connection_gives(it, error, says, verb):
    """Receiving raises, and the connection is over; `says` is a pattern."""
    with pytest.raises(error, match=says):
        verb(it.victim)
    with pytest.raises(error):
        it.victim.xmit(b"x", timeout=0)


def borrow(victim):
    with victim.borrow(timeout=0):
        pass


VERBS = {
    "recv": lambda victim: victim.recv(timeout=0),
    "recv_vectored": lambda victim: victim.recv_vectored(timeout=0),
    "recv_message": lambda victim: victim.recv_message(timeout=0),
    "borrow": borrow,
    "for": lambda victim: next(iter(victim)),
}
every_verb = pytest.mark.parametrize("verb", VERBS)


@every_kind
@every_verb
def test_as_a_region_it_ends_the_connection(name, verb):
    if verb == "borrow":
        pytest.skip("what is attached does not belong to a borrowing, and is closed unseen")
    with wrong.made(name) as number, nothing_stays():
        for count in (1, 2):
            with contextlib.closing(Hostile(accept=memenpsf.Accept(region=wrong.MAX))) as it:
                it.give(*[number] * count)
                it.frame(b"x", regions=count)
                if "memory" in name or "segment" in name or "TiB" in name or "file can" in name:
                    # Some are right as regions, which have other seals and any contents.
                    with contextlib.suppress(CorruptPeer):
                        got = VERBS[verb](it.victim)
                        if verb == "recv_message":
                            with contextlib.closing(got):
                                assert [r.size for r in got.regions if r.size > wrong.MAX] == []
                else:
                    says = "a memory region that is none|the peer sent a socket|memory regions with"
                    connection_gives(it, CorruptPeer, says, VERBS[verb])


@every_kind
@every_verb
def test_as_a_message_outside_the_ring_it_ends_the_connection(name, verb):
    with wrong.made(name) as number, nothing_stays(), contextlib.closing(Hostile()) as it:
        it.give(number)
        it.frame(place(1), flags=OUT_OF_LINE, regions=1)
        right_as_such = "segment" in name and wrong.KINDS[name].error is not SealsRefused_
        if right_as_such or name in ROUGHLY_RIGHT:
            with contextlib.suppress(CorruptPeer):
                VERBS[verb](it.victim)
        else:
            connection_gives(it, CorruptPeer, "a memory region that is none", VERBS[verb])


SealsRefused_ = memenpsf.SealsRefused
# As memory for a message of one byte, which wants the same seals, and no header.
ROUGHLY_RIGHT = {
    "memory that its owner cannot write",
    "memory of 1 bytes",
    "memory of 4095 bytes",
    "memory larger than accepted",
}


@every_kind
@every_verb
def test_as_an_attachment_it_is_what_was_asked_for_or_ends_the_connection(name, verb):
    with wrong.made(name) as number, nothing_stays():
        with contextlib.closing(Hostile(accept=memenpsf.Accept(fds=1))) as it:
            it.give(number)
            it.frame(b"x", fds=1)
            if "socket" in name:
                connection_gives(it, CorruptPeer, "this side accepts none", VERBS[verb])
                return
            got = VERBS[verb](it.victim)
            if verb == "recv_message":
                with contextlib.closing(got):
                    assert os.path.sameopenfile(got.fds[0].fileno(), number)
            assert it.victim.recv(timeout=0) is None
        with contextlib.closing(
            Hostile(accept=memenpsf.Accept(fds=0))
        ) as it:  # and where none is accepted
            it.give(number)
            it.frame(b"x", fds=1)
            connection_gives(it, CorruptPeer, "receiver accepts at most 0|a socket", VERBS[verb])


@every_kind
def test_descriptors_with_another_number_than_announced_end_the_connection(name):
    with wrong.made(name) as number, nothing_stays():
        for count, argument in ((1, 0), (1, 2), (2, 1), (19, 19), (253, 253)):
            with contextlib.closing(Hostile(accept=memenpsf.Accept(fds=1))) as it:
                it.say(FDS, argument, [number] * count)
                says = f"{count} descriptors nobody asked for"
                connection_gives(it, CorruptPeer, says, VERBS["recv"])
        with contextlib.closing(Hostile(accept=memenpsf.Accept(fds=1))) as it:
            fdpass.send_fds(it.sock, [number], bytes((FDS,)))  # half a message
            connection_gives(it, CorruptPeer, "1 descriptors nobody asked for", VERBS["recv"])
        with contextlib.closing(Hostile(accept=memenpsf.Accept(fds=4))) as it:
            it.give(number)
            it.frame(b"x", fds=2)
            connection_gives(
                it, CorruptPeer, "announced 2 descriptors, 1 came|a socket", VERBS["recv"]
            )


@every_kind
def test_one_beyond_the_sixteen_that_may_be_under_way_ends_the_connection(name):
    with (
        wrong.made(name) as number,
        nothing_stays(),
        contextlib.closing(Hostile(accept=memenpsf.Accept(fds=1))) as it,
    ):
        for _ in range(16):
            it.give(number)
            assert it.victim.recv(timeout=0) is None
        it.give(number)
        connection_gives(it, CorruptPeer, "1 descriptors nobody asked for", VERBS["recv"])


# -- at the end -----------------------------------------------------------------------------------


@every_kind
def test_what_nobody_received_is_closed_with_the_connection(name):
    with wrong.made(name) as number, nothing_stays():
        with contextlib.closing(Hostile(accept=memenpsf.Accept(fds=1))) as it:
            for _ in range(20):
                it.give(number)
        with contextlib.closing(Hostile()) as it:
            it.say(FDS, 1, [number] * 253)
            it.endpoint.close()  # it leaves
            with contextlib.suppress(PeerDied, EndOfStream, CorruptPeer):
                it.victim.recv(timeout=0)


@pytest.mark.parametrize("make", [lingering, queued])
@pytest.mark.parametrize(
    "when", ["unread", "hello", "half a hello", "opening dropped", "backlog", "region"]
)
def test_what_takes_long_to_close_delays_no_end(when, make, tmp_path):
    def leave(sock, data):
        """Send one, and let go of it here: whoever closes it there is the last."""
        given = stack.enter_context(make())
        fdpass.send_fds(sock, [given], data)
        given.close()

    with nothing_stays(), contextlib.ExitStack() as stack:
        if when == "unread":
            with contextlib.closing(Hostile()) as it:
                leave(it.sock, bytes((FDS, 1)))
                leave(it.sock, bytes((FDS, 1)))
            it = None
        elif when == "region":
            with contextlib.closing(Hostile(accept=memenpsf.Accept(region=wrong.MAX))) as it:
                leave(it.sock, bytes((FDS, 1)))
                it.frame(b"x", regions=1)
                connection_gives(it, CorruptPeer, "a memory region that is none", VERBS["recv"])
            it = None
        elif when == "hello":
            assert isinstance(refused(lambda sock: leave(sock, GOOD)), SealsRefused_)
        elif when == "backlog":
            with socket.socket(socket.AF_UNIX) as client:
                with memenpsf.listen(tmp_path / "s", wrong.SPEC):
                    client.connect(str(tmp_path / "s"))
                    leave(client, GOOD)
        else:
            ours, theirs = socket.socketpair()
            with theirs:
                opening = Opening(ours, Terms(wrong.SPEC, BOTH))
                if when == "half a hello":
                    theirs.send(b"x")
                    leave(theirs, GOOD)
                    with pytest.raises(CorruptPeer):
                        advance(opening)
                else:
                    leave(theirs, GOOD)
                    opening.abandon()


@pytest.mark.parametrize("make", [lingering, queued])
@pytest.mark.parametrize("when", ["in hello", "read", "unread", "waiting for a place", "gone"])
def test_what_takes_long_to_close_delays_nobody_out_of_band_either(when, make, tmp_path):
    """The kernel closes what it passes over, and the kernel's close waits."""

    def leave(sock, data):
        given = stack.enter_context(make())
        rights = [
            (socket.SOL_SOCKET, socket.SCM_RIGHTS, bytes(given.fileno().to_bytes(4, "little")))
        ]
        sock.sendmsg([data], rights, socket.MSG_OOB)
        given.close()

    with nothing_stays(), contextlib.ExitStack() as stack:
        if when in ("read", "unread"):
            with contextlib.closing(Hostile()) as it:
                leave(it.sock, b"\1")
                if when == "read":
                    connection_gives(
                        it, CorruptPeer, "1 descriptors nobody asked for", VERBS["recv"]
                    )
            it = None
        elif when == "in hello":
            error = refused(lambda sock: leave(sock, GOOD[:1]))
            assert isinstance(error, (CorruptPeer, PeerDied))
        else:
            path = tmp_path / "s"
            with contextlib.ExitStack() as clients:
                with memenpsf.listen(path, wrong.SPEC, quota=memenpsf.Quota(places=1)) as listener:
                    first, second = (
                        clients.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(2)
                    )
                    for client in (first, second):
                        client.connect(str(path))
                    leave(second, b"x")
                    if when == "gone":
                        second.close()
                    with pytest.raises(TimeoutError):
                        listener.accept(timeout=0)
                    if when == "gone":  # and there is a place now
                        first.close()
                        with pytest.raises(TimeoutError):
                            listener.accept(timeout=0)
