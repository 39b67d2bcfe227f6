"""SIGKILL of either side at a random moment: all that was published is accounted for."""

import json

import pytest

from tests.reliability import campaign

SOURCE = "import sys; from tests.reliability import kills; kills.main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))"


@pytest.mark.deadline(campaign.seconds(900))
@pytest.mark.parametrize(("kind", "victims"), [("forked", 10_000), ("fresh", 500)])
def test_whoever_is_killed_all_that_was_published_is_accounted_for(kind, victims, program):
    count = -(-campaign.amount(victims) // 2)
    halves = [program(SOURCE, kind, count, half) for half in range(2)]
    outputs = [half.communicate()[0] for half in halves]
    assert [half.returncode for half in halves] == [0, 0]
    results = [json.loads(output) for output in outputs]
    assert [result["victims"] for result in results] == [count, count]
    latencies = sorted(results[0]["latencies"] + results[1]["latencies"])
    middle, most = latencies[len(latencies) // 2], latencies[-1]
    records = sum(result["records"] for result in results)
    print(f"{2 * count} deaths, {records} records; ", end="")
    print(f"death seen after {middle * 1e3:.2f} ms (half of them), {most * 1e3:.2f} ms (all)")
    assert records > 0  # how many each one lives to see is up to the kernel
