"""ReceiverSet: many connections and listeners, received from by one loop; for tasks of Trio."""

from __future__ import annotations

from .._tasks.receiver_set import TaskReceiverSet
from ._listener import Listener
from ._protection import protect


class ReceiverSet(TaskReceiverSet):
    """Many interfaces and listeners, and one loop that receives from all of them.

        async with memenpsf.trio.ReceiverSet([one, other]) as readers:
            async for source, record in readers:
                ...

    As memenpsf.ReceiverSet: an exception that source.recv() would raise comes in place of a record,
    as an object; after an end, the source is not in the set any more.  Members have had their
    handshake.  Any number of tasks may receive.
    """

    listener = Listener
    _shown_as = "memenpsf.trio.ReceiverSet"


protect(ReceiverSet)
