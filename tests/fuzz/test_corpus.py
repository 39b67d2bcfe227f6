"""The inputs that fuzzing has kept, once more through every target: without a fuzzer, in seconds."""

import importlib
import os
import subprocess

import pytest

from tests.fuzz import fuzzing


@pytest.mark.parametrize("target", fuzzing.TARGETS)
def test_there_are_inputs_for_every_target(target):
    inputs = fuzzing.kept(target)
    assert len(inputs) == len(set(inputs)) > 20


@pytest.mark.parametrize("target", fuzzing.PYTHON_TARGETS)
def test_python_bears_every_input_that_was_kept(target):
    one = importlib.import_module(f"tests.fuzz.fuzz_{target}").one
    for number, data in enumerate(fuzzing.kept(target)):
        try:
            one(data)
        except BaseException as error:
            error.add_note(f"input {number} of corpus/{target}.txt: {data.hex()}")
            raise


@pytest.fixture(scope="module")
def ring(tmp_path_factory):
    """Return the C target as a program of its own, with sanitizers where the compiler has them."""
    into = tmp_path_factory.mktemp("ring")
    return replaying(into)


def replaying(into, **how):
    try:
        return fuzzing.compiled_ring(into, "-DREPLAY", *fuzzing.SANITIZED, **how)
    except subprocess.CalledProcessError:
        if os.environ.get("MEMENPSF_REQUIRE_TOOLS") == "1":
            raise
        return fuzzing.compiled_ring(into, "-DREPLAY", "-g", "-O1", **how)


def replayed(program, into):
    """Run the program over the kept corpus; return how it ended, and its last words."""
    inputs = sorted(fuzzing.unpacked("ring", into).iterdir())
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    process = subprocess.run(
        [program, *inputs], check=False, stderr=subprocess.PIPE, text=True, env=environment
    )
    return process.returncode, process.stderr[-3000:]


def test_the_c_core_bears_every_input_that_was_kept(ring, tmp_path):
    code, said = replayed(ring, tmp_path / "inputs")
    assert code == 0, said


# What must not get through: a check that is missing, in a copy of the core.
MUTANTS = {
    "a frame larger than what is published": (
        "frames.c",
        "available < HEADER ||\n        extent(frame->size) > available",
        "available < HEADER",
    ),
    "a frame larger than the caller takes": ("frames.c", "frame->size > most ||", ""),
    "flags without a meaning": ("frames.c", "(frame->flags & ~IPCQ_KNOWN_FLAGS) ||", ""),
    "more descriptors than there can be": (
        "frames.c",
        "frame->fds + frame->regions > IPCQ_MAX_FRAME_FDS ||",
        "",
    ),
    "a head beyond the window": ("ends.h", "head - tail > r->capacity", "0"),
    "a tail beyond the window": (
        "ends.h",
        "head - tail > s->capacity || published - tail > s->capacity",
        "(void)published, 0",
    ),
    "a head that moves back before what was looked at": (
        "ends.h",
        "r->head - tail < from - tail",
        "0",
    ),
    "a head that moves back while records are borrowed": ("ring.c", "r->head = to;", ";"),
    "a tail that moves back while space is lent": (
        "ends.h",
        "if (head - tail < head - s->tail)",
        "if (1)",
    ),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_corpus_notices_what_the_c_core_no_longer_checks(mutant, tmp_path):
    name, before, after = MUTANTS[mutant]
    core = tmp_path / "core"
    core.mkdir()
    for path in fuzzing.campaign.CORE.glob("*.[ch]"):
        text = path.read_text()
        if path.name == name:
            assert text.count(before) == 1
            text = text.replace(before, after)
        (core / path.name).write_text(text)
    program = replaying(tmp_path, core=core)
    code, said = replayed(program, tmp_path / "inputs")
    assert code != 0, said
