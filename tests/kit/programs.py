"""What a program has said, without what the development mode of asyncio adds on a busy machine."""

import re

# Each time that a step of a task took more than 0.1 s, as it does where the processor is another's.
_SLOW = re.compile(r"^Executing <.*> took [0-9.]+ seconds\n", re.MULTILINE)


def said(stream):
    """Return all that a program has written to a pipe since it was last read."""
    return _SLOW.sub("", stream.read())
