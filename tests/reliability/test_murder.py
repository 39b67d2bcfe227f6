"""Killed behind every instruction: what a victim leaves is whole, and the survivor goes on."""

import os
import subprocess

import pytest

from tests.reliability import campaign, murder_python

CANNOT_WALK = 77  # as in stepping.h


def unavailable(why):
    if os.environ.get("MEMENPSF_REQUIRE_TOOLS") == "1":
        pytest.fail(why)
    pytest.skip(why)


@pytest.fixture
def in_background():
    """Start programs that are killed and reaped at the end of the test."""
    started = []

    def start(*command):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(list(map(str, command)), **pipes))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.deadline(300)
def test_the_core_leaves_nothing_half_done_wherever_it_is_killed(compiled, in_background):
    # Bound at the start, or the first calls of library functions go through the dynamic linker.
    binary = compiled("murder", "-Wl,-z,now")
    halves = [in_background(binary, half, 2) for half in range(2)]
    outputs = [half.communicate() for half in halves]
    if CANNOT_WALK in [half.returncode for half in halves]:
        unavailable("ptrace is forbidden here, or cannot step")
    assert [half.returncode for half in halves] == [0, 0], [err for _, err in outputs]
    deaths = [int(line.split()[0]) for out, _ in outputs for line in out.splitlines()]
    print(f"{sum(deaths)} deaths in {len(deaths)} scenes")
    assert len(deaths) == 16 * 5  # operations, states of the ring
    assert min(deaths) > 50


@pytest.mark.deadline(campaign.seconds(900))
def test_an_interpreter_leaves_nothing_half_done_wherever_it_is_killed(compiled, program):
    if campaign.TIMES < 1:
        pytest.skip("to find the way of each call takes minutes, however few are killed on it")
    walker = compiled("walker", "-shared", "-fPIC", core=())
    source = "import sys; from tests.reliability import murder_python; murder_python.main(sys.argv[1], *map(int, sys.argv[2:]))"
    halves = [program(source, walker, half, 2) for half in range(2)]
    outputs = [half.communicate()[0] for half in halves]
    if CANNOT_WALK in [half.returncode for half in halves]:
        unavailable("ptrace is forbidden here, or cannot step")
    assert [half.returncode for half in halves] == [0, 0], outputs
    deaths = [int(line.split()[0]) for output in outputs for line in output.splitlines()]
    print(f"{sum(deaths)} deaths in {len(deaths)} scenes")
    assert len(deaths) == len(list(murder_python.scenes()))
    assert min(deaths) >= campaign.amount(murder_python.INSIDE)
