"""Signal handlers in the middle of accept(): they close the listener, accept, or raise."""

from __future__ import annotations

import contextlib
import enum
import gc
import logging
import socket
import threading

import pytest

import memenpsf
from ipcqueue.lowlevel import advance, drop_socket
from memenpsf import _log
from tests.kit.clients import Client, connected
from tests.kit.places import STEP, at_every_place, interrupt

pytestmark = pytest.mark.deadline(120)


class Scene:
    """A listener with clients of every kind, anew each time."""

    def __init__(self, path):
        self.path = path
        self.listener = None
        self.raised = []
        self.left = contextlib.ExitStack()

    def set_up(self, *others):
        self.left.close()
        self.listener = self.left.enter_context(
            memenpsf.listen(self.path, "<Q", quota=memenpsf.Quota(places=3))
        )
        self.raised.clear()
        if others:
            self.say()  # one that has a handshake, and says nothing
            with contextlib.suppress(TimeoutError):
                self.listener.accept(0)
        for said in others:
            self.say(said)
        self.client = self.left.enter_context(Client(self.path)).say_hello()

    def say(self, said=b""):
        sock = connected(self.path)
        self.left.callback(drop_socket, sock)
        if said is None:
            sock.close()
        elif said:
            sock.send(said)

    def accept(self):
        for _ in range(3):
            try:
                with self.listener.accept(0) as interface:
                    return interface.peer
            except (memenpsf.QueueError, OSError) as error:  # of one client
                self.raised.append(type(error))
                error.__traceback__ = None
        return None


@pytest.fixture
def scene(path):
    scene = Scene(path)
    with scene.left:
        yield scene
        scene.listener = None


@pytest.fixture
def path(tmp_path):
    return tmp_path / "s"


OTHERS = (b"\x10", b"nonsense", None, b"\x10", b"")


def test_a_signal_handler_that_closes_the_listener_leaves_nothing_behind(scene):
    def check(_):
        scene.listener.close()
        pending = scene.listener._pending
        assert not pending.handshakes
        assert not pending._outcomes
        assert not len(pending._candidates)
        assert not pending.quota.shares(0)
        kept = pending._reserve._kept
        assert kept is None or kept.fileno() == -1
        assert not scene.path.exists()

    places = at_every_place(
        lambda: scene.set_up(*OTHERS),
        scene.accept,
        lambda: scene.listener.close(),  # noqa: PLW0108 (each time another)
        check,
        2,
        2 * STEP,
    )
    assert places > 500


def test_a_signal_handler_that_accepts_is_told_so_and_disturbs_nothing(scene):
    accepted = []

    def handler():
        # Where accept() only waits, another one can accept.
        with contextlib.suppress(memenpsf.ConcurrentUse, TimeoutError, memenpsf.CorruptPeer):
            with scene.listener.accept(0):
                accepted.append(True)

    def check(peer):
        assert {memenpsf.ConcurrentUse, memenpsf.Closed}.isdisjoint(scene.raised)
        assert peer or accepted or scene.listener._pending.handshakes

    at_every_place(lambda: scene.set_up(*OTHERS), scene.accept, handler, check, 3, 2 * STEP)


def test_a_loop_in_a_signal_handler_inside_accept_ends(scene, monkeypatch):
    scene.set_up()
    seen = []

    def turn():
        with pytest.raises(memenpsf.ConcurrentUse, match="return from it"):
            next(iter(scene.listener))
        seen.append(True)

    monkeypatch.setattr(scene.listener._pending, "turn", turn)
    with pytest.raises(TimeoutError):
        scene.listener.accept(0)
    assert seen


# What the call had in hand is lost, and closed by the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # in __del__()
def test_a_listener_goes_on_after_a_signal_handler_that_raises(scene):
    def check(_):
        with Client(scene.path).say_hello() as client:
            for _ in range(3):  # the first client may be there still
                scene.accept()
                client.endpoint = client.endpoint or advance(client.opening)
            assert client.endpoint is not None
        assert set(scene.raised) <= {TimeoutError}
        gc.collect()

    # Not inside Python's own socket.accept(), which loses the number.
    apart = (socket.__file__, enum.__file__)
    assert at_every_place(scene.set_up, scene.accept, interrupt, check, 1, STEP, apart) > 300


def test_a_log_is_closed_by_a_signal_handler_in_the_middle_of_a_line(monkeypatch):
    log = _log.RefusalLog("somewhere")
    log._untold = 3
    told = []
    monkeypatch.setattr(_log.of_clients, "log", lambda *what, **_: told.append(what))

    class Interrupted(float):
        def __rsub__(self, _):  # inside the lock
            log.close()
            return 0.0

    log._since = Interrupted()
    thread = threading.Thread(target=log.tell, args=("a line",), daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    assert (logging.WARNING, "%s: %d more %s", "somewhere", 3, log._others) in told
