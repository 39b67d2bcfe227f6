"""How a connection is shown: in one short line, which tells it apart from others.

Nothing here waits, takes a lock or asks the kernel, and nothing raises: what is half made or closed
is shown as well, also by a destructor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ipcqueue._errors import Closed
from ipcqueue._records.messages import MessageCodec

if TYPE_CHECKING:
    from typing import Protocol

    from fdpass import Credentials
    from ipcqueue._errors import QueueError
    from ipcqueue._records.codec import AnyCodec
    from ipcqueue._ring.end import End

    class Shown(Protocol):
        """What is shown of an Endpoint."""

        codec: AnyCodec
        name: str
        peer_name: str
        peer: Credentials
        address: str
        closed: bool

        @property
        def end(self) -> QueueError | None:
            """How it ended, or None."""

        @property
        def sender(self) -> End | None:
            """The end of a ring that sends, or None."""

        @property
        def receiver(self) -> End | None:
            """The one that receives, or None."""

        def fileno(self) -> int:
            """Return its descriptor."""


_LONGEST = 40  # characters of a record spec


def printable(text: str) -> str:
    """Return a text of a stranger's as one line: what cannot be printed is escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def shown(endpoint: Shown, kind: str) -> str:
    """Show a connection that the user knows as a `kind`: names, peer, address, state, records."""
    try:
        return _shown(endpoint, kind)
    except Exception:  # noqa: BLE001 (half made; or no memory)
        return f"<{kind}: half made>"


def _shown(endpoint: Shown, kind: str) -> str:
    who = f"{kind} {endpoint.name!r}" if endpoint.name else kind
    if not endpoint.closed and (fd := endpoint.fileno()) >= 0:
        who += f" fd {fd}"
    peer = shown_peer(endpoint.peer_name, endpoint.peer.pid, endpoint.address)
    state = shown_state(endpoint)
    parts = [state, shown_record(endpoint.codec)]
    if state != "closed":
        frames = isinstance(endpoint.codec, MessageCodec)
        rings = (("out", endpoint.sender), ("in", endpoint.receiver))
        parts += [f"{way} {_fill(ring, frames)}" for way, ring in rings if ring is not None]
    return f"<{who} with {peer}: {', '.join(parts)}>"


def shown_peer(name: str, pid: int, address: str) -> str:
    """Show a peer by its name, its process, and the server's address, as far as they are known."""
    # 0: a process of another pid namespace.
    process = f"pid {pid}" if pid else "a process unknown here"
    at = f" at {printable(address)}" if address else ""
    return (f"{name!r} ({process})" if name else process) + at


def shown_state(endpoint: Shown) -> str:
    """Show whether a connection is open, and otherwise how it ended."""
    end = endpoint.end
    if endpoint.closed or end is None:
        return "closed" if endpoint.closed else "open"
    return "finished" if isinstance(end, Closed) else type(end).__name__


def shown_record(codec: AnyCodec) -> str:
    """Show what a record is: the name of its class, or its spec, shortened."""
    spec: Any = codec.spec
    layout = spec if isinstance(spec, str) else getattr(spec, "format", None)  # of a Struct
    if isinstance(spec, type):
        text = spec.__name__
    elif isinstance(codec, MessageCodec):
        text = type(spec).__name__  # an Encoded
    elif isinstance(layout, str):
        text = repr(layout)
    else:  # of a number of bytes, or a numpy.dtype
        text = f"{codec.size} bytes" if hasattr(spec, "__index__") else str(spec)
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"


def _fill(ring: End, frames: bool) -> str:
    """Show how much of a ring is in use: records, or bytes of messages."""
    head, tail = ring.glance()
    return f"{head - tail}/{ring.capacity}" + (" bytes" if frames else "")
