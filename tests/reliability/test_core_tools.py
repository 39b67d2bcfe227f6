"""The C core under ThreadSanitizer and Valgrind."""

import os
import re
import subprocess

import pytest

from tests.reliability import campaign

RUNS = [
    ("threads", "slots", 1, 16),
    ("threads", "slots", 64, 24),
    ("threads", "frames", 4096, 4080),
    ("beside", "slots", 2, 16),
    ("beside", "slots", 64, 24),
    ("beside", "frames", 4096, 4080),
]

# Each order of memory by which the core hands memory over; weakened, ThreadSanitizer must notice.
# On x86 no run would.  The fences are not among them: they order indices and epochs alone, which
# are atomic, so that ThreadSanitizer knows nothing of fences leads to no false report; and what
# they are for, test_core_stress.py tests.
ORDERS = [
    "atomic_store_explicit(&s->own->head, head, memory_order_release)",
    "atomic_store_explicit(&r->own->tail, tail, memory_order_release)",
    "atomic_load_explicit(&r->peer->head, memory_order_acquire)",
    "atomic_load_explicit(&s->peer->tail, memory_order_acquire)",
]

TSAN = ["-fsanitize=thread", "-Wno-unknown-warning-option", "-Wno-tsan"]


@pytest.fixture(params=["gcc", "clang"])
def compiler(request):
    campaign.needs(request.param)
    return request.param


def _runnable(binary):
    """How to start a program with ThreadSanitizer, whose shadow memory needs room where it is."""
    trial = [binary, "threads", "slots", "1", "16", "0", "1"]
    for prefix in ([], ["setarch", "-R"]):
        try:
            done = subprocess.run([*prefix, *trial], capture_output=True, text=True, check=False)
        except FileNotFoundError:
            continue
        if done.returncode == 0:
            return [*prefix, binary]
        if "unexpected memory mapping" not in done.stderr:
            pytest.fail(done.stderr)
    campaign.lacks("ThreadSanitizer does not run with the addresses of this machine")
    raise AssertionError


def _sanitized(make, compiler, **options):
    try:
        return _runnable(make("stream", *TSAN, compiler=compiler, **options))
    except subprocess.CalledProcessError as error:
        campaign.lacks(f"{compiler} has no ThreadSanitizer: {error}")
        raise


@pytest.mark.deadline(campaign.seconds(240))
@pytest.mark.parametrize(("how", "shape", "capacity", "size"), RUNS)
def test_thread_sanitizer_has_nothing_to_report(compiled, compiler, how, shape, capacity, size):
    command = _sanitized(compiled, compiler)
    seed = campaign.numbers(f"tsan {how} {shape} {capacity}").getrandbits(32)
    said = campaign.output(*command, how, shape, capacity, size, campaign.amount(100_000), seed)
    assert "ThreadSanitizer" not in said
    if campaign.TIMES >= 1:
        assert re.search("first: slept [1-9].*\n.*second: slept [1-9]", said)


@pytest.mark.deadline(120)
@pytest.mark.parametrize("order", ORDERS)
def test_thread_sanitizer_notices_where_an_order_of_memory_is_missing(tmp_path, order):
    campaign.needs("gcc")
    relaxed = re.sub("memory_order_[a-z]+", "memory_order_relaxed", order)
    core = campaign.mutated(tmp_path / "core", (order, relaxed))

    def make(program, *flags, **options):
        return campaign.compiled(program, tmp_path, *flags, core=core, **options)

    command = _sanitized(make, "gcc")
    for ring in (("slots", 64, 24), ("frames", 4096, 4080)):
        said = campaign.output(*command, "beside", *ring, 50_000, 1, status=None)
        assert "WARNING: ThreadSanitizer: data race" in said


@pytest.mark.deadline(240)
@pytest.mark.parametrize("how", ["processes", "threads"])
@pytest.mark.parametrize(
    "rest", ["stream slots 64 24 20000", "stream frames 4096 4080 5000", "wake slots 2000"]
)
def test_valgrind_finds_no_error_and_no_descriptor_left_open(compiled, tmp_path, how, rest):
    campaign.needs("valgrind")
    program, *arguments = rest.split()
    if program == "wake":
        arguments += [min(os.sched_getaffinity(0))] * 2
    valgrind = ["valgrind", "--track-fds=yes", "--leak-check=full", "--show-leak-kinds=all"]
    valgrind += ["--errors-for-leak-kinds=all", "--error-exitcode=9"]
    valgrind += [f"--log-file={tmp_path}/%p"]
    campaign.output(*valgrind, compiled(program), how, *arguments, campaign.SEED)
    logs = [path.read_text() for path in tmp_path.iterdir()]
    assert len(logs) == (2 if how == "processes" else 1)
    for log in logs:
        assert "ERROR SUMMARY: 0 errors" in log
        (opened,) = re.findall(r"FILE DESCRIPTORS: (.*) at exit", log)
        total, standard = re.fullmatch(r"(\d+) open \((\d+) std\)", opened).groups()
        inherited = log.count("<inherited from parent>")
        assert int(total) <= int(standard) + inherited, log
