"""What every test of fdpass is held to beyond tests/conftest.py."""

import pytest

from tests.kit.attached import open_descriptors


@pytest.fixture(autouse=True)
def _closes_what_it_opens_and_nothing_else():
    before = open_descriptors()
    yield
    assert open_descriptors() == before
