"""The C core between two processes: every record once, in order, and no wake-up lost."""

import os
import re

import pytest

from tests.reliability import campaign

# (shape, capacity, size of a slot or of the largest message, records in CI): 20 million in all.
STREAMS = [
    ("slots", 1, 16, 1_000_000),
    ("slots", 2, 40, 2_000_000),
    ("slots", 64, 24, 4_000_000),
    ("slots", 4096, 64, 5_000_000),
    ("frames", 4096, 4080, 3_000_000),
    ("frames", 65536, 16384, 3_000_000),
    ("frames", 1 << 20, 65520, 2_000_000),
]

# (shape, whether on one processor, round trips in CI): 2 million in all.  On two each takes as
# long as it takes there to wake a processor.
WAKES = [
    ("slots", True, 1_000_000),
    ("frames", True, 800_000),
    ("slots", False, 120_000),
    ("frames", False, 80_000),
]

NO_FENCE = (
    "{\n    atomic_thread_fence(memory_order_seq_cst);\n    uint32_t epoch",
    "{\n    uint32_t epoch",
)
NO_RECHECK = (
    "return has_records(r) ? IPCQ_DONE : IPCQ_EMPTY;\n}\n\nvoid ipcq_disarm",
    "return IPCQ_EMPTY;\n}\n\nvoid ipcq_disarm",
)
GIVEN_BACK_TOO_EARLY = (
    "copy_out(r, tail, into, n);\n    tail += n;\n    give_back(r, tail);",
    "tail += n;\n    give_back(r, tail);\n    copy_out(r, tail - n, into, n);",
)
PUBLISHED_TOO_EARLY = (
    "copy_in(s, head, pieces[i].at, n);\n        head += n;",
    "head += n;\n        publish(s, head, 1);\n        copy_in(s, head - n, pieces[i].at, n);",
)

SEND = """    if (result == IPCQ_DONE && frame->fds + frame->regions)
        result = send_fds(s, fds, (size_t)(frame->fds + frame->regions));
"""
SEND_AFTER = "    publish(s, head, 1);\n    return IPCQ_DONE;\n}\n\nint ipcq_frame_send"
DESCRIPTORS_TOO_LATE = (
    (SEND, ""),
    (SEND_AFTER, SEND_AFTER.replace("    return IPCQ_DONE", f"{SEND}    return result")),
)


def _processors(*, one):
    allowed = sorted(os.sched_getaffinity(0))
    if not one and len(allowed) < 2:
        pytest.skip("takes two processors")
    return allowed[0], allowed[0 if one else 1]


def _stream(binary, shape, capacity, size, count, **options):
    seed = campaign.numbers(f"stream {shape} {capacity}").getrandbits(32)
    return campaign.output(
        binary, "processes", shape, capacity, size, campaign.amount(count), seed, **options
    )


def _wake(binary, shape, trips, *, one, **options):
    seed = campaign.numbers(f"wake {shape} {one}").getrandbits(32)
    cpus = _processors(one=one)
    return campaign.output(
        binary, "processes", shape, campaign.amount(trips), *cpus, seed, **options
    )


@pytest.mark.deadline(campaign.seconds(240))
@pytest.mark.parametrize(("shape", "capacity", "size", "count"), STREAMS)
def test_every_record_between_two_processes_comes_once_and_in_order(
    compiled, shape, capacity, size, count
):
    said = _stream(compiled("stream"), shape, capacity, size, count)
    assert re.search("first: slept [1-9]", said)
    assert re.search("second: slept [1-9]", said)


@pytest.mark.parametrize(
    ("mutant", "ring"),
    [
        ((GIVEN_BACK_TOO_EARLY,), ("slots", 64, 1024)),
        ((PUBLISHED_TOO_EARLY,), ("slots", 64, 1024)),
        (DESCRIPTORS_TOO_LATE, ("frames", 4096, 200)),
    ],
    ids=["given back too early", "published too early", "descriptors too late"],
)
@pytest.mark.deadline(120)
def test_what_is_shared_in_the_wrong_order_is_noticed(tmp_path, mutant, ring):
    _processors(one=False)
    core = campaign.mutated(tmp_path / "core", *mutant)
    binary = campaign.compiled("stream", tmp_path, core=core)
    assert "again with: " in _stream(binary, *ring, 4_000_000, status=1)


@pytest.mark.deadline(campaign.seconds(400))
@pytest.mark.parametrize(("shape", "one", "trips"), WAKES)
def test_the_core_loses_no_wake_up(compiled, shape, one, trips):
    said = _wake(compiled("wake"), shape, trips, one=one)
    counts = re.findall(r"slept (\d+) times, sent (\d+) doorbells, read (\d+)", said)
    slept, sent, read = zip(*[map(int, side) for side in counts], strict=True)
    # Not by chance: see HOLD and CROWD in wake.c.  A batch has three records at most.
    assert min(slept) >= campaign.amount(trips) // 3 // 40
    assert sum(sent) >= sum(read) + campaign.amount(trips) // 3 // 80  # these were dropped


@pytest.mark.parametrize("mutant", [NO_FENCE, NO_RECHECK], ids=["no fence", "no second look"])
@pytest.mark.deadline(120)
def test_a_lost_wake_up_is_noticed(tmp_path, mutant):
    core = campaign.mutated(tmp_path / "core", mutant)
    binary = campaign.compiled("wake", tmp_path, core=core)
    said = _wake(binary, "slots", 200_000, one=False, status=1)
    assert "a wake-up was lost" in said
