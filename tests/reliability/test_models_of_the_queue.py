"""The queue beside a deque (tests/kit/deque_model.py), at full amount."""

import pytest

from tests.kit import deque_model
from tests.reliability import campaign


@pytest.mark.deadline(campaign.seconds(600))
@pytest.mark.parametrize("model", [deque_model.OfSlots, deque_model.OfMessages])
def test_a_queue_is_a_deque_at_full_amount(model):
    deque_model.check(model, campaign.amount(2000), campaign.SEED)
