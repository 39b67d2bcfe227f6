"""The C core for aarch64: run by qemu, and read as object code.

qemu on x86 reorders less than an ARM processor may, so that the orders of memory are right shows in
the instructions alone.
"""

import os
import re
import shutil
import subprocess

import pytest

from tests.reliability import campaign

GCC, OBJDUMP = "aarch64-linux-gnu-gcc", "aarch64-linux-gnu-objdump"
STRICT = ["-Wshadow", "-Wconversion"]

RUNS = [
    ("stream", "slots 1 16", 5_000),
    ("stream", "slots 64 24", 100_000),
    ("stream", "frames 4096 4080", 50_000),
    ("wake", "slots", 5_000),
    ("wake", "frames", 5_000),
]

ACQUIRES, RELEASES, FENCES = ("ldar", "ldapr"), ("stlr",), ("dmb\tish",)

# What must be found in each function, in this order: A loads with acquire, R stores with release,
# F is a full fence.  An index is published first, and then, behind a fence, comes the question
# whether anyone sleeps.
ORDERS = {
    "ipcq_push": ["A", "RF"],
    "ipcq_push_pieces": ["A", "RF"],
    "ipcq_reserve": ["A"],
    "ipcq_commit": ["RF"],
    "ipcq_sender_indices": ["A"],
    "ipcq_arm_space": ["F"],
    "ipcq_frame_push": ["A", "RF"],
    "ipcq_frame_push_pieces": ["A", "RF"],
    "ipcq_frame_commit": ["RF"],
    "ipcq_pop": ["A", "RF"],
    "ipcq_look": ["A"],
    "ipcq_take": ["RF"],
    "ipcq_see": ["A"],
    "ipcq_is_quiet": ["A"],
    "ipcq_receiver_indices": ["A"],
    "ipcq_arm_records": ["F"],
    "ipcq_frame_look": ["A"],
    "ipcq_closed": ["A"],
    "ipcq_set_closed": ["RF"],
}

SENDS = {"ipcq_push", "ipcq_push_pieces", "ipcq_commit"}
SENDS |= {f"ipcq_frame_{how}" for how in ("push", "push_pieces", "commit")}
LOOKS = {"ipcq_pop", "ipcq_look", "ipcq_see", "ipcq_is_quiet", "ipcq_receiver_indices"}
LOOKS |= {"ipcq_frame_look"}
ASKS = {"ipcq_sender_indices", "ipcq_reserve"} | {name for name in SENDS if "commit" not in name}
TAKES = {"ipcq_pop", "ipcq_take"}
ARMS = {"ipcq_arm_space", "ipcq_arm_records"}

# A change of the core, and the functions that are then no longer in order.
MUTANTS = [
    ("atomic_store_explicit(&s->own->head, head, memory_order_release)", SENDS),
    ("atomic_store_explicit(&r->own->tail, tail, memory_order_release)", TAKES),
    ("atomic_load_explicit(&r->peer->head, memory_order_acquire)", LOOKS),
    ("atomic_load_explicit(&s->peer->tail, memory_order_acquire)", ASKS),
    ("atomic_thread_fence(memory_order_seq_cst);\n", SENDS | TAKES),
    ("atomic_thread_fence(memory_order_seq_cst); /* partner", ARMS),
    ("->closed, ends, memory_order_release)", {"ipcq_set_closed"}),
    ("atomic_thread_fence(memory_order_seq_cst); /* as in ring_bell", {"ipcq_set_closed"}),
]


def _functions(core, into):
    """Return the instructions of each function, as objdump writes them."""
    functions = {}
    for source in core:
        binary = into / f"{source.stem}.o"
        command = [GCC, "-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", *STRICT, "-c"]
        subprocess.run([*command, "-o", binary, source], check=True)
        listing = campaign.output(OBJDUMP, "-d", "--no-show-raw-insn", binary)
        for name, body in re.findall(r"^\w+ <(.*)>:\n((?:.+\n)+)", listing, re.MULTILINE):
            functions[name] = [
                line.split(":\t", 1)[1] for line in body.splitlines() if ":\t" in line
            ]
    return functions


def _order(functions, name, callers=()):
    """Return the letters of ORDERS for a function, and what it calls in the same file."""
    letters = ""
    for instruction in functions[name]:
        target = re.match(r"bl?\t\w+ <([\w.]+)>", instruction)
        if instruction.startswith(ACQUIRES):
            letters += "A"
        elif instruction.startswith(RELEASES):
            letters += "R"
        elif instruction.startswith(FENCES):
            letters += "F"
        elif target and target[1] in functions and target[1] not in (*callers, name):
            letters += _order(functions, target[1], (*callers, name))
    return letters


def _out_of_order(functions):
    return {
        name
        for name, parts in ORDERS.items()
        if not all(part in _order(functions, name) for part in parts)
    }


def test_load_acquire_store_release_and_fence_are_in_the_object_code(tmp_path):
    campaign.needs(GCC, OBJDUMP)
    assert _out_of_order(_functions(campaign.SOURCES, tmp_path)) == set()


@pytest.mark.parametrize(("order", "functions"), MUTANTS)
def test_a_missing_order_is_seen_in_the_object_code(tmp_path, order, functions):
    campaign.needs(GCC, OBJDUMP)
    weaker = re.sub("memory_order_(?!relaxed)[a-z_]+", "memory_order_relaxed", order)
    core = campaign.mutated(tmp_path / "core", (order, weaker))
    assert _out_of_order(_functions(core, tmp_path)) == functions


@pytest.mark.deadline(campaign.seconds(240))
@pytest.mark.parametrize("how", ["processes", "threads"])
@pytest.mark.parametrize(("program", "ring", "count"), RUNS)
def test_the_core_runs_on_aarch64(compiled, program, ring, count, how):
    qemu = "qemu-aarch64" if shutil.which("qemu-aarch64") else "qemu-aarch64-static"
    campaign.needs(GCC, qemu)
    binary = compiled(program, "-static", *STRICT, compiler=GCC)
    cpus = [min(os.sched_getaffinity(0))] * 2 if program == "wake" else []
    seed = campaign.numbers(f"aarch64 {program} {ring}").getrandbits(32)
    campaign.output(qemu, binary, how, *ring.split(), campaign.amount(count), *cpus, seed)
