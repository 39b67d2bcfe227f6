"""The fixtures of the kit that tests of ipcqueue ask for."""

from tests.kit.shortage import short_of_memory  # noqa: F401 (a fixture)
from tests.kit.slots import make_ring, ring  # noqa: F401 (fixtures)
from tests.kit.waiting import in_thread  # noqa: F401 (a fixture)
