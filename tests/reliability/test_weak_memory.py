"""The C core as it ships on a simulated machine with weak memory; weak/sim.c says how it works.

Small scenarios in every schedule, with every value that C11 lets each load read; larger ones in
random schedules.  And copies of the core with one rule broken: each must fail, and fail again when
the schedule is given that was printed.
"""

import re
import shutil
import subprocess

import pytest

from tests.reliability import campaign

pytestmark = pytest.mark.deadline(campaign.seconds(300))

WEAK = campaign.HERE / "weak"
RANDOM = 1_000_000
"""Schedules, of all scenarios together."""

SMALL = [
    "slots-1",
    "slots-2",
    "slots-2-far",
    "slots-2-batch",
    "slots-1-half",
    "slots-1-spurious",
    "slots-1-faults",
    "slots-1-liveness",
    "slots-1-receiver-leaves",
    "slots-1-sender-dies",
    "slots-2-sender-dies",
    "slots-1-receiver-dies",
    "slots-2-unheard",
    "frames",
    "frames-batch",
    "frames-in-place",
    "frames-attached",
    "duplex",
]

# Like others, with other numbers: for longer runs.
MEDIUM = ["slots-2-roomy", "slots-2-in-place", "frames-far", "slots-1-of-3", "slots-1-of-1"]

LARGE = [
    "many-slots",
    "many-batches",
    "many-in-place",
    "many-frames",
    "many-attached",
    "many-duplex",
    "many-spinning",
    "many-dying",
]

LOST = "lost wake-up"
STALE = "stale record"
TORN = "torn record"
IMPOSSIBLE = "the receiver says -1"
"""CORRUPT: head and tail are further apart than the ring is long."""
FENCE = "atomic_thread_fence(memory_order_seq_cst);"

MUTANTS = {
    "no fence between publish and the look at the epoch": (
        ("ends.h", f"{FENCE}\n    uint32_t epoch", "uint32_t epoch"),
        ("slots-1", LOST),
    ),
    "no fence between epoch and second look": (
        ("ring.c", f"{FENCE} /* partner", "/* partner"),
        ("slots-1", LOST),
    ),
    "a fence that is not sequentially consistent, but first": (
        (
            "ends.h",
            f"{FENCE}\n    uint32_t epoch = atomic_load_explicit(peer_epoch, memory_order_relaxed);",
            f"uint32_t epoch = atomic_load_explicit(peer_epoch, memory_order_relaxed);\n    {FENCE}",
        ),
        ("slots-1", LOST),
    ),
    "no second look for records": (
        ("ring.c", "return has_records(r) ? IPCQ_DONE : IPCQ_EMPTY;", "return IPCQ_EMPTY;"),
        ("slots-1", LOST),
    ),
    "no second look for space": (
        (
            "ring.c",
            "return has_space(s, units) ? IPCQ_DONE : IPCQ_FULL;",
            "return units ? IPCQ_FULL : IPCQ_DONE;",
        ),
        ("slots-1", LOST),
    ),
    "head published relaxed": (
        (
            "ends.h",
            "(&s->own->head, head, memory_order_release)",
            "(&s->own->head, head, memory_order_relaxed)",
        ),
        ("slots-2", STALE),
    ),
    "head read relaxed": (
        (
            "ends.h",
            "(&r->peer->head, memory_order_acquire)",
            "(&r->peer->head, memory_order_relaxed)",
        ),
        ("slots-2", STALE),
    ),
    "tail given back relaxed": (
        (
            "ends.h",
            "(&r->own->tail, tail, memory_order_release)",
            "(&r->own->tail, tail, memory_order_relaxed)",
        ),
        ("slots-1", TORN),
    ),
    "tail read relaxed": (
        (
            "ends.h",
            "(&s->peer->tail, memory_order_acquire)",
            "(&s->peer->tail, memory_order_relaxed)",
        ),
        ("slots-1", TORN),
    ),
    "slots published before they are written": (
        (
            "slots.c",
            "copy_in(s, head, record, 1);\n    publish(s, head + 1, 1);",
            "publish(s, head + 1, 1);\n    copy_in(s, head, record, 1);",
        ),
        ("slots-1", STALE),
    ),
    "frames published before they are written": (
        (
            "frames.c",
            "write_frame(s, head, frame, payload);\n    head += extent(frame->size);",
            (
                "publish(s, head + extent(frame->size), 1);\n"
                "    write_frame(s, head, frame, payload);\n    head += extent(frame->size);"
            ),
        ),
        ("frames-attached", STALE),
    ),
    "slots given back before they are read": (
        (
            "slots.c",
            "copy_out(r, tail, into, n);\n    tail += n;\n    give_back(r, tail);",
            "give_back(r, tail + n);\n    copy_out(r, tail, into, n);\n    tail += n;",
        ),
        ("slots-1", TORN),
    ),
    "descriptors sent after their frame": (
        (
            "frames.c",
            (
                "if (result == IPCQ_DONE && frame->fds + frame->regions)\n"
                "        result = send_fds(s, fds, (size_t)(frame->fds + frame->regions));\n"
                "    if (result != IPCQ_DONE)\n        return result;\n"
                "    write_frame(s, head, frame, payload);\n    head += extent(frame->size);"
            ),
            (
                "if (result != IPCQ_DONE)\n        return result;\n"
                "    write_frame(s, head, frame, payload);\n    head += extent(frame->size);\n"
                "    publish(s, head, 1);\n"
                "    if (frame->fds + frame->regions)\n"
                "        (void)send_fds(s, fds, (size_t)(frame->fds + frame->regions));"
            ),
        ),
        ("frames-attached", "without its descriptors"),
    ),
    "closed stored relaxed": (
        (
            "ring.c",
            "->closed, ends, memory_order_release)",
            "->closed, ends, memory_order_relaxed)",
        ),
        ("slots-2-unheard", "records lost"),
    ),
    "closed read relaxed": (
        ("segment.c", "->closed, memory_order_acquire)", "->closed, memory_order_relaxed)"),
        ("slots-2-unheard", "records lost"),
    ),
    "the same epoch at each sleep": (
        (
            "ring.c",
            "atomic_store_explicit(shared, ++bell->epoch, memory_order_relaxed);",
            "atomic_store_explicit(shared, --bell->epoch, memory_order_relaxed);",
        ),
        ("slots-1-of-3", LOST),
    ),
    "a doorbell at each publish while the peer sleeps": (
        ("ends.h", "if (!(epoch & 1u) || epoch == bell->rung)", "if (!(epoch & 1u))"),
        ("slots-2", "more doorbells than sleeps"),
    ),
    "a doorbell whether the peer sleeps or not": (
        ("ends.h", "if (!(epoch & 1u) || epoch == bell->rung)", "if (epoch == bell->rung + 9)"),
        ("slots-1", "more doorbells than sleeps"),
    ),
    "one doorbell, and no more": (
        ("ends.h", "epoch == bell->rung)", "bell->rung)"),
        ("slots-1-of-3", LOST),
    ),
    "interrupted by a signal, no doorbell": (
        ("ends.h", "errno != EINTR && errno != ENOBUFS", "errno != ENOBUFS"),
        ("slots-1-faults", LOST),
    ),
    "short of memory, no doorbell": (
        ("ends.h", "errno != EINTR && errno != ENOBUFS", "errno != EINTR"),
        ("slots-1-faults", LOST),
    ),
    "one slot more than there is": (
        (
            "ends.h",
            "if (s->capacity - (head - s->tail) >= units)",
            "if (s->capacity + 1 - (head - s->tail) >= units)",
        ),
        ("slots-2", IMPOSSIBLE),
    ),
    "space believed without a look": (
        (
            "ends.h",
            "if (look_for_space(s, head) != IPCQ_DONE)",
            "s->tail = head;\n    if (s->corrupt)",
        ),
        ("frames", IMPOSSIBLE),
    ),
}


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """build(directory of a core) -> the simulator around it."""
    machine = tmp_path_factory.mktemp("machine") / "sim.o"
    flags = ["-std=c11", "-D_GNU_SOURCE=", "-O2", "-Wall", "-Wextra", "-Werror"]
    sources = [f"-I{campaign.CORE}", "-c", WEAK / "sim.c", "-o", machine]
    subprocess.run(["cc", *flags, *sources], check=True, timeout=120)

    def build(core):
        into = tmp_path_factory.mktemp("weak")
        (into / "weak").mkdir()
        sources = (machine, *(core / source.name for source in campaign.SOURCES))
        return campaign.compiled("weak/weak", into, "-include", WEAK / "sim.h", core=sources)

    return build


@pytest.fixture(scope="module")
def weak(build):
    return build(campaign.CORE)


def call(binary, *arguments):
    command = [binary, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def assert_fine(done):
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr
    print(done.stdout.strip())


@pytest.mark.parametrize("scenario", SMALL + MEDIUM * (campaign.TIMES > 1))
def test_no_schedule_loses_a_record_or_a_wake_up(weak, scenario):
    assert_fine(call(weak, scenario, "all"))


@pytest.mark.parametrize("scenario", LARGE)
def test_no_random_schedule_does(weak, scenario):
    seed = campaign.numbers(scenario).getrandbits(40)
    assert_fine(call(weak, scenario, "random", campaign.amount(RANDOM // len(LARGE)), seed))


def test_a_search_that_stops_at_known_states_misses_no_schedule(weak):
    """In number, at least: it counts as many as there are one by one."""
    counts = [
        re.search(r"all schedules: (\S+), in", call(weak, "slots-1-of-1", how).stdout)[1]
        for how in ("each", "all")
    ]
    assert counts[0] == counts[1] != "0"


def test_every_scenario_is_run(weak):
    assert sorted(call(weak).stdout.split()) == sorted(SMALL + MEDIUM + LARGE)


@pytest.mark.parametrize("rule", MUTANTS)
def test_a_broken_rule_is_found(build, tmp_path, rule):
    (name, text, instead), (scenario, complaint) = MUTANTS[rule]
    core = tmp_path / "core"
    shutil.copytree(campaign.CORE, core)
    source = core / name
    assert source.read_text().count(text) == 1, "the mutant no longer fits the source"
    source.write_text(source.read_text().replace(text, instead))
    broken = build(core)
    found = call(broken, scenario, "all")
    assert found.returncode == 1, found.stdout + found.stderr
    first, *_, last = found.stdout.strip().splitlines()
    assert complaint in first, found.stdout[-4000:]
    again = call(broken, *last.removeprefix("again: weak ").split())
    assert again.returncode == 1
    assert again.stdout.strip().splitlines()[-1] == first.removeprefix(f"{scenario}: ")
