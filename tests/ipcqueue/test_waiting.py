"""How an end waits: the strategies, and what the adaptive one learns."""

import contextlib
import math
import os
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from ipcqueue._core import ffi, lib
from ipcqueue._waiting import lib as waiting

import memenpsf
from ipcqueue._link import ends as _ends
from ipcqueue._link import options as _options
from ipcqueue._link import plans
from ipcqueue._ring import patience as _patience
from ipcqueue._ring import processors as _processors
from ipcqueue.lowlevel import Role, Terms

SPIN, WAKING = 30_000, 120_000  # nanoseconds; as in core/ends.h
BOTH = Role(sends=True, receives=True)


@contextlib.contextmanager
def connection(**options):
    one, other = memenpsf.pair(8, **options)
    with one, other:
        yield one, other


def patience(interface):
    return lib.ipcq_patience(interface._endpoint.receiver._ring)


def learn(interface, came):
    lib.ipcq_learn(interface._endpoint.receiver._ring, came)


suited = _patience.suited
PROCESSORS = os.sched_getaffinity(0)


@pytest.fixture(autouse=True)
def _two_processes(monkeypatch):
    """As if each end of a pair were in a process of its own, on a processor of its own."""
    if len(PROCESSORS) < 2:
        pytest.skip("looking for records needs two processors")
    monkeypatch.setitem(_options._STRATEGIES, "spin", _patience.Patience(SPIN, adaptive=True))
    monkeypatch.setattr(_ends, "suited", lambda patience, **_: patience)


@pytest.fixture
def one_process(monkeypatch):
    monkeypatch.setattr(_ends, "suited", suited)


@pytest.fixture
def one_processor():
    os.sched_setaffinity(0, {min(PROCESSORS)})
    yield
    os.sched_setaffinity(0, PROCESSORS)


def yields(interface):
    return bool(lib.ipcq_yields(interface._endpoint.receiver._ring))


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({}, (SPIN, True)),
            ({"wait": "spin"}, (SPIN, True)),
            ({"wait": "sleep"}, (0, False)),
            ({"wait": "busy"}, _patience.BUSY),
            ({"wait": memenpsf.Spin(0)}, (0, False)),
            ({"wait": memenpsf.Spin(0.0005)}, (500_000, False)),
            ({"wait": memenpsf.Spin(timedelta(milliseconds=1))}, (1_000_000, False)),
        ],
    )
    def test_what_they_mean(self, options, expected):
        assert Terms(8, BOTH, **options).patience[:2] == expected[:2]

    @pytest.mark.parametrize(
        ("options", "error", "says"),
        [
            ({"wait": "yield"}, ValueError, "wait is one of .*spin.*busy.*sleep.*, not 'yield'"),
            ({"wait": None}, TypeError, "wait is one of .* not None"),
            ({"wait": 0.0001}, TypeError, r"wait is one of .* or Spin\(seconds\), not 0.0001"),
            ({"wait": (0.0001,)}, TypeError, "wait is one of"),
        ],
    )
    def test_what_means_nothing(self, options, error, says):
        with pytest.raises(error, match=says):
            Terms(8, BOTH, **options)

    @pytest.mark.parametrize(
        ("seconds", "error", "says"),
        [
            ("0", TypeError, "seconds of Spin are from 0 to 0.001 seconds, not '0'"),
            (None, TypeError, "not None"),
            (True, TypeError, "not True"),
            (-1e-9, ValueError, "from 0 to 0.001 seconds, not -1e-09"),
            (0.0011, ValueError, "not 0.0011"),
            (float("nan"), ValueError, "not nan"),
        ],
    )
    def test_how_long_nobody_can_spin(self, seconds, error, says):
        with pytest.raises(error, match=says):
            memenpsf.Spin(seconds)
        with pytest.raises(error, match=says):
            memenpsf.Spin(0)._replace(seconds=seconds)

    def test_spin_is_a_value(self):
        assert memenpsf.Spin(timedelta(microseconds=500)) == memenpsf.Spin(0.0005)
        assert repr(memenpsf.Spin(0.0005)) == "Spin(seconds=0.0005)"
        assert pickle.loads(pickle.dumps(memenpsf.Spin(0.0005))) == memenpsf.Spin(0.0005)

    def test_on_a_single_processor_nobody_spins(self, monkeypatch):
        monkeypatch.setitem(_options._STRATEGIES, "spin", _patience.Patience(0, adaptive=False))
        with connection() as (one, other):
            assert patience(one) == 0
            assert not other._endpoint.receiver.look()


class TestSharing:
    """Looking helps nobody where it keeps the peer from running."""

    def test_two_processes_look_and_keep_the_interpreter_at_first(self):
        for options in ({}, {"wait": "busy"}, {"wait": memenpsf.Spin(0.0001)}):
            with connection(**options) as (one, _):
                assert patience(one) > 0
                assert not yields(one)
                assert one._endpoint.receiver._keeps

    @pytest.mark.usefixtures("one_process")
    def test_between_threads_of_a_process_the_default_is_to_sleep(self):
        with connection() as (one, other):
            for side in (one, other):
                assert patience(side) == 0
                assert not side._endpoint.sender.look(1 << 20)

    @pytest.mark.usefixtures("one_process")
    @pytest.mark.parametrize("options", [{"wait": "busy"}, {"wait": memenpsf.Spin(0.0001)}])
    def test_between_threads_who_must_look_lets_others_run(self, options):
        with connection(**options) as (one, other):
            for side in (one, other):
                assert patience(side) > 0
                assert yields(side)
                assert not side._endpoint.receiver._keeps

    @pytest.mark.usefixtures("one_processor")
    def test_on_one_processor_the_default_is_to_sleep(self):
        with connection() as (one, _):
            assert patience(one) == 0

    @pytest.mark.usefixtures("one_processor")
    @pytest.mark.parametrize("options", [{"wait": "busy"}, {"wait": memenpsf.Spin(0.0001)}])
    def test_on_one_processor_who_must_look_lets_others_run(self, options):
        with connection(**options) as (one, _):
            assert patience(one) > 0
            assert yields(one)

    def test_a_change_of_the_affinity_is_noticed(self):
        with connection() as (one, _):
            assert patience(one) > 0
            try:
                os.sched_setaffinity(0, {min(PROCESSORS)})
                while not yields(one):
                    pass
                assert patience(one) == 0
            finally:
                os.sched_setaffinity(0, PROCESSORS)
            while yields(one):
                pass
            assert patience(one) > 0

    @pytest.mark.parametrize(("allowed", "few"), [(0.5, True), (1.99, True), (2, False)])
    def test_a_cgroup_that_allows_less_than_two_processors_counts_as_one(
        self, monkeypatch, allowed, few
    ):
        monkeypatch.setattr(_patience, "processors_allowed", lambda: allowed)
        assert (suited(_patience.ADAPTIVE, shares=False).nanoseconds == 0) == few
        assert suited(_patience.BUSY, shares=False).yields == few

    @pytest.mark.parametrize(
        ("line", "limits", "allowed"),
        [
            ("0::/", {"": "max 100000"}, math.inf),
            ("0::/", {"": "150000 100000"}, 1.5),
            ("0::/a/b", {"a/b": "max 100000", "a": "50000 100000"}, 0.5),
            ("0::/a/b", {"a/b": "200000 100000", "": "300000 100000"}, 2),
            ("0::/of/the/host", {"": "100000 50000"}, 2),
            ("0::/../..", {"": "100000 100000"}, 1),
            ("0::/", {}, math.inf),
            ("0::/", {"": "nonsense"}, math.inf),
            ("0::/", {"": "100000 0"}, math.inf),
            ("3:cpu:/x", {"x": "100000 100000"}, math.inf),
            ("", {"": "100000 100000"}, math.inf),
        ],
    )
    def test_the_least_limit_around_a_process_counts(self, tmp_path, line, limits, allowed):
        cgroups = tmp_path / "cgroup"
        for group, limit in limits.items():
            (cgroups / group).mkdir(parents=True, exist_ok=True)
            (cgroups / group / "cpu.max").write_text(limit + "\n")
        (tmp_path / "self").write_text(f"1:name=systemd:/\n{line}\n")
        assert _processors.least_limit(str(cgroups), str(tmp_path / "self")) == allowed

    def test_without_proc_there_is_no_limit(self, tmp_path):
        assert _processors.least_limit(str(tmp_path), str(tmp_path / "nothing")) == math.inf


class TestStrategies:
    def test_busy_never_sleeps(self, monkeypatch):
        def sleep(*_):
            raise AssertionError

        monkeypatch.setattr(plans.Rounds, "_sleep", sleep)
        with connection(wait="busy", capacity=1) as (one, other):
            one.xmit(bytes(8))
            with pytest.raises(memenpsf.Full):
                one.xmit(bytes(8), timeout=0.003)
            assert other.recv() == bytes(8)
            assert other.recv(timeout=0.003) is None
            one.close()
            with pytest.raises(memenpsf.EndOfStream):
                other.recv()

    def test_sleep_does_not_look(self):
        with ThreadPoolExecutor() as pool, connection(wait="sleep") as (one, other):
            receiving = pool.submit(other.recv)
            while not other.statistics().waits:
                time.sleep(0.001)
            assert patience(other) == 0
            one.xmit(bytes(8))
            assert receiving.result() == bytes(8)

    @pytest.mark.parametrize(
        "options", [{"wait": "busy"}, {"wait": "sleep"}, {"wait": memenpsf.Spin(0.0001)}, {}]
    )
    def test_all_of_them_move_records_between_threads(self, options):
        with connection(capacity=4, **options) as (one, other), ThreadPoolExecutor() as pool:
            sent = [n.to_bytes(8, "little") for n in range(2000)]

            def send():
                for record in sent:
                    one.xmit(record)

            sending = pool.submit(send)
            assert [other.recv() for _ in sent] == sent
            sending.result()
            assert other.statistics().rescues == one.statistics().rescues == 0


class TestAdaptation:
    def test_each_time_in_vain_doubles_how_often_it_is_passed_over(self):
        with connection() as (one, _):
            expected = 1
            for _ in range(12):
                assert patience(one) == SPIN
                learn(one, came=False)
                for _ in range(min(expected, 512)):
                    assert patience(one) == 0
                expected *= 2
            assert patience(one) == SPIN

    def test_once_it_pays_it_is_not_passed_over(self):
        with connection() as (one, _):
            for _ in range(5):
                while not patience(one):
                    pass
                learn(one, came=False)
            while not patience(one):
                pass
            learn(one, came=True)
            assert [patience(one) for _ in range(3)] == [SPIN] * 3

    def test_a_peer_that_was_woken_gets_the_time_that_takes(self):
        with connection() as (one, other):
            assert other.arm()  # it sleeps
            assert patience(one) == SPIN
            one.xmit(bytes(8))
            assert one.statistics().doorbells == 1
            assert patience(one) == SPIN + WAKING
            assert patience(one) == SPIN
            assert other.recv() == bytes(8)

    def test_what_was_told_is_not_adapted(self):
        with connection(wait=memenpsf.Spin(0.0001)) as (one, _):
            for _ in range(5):
                assert patience(one) == 100_000
                learn(one, came=False)

    def test_looking_learns_by_itself(self):
        with connection() as (one, other):
            receiver = other._endpoint.receiver
            assert not receiver.look()
            assert patience(other) == 0  # the one to pass over
            one.xmit(bytes(8))
            assert receiver.look()
            assert patience(other) == SPIN

    def test_space_is_looked_for_until_there_is_some_to_go_on_with(self):
        # Woken for each slot, the sender would be one record ahead of its receiver for ever.
        with connection(capacity=64, wait=memenpsf.Spin(0.0001)) as (one, other):
            one.xmit_many([bytes(8)] * 64)
            ring = one._endpoint.sender._ring
            assert waiting.ipcq_await_space(ring, 1) == lib.IPCQ_FULL
            other.recv()
            assert waiting.ipcq_await_space(ring, 1) == lib.IPCQ_DONE  # after all the time
            assert waiting.ipcq_await_space(ring, 2) == lib.IPCQ_FULL


class TestAsking:
    """recv(timeout=0), again and again."""

    def test_it_reads_the_socket_only_if_something_came(self, monkeypatch):
        with connection() as (one, other):
            asked = []
            receiver = other._endpoint.receiver
            monkeypatch.setattr(other._threads, "pop", asked.append)
            for _ in range(10_000):
                receiver.note_read()
                assert other.recv(timeout=0) is None
            assert len(asked) < 10_000  # or this machine takes 1 ms for a call, each time
            monkeypatch.undo()
            one.xmit(bytes(8))
            receiver.note_read()
            assert other.recv(timeout=0) == bytes(8)

    def test_the_end_is_seen_at_once(self):
        with connection() as (one, other):
            other.recv(timeout=0)
            other._endpoint.note_read()
            one.close()
            with pytest.raises(memenpsf.EndOfStream):
                while other.recv(timeout=0) is None:
                    pass

    def test_what_came_through_the_socket_is_seen_at_once(self):
        with connection() as (one, other):
            other.recv(timeout=0)
            other._endpoint.note_read()
            one._endpoint.wire.sock.send(b"\x07\x00")  # means nothing
            with pytest.raises(memenpsf.CorruptPeer):
                other.recv(timeout=0)
        with connection() as (one, other):
            other.recv(timeout=0)
            other._endpoint.note_read()
            one._endpoint.wire.sock.shutdown(2)  # as when it dies
            with pytest.raises(memenpsf.PeerDied):
                other.recv(timeout=0)

    def test_what_is_wrong_is_seen_at_once(self):
        with connection() as (one, other):
            other.recv(timeout=0)
            other._endpoint.note_read()
            at = ffi.cast("char *", one._endpoint._own.mapping.at) + 1024
            ffi.cast("uint64_t *", at)[0] = 1 << 40  # head
            with pytest.raises(memenpsf.CorruptPeer):
                other.recv(timeout=0)

    def test_a_connection_that_has_ended_is_never_quiet(self):
        with connection() as (one, other):
            one._endpoint.wire.sock.shutdown(2)
            other._endpoint.read_if_free()
            other._endpoint.note_read()
            for _ in range(3):
                with pytest.raises(memenpsf.PeerDied):
                    other.recv(timeout=0)
