"""What a peer writes into its own segment, and when, harms nobody but itself: the bare core.

mutation.c says what is attacked and what is checked; test_hostile_peer.py does the same to whole
connections.
"""

import os
import subprocess

import pytest

from tests.reliability import campaign

MUTATIONS = 5_000_000
SANITIZERS = (
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=undefined",
    "-fno-omit-frame-pointer",
)


@pytest.mark.deadline(campaign.seconds(300))
def test_a_peer_that_scribbles_over_its_segment_harms_only_itself(compiled):
    program = compiled("mutation", "-U_GNU_SOURCE", *SANITIZERS)
    command = [program, str(campaign.amount(MUTATIONS)), str(campaign.SEED)]
    clean = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    done = subprocess.run(command, env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
