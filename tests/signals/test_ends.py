"""Exceptions of signal handlers at every place of what ends a connection."""

import contextlib

import pytest

import memenpsf
from tests.kit.places import STEP, at_every_pair, at_every_place, interrupt

pytestmark = pytest.mark.deadline(120)

# How to end, and what the peer may get for it: where the exception came before all else, nothing.
ENDS = {
    "send_eof": lambda one: one.send_eof(),
    "finish": lambda one: one.finish(),
    "abort": lambda one: one.abort(),
    "close": lambda one: one.close(),
}
SEEN = {
    "send_eof": {memenpsf.EndOfStream},
    "finish": {memenpsf.EndOfStream},
    "abort": {memenpsf.Aborted},
    "close": {memenpsf.EndOfStream},
}


def end_seen_by(other):
    """Take all there is; return how the stream ends, None if it does not."""
    got = []
    try:
        while (record := other.recv(timeout=0)) is not None:
            got.append(record)
    except memenpsf.QueueError as error:
        assert got == [(1,), (2,)]
        return type(error)
    assert got == [(1,), (2,)]
    return None


@pytest.mark.parametrize("strikes", [at_every_place, at_every_pair])
@pytest.mark.parametrize("how", ENDS)
def test_what_an_exception_breaks_off_is_done_or_can_be_done_again(how, strikes):
    made = []

    def prepare():
        made[:] = memenpsf.pair("<Q", capacity=8)
        made[0].xmit_many([(1,), (2,)])

    def check(_):
        one, other = made
        # Whole, or not begun: never that this side sends no more, and the peer is not told.
        with contextlib.suppress(memenpsf.Closed):
            one.xmit((3,), timeout=0)
            assert other.recv(timeout=0) == (1,)
            assert other.recv(timeout=0) == (2,)
            assert other.recv(timeout=0) == (3,)
            assert other.recv(timeout=0) is None
            one.xmit_many([(1,), (2,)])
        ENDS[how](one)
        assert end_seen_by(other) in SEEN[how]
        one.close()
        other.close()

    step = 1 if strikes is at_every_place else min(STEP, 3)
    assert strikes(prepare, lambda: ENDS[how](made[0]), interrupt, check, len(how), step) > 5


@pytest.mark.parametrize("how", ENDS)
def test_the_peer_is_told_by_the_call_that_was_broken_off(how):
    """Without a second call: once this side sends no more, the peer hears of it."""
    made = []

    def prepare():
        made[:] = memenpsf.pair("<Q", capacity=8)
        made[0].xmit_many([(1,), (2,)])

    def check(_):
        one, other = made
        try:
            one.xmit((3,), timeout=0)
        except memenpsf.Closed:
            assert end_seen_by(other) in SEEN[how]
        one.close()
        other.close()

    at_every_place(prepare, lambda: ENDS[how](made[0]), interrupt, check)
