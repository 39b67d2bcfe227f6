"""The two-byte control messages: a table and a parser, without I/O.

Every message is `[opcode, argument]` on a SOCK_STREAM socket, so one read may bring many of
them, and may end in the middle of one.
"""

from __future__ import annotations

import os
from enum import IntEnum

from fdpass.lowlevel import exported
from ipcqueue._errors import (
    CorruptPeer,
    CredentialsRefused,
    LimitRefused,
    QueueError,
    RecordRefused,
    Refused,
    RoleRefused,
    SealsRefused,
    SizeRefused,
    VersionRefused,
)

PROTOCOL_VERSION = 1
FIRST_APPLICATION_OPCODE = 128


class Opcode(IntEnum):
    """The opcodes below 128; from there on they belong to the application."""

    WRITE = 1  # records were published; argument: low byte of head.  A hint, may be dropped
    READ = 2  # space was freed; argument: low byte of tail.  A hint, may be dropped
    HELLO = 16  # argument: protocol version; carries one descriptor, the sender's segment
    FDS = 17  # argument: how many descriptors it carries, those of the next frame that has any
    ERR = 100  # argument: a Reason; the sender refuses or abandons the connection


class Reason(IntEnum):
    """Why a side sends ERR."""

    PROTOCOL = 1  # the other side broke the protocol
    VERSION = 2
    RECORD = 3
    SEALS = 4
    SIZE = 5
    CREDENTIALS = 6
    ROLE = 7
    LIMIT = 8  # no room: a limit for this user, or memory or descriptors are short


ERROR_OF_REASON: dict[Reason, type[QueueError]] = {
    Reason.PROTOCOL: Refused,
    Reason.VERSION: VersionRefused,
    Reason.RECORD: RecordRefused,
    Reason.SEALS: SealsRefused,
    Reason.SIZE: SizeRefused,
    Reason.CREDENTIALS: CredentialsRefused,
    Reason.ROLE: RoleRefused,
    Reason.LIMIT: LimitRefused,
}

# What the peer's reason means, and what to do.  The peer's log or exception says more.
_SAID_OF: dict[Reason, str] = {
    Reason.VERSION: "it speaks another version of the protocol: use one release on both sides",
    Reason.RECORD: "it states another record: state the same on both sides",
    Reason.SEALS: "our memory is not sealed as it demands",
    Reason.SIZE: "our ring is larger than its max_segment: state a smaller capacity, or raise that",
    Reason.CREDENTIALS: "it does not admit this user: the server's option allow_uids must name uid "
    "{uid}",
    Reason.ROLE: "these ends do not belong together, such as two senders",
    Reason.LIMIT: "this user has all it may have there, or the peer is short of memory or "
    "descriptors: close connections, or raise the limits of its listener",
}


def reason_of(error: QueueError | OSError) -> Reason:
    """Return what to tell the peer about our error."""
    if not isinstance(error, QueueError):
        return Reason.LIMIT
    for reason, kind in ERROR_OF_REASON.items():
        if type(error) is kind:
            return reason
    return Reason.PROTOCOL


def refusal(argument: int) -> QueueError:
    """Return the error that a received ERR stands for."""
    try:
        reason = Reason(argument)
    except ValueError:
        return Refused(f"the peer refused the connection, for a reason unknown here ({argument})")
    if reason is Reason.PROTOCOL:
        return Refused("the peer refused the connection: it says that we broke the protocol")
    said = _SAID_OF[reason].format(uid=os.geteuid())
    return ERROR_OF_REASON[reason](f"the peer refused the connection: {said}")


def err(error: QueueError | OSError) -> bytes:
    """Return the ERR message that tells the peer about our error."""
    return bytes((Opcode.ERR, reason_of(error)))


HELLO = bytes((Opcode.HELLO, PROTOCOL_VERSION))


def application_message(message: bytes) -> bytes:
    """Return the message if an application may send it, else raise ValueError or TypeError."""
    if not isinstance(message, (bytes, bytearray, memoryview)):
        raise TypeError(f"a control message is two bytes, not {type(message).__name__}")
    message = bytes(exported(message))
    if len(message) != 2 or message[0] < FIRST_APPLICATION_OPCODE:  # noqa: PLR2004
        raise ValueError(
            "a control message is two bytes, the first from 128 to 255 "
            f"(smaller ones are the protocol's own), not {message!r}"
        )
    return message


class ControlParser:
    """Cuts a stream of bytes into control messages, once the handshake is over."""

    def __init__(self, rest: bytes = b"") -> None:
        self.rest = rest  # the first half of a message

    def feed(self, data: bytes) -> tuple[list[bytes], QueueError | None]:
        """Take bytes that were read; raise CorruptPeer for a message that is not allowed now.

        Returns the messages for the application, and what an ERR stands for if one came.
        Doorbells are left out.
        """
        data = self.rest + data
        end = len(data) & ~1
        self.rest = data[end:]
        messages = []
        for at in range(0, end, 2):
            opcode = data[at]
            if opcode >= FIRST_APPLICATION_OPCODE:
                messages.append(data[at : at + 2])
            elif opcode == Opcode.ERR:
                return messages, refusal(data[at + 1])
            elif opcode not in (Opcode.WRITE, Opcode.READ, Opcode.FDS):
                raise CorruptPeer(f"the peer sent opcode {opcode}, which means nothing here")
        return messages, None
