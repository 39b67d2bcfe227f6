"""Descriptors that were read from the socket: an exception at every place."""

import contextlib
from functools import partial

import pytest

import memenpsf
from memenpsf import CorruptPeer
from tests.kit import places
from tests.kit.attached import open_descriptors
from tests.kit.connected import inode, quick_collector  # noqa: F401 (the fixture)
from tests.kit.hostile import Hostile
from tests.kit.places import Places, interrupt

# Places in fdpass are for its own tests.
at_every_place = partial(places.at_every_place, apart=["/fdpass/"])


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # closed by the collector is closed too
@pytest.mark.parametrize("what", ["good", "unasked", "too many"])
def test_an_exception_anywhere_in_reading_the_socket_loses_no_descriptor(what):
    before = open_descriptors()
    made = []

    def prepare():
        it = Hostile(accept=memenpsf.Accept(fds=3))
        made[:] = [it]
        if what == "good":
            it.give(*it.pipe())
            it.frame(b"x", fds=2)
        elif what == "unasked":
            it.say(1, 0, it.pipe())
        else:
            for _ in range(16):
                it.give(it.sock)
                it.victim._endpoint.read_more()
            it.give(*it.pipe())

    def check(_):
        (it,) = made
        if what == "good":
            with contextlib.closing(it.victim.recv_message(timeout=0)) as message:
                assert [inode(fd) for fd in message.fds] == [inode(fd) for fd in it.made]
        else:
            with pytest.raises(CorruptPeer, match="descriptors nobody asked for"):
                it.victim.recv(timeout=0)
        it.close()
        made.clear()
        del it
        assert open_descriptors() == before

    assert (
        at_every_place(prepare, lambda: made[0].victim._endpoint.read_more(), interrupt, check)  # noqa: PLW0108 (another each time)
        > 10
    )


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_what_was_read_and_not_digested_is_closed_with_the_connection():
    before = open_descriptors()
    for nth in range(200):
        it = Hostile(accept=memenpsf.Accept(fds=3))
        it.give(*it.pipe())
        places = Places(nth, interrupt, ["/fdpass/"])
        with contextlib.suppress(BaseException):
            places.run(it.victim._endpoint.read_more)
        it.close()
        assert open_descriptors() == before
        if not places.arrived:
            assert nth > 10
            return
    raise AssertionError("the call does not end")
