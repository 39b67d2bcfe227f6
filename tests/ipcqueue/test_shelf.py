"""The shelf of a receiver (core/python/shelf.c): each change of it is one step, whatever runs in it."""

import contextlib
import dataclasses
import itertools

import pytest

import memenpsf
from ipcqueue._ring.codes import AGAIN, DONE
from tests.kit.collecting import at_every_collection
from tests.kit.connected import quick_collector  # noqa: F401 (a fixture)

SPECS = {
    "bytes of one size": (8, lambda n: n.to_bytes(8, "little")),
    "tuples": ("<QQ", lambda n: (n, n + (1 << 60))),
    "messages": (bytes, lambda n: b"%d" % n * (n % 50)),
    "messages with tags": (memenpsf.Message, lambda n: memenpsf.Message(b"%d" % n, n, n % 256)),
}
VERBS = {
    "recv": (lambda other: other.recv(timeout=0), lambda got: [got]),
    "for": (lambda other: next(iter(other)), lambda got: [got]),
    "recv_vectored": (lambda other: other.recv_vectored(3, timeout=0), lambda got: got),
    "recv_message": (lambda other: other.recv_message(timeout=0), lambda got: [got.record]),
}


def rest(other):
    return list(iter(lambda: other.recv(timeout=0), None))


# -- one change of it: all of it, or nothing -------------------------------------------------------


@pytest.fixture(params=["<Q", bytes])
def receiver(request):
    """A receiver, to which two records are on their way."""
    one, other = memenpsf.pair(request.param, capacity=4096)
    with one, other:
        one.xmit_many([(1,), (2,)] if request.param == "<Q" else [b"1", b"2"])
        yield other._endpoint.receiver


def places_of(receiver):
    names = ["_ring", "_decoding", "_raw", "_suspect", "_next", "prefetched", "place", "turn"]
    names += ["_arrived", "_regions", "_large", "_to_close", "_handed", "_wanted", "dropped"]
    return {name: getattr(receiver, name) for name in names if hasattr(receiver, name)}


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"prefetched": []}, TypeError),
        ({"to_close": None}, TypeError),
        ({"decoding": ()}, TypeError),
        ({"owned": {}}, TypeError),
        ({"raw": "text"}, TypeError),
        ({"unheard_of": 1}, TypeError),
        ({"next": -1}, OverflowError),
        ({"free": 1 << 64}, OverflowError),
        ({"free": 16}, ValueError),
        ({"free": 16, "lent": object()}, ValueError),
    ],
)
def test_a_change_that_is_wrong_in_one_place_is_made_in_none(receiver, fields, error):
    before = places_of(receiver)
    with pytest.raises(error):
        receiver.commit(receiver.turn, **{"next": 7, "suspect": b"", **fields})
    with pytest.raises(error):
        receiver.commit(receiver.turn, **fields)
    assert places_of(receiver) == before


def test_a_change_that_was_prepared_for_another_shelf_is_not_made(receiver):
    before = places_of(receiver)
    for turn, fields in (
        (receiver.turn + 1, {}),
        ((1 << 64) - 1, {}),
        (receiver.turn, {"ring": object()}),  # somebody has closed it, or lends from it
        (receiver.turn, {"ring": None}),
    ):
        assert receiver.commit(turn, next=7, prefetched=None, **fields) is False
    assert places_of(receiver) == before


def test_an_index_may_be_the_last_that_there_is(receiver):
    start = receiver._next
    assert receiver.commit(receiver.turn, next=(1 << 64) - 1)
    assert receiver._next == (1 << 64) - 1
    assert receiver.commit(receiver.turn, next=start)
    assert receiver.try_pop_many(5) in ([(1,), (2,)], [b"1", b"2"])


def test_more_descriptors_than_there_is_memory_to_forget_stay(short_of_memory):
    """To take a few out of a list needs none."""
    one, other = memenpsf.pair(bytes)
    with one, other:
        receiver = other._endpoint.receiver
        arrived = [[n] for n in range(40)]

        def prepare():
            receiver._arrived = arrived[:]
            receiver._to_close = []
            return [receiver.turn]

        def move(turn):
            return receiver.commit(turn, arrived=30, to_close=arrived[:30])

        def check(result, turn):
            moved = 0 if result is MemoryError else 30
            assert receiver._arrived == arrived[moved:]
            assert receiver._to_close == arrived[:moved]
            assert receiver.turn == turn + (moved > 0)

        try:
            assert short_of_memory(prepare, move, check, 10) > 0
            receiver._arrived = None
            assert receiver.commit(receiver.turn, arrived=30)
        finally:
            receiver._arrived, receiver._to_close = [], []


# -- the last change: to the application -----------------------------------------------------------


def begun(receiver, limit=1):
    """A call that has taken something, and what that is."""
    receiver.prepare(limit)
    call = receiver.begin()
    return call, receiver._taken(call, limit)


def test_what_a_call_has_taken_is_handed_over_once(receiver):
    call, taken = begun(receiver, 2)
    assert taken
    step = receiver.hand_over(call, "result")
    assert not call.over
    assert [next(step, None), next(step, None)] == ["result", None]
    assert call.over
    assert receiver._decoding == []
    # A call that has nothing there may end, too.
    assert list(receiver.hand_over(call, "again", None, None)) == ["again"]
    with pytest.raises(KeyError):
        next(receiver.hand_over(call, "result", None, KeyError()))


def test_a_call_hands_over_to_its_receiver_and_nothing_but_a_result(receiver):
    call = receiver.begin()
    for arguments in ((), (call,), (call, 1, None, None, None), (None, 1), (object(), 1, None)):
        with pytest.raises(TypeError):
            receiver.hand_over(*arguments)
    assert not call.over


def test_a_call_that_finds_no_list_of_calls_hands_nothing_over(receiver):
    right = receiver._decoding
    for wrong in (None, (), "text"):
        call = receiver.begin()
        receiver._decoding = wrong
        with pytest.raises(TypeError, match="no list of calls"):
            next(receiver.hand_over(call, "result"))
        assert not call.over
    del receiver._decoding
    with pytest.raises(TypeError, match="no list of calls"):
        next(receiver.hand_over(call, "result"))
    receiver._decoding = right


def test_what_stands_beside_other_calls_stays_there(receiver):
    receiver.prepare(2) if hasattr(receiver, "prepare") else None
    others = [(receiver.begin(), "raw"), "no pair", (1, 2, 3), (None, "raw")]
    call, taken = begun(receiver)
    (own,) = receiver._decoding
    receiver._decoding = [*others, own]
    assert list(receiver.hand_over(call, "result", taken)) == ["result"]
    assert receiver._decoding == [*others, (call, taken)]
    assert all(one is other for one, other in zip(receiver._decoding, others, strict=False))
    receiver._decoding = []


def test_a_step_for_which_there_is_no_memory_hands_nothing_over(short_of_memory):
    one, other = memenpsf.pair("<Q", capacity=64)
    with one, other:
        receiver = other._endpoint.receiver

        def prepare():
            call = receiver.begin()
            before = [(receiver.begin(), "raw") for _ in range(4)] + [(call, "raw")]
            receiver._decoding = before
            # Those that CPython keeps for later need no memory.
            used = [[] for _ in range(100)], [(n, n) for n in range(3000)]
            return call, receiver.hand_over(call, "result", "left"), before, used

        def check(result, call, step, before, used):
            if result is MemoryError:
                assert receiver._decoding is before
                assert not call.over
            else:
                assert result == "result"
                assert receiver._decoding == [*before[:-1], (call, "left")]
            receiver._decoding = []
            for each in used:  # free before others are made
                each.clear()

        failures = short_of_memory(prepare, lambda call, step, *_: next(step), check, 10)
        assert failures > 1


def test_a_step_counts_what_the_collector_has_changed_meanwhile():
    one, other = memenpsf.pair("<Q", capacity=64)
    with one, other:
        receiver = other._endpoint.receiver
        one.xmit((1,))

        def prepare():
            call = receiver.begin()
            receiver._decoding = [(call, "raw")]
            return call, receiver.hand_over(call, "result", "left")

        def change(call, step):
            receiver._decoding = [*receiver._decoding, (receiver.begin(), "of another")]

        def check(result, call, step):
            assert result == "result"
            assert call.over
            assert [each[1] for each in receiver._decoding] == ["left", "of another"]
            receiver._decoding = []

        def call(call, step):
            return next(step)

        assert at_every_collection(prepare, call, change, check, 10) > 0
        assert other.recv(timeout=0) == (1,)


# -- from the ring to the shelf --------------------------------------------------------------------


@pytest.fixture
def slots():
    """Three records, and their receiver."""
    one, other = memenpsf.pair("<Q", capacity=64)
    with one, other:
        one.xmit_many([(n,) for n in range(3)])
        yield other


def test_nothing_is_pulled_where_something_is_older_or_in_the_way(slots):
    receiver = slots._endpoint.receiver
    before = places_of(receiver)
    call = receiver.begin()
    call.over = True
    for name, value in (
        ("_decoding", [(call, bytearray(8))]),  # nobody's any more
        ("_decoding", None),
        ("_decoding", ()),
        ("_raw", "text"),
        ("_ring", None),
        ("_ring", object()),
        ("prefetched", [(9,)]),
    ):
        right = getattr(receiver, name)
        setattr(receiver, name, value)
        assert receiver.pull(3) == AGAIN
        assert receiver.fetch(receiver.begin(), 3) is None
        setattr(receiver, name, right)
    for nothing in (0, -1, -5):
        assert receiver.pull(nothing) == AGAIN
        assert receiver.fetch(call, nothing) is None
        batch = receiver.many(nothing)
        assert [next(batch, None), next(batch, None)] == [None, None]
    with pytest.raises(TypeError):
        receiver.many(1, 2, 3, 4)
    assert places_of(receiver) == before
    receiver._raw = None  # as good as nothing
    # Calls that go on, and what is no call, are in nobody's way.
    receiver._decoding = others = [(receiver.begin(), bytearray(8)), "no pair", (1,), (None, 1)]
    assert receiver.pull(3) == DONE
    assert receiver._decoding is others
    receiver._decoding = []
    assert rest(slots) == [(n,) for n in range(3)]


def test_records_for_which_there_is_no_memory_stay_in_the_ring(short_of_memory):
    def prepare():
        one, other = memenpsf.pair(64, capacity=64)
        one.xmit_many([bytes([n]) * 64 for n in range(40)])
        assert other._endpoint.receiver.pull(10) == DONE
        return one, other

    def check(result, one, other):
        receiver = other._endpoint.receiver
        with one, other:
            assert len(receiver._raw) == (10 if result is MemoryError else 40) * 64
            assert [record[0] for record in rest(other)] == list(range(40))

    def pull(one, other):
        return other._endpoint.receiver.pull(30)

    assert short_of_memory(prepare, pull, check, 10) > 0


@pytest.mark.parametrize("way", ["fetch", "all", "ready", "ready, of those ahead"])
@pytest.mark.parametrize("what", ["take all", "take one", "ahead", "leave"])
@pytest.mark.parametrize("spec", [8, "<Q", bytes])
def test_a_short_way_looks_again_when_the_collector_was_there(spec, what, way):
    sent = [(n,) if spec == "<Q" else b"%08d" % n for n in range(3)]

    def prepare():
        one, other = memenpsf.pair(spec, capacity=4096 if spec is bytes else 8)  # two ahead
        if way == "ready, of those ahead":
            one.xmit(sent[0])
        one.xmit_many(sent)
        if way == "ready, of those ahead":
            assert next(iter(other)) == sent[0]
        return one, other, []

    def action(one, other, got):
        receiver = other._endpoint.receiver
        match what:
            case "take all":
                got += other.recv_vectored(3, timeout=0)
            case "take one":
                got.append(other.recv(timeout=0))
            case "ahead":
                got.append(next(iter(other)))
            case "leave":  # as a call that an exception has struck
                begun(receiver)[0].over = True

    def call(one, other, got):
        receiver = other._endpoint.receiver
        if way == "fetch" and hasattr(receiver, "fetch"):
            call = receiver.begin()
            receiver.fetch(call, 2)
            call.over = True
            return []
        if way.startswith("ready"):
            loop = receiver.ready(False, memenpsf.Received)
            return [message.record for message in itertools.islice(loop, 1)]
        return list(itertools.islice(receiver.all(end, KeyError), 1))

    def end():
        raise KeyError

    def check(result, one, other, got):
        with one, other:
            left = rest(other)
            assert all(each in sent for each in got)
            assert sorted([*got, *result, *left]) == sent
            assert left == sorted(left)

    at_every_collection(prepare, call, action, check, 20)


# -- the collector, in the midst of a call ----------------------------------------------------------


@pytest.mark.parametrize("within", VERBS)
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("name", SPECS)
def test_what_the_collector_runs_may_receive_in_the_midst_of_a_call(name, verb, within):
    spec, record = SPECS[name]
    (receive, records), (inner, inner_records) = VERBS[verb], VERBS[within]
    sent = [record(n) for n in range(11, 26)]

    def prepare():
        one, other = memenpsf.pair(spec, capacity=4096)
        one.xmit_many(sent)
        return one, other, []

    def action(one, other, got):
        got += inner_records(inner(other))

    def check(result, one, other, got):
        with one, other:
            assert got == [each for each in sent if each in got]
            assert records(result) + rest(other) == [each for each in sent if each not in got]

    def call(one, other, got):
        return receive(other)

    ran = at_every_collection(prepare, call, action, check, 24)
    assert ran > 0 or verb == "recv"  # which makes nothing that the collector counts


def not_thirteen(number):
    if number == 13:
        raise ValueError(number)
    return number


@dataclasses.dataclass
class Lucky:
    number: memenpsf.u64

    def __post_init__(self):
        if not SENDING:
            not_thirteen(self.number)


SENDING = []  # while the records are made that are refused when they are decoded
FAILED = "failed"


def all_of(other, limit):
    """Receive all that is there; FAILED stands for what cannot be decoded."""
    got = []
    while True:
        try:
            batch = other.recv_vectored(limit, timeout=0)
        except memenpsf.DecodeFailed:
            batch = [FAILED]
        if not batch:
            return got
        got += batch


@pytest.mark.parametrize("first", [11, 12, 13])
@pytest.mark.parametrize(
    ("spec", "record"),
    [(Lucky, Lucky), (memenpsf.Encoded(lambda n: b"%d" % n, lambda n: not_thirteen(int(n))), int)],
    ids=["records", "messages"],
)
def test_a_record_that_is_refused_is_so_once_whatever_the_collector_runs(spec, record, first):
    numbers = range(first, first + 6)
    SENDING.append(True)
    sent = list(map(record, numbers))
    SENDING.clear()
    right = [FAILED if n == 13 else each for n, each in zip(numbers, sent, strict=True)]

    def prepare():
        one, other = memenpsf.pair(spec, capacity=4096)
        one.xmit_many(sent)
        return one, other, []

    def action(one, other, got):
        with contextlib.suppress(memenpsf.DecodeFailed):
            got.append(FAILED)
            got[-1] = other.recv(timeout=0)

    def check(result, one, other, got):
        with one, other:
            got = [each for each in got if each is not None]
            left = right[:]
            for each in got:
                left.remove(each)
            assert result == left

    assert at_every_collection(prepare, lambda one, other, _: all_of(other, 4), action, check) > 0
