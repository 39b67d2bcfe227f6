"""The exceptions of memenpsf that are exceptions of Trio as well."""

from __future__ import annotations

import trio

import ipcqueue
from ipcqueue import QueueError, interface_of
from ipcqueue.lowlevel import tag_error, tag_unless_given


class EndOfStream(ipcqueue.EndOfStream, trio.EndOfChannel):
    """The peer ended in good order, and all its records have been received."""


class ReceiverGone(ipcqueue.ReceiverGone, trio.BrokenResourceError):
    """The peer ended in good order and will receive nothing more; the record was not sent."""


class PeerDied(ipcqueue.PeerDied, trio.BrokenResourceError):
    """The peer died without ending the connection; all its records have been received."""


class Aborted(ipcqueue.Aborted, PeerDied):
    """The peer has given up in the middle; all that it published before has been received."""


class CorruptPeer(ipcqueue.CorruptPeer, trio.BrokenResourceError):
    """The peer broke the protocol; the connection is over."""


class Closed(ipcqueue.Closed, trio.ClosedResourceError):
    """This side has closed the connection."""


class ConcurrentUse(ipcqueue.ConcurrentUse, trio.BusyResourceError):
    """Two calls that exclude each other ran at once; neither lost anything."""


class Full(ipcqueue.Full, trio.WouldBlock):
    """There was no space within the time given; the record was not sent."""


class DescriptorsLost(ipcqueue.DescriptorsLost, trio.BrokenResourceError):
    """The peer sent more descriptors than this process may open; the connection is over."""


OURS: dict[type[Exception], type[QueueError]] = {
    ipcqueue.EndOfStream: EndOfStream,
    ipcqueue.ReceiverGone: ReceiverGone,
    ipcqueue.PeerDied: PeerDied,
    ipcqueue.Aborted: Aborted,
    ipcqueue.CorruptPeer: CorruptPeer,
    ipcqueue.DescriptorsLost: DescriptorsLost,
    ipcqueue.Closed: Closed,
    ipcqueue.ConcurrentUse: ConcurrentUse,
    ipcqueue.Full: Full,
}


def translated(error: Exception) -> Exception:
    """Return the exception of Trio that corresponds to `error`, or `error` if there is none."""
    kind = OURS.get(type(error))
    if kind is None:
        return error
    same = kind(*error.args)
    tag_error(same, interface_of(error))
    return same


def ours(error: Exception, interface: object, *, given: bool = False) -> Exception:
    """Mark an exception as coming from this interface, and translate it: every verb does so.

    If the verb was `given` an iterable of records, an exception from that iterable is not marked.
    """
    tag = tag_unless_given if given else tag_error
    tag(error, interface)
    return translated(error)
