"""The fixtures of the kit that tests of signals ask for."""

from tests.kit.slots import make_ring, ring  # noqa: F401 (fixtures)
from tests.kit.waiting import in_thread  # noqa: F401 (a fixture)
