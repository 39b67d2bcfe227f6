"""What can be waited for on a connection."""

import enum


class Event(enum.IntEnum):
    """What one can wait for."""

    RECORDS = 0
    SPACE = 1
    MESSAGE = 2


# To look one up in the class costs more than what is done with it.
RECORDS, SPACE, MESSAGE = Event
