"""Timeouts end whatever an application's tests do to the clocks of Python (freezegun)."""

from __future__ import annotations

import socket

import freezegun
import pytest

import fdpass
import fdpass.lowlevel
import ipcqueue
import memenpsf


@pytest.fixture
def frozen():
    with freezegun.freeze_time("2024-01-01"):
        yield


def test_the_clock_goes_on_where_others_stand_still(frozen):
    before = fdpass.lowlevel.monotonic()
    assert any(fdpass.lowlevel.monotonic() > before for _ in range(1_000_000))


@pytest.mark.parametrize("spec", ["<Q", bytes], ids=["records", "messages"])
def test_who_receives_waits_no_longer_than_told(frozen, spec):
    one, other = memenpsf.pair(spec)
    with one, other:
        assert one.recv(timeout=0.05) is None
        assert list(one.recv_vectored(timeout=0.05)) == []
        assert one.recv_ctrl_msg(timeout=0.05) is None
        with one.borrow(timeout=0.05) as borrowed:
            assert len(borrowed) == 0


def test_who_sends_waits_no_longer_than_told(frozen):
    one, other = memenpsf.pair("<Q", capacity=1)
    with one, other:
        one.xmit((1,))
        with pytest.raises(ipcqueue.Full):
            one.xmit((2,), timeout=0.05)
        assert one.xmit_many([(2,), (3,)], timeout=0.05) == 0
        with pytest.raises(ipcqueue.Full), one.loan(1, timeout=0.05):
            pass


def test_a_handshake_takes_no_longer_than_told(frozen):
    ours, silent = socket.socketpair()
    with silent, pytest.raises(ipcqueue.HandshakeTimeout):
        memenpsf.Interface(ours, "<Q", timeout=0.05)


def test_a_listener_waits_no_longer_than_told(frozen, tmp_path):
    with memenpsf.listen(tmp_path / "server", "<Q") as listener, pytest.raises(TimeoutError):
        listener.accept(timeout=0.05)
