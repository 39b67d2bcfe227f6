"""The ends of the rings that an Agreement calls for: of which shape, and with which limits.

Terms has loaded the classes of that shape.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ipcqueue._records.messages import MessageCodec
from ipcqueue._ring.end import Place
from ipcqueue._ring.patience import suited
from ipcqueue._ring.segment import limits_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from ipcqueue._ring.patience import Patience
    from ipcqueue._ring.receiver import ReceiverEnd
    from ipcqueue._ring.sender import SenderEnd

    from .opening import Agreement
    from .terms import Terms
    from .wire import Wire


def accepted_fds(terms: Terms) -> int:
    """Return how many descriptors may come with one message."""
    frames = isinstance(terms.codec, MessageCodec)
    return terms.limits.most_fds() if terms.role.receives and frames else 0


def ends_of(agreement: Agreement, wire: Wire) -> tuple[SenderEnd | None, ReceiverEnd | None]:
    """Return the end that sends over a wire and the one that receives, as far as there are any.

    The latter takes descriptors that came with messages out of `wire.attached`.
    """
    terms = agreement.terms
    patience = suited(terms.patience, shares=agreement.credentials.pid == os.getpid())
    return (
        _sending_end(agreement, wire, patience) if terms.role.sends else None,
        _receiving_end(agreement, wire, patience) if terms.role.receives else None,
    )


def _sending_end(agreement: Agreement, wire: Wire, patience: Patience) -> SenderEnd:
    terms, own, peer = agreement.terms, agreement.own, agreement.peer
    codec, size, both = terms.codec, own.identity.capacity, (own.mapping, peer.mapping)
    place = Place(size, codec.size, wire.fileno(), patience=patience, process=wire.process)
    sender: Callable[..., SenderEnd] = terms.ends[0]
    if isinstance(codec, MessageCodec):
        return sender(*both, place, codec, limits_of(peer.identity), terms.inline)
    return sender(*both, place, codec)


def _receiving_end(agreement: Agreement, wire: Wire, patience: Patience) -> ReceiverEnd:
    terms, own, peer = agreement.terms, agreement.own, agreement.peer
    codec, size, both = terms.codec, peer.identity.capacity, (own.mapping, peer.mapping)
    place = Place(size, codec.size, wire.fileno(), patience=patience)
    receiver: Callable[..., ReceiverEnd] = terms.ends[1]
    if isinstance(codec, MessageCodec):
        return receiver(*both, place, codec, terms.limits, wire.attached)
    return receiver(*both, place, codec)
