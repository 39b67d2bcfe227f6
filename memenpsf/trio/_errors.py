"""The words of memenpsf that are Trio's as well."""

from __future__ import annotations

import trio

import ipcqueue
from ipcqueue import QueueError, interface_of
from ipcqueue.lowlevel import tag_error, tag_unless_given


class EndOfStream(ipcqueue.EndOfStream, trio.EndOfChannel):
    """The peer ended in good order, and all that it published has been received."""


class ReceiverGone(ipcqueue.ReceiverGone, trio.BrokenResourceError):
    """The peer ended in good order, so nobody will receive what is sent; it was not sent."""


class PeerDied(ipcqueue.PeerDied, trio.BrokenResourceError):
    """The peer is gone without a word; all that it published has been received."""


class CorruptPeer(ipcqueue.CorruptPeer, trio.BrokenResourceError):
    """The peer broke the protocol; the connection is over."""


class Closed(ipcqueue.Closed, trio.ClosedResourceError):
    """This side has closed it."""


class ConcurrentUse(ipcqueue.ConcurrentUse, trio.BusyResourceError):
    """Two uses that exclude each other met; neither lost anything."""


class Full(ipcqueue.Full, trio.WouldBlock):
    """There was no space in time; the record was not sent."""


class DescriptorsLost(ipcqueue.DescriptorsLost, trio.BrokenResourceError):
    """This process may not open as many descriptors as the peer sent; the connection is over."""


OURS: dict[type[Exception], type[QueueError]] = {
    ipcqueue.EndOfStream: EndOfStream,
    ipcqueue.ReceiverGone: ReceiverGone,
    ipcqueue.PeerDied: PeerDied,
    ipcqueue.CorruptPeer: CorruptPeer,
    ipcqueue.DescriptorsLost: DescriptorsLost,
    ipcqueue.Closed: Closed,
    ipcqueue.ConcurrentUse: ConcurrentUse,
    ipcqueue.Full: Full,
}


def translated(error: Exception) -> Exception:
    """Return an exception in Trio's words, if it has one for it, and as it is otherwise."""
    kind = OURS.get(type(error))
    if kind is None:
        return error
    same = kind(*error.args)
    tag_error(same, interface_of(error))
    return same


def ours(error: Exception, interface: object, *, given: bool = False) -> Exception:
    """Return what a verb raises, in Trio's words, as of this interface: every verb ends with it.

    Unless the code of the caller raised it, if the verb was `given` records that code makes.
    """
    tag = tag_unless_given if given else tag_error
    tag(error, interface)
    return translated(error)
