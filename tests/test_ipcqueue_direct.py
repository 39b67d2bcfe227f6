"""The short way into the core (core/direct.c), and that it and the long way see the same."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from places import Interrupt, at_every_place, interrupt

import ipcqueue
import memenpsf
from ipcqueue import _core, _waiting
from ipcqueue._binding import direct

SPECS = {
    "bytes of one size": (8, lambda n: n.to_bytes(8, "little")),
    "tuples": ("<QQ", lambda n: (n, n + 1)),
    "messages": (bytes, lambda n: b"%d" % n * (n % 50)),
}

pytestmark = pytest.mark.skipif(direct is None, reason="there is no short way here")


@pytest.fixture(params=SPECS)
def ends(request):
    spec, record = SPECS[request.param]
    one, other = memenpsf.pair(spec, capacity=4096)
    with one, other:
        yield one, other, record


def test_what_returns_at_once_keeps_the_interpreter_and_what_waits_does_not():
    # The function of CPython that lets other threads run.
    lets_go = b"PyEval_SaveThread"
    assert lets_go not in Path(_core.__file__).read_bytes()
    assert lets_go in Path(_waiting.__file__).read_bytes()


def test_the_short_way_is_taken(ends):
    one, other, record = ends
    assert isinstance(one._endpoint.sender, (direct.SlotSender, direct.FrameSender))
    assert one._endpoint.sender.try_push(record(1)) is True
    receiver = other._endpoint.receiver
    assert receiver.try_take() is True
    assert receiver.taken == record(1)
    assert receiver.try_take() is True  # it is still there
    assert other.recv() == record(1)
    assert receiver.taken is None
    assert receiver.try_take() is False


def test_what_was_taken_and_not_fetched_is_received_first_by_every_verb(ends):
    one, other, record = ends
    receiver = other._endpoint.receiver
    verbs = [
        lambda: [other.recv(timeout=0)],
        lambda: list(other.recv_vectored(timeout=0)),
        lambda: list(other.recv_vectored(1, timeout=0)),
        lambda: [other.recv_message(timeout=0).record],
        lambda: [other._endpoint.try_pop()],
    ]
    for verb in verbs:
        one.xmit_many(map(record, range(1, 4)))
        assert receiver.try_take()
        assert receiver.holds()
        got = verb()
        while len(got) < 3:
            got.append(other.recv(timeout=0))
        assert got == list(map(record, range(1, 4)))
        assert other.recv(timeout=0) is None
        assert len(set(one.indices())) == 1


def test_what_was_taken_and_not_fetched_is_borrowed_first():
    one, other = memenpsf.pair(memenpsf.Message)
    with one, other:
        pass
    one, other = memenpsf.pair(bytes)
    with one, other:
        one.xmit(b"first")
        with one.loan(6, tag=7, flags=9) as loan:
            loan.data[:] = b"second"
        other._endpoint.receiver.try_take()
        with other.borrow() as messages:
            assert [bytes(message.data) for message in messages] == [b"first"]
            messages.cancel()
        assert other.recv(timeout=0) == b"first"
        assert other._endpoint.receiver.try_take()
        with other.borrow() as messages:
            assert [(bytes(m.data), m.tag, m.flags) for m in messages] == [(b"second", 7, 9)]
        assert other.recv(timeout=0) is None


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("verb", ["recv", "recv_vectored"])
def test_an_exception_anywhere_in_receiving_loses_and_doubles_nothing(name, verb):
    spec, record = SPECS[name]
    made = []

    def prepare():
        made[:] = memenpsf.pair(spec, capacity=4096)
        made[0].xmit_many(map(record, range(3)))

    def receive():
        if verb == "recv":
            return [made[1].recv(timeout=0)]
        return made[1].recv_vectored(2, timeout=0)

    def check(result):
        one, other = made
        got = list(result or [])
        while (after := other.recv(timeout=0)) is not None:
            got.append(after)
        assert got == list(map(record, range(3)))
        one.close()
        other.close()

    assert at_every_place(prepare, receive, interrupt, check) > 0


@pytest.mark.parametrize("name", SPECS)
def test_a_handler_that_receives_anywhere_takes_other_records(name):
    spec, record = SPECS[name]
    made, by_handler = [], []

    def prepare():
        by_handler.clear()
        made[:] = memenpsf.pair(spec, capacity=4096)
        made[0].xmit_many(map(record, range(3)))

    def handler():
        by_handler.append(made[1].recv(timeout=0))

    def check(result):
        one, other = made
        got = [result, *by_handler]
        while (after := other.recv(timeout=0)) is not None:
            got.append(after)
        assert sorted(each for each in got if each is not None) == sorted(map(record, range(3)))
        one.close()
        other.close()

    assert at_every_place(prepare, lambda: made[1].recv(timeout=0), handler, check) > 0


def test_a_decoder_that_fails_or_receives_itself_loses_nothing(monkeypatch):
    one, other = memenpsf.pair("<Q")
    with one, other:
        receiver = other._endpoint.receiver
        really = ipcqueue._record.codec_for("<Q").decode
        calls = []

        def decode(data):
            calls.append(bytes(data))
            if len(calls) == 1:
                assert other.recv(timeout=0) == (2,)  # from within
            if bytes(data)[0] == 3:
                raise Interrupt
            return really(data)

        receiver.shorten(ipcqueue._ring.address_of(receiver._ring), 8, decode)
        one.xmit_many([(n,) for n in range(1, 5)])
        assert other.recv(timeout=0) == (1,)
        with pytest.raises(Interrupt):
            other.recv(timeout=0)
        assert other.recv(timeout=0) == (3,)  # the long way
        assert other.recv(timeout=0) == (4,)


@pytest.mark.parametrize(
    ("binding", "says"), [("cffi", "None"), ("direct", "<module"), ("", "<module")]
)
def test_the_environment_chooses(binding, says):
    program = "import ipcqueue._binding as b, memenpsf; print(b.direct); one, other = memenpsf.pair(8); one.xmit(bytes(8)); print(other.recv()); one.close(); other.close()"
    output = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"IPCQUEUE_BINDING": binding},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert output.startswith(says)
    assert output.endswith(f"{bytes(8)}\n")


def test_another_binding_is_refused():
    process = subprocess.run(
        [sys.executable, "-c", "import ipcqueue"],
        env=os.environ | {"IPCQUEUE_BINDING": "swig"},
        check=False,
        capture_output=True,
        text=True,
    )
    assert process.returncode != 0
    assert "IPCQUEUE_BINDING is cffi or direct, not 'swig'" in process.stderr
