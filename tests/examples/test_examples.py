"""The examples: their pure parts by hand, the programs as a user runs them."""

import functools
import importlib.util
import math
import os
import pty
import re
import signal
import struct
import subprocess
from pathlib import Path

import pytest

from tests.kit.programs import said

EXAMPLES = Path(__file__).parent.parent.parent / "examples"

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(EXAMPLES)  # as Python does for a script
    import counters
    import display
    import recording
    import source
    from counters import Kind, Sample

STAT = b"""\
cpu  300 30 150 5000 60 3 6 9 12 1
cpu0 100 10 50 2000 20 1 2 3 4 0
cpu11 200 20 100 3000 40 2 4 6 8 1
intr 954956 0 0 1
ctxt 1234567
cpufreq 1 2
"""
MEMINFO = b"""\
MemTotal:       24684092 kB
MemFree:        17758400 kB
MemAvailable:   17743356 kB
Buffers:            6864 kB
Cached:           260368 kB
SwapCached:            1 kB
HugePages_Total:       0
"""
NET_DEV = b"""\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:    6386      58    0    0    0     0          0         0     6387      59    0    0    0     0       0          0
abcdefghijklmno:18446744073709551615 4312 1 2 3 4 5 6 273027 2342 0 0 0 0 0 0
"""

# What a client gets: two rounds of a small machine, told in between that it missed something.
STREAM = [
    Sample(1_000_000_000, Kind.INTERVAL, b"", 500),
    Sample(1_000_000_001, Kind.CPU, b"cpu0", 100, 50, 1000, 0),
    Sample(1_000_000_001, Kind.MEMORY, b"", 4 << 30, 1 << 30, 2 << 30, 1 << 20),
    Sample(1_000_000_001, Kind.NETWORK, b"eth0", 1000, 10, 2000, 20),
    Sample(1_500_000_001, Kind.SKIPPED, b"", 7),
    Sample(1_500_000_001, Kind.CPU, b"cpu0", 120, 55, 1020, 5),
    Sample(1_500_000_001, Kind.MEMORY, b"", 4 << 30, 1 << 29, 1 << 31, 1 << 20),
    Sample(1_500_000_001, Kind.NETWORK, b"eth0", 2024, 15, 1999, 20),
]
STREAM_AS_LINES = """\
1.000000000 interval milliseconds=500
1.000000001 cpu cpu0 user=100 system=50 idle=1000 stolen=0
1.000000001 memory total=4294967296 free=1073741824 available=2147483648 cached=1048576
1.000000001 network eth0 rx_bytes=1000 rx_packets=10 tx_bytes=2000 tx_packets=20
1.500000001 skipped records=7
1.500000001 cpu cpu0 user=120 system=55 idle=1020 stolen=5
1.500000001 memory total=4294967296 free=536870912 available=2147483648 cached=1048576
1.500000001 network eth0 rx_bytes=2024 rx_packets=15 tx_bytes=1999 tx_packets=20
"""
STREAM_AS_TABLE = """\
every 0.5 s; 1.5 s after boot; 8 records received, 7 skipped

core                    busy         user       system       stolen
cpu0                  60.0 %       40.0 %       10.0 %       10.0 %  ######

                       total         free    available       cached
memory               4.0 GiB    512.0 MiB      2.0 GiB      1.0 MiB

device              received    packets/s         sent    packets/s
eth0               2.0 KiB/s         10.0      0.0 B/s          0.0
"""


# The pure parts


def test_a_record_for_each_core():
    assert list(counters.parse_stat(7, STAT)) == [
        Sample(7, Kind.CPU, b"cpu0", 110, 53, 2020, 3),
        Sample(7, Kind.CPU, b"cpu11", 220, 106, 3040, 6),
    ]


def test_a_record_for_memory_in_bytes():
    assert counters.parse_meminfo(7, MEMINFO) == Sample(
        7, Kind.MEMORY, b"", 24684092 << 10, 17758400 << 10, 17743356 << 10, 260368 << 10
    )


def test_a_record_for_each_device_with_the_longest_name_and_number():
    assert list(counters.parse_net_dev(7, NET_DEV)) == [
        Sample(7, Kind.NETWORK, b"lo", 6386, 58, 6387, 59),
        Sample(7, Kind.NETWORK, b"abcdefghijklmno", 2**64 - 1, 4312, 273027, 2342),
    ]


def test_a_round_of_this_machine_can_be_sent_and_has_one_time():
    samples = counters.read_round()
    assert len({sample.time for sample in samples}) == 1
    assert {sample.kind for sample in samples} >= {Kind.CPU, Kind.MEMORY}
    assert all(recording.RECORD.pack(*sample) for sample in samples)


def test_every_tenth_of_a_second_can_be_commanded():
    for tenths in range(1, 256):
        message = counters.interval_command(tenths / 10)
        assert message[0] >= 128
        assert counters.commanded_interval(message) == tenths / 10


@pytest.mark.parametrize("seconds", [0, -1, 0.05, 0.25, 25.6, 1e300, math.inf, math.nan])
def test_other_intervals_cannot_be_commanded(seconds):
    with pytest.raises(ValueError, match=r"0\.1 to 25\.5 seconds"):
        counters.interval_command(seconds)


@pytest.mark.parametrize("message", [b"\x80\x00", b"\x81\x01", b"\xff\xff"])
def test_what_is_no_command_is_refused(message):
    with pytest.raises(ValueError, match="means nothing"):
        counters.commanded_interval(message)


def test_records_as_lines():
    assert "".join(f"{display.line(sample)}\n" for sample in STREAM) == STREAM_AS_LINES


def test_a_server_cannot_send_control_characters_to_a_terminal():
    hostile = Sample(0, 99, b"\x1b[2J \xff\n\0\0\0", 1, 2, 3, 4)
    assert display.line(hostile) == r"0.000000000 kind99 \x1b[2J\x20\xff\x0a a=1 b=2 c=3 d=4"


def test_records_as_a_table():
    table = display.Table()
    table.update(STREAM)
    assert list(table.lines()) == STREAM_AS_TABLE.splitlines()


def test_a_table_of_nothing_and_one_of_the_first_round_have_no_rates():
    table = display.Table()
    assert next(table.lines()) == "every 0 s; 0.0 s after boot; 0 records received, 0 skipped"
    table.update(STREAM[:4])
    rows = {line.split()[0]: line.split()[1:] for line in table.lines() if line}
    assert rows["cpu0"] == rows["eth0"] == ["-", "-", "-", "-"]
    assert rows["memory"] == ["4.0", "GiB", "1.0", "GiB", "2.0", "GiB", "1.0", "MiB"]


def test_what_is_gone_leaves_the_table_and_what_counts_anew_has_no_rate_below_zero():
    table = display.Table()
    table.update([*STREAM, Sample(2_500_000_001, Kind.NETWORK, b"eth0", 1, 2, 3, 4)])
    text = "\n".join(table.lines())
    assert "cpu0" not in text
    assert re.search(r"^eth0 +0\.0 B/s +0\.0 +0\.0 B/s +0\.0$", text, re.MULTILINE)


def test_a_screen_is_cut_to_the_terminal():
    lines = ["one", "a long line", "three", "four"]
    end = "\x1b[K\n"
    assert display.screen(lines, 80, 5) == f"\x1b[H{end.join(lines)}{end}\x1b[J"
    cut = ["one", "a lo", "... "]
    assert display.screen(lines, 4, 4) == f"\x1b[H{end.join(cut)}{end}\x1b[J"
    assert "... 3 more lines" in display.screen(lines, 80, 3)


@pytest.fixture
def recorded(tmp_path):
    """The path of a recording of STREAM."""
    path = tmp_path / "recorded"
    with recording.Recorder(path) as recorder:
        recorder.write(STREAM[:3])
        recorder.write(STREAM[3:])
    return path


def padded(samples):
    return [sample._replace(name=sample.name.ljust(16, b"\0")) for sample in samples]


def test_a_recording_can_be_read_and_has_the_pace_of_what_was(recorded):
    samples, rest = recording.load(recorded)
    assert (samples, rest) == (padded(STREAM), 0)
    assert recording.schedule(samples, 1) == [
        (0.0, samples[:1]),
        (1e-9, samples[1:4]),
        (0.500000001, samples[4:]),
    ]
    assert [due for due, _ in recording.schedule(samples, 0.5)] == [0.0, 2e-9, 1.000000002]
    assert [due for due, _ in recording.schedule(samples, 0)] == [0.0, 0.0, 0.0]
    assert recording.schedule([], 1) == []


def test_a_recording_that_was_cut_off_counts_to_its_last_whole_record(recorded):
    recorded.write_bytes(recorded.read_bytes()[:-1])
    assert recording.load(recorded) == (padded(STREAM[:-1]), recording.RECORD.size - 1)


def broken_recordings():
    return {
        "is not a recording: it does not begin with MEMENREC": b"#!/bin/sh\n",
        "is not a recording: it does not begin with": b"",
        "is a broken recording: it ends within its header": recording.HEADER[:-1],
        "is a broken recording: it ends within its": recording.MAGIC,
        "has records of another layout: 'time:Q', not 'time:Q kind:B": (
            recording.MAGIC + struct.pack("<H", 6) + b"time:Q" + bytes(100)
        ),
    }


@pytest.mark.parametrize("why", broken_recordings())
def test_what_is_no_recording_is_refused(recorded, why):
    recorded.write_bytes(broken_recordings()[why])
    with pytest.raises(recording.RecordingError, match=f"recorded {re.escape(why)}"):
        recording.load(recorded)


def test_a_recording_that_cannot_be_written_or_read_is_told(tmp_path):
    with pytest.raises(recording.RecordingError, match=r"cannot write /dev/full: No space left"):
        recording.Recorder("/dev/full")
    with pytest.raises(recording.RecordingError, match=r"cannot write .*: Is a directory"):
        recording.Recorder(tmp_path)
    with pytest.raises(recording.RecordingError, match=r"cannot read .*: No such file"):
        recording.load(tmp_path / "none")


def test_what_a_client_misses_is_told_where_it_is_missing():
    feed = source.Feed(1, 2)
    one, two, three = STREAM[1:4]

    def told(offered):
        return [(sample.kind, sample.a) for sample in offered if sample.kind == Kind.SKIPPED]

    assert feed.offer([one]) == [one]
    feed.settle([one], 1)
    assert feed.offer([one, two, three]) == [one, two, three]
    feed.settle([one, two, three], 1)
    offered = feed.offer([one, two])
    assert told(offered) == [(Kind.SKIPPED, 2)]
    assert offered[1:] == [one, two]
    feed.settle(offered, 0)  # not even the word of it got through
    offered = feed.offer([one])
    assert told(offered) == [(Kind.SKIPPED, 4)]
    feed.settle(offered, 1)  # only that
    assert told(feed.offer([one])) == [(Kind.SKIPPED, 1)]
    feed.settle(feed.offer([one]), 2)
    assert feed.offer([one]) == [one]
    assert feed.offer([]) == []


def test_a_command_changes_the_interval_for_all():
    live = source.Live(25.5)
    (notice,) = source.Feed(1, 2).command(live, counters.interval_command(0.3))
    assert (notice.kind, notice.a, live.interval) == (Kind.INTERVAL, 300, 0.3)
    assert live.seconds_left() <= 0.3
    assert source.Feed(1, 2).command(live, b"\xff\xff") == []
    assert live.interval == 0.3


# The programs

KINDS = [(), ("--trio",), ("--asyncio",)]
kinds_of_server = pytest.mark.parametrize("server_kind", KINDS, ids=["threads", "trio", "asyncio"])
kinds_of_client = pytest.mark.parametrize("client_kind", KINDS, ids=["plain", "trio", "asyncio"])
some_mixes = pytest.mark.parametrize(
    ("server_kind", "client_kind"), list(zip(KINDS, [*KINDS[1:], KINDS[0]], strict=True))
)

RUN = "os.execv(sys.executable, [sys.executable, '-X', 'dev', *sys.argv[1:]])\n"
END_OF_STREAM = "ipc_client: the server has ended the stream\n"


@pytest.fixture
def example(program):
    """Run an example as its user does, but for the warnings: they are part of stderr."""

    def start(script, *arguments):
        return program(RUN, EXAMPLES / script, *arguments, stderr=subprocess.PIPE)

    return start


@pytest.fixture
def address(tmp_path):
    return tmp_path / "socket"


@pytest.fixture
def client(example, address):
    return functools.partial(example, "ipc_client.py", "--address", address)


@pytest.fixture
def server(example, address):
    """Start a server, and wait until it is there."""

    def start(*arguments):
        process = example("ipc_server.py", "--address", address, *arguments)
        line = process.stdout.readline()
        assert line.startswith("serving "), process.stderr.read()
        assert line.endswith(f" at {address}\n")
        return process

    return start


def ended(process):
    """Wait for the end of a program; return its status, and what it said since it was last read."""
    output, errors = process.stdout.read(), said(process.stderr)
    return process.wait(), output, errors


def stop(process, number=signal.SIGTERM):
    process.send_signal(number)
    return ended(process)


def read_until(process, pattern):
    """Return the next line of output that has the pattern."""
    for line in process.stdout:
        if re.search(pattern, line):
            return line
    pytest.fail(f"no {pattern!r}; {process.stderr.read()}")


@kinds_of_server
@kinds_of_client
def test_a_replay_is_shown_exactly_and_can_be_recorded_again(
    server, client, server_kind, client_kind, recorded, tmp_path
):
    serving = server(*server_kind, "--replay", recorded, "--speed", "0")
    again = tmp_path / "again"
    watching = client(*client_kind, "--record", again)
    assert ended(watching) == (0, STREAM_AS_LINES, END_OF_STREAM)
    assert again.read_bytes() == recorded.read_bytes()
    other = client(*client_kind, "--count", "3")
    assert ended(other) == (0, "".join(STREAM_AS_LINES.splitlines(keepends=True)[:3]), "")
    read_until(serving, "^client 2: (has been sent all there is|left)$")
    assert stop(serving) == (0, "ended by SIGTERM\n", "")


@some_mixes
def test_live_counters_are_recorded_and_replayed_as_they_were(
    server, client, server_kind, client_kind, tmp_path
):
    first, second = tmp_path / "first", tmp_path / "second"
    live = server(*server_kind, "--interval", "0.1")
    status, shown, errors = ended(client(*client_kind, "--count", "50", "--record", first))
    assert (status, errors) == (0, "")
    assert len(shown.splitlines()) == 50
    assert re.match(r"\d+\.\d{9} interval milliseconds=100\n\d+\.\d{9} cpu cpu0 user=\d+ ", shown)
    assert stop(live)[::2] == (0, "")
    server(*server_kind, "--replay", first, "--speed", "0")
    assert ended(client(*client_kind, "--record", second)) == (0, shown, END_OF_STREAM)
    assert second.read_bytes() == first.read_bytes()


@kinds_of_server
def test_the_log_of_a_server(server, client, server_kind, recorded):
    serving = server(*server_kind, "--replay", recorded, "--speed", "0")
    first = client()
    ended(first)
    second = client("--trio")
    ended(second)
    status, output, errors = stop(serving, signal.SIGINT)
    assert (status, errors) == (0, "")
    assert output.splitlines() == [
        f"client 1: connected (process {first.pid})",
        "client 1: has been sent all there is",
        f"client 2: connected (process {second.pid})",
        "client 2: has been sent all there is",
        "ended by SIGINT",
    ]


@some_mixes
def test_a_client_commands_the_interval_of_all(server, client, server_kind, client_kind):
    serving = server(*server_kind, "--interval", "25.5")
    watching = client()
    assert "milliseconds=25500" in watching.stdout.readline()
    # It leaves at once; the command counts nevertheless.
    assert ended(client(*client_kind, "--interval", "0.1", "--count", "0")) == (0, "", "")
    read_until(watching, "interval milliseconds=100$")
    times = [float(read_until(watching, " cpu cpu0 ").split()[0]) for _ in range(3)]
    assert times == sorted(set(times))
    assert read_until(serving, "command").endswith("machine every 0.1 s for all\n")


@kinds_of_server
def test_a_replay_keeps_its_pace(server, client, server_kind, tmp_path):
    hours = tmp_path / "hours"
    with recording.Recorder(hours) as recorder:
        recorder.write(STREAM[:1])
        recorder.write(sample._replace(time=sample.time * 10_000) for sample in STREAM[1:])
    serving = server(*server_kind, "--replay", hours)
    watching = client("--interval", "0.1")
    assert "milliseconds=500" in watching.stdout.readline()
    assert "80 01, since a recording keeps its own pace" in read_until(serving, "refused")
    # Hours before the next round is due: a client may leave, and so may the server.
    assert ended(client("--trio", "--count", "1"))[0] == 0
    read_until(serving, "^client 2: left$")
    assert stop(serving) == (0, "ended by SIGTERM\n", "")
    assert ended(watching) == (0, "", END_OF_STREAM)


@kinds_of_server
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_server_in_good_order(server, client, server_kind, number):
    serving = server(*server_kind)
    watching = [client(*kind) for kind in KINDS]
    for process in watching:
        process.stdout.readline()
    status, output, errors = stop(serving, number)
    assert (status, output.splitlines()[-1], errors) == (0, f"ended by {number.name}", "")
    for process in watching:
        assert ended(process)[::2] == (0, END_OF_STREAM)


@kinds_of_server
def test_control_c_ends_a_client_in_good_order(server, client, server_kind):
    serving = server(*server_kind)
    for number, kind in enumerate(KINDS, 1):
        watching = client(*kind)
        watching.stdout.readline()
        assert stop(watching, signal.SIGINT)[::2] == (0, "")
        read_until(serving, f"^client {number}: left$")


@kinds_of_client
def test_the_death_of_a_server_is_told(server, client, client_kind):
    serving = server()
    watching = client(*client_kind)
    watching.stdout.readline()
    serving.kill()
    status, _, errors = ended(watching)
    assert (status, errors) == (3, "ipc_client: the server died\n")


@kinds_of_server
def test_the_death_of_a_client_harms_nobody_else_and_its_recording_can_be_used(
    server, client, server_kind, tmp_path
):
    serving = server(*server_kind, "--interval", "0.1")
    other, victim = client(), client("--record", tmp_path / "record")
    for process in victim, other:
        process.stdout.readline()
    victim.kill()
    read_until(serving, "lost: the peer is gone")
    before = counters.now() / 1e9
    while float(read_until(other, " cpu ").split()[0]) <= before:
        pass
    samples, rest = recording.load(tmp_path / "record")
    assert samples[0].kind == Kind.INTERVAL
    assert rest == 0


@kinds_of_server
def test_a_client_that_stops_delays_nobody_and_is_told_what_it_missed(server, client, server_kind):
    serving = server(*server_kind, "--interval", "0.1", "--capacity", "64")
    stopped, other = client(), client()
    for process in stopped, other:
        process.stdout.readline()
    stopped.send_signal(signal.SIGSTOP)
    read_until(serving, r"^client \d: too slow, \d+ records skipped$")
    before = counters.now() / 1e9
    while float(read_until(other, " cpu ").split()[0]) <= before:
        pass
    stopped.send_signal(signal.SIGCONT)
    missed = read_until(stopped, " skipped records=")
    assert int(missed.partition("=")[2]) > 0


@kinds_of_client
def test_a_reader_that_has_had_enough_is_no_error(server, client, client_kind):
    server("--interval", "0.1")
    watching = client(*client_kind)
    watching.stdout.readline()
    watching.stdout.close()  # as in `ipc_client.py | head -1`
    assert (watching.wait(), watching.stderr.read()) == (0, "")


def test_in_a_terminal_a_client_draws_a_table(server, program, address, recorded):
    server("--replay", recorded, "--speed", "0")
    outer, inner = pty.openpty()
    watching = program(
        f"os.dup2({inner}, 1)\nos.environ.update(COLUMNS='80', LINES='24')\n" + RUN,
        EXAMPLES / "ipc_client.py",
        "--address",
        address,
        stderr=subprocess.PIPE,
        pass_fds=[inner],
    )
    os.close(inner)
    drawn = b""
    try:
        while data := os.read(outer, 4096):
            drawn += data
    except OSError:  # EIO: a terminal that nobody has open any more
        pass
    os.close(outer)
    assert ended(watching) == (0, "", END_OF_STREAM)
    last = drawn.decode().replace("\r\n", "\n").rpartition("\x1b[H")[2]
    assert last == STREAM_AS_TABLE.replace("\n", "\x1b[K\n") + "\x1b[J"


@kinds_of_client
def test_without_a_server_a_client_says_so(client, client_kind, address, tmp_path):
    kept = tmp_path / "kept"
    kept.write_text("an older recording, not lost")
    watching = client(*client_kind, "--record", kept)
    assert ended(watching) == (1, "", f"ipc_client: no server at {address}\n")
    assert kept.read_text() == "an older recording, not lost"


@kinds_of_client
def test_a_server_of_something_else_is_refused(client, client_kind, program, address):
    serving = program(
        "import memenpsf\n"
        "with memenpsf.listen(sys.argv[1], '<Q') as listener:\n"
        "    print('listening', flush=True)\n"
        "    try: listener.accept()\n"
        "    except memenpsf.RecordRefused: print('refused')\n",
        address,
    )
    serving.stdout.readline()
    status, output, errors = ended(client(*client_kind))
    assert (status, output) == (1, "")
    assert re.fullmatch(r"ipc_client: [^\n]*57 bytes[^\n]*\n", errors)
    assert serving.stdout.read() == "refused\n"


@kinds_of_client
def test_a_recording_that_fails_ends_a_client_with_a_word(server, client, client_kind):
    server()
    watching = client(*client_kind, "--record", "/dev/full")
    text = "ipc_client: cannot write /dev/full: No space left on device\n"
    assert ended(watching) == (1, "", text)


@kinds_of_server
def test_an_address_in_use_is_told(server, example, server_kind, address):
    server()
    second = example("ipc_server.py", "--address", address, *server_kind)
    assert ended(second) == (1, "", f"ipc_server: {address}: a live server listens there\n")


@kinds_of_server
def test_a_broken_recording_is_told(example, server_kind, tmp_path):
    path = tmp_path / "noise"
    path.write_bytes(b"noise")
    serving = example("ipc_server.py", *server_kind, "--replay", path)
    text = f"ipc_server: {path} is not a recording: it does not begin with MEMENREC\n"
    assert ended(serving) == (1, "", text)


@pytest.mark.parametrize("script", ["ipc_server.py", "ipc_client.py"])
@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--interval", "0.25"), "an interval is 0.1 to 25.5 seconds, in steps of 0.1, not 0.25"),
        (("--interval", "soon"), "could not convert"),
        (("--what",), "unrecognized"),
    ],
)
def test_wrong_arguments_are_explained(example, script, arguments, why):
    status, output, errors = ended(example(script, *arguments))
    assert (status, output) == (2, "")
    assert why in errors


@pytest.mark.parametrize("script", [path.name for path in EXAMPLES.glob("*.py")])
def test_every_example_says_what_it_is(example, script):
    status, output, errors = ended(example(script, "--help"))
    assert (status, errors) == (0, "")
    head = (EXAMPLES / script).read_text().partition('"""')[2]
    assert head
    assert bool(output) == ("__main__" in head)


# The stream of numbers

WAYS = ["one", "batch", *(["array"] if importlib.util.find_spec("numpy") else [])]


@pytest.fixture
def receiver(example, address):
    """Start a receiver of numbers, and wait until it is there."""

    def start(*arguments):
        process = example("stream.py", "receive", "--address", address, *arguments)
        assert process.stdout.readline() == f"listening at {address}\n"
        return process

    return start


@pytest.mark.parametrize("receives", WAYS)
@pytest.mark.parametrize("sends", WAYS)
def test_numbers_arrive_whichever_way_they_go(example, receiver, address, sends, receives):
    receiving = receiver("--by", receives, "--records", "10000")
    sending = example(
        "stream.py", "send", "--address", address, "--by", sends, "--records", "10000"
    )
    assert ended(sending) == (0, "", "")
    status, output, errors = ended(receiving)
    assert (status, errors) == (0, "")
    assert re.fullmatch(r"(one by one|in \w+): all 10,000 checked, [\d,]+ records/s\n", output)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("numbers", "why"),
    [
        ([0, 1, 3], r"record(s)? .*arrived"),
        ([0, 1], r"the peer has ended the stream"),
        ([0, 1, 2, 3], r"after the 3 records came"),
    ],
)
def test_a_wrong_number_is_found(receiver, program, address, way, numbers, why):
    receiving = receiver("--by", way, "--records", "3")
    program(
        "import memenpsf\n"
        "with memenpsf.connect(sys.argv[1], '<QQQ') as interface:\n"
        f"    interface.xmit_many([(n, n + 1, n + 2) for n in {numbers}])\n",
        address,
    )
    status, output, errors = ended(receiving)
    assert (status, output) == (1, "")
    assert re.search(rf"^stream receive: .*{why}", errors)


def test_the_demo_does_all_of_it(example):
    status, output, errors = ended(example("demo.py", "--seconds", "0.5", "--records", "2000"))
    assert (status, errors) == (0, "")
    for title in ("one by one", "in batches", *(["in arrays"] if "array" in WAYS else [])):
        assert re.search(rf"^  {title}: all 2,000 checked, [\d,]+ records/s$", output, re.MULTILINE)
    assert "server       | ended by SIGINT\n" in output
    assert "client, Trio | " in output
