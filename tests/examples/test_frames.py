"""The example with frames, and the benchmark of payloads: as a user runs them."""

import functools
import json
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numpy")
pytest.importorskip("PIL")

import numpy as np
from PIL import Image, ImageOps

import memenpsf

REPOSITORY = Path(__file__).parent.parent.parent
FRAMES = REPOSITORY / "examples" / "frames"

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(FRAMES)  # as Python does for a script
    import consumer
    import footage
    import producer
    from footage import FRAME, HEIGHT, STEP, WIDTH, Series, Way, WrongFrame

# Nobody shall meet modules of such ordinary names by accident.
for name in ("consumer", "footage", "producer"):
    del sys.modules[name]


@pytest.fixture(scope="module")
def film():
    return footage.Film()


def expected(number):
    """Make a frame of the film in another way: pixel column by pixel column."""
    with Image.open(footage.PHOTOGRAPH) as image:
        picture = np.asarray(ImageOps.fit(image.convert("RGB"), (WIDTH, HEIGHT)))
    columns = (np.arange(WIDTH) + number * STEP) % (2 * WIDTH)
    return picture[:, np.minimum(columns, 2 * WIDTH - 1 - columns)]


def record(film, number, total):
    made = footage.blank()
    film.fill(made, number, total)
    return made[0]


@pytest.mark.parametrize("number", [0, 1, 137, 240, 479, 480, 481])
def test_the_photograph_moves_past_with_its_mirror_image_and_without_a_seam(film, number):
    assert np.array_equal(film.frame(number), expected(number))


def test_the_photograph_is_small_and_full_of_detail(film):
    assert footage.PHOTOGRAPH.stat().st_size < 200_000
    assert np.count_nonzero(np.bincount(film.frame(0).reshape(-1), minlength=256)) > 200


def test_a_histogram_counts_every_value_of_every_colour(film):
    pixels = record(film, 7, 9)["pixels"]
    counts = footage.histogram(pixels)
    assert sum(counts) == pixels.size
    assert counts == [int((pixels == value).sum()) for value in range(256)]


def test_a_histogram_reads_the_memory_where_it_is():
    pixels = np.zeros((4, 5, 3), np.uint8)
    pixels.flags.writeable = False  # what borrow() gives cannot be written
    assert footage.histogram(pixels)[:2] == [60, 0]


def test_a_chart_shows_where_the_values_are():
    counts = np.zeros(256, int)
    counts[0], counts[100], counts[255] = 800, 400, 101
    assert footage.chart(counts, 8) == "█  ▄   ▁"
    assert footage.chart(np.zeros(256, int), 4) == "    "


def test_a_series_keeps_copies_of_its_first_its_middle_and_its_last_frame(film):
    for total, kept in {1: [0], 2: [0, 1], 3: [0, 1, 2], 10: [0, 5, 9]}.items():
        series = Series(Way.COPIED)
        memory = footage.blank()
        for number in range(total):
            assert not series.complete
            film.fill(memory, number, total)
            series.take(memory[0])
        assert series.complete
        assert [frame.number for frame in series.kept] == kept
        assert series.counts.sum() == total * WIDTH * HEIGHT * 3
        assert series.check(film).startswith(f"copied   {len(kept)} frames")
        assert series.rate.startswith(f"copied   {total} frames, ")


def test_a_frame_out_of_turn_is_noticed(film):
    series = Series(Way.IN_PLACE)
    with pytest.raises(WrongFrame, match="in place: frame 1 arrived instead of 0"):
        series.take(record(film, 1, 3))


def test_a_wrong_pixel_and_a_wrong_count_are_noticed(film):
    wrong = record(film, 0, 1)
    wrong["pixels"][HEIGHT - 1, WIDTH - 1, 2] ^= 1
    series = Series(Way.COPIED)
    series.take(wrong)
    with pytest.raises(WrongFrame, match="frame 0 is not what the film shows"):
        series.check(film)
    series = Series(Way.COPIED)
    series.take(record(film, 0, 1))
    series.kept[0].counts[17] += 1
    with pytest.raises(WrongFrame, match="the histogram of frame 0 is wrong"):
        series.check(film)


@pytest.mark.parametrize("message", [None, b"\x81\x01", b"\x80\x00", b"\x80\x03"])
def test_a_control_message_that_means_nothing_is_refused(message):
    with pytest.raises(WrongFrame, match="means nothing"):
        footage.announced(message)
    assert [footage.announced(footage.announcement(way)) for way in Way] == list(Way)


# The programs

KINDS = [(), ("--trio",)]
kinds_of_producer = pytest.mark.parametrize("producer_kind", KINDS, ids=["plain", "trio"])
kinds_of_consumer = pytest.mark.parametrize("consumer_kind", KINDS, ids=["plain", "trio"])

RUN = "os.execv(sys.executable, [sys.executable, '-X', 'dev', *sys.argv[1:]])\n"
RATE = r"{way} +{frames} frames, [0-9.]+ frames/s, [0-9.]+ ms of processor time each\n"


@pytest.fixture
def example(program):
    """Run an example as its user does, but for the warnings: they are part of stderr."""

    def start(script, *arguments):
        return program(RUN, FRAMES / script, *arguments, stderr=subprocess.PIPE)

    return start


@pytest.fixture
def address(tmp_path):
    return tmp_path / "socket"


@pytest.fixture
def start_producer(example, address):
    return functools.partial(example, "producer.py", "--address", address)


@pytest.fixture
def start_consumer(example, address):
    """Start a consumer, and wait until it is there."""

    def start(*arguments):
        process = example("consumer.py", "--address", address, *arguments)
        line = process.stdout.readline()
        assert line == f"waiting for a producer at {address}\n", process.stderr.read()
        return process

    return start


def ended(process):
    """Wait for the end of a program; return its status, and what it said since it was last read."""
    output, errors = process.stdout.read(), process.stderr.read()
    return process.wait(), output, errors


def rates(frames, *ways):
    return "".join(RATE.format(way=way, frames=frames) for way in ways)


@kinds_of_producer
@kinds_of_consumer
def test_both_tell_the_rate_of_both_ways_and_the_frames_are_right(
    start_producer, start_consumer, producer_kind, consumer_kind, tmp_path
):
    folder = tmp_path / "new" / "frames"
    there = start_consumer("--png", folder, *consumer_kind)
    here = start_producer("--frames", 6, *producer_kind)
    status, output, errors = ended(here)
    assert (status, errors) == (0, "")
    assert re.fullmatch(rates(6, "copied", "in place"), output)
    status, output, errors = ended(there)
    assert (status, errors) == (0, "")
    names = [f"{way}-{number:05}.png" for way in ("copied", "in_place") for number in (0, 3, 5)]
    assert re.fullmatch(
        rates(6, "copied", "in place")
        + "copied +3 frames and their histograms checked\n"
        + "in place +3 frames and their histograms checked\n"
        + "".join(f"written: {re.escape(str(folder / name))}\n" for name in names)
        + r"0 \|[ ▁▂▃▄▅▆▇█]{64}\| 255\n",
        output,
    )
    assert sorted(path.name for path in folder.iterdir()) == names
    for path in folder.iterdir():
        with Image.open(path) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "RGB", (WIDTH, HEIGHT))
            number = int(path.stem.rpartition("-")[2])
            assert np.array_equal(np.asarray(image), expected(number))


@pytest.mark.parametrize(("option", "way"), [("--copy", "copied"), ("--in-place", "in place")])
def test_one_way_can_be_chosen(start_producer, start_consumer, option, way):
    there = start_consumer()
    assert ended(start_producer(option, "--frames", 1))[0] == 0
    status, output, errors = ended(there)
    assert (status, errors) == (0, "")
    assert re.match(rates(1, way) + f"{way} +1 frames and", output)


@pytest.mark.parametrize("arguments", [("--frames", 0), ("--copy", "--in-place"), ("x",)])
def test_wrong_arguments_are_refused(start_producer, arguments):
    status, _, errors = ended(start_producer(*arguments))
    assert status == 2
    assert errors.startswith("usage: producer")


@kinds_of_producer
def test_a_producer_without_a_consumer_says_so(start_producer, address, producer_kind):
    assert ended(start_producer(*producer_kind)) == (1, "", f"producer: no consumer at {address}\n")


def test_a_folder_that_cannot_be_made_is_told_before_anything_else(example, tmp_path):
    (tmp_path / "file").touch()
    process = example("consumer.py", "--png", tmp_path / "file" / "folder")
    message = f"consumer: {tmp_path / 'file' / 'folder'}: Not a directory\n"
    assert ended(process) == (1, "", message)


@kinds_of_consumer
def test_a_consumer_that_waits_can_be_interrupted(start_consumer, consumer_kind):
    process = start_consumer(*consumer_kind)
    process.send_signal(signal.SIGINT)
    assert ended(process) == (130, "", "")


@pytest.mark.parametrize("way", Way, ids=str)
@kinds_of_consumer
def test_a_consumer_in_a_series_can_be_interrupted(
    start_consumer, address, film, consumer_kind, way
):
    there = start_consumer(*consumer_kind)
    with memenpsf.connect(address, FRAME, capacity=1) as interface:
        interface.send_ctrl_msg(footage.announcement(way))
        interface.xmit(record(film, 0, 3))
        while interface.statistics().taken == 0:
            pass
        there.send_signal(signal.SIGINT)
        assert ended(there) == (130, "", "")


@pytest.mark.parametrize("way", ["--copy", "--in-place"])
@kinds_of_producer
def test_a_producer_in_a_series_can_be_interrupted(start_producer, address, producer_kind, way):
    with memenpsf.listen(address, FRAME, capacity=1) as listener:
        here = start_producer(way, *producer_kind)
        with listener.accept() as interface:
            while interface.statistics().waiting < footage.CAPACITY:
                pass  # until it waits for space
            here.send_signal(signal.SIGINT)
            assert ended(here) == (130, "", "")
            assert [interface.recv()["number"] for _ in range(4)] == [0, 1, 2, 3]
            with pytest.raises(memenpsf.Aborted):
                interface.recv()


@kinds_of_consumer
def test_who_does_not_get_in_does_not_end_a_consumer(
    start_producer, start_consumer, address, consumer_kind
):
    consumer = start_consumer(*consumer_kind)
    with socket.socket(socket.AF_UNIX) as mad:
        mad.connect(str(address))
        mad.sendall(b"nonsense")
        assert mad.recv(100) != b""  # it was told why, or at least hello
    with pytest.raises(memenpsf.RecordRefused):
        memenpsf.connect(address, "<Q")
    producer = start_producer("--frames", "3", "--copy")
    assert ended(producer)[0] == 0
    assert ended(consumer)[0] == 0


@pytest.mark.parametrize("way", Way, ids=str)
@kinds_of_consumer
def test_a_consumer_notices_that_frames_are_missing(
    start_consumer, address, film, consumer_kind, way
):
    there = start_consumer(*consumer_kind)
    with memenpsf.connect(address, FRAME, capacity=2) as interface:
        interface.send_ctrl_msg(footage.announcement(way))
        interface.xmit(record(film, 0, 3))
    message = "consumer: the producer has left before the series was complete\n"
    assert ended(there) == (1, "", message)


@kinds_of_consumer
def test_a_consumer_notices_a_message_it_does_not_know(start_consumer, address, consumer_kind):
    there = start_consumer(*consumer_kind)
    with memenpsf.connect(address, FRAME, capacity=1) as interface:
        interface.send_ctrl_msg(b"\xff\xff")
        status, output, errors = ended(there)
    assert (status, output) == (1, "")
    assert errors.startswith("consumer: the producer sent a control message that means nothing")


@kinds_of_consumer
def test_a_consumer_notices_that_the_producer_died(start_consumer, program, address, consumer_kind):
    there = start_consumer(*consumer_kind)
    source = f"sys.path.insert(0, {str(FRAMES)!r})\n" + DIES
    assert program(source, address).wait() == -signal.SIGKILL
    assert ended(there) == (3, "", "consumer: the producer died\n")


DIES = """\
import footage, memenpsf
interface = memenpsf.connect(sys.argv[1], footage.FRAME, capacity=1)
interface.send_ctrl_msg(footage.announcement(footage.Way.COPIED))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("way", ["--copy", "--in-place"])
@kinds_of_producer
def test_a_producer_notices_that_the_consumer_has_left(start_producer, address, producer_kind, way):
    with memenpsf.listen(address, FRAME, capacity=1) as listener:
        here = start_producer(way, *producer_kind)
        with listener.accept() as interface:
            assert footage.announced(interface.recv_ctrl_msg(timeout=None)) in set(Way)
            assert interface.recv()["number"] == 0
    assert ended(here) == (1, "", "producer: the consumer has left early\n")


def test_every_failure_has_a_status():
    for explain in (consumer.explain, producer.explain):
        end = memenpsf.EndOfStream if explain is consumer.explain else memenpsf.ReceiverGone
        assert explain(end())[0] == 1
        assert explain(memenpsf.PeerDied())[0] == 3
        assert explain(memenpsf.Refused("why")) == (1, "why")
    assert consumer.explain(OSError(28, "No space left", "a.png")) == (1, "a.png: No space left")
    assert consumer.explain(OSError("odd")) == (1, "odd")


# The benchmark


def test_the_benchmark_of_payloads_measures_every_way_and_verifies_it(program, tmp_path):
    path = tmp_path / "results.json"
    script = REPOSITORY / "benchmarks" / "payloads.py"
    process = program(
        RUN,
        script,
        "--quick",
        "--sizes",
        "64,5000",
        "--seconds",
        1e-3,
        "--json",
        path,
        stderr=subprocess.PIPE,
    )
    status, output, errors = ended(process)
    assert (status, errors) == (0, "")
    found = json.loads(path.read_text(encoding="utf-8"))
    ways = ["in ring", "outside", "loan", "region", "reused"]
    order = [(size, way) for size in (64, 5000) for way in ways]
    assert [(result["size"], result["way"]) for result in found["results"]] == order
    for result in found["results"]:
        assert len(result["turns"]) == 5
        assert 0 < min(result["turns"]) <= result["median"] <= max(result["turns"])
    assert {"system", "processor", "processors", "python"} <= set(found["machine"])
    assert len(found["crossovers"]) == 6
    assert all(answer in output for answer in found["crossovers"].values())


@pytest.mark.parametrize("arguments", [("--sizes", "63"), ("--repeats", "4"), ("--seconds", "0")])
def test_the_benchmark_refuses_what_it_cannot_measure(program, arguments):
    script = REPOSITORY / "benchmarks" / "payloads.py"
    assert ended(program(RUN, script, *arguments, stderr=subprocess.PIPE))[0] == 2


@pytest.fixture
def payloads():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(REPOSITORY / "benchmarks")
        import payloads

    yield payloads
    del sys.modules["payloads"]


@pytest.mark.parametrize(
    ("slow", "fast", "answer"),
    [
        ([1, 2, 4], [2, 3, 5], "not up to 16 KiB"),
        ([1, 2, 4], [1, 1, 1], "at every size from 1 KiB on"),
        ([1, 4, 16], [2, 2, 2], "from about 2 KiB on (between 1 KiB and 4 KiB)"),
        ([3, 2, 2], [2, 4, 1], "from about 8 KiB on (between 4 KiB and 16 KiB)"),
    ],
)
def test_a_crossover_is_where_the_faster_way_stays_faster(payloads, slow, fast, answer):
    results = [
        payloads.Result(way, 1024 << 2 * n, [value] * 5)
        for way, values in (("slow", slow), ("fast", fast))
        for n, value in enumerate(values)
    ]
    assert payloads.crossover(results, "slow", "fast") == answer


def test_a_wrong_number_at_either_end_is_noticed(payloads):
    message = payloads.pattern(64)
    payloads.stamp(message, 5)
    payloads.check(memoryview(message), 5)
    for at in (0, 63):
        wrong = bytearray(message)
        wrong[at] ^= 1
        with pytest.raises(payloads.WrongMessage, match="instead of message 5"):
            payloads.check(memoryview(wrong), 5)
