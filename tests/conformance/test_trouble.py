"""Trouble in a ring comes out of every verb as the word for it: at every door, and as nothing else."""

from __future__ import annotations

import os
import re
import socket

import pytest
from ipcqueue._core import ffi

import memenpsf
from ipcqueue._ring.codes import CORRUPT, DONE, GONE, RingError
from ipcqueue._ring.frame_receiver import FrameReceiver
from ipcqueue._ring.frame_sender import FrameSender
from ipcqueue._ring.slot_receiver import SlotReceiver
from ipcqueue._ring.slot_sender import SlotSender
from tests.kit.doors import Threads, scenario
from tests.kit.hostile import HEAD, TAIL
from tests.kit.trouble import methods_that_raise

ENDS = (SlotSender, FrameSender, SlotReceiver, FrameReceiver)
SPECS = {"records": "<Q", "messages": bytes, "encoded": memenpsf.Encoded(bytes, bytes)}
BOTH_KINDS = pytest.mark.parametrize("kind", SPECS)


async def loan(side, **options):
    async with side.loan(1, **options):
        pass


async def borrow(side):
    async with side.borrow(timeout=0):
        pass


async def first(side):
    async for _ in side:
        break


async def awaited(call, *args):
    return call(*args)


def verbs_that_send(side, kind):
    record = (1,) if kind == "records" else b"x"
    verbs = {
        "xmit": lambda: side.xmit(record),
        "xmit at once": lambda: side.xmit(record, 0),
        "xmit in time": lambda: side.xmit(record, 1),
        "xmit_many": lambda: side.xmit_many([record]),
        "await_space": side.await_space,
        "xmit_many at once": lambda: side.xmit_many([record, record], 0),
        "loan": lambda: loan(side),
        "loan at once": lambda: loan(side, timeout=0),
    }
    if hasattr(side, "xmit_nowait"):
        verbs["xmit_nowait"] = lambda: awaited(side.xmit_nowait, record)
    if kind != "records":
        verbs["xmit with a descriptor"] = lambda: side.xmit(record, fds=[0])
        verbs["xmit outside the ring"] = lambda: side.xmit(bytes(1 << 20))
    return verbs


def verbs_that_receive(side, _kind):
    return {
        "recv": side.recv,
        "recv at once": lambda: side.recv(0),
        "recv in time": lambda: side.recv(1),
        "recv_vectored": side.recv_vectored,
        "recv_vectored of some": lambda: side.recv_vectored(2),
        "recv_vectored at once": lambda: side.recv_vectored(timeout=0),
        "recv_message": side.recv_message,
        "recv_message at once": lambda: side.recv_message(0),
        "borrow": lambda: borrow(side),
        "iteration": lambda: first(side),
    }


def verbs_that_look(side, _kind):
    return {
        "indices": lambda: awaited(side.indices),
        "statistics": lambda: awaited(side.statistics),
        "repr": lambda: awaited(repr, side),
    }


def chain_of(error):
    """An exception, and all that it has come of; also what is not shown of that."""
    chain, found = [error], []
    while chain:
        each = chain.pop()
        if each is not None and each not in found:
            found.append(each)
            chain += [each.__cause__, each.__context__]
    return found


async def error_of(verb):
    """What a verb raises; no RingError has anything to do with it."""
    try:
        await verb()
    except Exception as error:  # noqa: BLE001 (judged by the caller)
        assert not [each for each in chain_of(error) if isinstance(each, RingError)]
        return error
    return None


def options_for(kind):
    if kind == "records":
        return {"capacity": 4}
    return {"capacity": 4096, "accept": memenpsf.Accept(fds=4)}


async def outcomes(door, kind, verbs, prepare):
    """What each verb raises, each at a pair of its own that is prepared first."""
    found, names = {}, None
    while names is None or names:
        async with door.pair(SPECS[kind], **options_for(kind)) as (one, other):
            if names is None:
                names = [*verbs(one, kind)]
            name = names.pop(0)
            verb = verbs(one, kind)[name]
            await prepare(one, other)
            found[name] = await error_of(verb)
    return found


def poke(side, offset, value):
    """Write into the segment of a side, as it might itself."""
    at = ffi.cast("char *", side._endpoint._own.mapping.at) + offset
    ffi.cast("uint64_t *", at)[0] = value


def push(side):
    """Publish one record by the call of C that no test here breaks; whether there was space."""
    sender = side._endpoint.sender
    encoded = (bytes(8),) if isinstance(sender, SlotSender) else (b"x", 0, 0)
    return sender.push(*encoded) == DONE


def fill(side):
    while push(side):
        pass


def kinds_of(errors):
    return {name: type(error) for name, error in errors.items()}


def all_of(found, word):
    return dict.fromkeys(found, word)


@scenario
@BOTH_KINDS
async def test_an_impossible_index(door, kind):
    async def head(_, other):
        poke(other, HEAD, 1 << 40)

    async def tail(one, other):
        fill(one)
        poke(other, TAIL, 1 << 40)

    for verbs, prepare in ((verbs_that_receive, head), (verbs_that_send, tail)):
        errors = await outcomes(door, kind, verbs, prepare)
        assert kinds_of(errors) == all_of(errors, door.word("CorruptPeer"))
        assert all(re.match("the peer's index.* cannot be true$", str(e)) for e in errors.values())
    for prepare in (head, tail):
        assert {*(await outcomes(door, kind, verbs_that_look, prepare)).values()} == {None}


@scenario
@BOTH_KINDS
async def test_a_peer_that_has_ended(door, kind):
    async def end(_, other):
        await other.aclose()

    errors = await outcomes(door, kind, verbs_that_send, end)
    assert kinds_of(errors) == all_of(errors, door.word("ReceiverGone"))

    async def read(one, other):
        await other.aclose()
        while not one._endpoint.ended:
            one._endpoint.read_if_free()

    errors = await outcomes(door, kind, verbs_that_receive, read)
    assert errors.pop("iteration") is None
    assert kinds_of(errors) == all_of(errors, door.word("EndOfStream"))


@scenario
@BOTH_KINDS
async def test_a_peer_that_has_died(door, kind):
    async def die(_, other):
        with socket.socket(fileno=os.dup(other._endpoint.fileno())) as sock:
            sock.shutdown(socket.SHUT_RDWR)

    async def read(one, other):
        await die(one, other)
        one._endpoint.read_if_free()

    # Before that is read, the ring does not tell, and a record may still be sent.
    for verbs, prepare in ((verbs_that_receive, die), (verbs_that_send, read)):
        errors = await outcomes(door, kind, verbs, prepare)
        assert kinds_of(errors) == all_of(errors, door.word("PeerDied"))


@scenario
@BOTH_KINDS
async def test_a_side_that_is_closed(door, kind):
    async def close(one, _):
        await one.aclose()

    for verbs in (verbs_that_send, verbs_that_receive):
        errors = await outcomes(door, kind, verbs, close)
        assert kinds_of(errors) == all_of(errors, door.word("Closed"))


async def nothing_waits(_, __):
    pass


async def a_record_waits(_, other):
    assert push(other)


async def a_full_ring(one, _):
    fill(one)


def never_wait(verbs):
    return lambda side, kind: {
        name: verb
        for name, verb in verbs(side, kind).items()
        if name.endswith(("at once", "nowait", "borrow"))
    }


STATES = {
    "nothing waits": (nothing_waits, verbs_that_send),
    "nothing waits here": (nothing_waits, never_wait(verbs_that_receive)),
    "a record waits": (a_record_waits, verbs_that_receive),
    "full": (a_full_ring, never_wait(verbs_that_send)),
    "looked at": (nothing_waits, verbs_that_look),
}


@scenario
@BOTH_KINDS
async def test_whatever_an_end_raises_comes_out_as_what_it_means(door, kind, monkeypatch):
    """Each method of an end that may raise RingError does so, with each code, under each verb."""
    words = {CORRUPT: "CorruptPeer", GONE: "PeerDied"}
    reached = set()
    for method in sorted(methods_that_raise()):
        for code, word in words.items():

            def fails(*_, method=method, code=code, **__):
                reached.add(method)
                raise RingError(code, "a reason")

            with monkeypatch.context() as patch:
                for end in ENDS:
                    if hasattr(end, method):
                        patch.setattr(end, method, fails)
                    if hasattr(end, "is_empty"):  # which would have nothing tried
                        patch.setattr(end, "is_empty", lambda _: False)
                for state, (prepare, verbs) in STATES.items():
                    for name, error in (await outcomes(door, kind, verbs, prepare)).items():
                        ok = error is None or type(error) in {door.word(word), door.word("Full")}
                        assert ok, (method, code, state, name)
    # Only a ring in trouble reaches the first two, or a message that is not simple; tests the third.
    assert reached >= methods_that_raise() - {"offer_slowly", "offer_encoded", "try_push"}


@BOTH_KINDS
def test_a_forked_child(kind):
    """As far as it can be without a loop of Trio's, which a child has not got."""
    door = Threads()

    async def scenario():
        for verbs in (verbs_that_send, verbs_that_receive):
            for prepare in (nothing_waits, a_record_waits):
                async with door.pair(SPECS[kind], **options_for(kind)) as (one, other):
                    await prepare(one, other)
                    pid = os.fork()
                    if pid == 0:
                        wrong = True
                        try:
                            errors = [await error_of(verb) for verb in verbs(one, kind).values()]
                            wrong = {type(error) for error in errors} != {memenpsf.ForkedUse}
                        finally:
                            os._exit(wrong)
                    _, status = os.waitpid(pid, 0)  # noqa: ASYNC222 (nothing is asynchronous here)
                    assert status == 0

    door.run(scenario)
