"""How a connection ends: each of its two directions once, and the socket after both.

Each side says in its own segment how it has ended, in bits: it publishes no more (NO_MORE), it
takes no more (TAKES_NONE), or neither and not in good order (ABORTED).  Where several are set, who
receives obeys NO_MORE before ABORTED, and who sends TAKES_NONE before ABORTED.  A socket that ends
without the bit that a direction needs is a crash.  docs/ends.md has the table of what each call
raises then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ipcqueue._errors import Aborted, EndOfStream, PeerDied, ReceiverGone
from ipcqueue._ring.memory import ABORTED, IN_ORDER, NO_MORE, TAKES_NONE

if TYPE_CHECKING:
    from ipcqueue._errors import QueueError


class Ending:
    """What is known of the end of a connection; what was noted first stays."""

    __slots__ = ("over", "own", "receiving", "sending")

    def __init__(self) -> None:
        self.own = 0
        """How this side has ended, in bits."""
        self.receiving: QueueError | None = None
        """What a call that receives raises, once all that was published is received."""
        self.sending: QueueError | None = None
        """What a call that sends raises, unless this side has ended that itself."""
        self.over = False
        """Whether nothing more comes through the socket."""

    def note(
        self, receiving: QueueError | None, sending: QueueError | None, *, over: bool = False
    ) -> QueueError | None:
        """Note an end of each direction that has not ended already; return what is new."""
        news = (None if self.receiving else receiving) or (None if self.sending else sending)
        self.receiving = self.receiving or receiving
        self.sending = self.sending or sending
        self.over = self.over or over
        return news

    def with_own(self, ends: int) -> int:
        """Return how this side has ended with these bits, too.

        Nothing is added to an end that is complete: the peer may have seen it.
        """
        complete = self.own & ABORTED or self.own & IN_ORDER == IN_ORDER
        return self.own if complete else self.own | ends


def died() -> PeerDied:
    """Return what a crash means, to either."""
    return PeerDied("the peer is gone without a word")


def told_receiver(closed: int, *, gone: bool) -> QueueError | None:
    """Return what the peer's bits mean to who receives; `gone`: its socket has ended."""
    if closed & NO_MORE:
        return EndOfStream("the peer has ended the stream, and all of it has been received")
    if closed & ABORTED:
        return Aborted("the peer has given up in the middle; all that it published is received")
    return died() if gone else None


def told_sender(closed: int, *, gone: bool) -> QueueError | None:
    """Return what the peer's bits mean to who sends; `gone`: its socket has ended."""
    if closed & TAKES_NONE:
        return ReceiverGone("the peer has ended the connection: nobody will receive what is sent")
    if closed & ABORTED:
        return Aborted("the peer has given up: nobody will receive what is sent")
    return died() if gone else None


def again(end: QueueError) -> QueueError:
    """Return an end to raise: a new one each time.

    Two threads that raise one exception write into its traceback.
    """
    return type(end)(*end.args)
