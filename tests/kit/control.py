"""Control messages in such numbers that the socket is full, through any door (tests/kit/doors.py)."""

import memenpsf


async def fill_messages(side):
    """Send as many control messages as the socket takes; return how many.  The n-th ends with n."""
    for count in range(1_000_000):
        try:
            await side.send_ctrl_msg(bytes((200, count & 255)), timeout=0)
        except memenpsf.Full:
            return count
    raise AssertionError("the socket takes everything")


async def drain_messages(side):
    """Receive all control messages that have come; return how many."""
    count = 0
    while await side.recv_ctrl_msg(timeout=0) is not None:
        count += 1
    return count
