"""What can go wrong with a queue, in words that do not overlap.

Ours: BadRecord, Closed, ConcurrentUse, ForkedUse.  Nobody's: Full.  The peer's: it said
goodbye (EndOfStream for calls that receive, ReceiverGone for those that send), it did not
(PeerDied), it gave up in the middle (Aborted, a PeerDied), it broke the protocol (CorruptPeer), or
the two sides do not fit together (Refused, whose message shows both views).
"""

from __future__ import annotations

from typing import Any

from ._origin import interface_of


class QueueError(Exception):
    """Base of every error that this package defines."""

    @property
    def interface(self) -> Any:
        """The connection whose verb raised it, or None; weakly held.  See interface_of."""
        return interface_of(self)


class BadRecord(QueueError, TypeError, ValueError):
    """The record to send does not fit the record spec; nothing was sent."""


class TooLarge(BadRecord):
    """The message is larger than the receiver takes; nothing was sent."""


class Unaccepted(BadRecord):
    """The receiver does not accept what was attached; nothing was sent."""


class DecodeFailed(QueueError, ValueError):
    """A record or message was taken and could not be decoded; the next one can be received.

    `__cause__` is what the record's class or the decoder has raised.  What is no Exception, or a
    MemoryError, is raised as it is the first time, and the message stays; if it comes again, the
    second call raises this.
    """


class LoanError(QueueError):
    """A loan or a borrowing was used against its rules; the message says which."""


class Full(QueueError):
    """There was no space in time; the record was not sent."""


class Closed(QueueError):
    """This side has closed the queue."""


class ConcurrentUse(QueueError):
    """Two uses that exclude each other met; neither lost anything."""


class ForkedUse(QueueError):
    """A forked child touched an end that belongs to its parent; it may only close it."""


class EndOfStream(QueueError):
    """The peer ended in good order, and all that it published has been received.

    Only calls that receive raise it; those that send raise ReceiverGone.
    """


class ReceiverGone(QueueError):
    """The peer ended in good order, so nobody will receive what is sent; it was not sent.

    Only calls that send raise it.  What the peer published before can still be received.
    """


class PeerDied(QueueError):
    """The peer is gone without a word; all that it published has been received."""


class Aborted(PeerDied):
    """The peer has given up in the middle: it called abort(), or an exception ended its block.

    All that it published before has been received.
    """


class CorruptPeer(QueueError):
    """The peer broke the protocol; the connection is over."""


class DescriptorsLost(QueueError):
    """Descriptors were lost because this process may not open more; the connection is over."""


class HandshakeTimeout(QueueError, TimeoutError):
    """The peer did not introduce itself in time."""


class Refused(QueueError):
    """The two sides do not fit together; one of them refused the connection."""


class RecordRefused(Refused):
    """The two sides state records of different layout, or one name at two places."""


class VersionRefused(Refused):
    """The two sides speak different versions of the layout or the protocol."""


class SealsRefused(Refused):
    """The descriptor received is not an anonymous file sealed as the protocol demands."""


class SizeRefused(Refused):
    """The segment received is too large, or not backed by memory."""


class CredentialsRefused(Refused):
    """The peer runs under a user id that is not admitted."""


class RoleRefused(Refused):
    """Two ends met that do not belong together, such as two senders."""


class LimitRefused(Refused):
    """The connection would be one too many, or memory or descriptors for it are short."""
