"""pyzmq: a batch as one message."""

from .batched import AsMemory
from .zeromq import Pair


class Numpy(AsMemory, Pair):
    """send of the memory of an array."""
