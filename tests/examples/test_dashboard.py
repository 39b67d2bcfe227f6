"""The example with a web page: its pure parts by hand, the programs as a user runs them."""

import http.client
import importlib.util
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from urllib.parse import urlsplit

import pytest

pytest.importorskip("PIL")
pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

import memenpsf
from tests.kit.programs import said

REPOSITORY = Path(__file__).parent.parent.parent
DASHBOARD = REPOSITORY / "examples" / "dashboard"
DOCS = REPOSITORY / "docs" / "asyncio.md"

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(DASHBOARD)  # as Python does for a script
    import board
    import picture
    import readings
    from readings import Reading, Unit

# Nobody shall meet modules of such ordinary names by accident.
for name in ("board", "picture", "readings"):
    del sys.modules[name]

STAT = b"""\
cpu  300 30 150 5000 60 3 6 9 12 1
cpu0 100 10 50 2000 20 1 2 3 4 0
intr 954956 0 0 1
ctxt 1234567
processes 4321
softirq 777 1 2 3
"""
VMSTAT = b"""\
nr_free_pages 1
pgpgin 10
pgpgout 20
pgfault 30
pgmajfault 4
pgpgoutclean 99
"""
NET_DEV = b"""\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:    6386      58    0    0    0     0          0         0     6387      59    0    0    0     0       0          0
  eth0:1000 2 0 0 0 0 0 0 3000 4 0 0 0 0 0 0
"""


# The pure parts


def test_processors_are_counted_in_nanoseconds_and_events_as_they_are():
    tick = readings._TICK
    assert list(readings.parse_stat(STAT)) == [
        (b"processors/programs", Unit.NANOSECONDS, 330 * tick),
        (b"processors/kernel", Unit.NANOSECONDS, 150 * tick),
        (b"processors/interrupts", Unit.NANOSECONDS, 9 * tick),
        (b"processors/stolen", Unit.NANOSECONDS, 9 * tick),
        (b"processors/waiting for disks", Unit.NANOSECONDS, 60 * tick),
        (b"processors/idle", Unit.NANOSECONDS, 5000 * tick),
        (b"kernel/context switches", Unit.COUNT, 1234567),
        (b"kernel/interrupts", Unit.COUNT, 954956),
        (b"kernel/software interrupts", Unit.COUNT, 777),
        (b"kernel/processes started", Unit.COUNT, 4321),
    ]


def test_disks_are_counted_in_bytes():
    assert list(readings.parse_vmstat(VMSTAT)) == [
        (b"memory/page faults", Unit.COUNT, 30),
        (b"memory/major page faults", Unit.COUNT, 4),
        (b"disks/read", Unit.BYTES, 10 * 1024),
        (b"disks/written", Unit.BYTES, 20 * 1024),
    ]


def test_all_network_devices_are_counted_together():
    assert list(readings.parse_net_dev(NET_DEV)) == [
        (b"network/received", Unit.BYTES, 7386),
        (b"network/packets received", Unit.COUNT, 60),
        (b"network/sent", Unit.BYTES, 9387),
        (b"network/packets sent", Unit.COUNT, 63),
    ]


def test_a_round_of_this_machine_has_one_time_and_names_that_fit():
    found = readings.read_round()
    assert len(found) == len({reading.name for reading in found}) == 18
    assert len({reading.time for reading in found}) == 1
    assert all(len(reading.name) <= 31 for reading in found)


def padded(name):
    return name.ljust(31, b"\0")


def reading(seconds, value, unit=Unit.COUNT, name=b"group/counter"):
    return Reading(int(seconds * 1e9), value, unit, padded(name))


@pytest.fixture
def live():
    made = board.Board("here")
    made.begin("sampler, process 7")
    return made


def test_a_board_without_a_producer_says_what_it_waits_for():
    state = board.Board("here").tick(1)
    assert (state["status"], state["counters"]) == ("waiting", [])
    assert state["text"] == "no producer yet; waiting for one at here"


def test_a_board_shows_the_newest_and_the_rate_of_the_last_second(live):
    for tenth in range(31):
        live.take([reading(tenth / 10, tenth * 5), reading(tenth / 10 + 0.05, tenth * 10)])
        state = live.tick(100 + tenth / 10)
    assert state["text"] == "live from sampler, process 7"
    (counter,) = state["counters"]
    assert counter["rate"] == pytest.approx(100)
    del counter["rate"]
    assert counter == {"name": "group/counter", "unit": "count", "value": 300}
    assert (state["received"], state["rate"]) == (62, pytest.approx(20))


def test_there_is_no_rate_of_one_reading_and_none_below_zero(live):
    live.take([reading(1, 50)])
    assert [live.tick(at)["counters"][0]["rate"] for at in (1, 1.1)] == [None, None]
    live.take([reading(2, 40)])
    assert live.tick(1.2)["counters"][0]["rate"] == 0


def test_a_producer_that_sends_nothing_is_told_apart_from_one_that_has_ended(live):
    live.take([reading(1, 50), reading(1, 7, Unit.BYTES, b"group/other")])
    assert [live.tick(at)["status"] for at in (1, 1.9, 2)] == ["live", "live", "silent"]
    assert live.tick(2.1)["text"] == "sampler, process 7 is there, but sends nothing"
    live.end("the producer died")
    state = live.tick(2.2)
    assert (state["status"], state["text"]) == (
        "waiting",
        "the producer died; waiting for one at here",
    )
    assert [(each["value"], each["rate"]) for each in state["counters"]] == [(50, None), (7, None)]
    live.begin("another")
    assert live.tick(2.3)["counters"] == []  # its counters may be others


def test_what_a_producer_cannot_mean_is_shown_nevertheless(live):
    live.take([reading(1, 1, unit=99, name=b"\xff<b>")])
    assert live.tick(1)["counters"][0] | {"rate": 0} == {
        "name": "\ufffd<b>",
        "unit": "count",
        "value": 1,
        "rate": 0,
    }


def test_the_docs_show_what_is_in_the_program():
    (page,) = DOCS.read_text(encoding="utf-8").split("# examples/dashboard/dashboard.py\n")[1:]
    shown = page.partition("```")[0]
    source = (DASHBOARD / "dashboard.py").read_text(encoding="utf-8")
    assert textwrap.indent(shown, " " * 12) in source


# The programs

RUN = "os.execv(sys.executable, [sys.executable, '-X', 'dev', *sys.argv[1:]])\n"
LOOPS = ["asyncio", *(["uvloop"] if importlib.util.find_spec("uvloop") else [])]
loops = pytest.mark.parametrize("loop", LOOPS)


@pytest.fixture
def example(program):
    """Run an example as its user does, but for the warnings: they are part of stderr."""

    def start(script, *arguments):
        return program(RUN, DASHBOARD / script, *arguments, stderr=subprocess.PIPE)

    return start


@pytest.fixture
def address(tmp_path):
    return tmp_path / "socket"


@pytest.fixture
def sampler(example, address):
    """Start a sampler, and wait until it is there."""

    def start():
        process = example("sampler.py", "--address", address, "--rate", 50)
        line = process.stdout.readline()
        assert line == f"sampling at {address}\n", process.stderr.read()
        return process

    return start


@pytest.fixture
def dashboard(example, address):
    """Start the web server; return its process, and where it is."""

    def start(loop="asyncio"):
        process = example("dashboard.py", "--address", address, "--port", 0, "--loop", loop)
        url = process.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:"), process.stderr.read()
        return process, url

    return start


class Events:
    """A browser that reads the events."""

    def __init__(self, url):
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc)
        self._connection.request("GET", "/events")
        self._response = self._connection.getresponse()
        assert self._response.status == 200
        assert self._response.headers["Content-Type"].startswith("text/event-stream")

    def __iter__(self):
        while line := self._response.readline():
            if line.startswith(b"data: "):
                yield json.loads(line.removeprefix(b"data: "))

    def until(self, condition):
        """Return the next state of which the condition holds."""
        return next(state for state in self if condition(state))

    def status(self, status):
        return self.until(lambda state: state["status"] == status)

    def close(self):
        self._response.close()
        self._connection.close()

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()


def ended(process):
    """Wait for the end of a program; return its status, and what it said since it was last read."""
    output, errors = process.stdout.read(), said(process.stderr)
    return process.wait(), output, errors


def stop(process, number=signal.SIGINT):
    process.send_signal(number)
    return ended(process)


def values(state):
    return {counter["name"]: counter["value"] for counter in state["counters"]}


@loops
def test_the_page_goes_on_by_itself_when_its_producer_dies_and_comes_back(dashboard, sampler, loop):
    serving, url = dashboard(loop)
    with Events(url) as events:
        assert "no producer yet" in events.status("waiting")["text"]
        first = sampler()
        state = events.until(lambda state: state["rate"] and state["counters"])
        assert state["text"] == f"live from sampler, process {first.pid}"
        assert len(state["counters"]) == 20
        later = events.until(
            lambda new: values(new)["sampler/rounds"] > values(state)["sampler/rounds"]
        )
        assert later["received"] > state["received"]
        first.kill()
        state = events.status("waiting")
        assert state["text"].startswith("the producer died; waiting for one at ")
        assert len(state["counters"]) == 20
        second = sampler()
        state = events.until(lambda state: state["status"] == "live" and state["counters"])
        assert state["text"] == f"live from sampler, process {second.pid}"
        assert stop(second) == (0, "", "")
        assert events.status("waiting")["text"].startswith("the producer was stopped; ")
        assert stop(serving) == (0, "", "")
        assert all("producer was stopped" in state["text"] for state in events)  # until they end


@loops
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_server_with_open_streams_can_be_stopped_and_its_producer_is_not_disturbed(
    dashboard, sampler, loop, number
):
    sampling = sampler()
    serving, url = dashboard(loop)
    with Events(url) as events, Events(url) as others:
        events.status("live")
        others.status("live")
        assert stop(serving, number) == (0 if number == signal.SIGINT else -number, "", "")
    again, url = dashboard(loop)
    with Events(url) as events:
        events.status("live")
    assert stop(sampling, signal.SIGTERM) == (0, "", "")
    assert stop(again) == (0, "", "")


@loops
def test_browsers_come_and_go(dashboard, loop):
    serving, url = dashboard(loop)
    with Events(url) as events:
        assert next(iter(events))["browsers"] <= 1  # written before it came, or after
        others = [Events(url) for _ in range(5)]
        events.until(lambda state: state["browsers"] == 6)
        for other in others:
            other.close()
        events.until(lambda state: state["browsers"] == 1)
    assert stop(serving) == (0, "", "")


@loops
def test_a_page_shows_the_newest_however_much_comes(dashboard, address, loop):
    with memenpsf.listen(address, Reading, name="flood") as listener:
        serving, url = dashboard(loop)
        with Events(url) as events, listener.accept() as interface:
            events.status("live")
            serving.send_signal(signal.SIGSTOP)
            sent = interface.xmit_many([reading(1, n) for n in range(200_000)], timeout=0)
            assert 0 < sent < 200_000  # the ring is full
            serving.send_signal(signal.SIGCONT)
            interface.xmit_many([reading(2, n) for n in range(200_000)])
            state = events.until(lambda state: state["received"] == sent + 200_000)
            assert values(state) == {"group/counter": 199_999}
            events.status("silent")
        assert ended_in_good_order(url)
    assert stop(serving) == (0, "", "")


def ended_in_good_order(url):
    with Events(url) as events:
        return events.until(lambda state: state["text"].startswith("the producer has ended; "))


def test_a_producer_of_something_else_is_told(dashboard, address):
    with memenpsf.listen(address, "<Q") as listener:
        serving, url = dashboard()
        with pytest.raises(memenpsf.RecordRefused):
            listener.accept()
        with Events(url) as events:
            events.until(lambda state: "cannot be used: " in state["text"])
    assert stop(serving) == (0, "", "")


def test_a_producer_that_hangs_is_told(dashboard, sampler):
    sampling = sampler()
    serving, url = dashboard()
    with Events(url) as events:
        events.status("live")
        sampling.send_signal(signal.SIGSTOP)
        assert events.status("silent")["text"].endswith("is there, but sends nothing")
        sampling.send_signal(signal.SIGCONT)
        events.status("live")
    assert stop(serving) == (0, "", "")
    assert stop(sampling) == (0, "", "")


def test_the_page_needs_nothing_from_elsewhere(dashboard):
    serving, url = dashboard()
    connection = http.client.HTTPConnection(urlsplit(url).netloc)
    connection.request("GET", "/")
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    assert response.headers["Content-Type"] == "text/html; charset=utf-8"
    assert text == (DASHBOARD / "page.html").read_text(encoding="utf-8")
    assert re.findall(r"(?:src|href|url|import)\b[=(]? *[\"']?(\S*?)[\"'>)]", text) == ["data:,"]
    assert stop(serving) == (0, "", "")


def test_a_port_that_is_taken_is_told(example):
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        process = example("dashboard.py", "--port", port)
        status, output, errors = ended(process)
    assert (status, output) == (1, "")
    assert errors.startswith("dashboard: Address already in use ")
    assert str(port) in errors


@pytest.mark.parametrize("rate", [0, -1, "x", 1e7])
def test_a_rate_that_cannot_be_is_refused(example, rate):
    assert ended(example("sampler.py", "--rate", rate))[0] == 2


CHROMIUM = shutil.which("chromium")


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")
def test_a_browser_shows_it(dashboard, sampler):
    first = sampler()
    serving, url = dashboard()
    with picture.Browser(CHROMIUM) as browser:
        browser.open(url, 1120, 840)
        until(browser, "document.querySelectorAll('tbody tr').length", 20)
        until(browser, "document.getElementById('status').className", "live")
        assert browser.value("document.querySelectorAll('section').length") == 6
        assert browser.picture().startswith(b"\x89PNG")
        first.kill()
        until(browser, "document.body.className", "stale")
        said = browser.value("document.getElementById('status').textContent")
        assert said.startswith("the producer died")
        second = sampler()
        until(browser, "document.getElementById('status').className", "live")
        assert stop(serving) == (0, "", "")
        until(browser, "document.getElementById('status').className", "lost")
    assert stop(second) == (0, "", "")


def until(browser, expression, value):
    while browser.value(expression) != value:
        pass
