"""What one side of a connection counts."""

from typing import NamedTuple


class Statistics(NamedTuple):
    """Counters of this side of a connection; all but `waiting` and `waiting_bytes` only grow.

    Records are records or messages, whatever a message's length.  A record that a loop has taken
    ahead of the application counts as taken.
    """

    sent: int  # records published
    taken: int  # records of those that the peer has taken
    received: int  # records taken from the peer
    waiting: int  # records published by the peer and not taken; of messages, 65,536 at most
    doorbells: int  # control messages sent to wake the peer
    waits: int  # times this side announced that it goes to sleep
    full: int  # attempts to send that found no space
    dropped: int  # descriptors and regions closed because nobody took them with their message
    rescues: int  # times a sleeper was woken by the clock and found work: a lost wake-up
    # Wake-ups with nothing new, but for the first 31 in a row: the peer is hostile, or it sends
    # control messages which nobody takes here.
    false_alarms: int
    # The same in bytes of shared memory.  A message in the ring takes its own bytes and 16 more,
    # rounded up to 16; one outside of it 32 bytes of the ring, and its own.
    sent_bytes: int
    taken_bytes: int
    received_bytes: int
    waiting_bytes: int
