"""Nothing lost and nothing left behind, whatever fails: system calls, descriptors, memory.

The cases, and what each must leave true, stand in fault_cases.py and fault_scenarios.py.  In CI it is a
sample of them, drawn with the seed; all with MEMENPSF_TIMES=40.  A case that went wrong is repeated
alone by MEMENPSF_CASE, as the failure says.
"""

import json
import os
import subprocess
import sys

import pytest

from tests.reliability import campaign
from tests.reliability.fault_scenarios import LIMITED, NEEDY, SCENARIOS

CASE = os.environ.get("MEMENPSF_CASE")
DEADLINE = campaign.seconds(600)

CALLS_EACH = 40
"""In how many cases of each scenario a system call fails."""

ALLOCATIONS = 40
"""CI lets one allocation in so many fail."""


@pytest.fixture
def cases(compiled):
    """Run cases of a scenario in an interpreter of its own; return what came of them."""
    flags = ("-fPIC", "-shared", "-Wshadow", "-Wconversion")
    library = str(compiled("faults", *flags, core=()))

    def run(scenario, kind, **how):
        seed = campaign.numbers(f"faults {scenario} {kind}").randrange(1 << 30)
        order = {"library": library, "scenario": scenario, "kind": kind, "seed": seed, **how}
        if CASE:
            order["only"] = CASE
        answer = subprocess.run(
            [
                sys.executable,
                "-c",
                "from tests.reliability import fault_cases; fault_cases.main()",
                json.dumps(order),
            ],
            env={
                **os.environ,
                "LD_PRELOAD": library,
                "PYTHONMALLOC": "malloc",  # whose own calls of mmap() are nobody's business here
                "PYTHONPATH": os.pathsep.join(sys.path),
            },
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=DEADLINE,
        )
        report = json.loads(answer.stdout.splitlines()[-1])
        failures = "".join(
            f"\nMEMENPSF_CASE='{case}' (raised: {told})\n" + "\n".join(problems)
            for case, problems, told in report["failures"][:5]
        )
        assert not failures, f"{len(report['failures'])} of {report['cases']} cases: {failures}"
        return report

    return run


@pytest.mark.deadline(DEADLINE)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_each_system_call_may_fail_once(cases, scenario):
    most = campaign.amount(CALLS_EACH)
    report = cases(scenario, "call", most=most)
    if not CASE:
        # What the kernel could not say, and what other threads make superfluous, does not happen.
        assert report["happened"] == most or 2 * report["happened"] > report["all"]


@pytest.mark.deadline(DEADLINE)
@pytest.mark.parametrize("scenario", LIMITED)
def test_there_may_be_too_few_descriptors(cases, scenario):
    report = cases(scenario, "limit")
    if not CASE:
        assert report["happened"] > 0


@pytest.mark.deadline(DEADLINE)
@pytest.mark.parametrize("scenario", NEEDY)
def test_each_allocation_may_fail_once(cases, scenario):
    pytest.importorskip("_testcapi")
    stride = max(1, round(ALLOCATIONS / campaign.TIMES))
    report = cases(scenario, "memory", stride=stride)
    if not CASE:
        assert report["told"] > 0
