"""What one side of a connection counts."""

from typing import NamedTuple


class Statistics(NamedTuple):
    """Counters of this side of a connection; all only grow."""

    # In records; with messages of any length, in bytes of the ring (indices() says more).
    sent: int  # published
    taken: int  # of those, taken by the peer
    received: int  # taken from the peer
    waiting: int  # published by the peer and not taken by this side; not a counter
    doorbells: int  # control messages sent to wake the peer
    waits: int  # times this side announced that it goes to sleep
    full: int  # pushes that found no space
    dropped: int  # descriptors and regions closed because nobody took them with their message
    rescues: int  # times a sleeper was woken by the clock and found work: a lost wake-up
    # Wake-ups with nothing new, but for the first 31 in a row: the peer is hostile, or it sends
    # control messages which nobody takes here.
    false_alarms: int
