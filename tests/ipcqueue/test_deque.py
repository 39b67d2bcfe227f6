"""The queue beside a deque (tests/kit/deque_model.py), as much of it as takes a few seconds."""

import pytest

from tests.kit import deque_model


# Hypothesis asks the collector who refers to its random numbers; conftest.py has frozen that from sight.
@pytest.mark.filterwarnings("ignore:It looks like .register_random")
@pytest.mark.parametrize("model", [deque_model.OfSlots, deque_model.OfMessages])
@pytest.mark.parametrize("number", range(2))
def test_a_queue_is_a_deque(model, number):
    deque_model.check(model, 100, number)
