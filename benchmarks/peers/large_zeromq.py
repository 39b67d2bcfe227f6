"""pyzmq with large messages."""

from .large import Copied
from .zeromq import Pair


class Large(Copied, Pair):
    """send and recv of bytes, which are copied."""
